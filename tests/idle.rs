//! Idleness: parked only if page and GPU agree, and woken by the GPU before the page shows the work.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::time::Duration;

use nvidia_ml::{GpuConfig, MockConfig, Range, monotonic_ns};
use support::daemon::{Bench, Daemon, IDLE_MHZ};
use support::eventually;

/// Time for the power to sink after parking, after which a rise counts: longer than the daemon's own.
const SUNK: Duration = Duration::from_millis(500);

fn wait_until_parked(bench: &Bench, daemon: &Daemon) {
    let lock = || bench.mock.locks(0).expect("GPU 0").core;
    let parked = Some(Range { min: IDLE_MHZ, max: IDLE_MHZ });
    assert_eq!(eventually(lock, |lock| *lock == parked), parked, "{}", daemon.tail());
}

/// Waits until the page has been scraped `pages` times more.
fn wait_for_pages(bench: &Bench, pages: u64) {
    let until = bench.engine.served() + pages;
    assert!(eventually(|| bench.engine.served(), |served| *served >= until) >= until);
}

/// Work comes to a parked GPU while the page still shows none: the time until its clocks are no longer the idle ones.
fn wake(bench: &Bench, daemon: &Daemon) -> Duration {
    let seen = bench.mock.history().len();
    let start = monotonic_ns();
    bench.mock.set_load(0, 1.0).expect("GPU 0");
    let write = || bench.mock.history().get(seen).cloned();
    let write = eventually(write, Option::is_some);
    assert!(write.is_some(), "not woken\n{}", daemon.tail());
    let write = write.expect("just seen");
    let took = Duration::from_nanos(write.at_ns - start);
    eprintln!("from work on the GPU to {} {:?}: {took:?}", write.call, write.args);
    assert!(bench.lock().is_none_or(|core| core > IDLE_MHZ), "woken into the idle clock\n{}", daemon.tail());
    took
}

/// The sensors as often as a default configuration reads them.
fn with_default_sensors(machine: &MockConfig) -> Bench {
    Bench::with(machine).set("gpu.sensor_poll_interval_ms", "100").set("idle.power_poll_interval_ms", "100")
}

#[test]
fn third_empty_window_parks_the_gpu_at_the_idle_clock() {
    let bench = Bench::new();
    let mut daemon = bench.start(&[]);
    wait_until_parked(&bench, &daemon);
    daemon.stop();
    let states: Vec<String> = bench.rounds().into_iter().filter_map(|round| round.state).collect();
    let parked = states.iter().position(|state| state == "IDLE");
    assert_eq!(parked, Some(2), "{states:?}");
    bench.assert_given_back(daemon.pid());
}

#[test]
fn work_on_a_parked_gpu_wakes_it_before_the_page_shows_any() {
    let bench = with_default_sensors(&MockConfig::default());
    let mut daemon = bench.serve(&[]);
    bench.engine.set_load(0.0);
    wait_until_parked(&bench, &daemon);
    std::thread::sleep(SUNK);
    let took = wake(&bench, &daemon);
    assert!(took < Duration::from_secs(1), "{took:?}");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn work_that_comes_right_after_parking_wakes_as_fast() {
    let bench = with_default_sensors(&MockConfig::default());
    let mut daemon = bench.start(&[]);
    wait_until_parked(&bench, &daemon);
    let took = wake(&bench, &daemon);
    assert!(took < Duration::from_secs(1), "{took:?}");
    daemon.wait_for_log("utilisation rose: woken");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn power_alone_wakes_a_gpu_without_a_utilisation_sensor() {
    let gpu = GpuConfig { utilization: false, ..GpuConfig::a100() };
    let bench = with_default_sensors(&MockConfig::new(vec![gpu]));
    let mut daemon = bench.start(&[]);
    wait_until_parked(&bench, &daemon);
    std::thread::sleep(SUNK);
    let took = wake(&bench, &daemon);
    assert!(took < Duration::from_secs(1), "{took:?}");
    daemon.wait_for_log("power rose: woken");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn work_on_the_page_wakes() {
    let bench = Bench::new();
    let mut daemon = bench.start(&[]);
    wait_until_parked(&bench, &daemon);
    bench.engine.set_load(0.6);
    bench.wait_for_lock(&daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn empty_page_over_a_busy_gpu_is_never_parked() {
    let bench = Bench::new();
    bench.mock.set_load(0, 1.0).expect("GPU 0");
    let mut daemon = bench.start(&[]);
    wait_for_pages(&bench, 25);
    daemon.stop();
    assert!(bench.mock.history().iter().all(|write| write.args[1] != IDLE_MHZ), "{}", daemon.tail());
    bench.assert_given_back(daemon.pid());
}

#[test]
fn parking_that_is_switched_off_never_parks() {
    let bench = Bench::new().set("idle.enabled", "false");
    let mut daemon = bench.start(&[]);
    wait_for_pages(&bench, 15);
    daemon.stop();
    assert!(bench.mock.history().iter().all(|write| write.args[1] != IDLE_MHZ), "{}", daemon.tail());
    bench.assert_given_back(daemon.pid());
}

#[test]
fn engine_that_restarts_while_parked_is_woken_into_serving_clocks() {
    let bench = with_default_sensors(&MockConfig::default());
    let mut daemon = bench.serve(&[]);
    bench.engine.set_load(0.0);
    wait_until_parked(&bench, &daemon);
    bench.engine.restart();
    daemon.wait_for_log("engine restarted or counters reset");
    wait_for_pages(&bench, 10);
    wait_until_parked(&bench, &daemon);
    wake(&bench, &daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}
