//! The last minutes as points, one a second: what charts are drawn from.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::state::State;
use crate::control::Mode;
use crate::units::Mhz;

/// Points that are kept: ten minutes.
pub(crate) const POINTS: usize = 600;
/// Seconds from one point to the next.
const EVERY_S: f64 = 1.0;

/// The daemon at one moment, as far as charts need it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Unix seconds.
    pub at_unix_s: f64,
    /// What the loop was doing.
    pub mode: Mode,
    /// Core clock of the lock asked for; `None` is driver-default clocks.
    pub asked: Option<Mhz>,
    /// Running core clock, the first GPU's.
    pub core_clock: Option<Mhz>,
    /// Power of all GPUs together; `None` if one does not say.
    pub power_w: Option<f64>,
    /// Requests in the running batch.
    pub running: Option<f64>,
    /// Requests waiting for it.
    pub waiting: Option<f64>,
    /// Generated tokens per second.
    pub(crate) decode_tps: Option<f64>,
    /// Prompt tokens per second.
    pub(crate) prefill_tps: Option<f64>,
    /// Mean time to first token of the latest window.
    pub ttft_s: Option<f64>,
    /// Mean time per output token of the latest window.
    pub tpot_s: Option<f64>,
    /// Energy times time per output token of the latest window, joule seconds.
    pub edp_js: Option<f64>,
    /// What default clocks would have cost under this load, joule seconds; `None` where that is not known.
    pub default_edp_js: Option<f64>,
}

impl Point {
    /// The point of a state.
    pub fn of(state: &State) -> Self {
        let round = state.round.as_ref();
        Self {
            at_unix_s: state.at_unix_s,
            mode: state.mode,
            asked: state.asked.map(|clocks| clocks.core),
            core_clock: state.gpus.first().and_then(|gpu| gpu.core_clock),
            power_w: state.gpus.iter().map(|gpu| gpu.power_w).sum(),
            running: state.load.running,
            waiting: state.load.waiting,
            decode_tps: state.load.decode_tps,
            prefill_tps: state.load.prefill_tps,
            ttft_s: state.load.ttft_s,
            tpot_s: state.load.tpot_s,
            edp_js: round.and_then(|round| round.edp_js),
            default_edp_js: round.and_then(|round| round.default_edp_js),
        }
    }
}

/// The latest points, oldest first, at most `POINTS`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(VecDeque<Point>);

impl History {
    /// Takes a state in, if the latest point is a second old (or of a later time: the wall clock was set back). Says
    /// whether it did.
    pub fn push(&mut self, state: &State) -> bool {
        let passed = self.0.back().map(|last| state.at_unix_s - last.at_unix_s);
        if passed.is_some_and(|passed| (0.0..EVERY_S).contains(&passed)) {
            return false;
        }
        if self.0.len() == POINTS {
            self.0.pop_front();
        }
        self.0.push_back(Point::of(state));
        true
    }

    /// Oldest first.
    pub fn points(&self) -> impl DoubleEndedIterator<Item = &Point> + ExactSizeIterator {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing;

    fn state(at_unix_s: f64) -> State {
        State { at_unix_s, ..testing::state() }
    }

    #[test]
    fn one_point_a_second_and_no_more_than_ten_minutes() {
        let mut history = History::default();
        let taken = (0..2001).filter(|third| history.push(&state(f64::from(*third) * 0.5))).count();
        assert_eq!((taken, history.points().len()), (1001, POINTS));
        approx::assert_relative_eq!(history.points().next_back().unwrap().at_unix_s, 1000.0);
    }

    #[test]
    fn a_wall_clock_set_back_does_not_stop_it() {
        let mut history = History::default();
        assert!(history.push(&state(1000.0)) && history.push(&state(10.0)) && history.push(&state(11.0)));
    }

    #[test]
    fn power_is_the_sum_over_the_gpus_or_unknown() {
        let mut state = state(0.0);
        state.gpus.push(state.gpus[0].clone());
        approx::assert_relative_eq!(Point::of(&state).power_w.unwrap(), 303.0);
        state.gpus[1].power_w = None;
        assert_eq!(Point::of(&state).power_w, None);
    }
}
