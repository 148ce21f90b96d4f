//! What surrounds the idle watch: what parking saves and a wake costs, and whether the clocks come back.

use serde::{Deserialize, Serialize};

use super::idle::{IdleSettings, IdleWatch, Look, PageSight, Verdict};
use crate::gpu::GpuReading;
use crate::park::books::Books;
use crate::park::gap::Prices;
use crate::park::source::WakeSource;
use crate::park::wake::{self, Running, WakeCheck};
use crate::units::{Joules, Mhz, Seconds, Time, Watts};

/// Time that the first wakes are taken to cost.
const WAKE_PRIOR: f64 = 0.1;
/// Weight of the newest wake, and of the newest window of work.
const GAIN: f64 = 0.2;
/// Idle power counts from so long after the last work on.
const SINK: Seconds = Seconds(0.5);
/// A limit that is broken so soon after a wake is broken by it.
const BLAMED: Seconds = Seconds(5.0);

/// Parking, as far as the loop knows of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parking {
    pub(super) watch: IdleWatch,
    books: Books,
    /// A wake whose effect has not been seen yet.
    waking: Option<WakeCheck>,
    woken: Option<Woken>,
    /// Time that work waits for its clocks, smoothed, seconds.
    wake_delay: Option<f64>,
    /// Power of the GPUs at work, smoothed, watts.
    busy_watts: Option<f64>,
    idle_since: Option<Time>,
}

/// The last wake.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Woken {
    at: Time,
    /// By then the work has waited for so long.
    unnoticed: Seconds,
    /// It was found to break a limit.
    blamed: bool,
}

/// A window, as far as parking is concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    pub(super) page: PageSight,
    pub(super) look: Look,
    pub(super) start: Time,
    pub(super) end: Time,
    pub(super) now: Time,
    /// Mean power of all GPUs.
    pub(super) power: Option<Watts>,
    pub(super) may_park: bool,
}

impl Parking {
    pub(super) fn new(settings: Option<&IdleSettings>) -> Self {
        Self {
            watch: IdleWatch::new(settings),
            books: Books::default(),
            waking: None,
            woken: None,
            wake_delay: None,
            busy_watts: None,
            idle_since: None,
        }
    }

    /// When work was last seen on the page.
    #[must_use]
    pub fn worked_at(&self) -> Option<Time> {
        self.watch.worked_at()
    }

    /// Its sums.
    #[must_use]
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// What the rule reckons with.
    #[must_use]
    pub fn prices(&self) -> Prices {
        // One request that runs by itself: time is worth power, as in the energy-delay product, where a delay of a share of
        // the request's time weighs as much as that share of its energy.
        let wake = self.busy_watts.map(|watts| Joules(watts * self.wake_delay().0));
        Prices { saving: self.books.saving(), wake }
    }

    /// Time that work waits for its clocks after a parked spell.
    #[must_use]
    pub fn wake_delay(&self) -> Seconds {
        Seconds(self.wake_delay.unwrap_or(WAKE_PRIOR))
    }

    /// The watch on idleness.
    #[must_use]
    pub fn watch(&self) -> &IdleWatch {
        &self.watch
    }

    /// A window has closed.
    pub(super) fn on_window(&mut self, seen: &Stretch, settings: Option<&IdleSettings>) -> Verdict {
        self.keep_books(seen);
        let prices = self.prices();
        let verdict = self.watch.on_window(seen.page, &seen.look, settings, prices, seen.may_park, seen.now);
        match verdict {
            Verdict::Park => self.books.parked(),
            Verdict::Wake(source, _) => self.note_wake(&source, &seen.look, seen.now),
            Verdict::Serve | Verdict::Empty | Verdict::Stay => {}
        }
        verdict
    }

    /// A look between windows.
    pub(super) fn on_look(
        &mut self,
        look: &Look,
        settings: &IdleSettings,
        now: Time,
    ) -> Option<(WakeSource, Seconds)> {
        let (source, span) = self.watch.on_look(look, settings, now)?;
        self.note_wake(&source, look, now);
        Some((source, span))
    }

    fn keep_books(&mut self, seen: &Stretch) {
        let span = seen.end.since(seen.start);
        if seen.page.work {
            self.idle_since = None;
            if let Some(power) = seen.power.filter(|_| !self.watch.is_parked()) {
                let before = self.busy_watts.unwrap_or(power.0);
                self.busy_watts = Some(before + GAIN * (power.0 - before));
            }
        } else if self.watch.is_parked() {
            self.books.parked_span(span, seen.power.map(|power| Joules(power.0 * span.0)));
            self.idle_since = None;
        } else {
            let since = *self.idle_since.get_or_insert(seen.start);
            if let Some(power) = seen.power.filter(|_| seen.start.since(since) >= SINK) {
                self.books.quiet_power(power);
            }
        }
    }

    fn note_wake(&mut self, by: &WakeSource, look: &Look, now: Time) {
        let known = look.connections.is_some();
        self.books.woken(by.name(), known && !matches!(by, WakeSource::Connections { .. }));
        self.woken = Some(Woken { at: now, unnoticed: unnoticed(by), blamed: false });
        self.idle_since = None;
    }

    /// The clocks are on their way back from `parked`; `top` are the highest there are.
    pub(super) fn wakes(&mut self, parked: Running, top: Running, now: Time) {
        self.waking = Some(WakeCheck::new(parked, top, now));
    }

    /// Is a wake under way, so that the clocks are worth a closer look?
    #[must_use]
    pub fn is_waking(&self) -> bool {
        self.waking.is_some_and(|check| !check.waits_for_work())
    }

    /// The clocks were read: are they back?
    pub(super) fn look_at_clocks(
        &mut self,
        readings: &[Option<GpuReading>],
        busy: bool,
        settings: &IdleSettings,
        now: Time,
    ) {
        let Some(mut check) = self.waking else { return };
        if check.waits_for_work() && !busy {
            check.still_idle(now);
            self.waking = Some(check);
            return;
        }
        // The slowest of them is what work waits for.
        let lowest = |clock: fn(&GpuReading) -> Option<Mhz>| {
            readings.iter().map(|reading| reading.as_ref().and_then(clock)).min().flatten()
        };
        let running = Running { core: lowest(|r| r.core_clock), memory: lowest(|r| r.memory_clock) };
        self.waking = Some(check);
        match check.look(running, busy, now) {
            wake::Verdict::Wait | wake::Verdict::Idle => self.waking = Some(check),
            wake::Verdict::Back(took) => {
                self.waking = None;
                self.books.clocks_back(took, settings.gap.wake_limit);
                self.watch.woke(took, settings);
                let unnoticed = self.woken.map_or(0.0, |woken| woken.unnoticed.0);
                let before = self.wake_delay.unwrap_or(WAKE_PRIOR);
                self.wake_delay = Some(before + GAIN * (took.0 + unnoticed - before));
            }
            wake::Verdict::NotSeen => self.waking = None,
            // The alarm is the clock verifier's business.
            wake::Verdict::ResetAgain => {
                self.waking = Some(check);
                self.books.reset_again();
            }
            wake::Verdict::GiveUp => {
                self.waking = None;
                self.watch.woke(Seconds(f64::INFINITY), settings);
            }
        }
    }

    /// A limit on the time to first token is broken: by a wake?
    pub(super) fn limit_broken(&mut self, settings: &IdleSettings, now: Time) {
        if let Some(woken) = &mut self.woken
            && now.since(woken.at) < BLAMED
            && !std::mem::replace(&mut woken.blamed, true)
        {
            self.watch.woke(Seconds(f64::INFINITY), settings);
        }
    }

    /// Something else took the clocks over.
    pub(super) fn interrupt(&mut self, now: Time) {
        self.watch.interrupt(now);
        self.books.end_spell();
        (self.waking, self.idle_since) = (None, None);
    }
}

/// How long work waits, in the mean, before a source tells of it.
fn unnoticed(by: &WakeSource) -> Seconds {
    match by {
        WakeSource::Connections { .. } => Seconds(0.0),
        // Ten looks a second, at averages over 0.1 to 1 s.
        WakeSource::Power { .. } | WakeSource::Utilization { .. } => Seconds(0.15),
        WakeSource::Page | WakeSource::Unseen => Seconds(0.3),
    }
}
