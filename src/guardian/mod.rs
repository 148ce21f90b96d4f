//! A second process that gives the clocks back when the first one cannot.
//!
//! A locked clock outlives its process, and SIGKILL, the OOM killer or a crash leave no time to reset it. So
//! before the first lock the daemon (the *controller*) starts a *guardian*: the same executable, in a session
//! of its own, with NVML initialised before it says that it is ready. It does nothing but wait.
//!
//! | what the guardian sees | what it does |
//! | --- | --- |
//! | pidfd or socket say that the controller is gone, no goodbye | gives the clocks back, and tries until the driver takes them or the GPU is gone |
//! | the thread that started it is dead (`PR_SET_PDEATHSIG`) | gives the clocks back, says so, goes on waiting |
//! | goodbye | ends; nothing is locked |
//! | no heartbeat for max(5 periods, 3 s): stopped (SIGSTOP, ^Z, a debugger), swapped out | gives the clocks back, says so, goes on waiting |
//! | "this part is stuck" | gives the clocks back, says so; kills a controller that does not end by itself |
//! | "the part that works for these GPUs is stuck" | gives their clocks back, says so, goes on waiting |
//! | SIGTERM, SIGINT, SIGHUP | gives the clocks back, says so, ends when they are back |
//!
//! Pidfd and socket tell of the end of the last thread of the controller. A killed process with a thread in a
//! disk or driver call that cannot be interrupted (an `fsync` on a busy disk, for one) lives on until that
//! returns, and its clocks must not wait. So the guardian has a third sign: a signal at the death of the
//! thread that started it. That one alone would be too early where threads come and go; here it is the main
//! thread or the watch, which live as long as the run.
//!
//! Whoever holds a journal does not end before the clocks are back. The pause between two tries grows to 2 s
//! (`crate::gpu::retry`), the lines of the log become rare, and after 2 s NVML is started again with every
//! try that far apart: a handle may be stale. Only a GPU that no GPU's UUID and no PCI device of the kernel
//! names any more is given up. A service manager that stops the unit ends a guardian that is still trying by
//! SIGKILL, after `TimeoutStopSec`; `ExecStopPost=agft release --journal` and the next start then go on from
//! the journal. A guardian that still tries leaves each GPU to the guardian that asks for it next, and goes
//! on with the others; one that does not answer is killed (`predecessor`).
//!
//! What was given back under a living controller is given back again when that ends: a driver call that was
//! on its way may have locked in between.
//!
//! The two talk over one socket pair, which is the guardian's standard input: no descriptor has to be
//! inherited by number, and the end of the file is the end of the controller. Both ends are close-on-exec. A
//! fork of the controller that holds the socket open would hide its end; the pidfd would not, so the guardian
//! watches both. Heartbeats are timed by the monotonic clock, which stands still while the machine sleeps: a
//! suspended laptop is not late. A guardian that was itself stopped for a while (`docker pause`) gives the
//! controller a whole time-out before it judges.
//!
//! Some ends take both: `systemctl kill -s KILL`, an OOM kill of the whole control group, the end of a
//! container whose first process is agft. What then stays locked stands in a journal
//! ([`crate::store::held`]), written before the first lock of each clock; the next start, `agft release` and
//! a service's `ExecStopPost=agft release --journal` undo it (`undo`). A lock that cannot be written down,
//! or that no guardian watches, is not made (`ledger`).
//!
//! A guardian that hangs or is stopped when its controller dies would keep the GPU's lock file: the next
//! agft's guardian waits for it some seconds, and then kills it.
//!
//! The controller (`link`) in turn sees within a tick that its guardian is gone or does not answer. It then
//! gives the clocks back, and locks none until a new guardian is ready; if guardians keep dying, the run
//! ends. Nothing is locked in the demo, a dry run and data collection: there they have no guardian.

pub(crate) mod ledger;
pub(crate) mod link;
mod predecessor;
pub(crate) mod process;
mod reset;
pub(crate) mod undo;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Between two heartbeats.
pub(crate) const BEAT: Duration = Duration::from_millis(200);
/// A controller may be silent for so long at least, however short its period.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);

/// From the controller, one line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToGuardian {
    /// A clock of the GPU with this UUID is about to be locked.
    Hold(String),
    /// This GPU's clocks have been given back.
    Free(String),
    /// All is well.
    Beat,
    /// Give all clocks back now; the text says which part is stuck. The controller is about to end.
    Stuck(String),
    /// Give the clocks of these GPUs back now: the part that works for them is stuck, and the others go on.
    StuckGpus {
        /// Which part.
        part: String,
        /// UUIDs.
        gpus: Vec<String>,
    },
    /// The controller ends in good order; nothing is locked.
    Goodbye,
}

/// From the guardian, one line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromGuardian {
    /// It watches from now on.
    Ready,
    /// It cannot watch, and ends.
    CannotStart(String),
    /// A heartbeat was heard.
    Alive,
    /// It gave all clocks back; the text says why.
    Released(String),
}
