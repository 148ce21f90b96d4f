//! Model types.

use crate::sim::physics::ModelPreset;

/// Every model type.
pub const MODELS: [ModelPreset; 3] = [MODEL_3B, MODEL_8B, MODEL_14B];

/// The shape of Llama 3.2 3B (P).
pub const MODEL_3B: ModelPreset = ModelPreset {
    key: "3b",
    name: "sim-3b",
    params: 3.21e9,
    layers: 28.0,
    hidden: 3072.0,
    kv_bytes: 2.0 * 28.0 * 1024.0 * 2.0,
};

/// The shape of Llama 3.1 8B (P).
pub const MODEL_8B: ModelPreset = ModelPreset {
    key: "8b",
    name: "sim-8b",
    params: 8.03e9,
    layers: 32.0,
    hidden: 4096.0,
    kv_bytes: 2.0 * 32.0 * 1024.0 * 2.0,
};

/// The shape of Qwen 2.5 14B (P).
pub const MODEL_14B: ModelPreset = ModelPreset {
    key: "14b",
    name: "sim-14b",
    params: 14.77e9,
    layers: 48.0,
    hidden: 5120.0,
    kv_bytes: 2.0 * 48.0 * 1024.0 * 2.0,
};
