//! `agft replay`: a run once more from its record, with its own settings or others.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::Exit;
use crate::replay::ReplayError;
use crate::replay::other::{Comparison, Outcome, Settings, other};
use crate::replay::same::{Same, same};

/// Options of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The run's directory, for example experiment/agft_...
    #[arg(value_name = "RUN_DIR")]
    run: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Ask this policy what it would have chosen
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,

    /// Ask what this setting would have led to, for example control.ttft_limit=0.5; can be given more than once
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

pub(crate) fn run(args: &ReplayArgs) -> Exit {
    match replay(args) {
        Ok(exit) => exit,
        Err(error) => {
            complain!("agft: {error}");
            if matches!(error, ReplayError::Config(_)) { Exit::Config } else { Exit::Failure }
        }
    }
}

fn replay(args: &ReplayArgs) -> Result<Exit, ReplayError> {
    if args.policy.is_none() && args.set.is_empty() {
        let same = same(&args.run)?;
        print(args.json, &same, same_text);
        return Ok(if same.is_same() { Exit::Ok } else { Exit::Failure });
    }
    let settings = Settings::new(args.policy.as_deref(), &args.set)?;
    print(args.json, &other(&args.run, &settings)?, other_text);
    Ok(Exit::Ok)
}

fn print<T: Serialize>(json: bool, value: &T, text: impl Fn(&T) -> String) {
    let text = match json {
        // What cannot be written as JSON is written as text.
        true => serde_json::to_string_pretty(value).map_or_else(|_| text(value), |text| text + "\n"),
        false => text(value),
    };
    // A reader that is gone (`| head`) is no failure.
    super::say::print(&text);
}

fn same_text(same: &Same) -> String {
    let mut text = String::new();
    let versions: Vec<&str> = same.recorded_by.iter().map(String::as_str).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "recorded by agft {}, repeated by agft {}: {} segments, {} steps over {:.0} s, {} rounds, {} decisions, {} \
         commands",
        versions.join(" and "),
        same.replayed_by,
        same.segments,
        same.steps,
        same.seconds,
        same.rounds,
        same.decisions,
        same.commands
    );
    for note in &same.notes {
        let _ = writeln!(text, "note: {note}");
    }
    if let Some(damage) = &same.damage {
        let _ = writeln!(text, "the record ends here: {damage}");
    }
    match &same.first_difference {
        None => {
            let how_far = if same.damage.is_none() { "every" } else { "up to there every" };
            let how_well = if same.rounded == 0 {
                "bit for bit".to_owned()
            } else {
                format!("but for the last digits of {} scores: another kind of processor", same.rounded)
            };
            let _ = writeln!(text, "{how_far} step came out the same, {how_well}");
        }
        Some(difference) => {
            let _ = writeln!(
                text,
                "step {} of segment {} (at {:.3} s) came out otherwise in its {}:\n  recorded {}\n  now      {}",
                difference.step,
                difference.segment,
                difference.at,
                difference.part,
                difference.recorded,
                difference.replayed
            );
        }
    }
    text
}

fn other_text(comparison: &Comparison) -> String {
    let mut text = String::new();
    let settings: Vec<String> = comparison.set.iter().map(|(key, value)| format!(" {key}={value}")).collect();
    #[expect(clippy::cast_precision_loss, reason = "counts of rounds")]
    let share = |part: u64| 100.0 * part as f64 / comparison.rounds.max(1) as f64;
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "with{}, on what the run was shown: the same clock in {:.1} % of {} rounds ({} left out)\n",
        settings.concat(),
        share(comparison.same_clock),
        comparison.rounds,
        comparison.rounds_left_out
    );
    let _ = writeln!(text, "{:<24} {:>10} {:>10}", "clock", "recorded", "other");
    for count in &comparison.clocks {
        let clock = match (count.core, count.memory) {
            (None, _) => "driver default".to_owned(),
            (Some(core), None) => core.to_string(),
            (Some(core), Some(memory)) => format!("{core}, memory {memory}"),
        };
        let _ = writeln!(text, "{clock:<24} {:>8.1} % {:>8.1} %", share(count.recorded), share(count.other));
    }
    let _ = writeln!(text, "\nestimated means over the same windows, with 95 % intervals");
    outcome(&mut text, "reward", &comparison.reward, 1.0, 3);
    outcome(&mut text, "power (W)", &comparison.power_w, 1.0, 1);
    outcome(&mut text, "TPOT (ms)", &comparison.tpot_s, 1e3, 2);
    let support = &comparison.power_w.support;
    let _ = writeln!(
        text,
        "{} windows, overlap {:.0} %, {:.0} effective windows, the wanted clock in {} of {} blocks",
        support.windows,
        100.0 * support.overlap,
        support.effective_windows,
        support.blocks_matched,
        support.blocks
    );
    for note in &comparison.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn outcome(text: &mut String, name: &str, outcome: &Outcome, unit: f64, digits: usize) {
    let _ = match (&outcome.estimate, &outcome.refused) {
        (Some(estimate), None) => {
            let shown = |interval: &crate::replay::estimate::Interval| {
                let [mean, low, high] =
                    [interval.mean, interval.low, interval.high].map(|value| unit * value);
                format!("{mean:.digits$} [{low:.digits$}, {high:.digits$}]")
            };
            writeln!(
                text,
                "  {name:<10} recorded {}, other {}, difference {}",
                shown(&estimate.recorded),
                shown(&estimate.other),
                shown(&estimate.difference)
            )
        }
        (_, why) => {
            writeln!(text, "  {name:<10} the data cannot tell: {}", why.as_deref().unwrap_or("no estimate"))
        }
    };
}
