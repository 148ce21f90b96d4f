//! The controller as steps of version 3 hold it, and what it is today. Only parking has another form since.

use serde::Deserialize;

use super::learned::Learned;
use super::load::LoadEstimate;
use super::seen::ClockUpkeep;
use super::sharers::Sharers;
use super::stale::GaugeTrust;
use super::step::{self, InForce};
use super::verify::ClockVerifier;
use super::{Connections, Mode};
use crate::bandit::ActionSpace;
use crate::features::Ema;
use crate::gpu::GpuReading;
use crate::holdout::HoldoutSettings;
use crate::metrics::Snapshot;
use crate::metrics::health::Health;
use crate::park::parker::v3::{IdleSettings, Parking};
use crate::reward::energy::EnergyMeter;
use crate::reward::slo::{LatencyWatch, Limits};
use crate::reward::{Objective, RewardForm};
use crate::units::{Mhz, Seconds, Target, Time};

/// The version of steps whose snapshot this is.
pub(crate) const VERSION: u32 = 3;

/// Constants of the control loop.
#[derive(Debug, Deserialize)]
struct Settings {
    outage_after: Seconds,
    settle: Seconds,
    verify_after: Seconds,
    clock_tolerance: Mhz,
    objective: Objective,
    reward: RewardForm,
    limits: Option<Limits>,
    idle: Option<IdleSettings>,
    holdout: Option<HoldoutSettings>,
    data_collection: bool,
    dry_run: bool,
    ema_alpha: f64,
    floor_step: Mhz,
    recover_arms_below: Option<usize>,
}

impl From<Settings> for super::Settings {
    fn from(v3: Settings) -> Self {
        Self {
            outage_after: v3.outage_after,
            settle: v3.settle,
            verify_after: v3.verify_after,
            clock_tolerance: v3.clock_tolerance,
            objective: v3.objective,
            reward: v3.reward,
            limits: v3.limits,
            idle: v3.idle.map(Into::into),
            holdout: v3.holdout,
            data_collection: v3.data_collection,
            dry_run: v3.dry_run,
            ema_alpha: v3.ema_alpha,
            floor_step: v3.floor_step,
            recover_arms_below: v3.recover_arms_below,
        }
    }
}

/// The control loop's state.
#[derive(Debug, Deserialize)]
pub(crate) struct Controller {
    settings: Settings,
    learned: Learned,
    space: ActionSpace,
    health: Health,
    previous: Option<Snapshot>,
    meters: Vec<EnergyMeter>,
    readings: Vec<Option<GpuReading>>,
    read_at: Vec<Option<Time>>,
    in_force: InForce,
    asked: Target,
    verifier: ClockVerifier,
    idle: Parking,
    connections: Option<Connections>,
    latency: LatencyWatch,
    concurrency: Ema,
    load: LoadEstimate,
    limit_broken: bool,
    fault_until: Option<Time>,
    upkeep: ClockUpkeep,
    mode: Mode,
    paused: bool,
    gauges: GaugeTrust,
    started: Time,
}

impl From<Controller> for step::Controller {
    fn from(v3: Controller) -> Self {
        let settings: super::Settings = v3.settings.into();
        Self {
            idle: v3.idle.with(settings.idle, v3.started),
            settings,
            learned: v3.learned,
            space: v3.space,
            health: v3.health,
            previous: v3.previous,
            meters: v3.meters,
            readings: v3.readings,
            read_at: v3.read_at,
            in_force: v3.in_force,
            asked: v3.asked,
            verifier: v3.verifier,
            connections: v3.connections,
            latency: v3.latency,
            concurrency: v3.concurrency,
            load: v3.load,
            limit_broken: v3.limit_broken,
            fault_until: v3.fault_until,
            upkeep: v3.upkeep,
            mode: v3.mode,
            paused: v3.paused,
            gauges: v3.gauges,
            started: v3.started,
            sharers: Sharers::default(),
        }
    }
}

impl step::Controller {
    /// Leaves out what was summed up of parking.
    pub(crate) fn forget_parked_sums(&mut self) {
        self.idle.forget_sums();
    }
}
