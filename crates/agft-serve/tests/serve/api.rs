//! `/v1`.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Serve, wait};

const TWO: &str = "
- name: chat 8B
  command: [sh, -c, 'echo begun $SECRET; exec sleep 1000']
  env: {SECRET: sesame, CUDA_VISIBLE_DEVICES: 1, CUDA_DEVICE_ORDER: PCI_BUS_ID}
  stop: {grace_s: 5}
- name: other
  enabled: false
  command: sleep 1000
  gpus: none
";

fn pid(instance: &Value) -> u64 {
    instance["pid"].as_u64().unwrap_or_else(|| panic!("{instance}"))
}

#[test]
fn instances_are_listed_shown_and_changed() {
    let mut serve = Serve::start(&[("a.yaml", TWO)]);
    let chat = serve.in_state("chat 8B", "ready");
    assert_eq!((&chat["gpus"], &chat["restarts"], &chat["requests"]), (&json!("1"), &json!(0), &Value::Null));
    assert!(chat["file"].as_str().unwrap().ends_with("a.yaml") && chat["line"] == 2, "{chat}");
    assert_eq!(serve.in_state("other", "disabled")["gpus"], "none");

    // Values of env are shown to those who have the token.
    let shown = serve.get("/v1/instances/chat%208B");
    assert_eq!(
        shown["entry"]["env"],
        json!({"SECRET": "***", "CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    );
    let shown = serve.change("GET", "/v1/instances/chat%208B", "", "").json();
    assert_eq!(shown["entry"]["env"]["SECRET"], "sesame");

    let logs = wait("output", || {
        let answer = serve.ask("GET", "/v1/instances/chat%208B/logs?lines=5");
        (!answer.body.is_empty()).then_some(answer.body)
    });
    let line: Value = serde_json::from_str(logs.lines().next().unwrap()).unwrap();
    assert_eq!((&line["text"], &line["source"]), (&json!("begun sesame"), &json!("stdout")));

    let act = |path: &str| serve.change("POST", path, "", "");
    assert_eq!(act("/v1/instances/chat%208B/restart").status, 200);
    let again = wait("a new process", || {
        let now = serve.in_state("chat 8B", "ready");
        (now["pid"] != chat["pid"]).then_some(now)
    });
    assert_eq!(act("/v1/instances/other/restart").status, 409);
    assert_eq!(act("/v1/instances/other/enable").status, 200);
    serve.in_state("other", "ready");
    assert_eq!(act("/v1/instances/chat%208B/disable").status, 200);
    serve.in_state("chat 8B", "disabled");
    assert!(fs::read(format!("/proc/{}/cmdline", pid(&again))).unwrap_or_default().is_empty());
    for path in ["/v1/instances/none/enable", "/v1/instances/none/disable", "/v1/instances/none/restart"] {
        let answer = act(path);
        assert!(
            answer.status == 404 && answer.json()["error"].as_str().unwrap().contains("none"),
            "{answer:?}"
        );
    }
    for path in ["/v1/instances/none", "/v1/instances/none/logs", "/nothing"] {
        assert_eq!(serve.ask("GET", path).status, 404, "{path}");
    }
    assert_eq!(serve.change("PUT", "/v1/instances", "", "").status, 405);
    let other = pid(&serve.in_state("other", "ready"));
    assert_eq!(serve.stop(), Some(0));
    assert!(!std::path::Path::new(&format!("/proc/{other}")).exists());
}

#[test]
fn a_reload_touches_only_what_changed_and_nothing_if_a_file_is_wrong() {
    let serve = Serve::start(&[
        ("a.yaml", "- {name: a, command: sleep 1000}"),
        ("b.yaml", "- {name: b, command: sleep 1000}"),
    ]);
    let (a, b) = (pid(&serve.in_state("a", "ready")), pid(&serve.in_state("b", "ready")));
    fs::write(serve.file("b.yaml"), "- {name: b, command: sleep 2000}\n- {name: c, command: sleep 1000}")
        .unwrap();
    let done = serve.change("POST", "/v1/reload", "", "").json();
    assert_eq!(done, json!({"unchanged": ["a"], "restarted": ["b"], "started": ["c"], "ended": []}));
    serve.in_state("c", "ready");
    assert_eq!(pid(&serve.in_state("a", "ready")), a);
    wait("b anew", || (pid(&serve.in_state("b", "ready")) != b).then_some(()));

    fs::write(serve.file("a.yaml"), "- {name: a}\n- {name: b, command: x, zzz: 1}").unwrap();
    let answer = serve.change("POST", "/v1/reload", "", "");
    assert_eq!(answer.status, 422);
    let problems = answer.json()["problems"].clone();
    assert_eq!(problems.as_array().unwrap().len(), 3, "{problems}");
    assert!(
        problems[0].as_str().unwrap().contains("a.yaml:1: instance 1 (a): command is missing"),
        "{problems}"
    );
    serve.signal(Signal::HUP);
    wait("the errors", || serve.said("zzz is not a known key").then_some(()));
    assert_eq!(pid(&serve.in_state("a", "ready")), a);

    fs::remove_file(serve.file("b.yaml")).unwrap();
    fs::write(serve.file("a.yaml"), "- {name: a, command: sleep 1000}").unwrap();
    serve.signal(Signal::HUP);
    wait("only a", || (serve.get("/v1/instances")["instances"].as_array().unwrap().len() == 1).then_some(()));
    assert_eq!(pid(&serve.in_state("a", "ready")), a);
}

#[test]
fn what_was_applied_wins_and_survives_reload_and_restart() {
    let mut serve = Serve::start(&[("a.yaml", "- {name: a, command: sleep 1000}")]);
    let apply = |serve: &Serve, kind: &str, text: &str| serve.change("POST", "/v1/instances", kind, text);
    let done = apply(
        &serve,
        "application/yaml",
        "- {name: a, command: sleep 2000}\n- {name: b, command: sleep 1000}",
    );
    assert_eq!(done.json(), json!({"unchanged": [], "restarted": ["a"], "started": ["b"], "ended": []}));
    let json = r#"[{"name": "c", "command": ["sleep", "1000"], "enabled": true, "env": {"N": 1}}]"#;
    assert_eq!(apply(&serve, "application/json; charset=utf-8", json).json()["started"], json!(["c"]));
    let b = pid(&serve.in_state("b", "ready"));
    assert_eq!(serve.change("POST", "/v1/reload", "", "").json()["unchanged"], json!(["a", "b", "c"]));
    assert_eq!(pid(&serve.in_state("b", "ready")), b);

    assert_eq!(serve.stop(), Some(0));
    let serve = Serve::start_in(Arc::clone(&serve.dir), &[]);
    let a = serve.in_state("a", "ready");
    assert!(a["applied"] == true && a["file"].as_str().unwrap().ends_with("applied.yaml"), "{a}");
    serve.in_state("c", "ready");
    let remove = |name: &str| serve.change("DELETE", &format!("/v1/instances/{name}"), "", "");
    assert_eq!(remove("b").json()["ended"], json!(["b"]));
    assert_eq!(remove("b").status, 404);
    assert_eq!(remove("a").json()["restarted"], json!(["a"]));
    assert_eq!(serve.get("/v1/instances/a")["entry"]["command"], "sleep 1000");
    let answer = remove("a");
    assert!(answer.status == 404 && answer.body.contains("a.yaml: take it out there"), "{answer:?}");

    for (kind, text, status) in [
        ("application/json", "{", 400),
        ("application/json", "{}", 422),
        ("", "\u{1}", 422),
        ("", "- {name: d}", 422),
    ] {
        let answer = apply(&serve, kind, text);
        assert_eq!(answer.status, status, "{text}: {answer:?}");
    }
}

#[test]
fn a_log_is_followed_line_by_line() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fs::create_dir(dir.path().join("instances")).unwrap();
    let text = format!(
        "- name: a\n  command: [sh, -c, 'while read -r line < pipe; do echo \"got $line\"; done']\n  working_directory: {}\n",
        dir.path().display()
    );
    fs::write(dir.path().join("instances/a.yaml"), text).unwrap();
    let serve = Serve::start_in(Arc::clone(&dir), &[]);
    serve.in_state("a", "ready");
    let mut stream = TcpStream::connect(serve.address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    write!(stream, "GET /v1/instances/a/logs?follow=true HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    for word in ["one", "two"] {
        fs::write(&pipe, format!("{word}\n")).unwrap();
        let mut seen = String::new();
        let mut bytes = [0; 1024];
        while !seen.contains(&format!("got {word}")) {
            let read = stream.read(&mut bytes).unwrap();
            assert!(read > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    }
}

#[test]
fn requests_and_tokens_a_second_come_from_the_metrics_page() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 1024]);
            let tokens = 1000 * (1 + count.fetch_add(1, Ordering::Relaxed));
            let page = format!("llamacpp:requests_processing 3\nllamacpp:tokens_predicted_total {tokens}\n");
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
                page.len()
            );
        }
    });
    let text = format!(
        "- {{name: a, command: sleep 1000, metrics_url: 'http://{address}/metrics'}}\n\
         - {{name: sleeper, command: [sh, -c, 'exec sleep 1000', --sleep-idle-seconds, 9], metrics_url: 'http://{address}/metrics'}}\n"
    );
    let serve = Serve::start(&[("a.yaml", &text)]);
    serve.in_state("a", "ready");
    assert_eq!(asked.load(Ordering::Relaxed), 0, "nobody had looked");
    let known = wait("a rate", || {
        let list = serve.get("/v1/instances");
        let a = list["instances"][0].clone();
        a["tokens_per_s"].is_number().then_some(list)
    });
    let a = &known["instances"][0];
    assert_eq!(a["requests"], 3.0);
    let rate = a["tokens_per_s"].as_f64().unwrap();
    assert!(rate > 0.0 && rate < 1000.0, "{rate}");
    assert_eq!(known["instances"][1]["requests"], Value::Null, "a scrape would keep it awake");
}

#[test]
fn a_second_sigterm_does_not_wait_for_the_grace() {
    let text = "- name: a\n  command: [sh, -c, 'trap \"\" TERM; echo deaf; while :; do sleep 1; done']\n  stop: {grace_s: 3600}\n";
    let mut serve = Serve::start(&[("a.yaml", text)]);
    let pid = pid(&serve.in_state("a", "ready"));
    wait("its trap", || serve.ask("GET", "/v1/instances/a/logs").body.contains("deaf").then_some(()));
    serve.signal(Signal::TERM);
    wait("the orderly end", || serve.said("ending all instances").then_some(()));
    // Within the minute that is waited for, not the hour.
    assert_eq!(serve.stop(), Some(0));
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}
