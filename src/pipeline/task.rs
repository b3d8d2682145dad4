//! What a worker does with records, as it is handed over: the bridge from the control plane to the data plane.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::chain::Chain;
use super::shadow::Shadow;
use crate::config::settings::Destination;
use crate::policy::OnError;

/// What a worker does with records: all that a reload can change between two transactions.
pub struct Task {
    /// The plugins, with instances of this worker's own.
    pub chain: Chain,
    /// A second set of them, to compare.
    pub shadow: Option<Shadow>,
    /// Where records go.
    pub destinations: Vec<Destination>,
    /// What happens to a record at fault.
    pub on_error: OnError,
    /// Bounds.
    pub bounds: Bounds,
    /// The generation of the configuration that it comes from.
    pub generation: u64,
}

/// Says to whom looks that the worker is to end, and by when: an order waits until the worker takes it, and plugins may
/// be at work until then. It cannot be taken back.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<OnceLock<Instant>>);

impl Stop {
    /// The worker is to have ended by then.
    pub fn by(&self, deadline: Instant) {
        // (an error: it was told before, and that holds)
        let _ = self.0.set(deadline);
    }

    /// By when the worker is to have ended, if it is.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.get().copied()
    }

    /// Whether the worker is to end.
    pub fn is_set(&self) -> bool {
        self.0.get().is_some()
    }
}

/// Bounds of one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Longest time in which its records are gathered.
    pub interval: Duration,
    /// Most source records.
    pub records: usize,
    /// Most bytes of source records; one record may be larger.
    pub bytes: usize,
    /// Longest plugin work.
    pub processing: Duration,
    /// Bytes held, of all partitions, from which on those with records left to do are not fetched further.
    pub held: usize,
}

impl Bounds {
    /// What one transaction covers at most.
    pub fn room(&self) -> Room {
        Room { records: self.records, bytes: self.bytes }
    }
}

/// A part of what one transaction covers at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Source records.
    pub records: usize,
    /// Bytes, of source records and of what plugins made of them.
    pub bytes: usize,
}

impl Room {
    /// What is left of it; less than nothing is nothing.
    pub(super) fn less(self, taken: Self) -> Self {
        let bytes = self.bytes.saturating_sub(taken.bytes);
        Self { records: self.records.saturating_sub(taken.records), bytes }
    }
    /// Whether there is no room.
    pub(super) fn is_none(self) -> bool {
        self.records == 0 || self.bytes == 0
    }
}

impl std::ops::AddAssign for Room {
    fn add_assign(&mut self, more: Self) {
        (self.records, self.bytes) = (self.records + more.records, self.bytes + more.bytes);
    }
}
