//! Every constant of parking one group, in one place.

use serde::{Deserialize, Serialize};

use super::gap::GapSettings;
use super::source::CountedConnections;
use crate::units::Seconds;

/// Temperatures that park a GPU whatever it does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HotAt {
    /// Above this it is parked, degrees Celsius ...
    pub(crate) high_c: f64,
    /// ... until it is at or below this.
    pub(crate) low_c: f64,
}

/// Periods at which sensors are asked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Periods {
    /// Not parked.
    pub active: Seconds,
    /// Parked.
    pub parked: Seconds,
}

/// Time for which work waits, in the mean, until a source tells of it. Connections tell at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Unnoticed {
    /// Utilisation and power.
    pub by_sensors: Seconds,
    /// The page, or that nothing can be seen.
    pub(crate) by_others: Seconds,
}

/// Constants of parking.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// How gaps are waited out.
    pub gap: GapSettings,
    /// A server's page has the last word on work: sensors and connections can only rule parking out, and wake sooner.
    pub page: bool,
    /// Utilisation above this is work, percent; `None` if the GPU's sensors are no source.
    pub utilization_threshold_percent: Option<f64>,
    /// Power above this multiple of the parked level is work, where sensors are a source; `None` if it says nothing.
    pub wake_power_ratio: Option<f64>,
    /// Connections are a source, and what counts of them.
    pub connections: Option<CountedConnections>,
    /// Protection against heat, if wanted.
    pub hot: Option<HotAt>,
    /// A GPU above this utilisation has its clocks up, if they are not held down; percent.
    pub busy_percent: f64,
    /// When sensors are to be asked; `None` where a sampler reads them all the time.
    pub periods: Option<Periods>,
    /// Until work is noticed.
    pub unnoticed: Unnoticed,
    /// The 99th percentile of the time to first token is not to rise by more than this share for wakes.
    pub max_ttft_rise: f64,
    /// If the driver refuses the last way to park, it is tried again later; else nothing is parked any more.
    pub retries_last: bool,
    /// No clock is written, and no figure made up: nothing is measured, tried out, or to come back.
    pub dry_run: bool,
}
