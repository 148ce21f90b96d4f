//! `steps/000001.agft-steps`: everything that went into each step, in segments that stand for themselves.
//!
//! A segment is the file of one stretch of a run. It begins with `AGFTSTEP` and the format version (4 bytes,
//! little-endian), then frames follow:
//!
//! | bytes | content |
//! | --- | --- |
//! | 1 | kind: 1 head (JSON), 2 snapshot, 3 batch of steps, 4 end |
//! | 4 | number of the frame in its file, from 0 |
//! | 4 | length of the payload |
//! | 4 | length of the payload unpacked |
//! | 8 | first bytes of the SHA-256 of the fields above |
//! | n | payload: deflate |
//! | 32 | SHA-256 of all of the above |
//!
//! The head says who recorded, the snapshot is what the steps began from, and the end is there if the segment was closed
//! in good order. A file without it, or one that is cut off inside of a frame, is what a killed writer leaves; one whose
//! checksums do not match is damaged. A segment needs no other one, so old ones can go.

mod batch;
mod frame;
mod reader;
mod writer;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::container;
use super::error::StoreError;

pub use frame::Kind;
pub use reader::{End, SegmentReader};
pub use writer::{StepLimits, StepWriter};

/// Version of the form; raised when a frame changes its meaning. Written is this one only.
pub(crate) const STEPS_VERSION: u32 = 4;
/// The oldest version that is read. In 3 the snapshot is another one, see `control::v3`.
pub(crate) const OLDEST_STEPS_VERSION: u32 = 3;

/// The directory of the segments inside of a run's.
pub(super) const DIR: &str = "steps";
const MAGIC: &[u8; 8] = b"AGFTSTEP";
const SUFFIX: &str = ".agft-steps";

/// Why steps cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each has its message")]
pub enum StepsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "{} holds no steps: the run was recorded with `experiment.keep_steps_mb: 0`, or by an agft that did not \
         record them",
        path.display()
    )]
    Nothing { path: PathBuf },
    #[error("{} is not a file of steps", path.display())]
    Foreign { path: PathBuf },
    #[error(
        "{} has format version {found}, and this agft reads {OLDEST_STEPS_VERSION} to {STEPS_VERSION}; replay it \
         with the agft that recorded it",
        path.display()
    )]
    Version { path: PathBuf, found: u32 },
    #[error("{} is damaged in frame {frame}: {detail}; nothing from there on can be replayed", path.display())]
    Damaged {
        path: PathBuf,
        /// Number of the frame in it, from 0.
        frame: u32,
        detail: String,
    },
    #[error(
        "{} was recorded by agft {recorder}, and this is agft {}: its {what} cannot be decoded ({detail}); replay it \
         with the agft that recorded it",
        path.display(),
        env!("CARGO_PKG_VERSION")
    )]
    Content { path: PathBuf, recorder: String, what: &'static str, detail: String },
}

/// The segments of a run, oldest first.
/// Errors: [`StepsError::Nothing`], [`StepsError::Store`] if the directory cannot be listed.
pub fn segments_of(run_dir: &Path) -> Result<Vec<PathBuf>, StepsError> {
    let dir = run_dir.join(DIR);
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |cause| StoreError::Io { operation: "list", path, cause }
    };
    // Says of a mistyped path that it is not there, rather than that it holds no steps.
    run_dir.read_dir().map_err(fail(run_dir))?;
    let nothing = || StepsError::Nothing { path: run_dir.to_owned() };
    if !dir.is_dir() {
        return Err(nothing());
    }
    let mut found = Vec::new();
    for entry in dir.read_dir().map_err(fail(&dir))? {
        let path = entry.map_err(fail(&dir))?.path();
        if let Some(number) = number_of(&path) {
            found.push((number, path));
        }
    }
    if found.is_empty() {
        return Err(nothing());
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The number in a segment's name.
pub fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let number = name.strip_suffix(SUFFIX)?.parse().ok()?;
    (name_of(number) == name).then_some(number)
}

fn name_of(number: u64) -> String {
    format!("{number:06}{SUFFIX}")
}

/// A value as the bytes of a frame.
/// Errors: What the encoder says of a value that it cannot encode.
pub fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    container::pack(value)
}

/// The value that [`pack`] made these bytes of.
/// Errors: What is wrong with them.
pub fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    container::unpack(bytes)
}

#[cfg(test)]
mod tests;
