//! The shared file: what every process that has it mapped agrees on.
//!
//! ```text
//! +--------+--------+--------------+------------+-------+-----------+-----------------+  +-------------+
//! | header | active | bank 0 and 1 | injections | calls | processes | ring of writes  |  | config JSON |
//! +--------+--------+--------------+------------+-------+-----------+-----------------+  +-------------+
//! ```
//! Only [`Shared`] is mapped; the configuration behind it never changes. Changes are made under `flock`, in the bank
//! that is not active, and become visible by the one store that makes it active. A process killed at any moment
//! therefore leaves either the old or the new state, never half of one, and the kernel drops its lock. The
//! lists of processes are a test's alone to change and have one copy.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::calls::Call;
use crate::model::GpuState;

/// Most GPUs in one state file.
pub const MAX_GPUS: usize = 16;
/// Writes remembered; older ones are overwritten.
pub const HISTORY_LEN: usize = 65_536;
/// Injections that can be armed at once.
pub const MAX_INJECTIONS: usize = 64;
/// Processes that can have a context on one GPU.
pub const MAX_PROCESSES: usize = 16;
/// "nvmlmock" with the layout's version in the last byte.
pub(crate) const MAGIC: u64 = u64::from_be_bytes(*b"nvmlmk\0\x04");

/// Words per [`WriteSlot`].
pub(crate) const WRITE_WORDS: usize = 8;

/// The mapped part. Atomics only: any bit pattern is valid, and another process may change it at any time.
#[repr(C)]
pub(crate) struct Shared {
    pub magic: AtomicU64,
    pub active: AtomicU32,
    _pad: AtomicU32,
    pub banks: [Bank; 2],
    pub injections: [InjectionSlot; MAX_INJECTIONS],
    pub call_counts: [AtomicU64; Call::COUNT],
    /// Id and bytes of the processes with a context on each GPU; id 0 ends a list.
    pub processes: [[[AtomicU64; 2]; MAX_PROCESSES]; MAX_GPUS],
    pub history: [[AtomicU64; WRITE_WORDS]; HISTORY_LEN],
}

/// One copy of everything that changes.
#[repr(C)]
pub(crate) struct Bank {
    /// Number of writes recorded so far.
    writes: AtomicU64,
    gpus: [[AtomicU64; GpuState::WORDS]; MAX_GPUS],
}

impl Bank {
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Relaxed)
    }

    pub(crate) fn gpu(&self, index: usize) -> Option<GpuState> {
        let words = self.gpus.get(index)?;
        Some(GpuState::from_words(std::array::from_fn(|word| words[word].load(Relaxed))))
    }

    /// Takes over `other`, with `writes` writes and one GPU replaced.
    pub(crate) fn copy_from(&self, other: &Self, writes: u64, index: usize, state: &GpuState) {
        self.writes.store(writes, Relaxed);
        for (slot, (to, from)) in self.gpus.iter().zip(&other.gpus).enumerate() {
            if slot == index {
                to.iter().zip(state.to_words()).for_each(|(to, word)| to.store(word, Relaxed));
            } else {
                to.iter().zip(from).for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
            }
        }
    }
}

/// An armed error or delay. Free when `remaining` is 0, so that a half-written one is free.
#[repr(C)]
pub(crate) struct InjectionSlot {
    pub remaining: AtomicU64,
    pub call: AtomicU32,
    /// GPU index, or `u32::MAX` for any.
    pub gpu: AtomicU32,
    /// Calls to let through first.
    pub after: AtomicU64,
    pub delay_ns: AtomicU64,
    /// Code to return; 0: go on after the delay.
    pub code: AtomicU32,
    /// 1: `value` is what the function gives.
    pub says: AtomicU32,
    /// What a sensor's function gives in place of what it read.
    pub value: AtomicU64,
}

impl Shared {
    /// The bank that counts. Call under the lock: otherwise it may be the other one a moment later.
    pub(crate) fn current(&self) -> &Bank {
        &self.banks[usize::from(self.active.load(Acquire) & 1 == 1)]
    }

    /// Replaces one GPU's state and the number of writes in one step. Call under the lock.
    pub(crate) fn commit(&self, writes: u64, index: usize, state: &GpuState) {
        let next = (self.active.load(Acquire) & 1) ^ 1;
        self.banks[usize::from(next == 1)].copy_from(self.current(), writes, index, state);
        self.active.store(next, Release);
    }
}
