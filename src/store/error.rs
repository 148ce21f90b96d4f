//! Why something could not be stored. The text names the operation, the path, what the system said and the remedy.

use std::io;
use std::path::PathBuf;

use super::trust::{Distrust, Untrusted};

/// Why a file could not be written, read, moved or removed.
///
/// The system's error is part of the text, so there is no `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("cannot {operation} {}: {cause}; {}", path.display(), remedy(cause))]
    Io { operation: &'static str, path: PathBuf, cause: io::Error },
    #[error("{} is not written to: {why}; remove it, or choose another directory", path.display())]
    Refused { path: PathBuf, why: Distrust },
    #[error(
        "root keeps nothing in {}, since others could put another directory in its place: {why}; \
         mend that, or choose another directory",
        path.display()
    )]
    Exchangeable { path: PathBuf, why: Untrusted },
    #[error(
        "{} is in use by another agft (`lslocks` shows which); stop that one, or give this one a directory of its own",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error("{} would have {bytes} bytes, more than the {limit} that agft reads back; it was not written", path.display())]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
    #[error("{} cannot be encoded: {detail}; this is a bug in agft, please report it", path.display())]
    Encode { path: PathBuf, detail: String },
    #[error("{} is damaged: {detail}; move it away, agft writes a new one", path.display())]
    Damaged { path: PathBuf, detail: String },
    #[error(
        "{name:?} cannot begin a directory name; use letters, digits, `_`, `-` and `.`, with no `.` in front"
    )]
    BadPrefix { name: String },
}

impl StoreError {
    #[cfg(test)]
    pub(crate) fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { cause, .. } => Some(cause.kind()),
            _ => None,
        }
    }
}

/// What the user can do about it.
fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space on that file system, or choose a directory on another"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "that file system is mounted read-only: remount it writable, or choose another directory"
        }
        io::ErrorKind::PermissionDenied => {
            "give the user that agft runs as access to it (chown, chmod), or choose another directory"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "something that is not a directory stands in the way: move it, or choose another directory"
        }
        io::ErrorKind::IsADirectory => "a directory stands where a file belongs: move it away",
        io::ErrorKind::NotFound => {
            "there is nothing of that name: was it moved or removed, or is the path wrong?"
        }
        _ => "check the mount and the disk (`dmesg`), or choose another directory",
    }
}
