//! The clocks of a GPU's two states, by the lever of the configuration.

use crate::compose::park::locks;
use crate::compose::top;
use crate::config::Park;
use crate::gpu::{GpuInfo, SupportedClocks};
use crate::park::levers::{Lever, LeverKind};
use crate::park::wake::Running;
use crate::units::{Clocks, Target};

use super::setup::SetupError;

/// Clocks of a GPU's two states.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Levels {
    /// The simplest way to park.
    pub simplest: Lever,
    /// All ways to park, that one first.
    pub levers: Vec<Lever>,
    /// The highest clocks.
    pub top: Running,
    /// After a wake.
    pub awake: Target,
    /// Lowered by forcing a performance state, as the board locks no clocks or the configuration wants it.
    pub(crate) by_state: bool,
}

/// The clocks that the configuration means for a board.
/// Errors: [`SetupError::NoMemoryClock`] if it wants a memory clock lowered that is the board's only one.
pub(crate) fn levels(
    park: &Park,
    gpu: &GpuInfo,
    clocks: &SupportedClocks,
    by_state: bool,
) -> Result<Levels, SetupError> {
    if by_state {
        // The nearest to what the state is known to have: shown, and for the memory clock looked for.
        let memory = clocks.memory().last().filter(|_| clocks.memory().count() > 1);
        let simplest = Lever { kind: LeverKind::Pstate, clocks: Clocks { core: clocks.core_min(), memory } };
        let (levers, awake) = (vec![simplest], Target::Default);
        return Ok(Levels { simplest, levers, top: top(clocks), awake, by_state });
    }
    let levers = locks(park, clocks);
    let Some(simplest) = levers.first().copied() else {
        return Err(SetupError::NoMemoryClock { lever: park.lever.to_string(), gpu: gpu.to_string() });
    };
    let awake = park
        .wake_core_mhz
        .map_or(Target::Default, |core| Target::Lock(Clocks::core_only(clocks.nearest_core(core))));
    Ok(Levels { simplest, levers, top: top(clocks), awake, by_state })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Lever as Choice, Parking};
    use crate::gpu::MemoryLevel;
    use crate::gpu::testing::info;
    use crate::units::Mhz;

    fn clocks(memory: &[u32]) -> SupportedClocks {
        let level = |memory: &u32| MemoryLevel { memory: Mhz(*memory), core: vec![Mhz(2100), Mhz(210)] };
        SupportedClocks::new(memory.iter().map(level).collect()).unwrap()
    }

    fn gpu() -> GpuInfo {
        GpuInfo { index: 1, name: "Board".into(), ..info("GPU-1") }
    }

    fn with(lever: Choice) -> Park {
        Park { parking: Parking { lever, ..Parking::of_others() }, ..Park::default() }
    }

    fn parked(lever: Choice, memory: &[u32]) -> Vec<(u32, Option<u32>)> {
        let levels = levels(&with(lever), &gpu(), &clocks(memory), false).unwrap();
        assert_eq!(levels.levers.first(), Some(&levels.simplest));
        let number = |lever: &Lever| (lever.clocks.core.0, lever.clocks.memory.map(|memory| memory.0));
        levels.levers.iter().map(number).collect()
    }

    #[test]
    fn levers_choose_the_clocks_and_auto_has_all_that_the_board_can() {
        let (gddr, hbm) = ([8001, 810, 405], [1593]);
        assert_eq!(parked(Choice::Core, &gddr), [(210, None)]);
        // The whole range of core clocks: the driver's choice.
        assert_eq!(parked(Choice::Memory, &gddr), [(2100, Some(405))]);
        assert_eq!(parked(Choice::Both, &gddr), [(210, Some(405))]);
        assert_eq!(parked(Choice::Auto, &gddr), [(210, None), (2100, Some(405)), (210, Some(405))]);
        assert_eq!(parked(Choice::Auto, &hbm), [(210, None)]);
    }

    #[test]
    fn board_with_one_memory_clock_is_refused_where_that_is_to_be_lowered() {
        for lever in [Choice::Memory, Choice::Both] {
            let error = levels(&with(lever), &gpu(), &clocks(&[1593]), false).unwrap_err().to_string();
            assert!(error.contains("GPU 1 (Board)") && error.contains("park.lever: auto"), "{error}");
        }
    }

    #[test]
    fn configured_clocks_are_the_nearest_supported_ones() {
        let mut park = with(Choice::Both);
        (park.core_mhz, park.memory_mhz) = (Some(Mhz(300)), Some(Mhz(700)));
        park.wake_core_mhz = Some(Mhz(1900));
        let levels = levels(&park, &gpu(), &clocks(&[8001, 810, 405]), false).unwrap();
        assert_eq!(levels.simplest.clocks, Clocks { core: Mhz(210), memory: Some(Mhz(810)) });
        assert_eq!(levels.awake, Target::Lock(Clocks::core_only(Mhz(2100))));
    }
}
