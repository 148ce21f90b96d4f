//! The life of one instance, decided: events in, at most one action out. Time is a parameter, nothing here
//! does anything.

use std::time::{Duration, Instant};

use crate::spec::{Instance, Restart, RestartPolicy};

/// Whatever an entry says: a program that cannot be started keeps no core busy.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// What of an entry decides its life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) enabled: bool,
    pub(super) restart: Restart,
    /// How long it may take to be ready; ready once its process runs where none.
    pub(super) ready_within: Option<Duration>,
    /// How long it may leave its probe unanswered once it was ready; not asked again where none.
    pub(super) hung_after: Option<Duration>,
    /// It runs while somebody is connected, and is stopped when nobody was for this long; runs always where
    /// none.
    pub(super) idle_after: Option<Duration>,
}

impl Plan {
    pub(super) fn of(spec: &Instance) -> Self {
        Self {
            enabled: spec.enabled,
            restart: spec.restart,
            ready_within: spec.ready.as_ref().map(|ready| ready.timeout),
            hung_after: spec.ready.as_ref().and_then(|ready| ready.hung_after),
            idle_after: spec.on_demand.map(|on_demand| on_demand.stop_after_idle),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// An operator wants it to run.
    Enable,
    /// An operator wants it not to run.
    Disable,
    /// An operator wants a new process, now where it waits. On demand, that is the next connection's where
    /// nobody is connected. Nothing happens where it is disabled.
    Restart,
    /// It is to end for good: its entry is gone, or the supervisor ends.
    Retire,
    /// The process that was to be started runs.
    Started,
    /// The process that was to be started does not.
    NotStarted,
    /// The readiness probe was answered.
    Answered,
    /// The process ended without being asked to. What is left of it is still to be stopped.
    Exited {
        /// Whether its status tells of no failure.
        success: bool,
    },
    /// What was to be stopped is gone, with all that descends from it.
    Gone,
    /// Somebody is connected, or nobody any more.
    Connected(bool),
    /// The time of [`Machine::deadline`] has come.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Start a process, then tell [`Event::Started`] or [`Event::NotStarted`].
    Start,
    /// End the process and all that belongs to it, then tell [`Event::Gone`].
    Stop(Why),
}

/// Why a process is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Asked,
    Exited,
    NotReady,
    Hung,
    Idle,
}

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Disabled,
    /// Its process is being started, or is not ready yet.
    Starting,
    Ready,
    Stopping(Then),
    /// Waits before it is started again.
    Paused {
        until: Instant,
        crash_loop: bool,
    },
    /// On demand, and nobody is connected.
    Idle,
    /// Its process ended, and its policy does not start it again; or it retired.
    Ended,
}

/// What follows when a process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Start,
    Pause,
    Idle,
    Ended,
    Disabled,
}

/// The life of one instance.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    plan: Plan,
    phase: Phase,
    /// When the process now running was started.
    started: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    restarts: u64,
    /// Somebody is connected.
    connected: bool,
    /// When it became ready or the last client left, whichever was later.
    unused_since: Option<Instant>,
    /// When its probe was answered last, if it is asked while it is ready.
    answered: Option<Instant>,
    retired: bool,
}

impl Machine {
    /// A new instance, and what is to be done at first.
    pub(super) fn new(plan: Plan) -> (Self, Option<Action>) {
        let mut machine = Self {
            plan,
            phase: Phase::Disabled,
            started: None,
            failures: 0,
            restarts: 0,
            connected: false,
            unused_since: None,
            answered: None,
            retired: false,
        };
        let action = if plan.enabled { machine.wake() } else { None };
        (machine, action)
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn enabled(&self) -> bool {
        self.plan.enabled
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn restarts(&self) -> u64 {
        self.restarts
    }

    /// It retired, and nothing of it runs: no further event changes anything.
    pub(super) fn finished(&self) -> bool {
        self.retired && self.phase == Phase::Ended
    }

    /// How long the process that is starting has had, or had until it became ready.
    pub(super) fn started(&self) -> Option<Instant> {
        self.started
    }

    /// When a [`Event::Tick`] is due; none where only other events change anything.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Starting => Some(later(self.started?, self.plan.ready_within?)),
            Phase::Ready => [self.hangs_at(), self.unused_at()].into_iter().flatten().min(),
            Phase::Paused { until, .. } => Some(until),
            _ => None,
        }
    }

    /// When it is to be ended because its probe was not answered, as far as is known now.
    fn hangs_at(&self) -> Option<Instant> {
        Some(later(self.answered?, self.plan.hung_after?))
    }

    /// When it is to be ended because nobody is connected, as far as is known now.
    fn unused_at(&self) -> Option<Instant> {
        Some(later(self.unused_since.filter(|_| !self.connected)?, self.plan.idle_after?))
    }

    /// It was ready, and has not answered its probe for too long.
    pub(super) fn hangs(&self, now: Instant) -> bool {
        self.phase == Phase::Ready && self.hangs_at().is_some_and(|at| now >= at)
    }

    /// A new entry takes the place of the old one: a process that runs is replaced.
    pub(super) fn replace(&mut self, plan: Plan) -> Option<Action> {
        if self.retired {
            return None;
        }
        self.plan = plan;
        self.failures = 0;
        if !plan.enabled {
            return self.end(Then::Disabled);
        }
        match self.phase {
            Phase::Starting | Phase::Ready | Phase::Stopping(_) => self.end(Then::Start),
            _ => self.wake(),
        }
    }

    pub(super) fn step(&mut self, now: Instant, event: Event) -> Option<Action> {
        match event {
            Event::Connected(connected) => {
                self.connected = connected;
                self.unused_since = Some(now);
                (connected && self.phase == Phase::Idle).then(|| self.start())
            }
            Event::Retire => {
                self.retired = true;
                self.end(Then::Ended)
            }
            Event::Gone => self.gone(now),
            Event::Started if self.phase == Phase::Starting => {
                self.started = Some(now);
                if self.plan.ready_within.is_none() {
                    self.ready(now);
                }
                None
            }
            Event::NotStarted if self.phase == Phase::Starting => {
                self.failures = self.failures.saturating_add(1);
                let then = self.after_exit(false);
                self.phase = if then == Then::Pause { self.pause(now) } else { Phase::Ended };
                None
            }
            Event::Exited { success } if matches!(self.phase, Phase::Starting | Phase::Ready) => {
                if self.started.is_some_and(|started| now - started >= self.plan.restart.stable_after) {
                    self.failures = 0;
                }
                self.failures = self.failures.saturating_add(1);
                self.stop(self.after_exit(success), Why::Exited)
            }
            Event::Answered if self.phase == Phase::Starting && self.started.is_some() => {
                self.ready(now);
                None
            }
            Event::Answered if self.phase == Phase::Ready => {
                self.answered = Some(now);
                None
            }
            Event::Tick if self.deadline().is_some_and(|deadline| now >= deadline) => self.due(now),
            _ if self.retired => None,
            Event::Disable => {
                self.plan.enabled = false;
                self.end(Then::Disabled)
            }
            Event::Enable if self.plan.enabled && self.phase != Phase::Ended => None,
            Event::Enable => {
                self.plan.enabled = true;
                self.failures = 0;
                match self.phase {
                    // Ends first what is being ended.
                    Phase::Stopping(_) => self.end(Then::Start),
                    _ => self.wake(),
                }
            }
            Event::Restart if self.plan.enabled => {
                self.failures = 0;
                match self.phase {
                    Phase::Starting | Phase::Ready | Phase::Stopping(_) => self.end(Then::Start),
                    _ => self.wake(),
                }
            }
            _ => None,
        }
    }

    fn due(&mut self, now: Instant) -> Option<Action> {
        match self.phase {
            Phase::Ready if self.hangs(now) => {
                self.failures = self.failures.saturating_add(1);
                self.stop(self.after_exit(false), Why::Hung)
            }
            Phase::Starting => {
                self.failures = self.failures.saturating_add(1);
                self.stop(self.after_exit(false), Why::NotReady)
            }
            Phase::Ready => self.stop(Then::Idle, Why::Idle),
            Phase::Paused { .. } if self.plan.idle_after.is_some() && !self.connected => {
                self.phase = Phase::Idle;
                None
            }
            Phase::Paused { .. } => {
                self.restarts += 1;
                Some(self.start())
            }
            _ => None,
        }
    }

    /// It may run: at once, or once somebody connects.
    fn wake(&mut self) -> Option<Action> {
        if self.plan.idle_after.is_some() && !self.connected {
            self.phase = Phase::Idle;
            return None;
        }
        Some(self.start())
    }

    fn start(&mut self) -> Action {
        self.phase = Phase::Starting;
        self.started = None;
        Action::Start
    }

    fn ready(&mut self, now: Instant) {
        self.phase = Phase::Ready;
        self.unused_since = Some(now);
        self.answered = Some(now);
    }

    fn stop(&mut self, then: Then, why: Why) -> Option<Action> {
        self.phase = Phase::Stopping(then);
        Some(Action::Stop(why))
    }

    /// Ends what runs, and what is being ended is followed by `then`.
    fn end(&mut self, then: Then) -> Option<Action> {
        match self.phase {
            // Between the order to start and its outcome there is nothing to stop; the shell gives no event
            // there.
            Phase::Starting | Phase::Ready => self.stop(then, Why::Asked),
            Phase::Stopping(_) => {
                self.phase = Phase::Stopping(then);
                None
            }
            _ => {
                self.phase = if then == Then::Disabled { Phase::Disabled } else { Phase::Ended };
                None
            }
        }
    }

    fn gone(&mut self, now: Instant) -> Option<Action> {
        let Phase::Stopping(then) = self.phase else { return None };
        self.started = None;
        match then {
            // Whoever connected while it was being stopped for idleness is served by a new process.
            Then::Start | Then::Idle => return self.wake(),
            Then::Pause => self.phase = self.pause(now),
            Then::Ended => self.phase = Phase::Ended,
            Then::Disabled => self.phase = Phase::Disabled,
        }
        None
    }

    /// What follows an end that nobody asked for. On demand, it is the demand that starts it again, whatever
    /// the policy.
    fn after_exit(&self, success: bool) -> Then {
        match self.plan.restart.policy {
            _ if self.plan.idle_after.is_some() => Then::Pause,
            RestartPolicy::Always => Then::Pause,
            RestartPolicy::OnFailure if !success => Then::Pause,
            RestartPolicy::OnFailure | RestartPolicy::Never => Then::Ended,
        }
    }

    fn pause(&self, now: Instant) -> Phase {
        let Restart { first, longest, crash_loop_after, .. } = self.plan.restart;
        let crash_loop = self.failures >= crash_loop_after.max(1);
        let doubled =
            first.saturating_mul(1_u32.checked_shl(self.failures.saturating_sub(1)).unwrap_or(u32::MAX));
        let pause = if crash_loop { longest } else { doubled.min(longest) };
        Phase::Paused { until: later(now, pause.max(SHORTEST_PAUSE)), crash_loop }
    }
}

/// Some decades on where the sum is beyond all clocks.
fn later(now: Instant, by: Duration) -> Instant {
    const DECADES: Duration = Duration::from_secs(1_000_000_000);
    now + by.min(DECADES)
}

#[cfg(test)]
mod tests;
