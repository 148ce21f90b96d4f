//! Without a server: sensors and connections.

use super::*;
use crate::park::gap::{GapSettings, Wait};
use crate::park::sample::Activity;
use crate::park::settings::{HotAt, Unnoticed};
use crate::units::{Joules, Watts};

pub(crate) const SETTINGS: Settings = Settings {
    gap: GapSettings {
        wait: Wait::Timeout(Seconds(60.0)),
        quiet: Seconds(3.0),
        at_start: false,
        wake_limit: Seconds(1.0),
    },
    page: false,
    utilization_threshold_percent: Some(0.0),
    wake_power_ratio: None,
    connections: None,
    hot: Some(HotAt { high_c: 80.0, low_c: 75.0 }),
    busy_percent: 0.0,
    periods: None,
    unnoticed: Unnoticed { by_sensors: Seconds(0.6), by_others: Seconds(0.0) },
    max_ttft_rise: 1.0,
    retries_last: true,
    dry_run: false,
};

#[test]
fn an_instance_that_works_wakes_at_once_and_holds_for_as_long_as_it_works() {
    let mut rule = Rule::new(SETTINGS);
    let mut look = |now: f64, working: u32| {
        let seen = Sample { working, ..seen(now, 0.0).sample() };
        rule.step(&seen, Prices::default(), true)
    };
    for k in 0..100 {
        assert_eq!(look(f64::from(k), 1), Decision::Stay, "{k}");
    }
    assert_eq!(look(100.0, 0), Decision::Stay);
    assert_eq!(look(160.0, 0), Decision::Park(Seconds(60.0)));
    let woken = look(160.1, 2);
    assert!(matches!(woken, Decision::Wake(WakeSource::Instances { working: 2 }, _)), "{woken:?}");
    assert_eq!(look(160.2, 0), Decision::Stay, "as after any work the wait begins anew");
    assert!(matches!(look(221.0, 0), Decision::Park(_)));
}

fn at_start() -> Settings {
    Settings { gap: GapSettings { at_start: true, ..SETTINGS.gap }, ..SETTINGS }
}

#[derive(Debug, Clone, Copy)]
struct Observation {
    now: Time,
    utilization_percent: Option<f64>,
    temperature_c: Option<f64>,
    open_connections: Option<u32>,
    /// So many were opened so far.
    opened: u64,
}

impl Observation {
    fn sample(self) -> Sample {
        let connections = |open| Connections { open, opened_total: self.opened, requests_total: 0 };
        Sample {
            activity: Activity { power: None, utilization_percent: self.utilization_percent },
            temperature_c: self.temperature_c,
            connections: self.open_connections.map(connections),
            ..Sample::at(self.now)
        }
    }
}

fn seen(now: f64, utilization: f64) -> Observation {
    Observation {
        now: Time(now),
        utilization_percent: Some(utilization),
        temperature_c: Some(40.0),
        open_connections: None,
        opened: 0,
    }
}

fn at(now: f64, utilization: f64, celsius: f64) -> Observation {
    Observation { temperature_c: Some(celsius), ..seen(now, utilization) }
}

fn connected(now: f64, open: u32) -> Observation {
    Observation { utilization_percent: None, open_connections: Some(open), ..seen(now, 0.0) }
}

fn step(rule: &mut Rule, seen: Observation) -> Decision {
    rule.step(&seen.sample(), Prices::default(), true)
}

fn woken(decision: Decision) -> Option<WakeSource> {
    match decision {
        Decision::Wake(source, _) => Some(source),
        _ => None,
    }
}

#[test]
fn timeout_runs_from_the_last_work_and_any_work_starts_it_anew() {
    let mut rule = Rule::new(SETTINGS);
    assert_eq!(step(&mut rule, seen(0.0, 50.0)), Decision::Stay);
    assert_eq!(step(&mut rule, seen(1.0, 0.0)), Decision::Stay);
    assert_eq!(step(&mut rule, seen(60.9, 0.0)), Decision::Stay);
    assert_eq!(step(&mut rule, seen(61.0, 1.0)), Decision::Stay);
    assert_eq!(rule.state(), State::Serving);
    step(&mut rule, seen(62.0, 0.0));
    assert_eq!(step(&mut rule, seen(121.9, 0.0)), Decision::Stay);
    assert_eq!(step(&mut rule, seen(122.0, 0.0)), Decision::Park(Seconds(60.0)));
    assert_eq!(step(&mut rule, seen(500.0, 0.0)), Decision::Stay);
    let work = WakeSource::Utilization { percent: 1.0 };
    assert_eq!(woken(step(&mut rule, seen(501.0, 1.0))), Some(work));
}

#[test]
fn last_closed_connection_starts_the_timeout_and_an_open_one_cancels_it() {
    let settings = Settings {
        utilization_threshold_percent: None,
        connections: Some(CountedConnections::Open),
        ..SETTINGS
    };
    let mut rule = Rule::new(settings);
    step(&mut rule, connected(0.0, 2));
    step(&mut rule, connected(10.0, 1));
    step(&mut rule, connected(20.0, 0));
    step(&mut rule, connected(70.0, 1));
    step(&mut rule, connected(75.0, 0));
    assert_eq!(step(&mut rule, connected(134.0, 0)), Decision::Stay);
    assert_eq!(step(&mut rule, connected(135.0, 0)), Decision::Park(Seconds(60.0)));
    // Opened and closed between two looks.
    let brief = Observation { opened: 1, ..connected(140.0, 0) };
    assert_eq!(woken(step(&mut rule, brief)), Some(WakeSource::Connections { open: 0 }));
}

#[test]
fn open_connection_that_nobody_uses_is_no_work_where_only_recent_ones_count() {
    let recent = Some(CountedConnections::Recent);
    let settings = Settings { utilization_threshold_percent: None, connections: recent, ..SETTINGS };
    let mut rule = Rule::new(settings);
    step(&mut rule, connected(0.0, 4));
    assert_eq!(step(&mut rule, connected(60.0, 4)), Decision::Park(Seconds(60.0)));
    let used = Observation { opened: 1, ..connected(70.0, 4) };
    assert_eq!(woken(step(&mut rule, used)), Some(WakeSource::Connections { open: 4 }));
}

#[test]
fn gpu_that_has_not_worked_yet_is_parked_after_the_quiet_time_and_a_busy_one_is_not() {
    let mut rule = Rule::new(at_start());
    assert_eq!(step(&mut rule, seen(0.0, 0.0)), Decision::Stay);
    assert_eq!(step(&mut rule, seen(3.0, 0.0)), Decision::Park(Seconds(3.0)));
    let mut busy = Rule::new(at_start());
    step(&mut busy, seen(0.0, 30.0));
    step(&mut busy, seen(1.0, 0.0));
    assert_eq!(step(&mut busy, seen(4.0, 0.0)), Decision::Stay);
}

#[test]
fn hot_gpu_is_parked_under_load_and_stays_so_down_to_the_lower_limit() {
    let mut rule = Rule::new(SETTINGS);
    assert_eq!(step(&mut rule, at(0.0, 90.0, 80.0)), Decision::Stay);
    assert_eq!(step(&mut rule, at(1.0, 90.0, 81.0)), Decision::Cool(81.0));
    assert_eq!(step(&mut rule, at(2.0, 90.0, 76.0)), Decision::Stay);
    assert_eq!(rule.state(), State::Hot);
    let work = WakeSource::Utilization { percent: 90.0 };
    assert_eq!(woken(step(&mut rule, at(3.0, 90.0, 75.0))), Some(work));
    // Idle when it has cooled down: stays parked without another word.
    step(&mut rule, at(4.0, 90.0, 85.0));
    assert_eq!(step(&mut rule, at(5.0, 0.0, 70.0)), Decision::Cooled);
    assert_eq!(rule.state(), State::Parked { idle_since: Time(5.0) });
}

#[test]
fn source_that_does_not_answer_keeps_a_gpu_awake_and_wakes_it() {
    let blind = |now| Observation { utilization_percent: None, ..seen(now, 0.0) };
    let mut rule = Rule::new(SETTINGS);
    for now in 0..1000 {
        assert_eq!(step(&mut rule, blind(f64::from(now))), Decision::Stay);
    }
    let mut rule = Rule::new(at_start());
    step(&mut rule, seen(0.0, 0.0));
    step(&mut rule, seen(3.0, 0.0));
    assert_eq!(woken(step(&mut rule, blind(4.0))), Some(WakeSource::Unseen));
}

#[test]
fn connection_that_brings_no_work_to_the_gpu_wakes_it_and_it_parks_after_the_quiet_time_again() {
    let both = |now, open| Observation { open_connections: Some(open), ..seen(now, 0.0) };
    let settings = Settings { connections: Some(CountedConnections::Open), ..SETTINGS };
    let mut rule = Rule::new(settings);
    step(&mut rule, Observation { open_connections: Some(1), ..seen(0.0, 50.0) });
    step(&mut rule, both(1.0, 0));
    assert_eq!(step(&mut rule, both(61.0, 0)), Decision::Park(Seconds(60.0)));
    assert_eq!(woken(step(&mut rule, both(70.0, 1))), Some(WakeSource::Connections { open: 1 }));
    step(&mut rule, both(70.5, 0));
    assert_eq!(step(&mut rule, both(73.5, 0)), Decision::Park(Seconds(3.0)));
    // One that does is work like any other.
    step(&mut rule, both(80.0, 1));
    step(&mut rule, Observation { open_connections: Some(1), ..seen(81.0, 9.0) });
    step(&mut rule, both(82.0, 0));
    assert_eq!(step(&mut rule, both(141.9, 0)), Decision::Stay);
    assert_eq!(step(&mut rule, both(142.0, 0)), Decision::Park(Seconds(60.0)));
}

#[test]
fn refused_lock_is_not_asked_for_again_for_a_while() {
    let mut rule = Rule::new(at_start());
    step(&mut rule, seen(0.0, 0.0));
    assert_eq!(step(&mut rule, seen(3.0, 0.0)), Decision::Park(Seconds(3.0)));
    rule.hold_off(Time(3.0));
    let until = 3.0 + crate::park::gap::REFUSED.0;
    for now in 4..63 {
        assert_eq!(step(&mut rule, seen(f64::from(now), 0.0)), Decision::Stay);
    }
    assert!(matches!(step(&mut rule, seen(until, 0.0)), Decision::Park(_)));
}

#[test]
fn ski_rental_waits_break_even_beyond_the_quiet_time_once_the_saving_is_known() {
    let wait = |wake| Wait::SkiRental { wake, unmeasured: Seconds(60.0) };
    let settings = |wake| Settings { gap: GapSettings { wait: wait(wake), ..SETTINGS.gap }, ..SETTINGS };
    let measured = Prices { saving: Some(Watts(10.0)), wake: Some(Joules(100.0)) };
    // What is configured goes before what is measured.
    for (configured, wait) in [(None, 10.0), (Some(Joules(100.0)), 10.0), (Some(Joules(50.0)), 5.0)] {
        let mut rule = Rule::new(settings(configured));
        rule.step(&seen(0.0, 5.0).sample(), measured, true);
        rule.step(&seen(1.0, 0.0).sample(), measured, true);
        assert_eq!(rule.step(&seen(3.9 + wait, 0.0).sample(), measured, true), Decision::Stay);
        assert_eq!(
            rule.step(&seen(4.0 + wait, 0.0).sample(), measured, true),
            Decision::Park(Seconds(3.0 + wait))
        );
    }
    let mut unmeasured = Rule::new(settings(Some(Joules(100.0))));
    step(&mut unmeasured, seen(0.0, 5.0));
    step(&mut unmeasured, seen(1.0, 0.0));
    assert_eq!(step(&mut unmeasured, seen(60.0, 0.0)), Decision::Stay);
    assert_eq!(step(&mut unmeasured, seen(61.0, 0.0)), Decision::Park(Seconds(60.0)));
}
