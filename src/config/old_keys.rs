//! Keys of AGFT's own configuration files, of its present and its earlier versions, that agft has no use for.
//!
//! Such a file loads: each of these keys is a warning that names what decides the matter here.

use super::reader::Reader;

const STEPS: &str = "the board's own list of clocks and linucb.coarse_step_mhz decide";
const SAMPLING: &str = "linucb.coarse_step_mhz and control.adaptive_update_interval decide";
const LIMITS: &str = "control.ttft_limit, tpot_limit and the slo_ keys decide";
const LEVELS: &str = "logging.console_level and file_level decide";
const FORMAT: &str = "--log-format chooses text or json";
const WINDOWS: &str = "the energy counter over true elapsed time is used, its settling part left out";
const FORGETTING: &str = "old evidence fades by itself";
const KEPT: &str = "the model file and the one before it are kept; experiment.keep_runs bounds the runs";
const GENERATIONS: &str = "control.convergence_window, convergence_threshold and convergence_top_k decide";

/// Section, key, and what decides instead.
const OLD_KEYS: [(&str, &str, &str); 33] = [
    (
        "adaptive_sampling",
        "reward_threshold",
        "AGFT never read it: control.refinement_start_threshold and control.adaptive_update_interval decide",
    ),
    ("adaptive_sampling", "slo_safe_ratio", LIMITS),
    ("adaptive_sampling", "slo_coarse_step", SAMPLING),
    ("adaptive_sampling", "slo_fine_step", SAMPLING),
    ("adaptive_sampling", "edp_initial_step", SAMPLING),
    ("adaptive_sampling", "edp_coarse_step", SAMPLING),
    ("adaptive_sampling", "edp_fine_step", SAMPLING),
    ("gpu", "force_step_list", STEPS),
    ("gpu", "max_action_count", STEPS),
    ("control", "max_action_count", STEPS),
    ("control", "convergence_p_value_threshold", GENERATIONS),
    ("control", "decision_interval", "control.decision_interval_s decides, in seconds"),
    ("control", "long_interval", "control.decision_interval_s decides, in seconds"),
    ("control", "switch_cost_weight", "the policy accounts for the time that a clock takes to settle"),
    ("control", "change_detection_threshold", "control.performance_degradation_threshold decides"),
    ("linucb", "use_continuous", "clocks are the board's own levels, around the best ones every one of them"),
    ("linucb", "forgetting_factor", FORGETTING),
    ("linucb", "discount_factor", FORGETTING),
    ("linucb", "convergence_method", GENERATIONS),
    ("logging", "level", LEVELS),
    ("logging", "log_level", LEVELS),
    ("logging", "format", FORMAT),
    ("logging", "console_format", FORMAT),
    ("logging", "file_format", FORMAT),
    ("logging", "console_simple", FORMAT),
    ("logging", "log_file", "logging.dir decides"),
    ("model", "type", "control.policy chooses the learner"),
    ("model", "keep_last_n", KEPT),
    ("model", "max_models", KEPT),
    (
        "metrics",
        "sampling_interval",
        "there is one scrape per decision: control.decision_interval_s sets how often",
    ),
    ("metrics", "gauge_interval", "gauges are read with each page"),
    ("metrics", "energy_ignore_first", WINDOWS),
    ("metrics", "energy_ignore_last", WINDOWS),
];

/// Accepts each of them with a warning.
pub(super) fn read(reader: &mut Reader<'_>) {
    for (section, key, instead) in OLD_KEYS {
        reader.unused(section, key, instead);
    }
}
