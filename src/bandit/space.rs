//! The clocks a policy may choose from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::gpu::SupportedClocks;
use crate::units::{Clocks, Mhz, Seconds, Target, Time};

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
/// Two things take arms out: a clock the card does not follow ([`ActionSpace::fail`], forgiven after a
/// while), and the floor that a broken latency limit puts under the core clock ([`ActionSpace::set_floor`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionSpace {
    /// Descending, without repetition.
    arms: Vec<Clocks>,
    /// Core clocks of the arms that the settings made, descending.
    cores: Vec<Mhz>,
    /// All clocks that may ever be asked for: on the board's list and not below the configured minimum, descending.
    lockable: Vec<Clocks>,
    /// Arms that [`ActionSpace::add`] made.
    extra: Vec<Clocks>,
    failed: BTreeMap<Clocks, Failure>,
    floor: Option<Mhz>,
    retry_after: Seconds,
}

impl ActionSpace {
    /// Arms every `step` from the highest supported core clock down to `min_core`, that one included; each with every
    /// memory clock of the settings that the card supports beside it.
    ///
    /// Never empty: where `min_core` is above all clocks, the highest one remains; where the card supports no pair, the
    /// core clocks alone remain.
    #[must_use]
    pub fn new(supported: &SupportedClocks, settings: &SpaceSettings) -> Self {
        let cores = every(supported.core(), settings.min_core, settings.step);
        let arms = combined(&cores, supported, &settings.memory);
        let lockable =
            combined(&every(supported.core(), settings.min_core, Mhz(0)), supported, &settings.memory);
        Self {
            arms,
            cores,
            lockable,
            extra: Vec::new(),
            failed: BTreeMap::new(),
            floor: None,
            retry_after: settings.retry_after,
        }
    }

    /// Every arm, usable or not; highest core clock first, and of these the highest memory clock.
    #[must_use]
    pub fn arms(&self) -> &[Clocks] {
        &self.arms
    }

    /// The core clocks that the settings ask for, highest first. What [`ActionSpace::add`] made is not among them.
    #[must_use]
    pub fn cores(&self) -> &[Mhz] {
        &self.cores
    }

    /// The arms that may be chosen now, highest core clock first.
    pub fn allowed(&self, now: Time) -> impl Iterator<Item = Clocks> + '_ {
        self.arms.iter().copied().filter(move |clocks| self.is_open(*clocks, now))
    }

    /// May these clocks be chosen now?
    #[must_use]
    pub fn is_allowed(&self, clocks: Clocks, now: Time) -> bool {
        self.is_open(clocks, now) && self.has(clocks)
    }

    fn is_open(&self, clocks: Clocks, now: Time) -> bool {
        self.floor.is_none_or(|floor| clocks.core >= floor)
            && self.failed.get(&clocks).is_none_or(|failure| now >= failure.retry_at)
    }

    fn has(&self, clocks: Clocks) -> bool {
        self.arms.binary_search_by(|arm| clocks.cmp(arm)).is_ok()
    }

    /// What to run at when a policy is left without a choice: the highest clocks that may be chosen, else the driver's
    /// default, which no limit and no failure can take away.
    #[must_use]
    pub fn emergency(&self, now: Time) -> Target {
        self.allowed(now).next().map_or(Target::Default, Target::Lock)
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

    /// The highest clocks of all.
    #[must_use]
    pub fn highest(&self) -> Option<Clocks> {
        self.lockable.first().copied()
    }

    /// May a policy ask for these clocks at all, be they an arm, failed or neither?
    #[must_use]
    pub fn is_lockable(&self, clocks: Clocks) -> bool {
        self.lockable.binary_search_by(|known| clocks.cmp(known)).is_ok()
    }

    /// Makes a clock an arm that was none: the card's own answer to a request it did not follow. What a sensor reads may be
    /// anything: a clock that is not on the board's list, or below the minimum, is not taken.
    pub fn add(&mut self, clocks: Clocks) {
        if !self.is_lockable(clocks) {
            return;
        }
        if let Err(at) = self.arms.binary_search_by(|arm| clocks.cmp(arm)) {
            self.arms.insert(at, clocks);
        }
        if !self.extra.contains(&clocks) {
            self.extra.push(clocks);
        }
    }

    /// Did [`ActionSpace::add`] ask for this arm? A policy that looks at some of the arms only must not pass it over.
    #[must_use]
    pub fn is_extra(&self, clocks: Clocks) -> bool {
        self.extra.contains(&clocks)
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

/// Each core clock with every memory clock that the card supports beside it, descending; alone where it supports none.
fn combined(cores: &[Mhz], supported: &SupportedClocks, memory: &[Mhz]) -> Vec<Clocks> {
    let pairs = cores
        .iter()
        .flat_map(|&core| memory.iter().map(move |&memory| Clocks { core, memory: Some(memory) }));
    let mut arms: Vec<Clocks> = pairs.filter(|clocks| supports(supported, *clocks)).collect();
    if arms.is_empty() {
        arms = cores.iter().copied().map(Clocks::core_only).collect();
    }
    arms.sort_unstable_by(|a, b| b.cmp(a));
    arms.dedup();
    arms
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
    fn card_without_any_of_the_pairs_keeps_its_core_clocks() {
        let clocks = supported([600, 300].into_iter(), &[810]);
        let space = ActionSpace::new(&clocks, &settings(210, 90, &[9501]));
        assert_eq!(space.arms(), [600, 300].map(|core| Clocks::core_only(Mhz(core))));
    }

    #[test]
    fn pairs_are_nested_in_core_clocks_whatever_the_order_of_the_settings() {
        let clocks = supported([600, 300].into_iter(), &[9501, 810]);
        let space = ActionSpace::new(&clocks, &settings(210, 90, &[810, 9501, 810]));
        let pairs: Vec<_> = space.arms().iter().map(|arm| (arm.core.0, arm.memory.unwrap().0)).collect();
        assert_eq!(pairs, [(600, 9501), (600, 810), (300, 9501), (300, 810)]);
        assert_eq!(space.cores(), [600, 300].map(Mhz));
    }

    #[test]
    fn clock_the_card_chose_itself_becomes_an_arm_in_its_place_and_once() {
        let clocks = supported([600, 450, 300].into_iter(), &[810]);
        let mut space = ActionSpace::new(&clocks, &settings(210, 300, &[]));
        let own = Clocks::core_only(Mhz(450));
        space.add(own);
        space.add(own);
        assert_eq!(space.arms(), [600, 450, 300].map(|core| Clocks::core_only(Mhz(core))));
        assert_eq!(space.cores(), [600, 300].map(Mhz));
        assert!(space.is_extra(own) && space.is_allowed(own, Time(0.0)));
    }

    #[test]
    fn clock_off_the_list_or_below_the_minimum_never_becomes_an_arm() {
        let clocks = supported([600, 450, 300, 210].into_iter(), &[810]);
        let mut space = ActionSpace::new(&clocks, &settings(300, 300, &[]));
        for read in [0, 150, 210, 449, 615, u32::MAX] {
            space.add(Clocks::core_only(Mhz(read)));
        }
        space.add(Clocks { core: Mhz(450), memory: Some(Mhz(810)) });
        assert_eq!(space.arms(), [600, 300].map(|core| Clocks::core_only(Mhz(core))));
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
        fn allowed_are_exactly_the_arms_that_nothing_takes_out(
            floor in prop::option::of(0u32..900),
            failed in prop::collection::vec((0usize..16, 0.0..1000.0_f64), 0..16),
            now in 0.0..2000.0_f64,
        ) {
            let (cores, memory) = ([800, 600, 400, 200], [9501, 5001, 810, 405]);
            let clocks = supported(cores.into_iter(), &memory);
            let mut space = ActionSpace::new(&clocks, &settings(0, 1, &memory));
            prop_assert_eq!(space.arms().len(), 16);
            let arms = space.arms().to_vec();
            space.set_floor(floor.map(Mhz));
            let mut retry: BTreeMap<Clocks, f64> = BTreeMap::new();
            for (arm, at) in &failed {
                space.fail(arms[*arm], "fails".into(), Time(*at));
                retry.insert(arms[*arm], at + 600.0);
            }
            let expected: Vec<Clocks> = arms.iter().copied().filter(|arm| {
                floor.is_none_or(|floor| arm.core.0 >= floor)
                    && retry.get(arm).is_none_or(|at| now >= *at)
            }).collect();
            let allowed: Vec<Clocks> = space.allowed(Time(now)).collect();
            prop_assert_eq!(&allowed, &expected);
            prop_assert!(arms.iter().all(|arm| space.is_allowed(*arm, Time(now)) == expected.contains(arm)));
            let emergency = expected.first().map_or(Target::Default, |arm| Target::Lock(*arm));
            prop_assert_eq!(space.emergency(Time(now)), emergency);
        }

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
