//! What default clocks would have cost, beside what was measured. An estimate, and called so wherever it is shown.
//!
//! Each window that ran at a lock and has both a cost and a baseline for its load is compared with that baseline: power
//! over the same time (clients of an open system bring the same work at any clock), time per output token for the same
//! tokens. The baseline is what the book remembers of default clocks under comparable load. It is no experiment: where the
//! load has drifted away from what was measured at default clocks, the estimate is off, and nothing here can tell. Parked
//! time is not in it.

use serde::{Deserialize, Serialize};

use crate::control::Round;
use crate::units::Target;

/// Sums over the compared windows.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Estimate {
    /// Seconds that could be compared.
    pub compared_s: f64,
    /// Energy measured in them, joules.
    pub energy_j: f64,
    /// Energy that default clocks would have taken, joules.
    pub(crate) default_energy_j: f64,
    /// Time per output token, summed over the tokens generated, seconds.
    pub(crate) token_time_s: f64,
    /// The same at default clocks, seconds.
    pub(crate) default_token_time_s: f64,
}

impl Estimate {
    /// Takes a round in, if it can be compared.
    pub fn push(&mut self, round: &Round) {
        let (Some(Target::Lock(_)), Some(cost), Some(baseline)) = (round.ran_at, round.cost, round.baseline)
        else {
            return;
        };
        let seconds = round.window.elapsed.0;
        let tokens = round.window.generation_tokens.unwrap_or(0.0);
        self.compared_s += seconds;
        self.energy_j += cost.power.0 * seconds;
        self.default_energy_j += baseline.power.0 * seconds;
        self.token_time_s += cost.delay.0 * tokens;
        self.default_token_time_s += baseline.delay.0 * tokens;
    }

    /// Energy saved against default clocks, joules; negative if more was spent.
    pub(crate) fn saved_j(&self) -> f64 {
        self.default_energy_j - self.energy_j
    }

    /// The same as a share of what default clocks would have taken; `None` before anything was compared.
    pub(crate) fn saved_share(&self) -> Option<f64> {
        (self.default_energy_j > 0.0).then(|| self.saved_j() / self.default_energy_j)
    }

    /// Relative rise of the time per output token against default clocks: 0.05 is 5 % slower.
    pub(crate) fn slowdown(&self) -> Option<f64> {
        (self.default_token_time_s > 0.0).then(|| self.token_time_s / self.default_token_time_s - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::Cost;
    use crate::units::{Clocks, Mhz, Seconds, Watts};
    use crate::view::testing;

    fn cost(power: f64, delay: f64) -> Option<Cost> {
        Some(Cost { power: Watts(power), delay: Seconds(delay) })
    }

    #[test]
    fn savings_are_the_difference_over_the_compared_windows_only() {
        let mut estimate = Estimate::default();
        let locked = Some(Target::Lock(Clocks::core_only(Mhz(900))));
        let round = testing::round();
        estimate.push(&Round {
            ran_at: locked,
            cost: cost(150.0, 0.021),
            baseline: cost(200.0, 0.02),
            ..round
        });
        let (seconds, tokens) = (testing::round().window.elapsed.0, 120.0);
        approx::assert_relative_eq!(estimate.saved_j(), 50.0 * seconds, max_relative = 1e-12);
        approx::assert_relative_eq!(estimate.saved_share().unwrap(), 0.25, max_relative = 1e-12);
        approx::assert_relative_eq!(estimate.slowdown().unwrap(), 0.05, max_relative = 1e-9);
        approx::assert_relative_eq!(estimate.token_time_s, 0.021 * tokens, max_relative = 1e-12);
        let before = estimate;
        for (ran_at, baseline) in
            [(Some(Target::Default), cost(1.0, 1.0)), (None, cost(1.0, 1.0)), (locked, None)]
        {
            estimate.push(&Round { ran_at, cost: cost(1.0, 1.0), baseline, ..testing::round() });
        }
        assert_eq!(estimate, before);
    }

    #[test]
    fn nothing_compared_gives_no_share() {
        assert_eq!((Estimate::default().saved_share(), Estimate::default().slowdown()), (None, None));
    }
}
