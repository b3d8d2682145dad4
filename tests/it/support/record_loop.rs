//! The real worker and chain between a source that lies in memory and a broker that takes everything at once, so that what
//! is measured is ours: gathering, plugins, routing by key, and the walk over the outputs. Each record has a key of 16
//! bytes, a value of 100 and two headers.

use std::collections::VecDeque;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use millrace::config::settings::PluginLimits;
use millrace::config::settings::{Destination, Target};
use millrace::model::{
    DestinationName, ErrorId, Fault, Offset, OffsetMap, PluginName, RouteName, SourceBatch, TopicName, TopicPartition,
};
use millrace::pipeline::chain::Chain;
use millrace::pipeline::ports::{Broker, Event, Outcome, Outputs, Step, TopicError, TopicInfo, Trouble, Usage};
use millrace::pipeline::report::{Fate, Health, Report, Tally};
use millrace::pipeline::task::{Bounds, Task};
use millrace::pipeline::worker::{Exit, Order, RouteWorker};
use millrace::plugin::{Engine, Prepare, Prepared};
use millrace::policy::{OnError, Partitioning};

use super::memory_batch::{MemoryBatch, MemoryRecord};

/// Records of one poll: as many as a worker takes at once.
pub(crate) const BATCH: usize = 5_000;
const PARTITIONS: i32 = 12;
const SECOND: Duration = Duration::from_secs(1);

/// A source and a broker that cost nothing. It orders the worker to drain once everything is committed.
struct MemoryBroker<'a> {
    left: VecDeque<Arc<dyn SourceBatch>>,
    assigned: bool,
    end: Offset,
    orders: Sender<Order>,
    /// What was sent and committed, where that is asked for.
    kept: Option<&'a mut Kept>,
}

/// Partition, key and value of an output.
pub(crate) type KeptOutput = (i32, Option<Vec<u8>>, Option<Vec<u8>>);

/// What a worker has done.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// In order.
    pub(crate) outputs: Vec<KeptOutput>,
    /// The last that were committed.
    pub(crate) offsets: OffsetMap,
}

impl Broker for MemoryBroker<'_> {
    fn poll(&mut self, _: Duration, _: usize, events: &mut Vec<Event>) {
        if !std::mem::replace(&mut self.assigned, true) {
            let of = |batch: &Arc<dyn SourceBatch>| batch.topic_partition().clone();
            events.push(Event::Assigned(self.left.front().map(of).into_iter().collect()));
        }
        events.extend(self.left.pop_front().map(Event::Records));
    }
    fn pause(&mut self, _: &[TopicPartition]) {}
    fn resume(&mut self, _: &[TopicPartition]) {}
    fn topic(&mut self, _: &TopicName) -> Result<TopicInfo, TopicError> {
        Ok(TopicInfo { slot: 0, partitions: PARTITIONS })
    }
    fn transact(&mut self, outputs: &dyn Outputs, offsets: &OffsetMap) -> Outcome {
        outputs.for_each(&mut |output| {
            black_box(&output);
            if let Some(kept) = &mut self.kept {
                let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
                kept.outputs.push((output.partition, owned(output.key), owned(output.value)));
            }
            ControlFlow::Continue(())
        });
        if let Some(kept) = &mut self.kept {
            kept.offsets.extend(offsets.clone());
        }
        if offsets.values().all(|offset| *offset == self.end) {
            self.orders.send(Order::Drain { leave: false, within: SECOND }).expect("the worker listens");
        }
        Outcome::Committed { lost: 0 }
    }
    fn settle(&mut self, _: &OffsetMap) -> Outcome {
        unreachable!("nothing is unknown here")
    }
    fn close(&mut self, _: bool, _: Duration) {}
}

/// Tells nobody anything, and takes faults and troubles for bugs.
pub(crate) struct Silent;

impl Report for Silent {
    fn taken_up(&mut self, _task: &Task) {}
    fn health(&mut self, _: &Health) {}
    fn transaction_begins(&mut self) {}
    fn transaction(&mut self, _: &'static str, _: Duration) {}
    fn committed(&mut self, tally: &Tally) {
        black_box(tally);
    }
    fn fault(&mut self, _: &TopicPartition, _: Offset, _: ErrorId, fault: &Fault, _: Fate) {
        panic!("{fault}");
    }
    fn usage(&mut self, _: &PluginName, _: Usage) {}
    fn trouble(&mut self, trouble: &Trouble) {
        panic!("{}", trouble.message);
    }
    fn lost(&mut self, _: &TopicPartition, _: u64, _: &str) {}
    fn rebalanced(&mut self) {}
}

/// Tells nobody anything, where faults and troubles are to come.
pub(crate) struct Quiet;

impl Report for Quiet {
    fn taken_up(&mut self, _: &Task) {}
    fn health(&mut self, _: &Health) {}
    fn transaction_begins(&mut self) {}
    fn transaction(&mut self, _: &'static str, _: Duration) {}
    fn committed(&mut self, _: &Tally) {}
    fn fault(&mut self, _: &TopicPartition, _: Offset, _: ErrorId, _: &Fault, _: Fate) {}
    fn usage(&mut self, _: &PluginName, _: Usage) {}
    fn trouble(&mut self, _: &Trouble) {}
    fn lost(&mut self, _: &TopicPartition, _: u64, _: &str) {}
    fn rebalanced(&mut self) {}
}

/// So many polls of records of one partition.
pub(crate) fn source(polls: usize) -> VecDeque<Arc<dyn SourceBatch>> {
    let record = |number: usize| {
        let value: Vec<u8> = (0..100).map(|place| b'a' + ((place + number) % 26) as u8).collect();
        let record = MemoryRecord::of_value(value).key(format!("{number:016}"));
        let mut record = record.header("trace", "0123456789abcdef").header("keep", "yes");
        record.offset = number as Offset;
        record
    };
    let batch = |nth: usize| (nth * BATCH..(nth + 1) * BATCH).map(record).collect();
    (0..polls).map(|nth| MemoryBatch::new("source", 0, batch(nth)) as Arc<dyn SourceBatch>).collect()
}

/// What a worker is to do with them: these plugins in order, all to one topic.
pub(crate) fn task(plugins: &[Arc<Prepared>]) -> Task {
    Task {
        chain: chain(plugins),
        shadow: None,
        destinations: vec![Destination {
            name: DestinationName::new("out").expect("a name"),
            target: Target::Topic(TopicName::new("out").expect("a name")),
            partition: Partitioning::Key,
            default: true,
            when: None,
        }],
        on_error: OnError::default(),
        bounds: Bounds { interval: SECOND, records: 50_000, bytes: 32 << 20, processing: 30 * SECOND, held: 256 << 20 },
        generation: 1,
    }
}

/// These plugins in order.
pub(crate) fn chain(plugins: &[Arc<Prepared>]) -> Chain {
    let step = |plugin: &Arc<Prepared>| (Box::new(plugin.step()) as Box<dyn Step>, SECOND);
    Chain::new(plugins.iter().map(step).collect(), 512, 256 << 10)
}

/// All records, from the first poll to the last commit.
pub(crate) fn run(left: VecDeque<Arc<dyn SourceBatch>>, task: &mut Task) {
    work(left, task, None);
}

/// The same, and what came of it.
pub(crate) fn run_keeping(left: VecDeque<Arc<dyn SourceBatch>>, task: &mut Task) -> Kept {
    let mut kept = Kept::default();
    work(left, task, Some(&mut kept));
    kept
}

fn work(left: VecDeque<Arc<dyn SourceBatch>>, task: &mut Task, kept: Option<&mut Kept>) {
    let (orders, mailbox) = unbounded();
    let end = left.iter().map(|batch| batch.len()).sum::<usize>() as Offset;
    let broker = MemoryBroker { left, assigned: false, end, orders, kept };
    let route = RouteName::new("bench").expect("a name");
    let (mut paused, mut report) = (false, Silent);
    let worker = RouteWorker::new(broker, &route, 0, task, &mut paused, &mailbox, &mut report);
    assert_eq!(worker.run(), Exit::Drained);
}

/// The time that each of two tasks takes for the same records, at best, in turns: a busy machine makes some turns slow and none
/// fast. Goes on until the second is within `ratio` of the first, or is not to be any more.
pub(crate) fn best_of_turns(ratio: f64, first: impl Fn() -> Task, second: impl Fn() -> Task) -> [Duration; 2] {
    const POLLS: usize = 4;
    let mut best = [Duration::MAX; 2];
    for turn in 0..40 {
        let mut timed = |which: usize, mut task: Task| {
            let (source, began) = (source(POLLS), Instant::now());
            run(source, &mut task);
            best[which] = best[which].min(began.elapsed());
        };
        timed(0, first());
        timed(1, second());
        if turn >= 4 && best[1] <= best[0].mul_f64(ratio) {
            break;
        }
    }
    best
}

/// A built guest, ready for a step.
pub(crate) fn prepare(engine: &Engine, guest: &str) -> Arc<Prepared> {
    prepare_with(engine, guest, "{}")
}

/// The same, configured.
pub(crate) fn prepare_with(engine: &Engine, guest: &str, config_json: &str) -> Arc<Prepared> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/dist").join(format!("{guest}.wasm"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: run `make guests`", path.display()));
    let plugin = PluginName::new(guest).expect("a name");
    let with = Prepare {
        plugin: plugin.clone(),
        route: RouteName::new("bench").expect("a name"),
        config_json: config_json.into(),
        limits: PluginLimits { memory: 64 << 20, timeout: SECOND, outputs: 1_000, output_bytes: 16 << 20 },
        destinations: [].into(),
        allow: vec![],
    };
    Arc::new(engine.compile(&plugin, &bytes).and_then(|compiled| compiled.prepare(with)).expect("a sound guest"))
}
