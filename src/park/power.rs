//! Mean power over spells, and how well it is known.
//!
//! Samples within a spell hang together (the same temperature, the same contexts), so a spell counts once however many
//! samples it has. Energy over time of all spells is a ratio estimator; its variance is linearised, with spells as units.
//! The usual `n/(n-1)` is too small where a few long spells have most of the time: in its place stands the factor that
//! makes the variance unbiased when every spell's power scatters alike, and Kish's effective number of spells gives the
//! degrees of freedom. With spells of equal length both are the textbook's.

use serde::{Deserialize, Serialize};

use crate::units::Watts;

/// Sums over spells, whatever their number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SpellPower {
    spells: u64,
    /// Sums of weight, its square and its cube.
    weight: [f64; 3],
    energy: f64,
    energy_weight: f64,
    energy_square: f64,
}

/// A mean with the variance of its error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Known {
    pub(super) variance: f64,
    pub(super) degrees: f64,
}

impl SpellPower {
    /// The same with one more spell: its weight (seconds, or 1), and weight times power. One that has none is left out.
    #[must_use]
    pub(crate) fn with(mut self, weight: f64, energy: f64) -> Self {
        if !(weight > 0.0 && weight.is_finite() && energy.is_finite()) {
            return self;
        }
        self.spells += 1;
        self.weight[0] += weight;
        self.weight[1] += weight.powi(2);
        self.weight[2] += weight.powi(3);
        self.energy += energy;
        self.energy_weight += energy * weight;
        self.energy_square += energy.powi(2);
        self
    }

    /// How many spells.
    pub(crate) fn spells(&self) -> u64 {
        self.spells
    }

    /// Their time in seconds, where that is the weight.
    pub(crate) fn weight(&self) -> f64 {
        self.weight[0]
    }

    /// Their energy in joules, where the weight is a time.
    pub(crate) fn energy(&self) -> f64 {
        self.energy
    }

    pub(crate) fn mean(&self) -> Option<Watts> {
        (self.spells > 0).then(|| Watts(self.energy / self.weight[0]))
    }

    /// How well the mean is known; `None` if the spells cannot tell, or fewer than `fewest` were seen.
    pub(super) fn known(&self, fewest: u64) -> Option<Known> {
        let Watts(mean) = self.mean().filter(|_| self.spells >= fewest.max(2))?;
        let [total, squares, cubes] = self.weight;
        let residuals = self.energy_square - 2.0 * mean * self.energy_weight + mean.powi(2) * squares;
        let (second, third) = (squares / total.powi(2), cubes / total.powi(3));
        let unbiased = 1.0 - 2.0 * third / second + second;
        // One spell that is nearly all of the time cannot be compared with anything.
        (unbiased > 1e-6).then(|| Known {
            // Sums of squares cancel: below their rounding is nothing.
            variance: (residuals / total.powi(2)).max(0.0) / unbiased,
            degrees: (1.0 / second - 1.0).max(1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_of_equal_length_give_the_textbooks_variance_of_a_mean() {
        let power = [80.0, 83.0, 79.0, 86.0_f64];
        let sums = power.iter().fold(SpellPower::default(), |sums, watts| sums.with(10.0, 10.0 * watts));
        let mean = power.iter().sum::<f64>() / 4.0;
        let square = power.iter().map(|watts| (watts - mean).powi(2)).sum::<f64>();
        let known = sums.known(3).unwrap();
        approx::assert_relative_eq!(sums.mean().unwrap().0, mean);
        approx::assert_relative_eq!(known.variance, square / 3.0 / 4.0, max_relative = 1e-9);
        approx::assert_relative_eq!(known.degrees, 3.0, max_relative = 1e-9);
    }

    #[test]
    fn long_spells_count_by_their_time_and_too_few_tell_nothing() {
        let two = SpellPower::default().with(100.0, 5000.0).with(300.0, 18_000.0);
        approx::assert_relative_eq!(two.mean().unwrap().0, 23_000.0 / 400.0);
        assert_eq!(two.known(3), None);
        let same = two.with(0.0, 5.0).with(f64::NAN, 1.0).with(1.0, f64::INFINITY);
        assert_eq!(same, two);
        // Almost all of the time is one spell's.
        let night = SpellPower::default().with(1e9, 5e10).with(1.0, 50.0).with(1.0, 50.0);
        assert_eq!(night.known(3), None);
        assert_eq!(SpellPower::default().mean(), None);
    }
}
