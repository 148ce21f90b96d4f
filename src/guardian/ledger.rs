//! Before a lock: the journal on the disk, then the guardian. After a release: the same two.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::ToGuardian;
use super::link::Link;
use crate::gpu::lease::{Domain, Ledger};
use crate::gpu::{GpuError, GpuInfo};
use crate::store::held::{HeldDir, Holder, Journal, LockedRange};
use crate::units::Mhz;

/// Keeps the books for the lease. A lock that cannot be written down, or that nobody watches over, is not made.
pub(crate) struct HeldLedger {
    dir: Arc<HeldDir>,
    link: Link,
    holder: Holder,
    /// What the journals say, by GPU.
    journals: BTreeMap<String, Journal>,
}

impl HeldLedger {
    /// Books in `dir`, and a guardian at the end of `link`.
    pub(crate) fn new(dir: Arc<HeldDir>, link: Link, config: &Path) -> Self {
        Self { dir, link, holder: Holder::current(config), journals: BTreeMap::new() }
    }

    fn refused(gpu: &GpuInfo, call: &'static str, detail: String) -> GpuError {
        GpuError::Failed { gpu: gpu.to_string(), call, detail }
    }
}

impl Ledger for HeldLedger {
    fn before_lock(&mut self, gpu: &GpuInfo, domain: Domain, min: Mhz, max: Mhz) -> Result<(), GpuError> {
        let known = self.journals.get(&gpu.uuid);
        let listed = known.is_some_and(|journal| match domain {
            Domain::Core => journal.core.is_some(),
            Domain::Memory => journal.memory.is_some(),
            Domain::State => journal.state_forced,
        });
        if !listed {
            let mut journal = known
                .cloned()
                .unwrap_or_else(|| Journal::new(self.holder.clone(), &gpu.uuid, Timestamp::now()));
            let range = Some(LockedRange { min_mhz: min, max_mhz: max });
            match domain {
                Domain::Core => journal.core = range,
                Domain::Memory => journal.memory = range,
                Domain::State => journal.state_forced = true,
            }
            self.dir
                .write(&journal)
                .map_err(|error| Self::refused(gpu, "the journal of held locks", error.to_string()))?;
            self.journals.insert(gpu.uuid.clone(), journal);
        }
        // Each time: a new guardian has not heard the earlier ones.
        if self.link.send(&ToGuardian::Hold(gpu.uuid.clone())) {
            Ok(())
        } else {
            Err(Self::refused(gpu, "the guardian", "there is none; nothing is locked without".into()))
        }
    }

    fn memory_is_locked(&self, gpu: &GpuInfo) -> bool {
        self.dir.memory_is_locked(&gpu.uuid)
    }

    fn after_release(&mut self, gpu: &GpuInfo) {
        // The first release finds journals that a predecessor left.
        self.journals.remove(&gpu.uuid);
        if let Err(error) = self.dir.clear(&gpu.uuid) {
            tracing::warn!(%error, "the journal names clocks that have been given back; the next start clears it");
        }
        // Without a guardian there is nobody to tell.
        let _ = self.link.send(&ToGuardian::Free(gpu.uuid.clone()));
    }
}
