//! An order to pass one record by: what it asks for, and whether a partition stands where it can be obeyed. The record
//! goes the way of any that meets `on_error`, in one transaction of its own.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::lane::Lane;
use crate::model::{Fault, FaultCode, Offset, SourceBatch, TopicName, TopicPartition};
use crate::policy::{Disposition, OnError};

/// Pass this record by.
#[derive(Debug, Clone)]
pub struct Skip {
    /// Its partition.
    pub at: TopicPartition,
    /// The record.
    pub offset: Offset,
    /// Keep it in this topic.
    pub dead_letter: Option<TopicName>,
    /// Who asked.
    pub by: String,
    /// Told once it is committed, or why it cannot be. Dropped by a worker that does not own the partition.
    pub answer: Sender<Result<(), String>>,
}

/// The record to be passed by, as its partition holds it.
pub(super) struct Found {
    pub(super) batch: Arc<dyn SourceBatch>,
    pub(super) index: usize,
    pub(super) fault: Fault,
}

impl Skip {
    /// The record, if the partition stands before it.
    pub(super) fn find(&self, lane: &Lane, paused: bool) -> Result<Found, String> {
        let Self { at, offset, .. } = self;
        let Some((batch, index)) = lane.next_record() else {
            return Err(format!(
                "no record of {at} is held: there is none, or the route was paused before one was read"
            ));
        };
        let next = batch.offset(index);
        if next != *offset {
            return Err(format!("the next record of {at} is at offset {next}, and only that can be passed by"));
        }
        let standing = lane.standing();
        if standing.is_none() && !paused {
            return Err(format!(
                "{at} flows: a record is passed by where its partition stands before it, or while the route is paused"
            ));
        }
        let (code, why) =
            standing.map_or((String::new(), "the route was paused".to_owned()), |held| (held.code, held.message));
        // (`no_counterpart` is none of the closed list: the destination cannot take the record)
        let code = FaultCode::ALL.into_iter().find(|known| known.as_str() == code);
        let code = code.unwrap_or(if paused { FaultCode::Refused } else { FaultCode::Rejected });
        let message = format!("passed by as {} asked; before that: {why}", self.by);
        Ok(Found { batch, index, fault: Fault { code, message, plugin: None } })
    }

    /// What happens to the record.
    pub(super) fn policy(&self) -> OnError {
        let then = self.dead_letter.clone().map_or(Disposition::Skip, Disposition::DeadLetter);
        OnError { retry: None, then }
    }

    pub(super) fn answer(&self, answer: Result<(), String>) {
        // (an error: who asked waits no longer)
        let _ = self.answer.send(answer);
    }
}
