//! The HTTP API and the web page.
//!
//! Clients get little: so many connections at once, so many bytes, so many seconds to send them. Whoever
//! changes something has to show the token.

mod answer;
mod gppm;
mod guard;
mod page;
pub mod token;
mod v1;
mod work;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::fleet::Fleet;
use guard::Guard;
use token::Token;
use work::Works;

/// Longest request, in bytes: that of an instance file.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Connections at once; more are closed at once.
const CONNECTIONS: usize = 64;
/// Time that a client may take to send its headers, also between two requests of one connection.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// Bytes of headers.
const HEADER_BYTES: usize = 16 << 10;

/// What requests are answered with.
#[derive(Debug, Clone)]
struct Api {
    fleet: Fleet,
    work: Works,
}

/// Who may ask.
#[derive(Debug)]
pub struct Access {
    /// What changes need.
    pub token: Token,
    /// Names that a `Host` header may have, beside localhost and addresses.
    pub hosts: Vec<String>,
}

/// Answers until `end`; connections that are open then are closed.
pub async fn serve(listener: TcpListener, fleet: Fleet, access: Access, end: impl Future<Output = ()>) {
    let public = listener.local_addr().is_ok_and(|address: SocketAddr| !address.ip().is_loopback());
    let guard = Guard { token: access.token, hosts: access.hosts, public };
    let api = Api { fleet: fleet.clone(), work: Works::default() };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(api.work.clone().watch(fleet));
    let router = router(api, guard);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::pin!(end);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut end => break,
            Some(_) = tasks.join_next(), if tasks.len() > 1 => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, for example: later there may be some.
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let service = TowerToHyperService::new(router.clone());
        tasks.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .max_buf_size(HEADER_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            // How a client's connection ends is its own affair.
            let _ = connection.await;
            drop(place);
        });
    }
    tasks.shutdown().await;
}

/// Binds the API's address.
///
/// # Errors
/// [`io::Error`] with the address and a remedy in its text.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => "is in use by another program; choose another by --listen".to_owned(),
            _ => format!("cannot be listened at: {error}; choose an address of this machine by --listen"),
        };
        io::Error::new(error.kind(), format!("{address} {why}"))
    })
}

fn router(api: Api, guard: Guard) -> Router {
    Router::new()
        .merge(v1::routes())
        .merge(gppm::routes())
        .merge(page::routes())
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::new(guard), guard::check))
        .layer(map_response(page::with_headers))
        .with_state(api)
}

async fn nowhere() -> Response {
    answer::Trouble::new(
        StatusCode::NOT_FOUND,
        "there is nothing at this path (docs/serve.md lists what there is)",
    )
    .into_response()
}

async fn wrong_method() -> Response {
    answer::Trouble::new(StatusCode::METHOD_NOT_ALLOWED, "this path has no such method").into_response()
}
