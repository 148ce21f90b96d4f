//! What was observed on the machine: who computes on which GPU, who is whose child, who listens where. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Addresses by which one socket of a container is tried.
const MOST_ADDRESSES: usize = 4;

/// One look at the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    /// The GPUs and the processes that compute on each, by the driver's list.
    pub gpus: Vec<GpuProcesses>,
    /// The processes that can be seen, by id.
    pub processes: BTreeMap<u32, Process>,
    /// The listening sockets of processes that may belong to a server.
    pub sockets: Vec<Socket>,
    /// The network namespace that agft is in.
    pub netns: Option<u64>,
    /// The addresses of each namespace, loopback included.
    pub(crate) addresses: BTreeMap<u64, Vec<IpAddr>>,
}

/// A GPU and the processes that compute on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GpuProcesses {
    /// `GPU-...`.
    pub uuid: String,
    /// Process ids, as the driver has them.
    pub pids: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Process {
    /// Its parent.
    pub parent: u32,
    /// When it started, in the kernel's ticks since boot: tells apart two processes with one id.
    pub start: u64,
    /// Its short name.
    pub name: String,
    /// Its control group, unless that is the root.
    pub(crate) cgroup: Option<String>,
    /// Its network namespace, if that may be known.
    pub netns: Option<u64>,
    /// Its open files were asked for and may not be seen.
    pub hidden: bool,
    /// For Docker's proxy of a published port: from which address to which.
    pub leads: Option<(SocketAddr, SocketAddr)>,
}

/// A listening TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Socket {
    /// The socket's inode, unique on the machine as long as the socket is open.
    pub(crate) inode: u64,
    /// The network namespace it is in.
    pub netns: u64,
    /// The address it listens at.
    pub listens: SocketAddr,
    /// The processes that hold it.
    pub(crate) owners: BTreeSet<u32>,
}

impl Facts {
    /// The processes that compute, and the GPUs of each.
    pub(crate) fn computing(&self) -> BTreeMap<u32, BTreeSet<&str>> {
        let mut computing = BTreeMap::<u32, BTreeSet<&str>>::new();
        for gpu in &self.gpus {
            for pid in &gpu.pids {
                computing.entry(*pid).or_default().insert(&gpu.uuid);
            }
        }
        computing
    }

    /// The addresses at which agft reaches the socket, the best first.
    /// Errors: The reason, if agft cannot reach the socket. Only addresses of this machine are returned.
    pub(crate) fn reach(&self, socket: &Socket) -> Result<Vec<SocketAddr>, &'static str> {
        let (ip, port) = (socket.listens.ip(), socket.listens.port());
        let its_own = self.addresses.get(&socket.netns).map_or(&[][..], Vec::as_slice);
        let found: Vec<IpAddr> = if self.netns == Some(socket.netns) {
            let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
            match ip {
                IpAddr::V4(any) if any.is_unspecified() => vec![v4],
                // Most such sockets take IPv4 too, and a machine may have no ::1.
                IpAddr::V6(any) if any.is_unspecified() => vec![v4, v6],
                ip if ip.is_loopback() || its_own.contains(&ip) => vec![ip],
                _ => return Err("not an address of this machine"),
            }
        } else {
            let outer = its_own.iter().copied().filter(|one| !one.is_loopback());
            match ip {
                ip if ip.is_loopback() => return Err("on the loopback of another network namespace"),
                ip if !ip.is_unspecified() => outer.filter(|one| *one == ip).collect(),
                // A socket of IPv6 takes both families, one of IPv4 its own.
                ip => outer.filter(|one| ip.is_ipv6() || one.is_ipv4()).take(MOST_ADDRESSES).collect(),
            }
        };
        if found.is_empty() {
            return Err("in another network namespace, whose addresses are not known");
        }
        Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_machines_own_or_the_containers_and_never_outside() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let facts = Facts {
            netns: Some(1),
            addresses: BTreeMap::from([
                (1, vec![ip("127.0.0.1"), ip("192.0.2.2")]),
                (2, vec![ip("127.0.0.1"), ip("172.17.0.2"), ip("fd00::2")]),
            ]),
            ..Facts::default()
        };
        let reach = |netns, listens: &str| {
            let listens = listens.parse().unwrap();
            let found = facts.reach(&Socket { inode: 1, netns, listens, owners: BTreeSet::new() });
            found.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        for (netns, listens, wanted) in [
            (1, "0.0.0.0:8000", "127.0.0.1:8000"),
            (1, "[::]:8000", "127.0.0.1:8000 [::1]:8000"),
            (1, "127.0.0.5:8000", "127.0.0.5:8000"),
            (1, "192.0.2.2:8000", "192.0.2.2:8000"),
            (2, "0.0.0.0:8000", "172.17.0.2:8000"),
            (2, "[::]:8000", "172.17.0.2:8000 [fd00::2]:8000"),
            (2, "172.17.0.2:8000", "172.17.0.2:8000"),
        ] {
            assert_eq!(reach(netns, listens).as_deref(), Ok(wanted), "{netns} {listens}");
        }
        for (netns, listens) in
            [(1, "203.0.113.9:80"), (2, "127.0.0.1:8000"), (2, "203.0.113.9:80"), (3, "0.0.0.0:80")]
        {
            assert!(reach(netns, listens).is_err(), "{netns} {listens}");
        }
    }
}
