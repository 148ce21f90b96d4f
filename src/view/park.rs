//! GPUs without a server, as status, socket and metrics show them.

use serde::{Deserialize, Serialize};

use crate::park::books::{Books, Estimate};
use crate::park::levers::LeverBook;
use crate::units::{Clocks, Joules};

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

/// What came of parking, with a server or without.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ParkFigures {
    /// What a wake costs, as far as it is known, joules.
    pub(crate) wake_cost_j: Option<f64>,
    /// Mean power of idle spells that were not parked, watts.
    pub(crate) idle_power_w: Option<f64>,
    /// Mean power while parked, watts.
    pub(crate) parked_power_w: Option<f64>,
    /// Estimate of the energy that parking saved, joules, without an interval.
    pub(crate) saved_about_j: Option<f64>,
    /// The same with its 95 % interval, once there are enough spells.
    pub(crate) saved: Option<Estimate>,
    /// The sums.
    pub(crate) books: Books,
    /// What was measured of the board's levers.
    pub(crate) levers: LeverBook,
}

impl ParkFigures {
    pub(crate) fn new(books: Books, wake: Option<Joules>, levers: LeverBook) -> Self {
        Self {
            wake_cost_j: wake.map(|cost| cost.0),
            idle_power_w: books.idle_power().map(|power| power.0),
            parked_power_w: books.parked_power().map(|power| power.0),
            saved_about_j: books.saved_about().map(|saved| saved.0),
            saved: books.saved(),
            books,
            levers,
        }
    }
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
    /// The lock that the driver confirmed; `None` at its default clocks.
    pub in_force: Option<Clocks>,
    /// Clocks were to be given back and the driver has not taken them yet: a lock may be in force.
    #[serde(default)]
    pub(crate) not_given_back: bool,
    /// Utilisation when last read, percent.
    pub utilization_percent: Option<f64>,
    /// Core temperature when last read, degrees Celsius.
    pub temperature_c: Option<f64>,
    /// What came of it.
    #[serde(flatten)]
    pub figures: ParkFigures,
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
