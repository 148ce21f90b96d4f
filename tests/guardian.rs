//! Clocks are borrowed, whoever dies: SIGKILL, SIGSTOP and hung driver calls, seen from outside through the mock.

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::daemon::Bench;

/// How long after the controller's end its clocks may stay locked.
const RELEASED_WITHIN: Duration = Duration::from_secs(1);

/// The moment from which no clock is locked, counted from `start`.
fn released_after(bench: &Bench, start: Instant) -> Duration {
    loop {
        if bench.is_free() {
            return start.elapsed();
        }
        assert!(start.elapsed() < support::PATIENCE, "clocks still locked");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn sigkill_of_the_controller_releases_the_clocks_within_a_second() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let start = Instant::now();
    daemon.signal(Signal::KILL);
    let took = released_after(&bench, start);
    assert!(took < RELEASED_WITHIN, "{took:?}\n{}", daemon.tail());
    daemon.wait();
}
