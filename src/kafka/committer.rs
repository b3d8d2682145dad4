//! Makes outputs and offsets durable, as the route's delivery promises, and says what became of them.
//!
//! Knows neither fetching nor rebalances; speaks to librdkafka through the [`seam`](super::seam) alone.

use std::cell::Cell;
use std::time::Duration;

use crate::config::settings::Delivery;
use crate::config::times::Times;
use crate::model::{GroupId, Mutation, OffsetMap, TopicName, clock};
use crate::pipeline::ports::{Flight, Flown, Outcome, Outputs, Trouble, TroubleKind};
use crate::pipeline::report::Spent;

use super::ending::Hold;
use super::errors::{About, passing, trouble};
use super::producer::{MakeClient, Producer, Work, classify};
use super::raw::{Error, Known};
use super::seam::{GroupClient, ProducerClient, TopicIds};

/// How long the first producer may take to be ready.
const INIT_WITHIN: Duration = Duration::from_secs(10);

/// What a committer goes by.
#[derive(Debug, Clone)]
pub struct CommitterOptions {
    /// What the route promises.
    pub delivery: Delivery,
    /// The group whose offsets it commits.
    pub group: GroupId,
    /// Used in exactly_once only. The second producer's is [`second_id`] of it.
    pub transactional_id: String,
    /// Whether the transactional id outlives the process, so that another may come by it.
    pub is_static: bool,
    /// How long clients wait for what.
    pub times: Times,
}

/// The transactional id of a worker's second producer.
pub(super) fn second_id(first: &str) -> String {
    format!("{first}.second")
}

/// A worker's producers, and what is known of their last commits.
///
/// There are two, so that one's transaction can begin while the other's is being committed. Everything of the one is
/// acknowledged before the other produces, so that outputs keep their order; and the other's offsets are added once the one is
/// known to be committed, and not at all where it is not. The second is made when it is needed.
pub struct Committer<C: ProducerClient> {
    delivery: Delivery,
    group: GroupId,
    producers: [Producer<C>; 2],
    /// Which of them has the next transaction.
    turn: usize,
    times: Times,
    /// An outcome that nobody knows yet.
    unknown: Option<Unknown>,
    /// The time that commits outside of transactions took.
    committing: Duration,
}

/// Whose outcome it is that nobody knows.
#[derive(Clone, Copy)]
struct Unknown {
    /// Which producer's.
    of: usize,
    /// In at_most_once, the outputs that were therefore not sent.
    unsent: u64,
}

impl<C: ProducerClient> Committer<C> {
    /// Makes a producer of `make`'s clients, for this transactional id, and, in exactly_once, settles whatever a predecessor
    /// left open.
    ///
    /// # Errors
    /// The producer is not ready in time; nothing is left behind.
    pub fn open(options: CommitterOptions, make: impl Fn(&str) -> MakeClient<C>) -> Result<Self, Trouble> {
        let CommitterOptions { delivery, group, transactional_id, is_static, times } = options;
        let is_exact = delivery == Delivery::ExactlyOnce;
        let producer = |id: String| {
            let make = make(&id);
            Producer::new(make, group.clone(), is_exact.then_some(id), is_static, times)
        };
        let (mut second, mut first) = (producer(second_id(&transactional_id)), producer(transactional_id));
        first.renew_with(INIT_WITHIN, |client| {
            // (a predecessor may have left something open there, too)
            if is_exact && is_static {
                second.renew_apart(client, INIT_WITHIN);
            }
        })?;
        second.finish_making();
        second.sleep();
        let (producers, committing) = ([first, second], Duration::ZERO);
        Ok(Self { delivery, group, producers, turn: 0, times, unknown: None, committing })
    }

    /// The producer that has the next transaction.
    fn producer(&mut self) -> &mut Producer<C> {
        &mut self.producers[self.turn]
    }

    /// The next free slot, for this topic, which the producer then knows.
    ///
    /// # Errors
    /// The cluster cannot be asked about it now.
    pub fn add_topic(&mut self, name: &TopicName, wait: Duration) -> Result<u16, Trouble> {
        // (none is made to be asked where the other can be)
        let (turn, other) = (self.turn, 1 - self.turn);
        let asked = if !self.producers[turn].is_live() && self.producers[other].is_live() { other } else { turn };
        let slot = self.producers[asked].add_topic(name, wait)?;
        self.producers[1 - asked].share_topic(name);
        Ok(slot)
    }

    /// For how long brokers have made the producers wait since this was last asked.
    pub(super) fn take_throttled(&self) -> Duration {
        self.producers.iter().map(Producer::take_throttled).sum()
    }

    /// Where the time went since this was last asked.
    pub(super) fn take_spent(&mut self) -> Spent {
        let [first, second] = &mut self.producers;
        let mut spent = first.take_spent();
        spent += second.take_spent();
        spent.committing += std::mem::take(&mut self.committing);
        spent
    }

    /// What the producers complained about since this was last asked.
    pub(super) fn take_errors(&mut self) -> Vec<Error> {
        self.producers.iter_mut().flat_map(Producer::take_errors).collect()
    }

    /// Whether something hinted, since this was last asked, that the cluster's topics have changed.
    pub(super) fn take_stale_topics(&mut self) -> bool {
        let [first, second] = &mut self.producers;
        first.take_stale_topics() | second.take_stale_topics()
    }

    /// Whether a producer was given up with a transaction that it may have left open, and there is no other yet.
    pub(super) fn owes_an_end(&self) -> bool {
        self.producers.iter().any(Producer::owes_an_end)
    }

    /// Ends what such producers have left open, if that can be done now.
    pub(super) fn end_what_is_open(&mut self, within: Duration) {
        for producer in self.producers.iter_mut().filter(|producer| producer.owes_an_end()) {
            // (an error: it is tried again, at the latest when there is something to send)
            let _ = producer.renew(within);
        }
    }

    /// Lets producers that have sent nothing for so long go until they are needed, where nothing is left to be settled.
    pub fn rest(&mut self, after: Duration) {
        if self.unknown.is_none() {
            self.producers.iter_mut().for_each(|producer| producer.rest(after));
        }
    }

    /// Throws the producers away.
    pub(super) fn discard(&mut self) {
        self.producers.iter_mut().for_each(Producer::discard);
    }

    /// As [`Broker::transact`](crate::pipeline::ports::Broker::transact), as this member of the group.
    pub fn transact<G: GroupClient<Member = C::Member>>(
        &mut self,
        group: &G,
        outputs: &dyn Outputs,
        offsets: &OffsetMap,
        ids: &TopicIds,
    ) -> Outcome {
        if outputs.is_empty() && offsets.is_empty() && self.unknown.is_none() {
            return Outcome::Committed { lost: 0 };
        }
        self.transact_all(group, outputs, &|| offsets.clone(), ids)
    }

    /// As [`Broker::transact_while`](crate::pipeline::ports::Broker::transact_while), the transaction's own part of it. A commit
    /// that is left under way keeps a `hold`.
    pub fn transact_flight<G: GroupClient<Member = C::Member>>(
        &mut self,
        group: &G,
        work: &dyn Flight,
        ids: &TopicIds,
        hold: &dyn Fn() -> Hold,
    ) -> Flown {
        if self.delivery != Delivery::ExactlyOnce || Mutation::OffsetsOutside.is_on() {
            if self.delivery == Delivery::AtMostOnce || Mutation::OffsetsOutside.is_on() {
                // (its offsets come before its outputs)
                work.seal();
            }
            return Flown::of(self.transact_all(group, work.outputs(), &|| work.offsets(), ids));
        }
        self.fly(group, work, ids, hold)
    }

    /// A transaction in exactly_once; that before it may still be being committed.
    fn fly<G: GroupClient<Member = C::Member>>(
        &mut self,
        group: &G,
        work: &dyn Flight,
        ids: &TopicIds,
        hold: &dyn Fn() -> Hold,
    ) -> Flown {
        if let Some(unknown) = self.not_settled() {
            return Flown::of(unknown);
        }
        let (first, second) = self.producers.split_at_mut(1);
        let (this, other) =
            if self.turn == 0 { (&mut first[0], &mut second[0]) } else { (&mut second[0], &mut first[0]) };
        let is_ready = other.is_ready();
        let (mut before, flies_on) = (None, Cell::new(false));
        let mut land = || {
            before = before.take().or_else(|| other.land());
            before.as_ref().is_none_or(|outcome| matches!(outcome, Outcome::Committed { .. }))
        };
        let outcome = this.transact(&mut Work {
            outputs: work.outputs(),
            offsets: &|| work.offsets(),
            topic_ids: ids,
            member: &mut || group.member(),
            before: &mut land,
            is_left: &|| {
                flies_on.set(work.flies_on());
                flies_on.get() && is_ready
            },
            hold,
        });
        // (it may have ended before it came to that)
        land();
        if flies_on.get()
            && !is_ready
            && matches!(outcome, Some(Outcome::Committed { .. }))
            && let Some(client) = this.client()
        {
            other.renew_apart(client, self.times.ready);
        }
        self.note(before.as_ref(), 1 - self.turn);
        self.note(outcome.as_ref(), self.turn);
        if outcome.is_none() {
            self.turn = 1 - self.turn;
        }
        Flown { before, this: outcome }
    }

    /// Waits for the commit that was left under way, if one was.
    pub fn land(&mut self) -> Option<Outcome> {
        let other = 1 - self.turn;
        let outcome = self.producers[other].land();
        self.note(outcome.as_ref(), other);
        outcome
    }

    fn note(&mut self, outcome: Option<&Outcome>, of: usize) {
        if matches!(outcome, Some(Outcome::Unknown(_))) {
            self.unknown.get_or_insert(Unknown { of, unsent: 0 });
        }
    }

    fn not_settled(&self) -> Option<Outcome> {
        let why = "what became of the last commit is not known yet";
        self.unknown.map(|_| Outcome::Unknown(passing(Known::RD_KAFKA_RESP_ERR__STATE, why)))
    }

    fn transact_all<G: GroupClient<Member = C::Member>>(
        &mut self,
        group: &G,
        outputs: &dyn Outputs,
        offsets: &dyn Fn() -> OffsetMap,
        ids: &TopicIds,
    ) -> Outcome {
        if let Some(unknown) = self.not_settled() {
            return unknown;
        }
        let outcome = match self.delivery {
            Delivery::ExactlyOnce if Mutation::OffsetsOutside.is_on() => match self.commit(group, &offsets(), ids, 0) {
                Outcome::Committed { .. } => self.transact_alone(group, outputs, &OffsetMap::new, ids),
                other => other,
            },
            Delivery::ExactlyOnce => self.transact_alone(group, outputs, offsets, ids),
            Delivery::AtLeastOnce => self.send_then_commit(group, outputs, offsets, ids),
            Delivery::AtMostOnce => self.commit_then_send(group, outputs, &offsets(), ids),
        };
        self.note(Some(&outcome), self.turn);
        outcome
    }

    /// A transaction with none before it, committed at once.
    fn transact_alone<G: GroupClient<Member = C::Member>>(
        &mut self,
        group: &G,
        outputs: &dyn Outputs,
        offsets: &dyn Fn() -> OffsetMap,
        topic_ids: &TopicIds,
    ) -> Outcome {
        assert!(!self.producers[1 - self.turn].is_ending(), "a transaction beside a commit that is under way");
        let (member, before) = (&mut || group.member(), &mut || true);
        let (is_left, hold): (_, &dyn Fn() -> Hold) = (&|| false, &|| Box::new(()));
        let work = &mut Work { outputs, offsets, topic_ids, member, before, is_left, hold };
        self.producer().transact(work).expect("a commit that is not to be left under way")
    }

    /// at_least_once: every output is acknowledged before the offsets are committed.
    fn send_then_commit(
        &mut self,
        group: &impl GroupClient,
        outputs: &dyn Outputs,
        offsets: &dyn Fn() -> OffsetMap,
        ids: &TopicIds,
    ) -> Outcome {
        match self.producer().send(outputs, true) {
            Err(trouble) => Outcome::Aborted(trouble),
            Ok(failures) if failures.count > 0 => classify(&failures),
            Ok(_) => self.commit(group, &offsets(), ids, 0),
        }
    }

    /// at_most_once: outputs are sent, once, after the offsets are known to be committed.
    fn commit_then_send(
        &mut self,
        group: &impl GroupClient,
        outputs: &dyn Outputs,
        offsets: &OffsetMap,
        ids: &TopicIds,
    ) -> Outcome {
        if let Err(trouble) = self.producer().be_ready() {
            return Outcome::Aborted(trouble);
        }
        match self.commit(group, offsets, ids, outputs.len() as u64) {
            Outcome::Committed { .. } => match self.producer().send(outputs, false) {
                Ok(failures) => Outcome::Committed { lost: failures.count },
                Err(_) => Outcome::Committed { lost: outputs.len() as u64 },
            },
            other => other,
        }
    }

    /// Commits outside a transaction. `unsent`: how many outputs are lost if it turns out later that it succeeded.
    fn commit(&mut self, group: &impl GroupClient, offsets: &OffsetMap, ids: &TopicIds, unsent: u64) -> Outcome {
        if offsets.is_empty() {
            return Outcome::Committed { lost: 0 };
        }
        if group.member().is_none() {
            let gone = Error::of(Known::RD_KAFKA_RESP_ERR__ASSIGNMENT_LOST.into());
            return Outcome::Aborted(trouble(&gone, About::Group(&self.group)));
        }
        let began = clock::now();
        let committed = group.commit_offsets(offsets, ids, self.times.offsets);
        self.committing += clock::now() - began;
        let Err(error) = committed else {
            return Outcome::Committed { lost: 0 };
        };
        let found = trouble(&error, About::Group(&self.group));
        match (error.code.known(), found.kind) {
            // The broker has answered, with a refusal.
            (_, TroubleKind::Moved | TroubleKind::Denied) => Outcome::Aborted(found),
            (_, TroubleKind::Duplicate) => Outcome::Broken(found),
            (
                Known::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE
                | Known::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS
                | Known::RD_KAFKA_RESP_ERR_NOT_COORDINATOR
                | Known::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                | Known::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE,
                TroubleKind::Passing,
            ) => Outcome::Aborted(found),
            (_, TroubleKind::Passing) => {
                self.unknown = Some(Unknown { of: self.turn, unsent });
                Outcome::Unknown(found)
            }
        }
    }

    /// As [`Broker::settle`](crate::pipeline::ports::Broker::settle).
    pub fn settle(&mut self, group: &impl GroupClient, offsets: &OffsetMap) -> Outcome {
        let Some(Unknown { of, unsent }) = self.unknown else {
            return Outcome::Aborted(passing(Known::RD_KAFKA_RESP_ERR__STATE, "nothing is unsettled"));
        };
        if self.delivery == Delivery::ExactlyOnce {
            // Ends the old transaction one way or the other before anything is read.
            if let Err(trouble) = self.producers[of].renew(self.times.ready) {
                return Outcome::Unknown(trouble);
            }
        }
        let found = match group.committed(offsets, self.times.offsets) {
            Ok(found) if !offsets.is_empty() => found,
            Ok(_) => Vec::new(),
            Err(_) if offsets.is_empty() => Vec::new(),
            Err(error) => return Outcome::Unknown(trouble(&error, About::Group(&self.group))),
        };
        self.unknown = None;
        let reached = |test: fn(i64, i64) -> bool| found.iter().all(|(at, committed)| test(*committed, offsets[at]));
        if !found.is_empty() && reached(|committed, ours| committed == ours) {
            return Outcome::Committed { lost: unsent };
        }
        if reached(|committed, ours| committed < ours) {
            let message = "the commit of unknown outcome did not succeed";
            return Outcome::Aborted(passing(Known::RD_KAFKA_RESP_ERR__FAIL, message));
        }
        let message = "the group's offsets are not where this worker left them: another member has moved them";
        Outcome::Broken(Trouble { kind: TroubleKind::Moved, ..passing(Known::RD_KAFKA_RESP_ERR__CONFLICT, message) })
    }
}
