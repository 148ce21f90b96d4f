//! Servers, clients and network namespaces for the tests of connections.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::PATIENCE;

/// Connections established at this local port, counted in the kernel's table by means of the test's own.
pub(crate) fn established(net: &str, port: u16) -> u32 {
    let port = format!(":{port:04X}");
    let mut number = 0;
    for table in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("{net}/{table}")).unwrap_or_default();
        for line in table.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            number += u32::from(fields[1].ends_with(&port) && fields[3] == "01");
        }
    }
    number
}

/// Processor time of this process's threads of that name.
pub(crate) fn thread_time(name: &str) -> Duration {
    let threads = fs::read_dir("/proc/self/task").expect("threads").flatten();
    let of_name = threads.filter(|thread| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    });
    let nanoseconds = of_name.map(|thread| {
        let statistics = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        statistics.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0)
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// Answers each byte with one, on a thread per connection, until the client ends.
pub(crate) struct Server {
    address: SocketAddr,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(address: &str) -> Self {
        Self::try_start(address).expect("a server")
    }

    pub(crate) fn try_start(address: &str) -> Option<Self> {
        Some(Self::run(TcpListener::bind(address).ok()?, true))
    }

    /// Keeps its half of every connection.
    pub(crate) fn start_that_never_closes(address: &str) -> Self {
        Self::run(TcpListener::bind(address).expect("a port"), false)
    }

    fn run(listener: TcpListener, closes: bool) -> Self {
        let address = listener.local_addr().expect("an address");
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming().flatten() {
                if stopped.load(std::sync::atomic::Ordering::SeqCst) {
                    break;
                }
                if closes {
                    std::thread::spawn(move || answer(stream));
                } else {
                    kept.push(stream);
                }
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    pub(crate) fn from(listener: TcpListener) -> Self {
        Self::run(listener, true)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port())).expect("a connection")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let Some(thread) = self.thread.take() else { return };
        // Another server at the same port may get one connection, or many.
        while !thread.is_finished() {
            let _ = TcpStream::connect(("127.0.0.1", self.port()));
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = thread.join();
    }
}

fn answer(mut stream: TcpStream) {
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|length| length > 0) && stream.write_all(&byte).is_ok() {}
}

/// This test program again, for one of its ignored tests.
fn again(program: &str, before: &[&str], test: &str) -> Command {
    let mut command = Command::new(program);
    command.args(before);
    if !before.is_empty() {
        command.arg(std::env::current_exe().expect("this program"));
    }
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    command
}

/// Environment variable that tells an ignored test more.
pub(crate) const ARGUMENT: &str = "AGFT_TEST_ARGUMENT";

/// What one of the ignored tests prints as a user without rights.
pub(crate) fn as_nobody(test: &str, argument: &str) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become nobody");
        return None;
    }
    let program = std::env::current_exe().expect("this program");
    let mut command = again(program.to_str().expect("a name"), &[], test);
    let output = match command.env(ARGUMENT, argument).uid(65534).gid(65534).output() {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: nobody may not run {}", program.display());
            return None;
        }
        output => output.expect("an end"),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

/// What one of the ignored tests prints as root with some capabilities less (`-bpf,-sys_admin`).
pub(crate) fn without(capabilities: &str, test: &str, argument: &Path) -> Option<String> {
    let bounding = format!("--bounding-set={capabilities}");
    let mut command = again("setpriv", &[&bounding], test);
    let output = match command.env(ARGUMENT, argument).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: no setpriv here");
            return None;
        }
        output => output.expect("an end"),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

/// A server in a network namespace of its own, reached over a veth pair.
pub(crate) struct Elsewhere {
    name: String,
    child: Child,
    address: SocketAddr,
}

impl Elsewhere {
    /// Needs root and `ip`; says so where it is missing.
    pub(crate) fn start() -> Option<Self> {
        let number = std::process::id();
        let (name, here, there) =
            (format!("agft-test-{number}"), format!("agh{number}"), format!("agt{number}"));
        if !ip(&format!("netns add {name}")) {
            eprintln!("skipped: no network namespace can be made here (needs root and iproute2)");
            return None;
        }
        // A network by number, so that two runs at once do not meet.
        let net = format!("10.{}.{}", 64 + number / 250 % 128, number % 250);
        let made = ip(&format!("link add {here} type veth peer name {there} netns {name}"))
            && ip(&format!("addr add {net}.1/24 dev {here}"))
            && ip(&format!("link set {here} up"))
            && ip(&format!("-n {name} addr add {net}.2/24 dev {there}"))
            && ip(&format!("-n {name} link set {there} up"))
            && ip(&format!("-n {name} link set lo up"));
        if !made {
            ip(&format!("netns del {name}"));
            eprintln!("skipped: no veth pair can be made here");
            return None;
        }
        let mut child = again("ip", &["netns", "exec", &name], "server_elsewhere")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a server");
        let output = BufReader::new(child.stdout.as_mut().expect("its output"));
        let port = output.lines().map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("port: ")?;
            port.trim().parse::<u16>().ok()
        });
        let ip = format!("{net}.2").parse().expect("an address");
        Some(Self { name, child, address: SocketAddr::new(ip, port.expect("its port")) })
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.name))
    }

    /// Where its tables of sockets are.
    pub(crate) fn tables(&self) -> String {
        format!("/proc/{}/net", self.child.id())
    }

    pub(crate) fn connect(&self) -> TcpStream {
        TcpStream::connect_timeout(&self.address, PATIENCE).expect("a connection")
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
        // The veth pair goes with it.
        ip(&format!("netns del {}", self.name));
    }
}

fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// What runs in the other namespace.
pub(crate) fn serve_until_input_ends() {
    let server = Server::start("0.0.0.0:0");
    println!("port: {}", server.port());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
