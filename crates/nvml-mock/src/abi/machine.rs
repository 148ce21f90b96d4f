//! Starting and ending, versions, and which GPUs there are.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::sync::atomic::Ordering::AcqRel;

use super::{
    Code, Device, INITIALISED, Library, device_of, getters, guarded, on_gpu, on_machine, put, put_text,
    release,
};
use crate::calls::Call;

/// Bus number of the first GPU; its others follow. Domain and device are 0.
const FIRST_BUS: usize = 1;

/// `nvmlPciInfo_t`.
#[repr(C)]
struct PciInfo {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    pci_device_id: c_uint,
    pci_subsystem_id: c_uint,
    bus_id: [c_char; 32],
}

fn initialise(call: Call) -> Code {
    guarded(|| {
        Library::get()?.announce(call, None)?;
        INITIALISED.fetch_add(1, AcqRel);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> Code {
    initialise(Call::nvmlInit_v2)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Code {
    initialise(Call::nvmlInitWithFlags)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> Code {
    on_machine(Call::nvmlShutdown, |_| release())
}

/// Text of a code, valid for ever. The one call that needs no initialisation.
#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: c_uint) -> *const c_char {
    let text: &CStr = match code {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        15 => c"GPU is lost",
        16 => c"GPU requires reset",
        18 => c"Driver/library version mismatch",
        19 => c"In use by another client",
        25 => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) -> Code {
    on_machine(Call::nvmlSystemGetDriverVersion, |library| {
        // SAFETY: NVML's contract: `to` has room for `length` bytes.
        unsafe { put_text(to, length, &library.state.config().driver_version) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetNVMLVersion(to: *mut c_char, length: c_uint) -> Code {
    on_machine(Call::nvmlSystemGetNVMLVersion, |library| {
        // SAFETY: NVML's contract: `to` has room for `length` bytes.
        unsafe { put_text(to, length, &format!("13.{}", library.state.config().driver_version)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(to: *mut c_int) -> Code {
    // SAFETY: NVML's contract: `to` is null or valid.
    on_machine(Call::nvmlSystemGetCudaDriverVersion_v2, |_| unsafe { put(to, 13_000) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(to: *mut c_uint) -> Code {
    on_machine(Call::nvmlDeviceGetCount_v2, |library| {
        let count = c_uint::try_from(library.state.gpu_count()).unwrap_or(0);
        // SAFETY: NVML's contract: `to` is null or valid.
        unsafe { put(to, count) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut Device) -> Code {
    on_machine(Call::nvmlDeviceGetHandleByIndex_v2, |library| {
        let index = index as usize;
        library.state.gpu_config(index)?;
        // SAFETY: NVML's contract: `to` is null or valid.
        unsafe { put(to, device_of(index)) }
    })
}

/// Writes the handle of the GPU for which `fits` holds of its index and the caller's text.
///
/// # Safety
/// `key` is null or a C string, `to` null or valid.
unsafe fn find(
    call: Call,
    key: *const c_char,
    to: *mut Device,
    fits: impl Fn(&Library, usize, &str) -> bool,
) -> Code {
    on_machine(call, |library| {
        if key.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not null, hence a C string by the caller's promise.
        let key = unsafe { CStr::from_ptr(key) }.to_str().map_err(|_| Code::NOT_FOUND)?;
        let index =
            (0..library.state.gpu_count()).find(|index| fits(library, *index, key)).ok_or(Code::NOT_FOUND)?;
        // SAFETY: `to` is null or valid by the caller's promise.
        unsafe { put(to, device_of(index)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, to: *mut Device) -> Code {
    let fits = |library: &Library, index: usize, uuid: &str| {
        library.state.config().gpus.get(index).is_some_and(|gpu| gpu.uuid == uuid)
    };
    // SAFETY: NVML's contract: `uuid` is a C string, `to` valid.
    unsafe { find(Call::nvmlDeviceGetHandleByUUID, uuid, to, fits) }
}

/// Bus id with a domain of four (legacy) or eight digits.
fn bus_id(index: usize, domain_digits: usize) -> String {
    format!("{:0domain_digits$x}:{:02x}:00.0", 0, index + FIRST_BUS)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(id: *const c_char, to: *mut Device) -> Code {
    let fits = |_: &Library, index: usize, id: &str| {
        [4, 8].iter().any(|digits| id.eq_ignore_ascii_case(&bus_id(index, *digits)))
    };
    // SAFETY: NVML's contract: `id` is a C string, `to` valid.
    unsafe { find(Call::nvmlDeviceGetHandleByPciBusId_v2, id, to, fits) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(device: Device, to: *mut c_char, length: c_uint) -> Code {
    on_gpu(Call::nvmlDeviceGetName, device, |gpu| {
        // SAFETY: NVML's contract: `to` has room for `length` bytes.
        unsafe { put_text(to, length, &gpu.config()?.name) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(device: Device, to: *mut c_char, length: c_uint) -> Code {
    on_gpu(Call::nvmlDeviceGetUUID, device, |gpu| {
        // SAFETY: NVML's contract: `to` has room for `length` bytes.
        unsafe { put_text(to, length, &gpu.config()?.uuid) }
    })
}

/// A text as a zero-padded C array.
fn padded<const N: usize>(text: &str) -> [c_char; N] {
    let mut bytes = text.bytes().take(N - 1);
    std::array::from_fn(|_| bytes.next().map_or(0, u8::cast_signed))
}

getters! {
    nvmlDeviceGetIndex: c_uint = |gpu| gpu.number();
    nvmlDeviceGetMinorNumber: c_uint = |gpu| gpu.number();
    nvmlDeviceGetPciInfo_v3: PciInfo = |gpu| PciInfo {
        bus_id_legacy: padded(&bus_id(gpu.index, 4)),
        domain: 0,
        bus: c_uint::try_from(gpu.index + FIRST_BUS).unwrap_or(0),
        device: 0,
        pci_device_id: 0x20b2_10de,
        pci_subsystem_id: 0x1463_10de,
        bus_id: padded(&bus_id(gpu.index, 8)),
    };
    nvmlDeviceGetPersistenceMode: c_uint = |gpu| c_uint::from(gpu.config()?.persistence);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: Device,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> Code {
    on_gpu(Call::nvmlDeviceGetMigMode, device, |gpu| {
        let mode = c_uint::from(gpu.config()?.mig.ok_or(Code::NOT_SUPPORTED)?);
        // SAFETY: NVML's contract: both are null or valid.
        unsafe { put(current, mode).and_then(|()| put(pending, mode)) }
    })
}
