//! Which charts there are, and what is in them.

use ratatui::style::Style;
use ratatui::text::Span;

use super::chart::{Chart, title};
use super::text::{Theme, latency, number};
use crate::reward::slo::Statistic;
use crate::units::Seconds;
use crate::view::{History, Point, State};

/// Lengths of time that a chart shows: the shortest that holds what there is.
const SPANS_S: [f64; 4] = [60.0, 120.0, 300.0, 600.0];
/// Windows of a fraction of a second scatter: a ratio is that of the sums over so many points.
const SMOOTH: usize = 15;
/// A limit is drawn if it is at most this many times the highest value: a far one would flatten the curve.
const IN_SIGHT: f64 = 3.0;

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
        clock(state, &curves, theme),
        power(&curves, theme),
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

    /// EDP as a ratio to that of default clocks, over the latest few points each.
    fn edp_ratio(&self) -> Curve {
        (0..self.0.len())
            .map(|last| {
                let first = (last + 1).saturating_sub(SMOOTH);
                let points = self.0.get(first..=last).unwrap_or(&[]);
                let both = |(_, point): &(f64, &Point)| Some((point.edp_js?, point.default_edp_js?));
                let now = points.last().and_then(both);
                let (edp, default) = points
                    .iter()
                    .filter_map(both)
                    .fold((0.0, 0.0), |sums, (edp, default)| (sums.0 + edp, sums.1 + default));
                let ratio = (default > 0.0).then(|| edp / default).filter(|ratio| ratio.is_finite());
                (self.0.get(last).map_or(0.0, |(x, _)| *x), ratio.filter(|_| now.is_some()))
            })
            .collect()
    }
}

fn latest(curve: &Curve) -> Option<f64> {
    curve.last().and_then(|(_, value)| *value)
}

fn clock(state: &State, curves: &Curves<'_>, theme: Theme) -> Chart {
    let curve = curves.curve(|point| point.core_clock.map(crate::units::Mhz::as_f64));
    let beside = curves.curve(|point| point.asked.map(crate::units::Mhz::as_f64));
    let mut rest = number(latest(&curve), 0, " MHz");
    match state.asked {
        Some(asked) if state.asked != state.in_force => rest += &format!(", asked {}", asked.core.0),
        Some(_) => {}
        None => rest += ", default",
    }
    let arms = state.learner.arms.iter().map(|arm| arm.clocks.core.as_f64());
    Chart { title: title(theme, "core clock", rest), curve, beside, ..Chart::default() }.fit(arms)
}

fn power(curves: &Curves<'_>, theme: Theme) -> Chart {
    let curve = curves.curve(|point| point.power_w);
    let rest = number(latest(&curve), 0, " W");
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
    let statistic = match state.limits.map(|limits| limits.statistic) {
        None | Some(Statistic::Mean) => "mean",
        Some(Statistic::P95) => "p95",
        Some(Statistic::P99) => "p99",
    };
    let rest = match limit {
        None => format!("{now}, no limit"),
        Some(limit) if narrow => format!("{now}, {statistic}≤{}", latency(limit).replace(".0 ", " ")),
        Some(limit) => format!("{now}, limit {} ({statistic})", latency(limit).replace(".0 ", " ")),
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
    let highest = curve.iter().filter_map(|(_, value)| *value).fold(0.0, f64::max);
    let level = limit.map(|limit| 1e3 * limit.0).filter(|limit| *limit <= IN_SIGHT * highest);
    Chart { title: words, curve, level, ..Chart::default() }.fit([0.0].into_iter().chain(level))
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
    fn edp_is_the_ratio_of_sums_and_unknown_where_either_is() {
        let history = history(1, |second, state| {
            let round = state.round.as_mut().unwrap();
            (round.edp_js, round.default_edp_js) =
                if second == 0 { (Some(1.0), Some(4.0)) } else { (Some(2.0), Some(1.0)) };
        });
        let ratios = Curves::of(&history).edp_ratio();
        assert_eq!(ratios, [(-1.0, Some(0.25)), (0.0, Some(3.0 / 5.0))]);
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
        approx::assert_relative_eq!(kept.level.unwrap(), 50.0);
        assert!(kept.range.1 >= 50.0, "{:?}", kept.range);
        state.round.as_mut().unwrap().violated = Some("tpot".into());
        assert!(words(&of(&state)).starts_with("BROKEN TPOT"));
        state.limits.as_mut().unwrap().tpot = Seconds(0.8);
        assert_eq!(of(&state).level, None);
        state.limits = None;
        assert!(words(&of(&state)).contains("no limit"));
    }
}
