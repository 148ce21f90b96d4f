//! Small disks that a test fills or makes read-only: tmpfs mounts where that is allowed, else directories that are
//! taken away for a while.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One directory that can fail.
pub(crate) struct Disk {
    path: PathBuf,
    mounted: bool,
}

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Full,
    ReadOnly,
}

fn mount(arguments: &[&str], path: &Path) -> bool {
    let done = Command::new("mount").args(arguments).arg(path).output();
    done.is_ok_and(|done| done.status.success())
}

impl Disk {
    /// A disk of that many megabytes at `path`.
    pub(crate) fn new(path: PathBuf, megabytes: u32) -> Self {
        fs::create_dir_all(&path).expect("a directory");
        let size = format!("size={megabytes}m,mode=750");
        let mounted = mount(&["-t", "tmpfs", "-o", &size, "agft-chaos"], &path);
        Self { path, mounted }
    }

    /// Could it be mounted? Else it fails by being taken away, which whoever has it open does not see.
    pub(crate) fn is_mounted(&self) -> bool {
        self.mounted
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    fn aside(&self) -> PathBuf {
        self.path.with_extension("aside")
    }

    /// From now on it fails; `false` if the kernel would not have it (read-only, while a file is open for writing).
    pub(crate) fn fail(&self, trouble: Trouble) -> bool {
        match trouble {
            _ if !self.mounted => {
                if !self.aside().exists() {
                    fs::rename(&self.path, self.aside()).expect("a directory to take away");
                    fs::write(&self.path, "no directory").expect("a file in its place");
                }
                true
            }
            Trouble::ReadOnly => mount(&["-o", "remount,ro"], &self.path),
            Trouble::Full => {
                let zeros = [0; 4096];
                if let Ok(mut file) = File::create(self.ballast()) {
                    while file.write_all(&zeros).is_ok() {}
                }
                true
            }
        }
    }

    /// From now on it is well again.
    pub(crate) fn mend(&self) {
        if self.mounted {
            mount(&["-o", "remount,rw"], &self.path);
            let _ = fs::remove_file(self.ballast());
        } else if self.aside().exists() {
            let _ = fs::remove_file(&self.path);
            fs::rename(self.aside(), &self.path).expect("the directory back");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: a child that is still being killed may have files open.
            let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        }
    }
}
