//! Do requests come whatever happens, or do clients wait for an answer before they ask again?
//!
//! Where everybody is served as fast as they ask, arrivals do not know of the clock (an open system). Clients that wait, as
//! batch jobs and load generators with a fixed concurrency do, ask less often of a slower server (a closed one): no
//! backlog can build up, but a slower step then means fewer tokens for the same watts. In an open system the number of
//! requests scatters like a Poisson count, its variance being its mean; in a closed one it hardly moves.

use serde::{Deserialize, Serialize};

/// Averaging time in seconds.
const MEMORY: f64 = 60.0;
/// Nothing is concluded from less than this many seconds.
const LEAST_SECONDS: f64 = 20.0;
/// Variance over mean at and below which the system counts as closed, and from which on as open.
const DISPERSION: (f64, f64) = (0.1, 0.4);

/// Decayed moments of the number of requests in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct LoopKind {
    seconds: f64,
    sum: f64,
    squares: f64,
}

impl LoopKind {
    /// Takes a tick of `seconds` at whose end there were `in_flight` requests.
    pub(super) fn push(&mut self, in_flight: f64, seconds: f64) {
        let keep = (-seconds / MEMORY).exp();
        self.seconds = keep * self.seconds + seconds;
        self.sum = keep * self.sum + seconds * in_flight;
        self.squares = keep * self.squares + seconds * in_flight * in_flight;
    }

    /// How closed the system is, from 0 (open) to 1.
    #[must_use]
    pub(super) fn closed(&self) -> f64 {
        if self.seconds < LEAST_SECONDS || self.sum <= 0.0 {
            return 0.0;
        }
        let mean = self.sum / self.seconds;
        let variance = (self.squares / self.seconds - mean * mean).max(0.0);
        ((DISPERSION.1 - variance / mean) / (DISPERSION.1 - DISPERSION.0)).clamp(0.0, 1.0)
    }

    /// Is every sum usable?
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        [self.seconds, self.sum, self.squares].into_iter().all(|sum| sum.is_finite() && sum >= 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(counts: impl Iterator<Item = f64>) -> f64 {
        let mut kind = LoopKind::default();
        for count in counts {
            kind.push(count, 0.3);
        }
        kind.closed()
    }

    #[test]
    fn constant_number_of_requests_is_a_closed_system_once_seen_long_enough() {
        assert!((after([64.0; 200].into_iter()) - 1.0).abs() < 1e-12);
        assert!(after([64.0; 60].into_iter()) < 1e-12);
    }

    #[test]
    fn number_that_scatters_as_much_as_its_mean_is_an_open_one() {
        // 10 plus and minus the square root of 10.
        let poisson = (0..400).map(|k| 10.0 + if k % 2 == 0 { 1.0 } else { -1.0 } * 10.0_f64.sqrt());
        assert!(after(poisson) < 1e-12);
        assert!(after(std::iter::repeat_n(0.0, 400)) < 1e-12);
    }
}
