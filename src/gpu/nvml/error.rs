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

/// `NVML_ERROR_NOT_READY`: the system is not ready for the request, as while a GPU is suspended.
const NOT_READY: u32 = 27;
/// `NVML_ERROR_INVALID_STATE`.
const INVALID_STATE: u32 = 29;

/// A failed call on one GPU. `argument` is what was asked, empty for a plain query. Exhaustive: a new error of
/// nvml-wrapper has to be sorted.
pub(super) fn call_failed(gpu: &str, call: &'static str, argument: &str, error: NvmlError) -> GpuError {
    let gpu = gpu.to_owned();
    #[expect(deprecated, reason = "an exhaustive match names the deprecated one too")]
    match error {
        NvmlError::NoPermission => GpuError::NoPermission { gpu, call },
        // A function that the library lacks is one that the driver does not support.
        NvmlError::NotSupported
        | NvmlError::FailedToLoadSymbol(_)
        | NvmlError::FunctionNotFound
        | NvmlError::VgpuEccNotSupported
        | NvmlError::UnexpectedVariant(ARGUMENT_VERSION_MISMATCH | DEPRECATED) => {
            GpuError::NotSupported { gpu, call }
        }
        NvmlError::InvalidArg | NvmlError::UnexpectedVariant(FREQUENCY_NOT_SUPPORTED) => {
            GpuError::InvalidArgument { gpu, call, argument: argument.to_owned() }
        }
        NvmlError::GpuLost | NvmlError::UnexpectedVariant(GPU_NOT_FOUND) => GpuError::Lost { gpu, call },
        NvmlError::ResetRequired => GpuError::ResetRequired { gpu, call },
        NvmlError::DriverNotLoaded | NvmlError::Uninitialized | NvmlError::LibraryNotFound => {
            GpuError::NoDriver { detail: error.to_string() }
        }
        NvmlError::LibRmVersionMismatch => GpuError::DriverMismatch,
        NvmlError::UnexpectedVariant(NOT_READY | INVALID_STATE) => GpuError::NotReady { gpu, call },
        NvmlError::Timeout
        | NvmlError::InUse
        | NvmlError::Unknown
        | NvmlError::NotFound
        | NvmlError::AlreadyInitialized
        | NvmlError::InsufficientSize(_)
        | NvmlError::InsufficientPower
        | NvmlError::InsufficientMemory
        | NvmlError::IrqIssue
        | NvmlError::CorruptedInfoROM
        | NvmlError::OperatingSystem
        | NvmlError::NoData
        | NvmlError::Utf8Error(_)
        | NvmlError::NulError(_)
        | NvmlError::LibloadingError(_)
        | NvmlError::StringTooLong { .. }
        | NvmlError::IncorrectBits(_)
        | NvmlError::UnexpectedVariant(_)
        | NvmlError::SetReleaseFailed
        | NvmlError::GetPciInfoFailed
        | NvmlError::PciInfoToCFailed => GpuError::Failed { gpu, call, detail: error.to_string() },
    }
}

pub(super) fn init_failed(error: NvmlError) -> GpuError {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound | NvmlError::FailedToLoadSymbol(_) => {
            GpuError::NoLibrary { detail: error.to_string() }
        }
        NvmlError::NoPermission => GpuError::NoPermission { gpu: "every GPU".to_owned(), call: "nvmlInit" },
        NvmlError::LibRmVersionMismatch => GpuError::DriverMismatch,
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
            GpuError::ResetRequired { .. } => "reset required",
            GpuError::NoDriver { .. } => "no driver",
            GpuError::DriverMismatch => "mismatch",
            GpuError::NotReady { .. } => "not ready",
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
            (5, "failed"),
            (6, "failed"),
            (7, "failed"),
            (8, "failed"),
            (9, "no driver"),
            (10, "failed"),
            (11, "failed"),
            (12, "no driver"),
            (13, "not supported"),
            (14, "failed"),
            (15, "lost"),
            (16, "reset required"),
            (17, "failed"),
            (18, "mismatch"),
            (19, "failed"),
            (20, "failed"),
            (21, "failed"),
            (22, "not supported"),
            (23, "failed"),
            (24, "invalid argument"),
            (25, "not supported"),
            (26, "not supported"),
            (27, "not ready"),
            (28, "lost"),
            (29, "not ready"),
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
