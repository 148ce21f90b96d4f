//! The real program as a process, over real HTTP and with real instances.

mod api;
mod client;
mod gppm;
mod guard;
mod ollama;
mod support;
