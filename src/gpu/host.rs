//! The seam to a vendor's library: who lists the machine's GPUs, reads them and sets their clocks.
//!
//! Nothing above this names a vendor's library. New hardware is a folder beside `nvml/` and a line in
//! `open`.

use super::nvml::NvmlHost;
use super::pstate::MayBeForced;
use super::{GpuClocks, GpuError, GpuInfo, GpuSelector, GpuSensors};

/// The GPUs of a machine.
pub trait Host: Send + Sync {
    /// Every GPU that answers, in the driver's order. One that does not is left out with a warning.
    /// Errors: [`GpuError`] if not even their number can be had.
    fn list(&self) -> Result<Vec<GpuInfo>, GpuError>;

    /// The sensors of one GPU.
    /// Errors: [`GpuError::NotFound`], or what [`list`](Self::list) gives.
    fn sensors(&self, selector: &GpuSelector) -> Result<Box<dyn GpuSensors>, GpuError>;

    /// The clock controls of one GPU. Getting them needs no privilege; using them does.
    /// Errors: [`GpuError::NotFound`], or what [`list`](Self::list) gives.
    fn clocks(&self, selector: &GpuSelector) -> Result<Box<dyn GpuClocks>, GpuError>;

    /// Controls that lower clocks by forcing the performance state `state`.
    /// Errors: [`GpuError`] if this machine or its driver cannot, or the GPU cannot be told for certain.
    fn state_clocks(&self, gpu: &GpuInfo, state: u32) -> Result<Box<dyn GpuClocks>, GpuError>;

    /// Can a performance state be forced on this GPU, whatever the driver's version?
    fn has_states(&self, gpu: &GpuInfo) -> bool;

    /// What gives the clocks of a GPU back, whichever way they were lowered.
    /// Errors: [`GpuError`] as [`clocks`](Self::clocks) and [`state_clocks`](Self::state_clocks).
    fn clocks_to_reset(&self, uuid: &str, forced: MayBeForced) -> Result<Box<dyn GpuClocks>, GpuError>;

    /// The processes with a compute context on each GPU that answers and lists them, by the driver's ids:
    /// those of the first PID namespace, which this process may not be in.
    /// Errors: [`GpuError`] if a list cannot be had for the moment, or none at all: what is not whole would
    /// tell of servers that went.
    fn compute_processes(&self) -> Result<Vec<(GpuInfo, Vec<u32>)>, GpuError>;

    /// The kernel's name of the GPU's PCI device (`0000:65:00.0`), if the driver tells.
    fn pci_name(&self, uuid: &str) -> Option<String>;

    /// Is the GPU gone from the machine? Every GPU answers and none has this UUID, and the kernel knows no
    /// PCI device of this name. A GPU that does not answer is not gone.
    fn is_gone(&self, uuid: &str, pci: Option<&str>) -> bool;

    /// Ends the library and starts it again: a handle of before a reset of the GPU or the driver may be of no
    /// more use. Only while no other thread is in a call; sensors and clocks have to be opened again.
    /// Errors: [`GpuError`]: no call works before another try succeeds.
    fn restart(&self) -> Result<(), GpuError>;

    /// What was loaded, and what is missing that may matter: subject and text, for `agft check`.
    fn libraries(&self) -> Vec<(&'static str, String)>;
}

/// A host, open to the end of the process.
pub(crate) type AnyHost = &'static dyn Host;

/// Loads the driver's library and initialises it. Once: it costs 0.1 s to seconds on a real driver.
pub(crate) fn open() -> Result<AnyHost, GpuError> {
    Ok(Box::leak(Box::new(NvmlHost::open()?)))
}
