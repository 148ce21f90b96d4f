//! Shows the [state of the host](crate::view::HostState) to the outside: a page for people, one for Prometheus, a socket
//! for `agft status`.
//!
//! Threads of their own with runtimes of their own answer: whatever clients do, no tick waits for them.

mod events;
pub(crate) mod exposition;
pub mod guard;
pub mod http;
mod instances;
mod page;
pub mod protocol;
mod published;
mod serving;
pub(crate) mod socket;

pub use instances::{Instances, Working};
pub(crate) use published::NoServer;
pub use published::{Latest, Published};

#[cfg(test)]
mod testing;
