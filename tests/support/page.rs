//! The counters of a scripted engine and the page that shows them.

use std::fmt::Write;
use std::time::Instant;

/// Requests in the batch at full load.
const FULL_BATCH: f64 = 16.0;
/// One step at the highest clock, seconds.
const STEP: f64 = 0.010;
/// Share of a step that does not follow the core clock.
const MEMORY_BOUND: f64 = 0.5;
/// Steps of a request.
const LENGTH: f64 = 50.0;
/// Prompt tokens of a request.
const PROMPT: f64 = 200.0;

/// An engine that decodes a steady batch: what it has counted since its start.
#[derive(Debug)]
pub(crate) struct Counters {
    at: Instant,
    process_start: f64,
    max_core: f64,
    load: f64,
    steps: f64,
    tokens: f64,
    /// Sum of the times between tokens, seconds.
    waits: f64,
}

impl Counters {
    /// An engine that has just started, on GPUs with that highest core clock.
    pub(crate) fn new(max_core_mhz: u32) -> Self {
        Self {
            at: Instant::now(),
            process_start: 1_790_000_000.0,
            max_core: f64::from(max_core_mhz),
            load: 0.0,
            steps: 0.0,
            tokens: 0.0,
            waits: 0.0,
        }
    }

    /// The load of the next moments, as a share of a full batch.
    pub(crate) fn set_load(&mut self, load: f64, core_mhz: f64) {
        self.advance(core_mhz);
        self.load = load;
    }

    /// A new process.
    pub(crate) fn restart(&mut self) {
        self.process_start += 100.0;
        (self.steps, self.tokens, self.waits) = (0.0, 0.0, 0.0);
        self.at = Instant::now();
    }

    /// Half of what was counted is forgotten, in the same process.
    pub(crate) fn go_back(&mut self) {
        (self.steps, self.tokens, self.waits) = (0.5 * self.steps, 0.5 * self.tokens, 0.5 * self.waits);
    }

    fn running(&self) -> f64 {
        (FULL_BATCH * self.load).ceil()
    }

    /// Works until now, at this core clock since the last call.
    pub(crate) fn advance(&mut self, core_mhz: f64) {
        let now = Instant::now();
        let span = now.duration_since(self.at).as_secs_f64();
        self.at = now;
        if self.running() > 0.0 && core_mhz > 0.0 {
            let step = STEP * (MEMORY_BOUND + (1.0 - MEMORY_BOUND) * self.max_core / core_mhz);
            self.steps += span / step;
            self.tokens += span / step * self.running();
            self.waits += span * self.running();
        }
    }

    /// The page as vLLM's V1 engine words it, or with `poison` in place of every value.
    pub(crate) fn page(&self, poison: Option<&str>) -> String {
        let mut page = Page { text: String::new(), poison };
        let requests = self.tokens / LENGTH;
        page.line("process_start_time_seconds", "", self.process_start);
        page.line("vllm:num_requests_running", LABELS, self.running());
        page.line("vllm:num_requests_waiting", LABELS, 0.0);
        page.line("vllm:kv_cache_usage_perc", LABELS, 0.6 * self.load);
        page.line("vllm:prefix_cache_queries_total", LABELS, (PROMPT * requests).floor());
        page.line("vllm:prefix_cache_hits_total", LABELS, (0.25 * PROMPT * requests).floor());
        page.line("vllm:num_preemptions_total", LABELS, 0.0);
        page.line("vllm:prompt_tokens_total", LABELS, (PROMPT * requests).floor());
        page.line("vllm:generation_tokens_total", LABELS, self.tokens.floor());
        page.line("vllm:request_success_total", FINISHED, requests.floor());
        page.histogram("vllm:iteration_tokens_total", self.steps, self.tokens + PROMPT * requests, "512.0");
        page.histogram("vllm:time_to_first_token_seconds", requests, 0.08 * requests, "0.25");
        page.histogram("vllm:inter_token_latency_seconds", self.tokens, self.waits, "0.5");
        page.histogram("vllm:e2e_request_latency_seconds", requests, LENGTH * STEP * requests, "10.0");
        page.text
    }
}

/// Whose page it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Words {
    /// vLLM's V1 engine.
    Vllm,
    /// llama-server, which counts tokens when their request ends.
    LlamaCpp,
    /// SGLang.
    Sglang,
}

impl Counters {
    /// The page of this engine: a stored one with other values.
    pub(crate) fn page_of(&self, words: Words) -> String {
        let requests = (self.tokens / LENGTH).floor();
        let wait = if self.tokens > 0.0 { self.waits / self.tokens } else { 0.0 };
        let ended = LENGTH * requests;
        match words {
            Words::Vllm => self.page(None),
            Words::LlamaCpp => Stored::new(include_str!("../data/metrics/llama.cpp-0.3.36-fresh-start.txt"))
                .set("llamacpp:requests_processing", self.running())
                .set("llamacpp:prompt_tokens_total", PROMPT * requests)
                .set("llamacpp:tokens_predicted_total", ended)
                .set("llamacpp:tokens_predicted_seconds_total", wait * ended)
                .set("llamacpp:n_decode_total", self.steps.floor())
                .text(),
            Words::Sglang => {
                Stored::new(include_str!("../data/metrics/sglang-0.5.23-from-its-metrics-classes.txt"))
                    .set("sglang:num_running_reqs", self.running())
                    .set("sglang:token_usage", 0.6 * self.load)
                    .set(
                        "sglang:realtime_tokens_total{engine_type=\"unified\",mode=\"decode\"",
                        self.tokens.floor(),
                    )
                    .set("sglang:num_requests_total", requests)
                    .histogram("sglang:inter_token_latency_seconds", self.tokens.floor(), self.waits)
                    .histogram("sglang:time_to_first_token_seconds", requests, 0.08 * requests)
                    .histogram("sglang:request_time_per_output_token_seconds", requests, wait * requests)
                    .histogram("sglang:e2e_request_latency_seconds", requests, LENGTH * STEP * requests)
                    .text()
            }
        }
    }
}

/// A stored page whose values are replaced.
struct Stored(Vec<String>);

impl Stored {
    fn new(page: &str) -> Self {
        Self(page.lines().map(str::to_owned).collect())
    }

    fn text(self) -> String {
        self.0.join("\n") + "\n"
    }

    /// The value of each series that begins like this.
    fn set(mut self, series: &str, value: f64) -> Self {
        let mut found = false;
        for line in &mut self.0 {
            let rest = line.strip_prefix(series);
            if rest.is_some_and(|rest| rest.starts_with(['{', ' ', ',', '}']))
                && let Some(end) = line.rfind(' ')
            {
                line.replace_range(end + 1.., &format!("{value:?}"));
                found = true;
            }
        }
        assert!(found, "{series} is not on the stored page");
        self
    }

    /// A histogram all of whose observations are in the last bucket.
    fn histogram(self, name: &str, count: f64, sum: f64) -> Self {
        let mut page = self
            .set(&format!("{name}_bucket"), 0.0)
            .set(&format!("{name}_sum"), sum)
            .set(&format!("{name}_count"), count);
        for line in page.0.iter_mut().filter(|line| line.starts_with(&format!("{name}_bucket"))) {
            if line.contains("le=\"+Inf\"")
                && let Some(end) = line.rfind(' ')
            {
                line.replace_range(end + 1.., &format!("{count:?}"));
            }
        }
        page
    }
}

const LABELS: &str = "{engine=\"0\",model_name=\"scripted\"}";
const FINISHED: &str = "{engine=\"0\",finished_reason=\"stop\",model_name=\"scripted\"}";

struct Page<'a> {
    text: String,
    poison: Option<&'a str>,
}

impl Page<'_> {
    fn line(&mut self, name: &str, labels: &str, value: f64) {
        // Writing to a string cannot fail.
        let _ = match self.poison {
            Some(poison) => writeln!(self.text, "{name}{labels} {poison}"),
            None => writeln!(self.text, "{name}{labels} {value:?}"),
        };
    }

    /// All observations fall below the one finite bound.
    fn histogram(&mut self, name: &str, count: f64, sum: f64, bound: &str) {
        for bound in [bound, "+Inf"] {
            let labels = format!("{{engine=\"0\",le=\"{bound}\",model_name=\"scripted\"}}");
            self.line(&format!("{name}_bucket"), &labels, count.floor());
        }
        self.line(&format!("{name}_count"), LABELS, count.floor());
        self.line(&format!("{name}_sum"), LABELS, sum);
    }
}
