//! Deadlines in guest CPU time. Wall time only wakes the check: a process that was stopped, throttled or starved must
//! not turn healthy records into faults.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use crate::model::clock::thread_cpu;
use wasmtime::{Engine, UpdateDeadline};

/// How long one epoch is, and so how late a guest is interrupted at most.
const TICK: Duration = Duration::from_millis(1);

/// How often it is looked whether a guest at work is to be interrupted before its time.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The ticker rests after this many ticks without a call: long enough that a busy worker never pays for waking it.
const IDLE_TICKS: u32 = 100;

/// What a guest may still use of its thread's CPU time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Deadline {
    started: Duration,
    budget: Duration,
}

impl Deadline {
    pub(super) fn start(budget: Duration) -> Self {
        Self { started: thread_cpu(), budget }
    }

    pub(super) fn budget(&self) -> Duration {
        self.budget
    }

    pub(super) fn spent(&self) -> Duration {
        thread_cpu().saturating_sub(self.started)
    }

    /// In how many epochs to look, when none of the budget is spent.
    pub(super) fn first_check(&self) -> u64 {
        ticks(self.budget.min(LOOK_EVERY))
    }

    /// What to do when the epoch has come: interrupt only a guest that has really had its time, or whose worker ends.
    pub(super) fn check(&self, to_stop: bool) -> UpdateDeadline {
        match self.budget.checked_sub(self.spent()) {
            None | Some(Duration::ZERO) => UpdateDeadline::Interrupt,
            Some(_) if to_stop => UpdateDeadline::Interrupt,
            Some(left) => UpdateDeadline::Continue(ticks(left.min(LOOK_EVERY))),
        }
    }
}

/// The deadline as host functions see it: a guest is only interrupted in its own code, and may call the host again and again
/// in between.
pub(super) struct Watch {
    shared: Arc<Shared>,
    look_at: Cell<u64>,
}

impl Watch {
    /// From now on it is about this deadline.
    pub(super) fn start(&self, deadline: &Deadline) {
        self.look_at.set(self.epoch() + deadline.first_check());
    }

    /// Whether the guest is to be interrupted. Costs next to nothing while no epoch has come: to ask for the time that a thread
    /// has used is a system call.
    pub(super) fn is_over(&self, deadline: &Deadline, to_stop: bool) -> bool {
        if self.epoch() < self.look_at.get() {
            return false;
        }
        if let UpdateDeadline::Continue(epochs) = deadline.check(to_stop) {
            self.look_at.set(self.epoch() + epochs);
            return false;
        }
        true
    }

    fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::Relaxed)
    }
}

/// Epochs that are sure to cover `time`. Bounded, since wasmtime adds them to the present epoch.
fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, u64::from(u32::MAX)) + 1
}

/// Moves the engine's epoch on while calls run.
pub(super) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    epoch: AtomicU64,
    calls: AtomicUsize,
    resting: AtomicBool,
    stopped: AtomicBool,
}

impl Ticker {
    pub(super) fn start(engine: Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("plugin-ticker".into()).spawn(move || tick(&engine, &of_thread))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has the epoch move on until the returned guard is dropped.
    pub(super) fn running(&self) -> Running<'_> {
        // With the ticker's own order (rest, then look for calls) one of the two always sees the other.
        self.shared.calls.fetch_add(1, Ordering::SeqCst);
        if self.shared.resting.load(Ordering::SeqCst) {
            self.thread().unpark();
        }
        Running(&self.shared)
    }

    /// Watches no deadline yet.
    pub(super) fn watch(&self) -> Watch {
        Watch { shared: Arc::clone(&self.shared), look_at: Cell::new(u64::MAX) }
    }

    fn thread(&self) -> &Thread {
        self.thread.as_ref().expect("taken by drop only").thread()
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.thread().unpark();
        if let Some(thread) = self.thread.take() {
            // It cannot panic, and nobody could act on it here.
            let _ = thread.join();
        }
    }
}

/// While it lives, the epoch moves on.
pub(super) struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One step of the epoch per wake-up, however late it comes: missed ticks are skipped.
fn tick(engine: &Engine, shared: &Shared) {
    let mut idle = 0;
    while !shared.stopped.load(Ordering::SeqCst) {
        if shared.calls.load(Ordering::SeqCst) > 0 {
            idle = 0;
        } else {
            idle += 1;
        }
        if idle > IDLE_TICKS {
            shared.resting.store(true, Ordering::SeqCst);
            while shared.calls.load(Ordering::SeqCst) == 0 && !shared.stopped.load(Ordering::SeqCst) {
                thread::park();
            }
            shared.resting.store(false, Ordering::SeqCst);
            idle = 0;
        }
        #[expect(clippy::disallowed_methods, reason = "a ticker has nothing to wait for but time")]
        thread::sleep(TICK);
        engine.increment_epoch();
        shared.epoch.fetch_add(1, Ordering::Relaxed);
    }
}
