//! Whose model a file holds.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a model was learned on, and what it means: stored before the model, readable without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The GPU's product name.
    pub gpu_name: String,
    /// The GPUs' UUIDs; empty if unknown.
    #[serde(default)]
    pub gpu_uuids: Vec<String>,
    /// The context vector's features, in order.
    pub feature_names: Vec<String>,
    /// The policy, for example `linucb`.
    pub policy: String,
    /// Version of the policy's own stored form. The policy raises it when that form changes.
    pub model_version: u32,
    /// The model that the inference server serves, if it says.
    #[serde(default)]
    pub engine_model: Option<String>,
}

/// Why a stored model cannot be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    #[error("it was learned on {stored}, and this is {here}")]
    Gpu { stored: String, here: String },
    #[error("it was learned from the features {}, and these are {}", stored.join(" "), here.join(" "))]
    Features { stored: Vec<String>, here: Vec<String> },
    #[error("it belongs to the policy {stored}, and this is {here}")]
    Policy { stored: String, here: String },
    #[error(
        "its model version is {stored}, and this agft reads {here}{}",
        if stored > here { " (it was written by a newer agft)" } else { "" }
    )]
    ModelVersion { stored: u32, here: u32 },
}

/// What differs, although the model is used: worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// Another board of the same product.
    Board {
        /// UUIDs in the file.
        stored: Vec<String>,
        /// UUIDs here.
        here: Vec<String>,
    },
    /// The server served another model: what was learned is a first guess only.
    EngineModel {
        /// The file's.
        stored: String,
        /// The one here.
        here: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Board { stored, here } => {
                write!(f, "learned on board {}, used on {}", stored.join(" "), here.join(" "))
            }
            Self::EngineModel { stored, here } => {
                write!(f, "learned while serving {stored}, used while serving {here}")
            }
        }
    }
}

impl Identity {
    /// Can a model stored under this identity be used where `here` is expected?
    ///
    /// Product, features (with their order), policy and model version have to be the same. Another board of the same
    /// product and another served model are reported, not refused; where one side does not know, nothing is said.
    /// Errors: `Mismatch`, the first thing that forbids it.
    pub fn fits(&self, here: &Self) -> Result<Vec<Difference>, Mismatch> {
        let pair = |stored: &String, here: &String| (stored.clone(), here.clone());
        if self.gpu_name != here.gpu_name {
            let (stored, here) = pair(&self.gpu_name, &here.gpu_name);
            return Err(Mismatch::Gpu { stored, here });
        }
        if self.policy != here.policy {
            let (stored, here) = pair(&self.policy, &here.policy);
            return Err(Mismatch::Policy { stored, here });
        }
        // What an earlier version holds is converted (see `earlier`).
        if self.model_version > here.model_version {
            return Err(Mismatch::ModelVersion { stored: self.model_version, here: here.model_version });
        }
        if self.feature_names != here.feature_names {
            let (stored, here) = (self.feature_names.clone(), here.feature_names.clone());
            return Err(Mismatch::Features { stored, here });
        }
        let mut differences = Vec::new();
        let boards = |identity: &Self| identity.gpu_uuids.iter().cloned().collect::<BTreeSet<_>>();
        if !self.gpu_uuids.is_empty() && !here.gpu_uuids.is_empty() && boards(self) != boards(here) {
            let (stored, here) = (self.gpu_uuids.clone(), here.gpu_uuids.clone());
            differences.push(Difference::Board { stored, here });
        }
        if let (Some(stored), Some(here)) = (&self.engine_model, &here.engine_model)
            && stored != here
        {
            let (stored, here) = pair(stored, here);
            differences.push(Difference::EngineModel { stored, here });
        }
        Ok(differences)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::identity;

    #[test]
    fn another_gpu_policy_version_or_feature_order_is_refused_with_both_sides_named() {
        type Change = fn(&mut Identity);
        let here = identity();
        let cases: [(Change, &str); 4] = [
            (|i| i.gpu_name = "NVIDIA A100".into(), "it was learned on NVIDIA A100, and this is NVIDIA H200"),
            (|i| i.policy = "linucb".into(), "it belongs to the policy linucb, and this is structured"),
            (
                |i| i.model_version = 4,
                "its model version is 4, and this agft reads 3 (it was written by a newer agft)",
            ),
            (
                |i| i.feature_names.reverse(),
                "it was learned from the features concurrency has_queue, and these are has_queue concurrency",
            ),
        ];
        for (change, want) in cases {
            let mut stored = identity();
            change(&mut stored);
            assert_eq!(stored.fits(&here).unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn another_board_or_served_model_is_reported_and_unknown_ones_are_not() {
        let mut here = identity();
        here.gpu_uuids.reverse();
        assert_eq!(identity().fits(&here), Ok(vec![]), "the order of boards means nothing");
        here.gpu_uuids = vec!["GPU-3".into()];
        here.engine_model = Some("qwen".into());
        let said: Vec<String> = identity().fits(&here).unwrap().iter().map(ToString::to_string).collect();
        let want = [
            "learned on board GPU-1 GPU-2, used on GPU-3",
            "learned while serving llama, used while serving qwen",
        ];
        assert_eq!(said, want);
        here.gpu_uuids.clear();
        here.engine_model = None;
        assert_eq!(identity().fits(&here), Ok(vec![]));
    }
}
