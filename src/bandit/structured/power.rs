//! What the GPUs draw, as a function of the core clock, the busy share and what is in the step.
//!
//! `P/P₀ = (1-u)(p₀ + p₁ h) + u (q₀ + q₁ h + q₂ h³ + q₃ 2 (h-.62)₊² + s (w₀ + w₁ h + w₂ h³) + k (z₀ + z₁ h))`, with
//! `h = f/f₀`, `u` the busy share, `s` the share of the step's time that goes into prompts and `k` generated tokens per
//! step in units of their first mean. The powers of `h` follow from `P ~ f V²` with a voltage that is flat at low clocks;
//! the knee needs only be some convex term above the middle.

use ndarray::{Array1, ArrayView1};
use serde::{Deserialize, Serialize};

use super::regression::{Posterior, Prior, Rows, fit};
use super::scales::Scales;
use super::step_time::{Brackets, SECONDS_PER_WEIGHT, StepTime};
use super::window::Lesson;
use crate::bandit::BanditError;
use crate::stats::Dice;
use crate::units::Watts;

/// Number of coefficients: `p₀ p₁ q₀ q₁ q₂ q₃ w₀ w₁ w₂ z₀ z₁`.
pub(super) const COEFFICIENTS: usize = 11;
const KINDS: usize = 1;

const PRIOR: Prior<'static> = Prior {
    mean: &[0.25, 0.1, 0.35, 0.2, 0.25, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0],
    sd: &[0.2, 0.2, 0.3, 0.3, 0.4, 0.5, 0.2, 0.2, 0.2, 0.1, 0.1],
    nonnegative: &[true, true, true, true, true, true, false, false, false, false, false],
    noise: 0.03,
};

/// Relative clock above which voltage rises with the clock, on the boards with a published sweep.
const KNEE: f64 = 0.62;
/// More generated tokens per step than this many units are not extrapolated.
const MOST_DECODE: f64 = 3.0;
/// No prediction is below this share of the first measured power.
const LEAST_POWER: f64 = 0.02;

/// What a step is made of, as far as power is concerned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mix {
    /// Share of the time in which the engine works, 0 to 1.
    pub busy: f64,
    /// Share of a step's time that goes into prompts, 0 to 1.
    pub prefill_share: f64,
    /// Tokens generated per step.
    pub decode: f64,
}

impl Mix {
    /// What a window's steps were made of.
    fn of(scales: &Scales, time: &StepTime, lesson: &Lesson) -> Self {
        let brackets = Brackets::at(time.mean(), scales, lesson.clock);
        let decode = lesson.decode_per_step();
        let prefill_share = brackets.prefill_share(lesson.prefill_per_step(), decode);
        Self { busy: lesson.busy, prefill_share, decode }
    }
}

/// The fitted model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Power {
    posterior: Posterior,
}

impl Default for Power {
    fn default() -> Self {
        Self { posterior: Posterior::of_prior(PRIOR, KINDS) }
    }
}

impl Power {
    /// Fits the lessons, each with a weight for its age; `time` says what their steps were made of.
    ///
    /// # Errors
    /// [`BanditError::Singular`]
    pub(super) fn fit<'a>(
        scales: &Scales,
        time: &StepTime,
        lessons: impl Iterator<Item = (&'a Lesson, f64)>,
    ) -> Result<Self, BanditError> {
        let mut rows = Rows::default();
        for (lesson, age_weight) in lessons {
            let Some(power) = lesson.power else { continue };
            let mix = Mix::of(scales, time, lesson);
            let weight = age_weight * lesson.seconds / SECONDS_PER_WEIGHT;
            rows.push(&features(scales, lesson.clock, mix), power.0 / scales.power, weight, 0);
        }
        Ok(Self { posterior: fit(PRIOR, &rows, KINDS)? })
    }

    /// What a window like this one should have drawn.
    #[must_use]
    pub(super) fn of(&self, scales: &Scales, time: &StepTime, lesson: &Lesson) -> Watts {
        watts(self.mean(), scales, lesson.clock, Mix::of(scales, time, lesson))
    }

    /// Mean coefficients.
    #[must_use]
    pub(super) fn mean(&self) -> ArrayView1<'_, f64> {
        self.posterior.mean()
    }

    /// Coefficients drawn from the posterior.
    #[must_use]
    pub(super) fn draw(&self, dice: &mut Dice) -> Array1<f64> {
        self.posterior.draw(dice)
    }

    /// Is every number usable?
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        self.posterior.is_sound(COEFFICIENTS, KINDS)
    }
}

/// Power that coefficients of shape `(11,)` predict.
#[must_use]
pub(super) fn watts(coefficients: ArrayView1<'_, f64>, scales: &Scales, clock: f64, mix: Mix) -> Watts {
    let x = features(scales, clock, mix);
    let relative: f64 = coefficients.iter().zip(x).map(|(c, x)| c * x).sum();
    Watts(scales.power * relative.max(LEAST_POWER))
}

fn features(scales: &Scales, clock: f64, mix: Mix) -> [f64; COEFFICIENTS] {
    let h = clock / scales.clock;
    let cube = h * h * h;
    let knee = 2.0 * (h - KNEE).max(0.0).powi(2);
    let (u, s) = (mix.busy, mix.busy * mix.prefill_share);
    let k = mix.busy * (mix.decode / scales.decode).min(MOST_DECODE);
    [1.0 - u, (1.0 - u) * h, u, u * h, u * cube, u * knee, s, s * h, s * cube, k, k * h]
}
