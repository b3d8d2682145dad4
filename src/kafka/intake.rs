//! The consumer's half of a session: serves the group, fetches, and takes partitions up where the group left them.
//!
//! Used from one thread only, also while a transaction is under way on another: a rebalance then waits for its end
//! ([`Assignment`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::config::settings::{OnOffsetLost, Route};
use crate::config::times::Times;
use crate::model::{Mutation, Offset, OffsetMap, TopicName, TopicPartition};
use crate::pipeline::ports::{Event, Fetch, Trouble, TroubleKind};

use super::convert;
use super::errors::{About, is_all_down, passing, trouble};
use super::log_ends::{Found, LogEnds};
use super::raw::{
    Committed, ConsumerQueue, Error, Handle, Known, Message, OFFSET_BEGINNING, OFFSET_INVALID, PartitionList,
    QueueWaker,
};
use super::rebalance::{Assignment, Change, list};
use super::seam::{TopicIds, with_ids};
use super::topics::Cluster;
use super::twins;
use super::watchdog::Watchdog;

/// How long the look-up of a topic may take.
pub(super) const TOPIC_WITHIN: Duration = Duration::from_secs(5);
/// After this long no other partition is taken up in the same poll. (One takes four answers at most.)
const RESOLVE_WITHIN: Duration = Duration::from_secs(2);
/// How often it is asked where partitions go on for which that could not be had when they were taken up, and how long that may
/// hold the others up.
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_WITHIN: Duration = Duration::from_secs(1);
/// A trouble with the same code is told this often at most.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How long the question for its topics' ids may hold a session up.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// A member of a route's group.
pub(super) struct Intake {
    pub(super) route: Route,
    pub(super) cluster: Cluster,
    /// The `group.instance.id`, where membership is static.
    pub(super) member: Option<String>,
    pub(super) queue: ConsumerQueue,
    pub(super) assignment: Arc<Assignment>,
    pub(super) times: Times,
    /// Of the topics of which partitions are ours, kept beside the committed offsets. A transaction that is under way has
    /// its own copy.
    pub(super) topic_ids: Arc<TopicIds>,
    /// As of when.
    learned: Instant,
    /// When it is asked again where partitions go on.
    next_ask: Instant,
    messages: Vec<Message>,
    /// Partitions to be taken up again once their offset can be had, with what was said when they stopped.
    pub(super) to_resolve: BTreeMap<TopicPartition, (Instant, String)>,
    told: HashMap<String, Instant>,
    watchdog: Watchdog,
    log_ends: LogEnds,
    /// Nothing more is to be done: closed, or of no more use.
    pub(super) broken: bool,
    /// The transaction that is under way needs no more.
    has_ended: Arc<AtomicBool>,
}

/// A transaction takes what is fetched until this is dropped, on whatever thread; that ends the wait for records.
pub(super) struct Taking {
    has_ended: Arc<AtomicBool>,
    assignment: Arc<Assignment>,
    wake: QueueWaker,
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::Release);
        self.assignment.end_wait(|| self.wake.wake());
    }
}

impl Intake {
    pub(super) fn new(
        route: Route,
        cluster: Cluster,
        member: Option<String>,
        (queue, assignment): (ConsumerQueue, Arc<Assignment>),
        times: Times,
    ) -> Self {
        let log_ends = cluster.log_ends();
        Self {
            route,
            cluster,
            member,
            queue,
            assignment,
            times,
            topic_ids: Arc::default(),
            learned: Instant::now(),
            next_ask: Instant::now(),
            messages: Vec::new(),
            to_resolve: BTreeMap::new(),
            told: HashMap::new(),
            watchdog: Watchdog::default(),
            log_ends,
            broken: false,
            has_ended: Arc::default(),
        }
    }

    /// From now on what is fetched is for a transaction, until what this returns is dropped.
    pub(super) fn fetch_for_transaction(&mut self) -> Taking {
        self.has_ended = Arc::default();
        let (has_ended, assignment) = (Arc::clone(&self.has_ended), Arc::clone(&self.assignment));
        Taking { has_ended, assignment, wake: self.queue.waker() }
    }

    pub(super) fn consumer(&self) -> &Handle {
        self.queue.client()
    }

    /// Neither a member any more, nor owner of a partition.
    pub(super) fn has_left(&self) -> bool {
        self.assignment.is_empty() && !self.consumer().group_metadata().is_some_and(|member| member.is_member())
    }

    pub(super) fn take(&mut self, wait: Duration, records: usize, events: &mut Vec<Event>) {
        let mut messages = std::mem::take(&mut self.messages);
        // A batch call waits for all it was asked for: so first for one, then for what is there.
        self.queue.consume(wait, 1, &mut messages);
        self.take_changes(events);
        if !messages.is_empty() && records > 1 {
            self.queue.consume(Duration::ZERO, records - 1, &mut messages);
        }
        if messages.len() < records {
            self.watchdog.drained();
        }
        let during = self.take_changes(events);
        let (fetched, failed): (Vec<_>, Vec<_>) = messages.drain(..).partition(|message| !message.is_error());
        self.messages = messages;
        let assignment = Arc::clone(&self.assignment);
        for batch in convert::batches(fetched, self.queue.client(), |partition| assignment.delivers(partition)) {
            // Taken and given back while records of it were being handed out: nobody can tell from which of the two
            // assignments these are.
            if during.contains(batch.topic_partition()) {
                self.broken = true;
                let message = format!("{} was revoked and assigned again at once", batch.topic_partition());
                let moved = passing(Known::RD_KAFKA_RESP_ERR__OUTDATED, message);
                events.push(Event::Broken(Trouble { kind: TroubleKind::Moved, ..moved }));
                return;
            }
            // (the client itself was told where it goes on, and hands on no note that stands beside the offset)
            if self.assignment.is_unresolved(batch.topic_partition()) {
                self.look_at_note(batch.topic_partition(), events);
            }
            if self.broken || self.to_resolve.contains_key(batch.topic_partition()) {
                continue;
            }
            if Mutation::Deaf.is_due() {
                let _ = self.consumer().pause(&list(std::slice::from_ref(batch.topic_partition())));
            }
            events.push(Event::Records(batch));
        }
        for message in failed {
            if let Some(error) = message.error() {
                self.on_error(&error, message.topic_partition(), events);
            }
        }
    }

    /// Hands on what rebalances did; returns the partitions that were revoked.
    fn take_changes(&mut self, events: &mut Vec<Event>) -> BTreeSet<TopicPartition> {
        let (mut revoked, mut has_changed) = (BTreeSet::new(), false);
        for change in self.assignment.take_changes() {
            match change {
                Change::Assigned(assigned) => {
                    let partitions: Vec<_> = assigned.iter().map(|(partition, _)| partition.clone()).collect();
                    // (first the client itself may be told)
                    self.next_ask = Instant::now() + ASK_EVERY;
                    self.compare_topic_ids(&partitions, events);
                    events.push(Event::Assigned(partitions));
                    let committed = assigned.into_iter().filter_map(|(partition, offset)| Some((partition, offset?)));
                    events.extend(committed.map(|(partition, offset)| Event::Reached { partition, offset }));
                }
                Change::Revoked(partitions) => {
                    self.to_resolve.retain(|partition, _| !partitions.contains(partition));
                    revoked.extend(partitions.iter().cloned());
                    events.push(Event::Revoked(partitions));
                }
                Change::Failed(code) => self.on_error(&Error::of(code), None, events),
            }
            has_changed = true;
        }
        if has_changed {
            self.log_ends.watch(self.assignment.owned());
        }
        revoked
    }

    /// Stops partitions whose committed offset is of a topic that has since been deleted and created again: the offset
    /// says nothing about the new one.
    fn compare_topic_ids(&mut self, partitions: &[TopicPartition], events: &mut Vec<Event>) {
        self.learn_topic_ids(partitions, events);
        for partition in partitions {
            let (Some(note), Some(id)) = (self.assignment.note(partition), self.topic_ids.get(&partition.topic)) else {
                continue;
            };
            // An id is 22 characters; another tool's note is none of our business.
            if note.len() == id.len() && note != *id {
                let said = created_again(&note, id);
                self.stop(partition, said, events);
            }
        }
    }

    /// The same for a partition whose offset came late.
    fn look_at_note(&mut self, partition: &TopicPartition, events: &mut Vec<Event>) {
        match self.consumer().committed([partition.clone()], ASK_WITHIN) {
            Ok(found) => {
                self.assignment.take_notes(&found);
                self.assignment.resolved(partition);
                self.compare_topic_ids(std::slice::from_ref(partition), events);
            }
            // (as after any loss of the coordinator, the next session takes up what is committed)
            Err(error) => {
                self.broken = true;
                let found = trouble(&error, About::Group(&self.route.source.group));
                events.push(Event::Broken(Trouble { kind: TroubleKind::Moved, ..found }));
            }
        }
    }

    /// The same for a topic that is replaced while it is read.
    fn compare_found(&mut self, found: &Found, events: &mut Vec<Event>) {
        // (what was asked before we last did may be older than what we know)
        let Some((asked, ids)) = found.ids.as_ref().filter(|(asked, _)| *asked > self.learned) else { return };
        for partition in self.assignment.owned() {
            let (was, is) = (self.topic_ids.get(&partition.topic), ids.get(&partition.topic));
            if let (Some(was), Some(is)) = (was, is)
                && was != is
            {
                let said = created_again(was, is);
                self.stop(&partition, said, events);
            }
        }
        self.learned = *asked;
        let subscribed = |(topic, _): &(&TopicName, &String)| self.topic_ids.contains_key(*topic);
        let ours: Vec<_> = ids.iter().filter(subscribed).map(|(topic, id)| (topic.clone(), id.clone())).collect();
        if ours.iter().any(|(topic, id)| self.topic_ids.get(topic) != Some(id)) {
            Arc::make_mut(&mut self.topic_ids).extend(ours);
        }
    }

    fn learn_topic_ids(&mut self, partitions: &[TopicPartition], events: &mut Vec<Event>) {
        let topics: BTreeSet<_> = partitions.iter().map(|partition| partition.topic.clone()).collect();
        let topics: Vec<_> = topics.into_iter().collect();
        match self.cluster.topic_ids(&topics, LOOK_WITHIN) {
            Ok(ids) => {
                Arc::make_mut(&mut self.topic_ids).extend(ids);
                self.learned = Instant::now();
            }
            Err(error) => self.on_error(&error, None, events),
        }
    }

    /// Stops a partition until it is settled where it goes on.
    fn stop(&mut self, partition: &TopicPartition, said: String, events: &mut Vec<Event>) {
        self.assignment.stop(partition);
        if let Err(error) = self.consumer().pause(&list(std::slice::from_ref(partition))) {
            self.on_error(&error, Some(partition.clone()), events);
        }
        self.to_resolve.insert(partition.clone(), (Instant::now(), said));
    }

    pub(super) fn on_error(&mut self, error: &Error, partition: Option<TopicPartition>, events: &mut Vec<Event>) {
        let group = self.route.source.group.clone();
        let about = match &partition {
            Some(partition) => About::Read(&partition.topic),
            None => About::Group(&group),
        };
        if let (Known::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET, Some(partition)) = (error.code.known(), &partition) {
            if self.assignment.owns(partition) {
                self.to_resolve.insert(partition.clone(), (Instant::now(), error.message.clone()));
            }
            return;
        }
        let fatal = self.consumer().fatal_error().filter(|_| error.fatal || is_fatal(error));
        let found = trouble(fatal.as_ref().unwrap_or(error), about);
        if fatal.is_some() || (found.kind == TroubleKind::Duplicate && self.member.is_some()) {
            self.broken = true;
            events.push(Event::Broken(self.with_twin(found)));
        } else if self.is_news(&found.code) {
            events.push(if is_all_down(error.code) { Event::Away(found) } else { Event::Trouble(found) });
        }
    }

    /// Says of a twin where it is.
    pub(super) fn with_twin(&self, found: Trouble) -> Trouble {
        match &self.member {
            Some(member) if found.kind == TroubleKind::Duplicate => {
                let own = self.consumer().group_metadata().map(|own| own.member_id());
                let twin = self.cluster.twin(&self.route.source.group, member, own.as_deref(), twins::SEEN_WITHIN);
                twins::trouble(member, twin.as_ref(), Some(&found))
            }
            _ => found,
        }
    }

    pub(super) fn is_news(&mut self, code: &str) -> bool {
        let now = Instant::now();
        match self.told.get_mut(code) {
            Some(last) if now.duration_since(*last) < TELL_EVERY => false,
            Some(last) => {
                *last = now;
                true
            }
            None => {
                self.told.insert(code.to_owned(), now);
                true
            }
        }
    }

    /// Takes up partitions that stopped for want of an offset: never committed, or no longer in the log.
    pub(super) fn resolve(&mut self, events: &mut Vec<Event>) {
        let now = Instant::now();
        let due: Vec<_> = self.to_resolve.iter().filter(|(_, (at, _))| *at <= now).map(|(p, _)| p.clone()).collect();
        for partition in due {
            // The others are taken up at the next poll: each may wait for its answers, and the group wants to be served.
            if now.elapsed() >= RESOLVE_WITHIN {
                return;
            }
            let Some((_, said)) = self.to_resolve.remove(&partition) else { continue };
            let said = self.replaced(&partition, events).unwrap_or(said);
            match self.resolve_one(&partition, &said) {
                Ok(event) => events.extend(event),
                Err(error) => {
                    self.to_resolve.insert(partition.clone(), (now + TOPIC_WITHIN, said));
                    self.on_error(&error, Some(partition), events);
                }
            }
        }
    }

    /// What there is to say if the topic was deleted and created again since its id was last looked at.
    fn replaced(&mut self, partition: &TopicPartition, events: &mut Vec<Event>) -> Option<String> {
        let was = self.topic_ids.get(&partition.topic).cloned()?;
        self.learn_topic_ids(std::slice::from_ref(partition), events);
        let is = self.topic_ids.get(&partition.topic)?;
        (was != *is).then(|| created_again(&was, is))
    }

    fn resolve_one(&mut self, partition: &TopicPartition, said: &str) -> Result<Vec<Event>, Error> {
        let committed = self.consumer().committed([partition.clone()], TOPIC_WITHIN)?;
        let committed = committed.first().map_or(OFFSET_INVALID, |found| found.offset);
        if committed == OFFSET_INVALID && self.assignment.is_unresolved(partition) {
            let ended = self.restart(partition, OFFSET_BEGINNING)?;
            self.assignment.resolved(partition);
            return Ok(ended.into_iter().collect());
        }
        // (the client was told, and cannot read there)
        self.assignment.resolved(partition);
        let (low, high) = self.consumer().watermarks(partition, TOPIC_WITHIN)?;
        let at = if committed == OFFSET_INVALID { "its position".to_owned() } else { format!("offset {committed}") };
        let message = format!("{at} cannot be read, the log holds {low} to {high}: {said}");
        let from = committed.clamp(0, high);
        let (to, lost) = match self.route.source.on_offset_lost {
            OnOffsetLost::Stop => {
                let message = format!("{message}; to accept that, write `on_offset_lost: earliest` or `latest`");
                return Ok(vec![Event::OffsetLost { partition: partition.clone(), message }]);
            }
            OnOffsetLost::Earliest => (low, low - from),
            OnOffsetLost::Latest => (high, high - from),
        };
        // Committed first, so that it is accepted once and counted once.
        let accepted = OffsetMap::from([(partition.clone(), to)]);
        self.consumer().commit_offsets(&with_ids(&accepted, &self.topic_ids), self.times.offsets)?;
        let lost = u64::try_from(lost).unwrap_or(0);
        let mut events = vec![Event::OffsetReset { partition: partition.clone(), to, lost, message }];
        events.extend(self.restart(partition, to)?);
        Ok(events)
    }

    /// Asks anew where partitions go on for which that could not be had when they were taken up. The client asks as well, but
    /// never again once a coordinator has moved or refused (librdkafka 5586).
    pub(super) fn ask_again(&mut self, events: &mut Vec<Event>) {
        let now = Instant::now();
        let mut unresolved = self.assignment.unresolved();
        unresolved.retain(|partition| !self.to_resolve.contains_key(partition));
        if unresolved.is_empty() || now < self.next_ask {
            return;
        }
        self.next_ask = now + ASK_EVERY;
        let found = match self.consumer().committed(unresolved, ASK_WITHIN) {
            Ok(found) => found,
            // As a rule a predecessor's open transaction holds them back, which is no trouble yet.
            Err(error) if error.code == Known::RD_KAFKA_RESP_ERR__TIMED_OUT.into() => return,
            Err(error) => return self.on_error(&error, None, events),
        };
        let partitions: Vec<_> = found.iter().map(|found| found.at.clone()).collect();
        self.assignment.take_notes(&found);
        self.compare_topic_ids(&partitions, events);
        for Committed { at, offset, .. } in found {
            if self.to_resolve.contains_key(&at) {
                continue;
            }
            match self.go_on(&at, offset) {
                Ok(ended) => events.extend(ended),
                Err(error) => self.on_error(&error, Some(at), events),
            }
            if self.broken {
                return;
            }
        }
    }

    /// Starts a partition where its group has committed.
    fn go_on(&mut self, at: &TopicPartition, committed: Offset) -> Result<Option<Event>, Error> {
        let from = if committed == OFFSET_INVALID { OFFSET_BEGINNING } else { committed };
        let ended = match self.consumer().seek(at, from, ASK_WITHIN) {
            // The client was told meanwhile, and nothing of it was handed out yet.
            Ok(()) => None,
            Err(error) if error.code == Known::RD_KAFKA_RESP_ERR__STATE.into() => self.restart(at, from)?,
            Err(error) => return Err(error),
        };
        self.assignment.resolved(at);
        Ok(ended.or((committed >= 0).then(|| Event::Reached { partition: at.clone(), offset: committed })))
    }

    /// Fetches an assigned partition from `offset` on. A partition that stopped cannot be moved by a seek. An eager
    /// protocol can only assign all anew: then the session ends, and the next takes up what is committed.
    pub(super) fn restart(&mut self, partition: &TopicPartition, offset: i64) -> Result<Option<Event>, Error> {
        let one = list(std::slice::from_ref(partition));
        let consumer = self.consumer();
        if !consumer.is_cooperative() {
            self.broken = true;
            let message = format!("{partition} goes on at another offset");
            let moved = passing(Known::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET, message);
            return Ok(Some(Event::Broken(Trouble { kind: TroubleKind::Moved, ..moved })));
        }
        if !self.assignment.delivers(partition) {
            consumer.resume(&one)?;
        }
        consumer.incremental_unassign(&one)?;
        consumer.incremental_assign(&PartitionList::of([(partition.clone(), offset)]))?;
        self.assignment.start(partition);
        Ok(None)
    }

    /// How far logs go, as was last found, and whether the topics are still the same; and up to where all was handed out, which passes
    /// marks of transactions, too.
    pub(super) fn look_at_ends(&mut self, events: &mut Vec<Event>) {
        let Some(found) = self.log_ends.look() else { return };
        self.compare_found(&found, events);
        let end = |partition: TopicPartition| found.ends.get(&partition).map(|end| (partition, *end));
        let ends: Vec<_> = self.assignment.owned().into_iter().filter_map(end).collect();
        if ends.is_empty() {
            return;
        }
        let positions = self.consumer().positions(ends.iter().map(|(partition, _)| partition.clone()));
        let known = positions.into_iter().filter(|(_, offset)| *offset >= 0);
        events.extend(known.map(|(partition, offset)| Event::Reached { partition, offset }));
        events.push(Event::Logs(ends));
    }

    /// A client that has gone deaf is given up.
    pub(super) fn watch(&mut self, events: &mut Vec<Event>) {
        let (assignment, to_resolve) = (&self.assignment, &self.to_resolve);
        let flows = |at: &TopicPartition, position| assignment.flows(at, position) && !to_resolve.contains_key(at);
        if let Some(stalled) = self.watchdog.look(self.queue.client(), flows) {
            self.broken = true;
            events.push(Event::Broken(stalled));
        }
    }
}

fn created_again(was: &str, is: &str) -> String {
    format!("the topic was deleted and created again (its id was {was}, and is {is})")
}

/// Whether the consumer says that it is of no more use.
fn is_fatal(error: &Error) -> bool {
    error.code == Known::RD_KAFKA_RESP_ERR__FATAL.into()
}

impl Fetch for Intake {
    fn fetch(&mut self, wait: Duration, records: usize, events: &mut Vec<Event>) {
        if !self.broken {
            self.take(wait, records, events);
        }
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }
}
