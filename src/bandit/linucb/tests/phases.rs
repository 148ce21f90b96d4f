//! Convergence, degradation, broken limits.

use super::*;
use crate::bandit::Phase;

#[test]
fn policy_finds_the_best_clock_of_a_noiseless_bowl_and_converges() {
    let (mut policy, space) = (LinUcb::new(unpruned()), space());
    play(&mut policy, &space, 600, bowl(900));
    let summary = policy.summary();
    assert!(summary.converged);
    assert_eq!(summary.phase, Phase::Exploitation);
    assert_eq!(choose(&mut policy, &space, 600.0).target, Target::Lock(core(900)));
    assert_eq!(summary.best(3).unwrap().clocks.core, Mhz(900));
}

#[test]
fn exploitation_is_greedy_over_pairs_and_leaves_out_what_was_never_tried() {
    let space = space_of([900, 600].into_iter(), &[9501, 810]);
    let mut policy = LinUcb::new(unpruned());
    policy.durable.exploiting = true;
    policy.learn(pair(900, 9501), &CONTEXT, -0.5).unwrap();
    policy.learn(pair(600, 9501), &CONTEXT, -0.1).unwrap();
    policy.learn(pair(900, 810), &CONTEXT, -0.7).unwrap();
    let choice = choose(&mut policy, &space, 0.0);
    assert_eq!((choice.target, choice.reason), (Target::Lock(pair(600, 9501)), Reason::Greedy));
}

#[test]
fn exploitation_stays_where_another_clock_promises_next_to_nothing_more() {
    let space = space();
    let mut policy = LinUcb::new(unpruned());
    policy.durable.exploiting = true;
    for _ in 0..50 {
        policy.learn(core(900), &CONTEXT, 0.300).unwrap();
        policy.learn(core(800), &CONTEXT, 0.295).unwrap();
        policy.learn(core(700), &CONTEXT, 0.340).unwrap();
    }
    policy.running.held = Some(Held { clocks: core(800), since: Time(0.0), reason: Reason::Greedy });
    let mut without = space.clone();
    without.fail(core(700), "does not hold".into(), Time(1.0));
    assert_eq!(choose(&mut policy, &without, 1.0).target, Target::Lock(core(800)));
    assert_eq!(choose(&mut policy, &space, 1.0).target, Target::Lock(core(700)));
}

#[test]
fn degradation_starts_learning_again_once_and_not_in_every_round() {
    let (mut policy, space) = (LinUcb::new(unpruned()), space());
    play(&mut policy, &space, 600, bowl(900));
    assert!(policy.durable.exploiting);
    let mut rounds = 0;
    while policy.durable.exploiting {
        play(&mut policy, &space, 1, |clocks| bowl(900)(clocks) - 1.0);
        rounds += 1;
        assert!(rounds < 100);
    }
    // A share p = k / 50 of the newer half is 1.0 dearer. That is too much when p exceeds ln 1.3, and no chance when it
    // exceeds 4 deviations, whose variance is p (1 - p) * 50 / 98 * 2 / 50.
    let is_seen = |k: &f64| {
        let p = k / 50.0;
        p > 1.3_f64.ln() && p > 4.0 * (p * (1.0 - p) / 49.0).sqrt()
    };
    let needed = (1..=50).map(f64::from).find(is_seen).unwrap();
    approx::assert_relative_eq!(f64::from(rounds), needed);
    assert_eq!(policy.durable.degradations, 1);
    for _ in 0..99 {
        play(&mut policy, &space, 1, |clocks| bowl(900)(clocks) - 1.0);
        assert!(!policy.durable.exploiting);
    }
    play(&mut policy, &space, 500, |clocks| bowl(900)(clocks) - 1.0);
    assert!(policy.durable.exploiting);
    assert_eq!(policy.durable.degradations, 1);
}

#[test]
fn noise_alone_is_no_degradation() {
    let (mut policy, space) = (LinUcb::new(unpruned()), space());
    let mut dice = Dice(7);
    play(&mut policy, &space, 6000, |clocks| bowl(900)(clocks) + 0.6 * dice.normal());
    assert!(policy.durable.exploiting);
    assert_eq!(policy.durable.degradations, 0);
}

#[test]
fn policy_follows_the_best_clock_when_it_moves() {
    let (mut policy, space) = (LinUcb::new(settings()), space());
    play(&mut policy, &space, 500, |clocks| 0.5 + bowl(700)(clocks));
    assert_eq!(choose(&mut policy, &space, 0.0).target, Target::Lock(core(700)));
    play(&mut policy, &space, 500, |clocks| 0.5 + bowl(1300)(clocks));
    let reached = choose(&mut policy, &space, 0.0).target.clocks().unwrap();
    assert!(reached.core.abs_diff(Mhz(1300)) <= Mhz(STEP), "{reached}");
}

#[test]
fn broken_limit_ends_exploitation_for_a_full_window_of_lessons() {
    let (mut policy, space) = (LinUcb::new(unpruned()), space());
    play(&mut policy, &space, 600, bowl(900));
    policy.limit_broken(core(900));
    assert_eq!(policy.summary().phase, Phase::Exploration);
    play(&mut policy, &space, 99, bowl(900));
    assert_eq!(policy.summary().phase, Phase::Exploration);
    play(&mut policy, &space, 1, bowl(900));
    assert_eq!(policy.summary().phase, Phase::Exploitation);
}
