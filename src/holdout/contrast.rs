//! Treatment against control slots: a ratio of sums on each side, adjusted for the load, with an interval.
//!
//! Each cycle gives two vectors `(w, y, x1, x2)`, one of its control slot and one of its treatment slots,
//! each scaled to the cycle's measured time: `y` is what is compared (energy, summed latency), `w` what it is
//! per (seconds, tokens, requests), `x` the load that came by chance. With any fixed β, `(Σy - β·Σx)/Σw` of
//! the two sides differ in expectation by the effect alone, because the control slot is drawn at random; β
//! from a regression within the cycles takes the load's chance out and with it most of the variance (Lin
//! 2013; the control variate of survey sampling).
//!
//! Cycles are strata of different length: where fewer slots are control, a control slot stands for more time,
//! and counts that much more (Horvitz and Thompson). The effect is then that of the whole time, whatever the
//! share of control was in which part of it, provided that the share was set before the draw. The interval is
//! that of a ratio estimator, linearised, with cycles as units, Student's t, and as many degrees of freedom
//! as cycles of equal weight would have (Kish).

use serde::{Deserialize, Serialize};

use crate::stats::quantile_975;

/// Elements of a side: weight, value, two covariates.
const SIDE: usize = 4;
/// Fewer cycles give no interval worth the name.
pub const FEWEST_CYCLES: u64 = 5;

/// A cycle's vector is as large as what a control slot measures at this share. A mere unit: versions before
/// cycles had weights wrote sums of control slots at this share, and what they wrote goes on.
const UNIT_SHARE: f64 = 0.02;

/// Weight, value and covariates, summed over slots.
pub type Sums = [f64; SIDE];

/// What was compared so far.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Contrast {
    cycles: u64,
    sum: [f64; 2 * SIDE],
    /// Sum of products of the cycles' vectors, control side first.
    products: [[f64; 2 * SIDE]; 2 * SIDE],
    /// Scatter of `(y, x1, x2)/w` between the treatment slots of a cycle, over all cycles.
    scatter: [[f64; 3]; 3],
}

/// A difference with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Value per weight at default clocks under the treatment slots' load.
    pub default: f64,
    /// Value per weight under agft.
    pub agft: f64,
    /// Half-width of the interval of `agft - default`.
    pub difference_half_width: f64,
    /// `agft / default - 1`: -0.2 is 20 % less.
    pub relative: f64,
    /// Half-width of its interval.
    pub relative_half_width: f64,
    /// Cycles compared.
    pub cycles: u64,
}

impl Change {
    /// `agft - default`.
    #[must_use]
    pub fn difference(&self) -> f64 {
        self.agft - self.default
    }
}

impl Contrast {
    /// Takes a cycle in: its control slot and its treatment slots, and the measured seconds of each side. A
    /// side without weight says nothing: left out.
    pub fn push(&mut self, control: Sums, treatment: &[Sums], control_s: f64, treatment_s: f64) {
        let total = treatment.iter().fold([0.0; SIDE], |sum, slot| std::array::from_fn(|k| sum[k] + slot[k]));
        let stands_for = UNIT_SHARE * (control_s + treatment_s);
        let (of_control, of_treatment) = (stands_for / control_s, stands_for / treatment_s);
        let vector: [f64; 2 * SIDE] = std::array::from_fn(|k| {
            control.get(k).map_or_else(|| of_treatment * total[k - SIDE], |value| of_control * value)
        });
        let usable = vector[0] > 0.0 && vector[SIDE] > 0.0;
        if !usable || !vector.iter().all(|value| value.is_finite()) {
            return;
        }
        self.cycles += 1;
        for (row, a) in vector.iter().enumerate() {
            self.sum[row] += a;
            for (column, b) in vector.iter().enumerate() {
                self.products[row][column] += a * b;
            }
        }
        let mean: [f64; 3] = std::array::from_fn(|k| total[k + 1] / total[0]);
        for slot in treatment.iter().filter(|slot| slot[0] > 0.0) {
            let off: [f64; 3] = std::array::from_fn(|k| slot[k + 1] / slot[0] - mean[k]);
            for (row, a) in off.iter().enumerate() {
                for (column, b) in off.iter().enumerate() {
                    self.scatter[row][column] += slot[0] * a * b;
                }
            }
        }
    }

    /// The same, counting this share of what it did: older cycles are to matter less.
    #[must_use]
    pub fn faded(mut self, to: f64) -> Self {
        self.sum.iter_mut().chain(self.scatter.iter_mut().flatten()).for_each(|value| *value *= to);
        self.products.iter_mut().flatten().for_each(|value| *value *= to * to);
        self
    }

    /// As many cycles of equal weight would tell as much: `(Σw)²/Σw²` of the control slots' weights.
    fn equal_cycles(&self) -> f64 {
        self.sum[0] * self.sum[0] / self.products[0][0]
    }

    /// Is every number usable?
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let products = self.products.iter().flatten();
        self.sum.iter().chain(products).chain(self.scatter.iter().flatten()).all(|value| value.is_finite())
    }

    /// The difference; `None` before there are [`FEWEST_CYCLES`], or where default clocks give nothing to
    /// compare with.
    #[must_use]
    pub fn change(&self) -> Option<Change> {
        if self.cycles < FEWEST_CYCLES {
            return None;
        }
        let cycles = self.equal_cycles();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates; at most as many as cycles, and at least one"
        )]
        let degrees = (cycles - 1.0).round().max(1.0) as u64;
        let beta = self.slopes();
        let side = |at: usize| {
            let [w, y, x1, x2]: Sums = std::array::from_fn(|k| self.sum[at + k]);
            (y / w, (y - beta[0] * x1 - beta[1] * x2) / w)
        };
        let (control, treatment) = (side(0), side(SIDE));
        let agft = treatment.0;
        let default = agft - (treatment.1 - control.1);
        // Weights of a cycle's vector in its contribution to each side's adjusted mean.
        let influence = |at: usize, intercept: f64| -> [f64; 2 * SIDE] {
            let mean_weight = self.sum[at] / cycles;
            let own = [-intercept, 1.0, -beta[0], -beta[1]];
            std::array::from_fn(|k| {
                k.checked_sub(at).and_then(|k| own.get(k)).map_or(0.0, |c| c / mean_weight)
            })
        };
        let (of_control, of_treatment) = (influence(0, control.1), influence(SIDE, treatment.1));
        let half_width = |control_weight: f64| {
            let a: [f64; 2 * SIDE] =
                std::array::from_fn(|k| of_treatment[k] - control_weight * of_control[k]);
            let mut square = 0.0;
            for (row, a_row) in a.iter().enumerate() {
                for (column, a_column) in a.iter().enumerate() {
                    square += a_row * self.products[row][column] * a_column;
                }
            }
            quantile_975(degrees) * (square.max(0.0) / (cycles * (cycles - 1.0))).sqrt()
        };
        let ratio = agft / default;
        let change = Change {
            default,
            agft,
            difference_half_width: half_width(1.0),
            relative: ratio - 1.0,
            relative_half_width: half_width(ratio) / default,
            cycles: self.cycles,
        };
        let sound = default > 0.0 && change.relative.is_finite() && change.relative_half_width.is_finite();
        sound.then_some(change)
    }

    /// Slopes of the value on the two covariates, within the cycles.
    fn slopes(&self) -> [f64; 2] {
        let s = &self.scatter;
        let determinant = s[1][1] * s[2][2] - s[1][2] * s[2][1];
        if determinant > 1e-6 * s[1][1] * s[2][2] {
            return [
                (s[0][1] * s[2][2] - s[0][2] * s[1][2]) / determinant,
                (s[0][2] * s[1][1] - s[0][1] * s[1][2]) / determinant,
            ];
        }
        // The two go together, or one does not vary: the one that says more has it all.
        let alone = |k: usize| if s[k][k] > 0.0 { s[0][k] / s[k][k] } else { 0.0 };
        let gain = |k: usize| alone(k) * s[0][k];
        if gain(1) >= gain(2) { [alone(1), 0.0] } else { [0.0, alone(2)] }
    }
}
