//! From the keys of parking to the constants of the parts, for GPUs with a server and without one.

use std::time::Duration;

use crate::config::{self, Config, ConnectionCount, Park, Parking, Source, WaitKind};
use crate::gpu::SupportedClocks;
use crate::park::gap::{GapSettings, Wait};
use crate::park::levers::{Lever, LeverKind};
use crate::park::settings::{HotAt, Periods, Settings, Unnoticed};
use crate::park::source::CountedConnections;
use crate::units::{Joules, Seconds};

/// Time from work until the driver's own averaging shows it.
const AVERAGED: Seconds = Seconds(0.1);
/// Beside a server: ten looks a second at averages over 0.1 to 1 s, and a page each 0.3 s.
const UNNOTICED: Unnoticed = Unnoticed { by_sensors: Seconds(0.15), by_others: Seconds(0.3) };
/// Above this a server's GPU has not sunk between two requests: its clocks are to be up.
const BUSY_PERCENT: f64 = 30.0;
/// So many looks find two quiet ones in a row: half a one less, for those that come early.
const TWO_LOOKS: f64 = 1.5;

/// Constants of parking GPUs with a server.
#[must_use]
pub fn of_server(config: &Config) -> Settings {
    settings(&config.idle, Some(config))
}

/// Constants of parking GPUs without a server.
#[must_use]
pub fn of_others(park: &Park) -> Settings {
    settings(park, None)
}

fn settings(keys: &Parking, server: Option<&Config>) -> Settings {
    let has = |source| keys.sources.contains(&source);
    let utilization = has(Source::Utilization).then_some(keys.utilization_threshold_percent);
    let periods = periods(keys);
    let look = server.map_or(periods.active, |server| server.control.decision_interval_s);
    let quiet = keys.quiet_s.unwrap_or(Seconds(TWO_LOOKS * look.0));
    Settings {
        gap: GapSettings {
            wait: match keys.rule {
                WaitKind::Timeout => Wait::Timeout(keys.timeout_s),
                WaitKind::SkiRental => {
                    Wait::SkiRental { wake: keys.wake_cost_j.map(Joules), unmeasured: quiet }
                }
            },
            quiet,
            at_start: keys.at_start,
            wake_limit: keys.wake_limit_s,
        },
        page: server.is_some(),
        utilization_threshold_percent: utilization,
        wake_power_ratio: keys.wake_power_ratio,
        connections: has(Source::Connections).then_some(match keys.count {
            ConnectionCount::Connections => CountedConnections::Open,
            ConnectionCount::Recent => CountedConnections::Recent,
        }),
        hot: keys.temperature_high_c.map(|high_c| HotAt { high_c, low_c: keys.temperature_low_c }),
        busy_percent: match server {
            Some(_) => keys.utilization_threshold_percent.max(BUSY_PERCENT),
            None => utilization.unwrap_or(0.0),
        },
        // A server's GPUs are read all the time.
        periods: server.is_none().then_some(periods),
        unnoticed: match server {
            Some(_) => UNNOTICED,
            None => Unnoticed {
                by_sensors: Seconds(periods.parked.0 / 2.0 + AVERAGED.0),
                by_others: Seconds(0.0),
            },
        },
        max_ttft_rise: server.map_or(1.0, |server| server.idle.max_ttft_rise_percent / 100.0),
        retries_last: server.is_none(),
        dry_run: false,
    }
}

/// Periods of looks at sensors and connections.
#[must_use]
pub fn periods(keys: &Parking) -> Periods {
    let millis = |number| Seconds(Duration::from_millis(number).as_secs_f64());
    Periods { active: millis(keys.active_poll_ms), parked: millis(keys.parked_poll_ms) }
}

/// The locks that the configuration allows, the simplest first; none if it wants a memory clock lowered that
/// is the only one.
#[must_use]
pub fn locks(keys: &Parking, clocks: &SupportedClocks) -> Vec<Lever> {
    let core = keys.core_mhz.map_or(clocks.core_min(), |core| clocks.nearest_core(core));
    let memory = match keys.memory_mhz {
        Some(wanted) => clocks.memory().min_by_key(|memory| memory.abs_diff(wanted)),
        None => clocks.memory().last(),
    };
    let mut levers = Lever::of(clocks, core, memory);
    levers.retain(|lever| match keys.lever {
        config::Lever::Auto | config::Lever::Pstate => true,
        config::Lever::Core => lever.kind == LeverKind::Core,
        config::Lever::Memory => lever.kind == LeverKind::Memory,
        config::Lever::Both => lever.kind == LeverKind::Both,
    });
    levers
}
