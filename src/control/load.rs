//! What load the engine carries, and whether it carries any.

use serde::{Deserialize, Serialize};

use crate::metrics::window::Window;
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

/// Does the page show work, at the window's end or in its counters?
pub(crate) fn has_work(window: &Window) -> bool {
    let positive = |value: Option<f64>| value.is_some_and(|value| value > 0.0);
    positive(window.at_end.running) || positive(window.at_end.waiting) || has_progress(window)
}

/// Were tokens processed in the window?
pub(crate) fn has_progress(window: &Window) -> bool {
    let positive = |value: Option<f64>| value.is_some_and(|value| value > 0.0);
    positive(window.generation_tokens) || positive(window.prompt_tokens)
}
