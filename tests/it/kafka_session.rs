//! What a session with Kafka promises the data plane, on a real broker: `kafka::Session` as a `Broker`, where groups
//! start, and each row of the table of errors (on librdkafka's mock, which can be told to fail).

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace::config::settings::{
    Batch, Delivery, Destination, Kafka as Connection, OnOffsetLost, PropertyValue, Route, Source, Start, Target,
    TopicSelector, Transaction,
};
use millrace::kafka::{Cluster, Instance, Session, SessionOptions, Started, resolve_start, source_topics};
use millrace::model::{DestinationName, GroupId, OffsetMap, RouteName, SourceBatch, TopicName, TopicPartition};
use millrace::pipeline::ports::{Broker, Event, Headers, Outcome, Output, Outputs, TopicError, TroubleKind};
use millrace::policy::{OnError, Partitioning};

use crate::support::kafka::{Ending, Isolation, Record, shared};
use crate::support::unique;

const PATIENCE: Duration = Duration::from_secs(30);

/// Two topics on the shared broker, and a route from one to the other.
struct Bench {
    source: String,
    destination: String,
    cluster: Cluster,
    route: Route,
}

impl Bench {
    fn new(partitions: i32, delivery: Delivery) -> Self {
        let (source, destination) = (unique("source"), unique("destination"));
        shared().create_topic(&source, partitions, &[]);
        shared().create_topic(&destination, partitions, &[]);
        let cluster = Cluster::connect(&connection(&shared().bootstrap)).expect("a client");
        let route = route(&source, &destination, delivery);
        Self { source, destination, cluster, route }
    }

    fn open(&self, instance: &Instance) -> Session {
        session(&self.cluster, &self.route, instance).expect("a session")
    }

    /// A session of a group that has just started at the beginning.
    fn start(&self) -> Session {
        resolve_start(&self.cluster, &self.route, &[topic(&self.source)]).expect("a start");
        self.open(&Instance::Random(unique("process")))
    }

    fn at(&self, partition: i32) -> TopicPartition {
        TopicPartition { topic: topic(&self.source), partition }
    }

    fn offset(&self, partition: i32, offset: i64) -> OffsetMap {
        OffsetMap::from([(self.at(partition), offset)])
    }

    fn group(&self) -> &str {
        self.route.source.group.as_str()
    }

    fn committed(&self, partition: i32) -> Option<i64> {
        shared().committed(self.group(), &self.source).get(&partition).copied()
    }

    fn values(&self, isolation: Isolation) -> Vec<String> {
        shared().kcat_consume(&self.destination, isolation).iter().map(|record| record.text()).collect()
    }
}

fn connection(bootstrap: &str) -> Connection {
    Connection {
        prefix: unique("test"),
        common: [("bootstrap.servers".to_owned(), PropertyValue::plain(bootstrap))].into(),
        consumer: [].into(),
        producer: [].into(),
    }
}

fn route(source: &str, destination: &str, delivery: Delivery) -> Route {
    Route {
        name: RouteName::new("copy").unwrap(),
        enabled: true,
        source: Source {
            topics: vec![TopicSelector::Name(topic(source))],
            exclude: vec![],
            group: GroupId::new(unique("group")).unwrap(),
            start: Start::Earliest,
            on_offset_lost: OnOffsetLost::Stop,
            consumer: [].into(),
        },
        pipeline: vec![],
        destinations: vec![Destination {
            name: DestinationName::new(destination).unwrap(),
            target: Target::Topic(topic(destination)),
            partition: Partitioning::Key,
            default: true,
        }],
        delivery,
        transaction: Transaction { interval: Duration::from_millis(100), records: 1000, bytes: 1 << 20 },
        batch: Batch { records: 100, bytes: 1 << 18 },
        workers: 1,
        on_error: OnError::default(),
        lag_alert: None,
    }
}

fn session(
    cluster: &Cluster,
    route: &Route,
    instance: &Instance,
) -> Result<Session, millrace::pipeline::ports::Trouble> {
    let dead_letters = Arc::new(BTreeSet::new());
    Session::open(&SessionOptions { cluster, route, worker: 0, instance, dead_letters, memory: 64 << 20 })
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

/// Outputs that a test writes down.
#[derive(Default)]
struct List(Vec<Own>);

#[derive(Default, Clone)]
struct Own {
    topic: u16,
    partition: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    timestamp: i64,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl List {
    fn of(topic: u16, values: impl IntoIterator<Item = String>) -> Self {
        let own = |value: String| Own { topic, value: Some(value.into()), timestamp: -1, ..Own::default() };
        Self(values.into_iter().map(own).collect())
    }
}

impl Outputs for List {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn for_each(&self, produce: &mut dyn FnMut(Output<'_>) -> ControlFlow<()>) {
        let _ = self.0.iter().try_for_each(|own| {
            produce(Output {
                topic: own.topic,
                partition: own.partition,
                key: own.key.as_deref(),
                value: own.value.as_deref(),
                timestamp: own.timestamp,
                headers: Headers::List(&own.headers),
            })
        });
    }
}

/// What polls have brought so far.
#[derive(Default)]
struct Seen {
    batches: Vec<Arc<dyn SourceBatch>>,
    events: Vec<Event>,
    assigned: BTreeSet<TopicPartition>,
}

impl Seen {
    fn values(&self) -> Vec<String> {
        let all = self.batches.iter().flat_map(|batch| (0..batch.len()).map(move |nth| (batch, nth)));
        all.map(|(batch, nth)| String::from_utf8_lossy(batch.value(nth).unwrap_or_default()).into_owned()).collect()
    }
    fn offsets(&self, partition: &TopicPartition) -> Vec<i64> {
        let of = self.batches.iter().filter(|batch| batch.topic_partition() == partition);
        of.flat_map(|batch| (0..batch.len()).map(move |nth| batch.offset(nth))).collect()
    }
    /// Polls until `enough`.
    #[track_caller]
    fn poll(&mut self, session: &mut Session, what: &str, enough: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !enough(self) {
            assert!(Instant::now() < until, "waited in vain: {what}; events: {}", names(&self.events));
            let mut events = Vec::new();
            session.poll(Duration::from_millis(100), 1000, &mut events);
            for event in events {
                match event {
                    Event::Records(batch) => self.batches.push(batch),
                    Event::Assigned(partitions) => self.assigned.extend(partitions),
                    Event::Revoked(partitions) => {
                        self.assigned.retain(|partition| !partitions.contains(partition));
                        self.events.push(Event::Revoked(partitions));
                    }
                    other => self.events.push(other),
                }
            }
        }
    }
}

fn names(events: &[Event]) -> String {
    let name = |event: &Event| match event {
        Event::Records(batch) => format!("{} records", batch.len()),
        Event::Assigned(partitions) => format!("assigned {partitions:?}"),
        Event::Revoked(partitions) => format!("revoked {partitions:?}"),
        Event::OffsetLost { message, .. } => format!("offset lost: {message}"),
        Event::OffsetReset { message, .. } => format!("offset reset: {message}"),
        Event::Trouble(trouble) => format!("trouble: {trouble:?}"),
        Event::Broken(trouble) => format!("broken: {trouble:?}"),
    };
    events.iter().map(name).collect::<Vec<_>>().join("; ")
}

fn numbers(range: std::ops::Range<usize>) -> Vec<Record> {
    range.map(|n| Record::new(format!("key-{n}"), n.to_string()).to(0)).collect()
}

fn committed() -> Outcome {
    Outcome::Committed { lost: 0 }
}

#[test]
fn a_transaction_commits_outputs_and_offsets_together() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    shared().produce(&bench.source, &numbers(0..100));
    let mut session = bench.start();
    let mut seen = Seen::default();
    seen.poll(&mut session, "100 records", |seen| seen.values().len() >= 100);
    let slot = session.topic(&topic(&bench.destination)).unwrap();
    assert_eq!(slot.partitions, 1);
    let outcome = session.transact(&List::of(slot.slot, seen.values()), &bench.offset(0, 100));
    assert_eq!(outcome, committed());
    assert_eq!(bench.values(Isolation::ReadCommitted), seen.values());
    assert_eq!(bench.committed(0), Some(100));
    session.close(false, PATIENCE);
}
