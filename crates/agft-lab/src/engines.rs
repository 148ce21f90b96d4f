//! What it costs to read less: policies before servers of several kinds, each over the same runs.

use std::fmt::Write;

use serde::Serialize;

use super::experiment::{CellResult, Experiment};
use super::promise::{Promise, share_of_fixed_saving, sum};
use super::report::Summary;
use super::score::{Score, geometric_mean};
use crate::sim::Kind;
use agft::stats::percentile;

/// A run is near default clocks if its mean TPOT is at most this much above theirs.
const NEAR: f64 = 0.10;

/// How well one policy does before one engine, over all cells.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quality {
    /// Geometric mean of energy x end-to-end time over that of the best fixed clock.
    pub e2e_ratio: f64,
    /// The same over that of the policy before vLLM; `None` if it did not run before vLLM.
    pub e2e_over_vllm: Option<f64>,
    /// Geometric mean of the energy saved over that of the best fixed clock, over the runs where that saves.
    pub fixed_saving_mean: Option<f64>,
    /// Median of the same.
    pub fixed_saving_median: Option<f64>,
    /// Runs with a mean TPOT of at most 10 % above that at default clocks.
    pub within_10_percent: usize,
    /// All runs.
    pub runs: usize,
    /// Alarms.
    pub alarms: Option<usize>,
    /// Those at which the requests kept the limit.
    pub false_alarms: Option<usize>,
    /// Share of the runs whose clock arrived near the best one.
    pub arrived: f64,
    /// Median of the seconds that took, of those that did.
    pub arrived_s: Option<f64>,
    /// Runs that say of themselves that they have converged.
    pub converged: usize,
    /// Median of the rounds that took, of those that do.
    pub converged_rounds: Option<f64>,
}

/// One entry per [`Experiment::entrants`].
#[must_use]
pub fn qualities(experiment: &Experiment, cells: &[CellResult]) -> Vec<Quality> {
    let entrants = experiment.entrants();
    let scores =
        |index: usize| cells.iter().filter_map(move |cell| cell.runs.get(index)).map(|run| &run.score);
    let mut all: Vec<Quality> =
        (0..entrants.len()).map(|index| Quality::of(&scores(index).collect::<Vec<_>>())).collect();
    let ratios: Vec<f64> = all.iter().map(|quality| quality.e2e_ratio).collect();
    for (quality, of) in all.iter_mut().zip(&entrants) {
        let usual = entrants
            .iter()
            .zip(&ratios)
            .find(|(other, _)| other.policy == of.policy && other.engine == Some(Kind::usual()));
        quality.e2e_over_vllm = usual.map(|(_, ratio)| quality.e2e_ratio / ratio);
    }
    all
}

impl Quality {
    fn of(scores: &[&Score]) -> Self {
        let promises: Vec<&Promise> = scores.iter().map(|score| &score.promise).collect();
        let median = |values: &[f64]| percentile(values, 0.5);
        let shares: Vec<f64> = promises.iter().filter_map(|promise| promise.share_of_fixed_saving).collect();
        let arrived: Vec<f64> = scores.iter().filter_map(|score| score.by_e2e.converged_s).collect();
        #[expect(clippy::cast_precision_loss, reason = "a number of rounds")]
        let converged: Vec<f64> =
            scores.iter().filter_map(|score| score.converged_round).map(|round| round as f64).collect();
        let ratios: Vec<f64> = scores.iter().map(|score| score.by_e2e.ratio_to_best_fixed).collect();
        #[expect(clippy::cast_precision_loss, reason = "a number of runs")]
        let share = arrived.len() as f64 / scores.len().max(1) as f64;
        Self {
            e2e_ratio: geometric_mean(&ratios),
            e2e_over_vllm: None,
            fixed_saving_mean: share_of_fixed_saving(&promises),
            fixed_saving_median: median(&shares),
            within_10_percent: scores.iter().filter(|score| score.tpot_slowdown <= NEAR).count(),
            runs: scores.len(),
            alarms: sum(&promises, |promise| promise.alarms),
            false_alarms: sum(&promises, |promise| promise.false_alarms),
            arrived: share,
            arrived_s: median(&arrived),
            converged: converged.len(),
            converged_rounds: median(&converged),
        }
    }
}

/// What is left out before which engine, a line each; empty if nothing is.
#[must_use]
pub fn left_out(experiment: &Experiment) -> String {
    let mut out = String::new();
    for kind in &experiment.engines {
        for why in experiment.not_judged(kind) {
            let _ = writeln!(out, "Limit not judged: {why}.");
        }
    }
    out
}

/// The engines against each other: one row per policy and engine.
#[must_use]
pub fn table(summaries: &[Summary]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<12} {:<12} {:>6} {:>6} {:>6} {:>6} {:>7} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6}",
        "engine",
        "policy",
        "E2E",
        "over",
        "of",
        "fixed",
        "within",
        "alarms",
        "false",
        "arriv.",
        "s",
        "conv.",
        "rounds",
    );
    let _ = writeln!(
        out,
        "{:<12} {:<12} {:>6} {:>6} {:>6} {:>6} {:>7} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6}",
        "", "", "ratio", "vLLM", "mean", "median", "+10 %", "", "", "%", "", "runs", "",
    );
    for Summary { of, quality, .. } in summaries {
        let number = |value: Option<f64>, decimals: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
        };
        let count = |value: Option<usize>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let _ = writeln!(
            out,
            "{:<12} {:<12} {:6.3} {:>6} {:>6} {:>6} {:>7} {:>6} {:>6} {:6.0} {:>6} {:>6} {:>6}",
            of.engine.map_or("any", Kind::name),
            of.policy.to_string(),
            quality.e2e_ratio,
            number(quality.e2e_over_vllm, 3),
            number(quality.fixed_saving_mean, 2),
            number(quality.fixed_saving_median, 2),
            format!("{}/{}", quality.within_10_percent, quality.runs),
            count(quality.alarms),
            count(quality.false_alarms),
            100.0 * quality.arrived,
            number(quality.arrived_s, 0),
            quality.converged,
            number(quality.converged_rounds, 0),
        );
    }
    out
}
