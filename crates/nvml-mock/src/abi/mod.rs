//! The C side: the functions that NVML's clients find in this library.
//!
//! Each does three things: checks its pointers, asks [`crate::MockState`], writes the answer. What they have in common
//! is here: a panic never leaves the library, every call is counted, injected errors come first, and a handle is an
//! index in disguise.
#![expect(
    unsafe_code,
    reason = "writing answers through a C caller's pointers, under the names C callers look up"
)]

mod clocks;
mod machine;
mod nvapi;
mod sensors;

use std::ffi::{c_char, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use crate::calls::Call;
use crate::config::{GpuConfig, MockConfig};
use crate::model::GpuState;
use crate::state::{MockError, MockState};
use crate::{NO_PERMISSION_VARIABLE, STATE_FILE, STATE_VARIABLE, inject, sys};

/// `nvmlReturn_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
struct Code(u32);

impl Code {
    const SUCCESS: Self = Self(0);
    const UNINITIALIZED: Self = Self(1);
    const INVALID_ARGUMENT: Self = Self(2);
    const NOT_SUPPORTED: Self = Self(3);
    const NO_PERMISSION: Self = Self(4);
    const NOT_FOUND: Self = Self(6);
    const INSUFFICIENT_SIZE: Self = Self(7);
    const DRIVER_NOT_LOADED: Self = Self(9);
    const GPU_IS_LOST: Self = Self(15);
    const ARGUMENT_VERSION_MISMATCH: Self = Self(25);
    const UNKNOWN: Self = Self(999);
}

impl From<Result<(), Code>> for Code {
    fn from(result: Result<(), Code>) -> Self {
        result.err().unwrap_or(Self::SUCCESS)
    }
}

impl From<MockError> for Code {
    fn from(error: MockError) -> Self {
        match error {
            MockError::NoSuchGpu(_) => Self::INVALID_ARGUMENT,
            _ => Self::UNKNOWN,
        }
    }
}

/// `nvmlDevice_t`: opaque to callers; index + 1, so that null is no device.
type Device = *mut c_void;

fn device_of(index: usize) -> Device {
    std::ptr::without_provenance_mut(index + 1)
}

/// What this process has loaded: decided at the first initialisation, kept to its end.
struct Library {
    state: MockState,
    writes_refused: bool,
}

static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
/// Initialisations not yet undone: NVML counts them.
static INITIALISED: AtomicU32 = AtomicU32::new(0);

impl Library {
    fn load() -> Option<Self> {
        let beside = sys::own_path().and_then(|own| Some(own.parent()?.join(STATE_FILE)));
        let state = match (std::env::var_os(STATE_VARIABLE), beside) {
            (Some(path), _) => MockState::open(Path::new(&path)),
            (None, Some(path)) if path.exists() => MockState::open(&path),
            _ => MockState::private(&MockConfig::default()),
        };
        // The caller only sees "driver not loaded"; whoever set the mock up wants the reason.
        let state = state.inspect_err(|error| eprintln!("nvml-mock: {error}")).ok()?;
        let writes_refused = std::env::var_os(NO_PERMISSION_VARIABLE).is_some_and(|value| value == "1");
        Some(Self { state, writes_refused })
    }

    fn get() -> Result<&'static Self, Code> {
        LIBRARY.get_or_init(Self::load).as_ref().ok_or(Code::DRIVER_NOT_LOADED)
    }

    /// Counts the call and does to it what a test armed.
    fn announce(&self, call: Call, gpu: Option<u32>) -> Result<(), Code> {
        if let Some(count) = self.state.shared().call_counts.get(call as usize) {
            count.fetch_add(1, Relaxed);
        }
        let (delay, code) = inject::due(&self.state, call, gpu);
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        code.map_or(Ok(()), |code| Err(Code(code)))
    }
}

/// One GPU in one call.
#[derive(Clone, Copy)]
struct Gpu {
    library: &'static Library,
    index: usize,
}

impl Gpu {
    fn new(device: Device) -> Result<Self, Code> {
        let library = Library::get()?;
        let index = device.addr().checked_sub(1).ok_or(Code::INVALID_ARGUMENT)?;
        library.state.gpu_config(index)?;
        Ok(Self { library, index })
    }

    fn number(self) -> u32 {
        u32::try_from(self.index).unwrap_or(u32::MAX)
    }

    fn config(self) -> Result<&'static GpuConfig, Code> {
        Ok(self.library.state.gpu_config(self.index)?)
    }

    /// What a test has this sensor say.
    fn said(self, call: Call) -> Option<u64> {
        inject::said(&self.library.state, call, self.number())
    }

    /// The same as 32 bits.
    fn said_short(self, call: Call) -> Option<c_uint> {
        self.said(call).map(|value| c_uint::try_from(value).unwrap_or(c_uint::MAX))
    }

    fn read<R>(self, ask: impl FnOnce(&GpuConfig, &GpuState, u64) -> R) -> Result<R, Code> {
        Ok(self.library.state.read(self.index, ask)?)
    }
}

fn guarded(work: impl FnOnce() -> Result<(), Code>) -> Code {
    catch_unwind(AssertUnwindSafe(work)).map_or(Code::UNKNOWN, Code::from)
}

fn initialised() -> Result<(), Code> {
    if INITIALISED.load(Acquire) > 0 { Ok(()) } else { Err(Code::UNINITIALIZED) }
}

/// A call about no GPU in particular.
fn on_machine(call: Call, work: impl FnOnce(&'static Library) -> Result<(), Code>) -> Code {
    guarded(|| {
        initialised()?;
        let library = Library::get()?;
        library.announce(call, None)?;
        work(library)
    })
}

/// A call that asks something of a GPU.
fn on_gpu(call: Call, device: Device, work: impl FnOnce(Gpu) -> Result<(), Code>) -> Code {
    guarded(|| {
        initialised()?;
        let gpu = Gpu::new(device)?;
        gpu.library.announce(call, Some(gpu.number()))?;
        if gpu.read(|_, state, _| state.lost)? { Err(Code::GPU_IS_LOST) } else { work(gpu) }
    })
}

/// A call that changes a GPU. Refused and failed ones are recorded too.
fn write_gpu(
    call: Call,
    device: Device,
    args: [u32; 2],
    write: impl FnOnce(&GpuConfig, &mut GpuState) -> Result<(), Code>,
) -> Code {
    guarded(|| {
        initialised()?;
        let gpu = Gpu::new(device)?;
        let announced = gpu.library.announce(call, Some(gpu.number()));
        let code = gpu.library.state.write(gpu.index, call, args, |config, state| {
            let refused = if gpu.library.writes_refused { Err(Code::NO_PERMISSION) } else { Ok(()) };
            let lost = if state.lost { Err(Code::GPU_IS_LOST) } else { Ok(()) };
            Code::from(announced.and(refused).and(lost).and_then(|()| write(config, state))).0
        })?;
        if code == 0 { Ok(()) } else { Err(Code(code)) }
    })
}

/// Writes an answer.
///
/// # Safety
/// `to` is null or valid for writing a `T`: what NVML demands of its callers.
unsafe fn put<T>(to: *mut T, value: T) -> Result<(), Code> {
    if to.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    // SAFETY: not null, hence valid by the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes a C string into a buffer of `length` bytes.
///
/// # Safety
/// `to` is null or valid for writing `length` bytes.
unsafe fn put_text(to: *mut c_char, length: c_uint, text: &str) -> Result<(), Code> {
    if to.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(Code::INSUFFICIENT_SIZE);
    }
    // SAFETY: the text and its final zero fit into the `length` bytes that the caller promises.
    unsafe {
        to.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

/// Writes a list the way NVML does: `count` holds the room and becomes the length; too little room writes nothing else.
///
/// # Safety
/// `count` is null or valid for reading and writing; `to` is null or valid for writing `*count` items.
unsafe fn put_list<T>(
    count: *mut c_uint,
    to: *mut T,
    items: impl ExactSizeIterator<Item = T>,
) -> Result<(), Code> {
    if count.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    // SAFETY: not null, hence valid by the caller's promise.
    let room = unsafe { count.replace(c_uint::try_from(items.len()).unwrap_or(c_uint::MAX)) } as usize;
    if items.len() > room || (to.is_null() && items.len() > 0) {
        return Err(Code::INSUFFICIENT_SIZE);
    }
    for (index, item) in items.take(room).enumerate() {
        // SAFETY: `index < room`, and the caller promises room for that many.
        unsafe { to.add(index).write(item) };
    }
    Ok(())
}

/// A function `(device, *mut T)` that writes one answer.
macro_rules! getters {
    ($($name:ident: $kind:ty = |$gpu:ident| $answer:expr;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(device: Device, to: *mut $kind) -> Code {
            on_gpu(Call::$name, device, |$gpu| {
                let answer: $kind = $answer;
                // SAFETY: NVML's contract: `to` is null or valid for the answer.
                unsafe { put(to, answer) }
            })
        }
    )*};
}
use getters;

/// Undoes one initialisation.
fn release() -> Result<(), Code> {
    INITIALISED
        .try_update(AcqRel, Acquire, |count| count.checked_sub(1))
        .map(drop)
        .map_err(|_| Code::UNINITIALIZED)
}
