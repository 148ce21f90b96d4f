//! Have the choices settled, and does what they settled on still hold?

use std::collections::BTreeMap;

use crate::stats::mean;

/// Share (0 to 1) of the choices that fall on the `k` most frequent of them; 0 without any.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "at most some thousand choices are kept")]
pub(super) fn top_share<T: Ord>(choices: impl IntoIterator<Item = T>, k: usize) -> f64 {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for choice in choices {
        *counts.entry(choice).or_default() += 1;
    }
    let mut counts: Vec<usize> = counts.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let total: usize = counts.iter().sum();
    let top: usize = counts.iter().take(k).sum();
    if total == 0 { 0.0 } else { top as f64 / total as f64 }
}

/// A difference of two means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rise {
    /// How far the later mean lies above the earlier one.
    pub by: f64,
    /// Standard deviation of that, from the scatter of the values.
    pub deviation: f64,
}

/// How far the mean of the newest `half` values lies above the mean of the `half` before them; `None` if there are
/// not as many. `values` are oldest first.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "slices of at most some thousand values")]
pub(super) fn rise(values: &[f64], half: usize) -> Option<Rise> {
    let start = values.len().checked_sub(half.checked_mul(2)?)?;
    let (before, newest) = values[start..].split_at(half);
    let (old, new) = (mean(before)?, mean(newest)?);
    let scatter = |values: &[f64], mean: f64| values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let variance = (scatter(before, old) + scatter(newest, new)) / (2 * half).saturating_sub(2).max(1) as f64;
    Some(Rise { by: new - old, deviation: (variance * 2.0 / half as f64).sqrt() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_counts_the_most_frequent_choices() {
        approx::assert_relative_eq!(top_share("aabbbcdd".chars(), 2), (3.0 + 2.0) / 8.0);
        approx::assert_relative_eq!(top_share("ab".chars(), 5), 1.0);
        approx::assert_relative_eq!(top_share(std::iter::empty::<u8>(), 3), 0.0);
    }

    #[test]
    fn rise_compares_the_newest_half_with_the_one_before() {
        let values = [9.0, 1.0, 2.0, 3.0, 5.0];
        let found = rise(&values, 2).unwrap();
        approx::assert_relative_eq!(found.by, (3.0 + 5.0) / 2.0 - (1.0 + 2.0) / 2.0);
        let scatter = 2.0 * 0.5_f64.powi(2) + 2.0 * 1.0_f64.powi(2);
        approx::assert_relative_eq!(found.deviation, (scatter / 2.0 * (1.0 / 2.0 + 1.0 / 2.0)).sqrt());
        assert_eq!(rise(&values, 3), None);
        assert_eq!(rise(&values, 0), None);
    }
}
