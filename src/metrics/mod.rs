//! What the engine says about itself: one scrape in, the few signals agft reads out.
//!
//! ```text
//!  scrape --bytes--> page --Signals--> Snapshot, Snapshot --> window::Window --> features, reward
//!  (HTTP)            through the one                health: is the endpoint there, and whole?
//!                    table in names                 report: what `agft check` says about it
//! ```
//!
//! [`scrape`] is the only part that touches a socket; the rest is pure.

pub mod health;
pub mod histogram;
pub mod names;
pub mod page;
pub mod report;
pub mod scrape;
pub mod window;

use serde::{Deserialize, Serialize};

use crate::units::{Seconds, Time};

/// A histogram as the page shows it: cumulative counts, summed over engines.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Histogram {
    /// Sum of all observed values (seconds, or tokens for the step size).
    pub sum: f64,
    /// Number of observations.
    pub count: f64,
    /// `(upper bound, cumulative count)`, bounds ascending, `+Inf` left out (it equals `count`).
    pub buckets: Vec<(f64, f64)>,
}

/// One page reduced to what agft reads. `None`: the page does not have it, which is not zero.
///
/// Counters are the engine's totals since its start; the page's label series are already combined (summed; KV usage
/// averaged).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Signals {
    /// Requests in the running batch.
    pub running: Option<f64>,
    /// Requests waiting for it.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<f64>,
    /// Prompt tokens processed (prefix hits included).
    pub prompt_tokens: Option<f64>,
    /// Tokens generated.
    pub generation_tokens: Option<f64>,
    /// Tokens looked up in the prefix cache.
    pub prefix_queries: Option<f64>,
    /// Of these, tokens found.
    pub prefix_hits: Option<f64>,
    /// Requests preempted.
    pub preemptions: Option<f64>,
    /// Requests finished, for any reason.
    pub finished: Option<f64>,
    /// Tokens per engine step; `count` is the number of steps.
    pub step_tokens: Option<Histogram>,
    /// Time to first token, seconds.
    pub ttft: Option<Histogram>,
    /// Time between tokens (TPOT per token), seconds.
    pub itl: Option<Histogram>,
    /// Mean time per output token of finished requests, seconds.
    pub request_tpot: Option<Histogram>,
    /// End-to-end latency of finished requests, seconds.
    pub e2e: Option<Histogram>,
    /// When the engine's process started, Unix seconds: changes on a restart.
    pub process_start: Option<f64>,
}

/// One scrape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When the page was received.
    pub at: Time,
    /// From sending the request to having the page.
    pub latency: Seconds,
    /// What it said.
    pub signals: Signals,
    /// Values that were refused (NaN, infinite, negative), as `name: value`.
    pub refused: Vec<String>,
}
