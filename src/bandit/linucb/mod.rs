//! AGFT's policy: disjoint LinUCB, one ridge regression per clock.
//!
//! First every clock of a coarse grid is tried once from the top down, then the highest upper confidence bound wins,
//! with an exploration rate that decays. Clocks that measure badly are given up, clocks around the best one join; once
//! the choices have settled on a few clocks, the highest expectation wins. When what they settled on gets worse, or a
//! latency limit breaks, learning goes on, and clocks that were given up come back.
//!
//! A *round* is a lesson: a window that ran at one clock and has a reward.

mod insight;
mod pruning;
mod settings;
mod shortlist;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::arm::{Arm, input};
use super::settle::{rise, top_share};
use super::{BanditError, Choice, Evidence, Phase, Policy, Reason, Summary, View};
use crate::features::DIMENSION;
use crate::units::{Clocks, Target, Time};
use pruning::Pruning;
pub use settings::LinUcbSettings;
use shortlist::Shortlist;

/// Rewards kept per clock.
const RECENT: usize = 64;
/// Degradation compares this many rounds with as many before them.
const HALF: usize = 50;
/// Standard deviations of the difference beyond which it is no chance.
const CHANCE: f64 = 4.0;
/// Lessons that what was learned before a degradation counts for afterwards: a guess that one new lesson overrules.
const FIRST_GUESS: f64 = 0.3;
/// In exploitation a clock is left only for one that promises this much more, in reward: switching is not free.
const HYSTERESIS: f64 = 0.01;

/// One clock: its regression, and its latest rewards, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Tried {
    arm: Arm,
    recent: VecDeque<f64>,
}

impl Tried {
    fn new(lambda: f64) -> Self {
        Self { arm: Arm::new(lambda), recent: VecDeque::new() }
    }

    /// The log costs of the latest rewards.
    fn costs(&self, settings: &LinUcbSettings) -> Vec<f64> {
        self.recent.iter().map(|reward| settings.log_cost(*reward)).collect()
    }
}

/// One entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Lesson {
    clocks: Clocks,
    reward: f64,
}

/// A clock, why, and its score with the score's width, where the reason has one.
type Pick = (Clocks, Reason, Option<(f64, f64)>);

/// What the policy has learned: all of it that a model file holds. Its size is bounded by that of the action space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Durable {
    settings: LinUcbSettings,
    arms: BTreeMap<Clocks, Tried>,
    /// Clocks that had their first visit: by sweep, on trial, or through what they inherited.
    visited: BTreeSet<Clocks>,
    /// Lessons learned, over all arms.
    rounds: u64,
    reward_sum: f64,
    /// Rounds over which the exploration rate has decayed.
    cooling: u64,
    /// Latest lessons, oldest first, those of trials left out: what the policy's own choices brought.
    log: VecDeque<Lesson>,
    exploiting: bool,
    /// Entries of the log since the last change between learning and exploitation.
    in_phase: usize,
    /// Round of the last degradation, 0 without one.
    era: u64,
    degradations: u64,
    pruning: Pruning,
    shortlist: Shortlist,
}

impl Durable {
    fn new(settings: LinUcbSettings) -> Self {
        Self {
            settings,
            arms: BTreeMap::new(),
            visited: BTreeSet::new(),
            rounds: 0,
            reward_sum: 0.0,
            cooling: 0,
            log: VecDeque::new(),
            exploiting: false,
            in_phase: 0,
            era: 0,
            degradations: 0,
            pruning: Pruning::default(),
            shortlist: Shortlist::default(),
        }
    }

    /// Exploration rate of this round.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        self.settings.alpha(self.cooling)
    }

    fn learn(&mut self, clocks: Clocks, context: &[f64; DIMENSION], reward: f64) -> Result<(), BanditError> {
        let x = input(context);
        if let Some(tried) = self.arms.get_mut(&clocks) {
            tried.arm.update(x.view(), reward)?;
            push_bounded(&mut tried.recent, reward, RECENT);
        } else {
            let mut tried = Tried::new(self.settings.lambda_reg);
            tried.arm.update(x.view(), reward)?;
            tried.recent.push_back(reward);
            self.arms.insert(clocks, tried);
        }
        self.rounds += 1;
        self.cooling += 1;
        self.reward_sum = (self.reward_sum + reward).clamp(f64::MIN, f64::MAX);
        if self.pruning.trial.is_none_or(|trial| trial.clocks != clocks) {
            self.log.push_back(Lesson { clocks, reward });
            self.trim_log();
            self.in_phase = self.in_phase.saturating_add(1);
            self.change_phase();
        }
        Ok(())
    }

    fn trim_log(&mut self) {
        let kept = self.settings.convergence_window.max(2 * HALF);
        self.log.drain(..self.log.len().saturating_sub(kept));
    }

    /// Learning ends when the choices have settled; it goes on when what they settled on has got worse.
    ///
    /// Both look at lessons since the last change only, so that one cannot undo the other at once.
    fn change_phase(&mut self) {
        if !self.exploiting {
            if self.has_settled() {
                (self.exploiting, self.in_phase) = (true, 0);
            }
        } else if self.has_degraded() {
            self.learn_anew();
        }
    }

    /// Do the most frequent clocks hold their share of a full window of lessons?
    fn has_settled(&self) -> bool {
        let window = self.settings.convergence_window.max(1);
        if self.in_phase.min(self.log.len()) < window {
            return false;
        }
        let latest = self.log.iter().rev().take(window).map(|lesson| lesson.clocks);
        top_share(latest, self.settings.convergence_top_k) >= self.settings.convergence_threshold
    }

    /// Is the mean log cost of the last lessons above that of the ones before by more than the threshold, and by more
    /// than chance explains?
    fn has_degraded(&self) -> bool {
        if self.in_phase < 2 * HALF {
            return false;
        }
        let costs: Vec<f64> = self.log.iter().map(|lesson| self.settings.log_cost(lesson.reward)).collect();
        let threshold = self.settings.performance_degradation_threshold.ln_1p();
        rise(&costs, HALF).is_some_and(|rise| rise.by > threshold && rise.by > CHANCE * rise.deviation)
    }

    /// The world has changed: what is known of each clock becomes a first guess, all clocks of the coarse grid, those
    /// given up among them, are swept again, and the exploration rate is back at the middle of its way down.
    fn learn_anew(&mut self) {
        (self.exploiting, self.in_phase) = (false, 0);
        (self.era, self.degradations) = (self.rounds, self.degradations + 1);
        for tried in self.arms.values_mut() {
            tried.arm.weaken(FIRST_GUESS);
            tried.recent.clear();
        }
        self.cooling = self.cooling.min(self.settings.half_cooled());
        self.pruning.pardon(self.rounds);
        self.visited.clear();
        self.shortlist = Shortlist::default();
    }

    /// What may be chosen: the shortlist without the clocks that were given up; if that leaves nothing, the shortlist;
    /// if that leaves nothing, the highest clock of the whole space that is open; nothing if none is.
    ///
    /// Nothing here is remembered, so that each stage ends by itself as soon as the one before it has something again.
    fn open(&self, view: View<'_>) -> Vec<Clocks> {
        let mut open = self.shortlist.members(view.space, self.settings.coarse_step_mhz);
        open.retain(|clocks| view.space.is_allowed(*clocks, view.now));
        if open.iter().any(|clocks| !self.pruning.is_out(*clocks)) {
            open.retain(|clocks| !self.pruning.is_out(*clocks));
        } else if open.is_empty() {
            open.extend(view.space.emergency(view.now).clocks());
        }
        open
    }

    /// The clock on trial, while it has not been measured enough.
    fn next_of_trial(&mut self, open: &[Clocks]) -> Option<Clocks> {
        let most = self.picks_of_a_trial();
        let trial = self.pruning.trial.as_mut()?;
        if !open.contains(&trial.clocks) || trial.picks >= most {
            return None;
        }
        trial.picks += 1;
        Some(trial.clocks)
    }

    /// The highest clock that has not been visited yet.
    fn next_of_sweep(&self, open: &[Clocks]) -> Option<Clocks> {
        if self.exploiting {
            return None;
        }
        open.iter().copied().find(|clocks| !self.visited.contains(clocks))
    }

    /// Highest score, with its width; of equals the first, that is the highest clock.
    fn best(&self, view: View<'_>, open: &[Clocks], held: Option<Clocks>) -> Option<(Clocks, f64, f64)> {
        let x = input(view.context);
        let alpha = if self.exploiting { 0.0 } else { self.alpha() };
        let untried = Arm::new(self.settings.lambda_reg);
        let bonus = |clocks| if self.exploiting && held == Some(clocks) { HYSTERESIS } else { 0.0 };
        let mut best: Option<(Clocks, f64, f64)> = None;
        for &clocks in open {
            let arm = self.arms.get(&clocks).map_or(&untried, |tried| &tried.arm);
            // Exploitation stays with what has been tried: an untried arm's expectation of 0 is ignorance, not merit.
            if self.exploiting && arm.lessons() == 0 {
                continue;
            }
            let Ok((score, width)) = arm.ucb(x.view(), alpha) else { continue };
            if best.is_none_or(|(other, top, _)| score + bonus(clocks) > top + bonus(other)) {
                best = Some((clocks, score, width));
            }
        }
        best
    }

    fn pick(&mut self, view: View<'_>, open: &[Clocks], held: Option<Clocks>) -> Option<Pick> {
        if let Some(clocks) = self.next_of_trial(open) {
            return Some((clocks, Reason::Retrial, None));
        }
        if let Some(clocks) = self.next_of_sweep(open) {
            return Some((clocks, Reason::Sweep, None));
        }
        let reason = if self.exploiting { Reason::Greedy } else { Reason::Ucb };
        let best =
            self.best(view, open, held).map(|(clocks, score, width)| (clocks, reason, Some((score, width))));
        // In exploitation, limits can leave nothing but clocks never tried.
        best.or_else(|| open.first().map(|clocks| (*clocks, reason, None)))
    }
}

/// A clock, since when, and why it was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Held {
    clocks: Clocks,
    since: Time,
    reason: Reason,
}

/// What ends with the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Running {
    held: Option<Held>,
    /// Round of the last upkeep.
    tended: Option<u64>,
}

/// Disjoint LinUCB over clocks. Serialized, it is a snapshot of a run; a model file holds its [`Durable`] part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinUcb {
    durable: Durable,
    running: Running,
}

impl From<Durable> for LinUcb {
    fn from(durable: Durable) -> Self {
        Self { durable, running: Running::default() }
    }
}

impl LinUcb {
    /// A policy that knows nothing.
    #[must_use]
    pub fn new(settings: LinUcbSettings) -> Self {
        Durable::new(settings).into()
    }

    /// What it has learned.
    #[must_use]
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// Takes over the constants of the present configuration; what was learned stays.
    ///
    /// A changed λ applies to arms not yet tried. Only a changed form of reward starts afresh: rewards of two forms
    /// cannot be compared.
    pub fn configure(&mut self, settings: LinUcbSettings) {
        if settings.reward == self.durable.settings.reward {
            self.durable.settings = settings;
            self.durable.trim_log();
        } else {
            *self = Self::new(settings);
        }
    }

    /// Learns that a clock earned `reward` in a z-scored context.
    ///
    /// # Errors
    /// [`BanditError`]; nothing is changed then.
    pub fn learn(
        &mut self,
        clocks: Clocks,
        context: &[f64; DIMENSION],
        reward: f64,
    ) -> Result<(), BanditError> {
        self.durable.learn(clocks, context, reward)
    }
}

impl Policy for LinUcb {
    fn choose(&mut self, view: View<'_>) -> Choice {
        let Self { durable, running } = self;
        durable.inherit(view.space);
        // Once after each lesson.
        if running.tended != Some(durable.rounds) {
            running.tended = Some(durable.rounds);
            durable.tend(view);
        }
        let open = durable.open(view);
        if let Some(held) = running.held
            && open.contains(&held.clocks)
            && view.now.since(held.since).0 < durable.settings.dwell.0
        {
            return Choice {
                target: Target::Lock(held.clocks),
                reason: Reason::Dwell,
                score: None,
                width: None,
            };
        }
        let held = running.held.map(|held| held.clocks);
        let Some((clocks, reason, score)) = durable.pick(view, &open, held) else {
            running.held = None;
            return Choice {
                target: Target::Default,
                reason: Reason::NothingAllowed,
                score: None,
                width: None,
            };
        };
        durable.visited.insert(clocks);
        running.held = Some(Held { clocks, since: view.now, reason });
        Choice {
            target: Target::Lock(clocks),
            reason,
            score: score.map(|(score, _)| score),
            width: score.map(|(_, width)| width),
        }
    }

    fn observe(&mut self, evidence: &Evidence<'_>) -> Result<bool, BanditError> {
        let (Some(Target::Lock(clocks)), Some(reward)) = (evidence.ran_at, evidence.reward) else {
            return Ok(false);
        };
        self.durable.learn(clocks, evidence.context, reward)?;
        Ok(true)
    }

    fn wants_rewards(&self) -> bool {
        true
    }

    fn interrupt(&mut self) {
        // A sweep step that was cut short has taught nothing yet: it is owed.
        let Self { durable, running } = self;
        if let Some(held) = running.held.take()
            && held.reason == Reason::Sweep
            && durable.arms.get(&held.clocks).is_none_or(|tried| tried.arm.lessons() == 0)
        {
            durable.visited.remove(&held.clocks);
        }
    }

    fn limit_broken(&mut self, _running: Clocks) {
        let durable = &mut self.durable;
        if durable.exploiting {
            (durable.exploiting, durable.in_phase) = (false, 0);
        }
    }

    fn phase(&self) -> Phase {
        self.durable.phase()
    }

    fn summary(&self) -> Summary {
        self.durable.summarise()
    }
}

/// Appends; drops the oldest beyond `most`.
fn push_bounded<T>(queue: &mut VecDeque<T>, item: T, most: usize) {
    queue.push_back(item);
    while queue.len() > most {
        queue.pop_front();
    }
}

#[cfg(test)]
mod tests;
