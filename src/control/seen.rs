//! The step's first half: takes in what was seen, before anything is decided.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::event::Event;
use super::load::LoadEstimate;
use super::step::Controller;
use super::verify::{BUSY_PERCENT, Check};
use super::{ClockOutcome, Mode, Observation, Order, Output, Scrape};
use crate::bandit::Policy;
use crate::faults::{Fault, Reaction};
use crate::gpu::{ClockReasons, GpuReading, Refusal};
use crate::metrics::Signal;
use crate::metrics::health::{self, Health};
use crate::metrics::window::Window;
use crate::park::parker::Refused;
use crate::units::{Clocks, Mhz, Seconds, Target, Time};

/// After a refused command of the passing kind the clocks stay at default for this long.
const FAULT_PAUSE: Seconds = Seconds(5.0);
/// So many changes by somebody else within [`CONTEST_MEMORY`] are a contest, and agft does not take part in one.
const CONTEST: usize = 3;
const CONTEST_MEMORY: Seconds = Seconds(600.0);
/// After a contest the clocks stay with whoever sets them for this long.
const STAND_BACK: Seconds = Seconds(600.0);
/// Readings at the idle clock after a wake-up before it counts as stuck.
const STUCK_READINGS: u32 = 3;

/// A clock under load below this share of what was to be expected is held low. A power cap alone may go half as far.
const HELD_LOW: f64 = 0.5;

/// What is known of clocks that do not run as asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ClockUpkeep {
    /// A reading of this window disagreed with the clock asked for.
    pub(super) off: bool,
    /// When somebody else's changes were seen.
    changes: VecDeque<Time>,
    /// Woken, and the running clock not seen above the idle clock since.
    pub(super) woken: bool,
    stuck: u32,
    /// The reset after the last alarm gets its time.
    alarmed: Option<Time>,
    /// Windows in a row under load in which a GPU was held at a low clock.
    held_low: u32,
}

impl Controller {
    pub(super) fn take_gpus(&mut self, seen: &Observation) {
        for (index, (meter, gpu)) in self.meters.iter_mut().zip(&seen.gpus).enumerate() {
            self.readings[index] = gpu.reading;
            self.read_at[index] = gpu.read_at;
            for point in &gpu.energy {
                meter.push(*point);
            }
        }
    }

    pub(super) fn take_outcomes(&mut self, seen: &Observation, out: &mut Output) {
        for outcome in &seen.outcomes {
            match outcome {
                ClockOutcome::InForce { target, at } => self.set_in_force(*target, *at),
                ClockOutcome::Refused { target, at, recovery, why } => {
                    self.set_in_force(Target::Default, *at);
                    self.asked = Target::Default;
                    self.learned.policy.interrupt();
                    out.events.push(Event::ClockRefused { target: *target, why: why.clone() });
                    match (recovery, target) {
                        (Refusal::DropArm, Target::Lock(clocks)) => {
                            // Parked GPUs run at another lever from the next window on.
                            let _: Refused = self.idle.refuse(*clocks, seen.now);
                            self.drop_arm(*clocks, why.clone(), seen.now, out);
                        }
                        _ => {
                            self.leave_clocks(FAULT_PAUSE, seen.now);
                            // It is parked in name only from here on.
                            self.idle.interrupt(seen.now);
                        }
                    }
                }
            }
        }
    }

    pub(super) fn take_orders(&mut self, orders: &[Order], now: Time, out: &mut Output) {
        for order in orders {
            let pause = *order == Order::Pause;
            if std::mem::replace(&mut self.paused, pause) == pause {
                continue;
            }
            // What was held is no longer held, what was measured no longer now.
            self.learned.policy.interrupt();
            self.idle.interrupt(now);
            self.forget_latencies();
            self.load = LoadEstimate::default();
            self.limit_broken = false;
            self.mode = if pause { Mode::Paused } else { Mode::Starting };
            out.events.push(if pause { Event::Paused } else { Event::Resumed });
        }
    }

    fn set_in_force(&mut self, target: Target, at: Time) {
        if self.in_force.target != target {
            self.in_force.target = target;
            self.in_force.since = at;
        }
    }

    pub(super) fn take_scrape(&mut self, seen: &Observation, out: &mut Output) -> Option<Window> {
        if let Scrape::Failed(why) = &seen.scrape {
            self.note_health(|health| health.failed(seen.now, why.as_str()), out);
        }
        let Some(snapshot) = seen.scrape.whole() else {
            self.note_health(|health| health.check(seen.now), out);
            return None;
        };
        let snapshot = snapshot.as_ref();
        if !snapshot.refused.is_empty() {
            out.events.push(Event::Refused(snapshot.refused.clone()));
        }
        if !health::tells_of_work(&snapshot.signals) {
            let because = snapshot.refused.first().map(|refused| format!(" ({refused})")).unwrap_or_default();
            let why = format!("the page tells of neither requests nor tokens{because}");
            self.note_health(|health| health.failed(seen.now, why), out);
            return None;
        }
        self.note_health(|health| health.page(seen.now, &snapshot.signals, snapshot.engine()), out);
        let each = self.sharers.take(seen.scrape.each());
        let previous = self.previous.replace(snapshot.clone())?;
        let windows = Window::with_backwards(&previous, snapshot);
        match each.and(windows.map_err(|discontinuity| discontinuity.to_string())) {
            Ok((window, backwards)) => {
                if !backwards.is_empty() {
                    let told =
                        |signal: &Signal| format!("{}: ran backwards", snapshot.engine().metric(*signal));
                    out.events.push(Event::Refused(backwards.iter().map(told).collect()));
                }
                Some(window)
            }
            Err(discontinuity) => {
                out.events.push(Event::Discontinuity(discontinuity));
                self.forget_the_present();
                self.previous = Some(snapshot.clone());
                self.sharers.begin(seen.scrape.each());
                None
            }
        }
    }

    fn note_health<E>(&mut self, tell: impl FnOnce(&mut Health) -> E, out: &mut Output)
    where
        E: IntoIterator<Item = health::Event>,
    {
        out.events.extend(tell(&mut self.health).into_iter().map(Event::Health));
    }

    /// The engine is not the one of a moment ago: what spans the gap would be wrong.
    ///
    /// A parked GPU stays parked, and watched: that the engine restarted is no work.
    pub(super) fn forget_the_present(&mut self) {
        self.previous = None;
        self.sharers.forget_pages();
        self.forget_latencies();
        self.concurrency.clear();
        self.load = LoadEstimate::default();
        self.learned.policy.interrupt();
    }

    /// Does a window show work, as far as its gauges can be believed?
    pub(super) fn sees_work(&mut self, window: &Window, out: &mut Output) -> bool {
        let (work, found_stale) = self.gauges.sees_work(window, self.activity());
        if found_stale {
            let gauge = |value: Option<f64>| value.unwrap_or(0.0);
            let (running, waiting) = (gauge(window.at_end.running), gauge(window.at_end.waiting));
            out.events.push(Event::StaleGauges { running, waiting });
        }
        work
    }

    /// The last gate: a restored model or a reading may name any clock, the board and the configuration only some.
    pub(super) fn is_lawful(&self, clocks: Clocks) -> bool {
        if self.is_parked() {
            self.idle.target() == Target::Lock(clocks)
        } else {
            self.space.is_lockable(clocks)
        }
    }

    /// The clocks stay with the driver for at least this long.
    fn leave_clocks(&mut self, span: Seconds, now: Time) {
        let until = now + span;
        if self.fault_until.is_none_or(|known| known < until) {
            self.fault_until = Some(until);
        }
    }

    pub(super) fn verify_clocks(&mut self, window: &Window, now: Time, out: &mut Output) {
        self.upkeep.off = false;
        let worked = window.generation_tokens.is_some_and(|tokens| tokens > 0.0);
        if worked && !self.is_parked() && self.is_low(out) {
            self.upkeep.off = true;
            return;
        }
        if self.settings.dry_run || self.settings.data_collection || self.is_parked() || !worked {
            return;
        }
        let Target::Lock(asked) = self.in_force.target else { return self.verify_woken(now, out) };
        for member in 0..self.readings.len() {
            let (Some(reading), Some(read_at)) = (self.readings[member], self.read_at[member]) else {
                continue;
            };
            let check = self.verifier.check(
                asked,
                self.in_force.since,
                &reading,
                self.settings.verify_after,
                self.settings.clock_tolerance,
                read_at,
            );
            match check {
                Check::Holds => {
                    self.upkeep.woken = false;
                    continue;
                }
                Check::Unknown | Check::Capped => continue,
                Check::Off(_) => self.upkeep.off = true,
                Check::NotHeld(running) => self.not_held(asked, running, member, now, out),
                Check::Changed(running) => self.changed(asked, running, member, now, out),
            }
            return;
        }
    }

    /// Does a GPU stay at a low clock under load, whatever is asked?
    #[must_use]
    pub fn is_held_low(&self) -> bool {
        self.upkeep.held_low >= STUCK_READINGS
    }

    /// Is a GPU that works far below what it should run at, be that asked for or the default? Nothing of such a window is
    /// learned, and after some in a row there is an alarm. A clock that held once is left to the verifier.
    fn is_low(&mut self, out: &mut Output) -> bool {
        let settled = self.in_force.since + self.settings.verify_after;
        let asked = self.in_force.target.clocks().filter(|_| !self.settings.dry_run);
        if asked.is_some_and(|asked| self.verifier.has_held(asked)) || self.upkeep.woken {
            return false;
        }
        let Some(expected) = asked.or_else(|| self.space.highest()).map(|clocks| clocks.core) else {
            return false;
        };
        let mut judged = false;
        let mut low = None;
        for (member, (reading, at)) in self.readings.iter().zip(&self.read_at).enumerate() {
            let (Some(reading), Some(at)) = (reading, at) else { continue };
            let busy = reading.utilization_percent.is_some_and(|percent| percent >= BUSY_PERCENT)
                && !reading.reasons().intersects(ClockReasons::GPU_IDLE);
            let Some(running) = reading.core_clock.filter(|_| busy && *at >= settled) else { continue };
            judged = true;
            let by_power = reading.reasons().intersects(ClockReasons::SW_POWER_CAP);
            let share = if by_power && !reading.reasons().is_throttled() { 0.5 * HELD_LOW } else { HELD_LOW };
            if running.as_f64() < share * expected.as_f64() {
                low = low.or(Some((member, running, reading.reasons())));
            }
        }
        let Some((member, running, reasons)) = low else {
            if judged {
                self.upkeep.held_low = 0;
            }
            return false;
        };
        self.upkeep.held_low = self.upkeep.held_low.saturating_add(1);
        if self.upkeep.held_low == STUCK_READINGS {
            out.events.push(Event::ClockHeldLow { running, expected, reasons, member });
        }
        true
    }

    /// The card does not have this clock.
    fn not_held(&mut self, asked: Clocks, running: Mhz, member: usize, now: Time, out: &mut Output) {
        self.upkeep.off = true;
        out.events.push(Event::ClockNotHeld { asked, running, member });
        self.drop_arm(asked, format!("the card runs at {running} instead"), now, out);
        let few = self.settings.recover_arms_below;
        if few.is_some_and(|few| self.space.allowed(now).count() <= few) {
            self.space.add(Clocks { core: running, memory: asked.memory });
        }
        self.learned.policy.interrupt();
    }

    /// Somebody else has been at the clocks. Giving them back makes a known state of it; after several times in a row
    /// they are left to whoever that is.
    fn changed(&mut self, asked: Clocks, running: Mhz, member: usize, now: Time, out: &mut Output) {
        self.upkeep.off = true;
        self.upkeep.changes.push_back(now);
        while self.upkeep.changes.front().is_some_and(|at| now.since(*at) > CONTEST_MEMORY) {
            self.upkeep.changes.pop_front();
        }
        let times = self.upkeep.changes.len();
        let fault = if times < CONTEST { Fault::ClocksChanged } else { Fault::ClocksContested };
        let hands_off = if fault.reaction() == Reaction::StandBack { STAND_BACK } else { FAULT_PAUSE };
        self.leave_clocks(hands_off, now);
        out.events.push(Event::ClocksChanged { asked, running, member, times, hands_off });
        self.learned.policy.interrupt();
    }

    /// Parking is the one state in which work would crawl: that it is over is not taken on trust.
    fn verify_woken(&mut self, now: Time, out: &mut Output) {
        let idle = self.idle.parked_core().filter(|_| self.upkeep.woken);
        let Some(idle) = idle.filter(|_| self.in_force.target == self.asked) else { return };
        if self.upkeep.alarmed.is_some_and(|at| now.since(at) < FAULT_PAUSE) {
            return;
        }
        let settled = self.in_force.since + self.settings.verify_after;
        let at_idle = |reading: &GpuReading| {
            reading.core_clock.filter(|clock| {
                clock.abs_diff(idle) <= self.settings.clock_tolerance
                    && !reading.reasons().is_capped()
                    && !reading.reasons().intersects(ClockReasons::GPU_IDLE)
                    && reading.utilization_percent.is_none_or(|percent| percent >= BUSY_PERCENT)
            })
        };
        let mut seen = false;
        let mut stuck = None;
        for (member, (reading, at)) in self.readings.iter().zip(&self.read_at).enumerate() {
            if let (Some(reading), Some(at)) = (reading, at)
                && *at >= settled
                && reading.core_clock.is_some()
            {
                seen = true;
                stuck = stuck.or(at_idle(reading).map(|running| (member, running)));
            }
        }
        let Some((member, running)) = stuck else {
            self.upkeep.woken &= !seen;
            self.upkeep.stuck = 0;
            return;
        };
        self.upkeep.stuck += 1;
        if self.upkeep.stuck >= STUCK_READINGS {
            self.upkeep.stuck = 0;
            self.upkeep.alarmed = Some(now);
            if Fault::StuckAtIdleClock.reaction() == Reaction::ResetAndAlarm {
                out.reset = Some(format!("GPU {member} of the group still runs at the idle clock"));
            }
            out.events.push(Event::StuckAtIdleClock { running, member });
        }
    }

    fn drop_arm(&mut self, clocks: Clocks, why: String, now: Time, out: &mut Output) {
        let retry_at = self.space.fail(clocks, why, now);
        out.events.push(Event::ArmOut { clocks, retry_in: retry_at.since(now) });
    }
}
