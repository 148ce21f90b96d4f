//! Which sensors a parker wants to be asked, and when; and what it makes of the power.

use serde::{Deserialize, Serialize};

use super::Parker;
use crate::park::rule::State;
use crate::park::sample::{Sample, Sensor, Sensors};
use crate::units::{Seconds, Time};

/// Between two readings of the temperature of GPUs that are not parked, and of their power while they are quiet. Power is
/// a mean over a second on many boards: only then it is that of the quiet GPU.
const SLOW: Seconds = Seconds(1.0);
/// Between two readings of the temperature of parked GPUs.
const SLOW_PARKED: Seconds = Seconds(5.0);
/// Between two readings of the power of GPUs at work.
const BUSY: Seconds = Seconds(5.0);
/// Between two readings of the utilisation while a trial lasts, at most.
const TRIAL_LOOK: Seconds = Seconds(0.2);
/// Clocks on their way back in a trial are read so often at least.
const CLOSE: Seconds = Seconds(0.1);
/// What is due so soon is wanted now.
const SLACK: Seconds = Seconds(0.002);

/// When sensors are to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Due {
    utilization: Time,
    temperature: Time,
    quiet_power: Time,
    busy_power: Time,
    trial: Time,
    /// At once: the running clocks ...
    pub(super) clocks: bool,
    /// ... the energy counter ...
    pub(super) energy: bool,
    /// ... the power, in place of a counter.
    pub(super) power: bool,
}

impl Due {
    /// All that goes on, from `now` on.
    pub(super) fn at(now: Time) -> Self {
        Self {
            utilization: now,
            temperature: now,
            quiet_power: now,
            busy_power: now,
            trial: now,
            clocks: false,
            energy: false,
            power: false,
        }
    }
}

impl Due {
    /// As at the start; what is wanted at once stays so.
    pub(super) fn begin_anew(&mut self, now: Time) {
        *self = Self { energy: self.energy, power: self.power, ..Self::at(now) };
    }
}

fn later(a: Time, b: Time) -> Time {
    if a < b { b } else { a }
}

impl Parker {
    /// The sensors that are to be asked now; none where a sampler reads them all the time.
    pub fn wants(&self, now: Time) -> Sensors {
        if !self.is_asking() {
            return Sensors::NONE;
        }
        let due = |at: Time| at <= now + SLACK;
        let trial = self.trial_due().is_some_and(due);
        let timing = self.levers.is_timing();
        let clocks = self.due.clocks || (trial && timing);
        let lowered = self.lever.map(|lever| lever.lowered()).unwrap_or_default();
        Sensors::NONE
            .with(Sensor::Utilization, self.reads_utilization() && due(self.due.utilization))
            .with(Sensor::Temperature, self.reads_temperature() && due(self.due.temperature))
            .with(
                Sensor::Power,
                self.due.power || self.power_due().is_some_and(due) || self.watches_power(now),
            )
            .with(Sensor::Energy, self.due.energy || (trial && !timing && !self.due.power))
            .with(Sensor::CoreClock, clocks && lowered.core.is_some())
            .with(Sensor::MemoryClock, clocks && lowered.memory.is_some())
    }

    /// When a sensor is to be asked next; never where nobody has to ask.
    pub fn due(&self) -> Time {
        let asked = |due: Option<Time>| due.filter(|_| self.is_asking()).map_or(f64::INFINITY, |due| due.0);
        let times = [
            self.reads_utilization().then_some(self.due.utilization),
            self.reads_temperature().then_some(self.due.temperature),
            self.power_due(),
            self.trial_due(),
        ];
        Time(times.into_iter().map(asked).fold(f64::INFINITY, f64::min))
    }

    /// Is the utilisation of use now?
    pub(crate) fn reads_utilization(&self) -> bool {
        let is_source = |settings: &crate::park::Settings| settings.utilization_threshold_percent.is_some();
        self.waking.is_some() || self.settings().is_some_and(is_source)
    }

    /// Is power to be read with the utilisation, as it may show work sooner?
    fn watches_power(&self, now: Time) -> bool {
        let is_source = |settings: &crate::park::Settings| settings.wake_power_ratio.is_some();
        self.settings().is_some_and(is_source)
            && self.parked_since().is_some()
            && self.reads_utilization()
            && self.due.utilization <= now + SLACK
    }

    fn reads_temperature(&self) -> bool {
        self.settings().is_some_and(|settings| settings.hot.is_some())
    }

    /// When a trial wants to know more.
    pub(super) fn trial_due(&self) -> Option<Time> {
        let began = self.parked_since().filter(|_| !self.is_dry() && !self.blind)?;
        Some(later(self.levers.trial_due(began)?, self.due.trial))
    }

    /// When the power is to be known; beside a page the counters tell that of each window.
    fn power_due(&self) -> Option<Time> {
        match self.state() {
            _ if self.settings().is_none_or(|settings| settings.page) => None,
            State::Quiet { since } => Some(later(since + SLOW, self.due.quiet_power)),
            State::Serving if self.works && self.waking.is_none() => Some(self.due.busy_power),
            _ => None,
        }
    }

    /// Takes in the power of quiet GPUs, and of those at work: what a wake costs goes by it.
    pub(super) fn sample_power(&mut self, sample: &Sample) {
        let Some(settings) = self.settings().filter(|settings| !settings.page) else { return };
        self.works = match settings.utilization_threshold_percent {
            Some(threshold) => sample.activity.utilization_percent.is_some_and(|percent| percent > threshold),
            None => sample.connections.is_some_and(|seen| seen.open > 0),
        };
        let now = sample.now;
        let due = self.power_due().is_some_and(|due| due <= now + SLACK) && sample.read.has(Sensor::Power);
        let power = sample.activity.power.filter(|_| due);
        if matches!(self.state(), State::Quiet { .. }) {
            if due {
                self.due.quiet_power = now + SLOW;
            }
            if let Some(power) = power {
                self.accounting.sums.quiet_power(power);
            }
            return;
        }
        if due {
            self.due.busy_power = now + BUSY;
        }
        if let Some(power) = power {
            self.price.worked(power);
        }
        if !self.accounting.is_open() {
            // A quiet spell is over, if there was one.
            self.accounting.sums.end_spell();
        }
    }

    /// When to ask next, after a sample that found it in the state `was`.
    pub(super) fn schedule(&mut self, was: State, sample: &Sample) {
        let Some(periods) = self.settings().and_then(|settings| settings.periods) else { return };
        let (now, state) = (sample.now, self.state());
        if sample.read.has(Sensor::Utilization) || was.is_down() != state.is_down() {
            let period = match state.is_down() {
                true if self.levers.is_trying() => Seconds(periods.parked.0.min(TRIAL_LOOK.0)),
                true => periods.parked,
                false => periods.active,
            };
            self.due.utilization = now + period;
        }
        if sample.read.has(Sensor::Temperature) {
            let parked = matches!(state, State::Parked { .. });
            self.due.temperature = now + if parked { SLOW_PARKED } else { SLOW };
        }
        let of_trial = Sensors::CLOCKS.with(Sensor::Energy, true).with(Sensor::Power, true);
        if sample.read.has_any(of_trial) {
            let period = self.levers.trial_period();
            self.due.trial =
                now + if self.levers.is_timing() { Seconds(period.0.min(CLOSE.0)) } else { period };
        }
    }
}
