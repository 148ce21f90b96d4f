//! The connections that are open now, as the kernel's own tables have them: at the start, to set right what events
//! missed, and as the only source where there are no events.
//!
//! This process's network namespace is asked over netlink. That of others (containers) is read through `/proc/PID/net`
//! of one process in each.

mod proc;
mod sock_diag;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) use proc::listening;

use super::ledger::{Connection, Snapshot};
use super::state::TcpState;

/// A list of processes by namespace is good for this long; one that proves wrong is made anew at once.
const NAMESPACES_GOOD_FOR: Duration = Duration::from_secs(5);

/// Inode of the first PID namespace, the same on every Linux: who is in it sees all processes of the machine.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The namespaces whose tables are read, and how to get at each.
#[derive(Debug)]
pub(super) struct Tables {
    own: u32,
    /// The only namespace that counts, if one was chosen.
    chosen: Option<PathBuf>,
    /// A process in each other namespace.
    holders: BTreeMap<u32, u32>,
    complete: bool,
    listed: Option<Instant>,
}

impl Tables {
    /// For the namespace behind `chosen` (as `/run/netns/NAME` or `/proc/PID/ns/net`), or for all there are.
    pub(super) fn new(chosen: Option<PathBuf>) -> io::Result<Self> {
        let own = namespace(Path::new("/proc/self/ns/net"))?;
        let tables = Self { own, chosen, holders: BTreeMap::new(), complete: false, listed: None };
        if let Some(path) = &tables.chosen {
            namespace(path)?;
        }
        Ok(tables)
    }

    /// Inode of the namespace that was chosen; it may be another one after a container's restart.
    pub(super) fn chosen(&self) -> Option<u32> {
        self.chosen.as_ref().map(|path| namespace(path).unwrap_or(0))
    }

    /// The open connections of each port.
    /// Errors: Not even the table of this process's namespace can be read.
    pub(super) fn read(&mut self, ports: &[u16], now: Instant) -> io::Result<BTreeMap<u16, Snapshot>> {
        let chosen = self.chosen();
        let mut snapshots: BTreeMap<u16, Snapshot> =
            ports.iter().map(|port| (*port, Snapshot::default())).collect();
        if chosen.is_none_or(|chosen| chosen == self.own) {
            self.read_own(&mut snapshots)?;
        }
        if chosen != Some(self.own) {
            let fresh = self.listed.is_some_and(|listed| now.duration_since(listed) < NAMESPACES_GOOD_FOR);
            if !fresh || !self.read_others(chosen, &mut snapshots) {
                self.list(now);
                self.read_others(chosen, &mut snapshots);
            }
        }
        for snapshot in snapshots.values_mut() {
            // What is not in the chosen namespace does not count, whatever can be seen of it.
            snapshot.complete =
                chosen.map_or(self.complete, |chosen| snapshot.namespaces.contains(&chosen) || self.complete);
        }
        Ok(snapshots)
    }

    /// Who listens at each port: network namespace and address of each socket, in the namespaces that can be read.
    pub(super) fn listeners(&mut self, ports: &[u16], now: Instant) -> BTreeMap<u16, Vec<(u32, IpAddr)>> {
        let chosen = self.chosen();
        if self.listed.is_none() && chosen != Some(self.own) {
            self.list(now);
        }
        let places =
            self.holders.iter().map(|(netns, pid)| (*netns, PathBuf::from(format!("/proc/{pid}/net"))));
        let places = places.chain([(self.own, PathBuf::from("/proc/self/net"))]);
        let mut found: BTreeMap<u16, Vec<(u32, IpAddr)>> =
            ports.iter().map(|port| (*port, Vec::new())).collect();
        for (netns, net) in places.filter(|(netns, _)| chosen.is_none_or(|chosen| chosen == *netns)) {
            for (local, _) in sockets(&net, TcpState::Listen).unwrap_or_default() {
                if let Some(found) = found.get_mut(&local.port()) {
                    found.push((netns, local.ip()));
                }
            }
        }
        found
    }

    fn read_own(&self, snapshots: &mut BTreeMap<u16, Snapshot>) -> io::Result<()> {
        for (port, snapshot) in snapshots.iter_mut() {
            // Where netlink is not to be had (a sandbox), the table is in /proc all the same.
            let ends = match sock_diag::sockets(TcpState::Established, *port) {
                Ok(ends) => ends,
                Err(_) => sockets(Path::new("/proc/self/net"), TcpState::Established)?
                    .into_iter()
                    .filter(|(local, _)| local.port() == *port)
                    .collect(),
            };
            let netns = self.own;
            snapshot.open.extend(ends.into_iter().map(|(local, remote)| Connection { netns, local, remote }));
            snapshot.namespaces.insert(netns);
        }
        Ok(())
    }

    /// Reads the tables of other namespaces; false if a process has gone in the meantime.
    fn read_others(&self, chosen: Option<u32>, snapshots: &mut BTreeMap<u16, Snapshot>) -> bool {
        let mut all = true;
        for (&netns, pid) in &self.holders {
            if chosen.is_some_and(|chosen| chosen != netns) {
                continue;
            }
            let process = PathBuf::from(format!("/proc/{pid}"));
            let ends = sockets(&process.join("net"), TcpState::Established);
            // Asked after reading: the number may be another process's by now.
            match (ends, namespace(&process.join("ns/net"))) {
                (Ok(ends), Ok(still)) if still == netns => {
                    for snapshot in snapshots.values_mut() {
                        snapshot.namespaces.insert(netns);
                    }
                    for (local, remote) in ends {
                        if let Some(snapshot) = snapshots.get_mut(&local.port()) {
                            snapshot.open.insert(Connection { netns, local, remote });
                        }
                    }
                }
                _ => all = false,
            }
        }
        all
    }

    /// Finds a process in each namespace.
    fn list(&mut self, now: Instant) {
        self.holders.clear();
        self.listed = Some(now);
        let pid_namespace = fs::metadata("/proc/self/ns/pid").map(|file| file.ino());
        // A /proc that hides other users' processes (hidepid, ProtectProc=) hides this one too.
        let all_visible = namespace(Path::new("/proc/1/ns/net")).is_ok();
        self.complete = all_visible && pid_namespace.is_ok_and(|inode| inode == FIRST_PID_NAMESPACE);
        let Ok(processes) = fs::read_dir("/proc") else {
            self.complete = false;
            return;
        };
        let mut known = BTreeSet::from([self.own]);
        for process in processes.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match namespace(&process.path().join("ns/net")) {
                Ok(netns) => {
                    if known.insert(netns) {
                        self.holders.insert(netns, pid);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.complete = false,
                // It has ended.
                Err(_) => {}
            }
        }
    }
}

/// Inode number of the network namespace behind a path; the kernel's own structures have it with 32 bits.
fn namespace(path: &Path) -> io::Result<u32> {
    let inode = fs::metadata(path)?.ino();
    u32::try_from(inode).map_err(|_| io::Error::other("not a network namespace"))
}

/// Both ends of each socket in this state in `net/tcp` and `net/tcp6` of this directory.
fn sockets(net: &Path, state: TcpState) -> io::Result<Vec<(SocketAddr, SocketAddr)>> {
    let mut ends = Vec::new();
    for table in ["tcp", "tcp6"] {
        match fs::read_to_string(net.join(table)) {
            Ok(table) => ends.extend(
                proc::sockets(&table)
                    .filter(|(_, _, its)| *its == state)
                    .map(|(local, remote, _)| (local, remote)),
            ),
            // IPv6 is switched off.
            Err(error) if table == "tcp6" && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netlink_and_proc_say_the_same_of_this_namespace() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = listener.local_addr().expect("an address");
        let clients: Vec<_> =
            (0..3).map(|_| std::net::TcpStream::connect(server).expect("a connection")).collect();
        let mut asked = sock_diag::sockets(TcpState::Established, server.port()).expect("an answer");
        let mut read = sockets(Path::new("/proc/self/net"), TcpState::Established).expect("a table");
        read.retain(|(local, _)| local.port() == server.port());
        asked.sort_unstable();
        read.sort_unstable();
        // A table that changes while it is read can show a socket twice; whoever reads it makes a set of it.
        read.dedup();
        assert_eq!((asked.len(), &asked), (clients.len(), &read));
    }

    #[test]
    fn the_chosen_namespace_alone_is_read_and_stands_for_all() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = listener.local_addr().expect("an address");
        let _client = std::net::TcpStream::connect(server).expect("a connection");
        let mut tables = Tables::new(Some("/proc/self/ns/net".into())).expect("this namespace");
        let snapshots = tables.read(&[server.port()], Instant::now()).expect("a reading");
        let snapshot = snapshots.get(&server.port()).expect("the port");
        assert_eq!((snapshot.open.len(), snapshot.complete), (1, true));
        assert_eq!(snapshot.namespaces, BTreeSet::from([tables.own]));
    }
}
