//! The signals that end a run in good order, and the one that has the configuration read again.

use futures_util::future::OptionFuture;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and, unless it means something else, SIGHUP, caught from the moment this is made.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// Installs the handlers.
    /// Errors: [`std::io::Error`] if the system refuses a handler.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: Some(signal(SignalKind::hangup())?),
        })
    }

    /// The same for a daemon: unless `hangup_ends`, SIGHUP is handed out to mean something else.
    pub(crate) fn for_daemon(hangup_ends: bool) -> std::io::Result<(Self, Option<Signal>)> {
        let mut signals = Self::install()?;
        let hangup = signals.hangup.take_if(|_| !hangup_ends);
        Ok((signals, hangup))
    }

    /// Waits for the first one.
    ///
    /// Cancel safe: a signal that is not waited for is not lost.
    pub async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            Some(_) = OptionFuture::from(self.hangup.as_mut().map(Signal::recv)) => "SIGHUP",
        }
    }
}
