//! The pure middle: one [`Controller::step`] per tick, from what was seen to what shall be done.
//!
//! It reads no clock, no file, no socket, and starts no thread: the daemon, the demo and the tests hand it an
//! [`Observation`] and carry out the [`Output`].

mod claim;
mod clocks;
pub mod event;
pub mod learned;
pub mod load;
mod parking;
pub mod quiet;
mod readings;
pub mod round;
mod seen;
mod servers;
pub mod stale;
pub mod step;
pub(crate) mod v3;
pub mod verify;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::engine::Profile;
use crate::gpu::{GpuReading, Refusal};
use crate::holdout::HoldoutSettings;
use crate::metrics::Snapshot;
use crate::park::Settings as ParkSettings;
use crate::reward::energy::EnergyPoint;
use crate::reward::slo::Limits;
use crate::reward::{Objective, RewardForm};
use crate::units::{Mhz, Seconds, Target, Time};

pub use crate::park::source::Connections;
pub use event::Event;
pub use learned::{Learned, Model};
pub use round::Round;
pub use servers::Sharer;
pub use step::Controller;

/// Everything seen since the previous step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Now.
    pub now: Time,
    /// What the endpoint gave.
    pub scrape: Scrape,
    /// One entry per GPU of the engine, always in the same order.
    pub gpus: Vec<GpuTick>,
    /// What became of clock commands since.
    pub outcomes: Vec<ClockOutcome>,
    /// What operators asked for since, oldest first.
    #[serde(default)]
    pub orders: Vec<Order>,
    /// Connections to the engine, where they are watched and known.
    #[serde(default)]
    pub connections: Option<Connections>,
    /// Instances on the GPUs that are said to work.
    #[serde(default)]
    pub working: u32,
}

/// What an operator asks of a running loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Driver-default clocks, and nothing learned, until [`Order::Resume`].
    Pause,
    /// Go on.
    Resume,
}

/// What the endpoint gave since the previous step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Scrape {
    /// A page.
    Page(Box<Snapshot>),
    /// Nothing yet: the request is still under way, or this step is between two scrapes.
    Pending,
    /// No usable page, and why.
    Failed(String),
    /// A page of each of several servers on the same GPUs, always in the same order.
    Pages(Vec<Snapshot>),
}

impl Scrape {
    /// The page of all servers together.
    #[must_use]
    pub fn whole(&self) -> Option<Cow<'_, Snapshot>> {
        match self {
            Self::Page(page) => Some(Cow::Borrowed(page)),
            Self::Pages(pages) => Some(Cow::Owned(Snapshot::sum(pages))),
            Self::Pending | Self::Failed(_) => None,
        }
    }

    /// How long the answer took, or the slowest of several.
    #[must_use]
    pub fn latency(&self) -> Option<Seconds> {
        match self {
            Self::Page(page) => Some(page.latency),
            Self::Pages(pages) => pages.iter().map(|page| page.latency).max_by(|a, b| a.0.total_cmp(&b.0)),
            Self::Pending | Self::Failed(_) => None,
        }
    }

    /// The engines whose pages came, each once.
    #[must_use]
    pub fn engines(&self) -> Vec<&'static Profile> {
        let pages = if let Self::Page(page) = self { std::slice::from_ref(&**page) } else { self.each() };
        let mut engines: Vec<&'static Profile> = Vec::new();
        for engine in pages.iter().filter_map(|page| page.engine) {
            if !engines.contains(&engine) {
                engines.push(engine);
            }
        }
        engines
    }

    /// The pages of the servers one by one, where there are several.
    #[must_use]
    pub fn each(&self) -> &[Snapshot] {
        match self {
            Self::Pages(pages) => pages,
            Self::Page(_) | Self::Pending | Self::Failed(_) => &[],
        }
    }
}

/// One GPU since the previous step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GpuTick {
    /// Latest sensor values; `None` if they could not be read.
    pub reading: Option<GpuReading>,
    /// When they were read.
    pub read_at: Option<Time>,
    /// Ticks of the energy counter since.
    pub energy: Vec<EnergyPoint>,
}

/// What became of a clock command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ClockOutcome {
    /// The driver took it; in force from `at` on, give or take the settling time.
    InForce {
        /// What is in force.
        target: Target,
        /// Since when.
        at: Time,
    },
    /// The driver refused; the clocks are at its default since `at`.
    Refused {
        /// What was asked.
        target: Target,
        /// Since when the clocks are back.
        at: Time,
        /// What to do about it.
        recovery: Refusal,
        /// The driver's words.
        why: String,
    },
}

/// What a step wants done.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    /// Run at this from now on; `None` leaves things as they are.
    pub command: Option<Target>,
    /// Give the clocks back although they are said to be, and why: they do not run as if they were.
    pub reset: Option<String>,
    /// What happened, for the log.
    pub events: Vec<Event>,
    /// The round that this step closed, if it closed one.
    pub round: Option<Round>,
}

/// What the controller is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mode {
    /// Waiting for the first two pages.
    Starting,
    /// Measuring at driver-default clocks.
    Baseline,
    /// The policy tries clocks out.
    Exploration,
    /// The policy uses what it knows.
    Exploitation,
    /// A latency limit is or was just broken: driver-default clocks.
    SloGuard,
    /// No work: parked.
    Idle,
    /// The endpoint does not answer: driver-default clocks.
    Outage,
    /// A clock command failed for a passing reason: driver-default clocks for a while.
    Fault,
    /// An operator paused it: driver-default clocks, nothing is learned.
    Paused,
    /// A slot of the holdout experiment: driver-default clocks.
    Holdout,
    /// Records only.
    DataCollection,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 11] = [
        Self::Starting,
        Self::Baseline,
        Self::Exploration,
        Self::Exploitation,
        Self::SloGuard,
        Self::Idle,
        Self::Outage,
        Self::Fault,
        Self::Paused,
        Self::Holdout,
        Self::DataCollection,
    ];

    /// The name that files and logs show.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "STARTING",
            Self::Baseline => "BASELINE",
            Self::Exploration => "EXPLORATION",
            Self::Exploitation => "EXPLOITATION",
            Self::SloGuard => "SLO_GUARD",
            Self::Idle => "IDLE",
            Self::Outage => "OUTAGE",
            Self::Fault => "FAULT",
            Self::Paused => "PAUSED",
            Self::Holdout => "HOLDOUT",
            Self::DataCollection => "DATA_COLLECTION",
        }
    }
}

/// Constants of the control loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Without a good page for this long, the endpoint is out.
    pub outage_after: Seconds,
    /// Part of a window after a clock change that is not measured.
    pub settle: Seconds,
    /// Time after which the running clock must match the one asked for.
    pub verify_after: Seconds,
    /// How far the running clock may be off.
    pub clock_tolerance: Mhz,
    /// What is to be small.
    pub objective: Objective,
    /// How cost becomes reward.
    pub reward: RewardForm,
    /// Latency limits; `None` ignores them. Of several servers the tightest: each [`Sharer`] has its own.
    pub limits: Option<Limits>,
    /// Parking; `None` never parks.
    pub idle: Option<ParkSettings>,
    /// The holdout experiment; `None` leaves no time to default clocks.
    pub holdout: Option<HoldoutSettings>,
    /// Records only, never asks for a clock.
    pub data_collection: bool,
    /// Commands are not carried out: nothing can be verified or attributed to them.
    pub dry_run: bool,
    /// Weight of the newest sample in the concurrency feature.
    pub ema_alpha: f64,
    /// The floor under the core clock moves in steps of this size.
    pub floor_step: Mhz,
    /// With this many arms or fewer, a clock the card runs at instead of the one asked becomes an arm.
    pub recover_arms_below: Option<usize>,
}

impl Settings {
    /// Share of the time that the holdout experiment leaves to default clocks, 0 to 0.5: the most of it, see
    /// [`Controller::holdout_share`].
    #[must_use]
    pub fn holdout_share(&self) -> f64 {
        self.holdout.map_or(0.0, |holdout| holdout.share)
    }
}
