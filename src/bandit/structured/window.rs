//! Windows that teach: tick windows joined until they hold enough engine steps to mean something.
//!
//! A tick of 0.3 s is too short: its inter-token latency scatters by 100 %, and a long prompt shows on the page in one
//! lump when its last chunk is done. One tick after each clock change is left out, while the batch settles.

use serde::{Deserialize, Serialize};

use crate::bandit::Evidence;
use crate::metrics::window::Window;
use crate::reward::delay;
use crate::reward::energy::{EnergyMeter, group_power};
use crate::units::{Mhz, Seconds, Target, Watts};

/// So many ticks without work belong to a window with work around them; more end it.
const GAP_TICKS: usize = 3;
/// Ticks before the first one with work in which the GPU was busier than this belong to the work: the page is late.
const EARLY_UTILIZATION: f64 = 0.1;
/// A window that a gap ends counts if it has this share of the ticks and steps that it should have.
const CUT_SHORT: f64 = 0.5;

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
pub(super) struct Lesson {
    /// When, in seconds of learning time (which stands still while nothing is learned).
    pub at: f64,
    /// Its length in seconds.
    pub seconds: f64,
    /// Engine steps in it.
    pub steps: f64,
    /// Time per output token, where there was a sample.
    pub delay: Option<Seconds>,
    /// Mean power, where the counter ticked.
    pub power: Option<Watts>,
    /// Prompt tokens computed (prefix hits left out).
    pub prefill: f64,
    /// Tokens generated.
    pub decode: f64,
    /// Requests finished.
    pub finished: f64,
    /// Requests that arrived.
    pub arrived: f64,
    /// Mean number of requests in the engine.
    pub in_flight: f64,
    /// Mean core clock read back, in MHz.
    pub clock: f64,
    /// What was in force.
    pub target: Target,
    /// Share of the ticks in which power or temperature held the clock down.
    pub capped: f64,
    /// Share of the time in which the engine worked.
    pub busy: f64,
    /// Was that share measured, rather than derived from the delay?
    pub busy_measured: bool,
}

impl Lesson {
    /// Prompt tokens per engine step.
    #[must_use]
    pub(super) fn prefill_per_step(&self) -> f64 {
        self.prefill / self.steps
    }

    /// Generated tokens per engine step.
    #[must_use]
    pub(super) fn decode_per_step(&self) -> f64 {
        self.decode / self.steps
    }

    /// Is every number usable?
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let natural = |value: f64| value.is_finite() && value >= 0.0;
        [self.seconds, self.steps, self.clock, self.busy].into_iter().all(positive)
            && self.busy <= 1.0
            && self.at.is_finite()
            && self.delay.is_none_or(|delay| positive(delay.0))
            && self.power.is_none_or(|power| positive(power.0))
            && [self.prefill, self.decode, self.finished, self.arrived, self.in_flight, self.capped]
                .into_iter()
                .all(natural)
    }
}

/// What is kept of one tick until it is joined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Tick {
    window: Window,
    clock: f64,
    capped: bool,
    utilization: Option<f64>,
}

/// A window in the making. Sums are over its ticks, weighted by their length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Open {
    window: Window,
    ticks: u32,
    clock: f64,
    capped: f64,
    utilization: Option<f64>,
    /// Was there work at every look?
    never_idle: bool,
}

/// Joins ticks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Joiner {
    running: Option<Target>,
    open: Option<Open>,
    /// Ticks without work since the last one with it.
    gap: Vec<Tick>,
}

impl Joiner {
    /// Takes a tick; gives a lesson when it completes one, stamped `at`.
    pub(super) fn push(&mut self, evidence: &Evidence<'_>, length: Length, at: f64) -> Option<Lesson> {
        if self.running != evidence.ran_at {
            // The first tick at a clock is its settling time.
            *self = Self { running: evidence.ran_at, ..Self::default() };
            return None;
        }
        let target = self.running?;
        let asked = target.clocks().map(|clocks| clocks.core);
        let Some(clock) = evidence.read_core.filter(|clock| clock.0 > 0).or(asked) else {
            *self = Self { running: self.running, ..Self::default() };
            return None;
        };
        let tick = Tick {
            window: evidence.window.clone(),
            clock: Mhz::as_f64(clock),
            capped: evidence.capped,
            utilization: evidence.utilization,
        };
        let is_enough = if evidence.work {
            self.take_work(tick);
            let open = self.open.as_ref()?;
            open.holds(length, 1.0) || open.window.elapsed >= length.longest
        } else {
            self.gap.push(tick);
            if self.gap.len() <= GAP_TICKS {
                return None;
            }
            self.gap.remove(0);
            let cut_short = self.open.as_ref().is_some_and(|open| open.holds(length, CUT_SHORT));
            if !cut_short {
                self.open = None;
            }
            cut_short
        };
        if !is_enough {
            return None;
        }
        let open = self.open.take()?;
        open.lesson(target, evidence.meters, at).filter(Lesson::is_sound)
    }

    /// Drops the window in the making: something else had the clocks.
    pub(super) fn interrupt(&mut self) {
        *self = Self::default();
    }

    fn take_work(&mut self, tick: Tick) {
        let gap = std::mem::take(&mut self.gap);
        let early = if self.open.is_some() {
            0
        } else {
            gap.iter()
                .rposition(|tick| tick.utilization.is_none_or(|u| u < EARLY_UTILIZATION))
                .map_or(0, |at| at + 1)
        };
        for tick in gap.into_iter().skip(early).chain([tick]) {
            if !self.open.as_mut().is_some_and(|open| open.joins(&tick)) {
                self.open = Some(Open::of(tick));
            }
        }
    }
}

impl Open {
    fn of(tick: Tick) -> Self {
        let weight = tick.window.elapsed.0;
        Self {
            never_idle: never_idle(&tick.window),
            ticks: 1,
            clock: weight * tick.clock,
            capped: weight * f64::from(u8::from(tick.capped)),
            utilization: tick.utilization.map(|u| weight * u),
            window: tick.window,
        }
    }

    /// Joins a tick, unless time is missing in between.
    fn joins(&mut self, tick: &Tick) -> bool {
        let follows = tick.window.start.since(self.window.end).0.abs() < 1e-6;
        if !follows || self.window.extend(&tick.window).is_err() {
            return false;
        }
        let weight = tick.window.elapsed.0;
        self.ticks += 1;
        self.clock += weight * tick.clock;
        self.capped += weight * f64::from(u8::from(tick.capped));
        self.utilization = self.utilization.zip(tick.utilization).map(|(sum, u)| sum + weight * u);
        self.never_idle &= never_idle(&tick.window);
        true
    }

    /// Has it `share` of what a window should have?
    fn holds(&self, length: Length, share: f64) -> bool {
        f64::from(self.ticks) >= share * f64::from(length.ticks)
            && steps(&self.window).is_some_and(|steps| steps >= share * length.steps)
    }

    fn lesson(&self, target: Target, meters: &[EnergyMeter], at: f64) -> Option<Lesson> {
        let window = &self.window;
        let seconds = window.elapsed.0;
        let steps = steps(window).filter(|steps| *steps > 0.0)?;
        let measured = self.utilization.map(|sum| sum / seconds);
        // llama.cpp: tokens and their times are of requests that ended, which began at other clocks. Its steps are
        // counted at once, and give each running request a token.
        let at_once = window.engine_steps().is_some() && window.counts_tokens_at_end();
        let all_busy = self.never_idle.then_some(1.0);
        let busy_known = measured.or(all_busy);
        // A step's time on the host is no time of the GPU, but a request waits for it.
        let delay = match all_busy.or(measured).filter(|_| at_once) {
            Some(busy) => Some(Seconds(busy.clamp(LEAST_BUSY, 1.0) * seconds / steps)),
            None => delay(window).map(|(delay, _)| delay),
        };
        let running = window.mean.running.filter(|_| at_once).map(|running| running * steps);
        let derived = delay.map_or(1.0, |delay| steps * delay.0 / seconds);
        Some(Lesson {
            at,
            seconds,
            steps,
            delay,
            power: group_power(meters, window.start, window.end).map(|(power, _)| power),
            prefill: (window.prompt_tokens.unwrap_or(0.0) - window.prefix_hits.unwrap_or(0.0)).max(0.0),
            decode: running.or(window.generation_tokens)?,
            finished: window.finished.unwrap_or(0.0),
            arrived: window.arrivals(),
            in_flight: window.mean.in_flight(),
            clock: self.clock / seconds,
            target,
            capped: self.capped / seconds,
            busy: busy_known.unwrap_or(derived).clamp(LEAST_BUSY, 1.0),
            busy_measured: busy_known.is_some(),
        })
    }
}

/// A window with work in it was never wholly idle.
const LEAST_BUSY: f64 = 0.01;

/// Did both pages show requests?
fn never_idle(window: &Window) -> bool {
    [window.at_start, window.at_end]
        .iter()
        .all(|page| page.running.is_none_or(|running| running > 0.0) || page.waiting.is_some_and(|w| w > 0.0))
}

/// Engine steps in a window; for an engine that does not count them, as many as give every running request one token
/// per step.
fn steps(window: &Window) -> Option<f64> {
    window.engine_steps().or_else(|| {
        let running = window.mean.running.filter(|running| *running > 0.0)?;
        Some(window.generation_tokens? / running.max(1.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Histogram, Signals, Snapshot};
    use crate::units::Time;

    /// A page of llama.cpp at `at`, 20 ms a step from the start on: 4 requests run, and `ended` tokens of requests that
    /// took 50 ms for each are counted.
    fn page(at: f64, ended: f64) -> Snapshot {
        let mean_of = |sum: f64, count: f64| Some(Histogram { sum, count, buckets: vec![] });
        let signals = Signals {
            running: Some(4.0),
            generation_tokens: Some(ended),
            step_tokens: mean_of(ended, at / 0.02),
            itl: mean_of(0.05 * ended, ended),
            ..Signals::default()
        };
        Snapshot { at: Time(at), latency: Seconds(0.0), signals, refused: vec![], engine: None }
    }

    fn lesson(running_at_end: f64, ended: f64) -> Lesson {
        let mut last = page(2.0, 500.0 + ended);
        last.signals.running = Some(running_at_end);
        let window = Window::between(&page(0.0, 500.0), &last).unwrap();
        let open = Open::of(Tick { window, clock: 1400.0, capped: false, utilization: Some(0.5) });
        open.lesson(Target::Default, &[], 0.0).unwrap()
    }

    #[test]
    fn where_tokens_are_counted_when_requests_end_steps_tell_the_delay_of_the_window() {
        for ended in [0.0, 300.0] {
            let all_busy = lesson(4.0, ended);
            approx::assert_relative_eq!(all_busy.delay.unwrap().0, 0.02, max_relative = 1e-9);
            approx::assert_relative_eq!(all_busy.decode, 4.0 * all_busy.steps, max_relative = 1e-9);
            let half_busy = lesson(0.0, ended);
            approx::assert_relative_eq!(half_busy.delay.unwrap().0, 0.01, max_relative = 1e-9);
        }
    }
}
