//! What both servers do: a runtime in a thread of its own, and a listener that outlives its clients.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

/// A server's thread. Dropped, it ends, and with the runtime all connections that are still open.
#[derive(Debug)]
pub(super) struct Serving {
    what: &'static str,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Runs `serve`, which returns only if it cannot go on, in a thread of this name; `what` names it in the
    /// log.
    pub(super) fn start(
        name: &str,
        what: &'static str,
        serve: impl Future<Output = io::Error> + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    error = serve => tracing::error!(%error, "{what} is gone"),
                }
            });
        })?;
        Ok(Self { what, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of {} ended in a panic", self.what);
        }
    }
}

/// The connection, if there is one. Out of file descriptors, or a client that was gone already: neither is
/// the end.
pub(super) async fn taken<S, A>(accepted: io::Result<(S, A)>) -> Option<S> {
    match accepted {
        Ok((stream, _)) => Some(stream),
        Err(error) => {
            tracing::debug!(%error, "no connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}
