//! What tests stand on: a real Kafka, the daemon as a process, and waiting for a condition. Knows nothing about what is
//! tested.

#![allow(dead_code, reason = "a harness offers whole sets of words, of which today's tests may use some")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) mod browser;
pub(crate) mod collector;
pub(crate) mod config;
pub(crate) mod daemon;
pub(crate) mod guest_log;
pub(crate) mod guests;
pub(crate) mod kafka;
pub(crate) mod load;
pub(crate) mod memory_batch;
pub(crate) mod record_loop;
pub(crate) mod secured;
pub(crate) mod stamped;

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A path for a test's own file or directory, below the build directory; nothing is there yet.
pub(crate) fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique(name))
}

/// A name that no other test, and no other run of this one, uses.
pub(crate) fn unique(name: &str) -> String {
    format!("{name}-{:08x}", fastrand::u32(..))
}

/// Whether this process runs no other test than this one. If not, one is started that does, and the test fails if that
/// fails: for what is measured of a whole process.
#[track_caller]
pub(crate) fn is_alone(test: &str) -> bool {
    const ALONE: &str = "MILLRACE_TEST_ALONE";
    if std::env::var(ALONE).is_ok_and(|alone| alone == test) {
        return true;
    }
    let this = std::env::current_exe().expect("this binary");
    let run = std::process::Command::new(this).args(["--exact", test]).env(ALONE, test).output().expect("this binary");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&run.stderr));
    false
}

/// Waits until `condition` holds, and fails the test when it does not within `timeout`.
#[track_caller]
pub(crate) fn wait_until(timeout: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(timeout, what, || condition().then_some(()));
}

/// Waits until `look` finds something, and fails the test when it does not within `timeout`.
#[track_caller]
pub(crate) fn wait_for<T>(timeout: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {timeout:?} in vain: {what}");
        #[expect(clippy::disallowed_methods, reason = "the one place where tests wait, between two looks")]
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// Lets time pass between two steps of somebody who is slow, where that is what is tested. Nothing is waited for by this.
pub(crate) fn pace(pause: Duration) {
    let (_somebody, nothing) = std::sync::mpsc::channel::<()>();
    // (an error: that is the pause)
    let _ = nothing.recv_timeout(pause);
}
