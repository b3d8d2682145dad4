//! A process of millrace in the simulated world: sessions one after the other, each with the real worker and the real
//! committer, until it is drained or dies.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use millrace::config::settings::{Delivery, Destination, Target};
use millrace::kafka::seam::{Committer, CommitterOptions, Hold, Known, MakeClient, Times, TopicIds};
use millrace::model::{
    DestinationName, ErrorId, Fault, GroupId, Mutation, Offset, OffsetMap, PluginName, RouteName, TopicName,
    TopicPartition,
};
use millrace::pipeline::chain::Chain;
use millrace::pipeline::ports::{
    Broker, Event, Fetch, Flight, Flown, Headers, Outcome, Output, Outputs, Step, TopicError, TopicInfo, Trouble,
    TroubleKind, Usage,
};
use millrace::pipeline::report::{Fate, Health, Phase, Report, Tally};
use millrace::pipeline::task::{Bounds, Task};
use millrace::pipeline::worker::{Exit, Order, RouteWorker};
use millrace::policy::{OnError, Partitioning};

use super::clients::{SimulatedConsumer, SimulatedProducer, number};
use super::faults::Flag;
use super::kafka::TRANSACTION_TIMEOUT;
use super::records::{PARTITIONS, SimulatedStep};
use super::world::{Actor, Call, Process, Scenario, Unwound, World};

/// The life of a machine: processes one after the other where they die, all of one name if it has one.
pub(super) fn live(actor: &Actor, instance: Option<&str>, from_step: u64, mutation: Option<Mutation>) {
    let life = || {
        actor.begin();
        while actor.lock().steps < from_step && !actor.lock().draining {
            actor.sleep(Duration::from_millis(20));
        }
        loop {
            match catch_unwind(AssertUnwindSafe(|| process(actor, instance))) {
                Ok(()) => break,
                Err(why) => match why.downcast_ref::<Unwound>() {
                    Some(Unwound::Died) => {
                        let mut world = actor.lock();
                        let number = world.processes.iter().rposition(|process| process.actor == actor.number());
                        world.end_process(number.expect("it was running"));
                        let wait = world.some(Duration::from_secs(60));
                        drop(world);
                        actor.sleep(wait);
                    }
                    Some(Unwound::Over) => std::panic::resume_unwind(why),
                    None => {
                        let said = why.downcast_ref::<String>().map(String::as_str);
                        let said = said.or(why.downcast_ref::<&str>().copied()).unwrap_or("no text");
                        actor.lock().say_wrong(format!("PANIC: {said}"));
                        break;
                    }
                },
            }
        }
    };
    let _ = catch_unwind(AssertUnwindSafe(|| match mutation {
        Some(mutation) => mutation.during(life),
        None => life(),
    }));
    actor.finish();
}

fn process(actor: &Actor, instance: Option<&str>) {
    let (orders, mailbox) = unbounded();
    let mut world = actor.lock();
    if world.draining {
        return;
    }
    let number = world.processes.len();
    let Scenario { delivery, round, parallelism, ref on_error, .. } = world.scenario;
    let (generation, maker, on_error) = (world.generation, actor.clone(), on_error.clone());
    let make = move |generation| task(&maker, on_error.clone(), round, parallelism, generation);
    let first = make(generation);
    world.processes.push(Process {
        actor: actor.number(),
        instance: instance.map(str::to_owned),
        orders: Some(orders),
        task: Box::new(make),
        handed_out: generation,
        worked_by: 0,
        in_doubt: None,
    });
    fastrand::seed(world.rng.u64(..));
    drop(world);
    let ends = run_sessions(actor, number, delivery, first, &mailbox);
    let mut world = actor.lock();
    if let Some(news) = ends {
        let handed_out = world.processes[number].handed_out;
        // One that waits for an outcome still does when the worker is drained.
        if news.taken_up != handed_out && !news.drained_unknown {
            world.say_wrong(format!("SWAP: goes by generation {}, was given {handed_out}", news.taken_up));
        }
    }
    world.end_process(number);
}

/// What the last worker told, where it was drained; nothing where the process was ended in another way.
fn run_sessions(
    actor: &Actor,
    process: usize,
    delivery: Delivery,
    mut task: Task,
    mailbox: &Receiver<Order>,
) -> Option<News> {
    let route = RouteName::new("sim").unwrap();
    let (mut paused, mut tries) = (false, 0);
    let mut news = News { actor: actor.clone(), taken_up: task.generation, is_unknown: false, drained_unknown: false };
    loop {
        let opened = Session::open(actor, process, delivery);
        let exit = opened.map_or_else(Exit::Broken, |session| {
            RouteWorker::new(session, &route, 0, &mut task, &mut paused, mailbox, &mut news).run()
        });
        let trouble = match exit {
            Exit::Drained => return Some(news),
            Exit::Broken(trouble) => trouble,
        };
        let mut world = actor.lock();
        world.doubt(process);
        world.meet(format!("session broken, {:?}", trouble.kind));
        if trouble.kind == TroubleKind::Duplicate && world.has_younger_twin(process) {
            // As the documentation tells the operator to.
            world.meet("elder twin ended");
            return None;
        }
        if world.draining {
            return None;
        }
        drop(world);
        tries += 1;
        let first = if trouble.kind == TroubleKind::Duplicate { 45_000 } else { 100 };
        actor.sleep(Duration::from_millis(first << tries.min(5)));
    }
}

fn task(actor: &Actor, on_error: OnError, records: usize, parallelism: usize, generation: u64) -> Task {
    let chain = |set| {
        let step = |name| {
            let step = SimulatedStep::new(actor.clone(), name, generation, set);
            (Box::new(step) as Box<dyn Step>, Duration::from_secs(1))
        };
        Chain::new(["first", "second"].map(step).into(), 16, 4096)
    };
    let mut first = chain(0);
    first.share_with((1..parallelism).map(chain).collect());
    Task {
        chain: first,
        shadow: None,
        destinations: vec![Destination {
            name: DestinationName::new("out").unwrap(),
            target: Target::Topic(TopicName::new("out").unwrap()),
            partition: Partitioning::Key,
            default: true,
            when: None,
        }],
        on_error,
        bounds: Bounds {
            interval: Duration::from_millis(5),
            records,
            bytes: 4096,
            processing: Duration::from_secs(30),
            held: 4096,
        },
        generation,
    }
}

/// A session as `kafka::Session` is one: the real committer, on simulated clients.
struct Session {
    actor: Actor,
    process: usize,
    instance: Option<String>,
    committer: Committer<SimulatedProducer>,
    consumer: SimulatedConsumer,
    /// The number of the record to fetch next; none where the group has not told yet.
    positions: BTreeMap<usize, Option<usize>>,
    paused: BTreeSet<usize>,
    slots: BTreeMap<TopicName, TopicInfo>,
    is_unknown: bool,
    /// Of the transaction whose commit is under way.
    landing: OffsetMap,
    /// More than one of it: that is still so, and a rebalance waits.
    hold: Arc<()>,
}

impl Session {
    fn open(actor: &Actor, process: usize, delivery: Delivery) -> Result<Self, Trouble> {
        let instance = actor.lock().processes[process].instance.clone();
        let id = instance.clone().unwrap_or_else(|| format!("random-{process}"));
        let make = |id: &str| -> MakeClient<SimulatedProducer> {
            let (actor, id) = (actor.clone(), (delivery == Delivery::ExactlyOnce).then(|| id.to_owned()));
            Arc::new(move || Ok(SimulatedProducer::new(actor.clone(), id.clone(), delivery == Delivery::AtLeastOnce)))
        };
        let options = CommitterOptions {
            delivery,
            group: GroupId::new("sim").unwrap(),
            transactional_id: id,
            is_static: instance.is_some(),
            times: Times::of(TRANSACTION_TIMEOUT),
        };
        let committer = Committer::open(options, make)?;
        let mut world = actor.lock();
        let id = world.kafka.join(process, instance.clone());
        let generation = world.kafka.generation;
        drop(world);
        Ok(Self {
            actor: actor.clone(),
            process,
            instance,
            committer,
            consumer: SimulatedConsumer { actor: actor.clone(), id: Cell::new(id), generation: Cell::new(generation) },
            positions: BTreeMap::new(),
            paused: BTreeSet::new(),
            slots: BTreeMap::new(),
            is_unknown: false,
            landing: OffsetMap::new(),
            hold: Arc::default(),
        })
    }

    /// No transaction may be open.
    fn check_closed(&self, world: &mut World) {
        if world.producers.values().any(|(of, is_open)| *of == self.actor.number() && *is_open) {
            world.say_wrong("OPEN: the group is served while a transaction is open");
        }
    }

    /// What the client has heard from the group: rebalances are served here, and only here.
    fn serve_group(&mut self, world: &mut World, events: &mut Vec<Event>) {
        let id = self.consumer.id.get();
        self.consumer.generation.set(world.kafka.generation);
        let Some(member) = world.kafka.members.get_mut(&id) else {
            let lost: Vec<_> = std::mem::take(&mut self.positions).into_keys().collect();
            self.paused.clear();
            if !lost.is_empty() {
                world.meet("assignment lost");
                events.push(Event::Revoked(lost.into_iter().map(partition).collect()));
            }
            if world.kafka.is_fenced(id) {
                world.meet("fenced by a twin");
                events
                    .push(Event::Broken(trouble(TroubleKind::Duplicate, Known::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID)));
            } else {
                self.consumer.id.set(world.kafka.join(self.process, self.instance.clone()));
            }
            return;
        };
        let revoked = std::mem::take(&mut member.to_revoke);
        member.assigned.retain(|at| !revoked.contains(at));
        let assigned: Vec<_> = std::mem::take(&mut member.to_assign).difference(&revoked).copied().collect();
        let revoked: Vec<_> = revoked.into_iter().filter(|at| self.positions.remove(at).is_some()).collect();
        self.paused.retain(|at| !revoked.contains(at));
        if !revoked.is_empty() {
            world.meet("revoked");
            events.push(Event::Revoked(revoked.into_iter().map(partition).collect()));
        }
        if !assigned.is_empty() {
            self.positions.extend(assigned.iter().map(|at| (*at, None)));
            events.push(Event::Assigned(assigned.into_iter().map(partition).collect()));
        }
    }

    fn fetch(&mut self, world: &mut World, mut left: usize, events: &mut Vec<Event>) {
        for (at, position) in &mut self.positions {
            if position.is_none() {
                // Held back while a transaction on it is open.
                *position = world.kafka.stable_committed(*at).map(|committed| world.sources[*at].before(committed));
            }
            let Some(from) = *position else {
                world.meet("fetch waits for a transaction");
                continue;
            };
            let most = left.min(world.sources[*at].records.len() - from);
            if most == 0 || self.paused.contains(at) {
                continue;
            }
            let count = world.rng.usize(0..=most.min(world.scenario.batch));
            if count > 0 {
                events.push(Event::Records(world.sources[*at].fetch(partition(*at), from, count)));
                *position = Some(from + count);
                left -= count;
            }
        }
    }

    /// Nothing was to be sent for a while, as far as the session is concerned.
    fn may_rest(&mut self) {
        let rests = {
            let mut world = self.actor.lock();
            let rests = world.rng.u32(..20) == 0;
            if rests {
                world.meet("a producer rested");
            }
            rests
        };
        if rests {
            self.committer.rest(Duration::ZERO);
        }
    }

    fn poll_fault(&mut self, world: &mut World, events: &mut Vec<Event>) {
        let Some(way) = world.fault(Call::Poll) else { return };
        let kind = match way.known {
            Known::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID | Known::RD_KAFKA_RESP_ERR_UNRELEASED_INSTANCE_ID => {
                TroubleKind::Duplicate
            }
            Known::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED => TroubleKind::Denied,
            _ => TroubleKind::Passing,
        };
        match way.known {
            Known::RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED => world.kafka.remove(self.consumer.id.get()),
            known if way.flag == Flag::Fatal => events.push(Event::Broken(trouble(kind, known))),
            known => events.push(Event::Trouble(trouble(kind, known))),
        }
    }

    /// Some of the outputs may come when those before are on their way.
    fn watch<'a>(&self, outputs: &'a dyn Outputs) -> Watched<'a> {
        let mut world = self.actor.lock();
        let at_once = if world.rng.bool() { usize::MAX } else { world.rng.usize(0..=outputs.len()) };
        if at_once < outputs.len() {
            world.meet("outputs came while others were on their way");
        }
        Watched { outputs, generations: Mutex::default(), at_once: AtomicUsize::new(at_once), later: Mutex::default() }
    }

    fn begins(&self, outputs: usize) {
        self.actor.lock().processes[self.process].in_doubt = Some(outputs as u64);
    }

    /// Who dies after a commit and before it is told has not counted what was lost.
    fn set_doubt(&self, doubt: Option<u64>) {
        self.actor.lock().processes[self.process].in_doubt = doubt;
    }

    /// Notes of which tasks the outputs were that were given to the committer, and checks that it was one.
    fn note(&self, generations: &BTreeSet<u64>) {
        let mut world = self.actor.lock();
        let process = &mut world.processes[self.process];
        let last = process.worked_by;
        process.worked_by = generations.last().copied().unwrap_or(last);
        if generations.len() > 1 || generations.first().is_some_and(|first| *first < last) {
            world.say_wrong(format!("GENERATION: a transaction of {generations:?} after one of {last}"));
        }
    }

    fn done(&mut self, outcome: &Outcome, offsets: &OffsetMap) {
        let was_unknown = std::mem::replace(&mut self.is_unknown, matches!(outcome, Outcome::Unknown(_)));
        let mut world = self.actor.lock();
        world.trace((outcome, offsets.values().collect::<Vec<_>>()));
        match outcome {
            Outcome::Unknown(_) => world.meet("outcome unknown"),
            // What stays in doubt is accounted for when the session ends.
            Outcome::Broken(_) => {}
            Outcome::Committed { .. } if was_unknown => {
                world.meet("unknown, and it was committed");
                world.count_in_doubt = true;
                if offsets.is_empty() {
                    world.doubt(self.process);
                }
            }
            // All its partitions were taken away: nobody asks any more.
            Outcome::Aborted(_) if was_unknown && offsets.is_empty() => {
                world.meet("unknown, and its partitions are gone");
                world.doubt(self.process);
            }
            Outcome::Aborted(_) if was_unknown => world.meet("unknown, and it was not committed"),
            Outcome::Committed { .. } => world.meet("committed"),
            Outcome::Aborted(_) => world.meet("aborted"),
            Outcome::Rejected { .. } => world.meet("rejected"),
        }
        if !matches!(outcome, Outcome::Unknown(_) | Outcome::Broken(_)) {
            world.processes[self.process].in_doubt = None;
        }
    }
}

impl Broker for Session {
    fn poll(&mut self, wait: Duration, records: usize, events: &mut Vec<Event>) {
        self.may_rest();
        let actor = self.actor.clone();
        actor.call(Call::Poll, |world| {
            self.check_closed(world);
            self.poll_fault(world, events);
            self.serve_group(world, events);
            self.fetch(world, records, events);
            if events.is_empty() {
                // (a slow machine: nobody would learn from many more empty polls)
                world.wait = wait.min(Duration::from_millis(100)) * world.rng.u32(1..30);
            }
        });
    }

    fn pause(&mut self, partitions: &[TopicPartition]) {
        self.paused.extend(partitions.iter().map(number));
    }

    fn resume(&mut self, partitions: &[TopicPartition]) {
        partitions.iter().for_each(|partition| {
            self.paused.remove(&number(partition));
        });
    }

    fn topic(&mut self, name: &TopicName) -> Result<TopicInfo, TopicError> {
        if let Some(info) = self.slots.get(name) {
            return Ok(*info);
        }
        let slot = self.committer.add_topic(name, Duration::from_secs(5)).map_err(TopicError::Trouble)?;
        let info = TopicInfo { slot, partitions: PARTITIONS as i32 };
        self.slots.insert(name.clone(), info);
        Ok(info)
    }

    fn transact_while(&mut self, work: &dyn Flight, meanwhile: &mut dyn FnMut(&mut dyn Fetch)) -> Flown {
        let mut under_way = UnderWay { session: self, work, flown: None, left: 8 };
        meanwhile(&mut under_way);
        let flown = under_way.end();
        let is_known = |outcome: &Outcome| !matches!(outcome, Outcome::Unknown(_) | Outcome::Broken(_));
        if flown.this.as_ref().is_some_and(is_known) && flown.before.as_ref().is_none_or(is_known) {
            self.set_doubt(None);
        }
        flown
    }

    fn land(&mut self) -> Option<Outcome> {
        let outcome = self.committer.land()?;
        let offsets = std::mem::take(&mut self.landing);
        self.actor.lock().meet("a commit was waited for");
        self.done(&outcome, &offsets);
        Some(outcome)
    }

    fn transact(&mut self, outputs: &dyn Outputs, offsets: &OffsetMap) -> Outcome {
        let watched = self.watch(outputs);
        self.begins(outputs.len());
        let outcome = self.committer.transact(&self.consumer, &watched, offsets, &TopicIds::new());
        self.note(&watched.generations.into_inner().unwrap());
        self.done(&outcome, offsets);
        outcome
    }

    fn settle(&mut self, offsets: &OffsetMap) -> Outcome {
        let outcome = self.committer.settle(&self.consumer, offsets);
        self.done(&outcome, offsets);
        outcome
    }

    fn close(&mut self, leave: bool, _: Duration) {
        let mut world = self.actor.lock();
        if self.instance.is_none() || leave {
            world.kafka.remove(self.consumer.id.get());
        }
    }
}

/// A transaction under way: it ends at any moment, but before a rebalance is served.
struct UnderWay<'a> {
    session: &'a mut Session,
    work: &'a dyn Flight,
    flown: Option<Flown>,
    left: u32,
}

impl UnderWay<'_> {
    fn end(&mut self) -> Flown {
        if let Some(flown) = &self.flown {
            return flown.clone();
        }
        self.work.seal();
        let session = &mut *self.session;
        let watched = session.watch(self.work.outputs());
        let flies_on = self.work.flies_on() || session.actor.lock().rng.u8(0..3) == 0;
        let growing = WatchedFlight { work: self.work, outputs: watched, flies_on };
        session.begins(growing.outputs.len());
        let hold = || Box::new(Arc::clone(&session.hold)) as Hold;
        let flown = session.committer.transact_flight(&session.consumer, &growing, &TopicIds::new(), &hold);
        session.note(&growing.outputs.generations.into_inner().unwrap());
        let offsets = self.work.offsets();
        let before = std::mem::take(&mut session.landing);
        let was_committed = flown.before.as_ref().is_none_or(|outcome| matches!(outcome, Outcome::Committed { .. }));
        if let Some(outcome) = &flown.before {
            session.done(outcome, &before);
        }
        match &flown.this {
            Some(outcome) if was_committed => session.done(outcome, &offsets),
            Some(_) => session.actor.lock().meet("given up with the transaction before it"),
            None => {
                session.actor.lock().meet("begun before the last was committed");
                session.landing = offsets;
            }
        }
        session.set_doubt(Some(self.work.outputs().len() as u64));
        self.flown.insert(flown).clone()
    }
}

impl Fetch for UnderWay<'_> {
    fn fetch(&mut self, wait: Duration, records: usize, events: &mut Vec<Event>) {
        self.left = self.left.saturating_sub(1);
        let mut world = self.session.actor.lock();
        let (seals, ends) = (world.rng.u8(0..4) == 0, world.rng.u8(0..4) == 0 || self.left == 0);
        world.meet("fetched while a transaction was under way");
        drop(world);
        if ends {
            self.end();
        } else if seals {
            self.work.seal();
        }
        let session = &mut *self.session;
        let has_ended = self.flown.is_some() && Arc::strong_count(&session.hold) == 1;
        let is_told = self.flown.as_ref().is_some_and(|flown| flown.this.is_some());
        let actor = session.actor.clone();
        actor.call(Call::Poll, |world| {
            session.poll_fault(world, events);
            // (a rebalance waits for a commit, too, that is under way; not until the worker has heard what became of it, and where that
            // was nothing, it has not been aborted yet)
            if has_ended {
                if is_told {
                    session.check_closed(world);
                } else {
                    world.meet("a rebalance was served before the worker knew what became of a commit");
                }
                session.serve_group(world, events);
                if !events.is_empty() {
                    world.meet("a rebalance waited for the end of a transaction");
                }
            }
            session.fetch(world, records, events);
            if events.is_empty() {
                world.wait = wait;
            }
        });
    }

    fn has_ended(&self) -> bool {
        self.flown.is_some()
    }
}

/// Notes of which generations' tasks the outputs are.
struct Watched<'a> {
    outputs: &'a dyn Outputs,
    generations: Mutex<BTreeSet<u64>>,
    /// How many are handed out at first; the others follow once it is closed.
    at_once: AtomicUsize,
    later: Mutex<Vec<Later>>,
}

/// An output, copied.
struct Later {
    topic: u16,
    partition: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    timestamp: i64,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Later {
    fn of(output: &Output<'_>) -> Self {
        let headers = (0..output.headers.len()).map(|nth| output.headers.get(nth));
        Self {
            topic: output.topic,
            partition: output.partition,
            key: output.key.map(<[u8]>::to_vec),
            value: output.value.map(<[u8]>::to_vec),
            timestamp: output.timestamp,
            headers: headers.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect(),
        }
    }
    fn output(&self) -> Output<'_> {
        Output {
            topic: self.topic,
            partition: self.partition,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            timestamp: self.timestamp,
            headers: Headers::List(&self.headers),
            keeper: None,
        }
    }
}

impl Outputs for Watched<'_> {
    fn len(&self) -> usize {
        self.outputs.len()
    }
    fn for_each(&self, produce: &mut dyn FnMut(Output<'_>) -> ControlFlow<()>) {
        let later = std::mem::take(&mut *self.later.lock().unwrap());
        if !later.is_empty() {
            let _ = later.iter().try_for_each(|later| produce(later.output()));
            return;
        }
        let mut left = self.at_once.swap(usize::MAX, Relaxed);
        self.outputs.for_each(&mut |output| {
            // (a dead letter has its source's timestamp)
            let generation = u64::try_from(output.timestamp).ok().filter(|stamp| *stamp < 1_000_000);
            self.generations.lock().unwrap().extend(generation);
            if left == 0 {
                self.later.lock().unwrap().push(Later::of(&output));
                return ControlFlow::Continue(());
            }
            left -= 1;
            produce(output)
        });
    }
    fn takes_more(&self) -> bool {
        self.outputs.takes_more() || !self.later.lock().unwrap().is_empty()
    }
    fn close(&self) -> bool {
        let more = self.outputs.close();
        more || !self.later.lock().unwrap().is_empty()
    }
}

struct WatchedFlight<'a> {
    work: &'a dyn Flight,
    outputs: Watched<'a>,
    flies_on: bool,
}

impl Flight for WatchedFlight<'_> {
    fn outputs(&self) -> &dyn Outputs {
        &self.outputs
    }
    fn offsets(&self) -> OffsetMap {
        self.work.offsets()
    }
    fn seal(&self) {
        self.work.seal();
    }
    fn flies_on(&self) -> bool {
        self.flies_on
    }
}

fn partition(number: usize) -> TopicPartition {
    TopicPartition { topic: TopicName::new("in").unwrap(), partition: number as i32 }
}

fn trouble(kind: TroubleKind, known: Known) -> Trouble {
    let code = millrace::kafka::seam::Code::from(known).name().into();
    Trouble { code, message: "simulated".into(), kind }
}

/// What the workers of a process tell.
struct News {
    actor: Actor,
    /// The generation of the task that was taken up last.
    taken_up: u64,
    /// What came of the last transaction is not known; and was not when the worker was told to drain.
    is_unknown: bool,
    drained_unknown: bool,
}

impl Report for News {
    fn taken_up(&mut self, task: &Task) {
        self.taken_up = task.generation;
        self.actor.lock().meet("task swapped");
    }
    fn health(&mut self, health: &Health) {
        self.drained_unknown |= health.phase == Phase::Draining && self.is_unknown;
    }
    fn transaction_begins(&mut self) {}
    fn transaction(&mut self, outcome: &'static str, _: Duration) {
        self.is_unknown = outcome == "unknown";
    }
    fn committed(&mut self, tally: &Tally) {
        self.actor.lock().counted += tally.consumed.iter().map(|(_, [records, _])| records).sum::<u64>();
    }
    fn fault(&mut self, at: &TopicPartition, offset: Offset, _: ErrorId, fault: &Fault, fate: Fate) {
        self.actor.lock().trace((at.partition, offset, fault.code, fate));
        let fate = match fate {
            Fate::Retried(_) => "retried",
            Fate::Stopped => "stopped",
            Fate::Skipped => "skipped",
            Fate::DeadLettered => "dead letter",
        };
        self.actor.lock().meet(format!("{}, {fate}", fault.code));
    }
    fn usage(&mut self, _: &PluginName, _: Usage) {}
    fn trouble(&mut self, trouble: &Trouble) {
        self.actor.lock().trace((&trouble.code, trouble.kind));
    }
    fn lost(&mut self, _: &TopicPartition, records: u64, _: &str) {
        let mut world = self.actor.lock();
        world.losses += records;
        world.meet("losses counted");
    }
    fn rebalanced(&mut self) {}
}
