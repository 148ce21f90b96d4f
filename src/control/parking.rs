//! What the controller shows its parker, and what it makes of the answer.

use super::step::Controller;
use super::{Event, Output};
use crate::bandit::{Phase, Policy};
use crate::metrics::window::Window;
use crate::park::Sample;
use crate::park::parker::{self, Command};
use crate::park::sample::{PageSight, Sensor, Sensors};
use crate::units::{Seconds, Target, Time};

impl Controller {
    /// A window of the page has closed. The clocks that the parker wants, if they are to change.
    pub(super) fn park_by_page(
        &mut self,
        window: &Window,
        work: bool,
        control_slot: bool,
        now: Time,
        out: &mut Output,
    ) -> Option<Target> {
        let affordable = self.servers.can_wait(self.idle.wake_delay(), now);
        let seen = self.sample(now);
        let seen = Sample {
            page: Some(PageSight { start: window.start, work, step_time: step_time(window) }),
            window_power: self.readings.power(window.start, window.end),
            energy: self.readings.counter(),
            may_park: !control_slot && !self.clocks.hands_off(now) && affordable,
            read: seen.read.with(Sensor::Energy, true),
            ..seen
        };
        if let Some(times) = &window.ttft {
            self.idle.took_first_tokens(times);
        }
        self.park(&seen, out)
    }

    /// What the parker is shown between two pages.
    pub(super) fn sample(&self, now: Time) -> Sample {
        Sample {
            activity: self.readings.activity(),
            running: self.readings.slowest(),
            connections: self.connections,
            working: self.working,
            temperature_c: self.readings.hottest(),
            read: Sensors::CLOCKS.with(Sensor::Utilization, true).with(Sensor::Power, true),
            ..Sample::at(now)
        }
    }

    /// Has the parker decide; the clocks that it wants, if they are to change.
    pub(super) fn park(&mut self, sample: &Sample, out: &mut Output) -> Option<Target> {
        let was_parked = self.is_parked();
        let parked = self.idle.observe(sample);
        if self.is_parked() && !was_parked {
            self.clocks.parked();
            self.learned.policy.interrupt();
        }
        if parked.reset_again && !self.settings.dry_run {
            out.reset = Some("work runs at the parked clocks though they were given back".into());
        }
        for event in parked.events {
            out.events.push(match event {
                parker::Event::Parked(clocks, _) => Event::Parked { clocks },
                parker::Event::TooHot(clocks, temperature_c) => Event::TooHot { clocks, temperature_c },
                parker::Event::Cooled => Event::Cooled,
                parker::Event::Woken(by, parked) => Event::Woken { by, parked },
                parker::Event::Measured => Event::LeversMeasured(self.idle.levers().book().clone().into()),
                _ => continue,
            });
        }
        Some(match parked.command? {
            Command::Park(target) => target,
            Command::Wake => self.wake(sample.now),
        })
    }

    /// The clocks to wake into.
    fn wake(&mut self, now: Time) -> Target {
        let serving = self.clocks.woken();
        let allowed = serving.clocks().is_none_or(|clocks| self.space.is_allowed(clocks, now));
        // While exploring, what ran last may be a clock that was only being tried.
        let known_good = self.learned.policy.phase() == Phase::Exploitation;
        if allowed && known_good { serving } else { Target::Default }
    }
}

/// Mean length of the engine's steps: the time between tokens of a request.
fn step_time(window: &Window) -> Option<Seconds> {
    let histogram = window.itl.as_ref().or(window.request_tpot.as_ref())?;
    (histogram.count > 0.0).then(|| Seconds(histogram.sum / histogram.count))
}
