//! Whole runs in virtual time: the daemon's tick against a [`World`], ten minutes in a fraction of a second.
//!
//! The schedule is the daemon's: a scrape shortly before each tick, counter ticks polled every few milliseconds, looks
//! at the sensors between ticks while parked, clock writes a few milliseconds after the tick.

use std::sync::{Arc, Mutex, PoisonError};

use super::SimError;
use super::gpu::{Clock, SharedWorld, SimGpu, shared};
use super::record::{RunRecord, TickRecord, is_over};
use super::world::{ClockCall, World, WorldSpec};
use crate::bandit::Target;
use crate::control::{ClockOutcome, Controller, GpuTick, Observation, Output, Refusal, Round, Scrape};
use crate::gpu::lease::ClockLease;
use crate::gpu::{GpuError, GpuSensors};
use crate::metrics::{Signals, Snapshot};
use crate::reward::energy::EnergyPoint;
use crate::units::{Clocks, Mhz, Millijoules, Seconds, Time, Watts};

/// The energy counter is looked at this often.
const POLL: f64 = 0.005;
/// The page arrives this long before the tick, and takes this long.
const SCRAPE_LEAD: f64 = 0.006;
const SCRAPE_LATENCY: f64 = 0.004;
/// A clock is written this long after the tick that asked for it.
const WRITE_DELAY: f64 = 0.004;
/// Sensors are looked at this often between ticks while parked.
const WATCH: f64 = 0.1;
/// Requests that arrived in time are waited for this long after the end.
pub(super) const DRAIN: f64 = 60.0;
/// An autopilot is not called more often than this.
const LEAST_PAUSE: f64 = 1e-3;

/// What to run.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// Server, GPU and load.
    pub world: WorldSpec,
    /// Seed of arrivals, lengths and noise: the same for every driver that is to be compared.
    pub seed: u64,
    /// Length.
    pub seconds: Seconds,
    /// Time between ticks.
    pub tick: Seconds,
}

/// Who sets the clocks.
pub enum Driver<'a> {
    /// Nobody: driver-default clocks.
    Default,
    /// One lock for the whole run.
    Fixed(Clocks),
    /// Driver-default clocks under this power cap.
    Capped(Watts),
    /// The control loop; its state stays with the caller, to be looked at or to go on.
    Controller(&'a mut Controller),
    /// The same, looked at in each step by somebody who may change what it commands.
    Watched(&'a mut Controller, &'a mut dyn Onlooker),
    /// Another program with a timing of its own.
    Autopilot(&'a mut dyn Autopilot),
}

/// Somebody beside a controller: a recorder, or an experimenter who sets clocks of his own.
pub trait Onlooker {
    /// A step was made.
    fn look(&mut self, seen: &Observation, output: &Output, controller: &Controller);

    /// What is commanded in the place of `command`.
    fn command(&mut self, _now: Time, command: Option<Target>) -> Option<Target> {
        command
    }
}

struct Nobody;

impl Onlooker for Nobody {
    fn look(&mut self, _: &Observation, _: &Output, _: &Controller) {}
}

/// A program that sets clocks at moments of its own choosing.
pub trait Autopilot {
    /// When it wants to act next.
    fn due(&self) -> Time;

    /// It is that time: looks, and says what shall run from now on, if anything is to change.
    fn act(&mut self, look: &Look) -> Option<Target>;
}

/// What an autopilot sees.
#[derive(Debug, Clone)]
pub struct Look {
    /// Now.
    pub now: Time,
    /// The metrics page.
    pub signals: Signals,
    /// The power sensor.
    pub power: Watts,
    /// The core clock read back.
    pub core: Option<Mhz>,
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The world cannot be.
    #[error(transparent)]
    World(#[from] SimError),
    /// The simulated driver refused for good.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// Runs `spec` under `driver`; `observe` sees every closed round.
///
/// # Errors
/// [`RunError`]
pub fn run(
    spec: &RunSpec,
    mut driver: Driver<'_>,
    mut observe: impl FnMut(&Round),
) -> Result<RunRecord, RunError> {
    let mut bench = Bench::new(World::new(spec.world.clone(), spec.seed)?)?;
    let end = spec.seconds.0;
    let mut rounds = 0;
    match &driver {
        Driver::Fixed(clocks) => bench.lease.set(Target::Lock(*clocks))?,
        Driver::Capped(cap) => bench.change_world(|world| world.set_power_cap(*cap)),
        _ => {}
    }
    let mut ticks = vec![bench.with_world(TickRecord::of)];
    let mut tick = 0_u32;
    loop {
        tick += 1;
        let now = f64::from(tick) * spec.tick.0;
        match &mut driver {
            Driver::Controller(controller) => {
                if let Some(round) = bench.tick(controller, &mut Nobody, now, spec.tick.0)?.round {
                    rounds += 1;
                    observe(&round);
                }
            }
            Driver::Watched(controller, onlooker) => {
                if let Some(round) = bench.tick(controller, *onlooker, now, spec.tick.0)?.round {
                    rounds += 1;
                    observe(&round);
                }
            }
            Driver::Autopilot(autopilot) => rounds += bench.fly(*autopilot, now)?,
            Driver::Default | Driver::Fixed(_) | Driver::Capped(_) => bench.move_to(now),
        }
        if ticks.last().is_some_and(|last| last.at.0 < end) {
            ticks.push(bench.with_world(TickRecord::of));
        }
        if now >= end && bench.with_world(|world| is_over(world, end)) {
            break;
        }
    }
    Ok(bench
        .with_world(|world| RunRecord::new(world, spec.seconds, ticks, clock_changes(world, end), rounds)))
}

/// When the core clock's lock changed; the reset with which every lease begins is none.
fn clock_changes(world: &World, end: f64) -> Vec<Time> {
    let of_core = |call| matches!(call, ClockCall::LockCore(..) | ClockCall::ResetCore);
    let writes = world.writes().iter().filter(|write| write.accepted && of_core(write.call));
    writes.skip(1).map(|write| write.at).filter(|at| at.0 <= end).collect()
}

/// A world with the handles that a daemon would have on it.
struct Bench {
    world: SharedWorld,
    now: Arc<Mutex<Time>>,
    sensors: SimGpu,
    lease: ClockLease,
    counter: Counter,
    outcomes: Vec<ClockOutcome>,
}

impl Bench {
    fn new(world: World) -> Result<Self, GpuError> {
        let world = shared(world);
        let now = Arc::new(Mutex::new(Time(0.0)));
        let clock: Clock = {
            let now = Arc::clone(&now);
            Arc::new(move || *now.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let (sensors, clocks) = SimGpu::pair(&world, &clock);
        let lowest = sensors.supported_clocks()?.core_min();
        let lease = ClockLease::take(vec![(Box::new(clocks), lowest)])?;
        Ok(Self { world, now, sensors, lease, counter: Counter::default(), outcomes: Vec::new() })
    }

    fn with_world<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.world.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change_world(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Time up to `to`, the autopilot acting whenever it wants to; says how often it did set a clock.
    fn fly(&mut self, autopilot: &mut dyn Autopilot, to: f64) -> Result<usize, GpuError> {
        let mut acted = 0;
        let mut earliest = self.with_world(World::now).0;
        while autopilot.due().0.max(earliest) < to {
            let at = autopilot.due().0.max(earliest);
            self.move_to(at);
            let look = self.with_world(|world| Look {
                now: Time(at),
                signals: world.signals(),
                power: world.power(),
                core: world.reading().core_clock,
            });
            if let Some(target) = autopilot.act(&look) {
                self.lease.set(target)?;
                acted += 1;
            }
            earliest = at + LEAST_PAUSE;
        }
        self.move_to(to);
        Ok(acted)
    }

    /// Moves time, and the world with it.
    fn move_to(&self, at: f64) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Time(at);
        self.world.lock().unwrap_or_else(PoisonError::into_inner).advance(Time(at));
    }

    /// One tick that is due at `due`: the time since the last one passes, then the controller steps.
    fn tick(
        &mut self,
        controller: &mut Controller,
        onlooker: &mut dyn Onlooker,
        due: f64,
        period: f64,
    ) -> Result<Output, GpuError> {
        let mut energy = Vec::new();
        let scrape_at = due - SCRAPE_LEAD;
        let mut next_look = due - period + WATCH;
        while next_look < due - 0.5 * WATCH && controller.is_parked() {
            self.pass(next_look, &mut energy)?;
            let energy = std::mem::take(&mut energy);
            self.step(controller, onlooker, next_look, Scrape::Pending, energy)?;
            next_look += WATCH;
        }
        self.pass(scrape_at, &mut energy)?;
        let snapshot = Snapshot {
            at: Time(scrape_at),
            latency: Seconds(SCRAPE_LATENCY),
            signals: self.with_world(World::signals),
            refused: Vec::new(),
        };
        self.pass(due, &mut energy)?;
        self.step(controller, onlooker, due, Scrape::Page(Box::new(snapshot)), energy)
    }

    fn step(
        &mut self,
        controller: &mut Controller,
        onlooker: &mut dyn Onlooker,
        now: f64,
        scrape: Scrape,
        energy: Vec<EnergyPoint>,
    ) -> Result<Output, GpuError> {
        let reading = Some(self.sensors.reading()?);
        let outcomes = std::mem::take(&mut self.outcomes);
        let gpus = vec![GpuTick { reading, read_at: Some(Time(now)), energy }];
        let seen =
            Observation { now: Time(now), scrape, gpus, outcomes, orders: Vec::new(), connections: None };
        let output = controller.step(&seen);
        onlooker.look(&seen, &output, controller);
        self.carry_out(onlooker.command(Time(now), output.command))?;
        Ok(output)
    }

    fn carry_out(&mut self, command: Option<Target>) -> Result<(), GpuError> {
        let Some(target) = command else { return Ok(()) };
        let at = Time(self.with_world(World::now).0 + WRITE_DELAY);
        self.move_to(at.0);
        self.outcomes.push(match self.lease.set(target) {
            Ok(()) => ClockOutcome::InForce { target, at },
            Err(error) => match Refusal::from_recovery(error.recovery()) {
                Some(recovery) => ClockOutcome::Refused { target, at, recovery, why: error.to_string() },
                None => return Err(error),
            },
        });
        Ok(())
    }

    /// Lets time pass, polling the energy counter.
    fn pass(&mut self, to: f64, energy: &mut Vec<EnergyPoint>) -> Result<(), GpuError> {
        loop {
            let next = self.with_world(World::now).0 + POLL;
            let at = next.min(to);
            self.move_to(at);
            energy.extend(self.counter.look(Time(at), self.sensors.energy()?));
            if next >= to {
                return Ok(());
            }
        }
    }
}

/// The energy counter as the daemon's sampler follows it.
#[derive(Default)]
struct Counter {
    first: Option<Millijoules>,
    last: Option<Millijoules>,
}

impl Counter {
    /// A point if the counter has ticked since the last look.
    fn look(&mut self, at: Time, value: Millijoules) -> Option<EnergyPoint> {
        let before = self.last.replace(value);
        let first = *self.first.get_or_insert(value);
        let ticked = before.is_some_and(|before| before != value);
        ticked.then(|| value.since(first)).flatten().map(|total| EnergyPoint { at, total })
    }
}
