//! A file is replaced whole or not at all.
//!
//! The new content goes into a temporary file beside the target, is flushed to the disk, and takes the target's name
//! in one rename; then the directory is flushed. Whoever reads the target sees the old content or the new. A writer
//! that died leaves its temporary file, which the next one removes.

use std::ffi::OsStr;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use super::dir::{Dir, Found};
use super::error::StoreError;
use super::trust::Distrust;

const TEMPORARY_PREFIX: &str = ".agft-";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Replaces the file at `path` (mode `0640`), making its directory if need be, and removes what dead writers left there.
///
/// When this returns, the content is on the disk. When it fails, the old file is as it was.
/// Errors: [`StoreError`]: the system's refusal, or a symbolic link at `path`.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let fail = |why| StoreError::Io {
        operation: "write",
        path: path.to_owned(),
        cause: io::Error::new(io::ErrorKind::InvalidInput, why),
    };
    let name =
        path.file_name().and_then(OsStr::to_str).ok_or_else(|| fail("the path has no file name in UTF-8"))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let dir = Dir::open_or_create(parent)?;
    remove_leftovers(&dir)?;
    replace(&dir, name, bytes)
}

/// Replaces one file of an open directory.
pub(super) fn replace(dir: &Dir, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    stage(dir, name, bytes)?.publish()
}

/// A value as indented JSON with a newline at the end; `path` is for the error.
pub(super) fn json<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, StoreError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| StoreError::Encode { path: path.to_owned(), detail: error.to_string() })?;
    text.push(b'\n');
    Ok(text)
}

/// New content, safely on the disk under a temporary name. Dropped, it is removed again.
#[derive(Debug)]
pub(super) struct Staged<'a> {
    dir: &'a Dir,
    temporary: String,
    target: &'a str,
    published: bool,
    // Locked while it is open: how others tell a living writer's file from a dead one's. A process id would not do,
    // since in a container every writer has the same.
    file: File,
}

/// Writes `bytes` under a temporary name beside `target`.
pub(super) fn stage<'a>(dir: &'a Dir, target: &'a str, bytes: &[u8]) -> Result<Staged<'a>, StoreError> {
    if dir.is_link(target)? {
        return Err(StoreError::Refused { path: dir.file(target), why: Distrust::Symlink });
    }
    let unguessable = RandomState::new().build_hasher().finish();
    let temporary = format!("{TEMPORARY_PREFIX}{target}-{unguessable:016x}{TEMPORARY_SUFFIX}");
    let file = dir.create_new(&temporary)?;
    // Without locks on this file system, leftovers stay.
    let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
    let staged = Staged { dir, temporary, target, published: false, file };
    dir.attempt("write", target, || (&staged.file).write_all(bytes))?;
    dir.attempt("flush to disk", target, || staged.file.sync_all())?;
    Ok(staged)
}

impl Staged<'_> {
    /// Gives the content its name.
    pub(super) fn publish(mut self) -> Result<(), StoreError> {
        self.dir.rename(&self.temporary, self.target)?;
        self.published = true;
        self.dir.sync()
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        // Closing is not enough: a child between fork and exec shares the descriptor, and with it the lock.
        let _ = flock(&self.file, FlockOperation::Unlock);
        if !self.published {
            // It failed before; a second failure adds nothing, and the next start removes the file.
            let _ = self.dir.remove(&self.temporary);
        }
    }
}

/// Removes temporary files that nobody writes any more; says how many.
pub(super) fn remove_leftovers(dir: &Dir) -> Result<usize, StoreError> {
    let mut removed = 0;
    for name in dir.names()? {
        if !is_temporary(&name) {
            continue;
        }
        // One that cannot be opened or removed is no reason not to start.
        if let Ok(Found::Here(file)) = dir.open_read(&name)
            && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && dir.remove(&name).is_ok()
        {
            removed += 1;
        }
    }
    Ok(removed)
}

/// Is this a name that [`stage`] gives?
pub(super) fn is_temporary(name: &str) -> bool {
    let random = name
        .strip_prefix(TEMPORARY_PREFIX)
        .and_then(|rest| rest.strip_suffix(TEMPORARY_SUFFIX))
        .and_then(|rest| rest.rsplit_once('-'));
    matches!(random, Some((target, hex)) if !target.is_empty()
        && hex.len() == 16
        && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::store::testing::{ReadOnly, Tmpfs, names_in};

    #[test]
    fn a_file_is_replaced_whole_with_mode_0640_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper/down/state.json");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names_in(path.parent().unwrap()), ["state.json"]);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path) & !0o640, 0);
        assert_eq!(mode(path.parent().unwrap()) & !0o750, 0);
    }

    #[test]
    fn a_write_that_fails_at_any_step_leaves_the_old_file_or_the_new_one() {
        let mut failures = 0;
        for steps in 0.. {
            let tmp = tempfile::tempdir().unwrap();
            let dir = Dir::open_or_create(tmp.path()).unwrap();
            replace(&dir, "f", b"old").unwrap();
            dir.fuse.allow(steps);
            let outcome = replace(&dir, "f", b"new");
            let content = fs::read(tmp.path().join("f")).unwrap();
            match outcome {
                Ok(()) => {
                    assert_eq!(content, b"new");
                    break;
                }
                Err(error) => {
                    failures += 1;
                    // Only the flush of the directory comes after the rename.
                    let renamed = error.to_string().contains("cannot flush to disk") && content == b"new";
                    assert!(content == b"old" || renamed, "after {steps} steps: {error}");
                }
            }
            dir.fuse.mend();
            remove_leftovers(&dir).unwrap();
            assert_eq!(names_in(tmp.path()), ["f"]);
        }
        assert!(failures >= 6, "look, create, write, flush, rename, flush: {failures} failed");
    }

    #[test]
    fn a_symbolic_link_is_neither_followed_nor_replaced() {
        let tmp = tempfile::tempdir().unwrap();
        let (victim, link) = (tmp.path().join("victim"), tmp.path().join("state.json"));
        fs::write(&victim, b"precious").unwrap();
        symlink(&victim, &link).unwrap();
        let error = write(&link, b"new").unwrap_err();
        assert!(matches!(error, StoreError::Refused { why: Distrust::Symlink, .. }), "{error}");
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert!(link.is_symlink());
    }

    #[test]
    fn the_leftover_of_a_dead_writer_goes_and_a_living_writers_file_and_strangers_stay() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open_or_create(tmp.path()).unwrap();
        let living = stage(&dir, "f", b"new").unwrap();
        let strangers = [".agft-f-0123.tmp", ".agft-notes.tmp", ".agft-f-0123456789abcdex.tmp", "f.tmp"];
        for name in strangers {
            fs::write(tmp.path().join(name), b"").unwrap();
        }
        fs::write(tmp.path().join(".agft-f-0123456789abcdef.tmp"), b"half").unwrap();
        assert_eq!(remove_leftovers(&dir).unwrap(), 1);
        assert_eq!(names_in(tmp.path()).len(), strangers.len() + 1);
        living.publish().unwrap();
        assert_eq!(fs::read(tmp.path().join("f")).unwrap(), b"new");
    }

    #[test]
    fn a_full_disk_is_named_with_its_remedy_and_spares_the_old_file() {
        let Some(disk) = Tmpfs::mount("size=64k") else { return };
        let path = disk.path().join("state.json");
        write(&path, b"old").unwrap();
        let error = write(&path, &vec![b'x'; 1 << 20]).unwrap_err();
        assert_eq!(error.io_kind(), Some(io::ErrorKind::StorageFull));
        let text = error.to_string();
        for part in ["cannot write", "state.json", "No space left on device", "free space"] {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names_in(disk.path()), ["state.json"]);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named_with_its_remedy() {
        let Some(dir) = ReadOnly::new() else { return };
        let text = write(&dir.path().join("state.json"), b"new").unwrap_err().to_string();
        for part in ["cannot create", "state.json", "choose another directory"] {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let blocker = tmp.path().join("models");
        fs::write(&blocker, b"").unwrap();
        for path in [blocker.join("state.json"), blocker.join("deeper/state.json")] {
            let text = write(&path, b"new").unwrap_err().to_string();
            assert!(
                text.contains("cannot create the directory") && text.contains("not a directory"),
                "{text}"
            );
        }
    }
}
