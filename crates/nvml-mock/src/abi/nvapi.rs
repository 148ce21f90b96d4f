//! What a copy of this library answers as `libnvidia-api.so.1`: performance states of the same GPUs.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::Ordering::AcqRel;

use super::{
    Code, Device, INITIALISED, Library, device_of, guarded, on_gpu, on_machine, put, put_text, write_gpu,
};
use crate::calls::Call;

/// NVAPI's `NVAPI_MAX_PHYSICAL_GPUS`.
const ROOM: usize = 64;
/// `NvAPI_ShortString`.
const TEXT: c_uint = 64;
/// Bus number of the first GPU, as NVML has it.
const FIRST_BUS: usize = 1;

/// NVML's codes are positive, NVAPI's negative.
fn status(code: Code) -> c_int {
    match code {
        Code::SUCCESS => 0,
        Code::NOT_SUPPORTED => -104,
        Code::NO_PERMISSION => -137,
        Code::INVALID_ARGUMENT => -5,
        Code::UNINITIALIZED => -4,
        _ => -1,
    }
}

extern "C" fn initialize() -> c_int {
    status(guarded(|| {
        Library::get()?.announce(Call::NvAPI_Initialize, None)?;
        INITIALISED.fetch_add(1, AcqRel);
        Ok(())
    }))
}

unsafe extern "C" fn enumerate(to: *mut Device, count: *mut c_uint) -> c_int {
    status(on_machine(Call::NvAPI_EnumPhysicalGPUs, |library| {
        let found = library.state.config().gpus.len().min(ROOM);
        for index in 0..found {
            // SAFETY: NVAPI's contract: `to` has room for 64 handles.
            unsafe { to.add(index).write(device_of(index)) };
        }
        // SAFETY: NVAPI's contract: `count` is null or valid.
        unsafe { put(count, c_uint::try_from(found).unwrap_or(0)) }
    }))
}

unsafe extern "C" fn bus_id(device: Device, to: *mut c_uint) -> c_int {
    status(on_gpu(Call::NvAPI_GPU_GetBusId, device, |gpu| {
        // SAFETY: NVAPI's contract: `to` is null or valid.
        unsafe { put(to, c_uint::try_from(gpu.index + FIRST_BUS).unwrap_or(0)) }
    }))
}

extern "C" fn set_force_pstate(device: Device, pstate: c_uint, fallback: c_uint) -> c_int {
    status(write_gpu(Call::NvAPI_GPU_SetForcePstate, device, [pstate, fallback], |_, state| {
        state.pstate = pstate;
        Ok(())
    }))
}

unsafe extern "C" fn error_message(_status: c_int, to: *mut c_char) -> c_int {
    // SAFETY: NVAPI's contract: `to` has room for 64 characters.
    status(guarded(|| unsafe { put_text(to, TEXT, "NVAPI_ERROR") }))
}

/// The one function that NVAPI exports: all others are asked for by number.
#[unsafe(no_mangle)]
extern "C" fn nvapi_QueryInterface(id: c_uint) -> *const c_void {
    match id {
        0x0150_e828 => initialize as *const c_void,
        0xe5ac_921f => enumerate as *const c_void,
        0x1be0_b8e5 => bus_id as *const c_void,
        0x025b_fb10 => set_force_pstate as *const c_void,
        0x6c2d_048c => error_message as *const c_void,
        _ => std::ptr::null(),
    }
}
