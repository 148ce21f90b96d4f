//! Which slots of a cycle run at default clocks: a function of the seed and the cycle, without state.

use serde::{Deserialize, Serialize};

use crate::stats::Dice;
use crate::units::{Seconds, Time};

/// No cycle has more slots.
const MOST_SLOTS: u64 = 1_000_000;
/// What the interval does not need is not spent: the share sinks to one in so many.
const TRICKLE: u64 = 10;
const HOUR_S: f64 = 3600.0;

/// Constants of the holdout.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HoldoutSettings {
    /// Share of the time at default clocks, 0 to 0.5; the most of it where there is a `width`.
    pub share: f64,
    /// Length of a slot.
    pub block: Seconds,
    /// Beginning of each slot that is not compared: work that the slot before has left is done in it.
    pub settle: Seconds,
    /// Start of the random numbers.
    pub seed: u64,
    /// Half-width of the interval of the relative change of power that is enough: with it, the share sinks.
    /// `None` spends the whole share for ever.
    pub width: Option<f64>,
    /// It begins at the latest after so much time with work in which the policy chose; sooner if the policy
    /// has settled.
    pub begin_after: Seconds,
}

/// A cycle of the experiment: so many slots, one of which is a control slot.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cycle {
    /// Its number, from 0.
    pub number: u64,
    /// When it began.
    pub start: Time,
    /// Its slots, at least 2.
    pub slots: u64,
}

/// A slot of the experiment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slot {
    /// Its place in the cycle, from 0.
    pub index: u64,
    /// A control slot, at default clocks?
    pub control: bool,
    /// When it began.
    pub start: Time,
}

/// Where a window lies in the experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InSlot {
    /// Number of the cycle, from 0.
    pub cycle: u64,
    /// Place of the slot in the cycle, from 0.
    pub slot: u64,
    /// A control slot, at default clocks?
    pub held: bool,
}

impl HoldoutSettings {
    /// Slots in a cycle at the whole share.
    #[must_use]
    pub fn slots(&self) -> u64 {
        whole(1.0 / self.share).clamp(2, MOST_SLOTS)
    }

    /// Slots in the longest cycle: a tenth of the share, and at least one block an hour.
    #[must_use]
    pub fn most_slots(&self) -> u64 {
        (TRICKLE * self.slots()).min(whole(HOUR_S / self.block.0)).max(self.slots())
    }

    /// The slot at `now` of this cycle; its last one if the cycle is over.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "at most 1e6 slots")]
    pub fn slot_at(&self, cycle: &Cycle, now: Time) -> Slot {
        let passed = (now.since(cycle.start).0.max(0.0) / self.block.0).floor();
        let index = whole(passed).min(cycle.slots.saturating_sub(1));
        let start = cycle.start + Seconds(index as f64 * self.block.0);
        Slot { index, control: index == self.control_index(cycle), start }
    }

    /// Where a window from `from` to `to` lies; `None` if it lies in two slots, or where work of the one
    /// before is left.
    #[must_use]
    pub fn place(&self, cycle: &Cycle, from: Time, to: Time) -> Option<InSlot> {
        let slot = self.slot_at(cycle, to);
        let measured = from.0 >= (slot.start + self.settle).0;
        measured.then_some(InSlot { cycle: cycle.number, slot: slot.index, held: slot.control })
    }

    /// How long this cycle takes.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "at most 1e6 slots")]
    pub fn length(&self, cycle: &Cycle) -> Seconds {
        Seconds(cycle.slots as f64 * self.block.0)
    }

    #[expect(clippy::cast_precision_loss, reason = "at most 1e6 slots")]
    fn control_index(&self, cycle: &Cycle) -> u64 {
        // Neighbouring seeds and cycles must not give neighbouring streams: the first draw seeds the second.
        let mut first = Dice::new(self.seed);
        let key = first.bits() ^ cycle.number.wrapping_mul(0xD1B5_4A32_D192_ED03);
        whole((Dice::new(key).uniform() * cycle.slots as f64).floor())
    }
}

/// The nearest whole number; 0 for what is negative or not a number.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
pub(super) fn whole(number: f64) -> u64 {
    number.round().max(0.0) as u64
}
