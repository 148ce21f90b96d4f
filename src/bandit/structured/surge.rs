//! Sudden changes of the load: counts of arriving requests against what their mean rate lets expect.
//!
//! The load is averaged over many requests, because noise in it would become a bias of the choice. A burst must not wait
//! for that average: at the clock that is right for the calm before it, its first two seconds fill the queue.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Ticks looked back over, at most.
const TICKS: usize = 20;
/// A count this many standard deviations of a Poisson count away from its mean is a change.
const SIGNIFICANT: f64 = 4.0;
/// A count that is off by no more requests than this is no change.
const LEAST_REQUESTS: f64 = 3.0;

/// A change of the arrival rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Change {
    /// New rate over old rate.
    pub factor: f64,
    /// Seconds over which the new rate was seen.
    pub seconds: f64,
}

/// Arrivals of the last ticks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Surge {
    /// Seconds and arrivals of each tick.
    ticks: VecDeque<(f64, f64)>,
}

impl Surge {
    /// Takes a tick of `seconds` in which `arrivals` requests came, where `rate` per second were expected; gives the most
    /// significant change over the last ticks, and then starts anew.
    pub(super) fn push(&mut self, seconds: f64, arrivals: f64, rate: f64) -> Option<Change> {
        self.ticks.push_back((seconds, arrivals));
        if self.ticks.len() > TICKS {
            self.ticks.pop_front();
        }
        let (mut span, mut count) = (0.0, 0.0);
        let mut found: Option<(f64, Change)> = None;
        for (seconds, arrivals) in self.ticks.iter().rev() {
            span += seconds;
            count += arrivals;
            let expected = rate * span;
            let off = (count - expected).abs();
            let significance = off / (expected + 1.0).sqrt();
            let strongest = found.is_none_or(|(best, _)| significance > best);
            if significance > SIGNIFICANT && off > LEAST_REQUESTS && strongest {
                // One request more on both sides: a first burst after silence is not infinitely much more.
                let factor = (count + 1.0) / (expected + 1.0);
                found = Some((significance, Change { factor, seconds: span }));
            }
        }
        if found.is_some() {
            self.ticks.clear();
        }
        found.map(|(_, change)| change)
    }

    /// Forgets what was seen.
    pub(super) fn clear(&mut self) {
        self.ticks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Dice;

    const TICK: f64 = 0.3;

    /// A Poisson count, by adding exponential gaps.
    fn poisson(mean: f64, dice: &mut Dice) -> f64 {
        let (mut count, mut at) = (0.0, 0.0);
        loop {
            at -= dice.uniform().ln();
            if at > mean {
                return count;
            }
            count += 1.0;
        }
    }

    #[test]
    fn steady_poisson_stream_hardly_ever_counts_as_a_change() {
        for rate in [0.2, 2.0, 20.0] {
            let (mut surge, mut dice) = (Surge::default(), Dice::new(5));
            let changes = (0..20_000)
                .filter(|_| surge.push(TICK, poisson(rate * TICK, &mut dice), rate).is_some())
                .count();
            // Once in two minutes at most.
            assert!(changes <= 50, "{changes} changes in 6000 s at {rate} per second");
        }
    }

    #[test]
    fn sixfold_burst_is_seen_within_a_second_and_its_end_within_two() {
        let mut surge = Surge::default();
        for _ in 0..30 {
            assert_eq!(surge.push(TICK, 5.0 * TICK, 5.0), None);
        }
        let burst = (0..4).find_map(|_| surge.push(TICK, 30.0 * TICK, 5.0)).expect("a change");
        assert!(burst.factor > 3.0 && burst.seconds < 1.3, "{burst:?}");
        let calm = (0..7).find_map(|_| surge.push(TICK, 5.0 * TICK, 30.0)).expect("a change");
        assert!(calm.factor < 0.4, "{calm:?}");
    }

    #[test]
    fn three_requests_after_silence_are_no_surge() {
        let mut surge = Surge::default();
        assert_eq!(surge.push(TICK, 3.0, 0.0), None);
        assert!(surge.push(TICK, 3.0, 0.0).is_some());
    }
}
