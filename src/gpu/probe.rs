//! How fast a GPU's sensors really are: how often their values change, and what asking costs. Reads only.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::plausible::{
    EnergyJudge, EnergySource, PowerJudge, highest_limit, is_temperature, is_utilization, usable_limit,
};
use super::{GpuError, GpuInfo, GpuSensors};
use crate::stats::nearest_rank;
use crate::units::Time;

/// Pause between two rounds of questions: short against every known sensor period, and kind to the driver.
const PAUSE: Duration = Duration::from_millis(1);
/// A whole reading is several calls: asked once in so many rounds, it does not blur the others' periods.
const ROUNDS_PER_READING: u32 = 16;

/// Median and 95th percentile of a set of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of them are at most this.
    pub median: f64,
    /// 95 of 100 are at most this.
    pub p95: f64,
}

impl Spread {
    /// Nearest-rank percentiles; `None` of nothing.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        Some(Self { median: nearest_rank(&values, 50)?, p95: nearest_rank(&values, 95)? })
    }
}

/// What was seen of one sensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SensorReport {
    /// Times it was asked.
    pub calls: usize,
    /// Times its value was another than before.
    pub changes: usize,
    /// Time between two changes, milliseconds; `None` if there were fewer than two.
    pub period_ms: Option<Spread>,
    /// Time one question takes, microseconds.
    pub(crate) cost_us: Option<Spread>,
}

/// What was seen of one GPU. A sensor that the board lacks is `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// The GPU.
    pub gpu: GpuInfo,
    /// How long it was watched.
    pub duration_s: f64,
    /// The total-energy counter: its period is the tick that energy windows should end on.
    pub energy: Option<SensorReport>,
    /// The power sensor.
    pub power: Option<SensorReport>,
    /// Time a whole reading takes, microseconds.
    pub(crate) reading_cost_us: Option<Spread>,
}

/// The answers of one sensor so far.
#[derive(Debug, Default)]
struct Watch {
    last: Option<u64>,
    changed_at_ms: Option<f64>,
    changes: usize,
    periods_ms: Vec<f64>,
    costs_us: Vec<f64>,
}

impl Watch {
    /// Takes an answer, as bits to compare, that came at `at_ms`.
    fn saw(&mut self, value: u64, at_ms: f64, cost_us: f64) {
        self.costs_us.push(cost_us);
        let changed = self.last.replace(value).is_some_and(|last| last != value);
        if changed {
            self.changes += 1;
            // The first change only starts the clock: how long the value had stood before is not known.
            if let Some(before) = self.changed_at_ms.replace(at_ms) {
                self.periods_ms.push(at_ms - before);
            }
        }
    }

    /// Asks the sensor; a missing one, and one that fails for the moment, gives nothing to see.
    fn ask(
        &mut self,
        start: Instant,
        question: impl FnOnce() -> Result<u64, GpuError>,
    ) -> Result<(), GpuError> {
        let asked = Instant::now();
        let answer = question();
        let cost_us = asked.elapsed().as_secs_f64() * 1e6;
        match answer {
            Ok(value) => self.saw(value, start.elapsed().as_secs_f64() * 1e3, cost_us),
            Err(error) if error.ends_sampling() => return Err(error),
            Err(_) => {}
        }
        Ok(())
    }

    fn report(self) -> Option<SensorReport> {
        let calls = self.costs_us.len();
        (calls > 0).then(|| SensorReport {
            calls,
            changes: self.changes,
            period_ms: Spread::of(self.periods_ms),
            cost_us: Spread::of(self.costs_us),
        })
    }
}

/// Watches a GPU's sensors for `duration`, on this thread. Writes nothing to the GPU.
///
/// A value that happens not to change from one tick to the next (the power of a steady load) makes the period look
/// longer than it is.
/// Errors: [`GpuError::Lost`] and the like. A missing sensor is a `None` field.
pub fn probe(sensors: &dyn GpuSensors, duration: Duration) -> Result<ProbeReport, GpuError> {
    let (mut energy, mut power) = (Watch::default(), Watch::default());
    let mut reading_costs = Vec::new();
    let start = Instant::now();
    for round in 0_u32.. {
        energy.ask(start, || sensors.energy().map(|energy| energy.0))?;
        power.ask(start, || sensors.power().map(|power| power.0.to_bits()))?;
        if round % ROUNDS_PER_READING == 0 {
            let asked = Instant::now();
            sensors.reading()?;
            reading_costs.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        if start.elapsed() >= duration {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(ProbeReport {
        gpu: sensors.info().clone(),
        duration_s: start.elapsed().as_secs_f64(),
        energy: energy.report(),
        power: power.report(),
        reading_cost_us: Spread::of(reading_costs),
    })
}

/// Time between two looks of [`judge`], and how long it looks at most: longer than a counter may stand still.
const JUDGE_EVERY: Duration = Duration::from_millis(20);
const JUDGED_FOR: Duration = Duration::from_millis(2200);
/// A counter that ticked so often in the first [`JUDGED_AT_LEAST`] is one.
const TICKS: u32 = 5;
const JUDGED_AT_LEAST: Duration = Duration::from_millis(700);

/// What a short look says of a GPU's sensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// Where energy would come from.
    pub source: EnergySource,
    /// Is there an energy counter at all?
    pub counter: bool,
    /// What is not believed, what was read, and what decides instead.
    pub(crate) doubts: Vec<String>,
}

/// `None` for a sensor that is missing or fails for the moment.
fn present<T>(answer: Result<T, GpuError>) -> Result<Option<T>, GpuError> {
    match answer {
        Err(error) if error.ends_sampling() => Err(error),
        answer => Ok(answer.ok()),
    }
}

/// Looks for two seconds at most, as a run would judge. Writes nothing to the GPU.
/// Errors: [`GpuError::Lost`] and the like; a sensor that the board lacks is not an error.
pub(crate) fn judge(sensors: &dyn GpuSensors) -> Result<Judgement, GpuError> {
    let limit = usable_limit(highest_limit(sensors.info()));
    let (mut energy, mut power_judge) = (EnergyJudge::new(Some(limit)), PowerJudge::new(Some(limit)));
    let mut doubts = Vec::new();
    let (mut last, mut ticks, mut counter, mut wrong_power) = (None, 0, false, None);
    let start = Instant::now();
    while start.elapsed() < JUDGED_FOR
        && (ticks < TICKS || start.elapsed() < JUDGED_AT_LEAST || power_judge.is_above())
    {
        let now = || Time(start.elapsed().as_secs_f64());
        if let Some(power) = present(sensors.power())? {
            if power_judge.believes(now(), power) {
                energy.on_power(now(), power);
            } else {
                wrong_power.get_or_insert(power);
            }
        }
        let value = present(sensors.energy())?;
        counter |= value.is_some();
        ticks += u32::from(last.replace(value).is_some_and(|last| last != value));
        if let Some(change) = energy.on_counter(now(), value) {
            let decides = change.source.words();
            let what = if change.before == EnergySource::Counter { "energy counter" } else { "power" };
            doubts.push(format!("{what} not believed: {}; {decides} decides instead", change.why));
        }
        std::thread::sleep(JUDGE_EVERY);
    }
    if let Some(power) = wrong_power {
        doubts.push(format!("power of {power} not believed, on a board with a limit of {limit}"));
    }
    let reading = sensors.reading()?;
    if let Some(percent) = reading.utilization_percent.filter(|percent| !is_utilization(*percent)) {
        doubts.push(format!("utilisation of {percent} % not believed"));
    }
    if let Some(celsius) = reading.temperature_c.filter(|celsius| !is_temperature(*celsius)) {
        doubts.push(format!("temperature of {celsius} degrees Celsius not believed"));
    }
    Ok(Judgement { source: energy.source(), counter, doubts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_one_to_hundred_are_their_own_rank() {
        let spread = Spread::of((1..=100).rev().map(f64::from).collect());
        assert_eq!(spread, Some(Spread { median: 50.0, p95: 95.0 }));
    }

    #[test]
    fn percentiles_of_one_value_are_that_value_and_of_none_nothing() {
        assert_eq!(Spread::of(vec![7.0]), Some(Spread { median: 7.0, p95: 7.0 }));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn counter_that_ticks_every_20_ms_has_a_period_of_20_ms() {
        let mut watch = Watch::default();
        for ms in 0..200_u32 {
            watch.saw(u64::from(ms / 20), f64::from(ms), 3.0);
        }
        let report = watch.report().expect("200 answers");
        assert_eq!((report.calls, report.changes), (200, 9));
        assert_eq!(report.period_ms, Some(Spread { median: 20.0, p95: 20.0 }));
        assert_eq!(report.cost_us, Some(Spread { median: 3.0, p95: 3.0 }));
    }

    #[test]
    fn value_that_changed_once_has_no_period() {
        let mut watch = Watch::default();
        [1, 1, 2, 2].iter().for_each(|value| watch.saw(*value, 0.0, 1.0));
        let report = watch.report().expect("4 answers");
        assert_eq!((report.changes, report.period_ms), (1, None));
    }

    #[test]
    fn sensor_never_answered_has_no_report() {
        assert_eq!(Watch::default().report(), None);
    }
}
