//! `rounds_data.jsonl`: one line of JSON per round, with AGFT's field names and true values.
//!
//! What is not known is `null`, never a made-up zero.

mod line_file;
mod reader;
mod writer;

use serde::{Deserialize, Serialize};

use crate::units::{Mhz, Seconds, Watts};

pub use reader::{RoundReader, files_of};
pub use writer::{RoundLimits, RoundWriter};

/// Version of [`RoundRecord`]; raised when a field changes its meaning. A line without one was written by AGFT.
pub(crate) const SCHEMA_VERSION: u32 = 1;

const FILE_NAME: &str = "rounds_data.jsonl";
/// No round is longer; what is longer is no round.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// The name of a rotated file: 1 is the youngest.
fn rotated_name(index: usize) -> String {
    format!("rounds_data.{index}.jsonl")
}

/// One round: what was seen in a window, what was decided, and what was learned from it.
///
/// The fields up to `cache_hit_rate` have the names of AGFT's file; the rest is new. Durations are in seconds,
/// throughput in tokens per second, energy in joules, EDP in joule seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RoundRecord {
    /// Version of this record's form, `SCHEMA_VERSION`.
    #[serde(default)]
    pub schema_version: u32,
    /// Number of the round in this run, from 1.
    pub round: u64,
    /// End of the window, Unix seconds.
    pub timestamp: f64,
    /// The same moment, RFC 3339.
    pub(crate) datetime: String,

    /// Core clock of the window: the lock in force, or, unlocked, the running clock.
    pub gpu_frequency_mhz: Option<Mhz>,
    /// Energy of the GPU in the window.
    pub energy_j: Option<f64>,
    /// Mean time to first token of the requests that got theirs in the window.
    pub ttft_avg: Option<f64>,
    /// Mean time per output token.
    pub tpot_avg: Option<f64>,
    /// Mean end-to-end latency of the requests that finished.
    pub e2e_avg: Option<f64>,
    /// Prompt and generated tokens together.
    pub(crate) total_throughput_tps: Option<f64>,
    /// Prompt tokens.
    pub prefill_throughput_tps: Option<f64>,
    /// Generated tokens.
    pub decode_throughput_tps: Option<f64>,
    /// EDP of the window.
    pub edp_raw: Option<f64>,
    /// The reward again: AGFT's name for EDP relative to its baseline.
    pub(crate) edp_normalized: Option<f64>,
    /// EDP expected at default clocks for this load.
    pub(crate) edp_baseline: Option<f64>,
    /// EDP saved against the baseline, in percent.
    pub(crate) edp_improvement_pct: Option<f64>,
    /// Requests running at the end of the window.
    pub(crate) active_requests: Option<f64>,
    /// KV cache in use, in percent.
    pub(crate) cache_usage_pct: Option<f64>,
    /// Requests that finished in the window.
    pub(crate) completed_requests_delta: Option<f64>,
    /// Phase of the learner.
    pub(crate) learning_phase: Option<String>,
    /// Reward of the window.
    pub reward: Option<f64>,
    /// Width of exploration in force, after its decay.
    pub alpha_value: Option<f64>,
    /// Width of the confidence interval of the clock chosen.
    pub(crate) ucb_confidence: Option<f64>,
    /// `UCB`, `GREEDY`, `DATA_COLLECTION`, ...
    pub action_selection_method: Option<String>,
    /// Clocks that could have been chosen.
    pub(crate) available_frequencies_count: Option<u64>,
    /// Clocks that are pruned.
    pub(crate) pruned_frequencies_count: Option<u64>,
    /// How often the clock of this round was tried before.
    pub(crate) frequency_exploration_count: Option<u64>,
    /// Was a latency limit broken? Unknown where limits are switched off.
    pub(crate) slo_violation: Option<bool>,
    /// Limit on the time to first token.
    pub ttft_limit: Option<f64>,
    /// Limit on the time per output token.
    pub tpot_limit: Option<f64>,
    /// Feature 0, before scaling.
    pub has_queue: Option<f64>,
    /// Feature 1, before scaling.
    pub prefill_throughput_feature: Option<f64>,
    /// Feature 2, before scaling.
    pub decode_throughput_feature: Option<f64>,
    /// Feature 3, before scaling.
    pub packing_efficiency: Option<f64>,
    /// Feature 4, before scaling.
    pub concurrency: Option<f64>,
    /// Feature 5, before scaling.
    pub gpu_cache_usage: Option<f64>,
    /// Feature 6, before scaling.
    pub cache_hit_rate: Option<f64>,

    /// Memory clock of the window: the lock in force, or, unlocked, the running clock.
    pub(crate) gpu_memory_frequency_mhz: Option<Mhz>,
    /// Core clock asked for; unknown: none was.
    pub asked_core_mhz: Option<Mhz>,
    /// Core clock read back.
    pub(crate) read_core_mhz: Option<Mhz>,
    /// Mean power in the window.
    pub power_w: Option<Watts>,
    /// True length of the window.
    pub(crate) window_s: Option<Seconds>,
    /// Requests waiting at the end of the window.
    pub(crate) waiting_requests: Option<f64>,
    /// State of the control loop.
    pub state: Option<String>,
    /// What the loop told the GPU.
    pub command: Option<String>,
    /// Why.
    pub decision_reason: Option<String>,
    /// Did the learner take the reward?
    pub(crate) reward_used: Option<bool>,
    /// Time that fetching the metrics page took.
    pub(crate) scrape_latency_s: Option<Seconds>,
    /// How late the round began.
    pub(crate) tick_lateness_s: Option<Seconds>,
    /// Power expected at default clocks for this load.
    pub(crate) baseline_power_w: Option<Watts>,
    /// Time per output token expected at default clocks for this load.
    pub baseline_tpot_s: Option<Seconds>,
    /// Energy over that of default clocks under the same load, where that is known.
    #[serde(default)]
    pub energy_ratio: Option<f64>,
    /// Standard deviation of its logarithm.
    #[serde(default)]
    pub energy_ratio_sd: Option<f64>,
    /// Time per output token over that of default clocks under the same load, where that is known.
    #[serde(default)]
    pub tpot_ratio: Option<f64>,
    /// Standard deviation of its logarithm.
    #[serde(default)]
    pub tpot_ratio_sd: Option<f64>,
    /// Cycle of the holdout experiment, where the window can be compared in it.
    #[serde(default)]
    pub(crate) holdout_cycle: Option<u64>,
    /// Slot of that cycle.
    #[serde(default)]
    pub(crate) holdout_slot: Option<u64>,
    /// Did that slot run at default clocks?
    #[serde(default)]
    pub holdout: Option<bool>,
    /// Tokens that the mean time per output token is over.
    #[serde(default)]
    pub(crate) tpot_samples: Option<f64>,
    /// Requests that the mean time to first token is over.
    #[serde(default)]
    pub(crate) ttft_samples: Option<f64>,
}

impl RoundRecord {
    /// A record of which nothing is known but its number and moment.
    pub fn new(round: u64, at: jiff::Timestamp) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            round,
            timestamp: super::time::unix_seconds(at),
            datetime: super::time::rfc3339(at),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests;
