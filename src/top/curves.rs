//! Which charts there are, and what is in them.

use ratatui::style::Style;
use ratatui::text::Span;

use super::chart::{Chart, title};
use super::header::statistic;
use super::text::{Theme, latency, number};
use crate::units::{Mhz, Seconds};
use crate::view::{History, Point, State};

/// Lengths of time that a chart shows: the shortest that holds what there is.
const SPANS_S: [f64; 4] = [60.0, 120.0, 300.0, 600.0];
/// Windows of a fraction of a second scatter: a ratio is the mean over so many points.
const SMOOTH: usize = 15;
/// A limit is drawn if it is at most this many times the highest value: a far one would flatten the curve.
const IN_SIGHT: f64 = 1.5;
/// Not every window has a sample of everything: a value so many seconds old still stands for now.
const RECENT_S: f64 = 10.0;
/// Peaks beyond this many times what nine in ten values stay below are cut: one would flatten all the rest.
const PEAK: f64 = 2.5;

/// Seconds that the charts of this history show.
pub(super) fn span_s(history: &History) -> f64 {
    let mut points = history.points();
    let oldest = points.next().map_or(0.0, |first| first.at_unix_s);
    let newest = points.next_back().map_or(oldest, |last| last.at_unix_s);
    SPANS_S.into_iter().find(|span| newest - oldest <= *span).unwrap_or(600.0)
}

/// The charts, most telling first: as many as there is place for are shown.
pub(super) fn charts(state: &State, history: &History, theme: Theme, narrow: bool) -> Vec<Chart> {
    let curves = Curves::of(history);
    vec![
        clock(state, &curves, theme, narrow),
        power(state, &curves, theme),
        edp(&curves, theme),
        limited(state, &curves, theme, narrow, Latency::Ttft),
        limited(state, &curves, theme, narrow, Latency::Tpot),
        requests(state, &curves, theme, narrow),
        tokens(&curves, theme, "tokens/s out", |point| point.decode_tps),
        tokens(&curves, theme, "tokens/s in", |point| point.prefill_tps),
    ]
}

type Curve = Vec<(f64, Option<f64>)>;

/// The points, each with its seconds before the newest.
struct Curves<'a>(Vec<(f64, &'a Point)>);

impl<'a> Curves<'a> {
    fn of(history: &'a History) -> Self {
        let newest = history.points().next_back().map_or(0.0, |last| last.at_unix_s);
        Self(history.points().map(|point| (point.at_unix_s - newest, point)).collect())
    }

    fn curve(&self, value: impl Fn(&Point) -> Option<f64>) -> Curve {
        self.0.iter().map(|(x, point)| (*x, value(point).filter(|value| value.is_finite()))).collect()
    }

    /// EDP as a ratio to that of default clocks: the geometric mean over the latest few points, as rewards are averaged.
    /// A single window with a long step would make any sum its own.
    fn edp_ratio(&self) -> Curve {
        let logarithm = |(_, point): &(f64, &Point)| {
            let (edp, default) = (point.edp_js?, point.default_edp_js?);
            Some((edp / default).ln()).filter(|logarithm| logarithm.is_finite())
        };
        (0..self.0.len())
            .map(|last| {
                let points = self.0.get((last + 1).saturating_sub(SMOOTH)..=last).unwrap_or(&[]);
                let (sum, count) = points
                    .iter()
                    .filter_map(logarithm)
                    .fold((0.0, 0.0), |(sum, n), one| (sum + one, n + 1.0));
                let known = points.last().is_some_and(|point| logarithm(point).is_some());
                (points.last().map_or(0.0, |(x, _)| *x), known.then(|| (sum / count).exp()))
            })
            .collect()
    }
}

/// The latest value, unless it is old.
fn latest(curve: &Curve) -> Option<f64> {
    let known = |(x, value): &(f64, Option<f64>)| value.filter(|_| *x >= -RECENT_S);
    curve.iter().rev().find_map(known)
}

fn clock(state: &State, curves: &Curves<'_>, theme: Theme, narrow: bool) -> Chart {
    let curve = curves.curve(|point| point.core_clock.map(Mhz::as_f64));
    let beside = curves.curve(|point| point.asked.map(Mhz::as_f64));
    let (name, runs) = (
        if narrow { "clock" } else { "core clock" },
        state.gpus.first().and_then(|gpu| gpu.core_clock).map(Mhz::as_f64),
    );
    let rest = match state.asked {
        Some(asked) if state.asked != state.in_force && narrow => {
            format!("{}→{}", number(runs, 0, ""), asked.core)
        }
        Some(asked) if state.asked != state.in_force => {
            format!("{}, asked {}", number(runs, 0, " MHz"), asked.core)
        }
        Some(_) => number(runs, 0, " MHz"),
        None => format!("{}, default", number(runs, 0, " MHz")),
    };
    let arms = state.learner.arms.iter().map(|arm| arm.clocks.core.as_f64());
    Chart { title: title(theme, name, rest), curve, beside, ..Chart::default() }.fit(arms)
}

fn power(state: &State, curves: &Curves<'_>, theme: Theme) -> Chart {
    let curve = curves.curve(|point| point.power_w);
    let rest = number(Point::of(state).power_w, 0, " W");
    Chart { title: title(theme, "power", rest), curve, ..Chart::default() }.fit([0.0])
}

fn edp(curves: &Curves<'_>, theme: Theme) -> Chart {
    let curve = curves.edp_ratio();
    let rest = match latest(&curve) {
        Some(ratio) => format!("{} of default", number(Some(100.0 * ratio), 0, " %")),
        None => "against default: ?".into(),
    };
    let curve: Curve = curve.into_iter().map(|(x, ratio)| (x, ratio.map(|ratio| 100.0 * ratio))).collect();
    // Less than nothing is impossible, but a curve that hugs the upper edge is hard to read.
    Chart { title: title(theme, "EDP", rest), curve, level: Some(100.0), ..Chart::default() }
        .fit([60.0, 120.0])
}

#[derive(Clone, Copy, PartialEq)]
enum Latency {
    Ttft,
    Tpot,
}

fn limited(state: &State, curves: &Curves<'_>, theme: Theme, narrow: bool, which: Latency) -> Chart {
    let (name, key, limit) = match which {
        Latency::Ttft => ("TTFT", "ttft", state.limits.map(|limits| limits.ttft)),
        Latency::Tpot => ("TPOT", "tpot", state.limits.map(|limits| limits.tpot)),
    };
    let milli = |value: Option<f64>| value.map(|seconds| 1e3 * seconds);
    let curve = match which {
        Latency::Ttft => curves.curve(|point| milli(point.ttft_s)),
        Latency::Tpot => curves.curve(|point| milli(point.tpot_s)),
    };
    let now = latest(&curve).map_or("? ms".into(), |value| latency(Seconds(value / 1e3)));
    let rest = match (limit, state.limits) {
        (Some(limit), Some(_)) if narrow => format!("{now} (≤{})", latency(limit).replace(".0 ", " ")),
        (Some(limit), Some(limits)) => {
            format!("{now}, limit {} ({})", latency(limit).replace(".0 ", " "), statistic(limits.statistic))
        }
        _ => format!("{now}, no limit"),
    };
    let broken = state.round.as_ref().is_some_and(|round| round.violated.as_deref() == Some(key));
    let mut words = Vec::new();
    if broken {
        words.push(Span::styled("BROKEN ", theme.alert()));
    }
    words.extend(title(theme, name, rest));
    if let Some(last) = words.last_mut().filter(|_| broken) {
        *last = last.clone().style(Style::new().patch(theme.alert()));
    }
    let (highest, peak) = usual(&curve);
    let level = limit.map(|limit| 1e3 * limit.0).filter(|limit| *limit <= IN_SIGHT * highest);
    let mut chart = Chart { title: words, curve, level, ..Chart::default() };
    chart.cut = peak > highest;
    chart.fit([0.0, highest].into_iter().chain(level))
}

/// The highest value without rare peaks, and with them.
fn usual(curve: &Curve) -> (f64, f64) {
    let mut values: Vec<f64> = curve.iter().filter_map(|(_, value)| *value).collect();
    values.sort_by(f64::total_cmp);
    let highest = values.last().copied().unwrap_or(0.0);
    let most = values.get(values.len() * 9 / 10).copied().unwrap_or(highest);
    (highest.min(PEAK * most), highest)
}

fn requests(state: &State, curves: &Curves<'_>, theme: Theme, narrow: bool) -> Chart {
    let curve = curves.curve(|point| point.running);
    let beside = curves.curve(|point| point.waiting);
    let [running, waiting] = [state.load.running, state.load.waiting].map(|value| number(value, 0, ""));
    let rest = if narrow {
        format!("{running} run, {waiting} wait")
    } else {
        format!("{running} running, {waiting} waiting (dots)")
    };
    Chart { title: title(theme, "requests", rest), curve, beside, ..Chart::default() }.fit([0.0, 1.0])
}

fn tokens(
    curves: &Curves<'_>,
    theme: Theme,
    name: &'static str,
    value: impl Fn(&Point) -> Option<f64>,
) -> Chart {
    let curve = curves.curve(value);
    let rest = number(latest(&curve), 0, "");
    Chart { title: title(theme, name, rest), curve, ..Chart::default() }.fit([0.0, 1.0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing;

    const PLAIN: Theme = Theme { colour: false, ascii: false };

    fn history(seconds: u32, change: impl Fn(u32, &mut State)) -> History {
        let mut history = History::default();
        for second in 0..=seconds {
            let mut state = State { at_unix_s: f64::from(second), ..testing::state() };
            change(second, &mut state);
            history.push(&state);
        }
        history
    }

    fn words(chart: &Chart) -> String {
        chart.title.iter().map(|span| span.content.as_ref()).collect()
    }

    #[test]
    fn charts_show_the_shortest_length_of_time_that_holds_everything() {
        let span = |seconds| span_s(&history(seconds, |_, _| {}));
        assert_eq!((span(0), span(60), span(61), span(300), span(599)), (60.0, 60.0, 120.0, 300.0, 600.0));
    }

    #[test]
    fn edp_is_a_mean_ratio_and_unknown_where_either_is() {
        let history = history(1, |second, state| {
            let round = state.round.as_mut().unwrap();
            (round.edp_js, round.default_edp_js) =
                if second == 0 { (Some(1.0), Some(4.0)) } else { (Some(2.0), Some(1.0)) };
        });
        let ratios = Curves::of(&history).edp_ratio();
        assert_eq!((ratios[0].0, ratios[1].0), (-1.0, 0.0));
        approx::assert_relative_eq!(ratios[0].1.unwrap(), 0.25, max_relative = 1e-12);
        approx::assert_relative_eq!(ratios[1].1.unwrap(), (0.25_f64 * 2.0).sqrt(), max_relative = 1e-12);
        let unknown = |known: bool| {
            let history = self::history(0, |_, state| {
                let round = state.round.as_mut().unwrap();
                (round.edp_js, round.default_edp_js) =
                    if known { (Some(1.0), None) } else { (None, Some(1.0)) };
            });
            Curves::of(&history).edp_ratio()
        };
        assert_eq!((unknown(true), unknown(false)), (vec![(0.0, None)], vec![(0.0, None)]));
    }

    #[test]
    fn a_broken_limit_is_said_in_words_and_a_far_one_is_not_drawn() {
        let mut state = testing::state();
        let history = history(3, |_, _| {});
        let of = |state: &State| limited(state, &Curves::of(&history), PLAIN, false, Latency::Tpot);
        let kept = of(&state);
        assert_eq!(words(&kept), "TPOT 20.0 ms, limit 50 ms (mean)");
        assert_eq!(kept.level, None, "far above every value");
        state.round.as_mut().unwrap().violated = Some("tpot".into());
        assert!(words(&of(&state)).starts_with("BROKEN TPOT"));
        state.limits.as_mut().unwrap().tpot = Seconds(0.021);
        let near = of(&state);
        approx::assert_relative_eq!(near.level.unwrap(), 21.0);
        assert!(near.range.1 >= 21.0, "{:?}", near.range);
        state.limits = None;
        assert!(words(&of(&state)).contains("no limit"));
    }

    #[test]
    fn one_peak_is_cut_and_said_to_be_so() {
        let state = testing::state();
        let chart = |peaks: u32| {
            let history = history(59, |second, state| {
                state.load.tpot_s = Some(if second < peaks { 5.0 } else { 0.02 });
            });
            limited(&state, &Curves::of(&history), PLAIN, false, Latency::Tpot)
        };
        let (rare, often) = (chart(2), chart(30));
        assert!(rare.cut && !often.cut);
        approx::assert_relative_eq!(rare.range.1, PEAK * 20.0);
        approx::assert_relative_eq!(often.range.1, 5000.0);
    }
}
