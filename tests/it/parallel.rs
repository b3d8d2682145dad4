//! Several sets of plugins in each worker (`parallelism`): at work at the same time, and in all else as one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use millrace::model::{
    Digest, ErrorId, Fault, FaultCode, Field, Item, Items, Offset, OffsetMap, PluginName, RouteName, SourceBatch, Span,
    TopicName, TopicPartition,
};
use millrace::pipeline::chain::Chain;
use millrace::pipeline::ports::{
    Broker, CallError, CallOutput, Event, Outcome, Outputs, Step, TopicError, TopicInfo, Trouble, Usage, Verdict,
};
use millrace::pipeline::report::{Fate, Health, Report, Tally};
use millrace::pipeline::task::{Stop, Task};
use millrace::pipeline::worker::{Exit, Order, RouteWorker};
use millrace::policy::{Disposition, OnError, Retry};

use crate::support::config::{Config, plugin};
use crate::support::daemon::Daemon;
use crate::support::kafka::{Isolation, Record, shared};
use crate::support::memory_batch::{MemoryBatch, MemoryRecord};
use crate::support::{record_loop, unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

// ---- a worker between a source and a broker in memory ----------------------------------------------------------------

/// What was committed.
#[derive(Debug, Default, PartialEq)]
struct Log {
    /// By topic and source partition, in order.
    sent: BTreeMap<(&'static str, i32), Vec<String>>,
    offsets: OffsetMap,
}

struct MemoryBroker<'a> {
    left: VecDeque<Arc<dyn SourceBatch>>,
    ends: OffsetMap,
    assigned: bool,
    stopped: Arc<Mutex<BTreeSet<TopicPartition>>>,
    orders: Sender<Order>,
    log: &'a mut Log,
    /// Most bytes that one transaction sent.
    largest: &'a mut usize,
}

const TOPICS: [&str; 2] = ["out", "dead"];

impl Broker for MemoryBroker<'_> {
    fn poll(&mut self, _: Duration, _: usize, events: &mut Vec<Event>) {
        if !std::mem::replace(&mut self.assigned, true) {
            events.push(Event::Assigned(self.ends.keys().cloned().collect()));
        }
        events.extend(self.left.pop_front().map(Event::Records));
        let stopped = self.stopped.lock().unwrap();
        let is_done =
            |(at, end): (&TopicPartition, &Offset)| self.log.offsets.get(at) == Some(end) || stopped.contains(at);
        if self.ends.iter().all(is_done) {
            let _ = self.orders.send(Order::Drain { leave: false, within: PATIENCE });
        }
    }
    fn pause(&mut self, _: &[TopicPartition]) {}
    fn resume(&mut self, _: &[TopicPartition]) {}
    fn topic(&mut self, name: &TopicName) -> Result<TopicInfo, TopicError> {
        let slot = TOPICS.iter().position(|topic| *topic == name.as_str()).expect("one of them");
        Ok(TopicInfo { slot: slot as u16, partitions: 1 })
    }
    fn transact(&mut self, outputs: &dyn Outputs, offsets: &OffsetMap) -> Outcome {
        let mut bytes = 0;
        outputs.for_each(&mut |output| {
            let value = output.value.expect("none is null");
            let text = String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned();
            let from = text.split('/').next().expect("the source partition").parse().expect("a number");
            self.log.sent.entry((TOPICS[usize::from(output.topic)], from)).or_default().push(text);
            bytes += value.len();
            ControlFlow::Continue(())
        });
        *self.largest = bytes.max(*self.largest);
        self.log.offsets.extend(offsets.clone());
        Outcome::Committed { lost: 0 }
    }
    fn settle(&mut self, _: &OffsetMap) -> Outcome {
        unreachable!("nothing is unknown here")
    }
    fn close(&mut self, _: bool, _: Duration) {}
}

struct Watching {
    stopped: Arc<Mutex<BTreeSet<TopicPartition>>>,
    faults: usize,
}

impl Report for Watching {
    fn taken_up(&mut self, _: &Task) {}
    fn health(&mut self, health: &Health) {
        let stopped = health.held.iter().filter(|held| held.stopped).map(|held| held.partition.clone());
        self.stopped.lock().unwrap().extend(stopped);
    }
    fn transaction_begins(&mut self) {}
    fn transaction(&mut self, _: &'static str, _: Duration) {}
    fn committed(&mut self, _: &Tally) {}
    fn fault(&mut self, _: &TopicPartition, _: Offset, _: ErrorId, _: &Fault, _: Fate) {
        self.faults += 1;
    }
    fn usage(&mut self, _: &PluginName, _: Usage) {}
    fn trouble(&mut self, trouble: &Trouble) {
        panic!("{}", trouble.message);
    }
    fn lost(&mut self, _: &TopicPartition, _: u64, _: &str) {}
    fn rebalanced(&mut self) {}
}

/// What came of a run.
struct Ran {
    log: Log,
    largest: usize,
    faults: usize,
}

/// Everything that these batches hold, by as many sets as `chains`, with these bounds.
fn run(batches: Vec<Arc<MemoryBatch>>, chains: Vec<Chain>, adjust: impl FnOnce(&mut Task, &Sender<Order>)) -> Ran {
    let mut ends = OffsetMap::new();
    for batch in &batches {
        ends.insert(batch.topic_partition().clone(), batch.offset(batch.len() - 1) + 1);
    }
    let mut task = record_loop::task(&[]);
    let mut chains = chains.into_iter();
    task.chain = chains.next().expect("one at least");
    task.chain.share_with(chains.collect());
    let (orders, mailbox) = unbounded();
    adjust(&mut task, &orders);
    let (mut log, mut largest, stopped) = (Log::default(), 0, Arc::default());
    let mut watching = Watching { stopped: Arc::clone(&stopped), faults: 0 };
    let broker = MemoryBroker {
        left: batches.into_iter().map(|batch| batch as Arc<dyn SourceBatch>).collect(),
        ends,
        assigned: false,
        stopped,
        orders,
        log: &mut log,
        largest: &mut largest,
    };
    let (route, mut paused) = (RouteName::new("r").unwrap(), false);
    let worker = RouteWorker::new(broker, &route, 0, &mut task, &mut paused, &mailbox, &mut watching);
    assert_eq!(worker.run(), Exit::Drained);
    Ran { log, largest, faults: watching.faults }
}

/// A plugin that a closure stands for, which is given the items of a call with the range.
struct Told<F> {
    name: PluginName,
    sha256: Digest,
    call: F,
}

impl<F: FnMut(&mut Items, Range<usize>) -> Result<CallOutput, CallError> + Send> Step for Told<F> {
    fn plugin(&self) -> &PluginName {
        &self.name
    }
    fn sha256(&self) -> &Digest {
        &self.sha256
    }
    fn call(&mut self, items: &mut Items, range: Range<usize>, _: Duration) -> Result<CallOutput, CallError> {
        (self.call)(items, range)
    }
    fn take_usage(&mut self) -> Usage {
        Usage { calls: 1, cpu: Duration::from_secs(1), instances: 1, memory: 100 }
    }
    fn shutdown(&mut self) {}
}

/// A chain of one such plugin, which gets eight records a call.
fn chain(call: impl FnMut(&mut Items, Range<usize>) -> Result<CallOutput, CallError> + Send + 'static) -> Chain {
    let step = Told { name: PluginName::new("told").unwrap(), sha256: Digest::of(b""), call };
    Chain::new(vec![(Box::new(step), PATIENCE)], 8, 1 << 20)
}

fn pass(range: &Range<usize>) -> CallOutput {
    CallOutput { verdicts: vec![Verdict::Pass; range.len()], ..CallOutput::default() }
}

/// Records of one partition, in batches of these sizes.
fn batches(partition: i32, values: &[String], mut size: impl FnMut() -> usize) -> VecDeque<Arc<MemoryBatch>> {
    let (mut list, mut from) = (VecDeque::new(), 0);
    while from < values.len() {
        let end = values.len().min(from + size());
        let record = |offset: usize| MemoryRecord {
            offset: offset as Offset,
            ..MemoryRecord::of_value(values[offset].clone()).key("k")
        };
        list.push_back(MemoryBatch::new("source", partition, (from..end).map(record).collect()));
        from = end;
    }
    list
}

// ---- in all else as one ----------------------------------------------------------------------------------------------

/// What is done to a record stands at the end of its value; how long it takes is up to the moment.
fn obedient(asked_again: &Arc<Mutex<BTreeSet<String>>>) -> Chain {
    let asked_again = Arc::clone(asked_again);
    chain(move |items, range| {
        (0..fastrand::u32(0..50)).for_each(|_| std::thread::yield_now());
        let (mut output, mut chunk) = (CallOutput::default(), Vec::new());
        for (position, index) in (0u32..).zip(range.clone()) {
            let item = &items.list[index];
            let value = String::from_utf8(items.value(item).unwrap().to_vec()).unwrap();
            output.verdicts.push(match value.rsplit('/').next().unwrap() {
                "drop" => Verdict::Drop,
                "refuse" => Verdict::Refuse,
                "trap" => return Err(CallError::Fault { code: FaultCode::Trapped, message: "told to".into() }),
                "later" if range.len() > 1 && asked_again.lock().unwrap().insert(value.clone()) => {
                    return Err(CallError::Retry("later".into()));
                }
                "fan" => {
                    for _ in 0..2 {
                        let start = chunk.len() as u32;
                        chunk.extend_from_slice(value.as_bytes());
                        let span = Span { chunk: items.chunks.len() as u32, start, end: chunk.len() as u32 };
                        output.emitted.push((position, Item { value: Field::Bytes(span), ..item.clone() }));
                    }
                    Verdict::Pass
                }
                _ => Verdict::Pass,
            });
        }
        items.chunks.push(chunk);
        Ok(output)
    })
}

/// What has to come of records, worked out one by one.
fn expected(values: &[Vec<String>], then: &Disposition) -> Log {
    let mut log = Log::default();
    for (partition, values) in (0..).zip(values) {
        let at = TopicPartition { topic: TopicName::new("source").unwrap(), partition };
        let is_at_fault = |value: &&String| value.ends_with("refuse") || value.ends_with("trap");
        let end = match then {
            Disposition::Stop => values.iter().position(|value| is_at_fault(&value)).unwrap_or(values.len()),
            Disposition::Skip | Disposition::DeadLetter(_) => values.len(),
        };
        for value in &values[..end] {
            let (topic, copies) = match value.rsplit('/').next().unwrap() {
                "drop" => continue,
                "refuse" | "trap" if *then == Disposition::Skip => continue,
                "refuse" | "trap" => ("dead", 1),
                "fan" => ("out", 3),
                _ => ("out", 1),
            };
            let sent = log.sent.entry((topic, partition)).or_default();
            sent.extend(std::iter::repeat_n(value.clone(), copies));
        }
        if end > 0 {
            log.offsets.insert(at, end as Offset);
        }
    }
    log
}

#[test]
fn what_several_sets_make_arrives_as_what_one_makes_whatever_is_at_fault_and_whoever_is_quicker() {
    for seed in 0..60 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let then = match seed % 3 {
            0 => Disposition::DeadLetter(TopicName::new("dead").unwrap()),
            1 => Disposition::Skip,
            _ => Disposition::Stop,
        };
        let backoff = Duration::from_millis(1);
        let retry = rng.bool().then_some(Retry { attempts: 2, backoff, max_backoff: backoff });
        let faulty = if then == Disposition::Stop { 300 } else { 20 };
        let mut value = |partition: usize, number: usize| {
            let kind = match rng.u32(0..faulty) {
                0 => "refuse",
                1 => "trap",
                2 if retry.is_some() => "later",
                3..6 => "drop",
                6..9 => "fan",
                _ => "plain",
            };
            format!("{partition}/{number}/{kind}")
        };
        let mut of = |partition| (0..200).map(|number| value(partition, number)).collect::<Vec<_>>();
        let values: Vec<_> = (0..3).map(&mut of).collect();
        let expected = expected(&values, &then);
        for sets in [1, 2, 4] {
            let sizes = [1, 7, 90];
            let mut lists: Vec<_> = (0..)
                .zip(&values)
                .map(|(partition, values)| batches(partition, values, || sizes[rng.usize(..3)]))
                .collect();
            let mut mixed = Vec::new();
            while lists.iter().any(|list| !list.is_empty()) {
                mixed.extend(lists[rng.usize(..3)].pop_front());
            }
            let (records, bytes) = ([20, 1000][rng.usize(..2)], [500, 1 << 20][rng.usize(..2)]);
            let asked_again = Arc::default();
            let chains = (0..sets).map(|_| obedient(&asked_again)).collect();
            let ran = run(mixed, chains, |task, _| {
                task.on_error = OnError { retry, then: then.clone() };
                (task.bounds.records, task.bounds.bytes) = (records, bytes);
            });
            assert_eq!(ran.log, expected, "seed {seed}, {sets} sets");
        }
    }
}

// ---- at the same time ------------------------------------------------------------------------------------------------

#[test]
fn records_of_one_partition_are_in_as_many_calls_at_once_as_there_are_sets() {
    const SETS: usize = 4;
    let (inside, all) = (Arc::new(Mutex::new(0)), Arc::new(Condvar::new()));
    let meeting = || {
        let (inside, all) = (Arc::clone(&inside), Arc::clone(&all));
        chain(move |_, range| {
            let mut count = inside.lock().unwrap();
            *count += 1;
            all.notify_all();
            // (who comes later finds that all have met)
            let met = all.wait_timeout_while(count, PATIENCE, |count| *count < SETS).unwrap();
            assert!(!met.1.timed_out(), "the others did not come");
            Ok(pass(&range))
        })
    };
    let values: Vec<_> = (0..64).map(|number| format!("0/{number}/plain")).collect();
    let ran = run(batches(0, &values, || 64).into(), (0..SETS).map(|_| meeting()).collect(), |_, _| {});
    assert_eq!(ran.log.sent[&("out", 0)], values);
}

#[test]
fn what_all_sets_make_is_bounded_as_what_one_makes_and_hardly_any_of_it_is_made_for_nothing() {
    const RECORDS: usize = 800;
    // A call has eight records; so many calls fill a transaction.
    const LARGE: usize = 10_000;
    const FILL: usize = 5;
    let worked = Arc::new(AtomicUsize::new(0));
    let makes = || {
        let worked = Arc::clone(&worked);
        chain(move |items, range| {
            worked.fetch_add(range.len(), Relaxed);
            for index in range.clone() {
                let mut value = items.value(&items.list[index]).expect("it has one").to_vec();
                value.resize(LARGE, b' ');
                let chunk = items.chunks.len() as u32;
                items.chunks.push(value);
                items.list[index].value = Field::Bytes(Span { chunk, start: 0, end: LARGE as u32 });
            }
            Ok(pass(&range))
        })
    };
    let values: Vec<_> = (0..RECORDS).map(|number| format!("0/{number}/plain")).collect();
    for sets in [1, 4] {
        worked.store(0, Relaxed);
        let ran = run(batches(0, &values, || 400).into(), (0..sets).map(|_| makes()).collect(), |task, _| {
            task.bounds.bytes = FILL * 8 * LARGE;
        });
        let sent: Vec<_> = ran.log.sent[&("out", 0)].iter().map(|value| value.trim_end().to_owned()).collect();
        assert_eq!(sent, values);
        // (one more call may be made than fills it, and that in a second batch)
        assert!(ran.largest <= 2 * FILL * 8 * LARGE, "{sets} sets: {} bytes in one transaction", ran.largest);
        let worked = worked.load(Relaxed);
        println!("{sets} sets: {worked} records processed of {RECORDS}; {} bytes at most", ran.largest);
        // (the first round does not know yet how much is made of a record)
        assert!(worked <= RECORDS + RECORDS / 10, "{sets} sets: {worked} records processed of {RECORDS}");
    }
}

#[test]
fn a_bug_on_another_sets_thread_ends_the_worker_as_on_its_own() {
    let values: Vec<_> = (0..64).map(|number| format!("0/{number}/plain")).collect();
    // (the first waits until the other has a piece, so that it is the other's bug)
    let gone = Arc::new(AtomicUsize::new(0));
    let waits = {
        let gone = Arc::clone(&gone);
        chain(move |_, range| {
            wait_until(PATIENCE, "the other has a piece", || gone.load(Relaxed) > 0);
            Ok(pass(&range))
        })
    };
    let other = chain(move |_, _| {
        gone.fetch_add(1, Relaxed);
        panic!("a bug")
    });
    let ended =
        catch_unwind(AssertUnwindSafe(|| run(batches(0, &values, || 64).into(), vec![waits, other], |_, _| {})));
    let said = ended.err().expect("it has not ended well");
    assert_eq!(said.downcast_ref::<&str>(), Some(&"a bug"));
}

#[test]
fn what_each_set_has_used_is_counted_together() {
    let mut chain = chain(|_, range| Ok(pass(&range)));
    chain.share_with((0..2).map(|_| self::chain(|_, range| Ok(pass(&range)))).collect());
    let used: Vec<_> = chain.take_usage().map(|(name, usage)| (name.to_string(), usage)).collect();
    let three = Usage { calls: 3, cpu: Duration::from_secs(3), instances: 3, memory: 300 };
    assert_eq!(used, [("told".to_owned(), three)]);
}

#[test]
fn all_sets_are_interrupted_when_the_worker_ends_and_no_record_is_blamed_for_it() {
    let (stop, begun, orders) =
        (Stop::default(), Arc::new(AtomicUsize::new(0)), Arc::new(OnceLock::<Sender<Order>>::new()));
    let endless = || {
        let (stop, begun, orders) = (stop.clone(), Arc::clone(&begun), Arc::clone(&orders));
        chain(move |_, _| {
            // The last of them has the worker end; a plugin host would interrupt them then.
            if begun.fetch_add(1, Relaxed) == 1 {
                orders.get().expect("set").send(Order::Drain { leave: false, within: PATIENCE }).unwrap();
                stop.by(Instant::now() + PATIENCE);
            }
            wait_until(PATIENCE, "the worker is to end", || stop.is_set());
            Err(CallError::Fault { code: FaultCode::TimedOut, message: "interrupted".into() })
        })
    };
    let values: Vec<_> = (0..64).map(|number| format!("0/{number}/plain")).collect();
    let ran = run(batches(0, &values, || 64).into(), vec![endless(), endless()], |task, mailbox| {
        task.chain.heed(&stop);
        orders.set(mailbox.clone()).expect("nobody else does");
    });
    assert_eq!((ran.faults, ran.log), (0, Log::default()));
}

// ---- on a real broker ------------------------------------------------------------------------------------------------

#[test]
fn a_slow_plugin_of_several_sets_keeps_the_order_of_each_key_exactly_once_over_a_kill_and_a_change_of_their_number() {
    const RECORDS: usize = 6_000;
    let kafka = shared();
    let [source, target] = ["slow", "slow-out"].map(unique);
    kafka.create_topic(&source, 1, &[]);
    kafka.create_topic(&target, 3, &[]);
    let record = |number: usize| Record::new(format!("k{}", number % 20), format!("{number:05}"));
    kafka.produce(&source, &(0..RECORDS).map(record).collect::<Vec<_>>());
    // (of a name, so that nobody waits for the one that is killed)
    let yaml = format!(
        "instance: pod-0
plugins:
  slow: {{ path: {}, config: {{ rounds: 30000 }} }}
routes:
  r:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: slow }}]
    destinations: [{{ topic: {target} }}]
    transaction: {{ records: 500 }}
    parallelism: 4
",
        plugin("slow").display()
    );
    let config = Config::new(&kafka.bootstrap, &[], &yaml);
    let mut daemon = Daemon::start(config.path());
    daemon.await_consumed("r", RECORDS / 6, PATIENCE);
    assert_eq!(daemon.route("r")["parallelism"], 4);
    assert!(daemon.metric("millrace_plugin_instances_total", &[("route", "r")]).is_some_and(|count| count >= 4.0));
    daemon.kill9();
    let mut daemon = Daemon::start(config.path());
    daemon.await_consumed("r", RECORDS / 6, PATIENCE);
    let members = kafka.members(&config.group("r"));
    config.edit(|yaml| yaml.replace("parallelism: 4", "parallelism: 2"));
    daemon.await_workers("r", 2, PATIENCE);
    assert_eq!(daemon.route("r")["parallelism"], 2);
    assert_eq!(kafka.members(&config.group("r")), members, "it was taken up in place");
    let ends = kafka.end_offsets(&source, Isolation::ReadUncommitted);
    wait_until(PATIENCE, "all is committed", || kafka.committed(&config.group("r"), &source) == ends);
    let mut of_key = BTreeMap::<String, Vec<usize>>::new();
    for read in kafka.console_consume(&target, Isolation::ReadCommitted) {
        let text = read.text();
        let (number, hash) = text.split_once(' ').expect("the plugin has put something behind it");
        assert_eq!(hash.len(), 16, "{text}");
        of_key.entry(read.key_text()).or_default().push(number.parse().expect("a number"));
    }
    for key in 0..20 {
        let sent: Vec<_> = (key..RECORDS).step_by(20).collect();
        assert!(of_key[&format!("k{key}")] == sent, "k{key}: lost, doubled or in another order");
    }
    assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
}
