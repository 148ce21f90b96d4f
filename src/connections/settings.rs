//! What is to be watched.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Room in the BPF program's table of ports.
const MOST_PORTS: usize = 64;

/// Kinds of sources, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceKind {
    /// BPF programs.
    KernelEvents,
    /// A tracepoint through `perf_event_open(2)`.
    PerfEvents,
    /// The kernel's table of sockets.
    Polling,
}

/// What is watched, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchSettings {
    /// The server's ports, as the server itself has them (in a container: those inside).
    pub ports: Vec<u16>,
    /// Only connections to this address of the server; `None` counts them all.
    pub local_address: Option<IpAddr>,
    /// Only connections in this network namespace (`/run/netns/NAME`, `/proc/PID/ns/net`); `None` counts all that can be seen.
    pub netns: Option<PathBuf>,
    /// Period of polling, where there are no events from the kernel.
    pub poll_every: Duration,
    /// Period of comparison with the kernel's table, where there are.
    pub resync_every: Duration,
    /// Room for events on their way, bytes; a power of two and at least a page.
    pub ring_bytes: u32,
    /// Also tells of requests over open connections, where the kernel can.
    pub requests: bool,
    /// Leaves out every source that is better than this one.
    pub force_source: Option<SourceKind>,
    /// How soon a better source is tried again after its loss; twice as long after each time that it was in vain.
    pub retry_after: Duration,
    /// The longest that becomes.
    pub retry_at_most: Duration,
    /// The kernel's description of its types; for tests.
    #[doc(hidden)]
    pub kernel_types: PathBuf,
    /// Where tracefs is mounted, if not at its usual place; for tests.
    #[doc(hidden)]
    pub tracefs: Option<PathBuf>,
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self {
            ports: Vec::new(),
            local_address: None,
            netns: None,
            poll_every: Duration::from_millis(250),
            resync_every: Duration::from_secs(5),
            ring_bytes: 1 << 18,
            requests: true,
            force_source: None,
            retry_after: Duration::from_secs(30),
            retry_at_most: Duration::from_secs(600),
            kernel_types: "/sys/kernel/btf/vmlinux".into(),
            tracefs: None,
        }
    }
}

impl WatchSettings {
    pub(super) fn check(&self) -> Result<(), ConnectionError> {
        if self.ports.is_empty() || self.ports.contains(&0) || self.ports.len() > MOST_PORTS {
            return Err(ConnectionError::Ports { count: self.ports.len() });
        }
        let periods = [
            ("poll_every", self.poll_every),
            ("resync_every", self.resync_every),
            ("retry_after", self.retry_after),
        ];
        for (name, period) in periods {
            if period.is_zero() {
                return Err(ConnectionError::Period { name });
            }
        }
        Ok(())
    }
}

/// Why connections cannot be watched.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each has its message")]
pub enum ConnectionError {
    #[error("{count} ports to watch: give 1 to 64, each from 1 to 65535")]
    Ports { count: usize },
    #[error("{name} is 0: give a period above 0")]
    Period { name: &'static str },
    #[error("network namespace {}: {error}", path.display())]
    Namespace { path: PathBuf, error: io::Error },
    #[error("the kernel's table of sockets cannot be read: {0}; is /proc mounted?")]
    Table(io::Error),
    #[error("no thread to watch connections: {0}")]
    Thread(io::Error),
}
