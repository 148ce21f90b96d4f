//! What a window was worth: the energy-delay product against driver-default clocks under comparable load.
//!
//! [`energy`] turns counter ticks into power, [`baseline`] remembers what default clocks cost under which load,
//! [`slo`] watches the latency limits, [`floor`] is what broken ones leave. A window that says nothing teaches nothing: there are no zero rewards.

pub mod baseline;
pub mod energy;
pub mod floor;
pub mod judge;
pub mod slo;

use serde::{Deserialize, Serialize};

use crate::metrics::Histogram;
use crate::metrics::window::Window;
use crate::units::{Seconds, Watts};

/// Where a window's delay came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DelaySource {
    /// Mean time between tokens, from the engine's histogram.
    InterToken,
    /// Mean time per output token of requests that finished in the window (an engine without the histogram above).
    RequestTpot,
    /// Little's law: requests in the system over the token rate.
    Little,
}

/// Time per output token seen in a window, and where it came from.
///
/// The inter-token histogram is the best signal: unbiased by idle gaps and up to date. `None` if nothing was generated.
#[must_use]
pub fn delay(window: &Window) -> Option<(Seconds, DelaySource)> {
    let positive = |mean: Option<f64>| mean.filter(|mean| mean.is_finite() && *mean > 0.0).map(Seconds);
    if let Some(mean) = positive(window.itl.as_ref().and_then(Histogram::mean)) {
        return Some((mean, DelaySource::InterToken));
    }
    if window.itl.is_none()
        && let Some(mean) = positive(window.request_tpot.as_ref().and_then(Histogram::mean))
    {
        return Some((mean, DelaySource::RequestTpot));
    }
    let in_system = window.mean.running? + window.mean.waiting.unwrap_or(0.0);
    let rate = window.generation_tokens? / window.elapsed.0;
    let law = (rate > 0.0).then(|| in_system / rate);
    positive(law).map(|seconds| (seconds, DelaySource::Little))
}

/// What is to be small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Energy times delay.
    #[default]
    Edp,
    /// Energy times delay squared.
    Ed2p,
    /// Energy alone.
    Energy,
}

impl Objective {
    /// Weight of the logarithm of the delay beside that of the power.
    #[must_use]
    pub fn delay_weight(self) -> f64 {
        match self {
            Self::Edp => 1.0,
            Self::Ed2p => 2.0,
            Self::Energy => 0.0,
        }
    }
}

/// Power and delay of a window or of a baseline: the two factors of the energy-delay product.
///
/// Power stands for energy: clients of an open system bring the same tokens per second at any clock, so energy per
/// second orders clocks as energy per token does, without the token rate's noise (which is 2-4 times the power's).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Mean board power, summed over the GPUs of the engine.
    pub power: Watts,
    /// Time per output token.
    pub delay: Seconds,
}

impl Cost {
    /// `ln P + w ln t`: the logarithm of the product, up to a constant.
    #[must_use]
    pub fn log(&self, objective: Objective) -> f64 {
        self.power.0.ln() + objective.delay_weight() * self.delay.0.ln()
    }

    /// Are both numbers usable?
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.power.0.is_finite() && self.power.0 > 0.0 && self.delay.0.is_finite() && self.delay.0 > 0.0
    }
}

/// How a cost becomes a reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardForm {
    /// `-ln(cost / baseline)`: keeps bad clocks apart.
    #[default]
    LogRatio,
    /// AGFT's `2 (1 - min(2, cost / baseline))` with the baseline lowered by 10 %.
    Clipped,
}

/// AGFT lowers its baseline by this factor.
const CLIPPED_BASELINE: f64 = 0.9;

/// Reward of a cost against the baseline for comparable load. 0 is as good as default clocks (log ratio).
#[must_use]
pub fn reward(cost: Cost, baseline: Cost, objective: Objective, form: RewardForm) -> f64 {
    let log_ratio = cost.log(objective) - baseline.log(objective);
    match form {
        RewardForm::LogRatio => -log_ratio,
        RewardForm::Clipped => 2.0 * (1.0 - (log_ratio.exp() / CLIPPED_BASELINE).min(2.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Signals, Snapshot};
    use crate::units::Time;

    fn cost(power: f64, delay: f64) -> Cost {
        Cost { power: Watts(power), delay: Seconds(delay) }
    }

    /// A window of 0.3 s of a page with a mean time per token, in which requests with so many tokens ended.
    fn of_ended(tokens: f64) -> Window {
        let page = |at: f64, tokens: f64| Snapshot {
            at: Time(at),
            latency: Seconds(0.0),
            refused: vec![],
            engine: None,
            signals: Signals {
                running: Some(4.0),
                generation_tokens: Some(tokens),
                itl: Some(Histogram { sum: 0.02 * tokens, count: tokens, buckets: vec![] }),
                ..Signals::default()
            },
        };
        Window::between(&page(0.0, 500.0), &page(0.3, 500.0 + tokens)).unwrap()
    }

    #[test]
    fn mean_of_two_counters_is_a_delay_and_a_window_in_which_no_request_ended_has_none() {
        let (delay, source) = delay(&of_ended(100.0)).unwrap();
        approx::assert_relative_eq!(delay.0, 0.02, max_relative = 1e-9);
        assert_eq!(source, DelaySource::InterToken);
        assert_eq!(super::delay(&of_ended(0.0)), None);
    }

    #[test]
    fn half_the_product_earns_ln_two() {
        let r = reward(cost(100.0, 0.02), cost(200.0, 0.02), Objective::Edp, RewardForm::LogRatio);
        approx::assert_relative_eq!(r, 2.0_f64.ln(), max_relative = 1e-12);
    }

    #[test]
    fn clipped_form_is_agfts() {
        let base = cost(200.0, 0.02);
        let at = |ratio: f64| reward(cost(200.0 * ratio, 0.02), base, Objective::Edp, RewardForm::Clipped);
        approx::assert_relative_eq!(at(1.0), 2.0 * (1.0 - 1.0 / 0.9), max_relative = 1e-9);
        approx::assert_relative_eq!(at(0.45), 2.0 * (1.0 - 0.5), max_relative = 1e-9);
        approx::assert_relative_eq!(at(1.8), -2.0, max_relative = 1e-9);
        approx::assert_relative_eq!(at(50.0), -2.0, max_relative = 1e-9);
    }

    #[test]
    fn objectives_weigh_the_delay() {
        let slow = cost(100.0, 0.04);
        let base = cost(200.0, 0.02);
        let r = |objective| reward(slow, base, objective, RewardForm::LogRatio);
        approx::assert_abs_diff_eq!(r(Objective::Edp), 0.0, epsilon = 1e-12);
        approx::assert_relative_eq!(r(Objective::Ed2p), -(2.0_f64.ln()), max_relative = 1e-9);
        approx::assert_relative_eq!(r(Objective::Energy), 2.0_f64.ln(), max_relative = 1e-9);
    }
}
