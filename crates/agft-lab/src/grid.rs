//! Which servers under which loads: the suites, and grids by name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::LabError;
use super::traces;
use crate::sim::dice::Dice;
use crate::sim::{
    Arrivals, EngineSettings, FrontEnd, GpuPreset, Lengths, ModelPreset, Pattern, Physics, Request, SimError,
    Workload, WorldSpec,
};
use agft::units::Seconds;

/// Where the requests come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A seeded generator.
    Pattern(Pattern),
    /// The Azure conversation trace of 2023.
    Azure,
    /// The synthetic Mooncake trace.
    Mooncake,
    /// Code completion, made after the Azure code trace of 2023: long prompts, short answers, minutes of silence.
    Code,
    /// A trace of the user's.
    Given(Arc<GivenTrace>),
}

/// A trace of the user's.
#[derive(Debug, Clone, PartialEq)]
pub struct GivenTrace {
    /// What to call it.
    pub name: String,
    /// Its requests, the first at time zero.
    pub requests: Vec<Request>,
    /// How many times faster than recorded; `None`: so that the load is the wanted share of the capacity.
    pub speed: Option<f64>,
}

impl Source {
    /// The traces' share of the capacity.
    const TRACE_UTILIZATION: f64 = 0.3;
    /// The code load's: half of the capacity in its bursts.
    const CODE_UTILIZATION: f64 = 0.15;

    /// Share of the capacity that this load asks for in the mean, unless told otherwise.
    #[must_use]
    pub fn utilization(&self) -> f64 {
        match self {
            Self::Pattern(pattern) => pattern.utilization(),
            Self::Code => Self::CODE_UTILIZATION,
            Self::Azure | Self::Mooncake | Self::Given(_) => Self::TRACE_UTILIZATION,
        }
    }

    /// Does the load change its nature while it runs?
    #[must_use]
    pub fn is_changing(&self) -> bool {
        match self {
            Self::Pattern(pattern) => {
                matches!(pattern, Pattern::PhaseShift | Pattern::Bursty | Pattern::Diurnal)
            }
            Self::Azure | Self::Mooncake | Self::Code | Self::Given(_) => true,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern(pattern) => pattern.fmt(f),
            Self::Azure => f.write_str("azure"),
            Self::Mooncake => f.write_str("mooncake"),
            Self::Code => f.write_str("code"),
            Self::Given(trace) => f.write_str(&trace.name),
        }
    }
}

impl FromStr for Source {
    type Err = LabError;

    fn from_str(name: &str) -> Result<Self, LabError> {
        match name.to_ascii_lowercase().as_str() {
            "azure" => Ok(Self::Azure),
            "mooncake" => Ok(Self::Mooncake),
            "code" => Ok(Self::Code),
            _ => name.parse().map(Self::Pattern).map_err(|error| match error {
                SimError::UnknownName { kind, given, known } => {
                    SimError::UnknownName { kind, given, known: format!("{known}, azure, mooncake, code") }
                        .into()
                }
                other => other.into(),
            }),
        }
    }
}

/// A server and its load.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// The GPU.
    pub gpu: GpuPreset,
    /// The model.
    pub model: ModelPreset,
    /// The requests.
    pub source: Source,
    /// Share of the capacity at default clocks; `None`: what the source stands for.
    pub utilization: Option<f64>,
    /// Shift every constant by factors that the seed decides?
    pub shifted: bool,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}", self.gpu.key, self.model.key, self.source)
    }
}

/// A world, and where its load changes.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Server, GPU and arrivals.
    pub world: WorldSpec,
    /// The moments at which the load changes its nature.
    pub turns: Vec<f64>,
}

impl Load {
    /// A load by its names.
    ///
    /// # Errors
    /// [`LabError`], naming what is unknown and what is known.
    pub fn named(gpu: &str, model: &str, source: Source) -> Result<Self, LabError> {
        let (gpu, model) = (GpuPreset::named(gpu)?, ModelPreset::named(model)?);
        Ok(Self { gpu, model, source, utilization: None, shifted: false })
    }

    /// What is simulated for a run of this length under this seed.
    ///
    /// # Errors
    /// [`SimError`] if the model does not fit the GPU.
    pub fn stage(&self, seconds: f64, seed: u64) -> Result<Stage, SimError> {
        let (mut gpu, model, mut engine) = (self.gpu, self.model, EngineSettings::default());
        let mut utilization = self.utilization.unwrap_or_else(|| self.source.utilization());
        let mut shift = Shift::new(self, seed);
        if self.shifted {
            shift.board(&mut gpu);
            shift.engine(&mut engine);
            utilization *= shift.factor(0.7, 1.3);
        }
        let (arrivals, turns) = match &self.source {
            Source::Pattern(pattern) => {
                let mut load = Workload::sized(*pattern, &gpu, &model, &engine, utilization)?;
                if self.shifted {
                    // Sized again, so that longer requests come less often.
                    let shapes: Vec<_> = load.phases.iter().map(|phase| phase.shape).collect();
                    let (prompts, outputs) = (shift.factor(0.6, 1.5), shift.factor(0.6, 1.5));
                    for (phase, mut shape) in load.phases.iter_mut().zip(shapes) {
                        lengthen(&mut shape.prompt, prompts);
                        lengthen(&mut shape.output, outputs);
                        phase.shape = shape;
                        phase.seconds *= shift.factor(0.6, 1.4);
                    }
                    load.size(&gpu, &model, &engine, utilization)?;
                }
                let turns = load.turns(seconds, seed);
                (Arrivals::Open(load), turns)
            }
            Source::Code => {
                let mut load = Workload::code();
                load.size(&gpu, &model, &engine, utilization)?;
                let turns = load.turns(seconds, seed);
                (Arrivals::Open(load), turns)
            }
            Source::Azure | Source::Mooncake | Source::Given(_) => {
                let speed = match &self.source {
                    Source::Given(trace) => trace.speed,
                    _ => None,
                };
                let fit = traces::Fit { gpu: &gpu, model: &model, engine: &engine, utilization, speed };
                let requests = match &self.source {
                    Source::Azure => traces::azure(),
                    Source::Mooncake => traces::mooncake(),
                    Source::Given(trace) => &trace.requests,
                    Source::Pattern(_) | Source::Code => &[],
                };
                let turns = (1..10_000).map(|k| 30.0 * f64::from(k)).take_while(|at| *at < seconds).collect();
                (Arrivals::Listed(fit.requests(requests, seconds, seed)?), turns)
            }
        };
        let world = WorldSpec { gpu, model, engine, arrivals, front: FrontEnd::default() };
        Ok(Stage { world, turns })
    }
}

fn lengthen(lengths: &mut Lengths, factor: f64) {
    lengths.median *= factor;
    lengths.max = f64_to_tokens(f64::from(lengths.max) * factor);
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a length of a request")]
fn f64_to_tokens(value: f64) -> u32 {
    value.max(1.0) as u32
}

/// Seeded factors for the constants of the held-out suite.
struct Shift(Dice);

impl Shift {
    fn new(load: &Load, seed: u64) -> Self {
        Self(Dice::new(seed, &format!("held out {load}")))
    }

    fn factor(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.0.uniform()
    }

    fn board(&mut self, gpu: &mut GpuPreset) {
        let p = &mut gpu.power;
        for coefficient in [
            &mut p.base,
            &mut p.memory_idle,
            &mut p.core_idle,
            &mut p.active,
            &mut p.dram,
            &mut p.core,
            &mut p.stall,
            &mut gpu.voltage.rise,
            &mut gpu.on_chip,
        ] {
            *coefficient *= self.factor(0.75, 1.25);
        }
        gpu.power.stall = gpu.power.stall.min(1.0);
        if let Physics::Measured(measured) = &mut gpu.physics {
            let tilt = &mut measured.tilt;
            for exponent in [&mut tilt.prefill, &mut tilt.decode, &mut tilt.power] {
                *exponent *= self.factor(0.75, 1.25);
            }
            tilt.watts *= self.factor(0.9, 1.1);
        }
    }

    fn engine(&mut self, engine: &mut EngineSettings) {
        engine.host_per_step = Seconds(engine.host_per_step.0 * self.factor(0.5, 2.0));
        engine.host_per_request = Seconds(engine.host_per_request.0 * self.factor(0.5, 2.0));
    }
}

/// A named list of loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// What the learner is tuned on.
    Standard,
    /// Other pairs and patterns, with shifted constants: nothing is tuned on these.
    HeldOut,
    /// Loads that change their nature while they run.
    Changing,
    /// Boards whose steps cost what was measured.
    Measured,
    /// Other pairs and patterns on these boards, with shifted constants.
    MeasuredHeldOut,
}

impl FromStr for Suite {
    type Err = LabError;

    fn from_str(name: &str) -> Result<Self, LabError> {
        match name.to_ascii_lowercase().as_str() {
            "standard" => Ok(Self::Standard),
            "held-out" => Ok(Self::HeldOut),
            "changing" => Ok(Self::Changing),
            "measured" => Ok(Self::Measured),
            "measured-held-out" => Ok(Self::MeasuredHeldOut),
            _ => Err(LabError::UnknownName {
                kind: "suite",
                given: name.to_owned(),
                known: "standard, held-out, changing, measured, measured-held-out",
            }),
        }
    }
}

const STANDARD: [(&str, &str, &str); 22] = [
    ("a6000", "3b", "steady"),
    ("a6000", "3b", "phase-shift"),
    ("a100", "8b", "steady"),
    ("a100", "8b", "phase-shift"),
    ("h100", "14b", "long-context"),
    ("rtx3090", "3b", "bursty"),
    ("a40", "8b", "on-off"),
    ("a6000", "8b", "prefill-heavy"),
    ("h100", "8b", "light"),
    ("rtx5090", "8b", "steady"),
    ("h200", "14b", "high-concurrency"),
    ("l40s", "8b", "diurnal"),
    ("rtx4090", "3b", "long-generation"),
    ("a100", "14b", "high-cache-hit"),
    ("l40s", "8b", "long-context"),
    ("rtx3090", "8b", "prefill-heavy"),
    ("rtx5090", "3b", "phase-shift"),
    ("a40", "3b", "bursty"),
    ("a100", "8b", "azure"),
    ("rtx4090", "3b", "azure"),
    ("h100", "8b", "mooncake"),
    ("h200", "14b", "mooncake"),
];

const HELD_OUT: [(&str, &str, &str); 16] = [
    ("h100", "3b", "steady"),
    ("l40s", "14b", "steady"),
    ("h200", "8b", "phase-shift"),
    ("rtx4090", "3b", "phase-shift"),
    ("a100", "3b", "bursty"),
    ("l40s", "3b", "bursty"),
    ("rtx5090", "8b", "diurnal"),
    ("a40", "8b", "diurnal"),
    ("h100", "8b", "on-off"),
    ("rtx3090", "3b", "long-generation"),
    ("a6000", "14b", "long-context"),
    ("rtxpro6000", "14b", "high-concurrency"),
    ("h200", "8b", "high-cache-hit"),
    ("rtx4090", "8b", "light"),
    ("l40s", "8b", "azure"),
    ("rtxpro6000", "8b", "mooncake"),
];

const MEASURED: [(&str, &str, &str); 8] = [
    ("rtx3090-measured", "3b", "steady"),
    ("rtx4090-measured", "8b", "bursty"),
    ("rtx5090-measured", "8b", "phase-shift"),
    ("rtxpro6000-measured", "14b", "long-generation"),
    ("rtx3090-measured", "8b", "prefill-heavy"),
    ("rtx5090-measured", "3b", "light"),
    ("rtx4090-measured", "3b", "azure"),
    ("rtxpro6000-measured", "8b", "diurnal"),
];

const MEASURED_HELD_OUT: [(&str, &str, &str); 8] = [
    ("rtx4090-measured", "3b", "steady"),
    ("rtx5090-measured", "3b", "bursty"),
    ("rtx3090-measured", "3b", "phase-shift"),
    ("rtx4090-measured", "8b", "long-generation"),
    ("rtxpro6000-measured", "14b", "prefill-heavy"),
    ("rtxpro6000-measured", "8b", "light"),
    ("rtx3090-measured", "8b", "azure"),
    ("rtx5090-measured", "8b", "diurnal"),
];

const MORE_CHANGING: [(&str, &str, &str); 2] = [("h100", "8b", "diurnal"), ("a100", "8b", "bursty")];

impl Suite {
    /// Its loads.
    ///
    /// # Errors
    /// None in practice: a test holds that every name is known.
    pub fn loads(self) -> Result<Vec<Load>, LabError> {
        let load = |(gpu, model, source): &(&str, &str, &str)| Load::named(gpu, model, source.parse()?);
        let shifted = |names: &(&str, &str, &str)| Ok(Load { shifted: true, ..load(names)? });
        match self {
            Self::Standard => STANDARD.iter().map(load).collect(),
            Self::HeldOut => HELD_OUT.iter().map(shifted).collect(),
            Self::Measured => MEASURED.iter().map(load).collect(),
            Self::MeasuredHeldOut => MEASURED_HELD_OUT.iter().map(shifted).collect(),
            Self::Changing => {
                let all: Result<Vec<Load>, LabError> =
                    STANDARD.iter().chain(&MORE_CHANGING).map(load).collect();
                Ok(all?.into_iter().filter(|load| load.source.is_changing()).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agft::units::Time;

    #[test]
    fn every_load_of_every_suite_can_be_simulated() {
        for suite in
            [Suite::Standard, Suite::HeldOut, Suite::Changing, Suite::Measured, Suite::MeasuredHeldOut]
        {
            for load in suite.loads().unwrap() {
                let stage = load.stage(30.0, 1).unwrap();
                let mut world = crate::sim::World::new(stage.world, 1).unwrap();
                world.advance(Time(30.0));
                assert!(world.rejected().is_empty(), "{load}");
            }
        }
    }

    #[test]
    fn held_out_loads_share_no_server_and_pattern_with_the_tuned_ones_and_differ_by_seed() {
        let of = |suites: [Suite; 2]| suites.into_iter().flat_map(|suite| suite.loads().unwrap());
        let tuned: Vec<Load> = of([Suite::Standard, Suite::Measured]).collect();
        for load in of([Suite::HeldOut, Suite::MeasuredHeldOut]) {
            assert!(tuned.iter().all(|other| other.to_string() != load.to_string()), "{load}");
            let gpu = |seed| load.stage(30.0, seed).unwrap().world.gpu;
            assert_ne!(gpu(1).power, gpu(2).power);
            assert!(gpu(1).physics != gpu(2).physics || gpu(1).physics == Physics::Formula, "{load}");
            assert_eq!(gpu(1), gpu(1));
            let ratio = gpu(1).power.core / load.gpu.power.core;
            assert!((0.75..=1.25).contains(&ratio), "{load}: {ratio}");
        }
    }

    #[test]
    fn turns_of_a_phase_shift_are_its_phases_and_of_a_steady_load_there_are_none() {
        let turns = |workload: &str| {
            Load::named("a100", "8b", workload.parse().unwrap()).unwrap().stage(200.0, 3).unwrap().turns
        };
        assert_eq!(turns("phase-shift"), [60.0, 120.0, 180.0]);
        assert_eq!(turns("steady"), [0.0; 0]);
        assert_eq!(turns("on-off")[..4], [20.0, 30.0, 50.0, 60.0]);
        assert!(turns("bursty").len() > 3);
    }
}
