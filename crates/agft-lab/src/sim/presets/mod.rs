//! The GPU and model types the simulator knows, by key.

mod gpus;
mod models;

pub use gpus::*;
pub use models::*;

use super::SimError;
use super::physics::{GpuPreset, ModelPreset};

impl GpuPreset {
    /// The preset with this key, case ignored.
    ///
    /// # Errors
    /// [`SimError::UnknownName`], naming the keys there are.
    pub fn named(key: &str) -> Result<Self, SimError> {
        find("GPU", key, &GPUS, |gpu| gpu.key)
    }
}

impl ModelPreset {
    /// The preset with this key, case ignored.
    ///
    /// # Errors
    /// [`SimError::UnknownName`], naming the keys there are.
    pub fn named(key: &str) -> Result<Self, SimError> {
        find("model", key, &MODELS, |model| model.key)
    }
}

fn find<T: Copy>(
    kind: &'static str,
    given: &str,
    all: &[T],
    key: fn(&T) -> &'static str,
) -> Result<T, SimError> {
    all.iter().find(|preset| key(preset).eq_ignore_ascii_case(given)).copied().ok_or_else(|| {
        SimError::UnknownName {
            kind,
            given: given.to_owned(),
            known: all.iter().map(key).collect::<Vec<_>>().join(", "),
        }
    })
}
