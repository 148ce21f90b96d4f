//! One arm: a ridge regression of reward on context.

use ndarray::{Array1, Array2, ArrayView1};
use ndarray_linalg::{InverseC, UPLO, cholesky::FactorizeC};
use serde::{Deserialize, Serialize};

use super::BanditError;
use crate::features::DIMENSION;

/// Length of an arm's input: the context and an intercept.
///
/// The context is centred by its z-scores, so without the intercept every arm would score about 0 under steady load
/// and the choice among them would carry no information.
pub const INPUT: usize = DIMENSION + 1;

/// Added to the diagonal when a matrix has become numerically singular.
const RECOVERY: f64 = 0.1;

/// The arm's input for a context: `(1, x)`, shape `(8,)`.
#[must_use]
pub fn input(context: &[f64; DIMENSION]) -> Array1<f64> {
    std::iter::once(1.0).chain(context.iter().copied()).collect()
}

/// Ridge regression of one arm: `A = λI + Σ x xᵀ`, `b = Σ r x`, `θ = A⁻¹ b`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    a: Array2<f64>,
    b: Array1<f64>,
    a_inv: Array2<f64>,
    theta: Array1<f64>,
    lessons: u64,
    reward_sum: f64,
}

impl Arm {
    /// An arm that knows nothing; `lambda > 0` is the ridge weight.
    #[must_use]
    pub fn new(lambda: f64) -> Self {
        Self {
            a: Array2::eye(INPUT) * lambda,
            b: Array1::zeros(INPUT),
            a_inv: Array2::eye(INPUT) / lambda,
            theta: Array1::zeros(INPUT),
            lessons: 0,
            reward_sum: 0.0,
        }
    }

    /// Learns that input `x`, shape `(8,)`, earned `reward`.
    ///
    /// # Errors
    /// * [`BanditError::NotFinite`] if `x` or `reward` is not finite
    /// * [`BanditError::Singular`] if the updated matrix has no inverse even with 0.1 added to its diagonal
    ///
    /// The arm is unchanged after an error.
    ///
    /// # Source
    /// Li, Chu, Langford, Schapire, *A contextual-bandit approach to personalized news article recommendation*,
    /// WWW 2010, Algorithm 1.
    pub fn update(&mut self, x: ArrayView1<'_, f64>, reward: f64) -> Result<(), BanditError> {
        check_finite(x)?;
        if !reward.is_finite() {
            return Err(BanditError::NotFinite { what: "reward".into(), value: reward });
        }
        let column = x.insert_axis(ndarray::Axis(1));
        let mut a = &self.a + &column.dot(&column.t());
        let b = &self.b + &(&x * reward);
        // A fresh Cholesky each time costs microseconds at 8x8 and cannot drift as a rank-1 update of the inverse does.
        let a_inv = if let Some(inverse) = inverse_of(&a) {
            inverse
        } else {
            a.diag_mut().mapv_inplace(|entry| entry + RECOVERY);
            inverse_of(&a).ok_or(BanditError::Singular)?
        };
        self.theta = a_inv.dot(&b);
        (self.a, self.b, self.a_inv) = (a, b, a_inv);
        self.lessons += 1;
        self.reward_sum += reward;
        Ok(())
    }

    /// Expected reward `x·θ` of an input of shape `(8,)`.
    #[must_use]
    pub fn mean(&self, x: ArrayView1<'_, f64>) -> f64 {
        x.dot(&self.theta)
    }

    /// Standard width `√(xᵀ A⁻¹ x)` of that expectation, never negative.
    #[must_use]
    pub fn width(&self, x: ArrayView1<'_, f64>) -> f64 {
        x.dot(&self.a_inv.dot(&x)).max(0.0).sqrt()
    }

    /// Upper confidence bound: mean and `alpha` times the width, `(bound, alpha * width)`.
    ///
    /// # Errors
    /// [`BanditError::NotFinite`] if `x` is not finite.
    pub fn ucb(&self, x: ArrayView1<'_, f64>, alpha: f64) -> Result<(f64, f64), BanditError> {
        check_finite(x)?;
        let half = alpha * self.width(x);
        Ok((self.mean(x) + half, half))
    }

    /// Lessons learned.
    #[must_use]
    pub fn lessons(&self) -> u64 {
        self.lessons
    }

    /// Mean reward over all lessons (0 without any).
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count of windows stays far below 2^53")]
    pub fn mean_reward(&self) -> f64 {
        if self.lessons == 0 { 0.0 } else { self.reward_sum / self.lessons as f64 }
    }

    /// Is every number in it finite and of the right shape? A model file could say otherwise.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let square = (INPUT, INPUT);
        self.a.dim() == square
            && self.a_inv.dim() == square
            && self.b.len() == INPUT
            && self.theta.len() == INPUT
            && self.reward_sum.is_finite()
            && [&self.a, &self.a_inv].iter().all(|m| m.iter().all(|v| v.is_finite()))
            && [&self.b, &self.theta].iter().all(|v| v.iter().all(|v| v.is_finite()))
    }
}

fn check_finite(x: ArrayView1<'_, f64>) -> Result<(), BanditError> {
    match x.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((index, &value)) => Err(BanditError::NotFinite { what: format!("input {index}"), value }),
        None => Ok(()),
    }
}

/// Inverse of a symmetric positive definite matrix; `None` if it is not one to machine precision.
fn inverse_of(a: &Array2<f64>) -> Option<Array2<f64>> {
    let inverse = a.factorizec(UPLO::Lower).ok()?.invc().ok()?;
    inverse.iter().all(|value| value.is_finite()).then_some(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn untrained_arm_has_zero_mean_and_width_of_the_norm_over_root_lambda() {
        let arm = Arm::new(4.0);
        let x = input(&[0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        let (bound, half) = arm.ucb(x.view(), 2.0).unwrap();
        approx::assert_relative_eq!(
            half,
            2.0 * (1.0_f64 + 9.0).sqrt() / 4.0_f64.sqrt(),
            max_relative = 1e-12
        );
        approx::assert_relative_eq!(bound, half, max_relative = 1e-12);
    }

    #[test]
    fn refused_lesson_leaves_the_arm_alone() {
        let mut arm = Arm::new(1.0);
        let untouched = arm.clone();
        assert!(arm.update(input(&[f64::NAN; 7]).view(), 1.0).is_err());
        assert!(arm.update(input(&[0.0; 7]).view(), f64::INFINITY).is_err());
        assert_eq!(arm, untouched);
    }

    #[test]
    fn huge_inputs_that_break_the_factorisation_are_an_error_or_stay_finite() {
        let mut arm = Arm::new(1.0);
        for _ in 0..5 {
            let _ = arm.update(input(&[1e200; 7]).view(), 1.0);
            assert!(arm.is_sound());
        }
    }

    proptest! {
        #[test]
        fn inverse_times_matrix_is_the_identity(
            rows in prop::collection::vec((prop::array::uniform7(-3.0..3.0_f64), -2.0..2.0_f64), 1..80),
            lambda in 0.1..10.0_f64,
        ) {
            let mut arm = Arm::new(lambda);
            for (context, reward) in &rows {
                arm.update(input(context).view(), *reward).unwrap();
            }
            let identity = arm.a.dot(&arm.a_inv);
            for ((row, column), value) in identity.indexed_iter() {
                let expected = if row == column { 1.0 } else { 0.0 };
                prop_assert!((value - expected).abs() < 1e-8);
            }
            prop_assert!(arm.is_sound());
        }

        #[test]
        fn width_shrinks_with_every_lesson_at_the_same_input(context in prop::array::uniform7(-3.0..3.0_f64)) {
            let mut arm = Arm::new(1.0);
            let x = input(&context);
            let mut last = arm.width(x.view());
            for _ in 0..10 {
                arm.update(x.view(), 0.5).unwrap();
                let width = arm.width(x.view());
                prop_assert!(width < last);
                last = width;
            }
        }
    }
}
