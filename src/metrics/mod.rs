//! What the engine says about itself: one scrape in, the few signals agft reads out.
//!
//! ```text
//!  scrape --bytes--> page --Signals--> Snapshot, Snapshot --> window::Window --> features, reward
//!  (HTTP)            by the profile of               health: is the endpoint there, and whole?
//!                    its engine                      report: what `agft check` says about it
//! ```
//!
//! [`scrape`] is the only part that touches a socket; the rest is pure.

pub mod health;
pub mod histogram;
pub mod page;
pub mod report;
pub mod scrape;
pub mod signals;
pub mod window;

use serde::{Deserialize, Serialize};

pub use signals::{Signal, Signals};

use crate::engine::{self, Profile};
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
    /// The engine that it was read as; not in the record of a step.
    #[serde(skip)]
    pub engine: Option<&'static Profile>,
}

impl Snapshot {
    /// The engine that it was read as; the usual one if that is not said.
    #[must_use]
    pub fn engine(&self) -> &'static Profile {
        self.engine.unwrap_or_else(engine::usual)
    }

    /// The pages of several servers, received together, as if they were one server's: as [`Signals::sum`] has it, as old
    /// as the last of them. The engine is the first one's.
    #[must_use]
    pub fn sum(pages: &[Self]) -> Self {
        let signals: Vec<&Signals> = pages.iter().map(|page| &page.signals).collect();
        Self {
            at: Time(pages.iter().map(|page| page.at.0).fold(0.0, f64::max)),
            latency: Seconds(pages.iter().map(|page| page.latency.0).fold(0.0, f64::max)),
            signals: Signals::sum(&signals),
            refused: pages.iter().flat_map(|page| page.refused.iter().cloned()).collect(),
            engine: pages.first().and_then(|page| page.engine),
        }
    }
}
