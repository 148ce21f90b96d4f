//! Which inference servers run on this machine, on which GPUs, and where their metrics pages are.
//!
//! ```text
//!  driver: who computes on which GPU --+
//!                                      +--> facts --> candidates --> probe --> servers --> follow
//!  /proc: parents, groups, sockets  ---+              (pure)         (HTTP)    (pure)      (pure)
//! ```
//! [`procfs`] and `probe` touch the world; the rest is pure. Nothing outside this machine is asked, and
//! only those addresses at which a process listens that computes on a GPU, or belongs to one that does.

pub(crate) mod behind;
pub(crate) mod candidates;
pub(crate) mod facts;
pub(crate) mod follow;
pub(crate) mod page;
pub(crate) mod probe;
pub mod procfs;
pub(crate) mod servers;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeSet;
use std::io;
use std::time::Instant;

use candidates::{Candidate, candidates};
use facts::GpuProcesses;
pub use follow::{Change, Follower};
use probe::{Answer, Answers, Prober};
use procfs::Procfs;
pub use servers::Found;
use servers::{Pages, servers};

use crate::gpu::GpuError;
use crate::gpu::host::Host;

/// Why nothing could be looked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each has its message")]
pub enum DiscoverError {
    #[error("{0}")]
    Gpu(#[from] GpuError),
    #[error("the processes of this machine cannot be listed: {0}")]
    Processes(#[source] io::Error),
    #[error("no HTTP client can be made: {0}")]
    Client(String),
    #[error("{url}: {why}")]
    Url { url: String, why: String },
    #[error("{0}")]
    Unplaced(#[from] behind::Unplaced),
}

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The servers.
    pub found: Vec<Found>,
    /// Processes that compute and are of no server that was found.
    pub(crate) rest: Vec<Rest>,
    /// Process ids of the driver that this machine does not have, or does not show.
    pub unknown: BTreeSet<u32>,
    /// agft is where the driver's process ids are valid.
    pub(crate) has_host_pids: bool,
}

/// What agft needs to see other users' processes.
pub(crate) const RIGHTS: &str =
    "their sockets may not be seen; run this as root (the right is CAP_SYS_PTRACE)";
/// What agft needs to know the driver's process ids.
const HOST_PIDS: &str = "agft is in a PID namespace of its own, where the driver's ids are not valid; run it \
    with the host's processes in view (docker run --pid=host, hostPID: true)";
/// Why an id may be unknown elsewhere.
const ENDED: &str = "they have ended, or /proc hides them (hidepid=, ProtectProc=)";

impl Look {
    /// Why a process that the driver names may not be known here.
    pub(crate) fn why_unknown(&self) -> &'static str {
        if self.has_host_pids { ENDED } else { HOST_PIDS }
    }
}

/// Processes that compute and are of no server that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rest {
    /// Who they are; of its `pids`, those without a server.
    pub(crate) candidate: Candidate,
    /// What was asked, and what came of it.
    pub answers: Vec<(std::net::SocketAddr, String)>,
}

/// Looks for servers, and remembers what it has asked.
#[derive(Debug)]
pub struct Discovery {
    procfs: Procfs,
    prober: Prober,
}

impl Discovery {
    /// With the processes of this tree.
    pub fn new(procfs: Procfs) -> Result<Self, DiscoverError> {
        let prober = Prober::new().map_err(|error| DiscoverError::Client(error.to_string()))?;
        Ok(Self { procfs, prober })
    }

    /// Looks once. Blocks while the driver and `/proc` answer, for milliseconds, and while pages are asked
    /// for, for 15 s at the most: for a thread of its own.
    /// Errors: [`DiscoverError`]: nothing is known then, which is not that nothing is there.
    pub fn look(&mut self, host: &dyn Host) -> Result<Look, DiscoverError> {
        let facts = self.procfs.facts(computing(host)?).map_err(DiscoverError::Processes)?;
        let known = candidates(&facts);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| DiscoverError::Client(error.to_string()))?;
        let answers = runtime.block_on(self.prober.ask(&facts, &known.candidates, Instant::now()));
        let found = servers(&facts, &known.candidates, &pages(&answers));
        let placed: BTreeSet<u32> = found.iter().flat_map(|found| found.pids.iter().copied()).collect();
        let rest = known.candidates.into_iter().filter_map(|mut candidate| {
            candidate.pids.retain(|pid| !placed.contains(pid));
            let told =
                |address: &candidates::Address| Some((address.listens, words(answers.get(&address.socket)?)));
            let answers = candidate.addresses.iter().filter_map(told).collect();
            (!candidate.pids.is_empty()).then_some(Rest { candidate, answers })
        });
        let rest = rest.collect();
        Ok(Look { found, rest, unknown: known.unknown, has_host_pids: self.procfs.has_host_pids() })
    }

    /// UUIDs of the GPUs of the server whose metrics page this is: `gpus: auto`. Blocks as
    /// [`look`](Self::look), and sends nothing but what resolving the host's name takes.
    pub fn gpus_of(&self, host: &dyn Host, metrics_url: &str) -> Result<Vec<String>, DiscoverError> {
        let bad = |why: String| DiscoverError::Url { url: metrics_url.to_owned(), why };
        let url = url::Url::parse(metrics_url).map_err(|error| bad(error.to_string()))?;
        let at = url.socket_addrs(|| None).map_err(|error| bad(error.to_string()))?;
        let facts = self.procfs.facts(computing(host)?).map_err(DiscoverError::Processes)?;
        Ok(behind::gpus_behind(&facts, &at)?)
    }
}

fn computing(host: &dyn Host) -> Result<Vec<GpuProcesses>, GpuError> {
    let listed = host.compute_processes()?;
    Ok(listed.into_iter().map(|(gpu, pids)| GpuProcesses { uuid: gpu.uuid, pids }).collect())
}

fn pages(answers: &Answers) -> Pages {
    let pages = answers.iter().filter_map(|(socket, answer)| match answer {
        Answer::Page(page) => Some((*socket, page.clone())),
        _ => None,
    });
    pages.collect()
}

fn words(answer: &Answer) -> String {
    match answer {
        Answer::Page(page) => format!("a page of {}", page.engine.engine.name()),
        Answer::NotYet(why) => format!("{why}; it may be starting or busy"),
        Answer::Other(why) => why.clone(),
        Answer::NotAsked(why) => format!("not asked: {why}"),
    }
}
