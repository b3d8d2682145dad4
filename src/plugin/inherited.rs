//! Files that this process was started with, beside the three standard ones. A place of the crate with `unsafe`.
#![expect(unsafe_code, reason = "who closes a descriptor by its number has to know that nobody uses it")]

use std::io;
use std::os::fd::RawFd;
use std::path::Path;

/// What this process has open, by number.
const OPEN: &str = "/proc/self/fd";

/// Closes all of them: what the one that started this process had open is not this one's business, whether it meant to hand it
/// on or not. To be called before anything is opened.
pub(super) fn close() -> io::Result<()> {
    let number = |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok();
    let listed: Vec<RawFd> = std::fs::read_dir(OPEN)?.filter_map(number).filter(|fd| *fd > 2).collect();
    // (the descriptor that the list was read by is in it, and closed by now)
    for fd in listed.into_iter().filter(|fd| Path::new(OPEN).join(fd.to_string()).is_symlink()) {
        // SAFETY: it is open, and since this process has opened nothing itself yet, no value of its own stands for it.
        unsafe { rustix::io::close(fd) };
    }
    Ok(())
}
