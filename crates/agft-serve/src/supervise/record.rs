//! What runs, written down, so that a supervisor that was killed leaves nothing behind for the next.
//!
//! The next supervisor ends what it finds, and starts anew. It does not adopt: the pipes of a process ended
//! with the supervisor that held them, so its next line of output fails; how it ends could not be known, as
//! it is nobody's child any more; and the clients that were connected through the supervisor are gone anyway.
//!
//! Nor does the kernel kill them with the supervisor (`PR_SET_PDEATHSIG`): that ends with the thread that
//! started them, not with the process, reaches no descendants, and gives a server no time. A service manager
//! that ends the whole control group of the supervisor does better, where there is one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::process::cgroup::Subtree;
use crate::process::tree::{self, Stat};
use crate::spec::Stop;

/// The supervisor before may still be ending: its lock is waited for so long.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How long processes may take to end when only their marks tell of them.
const GRACE: Duration = Duration::from_secs(5);

/// Why the runtime directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be made, or a file in it cannot be opened.
    #[error("runtime directory: {}: {source}; name a directory that this user may write", path.display())]
    Directory {
        /// What cannot be used.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another supervisor has it.
    #[error("another supervisor runs with the runtime directory {}: stop it, or name another", .0.display())]
    Taken(PathBuf),
}

/// One process that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    instance: String,
    start_ticks: u64,
    stop: Stop,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// Chosen once per runtime directory: with it, marks of two supervisors are never alike.
    owner: String,
    /// Pids mean something until the host starts again.
    boot_id: String,
    running: BTreeMap<i32, Entry>,
}

/// The record of one supervisor. Its lock is held as long as it lives.
#[derive(Debug)]
pub(super) struct Record {
    file: PathBuf,
    state: Mutex<State>,
    _lock: File,
}

/// What a supervisor before left running.
#[derive(Debug)]
pub(super) struct Left {
    running: BTreeMap<i32, Entry>,
}

impl Record {
    /// Takes the runtime directory, made where it is not there.
    pub(super) async fn open(directory: &Path) -> Result<(Self, Left), RecordError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| RecordError::Directory { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed(directory))?;
        let lock = lock(directory).await?;
        let file = directory.join("running.json");
        let boot_id = read_word("/proc/sys/kernel/random/boot_id").map_err(failed(&file))?;
        let old: Option<State> = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .inspect_err(
                    |error| tracing::warn!(file = %file.display(), %error, "not readable, and written anew"),
                )
                .ok(),
            Err(_) => None,
        };
        let (owner, running) = match old {
            Some(old) if old.boot_id == boot_id => (old.owner, old.running),
            Some(old) => (old.owner, BTreeMap::new()),
            None => (new_owner().map_err(failed(&file))?, BTreeMap::new()),
        };
        let state = State { owner, boot_id, running: running.clone() };
        write(&file, &state).map_err(failed(&file))?;
        Ok((Self { file, state: Mutex::new(state), _lock: lock }, Left { running }))
    }

    pub(super) fn owner(&self) -> String {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).owner.clone()
    }

    /// The value of [`tree::MARK`] for an instance.
    pub(super) fn mark(&self, instance: &str) -> String {
        format!("{}/{instance}", self.owner())
    }

    pub(super) fn started(&self, pid: Pid, instance: &str, stop: Stop) {
        // A process that is gone already needs no entry.
        let Some(stat) = tree::stat(pid) else { return };
        let entry = Entry { instance: instance.to_owned(), start_ticks: stat.start_ticks, stop };
        self.change(|running| running.insert(pid.as_raw_pid(), entry));
    }

    pub(super) fn ended(&self, pid: Pid) {
        self.change(|running| running.remove(&pid.as_raw_pid()));
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<i32, Entry>) -> T) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state.running);
        if let Err(error) = write(&self.file, &state) {
            // The marks in the processes' environments still tell.
            tracing::warn!(file = %self.file.display(), %error, "what runs could not be written down");
        }
    }

    /// Ends all that a supervisor before left: asked first, then killed.
    pub(super) async fn end_left(&self, left: Left, subtree: Option<&Subtree>) {
        let prefix = format!("{}/", self.owner());
        let running = left.running.clone();
        let ours = move |stat: &Stat| {
            // A session has its leader's number, and nobody else gets that while the leader lives.
            recorded(&running, stat)
                || stat.session.and_then(tree::stat).is_some_and(|leader| recorded(&running, &leader))
                || tree::mark(stat.pid).is_some_and(|mark| mark.starts_with(&prefix))
        };
        let found = tree::find(&ours);
        if !found.is_empty() {
            let pids: Vec<i32> = found.iter().map(|stat| stat.pid.as_raw_pid()).collect();
            tracing::warn!(
                ?pids,
                "an earlier supervisor was killed and left processes: they are ended first"
            );
        }
        let entry =
            |stat: &Stat| left.running.get(&stat.pid.as_raw_pid()).filter(|_| recorded(&left.running, stat));
        for stat in &found {
            let asked = entry(stat).and_then(|entry| Signal::from_named_raw(entry.stop.signal));
            tree::signal(stat, asked.unwrap_or(Signal::TERM));
        }
        // As when an instance is stopped, its process is waited for, and what descends from it is not.
        let known: Vec<&Stat> = found.iter().filter(|stat| entry(stat).is_some()).collect();
        let waited = if known.is_empty() { found.iter().collect() } else { known };
        let asked = Instant::now();
        let has_time = |old: &Stat| asked.elapsed() < entry(old).map_or(GRACE, |entry| entry.stop.grace);
        while waited.iter().any(|old| has_time(old) && lives(old)) {
            sleep(Duration::from_millis(20)).await;
        }
        let before = found.clone();
        let mut gone =
            tree::kill_all(move |stat: &Stat| before.iter().any(|old| old.same(stat)) || ours(stat)).await;
        for group in subtree.map(|subtree| subtree.left_by(&self.owner())).unwrap_or_default() {
            gone &= group.kill().await;
        }
        if !gone {
            tracing::error!("processes of an earlier supervisor cannot be ended: they hang in the kernel");
        }
        self.change(BTreeMap::clear);
    }
}

fn recorded(running: &BTreeMap<i32, Entry>, stat: &Stat) -> bool {
    running.get(&stat.pid.as_raw_pid()).is_some_and(|entry| entry.start_ticks == stat.start_ticks)
}

fn lives(old: &Stat) -> bool {
    tree::stat(old.pid).is_some_and(|now| now.same(old) && !now.dead)
}

async fn lock(directory: &Path) -> Result<File, RecordError> {
    let path = directory.join("lock");
    let failed = |source| RecordError::Directory { path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    let patience = Instant::now() + LOCK_PATIENCE;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > patience {
            return Err(RecordError::Taken(directory.to_owned()));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(file)
}

fn read_word(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

fn new_owner() -> io::Result<String> {
    Ok(read_word("/proc/sys/kernel/random/uuid")?.replace('-', "").chars().take(16).collect())
}

/// A reader sees the old file or the new one, never a part.
fn write(file: &Path, state: &State) -> io::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, serde_json::to_vec_pretty(state)?)?;
    fs::rename(&new, file)
}
