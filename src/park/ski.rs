//! How long to wait before parking: ski rental with learned idle gaps.
//!
//! While a GPU idles unparked it wastes power (the rent); parking ends that, and costs one wake (the price of the skis)
//! when work comes back. Whoever waits until the rent paid equals the price never pays more than twice what a clairvoyant
//! would: the break-even rule. Whoever knows how long gaps usually are can do better, so the wait is the one that would
//! have cost least over the gaps of late, bounded by break-even.
//!
//! A learned wait has no such guarantee by itself: gaps may turn just longer than it. So an account is kept of twice the
//! clairvoyant's cost less ours, with a little credit to begin with. A wait `t` below break-even can at worst draw `buy - rent t`
//! from it, and is allowed only if that is there. Over any sequence of gaps the cost then stays below twice the
//! clairvoyant's plus that credit; where it is used up, the break-even rule is left.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::units::{Joules, Seconds, Watts};

/// Gaps that are remembered.
const GAPS: usize = 64;
/// Gaps before what was learned is used.
const LEARNED_AFTER: usize = 8;
/// A learned wait is this much longer than the gap it outlasts: no two gaps are equal.
const MARGIN: f64 = 1.1;
/// Credit to begin with, in wakes.
pub(crate) const CREDIT: f64 = 2.0;
/// The account never holds more than so many wakes: good years do not pay for a bad one.
const MOST: f64 = 8.0;
/// Parking that saves less than this is priced as if it saved so much.
const LEAST_SAVING: Watts = Watts(0.5);
/// The bar is never raised above so many times the configured cost.
const HIGHEST_BAR: f64 = 16.0;

/// The terms of one gap, fixed when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Terms {
    /// Park after this much of the gap.
    pub wait: Seconds,
    /// Power wasted while waiting.
    pub(crate) rent: Watts,
    /// Cost of parking and waking.
    pub(crate) buy: Joules,
}

impl Terms {
    /// What a gap of this length costs under these terms.
    pub(crate) fn cost(&self, gap: Seconds) -> Joules {
        if gap > self.wait {
            Joules(self.rent.0 * self.wait.0 + self.buy.0)
        } else {
            Joules(self.rent.0 * gap.0)
        }
    }

    /// What it costs whoever knew its length.
    pub(crate) fn clairvoyant(&self, gap: Seconds) -> Joules {
        Joules((self.rent.0 * gap.0).min(self.buy.0))
    }
}

/// What is known of the idle gaps of one GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SkiRental {
    gaps: VecDeque<f64>,
    /// Twice the clairvoyant's cost less ours, and the credit; `None` before the first price.
    account: Option<f64>,
    bar: f64,
}

impl Default for SkiRental {
    fn default() -> Self {
        Self { gaps: VecDeque::new(), account: None, bar: 1.0 }
    }
}

impl SkiRental {
    /// The terms of a gap that begins now: `wake` is what a wake may cost, `saving` the power that parking saves.
    pub(crate) fn terms(&self, wake: Joules, saving: Watts) -> Terms {
        let rent = saving.0.max(LEAST_SAVING.0);
        let buy = wake.0 * self.bar;
        let break_even = buy / rent;
        let account = self.account.unwrap_or(CREDIT * buy);
        // Less than this could cost more than the account holds.
        let floor = (break_even - account / rent).max(0.0);
        let wait = self.cheapest_wait(rent, buy).max(floor).min(break_even);
        Terms { wait: Seconds(wait), rent: Watts(rent), buy: Joules(buy) }
    }

    /// The wait in `[0, break-even]` that would have cost least over the remembered gaps; break-even while there are few.
    fn cheapest_wait(&self, rent: f64, buy: f64) -> f64 {
        let break_even = buy / rent;
        if self.gaps.len() < LEARNED_AFTER {
            return break_even;
        }
        let cost = |wait: f64| -> f64 {
            self.gaps.iter().map(|gap| if *gap > wait { rent * wait + buy } else { rent * gap }).sum()
        };
        let waits = self.gaps.iter().map(|gap| (MARGIN * gap).min(break_even)).chain([0.0]);
        let start = (break_even, cost(break_even));
        let better = |best: (f64, f64), wait: f64| {
            let cost = cost(wait);
            if cost < best.1 { (wait, cost) } else { best }
        };
        waits.fold(start, better).0
    }

    pub(crate) fn ended(&mut self, gap: Seconds, terms: &Terms) {
        let account = self.account.unwrap_or(CREDIT * terms.buy.0);
        let account = account + 2.0 * terms.clairvoyant(gap).0 - terms.cost(gap).0;
        self.account = Some(account.min(MOST * terms.buy.0));
        self.gaps.push_back(gap.0);
        if self.gaps.len() > GAPS {
            self.gaps.pop_front();
        }
    }

    /// A wake took so long, of a `limit` that is allowed: a late one raises the bar for parking, others lower it slowly.
    pub(crate) fn woke(&mut self, took: Seconds, limit: Seconds) {
        self.bar = if took > limit { (2.0 * self.bar).min(HIGHEST_BAR) } else { (0.9 * self.bar).max(1.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAKE: Joules = Joules(100.0);
    const SAVING: Watts = Watts(10.0);

    /// The wait at which the rent paid equals the price.
    fn break_even(terms: &Terms) -> Seconds {
        Seconds(terms.buy.0 / terms.rent.0)
    }

    fn after(gaps: &[f64]) -> SkiRental {
        let mut ski = SkiRental::default();
        for gap in gaps {
            let terms = ski.terms(WAKE, SAVING);
            ski.ended(Seconds(*gap), &terms);
        }
        ski
    }

    #[test]
    fn nothing_known_waits_until_break_even() {
        let terms = SkiRental::default().terms(WAKE, SAVING);
        assert_eq!((terms.wait, break_even(&terms)), (Seconds(10.0), Seconds(10.0)));
    }

    #[test]
    fn long_gaps_teach_to_park_at_once() {
        let terms = after(&[600.0; LEARNED_AFTER]).terms(WAKE, SAVING);
        assert_eq!(terms.wait, Seconds(0.0));
    }

    #[test]
    fn pauses_of_a_known_length_are_outlasted_and_longer_ones_parked() {
        let gaps: Vec<f64> = (0..16).map(|k| if k % 2 == 0 { 2.0 } else { 600.0 }).collect();
        let terms = after(&gaps).terms(WAKE, SAVING);
        assert!((terms.wait.0 - 2.0 * MARGIN).abs() < 1e-9, "{terms:?}");
    }

    #[test]
    fn short_gaps_alone_are_never_parked() {
        let terms = after(&[5.0; 32]).terms(WAKE, SAVING);
        assert!(terms.wait > Seconds(5.0));
        assert!((terms.cost(Seconds(5.0)).0 - 50.0).abs() < 1e-9);
    }

    #[test]
    fn gaps_that_turn_bad_lead_back_to_break_even() {
        let mut ski = after(&[600.0; LEARNED_AFTER]);
        // Each just longer than the wait: the worst there is.
        for _ in 0..200 {
            let terms = ski.terms(WAKE, SAVING);
            ski.ended(Seconds(terms.wait.0 + 1e-3), &terms);
        }
        let terms = ski.terms(WAKE, SAVING);
        assert!(terms.wait.0 > 0.9 * break_even(&terms).0, "{terms:?}");
    }

    #[test]
    fn late_wakes_raise_the_bar_and_prompt_ones_lower_it_again() {
        let mut ski = SkiRental::default();
        ski.woke(Seconds(1.5), Seconds(1.0));
        ski.woke(Seconds(1.5), Seconds(1.0));
        assert_eq!(break_even(&ski.terms(WAKE, SAVING)), Seconds(40.0));
        (0..100).for_each(|_| ski.woke(Seconds(1e9), Seconds(1.0)));
        assert_eq!(break_even(&ski.terms(WAKE, SAVING)), Seconds(10.0 * HIGHEST_BAR));
        (0..100).for_each(|_| ski.woke(Seconds(0.1), Seconds(1.0)));
        assert!((ski.bar - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn parking_that_saves_nothing_is_not_free() {
        let terms = SkiRental::default().terms(WAKE, Watts(-3.0));
        assert_eq!(break_even(&terms), Seconds(WAKE.0 / LEAST_SAVING.0));
    }
}
