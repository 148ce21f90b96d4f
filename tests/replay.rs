//! What a daemon recorded, repeated by `agft replay`: whatever happened to it meanwhile.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use support::daemon::{Bench, Finished};
use support::engine::Behaviour;

/// The directory of the one run.
fn run_dir(bench: &Bench) -> String {
    let runs = bench.runs();
    assert_eq!(runs.len(), 1);
    runs[0].to_str().expect("a path").to_owned()
}

fn replay(bench: &Bench, more: &[&str]) -> (Finished, Value) {
    let dir = run_dir(bench);
    let done = bench.run(&[&["replay", &dir, "--json"], more].concat());
    let value = serde_json::from_str(&done.out).unwrap_or(Value::Null);
    (done, value)
}

fn steps(bench: &Bench) -> Vec<PathBuf> {
    let dir = Path::new(&run_dir(bench)).join("steps");
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir).expect("steps").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

#[test]
fn reload_outage_pause_and_broken_limits_come_out_the_same_bit_for_bit() {
    let bench = Bench::new().set("control.tpot_limit", "0.5");
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(5);
    bench.engine.behave(Behaviour::Status500);
    daemon.wait_for_log("metrics endpoint out");
    bench.engine.behave(Behaviour::Serve);
    daemon.wait_for_lessons(3);
    assert_eq!(bench.run(&["pause"]).code, Some(0));
    daemon.wait_for_log("paused");
    assert_eq!(bench.run(&["resume"]).code, Some(0));
    daemon.wait_for_lessons(3);
    // A limit that every step of this engine breaks.
    let bench = bench.set("control.tpot_limit", "0.001").set("control.ttft_limit", "0.001");
    bench.config();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("configuration reloaded");
    daemon.wait_for_log("latency limit broken");
    daemon.stop();

    let (done, same) = replay(&bench, &[]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert_eq!(same["first_difference"], Value::Null);
    assert_eq!(same["notes"], serde_json::json!([]));
    assert_eq!(same["segments"], 2, "one before the reload and one after it");
    assert_eq!(same["recorded_by"][0], env!("CARGO_PKG_VERSION"));
    let rounds = bench.rounds();
    assert_eq!(same["rounds"], rounds.len(), "every round is in it");
    assert!(same["decisions"].as_u64() > Some(10), "{same}");
    for state in ["OUTAGE", "SLO_GUARD"] {
        assert!(
            daemon.log().contains(state) || rounds.iter().any(|r| r.state.as_deref() == Some(state)),
            "{state}"
        );
    }
    let text = bench.run(&["replay", &run_dir(&bench)]);
    assert!(text.out.contains("every step came out the same, bit for bit"), "{}", text.out);

    let (done, other) = replay(&bench, &["--policy", "structured", "--set", "gpu.min_frequency=900"]);
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert_eq!(other["policy"], "structured");
    assert!(other["rounds"].as_u64() > Some(10), "{other}");
    assert!(other["reward"]["refused"].is_string(), "some seconds cannot tell: {other}");
    let (done, _) = replay(&bench, &["--set", "gpu.min_frequncy=900"]);
    assert_eq!(done.code, Some(64));
    assert!(done.err.contains("gpu.min_frequency"), "{}", done.err);
}

#[test]
fn a_killed_run_is_repeated_up_to_its_last_batch_and_a_damaged_one_is_refused_by_name() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    // Ticks of 50 ms: 100 steps are a batch.
    daemon.wait_for_lessons(60);
    std::thread::sleep(std::time::Duration::from_secs(3));
    daemon.signal(Signal::KILL);
    daemon.wait();
    let (done, same) = replay(&bench, &[]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert!(same["steps"].as_u64() >= Some(100), "{same}");
    assert!(same["notes"][0].as_str().is_some_and(|note| note.contains("was killed")), "{same}");

    let file = steps(&bench).remove(0);
    let sound = fs::read(&file).expect("a segment");
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    for (bytes, says) in [(&flipped[..], "damaged"), (b"something else", "not a file of steps")] {
        fs::write(&file, bytes).expect("a segment");
        let (done, same) = replay(&bench, &[]);
        assert_eq!(done.code, Some(1), "{}{}", done.out, done.err);
        let text = format!("{}{}", done.err, same["damage"]);
        assert!(text.contains("000001.agft-steps") && text.contains(says), "{text}");
    }
    fs::remove_file(&file).expect("a segment");
    let (done, _) = replay(&bench, &[]);
    assert_eq!(done.code, Some(1));
    assert!(done.err.contains("holds no steps"), "{}", done.err);
}

#[test]
fn data_collection_is_repeated_and_can_be_asked_and_zero_keeps_no_steps() {
    let bench = Bench::new();
    bench.engine.set_load(0.6);
    let mut daemon = bench.start(&["--data-collection-mode"]);
    support::eventually(|| bench.rounds().len(), |rounds| *rounds > 40);
    daemon.stop();
    let (done, same) = replay(&bench, &[]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert_eq!(same["decisions"], 0, "it only recorded");
    let (done, other) = replay(&bench, &["--policy", "linucb"]);
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(other["rounds"].as_u64() > Some(20), "{other}");
    let clocks = other["clocks"].as_array().expect("clocks");
    assert!(
        clocks.iter().any(|clock| clock["core"].is_u64() && clock["other"].as_u64() > Some(0)),
        "{other}"
    );
    assert!(other["notes"][0].as_str().is_some_and(|note| note.contains("only recorded")), "{other}");

    let bench = Bench::new().set("experiment.keep_steps_mb", "0");
    let mut daemon = bench.serve(&[]);
    daemon.stop();
    let (done, _) = replay(&bench, &[]);
    assert!(done.err.contains("keep_steps_mb: 0"), "{}", done.err);
}
