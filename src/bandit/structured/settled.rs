//! When the choice has converged, and when that is no longer so.
//!
//! It has once it was sure, and stayed about one clock, for a whole window of rounds; it is no longer when it
//! was unsure for as long. Rounds are ticks at which the policy was asked: a choice that nobody follows,
//! because something else has the clocks, settles nothing. A load that moves the clock for a reason the model
//! knows begins the window anew and takes nothing back.

use serde::{Deserialize, Serialize};

/// The clock has stayed when it moved by less than this share.
const STAYED: f64 = 0.1;

/// The state of it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Settled {
    /// Was the latest decision sure?
    sure: bool,
    /// The clock that it has stayed about, MHz.
    around: Option<f64>,
    /// Rounds in a row that it was sure and there.
    steady: u64,
    /// Rounds in a row that it was not sure.
    unsure: u64,
    converged: bool,
}

impl Settled {
    /// A decision: which clock (MHz) is preferred, and whether what that rests on is known well enough.
    pub(super) fn decided(&mut self, clock: f64, sure: bool) {
        self.sure = sure;
        let stayed = self.around.is_some_and(|around| (clock / around - 1.0).abs() < STAYED);
        if !stayed || !sure {
            (self.around, self.steady) = (Some(clock), 0);
        }
        if sure {
            self.unsure = 0;
        }
    }

    /// A round passes under what was decided last; `window` is how many are needed.
    pub(super) fn round(&mut self, window: u64) {
        if self.around.is_none() {
            return;
        }
        if self.sure {
            self.steady = self.steady.saturating_add(1);
        } else {
            self.unsure = self.unsure.saturating_add(1);
        }
        if self.steady >= window.max(1) {
            self.converged = true;
        } else if self.unsure >= window.max(1) {
            self.converged = false;
        }
    }

    /// Was the latest decision sure?
    #[must_use]
    pub(super) fn is_sure(&self) -> bool {
        self.sure
    }

    /// Has the choice converged?
    #[must_use]
    pub(super) fn converged(&self) -> bool {
        self.converged
    }

    /// Is every number usable?
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        self.around.is_none_or(|around| around.is_finite() && around > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(settled: &mut Settled, rounds: u64, clock: f64, sure: bool) -> bool {
        for round in 0..rounds {
            if round % 6 == 0 {
                settled.decided(clock, sure);
            }
            settled.round(100);
        }
        settled.converged()
    }

    #[test]
    fn a_window_of_sure_rounds_about_one_clock_is_needed() {
        let mut settled = Settled::default();
        assert!(!after(&mut settled, 1000, 1200.0, false), "never sure");
        assert!(!after(&mut settled, 99, 1200.0, true));
        assert!(after(&mut settled, 1, 1250.0, true));
        let mut restless = Settled::default();
        for _ in 0..20 {
            assert!(!after(&mut restless, 60, 1200.0, true) && !after(&mut restless, 60, 900.0, true));
        }
    }

    #[test]
    fn rounds_before_the_first_decision_do_not_count() {
        let mut settled = Settled::default();
        (0..500).for_each(|_| settled.round(100));
        assert!(!after(&mut settled, 99, 1200.0, true));
    }

    #[test]
    fn as_many_unsure_rounds_in_a_row_take_it_back_and_a_move_alone_does_not() {
        let mut settled = Settled::default();
        assert!(after(&mut settled, 100, 1200.0, true));
        assert!(after(&mut settled, 50, 800.0, true), "another load, another clock, as sure as before");
        assert!(after(&mut settled, 99, 800.0, false));
        assert!(after(&mut settled, 6, 800.0, true), "sure again: it counts anew");
        assert!(after(&mut settled, 99, 800.0, false));
        assert!(!after(&mut settled, 7, 800.0, false));
        assert!(after(&mut settled, 100, 800.0, true));
    }
}
