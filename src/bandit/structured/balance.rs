//! What a second of the present weighs: the energy-delay product of a whole day is not that of its moments.
//!
//! Energy and delay add up over time, and only then are they multiplied: `d ln(E D) = dE/E + dD/D`. A phase with much of
//! the day's waiting and little of its energy is worth more speed than its own product says, a phase with much energy
//! and hardly anybody waiting less. The weight of `ln t` beside `ln P` is therefore the present share of all delay over
//! the present share of all energy; under a steady load it is one. Its square root is used: the shares of the past are
//! known with a lag, and half of the correction brings most of the gain.

use serde::{Deserialize, Serialize};

use super::window::Lesson;
use crate::units::Watts;

/// The present, seconds.
const PRESENT: f64 = 20.0;
/// The long run, seconds.
const LONG_RUN: f64 = 600.0;
/// So many seconds like the present are added to the long run: at the start there is no past to compare with.
const PRIOR: f64 = 60.0;
/// Share of the logarithm of the weight that is used.
const TRUST: f64 = 0.5;
/// Smallest and largest weight. Going slow in a lull is answered for when the next burst comes, so less is allowed there.
const WEIGHTS: (f64, f64) = (0.8, 2.0);

/// Decayed sums.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Sums {
    seconds: f64,
    joules: f64,
    /// Requests in the engine times seconds: what end-to-end times add up to.
    request_seconds: f64,
    /// Arriving requests times time per output token.
    token_delays: f64,
}

impl Sums {
    fn all(&mut self) -> [&mut f64; 4] {
        [&mut self.seconds, &mut self.joules, &mut self.request_seconds, &mut self.token_delays]
    }

    fn add(&mut self, lesson: &Lesson, power: Watts, memory: f64) {
        let keep = (-lesson.seconds / memory).exp();
        for sum in self.all() {
            *sum *= keep;
        }
        self.seconds += lesson.seconds;
        self.joules += power.0 * lesson.seconds;
        self.request_seconds += lesson.in_flight * lesson.seconds;
        self.token_delays += lesson.arrived * lesson.delay.map_or(0.0, |delay| delay.0);
    }
}

/// Shares of delay and energy, now and in the long run.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Balance {
    present: Sums,
    long_run: Sums,
}

impl Balance {
    /// Takes a lesson in.
    pub(super) fn push(&mut self, lesson: &Lesson) {
        if let Some(power) = lesson.power {
            self.present.add(lesson, power, PRESENT);
            self.long_run.add(lesson, power, LONG_RUN);
        }
    }

    /// The load changed by `factor`, seen over `seconds`: the present counts no longer than that.
    pub(super) fn change(&mut self, factor: f64, seconds: f64) {
        let keep = (seconds / self.present.seconds.max(f64::EPSILON)).min(1.0);
        for sum in self.present.all() {
            *sum *= keep;
        }
        self.present.request_seconds *= factor;
        self.present.token_delays *= factor;
    }

    /// Weight of the logarithm of delay beside that of power.
    ///
    /// Delay is the geometric mean of end-to-end time and time per output token: both are asked for.
    #[must_use]
    pub(super) fn delay_weight(&self) -> f64 {
        let (now, past) = (&self.present, &self.long_run);
        if now.seconds <= 0.0 {
            return 1.0;
        }
        let relative = |now_sum: f64, past_sum: f64| {
            let rate = now_sum / now.seconds;
            let mean = (past_sum + PRIOR * rate) / (past.seconds + PRIOR);
            if mean > 0.0 { rate / mean } else { 1.0 }
        };
        let requests = relative(now.request_seconds, past.request_seconds);
        let tokens = relative(now.token_delays, past.token_delays);
        let energy = relative(now.joules, past.joules);
        let weight = ((requests * tokens).sqrt() / energy.max(1e-9)).powf(TRUST);
        if weight.is_finite() { weight.clamp(WEIGHTS.0, WEIGHTS.1) } else { 1.0 }
    }

    /// Is every sum usable?
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        let (mut present, mut long_run) = (self.present, self.long_run);
        present.all().into_iter().chain(long_run.all()).all(|sum| sum.is_finite() && *sum >= 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandit::structured::testing::lesson;

    fn after(lessons: impl IntoIterator<Item = (f64, f64)>) -> f64 {
        let mut balance = Balance::default();
        for (in_flight, power) in lessons {
            let more = Lesson { in_flight, arrived: in_flight, power: Some(Watts(power)), ..lesson() };
            balance.push(&more);
        }
        balance.delay_weight()
    }

    #[test]
    fn steady_load_weighs_one() {
        approx::assert_relative_eq!(after([(10.0, 300.0); 200]), 1.0, max_relative = 1e-9);
        approx::assert_relative_eq!(Balance::default().delay_weight(), 1.0);
    }

    #[test]
    fn crowd_at_the_same_power_asks_for_speed_and_a_lull_for_less() {
        let calm = [(5.0, 300.0); 150];
        let crowd = after(calm.into_iter().chain([(50.0, 300.0); 10]));
        let lull = after([(50.0, 300.0); 150].into_iter().chain([(5.0, 300.0); 10]));
        assert!(crowd > 1.3 && crowd <= WEIGHTS.1, "{crowd}");
        assert!((lull - WEIGHTS.0).abs() < 1e-9, "{lull}");
    }

    #[test]
    fn change_of_load_shows_before_the_next_lesson() {
        let mut balance = Balance::default();
        for _ in 0..200 {
            balance.push(&lesson());
        }
        balance.change(5.0, 1.0);
        assert!(balance.delay_weight() > 1.5, "{}", balance.delay_weight());
        assert!(balance.is_sound());
    }
}
