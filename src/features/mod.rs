//! The context: seven numbers that say what load the engine carries, in one fixed order.
//!
//! [`Context::from_window`] takes them from one window between two scrapes, [`scaler`] makes them comparable. The
//! bandit adds its own intercept.

pub mod scaler;

use serde::{Deserialize, Serialize};

use crate::metrics::Histogram;
use crate::metrics::window::Window;
pub use scaler::Scaler;

/// Number of features.
pub const DIMENSION: usize = 7;

/// Names, in the order of every context vector that agft computes, stores or shows.
pub const NAMES: [&str; DIMENSION] = [
    "has_queue",
    "prefill_throughput",
    "decode_throughput",
    "packing_efficiency",
    "concurrency",
    "gpu_cache_usage",
    "cache_hit_rate",
];

/// Raw context of one window, in the order of [`NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// 1 if a request waited at the end of the window, else 0.
    pub has_queue: f64,
    /// Prompt tokens per second of true elapsed time, prefix hits included.
    pub prefill_throughput: f64,
    /// Generated tokens per second of true elapsed time.
    pub decode_throughput: f64,
    /// Tokens per engine step (0 if no step ended in the window).
    pub packing_efficiency: f64,
    /// Requests in the running batch, smoothed over windows.
    pub concurrency: f64,
    /// KV cache in use, percent.
    pub gpu_cache_usage: f64,
    /// Prefix-cache hits among the tokens looked up in the window, percent (0 if none were).
    pub cache_hit_rate: f64,
}

impl Context {
    /// The context of a window; `concurrency` is the smoothed number of running requests.
    ///
    /// A signal that the page lacks counts as 0 here: the feature is then constant and carries no information, and the
    /// health of the endpoint says which one it is.
    #[must_use]
    pub fn from_window(window: &Window, concurrency: f64) -> Self {
        let seconds = window.elapsed.0.max(f64::EPSILON);
        let per_second = |tokens: Option<f64>| tokens.unwrap_or(0.0) / seconds;
        let packing = window.step_tokens.as_ref().and_then(Histogram::mean).unwrap_or(0.0);
        let hit_rate = match (window.prefix_hits, window.prefix_queries) {
            (Some(hits), Some(queries)) if queries > 0.0 => (100.0 * hits / queries).min(100.0),
            _ => 0.0,
        };
        Self {
            has_queue: if window.at_end.waiting.is_some_and(|waiting| waiting > 0.0) { 1.0 } else { 0.0 },
            prefill_throughput: per_second(window.prompt_tokens),
            decode_throughput: per_second(window.generation_tokens),
            packing_efficiency: packing,
            concurrency,
            gpu_cache_usage: 100.0 * window.at_end.kv_usage.unwrap_or(0.0),
            cache_hit_rate: hit_rate,
        }
    }

    /// As a vector of shape `(7,)`.
    #[must_use]
    pub fn to_array(self) -> [f64; DIMENSION] {
        [
            self.has_queue,
            self.prefill_throughput,
            self.decode_throughput,
            self.packing_efficiency,
            self.concurrency,
            self.gpu_cache_usage,
            self.cache_hit_rate,
        ]
    }
}

/// Exponential moving average of a gauge: the first sample seeds it, then `ema = a*v + (1-a)*ema`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ema {
    alpha: f64,
    value: Option<f64>,
}

impl Ema {
    /// `alpha` in (0, 1]: the weight of the newest sample.
    #[must_use]
    pub fn new(alpha: f64) -> Self {
        Self { alpha, value: None }
    }

    /// Takes a sample, returns the average.
    pub fn push(&mut self, sample: f64) -> f64 {
        let next = self.value.map_or(sample, |old| self.alpha * sample + (1.0 - self.alpha) * old);
        self.value = Some(next);
        next
    }

    /// Forgets: the next sample seeds again.
    pub fn clear(&mut self) {
        self.value = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Signals, Snapshot};
    use crate::units::{Seconds, Time};

    fn snapshot(at: f64, signals: Signals) -> Snapshot {
        Snapshot { at: Time(at), latency: Seconds(0.0), signals, refused: Vec::new(), engine: None }
    }

    fn steps(sum: f64, count: f64) -> Option<Histogram> {
        Some(Histogram { sum, count, buckets: Vec::new() })
    }

    #[test]
    fn context_holds_rates_per_true_second() {
        let before = Signals {
            prompt_tokens: Some(100.0),
            generation_tokens: Some(50.0),
            prefix_queries: Some(10.0),
            prefix_hits: Some(5.0),
            step_tokens: steps(150.0, 10.0),
            ..Signals::default()
        };
        let after = Signals {
            waiting: Some(2.0),
            kv_usage: Some(0.25),
            prompt_tokens: Some(300.0),
            generation_tokens: Some(90.0),
            prefix_queries: Some(210.0),
            prefix_hits: Some(55.0),
            step_tokens: steps(390.0, 30.0),
            ..Signals::default()
        };
        let window = Window::between(&snapshot(10.0, before), &snapshot(10.5, after)).unwrap();
        let context = Context::from_window(&window, 3.5);
        let expected = [1.0, 200.0 / 0.5, 40.0 / 0.5, 240.0 / 20.0, 3.5, 25.0, 100.0 * 50.0 / 200.0];
        approx::assert_relative_eq!(context.to_array()[..], expected[..]);
    }

    #[test]
    fn window_without_steps_or_lookups_gives_zeros_not_nan() {
        let window =
            Window::between(&snapshot(0.0, Signals::default()), &snapshot(0.3, Signals::default())).unwrap();
        approx::assert_relative_eq!(Context::from_window(&window, 0.0).to_array()[..], [0.0; DIMENSION][..]);
    }

    #[test]
    fn ema_is_seeded_by_its_first_sample() {
        let mut ema = Ema::new(0.4);
        assert_eq!(ema.push(10.0).to_bits(), 10.0_f64.to_bits());
        approx::assert_relative_eq!(ema.push(0.0), 0.6 * 10.0);
        approx::assert_relative_eq!(ema.push(5.0), 0.4 * 5.0 + 0.6 * 6.0);
    }
}
