//! The clocks a policy may choose from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::gpu::SupportedClocks;
use crate::units::{Clocks, Mhz, Seconds, Time};

/// How to make arms out of supported clocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpaceSettings {
    /// Core clocks below this are never asked for.
    pub min_core: Mhz,
    /// Distance between neighbouring core clocks.
    pub step: Mhz,
    /// Memory clocks to combine with; empty leaves the memory clock to the driver.
    pub memory: Vec<Mhz>,
    /// How long a clock that failed stays out.
    pub retry_after: Seconds,
}

/// Why a clock is out of the action space for the time being.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What was seen.
    pub why: String,
    /// From when on it may be tried again.
    pub retry_at: Time,
}

/// The arms, highest core clock first, and what of them is usable now.
///
/// Two things take arms out: a clock the card does not follow ([`ActionSpace::fail`], forgiven after a while), and the
/// floor that a broken latency limit puts under the core clock ([`ActionSpace::set_floor`]).
#[derive(Debug, Clone, PartialEq)]
pub struct ActionSpace {
    arms: Vec<Clocks>,
    failed: BTreeMap<Clocks, Failure>,
    floor: Option<Mhz>,
    retry_after: Seconds,
}

impl ActionSpace {
    /// Arms every `step` from the highest supported core clock down to `min_core`, that one included; each with every
    /// memory clock of the settings that the card supports.
    ///
    /// Never empty: where `min_core` is above all clocks, the highest one remains.
    #[must_use]
    pub fn new(supported: &SupportedClocks, settings: &SpaceSettings) -> Self {
        let cores = every(supported.core(), settings.min_core, settings.step);
        let memory: Vec<Option<Mhz>> = if settings.memory.is_empty() {
            vec![None]
        } else {
            settings.memory.iter().copied().map(Some).collect()
        };
        let arms = cores
            .iter()
            .flat_map(|&core| memory.iter().map(move |&memory| Clocks { core, memory }))
            .filter(|clocks| supports(supported, *clocks))
            .collect();
        Self { arms, failed: BTreeMap::new(), floor: None, retry_after: settings.retry_after }
    }

    /// Every arm, usable or not; highest core clock first.
    #[must_use]
    pub fn arms(&self) -> &[Clocks] {
        &self.arms
    }

    /// The arms that may be chosen now, highest core clock first.
    pub fn allowed(&self, now: Time) -> impl Iterator<Item = Clocks> + '_ {
        self.arms.iter().copied().filter(move |clocks| self.is_allowed(*clocks, now))
    }

    /// May these clocks be chosen now?
    #[must_use]
    pub fn is_allowed(&self, clocks: Clocks, now: Time) -> bool {
        self.floor.is_none_or(|floor| clocks.core >= floor)
            && self.failed.get(&clocks).is_none_or(|failure| now >= failure.retry_at)
            && self.arms.contains(&clocks)
    }

    /// Takes clocks out for a while; returns when they may be tried again.
    pub fn fail(&mut self, clocks: Clocks, why: String, now: Time) -> Time {
        let retry_at = now + self.retry_after;
        self.failed.insert(clocks, Failure { why, retry_at });
        retry_at
    }

    /// Clocks that are out, with the reason.
    #[must_use]
    pub fn failed(&self) -> &BTreeMap<Clocks, Failure> {
        &self.failed
    }

    /// Makes a clock an arm that was none: the card's own answer to a request it did not follow.
    pub fn add(&mut self, clocks: Clocks) {
        if !self.arms.contains(&clocks) {
            let at = self.arms.partition_point(|arm| *arm > clocks);
            self.arms.insert(at, clocks);
        }
    }

    /// The lowest core clock that may be chosen; `None` lifts the restriction.
    pub fn set_floor(&mut self, floor: Option<Mhz>) {
        self.floor = floor;
    }

    /// The floor in force.
    #[must_use]
    pub fn floor(&self) -> Option<Mhz> {
        self.floor
    }
}

fn supports(supported: &SupportedClocks, clocks: Clocks) -> bool {
    match clocks.memory {
        None => true,
        Some(memory) => {
            supported.levels().iter().any(|level| level.memory == memory && level.core.contains(&clocks.core))
        }
    }
}

/// Clocks of a descending list at least `step` apart, from the first one down to `min`; the lowest one that is not
/// below `min` is always among them.
#[must_use]
pub fn every(descending: &[Mhz], min: Mhz, step: Mhz) -> Vec<Mhz> {
    let mut chosen: Vec<Mhz> = Vec::new();
    let usable = descending.iter().copied().filter(|clock| *clock >= min);
    let mut lowest = None;
    for clock in usable {
        lowest = Some(clock);
        if chosen.last().is_none_or(|last| last.0 - clock.0 >= step.0) {
            chosen.push(clock);
        }
    }
    match lowest {
        Some(lowest) if chosen.last() != Some(&lowest) => chosen.push(lowest),
        Some(_) => {}
        None => chosen.extend(descending.first()),
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::MemoryLevel;
    use proptest::prelude::*;

    fn supported(core: impl Iterator<Item = u32>, memory: &[u32]) -> SupportedClocks {
        let core: Vec<Mhz> = core.map(Mhz).collect();
        let levels =
            memory.iter().map(|memory| MemoryLevel { memory: Mhz(*memory), core: core.clone() }).collect();
        SupportedClocks::new(levels).unwrap()
    }

    fn settings(min: u32, step: u32, memory: &[u32]) -> SpaceSettings {
        SpaceSettings {
            min_core: Mhz(min),
            step: Mhz(step),
            memory: memory.iter().copied().map(Mhz).collect(),
            retry_after: Seconds(600.0),
        }
    }

    #[test]
    fn a100_in_steps_of_90_has_both_ends() {
        let clocks = supported((210..=1410).step_by(15), &[1593]);
        let space = ActionSpace::new(&clocks, &settings(210, 90, &[]));
        let cores: Vec<u32> = space.arms().iter().map(|arm| arm.core.0).collect();
        let mut expected: Vec<u32> = (0..14).map(|k| 1410 - 90 * k).collect();
        expected.push(210);
        assert_eq!(cores, expected);
    }

    #[test]
    fn memory_clocks_the_card_lacks_make_no_arms() {
        let clocks = supported([600, 300].into_iter(), &[9501, 810]);
        let space = ActionSpace::new(&clocks, &settings(210, 90, &[9501, 5001]));
        assert_eq!(space.arms(), [600, 300].map(|core| Clocks { core: Mhz(core), memory: Some(Mhz(9501)) }));
    }

    #[test]
    fn failed_clock_comes_back_after_its_time() {
        let clocks = supported([600, 300].into_iter(), &[810]);
        let mut space = ActionSpace::new(&clocks, &settings(210, 90, &[]));
        let arm = Clocks::core_only(Mhz(300));
        assert_eq!(space.fail(arm, "runs at 600 MHz".into(), Time(5.0)), Time(605.0));
        assert!(!space.is_allowed(arm, Time(604.0)));
        assert!(space.is_allowed(arm, Time(605.0)));
    }

    #[test]
    fn minimum_above_every_clock_leaves_the_highest() {
        assert_eq!(every(&[Mhz(600), Mhz(300)], Mhz(900), Mhz(15)), [Mhz(600)]);
    }

    proptest! {
        #[test]
        fn arms_are_supported_spaced_and_above_the_minimum(
            raw in prop::collection::btree_set(100u32..3000, 1..120), min in 0u32..2000, step in 1u32..300,
        ) {
            let descending: Vec<Mhz> = raw.iter().rev().copied().map(Mhz).collect();
            let chosen = every(&descending, Mhz(min), Mhz(step));
            prop_assert!(!chosen.is_empty());
            prop_assert!(chosen.iter().all(|clock| descending.contains(clock)));
            prop_assert_eq!(chosen[0], descending[0]);
            let last = chosen.len() - 1;
            for pair in chosen[..last].windows(2) {
                prop_assert!(pair[0].0 - pair[1].0 >= step);
            }
            if descending[0].0 >= min {
                prop_assert!(chosen.iter().all(|clock| clock.0 >= min));
                let lowest = descending.iter().rev().find(|clock| clock.0 >= min).copied();
                prop_assert_eq!(chosen.last().copied(), lowest);
            }
        }
    }
}
