//! gppm's paths: the JSON that its clients read.

use serde_json::{Value, json};

use crate::support::{Serve, wait};

const FILE: &str = "
- name: one
  enabled: True
  command: sleep 1000
  env: {CUDA_VISIBLE_DEVICES: \"0,1\"}
- name: two
  enabled: False
  command: sleep 2000
";

#[test]
fn read_paths_have_gppms_json() {
    let serve = Serve::start(&[("a.yaml", FILE)]);
    let pid = serve.in_state("one", "ready")["pid"].clone();
    let golden = [
        (
            "/get_instances",
            json!({"instances": [
                {"name": "one", "pid": pid, "cvd": "0,1"},
                {"name": "two", "pid": null, "cvd": null},
            ]}),
        ),
        ("/get_llamacpp_instances", json!({"llamacpp_instances": ["one"]})),
        (
            "/get_llamacpp_subprocesses",
            json!({pid.to_string(): [{"pid": pid, "args": ["sleep", "1000"], "returncode": null}]}),
        ),
        (
            "/get_llamacpp_configs",
            json!([
                {"name": "one", "enabled": true, "command": "sleep 1000", "env": {"CUDA_VISIBLE_DEVICES": "0,1"}},
                {"name": "two", "enabled": false, "command": "sleep 2000"},
            ]),
        ),
    ];
    for (path, want) in golden {
        assert_eq!(serve.get(path), want, "{path}");
    }
}

#[test]
fn changes_answer_with_a_status_and_need_the_token() {
    let serve = Serve::start(&[("a.yaml", FILE)]);
    let post = |path: &str, body: &Value| serve.change("POST", path, "application/json", &body.to_string());
    let ok = |answer: crate::support::Answer, message: &str| {
        assert_eq!((answer.status, answer.json()), (200, json!({"status": "OK", "message": message})));
    };
    ok(post("/enable_llamacpp_instance", &json!({"name": "two"})), "two is enabled");
    serve.in_state("two", "ready");
    ok(post("/disable_llamacpp_instance", &json!({"name": "two"})), "two is disabled");
    serve.in_state("two", "disabled");
    for body in [json!({"name": "no"}), json!({"name": 7}), json!([]), json!(null)] {
        for path in ["/enable_llamacpp_instance", "/disable_llamacpp_instance"] {
            let answer = post(path, &body);
            let told = answer.json();
            assert_eq!((answer.status, &told["status"]), (200, &json!("ERROR")), "{path} {body}");
            assert!(!told["message"].as_str().unwrap().is_empty());
        }
    }
    let three = json!([{"name": "three", "enabled": true, "command": "sleep 3000", "env": {"CUDA_VISIBLE_DEVICES": "0"}}]);
    ok(post("/apply_llamacpp_configs", &three), "the entries were applied");
    serve.in_state("three", "ready");
    let wrong = post("/apply_llamacpp_configs", &json!([{"name": "four"}]));
    assert!(wrong.json()["message"].as_str().unwrap().contains("(four): command is missing"), "{wrong:?}");
    ok(serve.change("GET", "/reload_llamacpp_configs", "", ""), "the instance files were read again");
    // Applied ones are still there after a reload.
    serve.in_state("three", "ready");
    for (method, path) in [
        ("POST", "/apply_llamacpp_configs"),
        ("GET", "/reload_llamacpp_configs"),
        ("POST", "/enable_llamacpp_instance"),
        ("POST", "/disable_llamacpp_instance"),
    ] {
        let answer = serve.ask(method, path);
        assert_eq!((answer.status, &answer.json()["status"]), (401, &json!("ERROR")), "{path}");
    }
}

#[test]
fn its_own_files_run() {
    let text = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/gppm/2x_replete-coder.yaml"
    ))
    .unwrap();
    // The same file with a program that is here.
    let text = text.replace("/usr/local/bin/llama-server", "/bin/sh -c 'exec sleep 1000' x");
    let serve = Serve::start(&[(
        "2x.yaml",
        &text.replace("/usr/local/bin/paddler", "/bin/sh -c 'exec sleep 1000' x"),
    )]);
    let first = serve.in_state("Replete-Coder-Llama3-8B (1)", "ready");
    serve.in_state("Replete-Coder-Llama3-8B (2)", "ready");
    serve.in_state("paddler balancer", "disabled");
    assert_eq!(first["gpus"], "0 (CUDA's order)");
    wait("the names", || {
        (serve.get("/get_llamacpp_instances")["llamacpp_instances"].as_array().unwrap().len() == 2)
            .then_some(())
    });
}
