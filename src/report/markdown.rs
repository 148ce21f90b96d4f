//! The report as Markdown; its tables are the page's too.

use std::fmt::Write;

use super::Report;
use super::digest::AtClock;
use crate::holdout::{Change, DaySavings, SavingsState};
use crate::stats::Interval;
use crate::text;

/// A table: heading, columns, rows. All text is plain.
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) note: &'static str,
    pub(super) columns: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
}

/// What an estimate is worth, said wherever one is shown.
pub(super) const ESTIMATE: &str = "Estimates compare each window with what driver-default clocks would have \
    cost under its load, as the policy's model predicts it or enough windows at default clocks have shown it: \
    energy for the same work, time per output token for the same tokens, with 95 % intervals. They are no \
    controlled experiment. Parked time, and time under loads of which that is not known, are not in them.";

pub(super) fn show(value: Option<f64>, digits: usize, unit: &str) -> String {
    value
        .filter(|value| value.is_finite())
        .map_or("unknown".into(), |value| format!("{value:.digits$}{unit}"))
}

pub(super) fn percent(share: Option<f64>) -> String {
    show(share.map(|share| 100.0 * share), 1, " %")
}

/// An estimate with its 95 % interval.
pub(super) fn signed(change: Option<Interval>) -> String {
    change.map_or("not known".into(), |of| {
        format!("{:+.1} % ± {:.1} %", 100.0 * of.value, 100.0 * of.half_width)
    })
}

/// What the holdout experiment says, with its 95 % interval.
fn measured(change: Option<Change>) -> String {
    change.map_or("too few cycles of the holdout".into(), |of| {
        let (mean, half) = (100.0 * of.relative, 100.0 * of.relative_half_width);
        format!("{mean:+.1} % ± {half:.1} % ({} cycles)", of.cycles)
    })
}

/// What the holdout experiment has cost.
fn given_away(savings: &SavingsState) -> String {
    savings.given_away_j().map_or("unknown".into(), |joules| {
        format!("{:.1} Wh in {} at default clocks", joules / 3600.0, span(savings.held_s))
    })
}

/// Seconds as people say them.
pub(super) fn span(seconds: f64) -> String {
    match seconds {
        long if long >= 5400.0 => format!("{:.1} h", long / 3600.0),
        long if long >= 90.0 => format!("{:.1} min", long / 60.0),
        short => format!("{short:.1} s"),
    }
}

/// What came of the run, in a few lines: name and value.
pub(super) fn headline(report: &Report) -> Vec<(&'static str, String)> {
    let digest = &report.digest;
    let energy = if digest.energy_j >= 1e4 {
        format!("{:.1} kJ", digest.energy_j / 1e3)
    } else {
        format!("{:.0} J", digest.energy_j)
    };
    let estimate = &digest.estimate;
    let energy_change = estimate.saved().map(|saved| Interval { value: -saved.value, ..saved });
    vec![
        ("GPU", report.gpu().to_owned()),
        ("Length", format!("{} in {} rounds", span(digest.seconds), digest.rounds)),
        ("Energy", format!("{energy}, {} on average", show(digest.power_w(), 0, " W"))),
        ("Tokens", format!("{:.0} in, {:.0} out", digest.prompt_tokens, digest.generated_tokens)),
        ("Energy per generated token", show(digest.joules_per_token(), 3, " J")),
        ("Energy against default clocks (measured)", measured(digest.savings.effect.power_w)),
        ("Time per output token (measured)", measured(digest.savings.effect.tpot_s)),
        ("Time to first token (measured)", measured(digest.savings.effect.ttft_s)),
        ("Energy not saved for that proof", given_away(&digest.savings)),
        ("Energy against default clocks (estimate)", signed(energy_change)),
        ("Time per output token against default clocks (estimate)", signed(estimate.slowdown())),
        ("Compared", format!("{} of {} with work", span(estimate.compared_s), span(estimate.served_s))),
        ("Time to first token", show(digest.ttft_s.mean().map(|seconds| 1e3 * seconds), 1, " ms")),
        ("Time per output token", show(digest.tpot_s.mean().map(|seconds| 1e3 * seconds), 2, " ms")),
        ("Time within the latency limits", percent(digest.limits_kept())),
        ("Clock changes", digest.command_changes.to_string()),
    ]
}

pub(super) fn tables(report: &Report) -> Vec<Table> {
    let digest = &report.digest;
    let mut tables = Vec::new();
    let share = |seconds: f64| percent((digest.seconds > 0.0).then(|| seconds / digest.seconds));
    let at = |name: String, at: &AtClock| {
        let ratio = at.edp_ratio();
        let interval = ratio.and_then(|ratio| Some(format!("{:.3} to {:.3}", ratio.low?, ratio.high?)));
        vec![
            name,
            span(at.seconds),
            share(at.seconds),
            show(at.power_w.mean(), 0, " W"),
            show(at.tpot_s.mean().map(|seconds| 1e3 * seconds), 2, " ms"),
            show(ratio.map(|ratio| ratio.mean), 3, ""),
            interval.unwrap_or_else(|| "unknown".into()),
            ratio.map_or(0, |ratio| ratio.windows).to_string(),
        ]
    };
    let mut rows: Vec<Vec<String>> =
        digest.locks.iter().rev().map(|(mhz, of)| at(format!("{mhz} MHz"), of)).collect();
    rows.push(at("driver default".into(), &digest.default_clocks));
    tables.push(Table {
        title: "Clocks",
        note: "EDP is energy times time per output token, over that of default clocks under the same load. The interval takes \
               the windows for independent; neighbouring ones are not, so the truth is somewhat wider.",
        columns: vec!["clock", "time", "share", "power", "TPOT", "EDP ratio", "95 % interval", "windows"],
        rows,
    });
    tables.extend(days(&digest.savings));
    let start = |seconds: f64| span(seconds);
    let rows = report.phases.iter().map(|phase| {
        let mean = &phase.mean;
        vec![
            start(phase.start_s),
            span(phase.end_s - phase.start_s),
            show(mean.prefill_tps.mean(), 0, ""),
            show(mean.decode_tps.mean(), 0, ""),
            show(mean.running.mean(), 1, ""),
            show(mean.clock_mhz.mean(), 0, " MHz"),
            show(mean.power_w.mean(), 0, " W"),
            show(mean.tpot_s.mean().map(|seconds| 1e3 * seconds), 2, " ms"),
            show(mean.edp_ratio.mean(), 3, ""),
            span(mean.violated_s),
        ]
    });
    tables.push(Table {
        title: "Load phases",
        note: "Stretches of similar load; the shaded bands of the plots over time.",
        columns: vec![
            "from",
            "length",
            "tokens/s in",
            "tokens/s out",
            "running",
            "clock",
            "power",
            "TPOT",
            "EDP ratio",
            "limit broken",
        ],
        rows: rows.collect(),
    });
    tables.push(Table {
        title: "States",
        note: "",
        columns: vec!["state", "time", "share"],
        rows: digest
            .state_s
            .iter()
            .map(|(name, seconds)| vec![name.clone(), span(*seconds), share(*seconds)])
            .collect(),
    });
    if !digest.decisions.is_empty() {
        tables.push(Table {
            title: "Decisions",
            note: "",
            columns: vec!["reason", "times"],
            rows: digest
                .decisions
                .iter()
                .map(|(reason, times)| vec![reason.clone(), times.to_string()])
                .collect(),
        });
    }
    if digest.gap_count > 0 {
        let begin = digest.timeline.start_unix_s.unwrap_or(0.0);
        let rows = digest.gaps.iter().map(|gap| vec![span(gap.start_unix_s - begin), span(gap.seconds)]);
        tables.push(Table {
            title: "Times without rounds",
            note: "Outages of the metrics page, restarts of the engine, pauses, or a machine that slept.",
            columns: vec!["from", "length"],
            rows: rows.collect(),
        });
    }
    tables
}

/// What the holdout experiment has shown, by day.
fn days(savings: &SavingsState) -> Option<Table> {
    let row = |day: &DaySavings| {
        let DaySavings { day_unix_s, cycles, effect } = day;
        vec![
            date(*day_unix_s),
            cycles.to_string(),
            measured(effect.power_w),
            measured(effect.tpot_s),
            measured(effect.ttft_s),
        ]
    };
    let rows: Vec<Vec<String>> = savings.days.iter().map(row).collect();
    (!rows.is_empty()).then_some(Table {
        title: "Measured against default clocks, by day",
        note: "By the holdout experiment, with 95 % intervals: -20 % is a fifth less than at default clocks. Energy is mean power \
               over the same time, idle time and parking in it.",
        columns: vec!["day (UTC)", "cycles", "energy", "TPOT", "TTFT"],
        rows,
    })
}

fn date(unix_s: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates, and what is no date is refused")]
    let moment = jiff::Timestamp::from_second(unix_s as i64);
    moment.map_or_else(|_| "unknown".into(), |moment| moment.strftime("%Y-%m-%d").to_string())
}

/// A cell that cannot break the table.
fn cell(text: &str) -> String {
    text::whole(text).replace('|', "\\|").replace(['<', '>'], " ")
}

pub(crate) fn markdown(report: &Report) -> String {
    let mut out = format!("# agft: {}\n\n", cell(&report.name));
    // Writing to a string cannot fail.
    for note in &report.notes {
        let _ = writeln!(out, "> {}\n", cell(note));
    }
    out += "| | |\n|---|---|\n";
    for (name, value) in headline(report) {
        let _ = writeln!(out, "| {name} | {} |", cell(&value));
    }
    let _ = writeln!(out, "\n{ESTIMATE}");
    for table in tables(report) {
        let _ = writeln!(out, "\n## {}\n", table.title);
        if !table.note.is_empty() {
            let _ = writeln!(out, "{}\n", table.note);
        }
        let _ = writeln!(out, "| {} |\n|{}", table.columns.join(" | "), "---|".repeat(table.columns.len()));
        for row in &table.rows {
            let cells: Vec<String> = row.iter().map(|text| cell(text)).collect();
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        }
    }
    out
}
