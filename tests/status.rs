//! `agft status`, `pause`, `resume` and `model` beside the real daemon, and without one.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use nvidia_ml::{GpuConfig, MockConfig};
use serde_json::Value;
use support::daemon::Bench;
use support::{eventually, get, value};

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn status_shows_what_the_daemon_does() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(3);
    let status = bench.run(&["status", "--json"]);
    assert_eq!(status.code, Some(0), "{}", status.err);
    let state = json(&status.out);
    assert_eq!(state["pid"], daemon.pid());
    let server = &state["servers"][0];
    assert_eq!((&server["name"], &state["park"]), (&"server".into(), &Value::Null));
    assert!(server["counts"]["lessons"].as_u64() >= Some(3), "{state}");
    assert!(server["gpus"][0]["power_w"].as_f64() > Some(10.0), "{state}");
    let text = bench.run(&["status"]);
    assert!(text.out.contains("clocks") && text.out.contains("learner     linucb"), "{}", text.out);
    let model = bench.run(&["model", "show"]);
    assert!(model.out.contains("core MHz") && model.out.contains("available"), "{}", model.out);
    let reset = bench.run(&["model", "reset"]);
    assert_eq!(reset.code, Some(1));
    assert!(reset.err.contains("in use by another agft"), "{}", reset.err);
    daemon.stop();
}

#[test]
fn pause_gives_the_clocks_back_until_resume() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let paused = bench.run(&["pause"]);
    assert_eq!(paused.code, Some(0), "{}", paused.err);
    assert!(paused.out.contains("PAUSED") && paused.out.contains("driver default"), "{}", paused.out);
    assert!(bench.is_free(), "the answer comes when the clocks are back");
    let unknown = bench.run(&["resume", "--server", "sever"]);
    assert_eq!(unknown.code, Some(1));
    let said = "no server is called \"sever\" here; there is: server";
    for arguments in [&["status", "--server", "sever"][..], &["model", "show", "--server", "sever"]] {
        assert!(bench.run(arguments).err.contains(said), "{arguments:?}");
    }
    assert!(unknown.err.contains(said), "{}", unknown.err);
    let lessons = daemon.lessons();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!((bench.is_free(), daemon.lessons()), (true, lessons));
    let resumed = bench.run(&["resume", "--server", "server"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    bench.wait_for_lock(&daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn several_servers_are_listed_and_one_is_shown_and_paused_by_name() {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a100(), 4)).server("chat", &[0, 1], "").server(
        "code",
        &[2],
        ", tpot_limit: 0.5",
    );
    bench.servers.iter().for_each(|server| server.set_load(0.6));
    let mut daemon = bench.start(&["--metrics-listen", "127.0.0.1:0"]);
    let locked = |gpu: usize| bench.mock.locks(gpu).unwrap().core.is_some();
    assert!(eventually(|| locked(0) && locked(2), |locked| *locked), "{}", daemon.tail());
    let text = bench.run(&["status"]).out;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((&lines[2][..2], &lines[3][..2]), (&["chat", "0,1"][..], &["code", "2"][..]), "{text}");
    assert!(lines[2].ends_with(&["kept"]) && lines[3].ends_with(&["kept"]), "{text}");
    let one = bench.run(&["status", "--server", "code"]).out;
    assert!(one.contains("GPU 2") && one.contains("learner") && !one.contains("GPU 1"), "{one}");
    let which = bench.run(&["model", "show"]).err;
    assert!(which.contains("say which with --server (chat, code)"), "{which}");
    assert!(bench.run(&["model", "show", "--server", "chat"]).out.contains("core MHz"));
    let paused = bench.run(&["pause", "--server", "chat"]);
    assert!(paused.out.contains("PAUSED, clocks: driver default"), "{}{}", paused.out, paused.err);
    assert!(!locked(0) && !locked(1), "{}", daemon.tail());
    assert!(eventually(|| locked(2), |locked| *locked), "the other goes on\n{}", daemon.tail());
    let host = json(&bench.run(&["status", "--json"]).out);
    assert_eq!(host["servers"][0]["mode"], "PAUSED");
    assert_ne!(host["servers"][1]["mode"], "PAUSED");
    let page = get(daemon.page_address(), "/metrics").unwrap();
    assert_eq!(value(&page, r#"agft_mode{server="chat",gpu="0,1",mode="PAUSED"}"#), Some(1.0), "{page}");
    assert_eq!(value(&page, r#"agft_mode{server="code",gpu="2",mode="PAUSED"}"#), Some(0.0), "{page}");
    assert!(value(&page, r#"agft_gpu_power_watts{server="chat",gpu="1"}"#) > Some(0.0), "{page}");
    let all = bench.run(&["pause"]).out;
    assert!(all.contains(", chat: PAUSED") && all.contains(", code: PAUSED"), "{all}");
    assert!(bench.is_free());
    let resumed = bench.run(&["resume"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    assert!(eventually(|| locked(0) && locked(2), |locked| *locked), "{}", daemon.tail());
    daemon.stop();
    assert!(bench.is_free());
}

#[test]
fn without_a_daemon_the_stored_model_is_shown_exported_and_reset() {
    let bench = Bench::new();
    let nobody = bench.run(&["status"]);
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.err.contains("no agft runs here"), "{}", nobody.err);
    assert!(bench.run(&["model", "show"]).err.contains("no model in"));
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(5);
    daemon.stop();
    let shown = bench.run(&["model", "show"]);
    assert!(shown.out.contains("lessons") && shown.out.contains("available"), "{}{}", shown.out, shown.err);
    let exported = bench.run(&["model", "export", "model.json"]);
    assert_eq!(exported.code, Some(0), "{}", exported.err);
    let model = json(&std::fs::read_to_string(bench.path("model.json")).unwrap());
    assert!(model["learner"]["lessons"].as_u64() >= Some(5), "{model}");
    let reset = bench.run(&["model", "reset"]);
    assert!(reset.out.contains("put aside"), "{}{}", reset.out, reset.err);
    assert!(!bench.model_files().contains(&"model.agft".to_owned()));
    assert!(bench.run(&["model", "reset"]).out.contains("nothing to put aside"));
}

#[test]
fn socket_of_a_killed_daemon_is_passed_over_and_swept_by_the_next() {
    let bench = Bench::new();
    let daemon = bench.serve(&[]);
    let sockets = || {
        let entries = std::fs::read_dir(bench.path("run")).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().path().extension() == Some("sock".as_ref())).count()
    };
    drop(daemon);
    assert_eq!(sockets(), 1);
    assert!(bench.run(&["status"]).err.contains("no agft runs here"));
    let mut next = bench.start(&[]);
    next.wait_for_log("control socket");
    let status = eventually(|| bench.run(&["status", "--json"]), |status| status.code == Some(0));
    assert_eq!(json(&status.out)["pid"], next.pid());
    assert_eq!(sockets(), 1);
    next.stop();
    assert_eq!(sockets(), 0);
}

#[test]
fn release_beside_a_daemon_pauses_it_so_that_the_clocks_stay_free() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(3);
    let released = bench.run(&["release"]);
    assert_eq!(released.code, Some(0), "{}", released.err);
    assert!(released.out.contains(&format!("(pid {}) and is paused now", daemon.pid())), "{}", released.out);
    assert_eq!(bench.lock(), None);
    assert_eq!(json(&bench.run(&["status", "--json"]).out)["servers"][0]["mode"], "PAUSED");
    assert_eq!(bench.run(&["resume"]).code, Some(0));
    assert!(eventually(|| bench.lock(), Option::is_some).is_some(), "{}", daemon.tail());
    daemon.stop();
}

#[test]
fn dry_run_can_be_asked_too_and_a_reload_keeps_the_pause() {
    let bench = Bench::new();
    bench.engine.set_load(0.6);
    let mut daemon = bench.start(&["--dry-run"]);
    daemon.wait_for_log("control socket");
    assert!(bench.run(&["pause"]).out.contains("PAUSED"));
    let _ = bench.config();
    daemon.signal(rustix::process::Signal::HUP);
    daemon.wait_for_log("configuration reloaded");
    let state = json(&bench.run(&["status", "--json"]).out);
    assert_eq!((&state["servers"][0]["mode"], &state["dry_run"]), (&"PAUSED".into(), &true.into()));
    daemon.stop();
}
