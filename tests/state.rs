//! What a run leaves on disk, and what the next one makes of it.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use agft::store::{RoundRecord, raw};
use agft::units::Mhz;
use nvidia_ml::{GpuConfig, MockConfig};
use serde_json::Value;
use support::daemon::Bench;
use support::eventually;

const SET_CORE: &str = "nvmlDeviceSetGpuLockedClocks";

/// Serves until the first sweep over the clocks is behind it, then ends in good order.
fn learn(bench: &Bench) {
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_log("reason=Ucb");
    daemon.stop();
}

fn reason(round: &RoundRecord) -> Option<&str> {
    round.decision_reason.as_deref()
}

/// Starts beside an idle engine, waits for `text` in the log and for some rounds, ends, and gives the log.
fn start_and_expect(bench: &Bench, arguments: &[&str], text: &str) -> String {
    bench.engine.set_load(0.0);
    let before = bench.engine.served();
    let mut daemon = bench.start(arguments);
    daemon.wait_for_log(text);
    let pages = eventually(|| bench.engine.served(), |served| *served >= before + 6);
    assert!(pages >= before + 6, "{}", daemon.tail());
    daemon.stop();
    bench.assert_given_back(daemon.pid());
    daemon.log()
}

fn kept(bench: &Bench, prefix: &str) -> usize {
    bench.model_files().iter().filter(|name| name.starts_with(prefix)).count()
}

fn copy_models(from: &Bench, to: &Bench) {
    fs::create_dir_all(to.path("models")).expect("the model directory");
    for name in from.model_files() {
        fs::copy(from.path("models").join(&name), to.path("models").join(&name)).expect("a copy");
    }
}

/// Changes both generations of a model.
fn damage(bench: &Bench, change: impl Fn(&mut Vec<u8>)) {
    for name in ["model.agft", "model.previous.agft"] {
        damage_one(&bench.path("models").join(name), &change);
    }
}

fn damage_one(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("a model file");
    change(&mut bytes);
    fs::write(path, bytes).expect("a model file");
}

fn flip_a_bit(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
}

#[test]
fn serving_run_locks_clocks_and_writes_rounds_model_and_metadata() {
    let bench = Bench::new();
    learn(&bench);
    let locked: BTreeSet<u32> = bench
        .mock
        .history()
        .iter()
        .filter(|write| write.call == SET_CORE)
        .map(|write| write.args[1])
        .collect();
    assert!(locked.len() >= 4, "clocks tried: {locked:?}");

    let rounds = bench.rounds();
    for (number, round) in (1..).zip(&rounds) {
        assert_eq!((round.round, round.schema_version), (number, 1));
        let features = [
            round.has_queue,
            round.prefill_throughput_feature,
            round.decode_throughput_feature,
            round.packing_efficiency,
            round.concurrency,
            round.gpu_cache_usage,
            round.cache_hit_rate,
        ];
        assert!(features.iter().all(|feature| feature.is_some_and(f64::is_finite)), "{round:?}");
    }
    let last = rounds.last().expect("a round");
    assert_eq!(last.concurrency, Some((16.0_f64 * 0.6).ceil()));
    assert!((last.gpu_cache_usage.expect("a feature") - 100.0 * 0.6 * 0.6).abs() < 1e-9, "{last:?}");

    assert_eq!(bench.model_files(), ["model.agft", "model.previous.agft", "model_metadata.json"]);
    let metadata = bench.metadata();
    assert_eq!((metadata.phase.as_str(), metadata.converged), ("EXPLORATION", false));
    assert!(metadata.total_rounds > 0 && metadata.baseline_edp.is_some_and(|edp| edp > 0.0), "{metadata:?}");

    let [run] = bench.runs().try_into().expect("one run");
    let text = fs::read_to_string(run.join("experiment_metadata.json")).expect("the run's metadata");
    let run: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(run["total_rounds"], rounds.len());
    assert!(run["end_time"].is_string() && run["average_power_w"].as_f64() > Some(50.0), "{run}");
}

#[test]
fn next_run_goes_on_where_the_last_one_ended() {
    let bench = Bench::new();
    learn(&bench);
    let first = bench.rounds();
    learn(&bench);
    let rounds = bench.rounds();
    let second = &rounds[first.len()..];
    assert_eq!(second[0].round, first.len() as u64 + 1);
    // A clock that joins later has its first visit whenever that is; none has it twice.
    let swept = |rounds: &[RoundRecord]| -> BTreeSet<Option<Mhz>> {
        let visits = rounds.iter().filter(|round| reason(round) == Some("sweep"));
        visits.map(|round| round.asked_core_mhz).collect()
    };
    assert!(swept(second).is_disjoint(&swept(&first)), "swept again");
    assert_eq!(bench.runs().len(), 2);
}

#[test]
fn next_run_of_the_default_policy_goes_on_too_and_another_policy_does_not_take_its_model() {
    let bench = Bench::new().set("control.policy", "structured");
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(2);
    daemon.stop();
    let first = bench.rounds().len();
    let log = start_and_expect(&bench, &[], "model loaded");
    assert!(log.contains(&format!("rounds={first}")), "{log}");
    let bench = bench.set("control.policy", "linucb");
    let log = start_and_expect(&bench, &[], "learning starts afresh");
    assert!(log.contains("it belongs to the policy structured, and this is linucb"), "{log}");
    assert_eq!(kept(&bench, "model.rejected-"), 2, "{:?}", bench.model_files());
}

#[test]
fn reset_starts_afresh_and_keeps_what_was_learned() {
    let bench = Bench::new();
    learn(&bench);
    start_and_expect(&bench, &["--reset-model"], "model put aside");
    assert_eq!(kept(&bench, "model.before-reset-"), 2, "{:?}", bench.model_files());
    let rounds = bench.rounds();
    let restarted = rounds.iter().filter(|round| round.round == 1).count();
    assert_eq!(restarted, 2);
}

#[test]
fn damaged_model_file_is_kept_aside_and_the_one_before_it_is_used() {
    let bench = Bench::new();
    learn(&bench);
    damage_one(&bench.path("models/model.agft"), |bytes| flip_a_bit(bytes));
    let log = start_and_expect(&bench, &[], "model file not usable");
    assert!(log.contains("model loaded") && log.contains("Previous"), "{log}");
    assert_eq!(kept(&bench, "model.rejected-"), 1, "{:?}", bench.model_files());
}

#[test]
fn model_that_cannot_be_used_is_kept_aside_and_learning_starts_afresh() {
    let trained = Bench::new();
    learn(&trained);
    let h100 = MockConfig::new(vec![GpuConfig::h100()]);
    let cases: [(&str, Bench, &str); 5] = [
        ("truncated", Bench::new(), "bytes long instead of"),
        ("bit-flipped", Bench::new(), "checksum"),
        ("of another GPU", Bench::with(&h100), "NVIDIA A100-SXM4-80GB"),
        ("no model at all", Bench::new(), "not a model file"),
        ("of a newer agft", Bench::new(), "format version 2; this agft reads 1 to 1 (a newer agft wrote it)"),
    ];
    for (what, bench, message) in cases {
        copy_models(&trained, &bench);
        match what {
            "truncated" => damage(&bench, |bytes| bytes.truncate(bytes.len() / 2)),
            "bit-flipped" => damage(&bench, |bytes| flip_a_bit(bytes)),
            "of a newer agft" => damage(&bench, |bytes| *bytes = raw::sealed(2, &bytes[raw::HEADER_BYTES..])),
            "no model at all" => damage(&bench, |bytes| *bytes = b"hello".to_vec()),
            _ => {}
        }
        let log = start_and_expect(&bench, &[], "learning starts afresh");
        let line = log.lines().find(|line| line.contains("was not loaded")).unwrap_or_default();
        assert!(line.contains(message) && line.contains("kept as"), "{what}: {line}");
        assert_eq!(kept(&bench, "model.rejected-"), 2, "{what}: {:?}", bench.model_files());
        assert_eq!(bench.rounds()[0].round, 1, "{what}");
    }
}

#[test]
fn second_agft_on_the_same_model_is_kept_out_and_touches_no_clock() {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a100(), 2));
    let mut first = bench.serve(&[]);
    let bench = bench.set("gpu.device_id", "1");
    let mut second = bench.start(&[]);
    assert_eq!(second.wait().code(), Some(1), "{}", second.log());
    assert!(second.log().contains("is in use by another agft"), "{}", second.log());
    assert_eq!(bench.writes_of(second.pid()), []);
    assert!(first.is_running());
    first.stop();
    assert!(bench.is_free());
}

#[test]
fn directories_that_vanish_while_running_cost_the_files_and_not_the_run() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    for directory in ["models", "runs", "logs"] {
        fs::remove_dir_all(bench.path(directory)).expect("a directory of agft's");
    }
    daemon.wait_for_log("state not saved");
    daemon.wait_for_lessons(2);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}
