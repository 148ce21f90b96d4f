//! The few things std does not offer: a shared mapping, the monotonic clock as a number, and the path of this library.
#![expect(unsafe_code, reason = "mmap, clock_gettime and dladdr have no safe form in std")]

use std::ffi::{CStr, OsStr, c_void};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::NonNull;

use crate::layout::Shared;

/// [`Shared`] mapped into this process, from a file or from anonymous memory.
pub(crate) struct Mapping(NonNull<Shared>);

// SAFETY: the mapping belongs to no thread, and `Shared` consists of atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference only reaches atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `size_of::<Shared>()` bytes of a file, or that much zeroed memory of our own.
    pub(crate) fn new(file: Option<&File>) -> io::Result<Self> {
        let size = size_of::<Shared>();
        let (fd, flags) = match file {
            // A page behind the end of the file would raise SIGBUS on first touch.
            Some(file) if file.metadata()?.len() < size as u64 => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is too short"));
            }
            Some(file) => (file.as_raw_fd(), libc::MAP_SHARED),
            None => (-1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), size, access, flags, fd, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast()).map(Self).ok_or_else(|| io::Error::other("mmap gave address 0"))
    }
}

impl std::ops::Deref for Mapping {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        // SAFETY: the mapping is page-aligned, `size_of::<Shared>()` long and lives until drop; `Shared` is made of
        // atomic integers, for which every bit pattern is valid and concurrent change is allowed.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; no reference outlives `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Shared>()) };
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds: the same for every process of the machine.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Where this library was loaded from.
pub(crate) fn own_path() -> Option<PathBuf> {
    let inside: *const c_void = (monotonic_ns as fn() -> u64) as *const c_void;
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: `inside` is an address of this library; `info` is a valid place for the result.
    let found = unsafe { libc::dladdr(inside, &raw mut info) } != 0 && !info.dli_fname.is_null();
    // SAFETY: dladdr gave a C string that lives as long as the library stays loaded; it is copied here.
    found.then(|| PathBuf::from(OsStr::from_bytes(unsafe { CStr::from_ptr(info.dli_fname) }.to_bytes())))
}
