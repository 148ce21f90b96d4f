//! What the sensors of the group's GPUs showed last.

use serde::{Deserialize, Serialize};

use super::GpuTick;
use crate::gpu::{ClockReasons, GpuReading};
use crate::park::sample::Activity;
use crate::park::wake::Running;
use crate::reward::energy::{EnergyMeter, EnergyPoint, group_power};
use crate::units::{Joules, Mhz, Time, Watts};

/// The latest of each GPU, always in the same order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Readings {
    meters: Vec<EnergyMeter>,
    /// `None` where a GPU could not be read.
    latest: Vec<Option<GpuReading>>,
    read_at: Vec<Option<Time>>,
}

impl Readings {
    /// Of so many GPUs, none of them read yet.
    pub(super) fn new(gpus: usize) -> Self {
        Self {
            meters: vec![EnergyMeter::default(); gpus],
            latest: vec![None; gpus],
            read_at: vec![None; gpus],
        }
    }

    /// Is there as much of each kind?
    pub(super) fn is_sound(&self) -> bool {
        self.latest.len() == self.meters.len() && self.read_at.len() == self.meters.len()
    }

    /// Takes what each GPU gave since the previous step.
    pub(super) fn take(&mut self, gpus: &[GpuTick]) {
        for (index, (meter, gpu)) in self.meters.iter_mut().zip(gpus).enumerate() {
            self.latest[index] = gpu.reading;
            self.read_at[index] = gpu.read_at;
            gpu.energy.iter().for_each(|point| meter.push(*point));
        }
    }

    /// The energy counters.
    pub(super) fn meters(&self) -> &[EnergyMeter] {
        &self.meters
    }

    /// The first GPU's.
    pub(super) fn first(&self) -> Option<&GpuReading> {
        self.latest.first()?.as_ref()
    }

    /// Those that are known.
    fn known(&self) -> impl Iterator<Item = &GpuReading> {
        self.latest.iter().flatten()
    }

    /// Those that are known and say when they were read, each with its GPU's place in the group.
    pub(super) fn timed(&self) -> impl Iterator<Item = (usize, &GpuReading, Time)> {
        let each = self.latest.iter().zip(&self.read_at).enumerate();
        each.filter_map(|(member, (reading, at))| Some((member, reading.as_ref()?, (*at)?)))
    }

    /// Mean power of all GPUs together, by their energy counters.
    pub(super) fn power(&self, from: Time, to: Time) -> Option<Watts> {
        group_power(&self.meters, from, to).map(|(power, _)| power)
    }

    /// The energy counters of all GPUs, as last read.
    pub(super) fn counter(&self) -> Option<EnergyPoint> {
        let newest: Option<Vec<EnergyPoint>> = self.meters.iter().map(EnergyMeter::newest).collect();
        let newest = newest.filter(|points| !points.is_empty())?;
        let at = newest.iter().map(|point| point.at.0).fold(f64::INFINITY, f64::min);
        Some(EnergyPoint { at: Time(at), total: Joules(newest.iter().map(|point| point.total.0).sum()) })
    }

    /// Is this so of what holds a GPU's clock down?
    pub(super) fn any(&self, is_so: fn(ClockReasons) -> bool) -> bool {
        self.known().any(|reading| is_so(reading.reasons()))
    }

    /// Mean over the GPUs that tell.
    pub(super) fn mean_core_clock(&self) -> Option<Mhz> {
        let clocks: Vec<f64> = self.known().filter_map(|r| r.core_clock).map(Mhz::as_f64).collect();
        #[expect(clippy::cast_precision_loss, reason = "a handful of GPUs")]
        let count = clocks.len() as f64;
        (!clocks.is_empty()).then(|| to_mhz(clocks.iter().sum::<f64>() / count))
    }

    pub(super) fn activity(&self) -> Activity {
        // One that does not tell may be the one that works.
        let all = |value: fn(&GpuReading) -> Option<f64>| {
            let all: Option<Vec<f64>> = self.latest.iter().map(|r| r.as_ref().and_then(value)).collect();
            all.filter(|values| !values.is_empty())
        };
        Activity {
            power: all(|reading| reading.power.map(|power| power.0)).map(|all| Watts(all.iter().sum())),
            utilization_percent: all(|reading| reading.utilization_percent)
                .and_then(|all| all.into_iter().max_by(f64::total_cmp)),
        }
    }

    /// Of the hottest GPU, degrees Celsius.
    pub(super) fn hottest(&self) -> Option<f64> {
        self.known().filter_map(|reading| reading.temperature_c).max_by(f64::total_cmp)
    }

    /// The slowest clocks of the group: what work waits for.
    pub(super) fn slowest(&self) -> Running {
        let lowest = |clock: fn(&GpuReading) -> Option<Mhz>| {
            self.latest.iter().map(|reading| reading.as_ref().and_then(clock)).min().flatten()
        };
        Running { core: lowest(|reading| reading.core_clock), memory: lowest(|reading| reading.memory_clock) }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to u32 first")]
pub(super) fn to_mhz(value: f64) -> Mhz {
    Mhz(value.clamp(0.0, f64::from(u32::MAX)).round() as u32)
}
