//! `model_metadata.json`: the state of the learner, for people and scripts.
//!
//! It tells about the model and is never needed to load it.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::container;
use super::dir::{Dir, Found};
use super::error::StoreError;
use super::file;
use super::model::ModelStore;
use super::rounds;
use crate::bandit::structured::{BestAt, Chosen, Ratios};
use crate::stats::Interval;
use crate::units::Mhz;

const FILE_NAME: &str = "model_metadata.json";
const SCHEMA_VERSION: u32 = 1;
const MAX_BYTES: u64 = 1 << 20;

/// What stands in `model_metadata.json`, beside the versions that agft adds. `None` is unknown, written as `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelMetadata {
    /// `BASELINE`, `EXPLORATION`, `EXPLOITATION`, `IDLE`, ...
    pub phase: String,
    /// Has the choice of clocks settled?
    pub converged: bool,
    /// Rounds the model has learned from.
    pub total_rounds: u64,
    /// Mean reward of those rounds.
    pub(crate) avg_reward: Option<f64>,
    /// The core clock the model holds for the best.
    pub(crate) best_core_mhz: Option<Mhz>,
    /// The memory clock that goes with it, where memory clocks are controlled.
    pub(crate) best_memory_mhz: Option<Mhz>,
    /// EDP at the driver's own clocks, in joule seconds.
    pub baseline_edp: Option<f64>,
    /// The round in which the choice converged; `None` while it has not, or no longer has.
    #[serde(default)]
    pub converged_round: Option<u64>,
    /// When that was, RFC 3339.
    #[serde(default)]
    pub converged_since: Option<String>,
    /// The clock that is preferred under the present load; `None` where the policy keeps no such choice.
    #[serde(default)]
    pub chosen: Option<Expected>,
    /// The best clock at multiples of the present load, as far as the policy knows.
    #[serde(default)]
    pub by_load: Vec<Expected>,
    /// When this model was begun, RFC 3339.
    pub(crate) created_at: String,
    /// When this was written, RFC 3339.
    pub(crate) updated_at: String,
    /// The policy, for example `linucb`.
    pub algorithm: String,
    /// Version of the policy's own stored form.
    pub model_version: u32,
    /// The GPU's product name.
    pub gpu: String,
    /// The GPU driver's version.
    pub driver: Option<String>,
    /// The inference server and what it serves.
    pub engine: Option<String>,
}

/// What is expected of a clock against default clocks, under one load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// The load, as a multiple of the present one.
    pub load: f64,
    /// The core clock; `None` is driver-default clocks.
    pub core_mhz: Option<Mhz>,
    /// Relative change of energy for the same work, with its 95 % interval; `None` is not known.
    pub energy_change: Option<Interval>,
    /// Relative change of the time per output token.
    pub tpot_change: Option<Interval>,
}

impl Expected {
    fn new(load: f64, core_mhz: Option<Mhz>, ratios: Option<Ratios>) -> Self {
        let sound = |of: &Interval| of.is_sound();
        Self {
            load,
            core_mhz,
            energy_change: ratios.map(|of| of.energy.change()).filter(sound),
            tpot_change: ratios.map(|of| of.time.change()).filter(sound),
        }
    }
}

impl From<Chosen> for Expected {
    fn from(chosen: Chosen) -> Self {
        Self::new(1.0, chosen.core, chosen.ratios)
    }
}

impl From<&BestAt> for Expected {
    fn from(best: &BestAt) -> Self {
        Self::new(best.share, best.core, best.ratios)
    }
}

/// The file: the metadata and what is true of every file this program writes.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    metadata: &'a ModelMetadata,
    /// agft's version; AGFT's key.
    version: &'static str,
    /// The actions are clocks themselves, not steps up and down; AGFT's key.
    frequency_as_action: bool,
    formats: Formats,
}

/// Versions of the files' formats.
#[derive(Serialize)]
struct Formats {
    model_metadata: u32,
    model_file: u32,
    rounds: u32,
}

impl ModelStore {
    /// Replaces `model_metadata.json` beside the model.
    /// Errors: [`StoreError`]; the old file is then as it was.
    pub(crate) fn write_metadata(&self, metadata: &ModelMetadata) -> Result<(), StoreError> {
        let document = Document {
            metadata,
            version: env!("CARGO_PKG_VERSION"),
            frequency_as_action: true,
            formats: Formats {
                model_metadata: SCHEMA_VERSION,
                model_file: container::FORMAT_VERSION,
                rounds: rounds::SCHEMA_VERSION,
            },
        };
        file::replace(self.dir(), FILE_NAME, &file::json(&self.dir().file(FILE_NAME), &document)?)
    }
}

impl ModelMetadata {
    /// Reads it from a model directory, also while a daemon holds that; `None` if it is not there.
    /// Errors: `StoreError::Io` if it cannot be read, `StoreError::Damaged` if it is not what agft
    /// writes.
    pub fn read(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(FILE_NAME);
        if !dir.is_dir() {
            return Ok(None);
        }
        let dir = Dir::open_or_create(dir)?;
        let file = match dir.open_read(FILE_NAME)? {
            Found::Absent => return Ok(None),
            Found::Refused(why) => return Err(StoreError::Damaged { path, detail: why.to_string() }),
            Found::Here(file) => file,
        };
        let mut text = String::new();
        dir.attempt("read", FILE_NAME, || file.take(MAX_BYTES).read_to_string(&mut text))?;
        match serde_json::from_str(&text) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) => Err(StoreError::Damaged { path, detail: error.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::store::testing::at;
    use crate::store::time::rfc3339;

    fn metadata() -> ModelMetadata {
        ModelMetadata {
            phase: "EXPLOITATION".into(),
            converged: true,
            total_rounds: 412,
            avg_reward: Some(0.25),
            best_core_mhz: Some(Mhz(1395)),
            best_memory_mhz: None,
            baseline_edp: Some(3.5),
            converged_round: Some(380),
            converged_since: Some(rfc3339(at(1_900))),
            chosen: Some(Expected {
                load: 1.0,
                core_mhz: Some(Mhz(1395)),
                energy_change: Some(Interval { value: -0.25, half_width: 0.03 }),
                tpot_change: Some(Interval { value: 0.05, half_width: 0.02 }),
            }),
            by_load: vec![Expected { load: 0.5, core_mhz: None, energy_change: None, tpot_change: None }],
            created_at: rfc3339(at(1_000)),
            updated_at: rfc3339(at(2_000)),
            algorithm: "linucb".into(),
            model_version: 3,
            gpu: "NVIDIA H200".into(),
            driver: Some("570.86.15".into()),
            engine: None,
        }
    }

    #[test]
    fn metadata_comes_back_as_written_and_none_comes_from_an_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        let store = ModelStore::open(dir.path()).unwrap();
        assert_eq!(ModelMetadata::read(dir.path()).unwrap(), None);
        store.write_metadata(&metadata()).unwrap();
        assert_eq!(ModelMetadata::read(dir.path()).unwrap(), Some(metadata()));
    }

    #[test]
    fn every_key_has_its_name_and_the_unknown_is_null() {
        let dir = tempfile::tempdir().unwrap();
        let store = ModelStore::open(dir.path()).unwrap();
        store.write_metadata(&ModelMetadata { avg_reward: Some(f64::NAN), ..metadata() }).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        let want = serde_json::json!({
            "phase": "EXPLOITATION",
            "converged": true,
            "total_rounds": 412,
            "avg_reward": null,
            "best_core_mhz": 1395,
            "best_memory_mhz": null,
            "baseline_edp": 3.5,
            "converged_round": 380,
            "converged_since": "1970-01-01T00:31:40.000Z",
            "chosen": {
                "load": 1.0,
                "core_mhz": 1395,
                "energy_change": { "value": -0.25, "half_width": 0.03 },
                "tpot_change": { "value": 0.05, "half_width": 0.02 },
            },
            "by_load": [{ "load": 0.5, "core_mhz": null, "energy_change": null, "tpot_change": null }],
            "created_at": "1970-01-01T00:16:40.000Z",
            "updated_at": "1970-01-01T00:33:20.000Z",
            "algorithm": "linucb",
            "model_version": 3,
            "gpu": "NVIDIA H200",
            "driver": "570.86.15",
            "engine": null,
            "version": env!("CARGO_PKG_VERSION"),
            "frequency_as_action": true,
            "formats": { "model_metadata": 1, "model_file": 1, "rounds": 1 },
        });
        assert_eq!(found, want);
    }

    #[test]
    fn damaged_metadata_is_named_with_the_place_of_the_damage() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "{\"phase\": ").unwrap();
        let text = ModelMetadata::read(dir.path()).unwrap_err().to_string();
        assert!(text.contains("model_metadata.json is damaged") && text.contains("line 1"), "{text}");
    }

    #[test]
    fn the_python_lines_of_agfts_readme_work_on_it() {
        let home = tempfile::tempdir().unwrap();
        let store = ModelStore::open(&home.path().join("data/models")).unwrap();
        store.write_metadata(&metadata()).unwrap();
        let lines = "import json\n\
                     with open('data/models/model_metadata.json', 'r') as f:\n    \
                         metadata = json.load(f)\n\
                     print(metadata['phase'], metadata['converged'])";
        let python = Command::new("python3").args(["-c", lines]).current_dir(home.path()).output();
        let Ok(python) = python else {
            eprintln!("skipped: no python3 here");
            return;
        };
        assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
        assert_eq!(String::from_utf8_lossy(&python.stdout).trim(), "EXPLOITATION True");
    }
}
