//! Beside a server: page, sensors and connections.

use super::*;
use crate::park::gap::GapSettings;
use crate::park::gap::Wait;
use crate::park::sample::{Activity, PageSight};
use crate::park::settings::Unnoticed;
use crate::units::Joules;

pub(crate) const SETTINGS: Settings = Settings {
    gap: GapSettings {
        wait: Wait::SkiRental { wake: None, unmeasured: Seconds(0.75) },
        quiet: Seconds(0.75),
        at_start: true,
        wake_limit: Seconds(1.0),
    },
    page: true,
    utilization_threshold_percent: Some(10.0),
    wake_power_ratio: Some(1.12),
    connections: Some(CountedConnections::Recent),
    hot: None,
    busy_percent: 30.0,
    periods: None,
    unnoticed: Unnoticed { by_sensors: Seconds(0.15), by_others: Seconds(0.3) },
    max_ttft_rise: 0.05,
    retries_last: false,
    dry_run: false,
};

/// What a window means for idleness.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    Serve,
    /// No work on the page, but not parked (yet).
    Empty,
    Park,
    Stay,
    /// Work is back after this long.
    Wake(WakeSource, Seconds),
}

impl Rule {
    fn is_parked(&self) -> bool {
        self.state().is_down()
    }

    fn on_window(
        &mut self,
        page: PageSight,
        look: &Sample,
        prices: Prices,
        may_park: bool,
        now: Time,
    ) -> Verdict {
        let parked = self.is_parked();
        match self.step(&Sample { now, page: Some(page), ..*look }, prices, may_park) {
            Decision::Park(_) => Verdict::Park,
            Decision::Wake(source, span) => Verdict::Wake(source, span),
            _ if parked => Verdict::Stay,
            _ if page.work => Verdict::Serve,
            _ => Verdict::Empty,
        }
    }

    fn on_look(&mut self, look: &Sample, now: Time) -> Option<(WakeSource, Seconds)> {
        match self.step(&Sample { now, ..*look }, Prices::default(), true) {
            Decision::Wake(source, span) => Some((source, span)),
            _ => None,
        }
    }
}

const TICK: Seconds = Seconds(0.3);
/// Of a window that ends at 0.
const WORK: PageSight = PageSight { start: Time(-TICK.0), work: true, step_time: Some(Seconds(0.02)) };
const EMPTY: PageSight = PageSight { start: Time(-TICK.0), work: false, step_time: None };

fn ending(page: PageSight, now: Time) -> PageSight {
    PageSight { start: now - TICK, ..page }
}

fn look(power: f64, utilization: f64) -> Sample {
    let activity = Activity { power: Some(Watts(power)), utilization_percent: Some(utilization) };
    Sample { activity, ..Sample::at(Time(0.0)) }
}

fn asked(requests_total: u64) -> Sample {
    let connections = Connections { open: 4, opened_total: 9, requests_total };
    Sample { connections: Some(connections), ..look(60.0, 0.0) }
}

fn window(watch: &mut Rule, page: PageSight, look: Sample, now: f64) -> Verdict {
    watch.on_window(ending(page, Time(now)), &look, Prices::default(), true, Time(now))
}

fn empty(watch: &mut Rule, power: f64, utilization: f64, now: f64) -> Verdict {
    window(watch, EMPTY, look(power, utilization), now)
}

fn watch() -> Rule {
    Rule::new(SETTINGS)
}

fn parked() -> Rule {
    let mut watch = watch();
    for k in 0..3 {
        window(
            &mut watch,
            EMPTY,
            Sample { connections: asked(5).connections, ..look(80.0, 0.0) },
            0.3 * f64::from(k),
        );
    }
    assert!(watch.is_parked());
    watch
}

#[test]
fn third_empty_window_parks() {
    let mut watch = watch();
    assert_eq!(empty(&mut watch, 80.0, 0.0, 0.0), Verdict::Empty);
    assert_eq!(empty(&mut watch, 80.0, 0.0, 0.3), Verdict::Empty);
    assert_eq!(empty(&mut watch, 80.0, 0.0, 0.6), Verdict::Park);
    assert_eq!(empty(&mut watch, 60.0, 0.0, 1.2), Verdict::Stay);
}

#[test]
fn empty_page_with_a_busy_gpu_never_parks() {
    let mut watch = watch();
    for k in 0..100 {
        assert_eq!(empty(&mut watch, 300.0, 100.0, 0.3 * f64::from(k)), Verdict::Empty);
    }
}

#[test]
fn power_alone_gives_a_busy_gpu_away_once_quiet_power_is_known() {
    let mut watch = parked();
    window(&mut watch, WORK, look(300.0, 100.0), 5.0);
    for k in 0..50 {
        let activity = Activity { power: Some(Watts(250.0)), utilization_percent: None };
        let look = Sample { activity, ..Sample::at(Time(0.0)) };
        assert_eq!(window(&mut watch, EMPTY, look, 6.0 + 0.3 * f64::from(k)), Verdict::Empty);
    }
}

#[test]
fn rising_power_wakes_and_falling_power_does_not() {
    let mut watch = parked();
    for (k, power) in [80.0, 75.0, 70.0, 66.0, 64.0, 64.5, 65.0].into_iter().enumerate() {
        let now = Time(1.0 + 0.1 * f64::from(u32::try_from(k).unwrap()));
        assert_eq!(watch.on_look(&look(power, 0.0), now), None);
    }
    let woken = watch.on_look(&look(90.0, 0.0), Time(2.0));
    assert!(matches!(woken, Some((WakeSource::Power { .. }, span)) if (span.0 - 1.4).abs() < 1e-9));
    assert!(!watch.is_parked());
}

#[test]
fn utilisation_wakes_even_while_power_is_still_sinking() {
    let mut watch = parked();
    assert_eq!(watch.on_look(&look(300.0, 0.0), Time(0.7)), None);
    let woken = watch.on_look(&look(300.0, 60.0), Time(0.8));
    assert!(matches!(woken, Some((WakeSource::Utilization { percent: 60.0 }, _))), "{woken:?}");
}

#[test]
fn gpu_that_cannot_be_seen_is_never_parked_and_wakes_if_it_is() {
    let mut watch = parked();
    let blind = Sample::at(Time(0.0));
    let verdict = window(&mut watch, EMPTY, blind, 1.6);
    assert_eq!(verdict, Verdict::Wake(WakeSource::Unseen, Seconds(1.0)));
    for k in 0..20 {
        assert_eq!(window(&mut watch, EMPTY, blind, 2.0 + f64::from(k)), Verdict::Empty);
    }
}

#[test]
fn work_on_the_page_wakes() {
    let mut watch = parked();
    let verdict = window(&mut watch, WORK, look(60.0, 0.0), 1.6);
    assert_eq!(verdict, Verdict::Wake(WakeSource::Page, Seconds(1.0)));
}

#[test]
fn request_over_an_open_connection_wakes_at_once_and_what_brings_no_work_is_parked_again_soon() {
    let mut watch = parked();
    assert_eq!(watch.on_look(&asked(5), Time(5.0)), None);
    let woken = watch.on_look(&asked(6), Time(6.0));
    assert!(matches!(woken, Some((WakeSource::Connections { open: 4 }, _))), "{woken:?}");
    // The work may be under way to the engine for a second.
    for k in 1..=3 {
        assert_eq!(window(&mut watch, EMPTY, asked(6), 6.0 + 0.3 * f64::from(k)), Verdict::Empty, "{k}");
    }
    // Not even the fixed minute would be waited for again: there was no work.
    assert_eq!(window(&mut watch, EMPTY, asked(6), 7.2), Verdict::Park);
}

#[test]
fn open_connections_hold_the_clocks_up_only_where_they_count() {
    let counted = Settings { connections: Some(CountedConnections::Open), ..SETTINGS };
    for (settings, parks) in [(SETTINGS, true), (counted, false)] {
        let mut watch = Rule::new(settings);
        for k in 0..50 {
            let now = Time(0.3 * f64::from(k));
            watch.on_window(ending(EMPTY, now), &asked(5), Prices::default(), true, now);
        }
        assert_eq!(watch.is_parked(), parks);
    }
}

#[test]
fn connections_that_are_not_known_are_no_work_where_the_gpu_is_seen_and_cannot_be_ruled_out_where_not() {
    let alone = Settings { utilization_threshold_percent: None, ..SETTINGS };
    for (settings, parks) in [(SETTINGS, true), (alone, false)] {
        let mut watch = Rule::new(settings);
        for k in 0..50 {
            let now = Time(0.3 * f64::from(k));
            watch.on_window(ending(EMPTY, now), &look(60.0, 0.0), Prices::default(), true, now);
            watch.on_look(&look(60.0, 0.0), now + Seconds(0.1));
        }
        assert_eq!(watch.is_parked(), parks);
    }
}

#[test]
fn an_instance_that_works_holds_the_clocks_over_an_empty_page_and_wakes_between_two_pages() {
    let told = |working| Sample { working, ..look(60.0, 0.0) };
    let mut watch = watch();
    for k in 0..50 {
        assert_eq!(window(&mut watch, EMPTY, told(1), 0.3 * f64::from(k)), Verdict::Empty, "{k}");
    }
    let mut watch = parked();
    assert_eq!(watch.on_look(&told(0), Time(5.0)), None);
    let woken = watch.on_look(&told(1), Time(5.1));
    assert!(matches!(woken, Some((WakeSource::Instances { working: 1 }, _))), "{woken:?}");
}

#[test]
fn long_steps_are_waited_out() {
    let mut watch = watch();
    let slow = PageSight { step_time: Some(Seconds(2.0)), ..WORK };
    window(&mut watch, slow, look(80.0, 0.0), 0.0);
    let first =
        (1..100).map(|k| 0.3 * f64::from(k)).find(|now| empty(&mut watch, 80.0, 0.0, *now) == Verdict::Park);
    assert!(first.is_some_and(|first| (6.0..6.31).contains(&first)), "{first:?}");
}

#[test]
fn gap_is_waited_out_until_parking_pays() {
    let prices = Prices { saving: Some(Watts(20.0)), wake: Some(Joules(60.0)) };
    let mut watch = watch();
    let mut step = |page, now| {
        let page = ending(page, Time(now));
        watch.on_window(page, &look(80.0, 0.0), prices, true, Time(now))
    };
    step(WORK, 0.0);
    let first = (1..100).map(|k| 0.3 * f64::from(k)).find(|now| step(EMPTY, *now) == Verdict::Park);
    // 60 J / 20 W beyond the quiet time, which begins with the first empty window, at 0.
    let waited = 0.75 + 60.0 / 20.0;
    assert!(first.is_some_and(|first| (waited..waited + 0.3).contains(&first)), "{first:?}");
}

#[test]
fn parking_is_held_back_while_a_wake_cannot_be_afforded() {
    let mut watch = watch();
    for k in 0..50 {
        let now = Time(0.3 * f64::from(k));
        watch.on_window(ending(EMPTY, now), &look(80.0, 0.0), Prices::default(), k >= 40, now);
        assert_eq!(watch.is_parked(), k >= 40, "{k}");
    }
}
