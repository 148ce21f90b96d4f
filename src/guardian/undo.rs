//! Gives back what the journals of the dead name.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::config::Config;
use crate::gpu::GpuError;
use crate::gpu::host::AnyHost;
use crate::gpu::lease::give_back;
use crate::gpu::pstate::MayBeForced;
use crate::store::StoreError;
use crate::store::held::{Busy, ClaimError, HeldDir, Holder, Leftover, Role};

/// Where the locks and journals of this configuration are.
///
/// Root's daemons share one directory, which a restart of the machine empties; another user may not write there, and
/// has the model's directory.
pub(crate) fn runtime_dir(config: &Config) -> PathBuf {
    match &config.gpu.runtime_dir {
        Some(dir) => dir.into(),
        None if rustix::process::geteuid().is_root() => "/run/agft".into(),
        None => (&config.model.save_dir).into(),
    }
}

/// What became of one journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undone {
    /// The clocks it named have been given back.
    GivenBack {
        /// UUID of the GPU.
        gpu: String,
        /// Who had locked them, if that is known.
        holder: Option<Holder>,
    },
    /// It is of this caller's own GPU, which the caller resets.
    Own {
        /// UUID of the GPU.
        gpu: String,
        /// Who had locked them, if that is known.
        holder: Option<Holder>,
    },
    /// Its writer lives: left alone.
    Alive(Busy),
    /// It was of another boot, whose locks are gone.
    Dropped {
        /// UUID of the GPU.
        gpu: String,
    },
    /// It was damaged, and is kept for a human; the GPU of its name is treated like a journal's.
    PutAside { kept_as: PathBuf, why: String },
    /// The GPU is not there (any more), or its driver does not take the clocks back. The journal stays.
    Failed {
        /// UUID of the GPU.
        gpu: String,
        /// What the driver said.
        error: GpuError,
    },
}

/// Undoes every journal in `dir` whose writer is dead, but for those of the caller's `own` GPUs.
/// Errors: [`StoreError`] if the directory cannot be read or written.
pub(crate) fn undo(
    dir: &HeldDir,
    host: AnyHost,
    own: &[String],
    now: Timestamp,
) -> Result<Vec<Undone>, StoreError> {
    let mut done = Vec::new();
    for leftover in dir.leftovers(now)? {
        let (gpu, holder, forced) = match leftover {
            Leftover::OtherBoot { gpu } => {
                done.push(Undone::Dropped { gpu });
                continue;
            }
            Leftover::Damaged { gpu, kept_as, why } => {
                done.push(Undone::PutAside { kept_as, why });
                (gpu, None, MayBeForced::Unknown)
            }
            Leftover::Locked(journal) => {
                let forced = if journal.state_forced { MayBeForced::Yes } else { MayBeForced::No };
                (journal.gpu, Some(journal.holder), forced)
            }
        };
        if own.contains(&gpu) {
            // The caller resets locks, and may know nothing of performance states.
            let state = match forced {
                MayBeForced::No => Ok(()),
                forced => {
                    host.clocks_to_reset(&gpu, forced).and_then(|mut clocks| match clocks.forces_state() {
                        true => give_back(clocks.as_mut(), false),
                        false => Ok(()),
                    })
                }
            };
            done.push(match state {
                Ok(()) => Undone::Own { gpu, holder },
                Err(error) => Undone::Failed { gpu, error },
            });
            continue;
        }
        let _claim = match dir.claim_unnamed(&gpu, Role::Controller) {
            Ok(claim) => claim,
            Err(ClaimError::Busy(busy)) => {
                done.push(Undone::Alive(busy));
                continue;
            }
            Err(ClaimError::Store(error)) => return Err(error),
        };
        let memory_locked = dir.memory_is_locked(&gpu);
        let clocks = host.clocks_to_reset(&gpu, forced);
        let reset = clocks.and_then(|mut clocks| give_back(clocks.as_mut(), memory_locked));
        done.push(match reset {
            Ok(()) => {
                dir.clear(&gpu)?;
                Undone::GivenBack { gpu, holder }
            }
            Err(error) => Undone::Failed { gpu, error },
        });
    }
    Ok(done)
}
