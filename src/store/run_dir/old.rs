//! Clearing away the directories of old runs: only ours, only finished or dead ones.

use std::path::PathBuf;

use super::{METADATA, RunDir, file};
use crate::store::dir::{Dir, Found};
use crate::store::error::StoreError;

/// No metadata file is larger, in bytes.
const MAX_METADATA_BYTES: u64 = 4 << 20;

impl RunDir {
    /// Removes the oldest directories of earlier runs with this run's prefix until at most `keep` are left, and says
    /// which. This run is not counted.
    ///
    /// A directory goes only if its name is one that [`RunDir::create`] gives, if it holds metadata that say the same
    /// name (or is empty: its agft was killed before they were written), and if no living agft holds it. Links are neither followed nor removed. One that cannot be removed is
    /// logged and stays.
    /// Errors: [`StoreError::Io`] if the directory of the runs cannot be listed.
    pub(crate) fn remove_old(&self, keep: usize) -> Result<Vec<PathBuf>, StoreError> {
        let mut runs: Vec<(RunName, String)> = self
            .base
            .names()?
            .into_iter()
            .filter(|name| *name != self.name)
            .filter_map(|name| RunName::parse(&name, &self.prefix).map(|parsed| (parsed, name)))
            .filter(|(_, name)| hold(&self.base, name).is_some())
            .collect();
        runs.sort_unstable();
        let surplus = runs.len().saturating_sub(keep);
        let mut removed = Vec::new();
        for (_, name) in runs.into_iter().take(surplus) {
            // Held while it goes; it may have changed since it was counted.
            let Some(held) = hold(&self.base, &name) else { continue };
            let path = self.base.file(&name);
            match clear(&held)
                .and_then(|()| self.base.attempt("remove", &name, || std::fs::remove_dir_all(&path)))
            {
                Ok(()) => removed.push(path),
                Err(error) => tracing::warn!(%error, "an old run stays"),
            }
        }
        Ok(removed)
    }
}

/// Removes all but the metadata: they go last, so that a run half removed is still known for one.
pub(super) fn clear(run: &Dir) -> Result<(), StoreError> {
    for name in run.names()?.iter().filter(|name| *name != METADATA) {
        let path = run.file(name);
        run.attempt("remove", name, || {
            let is_dir = path.symlink_metadata()?.is_dir();
            if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }
        })?;
    }
    Ok(())
}

/// The moment in a run's name, and its number among those of the same second. Sorts by time.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RunName {
    stamp: String,
    number: u64,
}

impl RunName {
    fn parse(name: &str, prefix: &str) -> Option<Self> {
        let digits = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_digit());
        let mut parts = name.strip_prefix(prefix)?.strip_prefix('_')?.split('_');
        let (day, time) = (parts.next()?, parts.next()?);
        let number = match parts.next() {
            None => 1,
            Some(number) => number.parse().ok().filter(|n| *n >= 2 && *number == format!("{n}"))?,
        };
        let whole = digits(day, 8) && digits(time, 6) && parts.next().is_none();
        whole.then(|| Self { stamp: format!("{day}_{time}"), number })
    }
}

/// Opens and holds the directory of a run, if it is one and nobody holds it.
fn hold(base: &Dir, name: &str) -> Option<Dir> {
    let dir = base.open_dir(name).ok()?;
    dir.lock().ok()?;
    let ours = match dir.read_trusted(METADATA, MAX_METADATA_BYTES).ok()? {
        Found::Here(text) => {
            let metadata: serde_json::Value = serde_json::from_slice(&text).ok()?;
            metadata.get("experiment_name")?.as_str()? == name
        }
        Found::Absent => died_at_birth(&dir),
        Found::Refused(_) => false,
    };
    ours.then_some(dir)
}

/// Killed before its metadata, which come first, were written: it is empty, or has no more than the beginning of them.
fn died_at_birth(dir: &Dir) -> bool {
    dir.names().is_ok_and(|names| names.iter().all(|name| file::is_temporary(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_agft_gives_are_names_of_runs_and_they_sort_by_time() {
        let run = |stamp: &str, number| Some(RunName { stamp: stamp.into(), number });
        assert_eq!(RunName::parse("agft_20260821_093000", "agft"), run("20260821_093000", 1));
        assert_eq!(RunName::parse("agft_20260821_093000_12", "agft"), run("20260821_093000", 12));
        assert_eq!(RunName::parse("my_lab_20260821_093000", "my_lab"), run("20260821_093000", 1));
        for name in [
            "agft_20260821_093000_1",
            "agft_20260821_093000_02",
            "agft_20260821_093000_2_3",
            "agft_20260821_093000_copy",
            "agft_20260821_0930",
            "agft_best",
            "agft_",
            "agft",
            "other_20260821_093000",
            "agft2_20260821_093000",
        ] {
            assert_eq!(RunName::parse(name, "agft"), None, "{name}");
        }
        assert!(run("20260821_093000", 2) < run("20260821_093000", 10));
        assert!(run("20260821_093000", 10) < run("20260821_093001", 1));
    }
}
