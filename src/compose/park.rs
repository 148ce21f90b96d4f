//! From the section `park` of a configuration to the constants of the parts.

use std::time::Duration;

use super::{chosen_levers, counted};
use crate::config::{Park, ParkSource, WaitKind};
use crate::gpu::SupportedClocks;
use crate::park::gap::{GapSettings, Wait};
use crate::park::levers::Lever;
use crate::park::settings::{HotAt, Periods, Settings, Unnoticed};
use crate::units::{Joules, Seconds};

/// Time from work until the driver's own averaging shows it.
const AVERAGED: Seconds = Seconds(0.1);

/// Constants of parking GPUs without a server.
#[must_use]
pub fn settings(park: &Park) -> Settings {
    let utilization = park.sources.contains(&ParkSource::Utilization);
    let utilization = utilization.then_some(park.utilization_threshold_percent);
    let periods = periods(park);
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
        page: false,
        utilization_threshold_percent: utilization,
        wake_power_ratio: None,
        connections: park.sources.contains(&ParkSource::Connections).then_some(counted(park.count)),
        hot: park.temperature_high_c.map(|high_c| HotAt { high_c, low_c: park.temperature_low_c }),
        busy_percent: utilization.unwrap_or(0.0),
        periods: Some(periods),
        unnoticed: Unnoticed {
            by_sensors: Seconds(periods.parked.0 / 2.0 + AVERAGED.0),
            by_others: Seconds(0.0),
        },
        max_ttft_rise: 1.0,
        retries_last: true,
        dry_run: false,
    }
}

/// Periods of looks at sensors and connections.
#[must_use]
pub fn periods(park: &Park) -> Periods {
    Periods { active: millis(park.active_poll_ms), parked: millis(park.parked_poll_ms) }
}

fn millis(number: u64) -> Seconds {
    Seconds(Duration::from_millis(number).as_secs_f64())
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
