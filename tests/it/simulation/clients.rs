//! The calls of librdkafka that the product makes, answered by the simulated Kafka: a producer with librdkafka's states,
//! and a member of a group.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millrace::kafka::seam::{Apart, Error, Failure, Failures, GroupClient, Known, ProducerClient, TopicIds};
use millrace::model::{Offset, OffsetMap, TopicName, TopicPartition};
use millrace::pipeline::ports::Output;

use super::faults::{Effect, Failing, Flag, error};
use super::kafka::Late;
use super::records::{PARTITIONS, Place, is_too_large, origin, place};
use super::world::{Actor, Call, World};

/// Delivery failures of one code that the client tells in full.
const FAILURES_KEPT: usize = 16;

/// A producer, as librdkafka's: one transaction at a time, errors that stick until the abort or for ever.
#[derive(Clone)]
pub(super) struct SimulatedProducer(Arc<Inner>);

struct Inner {
    actor: Actor,
    number: u64,
    /// Its transactional id.
    id: Option<String>,
    /// Whether it stops for ever at the first record that fails (`enable.gapless.guarantee`).
    gapless: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    epoch: i32,
    phase: Phase,
    /// Whether the coordinator knows of the transaction.
    registered: bool,
    queue: Vec<Queued>,
    failures: Failures,
    stalled_until: Option<Duration>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    #[default]
    New,
    Ready,
    InTransaction,
    /// Nothing but an abort is possible, for this reason.
    Abortable(Known),
    /// Nothing is possible any more, for this reason.
    Failed(Known),
}

struct Queued {
    place: Place,
    topic: TopicName,
    value: Vec<u8>,
    index: usize,
}

impl SimulatedProducer {
    pub(super) fn new(actor: Actor, id: Option<String>, gapless: bool) -> Self {
        let number = {
            let mut world = actor.lock();
            world.producers_ever += 1;
            let number = world.producers_ever;
            world.producers.insert(number, (actor.number(), false));
            number
        };
        let phase = if id.is_some() { Phase::New } else { Phase::Ready };
        let state = Mutex::new(State { phase, ..State::default() });
        Self(Arc::new(Inner { actor, number, id, gapless, state }))
    }

    fn call<T>(&self, call: Call, act: impl FnOnce(&mut World, &mut State) -> T) -> T {
        self.0.actor.call(call, |world| {
            let state = &mut *self.state();
            let result = act(world, state);
            let is_open = matches!(state.phase, Phase::InTransaction | Phase::Abortable(_));
            world.producers.insert(self.0.number, (self.0.actor.number(), is_open && self.0.id.is_some()));
            result
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // (who died may have held it)
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self) -> &str {
        self.0.id.as_deref().expect("a transactional producer")
    }

    /// Who writes, as the coordinator knows it.
    fn writer<'a>(&'a self, state: &State) -> Option<(&'a str, i32)> {
        self.0.id.as_deref().map(|id| (id, state.epoch))
    }

    /// The client takes up how the call fails.
    fn fail(&self, world: &mut World, state: &mut State, way: Failing, within: Duration) -> Error {
        if way.known == Known::RD_KAFKA_RESP_ERR__TIMED_OUT {
            world.wait = if world.rng.bool() { within } else { within / 8 };
        }
        if way.effect == Effect::Ended {
            world.kafka.fence(self.id());
        }
        match way.flag {
            Flag::Fatal => state.phase = Phase::Failed(way.known),
            Flag::Abort => state.phase = Phase::Abortable(way.known),
            Flag::Plain | Flag::Retriable => {}
        }
        way.error()
    }

    /// A transactional call needs an open transaction.
    fn require_open(state: &State) -> Result<(), Error> {
        match state.phase {
            Phase::InTransaction => Ok(()),
            Phase::Abortable(known) => Err(error(known, Flag::Abort)),
            Phase::Failed(known) => Err(error(known, Flag::Fatal)),
            Phase::New | Phase::Ready => Err(error(Known::RD_KAFKA_RESP_ERR__STATE, Flag::Plain)),
        }
    }

    /// The broker has refused the producer's epoch, or has no transaction of it.
    fn refused(state: &mut State, known: Known) -> Error {
        state.phase = Phase::Failed(known);
        error(known, Flag::Fatal)
    }

    /// Ends the transaction at the coordinator. A request that is still on its way is waited for, not sent again.
    fn end(&self, world: &mut World, state: &mut State, commit: bool, wait: Duration) -> Result<(), Error> {
        let (id, epoch) = (self.id(), state.epoch);
        let ours = |late: &Late| late.id == id && late.epoch == epoch && late.commit == commit;
        if let Some(at) = world.kafka.late.iter().position(ours) {
            if world.rng.bool() {
                world.wait = wait;
                return Err(error(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Flag::Retriable));
            }
            world.kafka.late.remove(at);
        }
        if state.registered {
            world.kafka.end(id, epoch, commit).map_err(|known| Self::refused(state, known))?;
        }
        (state.phase, state.registered) = (Phase::Ready, false);
        Ok(())
    }

    /// As `end`, where the answer does not arrive.
    fn end_unheard(&self, world: &mut World, state: &State, commit: bool, effect: Effect) {
        match effect {
            Effect::Done if state.registered => {
                let _ = world.kafka.end(self.id(), state.epoch, commit);
            }
            Effect::Late if state.registered => {
                let (id, epoch, since) = (self.id().to_owned(), state.epoch, world.now());
                world.kafka.late.push(Late { id, epoch, commit, since });
            }
            Effect::Done | Effect::Late | Effect::Nothing | Effect::Ended => {}
        }
    }

    // ---- delivery ---------------------------------------------------------------------

    fn deliver(&self, world: &mut World, state: &mut State, way: Option<Failing>) {
        let mut places: BTreeMap<Place, Vec<Queued>> = BTreeMap::new();
        state.queue.drain(..).for_each(|queued| places.entry(queued.place).or_default().push(queued));
        let fails_at = way.map(|_| world.rng.usize(0..places.len()));
        for (nth, (_, batch)) in places.into_iter().enumerate() {
            self.deliver_batch(world, state, batch, way.filter(|_| fails_at == Some(nth)));
        }
    }

    /// Records for one partition, in order: up to the first that fails they are written.
    fn deliver_batch(&self, world: &mut World, state: &mut State, batch: Vec<Queued>, way: Option<Failing>) {
        let fails = way.map(|way| (world.rng.usize(0..batch.len()), way));
        let mut dead = None;
        for (nth, queued) in batch.into_iter().enumerate() {
            if let (None, Some((from, way))) = (dead, fails)
                && nth == from
            {
                dead = Some((way.known, way.effect == Effect::Done));
                if way.effect == Effect::Ended && self.0.id.is_some() {
                    world.kafka.fence(self.id());
                }
                let reason = match way.known {
                    // They are purged when a partition cannot be added to the transaction.
                    Known::RD_KAFKA_RESP_ERR__PURGE_QUEUE => Known::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
                    Known::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH => Known::RD_KAFKA_RESP_ERR__FENCED,
                    known => known,
                };
                self.records_failed(state, reason, way.flag == Flag::Fatal);
            }
            if dead.is_none() && is_too_large(&queued.value) && queued.place < PARTITIONS {
                // The broker names the record, or refuses the batch as a whole.
                let known = match world.rng.bool() {
                    true => Known::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
                    false => Known::RD_KAFKA_RESP_ERR_INVALID_RECORD,
                };
                self.records_failed(state, known, false);
                Self::not_delivered(state, queued, known);
                let others = if world.rng.bool() { known } else { Known::RD_KAFKA_RESP_ERR__INVALID_DIFFERENT_RECORD };
                dead = Some((others, false));
                continue;
            }
            let is_written = dead.is_none_or(|(_, is_written)| is_written);
            if is_written && let Err(known) = self.write(world, state, &queued) {
                state.phase = Phase::Failed(known);
                dead = Some((Known::RD_KAFKA_RESP_ERR__FATAL, false));
            }
            if let Some((known, _)) = dead {
                Self::not_delivered(state, queued, known);
            }
        }
    }

    fn write(&self, world: &mut World, state: &mut State, queued: &Queued) -> Result<(), Known> {
        // A client that has failed for ever sends nothing any more.
        if let Phase::Failed(known) = state.phase {
            return Err(known);
        }
        let now = world.now();
        world.kafka.append(self.writer(state), queued.place, origin(&queued.value), now)?;
        state.registered = self.0.id.is_some();
        Ok(())
    }

    fn records_failed(&self, state: &mut State, reason: Known, fatal: bool) {
        match (&self.0.id, self.0.gapless) {
            (_, true) => state.phase = Phase::Failed(Known::RD_KAFKA_RESP_ERR__GAPLESS_GUARANTEE),
            (Some(_), _) if fatal => state.phase = Phase::Failed(reason),
            (Some(_), _) if !matches!(state.phase, Phase::Failed(_)) => state.phase = Phase::Abortable(reason),
            _ => {}
        }
    }

    fn not_delivered(state: &mut State, queued: Queued, known: Known) {
        let failures = &mut state.failures;
        failures.count += 1;
        if failures.first.iter().filter(|failure| failure.code == known.into()).count() < FAILURES_KEPT {
            failures.first.push(Failure { index: queued.index, topic: Some(queued.topic), code: known.into() });
        }
    }

    /// Some of what is queued was on its way already when the client gave up.
    fn leak(&self, world: &mut World, state: &mut State) {
        let mut stopped = Vec::new();
        for queued in std::mem::take(&mut state.queue) {
            let stops = stopped.contains(&queued.place) || is_too_large(&queued.value) || world.rng.u8(0..4) == 0;
            if stops || self.write(world, state, &queued).is_err() {
                stopped.push(queued.place);
            }
        }
    }
}

impl Drop for SimulatedProducer {
    fn drop(&mut self) {
        if Arc::strong_count(&self.0) == 1 {
            let mut world = self.0.actor.lock();
            world.producers.remove(&self.0.number);
            self.leak(&mut world, &mut self.state());
        }
    }
}

impl ProducerClient for SimulatedProducer {
    type Topic = TopicName;
    type Member = Membership;

    fn topic(&self, name: &TopicName) -> Result<TopicName, Error> {
        Ok(name.clone())
    }

    fn look_up(&self, _: &TopicName, wait: Duration) -> Result<(), Error> {
        self.call(Call::LookUp, |world, state| match world.fault(Call::LookUp) {
            Some(way) => Err(self.fail(world, state, way, wait)),
            None => Ok(()),
        })
    }

    fn produce(&self, topic: &TopicName, output: &Output<'_>, index: usize) -> Result<(), Error> {
        self.call(Call::Produce, |world, state| {
            match state.phase {
                Phase::Failed(_) => return Err(error(Known::RD_KAFKA_RESP_ERR__FATAL, Flag::Plain)),
                Phase::Ready if self.0.id.is_some() => {
                    world.say_wrong("OUTSIDE: an output is given while no transaction is open");
                }
                Phase::Abortable(_) => return Err(error(Known::RD_KAFKA_RESP_ERR__STATE, Flag::Plain)),
                Phase::New | Phase::Ready | Phase::InTransaction => {}
            }
            if let Some(way) = world.fault(Call::Produce) {
                if way.flag == Flag::Fatal {
                    state.phase = Phase::Failed(Known::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID);
                }
                return Err(error(way.known, Flag::Plain));
            }
            let value = output.value.unwrap_or_default().to_vec();
            let is_dead_letter = topic.as_str() == "dead";
            // Refused by the client here, or by the broker later.
            if !is_dead_letter && is_too_large(&value) && world.rng.bool() {
                return Err(error(Known::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, Flag::Plain));
            }
            let place = place(is_dead_letter, output.partition);
            state.queue.push(Queued { place, topic: topic.clone(), value, index });
            Ok(())
        })
    }

    fn flush(&self, wait: Duration) -> bool {
        self.call(Call::Flush, |world, state| {
            if let Some(until) = state.stalled_until.filter(|until| *until > world.now()) {
                // (longer than asked for: it is a busy machine, and nobody would learn from many more calls)
                world.wait = (until - world.now()).min(Duration::from_secs(3)).max(wait);
                return false;
            }
            state.stalled_until = None;
            if state.queue.is_empty() {
                return true;
            }
            let way = world.fault(Call::Flush);
            if way.is_some_and(|way| way.effect == Effect::Late) {
                state.stalled_until = Some(world.now() + world.some(Duration::from_secs(30)));
                return false;
            }
            self.deliver(world, state, way);
            true
        })
    }

    fn init_transactions(&self, wait: Duration) -> Result<(), Error> {
        self.call(Call::Init, |world, state| {
            if let Some(way) = world.fault(Call::Init) {
                if way.effect == Effect::Done {
                    world.kafka.init(self.id());
                }
                return Err(self.fail(world, state, way, wait));
            }
            state.epoch = world.kafka.init(self.id());
            state.phase = Phase::Ready;
            Ok(())
        })
    }

    fn begin_transaction(&self) -> Result<(), Error> {
        self.call(Call::Begin, |world, state| {
            match state.phase {
                Phase::Ready => {}
                Phase::Abortable(known) => return Err(error(known, Flag::Abort)),
                Phase::Failed(known) => return Err(error(known, Flag::Fatal)),
                Phase::New | Phase::InTransaction => return Err(error(Known::RD_KAFKA_RESP_ERR__STATE, Flag::Plain)),
            }
            if let Some(way) = world.fault(Call::Begin) {
                return Err(way.error());
            }
            state.phase = Phase::InTransaction;
            Ok(())
        })
    }

    fn send_offsets(
        &self,
        offsets: &OffsetMap,
        _: &TopicIds,
        member: &Membership,
        wait: Duration,
    ) -> Result<(), Error> {
        self.call(Call::SendOffsets, |world, state| {
            Self::require_open(state)?;
            let way = world.fault(Call::SendOffsets);
            let now = world.now();
            if way.is_none_or(|way| way.effect == Effect::Done) {
                let writer = (self.id(), state.epoch);
                let added = world.kafka.add_offsets(writer, *member, &by_partition(offsets), now);
                state.registered |= added.is_ok();
                match added {
                    Err(known) => return Err(Self::refused(state, known)),
                    Ok(Err(known)) => {
                        state.phase = Phase::Abortable(known);
                        return Err(error(known, Flag::Abort));
                    }
                    Ok(Ok(())) => {}
                }
            }
            way.map_or(Ok(()), |way| Err(self.fail(world, state, way, wait)))
        })
    }

    fn commit_transaction(&self, wait: Duration) -> Result<(), Error> {
        self.call(Call::Commit, |world, state| {
            Self::require_open(state)?;
            self.deliver(world, state, None);
            match world.fault(Call::Commit) {
                Some(way) => {
                    self.end_unheard(world, state, true, way.effect);
                    Err(self.fail(world, state, way, wait))
                }
                None => self.end(world, state, true, wait),
            }
        })
    }

    fn abort_transaction(&self, wait: Duration) -> Result<(), Error> {
        self.call(Call::Abort, |world, state| {
            match state.phase {
                Phase::InTransaction | Phase::Abortable(_) => {}
                Phase::Failed(known) => return Err(error(known, Flag::Fatal)),
                Phase::New | Phase::Ready => return Err(error(Known::RD_KAFKA_RESP_ERR__STATE, Flag::Plain)),
            }
            self.leak(world, state);
            match world.fault(Call::Abort) {
                Some(way) => {
                    self.end_unheard(world, state, false, way.effect);
                    Err(self.fail(world, state, way, wait))
                }
                None => self.end(world, state, false, wait),
            }
        })
    }

    /// At once, or when somebody waits for it: what others do comes before it then.
    fn apart<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Apart<T> {
        if self.0.actor.lock().rng.bool() {
            return Apart::when_asked(work);
        }
        let done = work();
        Apart::when_asked(move || done)
    }

    fn serve(&self, wait: Duration) {
        self.0.actor.sleep(wait);
    }

    fn fatal_error(&self) -> Option<Error> {
        match self.state().phase {
            Phase::Failed(known) => Some(error(known, Flag::Fatal)),
            _ => None,
        }
    }

    fn take_errors(&self) -> Vec<Error> {
        Vec::new()
    }

    fn take_failures(&self) -> Failures {
        std::mem::take(&mut self.state().failures)
    }
}

fn by_partition(offsets: &OffsetMap) -> BTreeMap<usize, Offset> {
    offsets.iter().map(|(at, offset)| (number(at), *offset)).collect()
}

pub(super) fn number(at: &TopicPartition) -> usize {
    usize::try_from(at.partition).expect("partitions count from 0")
}

/// Member and generation.
pub(super) type Membership = (u32, i32);

/// A member of the group, as the client sees itself.
pub(super) struct SimulatedConsumer {
    pub(super) actor: Actor,
    /// Its id, which may be out of date.
    pub(super) id: Cell<u32>,
    pub(super) generation: Cell<i32>,
}

impl GroupClient for SimulatedConsumer {
    type Member = Membership;

    /// The client hears of a new generation by itself, also between two polls; and of having been thrown out.
    fn member(&self) -> Option<Membership> {
        let mut world = self.actor.lock();
        let hears = world.rng.u8(0..4) > 0;
        match world.kafka.members.contains_key(&self.id.get()) {
            true if hears => self.generation.set(world.kafka.generation),
            false if hears => return None,
            _ => {}
        }
        Some((self.id.get(), self.generation.get()))
    }

    fn commit_offsets(&self, offsets: &OffsetMap, _: &TopicIds, wait: Duration) -> Result<(), Error> {
        self.actor.call(Call::CommitOffsets, |world| {
            let way = world.fault(Call::CommitOffsets);
            if way.is_none_or(|way| way.effect == Effect::Done) {
                let member = (self.id.get(), self.generation.get());
                let result = world.kafka.commit(member, &by_partition(offsets));
                result.map_err(|known| error(known, Flag::Plain))?;
            }
            let Some(way) = way else { return Ok(()) };
            if way.known == Known::RD_KAFKA_RESP_ERR__TIMED_OUT {
                world.wait = wait;
            }
            Err(way.error())
        })
    }

    fn committed(&self, partitions: &OffsetMap, wait: Duration) -> Result<Vec<(TopicPartition, Offset)>, Error> {
        self.actor.call(Call::Committed, |world| {
            if let Some(way) = world.fault(Call::Committed) {
                world.wait = world.some(wait);
                return Err(way.error());
            }
            let found = |at: &TopicPartition| Some((at.clone(), world.kafka.stable_committed(number(at))?));
            let found: Option<Vec<_>> = partitions.keys().map(found).collect();
            found.ok_or_else(|| {
                world.wait = wait;
                world.meet("committed offsets wait for a transaction");
                error(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Flag::Plain)
            })
        })
    }
}
