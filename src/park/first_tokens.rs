//! What wakes do to the time to first token.
//!
//! A request that finds its GPU parked waits for the clocks. If a share `f` of the requests waits `d` longer, each as likely as
//! any other, a percentile in a smooth tail moves by about `f d`: `(1 - f) S(x) + f S(x - d)` is `S(x - f d)` to first order, `S`
//! being the share of requests that take longer than `x`. Where that is too much, a wake has to be dearer than the energy of the
//! wait alone.

use serde::{Deserialize, Serialize};

use crate::metrics::Histogram;
use crate::units::Seconds;

/// So many requests are remembered; then older ones count half.
const MEMORY: f64 = 1000.0;
/// With fewer there is no 99th percentile.
const FEWEST: f64 = 100.0;

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

    /// How many times its energy a wake is to cost that delays a request by `delay`, if the 99th percentile is not to rise
    /// by more than the share `most_rise`.
    pub(super) fn price(&self, delay: Seconds, most_rise: f64) -> f64 {
        let Some(seen) = self.seen.as_ref().filter(|seen| seen.count >= FEWEST) else { return 1.0 };
        let Some(p99) = seen.quantile(0.99) else { return 1.0 };
        let rise = (self.wakes / seen.count).min(1.0) * delay.0 / p99;
        // Squared: the share of requests that wait hardly changes with the price where gaps are of all lengths.
        let factor = (rise / most_rise).powi(2);
        if factor.is_finite() { factor.max(1.0) } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` requests, 99 in 100 of them in at most 0.2 s.
    fn requests(count: f64) -> Histogram {
        Histogram { sum: 0.2 * count, count, buckets: vec![(0.1, 0.0), (0.2, 0.99 * count), (1.0, count)] }
    }

    fn with(count: f64, wakes: usize) -> FirstTokens {
        let mut tokens = FirstTokens::default();
        tokens.push(&requests(count));
        (0..wakes).for_each(|_| tokens.woke());
        tokens
    }

    #[test]
    fn rise_beyond_what_is_allowed_is_dearer_by_its_square() {
        // Half of the requests wait 40 ms: the 200 ms of the percentile rise by a tenth.
        let price = |delay| with(1000.0, 500).price(Seconds(delay), 0.05);
        approx::assert_relative_eq!(price(0.04), 4.0, max_relative = 1e-9);
        approx::assert_relative_eq!(price(0.02), 1.0, max_relative = 1e-9);
        approx::assert_relative_eq!(price(0.001), 1.0);
    }

    #[test]
    fn rare_wakes_and_few_requests_change_nothing() {
        for (count, wakes) in [(1000.0, 200), (99.0, 99), (0.0, 0)] {
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
