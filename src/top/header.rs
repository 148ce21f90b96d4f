//! The lines at the top: what agft does, the GPUs, the load, what is saved, what went wrong.

use std::collections::BTreeMap;

use ratatui::text::{Line, Span};

use super::model::Link;
use super::text::{Theme, energy, number, span};
use crate::bandit::Phase;
use crate::control::Mode;
use crate::reward::slo::Statistic;
use crate::units::{Mhz, Seconds};
use crate::view::{GpuState, HostState, State, clocks_words};

/// The picture is called old when it is older than this although the daemon talks to us: its loop hangs.
const OLD_S: f64 = 5.0;

/// The lines; the first has [`standing`] at its right. GPUs take at most `gpu_lines`.
pub(super) fn lines(host: &HostState, state: &State, theme: Theme, gpu_lines: usize) -> Vec<Line<'static>> {
    let mut lines = vec![mode(host, state, theme), verdict(state, theme)];
    lines.extend(gpus(&state.gpus, theme, gpu_lines));
    lines.extend([clocks(state, theme), load(state, theme), learner(state, theme), trouble(state, theme)]);
    lines
}

/// Lines that are there whatever the GPUs are.
pub(super) const FIXED: u16 = 6;

/// Is this the present? In words for the right end of the first line, and whether all is well.
/// Of a part of the picture that is `of_unix_s` old.
pub(super) fn standing(link: &Link, host: &HostState, of_unix_s: f64, now_unix_s: f64) -> (String, bool) {
    let age = now_unix_s - of_unix_s;
    match link {
        Link::Live if age <= OLD_S => {
            (format!("live, up {}", span(Seconds(of_unix_s - host.started_unix_s))), true)
        }
        Link::Live | Link::Lost(_) | Link::Waiting => {
            (format!("NOT LIVE, {} old", span(Seconds(age))), false)
        }
    }
}

fn named(theme: Theme, name: &'static str, rest: String) -> Line<'static> {
    Line::from(vec![Span::styled(format!(" {name:<8} "), theme.faint()), Span::raw(rest)])
}

fn mode_words(mode: Mode) -> &'static str {
    match mode {
        Mode::Starting => "waits for the first pages",
        Mode::Baseline => "measures default clocks",
        Mode::Exploration => "tries clocks out",
        Mode::Exploitation => "uses what it knows",
        Mode::SloGuard => "a limit broke: default clocks",
        Mode::Idle => "no work: clocks parked",
        Mode::Outage => "no metrics page: default clocks",
        Mode::Fault => "hands off for a while",
        Mode::Paused => "by an operator: default clocks",
        Mode::DataCollection => "records only",
        Mode::Holdout => "measures default clocks",
    }
}

fn mode(host: &HostState, state: &State, theme: Theme) -> Line<'static> {
    let style = match state.mode {
        Mode::SloGuard | Mode::Outage | Mode::Fault | Mode::Paused => theme.alert(),
        _ => theme.good(),
    };
    let dry = if host.dry_run { ", dry run" } else { "" };
    let mut line = process(host, theme);
    if host.servers.len() > 1 {
        line.push_span(Span::styled(format!("{}  ", state.name), theme.strong()));
    }
    line.extend([
        Span::styled(state.mode.name(), style),
        Span::raw(format!(": {}{dry}", mode_words(state.mode))),
    ]);
    line
}

pub(super) fn process(host: &HostState, theme: Theme) -> Line<'static> {
    let which = format!(" {} (pid {})  ", host.version, host.pid);
    Line::from(vec![Span::styled(" agft", theme.strong()), Span::raw(which)])
}

fn gpu(gpu: &GpuState, theme: Theme) -> Line<'static> {
    let clock = number(gpu.core_clock.map(Mhz::as_f64), 0, " MHz");
    let mut line = named(
        theme,
        "GPU",
        format!(
            "{} {}: {clock}, {}, {}, {} busy, {}",
            gpu.index,
            gpu.name.trim_start_matches("NVIDIA ").trim_start_matches("GeForce "),
            number(gpu.power_w, 0, " W"),
            number(gpu.temperature_c, 0, " °C"),
            number(gpu.utilization.map(|share| 100.0 * share), 0, " %"),
            energy(gpu.energy_j)
        ),
    );
    if gpu.capped == Some(true) {
        line.push_span(Span::styled(", HELD LOW by power or heat", theme.alert()));
    }
    line
}

fn gpus(gpus: &[GpuState], theme: Theme, lines: usize) -> Vec<Line<'static>> {
    if gpus.len() <= lines {
        return gpus.iter().map(|one| gpu(one, theme)).collect();
    }
    if lines == 0 {
        return Vec::new();
    }
    let clocks = gpus.iter().filter_map(|gpu| gpu.core_clock);
    let range = match (clocks.clone().min(), clocks.max()) {
        (Some(Mhz(low)), Some(Mhz(high))) if low == high => format!("{low} MHz"),
        (Some(Mhz(low)), Some(Mhz(high))) => format!("{low} to {high} MHz"),
        _ => "? MHz".into(),
    };
    let hottest = gpus
        .iter()
        .filter_map(|gpu| gpu.temperature_c)
        .fold(None, |hottest: Option<f64>, one| Some(hottest.map_or(one, |hottest| hottest.max(one))));
    let mut line = named(
        theme,
        "GPUs",
        format!(
            "{}: {range}, {}, hottest {}, {}",
            gpus.len(),
            number(gpus.iter().map(|gpu| gpu.power_w).sum(), 0, " W"),
            number(hottest, 0, " °C"),
            energy(gpus.iter().map(|gpu| gpu.energy_j).sum::<Option<f64>>())
        ),
    );
    let capped = gpus.iter().filter(|gpu| gpu.capped == Some(true)).count();
    if capped > 0 {
        line.push_span(Span::styled(format!(", {capped} HELD LOW by power or heat"), theme.alert()));
    }
    vec![line]
}

fn clocks(state: &State, theme: Theme) -> Line<'static> {
    let in_force = clocks_words(state.in_force, state.not_given_back);
    let mut text = if state.not_given_back {
        in_force
    } else if state.asked == state.in_force {
        format!("{in_force} in force")
    } else {
        format!("{in_force} in force, {} asked for", clocks_words(state.asked, false))
    };
    if let Some(floor) = state.floor {
        text += &format!("; not below {floor}: a limit broke");
    }
    named(theme, "clocks", text)
}

fn load(state: &State, theme: Theme) -> Line<'static> {
    let load = &state.load;
    let count = |value| number(value, 0, "");
    let text = format!(
        "{} running, {} waiting; tokens/s {} in, {} out; KV cache {}",
        count(load.running),
        count(load.waiting),
        count(load.prefill_tps),
        count(load.decode_tps),
        number(load.kv_usage.map(|share| 100.0 * share), 0, " %"),
    );
    named(theme, "load", text)
}

fn learner(state: &State, theme: Theme) -> Line<'static> {
    let learner = &state.learner;
    let phase = match (learner.converged, learner.phase) {
        (true, _) => learner.converged_unix_s.map_or_else(
            || "converged".to_owned(),
            |since| format!("converged {} ago", span(Seconds(state.at_unix_s - since))),
        ),
        (false, Phase::Exploration) => "exploring".to_owned(),
        (false, Phase::Exploitation) => "exploiting".to_owned(),
    };
    let best = learner.best.map_or("none known".to_owned(), |best| best.to_string());
    let policy = if learner.handed_over.is_some() { "linucb (stands in)" } else { state.policy.as_str() };
    let mut line = named(
        theme,
        "learner",
        format!("{policy}, {}, {phase}, {} lessons; best so far {best}", state.objective, learner.lessons),
    );
    if let Some(why) = &learner.handed_over {
        line.push_span(Span::styled(format!("; {why}"), theme.alert()));
    }
    line
}

/// What agft is worth: [`Verdict`](crate::view::Verdict), and what that rests on.
fn verdict(state: &State, theme: Theme) -> Line<'static> {
    let verdict = &state.verdict;
    let style = match verdict.good {
        Some(true) => theme.good(),
        Some(false) => theme.alert(),
        None => theme.strong(),
    };
    let mut line = named(theme, "verdict", String::new());
    line.push_span(Span::styled(verdict.words.clone(), style));
    if verdict.source.is_some() {
        line.push_span(Span::styled(format!(" ({})", verdict.basis()), theme.faint()));
    }
    line
}

/// The statistic that limits are about, in one word.
pub(super) fn statistic(statistic: Statistic) -> &'static str {
    match statistic {
        Statistic::Mean => "mean",
        Statistic::P95 => "p95",
        Statistic::P99 => "p99",
    }
}

/// Faults and what else went wrong, by kind.
fn trouble(state: &State, theme: Theme) -> Line<'static> {
    let counts = &state.counts;
    let total =
        |counts: &BTreeMap<String, u64>| counts.values().fold(0, |sum: u64, n| sum.saturating_add(*n));
    let several = |count: u64, one: &str, more: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        _ => Some(format!("{count} {more}")),
    };
    let mut all = Vec::new();
    all.extend(several(total(&counts.faults), "fault", "faults"));
    all.extend(several(counts.outages, "outage", "outages"));
    let broken = several(total(&counts.limit_violations), "limit broken", "limits broken");
    all.extend(broken.map(|broken| format!("{broken} ({})", span(Seconds(counts.violated_s)))));
    all.extend(several(counts.scrape_failures, "page missed", "pages missed"));
    // The totals first: what does not fit is detail.
    let kinds = counts.faults.iter().filter(|(_, count)| **count > 0);
    let kinds: Vec<String> =
        kinds.map(|(kind, count)| format!("{} {count}", kind.replace('_', " "))).collect();
    if all.is_empty() {
        let kept = state.limits.map_or("no limits".to_owned(), |limits| {
            format!("limits kept ({} over {})", statistic(limits.statistic), span(limits.window))
        });
        return named(theme, "faults", format!("none; no outage; {kept}"));
    }
    let mut line = named(theme, "faults", String::new());
    line.push_span(Span::styled(all.join(", "), theme.strong()));
    if !kinds.is_empty() {
        line.push_span(format!("; {}", kinds.join(", ")));
    }
    line
}
