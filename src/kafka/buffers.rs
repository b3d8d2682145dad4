//! What becomes of memory that librdkafka has freed.
#![expect(unsafe_code, reason = "mallopt is C")]

/// Freed memory is kept for what comes next: glibc would give it back to the system after each large buffer, and then ask
/// for it again, cleared, which takes a tenth of all CPU time at 1 KiB a record. How much is kept is a quarter of `memory`
/// (bytes). Elsewhere than with glibc nothing is done. (mallopt(3))
pub fn keep_freed_memory(memory: u64) {
    #[cfg(target_env = "gnu")]
    {
        /// Whoever gives so little wants it to be little.
        const SMALL: u64 = 128 << 20;
        /// The largest that glibc takes: buffers above it are mapped one by one.
        const MMAP_THRESHOLD: i32 = 32 << 20;
        if memory < SMALL {
            return;
        }
        let trim_threshold = i32::try_from(memory / 4).unwrap_or(i32::MAX);
        // SAFETY: takes numbers, and locks what it changes.
        unsafe {
            // (0: refused, and all is as it was)
            libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
            libc::mallopt(libc::M_TRIM_THRESHOLD, trim_threshold);
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = memory;
}
