//! The groups of GPUs without a server, and what is around them.

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::Context;

use super::group::Shared;
use super::guarded::Guarded;
use crate::compose::park::{of_others, periods};
use crate::config::{self, Config, Park, Source};
use crate::daemon::actuator::Actuator;
use crate::daemon::park::activity::Ports;
use crate::daemon::park::hooks::FanHooks;
use crate::daemon::park::keeper::{Keeper, keep_in};
use crate::daemon::park::levels::{Levels, levels};
use crate::daemon::park::setup::{self, SetupError};
use crate::daemon::park::{Board, ParkGroup, ParkOpener, ParkParts, Parkable, Show, Surroundings, Yielded};
use crate::gpu::host::AnyHost;
use crate::gpu::lease::{ClockLease, give_back};
use crate::gpu::{GpuError, GpuInfo, GpuSelector, GpuSensors, SupportedClocks};
use crate::park::fans::FanRule;
use crate::park::levers::TrialTimes;
use crate::store::load_levers;

/// A GPU that is to be parked, opened for reading.
pub(crate) struct Chosen {
    sensors: Box<dyn GpuSensors>,
    /// Who it is.
    pub info: GpuInfo,
    clocks: SupportedClocks,
    levels: Levels,
}

/// The GPUs that are meant, but for those in `taken`. A named one that cannot be parked is an error; of all, those that can
/// are taken.
/// Errors: A named GPU cannot be parked, or is named twice or taken; the driver does not list its GPUs.
pub(crate) fn choose(host: AnyHost, park: &Park, taken: &[GpuInfo]) -> anyhow::Result<Vec<Chosen>> {
    let (selectors, named) = match &park.gpus {
        Some(selectors) => (selectors.clone(), true),
        None => (host.list()?.into_iter().map(|gpu| GpuSelector::Index(gpu.index)).collect(), false),
    };
    let mut chosen: Vec<Chosen> = Vec::new();
    for selector in &selectors {
        if let Some(gpu) = taken.iter().find(|gpu| selector.selects(gpu)) {
            if named {
                anyhow::bail!("park.gpus names {gpu}, which a server of the configuration has; take it out");
            }
            continue;
        }
        match open(host, selector, park) {
            Ok(gpu) if chosen.iter().any(|other| other.info.uuid == gpu.info.uuid) => {
                anyhow::bail!("park.gpus names {} twice; name each GPU once", gpu.info);
            }
            Ok(gpu) => chosen.push(gpu),
            Err(error) if named => return Err(error.into()),
            Err(error) => tracing::warn!(%error, "GPU left alone"),
        }
    }
    Ok(chosen)
}

fn open(host: AnyHost, selector: &GpuSelector, park: &Park) -> Result<Chosen, SetupError> {
    let sensors = host.sensors(selector)?;
    let info = sensors.info().clone();
    sensors.check_undivided()?;
    if park.sources.contains(&Source::Utilization)
        && let Err(error) = sensors.utilization()
        && error.is_missing_sensor()
    {
        return Err(error.into());
    }
    let clocks = sensors.supported_clocks().map_err(|error| match error {
        GpuError::NotSupported { .. } => SetupError::NoClocksListed { gpu: info.to_string() },
        error => error.into(),
    })?;
    let levels = levels(park, &info, &clocks, park.lever == config::Lever::Pstate)?;
    Ok(Chosen { sensors, info, clocks, levels })
}

/// Which of the GPUs are parked by performance state: all, if that is configured, else those that lock no core clock. They
/// are this run's own by now: a reset is what comes first in any case.
/// Errors: A performance state cannot be forced where it has to be.
pub(crate) fn find_by_state(
    host: AnyHost,
    park: &Park,
    chosen: &mut [Chosen],
) -> anyhow::Result<Vec<String>> {
    let mut by_state = Vec::new();
    for gpu in chosen {
        let uuid = gpu.info.uuid.clone();
        let usable = || host.state_clocks(&gpu.info, park.pstate);
        match park.lever {
            config::Lever::Core | config::Lever::Memory | config::Lever::Both => continue,
            config::Lever::Pstate => drop(usable().context("park.lever is pstate")?),
            config::Lever::Auto => {
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

fn take_clocks(host: AnyHost, gpu: &Chosen, park: &Park, guarded: &Guarded) -> anyhow::Result<ClockLease> {
    let clocks = if gpu.levels.by_state {
        host.state_clocks(&gpu.info, park.pstate)?
    } else {
        host.clocks(&GpuSelector::Uuid(gpu.info.uuid.clone()))?
    };
    let ledger = guarded.ledger(std::slice::from_ref(&gpu.info))?;
    ClockLease::take_with(vec![(clocks, gpu.clocks.core_min())], ledger)
        .context("clocks cannot be controlled")
}

/// What the group of every parked GPU is made with.
#[derive(Clone)]
struct Common {
    host: AnyHost,
    shared: Shared,
    board: Rc<Board>,
    keeper: Option<Rc<Keeper>>,
    save_dir: PathBuf,
}

impl Common {
    fn group(&self, park: &Park, gpu: Chosen, lease: Option<ClockLease>) -> anyhow::Result<ParkGroup> {
        let Chosen { sensors, info, clocks, levels } = gpu;
        let (clock, options) = (self.shared.clock, self.shared.options);
        let actuator =
            lease.map(|lease| Actuator::spawn(lease, clock)).transpose().context("clock thread")?;
        let group = ParkGroup::start(ParkParts {
            known: load_levers(&self.save_dir, &info, 1),
            info,
            clocks,
            sensors,
            actuator,
            settings: of_others(park),
            levels,
            times: TrialTimes::default().faster(options.trial_speed.unwrap_or(1.0)),
            board: Rc::clone(&self.board),
            keeper: self.keeper.clone(),
            log_every: park.log_interval_s,
            wards: self.shared.wards.clone(),
            clock,
            panic_at_turn: options.panic_at_tick,
        });
        group.context("sensor thread")
    }

    /// Opens a GPU again that had a server, the driver's part of it off the loop's thread.
    fn opener(self) -> ParkOpener {
        Rc::new(move |gpu: &Parkable, park: &Park| {
            let (common, gpu, park) = (self.clone(), gpu.clone(), park.clone());
            Box::pin(async move {
                let (host, guarded, theirs) = (common.host, common.shared.guarded.clone(), park.clone());
                let opened = tokio::task::spawn_blocking(move || {
                    let Parkable { info, clocks, by_state } = gpu;
                    let sensors = host.sensors(&GpuSelector::Uuid(info.uuid.clone()))?;
                    let levels = levels(&theirs, &info, &clocks, by_state)?;
                    let gpu = Chosen { sensors, info, clocks, levels };
                    let lease =
                        guarded.map(|guarded| take_clocks(host, &gpu, &theirs, &guarded)).transpose()?;
                    anyhow::Ok((gpu, lease))
                });
                let (gpu, lease) = opened.await.context("the thread that opens it")??;
                common.group(&park, gpu, lease)
            })
        })
    }
}

/// What parking has beside the GPUs, made before the first clock is touched.
pub(crate) struct Around {
    hooks: Option<FanHooks>,
    ports: Option<Ports>,
}

impl Around {
    /// Starts what watches connections and runs programs.
    pub(crate) fn open(park: &Park) -> Result<Self, SetupError> {
        Ok(Self { hooks: setup::fan_hooks(park)?, ports: setup::ports(park)? })
    }

    /// Starts a group for each GPU but those that are `served` for now, and what is around them.
    pub(crate) fn start(
        self,
        host: AnyHost,
        config: &Config,
        chosen: Vec<Chosen>,
        served: &[GpuInfo],
        shared: &Shared,
    ) -> anyhow::Result<(Vec<ParkGroup>, Surroundings)> {
        let (park, clock) = (&config.park, shared.clock);
        let save_dir = PathBuf::from(&config.model.save_dir);
        let keeper = shared.guarded.as_ref().map(|_| keep_in(save_dir.clone())).transpose();
        let keeper = keeper.context("the thread that keeps what was measured")?.map(Rc::new);
        let board = Board::new(shared.published.instances().clone());
        let common = Common { host, shared: shared.clone(), board: Rc::clone(&board), keeper, save_dir };
        let (mut groups, mut gpus, mut yielded) = (Vec::new(), Vec::new(), Yielded::default());
        for gpu in chosen {
            tracing::info!(gpu = %gpu.info, uuid = gpu.info.uuid, parked = %gpu.levels.simplest.clocks, "may be parked");
            let Chosen { info, clocks, levels, .. } = &gpu;
            gpus.push(Parkable { info: info.clone(), clocks: clocks.clone(), by_state: levels.by_state });
            if served.iter().any(|served| served.uuid == info.uuid) {
                yielded.insert(info);
                continue;
            }
            let guarded = shared.guarded.as_deref();
            let lease = guarded.map(|guarded| take_clocks(host, &gpu, park, guarded)).transpose()?;
            groups.push(common.group(park, gpu, lease)?);
        }
        let (show, state) = Show::new(park);
        shared.published.set_park(state);
        let surroundings = Surroundings {
            board,
            gpus,
            yielded,
            opener: common.opener(),
            ports: self.ports,
            look_every: periods(park).active,
            fans: FanRule::new(park.fan_off_after_s),
            hooks: self.hooks,
            config: config.clone(),
            show,
            notifier: shared.notifier.clone(),
            lines: Rc::clone(&shared.lines),
            clock,
        };
        Ok((groups, surroundings))
    }
}
