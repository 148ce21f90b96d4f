//! Shows the [`State`] to the outside: a page for people, one for Prometheus, a socket for `agft
//! status`.
//!
//! Threads of their own with runtimes of their own answer: whatever clients do, no tick waits for them.

mod events;
pub mod exposition;
pub mod guard;
pub mod http;
mod page;
pub mod protocol;
pub mod socket;

use std::sync::Arc;

use tokio::sync::watch;

use crate::view::{History, ParkState, State};

#[cfg(test)]
mod testing;

/// What the loop published last, for any number of readers.
#[derive(Debug, Clone)]
pub struct Latest {
    /// The state after the latest step.
    pub state: watch::Receiver<Arc<State>>,
    /// The last minutes, once a second.
    pub history: watch::Receiver<Arc<History>>,
}

/// Who is shown over the control socket.
#[derive(Debug, Clone)]
pub enum Published {
    /// A learning agft.
    Run(Latest),
    /// `agft park`.
    Park(watch::Receiver<Arc<ParkState>>),
}
