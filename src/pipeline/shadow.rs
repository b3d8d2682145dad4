//! The shadow of a pipeline: a second set of plugins beside the first, on the records that this has done. What it makes is
//! compared with what the first made, counted, and thrown away.
//!
//! It has a thread of its own, which yields to all others and for which nobody ever waits: what comes while one look is under
//! way and another waits is passed by, and counted as that. So whatever its plugins do, the worker does not notice.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::chain::{Budget, Chain};
use super::compare::{Difference, Made, Sent};
use super::task::Stop;
use crate::config::settings::Destination;
use crate::model::{Fault, Items, Offset, SourceBatch, TopicPartition, clock};
use crate::telemetry::ShadowMetrics;

/// Where processors are short, the routes have nine tenths of them.
const NICENESS: i32 = 10;
/// Longest that one look takes; what is left of it then is passed by. It holds records that the route is done with.
const LOOK_LONGEST: Duration = Duration::from_secs(10);
/// How long it looks at nothing after such a look: priorities are nothing to a quota of processor time.
const REST: Duration = Duration::from_secs(60);
/// Examples that are kept of each kind of difference, and outputs of which they tell.
const EXAMPLES: usize = 2;
const OUTPUTS_TOLD: usize = 3;

/// What the first set of plugins has made of consecutive records of a batch.
pub struct Shown {
    /// What is left of them.
    pub items: Arc<Items>,
    /// Those at fault.
    pub faults: Vec<(u32, Fault)>,
    /// The records, by their index in the batch.
    pub records: Range<usize>,
}

/// What a worker's shadow is made of.
pub struct Cast {
    /// Its plugins, with instances of its own.
    pub chain: Chain,
    /// The route's destinations.
    pub destinations: Vec<Destination>,
    /// It sees one source record in so many.
    pub one_in: u32,
    /// Most bytes of one look: records, and what the first set has made of them. As many for what its own plugins make.
    pub bytes: usize,
    /// Where it counts.
    pub count: Count,
}

/// Where a shadow counts.
#[derive(Debug, Clone)]
pub struct Count {
    /// For the status.
    pub sums: Arc<Sums>,
    /// For Prometheus.
    pub metrics: ShadowMetrics,
}

impl Count {
    fn skipped(&self, records: u64) {
        self.sums.skipped.fetch_add(records, Relaxed);
        self.metrics.skipped(records);
    }

    fn compared(&self, compared: Compared) {
        self.metrics.compared(compared.records - compared.differing, compared.differing, &compared.kinds);
        self.sums.lock().merge(compared);
    }
}

/// A worker's shadow. Dropped, it ends by itself.
pub struct Shadow {
    looks: SyncSender<Vec<Shown>>,
    one_in: u32,
    bytes: usize,
    count: Count,
    stop: Stop,
}

impl Shadow {
    /// Its thread is named after `worker`.
    pub fn start(cast: Cast, worker: &str) -> Self {
        let stop = Stop::default();
        let Cast { mut chain, destinations, one_in, bytes, count } = cast;
        chain.heed(&stop);
        let (looks, inbox) = sync_channel(1);
        let shadow = Self { looks, one_in, bytes, count: count.clone(), stop: stop.clone() };
        let beside = Beside { chain, destinations, one_in, bytes, count, stop };
        let (thread, name) = (std::thread::Builder::new().name(format!("{worker}-shadow")), worker.to_owned());
        let run = move || {
            if catch_unwind(AssertUnwindSafe(|| beside.run(&inbox))).is_err() {
                tracing::error!(
                    worker = name,
                    "a bug in millrace, please report it: the shadow has ended and sees nothing more"
                );
            }
        };
        if let Err(error) = thread.spawn(run) {
            tracing::error!(worker, "the shadow's thread cannot be started, it sees nothing: {error}");
        }
        shadow
    }

    /// Shows it what the first set has made, if it is free to look. Never waits.
    pub fn show(&self, mut shown: Vec<Shown>) {
        let mut left = self.bytes;
        let all = count(&shown, self.one_in);
        let mut last: Option<Arc<dyn SourceBatch>> = None;
        // (another partition comes first each time: none is always left out)
        shown.retain(|shown| {
            let source = &shown.items.source;
            // (pieces of one batch follow each other, and hold on to it once)
            let is_held = last.as_ref().is_some_and(|last| Arc::ptr_eq(last, source));
            let bytes = made(shown) + if is_held { 0 } else { bytes_of(&**source) };
            let fits = !shown.records.is_empty() && bytes <= left;
            if fits {
                left -= bytes;
                last = Some(Arc::clone(source));
            }
            fits
        });
        let fitting = count(&shown, self.one_in);
        let taken = if fitting > 0 && self.looks.try_send(shown).is_ok() { fitting } else { 0 };
        self.count.skipped(all - taken);
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.stop.by(clock::now());
    }
}

/// What a look holds on to of a batch, which keeps all of its records.
fn bytes_of(source: &dyn SourceBatch) -> usize {
    (0..source.len()).map(|index| source.size(index)).sum()
}

/// And of what was made of some of them.
fn made(shown: &Shown) -> usize {
    shown.items.chunks.iter().map(Vec::capacity).sum()
}

fn is_sampled(source: &dyn SourceBatch, index: usize, one_in: u32) -> bool {
    one_in < 2 || source.offset(index).unsigned_abs().is_multiple_of(u64::from(one_in))
}

fn count(shown: &[Shown], one_in: u32) -> u64 {
    shown.iter().map(|shown| count_in(&*shown.items.source, shown.records.clone(), one_in)).sum()
}

fn count_in(source: &dyn SourceBatch, records: Range<usize>, one_in: u32) -> u64 {
    if one_in < 2 {
        return records.len() as u64;
    }
    records.filter(|index| is_sampled(source, *index, one_in)).count() as u64
}

/// The shadow on its thread.
struct Beside {
    chain: Chain,
    destinations: Vec<Destination>,
    one_in: u32,
    bytes: usize,
    count: Count,
    stop: Stop,
}

impl Beside {
    fn run(mut self, inbox: &Receiver<Vec<Shown>>) {
        // (of this thread alone, on Linux; where it is not to be had, it goes on as it is)
        let _ = rustix::process::setpriority_process(None, NICENESS);
        while let Ok(look) = inbox.recv() {
            let until = clock::now() + LOOK_LONGEST;
            let mut is_done = true;
            for shown in look {
                is_done &= self.look(&shown, until);
            }
            if !is_done {
                self.rest(inbox);
            }
        }
        self.chain.shutdown();
    }

    fn rest(&self, inbox: &Receiver<Vec<Shown>>) {
        let until = clock::now() + REST;
        while let Ok(look) = inbox.recv_timeout(until.saturating_duration_since(clock::now())) {
            self.count.skipped(count(&look, self.one_in));
        }
    }

    /// Whether there was the time for all of it.
    fn look(&mut self, shown: &Shown, until: Instant) -> bool {
        let source = &shown.items.source;
        let (mut from, end) = (shown.records.start, shown.records.end);
        let mut compared = Compared::default();
        while from < end && !self.stop.is_set() && clock::now() < until {
            let left = until.saturating_duration_since(clock::now());
            let budget = Budget::of(left).making(self.bytes);
            let is_meant = |index: usize| is_sampled(&**source, index, self.one_in);
            let (made, done) = self.chain.apply_some(source, from..end, is_meant, budget);
            for index in (from..done).filter(|index| is_meant(*index)) {
                let first = Made::of([(&*shown.items, &*shown.faults)], index, &self.destinations);
                let second = Made::of([made.part()], index, &self.destinations);
                compared.add(&**source, index, &first, &second);
            }
            from = done;
        }
        self.count.skipped(count_in(&**source, from..end, self.one_in));
        self.count.compared(compared);
        from == end
    }
}

/// What the shadows of all workers of a route have come to, since they have had these plugins.
#[derive(Debug)]
pub struct Sums {
    since: SystemTime,
    skipped: AtomicU64,
    compared: Mutex<Compared>,
}

/// What was compared.
#[derive(Debug, Clone, Default)]
pub struct Compared {
    /// Source records.
    pub records: u64,
    /// Those of them that differ.
    pub differing: u64,
    /// In what; a record may count for several. In the order of [`Difference::ALL`].
    pub kinds: [u64; Difference::ALL.len()],
    /// The last of each kind.
    pub examples: VecDeque<Example>,
}

/// A record of which the two sets make something different. Nothing of what it holds is kept.
#[derive(Debug, Clone)]
pub struct Example {
    /// Where it comes from.
    pub at: TopicPartition,
    /// Where there.
    pub offset: Offset,
    /// In what it differs.
    pub differences: Vec<Difference>,
    /// What the first set makes of it, in a few words.
    pub first: String,
    /// The same of the second.
    pub second: String,
}

impl Default for Sums {
    fn default() -> Self {
        Self { since: SystemTime::now(), skipped: AtomicU64::new(0), compared: Mutex::default() }
    }
}

impl Sums {
    /// Since when.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Records that passed while the shadow was busy, or that were too many at once.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Relaxed)
    }

    /// What was compared.
    pub fn compared(&self) -> Compared {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Compared> {
        self.compared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Compared {
    fn add(&mut self, source: &dyn SourceBatch, index: usize, first: &Made<'_>, second: &Made<'_>) {
        let differences = first.differences(second);
        self.records += 1;
        let Some(kind) = differences.first() else { return };
        self.differing += 1;
        differences.iter().for_each(|kind| self.kinds[*kind as usize] += 1);
        if self.examples.iter().filter(|other| other.differences.first() == Some(kind)).count() == EXAMPLES {
            return;
        }
        let words = |made: &Made<'_>| outcome(made, *kind);
        let (first, second) = (words(first), words(second));
        let (at, offset) = (source.topic_partition().clone(), source.offset(index));
        self.keep(Example { at, offset, differences, first, second });
    }

    fn merge(&mut self, later: Self) {
        self.records += later.records;
        self.differing += later.differing;
        self.kinds.iter_mut().zip(later.kinds).for_each(|(sum, more)| *sum += more);
        later.examples.into_iter().for_each(|example| self.keep(example));
    }

    /// Keeps the last examples of each kind.
    fn keep(&mut self, example: Example) {
        let like_it = |other: &Example| other.differences.first() == example.differences.first();
        if self.examples.iter().filter(|other| like_it(other)).count() >= EXAMPLES
            && let Some(oldest) = self.examples.iter().position(like_it)
        {
            self.examples.remove(oldest);
        }
        self.examples.push_back(example);
    }
}

/// What differs by this kind, without anything that the record holds.
fn outcome(made: &Made<'_>, kind: Difference) -> String {
    if let Some(fault) = &made.fault {
        return format!("{}: {}", fault.code, fault.message);
    }
    let each = |of: &dyn Fn(&Sent<'_>) -> String| {
        let more = if made.outputs.len() > OUTPUTS_TOLD { "; …" } else { "" };
        made.outputs.iter().take(OUTPUTS_TOLD).map(of).collect::<Vec<_>>().join("; ") + more
    };
    let bytes =
        |bytes: Option<&[u8]>| bytes.map_or_else(|| "null".to_owned(), |bytes| format!("{} bytes", bytes.len()));
    match kind {
        Difference::Fault | Difference::Count if made.outputs.len() == 1 => "1 output".to_owned(),
        Difference::Fault | Difference::Count => format!("{} outputs", made.outputs.len()),
        Difference::Destination => each(&|sent| {
            let names = sent.to.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
            let topic = sent.item.topic.as_ref().map(|topic| format!(" topic {topic}")).unwrap_or_default();
            let partition = sent.item.partition.map(|number| format!(" partition {number}")).unwrap_or_default();
            format!("to {names}{topic}{partition}")
        }),
        Difference::Key => each(&|sent| format!("a key of {}", bytes(sent.items.key(sent.item)))),
        Difference::Value => each(&|sent| format!("a value of {}", bytes(sent.items.value(sent.item)))),
        Difference::Headers => each(&|sent| format!("{} headers", sent.items.header_count(sent.item))),
        Difference::Timestamp => each(&|sent| format!("timestamp {}", sent.items.timestamp(sent.item))),
    }
}
