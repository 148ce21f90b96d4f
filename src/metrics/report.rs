//! What a page says about its engine, for `agft check`.

use std::fmt;

use super::Signal;
use super::health::{self, Traffic};
use super::page::{Page, Refused};
use super::signals::Value;
use crate::engine::Profile;
use crate::engine::table::absent;
use crate::text;

/// A signal that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The signal.
    pub signal: Signal,
    /// Its metric on this page.
    pub metric: String,
    /// Its value, for people.
    pub value: String,
}

/// An engine as its page shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineReport {
    /// Which engine it is.
    pub engine: &'static Profile,
    /// Which generation of its metric names it speaks; empty if there is but one.
    pub dialect: &'static str,
    /// Engines on the page (more than one with data parallelism).
    pub engines: usize,
    /// Models on the page.
    pub model_names: Vec<String>,
    /// Signals read, with the metric that each came from, and its value.
    pub present: Vec<Found>,
    /// Signals that the page should have and does not.
    pub missing: Vec<Signal>,
    /// Signals that servers show only after their first requests; nothing can be said of them yet.
    pub not_yet: Vec<Signal>,
    /// Signals whose value cannot be right.
    pub refused: Vec<Refused>,
}

/// Describes the engine behind a page.
#[must_use]
pub fn describe(page: &Page) -> EngineReport {
    let refused = |signal: &Signal| page.refused.iter().any(|refused| refused.signal == *signal);
    let missing = health::missing(page.engine, &page.signals, Traffic::of(&page.signals));
    let absent = absent(page.engine, &page.signals).map(|(signal, _)| signal);
    let not_yet = absent.filter(|signal| !missing.contains(signal) && !refused(signal));
    EngineReport {
        engine: page.engine,
        dialect: page.dialect,
        engines: page.engines.len().max(1),
        model_names: page.models.iter().cloned().collect(),
        present: page.sources.iter().filter_map(|(signal, metric)| found(page, *signal, metric)).collect(),
        not_yet: not_yet.collect(),
        missing: missing.into_iter().filter(|signal| !refused(signal)).collect(),
        refused: page.refused.clone(),
    }
}

/// The signal, if the page has it.
fn found(page: &Page, signal: Signal, metric: &str) -> Option<Found> {
    let value = match page.signals.get(signal) {
        Value::Number(number) => format!("{}", number?),
        Value::Histogram(histogram) => {
            let histogram = histogram?;
            let mean = histogram.mean().map_or(String::new(), |mean| format!(", mean {mean:.6}"));
            let buckets = if histogram.buckets.is_empty() { ", a mean only" } else { "" };
            format!("{} in {}{mean}{buckets}", histogram.sum, histogram.count)
        }
    };
    Some(Found { signal, metric: metric.to_owned(), value })
}

impl EngineReport {
    /// Whether everything is there (or may still come) that agft cannot learn without.
    #[must_use]
    pub fn can_learn(&self) -> bool {
        let refused = self.refused.iter().map(|refused| refused.signal);
        !self.missing.iter().copied().chain(refused).any(Signal::is_essential) && self.engine.tells_delay()
    }
}

impl fmt::Display for EngineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engines =
            if self.engines == 1 { "1 engine".to_owned() } else { format!("{} engines", self.engines) };
        let dialect = if self.dialect.is_empty() { String::new() } else { format!("{}, ", self.dialect) };
        writeln!(f, "{}, {dialect}{engines}", self.engine.name())?;
        let models: Vec<_> = self.model_names.iter().map(|name| text::line(name)).collect();
        writeln!(f, "models: {}", models.join(", "))?;
        for Found { signal, metric, value } in &self.present {
            let note = self.engine.row(*signal).map(|row| row.note.as_str()).filter(|note| !note.is_empty());
            let note = note.map(|note| format!(" ({note})")).unwrap_or_default();
            writeln!(f, "  {signal}: {value}, {metric}{note}")?;
        }
        for refused in &self.refused {
            writeln!(f, "  {}: refused, {refused}", refused.signal)?;
        }
        for signal in &self.missing {
            let need = if signal.is_essential() { "needed" } else { "not needed" };
            writeln!(f, "  {signal}: missing, {need} ({})", self.engine.metric(*signal))?;
        }
        for signal in &self.not_yet {
            writeln!(f, "  {signal}: not shown yet, expected with the first requests")?;
        }
        for signal in Signal::all() {
            if let Some(why) = self.engine.cannot(signal) {
                let why = if why.is_empty() { "the profile does not name it" } else { why };
                writeln!(f, "  {signal}: not told by {}: {why}", self.engine.name())?;
            }
        }
        Ok(())
    }
}
