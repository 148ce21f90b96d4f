//! Taking a GPU: lock files that the kernel drops with their holder, in the runtime directory and in a place where all
//! agfts of the machine meet.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::super::dir::Dir;
use super::super::error::StoreError;
use super::{Holder, MAX_BYTES, plain};

/// Somebody else holds a GPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{gpu} is controlled by another agft{}; stop that one, or give each its own gpu.device_id",
    describe(.holder.as_ref())
)]
pub struct Busy {
    /// The GPU's UUID.
    pub gpu: String,
    /// Who, as far as the lock file says.
    pub holder: Option<Holder>,
}

fn describe(holder: Option<&Holder>) -> String {
    holder.map_or_else(String::new, |holder| {
        format!(" (pid {}, configuration {})", holder.pid, holder.config.display())
    })
}

/// Why a GPU could not be claimed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Which of a GPU's lock files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The agft that decides.
    Controller,
    Guardian,
    /// A guardian that waits for the present one to end, or to hand the GPU over.
    Successor,
}

impl Role {
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Controller => ".lock",
            Self::Guardian => ".guard",
            Self::Successor => ".next",
        }
    }
}

/// A GPU held by this process, until this is dropped or the process is gone in whatever way.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(super) files: Vec<File>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        for file in &self.files {
            // Closing is not enough: a child between fork and exec shares the descriptor, and with it the lock.
            let _ = flock(file, FlockOperation::Unlock);
        }
    }
}

/// Where the agfts of a machine meet whatever their configuration says, the first of these that can be used: root's
/// directory, else one of this user's own.
pub(super) fn machine_places() -> Vec<PathBuf> {
    if cfg!(test) {
        // Unit tests run side by side with GPUs of one name; they say themselves where they meet.
        return Vec::new();
    }
    let own = format!("agft-{}", rustix::process::geteuid().as_raw());
    vec!["/run/agft".into(), Path::new("/tmp").join(own)]
}

/// Is the GPU free on this machine, as far as its agfts tell each other, whatever directories they were told
/// to use?
/// Errors: [`ClaimError::Busy`] if somebody has it; [`ClaimError::Store`] where that cannot be told.
pub(crate) fn free_on_machine(gpu: &str) -> Result<(), ClaimError> {
    meet(&machine_places(), None, gpu, Role::Controller).map(drop)
}

/// Locks a GPU's file in the first of these places where that can be done, unless that is `own`, where it is locked
/// already.
pub(super) fn meet(
    places: &[PathBuf],
    own: Option<&Dir>,
    gpu: &str,
    role: Role,
) -> Result<Option<File>, ClaimError> {
    let mut reason = None;
    for path in places {
        let place = Dir::open_or_create(path).and_then(|dir| match dir.open_to_others()? {
            None => Ok(dir),
            Some(why) => Err(StoreError::Refused { path: path.clone(), why }),
        });
        let file = match place {
            Ok(place) if own.is_some_and(|own| place.is_same(own)) => return Ok(None),
            Ok(place) => take(&place, gpu, role),
            Err(error) => Err(error.into()),
        };
        match file {
            Ok(file) => return Ok(Some(file)),
            Err(ClaimError::Busy(busy)) => return Err(busy.into()),
            Err(ClaimError::Store(error)) => reason = reason.or(Some(error)),
        }
    }
    reason.map_or(Ok(None), |reason| Err(reason.into()))
}

/// Locks a GPU's file in a directory.
pub(super) fn take(dir: &Dir, gpu: &str, role: Role) -> Result<File, ClaimError> {
    let name = format!("{}{}", plain(gpu), role.suffix());
    let mut file = dir.open_append(&name)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // It is for people only: one that is being written at this moment is left out.
            let _ = (&mut file).take(MAX_BYTES).read_to_string(&mut text);
            // One who only resets gives no name, and finds that of the dead.
            let holder = serde_json::from_str(&text).ok().filter(Holder::is_alive);
            return Err(Busy { gpu: gpu.to_owned(), holder }.into());
        }
        // A file system without locks: two agfts are not told apart there.
        Err(error) => tracing::warn!(
            file = %dir.file(&name).display(), %error,
            "no file locks here: a second agft on this GPU would not be noticed"
        ),
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::super::HeldDir;
    use super::*;

    const GPU: &str = "GPU-0f1e2d3c";

    #[test]
    fn one_gpu_is_one_agft_s_whatever_directories_they_use() {
        let [a, b, place] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let places = || vec![a.path().join("a file"), place.path().to_owned()];
        std::fs::write(a.path().join("a file"), "").unwrap();
        let [one, other] = [&a, &b].map(|dir| HeldDir::meeting_in(dir.path(), places()).unwrap());
        let here = HeldDir::meeting_in(place.path(), places()).unwrap();
        let holder = Holder::current(Path::new("one.yaml"));
        let claim = one.claim(GPU, Role::Controller, &holder).unwrap();
        for second in [&one, &other, &here] {
            let error = second.claim(GPU, Role::Controller, &holder).unwrap_err();
            assert!(matches!(error, ClaimError::Busy(Busy { holder: Some(named), .. }) if named == holder));
        }
        drop(other.claim(GPU, Role::Guardian, &holder).unwrap());
        drop(claim);
        drop(here.claim(GPU, Role::Controller, &holder).unwrap());
        drop(other.claim(GPU, Role::Controller, &holder).unwrap());
    }
}
