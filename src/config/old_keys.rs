//! Keys by old names, and keys of AGFT's own configuration files, of its present and its earlier versions, that agft has
//! no use for.
//!
//! Such a file loads: each of the latter is a warning that names what decides the matter here.

use super::reader::Reader;
use super::rule::whole;
use crate::units::Seconds;

/// Section and key: the old name, the name now.
const RENAMED: [([&str; 2], [&str; 2]); 4] = [
    (["gpu", "idle_frequency"], ["idle", "core_mhz"]),
    (["gpu", "sensor_poll_interval_ms"], ["idle", "active_poll_ms"]),
    (["idle", "power_poll_interval_ms"], ["idle", "parked_poll_ms"]),
    (["park", "idle_timeout_s"], ["park", "timeout_s"]),
];

/// The same, but a count of decisions where there is a time now.
const DECISIONS: ([&str; 2], [&str; 2]) = (["idle", "after_windows"], ["idle", "quiet_s"]);

pub(super) fn old_name(section: &str, key: &str) -> Option<[&'static str; 2]> {
    RENAMED.iter().find(|(_, new)| *new == [section, key]).map(|(old, _)| *old)
}

/// The present name of what this old name sets.
pub(super) fn new_name(section: &str, key: &str) -> Option<[&'static str; 2]> {
    RENAMED.iter().chain([&DECISIONS]).find(|(old, _)| *old == [section, key]).map(|(_, new)| *new)
}

/// The quiet time of `idle.after_windows` decisions `interval` apart: half a one less, for those that come early.
pub(super) fn quiet(reader: &mut Reader<'_>, interval: Seconds) -> Option<Seconds> {
    let (old, new) = DECISIONS;
    let windows = reader.old_value(old, new, 0, &whole(1..=1000_u32));
    reader.windows = Some(windows).filter(|windows| *windows > 0).or(reader.windows);
    reader.windows.map(|windows| Seconds((f64::from(windows) - 0.5) * interval.0))
}

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

#[cfg(test)]
mod tests {
    use crate::config::{Config, Loaded};
    use crate::units::{Mhz, Seconds};

    fn parse(text: &str) -> Config {
        let Loaded { config, warnings, .. } = Config::parse(text, "c.yaml").unwrap();
        assert_eq!(warnings, []);
        assert_eq!(Config::parse(&config.to_yaml(), "snapshot").unwrap().config, config);
        config
    }

    #[test]
    fn old_name_means_the_new_one_and_the_snapshot_has_that() {
        let old = parse(
            "gpu: {idle_frequency: 300, sensor_poll_interval_ms: 50}
idle: {power_poll_interval_ms: 200, after_windows: 3}
park: {idle_timeout_s: 5}
control: {decision_interval_s: 0.5}",
        );
        let new = parse(
            "idle: {core_mhz: 300, active_poll_ms: 50, parked_poll_ms: 200, quiet_s: 1.25}
park: {timeout_s: 5}
control: {decision_interval_s: 0.5}",
        );
        assert_eq!(old, new);
        let snapshot = old.to_yaml();
        for name in ["idle_frequency", "sensor_poll", "power_poll", "after_windows", "idle_timeout"] {
            assert!(!snapshot.contains(name), "{name}");
        }
    }

    #[test]
    fn decisions_are_counted_by_each_server_s_own() {
        let config = parse(
            "gpu: {idle_frequency: 500}
idle: {after_windows: 4}
servers:
  - {name: a, metrics_url: 'http://h:1/metrics'}
  - {name: b, metrics_url: 'http://h:2/metrics', control: {decision_interval_s: 1}, gpu: {idle_frequency: 600}}
  - {name: c, metrics_url: 'http://h:3/metrics', control: {decision_interval_s: 1}, idle: {quiet_s: 0.5}}
  - {name: d, metrics_url: 'http://h:4/metrics', idle: {after_windows: 1, core_mhz: null}}",
        );
        let of = |at: usize| {
            let idle = &config.servers()[at].config.idle;
            (idle.quiet_s, idle.core_mhz)
        };
        let core = Some(Mhz(500));
        assert_eq!((of(0), of(1)), ((Some(Seconds(1.05)), core), (Some(Seconds(3.5)), Some(Mhz(600)))));
        assert_eq!((of(2), of(3)), ((Some(Seconds(0.5)), core), (Some(Seconds(0.15)), None)));
    }

    #[test]
    fn old_and_new_name_together_are_an_error_that_names_both() {
        for (text, old, new) in [
            ("{gpu: {idle_frequency: 300}, idle: {core_mhz: 300}}", "gpu.idle_frequency", "idle.core_mhz"),
            ("idle: {after_windows: 2, quiet_s: 1}", "idle.after_windows", "idle.quiet_s"),
            (
                "idle: {power_poll_interval_ms: 20, parked_poll_ms: 20}",
                "idle.power_poll_interval_ms",
                "idle.parked_poll_ms",
            ),
            ("park: {idle_timeout_s: 1, timeout_s: 1}", "park.idle_timeout_s", "park.timeout_s"),
        ] {
            let said = Config::parse(text, "c.yaml").unwrap_err().to_string();
            let want =
                format!("c.yaml: {old} is given beside {new}, must be left out: it is the old name of {new}");
            assert_eq!(said, want);
        }
    }

    #[test]
    fn wrong_value_is_reported_by_the_name_that_the_file_has() {
        let said = |text: &str| Config::parse(text, "c.yaml").unwrap_err().to_string();
        let wrong = "c.yaml: idle.after_windows is 0, must be a whole number from 1 to 1000";
        assert_eq!(said("idle: {after_windows: 0}"), wrong);
        assert!(said("gpu: {idle_frequency: x}").starts_with("c.yaml: gpu.idle_frequency is the text \"x\""));
        let sets = |key: &str| [(key.to_owned(), "3".to_owned())];
        let set = |key: &str| Config::default().with(&sets(key), "--set").unwrap().config.idle;
        assert_eq!(set("idle.after_windows").quiet_s, Some(Seconds(0.75)));
        assert_eq!(set("gpu.idle_frequency").core_mhz, Some(Mhz(3)));
    }
}
