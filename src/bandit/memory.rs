//! Memory clocks: which to combine with core clocks.

use crate::gpu::SupportedClocks;
use crate::units::Mhz;

/// Memory clocks tried at most, where the configuration names none.
const AT_MOST: usize = 8;

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

    proptest! {
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
