//! The real program as a child process, in a directory of its own, on a mocked machine, beside a scripted engine.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use agft::store::{ModelMetadata, RoundRecord};
use nvidia_ml::{ClockWrite, MockConfig};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use super::engine::Engine;
use super::{MockNvml, PATIENCE, eventually};

/// Core clock of the parked GPU in the tests' configuration: below every clock that is tried.
pub(crate) const IDLE_MHZ: u32 = 210;

/// Everything a run needs. Made with a quick configuration that [`set`](Self::set) changes.
pub(crate) struct Bench {
    pub(crate) mock: MockNvml,
    pub(crate) engine: Engine,
    /// Engines of the configuration's list of servers; without one `engine` is the only one.
    pub(crate) servers: Vec<Engine>,
    /// Their names.
    names: Vec<String>,
    /// The entries of that list.
    entries: String,
    directory: TempDir,
    settings: BTreeMap<String, String>,
}

/// In memory where there is plenty: a disk that others keep busy holds up an fsync for seconds, and what a daemon writes
/// before a lock is on a memory file system (`/run`) in earnest too.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let plenty = rustix::fs::statvfs(memory).is_ok_and(|fs| fs.f_bavail * fs.f_frsize >= 1 << 30);
    let made = if plenty { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary directory")
}

impl Bench {
    /// One A100 beside an idle engine.
    pub(crate) fn new() -> Self {
        Self::with(&MockConfig::default())
    }

    /// Another machine.
    pub(crate) fn with(machine: &MockConfig) -> Self {
        let mock = MockNvml::new(machine);
        let engine = Engine::start(&mock);
        let directory = directory();
        let (servers, names, entries) = (Vec::new(), Vec::new(), String::new());
        let mut bench = Self { mock, engine, servers, names, entries, directory, settings: BTreeMap::new() };
        // A directory of its own for locks and journals: the GPUs of all mocked machines have the same names.
        let [models, runs, logs, run] =
            ["models", "runs", "logs", "run"].map(|name| quoted(&bench.path(name)));
        let url = bench.engine.url();
        let idle = IDLE_MHZ.to_string();
        // A baseline of three windows, then a sweep of four clocks, each held for a quarter of a second: the first lock
        // is there within half a second, all first lessons within two. The default policy takes longer.
        for (key, value) in [
            ("vllm.prometheus_url", url.as_str()),
            ("vllm.scrape_timeout_s", "0.3"),
            ("vllm.outage_after_s", "0.5"),
            ("gpu.runtime_dir", run.as_str()),
            ("gpu.min_frequency", "500"),
            ("idle.core_mhz", idle.as_str()),
            ("idle.active_poll_ms", "20"),
            ("control.decision_interval_s", "0.05"),
            // A moment at default clocks that nobody expects would be one more way for a test to go wrong.
            ("holdout.share", "0"),
            ("control.policy", "linucb"),
            ("idle.parked_poll_ms", "20"),
            // Kernel events are not to be had everywhere, and would make a test of the sensors one of something else.
            ("idle.sources", "[metrics, utilization]"),
            ("linucb.coarse_step_mhz", "300"),
            ("model.save_dir", models.as_str()),
            ("model.save_interval", "10"),
            ("experiment.dir", runs.as_str()),
            ("logging.dir", logs.as_str()),
            ("metrics.sampling_duration", "0.25"),
            ("observe.metrics_listen", "off"),
            ("park.metrics_listen", "off"),
            ("metrics.baseline_measurements", "3"),
        ] {
            bench.settings.insert(key.to_owned(), value.to_owned());
        }
        bench
    }

    /// Adds a server on these GPUs to the list of servers, with an idle engine of its own; `more` are further keys, as
    /// YAML on one line.
    pub(crate) fn server(mut self, name: &str, gpus: &[usize], more: &str) -> Self {
        let engine = Engine::on(&self.mock, gpus);
        let url = engine.url();
        let _ = writeln!(self.entries, "  - {{name: {name}, metrics_url: \"{url}\", gpus: {gpus:?}{more}}}");
        self.servers.push(engine);
        self.names.push(name.to_owned());
        self
    }

    /// Has the servers of the machine looked for, often.
    pub(crate) fn look_for_servers(&mut self) {
        "  auto\n".clone_into(&mut self.entries);
        self.change("discover.every_s", "0.2");
    }

    /// Has the GPUs of these servers, each with the URL of its page, looked for, often.
    pub(crate) fn list_auto(&mut self, servers: &[(&str, &str)]) {
        for (name, url) in servers {
            let _ = writeln!(self.entries, "  - {{name: {name}, metrics_url: \"{url}\", gpus: auto}}");
        }
        self.change("discover.every_s", "0.2");
    }

    /// Changes a key (`section.key`) of the configuration; the value is YAML.
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        self.change(key, value);
        self
    }

    /// The same in place.
    pub(crate) fn change(&mut self, key: &str, value: &str) {
        self.settings.insert(key.to_owned(), value.to_owned());
    }

    /// A path in this bench's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A directory of the only server, or of the first of the list.
    pub(crate) fn of_first(&self, name: &str) -> PathBuf {
        self.names.first().map_or_else(|| self.path(name), |server| self.path(name).join(server))
    }

    /// Writes the configuration file and gives its path.
    pub(crate) fn config(&self) -> PathBuf {
        let mut sections: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
        for (key, value) in &self.settings {
            let (section, key) = key.split_once('.').expect("section.key");
            sections.entry(section).or_default().push((key, value));
        }
        let mut text = String::new();
        for (section, keys) in sections {
            let _ = writeln!(text, "{section}:");
            keys.iter().for_each(|(key, value)| {
                let _ = writeln!(text, "  {key}: {value}");
            });
        }
        if !self.entries.is_empty() {
            let _ = write!(text, "servers:\n{}", self.entries);
        }
        let path = self.path("config.yaml");
        fs::write(&path, text).expect("the configuration file");
        path
    }

    /// `agft` on this machine with this configuration, and these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        // `AGFT_BIN`: another build, for runs that are longer than a build's life.
        let built = || env!("CARGO_BIN_EXE_agft").into();
        let mut command = Command::new(std::env::var_os("AGFT_BIN").unwrap_or_else(built));
        command.current_dir(self.directory.path()).envs(self.mock.env()).stdin(Stdio::null());
        command.arg("--config").arg(self.config()).args(arguments);
        command
    }

    /// Runs a command that ends by itself.
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        finish(self.command(arguments))
    }

    /// Starts the daemon.
    pub(crate) fn start(&self, arguments: &[&str]) -> Daemon {
        Daemon::start(self.command(arguments))
    }

    /// Starts the daemon under load and waits until it has locked its first clock.
    pub(crate) fn serve(&self, arguments: &[&str]) -> Daemon {
        self.engine.set_load(0.6);
        let daemon = self.start(arguments);
        self.wait_for_lock(&daemon);
        daemon
    }

    /// The core lock of GPU 0: its upper bound in MHz.
    pub(crate) fn lock(&self) -> Option<u32> {
        self.core(0)
    }

    /// The core lock of a GPU: its upper bound in MHz.
    pub(crate) fn core(&self, gpu: usize) -> Option<u32> {
        self.mock.locks(gpu).expect("a GPU of this machine").core.map(|range| range.max)
    }

    /// Waits until the clocks of a GPU have been changed so often since.
    pub(crate) fn goes_on(&self, gpu: usize, daemon: &Daemon) {
        let writes =
            || self.mock.history().iter().filter(|write| usize::try_from(write.gpu) == Ok(gpu)).count();
        let before = writes();
        let after = eventually(writes, |now| *now > before + 1);
        assert!(after > before + 1, "GPU {gpu} does not go on\n{}", daemon.tail());
    }

    /// Parks soon: quiet for a third of a second, looked at often.
    pub(crate) fn parks_soon(self) -> Self {
        self.set("park.quiet_s", "0.3")
            .set("park.timeout_s", "0.3")
            .set("park.active_poll_ms", "20")
            .set("park.parked_poll_ms", "50")
    }

    /// What `agft status --json` says.
    pub(crate) fn status(&self) -> serde_json::Value {
        let status = self.run(&["status", "--json"]);
        assert_eq!(status.code, Some(0), "{}", status.err);
        serde_json::from_str(&status.out).expect("JSON")
    }

    /// Waits for a lock on GPU 0, other than the idle clock's, and gives it.
    pub(crate) fn wait_for_lock(&self, daemon: &Daemon) -> u32 {
        let lock = eventually(|| self.lock(), |lock| lock.is_some_and(|core| core > IDLE_MHZ));
        assert!(lock.is_some_and(|core| core > IDLE_MHZ), "no clock locked\n{}", daemon.tail());
        lock.unwrap_or_default()
    }

    /// Waits until no GPU has a lock.
    pub(crate) fn wait_for_release(&self, daemon: &Daemon) {
        assert!(eventually(|| self.is_free(), |free| *free), "clocks not given back\n{}", daemon.tail());
    }

    /// Is no clock of any GPU locked?
    pub(crate) fn is_free(&self) -> bool {
        (0..self.mock.gpu_count()).all(|gpu| {
            let locks = self.mock.locks(gpu).expect("a GPU of this machine");
            locks.core.is_none() && locks.memory.is_none() && locks.pstate.is_none()
        })
    }

    /// The guardian of the daemon on GPU 0, as its lock file says; none before the first.
    pub(crate) fn guardian(&self) -> Option<Pid> {
        let guard =
            list(&self.path("run")).into_iter().find(|path| path.extension() == Some("guard".as_ref()))?;
        let holder: serde_json::Value = serde_json::from_str(&fs::read_to_string(guard).ok()?).ok()?;
        Pid::from_raw(i32::try_from(holder["pid"].as_i64()?).ok()?)
    }

    /// The journals of held clocks.
    pub(crate) fn journals(&self) -> Vec<PathBuf> {
        let mut found = list(&self.path("run"));
        found.retain(|path| path.extension() == Some("journal".as_ref()));
        found
    }

    /// The clock writes of one process.
    pub(crate) fn writes_of(&self, pid: u32) -> Vec<ClockWrite> {
        self.mock.history().into_iter().filter(|write| write.pid == pid).collect()
    }

    /// Asserts that a process borrowed the clocks: on every GPU it wrote to, resets first and resets last, and no lock
    /// that it took and did not give back.
    pub(crate) fn assert_given_back(&self, pid: u32) {
        let writes = self.writes_of(pid);
        assert!(!writes.is_empty(), "process {pid} wrote nothing");
        for gpu in 0..self.mock.gpu_count() {
            let calls: Vec<&str> = writes
                .iter()
                .filter(|write| usize::try_from(write.gpu) == Ok(gpu))
                .map(|write| write.call)
                .collect();
            let resets = ["nvmlDeviceResetGpuLockedClocks", "nvmlDeviceResetMemoryLockedClocks"];
            assert!(calls.starts_with(&resets), "GPU {gpu} begins with {:?}", calls.first_chunk::<3>());
            assert!(calls.ends_with(&resets), "GPU {gpu} ends with {:?}", calls.last_chunk::<3>());
        }
        assert!(self.is_free(), "a clock is still locked");
    }

    /// Every round written down so far, over all runs, oldest run first.
    pub(crate) fn rounds(&self) -> Vec<RoundRecord> {
        let mut runs: Vec<PathBuf> = self.runs();
        runs.sort();
        let files = runs.iter().map(|run| run.join("rounds_data.jsonl")).filter(|file| file.exists());
        let text: String = files.map(|file| fs::read_to_string(file).expect("a file of rounds")).collect();
        // The last line may still be on its way to the disk.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a round as JSON")).collect()
    }

    /// The runs' directories.
    pub(crate) fn runs(&self) -> Vec<PathBuf> {
        list(&self.of_first("runs"))
    }

    /// Names of the files in the model directory.
    pub(crate) fn model_files(&self) -> Vec<String> {
        let mut names: Vec<String> = list(&self.of_first("models"))
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        names
    }

    /// `model_metadata.json`.
    pub(crate) fn metadata(&self) -> ModelMetadata {
        let known = ModelMetadata::read(&self.of_first("models")).expect("readable metadata");
        known.expect("metadata beside the model")
    }
}

fn list(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| entry.expect("a directory entry").path()).collect()
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_str().expect("a temporary path is text"))
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a command to its end.
pub(crate) fn finish(mut command: Command) -> Finished {
    let Output { status, stdout, stderr } = command.output().expect("agft starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text output");
    Finished { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// A running daemon; killed when this is dropped.
pub(crate) struct Daemon {
    child: Child,
    console: TempDir,
}

impl Daemon {
    /// Starts `command`; the console is kept.
    pub(crate) fn start(mut command: Command) -> Self {
        command.args(["--log-level", "debug"]);
        Self::start_plain(command)
    }

    /// The same with the level that the command itself asks for.
    pub(crate) fn start_plain(mut command: Command) -> Self {
        let console = tempfile::tempdir().expect("a temporary directory");
        let file = File::create(console.path().join("log")).expect("a file for the console");
        let child = command.stdout(Stdio::null()).stderr(file).spawn().expect("agft starts");
        Self { child, console }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to the console so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.console.path().join("log")).expect("the console's file")
    }

    /// The end of that, for a test's message.
    pub(crate) fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Where its metrics page is, `HOST:PORT`; the daemon was told to listen.
    pub(crate) fn page_address(&self) -> String {
        self.wait_for_log("metrics page");
        let log = self.log();
        let url = log
            .lines()
            .find(|line| line.contains("metrics page"))
            .and_then(|line| line.split("http://").nth(1));
        url.and_then(|url| url.split('/').next()).expect("the address in the log").to_owned()
    }

    /// Waits until the console shows `text`.
    pub(crate) fn wait_for_log(&self, text: &str) {
        assert!(eventually(|| self.log().contains(text), |seen| *seen), "no {text:?} in\n{}", self.tail());
    }

    /// Lessons that the policy has taken so far.
    pub(crate) fn lessons(&self) -> usize {
        self.log().lines().filter(|line| line.contains(" learned=true ")).count()
    }

    /// Waits until the policy has taken some more lessons.
    pub(crate) fn wait_for_lessons(&self, more: usize) {
        let until = self.lessons() + more;
        let lessons = eventually(|| self.lessons(), |lessons| *lessons >= until);
        assert!(lessons >= until, "{lessons} lessons, waited for {until}\n{}", self.tail());
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child's state")
    }

    /// Is it still running?
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child's state").is_none()
    }

    /// Stops it as SIGSTOP does, at a moment when it does not hold the mock's own lock: nobody could call the driver then,
    /// which is the mock's doing and no driver's.
    pub(crate) fn freeze(&self, bench: &Bench) {
        let outside = || {
            self.signal(Signal::STOP);
            let state = File::open(bench.mock.state_path()).expect("the state file");
            std::thread::sleep(Duration::from_millis(2));
            let free = state.try_lock().is_ok();
            if !free {
                self.signal(Signal::CONT);
            }
            free
        };
        assert!(eventually(outside, |free| *free), "always in a driver call");
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the child is there");
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child's state") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "agft does not end\n{}", self.tail());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it as a service manager does, in good order.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.tail());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ended already: then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the process ended?
pub(crate) fn is_gone(pid: Pid) -> bool {
    // A zombie answers too; nobody is left to wait for it but init.
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    test_kill_process(pid).is_err() || stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}
