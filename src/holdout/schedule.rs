//! Which slots run at default clocks: a function of the seed and the time, without state.

use serde::{Deserialize, Serialize};

use crate::stats::Dice;
use crate::units::{Seconds, Time};

/// Constants of the holdout.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HoldoutSettings {
    /// Share of the time at default clocks, 0 to 0.5.
    pub share: f64,
    /// Length of a slot.
    pub block: Seconds,
    /// Beginning of each slot that is not compared: work that the slot before has left is done in it.
    pub settle: Seconds,
    /// Start of the random numbers.
    pub seed: u64,
}

/// A slot of the experiment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slot {
    /// Number of its cycle, from 0.
    pub cycle: u64,
    /// Its place in the cycle, from 0.
    pub index: u64,
    /// At default clocks?
    pub held: bool,
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
    /// At default clocks?
    pub held: bool,
}

impl HoldoutSettings {
    /// Slots in a cycle, one of which is held.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 2 ..= 1e6 first")]
    pub fn slots(&self) -> u64 {
        (1.0 / self.share).round().clamp(2.0, 1e6) as u64
    }

    /// The slot at `now` of an experiment that began at `started`.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative; `as` saturates"
    )]
    #[expect(clippy::cast_precision_loss, reason = "slots of a run are far below 2^53")]
    pub fn slot_at(&self, started: Time, now: Time) -> Slot {
        let number = (now.since(started).0.max(0.0) / self.block.0).floor() as u64;
        let (cycle, index) = (number / self.slots(), number % self.slots());
        let start = started + Seconds(number as f64 * self.block.0);
        Slot { cycle, index, held: index == self.held_index(cycle), start }
    }

    /// Where a window from `from` to `to` lies; `None` if it lies in two slots, or where work of the one before is left.
    #[must_use]
    pub fn place(&self, started: Time, from: Time, to: Time) -> Option<InSlot> {
        let slot = self.slot_at(started, to);
        let measured = from.0 >= (slot.start + self.settle).0;
        measured.then_some(InSlot { cycle: slot.cycle, slot: slot.index, held: slot.held })
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below the number of slots")]
    #[expect(clippy::cast_precision_loss, reason = "at most 1e6 slots")]
    fn held_index(&self, cycle: u64) -> u64 {
        // Neighbouring seeds and cycles must not give neighbouring streams: the first draw seeds the second.
        let mut first = Dice::new(self.seed);
        let key = first.bits() ^ cycle.wrapping_mul(0xD1B5_4A32_D192_ED03);
        (Dice::new(key).uniform() * self.slots() as f64) as u64
    }
}
