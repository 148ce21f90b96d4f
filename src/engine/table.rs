//! A profile's table: what the signals are called on the pages of its engine, and since when each is there.
//!
//! Names are compared whole: `prompt_tokens_total` has neighbours on vLLM's page (`prompt_tokens_cached_total`,
//! `prompt_tokens_by_source_total`, `..._created`) that mean something else.

use super::Profile;
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

impl Appears {
    /// Each as a file writes it.
    pub(super) const NAMES: [(&'static str, Self); 4] = [
        ("at_start", Self::AtStart),
        ("with_tokens", Self::WithTokens),
        ("with_finished", Self::WithFinished),
        ("perhaps", Self::Perhaps),
    ];
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
    pub(super) names: Vec<Name>,
    /// Two counters, sum and count, that stand for a histogram without buckets.
    pub(super) ratio: Option<(Name, Name)>,
    /// What one of its units is in agft's: seconds for times, 1 for shares and numbers.
    pub(super) scale: f64,
    /// What people should know of it; empty if nothing.
    pub note: String,
}

/// A metric, or those series of it that have certain labels.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) name: String,
    pub(super) only: Vec<Selector>,
}

/// Series are taken whose label has one of these values.
#[derive(Debug, PartialEq, Eq)]
pub struct Selector {
    pub(super) label: String,
    pub(super) values: Vec<String>,
}

impl Selector {
    /// Whether a series with this value of the label, `None` without the label, is meant.
    #[must_use]
    pub fn takes(&self, value: Option<&str>) -> bool {
        value.is_some_and(|value| self.values.iter().any(|wanted| wanted == value))
    }

    /// The label that decides.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }
}

/// What a sample is to a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// The name that it goes by.
    pub family: Family,
    /// Which number of that it is.
    pub part: Part,
    /// What its labels have to be.
    pub only: &'static [Selector],
    /// What one of its units is in agft's.
    pub scale: f64,
}

impl Row {
    /// The name that is usually on the page.
    pub(super) fn usual_name(&self) -> Option<&str> {
        let sum = self.ratio.as_ref().map(|(sum, _)| sum);
        self.names.first().or(sum).map(|name| name.name.as_str())
    }

    /// Every name of the row, the preferred one first.
    #[cfg(test)]
    pub(crate) fn families(&'static self) -> impl Iterator<Item = Family> {
        let sum = self.ratio.as_ref().map(|(sum, _)| sum);
        let family =
            |(rank, name): (usize, &'static Name)| Family { signal: self.signal, rank, name: &name.name };
        self.names.iter().chain(sum).enumerate().map(family)
    }

    /// Whether its percentiles are known: a mean of two counters has none.
    #[must_use]
    pub fn has_percentiles(&self) -> bool {
        self.signal.kind() == Kind::Histogram && !self.names.is_empty()
    }

    /// What a sample with this name, without the prefix, is to the row.
    fn reading(&'static self, name: &str) -> Option<Reading> {
        let reading = |rank: usize, named: &'static Name, part| Reading {
            family: Family { signal: self.signal, rank, name: &named.name },
            part,
            only: &named.only,
            scale: self.scale,
        };
        let named = self.names.iter().enumerate().find_map(|(rank, named)| {
            let part = Part::of(self.signal, name.strip_prefix(named.name.as_str())?)?;
            Some(reading(rank, named, part))
        });
        named.or_else(|| {
            let (sum, count) = self.ratio.as_ref()?;
            let rank = self.names.len();
            let found = if sum.name == name { Some((sum, Part::Sum)) } else { None };
            let (named, part) = found.or((count.name == name).then_some((count, Part::Count)))?;
            // Both counters are one family, which goes by the name of the sum.
            let family = Family { signal: self.signal, rank, name: &sum.name };
            Some(Reading { family, ..reading(rank, named, part) })
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
pub enum Part {
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
    fn of(signal: Signal, suffix: &str) -> Option<Self> {
        match (signal.kind(), suffix) {
            (Kind::Histogram, "_bucket") => Some(Self::Bucket),
            (Kind::Histogram, "_sum") => Some(Self::Sum),
            (Kind::Histogram, "_count") => Some(Self::Count),
            (Kind::Sum | Kind::Level | Kind::Share | Kind::Instant, "") => Some(Self::Value),
            _ => None,
        }
    }
}

/// Everything that a sample with this name is on a page with this prefix.
pub fn of_page(engine: &'static Profile, name: &str, prefix: &str) -> impl Iterator<Item = Reading> {
    let table: &'static [Row] = engine.table();
    table.iter().filter_map(move |row| row.reading(name.strip_prefix(prefix_of(row.signal, prefix))?))
}

/// The prefix of a signal's names. The Prometheus clients' own metric has none.
pub(crate) fn prefix_of(signal: Signal, prefix: &str) -> &str {
    if signal == Signal::ProcessStart { "" } else { prefix }
}

/// The signals of the table that a page does not have, and nothing stands in for them, with when they were due.
pub(crate) fn absent(engine: &Profile, signals: &Signals) -> impl Iterator<Item = (Signal, Appears)> {
    engine.table().iter().map(|row| (row.signal, row.appears)).filter(|&(signal, appears)| {
        // Either latency per token will do.
        let replaced = signal == Signal::Itl && signals.has(Signal::RequestTpot);
        appears != Appears::Perhaps && !signals.has(signal) && !replaced
    })
}
