//! The slowdown bound as an account: what was granted and not used pays for deviations, what was overdrawn is saved again.
//!
//! The bound is about the mean over minutes, not about every window. Windows at default clocks, deviations towards low
//! clocks and loads at which little can be gained all move that mean. So the bound of the next choice is the target plus
//! what the account holds, paid out over [`PAY_OUT`].

use serde::{Deserialize, Serialize};

/// Seconds of learning over which the account forgets.
const MEMORY: f64 = 300.0;
/// Seconds over which what it holds is paid out.
const PAY_OUT: f64 = 100.0;
/// Share of the bound that is aimed at: predictions are off by some percent of it.
const TARGET: f64 = 0.75;
/// Largest bound of a single choice, as a multiple of what the user allows.
const MOST: f64 = 1.15;

/// A window counts at least and at most this many times its length, whatever happened in it.
const WEIGHTS: (f64, f64) = (0.03, 30.0);
/// Seconds over which the weight of a window is forgotten.
const WEIGHT_MEMORY: f64 = 10.0;

/// Slowdown times seconds, granted less used.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Budget {
    holds: f64,
    /// How much a second weighs of late: requests of a busy phase are many, and spend what is held in a short time.
    weight: f64,
    /// Decayed sums of seconds, and of requests times their time per output token at default clocks.
    seconds: f64,
    delay: f64,
    /// Mean logarithm by which default clocks are slower than the model has them, and windows it is from.
    reference: (f64, f64),
}

/// Windows that the mean at default clocks is over, at most; it starts as so many windows without any error.
const REFERENCES: (f64, f64) = (4.0, 20.0);

impl Budget {
    /// What a window that took `off` (logarithm) longer than predicted says of the slowdown beyond the predicted one.
    pub(super) fn unexplained(&mut self, off: f64, at_default: bool) -> f64 {
        let (mean, windows) = &mut self.reference;
        if at_default {
            *windows = (*windows + 1.0).min(REFERENCES.1);
            *mean += (off - *mean) / (*windows + REFERENCES.0);
            return 0.0;
        }
        off - *mean
    }

    /// Takes a window of `seconds` in at `slowdown` (share, not logarithm) where `allowed` is the user's bound. The bound is
    /// about a mean over requests: a window counts by its share of their `delay` (requests times time per output token).
    pub(super) fn push(&mut self, seconds: f64, delay: f64, slowdown: f64, allowed: f64) {
        let keep = (-seconds / MEMORY).exp();
        self.seconds = keep * self.seconds + seconds;
        self.delay = keep * self.delay + delay;
        let share = delay / seconds / (self.delay / self.seconds);
        let weight = if share.is_finite() { share.clamp(WEIGHTS.0, WEIGHTS.1) } else { 1.0 };
        self.weight += (weight - self.weight) * (1.0 - (-seconds / WEIGHT_MEMORY).exp());
        let granted = TARGET * allowed - slowdown.clamp(-allowed, 10.0);
        self.holds =
            (keep * self.holds + weight * seconds * granted).min(PAY_OUT * (MOST - TARGET) * allowed);
    }

    /// The bound of the next choice, as a share.
    #[must_use]
    pub(super) fn bound(&self, allowed: f64) -> f64 {
        // What is owed is saved as fast as it can be.
        let weight = if self.holds > 0.0 { self.weight.max(1.0) } else { 1.0 };
        (TARGET * allowed + self.holds / (PAY_OUT * weight)).clamp(0.0, MOST * allowed)
    }

    /// Is every number usable?
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        [self.holds, self.weight, self.seconds, self.delay].into_iter().all(f64::is_finite)
    }
}
