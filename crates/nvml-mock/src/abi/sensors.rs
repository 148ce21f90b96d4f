//! Power, energy, utilisation, temperature, memory and processes.

use std::ffi::{c_int, c_longlong, c_uint, c_ulonglong};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Code, Device, Gpu, getters, on_gpu, put, put_list};
use crate::calls::Call;

/// Field ids of `nvmlDeviceGetFieldValues`.
const FIELD_TOTAL_ENERGY: c_uint = 83;
const FIELD_POWER_AVERAGE: c_uint = 185;
const FIELD_POWER_INSTANT: c_uint = 186;

/// `nvmlValueType_t`.
const VALUE_UNSIGNED_INT: c_uint = 1;
const VALUE_UNSIGNED_LONG_LONG: c_uint = 3;

/// A versioned struct carries its size and version in its first word.
const fn version_of<T>(version: c_uint) -> c_uint {
    #[expect(clippy::cast_possible_truncation, reason = "sizes of a few words")]
    let size = size_of::<T>() as c_uint;
    size | version << 24
}

/// `nvmlUtilization_t`, percent.
#[repr(C)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// `nvmlTemperature_v1_t`.
#[repr(C)]
struct TemperatureV1 {
    version: c_uint,
    sensor: c_uint,
    celsius: c_int,
}

/// `nvmlMemory_t`, bytes.
#[repr(C)]
struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlMemory_v2_t`, bytes.
#[repr(C)]
struct MemoryV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlFieldValue_t`; `value` is a union of which the integers are used here.
#[repr(C)]
struct FieldValue {
    field: c_uint,
    scope: c_uint,
    timestamp_us: c_longlong,
    latency_us: c_longlong,
    kind: c_uint,
    code: c_uint,
    value: c_ulonglong,
}

/// `nvmlProcessInfo_v1_t`.
#[repr(C)]
struct ProcessV1 {
    pid: c_uint,
    bytes: c_ulonglong,
}

/// `nvmlProcessInfo_v2_t`, which version 3 of the call fills too.
#[repr(C)]
struct ProcessV2 {
    pid: c_uint,
    bytes: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "watts of a board, checked not negative"
)]
fn milliwatts(watts: f64) -> c_uint {
    (watts * 1e3).round() as c_uint
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of 0 to 1")]
fn percent(share: f64) -> c_uint {
    (share * 100.0).round() as c_uint
}

fn power_usage(gpu: Gpu) -> Result<c_uint, Code> {
    if let Some(value) = gpu.said_short(Call::nvmlDeviceGetPowerUsage) {
        return Ok(value);
    }
    if !gpu.config()?.power_usage {
        return Err(Code::NOT_SUPPORTED);
    }
    gpu.read(|config, state, now| milliwatts(state.power_usage(config, now)))
}

fn power_instant(gpu: Gpu) -> Result<c_uint, Code> {
    if let Some(value) = gpu.said_short(Call::nvmlDeviceGetFieldValues) {
        return Ok(value);
    }
    if !gpu.config()?.power_instant {
        return Err(Code::NOT_SUPPORTED);
    }
    gpu.read(|config, state, now| milliwatts(state.power_instant(config, now)))
}

fn energy(gpu: Gpu) -> Result<c_ulonglong, Code> {
    if let Some(value) = gpu.said(Call::nvmlDeviceGetTotalEnergyConsumption) {
        return Ok(value);
    }
    if !gpu.config()?.energy_counter {
        return Err(Code::NOT_SUPPORTED);
    }
    gpu.read(|config, state, now| state.energy_counter(config, now))
}

fn utilization(gpu: Gpu) -> Result<Utilization, Code> {
    if !gpu.config()?.utilization {
        return Err(Code::NOT_SUPPORTED);
    }
    let busy = match gpu.said_short(Call::nvmlDeviceGetUtilizationRates) {
        Some(value) => value,
        None => gpu.read(|_, state, _| percent(state.load))?,
    };
    Ok(Utilization { gpu: busy, memory: busy })
}

fn memory(gpu: Gpu) -> Result<Memory, Code> {
    let total = gpu.config()?.memory_bytes;
    let held = gpu.library.state.processes(gpu.index)?.iter().map(|(_, bytes)| bytes).sum::<u64>();
    let used = held.min(total);
    Ok(Memory { total, free: total - used, used })
}

getters! {
    nvmlDeviceGetPowerUsage: c_uint = |gpu| power_usage(gpu)?;
    nvmlDeviceGetEnforcedPowerLimit: c_uint = |gpu| milliwatts(gpu.config()?.tdp_w);
    nvmlDeviceGetPowerManagementLimit: c_uint = |gpu| milliwatts(gpu.config()?.tdp_w);
    nvmlDeviceGetPowerManagementDefaultLimit: c_uint = |gpu| milliwatts(gpu.config()?.tdp_w);
    nvmlDeviceGetTotalEnergyConsumption: c_ulonglong = |gpu| energy(gpu)?;
    nvmlDeviceGetUtilizationRates: Utilization = |gpu| utilization(gpu)?;
    nvmlDeviceGetMemoryInfo: Memory = |gpu| memory(gpu)?;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerManagementLimitConstraints(
    device: Device,
    min: *mut c_uint,
    max: *mut c_uint,
) -> Code {
    on_gpu(Call::nvmlDeviceGetPowerManagementLimitConstraints, device, |gpu| {
        let tdp = gpu.config()?.tdp_w;
        // SAFETY: NVML's contract: both are null or valid.
        unsafe { put(min, milliwatts(tdp / 2.0)).and_then(|()| put(max, milliwatts(tdp))) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperature(device: Device, sensor: c_uint, to: *mut c_uint) -> Code {
    on_gpu(Call::nvmlDeviceGetTemperature, device, |gpu| {
        if sensor != 0 {
            return Err(Code::INVALID_ARGUMENT);
        }
        let celsius = match gpu.said_short(Call::nvmlDeviceGetTemperature) {
            Some(value) => value,
            None => gpu.read(|_, state, _| state.temperature_c)?,
        };
        // SAFETY: NVML's contract: `to` is null or valid.
        unsafe { put(to, celsius) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperatureV(device: Device, to: *mut TemperatureV1) -> Code {
    on_gpu(Call::nvmlDeviceGetTemperatureV, device, |gpu| {
        // SAFETY: NVML's contract: `to` is null or a struct of at least the size its first word names.
        let answer = unsafe { to.as_mut() }.ok_or(Code::INVALID_ARGUMENT)?;
        if answer.version != version_of::<TemperatureV1>(1) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        if answer.sensor != 0 {
            return Err(Code::INVALID_ARGUMENT);
        }
        answer.celsius =
            gpu.read(|_, state, _| c_int::try_from(state.temperature_c).unwrap_or(c_int::MAX))?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Device, to: *mut MemoryV2) -> Code {
    on_gpu(Call::nvmlDeviceGetMemoryInfo_v2, device, |gpu| {
        // SAFETY: NVML's contract: `to` is null or a struct of at least the size its first word names.
        let answer = unsafe { to.as_mut() }.ok_or(Code::INVALID_ARGUMENT)?;
        if answer.version != version_of::<MemoryV2>(2) {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        let Memory { total, free, used } = memory(gpu)?;
        *answer = MemoryV2 { version: answer.version, total, reserved: 0, free, used };
        Ok(())
    })
}

fn fill(gpu: Gpu, entry: &mut FieldValue) {
    let value = match entry.field {
        FIELD_TOTAL_ENERGY => energy(gpu).map(|mj| (VALUE_UNSIGNED_LONG_LONG, mj)),
        FIELD_POWER_AVERAGE => power_usage(gpu).map(|mw| (VALUE_UNSIGNED_INT, mw.into())),
        FIELD_POWER_INSTANT => power_instant(gpu).map(|mw| (VALUE_UNSIGNED_INT, mw.into())),
        _ => Err(Code::NOT_SUPPORTED),
    };
    match value {
        Ok((kind, value)) => (entry.kind, entry.value, entry.code) = (kind, value, Code::SUCCESS.0),
        Err(code) => entry.code = code.0,
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    entry.timestamp_us = c_longlong::try_from(now.as_micros()).unwrap_or(0);
    entry.latency_us = 0;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: Device,
    count: c_int,
    entries: *mut FieldValue,
) -> Code {
    on_gpu(Call::nvmlDeviceGetFieldValues, device, |gpu| {
        let count = usize::try_from(count).map_err(|_| Code::INVALID_ARGUMENT)?;
        if entries.is_null() || count == 0 {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: NVML's contract: `entries` points at `count` entries with their ids filled in.
        let entries = unsafe { std::slice::from_raw_parts_mut(entries, count) };
        entries.iter_mut().for_each(|entry| fill(gpu, entry));
        Ok(())
    })
}

/// A function that lists the processes with a context on the GPU, in that struct.
macro_rules! process_lists {
    ($($name:ident: $kind:ty = $make:expr;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(device: Device, count: *mut c_uint, to: *mut $kind) -> Code {
            on_gpu(Call::$name, device, |gpu| {
                let processes = gpu.library.state.processes(gpu.index)?;
                let make: fn(c_uint, c_ulonglong) -> $kind = $make;
                // SAFETY: NVML's contract: `to` has room for `*count` processes.
                unsafe { put_list(count, to, processes.into_iter().map(|(pid, bytes)| make(pid, bytes))) }
            })
        }
    )*};
}

fn process_v2(pid: c_uint, bytes: c_ulonglong) -> ProcessV2 {
    ProcessV2 { pid, bytes, gpu_instance: c_uint::MAX, compute_instance: c_uint::MAX }
}

process_lists! {
    nvmlDeviceGetComputeRunningProcesses: ProcessV1 = |pid, bytes| ProcessV1 { pid, bytes };
    nvmlDeviceGetComputeRunningProcesses_v2: ProcessV2 = process_v2;
    nvmlDeviceGetComputeRunningProcesses_v3: ProcessV2 = process_v2;
}
