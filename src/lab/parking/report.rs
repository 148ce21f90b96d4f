//! The comparison as a table and as JSON. Field names end in their unit; shares and relative changes have none.

use std::fmt::Write as _;

use serde::Serialize;

use super::figures::{Against, Figures};
use super::{FRONT_END_DELAY, Outcome, Trial};

#[derive(Debug, Serialize)]
struct Row<'a> {
    gpu: &'a str,
    model: &'a str,
    workload: String,
    seed: u64,
    fresh_connections: f64,
    rule: String,
    #[serde(flatten)]
    figures: &'a Figures,
    #[serde(flatten)]
    against: &'a Against,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    agft_version: &'static str,
    seconds: f64,
    front_end_delay_s: f64,
    cells: Vec<Row<'a>>,
}

/// Every cell with every figure.
///
/// # Errors
/// None in practice: all names and numbers can be written.
pub fn json(trial: &Trial, outcomes: &[Outcome]) -> serde_json::Result<String> {
    let cells = outcomes
        .iter()
        .map(|outcome| Row {
            gpu: outcome.load.gpu.key,
            model: outcome.load.model.key,
            workload: outcome.load.source.to_string(),
            seed: outcome.seed,
            fresh_connections: outcome.fresh_connections,
            rule: outcome.policy.to_string(),
            figures: &outcome.figures,
            against: &outcome.against,
        })
        .collect();
    serde_json::to_string_pretty(&Report {
        agft_version: env!("CARGO_PKG_VERSION"),
        seconds: trial.seconds,
        front_end_delay_s: FRONT_END_DELAY.0,
        cells,
    })
}

/// One line per load, way of connecting and rule, its seeds summed up.
#[must_use]
pub fn table(trial: &Trial, outcomes: &[Outcome]) -> String {
    let mut out = String::new();
    let seeds = trial.seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "Parking at default clocks while serving, {} s, seeds {seeds}; latencies against no parking, same arrivals.\n\
         own conn.: share of requests with a connection of their own; of best: share of the clairvoyant's saving;\n\
         late: requests whose first token came > 1 ms later, and by how much; noticed: first byte to clock write; settled:\n\
         until the clock is in force; slow: time per hour in which work ran at lowered clocks.\n",
        trial.seconds,
    );
    let _ = writeln!(
        out,
        "{:<20} {:>5} {:<18} {:>7} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6} {:>6} {:>6}",
        "load",
        "own",
        "rule",
        "power",
        "saved",
        "of",
        "idle",
        "parked",
        "wakes",
        "TTFT",
        "TTFT",
        "TTFT",
        "TTFT",
        "E2E",
        "late",
        "by",
        "notic.",
        "settl.",
        "slow",
    );
    let _ = writeln!(
        out,
        "{:<20} {:>5} {:<18} {:>7} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6} {:>6} {:>6}",
        "",
        "conn.",
        "",
        "W",
        "%",
        "best %",
        "W",
        "%",
        "per h",
        "mean %",
        "p50 %",
        "p95 %",
        "p99 %",
        "p99 %",
        "%",
        "ms",
        "ms",
        "ms",
        "s/h",
    );
    for group in groups(outcomes) {
        let Some(first) = group.first() else { continue };
        let _ = writeln!(
            out,
            "{:<20} {:>5} {:<18} {}",
            first.load.to_string(),
            if first.policy.sees_connections() {
                format!("{:.2}", first.fresh_connections)
            } else {
                "-".into()
            },
            first.policy.to_string(),
            row(&group, trial.seconds)
        );
    }
    out
}

/// Outcomes that differ in nothing but the seed, in the order of the first of each.
fn groups(outcomes: &[Outcome]) -> Vec<Vec<&Outcome>> {
    let mut groups: Vec<Vec<&Outcome>> = Vec::new();
    for outcome in outcomes {
        let alike = |group: &&mut Vec<&Outcome>| {
            group.first().is_some_and(|first| {
                first.load == outcome.load
                    && first.policy == outcome.policy
                    && first.fresh_connections.total_cmp(&outcome.fresh_connections).is_eq()
            })
        };
        match groups.iter_mut().find(alike) {
            Some(group) => group.push(outcome),
            None => groups.push(vec![outcome]),
        }
    }
    groups
}

fn row(group: &[&Outcome], seconds: f64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a number of seeds")]
    let seeds = group.len().max(1) as f64;
    let mean = |of: &dyn Fn(&Figures, &Against) -> f64| {
        group.iter().map(|outcome| of(&outcome.figures, &outcome.against)).sum::<f64>() / seeds
    };
    // Of ratios, the geometric mean.
    let cost = |of: &dyn Fn(&Against) -> f64| 100.0 * (mean(&|_, against| of(against).ln_1p()).exp() - 1.0);
    #[expect(clippy::cast_precision_loss, reason = "a number of wakes")]
    let wakes = mean(&|figures, _| figures.wakes as f64) * 3600.0 / seconds;
    let share: Option<f64> = group.iter().map(|outcome| outcome.against.share_of_clairvoyant_saving).sum();
    let share = share.map_or_else(|| "-".to_owned(), |sum| format!("{:.0}", 100.0 * sum / seeds));
    format!(
        "{:7.1} {:6.1} {share:>6} {:6.1} {:6.1} {wakes:6.0} {:6.2} {:7.2} {:7.2} {:7.2} {:7.2} {:6.1} {:6.0} {:6.1} {:6.1} {:6.1}",
        mean(&|figures, _| figures.mean_power_w),
        100.0 * mean(&|_, against| against.energy_saved),
        mean(&|figures, _| figures.idle_power_w),
        100.0 * mean(&|figures, _| figures.parked_share),
        cost(&|against| against.ttft_cost.mean),
        cost(&|against| against.ttft_cost.p50),
        cost(&|against| against.ttft_cost.p95),
        cost(&|against| against.ttft_cost.p99),
        cost(&|against| against.e2e_p99_cost),
        100.0 * mean(&|_, against| against.delayed_share),
        1e3 * mean(&|_, against| against.delay_s),
        1e3 * mean(&|figures, _| figures.notice_s),
        1e3 * mean(&|figures, _| figures.settle_s),
        mean(&|figures, _| figures.slow_s) * 3600.0 / seconds,
    )
}
