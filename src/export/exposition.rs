//! The state as metrics: names, units and help, and nothing else decided here.
//!
//! Names follow the conventions of Prometheus: base units in the name, counters end in `_total`. What is not known has no
//! sample; there are no made-up zeros. `docs/metrics.md` lists every metric, and a test holds it to this file.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::control::Mode;
use crate::park::instances::{InstanceState, ToldInstance};
use crate::units::Mhz;
use crate::view::{ArmStatus, HostState};

mod families;
mod parking;

use families::{Families, Sample, Subjects, bounds, by, one, samples};

/// The two text formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus' own, understood by everything.
    Text,
    /// OpenMetrics 1.0, for clients that ask for it.
    OpenMetrics,
}

impl Format {
    /// The format that a client wants, by its `Accept` header.
    pub(crate) fn wanted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    #[must_use]
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The page.
/// Errors: [`fmt::Error`], which the encoder gives for no state known so far.
pub(crate) fn page(host: HostState, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(host)));
    let mut page = String::with_capacity(24 << 10);
    text::encode(&mut page, &registry)?;
    Ok(match format {
        Format::OpenMetrics => page,
        Format::Text => classic(&page),
    })
}

/// OpenMetrics text in Prometheus' older format: a counter's family carries the suffix of its samples, an info is a gauge,
/// units and the end are not marked.
fn classic(open: &str) -> String {
    let mut page = String::with_capacity(open.len());
    let mut help = "";
    for line in open.lines() {
        if line.starts_with("# HELP ") {
            // Held back: the name depends on the type, which comes next.
            help = line;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            let text = help.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '));
            let text = text.map_or("", |(_, text)| text);
            page += &format!("# HELP {name}{suffix} {text}\n# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            page += line;
            page.push('\n');
        }
    }
    page
}

#[derive(Debug)]
struct Page(HostState);

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut to = Families { to: encoder, subjects: &Subjects::of(&self.0) };
        process(&mut to, &self.0)?;
        run(&mut to)?;
        clocks(&mut to)?;
        gpus(&mut to)?;
        engine(&mut to)?;
        learner(&mut to)?;
        measured(&mut to)?;
        estimate(&mut to)?;
        happened(&mut to)?;
        parking::parking(&mut to)?;
        self.0.park.as_ref().map_or(Ok(()), |park| parking::alone(&mut to, park))
    }
}

fn hertz(clock: Mhz) -> f64 {
    clock.as_f64() * 1e6
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
fn count(value: u64) -> f64 {
    value as f64
}

fn process(to: &mut Families<'_, '_>, host: &HostState) -> fmt::Result {
    to.info("build", "The version that runs.", &[("version", &host.version)])?;
    let what = ("start_time", Some("seconds"), "Start of the run, Unix time.");
    to.of_process(what, host.started_unix_s)?;
    let what = ("dry_run", None, "1 if clocks are chosen but not written.");
    to.of_process(what, flag(host.dry_run))?;
    instances(to, &host.instances)
}

fn instances(to: &mut Families<'_, '_>, told: &[ToldInstance]) -> fmt::Result {
    // Two supervisors may have an instance of one name: one of them that works is enough.
    let mut working: BTreeMap<(&str, String), bool> = BTreeMap::new();
    for instance in told {
        let gpus: Vec<String> = instance.gpus.iter().map(|gpu| gpu.index.to_string()).collect();
        let works = working.entry((&instance.name, gpus.join(","))).or_default();
        *works |= instance.state == InstanceState::Working;
    }
    let what = ("instance_working", None, "1 while an instance that a supervisor tells of works.");
    let samples = working
        .iter()
        .map(|((name, gpus), works)| (vec![("instance", *name), ("gpu", gpus.as_str())], flag(*works)));
    to.family(what, MetricType::Gauge, samples)
}

fn run(to: &mut Families<'_, '_>) -> fmt::Result {
    let what = ("policy_info", None, "The learner that is configured and what it makes small; always 1.");
    to.gauges(what, |state| {
        [(vec![("policy", state.policy.as_str()), ("objective", state.objective.as_str())], 1.0)]
    })?;
    to.gauges(("mode", None, "What the loop is doing: 1 for the mode it is in."), |state| {
        Mode::ALL.map(|mode| (vec![("mode", mode.name())], flag(mode == state.mode)))
    })?;
    let what = ("mode", Some("seconds"), "Time spent in each mode.");
    to.counters(what, |state| by("mode", &state.counts.mode_s, |seconds| seconds))?;
    to.timing("scrape_duration", "Time that fetching the engine's metrics page took.", |state| {
        &state.scrape
    })?;
    to.timing("tick_lateness", "Time by which ticks began late.", |state| &state.lateness)?;
    to.timing("step_duration", "Time that collecting, deciding and commanding took.", |state| &state.step)
}

fn clocks(to: &mut Families<'_, '_>) -> fmt::Result {
    let subjects = to.subjects;
    let what =
        ("clocks_locked", None, "1 while a lock is in force, 0 at driver-default clocks; none if not known.");
    // Whoever has clocks to take back knows of no lock.
    let locked = |locked: bool, known: bool| one(known.then(|| flag(locked)));
    let servers = samples(&subjects.servers, |of| locked(of.in_force.is_some(), !of.not_given_back));
    let parked = samples(&subjects.parked, |of| locked(of.in_force.is_some(), !of.not_given_back));
    to.with_parked(what, "park_clocks_locked", MetricType::Gauge, servers, parked)?;
    let help =
        "1 while the driver does not take clocks back that are to be at its default: a lock may be in force.";
    let servers = samples(&subjects.servers, |of| one(flag(of.not_given_back)));
    let parked = samples(&subjects.parked, |of| one(flag(of.not_given_back)));
    let what = ("clocks_not_given_back", None, help);
    to.with_parked(what, "park_clocks_not_given_back", MetricType::Gauge, servers, parked)?;
    let what = ("asked_core_clock", Some("hertz"), "Core clock asked for; none at driver-default clocks.");
    to.gauge(what, |state| state.asked.map(|clocks| hertz(clocks.core)))?;
    let what = ("asked_memory_clock", Some("hertz"), "Memory clock asked for; none where it is left alone.");
    to.gauge(what, |state| state.asked.and_then(|clocks| clocks.memory).map(hertz))
}

fn gpus(to: &mut Families<'_, '_>) -> fmt::Result {
    let subjects = to.subjects;
    fn card<'s>(uuid: &'s str, name: &'s str) -> [Sample<'s>; 1] {
        [(vec![("uuid", uuid), ("name", name)], 1.0)]
    }
    let servers = samples(&subjects.gpus, |gpu| card(&gpu.uuid, &gpu.name));
    let parked = samples(&subjects.parked, |gpu| card(&gpu.uuid, &gpu.name));
    let what = ("gpu_info", None, "The GPUs; always 1.");
    to.with_parked(what, "park_gpu_info", MetricType::Gauge, servers, parked)?;
    let what = ("gpu_core_clock", Some("hertz"), "Core clock that runs, as read back.");
    to.of_gpus(what, |gpu| gpu.core_clock.map(hertz))?;
    let what = ("gpu_memory_clock", Some("hertz"), "Memory clock that runs, as read back.");
    to.of_gpus(what, |gpu| gpu.memory_clock.map(hertz))?;
    to.of_gpus(("gpu_power", Some("watts"), "Board power."), |gpu| gpu.power_w)?;
    let what = ("gpu_temperature", Some("celsius"), "Core temperature.");
    let servers = samples(&subjects.gpus, |gpu| one(gpu.temperature_c));
    let parked = samples(&subjects.parked, |gpu| one(gpu.temperature_c));
    to.with_parked(what, "park_temperature", MetricType::Gauge, servers, parked)?;
    let what = ("gpu_utilization", Some("ratio"), "Share of the time in which a kernel ran.");
    let servers = samples(&subjects.gpus, |gpu| one(gpu.utilization));
    let parked = samples(&subjects.parked, |gpu| one(gpu.utilization_percent.map(|percent| percent / 100.0)));
    to.with_parked(what, "park_utilization", MetricType::Gauge, servers, parked)?;
    let what = ("gpu_capped", None, "1 while power or temperature holds the clock low.");
    to.of_gpus(what, |gpu| gpu.capped.map(flag))?;
    let energy = samples(&subjects.gpus, |gpu| one(gpu.energy_j));
    let what = ("gpu_energy", Some("joules"), "Energy since the start of the run.");
    to.family(what, MetricType::Counter, energy)
}

fn engine(to: &mut Families<'_, '_>) -> fmt::Result {
    to.counters(("tokens", None, "Tokens that the engine processed."), |state| {
        let counts = &state.counts;
        let kinds = [("prompt", counts.prompt_tokens), ("generated", counts.generated_tokens)];
        kinds.map(|(kind, tokens)| (vec![("kind", kind)], tokens))
    })?;
    let what = ("requests_finished", None, "Requests that the engine finished.");
    to.counter(what, |state| state.counts.finished)?;
    to.gauges(("requests", None, "Requests in the engine."), |state| {
        let states = [("running", state.load.running), ("waiting", state.load.waiting)];
        states.into_iter().filter_map(|(of, value)| Some((vec![("state", of)], value?)))
    })?;
    let what = ("kv_cache_usage", Some("ratio"), "Share of the KV cache in use.");
    to.gauge(what, |state| state.load.kv_usage)?;
    let what = ("time_to_first_token", Some("seconds"), "Mean over the latest window.");
    to.gauge(what, |state| state.load.ttft_s)?;
    let what = ("time_per_output_token", Some("seconds"), "Mean over the latest window.");
    to.gauge(what, |state| state.load.tpot_s)?;
    to.gauges(("latency_limit", Some("seconds"), "Latency limit in force."), |state| {
        let limits = state.limits.map(|limits| [("ttft", limits.ttft.0), ("tpot", limits.tpot.0)]);
        limits.into_iter().flatten().map(|(limit, seconds)| (vec![("limit", limit)], seconds))
    })?;
    let what = "Energy of the latest window times its time per output token.";
    to.gauge(("edp", Some("joule_seconds"), what), |state| state.round.as_ref()?.edp_js)?;
    let what = "Estimate: the same at driver-default clocks under this load.";
    let what = ("estimated_default_edp", Some("joule_seconds"), what);
    to.gauge(what, |state| state.round.as_ref()?.default_edp_js)
}

fn learner(to: &mut Families<'_, '_>) -> fmt::Result {
    let what = ("reward", None, "Reward of the latest window; 0 is as good as default clocks.");
    to.gauge(what, |state| state.round.as_ref()?.reward)?;
    let what = ("exploration_rate", None, "Width of the confidence bound in force.");
    to.gauge(what, |state| state.learner.exploration_rate)?;
    let what = ("converged", None, "1 once the choice of clocks has settled.");
    to.gauge(what, |state| flag(state.learner.converged))?;
    let what = ("handed_over", None, "1 while linucb stands in for structured.");
    to.gauge(what, |state| flag(state.learner.handed_over.is_some()))?;
    let what = ("arms", None, "Clocks, by whether they may be chosen and what took them out.");
    to.gauges(what, |state| {
        ArmStatus::ALL.map(|status| {
            let arms = state.learner.arms.iter().filter(|arm| arm.status == status).count();
            (vec![("status", status.name())], count(arms as u64))
        })
    })?;
    let what = ("best_core_clock", Some("hertz"), "Core clock with the highest mean reward.");
    to.gauge(what, |state| state.learner.best.map(|clocks| hertz(clocks.core)))?;
    let what = ("floor_core_clock", Some("hertz"), "Lowest core clock that broken limits allow.");
    to.gauge(what, |state| state.floor.map(hertz))
}

fn measured(to: &mut Families<'_, '_>) -> fmt::Result {
    let what = "Share of the time that the holdout experiment leaves to default clocks; 0 is no experiment.";
    to.gauge(("holdout_share", Some("ratio"), what), |state| state.savings.share)?;
    let what = "Cycles of the holdout experiment that could be compared.";
    to.counter(("holdout_cycles", None, what), |state| count(state.savings.cycles))?;
    let what = "Time measured at default clocks in the holdout experiment.";
    to.counter(("holdout_default", Some("seconds"), what), |state| state.savings.held_s)?;
    let what = "Time measured under agft in the holdout experiment.";
    to.counter(("holdout_agft", Some("seconds"), what), |state| state.savings.agft_s)?;
    let what = "Measured: relative change under agft against default clocks, with its 95 % interval.";
    to.gauges(("measured_change", Some("ratio"), what), |state| {
        let effect = &state.savings.effect;
        let changes = [("power", effect.power_w), ("tpot", effect.tpot_s), ("ttft", effect.ttft_s)];
        let changes = changes.into_iter().filter_map(|(name, change)| Some((name, change?)));
        changes.flat_map(|(name, change)| {
            let bounds = around(change.relative, change.relative_half_width);
            bounds.map(|(bound, value)| ([vec![("of", name)], bound].concat(), value))
        })
    })?;
    let what = "Measured: energy saved in that time against default clocks, with its 95 % interval.";
    to.gauges(("measured_energy_saved", Some("joules"), what), |state| {
        let saved = state.savings.saved_j();
        saved.into_iter().flat_map(|(saved, half_width)| around(saved, half_width))
    })
}

fn around(mean: f64, half_width: f64) -> [Sample<'static>; 3] {
    bounds(mean - half_width, mean, mean + half_width)
}

fn estimate(to: &mut Families<'_, '_>) -> fmt::Result {
    let what = "Time of serving for which it is known what default clocks cost, time at them included.";
    to.counter(("compared", Some("seconds"), what), |state| state.estimate.compared_s)?;
    to.counter(("compared_energy", Some("joules"), "Energy measured in that time."), |state| {
        state.estimate.energy_j
    })?;
    let what = "Estimate: energy that default clocks would have taken in that time.";
    to.counter(("estimated_default_energy", Some("joules"), what), |state| state.estimate.default_energy_j)?;
    let what = "Time per output token summed over the tokens of that time.";
    to.counter(("compared_token_time", Some("seconds"), what), |state| state.estimate.token_time_s)?;
    let what = "Estimate: the same at default clocks.";
    to.counter(("estimated_default_token_time", Some("seconds"), what), |state| {
        state.estimate.default_token_time_s
    })?;
    let what = "Estimate: energy saved against default clocks in this run; negative if more was spent.";
    to.gauge(("estimated_energy_saved", Some("joules"), what), |state| {
        state.estimate.saved().map(|_| state.estimate.saved_j())
    })?;
    let what = "Estimate: the same as a share of what default clocks would have taken.";
    to.gauge(("estimated_energy_saved", Some("ratio"), what), |state| Some(state.estimate.saved()?.value))?;
    let what = "Half-width of the 95 % interval of that share.";
    let name = ("estimated_energy_saved_half_width", Some("ratio"), what);
    to.gauge(name, |state| Some(state.estimate.saved()?.half_width))?;
    let what = "Half-width of the 95 % interval of the estimated slowdown.";
    let name = ("estimated_slowdown_half_width", Some("ratio"), what);
    to.gauge(name, |state| Some(state.estimate.slowdown()?.half_width))?;
    let what = "Estimate: rise of the time per output token against default clocks.";
    to.gauge(("estimated_slowdown", Some("ratio"), what), |state| Some(state.estimate.slowdown()?.value))
}

fn happened(to: &mut Families<'_, '_>) -> fmt::Result {
    to.counter(("steps", None, "Steps of the loop."), |state| count(state.counts.steps))?;
    to.counter(("rounds", None, "Windows closed."), |state| count(state.counts.rounds))?;
    to.counter(("lessons", None, "Windows that taught the learner something."), |state| {
        count(state.counts.lessons)
    })?;
    to.counters(("decisions", None, "Choices, by reason."), |state| {
        by("reason", &state.counts.decisions, count)
    })?;
    let what = ("clock_changes", None, "Changes of the clocks that the driver has confirmed.");
    to.counter(what, |state| count(state.counts.clock_changes))?;
    let what = ("scrape_failures", None, "Scrapes of the engine's page that failed.");
    to.counter(what, |state| count(state.counts.scrape_failures))?;
    to.counter(("outages", None, "Outages of the engine's page."), |state| count(state.counts.outages))?;
    to.counters(("faults", None, "Things that went wrong."), |state| {
        by("kind", &state.counts.faults, count)
    })?;
    let what = ("limit_violations", None, "Times that a latency limit broke.");
    to.counters(what, |state| by("limit", &state.counts.limit_violations, count))?;
    let what = ("limit_violated", Some("seconds"), "Time with a broken latency limit.");
    to.counter(what, |state| state.counts.violated_s)
}

#[cfg(test)]
mod tests;
