//! Mean power over a span, from counter readings that advance in ticks.
//!
//! The energy counter of a board is refreshed every 10-100 ms: reading it at two arbitrary moments 0.3 s apart is off
//! by up to a tick at each end (35 % on a board that ticks at 106 ms). So the sampler notes *when the value changed*,
//! and the span is measured from change to change.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::units::{Joules, Seconds, Time, Watts};

/// The energy counter at a moment at which it just advanced.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EnergyPoint {
    /// When the new value was first seen.
    pub at: Time,
    /// Energy since an origin of the sampler's choice.
    pub total: Joules,
}

/// How long points are kept: longer than any window that is asked for.
const KEPT: Seconds = Seconds(90.0);
/// Points nearer than this to their predecessor add nothing; with fast counters they only cost memory.
const SPACING: Seconds = Seconds(0.008);

/// Recent counter points of one GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EnergyMeter {
    points: VecDeque<EnergyPoint>,
}

impl EnergyMeter {
    /// Takes the next point. A counter that ran backwards (driver reload) starts the record anew.
    pub fn push(&mut self, point: EnergyPoint) {
        if !(point.at.0.is_finite() && point.total.0.is_finite()) {
            return;
        }
        if let Some(last) = self.points.back() {
            if point.total < last.total || point.at < last.at {
                self.points.clear();
            } else if point.at.since(last.at) < SPACING {
                return;
            }
        }
        self.points.push_back(point);
        while self.points.front().is_some_and(|first| point.at.since(first.at) > KEPT) {
            self.points.pop_front();
        }
    }

    /// Mean power over the counter ticks inside `[from, to]`, and the span they cover.
    ///
    /// `None` if fewer than two ticks lie inside.
    #[must_use]
    pub fn mean_power(&self, from: Time, to: Time) -> Option<(Watts, Seconds)> {
        let start = self.points.partition_point(|point| point.at < from);
        let end = self.points.partition_point(|point| point.at <= to);
        if end < start + 2 {
            return None;
        }
        let (first, last) = (self.points[start], self.points[end - 1]);
        let span = last.at.since(first.at);
        (span.0 > 0.0).then(|| (Watts((last.total.0 - first.total.0) / span.0), span))
    }

    /// Energy since the meter's oldest kept point up to its newest.
    #[must_use]
    pub fn newest(&self) -> Option<EnergyPoint> {
        self.points.back().copied()
    }
}

/// Power of a group of GPUs: the sum of the means; `None` unless every member has one. The span is the shortest.
#[must_use]
pub fn group_power(meters: &[EnergyMeter], from: Time, to: Time) -> Option<(Watts, Seconds)> {
    let mut total = 0.0;
    let mut shortest = f64::INFINITY;
    for meter in meters {
        let (power, span) = meter.mean_power(from, to)?;
        total += power.0;
        shortest = shortest.min(span.0);
    }
    (!meters.is_empty()).then_some((Watts(total), Seconds(shortest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meter(points: &[(f64, f64)]) -> EnergyMeter {
        let mut meter = EnergyMeter::default();
        for &(at, total) in points {
            meter.push(EnergyPoint { at: Time(at), total: Joules(total) });
        }
        meter
    }

    #[test]
    fn power_is_measured_from_tick_to_tick() {
        // A counter of 100 ms ticks under 200 W, read at 0.25 s and 0.55 s: only the ticks at 0.3, 0.4, 0.5 count.
        let meter = meter(&[(0.2, 40.0), (0.3, 60.0), (0.4, 80.0), (0.5, 100.0), (0.6, 120.0)]);
        let (power, span) = meter.mean_power(Time(0.25), Time(0.55)).unwrap();
        approx::assert_relative_eq!(power.0, (100.0 - 60.0) / (0.5 - 0.3), max_relative = 1e-12);
        approx::assert_relative_eq!(span.0, 0.5 - 0.3, max_relative = 1e-12);
    }

    #[test]
    fn one_tick_alone_gives_no_power() {
        assert_eq!(meter(&[(0.2, 40.0), (0.3, 60.0)]).mean_power(Time(0.25), Time(0.35)), None);
        assert_eq!(EnergyMeter::default().mean_power(Time(0.0), Time(1.0)), None);
    }

    #[test]
    fn counter_that_ran_backwards_starts_anew() {
        let meter = meter(&[(0.0, 100.0), (0.1, 120.0), (0.2, 3.0), (0.3, 23.0)]);
        let (power, _) = meter.mean_power(Time(0.0), Time(1.0)).unwrap();
        approx::assert_relative_eq!(power.0, (23.0 - 3.0) / 0.1, max_relative = 1e-9);
    }

    #[test]
    fn group_without_one_members_energy_has_no_power() {
        let good = meter(&[(0.0, 0.0), (0.1, 10.0), (0.2, 20.0)]);
        let silent = EnergyMeter::default();
        assert!(group_power(&[good.clone(), silent], Time(0.0), Time(1.0)).is_none());
        let (power, _) = group_power(&[good.clone(), good], Time(0.0), Time(1.0)).unwrap();
        approx::assert_relative_eq!(power.0, 2.0 * 20.0 / 0.2, max_relative = 1e-9);
    }

    proptest! {
        #[test]
        fn constant_power_is_found_whatever_the_window(
            watts in 10.0..700.0_f64, tick in 0.01..0.12_f64, from in 0.0..2.0_f64, length in 0.3..3.0_f64,
        ) {
            let mut meter = EnergyMeter::default();
            for k in 0..600 {
                let at = f64::from(k) * tick;
                meter.push(EnergyPoint { at: Time(at), total: Joules(watts * at) });
            }
            let (power, span) = meter.mean_power(Time(from), Time(from + length)).unwrap();
            prop_assert!((power.0 - watts).abs() < 1e-6 * watts);
            prop_assert!(span.0 <= length + 1e-9 && span.0 >= length - 2.0 * tick.max(0.008) - 1e-9);
        }
    }
}
