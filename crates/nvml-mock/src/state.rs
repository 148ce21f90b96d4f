//! A mocked machine in a state file: what the library reads and changes, and what a test sets and asks.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::calls::Call;
use crate::config::{GpuConfig, MockConfig};
use crate::inject;
use crate::layout::{HISTORY_LEN, MAGIC, Shared};
use crate::model::{GpuState, Range};
use crate::sys::{Mapping, monotonic_ns};

/// Why a mocked machine could not be made, opened or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each has its message")]
pub enum MockError {
    #[error("state file {path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("state file {path}: {reason}; make a new one with the same build of nvml-mock")]
    Format { path: String, reason: String },
    #[error("{0}")]
    Config(String),
    #[error("no GPU {0} in this state file")]
    NoSuchGpu(usize),
    #[error("{0} is no function of this library; see `nvml-mock-ctl calls`")]
    UnknownCall(String),
    #[error("too many injections are armed; clear some")]
    TooManyInjections,
}

/// One set or reset call, as the library received it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClockWrite {
    /// Number of the call, from 0, over all GPUs and processes.
    pub seq: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds: comparable between processes.
    pub at_ns: u64,
    /// The calling process.
    pub pid: u32,
    /// GPU index.
    pub gpu: u32,
    /// NVML's name of the function.
    pub call: &'static str,
    /// Its two numbers: lower and upper bound of a lock, MHz. Zeros for a reset.
    pub args: [u32; 2],
    /// What it returned: 0 is success.
    pub code: u32,
}

/// Locks in force on a GPU, as they were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Locks {
    /// Core clock lock.
    pub core: Option<Range>,
    /// Memory clock lock.
    pub memory: Option<Range>,
    /// Performance state that NVAPI forces.
    pub pstate: Option<u32>,
}

/// A mocked machine, shared with every process that has the same file open.
pub struct MockState {
    config: MockConfig,
    shared: Mapping,
    /// `None`: the machine is private to this process.
    file: Option<File>,
    /// `flock` holds off other processes but not this one's other threads.
    threads: Mutex<()>,
}

impl std::fmt::Debug for MockState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MockState").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Held while the shared state is read or changed.
pub(crate) struct Locked<'a> {
    state: &'a MockState,
    _threads: MutexGuard<'a, ()>,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Some(file) = &self.state.file {
            // Fails for no open file; and the lock ends with the process at the latest.
            let _ = file.unlock();
        }
    }
}

impl MockState {
    /// Makes a state file, replacing one that is there. Processes that have the old one open keep it.
    /// Errors: [`MockError::Config`] or [`MockError::Io`].
    pub fn create(path: &Path, config: &MockConfig) -> Result<Self, MockError> {
        let config = config.clone().checked()?;
        let io = |source| MockError::Io { path: path.display().to_string(), source };
        // Made beside it and renamed into place: whoever opens the path finds a whole file.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".new-{}", std::process::id()));
        let fresh = Path::new(&fresh);
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(fresh).map_err(io)?;
        file.set_len(size_of::<Shared>() as u64).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        let text = serde_json::to_vec(&config).map_err(|error| io(error.into()))?;
        file.write_all(&text).map_err(io)?;
        let shared = Mapping::new(Some(&file)).map_err(io)?;
        let state = Self::boot(config, shared, Some(file));
        std::fs::rename(fresh, path).map_err(io)?;
        Ok(state)
    }

    /// Opens a state file that another process, or this one, made.
    /// Errors: [`MockError::Io`] or [`MockError::Format`].
    pub fn open(path: &Path) -> Result<Self, MockError> {
        let io = |source| MockError::Io { path: path.display().to_string(), source };
        let format = |reason: String| MockError::Format { path: path.display().to_string(), reason };
        let mut file = File::options().read(true).write(true).open(path).map_err(io)?;
        let shared = Mapping::new(Some(&file)).map_err(|error| format(error.to_string()))?;
        if shared.magic.load(Relaxed) != MAGIC {
            return Err(format("it does not start with this version's mark".to_owned()));
        }
        file.seek(SeekFrom::Start(size_of::<Shared>() as u64)).map_err(io)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(io)?;
        let config: MockConfig = serde_json::from_slice(&text).map_err(|error| format(error.to_string()))?;
        Ok(Self { config: config.checked()?, shared, file: Some(file), threads: Mutex::new(()) })
    }

    /// A machine that only this process sees.
    /// Errors: [`MockError::Config`], or [`MockError::Io`] if there is no memory for it.
    pub fn private(config: &MockConfig) -> Result<Self, MockError> {
        let config = config.clone().checked()?;
        let shared =
            Mapping::new(None).map_err(|source| MockError::Io { path: "(none)".to_owned(), source })?;
        Ok(Self::boot(config, shared, None))
    }

    fn boot(config: MockConfig, shared: Mapping, file: Option<File>) -> Self {
        let now = monotonic_ns();
        for (index, gpu) in config.gpus.iter().enumerate() {
            shared.commit(0, index, &GpuState::new(gpu, now));
        }
        shared.magic.store(MAGIC, Relaxed);
        Self { config, shared, file, threads: Mutex::new(()) }
    }

    /// The machine's configuration.
    pub fn config(&self) -> &MockConfig {
        &self.config
    }

    pub(crate) fn gpu_config(&self, gpu: usize) -> Result<&GpuConfig, MockError> {
        self.config.gpus.get(gpu).ok_or(MockError::NoSuchGpu(gpu))
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn lock(&self) -> Locked<'_> {
        // A thread that panicked here left nothing half done: see `layout`.
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.file {
            // Interrupted or out of kernel memory: try again rather than go on without the lock.
            while file.lock().is_err() {
                std::thread::yield_now();
            }
        }
        Locked { state: self, _threads: threads }
    }

    /// One GPU, as of now.
    pub(crate) fn read<R>(
        &self,
        gpu: usize,
        ask: impl FnOnce(&GpuConfig, &GpuState, u64) -> R,
    ) -> Result<R, MockError> {
        let config = self.gpu_config(gpu)?;
        let state = {
            let _locked = self.lock();
            self.shared.current().gpu(gpu).ok_or(MockError::NoSuchGpu(gpu))?
        };
        // The clock is read after the state: never an instant before it.
        Ok(ask(config, &state, monotonic_ns()))
    }

    /// Changes one GPU.
    pub(crate) fn change(&self, gpu: usize, change: impl FnOnce(&mut GpuState)) -> Result<(), MockError> {
        let config = self.gpu_config(gpu)?;
        let _locked = self.lock();
        let bank = self.shared.current();
        let mut state = bank.gpu(gpu).ok_or(MockError::NoSuchGpu(gpu))?;
        state.advance(config, monotonic_ns());
        change(&mut state);
        state.retarget(config);
        self.shared.commit(bank.writes(), gpu, &state);
        Ok(())
    }

    /// A call of the library that writes: its effect and its entry in the history appear together.
    pub(crate) fn write(
        &self,
        gpu: usize,
        call: Call,
        args: [u32; 2],
        write: impl FnOnce(&GpuConfig, &mut GpuState) -> u32,
    ) -> Result<u32, MockError> {
        let config = self.gpu_config(gpu)?;
        let _locked = self.lock();
        let bank = self.shared.current();
        let mut state = bank.gpu(gpu).ok_or(MockError::NoSuchGpu(gpu))?;
        let now = monotonic_ns();
        state.advance(config, now);
        let code = write(config, &mut state);
        state.retarget(config);
        let seq = bank.writes();
        if let Some(slot) = self.shared.history.get(ring_index(seq)) {
            let pid = u64::from(std::process::id());
            let [low, high] = args.map(u64::from);
            let entry = [seq, now, pid, gpu as u64, u64::from(call as u32), low, high, u64::from(code)];
            slot.iter().zip(entry).for_each(|(word, value)| word.store(value, Relaxed));
        }
        self.shared.commit(seq + 1, gpu, &state);
        Ok(code)
    }

    /// Every set and reset call so far, oldest first; the last [`HISTORY_LEN`] of them.
    pub fn history(&self) -> Vec<ClockWrite> {
        self.history_since(0)
    }

    /// The calls from number `first` on.
    pub fn history_since(&self, first: u64) -> Vec<ClockWrite> {
        let _locked = self.lock();
        let end = self.shared.current().writes();
        let first = first.max(end.saturating_sub(HISTORY_LEN as u64));
        (first..end).filter_map(|seq| self.entry(seq)).collect()
    }

    fn entry(&self, seq: u64) -> Option<ClockWrite> {
        let slot = self.shared.history.get(ring_index(seq))?;
        let [seq, at_ns, pid, gpu, call, low, high, code] =
            std::array::from_fn(|word| slot[word].load(Relaxed));
        let small = |word: u64| u32::try_from(word).unwrap_or(u32::MAX);
        Some(ClockWrite {
            seq,
            at_ns,
            pid: small(pid),
            gpu: small(gpu),
            call: Call::from_number(call)?.name(),
            args: [small(low), small(high)],
            code: small(code),
        })
    }

    /// How often a function was called, by all processes, failed calls included.
    pub fn call_count(&self, call: &str) -> Result<u64, MockError> {
        let call = Call::from_name(call).ok_or_else(|| MockError::UnknownCall(call.to_owned()))?;
        Ok(self.shared.call_counts.get(call as usize).map_or(0, |count| count.load(Relaxed)))
    }

    /// How often all functions together were called.
    pub fn total_calls(&self) -> u64 {
        self.shared.call_counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Arms an error or a delay.
    pub fn inject(&self, injection: &inject::Injection) -> Result<(), MockError> {
        inject::arm(self, injection)
    }

    /// Disarms every injection.
    pub fn clear_injections(&self) {
        inject::disarm_all(self);
    }
}

fn ring_index(seq: u64) -> usize {
    usize::try_from(seq % HISTORY_LEN as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call = Call::nvmlDeviceSetGpuLockedClocks;

    #[test]
    fn history_keeps_the_last_writes_and_their_numbers() {
        let state = MockState::private(&MockConfig::default()).expect("a private machine");
        let extra = 3_u32;
        for number in (0_u32..).take(HISTORY_LEN + extra as usize) {
            state.write(0, CALL, [number, 0], |_, _| 0).expect("GPU 0");
        }
        let history = state.history();
        assert_eq!(history.len(), HISTORY_LEN);
        for (write, seq) in history.iter().zip(extra..) {
            assert_eq!((write.seq, write.args), (u64::from(seq), [seq, 0]));
        }
        assert_eq!(state.history_since(history[0].seq + HISTORY_LEN as u64 - 1).len(), 1);
    }

    #[test]
    fn change_of_one_gpu_leaves_the_others_as_they_were() {
        let config = MockConfig::uniform(&GpuConfig::a100(), 3);
        let state = MockState::private(&config).expect("a private machine");
        let words = |gpu| state.shared().current().gpu(gpu);
        let before = [words(0), words(2)];
        for load in [0.1, 0.2, 0.3] {
            state.set_load(1, load).expect("GPU 1");
            assert_eq!([words(0), words(2)], before);
        }
        assert!((state.snapshot(1).expect("GPU 1").load - 0.3).abs() < f64::EPSILON);
    }

    #[test]
    fn stuck_clocks_stay_whatever_is_locked_and_follow_again_afterwards() {
        let state = MockState::private(&MockConfig::default()).expect("a private machine");
        let running = || state.snapshot(0).expect("GPU 0").core_mhz;
        let before = running();
        state.set_load(0, 1.0).expect("GPU 0");
        state.set_stuck(0, true).expect("GPU 0");
        let lock = Some(Range { min: 210, max: 705 });
        state.change(0, |gpu| gpu.core_lock = lock).expect("GPU 0");
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!((running(), state.locks(0).expect("GPU 0").core), (before, lock));
        state.set_stuck(0, false).expect("GPU 0");
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(running(), 705);
    }

    #[test]
    fn driver_reload_drops_locks_and_starts_the_counter_again() {
        let state = MockState::private(&MockConfig::default()).expect("a private machine");
        let lock = Some(Range { min: 210, max: 705 });
        state.change(0, |gpu| gpu.core_lock = lock).expect("GPU 0");
        let before = state.snapshot(0).expect("GPU 0");
        state.reload_driver(0).expect("GPU 0");
        let after = state.snapshot(0).expect("GPU 0");
        assert_eq!((before.locks.core, after.locks.core), (lock, None));
        assert!(after.energy_mj < before.energy_mj);
    }
}
