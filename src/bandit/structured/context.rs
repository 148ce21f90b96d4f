//! The load of the moment: how fast tokens arrive, averaged long enough not to take noise for a change.
//!
//! Rates of arrival, not tokens per step: tokens per step answer to the clock, and what answers to the clock must be
//! predicted at each clock. Short averages would turn noise into a bias towards high clocks, because the predicted step
//! time is convex in the rates.

use serde::{Deserialize, Serialize};

use super::window::Lesson;

/// Averaging time: at least this many seconds ...
const SHORTEST: f64 = 15.0;
/// ... and this many finished requests ...
const REQUESTS: f64 = 30.0;
/// ... but no longer than this.
const LONGEST: f64 = 90.0;
/// A wholly busy engine counts as this much less than wholly busy.
const LEAST_IDLE: f64 = 0.018;

/// The load as predictions need it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Prompt tokens to compute that arrive per second.
    pub prefill: f64,
    /// Tokens to generate that arrive per second.
    pub decode: f64,
    /// Share of the time in which the engine worked, 0 to 1.
    pub busy: f64,
    /// Core clock at which that share was seen, MHz.
    pub clock: f64,
}

/// Decayed sums over the lessons.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Context {
    seconds: f64,
    busy_seconds: f64,
    prefill: f64,
    decode: f64,
    /// Clock times busy seconds.
    clock: f64,
    /// Requests and seconds, decayed slowly: how long to average.
    requests: f64,
    request_seconds: f64,
}

impl Context {
    /// Takes a lesson in.
    pub fn push(&mut self, lesson: &Lesson) {
        let keep = (-lesson.seconds / LONGEST).exp();
        self.requests = keep * self.requests + lesson.finished;
        self.request_seconds = keep * self.request_seconds + lesson.seconds;
        let rate = self.requests / self.request_seconds.max(f64::EPSILON);
        self.fade(lesson.seconds, (REQUESTS / rate.max(1e-9)).clamp(SHORTEST, LONGEST));
        let busy = lesson.busy * lesson.seconds;
        self.seconds += lesson.seconds;
        self.busy_seconds += busy;
        self.prefill += lesson.prefill;
        self.decode += lesson.decode;
        self.clock += lesson.clock * busy;
    }

    fn fade(&mut self, seconds: f64, memory: f64) {
        let keep = (-seconds / memory).exp();
        for sum in
            [&mut self.seconds, &mut self.busy_seconds, &mut self.prefill, &mut self.decode, &mut self.clock]
        {
            *sum *= keep;
        }
    }

    /// The load of the moment; `None` before the first lesson.
    #[must_use]
    pub fn load(&self) -> Option<Load> {
        (self.busy_seconds > 0.0).then(|| Load {
            prefill: self.prefill / self.seconds,
            decode: self.decode / self.seconds,
            busy: (self.busy_seconds / self.seconds).min(1.0 - LEAST_IDLE),
            clock: self.clock / self.busy_seconds,
        })
    }

    /// Is every sum usable?
    #[must_use]
    pub fn is_sound(&self) -> bool {
        [
            self.seconds,
            self.busy_seconds,
            self.prefill,
            self.decode,
            self.clock,
            self.requests,
            self.request_seconds,
        ]
        .into_iter()
        .all(|sum| sum.is_finite() && sum >= 0.0)
    }
}
