//! What a session with Kafka promises the data plane, on a real broker: `kafka::Session` as a `Broker`, where groups
//! start, and each row of the table of errors (on librdkafka's mock, which can be told to fail).

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use millrace::config::settings::{
    Batch, Delivery, Destination, Kafka as Connection, OnOffsetLost, OnPartitionChange, PropertyValue, Route, Source,
    Start, Target, TopicSelector, Transaction,
};
use millrace::config::share::Share;
use millrace::kafka::{
    Cluster, Instance, LeftOut, MockCluster, Session, SessionOptions, Started, resolve_start, source_topics,
};
use millrace::model::{DestinationName, GroupId, Items, OffsetMap, RouteName, SourceBatch, TopicName, TopicPartition};
use millrace::pipeline::ports::{
    Broker, Event, Flight, Flown, Headers, Outcome, Output, Outputs, TopicError, TroubleKind,
};
use millrace::policy::{OnError, Partitioning};

use crate::support::kafka::{Ending, Isolation, Record, shared};
use crate::support::{pace, unique, wait_until};

mod memberships;
mod overlaps;

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

    /// Another member joins, and leaves once it has something.
    fn join_for_a_share(&self, joined: &AtomicBool) {
        let mut second = self.open(&Instance::Random(unique("process")));
        let mut seen = Seen::default();
        seen.poll(&mut second, "a share", |seen| !seen.assigned.is_empty());
        joined.store(true, SeqCst);
        second.close(true, PATIENCE);
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
        // The broker writes the marks that show a transaction to readers after it has answered the commit.
        let ends = |isolation| shared().end_offsets(&self.destination, isolation);
        wait_until(PATIENCE, "no transaction is open", || {
            ends(Isolation::ReadCommitted) == ends(Isolation::ReadUncommitted)
        });
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
        shadow: None,
        destinations: vec![Destination {
            name: DestinationName::new(destination).unwrap(),
            target: Target::Topic(topic(destination)),
            partition: Partitioning::Key,
            default: true,
            when: None,
        }],
        delivery,
        transaction: Transaction { interval: Duration::from_millis(100), records: 1000, bytes: 1 << 20 },
        batch: Batch { records: 100, bytes: 1 << 18 },
        workers: 1,
        parallelism: 1,
        on_error: OnError::default(),
        on_partition_change: OnPartitionChange::Follow,
        lag_alert: None,
    }
}

fn session(
    cluster: &Cluster,
    route: &Route,
    instance: &Instance,
) -> Result<Session, millrace::pipeline::ports::Trouble> {
    let left_out = &Arc::new(ArcSwap::from_pointee(LeftOut {
        destinations: route.destinations.clone(),
        dead_letters: Arc::default(),
    }));
    let (share, counts) = (Share(256 << 20), &Arc::default());
    let timeout = route.source.consumer.get("session.timeout.ms").and_then(|timeout| timeout.reveal().parse().ok());
    let session_timeout = Duration::from_millis(timeout.unwrap_or(45_000));
    Session::open(&SessionOptions {
        cluster,
        route,
        worker: 0,
        instance,
        left_out,
        counts,
        share,
        session_timeout,
        yields: false,
    })
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
                keeper: None,
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
            self.take(session);
        }
    }
    /// Polls once.
    fn take(&mut self, session: &mut Session) {
        let mut events = Vec::new();
        session.poll(Duration::from_millis(100), 1000, &mut events);
        for event in events {
            match event {
                Event::Records(batch) => self.batches.push(batch),
                Event::Assigned(partitions) => {
                    self.assigned.extend(partitions.iter().cloned());
                    self.events.push(Event::Assigned(partitions));
                }
                Event::Revoked(partitions) => {
                    self.assigned.retain(|partition| !partitions.contains(partition));
                    self.events.push(Event::Revoked(partitions));
                }
                other => self.events.push(other),
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
        Event::Reached { partition, offset } => format!("{partition} reached {offset}"),
        Event::Logs(ends) => format!("logs end at {ends:?}"),
        Event::Throttled(time) => format!("throttled for {time:?}"),
        Event::Trouble(trouble) | Event::Away(trouble) => format!("trouble: {trouble:?}"),
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

/// Work that is all there, of a transaction that ends only when it is sealed.
struct Open {
    outputs: List,
    offsets: OffsetMap,
    sealed: (Mutex<bool>, Condvar),
}

impl Open {
    fn new(outputs: List, offsets: OffsetMap) -> Self {
        Self { outputs, offsets, sealed: Default::default() }
    }
}

impl Outputs for Open {
    fn len(&self) -> usize {
        self.outputs.len()
    }
    fn for_each(&self, produce: &mut dyn FnMut(Output<'_>) -> ControlFlow<()>) {
        self.outputs.for_each(produce);
        let sealed = self.sealed.1.wait_timeout_while(self.sealed.0.lock().unwrap(), PATIENCE, |sealed| !*sealed);
        assert!(*sealed.unwrap().0, "nobody has sealed it");
    }
}

impl Flight for Open {
    fn outputs(&self) -> &dyn Outputs {
        self
    }
    fn offsets(&self) -> OffsetMap {
        self.offsets.clone()
    }
    fn seal(&self) {
        *self.sealed.0.lock().unwrap() = true;
        self.sealed.1.notify_all();
    }
}

#[test]
fn records_are_fetched_while_a_transaction_is_under_way_and_its_end_ends_the_wait_for_them() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    shared().produce(&bench.source, &numbers(0..5));
    let mut session = bench.start();
    let mut seen = Seen::default();
    seen.poll(&mut session, "five records", |seen| seen.values().len() == 5);
    let slot = session.topic(&topic(&bench.destination)).unwrap().slot;
    let work = Open::new(List::of(slot, seen.values()), bench.offset(0, 5));
    let (mut events, mut waited) = (Vec::new(), None);
    let flown = session.transact_while(&work, &mut |session| {
        shared().produce(&bench.source, &numbers(5..8));
        let until = Instant::now() + PATIENCE;
        while events.is_empty() {
            assert!(Instant::now() < until, "no records came");
            session.fetch(Duration::from_millis(100), 1000, &mut events);
        }
        assert!(!session.has_ended());
        work.seal();
        let began = Instant::now();
        session.fetch(PATIENCE, 1000, &mut events);
        waited = Some((session.has_ended(), began.elapsed()));
    });
    assert_eq!(flown, Flown::of(committed()));
    let records = |event: &Event| if let Event::Records(batch) = event { batch.len() } else { 0 };
    let fetched: usize = events.iter().map(records).sum();
    assert!(fetched > 0 && fetched <= 3, "{}", names(&events));
    let (has_ended, waited) = waited.unwrap();
    // (what was left of the three ends the wait, too)
    assert!(has_ended || fetched == 3, "{}", names(&events));
    assert!(waited < PATIENCE / 2, "{waited:?}");
    assert_eq!((bench.committed(0), bench.values(Isolation::ReadCommitted).len()), (Some(5), 5));
}

#[test]
fn a_wait_for_records_ends_when_the_session_is_woken() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    let mut session = bench.start();
    let wake = session.waker();
    let mut seen = Seen::default();
    seen.poll(&mut session, "a partition", |seen| !seen.assigned.is_empty());
    let mut waits = |wait: Duration| {
        let began = Instant::now();
        session.poll(wait, 1, &mut Vec::new());
        began.elapsed()
    };
    wait_until(PATIENCE, "nothing else ends a wait", || {
        waits(Duration::from_millis(300)) >= Duration::from_millis(300)
    });
    wake();
    assert!(waits(PATIENCE) < PATIENCE / 2);
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

#[test]
fn a_record_that_is_too_large_is_rejected_by_its_number_and_nothing_is_left() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    shared().produce(&bench.source, &numbers(0..5));
    let mut session = bench.start();
    let mut seen = Seen::default();
    seen.poll(&mut session, "5 records", |seen| seen.values().len() >= 5);
    let slot = session.topic(&topic(&bench.destination)).unwrap().slot;
    let mut outputs = List::of(slot, seen.values());
    outputs.0[3].value = Some(fastrand_bytes(2 << 20));
    match session.transact(&outputs, &bench.offset(0, 5)) {
        Outcome::Rejected { output, message } => {
            assert!(matches!(output, Some(3) | None), "{output:?}");
            assert!(message.contains("MSG_SIZE_TOO_LARGE"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert!(bench.values(Isolation::ReadCommitted).is_empty());
    assert_eq!(bench.committed(0), None.or(Some(0)));
    // Alone it is found for certain; the others commit, by the same session, without it.
    match session.transact(&List(vec![outputs.0[3].clone()]), &bench.offset(0, 5)) {
        Outcome::Rejected { output, .. } => assert_eq!(output, Some(0)),
        other => panic!("{other:?}"),
    }
    outputs.0.remove(3);
    assert_eq!(session.transact(&outputs, &bench.offset(0, 5)), committed());
    assert_eq!(bench.values(Isolation::ReadCommitted), ["0", "1", "2", "4"]);
    assert_eq!(bench.committed(0), Some(5));
    session.close(false, PATIENCE);
}

#[test]
fn a_null_key_on_a_compacted_topic_is_rejected() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    let compacted = unique("compacted");
    shared().create_topic(&compacted, 1, &[("cleanup.policy", "compact")]);
    let mut session = bench.start();
    let slot = session.topic(&topic(&compacted)).unwrap().slot;
    let mut outputs = List::of(slot, (0..10).map(|n| n.to_string()));
    for (nth, own) in outputs.0.iter_mut().enumerate() {
        own.key = (nth != 7).then(|| b"key".to_vec());
    }
    match session.transact(&outputs, &OffsetMap::new()) {
        Outcome::Rejected { output, message } => {
            assert!(matches!(output, Some(7) | None), "{output:?}");
            assert!(message.contains("INVALID_RECORD"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    match session.transact(&List(vec![outputs.0[7].clone()]), &OffsetMap::new()) {
        Outcome::Rejected { output, .. } => assert_eq!(output, Some(0)),
        other => panic!("{other:?}"),
    }
    outputs.0.remove(7);
    assert_eq!(session.transact(&outputs, &OffsetMap::new()), committed());
    session.close(false, PATIENCE);
}

#[test]
fn keys_values_headers_and_timestamps_arrive_as_they_were() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    let mut session = bench.start();
    let slot = session.topic(&topic(&bench.destination)).unwrap().slot;
    let choices: [Option<Vec<u8>>; 4] = [None, Some(vec![]), Some(vec![0, 255, 10]), Some(b"text".to_vec())];
    let mut list = List::default();
    for key in &choices {
        // (without headers, with one, with all)
        for (value, count) in choices.iter().flat_map(|value| [0, 1, choices.len()].map(|count| (value, count))) {
            let headers = choices[..count].iter().map(|value| (b"same name".to_vec(), value.clone())).collect();
            let own =
                Own { topic: slot, partition: 0, key: key.clone(), value: value.clone(), timestamp: 1234, headers };
            list.0.push(own);
        }
    }
    assert_eq!(session.transact(&list, &OffsetMap::new()), committed());
    // Back through the same eyes: what the copy's reader sees is what was written, and its copy is the same again.
    let back = Bench { route: route(&bench.destination, &bench.source, Delivery::ExactlyOnce), ..bench };
    resolve_start(&back.cluster, &back.route, &[topic(&back.destination)]).unwrap();
    let mut reader = back.open(&Instance::Random(unique("process")));
    let mut seen = Seen::default();
    seen.poll(&mut reader, "all records", |seen| seen.values().len() >= list.0.len());
    let all = seen.batches.iter().flat_map(|batch| (0..batch.len()).map(move |nth| (batch, nth)));
    for ((batch, nth), own) in all.zip(&list.0) {
        assert_eq!(batch.key(nth), own.key.as_deref());
        assert_eq!(batch.value(nth), own.value.as_deref());
        assert_eq!(batch.timestamp(nth), 1234);
        let headers: Vec<_> = (0..batch.header_count(nth))
            .map(|h| batch.header(nth, h))
            .map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec)))
            .collect();
        assert_eq!(headers, own.headers);
    }
    // And through the eyes of Kafka's own consumer.
    let console = shared().console_consume(&back.destination, Isolation::ReadCommitted);
    let keys_and_values: Vec<_> = console.into_iter().map(|record| (record.key, record.value)).collect();
    let written: Vec<_> = list.0.iter().map(|own| (own.key.clone(), own.value.clone())).collect();
    assert_eq!(keys_and_values, written);
    session.close(false, PATIENCE);
    reader.close(false, PATIENCE);
}

/// Records as they were fetched.
struct AsTheyCame {
    topic: u16,
    items: Vec<Arc<Items>>,
}

impl Outputs for AsTheyCame {
    fn len(&self) -> usize {
        self.items.iter().map(|items| items.list.len()).sum()
    }
    fn for_each(&self, produce: &mut dyn FnMut(Output<'_>) -> ControlFlow<()>) {
        let all = self.items.iter().flat_map(|items| items.list.iter().map(move |item| (items, item)));
        let _ = all.into_iter().try_for_each(|(items, item)| {
            produce(Output {
                topic: self.topic,
                partition: 0,
                key: items.key(item),
                value: items.value(item),
                timestamp: items.timestamp(item),
                headers: Headers::Of(items, item),
                keeper: Some(items),
            })
        });
    }
}

#[test]
fn headers_go_out_as_they_came_in_however_often_and_whoever_has_looked_at_them() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    let two = |n: usize| Record::new("k", n.to_string()).header("a", "1").header("b", format!("{n}!")).to(0);
    let none = |n: usize| Record::new("k", n.to_string()).to(0);
    let written: Vec<_> = (0..20)
        .map(|n| match n % 4 {
            0 => none(n),
            // (of these it cannot be seen without parsing that they have none)
            1 => Record { value: (n % 8 == 1).then(Vec::new), ..none(n) },
            _ => two(n),
        })
        .collect();
    shared().produce(&bench.source, &written);
    let mut session = bench.start();
    let mut seen = Seen::default();
    seen.poll(&mut session, "all records", |seen| seen.values().len() == written.len());
    let slot = session.topic(&topic(&bench.destination)).unwrap().slot;
    let items = seen.batches.iter().map(|batch| Arc::new(Items::of(Arc::clone(batch), 0..batch.len()))).collect();
    let list = AsTheyCame { topic: slot, items };
    // Nobody has looked at them; they were handed over once; they have been looked at.
    let look = |batch: &Arc<dyn SourceBatch>| (0..batch.len()).map(|nth| batch.header_count(nth)).sum::<usize>();
    assert_eq!(session.transact(&list, &OffsetMap::new()), committed());
    assert_eq!(session.transact(&list, &OffsetMap::new()), committed());
    let headers: usize = written.iter().map(|record| record.headers.len()).sum();
    assert_eq!(seen.batches.iter().map(look).sum::<usize>(), headers);
    assert_eq!(session.transact(&list, &OffsetMap::new()), committed());
    let thrice: Vec<_> = (0..3).flat_map(|_| &written).map(|record| (&record.value, &record.headers)).collect();
    bench.values(Isolation::ReadCommitted);
    let arrived = shared().kcat_consume(&bench.destination, Isolation::ReadCommitted);
    assert_eq!(arrived.iter().map(|record| (&record.value, &record.headers)).collect::<Vec<_>>(), thrice);
    session.close(false, PATIENCE);
}

#[test]
fn pausing_and_resuming_loses_and_doubles_nothing() {
    let bench = Bench::new(2, Delivery::ExactlyOnce);
    let records: Vec<_> = (0..2000).map(|n| Record::new("k", n.to_string()).to(n % 2)).collect();
    shared().produce(&bench.source, &records);
    let mut session = bench.start();
    let mut seen = Seen::default();
    for step in 1..=8 {
        seen.poll(&mut session, "some records", |seen| seen.values().len() >= step * 200);
        let both = [bench.at(0), bench.at(1)];
        session.pause(&both);
        let before = seen.values().len();
        let mut events = Vec::new();
        session.poll(Duration::from_millis(50), 100, &mut events);
        let delivers = events.iter().any(|event| matches!(event, Event::Records(_)));
        assert!(!delivers, "a paused partition delivers nothing: {}", names(&events));
        assert_eq!(seen.values().len(), before);
        session.resume(&both);
    }
    seen.poll(&mut session, "all records", |seen| seen.values().len() >= 2000);
    for partition in [bench.at(0), bench.at(1)] {
        assert_eq!(seen.offsets(&partition), (0..1000).collect::<Vec<_>>());
    }
    session.close(false, PATIENCE);
}

#[test]
fn a_partition_that_is_paused_and_resumed_at_its_end_delivers_the_record_that_comes_next() {
    let bench = Bench::new(2, Delivery::ExactlyOnce);
    let first = shared().produce(&bench.source, &[Record::new("k", "first").to(0)]);
    let mut session = bench.start();
    let mut seen = Seen::default();
    seen.poll(&mut session, "the first", |seen| seen.values() == ["first"] && seen.assigned.len() == 2);
    // (one at the end of a log, one at the end of an empty log, both for some fetches)
    let until = Instant::now() + Duration::from_secs(2);
    seen.poll(&mut session, "time passes", |_| Instant::now() > until);
    let both = [bench.at(0), bench.at(1)];
    session.pause(&both);
    shared().produce(&bench.source, &[Record::new("k", "second").to(0)]);
    seen.poll(&mut session, "paused", |_| Instant::now() > until + Duration::from_secs(1));
    session.resume(&both);
    shared().produce(&bench.source, &[Record::new("k", "third").to(1)]);
    seen.poll(&mut session, "what came meanwhile and then", |seen| seen.values().len() == 3);
    assert_eq!(seen.offsets(&bench.at(0)), [first[0].1, first[0].1 + 1]);
    seen.events.retain(|event| !matches!(event, Event::Assigned(_) | Event::Reached { .. } | Event::Logs(_)));
    assert!(seen.events.is_empty(), "{}", names(&seen.events));
    session.close(false, PATIENCE);
}

#[test]
fn an_unknown_topic_is_known_to_be_unknown_at_once_and_not_created() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    let mut session = bench.start();
    let nowhere = unique("nowhere");
    let began = Instant::now();
    assert_eq!(session.topic(&topic(&nowhere)), Err(TopicError::Unknown));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(shared().partitions(&nowhere), None);
    session.close(false, PATIENCE);
}

fn fastrand_bytes(len: usize) -> Vec<u8> {
    std::iter::repeat_with(|| fastrand::u8(..)).take(len).collect()
}

#[test]
fn a_start_does_not_wait_for_offsets_that_a_predecessor_has_left_in_an_open_transaction() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    shared().produce(&bench.source, &numbers(0..5));
    let source = [topic(&bench.source)];
    resolve_start(&bench.cluster, &bench.route, &source).unwrap();
    let _open = shared().leave_offsets_pending(bench.group(), &bench.source, 3);
    let began = Instant::now();
    assert_eq!(resolve_start(&bench.cluster, &bench.route, &source).unwrap(), Started::Before);
    // (the transaction's own timeout is a minute, the wait for an answer 20 s)
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn a_new_group_starts_where_the_route_says_and_only_once() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    let records: Vec<_> = (1..=10).map(|n| Record::new("k", n.to_string()).at(n * 1_000_000)).collect();
    shared().produce(&bench.source, &records);
    let source = [topic(&bench.source)];
    for (start, expected) in [
        (Start::Earliest, 0),
        (Start::Latest, 10),
        (Start::At(4_000_000), 3),
        (Start::At(4_000_001), 4),
        (Start::At(i64::from(u32::MAX) * 1000), 10),
    ] {
        let mut route = route(&bench.source, &bench.destination, Delivery::ExactlyOnce);
        route.source.start = start;
        let started = resolve_start(&bench.cluster, &route, &source).unwrap();
        assert_eq!(started, Started::Now(bench.offset(0, expected)), "{start:?}");
        assert_eq!(shared().committed(route.source.group.as_str(), &bench.source)[&0], expected);
        route.source.start = Start::Earliest;
        assert_eq!(resolve_start(&bench.cluster, &route, &source).unwrap(), Started::Before, "{start:?}");
    }
}

#[test]
fn partitions_that_appear_later_are_read_from_their_beginning() {
    let mut bench = Bench::new(1, Delivery::ExactlyOnce);
    bench.route.source.start = Start::Latest;
    bench.route.source.consumer =
        [("topic.metadata.refresh.interval.ms".to_owned(), PropertyValue::plain("1000"))].into();
    shared().produce(&bench.source, &numbers(0..5));
    let mut session = bench.start();
    let mut seen = Seen::default();
    seen.poll(&mut session, "the partition", |seen| !seen.assigned.is_empty());
    shared().add_partitions(&bench.source, 2);
    shared().produce(&bench.source, &[Record::new("k", "late").to(1)]);
    seen.poll(&mut session, "the late record", |seen| !seen.batches.is_empty());
    assert_eq!(seen.values(), ["late"]);
    session.close(false, PATIENCE);
}

/// A source of which a group has read 10 of 100 records, and the first 50 are gone.
fn with_lost_offsets(policy: OnOffsetLost) -> (Bench, Session) {
    let mut bench = Bench::new(1, Delivery::ExactlyOnce);
    bench.route.source.on_offset_lost = policy;
    shared().produce(&bench.source, &numbers(0..100));
    let mut session = bench.start();
    Seen::default().poll(&mut session, "records", |seen| seen.values().len() >= 10);
    assert_eq!(session.transact(&List::default(), &bench.offset(0, 10)), committed());
    session.close(false, PATIENCE);
    shared().delete_records(&bench.source, 0, 50);
    let session = bench.open(&Instance::Random(unique("process")));
    (bench, session)
}

#[test]
fn a_lost_offset_stops_the_partition() {
    let (_bench, mut session) = with_lost_offsets(OnOffsetLost::Stop);
    let mut seen = Seen::default();
    seen.poll(&mut session, "the loss", |seen| seen.events.iter().any(|e| matches!(e, Event::OffsetLost { .. })));
    assert!(seen.batches.is_empty());
    assert!(names(&seen.events).contains("offset 10 cannot be read, the log holds 50 to 100"));
    session.close(false, PATIENCE);
}

#[test]
fn an_accepted_loss_is_counted_and_the_partition_goes_on() {
    let (bench, mut session) = with_lost_offsets(OnOffsetLost::Earliest);
    let mut seen = Seen::default();
    seen.poll(&mut session, "the rest", |seen| seen.values().len() >= 50);
    let reset = seen.events.iter().find_map(|event| match event {
        Event::OffsetReset { to, lost, .. } => Some((*to, *lost)),
        _ => None,
    });
    assert_eq!(reset, Some((50, 40)));
    assert_eq!(seen.offsets(&bench.at(0)), (50..100).collect::<Vec<_>>());
    assert_eq!(bench.committed(0), Some(50));
    session.close(false, PATIENCE);
}

#[test]
fn at_least_once_commits_what_is_acknowledged() {
    let bench = Bench::new(1, Delivery::AtLeastOnce);
    shared().produce(&bench.source, &numbers(0..5));
    let mut session = bench.start();
    let mut seen = Seen::default();
    seen.poll(&mut session, "5 records", |seen| seen.values().len() >= 5);
    let slot = session.topic(&topic(&bench.destination)).unwrap().slot;
    let mut outputs = List::of(slot, seen.values());
    let good = outputs.0[2].value.replace(fastrand_bytes(2 << 20));
    assert!(matches!(session.transact(&outputs, &bench.offset(0, 5)), Outcome::Rejected { .. }));
    assert_eq!(bench.committed(0), Some(0), "not everything was acknowledged");
    outputs.0[2].value = good;
    assert_eq!(session.transact(&outputs, &bench.offset(0, 5)), committed());
    assert_eq!(bench.committed(0), Some(5));
    let values = bench.values(Isolation::ReadCommitted);
    assert!(values.ends_with(&["0", "1", "2", "3", "4"].map(str::to_owned)), "{values:?}");
    session.close(false, PATIENCE);
}

#[test]
fn at_most_once_counts_what_fails_after_the_commit() {
    let bench = Bench::new(1, Delivery::AtMostOnce);
    shared().produce(&bench.source, &numbers(0..5));
    let mut session = bench.start();
    let mut seen = Seen::default();
    seen.poll(&mut session, "5 records", |seen| seen.values().len() >= 5);
    let slot = session.topic(&topic(&bench.destination)).unwrap().slot;
    assert_eq!(session.transact(&List::of(slot, seen.values()), &bench.offset(0, 5)), committed());
    assert_eq!(bench.committed(0), Some(5));
    assert_eq!(bench.values(Isolation::ReadCommitted), seen.values());
    let mut outputs = List::of(slot, ["too large".to_owned()]);
    outputs.0[0].value = Some(fastrand_bytes(2 << 20));
    assert_eq!(session.transact(&outputs, &bench.offset(0, 5)), Outcome::Committed { lost: 1 });
    session.close(false, PATIENCE);
}

#[test]
fn a_pattern_selects_neither_internal_nor_dead_letter_nor_own_topics() {
    let bench = Bench::new(1, Delivery::ExactlyOnce);
    let dead = unique("source-dead");
    shared().create_topic(&dead, 1, &[]);
    let mut route = route(&bench.source, &bench.destination, Delivery::ExactlyOnce);
    route.source.topics = vec![TopicSelector::Pattern(regex::Regex::new("^(?:.*)$").unwrap())];
    let topics = bench.cluster.refresh_now(PATIENCE).unwrap();
    assert!(topics.by_name.keys().any(|name| name.as_str().starts_with("__")), "there are internal topics");
    let left_out = LeftOut { destinations: route.destinations.clone(), dead_letters: Arc::new([topic(&dead)].into()) };
    let selected = source_topics(&route.source, &topics, &left_out);
    assert!(selected.contains(&topic(&bench.source)));
    assert!(!selected.contains(&topic(&dead)));
    assert!(!selected.contains(&topic(&bench.destination)));
    assert!(!selected.iter().any(|name| name.as_str().starts_with("__")));
}

/// What a row of the table of errors must lead to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expected {
    Committed,
    Aborted(TroubleKind),
    Rejected,
    Unknown,
}

fn kind_of(outcome: &Outcome) -> Option<Expected> {
    Some(match outcome {
        Outcome::Committed { lost: 0 } => Expected::Committed,
        Outcome::Aborted(trouble) => Expected::Aborted(trouble.kind),
        Outcome::Rejected { .. } => Expected::Rejected,
        Outcome::Unknown(_) => Expected::Unknown,
        _ => return None,
    })
}

/// A session on a mock with this many partitions of `source`, all of them assigned, and a topic `destination`.
fn on_a_mock(partitions: i32, transaction_timeout_ms: &str) -> (MockCluster, Session, Seen) {
    let mock = MockCluster::start(1).unwrap();
    mock.create_topic("source", partitions).unwrap();
    mock.create_topic("destination", 1).unwrap();
    let mut connection = connection(&mock.bootstrap());
    connection.producer = [("transaction.timeout.ms".to_owned(), PropertyValue::plain(transaction_timeout_ms))].into();
    let cluster = Cluster::connect(&connection).unwrap();
    let route = route("source", "destination", Delivery::ExactlyOnce);
    let mut session = session(&cluster, &route, &Instance::Random(unique("process"))).unwrap();
    let mut seen = Seen::default();
    seen.poll(&mut session, "the partitions", |seen| seen.assigned.len() == partitions as usize);
    (mock, session, seen)
}

#[test]
fn each_error_of_a_transaction_has_its_outcome_and_the_next_transaction_commits() {
    const PRODUCE: i16 = 0;
    const ADD_PARTITIONS: i16 = 24;
    const ADD_OFFSETS: i16 = 25;
    const END: i16 = 26;
    const OFFSETS: i16 = 28;
    use Expected::*;
    use TroubleKind::*;
    let table: &[(&str, i16, &[i16], Expected)] = &[
        ("record too large", PRODUCE, &[10], Rejected),
        ("invalid record", PRODUCE, &[87], Rejected),
        ("timestamp out of bounds", PRODUCE, &[32], Rejected),
        ("may not write", PRODUCE, &[29], Aborted(Denied)),
        ("too few replicas, then enough", PRODUCE, &[19, 19], Committed),
        ("leader moves", PRODUCE, &[6, 6], Committed),
        ("produce fenced", PRODUCE, &[47], Aborted(Passing)),
        ("previous transaction still ending", ADD_PARTITIONS, &[51, 51, 51], Committed),
        ("coordinator moves", ADD_PARTITIONS, &[16, 15, 14], Committed),
        ("may not write, at registration", ADD_PARTITIONS, &[29], Aborted(Denied)),
        ("fenced at registration", ADD_PARTITIONS, &[47], Aborted(Passing)),
        ("offsets: previous transaction", ADD_OFFSETS, &[51], Committed),
        ("offsets: may not use the group", ADD_OFFSETS, &[30], Aborted(Denied)),
        ("offsets: old generation", OFFSETS, &[22], Aborted(Moved)),
        ("offsets: unknown member", OFFSETS, &[25], Aborted(Moved)),
        ("offsets: rebalance", OFFSETS, &[27], Aborted(Moved)),
        ("offsets: coordinator away", OFFSETS, &[15], Committed),
        ("offsets: fenced", OFFSETS, &[47], Aborted(Passing)),
        ("offsets: group authorization", OFFSETS, &[30], Aborted(Denied)),
        ("commit: coordinator moves", END, &[16, 15], Committed),
        ("commit: fenced", END, &[47], Unknown),
        ("commit: invalid state", END, &[48], Unknown),
        ("commit: transactional id authorization", END, &[53], Unknown),
    ];
    let (mock, mut session, mut seen) = on_a_mock(1, "8000");
    let slot = session.topic(&topic("destination")).unwrap().slot;
    let offsets = OffsetMap::from([(TopicPartition { topic: topic("source"), partition: 0 }, 1)]);
    let mut wrong = Vec::new();
    for (what, api, codes, expected) in table {
        mock.fail_next(*api, codes);
        let began = Instant::now();
        let outcome = session.transact(&List::of(slot, ["one".to_owned()]), &offsets);
        mock.fail_no_more(*api);
        println!("{what}: {outcome:?} in {:?}", began.elapsed());
        if kind_of(&outcome) != Some(*expected) {
            wrong.push(format!("{what}: expected {expected:?}, got {outcome:?}"));
        }
        if matches!(outcome, Outcome::Unknown(_)) {
            // The mock forgets offsets that are sent in a transaction: so this one was not committed.
            let settled = session.settle(&offsets);
            assert_eq!(kind_of(&settled), Some(Aborted(Passing)), "{what}: {settled:?}");
        }
        // A poll as the worker makes one; and the same work again.
        session.poll(Duration::ZERO, 1, &mut seen.events);
        let again = session.transact(&List::of(slot, ["one".to_owned()]), &offsets);
        if again != committed() {
            wrong.push(format!("after {what}: {again:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    session.close(false, PATIENCE);
}

#[test]
fn offsets_for_which_no_coordinator_is_found_hold_a_transaction_up_no_longer_than_its_timeout() {
    const FIND_COORDINATOR: i16 = 10;
    const COORDINATOR_NOT_AVAILABLE: i16 = 15;
    let (mock, mut session, mut seen) = on_a_mock(1, "2000");
    let slot = session.topic(&topic("destination")).unwrap().slot;
    let offsets = OffsetMap::from([(TopicPartition { topic: topic("source"), partition: 0 }, 1)]);
    // The producer has not sent offsets yet, so it asks who takes them; the client library minds no timeout there.
    mock.fail_next(FIND_COORDINATOR, &[COORDINATOR_NOT_AVAILABLE; 1000]);
    let (outcome, took) = std::thread::scope(|scope| {
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let mock = &mock;
        // (the next producer asks the same, and need not wait for all of its own time)
        scope.spawn(move || {
            let _ = end.recv_timeout(Duration::from_secs(4));
            mock.fail_no_more(FIND_COORDINATOR);
        });
        let began = Instant::now();
        let outcome = session.transact(&List::of(slot, ["one".to_owned()]), &offsets);
        drop(ended);
        (outcome, began.elapsed())
    });
    println!("{outcome:?} in {took:?}");
    match outcome {
        Outcome::Aborted(trouble) => assert_eq!(trouble.code, "_TIMED_OUT", "{trouble:?}"),
        other => panic!("{other:?}"),
    }
    session.poll(Duration::ZERO, 1, &mut seen.events);
    assert_eq!(session.transact(&List::of(slot, ["one".to_owned()]), &offsets), committed());
    session.close(false, PATIENCE);
}

#[test]
fn what_a_producer_that_was_given_up_has_left_open_is_ended_though_there_is_nothing_to_send() {
    const INIT_PRODUCER_ID: i16 = 22;
    const OFFSETS: i16 = 28;
    const FENCED: i16 = 47;
    const COORDINATOR_NOT_AVAILABLE: i16 = 15;
    let (mock, mut session, mut seen) = on_a_mock(1, "2000");
    let slot = session.topic(&topic("destination")).unwrap().slot;
    let offsets = OffsetMap::from([(TopicPartition { topic: topic("source"), partition: 0 }, 1)]);
    // The producer fails for good within its transaction, and for now there cannot be another.
    mock.fail_next(OFFSETS, &[FENCED]);
    mock.fail_next(INIT_PRODUCER_ID, &[COORDINATOR_NOT_AVAILABLE; 1000]);
    let outcome = session.transact(&List::of(slot, ["one".to_owned()]), &offsets);
    assert!(matches!(outcome, Outcome::Aborted(_)), "{outcome:?}");
    mock.fail_no_more(INIT_PRODUCER_ID);
    mock.count_requests();
    seen.poll(&mut session, "another producer", |_| mock.requests(INIT_PRODUCER_ID) > 0);
    // (one that is ready is left alone)
    let ready = mock.requests(INIT_PRODUCER_ID);
    assert_eq!(session.transact(&List::of(slot, ["one".to_owned()]), &offsets), committed());
    assert_eq!(mock.requests(INIT_PRODUCER_ID), ready);
    session.close(false, PATIENCE);
}

#[test]
fn a_partition_of_which_nobody_was_told_where_it_goes_on_is_asked_about_until_somebody_is() {
    const OFFSET_FETCH: i16 = 9;
    const NOT_COORDINATOR: i16 = 16;
    // It is asked again after 5 s.
    const BOUND: Duration = Duration::from_secs(12);
    for strategy in ["cooperative-sticky", "range"] {
        let mock = MockCluster::start(1).unwrap();
        mock.create_topic("source", 2).unwrap();
        mock.create_topic("destination", 1).unwrap();
        let writer = mock.writer(&topic("source")).unwrap();
        (0..10).for_each(|n: i32| writer.send(n.to_string().as_bytes(), n.to_string().as_bytes(), 1).unwrap());
        let cluster = Cluster::connect(&connection(&mock.bootstrap())).unwrap();
        let mut route = route("source", "destination", Delivery::ExactlyOnce);
        let property = "partition.assignment.strategy".to_owned();
        route.source.consumer = [(property, PropertyValue::plain(strategy))].into();
        // The session when the group hands it the partitions; then the client, which asks no more after this answer.
        mock.fail_next(OFFSET_FETCH, &[NOT_COORDINATOR; 2]);
        let began = Instant::now();
        let mut session = session(&cluster, &route, &Instance::Random(unique("process"))).unwrap();
        let mut seen = Seen::default();
        // Where assignment is eager a single partition cannot be started: the session ends, for the next to be told.
        let ends = strategy == "range";
        let is_end = |event: &Event| matches!(event, Event::Broken(trouble) if trouble.kind == TroubleKind::Moved);
        seen.poll(&mut session, strategy, |seen| match ends {
            true => seen.events.iter().any(is_end),
            false => seen.values().len() == 10,
        });
        println!("{strategy}: {:?}", began.elapsed());
        assert!(began.elapsed() < BOUND, "{strategy}: {:?}", began.elapsed());
        assert_eq!(seen.events.iter().any(is_end), ends, "{strategy}: {}", names(&seen.events));
        session.close(false, PATIENCE);
    }
}

#[test]
fn partitions_that_have_lost_their_offsets_do_not_keep_the_group_waiting_where_the_broker_is_slow() {
    const FETCH: i16 = 1;
    const OFFSET_OUT_OF_RANGE: i16 = 1;
    const PARTITIONS: i32 = 8;
    let (mock, mut session, _) = on_a_mock(PARTITIONS, "15000");
    // Each partition takes two answers, so that together they would take 16 s.
    mock.delay(1, 1000);
    mock.fail_next(FETCH, &[OFFSET_OUT_OF_RANGE; 20]);
    let (began, mut lost, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while lost < 3 {
        assert!(began.elapsed() < PATIENCE * 2, "{lost} lost offsets are told");
        let (poll, mut events) = (Instant::now(), Vec::new());
        session.poll(Duration::from_millis(100), 1000, &mut events);
        longest = longest.max(poll.elapsed());
        lost +=
            events.iter().filter(|event| matches!(event, Event::OffsetLost { .. } | Event::OffsetReset { .. })).count();
    }
    assert!(longest < Duration::from_secs(10), "one poll took {longest:?}");
    mock.delay(1, 0);
    session.close(false, PATIENCE);
}

#[test]
fn a_cluster_that_is_not_there_is_told_in_time_with_its_address() {
    let cluster = Cluster::connect(&connection("127.0.0.1:1")).unwrap();
    let began = Instant::now();
    let trouble = cluster.refresh_now(Duration::from_secs(2)).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(trouble.kind, TroubleKind::Passing);
    assert!(trouble.message.contains("127.0.0.1:1"), "{trouble:?}");
    let route = route("source", "destination", Delivery::ExactlyOnce);
    assert!(session(&cluster, &route, &Instance::Random(unique("process"))).is_err());
}

#[test]
fn a_topic_that_was_deleted_and_created_again_stops_its_partitions() {
    let mut bench = Bench::new(1, Delivery::ExactlyOnce);
    shared().produce(&bench.source, &numbers(0..10));
    let mut session = bench.start();
    Seen::default().poll(&mut session, "records", |seen| seen.values().len() >= 10);
    let is_loss = |event: &Event| matches!(event, Event::OffsetLost { .. });
    shared().delete_topic(&bench.source);
    shared().create_topic(&bench.source, 1, &[]);
    shared().produce(&bench.source, &numbers(100..120));
    // An offset of the old topic, committed when there is a new one.
    assert_eq!(session.transact(&List::default(), &bench.offset(0, 5)), committed());
    // The session that has read the old one finds out,
    let mut seen = Seen::default();
    seen.poll(&mut session, "the loss", |seen| seen.events.iter().any(is_loss));
    session.close(false, PATIENCE);

    // and so does the next.
    let mut session = bench.open(&Instance::Random(unique("process")));
    let mut seen = Seen::default();
    seen.poll(&mut session, "the loss", |seen| seen.events.iter().any(is_loss));
    assert!(seen.batches.is_empty());
    assert!(names(&seen.events).contains("deleted and created again"), "{}", names(&seen.events));
    session.close(false, PATIENCE);

    // One that is told of the offset late, too.
    let open = shared().leave_offsets_pending(bench.group(), &bench.source, 6);
    let mut session = bench.open(&Instance::Random(unique("process")));
    let mut seen = Seen::default();
    seen.poll(&mut session, "the partition", |seen| !seen.assigned.is_empty());
    assert!(!names(&seen.events).contains("reached"), "the offset came with the partition: {}", names(&seen.events));
    open.end(Ending::Abort);
    seen.poll(&mut session, "the loss", |seen| seen.events.iter().any(is_loss));
    assert!(seen.batches.is_empty());
    assert!(names(&seen.events).contains("deleted and created again"), "{}", names(&seen.events));
    session.close(false, PATIENCE);

    bench.route.source.on_offset_lost = OnOffsetLost::Earliest;
    let mut session = bench.open(&Instance::Random(unique("process")));
    let mut seen = Seen::default();
    seen.poll(&mut session, "the new topic's records", |seen| seen.values().len() >= 20);
    assert_eq!(seen.offsets(&bench.at(0)), (0..20).collect::<Vec<_>>());
    session.close(false, PATIENCE);
}
