//! A profile's table: what the signals are called on the pages of its engine, and since when each is there.
//!
//! Names are compared whole: `prompt_tokens_total` has neighbours on vLLM's page (`prompt_tokens_cached_total`,
//! `prompt_tokens_by_source_total`, `..._created`) that mean something else.

use crate::metrics::signals::Kind;
use crate::metrics::{Signal, Signals};

/// When a server shows a signal that it has.
///
/// Some create their histograms with the first request, or with several API processes their gauges: until then absence
/// says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appears {
    /// On the very first page.
    AtStart,
    /// Once tokens were generated.
    WithTokens,
    /// Once a request has finished.
    WithFinished,
    /// Perhaps never: agft has another way to know.
    Perhaps,
}

/// What one signal is called.
#[derive(Debug)]
pub struct Row {
    /// What the row is about.
    pub signal: Signal,
    /// From when on its absence means something.
    pub(crate) appears: Appears,
    /// Metric names without the engine's prefix, the preferred one first: the first that is on the page is read and the
    /// others are left alone, because adding them would count everything twice.
    pub names: &'static [&'static str],
    /// The names of two counters, sum and count, that stand for a histogram without buckets.
    pub pair: Option<(&'static str, &'static str)>,
}

impl Row {
    /// A signal with names of its own.
    pub(crate) const fn new(signal: Signal, appears: Appears, names: &'static [&'static str]) -> Self {
        Self { signal, appears, names, pair: None }
    }

    /// Every name of the row, the preferred one first.
    pub(crate) fn families(&self) -> impl Iterator<Item = Family> {
        let names = self.names.iter().copied().chain(self.pair.map(|(sum, _)| sum));
        names.enumerate().map(|(rank, name)| Family { signal: self.signal, rank, name })
    }

    /// What a sample with this name, without the prefix, is to the row.
    fn reading(&self, name: &str) -> Option<(Family, Part)> {
        self.families().find_map(|family| {
            let part = match self.pair.filter(|_| family.rank == self.names.len()) {
                Some((sum, _)) if name == sum => Some(Part::Sum),
                Some((_, count)) if name == count => Some(Part::Count),
                Some(_) => None,
                None => Part::of(family, name.strip_prefix(family.name)?),
            };
            part.map(|part| (family, part))
        })
    }
}

/// A name of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Family {
    /// What it tells of.
    pub signal: Signal,
    /// Its place among the names of the signal, 0 for the preferred one.
    pub rank: usize,
    /// The name without prefix.
    pub name: &'static str,
}

/// Which number of a family a sample is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The number itself (counter, gauge).
    Value,
    /// `_bucket` of a histogram.
    Bucket,
    /// `_sum` of a histogram.
    Sum,
    /// `_count` of a histogram.
    Count,
}

impl Part {
    /// The part that has this behind the family's name.
    fn of(family: Family, suffix: &str) -> Option<Self> {
        match (family.signal.kind(), suffix) {
            (Kind::Histogram, "_bucket") => Some(Self::Bucket),
            (Kind::Histogram, "_sum") => Some(Self::Sum),
            (Kind::Histogram, "_count") => Some(Self::Count),
            (Kind::Sum | Kind::Level | Kind::Share | Kind::Instant, "") => Some(Self::Value),
            _ => None,
        }
    }
}

/// Everything that a sample with this name is on a page with this prefix.
pub(crate) fn of_page(
    table: &'static [Row],
    name: &str,
    prefix: &str,
) -> impl Iterator<Item = (Family, Part)> {
    table.iter().filter_map(move |row| row.reading(name.strip_prefix(prefix_of(row.signal, prefix))?))
}

/// The prefix of a signal's names. The Prometheus clients' own metric has none.
pub(crate) fn prefix_of(signal: Signal, prefix: &str) -> &str {
    if signal == Signal::ProcessStart { "" } else { prefix }
}

/// The signals of the table that a page does not have, and nothing stands in for them, with when they were due.
pub(crate) fn absent(table: &'static [Row], signals: &Signals) -> impl Iterator<Item = (Signal, Appears)> {
    table.iter().map(|row| (row.signal, row.appears)).filter(|&(signal, appears)| {
        // Either latency per token will do.
        let replaced = signal == Signal::Itl && signals.has(Signal::RequestTpot);
        appears != Appears::Perhaps && !signals.has(signal) && !replaced
    })
}
