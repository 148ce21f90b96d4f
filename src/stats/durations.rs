//! How long something took, as a histogram with fixed bounds.

use serde::{Deserialize, Serialize};

use crate::units::Seconds;

/// Upper bounds of the buckets, seconds: from a driver call (0.5 ms) over a late tick (100 ms) to a wake that
/// every user feels.
const BOUNDS_S: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Durations, counted by size.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Durations {
    /// How many.
    pub count: u64,
    /// Their sum, seconds.
    pub sum_s: f64,
    /// The longest, seconds.
    pub max_s: f64,
    /// Durations at or below each bound and above the one before; the last entry is above all.
    counts: [u64; BOUNDS_S.len() + 1],
}

impl Durations {
    /// Counts one. A value that is not finite is ignored; one below zero counts as zero.
    pub fn add(&mut self, Seconds(took): Seconds) {
        if !took.is_finite() {
            return;
        }
        let took = took.max(0.0);
        let bucket = BOUNDS_S.iter().position(|bound| took <= *bound).unwrap_or(BOUNDS_S.len());
        self.counts[bucket] += 1;
        self.count += 1;
        self.sum_s += took;
        self.max_s = self.max_s.max(took);
    }

    /// Upper bound in seconds and durations of each bucket, not cumulated; the last bound is infinite.
    #[must_use]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        BOUNDS_S.iter().copied().chain([f64::INFINITY]).zip(self.counts).collect()
    }

    /// Mean; `None` without any.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "2^53 ticks are 85 million years")]
    pub fn mean(&self) -> Option<Seconds> {
        (self.count > 0).then(|| Seconds(self.sum_s / self.count as f64))
    }

    /// The longest; `None` without any.
    #[must_use]
    pub fn max(&self) -> Option<Seconds> {
        (self.count > 0).then_some(Seconds(self.max_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bound_belongs_to_its_own_bucket_and_what_is_no_number_is_left_out() {
        let mut durations = Durations::default();
        assert_eq!((durations.mean(), durations.max()), (None, None));
        for took in [0.0005, 0.000_51, 2.5, 7.0, -1.0, f64::NAN, f64::INFINITY] {
            durations.add(Seconds(took));
        }
        let counts: Vec<u64> = durations.buckets().into_iter().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((durations.count, durations.max()), (5, Some(Seconds(7.0))));
        approx::assert_relative_eq!(durations.mean().unwrap().0, (0.0005 + 0.000_51 + 2.5 + 7.0) / 5.0);
    }

    proptest! {
        #[test]
        fn buckets_add_up_to_the_count(all in prop::collection::vec(0.0..3.0_f64, 0..200)) {
            let mut durations = Durations::default();
            all.iter().for_each(|seconds| durations.add(Seconds(*seconds)));
            let total: u64 = durations.buckets().into_iter().map(|(_, count)| count).sum();
            prop_assert_eq!((total, durations.count), (durations.count, all.len() as u64));
            approx::assert_relative_eq!(durations.sum_s, all.iter().sum::<f64>(), max_relative = 1e-9);
        }
    }
}
