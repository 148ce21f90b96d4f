//! When the energy counter is read: often enough to see when it ticks, and no more often.
//!
//! Power is measured from tick to tick ([`crate::reward::energy`]), so what counts is the moment of a tick and not how
//! many are seen. After a tick the counter is left alone until shortly before the next one; a counter that ticks fast is
//! left alone for a share of the windows that power is measured over.

use std::time::Duration;

use crate::units::{Seconds, Time};

/// The longest rest, as a share of a window: windows need a few ticks each.
const LONGEST_REST: f64 = 0.25;
/// A counter that ticks faster than this share of a window is not followed tick by tick.
const SHORTEST_REST: f64 = 0.125;
/// No counter ticks more slowly than this by much: a longer rest would gain nothing.
const MOST: Seconds = Seconds(0.08);
/// The share of the counter's period that is rested.
const SHARE: f64 = 0.8;
/// The period is the shortest of so many intervals between ticks, seen at the start by reading all the time.
const INTERVALS: u32 = 8;

/// The next readings of one energy counter.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Between two readings while a tick is waited for.
    every: Seconds,
    /// The shortest and the longest rest.
    rests: (f64, f64),
    due: Time,
    /// The next reading follows a rest: a value that differs from the last one ticked at an unknown moment.
    rested: bool,
    last_tick: Option<Time>,
    shortest: Seconds,
    intervals: u32,
}

impl Pace {
    /// Reads at intervals of `every` while a tick is waited for, from `now` on, for power over windows of `window`.
    pub(crate) fn new(every: Duration, window: Seconds, now: Time) -> Self {
        Self {
            every: Seconds(every.as_secs_f64()),
            rests: ((SHORTEST_REST * window.0).min(MOST.0), (LONGEST_REST * window.0).min(MOST.0)),
            due: now,
            rested: true,
            last_tick: None,
            shortest: Seconds(f64::INFINITY),
            intervals: 0,
        }
    }

    /// When the counter is to be read next.
    pub(crate) fn due(&self) -> Time {
        self.due
    }

    /// The counter was read at `now`, and its value was another one than before or not; true if it ticked just now.
    pub(crate) fn read(&mut self, now: Time, changed: bool) -> bool {
        let rested = std::mem::take(&mut self.rested);
        if rested || !changed {
            self.due = now + self.every;
            return false;
        }
        if let Some(last) = self.last_tick.replace(now).filter(|_| self.intervals < INTERVALS) {
            self.shortest = Seconds(self.shortest.0.min(now.since(last).0));
            self.intervals += 1;
        }
        let rest = Seconds((SHARE * self.shortest.0).clamp(self.rests.0, self.rests.1));
        self.rested = self.intervals == INTERVALS && rest.0 > self.every.0;
        self.due = now + if self.rested { rest } else { self.every };
        true
    }

    /// The counter could not be read at `now`.
    pub(crate) fn missed(&mut self, now: Time) {
        self.due = now + self.every;
    }

    /// The counter was read at `now` by another schedule, and its value was another one than before or not: true if it
    /// counts as a tick.
    pub(crate) fn interrupt(&mut self, now: Time, changed: bool) -> bool {
        self.rested = true;
        self.last_tick = None;
        self.due = now + self.every;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::energy::{EnergyMeter, EnergyPoint};
    use crate::units::Joules;
    use proptest::prelude::*;

    /// Reads for so many seconds a counter that ticks at multiples of `period`; gives the points and the number of reads.
    fn follow(period: f64, late: impl Fn(u32) -> f64, seconds: f64) -> (Vec<Time>, u32) {
        follow_for(0.3, period, late, seconds)
    }

    /// The same for windows of so many seconds.
    fn follow_for(window: f64, period: f64, late: impl Fn(u32) -> f64, seconds: f64) -> (Vec<Time>, u32) {
        let mut pace = Pace::new(Duration::from_millis(10), Seconds(window), Time(0.0));
        let (mut points, mut reads, mut shown) = (Vec::new(), 0, f64::NAN);
        while pace.due().0 < seconds {
            let now = Time(pace.due().0 + late(reads));
            let value = (now.0 / period).floor();
            if pace.read(now, reads > 0 && value.to_bits() != shown.to_bits()) {
                points.push(now);
            }
            shown = value;
            reads += 1;
        }
        (points, reads)
    }

    #[test]
    fn a_slow_counter_is_left_alone_between_its_ticks() {
        let (points, reads) = follow(0.1, |_| 0.0, 60.0);
        // Every tick is seen, with three or four readings each.
        assert!(points.len() >= 590, "{}", points.len());
        assert!(reads <= 600 * 4, "{reads}");
    }

    #[test]
    fn a_fast_counter_is_not_followed_tick_by_tick() {
        let (points, reads) = follow(0.02, |_| 0.0, 60.0);
        assert!(points.len() >= 60 * 1000 / 70, "{}", points.len());
        assert!(reads <= 60 * 52, "{reads}");
    }

    #[test]
    fn short_windows_have_every_tick() {
        let (points, _) = follow_for(0.05, 0.02, |_| 0.0, 60.0);
        assert!(points.len() >= 60 * 50 - 100, "{}", points.len());
    }

    proptest! {
        #[test]
        fn a_tick_is_known_to_within_the_reading_interval(
            period in 0.005..0.2_f64, lates in proptest::collection::vec(0.0..0.004_f64, 16),
        ) {
            let late = |read: u32| lates[read as usize % lates.len()];
            let (points, reads) = follow(period, late, 30.0);
            for at in &points {
                // Two readings are at most `every` and both delays apart, and a tick lies between them.
                prop_assert!(at.0 - (at.0 / period).floor() * period <= 0.01 + 0.004 + 1e-9);
            }
            // Windows of 0.3 s have two ticks wherever the counter has two and one to spare for the rest.
            let widest = points.windows(2).map(|pair| pair[1].since(pair[0]).0).fold(0.0, f64::max);
            prop_assert!(widest <= 2.0 * period + 0.08 + 0.03, "{widest} for {period}");
            prop_assert!(f64::from(reads) <= 30.0 * 101.0);
        }

        #[test]
        fn power_is_that_of_reading_all_the_time(period in 0.01..0.12_f64, watts in 20.0..700.0_f64) {
            let (points, _) = follow(period, |_| 0.0, 30.0);
            let mut meter = EnergyMeter::default();
            for at in points {
                let total = Joules((at.0 / period).floor() * period * watts);
                meter.push(EnergyPoint { at, total });
            }
            let (power, span) = meter.mean_power(Time(10.0), Time(11.0)).unwrap();
            prop_assert!((power.0 / watts - 1.0).abs() <= 0.01 / span.0 + 1e-9);
        }
    }
}
