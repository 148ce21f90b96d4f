//! The tick: collect, step, command, tell.

use std::time::SystemTime;

use super::actuator::Actuator;
use super::clients::Clients;
use super::clock::Clock;
use super::feed::{Feed, Schedule};
use super::reload::{Change, Reloader};
use super::sampler::{self, Sampler};
use super::watch::{Alarm, Pulse, Watch};
use crate::config::Config;
use crate::control::{Controller, Mode, Observation, Order, Output, Scrape, Settings};
use crate::gpu::GpuError;
use crate::holdout::{Savings, SlotWindow};
use crate::units::{Seconds, Target, Time};

/// A GPU that is lost for a while has the clocks given back so often: well within the pause of a fault.
const DISTURB_EVERY: Seconds = Seconds(2.0);

/// Everything a run is made of.
pub struct Parts {
    /// What decides.
    pub controller: Controller,
    /// Where pages come from.
    pub feed: Feed,
    /// Where GPU readings come from.
    pub sampler: Sampler,
    /// What the holdout experiment has shown.
    pub savings: Savings,
    /// Where commands go; without one nothing is ever written (dry run, data collection).
    pub actuator: Option<Actuator>,
    /// Who watches over all this, and over the guardian; nobody where nothing is locked. After the actuator: dropped in
    /// this order, the guardian hears goodbye when the clocks are back.
    pub watch: Option<Watch>,
    /// Marked after each tick.
    pub pulse: Pulse,
    /// Who is told about each step.
    pub observers: Vec<Box<dyn Observer>>,
    /// Who reads the configuration again on SIGHUP.
    pub reload: Option<Reloader>,
    /// Who asks the engine, if that is watched.
    pub clients: Option<Clients>,
    /// Where operators' orders come from.
    pub orders: Option<tokio::sync::mpsc::Receiver<Order>>,
    /// When the ticks are.
    pub schedule: Schedule,
    /// The clock of the run.
    pub clock: Clock,
    /// Panics at this tick: tests need to see the clocks given back on that way out too.
    pub panic_at_tick: Option<u64>,
    /// Blocks at this tick, for the same reason.
    pub stall_at_tick: Option<u64>,
}

/// Why a run ended that was not asked to.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RunError {
    /// The GPU was lost, refused for good, or would not take its clocks back.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// A part is stuck, or there is no guardian.
    #[error(transparent)]
    Alarm(#[from] Alarm),
}

/// What an observer is told after each step.
pub struct StepFacts<'a> {
    /// What the step was shown.
    pub seen: &'a Observation,
    /// What it wants.
    pub output: &'a Output,
    /// The controller after the step.
    pub controller: &'a Controller,
    /// What the holdout experiment has shown, this step included.
    pub savings: &'a Savings,
    /// How long after its scheduled moment the tick ran; `None` for a look between ticks.
    pub lateness: Option<Seconds>,
    /// Time that collecting, deciding and commanding took.
    pub took: Seconds,
    /// Are there clocks that the driver has not taken back? Then a lock may be in force.
    pub not_given_back: bool,
    /// Wall-clock time, seconds since the Unix epoch.
    pub unix_time: f64,
}

/// Someone who records or shows what happens.
pub trait Observer {
    /// The loop begins to run this controller: at the start, and after each reload.
    fn begins(&mut self, _controller: &Controller, _now: Time, _unix_time: f64) {}

    /// A step was made.
    fn step(&mut self, facts: &StepFacts<'_>);

    /// Another configuration is in force from now on.
    fn reconfigured(&mut self, _config: &Config, _settings: &Settings) {}

    /// The run is over; the clocks have been given back.
    fn end(&mut self, controller: &Controller, savings: &Savings);
}

/// How a run ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A signal asked for it.
    Signal(&'static str),
    /// The caller had a last tick in mind.
    Finished,
}

/// Runs until `stop` resolves or the GPU cannot be controlled any more; gives the clocks back either way.
///
/// # Errors
/// [`RunError`].
pub async fn drive(mut parts: Parts, stop: impl Future<Output = End>) -> Result<End, RunError> {
    begin(&mut parts);
    parts.pulse.mark();
    let result = ticks(&mut parts, stop).await;
    parts.pulse.rest();
    let released = match parts.actuator.take() {
        Some(actuator) if matches!(result, Err(RunError::Alarm(Alarm::Stuck { .. }))) => {
            actuator.abandon();
            Ok(())
        }
        Some(actuator) => actuator.shutdown(),
        None => Ok(()),
    };
    // Goodbye to the guardian, if all is back: what follows only writes files.
    drop(parts.watch.take());
    parts.savings.close(unix_seconds());
    for observer in &mut parts.observers {
        observer.end(&parts.controller, &parts.savings);
    }
    let end = result?;
    released?;
    Ok(end)
}

fn begin(parts: &mut Parts) {
    let (now, unix_time) = (parts.clock.now(), unix_seconds());
    for observer in &mut parts.observers {
        observer.begins(&parts.controller, now, unix_time);
    }
}

async fn ticks(parts: &mut Parts, stop: impl Future<Output = End>) -> Result<End, RunError> {
    tokio::pin!(stop);
    let mut due = parts.schedule.next(parts.clock.now());
    let mut number = 0_u64;
    // A tick whose page has not come yet: the round is closed when it does, unless the next tick is nearer by then.
    let mut owed: Option<Time> = None;
    let mut disturbed: Option<Time> = None;
    loop {
        tokio::select! {
            biased;
            end = &mut stop => return Ok(end),
            error = clock_failure(parts.actuator.as_ref()) => return Err(error.into()),
            error = parts.sampler.lost() => {
                if error.refusal().is_none() {
                    return Err(error.into());
                }
                let now = parts.clock.now();
                if disturbed.is_none_or(|at: Time| now.since(at).0 >= DISTURB_EVERY.0) {
                    disturbed = Some(now);
                    if let Some(actuator) = &parts.actuator {
                        actuator.disturber()(error.to_string());
                    }
                }
            }
            alarm = alarm(parts.watch.as_ref()) => return Err(alarm.into()),
            () = super::feed::sleep_until(parts.clock, due) => {
                number += 1;
                #[expect(clippy::panic, reason = "asked for, to test that unwinding gives the clocks back")]
                if parts.panic_at_tick == Some(number) {
                    panic!("panic asked for at tick {number}");
                }
                if parts.stall_at_tick == Some(number) {
                    std::thread::sleep(std::time::Duration::from_secs(3600));
                }
                owed = (!tick(parts, Some(due), Vec::new())).then_some(due);
                parts.pulse.mark();
                // Ticks that were missed are skipped: a window is as long as it is.
                due = parts.schedule.next(Time(parts.clock.now().0.max(due.0 + 0.5 * parts.schedule.period.0)));
            }
            () = reload_requested(parts.reload.as_mut()) => {
                if let Some(reload) = &mut parts.reload
                    && let Some(change) = reload.load(parts.controller.learned())
                {
                    take_up(parts, change);
                    owed = None;
                }
            }
            () = parts.feed.arrived(), if owed.is_some() => {
                // The notice may be of an answer that was taken already: then the page is still owed.
                let now = parts.clock.now();
                owed = owed.filter(|due| {
                    now.since(*due).0 < 0.5 * parts.schedule.period.0 && !tick(parts, Some(*due), Vec::new())
                });
            }
            () = parts.sampler.looked() => {
                tick(parts, None, Vec::new());
            }
            () = asked(parts.clients.as_mut(), parts.clock), if parts.controller.is_parked() => {
                tick(parts, None, Vec::new());
            }
            order = next_order(parts.orders.as_mut()) => {
                tick(parts, None, vec![order]);
            }
        }
    }
}

async fn clock_failure(actuator: Option<&Actuator>) -> GpuError {
    match actuator {
        Some(actuator) => actuator.failed().await,
        None => std::future::pending().await,
    }
}

async fn asked(clients: Option<&mut Clients>, clock: Clock) {
    match clients {
        Some(clients) => clients.asked(|| clock.now()).await,
        None => std::future::pending().await,
    }
}

async fn reload_requested(reload: Option<&mut Reloader>) {
    match reload {
        Some(reload) => reload.requested().await,
        None => std::future::pending().await,
    }
}

async fn next_order(orders: Option<&mut tokio::sync::mpsc::Receiver<Order>>) -> Order {
    let order = match orders {
        Some(orders) => orders.recv().await,
        None => None,
    };
    match order {
        Some(order) => order,
        // Nobody is left who could order anything.
        None => std::future::pending().await,
    }
}

/// Goes on with another configuration, as after a start: at driver-default clocks. A pause stays one.
fn take_up(parts: &mut Parts, change: Change) {
    let paused = parts.controller.is_paused();
    let before = std::mem::replace(&mut parts.controller, change.controller);
    parts.controller.take_over(&before);
    if paused {
        let now = parts.clock.now();
        let nothing = Observation {
            now,
            scrape: Scrape::Pending,
            gpus: Vec::new(),
            outcomes: Vec::new(),
            orders: vec![Order::Pause],
            connections: None,
        };
        // What it commands is the driver's default, which is commanded below.
        parts.controller.step(&nothing);
    }
    if let Some(actuator) = &parts.actuator {
        // Outcomes of the old loop's commands mean nothing to the new one.
        drop(actuator.outcomes());
        actuator.command(Target::Default);
    }
    if let Some(feed) = change.feed {
        parts.feed = feed;
    }
    // Its cycles may be counted anew. One that goes on is cut in two; the half without a held slot is not
    // compared.
    parts.savings.close(unix_seconds());
    parts.savings.set_share(change.settings.holdout_share());
    for observer in &mut parts.observers {
        observer.reconfigured(&change.config, &change.settings);
    }
    begin(parts);
}

async fn alarm(watch: Option<&Watch>) -> Alarm {
    match watch {
        Some(watch) => watch.alarm().await,
        None => std::future::pending().await,
    }
}

/// One step: at a tick (`due`) with the page, or between ticks with the sensors alone. Says whether there was an answer.
fn tick(parts: &mut Parts, due: Option<Time>, orders: Vec<Order>) -> bool {
    let now = parts.clock.now();
    let connections = parts.clients.as_mut().and_then(|clients| {
        clients.own_address(parts.feed.own_address());
        clients.look(now)
    });
    let seen = Observation {
        now,
        scrape: if due.is_some() { parts.feed.take() } else { Scrape::Pending },
        gpus: parts.sampler.collect(),
        outcomes: parts.actuator.as_ref().map_or_else(Vec::new, Actuator::outcomes),
        orders,
        connections,
    };
    let output = parts.controller.step(&seen);
    if let (Some(target), Some(actuator)) = (output.command, &parts.actuator) {
        actuator.command(target);
    }
    if let (Some(why), Some(actuator)) = (&output.reset, &parts.actuator) {
        actuator.disturber()(why.clone());
    }
    if let Some(clients) = &mut parts.clients
        && (parts.controller.parking().worked_at() == Some(now) || is_blind(parts.controller.mode()))
    {
        clients.worked(now);
    }
    parts.sampler.set_watch(watch(parts));
    let unix_time = unix_seconds();
    if let Some(round) = &output.round
        && let Some(at) = round.holdout
    {
        parts.savings.push(at, &SlotWindow::from(round), unix_time);
    }
    let facts = StepFacts {
        seen: &seen,
        output: &output,
        controller: &parts.controller,
        savings: &parts.savings,
        lateness: due.map(|due| now.since(due)),
        took: parts.clock.now().since(now),
        not_given_back: parts.actuator.as_ref().is_some_and(Actuator::is_not_given_back),
        unix_time,
    };
    for observer in &mut parts.observers {
        observer.step(&facts);
    }
    !matches!(seen.scrape, Scrape::Pending)
}

/// Does nobody look for work now? Then a call that seems to bring none says nothing about the caller.
fn is_blind(mode: Mode) -> bool {
    matches!(mode, Mode::Paused | Mode::Outage | Mode::Starting)
}

/// What the GPUs have to be looked at for.
fn watch(parts: &Parts) -> sampler::Watch {
    let parking = parts.controller.parking();
    if parking.is_waking() || parking.levers().is_timing() {
        sampler::Watch::Waking
    } else if !parts.controller.is_parked() {
        sampler::Watch::Off
    } else if !parking.levers().is_trying() && parts.clients.as_ref().is_some_and(Clients::hears_all) {
        sampler::Watch::Asleep
    } else {
        sampler::Watch::Parked
    }
}

/// Seconds since the Unix epoch; 0 for a wall clock set before it.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |span| span.as_secs_f64())
}
