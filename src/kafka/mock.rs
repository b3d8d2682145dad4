//! librdkafka's mock cluster, in this process, for the demo and for tests of the table of errors. A mock of the protocol
//! and not a broker: it keeps nothing, shows aborted records to `read_committed` readers and forgets offsets that are
//! sent in a transaction.

use std::sync::Arc;
use std::time::Duration;

use super::client_options::Options;
use super::raw::{Client, ConsumerQueue, Context, Kind, Messages, Mock, OFFSET_BEGINNING, PartitionList, Topic};
use crate::model::{Offset, TopicName, TopicPartition};
use crate::pipeline::ports::{Headers, Output};

/// Brokers that live in this process until dropped.
pub struct MockCluster {
    mock: Mock,
}

impl MockCluster {
    /// Starts `brokers` of them on loopback. Groups form at once.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn start(brokers: u16) -> Result<Self, String> {
        let options = Options::from([("log_level".to_owned(), "3".to_owned())]);
        let client: Arc<Client> = Client::new(Kind::Producer, &options, Context::new("mock cluster", None))?;
        Ok(Self { mock: Mock::new(client, brokers)? })
    }

    /// Where it listens: `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        self.mock.bootstrap()
    }

    /// Makes a topic. (The mock would make any that is written to, with 4 partitions.)
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), String> {
        self.mock.create_topic(name, partitions).map_err(|error| error.message)
    }

    /// What writes to a topic of its.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn writer(&self, topic: &TopicName) -> Result<Writer, String> {
        let mut options = self.client_options();
        options.push(("partitioner".into(), "murmur2_random".into()));
        let client = Client::new(Kind::Producer, &options, Context::new("writer of events", None))?;
        let topic = Topic::new(&client, topic).map_err(|error| error.message)?;
        Ok(Writer { topic, client })
    }

    /// What sees every record of these partitions, from the first one on, without a group.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn watcher(&self, partitions: impl IntoIterator<Item = TopicPartition>) -> Result<Watcher, String> {
        let mut options = self.client_options();
        // A group is named because librdkafka wants one; it is never joined. The mock answers a fetch that finds nothing
        // when its time is up, not when a record comes.
        let more = [("group.id", "watcher"), ("enable.auto.commit", "false"), ("fetch.wait.max.ms", "20")];
        options.extend(more.map(|(name, value)| (name.into(), value.into())));
        let client = Client::new(Kind::Consumer, &options, Context::new("watcher of topics", None))?;
        let queue = ConsumerQueue::new(&client).map_err(|error| error.message)?;
        let partitions = PartitionList::of(partitions.into_iter().map(|partition| (partition, OFFSET_BEGINNING)));
        client.assign(&partitions).map_err(|error| error.message)?;
        Ok(Watcher { queue })
    }

    /// Silent: that the cluster goes before they do is no news.
    fn client_options(&self) -> Options {
        let options = [("bootstrap.servers", &*self.bootstrap()), ("log_level", "2")];
        Options::from(options.map(|(name, value)| (name.into(), value.into())))
    }

    /// Lets the next requests of one kind (Kafka's API key) fail with these codes, one after the other; 0 succeeds.
    pub fn fail_next(&self, api_key: i16, codes: &[i16]) {
        self.mock.fail_next(api_key, codes);
    }

    /// Lets no more requests of one kind fail.
    pub fn fail_no_more(&self, api_key: i16) {
        self.mock.fail_no_more(api_key);
    }

    /// Starts to count the requests that arrive, from nothing.
    pub fn count_requests(&self) {
        self.mock.count_requests();
    }

    /// How many requests of one kind have arrived since it started to count.
    pub fn requests(&self, api_key: i16) -> usize {
        self.mock.requests(api_key)
    }

    /// Lets a broker (from 1) answer this many milliseconds later.
    pub fn delay(&self, broker: i32, millis: i32) {
        self.mock.delay(broker, millis);
    }

    /// Takes a broker (from 1) away, or brings it back.
    pub fn set_up(&self, broker: i32, up: bool) {
        self.mock.set_up(broker, up);
    }
}

/// Writes records to one topic, without waiting for them to arrive.
pub struct Writer {
    topic: Topic,
    client: Arc<Client>,
}

impl Writer {
    /// Sends one record; its partition follows from its key as in the Java client. `timestamp`: ms since 1970.
    ///
    /// # Errors
    /// What librdkafka says, of this record or of an earlier one that has not arrived.
    pub fn send(&self, key: &[u8], value: &[u8], timestamp: i64) -> Result<(), String> {
        self.client.serve(Duration::ZERO);
        if let Some(failure) = self.client.context().take_failures().first.first() {
            return Err(failure.code.text().to_owned());
        }
        let (key, value, headers) = (Some(key), Some(value), Headers::List(&[]));
        let output = Output { topic: 0, partition: PARTITION_BY_KEY, key, value, timestamp, headers, keeper: None };
        self.topic.produce(&output, None, 0).map_err(|error| error.message)
    }
}

/// Lets librdkafka's partitioner choose.
const PARTITION_BY_KEY: i32 = -1;

/// Sees records as they arrive.
pub struct Watcher {
    queue: ConsumerQueue,
}

/// A record that lies in a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Where.
    pub at: TopicPartition,
    /// Where in it.
    pub offset: Offset,
    /// Of the record; ms since 1970.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
}

/// At most so many records are taken at once.
const ARRIVALS: usize = 512;

impl Watcher {
    /// Waits for the next record at most this long; takes what else is there already.
    pub fn poll(&mut self, wait: Duration) -> Vec<Arrival> {
        let mut messages = Vec::new();
        self.queue.consume(wait, 1, &mut messages);
        if !messages.is_empty() {
            self.queue.consume(Duration::ZERO, ARRIVALS, &mut messages);
        }
        messages.retain(|message| message.error().is_none());
        let places: Vec<_> = messages.iter().map(|message| message.topic_partition()).collect();
        let messages = Messages::new(messages, self.queue.client());
        let arrival = |(index, at): (usize, Option<TopicPartition>)| {
            let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
            Some(Arrival {
                at: at?,
                offset: messages.offset(index),
                timestamp: messages.timestamp(index),
                key: owned(messages.key(index)),
                value: owned(messages.value(index)),
            })
        };
        places.into_iter().enumerate().filter_map(arrival).collect()
    }
}
