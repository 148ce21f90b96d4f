//! From a checked configuration to the constants of the parts.

pub mod park;

use std::path::PathBuf;

use crate::bandit::Learner;
use crate::bandit::linucb::LinUcbSettings;
use crate::bandit::memory;
use crate::bandit::space::SpaceSettings;
use crate::bandit::structured::StructuredSettings;
use crate::config::{Config, EngineKind, PolicyKind};
use crate::control::Settings;
use crate::engine;
use crate::gpu::SupportedClocks;
use crate::holdout::HoldoutSettings;
use crate::metrics::scrape::ScrapeSettings;
use crate::park::levers::{LeverBook, Levers};
use crate::park::wake::Running;
use crate::reward::slo::Limits;
use crate::units::{Mhz, Seconds};

/// Part of a window after a clock change that is not measured: clocks take 10-100 ms to change.
const SETTLE: Seconds = Seconds(0.1);

/// Where and how to scrape, and whose page is expected there.
#[must_use]
pub fn scrape_settings(config: &Config, engine: &EngineKind) -> ScrapeSettings {
    ScrapeSettings {
        url: config.vllm.prometheus_url.clone(),
        timeout: config.vllm.scrape_timeout_s,
        connect_timeout: config.vllm.scrape_timeout_s,
        bearer_token_file: config.vllm.bearer_token_file.as_ref().map(PathBuf::from),
        ca_file: config.vllm.tls_ca_file.as_ref().map(PathBuf::from),
        model_name: config.vllm.model_name.clone(),
        engine: engine::named(&engine.to_string()),
    }
}

/// The latency limits; `None` ignores them.
#[must_use]
pub fn limits(config: &Config) -> Option<Limits> {
    let control = &config.control;
    (!control.ignore_slo).then_some(Limits {
        ttft: control.ttft_limit,
        tpot: control.tpot_limit,
        statistic: control.slo_statistic,
        window: control.slo_window_s,
    })
}

/// Constants of the control loop.
#[must_use]
pub fn control_settings(config: &Config, dry_run: bool) -> Settings {
    let control = &config.control;
    Settings {
        outage_after: config.vllm.outage_after_s,
        settle: SETTLE,
        verify_after: config.gpu.settle_time_s,
        clock_tolerance: config.gpu.clock_tolerance_mhz,
        objective: control.objective,
        reward: control.reward,
        limits: limits(config),
        // Where no clock is written nothing is parked, and what would be measured of it is wrong.
        idle: (config.idle.enabled && !control.data_collection_mode).then(|| park::of_server(config)),
        holdout: (config.holdout.share > 0.0).then_some(HoldoutSettings {
            share: config.holdout.share,
            block: config.holdout.block_s,
            settle: config.holdout.settle_s,
            seed: control.seed,
            width: (config.holdout.width_percent > 0.0).then_some(config.holdout.width_percent / 100.0),
            begin_after: config.holdout.begin_after_s,
        }),
        data_collection: control.data_collection_mode,
        dry_run,
        ema_alpha: config.metrics.ema_alpha,
        floor_step: config.linucb.coarse_step_mhz,
        recover_arms_below: control.auto_add_actual_frequency.then_some(control.min_action_space_size),
    }
}

/// The ways to park a GPU with these clocks, and what is known of them.
#[must_use]
pub fn levers(config: &Config, clocks: &SupportedClocks, book: LeverBook) -> Levers {
    Levers::new(park::locks(&config.idle, clocks), book, top(clocks))
}

/// The same for a run with these settings, which park nothing if there is no way to.
#[must_use]
pub fn parking(
    settings: &mut Settings,
    config: &Config,
    clocks: &SupportedClocks,
    book: LeverBook,
) -> Levers {
    let levers = levers(config, clocks, book);
    if levers.usable().next().is_none() {
        tracing::warn!(lever = %config.idle.lever, "this GPU is never parked: it has one memory clock (idle.lever)");
        settings.idle = None;
    }
    // A dry run parks in name only: a trial would find that nothing saves anything.
    if settings.dry_run { levers.without_trial() } else { levers }
}

/// The highest clocks.
#[must_use]
pub fn top(clocks: &SupportedClocks) -> Running {
    Running { core: Some(clocks.core_max()), memory: clocks.memory().next() }
}

/// Constants of the `linucb` policy.
#[must_use]
pub fn linucb_settings(config: &Config) -> LinUcbSettings {
    let Config { linucb, control, metrics, .. } = config;
    LinUcbSettings {
        initial_alpha: linucb.initial_alpha,
        alpha_decay_rate: linucb.alpha_decay_rate,
        min_alpha: linucb.min_alpha,
        lambda_reg: linucb.lambda_reg,
        dwell: metrics.sampling_duration,
        reward: control.reward,
        coarse_step_mhz: linucb.coarse_step_mhz,
        refinement_start_threshold: control.refinement_start_threshold,
        adaptive_update_interval: control.adaptive_update_interval,
        learner_maturity_threshold: control.learner_maturity_threshold,
        enable_action_pruning: linucb.enable_action_pruning,
        pruning_check_interval: linucb.pruning_check_interval,
        pruning_threshold: linucb.pruning_threshold,
        min_exploration_for_pruning: count(linucb.min_exploration_for_pruning),
        pruning_maturity_threshold: linucb.pruning_maturity_threshold,
        cascade_pruning_threshold: linucb.cascade_pruning_threshold,
        enable_extreme_pruning: linucb.enable_extreme_pruning,
        extreme_pruning_threshold: linucb.extreme_pruning_threshold,
        extreme_pruning_min_samples: count(linucb.extreme_pruning_min_samples),
        extreme_pruning_max_rounds: linucb.extreme_pruning_max_rounds,
        convergence_window: control.convergence_window,
        convergence_top_k: control.convergence_top_k,
        convergence_threshold: control.convergence_threshold,
        performance_degradation_threshold: control.performance_degradation_threshold,
    }
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Constants of the `structured` policy.
#[must_use]
pub fn structured_settings(config: &Config) -> StructuredSettings {
    let control = &config.control;
    StructuredSettings {
        objective: control.objective,
        max_slowdown: control
            .max_slowdown_percent
            .filter(|_| !control.ignore_slo)
            .map(|percent| percent / 100.0),
        tpot_limit: (!control.ignore_slo).then_some(control.tpot_limit),
        seed: control.seed,
        convergence_window: control.convergence_window as u64,
        ..StructuredSettings::default()
    }
}

/// The policy that the configuration asks for, knowing nothing yet.
#[must_use]
pub fn learner(config: &Config) -> Learner {
    let linucb = linucb_settings(config);
    match config.control.policy {
        PolicyKind::LinUcb => Learner::judged(structured_settings(config), linucb),
        PolicyKind::Structured => Learner::structured(structured_settings(config), linucb),
    }
}

/// Gives a stored policy the constants of the present configuration.
pub fn configure(learner: &mut Learner, config: &Config) {
    let by_structured = config.control.policy == PolicyKind::Structured;
    learner.configure(structured_settings(config), by_structured, linucb_settings(config));
}

/// How arms are made. `memory` lists the memory clocks to combine with (none leaves the memory clock to the driver).
#[must_use]
pub fn space_settings(config: &Config, memory: Vec<Mhz>) -> SpaceSettings {
    SpaceSettings {
        min_core: config.gpu.min_frequency,
        step: config.gpu.frequency_step,
        memory,
        retry_after: config.gpu.failed_clock_retry_s,
    }
}

/// Memory clocks to combine with, highest first: the configured list, or an even sample of what the card supports.
///
/// Empty if memory control is off, or if the card has one memory clock only and is not told otherwise.
#[must_use]
pub fn memory_clocks(config: &Config, clocks: &SupportedClocks) -> Vec<Mhz> {
    let gpu = &config.gpu;
    if !gpu.enable_memory_frequency_control {
        return Vec::new();
    }
    if gpu.memory_frequencies.is_empty() && gpu.memory_auto_detect && clocks.memory().count() < 2 {
        return Vec::new();
    }
    memory::memory_clocks(clocks, &gpu.memory_frequencies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::gpu::MemoryLevel;

    fn clocks(memory: &[u32]) -> SupportedClocks {
        let level = |memory: &u32| MemoryLevel { memory: Mhz(*memory), core: vec![Mhz(1410), Mhz(210)] };
        SupportedClocks::new(memory.iter().map(level).collect()).unwrap()
    }

    fn with_memory_control() -> Config {
        let mut config = Config::default();
        config.gpu.enable_memory_frequency_control = true;
        config
    }

    #[test]
    fn memory_clocks_are_sampled_evenly_with_both_ends() {
        let many: Vec<u32> = (1..=20).map(|k| 500 * k).collect();
        let sampled = memory_clocks(&with_memory_control(), &clocks(&many));
        assert_eq!(sampled.len(), 8);
        assert_eq!((sampled[0], sampled[7]), (Mhz(10_000), Mhz(500)));
        assert!(sampled.windows(2).all(|pair| pair[0] > pair[1]));
    }

    #[test]
    fn card_with_one_memory_clock_gets_no_memory_arms() {
        assert!(memory_clocks(&with_memory_control(), &clocks(&[1593])).is_empty());
        assert!(memory_clocks(&Config::default(), &clocks(&[9501, 810])).is_empty());
    }

    #[test]
    fn defaults_of_the_configuration_are_the_policys() {
        assert_eq!(linucb_settings(&Config::default()), LinUcbSettings::default());
    }

    #[test]
    fn nothing_is_parked_where_nothing_is_written_and_nothing_tried_where_it_is_in_name_only() {
        let gddr = clocks(&[9501, 405]);
        let mut config = Config::default();
        let mut dry = control_settings(&config, true);
        assert_eq!(parking(&mut dry, &config, &gddr, LeverBook::default()).usable().count(), 1);
        let mut earnest = control_settings(&config, false);
        assert_eq!(parking(&mut earnest, &config, &gddr, LeverBook::default()).usable().count(), 3);
        config.control.data_collection_mode = true;
        assert!(control_settings(&config, false).idle.is_none());
        // A lever that the board does not have.
        let mut config = Config::default();
        config.idle.lever = config::Lever::Memory;
        let mut settings = control_settings(&config, false);
        let levers = parking(&mut settings, &config, &clocks(&[1593]), LeverBook::default());
        assert_eq!(levers.usable().count(), 0);
        assert!(settings.idle.is_none());
    }

    #[test]
    fn idle_clock_is_the_nearest_supported_one() {
        let mut config = Config::default();
        config.idle.core_mhz = Some(Mhz(345));
        let levers = levers(&config, &clocks(&[1593]), LeverBook::default());
        assert_eq!(levers.best(None).unwrap().clocks.core, Mhz(210));
    }
}
