//! The clocks of the group: what was asked, what runs, whether the card follows, when they are left alone.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::readings::Readings;
use super::verify::{BUSY_PERCENT, Check, ClockVerifier};
use super::{Event, Settings};
use crate::faults::{Fault, Reaction};
use crate::gpu::{ClockReasons, GpuReading};
use crate::metrics::window::Window;
use crate::units::{Clocks, Mhz, Seconds, Target, Time};

/// A clock change this early in a window still counts as the window's clock: commands follow a scrape by some
/// milliseconds.
const CHANGE_SLACK: f64 = 0.35;
/// After a refused command of the passing kind the clocks stay at default for this long.
pub(super) const FAULT_PAUSE: Seconds = Seconds(5.0);
/// So many changes by somebody else within [`CONTEST_MEMORY`] are a contest: agft takes part in none.
const CONTEST: usize = 3;
const CONTEST_MEMORY: Seconds = Seconds(600.0);
/// After a contest the clocks stay with whoever sets them for this long.
const STAND_BACK: Seconds = Seconds(600.0);
/// Readings at the idle clock after a wake-up before it counts as stuck.
const STUCK_READINGS: u32 = 3;
/// A clock under load below this share of the expected one is held low. A power cap alone may go half as far.
const HELD_LOW: f64 = 0.5;

/// One clock decision for all GPUs of the group, and what became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct GroupClocks {
    command: Command,
    trouble: Trouble,
}

/// What runs, as far as the driver has confirmed, and what was asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Command {
    running: Target,
    since: Time,
    /// What ran before parking, to wake into.
    serving: Target,
    /// What runs as soon as the driver confirms it.
    asked: Target,
    verifier: ClockVerifier,
}

/// What is known of clocks that do not run as asked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Trouble {
    /// Until then the clocks are the driver's.
    hands_off_until: Option<Time>,
    /// A reading of this window disagreed with the clock asked for.
    off: bool,
    /// When somebody else's changes were seen.
    changes: VecDeque<Time>,
    /// Woken, and the running clock not seen above the idle clock since.
    woken: bool,
    stuck: u32,
    /// The reset after the last alarm gets its time.
    alarmed: Option<Time>,
    /// Windows in a row under load in which a GPU was held at a low clock.
    held_low: u32,
}

/// What the running clocks are compared with.
pub(super) struct Sight<'a> {
    pub(super) now: Time,
    pub(super) readings: &'a Readings,
    pub(super) settings: &'a Settings,
    /// The highest clocks that may be asked for.
    pub(super) highest: Option<Clocks>,
    /// Core clock of a parked GPU.
    pub(super) parked_core: Option<Mhz>,
}

impl<'a> Sight<'a> {
    /// The core clocks read when a change `since` had settled, with the GPU's place and all that it showed.
    fn settled(&self, since: Time) -> impl Iterator<Item = (usize, &'a GpuReading, Mhz)> + use<'a> {
        let from = since + self.settings.verify_after;
        let settled = self.readings.timed().filter(move |(_, _, at)| *at >= from);
        settled.filter_map(|(member, reading, _)| Some((member, reading, reading.core_clock?)))
    }
}

impl GroupClocks {
    /// The driver's, since `now`.
    pub(super) fn new(now: Time) -> Self {
        let (running, verifier) = (Target::Default, ClockVerifier::default());
        let command = Command { running, since: now, serving: running, asked: running, verifier };
        Self::of_parts(command, Trouble::default())
    }

    pub(super) fn of_parts(command: Command, trouble: Trouble) -> Self {
        Self { command, trouble }
    }

    /// What runs, as far as the driver has confirmed.
    pub(super) fn running(&self) -> Target {
        self.command.running
    }

    /// What was commanded last.
    pub(super) fn asked(&self) -> Target {
        self.command.asked
    }

    /// Commands `target`, where that is news. Until the driver confirms, no window belongs to either clock.
    pub(super) fn ask(&mut self, target: Target) -> Option<Target> {
        (std::mem::replace(&mut self.command.asked, target) != target).then_some(target)
    }

    /// The driver confirms that `target` runs.
    pub(super) fn confirm(&mut self, target: Target, at: Time) {
        if self.command.running != target {
            (self.command.running, self.command.since) = (target, at);
        }
    }

    /// The driver refused the command, and runs its own clocks since `at`.
    pub(super) fn refused(&mut self, at: Time) {
        self.confirm(Target::Default, at);
        self.command.asked = Target::Default;
    }

    /// The only clocks of a window, settling aside; `None` if they changed inside or did not run as asked.
    pub(super) fn ran_in(&self, window: &Window, dry_run: bool) -> Option<Target> {
        let early = self.command.since.since(window.start).0 <= CHANGE_SLACK * window.elapsed.0;
        let confirmed = dry_run || self.command.asked == self.command.running;
        (early && confirmed && !self.trouble.off).then_some(self.command.running)
    }

    /// Begin of what a window from `start` on can be measured by: a change takes `settle`.
    pub(super) fn settled(&self, settle: Seconds, start: Time) -> Time {
        let settled = self.command.since + settle;
        if settled.0 > start.0 { settled } else { start }
    }

    /// The GPUs are parked from here on.
    pub(super) fn parked(&mut self) {
        self.command.serving = self.command.running;
    }

    /// The GPUs are woken: the clocks that ran before they were parked.
    pub(super) fn woken(&mut self) -> Target {
        self.trouble.woken = true;
        self.command.serving
    }

    /// Are the clocks the driver's for a while, because of a fault?
    pub(super) fn hands_off(&self, now: Time) -> bool {
        self.trouble.hands_off_until.is_some_and(|until| now < until)
    }

    /// The clocks stay with the driver for at least this long.
    pub(super) fn leave(&mut self, span: Seconds, now: Time) {
        let until = now + span;
        if self.trouble.hands_off_until.is_none_or(|known| known < until) {
            self.trouble.hands_off_until = Some(until);
        }
    }

    /// Does a GPU stay at a low clock under load, whatever is asked?
    pub(super) fn is_held_low(&self) -> bool {
        self.trouble.held_low >= STUCK_READINGS
    }

    /// Compares what runs with what should, at the end of a window. Only one `at_work` can tell. An event
    /// says what is wrong, once that is certain.
    pub(super) fn verify(&mut self, at_work: bool, sight: &Sight) -> Option<Event> {
        self.trouble.off = false;
        if !at_work {
            return None;
        }
        let low = self.check_low(sight);
        if self.trouble.off || sight.settings.dry_run || sight.settings.data_collection {
            return low;
        }
        match self.command.running {
            Target::Default => self.check_woken(sight),
            Target::Lock(asked) => self.check_asked(asked, sight),
        }
    }

    /// Is a GPU at work far below what it should run at, asked for or default? Nothing of such a window is
    /// learned, and after some in a row there is an alarm. A clock that held once is left to the verifier.
    fn check_low(&mut self, sight: &Sight) -> Option<Event> {
        let asked = self.command.running.clocks().filter(|_| !sight.settings.dry_run);
        if asked.is_some_and(|asked| self.command.verifier.has_held(asked)) || self.trouble.woken {
            return None;
        }
        let expected = asked.or(sight.highest)?.core;
        let busy = |reading: &GpuReading| {
            reading.utilization_percent.is_some_and(|percent| percent >= BUSY_PERCENT)
                && !reading.reasons().intersects(ClockReasons::GPU_IDLE)
        };
        let is_low = |(_, reading, running): &(usize, &GpuReading, Mhz)| {
            let by_power = reading.reasons().intersects(ClockReasons::SW_POWER_CAP);
            let share = if by_power && !reading.reasons().is_throttled() { 0.5 * HELD_LOW } else { HELD_LOW };
            running.as_f64() < share * expected.as_f64()
        };
        let mut judged = sight.settled(self.command.since).filter(|(_, reading, _)| busy(reading)).peekable();
        let any = judged.peek().is_some();
        let Some((member, reading, running)) = judged.find(is_low) else {
            if any {
                self.trouble.held_low = 0;
            }
            return None;
        };
        let reasons = reading.reasons();
        self.trouble.off = true;
        self.trouble.held_low = self.trouble.held_low.saturating_add(1);
        let certain = self.trouble.held_low == STUCK_READINGS;
        certain.then_some(Event::ClockHeldLow { running, expected, reasons, member })
    }

    fn check_asked(&mut self, asked: Clocks, sight: &Sight) -> Option<Event> {
        let Settings { verify_after, clock_tolerance, .. } = *sight.settings;
        let since = self.command.since;
        for (member, reading, at) in sight.readings.timed() {
            let check = self.command.verifier.check(asked, since, reading, verify_after, clock_tolerance, at);
            let event = match check {
                Check::Holds => {
                    self.trouble.woken = false;
                    continue;
                }
                Check::Unknown | Check::Capped => continue,
                Check::Off(_) => None,
                Check::NotHeld(running) => Some(Event::ClockNotHeld { asked, running, member }),
                Check::Changed(running) => Some(self.changed(asked, running, member, sight.now)),
            };
            self.trouble.off = true;
            return event;
        }
        None
    }

    /// Somebody else has been at the clocks. Giving them back makes a known state of it; after several times
    /// in a row they are left to whoever that is.
    fn changed(&mut self, asked: Clocks, running: Mhz, member: usize, now: Time) -> Event {
        self.trouble.changes.push_back(now);
        while self.trouble.changes.front().is_some_and(|at| now.since(*at) > CONTEST_MEMORY) {
            self.trouble.changes.pop_front();
        }
        let times = self.trouble.changes.len();
        let fault = if times < CONTEST { Fault::ClocksChanged } else { Fault::ClocksContested };
        let hands_off = if fault.reaction() == Reaction::StandBack { STAND_BACK } else { FAULT_PAUSE };
        self.leave(hands_off, now);
        Event::ClocksChanged { asked, running, member, times, hands_off }
    }

    /// Parking is the one state in which work would crawl: that it is over is not taken on trust.
    fn check_woken(&mut self, sight: &Sight) -> Option<Event> {
        let idle =
            sight.parked_core.filter(|_| self.trouble.woken && self.command.running == self.command.asked)?;
        if self.trouble.alarmed.is_some_and(|at| sight.now.since(at) < FAULT_PAUSE) {
            return None;
        }
        let at_idle = |(_, reading, running): &(usize, &GpuReading, Mhz)| {
            running.abs_diff(idle) <= sight.settings.clock_tolerance
                && !reading.reasons().is_capped()
                && !reading.reasons().intersects(ClockReasons::GPU_IDLE)
                && reading.utilization_percent.is_none_or(|percent| percent >= BUSY_PERCENT)
        };
        let mut seen = sight.settled(self.command.since).peekable();
        let any = seen.peek().is_some();
        let Some((member, _, running)) = seen.find(at_idle) else {
            self.trouble.woken &= !any;
            self.trouble.stuck = 0;
            return None;
        };
        self.trouble.stuck += 1;
        if self.trouble.stuck < STUCK_READINGS {
            return None;
        }
        (self.trouble.stuck, self.trouble.alarmed) = (0, Some(sight.now));
        Some(Event::StuckAtIdleClock { running, member })
    }
}
