//! From the facts to what may be a server: processes that compute and belong together, and where they listen.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::facts::{Facts, Process, Socket};
use super::tree::{is_of_one_service, lineage};

/// Ports from here on are mostly given by the kernel: what a server's own processes talk over.
const EPHEMERAL: u16 = 32_768;

/// Processes that compute and may be one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The name of the process at the top, for humans.
    pub name: String,
    /// The process at the top.
    pub top: u32,
    /// The processes that compute.
    pub pids: BTreeSet<u32>,
    /// UUIDs of the GPUs they compute on.
    pub gpus: BTreeSet<String>,
    /// Where they listen, in the order in which a metrics page is looked for.
    pub(crate) addresses: Vec<Address>,
    /// Sockets of some of its processes could not be seen.
    pub hidden: bool,
}

/// A socket at which a page may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// Inode of the socket.
    pub socket: u64,
    /// Where it listens.
    pub listens: SocketAddr,
    /// The addresses to try, the best first, or why there are none.
    pub reach: Result<Vec<SocketAddr>, &'static str>,
    /// The processes that hold it.
    pub(crate) owners: BTreeSet<u32>,
    /// Not of the candidate's own tree, but of a process beside it that computes nothing.
    pub beside: bool,
}

/// What is known before a page is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Candidates {
    /// Those that may be servers.
    pub candidates: Vec<Candidate>,
    /// Processes that the driver names and the machine does not have, or does not show.
    pub unknown: BTreeSet<u32>,
}

/// The processes whose sockets are of interest: those that compute, what belongs to them, and what shares a
/// service or a container with them.
pub(crate) fn of_interest(processes: &BTreeMap<u32, Process>, computing: &BTreeSet<u32>) -> BTreeSet<u32> {
    let tops: BTreeSet<u32> =
        computing.iter().filter_map(|pid| lineage(processes, *pid).last().copied()).collect();
    let services: BTreeSet<&str> = computing.iter().filter_map(|pid| service(processes, *pid)).collect();
    let of_interest = processes.iter().filter(|(pid, process)| {
        let service = process.cgroup.as_deref().is_some_and(|cgroup| services.contains(cgroup));
        service || lineage(processes, **pid).iter().any(|one| tops.contains(one))
    });
    of_interest.map(|(pid, _)| *pid).collect()
}

/// The control group of a process, if it is that of one service or container.
fn service(processes: &BTreeMap<u32, Process>, pid: u32) -> Option<&str> {
    processes.get(&pid)?.cgroup.as_deref().filter(|cgroup| is_of_one_service(cgroup))
}

/// Groups the processes that compute.
///
/// A group's top is the highest ancestor that listens: an engine's API server stands above its workers, some
/// of which listen too, for one another. Where no ancestor listens, the highest one is it.
pub(crate) fn candidates(facts: &Facts) -> Candidates {
    let computing = facts.computing();
    let listening: BTreeSet<u32> =
        facts.sockets.iter().flat_map(|socket| socket.owners.iter().copied()).collect();
    let mut tops = BTreeMap::new();
    for pid in computing.keys() {
        let way = lineage(&facts.processes, *pid);
        if let Some(top) = way.iter().rev().find(|one| listening.contains(one)).or(way.last()) {
            tops.insert(*pid, *top);
        }
    }
    // One top above another: one group, whose pages will tell whether it is several servers.
    let all: BTreeSet<u32> = tops.values().copied().collect();
    let highest = |top: u32| {
        let way = lineage(&facts.processes, top);
        way.into_iter().rev().find(|one| all.contains(one)).unwrap_or(top)
    };
    let mut groups = BTreeMap::<u32, BTreeSet<u32>>::new();
    for (pid, top) in &tops {
        groups.entry(highest(*top)).or_default().insert(*pid);
    }
    let of_group: BTreeMap<u32, u32> = facts
        .processes
        .keys()
        .filter_map(|pid| {
            let way = lineage(&facts.processes, *pid);
            Some((*pid, way.into_iter().rev().find(|one| groups.contains_key(one))?))
        })
        .collect();
    let made = groups.iter().map(|(top, pids)| {
        let gpus = pids.iter().flat_map(|pid| computing.get(pid).into_iter().flatten());
        let process = facts.processes.get(top);
        let members = of_group.iter().filter(|(_, its_top)| *its_top == top).map(|(pid, _)| pid);
        let seen = |pid: &u32| facts.processes.get(pid).is_some_and(|process| process.hidden);
        Candidate {
            name: process.map_or_else(String::new, |process| process.name.clone()),
            top: *top,
            pids: pids.clone(),
            gpus: gpus.map(|uuid| (*uuid).to_owned()).collect(),
            addresses: addresses(facts, *top, pids, &of_group),
            hidden: members.chain([top]).any(seen),
        }
    });
    let unknown = computing.keys().filter(|pid| !tops.contains_key(pid)).copied().collect();
    Candidates { candidates: made.collect(), unknown }
}

/// The sockets at which the page of a group may be. Those of workers, which compute and have a parent, come
/// last, and at ports that the kernel gave are not asked at all: they are an engine's own lines, on which
/// nobody else should talk.
fn addresses(facts: &Facts, top: u32, pids: &BTreeSet<u32>, of_group: &BTreeMap<u32, u32>) -> Vec<Address> {
    let way = lineage(&facts.processes, top);
    let is_beside = |socket: &Socket| {
        let near = |owner: &u32| {
            let same_service = service(&facts.processes, *owner)
                .is_some_and(|cgroup| service(&facts.processes, top) == Some(cgroup));
            same_service || lineage(&facts.processes, *owner).last() == way.last()
        };
        socket.owners.iter().all(|owner| !of_group.contains_key(owner)) && socket.owners.iter().any(near)
    };
    let mut found: Vec<_> = facts
        .sockets
        .iter()
        .filter_map(|socket| {
            let own = socket.owners.iter().any(|owner| of_group.get(owner) == Some(&top));
            let beside = !own && is_beside(socket);
            if !own && !beside {
                return None;
            }
            let depths = socket.owners.iter().map(|owner| lineage(&facts.processes, *owner).len());
            let (depth, port) = (depths.min().unwrap_or(0), socket.listens.port());
            let of_worker = depth > 1 && socket.owners.iter().all(|owner| pids.contains(owner));
            let order = (of_worker, beside, depth, port >= EPHEMERAL, port, socket.listens);
            // While an engine loads its model, this is all there is of it.
            let is_inner = of_worker && port >= EPHEMERAL;
            let address = Address {
                socket: socket.inode,
                listens: socket.listens,
                reach: if is_inner { Err("a worker's own line, by its port") } else { facts.reach(socket) },
                owners: socket.owners.clone(),
                beside,
            };
            Some((order, address))
        })
        .collect();
    found.sort_by_key(|(order, _)| *order);
    found.into_iter().map(|(_, address)| address).collect()
}
