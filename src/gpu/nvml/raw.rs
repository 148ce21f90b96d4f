//! A few calls that nvml-wrapper has no sound form of, made through the symbols it loaded.
#![expect(unsafe_code, reason = "C calls through nvml-wrapper's function pointers")]

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try, nvml_try_count};
use nvml_wrapper::{Device, Nvml};

/// Core clocks supported beside a memory clock, MHz.
///
/// nvml-wrapper offers room for 128 and takes "too little room" for success: on a board with more clocks (V100, Ada,
/// Blackwell) its list is 128 zeros. Here the driver is asked for the length first.
pub(super) fn supported_core_clocks(device: &Device<'_>, memory_mhz: u32) -> Result<Vec<u32>, NvmlError> {
    let list = nvml_sym(device.nvml().lib().nvmlDeviceGetSupportedGraphicsClocks.as_ref())?;
    let mut count = 0;
    // SAFETY: the handle is valid as long as `device`; with a count of 0 the driver writes the length alone.
    nvml_try_count(unsafe { list(device.handle(), memory_mhz, &raw mut count, std::ptr::null_mut()) })?;
    let mut clocks = vec![0; count as usize];
    // SAFETY: as above; `clocks` has room for `count` items.
    nvml_try(unsafe { list(device.handle(), memory_mhz, &raw mut count, clocks.as_mut_ptr()) })?;
    clocks.truncate(count as usize);
    Ok(clocks)
}

/// Ends NVML and starts it again. An end that fails means that it had not been started.
pub(super) fn restart(nvml: &Nvml) -> Result<(), NvmlError> {
    let end = nvml_sym(nvml.lib().nvmlShutdown.as_ref())?;
    let start = nvml_sym(nvml.lib().nvmlInit_v2.as_ref())?;
    // SAFETY: both take nothing; a handle of before is refused or still valid in the driver, never a dangling pointer
    // of ours, and callers open theirs again.
    let _ = nvml_try(unsafe { end() });
    // SAFETY: as above.
    nvml_try(unsafe { start() })
}

/// Clock event reasons as the driver's bits; [`NvmlError::FailedToLoadSymbol`] before driver 535, whose name for them
/// was throttle reasons.
pub(super) fn clock_event_reasons(device: &Device<'_>) -> Result<u64, NvmlError> {
    let ask = nvml_sym(device.nvml().lib().nvmlDeviceGetCurrentClocksEventReasons.as_ref())?;
    let mut bits = 0;
    // SAFETY: the handle is valid as long as `device`; `bits` is a valid place for the answer.
    nvml_try(unsafe { ask(device.handle(), &raw mut bits) })?;
    Ok(bits)
}
