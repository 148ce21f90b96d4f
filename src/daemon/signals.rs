//! The signals that end a run in good order.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::tick::End;

/// SIGINT, SIGTERM and SIGHUP, caught from the moment this is made.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// [`std::io::Error`] if the system refuses a handler.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the first one.
    ///
    /// Cancel safe: a signal that is not waited for is not lost.
    pub async fn wait(&mut self) -> End {
        tokio::select! {
            _ = self.interrupt.recv() => End::Signal("SIGINT"),
            _ = self.terminate.recv() => End::Signal("SIGTERM"),
            _ = self.hangup.recv() => End::Signal("SIGHUP"),
        }
    }
}
