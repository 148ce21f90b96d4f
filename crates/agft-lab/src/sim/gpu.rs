//! The simulated GPU behind the traits of the real one.
//!
//! Every access first moves the world to the present, whatever the caller's clock calls present: real time in the demo,
//! virtual time in tests.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::board::Refusal;
use super::world::{ClockCall, World};
use agft::gpu::{GpuClocks, GpuError, GpuInfo, GpuReading, GpuSensors, SupportedClocks};
use agft::units::{Mhz, Millijoules, Time, Watts};

/// A world that a server and a controller look at together.
pub type SharedWorld = Arc<Mutex<World>>;

/// What time it is in the world.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// A world to be shared.
#[must_use]
pub fn shared(world: World) -> SharedWorld {
    Arc::new(Mutex::new(world))
}

/// Locks the world and moves it to the present.
pub(super) fn at_present<'a>(world: &'a SharedWorld, clock: &Clock) -> MutexGuard<'a, World> {
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    world.advance(clock());
    world
}

/// The simulated GPU; sensors and clocks are two handles on the same board.
#[derive(Clone)]
pub struct SimGpu {
    world: SharedWorld,
    clock: Clock,
    info: GpuInfo,
    may_write: bool,
}

impl fmt::Debug for SimGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimGpu")
            .field("info", &self.info)
            .field("may_write", &self.may_write)
            .finish_non_exhaustive()
    }
}

impl SimGpu {
    /// A handle on the board in `world`.
    #[must_use]
    pub fn new(world: SharedWorld, clock: Clock) -> Self {
        let guard = world.lock().unwrap_or_else(PoisonError::into_inner);
        let info = GpuInfo {
            index: 0,
            uuid: format!("GPU-51a0{:04x}-0000-4000-8000-000000000000", guard.gpu().core_reached.0),
            name: guard.gpu().name.to_owned(),
            driver_version: Some("simulated".to_owned()),
            power_limit: Some(guard.power_cap()),
            power_limit_max: None,
        };
        drop(guard);
        Self { world, clock, info, may_write: true }
    }

    /// Sensors and clocks of the board in `world`.
    #[must_use]
    pub fn pair(world: &SharedWorld, clock: &Clock) -> (Self, Self) {
        let gpu = Self::new(world.clone(), clock.clone());
        (gpu.clone(), gpu)
    }

    /// The same handle without the right to write clocks: the driver answers "no permission".
    #[must_use]
    pub fn without_permission(mut self) -> Self {
        self.may_write = false;
        self
    }

    fn write(&self, call: ClockCall) -> Result<(), GpuError> {
        let mut world = at_present(&self.world, &self.clock);
        let (name, argument) = describe(call);
        let gpu = self.info.to_string();
        if !self.may_write {
            world.note_write(call, false);
            return Err(GpuError::NoPermission { gpu, call: name });
        }
        world.write_clocks(call).map_err(|refusal| match refusal {
            Refusal::NotSupported => GpuError::NotSupported { gpu, call: name },
            Refusal::InvalidArgument => GpuError::InvalidArgument { gpu, call: name, argument },
        })
    }
}

/// The NVML call and its argument.
fn describe(call: ClockCall) -> (&'static str, String) {
    match call {
        ClockCall::LockCore(min, max) => ("nvmlDeviceSetGpuLockedClocks", format!("[{min}, {max}]")),
        ClockCall::LockMemory(min, max) => ("nvmlDeviceSetMemoryLockedClocks", format!("[{min}, {max}]")),
        ClockCall::ResetCore => ("nvmlDeviceResetGpuLockedClocks", String::new()),
        ClockCall::ResetMemory => ("nvmlDeviceResetMemoryLockedClocks", String::new()),
    }
}

impl GpuSensors for SimGpu {
    fn info(&self) -> &GpuInfo {
        &self.info
    }

    fn supported_clocks(&self) -> Result<SupportedClocks, GpuError> {
        at_present(&self.world, &self.clock).supported_clocks().ok_or_else(|| GpuError::NotSupported {
            gpu: self.info.to_string(),
            call: "nvmlDeviceGetSupportedMemoryClocks",
        })
    }

    fn reading(&self) -> Result<GpuReading, GpuError> {
        Ok(at_present(&self.world, &self.clock).reading())
    }

    fn power(&self) -> Result<Watts, GpuError> {
        Ok(at_present(&self.world, &self.clock).power())
    }

    fn energy(&self) -> Result<Millijoules, GpuError> {
        Ok(at_present(&self.world, &self.clock).energy_counter())
    }
}

impl GpuClocks for SimGpu {
    fn info(&self) -> &GpuInfo {
        &self.info
    }

    fn lock_core(&mut self, min: Mhz, max: Mhz) -> Result<(), GpuError> {
        self.write(ClockCall::LockCore(min, max))
    }

    fn lock_memory(&mut self, min: Mhz, max: Mhz) -> Result<(), GpuError> {
        self.write(ClockCall::LockMemory(min, max))
    }

    fn reset_core(&mut self) -> Result<(), GpuError> {
        self.write(ClockCall::ResetCore)
    }

    fn reset_memory(&mut self) -> Result<(), GpuError> {
        self.write(ClockCall::ResetMemory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{ClockWrite, Pattern, WorldSpec};

    fn gpu(card: &str) -> (SharedWorld, SimGpu) {
        let world =
            shared(World::new(WorldSpec::named(card, "3b", Pattern::Steady, None).unwrap(), 1).unwrap());
        let clock: Clock = Arc::new(|| Time(5.0));
        let gpu = SimGpu::new(world.clone(), clock);
        (world, gpu)
    }

    #[test]
    fn every_call_is_in_the_history_with_the_drivers_answer() {
        let (world, mut gpu) = gpu("a40");
        gpu.lock_core(Mhz(210), Mhz(900)).unwrap();
        gpu.lock_memory(Mhz(405), Mhz(405)).unwrap();
        assert!(matches!(gpu.lock_core(Mhz(210), Mhz(9000)), Err(GpuError::InvalidArgument { .. })));
        assert!(matches!(gpu.lock_core(Mhz(900), Mhz(800)), Err(GpuError::InvalidArgument { .. })));
        gpu.reset_core().unwrap();
        gpu.reset_memory().unwrap();
        let mut refused = gpu.clone().without_permission();
        assert!(matches!(refused.reset_core(), Err(GpuError::NoPermission { .. })));
        let write = |call, accepted| ClockWrite { at: Time(5.0), call, accepted };
        let expected = [
            write(ClockCall::LockCore(Mhz(210), Mhz(900)), true),
            write(ClockCall::LockMemory(Mhz(405), Mhz(405)), true),
            write(ClockCall::LockCore(Mhz(210), Mhz(9000)), false),
            write(ClockCall::LockCore(Mhz(900), Mhz(800)), false),
            write(ClockCall::ResetCore, true),
            write(ClockCall::ResetMemory, true),
            write(ClockCall::ResetCore, false),
        ];
        assert_eq!(world.lock().unwrap().writes(), expected);
    }

    #[test]
    fn one_memory_clock_cannot_be_locked() {
        let (_, mut gpu) = gpu("h100");
        assert!(matches!(gpu.lock_memory(Mhz(2619), Mhz(2619)), Err(GpuError::NotSupported { .. })));
        assert!(matches!(gpu.reset_memory(), Err(GpuError::NotSupported { .. })));
    }

    #[test]
    fn reading_moves_the_world_to_the_present() {
        let (world, gpu) = gpu("a100");
        assert!(gpu.power().unwrap() > Watts(0.0));
        assert_eq!(world.lock().unwrap().now(), Time(5.0));
        let clocks = gpu.supported_clocks().unwrap();
        assert_eq!((clocks.core().len(), clocks.core_min(), clocks.core_max()), (81, Mhz(210), Mhz(1410)));
    }
}
