//! What a run leaves to the next one.

pub(crate) mod v1;

use serde::{Deserialize, Serialize};

use crate::bandit::{Learner, learner};
use crate::features::Scaler;
use crate::reward::baseline::{BaselineBook, BaselineSchedule};
use crate::reward::floor::Floor;

/// Version of the contents of [`Model`]: a model file of another one is not loaded.
pub const MODEL_VERSION: u32 = 2;

/// Everything learned: the scales, the baselines, the policy, the floor, and how long it took.
///
/// In a run, policy and floor hold what is only for the moment, too; a snapshot of the run includes that. A model
/// file does not, see [`Model`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Learned<Policy = Learner, Lowest = Floor> {
    /// Scales of the features. The policy's coefficients mean nothing without them.
    pub scaler: Scaler,
    /// Cost of driver-default clocks, by load.
    pub baseline: BaselineBook,
    /// Which measurements at default clocks are owed.
    pub schedule: BaselineSchedule,
    /// The policy.
    pub policy: Policy,
    /// The floor that broken limits have set.
    pub floor: Lowest,
    /// Rounds closed, over all runs.
    pub rounds: u64,
    /// Sum of all rewards, over all runs.
    pub reward_sum: f64,
    /// Round in which the policy converged; `None` while it has not, or no longer has.
    pub converged_at: Option<u64>,
}

/// What of it outlives a run: the content of a model file. The floor is in MHz.
pub type Model = Learned<learner::Durable, Option<f64>>;

impl Learned {
    /// Nothing learned yet; the first baseline takes `baseline_windows` valid windows.
    #[must_use]
    pub fn fresh(policy: Learner, baseline_windows: u32) -> Self {
        Self {
            scaler: Scaler::default(),
            baseline: BaselineBook::default(),
            schedule: BaselineSchedule::new(baseline_windows),
            policy,
            floor: Floor::default(),
            rounds: 0,
            reward_sum: 0.0,
            converged_at: None,
        }
    }

    /// A copy of what outlives the run.
    #[must_use]
    pub fn model(&self) -> Model {
        self.with(self.policy.durable(), self.floor.mhz())
    }

    /// Is every number usable? The checksum says a file is what was written, this says it made sense.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.baseline.is_sound()
            && self.policy.is_sound()
            && self.reward_sum.is_finite()
            && self.floor.mhz().is_none_or(f64::is_finite)
    }
}

impl From<Model> for Learned {
    fn from(model: Model) -> Self {
        model.with(model.policy.clone().into(), Floor::left_at(model.floor))
    }
}

impl<P, F> Learned<P, F> {
    /// The same in another form: with this policy and floor.
    fn with<Policy, Lowest>(&self, policy: Policy, floor: Lowest) -> Learned<Policy, Lowest> {
        Learned {
            scaler: self.scaler.clone(),
            baseline: self.baseline.clone(),
            schedule: self.schedule.clone(),
            policy,
            floor,
            rounds: self.rounds,
            reward_sum: self.reward_sum,
            converged_at: self.converged_at,
        }
    }

    /// The same with policy and floor in another form.
    fn map<Policy, Lowest>(
        self,
        policy: impl FnOnce(P) -> Policy,
        floor: impl FnOnce(F) -> Lowest,
    ) -> Learned<Policy, Lowest> {
        let Self { scaler, baseline, schedule, rounds, reward_sum, converged_at, .. } = self;
        let (policy, floor) = (policy(self.policy), floor(self.floor));
        Learned { scaler, baseline, schedule, policy, floor, rounds, reward_sum, converged_at }
    }
}
