//! What a run did, from its directory: digested in one pass, shown as HTML, Markdown or JSON.
//!
//! ```text
//!  rounds_data*.jsonl --stream--> digest --> phases --> html | markdown | json
//!  experiment_metadata.json ---------------------------/
//! ```
//!
//! A day of rounds needs no more memory than a minute of them: the digest has as many bins as fit on a page.

pub(crate) mod compare;
pub(crate) mod digest;
pub(crate) mod html;
pub(crate) mod markdown;
mod phases;
mod plots;
mod sums;
pub(crate) mod timeline;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::store::rounds::files_of;
use crate::store::run_dir::ExperimentMetadata;
use crate::store::{RoundReader, StoreError};
use crate::text;
pub(crate) use digest::Digest;
pub(crate) use phases::Phase;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    #[error("{} is no directory; give a run's directory, like experiment/agft_20260131_120000", .0.display())]
    NotADirectory(PathBuf),
    #[error("{} has no rounds_data.jsonl: it is no run's directory", .0.display())]
    NoRounds(PathBuf),
    #[error("{} has no readable round ({bad} unreadable lines)", .dir.display())]
    Empty { dir: PathBuf, bad: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a plot could not be drawn: {0}")]
    Plot(String),
    #[error("the report could not be written: {0}")]
    Text(String),
}

/// A run, read.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// The directory's name.
    pub name: String,
    /// What stands in its metadata, if it is readable.
    pub metadata: Option<ExperimentMetadata>,
    /// What is wrong with the directory, for the reader to know.
    pub notes: Vec<String>,
    /// What happened.
    pub digest: Digest,
    /// Stretches of similar load.
    pub phases: Vec<Phase>,
}

/// No metadata file is larger.
const MAX_METADATA: u64 = 4 << 20;

impl Report {
    /// Reads a run's directory. Unreadable lines are passed over and counted.
    pub(crate) fn read(dir: &Path) -> Result<Self, ReportError> {
        if !dir.is_dir() {
            return Err(ReportError::NotADirectory(dir.to_owned()));
        }
        let files = files_of(dir)?;
        if files.is_empty() {
            return Err(ReportError::NoRounds(dir.to_owned()));
        }
        let mut digest = Digest::default();
        for file in &files {
            for line in RoundReader::open(file)? {
                match line {
                    Ok(record) => digest.push(&record),
                    Err(bad) => digest.bad_line(bad.torn),
                }
            }
        }
        digest.end();
        if digest.rounds == 0 {
            return Err(ReportError::Empty { dir: dir.to_owned(), bad: digest.bad_lines });
        }
        let mut notes = Vec::new();
        let metadata = match metadata(dir) {
            Ok(metadata) => metadata,
            Err(why) => {
                notes.push(format!("experiment_metadata.json is not readable: {why}"));
                None
            }
        };
        if metadata.as_ref().is_some_and(|metadata| metadata.end_time.is_none()) {
            notes.push("The run has no end on record: it goes on, or was killed.".into());
        }
        if digest.bad_lines > 0 {
            notes.push(format!("{} lines are no rounds and were passed over.", digest.bad_lines));
        }
        if digest.first_round > 1 && files.len() > 1 {
            notes.push(format!(
                "Earlier rounds are no longer kept; the record begins with round {}.",
                digest.first_round
            ));
        }
        let name = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let name = name.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let name = text::line(&name).into_owned();
        let phases = phases::phases(&digest.timeline);
        Ok(Self { name, metadata, notes, digest, phases })
    }

    /// The GPU's product name, if it is on record.
    pub(crate) fn gpu(&self) -> &str {
        self.metadata.as_ref().map_or("unknown GPU", |metadata| metadata.gpu_model.as_str())
    }
}

fn metadata(dir: &Path) -> Result<Option<ExperimentMetadata>, String> {
    use std::io::Read;
    let file = match std::fs::File::open(dir.join("experiment_metadata.json")) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = String::new();
    file.take(MAX_METADATA).read_to_string(&mut text).map_err(|error| error.to_string())?;
    text::from_json(&text).map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
