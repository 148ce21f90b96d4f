//! One closed window and what was made of it.

use crate::bandit::Choice;
use crate::control::Mode;
use crate::features::{Context, DIMENSION};
use crate::holdout::{InSlot, SlotWindow};
use crate::metrics::Histogram;
use crate::metrics::window::Window;
use crate::reward::slo::Violation;
use crate::reward::{Cost, DelaySource};
use crate::units::{Joules, Mhz, Target, Time, Watts};

/// One round: window in, decision out. What a field cannot know is `None`, never a made-up zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// Serial number within the model's life, from 1.
    pub number: u64,
    /// When the step ran.
    pub at: Time,
    /// What the controller was doing.
    pub mode: Mode,
    /// The window between the two latest pages.
    pub window: Window,
    /// Raw context.
    pub context: Context,
    /// z-scored context, as the policy saw it.
    pub scaled: [f64; DIMENSION],
    /// What was in force during the window; `None` if it changed inside.
    pub ran_at: Option<Target>,
    /// Core clock read back at the end of the window.
    pub read_core: Option<Mhz>,
    /// Memory clock read back at the end of the window.
    pub read_memory: Option<Mhz>,
    /// Mean power, measured from counter tick to counter tick, settling left out.
    pub power: Option<Watts>,
    /// That power over the whole window.
    pub energy: Option<Joules>,
    /// Power and delay, if the window has both.
    pub cost: Option<Cost>,
    /// Where the delay came from.
    pub delay_source: Option<DelaySource>,
    /// Cost of default clocks under the load of the moment.
    pub baseline: Option<Cost>,
    /// Windows at default clocks near that load, by which the baseline is known.
    pub baseline_support: Option<f64>,
    /// Reward of the window, if it has a cost and a baseline.
    pub reward: Option<f64>,
    /// Did the policy learn from it?
    pub learned: bool,
    /// The limit broken now, if any.
    pub violation: Option<Violation>,
    /// Where the window lies in the holdout experiment, if it can be compared there.
    pub holdout: Option<InSlot>,
    /// The policy's choice, where it was asked.
    pub choice: Option<Choice>,
    /// What shall run from now on.
    pub command: Target,
    /// Exploration rate after this round.
    pub alpha: f64,
    /// Training samples learned at the clocks that ran.
    pub lessons_at_clock: u64,
    /// Clocks that may be chosen now.
    pub arms_allowed: usize,
    /// Clocks that are out: failed, pruned, or under the floor.
    pub arms_out: usize,
}

/// The round as the holdout experiment takes it.
impl From<&Round> for SlotWindow {
    fn from(round: &Round) -> Self {
        let window = &round.window;
        let tokens = window.generation_tokens.unwrap_or(0.0);
        let pair = |histogram: &Option<Histogram>| histogram.as_ref().map(|h| (h.sum, h.count));
        let by_cost = round.cost.map(|cost| (cost.delay.0 * tokens, tokens));
        Self {
            seconds: window.elapsed.0,
            energy_j: round.energy.map(|energy| energy.0),
            prompt_tokens: window.prompt_tokens.unwrap_or(0.0),
            generated_tokens: tokens,
            tpot: pair(&window.itl).or(by_cost),
            ttft: pair(&window.ttft),
        }
    }
}
