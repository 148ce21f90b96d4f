//! What must hold at any moment, seen from outside: through the mocked driver, the files and the process table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use agft::control::{Learned, Model};
use agft::store::{Identity, ModelStore};
use nvidia_ml::{ClockWrite, monotonic_ns};
use sha2::{Digest, Sha256};

use crate::support::daemon::{Bench, IDLE_MHZ};

const SET_CORE: &str = "nvmlDeviceSetGpuLockedClocks";
const SET_MEMORY: &str = "nvmlDeviceSetMemoryLockedClocks";
const RESET_MEMORY: &str = "nvmlDeviceResetMemoryLockedClocks";
const NOT_SUPPORTED: u32 = 3;
const RESET_CORE: &str = "nvmlDeviceResetGpuLockedClocks";
/// Between the last good page and the last consequence of it: a page under way (0.3 s), `outage_after_s` (0.5 s), a tick,
/// and a machine with other things to do.
const LAST_PAGE: Duration = Duration::from_millis(1500);
/// No controller is larger.
const LARGEST_RSS_KB: u64 = 96 << 10;

/// What is known so far.
pub(crate) struct Ledger {
    supported: BTreeSet<u32>,
    us: u32,
    /// Writes checked.
    seen: u64,
    /// Processes whose first successful reset was seen, by GPU.
    reset: BTreeMap<u32, BTreeSet<u32>>,
    /// Since when (`CLOCK_MONOTONIC`, ns) no good page was to be had.
    out_since: Option<u64>,
    /// Model files that were damaged and have not been put aside yet, as far as the logs say.
    damaged: usize,
    rss_peak_kb: u64,
    /// Resident memory of a program that has been up for some seconds, in the order seen.
    rss_kb: Vec<u64>,
    started: Option<(u32, Instant)>,
    measured: bool,
    pub(crate) rounds: usize,
    parked: u64,
    locks: u64,
}

impl Ledger {
    pub(crate) fn new(bench: &Bench) -> Self {
        let supported = bench.mock.config().gpus[0].levels[0].core_mhz.iter().copied().collect();
        Self {
            supported,
            us: std::process::id(),
            seen: 0,
            reset: BTreeMap::new(),
            out_since: None,
            damaged: 0,
            rss_peak_kb: 0,
            rss_kb: Vec::new(),
            started: None,
            measured: false,
            rounds: 0,
            parked: 0,
            locks: 0,
        }
    }

    pub(crate) fn started(&mut self, pid: u32) {
        self.started = Some((pid, Instant::now()));
        self.measured = false;
        self.reset.remove(&pid);
    }

    /// Has the program been up for a while?
    pub(crate) fn is_up(&self) -> bool {
        self.started.is_some_and(|(_, at)| at.elapsed() > Duration::from_secs(1))
    }

    /// Good pages are to be had from now on, or none; commands may be up to `late` under way.
    pub(crate) fn serving(&mut self, serving: bool, late: Duration) {
        let from = monotonic_ns() + u64::try_from((LAST_PAGE + late).as_nanos()).unwrap_or(0);
        self.out_since =
            if serving { None } else { Some(self.out_since.map_or(from, |since| since.max(from))) };
    }

    /// A command that was decided on before may be carried out now.
    pub(crate) fn late(&mut self, late: Duration) {
        if self.out_since.is_some() {
            self.serving(false, late);
        }
    }

    pub(crate) fn damaged(&mut self) {
        self.damaged += 1;
    }

    /// Does the driver itself keep the clocks from being given back? Of the memory clock's reset, "not supported" is the
    /// answer of this board.
    pub(crate) fn driver_refuses(&self, bench: &Bench) -> bool {
        let lost = (0..bench.mock.gpu_count()).any(|gpu| bench.mock.snapshot(gpu).is_ok_and(|gpu| gpu.lost));
        let since = monotonic_ns().saturating_sub(3_000_000_000);
        let refused = |write: &ClockWrite| {
            write.at_ns > since
                && (write.call == RESET_CORE && write.code != 0
                    || write.call == RESET_MEMORY && ![0, NOT_SUPPORTED].contains(&write.code))
        };
        lost || bench.mock.history_since(self.seen.saturating_sub(100)).iter().any(refused)
    }

    fn write(&mut self, write: &ClockWrite) -> Result<(), String> {
        if write.pid == self.us {
            return Ok(());
        }
        if write.call == RESET_CORE && write.code == 0 {
            self.reset.entry(write.pid).or_default().insert(write.gpu);
        }
        if write.call == SET_MEMORY {
            return Err(format!("the memory clock was locked: {write:?}"));
        }
        if write.call != SET_CORE {
            return Ok(());
        }
        self.locks += 1;
        if !write.args.iter().all(|clock| self.supported.contains(clock)) {
            return Err(format!("a clock that is not supported: {write:?}"));
        }
        if !self.reset.get(&write.pid).is_some_and(|gpus| gpus.contains(&write.gpu)) {
            return Err(format!("locked without a reset before: {write:?}"));
        }
        if write.args[1] == IDLE_MHZ {
            self.parked += 1;
            // Of the first server: the others have a page of their own.
            if write.gpu < 2 && self.out_since.is_some_and(|since| write.at_ns > since) {
                return Err(format!("parked during an outage: {write:?}"));
            }
        }
        Ok(())
    }

    /// Resident memory.
    pub(crate) fn memory(&mut self, pid: u32) -> Result<(), String> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let Some(kb) = rss.and_then(|rss| rss.trim().trim_end_matches(" kB").parse::<u64>().ok()) else {
            return Ok(());
        };
        self.rss_peak_kb = self.rss_peak_kb.max(kb);
        if kb > LARGEST_RSS_KB {
            return Err(format!("{kb} kB resident"));
        }
        if !self.measured && self.started.is_some_and(|(_, at)| at.elapsed() > Duration::from_secs(5)) {
            self.measured = true;
            self.rss_kb.push(kb);
        }
        Ok(())
    }

    /// The log of a program that has ended, its guardian's words included.
    pub(crate) fn log(&mut self, log: &str) -> Result<(), String> {
        if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
            return Err(line.to_owned());
        }
        if let Some(line) = log.lines().find(|line| line.contains("damaged journal")) {
            return Err(line.to_owned());
        }
        if let Some(line) = log.lines().find(|line| line.contains("cannot be right")) {
            return Err(line.to_owned());
        }
        for line in log.lines().filter(|line| line.contains("was not loaded")) {
            self.damaged =
                self.damaged.checked_sub(1).ok_or_else(|| format!("a model that was not damaged: {line}"))?;
        }
        Ok(())
    }

    /// The model on the disk is one, unless it was damaged since.
    pub(crate) fn model_loads(&self, bench: &Bench) -> Result<(), String> {
        let directory = bench.of_first("models");
        if self.damaged > 0 || !directory.join("model.agft").exists() {
            return Ok(());
        }
        let store = ModelStore::open(&directory).map_err(|error| error.to_string())?;
        let gpus = &bench.mock.config().gpus;
        let identity = Identity {
            gpu_name: gpus[0].name.clone(),
            gpu_uuids: gpus.iter().take(2).map(|gpu| gpu.uuid.clone()).collect(),
            feature_names: agft::features::NAMES.iter().map(|name| (*name).to_owned()).collect(),
            policy: agft::store::ModelMetadata::read(&directory)
                .map_err(|error| error.to_string())?
                .map(|metadata| metadata.algorithm)
                .unwrap_or_default(),
            model_version: agft::control::learned::MODEL_VERSION,
            engine_model: None,
        };
        match store.load::<Model>(&identity, jiff::Timestamp::now()) {
            Ok(agft::store::Load::Restored(restored)) if Learned::from(restored.model.clone()).is_sound() => {
                Ok(())
            }
            other => Err(format!("the model does not load: {other:?}").chars().take(600).collect()),
        }
    }

    pub(crate) fn describe(&self) -> String {
        let mib = |kb: u64| kb >> 10;
        let tenth = (self.rss_kb.len() / 10).max(1);
        let mean = |values: &[u64]| values.iter().sum::<u64>() / (values.len() as u64).max(1);
        let (first, last) = (self.rss_kb.iter().take(tenth), self.rss_kb.iter().rev().take(tenth));
        let (first, last): (Vec<u64>, Vec<u64>) = (first.copied().collect(), last.copied().collect());
        format!(
            "{} locks ({} of them parked), RSS of runs older than 5 s: first {} kB, last {} kB (means of {tenth}), peak {} MiB",
            self.locks,
            self.parked,
            mean(&first),
            mean(&last),
            mib(self.rss_peak_kb)
        )
    }
}

/// What can be looked at any time.
pub(crate) fn check(bench: &Bench, ledger: &mut Ledger) -> Result<(), String> {
    let writes = bench.mock.history_since(ledger.seen);
    for write in &writes {
        ledger.write(write)?;
        ledger.seen = write.seq + 1;
    }
    for journal in bench.journals() {
        // It may be replaced or removed meanwhile, but never be half of one.
        let Ok(text) = fs::read_to_string(&journal) else { continue };
        let mut lines = text.lines();
        let (line, sum) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let expected: String = Sha256::digest(line).iter().map(|byte| format!("{byte:02x}")).collect();
        if sum != expected || lines.next().is_some() {
            return Err(format!("{}: {text:?}", journal.display()));
        }
    }
    Ok(())
}

/// What the files say, at a quiet moment.
pub(crate) fn files(bench: &Bench, ledger: &mut Ledger) -> Result<(), String> {
    let aside = fs::read_dir(bench.path("run")).map_err(|error| error.to_string())?.flatten();
    if let Some(damaged) =
        aside.map(|entry| entry.file_name()).find(|name| name.to_string_lossy().contains("damaged"))
    {
        return Err(format!("a damaged journal: {}", damaged.display()));
    }
    // Panics on a line that is none.
    ledger.rounds = ledger.rounds.max(bench.rounds().len());
    Ok(())
}
