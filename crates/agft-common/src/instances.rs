//! What the supervisor tells the daemon of instances: the name of the control socket, its words, and its
//! limits.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Instances of one client.
pub const MAX_INSTANCES: usize = 256;
/// GPUs that one instance names.
pub const MAX_GPUS: usize = 64;
/// Length of a GPU's name in bytes: a UUID has 40, that of an old MIG instance 50.
pub const MAX_SELECTOR: usize = 64;
/// Length of a request in bytes, its line end included.
pub const MAX_REQUEST: usize = 64 << 10;

/// The name of the control socket of the daemon with this process id.
#[must_use]
pub fn socket_name(pid: u32) -> String {
    format!("agft-{pid}.sock")
}

/// The process id of the daemon whose control socket this is, by its name; `None` of any other file.
#[must_use]
pub fn socket_pid(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    let pid = name.strip_prefix("agft-")?.strip_suffix(".sock")?.parse().ok()?;
    (name == socket_name(pid)).then_some(pid)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_of_a_control_socket_tells_a_process_id() {
        assert_eq!(socket_pid(Path::new("/run/agft").join(socket_name(4711)).as_path()), Some(4711));
        for other in [
            "agft-.sock",
            "agft-+1.sock",
            "agft-01.sock",
            "agft-1.sock.bak",
            "agft-1",
            "1.sock",
            "agft-4294967296.sock",
        ] {
            assert_eq!(socket_pid(Path::new(other)), None, "{other}");
        }
    }
}
