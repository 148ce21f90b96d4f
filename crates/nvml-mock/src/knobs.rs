//! What a test sets on a mocked GPU, and what it reads without going through the library.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

use crate::MockError;
use crate::layout::MAX_PROCESSES;
use crate::model::BY_DRIVER;
use crate::state::{Locks, MockState};

/// A GPU at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// Product name.
    pub name: String,
    /// Identity.
    pub uuid: String,
    /// Share of the time a kernel runs, 0 to 1.
    pub load: f64,
    /// Running core clock, MHz.
    pub core_mhz: u32,
    /// Running memory clock, MHz.
    pub memory_mhz: u32,
    /// Locks in force.
    pub locks: Locks,
    /// Instantaneous power, as the sensor shows it, watts.
    pub power_w: f64,
    /// Energy counter, millijoules.
    pub energy_mj: u64,
    /// Degrees Celsius.
    pub temperature_c: u32,
    /// Event reason bits.
    pub event_reasons: u64,
    /// The GPU fell off the bus.
    pub lost: bool,
}

impl MockState {
    /// Number of GPUs.
    pub fn gpu_count(&self) -> usize {
        self.config().gpus.len()
    }

    /// A GPU as it is now.
    pub fn snapshot(&self, gpu: usize) -> Result<Snapshot, MockError> {
        self.read(gpu, |config, state, now| {
            let (core_mhz, memory_mhz) = state.clocks(now);
            Snapshot {
                name: config.name.clone(),
                uuid: config.uuid.clone(),
                load: state.load,
                core_mhz,
                memory_mhz,
                locks: state.locks(),
                power_w: state.power_instant(config, now),
                energy_mj: state.energy_counter(config, now),
                temperature_c: state.temperature_c,
                event_reasons: state.event_reasons(config, now),
                lost: state.lost,
            }
        })
    }

    /// Locks in force, as they were asked for.
    pub fn locks(&self, gpu: usize) -> Result<Locks, MockError> {
        self.read(gpu, |_, state, _| state.locks())
    }

    /// Share of the time a kernel runs, clamped to 0 to 1 (not a number: 0). Above 0 the clocks go to the upper bound
    /// of their lock.
    pub fn set_load(&self, gpu: usize, load: f64) -> Result<(), MockError> {
        let load = if load.is_nan() { 0.0 } else { load.clamp(0.0, 1.0) };
        self.change(gpu, |state| state.load = load)
    }

    /// Degrees Celsius.
    pub fn set_temperature(&self, gpu: usize, celsius: u32) -> Result<(), MockError> {
        self.change(gpu, |state| state.temperature_c = celsius)
    }

    /// Event (throttle) reason bits to show beside those that follow from load and lock.
    pub fn set_event_reasons(&self, gpu: usize, bits: u64) -> Result<(), MockError> {
        self.change(gpu, |state| state.reasons = bits)
    }

    /// Takes the GPU off the bus: every call answers `GPU_IS_LOST`. Or puts it back.
    pub fn set_lost(&self, gpu: usize, lost: bool) -> Result<(), MockError> {
        self.change(gpu, |state| state.lost = lost)
    }

    /// From now on the driver takes locks and resets, and the clocks stay where they are. Or follow again.
    pub fn set_stuck(&self, gpu: usize, stuck: bool) -> Result<(), MockError> {
        self.change(gpu, |state| state.stuck = stuck)
    }

    /// The processes with a context on the GPU: id, and bytes of the GPU's memory held.
    /// Errors: [`MockError::NoSuchGpu`]; [`MockError::Config`] for more than [`MAX_PROCESSES`], or the id 0.
    pub fn set_processes(&self, gpu: usize, processes: &[(u32, u64)]) -> Result<(), MockError> {
        if processes.len() > MAX_PROCESSES || processes.iter().any(|(pid, _)| *pid == 0) {
            return Err(MockError::Config(format!("at most {MAX_PROCESSES} processes, none with the id 0")));
        }
        let _locked = self.lock();
        let list = self.shared().processes.get(gpu).ok_or(MockError::NoSuchGpu(gpu))?;
        let ended = std::iter::repeat((0, 0));
        for ([pid, bytes], process) in list.iter().zip(processes.iter().copied().chain(ended)) {
            pid.store(process.0.into(), Relaxed);
            bytes.store(process.1, Relaxed);
        }
        Ok(())
    }

    /// The processes with a context on the GPU, as they were set.
    pub fn processes(&self, gpu: usize) -> Result<Vec<(u32, u64)>, MockError> {
        let _locked = self.lock();
        let list = self.shared().processes.get(gpu).ok_or(MockError::NoSuchGpu(gpu))?;
        let pid = |word: &AtomicU64| u32::try_from(word.load(Relaxed)).unwrap_or(u32::MAX);
        let listed = list.iter().map(|[id, bytes]| (pid(id), bytes.load(Relaxed)));
        Ok(listed.take_while(|(pid, _)| *pid != 0).collect())
    }

    /// What reloading the driver does to a GPU: no locks, and the energy counter starts again from 0.
    pub fn reload_driver(&self, gpu: usize) -> Result<(), MockError> {
        self.change(gpu, |state| {
            (state.core_lock, state.memory_lock, state.pstate) = (None, None, BY_DRIVER);
            (state.energy_mj, state.shown_mj) = (0.0, 0);
        })
    }
}
