//! Memory clocks: which to combine with core clocks, and what a broken latency limit says about the pairs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::gpu::SupportedClocks;
use crate::units::{Clocks, Mhz, Seconds, Time};

/// Memory clocks tried at most, where the configuration names none.
const AT_MOST: usize = 8;
/// A limit that held this long is tried again a little lower, as the core floor is.
const RELAX_EVERY: Seconds = Seconds(60.0);

/// The memory clocks to choose from, highest first: those of `manual` if it names any, else the card's, at most eight
/// of them evenly spread over its list with both ends. Clocks that the card lacks are left out.
#[must_use]
pub fn memory_clocks(supported: &SupportedClocks, manual: &[Mhz]) -> Vec<Mhz> {
    let card: Vec<Mhz> = supported.memory().collect();
    if !manual.is_empty() {
        return card.into_iter().filter(|clock| manual.contains(clock)).collect();
    }
    if card.len() <= AT_MOST {
        return card;
    }
    // Index k of n spread over 0..len: k (len - 1) / (n - 1), rounded.
    let (steps, last) = (AT_MOST - 1, card.len() - 1);
    (0..AT_MOST).map(|k| card[(k * last + steps / 2) / steps]).collect()
}

/// The pairs that broke a latency limit. A pair that is no higher in both clocks would break it too, and is out.
///
/// So a violation at the highest memory clock takes out its core clock and all below, one at a lower memory clock only
/// asks for more memory clock at its core clock and below. Core clocks above the violating one keep all their pairs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PairLimits {
    /// Highest core clock that broke a limit, by memory clock; no entry is implied by another.
    broken: BTreeMap<Mhz, Mhz>,
    /// Next moment at which the boundary may sink.
    #[serde(default, with = "crate::transient", skip_serializing_if = "crate::transient::left_out")]
    relax_at: Option<Time>,
}

impl PairLimits {
    /// May this pair be chosen? Clocks without a memory clock always may: the floor under the core clock is theirs.
    #[must_use]
    pub fn allows(&self, clocks: Clocks) -> bool {
        clocks.memory.is_none_or(|memory| self.broken.range(memory..).all(|(_, core)| clocks.core > *core))
    }

    /// A limit broke while this pair ran. Without a memory clock nothing is learned about pairs.
    pub fn violated(&mut self, clocks: Clocks, now: Time) {
        self.relax_at = Some(now + RELAX_EVERY);
        let Some(memory) = clocks.memory else { return };
        if self.allows(clocks) {
            self.broken.retain(|other, core| *other > memory || *core > clocks.core);
            self.broken.insert(memory, clocks.core);
        }
    }

    /// Time passes without a violation: once a minute the boundary sinks by `step`; what has sunk below `lowest` is
    /// forgotten.
    pub fn relax(&mut self, step: Mhz, lowest: Mhz, now: Time) {
        if self.broken.is_empty() || now < *self.relax_at.get_or_insert(now + RELAX_EVERY) {
            return;
        }
        self.relax_at = Some(now + RELAX_EVERY);
        self.broken.retain(|_, core| {
            core.0 = core.0.saturating_sub(step.0);
            *core >= lowest
        });
    }

    /// Does it forbid anything?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.broken.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::MemoryLevel;
    use proptest::prelude::*;

    fn card(memory: impl IntoIterator<Item = u32>) -> SupportedClocks {
        let levels =
            memory.into_iter().map(|memory| MemoryLevel { memory: Mhz(memory), core: vec![Mhz(1000)] });
        SupportedClocks::new(levels.collect()).unwrap()
    }

    fn pair(core: u32, memory: u32) -> Clocks {
        Clocks { core: Mhz(core), memory: Some(Mhz(memory)) }
    }

    #[test]
    fn long_list_of_memory_clocks_is_thinned_to_eight_with_both_ends() {
        let clocks = memory_clocks(&card((1..=15).map(|k| 100 * k)), &[]);
        assert_eq!(clocks, [1500, 1300, 1100, 900, 700, 500, 300, 100].map(Mhz));
    }

    #[test]
    fn named_memory_clocks_are_taken_where_the_card_has_them() {
        let clocks = memory_clocks(&card([9501, 5001, 810, 405]), &[Mhz(810), Mhz(7001), Mhz(9501)]);
        assert_eq!(clocks, [9501, 810].map(Mhz));
    }

    #[test]
    fn violation_at_the_highest_memory_clock_takes_out_its_core_clock_and_all_below() {
        let mut limits = PairLimits::default();
        limits.violated(pair(900, 9501), Time(0.0));
        for memory in [9501, 5001, 810] {
            assert!(!limits.allows(pair(900, memory)) && !limits.allows(pair(600, memory)));
            assert!(limits.allows(pair(990, memory)));
        }
    }

    #[test]
    fn violation_at_a_lower_memory_clock_asks_for_a_higher_one_at_its_core_clock_and_below() {
        let mut limits = PairLimits::default();
        limits.violated(pair(900, 5001), Time(0.0));
        assert!(limits.allows(pair(900, 9501)) && limits.allows(pair(600, 9501)));
        assert!(!limits.allows(pair(900, 5001)) && !limits.allows(pair(600, 810)));
        assert!(limits.allows(pair(990, 810)));
        assert!(limits.allows(Clocks::core_only(Mhz(600))));
    }

    #[test]
    fn boundary_sinks_step_by_step_and_is_gone_at_the_bottom() {
        let mut limits = PairLimits::default();
        limits.violated(pair(390, 5001), Time(0.0));
        limits.relax(Mhz(90), Mhz(210), Time(59.0));
        assert!(!limits.allows(pair(390, 5001)));
        limits.relax(Mhz(90), Mhz(210), Time(60.0));
        assert!(limits.allows(pair(390, 5001)) && !limits.allows(pair(300, 5001)));
        limits.relax(Mhz(90), Mhz(210), Time(120.0));
        limits.relax(Mhz(90), Mhz(210), Time(180.0));
        assert!(limits.is_empty());
    }

    proptest! {
        #[test]
        fn pair_is_out_exactly_if_a_violating_one_was_at_least_as_high_in_both_clocks(
            broken in prop::collection::vec((1u32..20, 1u32..6), 0..12), core in 1u32..20, memory in 1u32..6,
        ) {
            let mut limits = PairLimits::default();
            for (core, memory) in &broken {
                limits.violated(pair(*core, *memory), Time(0.0));
            }
            let implied = broken.iter().any(|(c, m)| *c >= core && *m >= memory);
            prop_assert_eq!(limits.allows(pair(core, memory)), !implied);
            prop_assert!(limits.broken.len() <= 5);
        }

        #[test]
        fn thinned_list_is_descending_of_the_card_and_has_its_ends(
            clocks in prop::collection::btree_set(1u32..12_000, 1..40),
        ) {
            let chosen = memory_clocks(&card(clocks.iter().copied()), &[]);
            prop_assert!(chosen.is_sorted_by(|a, b| a > b));
            prop_assert!(chosen.len() == clocks.len().min(AT_MOST));
            prop_assert!(chosen.iter().all(|clock| clocks.contains(&clock.0)));
            prop_assert_eq!(Some(&chosen[0].0), clocks.last());
            prop_assert_eq!(Some(&chosen[chosen.len() - 1].0), clocks.first());
        }
    }
}
