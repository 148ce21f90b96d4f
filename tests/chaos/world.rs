//! Everything there is in a chaos run, and what happens to the program as a whole: starts, ends, kills.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use nvidia_ml::{GpuConfig, Injection, MockConfig};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rustix::process::{Pid, Signal, kill_process};

use crate::invariants::{self, Ledger};
use crate::support::daemon::{Bench, Daemon, IDLE_MHZ};
use crate::support::disk::Disk;
use crate::support::engine::{Behaviour, Engine};

/// After the controller's end its clocks are free within this, and what the machine itself lost meanwhile.
const RELEASED_WITHIN: Duration = Duration::from_secs(1);
/// After a fault that held the guardian up.
const FREED_WITHIN: Duration = Duration::from_secs(5);
/// What a reset may be refused with at the end of the controller: not permitted, GPU lost, unknown.
const REFUSALS: [u32; 3] = [4, 15, 999];
/// A run that is well again locks a clock on each GPU within this; a fault pause, a reload, a new guardian and the wait for
/// a server that was left alone are over by then.
const WELL_WITHIN: Duration = Duration::from_secs(75);
/// The events that a failure prints.
const STORY: usize = 60;

/// Messages in the log that show a reaction.
const REACTIONS: [&str; 22] = [
    "clock refused",
    "clock out of the action space",
    "the card does not follow this clock",
    "somebody else changed the clocks",
    "standing back",
    "metrics endpoint out",
    "metrics endpoint is back",
    "engine restarted or counters reset",
    "values on the page refused",
    "guardian lost",
    "another guardian watches",
    "guardian gave the clocks back",
    "the controller is gone: clocks given back",
    "a dead agft left clocks locked",
    "stuck: the guardian gives the clocks back",
    "the GPU is lost",
    "state not saved",
    "rounds are not",
    "the journal of held locks failed",
    "configuration reloaded",
    "configuration not reloaded",
    "idle: parked",
];

pub(crate) struct World {
    pub(crate) bench: Bench,
    pub(crate) rng: Xoshiro256PlusPlus,
    pub(crate) disks: Vec<Disk>,
    /// One of them fails, or did a moment ago.
    pub(crate) disks_trouble: bool,
    pub(crate) ledger: Ledger,
    daemon: Option<Daemon>,
    start: Instant,
    story: Vec<String>,
    faults: BTreeMap<String, u64>,
    reactions: BTreeMap<&'static str, u64>,
    ends: BTreeMap<String, u64>,
    /// The last words of runs that ended by themselves.
    reasons: BTreeMap<String, u64>,
    releases: Vec<Duration>,
    /// A signal was sent that a starting process may die of.
    signalled: bool,
    /// Kept: the end of the last daemon's log.
    last_tail: String,
    spells: u64,
    /// Until then a reset may hang in the driver, be it the guardian's.
    pub(crate) resets_hang_until: Duration,
    /// The next fault waits for at least this long.
    pub(crate) linger: Duration,
    /// Guardians that were stopped: they cannot do their work.
    stopped: Vec<Pid>,
}

/// GPUs of the two servers; the one after them has none.
const SERVED: usize = 3;

impl Drop for World {
    fn drop(&mut self) {
        // A stopped process would stay for ever.
        for pid in &self.stopped {
            let _ = kill_process(*pid, Signal::KILL);
        }
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        // Two GPUs share one decision, one has a server to itself, and one has none.
        let machine = MockConfig::uniform(&GpuConfig::a100(), SERVED + 1);
        let policy = if seed.is_multiple_of(2) { "linucb" } else { "structured" };
        let bench = Bench::with(&machine)
            .server("chat", &[0, 1], "")
            .server("code", &[2], "")
            .set("park.others", "true")
            .set("control.policy", policy)
            .set("experiment.keep_runs", "3")
            .set("experiment.rounds_file_max_mb", "1")
            .set("logging.max_file_mb", "1")
            .set("logging.keep_files", "1");
        let disks = [("models", 4), ("runs", 16), ("logs", 4), ("run", 1)];
        let disks = disks.map(|(name, megabytes)| Disk::new(bench.path(name), megabytes));
        bench.servers.iter().for_each(|engine| engine.set_load(0.6));
        Self {
            ledger: Ledger::new(&bench),
            bench,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            disks: disks.into(),
            disks_trouble: false,
            daemon: None,
            start: Instant::now(),
            story: Vec::new(),
            faults: BTreeMap::new(),
            reactions: BTreeMap::new(),
            ends: BTreeMap::new(),
            reasons: BTreeMap::new(),
            releases: Vec::new(),
            signalled: false,
            last_tail: String::new(),
            spells: 0,
            resets_hang_until: Duration::ZERO,
            linger: Duration::ZERO,
            stopped: Vec::new(),
        }
    }

    /// The engine that misbehaves: the first server's.
    pub(crate) fn engine(&self) -> &Engine {
        &self.bench.servers[0]
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.rng.random_range(0..limit)
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from..to))
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.random_range(0..from.len())]
    }

    /// Writes down what is about to be done.
    pub(crate) fn tell(&mut self, kind: &str, detail: &str) {
        *self.faults.entry(kind.to_owned()).or_default() += 1;
        self.note(&format!("{kind} {detail}"));
    }

    pub(crate) fn note(&mut self, what: &str) {
        self.story.push(format!("{:9.3} s  {what}", self.start.elapsed().as_secs_f64()));
    }

    pub(crate) fn story(&self) -> String {
        let from = self.story.len().saturating_sub(STORY);
        let tail = self.daemon.as_ref().map_or_else(|| self.last_tail.clone(), Daemon::tail);
        format!("{}\n-- the log's end\n{tail}", self.story[from..].join("\n"))
    }

    pub(crate) fn daemon(&self) -> Option<&Daemon> {
        self.daemon.as_ref()
    }

    /// Starts the program.
    pub(crate) fn start(&mut self) -> Result<(), String> {
        self.signalled = false;
        let daemon = self.bench.start(&[]);
        self.note(&format!("start, pid {}", daemon.pid()));
        self.ledger.started(daemon.pid());
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Looks at everything, without disturbing it; starts the program again if it has ended.
    pub(crate) fn look(&mut self) -> Result<(), String> {
        invariants::check(&self.bench, &mut self.ledger)?;
        let Some(daemon) = &mut self.daemon else { return self.start() };
        let Some(status) = daemon.ended() else {
            return self.ledger.memory(daemon.pid());
        };
        use std::os::unix::process::ExitStatusExt;
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        *self.ends.entry(how.clone()).or_default() += 1;
        self.note(&how);
        let allowed = match (status.code(), status.signal()) {
            // A fault that ends the run: runtime failure, not permitted, stuck, the predecessor's guardian still there.
            (Some(code), _) => [0, 1, 70, 77].contains(&code),
            // Before the handlers are there, and nothing is locked yet.
            (None, Some(1 | 2 | 15)) => self.signalled,
            _ => false,
        };
        if self.disks_trouble && !self.ledger.is_up() {
            // A start needs its directories. One refusal is enough.
            self.disks.iter().for_each(Disk::mend);
            self.disks_trouble = false;
        }
        if !allowed {
            return Err(format!("unexpected end: {how}"));
        }
        self.buried()?;
        self.start()
    }

    /// The program has ended: its clocks come back, unless the driver itself refuses.
    fn buried(&mut self) -> Result<(), String> {
        // Who refuses resets is the driver: as soon as it does not, the guardian's next try is due.
        let refused = self.ledger.driver_refuses(&self.bench) || self.is_unguarded();
        self.bench.mock.clear_injections();
        for gpu in 0..self.bench.mock.gpu_count() {
            self.bench.mock.set_lost(gpu, false).map_err(|error| error.to_string())?;
        }
        if !refused {
            self.released(RELEASED_WITHIN)?;
        }
        self.close()
    }

    /// Waits until no clock is locked.
    fn released(&mut self, within: Duration) -> Result<(), String> {
        let start = Instant::now();
        let mut machine = Duration::ZERO;
        while !self.bench.is_free() {
            let before = Instant::now();
            std::thread::sleep(Duration::from_millis(1));
            machine += before.elapsed().saturating_sub(Duration::from_millis(3));
            if start.elapsed() > within + 2 * machine {
                return Err(format!(
                    "locked {:?} after the end ({machine:?} lost by the machine)",
                    start.elapsed()
                ));
            }
        }
        self.releases.push(start.elapsed());
        Ok(())
    }

    /// Reads the log of a program that has ended.
    fn close(&mut self) -> Result<(), String> {
        let Some(daemon) = self.daemon.take() else { return Ok(()) };
        let log = daemon.log();
        self.last_tail = daemon.tail();
        for reaction in REACTIONS {
            let times = log.lines().filter(|line| line.contains(reaction)).count();
            if times > 0 {
                *self.reactions.entry(reaction).or_default() += times as u64;
            }
        }
        if let Some(words) = log.lines().rev().find_map(|line| line.strip_prefix("agft: ")) {
            // Paths and numbers differ from run to run.
            let words: String = words.chars().filter(|c| !c.is_ascii_digit()).take(90).collect();
            let words = words.split("/tmp").next().unwrap_or_default().to_owned();
            *self.reasons.entry(words).or_default() += 1;
        }
        self.ledger.log(&log)
    }

    /// Sends a signal to the program.
    pub(crate) fn signal(&mut self, signal: Signal) {
        self.signalled = true;
        if let Some(daemon) = &mut self.daemon
            && daemon.is_running()
        {
            daemon.signal(signal);
        }
    }

    /// Ends it as a service manager does, and waits for that.
    pub(crate) fn terminate(&mut self, signal: Signal) -> Result<(), String> {
        self.signal(signal);
        let start = Instant::now();
        let mut again = Duration::from_secs(4);
        while self.daemon.as_mut().is_some_and(Daemon::is_running) {
            if start.elapsed() > again {
                // Started in the background by a shell, a process ignores SIGINT until its handlers are there.
                self.note("once more");
                self.signal(signal);
                again += Duration::from_secs(4);
            }
            if start.elapsed() > Duration::from_secs(20) {
                return Err(format!("does not end on {signal:?}"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.look()
    }

    /// Stops the program at a moment when it is in no driver call; `false` if it has ended.
    pub(crate) fn freeze(&mut self) -> bool {
        let Some(daemon) = &mut self.daemon else { return false };
        if !daemon.is_running() {
            return false;
        }
        daemon.freeze(&self.bench);
        true
    }

    /// SIGKILL to the controller; the guardian is left to do its work.
    pub(crate) fn kill(&mut self) -> Result<(), String> {
        self.look()?;
        self.bench.mock.clear_injections();
        for gpu in 0..self.bench.mock.gpu_count() {
            self.bench.mock.set_lost(gpu, false).map_err(|error| error.to_string())?;
        }
        let refused = self.is_unguarded();
        let code = self.pick(&REFUSALS);
        let (fault, every_call, pause) = (self.below(2) == 0, self.below(2) == 0, self.millis(50, 3000));
        if let Some(daemon) = &mut self.daemon
            && daemon.is_running()
        {
            if fault {
                let calls: &[_] =
                    if every_call { &crate::faults::CALLS[1..] } else { &["nvmlDeviceResetGpuLockedClocks"] };
                for call in calls {
                    let _ = self.bench.mock.inject(&Injection::error(call, code));
                }
            }
            daemon.signal(Signal::KILL);
            *self.ends.entry("killed by us".to_owned()).or_default() += 1;
            if fault {
                self.tell(
                    "refused while the controller is killed",
                    &format!("{code}, {every_call}, {pause:?}"),
                );
                std::thread::sleep(pause);
                self.bench.mock.clear_injections();
            }
            if !refused {
                self.released(if fault { FREED_WITHIN } else { RELEASED_WITHIN })?;
            }
            if let Some(daemon) = &mut self.daemon {
                daemon.wait();
            }
            if !refused && !self.bench.is_free() {
                return Err("locked again after the controller's end".into());
            }
        }
        self.close()
    }

    /// SIGKILL to both: only the journal is left.
    pub(crate) fn kill_both(&mut self) -> Result<(), String> {
        if !self.freeze() {
            return Ok(());
        }
        if let Some(guardian) = self.bench.guardian() {
            let _ = kill_process(guardian, Signal::KILL);
        }
        *self.ends.entry("both killed by us".to_owned()).or_default() += 1;
        if let Some(daemon) = &mut self.daemon {
            daemon.signal(Signal::KILL);
            daemon.wait();
        }
        // One guardian of two GPUs has two lock files: the second may name another, older one.
        self.close()
    }

    /// The guardian's process id.
    pub(crate) fn guardian(&self) -> Option<Pid> {
        self.bench.guardian()
    }

    /// It has been stopped.
    pub(crate) fn guardian_stopped(&mut self, guardian: Pid) {
        self.stopped.push(guardian);
    }

    /// Is nobody there who could give the clocks back after the program's end?
    fn is_unguarded(&self) -> bool {
        self.elapsed() < self.resets_hang_until
            || self.bench.guardian().is_none_or(|guardian| {
                let stat = fs::read_to_string(format!("/proc/{}/stat", guardian.as_raw_nonzero()))
                    .unwrap_or_default();
                let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
                matches!(state, None | Some('T' | 'Z' | 'X'))
            })
    }

    /// Ends all trouble, and sees that the program is well again.
    pub(crate) fn heal(&mut self) -> Result<(), String> {
        self.mend();
        self.note("quiet");
        let start = Instant::now();
        // Locked above the idle clock, under work, for a while: everything in between works again.
        let mut well: Option<(u32, Instant)> = None;
        loop {
            self.look()?;
            let pid = self.daemon.as_ref().map(Daemon::pid).filter(|_| self.is_locked());
            well = pid.map(|pid| well.filter(|(old, _)| *old == pid).unwrap_or((pid, Instant::now())));
            if well.is_some_and(|(_, since)| since.elapsed() > Duration::from_millis(150)) {
                break;
            }
            let stands_back = |daemon: &Daemon| daemon.log().contains("hands_off_s=600");
            if start.elapsed() > Duration::from_secs(6) && self.daemon.as_ref().is_some_and(stands_back) {
                self.note("it stands back for ten minutes: started again");
                self.terminate(Signal::TERM)?;
            }
            if start.elapsed() > WELL_WITHIN {
                return Err(format!("no clock locked {WELL_WITHIN:?} after the last fault"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.spells += 1;
        invariants::files(&self.bench, &mut self.ledger)
    }

    /// Are all clocks as they are to be: above the idle clock where a server works, at it where none is?
    fn is_locked(&self) -> bool {
        (0..self.bench.mock.gpu_count()).all(|gpu| {
            let locks = self.bench.mock.locks(gpu).expect("a GPU of this machine");
            locks.core.is_some_and(|range| (range.max > IDLE_MHZ) == (gpu < SERVED))
        })
    }

    fn mend(&mut self) {
        self.bench.mock.clear_injections();
        for gpu in 0..self.bench.mock.gpu_count() {
            self.bench.mock.set_lost(gpu, false).expect("a GPU of this machine");
            self.bench.mock.set_event_reasons(gpu, 0).expect("a GPU of this machine");
        }
        self.disks.iter().for_each(Disk::mend);
        self.engine().behave(Behaviour::Serve);
        self.engine().set_load(0.6);
        self.ledger.serving(true, Duration::ZERO);
        self.bench.change("gpu.min_frequency", "500");
        self.bench.config();
        self.signal(Signal::CONT);
        self.signal(Signal::HUP);
    }

    /// The last end is a good one, and leaves nothing.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        self.mend();
        self.terminate(Signal::TERM)?;
        // `look` has started another: that one is ended too, at whatever point of its start it is.
        self.kill()?;
        let done = self.bench.run(&["release", "--journal"]);
        if done.code != Some(0) || !self.bench.is_free() {
            return Err(format!("the last release: {done:?}"));
        }
        invariants::files(&self.bench, &mut self.ledger)?;
        self.ledger.model_loads(&self.bench)
    }

    pub(crate) fn report(&self) -> String {
        let mut text = String::new();
        let total: u64 = self.faults.values().sum();
        let _ = writeln!(
            text,
            "chaos: {:.0} s, {total} faults of {} kinds, {} quiet moments, {} rounds read, {}",
            self.elapsed().as_secs_f64(),
            self.faults.len(),
            self.spells,
            self.ledger.rounds,
            self.ledger.describe()
        );
        let mut table = |title: &str, entries: Vec<(String, u64)>| {
            let entries: Vec<String> =
                entries.into_iter().map(|(name, times)| format!("{name}: {times}")).collect();
            let _ = writeln!(text, "{title}: {}", entries.join(", "));
        };
        table("faults", self.faults.iter().map(|(name, times)| (name.clone(), *times)).collect());
        table("ends", self.ends.iter().map(|(name, times)| (name.clone(), *times)).collect());
        table("last words", self.reasons.iter().map(|(words, times)| (words.clone(), *times)).collect());
        table("reactions", self.reactions.iter().map(|(name, times)| ((*name).to_owned(), *times)).collect());
        let mut releases = self.releases.clone();
        releases.sort_unstable();
        if let Some(longest) = releases.last() {
            let at = |percent: usize| releases[(releases.len() * percent).div_ceil(100).saturating_sub(1)];
            let _ = writeln!(
                text,
                "from the end of a process to free clocks: n {}, p50 {:?}, p99 {:?}, max {longest:?}",
                releases.len(),
                at(50),
                at(99)
            );
        }
        text
    }

    /// Damages a file as a failing disk does; only while nobody runs.
    pub(crate) fn damage(&mut self, name: &str) -> bool {
        let path = self.bench.of_first("models").join(name);
        let Ok(mut bytes) = fs::read(&path) else { return false };
        let length = bytes.len() as u64;
        if length == 0 {
            return false;
        }
        if self.below(2) == 0 {
            let keep = usize::try_from(self.below(length)).unwrap_or(0);
            bytes.truncate(keep);
        } else {
            let at = usize::try_from(self.below(length)).unwrap_or(0);
            bytes[at] ^= 1 << self.below(8);
        }
        self.ledger.damaged();
        fs::write(&path, bytes).is_ok()
    }
}
