//! The hardware edge: what agft asks of a GPU, and the one place that writes clocks.
//!
//! Reading ([`GpuSensors`]) and writing ([`GpuClocks`]) are two traits, so that a sampling thread can own the first
//! while only [`lease`] ever holds the second. [`nvml`] is the real implementation and the only file that names
//! nvml-wrapper; `crate::sim` has the simulated one.

pub mod lease;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::faults::{Fault, Reaction};
use crate::units::{Mhz, Millijoules, Watts};

pub mod host;
pub(crate) mod nvapi;
pub mod nvml;
pub(crate) mod plausible;
pub mod probe;
pub(crate) mod pstate;
pub(crate) mod retry;
#[cfg(test)]
pub(crate) mod testing;

/// Who a GPU is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuInfo {
    /// Index in NVML's order (PCI bus order).
    pub index: u32,
    /// Stable identity, `GPU-...`.
    pub uuid: String,
    /// Product name, as the driver gives it.
    pub name: String,
    /// Driver version, if the driver says.
    pub driver_version: Option<String>,
    /// Power limit in force, if the board has one.
    pub power_limit: Option<Watts>,
    /// The highest power limit that the board takes, if the driver says.
    #[serde(default)]
    pub power_limit_max: Option<Watts>,
}

impl fmt::Display for GpuInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {} ({})", self.index, self.name)
    }
}

/// Which GPU is meant: by index (`0`) or by UUID (`GPU-...`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GpuSelector {
    /// Index in NVML's order; it may change with the next boot.
    Index(u32),
    /// Identity of the board; upper and lower case are the same.
    Uuid(String),
}

impl GpuSelector {
    pub(crate) fn selects(&self, gpu: &GpuInfo) -> bool {
        match self {
            Self::Index(index) => gpu.index == *index,
            Self::Uuid(uuid) => gpu.uuid.eq_ignore_ascii_case(uuid),
        }
    }
}

impl fmt::Display for GpuSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

/// One memory clock and the core clocks that go with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLevel {
    /// The memory clock.
    pub memory: Mhz,
    /// Core clocks supported beside it, highest first.
    pub core: Vec<Mhz>,
}

/// The clocks a GPU supports, highest memory clock first. Never empty, and no level is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupportedClocks {
    levels: Vec<MemoryLevel>,
}

impl SupportedClocks {
    /// Sorts, removes duplicates and empty levels; `None` if nothing is left.
    pub fn new(mut levels: Vec<MemoryLevel>) -> Option<Self> {
        for level in &mut levels {
            level.core.sort_unstable_by(|a, b| b.cmp(a));
            level.core.dedup();
        }
        levels.retain(|level| !level.core.is_empty());
        levels.sort_unstable_by_key(|level| std::cmp::Reverse(level.memory));
        levels.dedup_by_key(|level| level.memory);
        (!levels.is_empty()).then_some(Self { levels })
    }

    /// Every level, highest memory clock first.
    pub fn levels(&self) -> &[MemoryLevel] {
        &self.levels
    }

    /// Core clocks at the highest memory clock, highest first: the ones a core lock can ask for.
    pub fn core(&self) -> &[Mhz] {
        &self.levels[0].core
    }

    /// Memory clocks, highest first.
    pub fn memory(&self) -> impl Iterator<Item = Mhz> + '_ {
        self.levels.iter().map(|level| level.memory)
    }

    /// Lowest supported core clock.
    pub fn core_min(&self) -> Mhz {
        self.core()[self.core().len() - 1]
    }

    /// Highest supported core clock.
    pub fn core_max(&self) -> Mhz {
        self.core()[0]
    }

    /// The supported core clock nearest to `wanted` (the higher one of two equally near).
    pub fn nearest_core(&self, wanted: Mhz) -> Mhz {
        self.core().iter().copied().min_by_key(|clock| clock.abs_diff(wanted)).unwrap_or(wanted)
    }
}

/// Why the clock is not what it could be: NVML's event (throttle) reasons as a bit set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClockReasons(pub u64);

impl ClockReasons {
    /// Nothing runs on the GPU.
    pub const GPU_IDLE: Self = Self(0x1);
    /// Application or locked clocks limit it: what a lock of ours looks like.
    pub const CLOCKS_SETTING: Self = Self(0x2);
    /// The power cap, enforced by software.
    pub const SW_POWER_CAP: Self = Self(0x4);
    /// Hardware slowdown: temperature, power brake or both.
    pub(crate) const HW_SLOWDOWN: Self = Self(0x8);
    /// Clocks kept equal with another GPU.
    pub(crate) const SYNC_BOOST: Self = Self(0x10);
    /// Temperature, by software.
    pub(crate) const SW_THERMAL: Self = Self(0x20);
    /// Temperature, by hardware.
    pub(crate) const HW_THERMAL: Self = Self(0x40);
    /// External power brake.
    pub(crate) const HW_POWER_BRAKE: Self = Self(0x80);

    /// Is any of `other`'s bits set?
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Is the GPU slowed down by a protection: temperature, power brake, hardware? What it does then says nothing about
    /// the clock that was asked for.
    #[must_use]
    pub(crate) fn is_throttled(self) -> bool {
        self.intersects(Self(
            Self::HW_SLOWDOWN.0 | Self::SW_THERMAL.0 | Self::HW_THERMAL.0 | Self::HW_POWER_BRAKE.0,
        ))
    }

    /// Is the clock held below what was asked for a reason that is not ours: power or temperature?
    #[must_use]
    pub fn is_capped(self) -> bool {
        self.intersects(Self(
            Self::SW_POWER_CAP.0
                | Self::HW_SLOWDOWN.0
                | Self::SW_THERMAL.0
                | Self::HW_THERMAL.0
                | Self::HW_POWER_BRAKE.0
                | Self::SYNC_BOOST.0,
        ))
    }
}

impl fmt::Display for ClockReasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::GPU_IDLE, "idle"),
            (Self::CLOCKS_SETTING, "clocks setting"),
            (Self::SW_POWER_CAP, "power cap"),
            (Self::HW_SLOWDOWN, "hardware slowdown"),
            (Self::SYNC_BOOST, "sync boost"),
            (Self::SW_THERMAL, "temperature (software)"),
            (Self::HW_THERMAL, "temperature (hardware)"),
            (Self::HW_POWER_BRAKE, "power brake"),
        ];
        let set: Vec<&str> =
            names.iter().filter(|(bit, _)| self.intersects(*bit)).map(|(_, name)| *name).collect();
        if set.is_empty() { f.write_str("no reason given") } else { f.write_str(&set.join(", ")) }
    }
}

/// What the sensors say at one moment. A sensor that the board lacks is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct GpuReading {
    /// Running core (SM) clock.
    pub core_clock: Option<Mhz>,
    /// Running memory clock.
    pub memory_clock: Option<Mhz>,
    /// Board power; the instantaneous value where the driver has one.
    pub power: Option<Watts>,
    /// Share of the driver's last sampling period in which a kernel ran, in percent.
    pub utilization_percent: Option<f64>,
    /// Core temperature in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Why the clock is what it is, if the driver says.
    pub reasons: Option<ClockReasons>,
}

impl GpuReading {
    /// The reasons, as far as they are known.
    pub fn reasons(&self) -> ClockReasons {
        self.reasons.unwrap_or_default()
    }
}

/// How a GPU is set up; `None` where the board or driver does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GpuSetup {
    /// Cut into instances (MIG).
    pub mig: Option<bool>,
    /// The driver stays loaded while nobody uses the GPU.
    pub persistence: Option<bool>,
}

fn sensor<T>(gpu: &GpuInfo, value: Option<T>, call: &'static str) -> Result<T, GpuError> {
    value.ok_or_else(|| GpuError::NotSupported { gpu: gpu.to_string(), call })
}

/// What can be read of a GPU. Needs no privilege and changes nothing.
pub trait GpuSensors: Send {
    /// Who this is.
    fn info(&self) -> &GpuInfo;

    /// How the GPU is set up.
    fn setup(&self) -> GpuSetup {
        GpuSetup::default()
    }

    /// Whether its clocks may be locked: the instances of a partitioned GPU share them.
    /// Errors: [`GpuError::Mig`].
    fn check_undivided(&self) -> Result<(), GpuError> {
        if self.setup().mig != Some(true) {
            return Ok(());
        }
        let info = self.info();
        Err(GpuError::Mig { gpu: info.to_string(), index: info.index })
    }

    /// The clocks that can be asked for.
    /// Errors: [`GpuError`] if the driver does not say, which also is the answer of boards without clock
    /// control.
    fn supported_clocks(&self) -> Result<SupportedClocks, GpuError>;

    /// All sensors at once.
    /// Errors: [`GpuError::Lost`] and the like only; a missing sensor is a `None` field, not an error.
    fn reading(&self) -> Result<GpuReading, GpuError>;

    /// Board power alone, as fresh as the driver has it: the cheap call for the idle watch.
    /// Errors: [`GpuError::NotSupported`] if the board has no power sensor.
    fn power(&self) -> Result<Watts, GpuError>;

    /// Utilisation alone, in percent: one call where a [`reading`](Self::reading) is several.
    /// Errors: [`GpuError::NotSupported`] if the board has no such sensor.
    fn utilization(&self) -> Result<f64, GpuError> {
        sensor(self.info(), self.reading()?.utilization_percent, "utilization")
    }

    /// Core temperature alone, in degrees Celsius.
    /// Errors: [`GpuError::NotSupported`] if the board has no such sensor.
    fn temperature(&self) -> Result<f64, GpuError> {
        sensor(self.info(), self.reading()?.temperature_c, "temperature")
    }

    /// The running core clock alone.
    /// Errors: [`GpuError::NotSupported`] if the driver does not tell it.
    fn core_clock(&self) -> Result<Mhz, GpuError> {
        sensor(self.info(), self.reading()?.core_clock, "core clock")
    }

    /// The running memory clock alone.
    /// Errors: [`GpuError::NotSupported`] if the driver does not tell it.
    fn memory_clock(&self) -> Result<Mhz, GpuError> {
        sensor(self.info(), self.reading()?.memory_clock, "memory clock")
    }

    /// The total-energy counter, in millijoules since the driver was loaded. Advances in ticks of 10-100 ms.
    /// Errors: [`GpuError::NotSupported`] before Volta.
    fn energy(&self) -> Result<Millijoules, GpuError>;
}

/// What can be written to a GPU. Every call needs root (`CAP_SYS_ADMIN`), and outlives the process until reset.
pub trait GpuClocks: Send {
    /// Who this is.
    fn info(&self) -> &GpuInfo;

    /// Is the core clock lowered by forcing a performance state, and not by a lock?
    fn forces_state(&self) -> bool {
        false
    }

    /// Lock the core clock to the range `[min, max]`: under load the GPU runs at `max`.
    /// Errors: [`GpuError`]; the previous lock may or may not be in force then.
    fn lock_core(&mut self, min: Mhz, max: Mhz) -> Result<(), GpuError>;

    /// Lock the memory clock to the range `[min, max]`.
    /// Errors: [`GpuError::NotSupported`] on boards with one memory clock; never falls back to a deferred
    /// lock.
    fn lock_memory(&mut self, min: Mhz, max: Mhz) -> Result<(), GpuError>;

    /// Give the core clock back to the driver.
    fn reset_core(&mut self) -> Result<(), GpuError>;

    /// Give the memory clock back to the driver.
    /// Errors: [`GpuError`] if the driver refuses; [`GpuError::NotSupported`] where there is nothing to
    /// reset.
    fn reset_memory(&mut self) -> Result<(), GpuError>;
}

/// What to do with a board whose driver lists no clocks.
pub(crate) const NO_CLOCKS_LISTED: &str = "the driver lists no clocks, so that none can be locked; `agft --data-collection-mode` measures all the same";

/// What to do with a board that takes no locks.
pub(crate) const NO_LOCKS: &str = "clocks cannot be controlled: this board or driver takes no clock locks \
    (--data-collection-mode only measures, and works without; `agft park` parks by performance state where `agft gpus` \
    finds NVAPI)";

/// Why a GPU call failed. The text states the fact and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each has its message")]
pub enum GpuError {
    #[error(
        "the NVIDIA management library cannot be loaded ({detail}); install the NVIDIA driver, or, in a container, \
         start it with the NVIDIA runtime and the capability `utility`"
    )]
    NoLibrary { detail: String },
    #[error(
        "the NVIDIA driver does not answer ({detail}); is the kernel module loaded and of the library's version?"
    )]
    NoDriver { detail: String },
    #[error("no GPU {wanted}; present: {present}")]
    NotFound { wanted: String, present: String },
    #[error("{gpu}: {call}: not permitted; run agft as root or grant it CAP_SYS_ADMIN")]
    NoPermission { gpu: String, call: &'static str },
    #[error("{gpu}: {call}: not supported by this board or driver")]
    NotSupported { gpu: String, call: &'static str },
    #[error("{gpu}: {call}: the driver refused the argument {argument}")]
    InvalidArgument { gpu: String, call: &'static str, argument: String },
    #[error("{gpu}: {call}: the GPU is lost; it needs a reset or a reboot")]
    Lost { gpu: String, call: &'static str },
    #[error(
        "the NVIDIA driver's kernel module and its library are of different versions; reboot, or reload the module \
         (in a container: restart it with the host's driver)"
    )]
    DriverMismatch,
    #[error(
        "{gpu}: {call}: the GPU needs a reset (`nvidia-smi --gpu-reset`, with nothing running on it) or a reboot"
    )]
    ResetRequired { gpu: String, call: &'static str },
    #[error("{gpu}: {call}: the GPU is suspended or not ready")]
    NotReady { gpu: String, call: &'static str },
    #[error(
        "{gpu} has MIG enabled: its instances share one clock and one energy counter. Disable MIG \
         (`nvidia-smi -i {index} -mig 0`, with nothing running on it), or run agft with --data-collection-mode"
    )]
    Mig { gpu: String, index: u32 },
    #[error("{gpu}: {call} failed: {detail}")]
    Failed { gpu: String, call: &'static str, detail: String },
}

/// What a refused clock means for the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// This clock cannot be had: it is taken out of the action space.
    DropArm,
    /// The fault may pass: the clocks are given back, and the loop tries again later.
    Pause,
}

impl GpuError {
    /// Which fault this is. Exhaustive: a new variant has to decide.
    pub fn fault(&self) -> Fault {
        match self {
            Self::InvalidArgument { .. } => Fault::ClockRefused,
            Self::Failed { .. } => Fault::CallFailed,
            Self::NotReady { .. } => Fault::GpuSuspended,
            Self::NoLibrary { .. } => Fault::LibraryMissing,
            Self::NoDriver { .. } => Fault::DriverGone,
            Self::DriverMismatch => Fault::DriverMismatch,
            Self::NotFound { .. } => Fault::GpuNotFound,
            Self::NoPermission { .. } => Fault::NotPermitted,
            Self::NotSupported { .. } => Fault::LocksNotSupported,
            Self::Lost { .. } => Fault::GpuLost,
            Self::ResetRequired { .. } => Fault::GpuResetRequired,
            Self::Mig { .. } => Fault::MigEnabled,
        }
    }

    /// What the loop does after a clock call that failed so, by [`Fault::reaction`]; `None` where the run has
    /// to end.
    pub fn refusal(&self) -> Option<Refusal> {
        match self.fault().reaction() {
            Reaction::DropClock => Some(Refusal::DropArm),
            Reaction::Pause | Reaction::WaitOut => Some(Refusal::Pause),
            _ => None,
        }
    }

    /// What is the likely cause where a call fails so again and again, and the remedy.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Failed { .. }
            | Self::NoPermission { .. }
            | Self::NoDriver { .. }
            | Self::NotReady { .. } => {
                "in a container: it may have lost its device nodes or cgroup rights, as after `systemctl \
                 daemon-reload` on the host; restart the container"
            }
            Self::Lost { .. } | Self::ResetRequired { .. } | Self::DriverMismatch => {
                "see `dmesg`; the GPU or the driver needs a reset, or the machine a reboot"
            }
            Self::NoLibrary { .. }
            | Self::NotFound { .. }
            | Self::NotSupported { .. }
            | Self::InvalidArgument { .. }
            | Self::Mig { .. } => "see `agft check`",
        }
    }

    /// Is it the sensor that a board lacks, and not the GPU that is in trouble?
    pub(crate) fn is_missing_sensor(&self) -> bool {
        matches!(self, Self::NotSupported { .. } | Self::InvalidArgument { .. } | Self::NoPermission { .. })
    }

    /// Is it the lock of the memory clock that the board does not have?
    pub(crate) fn is_refused_memory_lock(&self) -> bool {
        matches!(self, Self::NotSupported { call, .. } if *call == "nvmlDeviceSetMemoryLockedClocks")
    }

    /// Does nothing work before this passes? Then the clocks are given back until it does.
    pub(crate) fn is_waited_out(&self) -> bool {
        self.fault().reaction() == Reaction::WaitOut && !self.is_missing_sensor()
    }

    /// A sensor failed so: does that end the run? A missing one does not, nor does one that fails for the moment.
    pub fn ends_sampling(&self) -> bool {
        self.refusal().is_none() && !self.is_missing_sensor()
    }
}
