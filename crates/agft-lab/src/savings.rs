//! Does the holdout experiment tell the truth? Here the truth is known: the same arrivals come once more, wholly at default
//! clocks.
//!
//! Each cell is run twice: at default clocks, and under agft with the experiment in it. What the measured moments under
//! agft came to, against the same moments of the first run, is the true change; what the experiment says is what an
//! operator would have been told.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::LabError;
use super::experiment::{for_each_cell, supported};
use super::grid::Load;
use super::policy::as_configured;
use crate::sim::run::{Driver, RunError, RunSpec, run};
use agft::config::Config;
use agft::control::{Mode, Round};
use agft::holdout::{Change, Effect, Savings, SlotWindow};
use agft::units::Seconds;

/// The quantities that are compared.
const NAMES: [&str; 3] = ["power", "TPOT", "TTFT"];

/// What to try.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Loads.
    pub loads: Vec<Load>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Length of a run, seconds.
    pub seconds: f64,
    /// Configuration, the share and lengths of the holdout in it.
    pub config: Config,
}

/// One run beside the truth about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The load.
    pub load: String,
    /// True relative changes of power, TPOT, TTFT.
    pub truth: [Option<f64>; 3],
    /// What the experiment says of them.
    pub said: [Option<Change>; 3],
    /// When it first said something of power, seconds after the start; `None` if it never did.
    pub first_s: Option<f64>,
    /// Share of the run in control slots.
    pub spent: f64,
}

impl Trial {
    /// Runs of the simulator that it takes.
    #[must_use]
    pub fn pieces(&self) -> usize {
        2 * self.loads.len() * self.seeds.len()
    }

    /// Tries every load with every seed on `jobs` threads (0: one per core), calling `done` after each run.
    ///
    /// # Errors
    /// The first [`LabError`] in the order of the cells.
    pub fn run(&self, jobs: usize, done: impl Fn() + Sync) -> Result<Vec<Told>, LabError> {
        for_each_cell(&self.loads, &self.seeds, jobs, |load, seed| self.cell(load, seed, &done))
    }

    fn cell(&self, load: &Load, seed: u64, done: &(impl Fn() + Sync)) -> Result<Told, RunError> {
        let world = load.stage(self.seconds, seed)?.world;
        let supported = supported(&world, seed)?;
        let tick = self.config.control.decision_interval_s;
        let spec = RunSpec { world, seed, seconds: Seconds(self.seconds), tick };
        let mut at_default: BTreeMap<u64, SlotWindow> = BTreeMap::new();
        let mut config = self.config.clone();
        config.control.seed = seed;
        let mut trial = as_configured(&config, &supported);
        config.control.data_collection_mode = true;
        let mut watcher = as_configured(&config, &supported);
        run(&spec, Driver::Controller(&mut watcher), |round| {
            at_default.insert(tick_of(round, tick), SlotWindow::from(round));
        })?;
        done();
        let (mut default, mut treatment) = (Totals::default(), Totals::default());
        let (mut first_s, mut spent_s) = (None, 0.0);
        let mut savings = Savings::new(self.config.holdout.share);
        run(&spec, Driver::Controller(&mut trial), |round| {
            if round.mode == Mode::Holdout {
                spent_s += tick.0;
            }
            let Some(at) = round.holdout else { return };
            let window = SlotWindow::from(round);
            savings.push(at, &window, round.at.0);
            if first_s.is_none() && savings.state().effect.power_w.is_some() {
                first_s = Some(round.at.0);
            }
            if let Some(same) = at_default.get(&tick_of(round, tick)).filter(|_| !at.held) {
                treatment.push(&window);
                default.push(same);
            }
        })?;
        savings.close(self.seconds);
        done();
        let Effect { power_w, tpot_s, ttft_s } = savings.state().effect;
        let (with, without) = (treatment.means(), default.means());
        Ok(Told {
            load: load.to_string(),
            truth: std::array::from_fn(|k| Some(with[k]? / without[k]? - 1.0)),
            said: [power_w, tpot_s, ttft_s],
            first_s,
            spent: spent_s / self.seconds,
        })
    }
}

/// The tick that closed a round.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ticks of a run; not negative")]
fn tick_of(round: &Round, tick: Seconds) -> u64 {
    (round.at.0 / tick.0).round() as u64
}

/// Sums over moments of a run.
#[derive(Default)]
struct Totals {
    energy: (f64, f64),
    tpot: (f64, f64),
    ttft: (f64, f64),
}

impl Totals {
    fn push(&mut self, window: &SlotWindow) {
        let energy = window.energy_j.map(|energy| (energy, window.seconds));
        let sums = [&mut self.energy, &mut self.tpot, &mut self.ttft];
        for (sum, pair) in sums.into_iter().zip([energy, window.tpot, window.ttft]) {
            let (value, weight) = pair.unwrap_or_default();
            sum.0 += value;
            sum.1 += weight;
        }
    }

    fn means(&self) -> [Option<f64>; 3] {
        [self.energy, self.tpot, self.ttft].map(|(value, weight)| (weight > 0.0).then(|| value / weight))
    }
}

/// How often the intervals cover the truth, by load and in total.
#[must_use]
pub fn table(told: &[Told]) -> String {
    let mut out = String::new();
    let mut loads: Vec<&str> = Vec::new();
    for one in told {
        if !loads.contains(&one.load.as_str()) {
            loads.push(&one.load);
        }
    }
    let width = loads.iter().map(|load| load.len()).max().unwrap_or(0).max(4);
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{:width$}  of what  runs  covered  true change  told (mean)  half-width (mean)  first told  \
         at default clocks",
        "load"
    );
    for (k, name) in NAMES.iter().enumerate() {
        for load in &loads {
            let of_load: Vec<&Told> = told.iter().filter(|one| one.load == *load).collect();
            row(&mut out, &format!("{load:width$}"), name, k, &of_load);
        }
        if loads.len() > 1 {
            row(&mut out, &format!("{:width$}", "all"), name, k, &told.iter().collect::<Vec<_>>());
        }
    }
    out
}

fn row(out: &mut String, load: &str, name: &str, k: usize, told: &[&Told]) {
    let pairs: Vec<(f64, Change)> = told.iter().filter_map(|one| one.truth[k].zip(one.said[k])).collect();
    if pairs.is_empty() {
        let _ = writeln!(
            out,
            "{load}  {name:7}     -  too few cycles: longer runs, shorter blocks or a larger share"
        );
        return;
    }
    let firsts: Vec<f64> = told.iter().filter_map(|one| one.first_s).collect();
    let latest = firsts.iter().copied().fold(0.0, f64::max);
    // The slowest run's, unless one never came to tell.
    let first =
        if firsts.len() == told.len() { format!("{:6.1} min", latest / 60.0) } else { "     never".into() };
    let count = count_of(pairs.len());
    let covers =
        |(truth, change): &&(f64, Change)| (change.relative - truth).abs() <= change.relative_half_width;
    let covered = count_of(pairs.iter().filter(covers).count()) / count;
    let mean = |of: fn(&(f64, Change)) -> f64| 100.0 * pairs.iter().map(of).sum::<f64>() / count;
    let _ = writeln!(
        out,
        "{load}  {name:7}  {:4}  {:5.1} %  {:+9.2} %  {:+9.2} %  {:15.2} %  {first}  {:15.2} %",
        pairs.len(),
        100.0 * covered,
        mean(|(truth, _)| *truth),
        mean(|(_, change)| change.relative),
        mean(|(_, change)| change.relative_half_width),
        100.0 * told.iter().map(|one| one.spent).sum::<f64>() / count_of(told.len()),
    );
}

#[expect(clippy::cast_precision_loss, reason = "a number of runs")]
fn count_of(runs: usize) -> f64 {
    runs as f64
}
