//! One open directory, and everything the store does inside it.
//!
//! All calls are relative to the open descriptor and take a bare file name. Whoever controls a parent directory can
//! therefore not lead a root daemon elsewhere by exchanging a path component, and no call follows a symbolic link.

use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::error::StoreError;
use super::trust::{self, Distrust, STICKY};

const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
const DIR_MODE: u32 = 0o750;
/// What is said of a directory that others could write.
const MENDED: &str =
    "others could write in this directory of root's: that right was taken from them (chmod go-w)";

/// A directory, open.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
    #[cfg(test)]
    pub(super) fuse: super::testing::Fuse,
}

/// Makes the directory at `path` if need be, for root one that others can neither write nor exchange; says, for the
/// caller to pass on, what had to be mended for that.
/// Errors: [`StoreError`] if it cannot be made or, for root, be trusted.
pub(crate) fn own_dir(path: &Path) -> Result<Option<&'static str>, StoreError> {
    Ok(Dir::open_or_create(path)?.made_ours()?.then_some(MENDED))
}

/// What is there under a name.
#[derive(Debug)]
pub(super) enum Found<T> {
    Absent,
    /// Something that agft does not touch.
    Refused(Distrust),
    Here(T),
}

impl Dir {
    /// Opens the directory; makes it, and its parents, if it is not there.
    ///
    /// A link is followed only if it belongs to root or to this user: a stranger's could point anywhere.
    pub(super) fn open_or_create(path: &Path) -> Result<Self, StoreError> {
        let fail = |operation| move |cause| StoreError::Io { operation, path: path.to_owned(), cause };
        DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(path)
            .map_err(fail("create the directory"))?;
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let link = path.symlink_metadata().map_err(fail("open the directory"))?;
        if !link.is_symlink() {
            flags |= OFlags::NOFOLLOW;
        } else if link.uid() != 0 && link.uid() != rustix::process::geteuid().as_raw() {
            return Err(StoreError::Refused { path: path.to_owned(), why: Distrust::Symlink });
        }
        let fd = fs::open(path, flags, Mode::empty()).map_err(|e| fail("open the directory")(e.into()))?;
        Ok(Self::new(fd, path.to_owned()))
    }

    fn new(fd: OwnedFd, path: PathBuf) -> Self {
        Self {
            fd,
            path,
            #[cfg(test)]
            fuse: super::testing::Fuse::default(),
        }
    }

    /// Opens a directory inside this one; a link is refused.
    pub(super) fn open_dir(&self, name: &str) -> Result<Self, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.attempt("open the directory", name, || {
            fs::openat(&self.fd, name, flags, Mode::empty()).map_err(io::Error::from)
        })?;
        Ok(Self::new(fd, self.file(name)))
    }

    /// Makes a directory inside this one; `false` if the name is taken.
    pub(super) fn make_dir(&self, name: &str) -> Result<bool, StoreError> {
        let mode = Mode::from_raw_mode(DIR_MODE);
        self.attempt("create the directory", name, || match fs::mkdirat(&self.fd, name, mode) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        })
    }

    /// Refuses, for root, a directory in which others can make and remove files, or in whose place they can put another.
    pub(super) fn only_ours(self) -> Result<Self, StoreError> {
        if rustix::process::geteuid().is_root() {
            self.judge_way()?;
            if let Some(why) = self.open_to_others()? {
                return Err(StoreError::Refused { path: self.path.clone(), why });
            }
        }
        Ok(self)
    }

    /// The same, but where others only have a right too many to root's own directory, that is taken from them; `true`
    /// if it was. What they may have left in it is judged file by file.
    ///
    /// A directory in which everybody may make files, but not touch those of others (`/tmp`), stays as it is.
    pub(super) fn made_ours(&self) -> Result<bool, StoreError> {
        let me = rustix::process::geteuid();
        if !me.is_root() {
            return Ok(false);
        }
        self.judge_way()?;
        let metadata = self.metadata()?;
        let Err(why) = trust::judge_dir(&metadata) else { return Ok(false) };
        let refused = |why| StoreError::Refused { path: self.path.clone(), why };
        let Distrust::Writable { mode } = why else { return Err(refused(why)) };
        if mode & STICKY != 0 {
            return Ok(false);
        }
        if metadata.uid() != me.as_raw() || fs::fchmod(&self.fd, Mode::from_raw_mode(mode & !0o022)).is_err()
        {
            return Err(refused(why));
        }
        Ok(true)
    }

    /// [`made_ours`](Self::made_ours), said in the log.
    pub(super) fn make_ours(self) -> Result<Self, StoreError> {
        if self.made_ours()? {
            tracing::warn!(dir = %self.path.display(), "{MENDED}");
        }
        Ok(self)
    }

    fn judge_way(&self) -> Result<(), StoreError> {
        trust::trusted_way(&self.path)
            .map_err(|why| StoreError::Exchangeable { path: self.path.clone(), why })
    }

    fn metadata(&self) -> Result<Metadata, StoreError> {
        self.attempt("examine", "", || File::from(self.fd.try_clone()?).metadata())
    }

    /// Is it the same directory, whatever path leads to it?
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let id = |dir: &Self| fs::fstat(&dir.fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
        id(self).is_some_and(|this| id(other) == Some(this))
    }

    /// Why others can make and remove files in it, if they can.
    pub(super) fn open_to_others(&self) -> Result<Option<Distrust>, StoreError> {
        Ok(trust::judge_dir(&self.metadata()?).err())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file inside, for people.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Does one thing to the file `name` and dresses its error.
    pub(super) fn attempt<T>(
        &self,
        operation: &'static str,
        name: &str,
        act: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, StoreError> {
        #[cfg(test)]
        let act = || self.fuse.burn().and_then(|()| act());
        act().map_err(|cause| StoreError::Io { operation, path: self.file(name), cause })
    }

    /// Holds the directory for this process until `self` is dropped, or the process is gone in whatever way.
    ///
    /// A file system without locks lets everybody in: there the lock is a courtesy we do without.
    pub(super) fn lock(&self) -> Result<(), StoreError> {
        match fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(StoreError::InUse { path: self.path.clone() }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// A new file, `0640`; fails if the name is taken, by a link too.
    pub(super) fn create_new(&self, name: &str) -> Result<File, StoreError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.attempt("create", name, || Ok(fs::openat(&self.fd, name, flags, FILE_MODE)?.into()))
    }

    /// A regular file to read and to append to, made if it is not there.
    pub(super) fn open_append(&self, name: &str) -> Result<File, StoreError> {
        let flags = OFlags::RDWR
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let opened = self.attempt("open", name, || regular(fs::openat(&self.fd, name, flags, FILE_MODE)))?;
        match opened {
            Found::Here(file) => Ok(file),
            Found::Refused(why) => Err(StoreError::Refused { path: self.file(name), why }),
            Found::Absent => self.attempt("open", name, || Err(Errno::NOENT.into())),
        }
    }

    /// A regular file to read. Opening does not block, whatever stands there.
    pub(super) fn open_read(&self, name: &str) -> Result<Found<File>, StoreError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        self.attempt("open", name, || regular(fs::openat(&self.fd, name, flags, Mode::empty())))
    }

    /// The content of a file that only root or this user could have written, up to `limit + 1` bytes.
    pub(super) fn read_trusted(&self, name: &str, limit: u64) -> Result<Found<Vec<u8>>, StoreError> {
        let file = match self.open_read(name)? {
            Found::Here(file) => file,
            Found::Absent => return Ok(Found::Absent),
            Found::Refused(why) => return Ok(Found::Refused(why)),
        };
        self.attempt("read", name, || {
            if let Err(why) = trust::judge_open(&file)? {
                return Ok(Found::Refused(why));
            }
            let mut bytes = Vec::new();
            file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
            Ok(Found::Here(bytes))
        })
    }

    /// Renames within the directory, over whatever bears the new name.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        self.attempt("rename", from, || Ok(fs::renameat(&self.fd, from, &self.fd, to)?))
    }

    /// Renames within the directory; `false`, and nothing done, if the new name is taken.
    pub(super) fn rename_to_new(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        self.attempt("rename", from, || {
            match fs::renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(true),
                Err(Errno::EXIST) => Ok(false),
                // Some network and FUSE file systems lack the flag; there, looking first has to do.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    if self.kind(to)?.is_some() {
                        return Ok(false);
                    }
                    fs::renameat(&self.fd, from, &self.fd, to)?;
                    Ok(true)
                }
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Removes a file (or a link, never what it points to). That it is gone already is fine.
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.attempt("remove", name, || match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        })
    }

    /// Removes a directory with nothing in it.
    pub(super) fn remove_empty_dir(&self, name: &str) -> Result<(), StoreError> {
        self.attempt("remove", name, || Ok(fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?))
    }

    /// Is there a symbolic link of that name?
    pub(super) fn is_link(&self, name: &str) -> Result<bool, StoreError> {
        self.attempt("examine", name, || Ok(self.kind(name)? == Some(FileType::Symlink)))
    }

    pub(super) fn exists(&self, name: &str) -> Result<bool, StoreError> {
        self.attempt("examine", name, || Ok(self.kind(name)?.is_some()))
    }

    fn kind(&self, name: &str) -> io::Result<Option<FileType>> {
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The names in it that are text (ours are), in no order.
    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        self.attempt("list", "", || {
            let mut names = Vec::new();
            for entry in fs::Dir::read_from(&self.fd)? {
                if let Ok(name) = entry?.file_name().to_str()
                    && name != "."
                    && name != ".."
                {
                    names.push(name.to_owned());
                }
            }
            Ok(names)
        })
    }

    /// Makes creations and renames in it survive a power cut.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.attempt("flush to disk", "", || match fs::fsync(&self.fd) {
            // Not every file system can flush a directory.
            Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        })
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // Closing is not enough: a child between fork and exec shares the descriptor, and with it the lock.
        let _ = fs::flock(&self.fd, FlockOperation::Unlock);
    }
}

/// Sorts out what an `open` that follows no link came upon.
fn regular(opened: Result<OwnedFd, Errno>) -> io::Result<Found<File>> {
    match opened {
        Ok(fd) => {
            let file = File::from(fd);
            let regular = file.metadata()?.is_file();
            Ok(if regular { Found::Here(file) } else { Found::Refused(Distrust::NotAFile) })
        }
        Err(Errno::NOENT) => Ok(Found::Absent),
        Err(Errno::LOOP) => Ok(Found::Refused(Distrust::Symlink)),
        Err(Errno::NXIO | Errno::ISDIR) => Ok(Found::Refused(Distrust::NotAFile)),
        Err(error) => Err(error.into()),
    }
}
