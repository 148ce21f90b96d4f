//! Instances, kept running as their entries say.
//!
//! Each instance has a task that carries out what a pure state machine decides. Whatever way the supervisor
//! ends, no process of an instance is left: by itself it ends them ([`Supervisor::shut_down`]); after a `kill
//! -9` the next supervisor with the same runtime directory finds them and ends them before it starts
//! anything.

mod gate;
mod keeper;
mod machine;
mod port;
mod probe;
mod record;
mod run;
mod shared;
mod status;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::process::LogLine;
use crate::process::cgroup::Subtree;
use crate::process::log::Tail;
use crate::process::reap::take_in_orphans;
use crate::spec::Instance;
use keeper::{Command, Keeper, Operation};
use record::Record;
use shared::Shared;

pub use record::RecordError;
pub use status::{InstanceEvent, InstanceStatus, State, What};

/// So long killed processes are waited for at the end.
const AFTER_KILL: Duration = Duration::from_secs(5);

/// What a supervisor needs beside its instances.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it writes down what runs. One supervisor at a time may have it. Made where it is not there.
    pub runtime_dir: PathBuf,
    /// Where logs go whose instance names no file. Made where it is not there.
    pub log_dir: PathBuf,
    /// So many lines of output are kept in memory for each instance.
    pub tail_lines: usize,
    /// Whether instances get control groups of their own, where the supervisor was given a cgroup v2 subtree.
    pub control_groups: bool,
}

/// Why a supervisor cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its runtime directory cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Its log directory cannot be made.
    #[error("log directory {} cannot be made: {source}; name one that this user may write", path.display())]
    LogDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel gives it no orphans.
    #[error("descendants of instances cannot be taken in: {0}")]
    Orphans(std::io::Error),
    /// The instances are not what they must be.
    #[error(transparent)]
    Reload(#[from] ReloadError),
}

/// Why a list of instances is not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReloadError {
    /// A name is there twice.
    #[error("two instances are called {0:?}: a name is an instance's identity, give one of them another")]
    Duplicate(String),
    /// The supervisor ends.
    #[error("the supervisor is ending: it takes no instances any more")]
    Ending,
}

/// Why an operator's command is not carried out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandError {
    /// No instance has that name.
    #[error("no instance is called {0:?}")]
    NoSuchInstance(String),
    /// It is disabled.
    #[error("instance {0:?} is disabled: enable it to start it")]
    Disabled(String),
}

/// What a reload did, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Their entries are as before: they were not touched. What an operator said of them still holds.
    pub unchanged: Vec<String>,
    /// Their entries changed: what runs of them is replaced, or ended where they are disabled now.
    pub restarted: Vec<String>,
    /// Their entries are gone, and so are they.
    pub ended: Vec<String>,
    /// Their entries are new.
    pub started: Vec<String>,
}

/// A handle on the supervisor. Clones are of the same. Processes live until [`Supervisor::shut_down`].
#[derive(Debug, Clone)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    entries: Mutex<Vec<Entry>>,
    /// Held while the list of instances changes; true once the supervisor ends.
    ending: tokio::sync::Mutex<bool>,
}

#[derive(Debug)]
struct Entry {
    /// As it was given last.
    spec: Instance,
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<()>,
    tail: Arc<Tail>,
    order: Arc<AtomicU64>,
}

impl Supervisor {
    /// Ends what an earlier supervisor left, then starts the instances. From now on this process waits for
    /// all children outside of its own session.
    ///
    /// # Errors
    /// Where its directories cannot be used, another supervisor has them, or a name is there twice.
    pub async fn start(settings: Settings, instances: Vec<Instance>) -> Result<Self, StartError> {
        unique(&instances)?;
        std::fs::create_dir_all(&settings.log_dir)
            .map_err(|source| StartError::LogDirectory { path: settings.log_dir.clone(), source })?;
        let (record, left) = Record::open(&settings.runtime_dir).await?;
        let subtree = if settings.control_groups { Subtree::find() } else { None };
        take_in_orphans().map_err(StartError::Orphans)?;
        record.end_left(left, subtree.as_ref()).await;
        let shared = Arc::new(Shared::new(settings, record, subtree));
        let entries = instances.into_iter().map(|spec| Entry::new(&shared, spec)).collect();
        let inner = Inner { shared, entries: Mutex::new(entries), ending: tokio::sync::Mutex::new(false) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The status of all instances, in the order of their entries.
    #[must_use]
    pub fn statuses(&self) -> watch::Receiver<Vec<InstanceStatus>> {
        self.inner.shared.statuses().subscribe()
    }

    /// What happens from now on. A receiver that lags loses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<InstanceEvent> {
        self.inner.shared.events().subscribe()
    }

    /// The entries as they were given last.
    #[must_use]
    pub fn instances(&self) -> Vec<Instance> {
        self.inner.entries().iter().map(|entry| entry.spec.clone()).collect()
    }

    /// The last lines of an instance's output, `count` at most, and all that come.
    ///
    /// # Errors
    /// Where no instance has that name.
    pub fn log(
        &self,
        name: &str,
        count: usize,
    ) -> Result<(Vec<LogLine>, broadcast::Receiver<LogLine>), CommandError> {
        let entries = self.inner.entries();
        Ok(find(&entries, name)?.tail.read(count))
    }

    /// It is to run. One that ended is started again.
    ///
    /// # Errors
    /// Where no instance has that name.
    pub async fn enable(&self, name: &str) -> Result<(), CommandError> {
        self.operate(name, Operation::Enable).await
    }

    /// It is not to run, until it is enabled, its entry changes or the supervisor starts anew.
    ///
    /// # Errors
    /// Where no instance has that name.
    pub async fn disable(&self, name: &str) -> Result<(), CommandError> {
        self.operate(name, Operation::Disable).await
    }

    /// Its process is replaced by a new one. One that waits or has ended is started now; one on demand with
    /// no client, with the next.
    ///
    /// # Errors
    /// Where no instance has that name, or it is disabled.
    pub async fn restart(&self, name: &str) -> Result<(), CommandError> {
        self.operate(name, Operation::Restart).await
    }

    async fn operate(&self, name: &str, operation: Operation) -> Result<(), CommandError> {
        let (reply, replied) = oneshot::channel();
        let sent = {
            let entries = self.inner.entries();
            find(&entries, name)?.commands.send(Command::Operate(operation, reply))
        };
        // One that ends just now is as good as gone.
        let gone = || CommandError::NoSuchInstance(name.to_owned());
        sent.map_err(|_| gone())?;
        replied.await.map_err(|_| gone())?
    }

    /// Takes another list of instances. An equal entry leaves its process alone. Returns once those that are
    /// gone have ended; those that changed are replaced meanwhile.
    ///
    /// # Errors
    /// Where a name is there twice, or the supervisor ends. Nothing is changed then.
    pub async fn reload(&self, instances: Vec<Instance>) -> Result<Reloaded, ReloadError> {
        unique(&instances)?;
        let inner = Arc::clone(&self.inner);
        // In a task of its own: a caller that goes away does not leave it half done.
        let done = tokio::spawn(async move { inner.reload(instances).await });
        done.await.unwrap_or(Err(ReloadError::Ending))
    }

    /// Ends all instances, the one that was started last first, each one's hooks before it. After `within`,
    /// all that is left is killed at once. Tells the names of those that did not end even so.
    pub async fn shut_down(&self, within: Duration) -> Vec<String> {
        // A day is more than any service manager waits.
        let deadline = Instant::now() + within.min(Duration::from_secs(86_400));
        let shared = &self.inner.shared;
        let mut ending = match timeout_at(deadline, self.inner.ending.lock()).await {
            Ok(ending) => ending,
            Err(_) => {
                shared.kill_now();
                self.inner.ending.lock().await
            }
        };
        *ending = true;
        let mut entries = std::mem::take(&mut *self.inner.entries());
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.order.load(Ordering::Relaxed)));
        let mut left = entries.iter_mut();
        for entry in left.by_ref() {
            let _ = entry.commands.send(Command::Retire);
            if timeout_at(deadline, &mut entry.task).await.is_err() {
                break;
            }
        }
        shared.kill_now();
        for entry in &entries {
            let _ = entry.commands.send(Command::Retire);
        }
        let mut hung = Vec::new();
        let patience = Instant::now() + AFTER_KILL;
        for mut entry in entries {
            if !entry.task.is_finished() && timeout_at(patience, &mut entry.task).await.is_err() {
                hung.push(entry.spec.name);
            }
        }
        hung
    }
}

impl Inner {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reload(&self, instances: Vec<Instance>) -> Result<Reloaded, ReloadError> {
        let ending = self.ending.lock().await;
        if *ending {
            return Err(ReloadError::Ending);
        }
        let mut done = Reloaded::default();
        let mut retiring = Vec::new();
        {
            let mut entries = self.entries();
            for entry in &mut *entries {
                let name = entry.spec.name.clone();
                match instances.iter().find(|spec| spec.name == name) {
                    Some(spec) if *spec == entry.spec => done.unchanged.push(name),
                    Some(spec) => {
                        entry.spec = spec.clone();
                        let _ = entry.commands.send(Command::Replace(Box::new(spec.clone())));
                        done.restarted.push(name);
                    }
                    None => {
                        let _ = entry.commands.send(Command::Retire);
                        done.ended.push(name);
                    }
                }
            }
            // They are no longer there for commands, and their names not yet free: this function holds the
            // lock on that.
            let (gone, stay) =
                std::mem::take(&mut *entries).into_iter().partition(|e| done.ended.contains(&e.spec.name));
            *entries = stay;
            retiring.extend::<Vec<Entry>>(gone);
        }
        for entry in retiring {
            let _ = entry.task.await;
        }
        // What is gone had GPUs and ports that the new ones may want.
        let mut entries = self.entries();
        for spec in &instances {
            if !entries.iter().any(|entry| entry.spec.name == spec.name) {
                done.started.push(spec.name.clone());
                entries.push(Entry::new(&self.shared, spec.clone()));
            }
        }
        let place = |name: &str| instances.iter().position(|spec| spec.name == name);
        entries.sort_by_key(|entry| place(&entry.spec.name));
        self.shared.statuses().send_modify(|all| {
            all.retain(|status| place(&status.name).is_some());
            all.sort_by_key(|status| place(&status.name));
        });
        Ok(done)
    }
}

impl Entry {
    fn new(shared: &Arc<Shared>, spec: Instance) -> Self {
        let (commands, obeyed) = mpsc::unbounded_channel();
        let tail = Arc::new(Tail::new(shared.settings().tail_lines));
        let order = Arc::new(AtomicU64::new(0));
        let task = Keeper::spawn(shared, spec.clone(), Arc::clone(&tail), Arc::clone(&order), obeyed);
        Self { spec, commands, task, tail, order }
    }
}

fn find<'a>(entries: &'a [Entry], name: &str) -> Result<&'a Entry, CommandError> {
    let found = entries.iter().find(|entry| entry.spec.name == name);
    found.ok_or_else(|| CommandError::NoSuchInstance(name.to_owned()))
}

fn unique(instances: &[Instance]) -> Result<(), ReloadError> {
    for (at, spec) in instances.iter().enumerate() {
        if instances.iter().take(at).any(|other| other.name == spec.name) {
            return Err(ReloadError::Duplicate(spec.name.clone()));
        }
    }
    Ok(())
}
