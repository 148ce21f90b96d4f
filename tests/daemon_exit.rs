//! Clocks are borrowed: every way out of the daemon, and every driver error on the way, ends with the clocks given back.

mod support;

use std::time::Duration;

use agft::gpu::nvml::NvmlHost;
use agft::gpu::{GpuClocks, GpuSelector};
use agft::units::Mhz;
use nvidia_ml::{GpuConfig, Injection, MockConfig};
use rustix::process::Signal;
use support::daemon::Bench;
use support::{eventually, get, value};

const SET_CORE: &str = "nvmlDeviceSetGpuLockedClocks";
const RESET_CORE: &str = "nvmlDeviceResetGpuLockedClocks";
const NO_PERMISSION: u32 = 4;
const GPU_IS_LOST: u32 = 15;
const UNKNOWN: u32 = 999;

fn ended_by(signal: Signal, bench: &Bench) {
    let mut daemon = bench.serve(&[]);
    daemon.signal(signal);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.tail());
    bench.assert_given_back(daemon.pid());
}

#[test]
fn sigterm_ends_the_run_with_the_clocks_given_back() {
    ended_by(Signal::TERM, &Bench::new());
}

#[test]
fn sigterm_ends_the_run_of_the_default_policy_with_the_clocks_given_back() {
    ended_by(Signal::TERM, &Bench::new().set("control.policy", "structured"));
}

#[test]
fn sigint_ends_the_run_with_the_clocks_given_back() {
    ended_by(Signal::INT, &Bench::new());
}

#[test]
fn panic_gives_the_clocks_back_and_fails() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&["--panic-at-tick", "60"]);
    assert!(!daemon.wait().success());
    assert!(daemon.log().contains("panic asked for at tick 60"), "{}", daemon.tail());
    bench.assert_given_back(daemon.pid());
}

#[test]
fn lock_of_a_dead_predecessor_is_reset_before_anything_else() {
    let bench = Bench::new();
    let host = NvmlHost::open_with(&bench.mock.library()).expect("the mock initialises");
    let mut stranger = host.clocks(&GpuSelector::Index(0)).expect("GPU 0");
    stranger.lock_core(Mhz(300), Mhz(300)).expect("core lock");
    let mut daemon = bench.start(&[]);
    bench.wait_for_release(&daemon);
    daemon.wait_for_log("agft starts");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn clocks_that_the_driver_will_not_take_back_at_first_are_given_back_by_trying_again() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::error(RESET_CORE, UNKNOWN).times(2)).expect("a free slot");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
    let refused = bench.writes_of(daemon.pid()).iter().filter(|write| write.code == UNKNOWN).count();
    assert_eq!(refused, 2);
}

#[test]
fn signals_during_the_end_do_not_cut_it_short() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::error(RESET_CORE, UNKNOWN).times(2)).expect("a free slot");
    let failures = || bench.mock.history().iter().filter(|write| write.code == UNKNOWN).count();
    daemon.signal(Signal::TERM);
    assert!(eventually(failures, |count| *count >= 1) >= 1);
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.tail());
    bench.assert_given_back(daemon.pid());
}

#[test]
fn lock_that_the_driver_is_still_busy_with_is_given_back_too() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let locks = || bench.mock.call_count(SET_CORE).expect("a call of the library");
    let before = locks();
    bench.mock.inject(&Injection::delay(SET_CORE, Duration::from_millis(400))).expect("a free slot");
    assert!(eventually(locks, |count| *count > before) > before);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn sensors_that_fail_for_a_while_cost_lessons_and_not_the_run() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    for call in
        ["nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues", "nvmlDeviceGetUtilizationRates"]
    {
        bench.mock.inject(&Injection::error(call, UNKNOWN)).expect("a free slot");
    }
    let until = bench.engine.served() + 10;
    assert!(eventually(|| bench.engine.served(), |served| *served >= until) >= until);
    bench.mock.clear_injections();
    daemon.wait_for_lessons(2);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn permission_lost_while_running_is_waited_out() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&["--metrics-listen", "127.0.0.1:0"]);
    let address = daemon.page_address();
    let clocks = || {
        let page = get(&address, "/metrics").expect("the page");
        ["agft_clocks_locked", "agft_clocks_not_given_back"]
            .map(|name| value(&page, &format!("{name}{{server=\"server\",gpu=\"0\"}}")))
    };
    for call in [SET_CORE, RESET_CORE] {
        bench.mock.inject(&Injection::error(call, NO_PERMISSION)).expect("a free slot");
    }
    daemon.wait_for_log("not permitted; run agft as root");
    std::thread::sleep(Duration::from_secs(3));
    assert!(daemon.is_running(), "{}", daemon.tail());
    assert_eq!(clocks(), [None, Some(1.0)], "what is locked is not known");
    assert!(daemon.log().matches("clocks not given back yet").count() < 8, "{}", daemon.tail());
    bench.mock.clear_injections();
    bench.wait_for_release(&daemon);
    bench.wait_for_lock(&daemon);
    assert_eq!(clocks()[1], Some(0.0));
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn driver_errors_that_pass_pause_at_default_clocks_and_the_loop_goes_on() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::error(SET_CORE, UNKNOWN).times(2)).expect("a free slot");
    let refusals = || bench.mock.history().iter().filter(|write| write.code == UNKNOWN).count();
    for wanted in 1..=2 {
        assert_eq!(eventually(refusals, |seen| *seen >= wanted), wanted, "{}", daemon.tail());
        bench.wait_for_release(&daemon);
    }
    bench.wait_for_lock(&daemon);
    assert!(daemon.log().contains("clock refused"), "{}", daemon.tail());
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn gpu_reported_lost_by_a_clock_call_is_waited_out() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::error(SET_CORE, GPU_IS_LOST)).expect("a free slot");
    daemon.wait_for_log("the GPU is lost");
    bench.wait_for_release(&daemon);
    assert!(daemon.is_running(), "{}", daemon.tail());
    bench.mock.clear_injections();
    bench.wait_for_lock(&daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn gpu_that_is_lost_for_a_while_is_waited_out() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.set_lost(0, true).expect("GPU 0");
    daemon.wait_for_log("the GPU is lost; it needs a reset or a reboot");
    assert!(daemon.is_running(), "{}", daemon.tail());
    bench.mock.set_lost(0, false).expect("GPU 0");
    bench.wait_for_release(&daemon);
    bench.wait_for_lock(&daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn failure_on_the_second_gpu_releases_the_first_too() {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a100(), 2)).set("gpu.device_id", "[0, 1]");
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::error(SET_CORE, NO_PERMISSION).on(1)).expect("a free slot");
    daemon.wait_for_log("clock refused");
    bench.wait_for_release(&daemon);
    assert!(daemon.is_running() && daemon.log().contains("GPU 1"), "{}", daemon.tail());
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}
