//! An endpoint in trouble: nothing crashes, no clock stays locked blindly, an outage is no idleness, and what was
//! learned is not poisoned.

mod support;

use std::time::Duration;

use agft::store::RoundRecord;
use support::daemon::{Bench, IDLE_MHZ};
use support::engine::Behaviour;
use support::eventually;

/// Every number of these rounds that a model learns from or a human reads.
fn numbers(round: &RoundRecord) -> impl Iterator<Item = f64> {
    let features = features(round);
    let costs = [round.reward, round.energy_j, round.tpot_avg, round.edp_raw, round.prefill_throughput_tps];
    let more = [round.decode_throughput_tps, round.ttft_avg, round.e2e_avg, round.alpha_value];
    features.into_iter().chain(costs).chain(more).flatten()
}

fn features(round: &RoundRecord) -> [Option<f64>; 7] {
    [
        round.has_queue,
        round.prefill_throughput_feature,
        round.decode_throughput_feature,
        round.packing_efficiency,
        round.concurrency,
        round.gpu_cache_usage,
        round.cache_hit_rate,
    ]
}

fn assert_sound(bench: &Bench) {
    let rounds = bench.rounds();
    assert!(!rounds.is_empty());
    for round in rounds {
        assert!(features(&round).iter().all(Option::is_some), "{round:?}");
        assert!(numbers(&round).all(f64::is_finite), "{round:?}");
        assert!(features(&round).into_iter().flatten().all(|value| value >= 0.0), "{round:?}");
    }
}

/// Trouble that outlasts `outage_after_s`: clocks back, the GPU's rest is not taken for idleness, and all is well after.
fn outage(behaviour: Behaviour) {
    outage_with(behaviour, &Bench::new());
}

fn outage_with(behaviour: Behaviour, bench: &Bench) {
    let mut daemon = bench.serve(&[]);
    bench.engine.behave(behaviour);
    bench.wait_for_release(&daemon);
    // The server's page is out of order and its GPU rests: that is no reason to park.
    bench.engine.set_load(0.0);
    // To give back is two calls, of which the first frees the core clock: the second may still come.
    std::thread::sleep(Duration::from_millis(150));
    let before = bench.mock.history().len();
    std::thread::sleep(Duration::from_millis(300));
    assert!(bench.is_free(), "{behaviour:?}: locked during an outage\n{}", daemon.tail());
    assert_eq!(bench.mock.history().len(), before, "{behaviour:?}: clock writes during an outage");
    assert!(daemon.is_running(), "{}", daemon.tail());
    bench.engine.set_load(0.6);
    bench.engine.behave(Behaviour::Serve);
    bench.wait_for_lock(&daemon);
    daemon.wait_for_lessons(2);
    daemon.stop();
    assert!(daemon.log().contains("metrics endpoint out: clocks given back"), "{}", daemon.tail());
    assert!(daemon.log().contains("metrics endpoint is back"), "{}", daemon.tail());
    let parked = bench.mock.history().into_iter().find(|write| write.args[1] == IDLE_MHZ);
    assert_eq!(parked, None, "{behaviour:?}: parked");
    bench.assert_given_back(daemon.pid());
    assert_sound(bench);
}

#[test]
fn refused_connections_are_an_outage() {
    outage(Behaviour::Refuse);
}

#[test]
fn refused_connections_are_an_outage_for_the_default_policy_too() {
    outage_with(Behaviour::Refuse, &Bench::new().set("control.policy", "structured"));
}

#[test]
fn server_that_never_answers_is_an_outage() {
    outage(Behaviour::Hang);
}

#[test]
fn status_500_is_an_outage() {
    outage(Behaviour::Status500);
}

#[test]
fn empty_body_is_an_outage() {
    outage(Behaviour::Empty);
}

#[test]
fn html_page_is_an_outage() {
    outage(Behaviour::Html);
}

#[test]
fn ten_megabytes_of_garbage_are_an_outage() {
    outage(Behaviour::Huge);
}

#[test]
fn page_cut_short_is_an_outage() {
    outage(Behaviour::Truncated);
}

#[test]
fn page_that_is_not_text_is_an_outage() {
    outage(Behaviour::NotUtf8);
}

#[test]
fn page_of_nothing_but_nan_is_an_outage() {
    outage(Behaviour::Poison("NaN"));
}

#[test]
fn page_of_nothing_but_infinities_is_an_outage() {
    outage(Behaviour::Poison("+Inf"));
}

#[test]
fn page_of_nothing_but_negative_numbers_is_an_outage() {
    outage(Behaviour::Poison("-1"));
}

#[test]
fn page_with_every_series_twice_is_an_outage() {
    outage(Behaviour::Duplicates);
}

#[test]
fn engine_upgraded_to_unknown_names_is_an_outage() {
    outage(Behaviour::OtherNames);
}

#[test]
fn connection_that_is_reset_is_an_outage() {
    outage(Behaviour::Reset);
}

#[test]
fn counters_that_run_backwards_cost_a_window_and_no_more() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    for _ in 0..3 {
        bench.engine.go_back();
        daemon.wait_for_lessons(2);
    }
    daemon.stop();
    assert!(daemon.log().contains("ran backwards"), "{}", daemon.tail());
    assert_sound(&bench);
    bench.assert_given_back(daemon.pid());
}

#[test]
fn engine_that_restarts_costs_a_window_and_no_more() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    for _ in 0..3 {
        bench.engine.restart();
        daemon.wait_for_lessons(2);
    }
    daemon.stop();
    assert!(daemon.log().contains("engine restarted or counters reset"), "{}", daemon.tail());
    assert_sound(&bench);
    bench.assert_given_back(daemon.pid());
}

#[test]
fn single_failures_between_good_pages_cost_nothing() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    for behaviour in [Behaviour::Status500, Behaviour::Truncated, Behaviour::Poison("NaN"), Behaviour::Empty]
    {
        bench.engine.behave(behaviour);
        let served = bench.engine.served();
        std::thread::sleep(Duration::from_millis(60));
        bench.engine.behave(Behaviour::Serve);
        assert!(eventually(|| bench.engine.served(), |now| *now > served + 2) > served + 2);
    }
    daemon.wait_for_lessons(2);
    daemon.stop();
    assert_sound(&bench);
    bench.assert_given_back(daemon.pid());
}

#[test]
fn daemon_that_starts_before_its_server_waits_for_it() {
    let bench = Bench::new();
    bench.engine.behave(Behaviour::Refuse);
    let mut daemon = bench.start(&[]);
    daemon.wait_for_log("metrics endpoint out");
    assert!(daemon.log().contains("connection refused; is the server running"), "{}", daemon.tail());
    assert!(bench.is_free());
    bench.engine.set_load(0.6);
    bench.engine.behave(Behaviour::Serve);
    bench.wait_for_lock(&daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}
