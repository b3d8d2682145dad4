//! How far behind a partition is. Looked at every few seconds, never for a record: what is held of the partition and where
//! its log ends is all there is to know.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::ports::LogEnd;
use super::report::PartitionLag;
use crate::model::{Offset, TopicPartition};

/// The oldest record held that is not committed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Front {
    pub(super) offset: Offset,
    /// ms since 1970-01-01 UTC, or -1 for none.
    pub(super) timestamp: i64,
}

/// What is remembered of a partition between two looks.
#[derive(Debug, Default)]
pub(super) struct LagWatch {
    /// All before it is done or held. It passes marks of transactions, which no record ever does.
    reached: Option<Offset>,
    /// It was behind this stable end at that look, and has been since.
    behind: Option<(Offset, SystemTime)>,
    /// The stable end that an open transaction has held since that look.
    blocked: Option<(Offset, SystemTime)>,
}

impl LagWatch {
    /// All before `offset` is done or held.
    pub(super) fn reached(&mut self, offset: Offset) {
        self.reached = self.reached.max(Some(offset));
    }

    /// It goes on at `offset`, wherever it was.
    pub(super) fn moved(&mut self, offset: Offset) {
        self.reached = Some(offset);
    }

    /// None while it is not known where it stands.
    pub(super) fn look(
        &mut self,
        partition: &TopicPartition,
        front: Option<Front>,
        end: LogEnd,
        now: SystemTime,
    ) -> Option<PartitionLag> {
        let position = front.map(|front| front.offset).or(self.reached)?;
        let span = |from: Offset, to: Offset| u64::try_from(to - from).unwrap_or(0);
        let (records, blocked) = (span(position, end.stable), span(end.stable, end.high));
        let behind = self.behind.filter(|(stable, _)| position < *stable).unwrap_or((end.stable, now));
        self.behind = (records > 0).then_some(behind);
        let held = self.blocked.filter(|(stable, _)| *stable == end.stable).unwrap_or((end.stable, now));
        self.blocked = (blocked > 0).then_some(held);
        // A record that is not held (its partition is paused) cannot be asked for its time: it is at most so much older
        // than the look at which it was seen to be there.
        let seen = self.behind.map(|(_, at)| at);
        let time = front.and_then(|front| u64::try_from(front.timestamp).ok());
        let time = time.map(|millis| UNIX_EPOCH + Duration::from_millis(millis));
        Some(PartitionLag {
            partition: partition.clone(),
            records,
            oldest: seen.map(|seen| time.unwrap_or(seen)),
            blocked,
            blocked_since: self.blocked.map(|(_, at)| at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TopicName;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// A look at `now`: records, seconds behind, records held back, seconds since when.
    fn look(
        watch: &mut LagWatch,
        front: Option<(Offset, i64)>,
        end: (Offset, Offset),
        now: u64,
    ) -> (u64, u64, u64, u64) {
        let partition = TopicPartition { topic: TopicName::new("t").unwrap(), partition: 0 };
        let front = front.map(|(offset, timestamp)| Front { offset, timestamp });
        let lag = watch.look(&partition, front, LogEnd { stable: end.0, high: end.1 }, at(now)).unwrap();
        let age = |since: Option<SystemTime>| since.map_or(0, |since| at(now).duration_since(since).unwrap().as_secs());
        (lag.records, age(lag.oldest), lag.blocked, age(lag.blocked_since))
    }

    #[test]
    fn behind_the_last_record_lie_only_marks_and_nothing_is_left_to_do_once_the_end_was_reached() {
        let mut watch = LagWatch::default();
        watch.reached(10);
        assert_eq!(look(&mut watch, None, (11, 11), 100), (1, 0, 0, 0));
        watch.reached(11);
        assert_eq!(look(&mut watch, None, (11, 11), 105), (0, 0, 0, 0));
        // The end was told before records that were handed out at once with it.
        watch.reached(15);
        watch.reached(11);
        assert_eq!(look(&mut watch, None, (15, 15), 110), (0, 0, 0, 0));
    }

    #[test]
    fn what_is_held_and_not_committed_counts_with_the_time_of_the_oldest() {
        let mut watch = LagWatch::default();
        watch.reached(20);
        assert_eq!(look(&mut watch, Some((7, 40_000)), (20, 20), 100), (13, 60, 0, 0));
        assert_eq!(
            look(&mut watch, Some((7, -1)), (20, 20), 130),
            (13, 30, 0, 0),
            "one without a time: since it was seen"
        );
    }

    #[test]
    fn what_cannot_be_read_is_as_old_as_the_look_that_saw_it() {
        let mut watch = LagWatch::default();
        watch.reached(5);
        assert_eq!(look(&mut watch, None, (5, 5), 95), (0, 0, 0, 0));
        assert_eq!(look(&mut watch, None, (8, 8), 100), (3, 0, 0, 0));
        assert_eq!(look(&mut watch, None, (9, 9), 160), (4, 60, 0, 0));
        // What was seen then is done; what has come since is younger.
        watch.reached(8);
        assert_eq!(look(&mut watch, None, (9, 9), 165), (1, 0, 0, 0));
    }

    #[test]
    fn a_transaction_upstream_holds_back_what_lies_behind_the_stable_end_for_as_long_as_that_stands() {
        let mut watch = LagWatch::default();
        watch.reached(5);
        assert_eq!(look(&mut watch, None, (5, 9), 100), (0, 0, 4, 0));
        assert_eq!(look(&mut watch, None, (5, 11), 130), (0, 0, 6, 30));
        watch.reached(8);
        assert_eq!(look(&mut watch, None, (8, 11), 135), (0, 0, 3, 0), "another one");
        watch.reached(11);
        assert_eq!(look(&mut watch, None, (11, 11), 140), (0, 0, 0, 0));
    }

    #[test]
    fn a_partition_that_has_not_said_where_it_stands_is_not_told_and_a_lost_offset_moves_it_back() {
        let mut watch = LagWatch::default();
        let partition = TopicPartition { topic: TopicName::new("t").unwrap(), partition: 0 };
        assert_eq!(watch.look(&partition, None, LogEnd { stable: 5, high: 5 }, at(100)), None);
        watch.reached(50);
        watch.moved(3);
        assert_eq!(look(&mut watch, None, (5, 5), 100), (2, 0, 0, 0));
    }
}
