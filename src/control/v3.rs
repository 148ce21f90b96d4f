//! The controller as steps of version 3 hold it, and what it is today. Since then the fields have another
//! order, and parking another form.

use serde::{Deserialize, Deserializer};

use super::clocks::{Command, GroupClocks, Trouble};
use super::learned::v1::InRun;
use super::load::{LoadEstimate, Serving};
use super::readings::Readings;
use super::servers::Servers;
use super::stale::GaugeTrust;
use super::step;
use super::{Connections, Mode, ParkSettings};
use crate::bandit::ActionSpace;
use crate::features::Ema;
use crate::holdout::{Experiment, HoldoutSettings};
use crate::metrics::health::Health;
use crate::metrics::{Histogram, Snapshot};
use crate::park::parker::v3::{IdleSettings, Parking};
use crate::reward::slo::{LatencyWatch, Limits};
use crate::reward::{Objective, RewardForm};
use crate::units::{Mhz, Seconds, Time};

/// The version of steps whose snapshot this is.
pub(crate) const VERSION: u32 = 3;

/// Constants of the control loop.
#[derive(Deserialize)]
#[serde(remote = "super::Settings")]
struct Settings {
    outage_after: Seconds,
    settle: Seconds,
    verify_after: Seconds,
    clock_tolerance: Mhz,
    objective: Objective,
    reward: RewardForm,
    limits: Option<Limits>,
    #[serde(deserialize_with = "of_idle")]
    idle: Option<ParkSettings>,
    #[serde(deserialize_with = "of_holdout")]
    holdout: Option<HoldoutSettings>,
    data_collection: bool,
    dry_run: bool,
    ema_alpha: f64,
    floor_step: Mhz,
    recover_arms_below: Option<usize>,
}

fn of_idle<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ParkSettings>, D::Error> {
    Ok(Option::<IdleSettings>::deserialize(from)?.map(Into::into))
}

/// Constants of the holdout.
#[derive(Deserialize)]
struct Holdout {
    share: f64,
    block: Seconds,
    settle: Seconds,
    seed: u64,
}

/// The experiment began with the run, and its share never changed.
fn of_holdout<'de, D: Deserializer<'de>>(from: D) -> Result<Option<HoldoutSettings>, D::Error> {
    Ok(Option::<Holdout>::deserialize(from)?.map(|Holdout { share, block, settle, seed }| HoldoutSettings {
        share,
        block,
        settle,
        seed,
        width: None,
        begin_after: Seconds(0.0),
    }))
}

/// The control loop's state.
#[derive(Debug, Deserialize)]
pub(crate) struct Controller {
    #[serde(with = "Settings")]
    settings: super::Settings,
    learned: InRun,
    space: ActionSpace,
    health: Health,
    previous: Option<Snapshot>,
    readings: Readings,
    command: Command,
    idle: Parking,
    connections: Option<Connections>,
    _latencies: Vec<(Time, Option<Histogram>, Option<Histogram>)>,
    concurrency: Ema,
    load: LoadEstimate,
    limit_broken: bool,
    trouble: Trouble,
    mode: Mode,
    paused: bool,
    gauges: GaugeTrust,
    started: Time,
}

impl From<Controller> for step::Controller {
    fn from(v3: Controller) -> Self {
        let holdout = v3.settings.holdout.as_ref();
        let experiment = holdout.map(|holdout| Experiment::begun(holdout, v3.started)).unwrap_or_default();
        Self {
            idle: v3.idle.with(v3.settings.idle, v3.started),
            servers: Servers::alone(v3.settings.limits, LatencyWatch::default(), v3.limit_broken),
            settings: v3.settings,
            learned: v3.learned.into(),
            space: v3.space,
            health: v3.health,
            previous: v3.previous,
            readings: v3.readings,
            clocks: GroupClocks::of_parts(v3.command, v3.trouble),
            connections: v3.connections,
            working: 0,
            serving: Serving::new(v3.concurrency, v3.load, v3.gauges),
            mode: v3.mode,
            paused: v3.paused,
            experiment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::steps::{pack, unpack};

    #[derive(Deserialize)]
    struct Today {
        #[serde(deserialize_with = "of_holdout")]
        holdout: Option<HoldoutSettings>,
    }

    #[test]
    fn an_experiment_of_version_3_keeps_its_share_and_its_begin() {
        let today: Today = unpack(&pack(&Some((0.02, 30.0, 10.0, 7_u64))).unwrap()).unwrap();
        let holdout = today.holdout.unwrap();
        let expected = HoldoutSettings {
            share: 0.02,
            block: Seconds(30.0),
            settle: Seconds(10.0),
            seed: 7,
            width: None,
            begin_after: Seconds(0.0),
        };
        assert_eq!(holdout, expected);
        let mut experiment = Experiment::begun(&holdout, Time(100.0));
        experiment.advance(&holdout, Time(100.0 + 20.5 * 1500.0), true, Seconds(1.0));
        let cycle = experiment.cycle().unwrap();
        assert_eq!((cycle.number, cycle.slots, cycle.start), (20, 50, Time(100.0 + 20.0 * 1500.0)));
        assert!(unpack::<Today>(&pack(&None::<u8>).unwrap()).unwrap().holdout.is_none());
    }
}
