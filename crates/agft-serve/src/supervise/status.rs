//! What the supervisor tells others: the status of each instance, and events.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::process::Exit;
use crate::spec::Gpus;
use crate::work::InstanceState;

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not to run.
    Disabled,
    /// Its process runs, and is not ready yet.
    Starting,
    /// Its process runs and is ready.
    Ready,
    /// Its hooks and its process are being ended.
    Stopping,
    /// Its process failed, and is started again later.
    Backoff {
        /// When it is started again.
        until: SystemTime,
        /// Failures in a row.
        failures: u32,
    },
    /// As [`State::Backoff`], after as many failures in a row as the instance calls a crash loop.
    CrashLoop {
        /// When it is started again.
        until: SystemTime,
        /// Failures in a row.
        failures: u32,
    },
    /// On demand, and nobody is connected: the next connection starts it.
    StoppedIdle,
    /// Its process ended by itself, and its restart policy does not start it again; or the supervisor ends.
    Ended,
}

impl State {
    /// The state as one word, for pages and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Backoff { .. } => "backoff",
            Self::CrashLoop { .. } => "crash-loop",
            Self::StoppedIdle => "stopped-idle",
            Self::Ended => "ended",
        }
    }
}

/// One instance as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceStatus {
    /// Its name.
    pub name: String,
    /// Whether it is to run: by its entry, or as an operator said since.
    pub enabled: bool,
    /// Where it is in its life.
    pub state: State,
    /// Since when it is in that state.
    pub since: SystemTime,
    /// Its process; none where none runs. It leads a session and a process group of its own.
    pub pid: Option<u32>,
    /// How often it was started again after it failed or ended by itself, since the supervisor knows it.
    pub restarts: u64,
    /// Its GPUs, as its entry names them.
    pub gpus: Gpus,
    /// How its last process ended, in words; none where none has ended.
    pub last_exit: Option<String>,
    /// What keeps it from running or serving as its entry says, in words.
    pub problem: Option<String>,
    /// Client connections open or held, where it is on demand.
    pub connections: Option<usize>,
    /// Its metrics page, with the private port in place; none where its entry names none, or no process runs.
    pub metrics_url: Option<String>,
    /// What it does, as far as its clients and its log tell.
    pub work: InstanceState,
}

impl InstanceStatus {
    /// Whether it serves.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.state == State::Ready
    }
}

/// Something that happened to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceEvent {
    /// When.
    pub at: SystemTime,
    /// To which instance.
    pub instance: String,
    /// What.
    pub what: What,
}

/// What can happen to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Its process was started.
    Started {
        /// The process.
        pid: u32,
    },
    /// Its process could not be started.
    NotStarted {
        /// Why.
        why: String,
    },
    /// Its process is ready.
    Ready {
        /// How long that took since it was started.
        after: Duration,
    },
    /// Its process was not ready in time; it is ended.
    NotReady {
        /// The time that it had.
        within: Duration,
    },
    /// Its process was ready, and answers no more; it is ended.
    Hung {
        /// The time that it had.
        within: Duration,
    },
    /// Its process ended by itself.
    Failed {
        /// How.
        exit: Exit,
    },
    /// Nobody was connected for long enough; it is ended.
    Idle,
    /// Its process and all descendants are gone.
    Stopped {
        /// How its process ended.
        exit: Exit,
    },
    /// It is started again later.
    Backoff {
        /// After this pause.
        pause: Duration,
        /// Failures in a row.
        failures: u32,
        /// Whether that is a crash loop.
        crash_loop: bool,
    },
    /// A hook could not be started, or ended by itself. The instance runs on.
    Hook {
        /// The hook.
        name: String,
        /// What became of it.
        what: String,
    },
    /// Clients cannot connect: its address cannot be listened at. It is tried again.
    NotListening {
        /// Why.
        why: String,
    },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { pid } => write!(f, "started as process {pid}"),
            Self::NotStarted { why } => write!(f, "not started: {why}"),
            Self::Ready { after } => write!(f, "ready after {:.1} s", after.as_secs_f64()),
            Self::NotReady { within } => write!(f, "not ready within {} s", within.as_secs_f64()),
            Self::Hung { within } => {
                write!(f, "hangs: its readiness probe was not answered for {} s", within.as_secs_f64())
            }
            Self::Failed { exit } => write!(f, "its process {exit} by itself"),
            Self::Idle => write!(f, "nobody is connected: it is stopped until somebody is"),
            Self::Stopped { exit } => write!(f, "stopped: its process {exit}"),
            Self::Backoff { pause, failures, crash_loop } => {
                let crash_loop = if *crash_loop { "in a crash loop, " } else { "" };
                write!(
                    f,
                    "{crash_loop}started again in {} s ({failures} failures in a row)",
                    pause.as_secs_f64()
                )
            }
            Self::Hook { name, what } => write!(f, "hook {name}: {what}"),
            Self::NotListening { why } => write!(f, "clients cannot connect: {why}"),
        }
    }
}
