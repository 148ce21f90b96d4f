//! Who can tell of work.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::Watts;

/// What of the connections to a service is work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CountedConnections {
    /// One that is open.
    Open,
    /// One that was just opened, or just used: clients keep connections open without wanting anything.
    Recent,
}

/// Connections to a server's ports, without agft's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Open now.
    pub open: u32,
    /// Seen to open so far.
    pub opened_total: u64,
    /// Requests seen so far: bytes from a client over a connection, old or new. Several at once count as one.
    pub requests_total: u64,
}

/// What shows that there is work, or that it cannot be ruled out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum WakeSource {
    /// The engine's metrics page.
    Page,
    /// A client connects or asks, or is connected.
    Connections {
        /// Connections that are open.
        open: u32,
    },
    /// Board power above the parked level.
    Power {
        /// Measured.
        power: Watts,
        /// Parked level.
        parked: Watts,
    },
    /// The GPU works.
    Utilization {
        /// Percent.
        percent: f64,
    },
    /// A source does not answer.
    Unseen,
    /// Supervisors say that instances work.
    Instances {
        /// How many.
        working: u32,
    },
}

impl WakeSource {
    /// Its name in sums and labels.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Connections { .. } => "connections",
            Self::Power { .. } => "power",
            Self::Utilization { .. } => "utilization",
            Self::Unseen => "unseen",
            Self::Instances { .. } => "instances",
        }
    }
}

impl fmt::Display for WakeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page => f.write_str("the metrics page"),
            Self::Connections { open } => write!(f, "connections ({open} open)"),
            Self::Power { power, parked } => write!(f, "board power ({power} over {parked})"),
            Self::Utilization { percent } => write!(f, "utilization {percent:.0} %"),
            Self::Unseen => f.write_str("a source that does not answer"),
            Self::Instances { working } => write!(f, "instances ({working} working)"),
        }
    }
}
