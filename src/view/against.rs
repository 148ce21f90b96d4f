//! What a window came to beside what default clocks would have come to: only where that is known.
//!
//! Two things know it. The model of `structured`, where that is in charge: it has learned how power and time
//! per token depend on clock and load, and says how sure it is. And the book of what default clocks have cost
//! under which load, where there are enough windows near the present one: how far off the book is, is seen
//! each time default clocks run and it has said beforehand what they would cost. A load that neither knows is
//! not compared.

use serde::{Deserialize, Serialize};

use crate::bandit::structured::{LogRatio, Ratios};
use crate::control::{Learned, Round};
use crate::units::{Mhz, Target};

/// Windows at default clocks near the present load that the book needs to be believed.
const ENOUGH_SUPPORT: f64 = 8.0;
/// Windows at default clocks that the book has to have foretold before it is known how far off it is.
const ENOUGH_FORETOLD: f64 = 8.0;
/// Windows over which that is averaged.
const FORETOLD_MEMORY: f64 = 100.0;
/// No logarithm of one window counts as further off than this: a long prompt in it says nothing of the book.
const FARTHEST: f64 = 1.0;

/// Who knows what default clocks would have cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The experiment: nobody has to know, it was measured.
    Holdout,
    /// The policy's model.
    Model,
    /// Windows at default clocks under such load.
    Baseline,
}

/// A window over default clocks under the same load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Against {
    /// What it came to.
    pub ratios: Ratios,
    /// Who says so.
    pub source: Source,
}

/// Compares windows, one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Comparer {
    /// Windows that the book has foretold, and their mean squared logarithms of power and delay over what it
    /// said.
    foretold: f64,
    power: f64,
    delay: f64,
}

impl Comparer {
    /// The round over default clocks, where that is known; `learned` is the state after it.
    pub fn take(&mut self, round: &Round, learned: &Learned) -> Option<Against> {
        self.judge_book(round);
        let structured = learned.policy.as_structured().filter(|_| learned.policy.as_linucb().is_none());
        let source = if structured.is_some() { Source::Model } else { Source::Baseline };
        let clocks = match round.ran_at? {
            Target::Default => return Some(Against { ratios: Ratios::default(), source }),
            Target::Lock(clocks) => clocks,
        };
        let ratios = match structured {
            Some(model) => {
                let clock = round.read_core.filter(|clock| clock.0 > 0).unwrap_or(clocks.core);
                model.against_default(Mhz::as_f64(clock))
            }
            None => self.by_book(round),
        };
        Some(Against { ratios: ratios?, source })
    }

    /// A window at default clocks shows how good the book was for it.
    fn judge_book(&mut self, round: &Round) {
        let (Some(Target::Default), Some(cost), Some(said)) = (round.ran_at, round.cost, round.baseline)
        else {
            return;
        };
        if !round.baseline_support.is_some_and(|support| support >= 1.0) {
            return;
        }
        self.foretold = (self.foretold + 1.0).min(FORETOLD_MEMORY);
        let square = |ratio: f64| ratio.ln().clamp(-FARTHEST, FARTHEST).powi(2);
        self.power += (square(cost.power.0 / said.power.0) - self.power) / self.foretold;
        self.delay += (square(cost.delay.0 / said.delay.0) - self.delay) / self.foretold;
    }

    fn by_book(&self, round: &Round) -> Option<Ratios> {
        let support = round.baseline_support.filter(|support| *support >= ENOUGH_SUPPORT)?;
        let (cost, default) = (round.cost?, round.baseline?);
        if self.foretold < ENOUGH_FORETOLD {
            return None;
        }
        // The book's mean is off by what a window is off by, over the root of the windows that it is the mean
        // of.
        let of = |ratio: f64, square: f64| LogRatio { log: ratio.ln(), sd: (square / support).sqrt() };
        let ratios = Ratios {
            energy: of(cost.power.0 / default.power.0, self.power),
            time: of(cost.delay.0 / default.delay.0, self.delay),
        };
        (ratios.energy.is_sound() && ratios.time.is_sound()).then_some(ratios)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandit::Learner;
    use crate::bandit::linucb::LinUcbSettings;
    use crate::bandit::structured::StructuredSettings;
    use crate::view::testing;

    fn at_default() -> Round {
        let round = testing::round();
        Round { ran_at: Some(Target::Default), cost: round.baseline, ..round }
    }

    #[test]
    fn the_book_speaks_only_of_loads_that_it_has_enough_windows_near_and_once_it_was_tried() {
        let learned = Learned::fresh(Learner::linucb(LinUcbSettings::default()), 20);
        let mut comparer = Comparer::default();
        assert_eq!(comparer.take(&testing::round(), &learned), None, "never tried");
        for k in 0..20 {
            let mut round = at_default();
            if let Some(cost) = &mut round.cost {
                cost.power.0 *= if k % 2 == 0 { 1.1 } else { 1.0 / 1.1 };
            }
            assert_eq!(comparer.take(&round, &learned).unwrap().ratios, Ratios::default());
        }
        let said = comparer.take(&testing::round(), &learned).unwrap();
        assert_eq!(said.source, Source::Baseline);
        approx::assert_relative_eq!(said.ratios.energy.log, (150.0_f64 / 200.0).ln(), max_relative = 1e-9);
        // Ten percent a window, over the root of twenty windows.
        approx::assert_relative_eq!(
            said.ratios.energy.sd,
            1.1_f64.ln() / 20.0_f64.sqrt(),
            max_relative = 1e-9
        );
        let elsewhere = Round { baseline_support: Some(3.0), ..testing::round() };
        assert_eq!(comparer.take(&elsewhere, &learned), None, "guessed from another load");
    }

    #[test]
    fn without_a_model_structured_says_nothing_whatever_the_book_says() {
        let policy = Learner::structured(StructuredSettings::default(), LinUcbSettings::default());
        let learned = Learned::fresh(policy, 20);
        let mut comparer = Comparer::default();
        assert!((0..20).all(|_| comparer.take(&at_default(), &learned).is_some()));
        assert_eq!(comparer.take(&testing::round(), &learned), None);
        assert_eq!(comparer.take(&at_default(), &learned).unwrap().source, Source::Model);
        let unclear = Round { ran_at: None, ..testing::round() };
        assert_eq!(comparer.take(&unclear, &learned), None);
    }
}
