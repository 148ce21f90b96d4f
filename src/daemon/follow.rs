//! Servers that come, move and go while the daemon runs: a thread looks at the machine, the loop hears of changes.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::{Config, Server};
use crate::discover::{Change, Follower, Found};
use crate::export::Published;
use crate::gpu::GpuInfo;
use crate::metrics::scrape::without_query;
use crate::open::auto::{self, Seeker};

/// Looks whose changes may wait for the loop.
const WAITING: usize = 4;

/// Hears of servers that come, move and go. The thread ends after this is dropped.
pub struct Follow {
    /// What the servers are made of; the thread goes by it too.
    config: Arc<Mutex<Config>>,
    known: Vec<Found>,
    changes: mpsc::Receiver<Vec<Change>>,
    published: Published,
    _stop: std_mpsc::Sender<()>,
}

/// Says what is left out, each time that it is so anew.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    said: BTreeSet<(String, String)>,
}

impl LeftOut {
    /// After each look.
    pub(crate) fn say(&mut self, now: Vec<(String, String)>) {
        for (name, why) in &now {
            if !self.said.contains(&(name.clone(), why.clone())) {
                tracing::warn!(name, why, "left alone");
            }
        }
        self.said = now.into_iter().collect();
    }
}

impl Follow {
    /// With these known from a first look, of which `left_out` has told.
    pub(crate) fn start(
        seeker: Seeker,
        config: &Config,
        known: Vec<Found>,
        left_out: LeftOut,
        published: Published,
    ) -> io::Result<Self> {
        let config = Arc::new(Mutex::new(config.clone()));
        let (send, changes) = mpsc::channel(WAITING);
        let (_stop, stopped) = std_mpsc::channel();
        let (theirs, follower) = (Arc::clone(&config), Follower::starting_with(known.clone()));
        std::thread::Builder::new()
            .name("agft-discover".into())
            .spawn(move || look(seeker, &theirs, follower, left_out, &send, &stopped))?;
        Ok(Self { config, known, changes, published, _stop })
    }

    /// The servers of this configuration as they were found. From now on it is the one in force; but where the models
    /// and records are, and how often the machine is looked at, stays.
    pub(super) fn reread(&mut self, wanted: &Config) -> Vec<Server> {
        let mut config = lock(&self.config);
        // What looks for one kind does not find the other.
        if wanted.is_auto()
            && std::mem::discriminant(&wanted.servers) == std::mem::discriminant(&config.servers)
        {
            let Config { model, experiment, discover, .. } = config.clone();
            *config = Config { model, experiment, discover, ..wanted.clone() };
        }
        auto::servers(wanted, &self.known)
    }

    /// The server as it is now; `None` if it is not there any more. One that is named with its GPUs stays as it is.
    pub(super) fn current(&self, server: Server) -> Option<Server> {
        let config = lock(&self.config);
        if config.servers().iter().any(|named| named.name == server.name && !named.is_auto()) {
            return Some(server);
        }
        auto::servers(&config, &self.known).into_iter().find(|now| now.name == server.name)
    }

    pub(super) fn serves(&self, gpu: &GpuInfo) -> bool {
        let servers = auto::servers(&lock(&self.config), &self.known);
        servers.iter().any(|server| server.config.gpu.device_id.iter().any(|selector| selector.selects(gpu)))
    }

    /// Waits until servers have come, moved or gone.
    pub(super) async fn changed(&mut self) -> Vec<Change> {
        // Its thread ends after this alone.
        let Some(changes) = self.changes.recv().await else { return std::future::pending().await };
        for change in &changes {
            match change {
                Change::Came(found) => {
                    say(found, "server found");
                    self.known.push(found.clone());
                }
                Change::Moved { now, .. } => {
                    say(now, "server is elsewhere now");
                    let places = self.known.iter_mut().filter(|known| known.name == now.name);
                    places.for_each(|known| known.clone_from(now));
                }
                Change::Went(found) => {
                    tracing::info!(server = found.name, "server is gone: its clocks are given back");
                    self.known.retain(|known| known.name != found.name);
                }
            }
        }
        changes
    }

    /// The servers that have come, as `changes` tells.
    pub(super) fn came(&self, change: &Change) -> Option<Server> {
        let Change::Came(found) = change else { return None };
        auto::servers(&lock(&self.config), &self.known).into_iter().find(|server| server.name == found.name)
    }

    /// Shows a server no more.
    pub(super) fn forget(&self, name: &str) {
        self.published.remove(name);
    }
}

pub(crate) fn say(found: &Found, what: &str) {
    let url = without_query(&found.metrics_url);
    tracing::info!(server = found.name, url, gpus = found.gpus.join(", "), "{what}");
}

fn lock(config: &Mutex<Config>) -> MutexGuard<'_, Config> {
    config.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look(
    mut seeker: Seeker,
    config: &Mutex<Config>,
    mut follower: Follower,
    mut left_out: LeftOut,
    changes: &mpsc::Sender<Vec<Change>>,
    stopped: &std_mpsc::Receiver<()>,
) {
    let mut failed = false;
    loop {
        let every = Duration::from_secs_f64(lock(config).discover.every_s.0);
        if stopped.recv_timeout(every) != Err(std_mpsc::RecvTimeoutError::Timeout) {
            return;
        }
        let now = lock(config).clone();
        match seeker.look(&now) {
            Ok(seen) => {
                failed = false;
                left_out.say(seen.left_out);
                let seen = follower.look(&seen.found);
                if !seen.is_empty() && changes.blocking_send(seen).is_err() {
                    return;
                }
            }
            // While it lasts it is not said again.
            Err(error) if !failed => {
                failed = true;
                tracing::warn!(%error, "servers are not looked for; those that are known stay");
            }
            Err(_) => {}
        }
    }
}
