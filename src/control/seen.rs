//! The step's first half: takes in what was seen, before anything is decided.

use super::clocks::{FAULT_PAUSE, Sight};
use super::step::Controller;
use super::{ClockOutcome, Event, Mode, Observation, Order, Output, Scrape};
use crate::bandit::Policy;
use crate::faults::{Fault, Reaction};
use crate::gpu::Refusal;
use crate::metrics::Signal;
use crate::metrics::health;
use crate::metrics::window::Window;
use crate::park::parker::Refused;
use crate::units::{Clocks, Target, Time};

impl Controller {
    /// Takes everything in; a window, if a page closed one.
    pub(super) fn observe(&mut self, seen: &Observation, out: &mut Output) -> Option<Window> {
        self.readings.take(&seen.gpus);
        (self.connections, self.working) = (seen.connections, seen.working);
        self.take_outcomes(seen, out);
        self.take_orders(&seen.orders, seen.now, out);
        self.take_scrape(seen, out)
    }

    fn take_outcomes(&mut self, seen: &Observation, out: &mut Output) {
        for outcome in &seen.outcomes {
            match outcome {
                ClockOutcome::InForce { target, at } => self.clocks.confirm(*target, *at),
                ClockOutcome::Refused { target, at, recovery, why } => {
                    self.clocks.refused(*at);
                    self.learned.policy.interrupt();
                    out.events.push(Event::ClockRefused { target: *target, why: why.clone() });
                    match (recovery, target) {
                        (Refusal::DropArm, Target::Lock(clocks)) => {
                            // Parked GPUs run at another lever from the next window on.
                            let _: Refused = self.idle.refuse(*clocks, seen.now);
                            self.drop_arm(*clocks, why.clone(), seen.now, out);
                        }
                        _ => {
                            self.clocks.leave(FAULT_PAUSE, seen.now);
                            // It is parked in name only from here on.
                            self.idle.interrupt(seen.now);
                        }
                    }
                }
            }
        }
    }

    fn take_orders(&mut self, orders: &[Order], now: Time, out: &mut Output) {
        for order in orders {
            let pause = *order == Order::Pause;
            if std::mem::replace(&mut self.paused, pause) == pause {
                continue;
            }
            // No clock of before is kept up, and what was measured is no longer now.
            self.learned.policy.interrupt();
            self.idle.interrupt(now);
            self.servers.forget();
            self.serving.forget_load();
            self.mode = if pause { Mode::Paused } else { Mode::Starting };
            out.events.push(if pause { Event::Paused } else { Event::Resumed });
        }
    }

    fn take_scrape(&mut self, seen: &Observation, out: &mut Output) -> Option<Window> {
        let Some(snapshot) = seen.scrape.whole() else {
            let event = match &seen.scrape {
                Scrape::Failed(why) => self.health.failed(seen.now, why.as_str()),
                _ => self.health.check(seen.now),
            };
            out.events.extend(event.map(Event::Health));
            return None;
        };
        let snapshot = snapshot.as_ref();
        if !snapshot.refused.is_empty() {
            out.events.push(Event::Refused(snapshot.refused.clone()));
        }
        if !health::tells_of_work(&snapshot.signals) {
            let because = snapshot.refused.first().map(|refused| format!(" ({refused})")).unwrap_or_default();
            let why = format!("the page tells of neither requests nor tokens{because}");
            out.events.extend(self.health.failed(seen.now, why).map(Event::Health));
            return None;
        }
        let news = self.health.page(seen.now, &snapshot.signals, snapshot.engine());
        out.events.extend(news.into_iter().map(Event::Health));
        let each = self.servers.take(seen.scrape.each());
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
                self.servers.begin(seen.scrape.each());
                None
            }
        }
    }

    /// The engine is not the one of a moment ago: what spans the gap would be wrong.
    ///
    /// A parked GPU stays parked, and watched: that the engine restarted is no work.
    pub(super) fn forget_the_present(&mut self) {
        self.previous = None;
        self.servers.begin(&[]);
        self.servers.forget_latencies();
        self.serving.forget();
        self.learned.policy.interrupt();
    }

    /// Compares what runs with what should, and draws the consequences.
    pub(super) fn verify_clocks(&mut self, window: &Window, now: Time, out: &mut Output) {
        let worked = window.generation_tokens.is_some_and(|tokens| tokens > 0.0);
        let at_work = worked && !self.is_parked();
        let sight = Sight {
            now,
            readings: &self.readings,
            settings: &self.settings,
            highest: self.space.highest(),
            parked_core: self.idle.parked_core(),
        };
        let Some(event) = self.clocks.verify(at_work, &sight) else { return };
        out.events.push(event.clone());
        match event {
            Event::ClockNotHeld { asked, running, .. } => {
                self.drop_arm(asked, format!("the card runs at {running} instead"), now, out);
                let few = self.settings.recover_arms_below;
                if few.is_some_and(|few| self.space.allowed(now).count() <= few) {
                    self.space.add(Clocks { core: running, memory: asked.memory });
                }
                self.learned.policy.interrupt();
            }
            Event::ClocksChanged { .. } => self.learned.policy.interrupt(),
            Event::StuckAtIdleClock { member, .. }
                if Fault::StuckAtIdleClock.reaction() == Reaction::ResetAndAlarm =>
            {
                out.reset = Some(format!("GPU {member} of the group still runs at the idle clock"));
            }
            _ => {}
        }
    }

    fn drop_arm(&mut self, clocks: Clocks, why: String, now: Time, out: &mut Output) {
        let retry_at = self.space.fail(clocks, why, now);
        out.events.push(Event::ArmOut { clocks, retry_in: retry_at.since(now) });
    }
}
