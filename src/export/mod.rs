//! Shows the [`State`](crate::view::State) to the outside: a page for Prometheus.
//!
//! A thread of its own with a runtime of its own answers: whatever clients do, no tick waits for them.

pub mod exposition;
pub mod guard;
pub mod http;
