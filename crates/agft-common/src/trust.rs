//! Whether a stranger could have written a file.
//!
//! agft runs as root and acts on what a model file says, so it asks of it what sshd asks of a key file: owned
//! by root or by the user agft runs as, writable by nobody else.
//!
//! The store opens its files relative to a directory, follows no link, and judges what it has opened. A
//! configuration file is named by a path, and links on the way are common (`/etc/alternatives`, the
//! ConfigMaps of Kubernetes). So there the whole way is judged: nobody else may be able to put another file,
//! or another link, in any place of it. The same holds for the directories that root keeps files in.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everybody may make files in such a directory, but touch only their own.
pub const STICKY: u32 = 0o1000;

/// Why a file is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// A link.
    #[error("it is a symbolic link, which can be pointed anywhere")]
    Symlink,
    /// A directory, a pipe, a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// Another owner.
    #[error(
        "it belongs to user {owner}, not to root or to user {me} that agft runs as (`chown {me}` if it is yours)"
    )]
    Owner {
        /// Who owns it.
        owner: u32,
        /// Who agft runs as.
        me: u32,
    },
    /// Too many may write it.
    #[error("its mode {mode:04o} lets others write it (`chmod go-w` if it is yours)")]
    Writable {
        /// Its mode.
        mode: u32,
    },
    /// The system does not tell about it.
    #[error("it cannot be examined: {detail}")]
    Unknown {
        /// Why.
        detail: String,
    },
}

/// Could only root or this process's own user have written this open file?
///
/// Asked of a file that is open, so that nobody can exchange it between the question and the reading.
/// Errors: [`io::Error`] if the system does not tell about it.
pub fn judge_open(file: &File) -> io::Result<Result<(), Distrust>> {
    Ok(judge(&file.metadata()?))
}

fn judge(metadata: &Metadata) -> Result<(), Distrust> {
    judge_file(metadata, Believed { uid: None })
}

fn judge_file(metadata: &Metadata, believed: Believed) -> Result<(), Distrust> {
    if metadata.is_symlink() {
        return Err(Distrust::Symlink);
    }
    if !metadata.is_file() {
        return Err(Distrust::NotAFile);
    }
    judge_owner_and_mode(metadata, believed)
}

/// Could only those have written the file at `path` who could have written this process's own program as
/// well?
///
/// `own` is that program, in the same directory: who may exchange the one may exchange the other. So the file
/// must be no link, belong to root, to this process's user or to the program's owner, and be writable by
/// nobody else. Errors: [`Distrust`], the reason why not.
pub fn trusted_beside(path: &Path, own: &Path) -> Result<(), Distrust> {
    let unknown = |error: io::Error| Distrust::Unknown { detail: error.to_string() };
    let owner = own.symlink_metadata().map_err(unknown)?.uid();
    judge_file(&path.symlink_metadata().map_err(unknown)?, Believed { uid: Some(owner) })
}

/// Who is believed beside root and the user that agft runs as.
#[derive(Debug, Clone, Copy)]
struct Believed {
    /// The user who called sudo (what agft does as root for such a user, that user could do as well), or the
    /// owner of the running program. Its group counts as the user only if it has the same number, as the
    /// private groups of Debian and Red Hat have.
    uid: Option<u32>,
}

impl Believed {
    fn sudo() -> Self {
        let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
        let root = rustix::process::geteuid().is_root();
        Self { uid: number("SUDO_UID").filter(|_| root) }
    }

    fn owner(self, owner: u32) -> Result<(), Distrust> {
        let me = rustix::process::geteuid().as_raw();
        if owner == 0 || owner == me || self.uid == Some(owner) {
            Ok(())
        } else {
            Err(Distrust::Owner { owner, me })
        }
    }
}

fn judge_owner_and_mode(metadata: &Metadata, believed: Believed) -> Result<(), Distrust> {
    let (mode, group) = (metadata.mode() & 0o7777, metadata.gid());
    believed.owner(metadata.uid())?;
    let private = believed.uid == Some(group) && metadata.uid() == group;
    let others = if private { 0o002 } else { 0o022 };
    if mode & others == 0 { Ok(()) } else { Err(Distrust::Writable { mode }) }
}

/// A place on the way to a file at which a stranger could bring in another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", .at.display())]
pub struct Untrusted {
    /// The file, a link or a directory on the way to it.
    pub at: PathBuf,
    /// What is wrong with that.
    pub why: Distrust,
}

/// Could only root, this process's own user, or the user behind sudo have decided what is read at `path`?
///
/// Asked of the file, of each directory above it, and of each link on the way: owner and mode. A directory in
/// which everybody may make files, but not touch those of others (`/tmp`), will do. Errors: [`Untrusted`]
/// with the first place that will not do.
pub fn trusted_path(path: &Path) -> Result<(), Untrusted> {
    trusted_place(path)?;
    let metadata = path.metadata().map_err(unknown(path))?;
    if !metadata.is_file() {
        return Err(Untrusted { at: path.to_owned(), why: Distrust::NotAFile });
    }
    Ok(())
}

/// The same of whatever is at `path`.
/// Errors: [`Untrusted`] with the first place that will not do.
pub fn trusted_place(path: &Path) -> Result<(), Untrusted> {
    judge_way(path, |_| true)
}

/// Could root keep files in the directory at `path`, or in one made there: would no place on the way let
/// others exchange it, and can others not write in it? Errors: [`Untrusted`] with the first place that will
/// not do.
pub fn trusted_dir(path: &Path) -> Result<(), Untrusted> {
    let written = std::path::absolute(path).map_err(unknown(path))?;
    // The nearest directory that exists decides whether the rest can be made.
    let existing =
        written.ancestors().find(|place| place.symlink_metadata().is_ok()).unwrap_or(Path::new("/"));
    trusted_place(existing)
}

/// Could only those whom [`trusted_path`] believes put another directory in the place of the one at `path`?
///
/// Asked of each directory above it, and of each link on the way. The directory itself is judged when it is
/// open. Errors: [`Untrusted`] with the first place that will not do.
pub fn trusted_way(path: &Path) -> Result<(), Untrusted> {
    let real = path.canonicalize().map_err(unknown(path))?;
    judge_way(path, |place| place != real)
}

fn unknown(at: &Path) -> impl FnOnce(io::Error) -> Untrusted {
    let at = at.to_owned();
    move |error| Untrusted { at, why: Distrust::Unknown { detail: error.to_string() } }
}

/// Judges the places on the way to `path` that are `asked` about: as it is written, whose links lead to the
/// way as it really is.
fn judge_way(path: &Path, asked: impl Fn(&Path) -> bool) -> Result<(), Untrusted> {
    let believed = Believed::sudo();
    let written = std::path::absolute(path).map_err(unknown(path))?;
    for way in [written, path.canonicalize().map_err(unknown(path))?] {
        for place in way.ancestors().filter(|place| asked(place)) {
            let metadata = place.symlink_metadata().map_err(unknown(place))?;
            judge_place(&metadata, believed).map_err(|why| Untrusted { at: place.to_owned(), why })?;
        }
    }
    Ok(())
}

/// One place on the way to a file, or the file.
fn judge_place(metadata: &Metadata, believed: Believed) -> Result<(), Distrust> {
    if metadata.is_symlink() {
        // A link has no mode; who may exchange it is its directory's matter.
        return believed.owner(metadata.uid()).map_err(|_| Distrust::Symlink);
    }
    if metadata.is_dir() && metadata.mode() & STICKY != 0 {
        return believed.owner(metadata.uid());
    }
    judge_owner_and_mode(metadata, believed)
}

/// Is this open directory one in which only root and this process's own user can make and remove files?
pub fn judge_dir(metadata: &Metadata) -> Result<(), Distrust> {
    judge_owner_and_mode(metadata, Believed::sudo())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    fn trusted(path: &Path) -> Result<(), Distrust> {
        judge(&path.symlink_metadata().map_err(|error| Distrust::Unknown { detail: error.to_string() })?)
    }

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

    /// A directory that only root can write, and in it a file.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/config.yaml");
        fs::create_dir(dir.path().join("deep")).unwrap();
        fs::write(&path, b"{}").unwrap();
        (dir, path)
    }

    #[test]
    fn a_path_is_trusted_until_others_may_write_any_directory_of_it() {
        let (dir, path) = place();
        assert_eq!(trusted_path(&path), Ok(()));
        for (at, mode, trusted) in [
            (path.as_path(), 0o666, false),
            (path.as_path(), 0o640, true),
            (path.parent().unwrap(), 0o777, false),
            (path.parent().unwrap(), 0o1777, true),
            (dir.path(), 0o770, false),
            (dir.path(), 0o755, true),
        ] {
            fs::set_permissions(at, fs::Permissions::from_mode(mode)).unwrap();
            let why = Distrust::Writable { mode };
            let want = if trusted { Ok(()) } else { Err(Untrusted { at: at.to_owned(), why }) };
            assert_eq!(trusted_path(&path), want, "{} {mode:o}", at.display());
        }
    }

    #[test]
    fn links_on_the_way_are_followed_if_they_are_ours_and_lead_to_what_is_trusted() {
        let (dir, path) = place();
        let link = dir.path().join("link.yaml");
        symlink(&path, &link).unwrap();
        assert_eq!(trusted_path(&link), Ok(()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o602)).unwrap();
        let found = Untrusted { at: path.canonicalize().unwrap(), why: Distrust::Writable { mode: 0o602 } };
        assert_eq!(trusted_path(&link), Err(found));
        assert_eq!(trusted_path(dir.path()).unwrap_err().why, Distrust::NotAFile);
        assert!(matches!(trusted_path(&dir.path().join("no")).unwrap_err().why, Distrust::Unknown { .. }));
    }

    #[test]
    fn files_directories_and_links_of_another_user_are_not_trusted() {
        if !is_root() {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let owner = Distrust::Owner { owner: 65534, me: 0 };
        let (dir, path) = place();
        chown(&path, Some(65534), None).unwrap();
        assert_eq!(trusted_path(&path).unwrap_err().why, owner);
        let (dir2, path) = place();
        chown(dir2.path(), Some(65534), None).unwrap();
        assert_eq!(trusted_path(&path).unwrap_err(), Untrusted { at: dir2.path().to_owned(), why: owner });
        let (_keep, path) = place();
        let link = dir.path().join("link.yaml");
        symlink(&path, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
        assert_eq!(trusted_path(&link).unwrap_err(), Untrusted { at: link, why: Distrust::Symlink });
    }

    #[test]
    fn a_directory_is_judged_as_a_place_and_the_user_behind_sudo_is_believed() {
        let (_keep, path) = place();
        let deep = path.parent().unwrap();
        assert_eq!(trusted_place(deep), Ok(()));
        fs::set_permissions(deep, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(trusted_place(deep).is_err() && trusted_place(&path).is_err());
        assert!(trusted_place(&deep.join("absent")).is_err());
        if is_root() {
            chown(&path, Some(65534), None).unwrap();
            let metadata = path.symlink_metadata().unwrap();
            let owner = Distrust::Owner { owner: 65534, me: 0 };
            assert_eq!(judge_place(&metadata, Believed { uid: None }), Err(owner));
            assert_eq!(judge_place(&metadata, Believed { uid: Some(65534) }), Ok(()));
        }
    }
}
