//! A Kafka of its own, the records of a run, and what a reader finds.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use crate::{pace, root};

const PARTITIONS: i32 = 4;
const WITHIN: Duration = Duration::from_secs(30);
const WORDS: [&str; 45] = [
    "delivery",
    "customer",
    "invoice",
    "parcel",
    "address",
    "between",
    "window",
    "requested",
    "before",
    "noon",
    "leave",
    "with",
    "neighbour",
    "fragile",
    "handle",
    "carefully",
    "express",
    "standard",
    "return",
    "label",
    "printed",
    "gift",
    "wrap",
    "discount",
    "applied",
    "loyalty",
    "points",
    "warehouse",
    "north",
    "south",
    "pallet",
    "damaged",
    "replaced",
    "weekend",
    "signature",
    "required",
    "call",
    "phone",
    "first",
    "second",
    "floor",
    "garden",
    "gate",
    "code",
    "bell",
];

/// A broker that lives as long as this.
pub(crate) struct Kafka {
    pub(crate) bootstrap: String,
    /// Where contenders are told that it is.
    pub(crate) offered: String,
    /// Its process.
    pub(crate) broker: u32,
    _process: Child,
    _tied: ChildStdin,
    _directory: tempfile::TempDir,
}

impl Kafka {
    /// Starts one node.
    pub(crate) fn start() -> Self {
        Self::start_at(0, &[])
    }

    /// The same; contenders reach it through the port that is made of its own.
    pub(crate) fn start_behind(made_of: impl FnOnce(u16) -> u16) -> Self {
        // (its second listener comes at ten more; the port is free, as far as one can know)
        let port = TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("a port").port();
        let offered = format!("127.0.0.1:{}", made_of(port + 10));
        let advertised = format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port},BEHIND://{offered}");
        let kafka = Self::start_at(port, &["--listener", "BEHIND:PLAINTEXT", "--config", &advertised]);
        Self { offered, ..kafka }
    }

    fn start_at(port: u16, options: &[&str]) -> Self {
        use std::io::BufRead as _;
        let directory = tempfile::tempdir().expect("a directory");
        let mut process = Command::new(root().join("scripts/kafka"))
            .args(["up", "--tied", "--heap", "1g"])
            .args(options)
            .arg(directory.path().join("kafka"))
            .arg(port.to_string())
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
        let broker = std::fs::read_to_string(directory.path().join("kafka/node1/pid")).expect("a process id");
        let broker = broker.trim().parse().expect("a process id");
        Self { offered: bootstrap.clone(), bootstrap, broker, _process: process, _tied: tied, _directory: directory }
    }

    pub(crate) fn config(&self) -> ClientConfig {
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
        self.create_all(&[topic], PARTITIONS);
    }

    /// Makes topics of so many partitions.
    pub(crate) fn create_all(&self, topics: &[&str], partitions: i32) {
        let new: Vec<_> =
            topics.iter().map(|topic| NewTopic::new(topic, partitions, TopicReplication::Fixed(1))).collect();
        let made = wait(self.admin().create_topics(&new, &AdminOptions::new())).expect("it is asked");
        made.into_iter().for_each(|made| _ = made.expect("the topic is made"));
        let asking = self.asking("asking", "read_uncommitted");
        let is_there = |topic: &&str| {
            let found = asking.fetch_metadata(Some(topic), WITHIN).expect("metadata");
            found.topics()[0].partitions().len() == partitions as usize
        };
        for topic in topics {
            while !is_there(topic) {
                pace(Duration::from_millis(20));
            }
        }
    }

    /// Takes it away.
    pub(crate) fn delete(&self, topic: &str) {
        let _ = wait(self.admin().delete_topics(&[topic], &AdminOptions::new()));
    }

    /// A topic of so many records: JSON of `size` bytes, keys of 16, with two headers or none; the same in each run.
    pub(crate) fn fill(&self, topic: &str, count: usize, size: usize, headers: bool) -> Source {
        self.create(topic);
        let producer: BaseProducer = self.filling().create().expect("a producer");
        let mut values = Values::new(size);
        let mut live = 0;
        for _ in 0..count {
            live += usize::from(values.make(now()));
            let mut record = BaseRecord::to(topic).key(&values.key).payload(&values.value);
            if headers {
                let both = [("trace", "0123456789abcdef"), ("keep", "yes")];
                let both = both.into_iter().fold(OwnedHeaders::new_with_capacity(2), |all, (key, value)| {
                    all.insert(Header { key, value: Some(value) })
                });
                record = record.headers(both);
            }
            send(&producer, record);
        }
        producer.flush(4 * WITHIN).expect("the records are stored");
        Source { topic: topic.to_owned(), count, live }
    }

    /// The settings of a producer that fills a topic.
    pub(crate) fn filling(&self) -> ClientConfig {
        let mut config = self.config();
        config.set("compression.codec", "lz4").set("linger.ms", "10").set("partitioner", "murmur2_random");
        config.set("queue.buffering.max.kbytes", "262144").set("delivery.report.only.error", "true");
        config
    }

    /// How many records a `read_committed` reader finds.
    pub(crate) fn committed_records(&self, topic: &str) -> usize {
        let consumer = self.reading(&[topic], PARTITIONS);
        let (mut count, mut ended) = (0, 0);
        while ended < PARTITIONS {
            match consumer.poll(WITHIN) {
                Some(Ok(_)) => count += 1,
                Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
                Some(Err(error)) => panic!("{error}"),
                None => {} // (it also wakes for news of its own)
            }
        }
        count
    }

    /// A `read_committed` reader of all partitions, from their beginning, which tells their ends.
    pub(crate) fn reading(&self, topics: &[&str], partitions: i32) -> BaseConsumer {
        let mut config = self.config();
        config.set("group.id", "reading").set("isolation.level", "read_committed").set("fetch.queue.backoff.ms", "5");
        config.set("enable.partition.eof", "true").set("enable.auto.commit", "false");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut all = TopicPartitionList::new();
        for topic in topics {
            for at in 0..partitions {
                all.add_partition_offset(topic, at, Offset::Beginning).expect("an offset");
            }
        }
        consumer.assign(&all).expect("it is assigned");
        consumer
    }

    /// Of which partitions a group's progress is asked.
    pub(crate) fn partitions(&self, topic: &str) -> TopicPartitionList {
        let mut all = TopicPartitionList::new();
        (0..PARTITIONS).for_each(|at| _ = all.add_partition(topic, at));
        all
    }
}

/// A topic that was filled.
pub(crate) struct Source {
    pub(crate) topic: String,
    pub(crate) count: usize,
    /// Whose `status` is not `test`.
    pub(crate) live: usize,
}

/// Sends one, waiting where the queue is full.
pub(crate) fn send<'a>(producer: &BaseProducer, mut record: BaseRecord<'a, String, String>) {
    while let Err((error, back)) = producer.send(record) {
        assert!(matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)), "{error}");
        producer.poll(Duration::from_millis(10));
        record = back;
    }
}

/// Microseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
    u64::try_from(since.as_micros()).expect("it is earlier than 500000")
}

/// Orders, the same in each run but for when they were made.
pub(crate) struct Values {
    random: fastrand::Rng,
    size: usize,
    number: usize,
    pub(crate) key: String,
    pub(crate) value: String,
}

impl Values {
    pub(crate) fn new(size: usize) -> Self {
        let random = fastrand::Rng::with_seed(42);
        Self { random, size, number: 0, key: String::new(), value: String::new() }
    }

    /// Makes the next, which begins with its time; says whether it is live.
    pub(crate) fn make(&mut self, now: u64) -> bool {
        let Self { random, size, number, key, value } = self;
        *number += 1;
        let live = random.bool();
        let status = if live { "live" } else { "test" };
        let ip = [(); 3].map(|()| random.u8(..));
        key.clear();
        value.clear();
        write!(key, "user-{:011}", random.u32(..100_000)).expect("a text takes all");
        write!(value, "{{\"ts\":{now},\"id\":\"{number:09}\",\"status\":\"{status}\",").expect("a text takes all");
        write!(value, "\"ip\":\"10.{}.{}.{}\"", ip[0], ip[1], ip[2]).expect("a text takes all");
        if *size >= 400 {
            details(value, random);
        }
        value.push_str(",\"note\":\"");
        while value.len() + 14 < *size {
            value.push_str(WORDS[random.usize(..WORDS.len())]);
            value.push(' ');
        }
        while value.len() + 2 < *size {
            value.push('.');
        }
        value.push_str("\"}");
        live
    }
}

/// What a larger order has besides: some that is nested, and numbers.
fn details(value: &mut String, random: &mut fastrand::Rng) {
    let mut word = || WORDS[random.usize(..WORDS.len())];
    let (kind, first, last) = (word(), word(), word());
    let (trace, customer, amount) = (random.u128(..), random.u32(..100_000), random.u32(..100_000));
    write!(
        value,
        ",\"type\":\"order.{kind}\",\"region\":\"eu-west-1\",\"trace\":\"{trace:032x}\",\"customer\":{{\"id\":{customer},\"name\":\
         \"{first} {last}\",\"email\":\"u{customer}@example.org\",\"vip\":{}}},\"amount\":{}.{:02},\"currency\":\"EUR\",\"items\":[",
        customer % 2 == 0,
        amount / 100,
        amount % 100
    )
    .expect("a text takes all");
    for item in 0..2 + random.usize(..3) {
        let comma = if item > 0 { "," } else { "" };
        let (sku, count, price) = (random.u32(..5_000_000), random.u8(1..10), random.u32(..30_000));
        let tags = [(); 2].map(|()| WORDS[random.usize(..WORDS.len())]);
        write!(
            value,
            "{comma}{{\"sku\":\"SKU-{sku:07}\",\"qty\":{count},\"price\":{}.{:02},\"tags\":[\"{}\",\"{}\"]}}",
            price / 100,
            price % 100,
            tags[0],
            tags[1]
        )
        .expect("a text takes all");
    }
    value.push(']');
}

/// Drives a future that librdkafka's own thread completes.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(future)
}
