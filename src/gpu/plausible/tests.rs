#![expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]

use proptest::prelude::*;

use super::*;

const LIMIT: Watts = Watts(400.0);

/// Looks every 50 ms for `seconds`; the counter and the power at that time.
fn look(
    judge: &mut EnergyJudge,
    from: f64,
    seconds: f64,
    counter: impl Fn(f64) -> Option<u64>,
    power: impl Fn(f64) -> Option<f64>,
) -> Vec<Change> {
    let looks = (seconds / 0.05).round() as u32;
    (0..looks)
        .filter_map(|k| {
            let at = from + 0.05 * f64::from(k);
            power(at).into_iter().for_each(|watts| judge.on_power(Time(at), Watts(watts)));
            judge.on_counter(Time(at), counter(at).map(Millijoules))
        })
        .collect()
}

/// A counter of 100 ms ticks under 200 W.
fn sound(at: f64) -> Option<u64> {
    Some((at * 10.0).floor() as u64 * 20_000)
}

fn sources(changes: &[Change]) -> Vec<EnergySource> {
    changes.iter().map(|change| change.source).collect()
}

fn assert_energy(judge: &EnergyJudge, joules: f64) {
    let total = judge.total().unwrap();
    assert!((total - joules).abs() < 0.03 * joules + 45.0, "{total} J, expected {joules} J");
}

#[test]
fn sound_counter_decides_and_nothing_is_said() {
    let mut judge = EnergyJudge::new(Some(LIMIT));
    assert_eq!(look(&mut judge, 0.0, 20.0, sound, |_| Some(190.0)), []);
    assert_eq!(judge.source(), EnergySource::Counter);
    assert_energy(&judge, 20.0 * 200.0);
}

#[test]
fn counter_that_never_moves_gives_way_to_power_and_no_energy_is_lost() {
    let mut judge = EnergyJudge::new(Some(LIMIT));
    let changes = look(&mut judge, 0.0, 20.0, |_| Some(0), |_| Some(200.0));
    assert_eq!(sources(&changes), [EnergySource::PowerIntegration], "{changes:?}");
    assert!(changes[0].why.starts_with("0 mJ for 0.25 s"), "{changes:?}");
    assert_energy(&judge, 20.0 * 200.0);
}

#[test]
fn counter_that_is_too_slow_for_windows_gives_way_for_good() {
    for every in [0.4, 0.6, 0.9, 3.0] {
        let mut judge = EnergyJudge::new(Some(LIMIT));
        let slow = |at: f64| Some((at / every).floor() as u64 * (every * 200_000.0) as u64);
        let changes = look(&mut judge, 0.0, 90.0, slow, |_| Some(200.0));
        assert_eq!(sources(&changes), [EnergySource::PowerIntegration], "every {every} s: {changes:?}");
        assert_energy(&judge, 90.0 * 200.0);
    }
}

#[test]
fn counter_that_falls_for_one_reading_gives_way_and_comes_back_when_proven() {
    let mut judge = EnergyJudge::new(Some(LIMIT));
    let falls = |at: f64| if (9.99..10.01).contains(&at) { Some(3) } else { sound(at) };
    let changes = look(&mut judge, 0.0, 60.0, falls, |_| Some(200.0));
    assert_eq!(sources(&changes), [EnergySource::PowerIntegration, EnergySource::Counter], "{changes:?}");
    assert_energy(&judge, 60.0 * 200.0);
}

#[test]
fn counter_that_jumps_by_megajoules_adds_nothing_of_that() {
    let mut judge = EnergyJudge::new(Some(LIMIT));
    let jumps = |at: f64| sound(at).map(|mj| mj + if at >= 10.0 { 5_000_000_000 } else { 0 });
    let changes = look(&mut judge, 0.0, 60.0, jumps, |_| Some(200.0));
    assert_eq!(sources(&changes), [EnergySource::PowerIntegration, EnergySource::Counter], "{changes:?}");
    assert_energy(&judge, 60.0 * 200.0);
    // The next time it has to wait longer.
    let again = |at: f64| sound(at).map(|mj| mj + if at >= 70.0 { 9_000_000_000 } else { 5_000_000_000 });
    assert_eq!(sources(&look(&mut judge, 60.0, 60.0, again, |_| Some(200.0))).len(), 1);
}

#[test]
fn counter_that_power_contradicts_gives_way() {
    let mut judge = EnergyJudge::new(Some(LIMIT));
    let tenth = |at: f64| sound(at).map(|mj| mj / 10);
    let changes = look(&mut judge, 0.0, 20.0, tenth, |_| Some(200.0));
    assert_eq!(sources(&changes), [EnergySource::PowerIntegration], "{changes:?}");
}

#[test]
fn source_that_stops_answering_gives_way_to_the_next_one() {
    let mut judge = EnergyJudge::new(Some(LIMIT));
    let until_ten = |at: f64| sound(at).filter(|_| at < 10.0);
    let changes = look(&mut judge, 0.0, 20.0, until_ten, |_| Some(200.0));
    assert_eq!(sources(&changes), [EnergySource::PowerIntegration], "{changes:?}");
    assert!(changes[0].why.starts_with("no answer for 2.0 s"), "{changes:?}");
    assert_energy(&judge, 20.0 * 200.0);
    let changes = look(&mut judge, 20.0, 5.0, |_| None, |_| None);
    assert_eq!(sources(&changes), [EnergySource::None], "{changes:?}");
    assert_eq!(judge.total(), None);
}

#[test]
fn power_far_above_the_limit_is_believed_for_a_moment_only() {
    let mut judge = PowerJudge::new(Some(LIMIT));
    for (at, watts, believed) in [
        (0.0, 799.0, true),
        (0.9, 799.0, true),
        (1.0, 799.0, false),
        (60.0, 500.0, false),
        (60.1, 480.0, true),
        (60.2, 799.0, true),
        (60.3, 801.0, false),
        (60.4, 0.0, false),
    ] {
        assert_eq!(judge.believes(Time(at), Watts(watts)), believed, "{watts} W at {at} s");
    }
}

#[test]
fn counter_that_runs_above_the_limit_for_seconds_gives_way() {
    let mut judge = EnergyJudge::new(Some(LIMIT));
    let double = |at: f64| sound(at).map(|mj| mj * 5 / 2);
    let changes = look(&mut judge, 0.0, 20.0, double, |_| Some(200.0));
    assert_eq!(sources(&changes), [EnergySource::PowerIntegration], "{changes:?}");
    assert!(judge.total().unwrap() <= 400.0 * 20.0);
}

#[test]
fn limit_that_may_be_raised_is_the_one_that_counts() {
    let info = |power_limit, power_limit_max| GpuInfo {
        index: 0,
        uuid: "GPU-1".into(),
        name: "A card".into(),
        driver_version: None,
        power_limit,
        power_limit_max,
    };
    assert_eq!(highest_limit(&info(Some(Watts(250.0)), Some(LIMIT))), Some(LIMIT));
    assert_eq!(highest_limit(&info(Some(LIMIT), Some(Watts(4e6)))), Some(LIMIT));
    assert_eq!(highest_limit(&info(None, None)), None);
}

#[test]
fn power_that_no_board_draws_is_none_and_the_counter_decides_alone() {
    for watts in [0.0, f64::NAN, -3.0, f64::from(u32::MAX) / 1e3, 2e6] {
        assert!(!is_power(Watts(watts), LIMIT), "{watts}");
        let mut judge = EnergyJudge::new(Some(LIMIT));
        assert_eq!(look(&mut judge, 0.0, 20.0, sound, |_| Some(watts)), []);
        assert_energy(&judge, 20.0 * 200.0);
        let mut judge = EnergyJudge::new(Some(LIMIT));
        look(&mut judge, 0.0, 20.0, |_| None, |_| Some(watts));
        assert_eq!((judge.source(), judge.total()), (EnergySource::None, None), "{watts}");
    }
}

#[test]
fn board_without_both_has_no_energy_and_one_without_counter_has_that_of_its_power() {
    let mut judge = EnergyJudge::new(Some(LIMIT));
    assert_eq!(look(&mut judge, 0.0, 5.0, |_| None, |_| None), []);
    assert_eq!((judge.source(), judge.total()), (EnergySource::None, None));
    let mut judge = EnergyJudge::new(None);
    assert_eq!(look(&mut judge, 0.0, 5.0, |_| None, |_| Some(200.0)), []);
    assert_energy(&judge, 5.0 * 200.0);
}

#[test]
fn counter_that_never_moves_beside_a_power_that_is_not_believed_leaves_no_energy() {
    for power in [None, Some(4e6)] {
        let mut judge = EnergyJudge::new(Some(LIMIT));
        let changes = look(&mut judge, 0.0, 5.0, |_| Some(7), |_| power);
        assert_eq!(sources(&changes), [EnergySource::None], "{changes:?}");
        assert!(changes[0].why.starts_with("7 mJ for 2.00 s") && !changes[0].is_better(), "{changes:?}");
        assert_eq!(judge.total(), None);
        // A power that comes after all decides.
        assert_eq!(
            sources(&look(&mut judge, 5.0, 1.0, |_| Some(7), |_| Some(200.0))),
            [EnergySource::PowerIntegration]
        );
    }
}

#[test]
fn limits_that_no_board_has_are_replaced() {
    for told in [None, Some(Watts(0.0)), Some(Watts(f64::from(u32::MAX) / 1e3)), Some(Watts(f64::NAN))] {
        assert_eq!(usable_limit(told), UNTOLD_LIMIT);
    }
    assert_eq!(usable_limit(Some(LIMIT)), LIMIT);
}

#[test]
fn absurd_utilization_temperature_and_clocks_are_not_believed() {
    assert!(is_utilization(0.0) && is_utilization(100.0));
    assert!(!is_utilization(101.0) && !is_utilization(f64::from(u32::MAX)));
    assert!(is_temperature(45.0) && !is_temperature(0.0) && !is_temperature(f64::from(u32::MAX)));
    assert!(is_clock(Mhz(210)) && !is_clock(Mhz(0)) && !is_clock(Mhz(u32::MAX)));
}

#[test]
fn utilization_of_zero_under_the_power_of_work_is_believed_for_seconds_only() {
    let mut judge = IdleJudge::new(Some(LIMIT));
    judge.on_power(Time(0.0), Watts(80.0));
    assert!(judge.believes(Time(0.0), 0.0));
    for k in 0..30 {
        judge.on_power(Time(f64::from(k)), Watts(300.0));
        assert_eq!(judge.believes(Time(f64::from(k)), 0.0), k < 3, "{k}");
    }
    assert!(judge.believes(Time(30.0), 80.0));
}

#[test]
fn utilization_of_100_at_the_power_of_an_idle_board_is_believed_for_a_minute() {
    let believed = |power: f64, percent: f64| {
        let mut judge = IdleJudge::new(Some(LIMIT));
        (0..200)
            .take_while(|k| {
                judge.on_power(Time(f64::from(*k)), Watts(power));
                judge.believes(Time(f64::from(*k)), percent)
            })
            .count()
    };
    assert_eq!(believed(0.15 * LIMIT.0, 100.0), 60);
    assert_eq!(believed(0.3 * LIMIT.0, 100.0), 200);
    assert_eq!(believed(0.15 * LIMIT.0, 99.0), 200);
}

proptest! {
    #[test]
    fn energy_never_falls_and_never_exceeds_what_the_board_can_draw(
        looks in prop::collection::vec(
            (
                prop_oneof![0.0..5.0_f64, 0.0..1e6_f64, Just(0.0), Just(-1.0), Just(f64::NAN)],
                prop::option::of(prop_oneof![any::<u64>(), 0..10_000_000_u64, Just(0), Just(u64::MAX)]),
                prop::option::of(prop_oneof![any::<u32>(), 0..500_000_u32, Just(0), Just(u32::MAX)]),
            ),
            0..200,
        ),
        limit in prop::option::of(any::<u32>()),
    ) {
        let limit = limit.map(|mw| Watts(f64::from(mw) / 1e3));
        let mut judge = EnergyJudge::new(limit);
        let (mut at, mut first, mut latest, mut before) = (0.0_f64, None, 0.0_f64, 0.0);
        for (pause, counter, milliwatts) in looks {
            let now = at + pause;
            if now.is_finite() {
                at = now;
                latest = latest.max(*first.get_or_insert(now)).max(now);
            }
            let power = milliwatts.map(|mw| Watts(f64::from(mw) / 1e3));
            power.into_iter().for_each(|power| judge.on_power(Time(now), power));
            judge.on_counter(Time(now), counter.map(Millijoules));
            if let Some(total) = judge.total() {
                prop_assert!(total.is_finite() && total >= before, "{total} J after {before} J");
                let most = usable_limit(limit).0 * (latest - first.unwrap_or(0.0));
                prop_assert!(total <= most * (1.0 + 1e-9) + 1e-6, "{total} J, at most {most} J");
                before = total;
            }
        }
    }
}
