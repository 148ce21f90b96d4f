//! The engine's statistics as metrics pages have them: vLLM V1's counters, gauges and histograms, and what
//! those of other engines need besides.

use super::kinds::{Habits, IDLE_RENEWAL_S, Kind};
use super::template::Source;
use agft::metrics::{self, Signal};
use agft::units::Time;

/// Bucket bounds of `time_to_first_token_seconds`.
pub(super) const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Bucket bounds of `inter_token_latency_seconds` and `request_time_per_output_token_seconds`.
pub(super) const PER_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Bucket bounds of the histograms over a request's phases.
pub(super) const LATENCY: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// Bucket bounds of `iteration_tokens_total`.
pub(super) const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
/// Bucket bounds of the histograms over a request's token counts: the 1-2-5 series up to the model's context.
pub(super) const REQUEST_TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0,
    100_000.0,
];
/// Bucket bounds of `request_params_n`.
pub(super) const COPIES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
/// Bucket bounds of `request_num_preemptions`.
pub(super) const PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];

/// A histogram under construction.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    pub(super) bounds: &'static [f64],
    /// Observations per bucket, not cumulative; the last one is above every bound.
    counts: Vec<u64>,
    pub(super) sum: f64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    pub(super) fn observe(&mut self, value: f64) {
        self.observe_n(value, 1);
    }

    /// `times` observations of the same value.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53 observations")]
    pub(super) fn observe_n(&mut self, value: f64, times: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += times;
        }
        self.sum += value * times as f64;
    }

    /// Observations up to the bound of this number; behind the last one all.
    fn up_to(&self, bound: usize) -> f64 {
        self.cumulative().nth(bound).unwrap_or_else(|| self.count())
    }

    /// Cumulative counts, one per bound and a last one for `+Inf`.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53 observations")]
    pub(super) fn cumulative(&self) -> impl Iterator<Item = f64> + '_ {
        self.counts.iter().scan(0, |total, count| {
            *total += count;
            Some(*total as f64)
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^53 observations")]
    pub(super) fn count(&self) -> f64 {
        self.counts.iter().sum::<u64>() as f64
    }

    fn signal(&self) -> Option<metrics::Histogram> {
        Some(metrics::Histogram {
            sum: self.sum,
            count: self.count(),
            buckets: self.bounds.iter().copied().zip(self.cumulative()).collect(),
        })
    }
}

/// What runs, waits and is cached.
#[derive(Debug, Clone, Copy)]
struct Levels {
    running: f64,
    waiting: f64,
    kv_usage: f64,
    /// When these were the levels.
    at: Time,
}

/// Everything the page shows. Changes only at the end of an engine step.
#[derive(Debug, Clone)]
pub(super) struct Stats {
    habits: Habits,
    /// The levels as the page has them, of an engine that does not renew them with every step.
    shown: Levels,
    /// Engine steps, with and without output.
    steps: u32,
    pub(super) running: f64,
    pub(super) waiting: f64,
    pub(super) kv_usage: f64,
    pub(super) prompt_tokens: f64,
    pub(super) cached_tokens: f64,
    pub(super) generation_tokens: f64,
    pub(super) prefix_queries: f64,
    pub(super) prefix_hits: f64,
    pub(super) preemptions: f64,
    /// Requests that ended because they reached their output length.
    pub(super) finished: f64,
    pub(super) step_tokens: Histogram,
    pub(super) ttft: Histogram,
    pub(super) itl: Histogram,
    pub(super) request_tpot: Histogram,
    pub(super) e2e: Histogram,
    pub(super) queue_time: Histogram,
    pub(super) prefill_time: Histogram,
    pub(super) decode_time: Histogram,
    pub(super) inference_time: Histogram,
    pub(super) request_prompt: Histogram,
    pub(super) request_generation: Histogram,
    pub(super) request_computed: Histogram,
    pub(super) request_preemptions: Histogram,
    /// Unix time at which the simulated process started.
    pub(super) process_start: f64,
}

impl Stats {
    pub(super) fn new(process_start: f64, kind: &Kind) -> Self {
        let of = |signal| Histogram::new(kind.bounds(signal));
        Self {
            habits: kind.habits,
            shown: Levels { running: 0.0, waiting: 0.0, kv_usage: 0.0, at: Time(0.0) },
            steps: 0,
            running: 0.0,
            waiting: 0.0,
            kv_usage: 0.0,
            prompt_tokens: 0.0,
            cached_tokens: 0.0,
            generation_tokens: 0.0,
            prefix_queries: 0.0,
            prefix_hits: 0.0,
            preemptions: 0.0,
            finished: 0.0,
            step_tokens: of(Signal::StepTokens),
            ttft: of(Signal::Ttft),
            itl: of(Signal::Itl),
            request_tpot: of(Signal::RequestTpot),
            e2e: of(Signal::E2e),
            queue_time: Histogram::new(LATENCY),
            prefill_time: Histogram::new(LATENCY),
            decode_time: Histogram::new(LATENCY),
            inference_time: Histogram::new(LATENCY),
            request_prompt: Histogram::new(REQUEST_TOKENS),
            request_generation: Histogram::new(REQUEST_TOKENS),
            request_computed: Histogram::new(REQUEST_TOKENS),
            request_preemptions: Histogram::new(PREEMPTIONS),
            process_start,
        }
    }

    /// A step ended, in which a prompt was read or not, and the levels are renewed.
    pub(super) fn step_ended(&mut self, now: Time, prompt: bool) {
        self.steps = self.steps.wrapping_add(1);
        if prompt || self.steps.is_multiple_of(self.habits.levels_every) {
            let Self { running, waiting, kv_usage, .. } = *self;
            self.shown = Levels { running, waiting, kv_usage, at: now };
        }
    }

    /// Does the time to first token count when it passes, or when the request ends?
    pub(super) fn ttft_at_end(&self) -> bool {
        self.is_at_end(Signal::Ttft)
    }

    /// The time per token of a request that had its first token after `first`, the others within `later`,
    /// seconds both: as the page tells it.
    pub(super) fn observe_tpot(&mut self, first: f64, later: f64, tokens: u32) {
        let (seconds, tokens) = if self.habits.prompt_in_tpot {
            (first + later, tokens)
        } else {
            (later, tokens.saturating_sub(1))
        };
        self.request_tpot.observe(if tokens > 0 { seconds / f64::from(tokens) } else { 0.0 });
    }

    /// What a place on the page of this kind shows at this moment.
    pub(super) fn number(&self, source: Source, now: Time) -> f64 {
        match source {
            Source::Number(signal) => self.one(signal, now),
            Source::RatioSum(signal) => self.ratio(signal).0,
            Source::RatioCount(signal) => self.ratio(signal).1,
            Source::Bucket(signal, bound) => self.histogram(signal).map_or(0.0, |all| all.up_to(bound)),
            Source::Sum(signal) => self.histogram(signal).map_or(0.0, |all| all.sum),
            Source::Count(signal) => self.histogram(signal).map_or(0.0, Histogram::count),
        }
    }

    fn is_at_end(&self, signal: Signal) -> bool {
        self.habits.at_end.contains(&signal)
    }

    /// A counter, gauge or instant. Tokens found in the cache count with their prompt, as a page may show
    /// both as one.
    fn one(&self, signal: Signal, now: Time) -> f64 {
        let ended = self.is_at_end(signal);
        match signal {
            Signal::Running => self.levels(now).running,
            Signal::Waiting => self.levels(now).waiting,
            Signal::KvUsage => self.levels(now).kv_usage,
            Signal::PromptTokens if self.habits.computed_prompts => self.prompt_tokens - self.cached_tokens,
            Signal::PromptTokens | Signal::PrefixQueries if ended => self.request_prompt.sum,
            Signal::PromptTokens | Signal::PrefixQueries => self.prompt_tokens,
            Signal::PrefixHits if ended => self.request_prompt.sum - self.request_computed.sum,
            Signal::PrefixHits => self.cached_tokens,
            Signal::GenerationTokens if ended => self.request_generation.sum,
            Signal::GenerationTokens => self.generation_tokens,
            Signal::Preemptions => self.preemptions,
            Signal::Finished => self.finished,
            Signal::ProcessStart => self.process_start,
            Signal::StepTokens | Signal::Ttft | Signal::Itl | Signal::RequestTpot | Signal::E2e => 0.0,
        }
    }

    fn levels(&self, now: Time) -> Levels {
        let Self { running, waiting, kv_usage, .. } = *self;
        let rests = running + waiting <= 0.0 && now.since(self.shown.at).0 >= IDLE_RENEWAL_S;
        let renewed = self.habits.levels_every <= 1 || rests;
        if renewed { Levels { running, waiting, kv_usage, at: now } } else { self.shown }
    }

    /// The two counters of a mean.
    fn ratio(&self, signal: Signal) -> (f64, f64) {
        let ended = self.is_at_end(Signal::GenerationTokens);
        let generated = if ended { self.request_generation.sum } else { self.generation_tokens };
        match signal {
            Signal::StepTokens => (generated, f64::from(self.steps)),
            Signal::Itl if ended => (self.decode_time.sum, generated),
            Signal::Itl => (self.itl.sum, generated),
            _ => self.histogram(signal).map_or((0.0, 0.0), |all| (all.sum, all.count())),
        }
    }

    fn histogram(&self, signal: Signal) -> Option<&Histogram> {
        Some(match signal {
            Signal::StepTokens => &self.step_tokens,
            Signal::Ttft => &self.ttft,
            Signal::Itl => &self.itl,
            Signal::RequestTpot => &self.request_tpot,
            Signal::E2e => &self.e2e,
            _ => return None,
        })
    }

    /// The content of vLLM's page as the metrics reader would report it.
    pub(super) fn signals(&self) -> metrics::Signals {
        metrics::Signals {
            running: Some(self.running),
            waiting: Some(self.waiting),
            kv_usage: Some(self.kv_usage),
            prompt_tokens: Some(self.prompt_tokens),
            generation_tokens: Some(self.generation_tokens),
            prefix_queries: Some(self.prefix_queries),
            prefix_hits: Some(self.prefix_hits),
            preemptions: Some(self.preemptions),
            finished: Some(self.finished),
            step_tokens: self.step_tokens.signal(),
            ttft: self.ttft.signal(),
            itl: self.itl.signal(),
            request_tpot: self.request_tpot.signal(),
            e2e: self.e2e.signal(),
            process_start: Some(self.process_start),
        }
    }
}
