//! Sends dead letters through their route again, exactly once: a worker of its own on the dead-letter topic, with the
//! route's plugins and destinations, whose group remembers how far it has come.
//!
//! A letter that is not to be sent through now (a filter, or it has been through too often) is put back at the topic's end in
//! the same transactions, so that all before the group's offset is settled, whatever the filters were.

mod letters;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, unbounded};

use self::letters::Letters;
pub use self::letters::record_of;
use super::plan::RoutePlan;
use super::replay::Bench;
use crate::config::settings::{Delivery, OnOffsetLost, Route, Source, Start, TopicSelector};
use crate::kafka::{self, Cluster, Instance, LeftOut, ReadFrom, Reader, Session, SessionOptions};
use crate::model::{
    ErrorId, Fault, FaultCode, GroupId, Items, Offset, OffsetMap, PluginName, SourceBatch, TopicName, TopicPartition,
};
use crate::pipeline::dead_letter::Letter;
use crate::pipeline::ports::{Trouble, TroubleKind, Usage};
use crate::pipeline::report::{Fate, Health, Report, Tally};
use crate::pipeline::task::{Stop, Task};
use crate::pipeline::worker::{Exit, Order, RouteWorker};
use crate::policy::{Disposition, OnError};

/// The name of the one member: a second process that redrives the same takes the work over, and the first one ends.
const MEMBER: &str = "redrive";
/// How long what passes is tried again.
const PATIENCE: Duration = Duration::from_secs(300);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Which letters are sent through.
pub type Wanted = Arc<dyn Fn(&Letter, &dyn SourceBatch, usize) -> bool + Send + Sync>;

/// What a redrive is to do.
#[derive(Clone)]
pub struct Terms {
    /// Which letters of the route's are meant.
    pub wanted: Wanted,
    /// Those that have been sent through so often already are not any more.
    pub times: u32,
    /// Where those go; none: back to the end of the dead-letter topic.
    pub set_aside: Option<TopicName>,
    /// Letters a second, at most.
    pub rate: Option<NonZeroU32>,
    /// Back into the partition that they came from, for all who read it, instead of through the route.
    pub to_source: bool,
}

/// What is to become of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Course {
    /// It goes through the route's plugins to its destinations.
    Redrive,
    /// The filter leaves it out.
    LeftOut,
    /// It has been sent through as often as it may.
    TooOften,
    /// Its value was cut when it became a dead letter.
    Cut,
    /// It is another route's, or no dead letter: not ours to touch.
    NotOurs,
}

impl Terms {
    /// What becomes of a record of the dead-letter topic.
    pub fn course(&self, route: &str, batch: &dyn SourceBatch, index: usize) -> (Course, Option<Letter>) {
        let Some(letter) = Letter::read(batch, index).filter(|letter| letter.route == route) else {
            return (Course::NotOurs, None);
        };
        let course = if !(self.wanted)(&letter, batch, index) {
            Course::LeftOut
        } else if letter.truncated.is_some() {
            Course::Cut
        } else if letter.redrives >= self.times {
            Course::TooOften
        } else {
            Course::Redrive
        };
        (course, Some(letter))
    }
}

/// How far it has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Letters whose outcome is committed.
    pub redriven: u64,
    /// Outputs of them.
    pub outputs: u64,
    /// Of those: records that the plugins dropped.
    pub filtered: u64,
    /// Of those: at fault again, by code; they are dead letters again.
    pub failed: BTreeMap<FaultCode, u64>,
    /// Letters put back at the end of the topic.
    pub put_back: u64,
    /// Letters set aside.
    pub set_aside: u64,
    /// What keeps it, if anything does.
    pub trouble: Option<Trouble>,
}

/// A redrive of one route's letters.
pub struct Redrive {
    cluster: Cluster,
    plan: RoutePlan,
    topic: TopicName,
    terms: Terms,
    progress: Arc<Mutex<Progress>>,
}

impl Redrive {
    /// Of `topic`, for the route of `plan`.
    pub fn new(cluster: &Cluster, plan: &RoutePlan, topic: &TopicName, terms: Terms) -> Self {
        let plan = plan_of(plan, topic, &cluster.kafka().prefix);
        Self { cluster: cluster.clone(), plan, topic: topic.clone(), terms, progress: Arc::default() }
    }

    /// How far it has come; to be read while it runs.
    pub fn progress(&self) -> Arc<Mutex<Progress>> {
        Arc::clone(&self.progress)
    }

    /// Looks at each unsettled letter; `see` is told what would become of it.
    ///
    /// # Errors
    /// The topic cannot be read.
    pub fn scan(
        &self,
        mut see: impl FnMut(&Arc<dyn SourceBatch>, usize, Course, Option<Letter>),
    ) -> Result<Scan, Trouble> {
        let settled = settled(&self.cluster, &self.plan.route, &self.topic)?;
        let from =
            |at: &TopicPartition| settled.get(at).map_or(ReadFrom::Beginning, |offset| ReadFrom::Offset(*offset));
        let mut reader = Reader::open(&self.cluster, &self.topic, from)?;
        let mut last = OffsetMap::new();
        while let Some(batches) = reader.next()? {
            for batch in &batches {
                for index in 0..batch.len() {
                    let (course, letter) = self.terms.course(self.plan.route.name.as_str(), &**batch, index);
                    see(batch, index, course, letter);
                }
                last.insert(batch.topic_partition().clone(), batch.offset(batch.len() - 1));
            }
        }
        Ok(Scan { last })
    }

    /// Sends the letters through that `scan` has seen, until all are settled. Can be ended at any time, and run again.
    ///
    /// # Errors
    /// What does not pass, or has not passed for five minutes.
    pub fn run(&self, scan: &Scan) -> Result<Progress, Trouble> {
        let mut since = Instant::now();
        loop {
            let before = self.snapshot();
            let Err(trouble) = self.session(scan) else { return Ok(self.snapshot()) };
            if self.snapshot() != before {
                since = Instant::now();
            }
            let passes = matches!(trouble.kind, TroubleKind::Passing | TroubleKind::Moved);
            if !passes || since.elapsed() > PATIENCE {
                return Err(trouble);
            }
            lock(&self.progress).trouble = Some(trouble);
            std::thread::park_timeout(RETRY_PAUSE);
        }
    }

    fn snapshot(&self) -> Progress {
        Progress { trouble: None, ..lock(&self.progress).clone() }
    }

    fn session(&self, scan: &Scan) -> Result<(), Trouble> {
        let topics = self.plan.check_topics(&self.cluster)?;
        let source = kafka::source_topics(&self.plan.route.source, &topics, &self.plan.left_out);
        kafka::resolve_start(&self.cluster, &self.plan.route, &source)?;
        let settled = settled(&self.cluster, &self.plan.route, &self.topic)?;
        let due = |(at, last): &(&TopicPartition, &Offset)| settled.get(at).is_none_or(|offset| offset <= last);
        let left: OffsetMap = scan.last.iter().filter(due).map(|(at, last)| (at.clone(), *last)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let left_out = Arc::new(ArcSwap::new(Arc::clone(&self.plan.left_out)));
        let session = Session::open(&SessionOptions {
            cluster: &self.cluster,
            route: &self.plan.route,
            worker: 0,
            instance: &Instance::Named(MEMBER.to_owned()),
            left_out: &left_out,
            counts: &Arc::default(),
            share: self.plan.share,
            session_timeout: self.plan.session_timeout,
            yields: false,
        })?;
        let (orders, mailbox) = unbounded();
        let mut letters = Letters::new(session, self, left, orders)?;
        let stop = Stop::default();
        let (mut task, mut paused, mut news) = (self.plan.task(0, &stop), false, News(Arc::clone(&self.progress)));
        let ended = work(&mut letters, &self.plan, &mut task, &mut paused, &mailbox, &mut news);
        task.chain.shutdown();
        match ended {
            Exit::Drained => Ok(()),
            Exit::Broken(trouble) => Err(trouble),
        }
    }
}

fn work(
    letters: &mut Letters<'_>,
    plan: &RoutePlan,
    task: &mut Task,
    paused: &mut bool,
    orders: &Receiver<Order>,
    news: &mut News,
) -> Exit {
    RouteWorker::new(letters, &plan.route.name, 0, task, paused, orders, news).run()
}

/// What plugins make of a record.
pub enum Said {
    /// It is at fault.
    Fault(Fault),
    /// Nothing is left of it.
    Dropped,
    /// This.
    Passed(Items),
}

/// What a route's plugins make of the first record of a batch.
pub fn ask(bench: &mut Bench, record: &Arc<dyn SourceBatch>) -> Said {
    let last = bench.apply(record).pop().expect("a batch holds a record");
    match last.faults.into_iter().next() {
        Some((_, fault)) => Said::Fault(fault),
        None if last.items.list.is_empty() => Said::Dropped,
        None => Said::Passed(last.items),
    }
}

/// Of a scan: the last record of each partition that has any.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    last: OffsetMap,
}

/// Of a route's letters in `topic`: where in each partition those begin that no redrive has settled. A partition without an
/// entry was never begun.
///
/// # Errors
/// The cluster does not answer, or refuses.
pub fn settled_of(cluster: &Cluster, route: &Route, topic: &TopicName) -> Result<OffsetMap, Trouble> {
    settled(cluster, &route_of(route, topic, &cluster.kafka().prefix), topic)
}

fn settled(cluster: &Cluster, route: &Route, topic: &TopicName) -> Result<OffsetMap, Trouble> {
    let count = cluster.topics()?.partitions(topic.as_str());
    let count = count.ok_or_else(|| Trouble::missing_topic(topic))?;
    let at = |partition| TopicPartition { topic: topic.clone(), partition };
    kafka::committed(cluster, route, &(0..count).map(at).collect::<Vec<_>>())
}

/// The route, as one that reads the dead-letter topic.
fn route_of(of: &Route, topic: &TopicName, prefix: &str) -> Route {
    let group = format!("{prefix}.redrive.{}.{topic}", of.name);
    Route {
        source: Source {
            topics: vec![TopicSelector::Name(topic.clone())],
            exclude: Vec::new(),
            group: GroupId::new(group).expect("of names that are valid"),
            start: Start::Earliest,
            // (letters that the topic no longer holds were given up by its retention)
            on_offset_lost: OnOffsetLost::Earliest,
            consumer: of.source.consumer.clone(),
        },
        delivery: Delivery::ExactlyOnce,
        workers: 1,
        on_error: OnError { retry: of.on_error.retry, then: Disposition::DeadLetter(topic.clone()) },
        ..of.clone()
    }
}

fn plan_of(of: &RoutePlan, topic: &TopicName, prefix: &str) -> RoutePlan {
    RoutePlan {
        steps: of.steps.clone(),
        shadow: None,
        first_worker: 0,
        left_out: Arc::new(LeftOut::default()),
        share: of.share,
        session_timeout: of.session_timeout,
        bounds: of.bounds,
        route: route_of(&of.route, topic, prefix),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the worker tells of itself.
struct News(Arc<Mutex<Progress>>);

impl Report for News {
    fn taken_up(&mut self, _: &Task) {}
    fn health(&mut self, _: &Health) {}
    fn transaction_begins(&mut self) {}
    fn transaction(&mut self, _: &'static str, _: Duration) {}
    fn committed(&mut self, tally: &Tally) {
        let mut progress = lock(&self.0);
        progress.trouble = None;
        progress.redriven += tally.consumed.iter().map(|(_, [records, _])| records).sum::<u64>();
        progress.outputs += tally.produced.iter().map(|(_, [records, _])| records).sum::<u64>();
        progress.filtered += tally.filtered.iter().map(|(_, [items])| items).sum::<u64>();
        for (code, [records]) in &tally.dead_letters {
            *progress.failed.entry(*code).or_default() += records;
        }
    }
    fn fault(&mut self, _: &TopicPartition, _: Offset, _: ErrorId, _: &Fault, _: Fate) {}
    fn usage(&mut self, _: &PluginName, _: Usage) {}
    fn trouble(&mut self, trouble: &Trouble) {
        lock(&self.0).trouble = Some(trouble.clone());
    }
    fn lost(&mut self, _: &TopicPartition, _: u64, _: &str) {}
    fn rebalanced(&mut self) {}
}
