//! Does lowering clocks pay at all? Where it has cost more than it brought lately, default clocks have a rest from it.
//!
//! For a policy that learns from rewards of single windows: it can be wrong for long without noticing. The reward is
//! relative to what default clocks cost at the same load, so its mean tells.

use serde::{Deserialize, Serialize};

use crate::units::{Seconds, Time};

/// Averaging time.
const MEMORY: Seconds = Seconds(60.0);
/// Nothing is concluded from less than this.
const LEAST: Seconds = Seconds(30.0);
/// A mean reward below this is a loss: in logarithms of the objective, so about so many percent.
const LOSS: f64 = -0.03;
/// First pause at default clocks, doubled each time ...
const FIRST_PAUSE: Seconds = Seconds(60.0);
/// ... up to this.
const LONGEST_PAUSE: Seconds = Seconds(900.0);

/// Mean reward of lowered clocks, and the pause it has led to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Doubt {
    seconds: f64,
    sum: f64,
    pause: Option<Seconds>,
    until: Option<Time>,
}

impl Doubt {
    /// Takes the reward of a window of `seconds` that ended `now` and ran at lowered clocks.
    pub(super) fn push(&mut self, reward: f64, seconds: Seconds, now: Time) {
        if !reward.is_finite() {
            return;
        }
        let keep = (-seconds.0 / MEMORY.0).exp();
        self.seconds = keep * self.seconds + seconds.0;
        self.sum = keep * self.sum + reward * seconds.0;
        if self.seconds >= LEAST.0 && self.sum / self.seconds < LOSS {
            let pause = self.pause.map_or(FIRST_PAUSE, |last| Seconds((2.0 * last.0).min(LONGEST_PAUSE.0)));
            *self = Self { pause: Some(pause), until: Some(now + pause), ..Self::default() };
        } else if self.seconds >= LEAST.0 && self.sum > 0.0 && self.until.is_some_and(|until| now > until) {
            // It pays again: the next doubt starts from a short pause.
            (self.pause, self.until) = (None, None);
        }
    }

    /// Is it time for default clocks?
    #[must_use]
    pub(super) fn wants_default(&self, now: Time) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(doubt: &mut Doubt, reward: f64, from: f64, to: f64) {
        let mut at = from;
        while at < to && !doubt.wants_default(Time(at)) {
            doubt.push(reward, Seconds(0.3), Time(at));
            at += 0.3;
        }
    }

    #[test]
    fn losses_lead_to_pauses_that_double_until_it_pays() {
        let mut doubt = Doubt::default();
        feed(&mut doubt, -0.1, 0.0, 100.0);
        // Decayed time reaches 30 s after 60 s times the logarithm of 2.
        let needed = MEMORY.0 * 2.0_f64.ln();
        let first = doubt.until.unwrap().0;
        assert!((first - needed - 60.0).abs() < 1.0, "{first}");
        feed(&mut doubt, -0.1, first, 300.0);
        assert!((doubt.until.unwrap().0 - first - needed - 120.0).abs() < 1.0, "{doubt:?}");
        let second = doubt.until.unwrap().0;
        feed(&mut doubt, 0.1, second, second + 60.0);
        assert_eq!((doubt.pause, doubt.until), (None, None));
    }

    #[test]
    fn gains_and_small_losses_are_never_doubted() {
        let mut doubt = Doubt::default();
        feed(&mut doubt, 0.2, 0.0, 200.0);
        feed(&mut doubt, -0.02, 200.0, 600.0);
        assert!(!doubt.wants_default(Time(600.0)));
    }
}
