//! Which inference engine a page is of, and how to read it: one profile per engine.
//!
//! A new engine is a file with its [`Engine`] and a line in `ENGINES`. What all engines share (the text of a page, how
//! series combine, windows, health, HTTP) is in [`crate::metrics`].

pub(crate) mod table;
#[cfg(test)]
pub(crate) mod testing;
pub mod vllm;

use std::fmt;

use crate::metrics::Signal;
use crate::metrics::page::Text;
use table::{Family, Row};

/// Every engine that agft knows. The first that recognises a page reads it.
pub(crate) static ENGINES: &[&dyn Engine] = &[
    &vllm::Vllm,
    #[cfg(test)]
    &testing::Quill,
];

/// One inference engine: its metrics page, and where it answers.
pub trait Engine: fmt::Debug + Send + Sync {
    /// Its name, as in the metadata of a run.
    fn name(&self) -> &'static str;

    /// What stands before its metric names, the usual one first.
    fn prefixes(&self) -> &'static [&'static str];

    /// What its page tells, in the order of [`Signal`].
    fn table(&self) -> &'static [Row];

    /// The prefix that its metrics have on this page; `None` if the page is not one of this engine.
    fn prefix<'a>(&self, page: Text<'a>) -> Option<&'a str> {
        page.names().find_map(|name| {
            let prefix = self.prefixes().iter().find(|prefix| name.starts_with(**prefix))?;
            name.get(..prefix.len())
        })
    }

    /// Which generation of its names a page speaks, for people: from the names read, and whether the series have an
    /// `engine` label. Empty if there is but one.
    fn dialect(&self, _seen: &[Family], _engine_label: bool) -> &'static str {
        ""
    }

    /// What may be set wrong if a server of this engine has no such page, as a question; empty if nothing.
    fn remedy(&self) -> &'static str {
        ""
    }

    /// The path that is asked before the page, because it answers without waking an engine that sleeps.
    fn health_path(&self) -> Option<&'static str> {
        None
    }

    /// Whether this answer of the health path says that the engine sleeps: then its page is left alone.
    fn sleeps(&self, _status: u16, _body: &[u8]) -> bool {
        false
    }
}

impl dyn Engine {
    /// The signal's usual metric name, for messages; without one, what it is.
    pub fn metric(&self, signal: Signal) -> String {
        let row = self.table().iter().find(|row| row.signal == signal);
        let prefix = table::prefix_of(signal, self.prefixes().first().copied().unwrap_or_default());
        row.and_then(|row| row.families().next())
            .map_or_else(|| signal.to_string(), |family| format!("{prefix}{}", family.name))
    }
}

impl PartialEq for dyn Engine {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for dyn Engine {}

/// The first of these engines whose page this is, and the prefix of its metrics there.
pub(crate) fn find(
    among: impl IntoIterator<Item = &'static dyn Engine>,
    page: Text<'_>,
) -> Option<(&'static dyn Engine, &str)> {
    among.into_iter().find_map(|engine| engine.prefix(page).map(|prefix| (engine, prefix)))
}

/// The engine with this name, in upper or lower case.
pub fn named(name: &str) -> Option<&'static dyn Engine> {
    ENGINES.iter().copied().find(|engine| engine.name().eq_ignore_ascii_case(name))
}

/// What a page of these engines would have shown, for the message that there is none.
pub(crate) fn looked_for(engines: impl IntoIterator<Item = &'static dyn Engine>) -> String {
    let look = |engine: &'static dyn Engine| {
        let prefix = engine.prefixes().first().copied().unwrap_or_default();
        let remedy =
            if engine.remedy().is_empty() { String::new() } else { format!("; {}", engine.remedy()) };
        format!("{} ({prefix}...{remedy})", engine.name())
    };
    engines.into_iter().map(look).collect::<Vec<_>>().join(", ")
}
