//! A running agft-serve with directories of its own, and a small HTTP client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_agft-serve");

/// Waits until `what` gives something.
pub(crate) fn wait<T>(about: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{about}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An answer: status, headers in lower case, body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// A running agft-serve; ended with the value.
pub(crate) struct Serve {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) dir: Arc<tempfile::TempDir>,
    said: Arc<Mutex<Vec<String>>>,
}

/// The options that keep it in `dir`.
fn options(dir: &Path) -> Vec<String> {
    ["instances", "runtime-dir", "state-dir", "log-dir"]
        .iter()
        .flat_map(|name| [format!("--{name}"), dir.join(name).display().to_string()])
        .collect()
}

pub(crate) fn program(dir: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", dir).stdin(Stdio::null());
    // The client finds the token there.
    command.env("RUNTIME_DIRECTORY", dir.join("runtime-dir"));
    command
}

impl Serve {
    /// Serves these instance files.
    pub(crate) fn start(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("instances")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join("instances").join(name), text).unwrap();
        }
        Self::start_in(Arc::new(dir), &[])
    }

    /// Serves what is in `dir`.
    pub(crate) fn start_in(dir: Arc<tempfile::TempDir>, more: &[&str]) -> Self {
        let mut command = program(dir.path());
        command.arg("serve").args(options(dir.path())).args(more);
        if !more.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (lines, stderr) = (Arc::clone(&said), BufReader::new(child.stderr.take().unwrap()));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let address = wait("the API's address", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{status}: {:?}", said.lock().unwrap());
            }
            let lines = said.lock().unwrap();
            let line = lines.iter().find_map(|line| line.split_once("API are at http://"))?.1.to_owned();
            line.split('/').next().unwrap().parse().ok()
        });
        Self { child, address, dir, said }
    }

    pub(crate) fn said(&self, text: &str) -> bool {
        self.said.lock().unwrap().iter().any(|line| line.contains(text))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("instances").join(name)
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("runtime-dir/token")).unwrap().trim().to_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends it as a service manager does, and waits.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        if self.child.try_wait().unwrap().is_none() {
            self.signal(Signal::TERM);
        }
        wait("its end", || self.child.try_wait().unwrap()).code()
    }

    /// One request without a token.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Answer {
        self.send(method, path, &[], b"")
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    /// One request with the token.
    pub(crate) fn change(&self, method: &str, path: &str, content_type: &str, body: &str) -> Answer {
        let authorization = format!("authorization: Bearer {}", self.token());
        self.send(method, path, &[&authorization, &format!("content-type: {content_type}")], body.as_bytes())
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|header| header.starts_with("host:")) {
            request += &format!("host: {}\r\n", self.address);
        }
        for header in headers {
            request += &format!("{header}\r\n");
        }
        request += "\r\n";
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        let text = self.raw(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{method} {path}: {text:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        let head = head.to_ascii_lowercase();
        let body =
            if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_owned() };
        Answer { status, head, body }
    }

    /// Sends bytes; what comes back until the connection is closed.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // Where the answer comes before the request has ended, the rest is not taken.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The instance once it is in this state.
    pub(crate) fn in_state(&self, name: &str, state: &str) -> Value {
        wait(&format!("{name} {state}"), || {
            let list = self.get("/v1/instances");
            let instance =
                list["instances"].as_array().unwrap().iter().find(|one| one["name"] == name)?.clone();
            (instance["state"] == state).then_some(instance)
        })
    }

    /// A command of the client against it.
    pub(crate) fn client(&self, args: &[&str]) -> Output {
        let mut command = program(self.dir.path());
        command.args(args).args(["--port", &self.address.port().to_string()]);
        command.output().unwrap()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                _ => return,
            }
        }
        let _ = self.child.kill();
    }
}

fn unchunked(body: &str) -> String {
    let mut out = String::new();
    let mut rest = body;
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || size > after.len() {
            break;
        }
        out.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    out
}
