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
pub(crate) use build::learner_state;
pub use build::{About, StepFacts, View};
pub use estimate::Estimate;
pub use history::{History, Point};
pub use host::{HostState, Row, Table};
pub(crate) use notes::{Note, NoteKind};
pub(crate) use park::{ConnectionsState, ParkFigures, ParkMode, ParkStanding, ParkState, ParkedGpu};
pub(crate) use state::{ArmState, ArmStatus, LearnerState, ParkingState, clocks_words, reason_name};
pub use state::{Counts, GpuState, Load, State};
pub use verdict::Verdict;
pub(crate) use verdict::duration;
