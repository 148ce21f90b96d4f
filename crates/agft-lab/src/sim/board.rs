//! The simulated board in time: which clocks are in force, how much energy has flowed, what the sensors show.
//!
//! [`super::World`] moves it. Between two events the power is constant, so energy is exact.

use std::collections::VecDeque;

use super::dice::Dice;
use super::physics::{GpuPreset, StepCost, Work};
use agft::gpu::{ClockReasons, GpuReading, MemoryLevel, SupportedClocks};
use agft::units::{Clocks, Mhz, Millijoules, Seconds, Time, Watts};

/// How far back the sensors look: the longest averaging window plus the longest renewal period, rounded up.
const MEMORY: f64 = 1.5;
/// The utilisation counter's sampling period.
const UTILIZATION_PERIOD: f64 = 0.5;
/// An air-cooled board under constant fan: steady temperature above ambient and how fast it is reached.
const KELVIN_PER_WATT: f64 = 0.13;
const THERMAL_SECONDS: f64 = 25.0;
const AMBIENT_C: f64 = 28.0;

/// The locks in force, each from its lowest to its highest clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Locks {
    /// Core clock.
    pub core: Option<(Mhz, Mhz)>,
    /// Memory clock.
    pub memory: Option<(Mhz, Mhz)>,
}

/// Why the driver refuses a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The board has nothing to lock there.
    NotSupported,
    /// Outside the driver's list, or the range is upside down.
    InvalidArgument,
}

/// Cumulative energy and busy time at one instant.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    at: f64,
    joules: f64,
    busy: f64,
}

/// What a board did while nothing ran, and at lowered clocks, since time zero.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Time in which nothing ran, seconds.
    pub idle_s: f64,
    /// Energy in it, joules.
    pub idle_j: f64,
    /// Part of it with a clock below its highest, seconds.
    pub idle_low_s: f64,
    /// Time in which something ran with a clock below its highest, seconds.
    pub busy_low_s: f64,
}

/// A clock was raised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Raise {
    /// When the driver was told to.
    pub asked: Time,
    /// When it took effect.
    pub landed: Time,
}

/// A step on the board: its cost at the clocks in force after the power cap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Running {
    pub(super) core: Mhz,
    pub(super) capped: bool,
    pub(super) cost: StepCost,
}

/// A board in time.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) preset: GpuPreset,
    pub(super) power_cap: Watts,
    /// The driver's list, highest first.
    core_clocks: Vec<Mhz>,
    pub(super) locks: Locks,
    /// The board has lowered its own clocks because nothing ran.
    parked_itself: bool,
    in_force: Clocks,
    /// Clock changes on their way, in the order in which they land.
    pending: VecDeque<(Time, Clocks)>,
    settle_dice: Dice,
    seed: u64,
    /// The board's constant measuring error, as a factor.
    gain: f64,
    counter_phase: f64,
    counter_origin: f64,
    /// Recent past, oldest first; never empty.
    marks: VecDeque<Mark>,
    temperature: f64,
    running: Option<Running>,
    pub(super) usage: Usage,
    pub(super) raises: Vec<Raise>,
}

impl Board {
    /// An idle board at its default clocks at time zero.
    pub(super) fn new(preset: GpuPreset, seed: u64) -> Self {
        let mut dice = Dice::new(seed, "board");
        Self {
            power_cap: preset.power_cap,
            core_clocks: preset.core_clocks(),
            locks: Locks::default(),
            parked_itself: false,
            in_force: preset.fastest(),
            pending: VecDeque::new(),
            settle_dice: Dice::new(seed, "settle"),
            seed,
            gain: 1.0 + preset.sensors.gain_error * dice.normal().clamp(-2.0, 2.0),
            counter_phase: preset.sensors.energy_tick * dice.uniform(),
            counter_origin: 1e9 * dice.uniform(),
            marks: VecDeque::from([Mark::default()]),
            temperature: AMBIENT_C + KELVIN_PER_WATT * preset.idle_watts(preset.fastest()),
            running: None,
            usage: Usage::default(),
            raises: Vec::new(),
            preset,
        }
    }

    /// The clocks the driver supports.
    pub(super) fn supported(&self) -> Option<SupportedClocks> {
        let level = |memory: &Mhz| MemoryLevel { memory: *memory, core: self.core_clocks.clone() };
        SupportedClocks::new(self.preset.memory.iter().map(level).collect())
    }

    // --- clocks ---

    pub(super) fn lock_core(&mut self, now: Time, min: Mhz, max: Mhz) -> Result<(), Refusal> {
        let (low, high) = self.preset.core_range;
        if min > max || min < low || max > high {
            return Err(Refusal::InvalidArgument);
        }
        self.locks.core = Some((nearest(&self.core_clocks, min), nearest(&self.core_clocks, max)));
        self.retarget(now);
        Ok(())
    }

    pub(super) fn lock_memory(&mut self, now: Time, min: Mhz, max: Mhz) -> Result<(), Refusal> {
        let (&[highest, .., lowest], true) = (self.preset.memory, min <= max) else {
            return Err(if self.preset.memory.len() < 2 {
                Refusal::NotSupported
            } else {
                Refusal::InvalidArgument
            });
        };
        if min < lowest || max > highest {
            return Err(Refusal::InvalidArgument);
        }
        self.locks.memory = Some((nearest(self.preset.memory, min), nearest(self.preset.memory, max)));
        self.retarget(now);
        Ok(())
    }

    pub(super) fn reset_core(&mut self, now: Time) {
        self.locks.core = None;
        self.retarget(now);
    }

    pub(super) fn reset_memory(&mut self, now: Time) -> Result<(), Refusal> {
        if self.preset.memory.len() < 2 {
            return Err(Refusal::NotSupported);
        }
        self.locks.memory = None;
        self.retarget(now);
        Ok(())
    }

    /// The board's own idle state, which GeForce boards enter although a context is open.
    pub(super) fn park_itself(&mut self, now: Time, parked: bool) {
        if self.parked_itself != parked {
            self.parked_itself = parked;
            self.retarget(now);
        }
    }

    pub(super) fn is_parked(&self) -> bool {
        self.parked_itself
    }

    /// What the locks ask for: the top of the range under load, its bottom when the board parks itself.
    fn target(&self) -> Clocks {
        let pick = |lock: Option<(Mhz, Mhz)>, low: Mhz, high: Mhz| match (lock, self.parked_itself) {
            (Some((_, max)), false) => max.min(high),
            (None, false) => high,
            (Some((min, _)), true) => min.min(high),
            (None, true) => low,
        };
        let core = pick(self.locks.core, self.preset.core_range.0, self.preset.core_reached);
        let memory = match self.preset.memory {
            [] => None,
            [only] => Some(*only),
            [highest, .., lowest] => Some(pick(self.locks.memory, *lowest, *highest)),
        };
        Clocks { core, memory }
    }

    fn retarget(&mut self, now: Time) {
        let target = self.target();
        let (last_landing, last) = self.pending.back().copied().unwrap_or((now, self.in_force));
        if target == last {
            return;
        }
        let settle = &self.preset.settle;
        let latency =
            self.settle_dice.lognormal(settle.median, settle.sigma).clamp(settle.bounds.0, settle.bounds.1);
        let landing = now + Seconds(latency);
        let landing = Time(landing.0.max(last_landing.0));
        self.pending.push_back((landing, target));
        if target.core > last.core || target.memory > last.memory {
            self.raises.push(Raise { asked: now, landed: landing });
        }
    }

    /// When the next clock change lands.
    pub(super) fn next_change(&self) -> Option<Time> {
        self.pending.front().map(|(at, _)| *at)
    }

    /// Puts the changes in force that have landed; says whether there were any.
    pub(super) fn land_changes(&mut self, now: Time) -> bool {
        let mut changed = false;
        while let Some((at, clocks)) = self.pending.front().copied()
            && at <= now
        {
            self.in_force = clocks;
            self.pending.pop_front();
            changed = true;
        }
        changed
    }

    // --- power ---

    /// Runs `work` at the clocks in force, lower if the power cap demands it. `stretch` scales the time.
    pub(super) fn run(&mut self, work: &Work, stretch: f64) -> Running {
        let asked = self.in_force;
        let (core, cost) = self.preset.step_within(work, asked, self.power_cap, &self.core_clocks);
        let cost = StepCost { seconds: cost.seconds * stretch, ..cost };
        let running = Running { core, capped: core < asked.core, cost };
        self.running = Some(running);
        running
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Nothing runs any more.
    pub(super) fn stop(&mut self) {
        self.running = None;
    }

    /// Power at this moment.
    fn watts(&self) -> f64 {
        self.running.map_or_else(|| self.preset.idle_watts(self.in_force), |running| running.cost.watts)
    }

    /// Lets time pass at the present power.
    pub(super) fn elapse(&mut self, to: Time) {
        let last = self.last_mark();
        let dt = to.0 - last.at;
        if dt <= 0.0 {
            return;
        }
        let watts = self.watts();
        let steady = AMBIENT_C + KELVIN_PER_WATT * watts;
        self.temperature = steady + (self.temperature - steady) * (-dt / THERMAL_SECONDS).exp();
        let busy = if self.running.is_some() { dt } else { 0.0 };
        self.note_usage(dt, watts);
        self.marks.push_back(Mark { at: to.0, joules: last.joules + watts * dt, busy: last.busy + busy });
        while self.marks.get(1).is_some_and(|second| second.at <= to.0 - MEMORY) {
            self.marks.pop_front();
        }
    }

    fn note_usage(&mut self, dt: f64, watts: f64) {
        let low = self.in_force != self.preset.fastest();
        let usage = &mut self.usage;
        match (self.running.is_none(), low) {
            (true, low) => {
                usage.idle_s += dt;
                usage.idle_j += watts * dt;
                usage.idle_low_s += if low { dt } else { 0.0 };
            }
            (false, true) => usage.busy_low_s += dt,
            (false, false) => {}
        }
    }

    fn last_mark(&self) -> Mark {
        self.marks.back().copied().unwrap_or_default()
    }

    /// Energy since time zero, without any measuring error.
    pub(super) fn true_joules(&self) -> f64 {
        self.last_mark().joules
    }

    // --- sensors ---

    /// The totals at a recent instant; exact, since the power is constant between marks.
    fn mark_at(&self, at: f64) -> Mark {
        let after = self.marks.partition_point(|mark| mark.at <= at);
        match (self.marks.get(after.wrapping_sub(1)), self.marks.get(after)) {
            (Some(a), Some(b)) => {
                let share = (at - a.at) / (b.at - a.at);
                let between = |a: f64, b: f64| a + share * (b - a);
                Mark { at, joules: between(a.joules, b.joules), busy: between(a.busy, b.busy) }
            }
            (Some(only), None) | (None, Some(only)) => *only,
            (None, None) => Mark::default(),
        }
    }

    /// The energy counter: the value at its last tick.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and far below 2^63 mJ"
    )]
    pub(super) fn energy_counter(&self) -> Millijoules {
        let now = self.last_mark().at;
        let tick = self.preset.sensors.energy_tick;
        let at = ((now - self.counter_phase) / tick).floor() * tick + self.counter_phase;
        let joules = self.mark_at(at.max(0.0)).joules;
        Millijoules((self.counter_origin + 1e3 * self.gain * joules) as u64)
    }

    /// The power sensor: renewed once per period, the mean over its window, with noise that belongs to the period.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of periods since zero"
    )]
    pub(super) fn power_reading(&self) -> Watts {
        let sensors = &self.preset.sensors;
        let now = self.last_mark().at;
        let period = (now / sensors.power_period).floor();
        let end = period * sensors.power_period;
        let start = (end - sensors.power_window).max(0.0);
        let mean = if end > start {
            (self.mark_at(end).joules - self.mark_at(start).joules) / (end - start)
        } else {
            self.watts()
        };
        let noise = Dice::new(self.seed.wrapping_add(period as u64), "power").normal() * sensors.power_noise;
        Watts(mean * self.gain * (1.0 + noise))
    }

    /// All sensors.
    pub(super) fn reading(&self) -> GpuReading {
        let now = self.last_mark();
        let since = (now.at - UTILIZATION_PERIOD).max(0.0);
        let span = now.at - since;
        let busy = if span > 0.0 { (now.busy - self.mark_at(since).busy) / span } else { 0.0 };
        let core = self.running.map_or(self.in_force.core, |running| running.core);
        let mut reasons = 0;
        match self.running {
            None => reasons |= ClockReasons::GPU_IDLE.0,
            Some(running) if running.capped => reasons |= ClockReasons::SW_POWER_CAP.0,
            Some(_) => {}
        }
        if self.locks.core.is_some_and(|(_, max)| max < self.preset.core_reached) {
            reasons |= ClockReasons::CLOCKS_SETTING.0;
        }
        GpuReading {
            core_clock: Some(core),
            memory_clock: self.in_force.memory,
            power: Some(self.power_reading()),
            utilization_percent: Some((100.0 * busy).round()),
            temperature_c: Some(self.temperature.round()),
            reasons: Some(ClockReasons(reasons)),
        }
    }
}

/// The clock of the list nearest to `wanted`, as the driver snaps.
fn nearest(list: &[Mhz], wanted: Mhz) -> Mhz {
    list.iter().copied().min_by_key(|clock| clock.abs_diff(wanted)).unwrap_or(wanted)
}
