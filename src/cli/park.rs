//! `agft park`: parks GPUs that nobody uses, beside any program or none.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::guarded::{CLOCK_THREAD, Guarded};
use super::run::exit_of_run;
use super::{Cli, Exit, load_config, logging, report_config_error};
use crate::config::{Config, Park, ParkSource, WaitKind};
use crate::daemon::actuator::Actuator;
use crate::daemon::clock::Clock;
use crate::daemon::notify::Notifier;
use crate::daemon::park::activity::{ActivitySource, Ports};
use crate::daemon::park::hooks::{FanHooks, Programs};
use crate::daemon::park::member::{Levels, Member, Periods, levels};
use crate::daemon::park::{ParkRun, drive};
use crate::daemon::signals::Signals;
use crate::daemon::tick::End;
use crate::daemon::watch::Pulse;
use crate::gpu::lease::ClockLease;
use crate::gpu::nvml::NvmlHost;
use crate::gpu::{GpuError, GpuInfo, GpuSelector, GpuSensors};
use crate::park::fans::FanRule;
use crate::park::gap::{GapSettings, Wait};
use crate::park::rule::{HotAt, Settings};
use crate::store::trusted_path;
use crate::units::{Joules, Mhz, Seconds};

/// Options of `park`. The file's section `park` has all there is to set.
#[derive(Debug, Args)]
pub struct ParkArgs {
    /// GPUs by index or UUID, or all (overrides park.gpus)
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub gpus: Vec<String>,

    /// Park after so much time without work (overrides park.idle_timeout_s)
    #[arg(long, value_name = "SECONDS")]
    pub idle_timeout: Option<f64>,

    /// A connection to this TCP port of the machine is work, too; may be repeated (overrides park.ports)
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<u16>,
}

/// Parks until a signal or an error.
#[must_use]
pub fn run(args: &ParkArgs, cli: &Cli) -> Exit {
    // It has no engine whose address it had to be told: it works without a file.
    let loaded =
        if cli.config_given || cli.config.exists() { load_config(cli) } else { Ok(Config::default()) };
    let config = match loaded.and_then(|config| with_arguments(config, args)) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let _log = logging::start(logging::console_level(cli.log_level, &config.logging), cli.log_format, None);
    exit_of_run(daemon(cli, &config))
}

/// The configuration with what the command line says instead, by the same rules.
fn with_arguments(mut config: Config, args: &ParkArgs) -> Result<Config, Exit> {
    let park = &mut config.park;
    if args.gpus.iter().any(|gpu| gpu == "all") {
        park.gpus = None;
    } else if !args.gpus.is_empty() {
        let selector = |gpu: &String| match gpu.trim().parse() {
            Ok(index) => GpuSelector::Index(index),
            Err(_) => GpuSelector::Uuid(gpu.trim().to_owned()),
        };
        park.gpus = Some(args.gpus.iter().map(selector).collect());
    }
    if let Some(timeout) = args.idle_timeout {
        park.idle_timeout_s = Seconds(timeout);
    }
    if !args.ports.is_empty() {
        park.ports.clone_from(&args.ports);
        if !park.sources.contains(&ParkSource::Connections) {
            park.sources.push(ParkSource::Connections);
        }
    }
    match Config::parse(&config.to_yaml(), "the file and the command line") {
        Ok(loaded) => Ok(loaded.config),
        Err(error) => Err(report_config_error(&error)),
    }
}

fn settings(park: &Park) -> Settings {
    let utilization = park.sources.contains(&ParkSource::Utilization);
    Settings {
        gap: GapSettings {
            wait: match park.rule {
                WaitKind::Timeout => Wait::Timeout(park.idle_timeout_s),
                WaitKind::SkiRental => {
                    Wait::SkiRental { wake: Some(Joules(park.wake_cost_j)), unmeasured: park.idle_timeout_s }
                }
            },
            quiet: park.quiet_s,
            at_start: park.at_start,
            wake_limit: park.wake_limit_s,
        },
        utilization_threshold_percent: utilization.then_some(park.utilization_threshold_percent),
        connections: park.sources.contains(&ParkSource::Connections),
        hot: park.temperature_high_c.map(|high_c| HotAt { high_c, low_c: park.temperature_low_c }),
    }
}

/// A GPU that is to be parked.
struct Chosen {
    sensors: Box<dyn GpuSensors>,
    info: GpuInfo,
    core_min: Mhz,
    levels: Levels,
}

/// The GPUs that are meant. A named one that cannot be parked is an error; of all, those that can are taken.
fn choose(host: NvmlHost, park: &Park) -> anyhow::Result<Vec<Chosen>> {
    let (selectors, named) = match &park.gpus {
        Some(selectors) => (selectors.clone(), true),
        None => (host.list()?.into_iter().map(|gpu| GpuSelector::Index(gpu.index)).collect(), false),
    };
    let mut chosen: Vec<Chosen> = Vec::new();
    for selector in &selectors {
        match open(host, selector, park) {
            Ok(gpu) if chosen.iter().any(|other| other.info.uuid == gpu.info.uuid) => {
                anyhow::bail!("park.gpus names {} twice; name each GPU once", gpu.info);
            }
            Ok(gpu) => chosen.push(gpu),
            Err(error) if named => return Err(error.into()),
            Err(error) => tracing::warn!(%error, "GPU left alone"),
        }
    }
    if chosen.is_empty() {
        anyhow::bail!("no GPU of this machine can be parked; see `agft gpus`");
    }
    Ok(chosen)
}

fn open(host: NvmlHost, selector: &GpuSelector, park: &Park) -> Result<Chosen, GpuError> {
    let sensors = host.sensors(selector)?;
    let info = sensors.info().clone();
    if sensors.setup().mig == Some(true) {
        return Err(GpuError::Mig { gpu: info.to_string(), index: info.index });
    }
    if park.sources.contains(&ParkSource::Utilization)
        && let Err(error) = sensors.utilization()
        && error.is_missing_sensor()
    {
        return Err(error);
    }
    let clocks = sensors.supported_clocks()?;
    let levels = levels(park, &clocks);
    Ok(Chosen { sensors: Box::new(sensors), info, core_min: clocks.core_min(), levels })
}

fn daemon(cli: &Cli, config: &Config) -> anyhow::Result<()> {
    let park = &config.park;
    check_fan_programs(park)?;
    let sources = sources(park)?;
    let host = NvmlHost::open()?;
    let chosen = choose(host, park)?;
    let infos: Vec<GpuInfo> = chosen.iter().map(|gpu| gpu.info.clone()).collect();
    let settings = settings(park);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), gpus = infos.len(), park = ?park, "agft park starts");
    // A turn is over well within this, or it hangs.
    let period = millis(park.active_poll_ms);
    let guarded = Guarded::claim(cli, config, host, &infos, period)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the first lock: from here on no signal ends the process with a clock held.
        let mut signals = Signals::install().context("signal handlers")?;
        let clock = Clock::start();
        let answers = guarded.start_guardian().context("clocks cannot be controlled")?;
        let mut members = Vec::new();
        let periods = Periods { active: period, parked: millis(park.parked_poll_ms) };
        for gpu in chosen {
            tracing::info!(gpu = %gpu.info, uuid = gpu.info.uuid, parked = %gpu.levels.parked, "may be parked");
            let clocks = host.clocks(&GpuSelector::Uuid(gpu.info.uuid.clone()))?;
            let lease =
                ClockLease::take_with(vec![(Box::new(clocks), gpu.core_min)], Box::new(guarded.ledger()))
                    .context("clocks cannot be controlled")?;
            let actuator = Actuator::spawn(lease, clock).context("clock thread")?;
            members.push(Member::new(gpu.sensors, actuator, settings, gpu.levels, periods, clock.now()));
        }
        let pulse = Pulse::new();
        let mut watched: Vec<_> =
            members.iter().map(|member| (CLOCK_THREAD, member.clock_pulse())).collect();
        watched.push(("the loop, which reads the GPUs,", pulse.clone()));
        let disturbers: Vec<_> = members.iter().map(Member::disturber).collect();
        let notice = move |why: String| disturbers.iter().for_each(|disturb| disturb(why.clone()));
        let watch = guarded.watch(answers, watched, Box::new(notice), period).context("watch thread")?;
        let hooks = fan_hooks(park).context("fan thread")?;
        let notifier = Notifier::from_env();
        if let Some(notifier) = &notifier {
            notifier.ready();
        }
        let run = ParkRun {
            members,
            sources,
            sources_every: period,
            watch: Some(watch),
            pulse,
            fans: FanRule::new(park.fan_off_after_s),
            hooks,
            log_every: park.log_interval_s,
            notifier,
            clock,
            panic_at_turn: cli.panic_at_tick,
        };
        let end = drive(run, signals.wait()).await?;
        if let End::Signal(name) = end {
            tracing::info!(signal = name, "ended by signal");
        }
        Ok(())
    })
}

/// Sources of activity beside the GPUs.
fn sources(park: &Park) -> anyhow::Result<Vec<Box<dyn ActivitySource>>> {
    if !park.sources.contains(&ParkSource::Connections) {
        return Ok(Vec::new());
    }
    let ports =
        Ports::watch(&park.ports, Duration::from_millis(park.active_poll_ms)).context("park.ports")?;
    tracing::info!(ports = ?park.ports, from = %ports.source(), "connections are watched");
    Ok(vec![Box::new(ports)])
}

fn fan_hooks(park: &Park) -> std::io::Result<Option<FanHooks>> {
    if park.fan_on.is_empty() && park.fan_off.is_empty() {
        return Ok(None);
    }
    FanHooks::spawn(Programs {
        on: park.fan_on.clone(),
        off: park.fan_off.clone(),
        timeout: Duration::from_secs_f64(park.fan_timeout_s.0),
    })
    .map(Some)
}

/// Root starts no program that others could have written.
fn check_fan_programs(park: &Park) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    for (key, argv) in [("park.fan_on", &park.fan_on), ("park.fan_off", &park.fan_off)] {
        if let Some(program) = argv.first() {
            let trusted = trusted_path(Path::new(program));
            trusted.with_context(|| format!("{key}: {program} is not started by root"))?;
        }
    }
    Ok(())
}

fn millis(number: u64) -> Seconds {
    Seconds(Duration::from_millis(number).as_secs_f64())
}
