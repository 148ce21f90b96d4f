//! Experiments in virtual time: policies over loads and seeds, held against what could have been known only afterwards.
//!
//! ```text
//!  grid ──loads──► traces ──► WorldSpec ─┐
//!                                        ├─► experiment ──► score ──► report (table, CSV, JSON), plots
//!  policy ─► sim::run ◄─ original        │        │
//!                                        └─► oracle (sweep over fixed clocks) ─► clairvoyant
//! ```
//!
//! A *cell* is a load (GPU, model, workload) with a seed. Everything in a cell sees the same arrivals. The sweep over fixed
//! clocks is made once per cell and shared by all policies. Cells run in parallel; the result does not depend on how many
//! do.

// `println!` panics where nobody reads any more (see agft's cli/say.rs).
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod clairvoyant;
pub mod cli;
pub mod engines;
pub mod experiment;
pub mod grid;
pub mod oracle;
pub mod original;
pub mod parking;
pub mod plots;
pub mod policy;
pub mod promise;
pub mod report;
pub mod savings;
pub mod score;
pub mod sim;
pub mod table;
pub mod traces;

use crate::sim::SimError;
use crate::sim::run::RunError;

/// Why an experiment cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// No policy, suite or the like of that name.
    #[error("unknown {kind} `{given}`; known: {known}")]
    UnknownName {
        /// What was looked up.
        kind: &'static str,
        /// The name given.
        given: String,
        /// The names there are.
        known: &'static str,
    },
    /// A value that makes no sense.
    #[error("{what} `{given}`: {rule}")]
    BadValue {
        /// Which one.
        what: &'static str,
        /// What was given.
        given: String,
        /// What would be right.
        rule: &'static str,
    },
    /// A cell cannot be simulated.
    #[error("{cell}: {cause}")]
    Cell {
        /// Its name.
        cell: String,
        /// Why.
        cause: RunError,
    },
    /// The world cannot be.
    #[error(transparent)]
    World(#[from] SimError),
    /// The threads could not be started.
    #[error("cannot start {jobs} worker threads: {cause}; give a smaller --jobs")]
    Threads {
        /// How many were asked for.
        jobs: usize,
        /// What the system said.
        cause: rayon::ThreadPoolBuildError,
    },
    /// A plot cannot be written.
    #[error("cannot draw {file}: {cause}")]
    Plot {
        /// Which file.
        file: String,
        /// What went wrong.
        cause: String,
    },
}
