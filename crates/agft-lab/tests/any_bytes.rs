//! No bytes from outside can do harm: the checks of the fuzz targets (`fuzz/`) on their corpus, on damaged copies of it,
//! and on bytes made up.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

#[path = "../../../fuzz/checks/mod.rs"]
mod checks;

use std::fs;
use std::path::PathBuf;

use agft::config::{Config, PolicyKind};
use agft::control::{Controller, Learned, Model, Observation, Output};
use agft::replay::{Cause, Head, Made, Recorded};
use agft::store::held::{Holder, Journal, LockedRange};
use agft::store::{RoundRecord, RunDir, RunInfo, StepLimits, StepWriter, raw, steps};
use agft::units::{Mhz, Seconds, Time};
use agft_lab::policy::controller;
use agft_lab::sim::run::{Driver, Onlooker, RunSpec, run};
use agft_lab::sim::{Pattern, World, WorldSpec};
use jiff::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Seeds and earlier findings of a target.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no corpus for {target}");
    paths.iter().map(|path| fs::read(path).expect("a seed")).collect()
}

/// One thing that happens to bytes on their way.
#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Repeat(Index, usize),
    /// Eight bytes become this number, as bincode writes floats.
    Float(Index, f64),
    /// One byte becomes this number, as bincode writes integers.
    Integer(Index, u64),
}

/// Words at which readers of these formats may stumble.
const WORDS: &[&str] = &[
    "NaN",
    "+Inf",
    "-1",
    "1e400",
    "18446744073709551616",
    "null",
    "\"\"",
    "{",
    "[",
    "\0",
    "\n",
    "\u{feff}",
    "\\",
    "&a",
    "*a",
    "!!x",
    "---",
    "_bucket{le=",
    "\"",
    ",",
    "\r",
    "Z",
    "é",
];

const FLOATS: &[f64] =
    &[0.0, -0.0, 1e-320, 1e-12, -1.0, 1e12, 1e160, f64::MAX, f64::MIN, f64::INFINITY, f64::NAN];
const INTEGERS: &[u64] = &[0, 250, u32::MAX as u64, u64::MAX / 2, u64::MAX];

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        at().prop_map(Damage::Cut),
        (at(), 1..64_usize).prop_map(|(at, n)| Damage::Remove(at, n)),
        (at(), vec(any::<u8>(), 1..16)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), select(WORDS)).prop_map(|(at, word)| Damage::Insert(at, word.as_bytes().to_vec())),
        (at(), 1..64_usize).prop_map(|(at, n)| Damage::Repeat(at, n)),
        (at(), select(FLOATS)).prop_map(|(at, number)| Damage::Float(at, number)),
        (at(), select(INTEGERS)).prop_map(|(at, number)| Damage::Integer(at, number)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: Damage) {
    if bytes.is_empty() {
        return;
    }
    let end = |at: usize, n: usize, bytes: &[u8]| (at + n).min(bytes.len());
    match damage {
        Damage::Flip(at, bit) => *at.get_mut(bytes) ^= 1 << bit,
        Damage::Set(at, byte) => *at.get_mut(bytes) = byte,
        Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Damage::Remove(at, n) => {
            let at = at.index(bytes.len());
            bytes.drain(at..end(at, n, bytes));
        }
        Damage::Insert(at, new) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, new);
        }
        Damage::Float(at, number) => {
            let at = at.index(bytes.len());
            bytes.splice(at..end(at, 8, bytes), number.to_le_bytes());
        }
        Damage::Integer(at, number) => {
            let at = at.index(bytes.len());
            let mut new = vec![0xfd];
            new.extend(number.to_le_bytes());
            bytes.splice(at..=at, if number <= 250 { vec![number.to_le_bytes()[0]] } else { new });
        }
        Damage::Repeat(at, n) => {
            let at = at.index(bytes.len());
            let again = bytes[at..end(at, n, bytes)].to_vec();
            bytes.splice(at..at, again);
        }
    }
}

/// Bytes made up, or a seed with up to eight damages.
fn bytes(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let damaged = (select(corpus(target)), vec(damage(), 0..8)).prop_map(|(mut bytes, damages)| {
        damages.into_iter().for_each(|damage| apply(&mut bytes, damage));
        bytes
    });
    prop_oneof![8 => damaged, 1 => vec(any::<u8>(), 0..512)]
}

macro_rules! twins {
    ($($target:ident)*) => {$(
        mod $target {
            use super::*;

            #[test]
            fn corpus_passes() {
                corpus(stringify!($target)).iter().for_each(|seed| checks::$target(seed));
            }

            proptest! {
                #[test]
                fn any_bytes_pass(bytes in bytes(stringify!($target))) {
                    checks::$target(&bytes);
                }
            }
        }
    )*};
}

twins!(metrics_page config model_file model_payload rounds_file journal guardian_link trace steps_file steps_payload);

#[test]
fn models_of_the_corpus_are_of_todays_form() {
    for file in corpus("model_file") {
        let (_, model) = raw::open_model::<Model>(&file).expect("write the corpus anew, see below");
        assert!(Learned::from(model).is_sound());
    }
}

/// A short run as a file of steps, and its state and last step as their bytes.
fn recorded_steps() -> (Vec<u8>, [(&'static str, Vec<u8>); 2]) {
    struct Tape(StepWriter, Option<Recorded>);
    impl Onlooker for Tape {
        fn look(&mut self, seen: &Observation, output: &Output, controller: &Controller) {
            let step = Recorded { seen: seen.clone(), made: Made::of(output, controller) };
            self.0.step(&step).expect("a step");
            self.1 = Some(step);
        }
    }
    let mut config = Config::default();
    config.gpu.frequency_step = Mhz(300);
    let world = WorldSpec::named("a6000", "3b", Pattern::Steady, None).expect("a world");
    let clocks = World::new(world.clone(), 1).expect("a world").supported_clocks().expect("clocks");
    let mut controller = controller(&config, &clocks, PolicyKind::LinUcb, 1);
    let base = tempfile::tempdir().expect("a directory");
    let now = Timestamp::from_second(1_790_000_000).expect("a time");
    let info = RunInfo {
        gpu_model: "G".into(),
        config_used: serde_json::Value::Null,
        config_snapshot: String::new(),
    };
    let run_dir = RunDir::create(base.path(), "agft", info, now).expect("a run");
    let limits = StepLimits { segment_bytes: u64::MAX, total_bytes: u64::MAX };
    let mut writer = run_dir.steps(limits).expect("a directory of steps");
    let head = Head {
        agft_version: "0".into(),
        number: 1,
        cause: Cause::Start,
        unix_time: 0.0,
        at: Time(0.0),
        config: config.to_yaml(),
        clocks,
        gpus: 1,
        dry_run: false,
    };
    writer.begin(&head, &controller).expect("a segment");
    let mut tape = Tape(writer, None);
    let spec = RunSpec { world, seed: 1, seconds: Seconds(6.0), tick: Seconds(0.3) };
    run(&spec, Driver::Watched(&mut controller, &mut tape), |_| {}).expect("a run");
    tape.0.close().expect("an end");
    let file = fs::read(run_dir.path().join("steps/000001.agft-steps")).expect("the segment");
    let state = steps::pack(&controller).expect("a state");
    (file, [("state", state), ("step", steps::pack(&tape.1).map(|s| s[1..].to_vec()).expect("a step"))])
}

/// Writes the seeds that are made by agft itself. Run once after a change of a format:
/// `cargo test --release --test any_bytes -- --ignored`.
#[test]
#[ignore = "writes files into the repository"]
fn corpus_of_models_and_journals_is_written() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).expect("a seed");
    for (name, policy) in [("structured", PolicyKind::Structured), ("linucb", PolicyKind::LinUcb)] {
        let mut config = Config::default();
        config.gpu.frequency_step = Mhz(300);
        let spec = WorldSpec::named("a6000", "3b", Pattern::Steady, None).expect("a world");
        let clocks = World::new(spec.clone(), 1).expect("a world").supported_clocks().expect("clocks");
        let mut controller = controller(&config, &clocks, policy, 1);
        for (length, seconds) in [("short", 3.0), ("long", 90.0)] {
            let spec =
                RunSpec { world: spec.clone(), seed: 1, seconds: Seconds(seconds), tick: Seconds(0.3) };
            run(&spec, Driver::Controller(&mut controller), |_| {}).expect("a run");
            let file =
                raw::model_file(&checks::some_identity(), &controller.learned().model()).expect("a model");
            write(&format!("model_file/{name}-{length}"), &file);
            write(&format!("model_payload/{name}-{length}"), &file[raw::HEADER_BYTES..]);
        }
    }
    let now = Timestamp::from_second(1_790_000_000).expect("a time");
    let round = serde_json::to_string(&RoundRecord::new(7, now)).expect("a line");
    write("rounds_file/two", format!("{round}\n{round}\n").as_bytes());
    write("rounds_file/torn", &round.as_bytes()[..round.len() / 2]);
    write(
        "rounds_file/agft",
        b"{\"round\": 1, \"timestamp\": 1.5, \"gpu_frequency_mhz\": 1410, \"edp_raw\": NaN}\n",
    );
    let (file, payloads) = recorded_steps();
    write("steps_file/closed", &file);
    write("steps_file/torn", &file[..file.len() - 40]);
    for (name, payload) in payloads {
        write(&format!("steps_payload/{name}"), &payload);
    }
    let holder = Holder { pid: 1, pid_start: 2, config: "c.yaml".into() };
    let mut journal = Journal::new(holder.clone(), "GPU-1", now);
    journal.core = Some(LockedRange { min_mhz: Mhz(210), max_mhz: Mhz(1410) });
    let line = serde_json::to_string(&journal).expect("a line");
    write("journal/line", line.as_bytes());
    write("journal/file", &raw::summed_journal(&line));
    write("journal/holder", serde_json::to_string(&holder).expect("a line").as_bytes());
}
