//! What default clocks would have cost in this run, beside what was measured. An estimate, and called so
//! wherever it is shown.
//!
//! Each window in which the GPU served is compared, where it is known what default clocks would have come to
//! (see [`Comparer`](super::Comparer)): energy for the same work, time per output token for the same tokens.
//! Windows at default clocks are in it, too: they cost what default clocks cost, and are part of the run.
//! Parked time is not. What is not known of default clocks is off in the same direction in all windows, so it
//! does not average out: standard deviations are added, not their squares.

use serde::{Deserialize, Serialize};

use super::against::{Against, Source};
use crate::bandit::structured::Ratios;
use crate::control::Round;
use crate::stats::Interval;
use crate::units::Target;

/// Less than this many seconds say nothing of a run.
const ENOUGH_S: f64 = 10.0;
/// Nor is anything known where more than this share of the time at locks could not be compared. Windows at
/// default clocks always can be: without this, they would stand for the rest and all would look like nothing
/// saved. Of all time served, so little may be missed whatever ran in it.
const MOST_MISSED: f64 = 0.2;
const LITTLE_MISSED: f64 = 0.05;
/// With a wider interval than this, as a share of default's cost, nothing is known ...
const WIDEST: f64 = 0.15;
/// ... but where the sign of a large change is clear, with one wider than this.
const WIDEST_CLEAR: f64 = 0.4;

/// Sums over the compared windows.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Estimate {
    /// Seconds in which the GPU served and power was measured.
    #[serde(default)]
    pub served_s: f64,
    /// Of these, seconds at a lock.
    #[serde(default)]
    pub locked_s: f64,
    /// Of those served, seconds that could be compared.
    pub compared_s: f64,
    /// Energy measured in them, joules.
    pub energy_j: f64,
    /// Energy that default clocks would have taken, joules.
    pub default_energy_j: f64,
    /// Its standard deviation.
    #[serde(default)]
    pub default_energy_sd_j: f64,
    /// Time per output token, summed over the tokens generated, seconds.
    pub(crate) token_time_s: f64,
    /// The same at default clocks, seconds.
    pub default_token_time_s: f64,
    /// Its standard deviation.
    #[serde(default)]
    pub default_token_time_sd_s: f64,
    /// Who said what default clocks would cost, in the latest window that was compared.
    #[serde(default)]
    pub source: Option<Source>,
}

impl Estimate {
    /// Takes a round in; `against` says what it came to over default clocks, if that is known.
    pub fn push(&mut self, round: &Round, against: Option<&Against>) {
        let Some(power) = round.power.filter(|_| round.ran_at.is_some()) else { return };
        let seconds = round.window.elapsed.0;
        let tokens = round.window.generation_tokens.unwrap_or(0.0);
        let token_time = round.cost.map_or(0.0, |cost| cost.delay.0 * tokens);
        let locked = matches!(round.ran_at, Some(Target::Lock(_)));
        self.add(locked, seconds, power.0, token_time, against.map(|against| &against.ratios));
        self.source = against.map(|against| against.source).or(self.source);
    }

    /// Takes a window of `seconds` at `power_w` in, at a lock or not, whose tokens took `token_time_s`
    /// together.
    pub fn add(
        &mut self,
        locked: bool,
        seconds: f64,
        power_w: f64,
        token_time_s: f64,
        ratios: Option<&Ratios>,
    ) {
        self.served_s += seconds;
        self.locked_s += if locked { seconds } else { 0.0 };
        let Some(ratios) = ratios else { return };
        let energy = power_w * seconds;
        let default_energy = energy * (-ratios.energy.log).exp();
        let default_token_time = token_time_s * (-ratios.time.log).exp();
        self.compared_s += seconds;
        self.energy_j += energy;
        self.default_energy_j += default_energy;
        self.default_energy_sd_j += default_energy * ratios.energy.sd;
        self.token_time_s += token_time_s;
        self.default_token_time_s += default_token_time;
        self.default_token_time_sd_s += default_token_time * ratios.time.sd;
    }

    /// Energy saved against default clocks, joules; negative if more was spent.
    pub(crate) fn saved_j(&self) -> f64 {
        self.default_energy_j - self.energy_j
    }

    /// The same as a share of what default clocks would have taken; `None` while that is not known.
    #[must_use]
    pub fn saved(&self) -> Option<Interval> {
        let change = self.change(self.energy_j, self.default_energy_j, self.default_energy_sd_j)?;
        Some(Interval { value: -change.value, ..change })
    }

    /// Relative rise of the time per output token against default clocks: 0.05 is 5 % slower; `None` while
    /// that is not known.
    #[must_use]
    pub fn slowdown(&self) -> Option<Interval> {
        self.change(self.token_time_s, self.default_token_time_s, self.default_token_time_sd_s)
    }

    fn change(&self, measured: f64, default: f64, sd: f64) -> Option<Interval> {
        let missed = self.served_s - self.compared_s;
        let enough = self.compared_s >= ENOUGH_S
            && missed <= (MOST_MISSED * self.locked_s).max(LITTLE_MISSED * self.served_s);
        let ratio = measured / default;
        let change = Interval::of_sd(ratio - 1.0, ratio * sd / default);
        let widest = if change.sign().is_some() { WIDEST_CLEAR } else { WIDEST };
        (enough && default > 0.0 && change.is_sound() && change.half_width <= widest).then_some(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandit::structured::LogRatio;
    use crate::view::testing;

    fn against(energy: f64, time: f64, sd: f64) -> Against {
        let of = |ratio: f64| LogRatio { log: ratio.ln(), sd };
        Against { ratios: Ratios { energy: of(energy), time: of(time) }, source: Source::Model }
    }

    #[test]
    fn savings_are_the_difference_over_the_compared_windows_and_errors_do_not_average_out() {
        let mut estimate = Estimate::default();
        for _ in 0..100 {
            estimate.push(&testing::round(), Some(&against(0.75, 1.05, 0.02)));
        }
        let saved = estimate.saved().unwrap();
        approx::assert_relative_eq!(saved.value, 0.25, max_relative = 1e-9);
        approx::assert_relative_eq!(saved.half_width, 1.96 * 0.75 * 0.02, max_relative = 1e-9);
        let slower = estimate.slowdown().unwrap();
        approx::assert_relative_eq!(slower.value, 0.05, max_relative = 1e-9);
        let energy = 100.0 * 0.3 * 150.0;
        approx::assert_relative_eq!(estimate.saved_j(), energy / 0.75 - energy, max_relative = 1e-9);
        assert_eq!(estimate.source, Some(Source::Model));
    }

    #[test]
    fn windows_of_which_nothing_is_known_are_served_and_not_compared() {
        let mut estimate = Estimate::default();
        estimate.push(&testing::round(), None);
        let during_a_change = Round { ran_at: None, ..testing::round() };
        estimate.push(&during_a_change, Some(&against(0.5, 1.0, 0.0)));
        approx::assert_relative_eq!(estimate.served_s, 0.3);
        assert_eq!((estimate.source, estimate.saved(), estimate.slowdown()), (None, None, None));
        // Time at default clocks is part of the run.
        let at_default = Round { ran_at: Some(Target::Default), ..testing::round() };
        (0..40).for_each(|_| estimate.push(&at_default, Some(&against(1.0, 1.0, 0.0))));
        approx::assert_relative_eq!(estimate.saved().unwrap().value, 0.0);
    }
}
