//! The thread that watches over the others, and over the guardian.
//!
//! A driver call can hang for good, and a thread with it. Whoever works marks a [`Pulse`]; a mark that is overdue by 5
//! periods (2 s at least: a driver under load may take a second for one call) means that the part is stuck. Then the
//! guardian is told, the clocks are given back by it, and the run ends with the part's name: in good order if the tick
//! still goes, else by force.
//!
//! Time is the monotonic clock's, which stands still while the machine sleeps. If this thread itself was not run for a
//! while (SIGSTOP, a debugger, a frozen container), nothing is concluded from marks that are older than that.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::guardian::link::{Answers, GuardianSpec, Link};
use crate::guardian::{FromGuardian, SILENCE, ToGuardian};
use crate::units::Seconds;

/// A part may take so long at least, however short the period.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the guardian may take to say that the clocks are back.
const RELEASE: Duration = Duration::from_secs(1);
/// How long a run with a stuck part may take to end in good order.
const GOOD_ORDER: Duration = Duration::from_secs(3);
/// So many guardians may be lost within [`RESTARTS_WITHIN`].
const RESTARTS: usize = 3;
const RESTARTS_WITHIN: Duration = Duration::from_secs(60);
/// Exit status of a process that ends itself by force (`EX_SOFTWARE`).
pub const STUCK_STATUS: u8 = 70;

/// A sign of life: since when its owner has been busy without a mark.
#[derive(Debug, Clone)]
pub struct Pulse {
    base: Instant,
    /// Milliseconds since `base`, plus 1; 0 at rest.
    since: Arc<AtomicU64>,
}

impl Pulse {
    /// At rest.
    #[must_use]
    pub fn new() -> Self {
        Self { base: Instant::now(), since: Arc::new(AtomicU64::new(0)) }
    }

    /// Something was finished, or begun: the time runs from now.
    pub fn mark(&self) {
        let now = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.since.store(now + 1, Ordering::Relaxed);
    }

    /// Nothing is under way.
    pub fn rest(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// How long the last mark is ago; `None` at rest.
    #[must_use]
    pub fn waiting(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.base.elapsed().saturating_sub(Duration::from_millis(since)))
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a run cannot go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Alarm {
    /// A part does not come back.
    #[error(
        "{part} has not come back for {for_s:.1} s (a driver call that hangs? see `dmesg`; or a disk that does not take the \
         journal of held clocks: gpu.runtime_dir belongs on /run); the clocks were left to the guardian"
    )]
    Stuck {
        /// Which part.
        part: &'static str,
        /// For how long, seconds.
        for_s: f64,
    },
    /// Nobody would give the clocks back after a crash.
    #[error("there is no guardian ({why}), and without one no clock is locked")]
    NoGuardian {
        /// What became of it.
        why: String,
    },
}

/// What is watched.
pub struct Watched {
    /// The way to the guardian.
    pub link: Link,
    /// Its words.
    pub answers: Answers,
    /// How to start another.
    pub spec: GuardianSpec,
    /// Parts by name.
    pub parts: Vec<(&'static str, Pulse)>,
    /// Called when the clocks were given back by the guardian, or have to be because there is none.
    pub notice: Box<dyn Fn(String) + Send>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    alarm: Mutex<Option<Alarm>>,
    raised: Notify,
}

/// Handle of the watch. Dropped, it ends; and the guardian with it, if nothing is locked.
pub struct Watch {
    shared: Arc<Shared>,
    link: Link,
}

impl Watch {
    /// Starts watching, for ticks `period` apart.
    ///
    /// # Errors
    /// [`std::io::Error`] if the thread cannot be started.
    pub fn spawn(watched: Watched, period: Seconds) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let link = watched.link.clone();
        let limit = Duration::from_secs_f64(5.0 * period.0).max(PATIENCE);
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("agft-watch".into())
            .spawn(move || Watcher { shared: theirs, watched, limit, lost: Vec::new() }.run())?;
        Ok(Self { shared, link })
    }

    /// Waits until the run cannot go on, and says why.
    pub async fn alarm(&self) -> Alarm {
        loop {
            if let Some(alarm) = self.shared.alarm.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return alarm;
            }
            self.shared.raised.notified().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Neither the thread nor the guardian is waited for. Without a goodbye the guardian gives back what is held.
        if self.link.holds_nothing() {
            self.link.goodbye();
        }
    }
}

/// The thread's side.
struct Watcher {
    shared: Arc<Shared>,
    watched: Watched,
    limit: Duration,
    /// When guardians were lost.
    lost: Vec<Instant>,
}

impl Watcher {
    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn raise(&self, alarm: Alarm) {
        *self.shared.alarm.lock().unwrap_or_else(PoisonError::into_inner) = Some(alarm);
        self.shared.raised.notify_one();
    }

    fn run(mut self) {
        let mut heard = Instant::now();
        let mut looked = heard;
        let mut judged_from = heard;
        while !self.stopped() {
            let up = self.watched.link.send(&ToGuardian::Beat);
            // Waits for about one beat, and for the answer to it.
            let gone = up
                && loop {
                    match self.watched.answers.next() {
                        Some(Some(FromGuardian::Released(why))) => {
                            (self.watched.notice)(format!("guardian: {why}"));
                        }
                        Some(Some(_)) => heard = Instant::now(),
                        Some(None) => break false,
                        None => break true,
                    }
                };
            let now = Instant::now();
            if now.duration_since(looked) > self.limit / 2 {
                // Stopped itself, and perhaps everybody with it.
                (judged_from, heard) = (now, now);
            }
            looked = now;
            if let Some((part, waiting)) = self.overdue(judged_from) {
                return self.stuck(part, waiting);
            }
            if self.stopped() {
                return;
            }
            let silent = now.duration_since(heard) > SILENCE;
            if !up || gone || silent {
                let why = if silent { "it does not answer" } else { "it ended" };
                if !self.replace_guardian(why) {
                    return;
                }
                heard = Instant::now();
                looked = heard;
            }
        }
    }

    fn overdue(&self, judged_from: Instant) -> Option<(&'static str, Duration)> {
        let waits = self.watched.parts.iter().filter_map(|(part, pulse)| Some((*part, pulse.waiting()?)));
        waits
            .map(|(part, waiting)| (part, waiting.min(judged_from.elapsed())))
            .find(|(_, waiting)| *waiting > self.limit)
    }

    /// Clocks back first; then another guardian. `false` if there is none to be had.
    fn replace_guardian(&mut self, why: &str) -> bool {
        self.watched.link.drop_guardian();
        (self.watched.notice)(format!("the guardian is gone: {why}"));
        tracing::warn!(why, "guardian lost: clocks are given back until there is another");
        self.lost.retain(|at| at.elapsed() < RESTARTS_WITHIN);
        self.lost.push(Instant::now());
        if self.lost.len() > RESTARTS {
            let why = format!("{} were lost within a minute; the last: {why}", self.lost.len());
            self.raise(Alarm::NoGuardian { why });
            return false;
        }
        // A service manager that ends both ends the guardian a moment earlier: then no other is wanted.
        std::thread::sleep(Duration::from_millis(50));
        if self.stopped() {
            return false;
        }
        match self.watched.link.start(&self.watched.spec) {
            Ok(answers) => {
                self.watched.answers = answers;
                tracing::info!("another guardian watches");
                true
            }
            Err(error) => {
                self.raise(Alarm::NoGuardian { why: error.to_string() });
                false
            }
        }
    }

    fn stuck(&mut self, part: &'static str, waiting: Duration) {
        let alarm = Alarm::Stuck { part, for_s: waiting.as_secs_f64() };
        tracing::error!(part, for_s = waiting.as_secs_f64(), "stuck: the guardian gives the clocks back");
        let told = self.watched.link.send(&ToGuardian::Stuck(part.to_owned()));
        let until = Instant::now() + RELEASE;
        let mut released = false;
        while told && !released && Instant::now() < until {
            match self.watched.answers.next() {
                Some(Some(FromGuardian::Released(_))) => released = true,
                Some(_) => {}
                None => break,
            }
        }
        if !released {
            tracing::error!("the guardian has not said that the clocks are back; run `agft release`");
        }
        let text = alarm.to_string();
        self.raise(alarm);
        // The process is gone before this is over, unless the tick is what is stuck.
        std::thread::sleep(GOOD_ORDER);
        tracing::error!(error = text, "agft ends by force");
        // Not `eprintln!`, which panics where nobody reads.
        let _ = writeln!(std::io::stderr(), "agft: {}", crate::text::whole(&text));
        std::thread::sleep(Duration::from_millis(100));
        std::process::exit(STUCK_STATUS.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulse_tells_how_long_ago_its_last_mark_was() {
        let pulse = Pulse::new();
        assert_eq!(pulse.waiting(), None);
        pulse.mark();
        std::thread::sleep(Duration::from_millis(20));
        assert!(pulse.waiting().unwrap() >= Duration::from_millis(18));
        pulse.mark();
        assert!(pulse.clone().waiting().unwrap() < Duration::from_millis(18));
        pulse.rest();
        assert_eq!(pulse.waiting(), None);
    }
}
