//! What could only have been known afterwards: every fixed clock on the same arrivals.

use rayon::prelude::*;

use super::score::{Yardstick, cost};
use crate::sim::record::Figures;
use crate::sim::run::{Driver, RunError, RunSpec, run};
use agft::gpu::SupportedClocks;
use agft::reward::Objective;
use agft::units::{Clocks, Mhz};

/// Clocks of the first pass, spread evenly from [`LOWEST`] of the highest clock up to it.
const COARSE: u32 = 15;
const LOWEST: f64 = 0.3;
/// Second pass: these shares of the best of the first one.
const FINE: [f64; 4] = [0.975, 0.9875, 1.0125, 1.025];

/// One fixed clock over a whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct StaticRun {
    /// The clock.
    pub clocks: Clocks,
    /// The whole run.
    pub whole: Figures,
    /// Its last third.
    pub last_third: Figures,
    /// Each stretch between two turns of the load.
    pub slices: Vec<Figures>,
}

/// Every fixed clock that was tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// What is minimised.
    pub objective: Objective,
    /// Longest mean TPOT that counts, in seconds; none without.
    pub slowest: Option<f64>,
    /// Ascending.
    pub runs: Vec<StaticRun>,
}

/// What to sweep.
pub struct SweepSpec<'a> {
    /// The run.
    pub run: &'a RunSpec,
    /// The board's clocks.
    pub supported: &'a SupportedClocks,
    /// Memory clocks to combine with; none leaves the memory clock to the driver.
    pub memory: &'a [Mhz],
    /// What is minimised.
    pub objective: Objective,
    /// Longest mean TPOT that counts, in seconds.
    pub slowest: Option<f64>,
    /// Edges of the slices, both ends included.
    pub edges: &'a [f64],
}

impl Sweep {
    /// Coarse over the range, then nearer around the best clock by either yardstick.
    ///
    /// # Errors
    /// [`RunError`]
    pub fn measure(spec: &SweepSpec<'_>) -> Result<Self, RunError> {
        let high = spec.supported.core_max().as_f64();
        let memory: Vec<Option<Mhz>> = match spec.memory {
            [] => vec![None],
            clocks => clocks.iter().copied().map(Some).collect(),
        };
        let mut sweep = Self { objective: spec.objective, slowest: spec.slowest, runs: Vec::new() };
        let mut wanted = Vec::new();
        for k in 0..COARSE {
            let share = LOWEST + (1.0 - LOWEST) * f64::from(k) / f64::from(COARSE - 1);
            let core = nearest(spec.supported, share * high);
            wanted.extend(memory.iter().map(|memory| Clocks { core, memory: *memory }));
        }
        sweep.run_all(spec, wanted)?;
        let around: Vec<Clocks> = Yardstick::ALL
            .iter()
            .filter_map(|yardstick| sweep.best(*yardstick))
            .flat_map(|best| {
                FINE.map(|share| Clocks {
                    core: nearest(spec.supported, share * best.clocks.core.as_f64()),
                    ..best.clocks
                })
            })
            .collect();
        sweep.run_all(spec, around)?;
        Ok(sweep)
    }

    fn run_all(&mut self, spec: &SweepSpec<'_>, mut wanted: Vec<Clocks>) -> Result<(), RunError> {
        wanted.sort();
        wanted.dedup();
        wanted.retain(|clocks| self.runs.iter().all(|run| run.clocks != *clocks));
        let runs: Result<Vec<StaticRun>, RunError> = wanted
            .into_par_iter()
            .map(|clocks| {
                let record = run(spec.run, Driver::Fixed(clocks), |_| {})?;
                let slices = spec.edges.windows(2).map(|edge| match edge {
                    [from, to] => record.between(*from, *to),
                    _ => record.whole(),
                });
                Ok(StaticRun {
                    clocks,
                    whole: record.whole(),
                    last_third: record.last_third(),
                    slices: slices.collect(),
                })
            })
            .collect();
        self.runs.extend(runs?);
        self.runs.sort_by_key(|run| run.clocks);
        Ok(())
    }

    /// Does this clock keep the bound on the mean TPOT?
    pub(super) fn keeps_bound(&self, run: &StaticRun) -> bool {
        self.slowest.is_none_or(|slowest| run.whole.tpot.mean <= slowest)
    }

    /// The best fixed clock among those that keep the bound; the fastest one if none does.
    #[must_use]
    pub fn best(&self, yardstick: Yardstick) -> Option<&StaticRun> {
        let cost = |run: &&StaticRun| cost(&run.whole, yardstick, self.objective);
        let allowed = self.runs.iter().filter(|run| self.keeps_bound(run));
        allowed.min_by(|a, b| cost(a).total_cmp(&cost(b))).or(self.runs.last())
    }

    /// Cost of a fixed clock over that of the best one, less one: how much worse it is to stay there. Straight in the
    /// logarithm between the clocks that were tried, and level beyond them.
    #[must_use]
    pub fn penalty(&self, yardstick: Yardstick, core: Mhz, memory: Option<Mhz>) -> Option<f64> {
        let best = cost(&self.best(yardstick)?.whole, yardstick, self.objective).ln();
        // The driver's memory clock is the highest.
        let memory = memory.or_else(|| self.runs.iter().filter_map(|run| run.clocks.memory).max());
        let curve: Vec<(f64, f64)> = self
            .runs
            .iter()
            .filter(|run| run.clocks.memory == memory || run.clocks.memory.is_none())
            .map(|run| (run.clocks.core.as_f64(), cost(&run.whole, yardstick, self.objective).ln()))
            .collect();
        let f = core.as_f64();
        let above = curve.partition_point(|(clock, _)| *clock < f);
        let log = match (above.checked_sub(1).and_then(|below| curve.get(below)), curve.get(above)) {
            (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (f - a.0) / (b.0 - a.0),
            (Some(only), None) | (None, Some(only)) => only.1,
            (None, None) => return None,
        };
        Some((log - best).exp() - 1.0)
    }
}

fn nearest(supported: &SupportedClocks, wanted: f64) -> Mhz {
    let away = |clock: &Mhz| (clock.as_f64() - wanted).abs();
    let clocks = supported.core().iter().copied();
    clocks.min_by(|a, b| away(a).total_cmp(&away(b))).unwrap_or_else(|| supported.core_max())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::record::LatencyFigures;
    use agft::units::{Joules, Watts};

    /// A clock with this energy and mean latency (E2E and TPOT alike), 100 tokens.
    pub(crate) fn static_run(core: u32, energy: f64, latency: f64) -> StaticRun {
        let latency = LatencyFigures { mean: latency, p95: latency, p99: latency };
        let whole = Figures {
            energy: Joules(energy),
            power: Watts(energy),
            tokens: 100.0,
            requests: 1,
            unfinished: 0,
            ttft: latency,
            tpot: latency,
            e2e: latency,
        };
        let clocks = Clocks::core_only(Mhz(core));
        StaticRun { clocks, whole, last_third: whole, slices: vec![whole] }
    }

    fn sweep(slowest: Option<f64>, objective: Objective) -> Sweep {
        let runs =
            vec![static_run(500, 50.0, 4.0), static_run(1000, 60.0, 2.0), static_run(1500, 130.0, 1.5)];
        Sweep { objective, slowest, runs }
    }

    #[test]
    fn best_clock_depends_on_the_objective_and_on_the_bound() {
        let best =
            |slowest, objective| sweep(slowest, objective).best(Yardstick::Tpot).map(|run| run.clocks.core.0);
        assert_eq!(best(None, Objective::Edp), Some(1000));
        assert_eq!(best(None, Objective::Energy), Some(500));
        assert_eq!(best(Some(1.8), Objective::Energy), Some(1500));
        assert_eq!(best(Some(0.1), Objective::Edp), Some(1500), "none keeps the bound: the fastest");
    }

    #[test]
    fn penalty_is_zero_at_the_best_clock_and_straight_in_the_logarithm_between() {
        let sweep = sweep(None, Objective::Edp);
        let penalty = |core| sweep.penalty(Yardstick::E2e, Mhz(core), None).unwrap();
        approx::assert_relative_eq!(penalty(1000), 0.0, epsilon = 1e-12);
        approx::assert_relative_eq!(penalty(500), 200.0 / 120.0 - 1.0, max_relative = 1e-12);
        approx::assert_relative_eq!(penalty(750), (200.0_f64 / 120.0).sqrt() - 1.0, max_relative = 1e-12);
        assert_eq!((penalty(300), penalty(1800)), (penalty(500), penalty(1500)));
    }
}
