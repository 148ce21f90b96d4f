//! How long wakes took, as a histogram.

use serde::{Deserialize, Serialize};

use crate::units::Seconds;

/// Upper bounds of the buckets, seconds: a driver call takes some milliseconds, a wake that users feel half a second.
const BOUNDS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Times from the decision to wake until the running clocks were seen to be back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Wakes.
    pub count: u64,
    /// Sum of their times, seconds.
    pub sum_s: f64,
    /// The longest, seconds.
    pub max_s: f64,
    /// Wakes at or below each bound and above the one before; the last entry is above all.
    counts: [u64; BOUNDS.len() + 1],
}

impl Latency {
    /// One more. What is not a time is none.
    pub fn add(&mut self, Seconds(took): Seconds) {
        if !took.is_finite() || took < 0.0 {
            return;
        }
        let bucket = BOUNDS.iter().position(|bound| took <= *bound).unwrap_or(BOUNDS.len());
        self.counts[bucket] += 1;
        self.count += 1;
        self.sum_s += took;
        self.max_s = self.max_s.max(took);
    }

    /// Upper bound in seconds and wakes of each bucket, not cumulated; the last bound is infinite.
    #[must_use]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        BOUNDS.iter().copied().chain([f64::INFINITY]).zip(self.counts).collect()
    }

    /// Mean, if there was any.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "wakes of a run are far below 2^53")]
    pub fn mean(&self) -> Option<Seconds> {
        (self.count > 0).then(|| Seconds(self.sum_s / self.count as f64))
    }

    /// The longest, if there was any.
    #[must_use]
    pub fn max(&self) -> Option<Seconds> {
        (self.count > 0).then_some(Seconds(self.max_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_belongs_to_its_own_bucket_and_what_is_no_time_is_left_out() {
        let mut latency = Latency::default();
        assert_eq!((latency.mean(), latency.max()), (None, None));
        for took in [0.005, 0.0051, 2.5, 7.0, -1.0, f64::NAN, f64::INFINITY] {
            latency.add(Seconds(took));
        }
        let counts: Vec<u64> = latency.buckets().into_iter().map(|(_, count)| count).collect();
        assert_eq!(counts, [1, 1, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((latency.count, latency.max()), (4, Some(Seconds(7.0))));
        approx::assert_relative_eq!(latency.mean().unwrap().0, (0.005 + 0.0051 + 2.5 + 7.0) / 4.0);
    }
}
