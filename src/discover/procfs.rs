//! Reads processes and their sockets from `/proc`, or from a tree of the same form.
//!
//! What ends while it is read, and what may not be seen, is left out; the latter is marked. Command lines are
//! not read, as they may hold keys, but for that of Docker's proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::candidates::of_interest;
use super::facts::{Facts, GpuProcesses, Process, Socket};
use crate::connections::listening;

/// Inode of the first PID namespace, the same on every Linux.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// A tree like `/proc`.
#[derive(Debug, Clone)]
pub struct Procfs {
    root: PathBuf,
}

impl Default for Procfs {
    fn default() -> Self {
        Self::at("/proc")
    }
}

impl Procfs {
    /// The tree at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Is agft where the driver's process ids are valid, in the first PID namespace?
    pub(crate) fn has_host_pids(&self) -> bool {
        let namespace = fs::read_link(self.root.join("self/ns/pid"));
        namespace.is_ok_and(|target| target == Path::new(FIRST_PID_NAMESPACE))
    }

    /// The facts for these GPUs.
    /// Errors: The list of processes cannot be read at all.
    pub(crate) fn facts(&self, gpus: Vec<GpuProcesses>) -> io::Result<Facts> {
        let mut facts = Facts { gpus, processes: self.processes()?, ..Facts::default() };
        facts.netns = namespace(&self.root.join("self/ns/net")).ok();
        let computing = facts.computing().into_keys().collect();
        let mut owners = BTreeMap::<u64, BTreeSet<u32>>::new();
        let mut holders = BTreeMap::<u64, u32>::new();
        for pid in of_interest(&facts.processes, &computing) {
            let Some(process) = facts.processes.get_mut(&pid) else { continue };
            let place = self.root.join(pid.to_string());
            // Asking may be refused at the list, or at each entry of it.
            match (namespace(&place.join("ns/net")), sockets_of(&place)) {
                (Ok(netns), Ok(inodes)) => {
                    process.netns = Some(netns);
                    inodes.into_iter().for_each(|inode| {
                        owners.entry(inode).or_default().insert(pid);
                    });
                }
                (Err(error), _) | (_, Err(error)) => {
                    process.hidden = error.kind() == io::ErrorKind::PermissionDenied;
                }
            }
            // Asked after reading: the id may be another process's by now.
            let still = self.process(pid).is_some_and(|now| now.start == process.start);
            if !still {
                facts.processes.remove(&pid);
                continue;
            }
            if let Some(netns) = process.netns {
                holders.entry(netns).or_insert(pid);
            }
        }
        for (netns, pid) in holders {
            let net = self.root.join(pid.to_string()).join("net");
            for (listens, inode) in ["tcp", "tcp6"].into_iter().flat_map(|table| listeners(&net.join(table)))
            {
                if let Some(owners) = owners.get(&inode) {
                    facts.sockets.push(Socket { inode, netns, listens, owners: owners.clone() });
                }
            }
            facts.addresses.insert(netns, addresses(&net));
        }
        // An id given anew while its sockets were read.
        for socket in &mut facts.sockets {
            socket.owners.retain(|owner| facts.processes.contains_key(owner));
        }
        facts.sockets.retain(|socket| !socket.owners.is_empty());
        Ok(facts)
    }

    fn processes(&self) -> io::Result<BTreeMap<u32, Process>> {
        let ids = fs::read_dir(&self.root)?.flatten();
        let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        Ok(ids.filter_map(|pid| Some((pid, self.process(pid)?))).collect())
    }

    fn process(&self, pid: u32) -> Option<Process> {
        let place = self.root.join(pid.to_string());
        let mut process = parse_stat(&fs::read_to_string(place.join("stat")).ok()?)?;
        process.cgroup = fs::read_to_string(place.join("cgroup")).ok().and_then(|text| parse_cgroup(&text));
        if process.name == "docker-proxy" {
            process.leads = fs::read(place.join("cmdline")).ok().and_then(|text| parse_proxy(&text));
        }
        Some(process)
    }
}

/// Inode behind a link like `net:[4026531840]`.
fn namespace(link: &Path) -> io::Result<u64> {
    let target = fs::read_link(link)?;
    let inode = target.to_str().and_then(|target| bracketed(target, "net:["));
    inode.ok_or_else(|| io::Error::other("not a network namespace"))
}

fn bracketed(text: &str, before: &str) -> Option<u64> {
    text.strip_prefix(before)?.strip_suffix(']')?.parse().ok()
}

/// Inodes of the sockets that a process has open.
fn sockets_of(process: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for file in fs::read_dir(process.join("fd"))?.flatten() {
        match fs::read_link(file.path()) {
            Ok(target) => found.extend(target.to_str().and_then(|target| bracketed(target, "socket:["))),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            // Closed meanwhile.
            Err(_) => {}
        }
    }
    Ok(found)
}

/// Local address and inode of each listening socket of a table; none where the table is not there.
fn listeners(table: &Path) -> Vec<(SocketAddr, u64)> {
    fs::read_to_string(table).map(|table| listening(&table).collect()).unwrap_or_default()
}

/// The addresses of a network namespace.
fn addresses(net: &Path) -> Vec<IpAddr> {
    let v4 = fs::read_to_string(net.join("fib_trie")).map(|text| parse_fib_trie(&text)).unwrap_or_default();
    let v6 = fs::read_to_string(net.join("if_inet6")).map(|text| parse_if_inet6(&text)).unwrap_or_default();
    v4.into_iter().map(IpAddr::from).chain(v6.into_iter().map(IpAddr::from)).collect()
}

/// `4242 (a name) S 1 ...`: the name may hold anything, so its end is the last parenthesis.
fn parse_stat(text: &str) -> Option<Process> {
    let (head, rest) = text.rsplit_once(") ")?;
    let (_, name) = head.split_once(" (")?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    // A zombie has nothing open.
    (state != "Z").then(|| Process { parent, start, name: name.to_owned(), ..Process::default() })
}

/// The control group: that of version 2, or systemd's, or the first that is not the root.
fn parse_cgroup(text: &str) -> Option<String> {
    let groups = || {
        text.lines().filter_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            (path != "/").then_some((controllers, path))
        })
    };
    let main = groups().find(|(controllers, _)| matches!(*controllers, "" | "name=systemd"));
    main.or_else(|| groups().next()).map(|(_, path)| path.to_owned())
}

/// The local addresses in a routing trie: below each `|-- ADDRESS` a line `/32 host LOCAL`.
fn parse_fib_trie(text: &str) -> Vec<Ipv4Addr> {
    let mut found = BTreeSet::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(last);
        }
    }
    found.into_iter().collect()
}

/// `fd000000000000000000000000000002 04 40 00 82 eth0`; those that need an interface's name beside them are
/// left out.
fn parse_if_inet6(text: &str) -> Vec<Ipv6Addr> {
    let addresses = text.lines().filter_map(|line| line.split_ascii_whitespace().next());
    let addresses =
        addresses.filter_map(|digits| Some(Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?)));
    addresses.filter(|address| !address.is_unicast_link_local()).collect()
}

/// From where to where `docker-proxy -host-ip A -host-port P -container-ip B -container-port Q` leads.
fn parse_proxy(cmdline: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let words: Vec<&str> =
        cmdline.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
    let after = |key: &str| {
        let at = words.iter().position(|word| word.trim_start_matches('-') == key)?;
        words.get(at + 1).copied()
    };
    let end =
        |ip: &str, port: &str| Some(SocketAddr::new(after(ip)?.parse().ok()?, after(port)?.parse().ok()?));
    Some((end("host-ip", "host-port")?, end("container-ip", "container-port")?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    /// A tree like `/proc`, with what the kernel writes in it.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            tree.file("cpuinfo", "");
            fs::create_dir_all(tree.path("self/ns")).unwrap();
            symlink("net:[1]", tree.path("self/ns/net")).unwrap();
            symlink("pid:[4026531836]", tree.path("self/ns/pid")).unwrap();
            tree
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn file(&self, name: &str, text: &str) {
            fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            fs::write(self.path(name), text).unwrap();
        }

        fn process(&self, pid: u32, parent: u32, name: &str, netns: u64, sockets: &[u64]) {
            let middle = "0 ".repeat(17);
            self.file(
                &format!("{pid}/stat"),
                &format!("{pid} ({name}) S {parent} {middle}{} 0 0\n", 100 + pid),
            );
            let group = if pid == 1 { "init.scope" } else { "system.slice/a.service" };
            self.file(&format!("{pid}/cgroup"), &format!("9:name=systemd:/\n0::/{group}\n"));
            fs::create_dir_all(self.path(&format!("{pid}/ns"))).unwrap();
            symlink(format!("net:[{netns}]"), self.path(&format!("{pid}/ns/net"))).unwrap();
            fs::create_dir_all(self.path(&format!("{pid}/fd"))).unwrap();
            for (at, target) in sockets.iter().map(|inode| format!("socket:[{inode}]")).enumerate() {
                symlink(target, self.path(&format!("{pid}/fd/{at}"))).unwrap();
            }
            symlink("/dev/null", self.path(&format!("{pid}/fd/99"))).unwrap();
        }

        fn facts(&self, pids: &[u32]) -> Facts {
            let gpu = GpuProcesses { uuid: "G0".to_owned(), pids: pids.to_vec() };
            Procfs::at(self.0.path()).facts(vec![gpu]).unwrap()
        }
    }

    const TCP: &str = "  sl  local_address rem_address   st
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 71 1 0 100 0 0 10 0
   1: 00000000:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 72 1 0 100 0 0 10 0
   2: 0100007F:1F40 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 73 1 0 20 4 30 10
";
    const FIB: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 172.17.0.0
        /16 link UNICAST
Local:
     |-- 172.17.0.2
        /32 host LOCAL
     |-- 172.17.255.255
        /32 link BROADCAST
";
    const INET6: &str = "00000000000000000000000000000001 01 80 10 80       lo\n\
         fd000000000000000000000000000002 04 40 00 82     eth0\n\
         fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n";

    #[test]
    fn processes_sockets_and_addresses_are_read_and_what_is_not_of_interest_is_not() {
        let tree = Tree::new();
        tree.process(1, 0, "systemd", 1, &[72]);
        tree.process(20, 1, "a (b) c", 2, &[71, 73]);
        tree.process(21, 20, "worker", 2, &[]);
        for (name, text) in [("tcp", TCP), ("fib_trie", FIB), ("if_inet6", INET6)] {
            tree.file(&format!("20/net/{name}"), text);
        }
        // One that has ended meanwhile, and a number that is no process.
        fs::create_dir(tree.path("30")).unwrap();
        let facts = tree.facts(&[21, 99]);
        assert_eq!(
            (facts.netns, facts.processes.keys().copied().collect::<Vec<_>>()),
            (Some(1), vec![1, 20, 21])
        );
        let parent = &facts.processes[&20];
        assert_eq!((parent.name.as_str(), parent.parent, parent.start), ("a (b) c", 1, 120));
        assert_eq!(parent.cgroup.as_deref(), Some("/system.slice/a.service"));
        let socket = Socket {
            inode: 71,
            netns: 2,
            listens: "127.0.0.1:8000".parse().unwrap(),
            owners: BTreeSet::from([20]),
        };
        assert_eq!(facts.sockets, [socket]);
        let ips: Vec<String> = facts.addresses[&2].iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["172.17.0.2", "::1", "fd00::2"]);
        assert!(Procfs::at(tree.0.path()).has_host_pids());
    }

    #[test]
    fn the_proxy_of_a_published_port_tells_where_it_leads_and_no_other_command_line_is_read() {
        let tree = Tree::new();
        let words =
            ["docker-proxy", "-host-ip", "0.0.0.0", "-host-port", "80", "-container-ip", "172.17.0.2"];
        let words = [&words[..], &["-container-port", "8000", ""]].concat().join("\0");
        for (pid, name) in [(20, "docker-proxy"), (21, "vllm")] {
            tree.process(pid, 1, name, 1, &[]);
            tree.file(&format!("{pid}/cmdline"), &words);
        }
        let facts = tree.facts(&[]);
        let leads = Some(("0.0.0.0:80".parse().unwrap(), "172.17.0.2:8000".parse().unwrap()));
        assert_eq!((facts.processes[&20].leads, facts.processes[&21].leads), (leads, None));
        assert_eq!(parse_proxy(b"docker-proxy\0-host-ip\0x"), None);
    }

    #[test]
    fn zombies_and_torn_lines_are_no_processes() {
        let stat = |state: &str| format!("7 (x) {state} 1 {}42 0", "0 ".repeat(17));
        assert_eq!(parse_stat(&stat("S")).map(|process| process.start), Some(42));
        for none in [stat("Z"), "7 (x) S 1 0".to_owned(), "7 x S".to_owned(), String::new()] {
            assert_eq!(parse_stat(&none), None, "{none:?}");
        }
    }

    #[test]
    fn the_group_is_that_of_a_service_whichever_version_has_it() {
        for (text, group) in [
            ("0::/a\n", Some("/a")),
            ("9:name=systemd:/\n4:memory:/m/n\n0::/\n", Some("/m/n")),
            ("4:memory:/m\n1:name=systemd:/s:t\n", Some("/s:t")),
            ("0::/\n", None),
            ("nonsense", None),
        ] {
            assert_eq!(parse_cgroup(text).as_deref(), group, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text: String, bytes: Vec<u8>) {
            let _ = (parse_stat(&text), parse_cgroup(&text), parse_fib_trie(&text), parse_if_inet6(&text));
            let _ = (parse_proxy(&bytes), bracketed(&text, "net:["));
        }
    }

    #[test]
    fn this_process_is_found_with_a_socket_of_its_own() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let us = std::process::id();
        let gpu = GpuProcesses { uuid: "G0".to_owned(), pids: vec![us] };
        let facts = Procfs::default().facts(vec![gpu]).unwrap();
        let at = listener.local_addr().unwrap();
        assert!(facts.sockets.iter().any(|socket| socket.listens == at && socket.owners.contains(&us)));
        assert!(facts.netns.is_some() && !facts.processes[&us].hidden);
    }
}
