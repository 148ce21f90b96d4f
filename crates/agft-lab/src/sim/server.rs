//! The simulated server's HTTP side: `/metrics`, `/health` and `/version`, over a world in the caller's time.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::gpu::{Clock, SharedWorld, at_present};

/// The version that the page's shape belongs to.
const VERSION: &str = r#"{"version":"0.32.0"}"#;

/// A server at work; dropping it stops it.
#[derive(Debug)]
pub struct SimServer {
    /// Where it listens.
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl SimServer {
    /// The address of its metrics page.
    #[must_use]
    pub fn metrics_url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }

    /// Closes the port, answers what was asked before, and waits until that is done.
    ///
    /// # Errors
    /// What the listener failed with, if it did.
    pub async fn stop(self) -> std::io::Result<()> {
        // The receiver is gone only if the server has ended by itself; joining tells why.
        let _ = self.stop.send(());
        self.task.await.unwrap_or_else(|end| Err(std::io::Error::other(end)))
    }
}

#[derive(Clone)]
struct Shown {
    world: SharedWorld,
    clock: Clock,
}

/// Serves `world` at `listener` until the returned handle is stopped or dropped.
///
/// # Errors
/// If the listener has no address any more.
pub fn serve(world: SharedWorld, clock: Clock, listener: TcpListener) -> std::io::Result<SimServer> {
    let address = listener.local_addr()?;
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(|| async {}))
        .route("/version", get(|| async { ([(CONTENT_TYPE, "application/json")], VERSION) }))
        .with_state(Shown { world, clock });
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async move {
        // An error means that the handle was dropped, which stops the server too.
        let _ = stopped.await;
    });
    let task = tokio::spawn(server.into_future());
    Ok(SimServer { address, stop, task })
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let page = at_present(&shown.world, &shown.clock).page();
    ([(CONTENT_TYPE, "text/plain; version=1.0.0; charset=utf-8")], page)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sim::{Pattern, World, WorldSpec, shared};
    use agft::units::Time;

    #[tokio::test]
    async fn serves_page_health_and_version_until_stopped() {
        let spec = WorldSpec::named("a100", "8b", Pattern::Steady, None).unwrap();
        let world = shared(World::new(spec, 1).unwrap());
        let clock: Clock = Arc::new(|| Time(30.0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = serve(world.clone(), clock, listener).unwrap();
        let url = server.metrics_url();
        let fetch = async |url: String| reqwest::get(url).await?.error_for_status()?.text().await;
        let page = fetch(url.clone()).await.unwrap();
        assert_eq!(page, world.lock().unwrap().page());
        assert!(world.lock().unwrap().signals().generation_tokens > Some(0.0));
        assert_eq!(fetch(url.replace("metrics", "health")).await.unwrap(), "");
        assert_eq!(fetch(url.replace("metrics", "version")).await.unwrap(), VERSION);
        server.stop().await.unwrap();
        assert!(fetch(url).await.unwrap_err().is_connect());
    }
}
