//! Clocks are borrowed: the only code that writes them, and that gives them back on every way out.
//!
//! A locked clock outlives its process. So the lease resets before its first lock (whatever a dead predecessor left),
//! and when it is released or dropped, be it by return, error or panic. Where none of these is left to a process
//! (SIGKILL), somebody else has to: before each lock the lease asks its [`Ledger`], which sees to that. Others hold a
//! [`GpuClocks`] only to `give_back`.

use super::{GpuClocks, GpuError, GpuInfo};
use crate::units::{Clocks, Mhz, Target};

/// The clock that a lock is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// The core clock.
    Core,
    /// The memory clock.
    Memory,
    /// The performance state, which has both.
    State,
}

/// Someone who has to know of locks before they are made: so that they are given back if this process cannot.
pub trait Ledger: Send {
    /// A clock of `gpu` is about to be locked to `[min, max]`.
    /// Errors: [`GpuError`]: the lock is not made.
    fn before_lock(&mut self, gpu: &GpuInfo, domain: Domain, min: Mhz, max: Mhz) -> Result<(), GpuError>;

    /// All clocks of this GPU have been given back.
    fn after_release(&mut self, gpu: &GpuInfo);

    /// Is a lock of this GPU's memory clock on record, a predecessor's for one?
    fn memory_is_locked(&self, _gpu: &GpuInfo) -> bool {
        false
    }
}

/// Nobody needs to know: simulated GPUs, and those that are only reset.
impl Ledger for () {
    fn before_lock(&mut self, _: &GpuInfo, _: Domain, _: Mhz, _: Mhz) -> Result<(), GpuError> {
        Ok(())
    }

    fn after_release(&mut self, _: &GpuInfo) {}
}

/// Gives the clocks of one GPU back to the driver. Both resets are tried. `memory_locked`: a lock of the
/// memory clock is known to have been made.
pub(crate) fn give_back(clocks: &mut dyn GpuClocks, memory_locked: bool) -> Result<(), GpuError> {
    let core = clocks.reset_core();
    core.and(reset_memory(clocks, memory_locked))
}

/// A board that cannot lock its memory clock has none to reset. One that did lock it has.
fn reset_memory(clocks: &mut dyn GpuClocks, memory_locked: bool) -> Result<(), GpuError> {
    match clocks.reset_memory() {
        Err(GpuError::NotSupported { .. }) if !memory_locked => Ok(()),
        answer => answer,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MemoryLock {
    No,
    /// Nobody knows: a predecessor may have.
    Unknown,
    /// It is, or may still be.
    Yes,
}

/// One GPU of the lease.
struct Member {
    clocks: Box<dyn GpuClocks>,
    /// Lowest supported core clock: locks are ranges from there, so that a GPU without work may still sink.
    core_min: Mhz,
    memory: MemoryLock,
}

impl Member {
    fn lock_memory(&mut self, clock: Mhz) -> Result<(), GpuError> {
        let before = std::mem::replace(&mut self.memory, MemoryLock::Yes);
        let locked = self.clocks.lock_memory(clock, clock);
        if matches!(locked, Err(GpuError::NotSupported { .. })) {
            // This board has no such lock: none was made, and none can be reset.
            self.memory = before;
        }
        locked
    }

    fn reset_memory(&mut self) -> Result<(), GpuError> {
        reset_memory(self.clocks.as_mut(), self.memory == MemoryLock::Yes)?;
        self.memory = MemoryLock::No;
        Ok(())
    }

    fn release(&mut self) -> Result<(), GpuError> {
        let core = self.clocks.reset_core();
        core.and(self.reset_memory())
    }
}

/// The right to set the clocks of a group of GPUs, all alike.
pub struct ClockLease {
    members: Vec<Member>,
    ledger: Box<dyn Ledger>,
    /// What is in force as far as our writes say; `None` before the first reset and after a failed write.
    current: Option<Target>,
}

impl ClockLease {
    /// Takes the clocks of `members` (each with its lowest supported core clock) and gives them to the driver first.
    /// Errors: The first error of a core reset; every reset is tried.
    pub fn take(members: Vec<(Box<dyn GpuClocks>, Mhz)>) -> Result<Self, GpuError> {
        Self::take_with(members, Box::new(()))
    }

    /// The same, with a ledger that is told of every lock before it is made.
    pub(crate) fn take_with(
        members: Vec<(Box<dyn GpuClocks>, Mhz)>,
        ledger: Box<dyn Ledger>,
    ) -> Result<Self, GpuError> {
        let members = members
            .into_iter()
            .map(|(clocks, core_min)| {
                let locked = ledger.memory_is_locked(clocks.info());
                let memory = if locked { MemoryLock::Yes } else { MemoryLock::Unknown };
                Member { clocks, core_min, memory }
            })
            .collect();
        let mut lease = Self { members, ledger, current: None };
        if let Err(error) = lease.release() {
            // Nothing of ours is locked: dropping the lease has nothing to give back, and no failure of that to report.
            lease.members.clear();
            return Err(error);
        }
        Ok(lease)
    }

    /// Runs the whole group at `target`. Does nothing if it already does.
    /// Errors: The first [`GpuError`]. The group is never left in two minds: after an error all clocks have
    /// been given back.
    pub fn set(&mut self, target: Target) -> Result<(), GpuError> {
        if self.current == Some(target) {
            return Ok(());
        }
        let Target::Lock(clocks) = target else { return self.release() };
        match self.lock_all(clocks) {
            Ok(()) => {
                self.current = Some(target);
                Ok(())
            }
            Err(error) => {
                // What made the lock fail is the error to report; a reset that fails too is retried by the next call.
                let _ = self.release();
                Err(error)
            }
        }
    }

    fn lock_all(&mut self, clocks: Clocks) -> Result<(), GpuError> {
        self.current = None;
        for member in &mut self.members {
            // Memory first: boards with GDDR settle the core clock under the memory clock in force.
            match clocks.memory {
                Some(memory) => {
                    let gpu = member.clocks.info();
                    self.ledger.before_lock(gpu, Domain::Memory, memory, memory)?;
                    member.lock_memory(memory)?;
                }
                None if member.memory != MemoryLock::No => member.reset_memory()?,
                None => {}
            }
            let low = member.core_min.min(clocks.core);
            let domain = if member.clocks.forces_state() { Domain::State } else { Domain::Core };
            self.ledger.before_lock(member.clocks.info(), domain, low, clocks.core)?;
            member.clocks.lock_core(low, clocks.core)?;
        }
        Ok(())
    }

    /// Gives all clocks back to the driver. Every reset is tried even if one fails.
    pub fn release(&mut self) -> Result<(), GpuError> {
        let mut first_error = None;
        for member in &mut self.members {
            match member.release() {
                Ok(()) => self.ledger.after_release(member.clocks.info()),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        self.current = first_error.is_none().then_some(Target::Default);
        first_error.map_or(Ok(()), Err)
    }

    /// What is in force as far as our writes say.
    pub fn current(&self) -> Option<Target> {
        self.current
    }
}

impl Drop for ClockLease {
    fn drop(&mut self) {
        if self.current != Some(Target::Default)
            && let Err(error) = self.release()
        {
            tracing::error!(%error, "clocks could not be given back; run `agft release`");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::gpu::testing::{FakeClocks, info};

    type Log = Arc<Mutex<Vec<String>>>;

    /// Writes everything down; refuses the calls it is told to refuse.
    struct Books {
        log: Log,
        closed: bool,
    }

    impl Ledger for Books {
        fn before_lock(&mut self, gpu: &GpuInfo, _: Domain, _: Mhz, _: Mhz) -> Result<(), GpuError> {
            self.log.lock().unwrap().push("before".into());
            let refused = GpuError::Failed { gpu: gpu.to_string(), call: "books", detail: "closed".into() };
            if self.closed { Err(refused) } else { Ok(()) }
        }

        fn after_release(&mut self, _: &GpuInfo) {
            self.log.lock().unwrap().push("after".into());
        }
    }

    fn lease(refuses: Option<&'static str>, closed: bool) -> (Result<ClockLease, GpuError>, Log) {
        let log = Log::default();
        let calls = Arc::clone(&log);
        let call = move |call: &'static str| {
            calls.lock().unwrap().push(call.to_owned());
            let refused = || GpuError::Failed { gpu: "x".into(), call, detail: "y".into() };
            if refuses == Some(call) { Err(refused()) } else { Ok(()) }
        };
        let fake = FakeClocks { info: info("GPU-0"), call };
        let books = Books { log: Arc::clone(&log), closed };
        (ClockLease::take_with(vec![(Box::new(fake), Mhz(210))], Box::new(books)), log)
    }

    fn said(log: &Log) -> Vec<String> {
        std::mem::take(&mut *log.lock().unwrap())
    }

    #[test]
    fn books_are_kept_before_each_lock_and_after_each_release() {
        let (lease, log) = lease(None, false);
        let mut lease = lease.unwrap();
        assert_eq!(said(&log), ["reset core", "reset memory", "after"]);
        lease.set(Target::Lock(Clocks { core: Mhz(900), memory: Some(Mhz(800)) })).unwrap();
        assert_eq!(said(&log), ["before", "lock memory", "before", "lock core"]);
        drop(lease);
        assert_eq!(said(&log), ["reset core", "reset memory", "after"]);
    }

    #[test]
    fn lock_that_the_books_refuse_is_not_made() {
        let (lease, log) = lease(None, true);
        let mut lease = lease.unwrap();
        said(&log);
        lease.set(Target::Lock(Clocks::core_only(Mhz(900)))).unwrap_err();
        assert!(!said(&log).iter().any(|call| call.starts_with("lock")));
    }

    #[test]
    fn reset_that_fails_leaves_the_books_open_and_the_other_clock_reset() {
        let (lease, log) = lease(Some("reset core"), false);
        assert!(lease.is_err());
        assert_eq!(said(&log), ["reset core", "reset memory"]);
    }
}
