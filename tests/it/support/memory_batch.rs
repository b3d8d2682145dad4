//! A batch of records that lie in memory, and a builder for them.

use std::sync::Arc;

use millrace::model::{Items, Offset, SourceBatch, TopicName, TopicPartition};

/// One record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MemoryRecord {
    pub(crate) offset: Offset,
    pub(crate) timestamp: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl MemoryRecord {
    /// A record of this value, without key, headers or timestamp.
    pub(crate) fn of_value(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), timestamp: -1, ..Self::default() }
    }

    pub(crate) fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    pub(crate) fn header(mut self, name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }
}

/// Records of one partition.
#[derive(Debug)]
pub(crate) struct MemoryBatch {
    topic_partition: TopicPartition,
    records: Vec<MemoryRecord>,
}

impl MemoryBatch {
    /// The records with the offsets that they carry.
    pub(crate) fn new(topic: &str, partition: i32, records: Vec<MemoryRecord>) -> Arc<Self> {
        let topic = TopicName::new(topic).expect("a test's topic is a topic");
        Arc::new(Self { topic_partition: TopicPartition { topic, partition }, records })
    }

    /// The records of partition 0 of `source`, numbered from offset 0.
    pub(crate) fn numbered(mut records: Vec<MemoryRecord>) -> Arc<Self> {
        records.iter_mut().zip(0..).for_each(|(record, offset)| record.offset = offset);
        Self::new("source", 0, records)
    }

    /// Records of these values.
    pub(crate) fn of_values<V: Into<Vec<u8>>>(values: impl IntoIterator<Item = V>) -> Arc<Self> {
        Self::numbered(values.into_iter().map(MemoryRecord::of_value).collect())
    }

    /// The items of a pipeline's start.
    pub(crate) fn items(self: &Arc<Self>) -> Items {
        Items::of(Arc::clone(self) as Arc<dyn SourceBatch>, 0..self.len())
    }
}

impl SourceBatch for MemoryBatch {
    fn topic_partition(&self) -> &TopicPartition {
        &self.topic_partition
    }
    fn len(&self) -> usize {
        self.records.len()
    }
    fn offset(&self, index: usize) -> Offset {
        self.records[index].offset
    }
    fn timestamp(&self, index: usize) -> i64 {
        self.records[index].timestamp
    }
    fn key(&self, index: usize) -> Option<&[u8]> {
        self.records[index].key.as_deref()
    }
    fn value(&self, index: usize) -> Option<&[u8]> {
        self.records[index].value.as_deref()
    }
    fn header_count(&self, index: usize) -> usize {
        self.records[index].headers.len()
    }
    fn header(&self, index: usize, nth: usize) -> (&[u8], Option<&[u8]>) {
        let (name, value) = &self.records[index].headers[nth];
        (name, value.as_deref())
    }
}
