//! Published states for tests of the servers, and an HTTP server of them with a plain client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::guard::Hosts;
use super::http::{Bound, Server};
use super::{Latest, Published};
use crate::view::{History, HostState, ParkState, State, testing};

/// Where the state and the history of one server are published.
pub(super) struct Loop {
    pub(super) state: watch::Sender<Arc<State>>,
    pub(super) history: watch::Sender<Arc<History>>,
}

/// Published states in which everything is known, each with one point of history, and where to publish others.
pub(super) struct Stage {
    pub(super) published: Published,
    pub(super) loops: Vec<Loop>,
    pub(super) park: watch::Sender<Arc<ParkState>>,
}

impl Stage {
    pub(super) fn of(host: HostState) -> Self {
        let published = Published::new(HostState { servers: Vec::new(), park: None, ..host.clone() });
        let shown = host.servers.into_iter().map(|state| {
            let mut points = History::default();
            points.push(&state);
            let (name, state) = (state.name.clone(), watch::Sender::new(Arc::new(state)));
            let shown = Loop { state, history: watch::Sender::new(Arc::new(points)) };
            published.add(&name, shown.latest());
            shown
        });
        let loops = shown.collect();
        let park = watch::Sender::new(Arc::new(host.park.clone().unwrap_or_else(testing::park_state)));
        if host.park.is_some() {
            published.set_park(park.subscribe());
        }
        Self { published, loops, park }
    }

    pub(super) fn of_one() -> Self {
        Self::of(testing::of(vec![testing::state()], None))
    }

    /// Two servers and a parked GPU.
    pub(super) fn of_two() -> Self {
        Self::of(testing::host())
    }

    pub(super) fn publish(&self, state: State) {
        self.loops[0].state.send_replace(Arc::new(state));
    }

    pub(super) fn latest(&self, server: usize) -> Latest {
        self.loops[server].latest()
    }
}

impl Loop {
    fn latest(&self) -> Latest {
        Latest { state: self.state.subscribe(), history: self.history.subscribe() }
    }
}

/// An HTTP server of published states.
pub(super) struct Page {
    _server: Server,
    address: SocketAddr,
    pub(super) stage: Stage,
}

impl Page {
    pub(super) fn serve() -> Self {
        Self::of(Stage::of_one())
    }

    pub(super) fn of(stage: Stage) -> Self {
        let bound = Bound::new("observe.metrics_listen", "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = bound.address();
        let server = bound.serve(stage.published.clone(), Hosts::default()).unwrap();
        Self { _server: server, address, stage }
    }

    pub(super) fn publish(&self, state: State) {
        self.stage.publish(state);
    }

    /// The run ends; the server stays.
    pub(super) fn end_run(&mut self) {
        self.stage.loops.clear();
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    pub(super) fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A refused client may be cut off while it still sends.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(super) fn get(&self, path: &str, host: &str) -> String {
        self.request("GET", path, host)
    }

    pub(super) fn request(&self, method: &str, path: &str, host: &str) -> String {
        self.ask(&format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
    }
}
