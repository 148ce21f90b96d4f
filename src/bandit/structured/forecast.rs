//! What default clocks would come to beside a clock, as the model predicts it: for people who want to know
//! what is saved.
//!
//! Only ratios are told: what the load of the moment is off by is off at both clocks, and cancels. Nothing
//! here is used to choose, and no randomness of the policy is used up (see [`Model::shown_draws`]).

use serde::{Deserialize, Serialize};

use super::Durable;
use super::context::Load;
use super::model::Model;
use super::predict::{Aim, Predictor};
use crate::stats::Interval;
use crate::units::Mhz;

/// Standard deviation of what the model itself is off by, beside what its coefficients may be off by: a share
/// of the logarithm that is predicted. Simulated runs at default clocks tell: the spread above is too narrow
/// without it, above all for time, which answers to queues as well.
const ENERGY_OFF: f64 = 0.1;
const TIME_OFF: f64 = 0.25;

/// The logarithm of a ratio and its standard deviation.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LogRatio {
    /// The logarithm.
    pub log: f64,
    /// Its standard deviation, at least 0.
    pub sd: f64,
}

impl LogRatio {
    /// The ratio less 1, with its interval.
    #[must_use]
    pub fn change(self) -> Interval {
        let ratio = self.log.exp();
        Interval::of_sd(ratio - 1.0, ratio * self.sd)
    }

    /// Are both numbers usable?
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.log.is_finite() && self.sd.is_finite() && self.sd >= 0.0
    }
}

/// A clock over driver-default clocks, under the same load.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Ratios {
    /// Energy for the same work.
    pub energy: LogRatio,
    /// Time per output token.
    pub time: LogRatio,
}

/// The policy's present choice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// Its core clock; `None` is driver-default clocks.
    pub core: Option<Mhz>,
    /// What it comes to; `None` where the model cannot tell.
    pub ratios: Option<Ratios>,
}

impl Durable {
    /// `clock` (MHz) over default clocks under the load of the moment; `None` before there is a model.
    #[must_use]
    pub fn against_default(&self, clock: f64) -> Option<Ratios> {
        self.ratios_at(self.model.as_ref()?, self.context.load()?, clock)
    }

    /// The clock of `cores` that is preferred at present, and what it comes to; `None` before anything was
    /// preferred.
    #[must_use]
    pub fn chosen(&self, cores: &[Mhz]) -> Option<Chosen> {
        let preferred = self.preferred?;
        let default = self.clock_of_default()?;
        let off = |mhz: f64| (mhz - preferred).abs();
        let nearest = cores
            .iter()
            .copied()
            .filter(|core| core.as_f64() < default)
            .min_by(|a, b| off(a.as_f64()).total_cmp(&off(b.as_f64())));
        let core = nearest.filter(|core| off(core.as_f64()) < off(default));
        Some(Chosen { core, ratios: self.against_default(core.map_or(default, Mhz::as_f64)) })
    }

    /// The same of any load.
    pub(super) fn ratios_at(&self, model: &Model, load: Load, clock: f64) -> Option<Ratios> {
        let default = self.clock_of_default()?;
        let predictor = Predictor::new(model, load, model.shown_draws());
        // With no weight on delay the objective is energy for the same work.
        let aim = Aim { objective: self.settings.objective, weight: 0.0, limit: None };
        let (outlook, _) = predictor.outlooks(&[clock], default, aim).pop()?;
        let of = |log: f64, sd: f64, off: f64| LogRatio { log, sd: sd.hypot(off * log) };
        let ratios = Ratios {
            energy: of(outlook.gain, outlook.sd, ENERGY_OFF),
            time: of(outlook.slowdown, outlook.slowdown_sd, TIME_OFF),
        };
        (ratios.energy.is_sound() && ratios.time.is_sound()).then_some(ratios)
    }
}
