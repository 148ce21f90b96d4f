//! Which clocks are given up: pure decisions, made from what was measured at each clock.
//!
//! Four rules. *Extreme*: a clock whose mean reward is far too bad goes at once. *Cost*: a clock that measures worse
//! than the best, by more than chance explains, goes. *Cascade*: one given up in the lower half of the clocks takes
//! those below with it. *Descent*: the way down the first sweep ends where it only gets worse. In every case at least
//! [`KEPT`] clocks stay, the best among them. Nothing is given up for good: the policy brings clocks back.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::stats::mean;
use crate::units::{Clocks, Mhz};

/// Clocks that stay at least.
pub(super) const KEPT: usize = 2;

/// The standard deviation of a difference in cost counts as at least this much, in log cost: about 5 % of the cost.
///
/// With many measurements chance explains next to nothing, and clocks that are a little worse today may be the best
/// ones under tomorrow's load.
pub(super) const DEVIATION_FLOOR: f64 = 0.05;

/// What was measured at one clock lately.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Standing {
    /// The clocks.
    pub clocks: Clocks,
    /// Measurements.
    pub samples: usize,
    /// Their mean reward.
    pub mean_reward: f64,
    /// Their mean log cost.
    pub mean_cost: f64,
    /// Sum of their squared distances to that mean.
    pub scatter: f64,
}

impl Standing {
    /// Sums up measurements given as rewards and log costs; `None` without any.
    #[must_use]
    pub(super) fn of(clocks: Clocks, rewards: &[f64], costs: &[f64]) -> Option<Self> {
        let (mean_reward, mean_cost) = (mean(rewards)?, mean(costs)?);
        let scatter = costs.iter().map(|cost| (cost - mean_cost).powi(2)).sum();
        Some(Self { clocks, samples: costs.len(), mean_reward, mean_cost, scatter })
    }
}

/// Why clocks were given up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Far too bad.
    Extreme {
        /// Mean reward at or below which a clock is.
        threshold: f64,
    },
    /// Worse than the best by more than chance explains. In log cost: 0.1 is 10 % more energy times delay.
    Cost {
        /// The best clocks.
        best: Clocks,
        /// How much worse.
        gap: f64,
        /// How much worse is too much: `multiplier * deviation`.
        threshold: f64,
        /// Standard deviation of the gap, or its floor.
        deviation: f64,
        /// Deviations that are too much.
        multiplier: f64,
    },
    /// Below clocks that were given up.
    Cascade {
        /// Those.
        trigger: Clocks,
    },
    /// Below clocks at which it had become clear that lower ones are worse.
    Descent {
        /// Those.
        trigger: Clocks,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Extreme { threshold } => write!(f, "mean reward at or below {threshold:.3}"),
            Self::Cost { best, gap, threshold, .. } => {
                write!(f, "costs {:.1} % more than {best}", 100.0 * gap.exp_m1())?;
                write!(f, ", {:.1} % is too much", 100.0 * threshold.exp_m1())
            }
            Self::Cascade { trigger } => write!(f, "below {trigger}, which was given up"),
            Self::Descent { trigger } => write!(f, "below {trigger}, down to which it only got worse"),
        }
    }
}

/// Clocks with at least `min_samples` measurements whose mean reward is at or below `threshold`.
#[must_use]
pub(super) fn extreme(standings: &[Standing], min_samples: usize, threshold: f64) -> Vec<(Clocks, Cause)> {
    let bad = |s: &&Standing| s.samples >= min_samples.max(1) && s.mean_reward <= threshold;
    standings.iter().filter(bad).map(|s| (s.clocks, Cause::Extreme { threshold })).collect()
}

/// Clocks that cost more than the best one by over `multiplier` standard deviations of that difference, worst first.
///
/// Only clocks with at least `min_samples` measurements take part. The deviation follows from the scatter within the
/// clocks, not from the one between them: among n clocks none can lie further than √(2n) deviations of the latter
/// from the best, so that 4 of them are never exceeded by a handful of clocks.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "some dozen measurements per clock are kept")]
pub(super) fn costly(standings: &[Standing], min_samples: usize, multiplier: f64) -> Vec<(Clocks, Cause)> {
    let measured: Vec<&Standing> = standings.iter().filter(|s| s.samples >= min_samples.max(1)).collect();
    let Some(best) = measured.iter().min_by(|a, b| a.mean_cost.total_cmp(&b.mean_cost)) else {
        return Vec::new();
    };
    let freedom: usize = measured.iter().map(|s| s.samples - 1).sum();
    let scatter: f64 = measured.iter().map(|s| s.scatter).sum();
    let variance = if freedom == 0 { 0.0 } else { scatter / freedom as f64 };
    let mut costly: Vec<(Clocks, f64, f64)> = measured
        .iter()
        .map(|s| {
            let deviation = (variance * (1.0 / s.samples as f64 + 1.0 / best.samples as f64)).sqrt();
            (s.clocks, s.mean_cost - best.mean_cost, deviation.max(DEVIATION_FLOOR))
        })
        .filter(|(clocks, gap, deviation)| *clocks != best.clocks && *gap > multiplier * deviation)
        .collect();
    costly.sort_by(|a, b| b.1.total_cmp(&a.1));
    let cause = |gap, deviation| Cause::Cost {
        best: best.clocks,
        gap,
        threshold: multiplier * deviation,
        deviation,
        multiplier,
    };
    costly.into_iter().map(|(clocks, gap, deviation)| (clocks, cause(gap, deviation))).collect()
}

/// Below this core clock a clock that is given up takes lower ones with it: half the top one, or `fallback` where that
/// is unknown.
#[must_use]
pub(super) fn cascade_below(top: Option<Mhz>, fallback: Mhz) -> Mhz {
    top.map_or(fallback, |top| Mhz(top.0 / 2))
}

/// The clocks that go with `trigger`, lowest first: those `below` it. None if it is not below `threshold`.
#[must_use]
pub(super) fn cascade(trigger: Clocks, live: &[Clocks], threshold: Mhz) -> Vec<(Clocks, Cause)> {
    if trigger.core >= threshold {
        return Vec::new();
    }
    below(trigger, live).into_iter().map(|clocks| (clocks, Cause::Cascade { trigger })).collect()
}

/// How much more, in log cost, the two lowest clocks must cost for the descent to be over: half as much again.
pub(super) const DESCENT_MARGIN: f64 = 0.4;

/// The clocks that the first sweep need not visit, lowest first: those below the lowest one tried, if that one and the
/// one above it both cost more than the best one above them by over [`DESCENT_MARGIN`], and both lie under
/// `threshold`. There it only gets worse.
///
/// `descent` are clocks with the same memory clock, highest first.
#[must_use]
pub(super) fn descent(descent: &[Standing], live: &[Clocks], threshold: Mhz) -> Vec<(Clocks, Cause)> {
    let [above @ .., first, second] = descent else { return Vec::new() };
    let Some(best) = above.iter().map(|s| s.mean_cost).min_by(f64::total_cmp) else { return Vec::new() };
    let worse =
        |s: &Standing| s.samples > 1 && s.clocks.core < threshold && s.mean_cost > best + DESCENT_MARGIN;
    if !(worse(first) && worse(second)) {
        return Vec::new();
    }
    let trigger = second.clocks;
    below(trigger, live).into_iter().map(|clocks| (clocks, Cause::Descent { trigger })).collect()
}

/// The clocks lower in core clock than `trigger` and not higher in memory clock, lowest first.
fn below(trigger: Clocks, live: &[Clocks]) -> Vec<Clocks> {
    let lower = |c: &Clocks| c.core < trigger.core && c.memory <= trigger.memory;
    let mut below: Vec<Clocks> = live.iter().copied().filter(lower).collect();
    below.sort_unstable();
    below
}

/// Takes from the `victims` those that have to stay: the best clocks, and as many as [`KEPT`] asks for.
///
/// `live` are the clocks that may be chosen now. Victims that may not be chosen anyway go in any case.
#[must_use]
pub(super) fn spare(
    victims: Vec<(Clocks, Cause)>,
    live: &[Clocks],
    best: Option<Clocks>,
) -> Vec<(Clocks, Cause)> {
    let mut left = live.len();
    let mut gone: Vec<(Clocks, Cause)> = Vec::new();
    for (clocks, cause) in victims {
        if Some(clocks) == best || gone.iter().any(|(other, _)| *other == clocks) {
            continue;
        }
        if live.contains(&clocks) {
            if left <= KEPT {
                continue;
            }
            left -= 1;
        }
        gone.push((clocks, cause));
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn core(mhz: u32) -> Clocks {
        Clocks::core_only(Mhz(mhz))
    }

    fn standing(mhz: u32, costs: &[f64]) -> Standing {
        let rewards: Vec<f64> = costs.iter().map(|cost| -cost).collect();
        Standing::of(core(mhz), &rewards, costs).unwrap()
    }

    fn clocks_of(victims: &[(Clocks, Cause)]) -> Vec<u32> {
        victims.iter().map(|(clocks, _)| clocks.core.0).collect()
    }

    #[test]
    fn clock_with_a_mean_reward_at_the_threshold_is_extreme_once_it_has_its_samples() {
        let standings = [standing(900, &[1.2; 3]), standing(600, &[2.0; 2]), standing(300, &[1.1; 9])];
        assert_eq!(clocks_of(&extreme(&standings, 3, -1.2)), [900]);
    }

    #[test]
    fn clear_difference_among_three_clocks_is_acted_on() {
        // The rule by the deviation between clocks could not fire with fewer than nine of them.
        let noise = [-0.1, 0.1, -0.1, 0.1, -0.1, 0.1];
        let at = |mhz, mean: f64| standing(mhz, &noise.map(|n| mean + n));
        let victims = costly(&[at(1200, 0.0), at(900, -0.3), at(600, 0.4)], 6, 4.0);
        assert_eq!(clocks_of(&victims), [600, 1200]);
        let Cause::Cost { best, gap, deviation, threshold, .. } = victims[0].1 else { panic!("{victims:?}") };
        assert_eq!(best, core(900));
        approx::assert_relative_eq!(gap, 0.7, max_relative = 1e-12);
        let variance = 18.0 * 0.1 * 0.1 / 15.0;
        approx::assert_relative_eq!(deviation, (variance * (2.0 / 6.0_f64)).sqrt(), max_relative = 1e-12);
        approx::assert_relative_eq!(threshold, 4.0 * deviation, max_relative = 1e-12);
    }

    #[test]
    fn difference_that_chance_explains_is_not_acted_on() {
        let noise = [-0.8, 0.8, -0.8, 0.8, -0.8, 0.8];
        let at = |mhz, mean: f64| standing(mhz, &noise.map(|n| mean + n));
        assert_eq!(costly(&[at(1200, 0.0), at(900, -0.3), at(600, 0.4)], 6, 4.0), []);
    }

    #[test]
    fn small_difference_stays_however_well_it_is_measured() {
        let standings = [standing(1200, &[0.19; 50]), standing(900, &[0.0; 50]), standing(600, &[0.21; 50])];
        assert_eq!(clocks_of(&costly(&standings, 6, 4.0)), [600]);
    }

    #[test]
    fn clock_in_the_lower_half_takes_lower_ones_with_it_and_one_in_the_upper_half_does_not() {
        let live = [core(1200), core(600), core(500), core(400)];
        assert_eq!(cascade_below(Some(Mhz(1401)), Mhz(800)), Mhz(700));
        assert_eq!(cascade_below(None, Mhz(800)), Mhz(800));
        assert_eq!(clocks_of(&cascade(core(600), &live, Mhz(700))), [400, 500]);
        assert_eq!(cascade(core(700), &live, Mhz(700)), []);
    }

    #[test]
    fn cascade_leaves_pairs_with_a_higher_memory_clock() {
        let pair = |core, memory| Clocks { core: Mhz(core), memory: Some(Mhz(memory)) };
        let live = [pair(500, 9501), pair(500, 5001), pair(400, 5001), pair(400, 810)];
        let gone: Vec<Clocks> =
            cascade(pair(500, 5001), &live, Mhz(700)).into_iter().map(|(clocks, _)| clocks).collect();
        assert_eq!(gone, [pair(400, 810), pair(400, 5001)]);
    }

    #[test]
    fn descent_ends_after_two_clocks_in_the_lower_half_that_are_clearly_worse() {
        let at = |mhz, cost: f64| standing(mhz, &[cost; 3]);
        let tried = [at(1200, 0.0), at(800, -0.4), at(500, 0.1), at(400, 0.3)];
        let live = [core(1200), core(800), core(500), core(400), core(300), core(200)];
        let gone = descent(&tried, &live, Mhz(700));
        assert_eq!(clocks_of(&gone), [200, 300]);
        assert_eq!(gone[0].1, Cause::Descent { trigger: core(400) });
        assert_eq!(descent(&tried[..3], &live, Mhz(700)), []);
        assert_eq!(descent(&tried, &live, Mhz(450)), []);
        assert_eq!(descent(&tried[2..], &live, Mhz(700)), []);
        let mild = [at(1200, 0.0), at(800, -0.4), at(500, -0.1), at(400, 0.3)];
        assert_eq!(descent(&mild, &live, Mhz(700)), []);
        let hasty = [at(1200, 0.0), at(800, -0.4), at(500, 0.1), standing(400, &[9.0])];
        assert_eq!(descent(&hasty, &live, Mhz(700)), []);
    }

    #[test]
    fn causes_are_told_in_words() {
        let cause = Cause::Cost {
            best: core(900),
            gap: 1.5_f64.ln(),
            threshold: 1.2_f64.ln(),
            deviation: 0.05,
            multiplier: 4.0,
        };
        assert_eq!(cause.to_string(), "costs 50.0 % more than 900 MHz core, 20.0 % is too much");
    }

    proptest! {
        #[test]
        fn two_clocks_stay_and_the_best_is_one_of_them(
            costs in prop::collection::vec(prop::collection::vec(-3.0..3.0_f64, 0..8), 1..15),
            hidden in prop::collection::vec(any::<bool>(), 15),
            multiplier in 0.0..5.0_f64,
        ) {
            let all: Vec<Clocks> = (0..costs.len()).map(|k| core(100 + 10 * u32::try_from(k).unwrap())).collect();
            let live: Vec<Clocks> =
                all.iter().zip(&hidden).filter(|(_, hidden)| !**hidden).map(|(clocks, _)| *clocks).collect();
            let standings: Vec<Standing> = all.iter().zip(&costs)
                .filter_map(|(clocks, costs)| {
                    let rewards: Vec<f64> = costs.iter().map(|cost| -cost).collect();
                    Standing::of(*clocks, &rewards, costs)
                })
                .collect();
            let best = standings.iter()
                .filter(|s| live.contains(&s.clocks))
                .max_by(|a, b| a.mean_reward.total_cmp(&b.mean_reward))
                .map(|s| s.clocks);
            let mut victims = extreme(&standings, 2, -0.5);
            victims.extend(costly(&standings, 2, multiplier));
            victims.extend(cascade(all[all.len() - 1], &all, Mhz(u32::MAX)));
            let gone = spare(victims, &live, best);
            let stay = live.iter().filter(|clocks| gone.iter().all(|(other, _)| other != *clocks)).count();
            prop_assert!(stay >= live.len().min(KEPT));
            prop_assert!(gone.iter().all(|(clocks, _)| Some(*clocks) != best));
        }
    }
}
