//! Two runs side by side.

use std::fmt::Write;

use super::Report;
use super::markdown::{percent, show, signed};

/// One thing that both runs say: name, the two values as text, and the relative difference where it means something.
type Row = (&'static str, String, String, Option<f64>);

fn rows(a: &Report, b: &Report) -> Vec<Row> {
    let measured = |name, of: &dyn Fn(&Report) -> Option<f64>, digits, unit: &str| {
        let (first, second) = (of(a), of(b));
        let change =
            first.zip(second).filter(|(first, _)| *first > 0.0).map(|(first, second)| second / first - 1.0);
        (name, show(first, digits, unit), show(second, digits, unit), change)
    };
    let said = |name, of: &dyn Fn(&Report) -> String| (name, of(a), of(b), None);
    let per_second =
        |report: &Report, tokens: f64| (report.digest.seconds > 0.0).then(|| tokens / report.digest.seconds);
    vec![
        said("GPU", &|report| report.gpu().to_owned()),
        measured("minutes", &|report| Some(report.digest.seconds / 60.0), 1, ""),
        measured("tokens/s in", &|report| per_second(report, report.digest.prompt_tokens), 1, ""),
        measured("tokens/s out", &|report| per_second(report, report.digest.generated_tokens), 1, ""),
        measured("power", &|report| report.digest.power_w(), 1, " W"),
        measured("energy per generated token", &|report| report.digest.joules_per_token(), 4, " J"),
        measured("time to first token", &|report| report.digest.ttft_s.mean().map(|s| 1e3 * s), 1, " ms"),
        measured("time per output token", &|report| report.digest.tpot_s.mean().map(|s| 1e3 * s), 2, " ms"),
        measured(
            "energy per token x time per token",
            &|report| Some(report.digest.joules_per_token()? * report.digest.tpot_s.mean()?),
            6,
            " Js",
        ),
        said("within the latency limits", &|report| percent(report.digest.limits_kept())),
        said("saved against default (estimate)", &|report| signed(report.digest.estimate.saved())),
        said("slower than default (estimate)", &|report| signed(report.digest.estimate.slowdown())),
        measured(
            "clock changes",
            &|report| Some(f64::from(u32::try_from(report.digest.command_changes).unwrap_or(u32::MAX))),
            0,
            "",
        ),
    ]
}

/// What keeps the two from being compared, for the reader to know.
fn cautions(a: &Report, b: &Report) -> Vec<String> {
    let mut cautions = Vec::new();
    if a.gpu() != b.gpu() {
        cautions.push("The GPUs are different products.".to_owned());
    }
    let rate = |report: &Report| report.digest.generated_tokens / report.digest.seconds.max(1e-9);
    let (first, second) = (rate(a), rate(b));
    if (first / second.max(1e-9) - 1.0).abs() > 0.1 {
        cautions.push(format!(
            "The loads differ ({first:.0} and {second:.0} generated tokens per second): the differences below are not \
             those of the clocks alone."
        ));
    }
    cautions
}

/// The comparison as a Markdown table.
pub(crate) fn markdown(a: &Report, b: &Report) -> String {
    let rows = rows(a, b);
    let width =
        |at: fn(&Row) -> usize, name: &str| rows.iter().map(at).max().unwrap_or(0).max(name.chars().count());
    let names = width(|row| row.0.chars().count(), "");
    let (first, second) =
        (width(|row| row.1.chars().count(), &a.name), width(|row| row.2.chars().count(), &b.name));
    let mut out = String::new();
    // Writing to a string cannot fail.
    for caution in cautions(a, b) {
        let _ = writeln!(out, "{caution}");
    }
    if !out.is_empty() {
        out.push('\n');
    }
    let _ =
        writeln!(out, "| {:names$} | {:>first$} | {:>second$} | {:>10} |", "", a.name, b.name, "difference");
    let line = |n: usize| "-".repeat(n);
    let _ = writeln!(out, "|{}|{}:|{}:|{}:|", line(names + 2), line(first + 1), line(second + 1), line(11));
    for (name, one, other, change) in &rows {
        let change = change.map_or(String::new(), |change| format!("{:+.1} %", 100.0 * change));
        let _ = writeln!(out, "| {name:names$} | {one:>first$} | {other:>second$} | {change:>10} |");
    }
    out
}
