//! How long an engine step takes, as a function of the core clock and of what is in the step.
//!
//! `t/t₀ = a₀ + a₁ g + a₂ (g-1)₊² + r (b₀ + b₁ g) + k (c₀ + c₁ g)`, with `g = f₀/f`, `r` prompt tokens per step and `k` generated
//! tokens per step in units of their first means. No coefficient is negative: some of the time does not depend on the
//! core clock (memory, host), the rest goes as `1/f`, or bends upwards where the core becomes the bottleneck. The prior adds one thing: prefill is
//! bound by arithmetic, unless the data object.
//!
//! Where pairs of core and memory clocks are chosen among, `memory clock₀ / memory clock` belongs beside `g` in the
//! first bracket; with the memory clock left to the driver it would be constant.

use ndarray::{Array1, ArrayView1};
use serde::{Deserialize, Serialize};

use super::regression::{Posterior, Prior, Rows, fit};
use super::scales::Scales;
use super::window::Lesson;
use crate::bandit::BanditError;
use crate::stats::Dice;

/// Number of coefficients: `a₀ a₁ a₂ b₀ b₁ c₀ c₁`.
pub(super) const COEFFICIENTS: usize = 7;
/// Kinds of rows: time between tokens, and busy time per engine step.
const KINDS: usize = 2;
const BETWEEN_TOKENS: usize = 0;
const PER_STEP: usize = 1;

const PRIOR: Prior<'static> = Prior {
    mean: &[0.25, 0.35, 0.1, 0.02, 0.2, 0.03, 0.02],
    sd: &[0.5, 0.35, 0.3, 0.12, 0.4, 0.2, 0.1],
    nonnegative: &[true; COEFFICIENTS],
    noise: 0.06,
};

/// A window in which power or temperature held the clock down mixes clocks: it counts this much.
const CAPPED_WEIGHT: f64 = 0.2;
/// Share of capped ticks from which on a window counts as capped.
const CAPPED_SHARE: f64 = 0.3;
/// Weights are per this many seconds.
pub(super) const SECONDS_PER_WEIGHT: f64 = 2.0;

/// The three brackets at one clock, in seconds: what every step costs, and every token in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Brackets {
    /// Per step.
    pub step: f64,
    /// Per prompt token computed.
    pub prefill: f64,
    /// Per token generated.
    pub decode: f64,
}

impl Brackets {
    /// Brackets of coefficients of shape `(7,)` at core clock `clock` (MHz).
    #[must_use]
    pub(super) fn at(coefficients: ArrayView1<'_, f64>, scales: &Scales, clock: f64) -> Self {
        let g = scales.clock / clock;
        let [a0, a1, a2, b0, b1, c0, c1] =
            std::array::from_fn(|i| coefficients.get(i).copied().unwrap_or(0.0));
        Self {
            step: scales.step * (a0 + a1 * g + a2 * convex(g)).max(LEAST_STEP),
            prefill: scales.step / scales.prefill * (b0 + b1 * g),
            decode: scales.step / scales.decode * (c0 + c1 * g),
        }
    }

    /// Seconds per step with these many tokens of each kind in it.
    #[must_use]
    pub(super) fn time(&self, prefill: f64, decode: f64) -> f64 {
        self.step + prefill * self.prefill + decode * self.decode
    }

    /// Share of such a step's time that goes into prompts.
    #[must_use]
    pub(super) fn prefill_share(&self, prefill: f64, decode: f64) -> f64 {
        (prefill * self.prefill / self.time(prefill, decode)).clamp(0.0, 1.0)
    }
}

/// A step costs at least this share of the first measured ones, whatever a drawn coefficient says.
const LEAST_STEP: f64 = 0.02;

/// The fitted model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StepTime {
    posterior: Posterior,
}

impl Default for StepTime {
    fn default() -> Self {
        Self { posterior: Posterior::of_prior(PRIOR, KINDS) }
    }
}

impl StepTime {
    /// Fits the lessons, each with a weight for its age.
    ///
    /// Two rows per window at half weight: the time between tokens, and busy time per step. The first is what requests
    /// wait for; the second accounts for all work, that of steps without output too.
    ///
    /// # Errors
    /// [`BanditError::Singular`]
    pub(super) fn fit<'a>(
        scales: &Scales,
        lessons: impl Iterator<Item = (&'a Lesson, f64)>,
    ) -> Result<Self, BanditError> {
        let mut rows = Rows::default();
        for (lesson, age_weight) in lessons {
            let x = features(scales, lesson);
            let trust = if lesson.capped > CAPPED_SHARE { CAPPED_WEIGHT } else { 1.0 };
            let weight = 0.5 * trust * age_weight * lesson.seconds / SECONDS_PER_WEIGHT;
            if let Some(delay) = lesson.delay {
                rows.push(&x, delay.0 / scales.step, weight, BETWEEN_TOKENS);
            }
            if lesson.busy_measured {
                rows.push(&x, lesson.busy * lesson.seconds / lesson.steps / scales.step, weight, PER_STEP);
            }
        }
        Ok(Self { posterior: fit(PRIOR, &rows, KINDS)? })
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

fn features(scales: &Scales, lesson: &Lesson) -> [f64; COEFFICIENTS] {
    let g = scales.clock / lesson.clock;
    let r = lesson.prefill_per_step() / scales.prefill;
    let k = lesson.decode_per_step() / scales.decode;
    [1.0, g, convex(g), r, r * g, k, k * g]
}

/// What bends the step time upwards below the first clock: see the module's formula.
fn convex(g: f64) -> f64 {
    (g - 1.0).max(0.0).powi(2)
}
