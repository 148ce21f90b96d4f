//! One picture of what runs in this process, for everyone who looks at it.
//!
//! [`View`] is brought up to date by each step and publishes a [`State`], one for each server; a [`HostState`] has them
//! all. Metrics, status and whatever else is shown to operators read this one structure, so that they cannot disagree. It is pure: it is told what happened and when.

mod against;
mod build;
mod estimate;
mod history;
mod host;
mod notes;
mod park;
mod state;
mod verdict;

#[cfg(test)]
pub(crate) mod testing;

pub use against::{Against, Comparer, Source};
pub use build::{About, Glance, View, learner_state};
pub use estimate::Estimate;
pub use history::{History, POINTS, Point};
pub use host::{HostState, Row, Table};
pub use notes::{NOTES, Note, NoteKind, Notes, reason_words};
pub use park::{ConnectionsState, ParkMode, ParkStanding, ParkState, ParkedGpu};
pub use state::{
    ArmState, ArmStatus, Counts, GpuState, LearnerState, Load, ParkingState, RoundState, State, clocks_words,
    fault_kinds, reason_name, wake_sources,
};
pub use verdict::Verdict;
