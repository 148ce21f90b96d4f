//! What a run that locks clocks needs before its first lock: the GPUs for itself, what the dead left undone, a guardian.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use jiff::Timestamp;

use crate::config::Config;
use crate::daemon::watch::{Pulse, Watch};
use crate::gpu::host::AnyHost;
use crate::gpu::lease::{Domain, Ledger};
use crate::gpu::{GpuError, GpuInfo};
use crate::guardian::ledger::HeldLedger;
use crate::guardian::link::{Answers, GuardianSpec, Link};
use crate::guardian::undo::{Undone, runtime_dir, undo};
use crate::store::held::{Claim, ClaimError, HeldDir, Holder, Role};
use crate::units::{Mhz, Seconds};

/// GPUs that are this run's alone, until this is dropped.
pub(crate) struct Guarded {
    dir: Arc<HeldDir>,
    link: Link,
    spec: GuardianSpec,
    config: PathBuf,
    /// UUIDs of the GPUs whose clocks a group has.
    lent: Arc<Mutex<BTreeSet<String>>>,
    _claims: Vec<Claim>,
}

/// Books of the GPUs of one group, which no other group has until this is dropped, after the clocks are given back.
struct LentLedger {
    books: HeldLedger,
    gpus: Vec<String>,
    lent: Arc<Mutex<BTreeSet<String>>>,
}

impl Ledger for LentLedger {
    fn before_lock(&mut self, gpu: &GpuInfo, domain: Domain, min: Mhz, max: Mhz) -> Result<(), GpuError> {
        self.books.before_lock(gpu, domain, min, max)
    }

    fn memory_is_locked(&self, gpu: &GpuInfo) -> bool {
        self.books.memory_is_locked(gpu)
    }

    fn after_release(&mut self, gpu: &GpuInfo) {
        self.books.after_release(gpu);
    }
}

impl Drop for LentLedger {
    fn drop(&mut self) {
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.retain(|gpu| !self.gpus.contains(gpu));
    }
}

/// The clocks of a GPU are another group's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another group of this agft has the clocks of {0}, or has not given them back yet")]
pub(crate) struct Lent(String);

impl Guarded {
    /// Takes the GPUs for this run, whose ticks are `period` apart, and undoes what journals of the dead name on others.
    /// Of `others`, those that another agft has are left out.
    /// Errors: Another agft has one of `gpus`, or all, or a dead one left what cannot be undone.
    pub(crate) fn claim(
        file: &Path,
        json_log: bool,
        config: &Config,
        host: AnyHost,
        gpus: &[GpuInfo],
        others: &[GpuInfo],
        period: Seconds,
    ) -> anyhow::Result<Self> {
        let path = runtime_dir(config);
        let dir = HeldDir::open(&path).context("gpu.runtime_dir")?;
        let holder = Holder::current(file);
        let (mut claims, mut uuids) = (Vec::new(), Vec::new());
        let mut busy = None;
        for gpu in gpus {
            claims.push(dir.claim(&gpu.uuid, Role::Controller, &holder)?);
            uuids.push(gpu.uuid.clone());
        }
        for gpu in others.iter().filter(|other| !gpus.iter().any(|gpu| gpu.uuid == other.uuid)) {
            match dir.claim(&gpu.uuid, Role::Controller, &holder) {
                Ok(claim) => {
                    claims.push(claim);
                    uuids.push(gpu.uuid.clone());
                }
                Err(ClaimError::Busy(why)) => {
                    tracing::warn!(%gpu, %why, "left to the other agft");
                    busy.get_or_insert(why);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(busy) = busy.filter(|_| claims.is_empty()) {
            return Err(ClaimError::from(busy).into());
        }
        let undone = undo(&dir, host, &uuids, Timestamp::now()).context("gpu.runtime_dir")?;
        undone.iter().for_each(log);
        let own = |undone: &Undone| match undone {
            Undone::Failed { gpu, error } if uuids.contains(gpu) => Some(error.clone()),
            _ => None,
        };
        if let Some(error) = undone.iter().find_map(own) {
            return Err(error).context("a dead agft forced a performance state that cannot be given back");
        }
        let spec = GuardianSpec {
            gpus: uuids,
            forced: Vec::new(),
            runtime_dir: path,
            config: holder.config.clone(),
            silence: GuardianSpec::silence(period),
            json_log,
        };
        Ok(Self {
            dir: Arc::new(dir),
            link: Link::new(),
            spec,
            config: holder.config,
            lent: Arc::default(),
            _claims: claims,
        })
    }

    /// The guardian has to know of performance states that are forced on these GPUs; before it is started.
    pub(crate) fn guard_states(&mut self, gpus: Vec<String>) {
        self.spec.forced = gpus;
    }

    /// Starts the guardian; before the first lock.
    /// Errors: It cannot be started, or cannot open the GPUs.
    pub(crate) fn start_guardian(&self) -> anyhow::Result<Answers> {
        let answers = self.link.start(&self.spec)?;
        tracing::info!(silence_s = self.spec.silence.as_secs_f64(), "guardian is ready");
        Ok(answers)
    }

    /// The books for the lease of these GPUs, each of which is one group's at a time.
    /// Errors: [`Lent`]: a group has one of them.
    pub(crate) fn ledger(&self, gpus: &[GpuInfo]) -> Result<Box<dyn Ledger>, Lent> {
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = gpus.iter().find(|gpu| lent.contains(&gpu.uuid)) {
            return Err(Lent(gpu.to_string()));
        }
        let gpus: Vec<String> = gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        lent.extend(gpus.iter().cloned());
        let books = HeldLedger::new(Arc::clone(&self.dir), self.link.clone(), &self.config);
        Ok(Box::new(LentLedger { books, gpus, lent: Arc::clone(&self.lent) }))
    }

    pub(crate) fn has(&self, gpu: &GpuInfo) -> bool {
        self.spec.gpus.contains(&gpu.uuid)
    }

    /// Starts the watch over the run's threads and its guardian; `tick` is marked by the loop.
    pub(crate) fn watch(&self, answers: Answers, tick: Pulse) -> std::io::Result<Watch> {
        Watch::spawn(self.link.clone(), answers, self.spec.clone(), tick)
    }
}

fn log(undone: &Undone) {
    let pid = |holder: &Option<Holder>| holder.as_ref().map(|holder| holder.pid);
    match undone {
        Undone::GivenBack { gpu, holder } => {
            tracing::warn!(gpu, predecessor = pid(holder), "clocks of a dead agft given back");
        }
        Undone::Own { gpu, holder } => {
            tracing::warn!(gpu, predecessor = pid(holder), "a dead agft left clocks locked: reset now");
        }
        Undone::Alive(busy) => tracing::debug!(%busy, "another agft is at work"),
        Undone::Dropped { gpu } => tracing::info!(gpu, "journal of another boot dropped: its locks are gone"),
        Undone::PutAside { kept_as, why } => {
            tracing::warn!(kept_as = %kept_as.display(), why, "damaged journal put aside: its GPU is reset");
        }
        Undone::Failed { gpu, error } => {
            tracing::warn!(gpu, %error, "a dead agft's clocks could not be given back; its journal stays");
        }
    }
}
