//! The thread that writes clocks: it owns the lease, so that a slow driver call never delays a tick.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::clock::Clock;
use super::watch::Pulse;
use crate::control::ClockOutcome;
use crate::gpu::lease::ClockLease;
use crate::gpu::retry::Retries;
use crate::gpu::{GpuError, Refusal};
use crate::seldom::Seldom;
use crate::units::Target;

/// Pause between tries to give clocks back at the end of the program.
const RELEASE_RETRY: Duration = Duration::from_millis(500);
/// A driver that takes no clocks back for so long does not recover under this process: whoever runs it may start another.
pub(crate) const GIVE_UP: Duration = Duration::from_secs(300);
/// Tries at the end of the program.
const FINAL_TRIES: u32 = 5;

/// One slot for the newest command, and what became of earlier ones.
#[derive(Default)]
struct Mailbox {
    command: Option<Target>,
    /// Somebody else gave the clocks back, or they must not be held any more; and why.
    disturbed: Option<String>,
    shutdown: bool,
    /// The driver has not taken the clocks back: what is locked is not known.
    not_given_back: bool,
    outcomes: Vec<ClockOutcome>,
    fatal: Option<GpuError>,
}

#[derive(Default)]
struct Shared {
    mailbox: Mutex<Mailbox>,
    changed: Condvar,
    failed: Notify,
    /// Marked while a driver call is under way.
    pulse: Pulse,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Mailbox> {
        // A panic elsewhere must not keep the clocks from being given back.
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handle of the actuator. Dropping it gives the clocks back.
pub struct Actuator {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), GpuError>>>,
}

impl Actuator {
    /// Starts the thread on a lease that has already been reset.
    /// Errors: [`std::io::Error`] if the thread cannot be started; the lease is released then.
    pub fn spawn(lease: ClockLease, clock: Clock) -> std::io::Result<Self> {
        Self::spawn_with(lease, clock, GIVE_UP)
    }

    /// The same, giving up after `patience` without a successful release.
    fn spawn_with(lease: ClockLease, clock: Clock, patience: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (theirs, span) = (Arc::clone(&shared), tracing::Span::current());
        let thread = std::thread::Builder::new()
            .name("agft-clocks".into())
            .spawn(move || span.in_scope(|| serve(&theirs, lease, &clock, patience)))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Asks for a target; an older command that has not been carried out yet is forgotten.
    pub fn command(&self, target: Target) {
        self.shared.lock().command = Some(target);
        self.shared.changed.notify_one();
    }

    /// What became of commands since the last call.
    pub fn outcomes(&self) -> Vec<ClockOutcome> {
        std::mem::take(&mut self.shared.lock().outcomes)
    }

    /// Waits until the clocks cannot be controlled any more, and says why.
    pub async fn failed(&self) -> GpuError {
        loop {
            if let Some(error) = self.shared.lock().fatal.take() {
                return error;
            }
            self.shared.failed.notified().await;
        }
    }

    /// Are clocks to be given back that the driver has not taken yet? Then a lock may be in force.
    pub(crate) fn is_not_given_back(&self) -> bool {
        self.shared.lock().not_given_back
    }

    /// Why the clocks cannot be controlled any more, if so; for those who look rather than wait.
    pub(crate) fn take_failure(&self) -> Option<GpuError> {
        self.shared.lock().fatal.take()
    }

    /// Marked at the start of each driver call, at rest between them.
    pub(crate) fn pulse(&self) -> Pulse {
        self.shared.pulse.clone()
    }

    /// What another thread calls when the clocks are not as they were set, with the reason: they are given back, and the
    /// loop is told.
    pub(crate) fn disturber(&self) -> Box<dyn Fn(String) + Send> {
        let shared = Arc::clone(&self.shared);
        Box::new(move |why| {
            shared.lock().disturbed = Some(why);
            shared.changed.notify_one();
        })
    }

    /// Leaves a thread behind that may never come back: its clocks are the guardian's now.
    pub(crate) fn abandon(mut self) {
        self.begin_shutdown();
        drop(self.thread.take());
    }

    /// Has the clocks given back for good, without waiting for it.
    pub(crate) fn begin_shutdown(&self) {
        self.shared.lock().shutdown = true;
        self.shared.changed.notify_one();
    }

    /// Gives the clocks back and waits for it.
    /// Errors: [`GpuError`] if the driver would not take them back after several tries.
    pub fn shutdown(mut self) -> Result<(), GpuError> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), GpuError> {
        self.begin_shutdown();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            // It panicked: unwinding dropped the lease, which released.
            Some(Err(_)) | None => Ok(()),
        }
    }
}

impl Drop for Actuator {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "clocks could not be given back; run `agft release`");
        }
    }
}

fn serve(shared: &Shared, mut lease: ClockLease, clock: &Clock, patience: Duration) -> Result<(), GpuError> {
    let mut retries = Retries::default();
    let mut seldom = Seldom::default();
    let mut pause = Duration::ZERO;
    loop {
        let mut mailbox = shared.lock();
        while mailbox.command.is_none() && mailbox.disturbed.is_none() && !mailbox.shutdown {
            if lease.current().is_none() {
                let (guard, _) =
                    shared.changed.wait_timeout(mailbox, pause).unwrap_or_else(PoisonError::into_inner);
                mailbox = guard;
                break;
            }
            mailbox = shared.changed.wait(mailbox).unwrap_or_else(PoisonError::into_inner);
        }
        let (command, shutdown) = (mailbox.command.take(), mailbox.shutdown);
        let disturbed = mailbox.disturbed.take();
        let must_release = disturbed.is_some();
        drop(mailbox);
        shared.pulse.mark();
        if shutdown {
            let result = release_for_good(&mut lease, &shared.pulse);
            shared.pulse.rest();
            return result;
        }
        if must_release || lease.current().is_none() {
            pause = try_release(&mut lease, &mut retries, &mut seldom, patience, shared);
        }
        let outcome = match command {
            // A command of before the disturbance is void: the loop decides anew.
            _ if disturbed.is_some() => disturbed.map(|why| ClockOutcome::Refused {
                target: lease.current().unwrap_or(Target::Default),
                at: clock.now(),
                recovery: Refusal::Pause,
                why,
            }),
            // Clocks that are not known to be back come back before others are locked.
            Some(target) if lease.current().is_some() => carry_out(&mut lease, target, clock, shared),
            Some(target @ Target::Lock(_)) => {
                let why = "clocks not given back yet".to_owned();
                Some(ClockOutcome::Refused { target, at: clock.now(), recovery: Refusal::Pause, why })
            }
            _ => None,
        };
        shared.pulse.rest();
        let mut mailbox = shared.lock();
        mailbox.not_given_back = lease.current().is_none();
        mailbox.outcomes.extend(outcome);
    }
}

fn carry_out(lease: &mut ClockLease, target: Target, clock: &Clock, shared: &Shared) -> Option<ClockOutcome> {
    let result = lease.set(target);
    let at = clock.now();
    match result {
        Ok(()) => Some(ClockOutcome::InForce { target, at }),
        // A board may list memory clocks and lock none: the pair cannot be had, and everything else can.
        Err(error) if error.is_refused_memory_lock() => {
            Some(ClockOutcome::Refused { target, at, recovery: Refusal::DropArm, why: error.to_string() })
        }
        Err(error) => match error.refusal() {
            Some(recovery) => Some(ClockOutcome::Refused { target, at, recovery, why: error.to_string() }),
            None => {
                shared.lock().fatal = Some(error);
                shared.failed.notify_one();
                None
            }
        },
    }
}

/// One try. One that fails is tried again by the loop above, after the pause that this gives.
fn try_release(
    lease: &mut ClockLease,
    retries: &mut Retries,
    seldom: &mut Seldom<Instant>,
    patience: Duration,
    shared: &Shared,
) -> Duration {
    let Err(error) = lease.release() else {
        retries.succeeded();
        return Duration::ZERO;
    };
    let failed = retries.failed();
    let for_s = failed.elapsed.as_secs();
    // Refusals that go on are said at a falling rate; of those that come and go, the first lines are kept
    // apart, too.
    let begins = failed.elapsed < Duration::from_secs(1);
    if failed.say
        && let Some(times) = if begins { seldom.may_say("refused", Instant::now()) } else { Some(None) }
    {
        tracing::warn!(%error, for_s, not_said_before = times, hint = error.hint(), "clocks not given back yet");
    }
    if failed.elapsed >= patience {
        shared.lock().fatal.get_or_insert(still_locked(&error, failed.elapsed));
        shared.failed.notify_one();
    }
    failed.pause
}

/// Not the driver's own error: a refusal in the middle of a run says nothing about the right to start.
fn still_locked(error: &GpuError, elapsed: Duration) -> GpuError {
    GpuError::Failed {
        gpu: "clocks".into(),
        call: "giving them back",
        detail: format!(
            "{error} (for {} s); the lock may still be in force: its journal stays, and the guardian goes on trying. \
             Likely: {}",
            elapsed.as_secs(),
            error.hint()
        ),
    }
}

fn release_for_good(lease: &mut ClockLease, pulse: &Pulse) -> Result<(), GpuError> {
    let start = std::time::Instant::now();
    let mut result = lease.release();
    for _ in 1..FINAL_TRIES {
        if result.is_ok() {
            break;
        }
        std::thread::sleep(RELEASE_RETRY);
        pulse.mark();
        result = lease.release();
    }
    result.map_err(|error| still_locked(&error, start.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{FakeClocks, info};
    use crate::units::{Clocks, Mhz};

    /// Locks, and takes back what it locked only as long as nothing is locked.
    #[tokio::test]
    async fn driver_that_takes_no_clocks_back_for_minutes_ends_the_run() {
        let mut locked = false;
        let call = move |call| {
            locked |= call == "lock core";
            let refused = || GpuError::NoPermission { gpu: "GPU 0".into(), call: "reset" };
            if locked && call == "reset core" { Err(refused()) } else { Ok(()) }
        };
        let fake = Box::new(FakeClocks { info: info("GPU-x"), call });
        let lease = ClockLease::take(vec![(fake, Mhz(210))]).unwrap();
        let patience = Duration::from_millis(300);
        let actuator = Actuator::spawn_with(lease, Clock::start(), patience).unwrap();
        actuator.command(Target::Lock(Clocks { core: Mhz(900), memory: None }));
        while actuator.outcomes().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let start = std::time::Instant::now();
        actuator.command(Target::Default);
        let error = actuator.failed().await;
        assert!(start.elapsed() >= patience);
        // Not the code of a start without the right: what runs it shall start it anew.
        assert!(matches!(error, GpuError::Failed { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("the lock may still be in force") && text.contains("restart the container"),
            "{text}"
        );
        actuator.abandon();
    }
}
