//! What a run did, done again from its record; and what other settings would have done with the same.
//!
//! ```text
//! steps/*.agft-steps --> segment: snapshot, then observations --> Controller::step --> the same, bit for bit?   [`same`]
//!                                                    |
//!                                                    +--> another Controller::step --> its choices              [`other`]
//!                                                         and what they would have earned                       [`estimate`]
//! ```
//!
//! The middle of agft is pure: its state and what it is shown decide what it does. So a snapshot and the observations
//! since are the whole of a run.

pub mod estimate;
mod model;
pub mod other;
pub mod same;
pub mod segment;

pub use segment::{Cause, Head, Made, Recorded, Segment};

use crate::config::ConfigError;
use crate::store::steps::StepsError;

/// Why a run cannot be replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// Its record cannot be read.
    #[error(transparent)]
    Steps(#[from] StepsError),
    /// The settings to try cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A `--set` that is none.
    #[error("--set {given:?}: must be SECTION.KEY=VALUE, for example control.ttft_limit=0.5")]
    Set {
        /// What was given.
        given: String,
    },
    /// The record breaks off before the first step.
    #[error("{} holds no whole step yet: a segment is written in batches of 100 steps", path.display())]
    Empty {
        /// The run's directory.
        path: std::path::PathBuf,
    },
}
