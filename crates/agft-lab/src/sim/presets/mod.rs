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
        find("GPU", key, GPUS.iter().chain(&MEASURED_GPUS), |gpu| gpu.key)
    }
}

impl ModelPreset {
    /// The preset with this key, case ignored.
    ///
    /// # Errors
    /// [`SimError::UnknownName`], naming the keys there are.
    pub fn named(key: &str) -> Result<Self, SimError> {
        find("model", key, MODELS.iter(), |model| model.key)
    }
}

fn find<'a, T: Copy + 'a>(
    kind: &'static str,
    given: &str,
    all: impl Iterator<Item = &'a T> + Clone,
    key: fn(&T) -> &'static str,
) -> Result<T, SimError> {
    all.clone().find(|preset| key(preset).eq_ignore_ascii_case(given)).copied().ok_or_else(|| {
        SimError::UnknownName {
            kind,
            given: given.to_owned(),
            known: all.map(key).collect::<Vec<_>>().join(", "),
        }
    })
}
