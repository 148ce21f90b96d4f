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

/// The table's columns after load, connections and rule: what, and in which unit.
const COLUMNS: [(&str, &str); 16] = [
    ("power", "W"),
    ("saved", "%"),
    ("of", "best %"),
    ("idle", "W"),
    ("parked", "%"),
    ("wakes", "per h"),
    ("TTFT", "p99 ms"),
    ("TTFT", "mean %"),
    ("TTFT", "p50 %"),
    ("TTFT", "p95 %"),
    ("TTFT", "p99 %"),
    ("E2E", "p99 %"),
    ("late", "%"),
    ("by", "ms"),
    ("notice", "ms"),
    ("settle", "ms"),
];

/// One line per load, way of connecting and rule, its seeds summed up.
#[must_use]
pub fn table(trial: &Trial, outcomes: &[Outcome]) -> String {
    let seeds = trial.seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut out = format!(
        "Parking, at default clocks while serving, {} s, seeds {seeds}.\n\
         own conn.: share of requests with a connection of their own. of best: share of the clairvoyant's saving. Percent of\n\
         TTFT and E2E: against no parking on the same arrivals. late: requests whose first token came > 1 ms later, and by how\n\
         much. notice: from the first byte to the clock write. settle: from there until the clocks are in force.\n\n",
        trial.seconds,
    );
    let heads: [[&str; 3]; 2] = [["load", "own", "rule"], ["", "conn.", ""]];
    let units = COLUMNS.map(|(_, unit)| unit.to_owned());
    line(&mut out, heads[0], &COLUMNS.map(|(name, _)| name.to_owned()));
    line(&mut out, heads[1], &units);
    for group in groups(outcomes) {
        let Some(first) = group.first() else { continue };
        let connections = if first.policy.sees_connections() {
            format!("{:.2}", first.fresh_connections)
        } else {
            "any".to_owned()
        };
        let (load, rule) = (first.load.to_string(), first.policy.to_string());
        line(&mut out, [&load, &connections, &rule], &row(&group, trial.seconds));
    }
    out
}

fn line(out: &mut String, [load, connections, rule]: [&str; 3], cells: &[String]) {
    // Writing to a string cannot fail.
    let _ = write!(out, "{load:<16} {connections:>5} {rule:<18}");
    for cell in cells {
        let _ = write!(out, " {cell:>6}");
    }
    out.push('\n');
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

#[expect(clippy::cast_precision_loss, reason = "numbers of seeds, wakes and requests")]
fn row(group: &[&Outcome], seconds: f64) -> [String; COLUMNS.len()] {
    let seeds = group.len().max(1) as f64;
    let mean = |of: &dyn Fn(&Figures, &Against) -> f64| {
        group.iter().map(|outcome| of(&outcome.figures, &outcome.against)).sum::<f64>() / seeds
    };
    // Of what belongs to single wakes or requests: each counts once.
    let per = |of: &dyn Fn(&Figures, &Against) -> (f64, f64)| {
        let pairs = group.iter().map(|outcome| of(&outcome.figures, &outcome.against));
        let (sum, count) = pairs.fold((0.0, 0.0), |all, (mean, n)| (all.0 + mean * n, all.1 + n));
        1e3 * sum / f64::max(count, 1e-9)
    };
    // Of ratios, the geometric mean.
    let cost = |of: &dyn Fn(&Against) -> f64| 100.0 * mean(&|_, against| of(against).ln_1p()).exp_m1();
    let wakes = mean(&|figures, _| figures.wakes as f64) * 3600.0 / seconds;
    let share: Option<f64> = group.iter().map(|outcome| outcome.against.share_of_clairvoyant_saving).sum();
    [
        one(mean(&|figures, _| figures.mean_power_w)),
        one(100.0 * mean(&|_, against| against.energy_saved)),
        share.map_or_else(|| "-".to_owned(), |sum| one(100.0 * sum / seeds)),
        one(mean(&|figures, _| figures.idle_power_w)),
        one(100.0 * mean(&|figures, _| figures.parked_share)),
        one(wakes),
        one(1e3 * mean(&|figures, _| figures.ttft_s.p99)),
        one(cost(&|against| against.ttft_cost.mean)),
        one(cost(&|against| against.ttft_cost.p50)),
        one(cost(&|against| against.ttft_cost.p95)),
        one(cost(&|against| against.ttft_cost.p99)),
        one(cost(&|against| against.e2e_p99_cost)),
        one(100.0 * mean(&|_, against| against.delayed_share)),
        one(per(&|figures, against| (against.delay_s, against.delayed_share * figures.requests as f64))),
        one(per(&|figures, _| (figures.notice_s, figures.wakes_for_requests as f64))),
        one(per(&|figures, _| (figures.settle_s, figures.wakes as f64))),
    ]
}

/// With one decimal; what rounds to zero has no sign.
fn one(value: f64) -> String {
    let rounded = (10.0 * value).round() / 10.0;
    format!("{:.1}", rounded + 0.0)
}
