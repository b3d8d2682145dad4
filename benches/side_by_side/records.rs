//! A Kafka of its own, the records of a run, and what a reader finds.

use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use crate::{pace, root};

const PARTITIONS: i32 = 4;
const WITHIN: Duration = Duration::from_secs(30);
const WORDS: [&str; 12] = [
    "delivery",
    "customer",
    "invoice",
    "parcel",
    "address",
    "window",
    "requested",
    "noon",
    "neighbour",
    "fragile",
    "label",
    "express",
];

/// A broker that lives as long as this.
pub(crate) struct Kafka {
    pub(crate) bootstrap: String,
    _process: Child,
    _tied: ChildStdin,
    _directory: tempfile::TempDir,
}

impl Kafka {
    /// Starts one node.
    pub(crate) fn start() -> Self {
        use std::io::BufRead as _;
        let directory = tempfile::tempdir().expect("a directory");
        let mut process = Command::new(root().join("scripts/kafka"))
            .args(["up", "--tied", "--heap", "1g"])
            .arg(directory.path().join("kafka"))
            .arg("0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/kafka runs");
        let tied = process.stdin.take().expect("it is a pipe");
        let mut bootstrap = String::new();
        std::io::BufReader::new(process.stdout.take().expect("it is a pipe"))
            .read_line(&mut bootstrap)
            .expect("it prints the address");
        let bootstrap = bootstrap.trim().to_owned();
        assert!(!bootstrap.is_empty(), "Kafka does not start: see above");
        Self { bootstrap, _process: process, _tied: tied, _directory: directory }
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.config().create().expect("an admin client")
    }

    /// A consumer that only asks.
    pub(crate) fn asking(&self, group: &str, isolation: &str) -> BaseConsumer {
        let mut config = self.config();
        config.set("group.id", group).set("enable.auto.commit", "false").set("isolation.level", isolation);
        config.create().expect("a consumer")
    }

    /// Makes a topic.
    pub(crate) fn create(&self, topic: &str) {
        let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
        let made = wait(self.admin().create_topics([&new], &AdminOptions::new())).expect("it is asked");
        made.into_iter().for_each(|made| _ = made.expect("the topic is made"));
        let asking = self.asking("asking", "read_uncommitted");
        let is_there = || {
            let found = asking.fetch_metadata(Some(topic), WITHIN).expect("metadata");
            found.topics()[0].partitions().len() == PARTITIONS as usize
        };
        while !is_there() {
            pace(Duration::from_millis(20));
        }
    }

    /// Takes it away.
    pub(crate) fn delete(&self, topic: &str) {
        let _ = wait(self.admin().delete_topics(&[topic], &AdminOptions::new()));
    }

    /// A topic of so many records: JSON of `size` bytes, keys of 16, one header; the same in each run.
    pub(crate) fn fill(&self, topic: &str, count: usize, size: usize) {
        self.create(topic);
        let mut config = self.config();
        config.set("compression.codec", "lz4").set("linger.ms", "10").set("partitioner", "murmur2_random");
        config.set("queue.buffering.max.kbytes", "262144").set("delivery.report.only.error", "true");
        let producer: BaseProducer = config.create().expect("a producer");
        let mut random = fastrand::Rng::with_seed(42);
        for number in 0..count {
            let key = format!("user-{:011}", random.u32(..100_000));
            let value = value(&mut random, number, size);
            let mut record = BaseRecord::to(topic).key(&key).payload(&value);
            while let Err((error, back)) = producer.send(record) {
                assert!(matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)), "{error}");
                producer.poll(Duration::from_millis(10));
                record = back;
            }
        }
        producer.flush(4 * WITHIN).expect("the records are stored");
    }

    /// Where each partition ends for a `read_committed` reader.
    pub(crate) fn ends(&self, topic: &str) -> Vec<i64> {
        let asking = self.asking("asking", "read_committed");
        (0..PARTITIONS).map(|at| asking.fetch_watermarks(topic, at, WITHIN).expect("watermarks").1).collect()
    }

    /// How many records a `read_committed` reader finds.
    pub(crate) fn committed_records(&self, topic: &str) -> usize {
        let mut config = self.config();
        config.set("group.id", "counting").set("isolation.level", "read_committed").set("fetch.queue.backoff.ms", "5");
        config.set("enable.partition.eof", "true").set("enable.auto.commit", "false");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut all = TopicPartitionList::new();
        for at in 0..PARTITIONS {
            all.add_partition_offset(topic, at, Offset::Beginning).expect("an offset");
        }
        consumer.assign(&all).expect("it is assigned");
        let (mut count, mut ended) = (0, 0);
        while ended < PARTITIONS {
            match consumer.poll(WITHIN).expect("a record or an end") {
                Ok(_) => count += 1,
                Err(KafkaError::PartitionEOF(_)) => ended += 1,
                Err(error) => panic!("{error}"),
            }
        }
        count
    }

    /// Of which partitions a group's progress is asked.
    pub(crate) fn partitions(&self, topic: &str) -> TopicPartitionList {
        let mut all = TopicPartitionList::new();
        (0..PARTITIONS).for_each(|at| _ = all.add_partition(topic, at));
        all
    }
}

fn value(random: &mut fastrand::Rng, number: usize, size: usize) -> String {
    let (a, b) = (random.u8(..), random.u8(..));
    let mut value = format!("{{\"id\":\"{number:09}\",\"type\":\"order\",\"ip\":\"10.{a}.{b}.3\",\"note\":\"");
    while value.len() + 14 < size {
        value.push_str(WORDS[random.usize(..WORDS.len())]);
        value.push(' ');
    }
    while value.len() + 2 < size {
        value.push('.');
    }
    value + "\"}"
}

/// Drives a future that librdkafka's own thread completes.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(future)
}
