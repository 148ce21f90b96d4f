//! The report's plots, as SVG text to put into a page.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::digest::Digest;
use super::phases::Phase;
use super::timeline::{Bin, Timeline};
use super::{Report, ReportError};

/// Colours that people who see no red or no green can tell apart (Okabe and Ito).
const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(213, 94, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const GREY: RGBColor = RGBColor(130, 130, 130);
const PALE: RGBColor = RGBColor(232, 236, 240);
const WIDTH: u32 = 960;
const FONT: &str = "sans-serif";

type Drawn = Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// A plot with its caption and what it says in words, for those who do not see it.
pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) words: String,
    pub(super) svg: String,
}

/// All plots that the run has data for.
pub(super) fn plots(report: &Report) -> Result<Vec<Plot>, ReportError> {
    let digest = &report.digest;
    let timeline = &digest.timeline;
    let mut plots = Vec::new();
    let mut add = |title, words: String, height, draw: &dyn Fn(&Area<'_>) -> Drawn| {
        svg(height, draw).map(|svg| plots.push(Plot { title, words, svg }))
    };
    let many = format!("{} over {:.1} minutes", digest.rounds, timeline.length_s() / 60.0);
    add("Over time", format!("Clocks, power, load and latency of {many} rounds."), 760, &|root| {
        over_time(root, report)
    })?;
    if !digest.locks.is_empty() {
        let words = format!("Time at each of {} clocks.", digest.locks.len());
        add("Time at each clock", words, 240, &|root| histogram(root, digest))?;
    }
    if digest.locks.values().any(|at| at.edp_ratio().is_some()) {
        let words =
            "EDP at each clock over that of driver-default clocks under the same load, with 95 % intervals.";
        add("EDP against default clocks, by clock", words.into(), 300, &|root| edp(root, digest))?;
    }
    if timeline.bins.iter().any(|bin| bin.arms.mean().is_some()) {
        let words = "Number of clocks that may be chosen, and that are out, over time.";
        add("Clocks that may be chosen", words.into(), 200, &|root| arms(root, timeline))?;
    }
    Ok(plots)
}

fn svg(height: u32, draw: &dyn Fn(&Area<'_>) -> Drawn) -> Result<String, ReportError> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        let drawn = root
            .fill(&WHITE)
            .map_err(Into::into)
            .and_then(|()| draw(&root))
            .and_then(|()| Ok(root.present()?));
        drawn.map_err(|error| ReportError::Plot(error.to_string()))?;
    }
    Ok(text)
}

/// Highest value and some; 1 where there is nothing.
fn top(values: impl Iterator<Item = f64>) -> f64 {
    let highest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    if highest > 0.0 { 1.08 * highest } else { 1.0 }
}

/// Seconds as a label.
fn clock(seconds: f64) -> String {
    if seconds >= 3600.0 {
        format!("{:.0}:{:02.0} h", (seconds / 3600.0).floor(), (seconds % 3600.0 / 60.0).floor())
    } else {
        format!("{:.0}:{:02.0}", (seconds / 60.0).floor(), seconds % 60.0)
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 10_000.0 => format!("{:.0}k", value / 1e3),
        size if !(1e-9..100.0).contains(&size) => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn chart<'a>(
    area: &Area<'a>,
    title: &str,
    x: std::ops::Range<f64>,
    y: std::ops::Range<f64>,
    x_labels: &dyn Fn(&f64) -> String,
) -> Result<Chart<'a>, Box<dyn std::error::Error>> {
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 13))
        .margin(6)
        .margin_right(18)
        .x_label_area_size(22)
        .y_label_area_size(56)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(PALE)
        .axis_style(GREY)
        .x_labels(10)
        .y_labels(5)
        .label_style((FONT, 11))
        .x_label_formatter(x_labels)
        .y_label_formatter(&|value| number(*value))
        .draw()?;
    Ok(chart)
}

/// A line that is broken where nothing is known.
fn line(
    chart: &mut Chart<'_>,
    timeline: &Timeline,
    value: impl Fn(&Bin) -> Option<f64>,
    colour: RGBColor,
) -> Drawn {
    let mut piece: Vec<(f64, f64)> = Vec::new();
    let mut pieces = Vec::new();
    for (at, bin) in timeline.points() {
        match value(bin) {
            Some(value) => piece.push((at, value)),
            None if bin.seconds > 0.0 && piece.is_empty() => {}
            None => pieces.push(std::mem::take(&mut piece)),
        }
    }
    pieces.push(piece);
    for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
        if let [only] = piece[..] {
            chart.draw_series([Circle::new(only, 1, colour.filled())])?;
        } else {
            chart.draw_series(LineSeries::new(piece, colour.stroke_width(2)))?;
        }
    }
    Ok(())
}

/// Every other phase has a pale ground.
fn grounds(chart: &mut Chart<'_>, phases: &[Phase], height: f64) -> Drawn {
    let every_other = phases.iter().skip(1).step_by(2);
    chart.draw_series(every_other.map(|phase| {
        Rectangle::new([(phase.start_s, 0.0), (phase.end_s, height)], PALE.mix(0.5).filled())
    }))?;
    Ok(())
}

fn level(chart: &mut Chart<'_>, at: f64, length: f64) -> Drawn {
    chart.draw_series([PathElement::new([(0.0, at), (length, at)], ORANGE.stroke_width(2))])?;
    Ok(())
}

fn over_time(root: &Area<'_>, report: &Report) -> Drawn {
    let timeline = &report.digest.timeline;
    let length = timeline.length_s().max(1.0);
    let parts = root.split_evenly((5, 1));
    let [clocks, power, load, tpot, ttft] = &parts[..] else { return Ok(()) };
    let bins = || timeline.bins.iter();

    let high = top(bins().flat_map(|bin| [bin.clock_mhz.mean(), bin.asked_mhz.mean()]).flatten());
    let mut plot =
        chart(clocks, "Core clock, MHz: asked (blue), runs (grey)", 0.0..length, 0.0..high, &|at| {
            clock(*at)
        })?;
    grounds(&mut plot, &report.phases, high)?;
    line(&mut plot, timeline, |bin| bin.clock_mhz.mean(), GREY)?;
    line(&mut plot, timeline, |bin| bin.asked_mhz.mean(), BLUE)?;

    let high = top(bins().filter_map(|bin| bin.power_w.mean()));
    let mut plot = chart(power, "Power, W", 0.0..length, 0.0..high, &|at| clock(*at))?;
    grounds(&mut plot, &report.phases, high)?;
    line(&mut plot, timeline, |bin| bin.power_w.mean(), BLUE)?;

    let high = top(bins().flat_map(|bin| [bin.prefill_tps.mean(), bin.decode_tps.mean()]).flatten());
    let mut plot = chart(
        load,
        "Load, tokens per second: prompt (green), generated (blue)",
        0.0..length,
        0.0..high,
        &|at| clock(*at),
    )?;
    grounds(&mut plot, &report.phases, high)?;
    line(&mut plot, timeline, |bin| bin.prefill_tps.mean(), GREEN)?;
    line(&mut plot, timeline, |bin| bin.decode_tps.mean(), BLUE)?;

    for (area, title, limit, value) in [
        (
            tpot,
            "Time per output token, ms",
            report.digest.tpot_limit_s,
            (|bin: &Bin| bin.tpot_s.mean()) as fn(&Bin) -> Option<f64>,
        ),
        (ttft, "Time to first token, ms", report.digest.ttft_limit_s, |bin: &Bin| bin.ttft_s.mean()),
    ] {
        let value = move |bin: &Bin| value(bin).map(|seconds| 1e3 * seconds);
        let high = top(bins().filter_map(value));
        // A limit far above everything would flatten the line it is there for.
        let near = limit.map(|limit| 1e3 * limit).filter(|limit| *limit < 4.0 * high);
        let high = near.map_or(high, |limit| high.max(1.08 * limit));
        let far = limit.filter(|_| near.is_none());
        let title = match (far, near) {
            (Some(far), _) => format!("{title} (limit: {})", number(1e3 * far)),
            (None, Some(_)) => format!("{title} (orange: limit)"),
            (None, None) => title.to_owned(),
        };
        let mut plot = chart(area, &title, 0.0..length, 0.0..high, &|at| clock(*at))?;
        grounds(&mut plot, &report.phases, high)?;
        line(&mut plot, timeline, value, BLUE)?;
        if let Some(limit) = near {
            level(&mut plot, limit, length)?;
        }
    }
    Ok(())
}

/// From below the lowest clock to above the highest.
fn clock_range(digest: &Digest) -> std::ops::Range<f64> {
    let ends = digest.locks.keys().next().zip(digest.locks.keys().next_back());
    let (low, high) = ends.map_or((0, 1), |(low, high)| (*low, *high));
    (f64::from(low) - 40.0).max(0.0)..f64::from(high) + 40.0
}

fn histogram(root: &Area<'_>, digest: &Digest) -> Drawn {
    let all = digest.seconds.max(1e-9);
    let share = |seconds: f64| 100.0 * seconds / all;
    let high = top(digest.locks.values().map(|at| share(at.seconds)));
    let range = clock_range(digest);
    let half = (0.004 * (range.end - range.start)).max(3.0);
    let title = format!(
        "Share of the time, % (at driver-default clocks {:.1} %, changing or parked {:.1} %)",
        share(digest.default_clocks.seconds),
        share(digest.mixed_s)
    );
    let mut plot = chart(root, &title, range, 0.0..high, &|mhz| format!("{mhz:.0}"))?;
    plot.draw_series(digest.locks.iter().map(|(mhz, at)| {
        let mhz = f64::from(*mhz);
        Rectangle::new([(mhz - half, 0.0), (mhz + half, share(at.seconds))], BLUE.filled())
    }))?;
    Ok(())
}

fn edp(root: &Area<'_>, digest: &Digest) -> Drawn {
    let points: Vec<(f64, super::digest::Ratio)> =
        digest.locks.iter().filter_map(|(mhz, at)| Some((f64::from(*mhz), at.edp_ratio()?))).collect();
    // One wild clock must not hide the differences among the others.
    let high = points.iter().map(|(_, ratio)| ratio.high.unwrap_or(ratio.mean)).fold(1.2, f64::max).min(2.0);
    let low = points.iter().map(|(_, ratio)| ratio.low.unwrap_or(ratio.mean)).fold(0.9, f64::min).max(0.0);
    let title = "EDP over that of default clocks under the same load (below 1 is better; bars: 95 %)";
    let (low, high) = (0.97 * low, 1.03 * high);
    let mut plot = chart(root, title, clock_range(digest), low..high, &|mhz| format!("{mhz:.0}"))?;
    let range = clock_range(digest);
    plot.draw_series([PathElement::new([(range.start, 1.0), (range.end, 1.0)], ORANGE.stroke_width(1))])?;
    let held = |value: f64| value.clamp(low, high);
    for (mhz, ratio) in &points {
        if let (Some(from), Some(to)) = (ratio.low, ratio.high) {
            plot.draw_series([PathElement::new(
                [(*mhz, held(from)), (*mhz, held(to))],
                BLUE.mix(0.6).stroke_width(2),
            )])?;
        }
    }
    plot.draw_series(
        points.iter().map(|(mhz, ratio)| Circle::new((*mhz, held(ratio.mean)), 3, BLUE.filled())),
    )?;
    Ok(())
}

fn arms(root: &Area<'_>, timeline: &Timeline) -> Drawn {
    let bins = || timeline.bins.iter();
    let high = top(bins().flat_map(|bin| [bin.arms.mean(), bin.arms_out.mean()]).flatten());
    let length = timeline.length_s().max(1.0);
    let mut plot = chart(
        root,
        "Clocks that may be chosen (blue), and that are out (orange)",
        0.0..length,
        0.0..high,
        &|at| clock(*at),
    )?;
    line(&mut plot, timeline, |bin| bin.arms.mean(), BLUE)?;
    line(&mut plot, timeline, |bin| bin.arms_out.mean(), ORANGE)?;
    Ok(())
}
