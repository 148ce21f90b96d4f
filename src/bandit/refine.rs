//! From coarse to fine: around which clock to look closer, and at which clocks.

use crate::stats::{mean, percentile};
use crate::units::{Clocks, Mhz};

/// Measurements that the division of a clock's costs into three classes needs.
pub(super) const CLASSIFIED: usize = 6;
/// Measurements that a class needs for its mean to count.
const IN_CLASS: usize = 2;
/// Measurements that a plain mean cost needs to count.
pub(super) const MEASURED: usize = 4;
/// How far around the anchor is looked.
pub(super) const REACH: Mhz = Mhz(150);

/// Recent log costs at one clock, oldest first.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    /// The clocks.
    pub clocks: Clocks,
    /// The costs.
    pub costs: Vec<f64>,
}

/// Class of a cost among those of its clock: up to the 33rd percentile, from the 67th on, or between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Low,
    Medium,
    High,
}

struct Classes {
    p33: f64,
    p67: f64,
}

impl Classes {
    fn of(costs: &[f64]) -> Option<Self> {
        if costs.len() < CLASSIFIED {
            return None;
        }
        Some(Self { p33: percentile(costs, 0.33)?, p67: percentile(costs, 0.67)? })
    }

    fn has(&self, class: Class, cost: f64) -> bool {
        match class {
            Class::Low => cost <= self.p33,
            Class::Medium => cost > self.p33 && cost < self.p67,
            Class::High => cost >= self.p67,
        }
    }

    fn class(&self, cost: f64) -> Class {
        [Class::Low, Class::High].into_iter().find(|class| self.has(*class, cost)).unwrap_or(Class::Medium)
    }
}

/// The anchor by plain statistics, for a learner that has not seen much: the clock that costs least in situations like
/// the present one.
///
/// The last cost at the last clock says which third of that clock's costs the situation belongs to; the anchor has the
/// lowest mean in the same third of its own. Without enough measurements, the lowest mean cost of all decides.
#[must_use]
pub(super) fn statistical_anchor(series: &[Series], last: Option<(Clocks, f64)>) -> Option<Clocks> {
    let class = last.and_then(|(clocks, cost)| {
        let costs = &series.iter().find(|series| series.clocks == clocks)?.costs;
        Some(Classes::of(costs)?.class(cost))
    });
    let in_class = class.and_then(|class| {
        cheapest(series.iter().filter_map(|series| {
            let classes = Classes::of(&series.costs)?;
            let alike: Vec<f64> =
                series.costs.iter().copied().filter(|cost| classes.has(class, *cost)).collect();
            (alike.len() >= IN_CLASS).then_some((series.clocks, mean(&alike)?))
        }))
    });
    in_class.or_else(|| {
        let measured = series.iter().filter(|series| series.costs.len() >= MEASURED);
        cheapest(measured.filter_map(|series| Some((series.clocks, mean(&series.costs)?))))
    })
}

/// A clock that the model has an opinion of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Predicted {
    /// The clocks.
    pub clocks: Clocks,
    /// Upper confidence bound of the reward in the present context.
    pub bound: f64,
    /// Recent measurements.
    pub samples: usize,
    /// Their mean log cost.
    pub mean_cost: f64,
}

/// The anchor by the model, for a learner that has seen enough: of the clocks whose bound comes near the highest one,
/// the clock that measured cheapest; without enough measurements, the one with the highest bound.
///
/// Near is 0.8 of the highest bound where that is positive, else within 0.3 of it.
#[must_use]
pub(super) fn predictive_anchor(predicted: &[Predicted]) -> Option<Clocks> {
    let top = predicted.iter().map(|p| p.bound).max_by(f64::total_cmp)?;
    let near = if top > 0.0 { 0.8 * top } else { top - 0.3 };
    let pool = predicted.iter().filter(|p| p.bound >= near);
    cheapest(pool.filter(|p| p.samples >= MEASURED).map(|p| (p.clocks, p.mean_cost))).or_else(|| {
        // The first of equals: max_by would take the last.
        predicted.iter().find(|p| p.bound >= top).map(|p| p.clocks)
    })
}

/// The core clocks of a descending list within [`REACH`] of the anchor and not below the floor, highest first.
#[must_use]
pub(super) fn window(cores: &[Mhz], anchor: Mhz, floor: Option<Mhz>) -> Vec<Mhz> {
    let near = |clock: &Mhz| clock.abs_diff(anchor) <= REACH && floor.is_none_or(|floor| *clock >= floor);
    cores.iter().copied().filter(near).collect()
}

/// Lowest value; the first of equals.
fn cheapest(costs: impl Iterator<Item = (Clocks, f64)>) -> Option<Clocks> {
    costs.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(clocks, _)| clocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(mhz: u32) -> Clocks {
        Clocks::core_only(Mhz(mhz))
    }

    fn series(mhz: u32, costs: &[f64]) -> Series {
        Series { clocks: core(mhz), costs: costs.to_vec() }
    }

    #[test]
    fn anchor_is_the_cheapest_clock_in_situations_like_the_last_one() {
        // 900 is best in easy situations, 1200 in hard ones.
        let both =
            [series(1200, &[0.0, 0.0, 0.1, 0.1, 0.2, 0.2]), series(900, &[-0.5, -0.5, 0.1, 0.1, 0.9, 0.9])];
        assert_eq!(statistical_anchor(&both, Some((core(900), -0.5))), Some(core(900)));
        assert_eq!(statistical_anchor(&both, Some((core(900), 0.9))), Some(core(1200)));
        assert_eq!(statistical_anchor(&both, Some((core(1200), 0.2))), Some(core(1200)));
    }

    #[test]
    fn few_measurements_leave_the_anchor_to_the_plain_mean_or_to_nobody() {
        let few = [series(1200, &[0.1; 5]), series(900, &[0.0; 4]), series(600, &[-9.0; 3])];
        assert_eq!(statistical_anchor(&few, Some((core(1200), 0.1))), Some(core(900)));
        assert_eq!(statistical_anchor(&few, None), Some(core(900)));
        assert_eq!(statistical_anchor(&few[2..], None), None);
    }

    #[test]
    fn model_anchor_is_the_cheapest_of_the_clocks_near_the_highest_bound() {
        let at = |mhz, bound, samples, mean_cost| Predicted { clocks: core(mhz), bound, samples, mean_cost };
        let positive = [at(1200, 1.0, 9, 0.0), at(900, 0.81, 9, -0.1), at(600, 0.79, 9, -0.5)];
        assert_eq!(predictive_anchor(&positive), Some(core(900)));
        let negative = [at(1200, -0.1, 9, 0.0), at(900, -0.39, 9, -0.1), at(600, -0.41, 9, -0.5)];
        assert_eq!(predictive_anchor(&negative), Some(core(900)));
        let unmeasured = [at(1200, 1.0, 3, 0.0), at(900, 1.0, 0, 0.0)];
        assert_eq!(predictive_anchor(&unmeasured), Some(core(1200)));
        assert_eq!(predictive_anchor(&[]), None);
    }

    #[test]
    fn window_has_the_anchor_and_its_neighbours_within_reach_above_the_floor() {
        let cores: Vec<Mhz> = (14..=94).rev().map(|k| Mhz(15 * k)).collect();
        let fine = window(&cores, Mhz(900), None);
        assert_eq!((fine[0], fine[fine.len() - 1], fine.len()), (Mhz(1050), Mhz(750), 21));
        assert_eq!(window(&cores, Mhz(900), Some(Mhz(890))).last(), Some(&Mhz(900)));
        assert_eq!(window(&cores, Mhz(1410), None).len(), 11);
    }
}
