//! The load of the moment: how fast tokens arrive, averaged long enough not to take noise for a change.
//!
//! Rates of arrival, not tokens per step: tokens per step answer to the clock, and what answers to the clock must be
//! predicted at each clock. Short averages would turn noise into a bias towards high clocks, because the predicted step
//! time is convex in the rates. What is too sudden for the average, [`super::surge`] sees.

use serde::{Deserialize, Serialize};

use super::balance::Balance;
use super::loop_kind::LoopKind;
use super::surge::Change;
use super::window::Lesson;
use crate::units::Seconds;

/// Averaging time: at least this many seconds ...
const SHORTEST: f64 = 15.0;
/// ... and this many finished requests ...
const REQUESTS: f64 = 30.0;
/// ... but no longer than this.
const LONGEST: f64 = 90.0;
/// A wholly busy engine counts as this much less than wholly busy.
const LEAST_IDLE: f64 = 0.018;
/// Fewer requests do not lower the expected tokens by more than this factor at once: they may be longer ones.
const LEAST_FACTOR: f64 = 0.5;

/// The load as predictions need it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Load {
    /// Prompt tokens to compute that arrive per second.
    pub prefill: f64,
    /// Tokens to generate that arrive per second.
    pub decode: f64,
    /// Share of the time in which the engine worked, 0 to 1.
    pub busy: f64,
    /// Core clock at which that share was seen, MHz.
    pub clock: f64,
    /// Engine steps per second at that clock.
    pub steps: f64,
    /// Time per output token that the tokens met with, where there was a sample.
    pub delay: Option<Seconds>,
    /// How much the arrivals wait for answers, 0 (not at all) to 1.
    pub closed: f64,
}

/// Decayed sums over the lessons.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Context {
    seconds: f64,
    busy_seconds: f64,
    prefill: f64,
    decode: f64,
    steps: f64,
    /// Requests that arrived.
    arrived: f64,
    /// Clock times busy seconds.
    clock: f64,
    /// Time per output token times tokens, and those tokens.
    delay: f64,
    delayed_tokens: f64,
    /// Finished requests and seconds, decayed slowly: how long to average.
    requests: f64,
    request_seconds: f64,
    balance: Balance,
    loop_kind: LoopKind,
}

impl Context {
    /// Takes a tick of `seconds` in, at whose end there were `in_flight` requests.
    pub(super) fn on_tick(&mut self, in_flight: f64, seconds: f64) {
        self.loop_kind.push(in_flight, seconds);
    }

    /// Takes a lesson in.
    pub(super) fn push(&mut self, lesson: &Lesson) {
        let keep = (-lesson.seconds / LONGEST).exp();
        self.requests = keep * self.requests + lesson.finished;
        self.request_seconds = keep * self.request_seconds + lesson.seconds;
        let rate = self.requests / self.request_seconds.max(f64::EPSILON);
        self.scale((-lesson.seconds / (REQUESTS / rate.max(1e-9)).clamp(SHORTEST, LONGEST)).exp());
        let busy = lesson.busy * lesson.seconds;
        self.seconds += lesson.seconds;
        self.busy_seconds += busy;
        self.prefill += lesson.prefill;
        self.decode += lesson.decode;
        self.steps += lesson.steps;
        self.arrived += lesson.arrived;
        self.clock += lesson.clock * busy;
        if let Some(delay) = lesson.delay {
            self.delay += delay.0 * lesson.decode;
            self.delayed_tokens += lesson.decode;
        }
        self.balance.push(lesson);
    }

    /// The sums of what was seen, without those that say how long to average.
    fn sums(&mut self) -> [&mut f64; 9] {
        [
            &mut self.seconds,
            &mut self.busy_seconds,
            &mut self.prefill,
            &mut self.decode,
            &mut self.steps,
            &mut self.arrived,
            &mut self.clock,
            &mut self.delay,
            &mut self.delayed_tokens,
        ]
    }

    fn scale(&mut self, factor: f64) {
        for sum in self.sums() {
            *sum *= factor;
        }
    }

    /// Requests that arrive per second; `None` before the first lesson.
    #[must_use]
    pub(super) fn rate(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.arrived / self.seconds)
    }

    /// The load has changed: the average counts no longer than the change has been seen, and in its measure.
    pub(super) fn change(&mut self, change: Change) {
        if self.seconds <= 0.0 {
            return;
        }
        self.scale((change.seconds / self.seconds).min(1.0));
        let factor = change.factor.max(LEAST_FACTOR);
        let busy = (self.busy_seconds / self.seconds).min(1.0 - LEAST_IDLE);
        let mean_clock = self.clock / self.busy_seconds.max(f64::EPSILON);
        // The empty spells of a Poisson stream: with so much more work, a power of what there was.
        self.busy_seconds = self.seconds * (1.0 - (1.0 - busy).powf(factor));
        self.clock = mean_clock * self.busy_seconds;
        self.prefill *= factor;
        self.decode *= factor;
        self.arrived *= change.factor;
        (self.delay, self.delayed_tokens) = (0.0, 0.0);
        self.balance.change(factor, change.seconds);
    }

    /// The load of the moment; `None` before the first lesson.
    #[must_use]
    pub(super) fn load(&self) -> Option<Load> {
        (self.busy_seconds > 0.0).then(|| Load {
            prefill: self.prefill / self.seconds,
            decode: self.decode / self.seconds,
            busy: (self.busy_seconds / self.seconds).min(1.0 - LEAST_IDLE),
            clock: self.clock / self.busy_seconds,
            steps: self.steps / self.seconds,
            delay: (self.delayed_tokens > 0.0).then(|| Seconds(self.delay / self.delayed_tokens)),
            closed: self.loop_kind.closed(),
        })
    }

    /// Weight of delay beside power at present: see [`Balance`].
    #[must_use]
    pub(super) fn delay_weight(&self) -> f64 {
        self.balance.delay_weight()
    }

    /// Is every sum usable?
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        let mut copy = *self;
        let usable = |sum: &f64| sum.is_finite() && *sum >= 0.0;
        copy.sums().into_iter().all(|sum| usable(sum))
            && [self.requests, self.request_seconds].iter().all(usable)
            && self.balance.is_sound()
            && self.loop_kind.is_sound()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandit::structured::testing::lesson;

    fn settled() -> Context {
        let mut context = Context::default();
        for _ in 0..100 {
            context.push(&lesson());
        }
        context
    }

    #[test]
    fn steady_lessons_give_their_own_rates() {
        let (load, one) = (settled().load().unwrap(), lesson());
        approx::assert_relative_eq!(load.prefill, one.prefill / one.seconds, max_relative = 1e-9);
        approx::assert_relative_eq!(load.decode, one.decode / one.seconds, max_relative = 1e-9);
        approx::assert_relative_eq!(load.busy, one.busy, max_relative = 1e-9);
        approx::assert_relative_eq!(load.clock, one.clock, max_relative = 1e-9);
        approx::assert_relative_eq!(load.delay.unwrap().0, one.delay.unwrap().0, max_relative = 1e-9);
    }

    #[test]
    fn surge_multiplies_the_rates_at_once() {
        let mut context = Context::default();
        for _ in 0..100 {
            context.push(&Lesson { busy: 0.3, ..lesson() });
        }
        let before = context.load().unwrap();
        context.change(Change { factor: 4.0, seconds: 1.0 });
        let after = context.load().unwrap();
        approx::assert_relative_eq!(after.prefill, 4.0 * before.prefill, max_relative = 1e-9);
        approx::assert_relative_eq!(after.decode, 4.0 * before.decode, max_relative = 1e-9);
        approx::assert_relative_eq!(1.0 - after.busy, (1.0 - before.busy).powi(4), max_relative = 1e-9);
        approx::assert_relative_eq!(after.clock, before.clock, max_relative = 1e-9);
        assert_eq!(after.delay, None);
        assert!(context.is_sound());
    }

    #[test]
    fn lull_is_believed_by_half_until_lessons_confirm_it() {
        let mut context = settled();
        let before = context.load().unwrap();
        context.change(Change { factor: 0.1, seconds: 3.0 });
        approx::assert_relative_eq!(
            context.load().unwrap().prefill,
            0.5 * before.prefill,
            max_relative = 1e-9
        );
        for _ in 0..10 {
            context.push(&Lesson { prefill: 0.0, ..lesson() });
        }
        assert!(context.load().unwrap().prefill < 0.1 * before.prefill);
    }
}
