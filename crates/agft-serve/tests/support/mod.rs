//! What the tests of the supervisor share.

#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use agft_serve::spec::{Gpus, Instance, Log, OnDemand, Probe, Ready, Restart, RestartPolicy, Stop};
use agft_serve::supervise::{InstanceStatus, Settings, State, Supervisor};

/// No test waits longer for anything, however loaded the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn settings(dir: &Path) -> Settings {
    Settings {
        runtime_dir: dir.join("run"),
        log_dir: dir.join("log"),
        tail_lines: 100,
        control_groups: false,
    }
}

/// An instance that runs the fake server with these options.
pub(crate) fn instance(name: &str, options: &[&str]) -> Instance {
    let program = env!("CARGO_BIN_EXE_agft-fake-server");
    Instance {
        name: name.to_owned(),
        enabled: true,
        command: [&[program], options].concat().into_iter().map(str::to_owned).collect(),
        env: BTreeMap::new(),
        working_directory: None,
        user: None,
        gpus: Gpus::None,
        ready: None,
        restart: Restart {
            policy: RestartPolicy::OnFailure,
            first: Duration::from_millis(20),
            longest: Duration::from_millis(200),
            crash_loop_after: 4,
            stable_after: Duration::from_secs(30),
        },
        stop: Stop { signal: 15, grace: PATIENCE },
        hooks: Vec::new(),
        log: Log { file: None, max_bytes: 1 << 20, keep: 2 },
        on_demand: None,
        metrics_url: None,
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Made ready by an HTTP probe of this port, `{port}` for the private one.
pub(crate) fn probed(mut instance: Instance, port: &str, timeout: Duration) -> Instance {
    let probe = Probe::Http(format!("http://127.0.0.1:{port}/health"));
    instance.ready = Some(Ready { probe, timeout, hung_after: None });
    instance
}

/// On demand at this port.
pub(crate) fn on_demand(mut instance: Instance, port: u16, stop_after_idle: Duration) -> Instance {
    let listen = (std::net::Ipv4Addr::LOCALHOST, port).into();
    instance.on_demand = Some(OnDemand { listen, private_port: None, stop_after_idle });
    instance
}

/// Waits until the status of an instance is so.
pub(crate) async fn until(
    supervisor: &Supervisor,
    name: &str,
    so: impl Fn(&InstanceStatus) -> bool,
) -> InstanceStatus {
    let mut statuses = supervisor.statuses();
    let find = |all: &Vec<InstanceStatus>| all.iter().find(|status| status.name == name).cloned();
    let wait =
        async { find(&statuses.wait_for(|all| find(all).is_some_and(|it| so(&it))).await.unwrap()).unwrap() };
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(status) => status,
        Err(_) => panic!("{name} did not get there: {:?}", find(&supervisor.statuses().borrow())),
    }
}

pub(crate) async fn until_ready(supervisor: &Supervisor, name: &str) -> u32 {
    until(supervisor, name, |status| status.state == State::Ready).await.pid.unwrap()
}

/// Waits until this is so.
pub(crate) async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let patience = std::time::Instant::now() + PATIENCE;
    while !so() {
        assert!(std::time::Instant::now() < patience, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The pids that fake servers and their children noted.
pub(crate) fn noted(file: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// Whether such a process is there: zombies are.
pub(crate) fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Kills one process that the test started.
pub(crate) fn kill_9(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// All processes whose parent this is, zombies too.
pub(crate) fn children() -> usize {
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter(|stat| stat.rsplit_once(") ").unwrap().1.split(' ').nth(1) == Some(own.as_str())).count()
}
