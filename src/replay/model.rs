//! What a clock and a load lead to, as a regression: the part of the estimate that speaks for clocks that did not run.

use ndarray::{Array1, Array2};
use ndarray_linalg::SolveC;

use super::estimate::Clock;

/// Regressors of one row.
pub(super) const WIDTH: usize = 12;
/// Ridge weight, as a share of a row.
const RIDGE: f64 = 1e-3;

/// How clocks and loads become numbers of size one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales {
    /// Clocks are relative to this one, MHz; driver-default clocks count as it.
    pub(super) top: f64,
    /// Mean and standard deviation of each part of the load.
    pub(super) load: [(f64, f64); 2],
}

impl Scales {
    /// Clock, its square, load, its squares, products of both; default clocks have a level of their own.
    pub(super) fn regressors(&self, load: [f64; 2], clock: Clock) -> [f64; WIDTH] {
        let f = clock.core().map_or(1.0, |core| core / self.top);
        let memory = clock.memory().map_or(0.0, |memory| memory / self.top);
        let [u, v] = std::array::from_fn(|k| (load[k] - self.load[k].0) / self.load[k].1);
        let default = if clock.core().is_none() { 1.0 } else { 0.0 };
        [1.0, f, f * f, u, v, u * u, v * v, u * v, f * u, f * v, default, memory]
    }
}

/// A fitted regression.
#[derive(Debug, Clone)]
pub(super) struct Model(Array1<f64>);

impl Model {
    /// Least squares with a little ridge; the mean alone where that has no solution.
    pub(super) fn fit(rows: impl Iterator<Item = ([f64; WIDTH], f64)>) -> Self {
        let mut a = Array2::<f64>::zeros((WIDTH, WIDTH));
        let mut b = Array1::<f64>::zeros(WIDTH);
        let (mut count, mut sum) = (0.0, 0.0);
        for (x, y) in rows {
            let x = Array1::from(x.to_vec());
            let column = x.view().insert_axis(ndarray::Axis(1));
            a += &column.dot(&column.t());
            b.scaled_add(y, &x);
            count += 1.0;
            sum += y;
        }
        a.diag_mut().mapv_inplace(|entry| entry + RIDGE * f64::max(count, 1.0));
        let mut level = Array1::zeros(WIDTH);
        level[0] = if count > 0.0 { sum / count } else { 0.0 };
        // The ridge pulls towards the mean, not towards zero.
        b -= &a.dot(&level);
        b[0] += RIDGE * f64::max(count, 1.0) * level[0];
        match a.solvec(&b) {
            Ok(solution) if solution.iter().all(|value| value.is_finite()) => Self(level + solution),
            _ => Self(level),
        }
    }

    /// What it expects.
    pub(super) fn at(&self, x: &[f64; WIDTH]) -> f64 {
        self.0.iter().zip(x).map(|(coefficient, x)| coefficient * x).sum()
    }
}
