//! NVML's codes as [`GpuError`]: what the loop can do about them decides.

use nvml_wrapper::error::NvmlError;

use crate::gpu::GpuError;

/// `NVML_ERROR_FREQ_NOT_SUPPORTED`, which nvml-wrapper has no name for.
const FREQUENCY_NOT_SUPPORTED: u32 = 24;
/// `NVML_ERROR_ARGUMENT_VERSION_MISMATCH`: the driver knows another version of the call.
const ARGUMENT_VERSION_MISMATCH: u32 = 25;
/// `NVML_ERROR_DEPRECATED`.
const DEPRECATED: u32 = 26;
/// `NVML_ERROR_GPU_NOT_FOUND`.
const GPU_NOT_FOUND: u32 = 28;

/// A failed call on one GPU. `argument` is what was asked, empty for a plain query.
pub(super) fn call_failed(gpu: &str, call: &'static str, argument: &str, error: NvmlError) -> GpuError {
    let gpu = gpu.to_owned();
    match error {
        NvmlError::NoPermission => GpuError::NoPermission { gpu, call },
        // A function that the library lacks is one that the driver does not support.
        NvmlError::NotSupported
        | NvmlError::FailedToLoadSymbol(_)
        | NvmlError::FunctionNotFound
        | NvmlError::UnexpectedVariant(ARGUMENT_VERSION_MISMATCH | DEPRECATED) => {
            GpuError::NotSupported { gpu, call }
        }
        NvmlError::InvalidArg | NvmlError::UnexpectedVariant(FREQUENCY_NOT_SUPPORTED) => {
            GpuError::InvalidArgument { gpu, call, argument: argument.to_owned() }
        }
        NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::UnexpectedVariant(GPU_NOT_FOUND) => {
            GpuError::Lost { gpu, call }
        }
        NvmlError::DriverNotLoaded | NvmlError::Uninitialized | NvmlError::LibRmVersionMismatch => {
            GpuError::NoDriver { detail: error.to_string() }
        }
        other => GpuError::Failed { gpu, call, detail: other.to_string() },
    }
}

/// A failed initialisation.
pub(super) fn init_failed(error: NvmlError) -> GpuError {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound | NvmlError::FailedToLoadSymbol(_) => {
            GpuError::NoLibrary { detail: error.to_string() }
        }
        NvmlError::NoPermission => GpuError::NoPermission { gpu: "every GPU".to_owned(), call: "nvmlInit" },
        other => GpuError::NoDriver { detail: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mapping of one NVML code, with everything but the kind dropped.
    fn kind(code: u32) -> &'static str {
        match call_failed("GPU 0", "call", "7", NvmlError::from(code)) {
            GpuError::NoPermission { .. } => "no permission",
            GpuError::NotSupported { .. } => "not supported",
            GpuError::InvalidArgument { .. } => "invalid argument",
            GpuError::Lost { .. } => "lost",
            GpuError::NoDriver { .. } => "no driver",
            GpuError::Failed { .. } => "failed",
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_nvml_code_has_the_consequence_that_fits_it() {
        let table = [
            (1, "no driver"),
            (2, "invalid argument"),
            (3, "not supported"),
            (4, "no permission"),
            (6, "failed"),
            (7, "failed"),
            (9, "no driver"),
            (10, "failed"),
            (13, "not supported"),
            (15, "lost"),
            (16, "lost"),
            (17, "failed"),
            (18, "no driver"),
            (19, "failed"),
            (24, "invalid argument"),
            (25, "not supported"),
            (26, "not supported"),
            (28, "lost"),
            (999, "failed"),
        ];
        for (code, wanted) in table {
            assert_eq!(kind(code), wanted, "code {code}");
        }
    }

    #[test]
    fn refused_argument_is_named_in_the_message() {
        let error = call_failed(
            "GPU 0 (X)",
            "nvmlDeviceSetGpuLockedClocks",
            "900 MHz to 800 MHz",
            NvmlError::InvalidArg,
        );
        assert_eq!(
            error.to_string(),
            "GPU 0 (X): nvmlDeviceSetGpuLockedClocks: the driver refused the argument 900 MHz to 800 MHz"
        );
    }
}
