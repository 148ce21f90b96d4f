//! Orphans: descendants of instances whose parent ended. They come to the supervisor, and are waited for, so
//! that no zombie is left: also where the supervisor is process 1 of a container.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::getsid;
use rustix::process::{Pid, getpid, set_child_subreaper};
use tokio::signal::unix::{SignalKind, signal};

/// The children that somebody waits for.
#[derive(Debug)]
struct Awaited {
    /// Starts under way: a child may be there whose pid nobody knows yet.
    starts: usize,
    pids: BTreeSet<i32>,
}

/// One for the process, as children are the process's.
static AWAITED: Mutex<Awaited> = Mutex::new(Awaited { starts: 0, pids: BTreeSet::new() });

fn awaited() -> MutexGuard<'static, Awaited> {
    AWAITED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives, no child is taken for an orphan.
#[derive(Debug)]
pub(super) struct Starting(());

impl Starting {
    pub(super) fn new() -> Self {
        awaited().starts += 1;
        Self(())
    }

    /// The new child is waited for, until [`no_longer_awaited`].
    pub(super) fn started(self, pid: Pid) {
        awaited().pids.insert(pid.as_raw_pid());
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        awaited().starts -= 1;
    }
}

/// Called once the child was waited for, or by whoever leaves that to this module.
pub(super) fn no_longer_awaited(pid: Pid) {
    awaited().pids.remove(&pid.as_raw_pid());
}

/// Takes in orphans from now on, and waits for them as long as the runtime lives.
///
/// # Errors
/// Where the kernel refuses, or no signal can be heard.
pub(crate) fn take_in_orphans() -> io::Result<tokio::task::JoinHandle<()>> {
    set_child_subreaper(Some(getpid()))?;
    let mut ended = signal(SignalKind::child())?;
    Ok(tokio::spawn(async move {
        loop {
            if reap() {
                ended.recv().await;
            } else {
                // Somebody else's child is first in the kernel's list, and hides those behind it until it is
                // waited for.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }))
}

/// Waits for all orphans that have ended. False where one may be left.
fn reap() -> bool {
    loop {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        // Looks first: children that were started elsewhere in this process are waited for there.
        let Some(zombie) = waitid(Id::All, look | WaitPidFlag::WNOWAIT).ok().and_then(|status| status.pid())
        else {
            return true;
        };
        let awaited = awaited();
        let known = awaited.starts > 0 || awaited.pids.contains(&zombie.as_raw());
        // Instances have sessions of their own. A session cannot be entered, only left for a new one.
        let own = || getsid(Some(zombie)) == getsid(None);
        if known || own() {
            return false;
        }
        let _ = waitid(Id::Pid(zombie), look);
        tracing::debug!(pid = zombie.as_raw(), "an orphan of an instance ended");
    }
}
