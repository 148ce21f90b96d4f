//! The simulator's physics against measured boards.
//!
//! What other people's engines and models ask of a board is not known, so three constants are fitted to each sweep's
//! throughput and power: arithmetic, bytes and host time per token. They are fitted to every second point and judged at
//! the others. All else is the preset's, and shared by every sweep of the board. The presets' own power coefficients
//! were fitted to these boards: the table shows that the physics can describe a board, not that it predicts an unseen
//! one.

use std::collections::BTreeMap;
use std::fmt;

use super::SimError;
use super::physics::{GpuPreset, StepCost, Work};
use agft::units::{Clocks, Mhz, Watts};

const SWEEPS: &str = include_str!("data/dvfs_points.csv");
const IDLE: &str = include_str!("data/idle_points.csv");

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub(super) core: Option<Mhz>,
    pub(super) memory: Option<Mhz>,
    pub(super) cap: Option<Watts>,
    pub(super) watts: f64,
    pub(super) tokens_per_second: f64,
}

/// How well the physics describes one sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Key of the GPU preset.
    pub gpu: &'static str,
    /// What ran.
    pub workload: String,
    /// On which engine.
    pub engine: String,
    /// With which model.
    pub model: String,
    /// Number of measured points; with fitted constants, half of them judge.
    pub points: usize,
    /// Error of the throughput; `None` for idle points.
    pub throughput: Option<Deviation>,
    /// Error of the board power.
    pub power: Deviation,
    /// The fitted constants, per token; `None` for idle points.
    pub work: Option<Work>,
}

/// Absolute percentage errors, as shares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Deviation {
    /// Their mean (MAPE).
    pub mean: f64,
    /// The largest.
    pub worst: f64,
}

impl Deviation {
    #[expect(clippy::cast_precision_loss, reason = "a few dozen points")]
    fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        let errors: Vec<f64> =
            pairs.map(|(predicted, measured)| (predicted / measured - 1.0).abs()).collect();
        let mean = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
        Self { mean, worst: errors.into_iter().fold(0.0, f64::max) }
    }
}

/// The comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// One row per sweep, idle points first.
    pub rows: Vec<Row>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<11} {:<20} {:<13} {:<30} {:>6}  {:>16}  {:>16}",
            "gpu", "workload", "engine", "model", "points", "tokens/s", "power"
        )?;
        let percent = |d: Deviation| format!("{:.1} % (max {:.0} %)", 100.0 * d.mean, 100.0 * d.worst);
        for row in &self.rows {
            writeln!(
                f,
                "{:<11} {:<20} {:<13} {:<30} {:>6}  {:>16}  {:>16}",
                row.gpu,
                row.workload,
                row.engine,
                row.model,
                row.points,
                row.throughput.map_or_else(|| "-".to_owned(), percent),
                percent(row.power)
            )?;
        }
        Ok(())
    }
}

/// Compares every measured point with the physics.
///
/// # Errors
/// [`SimError::UnknownName`] if a point's GPU has no preset.
pub fn calibrate() -> Result<Table, SimError> {
    let mut rows = idle_rows()?;
    for ([gpu, workload, engine, model], points) in sweeps() {
        let gpu = GpuPreset::named(&gpu)?;
        let board = BoardModel { core_clocks: gpu.core_clocks(), gpu };
        let fitted: Vec<_> = points.iter().copied().step_by(2).collect();
        let work = board.fit(&fitted);
        let predicted = || points.iter().skip(1).step_by(2).map(|point| (board.predict(&work, point), point));
        rows.push(Row {
            gpu: gpu.key,
            workload,
            engine,
            model,
            points: points.len(),
            throughput: Some(Deviation::of(
                predicted().map(|(cost, point)| (1.0 / cost.seconds, point.tokens_per_second)),
            )),
            power: Deviation::of(predicted().map(|(cost, point)| (cost.watts, point.watts))),
            work: Some(work),
        });
    }
    Ok(Table { rows })
}

/// A data file's rows without the header, split at commas.
fn cells(csv: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    csv.lines().skip(1).map(|line| line.split(',').collect())
}

fn clock(cell: &str) -> Option<Mhz> {
    cell.parse().ok().map(Mhz)
}

/// Sweeps by gpu, workload, engine and model.
pub(super) fn sweeps() -> BTreeMap<[String; 4], Vec<Point>> {
    let mut sweeps: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for row in cells(SWEEPS) {
        if let &[gpu, workload, engine, model, memory, core, cap, watts, rate] = row.as_slice()
            && let (Ok(watts), Ok(tokens_per_second)) = (watts.parse(), rate.parse())
        {
            let cap = cap.parse().ok().map(Watts);
            let point = Point { core: clock(core), memory: clock(memory), cap, watts, tokens_per_second };
            sweeps.entry([gpu, workload, engine, model].map(str::to_owned)).or_default().push(point);
        }
    }
    sweeps
}

fn idle_rows() -> Result<Vec<Row>, SimError> {
    let mut boards: BTreeMap<&str, Vec<(Clocks, f64)>> = BTreeMap::new();
    for row in cells(IDLE) {
        if let &[gpu, _, memory, core, watts] = row.as_slice()
            && let (Some(core), Ok(watts)) = (clock(core), watts.parse())
        {
            boards.entry(gpu).or_default().push((Clocks { core, memory: clock(memory) }, watts));
        }
    }
    let row = |(gpu, points): (&str, Vec<(Clocks, f64)>)| {
        let gpu = GpuPreset::named(gpu)?;
        Ok(Row {
            gpu: gpu.key,
            workload: "idle".to_owned(),
            engine: String::new(),
            model: String::new(),
            points: points.len(),
            throughput: None,
            power: Deviation::of(points.into_iter().map(|(clocks, watts)| (gpu.idle_watts(clocks), watts))),
            work: None,
        })
    };
    boards.into_iter().map(row).collect()
}

struct BoardModel {
    gpu: GpuPreset,
    core_clocks: Vec<Mhz>,
}

impl BoardModel {
    /// Time and power of one token at the point's clocks; where its core clock is not known, at what its cap allows.
    fn predict(&self, work: &Work, point: &Point) -> StepCost {
        let fastest = self.gpu.fastest();
        let clocks =
            Clocks { core: point.core.unwrap_or(fastest.core), memory: point.memory.or(fastest.memory) };
        match (point.core, point.cap) {
            (None, Some(cap)) => self.gpu.step_within(work, clocks, cap, &self.core_clocks).1,
            _ => self.gpu.step(work, clocks),
        }
    }

    /// The constants with the least squared logarithmic error of throughput and power: a compass search over all 26
    /// neighbours in the logarithms, halving its stride when none is better, from several starts.
    fn fit(&self, points: &[Point]) -> Work {
        let error = |work: &Work| -> f64 {
            let squares = points.iter().map(|point| {
                let cost = self.predict(work, point);
                (cost.seconds * point.tokens_per_second).ln().powi(2)
                    + (cost.watts / point.watts).ln().powi(2)
            });
            squares.sum()
        };
        let fastest = points.iter().map(|point| point.tokens_per_second).fold(f64::MIN_POSITIVE, f64::max);
        let ends = STARTS.map(|[core, memory, host]| {
            let start = Work {
                flops: core * self.gpu.flops / fastest,
                bytes: memory * self.gpu.bandwidth / fastest,
                host: host / fastest,
                ..Work::default()
            };
            descend(start, &error)
        });
        let best = ends.into_iter().min_by(|(a, _), (b, _)| a.total_cmp(b));
        best.map_or_else(Work::default, |(_, work)| work)
    }
}

/// How the fastest point's time may be shared among arithmetic, memory and host, to begin with.
const STARTS: [[f64; 3]; 4] = [[0.6, 0.5, 0.1], [0.3, 0.9, 0.1], [0.9, 0.2, 0.1], [0.4, 0.4, 0.5]];

fn descend(start: Work, error: &impl Fn(&Work) -> f64) -> (f64, Work) {
    let mut best = (error(&start), start);
    let mut stride = 0.4_f64;
    while stride > 1e-3 {
        let factors = [(-stride).exp(), 1.0, stride.exp()];
        let mut nearby = best;
        for (f, b, h) in
            factors.iter().flat_map(|f| factors.iter().flat_map(move |b| factors.map(|h| (f, b, h))))
        {
            let (_, Work { flops, bytes, host, .. }) = best;
            let work = Work { flops: flops * f, bytes: bytes * b, host: host * h, ..Work::default() };
            let moved = error(&work);
            if moved < nearby.0 {
                nearby = (moved, work);
            }
        }
        if nearby.0 < best.0 {
            best = nearby;
        } else {
            stride /= 2.0;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physics_describes_every_measured_sweep_within_ten_percent() {
        let table = calibrate().unwrap();
        println!("{table}");
        let points: usize = table.rows.iter().map(|row| row.points).sum();
        assert_eq!(points, SWEEPS.lines().count() - 1 + IDLE.lines().count() - 1);
        for row in &table.rows {
            assert!(row.power.mean < 0.10, "{row:?}");
            assert!(row.throughput.is_none_or(|throughput| throughput.mean < 0.10), "{row:?}");
        }
    }

    #[test]
    fn fit_reproduces_a_synthetic_sweep() {
        let gpu = super::super::presets::A100;
        let board = BoardModel { core_clocks: gpu.core_clocks(), gpu };
        let truth =
            Work { flops: 0.004 * gpu.flops, bytes: 0.01 * gpu.bandwidth, host: 0.002, ..Work::default() };
        let points: Vec<_> = (0..9)
            .map(|i| {
                let core = Some(Mhz(450 + 120 * i));
                let blank = Point { core, memory: None, cap: None, watts: 1.0, tokens_per_second: 1.0 };
                let cost = board.predict(&truth, &blank);
                Point { tokens_per_second: 1.0 / cost.seconds, watts: cost.watts, ..blank }
            })
            .collect();
        let fitted = board.fit(&points);
        for point in &points {
            let seconds = board.predict(&fitted, point).seconds;
            assert!((seconds * point.tokens_per_second - 1.0).abs() < 0.005, "{fitted:?} against {truth:?}");
        }
    }
}
