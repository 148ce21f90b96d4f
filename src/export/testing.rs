//! A published state for tests of the servers, and an HTTP server of it with a plain client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Latest;
use super::guard::Hosts;
use super::http::{Bound, Server};
use crate::view::{History, State, testing};

/// A state in which everything is known, with one point of history, and where to publish another state.
pub(super) fn latest() -> (watch::Sender<Arc<State>>, Latest) {
    let (publish, _, latest) = published();
    (publish, latest)
}

/// The same, and where to publish another history.
pub(super) fn published() -> (watch::Sender<Arc<State>>, watch::Sender<Arc<History>>, Latest) {
    let (publish, state) = watch::channel(Arc::new(testing::state()));
    let mut points = History::default();
    points.push(&testing::state());
    let (publish_history, history) = watch::channel(Arc::new(points));
    (publish, publish_history, Latest { state, history })
}

/// An HTTP server of a published state.
pub(super) struct Page {
    server: Server,
    publish: watch::Sender<Arc<State>>,
}

impl Page {
    pub(super) fn serve() -> Self {
        let (publish, latest) = latest();
        let bound = Bound::new("observe.metrics_listen", "127.0.0.1:0".parse().unwrap()).unwrap();
        Self { server: bound.serve(latest, Hosts::default()).unwrap(), publish }
    }

    pub(super) fn publish(&self, state: State) {
        self.publish.send_replace(Arc::new(state));
    }

    /// The run ends; the server stays.
    pub(super) fn end_run(&mut self) {
        self.publish = watch::channel(Arc::new(testing::state())).0;
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// All of the answer to a request.
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
