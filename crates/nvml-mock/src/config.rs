//! What a mocked machine looks like: its GPUs, their clocks and watts, and what their driver refuses.

use serde::{Deserialize, Serialize};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use crate::MockError;
use crate::layout::MAX_GPUS;

/// One memory clock and the core clocks that go with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Memory clock, MHz.
    pub memory_mhz: u32,
    /// Core clocks supported beside it, MHz.
    pub core_mhz: Vec<u32>,
}

impl Level {
    /// A level whose core clocks run from `low` to `high` in equal steps.
    pub fn stepped(memory_mhz: u32, low: u32, high: u32, step: u32) -> Self {
        Self { memory_mhz, core_mhz: (low..=high).rev().step_by(step.max(1) as usize).collect() }
    }
}

/// What an unlocked GPU does while nothing runs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdleClocks {
    /// Stays at its highest clocks, as a data-centre card with a CUDA context does.
    StayAtMax,
    /// Falls to its lowest clocks, as a card without a context does.
    FallToMin,
}

/// One GPU. Start from a preset and change what the test is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuConfig {
    /// Product name.
    pub name: String,
    /// `GPU-...`; empty: made up from the index.
    pub uuid: String,
    /// Supported clocks.
    pub levels: Vec<Level>,
    /// What NVML's symbolic limit `TDP` stands for, MHz.
    pub base_core_mhz: u32,
    /// Board power limit, watts.
    pub tdp_w: f64,
    /// Power at load 0, lowest core clock, highest memory clock, watts.
    pub idle_min_w: f64,
    /// Power at load 0, highest core clock, highest memory clock, watts.
    pub idle_max_w: f64,
    /// Power at load 1, highest clocks, watts.
    pub busy_w: f64,
    /// Share of the idle power that follows the memory clock, watts at the highest one.
    pub memory_idle_w: f64,
    /// Share of the dynamic power that follows the memory clock, watts at load 1 and the highest one.
    pub memory_busy_w: f64,
    /// The energy counter advances in ticks of this length.
    pub energy_tick_ms: u32,
    /// The instantaneous power sensor is refreshed this often; 0: always fresh.
    pub power_tick_ms: u32,
    /// `nvmlDeviceGetPowerUsage` is a running mean with this time constant; 0: instantaneous.
    pub power_average_ms: u32,
    /// From a clock request to the running clock.
    pub settle_ms: u32,
    /// Unlocked behaviour at load 0.
    pub idle: IdleClocks,
    /// Requests above this clock run at it, and the driver says nothing.
    pub core_clamp_mhz: Option<u32>,
    /// Core locks are supported.
    pub core_lock: bool,
    /// Memory locks are supported.
    pub memory_lock: bool,
    /// The total-energy counter is supported.
    pub energy_counter: bool,
    /// Utilisation is supported.
    pub utilization: bool,
    /// `nvmlDeviceGetPowerUsage` is supported.
    pub power_usage: bool,
    /// Field 186, instantaneous power, is supported.
    pub power_instant: bool,
    /// MIG enabled or not; `None`: the board has no MIG.
    pub mig: Option<bool>,
    /// Persistence mode.
    pub persistence: bool,
    /// Board memory, bytes.
    pub memory_bytes: u64,
}

impl GpuConfig {
    /// A100 SXM4 80 GB: one memory clock, no memory lock. Idle watts as published for the PCIe board.
    pub fn a100() -> Self {
        Self {
            name: "NVIDIA A100-SXM4-80GB".to_owned(),
            uuid: String::new(),
            levels: vec![Level::stepped(1593, 210, 1410, 15)],
            base_core_mhz: 1095,
            tdp_w: 400.0,
            idle_min_w: 54.0,
            idle_max_w: 80.0,
            busy_w: 382.0,
            memory_idle_w: 10.0,
            memory_busy_w: 60.0,
            energy_tick_ms: 20,
            power_tick_ms: 20,
            power_average_ms: 0,
            settle_ms: 20,
            idle: IdleClocks::StayAtMax,
            core_clamp_mhz: None,
            core_lock: true,
            memory_lock: false,
            energy_counter: true,
            utilization: true,
            power_usage: true,
            power_instant: true,
            mig: Some(false),
            persistence: true,
            memory_bytes: 80 << 30,
        }
    }

    /// H100 SXM 80 GB: refuses memory locks at run time.
    pub fn h100() -> Self {
        Self {
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            levels: vec![Level::stepped(2619, 345, 1980, 15)],
            base_core_mhz: 1590,
            tdp_w: 700.0,
            idle_min_w: 72.0,
            idle_max_w: 122.0,
            busy_w: 650.0,
            memory_busy_w: 90.0,
            power_average_ms: 1000,
            ..Self::a100()
        }
    }

    /// H200 SXM: an H100 that runs at 1830 MHz whatever more is asked.
    pub fn h200() -> Self {
        Self {
            name: "NVIDIA H200".to_owned(),
            levels: vec![Level::stepped(3201, 345, 1980, 15)],
            core_clamp_mhz: Some(1830),
            memory_bytes: 141 << 30,
            ..Self::h100()
        }
    }

    /// RTX A6000: several memory clocks, both locks. Idle watts as published for its sibling A40.
    pub fn a6000() -> Self {
        Self {
            name: "NVIDIA RTX A6000".to_owned(),
            levels: vec![
                Level::stepped(8001, 210, 2100, 15),
                Level::stepped(810, 210, 2100, 15),
                Level::stepped(405, 210, 420, 15),
            ],
            base_core_mhz: 1410,
            tdp_w: 300.0,
            idle_min_w: 50.0,
            idle_max_w: 80.0,
            busy_w: 290.0,
            memory_idle_w: 34.0,
            memory_busy_w: 50.0,
            power_average_ms: 1000,
            memory_lock: true,
            mig: None,
            memory_bytes: 48 << 30,
            ..Self::a100()
        }
    }

    /// RTX 3090: a desktop card, with a slow energy counter and clocks that fall when idle.
    pub fn rtx3090() -> Self {
        Self {
            name: "NVIDIA GeForce RTX 3090".to_owned(),
            levels: vec![
                Level::stepped(9751, 210, 2100, 15),
                Level::stepped(9501, 210, 2100, 15),
                Level::stepped(5001, 210, 2100, 15),
                Level::stepped(810, 210, 2100, 15),
                Level::stepped(405, 210, 420, 15),
            ],
            base_core_mhz: 1395,
            tdp_w: 350.0,
            idle_min_w: 60.0,
            idle_max_w: 105.0,
            busy_w: 345.0,
            memory_idle_w: 38.0,
            memory_busy_w: 70.0,
            energy_tick_ms: 100,
            power_tick_ms: 100,
            idle: IdleClocks::FallToMin,
            persistence: false,
            memory_bytes: 24 << 30,
            ..Self::a6000()
        }
    }

    /// The preset of that name: `a100`, `h100`, `h200`, `a6000` or `rtx3090`.
    pub fn preset(name: &str) -> Option<Self> {
        Some(match name {
            "a100" => Self::a100(),
            "h100" => Self::h100(),
            "h200" => Self::h200(),
            "a6000" => Self::a6000(),
            "rtx3090" => Self::rtx3090(),
            _ => return None,
        })
    }

    fn check(&self, index: usize) -> Result<(), MockError> {
        let refuse = |rule: &str| Err(MockError::Config(format!("GPU {index} ({}): {rule}", self.name)));
        let watts = [self.memory_idle_w, self.idle_min_w, self.idle_max_w, self.busy_w, self.memory_busy_w];
        if self.levels.is_empty() || self.levels.iter().any(|level| level.core_mhz.is_empty()) {
            return refuse("needs at least one memory level, and a core clock in each");
        }
        if self.levels.iter().any(|level| level.memory_mhz == 0 || level.core_mhz.contains(&0)) {
            return refuse("0 MHz is no clock");
        }
        if !watts.iter().chain([&self.tdp_w]).all(|watt| watt.is_finite() && *watt >= 0.0) {
            return refuse("watts must be finite and not negative");
        }
        if self.memory_idle_w > self.idle_min_w || self.idle_min_w > self.idle_max_w {
            return refuse("needs memory_idle_w <= idle_min_w <= idle_max_w");
        }
        if self.busy_w < self.idle_max_w + self.memory_busy_w {
            return refuse("needs busy_w >= idle_max_w + memory_busy_w");
        }
        if self.energy_tick_ms == 0 {
            return refuse("energy_tick_ms must be at least 1");
        }
        Ok(())
    }
}

/// The whole machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MockConfig {
    /// What `nvmlSystemGetDriverVersion` says.
    pub driver_version: String,
    /// The GPUs in index order.
    pub gpus: Vec<GpuConfig>,
}

impl MockConfig {
    /// A machine of these GPUs with driver 580.95.05.
    pub fn new(gpus: Vec<GpuConfig>) -> Self {
        Self { driver_version: "580.95.05".to_owned(), gpus }
    }

    /// `count` GPUs of one kind.
    pub fn uniform(gpu: &GpuConfig, count: usize) -> Self {
        Self::new(vec![gpu.clone(); count])
    }

    /// Sorts the clocks, makes up missing UUIDs (others for each machine, as with real boards) and checks the rules.
    /// Errors: [`MockError::Config`] with the GPU and the rule.
    pub fn checked(mut self) -> Result<Self, MockError> {
        if self.gpus.is_empty() || self.gpus.len() > MAX_GPUS {
            return Err(MockError::Config(format!("{} GPUs, must be 1 to {MAX_GPUS}", self.gpus.len())));
        }
        let machine = RandomState::new().build_hasher().finish();
        let (high, low) = (machine & 0xffff, machine >> 16 & 0xfff);
        for (index, gpu) in self.gpus.iter_mut().enumerate() {
            gpu.check(index)?;
            if gpu.uuid.is_empty() {
                gpu.uuid = format!("GPU-6d6f636b-{high:04x}-4{low:03x}-8000-{index:012x}");
            }
            gpu.levels.sort_unstable_by_key(|level| std::cmp::Reverse(level.memory_mhz));
            for level in &mut gpu.levels {
                level.core_mhz.sort_unstable_by_key(|clock| std::cmp::Reverse(*clock));
                level.core_mhz.dedup();
            }
        }
        Ok(self)
    }
}

impl Default for MockConfig {
    /// One A100.
    fn default() -> Self {
        Self::new(vec![GpuConfig::a100()])
    }
}
