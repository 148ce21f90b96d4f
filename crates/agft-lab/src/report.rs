//! Results as CSV and JSON. Field names end in their unit; shares and ratios have none.
//!
//! JSON: `seconds`, `faults_s`, `holdout_share`, `objective`, `policies`, `engines` (each with its limits
//! that are left out), `cells` (one entry per load, seed, policy and engine: `gpu`, `model`, `workload`,
//! `seed`, `policy`, `engine` (null where it makes no difference), then the fields of [`Score`], with its
//! [`Promise`] as `promise` and the two [`Verdict`](super::score::Verdict)s as `by_e2e` and `by_tpot`),
//! `summary` (one [`Summary`] per policy and engine) and `fixed_clocks` (the curve over fixed clocks of each
//! cell). CSV: the rows of `cells`, nested names joined by an underscore.

use serde::Serialize;
use serde_json::{Map, Value};

use super::engines::{Quality, qualities};
use super::experiment::{CellResult, Experiment};
use super::policy::Entrant;
use super::promise::{Kept, Promise};
use super::score::{Score, Yardstick, cost, geometric_mean};
use crate::sim::Kind;
use agft::reward::Objective;
use agft::stats::mean;
use agft::units::Mhz;

/// One policy in one cell.
#[derive(Debug, Serialize)]
struct Row<'a> {
    gpu: &'a str,
    model: &'a str,
    workload: String,
    seed: u64,
    policy: String,
    engine: Option<&'static str>,
    #[serde(flatten)]
    score: &'a Score,
}

/// One policy over all cells, by one yardstick.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overall {
    /// Geometric mean of the ratio to the best fixed clock, whole run.
    pub ratio_to_best_fixed: f64,
    /// The same in the last third.
    pub ratio_to_best_fixed_last_third: f64,
    /// The worst load's geometric mean over its seeds, whole run.
    pub worst_load: f64,
    /// The worst cell, whole run.
    pub worst_cell: f64,
    /// Geometric mean of the ratio to default clocks.
    pub ratio_to_default: f64,
    /// Mean share of the clairvoyant's saving, over the cells that have one.
    pub share_of_clairvoyant_saving: Option<f64>,
    /// Share of the cells that converged.
    pub converged: f64,
}

/// One policy over all cells.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Whose it is.
    #[serde(skip)]
    pub of: Entrant,
    /// The policy.
    pub policy: String,
    /// The engine; `None` where it makes no difference.
    pub engine: Option<&'static str>,
    /// Mean share of energy saved against default clocks.
    pub energy_saved: f64,
    /// Mean share of requests over a limit.
    pub share_over_limits: f64,
    /// What was promised, and whether it was kept.
    pub promise: Kept,
    /// By mean end-to-end latency.
    pub by_e2e: Overall,
    /// By mean time per output token.
    pub by_tpot: Overall,
    /// What an engine costs.
    pub quality: Quality,
}

/// A fixed clock of a cell's sweep.
#[derive(Debug, Serialize)]
struct FixedClock {
    core_mhz: Mhz,
    memory_mhz: Option<Mhz>,
    cost_e2e: f64,
    cost_tpot: f64,
    energy_j: f64,
    mean_tpot_s: f64,
    mean_e2e_s: f64,
}

#[derive(Debug, Serialize)]
struct Curve<'a> {
    gpu: &'a str,
    model: &'a str,
    workload: String,
    seed: u64,
    clocks: Vec<FixedClock>,
}

/// An engine, and which limits agft leaves out before it.
#[derive(Debug, Serialize)]
struct Engine {
    name: &'static str,
    not_judged: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    agft_version: &'static str,
    seconds: f64,
    /// Seconds of every 600 without a page.
    faults_s: f64,
    /// The share of the time that is held out, 0 to 1.
    holdout_share: f64,
    objective: Objective,
    policies: Vec<String>,
    engines: Vec<Engine>,
    cells: Vec<Row<'a>>,
    summary: Vec<Summary>,
    fixed_clocks: Vec<Curve<'a>>,
}

fn rows(cells: &[CellResult]) -> impl Iterator<Item = Row<'_>> {
    cells.iter().flat_map(|cell| {
        cell.runs.iter().map(|run| Row {
            gpu: cell.load.gpu.key,
            model: cell.load.model.key,
            workload: cell.load.source.to_string(),
            seed: cell.seed,
            policy: run.of.policy.to_string(),
            engine: run.of.engine.map(Kind::name),
            score: &run.score,
        })
    })
}

/// One entry per [`Experiment::entrants`].
#[must_use]
pub fn summaries(experiment: &Experiment, cells: &[CellResult]) -> Vec<Summary> {
    let of_policy = |index: usize| cells.iter().filter_map(move |cell| cell.runs.get(index));
    experiment
        .entrants()
        .into_iter()
        .zip(qualities(experiment, cells))
        .enumerate()
        .map(|(index, (of, quality))| {
            let all =
                |of: &dyn Fn(&Score) -> f64| of_policy(index).map(|run| of(&run.score)).collect::<Vec<f64>>();
            Summary {
                of,
                policy: of.policy.to_string(),
                engine: of.engine.map(Kind::name),
                energy_saved: mean(&all(&|score| score.energy_saved)).unwrap_or(0.0),
                share_over_limits: mean(&all(&|score| score.share_over_limits)).unwrap_or(0.0),
                promise: Kept::of(&by_load(experiment, cells, index)),
                by_e2e: overall(experiment, cells, index, Yardstick::E2e),
                by_tpot: overall(experiment, cells, index, Yardstick::Tpot),
                quality,
            }
        })
        .collect()
}

/// The promises of one policy, load by load.
fn by_load<'a>(
    experiment: &Experiment,
    cells: &'a [CellResult],
    index: usize,
) -> Vec<(String, Vec<&'a Promise>)> {
    let seeds = cells.chunks(experiment.seeds.len().max(1));
    let named = seeds.filter_map(|seeds| Some((seeds.first()?.load.to_string(), seeds)));
    named
        .map(|(load, seeds)| {
            let runs = seeds.iter().filter_map(|cell| cell.runs.get(index));
            (load, runs.map(|run| &run.score.promise).collect())
        })
        .collect()
}

fn overall(experiment: &Experiment, cells: &[CellResult], index: usize, yardstick: Yardstick) -> Overall {
    let verdicts: Vec<_> = cells
        .iter()
        .filter_map(|cell| cell.runs.get(index))
        .map(|run| match yardstick {
            Yardstick::E2e => run.score.by_e2e,
            Yardstick::Tpot => run.score.by_tpot,
        })
        .collect();
    let all = |of: &dyn Fn(&super::score::Verdict) -> f64| verdicts.iter().map(of).collect::<Vec<f64>>();
    let ratios = all(&|verdict| verdict.ratio_to_best_fixed);
    let shares: Vec<f64> =
        verdicts.iter().filter_map(|verdict| verdict.share_of_clairvoyant_saving).collect();
    let worst = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let per_load: Vec<f64> = ratios.chunks(experiment.seeds.len().max(1)).map(geometric_mean).collect();
    Overall {
        ratio_to_best_fixed: geometric_mean(&ratios),
        ratio_to_best_fixed_last_third: geometric_mean(&all(&|v| v.ratio_to_best_fixed_last_third)),
        worst_load: worst(&per_load),
        worst_cell: worst(&ratios),
        ratio_to_default: geometric_mean(&all(&|verdict| verdict.ratio_to_default)),
        share_of_clairvoyant_saving: mean(&shares),
        converged: mean(&all(&|verdict| f64::from(u8::from(verdict.converged_s.is_some())))).unwrap_or(0.0),
    }
}

/// Everything as JSON.
///
/// # Errors
/// If a value cannot be written.
pub fn json(experiment: &Experiment, cells: &[CellResult]) -> serde_json::Result<String> {
    let curve = |cell: &'_ CellResult| -> Vec<FixedClock> {
        let objective = cell.sweep.objective;
        let clock = |run: &super::oracle::StaticRun| FixedClock {
            core_mhz: run.clocks.core,
            memory_mhz: run.clocks.memory,
            cost_e2e: cost(&run.whole, Yardstick::E2e, objective),
            cost_tpot: cost(&run.whole, Yardstick::Tpot, objective),
            energy_j: run.whole.energy.0,
            mean_tpot_s: run.whole.tpot.mean,
            mean_e2e_s: run.whole.e2e.mean,
        };
        cell.sweep.runs.iter().map(clock).collect()
    };
    serde_json::to_string_pretty(&Report {
        agft_version: env!("CARGO_PKG_VERSION"),
        seconds: experiment.seconds,
        faults_s: experiment.faults.0,
        holdout_share: if experiment.holdout { experiment.config.holdout.share } else { 0.0 },
        objective: experiment.config.control.objective,
        policies: experiment.policies.iter().map(ToString::to_string).collect(),
        engines: experiment
            .engines
            .iter()
            .map(|kind| Engine { name: kind.name(), not_judged: experiment.not_judged(kind) })
            .collect(),
        cells: rows(cells).collect(),
        summary: summaries(experiment, cells),
        fixed_clocks: cells
            .iter()
            .map(|cell| Curve {
                gpu: cell.load.gpu.key,
                model: cell.load.model.key,
                workload: cell.load.source.to_string(),
                seed: cell.seed,
                clocks: curve(cell),
            })
            .collect(),
    })
}

/// Columns that say what a row is about.
const IDENTITY: [&str; 6] = ["gpu", "model", "workload", "seed", "policy", "engine"];

/// One row per load, seed, policy and engine.
///
/// # Errors
/// If a value cannot be written.
pub fn csv(cells: &[CellResult]) -> serde_json::Result<String> {
    let mut text = String::new();
    for row in rows(cells) {
        let mut fields = Vec::new();
        if let Value::Object(object) = serde_json::to_value(&row)? {
            flatten("", &object, &mut fields);
        }
        // What the row is about comes first; the rest is in alphabetical order.
        fields.sort_by_key(|(name, _)| IDENTITY.iter().position(|id| id == name).unwrap_or(IDENTITY.len()));
        if text.is_empty() {
            text += &fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",");
            text.push('\n');
        }
        text += &fields.into_iter().map(|(_, value)| value).collect::<Vec<_>>().join(",");
        text.push('\n');
    }
    Ok(text)
}

fn flatten(prefix: &str, object: &Map<String, Value>, fields: &mut Vec<(String, String)>) {
    for (name, value) in object {
        let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}_{name}") };
        match value {
            Value::Object(inner) => flatten(&name, inner, fields),
            Value::Null => fields.push((name, String::new())),
            Value::String(text) => fields.push((name, quoted(text))),
            other => fields.push((name, other.to_string())),
        }
    }
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_commas_and_quotes_stay_one_cell() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }

    #[test]
    fn nested_fields_get_joined_names() {
        let value = serde_json::json!({"tpot": {"mean_s": 0.5, "p95_s": null}, "seed": 3});
        let mut fields = Vec::new();
        flatten("", value.as_object().unwrap(), &mut fields);
        fields.sort();
        let expected = [("seed", "3"), ("tpot_mean_s", "0.5"), ("tpot_p95_s", "")];
        assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
