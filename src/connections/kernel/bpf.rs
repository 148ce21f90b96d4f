//! Connection events and requests by BPF: `bpf/connections.bpf.c`, loaded and attached. The only file that names aya.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{HashMap, Map, MapData, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader, Endianness, include_bytes_aligned};

use super::News;
use super::diagnose::{Facts, causes};
use crate::connections::ledger::Connection;
use crate::connections::state::{TcpState, effect};
use crate::connections::{WatchSettings, ignored, memory};

static OBJECT: &[u8] = include_bytes_aligned!("../../../bpf/connections.bpf.o");
/// Tracepoints, and the functions in the object that go on them.
const CHANGES: &str = "inet_sock_set_state";
const SEGMENTS: &str = "tcp_probe";

/// Kinds of records.
const STATE_CHANGED: u8 = 0;
const CLIENT_SENT: u8 = 1;

/// The programs, attached; they go with this value.
pub(in crate::connections) struct Programs {
    bpf: Ebpf,
    ring: RingBuf<MapData>,
    /// By port: lost events, and when a client was last said to have sent.
    ports: HashMap<MapData, u16, [u64; 2]>,
    /// `struct client` of connections.bpf.c.
    ignored: HashMap<MapData, [u8; 20], u8>,
    requests: bool,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Programs {{ requests: {} }}", self.requests)
    }
}

impl Programs {
    /// Loads and attaches the programs.
    /// Errors: Why there are no events here, in plain words and with what would help.
    pub(super) fn attach(settings: &WatchSettings) -> Result<Self, String> {
        let loaded = Self::load(settings);
        // The kernel's types take 35 MB while they are read; the allocator would keep them.
        memory::give_back();
        loaded.map_err(|error| Facts::gather(&settings.kernel_types).without_bpf(&causes(&error)))
    }

    fn load(settings: &WatchSettings) -> anyhow::Result<Self> {
        // Kernels before 5.11 take maps from the locked memory a process may have.
        let all = rustix::process::Rlimit { current: None, maximum: None };
        let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, all);

        let types = Btf::parse_file(&settings.kernel_types, Endianness::default())?;
        let most_ignored = u32::try_from(ignored::MOST * settings.ports.len().max(1))?;
        let mut bpf = EbpfLoader::new()
            .btf(Some(&types))
            .map_max_entries("events", settings.ring_bytes)
            .map_max_entries("ignored", most_ignored)
            .load(OBJECT)?;
        let mut ports = HashMap::try_from(take(&mut bpf, "ports")?)?;
        for port in &settings.ports {
            ports.insert(port, [0, 0], 0)?;
        }
        let ring = RingBuf::try_from(take(&mut bpf, "events")?)?;
        let ignored = HashMap::try_from(take(&mut bpf, "ignored")?)?;
        put_on(&mut bpf, CHANGES, &types)?;
        let requests = settings.requests
            && put_on(&mut bpf, SEGMENTS, &types)
                .inspect_err(|error| tracing::debug!("connections: tcp_probe: {}", causes(error)))
                .is_ok();
        Ok(Self { bpf, ring, ports, ignored, requests })
    }

    /// Are requests told of too?
    pub(super) fn tells_requests(&self) -> bool {
        self.requests
    }

    /// As [`KernelEvents::drain`](super::KernelEvents::drain).
    pub(super) fn drain(&mut self) -> Vec<News> {
        let mut all = Vec::new();
        while let Some(record) = self.ring.next() {
            all.extend(decode(&record));
        }
        all
    }

    /// How many changes of this port found the ring full.
    pub(super) fn lost(&self, port: u16) -> u64 {
        self.ports.get(&port, 0).map_or(0, |[lost, _]| lost)
    }

    /// Tells no more of what this client sends to this port, or tells again.
    pub(super) fn ignore(&mut self, client: SocketAddr, port: u16, ignore: bool) {
        let mut key = [0; 20];
        key[..16].copy_from_slice(&to_wire(client.ip()));
        key[16..18].copy_from_slice(&client.port().to_ne_bytes());
        key[18..].copy_from_slice(&port.to_ne_bytes());
        // Full it cannot be, and what is missing need not be removed; the reader passes such clients over itself.
        let _ = if ignore { self.ignored.insert(key, 1, 0) } else { self.ignored.remove(&key) };
    }

    /// Readable when there are events.
    pub(super) fn readable(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Takes the program off its tracepoint and leaves everything else, as trouble would.
    pub(super) fn detach(&mut self) {
        let program = self.bpf.program_mut(CHANGES).map(TryInto::<&mut BtfTracePoint>::try_into);
        if let Some(Ok(program)) = program {
            let _ = program.unload();
        }
    }
}

/// Puts the function on the tracepoint whose name it bears.
fn put_on(bpf: &mut Ebpf, tracepoint: &str, types: &Btf) -> anyhow::Result<()> {
    let program: &mut BtfTracePoint =
        bpf.program_mut(tracepoint).ok_or_else(|| missing(tracepoint))?.try_into()?;
    program.load(tracepoint, types)?;
    program.attach()?;
    Ok(())
}

/// As the program has addresses.
fn to_wire(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn take(bpf: &mut Ebpf, map: &str) -> anyhow::Result<Map> {
    bpf.take_map(map).ok_or_else(|| missing(map))
}

fn missing(what: &str) -> anyhow::Error {
    anyhow::anyhow!("the object has no {what}")
}

/// `struct record` of connections.bpf.c.
fn decode(record: &[u8]) -> Option<News> {
    let record: &[u8; 56] = record.try_into().ok()?;
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
    match record[42] {
        STATE_CHANGED => {
            let (old, new) = (TcpState::from_kernel(record[40])?, TcpState::from_kernel(record[41])?);
            Some(News::Changed(connection, effect(old, new)))
        }
        CLIENT_SENT => Some(News::Sent(connection, u64::from_ne_bytes(record.get(48..56)?.try_into().ok()?))),
        _ => None,
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
            kind in 0_u8..4, sent_ns: u64,
        ) {
            let mapped = std::net::Ipv4Addr::from(remote).to_ipv6_mapped();
            let mut record = Vec::new();
            record.extend_from_slice(&local);
            record.extend_from_slice(&mapped.octets());
            record.extend_from_slice(&ports.0.to_ne_bytes());
            record.extend_from_slice(&ports.1.to_ne_bytes());
            record.extend_from_slice(&netns.to_ne_bytes());
            record.extend_from_slice(&[old, new, kind, 0, 0, 0, 0, 0]);
            record.extend_from_slice(&sent_ns.to_ne_bytes());
            let local = IpAddr::V6(Ipv6Addr::from(local)).to_canonical();
            let connection = Connection {
                netns,
                local: SocketAddr::new(local, ports.0),
                remote: SocketAddr::from((remote, ports.1)),
            };
            let states = (TcpState::from_kernel(old).expect("old"), TcpState::from_kernel(new).expect("new"));
            let expected = match kind {
                0 => Some(News::Changed(connection, effect(states.0, states.1))),
                1 => Some(News::Sent(connection, sent_ns)),
                _ => None,
            };
            prop_assert_eq!(decode(&record), expected);
        }

        #[test]
        fn any_record_is_survived(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
