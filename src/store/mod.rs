//! What agft leaves on disk: the learned model, its metadata, the rounds of each run. The last stage of the loop.
//!
//! ```text
//! <model dir>/model.agft                    the model, checksummed          [`ModelStore`]
//!             model.previous.agft           the generation before it
//!             model.rejected-<time>-<n>.agft      what could not be trusted, kept for a human
//!             model.before-reset-<time>-<n>.agft  what a reset moved aside
//!             savings.agft                  what the experiment has shown  [`savings`]
//!             model_metadata.json           phase, converged, ...           [`ModelMetadata`]
//! <runs dir>/agft_<time>/config_snapshot.yaml, experiment_metadata.json     [`RunDir`]
//!                        rounds_data.jsonl, rounds_data.1.jsonl, ...        [`RoundWriter`]
//!                        steps/000001.agft-steps, ...                       [`StepWriter`]
//! ```
//!
//! Three rules hold everywhere. A file is replaced whole or not at all (`file`). Nothing is ever done through a
//! symbolic link, what a stranger could have written is not loaded (`judge_open`), and root keeps nothing in a directory
//! that others can write or exchange (`own_dir`). Directories are made `0750` and files `0640`; time is a parameter.

mod container;
mod dir;
mod earlier;
mod error;
mod identity;
mod time;

pub(crate) mod file;
pub mod held;
pub(crate) mod levers;
pub(crate) mod metadata;
pub(crate) mod model;
pub(crate) mod peek;
#[doc(hidden)]
pub mod raw;
pub mod rounds;
pub(crate) mod run_dir;
pub(crate) mod savings;
pub mod steps;

pub(crate) use agft_common::trust::{
    self, Distrust, Untrusted, judge_open, trusted_beside, trusted_dir, trusted_path,
};
pub(crate) use dir::own_dir;
pub(crate) use error::StoreError;
pub use identity::Identity;
pub(crate) use levers::{load_levers, save_levers};
pub use metadata::{Expected, ModelMetadata};
pub use model::{Load, ModelStore, Restored};
pub use rounds::{RoundLimits, RoundReader, RoundRecord, RoundWriter};
pub(crate) use run_dir::RunSummary;
pub use run_dir::{RunDir, RunInfo};
pub use steps::{StepLimits, StepWriter};
pub(crate) use time::rfc3339;

#[cfg(test)]
mod testing;
