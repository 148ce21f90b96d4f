//! `agft`: the daemon.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::mpsc;

use super::{Cli, Exit, LogFormat, exit_of, load_config, logging};
use crate::compose::park::periods;
use crate::config::{Config, Listen, Server};
use crate::daemon::clients;
use crate::daemon::clock::Clock;
use crate::daemon::follow::{self, Follow, LeftOut};
use crate::daemon::host::{AnyGroup, Arguments, Host, Rereader, drive};
use crate::daemon::notify::{Notifier, StatusLines};
use crate::daemon::tick::{End, RunError, unix_seconds};
use crate::daemon::watch::{Alarm, Pulse, Watch};
use crate::export::guard::Hosts;
use crate::export::http::{self, Bound, HttpError};
use crate::export::protocol::Directed;
use crate::export::{Published, socket};
use crate::gpu::host::{self, AnyHost};
use crate::gpu::{GpuError, GpuInfo};
use crate::guardian::undo::runtime_dir;
use crate::metrics::scrape;
use crate::open::auto::{self, Seeker};
use crate::open::group::{self, Candidate, HELP, Memory, Options, Shared};
use crate::open::guarded::Guarded;
use crate::open::park::{self, Around};
use crate::park::instances::Roster;
use crate::signals::Signals;
use crate::store::held::{ClaimError, HeldDir};
use crate::store::own_dir;
use crate::units::Seconds;
use crate::view::HostState;

/// What works where clocks cannot be controlled.
const PARK_HELP: &str = "clocks cannot be controlled (--dry-run only decides, and works without)";

/// Runs the daemon until a signal or an error.
pub(crate) fn run(cli: &Cli) -> Exit {
    let mut config = match load_config(cli) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    config.control.data_collection_mode |= cli.data_collection_mode;
    if let Some(listen) = cli.metrics_listen {
        config.observe.metrics_listen = listen;
    }
    exit_of_run(daemon(cli, &config, Role::Serve))
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

/// Opens every server's GPUs. One that cannot be opened is left for later, unless it is the only one; where they are
/// looked for (`follows`), even then.
fn open_all(
    host: AnyHost,
    servers: Vec<Server>,
    options: Options,
    follows: bool,
) -> anyhow::Result<(Vec<Candidate>, Vec<Vec<Server>>)> {
    let several = servers.len() > 1 || follows;
    let (mut candidates, mut closed, mut first) = (Vec::new(), Vec::new(), None);
    for server in servers {
        match Candidate::open(host, server.clone(), options) {
            Ok(candidate) => candidates.push(candidate),
            Err(error) => {
                if several {
                    complain!("agft: server {}: {error:#}", server.name);
                }
                first.get_or_insert(error);
                closed.push(vec![server]);
            }
        }
    }
    match first {
        Some(error) if candidates.is_empty() && !follows => Err(error),
        _ => Ok((candidates, closed)),
    }
}

/// What a process is for.
pub(super) enum Role {
    /// The servers of the configuration, and with `park.others` the GPUs of none.
    Serve,
    /// `agft park`: GPUs without a server alone.
    Park {
        /// Decide, and write no clock.
        dry_run: bool,
        /// For tests: try ways to park in this fraction of the time.
        trial_speed: Option<f64>,
        /// What the command line makes of the file.
        arguments: Arguments,
    },
}

/// Runs until a signal or an error.
pub(super) fn daemon(cli: &Cli, config: &Config, role: Role) -> anyhow::Result<()> {
    let (serves, dry_run, trial_speed) = match &role {
        Role::Serve => (true, cli.dry_run, None),
        Role::Park { dry_run, trial_speed, .. } => (false, *dry_run, *trial_speed),
    };
    let options = Options {
        data_collection: serves && config.control.data_collection_mode,
        reset_model: cli.reset_model,
        dry_run,
        panic_at_tick: cli.panic_at_tick,
        stall_at_tick: cli.stall_at_tick,
        trial_speed,
    };
    let parks = !serves || config.park.others && !options.data_collection;
    // What is wrong with programs and ports shows before the first clock is touched.
    let around = parks.then(|| Around::open(&config.park)).transpose()?;
    let host = host::open()?;
    let follows = serves && config.is_auto();
    let mut seeker = follows.then(|| Seeker::new(host)).transpose()?;
    let seen = seeker.as_mut().map(|seeker| seeker.look(config)).transpose()?.unwrap_or_default();
    let servers = if serves { auto::servers(config, &seen.found) } else { Vec::new() };
    let (candidates, mut closed) = open_all(host, servers, options, follows)?;
    let served: Vec<GpuInfo> =
        candidates.iter().flat_map(|candidate| candidate.gpus.infos.iter().cloned()).collect();
    // Where servers come and go, all GPUs are this run's from the start: the guardian's set is fixed.
    let all = if follows { host.list()? } else { Vec::new() };
    let _log_guard = served.first().or(all.first()).map(|gpu| start_log(cli, config, gpu));
    seen.found.iter().for_each(|found| follow::say(found, "server found"));
    let mut left_out = LeftOut::default();
    left_out.say(seen.left_out);
    let is_several = serves && !config.servers.is_one();
    for Candidate { server, gpus, .. } in &candidates {
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            server = is_several.then_some(&server.name),
            gpu = %gpus.infos[0],
            gpus = gpus.infos.len(),
            url = scrape::without_query(&server.config.vllm.prometheus_url),
            dry_run,
            data_collection = server.config.control.data_collection_mode,
            "agft starts"
        );
    }
    let page = match serves {
        true => bind_page("observe.metrics_listen", config.observe.metrics_listen, Listen::LOCAL)?,
        false => bind_page("park.metrics_listen", config.park.metrics_listen, Listen::PARK)?,
    };
    let candidates = Candidate::join_overlapping(candidates)?;
    let candidates = check_all(candidates, &mut closed, follows)?;
    // A server that goes leaves its GPUs to be parked; those of one that is named with its GPUs are its own.
    let selectors = config.gpus();
    let named: Vec<GpuInfo> =
        all.iter().filter(|gpu| selectors.iter().any(|selector| selector.selects(gpu))).cloned().collect();
    let mut chosen = match parks {
        true => park::choose(host, &config.park, if follows { &named } else { &served })?,
        false => Vec::new(),
    };
    if !serves {
        if chosen.is_empty() {
            anyhow::bail!("no GPU of this machine can be parked; see `agft gpus`");
        }
        tracing::info!(version = env!("CARGO_PKG_VERSION"), gpus = chosen.len(), dry_run, park = ?config.park, "agft park starts");
    }
    let locked = candidates.iter().filter(|candidate| !candidate.hands_off);
    let locked = locked.flat_map(|candidate| candidate.gpus.infos.iter());
    let is_served = |gpu: &GpuInfo| served.iter().any(|served| served.uuid == gpu.uuid);
    let parked = chosen.iter().map(|gpu| &gpu.info).filter(|gpu| !dry_run && !is_served(gpu));
    let locked: Vec<GpuInfo> = locked.chain(parked).cloned().collect();
    // Until the end of the run.
    let others = if dry_run || options.data_collection { &[] } else { all.as_slice() };
    let guarded = match locked.is_empty() && others.is_empty() {
        true => None,
        false => {
            let servers = config.servers().into_iter().map(|server| server.config).chain([config.clone()]);
            let ticks = servers.map(|config| config.control.decision_interval_s.0);
            let active = if parks { periods(&config.park).active.0 } else { 0.0 };
            let period = Seconds(ticks.fold(active, f64::max));
            let json = cli.log_format == LogFormat::Json;
            let mut guarded = Guarded::claim(&cli.config, json, config, host, &locked, others, period)?;
            if !dry_run {
                guarded.guard_states(park::find_by_state(host, &config.park, &mut chosen)?);
            }
            Some(Arc::new(guarded))
        }
    };
    // Supervisors name GPUs of the machine, whoever parks them.
    let roster = Roster::new(&host.list().unwrap_or_else(|error| {
        tracing::warn!(%error, "the GPUs cannot be listed: supervisors may name those of this run alone");
        served.iter().chain(chosen.iter().map(|gpu| &gpu.info)).cloned().collect()
    }));
    let mut known = Vec::new();
    for candidate in candidates {
        let memory = Memory::load(&candidate, options)?;
        known.push((candidate, memory));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the first lock: from here on no signal ends the process with a clock held.
        // With a terminal, SIGHUP means that it was hung up, and ends the run; without one, that the file is to be read
        // again.
        let hangup_ends = std::io::stdin().is_terminal();
        let (mut signals, hangup) = Signals::for_daemon(hangup_ends).context("signal handlers")?;
        let pulse = Pulse::new();
        let watch = match &guarded {
            Some(guarded) => {
                let answers = guarded.start_guardian().context(if serves { HELP } else { PARK_HELP })?;
                Some(guarded.watch(answers, pulse.clone()).context("watch thread")?)
            }
            None => None,
        };
        let servers: Vec<Server> = known.iter().map(|(candidate, _)| candidate.server.clone()).collect();
        let notifier = Notifier::from_env();
        let shared = Shared {
            options,
            guarded: guarded.clone(),
            wards: watch.as_ref().map(Watch::wards),
            watcher: clients::listen(&servers),
            notifier: notifier.clone(),
            lines: StatusLines::default(),
            published: Published::new(HostState::new(unix_seconds(), dry_run)).with_gpus(roster),
            is_several,
            follows,
            clock: Clock::start(),
        };
        let (mut groups, refused) = start_all(&shared, known, &mut closed)?;
        let surroundings = match around {
            Some(around) => {
                let (parked, surroundings) = around.start(host, config, chosen, &served, &shared)?;
                groups.extend(parked.into_iter().map(|group| AnyGroup::Parked(Box::new(group))));
                Some(surroundings)
            }
            None => None,
        };
        match refused {
            Some(error) if groups.is_empty() => return Err(error),
            None if groups.is_empty() && !follows => anyhow::bail!("no server can be served"),
            _ => {}
        }
        let follow = match seeker {
            Some(seeker) => {
                if groups.is_empty() {
                    tracing::info!(
                        looks_every_s = config.discover.every_s.0,
                        "no server found yet: waiting for one"
                    );
                }
                let published = shared.published.clone();
                let follow = Follow::start(seeker, config, seen.found, left_out, published);
                Some(follow.context("the thread that looks for servers")?)
            }
            None => None,
        };
        // Until the end of the run.
        let (_served, orders) = serve(config, page, shared.published.clone())?;
        let arguments = match role {
            Role::Serve => Box::new(Ok),
            Role::Park { arguments, .. } => arguments,
        };
        let host = Host {
            groups,
            closed,
            surroundings,
            follow,
            opener: (is_several || follows).then(|| shared.opener(host)),
            pulse,
            watch,
            reload: hangup.map(|hangup| Rereader {
                hangup,
                path: cli.config.clone(),
                serves,
                arguments,
                config: config.clone(),
            }),
            orders,
            notifier: notifier.clone(),
        };
        if let Some(notifier) = notifier {
            notifier.ready();
        }
        let end = drive(host, async { End::Signal(signals.wait().await) }).await?;
        if let End::Signal(name) = end {
            tracing::info!(signal = name, "ended by signal");
        }
        Ok(())
    })
}

/// Those that nothing is in the way of; one that is not is left for later, unless it is the only one that is named.
fn check_all(
    candidates: Vec<Candidate>,
    closed: &mut Vec<Vec<Server>>,
    follows: bool,
) -> anyhow::Result<Vec<Candidate>> {
    let mut fit = Vec::new();
    let is_alone = candidates.len() == 1;
    for mut candidate in candidates {
        match candidate.check() {
            Ok(()) => fit.push(candidate),
            Err(error) if follows || !is_alone => {
                let error = format!("{error:#}");
                tracing::error!(name = candidate.server.name, error, "left alone; the others go on");
                closed.push(candidate.servers);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(fit)
}

/// Starts the group of each server. One that cannot be started is left for later, unless it is the only one; the first
/// error of those is given too.
fn start_all(
    shared: &Shared,
    known: Vec<(Candidate, Memory)>,
    closed: &mut Vec<Vec<Server>>,
) -> anyhow::Result<(Vec<AnyGroup>, Option<anyhow::Error>)> {
    let (mut groups, mut first) = (Vec::new(), None);
    for (candidate, memory) in known {
        let (name, servers) = (candidate.server.name.clone(), candidate.servers.clone());
        let started = group::take_clocks(shared.guarded.as_deref(), &candidate)
            .and_then(|lease| shared.start(candidate, memory, lease));
        match started {
            Ok(group) => groups.push(AnyGroup::Served(Box::new(group))),
            Err(error) if !shared.is_several => return Err(error),
            Err(error) => {
                let why = format!("{error:#}");
                tracing::error!(name, error = why, "left alone; the others go on");
                first.get_or_insert(error);
                closed.push(servers);
            }
        }
    }
    Ok((groups, first))
}

/// Those who serve the run's state to the outside, until this is dropped.
pub(super) struct Shown {
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

/// Serves what is published where that is wanted; gives the operators' orders too.
pub(super) fn serve(
    config: &Config,
    page: Option<Bound>,
    published: Published,
) -> anyhow::Result<(Shown, Option<mpsc::Receiver<Directed>>)> {
    let page = match page {
        None => None,
        Some(page) => {
            let address = page.address();
            let names = config.observe.allowed_hosts.iter().cloned();
            let server = page.serve(published.clone(), Hosts::new(names))?;
            tracing::info!(url = %format_args!("http://{address}/metrics"), "metrics page");
            tracing::info!(url = %format_args!("http://{address}/"), "web page");
            if !address.ip().is_loopback() {
                tracing::warn!(%address, "the metrics page can be read from other machines");
            }
            Some(server)
        }
    };
    let (socket, orders) = control_socket(config, published).unzip();
    Ok((Shown { _page: page, _socket: socket }, orders))
}

/// Serves the control socket; gives the operators' orders too. Without one the loop does its work all the same.
fn control_socket(
    config: &Config,
    published: Published,
) -> Option<(socket::Server, tokio::sync::mpsc::Receiver<Directed>)> {
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
