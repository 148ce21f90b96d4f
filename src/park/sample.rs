//! What one look at a group of GPUs gives.

use serde::{Deserialize, Serialize};

use super::source::Connections;
use super::wake::Running;
use crate::reward::energy::EnergyPoint;
use crate::units::{Seconds, Time, Watts};

/// Something that can be asked of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Sensor {
    /// Share of the time in which a kernel ran.
    Utilization = 1,
    /// Core temperature.
    Temperature = 2,
    /// Board power.
    Power = 4,
    /// The energy counter.
    Energy = 8,
    /// The running core clock.
    CoreClock = 16,
    /// The running memory clock.
    MemoryClock = 32,
}

/// A set of sensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sensors(u8);

impl Sensors {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// Both clocks.
    pub(crate) const CLOCKS: Self = Self(Sensor::CoreClock as u8 | Sensor::MemoryClock as u8);

    /// The same with `sensor`, if `wanted`.
    #[must_use]
    pub fn with(self, sensor: Sensor, wanted: bool) -> Self {
        Self(self.0 | if wanted { sensor as u8 } else { 0 })
    }

    /// Is this one in it?
    #[must_use]
    pub fn has(self, sensor: Sensor) -> bool {
        self.0 & sensor as u8 != 0
    }

    #[must_use]
    pub(crate) fn has_any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }
}

/// What GPUs that are parked together show.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Activity {
    /// Sum of board powers.
    pub power: Option<Watts>,
    /// Highest utilisation, percent.
    pub utilization_percent: Option<f64>,
}

impl Activity {
    /// Does no sensor tell whether the GPUs work?
    #[must_use]
    pub(crate) fn is_unseen(self) -> bool {
        self.power.is_none() && self.utilization_percent.is_none()
    }
}

/// What a server's page says of a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PageSight {
    /// Begin of the window.
    pub start: Time,
    /// There was work in it, or is.
    pub work: bool,
    /// Length of the server's steps in it, where there were any.
    pub(crate) step_time: Option<Seconds>,
}

/// All that is known of a group at one moment. What was not read anew has its last value; `None` where the last answer
/// was none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// The moment.
    pub now: Time,
    /// A window of the server's page that has just closed.
    pub page: Option<PageSight>,
    /// Utilisation and power.
    pub activity: Activity,
    /// Mean power in the page's window, by the energy counters.
    pub window_power: Option<Watts>,
    /// Highest core temperature, degrees Celsius.
    pub temperature_c: Option<f64>,
    /// The slowest running clocks: what work waits for.
    pub running: Running,
    /// The energy counters of all GPUs together, and when they were read.
    pub energy: Option<EnergyPoint>,
    /// Connections to what the GPUs serve.
    pub connections: Option<Connections>,
    /// Instances on the GPUs that are said to work.
    pub working: u32,
    /// Nothing speaks against parking.
    pub may_park: bool,
    /// What was read anew.
    pub read: Sensors,
}

impl Sample {
    /// Of a moment at which nothing is known.
    pub fn at(now: Time) -> Self {
        Self {
            now,
            page: None,
            activity: Activity::default(),
            window_power: None,
            temperature_c: None,
            running: Running::default(),
            energy: None,
            connections: None,
            working: 0,
            may_park: true,
            read: Sensors::NONE,
        }
    }
}
