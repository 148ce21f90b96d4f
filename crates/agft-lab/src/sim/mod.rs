//! A vLLM server on a GPU, simulated: for `agft demo` in real time, for `agft simulate` and the tests in virtual time.
//!
//! ```text
//!  workload ──requests──► engine ──batch──► physics ──time, watts──► board ──► sensors, energy counter
//!                           │ statistics                               ▲
//!                           ▼                                          │ locks
//!                  page ─► server (HTTP)                             SimGpu (GpuSensors, GpuClocks)
//! ```
//!
//! [`World`] holds all of it and moves only when told to ([`World::advance`]). Nothing here reads a clock: the demo
//! passes real time, tests pass any. The same seed gives the same run.

mod arrivals;
mod board;
pub mod calibration;
pub mod capacity;
pub(crate) mod dice;
mod engine;
mod front;
mod gpu;
mod kinds;
#[cfg(test)]
mod laws;
mod measured;
pub(crate) mod outages;
mod page;
mod patterns;
mod physics;
pub mod presets;
pub mod record;
pub mod run;
mod server;
mod stats;
mod template;
mod trace;
mod workload;
mod world;

pub use arrivals::{Arrivals, ClosedLoop};
pub use board::{Locks, Raise, Usage};
pub use engine::{EngineSettings, FinishedRequest};
pub use front::FrontEnd;
pub use gpu::{Clock, SharedWorld, SimGpu, shared};
pub use kinds::Kind;
pub use measured::{Measured, Sweeps, Tilt};
pub use patterns::Pattern;
pub use physics::{
    Batch, GpuPreset, ModelPreset, Physics, PowerModel, SensorModel, Settle, StepCost, Voltage, Work,
};
pub use server::{SimServer, serve};
pub use trace::{TraceError, parse_trace};
pub use workload::{Lengths, Phase, Request, Rhythm, Shape, Workload};
pub use world::{ClockCall, ClockWrite, World, WorldSpec};

/// Why a simulation cannot be set up.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// The weights leave no room for the KV cache.
    #[error(
        "model {model} needs {needed_gb:.1} GB and some more for its KV cache, {gpu} offers {usable_gb:.1} GB; choose a \
         smaller model or a GPU with more memory"
    )]
    ModelDoesNotFit {
        /// GPU name.
        gpu: &'static str,
        /// Model key.
        model: &'static str,
        /// Weights and fixed overhead.
        needed_gb: f64,
        /// What the engine may use.
        usable_gb: f64,
    },
    /// No preset or pattern of that name.
    #[error("unknown {kind} `{given}`; known: {known}")]
    UnknownName {
        /// What was looked up.
        kind: &'static str,
        /// The name given.
        given: String,
        /// The names there are.
        known: String,
    },
    /// A setting that makes no sense.
    #[error("simulation setting {name} = {value}: {rule}")]
    BadSetting {
        /// Which one.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        rule: &'static str,
    },
}
