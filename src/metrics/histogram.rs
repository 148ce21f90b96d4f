//! Arithmetic on cumulative histograms: add, subtract, mean, and what a percentile can be.

use std::cmp::Ordering;

use super::Histogram;

/// How much of a sum of floats may vanish by rounding before it counts as running backwards.
const ROUNDING: f64 = 1e-9;

impl Histogram {
    /// Mean of the observed values; `None` without observations.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }

    /// The interval that holds the `q`-quantile (nearest rank), as `(lower, upper)`.
    ///
    /// A histogram does not know more than the bucket: vLLM's token-latency buckets begin at 10 and 25 ms, so a p95 of
    /// 12 ms is reported as `(0.010, 0.025)`. `lower` is 0 in the first bucket, `upper` is infinite beyond the last
    /// bound. `None` without observations, without buckets, or if `q` is not in 0 to 1.
    #[must_use]
    pub fn quantile_bounds(&self, q: f64) -> Option<(f64, f64)> {
        if !(0.0..=1.0).contains(&q) || self.count <= 0.0 || self.buckets.is_empty() {
            return None;
        }
        // The slack keeps 0.07 x 100 = 7.000000000000001 from meaning the eighth observation.
        let rank = (q * self.count * (1.0 - ROUNDING)).ceil().max(1.0);
        let mut lower = 0.0;
        for &(bound, cumulative) in &self.buckets {
            if cumulative >= rank {
                return Some((lower, bound));
            }
            lower = bound;
        }
        Some((lower, f64::INFINITY))
    }

    /// The `q`-quantile as Prometheus reckons it: as if the observations of a bucket lay evenly in it. Beyond the last bound
    /// it is that bound; `None` without observations or buckets.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q * self.count;
        let mut before = (0.0, 0.0);
        for &(bound, cumulative) in self.buckets.iter().filter(|_| self.count > 0.0) {
            if cumulative >= rank {
                let within =
                    if cumulative > before.1 { (rank - before.1) / (cumulative - before.1) } else { 1.0 };
                return Some(before.0 + within * (bound - before.0));
            }
            before = (bound, cumulative);
        }
        self.buckets.last().filter(|_| self.count > 0.0).map(|(bound, _)| *bound)
    }

    /// The observations of all; `None` of none.
    #[must_use]
    pub fn total<'a>(all: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let mut all = all.into_iter();
        let mut total = all.next()?.clone();
        all.for_each(|more| total.add(more));
        Some(total)
    }

    /// Adds the observations of `other`. Of the buckets those bounds remain that both have.
    pub fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        self.count += other.count;
        self.buckets = common(&self.buckets, &other.buckets, |a, b| a + b);
    }

    /// The observations made since `earlier`; `None` if a number ran backwards.
    ///
    /// A sum that fell by no more than one part in 10⁹ is rounding (series added in another order) and counts as
    /// unchanged. Of the buckets those bounds remain that both have.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let count = self.count - earlier.count;
        let sum = self.sum - earlier.sum;
        let buckets = common(&self.buckets, &earlier.buckets, |late, early| late - early);
        let backwards = count < 0.0
            || sum < -ROUNDING * earlier.sum.abs()
            || buckets.iter().any(|&(_, observations)| observations < 0.0);
        (!backwards).then(|| Self { sum: sum.max(0.0), count, buckets })
    }
}

/// Joins two ascending bucket lists at the bounds that both have.
fn common(a: &[(f64, f64)], b: &[(f64, f64)], join: impl Fn(f64, f64) -> f64) -> Vec<(f64, f64)> {
    let mut joined = Vec::with_capacity(a.len().min(b.len()));
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(&&(bound_a, count_a)), Some(&&(bound_b, count_b))) = (a.peek(), b.peek()) {
        match bound_a.total_cmp(&bound_b) {
            Ordering::Less => _ = a.next(),
            Ordering::Greater => _ = b.next(),
            Ordering::Equal => {
                joined.push((bound_a, join(count_a, count_b)));
                _ = (a.next(), b.next());
            }
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: [f64; 4] = [0.01, 0.025, 0.05, 0.1];

    /// The histogram that a Prometheus client would keep of these values.
    fn of(values: &[f64]) -> Histogram {
        let below =
            |bound: f64| f64::from(u32::try_from(values.iter().filter(|v| **v <= bound).count()).unwrap());
        Histogram {
            sum: values.iter().sum(),
            count: below(f64::INFINITY),
            buckets: BOUNDS.iter().map(|&bound| (bound, below(bound))).collect(),
        }
    }

    #[test]
    fn empty_histogram_has_neither_mean_nor_quantile() {
        assert_eq!(of(&[]).mean(), None);
        assert_eq!(of(&[]).quantile_bounds(0.5), None);
    }

    #[test]
    fn quantile_is_the_bucket_of_the_nearest_rank() {
        // 19 of 20 in the first bucket: rank ceil(0.95 x 20) = 19 is still there, rank ceil(0.96 x 20) = 20 is not.
        let mut values = vec![0.005; 19];
        values.push(0.03);
        assert_eq!(of(&values).quantile_bounds(0.95), Some((0.0, 0.01)));
        assert_eq!(of(&values).quantile_bounds(0.96), Some((0.025, 0.05)));
        assert_eq!(of(&values).quantile_bounds(0.0), Some((0.0, 0.01)));
        assert_eq!(of(&values).quantile_bounds(1.0), Some((0.025, 0.05)));
    }

    #[test]
    fn quantile_beyond_the_last_bound_has_no_upper_end() {
        assert_eq!(of(&[7.0]).quantile_bounds(0.5), Some((0.1, f64::INFINITY)));
    }

    #[test]
    fn quantile_outside_0_to_1_is_none() {
        for q in [-0.1, 1.1, f64::NAN] {
            assert_eq!(of(&[0.02]).quantile_bounds(q), None);
        }
    }

    #[test]
    fn rank_that_rounding_lifts_above_an_integer_stays_in_its_bucket() {
        let mut values = vec![0.005; 7];
        values.resize(100, 0.03);
        assert_eq!(of(&values).quantile_bounds(0.07), Some((0.0, 0.01)));
    }

    #[test]
    fn histogram_without_buckets_has_a_mean_but_no_quantile() {
        let bare = Histogram { sum: 6.0, count: 3.0, buckets: vec![] };
        assert_eq!(bare.mean(), Some(6.0 / 3.0));
        assert_eq!(bare.quantile_bounds(0.5), None);
    }

    #[test]
    fn histograms_with_different_bounds_keep_the_common_ones() {
        let mut left = Histogram { sum: 1.0, count: 4.0, buckets: vec![(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)] };
        let right = Histogram { sum: 2.0, count: 6.0, buckets: vec![(2.0, 5.0), (3.0, 5.0), (4.0, 6.0)] };
        left.add(&right);
        let sums = Histogram { sum: 3.0, count: 10.0, buckets: vec![(2.0, 2.0 + 5.0), (4.0, 4.0 + 6.0)] };
        assert_eq!(left, sums);
    }

    #[test]
    fn sum_that_fell_by_rounding_counts_as_unchanged_and_by_more_as_backwards() {
        let at = |sum| Histogram { sum, count: 5.0, buckets: vec![(1.0, 5.0)] };
        assert_eq!(at(100.0 - 1e-8).since(&at(100.0)).map(|d| d.sum), Some(0.0));
        assert_eq!(at(100.0 - 1e-6).since(&at(100.0)), None);
    }

    #[test]
    fn count_or_bucket_that_fell_is_backwards() {
        let at = |count, bucket| Histogram { sum: 1.0, count, buckets: vec![(1.0, bucket)] };
        assert_eq!(at(4.0, 4.0).since(&at(5.0, 4.0)), None);
        assert_eq!(at(6.0, 3.0).since(&at(5.0, 4.0)), None);
    }

    proptest! {
        #[test]
        fn what_was_added_is_what_the_difference_gives(
            before in prop::collection::vec(0.0..0.2, 0..50),
            after in prop::collection::vec(0.0..0.2, 0..50),
        ) {
            let (early, fresh) = (of(&before), of(&after));
            let mut late = early.clone();
            late.add(&fresh);
            let delta = late.since(&early).unwrap();
            assert_relative_eq!(delta.sum, fresh.sum, max_relative = 1e-9, epsilon = 1e-12);
            prop_assert_eq!((delta.count, delta.buckets), (fresh.count, fresh.buckets));
        }

        #[test]
        fn quantile_interval_holds_the_true_quantile(
            values in prop::collection::vec(0.0..0.2, 1..60),
            percent in 0_usize..=100,
        ) {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let rank = (percent * sorted.len()).div_ceil(100).max(1);
            let truth = sorted[rank - 1];
            let (lower, upper) = of(&values).quantile_bounds(f64::from(u32::try_from(percent).unwrap()) / 100.0).unwrap();
            prop_assert!(lower <= truth && truth <= upper, "{truth} not in [{lower}, {upper}]");
        }
    }

    #[test]
    fn quantile_lies_between_the_bounds_as_if_its_bucket_were_evenly_filled() {
        // Ten in (0.01, 0.025], ten in (0.05, 0.1].
        let histogram = of(&[[0.02; 10], [0.06; 10]].concat());
        assert_relative_eq!(histogram.quantile(0.25).unwrap(), 0.01 + 0.5 * 0.015);
        assert_relative_eq!(histogram.quantile(0.5).unwrap(), 0.025);
        assert_relative_eq!(histogram.quantile(0.75).unwrap(), 0.05 + 0.5 * 0.05);
        assert_relative_eq!(of(&[7.0]).quantile(0.5).unwrap(), 0.1, max_relative = 1e-12);
        assert_eq!(of(&[]).quantile(0.5), None);
    }
}
