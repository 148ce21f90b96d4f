//! When to park and when to wake.
//!
//! An empty page is no proof of idleness: it is one engine step old, and during a long step everything on it reads 0.
//! So parking takes an empty page *and* a GPU that does nothing *and* clients that ask for nothing, each as far as it is a
//! source; and waking looks at GPU and clients many times a second as well as at the page. How long a gap is waited out
//! is [`GapRule`]'s business.

use serde::{Deserialize, Serialize};

use super::Connections;
use crate::park::gap::{GapDecision, GapRule, GapSettings, GapState, Prices, Sight};
use crate::park::source::{CountedConnections, WakeSource};
use crate::units::{Clocks, Seconds, Time, Watts};

/// Constants of idle handling.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct IdleSettings {
    /// How gaps are waited out.
    pub gap: GapSettings,
    /// Clock while parked.
    pub clocks: Clocks,
    /// Power above this multiple of the parked level is work.
    pub wake_power_ratio: f64,
    /// The GPU's sensors are a source: what they do not show to be quiet is not parked.
    pub utilization: bool,
    /// The 99th percentile of the time to first token is not to rise by more than this share for wakes.
    pub max_ttft_rise: f64,
    /// Connections to the engine are a source, and what counts of them.
    pub connections: Option<CountedConnections>,
}

/// Above this utilisation the GPU does work, whatever the page says.
const QUIET_UTILIZATION_PERCENT: f64 = 10.0;
/// Power above this multiple of the quietest unparked power seen is work.
const QUIET_POWER_RATIO: f64 = 1.4;
/// Energy over the whole window at no more than this multiple of it is none.
const QUIET_COUNTER_RATIO: f64 = 1.1;
/// That level rises by so much a window where nothing but power speaks of work.
const QUIET_RISES: f64 = 1.01;
/// No board draws less: a reading below is none.
const LEAST_POWER: Watts = Watts(1.0);
/// A sensor's flicker is no work.
const WAKE_MARGIN: Watts = Watts(3.0);
/// Time for power to sink after parking before its level counts: a second-long average takes that long.
const LEVEL_SETTLE: Seconds = Seconds(0.3);
/// After a wake power may be that of the parked clocks for so long, on sensors that average it.
const POWER_RISES: Seconds = Seconds(1.5);
/// A client that asks has its work on the page, or never, after this.
const ASKED: Seconds = Seconds(1.0);
/// So many engine steps without work on the page before it is believed: the page is one step old.
const QUIET_STEPS: f64 = 3.0;

/// What the GPUs of the engine show together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Activity {
    /// Sum of board powers.
    pub power: Option<Watts>,
    /// Highest utilisation, percent.
    pub utilization_percent: Option<f64>,
}

/// What was seen at one moment, beside the page.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Look {
    /// Of the GPUs.
    pub activity: Activity,
    /// Of the clients.
    pub connections: Option<Connections>,
    /// Mean power of the GPUs in the window, by their energy counters, where they have them.
    pub window_power: Option<Watts>,
}

/// Decides between parked and serving.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IdleWatch {
    gaps: Option<GapRule>,
    /// Lowest power seen since parking ...
    level: Option<Watts>,
    /// ... or since this.
    level_from: Option<Time>,
    /// Lowest power seen in an empty window while not parked.
    quiet_power: Option<Watts>,
    /// Not parked since, if it ever was.
    up_since: Option<Time>,
    /// The connections at the last look.
    seen: Option<Connections>,
    /// When a client was last seen to ask.
    asked_at: Option<Time>,
    worked_at: Option<Time>,
    /// Length of the engine's steps when it last worked.
    step_time: Option<Seconds>,
}

/// What a window means for idleness.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// There is work.
    Serve,
    /// No work on the page, but not parked (yet).
    Empty,
    /// Park now.
    Park,
    /// Stay parked.
    Stay,
    /// Work is back after this long.
    Wake(WakeSource, Seconds),
}

/// What the page says of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PageSight {
    /// Begin of the window.
    pub start: Time,
    /// There was work in it, or is.
    pub work: bool,
    /// Length of the engine's steps in it, where there were any.
    pub step_time: Option<Seconds>,
}

impl Activity {
    /// Does no sensor tell whether the GPUs work?
    #[must_use]
    pub fn is_unseen(self) -> bool {
        self.power.is_none() && self.utilization_percent.is_none()
    }
}

impl IdleWatch {
    /// Nothing seen yet; without settings nothing is ever parked.
    #[must_use]
    pub fn new(settings: Option<&IdleSettings>) -> Self {
        Self {
            gaps: settings.map(|settings| GapRule::new(&settings.gap)),
            level: None,
            level_from: None,
            quiet_power: None,
            up_since: None,
            seen: None,
            asked_at: None,
            worked_at: None,
            step_time: None,
        }
    }

    /// A window has closed. `may_park` holds parking back, and nothing else, where it is false.
    pub fn on_window(
        &mut self,
        page: PageSight,
        look: &Look,
        settings: Option<&IdleSettings>,
        prices: Prices,
        may_park: bool,
        now: Time,
    ) -> Verdict {
        if page.work {
            self.worked_at = Some(now);
            self.step_time = page.step_time.or(self.step_time);
        }
        let Some((settings, mut gaps)) = settings.zip(self.gaps.take()) else {
            return if page.work { Verdict::Serve } else { Verdict::Empty };
        };
        let parked = gaps.is_parked();
        let asked = self.asked(look, settings, now);
        let work = if page.work {
            Some(WakeSource::Page)
        } else if parked {
            asked.or_else(|| self.busy(look, settings, &gaps, now))
        } else if !self.is_quiet(look, settings) {
            // Not known to be quiet is not idle.
            Some(WakeSource::Unseen)
        } else {
            asked.filter(|_| settings.connections == Some(CountedConnections::Open))
        };
        if !parked {
            self.follow_quiet_power(page, look, work.is_none(), now);
        }
        let proof = work.is_some_and(|work| is_proof(&work));
        let sight =
            Sight { now, idle_since: page.start, work, proof, hold: !may_park || self.is_uncertain(now) };
        let decision = gaps.step(&sight, &settings.gap, prices);
        let parked = gaps.is_parked();
        self.gaps = Some(gaps);
        match decision {
            GapDecision::Park(_) => {
                (self.level, self.level_from) = (None, None);
                Verdict::Park
            }
            GapDecision::Wake(source, span) => {
                self.up_since = Some(now);
                Verdict::Wake(source, span)
            }
            GapDecision::Stay if parked => Verdict::Stay,
            GapDecision::Stay if page.work => Verdict::Serve,
            GapDecision::Stay => Verdict::Empty,
        }
    }

    /// GPUs and clients were looked at between windows: does that end a parked spell?
    pub fn on_look(
        &mut self,
        look: &Look,
        settings: &IdleSettings,
        now: Time,
    ) -> Option<(WakeSource, Seconds)> {
        let asked = self.asked(look, settings, now);
        let mut gaps = self.gaps.take()?;
        let work = if gaps.is_parked() {
            asked.or_else(|| self.busy(look, settings, &gaps, now)).filter(|work| *work != WakeSource::Unseen)
        } else {
            None
        };
        let decision = work.map(|work| {
            let sight = Sight { now, idle_since: now, work: Some(work), proof: is_proof(&work), hold: false };
            gaps.step(&sight, &settings.gap, Prices::default())
        });
        self.gaps = Some(gaps);
        match decision? {
            GapDecision::Wake(source, span) => {
                self.up_since = Some(now);
                Some((source, span))
            }
            GapDecision::Stay | GapDecision::Park(_) => None,
        }
    }

    /// Has a client asked since the last look, or does one that is connected count as asking?
    fn asked(&mut self, look: &Look, settings: &IdleSettings, now: Time) -> Option<WakeSource> {
        let counted = settings.connections?;
        let Some(connections) = look.connections else {
            self.seen = None;
            return (!settings.utilization).then_some(WakeSource::Unseen);
        };
        let fresh = self.seen.replace(connections).is_some_and(|before| {
            connections.opened_total > before.opened_total
                || connections.requests_total > before.requests_total
        });
        if fresh {
            self.asked_at = Some(now);
        }
        let counts = fresh || (counted == CountedConnections::Open && connections.open > 0);
        counts.then_some(WakeSource::Connections { open: connections.open })
    }

    /// Do the sensors of the parked GPUs show work?
    fn busy(
        &mut self,
        look: &Look,
        settings: &IdleSettings,
        gaps: &GapRule,
        now: Time,
    ) -> Option<WakeSource> {
        if !settings.utilization {
            return None;
        }
        let activity = look.activity;
        let GapState::Parked { parked_since, .. } = gaps.state() else { return None };
        if activity.is_unseen() {
            // An empty page alone is no proof, and a parked GPU that works unseen would crawl.
            return Some(WakeSource::Unseen);
        }
        if let Some(power) =
            activity.power.filter(|_| now >= self.level_from.unwrap_or(parked_since + LEVEL_SETTLE))
        {
            let level = self.level.map_or(power.0, |level| level.0.min(power.0));
            self.level = Some(Watts(level));
            if power.0 > settings.wake_power_ratio * level && power.0 > level + WAKE_MARGIN.0 {
                return Some(WakeSource::Power { power, parked: Watts(level) });
            }
        }
        let percent = activity.utilization_percent.filter(|percent| *percent > QUIET_UTILIZATION_PERCENT)?;
        Some(WakeSource::Utilization { percent })
    }

    /// The power of GPUs that are quiet and not parked: the lowest there was. It may have been lower than it ever is again, so
    /// while page and utilisation show no work the level rises by and by.
    fn follow_quiet_power(&mut self, page: PageSight, look: &Look, quiet: bool, now: Time) {
        let risen = self.up_since.is_none_or(|at| now.since(at) >= POWER_RISES);
        let Some(power) = look.activity.power.filter(|_| risen) else { return };
        let idle = look.activity.utilization_percent.is_some_and(|p| p <= QUIET_UTILIZATION_PERCENT);
        if let Some(level) = &mut self.quiet_power
            && !page.work
            && idle
        {
            level.0 = (QUIET_RISES * level.0).max(LEAST_POWER.0).min(power.0.max(level.0));
        }
        if quiet {
            let lowest = self.quiet_power.map_or(power.0, |seen| seen.0.min(power.0));
            self.quiet_power = Some(Watts(lowest));
        }
    }

    fn is_quiet(&self, look: &Look, settings: &IdleSettings) -> bool {
        let activity = look.activity;
        if !settings.utilization {
            return true;
        }
        // Sensors average over up to a second, in which a gap may be over; the counter does not.
        let by_counter = look.window_power.zip(self.quiet_power);
        if by_counter.is_some_and(|(power, quiet)| power.0 <= QUIET_COUNTER_RATIO * quiet.0) {
            return true;
        }
        let by_utilization = activity.utilization_percent.is_none_or(|p| p <= QUIET_UTILIZATION_PERCENT);
        let by_power = match (activity.power, self.quiet_power) {
            (Some(power), Some(quiet)) => power.0 <= QUIET_POWER_RATIO * quiet.0,
            _ => true,
        };
        by_utilization && by_power && !activity.is_unseen()
    }

    /// May there be work that nobody can see yet: on its way to the engine, or in a step that is not over?
    fn is_uncertain(&self, now: Time) -> bool {
        let asked = self.asked_at.is_some_and(|at| now.since(at) < ASKED);
        let stepping = self
            .worked_at
            .zip(self.step_time)
            .is_some_and(|(at, step)| now.since(at) < Seconds(QUIET_STEPS * step.0));
        asked || stepping
    }

    /// Parked now?
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.gaps.as_ref().is_some_and(GapRule::is_parked)
    }

    /// The clocks of the parked GPU were changed: its power says nothing for a while.
    pub fn disturbed(&mut self, now: Time) {
        (self.level, self.level_from) = (None, Some(now + POWER_RISES));
    }

    /// When work was last seen on the page.
    #[must_use]
    pub fn worked_at(&self) -> Option<Time> {
        self.worked_at
    }

    /// The gap under way, and what was learned of earlier ones.
    #[must_use]
    pub fn gaps(&self) -> Option<&GapRule> {
        self.gaps.as_ref()
    }

    /// A wake took so long until the clocks were back.
    pub fn woke(&mut self, took: Seconds, settings: &IdleSettings) {
        if let Some(gaps) = &mut self.gaps {
            gaps.woke(took, &settings.gap);
        }
    }

    /// Something else took the clocks over (outage, restart): not parked, nothing counted.
    pub fn interrupt(&mut self, now: Time) {
        if let Some(gaps) = &mut self.gaps {
            if gaps.is_parked() {
                self.up_since = Some(now);
            }
            gaps.interrupt();
        }
    }
}

/// Is this the work itself, and not just somebody who may want some?
fn is_proof(work: &WakeSource) -> bool {
    !matches!(work, WakeSource::Connections { .. } | WakeSource::Unseen)
}

#[cfg(test)]
mod tests;
