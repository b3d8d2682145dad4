//! A contender's process.

use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A contender's process, which does not outlive this.
pub(crate) struct Running {
    child: Child,
    directory: TempDir,
}

impl Running {
    /// A process that was started already, with what it reads and writes.
    pub(crate) fn of(child: Child, directory: TempDir) -> Self {
        Self { child, directory }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Panics with the end of what it said, where it has ended.
    pub(crate) fn must_live(&mut self) {
        if let Some(status) = self.child.try_wait().expect("it is our child") {
            self.failed(&format!("ended before its work: {status}"));
        }
    }

    pub(crate) fn failed(&self, why: &str) -> ! {
        let said = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        panic!("a contender {why}; it said:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
    }

    /// Ends it in good order.
    pub(crate) fn end(mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("it has one");
        let _ = kill_process(pid, Signal::TERM);
        self.child.wait().expect("it is our child");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
