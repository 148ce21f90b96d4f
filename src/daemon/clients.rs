//! The engine's clients: that one of them asks is known long before the engine's page shows it.

use std::net::{IpAddr, SocketAddr};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use url::{Host, Url};

use crate::config::{Config, IdleSource};
use crate::connections::{Event, Kind, Source, WatchSettings, Watcher};
use crate::control::Connections;
use crate::park::callers::Callers;
use crate::units::Time;

/// Connections to the engine, without agft's own and without callers who never want anything.
pub struct Clients {
    watcher: Watcher,
    events: Receiver<Event>,
    callers: Callers,
    opened: u64,
    asked: u64,
    /// agft's own end of the connection that it scrapes over.
    own: Option<SocketAddr>,
    unheard: usize,
}

impl Clients {
    /// Listens, if the configuration asks for it and the kernel tells.
    #[must_use]
    pub fn listen(config: &Config) -> Option<Self> {
        let idle = &config.idle;
        let wanted = idle.enabled && !config.control.data_collection_mode;
        if !wanted || !idle.sources.contains(&IdleSource::Connections) {
            return None;
        }
        let ports = ports(config);
        if ports.is_empty() {
            tracing::info!(
                "clients are not listened to: vllm.prometheus_url is not an address of this machine; see idle.ports"
            );
            return None;
        }
        let watched = Watcher::start(WatchSettings { ports: ports.clone(), ..WatchSettings::default() });
        let seen_anyway = idle.sources.contains(&IdleSource::Utilization);
        match watched {
            // The GPU's sensors are no slower, and cost less.
            Ok(watcher) if seen_anyway && matches!(watcher.source(), Source::Polling { .. }) => {
                let source = watcher.source();
                tracing::info!(
                    ?ports,
                    "clients are not listened to, and the GPU wakes by its own sensors: {source}"
                );
                None
            }
            Ok(watcher) => {
                tracing::info!(?ports, from = %watcher.source(), "clients are listened to");
                Some(Self::new(watcher))
            }
            Err(error) => {
                tracing::warn!(%error, "clients are not listened to (idle.sources, idle.ports)");
                None
            }
        }
    }

    /// Listens from now on.
    #[must_use]
    pub fn new(watcher: Watcher) -> Self {
        let events = watcher.events();
        Self { watcher, events, callers: Callers::default(), opened: 0, asked: 0, own: None, unheard: 0 }
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
        let open = self.watcher.open_now();
        Some(Connections { open, opened_total: self.opened, requests_total: self.asked })
    }

    /// There is work.
    pub fn worked(&mut self, now: Time) {
        self.callers.worked(now);
        self.unheard = self.callers.unheard();
    }

    /// agft scrapes from here.
    pub fn own_address(&mut self, own: Option<SocketAddr>) {
        if let Some(own) = own.filter(|own| self.own != Some(*own)) {
            self.own = Some(own);
            self.watcher.ignore(own);
        }
    }

    /// Does it hear of every request, so that nobody else needs to watch closely?
    #[must_use]
    pub fn hears_all(&self) -> bool {
        // Who is not listened to may still come to want something.
        self.unheard == 0
            && self.watcher.trouble().is_none()
            && matches!(self.watcher.source(), Source::KernelEvents { requests: true })
    }

    fn take(&mut self, event: &Event, now: Time) -> bool {
        let total = match event.kind {
            Kind::Opened => &mut self.opened,
            Kind::Requested => &mut self.asked,
            Kind::Closed => return false,
        };
        if self.own == Some(event.client) {
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

/// The ports at which clients are listened to: `idle.ports`, or that of the metrics page if it is on this machine.
#[must_use]
pub fn ports(config: &Config) -> Vec<u16> {
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
