//! The thread that watches over the others, and over the guardian.
//!
//! A driver call can hang for good, and a thread with it. Whoever works marks a [`Pulse`]; a mark that is overdue by 5
//! periods (2 s at least: a driver under load may take a second for one call) means that the part is stuck. Then the
//! guardian is told, and the clocks are given back by it. A part that works for one group alone ends that group; where it
//! was the last one, or the loop itself is stuck, the run ends with the part's name: in good order if the loop still goes,
//! else by force.
//!
//! Time is the monotonic clock's, which stands still while the machine sleeps. If this thread itself was not run for a
//! while (SIGSTOP, a debugger, a frozen container), nothing is concluded from marks that are older than that.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::actuator::Actuator;
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
pub(crate) const STUCK_STATUS: u8 = 70;

/// A sign of life: since when its owner has been busy without a mark.
#[derive(Debug, Clone)]
pub struct Pulse {
    base: Instant,
    /// Milliseconds since `base`, plus 1; 0 at rest.
    since: Arc<AtomicU64>,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self { base: Instant::now(), since: Arc::new(AtomicU64::new(0)) }
    }

    /// Something was finished, or begun: the time runs from now.
    pub(crate) fn mark(&self) {
        let now = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.since.store(now + 1, Ordering::Relaxed);
    }

    /// Nothing is under way.
    pub(crate) fn rest(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// How long the last mark is ago; `None` at rest.
    pub(crate) fn waiting(&self) -> Option<Duration> {
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
    #[error(
        "{part} has not come back for {for_s:.1} s (a driver call that hangs? see `dmesg`; or a disk that does not take the \
         journal of held clocks: gpu.runtime_dir belongs on /run); the clocks were left to the guardian"
    )]
    Stuck {
        part: &'static str,
        /// For how long, seconds.
        for_s: f64,
    },
    #[error("there is no guardian ({why}), and without one no clock is locked")]
    NoGuardian { why: String },
}

/// What the watch is told of a group, and what it says to it.
struct Ward {
    gpus: Vec<String>,
    /// The threads that work for it alone, with the names that an alarm calls them by.
    parts: [(&'static str, Pulse); 2],
    /// Time between two of its ticks.
    period: Seconds,
    /// Told when its clocks were given back without it, and why.
    notice: Box<dyn Fn(String) + Send>,
    alarm: Arc<Raised>,
    /// One of its threads hangs: it is watched no more.
    is_stuck: bool,
}

#[derive(Default)]
struct Raised {
    alarm: Mutex<Option<Alarm>>,
    raised: Notify,
}

impl Raised {
    fn raise(&self, alarm: Alarm) {
        *self.alarm.lock().unwrap_or_else(PoisonError::into_inner) = Some(alarm);
        self.raised.notify_one();
    }

    async fn wait(&self) -> Alarm {
        loop {
            if let Some(alarm) = self.alarm.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return alarm;
            }
            self.raised.notified().await;
        }
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    alarm: Raised,
    wards: Mutex<BTreeMap<u64, Ward>>,
    next: AtomicU64,
}

impl Shared {
    fn wards(&self) -> MutexGuard<'_, BTreeMap<u64, Ward>> {
        self.wards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that watches. Dropped, it stops, and says goodbye to the guardian if nothing is locked any more.
pub struct Watch {
    shared: Arc<Shared>,
    link: Link,
}

/// The groups that a [`Watch`] watches.
#[derive(Clone)]
pub(crate) struct Wards {
    shared: Arc<Shared>,
}

/// The watch over one group, until this is dropped.
pub struct GroupWatch {
    shared: Arc<Shared>,
    number: u64,
    alarm: Arc<Raised>,
}

impl Watch {
    /// Starts the thread. `tick` is marked by the loop that all groups share, and overdue after 2 s.
    pub(crate) fn spawn(
        link: Link,
        answers: Answers,
        spec: GuardianSpec,
        tick: Pulse,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let watcher = Watcher { shared: theirs, link: link.clone(), answers, spec, tick, lost: Vec::new() };
        std::thread::Builder::new().name("agft-watch".into()).spawn(move || watcher.run())?;
        Ok(Self { shared, link })
    }

    /// Where groups that are to be watched are named.
    pub(crate) fn wards(&self) -> Wards {
        Wards { shared: Arc::clone(&self.shared) }
    }

    /// Waits until the run has to end.
    pub(crate) async fn alarm(&self) -> Alarm {
        self.shared.alarm.wait().await
    }
}

impl Wards {
    /// Watches a group: who writes the clocks of these GPUs (by UUID), who reads them, and how often they are
    /// wanted.
    pub(crate) fn watch(
        &self,
        gpus: Vec<String>,
        writes: &Actuator,
        reads: (&'static str, Pulse),
        period: Seconds,
    ) -> GroupWatch {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let alarm = Arc::new(Raised::default());
        let ward = Ward {
            gpus,
            parts: [("the thread that writes clocks", writes.pulse()), reads],
            period,
            notice: writes.disturber(),
            alarm: Arc::clone(&alarm),
            is_stuck: false,
        };
        self.shared.wards().insert(number, ward);
        GroupWatch { shared: Arc::clone(&self.shared), number, alarm }
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

impl GroupWatch {
    /// Waits until the group has to end.
    pub(crate) async fn alarm(&self) -> Alarm {
        self.alarm.wait().await
    }
}

impl Drop for GroupWatch {
    fn drop(&mut self) {
        self.shared.wards().remove(&self.number);
    }
}

struct Watcher {
    shared: Arc<Shared>,
    link: Link,
    answers: Answers,
    spec: GuardianSpec,
    tick: Pulse,
    /// When guardians were lost of late.
    lost: Vec<Instant>,
}

/// A part that has not come back: its name, for how long, and whose it is; the loop is everybody's.
type Overdue = (&'static str, Duration, Option<u64>);

impl Watcher {
    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn run(mut self) {
        let mut heard = Instant::now();
        let mut looked = heard;
        // Marks older than this say nothing.
        let mut judged_from = heard;
        while !self.stopped() {
            let up = self.link.send(&ToGuardian::Beat);
            // Waits for about one beat, and for the answer to it.
            let gone = up
                && loop {
                    match self.answers.next() {
                        Some(Some(FromGuardian::Released(why))) => self.notify(&format!("guardian: {why}")),
                        Some(Some(_)) => heard = Instant::now(),
                        Some(None) => break false,
                        None => break true,
                    }
                };
            let now = Instant::now();
            if now.duration_since(looked) > PATIENCE / 2 {
                // Stopped itself, and perhaps everybody with it.
                (judged_from, heard) = (now, now);
            }
            looked = now;
            if let Some(overdue) = self.overdue(judged_from) {
                if !self.stuck(overdue) {
                    return;
                }
                // The guardian was waited for.
                heard = heard.max(now);
                looked = Instant::now();
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

    /// Everybody's clocks were given back.
    fn notify(&self, why: &str) {
        for ward in self.shared.wards().values().filter(|ward| !ward.is_stuck) {
            (ward.notice)(why.to_owned());
        }
    }

    fn overdue(&self, judged_from: Instant) -> Option<Overdue> {
        let over = |pulse: &Pulse, limit: Duration| {
            let waiting = pulse.waiting()?.min(judged_from.elapsed());
            (waiting > limit).then_some(waiting)
        };
        if let Some(waiting) = over(&self.tick, PATIENCE) {
            return Some(("the tick", waiting, None));
        }
        let wards = self.shared.wards();
        wards.iter().filter(|(_, ward)| !ward.is_stuck).find_map(|(number, ward)| {
            let limit = Duration::from_secs_f64(5.0 * ward.period.0).max(PATIENCE);
            let part =
                |(part, pulse): &(&'static str, Pulse)| Some((*part, over(pulse, limit)?, Some(*number)));
            ward.parts.iter().find_map(part)
        })
    }

    fn replace_guardian(&mut self, why: &str) -> bool {
        self.link.drop_guardian();
        self.notify(&format!("the guardian is gone: {why}"));
        tracing::warn!(why, "guardian lost: clocks are given back until there is another");
        self.lost.retain(|at| at.elapsed() < RESTARTS_WITHIN);
        self.lost.push(Instant::now());
        if self.lost.len() > RESTARTS {
            let why = format!("{} were lost within a minute; the last: {why}", self.lost.len());
            self.shared.alarm.raise(Alarm::NoGuardian { why });
            return false;
        }
        // A service manager that ends both ends the guardian a moment earlier: then no other is wanted.
        std::thread::sleep(Duration::from_millis(50));
        if self.stopped() {
            return false;
        }
        match self.link.start(&self.spec) {
            Ok(answers) => {
                self.answers = answers;
                tracing::info!("another guardian watches");
                true
            }
            Err(error) => {
                self.shared.alarm.raise(Alarm::NoGuardian { why: error.to_string() });
                false
            }
        }
    }

    /// Has the guardian give back what hangs. Says whether there is anything left to watch: otherwise the run ends, and
    /// this returns only if it has.
    fn stuck(&mut self, (part, waiting, group): Overdue) -> bool {
        let alarm = Alarm::Stuck { part, for_s: waiting.as_secs_f64() };
        let (gpus, raised) = match group.map(|number| self.give_up(number)) {
            // It is gone by now.
            Some(None) => return true,
            Some(Some((gpus, raised))) => (gpus, Some(raised)),
            None => (Vec::new(), None),
        };
        let last = group.is_none() || self.shared.wards().values().all(|ward| ward.is_stuck);
        tracing::error!(part, for_s = waiting.as_secs_f64(), "stuck: the guardian gives the clocks back");
        let message = if last {
            ToGuardian::Stuck(part.to_owned())
        } else {
            ToGuardian::StuckGpus { part: part.to_owned(), gpus }
        };
        if !self.wait_released(&message) {
            tracing::error!("the guardian has not said that the clocks are back; run `agft release`");
        }
        let text = alarm.to_string();
        raised.as_ref().unwrap_or(&Arc::default()).raise(alarm.clone());
        if !last {
            return true;
        }
        self.shared.alarm.raise(alarm);
        // The process is gone before this is over, unless the tick is what is stuck.
        std::thread::sleep(GOOD_ORDER);
        tracing::error!(error = text, "agft ends by force");
        // Not `eprintln!`, which panics where nobody reads.
        let _ = writeln!(std::io::stderr(), "agft: {}", crate::text::whole(&text));
        std::thread::sleep(Duration::from_millis(100));
        std::process::exit(STUCK_STATUS.into());
    }

    /// The group is watched no more; its GPUs, and who hears of it.
    fn give_up(&self, number: u64) -> Option<(Vec<String>, Arc<Raised>)> {
        let mut wards = self.shared.wards();
        let ward = wards.get_mut(&number)?;
        ward.is_stuck = true;
        Some((ward.gpus.clone(), Arc::clone(&ward.alarm)))
    }

    /// Says whether the guardian has given the clocks back.
    fn wait_released(&mut self, message: &ToGuardian) -> bool {
        let told = self.link.send(message);
        let until = Instant::now() + RELEASE;
        while told && Instant::now() < until {
            match self.answers.next() {
                Some(Some(FromGuardian::Released(_))) => return true,
                Some(_) => {}
                None => return false,
            }
        }
        false
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
