//! A control group per instance, so that no descendant can get away: where the supervisor was given a subtree
//! of its own.
//!
//! That is a cgroup v2 directory which systemd marks as delegated (`Delegate=yes`), or the root of what the
//! supervisor sees, as in a container. Elsewhere the tree belongs to somebody else, and nothing is made in
//! it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file_name;

const PREFIX: &str = "agft-instance-";

/// The directory under which instances get theirs.
#[derive(Debug, Clone)]
pub(crate) struct Subtree(PathBuf);

impl Subtree {
    /// None where the supervisor was given none.
    pub(crate) fn find() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let directory = directory(&mounts, &own)?;
        let is_root = own.lines().any(|line| line == "0::/");
        if !is_root && !delegated(&directory) {
            return None;
        }
        // What can be made and killed is known once it was tried: a mount may be read-only, a kernel older
        // than 5.14.
        let trial = directory.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&trial).ok()?;
        let kills = trial.join("cgroup.kill").exists();
        let removed = fs::remove_dir(&trial).is_ok();
        (kills && removed).then_some(Self(directory))
    }

    /// The group of an instance, made where it is not there.
    pub(crate) fn group(&self, owner: &str, instance: &str) -> io::Result<Group> {
        let path = self.0.join(format!("{PREFIX}{owner}-{}", file_name(instance)));
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Group(path)),
        }
    }

    /// The groups that this owner left behind.
    pub(crate) fn left_by(&self, owner: &str) -> Vec<Group> {
        let prefix = format!("{PREFIX}{owner}-");
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let ours = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(&prefix);
        entries.flatten().filter(ours).map(|entry| Group(entry.path())).collect()
    }
}

/// The control group of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Group(PathBuf);

impl Group {
    /// A process joins by writing `0` there.
    pub(crate) fn door(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.0.join("cgroup.procs"))
    }

    /// Ends all that is in it and removes it. False where something is left after some seconds.
    pub(crate) async fn kill(&self) -> bool {
        for _ in 0..100 {
            if fs::write(self.0.join("cgroup.kill"), "1").is_err() {
                // Gone already, or not to be killed: what is left of it shows with the next call.
                return !self.0.exists();
            }
            if fs::remove_dir(&self.0).is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

/// The supervisor's own directory in the cgroup v2 mount.
fn directory(mounts: &str, own: &str) -> Option<PathBuf> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        // 31 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw
        let (front, back) = line.split_once(" - ")?;
        if !back.starts_with("cgroup2 ") {
            return None;
        }
        let mut fields = front.split(' ').skip(3);
        let root = fields.next()?;
        let at = fields.next()?;
        // A bind mount of a part shows only what is under it.
        let below = Path::new(own).strip_prefix(root).ok()?;
        Some(Path::new(at).join(below))
    })
}

fn delegated(directory: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0_u8; 8];
        matches!(rustix::fs::getxattr(directory, *name, &mut value[..]), Ok(1) if value[0] == b'1')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_directory_is_where_the_mount_shows_it() {
        let mounts = "30 23 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 23 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        let own = "1:cpu:/\n0::/system.slice/agft-serve.service\n";
        let whole = directory(mounts, own).unwrap();
        assert_eq!(whole, Path::new("/sys/fs/cgroup/unified/system.slice/agft-serve.service"));
        let part = "31 23 0:26 /system.slice /mnt rw - cgroup2 cgroup2 rw\n";
        assert_eq!(directory(part, own).unwrap(), Path::new("/mnt/agft-serve.service"));
        assert_eq!(directory(part, "0::/other\n"), None);
        assert_eq!(directory(mounts, "1:cpu:/\n"), None);
    }
}
