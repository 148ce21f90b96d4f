//! The thread that asks a GPU's sensors, each only when it is wanted: a call that hangs holds up no other group.

use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::daemon::watch::Pulse;
use crate::gpu::{GpuError, GpuSensors};
use crate::park::sample::{Sensor, Sensors};
use crate::park::wake::Running;
use crate::units::{Millijoules, Watts};

/// What the sensors said that were asked; `None` where one is missing or failed for the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Readings {
    /// Percent.
    pub(super) utilization: Option<f64>,
    /// Degrees Celsius.
    pub(super) temperature: Option<f64>,
    pub(super) power: Option<Watts>,
    pub(super) energy: Option<Millijoules>,
    pub(super) running: Running,
}

/// The way to the thread. Dropped, it ends when its last call has come back.
pub(super) struct Probe {
    asked: Sender<Sensors>,
    answers: UnboundedReceiver<Result<Readings, GpuError>>,
    pulse: Pulse,
}

impl Probe {
    /// Starts the thread, which opens what it reads.
    pub(super) fn spawn(
        open: impl FnOnce() -> Box<dyn GpuSensors> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (asked, questions) = channel();
        let (sent, answers) = unbounded_channel();
        let pulse = Pulse::new();
        let theirs = pulse.clone();
        std::thread::Builder::new()
            .name("agft-sensors".into())
            .spawn(move || serve(open().as_ref(), &questions, &sent, &theirs))?;
        Ok(Self { asked, answers, pulse })
    }

    /// Marked while a sensor is asked.
    pub(super) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Asks these sensors. Where the thread has ended nothing can be read.
    /// Errors: [`GpuError`] after which the GPU is not read any more.
    pub(super) async fn ask(&mut self, wanted: Sensors) -> Result<Readings, GpuError> {
        // An answer that nobody waited for is of an earlier question.
        while self.answers.try_recv().is_ok() {}
        if self.asked.send(wanted).is_err() {
            return Ok(Readings::default());
        }
        self.answers.recv().await.unwrap_or(Ok(Readings::default()))
    }
}

fn serve(
    sensors: &dyn GpuSensors,
    questions: &Receiver<Sensors>,
    answers: &UnboundedSender<Result<Readings, GpuError>>,
    pulse: &Pulse,
) {
    while let Ok(wanted) = questions.recv() {
        pulse.mark();
        let readings = read(sensors, wanted);
        pulse.rest();
        if answers.send(readings).is_err() {
            return;
        }
    }
}

fn read(sensors: &dyn GpuSensors, wanted: Sensors) -> Result<Readings, GpuError> {
    fn ask<T>(
        sensors: &dyn GpuSensors,
        is_wanted: bool,
        question: impl FnOnce(&dyn GpuSensors) -> Result<T, GpuError>,
    ) -> Result<Option<T>, GpuError> {
        if !is_wanted {
            return Ok(None);
        }
        match question(sensors) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.ends_sampling() => Err(error),
            Err(error) => {
                tracing::debug!(gpu = %sensors.info(), %error, "no answer");
                Ok(None)
            }
        }
    }
    Ok(Readings {
        utilization: ask(sensors, wanted.has(Sensor::Utilization), |s| s.utilization())?,
        temperature: ask(sensors, wanted.has(Sensor::Temperature), |s| s.temperature())?,
        power: ask(sensors, wanted.has(Sensor::Power), |s| s.power())?,
        energy: ask(sensors, wanted.has(Sensor::Energy), |s| s.energy())?,
        running: Running {
            core: ask(sensors, wanted.has(Sensor::CoreClock), |s| s.core_clock())?,
            memory: ask(sensors, wanted.has(Sensor::MemoryClock), |s| s.memory_clock())?,
        },
    })
}
