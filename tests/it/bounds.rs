//! Bounds that rest on each other hold: plugins end in time for the next poll, and the process ends in time whatever the
//! brokers do.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crossbeam_channel::{Sender, unbounded};
use millrace::model::{
    Digest, FaultCode, Field, Item, Items, Offset, OffsetMap, PluginName, RouteName, Span, TopicName, TopicPartition,
};
use millrace::pipeline::chain::{Budget, Chain, Halt, Processed};
use millrace::pipeline::ports::{
    Broker, CallError, CallOutput, Event, Outcome, Outputs, Step, TopicError, TopicInfo, Usage, Verdict,
};
use millrace::pipeline::task::Stop;
use millrace::pipeline::worker::{Exit, Order, RouteWorker};

use crate::support::config::{Config, plugin};
use crate::support::daemon::Daemon;
use crate::support::kafka::{Cluster, Record, shared};
use crate::support::load::Load;
use crate::support::memory_batch::{MemoryBatch, MemoryRecord};
use crate::support::{pace, record_loop, unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

// ---- plugins --------------------------------------------------------------------------------------------------------

/// A plugin that takes its time for each item, and makes items and bytes of it.
pub(crate) struct Slow {
    name: PluginName,
    sha256: Digest,
    each: Duration,
    /// Items made of each, and the bytes of each of those.
    makes: Option<(usize, usize)>,
    /// Told to end while it works.
    stop: Option<Stop>,
}

pub(crate) fn slow(each: Duration) -> Slow {
    Slow { name: PluginName::new("slow").unwrap(), sha256: Digest::of(b""), each, makes: None, stop: None }
}

impl Step for Slow {
    fn plugin(&self) -> &PluginName {
        &self.name
    }
    fn sha256(&self) -> &Digest {
        &self.sha256
    }
    fn call(&mut self, items: &mut Items, range: Range<usize>, cpu: Duration) -> Result<CallOutput, CallError> {
        let whole = self.each * range.len() as u32;
        pace(whole.min(cpu));
        if let Some(stop) = &self.stop {
            stop.by(Instant::now());
        }
        if whole > cpu || self.stop.is_some() {
            return Err(CallError::Fault { code: FaultCode::TimedOut, message: "too slow".into() });
        }
        let Some((count, bytes)) = self.makes else {
            return Ok(CallOutput { verdicts: vec![Verdict::Pass; range.len()], ..CallOutput::default() });
        };
        let mut emitted = Vec::new();
        for (position, index) in (0u32..).zip(range.clone()) {
            items.chunks.push(vec![0; bytes]);
            let chunk = items.chunks.len() as u32 - 1;
            let value = Field::Bytes(Span { chunk, start: 0, end: bytes as u32 });
            let source = items.list[index].source;
            emitted.extend((0..count).map(|_| (position, Item { value, ..Item::of_source(source) })));
        }
        Ok(CallOutput { verdicts: vec![Verdict::Drop; range.len()], emitted, reasons: Vec::new() })
    }
    fn take_usage(&mut self) -> Usage {
        Usage::default()
    }
    fn shutdown(&mut self) {}
}

/// What steps, each with a timeout, make of so many records, and how long that took.
fn apply(steps: Vec<(Slow, Duration)>, records: usize, stop: &Stop, budget: Budget) -> (Processed, Duration) {
    let steps = steps.into_iter().map(|(step, timeout)| (Box::new(step) as Box<dyn Step>, timeout)).collect();
    let mut chain = Chain::new(steps, 8, 1 << 20);
    chain.heed(stop);
    let batch = MemoryBatch::of_values((0..records).map(|number| number.to_string()));
    let range = 0..records;
    let began = Instant::now();
    (chain.apply(batch, range, 0, budget), began.elapsed())
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_slow_plugin_leaves_time_for_those_behind_it() {
    let steps = vec![(slow(5 * MS), 100 * MS), (slow(5 * MS), 100 * MS)];
    let (processed, took) = apply(steps, 200, &Stop::default(), Budget::of(300 * MS));
    let Some((done, Halt::BudgetSpent)) = processed.halt else { panic!("{:?}", processed.halt) };
    // (the first one alone is owed its time, whatever the plugins before have left of it)
    assert!(done > 1, "only {done} got through: the first plugin took the time of the second");
    assert_eq!(processed.items.list.len(), done);
    assert!(processed.faults.is_empty(), "{:?}", processed.faults);
    assert!(took < 500 * MS, "{took:?}");
}

#[test]
fn a_record_of_which_much_is_made_overruns_the_time_for_processing_by_two_of_its_own_at_most() {
    let fans_out = Slow { makes: Some((50, 1)), ..slow(Duration::ZERO) };
    let steps = vec![(fans_out, 100 * MS), (slow(60 * MS), 100 * MS)];
    let (processed, took) = apply(steps, 2, &Stop::default(), Budget::of(200 * MS));
    assert_eq!(processed.faults.len(), 1, "{:?}", processed.faults);
    assert_eq!((processed.faults[0].0, processed.faults[0].1.code), (0, FaultCode::TimedOut));
    assert_eq!(processed.halt, Some((1, Halt::BudgetSpent)));
    // (50 of 60 ms each are three seconds)
    assert!(took < 600 * MS, "{took:?}");
}

#[test]
fn a_record_that_found_the_time_used_up_by_others_is_not_blamed_for_it() {
    let steps = vec![(slow(80 * MS), 100 * MS), (slow(80 * MS), 100 * MS)];
    let (processed, _) = apply(steps, 1, &Stop::default(), Budget::of(90 * MS).rest());
    assert!(processed.faults.is_empty(), "{:?}", processed.faults);
    assert_eq!(processed.halt, Some((0, Halt::BudgetSpent)));
}

#[test]
fn what_plugins_make_of_a_batch_is_bounded() {
    const LARGE: usize = 100_000;
    let makes = Slow { makes: Some((1, LARGE)), ..slow(Duration::ZERO) };
    let (processed, _) = apply(vec![(makes, MS)], 100, &Stop::default(), Budget::of(PATIENCE).making(10 * LARGE));
    // (a call has eight records; one more call is made than fills it)
    assert_eq!(processed.halt, Some((16, Halt::BudgetSpent)));
    assert_eq!(processed.items.list.len(), 16);
}

#[test]
fn a_plugin_that_is_interrupted_because_the_worker_ends_blames_no_record() {
    let stop = Stop::default();
    let interrupted = Slow { stop: Some(stop.clone()), ..slow(Duration::ZERO) };
    let (processed, _) = apply(vec![(interrupted, MS)], 20, &stop, Budget::of(PATIENCE));
    assert!(processed.faults.is_empty(), "{:?}", processed.faults);
    assert_eq!(processed.halt, Some((0, Halt::BudgetSpent)));
}

/// A source of one record a poll. It says how far each transaction came, and orders to drain after the last.
struct Trickle {
    left: Range<i64>,
    assigned: bool,
    orders: Sender<Order>,
    came_to: Arc<Mutex<Vec<Offset>>>,
}

impl Broker for Trickle {
    fn poll(&mut self, _: Duration, _: usize, events: &mut Vec<Event>) {
        if !std::mem::replace(&mut self.assigned, true) {
            events.push(Event::Assigned(vec![at()]));
        }
        events.extend(self.left.next().map(|offset| {
            let record = MemoryRecord { offset, ..MemoryRecord::of_value("value") };
            Event::Records(MemoryBatch::new("source", 0, vec![record]))
        }));
    }
    fn pause(&mut self, _: &[TopicPartition]) {}
    fn resume(&mut self, _: &[TopicPartition]) {}
    fn topic(&mut self, _: &TopicName) -> Result<TopicInfo, TopicError> {
        Ok(TopicInfo { slot: 0, partitions: 1 })
    }
    fn transact(&mut self, _: &dyn Outputs, offsets: &OffsetMap) -> Outcome {
        let offset = offsets[&at()];
        self.came_to.lock().unwrap().push(offset);
        if offset == self.left.end {
            self.orders.send(Order::Drain { leave: false, within: PATIENCE }).unwrap();
        }
        Outcome::Committed { lost: 0 }
    }
    fn settle(&mut self, _: &OffsetMap) -> Outcome {
        unreachable!("nothing is unknown here")
    }
    fn close(&mut self, _: bool, _: Duration) {}
}

fn at() -> TopicPartition {
    TopicPartition { topic: TopicName::new("source").unwrap(), partition: 0 }
}

#[test]
fn records_that_were_fetched_one_by_one_share_the_time_for_processing() {
    let (orders, mailbox) = unbounded();
    let came_to = Arc::default();
    let broker = Trickle { left: 0..3, assigned: false, orders, came_to: Arc::clone(&came_to) };
    let mut task = record_loop::task(&[]);
    let steps = [80, 80].map(|each| (Box::new(slow(each * MS)) as Box<dyn Step>, 100 * MS));
    task.chain = Chain::new(steps.into(), 8, 1 << 20);
    // One record takes 160 ms, so that the next cannot be done in what is left.
    task.bounds.processing = 250 * MS;
    let route = RouteName::new("r").unwrap();
    let (mut paused, mut report) = (false, record_loop::Silent);
    let worker = RouteWorker::new(broker, &route, 0, &mut task, &mut paused, &mailbox, &mut report);
    assert_eq!(worker.run(), Exit::Drained);
    // Only the first of a transaction is owed its time, in however many batches they lie.
    assert_eq!(*came_to.lock().unwrap(), [1, 2, 3]);
}

// ---- the end of the process -----------------------------------------------------------------------------------------

#[test]
fn a_plugin_at_work_does_not_hold_up_the_end_and_its_record_is_read_again() {
    let kafka = shared();
    let [source, target] = ["endless", "endless-out"].map(unique);
    for topic in [&source, &target] {
        kafka.create_topic(topic, 1, &[]);
    }
    kafka.produce(&source, &[Record::new("k", "marked")]);
    let yaml = format!(
        "plugins:
  endless: {{ path: {}, timeout: 25s, config: {{ do: loop, when: marked }} }}
routes:
  r:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: endless }}]
    destinations: [{{ topic: {target} }}]
    on_error: skip
",
        plugin("misbehave").display()
    );
    let config = Config::new(&kafka.bootstrap, &[], &yaml);
    let mut daemon = Daemon::start(config.path());
    daemon.await_state("r", "running", PATIENCE);
    wait_until(PATIENCE, "the worker has joined", || !daemon.route("r")["workers"][0]["assignment"][&source].is_null());
    // (the plugin has the record as soon as it is fetched)
    pace(Duration::from_millis(500));
    let began = Instant::now();
    assert_eq!(daemon.sigterm_and_wait(Duration::from_secs(10)), Some(0));
    eprintln!("ended within {:?}", began.elapsed());
    assert_eq!(kafka.committed(&config.group("r"), &source), [(0, 0)].into(), "the record is not passed by");
    config.edit(|yaml| yaml.replace("when: marked", "when: nothing"));
    let _daemon = Daemon::start(config.path());
    assert_eq!(kafka.await_records(&target, 1, PATIENCE)[0].text(), "marked");
}

#[test]
fn the_process_ends_within_shutdown_timeout_whatever_the_broker_does_and_the_next_one_is_exact() {
    // What a worker may take at worst with transactions of 4 s: those, 1 s to abort, 2 s for a producer, 1 s to close.
    const SHUTDOWN: Duration = Duration::from_millis(8_500);
    let cluster = Cluster::start(1);
    cluster.create_topic("in", 2, &[]);
    cluster.create_topic("out", 1, &[]);
    let config = Config::new(
        &cluster.bootstrap,
        &[],
        "shutdown_timeout: 8500ms
routes:
  r:
    source: { topics: [in], start: earliest }
    destinations: [{ topic: out }]
    workers: 2
",
    );
    config.edit(|yaml| yaml.replacen(" }\nadmin", ", producer: { transaction.timeout.ms: 4000 } }\nadmin", 1));
    let ends = |mut daemon: Daemon, when: &str| {
        let began = Instant::now();
        assert_eq!(daemon.sigterm_and_wait(SHUTDOWN + Duration::from_secs(2)), Some(0), "{when}");
        eprintln!("{when}: ended within {:?}", began.elapsed());
        assert!(began.elapsed() < SHUTDOWN, "{when}: {:?}", began.elapsed());
        assert!(daemon.log().contains("drained"), "{when}");
    };
    let load = Load::start(&cluster, "in", 2, 2_000);
    let daemon = Daemon::start(config.path());
    daemon.await_consumed("r", 500, PATIENCE);
    // A broker that answers nothing: the workers are in the middle of transactions, or begin one now.
    cluster.stop(1);
    pace(Duration::from_millis(300));
    ends(daemon, "within transactions");
    let daemon = Daemon::spawn(config.path(), |_| {});
    pace(Duration::from_secs(1));
    ends(daemon, "at the start");
    cluster.cont(1);
    let daemon = Daemon::start(config.path());
    let before = load.sent();
    wait_until(PATIENCE, "records flow again", || load.sent() > before);
    let sent = load.stop();
    daemon.await_state("r", "running", PATIENCE);
    sent.assert_whole(&cluster.await_records("out", sent.count, PATIENCE), "after two ends");
    cluster.stop(1);
    pace(Duration::from_secs(2));
    ends(daemon, "idle");
}

#[test]
fn the_process_ends_in_good_order_while_its_group_rebalances_and_while_a_reload_is_under_way() {
    let kafka = shared();
    let [source, target] = ["ends", "ends-out"].map(unique);
    kafka.create_topic(&source, 4, &[]);
    kafka.create_topic(&target, 1, &[]);
    let yaml = format!(
        "routes:
  r:
    source: {{ topics: [{source}], start: earliest }}
    destinations: [{{ topic: {target} }}]
    transaction: {{ interval: 20ms }}
"
    );
    let config = Config::new(&kafka.bootstrap, &[], &yaml);
    let load = Load::start(kafka, &source, 4, 300);
    let rebalances =
        |daemon: &Daemon| daemon.metric("millrace_rebalances_total", &[("route", "r")]).unwrap_or_default();
    let mut first = Daemon::start(config.path());
    first.await_consumed("r", 1, PATIENCE);
    let before = rebalances(&first);
    let mut second = Daemon::start(config.path());
    wait_until(PATIENCE, "the first gives partitions away", || rebalances(&first) > before);
    assert_eq!(first.sigterm_and_wait(Duration::from_secs(15)), Some(0), "while the group rebalances");
    assert!(first.log().contains("drained"), "{}", first.log());
    second.await_consumed("r", 1, PATIENCE);
    // (it restarts the route: that drains, and is not to come back)
    config.edit(|yaml| yaml.replace("start: earliest", "start: earliest, on_offset_lost: latest"));
    second.signal(Signal::HUP);
    assert_eq!(second.sigterm_and_wait(Duration::from_secs(15)), Some(0), "while a reload is under way");
    assert!(second.log().contains("drained"), "{}", second.log());
    let _third = Daemon::start(config.path());
    let sent = load.stop();
    sent.assert_whole(&kafka.await_records(&target, sent.count, PATIENCE), "after two ends");
}
