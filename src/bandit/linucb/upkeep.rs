//! What follows from a lesson before the next choice: clocks are given up, brought back, looked at more closely.

use super::{Durable, Tried};
use crate::bandit::arm::input;
use crate::bandit::prune::{self, Cause, KEPT, Standing};
use crate::bandit::refine::{self, Predicted, Series};
use crate::bandit::{ActionSpace, View};
use crate::units::Clocks;

use super::pruning::PruneRecord;

/// A trial ends after this many choices per measurement that it wants, for the case that none can be had.
const PICKS_PER_SAMPLE: usize = 4;

/// The shortlist, and what of it may be chosen.
struct Field {
    /// Not given up.
    live: Vec<Clocks>,
    /// Not given up, and open in the action space.
    usable: Vec<Clocks>,
}

impl Durable {
    /// To be run once after each lesson.
    pub(super) fn tend(&mut self, view: View<'_>) {
        self.conclude_trial(view);
        if !self.exploiting {
            self.prune(view);
        }
        self.bring_one_back(view);
        if !self.exploiting {
            self.refine(view);
        }
    }

    fn field(&self, view: View<'_>) -> Field {
        let mut live = self.shortlist.members(view.space, self.settings.coarse_step_mhz);
        live.retain(|clocks| !self.pruning.is_out(*clocks));
        let usable = live.iter().copied().filter(|clocks| view.space.is_allowed(*clocks, view.now)).collect();
        Field { live, usable }
    }

    fn standings(&self, clocks: &[Clocks]) -> Vec<Standing> {
        clocks.iter().filter_map(|clocks| self.standing(*clocks)).collect()
    }

    fn standing(&self, clocks: Clocks) -> Option<Standing> {
        let tried = self.arms.get(&clocks)?;
        let rewards: Vec<f64> = tried.recent.iter().copied().collect();
        Standing::of(clocks, &rewards, &tried.costs(&self.settings))
    }

    /// The clocks with the lowest mean cost, of those that were measured more than once or twice if there are any; of
    /// equals the highest.
    fn best_of(&self, standings: &[Standing]) -> Option<Clocks> {
        let enough = |s: &&Standing| s.samples >= self.settings.extreme_pruning_min_samples;
        let cheaper = |a: &&Standing, b: &&Standing| a.mean_cost.total_cmp(&b.mean_cost);
        let best =
            standings.iter().filter(enough).min_by(cheaper).or_else(|| standings.iter().min_by(cheaper));
        best.map(|standing| standing.clocks)
    }

    fn prune(&mut self, view: View<'_>) {
        let Field { live, usable } = self.field(view);
        let standings = self.standings(&live);
        let best = self.best_of(&self.standings(&usable));
        let settings = &self.settings;
        let below =
            prune::cascade_below(view.space.cores().first().copied(), settings.cascade_pruning_threshold);
        let age = self.rounds.saturating_sub(self.era);

        let mut victims = Vec::new();
        let mut followers = Vec::new();
        if settings.enable_extreme_pruning && age <= settings.extreme_pruning_max_rounds {
            let (min, threshold) = (settings.extreme_pruning_min_samples, settings.extreme_pruning_threshold);
            victims.extend(prune::extreme(&standings, min, threshold));
            for descent in by_memory(&standings) {
                followers.extend(prune::descent(&descent, &live, below));
            }
        }
        if settings.enable_action_pruning
            && age >= settings.pruning_maturity_threshold
            && is_due(self.pruning.last_check, settings.pruning_check_interval, self.rounds)
            && usable.len() > KEPT
        {
            self.pruning.last_check = Some(self.rounds);
            let min = settings.min_exploration_for_pruning;
            victims.extend(prune::costly(&standings, min, settings.pruning_threshold));
        }
        let mut gone = prune::spare(victims, &usable, best);
        for (trigger, _) in gone.clone() {
            gone.extend(prune::cascade(trigger, &live, below));
        }
        gone.extend(followers);
        for (clocks, cause) in prune::spare(gone, &usable, best) {
            self.give_up(clocks, cause);
        }
    }

    fn give_up(&mut self, clocks: Clocks, cause: Cause) {
        let lessons = self.arms.get(&clocks).map_or(0, |tried| tried.arm.lessons());
        let mean_reward = self.standing(clocks).map(|standing| standing.mean_reward);
        let record = PruneRecord { round: self.rounds, clocks, lessons, mean_reward, cause, returned: None };
        self.pruning.give_up(record);
    }

    /// Judges the clock on trial once it is measured well enough, in exploitation as well.
    fn conclude_trial(&mut self, view: View<'_>) {
        let Some(trial) = self.pruning.trial else { return };
        let clocks = trial.clocks;
        let Field { usable, .. } = self.field(view);
        let wanted = self.settings.min_exploration_for_pruning.max(1);
        let samples = self.arms.get(&clocks).map_or(0, |tried| tried.recent.len());
        let over = trial.picks >= self.picks_of_a_trial();
        if !usable.contains(&clocks) || (over && samples == 0) {
            self.pruning.postpone(clocks, self.rounds);
            return;
        }
        if samples < wanted && !over {
            return;
        }
        self.pruning.trial = None;
        let standings = self.standings(&usable);
        let best = self.best_of(&standings);
        let mut victims = Vec::new();
        if self.settings.enable_extreme_pruning {
            let (min, threshold) =
                (self.settings.extreme_pruning_min_samples, self.settings.extreme_pruning_threshold);
            victims.extend(prune::extreme(&standings, min, threshold));
        }
        if self.settings.enable_action_pruning {
            victims.extend(prune::costly(&standings, samples.min(wanted), self.settings.pruning_threshold));
        }
        victims.retain(|(victim, _)| *victim == clocks);
        for (clocks, cause) in prune::spare(victims, &usable, best) {
            self.give_up(clocks, cause);
        }
    }

    /// Choices after which a trial is over, measured or not.
    pub(super) fn picks_of_a_trial(&self) -> usize {
        self.settings.min_exploration_for_pruning.max(1).saturating_mul(PICKS_PER_SAMPLE)
    }

    /// Puts a clock on trial whose time has come, one after the other, from the neighbourhood of the best one outwards.
    fn bring_one_back(&mut self, view: View<'_>) {
        let Field { usable, .. } = self.field(view);
        let settled = self.exploiting || usable.iter().all(|clocks| self.visited.contains(clocks));
        let Some(best) = self.best_of(&self.standings(&usable)).filter(|_| settled) else { return };
        if self.pruning.trial.is_some() {
            return;
        }
        let members = self.shortlist.members(view.space, self.settings.coarse_step_mhz);
        let open: Vec<Clocks> =
            members.into_iter().filter(|clocks| view.space.is_allowed(*clocks, view.now)).collect();
        if let Some(clocks) = self.pruning.due(&open, best, self.rounds) {
            self.pruning.try_again(clocks, self.rounds);
            // It is measured anew: what it was given up for is long ago.
            self.arms.insert(clocks, Tried::new(self.settings.lambda_reg));
        }
    }

    /// Looks closer around an anchor, when it is time and every clock of the shortlist has been tried.
    fn refine(&mut self, view: View<'_>) {
        let Field { usable, .. } = self.field(view);
        if self.rounds < self.settings.refinement_start_threshold
            || !is_due(self.shortlist.last_refinement, self.settings.adaptive_update_interval, self.rounds)
            || !usable.iter().all(|clocks| self.visited.contains(clocks))
        {
            return;
        }
        self.shortlist.last_refinement = Some(self.rounds);
        let anchor = if self.rounds >= self.settings.learner_maturity_threshold {
            self.predictive_anchor(view, &usable)
        } else {
            self.statistical_anchor(&usable)
        };
        if let Some(anchor) = anchor {
            self.shortlist.refine(view.space, anchor);
        }
    }

    fn statistical_anchor(&self, usable: &[Clocks]) -> Option<Clocks> {
        let series: Vec<Series> = usable
            .iter()
            .filter_map(|&clocks| {
                Some(Series { clocks, costs: self.arms.get(&clocks)?.costs(&self.settings) })
            })
            .collect();
        let last = self.log.back().map(|lesson| (lesson.clocks, self.settings.log_cost(lesson.reward)));
        refine::statistical_anchor(&series, last)
    }

    fn predictive_anchor(&self, view: View<'_>, usable: &[Clocks]) -> Option<Clocks> {
        let (x, alpha) = (input(view.context), self.alpha());
        let predict = |&clocks: &Clocks| {
            let tried = self.arms.get(&clocks)?;
            let (bound, _) = tried.arm.ucb(x.view(), alpha).ok()?;
            let standing = self.standing(clocks)?;
            Some(Predicted { clocks, bound, samples: standing.samples, mean_cost: standing.mean_cost })
        };
        let predicted: Vec<Predicted> = usable.iter().filter_map(predict).collect();
        refine::predictive_anchor(&predicted)
    }

    /// Memory control was switched on since the arms were learned: every pair takes over what its core clock knows.
    pub(super) fn inherit(&mut self, space: &ActionSpace) {
        let pairs: Vec<Clocks> = space.arms().iter().copied().filter(|arm| arm.memory.is_some()).collect();
        if pairs.is_empty() || self.arms.keys().any(|arm| arm.memory.is_some()) {
            return;
        }
        for pair in pairs {
            let core = Clocks::core_only(pair.core);
            if let Some(tried) = self.arms.get(&core).cloned() {
                self.arms.insert(pair, tried);
            }
            if self.visited.contains(&core) {
                self.visited.insert(pair);
            }
        }
    }
}

/// Is it time for what happens every `interval` rounds?
fn is_due(last: Option<u64>, interval: u64, round: u64) -> bool {
    last.is_none_or(|last| round.saturating_sub(last) >= interval)
}

/// The standings of each memory clock, highest clocks first.
fn by_memory(standings: &[Standing]) -> Vec<Vec<Standing>> {
    let mut groups: Vec<Vec<Standing>> = Vec::new();
    for standing in standings {
        match groups.iter_mut().find(|group| group[0].clocks.memory == standing.clocks.memory) {
            Some(group) => group.push(*standing),
            None => groups.push(vec![*standing]),
        }
    }
    groups
}
