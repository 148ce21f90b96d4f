//! Statistics that several parts need: mean, percentiles, Student's t, durations counted by size, a small
//! random number generator.

mod dice;
mod durations;
mod interval;
mod student;

pub use dice::Dice;
pub use durations::Durations;
pub use interval::Interval;
pub(crate) use student::quantile_975;

/// Arithmetic mean; `None` without values.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "slices of at most some million values")]
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The `p`-th percentile (0 to 1) by linear interpolation between order statistics, as numpy's default;
/// `None` without values.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index between 0 and the length of a short list"
)]
pub fn percentile(values: &[f64], p: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let at = p.clamp(0.0, 1.0) * last as f64;
    let below = (at.floor() as usize).min(last);
    let above = (below + 1).min(last);
    Some(sorted[below] + (at - below as f64) * (sorted[above] - sorted[below]))
}

/// The percentile (0 to 100) of values in ascending order by nearest rank; `None` without values.
#[must_use]
pub fn nearest_rank(ascending: &[f64], percent: usize) -> Option<f64> {
    ascending.get((ascending.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn percentile_interpolates_between_order_statistics() {
        let values = [4.0, 1.0, 3.0, 2.0];
        approx::assert_relative_eq!(percentile(&values, 0.5).unwrap(), 2.5);
        approx::assert_relative_eq!(
            percentile(&values, 0.33).unwrap(),
            1.0 + 0.33 * 3.0,
            max_relative = 1e-12
        );
        approx::assert_relative_eq!(percentile(&values, 1.0).unwrap(), 4.0);
        assert_eq!((percentile(&[], 0.5), mean(&[]), nearest_rank(&[], 50)), (None, None, None));
    }

    #[test]
    fn nearest_ranks_of_one_to_hundred_are_their_own() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            [50, 95, 100].map(|percent| nearest_rank(&values, percent)),
            [50.0, 95.0, 100.0].map(Some)
        );
        assert_eq!(nearest_rank(&[7.0], 95), Some(7.0));
    }

    proptest! {
        #[test]
        fn percentile_lies_between_the_extremes_and_grows_with_p(
            values in prop::collection::vec(-5.0..5.0_f64, 1..40), p in 0.0..1.0_f64, q in 0.0..1.0_f64,
        ) {
            let at = |p| percentile(&values, p).unwrap();
            prop_assert!(at(0.0) <= at(p) && at(p) <= at(1.0));
            prop_assert!(at(p.min(q)) <= at(p.max(q)) + 1e-12);
        }
    }
}
