//! What the slots of one cycle add up to, and when that can be compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::contrast::{Contrast, Sums};
use super::schedule::InSlot;

/// A slot of which less than this share of the longest of its cycle was measured says nothing.
const LEAST_SHARE: f64 = 0.5;
/// Slots of a cycle that are kept apart; a file may claim more than a cycle can have.
const MOST_SLOTS: usize = 100_000;

/// A window, as far as the experiment needs it. A pair is a sum in seconds and the number of its samples.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SlotWindow {
    /// Its length.
    pub seconds: f64,
    /// Energy of all GPUs, joules.
    pub energy_j: Option<f64>,
    /// Prompt tokens.
    pub prompt_tokens: f64,
    /// Generated tokens.
    pub generated_tokens: f64,
    /// Time per output token.
    pub tpot: Option<(f64, f64)>,
    /// Time to first token.
    pub ttft: Option<(f64, f64)>,
}

/// What one slot adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct SlotSums {
    /// Measured seconds.
    seconds: f64,
    /// Seconds with energy, and that energy.
    powered_s: f64,
    energy_j: f64,
    prompt_tokens: f64,
    generated_tokens: f64,
    tpot: (f64, f64),
    ttft: (f64, f64),
}

impl SlotSums {
    fn push(&mut self, window: &SlotWindow) {
        let add = |sum: &mut (f64, f64), pair: Option<(f64, f64)>| {
            if let Some((value, count)) = pair.filter(|(v, n)| v.is_finite() && n.is_finite() && *n > 0.0) {
                sum.0 += value;
                sum.1 += count;
            }
        };
        self.seconds += window.seconds;
        if let Some(energy) = window.energy_j.filter(|energy| energy.is_finite()) {
            self.powered_s += window.seconds;
            self.energy_j += energy;
        }
        self.prompt_tokens += window.prompt_tokens;
        self.generated_tokens += window.generated_tokens;
        add(&mut self.tpot, window.tpot);
        add(&mut self.ttft, window.ttft);
    }

    /// Load that came by chance, per second: prompt tokens and generated tokens.
    fn rates(&self) -> [f64; 2] {
        [self.prompt_tokens / self.seconds, self.generated_tokens / self.seconds]
    }

    /// `(w, y, x1, x2)` of energy over seconds, time over tokens, time over requests.
    fn vectors(&self) -> [Sums; 3] {
        let [prompt, generated] = self.rates();
        let of = |y: f64, w: f64| [w, y, w * prompt, w * generated];
        [of(self.energy_j, self.powered_s), of(self.tpot.0, self.tpot.1), of(self.ttft.0, self.ttft.1)]
    }
}

/// The slots of a cycle.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct CycleSums {
    control: SlotSums,
    treatment: BTreeMap<u64, SlotSums>,
}

/// A cycle that can be compared: its control slot, and those treatment slots of which enough was measured.
pub(super) struct Compared<'a> {
    control: &'a SlotSums,
    treatment: Vec<&'a SlotSums>,
}

impl CycleSums {
    /// Takes a window in that lies wholly in the measured part of this slot.
    pub(super) fn push(&mut self, at: InSlot, window: &SlotWindow) {
        if at.held {
            self.control.push(window);
        } else if self.treatment.len() < MOST_SLOTS || self.treatment.contains_key(&at.slot) {
            self.treatment.entry(at.slot).or_default().push(window);
        }
    }

    /// What can be compared; `None` without enough of the control slot, or of any other.
    pub(super) fn compared(&self) -> Option<Compared<'_>> {
        let longest = self.treatment.values().map(|slot| slot.seconds).fold(self.control.seconds, f64::max);
        let enough = |slot: &&SlotSums| slot.seconds >= LEAST_SHARE * longest;
        let treatment: Vec<&SlotSums> = self.treatment.values().filter(enough).collect();
        (enough(&&self.control) && !treatment.is_empty())
            .then_some(Compared { control: &self.control, treatment })
    }
}

impl Compared<'_> {
    /// Adds one quantity to its contrast: 0 power, 1 time per token, 2 time to first token.
    pub(super) fn push_to(&self, contrast: &mut Contrast, quantity: usize) {
        let of = |slot: &SlotSums| slot.vectors().get(quantity).copied().unwrap_or_default();
        let treatment: Vec<Sums> = self.treatment.iter().map(|slot| of(slot)).collect();
        let treatment_s = self.treatment.iter().map(|slot| slot.seconds).sum();
        contrast.push(of(self.control), &treatment, self.control.seconds, treatment_s);
    }

    /// Measured time, seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.control.seconds + self.treatment.iter().map(|slot| slot.seconds).sum::<f64>()
    }

    /// Prompt and generated tokens per second, under agft.
    pub(super) fn load(&self) -> [f64; 2] {
        let sum = |of: fn(&SlotSums) -> f64| self.treatment.iter().map(|slot| of(slot)).sum::<f64>();
        let seconds = sum(|slot| slot.seconds);
        [sum(|slot| slot.prompt_tokens) / seconds, sum(|slot| slot.generated_tokens) / seconds]
    }
}
