//! `agft`: the daemon.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::guarded::{CLOCK_THREAD, Guarded};
use super::{Cli, Exit, exit_of, load_config, logging};
use crate::bandit::ActionSpace;
use crate::compose;
use crate::config::{Config, Listen};
use crate::control::{Controller, Learned, Order};
use crate::daemon::actuator::Actuator;
use crate::daemon::clients::Clients;
use crate::daemon::clock::Clock;
use crate::daemon::feed::{Feed, Schedule};
use crate::daemon::log::LogObserver;
use crate::daemon::notify::{Notifier, NotifyObserver};
use crate::daemon::recorder::{Recorder, RecorderSettings};
use crate::daemon::reload::Reloader;
use crate::daemon::sampler::{Sampler, SamplerSettings};
use crate::daemon::show::{self, Show};
use crate::daemon::steps::StepTap;
use crate::daemon::tick::{End, Observer, Parts, RunError, drive, unix_seconds};
use crate::daemon::watch::{Alarm, Pulse};
use crate::export::Published;
use crate::export::guard::Hosts;
use crate::export::http::{self, Bound, HttpError};
use crate::export::socket;
use crate::gpu::host::{self, AnyHost};
use crate::gpu::lease::{ClockLease, Ledger};
use crate::gpu::plausible::EnergySource;
use crate::gpu::{
    GpuClocks, GpuError, GpuInfo, GpuSensors, MemoryLevel, NO_CLOCKS_LISTED, NO_LOCKS, SupportedClocks,
};
use crate::guardian::undo::runtime_dir;
use crate::holdout::Savings;
use crate::metrics::scrape::{self, Scraper};
use crate::signals::Signals;
use crate::store::held::{ClaimError, HeldDir};
use crate::store::{Identity, Load, ModelStore, load_levers, own_dir};
use crate::units::{Mhz, Seconds};
use crate::view::View;

/// Runs the daemon until a signal or an error.
#[must_use]
pub fn run(cli: &Cli) -> Exit {
    let mut config = match load_config(cli) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    config.control.data_collection_mode |= cli.data_collection_mode;
    if let Some(listen) = cli.metrics_listen {
        config.observe.metrics_listen = listen;
    }
    exit_of_run(daemon(cli, &config))
}

/// The exit code of a run, after saying why it failed, if it did.
pub(super) fn exit_of_run(ended: anyhow::Result<()>) -> Exit {
    match ended {
        Ok(()) => Exit::Ok,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "agft ends");
            complain!("agft: {error:#}");
            exit_code(&error)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> Exit {
    if let Some(ClaimError::Busy(_)) = error.downcast_ref() {
        return Exit::InUse;
    }
    match error.downcast_ref() {
        Some(RunError::Alarm(Alarm::Stuck { .. })) => Exit::Stuck,
        Some(RunError::Alarm(Alarm::NoGuardian { .. })) => Exit::Failure,
        Some(RunError::Gpu(error)) => exit_of(error),
        None => error.downcast_ref::<GpuError>().map_or(Exit::Failure, exit_of),
    }
}

/// The GPUs of one engine, opened for reading.
struct Gpus {
    host: AnyHost,
    sensors: Vec<Box<dyn GpuSensors>>,
    infos: Vec<GpuInfo>,
    clocks: SupportedClocks,
    /// The driver lists none: `clocks` is the one that was running, and nothing can be chosen or locked.
    unlisted: bool,
}

impl Gpus {
    fn open(config: &Config) -> anyhow::Result<Self> {
        let host = host::open()?;
        let mut sensors: Vec<Box<dyn GpuSensors>> = Vec::new();
        for selector in &config.gpu.device_id {
            sensors.push(host.sensors(selector)?);
        }
        let infos: Vec<GpuInfo> = sensors.iter().map(|sensors| sensors.info().clone()).collect();
        let first = infos.first().context("gpu.device_id names no GPU")?;
        if let Some(other) = infos.iter().find(|info| info.name != first.name) {
            anyhow::bail!("{first} and {other} are different products; the GPUs of one engine must be alike");
        }
        if let Some((at, twice)) =
            infos.iter().enumerate().find(|(at, info)| infos[..*at].iter().any(|seen| seen.uuid == info.uuid))
        {
            anyhow::bail!("gpu.device_id names {twice} twice (entry {}); name each GPU once", at + 1);
        }
        let (clocks, unlisted) = match sensors[0].supported_clocks() {
            Ok(clocks) => (clocks, false),
            Err(error @ GpuError::NotSupported { .. }) => {
                let reading = sensors[0].reading()?;
                let memory = reading.memory_clock.unwrap_or(Mhz(0));
                let core = vec![reading.core_clock.unwrap_or(Mhz(0))];
                (SupportedClocks::new(vec![MemoryLevel { memory, core }]).ok_or(error)?, true)
            }
            Err(error) => return Err(error).context("clocks cannot be controlled"),
        };
        Ok(Self { host, sensors, infos, clocks, unlisted })
    }

    /// Is anything about the set-up of the GPUs in the way?
    fn check_setup(&self, locks: bool) -> Result<(), GpuError> {
        for (sensors, info) in self.sensors.iter().zip(&self.infos) {
            let setup = sensors.setup();
            if setup.mig == Some(true) && locks {
                return Err(GpuError::Mig { gpu: info.to_string(), index: info.index });
            }
            if setup.persistence == Some(false) {
                tracing::warn!(
                    gpu = %info,
                    "persistence mode is off: between two users of the GPU the driver unloads, and clocks change slowly; \
                     run nvidia-persistenced, or `nvidia-smi -i {} -pm 1`",
                    info.index
                );
            }
        }
        Ok(())
    }

    fn take_clocks(&self, config: &Config, ledger: Box<dyn Ledger>) -> Result<ClockLease, GpuError> {
        let mut members: Vec<(Box<dyn GpuClocks>, Mhz)> = Vec::new();
        for selector in &config.gpu.device_id {
            members.push((self.host.clocks(selector)?, self.clocks.core_min()));
        }
        ClockLease::take_with(members, ledger)
    }
}

fn daemon(cli: &Cli, config: &Config) -> anyhow::Result<()> {
    let gpus = Gpus::open(config)?;
    if gpus.unlisted && !cli.dry_run && !config.control.data_collection_mode {
        anyhow::bail!("{}: {NO_CLOCKS_LISTED}", gpus.infos[0]);
    }
    let mut config = config.clone();
    config.control.data_collection_mode |= gpus.unlisted;
    let config = &config;
    let _log_guard = start_log(cli, config, &gpus.infos[0]);
    if gpus.unlisted {
        tracing::warn!(gpu = %gpus.infos[0], "only measured: {NO_CLOCKS_LISTED}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        gpu = %gpus.infos[0],
        gpus = gpus.infos.len(),
        url = scrape::without_query(&config.vllm.prometheus_url),
        dry_run = cli.dry_run,
        data_collection = config.control.data_collection_mode,
        "agft starts"
    );
    let scraper = Scraper::new(&compose::scrape_settings(config))?;
    // What is wrong with the port shows before the first clock is touched.
    let page = bind_page("observe.metrics_listen", config.observe.metrics_listen, Listen::LOCAL)?;
    let hands_off = cli.dry_run || config.control.data_collection_mode;
    gpus.check_setup(!hands_off)?;
    // Until the end of the run.
    let guarded = match hands_off {
        true => None,
        false => {
            Some(Guarded::claim(cli, config, gpus.host, &gpus.infos, config.control.decision_interval_s)?)
        }
    };
    let store = ModelStore::open(config.model.save_dir.as_ref()).context("model.save_dir")?;
    let identity = identity(config, &gpus.infos);
    let learned = load_model(cli, config, &store, &identity)?;
    let savings = load_savings(&store, &identity)?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the first lock: from here on no signal ends the process with a clock held.
        // With a terminal, SIGHUP means that it was hung up, and ends the run; without one, that the file is to be read
        // again.
        let hangup_ends = std::io::stdin().is_terminal();
        let (mut signals, hangup) = Signals::for_daemon(hangup_ends).context("signal handlers")?;
        let (clocks, count) = (gpus.clocks.clone(), gpus.infos.len());
        let (infos, gpus_unlisted) = (gpus.infos.clone(), gpus.unlisted);
        let mut parts =
            assemble(cli, config, gpus, guarded.as_ref(), scraper, store, identity, learned, savings)?;
        // Until the end of the run.
        let _shown = show(config, page, &infos, &mut parts)?;
        let notifier = Notifier::from_env();
        parts.reload = hangup.map(|hangup| Reloader {
            hangup,
            path: cli.config.clone(),
            config: config.clone(),
            data_collection: cli.data_collection_mode || gpus_unlisted,
            dry_run: cli.dry_run,
            clocks,
            gpus: count,
            schedule: parts.schedule,
            clock: parts.clock,
            notifier: notifier.clone(),
        });
        if let Some(notifier) = notifier {
            notifier.ready();
            parts.observers.push(Box::new(NotifyObserver::new(notifier)));
        }
        let end = drive(parts, async { End::Signal(signals.wait().await) }).await?;
        if let End::Signal(name) = end {
            tracing::info!(signal = name, "ended by signal");
        }
        Ok(())
    })
}

/// Those who serve the run's state to the outside, until this is dropped.
struct Shown {
    _page: Option<http::Server>,
    _socket: Option<socket::Server>,
}

/// Binds the port of the metrics page, if there shall be one.
///
/// The default port is often another agft's, one for each engine of a machine: that costs the page and not the run. A
/// port that was asked for has to be had.
pub(super) fn bind_page(
    key: &'static str,
    listen: Listen,
    usual: Listen,
) -> Result<Option<Bound>, HttpError> {
    match listen.0.map(|address| Bound::new(key, address)).transpose() {
        Err(error @ HttpError::InUse { .. }) if listen == usual => {
            tracing::warn!(%error, "no metrics page");
            Ok(None)
        }
        outcome => outcome,
    }
}

/// Publishes the run's state, and serves it where that is wanted.
fn show(config: &Config, page: Option<Bound>, gpus: &[GpuInfo], parts: &mut Parts) -> anyhow::Result<Shown> {
    let about = show::about(config, parts.controller.settings());
    let view = View::new(about, gpus, &parts.controller, &parts.savings, unix_seconds());
    let (observer, latest) = Show::new(view);
    parts.observers.push(Box::new(observer));
    let page = match page {
        None => None,
        Some(page) => {
            let address = page.address();
            let names = config.observe.allowed_hosts.iter().cloned();
            let server = page.serve(latest.clone(), Hosts::new(names))?;
            tracing::info!(url = %format_args!("http://{address}/metrics"), "metrics page");
            tracing::info!(url = %format_args!("http://{address}/"), "web page");
            if !address.ip().is_loopback() {
                tracing::warn!(%address, "the metrics page can be read from other machines");
            }
            Some(server)
        }
    };
    let (socket, orders) = control_socket(config, Published::Run(latest)).unzip();
    parts.orders = orders;
    Ok(Shown { _page: page, _socket: socket })
}

/// Serves the control socket; gives the operators' orders too. Without one the loop does its work all the same.
pub(super) fn control_socket(
    config: &Config,
    published: Published,
) -> Option<(socket::Server, tokio::sync::mpsc::Receiver<Order>)> {
    let dir = runtime_dir(config);
    let socket = HeldDir::open(&dir)
        .map_err(anyhow::Error::from)
        .and_then(|_| Ok(socket::Server::start(&dir, published)?));
    match socket {
        Ok((server, orders)) => {
            tracing::info!(path = %server.path().display(), "control socket");
            Some((server, orders))
        }
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "no control socket: `agft status` will not find this run"
            );
            None
        }
    }
}

fn start_log(
    cli: &Cli,
    config: &Config,
    gpu: &GpuInfo,
) -> Option<tracing_appender::non_blocking::WorkerGuard> {
    let settings = &config.logging;
    let base = PathBuf::from(&settings.dir);
    let dir = base.join(logging::gpu_folder(&gpu.name));
    let max_bytes = settings.max_file_mb * 1024 * 1024;
    let file = [&base, &dir]
        .into_iter()
        .try_for_each(|dir| {
            if let Some(mended) = own_dir(dir)? {
                complain!("agft: logging.dir: {}: {mended}", dir.display());
            }
            Ok(())
        })
        .and_then(|()| Ok(logging::LogFile::open(&dir, "agft.log", max_bytes, settings.keep_files)?));
    let file: Option<_> = match file {
        Ok(file) => Some((file, logging::filter(settings.file_level))),
        Err(error) => {
            let error: anyhow::Error = error;
            complain!("agft: no log file in {}: {error:#}; logging to the console only", dir.display());
            None
        }
    };
    logging::start(logging::console_level(cli.log_level, settings), cli.log_format, file)
}

/// Whose model is learned here.
#[must_use]
pub fn identity(config: &Config, gpus: &[GpuInfo]) -> Identity {
    Identity {
        gpu_name: gpus.first().map(|gpu| gpu.name.clone()).unwrap_or_default(),
        gpu_uuids: gpus.iter().map(|gpu| gpu.uuid.clone()).collect(),
        feature_names: crate::features::NAMES.iter().map(|name| (*name).to_owned()).collect(),
        policy: config.control.policy.to_string(),
        model_version: crate::control::learned::MODEL_VERSION,
        engine_model: None,
    }
}

fn load_model(
    cli: &Cli,
    config: &Config,
    store: &ModelStore,
    identity: &Identity,
) -> anyhow::Result<Learned> {
    let now = jiff::Timestamp::now();
    let fresh = || Learned::fresh(compose::learner(config), config.metrics.baseline_measurements);
    if cli.reset_model {
        for kept in store.reset(now)? {
            tracing::info!(kept_as = %kept.display(), "model put aside");
        }
        return Ok(fresh());
    }
    match store.load::<Learned>(identity, now)? {
        Load::Restored(restored) => {
            for rejected in &restored.rejected {
                tracing::warn!(%rejected, "model file not usable");
            }
            for difference in &restored.differences {
                tracing::info!(%difference, "the model was learned elsewhere");
            }
            let mut learned = restored.model;
            if !learned.is_sound() {
                tracing::warn!("the saved model holds numbers that cannot be right: starting afresh");
                store.reset(now)?;
                return Ok(fresh());
            }
            tracing::info!(rounds = learned.rounds, generation = ?restored.generation, "model loaded");
            compose::configure(&mut learned.policy, config);
            Ok(learned)
        }
        Load::Fresh { reasons } => {
            for rejected in &reasons {
                tracing::warn!(%rejected, "model file not usable");
            }
            tracing::info!("no usable model: learning starts afresh");
            Ok(fresh())
        }
    }
}

/// What the holdout experiment has shown in earlier runs.
fn load_savings(store: &ModelStore, identity: &Identity) -> anyhow::Result<Savings> {
    let loaded = store.load_savings(identity, jiff::Timestamp::now())?;
    if let Some(rejected) = loaded.rejected {
        tracing::warn!(%rejected, "what the holdout has shown before is not usable: its books begin anew");
    }
    Ok(loaded.savings.unwrap_or_default())
}

#[expect(clippy::too_many_arguments, reason = "everything a run is made of")]
fn assemble(
    cli: &Cli,
    config: &Config,
    gpus: Gpus,
    guarded: Option<&Guarded>,
    scraper: Scraper,
    store: ModelStore,
    identity: Identity,
    learned: Learned,
    savings: Savings,
) -> anyhow::Result<Parts> {
    let clock = Clock::start();
    let (actuator, answers) = match guarded {
        None => (None, None),
        Some(guarded) => {
            const HELP: &str =
                "clocks cannot be controlled (--data-collection-mode only measures, and works without)";
            let answers = guarded.start_guardian().context(HELP)?;
            let lease = gpus.take_clocks(config, Box::new(guarded.ledger())).map_err(|error| {
                let help = match error {
                    GpuError::NotSupported { .. } => NO_LOCKS,
                    _ => HELP,
                };
                anyhow::Error::new(error).context(help)
            })?;
            (Some(Actuator::spawn(lease, clock).context("clock thread")?), Some(answers))
        }
    };
    let memory = compose::memory_clocks(config, &gpus.clocks);
    let space = ActionSpace::new(&gpus.clocks, &compose::space_settings(config, memory));
    tracing::info!(arms = space.arms().len(), "action space");
    if config.gpu.min_frequency > gpus.clocks.core_max() {
        let (minimum, highest) = (config.gpu.min_frequency, gpus.clocks.core_max());
        tracing::warn!(
            %minimum, %highest,
            "gpu.min_frequency is above every clock of the board: the highest alone is used"
        );
    }
    let mut settings = compose::control_settings(config, &gpus.clocks, cli.dry_run);
    if let Some(holdout) = &mut settings.holdout {
        // No load may come to know the moments, not even one that starts with every run.
        holdout.seed ^= unix_seconds().to_bits().rotate_left(32);
    }

    let savings = savings.restored(settings.holdout_share());
    let mut observers: Vec<Box<dyn Observer>> =
        vec![Box::new(LogObserver::new(config.logging.detailed_round_logging, cli.dry_run))];
    let recorder = RecorderSettings::new(config, !cli.dry_run, settings.limits);
    let steps = StepTap::new(config, &gpus.clocks, gpus.infos.len(), cli.dry_run);
    let recorder = Recorder::start(recorder, config, store, identity, &gpus.infos[0], &savings, steps);
    observers.push(Box::new(recorder.context("experiment.dir")?));

    let sampler_settings = SamplerSettings {
        energy_every: Duration::from_millis(config.gpu.energy_poll_interval_ms),
        sensors_every: Duration::from_millis(config.gpu.sensor_poll_interval_ms),
        watch_every: Duration::from_millis(config.idle.power_poll_interval_ms),
    };
    let sampler = Sampler::spawn(gpus.sensors, sampler_settings, clock).context("sensor thread")?;
    for (gpu, source) in gpus.infos.iter().zip(sampler.sources()) {
        match source {
            EnergySource::Counter => tracing::info!(%gpu, "energy from the driver's counter"),
            EnergySource::PowerIntegration => tracing::info!(%gpu, "energy integrated from power samples"),
            EnergySource::None => {
                tracing::warn!(
                    %gpu,
                    "neither energy counter nor power sensor: the energy of the whole group is unknown, and nothing can be learned"
                );
            }
        }
    }
    let pulse = Pulse::new();
    let watch = match (guarded, &actuator, answers) {
        (Some(guarded), Some(actuator), Some(answers)) => {
            let watched = vec![
                (CLOCK_THREAD, actuator.pulse()),
                ("the thread that reads the GPUs", sampler.pulse()),
                ("the tick", pulse.clone()),
            ];
            let period = config.control.decision_interval_s;
            let watch = guarded.watch(answers, watched, actuator.disturber(), period);
            Some(watch.context("watch thread")?)
        }
        _ => None,
    };
    let known = load_levers(Path::new(&config.model.save_dir), &gpus.infos[0], gpus.infos.len());
    let levers = compose::parking(&mut settings, config, &gpus.clocks, known);
    let controller =
        Controller::new(settings, learned, space, gpus.infos.len(), clock.now()).with_levers(levers);
    let period = config.control.decision_interval_s;
    let schedule = Schedule { start: clock.now() + Seconds(0.5 * period.0), period };
    let feed = Feed::spawn(scraper, schedule, clock);
    Ok(Parts {
        controller,
        savings,
        feed,
        sampler,
        actuator,
        watch,
        pulse,
        observers,
        reload: None,
        clients: Clients::listen(config),
        orders: None,
        schedule,
        clock,
        panic_at_tick: cli.panic_at_tick,
        stall_at_tick: cli.stall_at_tick,
    })
}
