//! What the store's tests share: a fuse that breaks the disk after so many steps, small and read-only file systems.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;

use super::identity::Identity;

/// Lets so many operations of a [`super::dir::Dir`] pass; after that every one fails, as if the process had died.
#[derive(Debug)]
pub(super) struct Fuse(AtomicU64);

impl Default for Fuse {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Fuse {
    pub(super) fn allow(&self, steps: u64) {
        self.0.store(steps, Ordering::SeqCst);
    }

    pub(super) fn mend(&self) {
        self.allow(u64::MAX);
    }

    pub(super) fn burn(&self) -> io::Result<()> {
        let spend = |left: u64| left.checked_sub(u64::from(left != u64::MAX));
        match self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(super) fn identity() -> Identity {
    Identity {
        gpu_name: "NVIDIA H200".into(),
        gpu_uuids: vec!["GPU-1".into(), "GPU-2".into()],
        feature_names: vec!["has_queue".into(), "concurrency".into()],
        policy: "structured".into(),
        model_version: 3,
        engine_model: Some("llama".into()),
    }
}

/// A moment of the tests' own making.
pub(super) fn at(unix_seconds: i64) -> Timestamp {
    Timestamp::from_second(unix_seconds).unwrap()
}

/// Names in a directory, sorted.
pub(super) fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A small file system in memory, unmounted when dropped.
pub(super) struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// `None`, with a word to the reader, where this user may not mount.
    pub(super) fn mount(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "agft-test"]).arg(dir.path());
        if is_root() && mount.output().is_ok_and(|done| done.status.success()) {
            return Some(Self(dir));
        }
        eprintln!("skipped: only root can mount a file system of its own");
        None
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn remount(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{options}")]).arg(self.path());
        assert!(mount.status().unwrap().success(), "remount {options}");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "umount {}", self.path().display());
    }
}

/// A directory in which nothing can be created: by its mode, or, for root, by its mount.
pub(super) enum ReadOnly {
    Mode(tempfile::TempDir),
    Mount(Tmpfs),
}

impl ReadOnly {
    pub(super) fn new() -> Option<Self> {
        if is_root() {
            return Tmpfs::mount("ro,size=64k").map(Self::Mount);
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
        Some(Self::Mode(dir))
    }

    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Mode(dir) => dir.path().to_owned(),
            Self::Mount(disk) => disk.path().to_owned(),
        }
    }
}
