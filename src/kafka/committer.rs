//! Makes outputs and offsets durable, as the route's delivery promises, and says what became of them.
//!
//! Knows neither fetching nor rebalances; speaks to librdkafka through the [`seam`](super::seam) alone.

use std::time::Duration;

use crate::config::settings::Delivery;
use crate::config::times::Times;
use crate::model::{GroupId, Mutation, OffsetMap, TopicName, clock};
use crate::pipeline::ports::{Flight, Outcome, Outputs, Trouble, TroubleKind};
use crate::pipeline::report::Spent;

use super::errors::{About, passing, trouble};
use super::producer::{MakeClient, Producer, classify};
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
    /// Used in exactly_once only.
    pub transactional_id: String,
    /// Whether the transactional id outlives the process, so that another may come by it.
    pub is_static: bool,
    /// How long clients wait for what.
    pub times: Times,
}

/// A worker's producer, and what is known of its last commit.
pub struct Committer<C: ProducerClient> {
    delivery: Delivery,
    group: GroupId,
    producer: Producer<C>,
    times: Times,
    /// An outcome that nobody knows yet; in at_most_once with the outputs that were therefore not sent.
    unknown: Option<u64>,
    /// The time that commits outside of transactions took.
    committing: Duration,
}

impl<C: ProducerClient> Committer<C> {
    /// Makes a producer of `make`'s clients, and, in exactly_once, settles whatever a predecessor left open.
    ///
    /// # Errors
    /// The producer is not ready in time; nothing is left behind.
    pub fn open(options: CommitterOptions, make: MakeClient<C>) -> Result<Self, Trouble> {
        let CommitterOptions { delivery, group, transactional_id, is_static, times } = options;
        let id = (delivery == Delivery::ExactlyOnce).then_some(transactional_id);
        let mut producer = Producer::new(make, group.clone(), id, is_static, times);
        producer.renew(INIT_WITHIN)?;
        Ok(Self { delivery, group, producer, times, unknown: None, committing: Duration::ZERO })
    }

    /// The next free slot, for this topic, which the producer then knows.
    ///
    /// # Errors
    /// The cluster cannot be asked about it now.
    pub fn add_topic(&mut self, name: &TopicName, wait: Duration) -> Result<u16, Trouble> {
        self.producer.add_topic(name, wait)
    }

    /// For how long brokers have made the producer wait since this was last asked.
    pub(super) fn take_throttled(&self) -> Duration {
        self.producer.take_throttled()
    }

    /// Where the time went since this was last asked.
    pub(super) fn take_spent(&mut self) -> Spent {
        let mut spent = self.producer.take_spent();
        spent.committing += std::mem::take(&mut self.committing);
        spent
    }

    /// What the producer complained about since this was last asked.
    pub(super) fn take_errors(&mut self) -> Vec<Error> {
        self.producer.take_errors()
    }

    /// Whether something hinted, since this was last asked, that the cluster's topics have changed.
    pub(super) fn take_stale_topics(&mut self) -> bool {
        self.producer.take_stale_topics()
    }

    /// Whether a producer was given up with a transaction that it may have left open, and there is no other yet.
    pub(super) fn owes_an_end(&self) -> bool {
        self.producer.owes_an_end()
    }

    /// Ends what such a producer has left open, if that can be done now.
    pub(super) fn end_what_is_open(&mut self, within: Duration) {
        // (an error: it is tried again, at the latest when there is something to send)
        let _ = self.producer.renew(within);
    }

    /// Lets the producer go until there is something to send, where nothing is left to be settled.
    pub fn rest(&mut self) {
        if self.unknown.is_none() {
            self.producer.rest();
        }
    }

    /// Throws the producer away.
    pub(super) fn discard(&mut self) {
        self.producer.discard();
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

    /// As [`Broker::transact_while`](crate::pipeline::ports::Broker::transact_while), the transaction's own part of it.
    pub fn transact_flight<G: GroupClient<Member = C::Member>>(
        &mut self,
        group: &G,
        work: &dyn Flight,
        ids: &TopicIds,
    ) -> Outcome {
        if self.delivery == Delivery::AtMostOnce || Mutation::OffsetsOutside.is_on() {
            // (its offsets come before its outputs)
            work.seal();
        }
        self.transact_all(group, work.outputs(), &|| work.offsets(), ids)
    }

    fn transact_all<G: GroupClient<Member = C::Member>>(
        &mut self,
        group: &G,
        outputs: &dyn Outputs,
        offsets: &dyn Fn() -> OffsetMap,
        ids: &TopicIds,
    ) -> Outcome {
        if self.unknown.is_some() {
            return Outcome::Unknown(passing(
                Known::RD_KAFKA_RESP_ERR__STATE,
                "what became of the last commit is not known yet",
            ));
        }
        let outcome = match self.delivery {
            Delivery::ExactlyOnce if Mutation::OffsetsOutside.is_on() => match self.commit(group, &offsets(), ids, 0) {
                Outcome::Committed { .. } => self.producer.transact(outputs, &OffsetMap::new, ids, &mut || None),
                other => other,
            },
            Delivery::ExactlyOnce => self.producer.transact(outputs, offsets, ids, &mut || group.member()),
            Delivery::AtLeastOnce => self.send_then_commit(group, outputs, offsets, ids),
            Delivery::AtMostOnce => self.commit_then_send(group, outputs, &offsets(), ids),
        };
        if matches!(outcome, Outcome::Unknown(_)) {
            self.unknown.get_or_insert(0);
        }
        outcome
    }

    /// at_least_once: every output is acknowledged before the offsets are committed.
    fn send_then_commit(
        &mut self,
        group: &impl GroupClient,
        outputs: &dyn Outputs,
        offsets: &dyn Fn() -> OffsetMap,
        ids: &TopicIds,
    ) -> Outcome {
        match self.producer.send(outputs, true) {
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
        if let Err(trouble) = self.producer.be_ready() {
            return Outcome::Aborted(trouble);
        }
        match self.commit(group, offsets, ids, outputs.len() as u64) {
            Outcome::Committed { .. } => match self.producer.send(outputs, false) {
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
                self.unknown = Some(unsent);
                Outcome::Unknown(found)
            }
        }
    }

    /// As [`Broker::settle`](crate::pipeline::ports::Broker::settle).
    pub fn settle(&mut self, group: &impl GroupClient, offsets: &OffsetMap) -> Outcome {
        let Some(unsent) = self.unknown else {
            return Outcome::Aborted(passing(Known::RD_KAFKA_RESP_ERR__STATE, "nothing is unsettled"));
        };
        if self.delivery == Delivery::ExactlyOnce {
            // Ends the old transaction one way or the other before anything is read.
            if let Err(trouble) = self.producer.renew(self.times.ready) {
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
