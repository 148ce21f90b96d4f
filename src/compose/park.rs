//! From the section `park` of a configuration to the constants of the parts.

use super::{chosen_levers, counted};
use crate::config::{Park, ParkSource, WaitKind};
use crate::gpu::SupportedClocks;
use crate::park::gap::{GapSettings, Wait};
use crate::park::levers::Lever;
use crate::park::rule::{HotAt, Settings};
use crate::units::Joules;

/// Constants of the rule.
#[must_use]
pub fn settings(park: &Park) -> Settings {
    let utilization = park.sources.contains(&ParkSource::Utilization);
    Settings {
        gap: GapSettings {
            wait: match park.rule {
                WaitKind::Timeout => Wait::Timeout(park.idle_timeout_s),
                WaitKind::SkiRental => {
                    Wait::SkiRental { wake: park.wake_cost_j.map(Joules), unmeasured: park.quiet_s }
                }
            },
            quiet: park.quiet_s,
            at_start: park.at_start,
            wake_limit: park.wake_limit_s,
        },
        utilization_threshold_percent: utilization.then_some(park.utilization_threshold_percent),
        connections: park.sources.contains(&ParkSource::Connections).then_some(counted(park.count)),
        hot: park.temperature_high_c.map(|high_c| HotAt { high_c, low_c: park.temperature_low_c }),
    }
}

/// The locks that the configuration allows, the simplest first; none if it wants a memory clock lowered that
/// is the only one.
#[must_use]
pub fn locks(park: &Park, clocks: &SupportedClocks) -> Vec<Lever> {
    let core = park.core_mhz.map_or(clocks.core_min(), |core| clocks.nearest_core(core));
    let memory = match park.memory_mhz {
        Some(wanted) => clocks.memory().min_by_key(|memory| memory.abs_diff(wanted)),
        None => clocks.memory().last(),
    };
    chosen_levers(park.lever.locks(), Lever::of(clocks, core, memory))
}
