//! The engine's clients: that one of them asks is known long before the engine's page shows it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use url::{Host, Url};

use crate::config::{Config, Server, Source};
use crate::connections::{Event, Kind, Source as Told, WatchSettings, Watcher};
use crate::control::Connections;
use crate::park::callers::Callers;
use crate::units::Time;

/// Connections to the engine, without agft's own and without callers who never want anything.
pub struct Clients {
    watcher: Arc<Watcher>,
    /// The server's ports; the watcher may watch those of others, too.
    ports: Vec<u16>,
    events: Receiver<Event>,
    callers: Callers,
    opened: u64,
    asked: u64,
    /// agft's own ends of the connections that it scrapes over.
    own: Vec<SocketAddr>,
    unheard: usize,
}

impl Clients {
    /// Listens at these ports from now on.
    pub fn new(watcher: Arc<Watcher>, ports: Vec<u16>) -> Self {
        let events = watcher.events();
        Self {
            watcher,
            ports,
            events,
            callers: Callers::default(),
            opened: 0,
            asked: 0,
            own: Vec::new(),
            unheard: 0,
        }
    }

    /// Waits until a client asks whose calls count.
    pub async fn asked(&mut self, now: impl Fn() -> Time) {
        loop {
            match self.events.recv().await {
                Ok(event) => {
                    if self.take(&event, now()) {
                        return;
                    }
                }
                // So many that some were missed: certainly somebody asks.
                Err(RecvError::Lagged(_)) => return self.asked += 1,
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// What there is; `None` where it is not known.
    pub fn look(&mut self, now: Time) -> Option<Connections> {
        loop {
            match self.events.try_recv() {
                Ok(event) => drop(self.take(&event, now)),
                Err(TryRecvError::Lagged(_)) => self.asked += 1,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        if self.watcher.trouble().is_some() {
            return None;
        }
        let open = self.watcher.open_at(&self.ports);
        Some(Connections { open, opened_total: self.opened, requests_total: self.asked })
    }

    pub(crate) fn worked(&mut self, now: Time) {
        self.callers.worked(now);
        self.unheard = self.callers.unheard();
    }

    /// agft scrapes from here.
    pub(crate) fn own_addresses(&mut self, own: Vec<SocketAddr>) {
        for address in own.iter().filter(|address| !self.own.contains(address)) {
            self.watcher.ignore(*address);
        }
        if !own.is_empty() {
            self.own = own;
        }
    }

    /// Does it hear of every request, so that nobody else needs to watch closely?
    pub(crate) fn hears_all(&self) -> bool {
        // Who is not listened to may still come to want something.
        self.unheard == 0
            && self.watcher.trouble().is_none()
            && matches!(self.watcher.source(), Told::KernelEvents { requests: true })
    }

    fn take(&mut self, event: &Event, now: Time) -> bool {
        let total = match event.kind {
            Kind::Opened => &mut self.opened,
            Kind::Requested => &mut self.asked,
            Kind::Closed => return false,
        };
        if self.own.contains(&event.client) || !self.ports.contains(&event.port) {
            return false;
        }
        let counts = self.callers.called(event.client.ip(), now);
        let unheard = self.callers.unheard();
        if unheard > self.unheard {
            tracing::info!(client = %event.client.ip(), "its calls never bring work: they do not wake the GPU any more");
        }
        self.unheard = unheard;
        if counts {
            *total += 1;
        }
        counts
    }
}

/// Does a server's configuration want its clients listened to?
pub(crate) fn wanted(config: &Config) -> bool {
    let Config { idle, control, .. } = config;
    idle.enabled && !control.data_collection_mode && idle.sources.contains(&Source::Connections)
}

/// Begins to listen to the clients of these servers, all over one watcher; `None` if none of them wants it, or the kernel
/// does not tell.
pub(crate) fn listen(servers: &[Server]) -> Option<Arc<Watcher>> {
    let mut all = Vec::new();
    let mut seen_anyway = true;
    for server in servers.iter().filter(|server| wanted(&server.config)) {
        let ports = ports(&server.config);
        if ports.is_empty() {
            tracing::info!(
                "clients are not listened to: vllm.prometheus_url is not an address of this machine; see idle.ports"
            );
        }
        seen_anyway &= ports.is_empty() || server.config.idle.sources.contains(&Source::Utilization);
        all.extend(ports);
    }
    all.sort_unstable();
    all.dedup();
    if all.is_empty() {
        return None;
    }
    let watched = Watcher::start(WatchSettings { ports: all.clone(), ..WatchSettings::default() });
    match watched {
        // The GPU's sensors are no slower, and cost less.
        Ok(watcher) if seen_anyway && matches!(watcher.source(), Told::Polling { .. }) => {
            let source = watcher.source();
            tracing::info!(
                ports = ?all,
                "clients are not listened to, and the GPU wakes by its own sensors: {source}"
            );
            None
        }
        Ok(watcher) => {
            tracing::info!(ports = ?all, from = %watcher.source(), "clients are listened to");
            Some(Arc::new(watcher))
        }
        Err(error) => {
            tracing::warn!(%error, "clients are not listened to (idle.sources, idle.ports)");
            None
        }
    }
}

/// The ports at which clients are listened to: `idle.ports`, or that of the metrics page if it is on this machine.
pub(crate) fn ports(config: &Config) -> Vec<u16> {
    if config.idle.ports.is_empty() {
        port_here(&config.vllm.prometheus_url)
    } else {
        config.idle.ports.clone()
    }
}

/// The port of a URL, if it is one of this machine.
fn port_here(url: &str) -> Vec<u16> {
    let Ok(url) = Url::parse(url) else { return Vec::new() };
    let here = match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => is_ours(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => is_ours(IpAddr::V6(address)),
        None => false,
    };
    url.port_or_known_default().filter(|_| here).into_iter().collect()
}

/// Only an address of the machine can be bound to.
fn is_ours(address: IpAddr) -> bool {
    std::net::UdpSocket::bind(SocketAddr::new(address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_of_the_url_is_meant_where_it_is_of_this_machine() {
        assert_eq!(port_here("http://localhost:8000/metrics"), [8000]);
        assert_eq!(port_here("http://127.0.0.1/metrics"), [80]);
        // Set aside for documentation: nobody has it.
        assert!(port_here("http://192.0.2.1:8000/metrics").is_empty());
        assert!(port_here("http://engine.example:8000/metrics").is_empty());
    }
}
