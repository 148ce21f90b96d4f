//! The text of a metrics page -> [`Signals`].
//!
//! ```text
//!  bytes --check--> text --scan--> samples of the engine's table, labels resolved --decode--> one value per signal
//!                      \--engine--> whose page it is
//! ```
//!
//! A page is refused whole if it is of no engine that agft knows; a value that cannot be right (NaN, infinite, negative, a
//! histogram that contradicts itself) costs only its own signal, which is then absent and listed in [`Page::refused`].

mod decode;
mod scan;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeSet;
use std::fmt;

pub use text::Text;

use super::{Signal, Signals, Snapshot};
use crate::engine::table::{Family, prefix_of};
use crate::engine::{self, Profile};
use crate::units::{Seconds, Time};

/// The largest page that is read. 64 engines with every family shown come to about 3 MB.
pub const LARGEST_PAGE: usize = 8 * 1024 * 1024;

/// Why a page is no use at all. The text names the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// More bytes than [`LARGEST_PAGE`].
    #[error("the page is larger than {limit} bytes; check that the URL is the server's /metrics")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// More samples of interest than any server shows.
    #[error(
        "the page has more than {limit} samples of the metrics agft reads; scrape one server, not an aggregate"
    )]
    TooManySeries {
        /// The limit.
        limit: usize,
    },
    /// Not UTF-8: a compressed or binary body.
    #[error(
        "the page is not text (byte {at} is not UTF-8); check that the URL is the server's /metrics and that no proxy \
         compresses it"
    )]
    NotText {
        /// Offset of the first bad byte.
        at: usize,
    },
    /// Nothing but white space.
    #[error(
        "the page is empty; the server may still be starting, otherwise check that the URL is its own /metrics"
    )]
    Empty,
    /// An HTML page.
    #[error(
        "the page is HTML, not metrics; the URL should end in /metrics and lead to the server, not to a portal"
    )]
    Html,
    /// A JSON document.
    #[error(
        "the page is JSON, not metrics; the URL should be the /metrics of an inference server ({other_paths})"
    )]
    Json {
        /// Engines whose page is elsewhere.
        other_paths: String,
    },
    /// Text without the metrics of an engine.
    #[error(
        "not a page of a known engine: it begins with {beginning:?}; is the URL the /metrics of one of these: \
         {looked_for}?{alike}"
    )]
    NoEngine {
        /// The first words seen.
        beginning: String,
        /// The engines, each with what its metrics begin with.
        looked_for: String,
        /// The engine that it looks most like, and what is missing for that; empty if it is like none.
        alike: String,
    },
    /// The last line does not end: the rest is missing, and its value may be cut.
    #[error("the page breaks off in the middle of a line; the connection or a proxy cut it short")]
    Truncated,
    /// The page has metrics, but none of the model asked for.
    #[error(
        "the page has no metrics of model {wanted:?}; it has {}. Correct model_name or remove it",
        list(seen)
    )]
    NoSuchModel {
        /// The model asked for.
        wanted: String,
        /// The models there are.
        seen: Vec<String>,
    },
}

/// A signal whose value cannot be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The signal, absent from [`Page::signals`] for this reason.
    pub signal: Signal,
    /// Its metric name on this page.
    pub metric: String,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.metric, self.why)
    }
}

/// A page, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The values.
    pub signals: Signals,
    /// Signals that are on the page with a value that cannot be right.
    pub refused: Vec<Refused>,
    /// Where each signal was read, as `(signal, metric name)`; refused ones included.
    pub sources: Vec<(Signal, String)>,
    /// Whose page it is.
    pub engine: &'static Profile,
    /// Which generation of the engine's names it speaks, for people; empty if there is but one.
    pub dialect: &'static str,
    /// The `engine` labels of the series read; empty if there are none, which is one engine.
    pub engines: BTreeSet<String>,
    /// All `model_name` labels on the page, whichever was asked for.
    pub models: BTreeSet<String>,
}

impl Page {
    /// Reads a page of any engine that agft knows; with `model`, only the series of that `model_name`.
    ///
    /// # Errors
    /// [`PageError`] if this is no page of an engine, incomplete or absurdly large.
    pub fn parse(body: &[u8], model: Option<&str>) -> Result<Self, PageError> {
        Self::parse_among(body, model, engine::all())
    }

    /// Reads a page of the first of these engines that recognises it.
    ///
    /// # Errors
    /// As [`Page::parse`].
    pub fn parse_among(
        body: &[u8],
        model: Option<&str>,
        engines: impl Iterator<Item = &'static Profile> + Clone,
    ) -> Result<Self, PageError> {
        let text = Text::new(body)?;
        let Some((engine, prefix)) = engine::find(engines.clone(), text) else {
            return Err(text.stranger(|| engine::looked_for(engines)));
        };
        let scan = scan::scan(text, engine, prefix, model)?;
        if !text.is_whole() {
            return Err(PageError::Truncated);
        }
        if let Some(wanted) = model.filter(|wanted| !scan.models.contains(*wanted)) {
            let seen = scan.models.into_iter().collect();
            return Err(PageError::NoSuchModel { wanted: wanted.to_owned(), seen });
        }
        let seen: BTreeSet<Family> = scan.samples.iter().map(|sample| sample.family).collect();
        let seen: Vec<Family> = seen.into_iter().collect();
        let dialect = engine.dialect(&seen, !scan.engines.is_empty());
        let (mut signals, mut sources, mut refused) = (Signals::default(), Vec::new(), Vec::new());
        for (family, why) in decode::decode(&scan, &mut signals) {
            let signal = family.signal;
            let metric = format!("{}{}", prefix_of(signal, prefix), family.name);
            refused.extend(why.map(|why| Refused { signal, metric: metric.clone(), why }));
            sources.push((signal, metric));
        }
        Ok(Self { signals, refused, sources, engine, dialect, engines: scan.engines, models: scan.models })
    }

    /// The page as a scrape received at `at`, `latency` after it was asked for.
    #[must_use]
    pub fn into_snapshot(self, at: Time, latency: Seconds) -> Snapshot {
        let refused = self.refused.iter().map(ToString::to_string).collect();
        Snapshot { at, latency, signals: self.signals, refused, engine: Some(self.engine) }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "no model_name label at all".to_owned();
    }
    let shown: Vec<String> = names.iter().take(5).map(|name| format!("{name:?}")).collect();
    let more = names.len() - shown.len();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &rest
}
