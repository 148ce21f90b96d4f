//! What parking saves and what it costs in latency: every rule on the same arrivals, against no parking at all and against
//! whoever knew every arrival beforehand.
//!
//! While work is there all run at driver-default clocks, so that nothing but parking differs. The server has a front end
//! ([`FRONT_END_DELAY`]), and its requests come over connections, which the rules see as the daemons do.

pub mod figures;
pub mod foresight;
pub mod pilot;
pub mod policy;
pub mod report;

use rayon::prelude::*;

use super::LabError;
use super::experiment::{for_each_cell, supported};
use super::grid::{Load, Source};
use super::policy::as_configured;
use crate::sim::record::RunRecord;
use crate::sim::run::{Driver, Onlooker, RunError, RunSpec, run};
use crate::sim::{FrontEnd, Pattern};
use agft::compose::park::locks;
use agft::compose::top;
use agft::config::{Config, PolicyKind};
use agft::control::{Controller, Observation, Output};
use agft::gpu::SupportedClocks;
use agft::park::levers::{Lever, LeverKind};
use agft::units::{Clocks, Mhz, Seconds};

use figures::{Against, Figures};
use foresight::Foresight;
use pilot::Pilot;
use policy::ParkPolicy;

/// From the first byte of a request until the engine has it. HTTP and the tokeniser of vLLM's API server take 2-10 ms: in
/// this time a watcher of connections may already raise the clocks. The lower end, so that it is not flattered.
pub const FRONT_END_DELAY: Seconds = Seconds(0.003);

/// What to compare.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Loads.
    pub loads: Vec<Load>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Shares of requests that open a connection of their own; each is a comparison of its own.
    pub fresh_connections: Vec<f64>,
    /// The rules.
    pub policies: Vec<ParkPolicy>,
    /// Length of a run, seconds.
    pub seconds: f64,
    /// Configuration: its section `park` for [`ParkPolicy::Rule`], `idle` and `gpu` for the engine's daemon.
    pub config: Config,
}

/// One rule in one cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The load.
    pub load: Load,
    /// The seed.
    pub seed: u64,
    /// Share of requests that open a connection of their own.
    pub fresh_connections: f64,
    /// The rule.
    pub policy: ParkPolicy,
    /// What it came to.
    pub figures: Figures,
    /// That, beside the same arrivals without parking.
    pub against: Against,
}

/// The loads that have gaps to park in: chat on and off and a conversation trace, both at a small share of the capacity, and
/// code completion in bursts; each on two boards with memory clocks to lower and on one without.
///
/// # Errors
/// None in practice: a test holds that every name is known.
pub fn loads() -> Result<Vec<Load>, LabError> {
    let mut loads = Vec::new();
    for (source, utilization) in [
        // At the share that the suites ask for, requests overlap all the time and leave hardly a gap.
        (Source::Pattern(Pattern::OnOff), Some(0.05)),
        (Source::Azure, Some(0.03)),
        (Source::Code, None),
    ] {
        for gpu in ["a40", "l40s", "h100"] {
            loads.push(Load { utilization, ..Load::named(gpu, "8b", source.clone())? });
        }
    }
    Ok(loads)
}

impl Trial {
    /// Runs of the simulator that it takes.
    #[must_use]
    pub fn pieces(&self) -> usize {
        let each =
            |policy: &ParkPolicy| if policy.sees_connections() { self.fresh_connections.len() } else { 1 };
        // No parking and the clairvoyant are always run.
        let policies: usize = self.policies.iter().filter(|policy| !policy.is_reference()).map(each).sum();
        self.loads.len() * self.seeds.len() * (2 + policies)
    }

    /// Tries every load with every seed on `jobs` threads (0: one per core), calling `done` after each run.
    ///
    /// # Errors
    /// The first [`LabError`] in the order of the cells.
    pub fn run(&self, jobs: usize, done: impl Fn() + Sync) -> Result<Vec<Outcome>, LabError> {
        let cells = for_each_cell(&self.loads, &self.seeds, jobs, |load, seed| self.cell(load, seed, &done))?;
        Ok(cells.into_iter().flatten().collect())
    }

    fn cell(&self, load: &Load, seed: u64, done: &(impl Fn() + Sync)) -> Result<Vec<Outcome>, RunError> {
        let mut world = load.stage(self.seconds, seed)?.world;
        world.front = FrontEnd { delay: FRONT_END_DELAY, ..FrontEnd::default() };
        let tick = self.config.control.decision_interval_s;
        let stage = Stage {
            supported: supported(&world, seed)?,
            config: &self.config,
            spec: RunSpec { world, seed, seconds: Seconds(self.seconds), tick },
        };
        let never = stage.run(ParkPolicy::Never, None)?;
        done();
        let best = stage.run(ParkPolicy::Clairvoyant, Some(&never))?;
        done();
        let mut wanted: Vec<(ParkPolicy, f64)> = Vec::new();
        for policy in &self.policies {
            let shares: &[f64] = if policy.sees_connections() { &self.fresh_connections } else { &[1.0] };
            wanted.extend(shares.iter().map(|share| (*policy, *share)));
        }
        let outcomes: Vec<Result<Outcome, RunError>> = wanted
            .into_par_iter()
            .map(|(policy, fresh_connections)| {
                let own;
                let record = match policy {
                    ParkPolicy::Never => &never,
                    ParkPolicy::Clairvoyant => &best,
                    _ => {
                        own = stage.with_connections(fresh_connections).run(policy, Some(&never))?;
                        done();
                        &own
                    }
                };
                Ok(Outcome {
                    load: load.clone(),
                    seed,
                    fresh_connections,
                    policy,
                    figures: Figures::of(record),
                    against: Against::of(record, &never, &best),
                })
            })
            .collect();
        outcomes.into_iter().collect()
    }
}

/// Shows a controller the connections.
struct Connected;

impl Onlooker for Connected {
    fn look(&mut self, _: &Observation, _: &Output, _: &Controller) {}

    fn shows_connections(&self) -> bool {
        true
    }
}

/// A cell's world and what it is run with.
#[derive(Clone)]
struct Stage<'a> {
    config: &'a Config,
    spec: RunSpec,
    supported: SupportedClocks,
}

impl Stage<'_> {
    fn with_connections(&self, fresh: f64) -> Self {
        let mut stage = self.clone();
        stage.spec.world.front.fresh_connections = fresh;
        stage
    }

    /// `never` is the run without parking, of which the clairvoyants know.
    fn run(&self, policy: ParkPolicy, never: Option<&RunRecord>) -> Result<RunRecord, RunError> {
        // Nothing is tried out here: the deepest that is allowed.
        let lever = locks(&self.config.park, &self.supported).last().copied();
        let core = Clocks::core_only(self.supported.core_min());
        let lever = lever.unwrap_or(Lever { kind: LeverKind::Core, clocks: core });
        let (parked, top, park) = (lever.clocks, top(&self.supported), &self.config.park);
        match policy {
            ParkPolicy::Never => run(&self.spec, Driver::Default, |_| {}),
            ParkPolicy::Fixed(wait) => self.fly(&mut Pilot::fixed(wait, lever, top, park)),
            ParkPolicy::Staged(first, second) => {
                let half = Mhz(self.supported.core_max().0 / 2);
                let shallow = Clocks::core_only(self.supported.nearest_core(half));
                self.fly(&mut Pilot::fixed(first, lever, top, park).staged(shallow, second))
            }
            ParkPolicy::Rule => self.fly(&mut Pilot::rule(lever, top, park)),
            ParkPolicy::Engine => run(&self.spec, Driver::Controller(&mut self.controller()), |_| {}),
            ParkPolicy::EngineConnections => {
                run(&self.spec, Driver::Watched(&mut self.controller(), &mut Connected), |_| {})
            }
            ParkPolicy::Clairvoyant => self.foresee(parked, never),
            ParkPolicy::ClairvoyantCore => self.foresee(core, never),
        }
    }

    fn fly(&self, pilot: &mut Pilot) -> Result<RunRecord, RunError> {
        run(&self.spec, Driver::Autopilot(pilot), |_| {})
    }

    fn foresee(&self, parked: Clocks, never: Option<&RunRecord>) -> Result<RunRecord, RunError> {
        let gaps = never.map(figures::gaps).unwrap_or_default();
        let lead = Seconds(self.spec.world.gpu.settle.bounds.1);
        let mut plan = Foresight::new(&gaps, parked, lead, FRONT_END_DELAY);
        run(&self.spec, Driver::Autopilot(&mut plan), |_| {})
    }

    /// The engine daemon's controller with nothing to choose but its highest clock.
    fn controller(&self) -> Controller {
        let mut config = self.config.clone();
        config.control.policy = PolicyKind::LinUcb;
        config.control.seed = self.spec.seed;
        config.control.ignore_slo = true;
        config.control.auto_add_actual_frequency = false;
        config.gpu.min_frequency = self.supported.core_max();
        config.gpu.enable_memory_frequency_control = false;
        config.holdout.share = 0.0;
        as_configured(&config, &self.supported)
    }
}

#[cfg(test)]
mod tests;
