//! The physics of a mocked GPU: which clock runs, what it draws, what its counters show. Pure: time is a parameter.
//!
//! Between two changes load and locks are constant, so the running clock, and with it the power, is a step function
//! of time: energy at any later instant is a short sum, and reading needs no writing.

use crate::config::{GpuConfig, IdleClocks};
use crate::state::Locks;

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) type Ns = u64;

/// Share of the highest core clock up to which the core voltage stays at its floor.
const VOLTAGE_KNEE: f64 = 0.58;
/// Voltage at the highest core clock over the floor.
const VOLTAGE_RISE: f64 = 0.20;

/// A driver that has been loaded for a while.
const ENERGY_AT_START_MJ: f64 = 1e9;

/// NVAPI's number for "the driver chooses the performance state".
pub(crate) const BY_DRIVER: u32 = 16;

/// NVML's event reason bits that follow from the state itself.
const REASON_IDLE: u64 = 0x1;
const REASON_CLOCKS_SETTING: u64 = 0x2;

/// A field of [`GpuState`] as a word of the shared file.
trait Word: Copy {
    fn to_word(self) -> u64;
    fn from_word(word: u64) -> Self;
}

impl Word for u64 {
    fn to_word(self) -> u64 {
        self
    }
    fn from_word(word: u64) -> Self {
        word
    }
}

impl Word for u32 {
    fn to_word(self) -> u64 {
        u64::from(self)
    }
    fn from_word(word: u64) -> Self {
        Self::try_from(word).unwrap_or(Self::MAX)
    }
}

impl Word for bool {
    fn to_word(self) -> u64 {
        u64::from(self)
    }
    fn from_word(word: u64) -> Self {
        word != 0
    }
}

impl Word for f64 {
    fn to_word(self) -> u64 {
        self.to_bits()
    }
    fn from_word(word: u64) -> Self {
        Self::from_bits(word)
    }
}

/// Both bounds in one word; 0 is "no lock", which no lock can be: its upper bound is at least 1 MHz.
impl Word for Option<Range> {
    fn to_word(self) -> u64 {
        self.map_or(0, |range| u64::from(range.min) << 32 | u64::from(range.max))
    }
    fn from_word(word: u64) -> Self {
        let range =
            Range { min: u32::from_word(word >> 32), max: u32::from_word(word & u64::from(u32::MAX)) };
        (range.max != 0).then_some(range)
    }
}

/// A lock as it was asked for, MHz.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Range {
    /// Lower bound: where an idle GPU goes.
    pub min: u32,
    /// Upper bound: where a busy GPU goes.
    pub max: u32,
}

macro_rules! state {
    ($($(#[$doc:meta])* $field:ident: $kind:ty,)*) => {
        /// Everything about one GPU that changes, as of `at`.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub(crate) struct GpuState { $($(#[$doc])* pub $field: $kind,)* }

        impl GpuState {
            pub(crate) const WORDS: usize = [$(stringify!($field)),*].len();

            pub(crate) fn to_words(self) -> [u64; Self::WORDS] {
                [$(self.$field.to_word()),*]
            }

            pub(crate) fn from_words(words: [u64; Self::WORDS]) -> Self {
                let [$($field),*] = words;
                Self { $($field: Word::from_word($field)),* }
            }
        }
    };
}

state! {
    /// The instant the rest is about.
    at: Ns,
    /// Energy drawn since the driver was loaded.
    energy_mj: f64,
    /// What the running mean of power has come to.
    mean_w: f64,
    /// What the energy counter showed at `at`: its last tick may lie before it.
    shown_mj: u64,
    /// What the instantaneous sensor showed at `at`.
    shown_w: f64,
    /// Share of the time a kernel runs, 0 to 1.
    load: f64,
    temperature_c: u32,
    /// Event reasons set from outside; those that follow from the state are added.
    reasons: u64,
    /// The GPU fell off the bus.
    lost: bool,
    /// Locks and resets are taken, and the running clocks stay where they are.
    stuck: bool,
    core_lock: Option<Range>,
    memory_lock: Option<Range>,
    /// Forced performance state, or [`BY_DRIVER`].
    pstate: u32,
    /// Running clocks at `at`.
    core: u32,
    memory: u32,
    /// Clocks from `settled` on.
    next_core: u32,
    next_memory: u32,
    settled: Ns,
}

/// The highest of descending `clocks` that is at most `limit`, else the lowest.
fn snap_down(clocks: impl Iterator<Item = u32> + Clone, limit: u32) -> u32 {
    clocks.clone().find(|clock| *clock <= limit).or_else(|| clocks.last()).unwrap_or(0)
}

/// The lowest of descending `clocks` that is at least `limit`, else the highest.
fn snap_up(mut clocks: impl Iterator<Item = u32> + Clone, limit: u32) -> u32 {
    let highest = clocks.next().unwrap_or(0);
    clocks.take_while(|clock| *clock >= limit).last().unwrap_or(highest)
}

impl GpuConfig {
    fn memory_clocks(&self) -> impl Iterator<Item = u32> + Clone {
        self.levels.iter().map(|level| level.memory_mhz)
    }

    /// Core clocks beside that memory clock, highest first; empty if it is no supported one.
    pub(crate) fn core_clocks(&self, memory: u32) -> &[u32] {
        self.levels.iter().find(|level| level.memory_mhz == memory).map_or(&[], |level| &level.core_mhz)
    }

    pub(crate) fn max_memory(&self) -> u32 {
        self.memory_clocks().max().unwrap_or(0)
    }

    /// Highest core clock at any memory clock.
    pub(crate) fn max_core(&self) -> u32 {
        self.levels.iter().flat_map(|level| level.core_mhz.iter().copied()).max().unwrap_or(0)
    }

    /// Lowest core clock at any memory clock.
    pub(crate) fn min_core(&self) -> u32 {
        self.levels.iter().flat_map(|level| level.core_mhz.iter().copied()).min().unwrap_or(0)
    }

    /// The clock one domain goes to. `clocks` descending.
    fn target(&self, clocks: impl Iterator<Item = u32> + Clone, lock: Option<Range>, busy: bool) -> u32 {
        let top = snap_down(clocks.clone(), lock.map_or(u32::MAX, |lock| lock.max));
        match lock {
            _ if busy => top,
            Some(lock) => snap_up(clocks, lock.min).min(top),
            None if self.idle == IdleClocks::StayAtMax => top,
            None => clocks.last().unwrap_or(top),
        }
    }

    /// `f * V(f)^2` over its value at the highest core clock, with V flat up to the knee and linear above.
    fn switching(&self, core: u32) -> f64 {
        let share = (f64::from(core) / f64::from(self.max_core())).min(1.0);
        let above = ((share - VOLTAGE_KNEE) / (1.0 - VOLTAGE_KNEE)).max(0.0);
        share * ((1.0 + VOLTAGE_RISE * above) / (1.0 + VOLTAGE_RISE)).powi(2)
    }

    /// Board power in watts: `idle(core) + memory + load * (core switching + memory traffic)`.
    pub(crate) fn power(&self, core: u32, memory: u32, load: f64) -> f64 {
        let floor = self.switching(self.min_core());
        let switching = self.switching(core);
        let idle_share = if floor < 1.0 { (switching - floor) / (1.0 - floor) } else { 1.0 };
        let memory_share = f64::from(memory) / f64::from(self.max_memory());
        let idle_core =
            self.idle_min_w - self.memory_idle_w + (self.idle_max_w - self.idle_min_w) * idle_share;
        let busy_core = self.busy_w - self.idle_max_w - self.memory_busy_w;
        idle_core
            + self.memory_idle_w * memory_share
            + load * (busy_core * switching + self.memory_busy_w * memory_share)
    }
}

/// Start of the tick that `t` lies in.
fn tick_start(t: Ns, tick_ms: u32) -> Ns {
    let tick = u64::from(tick_ms) * 1_000_000;
    t.checked_div(tick).map_or(t, |ticks| ticks * tick)
}

fn seconds(span: Ns) -> f64 {
    std::time::Duration::from_nanos(span).as_secs_f64()
}

/// Both integrals of power.
struct Energy {
    total_mj: f64,
    mean_w: f64,
}

impl GpuState {
    /// A GPU as the driver finds it: idle, unlocked, its counters somewhere.
    pub(crate) fn new(config: &GpuConfig, now: Ns) -> Self {
        let mut state = Self {
            at: now,
            energy_mj: ENERGY_AT_START_MJ,
            mean_w: 0.0,
            shown_mj: whole(ENERGY_AT_START_MJ),
            shown_w: 0.0,
            load: 0.0,
            temperature_c: 40,
            reasons: 0,
            lost: false,
            stuck: false,
            core_lock: None,
            memory_lock: None,
            pstate: BY_DRIVER,
            core: 0,
            memory: 0,
            next_core: 0,
            next_memory: 0,
            settled: now,
        };
        state.retarget(config);
        (state.core, state.memory, state.settled) = (state.next_core, state.next_memory, now);
        state.mean_w = state.power(config, now);
        state.shown_w = state.mean_w;
        state
    }

    /// What is locked or forced.
    pub(crate) fn locks(&self) -> Locks {
        let pstate = (self.pstate != BY_DRIVER).then_some(self.pstate);
        Locks { core: self.core_lock, memory: self.memory_lock, pstate }
    }

    /// Running (core, memory) clocks at `t`, not before `at`.
    pub(crate) fn clocks(&self, t: Ns) -> (u32, u32) {
        if t >= self.settled { (self.next_core, self.next_memory) } else { (self.core, self.memory) }
    }

    fn power(&self, config: &GpuConfig, t: Ns) -> f64 {
        let (core, memory) = self.clocks(t);
        config.power(core, memory, self.load)
    }

    /// Integrates power from `at` to `t`: at most one step, at `settled`.
    fn energy(&self, config: &GpuConfig, t: Ns) -> Energy {
        let mut energy = Energy { total_mj: self.energy_mj, mean_w: self.mean_w };
        let mut from = self.at;
        for to in [self.settled.clamp(self.at, t.max(self.at)), t.max(self.at)] {
            let watts = self.power(config, from);
            let span = seconds(to - from);
            energy.total_mj += watts * span * 1e3;
            energy.mean_w = match config.power_average_ms {
                0 => watts,
                constant => watts + (energy.mean_w - watts) * (-span / (f64::from(constant) / 1e3)).exp(),
            };
            from = to;
        }
        energy
    }

    /// The energy counter, mJ: the energy up to the start of the running tick.
    pub(crate) fn energy_counter(&self, config: &GpuConfig, now: Ns) -> u64 {
        let tick = tick_start(now, config.energy_tick_ms);
        if tick <= self.at { self.shown_mj } else { whole(self.energy(config, tick).total_mj) }
    }

    /// The instantaneous power sensor, W.
    pub(crate) fn power_instant(&self, config: &GpuConfig, now: Ns) -> f64 {
        let tick = tick_start(now, config.power_tick_ms);
        if tick < self.at { self.shown_w } else { self.power(config, tick) }
    }

    /// The averaging power sensor, W; without averaging, the instantaneous one.
    pub(crate) fn power_usage(&self, config: &GpuConfig, now: Ns) -> f64 {
        if config.power_average_ms == 0 {
            self.power_instant(config, now)
        } else {
            self.energy(config, now).mean_w
        }
    }

    /// Event reasons: those set from outside and those that follow from load and lock.
    pub(crate) fn event_reasons(&self, config: &GpuConfig, now: Ns) -> u64 {
        let idle = if self.load > 0.0 { 0 } else { REASON_IDLE };
        let locked = self.core_lock.is_some() && self.clocks(now).0 < config.max_core();
        self.reasons | idle | if locked { REASON_CLOCKS_SETTING } else { 0 }
    }

    /// Moves the state on to `now`: the counters go on from there.
    pub(crate) fn advance(&mut self, config: &GpuConfig, now: Ns) {
        if now <= self.at {
            return;
        }
        let energy = self.energy(config, now);
        self.shown_mj = self.energy_counter(config, now);
        self.shown_w = self.power_instant(config, now);
        (self.core, self.memory) = self.clocks(now);
        self.energy_mj = energy.total_mj;
        self.mean_w = energy.mean_w;
        self.at = now;
    }

    /// After a change of load or lock at `at`: where the clocks go, and when they are there.
    pub(crate) fn retarget(&mut self, config: &GpuConfig) {
        if self.stuck {
            return;
        }
        let busy = self.load > 0.0;
        let lowest = Some(Range { min: 1, max: 1 });
        // Every state but the driver's choice is the lowest here.
        let forced = self.pstate != BY_DRIVER;
        let memory_lock = if forced { lowest } else { self.memory_lock };
        let core_lock = if forced { lowest } else { self.core_lock };
        let memory = config.target(config.memory_clocks(), memory_lock, busy);
        let clamp = config.core_clamp_mhz.unwrap_or(u32::MAX);
        let clocks = config.core_clocks(memory);
        // A clamp below every clock of the level would leave none to run at: then the lowest stays.
        let from = clocks.iter().position(|clock| *clock <= clamp).unwrap_or(clocks.len().saturating_sub(1));
        let core = config.target(clocks.iter().copied().skip(from), core_lock, busy);
        if (core, memory) != (self.next_core, self.next_memory) {
            (self.next_core, self.next_memory) = (core, memory);
            self.settled = self.at + u64::from(config.settle_ms) * 1_000_000;
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "energies are far inside 0 to 2^53 mJ"
)]
fn whole(mj: f64) -> u64 {
    mj as u64
}

#[cfg(test)]
mod tests;
