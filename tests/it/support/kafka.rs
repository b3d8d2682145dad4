//! A real Apache Kafka for tests: one broker that all tests share, clusters that a test owns and may kill, and reading
//! back with clients that are not ours. Knows nothing about millrace.
//!
//! Brokers are run by `scripts/kafka up --tied`, which ends them with this process however it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, channel};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication, TopicResult};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};

use super::{root, scratch, wait_for};

const TIMEOUT: Duration = Duration::from_secs(60);

/// The address of the shared broker: `KAFKA_BOOTSTRAP_SERVERS`, or one started on first use.
pub(crate) fn bootstrap() -> &'static str {
    &shared().bootstrap
}

/// The shared broker. Use [`super::unique`] names on it; a test that stops brokers wants a [`Cluster`].
pub(crate) fn shared() -> &'static Kafka {
    static SHARED: OnceLock<(Kafka, Option<ChildStdin>)> = OnceLock::new();
    let (kafka, _tie) = SHARED.get_or_init(|| match std::env::var("KAFKA_BOOTSTRAP_SERVERS") {
        Ok(bootstrap) if !bootstrap.is_empty() => (Kafka { bootstrap }, None),
        _ => {
            let (bootstrap, tie) = up(scratch("kafka"), 1, &[], &[], "WARN");
            (Kafka { bootstrap }, Some(tie))
        }
    });
    kafka
}

/// A broker that all tests share, too. It gives members up after 2 s where they ask for that, which the other refuses; those
/// of the `consumer` protocol after 4 s, and has them ask what is new three times a second.
pub(crate) fn impatient() -> &'static Cluster {
    static IMPATIENT: LazyLock<Cluster> = LazyLock::new(|| {
        let config = [
            "group.min.session.timeout.ms=1000",
            "group.consumer.min.session.timeout.ms=1000",
            "group.consumer.session.timeout.ms=4000",
            "group.consumer.min.heartbeat.interval.ms=100",
            "group.consumer.heartbeat.interval.ms=300",
        ];
        Cluster::start_with(1, &config)
    });
    &IMPATIENT
}

/// A cluster by its address, and what a test does with it.
#[derive(Debug, Clone)]
pub(crate) struct Kafka {
    pub(crate) bootstrap: String,
}

/// A record as a test sends it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970; now if absent. (librdkafka takes 0 for now, too.)
    pub(crate) timestamp: Option<i64>,
    /// By the Java client's rule if absent.
    pub(crate) partition: Option<i32>,
}

impl Record {
    pub(crate) fn new(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        Self { key: Some(key.as_ref().to_vec()), value: Some(value.as_ref().to_vec()), ..Self::default() }
    }

    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), Some(value.as_ref().to_vec())));
        self
    }

    pub(crate) fn at(mut self, timestamp: i64) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    pub(crate) fn to(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }
}

/// A record as a client that is not ours read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConsumedRecord {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp: i64,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
}

impl ConsumedRecord {
    /// The value as text, for messages and comparisons; `""` when null.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }

    /// The key as text; `""` when null.
    pub(crate) fn key_text(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }
}

/// See [`Kafka::transaction_watch`].
pub(crate) struct TransactionWatch {
    high: BaseConsumer,
    stable: BaseConsumer,
    topic: String,
    partition: i32,
}

impl TransactionWatch {
    /// Whether one was open a moment ago; `None` where the broker does not say so soon.
    pub(crate) fn is_open(&self) -> Option<bool> {
        let end = |consumer: &BaseConsumer| {
            let (_, end) = consumer.fetch_watermarks(&self.topic, self.partition, Duration::from_millis(500)).ok()?;
            Some(end)
        };
        // In this order: what ends between the two questions is not taken for open.
        let high = end(&self.high)?;
        Some(end(&self.stable)? < high)
    }
}

/// What a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    ReadCommitted,
    ReadUncommitted,
}

impl Isolation {
    const fn as_str(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read_committed",
            Self::ReadUncommitted => "read_uncommitted",
        }
    }
}

/// How a test's transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Commit,
    Abort,
}

impl Kafka {
    /// Makes a topic and waits until every partition has a leader.
    pub(crate) fn create_topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) {
        self.create_topics(&[name.to_owned()], partitions, config);
    }

    /// Makes many topics at once.
    pub(crate) fn create_topics(&self, names: &[String], partitions: i32, config: &[(&str, &str)]) {
        let topic = |name| {
            let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
            config.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
        };
        let topics: Vec<NewTopic<'_>> = names.iter().map(|name| topic(name)).collect();
        self.admin(async |client, options| client.create_topics(&topics, options).await);
        let consumer = self.consumer(&[]);
        wait_for(TIMEOUT, &format!("{names:?} have {partitions} partitions with leaders"), || {
            let metadata = consumer.fetch_metadata(None, TIMEOUT).ok()?;
            let led = metadata.topics().iter().filter(|topic| led_partitions(topic) == Some(partitions));
            let led: BTreeSet<&str> = led.map(MetadataTopic::name).collect();
            names.iter().all(|name| led.contains(name.as_str())).then_some(())
        });
    }

    /// Makes a topic each of whose partitions has one replica, on this node.
    pub(crate) fn create_topic_on(&self, node: i32, name: &str, partitions: usize) {
        let on = [node];
        let places = vec![&on[..]; partitions];
        let topic =
            NewTopic::new(name, i32::try_from(partitions).expect("a count"), TopicReplication::Variable(&places));
        let topic = topic.set("min.insync.replicas", "1");
        self.admin(async |client, options| client.create_topics([&topic], options).await);
        self.await_leaders(name, i32::try_from(partitions).expect("a count"));
    }

    /// Raises a topic's partition count to `partitions`.
    pub(crate) fn add_partitions(&self, topic: &str, partitions: i32) {
        let count = NewPartitions::new(topic, usize::try_from(partitions).expect("a count"));
        self.admin(async |client, options| client.create_partitions([&count], options).await);
        self.await_leaders(topic, partitions);
    }

    /// Deletes a topic and waits until the broker no longer knows it.
    pub(crate) fn delete_topic(&self, topic: &str) {
        self.admin(async |client, options| client.delete_topics(&[topic], options).await);
        wait_for(TIMEOUT, &format!("{topic} is gone"), || self.partitions(topic).is_none().then_some(()));
    }

    /// Sends the records in order and waits until all are stored. Returns where each went: partition and offset.
    pub(crate) fn produce(&self, topic: &str, records: &[Record]) -> Vec<(i32, i64)> {
        self.produce_with(topic, records, &[])
    }

    /// The same, by a producer with these properties.
    pub(crate) fn produce_with(&self, topic: &str, records: &[Record], properties: &[(&str, &str)]) -> Vec<(i32, i64)> {
        let producer = self.producer(properties);
        send(&producer, topic, records);
        delivered(&producer, topic, records.len())
    }

    /// Changes a property of a topic.
    pub(crate) fn set(&self, topic: &str, property: &str, value: &str) {
        let change = format!("{property}={value}");
        self.tool(
            "kafka.admin.ConfigCommand",
            &["--alter", "--entity-type", "topics", "--entity-name", topic, "--add-config", &change],
        );
    }

    /// A producer to `topic` that is kept: to make one takes longer than to send by it.
    pub(crate) fn sender(&self, topic: &str) -> Sender {
        Sender { producer: self.producer(&[]), topic: topic.to_owned(), sent: 0 }
    }

    /// Sends records to `topic` at a steady pace, until it is stopped: their values are 0, 1, 2 and so on.
    pub(crate) fn trickle(&self, topic: &str, per_second: usize) -> Trickle {
        let mut sender = self.sender(topic);
        let (stop, stopped) = channel();
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(Duration::from_millis(20)) {
                let due = began.elapsed().as_millis() as usize * per_second / 1_000;
                while sender.sent < due {
                    sender.send(&sender.sent.to_string());
                    count.store(sender.sent, Ordering::Release);
                }
            }
            sender.await_stored();
        });
        Trickle { stop, sent, thread }
    }

    /// Sends the records in one transaction.
    pub(crate) fn produce_transaction(&self, topic: &str, records: &[Record], ending: Ending) {
        self.open_transaction(topic, records).end(ending);
    }

    /// Sends the records in a transaction that stays open.
    pub(crate) fn open_transaction(&self, topic: &str, records: &[Record]) -> OpenTransaction {
        let producer = self.producer(&[("transactional.id", &super::unique("test"))]);
        producer.init_transactions(TIMEOUT).expect("a transactional producer");
        producer.begin_transaction().expect("a transaction");
        send(&producer, topic, records);
        delivered(&producer, topic, records.len());
        OpenTransaction(producer)
    }

    /// Deletes the records of a partition before `offset`.
    pub(crate) fn delete_records(&self, topic: &str, partition: i32, offset: i64) {
        let file = scratch("delete.json");
        let json = format!(
            r#"{{"partitions": [{{"topic": "{topic}", "partition": {partition}, "offset": {offset}}}], "version": 1}}"#
        );
        std::fs::write(&file, json).expect("the file is written");
        self.tool("DeleteRecordsCommand", &["--offset-json-file", file.to_str().expect("a path of text")]);
        let _ = std::fs::remove_file(file);
    }

    /// Leaves a transaction with these records open. It stays open with the value, at most a minute.
    pub(crate) fn leave_records_pending(&self, topic: &str, records: &[Record]) -> impl Sized + use<> {
        let producer = self.producer(&[("transactional.id", &super::unique("test"))]);
        producer.init_transactions(TIMEOUT).expect("a transactional producer");
        producer.begin_transaction().expect("a transaction");
        send(&producer, topic, records);
        delivered(&producer, topic, records.len());
        producer
    }

    /// Leaves a transaction open that takes this group on, to `offset` of the topic's first partition, as a process does
    /// that dies at the wrong moment. It stays open with the value.
    pub(crate) fn leave_offsets_pending(&self, group: &str, topic: &str, offset: i64) -> OpenTransaction {
        let producer = self.producer(&[("transactional.id", &super::unique("test"))]);
        producer.init_transactions(TIMEOUT).expect("a transactional producer");
        producer.begin_transaction().expect("a transaction");
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, 0, Offset::Offset(offset)).expect("an offset");
        let member = self.consumer(&[("group.id", group)]);
        let metadata = member.group_metadata().expect("of a group");
        producer.send_offsets_to_transaction(&offsets, &metadata, TIMEOUT).expect("the offsets are taken");
        OpenTransaction(producer)
    }

    /// All that `topic` holds now, read by Kafka's own console consumer, in partition order. Exact in every byte, except
    /// that a header's name may hold no `:`. Some seconds; [`Kafka::kcat_consume`] is quicker.
    pub(crate) fn console_consume(&self, topic: &str, isolation: Isolation) -> Vec<ConsumedRecord> {
        // It cannot be told to stop at the end: kcat, which can, says how many there are.
        let count = self.kcat_consume(topic, isolation).len();
        if count == 0 {
            return Vec::new();
        }
        let mut command = script();
        command.args(["tool", "consumer.ConsoleConsumer", "--from-beginning", "--topic", topic]);
        command.args(["--bootstrap-server", &self.bootstrap, "--isolation-level", isolation.as_str()]);
        command.args(["--max-messages", &count.to_string(), "--timeout-ms", "60000"]);
        for property in console::properties() {
            command.args(["--formatter-property", &property]);
        }
        let output = run(&mut command);
        let records = in_order(console::parse(&output.stdout));
        assert_eq!(records.len(), count, "records of {topic} by the console consumer, and by kcat");
        records
    }

    /// All that `topic` holds now, read by kcat, in partition order. Keys and values are exact; a header's value must be
    /// text without `,`, `=` or a line's end, and cannot be told from null where it is `NULL`.
    pub(crate) fn kcat_consume(&self, topic: &str, isolation: Isolation) -> Vec<ConsumedRecord> {
        let mut command = Command::new("kcat");
        command.args(["-C", "-q", "-e", "-o", "beginning", "-b", &self.bootstrap, "-t", topic, "-f", kcat::FORMAT]);
        command.args(["-X", &format!("isolation.level={}", isolation.as_str())]);
        // It learns that it is at the end from an answer with nothing in it, for which brokers wait half a second.
        command.args(["-X", "fetch.wait.max.ms=10"]);
        // (its own patience with a busy broker is 5 s)
        command.args(["-m", "60"]);
        in_order(kcat::parse(&run(&mut command).stdout))
    }

    /// Waits until a read_committed reader sees at least `count` records in `topic`, and returns all it sees.
    #[track_caller]
    pub(crate) fn await_records(&self, topic: &str, count: usize, timeout: Duration) -> Vec<ConsumedRecord> {
        let mut seen = 0;
        wait_for(timeout, &format!("{count} records in {topic}"), || {
            let records = self.kcat_consume(topic, Isolation::ReadCommitted);
            if records.len() != seen {
                seen = records.len();
                eprintln!("{topic}: {seen} of {count} records");
            }
            (seen >= count).then_some(records)
        })
    }

    /// Where the group goes on in each partition of `topic`; a partition in which it never committed is absent.
    pub(crate) fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        self.try_committed(group, topic).unwrap_or_else(|| panic!("the offsets of {group} in {topic}"))
    }

    /// As [`Kafka::committed`]; `None` where that cannot be told now.
    pub(crate) fn try_committed(&self, group: &str, topic: &str) -> Option<BTreeMap<i32, i64>> {
        let consumer = self.consumer(&[("group.id", group)]);
        let mut asked = TopicPartitionList::new();
        for partition in 0..self.partitions(topic)? {
            asked.add_partition(topic, partition);
        }
        let answer = consumer.committed_offsets(asked, TIMEOUT).ok()?;
        let offsets = answer.elements().into_iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset)),
            _ => None,
        });
        Some(offsets.collect())
    }

    /// Whether every replica of every partition is in sync.
    pub(crate) fn is_in_sync(&self) -> bool {
        let Ok(metadata) = self.consumer(&[]).fetch_metadata(None, TIMEOUT) else { return false };
        let mut all = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        all.all(|partition| partition.isr().len() == partition.replicas().len())
    }

    /// The node that coordinates a group now.
    pub(crate) fn group_coordinator(&self, group: &str) -> Option<u8> {
        self.coordinator("__consumer_offsets", group)
    }

    /// The node that coordinates the transactions of an id now.
    pub(crate) fn transaction_coordinator(&self, id: &str) -> Option<u8> {
        self.coordinator("__transaction_state", id)
    }

    /// The node that leads the partition of an internal topic that a name belongs to.
    fn coordinator(&self, topic: &str, name: &str) -> Option<u8> {
        // As Kafka does: Java's hash of a string, without its sign.
        let hash = name.bytes().fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(i32::from(byte)));
        let node = self.leader(topic, (hash & i32::MAX) % self.partitions(topic)?)?;
        u8::try_from(node).ok()
    }

    /// The node that leads a partition now.
    pub(crate) fn leader(&self, topic: &str, partition: i32) -> Option<i32> {
        let metadata = self.consumer(&[]).fetch_metadata(Some(topic), TIMEOUT).ok()?;
        let leader = metadata.topics().first()?.partitions().iter().find(|p| p.id() == partition)?.leader();
        Some(leader).filter(|leader| *leader >= 0)
    }

    /// The end of each partition of `topic`: for read_committed the last stable offset, else the high watermark.
    pub(crate) fn end_offsets(&self, topic: &str, isolation: Isolation) -> BTreeMap<i32, i64> {
        let consumer = self.consumer(&[("isolation.level", isolation.as_str())]);
        let partitions = self.partitions(topic).unwrap_or_else(|| panic!("there is no topic {topic}"));
        let end = |p| consumer.fetch_watermarks(topic, p, TIMEOUT).expect("a partition's offsets").1;
        (0..partitions).map(|p| (p, end(p))).collect()
    }

    /// A watch for the moment at which a partition of `topic` holds records of a transaction that is open.
    pub(crate) fn transaction_watch(&self, topic: &str, partition: i32) -> TransactionWatch {
        let [high, stable] = [Isolation::ReadUncommitted, Isolation::ReadCommitted]
            .map(|isolation| self.consumer(&[("isolation.level", isolation.as_str())]));
        TransactionWatch { high, stable, topic: topic.to_owned(), partition }
    }

    /// How many partitions `topic` has, all of them with a leader; `None` if there is no such topic.
    pub(crate) fn partitions(&self, topic: &str) -> Option<i32> {
        let metadata = self.consumer(&[]).fetch_metadata(Some(topic), TIMEOUT).ok()?;
        led_partitions(metadata.topics().iter().find(|t| t.name() == topic)?)
    }

    /// Runs one of Kafka's own tools against this cluster, e.g. `consumer.group.ConsumerGroupCommand`.
    pub(crate) fn tool(&self, class: &str, args: &[&str]) -> String {
        let output = run(script().args(["tool", class, "--bootstrap-server", &self.bootstrap]).args(args));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The members of a group, as Kafka's own tool tells them: one line each, with its ids and its partitions.
    pub(crate) fn members(&self, group: &str) -> BTreeSet<String> {
        let told = self
            .tool("consumer.group.ConsumerGroupCommand", &["--describe", "--members", "--verbose", "--group", group]);
        let lines = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.filter(|line| line.split(' ').next() == Some(group)).collect()
    }

    fn await_leaders(&self, topic: &str, partitions: i32) {
        wait_for(TIMEOUT, &format!("{topic} has {partitions} partitions with leaders"), || {
            (self.partitions(topic) == Some(partitions)).then_some(())
        });
    }

    fn config(&self, properties: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        for (key, value) in properties {
            config.set(*key, *value);
        }
        config
    }

    fn consumer(&self, properties: &[(&str, &str)]) -> BaseConsumer {
        let named = properties.iter().any(|(key, _)| *key == "group.id");
        let mut config = self.config(properties);
        if !named {
            config.set("group.id", "nobody");
        }
        config.create().expect("a consumer")
    }

    fn producer(&self, properties: &[(&str, &str)]) -> ThreadedProducer<Deliveries> {
        let mut config = self.config(properties);
        config.set("enable.idempotence", "true").set("partitioner", "murmur2_random").set("linger.ms", "5");
        ThreadedProducer::from_config_and_context(&config, Deliveries::default()).expect("a producer")
    }

    /// Asks for a change that must be granted.
    #[track_caller]
    fn admin(
        &self,
        ask: impl AsyncFnOnce(&AdminClient<DefaultClientContext>, &AdminOptions) -> KafkaResult<Vec<TopicResult>>,
    ) {
        let client: AdminClient<DefaultClientContext> = self.config(&[]).create().expect("an admin client");
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for result in runtime.block_on(ask(&client, &options)).expect("an answer from the controller") {
            result.unwrap_or_else(|(topic, code)| panic!("{topic}: {code}"));
        }
    }
}

/// How many partitions a topic has, where each has a leader.
fn led_partitions(topic: &MetadataTopic) -> Option<i32> {
    let led = topic.error().is_none() && topic.partitions().iter().all(|p| p.leader() >= 0);
    led.then(|| i32::try_from(topic.partitions().len()).expect("a count"))
}

/// A transaction of a producer that is not ours.
pub(crate) struct OpenTransaction(ThreadedProducer<Deliveries>);

impl OpenTransaction {
    /// Commits or aborts it.
    pub(crate) fn end(self, ending: Ending) {
        match ending {
            Ending::Commit => self.0.commit_transaction(TIMEOUT),
            Ending::Abort => self.0.abort_transaction(TIMEOUT),
        }
        .expect("the end of the transaction");
    }
}

/// Sends one record after another to a topic.
pub(crate) struct Sender {
    producer: ThreadedProducer<Deliveries>,
    topic: String,
    sent: usize,
}

impl Sender {
    /// Sends a record with this value.
    pub(crate) fn send(&mut self, value: &str) {
        let record = BaseRecord::with_opaque_to(&self.topic, self.sent).key("key").payload(value);
        self.producer.send(record).unwrap_or_else(|(error, _)| panic!("sending to {}: {error}", self.topic));
        self.sent += 1;
    }

    /// Waits until all that were sent are stored.
    pub(crate) fn await_stored(&self) {
        delivered(&self.producer, &self.topic, self.sent);
    }
}

/// Records that are being sent at a steady pace. Ends with the value.
pub(crate) struct Trickle {
    stop: mpsc::Sender<()>,
    sent: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Trickle {
    /// How many were sent so far; the next one has this value.
    pub(crate) fn sent(&self) -> usize {
        self.sent.load(Ordering::Acquire)
    }

    /// Ends it, waits until all are stored, and answers how many they are.
    pub(crate) fn stop(self) -> usize {
        drop(self.stop);
        self.thread.join().expect("every record is stored");
        self.sent.load(Ordering::Acquire)
    }
}

/// Remembers where each record of a producer went.
#[derive(Default)]
struct Deliveries(Mutex<BTreeMap<usize, KafkaResult<(i32, i64)>>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, place: usize) {
        let outcome = match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, _)) => Err(error.clone()),
        };
        self.0.lock().expect("no test fails in here").insert(place, outcome);
    }
}

fn send(producer: &ThreadedProducer<Deliveries>, topic: &str, records: &[Record]) {
    for (place, record) in records.iter().enumerate() {
        let mut next = BaseRecord::with_opaque_to(topic, place);
        next.key = record.key.as_deref();
        next.payload = record.value.as_deref();
        next.partition = record.partition;
        next.timestamp = record.timestamp;
        if !record.headers.is_empty() {
            let add = |all: OwnedHeaders, (key, value): &(String, Option<Vec<u8>>)| {
                all.insert(Header { key, value: value.as_ref() })
            };
            next.headers = Some(record.headers.iter().fold(OwnedHeaders::new(), add));
        }
        while let Err((error, again)) = producer.send(next) {
            let full = error.rdkafka_error_code() == Some(rdkafka::types::RDKafkaErrorCode::QueueFull);
            assert!(full, "sending to {topic}: {error}");
            producer.flush(TIMEOUT).expect("room in the producer's queue");
            next = again;
        }
    }
}

fn delivered(producer: &ThreadedProducer<Deliveries>, topic: &str, count: usize) -> Vec<(i32, i64)> {
    producer.flush(TIMEOUT).expect("the records are stored");
    // The last reports may still be on their way through the producer's thread.
    let context = producer.client().context();
    wait_for(TIMEOUT, "every record's delivery report", || {
        let all = context.0.lock().expect("no test fails in here");
        (all.len() == count).then(|| {
            let place = |outcome: &KafkaResult<(i32, i64)>| match outcome {
                Ok(place) => *place,
                Err(error) => panic!("sending to {topic}: {error}"),
            };
            all.values().map(place).collect()
        })
    })
}

fn in_order(mut records: Vec<ConsumedRecord>) -> Vec<ConsumedRecord> {
    records.sort_by_key(|r| (r.partition, r.offset));
    records
}

/// Kafka's console consumer, made to print what can be read back exactly.
mod console {
    use super::ConsumedRecord;

    // A `BytesDeserializer`'s value prints as ASCII with all else, and the backslash itself, as \xHH: no value can hold
    // a separator. Null is printed as a literal that goes the same way, so it is one that no test uses as a value.
    const NULL: &str = "\u{7f}null\u{7f}";
    const FIELD: char = '\u{1f}';
    const HEADER: char = '\u{1d}';
    const RECORD: char = '\u{1e}';

    pub(super) fn properties() -> Vec<String> {
        let parts = ["timestamp", "partition", "offset", "headers", "key", "value"];
        let mut properties: Vec<String> = parts.iter().map(|part| format!("print.{part}=true")).collect();
        for part in ["key", "value", "headers"] {
            let deserializer = "org.apache.kafka.common.serialization.BytesDeserializer";
            properties.push(format!("{part}.deserializer={deserializer}"));
        }
        properties.push(format!("null.literal={NULL}"));
        for (name, separator) in [("key", FIELD), ("headers", HEADER), ("line", RECORD)] {
            properties.push(format!("{name}.separator={separator}"));
        }
        properties
    }

    pub(super) fn parse(output: &[u8]) -> Vec<ConsumedRecord> {
        let output = String::from_utf8(output.to_vec()).expect("the console consumer prints UTF-8");
        output.split_terminator(RECORD).map(record).collect()
    }

    fn record(line: &str) -> ConsumedRecord {
        let fields: Vec<&str> = line.split(FIELD).collect();
        let [timestamp, partition, offset, headers, key, value] = fields[..] else {
            panic!("a record of the console consumer: {line:?}")
        };
        ConsumedRecord {
            timestamp: number(timestamp),
            partition: number(partition).try_into().expect("a partition"),
            offset: number(offset),
            headers: match headers {
                "NO_HEADERS" => Vec::new(),
                some => some.split(HEADER).map(header).collect(),
            },
            key: bytes(key),
            value: bytes(value),
        }
    }

    /// `CreateTime:123`, `Partition:0`, `Offset:7`.
    fn number(field: &str) -> i64 {
        let (_, digits) = field.split_once(':').unwrap_or_else(|| panic!("a field with a number: {field:?}"));
        digits.parse().unwrap_or_else(|_| panic!("a number: {field:?}"))
    }

    fn header(field: &str) -> (String, Option<Vec<u8>>) {
        let (name, value) = field.split_once(':').unwrap_or_else(|| panic!("a header: {field:?}"));
        (name.to_owned(), bytes(value))
    }

    fn bytes(printed: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(printed.len());
        let mut rest = printed.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            if *first == b'\\' {
                let hex = std::str::from_utf8(&after[1..3]).expect("hexadecimal digits");
                bytes.push(u8::from_str_radix(hex, 16).expect("hexadecimal digits"));
                rest = &after[3..];
            } else {
                bytes.push(*first);
                rest = after;
            }
        }
        (bytes != NULL.as_bytes()).then_some(bytes)
    }
}

/// kcat, made to print what can be read back: lengths first.
mod kcat {
    use super::ConsumedRecord;

    pub(super) const FORMAT: &str = "%p %o %T %K %S\\n%k%s%h\\x1d\\x1e\\n";
    const END: &[u8] = b"\x1d\x1e\n";

    pub(super) fn parse(mut output: &[u8]) -> Vec<ConsumedRecord> {
        let mut records = Vec::new();
        while !output.is_empty() {
            let line = output.iter().position(|b| *b == b'\n').expect("a line of numbers");
            let numbers: Vec<i64> = std::str::from_utf8(&output[..line])
                .expect("a line of numbers")
                .split(' ')
                .map(|n| n.parse().expect("a number"))
                .collect();
            let [partition, offset, timestamp, key, value] = numbers[..] else { panic!("five numbers: {numbers:?}") };
            output = &output[line + 1..];
            let key = take(&mut output, key);
            let value = take(&mut output, value);
            let end = output.windows(END.len()).position(|w| w == END).expect("the end of a record");
            let headers = headers(&output[..end]);
            output = &output[end + END.len()..];
            let partition = partition.try_into().expect("a partition");
            records.push(ConsumedRecord { partition, offset, timestamp, headers, key, value });
        }
        records
    }

    fn take(from: &mut &[u8], length: i64) -> Option<Vec<u8>> {
        let length = usize::try_from(length).ok()?; // (-1 is null)
        let (taken, rest) = from.split_at(length);
        *from = rest;
        Some(taken.to_vec())
    }

    fn headers(printed: &[u8]) -> Vec<(String, Option<Vec<u8>>)> {
        let printed = String::from_utf8_lossy(printed);
        let fields = printed.split(',').filter_map(|field| field.split_once('='));
        let value = |value: &str| (value != "NULL").then(|| value.as_bytes().to_vec());
        fields.map(|(name, text)| (name.to_owned(), value(text))).collect()
    }
}

/// A batch in the log of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) first_offset: i64,
    pub(crate) last_offset: i64,
    pub(crate) producer: i64,
    /// It marks the end of a transaction of its producer.
    pub(crate) is_control: bool,
    pub(crate) timestamp: i64,
}

impl Batch {
    /// From `baseOffset: 0 lastOffset: 0 … isControl: false …`, as Kafka's own tool prints it.
    fn parse(line: &str) -> Option<Self> {
        let value = |name: &str| line.split_once(&format!("{name}: "))?.1.split(' ').next();
        let number = |name: &str| value(name)?.parse().ok();
        Some(Self {
            first_offset: number("baseOffset")?,
            last_offset: number("lastOffset")?,
            producer: number("producerId")?,
            is_control: value("isControl")? == "true",
            timestamp: number("CreateTime")?,
        })
    }
}

/// A cluster that one test owns: its nodes (1, 2, …) may be killed, stopped and started. Gone with the value.
pub(crate) struct Cluster {
    kafka: Kafka,
    dir: PathBuf,
    _tie: ChildStdin,
}

impl std::ops::Deref for Cluster {
    type Target = Kafka;

    fn deref(&self) -> &Kafka {
        &self.kafka
    }
}

impl Cluster {
    pub(crate) fn start(nodes: u8) -> Self {
        Self::start_with(nodes, &[])
    }

    /// With server properties, `key=value`.
    pub(crate) fn start_with(nodes: u8, config: &[&str]) -> Self {
        Self::start_logging("WARN", nodes, config)
    }

    /// One node with these listeners more (`NAME:PROTOCOL`), at its port plus 10, plus 20 and so on.
    pub(crate) fn start_listening(listeners: &[&str], config: &[&str]) -> Self {
        let dir = scratch("cluster");
        let (bootstrap, tie) = up(dir.clone(), 1, listeners, config, "WARN");
        Self { kafka: Kafka { bootstrap }, dir, _tie: tie }
    }

    /// One node that also logs what its group coordinator does: see [`Cluster::log_lines`].
    pub(crate) fn start_talkative() -> Self {
        Self::start_logging("INFO", 1, &[])
    }

    fn start_logging(level: &str, nodes: u8, config: &[&str]) -> Self {
        let dir = scratch("cluster");
        let (bootstrap, tie) = up(dir.clone(), nodes, &[], config, level);
        Self { kafka: Kafka { bootstrap }, dir, _tie: tie }
    }

    /// How many lines of node 1's log hold all of `words`.
    pub(crate) fn log_lines(&self, words: &[&str]) -> usize {
        let log = std::fs::read(self.dir.join("node1/server.log")).expect("the broker's log");
        let log = String::from_utf8_lossy(&log);
        log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    /// The batches in node 1's log of a partition, in order: what no consumer shows.
    pub(crate) fn batches(&self, topic: &str, partition: i32) -> Vec<Batch> {
        let dir = self.dir.join(format!("node1/data/{topic}-{partition}"));
        let segment = dir.join("00000000000000000000.log");
        let segment = segment.to_str().expect("a path of ours is text");
        let output = run(script().args(["tool", "DumpLogSegments", "--files", segment]));
        String::from_utf8_lossy(&output.stdout).lines().filter_map(Batch::parse).collect()
    }

    /// A crash.
    pub(crate) fn kill(&self, node: u8) {
        run(script().args(["down", "--kill", "--node", &node.to_string()]).arg(&self.dir));
    }

    /// An orderly shutdown.
    pub(crate) fn shut_down(&self, node: u8) {
        run(script().args(["down", "--node", &node.to_string()]).arg(&self.dir));
    }

    /// Starts a node that was killed or shut down, and waits until it serves.
    pub(crate) fn restart(&self, node: u8) {
        run(script().arg("start-node").arg(&self.dir).arg(node.to_string()));
    }

    /// SIGSTOP: to all others, a broker behind a network that drops everything.
    pub(crate) fn stop(&self, node: u8) {
        self.signal(node, Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn cont(&self, node: u8) {
        self.signal(node, Signal::CONT);
    }

    /// Copies the logs and the data of all nodes, which go with the value.
    pub(crate) fn copy_to(&self, dir: &Path) {
        run(Command::new("cp").args(["-a", "--sparse=always"]).args([self.dir.as_path(), dir]));
    }

    /// Whether a node has a process, which may be stopped.
    pub(crate) fn has_process(&self, node: u8) -> bool {
        self.dir.join(format!("node{node}/pid")).exists()
    }

    fn signal(&self, node: u8, signal: Signal) {
        let file = self.dir.join(format!("node{node}/pid"));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let pid = text.trim().parse().ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("the node runs");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What goes wrong here must not hide why the test failed; the tie cleans up as well.
        let _ = script().args(["down", "--kill", "--wipe"]).arg(&self.dir).stderr(Stdio::null()).status();
    }
}

/// Starts a cluster that lives as long as the returned pipe. Returns its address.
fn up(dir: PathBuf, nodes: u8, listeners: &[&str], config: &[&str], log_level: &str) -> (String, ChildStdin) {
    let mut command = script();
    command.env("KAFKA_LOG_LEVEL", log_level);
    command.args(["up", "--tied", "--nodes", &nodes.to_string()]);
    for (option, values) in [("--listener", listeners), ("--config", config)] {
        for value in values {
            command.args([option, value]);
        }
    }
    command.arg(&dir).arg("0").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("scripts/kafka runs");
    let tie = child.stdin.take().expect("a piped standard input");
    let output = child.wait_with_output().expect("scripts/kafka ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "no Kafka to test with ({}):\n{said}", output.status);
    (String::from_utf8_lossy(&output.stdout).trim().to_owned(), tie)
}

/// `scripts/kafka`, with nothing on its standard input.
pub(crate) fn script() -> Command {
    let mut command = Command::new(root().join("scripts/kafka"));
    command.stdin(Stdio::null());
    command
}

/// Runs a command that must succeed.
#[track_caller]
pub(super) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e} (scripts/setup test installs it)"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    output
}

/// Runs a Java source file with Kafka's classes, gives it `input` and returns what it prints.
pub(crate) fn run_java(source: &str, input: &str) -> String {
    let mut command = script();
    command.arg("java").arg(root().join(source)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("scripts/kafka runs");
    let mut stdin = child.stdin.take().expect("a piped standard input");
    let mut stdout = child.stdout.take().expect("a piped standard output");
    // Written beside the reading: a full pipe in both directions would stop both.
    let input = input.to_owned();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, input.as_bytes()));
    let mut printed = String::new();
    stdout.read_to_string(&mut printed).expect("what the program prints");
    let output = child.wait_with_output().expect("the program ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{source}: {}\n{said}", output.status);
    writer.join().expect("the writer ends").expect("the program reads its input");
    printed
}

#[cfg(test)]
mod tests {
    use super::super::{unique, wait_until};
    use super::*;

    fn awkward_records() -> Vec<Record> {
        vec![
            Record::new("k", "plain").at(1_700_000_000_123).to(0),
            Record { value: Some(b"null key".to_vec()), partition: Some(0), ..Record::default() },
            Record::new("", "").at(1).to(0),
            Record { key: Some(b"tombstone".to_vec()), partition: Some(0), ..Record::default() },
            Record::new(b"\0\xff\n\\x41", b"\x1e\x1f\x1d\n\\N, \\\xe2\x28\xa1").to(0),
        ]
    }

    fn as_sent(records: &[ConsumedRecord]) -> Vec<Record> {
        let sent = |r: &ConsumedRecord| Record {
            key: r.key.clone(),
            value: r.value.clone(),
            headers: r.headers.clone(),
            timestamp: Some(r.timestamp),
            partition: Some(r.partition),
        };
        records.iter().map(sent).collect()
    }

    #[test]
    fn the_console_consumer_and_kcat_read_back_exactly_what_was_sent() {
        let kafka = shared();
        let topic = unique("harness-exact");
        kafka.create_topic(&topic, 2, &[("retention.ms", "-1")]);
        let mut sent = awkward_records();
        sent.push(Record::new("h", "headers").header("a", "1").header("a", "2").to(1));
        sent[5].headers.push(("none".to_owned(), None));
        for record in &mut sent {
            record.timestamp.get_or_insert(1_600_000_000_000);
        }
        let places = kafka.produce(&topic, &sent);
        assert_eq!(places, [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]);
        assert_eq!(as_sent(&kafka.kcat_consume(&topic, Isolation::ReadCommitted)), sent);
        // Header values that are empty or binary are beyond kcat.
        sent.push(Record::new("h", "").header("empty", "").header("binary", b"\0,=\xff\x1e\x1d\n").at(7).to(1));
        kafka.produce(&topic, &sent[6..]);
        assert_eq!(as_sent(&kafka.console_consume(&topic, Isolation::ReadCommitted)), sent);
    }

    #[test]
    fn a_read_committed_reader_sees_no_aborted_record() {
        let kafka = shared();
        let topic = unique("harness-transactions");
        kafka.create_topic(&topic, 1, &[]);
        kafka.produce_transaction(&topic, &[Record::new("k", "kept")], Ending::Commit);
        kafka.produce_transaction(&topic, &[Record::new("k", "aborted")], Ending::Abort);
        let seen =
            |isolation| kafka.kcat_consume(&topic, isolation).iter().map(ConsumedRecord::text).collect::<Vec<_>>();
        assert_eq!(seen(Isolation::ReadCommitted), ["kept"]);
        assert_eq!(seen(Isolation::ReadUncommitted), ["kept", "aborted"]);
        assert_eq!(kafka.await_records(&topic, 1, TIMEOUT).len(), 1);
        assert_eq!(kafka.end_offsets(&topic, Isolation::ReadCommitted), BTreeMap::from([(0, 4)]));
        assert_eq!(kafka.committed("harness-nobody", &topic), BTreeMap::new());
    }

    #[test]
    fn topics_grow_and_go() {
        let kafka = shared();
        let topic = unique("harness-topics");
        kafka.create_topic(&topic, 1, &[]);
        kafka.add_partitions(&topic, 3);
        assert_eq!(kafka.partitions(&topic), Some(3));
        assert!(kafka.tool("TopicCommand", &["--describe", "--topic", &topic]).contains("PartitionCount: 3"));
        kafka.delete_topic(&topic);
    }

    #[test]
    fn a_killed_broker_comes_back_with_its_records_and_is_gone_with_its_cluster() {
        let cluster = Cluster::start(1);
        cluster.create_topic("t", 1, &[]);
        cluster.produce("t", &[Record::new("k", "before")]);
        cluster.kill(1);
        cluster.restart(1);
        cluster.stop(1);
        cluster.cont(1);
        cluster.produce("t", &[Record::new("k", "after")]);
        assert_eq!(cluster.await_records("t", 2, TIMEOUT).len(), 2);
        let dir = cluster.dir.clone();
        drop(cluster);
        wait_until(TIMEOUT, "the cluster's directory is gone", || !dir.exists());
    }
}
