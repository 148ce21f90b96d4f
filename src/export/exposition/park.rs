//! The state of an `agft park` as metrics.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::{Families, Format, Label, NOT_GIVEN_BACK, count, flag, hertz, written};
use crate::park::levers::LeverKind;
use crate::view::{ParkMode, ParkStanding, ParkState, ParkedGpu};

/// The page.
///
/// # Errors
/// [`fmt::Error`], which the encoder gives for no state known so far.
pub fn page(state: Arc<ParkState>, format: Format) -> Result<String, fmt::Error> {
    written(Box::new(Page(state)), format)
}

#[derive(Debug)]
struct Page(Arc<ParkState>);

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut to = Families(encoder);
        run(&mut to, &self.0)?;
        let gpus: Vec<(String, &ParkedGpu)> =
            self.0.gpus.iter().map(|gpu| (gpu.index.to_string(), gpu)).collect();
        standing(&mut to, &gpus)?;
        wakes(&mut to, &gpus)?;
        energy(&mut to, &gpus)
    }
}

/// GPUs with their labels.
type Gpus<'g> = [(String, &'g ParkedGpu)];

/// One sample per GPU that has a value.
fn each<'g>(gpus: &'g Gpus<'_>, value: impl Fn(&ParkedGpu) -> Option<f64>) -> Vec<(Vec<Label<'g>>, f64)> {
    gpus.iter().filter_map(|(gpu, of)| Some((vec![("gpu", gpu.as_str())], value(of)?))).collect()
}

fn run(to: &mut Families<'_>, state: &ParkState) -> fmt::Result {
    to.info("build", "The version that runs.", &[("version", &state.version)])?;
    let labels = [("rule", state.rule.as_str()), ("lever", state.lever.as_str())];
    to.info("park_settings", "When and how GPUs are parked.", &labels)?;
    let what = ("start_time", Some("seconds"), "Start of the run, Unix time.");
    to.gauge(what, state.started_unix_s)?;
    let what = ("dry_run", None, "1 if clocks are chosen but not written.");
    to.gauge(what, flag(state.dry_run))?;
    let what = ("park_paused", None, "1 while the clocks are left to the driver, until resume.");
    to.gauge(what, flag(state.mode == ParkMode::Paused))?;
    let connections = state.connections.as_ref();
    let what = ("park_open_connections", None, "Connections to the watched ports.");
    to.gauge(what, connections.and_then(|of| of.open).map(f64::from))?;
    let source = connections.map(|of| (vec![("source", of.source.as_str())], 1.0));
    let what = ("park_connections_source", None, "Where connections are known from; always 1.");
    to.gauges(what, source)
}

fn standing(to: &mut Families<'_>, gpus: &Gpus<'_>) -> fmt::Result {
    let info = gpus.iter().map(|(gpu, of)| {
        (vec![("gpu", gpu.as_str()), ("uuid", of.uuid.as_str()), ("name", of.name.as_str())], 1.0)
    });
    to.gauges(("park_gpu_info", None, "The GPUs that may be parked; always 1."), info)?;
    let states = gpus.iter().flat_map(|(gpu, of)| {
        ParkStanding::ALL
            .map(|state| (vec![("gpu", gpu.as_str()), ("state", state.name())], flag(of.state == state)))
    });
    to.gauges(("park_state", None, "Where a GPU stands: 1 for the state it is in."), states)?;
    let what = ("park_state_since", Some("seconds"), "When it came to that state, Unix time.");
    to.gauges(what, each(gpus, |gpu| Some(gpu.since_unix_s)))?;
    let help = "1 while a lock is in force, 0 at driver-default clocks; none if not known.";
    let known = |gpu: &ParkedGpu| (!gpu.not_given_back).then(|| flag(gpu.in_force.is_some()));
    to.gauges(("park_clocks_locked", None, help), each(gpus, known))?;
    let what = ("park_clocks_not_given_back", None, NOT_GIVEN_BACK);
    to.gauges(what, each(gpus, |gpu| Some(flag(gpu.not_given_back))))?;
    // Of a performance state no clock is asked for.
    let locked = |gpu: &ParkedGpu| gpu.in_force.filter(|_| gpu.lever != LeverKind::Pstate.name());
    let what =
        ("park_core_clock", Some("hertz"), "Core clock of the lock in force; none at driver-default clocks.");
    to.gauges(what, each(gpus, |gpu| locked(gpu).map(|clocks| hertz(clocks.core))))?;
    let help = "Memory clock of the lock in force; none where it is left alone.";
    let what = ("park_memory_clock", Some("hertz"), help);
    to.gauges(what, each(gpus, |gpu| locked(gpu).and_then(|clocks| clocks.memory).map(hertz)))?;
    let levers =
        gpus.iter().map(|(gpu, of)| (vec![("gpu", gpu.as_str()), ("lever", of.lever.as_str())], 1.0));
    to.gauges(("park_lever_info", None, "What parking lowers; always 1."), levers)?;
    let what =
        ("park_temperature", Some("celsius"), "Core temperature, where park.temperature_high_c is set.");
    to.gauges(what, each(gpus, |gpu| gpu.temperature_c))?;
    let what =
        ("park_utilization", Some("ratio"), "Share of the time in which a kernel ran, when last read.");
    to.gauges(what, each(gpus, |gpu| gpu.utilization_percent.map(|percent| percent / 100.0)))
}

fn wakes(to: &mut Families<'_>, gpus: &Gpus<'_>) -> fmt::Result {
    let what = ("park_parked", Some("seconds"), "Time parked because nobody used the GPU.");
    to.counters(what, each(gpus, |gpu| Some(gpu.books.parked_s)))?;
    let what = ("park_spells", None, "Times parked.");
    to.counters(what, each(gpus, |gpu| Some(count(gpu.books.spells))))?;
    let what = ("park_hot", Some("seconds"), "Time parked for heat, work or not.");
    to.counters(what, each(gpus, |gpu| Some(gpu.books.hot_s)))?;
    let wakes = gpus.iter().flat_map(|(gpu, of)| {
        of.books.wakes.iter().map(move |(source, wakes)| {
            (vec![("gpu", gpu.as_str()), ("source", source.as_str())], count(*wakes))
        })
    });
    to.counters(("park_wakes", None, "Ends of parking, by what showed the work."), wakes)?;
    let what = ("park_late_wakes", None, "Wakes that took longer than park.wake_limit_s.");
    to.counters(what, each(gpus, |gpu| Some(count(gpu.books.late_wakes))))?;
    let help = "Times that work was found at parked clocks: no connection told of it, or the clocks did not come back.";
    to.counters(("park_missed_wakes", None, help), each(gpus, |gpu| Some(count(gpu.books.missed_wakes))))?;
    latency(to, gpus)?;
    let what = ("park_sensor_calls", None, "Driver calls that read a sensor.");
    to.counters(what, each(gpus, |gpu| Some(count(gpu.books.calls))))?;
    let what = ("park_sensor_calls_parked", None, "The same while parked.");
    to.counters(what, each(gpus, |gpu| Some(count(gpu.books.calls_parked))))
}

fn latency(to: &mut Families<'_>, gpus: &Gpus<'_>) -> fmt::Result {
    if gpus.is_empty() {
        return Ok(());
    }
    let help = "Time from the decision to wake until the running clocks were seen to be back.";
    let mut family =
        to.0.encode_descriptor("agft_park_wake_latency", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for (gpu, of) in gpus {
        let latency = &of.books.wake_latency;
        let labels = [("gpu", gpu.as_str())];
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
            latency.sum_s,
            latency.count,
            &latency.buckets(),
            None,
        )?;
    }
    Ok(())
}

fn energy(to: &mut Families<'_>, gpus: &Gpus<'_>) -> fmt::Result {
    let what = ("park_idle_power", Some("watts"), "Mean board power of quiet spells that were not parked.");
    to.gauges(what, each(gpus, |gpu| gpu.idle_power_w))?;
    let what = ("park_parked_power", Some("watts"), "Mean board power while parked.");
    to.gauges(what, each(gpus, |gpu| gpu.parked_power_w))?;
    let saving = gpus.iter().flat_map(|(gpu, of)| {
        let of_lever = |kind: LeverKind| {
            let labels = vec![("gpu", gpu.as_str()), ("lever", kind.name())];
            Some((labels, of.levers.saving(kind)?.0))
        };
        of.levers.levers.keys().copied().filter_map(of_lever).collect::<Vec<_>>()
    });
    let help = "Power that parking saves by this lever, as it was measured on this GPU.";
    to.gauges(("park_lever_saving", Some("watts"), help), saving)?;
    let saved = gpus.iter().flat_map(|(gpu, of)| {
        let bounds = of.saved.map(|of| [("low", of.low), ("mean", of.joules), ("high", of.high)]);
        bounds
            .into_iter()
            .flatten()
            .map(|(bound, joules)| (vec![("gpu", gpu.as_str()), ("bound", bound)], joules))
    });
    let help =
        "Estimate: energy that parking saved, with its 95 % interval; none while there are too few spells.";
    to.gauges(("park_saved", Some("joules"), help), saved)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_documented, check_with_promtool};
    use super::*;
    use crate::view::testing;

    const DOCUMENT: &str = include_str!("../../../docs/park.md");

    fn text() -> String {
        page(Arc::new(testing::park_state()), Format::Text).unwrap()
    }

    #[test]
    fn document_lists_every_metric_as_the_page_has_it() {
        assert_documented("docs/park.md", DOCUMENT, &text());
    }

    #[test]
    fn promtool_finds_nothing_to_say_about_the_page() {
        check_with_promtool(&text());
    }

    #[test]
    fn values_and_labels_are_those_of_the_state_and_unknown_has_no_sample() {
        let page = text();
        for line in [
            r#"agft_park_state{gpu="0",state="PARKED"} 1.0"#,
            r#"agft_park_state{gpu="0",state="SERVING"} 0.0"#,
            r#"agft_park_parked_seconds_total{gpu="0"} 600.0"#,
            r#"agft_park_wakes_total{gpu="0",source="connections"} 2.0"#,
            r#"agft_park_wake_latency_seconds_bucket{le="0.05",gpu="0"} 1"#,
            r#"agft_park_wake_latency_seconds_bucket{le="+Inf",gpu="0"} 2"#,
            r#"agft_park_saved_joules{gpu="0",bound="mean"} 18000.0"#,
            r#"agft_park_lever_saving_watts{gpu="0",lever="core"} 15.0"#,
            r#"agft_park_lever_saving_watts{gpu="0",lever="both"} 30.0"#,
            r#"agft_park_lever_info{gpu="0",lever="both"} 1.0"#,
            r#"agft_park_connections_source{source="kernel_events"} 1.0"#,
        ] {
            assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
        }
        let mut state = testing::park_state();
        state.gpus[0].saved = None;
        state.connections = None;
        state.gpus[0].in_force = None;
        let page = super::page(Arc::new(state), Format::Text).unwrap();
        assert!(!page.contains("agft_park_saved") && !page.contains("agft_park_open"), "{page}");
        for name in ["agft_park_core_clock_hertz{", "agft_park_memory_clock_hertz{"] {
            assert!(!page.contains(&format!("{name}gpu=\"0\"")), "{name} outlives the lock\n{page}");
        }
    }
}
