//! The text of a metrics page -> [`Signals`].
//!
//! ```text
//!  bytes --check--> text --scan--> lines of the table, labels resolved --decode--> one value per signal
//! ```
//!
//! A page is refused whole if it is not a vLLM metrics page; a value that cannot be right (NaN, infinite, negative, a
//! histogram that contradicts itself) costs only its own signal, which is then absent and listed in [`Page::refused`].

mod decode;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::names::{Family, Signal, Slot};
use super::{Signals, Snapshot};
use crate::units::{Seconds, Time};
use decode::Combined;

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
    #[error("the page is JSON, not metrics; the URL should be the /metrics of a vLLM server")]
    Json,
    /// Text without a single vLLM metric.
    #[error(
        "not a vLLM metrics page: it begins with {beginning:?}; is the URL the /metrics of a vLLM server, and does it \
         run without --disable-log-stats?"
    )]
    NotVllm {
        /// The first words seen.
        beginning: String,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Which generation of names a page speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// The V0 engine, to 0.8: no `engine` label.
    V0,
    /// V1 to 0.9: `engine` label, `gpu_...` names only.
    V1Old,
    /// V1, 0.9 to 0.12: current names with the deprecated ones beside them.
    V1Both,
    /// V1 since 0.12: current names only.
    V1,
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V0 => "V0 engine (0.8 or earlier)",
            Self::V1Old => "V1 engine, old names (0.8 to 0.9)",
            Self::V1Both => "V1 engine, current and deprecated names (0.9 to 0.12)",
            Self::V1 => "V1 engine, current names (0.12 or later)",
        })
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
    /// Which generation of names it speaks.
    pub dialect: Dialect,
    /// The `engine` labels of the series read; empty with V0, which is one engine.
    pub engines: BTreeSet<String>,
    /// All `model_name` labels on the page, whichever was asked for.
    pub models: BTreeSet<String>,
}

impl Page {
    /// Reads a page; with `model`, only the series of that `model_name`.
    ///
    /// # Errors
    /// [`PageError`] if this is no vLLM metrics page, incomplete or absurdly large.
    pub fn parse(body: &[u8], model: Option<&str>) -> Result<Self, PageError> {
        let text = as_text(body)?;
        let scan = scan::scan(text, model)?;
        if scan.prefix.is_none() {
            return Err(recognise(text));
        }
        // The mark of OpenMetrics is as good an end as that of a line.
        if !text.ends_with('\n') && text.lines().next_back().map(str::trim) != Some("# EOF") {
            return Err(PageError::Truncated);
        }
        if let Some(wanted) = model.filter(|wanted| !scan.models.contains(*wanted)) {
            let seen = scan.models.into_iter().collect();
            return Err(PageError::NoSuchModel { wanted: wanted.to_owned(), seen });
        }
        let decoded = decode::decode(&scan);
        let dialect = dialect(&scan);
        let prefix = scan.prefix.unwrap_or_default();
        let mut page = Self {
            signals: Signals::default(),
            refused: Vec::new(),
            sources: Vec::new(),
            dialect,
            engines: scan.engines,
            models: scan.models,
        };
        for (family, value) in decoded {
            page.take(family, value, prefix);
        }
        Ok(page)
    }

    fn take(&mut self, family: Family, value: Result<Combined, String>, prefix: &str) {
        let signal = family.signal();
        let prefix = if signal == Signal::ProcessStart { "" } else { prefix };
        let metric = format!("{prefix}{}", family.name());
        match (value, self.signals.slot(signal)) {
            (Ok(Combined::Number(value)), Slot::Number(slot)) => *slot = Some(value),
            (Ok(Combined::Histogram(value)), Slot::Histogram(slot)) => *slot = Some(value),
            (Ok(_), _) => {}
            (Err(why), _) => self.refused.push(Refused { signal, metric: metric.clone(), why }),
        }
        self.sources.push((signal, metric));
    }

    /// The page as a scrape received at `at`, `latency` after it was asked for.
    #[must_use]
    pub fn into_snapshot(self, at: Time, latency: Seconds) -> Snapshot {
        let refused = self.refused.iter().map(ToString::to_string).collect();
        Snapshot { at, latency, signals: self.signals, refused }
    }
}

fn as_text(body: &[u8]) -> Result<&str, PageError> {
    if body.len() > LARGEST_PAGE {
        return Err(PageError::TooLarge { limit: LARGEST_PAGE });
    }
    std::str::from_utf8(body).map_err(|error| PageError::NotText { at: error.valid_up_to() })
}

/// What a page without vLLM metrics is instead.
fn recognise(text: &str) -> PageError {
    let text = text.trim_start_matches('\u{feff}').trim_start();
    match text.chars().next() {
        None => PageError::Empty,
        Some('<') => PageError::Html,
        Some('{' | '[') => PageError::Json,
        Some(_) => {
            // Every Python server shows its interpreter first, which tells nothing.
            let telling =
                |line: &&str| !["#", "python_", "process_"].iter().any(|start| line.starts_with(start));
            let line = text.lines().filter(|line| !line.is_empty()).find(telling);
            let beginning = line.or(text.lines().next()).unwrap_or_default().chars().take(60).collect();
            PageError::NotVllm { beginning }
        }
    }
}

fn dialect(scan: &scan::Scan<'_>) -> Dialect {
    // Only the renamed families tell old from new.
    let renamed = |signal| matches!(signal, Signal::KvUsage | Signal::PrefixQueries | Signal::Itl);
    let families = || scan.samples.iter().map(|sample| sample.family).filter(|f| renamed(f.signal()));
    match (scan.engines.is_empty(), families().any(Family::is_old), families().any(|f| !f.is_old())) {
        (true, _, _) => Dialect::V0,
        (false, true, false) => Dialect::V1Old,
        (false, true, true) => Dialect::V1Both,
        (false, false, _) => Dialect::V1,
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
