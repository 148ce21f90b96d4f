//! `agft park`: parks GPUs that nobody uses, beside any program or none.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::Context;
use clap::Args;

use super::run::{bind_page, exit_of_run, serve};
use super::{Cli, Exit, LogFormat, load_config, logging, report_config_error};
use crate::compose;
use crate::compose::guarded::{CLOCK_THREAD, Guarded};
use crate::config::{Config, ConfigError, Listen, Park, ParkLever, ParkSource};
use crate::daemon::actuator::Actuator;
use crate::daemon::clock::Clock;
use crate::daemon::notify::Notifier;
use crate::daemon::park::keeper::Keeper;
use crate::daemon::park::levels::{Levels, levels};
use crate::daemon::park::member::Member;
use crate::daemon::park::reload::Reloader;
use crate::daemon::park::setup::SetupError;
use crate::daemon::park::{ParkRun, Show, drive, setup};
use crate::daemon::tick::{End, unix_seconds};
use crate::daemon::trust::Trusted;
use crate::daemon::watch::{Pulse, WatchedGroup};
use crate::export::Published;
use crate::gpu::host::{self, AnyHost};
use crate::gpu::lease::{ClockLease, give_back};
use crate::gpu::{GpuError, GpuInfo, GpuSelector, GpuSensors, SupportedClocks};
use crate::park::fans::FanRule;
use crate::park::levers::TrialTimes;
use crate::signals::Signals;
use crate::store::load_levers;
use crate::units::Seconds;
use crate::view::HostState;

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

    /// Try levers out in a fraction of the time: tests wait for real clocks
    #[arg(long, value_name = "TIMES", hide = true)]
    pub trial_speed: Option<f64>,
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
    clocks: SupportedClocks,
    levels: Levels,
}

/// The GPUs that are meant. A named one that cannot be parked is an error; of all, those that can are taken.
fn choose(host: AnyHost, park: &Park) -> anyhow::Result<Vec<Chosen>> {
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

fn open(host: AnyHost, selector: &GpuSelector, park: &Park) -> Result<Chosen, SetupError> {
    let sensors = host.sensors(selector)?;
    let info = sensors.info().clone();
    if sensors.setup().mig == Some(true) {
        return Err(GpuError::Mig { gpu: info.to_string(), index: info.index }.into());
    }
    if park.sources.contains(&ParkSource::Utilization)
        && let Err(error) = sensors.utilization()
        && error.is_missing_sensor()
    {
        return Err(error.into());
    }
    let clocks = sensors.supported_clocks().map_err(|error| match error {
        GpuError::NotSupported { .. } => SetupError::NoClocksListed { gpu: info.to_string() },
        error => error.into(),
    })?;
    let levels = levels(park, &info, &clocks, park.lever == ParkLever::Pstate)?;
    Ok(Chosen { sensors, info, clocks, levels })
}

/// Which of the GPUs are parked by performance state: all, if that is configured, else those that lock no core clock. They
/// are this run's own by now: a reset is what comes first in any case.
fn find_by_state(host: AnyHost, park: &Park, chosen: &mut [Chosen]) -> anyhow::Result<Vec<String>> {
    let mut by_state = Vec::new();
    for gpu in chosen {
        let uuid = gpu.info.uuid.clone();
        let usable = || host.state_clocks(&gpu.info, park.pstate);
        match park.lever {
            ParkLever::Core | ParkLever::Memory | ParkLever::Both => continue,
            ParkLever::Pstate => drop(usable().context("park.lever is pstate")?),
            ParkLever::Auto => {
                let reset = give_back(host.clocks(&GpuSelector::Uuid(uuid.clone()))?.as_mut(), false);
                if !matches!(reset, Err(GpuError::NotSupported { .. })) {
                    continue;
                }
                usable()
                    .with_context(|| format!("{} locks no core clock; by performance state", gpu.info))?;
                tracing::info!(gpu = %gpu.info, pstate = park.pstate, "locks no core clock: parked by performance state");
                gpu.levels = levels(park, &gpu.info, &gpu.clocks, true)?;
            }
        }
        by_state.push(uuid);
    }
    Ok(by_state)
}

fn daemon(cli: &Cli, args: &ParkArgs, config: &Config) -> anyhow::Result<()> {
    let park = &config.park;
    // What is wrong with programs, ports and addresses shows before the first clock is touched.
    let hooks = setup::fan_hooks(park)?;
    let sources = setup::sources(park)?;
    let page = bind_page("park.metrics_listen", park.metrics_listen, Listen::PARK)?;
    let host = host::open()?;
    let mut chosen = choose(host, park)?;
    let infos: Vec<GpuInfo> = chosen.iter().map(|gpu| gpu.info.clone()).collect();
    let settings = compose::park::settings(park);
    let dry_run = args.dry_run;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), gpus = infos.len(), dry_run, park = ?park, "agft park starts");
    // A turn is over well within this, or it hangs.
    let period = compose::park::periods(park).active;
    let guarded = match dry_run {
        true => None,
        false => {
            let mut guarded = Guarded::claim(&cli.config, cli.log_format == LogFormat::Json, config, host, &infos, period)?;
            guarded.guard_states(find_by_state(host, park, &mut chosen)?);
            Some(guarded)
        }
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
        let save_dir = Path::new(&config.model.save_dir);
        let keeper = (!dry_run).then(|| Keeper::spawn(save_dir.to_owned())).transpose();
        let keeper = keeper.context("the thread that keeps what was measured")?;
        let times = TrialTimes::default().faster(args.trial_speed.unwrap_or(1.0));
        let mut members = Vec::new();
        for gpu in chosen {
            tracing::info!(gpu = %gpu.info, uuid = gpu.info.uuid, parked = %gpu.levels.simplest.clocks, "may be parked");
            let actuator = match &guarded {
                Some(guarded) => Some(take_clocks(host, &gpu, park, guarded, clock)?),
                None => None,
            };
            let known = load_levers(save_dir, &gpu.info, 1);
            let sensors = Box::new(Trusted::new(gpu.sensors, clock));
            let member = Member::new(sensors, actuator, settings, gpu.levels, clock.now());
            members.push(member.with_known(known, times));
        }
        let pulse = Pulse::new();
        let mut parts: Vec<_> =
            members.iter().filter_map(Member::clock_pulse).map(|pulse| (CLOCK_THREAD, pulse)).collect();
        parts.push(("the loop, which reads the GPUs,", pulse.clone()));
        let disturbers: Vec<_> = members.iter().filter_map(Member::disturber).collect();
        let notice = move |why: String| disturbers.iter().for_each(|disturb| disturb(why.clone()));
        let (watch, _group) = match (&guarded, answers) {
            (Some(guarded), Some(answers)) => {
                // The loop is one of the parts: it reads the GPUs itself.
                let watch = guarded.watch(answers, Pulse::new()).context("watch thread")?;
                let gpus = infos.iter().map(|gpu| gpu.uuid.clone()).collect();
                let group = WatchedGroup { gpus, parts, period: period, notice: Box::new(notice) };
                let group = watch.wards().watch(group);
                Some((watch, group))
            }
            _ => None,
        }
        .unzip();
        let (show, state) = Show::new(park);
        let published = Published::new(HostState::new(unix_seconds(), dry_run));
        published.set_park(state);
        // Until the end of the run.
        let (_shown, orders) = serve(config, page, published)?;
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
            sources_every: period,
            watch,
            pulse,
            fans: FanRule::new(park.fan_off_after_s),
            hooks,
            keeper,
            log_every: park.log_interval_s,
            park: park.clone(),
            reload,
            orders,
            show,
            notifier,
            clock,
            panic_at_turn: cli.panic_at_tick,
        };
        let end = drive(run, async { End::Signal(signals.wait().await) }).await?;
        if let End::Signal(name) = end {
            tracing::info!(signal = name, "ended by signal");
        }
        Ok(())
    })
}

fn take_clocks(
    host: AnyHost,
    gpu: &Chosen,
    park: &Park,
    guarded: &Guarded,
    clock: Clock,
) -> anyhow::Result<Actuator> {
    let clocks = if gpu.levels.by_state {
        host.state_clocks(&gpu.info, park.pstate)?
    } else {
        host.clocks(&GpuSelector::Uuid(gpu.info.uuid.clone()))?
    };
    let lease = ClockLease::take_with(vec![(clocks, gpu.clocks.core_min())], Box::new(guarded.ledger()))
        .context("clocks cannot be controlled")?;
    Actuator::spawn(lease, clock).context("clock thread")
}
