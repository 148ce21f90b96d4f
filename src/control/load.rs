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

/// Token rates averaged over some seconds, gaps included.
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
        (work, self.load.push(window), Context::from_window(window, running))
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
