//! Which clocks are written: to every GPU alike, only those that the driver takes and the card follows.

mod support;

use std::collections::BTreeSet;

use nvidia_ml::{ClockWrite, GpuConfig, Injection, MockConfig};
use support::daemon::{Bench, Daemon};
use support::eventually;

const SET_CORE: &str = "nvmlDeviceSetGpuLockedClocks";
const SET_MEMORY: &str = "nvmlDeviceSetMemoryLockedClocks";
const INVALID_ARGUMENT: u32 = 2;

/// The core clocks asked for (upper bounds) from the `first` write on.
fn asked_from(bench: &Bench, first: usize) -> Vec<u32> {
    let writes = bench.mock.history().into_iter().skip(first);
    writes.filter(|write| write.call == SET_CORE).map(|write| write.args[1]).collect()
}

/// Waits for that many core locks from the `first` write on.
fn wait_for_locks(bench: &Bench, daemon: &Daemon, first: usize, count: usize) -> Vec<u32> {
    let locks = eventually(|| asked_from(bench, first), |locks| locks.len() >= count);
    assert!(locks.len() >= count, "only {locks:?}\n{}", daemon.tail());
    locks
}

#[test]
fn locks_are_ranges_from_the_lowest_clock_to_the_chosen_one() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    wait_for_locks(&bench, &daemon, 0, 5);
    daemon.stop();
    let locks = bench.writes_of(daemon.pid()).into_iter().filter(|write| write.call == SET_CORE);
    let locks: BTreeSet<[u32; 2]> = locks.map(|write| write.args).collect();
    let supported = &bench.mock.config().gpus[0].levels[0].core_mhz;
    for [low, high] in locks {
        assert_eq!(low, 210);
        assert!(
            high >= 500 && supported.contains(&high),
            "{high} MHz is below gpu.min_frequency or not supported"
        );
    }
    bench.assert_given_back(daemon.pid());
}

#[test]
fn gpus_of_one_engine_are_locked_alike_and_all_given_back() {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a100(), 2)).set("gpu.device_id", "[0, 1]");
    let mut daemon = bench.serve(&[]);
    wait_for_locks(&bench, &daemon, 0, 6);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
    let of_gpu = |gpu: u32| {
        let writes = bench.writes_of(daemon.pid()).into_iter().filter(|write| write.gpu == gpu);
        writes.map(|ClockWrite { call, args, .. }| (call, args)).collect::<Vec<_>>()
    };
    assert_eq!(of_gpu(0), of_gpu(1));
}

#[test]
fn gpu_that_is_not_configured_is_left_alone() {
    let machine = MockConfig::uniform(&GpuConfig::a100(), 2);
    let bench = Bench::with(&machine);
    let second = bench.mock.config().gpus[1].uuid.clone();
    let bench = bench.set("gpu.device_id", &second);
    bench.engine.set_load(0.6);
    let mut daemon = bench.start(&[]);
    wait_for_locks(&bench, &daemon, 0, 1);
    daemon.stop();
    assert!(bench.mock.history().iter().all(|write| write.gpu == 1), "{:?}", bench.mock.history());
    assert!(bench.is_free());
}

#[test]
fn memory_clocks_are_chosen_where_asked_for_and_given_back() {
    let bench = Bench::with(&MockConfig::new(vec![GpuConfig::a6000()]))
        .set("gpu.enable_memory_frequency_control", "true")
        .set("gpu.memory_frequencies", "[8001, 810]");
    let mut daemon = bench.serve(&[]);
    let asked = || {
        let writes = bench.mock.history().into_iter().filter(|write| write.call == SET_MEMORY);
        writes.map(|write| write.args).collect::<BTreeSet<_>>()
    };
    let both = BTreeSet::from([[8001, 8001], [810, 810]]);
    assert_eq!(eventually(asked, |seen| *seen == both), both, "{}", daemon.tail());
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn clock_that_the_driver_refuses_leaves_the_action_space_and_the_loop_goes_on() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::error(SET_CORE, INVALID_ARGUMENT).times(1)).expect("a free slot");
    let refused_at = || bench.mock.history().iter().position(|write| write.code == INVALID_ARGUMENT);
    let at = eventually(refused_at, Option::is_some).unwrap_or_else(|| panic!("{}", daemon.tail()));
    let refused = bench.mock.history()[at].args[1];
    let locks = wait_for_locks(&bench, &daemon, at + 1, 4);
    assert!(!locks.contains(&refused), "{refused} MHz was refused, then came {locks:?}");
    assert!(daemon.log().contains("clock out of the action space"), "{}", daemon.tail());
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn clock_that_the_card_silently_clamps_leaves_the_action_space() {
    // An H200 lists 1980 MHz, takes the lock and runs at 1830.
    let bench = Bench::with(&MockConfig::new(vec![GpuConfig::h200()])).set("gpu.settle_time_s", "0.05");
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_log("the card does not follow this clock");
    assert!(daemon.log().contains("asked_mhz=1980 running_mhz=1830"), "{}", daemon.tail());
    let locks = wait_for_locks(&bench, &daemon, bench.mock.history().len(), 4);
    assert!(!locks.contains(&1980), "{locks:?}");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}
