//! What a policy came to, against the best fixed clock, default clocks and the clairvoyant.

use serde::Serialize;

use super::oracle::Sweep;
use super::promise::{Promise, Terms};
use crate::sim::record::{Figures, RunRecord};
use agft::reward::Objective;
use agft::units::Mhz;

/// Means of the static penalty are taken over this long.
const CONVERGENCE_SPAN: f64 = 12.0;
/// Below this mean penalty a policy has arrived.
const CONVERGED: f64 = 0.05;
/// Where the clairvoyant saves less than this share of default's cost, a share of its saving means nothing.
const LEAST_SAVING: f64 = 0.01;

/// Which delay multiplies the energy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yardstick {
    /// Mean end-to-end latency, times the whole energy.
    E2e,
    /// Mean time per output token, times the energy per token: AGFT's own.
    Tpot,
}

impl Yardstick {
    /// Both.
    pub const ALL: [Self; 2] = [Self::E2e, Self::Tpot];
}

/// The cost that is to be small: energy x delay (EDP), energy x delay squared, or energy alone.
#[must_use]
pub fn cost(figures: &Figures, yardstick: Yardstick, objective: Objective) -> f64 {
    let weight = objective.delay_weight();
    match yardstick {
        Yardstick::E2e => figures.energy.0 * figures.e2e.mean.powf(weight),
        Yardstick::Tpot => figures.joules_per_token() * figures.tpot.mean.powf(weight),
    }
}

/// One yardstick's verdict. Ratios are costs over costs: 1 is equal, below 1 is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Verdict {
    /// Energy x delay over the whole run: J s (E2E), J s per token (TPOT); J s^2 or J under other objectives.
    pub cost: f64,
    /// The best fixed clock by this yardstick, in MHz.
    pub best_fixed_mhz: Mhz,
    /// Against that clock, whole run.
    pub ratio_to_best_fixed: f64,
    /// Against the same clock, last third of both.
    pub ratio_to_best_fixed_last_third: f64,
    /// Against driver-default clocks, whole run.
    pub ratio_to_default: f64,
    /// Share of the clairvoyant's saving against default clocks that was reached, if that one ran and saves at least 1 %.
    pub share_of_clairvoyant_saving: Option<f64>,
    /// Seconds from the start after which the 12 s mean of the static penalty stays below 5 %, if it ever does.
    pub converged_s: Option<f64>,
    /// Integral of the static penalty over the time with work, in seconds: what was lost, as time at the best clock's
    /// cost.
    pub regret_s: f64,
}

/// What the score of a run is measured against.
pub struct Reference<'a> {
    /// Every fixed clock.
    pub sweep: &'a Sweep,
    /// Driver-default clocks.
    pub default: &'a RunRecord,
    /// Cost of the clairvoyant by each yardstick, if it ran.
    pub clairvoyant: Option<[f64; 2]>,
}

/// The verdict on a run by one yardstick; `None` only if the sweep is empty.
#[must_use]
pub fn verdict(record: &RunRecord, yardstick: Yardstick, reference: &Reference<'_>) -> Option<Verdict> {
    let sweep = reference.sweep;
    let best = sweep.best(yardstick)?;
    let of = |figures: &Figures| cost(figures, yardstick, sweep.objective);
    let own = of(&record.whole());
    let default = of(&reference.default.whole());
    let penalties = penalties(record, |core, memory| sweep.penalty(yardstick, core, memory));
    let saving = reference.clairvoyant.and_then(|costs| {
        let possible = default - costs[yardstick as usize];
        (possible > LEAST_SAVING * default).then(|| (default - own) / possible)
    });
    Some(Verdict {
        cost: own,
        best_fixed_mhz: best.clocks.core,
        ratio_to_best_fixed: own / of(&best.whole),
        ratio_to_best_fixed_last_third: of(&record.last_third()) / of(&best.last_third),
        ratio_to_default: own / default,
        share_of_clairvoyant_saving: saving,
        converged_s: converged(&penalties),
        regret_s: penalties.iter().map(|(_, span, penalty)| span * penalty).sum(),
    })
}

/// End, length and static penalty of each stretch between ticks with work.
fn penalties(record: &RunRecord, penalty: impl Fn(Mhz, Option<Mhz>) -> Option<f64>) -> Vec<(f64, f64, f64)> {
    let mut known: std::collections::BTreeMap<(Mhz, Option<Mhz>), Option<f64>> = Default::default();
    record
        .ticks
        .windows(2)
        .filter_map(|pair| {
            let [before, after] = pair else { return None };
            if !(before.busy && after.busy) {
                return None;
            }
            let key = (before.core, before.memory);
            let penalty = (*known.entry(key).or_insert_with(|| penalty(key.0, key.1)))?;
            Some((after.at.0, after.at.since(before.at).0, penalty))
        })
        .collect()
}

/// The first moment after which the trailing mean over [`CONVERGENCE_SPAN`] stays below [`CONVERGED`].
fn converged(penalties: &[(f64, f64, f64)]) -> Option<f64> {
    let (mut first, mut time, mut area) = (0, 0.0, 0.0);
    let mut since = Some(0.0);
    for (end, span, penalty) in penalties {
        time += span;
        area += span * penalty;
        while let Some((_, oldest, value)) = penalties.get(first)
            && time - oldest >= CONVERGENCE_SPAN
        {
            time -= oldest;
            area -= oldest * value;
            first += 1;
        }
        if area >= CONVERGED * time {
            since = None;
        } else if since.is_none() {
            since = Some(*end);
        }
    }
    since.filter(|_| !penalties.is_empty())
}

/// Mean, 95th and 99th percentile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Mean in seconds.
    pub mean_s: f64,
    /// 95th percentile in seconds.
    pub p95_s: f64,
    /// 99th percentile in seconds.
    pub p99_s: f64,
}

impl From<crate::sim::record::LatencyFigures> for Latency {
    fn from(figures: crate::sim::record::LatencyFigures) -> Self {
        Self { mean_s: figures.mean, p95_s: figures.p95, p99_s: figures.p99 }
    }
}

/// Everything measured of one policy in one cell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// Energy of the board in joules.
    pub energy_j: f64,
    /// Mean board power in watts.
    pub mean_power_w: f64,
    /// Tokens generated.
    pub tokens: f64,
    /// Requests that arrived in the run and were answered.
    pub requests: usize,
    /// Requests not answered within a minute after its end.
    pub unfinished: usize,
    /// Share of energy saved against default clocks, 0 to 1; negative if more was used.
    pub energy_saved: f64,
    /// Mean TPOT over that of default clocks, less one.
    pub tpot_slowdown: f64,
    /// Time to first token.
    pub ttft: Latency,
    /// Time per output token.
    pub tpot: Latency,
    /// End-to-end time.
    pub e2e: Latency,
    /// Share of requests over the TTFT or the TPOT limit, 0 to 1.
    pub share_over_limits: f64,
    /// Changes of the core clock's lock.
    pub clock_changes: usize,
    /// Closed rounds.
    pub rounds: usize,
    /// Round in which the policy itself said that it had converged.
    pub converged_round: Option<u64>,
    /// What was promised, and whether it was kept.
    pub promise: Promise,
    /// By mean end-to-end latency.
    pub by_e2e: Verdict,
    /// By mean time per output token.
    pub by_tpot: Verdict,
}

impl Score {
    /// Scores a run. The verdict by TPOT may come from a run of its own: the best fixed clock and the clairvoyant are
    /// chosen for each yardstick anew.
    #[must_use]
    pub fn of(
        record: &RunRecord,
        for_tpot: &RunRecord,
        reference: &Reference<'_>,
        terms: &Terms,
        converged_round: Option<u64>,
    ) -> Option<Self> {
        let (whole, default) = (record.whole(), reference.default.whole());
        Some(Self {
            energy_j: whole.energy.0,
            mean_power_w: whole.power.0,
            tokens: whole.tokens,
            requests: whole.requests,
            unfinished: whole.unfinished,
            energy_saved: 1.0 - whole.energy.0 / default.energy.0,
            tpot_slowdown: whole.tpot.mean / default.tpot.mean.max(f64::MIN_POSITIVE) - 1.0,
            ttft: whole.ttft.into(),
            tpot: whole.tpot.into(),
            e2e: whole.e2e.into(),
            share_over_limits: record.share_over(terms.limits),
            clock_changes: record.clock_changes.len(),
            rounds: record.rounds,
            converged_round,
            promise: Promise::of(record, reference, terms),
            by_e2e: verdict(record, Yardstick::E2e, reference)?,
            by_tpot: verdict(for_tpot, Yardstick::Tpot, reference)?,
        })
    }
}

/// Geometric mean; 1 of nothing. A ratio of nothing to nothing (no request arrived in the span) is left out.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a number of cells")]
pub fn geometric_mean(values: &[f64]) -> f64 {
    let logs: Vec<f64> = values.iter().map(|value| value.ln()).filter(|log| log.is_finite()).collect();
    (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::record::{RequestLimits, Served, TickRecord};
    use agft::units::{Joules, Seconds, Time};

    /// Stretches of one second with these penalties.
    fn seconds(penalties: &[f64]) -> Vec<(f64, f64, f64)> {
        penalties.iter().enumerate().map(|(k, penalty)| (k as f64 + 1.0, 1.0, *penalty)).collect()
    }

    #[test]
    fn converged_when_the_trailing_mean_falls_below_the_threshold_for_good() {
        assert_eq!(converged(&seconds(&[0.01; 30])), Some(0.0), "never away");
        let mut late = vec![1.0; 10];
        late.extend([0.0; 30]);
        // One bad second in the last twelve is 8 %: the last one leaves the window after second 22.
        let at = converged(&seconds(&late)).unwrap();
        assert!((21.0..=22.0).contains(&at), "{at}");
        late.extend([1.0; 5]);
        assert_eq!(converged(&seconds(&late)), None, "left again");
        assert_eq!(converged(&[]), None);
    }

    #[test]
    fn verdict_holds_the_run_against_best_fixed_default_and_clairvoyant() {
        let record = |energy: f64, e2e: f64, core: u32| RunRecord {
            seconds: Seconds(3.0),
            ticks: [0.0, 1.0, 2.0, 3.0]
                .map(|at| TickRecord {
                    at: Time(at),
                    energy: Joules(energy * at / 3.0),
                    tokens: 100.0 * at / 3.0,
                    core: Mhz(core),
                    memory: None,
                    busy: true,
                })
                .into(),
            requests: [0.5, 2.5]
                .map(|at| Served {
                    arrival: Time(at),
                    ttft: Seconds(0.1),
                    tpot: Some(Seconds(e2e)),
                    e2e: Seconds(e2e),
                })
                .into(),
            unfinished: Vec::new(),
            waited_until: Time(4.0),
            rejected: 0,
            clock_changes: vec![Time(1.0)],
            usage: crate::sim::Usage::default(),
            raises: Vec::new(),
            rounds: 7,
            alarms: None,
        };
        let static_run = |core, energy, e2e| {
            let record = record(energy, e2e, core);
            super::super::oracle::StaticRun {
                clocks: agft::units::Clocks::core_only(Mhz(core)),
                whole: record.whole(),
                last_third: record.last_third(),
                slices: Vec::new(),
            }
        };
        let sweep = Sweep {
            objective: Objective::Edp,
            slowest: None,
            runs: vec![static_run(1000, 60.0, 2.0), static_run(1500, 130.0, 1.5)],
        };
        let default = record(150.0, 1.5, 1600);
        let reference = Reference { sweep: &sweep, default: &default, clairvoyant: Some([105.0, 1.05]) };
        let limits = RequestLimits { ttft: Seconds(1.0), tpot: Seconds(1.0) };
        let terms = Terms { limits, guarded: None, max_slowdown_percent: None };
        let run = record(80.0, 1.8, 1500);
        let score = Score::of(&run, &run, &reference, &terms, Some(3)).unwrap();
        assert_eq!((score.energy_j, score.requests, score.rounds), (80.0, 2, 7));
        approx::assert_relative_eq!(score.energy_saved, 1.0 - 80.0 / 150.0, max_relative = 1e-12);
        approx::assert_relative_eq!(score.tpot_slowdown, 0.2, max_relative = 1e-12);
        assert_eq!((score.share_over_limits, score.clock_changes), (1.0, 1));
        let e2e = score.by_e2e;
        assert_eq!(e2e.best_fixed_mhz, Mhz(1000));
        approx::assert_relative_eq!(e2e.cost, 144.0, max_relative = 1e-12);
        approx::assert_relative_eq!(e2e.ratio_to_best_fixed, 144.0 / 120.0, max_relative = 1e-12);
        approx::assert_relative_eq!(e2e.ratio_to_best_fixed_last_third, 1.2, max_relative = 1e-9);
        approx::assert_relative_eq!(e2e.ratio_to_default, 144.0 / 225.0, max_relative = 1e-12);
        approx::assert_relative_eq!(
            e2e.share_of_clairvoyant_saving.unwrap(),
            (225.0 - 144.0) / (225.0 - 105.0),
            max_relative = 1e-12
        );
        // Three seconds at a clock that costs 195 instead of 120.
        approx::assert_relative_eq!(e2e.regret_s, 3.0 * (195.0 / 120.0 - 1.0), max_relative = 1e-9);
        assert_eq!(e2e.converged_s, None);
        approx::assert_relative_eq!(score.by_tpot.cost, 0.8 * 1.8, max_relative = 1e-12);
    }

    #[test]
    fn geometric_mean_of_a_ratio_and_its_inverse_is_one() {
        approx::assert_relative_eq!(geometric_mean(&[4.0, 0.25]), 1.0);
        approx::assert_relative_eq!(geometric_mean(&[]), 1.0);
        approx::assert_relative_eq!(geometric_mean(&[2.0, f64::NAN]), 2.0);
    }
}
