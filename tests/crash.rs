//! A crash at any instant keeps a loadable model: the program killed at random moments, and writes that are cut short.
#![expect(clippy::expect_used, clippy::panic, reason = "a test that cannot be set up fails")]

mod support;

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use agft::control::{Learned, Model};
use agft::store::{Identity, Load, ModelMetadata, ModelStore, RoundReader, rounds};
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use support::daemon::Bench;

/// A round is closed, and the model saved, each so many seconds.
const PERIOD: &str = "0.05";

fn random(below: u64) -> u64 {
    RandomState::new().build_hasher().finish() % below
}

fn saving_bench() -> Bench {
    Bench::new().set("control.decision_interval_s", PERIOD).set("model.save_interval", "1").set(
        // Runs pile up here: one for each kill.
        "experiment.keep_runs",
        "3",
    )
}

/// The identity that the file itself states: whose it is does not matter here.
fn identity_in(bytes: &[u8]) -> Identity {
    let length = bytes.get(52..56).and_then(|length| length.try_into().ok()).map_or(0, u32::from_le_bytes);
    let json = &bytes[56..56 + usize::try_from(length).expect("a length")];
    serde_json::from_slice(json).expect("an identity")
}

/// Loads what is there, from a copy: nothing may be rejected, and once there was a model there is one for good.
fn check_state(models: &Path, ever: &mut bool) -> u64 {
    let copy = tempfile::tempdir().expect("a directory");
    for entry in fs::read_dir(models).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        let to = copy.path().join(path.file_name().expect("a name"));
        fs::copy(path, to).expect("a copy");
    }
    ModelMetadata::read(models).expect("metadata that can be read, or none");
    let newest =
        ["model.agft", "model.previous.agft"].iter().find_map(|name| fs::read(copy.path().join(name)).ok());
    let Some(bytes) = newest else {
        assert!(!*ever, "the model is gone");
        return 0;
    };
    let store = ModelStore::open(copy.path()).expect("the copy");
    match store.load::<Model>(&identity_in(&bytes), Timestamp::now()).expect("readable files") {
        Load::Restored(restored) => {
            assert_eq!(restored.rejected, [], "a file was damaged");
            let learned = Learned::from(restored.model);
            assert!(learned.is_sound());
            *ever = true;
            learned.rounds
        }
        Load::Fresh { reasons } => panic!("no model can be loaded: {reasons:?}"),
    }
}

fn kill_at_random_moments(times: u32) {
    let bench = saving_bench();
    bench.engine.set_load(0.6);
    let (mut ever, mut rounds, mut progress) = (false, 0, 0);
    for kill in 0..times {
        let mut daemon = bench.start(&[]);
        if !ever {
            daemon.wait_for_lessons(1);
        } else {
            // The start, with what it repairs, takes some tens of milliseconds: half of the kills fall into it.
            std::thread::sleep(Duration::from_micros(random(if kill % 2 == 0 { 60_000 } else { 600_000 })));
        }
        daemon.signal(Signal::KILL);
        daemon.wait();
        bench.wait_for_release(&daemon);
        let now = check_state(&bench.path("models"), &mut ever);
        assert!(now >= rounds, "the model went back from round {rounds} to {now}\n{}", daemon.tail());
        progress += u32::from(now > rounds);
        rounds = now;
        assert!(!daemon.log().contains("was not loaded"), "{}", daemon.tail());
        for run in bench.runs() {
            for file in rounds::files_of(&run).expect("a run") {
                let bad: Vec<_> = RoundReader::open(&file).expect("a file").filter_map(Result::err).collect();
                assert!(bad.iter().all(|line| line.torn), "{bad:?}");
            }
        }
    }
    assert!(progress > times / 5, "{progress} of {times} runs saved anything");
    eprintln!("{times} kills, {progress} runs saved a model, {rounds} rounds learned in all");
    let left = bench.model_files();
    let temporary = left.iter().filter(|name| name.starts_with(".agft-")).count();
    assert!(temporary <= 2, "leftovers pile up: {left:?}");
    let mut last = bench.serve(&[]);
    last.stop();
    assert!(bench.runs().len() <= 4, "three and the last: {:?}", bench.runs());
}

#[test]
fn program_killed_at_random_moments_leaves_a_loadable_model_every_time() {
    kill_at_random_moments(20);
}

#[test]
#[ignore = "minutes: cargo test --test crash -- --ignored --nocapture"]
fn program_killed_300_times_leaves_a_loadable_model_every_time() {
    kill_at_random_moments(300);
}

/// The program without a clock to lock, under a limit of the size of any file: the write that reaches it is cut short, and
/// the next one fails. Gives what it logged.
fn run_limited(bench: &Bench, bytes: u64) -> String {
    let inner = bench.command(&["--data-collection-mode"]);
    // Each of these becomes the next one. Without the second, the system kills whoever reaches the limit.
    let mut command = Command::new("prlimit");
    command.arg(format!("--fsize={bytes}")).args(["env", "--ignore-signal=XFSZ"]);
    command.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    // Not into a file, which would have the same limit.
    command.current_dir(bench.path("")).stderr(Stdio::piped());
    let before = bench.engine.served();
    let child = command.spawn().expect("agft starts");
    let served = support::eventually(|| bench.engine.served(), |served| *served > before + 15);
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    let output = child.wait_with_output().expect("its end");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(served > before + 15, "{log}");
    assert_eq!(output.status.code(), Some(0), "{log}");
    log
}

#[test]
fn writes_that_are_cut_short_cost_a_save_and_never_the_model() {
    // One clock after the other, each with its model.
    let bench = saving_bench().set("linucb.coarse_step_mhz", "50").set("metrics.sampling_duration", "0.1");
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(24);
    daemon.stop();
    let size = fs::metadata(bench.path("models/model.agft")).expect("a model").len();
    let mut ever = false;
    let rounds = check_state(&bench.path("models"), &mut ever);
    // Above what the start of a run writes at once, below what the model has become.
    let [run] = bench.runs().try_into().expect("one run");
    let written =
        ["experiment_metadata.json", "config_snapshot.yaml"].map(|name| fs::metadata(run.join(name)));
    let least =
        written.map(|file| file.expect("a file of the run").len()).into_iter().max().unwrap_or_default()
            + 100;
    assert!(least < size, "{least} < {size}");
    for limit in [least, (least + size) / 2, size - 1] {
        let log = run_limited(&bench, limit);
        assert!(log.contains("state not saved") && log.contains("File too large"), "limit {limit}: {log}");
        assert!(!log.contains("panicked"), "limit {limit}: {log}");
        assert_eq!(check_state(&bench.path("models"), &mut ever), rounds, "limit {limit}");
    }
    // With room again, everything goes on.
    run_limited(&bench, 1 << 20);
    assert!(check_state(&bench.path("models"), &mut ever) > rounds);
}

/// A small file system in memory, unmounted when dropped.
struct Disk<'p>(&'p Path);

impl<'p> Disk<'p> {
    /// `None`, with a word to the reader, where this user may not mount.
    fn mount(at: &'p Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).expect("a mount point");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", size, "agft-test"]).arg(at).stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(at));
        }
        eprintln!("skipped: only root can mount a file system of its own");
        None
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "umount");
    }
}

#[test]
fn full_disk_costs_saves_while_it_is_full_and_never_the_model() {
    let bench = saving_bench();
    let models = bench.path("models");
    let Some(_disk) = Disk::mount(&models, "size=256k") else { return };
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(3);
    // What is left of the disk.
    fs::write(models.join("ballast"), vec![0; 256 << 10]).expect_err("a full disk");
    daemon.wait_for_log("state not saved");
    let mut ever = false;
    let rounds = check_state(&models, &mut ever);
    assert!(ever);
    daemon.wait_for_lessons(3);
    assert_eq!(check_state(&models, &mut ever), rounds, "nothing was saved, nothing lost");
    fs::remove_file(models.join("ballast")).expect("room again");
    daemon.stop();
    assert!(check_state(&models, &mut ever) > rounds, "{}", daemon.tail());
}
