//! `agft gpus`: what is in the machine, and what of it can be controlled.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Exit, report_gpu_error};
use crate::gpu::host;
use crate::gpu::probe::{ProbeReport, judge, probe};
use crate::gpu::pstate::stuck_branch;
use crate::gpu::{GpuError, GpuInfo, GpuReading, GpuSelector, GpuSensors, NO_CLOCKS_LISTED, SupportedClocks};
use crate::units::Millijoules;

/// Options of `gpus`.
#[derive(Debug, Args)]
pub struct GpusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Watch the sensors for some seconds and report how often they change; reads only
    #[arg(long)]
    pub probe: bool,

    /// How long to watch
    #[arg(long, value_name = "SECONDS", default_value = "5", requires = "probe",
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) probe_seconds: u64,
}

/// One GPU as `gpus` shows it.
#[derive(Debug, Serialize)]
struct GpuReport {
    #[serde(flatten)]
    info: GpuInfo,
    reading: Option<GpuReading>,
    energy_counter_mj: Option<Millijoules>,
    supported_clocks: Option<SupportedClocks>,
    /// What agft can do with it, as far as reading can tell.
    controllable: Controllable,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<ProbeReport>,
    /// Readings that are not believed, as a short look found them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    doubts: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Controllable {
    /// The driver lists core clocks. Whether they may be locked shows when they are: that needs root.
    core_clock: bool,
    /// The driver lists more than one memory clock.
    memory_clock: bool,
    energy_counter: bool,
    power_sensor: bool,
    /// NVAPI is there and knows this GPU: its performance state can be forced.
    performance_state: bool,
}

/// Lists the GPUs.
pub(crate) fn run(args: &GpusArgs) -> Exit {
    match reports(args) {
        Ok(reports) => print(&reports, args.json),
        Err(error) => report_gpu_error(&error),
    }
}

fn reports(args: &GpusArgs) -> Result<Vec<GpuReport>, GpuError> {
    let host = host::open()?;
    host.list()?
        .into_iter()
        .map(|info| {
            let sensors = host.sensors(&GpuSelector::Uuid(info.uuid.clone()))?;
            let probe = match args.probe {
                true => Some(probe(sensors.as_ref(), Duration::from_secs(args.probe_seconds))?),
                false => None,
            };
            let has_states = host.has_states(&info);
            let doubts = if args.probe { judge(sensors.as_ref())?.doubts } else { Vec::new() };
            Ok(GpuReport { doubts, ..report(info, sensors.as_ref(), probe, has_states) })
        })
        .collect()
}

fn report(
    info: GpuInfo,
    sensors: &dyn GpuSensors,
    probe: Option<ProbeReport>,
    has_states: bool,
) -> GpuReport {
    let supported_clocks = sensors.supported_clocks().ok();
    let reading = sensors.reading().ok();
    let energy = sensors.energy().ok();
    GpuReport {
        controllable: Controllable {
            core_clock: supported_clocks.as_ref().is_some_and(|clocks| clocks.core().len() > 1),
            memory_clock: supported_clocks.as_ref().is_some_and(|clocks| clocks.levels().len() > 1),
            energy_counter: energy.is_some(),
            power_sensor: reading.is_some_and(|reading| reading.power.is_some()),
            performance_state: has_states,
        },
        info,
        reading,
        energy_counter_mj: energy,
        supported_clocks,
        probe,
        doubts: Vec::new(),
    }
}

fn print(reports: &[GpuReport], json: bool) -> Exit {
    if json {
        return match serde_json::to_string_pretty(reports) {
            Ok(text) => {
                super::say::print(&(text + "\n"));
                Exit::Ok
            }
            Err(error) => {
                complain!("agft: cannot write JSON: {error}");
                Exit::Failure
            }
        };
    }
    if reports.is_empty() {
        say!("no GPUs");
    }
    for report in reports {
        print_one(report);
    }
    Exit::Ok
}

fn print_one(report: &GpuReport) {
    let GpuReport { info, reading, supported_clocks, controllable, .. } = report;
    say!("{info}  {}", info.uuid);
    if let Some(driver) = &info.driver_version {
        say!("  driver         {driver}");
    }
    match supported_clocks {
        Some(clocks) => {
            say!(
                "  core clocks    {} to {}, {} steps",
                clocks.core_min(),
                clocks.core_max(),
                clocks.core().len()
            );
            let memory: Vec<String> = clocks.memory().map(|clock| clock.0.to_string()).collect();
            say!("  memory clocks  {} MHz", memory.join(", "));
        }
        None => say!("  clocks         none known: {NO_CLOCKS_LISTED}"),
    }
    if let Some(reading) = reading {
        let show = |value: Option<String>| value.unwrap_or_else(|| "unknown".into());
        say!("  core now       {}", show(reading.core_clock.map(|c| c.to_string())));
        say!("  memory now     {}", show(reading.memory_clock.map(|c| c.to_string())));
        let limit = info.power_limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
        say!("  power          {}{limit}", show(reading.power.map(|p| p.to_string())));
        say!("  utilisation    {}", show(reading.utilization_percent.map(|u| format!("{u:.0} %"))));
    }
    let stuck = info.driver_version.as_deref().and_then(stuck_branch);
    match (controllable.performance_state, stuck) {
        (true, None) => {
            say!("  NVAPI          there: a performance state can be forced (park.lever: pstate)");
        }
        (true, Some(stuck)) => {
            say!("  NVAPI          not used under drivers {}.x: {}", stuck.branch, stuck.what);
        }
        (false, _) => say!("  NVAPI          not there: no performance state can be forced"),
    }
    let energy = if controllable.energy_counter {
        "from the driver's counter"
    } else if controllable.power_sensor {
        "integrated from power samples (no counter)"
    } else {
        "unknown: neither counter nor power sensor"
    };
    say!("  energy         {energy}");
    if let Some(probe) = &report.probe {
        let period = |sensor: Option<&crate::gpu::probe::SensorReport>| {
            sensor.and_then(|s| s.period_ms).map_or("no change seen".to_owned(), |spread| {
                format!("every {:.1} ms (95 % within {:.1} ms)", spread.median, spread.p95)
            })
        };
        say!("  counter ticks  {}", period(probe.energy.as_ref()));
        say!("  power changes  {}", period(probe.power.as_ref()));
    }
    for doubt in &report.doubts {
        say!("  WARNING        {doubt}");
    }
}
