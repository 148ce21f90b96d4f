//! What a wake costs, as it was measured: the power of a GPU at work, for the time that work waits for its clocks.

use serde::{Deserialize, Serialize};

use crate::units::{Joules, Seconds, Watts};

/// Time that the first wakes are taken to cost.
const WAKE_PRIOR: f64 = 0.1;
/// Weight of the newest wake, and of the newest look at work.
const GAIN: f64 = 0.2;

/// The price of a wake, smoothed. Time is worth power, as in the energy-delay product: a delay of a share of a request's time
/// weighs as much as that share of its energy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct WakePrice {
    busy_w: Option<f64>,
    delay_s: Option<f64>,
}

impl WakePrice {
    /// A look at the power of a GPU that works.
    pub(crate) fn worked(&mut self, power: Watts) {
        self.busy_w = Some(smoothed(self.busy_w.unwrap_or(power.0), power.0));
    }

    /// Work waited so long for its clocks.
    pub(crate) fn woke(&mut self, waited: Seconds) {
        self.delay_s = Some(smoothed(self.delay_s.unwrap_or(WAKE_PRIOR), waited.0));
    }

    /// Power at work.
    pub(crate) fn busy(&self) -> Option<Watts> {
        self.busy_w.map(Watts)
    }

    /// Time that work waits for its clocks.
    pub(crate) fn delay(&self) -> Seconds {
        Seconds(self.delay_s.unwrap_or(WAKE_PRIOR))
    }

    /// The price; `None` while no work has been seen.
    pub(crate) fn joules(&self) -> Option<Joules> {
        Some(Joules(self.busy_w? * self.delay().0))
    }
}

fn smoothed(before: f64, new: f64) -> f64 {
    before + GAIN * (new - before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn price_is_power_at_work_times_the_wait_and_unknown_without_work() {
        let mut price = WakePrice::default();
        price.woke(Seconds(0.6));
        assert_eq!(price.joules(), None);
        price.worked(Watts(300.0));
        let delay = WAKE_PRIOR + GAIN * (0.6 - WAKE_PRIOR);
        approx::assert_relative_eq!(price.joules().unwrap().0, 300.0 * delay);
        (0..100).for_each(|_| price.worked(Watts(200.0)));
        (0..100).for_each(|_| price.woke(Seconds(1.0)));
        approx::assert_relative_eq!(price.joules().unwrap().0, 200.0, max_relative = 1e-6);
    }
}
