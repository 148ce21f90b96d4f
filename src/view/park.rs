//! GPUs without a server, as status, socket and metrics show them.

use serde::{Deserialize, Serialize};

use crate::park::books::{Books, Estimate};
use crate::park::levers::LeverBook;
use crate::units::Clocks;

/// Is it at work?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ParkMode {
    /// GPUs are parked when nobody uses them.
    Parking,
    /// The clocks are the driver's until somebody says `resume`.
    Paused,
}

impl ParkMode {
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Parking => "PARKING",
            Self::Paused => "PAUSED",
        }
    }
}

/// Where a GPU stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ParkStanding {
    /// A source says work, or does not answer.
    Serving,
    /// All sources are quiet; the wait has begun.
    Quiet,
    /// Clocks down, since nobody uses it.
    Parked,
    /// Clocks down for heat.
    Hot,
    /// Left to the driver until `resume`.
    Paused,
}

impl ParkStanding {
    pub(crate) const ALL: [Self; 5] = [Self::Serving, Self::Quiet, Self::Parked, Self::Hot, Self::Paused];

    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Serving => "SERVING",
            Self::Quiet => "QUIET",
            Self::Parked => "PARKED",
            Self::Hot => "HOT",
            Self::Paused => "PAUSED",
        }
    }
}

/// Connections to the watched ports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnectionsState {
    /// The ports.
    pub ports: Vec<u16>,
    /// Where they are known from, by name: `kernel_events`, `perf_events` or `polling` (of the table of sockets).
    pub source: String,
    /// The same in words, with the reason where the better one cannot be had.
    pub(crate) source_detail: String,
    /// Open now; `None` while that is not known.
    pub open: Option<u32>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParkedGpu {
    /// Index in NVML's order.
    pub index: u32,
    /// Its identity.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Where it stands ...
    pub state: ParkStanding,
    /// ... since when, Unix time.
    pub(crate) since_unix_s: f64,
    /// The clocks that parking locks ...
    pub parked_clocks: Clocks,
    /// ... and what of them is lowered: `core`, `memory`, `both` or `pstate`.
    pub lever: String,
    /// Levers are being tried out, and the clocks change with that.
    pub trying: bool,
    /// What was measured of the board's levers.
    pub levers: LeverBook,
    /// What a wake was measured to cost, joules.
    pub(crate) wake_cost_j: Option<f64>,
    /// The lock that the driver confirmed; `None` at its default clocks.
    pub in_force: Option<Clocks>,
    /// Clocks were to be given back and the driver has not taken them yet: a lock may be in force.
    #[serde(default)]
    pub(crate) not_given_back: bool,
    /// Utilisation when last read, percent.
    pub utilization_percent: Option<f64>,
    /// Core temperature when last read, degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Mean board power of quiet spells, watts.
    pub idle_power_w: Option<f64>,
    /// Mean board power while parked, watts.
    pub parked_power_w: Option<f64>,
    /// Estimate of the energy that parking saved, joules, without an interval.
    pub(crate) saved_about_j: Option<f64>,
    /// The same with its 95 % interval, once there are enough spells.
    pub saved: Option<Estimate>,
    /// The sums.
    pub books: Books,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParkState {
    /// The moment of this picture, Unix time.
    pub at_unix_s: f64,
    /// Is it at work?
    pub mode: ParkMode,
    /// `park.rule`.
    pub rule: String,
    /// `park.lever`.
    pub lever: String,
    /// `park.sources`.
    pub sources: Vec<String>,
    /// Connections, if they are a source.
    pub connections: Option<ConnectionsState>,
    /// Its GPUs.
    pub gpus: Vec<ParkedGpu>,
}
