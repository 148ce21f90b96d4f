//! `agft park`: parks GPUs that nobody uses, beside any program or none.

use std::io::IsTerminal;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use tokio::sync::{mpsc, watch};

use super::guarded::{CLOCK_THREAD, Guarded};
use super::run::{bind_page, control_socket, exit_of_run};
use super::{Cli, Exit, load_config, logging, report_config_error};
use crate::config::{Config, ConfigError, Listen, Park, ParkSource};
use crate::control::Order;
use crate::daemon::actuator::Actuator;
use crate::daemon::clock::Clock;
use crate::daemon::notify::Notifier;
use crate::daemon::park::levels::{Levels, levels};
use crate::daemon::park::member::Member;
use crate::daemon::park::reload::Reloader;
use crate::daemon::park::{ParkRun, Show, drive, setup};
use crate::daemon::signals::Signals;
use crate::daemon::tick::End;
use crate::daemon::watch::Pulse;
use crate::export::Published;
use crate::export::guard::Hosts;
use crate::export::http::{self, Bound};
use crate::export::socket;
use crate::gpu::lease::ClockLease;
use crate::gpu::nvml::NvmlHost;
use crate::gpu::{GpuError, GpuInfo, GpuSelector, GpuSensors};
use crate::park::fans::FanRule;
use crate::units::{Mhz, Seconds};
use crate::view::ParkState;

/// Options of `park`. The file's section `park` has all there is to set.
#[derive(Debug, Clone, Args)]
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

    /// Decide and log, but write no clock
    #[arg(long)]
    pub dry_run: bool,

    /// Where the metrics page is: ADDRESS:PORT or off (overrides park.metrics_listen)
    #[arg(long, value_name = "ADDR:PORT|off")]
    pub metrics_listen: Option<Listen>,
}

/// Parks until a signal or an error.
#[must_use]
pub fn run(args: &ParkArgs, cli: &Cli) -> Exit {
    // It has no engine whose address it had to be told: it works without a file.
    let loaded =
        if cli.config_given || cli.config.exists() { load_config(cli) } else { Ok(Config::default()) };
    // Before the subcommand or after it.
    let args = &ParkArgs {
        dry_run: args.dry_run || cli.dry_run,
        metrics_listen: args.metrics_listen.or(cli.metrics_listen),
        ..args.clone()
    };
    let applied = |config| with_arguments(config, args).map_err(|error| report_config_error(&error));
    let config = match loaded.and_then(applied) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let _log = logging::start(logging::console_level(cli.log_level, &config.logging), cli.log_format, None);
    exit_of_run(daemon(cli, args, &config))
}

/// The configuration with what the command line says instead, by the same rules.
fn with_arguments(mut config: Config, args: &ParkArgs) -> Result<Config, ConfigError> {
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
    if let Some(listen) = args.metrics_listen {
        park.metrics_listen = listen;
    }
    Config::parse(&config.to_yaml(), "the file and the command line").map(|loaded| loaded.config)
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

fn daemon(cli: &Cli, args: &ParkArgs, config: &Config) -> anyhow::Result<()> {
    let park = &config.park;
    // What is wrong with programs, ports and addresses shows before the first clock is touched.
    let hooks = setup::fan_hooks(park)?;
    let sources = setup::sources(park)?;
    let page = bind_page("park.metrics_listen", park.metrics_listen, Listen::PARK)?;
    let host = NvmlHost::open()?;
    let chosen = choose(host, park)?;
    let infos: Vec<GpuInfo> = chosen.iter().map(|gpu| gpu.info.clone()).collect();
    let settings = setup::settings(park);
    let dry_run = args.dry_run;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), gpus = infos.len(), dry_run, park = ?park, "agft park starts");
    // A turn is over well within this, or it hangs.
    let periods = setup::periods(park);
    let guarded = match dry_run {
        true => None,
        false => Some(Guarded::claim(cli, config, host, &infos, periods.active)?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the first lock: from here on no signal ends the process with a clock held.
        let hangup_ends = std::io::stdin().is_terminal();
        let (mut signals, hangup) = Signals::for_daemon(hangup_ends).context("signal handlers")?;
        let clock = Clock::start();
        const HELP: &str = "clocks cannot be controlled (--dry-run only decides, and works without)";
        let answers = match &guarded {
            Some(guarded) => Some(guarded.start_guardian().context(HELP)?),
            None => None,
        };
        let mut members = Vec::new();
        for gpu in chosen {
            tracing::info!(gpu = %gpu.info, uuid = gpu.info.uuid, parked = %gpu.levels.parked, "may be parked");
            let actuator = match &guarded {
                Some(guarded) => Some(take_clocks(host, &gpu, guarded, clock)?),
                None => None,
            };
            members.push(Member::new(gpu.sensors, actuator, settings, gpu.levels, periods, clock.now()));
        }
        let pulse = Pulse::new();
        let mut watched: Vec<_> =
            members.iter().filter_map(Member::clock_pulse).map(|pulse| (CLOCK_THREAD, pulse)).collect();
        watched.push(("the loop, which reads the GPUs,", pulse.clone()));
        let disturbers: Vec<_> = members.iter().filter_map(Member::disturber).collect();
        let notice = move |why: String| disturbers.iter().for_each(|disturb| disturb(why.clone()));
        let watch = match (&guarded, answers) {
            (Some(guarded), Some(answers)) => {
                let watch = guarded.watch(answers, watched, Box::new(notice), periods.active);
                Some(watch.context("watch thread")?)
            }
            _ => None,
        };
        let (show, state) = Show::new(park, dry_run);
        // Until the end of the run.
        let (_shown, orders) = serve(config, page, &state)?;
        let notifier = Notifier::from_env();
        if let Some(notifier) = &notifier {
            notifier.ready();
        }
        let arguments = args.clone();
        let reload = hangup.map(|hangup| Reloader {
            hangup,
            path: cli.config.clone(),
            arguments: Box::new(move |config| with_arguments(config, &arguments)),
            config: config.clone(),
        });
        let run = ParkRun {
            members,
            sources,
            sources_every: periods.active,
            watch,
            pulse,
            fans: FanRule::new(park.fan_off_after_s),
            hooks,
            log_every: park.log_interval_s,
            park: park.clone(),
            reload,
            orders,
            show,
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

fn take_clocks(host: NvmlHost, gpu: &Chosen, guarded: &Guarded, clock: Clock) -> anyhow::Result<Actuator> {
    let clocks = host.clocks(&GpuSelector::Uuid(gpu.info.uuid.clone()))?;
    let lease = ClockLease::take_with(vec![(Box::new(clocks), gpu.core_min)], Box::new(guarded.ledger()))
        .context("clocks cannot be controlled")?;
    Actuator::spawn(lease, clock).context("clock thread")
}

/// Those who serve the run's state to the outside, until this is dropped.
struct Shown {
    _page: Option<http::Server>,
    _socket: Option<socket::Server>,
}

/// Serves the state where that is wanted; gives the operators' orders too.
fn serve(
    config: &Config,
    page: Option<Bound>,
    state: &watch::Receiver<Arc<ParkState>>,
) -> anyhow::Result<(Shown, Option<mpsc::Receiver<Order>>)> {
    let page = match page {
        None => None,
        Some(page) => {
            let address = page.address();
            let names = config.observe.allowed_hosts.iter().cloned();
            let server = page.serve_park(state.clone(), Hosts::new(names))?;
            tracing::info!(url = %format_args!("http://{address}/metrics"), "metrics page");
            if !address.ip().is_loopback() {
                tracing::warn!(%address, "the metrics page can be read from other machines");
            }
            Some(server)
        }
    };
    let (socket, orders) = control_socket(config, Published::Park(state.clone())).unzip();
    Ok((Shown { _page: page, _socket: socket }, orders))
}
