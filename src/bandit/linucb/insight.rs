//! What the policy can be asked: how sure it is, and a summary.

use super::{Durable, HALF, RECENT};
use crate::bandit::arm::{Arm, input};
use crate::bandit::{ArmSummary, Phase, Summary};
use crate::features::DIMENSION;
use crate::units::Clocks;

/// Arms that a model may have. Cards have some hundred core clocks and some memory clocks.
const MOST_ARMS: usize = 20_000;
/// Rounds that a model may have: more than a century of them, and still exact as a floating-point number.
const MOST_ROUNDS: u64 = 1 << 40;

impl Durable {
    /// Half-width of the confidence interval of a clock's expected reward, at the present exploration rate.
    #[must_use]
    pub fn uncertainty(&self, clocks: Clocks, context: &[f64; DIMENSION]) -> f64 {
        let x = input(context);
        let width = match self.arms.get(&clocks) {
            Some(tried) => tried.arm.width(x.view()),
            None => Arm::new(self.settings.lambda_reg).width(x.view()),
        };
        self.alpha() * width
    }

    pub(super) fn phase(&self) -> Phase {
        if self.exploiting { Phase::Exploitation } else { Phase::Exploration }
    }

    pub(super) fn summarise(&self) -> Summary {
        let arms = self.arms.iter().rev().filter(|(_, tried)| tried.arm.lessons() > 0);
        Summary {
            phase: self.phase(),
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
