//! Connection events from the kernel: `bpf/connections.bpf.c`, loaded and attached. The only file that names aya.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{HashMap, Map, MapData, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader, include_bytes_aligned};

use super::ledger::Connection;
use super::memory;
use super::state::{Effect, TcpState, effect};

static OBJECT: &[u8] = include_bytes_aligned!("../../bpf/connections.bpf.o");
/// Name of the function in the object.
const PROGRAM: &str = "inet_sock_set_state";
const TRACEPOINT: &str = "inet_sock_set_state";
const TYPES: &str = "/sys/kernel/btf/vmlinux";

/// Bits in the kernel's capability masks.
const CAPABILITIES: [(u32, &str); 2] = [(39, "CAP_BPF"), (38, "CAP_PERFMON")];
const CAP_SYS_ADMIN: u32 = 21;

/// The program, attached; it goes with this value.
pub(super) struct KernelEvents {
    bpf: Ebpf,
    ring: RingBuf<MapData>,
    ports: HashMap<MapData, u16, u64>,
}

impl KernelEvents {
    /// Loads and attaches the program.
    ///
    /// # Errors
    /// Why there are no events here, in plain words and with what would help.
    pub(super) fn attach(ports: &[u16], ring_bytes: u32) -> Result<Self, String> {
        let loaded = Self::load(ports, ring_bytes);
        // The kernel's types take 35 MB while they are read; the allocator would keep them.
        memory::give_back();
        loaded.map_err(|error| diagnose(&error))
    }

    fn load(ports: &[u16], ring_bytes: u32) -> anyhow::Result<Self> {
        // Kernels before 5.11 take maps from the locked memory a process may have.
        let all = rustix::process::Rlimit { current: None, maximum: None };
        let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, all);

        let types = Btf::from_sys_fs()?;
        let mut bpf =
            EbpfLoader::new().btf(Some(&types)).map_max_entries("events", ring_bytes).load(OBJECT)?;
        let mut counted = HashMap::try_from(take(&mut bpf, "ports")?)?;
        for port in ports {
            counted.insert(port, 0, 0)?;
        }
        let ring = RingBuf::try_from(take(&mut bpf, "events")?)?;
        let program: &mut BtfTracePoint =
            bpf.program_mut(PROGRAM).ok_or_else(|| missing(PROGRAM))?.try_into()?;
        program.load(TRACEPOINT, &types)?;
        program.attach()?;
        Ok(Self { bpf, ring, ports: counted })
    }

    /// The next change of a connection, if there is one by now.
    pub(super) fn next(&mut self) -> Option<(Connection, Effect)> {
        while let Some(record) = self.ring.next() {
            if let Some(change) = decode(&record) {
                return Some(change);
            }
        }
        None
    }

    /// How many events of this port found the ring full.
    pub(super) fn lost(&self, port: u16) -> u64 {
        self.ports.get(&port, 0).unwrap_or(0)
    }

    /// Readable when there are events.
    pub(super) fn readable(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Takes the program off its tracepoint and leaves everything else, as trouble would.
    pub(super) fn detach(&mut self) {
        let program = self.bpf.program_mut(PROGRAM).map(TryInto::<&mut BtfTracePoint>::try_into);
        if let Some(Ok(program)) = program {
            let _ = program.unload();
        }
    }
}

fn take(bpf: &mut Ebpf, map: &str) -> anyhow::Result<Map> {
    bpf.take_map(map).ok_or_else(|| missing(map))
}

fn missing(what: &str) -> anyhow::Error {
    anyhow::anyhow!("the object has no {what}")
}

/// `struct record` of connections.bpf.c.
fn decode(record: &[u8]) -> Option<(Connection, Effect)> {
    let record: &[u8; 48] = record.try_into().ok()?;
    let ip = |at: usize| {
        let octets = <[u8; 16]>::try_from(record.get(at..at + 16)?).ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
    };
    let port = |at: usize| Some(u16::from_ne_bytes(record.get(at..at + 2)?.try_into().ok()?));
    let connection = Connection {
        local: SocketAddr::new(ip(0)?, port(32)?),
        remote: SocketAddr::new(ip(16)?, port(34)?),
        netns: u32::from_ne_bytes(record.get(36..40)?.try_into().ok()?),
    };
    let (old, new) = (TcpState::from_kernel(record[40])?, TcpState::from_kernel(record[41])?);
    Some((connection, effect(old, new)))
}

/// Why the kernel refused, from what can be known without asking it again.
fn diagnose(error: &anyhow::Error) -> String {
    if fs::metadata(TYPES).is_err() {
        return format!(
            "this kernel has no type information ({TYPES}); use one built with CONFIG_DEBUG_INFO_BTF, as those of \
             distributions since 2021 are"
        );
    }
    let missing = missing_capabilities();
    if !missing.is_empty() {
        return format!(
            "not permitted ({} missing); run as root, or grant CAP_BPF and CAP_PERFMON",
            missing.join(" and ")
        );
    }
    if fs::read_to_string("/sys/kernel/security/lockdown")
        .is_ok_and(|mode| mode.contains("[confidentiality]"))
    {
        return "the kernel is locked down (mode confidentiality) and lets no program read its memory; boot with \
                lockdown=integrity or none"
            .to_owned();
    }
    format!(
        "{}; needed is Linux 5.8 or newer with BPF, and a sandbox that lets bpf(2) through",
        causes(error)
    )
}

/// The error with its causes, on one line: the verifier's log may have hundreds.
fn causes(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let line = text.split('\n').next().unwrap_or_default();
    line.chars().take(200).collect()
}

/// What this process lacks of what the program takes; nothing if the kernel does not say.
fn missing_capabilities() -> Vec<&'static str> {
    let mask = fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    match mask {
        Some(mask) if mask >> CAP_SYS_ADMIN & 1 == 0 => {
            CAPABILITIES.iter().filter(|(bit, _)| mask >> bit & 1 == 0).map(|(_, name)| *name).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_record_is_read_as_the_program_writes_it(
            local: [u8; 16], remote: [u8; 4], ports: (u16, u16), netns: u32, old in 1_u8..=12, new in 1_u8..=12,
        ) {
            let mapped = std::net::Ipv4Addr::from(remote).to_ipv6_mapped();
            let mut record = Vec::new();
            record.extend_from_slice(&local);
            record.extend_from_slice(&mapped.octets());
            record.extend_from_slice(&ports.0.to_ne_bytes());
            record.extend_from_slice(&ports.1.to_ne_bytes());
            record.extend_from_slice(&netns.to_ne_bytes());
            record.extend_from_slice(&[old, new, 0, 0, 0, 0, 0, 0]);
            let (connection, change) = decode(&record).expect("a record");
            let local = IpAddr::V6(Ipv6Addr::from(local)).to_canonical();
            prop_assert_eq!(connection.local, SocketAddr::new(local, ports.0));
            prop_assert_eq!(connection.remote, SocketAddr::from((remote, ports.1)));
            prop_assert_eq!(connection.netns, netns);
            let states = (TcpState::from_kernel(old).expect("old"), TcpState::from_kernel(new).expect("new"));
            prop_assert_eq!(change, effect(states.0, states.1));
        }

        #[test]
        fn any_record_is_survived(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
