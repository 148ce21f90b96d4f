//! The text of a page as lines of samples, before anything is known of its engine.

use super::{LARGEST_PAGE, PageError};
use crate::engine;

/// A page that is text.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    /// Takes a body for text.
    ///
    /// # Errors
    /// [`PageError::TooLarge`], [`PageError::NotText`].
    pub fn new(body: &'a [u8]) -> Result<Self, PageError> {
        if body.len() > LARGEST_PAGE {
            return Err(PageError::TooLarge { limit: LARGEST_PAGE });
        }
        let text = std::str::from_utf8(body);
        let text = text.map_err(|error| PageError::NotText { at: error.valid_up_to() })?;
        Ok(Self(text.trim_start_matches('\u{feff}')))
    }

    /// The metric names in the order of the page; of a run of one name, as buckets are, the first only.
    pub fn names(self) -> impl Iterator<Item = &'a str> {
        let mut last = "";
        self.samples().map(|sample| sample.0).filter(move |name| std::mem::replace(&mut last, name) != *name)
    }

    /// The lines that are samples, or should be: metric name, and what follows it.
    pub(super) fn samples(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let lines = self.0.lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
            let end = line.find(|c: char| c == '{' || c.is_ascii_whitespace()).unwrap_or(line.len());
            line.split_at(end)
        })
    }

    /// Whether the last line ends. The mark of OpenMetrics is as good an end as that of a line.
    pub(super) fn is_whole(self) -> bool {
        self.0.ends_with('\n') || self.0.lines().next_back().map(str::trim) == Some("# EOF")
    }

    /// What a page is that is none of the engines looked for.
    pub(super) fn stranger(self, looked_for: impl FnOnce() -> String) -> PageError {
        let text = self.0.trim_start();
        match text.chars().next() {
            None => PageError::Empty,
            Some('<') => PageError::Html,
            Some('{' | '[') => {
                let paths = engine::other_paths().into_iter().map(|(name, path)| format!("{name}: {path}"));
                PageError::Json { other_paths: paths.collect::<Vec<_>>().join(", ") }
            }
            Some(_) => {
                // Every Python server shows its interpreter first, which tells nothing.
                let telling =
                    |line: &&str| !["#", "python_", "process_"].iter().any(|start| line.starts_with(start));
                let line = text.lines().filter(|line| !line.is_empty()).find(telling);
                let beginning = line.or(text.lines().next()).unwrap_or_default().chars().take(60).collect();
                PageError::NoEngine { beginning, looked_for: looked_for(), alike: engine::alike(self) }
            }
        }
    }
}
