//! What becomes of memory that librdkafka has freed.
#![expect(unsafe_code, reason = "mallopt is C")]

/// Freed memory is kept for what comes next: glibc would give it back to the system after each large buffer, and then ask
/// for it again, cleared, which takes a tenth of all CPU time at 1 KiB a record. How much is kept is bounded by what has
/// been in use at once, and so by `memory`. Elsewhere than with glibc nothing is done. (mallopt(3))
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        /// The largest that glibc takes: buffers above it are mapped one by one.
        const MMAP_THRESHOLD: i32 = 32 << 20;
        const TRIM_THRESHOLD: i32 = 512 << 20;
        // SAFETY: takes numbers, and locks what it changes.
        unsafe {
            // (0: refused, and all is as it was)
            libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
            libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD);
        }
    }
}
