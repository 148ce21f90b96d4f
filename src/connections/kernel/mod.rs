//! Events from the kernel, by the best way that can be had here.

mod bpf;
mod diagnose;
mod format;
mod perf;

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use super::ledger::Connection;
use super::state::Effect;
use super::{Source, SourceKind, WatchSettings};

/// What the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    Changed(Connection, Effect),
    /// A client has sent, at this time of the kernel's clock.
    Sent(Connection, u64),
}

impl News {
    pub(super) fn connection(&self) -> &Connection {
        match self {
            Self::Changed(connection, _) | Self::Sent(connection, _) => connection,
        }
    }
}

/// A source of events, attached; it goes with this value.
#[derive(Debug)]
pub(super) enum KernelEvents {
    Bpf(Box<bpf::Programs>),
    Perf(perf::Rings),
}

impl KernelEvents {
    /// The best source that is no better than `best` and better than `than`; what it is, for operators.
    /// Errors: why it cannot be opened, and what would help.
    pub(super) fn attach(
        settings: &WatchSettings,
        best: SourceKind,
        than: SourceKind,
    ) -> Result<(Self, Source), String> {
        let mut why = Vec::new();
        if best <= SourceKind::KernelEvents && than > SourceKind::KernelEvents {
            match bpf::Programs::attach(settings) {
                Ok(programs) => {
                    let source = Source::KernelEvents { requests: programs.tells_requests() };
                    return Ok((Self::Bpf(Box::new(programs)), source));
                }
                Err(error) => why.push(error),
            }
        }
        if best <= SourceKind::PerfEvents && than > SourceKind::PerfEvents {
            match perf::Rings::attach(settings) {
                Ok(rings) => {
                    let why = why.pop().unwrap_or_else(|| "they were not asked for".to_owned());
                    return Ok((Self::Perf(rings), Source::PerfEvents { why }));
                }
                Err(error) => why.push(format!("nor perf events: {error}")),
            }
        }
        Err(if why.is_empty() { "polling was asked for".to_owned() } else { why.join("; ") })
    }

    /// Everything that has been told by now, in the order in which it happened.
    pub(super) fn drain(&mut self) -> Vec<News> {
        match self {
            Self::Bpf(programs) => programs.drain(),
            Self::Perf(rings) => rings.drain(),
        }
    }

    /// How many changes of this port there was no room for; with perf events, of this or another one.
    pub(super) fn lost(&mut self, port: u16) -> u64 {
        match self {
            Self::Bpf(programs) => programs.lost(port),
            Self::Perf(rings) => rings.lost(),
        }
    }

    /// Tells no more of what this client sends to this port, or tells again.
    pub(super) fn ignore(&mut self, client: SocketAddr, port: u16, ignore: bool) {
        if let Self::Bpf(programs) = self {
            programs.ignore(client, port, ignore);
        }
    }

    /// One of these is readable when there are events.
    pub(super) fn readable(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Bpf(programs) => vec![programs.readable()],
            Self::Perf(rings) => rings.readable(),
        }
    }

    /// Ends the events and leaves everything else, as trouble would.
    pub(super) fn detach(&mut self) {
        match self {
            Self::Bpf(programs) => programs.detach(),
            Self::Perf(rings) => rings.detach(),
        }
    }
}
