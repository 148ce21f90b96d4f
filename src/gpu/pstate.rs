//! A GPU whose clocks are lowered by forcing a performance state: lent, guarded and given back like a lock.

use super::nvapi::{BY_DRIVER, Nvapi, NvapiGpu};
use super::nvml::{NvmlClocks, NvmlHost};
use super::{GpuClocks, GpuError, GpuInfo, GpuSelector};
use crate::units::Mhz;

/// A branch of the driver that does not give a forced state back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StuckBranch {
    /// The number before the first dot of its versions.
    pub(crate) branch: &'static str,
    /// What happens.
    pub what: &'static str,
    /// Who says so.
    pub source: &'static str,
}

/// Drivers under which no state is forced.
pub(crate) const STUCK_BRANCHES: [StuckBranch; 1] = [StuckBranch {
    branch: "616",
    what: "a GPU stays in the low state under load until it is reset",
    source: "https://github.com/sasha0552/nvidia-pstated/issues/13",
}];

/// Why states are not forced under this driver, if so.
pub(crate) fn stuck_branch(driver: &str) -> Option<&'static StuckBranch> {
    let branch = driver.split('.').next()?;
    STUCK_BRANCHES.iter().find(|stuck| stuck.branch == branch)
}

/// What lowers and gives back the performance state of one GPU.
#[derive(Debug)]
pub(crate) struct PstateClocks {
    nvml: NvmlClocks,
    api: NvapiGpu,
    state: u32,
    /// Nobody says that a state was forced: a board that knows none is no failure.
    unsure: bool,
    label: String,
}

impl PstateClocks {
    /// Of the GPU with this UUID, with `state` as the low state.
    /// Errors: [`GpuError`] if there is no NVAPI, or its GPU on the same bus cannot be told for certain.
    pub(crate) fn open(host: NvmlHost, uuid: &str, state: u32) -> Result<Self, GpuError> {
        let nvml = host.clocks(&GpuSelector::Uuid(uuid.to_owned()))?;
        let label = nvml.info().to_string();
        let failed = |detail: String| GpuError::Failed { gpu: label.clone(), call: "NVAPI", detail };
        let api = Nvapi::open().map_err(|error| failed(error.to_string()))?;
        let bus = host.only_on_bus(uuid)?;
        let found = bus.and_then(|bus| api.gpu(bus));
        let api = found.ok_or_else(|| failed("no GPU, or more than one, is on its PCI bus number".into()))?;
        Ok(Self { nvml, api, state, unsure: false, label })
    }

    /// The same, if states may be forced under this driver at all.
    /// Errors: As [`open`](Self::open), and for the drivers of [`STUCK_BRANCHES`].
    pub(crate) fn open_to_force(host: NvmlHost, gpu: &GpuInfo, state: u32) -> Result<Self, GpuError> {
        let stuck = gpu.driver_version.as_deref().and_then(stuck_branch);
        if let Some(StuckBranch { branch, what, source }) = stuck {
            let detail = format!(
                "not used under drivers {branch}.x: {what} ({source}); use another driver, or leave the GPU out of park.gpus"
            );
            return Err(GpuError::Failed { gpu: gpu.to_string(), call: "NVAPI", detail });
        }
        Self::open(host, &gpu.uuid, state)
    }

    /// A board whose state is forced since it has no locks has none to reset.
    fn unless_not_supported(&self, reset: Result<(), GpuError>) -> Result<(), GpuError> {
        match reset {
            Err(GpuError::NotSupported { .. }) if !self.unsure => Ok(()),
            answer => answer,
        }
    }
}

impl GpuClocks for PstateClocks {
    fn info(&self) -> &GpuInfo {
        self.nvml.info()
    }

    fn forces_state(&self) -> bool {
        true
    }

    /// The state has its own clocks, whatever is asked for.
    fn lock_core(&mut self, _: Mhz, _: Mhz) -> Result<(), GpuError> {
        self.api.force(self.state, &self.label)
    }

    /// Part of the state.
    fn lock_memory(&mut self, _: Mhz, _: Mhz) -> Result<(), GpuError> {
        Ok(())
    }

    fn reset_core(&mut self) -> Result<(), GpuError> {
        let state = match self.api.force(BY_DRIVER, &self.label) {
            Err(GpuError::NotSupported { .. }) if self.unsure => Ok(()),
            answer => answer,
        };
        // Where the board locks clocks too, none may stay.
        let lock = self.nvml.reset_core();
        state.and(self.unless_not_supported(lock))
    }

    /// What was asked of the memory clock was part of the state.
    fn reset_memory(&mut self) -> Result<(), GpuError> {
        let lock = self.nvml.reset_memory();
        self.unless_not_supported(lock)
    }
}

/// What gives the clocks of a GPU back, whichever way they were lowered.
pub(crate) fn clocks_to_reset(
    host: NvmlHost,
    uuid: &str,
    forced: MayBeForced,
) -> Result<Box<dyn GpuClocks>, GpuError> {
    let by_state = match forced {
        MayBeForced::No => None,
        MayBeForced::Yes => Some(PstateClocks::open(host, uuid, BY_DRIVER)?),
        // Where there is no NVAPI for it, none was forced.
        MayBeForced::Unknown => PstateClocks::open(host, uuid, BY_DRIVER).ok(),
    };
    Ok(match by_state {
        Some(clocks) => Box::new(PstateClocks { unsure: forced == MayBeForced::Unknown, ..clocks }),
        None => Box::new(host.clocks(&GpuSelector::Uuid(uuid.to_owned()))?),
    })
}

/// Is a performance state forced?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayBeForced {
    /// It is not.
    No,
    /// It is, or may be.
    Yes,
    /// Who knew is not known any more.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branch_is_the_whole_number_before_the_first_dot() {
        for driver in ["616.56", "616.12.04", "616"] {
            assert_eq!(stuck_branch(driver), Some(&STUCK_BRANCHES[0]), "{driver}");
        }
        for driver in ["535.183.01", "580.65", "61.6", "6160.1", ""] {
            assert_eq!(stuck_branch(driver), None, "{driver}");
        }
    }
}
