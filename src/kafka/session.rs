//! One member of a route's group and the producer that serves it for life: the data plane's [`Broker`], on Kafka.
//!
//! Everything happens on the thread that owns the session. Rebalances are served inside `poll`, where no transaction is
//! open. Knows nothing of plugins, retries or back-offs: it says what became of each thing, the worker decides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::config::settings::{OnOffsetLost, Route};
use crate::config::share::Share;
use crate::config::times::Times;
use crate::model::clock::thread_cpu;
use crate::model::{Mutation, Offset, OffsetMap, TopicName, TopicPartition};
use crate::pipeline::ports::{Broker, Event, Outcome, Outputs, TopicError, TopicInfo, Trouble, TroubleKind};
use crate::pipeline::report::Spent;
use crate::pipeline::seek::{SeekTo, Sought};

use super::client_options;
use super::committer::{Committer, CommitterOptions};
use super::convert;
use super::errors::{About, is_all_down, passing, says_away, trouble};
use super::log_ends::LogEnds;
use super::positions::configuration;
use super::raw::{
    Client, Committed, ConsumerQueue, Context, Error, Handle, Kind, Known, Message, OFFSET_BEGINNING, OFFSET_INVALID,
    PartitionList,
};
use super::rebalance::{Assignment, Change, list};
use super::seam::{TopicIds, with_ids};
use super::topics::{Cluster, LeftOut, Topics, loops, source_topics};
use super::twins;
use super::watchdog::Watchdog;

/// How long the look-up of a topic may take.
const TOPIC_WITHIN: Duration = Duration::from_secs(5);
/// After this long no other partition is taken up in the same poll. (One takes four answers at most.)
const RESOLVE_WITHIN: Duration = Duration::from_secs(2);
/// How often it is asked where partitions go on for which that could not be had when they were taken up, and how long that may
/// hold the others up.
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_WITHIN: Duration = Duration::from_secs(1);
/// A trouble with the same code is told this often at most.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How often a session looks whether its topics are still the same, and how long that may hold it up.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// How often a producer that was given up is made anew while there is nothing to send, and how long that may hold it up.
const RENEW_EVERY: Duration = Duration::from_secs(4);
const RENEW_WITHIN: Duration = Duration::from_secs(2);

/// What a session is made of.
pub struct SessionOptions<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// The route it works for.
    pub route: &'a Route,
    /// Which of the route's workers, from 0.
    pub worker: u16,
    /// Who this process is.
    pub instance: &'a Instance,
    /// What patterns leave out. Shared: a reload changes it while the session lives.
    pub left_out: &'a Arc<ArcSwap<LeftOut>>,
    /// What the clients may buffer is a part of it.
    pub share: Share,
    /// Whether a process with the same `instance` has taken the work over: it keeps it for as long as it lives.
    pub yields: bool,
}

/// Who a process is among those of its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instance {
    /// The name that the operator gave; it outlives the process, so membership is static.
    Named(String),
    /// A word made up at the start of the process.
    Random(String),
}

impl Instance {
    /// What stands in the transactional id.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Named(name) | Self::Random(name) => name,
        }
    }
    /// Whether the operator gave it.
    pub fn is_named(&self) -> bool {
        matches!(self, Self::Named(_))
    }
}

/// A worker's session with Kafka.
pub struct Session {
    route: Route,
    cluster: Cluster,
    left_out: Arc<ArcSwap<LeftOut>>,
    /// The `group.instance.id`, where membership is static.
    member: Option<String>,
    queue: ConsumerQueue,
    assignment: Arc<Assignment>,
    committer: Committer<Arc<Client>>,
    times: Times,
    subscribed: Vec<TopicName>,
    /// What subscription and slots were last compared with.
    seen: Option<(Arc<Topics>, Arc<LeftOut>)>,
    slots: HashMap<TopicName, TopicInfo>,
    /// Of the topics of which partitions are ours, kept beside the committed offsets.
    topic_ids: TopicIds,
    /// When the ids are looked at again.
    next_look: Instant,
    /// When it is asked again where partitions go on.
    next_ask: Instant,
    /// When a producer that was given up is made anew.
    next_renew: Instant,
    messages: Vec<Message>,
    /// Partitions to be taken up again once their offset can be had, with what was said when they stopped.
    to_resolve: BTreeMap<TopicPartition, (Instant, String)>,
    told: HashMap<String, Instant>,
    watchdog: Watchdog,
    log_ends: LogEnds,
    /// CPU time of threads that transactions had.
    cpu: Duration,
    /// To be told at the next poll.
    pending: Vec<Event>,
    /// Nothing more is to be done: closed, or of no more use.
    broken: bool,
    closed: bool,
}

impl Session {
    /// Makes the producer ready first, so that whatever a predecessor of the same name left open is settled before any
    /// offset is fetched; then joins the group. Records come with the first [`Broker::poll`]s.
    ///
    /// # Errors
    /// [`Trouble`]: nothing is left behind; try again after a back-off.
    pub fn open(options: &SessionOptions<'_>) -> Result<Self, Trouble> {
        let SessionOptions { cluster, route, worker, instance, share, .. } = options;
        let kafka = cluster.kafka();
        let label = format!("route {}, worker {worker}", route.name);
        let client_id = format!("{}.{}.{worker}", kafka.prefix, route.name);
        let id = format!("{}.{}.{}.{worker}", kafka.prefix, route.source.group, instance.as_str());
        let member = instance.is_named().then(|| format!("{}.{worker}", instance.as_str()));

        let times = Times::of_clients(kafka);
        if let Some(member) = member.as_deref().filter(|_| options.yields)
            && let Some(twin) = cluster.twin(&route.source.group, member, None, times.offsets)
        {
            return Err(twins::trouble(member, Some(&twin), None));
        }
        let properties = client_options::producer(kafka, route, &client_id, &id, *share);
        let producer = format!("{label}, producer");
        let make = move || Client::new(Kind::Producer, &properties, Context::new(producer.clone(), None));
        let settings = CommitterOptions {
            delivery: route.delivery,
            group: route.source.group.clone(),
            transactional_id: id,
            is_static: instance.is_named(),
            times,
        };
        let committer = Committer::open(settings, Box::new(make))?;

        let assignment = Arc::new(Assignment::default());
        let properties = client_options::consumer(kafka, route, &client_id, member.as_deref(), *share);
        let context = Context::new(format!("{label}, consumer"), Some(Box::new(Arc::clone(&assignment))));
        let client = Client::new(Kind::Consumer, &properties, context)
            .map_err(|message| trouble(&configuration(message), About::Cluster))?;
        let queue = ConsumerQueue::new(&client).map_err(|error| trouble(&error, About::Cluster))?;
        let mut session = Self {
            route: (*route).clone(),
            cluster: (*cluster).clone(),
            left_out: Arc::clone(options.left_out),
            member,
            queue,
            assignment,
            committer,
            times,
            subscribed: Vec::new(),
            seen: None,
            slots: HashMap::new(),
            topic_ids: TopicIds::new(),
            next_look: Instant::now() + LOOK_EVERY,
            next_ask: Instant::now(),
            next_renew: Instant::now(),
            messages: Vec::new(),
            to_resolve: BTreeMap::new(),
            told: HashMap::new(),
            watchdog: Watchdog::default(),
            log_ends: LogEnds::default(),
            cpu: Duration::ZERO,
            pending: Vec::new(),
            broken: false,
            closed: false,
        };
        session.follow_topics()?;
        Ok(session)
    }

    fn consumer(&self) -> &Handle {
        self.queue.client()
    }

    /// Takes up what has changed about the cluster's topics: the subscription, and the destinations' partitions.
    fn follow_topics(&mut self) -> Result<(), Trouble> {
        let topics = self.cluster.topics()?;
        let left_out = self.left_out.load();
        if self.seen.as_ref().is_some_and(|(seen, left)| Arc::ptr_eq(seen, &topics) && Arc::ptr_eq(left, &left_out)) {
            return Ok(());
        }
        for (name, info) in &mut self.slots {
            let (before, now) = (info.partitions, topics.partitions(name.as_str()).unwrap_or(0));
            info.partitions = now;
            if before > 0 && now > before {
                tracing::warn!(
                    route = %self.route.name, topic = %name, before, now,
                    "the topic has more partitions: from now on a key may go to another one than before"
                );
            }
        }
        let wanted = source_topics(&self.route.source, &topics, &left_out);
        if wanted != self.subscribed {
            for topic in loops(&self.route.source, &topics, &left_out) {
                tracing::error!(route = %self.route.name, %topic, "left out of the source: the route writes this topic");
            }
            let result = match wanted.is_empty() {
                true => self.consumer().unsubscribe(),
                false => self.consumer().subscribe(&wanted),
            };
            result.map_err(|error| trouble(&error, About::Group(&self.route.source.group)))?;
            self.subscribed = wanted;
        }
        let left_out = Arc::clone(&left_out);
        self.seen = Some((topics, left_out));
        Ok(())
    }

    fn fetch(&mut self, wait: Duration, records: usize, events: &mut Vec<Event>) {
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
        let (fetched, failed): (Vec<_>, Vec<_>) = messages.drain(..).partition(|message| message.error().is_none());
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
            // (the client itself was told where it goes on)
            self.assignment.resolved(batch.topic_partition());
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
        let mut revoked = BTreeSet::new();
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

    /// The same for a topic that is replaced while it is read.
    fn watch_topic_ids(&mut self, events: &mut Vec<Event>) {
        let now = Instant::now();
        if now < self.next_look || self.assignment.is_empty() {
            return;
        }
        self.next_look = now + LOOK_EVERY;
        let before = self.topic_ids.clone();
        let owned = self.assignment.owned();
        self.learn_topic_ids(&owned, events);
        for partition in &owned {
            if let (Some(was), Some(is)) = (before.get(&partition.topic), self.topic_ids.get(&partition.topic))
                && was != is
            {
                let said = created_again(was, is);
                self.stop(partition, said, events);
            }
        }
    }

    fn learn_topic_ids(&mut self, partitions: &[TopicPartition], events: &mut Vec<Event>) {
        let topics: BTreeSet<_> = partitions.iter().map(|partition| partition.topic.clone()).collect();
        let topics: Vec<_> = topics.into_iter().collect();
        match self.cluster.topic_ids(&topics, LOOK_WITHIN) {
            Ok(ids) => self.topic_ids.extend(ids),
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

    fn on_error(&mut self, error: &Error, partition: Option<TopicPartition>, events: &mut Vec<Event>) {
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
    fn with_twin(&self, found: Trouble) -> Trouble {
        match &self.member {
            Some(member) if found.kind == TroubleKind::Duplicate => {
                let own = self.consumer().group_metadata().map(|own| own.member_id());
                let twin = self.cluster.twin(&self.route.source.group, member, own.as_deref(), twins::SEEN_WITHIN);
                twins::trouble(member, twin.as_ref(), Some(&found))
            }
            _ => found,
        }
    }

    fn is_news(&mut self, code: &str) -> bool {
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
    fn resolve(&mut self, events: &mut Vec<Event>) {
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
    fn ask_again(&mut self, events: &mut Vec<Event>) {
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
        for Committed { at, offset, .. } in found {
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
    fn restart(&mut self, partition: &TopicPartition, offset: i64) -> Result<Option<Event>, Error> {
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

    fn serve_errors(&mut self, events: &mut Vec<Event>) {
        let mut errors = self.queue.client().context().take_errors();
        errors.retain(|error| !is_all_down(error.code) || says_away(error));
        // Brokers close connections that are idle, and those of a producer may all be: the consumer knows whether they are
        // away.
        errors.extend(self.committer.take_errors().into_iter().filter(|error| !is_all_down(error.code)));
        for error in errors {
            self.on_error(&error, None, events);
        }
        if self.committer.take_stale_topics() {
            let _ = self.cluster.refresh_now(TOPIC_WITHIN);
        }
    }

    /// The same outcome; a twin that it tells of is named.
    fn named(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Broken(trouble) => Outcome::Broken(self.with_twin(trouble)),
            outcome => outcome,
        }
    }

    /// A transaction that was left open holds back the offsets that the next assignment starts from, for its timeout and
    /// the broker's look at it: so it is ended as soon as the brokers are back, not when there is something to send.
    fn end_what_is_open(&mut self) {
        if self.committer.owes_an_end() && Instant::now() >= self.next_renew {
            self.committer.end_what_is_open(RENEW_WITHIN);
            self.next_renew = Instant::now() + RENEW_EVERY;
        }
    }

    /// How far logs go, now and then; and up to where all was handed out, which passes marks of transactions, too.
    fn look_at_ends(&mut self, events: &mut Vec<Event>) {
        let Some(ends) = self.log_ends.look(self.queue.client(), || self.assignment.owned()) else { return };
        let positions = self.consumer().positions(ends.iter().map(|(partition, _)| partition.clone()));
        let known = positions.into_iter().filter(|(_, offset)| *offset >= 0);
        events.extend(known.map(|(partition, offset)| Event::Reached { partition, offset }));
        events.push(Event::Logs(ends));
    }

    /// A client that has gone deaf is given up.
    fn watch(&mut self, events: &mut Vec<Event>) {
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

impl Broker for Session {
    fn poll(&mut self, wait: Duration, records: usize, events: &mut Vec<Event>) {
        events.append(&mut self.pending);
        if self.broken {
            return;
        }
        if let Err(trouble) = self.follow_topics()
            && self.is_news(&trouble.code)
        {
            events.push(Event::Trouble(trouble));
        }
        self.watch_topic_ids(events);
        self.end_what_is_open();
        self.fetch(wait, records.max(1), events);
        self.resolve(events);
        self.ask_again(events);
        self.serve_errors(events);
        self.watch(events);
        self.look_at_ends(events);
        let throttled = self.queue.client().context().take_throttled() + self.committer.take_throttled();
        if !throttled.is_zero() {
            events.push(Event::Throttled(throttled));
        }
    }

    fn pause(&mut self, partitions: &[TopicPartition]) {
        let fresh = self.assignment.pause(partitions);
        if !fresh.is_empty()
            && let Err(error) = self.consumer().pause(&list(&fresh))
        {
            tracing::warn!(route = %self.route.name, code = error.code.name(), "cannot pause: {}", error.message);
        }
    }

    fn resume(&mut self, partitions: &[TopicPartition]) {
        let paused = self.assignment.resume(partitions);
        if !paused.is_empty()
            && let Err(error) = self.consumer().resume(&list(&paused))
        {
            tracing::warn!(route = %self.route.name, code = error.code.name(), "cannot resume: {}", error.message);
        }
    }

    fn seek(&mut self, partitions: &[TopicPartition], to: SeekTo, dry_run: bool) -> Result<Vec<Sought>, Trouble> {
        let group = self.route.source.group.clone();
        let failed = |error: Error| trouble(&error, About::Group(&group));
        let mut sought = Vec::new();
        for found in self.consumer().committed(partitions.iter().cloned(), TOPIC_WITHIN).map_err(failed)? {
            let (low, high) = self.consumer().watermarks(&found.at, TOPIC_WITHIN).map_err(failed)?;
            let to = match to {
                SeekTo::Earliest => low,
                SeekTo::Latest => high,
                SeekTo::Offset(offset) => offset.clamp(low, high),
                SeekTo::Time(time) => {
                    let times = [(found.at.clone(), time)];
                    let first = self.consumer().offsets_for_times(times, TOPIC_WITHIN).map_err(failed)?;
                    first
                        .first()
                        .map(|(_, offset)| *offset)
                        .filter(|offset| *offset >= 0)
                        .map_or(high, |at| at.min(high))
                }
            };
            let from = Some(found.offset).filter(|offset| *offset >= 0);
            sought.push(Sought { partition: found.at, from, to, low, high });
        }
        if dry_run {
            return Ok(sought);
        }
        let offsets: OffsetMap = sought.iter().map(|moved| (moved.partition.clone(), moved.to)).collect();
        let offsets = with_ids(&offsets, &self.topic_ids);
        self.consumer().commit_offsets(&offsets, self.times.offsets).map_err(failed)?;
        for moved in &sought {
            let one = std::slice::from_ref(&moved.partition);
            self.to_resolve.remove(&moved.partition);
            self.resume(one);
            // (an eager protocol cannot move one: the next session takes up what is committed)
            let ended = self.restart(&moved.partition, moved.to).map_err(failed)?;
            self.pending.extend(ended);
            self.pause(one);
        }
        Ok(sought)
    }

    fn topic(&mut self, name: &TopicName) -> Result<TopicInfo, TopicError> {
        if let Some(info) = self.slots.get(name) {
            return if info.partitions > 0 { Ok(*info) } else { Err(TopicError::Unknown) };
        }
        let mut topics = self.cluster.topics().map_err(TopicError::Trouble)?;
        if topics.partitions(name.as_str()).is_none() {
            topics = self.cluster.refresh_now(TOPIC_WITHIN).map_err(TopicError::Trouble)?;
        }
        let partitions = match topics.partitions(name.as_str()) {
            Some(partitions) => partitions,
            // A topic that may not be seen is missing from the list of all; asked for by name, the broker says why.
            None => self.cluster.look_up(name, TOPIC_WITHIN).map_err(|error| match error.code.known() {
                Known::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART => TopicError::Unknown,
                _ => TopicError::Trouble(trouble(&error, About::Write(name))),
            })?,
        };
        let slot = self.committer.add_topic(name, TOPIC_WITHIN).map_err(TopicError::Trouble)?;
        let info = TopicInfo { slot, partitions };
        self.slots.insert(name.clone(), info);
        Ok(info)
    }

    fn transact(&mut self, outputs: &dyn Outputs, offsets: &OffsetMap) -> Outcome {
        // librdkafka crashes when a closed consumer is asked who it is.
        if self.broken {
            return Outcome::Broken(passing(Known::RD_KAFKA_RESP_ERR__STATE, "the session has ended"));
        }
        let outcome = self.committer.transact(self.queue.client(), outputs, offsets, &self.topic_ids);
        self.named(outcome)
    }

    fn transact_while(&mut self, outputs: &dyn Outputs, offsets: &OffsetMap, meanwhile: &mut dyn FnMut()) -> Outcome {
        if self.broken {
            return self.transact(outputs, offsets);
        }
        let (committer, ids, group) = (&mut self.committer, &self.topic_ids, self.queue.client());
        // A thread costs some 50 µs, and a transaction a few milliseconds.
        let outcome = std::thread::scope(|scope| {
            let transact = || (committer.transact(group, outputs, offsets, ids), thread_cpu());
            let thread = std::thread::Builder::new().name("transaction".into()).spawn_scoped(scope, transact).ok()?;
            meanwhile();
            Some(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        match outcome {
            Some((outcome, cpu)) => {
                self.cpu += cpu;
                self.named(outcome)
            }
            // The system gives no more threads.
            None => self.transact(outputs, offsets),
        }
    }

    fn take_spent(&mut self) -> Spent {
        Spent { cpu: std::mem::take(&mut self.cpu), ..self.committer.take_spent() }
    }

    fn settle(&mut self, offsets: &OffsetMap) -> Outcome {
        if self.broken {
            return Outcome::Broken(passing(Known::RD_KAFKA_RESP_ERR__STATE, "the session has ended"));
        }
        let outcome = self.committer.settle(self.queue.client(), offsets);
        self.broken = matches!(outcome, Outcome::Broken(_));
        outcome
    }

    fn close(&mut self, leave: bool, deadline: Duration) {
        if self.closed {
            return;
        }
        let until = Instant::now() + deadline;
        self.committer.discard();
        if leave && self.member.is_some() && !self.broken {
            self.leave(until);
        }
        let (done, is_done) = mpsc::channel();
        let started = self.close_consumer(move |result| {
            let _ = done.send(result);
        });
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
        match is_done.recv_timeout(left) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(route = %self.route.name, code = error.code.name(), "closed with: {}", error.message);
            }
            Err(_) => tracing::warn!(
                route = %self.route.name,
                started,
                "the consumer did not close in time; it is left behind and ends with the process"
            ),
        }
    }
}

impl Drop for Session {
    /// A session that was not closed (the worker broke) still gives its partitions back, and nobody waits for it.
    fn drop(&mut self) {
        if !self.closed {
            self.close_consumer(drop);
        }
    }
}

impl Session {
    /// Closes the consumer on a thread of its own: that serves the last rebalance, waits for brokers, and has been seen
    /// to hang.
    fn close_consumer(&mut self, then: impl FnOnce(Result<(), Error>) + Send + 'static) -> bool {
        self.broken = true;
        self.closed = true;
        let client = Arc::clone(self.queue.client());
        std::thread::Builder::new().name("kafka-close".into()).spawn(move || then(client.close_consumer())).is_ok()
    }

    /// Leaves the group as a static member, which a mere close would not: unsubscribes and waits until it is done.
    fn leave(&mut self, until: Instant) {
        if let Err(error) = self.consumer().unsubscribe() {
            tracing::debug!(route = %self.route.name, code = error.code.name(), "cannot leave: {}", error.message);
            return;
        }
        let is_member = |session: &Self| session.consumer().group_metadata().is_some_and(|member| member.is_member());
        while Instant::now() < until && (!self.assignment.is_empty() || is_member(self)) {
            let mut dropped = Vec::new();
            self.queue.consume(Duration::from_millis(20), 1, &mut dropped);
        }
    }
}
