//! Instances that work keep their GPUs unparked: told over the control socket by a client of its own, and by
//! agft-serve.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nvidia_ml::{GpuConfig, MockConfig};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::daemon::{Bench, Daemon, IDLE_MHZ};
use support::parking::{LOWEST, a100, core, parked, quick, wait_for_core};
use support::{eventually, get};

/// Several times what parks a quiet GPU.
const LONG: Duration = Duration::from_secs(2);

fn socket(bench: &Bench, daemon: &Daemon) -> PathBuf {
    bench.path("run").join(format!("agft-{}.sock", daemon.pid()))
}

/// A client that tells of instances.
struct Teller(BufReader<UnixStream>);

impl Teller {
    fn new(bench: &Bench, daemon: &Daemon) -> Self {
        let stream = UnixStream::connect(socket(bench, daemon)).expect("the control socket");
        stream.set_read_timeout(Some(support::PATIENCE)).expect("a time limit");
        Self(BufReader::new(stream))
    }

    fn say(&mut self, gpu: &str, state: &str) -> Value {
        let said = serde_json::json!({"cmd": "instances",
            "instances": [{"name": "code", "gpus": [gpu], "state": state}]});
        self.0.get_mut().write_all(format!("{said}\n").as_bytes()).expect("a listener");
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("an answer");
        serde_json::from_str(&answer).expect("JSON")
    }
}

#[test]
fn gpu_of_an_instance_that_works_is_woken_and_parked_again_when_it_is_idle() {
    let bench = quick(&MockConfig::uniform(&GpuConfig::a100(), 2));
    let mut daemon = bench.start(&["park"]);
    wait_for_core(&bench, &daemon, 0, Some(LOWEST));
    wait_for_core(&bench, &daemon, 1, Some(LOWEST));
    let mut teller = Teller::new(&bench, &daemon);
    let answer = teller.say("1", "working");
    assert_eq!((&answer["ok"], &answer["known"][0]["index"]), (&true.into(), &1.into()), "{answer}");
    wait_for_core(&bench, &daemon, 1, None);
    daemon.wait_for_log("instances (1 working)");
    std::thread::sleep(LONG);
    teller.say("1", "working");
    assert_eq!((core(&bench, 0), core(&bench, 1)), (Some(LOWEST), None), "{}", daemon.tail());
    let status = bench.run(&["status"]).out;
    assert!(status.contains("  instance    code: working, GPU 1\n"), "{status}");
    let status: Value = serde_json::from_str(&bench.run(&["status", "--json"]).out).expect("JSON");
    assert_eq!(status["instances"][0]["state"], "working", "{status}");
    teller.say("1", "idle");
    wait_for_core(&bench, &daemon, 1, Some(LOWEST));
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn client_that_is_killed_holds_nothing_and_so_does_one_that_falls_silent() {
    let bench = a100();
    let mut daemon = parked(&bench, &[]);
    let said = r#"{"cmd":"instances","instances":[{"name":"a","gpus":["all"],"state":"working"}]}"#;
    // Its silence ends after ten seconds; the client that is killed does not wait for that.
    let mut silent = Teller::new(&bench, &daemon);
    silent.say("0", "working");
    wait_for_core(&bench, &daemon, 0, None);
    wait_for_core(&bench, &daemon, 0, Some(LOWEST));
    let script = format!(
        "import socket, sys, time\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
         while True:\n    s.sendall(b'{said}\\n')\n    s.recv(65536)\n    time.sleep(0.2)\n"
    );
    let mut client = Command::new("python3")
        .args(["-c", &script])
        .arg(socket(&bench, &daemon))
        .stdin(Stdio::null())
        .spawn()
        .expect("python3");
    wait_for_core(&bench, &daemon, 0, None);
    std::thread::sleep(LONG);
    assert_eq!(core(&bench, 0), None, "{}", daemon.tail());
    client.kill().expect("it runs");
    client.wait().expect("its end");
    wait_for_core(&bench, &daemon, 0, Some(LOWEST));
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn gpu_with_a_server_is_woken_and_held_over_an_empty_page() {
    let bench = Bench::new();
    let mut daemon = bench.start(&[]);
    let lock = |wanted: Option<u32>| {
        let lock = eventually(|| bench.lock(), |lock| (*lock == Some(IDLE_MHZ)) == wanted.is_some());
        assert_eq!(lock == Some(IDLE_MHZ), wanted.is_some(), "{}", daemon.tail());
    };
    lock(Some(IDLE_MHZ));
    let mut teller = Teller::new(&bench, &daemon);
    teller.say("0", "working");
    lock(None);
    daemon.wait_for_log("an instance works: woken");
    std::thread::sleep(LONG);
    teller.say("0", "working");
    assert_ne!(bench.lock(), Some(IDLE_MHZ), "{}", daemon.tail());
    teller.say("0", "ended");
    lock(Some(IDLE_MHZ));
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

/// What llama-server logs when a task begins.
const BEGIN: &str = "0.1 I slot launch_slot_: id  0 | task 0 | processing task, is_child = 0";

/// A program of another package of the workspace, beside the agft of this test.
fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_agft")).with_file_name(name);
    assert!(path.exists(), "{} is not built: cargo build -p {name}", path.display());
    path
}

/// A running agft-serve with one instance that copies `says` to its standard error.
struct Serve {
    child: Child,
    dir: tempfile::TempDir,
    address: String,
}

impl Serve {
    fn start(bench: &Bench) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let says = dir.path().join("says");
        let made = Command::new("mkfifo").arg(&says).status().expect("mkfifo");
        assert!(made.success());
        let instances = dir.path().join("instances.yaml");
        let entry = format!(
            "- name: code\n  command: [sh, -c, 'exec cat {} >&2']\n  gpus: 0\n  restart: {{first_s: 0.1, longest_s: 0.2}}\n",
            says.display()
        );
        fs::write(&instances, entry).expect("the instance file");
        let mut command = Command::new(program("agft-serve"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--instances"]).arg(&instances);
        command.arg("--daemon-dir").arg(bench.path("run"));
        for option in ["runtime", "state", "log"] {
            command.arg(format!("--{option}-dir")).arg(dir.path().join(option));
        }
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("agft-serve");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let said = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("API are at http://")?.1.split('/').next().map(str::to_owned));
        // Whoever writes to a pipe that nobody reads waits some day.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, dir, address: said.expect("its address") }
    }

    /// To be written to by the test, for the instance to copy. Open for reading too: then what is written
    /// between two processes of the instance waits for the second.
    fn says(&self) -> File {
        File::options().read(true).write(true).open(self.dir.path().join("says")).expect("the pipe")
    }

    fn list(&self) -> Value {
        let list = get(&self.address, "/v1/instances").unwrap_or_default();
        serde_json::from_str(&list).unwrap_or_default()
    }

    fn wait_for(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let list = eventually(|| self.list(), &so);
        assert!(so(&list), "{what}: {list}");
        list
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

#[test]
fn tasks_in_the_log_of_an_instance_keep_its_gpu_awake_and_end_with_it() {
    let bench = a100();
    let mut daemon = parked(&bench, &[]);
    let serve = Serve::start(&bench);
    serve.wait_for("agft is found", |list| list["daemons"][0] == daemon.pid());
    let work = |work: &'static str| move |list: &Value| list["instances"][0]["work"] == work;
    serve.wait_for("nothing is known yet", work("unknown"));
    let mut says = serve.says();
    let end = "0.2 I slot      release: id  0 | task 0 | stop processing: n_tokens = 20, truncated = 0";
    for _ in 0..2 {
        writeln!(says, "{BEGIN}").expect("a reader");
        wait_for_core(&bench, &daemon, 0, None);
        serve.wait_for("a task", work("working"));
        std::thread::sleep(LONG);
        assert_eq!(core(&bench, 0), None, "{}", daemon.tail());
        writeln!(says, "{end}").expect("a reader");
        wait_for_core(&bench, &daemon, 0, Some(LOWEST));
        serve.wait_for("no task", work("idle"));
    }
    // Killed in the middle of a task.
    writeln!(says, "{BEGIN}").expect("a reader");
    wait_for_core(&bench, &daemon, 0, None);
    let list = serve.wait_for("a task", work("working"));
    let server = list["instances"][0]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let server = server.and_then(Pid::from_raw).expect("a process");
    kill_process(server, Signal::KILL).expect("it runs");
    wait_for_core(&bench, &daemon, 0, Some(LOWEST));
    serve.wait_for("another process", |list| {
        let now = &list["instances"][0];
        now["restarts"] == 1 && now["work"] == "unknown" && now["pid"].is_i64()
    });
    // The supervisor itself is killed in the middle of a task: so is what it told.
    writeln!(says, "{BEGIN}").expect("a reader");
    wait_for_core(&bench, &daemon, 0, None);
    let supervisor = Pid::from_child(&serve.child);
    kill_process(supervisor, Signal::KILL).expect("it runs");
    wait_for_core(&bench, &daemon, 0, Some(LOWEST));
    drop(says);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

/// The daemon is killed, and the supervisor: whoever is left finds who comes, and no GPU is left slow.
fn kills_in_this_order(daemon_first: bool) {
    let bench = a100();
    let mut daemon = parked(&bench, &[]);
    let mut serve = Serve::start(&bench);
    serve.wait_for("agft is found", |list| list["daemons"][0] == daemon.pid());
    let kill_daemon = |daemon: &mut Daemon| {
        daemon.signal(Signal::KILL);
        daemon.wait();
        // Parked until then: its guardian gives the clocks back.
        bench.wait_for_release(daemon);
        *daemon = parked(&bench, &[]);
    };
    let kill_supervisor = |serve: &mut Serve| {
        kill_process(Pid::from_child(&serve.child), Signal::KILL).expect("it runs");
        *serve = Serve::start(&bench);
    };
    if daemon_first {
        kill_daemon(&mut daemon);
        serve.wait_for("the next agft is found", |list| list["daemons"][0] == daemon.pid());
        kill_supervisor(&mut serve);
    } else {
        kill_supervisor(&mut serve);
        kill_daemon(&mut daemon);
    }
    serve.wait_for("they have found each other", |list| list["daemons"][0] == daemon.pid());
    let mut says = serve.says();
    writeln!(says, "{BEGIN}").expect("a reader");
    wait_for_core(&bench, &daemon, 0, None);
    // Both at once, in the middle of a task.
    kill_process(Pid::from_child(&serve.child), Signal::KILL).expect("it runs");
    daemon.signal(Signal::KILL);
    daemon.wait();
    bench.wait_for_release(&daemon);
    let mut daemon = parked(&bench, &[]);
    let serve = Serve::start(&bench);
    serve.wait_for("they have found each other", |list| list["daemons"][0] == daemon.pid());
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn daemon_and_then_supervisor_are_killed() {
    kills_in_this_order(true);
}

#[test]
fn supervisor_and_then_daemon_are_killed() {
    kills_in_this_order(false);
}
