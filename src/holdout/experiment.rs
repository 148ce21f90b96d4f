//! The experiment under way: when it begins, and how much of the time it takes.
//!
//! It begins when the learner has settled, since what it proves is what agft saves, not what learning costs.
//! How many slots the next cycle has is decided at its beginning, from complete cycles alone: so the chance
//! of every slot is known before it is drawn, and weighting by its inverse (see
//! [`contrast`](super::contrast)) keeps the comparison unbiased.

use serde::{Deserialize, Serialize};

use super::contrast::Contrast;
use super::cycle::{CycleSums, SlotWindow};
use super::schedule::{Cycle, HoldoutSettings, InSlot, whole};
use crate::units::{Seconds, Time};

/// What was measured this long ago counts `1/e` for the interval that decides the share.
const MEMORY_S: f64 = 86_400.0;
/// No cycle is longer than this share of the time that the interval rests on: one block would outweigh all
/// others.
const LONGEST: f64 = 0.1;
/// A load is new where it is off the mean by more than so many standard deviations of the cycles, plus a
/// share of the mean.
const NEW_LOAD: (f64, f64) = (3.0, 0.25);

/// The state of the experiment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Experiment {
    /// Time with work in which the policy chose, before the experiment began.
    chosen_s: f64,
    /// The cycle under way; `None` before the experiment begins.
    cycle: Option<Cycle>,
    /// Number of the cycle that it begins with.
    first: u64,
    pace: Pace,
}

impl Experiment {
    /// One that begins at `now`.
    #[must_use]
    pub fn begun(settings: &HoldoutSettings, now: Time) -> Self {
        let mut experiment = Self::default();
        experiment.begin(settings, now);
        experiment
    }

    fn begin(&mut self, settings: &HoldoutSettings, now: Time) {
        self.cycle = Some(Cycle { number: self.first, start: now, slots: settings.slots() });
    }

    /// It stands in the place of `before`, with other settings: no two cycles of a run have one number.
    pub fn follow(&mut self, before: &Self) {
        self.first = before.cycle.map_or(before.first, |cycle| cycle.number + 1);
        if let Some(cycle) = &mut self.cycle {
            cycle.number = self.first;
        }
    }

    /// Time has come to `now`: begins the experiment, or the next cycle. `settled` says that the policy has,
    /// `chose` for how long it has had the choice, with work, since the last call.
    pub fn advance(&mut self, settings: &HoldoutSettings, now: Time, settled: bool, chose: Seconds) {
        let Some(cycle) = self.cycle else {
            self.chosen_s += chose.0.max(0.0);
            if settled || self.chosen_s >= settings.begin_after.0 {
                self.begin(settings, now);
            }
            return;
        };
        let length = settings.length(&cycle);
        let passed = (now.since(cycle.start).0 / length.0).floor();
        if passed >= 1.0 {
            // Cycles that nobody saw, in an outage, were as long as this one.
            let number = cycle.number.saturating_add(whole(passed));
            let start = cycle.start + Seconds(passed * length.0);
            self.pace.close();
            self.cycle = Some(Cycle { number, start, slots: self.pace.slots(settings) });
        }
    }

    /// The cycle under way; `None` before it begins.
    #[must_use]
    pub fn cycle(&self) -> Option<Cycle> {
        self.cycle
    }

    /// Is `now` in a control slot?
    #[must_use]
    pub fn is_control(&self, settings: &HoldoutSettings, now: Time) -> bool {
        self.cycle.is_some_and(|cycle| settings.slot_at(&cycle, now).control)
    }

    /// Where a window lies in it; `None` as for [`HoldoutSettings::place`], and before it begins.
    #[must_use]
    pub fn place(&self, settings: &HoldoutSettings, from: Time, to: Time) -> Option<InSlot> {
        self.cycle.and_then(|cycle| settings.place(&cycle, from, to))
    }

    /// Takes a window in that was placed. One of a cycle that is over comes too late.
    pub fn push(&mut self, at: InSlot, window: &SlotWindow) {
        let is_sound = window.seconds.is_finite() && window.seconds > 0.0;
        if is_sound && self.cycle.is_some_and(|cycle| cycle.number == at.cycle) {
            self.pace.open.push(at, window);
        }
    }

    /// Share of the time that the cycle under way leaves to default clocks, 0 to 0.5; what it will be, before
    /// the first.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "at most 1e6 slots")]
    pub fn share(&self, settings: &HoldoutSettings) -> f64 {
        self.cycle.map_or(settings.share, |cycle| {
            if cycle.slots == settings.slots() { settings.share } else { 1.0 / cycle.slots as f64 }
        })
    }

    /// Is every number usable? A snapshot from a file could say otherwise.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let in_cycle = self.cycle.is_none_or(|cycle| cycle.start.0.is_finite() && cycle.slots >= 2);
        in_cycle && self.chosen_s.is_finite() && self.pace.power.is_sound()
    }
}

/// What the latest cycles say of how much more is to be spent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Pace {
    /// The cycle under way.
    open: CycleSums,
    /// Power of complete cycles, older ones faded.
    power: Contrast,
    /// Measured time of these, faded alike, seconds.
    measured_s: f64,
    /// Sums over that time of the token rates (prompt, generated) and of their squares.
    rates: [(f64, f64); 2],
    /// The latest cycle had a load unlike those before it.
    is_new_load: bool,
}

impl Pace {
    /// The cycle under way is over.
    fn close(&mut self) {
        let cycle = std::mem::take(&mut self.open);
        let Some(compared) = cycle.compared() else { return };
        let (seconds, load) = (compared.seconds(), compared.load());
        self.is_new_load = self.rates.iter().zip(load).any(|(sums, rate)| self.is_unlike(*sums, rate));
        let faded = (-seconds / MEMORY_S).exp();
        self.power = self.power.faded(faded);
        compared.push_to(&mut self.power, 0);
        self.measured_s = faded * self.measured_s + seconds;
        for ((sum, square), rate) in self.rates.iter_mut().zip(load) {
            *sum = faded * *sum + seconds * rate;
            *square = faded * *square + seconds * rate * rate;
        }
    }

    fn is_unlike(&self, (sum, square): (f64, f64), rate: f64) -> bool {
        let mean = sum / self.measured_s;
        let deviation = (square / self.measured_s - mean * mean).max(0.0).sqrt();
        (rate - mean).abs() > NEW_LOAD.0 * deviation + NEW_LOAD.1 * mean
    }

    /// Slots of the next cycle: the fewest until the interval is as narrow as it shall be and while the load
    /// is new, then as many as the time behind it allows.
    fn slots(&self, settings: &HoldoutSettings) -> u64 {
        let fewest = settings.slots();
        let is_enough = |width| self.power.change().is_some_and(|of| of.relative_half_width <= width);
        if self.is_new_load || !settings.width.is_some_and(is_enough) {
            return fewest;
        }
        whole((LONGEST * self.measured_s / settings.block.0).floor()).clamp(fewest, settings.most_slots())
    }
}
