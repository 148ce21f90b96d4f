//! Laws of parking, on random gaps and observations.

use proptest::prelude::*;
use rand::SeedableRng;
use rand_distr::{Distribution, Exp, Normal, Uniform};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::books::Books;
use super::gap::{GapSettings, Prices, Wait};
use super::rule::tests::SETTINGS;
use super::rule::{Decision, Rule, State};
use super::sample::{Activity, Sample};
use super::settings::{HotAt, Settings};
use super::ski::{CREDIT, SkiRental};
use super::source::{Connections, CountedConnections};
use crate::units::{Joules, Seconds, Time, Watts};

/// One look: time since the last one, utilisation, temperature, connections.
type Look = (f64, Option<f64>, f64, Option<u32>, u32);

fn look() -> impl Strategy<Value = Look> {
    let utilization = prop_oneof![6 => Just(Some(0.0)), 2 => (0.0..100.0).prop_map(Some), 1 => Just(None)];
    let connections = prop_oneof![6 => Just(Some(0)), 2 => (1_u32..4).prop_map(Some), 1 => Just(None)];
    let working = prop_oneof![6 => Just(0), 1 => 1_u32..4];
    (0.05_f64..20.0, utilization, 30.0_f64..90.0, connections, working)
}

proptest! {
    #[test]
    fn never_parked_while_a_source_says_work_or_is_silent_unless_too_hot(
        looks in prop::collection::vec(look(), 1..80),
        connections: bool,
        ski: bool,
        at_start: bool,
    ) {
        let wait = if ski {
            Wait::SkiRental { wake: Some(Joules(50.0)), unmeasured: Seconds(20.0) }
        } else {
            Wait::Timeout(Seconds(20.0))
        };
        let hot = HotAt { high_c: 80.0, low_c: 70.0 };
        let settings = Settings {
            gap: GapSettings { wait, at_start, ..SETTINGS.gap },
            connections: connections.then_some(CountedConnections::Open),
            hot: Some(hot),
            ..SETTINGS
        };
        let mut rule = Rule::new(settings);
        let mut now = 0.0;
        let mut quiet_since = None;
        for (pause, utilization, celsius, open, working) in looks {
            now += pause;
            let seen = Sample {
                activity: Activity { power: None, utilization_percent: utilization },
                temperature_c: Some(celsius),
                connections: open.map(|open| Connections { open, ..Connections::default() }),
                working,
                ..Sample::at(Time(now))
            };
            let was_hot = rule.state() == State::Hot;
            let decision = rule.step(&seen, Prices { saving: Some(Watts(10.0)), wake: None }, true);
            let quiet = utilization == Some(0.0) && (!connections || open == Some(0)) && working == 0;
            quiet_since = quiet.then(|| quiet_since.unwrap_or(now));
            let parked = matches!(rule.state(), State::Parked { .. });
            prop_assert!(quiet || !parked, "parked at {now} with work");
            if let Decision::Park(idle) = decision {
                let since = quiet_since.unwrap_or(now);
                prop_assert!((idle.0 - (now - since)).abs() < 1e-9);
                prop_assert!(idle >= SETTINGS.gap.quiet);
            }
            // Heat: above the upper limit always, at or below the lower one never, between them as before.
            let hot_now = rule.state() == State::Hot;
            prop_assert!(hot_now || celsius <= hot.high_c);
            prop_assert!(!hot_now || celsius > hot.low_c);
            prop_assert!(celsius > hot.high_c || celsius <= hot.low_c || hot_now == was_hot);
        }
    }

    #[test]
    fn break_even_never_costs_more_than_twice_the_clairvoyant(
        gaps in prop::collection::vec(0.001_f64..1e4, 1..50),
        wake in 1.0_f64..1e4,
        saving in 0.5_f64..100.0,
    ) {
        // Knowing nothing it is the break-even rule.
        let terms = SkiRental::default().terms(Joules(wake), Watts(saving));
        prop_assert!((terms.wait.0 - wake / saving).abs() < 1e-9 * terms.wait.0);
        for gap in gaps {
            let gap = Seconds(gap);
            prop_assert!(terms.cost(gap).0 <= 2.0 * terms.clairvoyant(gap).0 * (1.0 + 1e-12));
        }
    }

    #[test]
    fn learned_waits_never_cost_more_than_twice_the_clairvoyant_and_the_credit(
        // Against the learner: gaps just longer than its wait, or just anything.
        gaps in prop::collection::vec((any::<bool>(), 0.001_f64..100.0), 1..200),
        wake in 1.0_f64..1e3,
        saving in 0.5_f64..100.0,
    ) {
        let mut ski = SkiRental::default();
        let (mut ours, mut clairvoyants) = (0.0, 0.0);
        for (spiteful, gap) in gaps {
            let terms = ski.terms(Joules(wake), Watts(saving));
            prop_assert!((0.0..=terms.buy.0 / terms.rent.0).contains(&terms.wait.0));
            let gap = Seconds(if spiteful { terms.wait.0 + 1e-6 } else { gap });
            ours += terms.cost(gap).0;
            clairvoyants += terms.clairvoyant(gap).0;
            ski.ended(gap, &terms);
            prop_assert!(ours <= 2.0 * clairvoyants + CREDIT * wake + 1e-6 * (1.0 + ours));
        }
    }
}

/// Runs whose true saving is known: the power of each spell scatters about that of its kind, and the samples of a quiet
/// spell hang together. The true saving is the difference of the two kinds over the parked time.
#[test]
fn interval_of_the_saving_covers_the_truth_in_93_to_97_of_100_runs() {
    const RUNS: u32 = 2000;
    const IDLE: f64 = 80.0;
    const PARKED: f64 = 50.0;
    let mut dice = Xoshiro256PlusPlus::seed_from_u64(7);
    for (quiet_sd, parked_sd) in [(3.0, 1.0), (1.0, 3.0)] {
        let scatter = |sd: f64| Normal::new(0.0, sd).unwrap();
        let mut covered = 0;
        for _ in 0..RUNS {
            let mut books = Books::default();
            let mut parked = 0.0;
            for _ in 0..Uniform::new(3, 30).unwrap().sample(&mut dice) {
                let level = IDLE + scatter(quiet_sd).sample(&mut dice);
                for _ in 0..Uniform::new(1, 60).unwrap().sample(&mut dice) {
                    books.quiet_power(Watts(level + scatter(0.3).sample(&mut dice)));
                }
                books.parked();
                let seconds = Exp::new(1.0 / 600.0).unwrap().sample(&mut dice);
                let watts = PARKED + scatter(parked_sd).sample(&mut dice);
                parked += seconds;
                books.parked_span(Seconds(seconds), Some(Joules(seconds * watts)));
                books.woken("utilization", false);
            }
            let truth = (IDLE - PARKED) * parked;
            covered +=
                u32::from(books.saved().is_some_and(|saved| saved.low <= truth && truth <= saved.high));
        }
        let share = f64::from(covered) / f64::from(RUNS);
        assert!((0.93..=0.97).contains(&share), "scatter {quiet_sd} W, {parked_sd} W: {share}");
    }
}
