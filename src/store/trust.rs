//! Whether a stranger could have written a file.
//!
//! agft runs as root and acts on what a model file says, so it asks of it what sshd asks of a key file: owned by root
//! or by the user agft runs as, writable by nobody else.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Why a file is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// It is a symbolic link.
    #[error("it is a symbolic link, which can be pointed anywhere")]
    Symlink,
    /// It is a directory, a device, a pipe or a socket.
    #[error("it is not a regular file")]
    NotAFile,
    /// Somebody else owns it.
    #[error(
        "it belongs to user {owner}, not to root or to user {me} that agft runs as (`chown {me}` if it is yours)"
    )]
    Owner {
        /// The file's user id.
        owner: u32,
        /// The effective user id of this process.
        me: u32,
    },
    /// Others may write it.
    #[error("its mode {mode:04o} lets others write it (`chmod go-w` if it is yours)")]
    Writable {
        /// Permission bits.
        mode: u32,
    },
    /// The system does not say.
    #[error("it cannot be examined: {detail}")]
    Unknown {
        /// What the system said.
        detail: String,
    },
}

/// Could only root or this process's own user have written the file at `path`?
///
/// The answer is about the moment of the call. The store itself asks about files it has already opened, so that
/// nobody can exchange the file between the question and the reading.
///
/// # Errors
/// [`Distrust`], the reason why not.
pub fn trusted(path: &Path) -> Result<(), Distrust> {
    match path.symlink_metadata() {
        Ok(metadata) => judge(&metadata),
        Err(error) => Err(Distrust::Unknown { detail: error.to_string() }),
    }
}

/// [`trusted`] for a file that is already open.
pub(super) fn judge_open(file: &File) -> io::Result<Result<(), Distrust>> {
    Ok(judge(&file.metadata()?))
}

fn judge(metadata: &Metadata) -> Result<(), Distrust> {
    let me = rustix::process::geteuid().as_raw();
    let owner = metadata.uid();
    let mode = metadata.mode() & 0o7777;
    if metadata.is_symlink() {
        Err(Distrust::Symlink)
    } else if !metadata.is_file() {
        Err(Distrust::NotAFile)
    } else if owner != 0 && owner != me {
        Err(Distrust::Owner { owner, me })
    } else if mode & 0o022 != 0 {
        Err(Distrust::Writable { mode })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;
    use crate::store::testing::is_root;

    #[test]
    fn a_file_is_trusted_until_others_may_write_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.agft");
        fs::write(&path, b"x").unwrap();
        for (mode, want) in [
            (0o640, Ok(())),
            (0o644, Ok(())),
            (0o600, Ok(())),
            (0o660, Err(Distrust::Writable { mode: 0o660 })),
            (0o602, Err(Distrust::Writable { mode: 0o602 })),
            (0o646, Err(Distrust::Writable { mode: 0o646 })),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(trusted(&path), want, "mode {mode:o}");
        }
    }

    #[test]
    fn links_directories_and_absent_files_are_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("/etc/passwd", &link).unwrap();
        assert_eq!(trusted(&link), Err(Distrust::Symlink));
        assert_eq!(trusted(dir.path()), Err(Distrust::NotAFile));
        assert!(matches!(trusted(&dir.path().join("absent")), Err(Distrust::Unknown { .. })));
    }

    #[test]
    fn a_file_of_another_user_is_not_trusted() {
        if !is_root() {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.agft");
        fs::write(&path, b"x").unwrap();
        chown(&path, Some(65534), None).unwrap();
        assert_eq!(trusted(&path), Err(Distrust::Owner { owner: 65534, me: 0 }));
    }
}
