//! The metrics page as vLLM 0.32 (V1 engine, one API server) serves it: the same families, labels and order, about
//! 50 kB, so that fetching and parsing it costs what it costs in the field.

use std::fmt::Write as _;

use super::stats::{COPIES, Histogram, Stats};
use agft::units::Time;

/// From the start of the process to its metrics being there, while the model loads.
const LOADING: f64 = 62.6;

/// Renders the page.
pub(super) fn render(stats: &Stats, model: &str, kv_blocks: u32, block_tokens: u32, now: Time) -> String {
    let mut page =
        Page { out: String::with_capacity(56 * 1024), model, created: stats.process_start + LOADING };
    page.process(stats, now);
    page.engine(stats);
    page.requests(stats);
    page.config(kv_blocks, block_tokens);
    page.http(stats);
    page.out
}

struct Page<'a> {
    out: String,
    model: &'a str,
    /// Unix time at which the series came into being.
    created: f64,
}

impl Page<'_> {
    /// What every Python process exports.
    fn process(&mut self, stats: &Stats, now: Time) {
        let generations =
            [("generation=\"0\"", 14764.0), ("generation=\"1\"", 2988.0), ("generation=\"2\"", 1059.0)];
        self.family("python_gc_objects_collected_total", "Objects the collector freed", "counter");
        self.samples("python_gc_objects_collected_total", &generations);
        self.family(
            "python_gc_objects_uncollectable_total",
            "Objects the collector could not free",
            "counter",
        );
        self.samples("python_gc_objects_uncollectable_total", &generations.map(|(labels, _)| (labels, 0.0)));
        self.family("python_gc_collections_total", "Collections per generation", "counter");
        self.samples(
            "python_gc_collections_total",
            &generations.map(|(labels, n)| (labels, (n / 8.0).round())),
        );
        self.family("python_info", "Python platform", "gauge");
        let python =
            "implementation=\"CPython\",major=\"3\",minor=\"12\",patchlevel=\"3\",version=\"3.12.3\"";
        self.samples("python_info", &[(python, 1.0)]);
        let uptime = LOADING + now.0;
        for (name, help, kind, value) in [
            ("process_virtual_memory_bytes", "Virtual memory", "gauge", 4.704_108_544e9),
            ("process_resident_memory_bytes", "Resident memory", "gauge", 9.659_228_16e8),
            ("process_start_time_seconds", "Start of the process, Unix time", "gauge", stats.process_start),
            ("process_cpu_seconds_total", "CPU time, user and system", "counter", 18.0 + 0.2 * uptime),
            ("process_open_fds", "Open file descriptors", "gauge", 34.0),
            ("process_max_fds", "Most file descriptors that may be open", "gauge", 65_535.0),
        ] {
            self.family(name, help, kind);
            self.samples(name, &[("", value)]);
        }
    }

    fn engine(&mut self, stats: &Stats) {
        for quantity in ["flops", "read_bytes", "write_bytes"] {
            let name = format!("vllm:estimated_{quantity}_per_gpu");
            self.counter(
                &name,
                "Estimate for the utilization metrics, zero unless these are switched on.",
                &[("", 0.0)],
            );
        }
        self.gauge(
            "vllm:num_requests_running",
            "Requests in the batches being executed.",
            &[("", stats.running)],
        );
        self.gauge("vllm:num_requests_waiting", "Requests waiting for execution.", &[("", stats.waiting)]);
        self.gauge(
            "vllm:num_requests_waiting_by_reason",
            "Waiting requests by reason: capacity of the scheduler, or deferred by a passing constraint such as a KV \
             transfer. The reasons add up to vllm:num_requests_waiting.",
            &[("reason=\"capacity\"", stats.waiting), ("reason=\"deferred\"", 0.0)],
        );
        self.gauge(
            "vllm:engine_sleep_state",
            "Whether the engine is awake (awake = 1) or asleep with weights offloaded or everything discarded.",
            &[
                ("sleep_state=\"awake\"", 1.0),
                ("sleep_state=\"weights_offloaded\"", 0.0),
                ("sleep_state=\"discard_all\"", 0.0),
            ],
        );
        self.gauge(
            "vllm:kv_cache_usage_perc",
            "Share of the KV cache in use, 1 is full.",
            &[("", stats.kv_usage)],
        );
        self.counter(
            "vllm:prefix_cache_queries",
            "Tokens looked up in the prefix cache.",
            &[("", stats.prefix_queries)],
        );
        self.counter(
            "vllm:prefix_cache_hits",
            "Tokens found in the prefix cache.",
            &[("", stats.prefix_hits)],
        );
        for (name, help) in [
            ("vllm:external_prefix_cache_queries", "Tokens looked up in the cache shared between instances."),
            ("vllm:external_prefix_cache_hits", "Tokens found in the cache shared between instances."),
            ("vllm:mm_cache_queries", "Items looked up in the multi-modal cache."),
            ("vllm:mm_cache_hits", "Items found in the multi-modal cache."),
        ] {
            self.counter(name, help, &[("", 0.0)]);
        }
        self.counter("vllm:num_preemptions", "Preemptions by the scheduler.", &[("", stats.preemptions)]);
        self.counter("vllm:prompt_tokens", "Prompt tokens processed.", &[("", stats.prompt_tokens)]);
        self.counter(
            "vllm:prompt_tokens_by_source",
            "Prompt tokens by where they came from.",
            &[
                ("source=\"local_compute\"", stats.prompt_tokens - stats.cached_tokens),
                ("source=\"local_cache_hit\"", stats.cached_tokens),
                ("source=\"external_kv_transfer\"", 0.0),
            ],
        );
        self.counter(
            "vllm:prompt_tokens_cached",
            "Prompt tokens from any cache.",
            &[("", stats.cached_tokens)],
        );
        self.counter(
            "vllm:prompt_tokens_cached_by_source",
            "Cached prompt tokens by the tier that held them: the device, host memory, disk, another instance or an \
             external store that does not say. Counted at admission.",
            &[
                ("source=\"device\"", stats.cached_tokens),
                ("source=\"host\"", 0.0),
                ("source=\"p2p\"", 0.0),
                ("source=\"disk\"", 0.0),
                ("source=\"external_unspecified\"", 0.0),
            ],
        );
        self.counter("vllm:generation_tokens", "Tokens generated.", &[("", stats.generation_tokens)]);
        self.counter(
            "vllm:request_success",
            "Requests that ended, by reason.",
            &[
                ("finished_reason=\"stop\"", 0.0),
                ("finished_reason=\"length\"", stats.finished),
                ("finished_reason=\"abort\"", 0.0),
                ("finished_reason=\"error\"", 0.0),
                ("finished_reason=\"repetition\"", 0.0),
            ],
        );
        // The one family of the front end, hence without the engine's label.
        let (help, model) = ("Requests that a queue limit turned away, by limit.", self.model);
        let limits = ["max_num_queued_reqs", "max_num_queued_tokens"]
            .map(|limit| format!("model_name=\"{model}\",reason=\"{limit}\""));
        for (name, kind, value) in [
            ("vllm:admission_rejections_total", "counter", 0.0),
            ("vllm:admission_rejections_created", "gauge", self.created),
        ] {
            self.family(name, help, kind);
            for limit in &limits {
                self.samples(name, &[(limit, value)]);
            }
        }
    }

    fn requests(&mut self, stats: &Stats) {
        // What was asked for equals what came: every simulated request ends at its length limit.
        let one_copy = Shown::constant(COPIES, 1.0, stats.finished);
        let generation = Shown::of(&stats.request_generation);
        for (name, help, shown) in [
            ("request_prompt_tokens", "Prompt tokens per request.", Shown::of(&stats.request_prompt)),
            ("request_generation_tokens", "Generated tokens per request.", generation.clone()),
            ("iteration_tokens_total", "Tokens per engine step.", Shown::of(&stats.step_tokens)),
            (
                "request_max_num_generation_tokens",
                "Most tokens a request might generate.",
                generation.clone(),
            ),
            ("request_params_n", "Parameter n of the requests.", one_copy),
            ("request_params_max_tokens", "Parameter max_tokens of the requests.", generation),
            ("time_to_first_token_seconds", "Time to first token in seconds.", Shown::of(&stats.ttft)),
            ("inter_token_latency_seconds", "Time between two tokens in seconds.", Shown::of(&stats.itl)),
            (
                "request_time_per_output_token_seconds",
                "Mean time per token of a request.",
                Shown::of(&stats.request_tpot),
            ),
            ("e2e_request_latency_seconds", "Time from arrival to the last token.", Shown::of(&stats.e2e)),
            ("request_queue_time_seconds", "Time a request waited.", Shown::of(&stats.queue_time)),
            ("request_inference_time_seconds", "Time a request ran.", Shown::of(&stats.inference_time)),
            (
                "request_prefill_time_seconds",
                "Time a request was in prefill.",
                Shown::of(&stats.prefill_time),
            ),
            ("request_decode_time_seconds", "Time a request was in decode.", Shown::of(&stats.decode_time)),
            (
                "request_num_preemptions",
                "How often a request was preempted.",
                Shown::of(&stats.request_preemptions),
            ),
            (
                "request_prefill_kv_computed_tokens",
                "Prompt tokens computed, not cached.",
                Shown::of(&stats.request_computed),
            ),
        ] {
            self.histogram(&format!("vllm:{name}"), help, &shown, "", true);
        }
    }

    fn config(&mut self, kv_blocks: u32, block_tokens: u32) {
        let tokens = u64::from(kv_blocks) * u64::from(block_tokens);
        self.family("vllm:cache_config_info", "Configuration of the KV cache", "gauge");
        let _ = writeln!(
            self.out,
            "vllm:cache_config_info{{block_size=\"{block_tokens}\",cache_dtype=\"auto\",enable_prefix_caching=\"True\",\
             engine=\"0\",gpu_memory_utilization=\"0.9\",is_attention_free=\"False\",\
             kv_cache_dtype_skip_layers=\"[]\",kv_cache_memory_bytes=\"None\",kv_cache_size_tokens=\"{tokens}\",\
             kv_offloading_backend=\"native\",kv_offloading_size=\"None\",kv_sharing_fast_prefill=\"False\",\
             mamba_block_size=\"None\",mamba_cache_dtype=\"auto\",mamba_cache_mode=\"none\",num_cpu_blocks=\"None\",\
             num_gpu_blocks=\"{kv_blocks}\",num_gpu_blocks_override=\"None\",prefix_caching_hash_algo=\"sha256\",\
             sliding_window=\"None\",user_specified_block_size=\"False\"}} 1.0"
        );
    }

    /// What the web framework's instrumentation adds.
    fn http(&mut self, stats: &Stats) {
        let handler = "handler=\"/v1/completions\"";
        let called = format!("{handler},method=\"POST\",status=\"2xx\"");
        self.family("http_requests_total", "Requests by method, status and handler.", "counter");
        self.samples("http_requests_total", &[(&called, stats.finished)]);
        self.family("http_requests_created", "Requests by method, status and handler.", "gauge");
        self.samples("http_requests_created", &[(&called, self.created)]);
        for (name, help, bytes) in [
            ("http_request_size_bytes", "Content length of requests by handler.", 4.0),
            ("http_response_size_bytes", "Content length of responses by handler.", 4.5),
        ] {
            let tokens =
                if name.contains("request_") { stats.prompt_tokens } else { stats.generation_tokens };
            self.family(name, help, "summary");
            self.samples(&format!("{name}_count"), &[(handler, stats.finished)]);
            self.samples(&format!("{name}_sum"), &[(handler, (bytes * tokens).round())]);
            self.family(&format!("{name}_created"), help, "gauge");
            self.samples(&format!("{name}_created"), &[(handler, self.created)]);
        }
        let e2e = Shown::of(&stats.e2e);
        self.histogram(
            "http_request_duration_highr_seconds",
            "Request duration, many buckets.",
            &e2e,
            "",
            false,
        );
        let by_handler = "handler=\"/v1/completions\",method=\"POST\"";
        self.histogram(
            "http_request_duration_seconds",
            "Request duration by handler.",
            &e2e,
            by_handler,
            false,
        );
    }

    fn family(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Lines of one family with exactly these labels.
    fn samples(&mut self, name: &str, samples: &[(&str, f64)]) {
        for (labels, value) in samples {
            self.out.push_str(name);
            if !labels.is_empty() {
                let _ = write!(self.out, "{{{labels}}}");
            }
            self.value(*value);
        }
    }

    /// Lines of one engine family: sorted labels `engine`, `model_name` and one more, whose name decides its place.
    fn engine_samples(&mut self, name: &str, samples: &[(&str, f64)]) {
        let model = self.model;
        for (extra, value) in samples {
            let _ = match *extra {
                "" => write!(self.out, "{name}{{engine=\"0\",model_name=\"{model}\"}}"),
                extra if extra < "model_name" => {
                    write!(self.out, "{name}{{engine=\"0\",{extra},model_name=\"{model}\"}}")
                }
                extra => write!(self.out, "{name}{{engine=\"0\",model_name=\"{model}\",{extra}}}"),
            };
            self.value(*value);
        }
    }

    fn gauge(&mut self, name: &str, help: &str, samples: &[(&str, f64)]) {
        self.family(name, help, "gauge");
        self.engine_samples(name, samples);
    }

    /// A counter and its creation times.
    fn counter(&mut self, stem: &str, help: &str, samples: &[(&str, f64)]) {
        let (total, created) = (format!("{stem}_total"), format!("{stem}_created"));
        self.family(&total, help, "counter");
        self.engine_samples(&total, samples);
        self.family(&created, help, "gauge");
        for (extra, _) in samples {
            self.engine_samples(&created, &[(extra, self.created)]);
        }
    }

    /// A histogram with these labels beside `le` and, if it is the engine's, the engine's own.
    fn histogram(&mut self, name: &str, help: &str, shown: &Shown, labels: &str, of_engine: bool) {
        self.family(name, help, "histogram");
        let line: fn(&mut Self, &str, &[(&str, f64)]) =
            if of_engine { Self::engine_samples } else { Self::samples };
        let comma = if labels.is_empty() { "" } else { "," };
        let bucket = format!("{name}_bucket");
        let bounds = shown.bounds.iter().map(Some).chain([None]);
        for (bound, count) in bounds.zip(&shown.cumulative) {
            let with_bound = match bound {
                Some(bound) => format!("{labels}{comma}le=\"{bound:?}\""),
                None => format!("{labels}{comma}le=\"+Inf\""),
            };
            line(self, &bucket, &[(&with_bound, *count)]);
        }
        let count = shown.cumulative.last().copied().unwrap_or_default();
        line(self, &format!("{name}_count"), &[(labels, count)]);
        line(self, &format!("{name}_sum"), &[(labels, shown.sum)]);
        self.family(&format!("{name}_created"), help, "gauge");
        line(self, &format!("{name}_created"), &[(labels, self.created)]);
    }

    /// A value and the end of the line.
    fn value(&mut self, value: f64) {
        self.out.push(' ');
        // As the Python client does: an exponent of two digits from seven digits before the point on.
        let _ = if value.abs() >= 1e6 {
            let text = format!("{value:e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            writeln!(self.out, "{mantissa}e+{exponent:0>2}")
        } else {
            writeln!(self.out, "{value:?}")
        };
    }
}

/// A histogram as it is printed.
#[derive(Clone)]
struct Shown {
    bounds: &'static [f64],
    cumulative: Vec<f64>,
    sum: f64,
}

impl Shown {
    fn of(histogram: &Histogram) -> Self {
        Self { bounds: histogram.bounds, cumulative: histogram.cumulative().collect(), sum: histogram.sum }
    }

    /// `count` observations of `value`.
    fn constant(bounds: &'static [f64], value: f64, count: f64) -> Self {
        let below = bounds.iter().map(|bound| if value <= *bound { count } else { 0.0 });
        Self { bounds, cumulative: below.chain([count]).collect(), sum: value * count }
    }
}
