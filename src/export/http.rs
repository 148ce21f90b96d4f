//! The HTTP server, read-only: the web page at `/` with its stream of events, and `/metrics`.
//!
//! It has its own thread and answers from the latest published state. Clients get little: so many connections at once,
//! so many bytes of headers, so many seconds to send them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, body::Body};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;

use super::events::{self, Live};
use super::exposition::{self, Format};
use super::guard::Hosts;
use super::serving::{Serving, taken};
use super::{Published, page};

/// Connections at once; more are closed at once.
const CONNECTIONS: usize = 64;
/// Time that a client may take to send its headers, also between two requests of one connection.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// Bytes of headers.
const HEADER_BYTES: usize = 16 << 10;
/// A connection ends after this at the latest, also one with a stream of events; a client that only reads slowly does not keep its place for ever.
pub(super) const CONNECTION_TIME: Duration = Duration::from_secs(300);

/// Why the page cannot be served.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each has its message")]
pub enum HttpError {
    #[error(
        "{key}: {address} is in use by another program; choose another port, \
         or `off` (also on the command line: --metrics-listen)"
    )]
    InUse { key: &'static str, address: SocketAddr },
    #[error("{key}: cannot listen on {address}; choose an address of this machine, or `off`")]
    Listen { key: &'static str, address: SocketAddr, source: io::Error },
    #[error("the thread for the metrics page could not be started")]
    Thread(#[source] io::Error),
}

/// A bound port, before anything is served on it: what is wrong shows before the first clock is touched.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bound {
    /// Binds; `key` is where the address was given.
    pub fn new(key: &'static str, address: SocketAddr) -> Result<Self, HttpError> {
        let listen = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => HttpError::InUse { key, address },
            _ => HttpError::Listen { key, address, source: error },
        };
        let listener = TcpListener::bind(address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self { listener, address })
    }

    /// Where it listens; the real port where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts serving what is published.
    pub fn serve(self, published: Published, hosts: Hosts) -> Result<Server, HttpError> {
        let served = accept(self.listener, router(published, hosts));
        Ok(Server {
            _serving: Serving::start("agft-http", "the metrics page", served).map_err(HttpError::Thread)?,
        })
    }
}

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    _serving: Serving,
}

/// Takes connections; returns only if that is no longer possible.
async fn accept(listener: TcpListener, router: Router) -> io::Error {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Some(stream) = taken(listener.accept().await).await else { continue };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .max_buf_size(HEADER_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            // How a client's connection ends is its own affair.
            let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
            drop(place);
        });
    }
}

fn router(published: Published, hosts: Hosts) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/api/state", get(events::state))
        .route("/events", get(events::events))
        .merge(page::routes())
        .layer(from_fn_with_state(Arc::new(hosts), check_host))
        .layer(map_response(page::with_headers))
        .with_state(Live::new(published))
}

async fn check_host(Shared(hosts): Shared<Arc<Hosts>>, request: Request<Body>, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if hosts.allow(host) {
        return next.run(request).await;
    }
    let text = "agft: this Host is not served; add its name to observe.allowed_hosts\n";
    (StatusCode::MISDIRECTED_REQUEST, text).into_response()
}

async fn metrics(Shared(live): Shared<Live>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = Format::wanted(accept);
    match exposition::page(live.published.host(), format) {
        Ok(page) => ([(header::CONTENT_TYPE, format.content_type())], page).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests;
