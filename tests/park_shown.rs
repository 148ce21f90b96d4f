//! `agft park` shows itself and takes orders: status, pause and resume, release, metrics, SIGHUP, a dry run.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use nvidia_ml::{GpuConfig, MockConfig, Range};
use rustix::process::Signal;
use serde_json::Value;
use support::daemon::Bench;
use support::parking::{LOWEST, a100, parked, quick, wait_for_core};
use support::{eventually, get};

/// Its GPUs without a server.
fn status(bench: &Bench) -> Value {
    bench.status()["park"].take()
}

fn eventual_status(bench: &Bench, wanted: impl Fn(&Value) -> bool) -> Value {
    let state = eventually(|| status(bench), &wanted);
    assert!(wanted(&state), "{state}");
    state
}

#[test]
fn status_shows_each_gpu_with_its_state_clocks_and_books() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let bench = quick(&MockConfig::uniform(&GpuConfig::a100(), 2));
    let daemon = parked(&bench, &["--port", &port.to_string(), "--gpus", "0,1"]);
    wait_for_core(&bench, &daemon, 1, Some(LOWEST));
    let held = |state: &Value| state["gpus"][1]["in_force"]["core"] == 210;
    let state = eventual_status(&bench, held);
    assert_eq!((&bench.status()["pid"], &state["mode"]), (&daemon.pid().into(), &"PARKING".into()));
    assert_eq!(bench.status()["servers"], serde_json::json!([]));
    assert_eq!(state["sources"], serde_json::json!(["utilization", "connections"]));
    assert_eq!(state["connections"]["ports"], serde_json::json!([port]));
    assert_eq!(state["connections"]["open"], 0);
    let source = state["connections"]["source"].as_str().unwrap();
    assert!(["kernel_events", "perf_events", "polling"].contains(&source), "{state}");
    assert_eq!(state["gpus"][0]["state"], "PARKED");
    assert_eq!(state["gpus"][0]["parked_clocks"]["core"], 210);
    // Work that no connection told of.
    bench.mock.set_load(0, 0.9).unwrap();
    let woken = |state: &Value| state["gpus"][0]["books"]["wakes"]["utilization"] == 1;
    let state = eventual_status(&bench, woken);
    assert_eq!(state["gpus"][0]["state"], "SERVING");
    assert_eq!(state["gpus"][0]["books"]["missed_wakes"], 1);
    assert_eq!(state["gpus"][0]["books"]["spells"], 1);
    assert!(state["gpus"][0]["books"]["parked_s"].as_f64() > Some(0.0), "{state}");
    assert_eq!(state["gpus"][1]["state"], "PARKED");
    let text = bench.run(&["status"]).out;
    for part in ["agft park", "mode        PARKING", "GPU 1", "PARKED for", "1 by utilization"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let top = bench.run(&["model", "show"]);
    assert!(top.err.contains("agft park") && top.err.contains("agft status"), "{}", top.err);
}

#[test]
fn pause_gives_the_clocks_back_until_resume_and_so_does_release() {
    let bench = a100();
    let mut daemon = parked(&bench, &[]);
    for arguments in [&["pause"][..], &["release"][..]] {
        let paused = bench.run(arguments);
        assert_eq!(paused.code, Some(0), "{}", paused.err);
        assert!(paused.out.contains("PAUSED") || paused.out.contains("is paused now"), "{}", paused.out);
        assert!(bench.is_free(), "the answer comes when the clocks are back");
        let state = status(&bench);
        assert_eq!((&state["mode"], &state["gpus"][0]["state"]), (&"PAUSED".into(), &"PAUSED".into()));
        assert_eq!(state["gpus"][0]["in_force"], Value::Null);
        let books = state["gpus"][0]["books"].clone();
        std::thread::sleep(Duration::from_secs(1));
        assert!(bench.is_free(), "{}", daemon.tail());
        // Nothing is booked as parked meanwhile, and no sensor is asked.
        assert_eq!(status(&bench)["gpus"][0]["books"], books);
        let resumed = bench.run(&["resume"]);
        assert!(resumed.out.contains("PARKING"), "{}{}", resumed.out, resumed.err);
        wait_for_core(&bench, &daemon, 0, Some(LOWEST));
        eventual_status(&bench, |state| state["gpus"][0]["state"] == "PARKED");
    }
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn file_is_read_again_and_the_clocks_follow_while_a_bad_one_changes_nothing() {
    let mut bench = quick(&MockConfig::new(vec![GpuConfig::a6000()])).set("park.lever", "core");
    let mut daemon = parked(&bench, &[]);
    let guardian = bench.guardian();
    bench.change("park.lever", "both");
    bench.change("park.timeout_s", "0.5");
    bench.change("park.active_poll_ms", "50");
    bench.config();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("configuration reloaded");
    for part in ["key=\"park.lever\" change=\"\\\"core\\\" -> \\\"both\\\"\"", "takes effect now"] {
        assert!(daemon.log().contains(part), "no {part}\n{}", daemon.tail());
    }
    assert!(daemon.log().contains("with the next start key=\"park.active_poll_ms\""), "{}", daemon.tail());
    let locked =
        eventually(|| bench.mock.locks(0).unwrap(), |locks| locks.core.is_some() && locks.memory.is_some());
    assert_eq!(locked.memory, Some(Range { min: 405, max: 405 }), "{}", daemon.tail());
    assert_eq!(status(&bench)["lever"], "both");
    bench.change("park.timeout_s", "-1");
    bench.config();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("the old one stays");
    assert!(daemon.log().contains("key=\"park.timeout_s\""), "{}", daemon.tail());
    assert_eq!((bench.mock.locks(0).unwrap().memory, bench.guardian()), (locked.memory, guardian));
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn reload_watches_other_ports_and_keeps_what_the_command_line_says() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let mut bench = a100();
    let mut daemon = parked(&bench, &["--idle-timeout", "0.4"]);
    bench.change("park.sources", "[connections]");
    bench.change("park.ports", &format!("[{}]", address.port()));
    bench.change("park.timeout_s", "600");
    bench.config();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("configuration reloaded");
    assert!(!daemon.log().contains("key=\"park.timeout_s\""), "{}", daemon.tail());
    // Not the lock of before, which is given back first.
    let parkings = || daemon.log().lines().filter(|line| line.contains(": parked ")).count();
    assert!(eventually(parkings, |times| *times == 2) == 2, "{}", daemon.tail());
    wait_for_core(&bench, &daemon, 0, Some(LOWEST));
    let client = TcpStream::connect(address).unwrap();
    wait_for_core(&bench, &daemon, 0, None);
    daemon.wait_for_log("by=connections");
    drop((client, server));
    daemon.stop();
}

#[test]
fn dry_run_decides_and_shows_and_writes_nothing() {
    for arguments in [&["park", "--dry-run"][..], &["--dry-run", "park"][..]] {
        let bench = a100();
        let mut daemon = bench.start(arguments);
        daemon.wait_for_log("parked");
        let state = eventual_status(&bench, |state| state["gpus"][0]["state"] == "PARKED");
        assert_eq!((&bench.status()["dry_run"], &state["gpus"][0]["in_force"]), (&true.into(), &Value::Null));
        bench.mock.set_load(0, 1.0).unwrap();
        daemon.wait_for_log("woken");
        assert!(bench.run(&["pause"]).out.contains("PAUSED"));
        daemon.stop();
        assert!(bench.mock.history().is_empty(), "{}", daemon.tail());
    }
}

#[test]
fn metrics_follow_the_run_and_a_port_that_is_taken_is_an_error_before_any_clock() {
    let bench = a100();
    let mut daemon = parked(&bench, &["--metrics-listen", "127.0.0.1:0"]);
    let address = daemon.page_address();
    let is =
        |page: &Option<String>, line: &str| page.as_ref().is_some_and(|page| page.lines().any(|l| l == line));
    let parked = r#"agft_park_state{server="",gpu="0",state="PARKED"} 1.0"#;
    let page = eventually(|| get(&address, "/metrics"), |page| is(page, parked));
    assert!(is(&page, parked), "{page:?}");
    bench.mock.set_load(0, 1.0).unwrap();
    let back = r#"agft_wake_latency_seconds_count{server="",gpu="0"} 1"#;
    let page = eventually(|| get(&address, "/metrics"), |page| is(page, back));
    assert!(is(&page, back), "{page:?}");
    assert!(is(&page, r#"agft_wakes_total{server="",gpu="0",source="utilization"} 1.0"#), "{page:?}");
    // Under their old names, for one release.
    assert!(is(&page, r#"agft_park_wake_latency_seconds_count{gpu="0"} 1"#), "{page:?}");
    assert!(is(&page, r#"agft_park_wakes_total{gpu="0",source="utilization"} 1.0"#), "{page:?}");
    let state: Value = serde_json::from_str(&get(&address, "/api/state").unwrap()).unwrap();
    assert_eq!(state["park"]["gpus"][0]["state"], "SERVING");
    if let Ok(mut promtool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        promtool.stdin.take().unwrap().write_all(page.unwrap().as_bytes()).unwrap();
        let out = promtool.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let other = a100();
    let refused = other.run(&["park", "--metrics-listen", &address]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("park.metrics_listen") && refused.err.contains("in use"), "{refused:?}");
    assert!(other.mock.history().is_empty());
    daemon.stop();
    assert!(get(&address, "/metrics").is_none());
}
