//! Who says that there is work, and what follows from it: parked, woken, or down for heat.
//!
//! Without a server the sensors of the GPUs and the connections say it. Beside one its page has the last word, but an
//! empty page is no proof of idleness: it is one step old, and during a long step everything on it reads 0. So parking
//! takes an empty page *and* a GPU that does nothing *and* clients that ask for nothing, each as far as it is a source;
//! and a parked GPU wakes by its sensors and by clients between two pages, too. With a server or without, an instance
//! that is said to work holds the clocks up; one that is said to be idle proves nothing. How long a gap is waited out
//! is [`GapRule`]'s business.

pub(super) mod v3;

use serde::{Deserialize, Serialize};

use super::gap::{GapDecision, GapRule, GapState, Prices, Sight};
use super::sample::Sample;
use super::settings::Settings;
use super::source::{Connections, CountedConnections, WakeSource};
use crate::units::{Seconds, Time, Watts};

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
/// So many server steps without work on the page before it is believed: the page is one step old.
const QUIET_STEPS: f64 = 3.0;

/// Where a group stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum State {
    /// Work is there, or may be.
    Serving,
    /// No source says work; not parked yet.
    Quiet {
        /// Since when.
        since: Time,
    },
    /// Parked, since nobody uses it.
    Parked {
        /// Since when it has been idle.
        idle_since: Time,
    },
    /// Parked, since it is too hot.
    Hot,
}

impl State {
    /// Its name in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "SERVING",
            Self::Quiet { .. } => "QUIET",
            Self::Parked { .. } => "PARKED",
            Self::Hot => "HOT",
        }
    }

    /// Are its clocks down?
    #[must_use]
    pub fn is_down(self) -> bool {
        matches!(self, Self::Parked { .. } | Self::Hot)
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Decision {
    Stay,
    /// Clocks down: idle for so long.
    Park(Seconds),
    /// Clocks down: too hot, degrees Celsius.
    Cool(f64),
    /// Cool again, and idle: they stay down.
    Cooled,
    /// Clocks back: parked for so long (0 after heat).
    Wake(WakeSource, Seconds),
}

/// Decides for one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Rule {
    settings: Settings,
    gaps: GapRule,
    hot: bool,
    /// Lowest power seen since parking ...
    level: Option<Watts>,
    /// ... or since this.
    level_from: Option<Time>,
    /// Lowest power seen in an empty window while not parked.
    quiet_power: Option<Watts>,
    /// Not parked since, if it ever was.
    up_since: Option<Time>,
    /// The connections at the last sample.
    connections: Option<Connections>,
    /// When a client was last seen to ask.
    asked_at: Option<Time>,
    /// When work was last seen on the page.
    worked_at: Option<Time>,
    /// Length of the server's steps when it last worked.
    step_time: Option<Seconds>,
}

impl Rule {
    /// Of a group at its driver's clocks, with nothing seen yet.
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            gaps: GapRule::new(&settings.gap),
            hot: false,
            level: None,
            level_from: None,
            quiet_power: None,
            up_since: None,
            connections: None,
            asked_at: None,
            worked_at: None,
            step_time: None,
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Other constants from now on. What was learned of gaps and wakes stays.
    pub(super) fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    pub(super) fn state(&self) -> State {
        match self.gaps.state() {
            _ if self.hot => State::Hot,
            GapState::Serving => State::Serving,
            GapState::Quiet { since } => State::Quiet { since },
            GapState::Parked { idle_since, .. } => State::Parked { idle_since },
        }
    }

    /// Since when it has been parked, if it is; not while it is down for heat.
    pub(super) fn parked_since(&self) -> Option<Time> {
        match self.gaps.state() {
            GapState::Parked { parked_since, .. } => Some(parked_since),
            _ => None,
        }
    }

    /// After the start of the gap under way, or of the next: parked this late.
    pub(super) fn park_after(&self, prices: Prices) -> Seconds {
        self.gaps.park_after(&self.settings.gap, prices)
    }

    /// Has nobody asked in this last span, and is nobody connected? Over connections that are kept open a server's
    /// requests are heard.
    pub(super) fn nobody_asked(&self, span: Seconds, now: Time) -> bool {
        let connected = |seen: &Connections| seen.open > 0 && !self.settings.page;
        self.connections.as_ref().is_some_and(|seen| !connected(seen))
            && self.asked_at.is_none_or(|at| now.since(at) > span)
    }

    /// Something was seen.
    pub(super) fn step(&mut self, sample: &Sample, prices: Prices, may_park: bool) -> Decision {
        let now = sample.now;
        if let Some(page) = sample.page.filter(|page| page.work) {
            self.worked_at = Some(now);
            self.step_time = page.step_time.or(self.step_time);
        }
        let asked = self.asked(sample);
        let work = self.work(sample, asked);
        if !self.gaps.is_parked() {
            self.follow_quiet_power(sample, work.is_none());
        }
        if let Some(temperature_c) = self.heat(sample) {
            if self.hot {
                return Decision::Stay;
            }
            self.gaps.interrupt();
            self.hot = true;
            return Decision::Cool(temperature_c);
        }
        if std::mem::take(&mut self.hot) {
            let Some(work) = work else {
                self.gaps.parked_already(now);
                return Decision::Cooled;
            };
            return Decision::Wake(work, Seconds(0.0));
        }
        if self.settings.page && sample.page.is_none() && work.is_none() {
            return Decision::Stay;
        }
        let sight = Sight {
            now,
            idle_since: sample.page.map_or(now, |page| page.start),
            work,
            proof: work.is_some_and(|work| self.is_proof(&work)),
            hold: !may_park || self.is_uncertain(now),
        };
        match self.gaps.step(&sight, &self.settings.gap, prices) {
            GapDecision::Stay => Decision::Stay,
            GapDecision::Park(idle) => {
                (self.level, self.level_from) = (None, None);
                Decision::Park(idle)
            }
            GapDecision::Wake(source, span) => {
                self.up_since = Some(now);
                Decision::Wake(source, span)
            }
        }
    }

    /// Which source says, or cannot rule out, that there is work? Between two pages only a GPU that is down is judged.
    fn work(&mut self, sample: &Sample, asked: Option<WakeSource>) -> Option<WakeSource> {
        if sample.working > 0 {
            return Some(WakeSource::Instances { working: sample.working });
        }
        let is_seen = |work: &WakeSource| *work != WakeSource::Unseen;
        if !self.settings.page {
            let sensed = self.sensed(sample);
            let sources =
                self.settings.utilization_threshold_percent.is_some() || self.settings.connections.is_some();
            return sensed
                .filter(is_seen)
                .or(asked.filter(is_seen))
                .or(sensed)
                .or(asked)
                .or((!sources).then_some(WakeSource::Unseen));
        }
        match sample.page {
            Some(page) if page.work => Some(WakeSource::Page),
            page if self.state().is_down() => {
                // That nobody sees the GPU is judged once a window.
                asked.or_else(|| self.sensed(sample)).filter(|work| page.is_some() || is_seen(work))
            }
            // Not known to be quiet is not idle.
            Some(_) if !self.is_quiet(sample) => Some(WakeSource::Unseen),
            Some(_) => asked.filter(|_| self.settings.connections == Some(CountedConnections::Open)),
            None => None,
        }
    }

    /// Has a client asked since the last sample, or does one that is connected count as asking?
    fn asked(&mut self, sample: &Sample) -> Option<WakeSource> {
        let counted = self.settings.connections?;
        let Some(seen) = sample.connections else {
            self.connections = None;
            // A page and sensors see the work itself.
            let otherwise = self.settings.page && self.settings.utilization_threshold_percent.is_some();
            return (!otherwise).then_some(WakeSource::Unseen);
        };
        let fresh = self.connections.replace(seen).is_some_and(|before| {
            seen.opened_total > before.opened_total || seen.requests_total > before.requests_total
        });
        if fresh {
            self.asked_at = Some(sample.now);
        }
        let counts = fresh || (counted == CountedConnections::Open && seen.open > 0);
        counts.then_some(WakeSource::Connections { open: seen.open })
    }

    /// Do the sensors show work?
    fn sensed(&mut self, sample: &Sample) -> Option<WakeSource> {
        let threshold = self.settings.utilization_threshold_percent?;
        let by_power = self.settings.wake_power_ratio.zip(sample.activity.power);
        if by_power.is_none() && sample.activity.utilization_percent.is_none() {
            // A parked GPU that works unseen would crawl.
            return Some(WakeSource::Unseen);
        }
        if let Some((ratio, power)) = by_power
            && let Some(parked_since) = self.parked_since()
            && sample.now >= self.level_from.unwrap_or(parked_since + LEVEL_SETTLE)
        {
            let level = self.level.map_or(power.0, |level| level.0.min(power.0));
            self.level = Some(Watts(level));
            if power.0 > ratio * level && power.0 > level + WAKE_MARGIN.0 {
                return Some(WakeSource::Power { power, parked: Watts(level) });
            }
        }
        match sample.activity.utilization_percent? {
            // Not a number is not quiet.
            percent if percent <= threshold => None,
            percent => Some(WakeSource::Utilization { percent }),
        }
    }

    /// Is this the work itself, and not just somebody who may want some? A connection is not, where a page or the GPU
    /// would show it.
    fn is_proof(&self, work: &WakeSource) -> bool {
        match work {
            WakeSource::Unseen => false,
            WakeSource::Connections { .. } => {
                !self.settings.page && self.settings.utilization_threshold_percent.is_none()
            }
            WakeSource::Page
            | WakeSource::Power { .. }
            | WakeSource::Utilization { .. }
            | WakeSource::Instances { .. } => true,
        }
    }

    /// The temperature, if it is too high.
    fn heat(&self, sample: &Sample) -> Option<f64> {
        // Where the sensor fails the board protects itself.
        let (limits, temperature) = (self.settings.hot?, sample.temperature_c?);
        let limit = if self.hot { limits.low_c } else { limits.high_c };
        let held_off = !self.hot && self.gaps.is_held_off(sample.now);
        (temperature > limit && !held_off).then_some(temperature)
    }

    /// The power of GPUs that are quiet and not parked: the lowest there was. It may have been lower than it ever is again,
    /// so while page and utilisation show no work the level rises by and by.
    fn follow_quiet_power(&mut self, sample: &Sample, quiet: bool) {
        let risen = self.up_since.is_none_or(|at| sample.now.since(at) >= POWER_RISES);
        let Some((page, power)) = sample.page.zip(sample.activity.power).filter(|_| risen) else { return };
        if let Some(level) = &mut self.quiet_power
            && !page.work
            && is_below(sample.activity.utilization_percent, &self.settings) == Some(true)
        {
            level.0 = (QUIET_RISES * level.0).max(LEAST_POWER.0).min(power.0.max(level.0));
        }
        if quiet {
            let lowest = self.quiet_power.map_or(power.0, |seen| seen.0.min(power.0));
            self.quiet_power = Some(Watts(lowest));
        }
    }

    /// Do the sensors say that an empty page is right?
    fn is_quiet(&self, sample: &Sample) -> bool {
        if self.settings.utilization_threshold_percent.is_none() {
            return true;
        }
        // Sensors average over up to a second, in which a gap may be over; the counter does not.
        let by_counter = sample.window_power.zip(self.quiet_power);
        if by_counter.is_some_and(|(power, quiet)| power.0 <= QUIET_COUNTER_RATIO * quiet.0) {
            return true;
        }
        let by_utilization = is_below(sample.activity.utilization_percent, &self.settings).unwrap_or(true);
        let by_power = match (sample.activity.power, self.quiet_power) {
            (Some(power), Some(quiet)) => power.0 <= QUIET_POWER_RATIO * quiet.0,
            _ => true,
        };
        by_utilization && by_power && !sample.activity.is_unseen()
    }

    /// May there be work that the page does not show yet: on its way to the server, or in a step that is not over?
    fn is_uncertain(&self, now: Time) -> bool {
        let asked = self.asked_at.is_some_and(|at| now.since(at) < ASKED);
        let stepping = self
            .worked_at
            .zip(self.step_time)
            .is_some_and(|(at, step)| now.since(at) < Seconds(QUIET_STEPS * step.0));
        self.settings.page && (asked || stepping)
    }

    /// The clocks of the parked GPU were changed: its power says nothing for a while.
    pub(super) fn disturbed(&mut self, now: Time) {
        (self.level, self.level_from) = (None, Some(now + POWER_RISES));
    }

    /// A wake took so long until the clocks were back.
    pub(super) fn woke(&mut self, took: Seconds) {
        self.gaps.woke(took, &self.settings.gap);
    }

    /// Something else took the clocks over: not parked, nothing counted.
    pub(super) fn interrupt(&mut self, now: Time) {
        if self.gaps.is_parked() {
            self.up_since = Some(now);
        }
        self.hot = false;
        self.gaps.interrupt();
    }

    /// The same, and free to park after the quiet time.
    pub(super) fn begin_anew(&mut self, now: Time) {
        self.interrupt(now);
        self.gaps.ask_again();
    }

    /// The clocks did not go down, or came back without our doing: not parked, and not again for a while.
    pub(super) fn hold_off(&mut self, now: Time) {
        self.interrupt(now);
        self.gaps.refused(now);
    }
}

/// Is the utilisation that of a GPU that does nothing? `None` where that is not known.
fn is_below(percent: Option<f64>, settings: &Settings) -> Option<bool> {
    Some(percent? <= settings.utilization_threshold_percent?)
}

#[cfg(test)]
pub(crate) mod page;
#[cfg(test)]
pub(super) mod tests;
