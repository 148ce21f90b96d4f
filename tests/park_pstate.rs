//! `agft park` on boards that lock no clocks: the performance state is forced through NVAPI, and given back on every way out.
#![cfg(feature = "nvapi")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::Duration;

use nvidia_ml::{ClockWrite, GpuConfig, Injection, MockConfig};
use rustix::process::{Signal, kill_process};
use support::daemon::{Bench, Daemon};
use support::eventually;

const FORCE: &str = "NvAPI_GPU_SetForcePstate";
const BY_DRIVER: u32 = 16;
const UNKNOWN: u32 = 999;

/// Two memory clocks, and no lock of any.
fn p40() -> GpuConfig {
    GpuConfig {
        name: "Tesla P40".into(),
        core_lock: false,
        memory_lock: false,
        energy_counter: false,
        ..GpuConfig::a6000()
    }
}

fn on(machine: &MockConfig) -> Bench {
    let bench = Bench::with(machine).parks_soon();
    bench.mock.add_nvapi();
    bench
}

fn bench() -> Bench {
    on(&MockConfig::new(vec![p40()]))
}

fn wait_for_state(bench: &Bench, daemon: &Daemon, gpu: usize, wanted: Option<u32>) {
    let state = || bench.mock.locks(gpu).unwrap().pstate;
    assert_eq!(eventually(state, |state| *state == wanted), wanted, "{}", daemon.tail());
}

fn parked(bench: &Bench) -> Daemon {
    let daemon = bench.start(&["park"]);
    wait_for_state(bench, &daemon, 0, Some(8));
    daemon
}

fn forced(bench: &Bench) -> Vec<ClockWrite> {
    bench.mock.history().into_iter().filter(|write| write.call == FORCE).collect()
}

#[test]
fn board_without_locks_is_parked_by_state_and_work_wakes_it() {
    let bench = bench();
    let mut daemon = parked(&bench);
    // Given back before it is forced, as locks are.
    let states: Vec<u32> = forced(&bench).iter().map(|write| write.args[0]).collect();
    assert_eq!(states, [BY_DRIVER, 8], "{}", daemon.tail());
    let status = bench.run(&["status"]).out;
    assert!(status.contains("lever     pstate"), "{status}");
    bench.mock.set_load(0, 1.0).unwrap();
    wait_for_state(&bench, &daemon, 0, None);
    daemon.wait_for_log("clocks are back");
    bench.mock.set_load(0, 0.0).unwrap();
    wait_for_state(&bench, &daemon, 0, Some(8));
    daemon.stop();
    assert!(bench.is_free());
    assert_eq!(forced(&bench).last().unwrap().args, [BY_DRIVER, 0]);
    assert!(eventually(|| bench.journals().is_empty(), |none| *none));
}

#[test]
fn state_comes_back_whoever_ends_the_run() {
    let bench = on(&MockConfig::uniform(&p40(), 2)).set("park.pstate", "12");
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let mut daemon = bench.start(&["park"]);
        for gpu in 0..2 {
            wait_for_state(&bench, &daemon, gpu, Some(12));
        }
        daemon.signal(signal);
        assert!(eventually(|| bench.is_free(), |free| *free), "{signal:?}\n{}", daemon.tail());
        daemon.wait();
        assert!(eventually(|| bench.journals().is_empty(), |none| *none), "{signal:?} left a journal");
    }
}

/// Nobody is left to give it back, but what is written down.
fn killed_with_its_guardian(bench: &Bench) {
    let mut daemon = parked(bench);
    kill_process(bench.guardian().unwrap(), Signal::STOP).unwrap();
    daemon.signal(Signal::KILL);
    daemon.wait();
    kill_process(bench.guardian().unwrap(), Signal::KILL).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(bench.mock.locks(0).unwrap().pstate, Some(8), "or the test shows nothing");
    assert_eq!(bench.journals().len(), 1);
}

#[test]
fn state_that_outlives_agft_and_guardian_is_given_back_by_release_and_by_the_next_run() {
    for arguments in [&["release", "--journal"][..], &["release", "--all"]] {
        let bench = bench();
        killed_with_its_guardian(&bench);
        let released = bench.run(arguments);
        assert_eq!(released.code, Some(0), "{arguments:?} {released:?}");
        assert!(bench.is_free() && bench.journals().is_empty(), "{arguments:?} {released:?}");
    }
    let bench = bench();
    killed_with_its_guardian(&bench);
    let before = forced(&bench).len();
    let mut next = bench.start(&["park"]);
    next.wait_for_log("may be parked");
    assert_eq!(forced(&bench)[before].args[0], BY_DRIVER);
    next.stop();
    assert!(bench.is_free());
    // Another program than the one that forced it, on a board that locks clocks too.
    let bench = on(&MockConfig::new(vec![GpuConfig::a6000()])).set("park.lever", "pstate");
    killed_with_its_guardian(&bench);
    let learning = bench.serve(&[]);
    assert_eq!(bench.mock.locks(0).unwrap().pstate, None, "{}", learning.tail());
}

#[test]
fn guardian_that_comes_later_knows_of_the_state_too() {
    let bench = bench();
    bench.mock.set_load(0, 1.0).unwrap();
    let mut daemon = bench.start(&["park"]);
    daemon.wait_for_log("may be parked");
    let first = eventually(|| bench.guardian(), Option::is_some).unwrap();
    daemon.wait_for_log("guardian is ready");
    kill_process(first, Signal::KILL).unwrap();
    let next = || bench.guardian().filter(|pid| *pid != first);
    assert!(eventually(next, Option::is_some).is_some(), "{}", daemon.tail());
    bench.mock.set_load(0, 0.0).unwrap();
    wait_for_state(&bench, &daemon, 0, Some(8));
    daemon.signal(Signal::KILL);
    daemon.wait();
    assert!(eventually(|| bench.is_free(), |free| *free));
}

#[test]
fn damaged_journal_counts_as_a_state_that_may_be_forced() {
    let bench = bench();
    killed_with_its_guardian(&bench);
    std::fs::write(&bench.journals()[0], "{").unwrap();
    let released = bench.run(&["release", "--journal"]);
    assert!(bench.mock.locks(0).unwrap().pstate.is_none(), "{released:?}");
}

#[test]
fn state_that_cannot_be_given_back_at_once_is_tried_again() {
    let bench = bench();
    let mut daemon = parked(&bench);
    bench.mock.inject(&Injection::error(FORCE, UNKNOWN).times(3)).unwrap();
    daemon.signal(Signal::KILL);
    daemon.wait();
    assert!(eventually(|| bench.is_free(), |free| *free));
    assert!(eventually(|| bench.journals().is_empty(), |none| *none));
}

#[test]
fn work_in_the_low_state_is_reset_again_with_an_alarm() {
    let bench = bench();
    let mut daemon = parked(&bench);
    std::thread::sleep(Duration::from_millis(200));
    bench.mock.set_stuck(0, true).unwrap();
    bench.mock.set_load(0, 1.0).unwrap();
    daemon.wait_for_log("reset again");
    let back = || forced(&bench).iter().filter(|write| write.args[0] == BY_DRIVER).count();
    assert!(eventually(back, |back| *back >= 3) >= 3, "{}", daemon.tail());
    bench.mock.set_stuck(0, false).unwrap();
    daemon.wait_for_log("clocks are back");
    daemon.stop();
}

#[test]
fn wake_that_does_nothing_is_seen_by_the_core_clock_where_the_memory_has_one_clock() {
    let one_memory_clock =
        GpuConfig { core_lock: false, memory_lock: false, energy_counter: false, ..GpuConfig::a100() };
    let bench = on(&MockConfig::new(vec![one_memory_clock]));
    let mut daemon = parked(&bench);
    std::thread::sleep(Duration::from_millis(200));
    bench.mock.set_stuck(0, true).unwrap();
    bench.mock.set_load(0, 1.0).unwrap();
    daemon.wait_for_log("reset again");
    bench.mock.set_stuck(0, false).unwrap();
    daemon.wait_for_log("clocks are back");
    daemon.stop();
    assert!(bench.is_free());
}

#[test]
fn states_are_forced_only_where_that_is_asked_for_or_nothing_else_is_to_be_had() {
    // A board that locks clocks is not touched by NVAPI.
    let bench = on(&MockConfig::new(vec![GpuConfig::a6000()]));
    let mut daemon = bench.start(&["park"]);
    let locked = eventually(|| bench.mock.locks(0).unwrap(), |locks| locks.core.is_some());
    assert!(locked.core.is_some() && forced(&bench).is_empty());
    daemon.stop();
    // Without the library: said before anything is written.
    let bench = Bench::with(&MockConfig::new(vec![p40()]));
    let refused = bench.run(&["park"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.err.contains("locks no core clock") && refused.err.contains("libnvidia-api"),
        "{refused:?}"
    );
    // Under a driver that would leave it there.
    let machine = MockConfig { driver_version: "616.56".into(), ..MockConfig::new(vec![p40()]) };
    let bench = on(&machine).set("park.lever", "pstate");
    let refused = bench.run(&["park"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("616.x") && refused.err.contains("nvidia-pstated/issues/13"), "{refused:?}");
    assert!(forced(&bench).is_empty());
}

#[test]
fn gpus_says_whether_states_can_be_forced() {
    let bench = bench();
    assert!(bench.run(&["gpus"]).out.contains("NVAPI          there"), "{:?}", bench.run(&["gpus"]));
    let without = Bench::with(&MockConfig::new(vec![p40()]));
    assert!(without.run(&["gpus"]).out.contains("NVAPI          not there"));
    assert!(forced(&bench).is_empty());
}
