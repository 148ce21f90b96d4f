//! Units at module borders: a number that crosses a module says what it measures.
//!
//! Inside a formula plain `f64` is fine; the newtypes are there so that a core clock is never taken for a memory
//! clock's neighbour, millijoules never for joules, and an instant never for a span.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A clock frequency in megahertz.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mhz(pub u32);

impl Mhz {
    /// The number as `f64`, for formulas.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        f64::from(self.0)
    }

    /// Distance to another clock.
    #[must_use]
    pub fn abs_diff(self, other: Self) -> Self {
        Self(self.0.abs_diff(other.0))
    }
}

impl fmt::Display for Mhz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MHz", self.0)
    }
}

/// A core clock and, where the memory clock is controlled too, a memory clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Clocks {
    /// Core (SM, graphics) clock.
    pub core: Mhz,
    /// Memory clock; `None` leaves it to the driver.
    pub memory: Option<Mhz>,
}

impl Clocks {
    /// A core clock with the memory clock left to the driver.
    #[must_use]
    pub fn core_only(core: Mhz) -> Self {
        Self { core, memory: None }
    }
}

impl fmt::Display for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.memory {
            Some(memory) => write!(f, "{} core, {memory} memory", self.core),
            None => write!(f, "{} core", self.core),
        }
    }
}

/// Power in watts.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Watts(pub f64);

impl fmt::Display for Watts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} W", self.0)
    }
}

/// Energy in joules.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Joules(pub f64);

impl fmt::Display for Joules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} J", self.0)
    }
}

/// Energy in millijoules, as NVML counts it since the driver was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millijoules(pub u64);

impl Millijoules {
    /// Energy since an earlier reading; `None` if the counter ran backwards (the driver was reloaded).
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a difference of 2^53 mJ is 285 years at 1 kW")]
    pub fn since(self, earlier: Self) -> Option<Joules> {
        self.0.checked_sub(earlier.0).map(|mj| Joules(mj as f64 / 1e3))
    }
}

/// A span of time in seconds.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub f64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s", self.0)
    }
}

/// A monotonic instant: seconds since an origin that the caller chose (start of the process, start of the simulation).
///
/// The control code never reads a clock; it is handed instants.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub f64);

impl Time {
    /// Span since an earlier instant (negative if `earlier` is later).
    #[must_use]
    pub fn since(self, earlier: Self) -> Seconds {
        Seconds(self.0 - earlier.0)
    }
}

impl std::ops::Add<Seconds> for Time {
    type Output = Self;
    fn add(self, span: Seconds) -> Self {
        Self(self.0 + span.0)
    }
}

impl std::ops::Sub<Seconds> for Time {
    type Output = Self;
    fn sub(self, span: Seconds) -> Self {
        Self(self.0 - span.0)
    }
}

/// What to run at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// The driver's own choice: no lock of ours.
    Default,
    /// These clocks.
    Lock(Clocks),
}

impl Target {
    /// The locked clocks, if any.
    #[must_use]
    pub fn clocks(self) -> Option<Clocks> {
        match self {
            Self::Default => None,
            Self::Lock(clocks) => Some(clocks),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("driver default"),
            Self::Lock(clocks) => clocks.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_counter_that_ran_backwards_gives_no_energy() {
        assert_eq!(Millijoules(5).since(Millijoules(6)), None);
        assert_eq!(Millijoules(2500).since(Millijoules(500)), Some(Joules(2.0)));
    }
}
