//! Plots as SVG: ratios per load and policy, clock and power over time, the cost curve over fixed clocks.

use std::path::Path;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::LabError;
use super::experiment::{CellResult, Experiment, PolicyRun};
use super::oracle::Sweep;
use super::policy::PolicySpec;
use super::score::{Yardstick, cost, geometric_mean};

/// Colours that people who see no red or no green can tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(90, 90, 90),
];
const GREY: RGBColor = RGBColor(120, 120, 120);
/// Ratios above this are cut off; their bars say by how much.
const LONGEST_BAR: f64 = 1.6;
const FONT: &str = "sans-serif";

type Drawn = Result<(), Box<dyn std::error::Error>>;
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn colour(index: usize) -> RGBColor {
    COLOURS.get(index % COLOURS.len()).copied().unwrap_or(GREY)
}

/// Draws all plots into `directory`, which must exist: `ratios.svg`, `curve-LOAD.svg` and `timeline-LOAD-seed-N.svg`.
///
/// # Errors
/// [`LabError::Plot`]
pub fn draw(directory: &Path, experiment: &Experiment, cells: &[CellResult]) -> Result<(), LabError> {
    let plot = |name: String, draw: &dyn Fn(&Path) -> Drawn| {
        let path = directory.join(name);
        draw(&path)
            .map_err(|error| LabError::Plot { file: path.display().to_string(), cause: error.to_string() })
    };
    plot("ratios.svg".to_owned(), &|path| ratios(path, experiment, cells))?;
    for seeds in cells.chunks(experiment.seeds.len().max(1)) {
        let Some(first) = seeds.first() else { continue };
        plot(format!("curve-{}.svg", file_name(first)), &|path| curves(path, seeds))?;
        for cell in seeds {
            let name = format!("timeline-{}-seed-{}.svg", file_name(cell), cell.seed);
            plot(name, &|path| timeline(path, cell))?;
        }
    }
    Ok(())
}

fn file_name(cell: &CellResult) -> String {
    let name = cell.load.to_string();
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a few dozen bars")]
fn place(index: usize) -> f64 {
    index as f64
}

/// Pixels for so many bars.
fn pixels(bars: usize, each: u32) -> u32 {
    u32::try_from(bars).unwrap_or(1000).min(1000) * each
}

/// Horizontal bars, one group per load, the geometric mean of all loads at the bottom.
fn ratios(path: &Path, experiment: &Experiment, cells: &[CellResult]) -> Drawn {
    // The best fixed clock is the line at 1.
    let entrants = experiment.entrants().into_iter().enumerate();
    let shown: Vec<_> = entrants.filter(|(_, of)| of.policy != PolicySpec::BestFixed).collect();
    let ratio = |cells: &[CellResult], policy: usize| {
        let runs = cells.iter().filter_map(|cell| cell.runs.get(policy));
        let ratios: Vec<f64> = runs.map(|run| run.score.by_e2e.ratio_to_best_fixed).collect();
        geometric_mean(&ratios)
    };
    let mut groups: Vec<(String, &[CellResult])> = cells
        .chunks(experiment.seeds.len().max(1))
        .filter_map(|seeds| Some((seeds.first()?.load.to_string(), seeds)))
        .collect();
    if groups.len() > 1 {
        groups.push(("geometric mean".to_owned(), cells));
    }
    let group_height = pixels(shown.len().max(1), 11) + 9;
    let bars = pixels(groups.len(), group_height);
    let root = SVGBackend::new(path, (900, bars + 110)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut legend_x = 230;
    for (index, of) in &shown {
        let name = of.to_string();
        root.draw(&Rectangle::new([(legend_x, 36), (legend_x + 12, 46)], colour(*index).filled()))?;
        root.draw(&Text::new(name.clone(), (legend_x + 17, 35), (FONT, 13)))?;
        legend_x += 40 + 8 * i32::try_from(name.len()).unwrap_or(10);
    }
    root.draw(&Text::new(
        "Energy x mean end-to-end latency over that of the best fixed clock (line; below is better)",
        (20, 10),
        (FONT, 16),
    ))?;
    let lowest = groups
        .iter()
        .flat_map(|(_, cells)| shown.iter().map(|(index, _)| ratio(cells, *index)))
        .fold(0.9, f64::min);
    let lowest = (10.0 * lowest - 0.01).floor() / 10.0;
    let mut chart = ChartBuilder::on(&root)
        .margin_top(56)
        .margin_right(60)
        .margin_bottom(8)
        .x_label_area_size(36)
        .y_label_area_size(220)
        .build_cartesian_2d(lowest..LONGEST_BAR, place(groups.len())..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_labels(12)
        .x_label_formatter(&|ratio| format!("{ratio:.1}"))
        .label_style((FONT, 12))
        .light_line_style(TRANSPARENT)
        .bold_line_style(GREY.mix(0.2))
        .draw()?;
    let thickness = 0.86 / place(shown.len().max(1));
    for (row, (name, cells)) in groups.iter().enumerate() {
        let (left, middle) = chart.backend_coord(&(lowest, place(row) + 0.5));
        root.draw(&Text::new(name.clone(), (left - 212, middle - 7), (FONT, 13)))?;
        for (slot, (index, _)) in shown.iter().enumerate() {
            let value = ratio(cells, *index);
            let top = place(row) + 0.07 + thickness * place(slot);
            let end = value.min(LONGEST_BAR);
            chart.draw_series([Rectangle::new(
                [(1.0, top), (end, top + thickness)],
                colour(*index).filled(),
            )])?;
            let (x, y) = chart.backend_coord(&(end.max(1.0), top + thickness / 2.0));
            root.draw(&Text::new(
                format!("{value:.3}"),
                (x + 4, y - 5),
                (FONT, 10).into_font().color(&GREY),
            ))?;
        }
    }
    chart.draw_series(LineSeries::new([(1.0, 0.0), (1.0, place(groups.len()))], BLACK.stroke_width(1)))?;
    root.present()?;
    Ok(())
}

/// Clock above, power below, one line per policy; the best fixed clock as a dashed line.
fn timeline(path: &Path, cell: &CellResult) -> Drawn {
    let root = SVGBackend::new(path, (1000, 640)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("{}, seed {}", cell.load, cell.seed);
    root.draw(&Text::new(title, (20, 10), (FONT, 17)))?;
    let (_, below) = root.split_vertically(34);
    let (clocks, power) = below.split_evenly((2, 1)).into_iter().fold((None, None), |(first, last), area| {
        if first.is_none() { (Some(area), last) } else { (first, Some(area)) }
    });
    let (Some(clocks), Some(power)) = (clocks, power) else { return Ok(()) };
    let seconds = cell.runs.iter().filter_map(|run| run.timeline.last()).map(|p| p.at).fold(1.0, f64::max);
    let all = || cell.runs.iter().flat_map(|run| &run.timeline);
    let highest = cell.load.gpu.core_reached.as_f64();
    let most = all().map(|point| point.watts).fold(1.0, f64::max);
    let shown: Vec<(usize, &PolicyRun)> =
        cell.runs.iter().enumerate().filter(|(_, run)| run.of.policy != PolicySpec::BestFixed).collect();

    let mut chart = panel(&clocks, seconds, 1.05 * highest, "core clock asked for, MHz", "")?;
    for (index, run) in &shown {
        // Steps: a clock holds until the next one.
        let mut before = None;
        let steps = run.timeline.iter().flat_map(|point| {
            let core = point.core.as_f64();
            let held = before.replace(core).filter(|old| (old - core).abs() > 0.5).map(|old| (point.at, old));
            held.into_iter().chain([(point.at, core)])
        });
        line(&mut chart, steps.collect(), *index, &run.of.to_string())?;
    }
    if let Some(best) = cell.sweep.best(Yardstick::E2e) {
        let core = best.clocks.core.as_f64();
        let dashes = DashedLineSeries::new([(0.0, core), (seconds, core)], 6, 4, BLACK.stroke_width(1));
        chart
            .draw_series(dashes)?
            .label(format!("best fixed: {core:.0} MHz"))
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLACK.stroke_width(1)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(GREY.mix(0.4))
        .label_font((FONT, 12))
        .draw()?;

    let mut chart = panel(&power, seconds, 1.05 * most, "board power, W (mean of 5 s)", "seconds")?;
    for (index, run) in &shown {
        let smooth = run.timeline.chunks(5).filter_map(|points| {
            let mean = points.iter().map(|point| point.watts).sum::<f64>() / place(points.len());
            Some((points.last()?.at, mean))
        });
        line(&mut chart, smooth.collect(), *index, "")?;
    }
    root.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn panel<'a>(
    area: &Area<'a>,
    right: f64,
    top: f64,
    y_name: &str,
    x_name: &str,
) -> Result<Chart<'a>, Box<dyn std::error::Error>> {
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(20)
        .x_label_area_size(34)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc(x_name)
        .y_desc(y_name)
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .label_style((FONT, 12))
        .axis_desc_style((FONT, 13))
        .light_line_style(TRANSPARENT)
        .bold_line_style(GREY.mix(0.2))
        .draw()?;
    Ok(chart)
}

fn line(chart: &mut Chart<'_>, points: Vec<(f64, f64)>, index: usize, label: &str) -> Drawn {
    let colour = colour(index);
    let series = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
    if !label.is_empty() {
        series
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    Ok(())
}

/// Cost over fixed clocks, each seed's best at 1: solid by end-to-end latency, dashed by time per output token.
fn curves(path: &Path, cells: &[CellResult]) -> Drawn {
    const TOP: f64 = 2.0;
    let Some(first) = cells.first() else { return Ok(()) };
    let root = SVGBackend::new(path, (800, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(format!("{}: fixed clocks", first.load), (20, 10), (FONT, 17)))?;
    let clocks = || cells.iter().flat_map(|cell| &cell.sweep.runs).map(|run| run.clocks.core.as_f64());
    let (low, high) = (clocks().fold(f64::INFINITY, f64::min), clocks().fold(1.0, f64::max));
    let mut chart = ChartBuilder::on(&root)
        .margin(10)
        .margin_top(36)
        .margin_right(20)
        .x_label_area_size(44)
        .y_label_area_size(58)
        .build_cartesian_2d(low..high, 0.95..TOP)?;
    chart
        .configure_mesh()
        .x_desc("core clock, MHz")
        .y_desc("energy x delay over the best")
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| format!("{value:.1}"))
        .label_style((FONT, 12))
        .axis_desc_style((FONT, 13))
        .light_line_style(TRANSPARENT)
        .bold_line_style(GREY.mix(0.2))
        .draw()?;
    for (index, cell) in cells.iter().enumerate() {
        let colour = colour(index);
        let seed = cell.seed;
        chart
            .draw_series(LineSeries::new(curve(&cell.sweep, Yardstick::E2e, TOP), colour.stroke_width(2)))?
            .label(format!("seed {seed}, by end-to-end latency"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart
            .draw_series(DashedLineSeries::new(
                curve(&cell.sweep, Yardstick::Tpot, TOP),
                4,
                4,
                colour.stroke_width(1),
            ))?
            .label(format!("seed {seed}, by time per output token"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 6, y)], colour.stroke_width(1)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperMiddle)
        .background_style(WHITE.mix(0.85))
        .border_style(GREY.mix(0.4))
        .label_font((FONT, 12))
        .draw()?;
    root.present()?;
    Ok(())
}

/// The curve at the highest memory clock, its worst ends left out.
fn curve(sweep: &Sweep, yardstick: Yardstick, top: f64) -> Vec<(f64, f64)> {
    let memory = sweep.runs.iter().map(|run| run.clocks.memory).max().flatten();
    let Some(best) = sweep.best(yardstick) else { return Vec::new() };
    let best = cost(&best.whole, yardstick, sweep.objective);
    sweep
        .runs
        .iter()
        .filter(|run| run.clocks.memory == memory)
        .map(|run| (run.clocks.core.as_f64(), cost(&run.whole, yardstick, sweep.objective) / best))
        .filter(|(_, ratio)| *ratio <= top)
        .collect()
}
