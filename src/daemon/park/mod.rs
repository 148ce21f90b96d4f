//! The loop of `agft park`: looks at each GPU when its look is due, parks and wakes, keeps the books.
//!
//! It shares with the engine's daemon all that makes clocks safe (lease, actuator, guardian, watch) and none of its
//! learning. Sensors are read in the loop itself: a call that hangs is seen by the watch, which has the guardian give the
//! clocks back.

pub mod activity;
pub mod hooks;
pub mod keeper;
pub mod levels;
pub mod member;
pub mod reload;
pub mod setup;
mod show;

use std::time::{Duration, Instant};

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio::time::sleep;

use self::activity::ActivitySource;
use self::hooks::FanHooks;
use self::keeper::Keeper;
use self::member::Member;
use self::reload::Reloader;
pub use self::show::Show;
use super::clock::Clock;
use super::notify::Notifier;
use super::tick::{End, RunError};
use super::watch::{Alarm, Pulse, Watch};
use crate::config::Park;
use crate::connections::Event;
use crate::control::Order;
use crate::export::protocol::Directed;
use crate::park::State;
use crate::park::fans::FanRule;
use crate::park::source::Connections;
use crate::seldom::Seldom;
use crate::units::{Seconds, Target, Time};

/// Without anything due the loop still looks after itself this often.
const LONGEST_SLEEP: Seconds = Seconds(1.0);
/// So soon after a command its outcome is heard.
const OUTCOME: Seconds = Seconds(0.05);
/// The service manager's line is renewed this often.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// Everything a parking run is made of.
pub struct ParkRun {
    /// The GPUs.
    pub members: Vec<Member>,
    /// Sources of activity beside the GPUs.
    pub sources: Vec<Box<dyn ActivitySource>>,
    /// Period of looks at those.
    pub sources_every: Seconds,
    /// Who watches over this, and over the guardian. After the members: dropped in this order, the guardian hears goodbye
    /// when the clocks are back.
    pub watch: Option<Watch>,
    /// Marked while the loop works, at rest while it sleeps.
    pub pulse: Pulse,
    /// Decides on the fans.
    pub fans: FanRule,
    /// Who switches them; nobody if there is nothing to run.
    pub hooks: Option<FanHooks>,
    /// Who keeps what was measured of levers; nobody in a dry run.
    pub keeper: Option<Keeper>,
    /// Period of the STATUS lines.
    pub log_every: Seconds,
    /// The configuration in force.
    pub park: Park,
    /// Who reads it again on SIGHUP.
    pub reload: Option<Reloader>,
    /// Where operators' orders come from.
    pub orders: Option<mpsc::Receiver<Directed>>,
    /// What operators see.
    pub show: Show,
    /// The service manager, if one listens.
    pub notifier: Option<Notifier>,
    /// The clock of the run.
    pub clock: Clock,
    /// Panics at this turn: tests need to see the clocks given back on that way out too.
    pub panic_at_turn: Option<u64>,
}

/// Parks until `stop` resolves or a GPU cannot be controlled any more; gives all clocks back either way.
///
/// # Errors
/// [`RunError`].
pub async fn drive(mut run: ParkRun, stop: impl Future<Output = End>) -> Result<End, RunError> {
    let mut result = turns(&mut run, stop).await;
    let stuck = matches!(result, Err(RunError::Alarm(Alarm::Stuck { .. })));
    let now = run.clock.now();
    if !stuck {
        // All at once, and before anything is asked of a driver that may be in trouble.
        run.members.iter().for_each(|member| member.command(Target::Default));
    }
    let mut sums = Vec::new();
    for mut member in run.members.drain(..) {
        if !stuck {
            run.pulse.mark();
            let _ = member.book(now);
        }
        if let (Some(keeper), Some(book)) = (&run.keeper, member.measured()) {
            keeper.keep(member.info(), book);
        }
        sums.push((member.info().clone(), member.books().clone(), member.books().calls_per_parked_minute()));
        match member.actuator.take() {
            Some(actuator) if stuck => actuator.abandon(),
            Some(actuator) => {
                if let Err(error) = actuator.shutdown() {
                    // What ended the run first is the error to report.
                    result = result.and(Err(error.into()));
                }
            }
            None => {}
        }
        run.pulse.rest();
    }
    // Goodbye to the guardian, if all is back.
    drop(run.watch.take());
    if let Some(notifier) = &run.notifier {
        notifier.stopping();
    }
    if let (Some(command), Some(hooks)) = (run.fans.end(), &run.hooks) {
        hooks.order(command);
    }
    for (gpu, books, calls) in sums {
        tracing::info!(%gpu, sensor_calls = books.calls, sensor_calls_per_parked_min = calls, "SUMMARY {books}");
    }
    drop(run.hooks.take());
    drop(run.keeper.take());
    result
}

async fn turns(run: &mut ParkRun, stop: impl Future<Output = End>) -> Result<End, RunError> {
    tokio::pin!(stop);
    let mut shell = Shell::new(run);
    loop {
        let pause = shell.pause(run);
        let mut asked = Asked::Nothing;
        tokio::select! {
            biased;
            end = &mut stop => return Ok(end),
            alarm = alarm(run.watch.as_ref()) => return Err(alarm.into()),
            order = order(run.orders.as_mut()) => asked = Asked::Order(order),
            () = hangup(run.reload.as_mut()) => asked = Asked::Reload,
            () = news(shell.news.as_mut(), shell.parked) => shell.sources_due = run.clock.now(),
            () = sleep(pause) => {}
        }
        run.pulse.mark();
        let turned = shell.carry_out(asked, run).and_then(|()| shell.turn(run));
        run.pulse.rest();
        turned?;
    }
}

/// What somebody wants of the loop.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Asked {
    Nothing,
    Order(Order),
    Reload,
}

async fn order(orders: Option<&mut mpsc::Receiver<Directed>>) -> Order {
    let next = match orders {
        Some(orders) => orders.recv().await,
        None => None,
    };
    // Without a socket nobody orders anything.
    match next {
        Some(directed) => directed.order,
        None => std::future::pending().await,
    }
}

async fn hangup(reload: Option<&mut Reloader>) {
    match reload {
        Some(reload) => reload.requested().await,
        None => std::future::pending().await,
    }
}

/// Waits for news of connections, if a parked GPU has to hear of them. Others are looked at often enough, and a server
/// with thousands of clients must not keep the loop busy.
async fn news(news: Option<&mut broadcast::Receiver<Event>>, wanted: bool) {
    match news {
        Some(news) if wanted => loop {
            match news.recv().await {
                Ok(_) | Err(RecvError::Lagged(_)) => return,
                // Its thread is gone, which a look will tell.
                Err(RecvError::Closed) => std::future::pending::<()>().await,
            }
        },
        _ => std::future::pending().await,
    }
}

async fn alarm(watch: Option<&Watch>) -> Alarm {
    match watch {
        Some(watch) => watch.alarm().await,
        None => std::future::pending().await,
    }
}

/// What the sources tell by themselves; nothing if any of them has to be asked.
fn heard(run: &ParkRun) -> Option<broadcast::Receiver<Event>> {
    match run.sources.as_slice() {
        [source] => source.news(),
        _ => None,
    }
}

/// What the loop remembers from turn to turn.
struct Shell {
    number: u64,
    /// Over all sources; `None` where that is not known.
    connections: Option<Connections>,
    /// What the source of connections tells by itself.
    news: Option<broadcast::Receiver<Event>>,
    /// Is a GPU parked?
    parked: bool,
    /// A source has failed, and that was said.
    failed: bool,
    /// Sources that fail again and again are not said each time.
    seldom: Seldom<Time, (&'static str, String)>,
    sources_due: Time,
    log_due: Time,
    /// A command is on its way: its outcome is soon to be heard.
    outcome_due: Option<Time>,
    states: Vec<State>,
    alive: Option<Instant>,
    status: Option<Instant>,
}

fn not_known((source, error): &(&'static str, String), times: u64) {
    let times = (times > 0).then_some(times);
    tracing::error!(source, error, not_said_before = times, "connections are not known: no GPU is parked");
}

impl Shell {
    fn new(run: &ParkRun) -> Self {
        let now = run.clock.now();
        Self {
            number: 0,
            connections: None,
            news: heard(run),
            parked: false,
            failed: false,
            seldom: Seldom::default(),
            sources_due: now,
            log_due: now + run.log_every,
            outcome_due: None,
            states: run.members.iter().map(Member::state).collect(),
            alive: None,
            status: None,
        }
    }

    fn open_connections(&self) -> Option<u32> {
        self.connections.map(|seen| seen.open)
    }

    /// Between two looks at the sources.
    fn sources_every(&self, run: &ParkRun) -> Seconds {
        if self.parked && self.news.is_some() { LONGEST_SLEEP } else { run.sources_every }
    }

    /// Until the next look that is due.
    fn pause(&self, run: &ParkRun) -> Duration {
        let now = run.clock.now();
        let mut next = (now + LONGEST_SLEEP).0.min(self.log_due.0);
        if !run.sources.is_empty() {
            next = next.min(self.sources_due.0);
        }
        next = self.outcome_due.map_or(next, |due| next.min(due.0));
        next = run.members.iter().fold(next, |next, member| next.min(member.due().0));
        Duration::from_secs_f64((next - now.0).max(0.0))
    }

    fn carry_out(&mut self, asked: Asked, run: &mut ParkRun) -> Result<(), RunError> {
        let now = run.clock.now();
        match asked {
            Asked::Nothing => return Ok(()),
            Asked::Order(Order::Pause) => {
                for member in &mut run.members {
                    member.pause(now)?;
                }
                tracing::info!("paused: the clocks are the driver's until resume");
            }
            Asked::Order(Order::Resume) => {
                run.members.iter_mut().for_each(|member| member.resume(now));
                tracing::info!("resumed");
            }
            Asked::Reload => {
                run.notifier.iter().for_each(Notifier::reloading);
                if reload::reload(run)? {
                    self.news = heard(run);
                    self.sources_due = now;
                    self.log_due = now + run.log_every;
                }
                run.notifier.iter().for_each(Notifier::ready);
            }
        }
        if let Asked::Order(order) = asked {
            run.show.pause(order == Order::Pause);
        }
        self.outcome_due = Some(run.clock.now() + OUTCOME);
        Ok(())
    }

    fn turn(&mut self, run: &mut ParkRun) -> Result<(), RunError> {
        self.number += 1;
        #[expect(clippy::panic, reason = "asked for, to test that unwinding gives the clocks back")]
        if run.panic_at_turn == Some(self.number) {
            panic!("panic asked for at turn {}", self.number);
        }
        let now = run.clock.now();
        self.look_at_sources(run, now);
        self.outcome_due = self.outcome_due.filter(|due| *due > now);
        for (member, before) in run.members.iter_mut().zip(&mut self.states) {
            // One slow driver call is no hang of the next GPU's.
            run.pulse.mark();
            member.turn(self.connections, run.clock.now())?;
            if let (Some(book), Some(keeper)) = (member.take_news(), &run.keeper) {
                keeper.keep(member.info(), book);
            }
            let state = member.state();
            if state.name() != before.name() {
                tracing::debug!(gpu = %member.info(), from = before.name(), to = state.name(), "state");
                *before = state;
                self.outcome_due = Some(now + OUTCOME);
            }
        }
        let parked = run.members.iter().any(|member| matches!(member.state(), State::Parked { .. }));
        if parked != std::mem::replace(&mut self.parked, parked) {
            // What was told before is known, and what comes from now on is heard.
            self.news = heard(run);
            self.sources_due = run.clock.now();
        }
        let quiet = run.members.iter().all(|member| matches!(member.state(), State::Parked { .. }));
        if let (Some(command), Some(hooks)) = (run.fans.step(quiet, now), &run.hooks) {
            hooks.order(command);
        }
        if now >= self.log_due {
            self.log_due = now + run.log_every;
            self.say(run, now)?;
        }
        run.show.turn(&mut run.members, &run.sources, self.open_connections(), &run.park, now);
        self.notify(run);
        Ok(())
    }

    fn look_at_sources(&mut self, run: &mut ParkRun, now: Time) {
        if run.sources.is_empty() || now < self.sources_due {
            return;
        }
        self.sources_due = now + self.sources_every(run);
        let mut together = Some(Connections::default());
        let mut failed = false;
        for source in &mut run.sources {
            match source.look() {
                Ok(seen) => {
                    together = together.map(|all| Connections {
                        open: all.open.saturating_add(seen.open),
                        opened_total: all.opened_total + seen.opened_total,
                        requests_total: all.requests_total + seen.requests_total,
                    });
                }
                Err(error) => {
                    failed = true;
                    together = None;
                    // While it lasts it is not said again; where it comes and goes, seldom.
                    let what = (source.name(), error.to_string());
                    if !self.failed
                        && let Some((what, times)) = self.seldom.happened(what.0, what, now)
                    {
                        not_known(&what, times);
                    }
                }
            }
        }
        if !failed {
            for source in &run.sources {
                self.seldom.over(source.name());
            }
        }
        while let Some((what, times)) = self.seldom.due(now) {
            not_known(&what, times);
        }
        self.failed = failed;
        self.connections = together;
    }

    fn say(&self, run: &mut ParkRun, now: Time) -> Result<(), RunError> {
        for member in &mut run.members {
            member.book(now)?;
            tracing::info!(
                gpu = %member.info(),
                connections = self.open_connections(),
                sensor_calls_per_parked_min = member.books().calls_per_parked_minute(),
                "STATUS {}: {}",
                member.state().name(),
                member.books()
            );
        }
        Ok(())
    }

    fn notify(&mut self, run: &ParkRun) {
        let Some(notifier) = &run.notifier else { return };
        if let Some(every) = notifier.alive_every()
            && self.alive.is_none_or(|at| at.elapsed() >= every)
        {
            self.alive = Some(Instant::now());
            notifier.alive();
        }
        if self.status.is_none_or(|at| at.elapsed() >= STATUS_EVERY) {
            self.status = Some(Instant::now());
            let down = run.members.iter().filter(|member| member.state().is_down()).count();
            notifier.status(&format!("{down} of {} GPUs parked", run.members.len()));
        }
    }
}
