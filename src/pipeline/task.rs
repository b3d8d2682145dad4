//! What a worker does with records, as it is handed over: the bridge from the control plane to the data plane.

use std::time::Duration;

use super::chain::Chain;
use crate::config::settings::Destination;
use crate::policy::OnError;

/// What a worker does with records: all that a reload can change between two transactions.
pub struct Task {
    /// The plugins, with instances of this worker's own.
    pub chain: Chain,
    /// Where records go.
    pub destinations: Vec<Destination>,
    /// What happens to a record at fault.
    pub on_error: OnError,
    /// Bounds.
    pub bounds: Bounds,
    /// The generation of the configuration that it comes from.
    pub generation: u64,
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
