//! Whether a stranger could have decided what a file says.
//!
//! Root runs what an instance file names. So of the whole way to the file (each directory and each link) only
//! root, the user behind sudo, or this process's own user may be able to put something else in any place.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Everybody may make files in such a directory, but touch only their own.
const STICKY: u32 = 0o1000;

/// Why the file or directory at `path` is not obeyed by a process of user `me`; `None` if it is.
pub(crate) fn distrust(path: &Path, me: u32, sudo: Option<u32>) -> Option<String> {
    let ways = [std::path::absolute(path), path.canonicalize()];
    for way in ways {
        let Ok(way) = way else { return Some("it cannot be examined".into()) };
        for place in way.ancestors() {
            let why = match place.symlink_metadata() {
                Ok(metadata) => judge(&metadata, me, sudo),
                Err(error) => Some(format!("it cannot be examined: {error}")),
            };
            if let Some(why) = why {
                return Some(format!("{}: {why}", place.display()));
            }
        }
    }
    None
}

/// The user who called sudo.
pub(crate) fn sudo_user() -> Option<u32> {
    std::env::var("SUDO_UID").ok()?.parse().ok()
}

fn judge(metadata: &Metadata, me: u32, sudo: Option<u32>) -> Option<String> {
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != 0 && owner != me && sudo != Some(owner) {
        return Some(format!(
            "it belongs to user {owner}, who could change it (`chown {me}` if it is yours)"
        ));
    }
    if metadata.is_symlink() || (metadata.is_dir() && mode & STICKY != 0) {
        return None;
    }
    // The private groups of Debian and Red Hat have their user's number.
    let private = sudo == Some(metadata.gid()) && metadata.gid() == owner;
    let others = if private { 0o002 } else { 0o022 };
    (mode & others != 0)
        .then(|| format!("its mode {mode:04o} lets others write it (`chmod go-w` if it is yours)"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_place_that_others_can_write_spoils_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let me = rustix::process::geteuid().as_raw();
        let deep = dir.path().join("deep");
        let file = deep.join("a.yaml");
        fs::create_dir(&deep).unwrap();
        fs::write(&file, "").unwrap();
        let link = dir.path().join("link.yaml");
        symlink(&file, &link).unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for (path, mode, trusted) in [
            (&deep, 0o755, true),
            (&file, 0o644, true),
            (&file, 0o664, false),
            (&file, 0o602, false),
            (&file, 0o600, true),
            (&deep, 0o777, false),
            (&deep, 0o1777, true),
        ] {
            set(path, mode);
            for asked in [&file, &link] {
                let why = distrust(asked, me, None);
                assert_eq!(why.is_none(), trusted, "{} {mode:o}: {why:?}", path.display());
            }
        }
        set(&deep, 0o755);
        assert!(distrust(&dir.path().join("absent"), me, None).is_some());
        if me == 0 {
            chown(&file, Some(65_534), None).unwrap();
            assert!(distrust(&file, 0, None).unwrap().contains("65534"));
            assert_eq!(distrust(&file, 0, Some(65_534)), None);
        }
    }
}
