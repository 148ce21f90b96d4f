//! The books of the experiment: slots into cycles, cycles into days and a total.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::contrast::{Change, Contrast};
use super::cycle::{Compared, CycleSums, SlotWindow};
use super::schedule::InSlot;

/// Days that are kept apart; older ones are in the total only.
const DAYS: usize = 31;
const DAY_S: f64 = 86_400.0;

/// The three comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Contrasts {
    power: Contrast,
    tpot: Contrast,
    ttft: Contrast,
}

impl Contrasts {
    fn push(&mut self, cycle: &Compared<'_>) {
        for (k, contrast) in [&mut self.power, &mut self.tpot, &mut self.ttft].into_iter().enumerate() {
            cycle.push_to(contrast, k);
        }
    }
}

impl From<&Contrasts> for Effect {
    fn from(contrasts: &Contrasts) -> Self {
        Self {
            power_w: contrasts.power.change(),
            tpot_s: contrasts.tpot.change(),
            ttft_s: contrasts.ttft.change(),
        }
    }
}

/// What the experiment has shown of a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Effect {
    /// Mean power, W.
    pub power_w: Option<Change>,
    /// Time per output token, s.
    pub tpot_s: Option<Change>,
    /// Time to first token, s.
    pub ttft_s: Option<Change>,
}

/// One day (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DaySavings {
    /// Its beginning, Unix seconds.
    pub day_unix_s: f64,
    /// Cycles that ended in it.
    pub cycles: u64,
    /// What they have shown.
    pub effect: Effect,
}

/// The books, for everyone who looks at them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SavingsState {
    /// Share of the time that the cycle under way leaves to default clocks; 0 is no experiment.
    pub share: f64,
    /// Cycles compared.
    pub cycles: u64,
    /// Measured seconds at default clocks.
    pub held_s: f64,
    /// Measured seconds under agft.
    pub agft_s: f64,
    /// What all cycles together have shown.
    pub effect: Effect,
    /// The latest days, oldest first.
    pub days: Vec<DaySavings>,
}

impl SavingsState {
    /// Energy saved in the measured time under agft, joules, and the half-width of its interval.
    #[must_use]
    pub fn saved_j(&self) -> Option<(f64, f64)> {
        let power = self.effect.power_w?;
        Some((-power.difference() * self.agft_s, power.difference_half_width * self.agft_s))
    }

    /// What the proof has cost: energy that agft would have saved in the measured time at default clocks,
    /// joules.
    #[must_use]
    pub fn given_away_j(&self) -> Option<f64> {
        Some(-self.effect.power_w?.difference() * self.held_s)
    }
}

/// What complete cycles have shown, over all runs: the content of a savings file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Durable {
    total: Contrasts,
    days: VecDeque<(f64, u64, Contrasts)>,
    /// Cycles that were compared, and their measured seconds at default clocks and under agft.
    cycles: u64,
    held_s: f64,
    agft_s: f64,
}

impl Durable {
    /// Is every number usable? A file could say otherwise.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let all = std::iter::once(&self.total).chain(self.days.iter().map(|(.., contrasts)| contrasts));
        let sound = |contrasts: &Contrasts| {
            [&contrasts.power, &contrasts.tpot, &contrasts.ttft].into_iter().all(Contrast::is_sound)
        };
        all.into_iter().all(sound)
            && self.days.iter().all(|(day, ..)| day.is_finite())
            && [self.held_s, self.agft_s].iter().all(|seconds| seconds.is_finite() && *seconds >= 0.0)
    }
}

/// Keeps the accounts. A cycle under way ends with the run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Savings {
    durable: Durable,
    /// Number of the cycle under way, and its slots.
    open: Option<(u64, CycleSums)>,
    state: SavingsState,
}

impl From<Durable> for Savings {
    fn from(durable: Durable) -> Self {
        let mut savings = Self { durable, ..Self::default() };
        savings.durable.days.truncate(DAYS);
        savings.tell();
        savings
    }
}

impl Savings {
    /// Accounts of an experiment that holds this share of the time.
    #[must_use]
    pub fn new(share: f64) -> Self {
        Self { state: SavingsState { share, ..SavingsState::default() }, ..Self::default() }
    }

    /// Accounts that were stored, of an experiment that holds this share of the time from now on.
    #[must_use]
    pub fn restored(self, share: f64) -> Self {
        let mut savings = Self::from(self.durable);
        savings.set_share(share);
        savings
    }

    /// What complete cycles have shown.
    #[must_use]
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// Another share from now on: what was seen stays.
    pub fn set_share(&mut self, share: f64) {
        self.state.share = share;
    }

    /// Takes a window in that lies wholly in one slot's measured part.
    pub fn push(&mut self, at: InSlot, window: &SlotWindow, unix_s: f64) {
        if !(window.seconds.is_finite() && window.seconds > 0.0) {
            return;
        }
        if self.open.as_ref().is_some_and(|(cycle, _)| *cycle != at.cycle) {
            self.close(unix_s);
        }
        let (_, cycle) = self.open.get_or_insert_with(|| (at.cycle, CycleSums::default()));
        cycle.push(at, window);
        *(if at.held { &mut self.durable.held_s } else { &mut self.durable.agft_s }) += window.seconds;
        (self.state.held_s, self.state.agft_s) = (self.durable.held_s, self.durable.agft_s);
    }

    /// The cycle under way is over, or as much of it as there will be.
    pub fn close(&mut self, unix_s: f64) {
        let Some((_, cycle)) = self.open.take() else { return };
        let Some(compared) = cycle.compared() else { return };
        let day = (unix_s / DAY_S).floor() * DAY_S;
        #[expect(clippy::float_cmp, reason = "whole days")]
        if self.durable.days.back().is_none_or(|(last, ..)| *last != day) {
            if self.durable.days.len() == DAYS {
                self.durable.days.pop_front();
            }
            self.durable.days.push_back((day, 0, Contrasts::default()));
        }
        if let Some((_, cycles, contrasts)) = self.durable.days.back_mut() {
            *cycles += 1;
            contrasts.push(&compared);
        }
        self.durable.total.push(&compared);
        self.durable.cycles += 1;
        self.tell();
    }

    /// Brings the state up to date with the accounts.
    fn tell(&mut self) {
        let days = self.durable.days.iter().map(|(day, cycles, contrasts)| DaySavings {
            day_unix_s: *day,
            cycles: *cycles,
            effect: Effect::from(contrasts),
        });
        self.state = SavingsState {
            share: self.state.share,
            cycles: self.durable.cycles,
            held_s: self.durable.held_s,
            agft_s: self.durable.agft_s,
            effect: Effect::from(&self.durable.total),
            days: days.collect(),
        };
    }

    /// The accounts as of the latest cycle.
    #[must_use]
    pub fn state(&self) -> &SavingsState {
        &self.state
    }
}
