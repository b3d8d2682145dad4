//! `process_*`: what the kernel says about this process, read when somebody asks.

use std::fs;
use std::time::SystemTime;

use rustix::time::{ClockId, clock_gettime};

use super::limits::Limits;
use super::logging::dropped_lines;
use super::series::{Registry, Value};
use super::table;

/// The process's own series.
#[derive(Debug)]
pub(super) struct Process {
    cpu: Value,
    resident: Value,
    virtual_: Value,
    threads: Value,
    fds: Value,
    max_fds: Value,
    memory_limit: Value,
    log_lines_dropped: Value,
    _start: Value,
}

impl Process {
    /// To be made once, early: its moment counts as the start of the process.
    pub(super) fn new(registry: &Registry) -> Self {
        let held = |metric| registry.held(metric, &[]);
        let start = held(&table::PROCESS_START);
        start.since(SystemTime::now());
        Self {
            cpu: registry.kept(&table::PROCESS_CPU, &[]),
            resident: held(&table::PROCESS_RESIDENT),
            virtual_: held(&table::PROCESS_VIRTUAL),
            threads: held(&table::PROCESS_THREADS),
            fds: held(&table::PROCESS_FDS),
            max_fds: held(&table::PROCESS_MAX_FDS),
            memory_limit: held(&table::MEMORY_LIMIT),
            log_lines_dropped: held(&table::LOG_LINES_DROPPED),
            _start: start,
        }
    }

    /// Reads them anew. What cannot be read (a hardened /proc) stays as it was, or absent.
    pub(super) fn refresh(&self) {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        self.cpu.set(cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9);
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            let field = |name: &str| {
                let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
                rest.split_whitespace().next()?.parse::<f64>().ok()
            };
            for (name, value, unit) in [
                ("VmRSS:", &self.resident, 1024.0),
                ("VmSize:", &self.virtual_, 1024.0),
                ("Threads:", &self.threads, 1.0),
            ] {
                field(name).into_iter().for_each(|read| value.set(read * unit));
            }
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            // Less the one that reads the directory.
            self.fds.set(fds.count().saturating_sub(1) as f64);
        }
        // No ceiling at all is shown as +Inf.
        let shown = |limit: Option<u64>| limit.map_or(f64::INFINITY, |most| most as f64);
        let Limits { memory, open_files, .. } = Limits::read();
        self.max_fds.set(shown(open_files));
        self.memory_limit.set(shown(memory));
        self.log_lines_dropped.set(dropped_lines() as f64);
    }
}
