//! Taking GPUs over from the guardian of a dead agft.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::Instant;

use super::process::GuardianError;
use crate::store::held::{Claim, ClaimError, HeldDir, Holder, Role};

/// How long a dead predecessor's guardian may take to finish.
const PREDECESSOR: Duration = Duration::from_secs(5);
/// Of these, the time that is left to it before it is killed, and after.
const KILLED: Duration = Duration::from_secs(2);

/// Takes the GPUs for this guardian; says which of them a predecessor's guardian had, whose clocks may be
/// locked.
///
/// That one may be giving clocks back at this moment, and must not undo our locks. It is asked for the GPU,
/// and one that still tries hands it over. One that does not answer (stopped, or hung in a driver call) is
/// killed: its controller is dead, and the journals of its other GPUs stay for their next start and for `agft
/// release --journal`.
pub(super) async fn claim(
    dir: &HeldDir,
    gpus: &[String],
    config: &Path,
) -> Result<(Vec<Claim>, BTreeSet<String>), GuardianError> {
    let holder = Holder::current(config);
    let until = Instant::now() + PREDECESSOR;
    let (mut claims, mut held) = (Vec::new(), BTreeSet::new());
    let mut killed = None;
    for gpu in gpus {
        let mut asking = None;
        loop {
            match dir.claim(gpu, Role::Guardian, &holder) {
                Ok(claim) => break claims.push(claim),
                Err(ClaimError::Busy(busy))
                    if Instant::now() < until + killed.map_or(Duration::ZERO, |()| KILLED) =>
                {
                    held.insert(gpu.clone());
                    asking = asking.or_else(|| dir.claim_unnamed(gpu, Role::Successor).ok());
                    if Instant::now() >= until - KILLED && killed.is_none() {
                        killed = busy.holder.filter(kill_guardian).map(drop);
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok((claims, held))
}

/// Kills a guardian that a lock file names, if it is still that process and a guardian.
fn kill_guardian(holder: &Holder) -> bool {
    let Some(pid) = i32::try_from(holder.pid).ok().and_then(Pid::from_raw) else { return false };
    // Opened first: what is asked of the process id below then is about the process that is killed.
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let arguments = std::fs::read(format!("/proc/{}/cmdline", holder.pid)).unwrap_or_default();
    let is_guardian = arguments.split(|byte| *byte == 0).nth(1) == Some(b"guardian".as_slice());
    let killed = is_guardian && holder.is_alive() && pidfd_send_signal(pidfd, Signal::KILL).is_ok();
    if killed {
        tracing::warn!(pid = holder.pid, "the guardian of a dead agft did not end: killed");
    }
    killed
}
