//! `agft check --discover` beside real processes that serve a page, on GPUs whose driver names their workers.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};

use agft::discover::procfs::Procfs;
use agft::discover::{Change, Discovery, Follower, Found};
use agft::gpu::GpuError;
use agft::gpu::host::Host;
use agft::gpu::nvml::NvmlHost;
use nvidia_ml::{GpuConfig, Injection, MockConfig};
use rustix::process::Signal;
use support::daemon::{Bench, Daemon, IDLE_MHZ, finish};
use support::page::Counters;
use support::{MockNvml, eventually};

/// Names the model and the number of workers of a process that serves.
const SERVE: &str = "AGFT_TEST_SERVE";

/// A server in a process of its own, started by a shell as in a terminal; it ends when this is dropped.
struct Server {
    shell: Child,
    port: u16,
    pid: u32,
    workers: Vec<u32>,
    /// Kept open: what it writes has to go somewhere.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Server {
    /// Serves a page of `model`, with so many child processes.
    fn start(model: &str, workers: usize) -> Self {
        let test = std::env::current_exe().expect("the path of this test");
        let mut shell = Command::new("sh")
            .args(["-c", "\"$0\" --exact serves_where_it_is_told_to --nocapture --test-threads 1; true"])
            .arg(test)
            .env(SERVE, format!("{model} {workers}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut lines = BufReader::new(shell.stdout.take().expect("its output")).lines();
        let line = lines
            .by_ref()
            .find_map(|line| Some(line.ok()?.split_once("serves: ")?.1.to_owned()))
            .expect("a server");
        let mut numbers = line.split(' ').map(|number| number.parse::<u32>().expect("a number"));
        let port = numbers.next().and_then(|port| u16::try_from(port).ok()).expect("a port");
        let pid = numbers.next().expect("a process id");
        Self { shell, port, pid, workers: numbers.collect(), _output: lines }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/metrics", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its input is its end.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// Not a test but, where [`SERVE`] is set, the process that serves.
#[test]
fn serves_where_it_is_told_to() {
    let Ok(told) = std::env::var(SERVE) else { return };
    let (model, workers) = told.split_once(' ').expect("model and number");
    let mut children: Vec<Child> = (0..workers.parse().expect("a number"))
        .map(|_| Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("a worker"))
        .collect();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut counters = Counters::new(1410);
    counters.set_load(0.6, 1410.0);
    let model = model.to_owned();
    let mut page = move || {
        counters.advance(1410.0);
        let page = counters.page(None).replace("scripted", &model);
        if model == "other" { page.replace("vllm:", "sglang:") } else { page }
    };
    let ids: Vec<String> = children.iter().map(|child| child.id().to_string()).collect();
    println!(
        "serves: {}",
        [&[port.to_string(), std::process::id().to_string()], &ids[..]].concat().join(" ")
    );
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap_or(0);
            let body = if head[..read].starts_with(b"GET /metrics ") { page() } else { String::new() };
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}", body.len());
            let _ = write!(stream, "{head}\r\n\r\n{body}");
        }
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    for child in &mut children {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn bench(gpus: usize) -> Bench {
    Bench::with(&MockConfig::uniform(&GpuConfig::a100(), gpus))
}

fn computes(mock: &MockNvml, gpu: usize, pids: &[u32]) {
    let processes: Vec<_> = pids.iter().map(|pid| (*pid, 1 << 30)).collect();
    mock.set_processes(gpu, &processes).expect("a GPU of this machine");
}

fn uuid(mock: &MockNvml, gpu: usize) -> String {
    mock.config().gpus[gpu].uuid.clone()
}

/// What `agft check --discover` prints, and the configuration at its end, which has to be a good one.
fn discovered(bench: &Bench) -> (String, String) {
    let checked = bench.run(&["check", "--discover"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let Some(at) = checked.out.find("servers:\n") else { return (checked.out, String::new()) };
    let (told, yaml) = checked.out.split_at(at);
    let file = bench.path("found.yaml");
    std::fs::write(&file, yaml).expect("a file");
    let config = bench.run(&["check-config", file.to_str().expect("a plain path")]);
    assert_eq!(config.code, Some(0), "{yaml}{config:?}");
    (told.to_owned(), yaml.to_owned())
}

#[test]
fn a_server_of_two_gpus_is_found_through_its_workers() {
    let bench = bench(3);
    let server = Server::start("Org/Model-7B", 2);
    computes(&bench.mock, 0, &server.workers[..1]);
    computes(&bench.mock, 2, &server.workers[1..]);
    let (told, yaml) = discovered(&bench);
    let gpus = [0, 2].map(|gpu| uuid(&bench.mock, gpu)).join(", ");
    let entry =
        format!("servers:\n  - name: model-7b\n    metrics_url: {}\n    gpus: [{gpus}]\n", server.url());
    assert_eq!(yaml, entry, "{told}");
    for part in ["ok    model-7b: vLLM\n", "model: Org/Model-7B\n", "GPU 0 (NVIDIA A100-SXM4-80GB), GPU-"] {
        assert!(told.contains(part), "{part:?} in {told}");
    }
    assert!(told.contains(&format!("processes: {}, {}\n", server.workers[0], server.workers[1])), "{told}");
    assert_eq!(bench.mock.history(), [], "no clock is touched");
}

#[test]
fn two_servers_on_one_gpu_are_two() {
    let bench = bench(1);
    let servers = [Server::start("m", 0), Server::start("m", 0)];
    computes(&bench.mock, 0, &servers.each_ref().map(|server| server.pid));
    let (told, yaml) = discovered(&bench);
    let (first, second) = if servers[0].port < servers[1].port {
        (&servers[0], &servers[1])
    } else {
        (&servers[1], &servers[0])
    };
    let of_second = format!("  - name: m-{}\n    metrics_url: {}\n", second.port, second.url());
    assert!(yaml.contains(&format!("  - name: m\n    metrics_url: {}\n", first.url())), "{yaml}");
    assert!(yaml.contains(&of_second) && yaml.contains("is shared with other processes"), "{yaml}");
    assert_eq!(told.matches(", shared with other processes").count(), 2, "{told}");
}

#[test]
fn what_is_no_server_is_told_with_the_reason() {
    let bench = bench(2);
    let other = Server::start("other", 1);
    computes(&bench.mock, 0, &other.workers);
    computes(&bench.mock, 1, &[4_000_000]);
    let (told, yaml) = discovered(&bench);
    let port = other.port;
    assert!(told.contains("ok    other: SGLang\n"), "{told}");
    assert!(yaml.contains(&format!("    metrics_url: http://127.0.0.1:{port}/metrics\n")), "{yaml}");
    assert!(told.contains("note  processes 4000000 use a GPU and are not known here: "), "{told}");
}

#[test]
fn an_empty_machine_and_one_without_a_driver_are_told_apart() {
    let bench = bench(1);
    let (told, yaml) = discovered(&bench);
    assert_eq!((told.as_str(), yaml.as_str()), ("note  no inference server found\n", ""));
    let mut command = bench.command(&["check", "--discover"]);
    command.env("LD_LIBRARY_PATH", "/nowhere");
    let checked = finish(command);
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(checked.err.contains("the NVIDIA management library cannot be loaded"), "{checked:?}");
}

#[test]
fn sockets_that_another_user_may_not_see_are_told_with_the_right_that_is_missing() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let bench = bench(1);
    let server = Server::start("m", 0);
    computes(&bench.mock, 0, &[server.pid]);
    let state = bench.mock.state_path();
    let mut command = bench.command(&["check", "--discover"]);
    // The program and the mocked driver, where the other user finds them.
    let place = tempfile::tempdir().expect("a directory");
    let program = place.path().join("agft");
    std::fs::copy(command.get_program(), &program).expect("a copy");
    std::fs::copy(bench.mock.library(), place.path().join("libnvidia-ml.so.1")).expect("a copy");
    std::fs::copy(state, place.path().join(nvidia_ml::STATE_FILE)).expect("a copy");
    for path in [place.path(), &program, &place.path().join(nvidia_ml::STATE_FILE)] {
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(path, all).expect("permissions");
    }
    command = Command::new(program);
    command.args(["check", "--discover"]).current_dir("/").env("LD_LIBRARY_PATH", place.path());
    command.uid(65_534).gid(65_534);
    let checked = finish(command);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.out.contains("run this as root (the right is CAP_SYS_PTRACE)"), "{checked:?}");
    assert!(!checked.out.contains("servers:"), "{checked:?}");
}

#[test]
fn servers_that_come_move_and_go_are_followed() {
    let mock = MockNvml::new(&MockConfig::uniform(&GpuConfig::a100(), 2));
    let host = NvmlHost::open_with(&mock.library()).expect("the mock initialises");
    let mut discovery = Discovery::new(Procfs::default()).expect("a client");
    let mut follower = Follower::default();
    let server = Server::start("m", 1);
    let mut changes = |follower: &mut Follower| {
        let looks = (0..2).map(|_| discovery.look(&host).expect("a look").found);
        looks.flat_map(|found| follower.look(&found)).collect::<Vec<_>>()
    };
    assert_eq!(changes(&mut follower), []);
    computes(&mock, 0, &server.workers);
    let came = changes(&mut follower);
    let [Change::Came(Found { name, gpus, metrics_url, .. })] = &came[..] else { panic!("{came:?}") };
    assert_eq!((name.as_str(), &gpus[..], metrics_url), ("m", &[uuid(&mock, 0)][..], &server.url()));
    computes(&mock, 0, &[]);
    computes(&mock, 1, &server.workers);
    let moved = changes(&mut follower);
    let [Change::Moved { now, .. }] = &moved[..] else { panic!("{moved:?}") };
    assert_eq!((now.name.as_str(), &now.gpus[..]), ("m", &[uuid(&mock, 1)][..]));
    drop(server);
    computes(&mock, 1, &[]);
    let went = changes(&mut follower);
    assert!(matches!(&went[..], [Change::Went(found)] if found.name == "m"), "{went:?}");
    assert_eq!(changes(&mut follower), [], "once is enough");
}

#[test]
fn the_gpus_of_a_configured_server_are_those_of_the_process_at_its_port() {
    let mock = MockNvml::new(&MockConfig::uniform(&GpuConfig::a100(), 2));
    let host = NvmlHost::open_with(&mock.library()).expect("the mock initialises");
    let discovery = Discovery::new(Procfs::default()).expect("a client");
    let servers = [Server::start("m", 1), Server::start("n", 1)];
    computes(&mock, 0, &servers[0].workers);
    computes(&mock, 1, &servers[1].workers);
    for (gpu, server) in servers.iter().enumerate() {
        let by_name = format!("http://localhost:{}/metrics", server.port);
        for url in [server.url(), by_name] {
            assert_eq!(discovery.gpus_of(&host, &url).expect("its GPU"), [uuid(&mock, gpu)]);
        }
    }
    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    let error = discovery.gpus_of(&host, &format!("http://{free}/metrics")).expect_err("nobody");
    assert!(error.to_string().contains("no process with work on a GPU listens at"), "{error}");
}

#[test]
fn what_the_driver_lists_is_taken_and_a_call_that_fails_for_the_moment_is_no_empty_gpu() {
    let mock = MockNvml::new(&MockConfig::uniform(&GpuConfig::a100(), 2));
    let host = NvmlHost::open_with(&mock.library()).expect("the mock initialises");
    let pids = || Ok::<_, GpuError>(host.compute_processes()?.into_iter().map(|(_, pids)| pids).collect());
    assert_eq!(pids(), Ok(vec![vec![], vec![]]));
    // A process with several contexts is one.
    computes(&mock, 1, &[30, 20, 30]);
    assert_eq!(pids(), Ok(vec![vec![], vec![20, 30]]));
    let inject = |code, gpu| {
        let error = Injection::error("nvmlDeviceGetComputeRunningProcesses_v3", code);
        mock.clear_injections();
        mock.inject(&Injection { gpu, ..error }).expect("a call of the library");
    };
    let (not_supported, unknown) = (3, 999);
    inject(not_supported, Some(0));
    assert_eq!(pids(), Ok(vec![vec![20, 30]]));
    inject(not_supported, None);
    assert!(matches!(pids(), Err(GpuError::NotSupported { .. })));
    inject(unknown, Some(0));
    assert!(matches!(pids(), Err(GpuError::Failed { .. })));
}

/// A bench whose daemon looks for the servers of the machine.
fn looking(gpus: usize) -> Bench {
    let mut bench = bench(gpus);
    bench.look_for_servers();
    bench
}

/// From now on the server computes on this GPU, which works.
fn works(bench: &Bench, gpu: usize, server: &Server) {
    computes(&bench.mock, gpu, &server.workers);
    bench.mock.set_load(gpu, 0.6).expect("a GPU of this machine");
}

/// Nobody computes on the GPU any more.
fn leaves(bench: &Bench, gpu: usize) {
    computes(&bench.mock, gpu, &[]);
    bench.mock.set_load(gpu, 0.0).expect("a GPU of this machine");
}

fn is_locked(bench: &Bench, gpu: usize, daemon: &Daemon) {
    let locked = eventually(|| bench.core(gpu), |core| core.is_some_and(|core| core > IDLE_MHZ));
    assert!(locked.is_some_and(|core| core > IDLE_MHZ), "GPU {gpu} is not locked\n{}", daemon.tail());
}

fn is_free(bench: &Bench, gpu: usize, daemon: &Daemon) {
    let free = eventually(|| bench.core(gpu), Option::is_none);
    assert_eq!(free, None, "GPU {gpu} is not free\n{}", daemon.tail());
}

fn runs(bench: &Bench, server: &str) -> usize {
    std::fs::read_dir(bench.path(&format!("runs/{server}"))).map_or(0, Iterator::count)
}

#[test]
fn server_that_comes_is_served_one_that_goes_gives_its_clocks_back_and_the_others_go_on() {
    let bench = looking(3);
    let mut daemon = bench.start(&[]);
    daemon.wait_for_log("no server found yet: waiting for one");
    let first = Server::start("first", 1);
    let second = Server::start("second", 1);
    works(&bench, 0, &first);
    is_locked(&bench, 0, &daemon);
    works(&bench, 1, &second);
    is_locked(&bench, 1, &daemon);
    let shown = || bench.run(&["status"]).out;
    assert!(shown().contains("first") && shown().contains("second"), "{}", shown());
    drop(first);
    leaves(&bench, 0);
    is_free(&bench, 0, &daemon);
    bench.goes_on(1, &daemon);
    assert!(!shown().contains("first"), "{}", shown());
    // It comes back elsewhere, and then another comes to its first place.
    let first = Server::start("first", 1);
    works(&bench, 2, &first);
    is_locked(&bench, 2, &daemon);
    assert_eq!(bench.core(0), None);
    let third = Server::start("third", 1);
    works(&bench, 0, &third);
    is_locked(&bench, 0, &daemon);
    daemon.stop();
    assert!(bench.is_free() && bench.journals().is_empty());
    assert_eq!(["first", "second", "third"].map(|name| runs(&bench, name)), [2, 1, 1]);
}

#[test]
fn server_that_moves_is_served_where_it_is_and_the_last_one_that_goes_is_waited_for() {
    let bench = looking(2);
    let server = Server::start("m", 1);
    works(&bench, 0, &server);
    let mut daemon = bench.start(&[]);
    is_locked(&bench, 0, &daemon);
    leaves(&bench, 0);
    works(&bench, 1, &server);
    is_locked(&bench, 1, &daemon);
    assert_eq!(bench.core(0), None, "{}", daemon.tail());
    leaves(&bench, 1);
    is_free(&bench, 1, &daemon);
    assert!(daemon.is_running());
    works(&bench, 1, &server);
    is_locked(&bench, 1, &daemon);
    daemon.stop();
    assert!(bench.is_free() && bench.journals().is_empty());
}

#[test]
fn servers_that_share_a_gpu_are_left_alone_until_one_is_alone() {
    let bench = looking(1);
    let servers = [Server::start("a", 1), Server::start("b", 1)];
    computes(&bench.mock, 0, &[servers[0].workers[0], servers[1].workers[0]]);
    bench.mock.set_load(0, 0.6).expect("a GPU");
    let mut daemon = bench.start(&[]);
    daemon.wait_for_log("processes of others compute on");
    computes(&bench.mock, 0, &servers[1].workers);
    is_locked(&bench, 0, &daemon);
    assert!(runs(&bench, "a") == 0 && runs(&bench, "b") == 1, "{}", daemon.tail());
    daemon.stop();
}

#[test]
fn gpus_of_the_configured_server_are_those_of_its_process() {
    let bench = bench(2).set("gpu.device_id", "auto").set("discover.every_s", "0.2");
    bench.engine.set_load(0.6);
    let mut daemon = bench.start(&[]);
    daemon.wait_for_log("no process with work on a GPU listens at");
    let unplaced = bench.run(&["check"]);
    assert!(unplaced.out.contains("FAIL  server server: no process with work on a GPU"), "{unplaced:?}");
    // The scripted engine is of this process.
    computes(&bench.mock, 1, &[std::process::id()]);
    is_locked(&bench, 1, &daemon);
    assert_eq!(bench.core(0), None);
    assert_eq!(bench.runs().len(), 1);
    let placed = bench.run(&["check"]);
    let line = format!("ok    server server: {} on {}\n", bench.engine.url(), uuid(&bench.mock, 1));
    assert!(placed.out.contains(&line) && placed.out.contains("ok    endpoint"), "{placed:?}");
    computes(&bench.mock, 1, &[]);
    computes(&bench.mock, 0, &[std::process::id()]);
    is_locked(&bench, 0, &daemon);
    assert_eq!(bench.core(1), None);
    daemon.stop();
    assert!(bench.is_free());
    let released = bench.run(&["release"]);
    assert_eq!(released.out.matches("clocks given back").count(), 2, "every GPU is meant: {released:?}");
}

#[test]
fn gpu_of_another_agft_is_left_to_it() {
    let mut bench = bench(2);
    let daemon = bench.serve(&[]);
    bench.look_for_servers();
    let server = Server::start("m", 1);
    works(&bench, 1, &server);
    let mut looking = bench.start(&[]);
    looking.wait_for_log("left to the other agft");
    is_locked(&bench, 1, &looking);
    looking.stop();
    assert_eq!(bench.core(1), None);
    bench.goes_on(0, &daemon);
}

#[test]
fn parked_gpu_goes_to_the_server_that_comes_and_is_parked_again_after_it() {
    let bench = looking(2)
        .set("park.others", "true")
        .set("park.quiet_s", "0.3")
        .set("park.timeout_s", "0.3")
        .set("park.active_poll_ms", "20")
        .set("park.parked_poll_ms", "50");
    let is_parked = |gpu: usize, daemon: &Daemon| {
        let parked = eventually(|| bench.core(gpu), |core| *core == Some(IDLE_MHZ));
        assert_eq!(parked, Some(IDLE_MHZ), "GPU {gpu} is not parked\n{}", daemon.tail());
    };
    let first = Server::start("first", 1);
    works(&bench, 1, &first);
    let mut daemon = bench.start(&[]);
    is_locked(&bench, 1, &daemon);
    is_parked(0, &daemon);
    let second = Server::start("second", 1);
    works(&bench, 0, &second);
    is_locked(&bench, 0, &daemon);
    leaves(&bench, 1);
    is_parked(1, &daemon);
    leaves(&bench, 0);
    is_parked(0, &daemon);
    daemon.stop();
    assert!(bench.is_free() && bench.journals().is_empty());
}

#[test]
fn reload_and_orders_go_for_servers_that_were_found_and_for_those_that_come() {
    let mut bench = looking(2);
    let first = Server::start("first", 1);
    works(&bench, 0, &first);
    let mut daemon = bench.start(&[]);
    is_locked(&bench, 0, &daemon);
    bench.change("control.tpot_limit", "0.3");
    bench.config();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("-> 0.3");
    bench.goes_on(0, &daemon);
    assert!(!daemon.log().contains("with the next start"), "{}", daemon.tail());
    assert_eq!(bench.run(&["pause"]).code, Some(0));
    is_free(&bench, 0, &daemon);
    let second = Server::start("second", 1);
    works(&bench, 1, &second);
    daemon.wait_for_log("opened server=\"second\"");
    let paused = || bench.run(&["status"]).out.matches("PAUSED").count();
    assert!(eventually(paused, |paused| *paused >= 2) >= 2, "{}", bench.run(&["status"]).out);
    assert_eq!(bench.core(1), None);
    assert_eq!(bench.run(&["resume"]).code, Some(0));
    is_locked(&bench, 1, &daemon);
    is_locked(&bench, 0, &daemon);
    daemon.stop();
}

#[test]
fn one_of_two_servers_on_a_gpu_that_goes_leaves_the_other_served() {
    let mut bench = bench(1);
    let (first, second) = (Server::start("a", 1), Server::start("b", 1));
    bench.list_auto(&[("a", &first.url()), ("b", &second.url())]);
    computes(&bench.mock, 0, &[first.workers[0], second.workers[0]]);
    bench.mock.set_load(0, 0.6).expect("a GPU");
    let mut daemon = bench.start(&[]);
    is_locked(&bench, 0, &daemon);
    drop(first);
    computes(&bench.mock, 0, &second.workers);
    daemon.wait_for_log("opened server=\"b\"");
    is_locked(&bench, 0, &daemon);
    let alone = bench.run(&["status"]).out;
    assert!(!alone.contains("a+b"), "{alone}");
    daemon.stop();
    assert_eq!(["a", "b", "a+b"].map(|name| runs(&bench, name)), [0, 1, 1]);
    assert!(bench.is_free() && bench.journals().is_empty());
}
