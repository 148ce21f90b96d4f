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
