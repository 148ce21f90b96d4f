//! What there is to see. Everything here is a plain value with its unit in its name or type; unknown is `None`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::estimate::Estimate;
use super::notes::Notes;
use super::park::ParkFigures;
use super::verdict::Verdict;
use crate::bandit::structured::{BestAt, Chosen};
use crate::bandit::{Phase, Reason};
use crate::control::Mode;
use crate::holdout::SavingsState;
use crate::reward::slo::Limits;
use crate::stats::Durations;
use crate::units::{Clocks, Mhz};

/// One server with its GPUs at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The server's name.
    pub name: String,
    /// Moment of this picture, Unix seconds.
    pub at_unix_s: f64,
    /// The learner that is configured, for example `structured`.
    pub policy: String,
    /// What is to be small: `edp`, `ed2p` or `energy`.
    pub objective: String,
    /// What the loop is doing.
    pub mode: Mode,
    /// The lock asked for; `None` is driver-default clocks.
    pub asked: Option<Clocks>,
    /// The lock that the driver has confirmed.
    pub in_force: Option<Clocks>,
    /// Clocks were to be given back and the driver has not taken them yet: a lock may be in force, whatever
    /// `in_force` says.
    #[serde(default)]
    pub not_given_back: bool,
    /// The lowest core clock that broken limits allow.
    pub floor: Option<Mhz>,
    /// The latency limits in force.
    pub limits: Option<Limits>,
    /// Those of them that cannot be judged of this engine: why, a sentence each.
    #[serde(default)]
    pub not_judged: Vec<String>,
    /// What the delay of the latest window that has one is.
    #[serde(default)]
    pub delay: Option<String>,
    /// The GPUs of the engine.
    pub gpus: Vec<GpuState>,
    /// What the engine has to do.
    pub load: Load,
    /// The latest round, once there is one; none in an outage.
    pub round: Option<RoundState>,
    /// What was learned.
    pub learner: LearnerState,
    /// What happened so far in this run.
    pub counts: Counts,
    /// Savings against default clocks, as far as they can be estimated.
    pub estimate: Estimate,
    /// What came of parking.
    pub parking: ParkingState,
    /// What the holdout experiment has shown.
    pub savings: SavingsState,
    /// What agft is worth here, in one line and in figures.
    #[serde(default)]
    pub verdict: Verdict,
    /// What happened lately, oldest first.
    pub notes: Notes,
    /// Time that fetching the metrics page took.
    pub scrape: Durations,
    /// How late ticks began.
    pub lateness: Durations,
    /// Time that a step of the loop took.
    pub step: Durations,
}

impl State {
    /// Indices of its GPUs, with commas between them.
    pub(crate) fn gpu_indices(&self) -> String {
        let indices: Vec<String> = self.gpus.iter().map(|gpu| gpu.index.to_string()).collect();
        indices.join(",")
    }
}

/// One GPU. Sensors that do not answer are `None`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GpuState {
    /// Index in NVML's order.
    pub index: u32,
    /// Identity.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Running core clock.
    pub core_clock: Option<Mhz>,
    /// Running memory clock.
    pub memory_clock: Option<Mhz>,
    /// Board power.
    pub power_w: Option<f64>,
    /// Degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Share of the time in which a kernel ran, 0 to 1.
    pub utilization: Option<f64>,
    /// Is the clock held low by power or temperature?
    pub capped: Option<bool>,
    /// Energy since the start of the run, as far as it was measured; `None` before anything was.
    pub energy_j: Option<f64>,
}

/// What the engine has to do, at the end of the latest window.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Load {
    /// Requests in the running batch.
    pub running: Option<f64>,
    /// Requests waiting for it.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<f64>,
    /// Prompt tokens per second.
    pub(crate) prefill_tps: Option<f64>,
    /// Generated tokens per second.
    pub(crate) decode_tps: Option<f64>,
    /// Mean time to first token in the window.
    pub ttft_s: Option<f64>,
    /// Mean time per output token in the window.
    pub tpot_s: Option<f64>,
}

/// The latest round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundState {
    /// Serial number within the model's life.
    pub number: u64,
    pub(crate) window_s: f64,
    /// Mean power, all GPUs together.
    pub power_w: Option<f64>,
    /// Energy times time per output token, joule seconds.
    pub edp_js: Option<f64>,
    /// What default clocks would have cost under this load, joule seconds; `None` where that is not known.
    pub default_edp_js: Option<f64>,
    /// Reward.
    pub reward: Option<f64>,
    /// Why this clock was chosen.
    pub reason: Option<String>,
    /// The latency limit broken now, if any: `ttft` or `tpot`.
    pub violated: Option<String>,
    /// What was measured of that latency, seconds.
    #[serde(default)]
    pub violated_s: Option<f64>,
}

/// What was learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearnerState {
    /// Exploring or exploiting.
    pub phase: Phase,
    /// Has the choice settled?
    pub converged: bool,
    /// The round since when, while it has.
    #[serde(default)]
    pub converged_round: Option<u64>,
    /// The moment since when, Unix seconds; `None` if that was in an earlier run.
    #[serde(default)]
    pub converged_unix_s: Option<f64>,
    /// The clock that is preferred under the present load, and what the model expects of it against default
    /// clocks; `structured` only.
    #[serde(default)]
    pub chosen: Option<Chosen>,
    /// Lessons learned.
    pub lessons: u64,
    pub(crate) exploration_rate: f64,
    /// Why `structured` has handed over to `linucb`, if it has.
    pub(crate) handed_over: Option<String>,
    /// The clock with the highest mean reward.
    pub best: Option<Clocks>,
    /// What the model would choose at other loads; `structured` only, and only once it has a model.
    #[serde(default)]
    pub by_load: Vec<BestAt>,
    /// Every clock, highest first.
    pub arms: Vec<ArmState>,
}

/// One clock that may be chosen, or could be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArmState {
    /// The clocks.
    pub clocks: Clocks,
    /// May it be chosen?
    pub status: ArmStatus,
    /// Why not, in words.
    pub why: Option<String>,
    /// Lessons learned at it.
    pub lessons: u64,
    /// Their mean reward; expected reward with `structured`. `None` without lessons.
    pub(crate) mean_reward: Option<f64>,
    /// Half-width of the confidence bound at average load; `linucb` only, and only with lessons.
    pub(crate) uncertainty: Option<f64>,
}

/// May a clock be chosen, and if not, what took it out?
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArmStatus {
    /// It may.
    Available,
    /// The card did not follow it, or the driver refused it.
    Failed,
    /// Below the floor that broken limits have set.
    BelowFloor,
    /// Far too bad.
    PrunedExtreme,
    /// Measured worse than the best.
    PrunedCost,
    /// Below one that was given up.
    PrunedCascade,
    /// Below where it had become clear that lower is worse.
    PrunedDescent,
    /// Given up too long ago for the reason to be on record.
    PrunedUnknown,
}

impl ArmStatus {
    /// Every status.
    pub(crate) const ALL: [Self; 8] = [
        Self::Available,
        Self::Failed,
        Self::BelowFloor,
        Self::PrunedExtreme,
        Self::PrunedCost,
        Self::PrunedCascade,
        Self::PrunedDescent,
        Self::PrunedUnknown,
    ];

    /// The name that metrics and status show.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Failed => "failed",
            Self::BelowFloor => "below_floor",
            Self::PrunedExtreme => "pruned_extreme",
            Self::PrunedCost => "pruned_cost",
            Self::PrunedCascade => "pruned_cascade",
            Self::PrunedDescent => "pruned_descent",
            Self::PrunedUnknown => "pruned_unknown",
        }
    }
}

/// What happened in this run. The keys of the maps are fixed words, each there from the start.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Steps of the loop.
    pub steps: u64,
    /// Rounds closed.
    pub rounds: u64,
    /// Rounds that taught something.
    pub lessons: u64,
    /// Prompt tokens that the engine processed.
    pub prompt_tokens: f64,
    /// Tokens that it generated.
    pub generated_tokens: f64,
    /// Requests that it finished.
    pub finished: f64,
    /// Seconds in each mode.
    pub(crate) mode_s: BTreeMap<String, f64>,
    /// Decisions of the policy, by reason.
    pub decisions: BTreeMap<String, u64>,
    /// Changes of the clocks that the driver has confirmed.
    pub clock_changes: u64,
    /// Pages that could not be had.
    pub(crate) scrape_failures: u64,
    /// Outages of the endpoint.
    pub outages: u64,
    /// Things that went wrong, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Times a latency limit broke, by limit.
    pub(crate) limit_violations: BTreeMap<String, u64>,
    /// Seconds with a broken limit.
    pub(crate) violated_s: f64,
    /// Times the clocks were parked.
    pub parkings: u64,
    /// Ends of parking, by what showed the work.
    pub wakes: BTreeMap<String, u64>,
}

/// What came of parking in this run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ParkingState {
    /// What would be lowered now: `core`, `memory` or `both`.
    pub lever: Option<String>,
    /// An idle gap is waited out so long, seconds.
    pub(crate) wait_s: Option<f64>,
    /// What came of it.
    #[serde(flatten)]
    pub figures: ParkFigures,
}

/// The kinds of `Counts::faults`.
pub(crate) fn fault_kinds() -> [&'static str; 8] {
    [
        "clock_refused",
        "clock_not_held",
        "clocks_changed",
        "stuck_at_idle_clock",
        "clock_held_low",
        "engine_restart",
        "values_refused",
        "stale_gauges",
    ]
}

/// The keys of `Counts::wakes`.
pub(crate) fn wake_sources() -> [&'static str; 6] {
    ["page", "connections", "instances", "power", "utilization", "unseen"]
}

pub(crate) fn clocks_words(in_force: Option<Clocks>, not_given_back: bool) -> String {
    match in_force {
        _ if not_given_back => "not taken back by the driver; a lock may be in force".to_owned(),
        None => "driver default".to_owned(),
        Some(clocks) => clocks.to_string(),
    }
}

/// The name of a reason, as metrics, status and files have it.
pub(crate) fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Dwell => "dwell",
        Reason::Sweep => "sweep",
        Reason::Retrial => "retrial",
        Reason::Ucb => "ucb",
        Reason::Greedy => "greedy",
        Reason::Doubt => "doubt",
        Reason::Overload => "overload",
        Reason::NothingAllowed => "nothing_allowed",
    }
}
