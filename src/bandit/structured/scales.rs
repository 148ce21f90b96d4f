//! Units of the models: what the first windows at driver-default clocks showed. Scales only; no prediction rests on them.

use serde::{Deserialize, Serialize};

use super::window::Lesson;
use crate::stats;

/// Prompt tokens per step are never scaled by less than this.
const LEAST_PREFILL: f64 = 5.0;
/// Generated tokens per step are never scaled by less than this.
const LEAST_DECODE: f64 = 1.0;

/// One unit of each quantity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Scales {
    /// Step time, seconds.
    pub step: f64,
    /// Power, watts.
    pub power: f64,
    /// Prompt tokens per step.
    pub prefill: f64,
    /// Generated tokens per step.
    pub decode: f64,
    /// Core clock, MHz.
    pub clock: f64,
}

impl Scales {
    /// Means over the first windows; `None` without one that has both a delay and a power.
    #[must_use]
    pub(super) fn of(lessons: &[Lesson]) -> Option<Self> {
        let mean = |of: &dyn Fn(&Lesson) -> Option<f64>| {
            let values: Vec<f64> = lessons.iter().filter_map(of).collect();
            stats::mean(&values)
        };
        let scales = Self {
            step: mean(&|lesson| lesson.delay.map(|delay| delay.0))?,
            power: mean(&|lesson| lesson.power.map(|power| power.0))?,
            prefill: mean(&|lesson| Some(lesson.prefill_per_step()))?.max(LEAST_PREFILL),
            decode: mean(&|lesson| Some(lesson.decode_per_step()))?.max(LEAST_DECODE),
            clock: mean(&|lesson| Some(lesson.clock))?,
        };
        scales.is_sound().then_some(scales)
    }

    /// Is every unit positive?
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        [self.step, self.power, self.prefill, self.decode, self.clock]
            .into_iter()
            .all(|unit| unit.is_finite() && unit > 0.0)
    }
}
