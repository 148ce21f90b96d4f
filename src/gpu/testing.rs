//! GPUs that tests make up.

use super::{GpuClocks, GpuError, GpuInfo};
use crate::units::Mhz;

pub(crate) fn info(uuid: &str) -> GpuInfo {
    GpuInfo {
        index: 0,
        uuid: uuid.into(),
        name: "fake".into(),
        driver_version: None,
        power_limit: None,
        power_limit_max: None,
    }
}

/// Clocks that answer what `call` says to "lock core", "lock memory", "reset core" and "reset memory".
pub(crate) struct FakeClocks<F> {
    pub(crate) info: GpuInfo,
    pub(crate) call: F,
}

impl<F: FnMut(&'static str) -> Result<(), GpuError> + Send> GpuClocks for FakeClocks<F> {
    fn info(&self) -> &GpuInfo {
        &self.info
    }

    fn lock_core(&mut self, _: Mhz, _: Mhz) -> Result<(), GpuError> {
        (self.call)("lock core")
    }

    fn lock_memory(&mut self, _: Mhz, _: Mhz) -> Result<(), GpuError> {
        (self.call)("lock memory")
    }

    fn reset_core(&mut self) -> Result<(), GpuError> {
        (self.call)("reset core")
    }

    fn reset_memory(&mut self) -> Result<(), GpuError> {
        (self.call)("reset memory")
    }
}
