//! `agft park` finds out by which clocks a board is best parked, in a gap that lasts, and keeps that for the next run.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nvidia_ml::{GpuConfig, Level, Locks, MockConfig, Range};
use serde_json::Value;
use support::daemon::{Bench, Daemon};
use support::eventually;

const LOWEST: Range = Range { min: 210, max: 210 };
const LOW_MEMORY: Range = Range { min: 405, max: 405 };
const MEASURED: &str = "parking was measured";
/// A trial begins a quarter of a second after parking, and measures for 0.8 s at a time.
const TRIAL: [&str; 3] = ["park", "--trial-speed", "6"];

fn a6000() -> GpuConfig {
    // A counter that moves all the time: what is measured in a fraction of the time is as exact.
    GpuConfig { energy_tick_ms: 1, ..GpuConfig::a6000() }
}

fn bench(gpu: GpuConfig) -> Bench {
    Bench::with(&MockConfig::new(vec![gpu])).parks_soon()
}

fn wait_for_locks(bench: &Bench, daemon: &Daemon, wanted: impl Fn(&Locks) -> bool) -> Locks {
    let locks = eventually(|| bench.mock.locks(0).unwrap(), &wanted);
    assert!(wanted(&locks), "{locks:?}\n{}", daemon.tail());
    locks
}

fn is_parked(locks: &Locks) -> bool {
    locks.core.is_some()
}

fn is_free(locks: &Locks) -> bool {
    locks.core.is_none() && locks.memory.is_none()
}

fn files(bench: &Bench) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(bench.path("models")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn status(bench: &Bench) -> Value {
    bench.status()["park"].take()
}

#[test]
fn every_lever_is_measured_once_and_the_best_parks_from_then_on() {
    let gpu = a6000();
    let bench = bench(gpu.clone());
    let mut daemon = bench.start(&TRIAL);
    assert_eq!(wait_for_locks(&bench, &daemon, is_parked).memory, None, "the simplest first");
    daemon.wait_for_log(MEASURED);
    // A locked core clock is a range: idle, this board goes to its lowest by itself, so that memory alone is as good as both.
    let locks = wait_for_locks(&bench, &daemon, |locks| locks.memory.is_some() && locks.core.is_some());
    assert_eq!((locks.core, locks.memory), (Some(Range { min: 210, max: 2100 }), Some(LOW_MEMORY)));
    let shown = |state: &Value| state["gpus"][0]["trying"] == false && state["gpus"][0]["lever"] == "memory";
    let state = eventually(|| status(&bench), shown);
    assert!(shown(&state), "{state}");
    let measured = &state["gpus"][0]["levers"];
    let memory_w = gpu.memory_idle_w * 405.0 / 8001.0;
    let low = gpu.idle_min_w - gpu.memory_idle_w + memory_w;
    for (what, wanted) in [
        (&measured["unparked_w"], gpu.idle_max_w),
        (&measured["levers"]["core"]["parked_w"], gpu.idle_min_w),
        (&measured["levers"]["memory"]["parked_w"], low),
        (&measured["levers"]["both"]["parked_w"], low),
    ] {
        let watts = what.as_f64().unwrap();
        assert!((watts - wanted).abs() < 2.0, "{watts} W, and it is {wanted} W\n{state}");
    }
    // What the trial left to the driver is not parked time: the mean has the lowered clocks only.
    let parked_w = state["gpus"][0]["parked_power_w"].as_f64().unwrap();
    assert!(parked_w < gpu.idle_min_w + 2.0, "{parked_w}");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
    assert_eq!(files(&bench).len(), 1, "{:?}", files(&bench));

    let before = bench.mock.history().len();
    let mut next = bench.start(&TRIAL);
    let locks = wait_for_locks(&bench, &next, is_parked);
    assert_eq!(locks.memory, Some(LOW_MEMORY), "parked at once by what was measured to be the best");
    std::thread::sleep(Duration::from_secs(1));
    let energy = || bench.mock.call_count("nvmlDeviceGetTotalEnergyConsumption").unwrap();
    let (asked, written) = (energy(), bench.mock.history().len());
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(energy(), asked, "nothing is left to be measured\n{}", next.tail());
    assert_eq!(bench.mock.history().len(), written);
    assert!(written > before);
    next.stop();
}

#[test]
fn work_ends_a_trial_at_once_and_a_later_gap_goes_on_with_it() {
    let bench = bench(a6000());
    let mut daemon = bench.start(&TRIAL);
    wait_for_locks(&bench, &daemon, is_parked);
    // It begins with the clocks left to the driver ...
    wait_for_locks(&bench, &daemon, is_free);
    bench.mock.set_load(0, 1.0).unwrap();
    daemon.wait_for_log("woken");
    std::thread::sleep(Duration::from_millis(500));
    assert!(is_free(&bench.mock.locks(0).unwrap()), "{}", daemon.tail());
    bench.mock.set_load(0, 0.0).unwrap();
    // ... and has the memory clock down later.
    wait_for_locks(&bench, &daemon, |locks| locks.memory.is_some());
    assert!(!daemon.log().contains(MEASURED));
    bench.mock.set_load(0, 1.0).unwrap();
    wait_for_locks(&bench, &daemon, is_free);
    daemon.wait_for_log("clocks are back");
    bench.mock.set_load(0, 0.0).unwrap();
    daemon.wait_for_log(MEASURED);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
    assert!(!daemon.log().contains("missed"), "{}", daemon.tail());
}

#[test]
fn board_that_lists_memory_clocks_and_refuses_their_lock_is_parked_by_the_core_clock() {
    let levels = vec![Level::stepped(8001, 210, 2100, 15), Level::stepped(405, 210, 420, 15)];
    let gpu = GpuConfig { levels, memory_lock: false, ..a6000() };
    let bench = bench(gpu.clone());
    let mut daemon = bench.start(&TRIAL);
    daemon.wait_for_log("this board is not parked so");
    let locks = wait_for_locks(&bench, &daemon, is_parked);
    assert_eq!((locks.core, locks.memory), (Some(LOWEST), None));
    std::thread::sleep(Duration::from_millis(300));
    assert!(daemon.is_running());
    daemon.stop();
    assert!(bench.is_free());
    // Where it was asked for by name there is no other way.
    for lever in ["memory", "both"] {
        let bench = self::bench(gpu.clone()).set("park.lever", lever);
        let refused = bench.run(&["park"]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.err.contains("nvmlDeviceSetMemoryLockedClocks: not supported"), "{refused:?}");
        assert!(bench.is_free());
    }
}

#[test]
fn board_with_one_memory_clock_is_refused_before_anything_is_locked() {
    let bench = bench(GpuConfig::a100()).set("park.lever", "both");
    let refused = bench.run(&["park", "--gpus", "0"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("one memory clock only; set park.lever: auto"), "{refused:?}");
    assert!(bench.mock.history().is_empty());
}

#[test]
fn dry_run_tries_nothing_and_keeps_nothing() {
    let bench = bench(a6000());
    let mut daemon = bench.start(&["park", "--dry-run", "--trial-speed", "50"]);
    daemon.wait_for_log("parked");
    std::thread::sleep(Duration::from_millis(1500));
    daemon.stop();
    assert!(bench.mock.history().is_empty());
    assert!(files(&bench).is_empty(), "{:?}", files(&bench));
    assert!(!daemon.log().contains(MEASURED));
}
