//! The lowest core clock that broken latency limits allow: it rises where a clock broke one, and sinks by evidence.

use serde::{Deserialize, Serialize};

use crate::units::{Seconds, Time};

/// Why a limit is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A lowered clock: a higher one may keep the limit.
    Clock,
    /// The load: the clocks are the driver's already.
    Load,
}

/// Moments of the run at hand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Running {
    /// Since when a limit is broken, and the clocks therefore at the driver's default.
    broken_since: Option<Time>,
    /// The floor before that, to go back to where the load turns out to be the cause.
    before: Option<f64>,
    /// Whether the floor has been raised for it.
    raised: bool,
    /// Next moment at which the floor may sink, and by how many steps.
    sink_at: Option<Time>,
    steps: u32,
}

/// The floor, in MHz. It outlives the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    mhz: Option<f64>,
    running: Running,
}

/// A share of a limit below which a step down, which costs at most the square of its factor, keeps the limit.
const CALM: f64 = 0.85;
/// After a clock change, what runs needs this long to show in the latencies.
const LAG: Seconds = Seconds(2.0);
/// The floor sinks by at most so many steps at once.
const MOST_STEPS: u32 = 4;

impl Floor {
    /// A floor that an earlier run has left, in MHz.
    #[must_use]
    pub fn left_at(mhz: Option<f64>) -> Self {
        Self { mhz, running: Running::default() }
    }

    /// A limit is broken over `window` while `running_mhz` was asked for (`None`: driver-default clocks). Raises the
    /// floor to `step_mhz` above a clock that broke it. Where default clocks break it for a whole window as well, the load
    /// was the cause, and the floor goes back.
    pub fn violated(&mut self, running_mhz: Option<f64>, step_mhz: f64, window: Seconds, now: Time) -> Cause {
        let running = &mut self.running;
        if running.broken_since.is_none() {
            *running = Running { broken_since: Some(now), before: self.mhz, ..Running::default() };
        }
        match running_mhz {
            Some(clock) => {
                let above = clock + step_mhz;
                self.mhz = Some(self.mhz.map_or(above, |floor| floor.max(above)));
                running.raised = true;
                // From here on at default clocks.
                running.broken_since = Some(now);
                Cause::Clock
            }
            None if running.raised
                && running.broken_since.is_some_and(|since| now.since(since).0 < window.0 + LAG.0) =>
            {
                Cause::Clock
            }
            None => {
                if running.raised {
                    (self.mhz, running.raised) = (running.before, false);
                }
                Cause::Load
            }
        }
    }

    /// No limit is broken; the largest statistic is `pressure` times its limit (`None`: nothing to judge by). The floor sinks
    /// by a step of `step_mhz` where a step would keep the limits, by more each time, once per half a `window`; below
    /// `lowest_mhz` it is gone.
    pub fn kept(
        &mut self,
        pressure: Option<f64>,
        step_mhz: f64,
        lowest_mhz: f64,
        window: Seconds,
        now: Time,
    ) {
        self.running.broken_since = None;
        let Some(floor) = self.mhz else { return };
        let pause = Seconds(0.5 * window.0);
        let due = *self.running.sink_at.get_or_insert(now + pause);
        if now < due {
            return;
        }
        self.running.sink_at = Some(now + pause);
        let steps = self.running.steps.clamp(1, MOST_STEPS);
        let lower = floor - f64::from(steps) * step_mhz;
        let factor = floor / lower.max(0.5 * floor);
        if pressure.is_none_or(|pressure| pressure * factor * factor < CALM) {
            self.mhz = (lower > lowest_mhz).then_some(lower);
            self.running.steps = (2 * steps).min(MOST_STEPS);
        } else {
            self.running.steps = 1;
        }
    }

    /// Must the clocks be at the driver's default now?
    #[must_use]
    pub fn is_lifted(&self) -> bool {
        self.running.broken_since.is_some()
    }

    /// Was it raised for the limit that is broken now?
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.is_lifted() && self.running.raised
    }

    /// The floor in MHz.
    #[must_use]
    pub fn mhz(&self) -> Option<f64> {
        self.mhz
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Seconds = Seconds(30.0);

    #[test]
    fn floor_rises_at_once_and_sinks_by_more_each_time_while_it_is_calm() {
        let mut floor = Floor::default();
        assert_eq!(floor.violated(Some(900.0), 90.0, WINDOW, Time(0.0)), Cause::Clock);
        assert!(floor.is_lifted());
        assert_eq!(floor.mhz(), Some(990.0));
        floor.violated(Some(600.0), 90.0, WINDOW, Time(1.0));
        assert_eq!(floor.mhz(), Some(990.0));
        let mut at = |seconds: f64, pressure| {
            floor.kept(Some(pressure), 90.0, 210.0, WINDOW, Time(seconds));
            assert!(!floor.is_lifted());
            floor.mhz()
        };
        assert_eq!(at(10.0, 0.3), Some(990.0));
        assert_eq!(at(25.0, 0.3), Some(900.0));
        assert_eq!(at(40.0, 0.3), Some(720.0));
        assert_eq!(at(55.0, 0.84), Some(720.0), "a step lower might break it");
        assert_eq!(at(70.0, 0.3), Some(630.0));
    }

    #[test]
    fn load_that_breaks_a_limit_at_default_clocks_sets_no_floor() {
        let mut floor = Floor::default();
        assert_eq!(floor.violated(None, 90.0, WINDOW, Time(0.0)), Cause::Load);
        assert_eq!((floor.mhz(), floor.is_lifted()), (None, true));
    }

    #[test]
    fn floor_goes_back_where_default_clocks_break_the_limit_for_a_whole_window_too() {
        let mut floor = Floor::left_at(Some(500.0));
        floor.violated(Some(900.0), 90.0, WINDOW, Time(0.0));
        assert_eq!(floor.violated(None, 90.0, WINDOW, Time(20.0)), Cause::Clock);
        assert_eq!(floor.mhz(), Some(990.0));
        assert_eq!(floor.violated(None, 90.0, WINDOW, Time(33.0)), Cause::Load);
        assert_eq!(floor.mhz(), Some(500.0));
    }
}
