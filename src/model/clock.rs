//! The time that deadlines, waits and back-offs go by.
//!
//! Without the feature `testing` it is the system's. With it, a thread can be given a clock that only the simulation moves.

/// The CPU time that this thread has used.
pub fn thread_cpu() -> std::time::Duration {
    #[cfg(feature = "testing")]
    if let Some(elapsed) = simulated::elapsed() {
        return elapsed;
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    std::time::Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Now.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[cfg(feature = "testing")]
pub use simulated::{SimulatedClock, is_simulated, now};

#[cfg(feature = "testing")]
mod simulated {
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::time::{Duration, Instant};

    thread_local! {
        static HERE: RefCell<Option<SimulatedClock>> = const { RefCell::new(None) };
    }

    /// A clock that stands still until it is told to go on. Its copies are the same clock.
    #[derive(Debug, Clone)]
    pub struct SimulatedClock {
        origin: Instant,
        nanos: Arc<AtomicU64>,
    }

    impl Default for SimulatedClock {
        fn default() -> Self {
            Self { origin: Instant::now(), nanos: Arc::default() }
        }
    }

    impl SimulatedClock {
        /// How far it has gone.
        pub fn elapsed(&self) -> Duration {
            Duration::from_nanos(self.nanos.load(SeqCst))
        }

        /// Moves it on to this time, if that is not past.
        pub fn advance_to(&self, elapsed: Duration) {
            self.nanos.fetch_max(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), SeqCst);
        }

        /// This thread goes by it from now on.
        pub fn rule_this_thread(&self) {
            HERE.set(Some(self.clone()));
        }
    }

    /// How far the clock has gone that rules this thread, if one does.
    pub(super) fn elapsed() -> Option<Duration> {
        HERE.with_borrow(|clock| clock.as_ref().map(SimulatedClock::elapsed))
    }

    /// Whether this thread goes by such a clock: nothing may happen beside it then, since whoever is quicker would tell.
    pub fn is_simulated() -> bool {
        HERE.with_borrow(Option::is_some)
    }

    /// Now.
    pub fn now() -> Instant {
        HERE.with_borrow(|clock| clock.as_ref().map_or_else(Instant::now, |clock| clock.origin + clock.elapsed()))
    }
}
