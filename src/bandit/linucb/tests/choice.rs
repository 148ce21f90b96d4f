//! Sweep, dwell, choice, and what may be chosen.

use super::*;
use crate::reward::RewardForm;

#[test]
fn first_sweep_goes_from_the_top_down_and_once() {
    let (mut policy, space) = (LinUcb::new(unpruned()), space());
    let choices = play(&mut policy, &space, space.arms().len(), |_| 0.0);
    assert!(choices.iter().all(|choice| choice.reason == Reason::Sweep));
    let seen: Vec<Clocks> = choices.iter().filter_map(|choice| choice.target.clocks()).collect();
    assert_eq!(seen, space.arms());
    assert_eq!(choose(&mut policy, &space, 99.0).reason, Reason::Ucb);
}

#[test]
fn sweep_over_pairs_is_nested_in_core_clocks() {
    let space = space_of([900, 600].into_iter(), &[9501, 810]);
    let choices = play(&mut LinUcb::new(unpruned()), &space, 4, |_| 0.0);
    let seen: Vec<Clocks> = choices.iter().filter_map(|choice| choice.target.clocks()).collect();
    assert_eq!(seen, [pair(900, 9501), pair(900, 810), pair(600, 9501), pair(600, 810)]);
}

#[test]
fn sweep_skips_what_is_not_allowed_and_makes_up_for_it_later() {
    let (mut policy, mut space) = (LinUcb::new(unpruned()), space());
    space.fail(core(1300), "does not hold".into(), Time(0.0));
    let choices = play(&mut policy, &space, 12, |_| 0.0);
    assert!(choices.iter().all(|choice| choice.target != Target::Lock(core(1300))));
    let late = choose(&mut policy, &space, 601.0);
    assert_eq!((late.target, late.reason), (Target::Lock(core(1300)), Reason::Sweep));
}

#[test]
fn sweep_of_a_fine_space_visits_the_coarse_grid_with_both_ends() {
    let space = space_of((210..=1410).step_by(15), &[]);
    let mut policy = LinUcb::new(LinUcbSettings { coarse_step_mhz: Mhz(90), ..unpruned() });
    let choices = play(&mut policy, &space, 15, |_| 0.0);
    let seen: Vec<u32> =
        choices.iter().filter_map(|choice| choice.target.clocks()).map(|c| c.core.0).collect();
    let expected: Vec<u32> = (0..14).map(|k| 1410 - 90 * k).chain([210]).collect();
    assert_eq!(seen, expected);
}

#[test]
fn interrupted_sweep_step_is_taken_again() {
    let (mut policy, space) = (LinUcb::new(settings()), space());
    let first = choose(&mut policy, &space, 0.0).target;
    policy.interrupt();
    assert_eq!(choose(&mut policy, &space, 1.0).target, first);
}

#[test]
fn sweep_continues_where_a_saved_model_stopped() {
    let (mut policy, space) = (LinUcb::new(settings()), space());
    play(&mut policy, &space, 5, |_| 0.0);
    assert_eq!(choose(&mut restarted(&policy), &space, 0.0).target, Target::Lock(space.arms()[5]));
}

#[test]
fn clock_is_held_for_its_dwell_unless_it_is_taken_away() {
    let mut space = space();
    let mut policy = LinUcb::new(LinUcbSettings { dwell: Seconds(0.8), ..settings() });
    let first = choose(&mut policy, &space, 0.0).target;
    assert_eq!(choose(&mut policy, &space, 0.3).reason, Reason::Dwell);
    assert_eq!(choose(&mut policy, &space, 0.6).target, first);
    assert_ne!(choose(&mut policy, &space, 0.9).target, first);
    let second = choose(&mut policy, &space, 0.95).target.clocks().unwrap();
    space.fail(second, "does not hold".into(), Time(1.0));
    assert_ne!(choose(&mut policy, &space, 1.0).target, Target::Lock(second));
}

#[test]
fn refused_lesson_changes_nothing() {
    let mut policy = LinUcb::new(settings());
    let before = bytes(&policy);
    assert!(policy.learn(core(900), &[f64::NAN; 7], 0.0).is_err());
    assert!(policy.learn(core(900), &CONTEXT, f64::NAN).is_err());
    assert_eq!(bytes(&policy), before);
}

#[test]
fn change_in_the_form_of_the_reward_starts_afresh_and_other_changes_do_not() {
    let (mut policy, space) = (LinUcb::new(settings()), space());
    play(&mut policy, &space, 20, |_| 0.1);
    policy.configure(LinUcbSettings { min_alpha: 0.3, ..settings() });
    assert_eq!(policy.durable.rounds, 20);
    let clipped = LinUcbSettings { reward: RewardForm::Clipped, ..settings() };
    policy.configure(clipped.clone());
    assert_eq!(policy, LinUcb::new(clipped));
}

#[test]
fn nothing_allowed_means_driver_default_until_something_is() {
    let (mut policy, mut space) = (LinUcb::new(settings()), space());
    space.set_floor(Some(Mhz(5000)));
    let choice = choose(&mut policy, &space, 0.0);
    assert_eq!((choice.target, choice.reason), (Target::Default, Reason::NothingAllowed));
    space.set_floor(Some(Mhz(1400)));
    assert_eq!(choose(&mut policy, &space, 0.0).target, Target::Lock(core(1400)));
}

#[test]
fn clock_that_was_given_up_serves_where_limits_and_failures_leave_no_other() {
    let (mut policy, mut space) = (LinUcb::new(settings()), space());
    teach(&mut policy, &space, 3, |clocks| if clocks.core >= Mhz(1300) { -2.0 } else { 0.5 });
    choose(&mut policy, &space, 0.0);
    assert!(policy.durable.pruning.is_out(core(1400)) && policy.durable.pruning.is_out(core(1300)));
    space.set_floor(Some(Mhz(1300)));
    assert!(choose(&mut policy, &space, 0.0).target.clocks().unwrap().core >= Mhz(1300));
    space.set_floor(None);
    assert!(choose(&mut policy, &space, 0.0).target.clocks().unwrap().core < Mhz(1300));
}

#[test]
fn clock_off_the_coarse_grid_serves_where_it_is_the_only_one_left() {
    let mut space = space_of((210..=1410).step_by(15), &[]);
    let mut policy = LinUcb::new(LinUcbSettings { coarse_step_mhz: Mhz(90), ..settings() });
    for arm in space.arms().to_vec() {
        if arm != core(1005) {
            space.fail(arm, "does not hold".into(), Time(0.0));
        }
    }
    assert_eq!(choose(&mut policy, &space, 0.0).target, Target::Lock(core(1005)));
}

#[test]
fn clock_that_the_card_chose_itself_is_on_the_shortlist() {
    // On the board's list, and between the arms.
    let core_clocks = (2..=14).map(|k| Mhz(STEP * k)).chain([Mhz(1155)]).collect();
    let level = MemoryLevel { memory: Mhz(1593), core: core_clocks };
    let settings =
        SpaceSettings { min_core: Mhz(0), step: Mhz(STEP), memory: Vec::new(), retry_after: Seconds(600.0) };
    let mut space = ActionSpace::new(&SupportedClocks::new(vec![level]).unwrap(), &settings);
    assert!(!space.arms().contains(&core(1155)));
    let mut policy = LinUcb::new(unpruned());
    play(&mut policy, &space, 13, |_| 0.0);
    space.add(core(1155));
    let choice = choose(&mut policy, &space, 0.0);
    assert_eq!((choice.target, choice.reason), (Target::Lock(core(1155)), Reason::Sweep));
}
