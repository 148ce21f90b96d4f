//! From the address of a metrics page to the GPUs of the process that listens there: `gpus: auto`. Pure.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::candidates::candidates;
use super::facts::{Facts, Socket};
use super::tree::lineage;

/// Why the GPUs behind an address are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unplaced {
    /// No process that computes, or belongs to one that does, listens there.
    #[error(
        "no process with work on a GPU listens at {0}; is the server running on this machine, and has it \
         loaded its model? Otherwise name its gpus"
    )]
    Nobody(String),
    /// Whoever listens there may not be seen.
    #[error(
        "who listens at {0} cannot be seen: run agft as root with the right CAP_SYS_PTRACE and the host's \
         processes in view, or name the server's gpus"
    )]
    Hidden(String),
}

/// UUIDs of the GPUs of the server that listens at one of these addresses, sorted.
pub(crate) fn gpus_behind(facts: &Facts, at: &[SocketAddr]) -> Result<Vec<String>, Unplaced> {
    // A port that Docker publishes is held by its proxy, which leads to the container's.
    let proxies = facts.processes.values().filter_map(|process| process.leads);
    let leads = proxies.filter(|(from, _)| at.iter().any(|at| is_at(*from, *at))).map(|(_, to)| to);
    let at: Vec<SocketAddr> = at.iter().copied().chain(leads).collect();
    let listens = |socket: &Socket| {
        let reached = facts.reach(socket).unwrap_or_default();
        let here = facts.netns == Some(socket.netns);
        at.iter().any(|at| reached.contains(at) || (here && is_at(socket.listens, *at)))
    };
    let sockets: Vec<&Socket> = facts.sockets.iter().filter(|socket| listens(socket)).collect();
    let owners: BTreeSet<u32> = sockets.iter().flat_map(|socket| socket.owners.iter().copied()).collect();
    let computing = facts.computing();
    let below = |pid: &u32| lineage(&facts.processes, *pid).iter().any(|one| owners.contains(one));
    let mut pids: BTreeSet<u32> = computing.keys().copied().filter(below).collect();
    let found = candidates(facts);
    if pids.is_empty() {
        let inodes: BTreeSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
        let beside = found
            .candidates
            .iter()
            .filter(|candidate| candidate.addresses.iter().any(|address| inodes.contains(&address.socket)));
        pids = beside.flat_map(|candidate| candidate.pids.iter().copied()).collect();
    }
    let gpus: BTreeSet<&str> = pids.iter().filter_map(|pid| computing.get(pid)).flatten().copied().collect();
    if !gpus.is_empty() {
        return Ok(gpus.into_iter().map(str::to_owned).collect());
    }
    let shown = at.first().map_or_else(|| "that address".to_owned(), ToString::to_string);
    let hidden = !found.unknown.is_empty() || found.candidates.iter().any(|candidate| candidate.hidden);
    Err(if hidden { Unplaced::Hidden(shown) } else { Unplaced::Nobody(shown) })
}

/// Does a socket bound to `bound` take connections to `at`, an address of its own namespace?
fn is_at(bound: SocketAddr, at: SocketAddr) -> bool {
    let any = bound.ip().is_unspecified() && (bound.is_ipv6() || at.is_ipv4());
    bound.port() == at.port() && (any || bound.ip() == at.ip())
}
