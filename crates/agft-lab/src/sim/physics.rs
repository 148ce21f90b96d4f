//! What one engine step costs at given clocks: time by a roofline, power by activity and f V(f)^2, or both by
//! measured points ([`super::measured`]). [`GpuPreset::step`] asks the board's own physics. What follows is
//! the formula.
//!
//! Time: a step does arithmetic and moves data inside the chip (both go with the core clock) and reads DRAM (goes with
//! the memory clock). The slower side dominates, with a smooth corner (p-norm), and the host adds a constant share:
//!
//! ```text
//! t_core = flops / (peak f/f_rated) + bytes / (on_chip f/f_max)     t_mem = bytes / (bandwidth m/m_max)
//! t_gpu  = (t_core^p + t_mem^p)^(1/p)                               t     = t_gpu + t_host
//! ```
//!
//! Power while a kernel runs, with phi(f) = (f/f_max) (V(f)/V_max)^2 and activities a = t_core/t_gpu, b = t_mem/t_gpu:
//!
//! ```text
//! P_idle = base + mem_idle m/m_max + core_idle phi
//! P_busy = P_idle + active + dram b m/m_max + core (stall + (1 - stall) a) phi
//! ```
//!
//! The step's power is the time-weighted mean of `P_busy` and, for the host's share, `P_idle`.

use super::measured::Measured;
use agft::units::{Clocks, Mhz, Seconds, Watts};

/// What tells time and power of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Physics {
    /// Roofline and voltage curve, by the preset's coefficients.
    Formula,
    /// Measured points between which it is interpolated; of the preset's coefficients only the idle power
    /// counts, and the arithmetic and bandwidth that say how long a step takes at the highest clocks.
    Measured(Measured),
}

/// Voltage against clock: flat up to a knee, then rising in a straight line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Voltage {
    /// Where the rise begins, as a share of the highest clock.
    pub knee: f64,
    /// How much higher the voltage is at the highest clock, as a share of the flat voltage.
    pub rise: f64,
}

impl Voltage {
    /// Voltage at a share of the highest clock, relative to the voltage at the highest clock.
    #[must_use]
    pub fn relative(self, share: f64) -> f64 {
        let above = ((share - self.knee) / (1.0 - self.knee)).max(0.0);
        (1.0 + self.rise * above) / (1.0 + self.rise)
    }
}

/// Where a board's power goes, in watts at the highest clocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PowerModel {
    /// Always there.
    pub base: f64,
    /// Idle memory at its highest clock.
    pub memory_idle: f64,
    /// Idle core at its highest clock.
    pub core_idle: f64,
    /// Extra as soon as a kernel runs, whatever the clocks.
    pub active: f64,
    /// Extra at full DRAM bandwidth.
    pub dram: f64,
    /// Extra when the core side is the bottleneck all the time.
    pub core: f64,
    /// Share of `core` that burns although the core waits for memory.
    pub stall: f64,
}

/// How fast a clock change takes effect: lognormal, bounded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settle {
    /// Median in seconds.
    pub median: f64,
    /// Standard deviation of the logarithm.
    pub sigma: f64,
    /// Bounds in seconds.
    pub bounds: (f64, f64),
}

/// How the driver measures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SensorModel {
    /// The energy counter moves once per so many seconds.
    pub energy_tick: f64,
    /// The power reading is renewed once per so many seconds ...
    pub power_period: f64,
    /// ... and is the mean over so many seconds before that.
    pub power_window: f64,
    /// Standard deviation of one power reading, as a share.
    pub power_noise: f64,
    /// Standard deviation of the board's constant gain error, as a share.
    pub gain_error: f64,
}

/// A GPU type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GpuPreset {
    /// Short name to ask for, such as `a100`.
    pub key: &'static str,
    /// Name as the driver gives it.
    pub name: &'static str,
    /// Lowest and highest core clock of the driver's list.
    pub core_range: (Mhz, Mhz),
    /// Distance of the list's clocks in MHz; Blackwell alternates 7 and 8.
    pub core_step: f64,
    /// The highest clock the chip really reaches; higher requests are silently clamped, and no lock means this.
    pub core_reached: Mhz,
    /// Memory clocks, highest first. With one only, the memory clock cannot be locked.
    pub memory: &'static [Mhz],
    /// Power cap.
    pub power_cap: Watts,
    /// Memory size in bytes.
    pub memory_bytes: f64,
    /// DRAM bandwidth that kernels achieve at the highest memory clock, bytes/s.
    pub bandwidth: f64,
    /// Data path inside the chip at `core_reached`, bytes/s; it limits memory-bound kernels at low core clocks.
    pub on_chip: f64,
    /// Dense 16-bit arithmetic that kernels achieve at `core_reached`, FLOP/s.
    pub flops: f64,
    /// Sharpness of the roofline's corner (the p of the p-norm).
    pub corner: f64,
    /// Voltage curve over `core_reached`.
    pub voltage: Voltage,
    /// Power coefficients.
    pub power: PowerModel,
    /// Clock-change latency.
    pub settle: Settle,
    /// Sensors.
    pub sensors: SensorModel,
    /// Boards that lower their own clocks when idle do so after this long, although a context is open.
    pub parks_itself_after: Option<Seconds>,
    /// What tells time and power of a step.
    pub physics: Physics,
}

/// A model as the GPU sees it: 16-bit weights and KV cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelPreset {
    /// Short name to ask for, such as `8b`.
    pub key: &'static str,
    /// Name that the engine serves it under.
    pub name: &'static str,
    /// Parameters.
    pub params: f64,
    /// Transformer layers.
    pub layers: f64,
    /// Hidden size.
    pub hidden: f64,
    /// KV-cache bytes per token.
    pub kv_bytes: f64,
}

impl ModelPreset {
    /// Bytes of the weights.
    #[must_use]
    pub fn weight_bytes(&self) -> f64 {
        2.0 * self.params
    }
}

/// The work of one engine step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Batch {
    /// Prompt tokens computed.
    pub prefill_tokens: f64,
    /// Query-key pairs of their attention: the sum of each prompt token's context.
    pub prefill_pairs: f64,
    /// Sequences that decode one token each.
    pub decode_seqs: f64,
    /// Tokens whose KV entries are read: contexts of all sequences in the step.
    pub context_tokens: f64,
}

/// The step's work in the GPU's terms.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes moved from DRAM.
    pub bytes: f64,
    /// Seconds in which the host prepares the step and the GPU waits.
    pub host: f64,
    /// Those of the operations that prompts ask for.
    pub prefill_flops: f64,
    /// Those of the bytes that are read or written for prompts alone.
    pub prefill_bytes: f64,
    /// Sequences that decode one token each.
    pub decode_seqs: f64,
}

impl Work {
    /// Two operations per parameter and token, four per hidden unit, layer and attention pair; weights and KV entries
    /// are read once per step.
    #[must_use]
    pub fn of(batch: &Batch, model: &ModelPreset, host: f64) -> Self {
        let tokens = batch.prefill_tokens + batch.decode_seqs;
        let pairs = batch.prefill_pairs + batch.context_tokens;
        let flops =
            |tokens: f64, pairs: f64| 2.0 * model.params * tokens + 4.0 * model.layers * model.hidden * pairs;
        let all = flops(tokens, pairs);
        let bytes = model.weight_bytes() + model.kv_bytes * (batch.context_tokens + tokens);
        // Where sequences decode, the weights and contexts are read for them anyway.
        let (prefill_flops, prefill_bytes) = if batch.decode_seqs > 0.0 {
            (flops(batch.prefill_tokens, batch.prefill_pairs), model.kv_bytes * batch.prefill_tokens)
        } else {
            (all, bytes)
        };
        Self { flops: all, bytes, host, prefill_flops, prefill_bytes, decode_seqs: batch.decode_seqs }
    }
}

/// Time and power of a step at given clocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCost {
    /// Duration in seconds, the host's share included.
    pub seconds: f64,
    /// Mean power in watts.
    pub watts: f64,
}

/// Seconds of the core side, of the memory side, and of both together.
struct Roofline {
    t_core: f64,
    t_mem: f64,
    gpu: f64,
}

impl GpuPreset {
    /// Step time and power at `clocks`, the power cap left aside.
    #[must_use]
    pub fn step(&self, work: &Work, clocks: Clocks) -> StepCost {
        match &self.physics {
            Physics::Formula => self.step_by_formula(work, clocks),
            Physics::Measured(measured) => {
                // How long each part takes at the highest clocks.
                let alone = |flops: f64, bytes: f64| {
                    if flops > 0.0 { self.roofline(flops, bytes, 1.0, 1.0).gpu } else { 0.0 }
                };
                let prefill_s = alone(work.prefill_flops, work.prefill_bytes);
                let decode_s = alone(work.flops - work.prefill_flops, work.bytes - work.prefill_bytes);
                measured.step(work, clocks, prefill_s, decode_s)
            }
        }
    }

    /// The core clock and the memory clock as shares of the highest ones.
    fn roofline(&self, flops: f64, bytes: f64, core: f64, memory: f64) -> Roofline {
        let t_core = flops / (self.flops * core) + bytes / (self.on_chip * core);
        let t_mem = bytes / (self.bandwidth * memory);
        let longer = t_core.max(t_mem);
        let ratio = t_core.min(t_mem) / longer;
        let gpu = longer * (1.0 + ratio.powf(self.corner)).powf(1.0 / self.corner);
        Roofline { t_core, t_mem, gpu }
    }

    fn step_by_formula(&self, work: &Work, clocks: Clocks) -> StepCost {
        let core = clocks.core.as_f64() / self.core_reached.as_f64();
        let memory = self.memory_share(clocks);
        let Roofline { t_core, t_mem, gpu } = self.roofline(work.flops, work.bytes, core, memory);

        let p = &self.power;
        let idle = self.idle_watts(clocks);
        let activity = p.stall + (1.0 - p.stall) * t_core / gpu;
        let busy =
            idle + p.active + p.dram * memory * t_mem / gpu + p.core * activity * self.core_power_share(core);
        let seconds = gpu + work.host;
        StepCost { seconds, watts: (busy * gpu + idle * work.host) / seconds }
    }

    /// The cap law: the highest clock up to the one asked for at which the step keeps within `cap`, and the step there.
    /// `core_clocks` is the driver's list, highest first; its lowest clock is kept even if that is still too much.
    #[must_use]
    pub fn step_within(
        &self,
        work: &Work,
        asked: Clocks,
        cap: Watts,
        core_clocks: &[Mhz],
    ) -> (Mhz, StepCost) {
        let cost_at = |core: Mhz| self.step(work, Clocks { core, ..asked });
        let cost = cost_at(asked.core);
        if cost.watts <= cap.0 {
            return (asked.core, cost);
        }
        let below = core_clocks.partition_point(|clock| *clock >= asked.core);
        let lower = core_clocks.get(below..).unwrap_or_default();
        let too_hot = match self.physics {
            Physics::Formula => lower.partition_point(|clock| cost_at(*clock).watts > cap.0),
            // Measured power scatters: it need not rise with every clock.
            Physics::Measured(_) => lower.iter().take_while(|clock| cost_at(**clock).watts > cap.0).count(),
        };
        lower.get(too_hot).or(lower.last()).map_or((asked.core, cost), |core| (*core, cost_at(*core)))
    }

    /// Board power when nothing runs but the clocks stay up, as they do while a CUDA context is open.
    #[must_use]
    pub fn idle_watts(&self, clocks: Clocks) -> f64 {
        let p = &self.power;
        let core = clocks.core.as_f64() / self.core_reached.as_f64();
        p.base + p.memory_idle * self.memory_share(clocks) + p.core_idle * self.core_power_share(core)
    }

    /// Board power without a context: the driver takes all clocks down.
    #[must_use]
    pub fn bare_idle_watts(&self) -> f64 {
        self.idle_watts(self.lowest())
    }

    /// Clocks of the lowest performance state.
    #[must_use]
    pub fn lowest(&self) -> Clocks {
        Clocks { core: self.core_range.0, memory: self.memory.last().copied() }
    }

    /// Clocks under load without any lock.
    #[must_use]
    pub fn fastest(&self) -> Clocks {
        Clocks { core: self.core_reached, memory: self.memory.first().copied() }
    }

    fn memory_share(&self, clocks: Clocks) -> f64 {
        match (clocks.memory, self.memory.first()) {
            (Some(memory), Some(highest)) => memory.as_f64() / highest.as_f64(),
            _ => 1.0,
        }
    }

    /// phi: dynamic power of the core relative to the highest clock.
    fn core_power_share(&self, core: f64) -> f64 {
        core * self.voltage.relative(core).powi(2)
    }

    /// The driver's list of core clocks, highest first.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clocks are small and positive"
    )]
    pub fn core_clocks(&self) -> Vec<Mhz> {
        let (low, high) = (self.core_range.0.as_f64(), self.core_range.1);
        (0..)
            .map(|k| Mhz((low + f64::from(k) * self.core_step) as u32))
            .take_while(|clock| *clock <= high)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::presets::{H100, L40S, MODEL_8B};

    /// d ln t / d ln f near the top clock.
    fn sensitivity(gpu: &GpuPreset, batch: &Batch) -> f64 {
        let work = Work::of(batch, &MODEL_8B, 0.0);
        let at = |core: u32| gpu.step(&work, Clocks { core: Mhz(core), memory: None }).seconds.ln();
        let (high, low) = (gpu.core_reached.0, gpu.core_reached.0 - 60);
        (at(high) - at(low)) / (f64::from(high) / f64::from(low)).ln()
    }

    #[test]
    fn prefill_follows_the_core_clock_and_a_small_decode_hardly_does() {
        let prefill =
            Batch { prefill_tokens: 2048.0, prefill_pairs: 2e6, decode_seqs: 0.0, context_tokens: 2048.0 };
        let decode = Batch { decode_seqs: 4.0, context_tokens: 4000.0, ..Batch::default() };
        assert!(sensitivity(&H100, &prefill) < -0.95);
        assert!(sensitivity(&H100, &decode) > -0.1);
    }

    #[test]
    fn idle_power_falls_to_the_bare_idle_with_both_clocks() {
        let fastest = L40S.idle_watts(L40S.fastest());
        let core_down = L40S.idle_watts(Clocks { core: Mhz(210), ..L40S.fastest() });
        // Measured: 102.3 W, 61 W with the core clock down, 35.6 W without a context.
        approx::assert_relative_eq!(fastest, 102.3, max_relative = 0.02);
        approx::assert_relative_eq!(core_down, 61.0, max_relative = 0.02);
        approx::assert_relative_eq!(L40S.bare_idle_watts(), 35.6, max_relative = 0.02);
    }

    #[test]
    fn cap_law_takes_the_highest_clock_that_keeps_within() {
        let prefill =
            Batch { prefill_tokens: 2048.0, prefill_pairs: 2e6, decode_seqs: 0.0, context_tokens: 2048.0 };
        let (work, clocks, cap) = (Work::of(&prefill, &MODEL_8B, 0.0), H100.core_clocks(), Watts(400.0));
        let (core, cost) = H100.step_within(&work, H100.fastest(), cap, &clocks);
        assert!(cost.watts <= 400.0);
        let next = clocks.iter().copied().rfind(|clock| *clock > core).unwrap();
        assert!(H100.step(&work, Clocks { core: next, ..H100.fastest() }).watts > 400.0);
        let (lowest, _) = H100.step_within(&work, H100.fastest(), Watts(1.0), &clocks);
        assert_eq!(lowest, Mhz(345));
    }
}
