//! The constants of the policy. Fields are named as their keys in the configuration.

use serde::{Deserialize, Serialize};

use crate::reward::RewardForm;
use crate::units::{Mhz, Seconds};

/// Constants of the policy; the defaults are those of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinUcbSettings {
    /// Exploration rate at the first round.
    pub initial_alpha: f64,
    /// Its exponential decay per round.
    pub alpha_decay_rate: f64,
    /// The rate never falls below this.
    pub min_alpha: f64,
    /// Ridge weight λ of every arm, above 0. It is taken as it is: nothing raises it in silence.
    pub lambda_reg: f64,
    /// How long a clock is held before the next choice: judging takes a few windows, and switching is not free.
    pub dwell: Seconds,
    /// What the rewards are made of, to tell costs from them.
    pub reward: RewardForm,

    /// Distance between the core clocks of the first sweep.
    pub coarse_step_mhz: Mhz,
    /// Round of the first refinement.
    pub refinement_start_threshold: u64,
    /// Rounds from one refinement to the next.
    pub adaptive_update_interval: u64,
    /// Round from which on refinements trust the model over plain statistics.
    pub learner_maturity_threshold: u64,

    /// Give up clocks that measure worse than the best?
    pub enable_action_pruning: bool,
    /// Rounds from one such comparison to the next.
    pub pruning_check_interval: u64,
    /// Distance from the best that is given up, in standard deviations of that distance.
    pub pruning_threshold: f64,
    /// Measurements of a clock before it takes part.
    pub min_exploration_for_pruning: usize,
    /// Rounds before the first comparison.
    pub pruning_maturity_threshold: u64,
    /// A clock below this takes all lower ones with it when it is given up; in force only where the top clock is
    /// unknown, else half of that is the threshold.
    pub cascade_pruning_threshold: Mhz,
    /// Give up at once clocks that are far too bad?
    pub enable_extreme_pruning: bool,
    /// Mean reward at or below which a clock is far too bad.
    pub extreme_pruning_threshold: f64,
    /// Measurements of a clock before it is judged so.
    pub extreme_pruning_min_samples: usize,
    /// Last round in which clocks are judged so, counted from the start or from the last degradation.
    pub extreme_pruning_max_rounds: u64,

    /// Number of latest rounds that convergence looks at.
    pub convergence_window: usize,
    /// Converged when this many clocks ...
    pub convergence_top_k: usize,
    /// ... hold at least this share of those rounds.
    pub convergence_threshold: f64,
    /// Relative rise of the cost after convergence that starts learning again.
    pub performance_degradation_threshold: f64,
}

impl Default for LinUcbSettings {
    fn default() -> Self {
        Self {
            initial_alpha: 10.0,
            alpha_decay_rate: 0.02,
            min_alpha: 0.1,
            lambda_reg: 1.0,
            dwell: Seconds(0.8),
            reward: RewardForm::LogRatio,
            coarse_step_mhz: Mhz(90),
            refinement_start_threshold: 80,
            adaptive_update_interval: 10,
            learner_maturity_threshold: 100,
            enable_action_pruning: true,
            pruning_check_interval: 20,
            pruning_threshold: 4.0,
            min_exploration_for_pruning: 6,
            pruning_maturity_threshold: 30,
            cascade_pruning_threshold: Mhz(800),
            enable_extreme_pruning: true,
            extreme_pruning_threshold: -1.2,
            extreme_pruning_min_samples: 3,
            extreme_pruning_max_rounds: 60,
            convergence_window: 100,
            convergence_top_k: 3,
            convergence_threshold: 0.6,
            performance_degradation_threshold: 0.3,
        }
    }
}

impl LinUcbSettings {
    /// Exploration rate `max(α₀ e^(-decay·rounds), α_min)`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count of windows stays far below 2^53")]
    pub fn alpha(&self, rounds: u64) -> f64 {
        let decayed = self.initial_alpha * (-self.alpha_decay_rate * rounds as f64).exp();
        decayed.max(self.min_alpha)
    }

    /// Rounds after which the exploration rate is half way down, on a logarithmic scale, from its start to its floor.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float to int cast saturates"
    )]
    pub(super) fn half_cooled(&self) -> u64 {
        (0.5 * (self.initial_alpha / self.min_alpha).ln() / self.alpha_decay_rate).max(0.0) as u64
    }

    /// The logarithm of a reward's cost against the baseline, up to a constant.
    ///
    /// What is compared among clocks, and over time, are costs: one step of it is the same relative change in either
    /// form of reward. AGFT's form is flat at its lower end, so there the cost is only known to be at least that.
    #[must_use]
    pub fn log_cost(&self, reward: f64) -> f64 {
        match self.reward {
            RewardForm::LogRatio => -reward,
            RewardForm::Clipped => (1.0 - reward / 2.0).max(f64::MIN_POSITIVE).ln(),
        }
    }

    /// Is every number usable? A model file could say otherwise.
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        let at_least_zero = [
            self.initial_alpha,
            self.alpha_decay_rate,
            self.min_alpha,
            self.dwell.0,
            self.pruning_threshold,
            self.convergence_threshold,
            self.performance_degradation_threshold,
        ];
        at_least_zero.iter().all(|value| value.is_finite() && *value >= 0.0)
            && self.lambda_reg.is_finite()
            && self.lambda_reg > 0.0
            && self.extreme_pruning_threshold.is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::{Cost, Objective, reward};
    use crate::units::Watts;

    #[test]
    fn log_cost_of_either_form_differs_as_the_costs_do() {
        let cost = |power| Cost { power: Watts(power), delay: Seconds(0.02) };
        for form in [RewardForm::LogRatio, RewardForm::Clipped] {
            let settings = LinUcbSettings { reward: form, ..LinUcbSettings::default() };
            let of = |power| settings.log_cost(reward(cost(power), cost(200.0), Objective::Edp, form));
            approx::assert_relative_eq!(of(180.0) - of(120.0), 1.5_f64.ln(), max_relative = 1e-9);
        }
    }

    #[test]
    fn exploration_rate_decays_to_its_floor() {
        let settings = LinUcbSettings::default();
        approx::assert_relative_eq!(settings.alpha(0), 10.0);
        approx::assert_relative_eq!(
            settings.alpha(50),
            10.0 * (-0.02_f64 * 50.0).exp(),
            max_relative = 1e-12
        );
        approx::assert_relative_eq!(settings.alpha(100_000), 0.1);
        approx::assert_relative_eq!(settings.alpha(settings.half_cooled()), 1.0, max_relative = 0.02);
    }

    #[test]
    fn exploration_rate_without_decay_or_floor_has_a_middle_all_the_same() {
        let with = |alpha_decay_rate, min_alpha| LinUcbSettings {
            alpha_decay_rate,
            min_alpha,
            ..LinUcbSettings::default()
        };
        assert_eq!(with(0.0, 0.1).half_cooled(), u64::MAX);
        assert_eq!(with(0.02, 0.0).half_cooled(), u64::MAX);
        assert_eq!(with(0.0, 10.0).half_cooled(), 0);
    }
}
