//! Instance files as a whole: gppm's, ours, and bad ones.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::spec::{Gpus, Probe, RestartPolicy};

fn around() -> Surroundings {
    Surroundings { program: "/usr/bin/agft-serve".into(), ..Surroundings::default() }
}

fn read_text(text: &str) -> Result<Entries, Problems> {
    parse(Path::new("f.yaml"), text, &around())
}

fn one(text: &str) -> Instance {
    let entries = read_text(text).unwrap_or_else(|problems| panic!("{problems}"));
    let [entry] = &entries.list[..] else { panic!("{entries:?}") };
    entry.instance.clone()
}

#[test]
fn files_of_gppm_load_unchanged() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gppm");
    let entries = read(&[dir], &around()).unwrap_or_else(|problems| panic!("{problems}"));
    let names: Vec<&str> = entries.list.iter().map(|entry| entry.instance.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "Replete-Coder-Llama3-8B (1)",
            "Replete-Coder-Llama3-8B (2)",
            "paddler balancer",
            "Codestral-22B-v0.1",
            "ollama"
        ]
    );
    let get = |name: &str| &entries.find(name).unwrap().instance;
    let codestral = get("Codestral-22B-v0.1");
    assert_eq!(codestral.command[..5], ["/usr/local/bin/llama-server", "--host", "0.0.0.0", "-ngl", "100"]);
    assert_eq!(codestral.command.last().unwrap(), "32768");
    assert_eq!(codestral.gpus, Gpus::CudaIndices(vec![0]));
    let first = get(names[0]);
    assert_eq!(first.hooks[0].command[..2], ["/usr/local/bin/paddler", "agent"]);
    assert_eq!((first.hooks[0].hooks[0].enabled, first.hooks[0].hooks[0].name.as_str()), (false, "announce"));
    assert_eq!(get(names[1]).gpus, Gpus::CudaIndices(vec![1, 2]));
    assert!(get(names[1]).enabled && !get(names[2]).enabled);
    assert_eq!(get(names[2]).gpus, Gpus::None);
    let ollama = get("ollama");
    let env = [("CUDA_VISIBLE_DEVICES", "0"), ("OLLAMA_HOST", "127.0.0.1:11435")];
    assert_eq!(ollama.env, env.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(ollama.ready.as_ref().unwrap().probe, Probe::Http("http://127.0.0.1:11435/".into()));
    assert_eq!(
        ollama.hooks[0].command,
        [
            "/usr/bin/agft-serve",
            "ollama-preload",
            "--server=http://127.0.0.1:11435",
            "--model=llama3.1:8b",
            "--options={\"num_ctx\":4096,\"temperature\":0.2}"
        ]
    );
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_documentation_has_every_key_and_no_other() {
    let text = fs::read_to_string(repository().join("docs/serve.md")).unwrap();
    let (_, part) = text.split_once("## Instance files").unwrap();
    let (part, _) = part.split_once("### Ollama").unwrap();
    let documented: Vec<&str> = part
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(key, _)| key)
        .collect();
    let known: Vec<String> = keys()
        .into_iter()
        .flat_map(|(section, keys)| {
            keys.iter().map(
                move |key| if section.is_empty() { (*key).to_owned() } else { format!("{section}.{key}") },
            )
        })
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn examples_of_the_documentation_and_of_the_package_are_right() {
    let text = fs::read_to_string(repository().join("docs/serve.md")).unwrap();
    let blocks: Vec<&str> =
        text.split("```yaml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    assert!(blocks.len() >= 5, "{}", blocks.len());
    for block in blocks {
        let entries = read_text(block).unwrap_or_else(|problems| panic!("{problems}\n{block}"));
        assert_eq!((entries.list.len(), entries.notes.len()), (1, 0), "{block}");
    }
    let examples = fs::read_dir(repository().join("deploy/serve")).unwrap();
    let examples: Vec<PathBuf> = examples.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(examples.len(), 2);
    let entries = read(&examples, &around()).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(entries.notes.is_empty(), "{:?}", entries.notes);
}

#[test]
fn every_key_arrives() {
    let instance = one(r#"
- name: chat
  enabled: false
  command: [/bin/llama-server, --port, "{port}", -c, 4096, "a b"]
  env: {A: 1.10, B: on, C: "", D: 010}
  working_directory: /srv
  user: llama
  gpus: [1, 3]
  ready: {http: "http://127.0.0.1:{port}/health", timeout_s: 90}
  restart: {policy: on-failure, first_s: 0.5, longest_s: 120, crash_loop_after: 3, stable_after_s: 10}
  stop: {signal: SIGINT, grace_s: 5}
  hooks: [{command: "sh -c 'echo \"a  b\"'"}]
  log: {file: /var/log/x.log, max_mib: 2, keep: 1}
  on_demand: {listen: "[::1]:8080", stop_after_idle_s: 60}
  metrics_url: "http://127.0.0.1:{port}/metrics"
"#);
    assert_eq!(instance.command, ["/bin/llama-server", "--port", "{port}", "-c", "4096", "a b"]);
    let env = [
        ("A", "1.10"),
        ("B", "on"),
        ("C", ""),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        ("CUDA_VISIBLE_DEVICES", "1,3"),
        ("D", "010"),
    ];
    assert_eq!(instance.env, env.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!((instance.enabled, &instance.gpus), (false, &Gpus::Indices(vec![1, 3])));
    let ready = instance.ready.unwrap();
    assert_eq!(ready.timeout, Duration::from_secs(90));
    assert_eq!(ready.probe, Probe::Http("http://127.0.0.1:{port}/health".into()));
    assert_eq!(instance.restart.policy, RestartPolicy::OnFailure);
    assert_eq!(instance.restart.first, Duration::from_millis(500));
    assert_eq!((instance.stop.signal, instance.stop.grace), (2, Duration::from_secs(5)));
    assert_eq!(instance.hooks[0].command, ["sh", "-c", "echo \"a  b\""]);
    assert_eq!(instance.hooks[0].name, "sh");
    assert_eq!((instance.log.max_bytes, instance.log.keep), (2 << 20, 1));
    let on_demand = instance.on_demand.unwrap();
    assert_eq!(on_demand.listen.to_string(), "[::1]:8080");
    assert_eq!(on_demand.stop_after_idle, Duration::from_secs(60));
    assert_eq!(instance.metrics_url.as_deref(), Some("http://127.0.0.1:{port}/metrics"));
}

#[test]
fn gpus_come_from_the_key_the_environment_or_that_of_the_supervisor() {
    let gpus = |extra: &str| one(&format!("- name: a\n  command: x\n{extra}")).gpus;
    assert_eq!(gpus(""), Gpus::All);
    assert_eq!(gpus("  gpus: none"), Gpus::None);
    assert_eq!(gpus("  gpus: all"), Gpus::All);
    assert_eq!(gpus("  gpus: 2"), Gpus::Indices(vec![2]));
    assert_eq!(gpus("  gpus: 0,1"), Gpus::Indices(vec![0, 1]));
    assert_eq!(gpus("  gpus: GPU-ab12"), Gpus::Uuids(vec!["GPU-ab12".into()]));
    assert_eq!(
        gpus("  env: {CUDA_VISIBLE_DEVICES: 1, CUDA_DEVICE_ORDER: PCI_BUS_ID}"),
        Gpus::Indices(vec![1])
    );
    assert_eq!(gpus("  env: {CUDA_VISIBLE_DEVICES: 1}\n  gpus: none"), Gpus::None);
    let cuda = BTreeMap::from([("CUDA_VISIBLE_DEVICES".to_owned(), "3".to_owned())]);
    let inherited = Surroundings { cuda, ..around() };
    let entries = parse(Path::new("f"), "- {name: a, command: x}", &inherited).unwrap();
    assert_eq!(entries.list[0].instance.gpus, Gpus::CudaIndices(vec![3]));
    assert_eq!(one("- {name: a, command: x, gpus: none}").env["CUDA_VISIBLE_DEVICES"], "-1");
}

#[test]
fn bad_files_are_told_of_with_place_rule_and_remedy() {
    let ok = "- name: a\n  command: x\n";
    for (text, want) in [
        ("a: 1", vec!["f.yaml:1: is a mapping of 1, must be a list of instances"]),
        ("- x", vec!["f.yaml:1: instance 1: is x, must be a mapping of keys to values; keys: name, enabled"]),
        ("- command: x", vec!["instance 1: name is missing"]),
        ("- name: a", vec!["f.yaml:1: instance 1 (a): command is missing"]),
        ("- {name: a/b, command: x}", vec!["name is a/b, must be 1 to 80 bytes without /"]),
        ("- {name: \"\", command: x}", vec!["name is \"\", must be"]),
        ("- {name: .., command: x}", vec!["name is .., must be"]),
        (
            "- {name: a, command: \"x 'y\"}",
            vec!["command is \"x 'y\", must be a line with each quote closed"],
        ),
        ("- {name: a, command: []}", vec!["command is a list of 0, must be a program"]),
        ("- {name: a, command: [x, [y]]}", vec!["command[2] is a list of 1, must be a word"]),
        (
            "- {name: a, command: [x, {port}]}",
            vec!["command[2] is a mapping of 1, must be a word; put what has braces"],
        ),
        (
            "- {name: a, command: \"x\\0y\"}",
            vec!["command is \"x\\u0000y\", must be text without the character NUL"],
        ),
        (
            "- {name: a, command: x, comand: y}",
            vec!["f.yaml:1: instance 1 (a): comand is not a known key; did you mean command?"],
        ),
        ("- {name: a, command: x, zzz: y}", vec!["zzz is not a known key; keys here: name, enabled"]),
        (
            "- name: a\n  command: x\n  restart:\n    polcy: never\n    first_s: 5s\n",
            vec![
                "f.yaml:4: instance 1 (a): restart.polcy is not a known key; did you mean policy?",
                "f.yaml:5: instance 1 (a): restart.first_s is 5s, must be a number of seconds from 0.1 to 86400; \
                  write the number of seconds, without a unit",
            ],
        ),
        (
            "- {name: a, command: x, enabled: \"true\"}",
            vec!["enabled is \"true\", must be true or false; write it without"],
        ),
        ("- {name: a, command: x, enabled: 1}", vec!["enabled is 1, must be true or false"]),
        ("- {name: a, command: x, env: [A]}", vec!["env is a list of 1, must be a mapping"]),
        (
            "- {name: a, command: x, env: {A: }}",
            vec!["env.A is empty, must be text, a number or a truth value; write \"\""],
        ),
        ("- {name: a, command: x, env: {A=B: 1}}", vec!["env.A=B is 1, must be under a name"]),
        ("- {name: a, command: x, env: {A: 1, A: 2}}", vec!["env.A stands there twice (lines 1 and 1)"]),
        ("- {name: a, name: b, command: x}", vec!["name stands there twice"]),
        (
            "- {name: a, command: x, working_directory: ~/x}",
            vec!["no shell reads it: write the directory for ~"],
        ),
        (
            "- {name: a, command: x, gpus: [0, GPU-1]}",
            vec!["gpus is a list of 2, must be none, all, or GPUs"],
        ),
        ("- {name: a, command: x, gpus: []}", vec!["write none for a program without a GPU"]),
        ("- {name: a, command: x, gpus: \"0,0\"}", vec!["must be a list without repetition"]),
        (
            "- {name: a, command: x, gpus: 0, env: {CUDA_DEVICE_ORDER: FASTEST_FIRST}}",
            vec!["take CUDA_DEVICE_ORDER out"],
        ),
        ("- {name: a, command: x, ready: {}}", vec!["ready has neither http nor port"]),
        ("- {name: a, command: x, ready: {http: \"http://h/\", port: 1}}", vec!["ready has http and port"]),
        ("- {name: a, command: x, ready: {http: \"https://h/\"}}", vec!["asked without TLS"]),
        (
            "- {name: a, command: x, ready: {http: \"http://127.0.0.1:{port}/\"}}",
            vec!["only with on_demand; write the server's port"],
        ),
        (
            "- {name: a, command: x, ready: {port: 70000}}",
            vec!["ready.port is 70000, must be a whole number from 1 to 65535"],
        ),
        (
            "- {name: a, command: x, restart: {policy: on_failure}}",
            vec!["must be always, on-failure or never; write on-failure"],
        ),
        ("- {name: a, command: x, restart: {first_s: .inf}}", vec!["restart.first_s is .inf, must be"]),
        ("- {name: a, command: x, stop: {signal: STOP}}", vec!["stop.signal is STOP, must be TERM, INT"]),
        (
            "- {name: a, command: x, stop: {grace_s: -1}}",
            vec!["stop.grace_s is -1, must be a number of seconds from 0"],
        ),
        ("- {name: a, command: x, hooks: [{name: h}]}", vec!["hooks[1].command is missing"]),
        (
            "- {name: a, command: x, hooks: [], post_launch_hooks: []}",
            vec!["post_launch_hooks is given beside hooks"],
        ),
        ("- {name: a, command: x, on_demand: {}}", vec!["on_demand.listen is missing"]),
        (
            "- {name: a, command: x, on_demand: {listen: \"127.0.0.1:80\"}}",
            vec!["command does not have {port}"],
        ),
        (
            "- {name: a, command: x, on_demand: {listen: 8080}}",
            vec!["on_demand.listen is 8080, must be an address and a port"],
        ),
        (
            "- {name: a, command: x, on_demand: {listen: \"[::]:80\", private_port: 80}}",
            vec!["is the port of on_demand.listen"],
        ),
        ("- {name: a, command: x, type: vllm}", vec!["type is vllm, must be llamacpp or ollama"]),
        ("- {name: a, command: x, model: m}", vec!["model is a key of type: ollama alone"]),
        (
            &format!("{ok}{ok}"),
            vec!["f.yaml:3: instance 2 (a): name is also that of f.yaml:1: instance 1 (a); give one of them"],
        ),
        (
            "- {name: a, command: \"x {port}\", on_demand: {listen: \"[::]:80\"}}\n\
             - {name: b, command: \"x {port}\", on_demand: {listen: \"[::]:80\"}}",
            vec!["on_demand.listen is also that of f.yaml:1: instance 1 (a)"],
        ),
        ("- name: a\n\tcommand: x", vec!["is not YAML"]),
    ] {
        let message = read_text(text).expect_err(text).to_string();
        assert_eq!(message.lines().count(), want.len(), "{text}\n{message}");
        for (line, want) in message.lines().zip(want) {
            assert!(line.starts_with("f.yaml:") && line.contains(want), "{text}\n{line}\nwant {want}");
        }
    }
}

#[test]
fn what_a_shell_would_do_is_noted() {
    let entries = read_text("- {name: a, command: 'x $HOME 2>&1'}\n").unwrap();
    let notes: Vec<String> = entries.notes.iter().map(ToString::to_string).collect();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains("$HOME is passed on as it is"), "{notes:?}");
}

#[test]
fn files_and_directories_are_read_in_order_and_all_errors_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("b.yml", "- {name: b, command: x}");
    write("a.yaml", "- {name: a, command: x}");
    write("c.txt", "not read");
    write(".hidden.yaml", "not read");
    write("empty.yaml", "# nothing\n");
    let dirs = [dir.path().to_owned()];
    let entries = read(&dirs, &around()).unwrap();
    let names: Vec<String> = entries.instances().into_iter().map(|instance| instance.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(entries.notes[0].to_string().ends_with("empty.yaml: has no instances"));
    write("d.yaml", "- {name: a, command: x, zzz: 1}\n- {name: e}");
    fs::write(dir.path().join("e.yaml"), b"- name: \xff").unwrap();
    fs::write(dir.path().join("f.yaml"), vec![b' '; 1 + (1 << 20)]).unwrap();
    fs::create_dir(dir.path().join("g.yaml")).unwrap();
    let paths = [dir.path().to_owned(), "/nonexistent/x.yaml".into()];
    let message = read(&paths, &around()).unwrap_err().to_string();
    for want in [
        "d.yaml:1: instance 1 (a): zzz is not a known key",
        "d.yaml:2: instance 2 (e): command is missing",
        "a.yaml:1: instance 1 (a)",
        "e.yaml: is not UTF-8 text in line 1",
        "f.yaml: is larger than 1024 KiB",
        "g.yaml: is not a regular file",
        "/nonexistent/x.yaml: no such file or directory",
    ] {
        assert!(message.contains(want), "{want}\n{message}");
    }
}

#[test]
fn a_file_that_a_stranger_can_write_is_not_read_by_root() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, "- {name: a, command: x}").unwrap();
    let distrustful = Surroundings { distrustful: true, ..around() };
    assert!(read(&[dir.path().to_owned()], &distrustful).is_ok());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    for path in [dir.path(), &file] {
        let message = read(&[path.to_owned()], &distrustful).unwrap_err().to_string();
        assert!(message.contains("is not obeyed by root") && message.contains("chmod go-w"), "{message}");
    }
    assert!(read(&[file], &around()).is_ok());
}

#[test]
fn entries_are_replaced_removed_and_written_back() {
    let mut entries =
        read_text("- {name: a, command: x}\n- {name: b, command: x, env: {V: 1.10, W: on}}").unwrap();
    entries.replace(read_text("- {name: a, command: y}\n- {name: c, command: z}").unwrap());
    let commands: Vec<String> =
        entries.instances().iter().map(|i| format!("{}={}", i.name, i.command[0])).collect();
    assert_eq!(commands, ["a=y", "b=x", "c=z"]);
    assert!(entries.remove("a") && !entries.remove("a"));
    let again = read_text(&entries.to_yaml()).unwrap();
    assert_eq!(again.instances(), entries.instances());
    assert_eq!(again.instances()[0].env["V"], "1.10");
    let json = serde_json::json!([{"name": "a", "command": "x y", "enabled": true, "env": {"P": 8}}]);
    let from_json = from_json(Path::new("request"), &json, &around()).unwrap();
    assert_eq!(from_json.instances()[0].command, ["x", "y"]);
    assert_eq!(from_json.instances()[0].env["P"], "8");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        fs::write(&file, &bytes).unwrap();
        if let Err(problems) = read(&[file], &around()) {
            prop_assert!(!problems.0.is_empty() && !problems.to_string().contains(|c: char| c != '\n' && c.is_control()));
        }
    }

    #[test]
    fn no_values_make_the_reader_panic(
        key in proptest::sample::select(super::instance::KEYS),
        sub in proptest::sample::select(vec!["http", "port", "policy", "first_s", "signal", "command", "listen", "keep"]),
        value in "[-+{}\\[\\],:'\"a-z0-9.~$ ]{0,16}",
    ) {
        for text in [format!("- name: x\n  {key}: {value}"), format!("- command: y\n  {key}: {{{sub}: {value}}}"),
                     format!("- {key}: [{{{sub}: {value}}}]")] {
            if let Ok(entries) = read_text(&text) {
                let again = read_text(&entries.to_yaml()).unwrap();
                prop_assert_eq!(again.instances(), entries.instances());
            }
        }
    }
}
