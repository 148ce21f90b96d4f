//! Who else knows of work: connections to the services that the GPUs serve.
//!
//! The GPU's own sensors are read by [`super::group`]; this is machine-wide.

use std::time::Duration;

use tokio::sync::broadcast;

use crate::connections::{ConnectionError, Event, Source, SourceKind, WatchSettings, Watcher};
use crate::park::source::Connections;
use crate::view::ConnectionsState;

/// Connections to local ports: the kernel's events where they can be had, else its table, polled.
pub(crate) struct Ports {
    watcher: Watcher,
    ports: Vec<u16>,
}

impl Ports {
    /// Begins to watch these local ports; polls, where it has to, with this period.
    pub(crate) fn watch(ports: &[u16], poll_every: Duration) -> Result<Self, ConnectionError> {
        let settings = WatchSettings { ports: ports.to_vec(), poll_every, ..WatchSettings::default() };
        let watcher = Watcher::start(settings)?;
        Ok(Self { watcher, ports: ports.to_vec() })
    }

    pub(crate) fn source(&self) -> Source {
        self.watcher.source()
    }

    /// What there is now. Asked every `park.active_poll_ms`, while a GPU is parked at each of its
    /// [`news`](Self::news) and once a second. Errors: why nothing is known, and no GPU is parked on that.
    pub(super) fn look(&self) -> Result<Connections, String> {
        if let Some(trouble) = self.watcher.trouble() {
            return Err(format!("connections cannot be counted: {trouble}"));
        }
        // However short: one that is closed again was still somebody.
        let counts = self.watcher.counts();
        Ok(Connections {
            open: self.watcher.open_now(),
            opened_total: counts.values().map(|counts| counts.opened_total).sum(),
            requests_total: counts.values().map(|counts| counts.requests_total).sum(),
        })
    }

    /// News from now on: each is a reason to look.
    pub(super) fn news(&self) -> broadcast::Receiver<Event> {
        self.watcher.events()
    }

    /// What it watches and how, for operators; how many are open is not asked here.
    pub(super) fn shown(&self) -> ConnectionsState {
        let source = self.watcher.source();
        let name = match source.kind() {
            SourceKind::KernelEvents => "kernel_events",
            SourceKind::PerfEvents => "perf_events",
            SourceKind::Polling => "polling",
        };
        ConnectionsState {
            ports: self.ports.clone(),
            source: name.into(),
            source_detail: source.to_string(),
            open: None,
        }
    }
}
