//! What the policy can be asked: predictions, confidence, statistics.

use serde::{Deserialize, Serialize};

use super::{HALF, LinUcb, PruneRecord, RECENT};
use crate::bandit::arm::{Arm, input};
use crate::bandit::settle::mean;
use crate::bandit::{ActionSpace, ArmSummary, Phase, PrunedArm, Summary};
use crate::features::DIMENSION;
use crate::units::Clocks;

/// Arms that a model may have. Cards have some hundred core clocks and some memory clocks.
const MOST_ARMS: usize = 20_000;
/// Rounds that a model may have: more than a century of them, and still exact as a floating-point number.
const MOST_ROUNDS: u64 = 1 << 40;

/// What an arm expects and how sure it is, in reward units.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Expected reward.
    pub mean: f64,
    /// Lower confidence bound.
    pub lower: f64,
    /// Upper confidence bound.
    pub upper: f64,
    /// Distance between the two.
    pub width: f64,
}

/// What there is to know about the learner, for `agft status` and for records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Lessons learned.
    pub rounds: u64,
    /// Mean reward over all of them.
    pub mean_reward: f64,
    /// Mean reward over the last 50 that its own choices brought; `None` before the first.
    pub recent_mean_reward: Option<f64>,
    /// Clocks tried, with lessons and mean reward, highest clock first.
    pub arms: Vec<ArmSummary>,
    /// Exploration rate now.
    pub alpha: f64,
    /// Exploration rate of the first round.
    pub initial_alpha: f64,
    /// Its decay per round.
    pub alpha_decay_rate: f64,
    /// Its floor.
    pub min_alpha: f64,
    /// Have the choices settled?
    pub converged: bool,
    /// How often what they settled on got worse.
    pub degradations: u64,
    /// Clocks out for the time being, highest first.
    pub pruned: Vec<PrunedArm>,
    /// Clocks given up for what was measured at them, ever.
    pub direct_prunings: u64,
    /// Clocks given up with others, ever.
    pub cascade_prunings: u64,
    /// Clocks around which it looks closer, if it does.
    pub anchor: Option<Clocks>,
}

impl LinUcb {
    /// Expected reward of a clock in a z-scored context (0 for one never tried).
    #[must_use]
    pub fn predict(&self, clocks: Clocks, context: &[f64; DIMENSION]) -> f64 {
        self.arms.get(&clocks).map_or(0.0, |tried| tried.arm.mean(input(context).view()))
    }

    /// Expected reward of a clock with its confidence bounds, at the present exploration rate.
    #[must_use]
    pub fn confidence(&self, clocks: Clocks, context: &[f64; DIMENSION]) -> Interval {
        let x = input(context);
        let (mean, width) = match self.arms.get(&clocks) {
            Some(tried) => (tried.arm.mean(x.view()), tried.arm.width(x.view())),
            None => (0.0, Arm::new(self.settings.lambda_reg).width(x.view())),
        };
        let half = self.alpha() * width;
        Interval { mean, lower: mean - half, upper: mean + half, width: 2.0 * half }
    }

    /// The confidence of every arm of a space, pairs with memory clocks included, highest clock first.
    #[must_use]
    pub fn confidences(&self, space: &ActionSpace, context: &[f64; DIMENSION]) -> Vec<(Clocks, Interval)> {
        space.arms().iter().map(|clocks| (*clocks, self.confidence(*clocks, context))).collect()
    }

    /// The latest clocks that were given up, oldest first, and whether they came back.
    pub fn prune_records(&self) -> impl Iterator<Item = &PruneRecord> {
        self.pruning.records()
    }

    /// Everything at once.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count of windows stays far below 2^53")]
    pub fn stats(&self) -> Stats {
        let Summary { rounds, alpha, arms, converged, pruned, .. } = self.summarise();
        let recent: Vec<f64> = self.log.iter().rev().take(HALF).map(|lesson| lesson.reward).collect();
        Stats {
            rounds,
            mean_reward: if rounds == 0 { 0.0 } else { self.reward_sum / rounds as f64 },
            recent_mean_reward: mean(&recent),
            arms,
            alpha,
            initial_alpha: self.settings.initial_alpha,
            alpha_decay_rate: self.settings.alpha_decay_rate,
            min_alpha: self.settings.min_alpha,
            converged,
            degradations: self.degradations,
            pruned,
            direct_prunings: self.pruning.direct,
            cascade_prunings: self.pruning.cascaded,
            anchor: self.shortlist.anchor,
        }
    }

    pub(super) fn summarise(&self) -> Summary {
        let arms = self.arms.iter().rev().filter(|(_, tried)| tried.arm.lessons() > 0);
        Summary {
            phase: if self.exploiting { Phase::Exploitation } else { Phase::Exploration },
            converged: self.exploiting,
            rounds: self.rounds,
            alpha: self.alpha(),
            arms: arms
                .map(|(clocks, tried)| ArmSummary {
                    clocks: *clocks,
                    lessons: tried.arm.lessons(),
                    mean_reward: tried.arm.mean_reward(),
                })
                .collect(),
            pruned: self.pruning.out().collect(),
        }
    }

    /// Is everything in it possible? A model file could say otherwise.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.settings.is_sound()
            && self.rounds <= MOST_ROUNDS
            && self.arms.len() <= MOST_ARMS
            && self.visited.len() <= MOST_ARMS
            && self.arms.values().all(|tried| {
                tried.arm.lessons() <= MOST_ROUNDS
                    && tried.recent.len() <= RECENT
                    && tried.recent.iter().all(|reward| reward.is_finite())
            })
            && self.log.len() <= self.settings.convergence_window.max(2 * HALF)
            && self.log.iter().all(|lesson| lesson.reward.is_finite())
            && self.reward_sum.is_finite()
            && self.cooling <= self.rounds
            && self.era <= self.rounds
            && self.degradations <= self.rounds
            && self.shortlist.window.len() <= MOST_ARMS
            && self.shortlist.last_refinement.is_none_or(|round| round <= self.rounds)
            && self.pruning.is_sound(self.rounds, MOST_ARMS)
    }
}
