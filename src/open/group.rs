//! From servers of the configuration to the groups that run them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;

use super::guarded::Guarded;
use super::join;
use crate::bandit::ActionSpace;
use crate::compose;
use crate::config::{Config, Control, Server};
use crate::connections::Watcher;
use crate::control::quiet::Quiet;
use crate::control::{Controller, Learned, Model};
use crate::daemon::actuator::Actuator;
use crate::daemon::clients::{self, Clients};
use crate::daemon::clock::Clock;
use crate::daemon::feed::{Feed, Schedule, Servers, Source};
use crate::daemon::host::Opener;
use crate::daemon::log::LogObserver;
use crate::daemon::notify::{Notifier, NotifyObserver, StatusLines};
use crate::daemon::recorder::{Recorder, RecorderSettings};
use crate::daemon::reload::Reloader;
use crate::daemon::sampler::{Sampler, SamplerSettings};
use crate::daemon::show::{self, Show};
use crate::daemon::steps::StepTap;
use crate::daemon::tick::{Group, unix_seconds};
use crate::daemon::watch::Wards;
use crate::engine::Profile;
use crate::export::Published;
use crate::gpu::host::AnyHost;
use crate::gpu::lease::{ClockLease, Ledger};
use crate::gpu::plausible::EnergySource;
use crate::gpu::{
    GpuClocks, GpuError, GpuInfo, GpuSelector, GpuSensors, MemoryLevel, NO_CLOCKS_LISTED, NO_LOCKS,
    SupportedClocks,
};
use crate::holdout::Savings;
use crate::metrics::Snapshot;
use crate::metrics::scrape::{ScrapeError, Scraper};
use crate::store::{Identity, Load, ModelStore, load_levers};
use crate::units::{Mhz, Seconds};
use crate::view::View;

/// What the command line says of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// Measure and record only, whatever the file says.
    pub(crate) data_collection: bool,
    /// Put the saved models aside.
    pub(crate) reset_model: bool,
    /// Decide, and write no clock.
    pub dry_run: bool,
    /// For tests: panic at this tick.
    pub panic_at_tick: Option<u64>,
    /// For tests: block at this tick.
    pub stall_at_tick: Option<u64>,
    /// For tests: try ways to park in this fraction of the time.
    pub(crate) trial_speed: Option<f64>,
}

/// The GPUs of a group, opened for reading.
pub(crate) struct Gpus {
    host: AnyHost,
    sensors: Vec<Box<dyn GpuSensors>>,
    pub(crate) infos: Vec<GpuInfo>,
    clocks: SupportedClocks,
    /// The driver lists none: `clocks` is the one that was running, and nothing can be chosen or locked.
    unlisted: bool,
}

impl Gpus {
    /// Opens those that the server's configuration names.
    /// Errors: One of them is not there, they are not alike, or nothing is known of their clocks.
    pub(crate) fn open(host: AnyHost, config: &Config) -> anyhow::Result<Self> {
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

    /// Takes in those of another that are not among these.
    fn join(&mut self, other: Self) {
        for (sensors, info) in other.sensors.into_iter().zip(other.infos) {
            if !self.infos.iter().any(|known| known.uuid == info.uuid) {
                self.sensors.push(sensors);
                self.infos.push(info);
            }
        }
    }

    fn uuids(&self) -> BTreeSet<String> {
        self.infos.iter().map(|info| info.uuid.clone()).collect()
    }

    /// Is anything about the set-up of the GPUs in the way?
    fn check_setup(&self, locks: bool) -> Result<(), GpuError> {
        for (sensors, info) in self.sensors.iter().zip(&self.infos) {
            if locks {
                sensors.check_undivided()?;
            }
            if sensors.setup().persistence == Some(false) {
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

/// A server with its GPUs and the way to its page: all that can be wrong with a start, but for the clocks. Servers on the
/// same GPUs are joined to one.
pub(crate) struct Candidate {
    /// The server, with a configuration that goes for these GPUs; several as if they were one.
    pub server: Server,
    /// The servers one by one.
    pub servers: Vec<Server>,
    /// Their GPUs.
    pub gpus: Gpus,
    /// Once it was checked: what is said of their files is for the log.
    scrapers: Option<Servers<Judged>>,
    /// No clock is ever written.
    pub hands_off: bool,
}

impl Candidate {
    /// Opens what the server's configuration names.
    /// Errors: What is wrong with the GPUs, or with the address or the files of the page.
    pub(crate) fn open(host: AnyHost, mut server: Server, options: Options) -> anyhow::Result<Self> {
        let gpus = Gpus::open(host, &server.config)?;
        server.config.control.data_collection_mode |= options.data_collection;
        if gpus.unlisted && !options.dry_run && !server.config.control.data_collection_mode {
            anyhow::bail!("{}: {NO_CLOCKS_LISTED}", gpus.infos[0]);
        }
        server.config.control.data_collection_mode |= gpus.unlisted;
        let servers = vec![server.clone()];
        let hands_off = options.dry_run || server.config.control.data_collection_mode;
        Ok(Self { server, servers, gpus, scrapers: None, hands_off })
    }

    /// Those whose GPUs overlap become one each, which is said in the log.
    pub(crate) fn join_overlapping(candidates: Vec<Self>) -> anyhow::Result<Vec<Self>> {
        let sets: Vec<BTreeSet<String>> = candidates.iter().map(|candidate| candidate.gpus.uuids()).collect();
        let mut candidates: Vec<Option<Self>> = candidates.into_iter().map(Some).collect();
        let mut joined = Vec::new();
        for places in join::overlapping(&sets) {
            joined.extend(Self::join(places.iter().filter_map(|at| candidates[*at].take()).collect())?);
        }
        Ok(joined)
    }

    fn join(candidates: Vec<Self>) -> anyhow::Result<Option<Self>> {
        let mut candidates = candidates.into_iter();
        let Some(mut whole) = candidates.next() else { return Ok(None) };
        for candidate in candidates {
            whole.servers.extend(candidate.servers);
            whole.gpus.join(candidate.gpus);
        }
        if let [_, _, ..] = whole.servers.as_slice()
            && let Some(mut server) = join::join(&whole.servers)?
        {
            let selector = |gpu: &GpuInfo| GpuSelector::Uuid(gpu.uuid.clone());
            server.config.gpu.device_id = whole.gpus.infos.iter().map(selector).collect();
            tracing::warn!(
                servers = server.name,
                gpus = whole.gpus.infos.len(),
                "these servers share GPUs and one clock decision: limits of each are kept, and parked is only when none works"
            );
            whole.server = server;
        }
        Ok(Some(whole))
    }

    /// Opens the ways to the pages, and says what may be unexpected.
    /// Errors: An address or a file cannot be used; the GPUs are set up so that their clocks cannot be
    /// controlled.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.scrapers = Some(scrapers(&self.servers)?);
        if self.gpus.unlisted {
            tracing::warn!(gpu = %self.gpus.infos[0], "only measured: {NO_CLOCKS_LISTED}");
        }
        Ok(self.gpus.check_setup(!self.hands_off)?)
    }
}

/// The ways to the pages of these servers.
pub(crate) fn scrapers(servers: &[Server]) -> Result<Servers<Judged>, ScrapeError> {
    let one = |server: &Server| {
        let scraper = Scraper::new(&compose::scrape_settings(&server.config, &server.engine))?;
        let (name, control) = (server.name.clone(), server.config.control.clone());
        Ok((name.clone(), Judged { scraper, name, control, verdict: Mutex::default() }))
    };
    servers.iter().map(one).collect::<Result<_, _>>().map(Servers::new)
}

/// The way to a page, which counts for nothing as long as the server is to keep what cannot be judged of its engine: its
/// clocks stay the driver's.
pub(crate) struct Judged {
    scraper: Scraper,
    name: String,
    control: Control,
    /// Of the engine of the last page: what it is refused for, if anything.
    verdict: Mutex<Option<(&'static Profile, Option<String>)>>,
}

impl Judged {
    /// Why the pages of this engine count for nothing; `None` if they count.
    fn refusal(&self, engine: &'static Profile) -> Option<String> {
        // What is only recorded keeps nothing.
        if self.control.data_collection_mode {
            return None;
        }
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, refusal)) = verdict.as_ref().filter(|(of, _)| *of == engine) {
            return refusal.clone();
        }
        let vain = crate::config::unjudged(engine, &self.control);
        let refusal = vain.iter().map(|vain| vain.of(&self.name)).collect::<Vec<_>>().join("; ");
        let refusal = Some(refusal).filter(|refusal| !refusal.is_empty());
        *verdict = Some((engine, refusal.clone()));
        refusal
    }
}

impl Source for Judged {
    async fn fetch(&self, clock: Clock, quiet: bool) -> Result<Snapshot, String> {
        let page = Source::fetch(&self.scraper, clock, quiet).await?;
        self.refusal(page.engine()).map_or(Ok(page), Err)
    }

    fn own_address(&self) -> Option<SocketAddr> {
        self.scraper.own_address()
    }
}

/// Whose model is learned on these GPUs.
fn identity(config: &Config, gpus: &[GpuInfo]) -> Identity {
    Identity {
        gpu_name: gpus.first().map(|gpu| gpu.name.clone()).unwrap_or_default(),
        gpu_uuids: gpus.iter().map(|gpu| gpu.uuid.clone()).collect(),
        feature_names: crate::features::NAMES.iter().map(|name| (*name).to_owned()).collect(),
        policy: config.control.policy.to_string(),
        model_version: crate::control::learned::MODEL_VERSION,
        engine_model: None,
    }
}

/// What was learned of a server before.
pub struct Memory {
    store: ModelStore,
    identity: Identity,
    learned: Learned,
    savings: Savings,
}

impl Memory {
    /// Reads it; a model that cannot be used is said, and learned anew.
    pub(crate) fn load(candidate: &Candidate, options: Options) -> anyhow::Result<Self> {
        let config = &candidate.server.config;
        let store = ModelStore::open(config.model.save_dir.as_ref()).context("model.save_dir")?;
        let identity = identity(config, &candidate.gpus.infos);
        let learned = load_model(options, config, &store, &identity)?;
        let savings = load_savings(&store, &identity)?;
        Ok(Self { store, identity, learned, savings })
    }
}

fn load_model(
    options: Options,
    config: &Config,
    store: &ModelStore,
    identity: &Identity,
) -> anyhow::Result<Learned> {
    let now = jiff::Timestamp::now();
    let fresh = || Learned::fresh(compose::learner(config), config.metrics.baseline_measurements);
    if options.reset_model {
        for kept in store.reset(now)? {
            tracing::info!(kept_as = %kept.display(), "model put aside");
        }
        return Ok(fresh());
    }
    match store.load::<Model>(identity, now)? {
        Load::Restored(restored) => {
            for rejected in &restored.rejected {
                tracing::warn!(%rejected, "model file not usable");
            }
            for difference in &restored.differences {
                tracing::info!(%difference, "the model was learned elsewhere");
            }
            let mut learned = Learned::from(restored.model);
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
        tracing::warn!(%rejected, "what the holdout has shown before is not usable: its accounting begins anew");
    }
    Ok(loaded.savings.unwrap_or_default())
}

/// What all groups of a process share.
#[derive(Clone)]
pub struct Shared {
    /// The command line.
    pub(crate) options: Options,
    /// The GPUs are this process's; none where no clock is ever written.
    pub(crate) guarded: Option<Arc<Guarded>>,
    /// Where groups are watched.
    pub(crate) wards: Option<Wards>,
    /// Who hears of clients, if the kernel tells.
    pub watcher: Option<Arc<Watcher>>,
    /// The service manager, if it listens.
    pub(crate) notifier: Option<Notifier>,
    /// What it is told of each group.
    pub lines: StatusLines,
    /// Takes what groups show of themselves.
    pub published: Published,
    pub(crate) is_several: bool,
    /// Servers come and move: each that is opened has its clients listened to on its own.
    pub follows: bool,
    /// The clock of the run.
    pub clock: Clock,
}

/// What works where clocks cannot be controlled.
pub const HELP: &str =
    "clocks cannot be controlled (--data-collection-mode only measures, and works without)";

impl Shared {
    /// Opens the group of servers again, the driver's part of it off the loop's thread.
    pub(crate) fn opener(&self, host: AnyHost) -> Opener {
        let shared = self.clone();
        Rc::new(move |servers: Vec<Server>, taken: BTreeSet<String>| {
            let shared = shared.clone();
            Box::pin(async move {
                let Shared { options, follows, .. } = shared;
                let (guarded, watcher) = (shared.guarded.clone(), shared.watcher.clone());
                let opened = tokio::task::spawn_blocking(move || {
                    let opened = servers.into_iter().map(|server| Candidate::open(host, server, options));
                    let candidate = Candidate::join(opened.collect::<Result<_, _>>()?)?;
                    let mut candidate = candidate.context("no server")?;
                    if let Some(other) = candidate.gpus.infos.iter().find(|gpu| taken.contains(&gpu.uuid)) {
                        anyhow::bail!(
                            "{other} is controlled for another server; both share it after a restart of agft"
                        );
                    }
                    candidate.check()?;
                    // The model that is put aside is one of before the start.
                    let memory = Memory::load(&candidate, Options { reset_model: false, ..options })?;
                    let lease = take_clocks(guarded.as_deref(), &candidate)?;
                    let watcher = match follows {
                        true => clients::listen(std::slice::from_ref(&candidate.server)),
                        false => watcher,
                    };
                    anyhow::Ok((candidate, memory, lease, watcher))
                });
                let (candidate, memory, lease, watcher) =
                    opened.await.context("the thread that opens it")??;
                Shared { watcher, ..shared }.start(candidate, memory, lease)
            })
        })
    }

    /// Starts all that works for a group, on the loop's runtime.
    pub(crate) fn start(
        &self,
        candidate: Candidate,
        memory: Memory,
        lease: Option<ClockLease>,
    ) -> anyhow::Result<Group> {
        let Candidate { server, servers, gpus, scrapers, .. } = candidate;
        let scrapers = scrapers.context("a candidate that was not checked")?;
        let config = &server.config;
        let (clock, dry_run, uuids) = (self.clock, self.options.dry_run, gpus.uuids());
        let span = match self.is_several {
            true => tracing::info_span!("server", name = server.name),
            false => tracing::Span::none(),
        };
        let instances = self.published.instances().on(uuids.clone());
        let entered = span.clone().entered();
        let actuator =
            lease.map(|lease| Actuator::spawn(lease, clock)).transpose().context("clock thread")?;
        let memory_clocks = compose::memory_clocks(config, &gpus.clocks);
        let space = ActionSpace::new(&gpus.clocks, &compose::space_settings(config, memory_clocks));
        tracing::info!(arms = space.arms().len(), "action space");
        if config.gpu.min_frequency > gpus.clocks.core_max() {
            let (minimum, highest) = (config.gpu.min_frequency, gpus.clocks.core_max());
            tracing::warn!(
                %minimum, %highest,
                "gpu.min_frequency is above every clock of the board: the highest alone is used"
            );
        }
        let mut settings = compose::control_settings(config, dry_run);
        if let Some(holdout) = &mut settings.holdout {
            // No load may come to know the moments, not even one that starts with every run.
            holdout.seed ^= unix_seconds().to_bits().rotate_left(32);
        }
        let Memory { store, identity, learned, savings } = memory;
        let savings = savings.restored(settings.holdout_share());
        let recorder = RecorderSettings::new(config, !dry_run, settings.limits);
        let steps = StepTap::new(config, &gpus.clocks, gpus.infos.len(), dry_run);
        let recorder = Recorder::start(recorder, config, store, identity, &gpus.infos[0], &savings, steps);
        let mut observers: Vec<Box<dyn crate::daemon::tick::Observer>> = vec![
            Box::new(LogObserver::new(config.logging.detailed_round_logging, dry_run)),
            Box::new(recorder.context("experiment.dir")?),
        ];
        if let Some(notifier) = &self.notifier {
            let (name, lines) = (server.name.clone(), self.lines.clone());
            observers.push(Box::new(NotifyObserver::new(notifier.clone(), name, lines)));
        }
        let sampler =
            Sampler::spawn(gpus.sensors, sampler_settings(config), clock).context("sensor thread")?;
        say_sources(&gpus.infos, sampler.sources());
        let watch = self.wards.as_ref().zip(actuator.as_ref()).map(|(wards, actuator)| {
            let reads = ("the thread that reads the GPUs", sampler.pulse());
            wards.watch(uuids.iter().cloned().collect(), actuator, reads, config.control.decision_interval_s)
        });
        let known = load_levers(Path::new(&config.model.save_dir), &gpus.infos[0], gpus.infos.len());
        let levers = compose::parking(&mut settings, config, &gpus.clocks, known);
        let controller = Controller::new(settings, learned, space, gpus.infos.len(), clock.now());
        let controller = controller.with_levers(levers).with_sharers(join::sharers(&servers));
        let period = config.control.decision_interval_s;
        let schedule = Schedule { start: clock.now() + Seconds(0.5 * period.0), period };
        let clients = self
            .watcher
            .as_ref()
            .filter(|_| clients::wanted(config))
            .map(|watcher| Clients::new(Arc::clone(watcher), clients::ports(config)));
        drop(entered);
        let about = show::about(&server.name, config, controller.settings());
        let (show, latest) = Show::new(View::new(about, &gpus.infos, &controller, &savings, unix_seconds()));
        observers.push(Box::new(show));
        self.published.add(&server.name, latest);
        Ok(Group {
            name: server.name.clone(),
            controller,
            savings,
            feed: Feed::spawn(scrapers, schedule, clock),
            sampler,
            actuator,
            watch,
            observers,
            reload: Some(Reloader {
                config: config.clone(),
                servers: servers.clone(),
                is_one_of_several: self.is_several,
                data_collection: self.options.data_collection || gpus.unlisted,
                dry_run,
                clocks: gpus.clocks,
                gpus: gpus.infos.len(),
                schedule,
                clock,
            }),
            clients,
            instances,
            schedule,
            clock,
            panic_at_tick: self.options.panic_at_tick,
            stall_at_tick: self.options.stall_at_tick,
            quiet: Quiet::default(),
            span,
            servers,
            gpus: uuids,
        })
    }
}

/// Takes the clocks of a group; none where they are never written.
/// Errors: The driver refuses, or the GPUs are not this process's.
pub(crate) fn take_clocks(
    guarded: Option<&Guarded>,
    candidate: &Candidate,
) -> anyhow::Result<Option<ClockLease>> {
    let Some(guarded) = guarded.filter(|_| !candidate.hands_off) else { return Ok(None) };
    if let Some(other) = candidate.gpus.infos.iter().find(|gpu| !guarded.has(gpu)) {
        anyhow::bail!(
            "{other} was not there, or was another agft's, when agft started; it takes part after a restart of agft"
        );
    }
    let ledger = guarded.ledger(&candidate.gpus.infos)?;
    let lease = candidate.gpus.take_clocks(&candidate.server.config, ledger).map_err(|error| {
        let help = match error {
            GpuError::NotSupported { .. } => NO_LOCKS,
            _ => HELP,
        };
        anyhow::Error::new(error).context(help)
    })?;
    Ok(Some(lease))
}

/// Periods of the thread that reads a server's GPUs.
pub fn sampler_settings(config: &Config) -> SamplerSettings {
    SamplerSettings {
        energy_every: Duration::from_millis(config.gpu.energy_poll_interval_ms),
        window: config.control.decision_interval_s,
        sensors_every: Duration::from_millis(config.idle.active_poll_ms),
        watch_every: Duration::from_millis(config.idle.parked_poll_ms),
    }
}

fn say_sources(gpus: &[GpuInfo], sources: &[EnergySource]) {
    for (gpu, source) in gpus.iter().zip(sources) {
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
}
