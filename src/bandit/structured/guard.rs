//! Is the model any good? What sends the clocks back to default because of it, and when it is to be given up.

use serde::{Deserialize, Serialize};

use crate::units::Seconds;

/// Windows this many times slower than expected ...
const SURPRISE: f64 = 2.0;
/// ... and so many of them in a row ...
const SURPRISES: u32 = 3;
/// ... keep the clocks at default for so many windows.
const SURPRISE_HOLD: u32 = 4;
/// Windows are compared with their predictions by sums over this long: a long prompt is counted in one lump when it is done,
/// so single windows are off either way where prompts take several of them.
const MISFIT_SPAN: Seconds = Seconds(20.0);
/// Mean relative error of predicted step times above which the model does not describe the engine.
const TIME_MISFIT: f64 = 0.45;
/// The same for power.
const POWER_MISFIT: f64 = 0.15;
/// Averaged over this long.
const MISFIT_MEMORY: Seconds = Seconds(120.0);
/// Windows in a row without a delay or without a power after which nothing can be learned.
const BLIND_WINDOWS: u32 = 12;

/// Why the model is of no use here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// Step times do not follow clock and load.
    StepTimeMisfit,
    /// Power does not follow clock and load.
    PowerMisfit,
    /// Windows have no latency or no energy.
    NothingMeasured,
}

/// How far sums over spans of time are from what was expected of them, as a share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Misfit {
    seconds: f64,
    measured: f64,
    expected: f64,
    mean: f64,
}

impl Misfit {
    fn push(&mut self, pair: Option<(f64, f64)>, seconds: f64) {
        let Some((measured, expected)) = pair.filter(|(m, e)| m.is_finite() && e.is_finite() && *e > 0.0)
        else {
            return;
        };
        self.seconds += seconds;
        self.measured += seconds * measured;
        self.expected += seconds * expected;
        if self.seconds >= MISFIT_SPAN.0 {
            let off = (self.measured / self.expected - 1.0).abs().min(1.0);
            self.mean += (self.seconds / MISFIT_MEMORY.0).min(1.0) * (off - self.mean);
            (self.seconds, self.measured, self.expected) = (0.0, 0.0, 0.0);
        }
    }
}

/// The rules' memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Guard {
    surprises: u32,
    hold: u32,
    misfit_seconds: f64,
    time_misfit: Misfit,
    power_misfit: Misfit,
    blind: u32,
    trouble: Option<Trouble>,
}

impl Guard {
    /// Takes a window: how long its steps took, if that is known, and were expected to take.
    pub(super) fn on_window(&mut self, measured: Option<Seconds>, expected: Seconds) {
        self.hold = self.hold.saturating_sub(1);
        let Some(measured) = measured else { return };
        self.surprises = if measured.0 > SURPRISE * expected.0 { self.surprises + 1 } else { 0 };
        if self.surprises >= SURPRISES {
            self.surprises = 0;
            self.hold = SURPRISE_HOLD;
        }
    }

    /// Takes what a window's steps took and its power was, each with what was expected, and its length in seconds.
    ///
    /// Only windows of enough steps may be shown here: one of few steps is noisy by nature, and says nothing about the
    /// model.
    pub(super) fn on_misfit(&mut self, time: Option<(f64, f64)>, power: Option<(f64, f64)>, seconds: f64) {
        self.blind = 0;
        self.misfit_seconds += seconds;
        self.time_misfit.push(time, seconds);
        self.power_misfit.push(power, seconds);
        self.trouble = if self.misfit_seconds < MISFIT_MEMORY.0 {
            None
        } else if self.time_misfit.mean > TIME_MISFIT {
            Some(Trouble::StepTimeMisfit)
        } else if self.power_misfit.mean > POWER_MISFIT {
            Some(Trouble::PowerMisfit)
        } else {
            None
        };
    }

    /// Takes note of a window from which nothing could be learned.
    pub(super) fn on_blind_window(&mut self) {
        self.blind += 1;
        if self.blind >= BLIND_WINDOWS {
            self.trouble = Some(Trouble::NothingMeasured);
        }
    }

    /// Do the rules ask for driver-default clocks?
    #[must_use]
    pub(super) fn wants_default(&self) -> bool {
        self.hold > 0
    }

    /// Is the model of no use?
    #[must_use]
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.trouble
    }

    /// Something else had the clocks: what is recent is recent no more.
    pub(super) fn interrupt(&mut self) {
        self.surprises = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn third_window_at_twice_the_expected_time_asks_for_default_for_four_windows() {
        let mut guard = Guard::default();
        for _ in 0..2 {
            guard.on_window(Some(Seconds(0.05)), Seconds(0.02));
            assert!(!guard.wants_default());
        }
        guard.on_window(Some(Seconds(0.05)), Seconds(0.02));
        for _ in 0..4 {
            assert!(guard.wants_default());
            guard.on_window(Some(Seconds(0.02)), Seconds(0.02));
        }
        assert!(!guard.wants_default());
    }

    #[test]
    fn misfit_over_minutes_is_trouble_and_good_minutes_end_it() {
        let mut guard = Guard::default();
        let power = Some((300.0, 300.0));
        for _ in 0..180 {
            guard.on_misfit(Some((0.05, 0.02)), power, 2.0);
        }
        assert_eq!(guard.trouble(), Some(Trouble::StepTimeMisfit));
        for _ in 0..120 {
            guard.on_misfit(Some((0.021, 0.02)), power, 2.0);
        }
        assert_eq!(guard.trouble(), None);
    }

    #[test]
    fn lumps_that_average_out_are_no_trouble() {
        let mut guard = Guard::default();
        for k in 0..600 {
            let measured = if k % 5 == 0 { 0.1 } else { 0.01 };
            guard.on_misfit(Some((measured, 0.028)), Some((300.0, 310.0)), 2.0);
            assert_eq!(guard.trouble(), None);
        }
    }

    #[test]
    fn windows_without_energy_are_trouble() {
        let mut guard = Guard::default();
        for _ in 0..BLIND_WINDOWS {
            guard.on_blind_window();
        }
        assert_eq!(guard.trouble(), Some(Trouble::NothingMeasured));
    }
}
