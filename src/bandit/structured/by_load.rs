//! What the model would choose at other loads than the present one: for people who want to see what was learned.

use serde::{Deserialize, Serialize};

use super::Durable;
use super::context::Load;
use super::forecast::Ratios;
use super::predict::Predictor;
use crate::units::Mhz;

/// Loads that are looked at, as multiples of the present one.
const SHARES: [f64; 5] = [0.25, 0.5, 1.0, 1.5, 2.0];
/// Where default clocks take this many times the step time of the lightest load, the model would speak of overload.
const OVERLOAD: f64 = 4.0;

/// The clock with the least predicted cost at a load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BestAt {
    /// The load, as a multiple of the present one.
    pub share: f64,
    /// Prompt tokens per second.
    pub prefill_tps: f64,
    /// Generated tokens per second.
    pub decode_tps: f64,
    /// The core clock; `None` is driver-default clocks.
    pub core: Option<Mhz>,
    /// Predicted objective (EDP, unless set otherwise) over that of default clocks, under the same load.
    pub cost_ratio: f64,
    /// Predicted time per output token over that of default clocks.
    pub tpot_ratio: f64,
    /// Both with what they may be off by, energy for the same work in the place of the objective; `None` is
    /// unknown.
    #[serde(default)]
    pub ratios: Option<Ratios>,
}

impl Durable {
    /// The best of `cores` at multiples of the present load, by the mean of what was learned; empty before there is a
    /// model. Limits and bounds are not in it: it says what is known, not what would be done.
    #[must_use]
    pub fn best_by_load(&self, cores: &[Mhz]) -> Vec<BestAt> {
        let (Some(model), Some(present), Some(default)) =
            (&self.model, self.context.load(), self.clock_of_default())
        else {
            return Vec::new();
        };
        let (objective, weight) = (self.settings.objective, self.context.delay_weight());
        let mut lightest = None;
        let mut at = |share: f64| {
            let busy = 1.0 - (1.0 - present.busy).powf(share);
            let load = Load {
                prefill: share * present.prefill,
                decode: share * present.decode,
                busy,
                steps: present.steps * busy / present.busy,
                // What was met with at another load says nothing here.
                delay: present.delay.filter(|_| (share - 1.0).abs() < f64::EPSILON),
                ..present
            };
            let predictor = Predictor::new(model, load, &[]);
            let reference = predictor.steady(default);
            let overload = reference.step.0 > OVERLOAD * *lightest.get_or_insert(reference.step.0);
            let cost = |clock: f64| {
                let steady = predictor.steady(clock);
                (steady.objective(objective, weight) - reference.objective(objective, weight), steady)
            };
            let locks = cores
                .iter()
                .filter(|core| core.as_f64() < default)
                .map(|core| (Some(*core), cost(core.as_f64())));
            let all = std::iter::once((None, cost(default))).chain(locks);
            let (core, (gain, steady)) = all.min_by(|a, b| a.1.0.total_cmp(&b.1.0))?;
            let best = BestAt {
                share,
                prefill_tps: load.prefill,
                decode_tps: load.decode,
                core,
                cost_ratio: gain.exp(),
                tpot_ratio: steady.step.0 / reference.step.0,
                ratios: self.ratios_at(model, load, core.map_or(default, Mhz::as_f64)),
            };
            let sound = best.cost_ratio.is_finite() && best.tpot_ratio.is_finite() && !overload;
            sound.then_some(best)
        };
        SHARES.into_iter().filter_map(&mut at).collect()
    }
}
