//! The guardian's resets: of all GPUs side by side, none of which can hold up the others or the guardian.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::gpu::lease::give_back;
use crate::gpu::pstate::MayBeForced;
use crate::gpu::{GpuClocks, GpuError};
use crate::store::held::Claim;

/// A reset that takes longer is not waited for: well below the silence after which the controller takes the guardian for
/// dead.
const PATIENCE: Duration = Duration::from_millis(1500);

/// One GPU in the guardian's care.
pub(super) struct Gpu {
    pub(super) uuid: String,
    pub(super) clocks: Handle,
    pub(super) forced: MayBeForced,
    /// Its journal names a lock of the memory clock.
    pub(super) memory_locked: bool,
    /// The kernel's name of its PCI device.
    pub(super) pci: Option<String>,
    pub(super) _claim: Claim,
}

/// The way to a GPU's clocks. A driver call that hangs keeps it.
#[derive(Clone)]
pub(super) struct Handle(Arc<Mutex<Box<dyn GpuClocks>>>);

impl Handle {
    pub(super) fn new(clocks: Box<dyn GpuClocks>) -> Self {
        Self(Arc::new(Mutex::new(clocks)))
    }

    /// Is a call under way?
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.0.try_lock(), Err(std::sync::TryLockError::WouldBlock))
    }

    fn reset(&self, memory_locked: bool) -> Result<(), GpuError> {
        give_back(self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut(), memory_locked)
    }
}

/// One try on each GPU; what failed, and where. A call that does not come back has failed, and is asked again only when it
/// has come back.
pub(super) fn reset_all<'g>(gpus: impl Iterator<Item = &'g Gpu>) -> Vec<(String, GpuError)> {
    let gpus = gpus.map(|gpu| (gpu.uuid.clone(), gpu.clocks.clone(), gpu.memory_locked));
    reset_each(gpus, PATIENCE)
}

fn reset_each(
    gpus: impl Iterator<Item = (String, Handle, bool)>,
    patience: Duration,
) -> Vec<(String, GpuError)> {
    let (done, results) = channel();
    let (mut failed, mut asked) = (Vec::new(), Vec::new());
    for (uuid, clocks, memory_locked) in gpus {
        if clocks.is_busy() {
            failed.push((uuid.clone(), hangs(&uuid)));
            continue;
        }
        let (name, done, theirs) = (uuid.clone(), done.clone(), clocks.clone());
        let thread = std::thread::Builder::new().name("agft-reset".into());
        // Whoever waits may have gone by then.
        let job = move || drop(done.send((name, theirs.reset(memory_locked))));
        match thread.spawn(job) {
            Ok(_) => asked.push(uuid),
            // No thread to be had.
            Err(_) => failed.extend(clocks.reset(memory_locked).err().map(|error| (uuid, error))),
        }
    }
    drop(done);
    let until = Instant::now() + patience;
    while !asked.is_empty() {
        match results.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((uuid, result)) => {
                asked.retain(|other| *other != uuid);
                failed.extend(result.err().map(|error| (uuid, error)));
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    failed.extend(asked.into_iter().map(|uuid| (uuid.clone(), hangs(&uuid))));
    failed
}

fn hangs(uuid: &str) -> GpuError {
    let detail = "the driver call does not come back".to_owned();
    GpuError::Failed { gpu: uuid.to_owned(), call: "giving the clocks back", detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{FakeClocks, info};

    fn slow(uuid: &str, takes: Duration) -> ((String, Handle, bool), Arc<Mutex<u32>>) {
        let resets = Arc::new(Mutex::new(0));
        let done = Arc::clone(&resets);
        let call = move |call| {
            if call == "reset core" {
                std::thread::sleep(takes);
                *done.lock().unwrap() += 1;
            }
            Ok(())
        };
        let gpu = FakeClocks { info: info(uuid), call };
        ((uuid.to_owned(), Handle::new(Box::new(gpu)), false), resets)
    }

    #[test]
    fn gpu_that_hangs_keeps_nobody_and_is_asked_once_at_a_time() {
        let (hung, hung_resets) = slow("hung", Duration::from_secs(2));
        let (well, well_resets) = slow("well", Duration::ZERO);
        let all = || [hung.clone(), well.clone()].into_iter();
        let patience = Duration::from_millis(100);
        for times in 1..=2 {
            let failed = reset_each(all(), patience);
            assert_eq!(failed.iter().map(|(uuid, _)| uuid.as_str()).collect::<Vec<_>>(), ["hung"]);
            assert_eq!(*well_resets.lock().unwrap(), times);
        }
        assert!(hung.1.is_busy());
        std::thread::sleep(Duration::from_millis(2200));
        assert_eq!(*hung_resets.lock().unwrap(), 1);
        assert!(reset_each(all(), Duration::from_secs(20)).is_empty());
    }
}
