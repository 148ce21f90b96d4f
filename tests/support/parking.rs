//! `agft park` on mocked boards, with quick times.

use nvidia_ml::{MockConfig, Range};

use super::daemon::{Bench, Daemon};
use super::eventually;

/// The core lock of a parked board.
pub(crate) const LOWEST: Range = Range { min: 210, max: 210 };

/// Quick times: quiet for a third of a second.
pub(crate) fn quick(machine: &MockConfig) -> Bench {
    Bench::with(machine).parks_soon()
}

pub(crate) fn a100() -> Bench {
    quick(&MockConfig::default())
}

pub(crate) fn core(bench: &Bench, gpu: usize) -> Option<Range> {
    bench.mock.locks(gpu).expect("a GPU of this machine").core
}

pub(crate) fn wait_for_core(bench: &Bench, daemon: &Daemon, gpu: usize, wanted: Option<Range>) {
    assert_eq!(eventually(|| core(bench, gpu), |lock| *lock == wanted), wanted, "{}", daemon.tail());
}

/// Starts it, with these arguments, and waits until GPU 0 is parked.
pub(crate) fn parked(bench: &Bench, arguments: &[&str]) -> Daemon {
    let daemon = bench.start(&[&["park"], arguments].concat());
    wait_for_core(bench, &daemon, 0, Some(LOWEST));
    daemon
}
