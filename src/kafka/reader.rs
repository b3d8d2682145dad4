//! Reads a slice of a topic as it lies there: without a group, so that nobody's position moves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{Offset, OffsetMap, SourceBatch, TopicName, TopicPartition};
use crate::pipeline::ports::Trouble;

use super::client_options;
use super::convert;
use super::errors::{About, passing, trouble};
use super::positions::configuration;
use super::raw::{Client, ConsumerQueue, Context, Error, Kind, Known, OFFSET_BEGINNING, PartitionList};
use super::topics::{Cluster, reason};

/// How long the cluster may take to say where its partitions end.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long nothing may come while more is to come.
const SILENT_FOR: Duration = Duration::from_secs(60);
/// Records of one step.
const RECORDS: usize = 5_000;

/// What is read of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// All that is there.
    Beginning,
    /// What lies at this offset and later.
    Offset(Offset),
    /// What carries this time (ms since 1970) or a later one.
    Time(i64),
}

/// Reads partitions of a topic up to where they ended when it was made, as a `read_committed` reader.
pub struct Reader {
    queue: ConsumerQueue,
    about: TopicName,
    /// Partitions that are not read to their end yet, and that end.
    open: BTreeMap<TopicPartition, Offset>,
    ends: OffsetMap,
    heard: Instant,
}

impl Reader {
    /// Begins to read `topic`, each partition from where `from` says.
    ///
    /// # Errors
    /// The topic is not there, or the cluster does not answer.
    pub fn open(
        cluster: &Cluster,
        topic: &TopicName,
        from: impl Fn(&TopicPartition) -> ReadFrom,
    ) -> Result<Self, Trouble> {
        let topics = cluster.topics()?;
        let known = topics.partitions(topic.as_str());
        let count = match known.or_else(|| cluster.refresh_now(ANSWER_WITHIN).ok()?.partitions(topic.as_str())) {
            Some(count) => count,
            None => return Err(Trouble::missing_topic(topic)),
        };
        let mut options = client_options::asking(cluster.kafka(), Some(&format!("{}.reader", cluster.kafka().prefix)));
        // (it joins no group: the name is what the client library insists on)
        let more = [("enable.partition.eof", "true"), ("auto.offset.reset", "earliest")];
        options.extend(more.map(|(name, value)| (name.into(), value.into())));
        let client = Client::new(Kind::Consumer, &options, Context::new(format!("reader of {topic}"), None))
            .map_err(|message| trouble(&configuration(message), About::Cluster))?;
        let explain = |error: Error| {
            client.serve(Duration::ZERO);
            match error.code.known() {
                Known::RD_KAFKA_RESP_ERR__TIMED_OUT | Known::RD_KAFKA_RESP_ERR__TRANSPORT => {
                    reason(&error, client.context().take_errors())
                }
                _ => trouble(&error, About::Read(topic)),
            }
        };
        let (mut starts, mut open, mut ends) = (Vec::new(), BTreeMap::new(), OffsetMap::new());
        for partition in 0..count {
            let at = TopicPartition { topic: topic.clone(), partition };
            let (low, high) = client.watermarks(&at, ANSWER_WITHIN).map_err(explain)?;
            ends.insert(at.clone(), high);
            let start = match from(&at) {
                ReadFrom::Beginning => low,
                ReadFrom::Offset(offset) => offset.max(low),
                ReadFrom::Time(time) => {
                    let found = client.offsets_for_times([(at.clone(), time)], ANSWER_WITHIN).map_err(explain)?;
                    found.first().map_or(high, |(_, offset)| if *offset >= 0 { (*offset).max(low) } else { high })
                }
            };
            if start < high {
                open.insert(at.clone(), high);
                starts.push((at, if start == low { OFFSET_BEGINNING } else { start }));
            }
        }
        let queue = ConsumerQueue::new(&client).map_err(explain)?;
        client.assign(&PartitionList::of(starts)).map_err(explain)?;
        Ok(Self { queue, about: topic.clone(), open, ends, heard: Instant::now() })
    }

    /// Where each partition ended when this was made: the offset after its last committed record.
    pub fn ends(&self) -> &OffsetMap {
        &self.ends
    }

    /// The next records; none once all is read.
    ///
    /// # Errors
    /// They cannot be had.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot fail and be asked again")]
    pub fn next(&mut self) -> Result<Option<Vec<Arc<dyn SourceBatch>>>, Trouble> {
        while !self.open.is_empty() {
            let mut messages = Vec::new();
            self.queue.consume(Duration::from_millis(200), 1, &mut messages);
            if !messages.is_empty() {
                self.queue.consume(Duration::ZERO, RECORDS, &mut messages);
            }
            let (records, others): (Vec<_>, Vec<_>) =
                messages.into_iter().partition(|message| message.error().is_none());
            let mut ended = Vec::new();
            for other in others {
                let error = other.error().expect("those without are in the other list");
                match (error.code.known(), other.topic_partition()) {
                    (Known::RD_KAFKA_RESP_ERR__PARTITION_EOF, Some(at)) => ended.push(at),
                    (Known::RD_KAFKA_RESP_ERR__TRANSPORT | Known::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN, _) => {}
                    _ => return Err(trouble(&error, About::Read(&self.about))),
                }
            }
            if records.is_empty() {
                self.is_patient()?;
            } else {
                self.heard = Instant::now();
            }
            let open = &self.open;
            let batches = convert::batches(records, self.queue.client(), |at| open.contains_key(at));
            let batches: Vec<_> = batches.into_iter().filter_map(|batch| self.within(batch)).collect();
            // (only now: the end of a partition may come with its last records)
            self.open.retain(|at, _| !ended.contains(at));
            if !batches.is_empty() {
                return Ok(Some(batches));
            }
        }
        Ok(None)
    }

    /// The part of a batch that lies before its partition's end.
    fn within(&mut self, batch: Arc<dyn SourceBatch>) -> Option<Arc<dyn SourceBatch>> {
        let at = batch.topic_partition().clone();
        let end = *self.open.get(&at)?;
        let count = (0..batch.len()).take_while(|index| batch.offset(*index) < end).count();
        if count < batch.len() || batch.offset(batch.len() - 1) + 1 >= end {
            self.open.remove(&at);
        }
        (count > 0).then(|| if count == batch.len() { batch } else { Arc::new(Part { batch, count }) })
    }

    fn is_patient(&self) -> Result<(), Trouble> {
        if self.heard.elapsed() < SILENT_FOR {
            return Ok(());
        }
        let timed_out = Error::of(Known::RD_KAFKA_RESP_ERR__TIMED_OUT.into());
        let silent =
            passing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, format!("nothing more comes of topic \"{}\"", self.about));
        let said = self.queue.client().context().take_errors();
        Err(if said.is_empty() { silent } else { reason(&timed_out, said) })
    }
}

/// The first records of a batch.
struct Part {
    batch: Arc<dyn SourceBatch>,
    count: usize,
}

impl SourceBatch for Part {
    fn topic_partition(&self) -> &TopicPartition {
        self.batch.topic_partition()
    }
    fn len(&self) -> usize {
        self.count
    }
    fn offset(&self, index: usize) -> Offset {
        self.batch.offset(index)
    }
    fn timestamp(&self, index: usize) -> i64 {
        self.batch.timestamp(index)
    }
    fn key(&self, index: usize) -> Option<&[u8]> {
        self.batch.key(index)
    }
    fn value(&self, index: usize) -> Option<&[u8]> {
        self.batch.value(index)
    }
    fn header_count(&self, index: usize) -> usize {
        self.batch.header_count(index)
    }
    fn header(&self, index: usize, nth: usize) -> (&[u8], Option<&[u8]>) {
        self.batch.header(index, nth)
    }
}
