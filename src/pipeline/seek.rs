//! An order to move the positions of a paused route: where to, and what that means for each partition.

use std::sync::mpsc::Sender;

use crate::model::{Offset, TopicPartition};

/// Where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// The first record that the log holds.
    Earliest,
    /// Behind the last.
    Latest,
    /// This offset, or the nearest that the log holds.
    Offset(Offset),
    /// The first record at or after this time: ms since 1970-01-01 UTC.
    Time(i64),
}

/// Move all partitions of a worker.
#[derive(Debug, Clone)]
pub struct Seek {
    /// Where to.
    pub to: SeekTo,
    /// Only say what it would mean.
    pub dry_run: bool,
    /// Told what became of the worker's partitions. Dropped by one that owns none.
    pub answer: Sender<Result<Vec<Sought>, String>>,
}

/// What a seek means for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sought {
    /// Which.
    pub partition: TopicPartition,
    /// What is committed; nothing yet, where it is none.
    pub from: Option<Offset>,
    /// Where it goes on.
    pub to: Offset,
    /// The first offset that the log holds.
    pub low: Offset,
    /// The end of what committed readers may read.
    pub high: Offset,
}

impl Seek {
    pub(super) fn answer(&self, answer: Result<Vec<Sought>, String>) {
        // (an error: who asked waits no longer)
        let _ = self.answer.send(answer);
    }
}
