//! A number with what is known of it.

use serde::{Deserialize, Serialize};

/// Standard deviations of a normal distribution from its middle to the end of its 95 % interval.
const NORMAL_95: f64 = 1.96;

/// A value with the half-width of its 95 % interval, in the same unit.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Interval {
    /// The value.
    pub value: f64,
    /// Half-width of its 95 % interval, at least 0.
    pub half_width: f64,
}

impl Interval {
    /// Of a value with this standard deviation.
    #[must_use]
    pub fn of_sd(value: f64, sd: f64) -> Self {
        Self { value, half_width: NORMAL_95 * sd }
    }

    /// Below zero, above zero, or neither for sure.
    #[must_use]
    pub fn sign(&self) -> Option<bool> {
        (self.value.abs() > self.half_width).then_some(self.value > 0.0)
    }

    /// Are both numbers finite?
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.value.is_finite() && self.half_width.is_finite()
    }
}
