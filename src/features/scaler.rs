//! Running z-scores: each feature is shown relative to what it was so far.

use serde::{Deserialize, Serialize};

use super::DIMENSION;

/// z-scores are clipped to this many standard deviations.
pub const CLIP: f64 = 3.0;

/// Keeps a constant feature from dividing by zero.
const EPSILON: f64 = 1e-8;

/// Running mean and variance of every feature (Welford), and the z-scores they give.
///
/// Saved with the model, since the model's coefficients are in these scales. Fed only by windows with work: idle time
/// and outages say nothing about load.
///
/// # Source
/// Welford, *Note on a method for calculating corrected sums of squares and products*, Technometrics 4 (1962).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scaler {
    count: u64,
    mean: [f64; DIMENSION],
    /// Sum of squared distances to the mean.
    m2: [f64; DIMENSION],
}

impl Default for Scaler {
    fn default() -> Self {
        Self { count: 0, mean: [0.0; DIMENSION], m2: [0.0; DIMENSION] }
    }
}

impl Scaler {
    /// Takes a raw context into the statistics. One that is not finite is ignored as a whole.
    #[expect(clippy::cast_precision_loss, reason = "2^53 windows of 0.3 s are 86 million years")]
    pub fn observe(&mut self, raw: &[f64; DIMENSION]) {
        if raw.iter().any(|value| !value.is_finite()) {
            return;
        }
        self.count += 1;
        for ((mean, m2), value) in self.mean.iter_mut().zip(&mut self.m2).zip(raw) {
            let delta = value - *mean;
            *mean += delta / self.count as f64;
            *m2 += delta * (value - *mean);
        }
    }

    /// The z-scores of a raw context, clipped to ±[`CLIP`]; shape `(7,)`, always finite.
    ///
    /// The standard deviation is the sample's (n - 1); with fewer than two samples it counts as 1.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "as in observe")]
    pub fn scale(&self, raw: &[f64; DIMENSION]) -> [f64; DIMENSION] {
        let mut z = [0.0; DIMENSION];
        for (index, value) in z.iter_mut().enumerate() {
            let deviation =
                if self.count > 1 { (self.m2[index] / (self.count - 1) as f64).max(0.0).sqrt() } else { 1.0 };
            let score = (raw[index] - self.mean[index]) / (deviation + EPSILON);
            *value = if score.is_finite() { score.clamp(-CLIP, CLIP) } else { 0.0 };
        }
        z
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scores_follow_the_sample_mean_and_deviation() {
        let mut scaler = Scaler::default();
        for value in [1.0, 2.0, 6.0] {
            scaler.observe(&[value; DIMENSION]);
        }
        let mean = (1.0 + 2.0 + 6.0) / 3.0;
        let variance = ((1.0_f64 - mean).powi(2) + (2.0 - mean).powi(2) + (6.0 - mean).powi(2)) / 2.0;
        let expected = (5.0 - mean) / (variance.sqrt() + 1e-8);
        for score in scaler.scale(&[5.0; DIMENSION]) {
            approx::assert_relative_eq!(score, expected, max_relative = 1e-12);
        }
    }

    #[test]
    fn constant_feature_scores_zero() {
        let mut scaler = Scaler::default();
        for _ in 0..10 {
            scaler.observe(&[42.0; DIMENSION]);
        }
        approx::assert_relative_eq!(scaler.scale(&[42.0; DIMENSION])[..], [0.0; DIMENSION][..]);
    }

    #[test]
    fn one_bad_context_leaves_the_statistics_alone() {
        let mut scaler = Scaler::default();
        scaler.observe(&[1.0; DIMENSION]);
        let before = scaler.clone();
        scaler.observe(&[1.0, 2.0, f64::NAN, 4.0, 5.0, 6.0, 7.0]);
        scaler.observe(&[f64::INFINITY; DIMENSION]);
        assert_eq!(scaler, before);
    }

    proptest! {
        #[test]
        fn scores_are_finite_and_clipped(
            rows in prop::collection::vec(prop::array::uniform7(-1e12..1e12_f64), 0..50),
            query in prop::array::uniform7(prop::num::f64::ANY),
        ) {
            let mut scaler = Scaler::default();
            for row in &rows {
                scaler.observe(row);
            }
            for score in scaler.scale(&query) {
                prop_assert!(score.is_finite() && score.abs() <= CLIP);
            }
        }

        #[test]
        fn running_statistics_equal_the_two_pass_ones(values in prop::collection::vec(-1e3..1e3_f64, 2..60)) {
            let mut scaler = Scaler::default();
            for value in &values {
                scaler.observe(&[*value; DIMENSION]);
            }
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
            prop_assert!((scaler.mean[0] - mean).abs() < 1e-9);
            prop_assert!((scaler.m2[0] / (n - 1.0) - variance).abs() < 1e-6 * (1.0 + variance));
        }
    }
}
