//! Parking with every arrival known: down as soon as nothing runs, up in time for the next request.
//!
//! The gaps are those of the run without parking: whoever is always back in time delays nothing, so its gaps are the same.
//! How long the board will take for a clock is not known even here: the clocks are asked for as early as the slowest change
//! needs. So a rule that is late for its requests can save a little more.

use std::collections::VecDeque;

use super::figures::Gap;
use crate::sim::run::{Autopilot, Look};
use agft::units::{Clocks, Seconds, Target, Time};

/// Clock writes with their moments, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Foresight(VecDeque<(Time, Target)>);

impl Foresight {
    /// Parks at `parked` in every gap, and is back when the engine has the request that ends it: `front_end` after its first
    /// byte. A change of clocks takes at most `lead`; gaps that are no longer than that are left alone.
    #[must_use]
    pub fn new(gaps: &[Gap], parked: Clocks, lead: Seconds, front_end: Seconds) -> Self {
        let mut writes = VecDeque::new();
        for gap in gaps {
            let back = gap.end.map(|end| end.0 + front_end.0 - lead.0);
            if back.is_none_or(|back| back > gap.start.0) {
                writes.push_back((gap.start, Target::Lock(parked)));
                writes.extend(back.map(|back| (Time(back), Target::Default)));
            }
        }
        Self(writes)
    }
}

impl Autopilot for Foresight {
    fn due(&self) -> Time {
        self.0.front().map_or(Time(f64::INFINITY), |(at, _)| *at)
    }

    fn act(&mut self, _: &Look) -> Option<Target> {
        self.0.pop_front().map(|(_, target)| target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agft::units::Mhz;

    #[test]
    fn every_gap_longer_than_a_change_of_clocks_is_parked_and_left_in_time() {
        let gap = |start, end| Gap { start: Time(start), end };
        let gaps = [
            gap(0.0, Some(Time(5.0))),
            gap(6.0, Some(Time(6.09))),
            gap(8.0, Some(Time(8.2))),
            gap(9.0, None),
        ];
        let parked = Clocks::core_only(Mhz(210));
        let mut plan = Foresight::new(&gaps, parked, Seconds(0.1), Seconds(0.003));
        let (low, high) = (Target::Lock(parked), Target::Default);
        let expected =
            [(0.0, low), (5.0 + 0.003 - 0.1, high), (8.0, low), (8.2 + 0.003 - 0.1, high), (9.0, low)];
        assert_eq!(plan.0.make_contiguous(), expected.map(|(at, target)| (Time(at), target)));
    }
}
