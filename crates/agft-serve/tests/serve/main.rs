//! The real program as a process, over real HTTP and with real instances.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod api;
#[allow(dead_code, reason = "it is shared with the test of agft's own page")]
#[path = "../../../../tests/page/browser.rs"]
mod browser;
mod client;
mod gppm;
mod guard;
mod ollama;
mod page;
mod support;
