//! What lies between a redrive's worker and Kafka: a session that hands out the letters to be sent through as the records that
//! they were, and settles the others beside them.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::{Course, Progress, RETRY_PAUSE, Redrive, Terms, lock};
use crate::kafka::Session;
use crate::model::{Offset, OffsetMap, Redriven, SourceBatch, TopicName, TopicPartition};
use crate::pipeline::dead_letter::{Letter, REDRIVES};
use crate::pipeline::ports::{
    Broker, Event, Headers, Outcome, Output, Outputs, TopicError, TopicInfo, Trouble, TroubleKind,
};
use crate::pipeline::worker::Order;
use crate::policy::partition_for_key;

/// Most letters that wait to be put back while others are sent through.
const BACK_MOST: usize = 5_000;
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// A session that hands out the letters to be sent through, and settles the others beside them.
pub(super) struct Letters<'a> {
    session: Session,
    route: &'a str,
    terms: &'a Terms,
    progress: Arc<Mutex<Progress>>,
    topic: TopicInfo,
    aside: Option<TopicInfo>,
    /// Partitions that are not settled yet, with their last record.
    left: BTreeMap<TopicPartition, Lane>,
    /// The outcome of settling what is passed by is not known.
    unknown: Option<OffsetMap>,
    tries: Option<Instant>,
    orders: Sender<Order>,
    budget: Option<Rate>,
    done: bool,
}

struct Lane {
    /// The offset of the last record that is to be settled.
    last: Offset,
    /// Behind the last record that was seen; nothing before the first.
    seen: Option<Offset>,
    /// Behind the last letter that the worker was given.
    given: Option<Offset>,
    /// Letters that are passed by, ascending.
    back: VecDeque<Back>,
    /// Before this all is settled.
    committed: Offset,
}

impl Lane {
    fn new(last: Offset) -> Self {
        Self { last, seen: None, given: None, back: VecDeque::new(), committed: 0 }
    }
}

/// A letter that is settled without the worker.
struct Back {
    batch: Arc<dyn SourceBatch>,
    index: usize,
    way: Way,
}

enum Way {
    /// To the end of its topic, as it is.
    Back,
    /// To another topic, as it is.
    Aside,
    /// To where it came from, as it came.
    Source { slot: u16, partition: i32, headers: usize, times: u32 },
}

impl Back {
    fn offset(&self) -> Offset {
        self.batch.offset(self.index)
    }
}

impl<'a> Letters<'a> {
    pub(super) fn new(
        mut session: Session,
        redrive: &'a Redrive,
        left: OffsetMap,
        orders: Sender<Order>,
    ) -> Result<Self, Trouble> {
        let topic = known(&mut session, &redrive.topic)?;
        let aside = redrive.terms.set_aside.as_ref().map(|topic| known(&mut session, topic)).transpose()?;
        Ok(Self {
            session,
            route: redrive.plan.route.name.as_str(),
            terms: &redrive.terms,
            progress: redrive.progress(),
            topic,
            aside,
            left: left.into_iter().map(|(at, last)| (at, Lane::new(last))).collect(),
            unknown: None,
            tries: None,
            orders,
            budget: redrive.terms.rate.map(Rate::new),
            done: false,
        })
    }

    /// Keeps what is to be sent through of a batch; remembers the rest.
    ///
    /// # Errors
    /// The topic that a letter came from is not known.
    fn sort(&mut self, batch: &Arc<dyn SourceBatch>) -> Result<Option<Arc<dyn SourceBatch>>, Trouble> {
        let Some(lane) = self.left.get_mut(batch.topic_partition()) else { return Ok(None) };
        let mut records = Vec::new();
        for index in 0..batch.len() {
            let offset = batch.offset(index);
            if offset > lane.last {
                break;
            }
            let way = match self.terms.course(self.route, &**batch, index) {
                (Course::Redrive, Some(letter)) => {
                    let (headers, redriven) = (Letter::own_headers(&**batch, index), letter.redriven());
                    match self.terms.to_source {
                        true => Some(to_source(&mut self.session, &**batch, index, headers, &redriven)?),
                        false => {
                            lane.given = Some(offset + 1);
                            records.push(Record { index, headers, redriven });
                            None
                        }
                    }
                }
                (Course::NotOurs | Course::Redrive, _) => None,
                (Course::TooOften | Course::Cut, _) if self.aside.is_some() => Some(Way::Aside),
                (Course::LeftOut | Course::TooOften | Course::Cut, _) => Some(Way::Back),
            };
            lane.seen = Some(offset + 1);
            lane.back.extend(way.map(|way| Back { batch: Arc::clone(batch), index, way }));
        }
        if records.is_empty() {
            return Ok(None);
        }
        Ok(Some(Arc::new(Sorted { batch: Arc::clone(batch), records })))
    }

    fn waiting(&self) -> usize {
        self.left.values().map(|lane| lane.back.len()).sum()
    }

    /// Whether the worker has settled all that it was given.
    fn is_idle(&self) -> bool {
        self.left.values().all(|lane| lane.given.is_none())
    }

    fn seen(&self) -> OffsetMap {
        self.left.iter().filter_map(|(at, lane)| Some((at.clone(), lane.seen?))).collect()
    }

    fn has_seen_all(&self) -> bool {
        self.left.values().all(|lane| lane.seen.is_some_and(|seen| seen > lane.last))
    }

    /// Settles what is passed by and behind what the worker has done.
    fn pass_by(&mut self, events: &mut Vec<Event>) {
        if self.tries.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let outcome = match &self.unknown {
            Some(offsets) => self.session.settle(offsets),
            None => {
                let offsets = self.seen();
                let outcome = self.give(&Nothing, &offsets);
                if matches!(outcome, Outcome::Unknown(_)) {
                    self.unknown = Some(offsets);
                }
                outcome
            }
        };
        self.tries = None;
        match outcome {
            Outcome::Committed { .. } => {
                let offsets = self.unknown.take().unwrap_or_else(|| self.seen());
                self.settled(&offsets);
            }
            Outcome::Aborted(trouble) => {
                self.unknown = None;
                self.tries = Some(Instant::now() + RETRY_PAUSE);
                events.push(Event::Trouble(trouble));
            }
            Outcome::Unknown(trouble) => {
                self.tries = Some(Instant::now() + RETRY_PAUSE);
                events.push(Event::Trouble(trouble));
            }
            Outcome::Rejected { message, .. } => {
                let message = format!("the dead-letter topic refuses a letter that it held before: {message}");
                events.push(Event::Broken(Trouble { code: "REJECTED".into(), message, kind: TroubleKind::Denied }));
            }
            Outcome::Broken(trouble) => events.push(Event::Broken(trouble)),
        }
    }

    /// One transaction of the worker's outputs and of the letters passed by before these offsets.
    fn give(&mut self, outputs: &dyn Outputs, offsets: &OffsetMap) -> Outcome {
        let before = |(at, lane): (&TopicPartition, &'_ Lane)| {
            let offset = offsets.get(at).copied().unwrap_or(0);
            lane.back.iter().take_while(|back| back.offset() < offset).count()
        };
        let counts: Vec<usize> = self.left.iter().map(before).collect();
        let back = self.left.values().zip(counts).flat_map(|(lane, count)| lane.back.range(..count));
        let both = Both { outputs, back: back.map(|back| (back, self.place(back))).collect() };
        self.session.transact(&both, offsets)
    }

    fn place(&self, back: &Back) -> (u16, i32) {
        match (&back.way, &self.aside) {
            (Way::Source { slot, partition, .. }, _) => (*slot, *partition),
            (Way::Aside, Some(aside)) => {
                let key = back.batch.key(back.index);
                (aside.slot, key.map_or(0, |key| partition_for_key(key, aside.partitions)))
            }
            (Way::Back | Way::Aside, _) => (self.topic.slot, back.batch.topic_partition().partition),
        }
    }

    /// All before these offsets is settled.
    fn settled(&mut self, offsets: &OffsetMap) {
        let mut progress = lock(&self.progress);
        for (at, offset) in offsets {
            let Some(lane) = self.left.get_mut(at) else { continue };
            while let Some(back) = lane.back.pop_front_if(|back| back.offset() < *offset) {
                match back.way {
                    Way::Back => progress.put_back += 1,
                    Way::Aside => progress.set_aside += 1,
                    Way::Source { .. } => {
                        (progress.redriven, progress.outputs) = (progress.redriven + 1, progress.outputs + 1)
                    }
                }
            }
            lane.given = lane.given.filter(|given| given > offset);
            lane.committed = *offset;
        }
    }
}

/// Where a record goes that is put back to where it came from: its own partition, if that is still there.
fn to_source(
    session: &mut Session,
    batch: &dyn SourceBatch,
    index: usize,
    headers: usize,
    redriven: &Redriven,
) -> Result<Way, Trouble> {
    let TopicInfo { slot, partitions } = known(session, &redriven.from.topic)?;
    let by_key = || batch.key(index).map_or(0, |key| partition_for_key(key, partitions));
    let partition = if redriven.from.partition < partitions { redriven.from.partition } else { by_key() };
    Ok(Way::Source { slot, partition, headers, times: redriven.times })
}

fn known(session: &mut Session, topic: &TopicName) -> Result<TopicInfo, Trouble> {
    session.topic(topic).map_err(|error| match error {
        TopicError::Unknown => Trouble::missing_topic(topic),
        TopicError::Trouble(trouble) => trouble,
    })
}

impl Broker for &mut Letters<'_> {
    fn poll(&mut self, wait: Duration, records: usize, events: &mut Vec<Event>) {
        if self.is_idle() && !self.done {
            if self.left.values().all(|lane| lane.committed > lane.last) {
                self.done = true;
                // (an error: the worker has ended)
                let _ = self.orders.send(Order::Drain { leave: true, within: CLOSE_WITHIN });
            } else if self.has_seen_all() || self.waiting() >= BACK_MOST || self.unknown.is_some() {
                self.pass_by(events);
            }
        }
        // What waits to be put back is settled before more is fetched.
        let records = if self.waiting() >= BACK_MOST || self.unknown.is_some() { 1 } else { records };
        let records = self.budget.as_mut().map_or(records, |budget| budget.await_some(records));
        let mut happened = Vec::new();
        self.session.poll(wait, records, &mut happened);
        for event in happened {
            match event {
                Event::Records(batch) => {
                    if let Some(budget) = &mut self.budget {
                        budget.spend(batch.len());
                    }
                    match self.sort(&batch) {
                        Ok(sorted) => events.extend(sorted.map(Event::Records)),
                        Err(trouble) => events.push(Event::Broken(trouble)),
                    }
                }
                Event::Assigned(partitions) => {
                    partitions.iter().for_each(|at| {
                        if let Some(lane) = self.left.get_mut(at) {
                            *lane = Lane::new(lane.last);
                        }
                    });
                    events.push(Event::Assigned(partitions));
                }
                Event::Revoked(partitions) => {
                    // Another has taken the work over, or the group has given this member up.
                    let message = "the partitions of the dead-letter topic have been taken away".to_owned();
                    events.push(Event::Revoked(partitions));
                    events.push(Event::Broken(Trouble { code: "REVOKED".into(), message, kind: TroubleKind::Moved }));
                }
                other => events.push(other),
            }
        }
    }

    fn pause(&mut self, partitions: &[TopicPartition]) {
        self.session.pause(partitions);
    }
    fn resume(&mut self, partitions: &[TopicPartition]) {
        self.session.resume(partitions);
    }
    fn topic(&mut self, name: &TopicName) -> Result<TopicInfo, TopicError> {
        self.session.topic(name)
    }
    fn transact(&mut self, outputs: &dyn Outputs, offsets: &OffsetMap) -> Outcome {
        let outcome = self.give(outputs, offsets);
        if matches!(outcome, Outcome::Committed { .. }) {
            self.settled(offsets);
        }
        outcome
    }
    fn settle(&mut self, offsets: &OffsetMap) -> Outcome {
        let outcome = self.session.settle(offsets);
        if matches!(outcome, Outcome::Committed { .. }) {
            self.settled(offsets);
        }
        outcome
    }
    fn close(&mut self, leave: bool, deadline: Duration) {
        self.session.close(leave, deadline);
    }
}

/// No outputs.
struct Nothing;

impl Outputs for Nothing {
    fn len(&self) -> usize {
        0
    }
    fn for_each(&self, _: &mut dyn FnMut(Output<'_>) -> ControlFlow<()>) {}
}

/// The worker's outputs, then letters as they lie in the topic.
struct Both<'a> {
    outputs: &'a dyn Outputs,
    back: Vec<(&'a Back, (u16, i32))>,
}

impl Outputs for Both<'_> {
    fn len(&self) -> usize {
        self.outputs.len() + self.back.len()
    }
    fn for_each(&self, produce: &mut dyn FnMut(Output<'_>) -> ControlFlow<()>) {
        let mut course = ControlFlow::Continue(());
        self.outputs.for_each(&mut |output| {
            course = produce(output);
            course
        });
        for (Back { batch, index, way }, (topic, partition)) in &self.back {
            if course.is_break() {
                return;
            }
            let (own, times) = match way {
                Way::Source { headers, times, .. } => (*headers, Some(*times)),
                Way::Back | Way::Aside => (batch.header_count(*index), None),
            };
            let mut headers: Vec<_> = (0..own)
                .map(|nth| batch.header(*index, nth))
                .map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec)))
                .collect();
            // So that it is not sent round for ever: if it is at fault again, its letter keeps this.
            headers.extend(times.map(|times| (REDRIVES.as_bytes().to_vec(), Some(times.to_string().into_bytes()))));
            course = produce(Output {
                topic: *topic,
                partition: *partition,
                key: batch.key(*index),
                value: batch.value(*index),
                timestamp: batch.timestamp(*index),
                headers: Headers::List(&headers),
                keeper: None,
            });
        }
    }
}

/// Of a batch the letters that are sent through, as they were before they became letters.
struct Sorted {
    batch: Arc<dyn SourceBatch>,
    records: Vec<Record>,
}

struct Record {
    /// In the batch.
    index: usize,
    /// How many headers were its own.
    headers: usize,
    redriven: Redriven,
}

impl SourceBatch for Sorted {
    fn topic_partition(&self) -> &TopicPartition {
        self.batch.topic_partition()
    }
    fn len(&self) -> usize {
        self.records.len()
    }
    fn offset(&self, index: usize) -> Offset {
        self.batch.offset(self.records[index].index)
    }
    fn timestamp(&self, index: usize) -> i64 {
        self.batch.timestamp(self.records[index].index)
    }
    fn key(&self, index: usize) -> Option<&[u8]> {
        self.batch.key(self.records[index].index)
    }
    fn value(&self, index: usize) -> Option<&[u8]> {
        self.batch.value(self.records[index].index)
    }
    fn header_count(&self, index: usize) -> usize {
        self.records[index].headers
    }
    fn header(&self, index: usize, nth: usize) -> (&[u8], Option<&[u8]>) {
        self.batch.header(self.records[index].index, nth)
    }
    fn redriven(&self, index: usize) -> Option<Redriven> {
        Some(self.records[index].redriven.clone())
    }
}

/// At most so many a second; what a second does not use is lost.
struct Rate {
    each: Duration,
    /// The next may come then.
    next: Instant,
}

impl Rate {
    fn new(per_second: NonZeroU32) -> Self {
        Self { each: Duration::from_secs(1) / per_second.get(), next: Instant::now() }
    }

    /// Waits until one may come; how many of `most` may now.
    fn await_some(&mut self, most: usize) -> usize {
        let now = Instant::now();
        std::thread::park_timeout(self.next.saturating_duration_since(now));
        let tenth = Duration::from_millis(100).as_nanos() / self.each.as_nanos().max(1);
        most.min(usize::try_from(tenth).unwrap_or(most).max(1))
    }

    fn spend(&mut self, records: usize) {
        let records = u32::try_from(records).unwrap_or(u32::MAX);
        self.next = self.next.max(Instant::now()) + self.each.saturating_mul(records);
    }
}

/// A dead letter as the record that it was, alone.
pub fn record_of(batch: &Arc<dyn SourceBatch>, index: usize, letter: &Letter) -> Arc<dyn SourceBatch> {
    let headers = Letter::own_headers(&**batch, index);
    let records = vec![Record { index, headers, redriven: letter.redriven() }];
    Arc::new(Sorted { batch: Arc::clone(batch), records })
}
