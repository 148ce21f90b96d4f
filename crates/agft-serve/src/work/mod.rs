//! What instances do, and the link that tells the daemon of it.
//!
//! Known from what the supervisor has at hand: the clients of instances on demand, whose bytes it passes on,
//! and the lines that it reads from the pipes of all of them (`lines`, `tasks`). The daemon ([`link`]) parks no
//! GPU that an instance works on.

pub(crate) mod lines;
pub mod link;
pub(crate) mod tasks;

pub use agft_common::instances::InstanceState;
pub use tasks::Busy;

use crate::supervise::State;

/// What an instance does in this state, with so many clients where it is on demand, whose log came to this.
#[must_use]
pub fn work_of(state: State, clients: Option<usize>, busy: Busy) -> InstanceState {
    match state {
        State::Disabled | State::Backoff { .. } | State::CrashLoop { .. } | State::Ended => {
            InstanceState::Ended
        }
        State::StoppedIdle => InstanceState::Sleeping,
        State::Starting | State::Ready | State::Stopping => match (clients, busy) {
            (Some(1..), _) | (_, Busy::Tasks(1..)) => InstanceState::Working,
            (_, Busy::Asleep) => InstanceState::Sleeping,
            (Some(0), _) | (_, Busy::Tasks(0)) => InstanceState::Idle,
            (None, Busy::Unknown) => InstanceState::Unknown,
        },
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
            (Some(2), Tasks(0), InstanceState::Working),
            (Some(1), Unknown, InstanceState::Working),
            (Some(0), Unknown, InstanceState::Idle),
            // A request goes on for a while after its client left.
            (Some(0), Tasks(1), InstanceState::Working),
            (Some(0), Asleep, InstanceState::Sleeping),
            (None, Unknown, InstanceState::Unknown),
            (None, Tasks(0), InstanceState::Idle),
            (None, Tasks(3), InstanceState::Working),
            (None, Asleep, InstanceState::Sleeping),
        ] {
            for state in [State::Starting, State::Ready, State::Stopping] {
                assert_eq!(work_of(state, clients, busy), work, "{state:?} {clients:?} {busy:?}");
            }
            let (until, failures) = (SystemTime::now(), 1);
            let backoff = State::Backoff { until, failures };
            let crash_loop = State::CrashLoop { until, failures };
            for state in [State::Disabled, State::Ended, State::StoppedIdle, backoff, crash_loop] {
                assert_ne!(work_of(state, clients, busy), InstanceState::Working, "{state:?}");
            }
        }
    }
}
