//! What an instance is to be: the checked form of an entry of an instance file.
//!
//! Two specs are equal exactly if a reload may leave the running instance alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One instance: a server process and what belongs to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Its identity: unique among all instance files.
    pub name: String,
    /// Whether it is to run.
    pub enabled: bool,
    /// Program and arguments; never empty. `{port}` in an argument stands for the private port where `listen`
    /// is set.
    pub command: Vec<String>,
    /// Added to the environment of the supervisor, or in place of its values.
    pub env: BTreeMap<String, String>,
    /// Working directory; the supervisor's where none is given.
    pub working_directory: Option<PathBuf>,
    /// The user it runs as; the supervisor's where none is given. Only root can change it.
    pub user: Option<String>,
    /// The GPUs it uses.
    pub gpus: Gpus,
    /// When it counts as ready; once its process runs where nothing is given.
    pub ready: Option<Ready>,
    /// What happens when its process ends by itself.
    pub restart: Restart,
    /// How it is ended.
    pub stop: Stop,
    /// Programs that run beside it, started after it and ended before it.
    pub hooks: Vec<Hook>,
    /// Where its output goes; to the supervisor's log directory under its name where none is given.
    pub log: Log,
    /// Stopped when idle and started by the first connection; runs for ever where none is given.
    pub on_demand: Option<OnDemand>,
    /// Where its metrics page is, for the work that it tells of. `{port}` stands for the private port.
    pub metrics_url: Option<String>,
}

/// The GPUs of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gpus {
    /// All that the process can see: nothing narrows them down.
    All,
    /// None: a program that uses no GPU.
    None,
    /// By index in PCI bus order, the order of `nvidia-smi`.
    Indices(Vec<u32>),
    /// By index in CUDA's own order (fastest first), which cannot be translated without CUDA. The daemon
    /// treats them as unknown on a host with different GPU models.
    CudaIndices(Vec<u32>),
    /// By UUID (`GPU-...`), whole or a unique beginning; MIG instances as `MIG-...`.
    Uuids(Vec<String>),
}

/// How readiness is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// What is asked.
    pub probe: Probe,
    /// An instance that is not ready after this long is ended and counts as failed.
    pub timeout: Duration,
    /// An instance that was ready and whose probe is not answered for this long hangs: it is ended and counts
    /// as failed. It is not asked again where none.
    pub hung_after: Option<Duration>,
}

/// What is asked of an instance that starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// A GET of this `http://` address is answered with 200. `{port}` stands for the private port.
    Http(String),
    /// This port of 127.0.0.1 accepts a connection; 0 stands for the private port.
    Port(u16),
}

/// What happens when the process ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    /// When it is started again.
    pub policy: RestartPolicy,
    /// The pause before the first start again; it doubles with each failure in a row, to `longest`.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// After this many failures in a row it is in a crash loop: reported as such, and still retried at
    /// `longest`.
    pub crash_loop_after: u32,
    /// A process that ran this long ends the row of failures.
    pub stable_after: Duration,
}

/// When an instance whose process ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Whatever its status.
    Always,
    /// Where its status is not 0, or a signal ended it.
    OnFailure,
    /// Not at all.
    Never,
}

/// How an instance is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Signal number that asks it to end, sent to its process group.
    pub signal: i32,
    /// How long it may take before SIGKILL.
    pub grace: Duration,
}

/// A program beside an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// For messages.
    pub name: String,
    /// Whether it is to run.
    pub enabled: bool,
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// Hooks of the hook: started after it, ended before it.
    pub hooks: Vec<Hook>,
}

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The file; under the log directory by the instance's name where none is given.
    pub file: Option<PathBuf>,
    /// A file that would grow beyond this is renamed to `FILE.1`, and so on.
    pub max_bytes: u64,
    /// How many renamed files are kept.
    pub keep: u32,
}

/// An instance that runs only while somebody wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDemand {
    /// Where clients connect. The supervisor listens there always, and passes the bytes to the private port.
    pub listen: SocketAddr,
    /// The port that the instance itself listens at, on 127.0.0.1; a free one is chosen where none is given.
    pub private_port: Option<u16>,
    /// It is stopped when no connection was open, and no byte passed, for this long.
    pub stop_after_idle: Duration,
}
