//! Which clock: policies that learn from rewards in context.
//!
//! A [`Policy`] is shown each window's [`Evidence`] and asked for a clock once per tick. What it may choose from is the
//! [`ActionSpace`]; what must never happen (limits broken, clocks that do not hold) is not its business but
//! `control`'s, which narrows the space before asking.

mod arm;
mod doubt;
#[cfg(test)]
mod gold;
pub mod learner;
pub mod linucb;
pub mod memory;
mod overload;
mod prune;
mod refine;
mod settle;
pub mod space;
pub mod structured;

use serde::{Deserialize, Serialize};

use crate::features::DIMENSION;
use crate::metrics::window::Window;
use crate::reward::energy::EnergyMeter;
use crate::units::{Clocks, Mhz, Target, Time};
pub use learner::Learner;
pub use linucb::LinUcb;
pub use prune::Cause;
pub use space::ActionSpace;

/// Why this clock was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The present choice has not been held long enough to be judged.
    Dwell,
    /// First visit of a clock, from the top one down.
    Sweep,
    /// A clock that was given up is measured anew.
    Retrial,
    /// Highest upper confidence bound.
    Ucb,
    /// Highest expected reward.
    Greedy,
    /// Lowered clocks have cost more than they brought lately.
    Doubt,
    /// More requests wait than lowered clocks may be forgiven for.
    Overload,
    /// Nothing may be chosen: every clock failed, or the limits leave none.
    NothingAllowed,
}

/// A policy's answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The clock.
    pub target: Target,
    /// Why.
    pub reason: Reason,
    /// The score that won, where the reason has one (reward units).
    pub score: Option<f64>,
    /// Half-width of the confidence bound inside that score (reward units).
    pub width: Option<f64>,
}

/// What a policy decides on.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Now.
    pub now: Time,
    /// The context, z-scored; order of `features::NAMES`.
    pub context: &'a [f64; DIMENSION],
    /// What may be chosen.
    pub space: &'a ActionSpace,
}

/// What one window between two scrapes showed. A policy takes from it what it can use.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Now, the end of the window.
    pub now: Time,
    /// The engine's side.
    pub window: &'a Window,
    /// What was in force during the whole window; `None` if it changed inside, or the GPU was parked.
    pub ran_at: Option<Target>,
    /// Core clock read back at the end of the window, mean over the engine's GPUs.
    pub read_core: Option<Mhz>,
    /// Was the clock held low by power or temperature?
    pub capped: bool,
    /// Share of the recent time in which the GPUs ran a kernel, 0 to 1, where the driver says.
    pub utilization: Option<f64>,
    /// Does the page show work? It is one engine step old, so the first step of a spell shows none.
    pub work: bool,
    /// Counter ticks of each GPU, for power over any span of recent time.
    pub meters: &'a [EnergyMeter],
    /// The window's context, z-scored; order of `features::NAMES`.
    pub context: &'a [f64; DIMENSION],
    /// Reward against the baseline for comparable load, where the window has a cost and a baseline.
    pub reward: Option<f64>,
}

/// How far a policy has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// Still trying clocks out.
    Exploration,
    /// Uses what it knows.
    Exploitation,
}

/// What a policy tells about itself, for logs, metadata and displays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Exploration or exploitation.
    pub phase: Phase,
    /// Has the choice settled?
    pub converged: bool,
    /// Windows learned from.
    pub rounds: u64,
    /// Exploration rate in force.
    pub alpha: f64,
    /// Clocks with their number of lessons and mean reward, highest clock first.
    pub arms: Vec<ArmSummary>,
    /// Clocks given up for the time being, highest clock first.
    pub pruned: Vec<PrunedArm>,
}

impl Summary {
    /// The arm with the highest mean reward among those with at least `min` lessons.
    #[must_use]
    pub fn best(&self, min: u64) -> Option<&ArmSummary> {
        self.arms
            .iter()
            .filter(|arm| arm.lessons >= min)
            .max_by(|a, b| a.mean_reward.total_cmp(&b.mean_reward))
    }
}

/// One arm in a [`Summary`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ArmSummary {
    /// The clocks.
    pub clocks: Clocks,
    /// Lessons learned at them.
    pub lessons: u64,
    /// Mean reward over these.
    pub mean_reward: f64,
}

/// One clock given up, in a [`Summary`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PrunedArm {
    /// The clocks.
    pub clocks: Clocks,
    /// Round in which they were given up.
    pub round: u64,
    /// Why; `None` if that is too long ago to be on record.
    pub cause: Option<Cause>,
}

/// A contextual policy over clocks.
pub trait Policy {
    /// The clock to run at from now on.
    fn choose(&mut self, view: View<'_>) -> Choice;

    /// Takes a window in; says whether anything was learned from it.
    ///
    /// # Errors
    /// [`BanditError`]; the policy is unchanged then.
    fn observe(&mut self, evidence: &Evidence<'_>) -> Result<bool, BanditError>;

    /// Does it need rewards, and so a baseline measured for it at driver-default clocks?
    fn wants_rewards(&self) -> bool;

    /// Something else drove the clocks for a while (idle, outage, baseline): what was held is no longer held.
    fn interrupt(&mut self);

    /// A latency limit broke while the lock of these clocks was in force.
    fn limit_broken(&mut self, running: Clocks) {
        let _ = running;
    }

    /// How far it has come: a word, where [`Policy::summary`] counts everything.
    fn phase(&self) -> Phase;

    /// How far it has come, in figures.
    fn summary(&self) -> Summary;
}

/// Why a lesson or a score was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BanditError {
    /// A context entry or a reward is NaN or infinite.
    #[error("{what} is {value}, must be finite")]
    NotFinite {
        /// Which number.
        what: String,
        /// Its value.
        value: f64,
    },
    /// The matrix could not be inverted even after regularisation.
    #[error("the arm's matrix cannot be inverted")]
    Singular,
    /// A stored arm is none.
    #[error("the stored arm must have {rule}")]
    Stored {
        /// What it must have.
        rule: &'static str,
    },
}
