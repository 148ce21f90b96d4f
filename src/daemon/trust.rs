//! A GPU's sensors with what is not believed taken out: what both daemons read.

use std::cell::RefCell;

use super::clock::Clock;
use crate::gpu::plausible::{
    EnergyJudge, EnergySource, IdleJudge, PowerJudge, highest_limit, is_clock, is_temperature,
};
use crate::gpu::{GpuError, GpuInfo, GpuReading, GpuSensors, GpuSetup, SupportedClocks};
use crate::seldom::EVERY_S;
use crate::units::{Mhz, Millijoules, Seconds, Time, Watts};

/// A power that is older is asked for again before energy is judged.
const POWER_AGE: Seconds = Seconds(0.25);

/// Sensors whose readings are judged. `energy` counts from the first look, from whichever source is believed.
pub(crate) struct Trusted {
    sensors: Box<dyn GpuSensors>,
    clock: Clock,
    judged: RefCell<Judged>,
}

struct Judged {
    energy: EnergyJudge,
    power: PowerJudge,
    idle: IdleJudge,
    power_at: Option<Time>,
    doubts: [Doubt; 4],
}

/// A sensor of which an answer was not believed lately, and that was said.
#[derive(Clone, Copy, Default)]
struct Doubt(Option<Time>);

/// The sensors that are judged by their value alone.
#[derive(Clone, Copy)]
enum Kind {
    Power,
    Utilization,
    Temperature,
    Clock,
}

impl Kind {
    /// Its name, and what decides without it.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Power => ("power", "the energy counter alone, where there is one"),
            Self::Utilization => ("utilisation", "nothing: the GPU is not taken for idle by it"),
            Self::Temperature => ("temperature", "nothing: none is shown"),
            Self::Clock => ("running clock", "nothing: no clock is verified by it"),
        }
    }
}

impl Trusted {
    /// Looks at the energy for the first time.
    pub(crate) fn new(sensors: Box<dyn GpuSensors>, clock: Clock) -> Self {
        let info = sensors.info();
        let judged = Judged {
            energy: EnergyJudge::new(highest_limit(info)),
            power: PowerJudge::new(highest_limit(info)),
            idle: IdleJudge::new(info.power_limit),
            power_at: None,
            doubts: [Doubt::default(); 4],
        };
        let trusted = Self { sensors, clock, judged: RefCell::new(judged) };
        // What fails now is asked again.
        let _ = trusted.energy();
        trusted
    }

    pub(crate) fn source(&self) -> EnergySource {
        self.judged.borrow().energy.source()
    }

    /// The value if it is believed; says once if it is not, and once that it is again.
    fn judge<T: std::fmt::Display>(&self, kind: Kind, value: T, believed: bool) -> Option<T> {
        let now = self.clock.now();
        let (sensor, instead) = kind.words();
        let gpu = self.sensors.info();
        let doubt = &mut self.judged.borrow_mut().doubts[kind as usize];
        if believed {
            if doubt.0.is_some_and(|at| now.since(at) >= Seconds(EVERY_S)) {
                doubt.0 = None;
                tracing::info!(%gpu, "{sensor} is believed again");
            }
            return Some(value);
        }
        if doubt.0.replace(now).is_none() {
            tracing::warn!(%gpu, read = %value, decides = instead, "{sensor} is not believed: no such board runs so");
        }
        None
    }

    fn judge_power(&self, power: Watts) -> Option<Watts> {
        let now = self.clock.now();
        let believed = self.judged.borrow_mut().power.believes(now, power);
        let believed = self.judge(Kind::Power, power, believed)?;
        let mut judged = self.judged.borrow_mut();
        judged.idle.on_power(now, believed);
        judged.power_at = Some(now);
        judged.energy.on_power(now, believed);
        Some(believed)
    }

    fn judge_utilization(&self, percent: f64) -> Option<f64> {
        let believed = self.judged.borrow_mut().idle.believes(self.clock.now(), percent);
        self.judge(Kind::Utilization, percent, believed)
    }

    fn judge_temperature(&self, celsius: f64) -> Option<f64> {
        self.judge(Kind::Temperature, celsius, is_temperature(celsius))
    }

    fn judge_clock(&self, clock: Mhz) -> Option<Mhz> {
        self.judge(Kind::Clock, clock, is_clock(clock))
    }

    fn look(&self, counter: Option<Millijoules>) {
        let change = self.judged.borrow_mut().energy.on_counter(self.clock.now(), counter);
        let Some(change) = change else { return };
        let (gpu, decides) = (self.sensors.info(), change.source.words());
        match change.before {
            _ if change.is_better() => tracing::info!(%gpu, why = change.why, "energy: {decides} decides"),
            EnergySource::Counter => {
                tracing::warn!(%gpu, read = change.why, "energy counter not believed: {decides} decides instead");
            }
            _ => tracing::warn!(%gpu, why = change.why, "energy is unknown: {decides} decides"),
        }
    }

    fn believed<T>(&self, value: Option<T>, call: &'static str) -> Result<T, GpuError> {
        value.ok_or_else(|| GpuError::NotSupported { gpu: self.sensors.info().to_string(), call })
    }
}

impl GpuSensors for Trusted {
    fn info(&self) -> &GpuInfo {
        self.sensors.info()
    }

    fn setup(&self) -> GpuSetup {
        self.sensors.setup()
    }

    fn supported_clocks(&self) -> Result<SupportedClocks, GpuError> {
        self.sensors.supported_clocks()
    }

    fn reading(&self) -> Result<GpuReading, GpuError> {
        let read = self.sensors.reading()?;
        Ok(GpuReading {
            core_clock: read.core_clock.and_then(|clock| self.judge_clock(clock)),
            memory_clock: read.memory_clock.and_then(|clock| self.judge_clock(clock)),
            power: read.power.and_then(|power| self.judge_power(power)),
            utilization_percent: read.utilization_percent.and_then(|share| self.judge_utilization(share)),
            temperature_c: read.temperature_c.and_then(|celsius| self.judge_temperature(celsius)),
            reasons: read.reasons,
        })
    }

    fn power(&self) -> Result<Watts, GpuError> {
        let power = self.sensors.power()?;
        self.believed(self.judge_power(power), "power")
    }

    fn utilization(&self) -> Result<f64, GpuError> {
        let share = self.sensors.utilization()?;
        self.believed(self.judge_utilization(share), "utilisation")
    }

    fn temperature(&self) -> Result<f64, GpuError> {
        let celsius = self.sensors.temperature()?;
        self.believed(self.judge_temperature(celsius), "temperature")
    }

    fn core_clock(&self) -> Result<Mhz, GpuError> {
        let clock = self.sensors.core_clock()?;
        self.believed(self.judge_clock(clock), "core clock")
    }

    fn memory_clock(&self) -> Result<Mhz, GpuError> {
        let clock = self.sensors.memory_clock()?;
        self.believed(self.judge_clock(clock), "memory clock")
    }

    /// Millijoules since the first look, by the source that is believed.
    fn energy(&self) -> Result<Millijoules, GpuError> {
        let counter = self.sensors.energy();
        let now = self.clock.now();
        let old = self.judged.borrow().power_at.is_none_or(|at| now.since(at) >= POWER_AGE);
        // Where power decides it is as fresh as the energy has to be.
        if old || self.source() == EnergySource::PowerIntegration {
            match self.power() {
                Err(error) if error.ends_sampling() => return Err(error),
                _ => {}
            }
        }
        match counter {
            Ok(counter) => self.look(Some(counter)),
            Err(error) if !error.is_missing_sensor() => return Err(error),
            Err(_) => self.look(None),
        }
        let total = self.judged.borrow().energy.total();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, and finite"
        )]
        let total = total.map(|joules| Millijoules((joules * 1e3) as u64));
        self.believed(total, "energy")
    }
}
