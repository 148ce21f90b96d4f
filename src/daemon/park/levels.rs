//! The clocks of a GPU's two states, by the lever of the configuration.

use crate::bandit::Target;
use crate::config::{Lever, Park};
use crate::gpu::SupportedClocks;
use crate::park::wake::Running;
use crate::units::Clocks;

/// Clocks of a GPU's two states.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Levels {
    /// Parked. A core clock of `top` leaves it to the driver.
    pub parked: Clocks,
    /// The highest there are.
    pub top: Clocks,
    /// After a wake.
    pub awake: Target,
    /// If the memory clock cannot be locked, do without.
    pub memory_is_optional: bool,
}

impl Levels {
    /// The parked clocks that can be told from others.
    pub(super) fn watched(&self) -> Running {
        let core = (self.parked.core != self.top.core).then_some(self.parked.core);
        Running { core, memory: self.parked.memory }
    }
}

/// The clocks that a lever means for a board.
#[must_use]
pub fn levels(park: &Park, clocks: &SupportedClocks) -> Levels {
    let top_memory = clocks.memory().next();
    let top = Clocks { core: clocks.core_max(), memory: top_memory };
    let low_core = park.core_mhz.map_or(clocks.core_min(), |core| clocks.nearest_core(core));
    let low_memory = match park.memory_mhz {
        Some(wanted) => clocks.memory().min_by_key(|memory| memory.abs_diff(wanted)),
        None => clocks.memory().last(),
    };
    let several = clocks.memory().count() > 1;
    let parked = match park.lever {
        Lever::Core => Clocks::core_only(low_core),
        Lever::Memory => Clocks { core: top.core, memory: low_memory },
        Lever::Both => Clocks { core: low_core, memory: low_memory },
        Lever::Auto => Clocks { core: low_core, memory: low_memory.filter(|_| several) },
    };
    let awake = park
        .wake_core_mhz
        .map_or(Target::Default, |core| Target::Lock(Clocks::core_only(clocks.nearest_core(core))));
    Levels { parked, top, awake, memory_is_optional: park.lever == Lever::Auto }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::MemoryLevel;
    use crate::units::Mhz;

    fn clocks(memory: &[u32]) -> SupportedClocks {
        let level = |memory: &u32| MemoryLevel { memory: Mhz(*memory), core: vec![Mhz(2100), Mhz(210)] };
        SupportedClocks::new(memory.iter().map(level).collect()).unwrap()
    }

    fn parked(lever: Lever, memory: &[u32]) -> (u32, Option<u32>) {
        let levels = levels(&Park { lever, ..Park::default() }, &clocks(memory));
        (levels.parked.core.0, levels.parked.memory.map(|memory| memory.0))
    }

    #[test]
    fn levers_choose_the_clocks_and_auto_spares_a_board_with_one_memory_clock() {
        let (gddr, hbm) = ([8001, 810, 405], [1593]);
        assert_eq!(parked(Lever::Core, &gddr), (210, None));
        // The whole range of core clocks: the driver's choice.
        assert_eq!(parked(Lever::Memory, &gddr), (2100, Some(405)));
        assert_eq!(parked(Lever::Both, &gddr), (210, Some(405)));
        assert_eq!(parked(Lever::Auto, &gddr), (210, Some(405)));
        assert_eq!(parked(Lever::Auto, &hbm), (210, None));
    }

    #[test]
    fn configured_clocks_are_the_nearest_supported_ones() {
        let park = Park {
            core_mhz: Some(Mhz(300)),
            memory_mhz: Some(Mhz(700)),
            wake_core_mhz: Some(Mhz(1900)),
            ..Park::default()
        };
        let levels = levels(&park, &clocks(&[8001, 810, 405]));
        assert_eq!(levels.parked, Clocks { core: Mhz(210), memory: Some(Mhz(810)) });
        assert_eq!(levels.awake, Target::Lock(Clocks::core_only(Mhz(2100))));
    }
}
