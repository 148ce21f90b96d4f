//! A group's loop, and its tick: collect, step, command, tell.

use std::collections::BTreeSet;
use std::time::SystemTime;

use futures_util::future::OptionFuture;
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;

use super::actuator::Actuator;
use super::clients::Clients;
use super::clock::Clock;
use super::feed::{Feed, Schedule};
use super::reload::{Change, Reloader};
use super::sampler::{self, Sampler};
use super::watch::{Alarm, GroupWatch, Pulse};

use crate::config::{Config, Server};
use crate::control::quiet::Quiet;
use crate::control::{Controller, Mode, Observation, Order, Scrape, Settings};
use crate::export::Working;
use crate::gpu::GpuError;
use crate::holdout::{Savings, SlotWindow};
use crate::units::{Seconds, Target, Time};
pub use crate::view::StepFacts;

/// A GPU that is lost for a while has the clocks given back so often: well within the pause of a fault.
const DISTURB_EVERY: Seconds = Seconds(2.0);

/// What a group is told from outside.
pub(crate) enum ToGroup {
    /// What an operator wants.
    Order(Order),
    /// The configuration of each of its servers, as the file has it now; answered when it is taken up.
    Reload(Vec<Config>, oneshot::Sender<()>),
}

/// A group of GPUs that share one clock decision, and all that works for it.
pub struct Group {
    /// Its name: that of its server.
    pub name: String,
    /// Its servers, as the configuration had them when the group was opened; without one it is not opened again.
    pub servers: Vec<Server>,
    /// UUIDs of its GPUs.
    pub gpus: BTreeSet<String>,
    /// What its lines in the log stand in, where there are several groups.
    pub span: tracing::Span,
    /// What decides.
    pub controller: Controller,
    /// Where pages come from.
    pub feed: Feed,
    /// Whether nothing but the page could show work.
    pub quiet: Quiet,
    /// Where GPU readings come from.
    pub sampler: Sampler,
    /// What the holdout experiment has shown.
    pub savings: Savings,
    /// Where commands go; without one nothing is ever written (dry run, data collection).
    pub actuator: Option<Actuator>,
    /// Who watches over its threads; nobody where nothing is locked.
    pub watch: Option<GroupWatch>,
    /// Who is told about each step.
    pub observers: Vec<Box<dyn Observer>>,
    /// Takes up another configuration, if that may come.
    pub reload: Option<Reloader>,
    /// Who asks the engine, if that is watched.
    pub clients: Option<Clients>,
    /// The instances on its GPUs that are said to work.
    pub instances: Working,
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

impl Group {
    /// Runs until `inbox` is closed, or the GPUs cannot be controlled any more. Marks `pulse` after each tick. Whatever is
    /// locked stays so until [`Ending::give_back`].
    pub(crate) async fn run(&mut self, inbox: &mut Receiver<ToGroup>, pulse: &Pulse) -> Result<(), RunError> {
        begin(self);
        ticks(self, inbox, pulse).await
    }

    /// Begins to end the group: has the clocks given back, without waiting for it.
    #[must_use]
    pub(crate) fn end(mut self, result: &Result<(), RunError>) -> Ending {
        let release = end_actuator(self.actuator.take(), result);
        let finish = move || {
            drop(self.watch.take());
            self.savings.close(unix_seconds());
            for observer in &mut self.observers {
                observer.end(&self.controller, &self.savings);
            }
        };
        Ending::new(release, finish)
    }
}

/// Has the thread that writes clocks end; leaves one behind that may never come back.
pub(super) fn end_actuator(actuator: Option<Actuator>, result: &Result<(), RunError>) -> Option<Actuator> {
    let actuator = actuator?;
    if matches!(result, Err(RunError::Alarm(Alarm::Stuck { .. }))) {
        actuator.abandon();
        return None;
    }
    actuator.begin_shutdown();
    Some(actuator)
}

pub(crate) struct Ending {
    release: Option<Actuator>,
    finish: Box<dyn FnOnce()>,
}

impl Ending {
    /// Of a group whose clocks are given back by this thread, if any are; `finish` writes what there is to write.
    pub(super) fn new(release: Option<Actuator>, finish: impl FnOnce() + 'static) -> Self {
        Self { release, finish: Box::new(finish) }
    }

    /// Waits until the clocks are back. Blocks for as long as the driver takes, within reason.
    /// Errors: [`GpuError`]: the lock may still be in force.
    pub(crate) fn give_back(&mut self) -> Result<(), GpuError> {
        self.release.take().map_or(Ok(()), Actuator::shutdown)
    }

    /// The thread that gives the clocks back, for a caller that must not wait itself.
    #[must_use]
    pub(crate) fn take_release(&mut self) -> Option<Actuator> {
        self.release.take()
    }

    /// Has everyone write what there is to write.
    pub(crate) fn finish(self) {
        (self.finish)();
    }
}

fn begin(group: &mut Group) {
    let (now, unix_time) = (group.clock.now(), unix_seconds());
    for observer in &mut group.observers {
        observer.begins(&group.controller, now, unix_time);
    }
}

async fn ticks(group: &mut Group, inbox: &mut Receiver<ToGroup>, pulse: &Pulse) -> Result<(), RunError> {
    let clock = group.clock;
    let mut due = group.schedule.next(clock.now());
    let mut number = 0_u64;
    // A tick whose page has not come yet: the round is closed when it does, unless the next tick is nearer by then.
    let mut owed: Option<Time> = None;
    let mut disturbed: Option<Time> = None;
    loop {
        tokio::select! {
            biased;
            message = inbox.recv() => match message {
                None => return Ok(()),
                Some(ToGroup::Order(order)) => {
                    tick(group, None, vec![order]);
                }
                Some(ToGroup::Reload(configs, done)) => {
                    if let Some(reload) = &mut group.reload
                        && let Some(change) = reload.change(&configs, group.controller.learned())
                    {
                        take_up(group, change);
                        owed = None;
                    }
                    // Whoever waited may have gone.
                    let _ = done.send(());
                }
            },
            Some(error) = OptionFuture::from(group.actuator.as_ref().map(Actuator::failed)) =>
                return Err(error.into()),
            error = group.sampler.lost() => {
                if error.refusal().is_none() {
                    return Err(error.into());
                }
                let now = group.clock.now();
                if disturbed.is_none_or(|at: Time| now.since(at).0 >= DISTURB_EVERY.0) {
                    disturbed = Some(now);
                    if let Some(actuator) = &group.actuator {
                        actuator.disturber()(error.to_string());
                    }
                }
            }
            Some(alarm) = OptionFuture::from(group.watch.as_ref().map(GroupWatch::alarm)) =>
                return Err(alarm.into()),
            () = super::feed::sleep_until(group.clock, due) => {
                number += 1;
                #[expect(clippy::panic, reason = "asked for, to test that unwinding gives the clocks back")]
                if group.panic_at_tick == Some(number) {
                    panic!("panic asked for at tick {number}");
                }
                if group.stall_at_tick == Some(number) {
                    std::thread::sleep(std::time::Duration::from_secs(3600));
                }
                owed = (!tick(group, Some(due), Vec::new())).then_some(due);
                pulse.mark();
                // Ticks that were missed are skipped: a window is as long as it is.
                due = group.schedule.next(Time(group.clock.now().0.max(due.0 + 0.5 * group.schedule.period.0)));
            }
            () = group.feed.arrived(), if owed.is_some() => {
                // The notice may be of an answer that was taken already: then the page is still owed.
                let now = group.clock.now();
                owed = owed.filter(|due| {
                    now.since(*due).0 < 0.5 * group.schedule.period.0 && !tick(group, Some(*due), Vec::new())
                });
            }
            () = group.sampler.looked() => {
                tick(group, None, Vec::new());
            }
            () = group.instances.changed(), if group.controller.is_parked() => {
                tick(group, None, Vec::new());
            }
            Some(()) = OptionFuture::from(group.clients.as_mut().map(|who| who.asked(|| clock.now()))),
                if group.controller.is_parked() =>
            {
                tick(group, None, Vec::new());
            }
        }
    }
}

/// Goes on with another configuration, as after a start: at driver-default clocks. A pause stays one.
fn take_up(group: &mut Group, change: Change) {
    let paused = group.controller.is_paused();
    let before = std::mem::replace(&mut group.controller, change.controller);
    group.controller.take_over(&before);
    if paused {
        let now = group.clock.now();
        let nothing = Observation {
            now,
            scrape: Scrape::Pending,
            gpus: Vec::new(),
            outcomes: Vec::new(),
            orders: vec![Order::Pause],
            connections: None,
            working: 0,
        };
        // What it commands is the driver's default, which is commanded below.
        group.controller.step(&nothing);
    }
    if let Some(actuator) = &group.actuator {
        // Outcomes of the old loop's commands mean nothing to the new one.
        drop(actuator.outcomes());
        actuator.command(Target::Default);
    }
    if let Some(feed) = change.feed {
        group.feed = feed;
    }
    // Its cycles may be counted anew. One that goes on is cut in two; the half without a held slot is not
    // compared.
    group.savings.close(unix_seconds());
    for observer in &mut group.observers {
        observer.reconfigured(&change.config, &change.settings);
    }
    begin(group);
}

/// One step: at a tick (`due`) with the page, or between ticks with the sensors alone. Says whether there was an answer.
fn tick(group: &mut Group, due: Option<Time>, orders: Vec<Order>) -> bool {
    let now = group.clock.now();
    let connections = group.clients.as_mut().and_then(|clients| {
        clients.own_addresses(group.feed.own_addresses());
        clients.look(now)
    });
    let seen = Observation {
        now,
        scrape: if due.is_some() { group.feed.take() } else { Scrape::Pending },
        gpus: group.sampler.collect(),
        outcomes: group.actuator.as_ref().map_or_else(Vec::new, Actuator::outcomes),
        orders,
        connections,
        working: group.instances.count(),
    };
    group.feed.set_quiet(group.quiet.look(&seen));
    let output = group.controller.step(&seen);
    if let (Some(target), Some(actuator)) = (output.command, &group.actuator) {
        actuator.command(target);
    }
    if let (Some(why), Some(actuator)) = (&output.reset, &group.actuator) {
        actuator.disturber()(why.clone());
    }
    if let Some(clients) = &mut group.clients
        && (group.controller.parking().worked_at() == Some(now) || is_blind(group.controller.mode()))
    {
        clients.worked(now);
    }
    group.sampler.set_watch(watch(group));
    let unix_time = unix_seconds();
    if let Some(round) = &output.round
        && let Some(at) = round.holdout
    {
        group.savings.push(at, &SlotWindow::from(round), unix_time);
    }
    group.savings.set_share(group.controller.holdout_share());
    let facts = StepFacts {
        seen: &seen,
        output: &output,
        controller: &group.controller,
        savings: &group.savings,
        lateness: due.map(|due| now.since(due)),
        took: group.clock.now().since(now),
        not_given_back: group.actuator.as_ref().is_some_and(Actuator::is_not_given_back),
        unix_time,
    };
    for observer in &mut group.observers {
        observer.step(&facts);
    }
    !matches!(seen.scrape, Scrape::Pending)
}

/// Does nobody look for work now? Then a call that seems to bring none says nothing about the caller.
fn is_blind(mode: Mode) -> bool {
    matches!(mode, Mode::Paused | Mode::Outage | Mode::Starting)
}

/// What the GPUs have to be looked at for.
fn watch(group: &Group) -> sampler::Watch {
    let parking = group.controller.parking();
    if parking.is_waking() || parking.levers().is_timing() {
        sampler::Watch::Waking
    } else if !group.controller.is_parked() {
        sampler::Watch::Off
    } else if !parking.levers().is_trying() && group.clients.as_ref().is_some_and(Clients::hears_all) {
        sampler::Watch::Asleep
    } else {
        sampler::Watch::Parked
    }
}

/// Seconds since the Unix epoch; 0 for a wall clock set before it.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |span| span.as_secs_f64())
}
