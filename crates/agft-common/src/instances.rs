//! What the supervisor tells the daemon of instances: the words of the control socket, and its limits.

use serde::{Deserialize, Serialize};

/// Instances of one client.
pub const MAX_INSTANCES: usize = 256;
/// GPUs that one instance names.
pub const MAX_GPUS: usize = 64;
/// Length of a GPU's name in bytes: a UUID has 40, that of an old MIG instance 50.
pub const MAX_SELECTOR: usize = 64;
/// Length of a request in bytes, its line end included.
pub const MAX_REQUEST: usize = 64 << 10;

/// What an instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// It works, or somebody waits for it: its GPUs are not parked.
    Working,
    /// It runs, and has nothing to do.
    Idle,
    /// It is there, without its model in the memory of a GPU, or starts with the next client.
    Sleeping,
    /// It does not run.
    Ended,
    /// It runs, and its supervisor cannot tell.
    Unknown,
}

impl InstanceState {
    /// Its name in requests and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::Idle => "idle",
            Self::Sleeping => "sleeping",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
        }
    }
}
