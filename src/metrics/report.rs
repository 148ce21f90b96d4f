//! What a page says about its engine, for `agft check`.

use std::fmt;

use super::Signal;
use super::health::{self, Traffic};
use super::page::{Page, Refused};
use crate::engine::Profile;
use crate::engine::table::absent;
use crate::text;

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
    /// Signals read, with the metric that each came from.
    pub present: Vec<(Signal, String)>,
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
        present: page.sources.iter().filter(|(signal, _)| page.signals.has(*signal)).cloned().collect(),
        not_yet: not_yet.collect(),
        missing: missing.into_iter().filter(|signal| !refused(signal)).collect(),
        refused: page.refused.clone(),
    }
}

impl EngineReport {
    /// Whether everything is there (or may still come) that agft cannot learn without.
    #[must_use]
    pub fn can_learn(&self) -> bool {
        let refused = self.refused.iter().map(|refused| refused.signal);
        !self.missing.iter().copied().chain(refused).any(Signal::is_essential)
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
        for (signal, metric) in &self.present {
            writeln!(f, "  {signal}: {metric}")?;
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
        Ok(())
    }
}
