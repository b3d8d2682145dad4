//! What of the group is ours. Serves rebalances while the consumer polls. They wait for a transaction that is under way, so
//! there is nothing to commit or abort here: partitions are taken up where the group left them, and given away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::model::{Offset, TopicPartition};

use super::raw::{Code, Committed, Handle, OFFSET_BEGINNING, OFFSET_INVALID, PartitionList, Rebalance, lock};

/// How long a rebalance may wait for the committed offsets. Longer than a quiet answer takes and far shorter than
/// `max.poll.interval.ms`; the offsets are held back while a predecessor's transaction is open.
const COMMITTED_WITHIN: Duration = Duration::from_secs(5);

/// A worker's partitions. Shared by the session and the consumer's callback, both on one thread.
#[derive(Default)]
pub(super) struct Assignment {
    state: Mutex<State>,
    /// How many transactions are.
    under_way: Mutex<usize>,
    ended: Condvar,
    /// The consumer is about to be closed.
    closes: Mutex<bool>,
}

/// A transaction is under way until this is dropped, on whatever thread.
pub(super) struct UnderWay(Arc<Assignment>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        *lock(&self.0.under_way) -= 1;
        self.0.ended.notify_all();
    }
}

#[derive(Default)]
struct State {
    owned: BTreeSet<TopicPartition>,
    /// Of those, the ones that the caller has paused.
    paused: BTreeSet<TopicPartition>,
    /// Of those, the ones whose committed offset could not be had: the client asks for itself, and the session after it.
    unresolved: BTreeSet<TopicPartition>,
    /// Of those, the ones that deliver nothing until they are assigned anew.
    stopped: BTreeSet<TopicPartition>,
    /// What stands beside the committed offsets.
    notes: BTreeMap<TopicPartition, String>,
    changes: Vec<Change>,
}

/// What a rebalance did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// With the offset that the group has committed, where it has.
    Assigned(Vec<(TopicPartition, Option<Offset>)>),
    Revoked(Vec<TopicPartition>),
    Failed(Code),
}

impl Assignment {
    /// From now on, and until what this returns is dropped, rebalances wait.
    pub(super) fn hold(self: &Arc<Self>) -> UnderWay {
        *lock(&self.under_way) += 1;
        UnderWay(Arc::clone(self))
    }
    /// To be said before the consumer is closed.
    pub(super) fn close(&self) {
        *lock(&self.closes) = true;
    }
    /// Ends a wait for records, except where the consumer closes: librdkafka takes any end of a wait for the end of the close, and the
    /// client never ends.
    pub(super) fn end_wait(&self, end: impl FnOnce()) {
        let closes = lock(&self.closes);
        if !*closes {
            end();
        }
    }
    fn wait(&self) {
        let held = lock(&self.under_way);
        drop(self.ended.wait_while(held, |held| *held > 0).unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn owns(&self, partition: &TopicPartition) -> bool {
        lock(&self.state).owned.contains(partition)
    }
    /// Ours, and not stopped.
    pub(super) fn delivers(&self, partition: &TopicPartition) -> bool {
        let state = lock(&self.state);
        state.owned.contains(partition) && !state.stopped.contains(partition)
    }
    /// Ours, and neither stopped nor paused; nor one whose position the client itself asks for and has not got yet.
    pub(super) fn flows(&self, partition: &TopicPartition, position: Option<Offset>) -> bool {
        let state = lock(&self.state);
        state.owned.contains(partition)
            && !state.stopped.contains(partition)
            && !state.paused.contains(partition)
            && (position.is_some() || !state.unresolved.contains(partition))
    }
    pub(super) fn stop(&self, partition: &TopicPartition) {
        lock(&self.state).stopped.insert(partition.clone());
    }
    pub(super) fn start(&self, partition: &TopicPartition) {
        lock(&self.state).stopped.remove(partition);
    }
    pub(super) fn take_notes(&self, committed: &[Committed]) {
        let noted = committed.iter().filter(|found| !found.note.is_empty());
        lock(&self.state).notes.extend(noted.map(|found| (found.at.clone(), found.note.clone())));
    }
    /// What stood beside the group's committed offset when the partition became ours.
    pub(super) fn note(&self, partition: &TopicPartition) -> Option<String> {
        lock(&self.state).notes.get(partition).cloned()
    }
    pub(super) fn owned(&self) -> Vec<TopicPartition> {
        lock(&self.state).owned.iter().cloned().collect()
    }
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.state).owned.is_empty()
    }
    /// Ours, and so far nobody knows where they go on.
    pub(super) fn unresolved(&self) -> Vec<TopicPartition> {
        lock(&self.state).unresolved.iter().cloned().collect()
    }
    pub(super) fn is_unresolved(&self, partition: &TopicPartition) -> bool {
        lock(&self.state).unresolved.contains(partition)
    }
    pub(super) fn resolved(&self, partition: &TopicPartition) {
        lock(&self.state).unresolved.remove(partition);
    }
    pub(super) fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut lock(&self.state).changes)
    }

    /// Those of `partitions` that are ours and were not paused; from now on they are.
    pub(super) fn pause(&self, partitions: &[TopicPartition]) -> Vec<TopicPartition> {
        let state = &mut *lock(&self.state);
        let fresh =
            |partition: &&TopicPartition| state.owned.contains(*partition) && state.paused.insert((*partition).clone());
        partitions.iter().filter(fresh).cloned().collect()
    }

    /// Those of `partitions` that were paused; from now on they are not. Resuming others has made records come twice.
    pub(super) fn resume(&self, partitions: &[TopicPartition]) -> Vec<TopicPartition> {
        let state = &mut *lock(&self.state);
        let was_paused =
            |partition: &&TopicPartition| state.paused.remove(*partition) && !state.stopped.contains(*partition);
        partitions.iter().filter(was_paused).cloned().collect()
    }

    fn take_up(&self, consumer: &Handle, partitions: Vec<TopicPartition>) {
        // Explicit positions: a partition that the group has never committed is read from its beginning, since the
        // route's `start` was settled, for all that existed, before any worker joined.
        let found = match partitions.len() {
            0 => Ok(Vec::new()),
            _ => consumer.committed(partitions.iter().cloned(), COMMITTED_WITHIN),
        };
        let mut assigned: Vec<_> = partitions.iter().map(|partition| (partition.clone(), None)).collect();
        let (positions, unresolved) = match found {
            Ok(committed) => {
                assigned = committed
                    .iter()
                    .map(|found| (found.at.clone(), Some(found.offset).filter(|at| *at >= 0)))
                    .collect();
                self.take_notes(&committed);
                let or_beginning = |found: Committed| {
                    let is_new = found.offset == OFFSET_INVALID;
                    (found.at, if is_new { OFFSET_BEGINNING } else { found.offset })
                };
                (PartitionList::of(committed.into_iter().map(or_beginning)), BTreeSet::new())
            }
            Err(_) => {
                let ask = partitions.iter().map(|partition| (partition.clone(), OFFSET_INVALID));
                (PartitionList::of(ask), partitions.iter().cloned().collect())
            }
        };
        let result = match consumer.is_cooperative() {
            true => consumer.incremental_assign(&positions),
            false => consumer.assign(&positions),
        };
        let mut state = lock(&self.state);
        match result {
            Ok(()) => {
                state.owned.extend(partitions.iter().cloned());
                state.unresolved.extend(unresolved);
                // An empty one, too, says that the group has let us in.
                state.changes.push(Change::Assigned(assigned));
            }
            Err(error) => state.changes.push(Change::Failed(error.code)),
        }
    }

    /// `all`: whatever the client thinks is assigned.
    fn give_away(&self, consumer: &Handle, partitions: Vec<TopicPartition>, all: bool) {
        // A pause flag would survive in the client and hold the partition when it comes back.
        let mut paused = self.resume(&partitions);
        {
            let state = &mut *lock(&self.state);
            state.notes.retain(|at, _| !partitions.contains(at));
            paused.extend(partitions.iter().filter(|at| state.stopped.remove(*at)).cloned());
        }
        if !paused.is_empty() {
            let _ = consumer.resume(&list(&paused));
        }
        let result = match consumer.is_cooperative() && !all {
            true => consumer.incremental_unassign(&list(&partitions)),
            false => consumer.unassign(),
        };
        let mut state = lock(&self.state);
        for partition in &partitions {
            state.owned.remove(partition);
            state.unresolved.remove(partition);
        }
        if !partitions.is_empty() {
            state.changes.push(Change::Revoked(partitions));
        }
        if let Err(error) = result {
            state.changes.push(Change::Failed(error.code));
        }
    }
}

impl Rebalance for Arc<Assignment> {
    fn serve(&self, consumer: &Handle, change: Result<bool, Code>, partitions: Vec<TopicPartition>) {
        self.wait();
        match change {
            Ok(true) => {
                self.take_up(consumer, partitions);
                // The wait in which this is served goes on otherwise: an idle route would hear of its partitions at the end of it.
                self.end_wait(|| consumer.end_wait());
            }
            Ok(false) => self.give_away(consumer, partitions, false),
            Err(code) => {
                self.give_away(consumer, self.owned(), true);
                lock(&self.state).changes.push(Change::Failed(code));
            }
        }
    }
}

/// A list without offsets.
pub(super) fn list(partitions: &[TopicPartition]) -> PartitionList {
    PartitionList::of(partitions.iter().map(|partition| (partition.clone(), OFFSET_INVALID)))
}
