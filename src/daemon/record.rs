//! A round as the line that is written down for it.

use crate::units::Target;
use jiff::Timestamp;

use super::tick::StepFacts;
use crate::bandit::Reason;
use crate::control::{Mode, Round};
use crate::metrics::Histogram;
use crate::reward::slo::Limits;
use crate::store::RoundRecord;
use crate::view::{Against, reason_name};

/// The line for a round, which came to `against` beside default clocks, if that is known; `limits` are the
/// latency limits in force, if any.
#[must_use]
pub(super) fn record(
    facts: &StepFacts<'_>,
    round: &Round,
    against: Option<&Against>,
    limits: Option<&Limits>,
    at: Timestamp,
) -> RoundRecord {
    let window = &round.window;
    let seconds = window.elapsed.0;
    let context = round.context;
    let mean = |histogram: &Option<Histogram>| histogram.as_ref().and_then(Histogram::mean);
    let tpot = round.cost.map(|cost| cost.delay.0).or_else(|| mean(&window.itl));
    // AGFT's product: energy of the window times its time per output token.
    let edp = round.energy.zip(tpot).map(|(energy, tpot)| energy.0 * tpot);
    let baseline = round.baseline.map(|baseline| baseline.power.0 * seconds * baseline.delay.0);
    let clocks = round.ran_at.and_then(Target::clocks);
    let per_second = |tokens: Option<f64>| tokens.map(|tokens| tokens / seconds);
    let (prefill, decode) = (per_second(window.prompt_tokens), per_second(window.generation_tokens));
    let latency = facts.seen.scrape.latency();
    RoundRecord {
        gpu_frequency_mhz: clocks.map(|clocks| clocks.core).or(round.read_core),
        energy_j: round.energy.map(|energy| energy.0),
        ttft_avg: mean(&window.ttft),
        tpot_avg: tpot,
        e2e_avg: mean(&window.e2e),
        total_throughput_tps: prefill.zip(decode).map(|(prefill, decode)| prefill + decode),
        prefill_throughput_tps: prefill,
        decode_throughput_tps: decode,
        edp_raw: edp,
        edp_normalized: round.reward,
        edp_baseline: baseline,
        edp_improvement_pct: edp.zip(baseline).map(|(edp, baseline)| 100.0 * (1.0 - edp / baseline)),
        active_requests: window.at_end.running,
        cache_usage_pct: window.at_end.kv_usage.map(|share| 100.0 * share),
        completed_requests_delta: window.finished,
        learning_phase: Some(round.mode.name().into()),
        reward: round.reward,
        alpha_value: Some(round.alpha),
        ucb_confidence: round.choice.and_then(|choice| choice.width),
        action_selection_method: method(round).map(Into::into),
        available_frequencies_count: Some(round.arms_allowed as u64),
        pruned_frequencies_count: Some(round.arms_out as u64),
        frequency_exploration_count: clocks.map(|_| round.lessons_at_clock),
        slo_violation: limits.map(|_| round.violation.is_some()),
        ttft_limit: limits.map(|limits| limits.ttft.0),
        tpot_limit: limits.map(|limits| limits.tpot.0),
        has_queue: Some(context.has_queue),
        prefill_throughput_feature: Some(context.prefill_throughput),
        decode_throughput_feature: Some(context.decode_throughput),
        packing_efficiency: Some(context.packing_efficiency),
        concurrency: Some(context.concurrency),
        gpu_cache_usage: Some(context.gpu_cache_usage),
        cache_hit_rate: Some(context.cache_hit_rate),
        gpu_memory_frequency_mhz: clocks.and_then(|clocks| clocks.memory).or(round.read_memory),
        asked_core_mhz: round.command.clocks().map(|clocks| clocks.core),
        read_core_mhz: round.read_core,
        power_w: round.power,
        window_s: Some(window.elapsed),
        waiting_requests: window.at_end.waiting,
        state: Some(facts.controller.mode().name().into()),
        command: Some(round.command.to_string()),
        decision_reason: round.choice.map(|choice| reason_name(choice.reason).into()),
        reward_used: Some(round.learned),
        scrape_latency_s: latency,
        tick_lateness_s: facts.lateness,
        baseline_power_w: round.baseline.map(|baseline| baseline.power),
        baseline_tpot_s: round.baseline.map(|baseline| baseline.delay),
        energy_ratio: against.map(|of| of.ratios.energy.log.exp()),
        energy_ratio_sd: against.map(|of| of.ratios.energy.sd),
        tpot_ratio: against.map(|of| of.ratios.time.log.exp()),
        tpot_ratio_sd: against.map(|of| of.ratios.time.sd),
        holdout_cycle: round.holdout.map(|at| at.cycle),
        holdout_slot: round.holdout.map(|at| at.slot),
        holdout: round.holdout.map(|at| at.held),
        tpot_samples: window.itl.as_ref().map(|itl| itl.count),
        ttft_samples: window.ttft.as_ref().map(|ttft| ttft.count),
        ..RoundRecord::new(round.number, at)
    }
}

/// AGFT's word for how the clock was chosen.
fn method(round: &Round) -> Option<&'static str> {
    match (round.mode, round.choice.map(|choice| choice.reason)) {
        (Mode::DataCollection, _) => Some("DATA_COLLECTION"),
        (_, Some(reason)) => Some(match reason {
            Reason::Greedy => "GREEDY",
            Reason::Sweep => "SWEEP",
            Reason::Retrial => "RETRIAL",
            Reason::Dwell => "DWELL",
            Reason::Doubt => "DOUBT",
            Reason::Overload => "OVERLOAD",
            Reason::NothingAllowed => "NONE",
            Reason::Ucb => "UCB",
        }),
        (_, None) => None,
    }
}
