//! Whole runs in virtual time: the daemon's tick against a [`World`], ten minutes in a fraction of a second.
//!
//! The schedule is the daemon's: a scrape shortly before each tick, counter ticks polled every few
//! milliseconds, looks at the sensors between ticks while parked, clock writes a few milliseconds after the
//! tick.

use std::sync::{Arc, Mutex, PoisonError};

use super::SimError;
use super::board::Usage;
use super::gpu::{Clock, SharedWorld, SimGpu, shared};
use super::kinds::Kind;
use super::record::{Alarm, RunRecord, TickRecord, is_over};
use super::world::{ClockCall, World, WorldSpec};
use agft::control::{ClockOutcome, Connections, Controller, GpuTick, Observation, Output, Round, Scrape};
use agft::gpu::lease::ClockLease;
use agft::gpu::{GpuError, GpuSensors};
use agft::metrics::page::Page;
use agft::metrics::{Signals, Snapshot};
use agft::reward::energy::EnergyPoint;
use agft::units::{Clocks, Mhz, Millijoules, Seconds, Target, Time, Watts};

/// The energy counter is looked at this often.
const POLL: f64 = 0.005;
/// The page arrives this long before the tick, and takes this long.
const SCRAPE_LEAD: f64 = 0.006;
const SCRAPE_LATENCY: f64 = 0.004;
/// What the daemon says where nothing listens.
const PAGE_AWAY: &str = "connection refused";
/// A clock is written this long after the tick that asked for it.
pub(crate) const WRITE_DELAY: f64 = 0.004;
/// Sensors are looked at this often between ticks while parked.
const WATCH: f64 = 0.1;
/// Whoever watches connections acts this long after the first byte of a request: the kernel's event is there
/// within 0.1 ms, a loop that waits for it comes to its turn within the millisecond.
pub(crate) const NOTICE: f64 = 0.001;
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

    /// Is the controller shown the connections to the engine? Then it also steps `NOTICE` after the first
    /// byte of a request, while parked.
    fn shows_connections(&self) -> bool {
        false
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

    /// Does it want to act `NOTICE` after the first byte of each request, too?
    fn wants_requests(&self) -> bool {
        false
    }

    /// Time from its word until the driver has it.
    fn write_delay(&self) -> Seconds {
        Seconds(0.0)
    }
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
    /// The memory clock read back.
    pub memory: Option<Mhz>,
    /// The utilisation sensor, percent.
    pub utilization_percent: Option<f64>,
    /// The energy counter.
    pub energy: Millijoules,
    /// The connections to the engine.
    pub connections: Connections,
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
    bench.sees_connections = matches!(&driver, Driver::Watched(_, onlooker) if onlooker.shows_connections());
    let end = spec.seconds.0;
    let mut rounds = 0;
    let mut alarms = Alarms::of(&driver);
    match &driver {
        Driver::Fixed(clocks) => bench.lease.set(Target::Lock(*clocks))?,
        Driver::Capped(cap) => bench.change_world(|world| world.set_power_cap(*cap)),
        _ => {}
    }
    let mut ticks = vec![bench.with_world(TickRecord::of)];
    let mut usage = Usage::default();
    let mut tick = 0_u32;
    loop {
        tick += 1;
        let now = f64::from(tick) * spec.tick.0;
        match &mut driver {
            Driver::Controller(controller) => {
                if let Some(round) = bench.tick(controller, &mut Nobody, now, spec.tick.0)?.round {
                    rounds += 1;
                    alarms.look(&round, end);
                    observe(&round);
                }
            }
            Driver::Watched(controller, onlooker) => {
                if let Some(round) = bench.tick(controller, *onlooker, now, spec.tick.0)?.round {
                    rounds += 1;
                    alarms.look(&round, end);
                    observe(&round);
                }
            }
            Driver::Autopilot(autopilot) => rounds += bench.fly(*autopilot, now)?,
            Driver::Default | Driver::Fixed(_) | Driver::Capped(_) => bench.move_to(now),
        }
        if ticks.last().is_some_and(|last| last.at.0 < end) {
            ticks.push(bench.with_world(TickRecord::of));
            usage = bench.with_world(World::usage);
        }
        if now >= end && bench.with_world(|world| is_over(world, end)) {
            break;
        }
    }
    Ok(bench.with_world(|world| {
        RunRecord::new(world, spec.seconds, ticks, clock_changes(world, end), usage, rounds, alarms.seen)
    }))
}

/// The rounds in which a limit broke.
struct Alarms {
    seen: Option<Vec<Alarm>>,
    broken: bool,
}

impl Alarms {
    fn of(driver: &Driver<'_>) -> Self {
        let guarded = matches!(driver, Driver::Controller(_) | Driver::Watched(..));
        Self { seen: guarded.then(Vec::new), broken: false }
    }

    fn look(&mut self, round: &Round, end: f64) {
        let before = std::mem::replace(&mut self.broken, round.violation.is_some());
        if let (Some(violation), Some(seen)) = (round.violation, &mut self.seen)
            && !before
            && round.at.0 <= end
        {
            seen.push(Alarm { at: round.at, limit: violation.limit });
        }
    }
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
    /// Is a controller shown the connections?
    sees_connections: bool,
    /// Requests that the driver knew of at its last look.
    requests_seen: u64,
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
        let (counter, outcomes) = (Counter::default(), Vec::new());
        Ok(Self { world, now, sensors, lease, counter, outcomes, sees_connections: false, requests_seen: 0 })
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
        loop {
            let notice = if autopilot.wants_requests() { self.notice() } else { f64::INFINITY };
            let at = autopilot.due().0.min(notice).max(earliest);
            if at >= to {
                break;
            }
            self.move_to(at);
            let look = self.with_world(|world| {
                let reading = world.reading();
                Look {
                    now: Time(at),
                    signals: world.signals(),
                    power: world.power(),
                    core: reading.core_clock,
                    memory: reading.memory_clock,
                    utilization_percent: reading.utilization_percent,
                    energy: world.energy_counter(),
                    connections: world.connections(),
                }
            });
            self.requests_seen = look.connections.requests_total;
            if let Some(target) = autopilot.act(&look) {
                self.move_to(at + autopilot.write_delay().0);
                self.lease.set(target)?;
                acted += 1;
            }
            earliest = self.with_world(World::now).0.max(at + LEAST_PAUSE);
        }
        self.move_to(to);
        Ok(acted)
    }

    /// When a watcher of the connections comes to know of the next request that it does not know of.
    fn notice(&self) -> f64 {
        self.with_world(|world| {
            if world.connections().requests_total > self.requests_seen {
                return world.now().0;
            }
            world.next_request().map_or(f64::INFINITY, |arrival| arrival.0 + NOTICE)
        })
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
        while controller.is_parked() {
            let look = if next_look < due - 0.5 * WATCH { next_look } else { f64::INFINITY };
            let at = look.min(self.notice_of(controller));
            if at >= scrape_at {
                break;
            }
            self.between(controller, onlooker, at, &mut energy)?;
            if at >= next_look {
                next_look += WATCH;
            }
        }
        self.pass(scrape_at, &mut energy)?;
        let scrape = self.with_world(|world| {
            if !world.page_answers() {
                return Scrape::Failed(PAGE_AWAY.to_owned());
            }
            scrape(world, Time(scrape_at))
        });
        let late = self.notice_of(controller);
        if late < due {
            self.between(controller, onlooker, late, &mut energy)?;
        }
        self.pass(due, &mut energy)?;
        self.step(controller, onlooker, due, scrape, energy)
    }

    /// When a parked controller steps on a request.
    fn notice_of(&self, controller: &Controller) -> f64 {
        if !self.sees_connections || !controller.is_parked() {
            return f64::INFINITY;
        }
        self.notice().max(self.with_world(World::now).0)
    }

    /// A step between two pages.
    fn between(
        &mut self,
        controller: &mut Controller,
        onlooker: &mut dyn Onlooker,
        at: f64,
        energy: &mut Vec<EnergyPoint>,
    ) -> Result<(), GpuError> {
        self.pass(at, energy)?;
        let energy = std::mem::take(energy);
        self.step(controller, onlooker, at, Scrape::Pending, energy)?;
        Ok(())
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
        let connections = self.with_world(World::connections);
        self.requests_seen = connections.requests_total;
        let connections = self.sees_connections.then_some(connections);
        let (orders, now) = (Vec::new(), Time(now));
        let seen = Observation { now, scrape, gpus, outcomes, orders, connections, working: 0 };
        let output = controller.step(&seen);
        onlooker.look(&seen, &output, controller);
        self.carry_out(onlooker.command(now, output.command))?;
        Ok(output)
    }

    fn carry_out(&mut self, command: Option<Target>) -> Result<(), GpuError> {
        let Some(target) = command else { return Ok(()) };
        let at = Time(self.with_world(World::now).0 + WRITE_DELAY);
        self.move_to(at.0);
        self.outcomes.push(match self.lease.set(target) {
            Ok(()) => ClockOutcome::InForce { target, at },
            Err(error) => match error.refusal() {
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

/// The page as the daemon's scrape has it. vLLM's needs no text: a law holds what is read of it to the
/// signals.
fn scrape(world: &World, at: Time) -> Scrape {
    let latency = Seconds(SCRAPE_LATENCY);
    if *world.kind() == *Kind::usual() {
        let (signals, refused) = (world.signals(), Vec::new());
        return Scrape::Page(Box::new(Snapshot { at, latency, signals, refused, engine: None }));
    }
    match Page::parse(world.page().as_bytes(), None) {
        Ok(page) => Scrape::Page(Box::new(page.into_snapshot(at, latency))),
        Err(error) => Scrape::Failed(error.to_string()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::as_configured;
    use crate::sim::{Arrivals, FrontEnd, Pattern, Request};
    use agft::config::Config;

    /// Keeps the moments of steps, with the requests seen.
    #[derive(Default)]
    struct Keeper(Vec<(f64, Option<u64>)>);

    impl Onlooker for Keeper {
        fn look(&mut self, seen: &Observation, _: &Output, _: &Controller) {
            let requests = seen.connections.map(|connections| connections.requests_total);
            self.0.push((seen.now.0, requests));
        }

        fn shows_connections(&self) -> bool {
            true
        }
    }

    /// Counts the scrapes that failed.
    #[derive(Default)]
    struct Failures(usize);

    impl Onlooker for Failures {
        fn look(&mut self, seen: &Observation, _: &Output, _: &Controller) {
            self.0 += usize::from(matches!(seen.scrape, Scrape::Failed(_)));
        }
    }

    #[test]
    fn page_is_away_for_the_controller_and_requests_are_served_all_the_same() {
        let world = WorldSpec::named("a40", "3b", Pattern::Steady, None).unwrap();
        let with = |page_out: f64| {
            let front = FrontEnd { page_out: Seconds(page_out), ..world.front };
            let world = WorldSpec { front, ..world.clone() };
            RunSpec { world, seed: 1, seconds: Seconds(600.0), tick: Seconds(0.3) }
        };
        let default = |page_out| run(&with(page_out), Driver::Default, |_| {}).unwrap();
        assert_eq!(default(0.0), default(90.0), "no one sets clocks, so nothing changes");
        let supported = World::new(world.clone(), 1).unwrap().supported_clocks().unwrap();
        let controlled = |page_out| {
            let mut controller = as_configured(&Config::default(), &supported);
            let mut failures = Failures::default();
            let record =
                run(&with(page_out), Driver::Watched(&mut controller, &mut failures), |_| {}).unwrap();
            (record, failures.0)
        };
        let ((without, none), (faulted, some)) = (controlled(0.0), controlled(90.0));
        assert_eq!(none, 0);
        // One tick more or less at each end of a few stretches.
        assert!((0.3 * some as f64 - 90.0).abs() < 6.0, "{some} scrapes failed");
        let arrivals = |record: &RunRecord| {
            let mut arrivals: Vec<f64> = record.requests.iter().map(|request| request.arrival.0).collect();
            arrivals.sort_by(f64::total_cmp);
            arrivals
        };
        assert_eq!(arrivals(&without), arrivals(&faulted));
        assert!(faulted.rounds < without.rounds);
    }

    /// One request, long after the controller has parked.
    fn spec(arrival: f64) -> RunSpec {
        let request =
            Request { arrival: Time(arrival), prompt_tokens: 100, output_tokens: 20, cached_tokens: 0 };
        let world = WorldSpec::named("a40", "3b", Pattern::Light, None).unwrap();
        let front = FrontEnd { delay: Seconds(0.003), ..FrontEnd::default() };
        let world = WorldSpec { arrivals: Arrivals::Listed(vec![request]), front, ..world };
        RunSpec { world, seed: 1, seconds: Seconds(arrival + 2.0), tick: Seconds(0.3) }
    }

    #[test]
    fn parked_controller_that_sees_connections_steps_on_a_request_whenever_it_comes() {
        // Between two looks, just before one, and between the scrape and its tick.
        for arrival in [20.15, 20.1999, 20.3995, 20.6965] {
            let spec = spec(arrival);
            let supported = World::new(spec.world.clone(), 1).unwrap().supported_clocks().unwrap();
            let mut config = Config::default();
            config.holdout.share = 0.0;
            let (mut controller, mut keeper) = (as_configured(&config, &supported), Keeper::default());
            run(&spec, Driver::Watched(&mut controller, &mut keeper), |_| {}).unwrap();
            let first = keeper.0.iter().find(|(_, requests)| *requests == Some(1)).unwrap();
            let after = first.0 - arrival;
            assert!((0.0..=NOTICE + 1e-9).contains(&after), "{arrival}: {after}");
            assert!(keeper.0.iter().all(|(at, requests)| *at >= arrival || *requests == Some(0)));
        }
    }
}
