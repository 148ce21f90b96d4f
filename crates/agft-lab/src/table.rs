//! Results for the terminal: one row per load and policy, its seeds summed up, and one per policy at the end.

use std::fmt::Write;

use super::engines;
use super::experiment::{CellResult, Experiment};
use super::promise::{Promise, share_of_fixed_saving, sum};
use super::report::{Summary, summaries};
use super::score::{Score, geometric_mean};
use agft::reward::Objective;
use agft::stats::mean;

/// The table.
#[must_use]
pub fn render(experiment: &Experiment, cells: &[CellResult]) -> String {
    let mut out = String::new();
    let name = match experiment.config.control.objective {
        Objective::Edp => "EDP",
        Objective::Ed2p => "ED2P",
        Objective::Energy => "energy",
    };
    let _ = writeln!(
        out,
        "{name} over that of the best fixed clock (1 is equal, below 1 is better), {} s from scratch, seeds {}.\n\
         E2E: energy x mean end-to-end latency. TPOT: energy per token x mean time per output token.",
        experiment.seconds,
        experiment.seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    );
    if experiment.faults.0 > 0.0 {
        let _ = writeln!(out, "No page for {} s of every 600.", experiment.faults.0);
    }
    let engines: Vec<&str> = experiment.engines.iter().map(|kind| kind.name()).collect();
    let _ = writeln!(out, "Engine: {}.", engines.join(", "));
    out += &engines::left_out(experiment);
    if experiment.holdout {
        let _ = writeln!(out, "{:.1} % of the time held out.", 100.0 * experiment.config.holdout.share);
    }
    out.push('\n');
    let width = cells.iter().map(|cell| cell.load.to_string().len()).max().unwrap_or(0).max(28);
    let label = experiment.entrants().iter().map(|of| of.to_string().len()).max().unwrap_or(0).max(14);
    let _ = writeln!(
        out,
        "{:<width$} {:<label$} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7} {:>6} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6} {:>6} {:>5}",
        "load",
        "policy",
        "E2E",
        "worst",
        "last/3",
        "TPOT",
        "last/3",
        "/deflt",
        "saved",
        "TTFT",
        "TPOT",
        "E2E",
        "over",
        "steps",
        "conv",
        "regret",
        "best",
    );
    let _ = writeln!(
        out,
        "{:<width$} {:<label$} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7} {:>6} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6} {:>6} {:>5}",
        "",
        "",
        "ratio",
        "seed",
        "E2E",
        "ratio",
        "TPOT",
        "E2E",
        "%",
        "p99 ms",
        "mean ms",
        "mean s",
        "%",
        "",
        "s",
        "s",
        "MHz",
    );
    out += &rows(experiment, cells, [width, label], row);
    out.push('\n');
    let summaries = summaries(experiment, cells);
    out += &overall(&summaries, [width, label]);
    out.push('\n');
    out += &promises(experiment, cells, [width, label]);
    out.push('\n');
    out += &kept(&summaries, [width, label]);
    if experiment.engines.len() > 1 {
        out.push('\n');
        out += &engines::table(&summaries);
    }
    out
}

/// One row per load and policy, over the seeds.
fn rows(
    experiment: &Experiment,
    cells: &[CellResult],
    [width, label]: [usize; 2],
    row: impl Fn(&[&Score]) -> String,
) -> String {
    let mut out = String::new();
    for seeds in cells.chunks(experiment.seeds.len().max(1)) {
        let Some(first) = seeds.first() else { continue };
        let load = first.load.to_string();
        for (index, of) in experiment.entrants().iter().enumerate() {
            let scores: Vec<&Score> =
                seeds.iter().filter_map(|cell| cell.runs.get(index)).map(|run| &run.score).collect();
            let shown = if index == 0 { load.as_str() } else { "" };
            let _ = writeln!(out, "{:<width$} {:<label$} {}", shown, of.to_string(), row(&scores));
        }
    }
    out
}

/// What was promised, run by run: one row per load and policy.
fn promises(experiment: &Experiment, cells: &[CellResult], [width, label]: [usize; 2]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<width$} {:<label$} {:>6} {:>6} {:>6} {:>8} {:>7} {:>8} {:>8} {:>7} {:>6} {:>6}",
        "what was promised",
        "policy",
        "of",
        "slower",
        "worst",
        "TTFT",
        "TTFT",
        "steps",
        "last",
        "over",
        "alarms",
        "false",
    );
    let _ = writeln!(
        out,
        "{:<width$} {:<label$} {:>6} {:>6} {:>6} {:>8} {:>7} {:>8} {:>8} {:>7} {:>6} {:>6}",
        "(means; alarms: sums)", "", "fixed", "%", "seed", "+ms", "+%", "/min", "half", "+points", "", "",
    );
    out += &rows(experiment, cells, [width, label], promise_row);
    out
}

fn promise_row(scores: &[&Score]) -> String {
    let runs: Vec<&Promise> = scores.iter().map(|score| &score.promise).collect();
    let known =
        |of: fn(&Promise) -> Option<f64>| mean(&runs.iter().filter_map(|run| of(run)).collect::<Vec<f64>>());
    let slower: Vec<f64> = scores.iter().map(|score| 100.0 * score.tpot_slowdown).collect();
    let worst = slower.iter().copied().reduce(f64::max);
    format!(
        "{:>6} {:>6} {:>6} {:>8} {:>7} {:>8} {:>8} {:>7} {:>6} {:>6}",
        number(share_of_fixed_saving(&runs), 2),
        number(mean(&slower), 1),
        number(worst, 1),
        number(known(|run| Some(1e3 * run.ttft_increase_s?)), 1),
        number(known(|run| run.ttft_increase_percent), 1),
        number(known(|run| Some(run.clock_changes_per_min)), 1),
        number(known(|run| Some(run.clock_changes_per_min_last_half)), 1),
        number(known(|run| Some(100.0 * run.share_over_limits_added)), 2),
        count(sum(&runs, |run| run.alarms)),
        count(sum(&runs, |run| run.false_alarms)),
    )
}

/// The promises of all runs: one row per policy.
fn kept(summaries: &[Summary], [width, label]: [usize; 2]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<width$} {:<label$} {:>7} {:>6} {:>6} {:>6} {:>6}  worst load",
        "all runs", "policy", "within", "of", "worst", "alarms", "false",
    );
    let _ = writeln!(out, "{:<width$} {:<label$} {:>7} {:>6} {:>6}", "", "", "bound %", "fixed", "load");
    for Summary { of, promise, .. } in summaries {
        let row = format!(
            "{:<width$} {of:<label$} {:>7} {:>6} {:>6} {:>6} {:>6}  {}",
            "",
            number(promise.within_slowdown.map(|share| 100.0 * share), 0),
            number(promise.share_of_fixed_saving, 2),
            number(promise.worst_load_share, 2),
            count(promise.alarms),
            count(promise.false_alarms),
            promise.worst_load.as_deref().unwrap_or("-"),
        );
        let _ = writeln!(out, "{row}");
    }
    out
}

/// A figure with so many decimals; a dash where it is not known.
fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn count(value: Option<usize>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn row(scores: &[&Score]) -> String {
    let all = |of: fn(&Score) -> f64| scores.iter().map(|score| of(score)).collect::<Vec<f64>>();
    let ratio = |of: fn(&Score) -> f64| geometric_mean(&all(of));
    #[expect(clippy::cast_precision_loss, reason = "a number of seeds")]
    let mean = |of: fn(&Score) -> f64| all(of).iter().sum::<f64>() / scores.len().max(1) as f64;
    // A policy that never arrives with one seed never arrives.
    let converged: Option<Vec<f64>> = scores.iter().map(|score| score.by_e2e.converged_s).collect();
    let converged = converged
        .map_or_else(|| "never".to_owned(), |times| format!("{:.0}", times.into_iter().fold(0.0, f64::max)));
    let worst = all(|score| score.by_e2e.ratio_to_best_fixed).into_iter().fold(0.0, f64::max);
    #[expect(clippy::cast_precision_loss, reason = "a number of writes")]
    let steps = mean(|score| score.clock_changes as f64);
    format!(
        "{:6.3} {worst:6.3} {:6.3} {:6.3} {:6.3} {:7.3} {:6.1} {:7.0} {:7.2} {:7.2} {:6.2} {steps:6.0} {converged:>6} \
         {:6.1} {:5.0}",
        ratio(|score| score.by_e2e.ratio_to_best_fixed),
        ratio(|score| score.by_e2e.ratio_to_best_fixed_last_third),
        ratio(|score| score.by_tpot.ratio_to_best_fixed),
        ratio(|score| score.by_tpot.ratio_to_best_fixed_last_third),
        ratio(|score| score.by_e2e.ratio_to_default),
        100.0 * mean(|score| score.energy_saved),
        1e3 * mean(|score| score.ttft.p99_s),
        1e3 * mean(|score| score.tpot.mean_s),
        mean(|score| score.e2e.mean_s),
        100.0 * mean(|score| score.share_over_limits),
        mean(|score| score.by_e2e.regret_s),
        mean(|score| score.by_e2e.best_fixed_mhz.as_f64()),
    )
}

fn overall(summaries: &[Summary], [width, label]: [usize; 2]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<width$} {:<label$} {:>6} {:>6} {:>6} {:>7} {:>7} {:>6} {:>6} {:>6}",
        "all loads", "policy", "mean", "worst", "worst", "last/3", "/deflt", "saved", "conv.", "clair-",
    );
    let _ = writeln!(
        out,
        "{:<width$} {:<label$} {:>6} {:>6} {:>6} {:>7} {:>7} {:>6} {:>6} {:>6}",
        "(geometric means)", "", "", "load", "cell", "", "", "%", "%", "voyant",
    );
    for summary in summaries {
        for (yardstick, by) in [("E2E", &summary.by_e2e), ("TPOT", &summary.by_tpot)] {
            let share = by.share_of_clairvoyant_saving.map_or_else(|| "-".to_owned(), |s| format!("{s:.2}"));
            let _ = writeln!(
                out,
                "{yardstick:<width$} {:<label$} {:6.3} {:6.3} {:6.3} {:7.3} {:7.3} {:6.1} {:6.0} {share:>6}",
                summary.of,
                by.ratio_to_best_fixed,
                by.worst_load,
                by.worst_cell,
                by.ratio_to_best_fixed_last_third,
                by.ratio_to_default,
                100.0 * summary.energy_saved,
                100.0 * by.converged,
            );
        }
    }
    out
}
