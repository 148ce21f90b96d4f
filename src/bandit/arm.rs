//! One arm: a ridge regression of reward on context.

use ndarray::{Array1, Array2, ArrayView1, Axis};
use ndarray_linalg::{InverseC, UPLO, cholesky::FactorizeC};
use serde::{Deserialize, Serialize};

use super::BanditError;
use crate::features::DIMENSION;

/// Length of an arm's input: the context and an intercept.
///
/// The context is centred by its z-scores, so without the intercept every arm would score about 0 under steady load
/// and the choice among them would carry no information.
pub(super) const INPUT: usize = DIMENSION + 1;

/// Lessons an arm remembers: up to here the regression is the plain one, from here on each new lesson takes its weight
/// from the older ones, so that years of evidence never outweigh the present.
pub(super) const MEMORY: f64 = 400.0;

/// Added to the diagonal when a matrix has become numerically singular.
const RECOVERY: f64 = 0.1;

/// The arm's input for a context: `(1, x)`, shape `(8,)`.
#[must_use]
pub(super) fn input(context: &[f64; DIMENSION]) -> Array1<f64> {
    std::iter::once(1.0).chain(context.iter().copied()).collect()
}

/// Ridge regression of one arm: `A = λI + Σ w x xᵀ`, `b = Σ w r x`, `θ = A⁻¹ b`, where the weights `w` are 1 up to
/// [`MEMORY`] lessons and fade geometrically beyond.
///
/// Stored as `A`'s lower triangle and `b`; what follows from them is computed again on loading, so that a file cannot
/// contradict itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub(super) struct Arm {
    lambda: f64,
    a: Array2<f64>,
    b: Array1<f64>,
    /// Sum of the weights.
    weight: f64,
    lessons: u64,
    reward_sum: f64,
    a_inv: Array2<f64>,
    theta: Array1<f64>,
}

impl Arm {
    /// An arm that knows nothing; `lambda > 0` is the ridge weight.
    #[must_use]
    pub(super) fn new(lambda: f64) -> Self {
        let a = Array2::eye(INPUT) * lambda;
        // The same way as on loading, so that a saved arm comes back bit by bit.
        let a_inv = inverse_of(&a).unwrap_or_else(|| Array2::eye(INPUT) / lambda);
        Self {
            lambda,
            a,
            b: Array1::zeros(INPUT),
            weight: 0.0,
            lessons: 0,
            reward_sum: 0.0,
            a_inv,
            theta: Array1::zeros(INPUT),
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
    pub(super) fn update(&mut self, x: ArrayView1<'_, f64>, reward: f64) -> Result<(), BanditError> {
        check_finite(x)?;
        if !reward.is_finite() {
            return Err(BanditError::NotFinite { what: "reward".into(), value: reward });
        }
        let keep = if self.weight + 1.0 > MEMORY { (MEMORY - 1.0) / self.weight } else { 1.0 };
        let column = x.insert_axis(Axis(1));
        let a = self.faded(keep) + column.dot(&column.t());
        let b = &self.b * keep + &x * reward;
        self.solve(a, b)?;
        self.weight = (keep * self.weight + 1.0).min(MEMORY);
        self.lessons += 1;
        self.reward_sum = (self.reward_sum + reward).clamp(f64::MIN, f64::MAX);
        Ok(())
    }

    /// Lets the evidence weigh as much as `lessons` lessons, if it weighs more: expectations stay, confidence goes.
    pub(super) fn weaken(&mut self, lessons: f64) {
        if self.weight > lessons {
            let keep = lessons / self.weight;
            let (a, b) = (self.faded(keep), &self.b * keep);
            if self.solve(a, b).is_ok() {
                self.weight = lessons;
            }
        }
    }

    /// `A` with its evidence faded and its ridge whole: `kA + (1 - k)λI`.
    fn faded(&self, keep: f64) -> Array2<f64> {
        let mut a = &self.a * keep;
        a.diag_mut().mapv_inplace(|entry| entry + (1.0 - keep) * self.lambda);
        a
    }

    /// Takes over `A` and `b` with what follows from them; unchanged if there is no inverse.
    fn solve(&mut self, mut a: Array2<f64>, b: Array1<f64>) -> Result<(), BanditError> {
        // A fresh Cholesky each time costs microseconds at 8x8 and cannot drift as a rank-1 update of the inverse does.
        let a_inv = if let Some(inverse) = inverse_of(&a) {
            inverse
        } else {
            a.diag_mut().mapv_inplace(|entry| entry + RECOVERY);
            inverse_of(&a).ok_or(BanditError::Singular)?
        };
        let theta = a_inv.dot(&b);
        if theta.iter().any(|value| !value.is_finite()) {
            return Err(BanditError::Singular);
        }
        (self.a, self.b, self.a_inv, self.theta) = (a, b, a_inv, theta);
        Ok(())
    }

    /// Expected reward `x·θ` of an input of shape `(8,)`.
    #[must_use]
    pub(super) fn mean(&self, x: ArrayView1<'_, f64>) -> f64 {
        x.dot(&self.theta)
    }

    /// Standard width `√(xᵀ A⁻¹ x)` of that expectation, never negative.
    #[must_use]
    pub(super) fn width(&self, x: ArrayView1<'_, f64>) -> f64 {
        x.dot(&self.a_inv.dot(&x)).max(0.0).sqrt()
    }

    /// Upper confidence bound: mean and `alpha` times the width, `(bound, alpha * width)`.
    ///
    /// # Errors
    /// [`BanditError::NotFinite`] if `x` is not finite.
    pub(super) fn ucb(&self, x: ArrayView1<'_, f64>, alpha: f64) -> Result<(f64, f64), BanditError> {
        check_finite(x)?;
        let half = alpha * self.width(x);
        Ok((self.mean(x) + half, half))
    }

    /// Coefficients `θ` of the input, shape `(8,)`.
    #[cfg(test)]
    pub(super) fn theta(&self) -> ArrayView1<'_, f64> {
        self.theta.view()
    }

    /// Lessons learned.
    #[must_use]
    pub(super) fn lessons(&self) -> u64 {
        self.lessons
    }

    /// Mean reward over all lessons (0 without any).
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count of windows stays far below 2^53")]
    pub(super) fn mean_reward(&self) -> f64 {
        if self.lessons == 0 { 0.0 } else { self.reward_sum / self.lessons as f64 }
    }
}

/// An arm as a model file has it.
#[derive(Serialize, Deserialize)]
struct Stored {
    lambda: f64,
    /// `A` row by row up to the diagonal.
    lower: Vec<f64>,
    b: Vec<f64>,
    weight: f64,
    lessons: u64,
    reward_sum: f64,
}

impl From<Arm> for Stored {
    fn from(arm: Arm) -> Self {
        let lower = (0..INPUT).flat_map(|row| (0..=row).map(move |column| (row, column)));
        Self {
            lambda: arm.lambda,
            lower: lower.map(|at| arm.a[at]).collect(),
            b: arm.b.to_vec(),
            weight: arm.weight,
            lessons: arm.lessons,
            reward_sum: arm.reward_sum,
        }
    }
}

impl TryFrom<Stored> for Arm {
    type Error = BanditError;

    fn try_from(stored: Stored) -> Result<Self, BanditError> {
        let Stored { lambda, lower, b, weight, lessons, reward_sum } = stored;
        let refuse = |rule| Err(BanditError::Stored { rule });
        if lower.len() != INPUT * (INPUT + 1) / 2 || b.len() != INPUT {
            return refuse("a matrix of 8x8 and a vector of 8");
        }
        if !(lambda.is_finite() && lambda > 0.0) {
            return refuse("a finite ridge weight above 0");
        }
        if !((0.0..=MEMORY).contains(&weight) && (lessons > 0 || weight <= 0.0)) {
            return refuse("evidence of as many lessons as it has learned");
        }
        if lower.iter().chain(&b).chain([&reward_sum]).any(|value| !value.is_finite()) {
            return refuse("finite numbers");
        }
        let mut arm = Self { weight, lessons, reward_sum, ..Self::new(lambda) };
        if lessons > 0 {
            let a = Array2::from_shape_fn((INPUT, INPUT), |(row, column)| {
                let (high, low) = (row.max(column), row.min(column));
                lower[high * (high + 1) / 2 + low]
            });
            if inverse_of(&a).is_none() {
                return refuse("a positive definite matrix");
            }
            arm.solve(a, Array1::from_vec(b))?;
        }
        Ok(arm)
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

    fn is_finite(arm: &Arm) -> bool {
        arm.a.iter().chain(&arm.a_inv).chain(&arm.b).chain(&arm.theta).all(|value| value.is_finite())
    }

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
            assert!(is_finite(&arm));
        }
        for _ in 0..5 {
            let _ = arm.update(input(&[1e150; 7]).view(), 1e300);
            assert!(is_finite(&arm));
        }
    }

    #[test]
    fn singular_matrix_is_lifted_by_a_tenth_on_the_diagonal() {
        let mut arm = Arm::new(1e-300);
        arm.update(input(&[2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).view(), 1.0).unwrap();
        // A = [1 2; 2 4] + 0.1 I on the first two, b = (1, 2): θ = b / (5 + 0.1), by Sherman-Morrison.
        approx::assert_relative_eq!(arm.theta[0], 1.0 / 5.1, max_relative = 1e-12);
        approx::assert_relative_eq!(arm.theta[1], 2.0 / 5.1, max_relative = 1e-12);
    }

    #[test]
    fn evidence_beyond_the_memory_fades() {
        let x = input(&[0.0; 7]);
        let mut arm = Arm::new(1.0);
        for _ in 0..5000 {
            arm.update(x.view(), -1.0).unwrap();
        }
        approx::assert_relative_eq!(arm.weight, MEMORY, max_relative = 1e-12);
        approx::assert_relative_eq!(arm.mean(x.view()), -MEMORY / (MEMORY + 1.0), max_relative = 1e-9);
        for _ in 0..400 {
            arm.update(x.view(), 1.0).unwrap();
        }
        let old = (1.0 - 1.0 / MEMORY).powi(400);
        let expected = MEMORY * (1.0 - old - old) / (MEMORY + 1.0);
        approx::assert_relative_eq!(arm.mean(x.view()), expected, max_relative = 1e-9);
        assert_eq!(arm.lessons(), 5400);
    }

    #[test]
    fn weakened_arm_expects_about_the_same_and_is_less_sure() {
        let x = input(&[0.5; 7]);
        let mut arm = Arm::new(1.0);
        for _ in 0..100 {
            arm.update(x.view(), 0.7).unwrap();
        }
        let (mean, width) = (arm.mean(x.view()), arm.width(x.view()));
        arm.weaken(25.0);
        approx::assert_relative_eq!(arm.mean(x.view()), mean, max_relative = 0.02);
        approx::assert_relative_eq!(arm.width(x.view()), 2.0 * width, max_relative = 0.02);
        let weak = arm.clone();
        arm.weaken(30.0);
        assert_eq!(arm, weak);
    }

    fn stored(change: impl FnOnce(&mut Stored)) -> Result<Arm, BanditError> {
        let mut arm = Arm::new(1.0);
        for k in 0..10 {
            arm.update(input(&[f64::from(k) / 10.0; 7]).view(), 0.5).unwrap();
        }
        let mut stored = Stored::from(arm);
        change(&mut stored);
        Arm::try_from(stored)
    }

    #[test]
    fn stored_arm_that_cannot_be_one_is_refused() {
        assert!(stored(|_| {}).is_ok());
        assert!(stored(|arm| arm.lower.truncate(35)).is_err());
        assert!(stored(|arm| arm.b.push(0.0)).is_err());
        assert!(stored(|arm| arm.lower[0] = f64::NAN).is_err());
        assert!(stored(|arm| arm.lower[0] = -1.0).is_err());
        assert!(stored(|arm| arm.b[3] = f64::INFINITY).is_err());
        assert!(stored(|arm| arm.reward_sum = f64::NAN).is_err());
        assert!(stored(|arm| arm.lambda = 0.0).is_err());
        assert!(stored(|arm| arm.weight = -1.0).is_err());
        assert!(stored(|arm| arm.lessons = 0).is_err());
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
        }

        #[test]
        fn saved_arm_comes_back_bit_by_bit(
            rows in prop::collection::vec((prop::array::uniform7(-3.0..3.0_f64), -2.0..2.0_f64), 0..40),
            lambda in 0.1..10.0_f64,
        ) {
            let mut arm = Arm::new(lambda);
            for (context, reward) in &rows {
                arm.update(input(context).view(), *reward).unwrap();
            }
            let settings = bincode::config::standard();
            let bytes = bincode::serde::encode_to_vec(&arm, settings).unwrap();
            let (back, _): (Arm, usize) = bincode::serde::decode_from_slice(&bytes, settings).unwrap();
            prop_assert_eq!(back, arm);
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
