//! One GPU has one agft, and `agft release` ends with 0 only where nobody locks again.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use nvidia_ml::{GpuConfig, Injection, MockConfig};
use rustix::process::Signal;
use support::daemon::{Bench, Daemon, is_gone};
use support::eventually;

/// More than the places that the control socket has.
const CROWD: usize = 40;
const RESET_CORE: &str = "nvmlDeviceResetGpuLockedClocks";
const RESET_MEMORY: &str = "nvmlDeviceResetMemoryLockedClocks";
const NOT_SUPPORTED: u32 = 3;
const NO_PERMISSION: u32 = 4;
/// How long after the end of a fault clocks may stay locked.
const FREED_WITHIN: Duration = Duration::from_secs(5);

/// Clients of the control socket that say this and nothing more.
fn crowd(bench: &Bench, daemon: &Daemon, said: &[u8]) -> Vec<UnixStream> {
    let socket = bench.path("run").join(format!("agft-{}.sock", daemon.pid()));
    let client = |_| {
        let mut stream = UnixStream::connect(&socket).expect("the control socket");
        // One that is cut off before it has spoken is silent all the same.
        let _ = stream.write_all(said);
        stream
    };
    (0..CROWD).map(client).collect()
}

#[test]
fn clients_that_ask_for_nothing_keep_nobody_from_status_pause_and_release() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    for said in [&b""[..], b"{\"cmd\":", b"{\"cmd\":\"watch\",\"every_s\":1}\n"] {
        let crowd = crowd(&bench, &daemon, said);
        for command in ["status", "release", "resume", "pause", "resume"] {
            let done = bench.run(&[command]);
            assert_eq!(done.code, Some(0), "{command}: {done:?}");
            assert!(bench.is_free() || !matches!(command, "release" | "pause"), "{command}: {done:?}");
        }
        drop(crowd);
        bench.wait_for_lock(&daemon);
    }
    daemon.stop();
}

#[test]
fn release_beside_an_agft_that_does_not_answer_names_it_and_fails() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    daemon.freeze(&bench);
    let released = bench.run(&["release"]);
    daemon.signal(Signal::CONT);
    assert_eq!(released.code, Some(69), "{released:?}");
    let pid = format!("pid {}", daemon.pid());
    assert!(released.err.contains(&pid) && released.err.contains("may lock it again"), "{released:?}");
    // The order waits in the socket until it goes on.
    daemon.wait_for_log("paused by an operator");
    daemon.stop();
}

#[test]
fn park_with_another_runtime_directory_is_refused_and_told_who_has_the_gpu() {
    let mut bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let elsewhere = bench.path("elsewhere").display().to_string();
    bench.change("gpu.runtime_dir", &elsewhere);
    let park = bench.run(&["park"]);
    assert_eq!(park.code, Some(69), "{park:?}");
    assert!(park.err.contains(&format!("pid {}", daemon.pid())), "{park:?}");
    daemon.stop();
}

#[test]
fn killed_agft_keeps_no_successor_out_wherever_that_writes_its_files() {
    let mut bench = Bench::new();
    let mut first = bench.serve(&[]);
    first.signal(Signal::KILL);
    let elsewhere = bench.path("elsewhere").display().to_string();
    bench.change("gpu.runtime_dir", &elsewhere);
    first.wait();
    let mut next = bench.start(&[]);
    next.wait_for_log("guardian is ready");
    bench.wait_for_lock(&next);
    next.stop();
    bench.assert_given_back(next.pid());
}

#[test]
fn next_start_takes_its_gpu_from_a_guardian_that_goes_on_with_the_other() {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a100(), 2)).set("gpu.device_id", "[0, 1]");
    let mut daemon = bench.serve(&[]);
    let old = bench.guardian().expect("a guardian");
    let refused = |gpu| Injection::error(RESET_CORE, NO_PERMISSION).on(gpu);
    bench.mock.inject(&refused(0).times(5)).expect("a free slot");
    bench.mock.inject(&refused(1)).expect("a free slot");
    daemon.signal(Signal::KILL);
    daemon.wait();
    daemon.wait_for_log("clocks not given back yet");
    let bench = bench.set("gpu.device_id", "0");
    let mut next = bench.serve(&[]);
    sleep(FREED_WITHIN);
    let core = |gpu| bench.mock.locks(gpu).expect("a GPU").core;
    assert!(core(1).is_some() && !is_gone(old), "{}", daemon.tail());
    bench.mock.clear_injections();
    assert!(eventually(|| core(1), Option::is_none).is_none(), "{}", daemon.tail());
    assert!(eventually(|| is_gone(old), |gone| *gone), "the old guardian stays");
    next.stop();
    assert!(bench.is_free());
}

#[test]
fn next_start_that_fails_leaves_somebody_who_frees_the_clocks() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::error(RESET_CORE, NO_PERMISSION)).expect("a free slot");
    daemon.signal(Signal::KILL);
    daemon.wait();
    daemon.wait_for_log("clocks not given back yet");
    let mut next = bench.start(&[]);
    assert_eq!(next.wait().code(), Some(77), "{}", next.tail());
    assert!(!bench.is_free(), "the driver takes no reset yet");
    bench.mock.clear_injections();
    assert!(eventually(|| bench.is_free(), |free| *free), "{}", daemon.tail());
    assert_eq!(eventually(|| bench.journals().len(), |journals| *journals == 0), 0);
}

/// A board that locked its memory clock has one to reset, whatever the driver says of that later.
#[test]
fn memory_lock_whose_reset_is_not_supported_any_more_is_nobodys_success() {
    let bench = Bench::with(&MockConfig::new(vec![GpuConfig::a6000()]))
        .set("gpu.enable_memory_frequency_control", "true");
    let memory = || bench.mock.locks(0).expect("GPU 0").memory;
    let mut daemon = bench.serve(&[]);
    assert!(eventually(memory, Option::is_some).is_some(), "{}", daemon.tail());
    bench.mock.inject(&Injection::error(RESET_MEMORY, NOT_SUPPORTED)).expect("a free slot");
    daemon.signal(Signal::KILL);
    daemon.wait();
    daemon.wait_for_log("clocks not given back yet");
    let released = bench.run(&["release"]);
    assert_ne!(released.code, Some(0), "{released:?}");
    assert!(memory().is_some() && bench.journals().len() == 1, "{}", daemon.tail());
    bench.mock.clear_injections();
    assert!(eventually(memory, Option::is_none).is_none(), "{}", daemon.tail());
    assert_eq!(eventually(|| bench.journals().len(), |journals| *journals == 0), 0);
}
