//! Records as they came from a source.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;

use super::TopicName;

/// A record's position in its partition, from 0.
pub type Offset = i64;

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicName,
    /// The partition's number, from 0.
    pub partition: i32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// For each partition the offset to read next: what a commit commits.
pub type OffsetMap = BTreeMap<TopicPartition, Offset>;

/// Records of ONE topic partition, in offset order, at least one; owned by whoever keeps their bytes, so that nothing
/// is copied or counted a record at a time.
///
/// `index` runs from 0 to `len() - 1`; a larger one is a bug of the caller and may panic.
pub trait SourceBatch: Any + Send + Sync {
    /// Where the records come from.
    fn topic_partition(&self) -> &TopicPartition;
    /// How many records.
    fn len(&self) -> usize;
    /// Whether there are none (never, for a batch that a source handed out).
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The record's offset. Ascending, not always consecutive: compaction and transactions leave gaps.
    fn offset(&self, index: usize) -> Offset;
    /// Milliseconds since 1970-01-01 UTC, or -1 where the record has none.
    fn timestamp(&self, index: usize) -> i64;
    /// The key; `None` is null, which differs from empty.
    fn key(&self, index: usize) -> Option<&[u8]>;
    /// The value; `None` is null, a tombstone.
    fn value(&self, index: usize) -> Option<&[u8]>;
    /// False: none of its records has a header.
    fn may_have_headers(&self) -> bool {
        true
    }
    /// How many headers, repeats included.
    fn header_count(&self, index: usize) -> usize;
    /// Bytes of the record's key and value.
    fn size(&self, index: usize) -> usize {
        self.key(index).map_or(0, <[u8]>::len) + self.value(index).map_or(0, <[u8]>::len)
    }
    /// The same of all its records.
    fn bytes(&self) -> usize {
        (0..self.len()).map(|index| self.size(index)).sum()
    }
    /// Where the record came from in the first place, if it is a dead letter that is sent through again.
    fn redriven(&self, _index: usize) -> Option<Redriven> {
        None
    }
    /// Header `nth` in the record's order: its name, as bytes since nothing forces it to be UTF-8, and its value.
    fn header(&self, index: usize, nth: usize) -> (&[u8], Option<&[u8]>);
}

/// Of a dead letter that is sent through again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redriven {
    /// The partition that the record came from.
    pub from: TopicPartition,
    /// Where in it.
    pub offset: Offset,
    /// How often it has been sent through again, this time included.
    pub times: u32,
}
