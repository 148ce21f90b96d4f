//! Who else knows of work: connections to the services that the GPUs serve.
//!
//! The GPU's own sensors are read by [`super::group`]; what is machine-wide comes through [`ActivitySource`].

use std::time::Duration;

use tokio::sync::broadcast;

use crate::connections::{ConnectionError, Event, Source, SourceKind, WatchSettings, Watcher};
use crate::park::source::Connections;
use crate::view::ConnectionsState;

/// A source of activity that is not a GPU.
pub trait ActivitySource {
    /// Its name in the log.
    fn name(&self) -> &'static str;

    /// What there is now. Asked every `park.active_poll_ms`, while a GPU is parked at each of its [`news`](Self::news) and
    /// once a second; must not block, and must not touch a GPU.
    /// Errors: [`SourceError`]: nothing is known, and no GPU is parked on that.
    fn look(&mut self) -> Result<Connections, SourceError>;

    /// News from now on: each is a reason to look. `None` if it has to be asked.
    fn news(&self) -> Option<broadcast::Receiver<Event>>;

    /// What it watches and how, for operators; how many are open is not asked here.
    fn shown(&self) -> ConnectionsState;
}

/// Why a source does not know.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kernel does not tell of its connections.
    #[error("connections cannot be counted: {0}")]
    Connections(String),
}

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
}

impl ActivitySource for Ports {
    fn name(&self) -> &'static str {
        "connections"
    }

    fn look(&mut self) -> Result<Connections, SourceError> {
        if let Some(trouble) = self.watcher.trouble() {
            return Err(SourceError::Connections(trouble));
        }
        // However short: one that is closed again was still somebody.
        let counts = self.watcher.counts();
        Ok(Connections {
            open: self.watcher.open_now(),
            opened_total: counts.values().map(|counts| counts.opened_total).sum(),
            requests_total: counts.values().map(|counts| counts.requests_total).sum(),
        })
    }

    fn news(&self) -> Option<broadcast::Receiver<Event>> {
        Some(self.watcher.events())
    }

    fn shown(&self) -> ConnectionsState {
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
