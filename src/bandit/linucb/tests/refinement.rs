//! From the coarse grid to clocks around an anchor, and from core clocks to pairs.

use super::*;

#[test]
fn refinement_adds_clocks_around_the_best_and_keeps_the_coarse_grid() {
    let space = space_of((210..=1410).step_by(15), &[]);
    let mut policy = LinUcb::new(LinUcbSettings { coarse_step_mhz: Mhz(90), ..unpruned() });
    let early = play(&mut policy, &space, 80, bowl(840));
    let coarse: BTreeSet<Clocks> = early.iter().filter_map(|choice| choice.target.clocks()).collect();
    assert_eq!(coarse.len(), 15);
    play(&mut policy, &space, 1, bowl(840));
    let anchor = policy.durable.shortlist.anchor.unwrap();
    assert!(anchor.core.abs_diff(Mhz(840)) <= Mhz(90), "{anchor}");
    let members = policy.durable.shortlist.members(&space, Mhz(90));
    assert!(coarse.iter().all(|clocks| members.contains(clocks)));
    let fine = space.arms().iter().filter(|arm| arm.core.abs_diff(anchor.core) <= Mhz(150));
    assert!(fine.into_iter().all(|arm| members.contains(arm)));
    play(&mut policy, &space, 600, bowl(840));
    let best = choose(&mut policy, &space, 0.0).target.clocks().unwrap();
    assert!(best.core.abs_diff(Mhz(840)) <= Mhz(30), "{best}");
    assert_eq!(restarted(&policy).durable.shortlist, policy.durable.shortlist);
}

#[test]
fn refined_clocks_respect_the_floor_and_are_tried_from_the_top() {
    let mut space = space_of((210..=1410).step_by(15), &[]);
    let mut policy = LinUcb::new(LinUcbSettings { coarse_step_mhz: Mhz(90), ..unpruned() });
    space.set_floor(Some(Mhz(900)));
    play(&mut policy, &space, 80, bowl(900));
    let next = choose(&mut policy, &space, 0.0);
    assert_eq!(next.reason, Reason::Sweep);
    assert!(policy.durable.shortlist.window.iter().all(|clocks| clocks.core >= Mhz(900)));
    let unvisited: Vec<Clocks> = policy
        .durable
        .shortlist
        .window
        .iter()
        .copied()
        .filter(|clocks| !policy.durable.visited.contains(clocks))
        .collect();
    assert_eq!(play(&mut policy, &space, 1, bowl(900))[0].target, Target::Lock(unvisited[0]));
}

#[test]
fn memory_control_switched_on_later_inherits_by_copy_and_not_by_reference() {
    let mut policy = LinUcb::new(unpruned());
    let cores = space_of([900, 600].into_iter(), &[]);
    play(&mut policy, &cores, 30, bowl(600));
    let mut policy = restarted(&policy);
    let pairs = space_of([900, 600].into_iter(), &[9501, 810]);
    let first = choose(&mut policy, &pairs, 0.0);
    assert_eq!(first.reason, Reason::Ucb);
    for memory in [9501, 810] {
        assert_eq!(policy.durable.arms[&pair(600, memory)], policy.durable.arms[&core(600)]);
    }
    policy.learn(pair(600, 810), &CONTEXT, -5.0).unwrap();
    assert_eq!(policy.durable.arms[&pair(600, 9501)], policy.durable.arms[&core(600)]);
    assert_ne!(policy.durable.arms[&pair(600, 810)], policy.durable.arms[&core(600)]);
    // A restart later: the pairs' own lessons are still theirs.
    let mut policy = restarted(&policy);
    let own = policy.durable.arms[&pair(600, 810)].clone();
    choose(&mut policy, &pairs, 0.0);
    assert_eq!(policy.durable.arms[&pair(600, 810)], own);
}
