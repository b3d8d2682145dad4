//! A producer of a worker's: one transaction at a time, from begin to commit, with the whole table of what may go wrong.
//!
//! Two rules hold everywhere. Outputs and offsets count as not committed only if the request to commit was never sent,
//! or the broker has said so. And a producer whose last call ended in anything but success or a clean abort is thrown
//! away: the next one's `init_transactions` bumps the epoch and settles what the old one left open, so that a late
//! request of the old one can no longer end a transaction of the new one (librdkafka lacks KIP-890's second part).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::times::Times;
use crate::model::{GroupId, Mutation, OffsetMap, TopicName, clock};
use crate::pipeline::ports::{Outcome, Output, Outputs, Trouble, TroubleKind};
use crate::pipeline::report::Spent;

use super::apart::Apart;
use super::ending::{Ended, Ending, Failed, Hold, Offsets, RETRY_PAUSE, send_offsets, until};
use super::errors::{self, About, is_fenced, is_rejection, passing, trouble};
use super::positions::configuration;
use super::raw::{Code, Error, Failure, Failures, Known};
use super::seam::{ProducerClient, TopicIds};
use super::topics::{reason, should_refresh};

/// A flush is asked in small steps: one call looks up from its wait only every 10 ms.
const FLUSH_STEP: Duration = Duration::from_millis(1);
const FLUSH_STEP_LONGEST: Duration = Duration::from_millis(10);
/// By then no message waits for others any more to go with (`linger.ms`, as a rule), and only every so many steps hurry them.
const LINGER: Duration = Duration::from_millis(6);
const HURRY_EVERY: u32 = 8;
/// Between two tries to make a client that others can do without.
const MAKE_AGAIN: Duration = Duration::from_secs(30);

/// A producer of a worker's; makes a new client where the old is of no more use.
pub(super) struct Producer<C: ProducerClient> {
    make: MakeClient<C>,
    /// The group whose offsets it commits.
    group: GroupId,
    /// Only in exactly_once.
    transactional_id: Option<String>,
    /// Whether the transactional id outlives the process, so that another may come by it.
    is_static: bool,
    times: Times,
    /// The topics by slot.
    topics: Vec<TopicName>,
    live: Option<Live<C>>,
    /// There is none since none was needed.
    rests: bool,
    /// When it was last needed.
    used: Instant,
    /// The end that was left under way, of the transaction that began then.
    ending: Option<(Apart<Ended>, Instant)>,
    /// A client that is being made; and, where that has failed, when it is tried again.
    making: Option<Apart<Result<C, Trouble>>>,
    make_again: Instant,
    /// Whether something hinted that the cluster's topics are not what we believe.
    stale_topics: bool,
    spent: Spent,
}

/// Makes a client, or says what librdkafka has against its properties.
pub type MakeClient<C> = Arc<dyn Fn() -> Result<C, String> + Send + Sync>;

/// A producer that is ready.
struct Live<C: ProducerClient> {
    /// By slot; made when first produced to.
    topics: Vec<Option<C::Topic>>,
    client: C,
}

/// What a transaction is made of, and what it has to wait for.
pub(super) struct Work<'a, M> {
    pub(super) outputs: &'a dyn Outputs,
    /// Asked for once no more outputs come.
    pub(super) offsets: &'a dyn Fn() -> OffsetMap,
    pub(super) topic_ids: &'a TopicIds,
    /// Who commits the offsets; asked for with them.
    pub(super) member: &'a mut dyn FnMut() -> Option<M>,
    /// Waits for the transaction before this one; whether that was committed, or there was none.
    pub(super) before: &'a mut dyn FnMut() -> bool,
    /// Whether its end is to be left under way; to be asked for once nothing more is added.
    pub(super) is_left: &'a dyn Fn() -> bool,
    /// What that keeps.
    pub(super) hold: &'a dyn Fn() -> Hold,
}

/// Why an attempt ended early.
enum Stop {
    /// Nothing was committed: abort, and say this.
    Abort(Outcome),
    /// As `Abort`; the producer has lost its place in the sequence and is replaced after the abort.
    AbortAndRenew(Outcome),
    /// Nothing was committed, and the producer is of no more use.
    Discard(Outcome),
    /// Nothing was committed, and no time is left to see to that: whoever comes next does.
    Leave(Outcome),
    /// A commit was sent and has failed in a way that asks for an abort.
    AbortCommit(Outcome),
    /// A commit was sent, and nobody knows.
    Unknown(Trouble),
}

impl<C: ProducerClient> Producer<C> {
    pub(super) fn new(
        make: MakeClient<C>,
        group: GroupId,
        transactional_id: Option<String>,
        is_static: bool,
        times: Times,
    ) -> Self {
        Self {
            make,
            group,
            transactional_id,
            is_static,
            times,
            topics: Vec::new(),
            live: None,
            rests: false,
            used: clock::now(),
            ending: None,
            making: None,
            make_again: clock::now(),
            stale_topics: false,
            spent: Spent::default(),
        }
    }

    /// Makes a producer, and, in exactly_once, settles whatever its predecessor left open.
    pub(super) fn renew(&mut self, within: Duration) -> Result<(), Trouble> {
        self.renew_with(within, |_| ())
    }

    /// The same; what is `meanwhile` begun with its client takes no time besides.
    pub(super) fn renew_with(&mut self, within: Duration, meanwhile: impl FnOnce(&C)) -> Result<(), Trouble> {
        (self.live, self.making) = (None, None);
        let client = make_ready(&self.make, self.transactional_id.as_deref(), within, meanwhile)?;
        self.take_client(client);
        Ok(())
    }

    /// The same while others go on, unless that is being done: `by` is any client.
    pub(super) fn renew_apart(&mut self, by: &C, within: Duration) {
        if self.making.is_some() || clock::now() < self.make_again {
            return;
        }
        let (make, id) = (Arc::clone(&self.make), self.transactional_id.clone());
        self.making = Some(by.apart(move || make_ready(&make, id.as_deref(), within, |_| ())));
    }

    /// Whether it is ready without a wait. One that is being made is, once it is made.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.making.as_ref().is_some_and(Apart::is_done) {
            self.finish_making();
        }
        self.live.is_some()
    }

    /// Waits for the client that is being made, if one is. Where that fails, there is none for a while.
    pub(super) fn finish_making(&mut self) {
        let Some(making) = self.making.take() else { return };
        let lost = || Err(passing(Known::RD_KAFKA_RESP_ERR__FAIL, "it was given up".to_owned()));
        match making.wait().unwrap_or_else(lost) {
            Ok(client) => self.take_client(client),
            Err(Trouble { code, message, .. }) => {
                self.make_again = clock::now() + MAKE_AGAIN;
                let id = self.transactional_id.as_deref().unwrap_or_default();
                tracing::warn!(
                    transactional_id = id, %code,
                    "a second producer cannot be made, without which transactions do not overlap: {message}"
                );
            }
        }
    }

    fn take_client(&mut self, client: C) {
        self.live = Some(Live { topics: Vec::new(), client });
        self.rests = false;
    }

    /// The client, if there is one.
    pub(super) fn client(&self) -> Option<&C> {
        self.live.as_ref().map(|live| &live.client)
    }

    /// Whether the last one was given up with a transaction that it may have left open, and there is no other yet.
    pub(super) fn owes_an_end(&self) -> bool {
        // (one that is being made ends it, and must find no other of its id)
        self.transactional_id.is_some() && self.live.is_none() && self.making.is_none() && !self.rests
    }

    /// Where nothing was sent for so long, lets the producer go until something is: its threads and connections are most of what an
    /// idle worker costs. Not where another process may come by the same id: making it anew would take the work from a younger twin.
    pub(super) fn rest(&mut self, after: Duration) {
        if !self.is_static && self.is_ready() && clock::now() - self.used >= after {
            self.sleep();
        }
    }

    /// Lets the producer go, which has nothing left open.
    pub(super) fn sleep(&mut self) {
        (self.live, self.making, self.rests) = (None, None, true);
    }

    /// Whether it need not be made first.
    pub(super) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// A topic that another producer of the worker's knows by this slot.
    pub(super) fn share_topic(&mut self, name: &TopicName) {
        self.topics.push(name.clone());
    }

    /// Throws the producer away; the next use makes a new one.
    pub(super) fn discard(&mut self) {
        (self.live, self.rests) = (None, false);
    }

    /// The next free slot, for this topic, which the producer then knows.
    pub(super) fn add_topic(&mut self, name: &TopicName, wait: Duration) -> Result<u16, Trouble> {
        let slot = u16::try_from(self.topics.len())
            .map_err(|_| passing(Known::RD_KAFKA_RESP_ERR__INVALID_ARG, "one route writes more than 65,536 topics"))?;
        let client = self.live()?.client.clone();
        let about = About::Write(name);
        let topic = client.topic(name).map_err(|error| trouble(&error, about))?;
        // Records for a topic that the producer has not yet looked up would wait in the transaction instead of here.
        client.look_up(&topic, wait).map_err(|error| trouble(&error, about))?;
        self.topics.push(name.clone());
        let live = self.live()?;
        live.topics.resize_with(usize::from(slot) + 1, || None);
        live.topics[usize::from(slot)] = Some(topic);
        Ok(slot)
    }

    /// Serves the client's callbacks; what it complained about since.
    pub(super) fn take_errors(&mut self) -> Vec<Error> {
        let Some(live) = &self.live else { return Vec::new() };
        live.client.serve(Duration::ZERO);
        live.client.take_errors()
    }

    /// For how long brokers have made the client wait since this was last asked.
    pub(super) fn take_throttled(&self) -> Duration {
        self.live.as_ref().map_or(Duration::ZERO, |live| live.client.take_throttled())
    }

    /// Whether something hinted, since this was last asked, that the cluster's topics have changed.
    pub(super) fn take_stale_topics(&mut self) -> bool {
        std::mem::take(&mut self.stale_topics)
    }

    /// Where the time went since this was last asked.
    pub(super) fn take_spent(&mut self) -> Spent {
        std::mem::take(&mut self.spent)
    }

    fn live(&mut self) -> Result<&mut Live<C>, Trouble> {
        self.finish_making();
        if self.live.is_none() {
            self.renew(self.times.ready)?;
        }
        Ok(self.live.as_mut().expect("made above"))
    }

    // exactly_once

    /// One transaction. None: its commit is under way, until [`Producer::land`] says what became of it.
    pub(super) fn transact(&mut self, work: &mut Work<'_, C::Member>) -> Option<Outcome> {
        // (from here on, so that a producer that has to be made first takes no time besides)
        let began = clock::now();
        self.used = began;
        if let Err(trouble) = self.live() {
            return Some(lost_or(trouble, Outcome::Aborted));
        }
        match self.attempt(work, began) {
            Ok(Some(ending)) => {
                let client = ending.client.clone();
                self.ending = Some((client.apart(|| ending.run()), began));
                None
            }
            Ok(None) => Some(Outcome::Committed { lost: 0 }),
            Err(stop) => Some(self.end(stop, began)),
        }
    }

    /// Whether the end of a transaction was left under way.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Waits for the end that was left under way, if one was; what became of it.
    pub(super) fn land(&mut self) -> Option<Outcome> {
        let (ending, began) = self.ending.take()?;
        let lost = || {
            (Err(Failed::Commit(Error::of(Known::RD_KAFKA_RESP_ERR__FAIL.into()), Failures::default())), Duration::ZERO)
        };
        let ended = ending.wait().unwrap_or_else(lost);
        Some(match self.take_ended(ended, began) {
            Ok(()) => Outcome::Committed { lost: 0 },
            Err(stop) => self.end(stop, began),
        })
    }

    /// What is left to do: the transaction's end, where that is to be done apart.
    fn attempt(&mut self, work: &mut Work<'_, C::Member>, began: Instant) -> Result<Option<Ending<C>>, Stop> {
        let outputs = work.outputs;
        let deadline = began + self.times.transaction;
        let live = self.live().map_err(|trouble| Stop::Discard(Outcome::Aborted(trouble)))?;
        let client = live.client.clone();
        let _ = client.take_failures();
        client.begin_transaction().map_err(|error| self.stopped(&error, began))?;
        let flush_by = deadline.min(began + self.times.delivery + Duration::from_secs(1));
        // (leaves a little of the transaction's time for an abort)
        let offsets_by = deadline - self.times.transaction / 8;
        let (mut index, mut has_offsets) = (0, false);
        // Those outputs that there are, then those that have come meanwhile. The broker takes the first ones of a transaction some 20 ms
        // after the last one's end (it tells librdkafka to try again then), so that this is when those of a thin flow come together.
        loop {
            let asked = clock::now();
            self.produce(outputs, &mut index, began + self.times.delivery, began)?;
            self.spent.producing += clock::now() - asked;
            if !has_offsets && !outputs.takes_more() && !(work.is_left)() {
                // (its coordinator takes them while the last outputs are on their way)
                self.add_offsets(&client, work, offsets_by, began)?;
                has_offsets = true;
            }
            self.deliver(&client, flush_by, began)?;
            if !outputs.close() {
                break;
            }
        }
        let offsets = if has_offsets { None } else { self.offsets(work, deadline)? };
        let is_left = (work.is_left)();
        let ending = Ending { client, offsets, deadline, offsets_by, _hold: is_left.then(work.hold) };
        if is_left {
            return Ok(Some(ending));
        }
        self.take_ended(ending.run(), began).map(|()| None)
    }

    /// Has every output acknowledged that was queued.
    fn deliver(&mut self, client: &C, deadline: Instant, began: Instant) -> Result<(), Stop> {
        let asked = clock::now();
        let is_flushed = flush(client, deadline);
        self.spent.delivering += clock::now() - asked;
        if !is_flushed {
            let message = format!("outputs were not acknowledged within {:?}", self.times.delivery);
            let slow = passing(Known::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT, message);
            // Who does not take outputs does not answer an abort either: the next producer's epoch ends the transaction.
            return Err(Stop::Discard(Outcome::Aborted(slow)));
        }
        self.delivered(client, began)
    }

    /// Queues every output. The first that is not taken ends it: a transaction without it would commit all the same.
    fn produce(
        &mut self,
        outputs: &dyn Outputs,
        index: &mut usize,
        deadline: Instant,
        began: Instant,
    ) -> Result<(), Stop> {
        let mut refused = None;
        outputs.for_each(&mut |output| {
            match self.produce_one(&output, *index, deadline) {
                Err(error) if !Mutation::IgnoreProduceResult.is_on() => refused = Some(error),
                _ => {
                    *index += 1;
                    return ControlFlow::Continue(());
                }
            }
            ControlFlow::Break(())
        });
        let Some(error) = refused else { return Ok(()) };
        if is_rejection(error.code) {
            return Err(Stop::Abort(Outcome::Rejected { output: Some(*index), message: rejection(error.code, None) }));
        }
        if error.code == Known::RD_KAFKA_RESP_ERR__STATE.into()
            && let Some(client) = self.live.as_ref().map(|live| live.client.clone())
        {
            // As a rule an output before it was refused, which tells more.
            client.serve(Duration::ZERO);
            self.delivered(&client, began)?;
        }
        Err(match error.code.known() {
            Known::RD_KAFKA_RESP_ERR__FATAL | Known::RD_KAFKA_RESP_ERR__STATE => self.stopped(&error, began),
            _ => {
                self.stale_topics |= should_refresh(error.code);
                Stop::Abort(Outcome::Aborted(trouble(&error, About::Cluster)))
            }
        })
    }

    fn produce_one(&mut self, output: &Output<'_>, index: usize, deadline: Instant) -> Result<(), Error> {
        let unknown = || Error::of(Known::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC.into());
        let slot = usize::from(output.topic);
        let live = self.live.as_mut().ok_or_else(unknown)?;
        if live.topics.get(slot).is_none_or(Option::is_none) {
            let name = self.topics.get(slot).ok_or_else(unknown)?;
            live.topics.resize_with(self.topics.len(), || None);
            live.topics[slot] = Some(live.client.topic(name)?);
        }
        let topic = live.topics[slot].as_ref().ok_or_else(unknown)?;
        loop {
            match live.client.produce(topic, output, index) {
                Err(error) if error.code == Known::RD_KAFKA_RESP_ERR__QUEUE_FULL.into() && clock::now() < deadline => {
                    live.client.flush(Duration::from_millis(5));
                }
                result => return result,
            }
        }
    }

    /// Whether all outputs were delivered; what to make of it if not.
    fn delivered(&mut self, client: &C, began: Instant) -> Result<(), Stop> {
        let failures = client.take_failures();
        if failures.count == 0 {
            return Ok(());
        }
        self.stale_topics |= failures.first.iter().any(|failure| should_refresh(failure.code));
        if let Some(fatal) = client.fatal_error() {
            return Err(self.stopped(&fatal, began));
        }
        if failures.first.iter().all(|failure| errors::is_collateral(failure.code)) {
            // They were taken down by what befell the transaction: asked to begin another, the client says what it was.
            if let Err(error) = client.begin_transaction()
                && error.must_abort
            {
                let topic = failures.first.iter().find_map(|failure| failure.topic.as_ref());
                let found = trouble(&error, topic.map_or(About::Cluster, About::Write));
                return Err(Stop::AbortAndRenew(Outcome::Aborted(found)));
            }
        }
        // What was refused leaves a gap in the sequence, and the next transaction would pay for it.
        Err(Stop::AbortAndRenew(classify(&failures)))
    }

    /// What is to be added to the transaction; its turn may have to be waited for.
    fn offsets(&self, work: &mut Work<'_, C::Member>, deadline: Instant) -> Result<Option<Offsets<C>>, Stop> {
        // Those of the transaction before first: they would go back, and if nothing became of it, these would come too early.
        if !(work.before)() && !Mutation::OutOfTurn.is_on() {
            let outcome = Outcome::Aborted(passing(
                Known::RD_KAFKA_RESP_ERR__STATE,
                "the transaction before it was not committed",
            ));
            // (the end of a worker leaves time for what follows one transaction)
            return Err(if clock::now() < deadline { Stop::Abort(outcome) } else { Stop::Leave(outcome) });
        }
        let offsets = (work.offsets)();
        if offsets.is_empty() {
            return Ok(None);
        }
        let member = (work.member)().ok_or_else(|| Stop::Abort(Outcome::Aborted(left())))?;
        Ok(Some((offsets, work.topic_ids.clone(), member)))
    }

    fn add_offsets(
        &mut self,
        client: &C,
        work: &mut Work<'_, C::Member>,
        deadline: Instant,
        began: Instant,
    ) -> Result<(), Stop> {
        let offsets = self.offsets(work, deadline)?;
        let asked = clock::now();
        let sent = send_offsets(client, offsets.as_ref(), deadline);
        let Err(stop) = self.take_ended((sent, clock::now() - asked), began) else { return Ok(()) };
        // As a rule an output before them was refused, which tells more.
        client.serve(Duration::ZERO);
        self.delivered(client, began)?;
        Err(stop)
    }

    /// What it means that a transaction has not ended as it was to.
    fn take_ended(&mut self, (result, took): Ended, began: Instant) -> Result<(), Stop> {
        self.spent.committing += took;
        let Err(failed) = result else { return Ok(()) };
        Err(match failed {
            Failed::Offsets(error) if error.fatal || !(error.retriable || error.must_abort) => {
                self.stopped(&error, began)
            }
            Failed::Offsets(error) => {
                let outcome = Outcome::Aborted(trouble(&error, About::Group(&self.group)));
                // (who was late may yet come to the group's coordinator, and must find a younger epoch there)
                if error.must_abort { Stop::Abort(outcome) } else { Stop::AbortAndRenew(outcome) }
            }
            Failed::Commit(error, failures) if error.must_abort => Stop::AbortCommit(match failures.count {
                0 => Outcome::Aborted(trouble(&error, About::Cluster)),
                _ => classify(&failures),
            }),
            Failed::Commit(error, _) => match self.stopped(&error, began) {
                Stop::Discard(Outcome::Broken(twin)) if error.fatal || !error.retriable => {
                    Stop::Discard(Outcome::Broken(twin))
                }
                _ => Stop::Unknown(trouble(&error, About::Cluster)),
            },
        })
    }

    /// An error that the producer does not survive, before a commit was sent.
    fn stopped(&self, error: &Error, began: Instant) -> Stop {
        let id = self.transactional_id.as_deref().unwrap_or_default();
        let found = trouble(error, About::Transaction(id));
        if !is_fenced(error.code) {
            return Stop::Discard(Outcome::Aborted(found));
        }
        // The broker fences too: whoever is older than the transaction's timeout was ended by it. Without an instance
        // nobody else can come by our id.
        if self.is_static && clock::now().duration_since(began) < self.times.transaction / 2 {
            return Stop::Discard(Outcome::Broken(Trouble { kind: TroubleKind::Duplicate, ..found }));
        }
        Stop::Discard(Outcome::Aborted(Trouble { kind: TroubleKind::Passing, ..found }))
    }

    /// Leaves no transaction open, and the producer ready or gone.
    fn end(&mut self, stop: Stop, began: Instant) -> Outcome {
        let (outcome, if_abort_fails, renew) = match stop {
            Stop::Abort(outcome) => (outcome.clone(), outcome, false),
            Stop::AbortAndRenew(outcome) => (outcome.clone(), outcome, true),
            Stop::AbortCommit(outcome) => {
                let unknown = match &outcome {
                    Outcome::Aborted(trouble) => trouble.clone(),
                    Outcome::Rejected { message, .. } => passing(Known::RD_KAFKA_RESP_ERR__FAIL, message.clone()),
                    other => return other.clone(),
                };
                (outcome, Outcome::Unknown(unknown), true)
            }
            Stop::Leave(outcome) => {
                self.discard();
                return outcome;
            }
            Stop::Discard(outcome) => {
                self.discard();
                // Resolves what is still open; but never against a living twin, whom it would fence in turn.
                if !matches!(outcome, Outcome::Broken(_)) {
                    let _ = self.renew(self.times.ready);
                }
                return outcome;
            }
            Stop::Unknown(trouble) => {
                self.discard();
                return Outcome::Unknown(trouble);
            }
        };
        match self.abort() {
            Ok(()) if !renew => outcome,
            Ok(()) => {
                // Not being able to now is no matter: the next use tries again.
                let _ = self.renew(self.times.ready);
                outcome
            }
            Err(error) => match self.stopped(&error, began) {
                Stop::Discard(Outcome::Broken(twin)) => {
                    self.discard();
                    Outcome::Broken(twin)
                }
                _ => {
                    self.discard();
                    if !matches!(if_abort_fails, Outcome::Unknown(_)) {
                        let _ = self.renew(self.times.ready);
                    }
                    if_abort_fails
                }
            },
        }
    }

    fn abort(&mut self) -> Result<(), Error> {
        let Some(live) = &self.live else { return Ok(()) };
        let deadline = Instant::now() + self.times.abort;
        match live.client.abort_transaction(self.times.abort) {
            Err(error) if error.retriable && !error.fatal && Instant::now() < deadline => {
                live.client.abort_transaction(until(deadline))
            }
            result => result,
        }
    }

    // at_least_once and at_most_once

    /// Makes a producer if there is none.
    pub(super) fn be_ready(&mut self) -> Result<(), Trouble> {
        self.live().map(drop)
    }

    /// Sends the outputs and waits for the acknowledgements. `Ok`: what was not delivered, nothing in the best case.
    /// `in_order`: stops at the first that is refused, so that none overtakes it.
    pub(super) fn send(&mut self, outputs: &dyn Outputs, in_order: bool) -> Result<Failures, Trouble> {
        let began = clock::now();
        self.used = began;
        let deadline = began + self.times.delivery;
        let client = self.live()?.client.clone();
        let _ = client.take_failures();
        let (mut index, mut failures) = (0, Failures::default());
        loop {
            let asked = clock::now();
            outputs.for_each(&mut |output| {
                if let Err(error) = self.produce_one(&output, index, deadline) {
                    let topic = self.topics.get(usize::from(output.topic)).cloned();
                    failures.count += 1;
                    failures.first.push(Failure { index, topic, code: error.code });
                    if in_order {
                        return ControlFlow::Break(());
                    }
                }
                index += 1;
                ControlFlow::Continue(())
            });
            let produced = clock::now();
            let flushed = flush(&client, deadline + Duration::from_secs(1));
            self.spent.producing += produced - asked;
            self.spent.delivering += clock::now() - produced;
            let found = client.take_failures();
            failures.count += found.count;
            failures.first.extend(found.first);
            self.stale_topics |= failures.first.iter().any(|failure| should_refresh(failure.code));
            if !flushed {
                // What is still under way may or may not arrive; it must not mix with what comes next.
                self.discard();
                let message = format!("outputs were not acknowledged within {:?}", self.times.delivery);
                return Err(passing(Known::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT, message));
            }
            if (in_order && failures.count > 0) || !outputs.close() {
                break;
            }
        }
        if failures.count > 0 && client.fatal_error().is_some() {
            self.discard();
        }
        Ok(failures)
    }
}

/// What undelivered outputs mean for their transaction.
pub(super) fn classify(failures: &Failures) -> Outcome {
    let guilty = || failures.first.iter().filter(|failure| !errors::is_collateral(failure.code));
    let mut rejected = guilty().filter(|failure| is_rejection(failure.code));
    if let Some(first) = rejected.next() {
        // The broker refuses a batch as a whole: only a batch of one says which record it was.
        let is_exact = rejected.next().is_none();
        let message = rejection(first.code, first.topic.as_ref());
        return Outcome::Rejected { output: is_exact.then_some(first.index), message };
    }
    let first = guilty().next().or(failures.first.first());
    Outcome::Aborted(match first {
        Some(failure) => {
            let mut found = match &failure.topic {
                Some(topic) if should_refresh(failure.code) => Trouble::missing_topic(topic),
                Some(topic) => trouble(&Error::of(failure.code), About::Write(topic)),
                None => trouble(&Error::of(failure.code), About::Cluster),
            };
            found.message = format!("{} of the outputs could not be delivered: {}", failures.count, found.message);
            found
        }
        None => passing(Known::RD_KAFKA_RESP_ERR__FAIL, "an output could not be delivered"),
    })
}

fn rejection(code: Code, topic: Option<&TopicName>) -> String {
    let place = topic.map(|topic| format!(" (topic {topic})")).unwrap_or_default();
    // The broker names the cause in its own log alone.
    let hint = match code.known() {
        Known::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE => ": it is above the topic's `max.message.bytes`",
        Known::RD_KAFKA_RESP_ERR_INVALID_RECORD => ": as a rule it has no key, and the topic is compacted",
        Known::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP => {
            ": its timestamp is outside of the topic's `message.timestamp.before.max.ms` and `…after.max.ms`"
        }
        _ => "",
    };
    format!("{}: {}{place}{hint}", code.name(), code.text())
}

/// A trouble that says another process has our identity ends the session; any other is the caller's to name.
fn lost_or(trouble: Trouble, or: fn(Trouble) -> Outcome) -> Outcome {
    if trouble.kind == TroubleKind::Duplicate { Outcome::Broken(trouble) } else { or(trouble) }
}

/// Makes a client, and, where it has a transactional id, settles whatever a predecessor left open.
fn make_ready<C: ProducerClient>(
    make: &MakeClient<C>,
    id: Option<&str>,
    within: Duration,
    meanwhile: impl FnOnce(&C),
) -> Result<C, Trouble> {
    let deadline = clock::now() + within;
    let client = make().map_err(|message| trouble(&configuration(message), About::Cluster))?;
    meanwhile(&client);
    if let Some(id) = id {
        init_transactions(&client, id, deadline)?;
    }
    Ok(client)
}

fn init_transactions(client: &impl ProducerClient, id: &str, deadline: Instant) -> Result<(), Trouble> {
    loop {
        let Err(error) = client.init_transactions(until(deadline)) else { return Ok(()) };
        if error.retriable && !error.fatal && clock::now() + RETRY_PAUSE < deadline {
            client.serve(RETRY_PAUSE);
            continue;
        }
        client.serve(Duration::ZERO);
        return Err(match error.code.known() {
            Known::RD_KAFKA_RESP_ERR__TIMED_OUT | Known::RD_KAFKA_RESP_ERR__TRANSPORT => {
                reason(&error, client.take_errors())
            }
            _ => trouble(&error, About::Transaction(id)),
        });
    }
}

fn flush(client: &impl ProducerClient, deadline: Instant) -> bool {
    // (to hurry what waits for others to go with has every thread of the client wake up: often at first, since in a thin flow nothing
    // is to wait, and now and then later)
    let began = clock::now();
    for step in 0.. {
        let now = clock::now();
        let waited = now.duration_since(began);
        // Short waits are for the usual commit, which takes a few milliseconds; many workers may wait for a broker that is slow.
        let wait = (waited / 16).clamp(FLUSH_STEP, FLUSH_STEP_LONGEST);
        let hurries = waited < LINGER || step % HURRY_EVERY == 0;
        let is_done = if hurries { client.flush(wait) } else { client.is_delivered(wait) };
        if is_done || now >= deadline {
            return is_done;
        }
    }
    false
}

fn left() -> Trouble {
    Trouble {
        code: "_ASSIGNMENT_LOST".into(),
        message: "the worker is not a member of its group at the moment".into(),
        kind: TroubleKind::Moved,
    }
}
