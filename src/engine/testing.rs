//! A made-up engine: what a second profile looks like.

use super::Engine;
use super::table::{Appears, Row};
use crate::metrics::Signal;

/// It has no histograms, counts the time of its tokens, and can sleep.
#[derive(Debug)]
pub(crate) struct Quill;

static TABLE: [Row; 5] = [
    Row::new(Signal::Running, Appears::AtStart, &["active"]),
    Row::new(Signal::Waiting, Appears::AtStart, &["queued"]),
    Row::new(Signal::PromptTokens, Appears::AtStart, &["tokens_in"]),
    Row::new(Signal::GenerationTokens, Appears::AtStart, &["tokens_out"]),
    Row { pair: Some(("seconds_out", "tokens_out")), ..Row::new(Signal::Itl, Appears::WithTokens, &[]) },
];

impl Engine for Quill {
    fn name(&self) -> &'static str {
        "Quill"
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["quill_"]
    }

    fn table(&self) -> &'static [Row] {
        &TABLE
    }

    fn default_port(&self) -> u16 {
        7070
    }

    fn health_path(&self) -> Option<&'static str> {
        Some("/alive")
    }

    fn sleeps(&self, status: u16, body: &[u8]) -> bool {
        status == 200 && body == b"asleep"
    }
}

/// Its page after this many tokens of 10 ms each.
pub(crate) fn page(tokens: u32, running: u32) -> String {
    let seconds = 0.01 * f64::from(tokens);
    format!(
        "quill_active {running}\nquill_queued 0\nquill_tokens_in 7\nquill_tokens_out{{slot=\"0\"}} {tokens}\n\
         quill_seconds_out{{slot=\"0\"}} {seconds}\nquill_version_info 1\n"
    )
}
