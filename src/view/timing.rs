//! How long something took, as a histogram that is never larger than its bounds.

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets, in seconds. A tick of 0.3 s that takes 10 ms is fine; one of 100 ms is not.
const BOUNDS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];

/// Durations, counted by size.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Timing {
    /// Observations at or below each bound of [`BOUNDS`] and above the one before; the last entry is above all.
    counts: [u64; BOUNDS.len() + 1],
    /// Sum of all observations, in seconds.
    pub sum_s: f64,
    /// Observations.
    pub count: u64,
}

impl Timing {
    /// Takes one duration in seconds. What is not a number is none; below zero counts as zero.
    pub fn observe(&mut self, seconds: f64) {
        if !seconds.is_finite() {
            return;
        }
        let seconds = seconds.max(0.0);
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.counts[bucket] += 1;
        self.sum_s += seconds;
        self.count += 1;
    }

    /// Upper bound in seconds and observations of each bucket, not cumulated; the last bound is infinite.
    #[must_use]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        BOUNDS.iter().copied().chain([f64::INFINITY]).zip(self.counts).collect()
    }

    /// Mean in seconds; `None` without observations.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "2^53 ticks are 85 million years")]
    pub fn mean_s(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum_s / self.count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bound_belongs_to_its_own_bucket() {
        let mut timing = Timing::default();
        for seconds in [0.0005, 0.000_51, 2.0, -1.0, f64::NAN] {
            timing.observe(seconds);
        }
        let counts: Vec<u64> = timing.buckets().into_iter().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(timing.count, 4);
        approx::assert_relative_eq!(timing.mean_s().unwrap(), (0.0005 + 0.000_51 + 2.0) / 4.0);
    }

    proptest! {
        #[test]
        fn buckets_add_up_to_the_count(durations in prop::collection::vec(0.0..3.0_f64, 0..200)) {
            let mut timing = Timing::default();
            durations.iter().for_each(|seconds| timing.observe(*seconds));
            let total: u64 = timing.buckets().into_iter().map(|(_, count)| count).sum();
            prop_assert_eq!((total, timing.count), (timing.count, durations.len() as u64));
            approx::assert_relative_eq!(timing.sum_s, durations.iter().sum::<f64>(), max_relative = 1e-9);
        }
    }
}
