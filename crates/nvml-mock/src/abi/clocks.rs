//! Clocks: which run, which are supported, and the locks.

use std::ffi::{c_uint, c_ulonglong};

use super::{Code, Device, Gpu, getters, on_gpu, put, put_list, write_gpu};
use crate::calls::Call;
use crate::config::GpuConfig;
use crate::model::Range;

/// `nvmlClockType_t`.
const CLOCK_GRAPHICS: c_uint = 0;
const CLOCK_MEMORY: c_uint = 2;
const CLOCK_VIDEO: c_uint = 3;

/// `nvmlClockId_t`.
const ID_CURRENT: c_uint = 0;
const ID_APPLICATION_TARGET: c_uint = 1;
const ID_APPLICATION_DEFAULT: c_uint = 2;
const ID_BOOST_MAX: c_uint = 3;

/// `nvmlClockLimitId_t`: numbers that stand for a limit instead of being one.
const LIMIT_FIRST: u32 = 0xffff_ff00;
const LIMIT_TDP: u32 = 0xffff_ff01;
const LIMIT_UNLIMITED: u32 = 0xffff_ff02;

/// Event reasons the mock may report.
const REASONS_SUPPORTED: c_ulonglong = 0x1ff;

/// What a pair of bounds means for the core clock: a lock, or none. Symbolic and numeric bounds do not mix.
fn core_lock(config: &GpuConfig, min: u32, max: u32) -> Result<Option<Range>, Code> {
    let base = config.base_core_mhz;
    Ok(match (min, max) {
        (LIMIT_UNLIMITED, LIMIT_UNLIMITED) => None,
        (LIMIT_TDP, LIMIT_TDP) => Some(Range { min: base, max: base }),
        (LIMIT_UNLIMITED, LIMIT_TDP) => Some(Range { min: config.min_core(), max: base }),
        (LIMIT_TDP, LIMIT_UNLIMITED) => Some(Range { min: base, max: config.max_core() }),
        _ => Some(numeric_lock(min, max)?),
    })
}

/// Bounds outside the supported clocks are taken: the GPU then runs at the nearest clock it has.
fn numeric_lock(min: u32, max: u32) -> Result<Range, Code> {
    if min > max || max == 0 || max >= LIMIT_FIRST {
        return Err(Code::INVALID_ARGUMENT);
    }
    Ok(Range { min, max })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceSetGpuLockedClocks(device: Device, min: c_uint, max: c_uint) -> Code {
    write_gpu(Call::nvmlDeviceSetGpuLockedClocks, device, [min, max], |config, state| {
        if !config.core_lock {
            return Err(Code::NOT_SUPPORTED);
        }
        state.core_lock = core_lock(config, min, max)?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceResetGpuLockedClocks(device: Device) -> Code {
    write_gpu(Call::nvmlDeviceResetGpuLockedClocks, device, [0, 0], |config, state| {
        if !config.core_lock {
            return Err(Code::NOT_SUPPORTED);
        }
        state.core_lock = None;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceSetMemoryLockedClocks(device: Device, min: c_uint, max: c_uint) -> Code {
    write_gpu(Call::nvmlDeviceSetMemoryLockedClocks, device, [min, max], |config, state| {
        if !config.memory_lock {
            return Err(Code::NOT_SUPPORTED);
        }
        state.memory_lock = Some(numeric_lock(min, max)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceResetMemoryLockedClocks(device: Device) -> Code {
    write_gpu(Call::nvmlDeviceResetMemoryLockedClocks, device, [0, 0], |config, state| {
        if !config.memory_lock {
            return Err(Code::NOT_SUPPORTED);
        }
        state.memory_lock = None;
        Ok(())
    })
}

fn running(gpu: Gpu, kind: c_uint) -> Result<c_uint, Code> {
    let (core, memory) = gpu.read(|_, state, now| state.clocks(now))?;
    match kind {
        CLOCK_MEMORY => Ok(memory),
        CLOCK_GRAPHICS..=CLOCK_VIDEO => Ok(core),
        _ => Err(Code::INVALID_ARGUMENT),
    }
}

fn highest(gpu: Gpu, kind: c_uint) -> Result<c_uint, Code> {
    match kind {
        CLOCK_MEMORY => Ok(gpu.config()?.max_memory()),
        CLOCK_GRAPHICS..=CLOCK_VIDEO => Ok(gpu.config()?.max_core()),
        _ => Err(Code::INVALID_ARGUMENT),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetClockInfo(device: Device, kind: c_uint, to: *mut c_uint) -> Code {
    on_gpu(Call::nvmlDeviceGetClockInfo, device, |gpu| {
        let clock = running(gpu, kind)?;
        // SAFETY: NVML's contract: `to` is null or valid.
        unsafe { put(to, clock) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMaxClockInfo(device: Device, kind: c_uint, to: *mut c_uint) -> Code {
    on_gpu(Call::nvmlDeviceGetMaxClockInfo, device, |gpu| {
        let clock = highest(gpu, kind)?;
        // SAFETY: NVML's contract: `to` is null or valid.
        unsafe { put(to, clock) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetClock(device: Device, kind: c_uint, id: c_uint, to: *mut c_uint) -> Code {
    on_gpu(Call::nvmlDeviceGetClock, device, |gpu| {
        let clock = match id {
            ID_CURRENT => running(gpu, kind)?,
            ID_BOOST_MAX => highest(gpu, kind)?,
            ID_APPLICATION_TARGET | ID_APPLICATION_DEFAULT => return Err(Code::NOT_SUPPORTED),
            _ => return Err(Code::INVALID_ARGUMENT),
        };
        // SAFETY: NVML's contract: `to` is null or valid.
        unsafe { put(to, clock) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetSupportedMemoryClocks(
    device: Device,
    count: *mut c_uint,
    to: *mut c_uint,
) -> Code {
    on_gpu(Call::nvmlDeviceGetSupportedMemoryClocks, device, |gpu| {
        let clocks = gpu.config()?.levels.iter().map(|level| level.memory_mhz);
        // SAFETY: NVML's contract: `to` has room for `*count` clocks.
        unsafe { put_list(count, to, clocks) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetSupportedGraphicsClocks(
    device: Device,
    memory: c_uint,
    count: *mut c_uint,
    to: *mut c_uint,
) -> Code {
    on_gpu(Call::nvmlDeviceGetSupportedGraphicsClocks, device, |gpu| {
        let clocks = gpu.config()?.core_clocks(memory);
        if clocks.is_empty() {
            return Err(Code::NOT_FOUND);
        }
        // SAFETY: NVML's contract: `to` has room for `*count` clocks.
        unsafe { put_list(count, to, clocks.iter().copied()) }
    })
}

/// `nvmlPstates_t`: P0 at the highest memory clock, P8 at the lowest of several, P5 between.
fn performance_state(gpu: Gpu) -> Result<c_uint, Code> {
    let lowest = gpu.config()?.levels.last().map_or(0, |level| level.memory_mhz);
    let memory = running(gpu, CLOCK_MEMORY)?;
    Ok(match memory {
        _ if memory == gpu.config()?.max_memory() => 0,
        _ if memory == lowest => 8,
        _ => 5,
    })
}

fn event_reasons(gpu: Gpu) -> Result<c_ulonglong, Code> {
    gpu.read(|config, state, now| state.event_reasons(config, now))
}

getters! {
    nvmlDeviceGetPerformanceState: c_uint = |gpu| performance_state(gpu)?;
    nvmlDeviceGetPowerState: c_uint = |gpu| performance_state(gpu)?;
    nvmlDeviceGetCurrentClocksEventReasons: c_ulonglong = |gpu| event_reasons(gpu)?;
    nvmlDeviceGetCurrentClocksThrottleReasons: c_ulonglong = |gpu| event_reasons(gpu)?;
    nvmlDeviceGetSupportedClocksEventReasons: c_ulonglong = |_gpu| REASONS_SUPPORTED;
    nvmlDeviceGetSupportedClocksThrottleReasons: c_ulonglong = |_gpu| REASONS_SUPPORTED;
}
