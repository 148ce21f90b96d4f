//! The task of one instance: carries out what its [`Machine`] decides, and tells it what happens.

use std::future::{Future, pending};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::gate::Gate;
use super::machine::{Action, Event, Machine, Phase, Plan, Why};
use super::probe;
use super::run::Run;
use super::shared::Shared;
use super::{CommandError, InstanceStatus, State, What};
use crate::process::Exit;
use crate::process::log::{Log, Tail, Written};
use crate::spec::Instance;
use crate::work::tasks::Watched;
use crate::work::{Busy, work_of};

/// An address that is taken is tried again after this pause.
const LISTEN_PACE: Duration = Duration::from_millis(250);

/// So long the last lines of a log may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What an operator or a reload wants of an instance.
#[derive(Debug)]
pub(super) enum Command {
    Operate(Operation, oneshot::Sender<Result<(), CommandError>>),
    Replace(Box<Instance>),
    Retire,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Enable,
    Disable,
    Restart,
}

/// What a keeper wakes up for.
enum Wake {
    Command(Command),
    Deadline,
    Answered,
    Exited(Exit),
    Gone(Exit),
    Connections,
    Listen,
    /// Its log told of work, or ended.
    Work(bool),
}

/// A ready instance is asked again after this share of the time that it may leave the probe unanswered.
const PROBE_AGAIN: f64 = 0.25;

type Probing = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) struct Keeper {
    shared: Arc<Shared>,
    spec: Instance,
    /// Takes the place of `spec` once nothing of that runs any more.
    next: Option<Instance>,
    tail: Arc<Tail>,
    log: Log,
    written: Written,
    machine: Machine,
    commands: mpsc::UnboundedReceiver<Command>,
    run: Option<Run>,
    /// What the log of its process tells of work, until nothing of it is left.
    busy: Option<watch::Receiver<Busy>>,
    probing: Option<Probing>,
    /// The process that is being ended, and the task that does it.
    ending: Option<(u32, JoinHandle<Exit>)>,
    gate: Option<(SocketAddr, Gate)>,
    listen_again: Option<Instant>,
    /// The number of its last start among all instances.
    order: Arc<AtomicU64>,
    phase: Phase,
    state: State,
    since: SystemTime,
    last_exit: Option<String>,
    not_started: Option<String>,
    not_listening: Option<String>,
}

impl Keeper {
    /// Its status is published before this returns.
    pub(super) fn spawn(
        shared: &Arc<Shared>,
        spec: Instance,
        tail: Arc<Tail>,
        order: Arc<AtomicU64>,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> JoinHandle<()> {
        let (machine, action) = Machine::new(Plan::of(&spec));
        let (log, written) = Log::open(Arc::clone(&tail), shared.log_place(&spec));
        let mut keeper = Self {
            shared: Arc::clone(shared),
            spec,
            next: None,
            tail,
            log,
            written,
            phase: machine.phase(),
            machine,
            commands,
            run: None,
            busy: None,
            probing: None,
            ending: None,
            gate: None,
            listen_again: None,
            order,
            state: State::Disabled,
            since: SystemTime::now(),
            last_exit: None,
            not_started: None,
            not_listening: None,
        };
        keeper.state = keeper.state_now();
        keeper.publish();
        tokio::spawn(keeper.keep(action))
    }

    async fn keep(mut self, first: Option<Action>) {
        self.listen().await;
        self.act(first).await;
        loop {
            self.listen().await;
            self.publish();
            if self.machine.finished() {
                drop(self.log);
                self.written.wait(LAST_LINES).await;
                return;
            }
            let action = match self.wake().await {
                Wake::Command(command) => self.obey(command),
                Wake::Deadline => self.due(),
                Wake::Answered => {
                    self.probing = self.run.as_ref().and_then(|run| {
                        let ready = run.spec().ready.clone()?;
                        let pause = ready.hung_after?.mul_f64(PROBE_AGAIN);
                        Some(Box::pin(probe::answered_after(pause, ready.probe)) as Probing)
                    });
                    self.step(Event::Answered)
                }
                Wake::Exited(exit) => {
                    self.shared.tell(&self.spec.name, What::Failed { exit });
                    self.step(Event::Exited { success: exit.success() })
                }
                Wake::Gone(exit) => self.gone(exit),
                Wake::Connections => {
                    let connected = self.connections() > 0;
                    self.step(Event::Connected(connected))
                }
                Wake::Listen => None,
                Wake::Work(goes_on) => {
                    self.busy = self.busy.take().filter(|_| goes_on);
                    None
                }
            };
            self.act(action).await;
        }
    }

    async fn wake(&mut self) -> Wake {
        let deadline = self.machine.deadline().map(Instant::from_std);
        let Self { run, busy, probing, ending, gate, commands, listen_again, .. } = self;
        tokio::select! {
            command = commands.recv() => Wake::Command(command.unwrap_or(Command::Retire)),
            exit = wait_or_never(run.as_ref().map(Run::ended)) => Wake::Exited(exit),
            () = wait_or_never(probing.as_mut()) => Wake::Answered,
            exit = wait_or_never(ending.as_mut().map(|(_, ending)| ending)) => {
                *ending = None;
                // A task that was lost dropped the process, which kills it.
                Wake::Gone(exit.unwrap_or(Exit::Signal(9)))
            }
            () = wait_or_never(gate.as_mut().map(|(_, gate)| gate.changed())) => Wake::Connections,
            () = wait_or_never(deadline.map(sleep_until)) => Wake::Deadline,
            () = wait_or_never(listen_again.map(sleep_until)) => Wake::Listen,
            changed = wait_or_never(busy.as_mut().map(watch::Receiver::changed)) => Wake::Work(changed.is_ok()),
        }
    }

    fn obey(&mut self, command: Command) -> Option<Action> {
        match command {
            Command::Operate(operation, reply) => {
                let refused = operation == Operation::Restart && !self.machine.enabled();
                let _ = reply.send(if refused {
                    Err(CommandError::Disabled(self.spec.name.clone()))
                } else {
                    Ok(())
                });
                self.step(match operation {
                    Operation::Enable => Event::Enable,
                    Operation::Disable => Event::Disable,
                    Operation::Restart => Event::Restart,
                })
            }
            Command::Replace(spec) => {
                let plan = Plan::of(&spec);
                if self.run.is_some() || self.ending.is_some() {
                    self.next = Some(*spec);
                } else {
                    self.take_spec(*spec);
                }
                self.machine.replace(plan)
            }
            Command::Retire => self.step(Event::Retire),
        }
    }

    fn take_spec(&mut self, spec: Instance) {
        let place = self.shared.log_place(&spec);
        if place != self.shared.log_place(&self.spec) {
            (self.log, self.written) = Log::open(Arc::clone(&self.tail), place);
        }
        self.not_started = None;
        self.spec = spec;
    }

    fn due(&mut self) -> Option<Action> {
        let hangs = self.machine.hangs(Instant::now().into_std());
        if self.machine.phase() == Phase::Ready && !hangs {
            // Held from now on, so that none is passed to a process that ends. Whoever came before is
            // counted.
            self.pass_to(None);
            if self.connections() > 0 {
                return self.step(Event::Connected(true));
            }
        }
        self.step(Event::Tick)
    }

    fn gone(&mut self, exit: Exit) -> Option<Action> {
        self.last_exit = Some(exit.to_string());
        self.busy = None;
        self.shared.tell(&self.spec.name, What::Stopped { exit });
        if let Some(next) = self.next.take() {
            self.take_spec(next);
        }
        self.step(Event::Gone)
    }

    /// Tells the machine, and everybody what became of it.
    fn step(&mut self, event: Event) -> Option<Action> {
        let now = Instant::now().into_std();
        let before = self.machine.phase();
        let action = self.machine.step(now, event);
        let after = self.machine.phase();
        let started = self.machine.started();
        if let Some(Action::Stop(why)) = action {
            match why {
                Why::NotReady => {
                    let within = self.spec.ready.as_ref().map(|ready| ready.timeout).unwrap_or_default();
                    self.shared.tell(&self.spec.name, What::NotReady { within });
                }
                Why::Hung => {
                    let within = self.spec.ready.as_ref().and_then(|ready| ready.hung_after);
                    self.shared.tell(&self.spec.name, What::Hung { within: within.unwrap_or_default() });
                }
                Why::Idle => self.shared.tell(&self.spec.name, What::Idle),
                Why::Asked | Why::Exited => {}
            }
        }
        match after {
            _ if before == after => {}
            Phase::Ready => {
                let after = started.map(|started| now.saturating_duration_since(started)).unwrap_or_default();
                self.shared.tell(&self.spec.name, What::Ready { after });
            }
            Phase::Paused { until, crash_loop } => {
                let (pause, failures) = (until.saturating_duration_since(now), self.machine.failures());
                self.shared.tell(&self.spec.name, What::Backoff { pause, failures, crash_loop });
            }
            _ => {}
        }
        action
    }

    async fn act(&mut self, mut action: Option<Action>) {
        while let Some(now) = action {
            action = match now {
                Action::Start => self.start().await,
                Action::Stop(_) => {
                    self.pass_to(None);
                    self.probing = None;
                    match self.run.take() {
                        Some(run) => {
                            self.ending = Some((run.pid(), tokio::spawn(run.end(Arc::clone(&self.shared)))));
                            None
                        }
                        None => self.step(Event::Gone),
                    }
                }
            };
        }
    }

    async fn start(&mut self) -> Option<Action> {
        self.publish();
        self.order.store(self.shared.count_start(), Ordering::Relaxed);
        let watched = Arc::new(Watched::default());
        let busy = watched.busy();
        match Run::start(&self.shared, &self.spec, &self.log.of_process(watched)).await {
            Ok(run) => {
                self.not_started = None;
                self.busy = Some(busy);
                self.shared.tell(&self.spec.name, What::Started { pid: run.pid() });
                let ready = run.spec().ready.clone();
                self.probing = ready
                    .map(|ready| -> Probing { Box::pin(probe::answered_after(Duration::ZERO, ready.probe)) });
                self.run = Some(run);
                self.step(Event::Started)
            }
            Err(error) => {
                let why = error.to_string();
                self.not_started = Some(why.clone());
                self.shared.tell(&self.spec.name, What::NotStarted { why });
                self.step(Event::NotStarted)
            }
        }
    }

    /// Listens where the newest entry says while it is enabled, and passes clients on while it is ready.
    async fn listen(&mut self) {
        let spec = self.next.as_ref().unwrap_or(&self.spec);
        let wanted = spec.on_demand.map(|on_demand| on_demand.listen);
        let wanted = wanted.filter(|_| self.machine.enabled() && !self.machine.finished());
        if self.gate.as_ref().map(|(at, _)| *at) != wanted {
            self.gate = None;
            self.not_listening = None;
            self.listen_again = None;
            // Starts nothing, as nobody is connected.
            self.step(Event::Connected(false));
        }
        let due = self.listen_again.is_none_or(|again| again <= Instant::now());
        if let Some(at) = wanted.filter(|_| self.gate.is_none() && due) {
            match Gate::open(at).await {
                Ok(gate) => {
                    self.gate = Some((at, gate));
                    self.not_listening = None;
                    self.listen_again = None;
                }
                Err(error) => {
                    let why = format!("{at} cannot be listened at: {error}");
                    if self.not_listening.as_ref() != Some(&why) {
                        self.shared.tell(&self.spec.name, What::NotListening { why: why.clone() });
                    }
                    self.not_listening = Some(why);
                    self.listen_again = Some(Instant::now() + LISTEN_PACE);
                }
            }
        }
        let port = self.run.as_ref().and_then(Run::port);
        self.pass_to(port.filter(|_| self.machine.phase() == Phase::Ready));
    }

    fn pass_to(&self, port: Option<u16>) {
        if let Some((_, gate)) = &self.gate {
            gate.pass_to(port);
        }
    }

    fn connections(&self) -> usize {
        self.gate.as_ref().map_or(0, |(_, gate)| gate.connections())
    }

    fn state_now(&self) -> State {
        match self.machine.phase() {
            Phase::Disabled => State::Disabled,
            Phase::Starting => State::Starting,
            Phase::Ready => State::Ready,
            Phase::Stopping(_) => State::Stopping,
            Phase::Paused { until, crash_loop } => {
                let until = SystemTime::now() + until.saturating_duration_since(Instant::now().into_std());
                let failures = self.machine.failures();
                if crash_loop {
                    State::CrashLoop { until, failures }
                } else {
                    State::Backoff { until, failures }
                }
            }
            Phase::Idle => State::StoppedIdle,
            Phase::Ended => State::Ended,
        }
    }

    fn publish(&mut self) {
        if self.machine.phase() != self.phase {
            self.phase = self.machine.phase();
            let state = self.state_now();
            if state.name() != self.state.name() {
                self.since = SystemTime::now();
            }
            self.state = state;
        }
        let clients = self.gate.as_ref().map(|(_, gate)| gate.connections());
        let busy = self.busy.as_ref().map(|busy| *busy.borrow()).unwrap_or_default();
        self.shared.publish(InstanceStatus {
            name: self.spec.name.clone(),
            enabled: self.machine.enabled(),
            state: self.state,
            since: self.since,
            pid: self.run.as_ref().map(Run::pid).or(self.ending.as_ref().map(|(pid, _)| *pid)),
            restarts: self.machine.restarts(),
            gpus: self.spec.gpus.clone(),
            last_exit: self.last_exit.clone(),
            problem: self.not_started.clone().or_else(|| self.not_listening.clone()),
            connections: clients,
            metrics_url: self.run.as_ref().and_then(|run| run.spec().metrics_url.clone()),
            work: work_of(self.state, clients, busy),
        });
    }
}

async fn wait_or_never<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}
