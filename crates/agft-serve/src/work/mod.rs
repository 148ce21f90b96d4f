//! What instances do, and the link that tells the daemon of it.
//!
//! Known from what the supervisor has at hand: the clients of instances on demand, whose bytes it passes on,
//! and the lines that it reads from the pipes of all of them (`lines`, `tasks`). The daemon ([`link`]) parks no
//! GPU that an instance works on.

pub(crate) mod lines;
pub mod link;
pub(crate) mod tasks;

pub use tasks::Busy;

use crate::supervise::State;

/// What an instance does. The names are those of the daemon's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It works, or a client waits for it.
    Working,
    /// It runs, and has nothing to do.
    Idle,
    /// It runs without its model loaded, or starts with the next client.
    Sleeping,
    /// It does not run.
    Ended,
    /// It runs, and neither clients nor its log tell what it does.
    Unknown,
}

impl Work {
    /// Of an instance in this state, with so many clients where it is on demand, whose log came to this.
    #[must_use]
    pub fn of(state: State, clients: Option<usize>, busy: Busy) -> Self {
        match state {
            State::Disabled | State::Backoff { .. } | State::CrashLoop { .. } | State::Ended => Self::Ended,
            State::StoppedIdle => Self::Sleeping,
            State::Starting | State::Ready | State::Stopping => match (clients, busy) {
                (Some(1..), _) | (_, Busy::Tasks(1..)) => Self::Working,
                (_, Busy::Asleep) => Self::Sleeping,
                (Some(0), _) | (_, Busy::Tasks(0)) => Self::Idle,
                (None, Busy::Unknown) => Self::Unknown,
            },
        }
    }

    /// The word for it.
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
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn clients_come_before_lines_and_nothing_works_without_a_process() {
        use Busy::{Asleep, Tasks, Unknown};
        for (clients, busy, work) in [
            (Some(2), Tasks(0), Work::Working),
            (Some(1), Unknown, Work::Working),
            (Some(0), Unknown, Work::Idle),
            // A request goes on for a while after its client left.
            (Some(0), Tasks(1), Work::Working),
            (Some(0), Asleep, Work::Sleeping),
            (None, Unknown, Work::Unknown),
            (None, Tasks(0), Work::Idle),
            (None, Tasks(3), Work::Working),
            (None, Asleep, Work::Sleeping),
        ] {
            for state in [State::Starting, State::Ready, State::Stopping] {
                assert_eq!(Work::of(state, clients, busy), work, "{state:?} {clients:?} {busy:?}");
            }
            let (until, failures) = (SystemTime::now(), 1);
            let backoff = State::Backoff { until, failures };
            let crash_loop = State::CrashLoop { until, failures };
            for state in [State::Disabled, State::Ended, State::StoppedIdle, backoff, crash_loop] {
                assert_ne!(Work::of(state, clients, busy), Work::Working, "{state:?}");
            }
        }
    }
}
