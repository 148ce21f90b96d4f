//! What is lowered while parked: core clock, memory clock or both, whichever was measured to pay on this board.
//!
//! How much a lever saves and how long its clocks take to come back is not in any data sheet, and differs by an order of
//! magnitude between boards. So it is tried out, once per board and driver, in a gap that has lasted for a while: the
//! clocks left to the driver, then each lever, some seconds each, compared within the same gap if it is long enough. Work
//! ends the trial at once; a later gap goes on with what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use super::trial::{TRIAL_AFTER, TrialTimes};
use super::wake::{Running, is_up};
use crate::gpu::SupportedClocks;
use crate::units::{Clocks, Joules, Mhz, Seconds, Time, Watts};

/// An idle board whose clocks are not back after this leaves them down by itself.
const BACK_WITHIN: Seconds = Seconds(1.0);
/// Taken for the time of a wake until one was measured.
const WAKE_PRIOR: Seconds = Seconds(0.1);
/// Weight of the newest wake.
const GAIN: f64 = 0.2;
/// A trial that showed nothing, since the gap was too short, makes the next one wait twice as long, up to so many times.
const MOST_PATIENCE: f64 = 16.0;
/// A lever has to be better by so much, to be taken instead of a simpler one.
const LEAST_GAIN: Watts = Watts(1.0);

/// What is lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeverKind {
    /// The core clock.
    Core,
    /// The memory clock.
    Memory,
    /// Both.
    Both,
    /// The performance state, which has low clocks of its own.
    Pstate,
}

impl LeverKind {
    /// Its name in files, labels and the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Memory => "memory",
            Self::Both => "both",
            Self::Pstate => "pstate",
        }
    }
}

/// A way to park.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lever {
    /// What it lowers.
    pub kind: LeverKind,
    /// The clocks that are locked. A core clock that is not lowered is the highest: all below stay allowed.
    pub clocks: Clocks,
}

impl Lever {
    /// The clocks that it lowers.
    pub fn lowered(&self) -> Running {
        Running {
            // Which core clock a low performance state has is not known, but it is about the lowest there is: where the
            // memory has one clock only, nothing else shows that the state was left.
            core: (self.kind != LeverKind::Memory).then_some(self.clocks.core),
            memory: self.clocks.memory,
        }
    }

    /// The levers of a board with these clocks, the simplest first; `core` and `memory` are the lowered clocks. A board with
    /// one memory clock has the core lever alone.
    pub fn of(clocks: &SupportedClocks, core: Mhz, memory: Option<Mhz>) -> Vec<Self> {
        let mut levers = vec![Self { kind: LeverKind::Core, clocks: Clocks::core_only(core) }];
        if let Some(memory) = memory.filter(|_| clocks.memory().count() > 1) {
            let memory = Some(memory);
            levers.push(Self { kind: LeverKind::Memory, clocks: Clocks { core: clocks.core_max(), memory } });
            levers.push(Self { kind: LeverKind::Both, clocks: Clocks { core, memory } });
        }
        levers
    }
}

/// Energy over time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Level {
    seconds: f64,
    joules: f64,
}

impl Level {
    fn power(self) -> Option<Watts> {
        (self.seconds > 0.0).then(|| Watts(self.joules / self.seconds))
    }
}

/// What was measured of a lever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// The clocks that it locked.
    pub clocks: Option<Clocks>,
    /// Board power under it, watts, in the trial.
    pub parked_w: Option<f64>,
    /// Time until the clocks were back, smoothed, seconds.
    pub wake_s: Option<f64>,
    /// The longest of these, seconds.
    pub(crate) longest_wake_s: f64,
    /// Wakes measured.
    pub wakes: u64,
}

/// What was measured of a board: to be kept for the next run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LeverBook {
    /// The driver under which it was measured: another one may do otherwise.
    pub driver: Option<String>,
    /// Board power, idle and left to the driver, in the trial.
    pub unparked_w: Option<f64>,
    /// By lever.
    pub levers: BTreeMap<LeverKind, Known>,
}

impl LeverBook {
    /// Are these numbers?
    pub fn is_sound(&self) -> bool {
        let power = |watts: Option<f64>| watts.is_none_or(|watts| watts.is_finite() && watts >= 0.0);
        let lever = |known: &Known| {
            let time = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
            power(known.parked_w) && known.wake_s.is_none_or(time) && time(known.longest_wake_s)
        };
        power(self.unparked_w) && self.levers.values().all(lever)
    }

    /// What a lever was measured to save.
    pub fn saving(&self, kind: LeverKind) -> Option<Watts> {
        let parked = self.levers.get(&kind)?.parked_w?;
        self.unparked_w.map(|unparked| Watts(unparked - parked))
    }
}

/// One line for the log.
impl fmt::Display for LeverBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("parking was measured:")?;
        if let Some(unparked) = self.unparked_w {
            write!(f, " {unparked:.1} W without")?;
        }
        for (kind, known) in &self.levers {
            let Some(parked) = known.parked_w else { continue };
            write!(f, ", {parked:.1} W by {}", kind.name())?;
            if let Some(wake) = known.wake_s {
                write!(f, " (back in {wake:.2} s)")?;
            }
        }
        Ok(())
    }
}

/// What to do with the clocks of a parked board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Lock these.
    Lock(Clocks),
    /// Leave them to the driver for a while, to see what that costs or how fast they come back.
    Release,
}

/// What was seen of a parked board since the last time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Stretch {
    /// Begin.
    pub start: Time,
    /// End.
    pub end: Time,
    /// When this is told of: the counters may have been read a while ago.
    pub now: Time,
    /// Energy in between.
    pub energy: Joules,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Phase {
    /// Clocks left to the driver.
    Unparked,
    Lever(LeverKind),
    Back(LeverKind),
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Trial {
    phase: Phase,
    since: Time,
    level: Level,
    /// Of this, seconds that an earlier gap had shown.
    began_with: f64,
}

/// The levers of a board: the one in use, and the trial of the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Levers {
    list: Vec<Lever>,
    book: LeverBook,
    refused: BTreeSet<LeverKind>,
    trial: Option<Trial>,
    /// What a gap that ended too soon had shown of a phase.
    half_done: Option<(Phase, Level)>,
    /// How many times longer a gap has to last before a trial, since shorter ones showed nothing.
    patience: f64,
    /// Mean length of the parked spells, smoothed, seconds.
    spell_s: Option<f64>,
    top: Running,
    #[serde(skip)]
    times: TrialTimes,
}

impl Levers {
    /// These, the simplest first, with what is known of them; `top` are the highest clocks.
    pub fn new(list: Vec<Lever>, book: LeverBook, top: Running) -> Self {
        let times = TrialTimes::default();
        let mut levers = Self {
            list,
            book: LeverBook::default(),
            refused: BTreeSet::new(),
            trial: None,
            half_done: None,
            patience: 1.0,
            spell_s: None,
            top,
            times,
        };
        levers.set_book(book);
        levers
    }

    #[must_use]
    pub(crate) fn with_times(mut self, times: TrialTimes) -> Self {
        self.times = times;
        self
    }

    /// Other levers from now on; what is known stays, but for refusals.
    #[must_use]
    pub(crate) fn with_list(self, list: Vec<Lever>, top: Running) -> Self {
        Self { list, top, refused: BTreeSet::new(), trial: None, half_done: None, ..self }
    }

    /// All of them, refused or not.
    pub fn list(&self) -> &[Lever] {
        &self.list
    }

    /// The one that is best now, and nothing else to try.
    #[must_use]
    pub fn without_trial(mut self) -> Self {
        self.list = self.best(None).into_iter().collect();
        self
    }

    /// What was measured.
    pub fn book(&self) -> &LeverBook {
        &self.book
    }

    /// What was measured before. What was measured at other clocks is not known of these.
    pub(crate) fn set_book(&mut self, book: LeverBook) {
        self.book = book;
        for lever in &self.list {
            let other = |known: &Known| known.clocks.is_some_and(|clocks| clocks != lever.clocks);
            if self.book.levers.get(&lever.kind).is_some_and(other) {
                self.book.levers.remove(&lever.kind);
            }
        }
    }

    /// The highest clocks.
    pub fn top(&self) -> Running {
        self.top
    }

    /// What can be lowered, the simplest first.
    pub fn usable(&self) -> impl Iterator<Item = &Lever> {
        self.list.iter().filter(|lever| !self.refused.contains(&lever.kind))
    }

    /// The lever that pays most in a spell of usual length, for a board that uses `busy` at work; the simplest while not
    /// enough is known, and none if all were refused.
    pub fn best(&self, busy: Option<Watts>) -> Option<Lever> {
        let simplest = *self.usable().next()?;
        let spell = self.spell_s.unwrap_or(TRIAL_AFTER.0);
        // Watts: what it saves less the work that waits, spread over the spell.
        let value = |lever: &Lever| {
            let saving = self.book.saving(lever.kind)?;
            let wake =
                self.book.levers.get(&lever.kind).and_then(|known| known.wake_s).unwrap_or(WAKE_PRIOR.0);
            Some(saving.0 - busy.map_or(0.0, |busy| busy.0) * wake / spell)
        };
        let start = (simplest, value(&simplest));
        let better = |best: (Lever, Option<f64>), lever: &Lever| match (value(lever), best.1) {
            (Some(value), Some(known)) if value > known + LEAST_GAIN.0 => (*lever, Some(value)),
            _ => best,
        };
        Some(self.usable().fold(start, better).0)
    }

    /// What the best lever saves, where a trial has shown it: there both powers are of the same gap.
    pub fn saving(&self, busy: Option<Watts>) -> Option<Watts> {
        self.book.saving(self.best(busy)?.kind)
    }

    /// The driver does not take this lock: it is not asked for again in this run. Was it one of the levers?
    pub fn refuse(&mut self, clocks: Clocks) -> bool {
        let kinds: Vec<LeverKind> =
            self.list.iter().filter(|lever| lever.clocks == clocks).map(|lever| lever.kind).collect();
        // A memory clock that is refused is refused in company too.
        if kinds.contains(&LeverKind::Memory) {
            self.refused.insert(LeverKind::Both);
        }
        self.refused.extend(kinds.iter().copied());
        self.trial = None;
        !kinds.is_empty()
    }

    /// What has not been measured yet.
    fn wanted(&self) -> Option<Phase> {
        // Nothing to choose from: what the only lever saves is seen without a trial.
        if self.usable().count() < 2 {
            return None;
        }
        if self.book.unparked_w.is_none() {
            return Some(Phase::Unparked);
        }
        let unknown =
            |lever: &&Lever| self.book.levers.get(&lever.kind).is_none_or(|known| known.parked_w.is_none());
        self.usable().find(unknown).map(|lever| Phase::Lever(lever.kind))
    }

    /// Since when, or at the earliest from when on, a board that has been parked since `parked_since` has to be looked at for
    /// a trial; `None` if all is known.
    pub(crate) fn trial_due(&self, parked_since: Time) -> Option<Time> {
        (self.is_trying() || self.wanted().is_some()).then_some(parked_since + self.times.after)
    }

    /// Is the board on its way back from a lever, so that its clocks are worth a close look?
    pub(crate) fn is_timing(&self) -> bool {
        matches!(self.trial, Some(Trial { phase: Phase::Back(_), .. }))
    }

    /// Between two looks at the energy in a trial.
    pub(crate) fn trial_period(&self) -> Seconds {
        Seconds(self.times.measure.0 / 16.0)
    }

    /// Is a trial under way?
    pub(crate) fn is_trying(&self) -> bool {
        self.trial.is_some()
    }

    /// The board has been parked since `parked_since`: begins or goes on with a trial. Says what to do with the clocks, if
    /// that changes.
    pub(crate) fn on_parked(
        &mut self,
        parked_since: Time,
        stretch: &Stretch,
        running: Running,
        busy: Option<Watts>,
    ) -> Option<Order> {
        let now = stretch.now;
        let Some(trial) = self.trial else {
            if now.since(parked_since).0 < self.patience * self.times.after.0 {
                return None;
            }
            let phase = self.wanted()?;
            return Some(self.enter(phase, now));
        };
        match trial.phase {
            Phase::Back(kind) => {
                let lowered = self.list.iter().find(|lever| lever.kind == kind).map(Lever::lowered);
                let back = lowered.and_then(|lowered| is_up(running, lowered, self.top));
                let took = now.since(trial.since);
                if back == Some(true) {
                    self.woke_from(kind, took);
                } else if back.is_some() && took < BACK_WITHIN {
                    return None;
                }
                Some(self.go_on(now, busy))
            }
            Phase::Unparked | Phase::Lever(_) => {
                let from = trial.since + self.times.settle;
                let mut trial = trial;
                if stretch.start >= from {
                    trial.level.seconds += stretch.end.since(stretch.start).0;
                    trial.level.joules += stretch.energy.0;
                }
                self.trial = Some(trial);
                if trial.level.seconds < self.times.measure.0 {
                    return None;
                }
                let power = trial.level.power().map(|power| power.0);
                match trial.phase {
                    Phase::Lever(kind) => {
                        let clocks =
                            self.list.iter().find(|lever| lever.kind == kind).map(|lever| lever.clocks);
                        let known = self.book.levers.entry(kind).or_default();
                        (known.parked_w, known.clocks) = (power, clocks);
                        self.trial = Some(Trial {
                            phase: Phase::Back(kind),
                            since: now,
                            level: Level::default(),
                            began_with: 0.0,
                        });
                        Some(Order::Release)
                    }
                    _ => {
                        self.book.unparked_w = power;
                        Some(self.go_on(now, busy))
                    }
                }
            }
        }
    }

    fn go_on(&mut self, now: Time, busy: Option<Watts>) -> Order {
        if let Some(phase) = self.wanted() {
            return self.enter(phase, now);
        }
        self.trial = None;
        self.best(busy).map_or(Order::Release, |lever| Order::Lock(lever.clocks))
    }

    fn enter(&mut self, phase: Phase, now: Time) -> Order {
        let level = self.half_done.take().filter(|(half, _)| *half == phase).map(|(_, level)| level);
        let level = level.unwrap_or_default();
        self.trial = Some(Trial { phase, since: now, level, began_with: level.seconds });
        let lever = match phase {
            Phase::Lever(kind) => self.list.iter().find(|lever| lever.kind == kind),
            Phase::Unparked | Phase::Back(_) => None,
        };
        lever.map_or(Order::Release, |lever| Order::Lock(lever.clocks))
    }

    /// A parked spell is over: it lasted so long. Ends a trial.
    pub(crate) fn spell_over(&mut self, length: Seconds) {
        if let Some(trial) = self.trial.take() {
            let before = trial.began_with;
            self.patience =
                if trial.level.seconds > before { 1.0 } else { (2.0 * self.patience).min(MOST_PATIENCE) };
            self.half_done = Some((trial.phase, trial.level));
        }
        let before = self.spell_s.unwrap_or(length.0);
        self.spell_s = Some(before + GAIN * (length.0 - before));
    }

    /// Work was there, and the clocks were back after so long.
    pub(crate) fn woke(&mut self, from: Clocks, took: Seconds) {
        if let Some(kind) = self.list.iter().find(|lever| lever.clocks == from).map(|lever| lever.kind) {
            self.woke_from(kind, took);
        }
    }

    fn woke_from(&mut self, kind: LeverKind, took: Seconds) {
        let known = self.book.levers.entry(kind).or_default();
        let before = known.wake_s.unwrap_or(took.0);
        known.wake_s = Some(before + GAIN * (took.0 - before));
        known.longest_wake_s = known.longest_wake_s.max(took.0);
        known.wakes += 1;
    }
}

#[cfg(test)]
mod tests;
