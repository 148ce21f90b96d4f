//! What driver-default clocks cost, under which load.
//!
//! One number measured in the first minute is wrong as soon as the load changes, so the book keeps power and delay per
//! cell of load and answers for the cells around the load at hand.

use serde::{Deserialize, Serialize};

use super::Cost;
use crate::units::{Seconds, Watts};

/// The load of the moment: token rates averaged over some seconds. In an open system they do not depend on the clock,
/// which the batch size and the queue do: a low clock must not be forgiven for the crowd it has caused itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Prompt tokens per second.
    pub prefill_rate: f64,
    /// Generated tokens per second.
    pub decode_rate: f64,
}

impl Load {
    fn coordinates(self) -> [f64; 2] {
        [self.prefill_rate.max(0.0).ln_1p(), self.decode_rate.max(0.0).ln_1p()]
    }
}

/// Loads whose rates differ by less than about this factor (as a logarithm) share a cell.
const CELL: f64 = 0.35;
/// Width of the kernel that weighs neighbouring cells.
const BANDWIDTH: f64 = 0.4;
/// A cell's weight never exceeds this many windows: old evidence fades.
const MEMORY: f64 = 60.0;
/// Cells kept; the one unused for longest goes first.
const MAX_CELLS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Cell {
    at: [f64; 2],
    log_power: f64,
    log_delay: f64,
    weight: f64,
    /// Serial number of the last sample, for eviction.
    used: u64,
}

/// Costs seen at driver-default clocks, by load.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BaselineBook {
    cells: Vec<Cell>,
    samples: u64,
}

/// The book's answer for a load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Expected cost at driver-default clocks.
    pub cost: Cost,
    /// Windows that speak for it, weighed by how near their load was.
    pub support: f64,
}

impl BaselineBook {
    /// Takes a window that ran at driver-default clocks. One that is not sound is ignored.
    pub fn observe(&mut self, load: Load, cost: Cost) {
        let at = load.coordinates();
        if !cost.is_sound() || at.iter().any(|value| !value.is_finite()) {
            return;
        }
        self.samples += 1;
        let (log_power, log_delay) = (cost.power.0.ln(), cost.delay.0.ln());
        let nearest = self
            .cells
            .iter_mut()
            .min_by(|a, b| distance(a.at, at).total_cmp(&distance(b.at, at)))
            .filter(|cell| distance(cell.at, at) < CELL);
        if let Some(cell) = nearest {
            cell.weight = (cell.weight + 1.0).min(MEMORY);
            let gain = 1.0 / cell.weight;
            cell.at[0] += gain * (at[0] - cell.at[0]);
            cell.at[1] += gain * (at[1] - cell.at[1]);
            cell.log_power += gain * (log_power - cell.log_power);
            cell.log_delay += gain * (log_delay - cell.log_delay);
            cell.used = self.samples;
            return;
        }
        if self.cells.len() >= MAX_CELLS
            && let Some(oldest) = (0..self.cells.len()).min_by_key(|index| self.cells[*index].used)
        {
            self.cells.swap_remove(oldest);
        }
        self.cells.push(Cell { at, log_power, log_delay, weight: 1.0, used: self.samples });
    }

    /// What default clocks would cost under this load; `None` while the book is empty.
    ///
    /// Kernel regression over cells in log space. Far from everything seen, the nearest cell answers and `support`
    /// says how little that is worth.
    #[must_use]
    pub fn estimate(&self, load: Load) -> Option<Baseline> {
        let at = load.coordinates();
        let nearest = self.cells.iter().map(|cell| distance(cell.at, at)).min_by(f64::total_cmp)?;
        let (mut total, mut support, mut log_power, mut log_delay) = (0.0, 0.0, 0.0, 0.0);
        for cell in &self.cells {
            let away = distance(cell.at, at);
            // Relative to the nearest one: weights never all underflow, however far the load is.
            let kernel = (-0.5 * (away * away - nearest * nearest) / (BANDWIDTH * BANDWIDTH)).exp();
            let weight = kernel * cell.weight;
            total += weight;
            log_power += weight * cell.log_power;
            log_delay += weight * cell.log_delay;
            support += cell.weight * (-0.5 * away * away / (BANDWIDTH * BANDWIDTH)).exp();
        }
        let cost =
            Cost { power: Watts((log_power / total).exp()), delay: Seconds((log_delay / total).exp()) };
        cost.is_sound().then_some(Baseline { cost, support })
    }

    /// Windows taken in so far.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Is every stored number usable? A model file could say otherwise.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.cells.len() <= MAX_CELLS
            && self.cells.iter().all(|cell| {
                cell.at.iter().chain([&cell.log_power, &cell.log_delay]).all(|value| value.is_finite())
                    && (1.0..=MEMORY).contains(&cell.weight)
            })
    }
}

fn distance(a: [f64; 2], b: [f64; 2]) -> f64 {
    (a[0] - b[0]).hypot(a[1] - b[1])
}

/// When the clocks are given back to measure a baseline.
///
/// The first measurement is long. Later ones are short, happen only where the book knows nothing of the load at hand,
/// and together take at most [`BUDGET`] of the time with work.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BaselineSchedule {
    /// Valid windows still owed at default clocks.
    owed: u32,
    first_done: bool,
    /// Seconds of work seen, and of these spent on later measurements.
    busy: f64,
    spent: f64,
}

/// Share of busy time that measurements after the first may take.
pub const BUDGET: f64 = 0.05;
/// Windows of a later measurement.
const SHORT: u32 = 4;
/// Below this support the book knows too little of a load.
const ENOUGH_SUPPORT: f64 = 2.0;

impl BaselineSchedule {
    /// A schedule whose first measurement takes `first` valid windows.
    #[must_use]
    pub fn new(first: u32) -> Self {
        Self { owed: first, ..Self::default() }
    }

    /// One tick with work, `dt` long: should the clocks be at the driver's default now?
    pub fn wants_default(&mut self, support: Option<f64>, dt: Seconds) -> bool {
        self.busy += dt.0;
        if self.owed > 0 {
            if self.first_done {
                self.spent += dt.0;
            }
            return true;
        }
        let known = support.is_some_and(|support| support >= ENOUGH_SUPPORT);
        let planned = f64::from(SHORT) * dt.0;
        if !known && self.spent + planned <= BUDGET * self.busy {
            self.owed = SHORT;
            self.spent += dt.0;
            return true;
        }
        false
    }

    /// A valid window at default clocks was taken in.
    pub fn taken(&mut self) {
        self.owed = self.owed.saturating_sub(1);
        if self.owed == 0 {
            self.first_done = true;
        }
    }

    /// Is the first measurement complete?
    #[must_use]
    pub fn first_done(&self) -> bool {
        self.first_done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(prefill_rate: f64, decode_rate: f64) -> Load {
        Load { prefill_rate, decode_rate }
    }

    fn cost(power: f64, delay: f64) -> Cost {
        Cost { power: Watts(power), delay: Seconds(delay) }
    }

    #[test]
    fn book_answers_for_the_load_at_hand() {
        let mut book = BaselineBook::default();
        for _ in 0..10 {
            book.observe(load(100.0, 50.0), cost(150.0, 0.01));
            book.observe(load(5000.0, 1500.0), cost(390.0, 0.03));
        }
        let light = book.estimate(load(110.0, 48.0)).unwrap();
        let heavy = book.estimate(load(4800.0, 1600.0)).unwrap();
        approx::assert_relative_eq!(light.cost.power.0, 150.0, max_relative = 1e-3);
        approx::assert_relative_eq!(heavy.cost.delay.0, 0.03, max_relative = 1e-3);
        assert!(light.support > 5.0 && heavy.support > 5.0);
    }

    #[test]
    fn unknown_load_is_answered_with_little_support() {
        let mut book = BaselineBook::default();
        book.observe(load(10.0, 10.0), cost(150.0, 0.01));
        let far = book.estimate(load(1e6, 1e6)).unwrap();
        assert!(far.support < 1e-6);
        approx::assert_relative_eq!(far.cost.power.0, 150.0, max_relative = 1e-9);
        assert!(BaselineBook::default().estimate(load(1.0, 1.0)).is_none());
    }

    #[test]
    fn old_evidence_fades() {
        let mut book = BaselineBook::default();
        for _ in 0..1000 {
            book.observe(load(100.0, 50.0), cost(100.0, 0.01));
        }
        for _ in 0..200 {
            book.observe(load(100.0, 50.0), cost(200.0, 0.01));
        }
        let power = book.estimate(load(100.0, 50.0)).unwrap().cost.power.0;
        assert!(power > 190.0, "{power} W");
    }

    #[test]
    fn first_measurement_ends_after_its_windows() {
        let mut schedule = BaselineSchedule::new(3);
        for _ in 0..3 {
            assert!(schedule.wants_default(None, Seconds(0.3)));
            assert!(!schedule.first_done());
            schedule.taken();
        }
        assert!(schedule.first_done());
        assert!(!schedule.wants_default(Some(10.0), Seconds(0.3)));
    }

    #[test]
    fn later_measurements_keep_to_their_budget() {
        let mut schedule = BaselineSchedule::new(1);
        schedule.wants_default(None, Seconds(0.3));
        schedule.taken();
        let mut at_default = 0;
        for _ in 0..10_000 {
            // A load that is never known: the worst case.
            if schedule.wants_default(Some(0.0), Seconds(0.3)) {
                at_default += 1;
                schedule.taken();
            }
        }
        let share = f64::from(at_default) / 10_000.0;
        assert!(share > 0.02 && share < BUDGET + 0.01, "{share}");
    }

    proptest! {
        #[test]
        fn book_stays_sound_and_bounded(
            rows in prop::collection::vec((0.0..1e6_f64, 0.0..1e5_f64, 1.0..2000.0_f64, 1e-4..10.0_f64), 1..300),
        ) {
            let mut book = BaselineBook::default();
            for (prefill, decode, power, delay) in rows {
                book.observe(load(prefill, decode), cost(power, delay));
                prop_assert!(book.is_sound());
                let answer = book.estimate(load(prefill, decode)).unwrap();
                prop_assert!(answer.cost.is_sound() && answer.support.is_finite());
            }
        }
    }
}
