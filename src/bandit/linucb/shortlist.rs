//! The part of the action space that is looked at: a coarse grid over all of it, and every clock around an anchor.

use serde::{Deserialize, Serialize};

use crate::bandit::space::every;
use crate::bandit::{ActionSpace, refine};
use crate::units::{Clocks, Mhz};

/// The shortlist. The coarse grid stays beside the window of a refinement, and what was learned at clocks that leave
/// the window stays with their arms: a wrong anchor costs some rounds, not the knowledge of all other clocks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Shortlist {
    /// The clocks that the window is around.
    pub(super) anchor: Option<Clocks>,
    /// Clocks around it, highest first.
    pub(super) window: Vec<Clocks>,
    /// Round of the last refinement.
    pub(super) last_refinement: Option<u64>,
}

impl Shortlist {
    /// The arms of the space that are on it, highest first.
    pub(super) fn members(&self, space: &ActionSpace, coarse_step: Mhz) -> Vec<Clocks> {
        let coarse = every(space.cores(), Mhz(0), coarse_step);
        let is_member = |clocks: &Clocks| {
            coarse.contains(&clocks.core) || self.window.contains(clocks) || space.is_extra(*clocks)
        };
        space.arms().iter().copied().filter(is_member).collect()
    }

    /// Moves the window around an anchor, at its memory clock.
    pub(super) fn refine(&mut self, space: &ActionSpace, anchor: Clocks) {
        let near = refine::window(space.cores(), anchor.core, space.floor());
        self.window = space
            .arms()
            .iter()
            .copied()
            .filter(|clocks| {
                *clocks == anchor || (near.contains(&clocks.core) && clocks.memory == anchor.memory)
            })
            .collect();
        self.anchor = Some(anchor);
    }
}
