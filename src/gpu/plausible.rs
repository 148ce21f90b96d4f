//! Which readings of a GPU are believed, and where its energy comes from.
//!
//! A driver that answers is not always right: counters that never move, that jump, powers of megawatts. Each reading is
//! judged against the board's power limit, against the other sensor and against itself. Energy comes from the best source
//! that is believed: the counter, else power over time, else none. Pure: time is a parameter.

use super::GpuInfo;
use crate::units::{Mhz, Millijoules, Seconds, Time, Watts};

/// A board may draw its limit times this for a moment: no power above is believed.
const TRANSIENT: f64 = 2.0;
/// The same for longer: the driver's own limiter takes less than a second, and sensors are some percent off.
const SUSTAINED: f64 = 1.2;
const SUSTAINED_FOR: Seconds = Seconds(1.0);
/// Stands for a limit that the driver does not tell, or tells wrongly.
const UNTOLD_LIMIT: Watts = Watts(2000.0);
/// Limits outside are not believed.
const LIMITS: std::ops::RangeInclusive<f64> = 1.0..=5000.0;
/// A counter that stands still for so long while there is power is too slow for windows of 0.3 s, which need
/// two ticks: real ones tick within 0.11 s.
const STILL: Seconds = Seconds(0.25);
/// The same where no power is known: a live board always draws some.
const STILL_ALONE: Seconds = Seconds(2.0);
/// Looks at a tick may be late by so much.
const LATE: Seconds = Seconds(1.0);
/// Less energy than this is no proof that a counter stands still, joules.
const STILL_J: f64 = 2.0;
/// Counter and power are compared over so long.
const COMPARED: Seconds = Seconds(5.0);
/// A gap between two powers that is longer says too little to compare.
const SPARSE: Seconds = Seconds(2.0);
/// Counter and power may differ by this factor.
const DISAGREE: f64 = 3.0;
/// A source that was not believed is believed again after so long without a fault; twice as long each time.
const PROVEN: Seconds = Seconds(30.0);
const PROVEN_MOST: Seconds = Seconds(3600.0);
/// Utilisation 0 at this share of the power limit for so long is no idleness.
const WORK_SHARE: f64 = 0.5;
const WORK_FOR: Seconds = Seconds(3.0);
/// Utilisation 100 at no more than this share of the limit for so long is no work: an idle GPU at its highest
/// clock draws 10 to 20 % of the limit, and even memory-bound kernels draw more.
const REST_SHARE: f64 = 0.2;
const REST_FOR: Seconds = Seconds(60.0);
/// Degrees Celsius that a running GPU can have.
const TEMPERATURES: std::ops::RangeInclusive<f64> = 1.0..=130.0;
/// Clocks that a GPU can have.
const CLOCKS: std::ops::RangeInclusive<u32> = 1..=20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EnergySource {
    /// The driver's total-energy counter.
    Counter,
    /// Power samples, integrated.
    PowerIntegration,
    /// Neither is there, or believed.
    None,
}

impl EnergySource {
    #[must_use]
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Counter => "the energy counter",
            Self::PowerIntegration => "power samples, integrated,",
            Self::None => "nothing",
        }
    }
}

/// The board's power limit as judgements use it.
pub(crate) fn usable_limit(told: Option<Watts>) -> Watts {
    told.filter(|limit| LIMITS.contains(&limit.0)).unwrap_or(UNTOLD_LIMIT)
}

/// The highest power limit that may come into force while we look: an operator may raise the present one.
pub(crate) fn highest_limit(info: &GpuInfo) -> Option<Watts> {
    let told = [info.power_limit, info.power_limit_max].into_iter().flatten();
    told.filter(|limit| LIMITS.contains(&limit.0)).max_by(|a, b| a.0.total_cmp(&b.0))
}

/// A power that a board with that limit can draw: a live one draws something.
pub(crate) fn is_power(power: Watts, limit: Watts) -> bool {
    power.0 > 0.0 && power.0 <= TRANSIENT * limit.0
}

/// A share of time, in percent.
pub(crate) fn is_utilization(percent: f64) -> bool {
    (0.0..=100.0).contains(&percent)
}

/// A core temperature in degrees Celsius.
pub(crate) fn is_temperature(celsius: f64) -> bool {
    TEMPERATURES.contains(&celsius)
}

pub(crate) fn is_clock(clock: Mhz) -> bool {
    CLOCKS.contains(&clock.0)
}

/// Another source decides from now on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    /// What decides now.
    pub source: EnergySource,
    /// What decided before.
    pub before: EnergySource,
    /// What was read and why it is not believed; or that it has proven itself.
    pub why: String,
}

impl Change {
    /// Is it a better source than before?
    pub(crate) fn is_better(&self) -> bool {
        self.source == EnergySource::Counter || self.before == EnergySource::None
    }
}

/// The counter's last advance.
#[derive(Debug, Clone, Copy)]
struct Tick {
    at: Time,
    /// Power integrated since, joules.
    power_j: f64,
}

/// Counter and power over the same time.
#[derive(Debug, Clone, Copy, Default)]
struct Compared {
    from: Option<Time>,
    counter_j: f64,
    power_j: f64,
}

#[derive(Debug, Clone)]
pub(crate) struct EnergyJudge {
    limit: Watts,
    source: Option<EnergySource>,
    started: Option<Time>,
    total_j: f64,
    /// The energy was last known to be `total_j` then.
    known_at: Option<Time>,
    last: Option<Millijoules>,
    tick: Option<Tick>,
    latest: Option<Time>,
    power: Option<(Time, Watts)>,
    compared: Compared,
    sound_since: Option<Time>,
    distrusted: u32,
}

impl EnergyJudge {
    pub(crate) fn new(limit: Option<Watts>) -> Self {
        Self {
            limit: usable_limit(limit),
            source: None,
            started: None,
            total_j: 0.0,
            known_at: None,
            last: None,
            tick: None,
            latest: None,
            power: None,
            compared: Compared::default(),
            sound_since: None,
            distrusted: 0,
        }
    }

    /// What decides; before the first look, nothing.
    pub(crate) fn source(&self) -> EnergySource {
        self.source.unwrap_or(EnergySource::None)
    }

    /// Energy accounted since the first look, in joules. Never falls. `None` where nothing decides, or where
    /// what decides has said nothing for a while.
    pub(crate) fn total(&self) -> Option<f64> {
        let at = self.known_at.filter(|_| self.source() != EnergySource::None)?;
        let is_recent = self.latest.is_none_or(|latest| latest.since(at) <= STILL_ALONE);
        is_recent.then_some(self.total_j)
    }

    /// A look at the power, if that could be read. Energy is accounted by it where power decides.
    pub(crate) fn on_power(&mut self, now: Time, power: Watts) {
        if !self.goes_on(now) || !is_power(power, self.limit) {
            return;
        }
        let Some((at, last)) = self.power.replace((now, power)) else {
            self.compared = Compared::default();
            return;
        };
        let gap = now.since(at);
        let drawn = 0.5 * (last.0 + power.0) * gap.0;
        if let Some(tick) = &mut self.tick {
            tick.power_j += drawn;
        }
        self.compared.power_j += drawn;
        if gap > SPARSE {
            self.compared = Compared::default();
        }
        if self.source == Some(EnergySource::PowerIntegration) {
            self.account(now, drawn);
        }
    }

    /// A look at the counter, after one at the power; `None` if there is no counter.
    pub(crate) fn on_counter(&mut self, now: Time, counter: Option<Millijoules>) -> Option<Change> {
        if !self.goes_on(now) {
            return None;
        }
        let fault = match counter {
            Some(counter) => self.judge(now, counter),
            None => self.silent(now),
        };
        if fault.is_some() {
            self.sound_since = None;
            self.compared = Compared::default();
        }
        let by_power = if self.sees_power(now) { EnergySource::PowerIntegration } else { EnergySource::None };
        let before = self.source;
        let (source, why) = match (before, fault) {
            (None, _) if counter.is_some() => (EnergySource::Counter, String::new()),
            (None, _) => (by_power, String::new()),
            (Some(EnergySource::Counter), Some(why)) => (by_power, why),
            (Some(EnergySource::Counter), None) => return None,
            (Some(_), _) if self.is_proven(now) => {
                (EnergySource::Counter, "the counter has proven itself".to_owned())
            }
            (Some(EnergySource::None), _) => (by_power, "power can be read".to_owned()),
            (Some(EnergySource::PowerIntegration), _) => (by_power, "no power that is believed".to_owned()),
        };
        self.source = Some(source);
        self.known_at.get_or_insert(now);
        if before == Some(EnergySource::Counter) {
            self.distrusted = self.distrusted.saturating_add(1);
            // What the counter has not told since it stands.
            self.account(now, self.tick.map_or(0.0, |tick| tick.power_j));
        }
        before.filter(|before| *before != source).map(|before| Change { source, before, why })
    }

    /// Time never goes back.
    fn goes_on(&mut self, now: Time) -> bool {
        let latest = self.latest.unwrap_or(now);
        let sound = now.0.is_finite() && now >= latest;
        if sound {
            self.latest = Some(now);
            self.started.get_or_insert(now);
        }
        sound
    }

    /// What is wrong where a counter that decides does not answer any more, if it is for long.
    fn silent(&self, now: Time) -> Option<String> {
        let stood = now.since(self.tick?.at);
        (stood >= STILL_ALONE).then(|| format!("no answer for {:.1} s", stood.0))
    }

    /// What is wrong with this answer of the counter, if anything is.
    fn judge(&mut self, now: Time, counter: Millijoules) -> Option<String> {
        let Some(last) = self.last.replace(counter) else {
            // Its value falls anywhere between two ticks.
            self.tick = Some(Tick { at: now, power_j: 0.0 });
            return None;
        };
        let tick = self.tick.unwrap_or(Tick { at: now, power_j: 0.0 });
        let (stood, power_j) = (now.since(tick.at), tick.power_j);
        if counter == last {
            let stands = format!("{} mJ for {:.2} s", counter.0, stood.0);
            return if stood >= STILL && power_j >= STILL_J {
                Some(format!("{stands}, in which power says {power_j:.1} J"))
            } else {
                (stood >= STILL_ALONE && !self.sees_power(now)).then_some(stands)
            };
        }
        self.tick = Some(Tick { at: now, power_j: 0.0 });
        let Some(advance) = counter.since(last).map(|advance| advance.0) else {
            self.advance(now, power_j);
            return Some(format!("fell from {} to {} mJ", last.0, counter.0));
        };
        if advance > TRANSIENT * self.limit.0 * (stood.0 + LATE.0) {
            self.advance(now, power_j);
            let limit = self.limit;
            return Some(format!(
                "{advance:.1} J more in {:.3} s, on a board with a limit of {limit}",
                stood.0
            ));
        }
        self.sound_since.get_or_insert(now);
        self.advance(now, advance);
        self.compare(now, advance)
    }

    fn sees_power(&self, now: Time) -> bool {
        self.power.is_some_and(|(at, _)| now.since(at) <= SPARSE)
    }

    /// The counter advanced: that is accounted if it decides.
    fn advance(&mut self, now: Time, joules: f64) {
        if self.source == Some(EnergySource::Counter) {
            self.account(now, joules);
        }
    }

    /// What is wrong with the counter over the last seconds, if anything is.
    fn compare(&mut self, now: Time, advance: f64) -> Option<String> {
        let Some(from) = self.compared.from else {
            self.compared = Compared { from: Some(now), ..Compared::default() };
            return None;
        };
        self.compared.counter_j += advance;
        let span = now.since(from);
        if span < COMPARED {
            return None;
        }
        let Compared { counter_j, power_j, .. } = std::mem::take(&mut self.compared);
        self.compared.from = Some(now);
        if counter_j > SUSTAINED * self.limit.0 * span.0 {
            let limit = self.limit;
            return Some(format!("{counter_j:.1} J in {:.1} s, on a board with a limit of {limit}", span.0));
        }
        let differs = counter_j > DISAGREE * power_j || power_j > DISAGREE * counter_j;
        // Where nobody looks at power there is nothing to compare.
        (differs && self.sees_power(now))
            .then(|| format!("{counter_j:.1} J in {:.1} s, in which power says {power_j:.1} J", span.0))
    }

    fn is_proven(&self, now: Time) -> bool {
        let doublings = self.distrusted.saturating_sub(1).min(10);
        let wait = (PROVEN.0 * f64::from(1_u32 << doublings)).min(PROVEN_MOST.0);
        // At a tick: what came before it is accounted by power.
        let at_tick = self.tick.is_some_and(|tick| tick.at == now);
        at_tick && self.sound_since.is_some_and(|since| now.since(since).0 >= wait)
    }

    /// Never more than the board can have used since the first look: its limit times the time.
    fn account(&mut self, now: Time, joules: f64) {
        let most = self.started.map_or(0.0, |started| self.limit.0 * now.since(started).0);
        self.total_j = (self.total_j + joules.max(0.0)).min(most).max(self.total_j);
        self.known_at = Some(now);
    }
}

/// Power against the board's limit: moments above it are believed, seconds are not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PowerJudge {
    limit: Watts,
    /// Since when every power has been above what a board draws for longer.
    above_since: Option<Time>,
}

impl PowerJudge {
    pub(crate) fn new(limit: Option<Watts>) -> Self {
        Self { limit: usable_limit(limit), above_since: None }
    }

    /// Is power above what a board draws for longer?
    pub(crate) fn is_above(&self) -> bool {
        self.above_since.is_some()
    }

    pub(crate) fn believes(&mut self, now: Time, power: Watts) -> bool {
        if power.0 <= SUSTAINED * self.limit.0 {
            self.above_since = None;
            return is_power(power, self.limit);
        }
        let since = *self.above_since.get_or_insert(now);
        is_power(power, self.limit) && now.since(since) < SUSTAINED_FOR
    }
}

/// Utilisation against power: one that stays at 0 while the board draws what only work draws is not believed,
/// nor one that stays at 100 while it draws what an idle board does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IdleJudge {
    limit: Watts,
    power: Option<(Time, Watts)>,
    /// Which of the two it contradicts, and since when.
    contradicts: Option<(Contradiction, Time)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contradiction {
    Work,
    Rest,
}

impl IdleJudge {
    pub(crate) fn new(limit: Option<Watts>) -> Self {
        Self { limit: usable_limit(limit), power: None, contradicts: None }
    }

    pub(crate) fn on_power(&mut self, now: Time, power: Watts) {
        self.power = Some((now, power));
    }

    pub(crate) fn believes(&mut self, now: Time, percent: f64) -> bool {
        if !is_utilization(percent) {
            return false;
        }
        let fresh = self.power.filter(|(at, _)| now.since(*at) <= WORK_FOR);
        let Some(what) = fresh.and_then(|(_, power)| self.contradiction(percent, power)) else {
            self.contradicts = None;
            return true;
        };
        let since = match self.contradicts {
            Some((same, since)) if same == what => since,
            _ => self.contradicts.insert((what, now)).1,
        };
        let bearable = match what {
            Contradiction::Work => WORK_FOR,
            Contradiction::Rest => REST_FOR,
        };
        now.since(since) < bearable
    }

    fn contradiction(&self, percent: f64, power: Watts) -> Option<Contradiction> {
        let share = power.0 / self.limit.0;
        if percent <= 0.0 && share >= WORK_SHARE {
            Some(Contradiction::Work)
        } else if percent >= 100.0 && share <= REST_SHARE {
            Some(Contradiction::Rest)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests;
