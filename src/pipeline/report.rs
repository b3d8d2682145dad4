//! What a worker tells the world about itself: at most a few calls a transaction, never one a record.

use std::time::{Duration, SystemTime};

use super::ports::{Trouble, Usage};
use super::task::Task;
use crate::model::{DestinationName, ErrorId, Fault, FaultCode, Offset, PluginName, TopicName, TopicPartition};

/// Where a worker's news go: metrics, logs and the status board.
pub trait Report {
    /// The worker goes by this task from now on.
    fn taken_up(&mut self, task: &Task);
    /// The worker's health has changed.
    fn health(&mut self, health: &Health);
    /// A transaction begins.
    fn transaction_begins(&mut self);
    /// A transaction has ended; `outcome` is `committed`, `aborted`, `rejected` or `unknown`.
    fn transaction(&mut self, outcome: &'static str, took: Duration);
    /// A transaction was committed: what it counted.
    fn committed(&mut self, tally: &Tally);
    /// A record is at fault, and what was decided. The id also stands in its dead letter.
    fn fault(&mut self, at: &TopicPartition, offset: Offset, error_id: ErrorId, fault: &Fault, fate: Fate);
    /// What a plugin has used.
    fn usage(&mut self, plugin: &PluginName, usage: Usage);
    /// The broker is in trouble.
    fn trouble(&mut self, trouble: &Trouble);
    /// Records of a partition are lost for good, as the operator accepted.
    fn lost(&mut self, at: &TopicPartition, records: u64, why: &str);
    /// The group has rebalanced: partitions came or went.
    fn rebalanced(&mut self);
    /// How far behind these partitions are; comes every few seconds.
    fn lag(&mut self, _lags: &[PartitionLag]) {}
    /// Where the worker's time went since this was last told.
    fn spent(&mut self, _spent: &Spent) {}
    /// A broker has made the clients wait so long.
    fn throttled(&mut self, _time: Duration) {}
}

/// Where a worker's time went: by the wall clock, but for `cpu`. Under load it processes while it produces, delivers and
/// commits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Serving the group and waiting for records.
    pub polling: Duration,
    /// In plugins, and in routing what they made.
    pub processing: Duration,
    /// Handing outputs to the client.
    pub producing: Duration,
    /// Waiting until all outputs were acknowledged.
    pub delivering: Duration,
    /// Sending offsets, and committing.
    pub committing: Duration,
    /// CPU time of the worker's own threads. The client's are not among them.
    pub cpu: Duration,
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.polling += other.polling;
        self.processing += other.processing;
        self.producing += other.producing;
        self.delivering += other.delivering;
        self.committing += other.committing;
        self.cpu += other.cpu;
    }
}

/// What was decided about a record at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is tried again after this.
    Retried(Duration),
    /// Its partition stops before it.
    Stopped,
    /// It is passed by.
    Skipped,
    /// It goes to the dead-letter topic.
    DeadLettered,
}

/// How a worker is.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// What it is doing.
    pub phase: Phase,
    /// The partitions it owns.
    pub assignment: Vec<TopicPartition>,
    /// Those of them that stand still, and why.
    pub held: Vec<HeldPartition>,
}

/// What a worker is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// Joining.
    Starting,
    /// Routing records, or ready to.
    Running,
    /// Kept from it by something that passes.
    Waiting {
        /// Why.
        trouble: Trouble,
        /// When it tries again.
        next_attempt: SystemTime,
    },
    /// Kept from it until somebody acts; it tries again all the same.
    Failed {
        /// Why.
        trouble: Trouble,
        /// When it tries again.
        next_attempt: SystemTime,
    },
    /// Told to pause.
    Paused,
    /// Finishing.
    Draining,
    /// Gone.
    Stopped,
}

/// A partition that stands still while the others go on.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldPartition {
    /// Which.
    pub partition: TopicPartition,
    /// The record it stands before, where one is to blame.
    pub offset: Option<Offset>,
    /// The code of the fault, or `offset_lost`, `no_counterpart`.
    pub code: String,
    /// For people.
    pub message: String,
    /// The id of the fault, where one record is to blame.
    pub error_id: Option<ErrorId>,
    /// Whether it is stopped (failed) rather than waiting for its next try.
    pub stopped: bool,
    /// When it tries again.
    pub next_attempt: SystemTime,
}

/// How far behind a partition is, as it was last looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionLag {
    /// Which.
    pub partition: TopicPartition,
    /// Offsets between what is committed and the last stable one; 0 where nothing but marks of transactions lies there.
    pub records: u64,
    /// The time of the oldest record that is not committed; none at the end.
    pub oldest: Option<SystemTime>,
    /// Offsets that an open transaction upstream holds back.
    pub blocked: u64,
    /// Since when.
    pub blocked_since: Option<SystemTime>,
}

/// What one committed transaction counted. Vectors hold one entry a name that occurred.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Source records and their bytes (key and value), by topic.
    pub consumed: Vec<(TopicName, [u64; 2])>,
    /// Outputs and their bytes (key and value), by destination.
    pub produced: Vec<(DestinationName, [u64; 2])>,
    /// Items that a plugin dropped; `None`: that no destination took.
    pub filtered: Vec<(Option<PluginName>, [u64; 1])>,
    /// Records passed by, by code.
    pub skipped: Vec<(FaultCode, [u64; 1])>,
    /// Dead letters, by code.
    pub dead_letters: Vec<(FaultCode, [u64; 1])>,
    /// Records by the time from their timestamp to the commit: one class for each of the exporter's bounds, and a last one.
    pub latency: Vec<u64>,
    /// The sum of those times.
    pub latency_sum: Duration,
}

/// Adds to the entry of `name`, making one where there is none: there are few, so a search beats a map.
pub(super) fn add<K: PartialEq + Clone, const N: usize>(list: &mut Vec<(K, [u64; N])>, name: &K, by: [u64; N]) {
    match list.iter_mut().find(|(of, _)| of == name) {
        Some((_, sums)) => sums.iter_mut().zip(by).for_each(|(sum, by)| *sum += by),
        None => list.push((name.clone(), by)),
    }
}
