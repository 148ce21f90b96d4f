//! What the view says a run is worth, beside what the run came to: demos in virtual time, with and without
//! agft.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use agft::config::{Config, PolicyKind};
use agft::control::{Controller, Observation, Output};
use agft::holdout::Savings;
use agft::stats::Interval;
use agft::units::Seconds;
use agft::view::{About, Source, State, StepFacts, View};
use agft_lab::policy::as_configured;
use agft_lab::sim::run::{Driver, Onlooker, RunSpec, run};
use agft_lab::sim::{Arrivals, Pattern, World, WorldSpec};

/// Keeps a view up to date.
struct Viewer(View);

impl Onlooker for Viewer {
    fn look(&mut self, seen: &Observation, output: &Output, controller: &Controller) {
        self.0.step(&StepFacts {
            seen,
            output,
            controller,
            savings: &Savings::default(),
            lateness: None,
            took: Seconds(0.0),
            not_given_back: false,
            unix_time: 1.7e9 + seen.now.0,
        });
    }
}

/// A demo: the same requests at default clocks and under agft.
struct Demo {
    state: State,
    /// Relative changes of energy and mean time per output token, as the final table has them.
    energy: f64,
    tpot: f64,
}

/// What to run: GPU, model, pattern, seconds.
type Of = (&'static str, &'static str, Pattern, f64);

fn demo(of: Of, seed: u64, set: impl Fn(&mut Config)) -> Demo {
    let (gpu, model, pattern, seconds) = of;
    let world = WorldSpec::named(gpu, model, pattern, None).unwrap();
    let Arrivals::Open(load) = &world.arrivals else { panic!("the demo's load is an open one") };
    let requests = load.requests(seconds, seed);
    let world = WorldSpec { arrivals: Arrivals::Listed(requests), ..world };
    let mut config = Config::default();
    config.holdout.share = 0.0;
    set(&mut config);
    let supported = World::new(world.clone(), seed).unwrap().supported_clocks().unwrap();
    let mut controller = as_configured(&config, &supported);
    let about = About {
        name: "demo".into(),
        policy: config.control.policy.to_string(),
        objective: config.control.objective.to_string(),
        limits: controller.settings().limits,
    };
    let view = View::new(about, &[], &controller, &Savings::default(), 1.7e9);
    let mut viewer = Viewer(view);
    let spec = RunSpec { world, seed, seconds: Seconds(seconds), tick: config.control.decision_interval_s };
    let agft = run(&spec, Driver::Watched(&mut controller, &mut viewer), |_| {}).unwrap().whole();
    let default = run(&spec, Driver::Default, |_| {}).unwrap().whole();
    Demo {
        state: viewer.0.state().clone(),
        energy: agft.energy.0 / default.energy.0 - 1.0,
        tpot: agft.tpot.mean / default.tpot.mean - 1.0,
    }
}

/// The sign of the interval is that of the truth, or the truth is too near to nothing to have one; and the
/// truth is within 1.5 half-widths, which one run in three hundred would miss if the intervals were right.
fn agrees(what: &str, said: Option<Interval>, truth: f64) {
    let said = said.unwrap_or_else(|| panic!("{what}: not known at the end of a demo"));
    assert!(said.sign().is_none_or(|more| more == (truth > 0.0)), "{what}: {said:?} and {truth:+.3}");
    assert!((said.value - truth).abs() < 1.5 * said.half_width, "{what}: {said:?} and {truth:+.3}");
}

fn agree(of: Of, seeds: std::ops::RangeInclusive<u64>, set: impl Fn(&mut Config)) {
    for seed in seeds {
        let demo = demo(of, seed, &set);
        let verdict = &demo.state.verdict;
        eprintln!(
            "{of:?}, seed {seed}: energy {:+.1} %, TPOT {:+.1} %; {} ({})",
            100.0 * demo.energy,
            100.0 * demo.tpot,
            verdict.words,
            verdict.basis()
        );
        assert_eq!(verdict.source, Some(Source::Model));
        agrees("energy", verdict.saved, -demo.energy);
        agrees("time per token", verdict.slower, demo.tpot);
        agrees("EDP", verdict.edp, (1.0 + demo.energy) * (1.0 + demo.tpot) - 1.0);
        assert!(demo.state.estimate.compared_s > 0.8 * of.3, "{:?}", demo.state.estimate);
    }
}

#[test]
fn the_verdict_at_the_end_of_a_demo_agrees_with_its_final_table() {
    agree(("rtx4090", "8b", Pattern::Steady, 60.0), 1..=4, |_| ());
    agree(("a100", "8b", Pattern::Steady, 120.0), 1..=2, |_| ());
}

#[test]
fn the_verdict_agrees_where_the_load_changes_too() {
    agree(("rtx4090", "3b", Pattern::Bursty, 180.0), 1..=2, |_| ());
}

#[test]
fn the_verdict_agrees_where_much_is_saved_for_much_delay() {
    let unbounded = |config: &mut Config| config.control.max_slowdown_percent = None;
    agree(("rtx4090", "8b", Pattern::Steady, 120.0), 1..=3, unbounded);
}

/// Without a model there are only the windows at default clocks to go by: what they cannot tell is not told.
#[test]
fn linucb_is_told_what_windows_at_default_clocks_can_tell_or_nothing() {
    for seed in 1..=2 {
        let demo = demo(("rtx4090", "8b", Pattern::Steady, 120.0), seed, |config| {
            config.control.policy = PolicyKind::LinUcb;
        });
        let verdict = &demo.state.verdict;
        eprintln!(
            "linucb, seed {seed}: energy {:+.3}, TPOT {:+.3}; {}",
            demo.energy, demo.tpot, verdict.words
        );
        if verdict.saved.is_some() {
            assert_eq!(verdict.source, Some(Source::Baseline));
            agrees("energy", verdict.saved, -demo.energy);
        }
    }
}

/// A minute is enough to be sure on a steady load, and 19 rounds are not: the window is 100.
#[test]
fn a_steady_demo_converges_after_its_window_and_says_since_when_and_what_it_expects() {
    let early = demo(("rtx4090", "8b", Pattern::Steady, 25.0), 1, |_| ()).state.learner;
    assert!(!early.converged && early.converged_round.is_none(), "{early:?}");
    let learner = demo(("rtx4090", "8b", Pattern::Steady, 150.0), 1, |_| ()).state.learner;
    let (round, since) = (learner.converged_round.unwrap(), learner.converged_unix_s.unwrap());
    assert!(learner.converged && round >= 100, "round {round}");
    approx::assert_relative_eq!(since - 1.7e9, 0.3 * round as f64, epsilon = 1.5);
    let chosen = learner.chosen.unwrap();
    assert!(chosen.core.is_some());
    let energy = chosen.ratios.unwrap().energy.change();
    assert_eq!(energy.sign(), Some(false), "less energy: {energy:?}");
    assert!(learner.by_load.iter().all(|best| best.ratios.is_some()));
}
