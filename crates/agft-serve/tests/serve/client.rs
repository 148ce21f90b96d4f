//! The client's commands against a running agft-serve.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{PROGRAM, Serve, wait};

const FILE: &str = "- {name: a, command: 'sh -c \"echo hello; exec sleep 1000\"'}\n- {name: b c, enabled: false, command: sleep 9}\n";

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_command_does_what_it_says() {
    let serve = Serve::start(&[("a.yaml", FILE)]);
    serve.in_state("a", "ready");
    let ok = |args: &[&str]| {
        let output = serve.client(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", error(&output));
        text(&output)
    };
    for list in
        [&["instances", "ls"][..], &["get", "instances"], &["get-llamacpp-instances"], &["instances", "list"]]
    {
        let table = ok(list);
        assert!(table.starts_with("NAME") && table.contains("ready") && table.contains("b c"), "{table}");
    }
    let json: Value = serde_json::from_str(&ok(&["instances", "ls", "--format", "json"])).unwrap();
    assert_eq!(json["instances"][0]["name"], "a");
    for configs in [&["get", "configs"][..], &["get-llamacpp-configs", "--format", "json"]] {
        let json: Value = serde_json::from_str(&ok(configs)).unwrap();
        assert_eq!(json[1]["command"], "sleep 9");
    }
    assert!(ok(&["get", "subprocesses"]).contains("sh -c"));
    let shown = ok(&["instances", "show", "b c"]);
    assert!(shown.contains("state            disabled") && shown.contains("\"sleep 9\""), "{shown}");
    wait("the log", || (text(&serve.client(&["instances", "logs", "a"])) == "hello\n").then_some(()));
    assert!(ok(&["instances", "enable", "b c"]).contains("name"));
    serve.in_state("b c", "ready");
    ok(&["disable", "b c"]);
    serve.in_state("b c", "disabled");
    ok(&["enable", "b c"]);
    ok(&["instances", "restart", "a"]);
    let file = serve.dir.path().join("more.yaml");
    std::fs::write(&file, "- {name: d, command: sleep 1000}").unwrap();
    assert_eq!(ok(&["instances", "apply", file.to_str().unwrap()]).lines().next(), Some("started    d"));
    assert!(ok(&["apply", file.to_str().unwrap(), "--format", "json"]).contains("\"unchanged\""));
    serve.in_state("d", "ready");
    for reload in [&["instances", "reload"][..], &["reload"], &["reload-llamacpp-configs"]] {
        assert!(ok(reload).contains("unchanged"), "{reload:?}");
    }
    assert!(ok(&["instances", "rm", "d"]).contains("ended      d"));
    // gppm's client has its options before the command.
    let port = serve.address.port().to_string();
    let output = Command::new(PROGRAM)
        .args(["--host", "localhost", "--port", &port, "get", "instances"])
        .output()
        .unwrap();
    assert!(text(&output).contains("NAME"), "{}", error(&output));
}

#[test]
fn failures_have_their_exit_codes() {
    let mut serve = Serve::start(&[("a.yaml", FILE)]);
    let code = |serve: &Serve, args: &[&str], code: i32, word: &str| {
        let output = serve.client(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", error(&output));
        assert!(error(&output).contains(word), "{args:?}: {}", error(&output));
    };
    code(&serve, &["instances", "show", "none"], 3, "none");
    code(&serve, &["instances", "logs", "none"], 3, "none");
    code(&serve, &["enable", "none"], 3, "none");
    code(&serve, &["instances", "rm", "a"], 3, "take it out there");
    code(&serve, &["instances", "restart", "b c"], 1, "disabled");
    code(&serve, &["instances", "sleep"], 2, "unrecognized subcommand");
    code(&serve, &["--log-dir", "/x", "instances", "ls"], 2, "options of serve");
    let bad = serve.dir.path().join("bad.yaml");
    std::fs::write(&bad, "- {name: x, zzz: 1}").unwrap();
    code(&serve, &["apply", bad.to_str().unwrap()], 2, "request:1: instance 1 (x): zzz is not a known key");
    code(&serve, &["apply", "/nonexistent"], 1, "/nonexistent");
    code(
        &serve,
        &["instances", "check", bad.to_str().unwrap()],
        2,
        "bad.yaml:1: instance 1 (x): command is missing",
    );
    let wrong = serve.dir.path().join("wrong");
    std::fs::write(&wrong, "0123456789abcdef0123456789abcdef").unwrap();
    code(&serve, &["reload", "--token-file", wrong.to_str().unwrap()], 4, "needs the token");
    let output = Command::new(PROGRAM)
        .env("RUNTIME_DIRECTORY", "/nonexistent")
        .args(["reload", "--port", &serve.address.port().to_string()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", error(&output));
    serve.stop();
    code(&serve, &["instances", "ls"], 1, "is agft-serve running there?");
}

#[test]
fn a_second_one_in_the_same_place_is_refused_and_a_wrong_file_names_all_problems() {
    let serve = Serve::start(&[("a.yaml", FILE)]);
    let dir = serve.dir.path();
    let run = |listen: &str| {
        let mut command = crate::support::program(dir);
        for name in ["instances", "runtime-dir", "state-dir", "log-dir"] {
            command.arg(format!("--{name}")).arg(dir.join(name));
        }
        command.args(["--listen", listen]).output().unwrap()
    };
    let output = run(&serve.address.to_string());
    assert_eq!(output.status.code(), Some(1), "{}", error(&output));
    assert!(error(&output).contains("is in use by another program"), "{}", error(&output));
    let output = run("127.0.0.1:0");
    assert_eq!(output.status.code(), Some(1), "{}", error(&output));
    std::fs::write(serve.file("b.yaml"), "- {name: a, command: x}\n- {nam: y}").unwrap();
    let output = run("127.0.0.1:0");
    assert_eq!(output.status.code(), Some(2), "{}", error(&output));
    for word in ["(a): name is also that of", "nam is not a known key; did you mean name?", "name is missing"]
    {
        assert!(error(&output).contains(word), "{word}: {}", error(&output));
    }
    serve.in_state("a", "ready");
}

#[test]
fn units_are_written_and_completions_printed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    std::fs::write(&file, FILE).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let run = |args: &[&str]| Command::new(PROGRAM).args(args).output().unwrap();
    let output = run(&["instances", "systemd-units", &path(""), "--instances", &path("a.yaml")]);
    assert_eq!(output.status.code(), Some(0), "{}", error(&output));
    assert_eq!(text(&output).lines().count(), 2);
    let unit = std::fs::read_to_string(dir.path().join("agft-instance-a.service")).unwrap();
    assert!(unit.contains("ExecStart=\"/usr/bin/sh\" \"-c\" \"echo hello; exec sleep 1000\""), "{unit}");
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&run(&["completions", shell]));
        for word in ["agft-serve", "instances", "systemd-units", "get", "--token-file"] {
            let word = if shell == "fish" { word.trim_start_matches("--") } else { word };
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(text(&run(&["instances", "check", &path("a.yaml")])), "2 instances, nothing wrong\n");
}
