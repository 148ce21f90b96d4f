//! How much load a (GPU, model) pair sustains, so that a workload can be sized as a share of it.

use super::SimError;
use super::engine::EngineSettings;
use super::patterns::Pattern;
use super::physics::{Batch, GpuPreset, ModelPreset, Work};
use super::workload::{Phase, Request, Shape, Workload};

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

/// What one request asks for in the mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Prompt tokens.
    pub prompt: f64,
    /// Prompt tokens that are not in the prefix cache.
    pub computed: f64,
    /// Output tokens.
    pub output: f64,
    /// Tokens that a computed prompt token attends to.
    pub attended: f64,
}

impl Demand {
    /// Of a shape.
    #[must_use]
    pub fn of(shape: &Shape) -> Self {
        let prompt = shape.prompt.mean();
        Self {
            prompt,
            computed: (prompt - shape.mean_cached()).max(1.0),
            output: shape.output.mean(),
            attended: prompt / 2.0,
        }
    }

    /// Of a list of requests; `None` if it is empty.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
    pub fn of_requests(requests: &[Request]) -> Option<Self> {
        let mean = |of: &dyn Fn(&Request) -> f64| {
            requests.iter().map(of).sum::<f64>() / requests.len().max(1) as f64
        };
        let computed =
            |request: &Request| f64::from(request.prompt_tokens.saturating_sub(request.cached_tokens).max(1));
        // A prompt's computed tokens come after its cached ones.
        let pairs = |request: &Request| {
            computed(request) * (f64::from(request.prompt_tokens) - computed(request) / 2.0)
        };
        (!requests.is_empty()).then(|| Self {
            prompt: mean(&|request| f64::from(request.prompt_tokens)),
            computed: mean(&computed),
            output: mean(&|request| f64::from(request.output_tokens)),
            attended: mean(&pairs) / mean(&computed),
        })
    }
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
    demand: &Demand,
) -> Result<f64, SimError> {
    let kv_tokens = f64::from(kv_blocks(gpu, model, settings)?) * f64::from(settings.block_tokens);
    let Demand { prompt, computed, output, attended } = *demand;
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
            prefill_pairs: prefill * attended,
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
        let phases = pattern.shapes().into_iter().map(|(seconds, shape)| Phase { seconds, rate: 0.0, shape });
        let mut load = Self { phases: phases.collect(), rhythm: pattern.rhythm() };
        load.size(gpu, model, settings, utilization)?;
        Ok(load)
    }

    /// Sets the rates so that each phase asks for `utilization` of what the pair sustains.
    ///
    /// # Errors
    /// [`SimError::ModelDoesNotFit`].
    pub fn size(
        &mut self,
        gpu: &GpuPreset,
        model: &ModelPreset,
        settings: &EngineSettings,
        utilization: f64,
    ) -> Result<(), SimError> {
        for phase in &mut self.phases {
            phase.rate = utilization * requests_per_second(gpu, model, settings, &Demand::of(&phase.shape))?;
        }
        Ok(())
    }
}
