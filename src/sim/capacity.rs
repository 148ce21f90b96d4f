//! How much load a (GPU, model) pair sustains, so that a workload can be sized as a share of it.

use super::SimError;
use super::engine::EngineSettings;
use super::patterns::Pattern;
use super::physics::{Batch, GpuPreset, ModelPreset, Work};
use super::workload::{Phase, Shape, Workload};

/// Memory for activations, CUDA graphs and the like.
const OVERHEAD_BYTES: f64 = 1.5e9;

/// KV-cache blocks beside the weights.
///
/// # Errors
/// [`SimError::ModelDoesNotFit`] if fewer than 64 blocks are left.
pub fn kv_blocks(gpu: &GpuPreset, model: &ModelPreset, settings: &EngineSettings) -> Result<u32, SimError> {
    if let Some(blocks) = settings.kv_blocks {
        return Ok(blocks.max(1));
    }
    let left = gpu.memory_bytes * settings.memory_share - model.weight_bytes() - OVERHEAD_BYTES;
    let blocks = left / (model.kv_bytes * f64::from(settings.block_tokens));
    if blocks < 64.0 {
        return Err(SimError::ModelDoesNotFit {
            gpu: gpu.name,
            model: model.key,
            needed_gb: (model.weight_bytes() + OVERHEAD_BYTES) / 1e9,
            usable_gb: gpu.memory_bytes * settings.memory_share / 1e9,
        });
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive; GPU memory is bounded"
    )]
    let blocks = blocks as u32;
    Ok(blocks)
}

/// Requests per second that the pair sustains at default clocks in the steady state: with B requests decoding, B/g of
/// them finish per step and bring as many new prompts, which ride in the same steps. The best B counts.
///
/// # Errors
/// [`SimError::ModelDoesNotFit`].
pub fn requests_per_second(
    gpu: &GpuPreset,
    model: &ModelPreset,
    settings: &EngineSettings,
    shape: &Shape,
) -> Result<f64, SimError> {
    let kv_tokens = f64::from(kv_blocks(gpu, model, settings)?) * f64::from(settings.block_tokens);
    let prompt = shape.prompt.mean();
    let computed = (prompt - shape.mean_cached()).max(1.0);
    let output = shape.output.mean();
    let context = prompt + output / 2.0;
    let mut best = 0.0_f64;
    for batch in 1..=settings.max_running {
        #[expect(clippy::cast_precision_loss, reason = "at most a few thousand requests")]
        let b = batch as f64;
        let prefill = b * computed / output;
        if b > 1.0 && (b * context > kv_tokens || prefill + b > f64::from(settings.max_step_tokens)) {
            break;
        }
        let host = settings.host_per_step.0 + settings.host_per_request.0 * b;
        let step = Batch {
            prefill_tokens: prefill,
            prefill_pairs: prefill * prompt / 2.0,
            decode_seqs: b,
            context_tokens: b * context,
        };
        let cost = gpu.step(&Work::of(&step, model, host), gpu.fastest());
        best = best.max(b / (output * cost.seconds.max(1e-9)));
    }
    Ok(best)
}

impl Workload {
    /// A named pattern, sized so that each of its phases asks for `utilization` of what the pair sustains.
    ///
    /// # Errors
    /// [`SimError::ModelDoesNotFit`].
    pub fn sized(
        pattern: Pattern,
        gpu: &GpuPreset,
        model: &ModelPreset,
        settings: &EngineSettings,
        utilization: f64,
    ) -> Result<Self, SimError> {
        let phases = pattern
            .shapes()
            .into_iter()
            .map(|(seconds, shape)| {
                let rate = utilization * requests_per_second(gpu, model, settings, &shape)?;
                Ok(Phase { seconds, rate, shape })
            })
            .collect::<Result<_, SimError>>()?;
        Ok(Self { phases, rhythm: pattern.rhythm() })
    }
}
