//! SIGHUP reads the configuration again; and what the service manager is told.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;
use support::daemon::{Bench, Daemon};
use support::eventually;

#[test]
fn good_file_takes_effect_at_once_and_what_was_learned_stays() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(3);
    let bench = bench
        .set("gpu.min_frequency", "900")
        .set("vllm.scrape_timeout_s", "0.25")
        .set("control.policy", "structured");
    bench.config();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("configuration reloaded");
    let log = daemon.log();
    for part in ["key=\"gpu.min_frequency\" change=\"500 -> 900\"", "takes effect now"] {
        assert!(log.contains(part), "no {part}\n{}", daemon.tail());
    }
    assert!(log.contains("takes effect with the next start key=\"control.policy\""), "{}", daemon.tail());
    let before = bench.mock.history().len();
    bench.wait_for_release(&daemon);
    bench.wait_for_lock(&daemon);
    daemon.wait_for_lessons(3);
    let locks = bench.mock.history();
    let low = locks[before..].iter().filter(|write| write.args[1] > 0).map(|write| write.args[1]).min();
    assert!(low >= Some(900), "{low:?}");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
    let numbers: Vec<u64> = bench.rounds().iter().map(|round| round.round).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "rounds go on: {numbers:?}");
}

/// The file that is read again is this; the run goes on with the old one, and says where the error is.
fn refused(bench: &Bench, daemon: &Daemon, text: &str, parts: &[&str]) {
    let path = bench.config();
    let sound = fs::read_to_string(&path).expect("the configuration");
    fs::write(&path, text).expect("the configuration");
    let before = daemon.log().len();
    daemon.signal(Signal::HUP);
    let said = || daemon.log()[before..].lines().filter(|line| line.contains("the old one stays")).count();
    assert!(eventually(said, |count| *count > 0) > 0, "{}", daemon.tail());
    let log = &daemon.log()[before..];
    for part in parts {
        assert!(log.contains(part), "no {part}\n{log}");
    }
    fs::write(&path, sound).expect("the configuration");
}

#[test]
fn bad_file_is_refused_with_key_and_line_and_the_old_one_stays() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let text = fs::read_to_string(bench.config()).expect("the configuration");
    let bad = text.replace("sampling_duration: 0.25", "sampling_duration: fast");
    let line = 1 + bad.lines().position(|line| line.contains("fast")).expect("the line");
    let line = format!("line={line}");
    refused(&bench, &daemon, &bad, &["key=\"metrics.sampling_duration\"", &line]);
    refused(&bench, &daemon, "control: [", &["line 2", "is not YAML"]);
    bench.wait_for_lock(&daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn unchanged_file_changes_nothing() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("configuration reloaded: nothing takes effect now");
    daemon.stop();
}

#[test]
fn service_manager_hears_ready_then_signs_of_life_and_the_end() {
    let bench = Bench::new();
    bench.engine.set_load(0.6);
    let path = bench.path("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket option");
    let mut command = bench.command(&[]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    let mut daemon = Daemon::start(command);
    let hear = || {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).expect("a word of the daemon");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(hear(), "READY=1");
    let heard: Vec<String> = (0..12).map(|_| hear()).collect();
    assert!(heard.iter().filter(|word| *word == "WATCHDOG=1").count() >= 3, "{heard:?}");
    assert!(heard.iter().any(|word| word.starts_with("STATUS=")), "{heard:?}");
    daemon.signal(Signal::HUP);
    while !hear().starts_with("RELOADING=1\nMONOTONIC_USEC=") {}
    while hear() != "READY=1" {}
    daemon.signal(Signal::TERM);
    while hear() != "STOPPING=1" {}
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.tail());
}
