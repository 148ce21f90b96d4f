//! The user that a process runs as.

use std::ffi::CString;
use std::path::PathBuf;

use nix::unistd::{User, getgrouplist};
use rustix::process::{Gid, Uid};

/// A user of this host.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    /// All groups that it is a member of: drivers' device files may ask for one (`render`, `video`).
    pub(crate) groups: Vec<Gid>,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

/// The user by this name; none where the host knows none.
///
/// # Errors
/// Where the host's list of users cannot be read.
pub(crate) fn find(name: &str) -> Result<Option<Account>, std::io::Error> {
    let Some(user) = User::from_name(name)? else { return Ok(None) };
    let c_name = CString::new(name)?;
    let groups = getgrouplist(&c_name, user.gid)?;
    Ok(Some(Account {
        name: user.name,
        uid: Uid::from_raw(user.uid.as_raw()),
        gid: Gid::from_raw(user.gid.as_raw()),
        groups: groups.into_iter().map(|group| Gid::from_raw(group.as_raw())).collect(),
        home: user.dir,
        shell: user.shell,
    }))
}

#[cfg(test)]
mod tests {
    #[test]
    fn root_is_found_and_nobody_else_is_made_up() {
        let root = super::find("root").unwrap().unwrap();
        assert!(root.uid.is_root() && root.groups.contains(&root.gid));
        assert!(super::find("no such user here").unwrap().is_none());
    }
}
