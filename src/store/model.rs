//! The learned model on disk: two generations, and nothing is ever thrown away unseen.
//!
//! Saving goes: new content to a temporary file and to the disk; `model.agft` becomes `model.previous.agft`; the
//! temporary file becomes `model.agft`. Wherever that stops, one of the two names holds a whole model. A file that
//! does not check out is moved aside under a name of its own, by loading and by saving alike, so it is never
//! overwritten and never loaded.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

pub(crate) use super::container::RejectReason;
use super::container::{self, Container, MAX_FILE_BYTES, Stored};
use super::dir::{Dir, Found};
use super::error::StoreError;
use super::file;
use super::identity::{Difference, Identity};

/// How many rejected files stay, and how many that a reset moved aside.
const KEPT_ASIDE: usize = 5;
const EXTENSION: &str = ".agft";

/// Which of the two stored models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The last one saved.
    Current,
    /// The one saved before that.
    Previous,
}

impl Generation {
    /// Its file in the model directory.
    #[must_use]
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::Current => "model.agft",
            Self::Previous => "model.previous.agft",
        }
    }
}

/// A file that was not loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Where it was.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: RejectReason,
    pub(crate) kept_as: PathBuf,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was not loaded: {}; kept as {}", self.path.display(), self.why, self.kept_as.display())
    }
}

/// A model that was loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored<T> {
    /// The model.
    pub model: T,
    /// The identity it was stored under.
    pub identity: Identity,
    /// Which file it is from. `Generation::Previous` with nothing rejected: the last save was cut short.
    pub generation: Generation,
    /// What differs between then and now.
    pub differences: Vec<Difference>,
    /// What was tried before it.
    pub rejected: Vec<Rejected>,
}

/// What loading found.
#[derive(Debug, Clone, PartialEq)]
pub enum Load<T> {
    /// A model.
    Restored(Box<Restored<T>>),
    /// None that can be used here: start from nothing.
    Fresh {
        /// Why not the ones that were there; empty on the first start.
        reasons: Vec<Rejected>,
    },
}

/// The directory of the learned model, held for this process alone.
#[derive(Debug)]
pub struct ModelStore {
    dir: Dir,
    // Two threads that save must not rotate at once.
    turn: Mutex<()>,
}

/// A file against which nothing speaks.
pub(super) struct Sound<M> {
    identity: Identity,
    differences: Vec<Difference>,
    pub(super) model: M,
}

impl ModelStore {
    /// Opens the directory, making it if need be; takes the lock that keeps a second agft out for as long as this
    /// value, or this process, lives; removes temporary files of dead writers.
    /// Errors: `StoreError::InUse` if another agft holds the directory; others if it cannot be opened.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let dir = Dir::open_or_create(dir)?.make_ours()?;
        dir.lock()?;
        // Each file in it is judged for itself: what others can do here is to take models away, not to forge one.
        if let Some(why) = dir.open_to_others()? {
            tracing::warn!(path = %dir.path().display(), %why, "others can remove the model");
        }
        file::remove_leftovers(&dir)?;
        Ok(Self { dir, turn: Mutex::new(()) })
    }

    /// Stores the model as the current generation; the current one becomes the previous one.
    ///
    /// When this returns, the model is on the disk. Returns what stood in a generation's place without being a model
    /// of this GPU and policy, and was therefore moved aside (`now` is in its new name).
    ///
    /// `T`'s serde form has to be positional: `skip_serializing_if`, `flatten` and `untagged` do not come back.
    /// Errors: [`StoreError`]; one loadable generation is there if one was there before.
    pub(crate) fn save<T: Serialize>(
        &self,
        identity: &Identity,
        model: &T,
        now: Timestamp,
    ) -> Result<Vec<Rejected>, StoreError> {
        let _turn = self.turn();
        let [current, previous] = [Generation::Current, Generation::Previous].map(Generation::file_name);
        let bytes = container::encode(identity, model)
            .map_err(|detail| StoreError::Encode { path: self.dir.file(current), detail })?;
        let length = bytes.len() as u64;
        if length > MAX_FILE_BYTES {
            let path = self.dir.file(current);
            return Err(StoreError::TooLarge { path, bytes: length, limit: MAX_FILE_BYTES });
        }
        let mut rejected = Vec::new();
        let rotate = self.holds_ours(current, identity, now, &mut rejected)?;
        if rotate {
            // Not to be written over unless it, too, is one of ours.
            self.holds_ours(previous, identity, now, &mut rejected)?;
        }
        let staged = file::stage(&self.dir, current, &bytes)?;
        if rotate {
            self.dir.rename(current, previous)?;
        }
        staged.publish()?;
        Ok(rejected)
    }

    /// Loads the current generation, else the previous one, else says why neither.
    ///
    /// A file that is damaged, foreign or not trusted is moved to `model.rejected-<now>-<n>.agft`, of which the
    /// newest five are kept.
    /// Errors: `StoreError` if the system does not let a file be read or moved aside; nothing is lost then.
    pub fn load<T: Stored>(&self, here: &Identity, now: Timestamp) -> Result<Load<T>, StoreError> {
        let _turn = self.turn();
        let mut rejected = Vec::new();
        for generation in [Generation::Current, Generation::Previous] {
            let name = generation.file_name();
            match self.examine(name, here, container::decode)? {
                None => {}
                Some(Ok(Sound { identity, differences, model })) => {
                    let restored = Restored { model, identity, generation, differences, rejected };
                    return Ok(Load::Restored(Box::new(restored)));
                }
                Some(Err(why)) => rejected.push(self.reject(name, why, now)?),
            }
        }
        Ok(Load::Fresh { reasons: rejected })
    }

    /// Moves both generations to `model.before-reset-<now>-<n>.agft`, of which the newest five are kept; returns
    /// where they are now.
    pub(crate) fn reset(&self, now: Timestamp) -> Result<Vec<PathBuf>, StoreError> {
        let _turn = self.turn();
        let mut kept = Vec::new();
        for generation in [Generation::Current, Generation::Previous] {
            if self.dir.exists(generation.file_name())? {
                kept.push(self.set_aside(generation.file_name(), "model.before-reset-", now)?);
            }
        }
        Ok(kept)
    }

    pub(super) fn dir(&self) -> &Dir {
        &self.dir
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        // The lock guards files, not memory: a thread that panicked while holding it left no broken value behind.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that speaks against a file, and, if nothing does, what `decode` makes of it. `None`: not there.
    pub(super) fn examine<M>(
        &self,
        name: &str,
        here: &Identity,
        decode: impl FnOnce(&Container<'_>) -> Result<M, RejectReason>,
    ) -> Result<Option<Result<Sound<M>, RejectReason>>, StoreError> {
        let bytes = match self.dir.read_trusted(name, MAX_FILE_BYTES)? {
            Found::Here(bytes) => bytes,
            Found::Absent => return Ok(None),
            Found::Refused(why) => return Ok(Some(Err(RejectReason::Distrusted(why)))),
        };
        let sound = container::open(&bytes).and_then(|container| {
            let differences = container.identity.fits(here).map_err(RejectReason::Foreign)?;
            let model = decode(&container)?;
            Ok(Sound { identity: container.identity, differences, model })
        });
        Ok(Some(sound))
    }

    /// Is a model of ours in that place? Anything else in it is moved aside.
    fn holds_ours(
        &self,
        name: &str,
        here: &Identity,
        now: Timestamp,
        rejected: &mut Vec<Rejected>,
    ) -> Result<bool, StoreError> {
        match self.examine(name, here, |_| Ok(()))? {
            None => Ok(false),
            Some(Ok(_)) => Ok(true),
            Some(Err(why)) => {
                rejected.push(self.reject(name, why, now)?);
                Ok(false)
            }
        }
    }

    fn reject(&self, name: &str, why: RejectReason, now: Timestamp) -> Result<Rejected, StoreError> {
        let kept_as = self.set_aside(name, "model.rejected-", now)?;
        Ok(Rejected { path: self.dir.file(name), why, kept_as })
    }

    /// Moves a file to the first free `<prefix><seconds>-<n>.agft`, and removes the oldest of too many.
    pub(super) fn set_aside(&self, name: &str, prefix: &str, now: Timestamp) -> Result<PathBuf, StoreError> {
        let seconds = now.as_second().max(0);
        let aside = |n: u64| format!("{prefix}{seconds}-{n}{EXTENSION}");
        let mut n = 1;
        while !self.dir.rename_to_new(name, &aside(n))? {
            n += 1;
        }
        let newest = aside(n);
        let mut older: Vec<(i64, u64, String)> = self
            .dir
            .names()?
            .into_iter()
            .filter(|other| *other != newest)
            .filter_map(|other| place_in_time(&other, prefix).map(|(seconds, n)| (seconds, n, other)))
            .collect();
        older.sort_unstable();
        let surplus = (older.len() + 1).saturating_sub(KEPT_ASIDE);
        for (_, _, oldest) in older.into_iter().take(surplus) {
            if let Err(error) = self.dir.remove(&oldest) {
                tracing::warn!(%error, "an old model file stays");
            }
        }
        self.dir.sync()?;
        Ok(self.dir.file(&newest))
    }
}

/// Seconds and number in a name that [`ModelStore::set_aside`] gave.
fn place_in_time(name: &str, prefix: &str) -> Option<(i64, u64)> {
    let (seconds, n) = name.strip_prefix(prefix)?.strip_suffix(EXTENSION)?.split_once('-')?;
    Some((seconds.parse().ok()?, n.parse().ok()?))
}

#[cfg(test)]
mod tests;
