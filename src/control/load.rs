//! What load the engine carries, and whether it carries any.

use serde::{Deserialize, Serialize};

use super::event::Event;
use super::stale::GaugeTrust;
use crate::features::{Context, Ema};
use crate::metrics::window::Window;
use crate::park::sample::Activity;
use crate::reward::baseline::Load;
use crate::units::Seconds;

/// Time constant of the load estimate.
const LOAD_MEMORY: Seconds = Seconds(15.0);

/// Token rates averaged over some seconds, gaps included: of tokens that are counted when their request ends, too, the
/// mean is the rate, because windows in which none ended count with their time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadEstimate {
    /// The estimate; `None` before the first window.
    pub load: Option<Load>,
}

impl LoadEstimate {
    /// Takes a window in; returns the estimate.
    pub fn push(&mut self, window: &Window) -> Load {
        let rate = |tokens: Option<f64>| tokens.unwrap_or(0.0) / window.elapsed.0;
        let now =
            Load { prefill_rate: rate(window.prompt_tokens), decode_rate: rate(window.generation_tokens) };
        let gain = 1.0 - (-window.elapsed.0 / LOAD_MEMORY.0).exp();
        let next = match self.load {
            None => now,
            Some(old) => Load {
                prefill_rate: old.prefill_rate + gain * (now.prefill_rate - old.prefill_rate),
                decode_rate: old.decode_rate + gain * (now.decode_rate - old.decode_rate),
            },
        };
        self.load = Some(next);
        next
    }
}

/// What the engine serves, as its pages tell.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Serving {
    concurrency: Ema,
    load: LoadEstimate,
    gauges: GaugeTrust,
}

impl Serving {
    pub(super) fn new(concurrency: Ema, load: LoadEstimate, gauges: GaugeTrust) -> Self {
        Self { concurrency, load, gauges }
    }

    /// The load of the moment; `None` before the first window.
    pub(super) fn load(&self) -> Option<Load> {
        self.load.load
    }

    /// Takes a window in: whether it shows work, as far as its gauges can be believed; the load; the context.
    pub(super) fn take(
        &mut self,
        window: &Window,
        gpus: Activity,
        events: &mut Vec<Event>,
    ) -> (bool, Load, Context) {
        let work = self.gauges.sees_work(window, gpus, events);
        let running = self.concurrency.push(window.at_end.running.unwrap_or(0.0));
        let load = self.load.push(window);
        let mut context = Context::from_window(window, running);
        if window.counts_tokens_at_end() {
            // Nothing counted is not no work, and a whole request's tokens are not those of one window.
            (context.prefill_throughput, context.decode_throughput) = (load.prefill_rate, load.decode_rate);
        }
        (work, load, context)
    }

    /// What comes is another load.
    pub(super) fn forget_load(&mut self) {
        self.load = LoadEstimate::default();
    }

    /// What comes is another engine.
    pub(super) fn forget(&mut self) {
        self.concurrency.clear();
        self.forget_load();
    }
}

/// Does the page show work, at the window's end or in its counters?
pub(crate) fn has_work(window: &Window) -> bool {
    is_positive(window.at_end.running) || is_positive(window.at_end.waiting) || has_progress(window)
}

/// Were tokens processed in the window?
pub(crate) fn has_progress(window: &Window) -> bool {
    is_positive(window.generation_tokens) || is_positive(window.prompt_tokens)
}

fn is_positive(value: Option<f64>) -> bool {
    value.is_some_and(|value| value > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Histogram, Signals, Snapshot};
    use crate::park::sample::Activity;
    use crate::units::Time;

    /// The page at tick `k` of 0.3 s: 4 requests at a time get 20 tokens a second each, and end together every 3 s.
    fn page(k: u32) -> Snapshot {
        let (at, ended) = (0.3 * f64::from(k), 240.0 * f64::from(k / 10));
        let itl = Some(Histogram { sum: 0.05 * ended, count: ended, buckets: vec![] });
        let (running, generation_tokens) = (Some(4.0), Some(ended));
        let signals = Signals { running, generation_tokens, itl, ..Signals::default() };
        Snapshot { at: Time(at), latency: Seconds(0.0), signals, refused: vec![], engine: None }
    }

    #[test]
    fn tokens_counted_when_requests_end_give_their_rate_and_no_window_of_no_work() {
        let mut serving = Serving::new(Ema::new(0.4), LoadEstimate::default(), GaugeTrust::default());
        let mut rates = Vec::new();
        for k in 0..400 {
            let window = Window::between(&page(k), &page(k + 1)).unwrap();
            let (work, load, context) = serving.take(&window, Activity::default(), &mut Vec::new());
            assert!(work);
            assert_eq!(context.decode_throughput.to_bits(), load.decode_rate.to_bits());
            if k > 200 {
                assert!((60.0..100.0).contains(&load.decode_rate), "{} at tick {k}", load.decode_rate);
                rates.push(load.decode_rate);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        approx::assert_relative_eq!(mean, 80.0, max_relative = 0.02);
    }
}
