//! The table of keys: for each its meaning, type, default and rule.
//!
//! A key's unit is in its type ([`Mhz`], [`Seconds`]) or in its name (`_ms`, `_mb`, `_percent`).

use std::ops::{Deref, DerefMut};

use super::choices::{Listen, LogLevel, PolicyKind};
use super::parking::Parking;
use super::reader::Reader;
use super::rule::{
    argv, flag, gpus, gpus_or_auto, host_names, listen, megabytes, memory_clocks, mhz, millis, one_of,
    optional, page_url, path, real, seconds, text, whole,
};
use crate::gpu::GpuSelector;
use crate::reward::slo::Statistic;
use crate::reward::{Objective, RewardForm};
use crate::units::{Mhz, Seconds};

fn auto_if_empty<S: serde::Serializer>(gpus: &[GpuSelector], to: S) -> Result<S::Ok, S::Error> {
    if gpus.is_empty() { to.serialize_str("auto") } else { to.collect_seq(gpus) }
}

/// One struct per section. Each key: doc comment, `name: type = default, rule;`. The keys of parking stand beside those
/// of a section that has them, with their defaults.
macro_rules! sections {
    ($(
        $(#[$about:meta])*
        $name:ident in $section:literal $(with $parking:ident: $these:ident)? {
            $( $(#[$doc:meta])+ $key:ident: $type:ty = $default:expr, $rule:expr; )+
        }
    )+) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize)]
        pub struct $name {
            $( $(#[$doc])+ pub $key: $type, )+
            $(
                /// The keys of parking, which are this section's, too.
                #[serde(flatten)]
                pub $parking: Parking,
            )?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )+ $( $parking: Parking::$these(), )? }
            }
        }

        impl $name {
            /// This section of the file; what it does not say is as in `default`.
            pub(super) fn read(reader: &mut Reader<'_>, default: Self) -> Self {
                let mut section = reader.section($section);
                Self {
                    $( $key: section.key(stringify!($key), default.$key, &$rule), )+
                    $( $parking: Parking::read(&mut section, default.$parking), )?
                }
            }
        }

        $(
            impl Deref for $name {
                type Target = Parking;

                fn deref(&self) -> &Parking {
                    &self.$parking
                }
            }

            impl DerefMut for $name {
                fn deref_mut(&mut self) -> &mut Parking {
                    &mut self.$parking
                }
            }
        )?
    )+};
}

sections! {
    /// The engine's metrics page.
    Vllm in "vllm" {
        /// URL of the Prometheus page.
        prometheus_url: String = "http://127.0.0.1:8000/metrics".into(), page_url();
        /// File with the token to send as `Authorization: Bearer`, if the page wants one.
        bearer_token_file: Option<String> = None, optional(path());
        /// File with the certificate authority to trust beside the system's, in PEM.
        tls_ca_file: Option<String> = None, optional(path());
        /// Take only the series with this `model_name` label; all of them without.
        model_name: Option<String> = None, optional(text());
        /// One scrape gives up after this.
        scrape_timeout_s: Seconds = Seconds(1.0), seconds(0.05..=30.0);
        /// Without a good scrape for this long the clocks go back to the driver.
        outage_after_s: Seconds = Seconds(1.0), seconds(0.3..=60.0);
    }

    /// Inference engines beside the built-in ones.
    Engines in "engines" {
        /// Directory of profiles (`*.toml`); one with the name of a built-in engine takes its place.
        directory: Option<String> = None, optional(path());
    }

    /// The GPUs and their clocks.
    Gpu in "gpu" {
        /// The GPUs that serve this engine; empty for those on which its process is found.
        #[serde(serialize_with = "auto_if_empty")]
        device_id: Vec<GpuSelector> = vec![GpuSelector::Index(0)], gpus_or_auto();
        /// Lowest core clock that is tried.
        min_frequency: Mhz = Mhz(210), mhz(0..=10_000);
        /// Smallest step between core clocks that are told apart.
        frequency_step: Mhz = Mhz(15), mhz(1..=500);
        /// Take the range of core clocks from the driver.
        auto_step: bool = true, flag();
        /// Choose memory clocks too.
        enable_memory_frequency_control: bool = false, flag();
        /// Ask the driver whether memory clocks can be locked; otherwise take it for granted.
        memory_auto_detect: bool = true, flag();
        /// Memory clocks to choose from; empty takes the driver's.
        memory_frequencies: Vec<Mhz> = vec![], memory_clocks(64, 1..=50_000);
        /// Period at which the energy counter is read.
        energy_poll_interval_ms: u64 = 10, millis(1..=200);
        /// Time after a lock from which the running clock must match it.
        settle_time_s: Seconds = Seconds(0.5), seconds(0.05..=5.0);
        /// Distance of the running clock from the lock that still counts as a match.
        clock_tolerance_mhz: Mhz = Mhz(30), mhz(0..=300);
        /// Time after which a clock that could not be set is tried again.
        failed_clock_retry_s: Seconds = Seconds(600.0), seconds(10.0..=86_400.0);
        /// Directory of the locks and journals of all agfts of the machine.
        runtime_dir: Option<String> = None, optional(path());
    }

    /// When and how clocks are chosen.
    Control in "control" {
        /// Time from one decision to the next.
        decision_interval_s: Seconds = Seconds(0.3), seconds(0.02..=10.0);
        /// Who chooses.
        policy: PolicyKind = PolicyKind::Structured, one_of();
        /// What is minimised.
        objective: Objective = Objective::Edp, one_of();
        /// How a measured window becomes a reward.
        reward: RewardForm = RewardForm::LogRatio, one_of();
        /// Limit on the time to first token.
        ttft_limit: Seconds = Seconds(2.0), seconds(0.001..=1e6);
        /// Limit on the time per output token.
        tpot_limit: Seconds = Seconds(0.25), seconds(0.001..=1e6);
        /// Limit on the slowdown against default clocks; none without.
        max_slowdown_percent: Option<f64> = Some(10.0), optional(real(0.0..=500.0));
        /// Statistic of a latency that is held against its limit.
        slo_statistic: Statistic = Statistic::Mean, one_of();
        /// Length of the sliding window of that statistic.
        slo_window_s: Seconds = Seconds(30.0), seconds(1.0..=3600.0);
        /// Minimise without limits.
        ignore_slo: bool = false, flag();
        /// Measure and record, and leave the clocks alone.
        data_collection_mode: bool = false, flag();
        /// Start of the random numbers: equal seeds repeat a simulated run.
        seed: u64 = 0, whole(0..=u64::MAX);
        /// Rounds over which convergence is judged.
        convergence_window: usize = 100, whole(10..=10_000);
        /// Converged when this many clocks ...
        convergence_top_k: usize = 3, whole(1..=1000);
        /// ... have at least this share of the window's rounds.
        convergence_threshold: f64 = 0.6, real(0.001..=1.0);
        /// Relative rise of the EDP after convergence that starts learning again.
        performance_degradation_threshold: f64 = 0.3, real(0.01..=100.0);
        /// First refinement of the clocks, in rounds.
        refinement_start_threshold: u64 = 80, whole(0..=1_000_000);
        /// Refinements after the first, in rounds from one to the next.
        adaptive_update_interval: u64 = 10, whole(1..=1_000_000);
        /// Rounds after which a refinement trusts the model's prediction over the plain statistics.
        learner_maturity_threshold: u64 = 100, whole(0..=1_000_000);
        /// Where the driver runs another clock than asked for, and few are left, choose that one from then on.
        auto_add_actual_frequency: bool = true, flag();
        /// What `auto_add_actual_frequency` takes for few.
        min_action_space_size: usize = 1, whole(1..=1000);
    }

    /// GPUs that have a server: parked while it has no request.
    Idle in "idle" with parking: of_servers {
        /// Park them at all.
        enabled: bool = true, flag();
        /// Rise of the 99th percentile of the time to first token beyond which the measured cost of a wake is raised.
        max_ttft_rise_percent: f64 = 5.0, real(0.1..=1000.0);
    }

    /// GPUs that have no server: parked while nobody uses them.
    Park in "park" with parking: of_others {
        /// Park those that no server uses, in the daemon that serves; `agft park` parks in any case.
        others: bool = false, flag();
        /// The GPUs that are parked; all of the machine without.
        gpus: Option<Vec<GpuSelector>> = None, optional(gpus());
        /// The performance state of a GPU that is parked by that.
        pstate: u32 = 8, whole(1..=15);
        /// Core clock that a woken GPU is held to; left to the driver without.
        wake_core_mhz: Option<Mhz> = None, optional(mhz(1..=10_000));
        /// Address and port of the metrics page of `agft park`.
        metrics_listen: Listen = Listen::PARK, listen();
        /// Period of the status line.
        log_interval_s: Seconds = Seconds(30.0), seconds(1.0..=86_400.0);
        /// Program and arguments that switch fans on.
        fan_on: Vec<String> = vec![], argv(64);
        /// Program and arguments that switch fans off.
        fan_off: Vec<String> = vec![], argv(64);
        /// All GPUs have been parked for this long before fans go off.
        fan_off_after_s: Seconds = Seconds(900.0), seconds(0.0..=86_400.0);
        /// A fan program is killed after this.
        fan_timeout_s: Seconds = Seconds(10.0), seconds(0.1..=300.0);
    }

    /// The experiment that proves what is saved.
    Holdout in "holdout" {
        /// Most of the time that runs at driver-default clocks, at random moments, as a share; 0 leaves none.
        share: f64 = 0.05, real(0.0..=0.5);
        /// Half-width of the 95 % interval of the power saved, in percentage points, with which the share sinks to
        /// a tenth; 0 spends the whole share always.
        width_percent: f64 = 2.0, real(0.0..=100.0);
        /// Length of such a moment.
        block_s: Seconds = Seconds(12.0), seconds(5.0..=3600.0);
        /// Beginning of it, and of every span it is compared with, that is left out.
        settle_s: Seconds = Seconds(4.0), seconds(0.0..=600.0);
        /// It begins when the policy has settled, at the latest after so much time with work; 0: at once.
        begin_after_s: Seconds = Seconds(600.0), seconds(0.0..=86_400.0);
    }

    /// The `linucb` policy and the pruning of clocks.
    Linucb in "linucb" {
        /// Width of the confidence bound in the first round.
        initial_alpha: f64 = 10.0, real(0.0..=1000.0);
        /// Rate at which the width shrinks, per round.
        alpha_decay_rate: f64 = 0.02, real(0.0..=10.0);
        /// Width below which it does not shrink.
        min_alpha: f64 = 0.1, real(0.0..=1000.0);
        /// Ridge penalty of each regression.
        lambda_reg: f64 = 1.0, real(0.001..=1e6);
        /// Step between the clocks of the first sweep.
        coarse_step_mhz: Mhz = Mhz(90), mhz(1..=1000);
        /// Give up clocks that measure worse than the best.
        enable_action_pruning: bool = true, flag();
        /// Rounds from one such comparison to the next.
        pruning_check_interval: u64 = 20, whole(1..=1_000_000);
        /// Distance from the best, in standard deviations, that is given up.
        pruning_threshold: f64 = 4.0, real(0.0..=1000.0);
        /// Measurements of a clock before it takes part.
        min_exploration_for_pruning: u64 = 6, whole(1..=1_000_000);
        /// Rounds before the first comparison.
        pruning_maturity_threshold: u64 = 30, whole(0..=1_000_000);
        /// A clock below this takes all lower ones with it when it is given up.
        cascade_pruning_threshold: Mhz = Mhz(800), mhz(0..=10_000);
        /// Give up at once clocks that are far too bad.
        enable_extreme_pruning: bool = true, flag();
        /// Mean reward at or below which a clock is far too bad.
        extreme_pruning_threshold: f64 = -1.2, real(-100.0..=0.0);
        /// Measurements of a clock before it is judged so.
        extreme_pruning_min_samples: u64 = 3, whole(1..=1_000_000);
        /// Last round in which clocks are judged so.
        extreme_pruning_max_rounds: u64 = 60, whole(0..=1_000_000);
    }

    /// agft's own log.
    Logging in "logging" {
        /// Least severity on the console.
        console_level: LogLevel = LogLevel::Info, one_of();
        /// Least severity in the log file.
        file_level: LogLevel = LogLevel::Debug, one_of();
        /// Log each round with features, reward and reasons.
        detailed_round_logging: bool = true, flag();
        /// Directory of the log files.
        dir: String = "logs".into(), path();
        /// Size at which a new log file is begun.
        max_file_mb: u64 = 32, megabytes(1..=4096);
        /// Log files that are kept.
        keep_files: u32 = 5, whole(1..=1000);
    }

    /// What is learned, on disk.
    Model in "model" {
        /// Directory of the model files.
        save_dir: String = "data/models".into(), path();
        /// Rounds from one save to the next.
        save_interval: u64 = 50, whole(1..=1_000_000);
    }

    /// How the engine's metrics become measurements.
    Metrics in "metrics" {
        /// Time a clock is held at least before the next choice.
        sampling_duration: Seconds = Seconds(0.8), seconds(0.0..=60.0);
        /// Weight of the newest value in the moving averages.
        ema_alpha: f64 = 0.4, real(0.001..=1.0);
        /// Windows measured at default clocks before the first choice.
        baseline_measurements: u32 = 10, whole(1..=1000);
    }

    /// Servers, or their GPUs, that are not named but looked for (`auto`).
    Discover in "discover" {
        /// Time from one look at the machine to the next.
        every_s: Seconds = Seconds(10.0), seconds(0.1..=3600.0);
    }

    /// What operators see.
    Observe in "observe" {
        /// Address and port of agft's own metrics page.
        metrics_listen: Listen = Listen::LOCAL, listen();
        /// Names under which the page is served beside localhost and numeric addresses.
        allowed_hosts: Vec<String> = vec![], host_names(64);
    }

    /// The record of each run.
    Experiment in "experiment" {
        /// Directory of the runs.
        dir: String = "experiment".into(), path();
        /// Size at which a new file of rounds is begun.
        rounds_file_max_mb: u64 = 64, megabytes(1..=4096);
        /// Files of rounds that a run keeps.
        keep_rounds_files: u32 = 4, whole(1..=1000);
        /// Runs that are kept.
        keep_runs: u32 = 20, whole(1..=10_000);
        /// Record of all that went into each step, for `agft replay`: its size in a run; 0 keeps none.
        keep_steps_mb: u64 = 256, megabytes(0..=65_536);
        /// Size at which a new file of steps is begun, at most half of that.
        steps_file_max_mb: u64 = 16, megabytes(1..=1024);
    }
}
