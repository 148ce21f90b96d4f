//! Shows the [`State`](crate::view::State) to the outside: a page for Prometheus, a socket for `agft status`.
//!
//! Threads of their own with runtimes of their own answer: whatever clients do, no tick waits for them.

pub mod exposition;
pub mod guard;
pub mod http;
pub mod protocol;
pub mod socket;
