//! Whole runs in virtual time: the daemon's tick against a [`World`], ten minutes in a fraction of a second.
//!
//! The schedule is the daemon's: a scrape shortly before each tick, counter ticks polled every few milliseconds, looks
//! at the sensors between ticks while parked, clock writes a few milliseconds after the tick.

use std::sync::{Arc, Mutex, PoisonError};

use super::SimError;
use super::engine::FinishedRequest;
use super::gpu::{Clock, SharedWorld, SimGpu, shared};
use super::world::{World, WorldSpec};
use crate::bandit::Target;
use crate::control::{ClockOutcome, Controller, GpuTick, Observation, Output, Refusal, Round, Scrape};
use crate::gpu::lease::ClockLease;
use crate::gpu::{GpuError, GpuSensors};
use crate::metrics::Snapshot;
use crate::reward::energy::EnergyPoint;
use crate::units::{Clocks, Joules, Millijoules, Seconds, Time, Watts};

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
const DRAIN: f64 = 60.0;

/// What to run.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// Server, GPU and load.
    pub world: WorldSpec,
    /// Seed of arrivals, lengths and noise: the same for every driver that is to be compared.
    pub seed: u64,
    /// Length.
    pub seconds: Seconds,
    /// What happens before this is not counted: how a policy does once it has learned.
    pub count_from: Seconds,
    /// Time between ticks.
    pub tick: Seconds,
}

/// Who sets the clocks.
pub enum Driver<'a> {
    /// Nobody: driver-default clocks.
    Default,
    /// One lock for the whole run.
    Fixed(Clocks),
    /// The control loop; its state stays with the caller, to be looked at or to go on.
    Controller(&'a mut Controller),
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct RunResult {
    /// Energy of the board.
    pub energy: Joules,
    /// Mean power.
    pub power: Watts,
    /// Tokens generated.
    pub tokens: f64,
    /// Requests that arrived and ended.
    pub requests: usize,
    /// Mean over these requests of the mean time per output token.
    pub tpot: Seconds,
    /// Their mean end-to-end time.
    pub e2e: Seconds,
    /// Their mean time to first token.
    pub ttft: Seconds,
    /// Its 99th percentile.
    pub ttft_p99: Seconds,
    /// Clock writes that the driver took.
    pub clock_changes: usize,
    /// Closed rounds, with `observe` called on each.
    pub rounds: usize,
}

impl RunResult {
    /// Energy per token.
    #[must_use]
    pub fn joules_per_token(&self) -> f64 {
        self.energy.0 / self.tokens.max(1.0)
    }

    /// Energy per token times mean request TPOT.
    #[must_use]
    pub fn edp_tpot(&self) -> f64 {
        self.joules_per_token() * self.tpot.0
    }

    /// Energy per token times mean end-to-end time.
    #[must_use]
    pub fn edp_e2e(&self) -> f64 {
        self.joules_per_token() * self.e2e.0
    }
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
/// Energy and tokens count up to the end; latencies are those of the requests that arrived before it.
///
/// # Errors
/// [`RunError`]
pub fn run(
    spec: &RunSpec,
    driver: Driver<'_>,
    mut observe: impl FnMut(&Round),
) -> Result<RunResult, RunError> {
    let mut bench = Bench::new(World::new(spec.world.clone(), spec.seed)?)?;
    let end = spec.seconds.0;
    let mut rounds = 0;
    let mut controller = match driver {
        Driver::Default => None,
        Driver::Fixed(clocks) => {
            bench.lease.set(Target::Lock(clocks))?;
            None
        }
        Driver::Controller(controller) => Some(controller),
    };
    let from = spec.count_from.0;
    let (mut before, mut totals) = (None, None);
    let mut tick = 0_u32;
    loop {
        tick += 1;
        let now = f64::from(tick) * spec.tick.0;
        if before.is_none() && now > from {
            before = Some(bench.totals());
        }
        if totals.is_none() && now > end {
            totals = Some(bench.totals());
        }
        if totals.is_some() && (now >= end + DRAIN || bench.with_world(|world| served(world, end))) {
            break;
        }
        match controller.as_deref_mut() {
            Some(controller) => {
                if let Some(round) = bench.tick(controller, now, spec.tick.0)?.round {
                    rounds += 1;
                    observe(&round);
                }
            }
            None => bench.move_to(now),
        }
    }
    let (before, after) = (before.unwrap_or_default(), totals.unwrap_or_default());
    let mut result = bench.with_world(|world| latencies(world, from, end));
    result.energy = Joules(after.joules - before.joules);
    result.power = Watts(result.energy.0 / (after.at - before.at).max(f64::EPSILON));
    result.tokens = after.tokens - before.tokens;
    result.rounds = rounds;
    Ok(result)
}

/// What has been used and made up to a moment.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    at: f64,
    joules: f64,
    tokens: f64,
}

/// Has everything that arrived before `end` been answered?
fn served(world: &World, end: f64) -> bool {
    let (running, waiting) = world.in_flight();
    let newest_before_end = world.oldest_in_flight().is_none_or(|arrival| arrival.0 >= end);
    newest_before_end || running + waiting == 0
}

/// The requests' side of the result.
fn latencies(world: &World, from: f64, end: f64) -> RunResult {
    let counted = |request: &&FinishedRequest| (from..end).contains(&request.request.arrival.0);
    let done: Vec<&FinishedRequest> = world.finished().iter().filter(counted).collect();
    let mean = |values: &[f64]| {
        #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
        let count = values.len().max(1) as f64;
        Seconds(values.iter().sum::<f64>() / count)
    };
    let tpots: Vec<f64> = done.iter().filter_map(|request| request.tpot()).map(|tpot| tpot.0).collect();
    let e2es: Vec<f64> = done.iter().map(|request| request.e2e().0).collect();
    let mut ttfts: Vec<f64> = done.iter().map(|request| request.ttft().0).collect();
    let ttft = mean(&ttfts);
    ttfts.sort_by(f64::total_cmp);
    let p99 = ttfts.get((ttfts.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0.0);
    RunResult {
        energy: Joules(0.0),
        power: Watts(0.0),
        tokens: 0.0,
        requests: done.len(),
        tpot: mean(&tpots),
        e2e: mean(&e2es),
        ttft,
        ttft_p99: Seconds(p99),
        clock_changes: world.writes().iter().filter(|write| write.accepted).count(),
        rounds: 0,
    }
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

    fn totals(&self) -> Totals {
        self.with_world(|world| Totals {
            at: world.now().0,
            joules: world.true_energy().0,
            tokens: world.signals().generation_tokens.unwrap_or(0.0),
        })
    }

    /// Moves time, and the world with it.
    fn move_to(&self, at: f64) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Time(at);
        self.world.lock().unwrap_or_else(PoisonError::into_inner).advance(Time(at));
    }

    /// One tick that is due at `due`: the time since the last one passes, then the controller steps.
    fn tick(&mut self, controller: &mut Controller, due: f64, period: f64) -> Result<Output, GpuError> {
        let mut energy = Vec::new();
        let scrape_at = due - SCRAPE_LEAD;
        let mut next_look = due - period + WATCH;
        while next_look < due - 0.5 * WATCH && controller.is_parked() {
            self.pass(next_look, &mut energy)?;
            let output = self.step(controller, next_look, Scrape::Pending, std::mem::take(&mut energy))?;
            self.carry_out(&output)?;
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
        let output = self.step(controller, due, Scrape::Page(Box::new(snapshot)), energy)?;
        self.carry_out(&output)?;
        Ok(output)
    }

    fn step(
        &mut self,
        controller: &mut Controller,
        now: f64,
        scrape: Scrape,
        energy: Vec<EnergyPoint>,
    ) -> Result<Output, GpuError> {
        let reading = Some(self.sensors.reading()?);
        let outcomes = std::mem::take(&mut self.outcomes);
        let gpus = vec![GpuTick { reading, read_at: Some(Time(now)), energy }];
        Ok(controller.step(&Observation { now: Time(now), scrape, gpus, outcomes }))
    }

    fn carry_out(&mut self, output: &Output) -> Result<(), GpuError> {
        let Some(target) = output.command else { return Ok(()) };
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
