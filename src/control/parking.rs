//! What surrounds the idle watch: what parking saves and a wake costs, and whether the clocks come back.

use serde::{Deserialize, Serialize};

use super::first_tokens::FirstTokens;
use super::idle::{IdleSettings, IdleWatch, Look, PageSight, Verdict};
use crate::gpu::GpuReading;
use crate::metrics::Histogram;
use crate::park::books::Books;
use crate::park::gap::{GapRule, GapState, Prices};
use crate::park::levers::{self, Lever, LeverBook, LeverKind, Levers, Order};
use crate::park::price::WakePrice;
use crate::park::source::WakeSource;
use crate::park::wake::{self, Running, WakeCheck};
use crate::reward::energy::EnergyPoint;
use crate::units::{Clocks, Joules, Mhz, Seconds, Target, Time};

/// Idle power counts from so long after the first empty window began: the second one, whose energy is that of no work.
const SINK: Seconds = Seconds(0.02);
/// A limit that is broken so soon after a wake is broken by it.
const BLAMED: Seconds = Seconds(5.0);

/// Parking, as far as the loop knows of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parking {
    pub(super) watch: IdleWatch,
    books: Books,
    levers: Levers,
    /// What parks, or parked last.
    lever: Option<Lever>,
    /// Parked, and yet at the driver's clocks: a trial needs to see them.
    released: bool,
    /// A wake whose effect has not been seen yet.
    waking: Option<WakeCheck>,
    woken: Option<Woken>,
    price: WakePrice,
    idle_since: Option<Time>,
    /// The energy counters up to which parked time is booked.
    booked: Option<EnergyPoint>,
    /// Time of this spell that was looked at, seconds.
    looked_at_s: f64,
    first_tokens: FirstTokens,
    max_ttft_rise: f64,
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
    pub(super) end: Time,
    pub(super) now: Time,
    /// The slowest clocks at its end.
    pub(super) running: Running,
    /// The energy counters of all GPUs together: parked ones are read so seldom that a window may have no power.
    pub(super) counter: Option<EnergyPoint>,
    pub(super) may_park: bool,
}

impl Parking {
    pub(super) fn new(settings: Option<&IdleSettings>, top: Running) -> Self {
        let core = |settings: &IdleSettings| Lever { kind: LeverKind::Core, clocks: settings.clocks };
        Self {
            watch: IdleWatch::new(settings),
            books: Books::default(),
            levers: Levers::new(settings.map(core).into_iter().collect(), LeverBook::default(), top),
            lever: None,
            released: false,
            waking: None,
            woken: None,
            price: WakePrice::default(),
            idle_since: None,
            booked: None,
            looked_at_s: 0.0,
            first_tokens: FirstTokens::default(),
            max_ttft_rise: settings.map_or(1.0, |settings| settings.max_ttft_rise),
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

    /// What can be lowered, and what is known of it.
    #[must_use]
    pub fn levers(&self) -> &Levers {
        &self.levers
    }

    /// What would park now.
    #[must_use]
    pub fn lever(&self) -> Option<Lever> {
        if self.watch.is_parked() { self.lever } else { self.levers.best(self.price.busy()) }
    }

    /// Other levers from now on.
    pub(super) fn set_levers(&mut self, levers: Levers) {
        self.levers = levers;
    }

    /// Goes on with the sums of `before`, and with what it has measured.
    pub(super) fn take_over(&mut self, before: &Self) {
        self.books = before.books.clone();
        self.books.end_spell();
        self.levers.set_book(before.levers.book().clone());
        self.price = before.price;
    }

    /// The clocks of a parked GPU.
    pub(super) fn target(&self) -> Target {
        let clocks = self.lever.map(|lever| lever.clocks).filter(|_| !self.released);
        clocks.map_or(Target::Default, Target::Lock)
    }

    /// The core clock to which parking lowers, if it does.
    pub(super) fn parked_core(&self) -> Option<Mhz> {
        self.lever?.lowered().core
    }

    /// The driver does not take this lock. Was it one for parking, and is there another?
    pub(super) fn refuse(&mut self, clocks: Clocks) -> Refused {
        if !self.levers.refuse(clocks) {
            Refused::NotOurs
        } else if self.levers.usable().next().is_none() {
            Refused::NoneLeft
        } else {
            Refused::OthersLeft
        }
    }

    /// What the rule reckons with.
    #[must_use]
    pub fn prices(&self) -> Prices {
        let dearer = self.first_tokens.price(self.wake_delay(), self.max_ttft_rise);
        let wake = self.price.joules().map(|price| Joules(price.0 * dearer));
        Prices { saving: self.levers.saving(self.price.busy()).or_else(|| self.books.saving()), wake }
    }

    /// Time that work waits for its clocks after a parked spell.
    #[must_use]
    pub fn wake_delay(&self) -> Seconds {
        self.price.delay()
    }

    /// The watch on idleness.
    #[must_use]
    pub fn watch(&self) -> &IdleWatch {
        &self.watch
    }

    /// A window has closed.
    pub(super) fn on_window(
        &mut self,
        seen: &Stretch,
        ttft: Option<&Histogram>,
        settings: Option<&IdleSettings>,
    ) -> Verdict {
        let used = self.keep_books(seen);
        if let Some(ttft) = ttft {
            self.first_tokens.push(ttft);
        }
        let prices = self.prices();
        let verdict = self.watch.on_window(seen.page, &seen.look, settings, prices, seen.may_park, seen.now);
        match verdict {
            Verdict::Park => {
                self.books.parked();
                (self.booked, self.looked_at_s) = (None, 0.0);
                (self.lever, self.released) = (self.levers.best(self.price.busy()), false);
            }
            Verdict::Wake(source, span) => self.note_wake(&source, span, &seen.look, seen.now),
            Verdict::Stay => {
                if let Some(used) = used {
                    self.try_levers(&used, seen.running, seen.now);
                }
            }
            Verdict::Serve | Verdict::Empty => {}
        }
        verdict
    }

    /// What was used since the last booking, if the counters have been read since; none yet at the first call of a spell.
    fn since_booked(&mut self, counter: Option<EnergyPoint>, looked: Time) -> Option<levers::Stretch> {
        let now = counter?;
        let Some(before) = self.booked else {
            self.booked = Some(now);
            return None;
        };
        if now.total.0 < before.total.0 {
            // The driver was loaded anew, and counts from the beginning.
            self.booked = Some(now);
            return None;
        }
        if now.at <= before.at {
            return None;
        }
        self.booked = Some(now);
        self.looked_at_s += now.at.since(before.at).0;
        let energy = Joules(now.total.0 - before.total.0);
        Some(levers::Stretch { start: before.at, end: now.at, now: looked, energy })
    }

    /// A look at the clocks on their way back from a lever.
    pub(super) fn time_lever(&mut self, running: Running, now: Time) -> bool {
        if !self.levers.is_timing() {
            return false;
        }
        self.try_levers(&levers::Stretch { start: now, end: now, now, energy: Joules(0.0) }, running, now)
    }

    /// Says whether other clocks are wanted now.
    fn try_levers(&mut self, stretch: &levers::Stretch, running: Running, now: Time) -> bool {
        let Some(GapState::Parked { parked_since, .. }) = self.watch.gaps().map(GapRule::state) else {
            return false;
        };
        let order = self.levers.on_parked(parked_since, stretch, running, self.price.busy());
        match order {
            None => return false,
            Some(Order::Release) => self.released = true,
            Some(Order::Lock(clocks)) => {
                self.released = false;
                self.lever = self.levers.usable().find(|lever| lever.clocks == clocks).copied();
            }
        }
        // Whatever power does now, it is our doing.
        self.watch.disturbed(now);
        self.booked = None;
        true
    }

    /// A look between windows.
    pub(super) fn on_look(
        &mut self,
        look: &Look,
        settings: &IdleSettings,
        now: Time,
    ) -> Option<(WakeSource, Seconds)> {
        let (source, span) = self.watch.on_look(look, settings, now)?;
        self.note_wake(&source, span, look, now);
        Some((source, span))
    }

    /// Says what a parked GPU has used since the last time, where that is known.
    fn keep_books(&mut self, seen: &Stretch) -> Option<levers::Stretch> {
        let span = seen.end.since(seen.page.start);
        if seen.page.work {
            self.idle_since = None;
            if let Some(power) = seen.look.window_power.filter(|_| !self.watch.is_parked()) {
                self.price.worked(power);
            }
        } else if self.watch.is_parked() {
            self.idle_since = None;
            let used = self.since_booked(seen.counter, seen.now);
            // At the driver's clocks it is parked in name only.
            if !self.released {
                match used {
                    Some(of) => self.books.parked_span(of.end.since(of.start), Some(of.energy)),
                    None if seen.counter.is_none() => {
                        self.looked_at_s += span.0;
                        self.books.parked_span(span, None);
                    }
                    // It has not been read anew.
                    None => {}
                }
            }
            return used;
        } else {
            let since = *self.idle_since.get_or_insert(seen.page.start);
            if let Some(power) = seen.look.window_power.filter(|_| seen.page.start.since(since) >= SINK) {
                self.books.quiet_power(power);
            }
        }
        None
    }

    fn note_wake(&mut self, by: &WakeSource, parked: Seconds, look: &Look, now: Time) {
        self.first_tokens.woke();
        self.close_spell(parked);
        let known = look.connections.is_some();
        self.books.woken(by.name(), known && !matches!(by, WakeSource::Connections { .. }));
        self.woken = Some(Woken { at: now, unnoticed: unnoticed(by), blamed: false });
        self.idle_since = None;
        self.begin_wake(now);
    }

    /// A spell of this length is over: what was not looked at of it was parked all the same.
    fn close_spell(&mut self, length: Seconds) {
        self.levers.spell_over(length);
        let rest = length.0 - self.looked_at_s;
        if rest > 0.0 {
            self.books.parked_span(Seconds(rest), None);
        }
        self.booked = None;
    }

    /// The clocks are on their way back.
    fn begin_wake(&mut self, now: Time) {
        let lowered = self.lever.map(|lever| lever.lowered()).filter(|_| !self.released);
        self.waking = lowered.map(|lowered| WakeCheck::new(lowered, self.levers.top(), now));
    }

    /// Is a wake under way, so that the clocks are worth a closer look?
    #[must_use]
    pub fn is_waking(&self) -> bool {
        self.waking.is_some_and(|check| !check.waits_for_work())
    }

    /// The clocks were read: are they back? Says whether they have to be reset once more.
    pub(super) fn look_at_clocks(
        &mut self,
        readings: &[Option<GpuReading>],
        busy: bool,
        settings: &IdleSettings,
        now: Time,
    ) -> bool {
        let Some(mut check) = self.waking else { return false };
        if check.waits_for_work() && !busy {
            check.still_idle(now);
            self.waking = Some(check);
            return false;
        }
        let verdict = check.look(slowest(readings), busy, now);
        self.waking = Some(check);
        match verdict {
            wake::Verdict::Wait | wake::Verdict::Idle => {}
            wake::Verdict::Back(took) => {
                self.waking = None;
                self.books.clocks_back(took, settings.gap.wake_limit);
                self.watch.woke(took, settings);
                if let Some(lever) = self.lever {
                    self.levers.woke(lever.clocks, took);
                }
                let unnoticed = self.woken.map_or(0.0, |woken| woken.unnoticed.0);
                self.price.woke(Seconds(took.0 + unnoticed));
            }
            wake::Verdict::NotSeen => self.waking = None,
            wake::Verdict::ResetAgain => {
                self.books.reset_again();
                return true;
            }
            wake::Verdict::GiveUp => {
                self.waking = None;
                self.watch.woke(Seconds(f64::INFINITY), settings);
            }
        }
        false
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
        if let Some(GapState::Parked { parked_since, .. }) = self.watch.gaps().map(GapRule::state) {
            self.close_spell(now.since(parked_since));
        }
        self.watch.interrupt(now);
        self.books.end_spell();
        (self.waking, self.idle_since) = (None, None);
    }
}

/// A lock for parking was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// It was not for parking.
    NotOurs,
    /// There are other ways to park.
    OthersLeft,
    /// There is no other way.
    NoneLeft,
}

/// The slowest clocks of a group: what work waits for.
pub(super) fn slowest(readings: &[Option<GpuReading>]) -> Running {
    let lowest = |clock: fn(&GpuReading) -> Option<Mhz>| {
        readings.iter().map(|reading| reading.as_ref().and_then(clock)).min().flatten()
    };
    Running { core: lowest(|reading| reading.core_clock), memory: lowest(|reading| reading.memory_clock) }
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
