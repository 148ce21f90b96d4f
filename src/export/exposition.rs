//! The state as metrics: names, units and help, and nothing else decided here.
//!
//! Names follow the conventions of Prometheus: base units in the name, counters end in `_total`. What is not known has no
//! sample; there are no made-up zeros. `docs/metrics.md` lists every metric, and a test holds it to this file.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::control::Mode;
use crate::stats::Durations;
use crate::units::Mhz;
use crate::view::{ArmStatus, State};

mod park;
mod parking;

pub use park::page as park_page;

/// The two text formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, understood by everything.
    Text,
    /// OpenMetrics 1.0, for clients that ask for it.
    OpenMetrics,
}

impl Format {
    /// The format that a client wants, by its `Accept` header.
    #[must_use]
    pub fn wanted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    /// The media type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The page.
///
/// # Errors
/// [`fmt::Error`], which the encoder gives for no state known so far.
pub fn page(state: Arc<State>, format: Format) -> Result<String, fmt::Error> {
    written(Box::new(Page(state)), format)
}

fn written(collector: Box<dyn Collector>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(collector);
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
struct Page(Arc<State>);

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut to = Families(encoder);
        run(&mut to, &self.0)?;
        gpus(&mut to, &self.0)?;
        engine(&mut to, &self.0)?;
        learner(&mut to, &self.0)?;
        measured(&mut to, &self.0)?;
        estimate(&mut to, &self.0)?;
        happened(&mut to, &self.0)?;
        parking::parking(&mut to, &self.0.parking)
    }
}

const NOT_GIVEN_BACK: &str =
    "1 while the driver does not take clocks back that are to be at its default: a lock may be in force.";

/// One label.
type Label<'l> = (&'static str, &'l str);

/// Writes families of samples.
struct Families<'e>(DescriptorEncoder<'e>);

impl Families<'_> {
    fn family<'l>(
        &mut self,
        (name, unit, help): (&str, Option<&str>, &str),
        kind: MetricType,
        samples: impl IntoIterator<Item = (Vec<Label<'l>>, f64)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let name = format!("agft_{name}");
        let unit = unit.map(|unit| Unit::Other(unit.to_owned()));
        let mut family = self.0.encode_descriptor(&name, help, unit.as_ref(), kind)?;
        for (labels, value) in samples {
            let encode = |metric: &mut prometheus_client::encoding::MetricEncoder<'_>| match kind {
                MetricType::Counter => metric.encode_counter::<NoLabelSet, _, f64>(&value, None),
                _ => metric.encode_gauge(&value),
            };
            if labels.is_empty() {
                encode(&mut family)?;
            } else {
                encode(&mut family.encode_family(&safe(&labels))?)?;
            }
        }
        Ok(())
    }

    fn gauge(&mut self, what: (&str, Option<&str>, &str), value: impl Into<Option<f64>>) -> fmt::Result {
        self.family(what, MetricType::Gauge, value.into().map(|value| (Vec::new(), value)))
    }

    fn gauges<'l>(
        &mut self,
        what: (&str, Option<&str>, &str),
        samples: impl IntoIterator<Item = (Vec<Label<'l>>, f64)>,
    ) -> fmt::Result {
        self.family(what, MetricType::Gauge, samples)
    }

    fn counter(&mut self, what: (&str, Option<&str>, &str), value: f64) -> fmt::Result {
        self.family(what, MetricType::Counter, [(Vec::new(), value)])
    }

    fn counters<'l>(
        &mut self,
        what: (&str, Option<&str>, &str),
        samples: impl IntoIterator<Item = (Vec<Label<'l>>, f64)>,
    ) -> fmt::Result {
        self.family(what, MetricType::Counter, samples)
    }

    fn timing(&mut self, name: &str, help: &str, timing: &Durations) -> fmt::Result {
        let name = format!("agft_{name}");
        let mut family =
            self.0.encode_descriptor(&name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        family.encode_histogram::<NoLabelSet>(timing.sum_s, timing.count, &timing.buckets(), None)
    }

    fn info(&mut self, name: &str, help: &str, labels: &[Label<'_>]) -> fmt::Result {
        let name = format!("agft_{name}");
        let mut family = self.0.encode_descriptor(&name, help, None, MetricType::Info)?;
        family.encode_info(&safe(labels))
    }
}

/// Labels whose values nobody's screen obeys; the encoder escapes what the format itself needs.
fn safe<'l>(labels: &'l [Label<'_>]) -> Vec<(&'static str, std::borrow::Cow<'l, str>)> {
    labels.iter().map(|(name, value)| (*name, crate::text::line(value))).collect()
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

/// One sample per key of a map, under the label `label`.
fn by<'m, V: Copy>(
    label: &'static str,
    map: &'m std::collections::BTreeMap<String, V>,
    value: impl Fn(V) -> f64,
) -> Vec<(Vec<Label<'m>>, f64)> {
    map.iter().map(|(key, of)| (vec![(label, key.as_str())], value(*of))).collect()
}

fn run(to: &mut Families<'_>, state: &State) -> fmt::Result {
    to.info("build", "The version that runs.", &[("version", &state.version)])?;
    let labels = [("policy", state.policy.as_str()), ("objective", state.objective.as_str())];
    to.info("policy", "The learner that is configured and what it makes small.", &labels)?;
    let what = ("start_time", Some("seconds"), "Start of the run, Unix time.");
    to.gauge(what, state.started_unix_s)?;
    let what = ("dry_run", None, "1 if clocks are chosen but not written.");
    to.gauge(what, flag(state.dry_run))?;
    let modes = Mode::ALL.iter().map(|mode| (vec![("mode", mode.name())], flag(*mode == state.mode)));
    to.gauges(("mode", None, "What the loop is doing: 1 for the mode it is in."), modes)?;
    let what = ("mode", Some("seconds"), "Time spent in each mode.");
    to.counters(what, by("mode", &state.counts.mode_s, |seconds| seconds))?;
    to.timing("scrape_duration", "Time that fetching the engine's metrics page took.", &state.scrape)?;
    to.timing("tick_lateness", "Time by which ticks began late.", &state.lateness)?;
    to.timing("step_duration", "Time that collecting, deciding and commanding took.", &state.step)
}

fn gpus(to: &mut Families<'_>, state: &State) -> fmt::Result {
    let indices: Vec<String> = state.gpus.iter().map(|gpu| gpu.index.to_string()).collect();
    let each = |value: &dyn Fn(&crate::view::GpuState) -> Option<f64>| -> Vec<(Vec<Label<'_>>, f64)> {
        let samples = state.gpus.iter().zip(&indices);
        samples.filter_map(|(gpu, index)| Some((vec![("gpu", index.as_str())], value(gpu)?))).collect()
    };
    let names = state.gpus.iter().zip(&indices).map(|(gpu, index)| {
        (vec![("gpu", index.as_str()), ("uuid", gpu.uuid.as_str()), ("name", gpu.name.as_str())], 1.0)
    });
    to.gauges(("gpu_info", None, "The GPUs of the engine; always 1."), names)?;
    let what =
        ("clocks_locked", None, "1 while a lock is in force, 0 at driver-default clocks; none if not known.");
    to.gauge(what, (!state.not_given_back).then(|| flag(state.in_force.is_some())))?;
    let what = ("clocks_not_given_back", None, NOT_GIVEN_BACK);
    to.gauge(what, flag(state.not_given_back))?;
    let what = ("asked_core_clock", Some("hertz"), "Core clock asked for; none at driver-default clocks.");
    to.gauge(what, state.asked.map(|clocks| hertz(clocks.core)))?;
    let what = ("asked_memory_clock", Some("hertz"), "Memory clock asked for; none where it is left alone.");
    to.gauge(what, state.asked.and_then(|clocks| clocks.memory).map(hertz))?;
    let what = ("gpu_core_clock", Some("hertz"), "Core clock that runs, as read back.");
    to.gauges(what, each(&|gpu| gpu.core_clock.map(hertz)))?;
    let what = ("gpu_memory_clock", Some("hertz"), "Memory clock that runs, as read back.");
    to.gauges(what, each(&|gpu| gpu.memory_clock.map(hertz)))?;
    to.gauges(("gpu_power", Some("watts"), "Board power."), each(&|gpu| gpu.power_w))?;
    to.gauges(("gpu_temperature", Some("celsius"), "Core temperature."), each(&|gpu| gpu.temperature_c))?;
    let what = ("gpu_utilization", Some("ratio"), "Share of the time in which a kernel ran.");
    to.gauges(what, each(&|gpu| gpu.utilization))?;
    let what = ("gpu_capped", None, "1 while power or temperature holds the clock low.");
    to.gauges(what, each(&|gpu| gpu.capped.map(flag)))?;
    let what = ("gpu_energy", Some("joules"), "Energy since the start of the run.");
    to.counters(what, each(&|gpu| gpu.energy_j))
}

fn engine(to: &mut Families<'_>, state: &State) -> fmt::Result {
    let (load, counts) = (&state.load, &state.counts);
    let kinds = [("prompt", counts.prompt_tokens), ("generated", counts.generated_tokens)];
    let tokens = kinds.map(|(kind, tokens)| (vec![("kind", kind)], tokens));
    to.counters(("tokens", None, "Tokens that the engine processed."), tokens)?;
    to.counter(("requests_finished", None, "Requests that the engine finished."), counts.finished)?;
    let states = [("running", load.running), ("waiting", load.waiting)];
    let requests = states.into_iter().filter_map(|(of, value)| Some((vec![("state", of)], value?)));
    to.gauges(("requests", None, "Requests in the engine."), requests)?;
    let what = ("kv_cache_usage", Some("ratio"), "Share of the KV cache in use.");
    to.gauge(what, load.kv_usage)?;
    let what = ("time_to_first_token", Some("seconds"), "Mean over the latest window.");
    to.gauge(what, load.ttft_s)?;
    let what = ("time_per_output_token", Some("seconds"), "Mean over the latest window.");
    to.gauge(what, load.tpot_s)?;
    let limits = state.limits.into_iter().flat_map(|limits| {
        [(vec![("limit", "ttft")], limits.ttft.0), (vec![("limit", "tpot")], limits.tpot.0)]
    });
    to.gauges(("latency_limit", Some("seconds"), "Latency limit in force."), limits)?;
    let round = state.round.as_ref();
    let edp = round.and_then(|round| round.edp_js);
    let what = "Energy of the latest window times its time per output token.";
    to.gauge(("edp", Some("joule_seconds"), what), edp)?;
    let default = round.and_then(|round| round.default_edp_js);
    let what = "Estimate: the same at driver-default clocks under this load.";
    to.gauge(("estimated_default_edp", Some("joule_seconds"), what), default)
}

fn learner(to: &mut Families<'_>, state: &State) -> fmt::Result {
    let learner = &state.learner;
    let reward = state.round.as_ref().and_then(|round| round.reward);
    to.gauge(("reward", None, "Reward of the latest window; 0 is as good as default clocks."), reward)?;
    let what = ("exploration_rate", None, "Width of the confidence bound in force.");
    to.gauge(what, learner.exploration_rate)?;
    to.gauge(("converged", None, "1 once the choice of clocks has settled."), flag(learner.converged))?;
    let what = ("handed_over", None, "1 while linucb stands in for structured.");
    to.gauge(what, flag(learner.handed_over.is_some()))?;
    let statuses = ArmStatus::ALL.map(|status| {
        let arms = learner.arms.iter().filter(|arm| arm.status == status).count();
        (vec![("status", status.name())], count(arms as u64))
    });
    to.gauges(("arms", None, "Clocks, by whether they may be chosen and what took them out."), statuses)?;
    let what = ("best_core_clock", Some("hertz"), "Core clock with the highest mean reward.");
    to.gauge(what, learner.best.map(|clocks| hertz(clocks.core)))?;
    let what = ("floor_core_clock", Some("hertz"), "Lowest core clock that broken limits allow.");
    to.gauge(what, state.floor.map(hertz))
}

fn measured(to: &mut Families<'_>, state: &State) -> fmt::Result {
    let of = &state.savings;
    let what = "Share of the time that the holdout experiment leaves to default clocks; 0 is no experiment.";
    to.gauge(("holdout_share", Some("ratio"), what), of.share)?;
    let what = ("holdout_cycles", None, "Cycles of the holdout experiment that could be compared.");
    to.counter(what, count(of.cycles))?;
    let what = "Time measured at default clocks in the holdout experiment.";
    to.counter(("holdout_default", Some("seconds"), what), of.held_s)?;
    let what = "Time measured under agft in the holdout experiment.";
    to.counter(("holdout_agft", Some("seconds"), what), of.agft_s)?;
    let effect = &of.effect;
    let changes = [("power", effect.power_w), ("tpot", effect.tpot_s), ("ttft", effect.ttft_s)];
    let changes = changes.into_iter().filter_map(|(name, change)| Some((name, change?)));
    let samples = changes.flat_map(|(name, change)| {
        bounds(change.relative, change.relative_half_width)
            .map(|(bound, value)| (vec![("of", name), ("bound", bound)], value))
    });
    let what = "Measured: relative change under agft against default clocks, with its 95 % interval.";
    to.gauges(("measured_change", Some("ratio"), what), samples)?;
    let saved = of.saved_j().map(|(saved, half_width)| bounds(saved, half_width));
    let samples = saved.into_iter().flatten().map(|(bound, value)| (vec![("bound", bound)], value));
    let what = "Measured: energy saved in that time against default clocks, with its 95 % interval.";
    to.gauges(("measured_energy_saved", Some("joules"), what), samples)
}

fn bounds(mean: f64, half_width: f64) -> [(&'static str, f64); 3] {
    [("low", mean - half_width), ("mean", mean), ("high", mean + half_width)]
}

fn estimate(to: &mut Families<'_>, state: &State) -> fmt::Result {
    let of = &state.estimate;
    let what = "Time at a lock for which default clocks can be estimated.";
    to.counter(("compared", Some("seconds"), what), of.compared_s)?;
    to.counter(("compared_energy", Some("joules"), "Energy measured in that time."), of.energy_j)?;
    let what = "Estimate: energy that default clocks would have taken in that time.";
    to.counter(("estimated_default_energy", Some("joules"), what), of.default_energy_j)?;
    let what = "Time per output token summed over the tokens of that time.";
    to.counter(("compared_token_time", Some("seconds"), what), of.token_time_s)?;
    let what = "Estimate: the same at default clocks.";
    to.counter(("estimated_default_token_time", Some("seconds"), what), of.default_token_time_s)?;
    let what = "Estimate: energy saved against default clocks in this run; negative if more was spent.";
    to.gauge(("estimated_energy_saved", Some("joules"), what), of.saved_j())?;
    let what = "Estimate: the same as a share of what default clocks would have taken.";
    to.gauge(("estimated_energy_saved", Some("ratio"), what), of.saved_share())?;
    let what = "Estimate: rise of the time per output token against default clocks.";
    to.gauge(("estimated_slowdown", Some("ratio"), what), of.slowdown())
}

fn happened(to: &mut Families<'_>, state: &State) -> fmt::Result {
    let counts = &state.counts;
    to.counter(("steps", None, "Steps of the loop."), count(counts.steps))?;
    to.counter(("rounds", None, "Windows closed."), count(counts.rounds))?;
    to.counter(("lessons", None, "Windows that taught the learner something."), count(counts.lessons))?;
    to.counters(("decisions", None, "Choices, by reason."), by("reason", &counts.decisions, count))?;
    let what = ("clock_changes", None, "Changes of the clocks that the driver has confirmed.");
    to.counter(what, count(counts.clock_changes))?;
    let what = ("scrape_failures", None, "Scrapes of the engine's page that failed.");
    to.counter(what, count(counts.scrape_failures))?;
    to.counter(("outages", None, "Outages of the engine's page."), count(counts.outages))?;
    to.counters(("faults", None, "Things that went wrong."), by("kind", &counts.faults, count))?;
    let what = ("limit_violations", None, "Times that a latency limit broke.");
    to.counters(what, by("limit", &counts.limit_violations, count))?;
    let what = ("limit_violated", Some("seconds"), "Time with a broken latency limit.");
    to.counter(what, counts.violated_s)?;
    to.counter(("parkings", None, "Times that the clocks were parked."), count(counts.parkings))?;
    let what = ("wakes", None, "Ends of parking, by what showed the work.");
    to.counters(what, by("source", &counts.wakes, count))
}

#[cfg(test)]
mod tests;
