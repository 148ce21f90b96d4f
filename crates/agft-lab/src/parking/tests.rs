use super::*;
use crate::sim::record::Served;
use crate::sim::run::{NOTICE, WRITE_DELAY};
use crate::sim::{Arrivals, Usage};
use agft::units::Time;

fn trial(gpu: &str, policies: &str, fresh_connections: &[f64]) -> Vec<Outcome> {
    let trial = Trial {
        loads: vec![Load::named(gpu, "8b", Source::Code).unwrap()],
        seeds: vec![3],
        fresh_connections: fresh_connections.to_vec(),
        policies: policies.split(',').map(|name| name.parse().unwrap()).collect(),
        seconds: 900.0,
        config: Config::default(),
    };
    trial.run(2, || {}).unwrap()
}

fn of(outcomes: &[Outcome], policy: &str) -> Outcome {
    outcomes.iter().find(|outcome| outcome.policy.to_string() == policy).unwrap().clone()
}

#[test]
fn clairvoyant_delays_nobody_and_saves_the_difference_of_the_idle_energies() {
    for gpu in ["a40", "h100"] {
        let outcomes = trial(gpu, "none,fixed=3,clairvoyant-core,clairvoyant", &[1.0]);
        let (never, best) = (of(&outcomes, "none"), of(&outcomes, "clairvoyant"));
        let core = of(&outcomes, "clairvoyant-core");
        assert!(never.figures.requests > 100, "{:?}", never.figures);
        for one in [&best, &core] {
            assert_eq!((one.figures.requests, one.against.delayed_share), (never.figures.requests, 0.0));
            assert_eq!((one.figures.slow_s, one.figures.wakes_for_requests), (0.0, 0), "{gpu}");
            let (saved, idle) = (
                never.figures.energy_j - one.figures.energy_j,
                never.figures.idle_energy_j - one.figures.idle_energy_j,
            );
            // The work itself is the same, so all that is saved is saved while idle.
            assert!((saved - idle).abs() < 1e-6 * never.figures.energy_j, "{gpu}: {saved} J, idle {idle} J");
        }
        assert_eq!(best.against.share_of_clairvoyant_saving, Some(1.0));
        let share = |outcome: &Outcome| outcome.against.share_of_clairvoyant_saving.unwrap();
        // With one memory clock there is nothing but the core clock.
        if gpu == "h100" {
            assert!((share(&core) - 1.0).abs() < 1e-9);
        } else {
            assert!((0.3..0.8).contains(&share(&core)), "{}", share(&core));
        }
        let fixed = of(&outcomes, "fixed=3");
        assert!((0.2..1.0).contains(&share(&fixed)) && fixed.against.delayed_share > 0.0, "{fixed:?}");
        assert!(never.against.energy_saved.abs() < 1e-12 && never.figures.wakes == 0);
    }
}

#[test]
fn watcher_of_connections_has_written_the_clocks_within_notice_and_write_delay() {
    let outcomes = trial("a40", "fixed=3,rule", &[1.0]);
    for outcome in &outcomes {
        let Figures { wakes, wakes_for_requests, notice_s, settle_s, slow_s, .. } = outcome.figures;
        assert!(wakes > 3 && wakes_for_requests == wakes, "{outcome:?}");
        assert!(notice_s > WRITE_DELAY && notice_s <= NOTICE + WRITE_DELAY + 1e-9, "{notice_s}");
        let bounds = outcome.load.gpu.settle.bounds;
        assert!((bounds.0..=bounds.1).contains(&settle_s), "{settle_s}");
        // Work runs at the low clocks from the end of the front end's delay until they are in force again.
        #[expect(clippy::cast_precision_loss, reason = "a number of wakes")]
        let expected = wakes as f64 * (notice_s + settle_s - FRONT_END_DELAY.0);
        assert!((slow_s / expected - 1.0).abs() < 0.05, "{slow_s} against {expected}");
    }
}

#[test]
fn stage_between_saves_more_than_waiting_and_less_than_parking_at_once() {
    let outcomes = trial("h100", "fixed=0.5,staged=0.5/3,fixed=3", &[1.0]);
    let [now, staged, later] = ["fixed=0.5", "staged=0.5/3", "fixed=3"].map(|policy| of(&outcomes, policy));
    let energy = |outcome: &Outcome| outcome.figures.energy_j;
    assert!(energy(&now) < energy(&staged) && energy(&staged) < energy(&later));
    // Stages change when the clocks are how low, not when they are down at all.
    assert!((staged.figures.parked_share - now.figures.parked_share).abs() < 0.005);
    assert!(staged.figures.parked_share > later.figures.parked_share + 0.005);
}

#[test]
fn daemon_beside_an_engine_wakes_by_connections_kept_or_not_far_sooner_than_by_its_sensors() {
    let outcomes = trial("a40", "engine,engine-connections", &[1.0, 0.0]);
    let notices: Vec<f64> = outcomes.iter().map(|outcome| outcome.figures.notice_s).collect();
    assert!(outcomes.iter().all(|outcome| outcome.figures.wakes_for_requests > 3));
    let [by_sensors, own, kept] = notices[..] else { panic!("{notices:?}") };
    // Ten looks a second at a sensor that averages, against a step on each request.
    assert!(by_sensors > 0.04, "{by_sensors}");
    for notice in [own, kept] {
        // A request may come just before a look, and wait for that one.
        assert!(notice > WRITE_DELAY && notice <= 1.1 * (NOTICE + WRITE_DELAY), "{notice}");
    }
}

#[test]
fn connections_that_are_kept_open_leave_no_gap_to_a_rule_that_counts_them() {
    let outcomes = trial("a40", "fixed=3,rule", &[0.0]);
    for outcome in outcomes {
        // Before the first request there is none.
        assert!(outcome.figures.wakes <= 1, "{outcome:?}");
        assert!(outcome.figures.parked_share < 0.1);
    }
}

#[test]
fn gaps_are_what_no_request_covers() {
    let served = |arrival: f64, e2e: f64| Served {
        arrival: Time(arrival),
        ttft: Seconds(0.1),
        tpot: None,
        e2e: Seconds(e2e),
    };
    let mut record = RunRecord {
        seconds: Seconds(20.0),
        ticks: Vec::new(),
        // In order of their end; the second begins within the first.
        requests: vec![served(3.0, 1.0), served(2.0, 4.0), served(10.0, 1.0)],
        unfinished: Vec::new(),
        waited_until: Time(20.0),
        rejected: 0,
        clock_changes: Vec::new(),
        usage: Usage::default(),
        raises: Vec::new(),
        rounds: 0,
        alarms: None,
    };
    let gap = |start: f64, end: Option<f64>| figures::Gap { start: Time(start), end: end.map(Time) };
    let first = [gap(0.0, Some(2.0)), gap(6.0, Some(10.0))];
    assert_eq!(figures::gaps(&record), [first[0], first[1], gap(11.0, None)]);
    record.unfinished = vec![Time(15.0)];
    assert_eq!(figures::gaps(&record), [first[0], first[1], gap(11.0, Some(15.0))]);
}

#[test]
fn loads_of_the_comparison_have_gaps() {
    for load in loads().unwrap() {
        let world = load.stage(600.0, 1).unwrap().world;
        let spec = RunSpec { world, seed: 1, seconds: Seconds(600.0), tick: Seconds(0.3) };
        assert!(!matches!(spec.world.arrivals, Arrivals::Closed(_)));
        let figures = Figures::of(&run(&spec, Driver::Default, |_| {}).unwrap());
        assert!(figures.idle_share > 0.05 && figures.requests >= 5, "{load}: {figures:?}");
    }
}
