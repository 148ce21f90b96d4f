//! What the controller shows its parker, and what it makes of the answer.

use super::step::Controller;
use super::{Event, Output};
use crate::bandit::{Phase, Policy};
use crate::gpu::GpuReading;
use crate::metrics::window::Window;
use crate::park::Sample;
use crate::park::parker::{self, Command};
use crate::park::sample::{Activity, PageSight, Sensor, Sensors};
use crate::park::wake::Running;
use crate::reward::energy::{EnergyMeter, EnergyPoint, group_power};
use crate::reward::slo::Limited;
use crate::units::{Joules, Mhz, Seconds, Target, Time, Watts};

impl Controller {
    /// The energy counters of all GPUs, as last read.
    fn counter(&self) -> Option<EnergyPoint> {
        let newest: Option<Vec<EnergyPoint>> = self.meters.iter().map(EnergyMeter::newest).collect();
        let newest = newest.filter(|points| !points.is_empty())?;
        let at = newest.iter().map(|point| point.at.0).fold(f64::INFINITY, f64::min);
        Some(EnergyPoint { at: Time(at), total: Joules(newest.iter().map(|point| point.total.0).sum()) })
    }

    pub(super) fn activity(&self) -> Activity {
        let powers: Option<Vec<f64>> =
            self.readings.iter().map(|r| r.and_then(|r| r.power).map(|power| power.0)).collect();
        Activity {
            power: powers.filter(|p| !p.is_empty()).map(|powers| Watts(powers.iter().sum())),
            // One that does not tell may be the one that works.
            utilization_percent: self
                .readings
                .iter()
                .map(|reading| reading.and_then(|reading| reading.utilization_percent))
                .collect::<Option<Vec<f64>>>()
                .and_then(|all| all.into_iter().max_by(f64::total_cmp)),
        }
    }

    /// Between two pages only a parked GPU is judged. The clocks that the parker wants, if they are to change.
    pub(super) fn park_between_pages(&mut self, now: Time, out: &mut Output) -> Option<Target> {
        self.park(&self.sample(now), out)
    }

    /// A window of the page has closed.
    pub(super) fn park_by_page(
        &mut self,
        window: &Window,
        work: bool,
        held: bool,
        now: Time,
        out: &mut Output,
    ) -> Option<Target> {
        let power = group_power(&self.meters, window.start, window.end).map(|(power, _)| power);
        let seen = self.sample(now);
        let seen = Sample {
            page: Some(PageSight { start: window.start, work, step_time: step_time(window) }),
            window_power: power,
            energy: self.counter(),
            may_park: !held && !self.hands_off(now) && self.can_afford_wakes(now),
            read: seen.read.with(Sensor::Energy, true),
            ..seen
        };
        if let Some(times) = &window.ttft {
            self.idle.took_first_tokens(times);
        }
        self.park(&seen, out)
    }

    /// What the parker is shown between two pages.
    fn sample(&self, now: Time) -> Sample {
        Sample {
            activity: self.activity(),
            running: slowest(&self.readings),
            connections: self.connections,
            temperature_c: self.hottest(),
            read: Sensors::CLOCKS.with(Sensor::Utilization, true).with(Sensor::Power, true),
            ..Sample::at(now)
        }
    }

    fn hottest(&self) -> Option<f64> {
        let read = self.readings.iter().filter_map(|reading| reading.and_then(|read| read.temperature_c));
        read.max_by(f64::total_cmp)
    }

    /// Has the parker decide; the clocks that it wants, if they are to change.
    fn park(&mut self, sample: &Sample, out: &mut Output) -> Option<Target> {
        let was_parked = self.is_parked();
        let parked = self.idle.observe(sample);
        if self.is_parked() && !was_parked {
            self.in_force.serving = self.in_force.target;
            self.learned.policy.interrupt();
        }
        if parked.reset_again && !self.settings.dry_run {
            out.reset = Some("work runs at the parked clocks though they were given back".into());
        }
        for event in parked.events {
            match event {
                parker::Event::Parked(clocks, _) => {
                    out.events.push(Event::Parked { clocks });
                }
                parker::Event::TooHot(clocks, temperature_c) => {
                    out.events.push(Event::TooHot { clocks, temperature_c });
                }
                parker::Event::Cooled => out.events.push(Event::Cooled),
                parker::Event::Woken(by, parked) => out.events.push(Event::Woken { by, parked }),
                parker::Event::Measured => {
                    out.events.push(Event::LeversMeasured(Box::new(self.idle.levers().book().clone())));
                }
                _ => {}
            }
        }
        Some(match parked.command? {
            Command::Park(target) => target,
            Command::Wake => self.wake(sample.now),
        })
    }

    /// The clocks to wake into.
    fn wake(&mut self, now: Time) -> Target {
        self.upkeep.woken = true;
        let serving = self.in_force.serving;
        let allowed = serving.clocks().is_none_or(|clocks| self.space.is_allowed(clocks, now));
        // While exploring, what ran last may be a clock that was only being tried.
        let known_good = self.learned.policy.summary().phase == Phase::Exploitation;
        if allowed && known_good { serving } else { Target::Default }
    }

    /// Would the limit on the time to first token be kept if it took as much longer as a wake takes?
    fn can_afford_wakes(&self, now: Time) -> bool {
        let wake = self.idle.wake_delay();
        self.promises().all(|(limits, latency)| latency.leaves(Limited::Ttft, wake, limits, now))
    }
}

/// Mean length of the engine's steps: the time between tokens of a request.
fn step_time(window: &Window) -> Option<Seconds> {
    let histogram = window.itl.as_ref().or(window.request_tpot.as_ref())?;
    (histogram.count > 0.0).then(|| Seconds(histogram.sum / histogram.count))
}

/// The slowest clocks of a group: what work waits for.
fn slowest(readings: &[Option<GpuReading>]) -> Running {
    let lowest = |clock: fn(&GpuReading) -> Option<Mhz>| {
        readings.iter().map(|reading| reading.as_ref().and_then(clock)).min().flatten()
    };
    Running { core: lowest(|reading| reading.core_clock), memory: lowest(|reading| reading.memory_clock) }
}
