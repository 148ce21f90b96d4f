//! One clock per stretch of the load, chosen with knowledge of the whole run.
//!
//! The run is cut where the load changes its nature: phases, spells of a burst, edges of a pause; every 30 s where it
//! changes without edges (a day, a trace). What each stretch costs at each fixed clock is known from the sweep: the energy
//! spent in it, and the latencies of the requests that arrived in it. Coordinate descent on the whole run's cost, from the
//! best fixed clock, then picks one clock per stretch: stretch after stretch takes the clock that makes
//! `energy x mean delay` of the whole run smallest while the others stay, until nothing changes.
//!
//! The plan then really runs, with the clock changes and the requests that cross an edge, which the descent leaves aside;
//! where that is worse than the best fixed clock, the clairvoyant is the best fixed clock. So it is a schedule that was
//! reached, not a bound that nothing can pass: a policy that changes clocks within a stretch can do better.

use super::oracle::Sweep;
use super::score::Yardstick;
use crate::sim::record::Figures;
use crate::sim::run::{Autopilot, Look};
use agft::reward::Objective;
use agft::units::{Clocks, Target, Time};

/// The descent ends by itself; this is for safety.
const MOST_PASSES: usize = 50;

/// Clocks with the moments from which they run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    steps: Vec<(Time, Clocks)>,
    next: usize,
}

/// What the cost of the whole is made of.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    energy: f64,
    tokens: f64,
    delay: f64,
    requests: f64,
}

impl Sums {
    #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
    fn of(figures: &Figures, yardstick: Yardstick) -> Self {
        let (requests, delay) = match yardstick {
            Yardstick::E2e => (figures.requests + figures.unfinished, figures.e2e.mean),
            Yardstick::Tpot => (figures.requests, figures.tpot.mean),
        };
        Self {
            energy: figures.energy.0,
            tokens: figures.tokens,
            delay: delay * requests as f64,
            requests: requests as f64,
        }
    }

    fn plus(self, sign: f64, other: Self) -> Self {
        Self {
            energy: self.energy + sign * other.energy,
            tokens: self.tokens + sign * other.tokens,
            delay: self.delay + sign * other.delay,
            requests: self.requests + sign * other.requests,
        }
    }

    /// Logarithm of the cost.
    fn cost(self, yardstick: Yardstick, objective: Objective) -> f64 {
        let tokens = match yardstick {
            Yardstick::E2e => 1.0,
            Yardstick::Tpot => self.tokens.max(1.0),
        };
        let delay = (self.delay / self.requests.max(1.0)).max(1e-12);
        (self.energy / tokens).ln() + objective.delay_weight() * delay.ln()
    }
}

impl Plan {
    /// The plan for stretches between `edges`, both ends included.
    #[must_use]
    pub fn of(sweep: &Sweep, yardstick: Yardstick, edges: &[f64]) -> Self {
        let slices = edges.len().saturating_sub(1);
        let start = sweep
            .best(yardstick)
            .and_then(|best| sweep.runs.iter().position(|run| run.clocks == best.clocks))
            .unwrap_or(0);
        let table: Vec<Vec<Sums>> = sweep
            .runs
            .iter()
            .map(|run| run.slices.iter().map(|slice| Sums::of(slice, yardstick)).collect())
            .collect();
        let at = |run: usize, slice: usize| {
            table.get(run).and_then(|slices| slices.get(slice)).copied().unwrap_or_default()
        };
        let mut chosen = vec![start; slices];
        let mut total = (0..slices).fold(Sums::default(), |sum, slice| sum.plus(1.0, at(start, slice)));
        for _ in 0..MOST_PASSES {
            let before = chosen.clone();
            for (slice, choice) in chosen.iter_mut().enumerate() {
                let rest = total.plus(-1.0, at(*choice, slice));
                let cost = |run: &usize| rest.plus(1.0, at(*run, slice)).cost(yardstick, sweep.objective);
                let best = (0..table.len()).min_by(|a, b| cost(a).total_cmp(&cost(b)));
                if let Some(best) = best.filter(|best| cost(best) < cost(choice) - 1e-12) {
                    *choice = best;
                }
                total = rest.plus(1.0, at(*choice, slice));
            }
            if chosen == before {
                break;
            }
        }
        let steps = edges
            .iter()
            .zip(&chosen)
            .filter_map(|(edge, run)| Some((Time(*edge), sweep.runs.get(*run)?.clocks)));
        Self { steps: steps.collect(), next: 0 }
    }

    /// Its clocks, with the moments from which they run.
    #[must_use]
    pub fn steps(&self) -> &[(Time, Clocks)] {
        &self.steps
    }
}

impl Autopilot for Plan {
    fn due(&self) -> Time {
        self.steps.get(self.next).map_or(Time(f64::INFINITY), |(at, _)| *at)
    }

    fn act(&mut self, _look: &Look) -> Option<Target> {
        let (_, clocks) = self.steps.get(self.next)?;
        self.next += 1;
        Some(Target::Lock(*clocks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::StaticRun;
    use crate::sim::record::LatencyFigures;
    use agft::units::{Joules, Mhz, Watts};

    fn figures(energy: f64, latency: f64) -> Figures {
        let latency = LatencyFigures { mean: latency, p95: latency, p99: latency };
        Figures {
            energy: Joules(energy),
            power: Watts(energy),
            tokens: 100.0,
            requests: 10,
            unfinished: 0,
            ttft: latency,
            tpot: latency,
            e2e: latency,
        }
    }

    fn static_run(core: u32, slices: [(f64, f64); 2]) -> StaticRun {
        let [a, b] = slices.map(|(energy, latency)| figures(energy, latency));
        let whole = figures(a.energy.0 + b.energy.0, (a.e2e.mean + b.e2e.mean) / 2.0);
        StaticRun { clocks: Clocks::core_only(Mhz(core)), whole, last_third: whole, slices: vec![a, b] }
    }

    #[test]
    fn each_stretch_takes_the_clock_that_serves_the_whole() {
        // The first stretch is memory-bound: a low clock costs no time. The second pays for every megahertz less.
        let runs = vec![
            static_run(500, [(50.0, 1.0), (80.0, 4.0)]),
            static_run(1000, [(80.0, 1.0), (90.0, 2.0)]),
            static_run(1500, [(120.0, 1.0), (110.0, 1.0)]),
        ];
        let sweep = Sweep { objective: Objective::Edp, slowest: None, runs };
        for yardstick in Yardstick::ALL {
            let plan = Plan::of(&sweep, yardstick, &[0.0, 30.0, 60.0]);
            let core = |mhz| Clocks::core_only(Mhz(mhz));
            assert_eq!(plan.steps(), [(Time(0.0), core(500)), (Time(30.0), core(1500))]);
        }
    }

    #[test]
    fn plan_of_one_stretch_is_the_best_fixed_clock() {
        let one = |core, energy, latency| {
            let run = static_run(core, [(energy, latency); 2]);
            StaticRun { slices: vec![run.whole], ..run }
        };
        let sweep = Sweep {
            objective: Objective::Edp,
            slowest: None,
            runs: vec![one(500, 50.0, 3.0), one(1000, 60.0, 2.0), one(1500, 130.0, 1.5)],
        };
        let plan = Plan::of(&sweep, Yardstick::E2e, &[0.0, 60.0]);
        assert_eq!(plan.steps(), [(Time(0.0), Clocks::core_only(Mhz(1000)))]);
    }
}
