//! One member of a route's group and the producer that serves it for life: the data plane's [`Broker`], on Kafka.
//!
//! All but a transaction happens on the thread that owns the session. A rebalance, which is served inside `poll` or `fetch`,
//! waits until no transaction is open. Knows nothing of plugins, retries or back-offs: it says what became of each thing,
//! the worker decides.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::config::settings::{OnPartitionChange, Route};
use crate::config::share::Share;
use crate::config::times::Times;
use crate::model::clock::thread_cpu;
use crate::model::{OffsetMap, TopicName, TopicPartition};
use crate::pipeline::ports::{Broker, Event, Fetch, Flight, Flown, Outcome, Outputs, TopicError, TopicInfo, Trouble};
use crate::pipeline::report::Spent;
use crate::pipeline::seek::{SeekTo, Sought};

use super::client_options;
use super::committer::{Committer, CommitterOptions};
use super::errors::{About, is_all_down, passing, says_away, trouble};
use super::intake::{Intake, TOPIC_WITHIN};
use super::partition_counts::PartitionCounts;
use super::positions::configuration;
use super::producer::MakeClient;
use super::raw::{Client, ConsumerQueue, Context, Error, Kind, Known};
use super::rebalance::{Assignment, list};
use super::seam::with_ids;
use super::topics::{Cluster, LeftOut, Topics, loops, source_topics};
use super::twins;
use super::unowned::Unowned;

/// How often a producer that was given up is made anew while there is nothing to send, and how long that may hold it up.
const RENEW_EVERY: Duration = Duration::from_secs(4);
const RENEW_WITHIN: Duration = Duration::from_secs(2);

/// After so long without anything to send the producer is let go. Making another takes some tens of milliseconds.
const REST_AFTER: Duration = Duration::from_secs(30);

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
    /// The partition counts that the route goes by. Shared by its workers, and outlives their sessions.
    pub counts: &'a Arc<PartitionCounts>,
    /// What the clients may buffer is a part of it.
    pub share: Share,
    /// The group's `session.timeout.ms`.
    pub session_timeout: Duration,
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
    intake: Intake,
    committer: Committer<Arc<Client>>,
    left_out: Arc<ArcSwap<LeftOut>>,
    counts: Arc<PartitionCounts>,
    subscribed: Vec<TopicName>,
    /// What subscription and slots were last compared with.
    seen: Option<(Arc<Topics>, Arc<LeftOut>)>,
    slots: HashMap<TopicName, TopicInfo>,
    /// When a producer that was given up is made anew.
    next_renew: Instant,
    /// CPU time of threads that transactions had.
    cpu: Duration,
    /// To be told at the next poll.
    pending: Vec<Event>,
    /// Where membership is static: looks for what nobody owns.
    unowned: Option<Unowned>,
    /// It leaves its group, and is to join it again.
    rejoins: bool,
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
        let make = |id: &str| -> MakeClient<Arc<Client>> {
            let properties = client_options::producer(kafka, route, &client_id, id, *share);
            let producer = format!("{label}, producer");
            Arc::new(move || Client::new(Kind::Producer, &properties, Context::new(producer.clone(), None)))
        };
        let settings = CommitterOptions {
            delivery: route.delivery,
            group: route.source.group.clone(),
            transactional_id: id,
            is_static: instance.is_named(),
            times,
        };
        let committer = Committer::open(settings, make)?;

        let assignment = Arc::new(Assignment::default());
        let properties = client_options::consumer(kafka, route, &client_id, member.as_deref(), *share);
        let context = Context::new(format!("{label}, consumer"), Some(Box::new(Arc::clone(&assignment))));
        let client = Client::new(Kind::Consumer, &properties, context)
            .map_err(|message| trouble(&configuration(message), About::Cluster))?;
        let queue = ConsumerQueue::new(&client).map_err(|error| trouble(&error, About::Cluster))?;
        let unowned = member.is_some().then(|| Unowned::new(options.session_timeout));
        let intake = Intake::new((*route).clone(), (*cluster).clone(), member, (queue, assignment), times);
        let mut session = Self {
            intake,
            committer,
            left_out: Arc::clone(options.left_out),
            counts: Arc::clone(options.counts),
            subscribed: Vec::new(),
            seen: None,
            slots: HashMap::new(),
            next_renew: Instant::now(),
            cpu: Duration::ZERO,
            pending: Vec::new(),
            unowned,
            rejoins: false,
            closed: false,
        };
        session.follow_topics()?;
        Ok(session)
    }

    /// Ends the wait of a [`Broker::poll`] early, from whatever thread. Keeps its client.
    pub fn waker(&self) -> impl Fn() + Send + use<> {
        let (waker, assignment) = (self.intake.queue.waker(), Arc::clone(&self.intake.assignment));
        move || assignment.end_wait(|| waker.wake())
    }

    /// Whether its consumer has not come to its end yet, which it does some time after the session was closed and dropped.
    pub fn life(&self) -> impl Fn() -> bool + use<> {
        let life = self.intake.queue.client().life();
        move || life.strong_count() > 0
    }

    /// Takes up what has changed about the cluster's topics: the subscription, and the destinations' partitions.
    fn follow_topics(&mut self) -> Result<(), Trouble> {
        if self.rejoins {
            return Ok(());
        }
        let topics = self.intake.cluster.topics()?;
        let left_out = self.left_out.load();
        if self.seen.as_ref().is_some_and(|(seen, left)| Arc::ptr_eq(seen, &topics) && Arc::ptr_eq(left, &left_out)) {
            return Ok(());
        }
        for (name, info) in &mut self.slots {
            let (before, now) = (info.partitions, topics.partitions(name.as_str()).unwrap_or(0));
            info.partitions = now;
            if before > 0 && now > before {
                tracing::warn!(
                    route = %self.intake.route.name, topic = %name, before, now,
                    "the topic has more partitions: from now on a key may go to another one than before"
                );
            }
        }
        let wanted = source_topics(&self.intake.route.source, &topics, &left_out);
        if wanted != self.subscribed {
            for topic in loops(&self.intake.route.source, &topics, &left_out) {
                tracing::error!(route = %self.intake.route.name, %topic, "left out of the source: the route writes this topic");
            }
            let result = match wanted.is_empty() {
                true => self.intake.consumer().unsubscribe(),
                false => self.intake.consumer().subscribe(&wanted),
            };
            result.map_err(|error| trouble(&error, About::Group(&self.intake.route.source.group)))?;
            self.subscribed = wanted;
        }
        let left_out = Arc::clone(&left_out);
        self.seen = Some((topics, left_out));
        Ok(())
    }

    fn serve_errors(&mut self, events: &mut Vec<Event>) {
        let mut errors = self.intake.queue.client().context().take_errors();
        errors.retain(|error| !is_all_down(error.code) || says_away(error));
        // Brokers close connections that are idle, and those of a producer may all be: the consumer knows whether they are
        // away.
        errors.extend(self.committer.take_errors().into_iter().filter(|error| !is_all_down(error.code)));
        for error in errors {
            self.intake.on_error(&error, None, events);
        }
        if self.committer.take_stale_topics() {
            let _ = self.intake.cluster.refresh_now(TOPIC_WITHIN);
        }
    }

    /// The topic, unless the route is to stop at its number of partitions.
    fn counted(&self, name: &TopicName, info: TopicInfo) -> Result<TopicInfo, TopicError> {
        if self.intake.route.on_partition_change == OnPartitionChange::Follow {
            return Ok(info);
        }
        self.counts.check(name, info.partitions).map_err(TopicError::Trouble)?;
        Ok(info)
    }

    /// The same outcome; a twin that it tells of is named.
    fn named(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Broken(trouble) => Outcome::Broken(self.intake.with_twin(trouble)),
            outcome => outcome,
        }
    }

    /// Has the group share out again what nobody in it owns: leaves, and joins again once that is done.
    fn end_unowned(&mut self, assigned: bool, events: &mut Vec<Event>) {
        if self.rejoins {
            if self.intake.has_left() {
                self.rejoins = false;
                (self.subscribed, self.seen) = (Vec::new(), None);
            }
            return;
        }
        let Some(unowned) = &mut self.unowned else { return };
        if assigned {
            unowned.assigned();
        }
        let (subscribed, seen) = (&self.subscribed, &self.seen);
        let all = || seen.as_ref().map(|(topics, _)| topics.partitions_of(subscribed)).unwrap_or_default();
        let group = &self.intake.route.source.group;
        let Some(trouble) = unowned.look(self.intake.cluster.client(), group, all) else { return };
        match self.intake.consumer().unsubscribe() {
            Ok(()) => self.rejoins = true,
            Err(error) => self.intake.on_error(&error, None, events),
        }
        events.push(Event::Trouble(trouble));
    }

    /// A transaction that was left open holds back the offsets that the next assignment starts from, for its timeout and
    /// the broker's look at it: so it is ended as soon as the brokers are back, not when there is something to send.
    fn end_what_is_open(&mut self) {
        if self.committer.owes_an_end() && Instant::now() >= self.next_renew {
            self.committer.end_what_is_open(RENEW_WITHIN);
            self.next_renew = Instant::now() + RENEW_EVERY;
        }
    }
}

impl Broker for Session {
    fn poll(&mut self, wait: Duration, records: usize, events: &mut Vec<Event>) {
        events.append(&mut self.pending);
        if self.intake.broken {
            return;
        }
        if let Err(trouble) = self.follow_topics()
            && self.intake.is_news(&trouble.code)
        {
            events.push(Event::Trouble(trouble));
        }
        self.end_what_is_open();
        self.committer.rest(REST_AFTER);
        let before = events.len();
        self.intake.take(wait, records.max(1), events);
        let assigned = events[before..].iter().any(|event| matches!(event, Event::Assigned(_)));
        self.end_unowned(assigned, events);
        self.intake.resolve(events);
        self.intake.ask_again(events);
        self.serve_errors(events);
        self.intake.watch(events);
        self.intake.look_at_ends(events);
        let throttled = self.intake.queue.client().context().take_throttled() + self.committer.take_throttled();
        if !throttled.is_zero() {
            events.push(Event::Throttled(throttled));
        }
    }

    fn pause(&mut self, partitions: &[TopicPartition]) {
        let fresh = self.intake.assignment.pause(partitions);
        if !fresh.is_empty()
            && let Err(error) = self.intake.consumer().pause(&list(&fresh))
        {
            tracing::warn!(route = %self.intake.route.name, code = error.code.name(), "cannot pause: {}", error.message);
        }
    }

    fn resume(&mut self, partitions: &[TopicPartition]) {
        let paused = self.intake.assignment.resume(partitions);
        if !paused.is_empty()
            && let Err(error) = self.intake.consumer().resume(&list(&paused))
        {
            tracing::warn!(route = %self.intake.route.name, code = error.code.name(), "cannot resume: {}", error.message);
        }
    }

    fn seek(&mut self, partitions: &[TopicPartition], to: SeekTo, dry_run: bool) -> Result<Vec<Sought>, Trouble> {
        let group = self.intake.route.source.group.clone();
        let failed = |error: Error| trouble(&error, About::Group(&group));
        let mut sought = Vec::new();
        for found in self.intake.consumer().committed(partitions.iter().cloned(), TOPIC_WITHIN).map_err(failed)? {
            let (low, high) = self.intake.consumer().watermarks(&found.at, TOPIC_WITHIN).map_err(failed)?;
            let to = match to {
                SeekTo::Earliest => low,
                SeekTo::Latest => high,
                SeekTo::Offset(offset) => offset.clamp(low, high),
                SeekTo::Time(time) => {
                    let times = [(found.at.clone(), time)];
                    let first = self.intake.consumer().offsets_for_times(times, TOPIC_WITHIN).map_err(failed)?;
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
        let offsets = with_ids(&offsets, &self.intake.topic_ids);
        self.intake.consumer().commit_offsets(&offsets, self.intake.times.offsets).map_err(failed)?;
        for moved in &sought {
            let one = std::slice::from_ref(&moved.partition);
            self.intake.to_resolve.remove(&moved.partition);
            self.resume(one);
            // (an eager protocol cannot move one: the next session takes up what is committed)
            let ended = self.intake.restart(&moved.partition, moved.to).map_err(failed)?;
            self.pending.extend(ended);
            self.pause(one);
        }
        Ok(sought)
    }

    fn topic(&mut self, name: &TopicName) -> Result<TopicInfo, TopicError> {
        if let Some(info) = self.slots.get(name).copied() {
            return if info.partitions > 0 { self.counted(name, info) } else { Err(TopicError::Unknown) };
        }
        let mut topics = self.intake.cluster.topics().map_err(TopicError::Trouble)?;
        if topics.partitions(name.as_str()).is_none() {
            topics = self.intake.cluster.refresh_now(TOPIC_WITHIN).map_err(TopicError::Trouble)?;
        }
        let partitions = match topics.partitions(name.as_str()) {
            Some(partitions) => partitions,
            // A topic that may not be seen is missing from the list of all; asked for by name, the broker says why.
            None => self.intake.cluster.look_up(name, TOPIC_WITHIN).map_err(|error| match error.code.known() {
                Known::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART => TopicError::Unknown,
                _ => TopicError::Trouble(trouble(&error, About::Write(name))),
            })?,
        };
        let slot = self.committer.add_topic(name, TOPIC_WITHIN).map_err(TopicError::Trouble)?;
        let info = TopicInfo { slot, partitions };
        self.slots.insert(name.clone(), info);
        self.counted(name, info)
    }

    fn accept(&mut self) {
        self.counts.accept();
    }

    fn transact(&mut self, outputs: &dyn Outputs, offsets: &OffsetMap) -> Outcome {
        // librdkafka crashes when a closed consumer is asked who it is.
        if self.intake.broken {
            return Outcome::Broken(passing(Known::RD_KAFKA_RESP_ERR__STATE, "the session has ended"));
        }
        let outcome = self.committer.transact(self.intake.queue.client(), outputs, offsets, &self.intake.topic_ids);
        self.named(outcome)
    }

    fn transact_while(&mut self, work: &dyn Flight, meanwhile: &mut dyn FnMut(&mut dyn Fetch)) -> Flown {
        if self.intake.broken {
            work.seal();
            let this = self.transact(work.outputs(), &work.offsets());
            return Flown { before: self.land(), this: Some(this) };
        }
        let Self { committer, intake, .. } = self;
        let (ids, group) = (Arc::clone(&intake.topic_ids), Arc::clone(intake.queue.client()));
        let under_way = Arc::new(intake.assignment.hold());
        let taking = intake.fetch_for_transaction();
        // A thread costs some 50 µs, and a transaction a few milliseconds.
        let flown = std::thread::scope(|scope| {
            let transact = || {
                let (_ends, under_way) = (taking, under_way);
                (committer.transact_flight(&group, work, &ids, &|| Box::new(Arc::clone(&under_way))), thread_cpu())
            };
            let thread = std::thread::Builder::new().name("transaction".into()).spawn_scoped(scope, transact).ok()?;
            meanwhile(intake);
            Some(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let Flown { before, this } = match flown {
            Some((flown, cpu)) => {
                self.cpu += cpu;
                flown
            }
            // The system gives no more threads.
            None => {
                work.seal();
                committer.transact_flight(&group, work, &ids, &|| Box::new(intake.assignment.hold()))
            }
        };
        Flown { before: before.map(|outcome| self.named(outcome)), this: this.map(|outcome| self.named(outcome)) }
    }

    fn land(&mut self) -> Option<Outcome> {
        let outcome = self.committer.land();
        outcome.map(|outcome| self.named(outcome))
    }

    fn take_spent(&mut self) -> Spent {
        Spent { cpu: std::mem::take(&mut self.cpu), ..self.committer.take_spent() }
    }

    fn settle(&mut self, offsets: &OffsetMap) -> Outcome {
        if self.intake.broken {
            return Outcome::Broken(passing(Known::RD_KAFKA_RESP_ERR__STATE, "the session has ended"));
        }
        let outcome = self.committer.settle(self.intake.queue.client(), offsets);
        self.intake.broken = matches!(outcome, Outcome::Broken(_));
        outcome
    }

    fn close(&mut self, leave: bool, deadline: Duration) {
        if self.closed {
            return;
        }
        let until = Instant::now() + deadline;
        self.committer.discard();
        if leave && self.intake.member.is_some() && !self.intake.broken {
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
                tracing::debug!(route = %self.intake.route.name, code = error.code.name(), "closed with: {}", error.message);
            }
            Err(_) => tracing::warn!(
                route = %self.intake.route.name,
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
        self.intake.broken = true;
        self.closed = true;
        self.intake.assignment.close();
        let client = Arc::clone(self.intake.queue.client());
        std::thread::Builder::new().name("kafka-close".into()).spawn(move || then(client.close_consumer())).is_ok()
    }

    /// Leaves the group as a static member, which a mere close would not: unsubscribes and waits until it is done.
    fn leave(&mut self, until: Instant) {
        if let Err(error) = self.intake.consumer().unsubscribe() {
            tracing::debug!(route = %self.intake.route.name, code = error.code.name(), "cannot leave: {}", error.message);
            return;
        }
        while Instant::now() < until && !self.intake.has_left() {
            let mut dropped = Vec::new();
            self.intake.queue.consume(Duration::from_millis(20), 1, &mut dropped);
        }
    }
}
