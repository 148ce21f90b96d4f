//! One directory per run: the configuration it ran with, its rounds, and what came of it.

mod old;

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::dir::Dir;
use super::error::StoreError;
use super::file;
use super::rounds::{RoundLimits, RoundWriter};
use super::steps::{self, StepLimits, StepWriter};
use super::time::{file_stamp, rfc3339, unix_seconds};
use crate::units::{Joules, Mhz, Seconds, Time};

const METADATA: &str = "experiment_metadata.json";
const SNAPSHOT: &str = "config_snapshot.yaml";

/// What is known when a run begins.
#[derive(Debug, Clone, PartialEq)]
pub struct RunInfo {
    /// The GPU's product name.
    pub gpu_model: String,
    /// The configuration in force, defaults included.
    pub config_used: Value,
    /// The configuration file, word for word.
    pub config_snapshot: String,
}

/// What came of a run, so far or in the end.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct RunSummary {
    /// Rounds done.
    pub total_rounds: u64,
    /// The round in which the choice of clocks had settled.
    pub(crate) convergence_round: Option<u64>,
    /// The lowest mean EDP of any clock, in joule seconds.
    #[serde(rename = "best_edp_achieved")]
    pub(crate) best_edp: Option<f64>,
    /// That clock.
    pub(crate) best_frequency: Option<Mhz>,
    /// Energy measured.
    #[serde(rename = "total_energy_consumed_j")]
    pub(crate) total_energy: Option<Joules>,
    /// The time in which it was measured: gaps do not count, so that energy over time is power.
    #[serde(skip)]
    pub(crate) energy_time: Option<Seconds>,
}

/// `experiment_metadata.json`, with AGFT's keys. What is not known, or not yet, is `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExperimentMetadata {
    /// The directory's name.
    pub(crate) experiment_name: String,
    /// RFC 3339.
    pub(crate) start_time: String,
    /// Unix seconds.
    pub(crate) start_timestamp: f64,
    /// RFC 3339. `null`: the run goes on, or was killed.
    pub end_time: Option<String>,
    /// Unix seconds.
    pub(crate) end_timestamp: Option<f64>,
    /// The GPU's product name.
    pub gpu_model: String,
    /// The configuration in force.
    pub config_used: Value,
    /// What came of it.
    #[serde(flatten)]
    pub(crate) summary: RunSummary,
    /// A key of AGFT's files; agft has nothing more to tell.
    pub(crate) final_performance_summary: Map<String, Value>,
    /// From start to end by the wall clock.
    pub(crate) duration_seconds: Option<f64>,
    /// The same in hours.
    pub(crate) duration_hours: Option<f64>,
    /// Energy over the time in which it was measured.
    pub average_power_w: Option<f64>,
}

/// The directory of the run that is going on. Held, so that no other agft takes it for an old one.
#[derive(Debug)]
pub struct RunDir {
    base: Dir,
    dir: Dir,
    prefix: String,
    name: String,
    started: Timestamp,
    info: RunInfo,
}

impl RunDir {
    /// Makes `<base>/<prefix>_<start in UTC>/` (with `_2`, `_3`, ... behind it if that is taken), and in it the
    /// configuration and the metadata as far as they are known.
    /// Errors: `StoreError::BadPrefix`, `StoreError::Io` if something cannot be written.
    pub fn create(base: &Path, prefix: &str, info: RunInfo, started: Timestamp) -> Result<Self, StoreError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if prefix.is_empty() || prefix.len() > 100 || prefix.starts_with('.') || !prefix.chars().all(fits) {
            return Err(StoreError::BadPrefix { name: prefix.to_owned() });
        }
        let base = Dir::open_or_create(base)?.make_ours()?;
        let stamped = format!("{prefix}_{}", file_stamp(started));
        let mut name = stamped.clone();
        let mut n = 1;
        while !base.make_dir(&name)? {
            n += 1;
            name = format!("{stamped}_{n}");
        }
        let dir = base.open_dir(&name)?;
        dir.lock()?;
        let run = Self { base, dir, prefix: prefix.to_owned(), name, started, info };
        if let Err(error) = run.write_metadata(&RunSummary::default(), None) {
            // Without metadata nobody would ever clear it away.
            let _ = run.base.remove_empty_dir(&run.name);
            return Err(error);
        }
        file::replace(&run.dir, SNAPSHOT, run.info.config_snapshot.as_bytes())?;
        Ok(run)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Opens the record of its rounds.
    pub(crate) fn rounds(&self, limits: RoundLimits, now: Time) -> Result<RoundWriter, StoreError> {
        RoundWriter::within(self.base.open_dir(&self.name)?, limits, now)
    }

    /// Makes the directory of its steps, and a writer for them.
    /// Errors: `StoreError` if the directory cannot be made.
    pub fn steps(&self, limits: StepLimits) -> Result<StepWriter, StoreError> {
        self.dir.make_dir(steps::DIR)?;
        Ok(StepWriter::within(self.dir.open_dir(steps::DIR)?, limits))
    }

    /// Writes down what came of the run so far: what there will be to read if it is killed.
    /// Errors: [`StoreError`]; the metadata are then as they were.
    pub(crate) fn checkpoint(&self, summary: &RunSummary) -> Result<(), StoreError> {
        self.write_metadata(summary, None)
    }

    /// Writes down what came of the run, and lets go of the directory: a run ends once.
    /// Errors: [`StoreError`]; the metadata are then as they were.
    pub(crate) fn finish(self, summary: &RunSummary, ended: Timestamp) -> Result<(), StoreError> {
        self.write_metadata(summary, Some(ended))
    }

    fn write_metadata(&self, summary: &RunSummary, ended: Option<Timestamp>) -> Result<(), StoreError> {
        // A wall clock that was set back in between tells nothing about the duration.
        let duration = ended.map(|end| end.duration_since(self.started).as_secs_f64()).filter(|s| *s >= 0.0);
        let power = match (summary.total_energy, summary.energy_time) {
            (Some(Joules(energy)), Some(Seconds(time))) if time > 0.0 => Some(energy / time),
            _ => None,
        };
        let metadata = ExperimentMetadata {
            experiment_name: self.name.clone(),
            start_time: rfc3339(self.started),
            start_timestamp: unix_seconds(self.started),
            end_time: ended.map(rfc3339),
            end_timestamp: ended.map(unix_seconds),
            gpu_model: self.info.gpu_model.clone(),
            config_used: self.info.config_used.clone(),
            summary: summary.clone(),
            final_performance_summary: Map::new(),
            duration_seconds: duration,
            duration_hours: duration.map(|seconds| seconds / 3600.0),
            average_power_w: power,
        };
        file::replace(&self.dir, METADATA, &file::json(&self.dir.file(METADATA), &metadata)?)
    }
}

#[cfg(test)]
mod tests;
