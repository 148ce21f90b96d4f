//! What integration tests share: a mocked `libnvidia-ml.so.1` of their own, a scripted engine, the program as a child.
#![allow(dead_code, reason = "every test binary uses its own part of this")]
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

pub(crate) mod daemon;
pub(crate) mod disk;
pub(crate) mod engine;
pub(crate) mod page;
pub(crate) mod parking;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nvidia_ml::{MockConfig, MockState, STATE_FILE, STATE_VARIABLE};
use tempfile::TempDir;

/// How long anything that a test waits for may take, on a machine with far too much to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until the answer is as wanted; the last answer when patience is over.
pub(crate) fn eventually<T>(mut ask: impl FnMut() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let start = Instant::now();
    loop {
        let answer = ask();
        if wanted(&answer) || start.elapsed() > PATIENCE {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The value of a series (name with its labels) on a metrics page.
pub(crate) fn value(page: &str, series: &str) -> Option<f64> {
    let line =
        page.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

/// The body of a good answer to a plain GET; `None` for any other, and where nobody listens.
pub(crate) fn get(address: impl ToSocketAddrs + Display, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(&address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}

/// A mocked driver library in a directory of its own, and the machine behind it.
///
/// Load it in this process by [`library`](Self::library), or in a child started with [`env`](Self::env). What the test
/// sets and asks is [`MockState`]'s: `set_load`, `inject`, `history`, `snapshot`, ...
pub(crate) struct MockNvml {
    directory: TempDir,
    /// In memory: a busy disk must not stop what stands for a driver.
    memory: TempDir,
    state: MockState,
}

impl MockNvml {
    /// A library with all its functions.
    pub(crate) fn new(config: &MockConfig) -> Self {
        Self::without(config, &[])
    }

    /// A library that lacks some functions, as one of an older driver does.
    pub(crate) fn without(config: &MockConfig, functions: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut library = std::fs::read(built_library()).expect("the built mock library");
        functions.iter().for_each(|function| hide(&mut library, function));
        // A copy, not a link: the loader then takes it for a library of its own, with state of its own, so that tests
        // in one process do not meet.
        std::fs::write(directory.path().join("libnvidia-ml.so.1"), library).expect("a copy of the library");
        let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let memory = memory.expect("a temporary directory");
        let state = MockState::create(&memory.path().join(STATE_FILE), config).expect("a state file");
        std::os::unix::fs::symlink(memory.path().join(STATE_FILE), directory.path().join(STATE_FILE))
            .expect("the state beside the library");
        Self { directory, memory, state }
    }

    /// The directory that has `libnvidia-ml.so.1` and its state file.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The library.
    pub(crate) fn library(&self) -> PathBuf {
        self.directory().join("libnvidia-ml.so.1")
    }

    /// With `libnvidia-api.so.1` beside it, for the same GPUs.
    pub(crate) fn add_nvapi(&self) {
        let api = self.directory().join("libnvidia-api.so.1");
        std::fs::copy(self.library(), api).expect("a copy of the library");
    }

    /// The state file.
    pub(crate) fn state_path(&self) -> PathBuf {
        self.memory.path().join(STATE_FILE)
    }

    /// Environment under which a child process finds this library and this machine.
    pub(crate) fn env(&self) -> [(&'static str, OsString); 2] {
        [("LD_LIBRARY_PATH", self.directory().into()), (STATE_VARIABLE, self.state_path().into())]
    }
}

impl Deref for MockNvml {
    type Target = MockState;

    fn deref(&self) -> &MockState {
        &self.state
    }
}

/// The library that cargo built, as a dependency of the tests, into the directory of the running test.
fn built_library() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    test.with_file_name("libnvidia_ml.so")
}

/// Renames a function in the library's string tables: its hash no longer fits, so the loader finds neither name.
fn hide(library: &mut [u8], function: &str) {
    let name: Vec<u8> = [b"\0", function.as_bytes(), b"\0"].concat();
    let places: Vec<usize> = library
        .windows(name.len())
        .enumerate()
        .filter(|(_, window)| *window == name)
        .map(|(place, _)| place)
        .collect();
    assert!(!places.is_empty(), "the library has no function {function}");
    places.into_iter().for_each(|place| library[place + 1] = b'-');
}
