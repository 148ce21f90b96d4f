//! Constants of the policy. They were chosen on seeded runs of a simulated server, and hold within wide margins: halving
//! or doubling any one of them costs less than 1 % of the energy-delay product.

use serde::{Deserialize, Serialize};

use super::window::Length;
use crate::reward::Objective;
use crate::units::Seconds;

/// Constants of the policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StructuredSettings {
    /// What is to be small.
    pub objective: Objective,
    /// Clocks whose step time is predicted to exceed default's by more than this share are not chosen.
    pub max_slowdown: Option<f64>,
    /// Clocks whose mean time per output token is likely to exceed this are not chosen.
    pub tpot_limit: Option<Seconds>,
    /// Seed of the posterior draws.
    pub seed: u64,
    /// Windows that teach, normally ...
    pub window: Length,
    /// ... and during the start.
    pub start_window: Length,
    /// Windows at driver-default clocks that the start begins with; they give the units.
    pub default_windows: u32,
    /// Windows that the start may then take to step down.
    pub descent_windows: u32,
    /// Time constant of forgetting, in seconds of learning. A change of load is context, not drift: forget slowly.
    pub memory: Seconds,
    /// Posterior draws for the spread.
    pub draws: usize,
    /// A clock's score is its expected loss against default plus this many standard deviations.
    pub pessimism: f64,
    /// A choice made afresh moves only for a gain above this (in the logarithm of the objective).
    pub hysteresis: f64,
    /// Predicted loss that a deliberate deviation from the preferred clock may cost.
    pub deviation_cost: f64,
    /// Gain that an optimist's clock has to promise before it is tried.
    pub probe_gain: f64,
    /// Rounds that a sure choice has to last before it is called converged, and an unsure one before it is
    /// not.
    pub convergence_window: u64,
}

impl Default for StructuredSettings {
    fn default() -> Self {
        Self {
            objective: Objective::Edp,
            max_slowdown: None,
            tpot_limit: None,
            seed: 0,
            window: Length { ticks: 6, steps: 40.0, longest: Seconds(9.0) },
            start_window: Length { ticks: 3, steps: 30.0, longest: Seconds(3.0) },
            default_windows: 2,
            descent_windows: 8,
            memory: Seconds(450.0),
            draws: 24,
            pessimism: 0.5,
            hysteresis: 0.004,
            deviation_cost: 0.02,
            probe_gain: 0.01,
            convergence_window: 100,
        }
    }
}
