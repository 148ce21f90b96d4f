//! Freed memory, given back to the system.
#![cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "a C call"))]

/// Has the C library return what has been freed; elsewhere than with glibc, nothing.
pub(super) fn give_back() {
    // SAFETY: takes no pointer, and may be called at any time from any thread.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::malloc_trim(0) };
}
