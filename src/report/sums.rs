//! Means and deviations in one pass.

use serde::Serialize;

/// No clock, power, rate or time in its base unit is this large; what draws plots cannot count that far.
pub(crate) const ABSURD: f64 = 1e9;

/// A mean weighted by time, or by whatever else.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Weighted {
    sum: f64,
    weight: f64,
}

impl Weighted {
    /// Takes a value; what is not known, not a number, or larger than anything measured can be, is left out.
    pub(crate) fn push(&mut self, value: Option<f64>, weight: f64) {
        if let Some(value) = value.filter(|value| value.abs() < ABSURD && weight > 0.0 && weight < ABSURD) {
            self.sum += value * weight;
            self.weight += weight;
        }
    }

    /// Takes what another has.
    pub(crate) fn add(&mut self, other: Self) {
        self.sum += other.sum;
        self.weight += other.weight;
    }

    /// The mean; `None` without values.
    pub(crate) fn mean(self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }

    /// Values times weights.
    #[cfg(test)]
    pub(crate) fn total(self) -> f64 {
        self.sum
    }
}

impl Serialize for Weighted {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.mean().serialize(to)
    }
}

/// Mean and variance of a stream (Welford 1962).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Moments {
    /// Values taken.
    pub count: u64,
    mean: f64,
    scatter: f64,
}

impl Moments {
    /// Takes a value; what is not a number is left out.
    #[expect(clippy::cast_precision_loss, reason = "a count of windows")]
    pub(crate) fn push(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        self.count += 1;
        let away = value - self.mean;
        self.mean += away / self.count as f64;
        self.scatter += away * (value - self.mean);
    }

    /// The mean; `None` without values.
    pub(crate) fn mean(&self) -> Option<f64> {
        (self.count > 0).then_some(self.mean)
    }

    /// Standard error of the mean, as if the values were independent; `None` with fewer than two.
    #[expect(clippy::cast_precision_loss, reason = "a count of windows")]
    pub(crate) fn standard_error(&self) -> Option<f64> {
        let count = self.count as f64;
        (self.count > 1).then(|| (self.scatter / (count - 1.0) / count).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_values() {
        let mut moments = Moments::default();
        for value in [1.0, 2.0, 6.0, f64::NAN] {
            moments.push(value);
        }
        approx::assert_relative_eq!(moments.mean().unwrap(), 3.0, max_relative = 1e-12);
        // Variance 7 over two degrees of freedom, three values.
        approx::assert_relative_eq!(
            moments.standard_error().unwrap(),
            (14.0_f64 / 2.0 / 3.0).sqrt(),
            max_relative = 1e-12
        );
        assert_eq!(Moments::default().mean(), None);
    }

    #[test]
    fn unknown_values_do_not_pull_the_mean_to_zero() {
        let mut mean = Weighted::default();
        mean.push(None, 5.0);
        mean.push(Some(f64::INFINITY), 1.0);
        assert_eq!(mean.mean(), None);
        mean.push(Some(2.0), 1.0);
        mean.push(Some(5.0), 2.0);
        approx::assert_relative_eq!(mean.mean().unwrap(), 4.0, max_relative = 1e-12);
    }
}
