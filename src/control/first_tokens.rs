//! What wakes do to the time to first token.
//!
//! A request that finds its GPU parked waits for the clocks. In the mean that is little; in the 99th percentile it is
//! nothing as long as fewer than one request in a hundred meets with it, or where long prompts take far longer anyway. Where
//! neither holds, a wake has to be dearer than the energy of the wait alone.

use serde::{Deserialize, Serialize};

use crate::metrics::Histogram;
use crate::units::Seconds;

/// So many requests are remembered; then older ones count half.
const MEMORY: f64 = 2000.0;
/// With fewer there is no 99th percentile.
const FEWEST: f64 = 100.0;
/// The share of requests that a 99th percentile does not see.
const UNSEEN: f64 = 0.01;

/// Times to first token of late, and wakes among them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct FirstTokens {
    seen: Option<Histogram>,
    wakes: f64,
}

impl FirstTokens {
    /// Requests that got their first token.
    pub(super) fn push(&mut self, more: &Histogram) {
        match &mut self.seen {
            Some(seen) if seen.buckets.len() == more.buckets.len() => seen.add(more),
            // Another engine counts in other buckets.
            _ => (self.seen, self.wakes) = (Some(more.clone()), 0.0),
        }
        if let Some(seen) = self.seen.as_mut().filter(|seen| seen.count > MEMORY) {
            seen.sum /= 2.0;
            seen.count /= 2.0;
            seen.buckets.iter_mut().for_each(|(_, count)| *count /= 2.0);
            self.wakes /= 2.0;
        }
    }

    /// A request found its GPU parked.
    pub(super) fn woke(&mut self) {
        self.wakes += 1.0;
    }

    /// How many times its energy a wake is to cost that delays a request so long, if the 99th percentile is not to rise by
    /// more than the share `most_rise`.
    pub(super) fn price(&self, delay: Seconds, most_rise: f64) -> f64 {
        let Some(seen) = self.seen.as_ref().filter(|seen| seen.count >= FEWEST) else { return 1.0 };
        if self.wakes <= UNSEEN * seen.count {
            return 1.0;
        }
        let Some((low, high)) = seen.quantile_bounds(0.99) else { return 1.0 };
        let p99 = if high.is_finite() { 0.5 * (low + high) } else { low };
        let factor = delay.0 / (most_rise * p99);
        if factor.is_finite() { factor.max(1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` requests, all between 0.1 and 0.3 s.
    fn requests(count: f64) -> Histogram {
        Histogram { sum: 0.2 * count, count, buckets: vec![(0.1, 0.0), (0.3, count), (1.0, count)] }
    }

    fn with(count: f64, wakes: usize) -> FirstTokens {
        let mut tokens = FirstTokens::default();
        tokens.push(&requests(count));
        (0..wakes).for_each(|_| tokens.woke());
        tokens
    }

    #[test]
    fn delay_that_the_percentile_would_show_is_dearer_in_proportion() {
        // 40 ms on 200 ms are 20 %, four times 5 %.
        let price = with(1000.0, 50).price(Seconds(0.04), 0.05);
        approx::assert_relative_eq!(price, 4.0, max_relative = 1e-9);
        approx::assert_relative_eq!(with(1000.0, 50).price(Seconds(0.005), 0.05), 1.0);
    }

    #[test]
    fn rare_wakes_and_few_requests_change_nothing() {
        for (count, wakes) in [(1000.0, 10), (99.0, 50), (0.0, 0)] {
            approx::assert_relative_eq!(with(count, wakes).price(Seconds(0.04), 0.05), 1.0);
        }
    }

    #[test]
    fn what_was_long_ago_fades() {
        let mut tokens = with(1000.0, 500);
        assert!(tokens.price(Seconds(0.04), 0.05) > 1.0);
        for _ in 0..40 {
            tokens.push(&requests(1000.0));
        }
        approx::assert_relative_eq!(tokens.price(Seconds(0.04), 0.05), 1.0);
    }

    #[test]
    fn other_buckets_begin_anew() {
        let mut tokens = with(1000.0, 500);
        tokens.push(&Histogram { sum: 20.0, count: 100.0, buckets: vec![(0.3, 100.0)] });
        approx::assert_relative_eq!(tokens.price(Seconds(0.04), 0.05), 1.0);
    }
}
