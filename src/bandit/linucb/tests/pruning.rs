//! Clocks are given up, and come back.

use super::*;
use crate::bandit::PrunedArm;
use crate::bandit::prune::{Cause, DEVIATION_FLOOR};

#[test]
fn far_too_bad_clock_is_given_up_after_three_lessons_and_takes_lower_ones_with_it() {
    let (mut policy, space) = (LinUcb::new(settings()), space());
    for _ in 0..3 {
        for clocks in [core(1400), core(1300), core(600)] {
            policy.learn(clocks, &CONTEXT, if clocks.core == Mhz(600) { -1.3 } else { 0.1 }).unwrap();
        }
    }
    choose(&mut policy, &space, 0.0);
    let summary = policy.summary();
    let pruned: Vec<u32> = summary.pruned.iter().map(|arm| arm.clocks.core.0).collect();
    assert_eq!(pruned, [600, 500, 400, 300, 200]);
    assert_eq!(summary.pruned[0].cause, Some(Cause::Extreme { threshold: -1.2 }));
    assert_eq!(summary.pruned[1].cause, Some(Cause::Cascade { trigger: core(600) }));
    assert_eq!((policy.durable.pruning.direct, policy.durable.pruning.cascaded), (1, 4));
}

#[test]
fn extreme_pruning_ends_after_its_rounds() {
    let (mut policy, space) =
        (LinUcb::new(LinUcbSettings { enable_action_pruning: false, ..settings() }), space());
    play(&mut policy, &space, 61, |_| 0.1);
    for _ in 0..50 {
        policy.learn(core(600), &CONTEXT, -9.0).unwrap();
    }
    choose(&mut policy, &space, 0.0);
    assert_eq!(policy.summary().pruned, []);
}

#[test]
fn clocks_that_cost_clearly_more_are_given_up() {
    let (mut policy, space) = (LinUcb::new(settings()), space());
    teach(&mut policy, &space, 5, |clocks| if clocks.core == Mhz(1000) { 0.1 } else { 0.5 });
    choose(&mut policy, &space, 0.0);
    assert_eq!(policy.summary().pruned, []);
    // The next comparison is due 20 rounds after the last.
    teach(&mut policy, &space, 2, |clocks| if clocks.core == Mhz(1000) { 0.1 } else { 0.5 });
    choose(&mut policy, &space, 0.0);
    let pruned = policy.summary().pruned;
    let [PrunedArm { clocks, round: 91, cause: Some(Cause::Cost { best, gap, threshold, .. }) }] = pruned[..]
    else {
        panic!("{pruned:?}")
    };
    assert_eq!((clocks, best), (core(1000), core(1400)));
    approx::assert_relative_eq!(gap, 0.4, max_relative = 1e-12);
    approx::assert_relative_eq!(threshold, 4.0 * DEVIATION_FLOOR, max_relative = 1e-12);
}

#[test]
fn pairs_are_pruned_one_by_one_and_with_those_below_them() {
    let space = space_of([900, 600, 400, 300].into_iter(), &[9501, 810]);
    let mut policy = LinUcb::new(settings());
    let bad = pair(400, 810);
    for _ in 0..3 {
        for arm in space.arms() {
            policy.learn(*arm, &CONTEXT, if *arm == bad { -1.5 } else { 0.1 }).unwrap();
        }
    }
    choose(&mut policy, &space, 0.0);
    let pruned: Vec<Clocks> = policy.summary().pruned.iter().map(|arm| arm.clocks).collect();
    assert_eq!(pruned, [bad, pair(300, 810)]);
    assert!(
        policy
            .durable
            .open(View { now: Time(0.0), context: &CONTEXT, space: &space })
            .iter()
            .all(|c| *c != bad)
    );
}

#[test]
fn two_clocks_stay_even_if_all_are_far_too_bad() {
    let (mut policy, space) = (LinUcb::new(settings()), space());
    play(&mut policy, &space, 120, |clocks| -3.0 + bowl(900)(clocks));
    let left = space.arms().len() - policy.summary().pruned.len();
    assert_eq!(left, 2);
    assert!(!policy.durable.pruning.is_out(core(900)) || policy.durable.arms[&core(900)].arm.lessons() < 3);
}

#[test]
fn way_down_the_first_sweep_ends_where_it_only_gets_worse() {
    let (mut policy, space) = (LinUcb::new(LinUcbSettings { dwell: Seconds(0.8), ..settings() }), space());
    let mut visited = Vec::new();
    for tick in 0..60 {
        let clocks = choose(&mut policy, &space, 0.3 * f64::from(tick)).target.clocks().unwrap();
        let reward = if clocks.core > Mhz(700) { 0.3 } else { -0.4 };
        policy.learn(clocks, &CONTEXT, reward).unwrap();
        if visited.last() != Some(&clocks.core.0) {
            visited.push(clocks.core.0);
        }
    }
    assert_eq!(visited[..9], [1400, 1300, 1200, 1100, 1000, 900, 800, 700, 600]);
    assert_eq!(visited[9], 500);
    assert!(visited[10..].iter().all(|mhz| *mhz >= 500), "{visited:?}");
    let cause = policy.summary().pruned.last().unwrap().cause;
    assert_eq!(cause, Some(Cause::Descent { trigger: core(500) }));
}

#[test]
fn clock_given_up_is_measured_anew_after_a_long_time_even_in_exploitation() {
    let (mut policy, space) = (LinUcb::new(settings()), space());
    teach(&mut policy, &space, 3, |clocks| if clocks.core == Mhz(900) { 0.5 } else { -1.5 });
    play(&mut policy, &space, 600, |clocks| if clocks.core == Mhz(900) { 0.5 } else { -1.5 });
    assert!(policy.durable.exploiting);
    let out = policy.summary().pruned.len();
    let retrials = |choices: Vec<Choice>| {
        let again = choices.iter().filter(|choice| choice.reason == Reason::Retrial);
        again.filter_map(|choice| choice.target.clocks()).collect::<BTreeSet<Clocks>>()
    };
    // As bad as before: it goes again, and no clock stays on trial.
    let tried =
        retrials(play(&mut policy, &space, 600, |clocks| if clocks.core == Mhz(900) { 0.5 } else { -1.5 }));
    assert!(tried.contains(&core(1000)) && tried.contains(&core(800)), "{tried:?}");
    assert_eq!(policy.summary().pruned.len(), out);
    // Better than the best by now: it is found, one trial after the other.
    play(&mut policy, &space, 4000, |clocks| if clocks.core == Mhz(1000) { 1.0 } else { 0.5 });
    assert_eq!(choose(&mut policy, &space, 0.0).target, Target::Lock(core(1000)));
    assert!(policy.durable.pruning.records().any(|record| record.returned.is_some()));
}

#[test]
fn degradation_brings_back_every_clock_given_up() {
    let (mut policy, space) = (LinUcb::new(settings()), space());
    teach(&mut policy, &space, 3, |clocks| if clocks.core == Mhz(900) { 0.5 } else { -1.5 });
    play(&mut policy, &space, 600, |clocks| if clocks.core == Mhz(900) { 0.5 } else { -1.5 });
    assert!(policy.durable.exploiting && !policy.summary().pruned.is_empty());
    let out: Vec<Clocks> = policy.summary().pruned.iter().map(|arm| arm.clocks).collect();
    while policy.durable.exploiting {
        play(&mut policy, &space, 1, |_| -0.5);
    }
    assert_eq!(policy.summary().pruned, []);
    let again = play(&mut policy, &space, out.len(), |_| -0.5);
    let swept: Vec<Clocks> = again.iter().filter_map(|choice| choice.target.clocks()).collect();
    assert_eq!(swept, space.arms()[..out.len()]);
}
