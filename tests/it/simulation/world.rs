//! The simulated world: a source log, a broker with transactions, plugins that misbehave by what a record says.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace::model::{
    Digest, Fault, FaultCode, Field, Item, Items, Offset, OffsetMap, PluginName, SourceBatch, Span, TopicName,
    TopicPartition,
};
use millrace::pipeline::ports::{
    Broker, CallError, CallOutput, Event, Outcome, Outputs, Step, TopicError, TopicInfo, Trouble, TroubleKind, Usage,
    Verdict,
};
use millrace::pipeline::report::{Fate, Health, Report, Tally};
use millrace::pipeline::task::Task;
use millrace::pipeline::worker::Order;
use millrace::policy::{Disposition, OnError, partition_for_key};

const PARTITIONS: i32 = 4;
const RECORDS: usize = 60;
const OUT: u16 = 0;
const DEAD: u16 = 1;

/// Key, value and what is done to it.
type Record = (Vec<u8>, Vec<u8>, Kind);

/// What is done to a record, written in its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Plain,
    Drop,
    Fan,
    Refuse,
    Trap,
    RetryOnce,
    RetryForEver,
    TooLarge,
}

const KINDS: [Kind; 8] =
    [Kind::Plain, Kind::Drop, Kind::Fan, Kind::Refuse, Kind::Trap, Kind::RetryOnce, Kind::RetryForEver, Kind::TooLarge];

pub(super) struct World {
    rng: fastrand::Rng,
    logs: BTreeMap<TopicPartition, Vec<Record>>,
    committed: OffsetMap,
    /// What a read_committed reader sees: topic, partition, value.
    visible: Vec<(u16, i32, Vec<u8>)>,
    then: Disposition,
    /// Nothing goes wrong but what records say.
    pub(super) calm: bool,
    /// Makes the task of a generation: the configuration changes now and then.
    pub(super) reload: Option<Box<dyn Fn(u64) -> Task + Send>>,
    /// The generations of the tasks that were handed out, and of those whose outputs were given to the broker.
    pub(super) handed_out: u64,
    pub(super) met: BTreeSet<u64>,
    transactions: u32,
    idle_polls: u32,
}

impl World {
    pub(super) fn new(seed: u64, on_error: &OnError) -> Arc<Mutex<Self>> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let topic = TopicName::new("in").unwrap();
        let logs = (0..PARTITIONS).map(|partition| {
            let records = (0..RECORDS).map(|offset| {
                let kind = if rng.u8(0..10) < 7 { Kind::Plain } else { KINDS[rng.usize(0..KINDS.len())] };
                let key = format!("k{}", rng.u8(0..20)).into_bytes();
                (key, format!("{partition}/{offset}/{kind:?}").into_bytes(), kind)
            });
            (TopicPartition { topic: topic.clone(), partition }, records.collect())
        });
        let logs = logs.collect();
        Arc::new(Mutex::new(Self {
            rng,
            logs,
            committed: OffsetMap::new(),
            visible: Vec::new(),
            then: on_error.then.clone(),
            calm: false,
            reload: None,
            handed_out: 1,
            met: BTreeSet::new(),
            transactions: 0,
            idle_polls: 0,
        }))
    }

    fn chance(&mut self, percent: u8) -> bool {
        !self.calm && self.rng.u8(0..100) < percent
    }

    pub(super) fn refuses(&self) -> bool {
        self.logs.values().flatten().any(|(.., kind)| *kind == Kind::TooLarge)
    }

    fn is_at_fault(kind: Kind) -> bool {
        matches!(kind, Kind::Refuse | Kind::Trap | Kind::RetryForEver | Kind::TooLarge)
    }

    /// How far a partition gets: to its end, or to the first record at fault where faults stop it.
    fn end_of(&self, records: &[Record]) -> usize {
        let stop = records.iter().position(|(.., kind)| Self::is_at_fault(*kind));
        match self.then {
            Disposition::Stop => stop.unwrap_or(records.len()),
            Disposition::Skip | Disposition::DeadLetter(_) => records.len(),
        }
    }

    fn is_done(&self) -> bool {
        self.logs.iter().all(|(partition, records)| {
            self.committed.get(partition).copied().unwrap_or(0) as usize >= self.end_of(records)
        })
    }

    pub(super) fn check(&self, seed: u64, news: &News) {
        for (partition, records) in &self.logs {
            let end = self.end_of(records);
            let committed = self.committed.get(partition).copied().unwrap_or(0) as usize;
            assert_eq!(committed, end, "seed {seed}: committed offset of {partition}");
            let mut expected: BTreeMap<(u16, i32), Vec<Vec<u8>>> = BTreeMap::new();
            for (key, value, kind) in &records[..end] {
                let out = (OUT, partition_for_key(key, PARTITIONS));
                let copies = match kind {
                    Kind::Plain | Kind::RetryOnce => 1,
                    Kind::Fan => 3,
                    Kind::Drop => 0,
                    _ => {
                        if matches!(self.then, Disposition::DeadLetter(_)) {
                            let dead = (DEAD, partition_for_key(key, PARTITIONS));
                            expected.entry(dead).or_default().push(value.clone());
                        }
                        0
                    }
                };
                expected.entry(out).or_default().extend((0..copies).map(|_| value.clone()));
            }
            let prefix = format!("{}/", partition.partition).into_bytes();
            for place in expected.keys().copied().chain([(OUT, 0), (DEAD, 0)]).collect::<BTreeSet<_>>() {
                let seen: Vec<_> = self
                    .visible
                    .iter()
                    .filter(|(topic, to, value)| (*topic, *to) == place && value.starts_with(&prefix))
                    .map(|(.., value)| String::from_utf8_lossy(value).into_owned())
                    .collect();
                let expected = expected.get(&place).cloned().unwrap_or_default();
                let expected: Vec<_> =
                    expected.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect();
                assert_eq!(seen, expected, "seed {seed}: {partition} in topic and partition {place:?}");
            }
        }
        let consumed: u64 =
            news.tallies.iter().flat_map(|tally| &tally.consumed).map(|(_, [records, _])| records).sum();
        let sessions_lost_a_commit = news.consumed_may_miss;
        let all: usize = self.logs.values().map(|records| self.end_of(records)).sum();
        assert!(
            consumed as usize == all || (sessions_lost_a_commit && (consumed as usize) < all),
            "seed {seed}: counted {consumed} of {all} records consumed"
        );
        assert!(self.transactions > 0, "seed {seed}: nothing was committed");
    }
}

struct Fetched {
    partition: TopicPartition,
    first: Offset,
    records: Vec<Record>,
}

impl SourceBatch for Fetched {
    fn topic_partition(&self) -> &TopicPartition {
        &self.partition
    }
    fn len(&self) -> usize {
        self.records.len()
    }
    fn offset(&self, index: usize) -> Offset {
        self.first + index as Offset
    }
    fn timestamp(&self, _: usize) -> i64 {
        1_500_000_000_000
    }
    fn key(&self, index: usize) -> Option<&[u8]> {
        Some(&self.records[index].0)
    }
    fn value(&self, index: usize) -> Option<&[u8]> {
        Some(&self.records[index].1)
    }
    fn header_count(&self, _: usize) -> usize {
        0
    }
    fn header(&self, _: usize, _: usize) -> (&[u8], Option<&[u8]>) {
        unreachable!("there are none")
    }
}

pub(super) struct SimulatedBroker {
    world: Arc<Mutex<World>>,
    orders: Sender<Order>,
    assigned: BTreeMap<TopicPartition, Offset>,
    paused: BTreeSet<TopicPartition>,
    /// What `settle` will find.
    hidden: Option<bool>,
    told_to_drain: bool,
}

fn trouble(kind: TroubleKind, code: &str) -> Trouble {
    Trouble { code: code.into(), message: "simulated".into(), kind }
}

impl SimulatedBroker {
    pub(super) fn join(world: &Arc<Mutex<World>>, orders: Sender<Order>) -> Self {
        Self {
            world: Arc::clone(world),
            orders,
            assigned: BTreeMap::new(),
            paused: BTreeSet::new(),
            hidden: None,
            told_to_drain: false,
        }
    }

    fn reload(&self, world: &mut World) {
        if world.reload.is_some() && !self.told_to_drain && world.chance(5) {
            world.handed_out += 1;
            let task = world.reload.as_ref().map(|task| task(world.handed_out));
            self.orders.send(Order::Swap(Box::new(task.expect("it was there a line ago")))).unwrap();
        }
    }

    fn rebalance(&mut self, world: &mut World, events: &mut Vec<Event>) {
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for partition in world.logs.keys().cloned().collect::<Vec<_>>() {
            let has = self.assigned.contains_key(&partition);
            if has && world.chance(5) {
                self.assigned.remove(&partition);
                self.paused.remove(&partition);
                gone.push(partition);
            } else if !has && (world.calm || world.rng.bool()) {
                let from = world.committed.get(&partition).copied().unwrap_or(0);
                self.assigned.insert(partition.clone(), from);
                come.push(partition);
            }
        }
        if !gone.is_empty() {
            events.push(Event::Revoked(gone));
        }
        if !come.is_empty() {
            events.push(Event::Assigned(come));
        }
    }

    fn commit(world: &mut World, written: Vec<(u16, i32, Vec<u8>)>, offsets: &OffsetMap) {
        world.transactions += 1;
        world.visible.extend(written);
        for (partition, offset) in offsets {
            let before = world.committed.insert(partition.clone(), *offset).unwrap_or(0);
            assert!(before <= *offset, "{partition}: the committed offset went back from {before} to {offset}");
        }
    }
}

impl Broker for SimulatedBroker {
    fn poll(&mut self, _: Duration, records: usize, events: &mut Vec<Event>) {
        let world = Arc::clone(&self.world);
        let mut world = world.lock().unwrap();
        world.idle_polls += 1;
        if world.is_done() && !self.told_to_drain {
            self.told_to_drain = true;
            self.orders.send(Order::Drain { leave: false, within: Duration::from_secs(5) }).unwrap();
        }
        assert!(world.idle_polls < 200_000, "no progress");
        self.reload(&mut world);
        self.rebalance(&mut world, events);
        let mut left = records;
        for (partition, position) in &mut self.assigned {
            let log = &world.logs[partition];
            let most = left.min(log.len() - *position as usize);
            if most == 0 || self.paused.contains(partition) {
                continue;
            }
            let count = fastrand_within(&mut world.rng.clone(), most);
            world.rng.u8(..);
            if count == 0 {
                continue;
            }
            let log = &world.logs[partition];
            let taken = log[*position as usize..*position as usize + count].to_vec();
            let batch = Fetched { partition: partition.clone(), first: *position, records: taken };
            *position += count as Offset;
            left -= count;
            events.push(Event::Records(Arc::new(batch)));
        }
        if world.chance(1) {
            events.push(Event::Broken(trouble(TroubleKind::Passing, "_FATAL")));
        }
    }

    fn pause(&mut self, partitions: &[TopicPartition]) {
        self.paused.extend(partitions.iter().cloned());
    }

    fn resume(&mut self, partitions: &[TopicPartition]) {
        partitions.iter().for_each(|partition| assert!(self.paused.remove(partition), "{partition} was not paused"));
    }

    fn topic(&mut self, name: &TopicName) -> Result<TopicInfo, TopicError> {
        let mut world = self.world.lock().unwrap();
        if world.chance(2) {
            return Err(TopicError::Trouble(trouble(TroubleKind::Moved, "_TRANSPORT")));
        }
        let slot = if name.as_str() == "out" { OUT } else { DEAD };
        Ok(TopicInfo { slot, partitions: PARTITIONS })
    }

    fn transact(&mut self, outputs: &dyn Outputs, offsets: &OffsetMap) -> Outcome {
        assert_eq!(self.hidden, None, "nothing may be given while an outcome is unknown");
        let mut world = self.world.lock().unwrap();
        world.idle_polls = 0;
        for partition in offsets.keys() {
            assert!(self.assigned.contains_key(partition), "{partition} is committed and is not ours");
        }
        let (mut written, mut refused) = (Vec::new(), None);
        let mut generations = BTreeSet::new();
        outputs.for_each(&mut |output| {
            let value = output.value.unwrap_or_default().to_vec();
            if output.topic == OUT && value.ends_with(b"TooLarge") && refused.is_none() {
                refused = Some(written.len());
            }
            if output.topic == OUT {
                generations.insert(output.timestamp as u64);
            }
            written.push((output.topic, output.partition, value));
            ControlFlow::Continue(())
        });
        assert_eq!(written.len(), outputs.len());
        assert!(generations.len() <= 1, "a transaction of several generations: {generations:?}");
        let last = world.met.last().copied().unwrap_or_default();
        assert!(generations.iter().all(|generation| *generation >= last), "{generations:?} after {last}");
        world.met.extend(generations);
        if world.chance(10) {
            let codes = [("_TIMED_OUT", TroubleKind::Moved), ("ILLEGAL_GENERATION", TroubleKind::Moved)];
            let (code, kind) = codes[world.rng.usize(0..2)];
            return Outcome::Aborted(trouble(kind, code));
        }
        if let Some(index) = refused {
            let output = (world.calm || world.rng.bool()).then_some(index);
            return Outcome::Rejected { output, message: "MSG_SIZE_TOO_LARGE".into() };
        }
        if world.chance(10) {
            let durable = world.rng.bool();
            if durable {
                Self::commit(&mut world, written, offsets);
            }
            if world.rng.u8(0..4) == 0 {
                return Outcome::Broken(trouble(TroubleKind::Passing, "_FENCED"));
            }
            self.hidden = Some(durable);
            return Outcome::Unknown(trouble(TroubleKind::Moved, "_TIMED_OUT"));
        }
        Self::commit(&mut world, written, offsets);
        Outcome::Committed { lost: 0 }
    }

    fn settle(&mut self, _: &OffsetMap) -> Outcome {
        let durable = self.hidden.expect("something is unknown");
        if self.world.lock().unwrap().chance(30) {
            return Outcome::Unknown(trouble(TroubleKind::Moved, "_TIMED_OUT"));
        }
        self.hidden = None;
        match durable {
            true => Outcome::Committed { lost: 0 },
            false => Outcome::Aborted(trouble(TroubleKind::Moved, "_TIMED_OUT")),
        }
    }

    fn close(&mut self, _: bool, _: Duration) {}
}

fn fastrand_within(rng: &mut fastrand::Rng, most: usize) -> usize {
    rng.usize(0..=most)
}

/// A plugin that does what the record says; only the first of the chain misbehaves, both pass the rest.
pub(super) struct SimulatedStep {
    name: PluginName,
    digest: Digest,
    /// Of the task that it belongs to: stamped on what it passes, as its timestamp.
    generation: u64,
    asked_again: BTreeSet<Vec<u8>>,
}

impl SimulatedStep {
    pub(super) fn new(name: &str, generation: u64) -> Self {
        let (digest, asked_again) = (Digest::of(name.as_bytes()), BTreeSet::new());
        Self { name: PluginName::new(name).unwrap(), digest, generation, asked_again }
    }
}

impl Step for SimulatedStep {
    fn plugin(&self) -> &PluginName {
        &self.name
    }

    fn sha256(&self) -> &Digest {
        &self.digest
    }

    fn call(&mut self, items: &mut Items, range: Range<usize>, _: Duration) -> Result<CallOutput, CallError> {
        let mut output = CallOutput::default();
        let mut chunk = Vec::new();
        let acts = self.name.as_str() == "first";
        let alone = range.len() == 1;
        for (position, index) in range.clone().enumerate() {
            let item = &items.list[index];
            let value = items.value(item).unwrap().to_vec();
            let text = String::from_utf8(value.clone()).unwrap();
            let verdict = match text.rsplit('/').next().unwrap() {
                "Drop" if !acts => Verdict::Drop,
                "Trap" if !acts => {
                    return Err(CallError::Fault { code: FaultCode::Trapped, message: "simulated".into() });
                }
                "RetryForEver" if acts => return Err(CallError::Retry("later".into())),
                "RetryOnce" if acts && !alone && self.asked_again.insert(value.clone()) => {
                    return Err(CallError::Retry("later".into()));
                }
                "Refuse" if acts => Verdict::Refuse,
                "Fan" if acts => {
                    for _ in 0..2 {
                        let start = chunk.len() as u32;
                        chunk.extend_from_slice(&value);
                        let span = Span { chunk: items.chunks.len() as u32, start, end: chunk.len() as u32 };
                        output.emitted.push((position as u32, Item { value: Field::Bytes(span), ..item.clone() }));
                    }
                    Verdict::Pass
                }
                _ => Verdict::Pass,
            };
            output.verdicts.push(verdict);
        }
        items.chunks.push(chunk);
        for item in &mut items.list[range] {
            item.timestamp = Some(self.generation as i64);
        }
        // (emission order need not be the records' order)
        output.emitted.reverse();
        Ok(output)
    }

    fn take_usage(&mut self) -> Usage {
        Usage::default()
    }

    fn shutdown(&mut self) {}
}

/// What the worker told.
#[derive(Default)]
pub(super) struct News {
    pub(super) faults: Vec<(Offset, FaultCode)>,
    pub(super) tallies: Vec<Tally>,
    /// The generation of the task that was taken up last.
    pub(super) taken_up: u64,
    /// What came of the last transaction was not known.
    pub(super) is_unknown: bool,
    /// A session broke after a commit that it did not learn of: those records are not counted.
    pub(super) consumed_may_miss: bool,
}

impl Report for News {
    fn taken_up(&mut self, task: &Task) {
        self.taken_up = task.generation;
    }

    fn health(&mut self, _: &Health) {}
    fn transaction_begins(&mut self) {}
    fn transaction(&mut self, outcome: &'static str, _: Duration) {
        self.consumed_may_miss |= matches!(outcome, "unknown" | "broken");
        self.is_unknown = outcome == "unknown";
    }
    fn committed(&mut self, tally: &Tally) {
        self.tallies.push(tally.clone());
    }
    fn fault(&mut self, _: &TopicPartition, offset: Offset, fault: &Fault, _: Fate) {
        self.faults.push((offset, fault.code));
    }
    fn usage(&mut self, _: &PluginName, _: Usage) {}
    fn trouble(&mut self, _: &Trouble) {}
    fn lost(&mut self, _: &TopicPartition, _: u64, _: &str) {}
    fn rebalanced(&mut self) {}
}
