//! Windows that teach: tick windows joined until they hold enough engine steps to mean something.
//!
//! A tick of 0.3 s is too short: its inter-token latency scatters by 100 %, and a long prompt shows on the page in one
//! lump when its last chunk is done. One tick after each clock change is left out, while the batch settles.

use serde::{Deserialize, Serialize};

use crate::bandit::{Evidence, Target};
use crate::metrics::window::Window;
use crate::reward::delay;
use crate::reward::energy::group_power;
use crate::units::{Mhz, Seconds};

/// How long a window has to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Length {
    /// At least this many ticks ...
    pub ticks: u32,
    /// ... and this many engine steps ...
    pub steps: f64,
    /// ... but no longer than this.
    pub longest: Seconds,
}

/// What the learner keeps of a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lesson {
    /// When, in seconds of learning time (which stands still while nothing is learned).
    pub at: f64,
    /// Its length in seconds.
    pub seconds: f64,
    /// Engine steps in it.
    pub steps: f64,
    /// Time per output token, in seconds, where there was a sample.
    pub delay: Option<f64>,
    /// Mean power in watts, where the counter ticked.
    pub power: Option<f64>,
    /// Prompt tokens computed (prefix hits left out).
    pub prefill: f64,
    /// Tokens generated.
    pub decode: f64,
    /// Requests finished.
    pub finished: f64,
    /// Mean core clock read back, in MHz.
    pub clock: f64,
    /// What was in force.
    pub target: Target,
    /// Share of the ticks in which power or temperature held the clock down.
    pub capped: f64,
    /// Was there work at every look?
    pub never_idle: bool,
}

impl Lesson {
    /// Prompt tokens per engine step.
    #[must_use]
    pub fn prefill_per_step(&self) -> f64 {
        self.prefill / self.steps
    }

    /// Generated tokens per engine step.
    #[must_use]
    pub fn decode_per_step(&self) -> f64 {
        self.decode / self.steps
    }

    /// Share of the time in which the engine worked: `min(1, steps · delay / seconds)`.
    #[must_use]
    pub fn busy(&self) -> f64 {
        match self.delay {
            Some(delay) => (self.steps * delay / self.seconds).min(1.0),
            None => 1.0,
        }
    }

    /// Is every number usable?
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let natural = |value: f64| value.is_finite() && value >= 0.0;
        positive(self.seconds)
            && positive(self.steps)
            && positive(self.clock)
            && self.at.is_finite()
            && self.delay.is_none_or(positive)
            && self.power.is_none_or(positive)
            && [self.prefill, self.decode, self.finished, self.capped].into_iter().all(natural)
    }
}

/// A window in the making.
#[derive(Debug, Clone, PartialEq)]
struct Open {
    window: Window,
    ticks: u32,
    clock_seconds: f64,
    capped_ticks: u32,
    never_idle: bool,
}

/// Joins ticks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Joiner {
    running: Option<Target>,
    open: Option<Open>,
}

impl Joiner {
    /// Takes a tick; gives a lesson when it completes one. `fallback` is the clock to assume where none is read back.
    pub fn push(
        &mut self,
        evidence: &Evidence<'_>,
        length: Length,
        fallback: Option<Mhz>,
        at: f64,
    ) -> Option<Lesson> {
        if self.running != evidence.ran_at {
            // The first tick at a clock is its settling time.
            self.running = evidence.ran_at;
            self.open = None;
            return None;
        }
        let target = self.running?;
        let asked = target.clocks().map(|clocks| clocks.core);
        let Some(clock) = evidence.read_core.filter(|clock| clock.0 > 0).or(asked).or(fallback) else {
            self.open = None;
            return None;
        };
        self.add(evidence.window, clock, evidence.capped);
        let open = self.open.as_ref()?;
        let steps = steps(&open.window);
        let enough = open.ticks >= length.ticks && steps.is_some_and(|steps| steps >= length.steps);
        if !enough && open.window.elapsed < length.longest {
            return None;
        }
        let open = self.open.take()?;
        open.lesson(target, steps?, evidence, at).filter(Lesson::is_sound)
    }

    /// Drops the window in the making: something else had the clocks.
    pub fn interrupt(&mut self) {
        *self = Self::default();
    }

    fn add(&mut self, tick: &Window, clock: Mhz, capped: bool) {
        // A gap between ticks is time without work: what is before it and what is after it do not belong together.
        let follows = |open: &Open| tick.start.since(open.window.end).0.abs() < 1e-6;
        let idle = [tick.at_start, tick.at_end].iter().any(|gauges| {
            gauges.running.is_some_and(|running| running <= 0.0) && gauges.waiting.unwrap_or(0.0) <= 0.0
        });
        let joined = self.open.take().filter(follows).and_then(|mut open| {
            open.window.extend(tick).ok()?;
            Some(open)
        });
        let mut open = joined.unwrap_or_else(|| Open {
            window: tick.clone(),
            ticks: 0,
            clock_seconds: 0.0,
            capped_ticks: 0,
            never_idle: true,
        });
        open.ticks += 1;
        open.clock_seconds += clock.as_f64() * tick.elapsed.0;
        open.capped_ticks += u32::from(capped);
        open.never_idle &= !idle;
        self.open = Some(open);
    }
}

impl Open {
    fn lesson(&self, target: Target, steps: f64, evidence: &Evidence<'_>, at: f64) -> Option<Lesson> {
        let window = &self.window;
        let hits = window.prefix_hits.unwrap_or(0.0);
        Some(Lesson {
            at,
            seconds: window.elapsed.0,
            steps: (steps > 0.0).then_some(steps)?,
            delay: delay(window).map(|(delay, _)| delay.0),
            power: group_power(evidence.meters, window.start, window.end).map(|(power, _)| power.0),
            prefill: (window.prompt_tokens.unwrap_or(0.0) - hits).max(0.0),
            decode: window.generation_tokens?,
            finished: window.finished.unwrap_or(0.0),
            clock: self.clock_seconds / window.elapsed.0,
            target,
            capped: f64::from(self.capped_ticks) / f64::from(self.ticks),
            never_idle: self.never_idle,
        })
    }
}

/// Engine steps in a window; for an engine that does not count them, as many as give every running request one token
/// per step.
fn steps(window: &Window) -> Option<f64> {
    window.engine_steps().or_else(|| {
        let running = window.mean.running.filter(|running| *running > 0.0)?;
        Some(window.generation_tokens? / running.max(1.0))
    })
}
