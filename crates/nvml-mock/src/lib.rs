//! A stand-in for `libnvidia-ml.so.1` whose GPUs live in a shared file.
//!
//! Two things come out of this crate. The `cdylib` answers NVML calls: agft, `nvidia-ml-py` and others load it in place
//! of the driver's library. The `rlib` is for tests: it makes the state file, sets the load, arms errors and reads back
//! every clock write, whichever process made it.
//!
//! ```text
//!  test: MockState::create ──┐            ┌── agft ──────── dlopen("libnvidia-ml.so.1")
//!        set_load, inject ───┤ state file ├── its guardian
//!        history, snapshot ──┘            └── nvidia-ml-py
//! ```
//! The library finds its state file in `NVML_MOCK_STATE`; else as `nvml-mock.state` beside itself; else it is one
//! private A100. With `NVML_MOCK_NO_PERMISSION=1` every write is refused as for a user who is not root.
//!
//! The clocks follow load and locks after a settle time, power follows clocks and load ([`GpuConfig`] has the numbers),
//! energy is its integral. Where the driver's behaviour is documented it is kept: argument checks, symbolic clock
//! limits, buffer sizes, one code for each refusal.

mod abi;
mod calls;
mod config;
mod inject;
mod knobs;
mod layout;
mod model;
mod state;
mod sys;

pub use config::{GpuConfig, IdleClocks, Level, MockConfig};
pub use inject::Injection;
pub use knobs::Snapshot;
pub use layout::{HISTORY_LEN, MAX_GPUS, MAX_INJECTIONS, MAX_PROCESSES};
pub use model::Range;
pub use state::{ClockWrite, Locks, MockError, MockState};
pub use sys::monotonic_ns;

/// Names of all functions this library exports: what [`Injection`] and [`MockState::call_count`] accept.
pub fn exported_calls() -> impl Iterator<Item = &'static str> {
    calls::Call::ALL.iter().map(|call| call.name())
}

/// Name of the state file that the library looks for beside itself.
pub const STATE_FILE: &str = "nvml-mock.state";
/// Environment variable that names the state file.
pub const STATE_VARIABLE: &str = "NVML_MOCK_STATE";
/// Environment variable that, set to `1`, makes every write fail with "no permission".
pub const NO_PERMISSION_VARIABLE: &str = "NVML_MOCK_NO_PERMISSION";
