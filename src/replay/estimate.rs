//! What other choices would have earned, estimated from windows in which other clocks ran: doubly robust, with an
//! interval, and refused where the windows cannot tell.
//!
//! For each window `i`: the load before it `x`, the clock that ran `a`, the clock that the other settings asked for `w`,
//! what it showed `y`. The estimate of the mean of `y` under `w` is
//!
//! ```text
//! mean q(x, w)  +  sum v (y - q(x, a)) / sum v      v = [a and w in one bin] / p(bin of w | bin of x)
//! ```
//!
//! with `q` a regression fitted to the other fifths of the time (a window is never judged by what it taught), and `p` the
//! share in which that bin of clocks ran under such load, smoothed, `v` clipped. It is right if either `q` or `p` is. The
//! interval comes from a moving-block bootstrap: windows near each other are alike, blocks are not.

use crate::units::Target;
use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use serde::Serialize;

use super::model::{Model, Scales, WIDTH};
use crate::stats::quantile_975;

/// Fewer windows are not judged.
const LEAST_ROWS: usize = 200;
/// Share of the windows whose wanted clock has to have run under such load.
const LEAST_OVERLAP: f64 = 0.9;
/// A bin of clocks has run under a load if it did so in this share of its windows, and in so many.
const LEAST_SHARE: f64 = 0.02;
const LEAST_RUNS: f64 = 5.0;
/// Least effective number of windows.
const LEAST_EFFECTIVE: f64 = 60.0;
/// Least number of blocks that have a window in which the wanted clock ran.
const LEAST_BLOCKS: usize = 8;
/// No window weighs more.
const CLIP: f64 = 25.0;
/// Windows that the share over all loads counts for.
const SMOOTHING: f64 = 5.0;
/// Bins of clocks (where more clocks were run or wanted) and of loads.
const CLOCK_BINS: usize = 8;
const LOAD_BINS: usize = 4;
/// Stretches of time that take turns in fitting the regression.
const FOLDS: usize = 5;
/// Least length of a block, seconds.
const BLOCK_SECONDS: f64 = 30.0;
const RESAMPLES: usize = 1000;
const SEED: u64 = 7;

/// A clock as the estimate sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Clock(pub Target);

impl Clock {
    /// Core clock, MHz; `None` at driver-default clocks.
    #[must_use]
    pub fn core(self) -> Option<f64> {
        self.0.clocks().map(|clocks| clocks.core.as_f64())
    }

    /// Locked memory clock, MHz.
    #[must_use]
    pub fn memory(self) -> Option<f64> {
        self.0.clocks().and_then(|clocks| clocks.memory).map(crate::units::Mhz::as_f64)
    }
}

/// One window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// When it ended, seconds.
    pub at: f64,
    /// The load before it: prefill and decode tokens per second.
    pub load: [f64; 2],
    /// What ran.
    pub ran: Target,
    /// What the other settings asked for.
    pub wanted: Target,
    /// What it showed.
    pub outcome: f64,
}

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The estimate.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What the other settings would have come to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// What was recorded, over the same windows.
    pub recorded: Interval,
    /// What the other settings would have come to.
    pub other: Interval,
    /// The other less the recorded.
    pub difference: Interval,
}

/// How much the windows can tell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Support {
    /// Windows judged.
    pub windows: usize,
    /// Share of them whose wanted clock has run under such load, in this run.
    pub overlap: f64,
    /// Windows in which the wanted clock did run, counted by weight.
    pub effective_windows: f64,
    /// Blocks of the bootstrap.
    pub blocks: usize,
    /// Of these, blocks with a window in which the wanted clock ran.
    pub blocks_matched: usize,
}

/// Estimates the mean outcome under the wanted clocks.
///
/// # Errors
/// Why the windows cannot tell, and what would have to be recorded instead; with how much they could tell.
pub fn estimate(rows: &[Row]) -> Result<(Estimate, Support), (String, Support)> {
    let plan = Plan::new(rows);
    let support = plan.support(rows);
    match plan.refusal(rows, &support) {
        Some(why) => Err((why, support)),
        None => Ok((plan.estimate(rows), support)),
    }
}

/// Bins, shares, weights and blocks: all that does not depend on the outcome.
struct Plan {
    scales: Scales,
    /// Weight of each window; 0 where another clock ran.
    weight: Vec<f64>,
    /// Has the wanted clock run under such load?
    known: Vec<bool>,
    /// Windows in a block.
    block: usize,
}

impl Plan {
    fn new(rows: &[Row]) -> Self {
        let clocks = ClockBins::new(rows);
        let loads = LoadBins::new(rows);
        let mut run = BTreeMap::<(usize, usize), f64>::new();
        let mut by_load = BTreeMap::<usize, f64>::new();
        let mut by_clock = BTreeMap::<usize, f64>::new();
        for row in rows {
            let (load, clock) = (loads.of(row.load), clocks.of(row.ran));
            *run.entry((load, clock)).or_default() += 1.0;
            *by_load.entry(load).or_default() += 1.0;
            *by_clock.entry(clock).or_default() += 1.0;
        }
        let total = count(rows.len()).max(1.0);
        let of = |map: &BTreeMap<usize, f64>, key| map.get(&key).copied().unwrap_or(0.0);
        let (mut weight, mut known) = (Vec::new(), Vec::new());
        for row in rows {
            let (load, wanted) = (loads.of(row.load), clocks.of(row.wanted));
            let runs = run.get(&(load, wanted)).copied().unwrap_or(0.0);
            let in_load = of(&by_load, load);
            let share = (runs + SMOOTHING * of(&by_clock, wanted) / total) / (in_load + SMOOTHING);
            known.push(runs >= LEAST_RUNS && runs >= LEAST_SHARE * in_load);
            let matched = clocks.of(row.ran) == wanted && share > 0.0;
            weight.push(if matched { (1.0 / share).min(CLIP) } else { 0.0 });
        }
        Self { scales: scales(rows), weight, known, block: block(rows, &clocks) }
    }

    fn support(&self, rows: &[Row]) -> Support {
        let sum: f64 = self.weight.iter().sum();
        let squares: f64 = self.weight.iter().map(|weight| weight * weight).sum();
        let known = self.known.iter().filter(|known| **known).count();
        let blocks = self.weight.chunks(self.block);
        Support {
            windows: rows.len(),
            overlap: count(known) / count(rows.len()).max(1.0),
            effective_windows: if squares > 0.0 { sum * sum / squares } else { 0.0 },
            blocks: rows.len().div_ceil(self.block),
            blocks_matched: blocks.filter(|block| block.iter().any(|weight| *weight > 0.0)).count(),
        }
    }

    fn refusal(&self, rows: &[Row], support: &Support) -> Option<String> {
        const RECORD: &str = "record a run in which those clocks run now and then under every load, for example with \
            `control.policy: linucb` from `--reset-model` on";
        if rows.len() < LEAST_ROWS {
            return Some(format!(
                "{} windows can be judged, at least {LEAST_ROWS} are needed: record for longer, under load",
                rows.len()
            ));
        }
        if support.overlap < LEAST_OVERLAP {
            let mut never: BTreeMap<Target, usize> = BTreeMap::new();
            for (row, _) in rows.iter().zip(&self.known).filter(|(_, known)| !**known) {
                *never.entry(row.wanted).or_default() += 1;
            }
            let most = never.iter().max_by_key(|(_, times)| **times);
            let most = most.map(|(target, _)| format!(", above all {target}")).unwrap_or_default();
            return Some(format!(
                "in {:.0} % of the windows the other settings ask for a clock that (nearly) never ran under such \
                 load{most}: {RECORD}",
                100.0 * (1.0 - support.overlap)
            ));
        }
        if support.effective_windows < LEAST_EFFECTIVE {
            return Some(format!(
                "the wanted clock ran in no more than {:.0} windows' worth, at least {LEAST_EFFECTIVE:.0} are \
                 needed: {RECORD}, or record for longer",
                support.effective_windows
            ));
        }
        (support.blocks_matched < LEAST_BLOCKS).then(|| {
            format!(
                "the wanted clock ran in {} of {} stretches of the run, at least {LEAST_BLOCKS} are needed to tell \
                 chance from effect: record for longer, with more changes of the clock",
                support.blocks_matched, support.blocks
            )
        })
    }

    fn estimate(&self, rows: &[Row]) -> Estimate {
        let (wanted, residual) = self.judge(rows);
        // Sums up to each window: a block is then a difference.
        let mut sums = vec![[0.0; 4]];
        for (k, row) in rows.iter().enumerate() {
            let mut next = sums.last().copied().unwrap_or_default();
            let weight = self.weight[k];
            for (sum, term) in next.iter_mut().zip([wanted[k], weight * residual[k], weight, row.outcome]) {
                *sum += term;
            }
            sums.push(next);
        }
        let total = sums.last().copied().unwrap_or_default();
        let n = rows.len();
        let of = |sums: [f64; 4], rows: f64| {
            let correction = if sums[2] > 0.0 { sums[1] / sums[2] } else { 0.0 };
            let (other, recorded) = (sums[0] / rows + correction, sums[3] / rows);
            [recorded, other, other - recorded]
        };
        let means = of(total, count(n));
        let mut dice = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let blocks = n.div_ceil(self.block);
        let last_start = n - self.block;
        let mut spread = [(0.0, 0.0); 3];
        for _ in 0..RESAMPLES {
            let mut drawn = [0.0; 4];
            for _ in 0..blocks {
                let start = dice.random_range(0..=last_start);
                for (k, sum) in drawn.iter_mut().enumerate() {
                    *sum += sums[start + self.block][k] - sums[start][k];
                }
            }
            let resampled = of(drawn, count(blocks * self.block));
            for ((sum, squares), value) in spread.iter_mut().zip(resampled) {
                *sum += value;
                *squares += value * value;
            }
        }
        let resamples = count(RESAMPLES);
        // Few blocks know little of their own spread.
        let wide = quantile_975((n / self.block).saturating_sub(1).max(1) as u64);
        let mut intervals = means.iter().zip(spread).map(|(mean, (sum, squares))| {
            let variance = (squares / resamples - (sum / resamples).powi(2)).max(0.0);
            let half = wide * variance.sqrt();
            Interval { mean: *mean, low: mean - half, high: mean + half }
        });
        let nothing = Interval { mean: f64::NAN, low: f64::NAN, high: f64::NAN };
        let mut next = || intervals.next().unwrap_or(nothing);
        Estimate { recorded: next(), other: next(), difference: next() }
    }

    /// For each window, what the regression expects of the wanted clock, and what it missed of the one that ran; fitted
    /// to the other stretches of time.
    fn judge(&self, rows: &[Row]) -> (Vec<f64>, Vec<f64>) {
        let x: Vec<[f64; WIDTH]> =
            rows.iter().map(|row| self.scales.regressors(row.load, Clock(row.ran))).collect();
        let fold_of = |k: usize| k * FOLDS / rows.len();
        let models: Vec<Model> = (0..FOLDS)
            .map(|fold| {
                let others = (0..rows.len()).filter(|k| fold_of(*k) != fold);
                Model::fit(others.map(|k| (x[k], rows[k].outcome)))
            })
            .collect();
        let of = |k: usize, row: &Row| {
            let model = &models[fold_of(k)];
            let wanted = self.scales.regressors(row.load, Clock(row.wanted));
            (model.at(&wanted), row.outcome - model.at(&x[k]))
        };
        rows.iter().enumerate().map(|(k, row)| of(k, row)).unzip()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of windows")]
fn count(number: usize) -> f64 {
    number as f64
}

/// Clocks that count as one: each for itself if they are few, else equal spans of the core clock.
struct ClockBins {
    distinct: Vec<Target>,
    lowest: f64,
    span: f64,
}

impl ClockBins {
    fn new(rows: &[Row]) -> Self {
        let mut distinct: Vec<Target> = rows.iter().flat_map(|row| [row.ran, row.wanted]).collect();
        distinct.sort_unstable();
        distinct.dedup();
        let cores = || distinct.iter().filter_map(|target| Clock(*target).core());
        let lowest = cores().fold(f64::INFINITY, f64::min);
        let span = cores().fold(0.0, f64::max) - lowest;
        Self { distinct, lowest, span }
    }

    fn of(&self, target: Target) -> usize {
        let Some(core) = Clock(target).core() else { return 0 };
        if self.distinct.len() <= CLOCK_BINS + 1 {
            return 1 + self.distinct.binary_search(&target).unwrap_or_else(|at| at);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small bin number")]
        let bin = (count(CLOCK_BINS) * (core - self.lowest) / self.span.max(1.0)) as usize;
        1 + bin.min(CLOCK_BINS - 1)
    }
}

/// Loads that count as one: quarters of the windows by decode rate.
struct LoadBins(Vec<f64>);

impl LoadBins {
    fn new(rows: &[Row]) -> Self {
        let mut rates: Vec<f64> = rows.iter().map(|row| row.load[1]).collect();
        rates.sort_unstable_by(f64::total_cmp);
        Self((1..LOAD_BINS).filter_map(|k| rates.get(k * rates.len() / LOAD_BINS).copied()).collect())
    }

    fn of(&self, load: [f64; 2]) -> usize {
        self.0.partition_point(|edge| *edge <= load[1])
    }
}

fn scales(rows: &[Row]) -> Scales {
    let n = count(rows.len()).max(1.0);
    let load = std::array::from_fn(|k| {
        let mean = rows.iter().map(|row| row.load[k]).sum::<f64>() / n;
        let variance = rows.iter().map(|row| (row.load[k] - mean).powi(2)).sum::<f64>() / n;
        (mean, if variance > 0.0 { variance.sqrt() } else { 1.0 })
    });
    let cores = rows.iter().flat_map(|row| [row.ran, row.wanted]).filter_map(|target| Clock(target).core());
    let top = cores.fold(0.0, f64::max);
    Scales { top: if top > 0.0 { top } else { 1.0 }, load }
}

/// Windows in a block of the bootstrap: half a minute, at least two spells of a clock, at most a tenth of the run.
fn block(rows: &[Row], clocks: &ClockBins) -> usize {
    let changes = rows.windows(2).filter(|pair| clocks.of(pair[0].ran) != clocks.of(pair[1].ran)).count();
    let spell = rows.len() / (changes + 1);
    let span = match (rows.first(), rows.last()) {
        (Some(first), Some(last)) => last.at - first.at,
        _ => 0.0,
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of windows")]
    let long = (BLOCK_SECONDS * count(rows.len()) / span.max(1.0)) as usize;
    long.max(2 * spell).min(rows.len() / 10).max(1)
}

#[cfg(test)]
mod tests;
