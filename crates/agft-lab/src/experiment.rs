//! Runs cells: each with default clocks, the sweep over fixed clocks, and the policies asked for.

use rayon::prelude::*;

use super::LabError;
use super::clairvoyant;
use super::grid::Load;
use super::oracle::{Sweep, SweepSpec};
use super::original::OriginalAgft;
use super::policy::{Entrant, PolicySpec, controller, with_holdout};
use super::promise::Terms;
use super::score::{Reference, Score, Yardstick, cost};
use crate::sim::record::{RequestLimits, RunRecord};
use crate::sim::run::{Driver, RunError, RunSpec, run};
use crate::sim::{Kind, SimError, World};
use agft::compose;
use agft::config::{Config, PolicyKind};
use agft::gpu::SupportedClocks;
use agft::reward::judge::not_judged;
use agft::units::{Clocks, Mhz, Seconds};

/// What to compare.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// The loads.
    pub loads: Vec<Load>,
    /// The seeds: each load is run once with each.
    pub seeds: Vec<u64>,
    /// The policies.
    pub policies: Vec<PolicySpec>,
    /// The engines before which policies run that read a page.
    pub engines: Vec<&'static Kind>,
    /// Length of a run in seconds.
    pub seconds: f64,
    /// agft's configuration; its limits are those that requests are held against.
    pub config: Config,
    /// So much of every 600 s the daemon gets no page.
    pub faults: Seconds,
    /// Is the holdout of the configuration in the runs? It takes its share of the time, and shows little in
    /// minutes.
    pub holdout: bool,
}

/// A load with a seed, and what came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct CellResult {
    /// The load.
    pub load: Load,
    /// The seed.
    pub seed: u64,
    /// Every fixed clock.
    pub sweep: Sweep,
    /// One entry per [`Experiment::entrants`].
    pub runs: Vec<PolicyRun>,
}

/// One policy in one cell.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyRun {
    /// The policy, and the engine.
    pub of: Entrant,
    /// Its score.
    pub score: Score,
    /// Clock and power over time.
    pub timeline: Vec<TimePoint>,
}

/// A second of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimePoint {
    /// Its end, in seconds since the start.
    pub at: f64,
    /// Core clock asked for at its end.
    pub core: Mhz,
    /// Mean power in watts.
    pub watts: f64,
}

impl Experiment {
    /// Runs every cell on `jobs` threads (0: one per core), calling `done` after each piece of work. There are
    /// [`Self::pieces`] of them.
    ///
    /// # Errors
    /// The first [`LabError`] in the order of the cells.
    pub fn run(&self, jobs: usize, done: impl Fn() + Sync) -> Result<Vec<CellResult>, LabError> {
        for_each_cell(&self.loads, &self.seeds, jobs, |load, seed| self.cell(load, seed, &done))
    }

    /// Each policy in the order asked for, one that reads a page with each engine.
    #[must_use]
    pub fn entrants(&self) -> Vec<Entrant> {
        let with = |policy: &PolicySpec| -> Vec<Entrant> {
            let policy = *policy;
            if policy.reads_page() {
                self.engines.iter().map(|engine| Entrant { policy, engine: Some(engine) }).collect()
            } else {
                vec![Entrant { policy, engine: None }]
            }
        };
        self.policies.iter().flat_map(with).collect()
    }

    /// Which of the limits are left out before this engine, and why.
    #[must_use]
    pub fn not_judged(&self, kind: &Kind) -> Vec<String> {
        let limits = compose::limits(&self.config);
        limits.map(|limits| not_judged(&[kind.profile], &limits)).unwrap_or_default()
    }

    /// Pieces of work, for a progress bar.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.loads.len() * self.seeds.len() * (2 + self.entrants().len())
    }

    fn cell(&self, load: &Load, seed: u64, done: &(impl Fn() + Sync)) -> Result<CellResult, RunError> {
        let stage = load.stage(self.seconds, seed)?;
        let mut world = stage.world;
        world.front.page_out = self.faults;
        let supported = supported(&world, seed)?;
        let control = &self.config.control;
        let spec = RunSpec { world, seed, seconds: Seconds(self.seconds), tick: control.decision_interval_s };
        let default = run(&spec, Driver::Default, |_| {})?;
        done();
        let slowest = bound(&self.config).map(|percent| default.whole().tpot.mean * (1.0 + percent / 100.0));
        let mut edges = stage.turns;
        edges.insert(0, 0.0);
        edges.push(self.seconds);
        let sweep = Sweep::measure(&SweepSpec {
            run: &spec,
            supported: &supported,
            memory: &compose::memory_clocks(&self.config, &supported),
            objective: control.objective,
            slowest,
            edges: &edges,
        })?;
        done();
        let cell =
            Cell { config: &self.config, holdout: self.holdout, spec, supported, edges, default, sweep };
        let known =
            self.policies.contains(&PolicySpec::Clairvoyant).then(|| cell.clairvoyant()).transpose()?;
        let entrants = self.entrants();
        let runs = entrants.par_iter().map(|entrant| {
            let result = cell.score(*entrant, known.as_ref());
            done();
            result
        });
        let runs: Vec<Result<PolicyRun, RunError>> = runs.collect();
        let runs = runs.into_iter().collect::<Result<_, _>>()?;
        Ok(CellResult { load: load.clone(), seed, sweep: cell.sweep, runs })
    }
}

/// The slowdown that is allowed, in percent.
fn bound(config: &Config) -> Option<f64> {
    config.control.max_slowdown_percent.filter(|_| !config.control.ignore_slo)
}

/// What `run` makes of every load with every seed, on `jobs` threads (0: one per core), in the order of the cells.
///
/// # Errors
/// The first [`LabError`] in that order.
pub(super) fn for_each_cell<T: Send>(
    loads: &[Load],
    seeds: &[u64],
    jobs: usize,
    run: impl Fn(&Load, u64) -> Result<T, RunError> + Sync,
) -> Result<Vec<T>, LabError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(jobs)
        .build()
        .map_err(|cause| LabError::Threads { jobs, cause })?;
    let cells: Vec<(&Load, u64)> =
        loads.iter().flat_map(|load| seeds.iter().map(move |seed| (load, *seed))).collect();
    let results: Vec<Result<T, LabError>> = pool.install(|| {
        cells
            .into_par_iter()
            .map(|(load, seed)| {
                run(load, seed)
                    .map_err(|cause| LabError::Cell { cell: format!("{load}, seed {seed}"), cause })
            })
            .collect()
    });
    results.into_iter().collect()
}

pub(super) fn supported(world: &crate::sim::WorldSpec, seed: u64) -> Result<SupportedClocks, RunError> {
    let clocks = World::new(world.clone(), seed)?.supported_clocks();
    Ok(clocks.ok_or(SimError::BadSetting {
        name: "core_range",
        value: "empty".into(),
        rule: "a board has at least one clock",
    })?)
}

/// A cell after its references have been measured.
struct Cell<'a> {
    config: &'a Config,
    holdout: bool,
    spec: RunSpec,
    supported: SupportedClocks,
    edges: Vec<f64>,
    default: RunRecord,
    sweep: Sweep,
}

/// A run by each yardstick, and the round in which the policy said it had converged.
struct Ran {
    by_e2e: RunRecord,
    /// `None`: the same run.
    by_tpot: Option<RunRecord>,
    converged_round: Option<u64>,
}

impl From<RunRecord> for Ran {
    fn from(record: RunRecord) -> Self {
        Self { by_e2e: record, by_tpot: None, converged_round: None }
    }
}

impl Cell<'_> {
    fn score(&self, of: Entrant, known: Option<&Ran>) -> Result<PolicyRun, RunError> {
        let own;
        let ran = match (of.policy, known) {
            (PolicySpec::Clairvoyant, Some(known)) => known,
            _ => {
                own = self.run(of)?;
                &own
            }
        };
        let objective = self.sweep.objective;
        let clairvoyant = known.map(|known| {
            let tpot = known.by_tpot.as_ref().unwrap_or(&known.by_e2e);
            [
                cost(&known.by_e2e.whole(), Yardstick::E2e, objective),
                cost(&tpot.whole(), Yardstick::Tpot, objective),
            ]
        });
        let reference = Reference { sweep: &self.sweep, default: &self.default, clairvoyant };
        let control = &self.config.control;
        let terms = Terms {
            limits: RequestLimits { ttft: control.ttft_limit, tpot: control.tpot_limit },
            guarded: compose::limits(self.config),
            max_slowdown_percent: bound(self.config),
        };
        let by_tpot = ran.by_tpot.as_ref().unwrap_or(&ran.by_e2e);
        let score = Score::of(&ran.by_e2e, by_tpot, &reference, &terms, ran.converged_round);
        let score = score.ok_or(SimError::BadSetting {
            name: "clocks",
            value: "none".into(),
            rule: "a sweep needs at least one clock",
        })?;
        Ok(PolicyRun { of, score, timeline: timeline(&ran.by_e2e) })
    }

    fn run(&self, of: Entrant) -> Result<Ran, RunError> {
        match of.policy {
            PolicySpec::Structured => self.agft(PolicyKind::Structured, of.engine),
            PolicySpec::LinUcb => self.agft(PolicyKind::LinUcb, of.engine),
            PolicySpec::Default => Ok(self.default.clone().into()),
            PolicySpec::BestFixed => {
                let fixed = |clocks| run(&self.spec, Driver::Fixed(clocks), |_| {});
                let [e2e, tpot] = self.best_clocks();
                let by_tpot = if tpot == e2e { None } else { Some(fixed(tpot)?) };
                Ok(Ran { by_e2e: fixed(e2e)?, by_tpot, converged_round: None })
            }
            PolicySpec::Clairvoyant => self.clairvoyant(),
            PolicySpec::Agft => {
                let mut pilot = OriginalAgft::new(&self.supported, self.config);
                let record = run(&self.spec, Driver::Autopilot(&mut pilot), |_| {})?;
                Ok(Ran { converged_round: pilot.converged_round(), ..record.into() })
            }
            PolicySpec::PowerCap(cap) => {
                let cap = cap.on(self.spec.world.gpu.power_cap);
                Ok(run(&self.spec, Driver::Capped(cap), |_| {})?.into())
            }
        }
    }

    fn agft(&self, policy: PolicyKind, engine: Option<&'static Kind>) -> Result<Ran, RunError> {
        let mut spec = self.spec.clone();
        spec.world.engine.kind = engine.unwrap_or(Kind::usual());
        let make = if self.holdout { with_holdout } else { controller };
        let mut controller = make(self.config, &self.supported, policy, self.spec.seed);
        let record = run(&spec, Driver::Controller(&mut controller), |_| {})?;
        Ok(Ran { converged_round: controller.learned().converged_at, ..record.into() })
    }

    fn best_clocks(&self) -> [Clocks; 2] {
        Yardstick::ALL.map(|yardstick| {
            let best = self.sweep.best(yardstick);
            best.map_or(Clocks::core_only(self.supported.core_max()), |run| run.clocks)
        })
    }

    fn clairvoyant(&self) -> Result<Ran, RunError> {
        let mut records = Vec::new();
        for (yardstick, fixed) in Yardstick::ALL.into_iter().zip(self.best_clocks()) {
            let mut plan = clairvoyant::Plan::of(&self.sweep, yardstick, &self.edges);
            let planned = run(&self.spec, Driver::Autopilot(&mut plan), |_| {})?;
            let fixed = run(&self.spec, Driver::Fixed(fixed), |_| {})?;
            let cost = |record: &RunRecord| cost(&record.whole(), yardstick, self.sweep.objective);
            records.push(if cost(&planned) <= cost(&fixed) { planned } else { fixed });
        }
        let by_tpot = records.pop();
        let by_e2e = records.pop().unwrap_or_else(|| self.default.clone());
        Ok(Ran { by_e2e, by_tpot, converged_round: None })
    }
}

/// One point per second.
fn timeline(record: &RunRecord) -> Vec<TimePoint> {
    let mut points = Vec::new();
    let mut from = match record.ticks.first() {
        Some(first) => *first,
        None => return points,
    };
    for tick in &record.ticks {
        let span = tick.at.since(from.at).0;
        if span >= 1.0 {
            let watts = (tick.energy.0 - from.energy.0) / span;
            points.push(TimePoint { at: tick.at.0, core: tick.core, watts });
            from = *tick;
        }
    }
    points
}
