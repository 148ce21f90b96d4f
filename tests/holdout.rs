//! The switchback holdout in the real daemon.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use support::daemon::Bench;
use support::eventually;

#[test]
fn the_daemon_holds_records_and_tells() {
    let bench = Bench::new()
        .set("holdout.share", "0.5")
        .set("holdout.block_s", "5")
        .set("holdout.settle_s", "1")
        .set("holdout.begin_after_s", "0");
    let mut daemon = bench.serve(&[]);
    let held = || bench.rounds().iter().filter(|round| round.holdout == Some(true)).count();
    assert!(eventually(held, |held| *held >= 20) >= 20, "{}", daemon.tail());
    let treated = || bench.rounds().iter().filter(|round| round.holdout == Some(false)).count();
    assert!(eventually(treated, |treated| *treated >= 20) >= 20, "{}", daemon.tail());
    let status = bench.run(&["status", "--json"]);
    daemon.stop();
    let host: serde_json::Value = serde_json::from_str(&status.out).unwrap();
    let state = &host["servers"][0];
    assert_eq!(state["savings"]["share"], 0.5, "{}", status.err);
    assert!(state["savings"]["held_s"].as_f64() > Some(0.5), "{}", state["savings"]);
    let rounds = bench.rounds();
    let mut of_held = rounds.iter().filter(|round| round.holdout == Some(true));
    assert!(of_held.all(|round| round.command.as_deref() == Some("driver default")));
    assert!(rounds.iter().any(|round| round.state.as_deref() == Some("HOLDOUT")));
    let report = bench.run(&["report", bench.runs().pop().unwrap().to_str().unwrap()]);
    assert!(report.out.contains("(measured) | too few cycles"), "{}", report.out);
}
