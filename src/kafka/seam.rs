//! The seam between what millrace makes of librdkafka's answers and librdkafka: what is above is the product's own, what
//! is below can be a Kafka that the simulation (`tests/it/simulation`) makes up, with every answer that it may give.
//!
//! Above: the [`Committer`], with the producer's whole table of errors. Below: [`ProducerClient`] and [`GroupClient`], each
//! method one call of librdkafka.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::model::{Offset, OffsetMap, TopicName, TopicPartition};
use crate::pipeline::ports::Output;

pub use crate::config::times::Times;

pub use super::apart::Apart;
pub use super::committer::{Committer, CommitterOptions};
pub use super::ending::Hold;
pub use super::producer::MakeClient;
pub use super::raw::{Code, Error, Failure, Failures, Known};

use super::convert;
use super::raw::{Client, GroupMetadata, Handle, PartitionList, Topic};

/// What a call may take longer than it was given, before it counts as hung.
const OVERTIME: Duration = Duration::from_millis(250);

/// The ids of topics, which are committed beside their offsets.
pub type TopicIds = BTreeMap<TopicName, String>;

/// A producer. Its copies are the same producer.
pub trait ProducerClient: Clone + Send + 'static {
    /// A handle of a topic.
    type Topic;
    /// Who a consumer is in its group.
    type Member: Send + 'static;

    /// A handle of the topic; asks nobody.
    ///
    /// # Errors
    /// The name is impossible.
    fn topic(&self, name: &TopicName) -> Result<Self::Topic, Error>;

    /// Asks the cluster about the topic, so that records for it need not wait for that.
    ///
    /// # Errors
    /// No answer in time, or the topic may not be seen.
    fn look_up(&self, topic: &Self::Topic, wait: Duration) -> Result<(), Error>;

    /// Queues one record; never blocks. It is copied, but for a value that has a keeper. `index` comes back in [`Failure`] if
    /// it is not delivered.
    ///
    /// # Errors
    /// It was not queued. The transaction can be committed all the same, without it.
    fn produce(&self, topic: &Self::Topic, output: &Output<'_>, index: usize) -> Result<(), Error>;

    /// Sends at once what is queued and waits for its acknowledgements; whether none is outstanding.
    fn flush(&self, wait: Duration) -> bool;

    /// The same for what does not wait for others to go with, so that nobody has to be told.
    fn is_delivered(&self, wait: Duration) -> bool {
        self.flush(wait)
    }

    /// Fences whoever had the transactional id, and ends what they left open.
    ///
    /// # Errors
    /// With flags that say whether it can be asked again.
    fn init_transactions(&self, wait: Duration) -> Result<(), Error>;

    /// Begins a transaction; asks nobody.
    ///
    /// # Errors
    /// There is one, or the producer has failed.
    fn begin_transaction(&self) -> Result<(), Error>;

    /// Adds offsets (and beside each the id of its topic) to the transaction, as this member of the group.
    ///
    /// # Errors
    /// With flags that say what can be done.
    fn send_offsets(
        &self,
        offsets: &OffsetMap,
        ids: &TopicIds,
        member: &Self::Member,
        wait: Duration,
    ) -> Result<(), Error>;

    /// Commits the transaction.
    ///
    /// # Errors
    /// With flags that say what can be done; it may have been committed all the same.
    fn commit_transaction(&self, wait: Duration) -> Result<(), Error>;

    /// Aborts the transaction.
    ///
    /// # Errors
    /// With flags that say what can be done.
    fn abort_transaction(&self, wait: Duration) -> Result<(), Error>;

    /// Has something done with this client, or with others, that is not to be waited for now.
    fn apart<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Apart<T> {
        Apart::on_a_thread("transaction-end", work)
    }

    /// Serves callbacks for as long as `wait`.
    fn serve(&self, wait: Duration);

    /// The error that it does not survive, if there was one.
    fn fatal_error(&self) -> Option<Error>;

    /// What it complained about since this was last asked.
    fn take_errors(&self) -> Vec<Error>;

    /// What was not delivered since this was last asked.
    fn take_failures(&self) -> Failures;

    /// For how long brokers have made it wait since this was last asked.
    fn take_throttled(&self) -> Duration {
        Duration::ZERO
    }
}

/// A member of a group, as far as offsets are concerned.
pub trait GroupClient {
    /// Who it is.
    type Member;

    /// Who it is now; none where it is not in the group at the moment.
    fn member(&self) -> Option<Self::Member>;

    /// Commits offsets outside of a transaction and waits for the answer.
    ///
    /// # Errors
    /// The coordinator's refusal; or there was no answer, which leaves the outcome unknown.
    fn commit_offsets(&self, offsets: &OffsetMap, ids: &TopicIds, wait: Duration) -> Result<(), Error>;

    /// What the group has committed for these partitions, a negative number where nothing. Waits while a transaction on
    /// them is pending.
    ///
    /// # Errors
    /// No answer in time, or a refusal.
    fn committed(&self, partitions: &OffsetMap, wait: Duration) -> Result<Vec<(TopicPartition, Offset)>, Error>;
}

// Called by their full names: the trait's method would call itself.
impl ProducerClient for Arc<Client> {
    type Topic = Topic;
    type Member = Arc<GroupMetadata>;

    fn topic(&self, name: &TopicName) -> Result<Topic, Error> {
        Topic::new(self, name)
    }
    fn look_up(&self, topic: &Topic, wait: Duration) -> Result<(), Error> {
        Handle::metadata(self, Some(topic), wait).map(drop)
    }
    fn produce(&self, topic: &Topic, output: &Output<'_>, index: usize) -> Result<(), Error> {
        topic.produce(output, convert::header_list(output.headers), index)
    }
    fn flush(&self, wait: Duration) -> bool {
        Client::flush(self, wait)
    }
    fn is_delivered(&self, wait: Duration) -> bool {
        Client::is_delivered(self, wait)
    }
    fn init_transactions(&self, wait: Duration) -> Result<(), Error> {
        Handle::init_transactions(self, wait)
    }
    fn begin_transaction(&self) -> Result<(), Error> {
        Handle::begin_transaction(self)
    }
    fn send_offsets(
        &self,
        offsets: &OffsetMap,
        ids: &TopicIds,
        member: &Arc<GroupMetadata>,
        wait: Duration,
    ) -> Result<(), Error> {
        let (client, offsets, member) = (Self::clone(self), with_ids(offsets, ids), Arc::clone(member));
        on_a_thread(wait, move || Handle::send_offsets(&client, &offsets, &member, wait))
    }
    fn commit_transaction(&self, wait: Duration) -> Result<(), Error> {
        Handle::commit_transaction(self, wait)
    }
    fn abort_transaction(&self, wait: Duration) -> Result<(), Error> {
        Handle::abort_transaction(self, wait)
    }
    fn serve(&self, wait: Duration) {
        Handle::serve(self, wait);
    }
    fn fatal_error(&self) -> Option<Error> {
        Handle::fatal_error(self)
    }
    fn take_errors(&self) -> Vec<Error> {
        self.context().take_errors()
    }
    fn take_failures(&self) -> Failures {
        self.context().take_failures()
    }
    fn take_throttled(&self) -> Duration {
        self.context().take_throttled()
    }
}

impl GroupClient for Arc<Client> {
    type Member = Arc<GroupMetadata>;

    fn member(&self) -> Option<Arc<GroupMetadata>> {
        self.group_metadata().filter(GroupMetadata::is_member).map(Arc::new)
    }
    fn commit_offsets(&self, offsets: &OffsetMap, ids: &TopicIds, wait: Duration) -> Result<(), Error> {
        Handle::commit_offsets(self, &with_ids(offsets, ids), wait)
    }
    fn committed(&self, partitions: &OffsetMap, wait: Duration) -> Result<Vec<(TopicPartition, Offset)>, Error> {
        let found = Handle::committed(self, partitions.keys().cloned(), wait)?;
        Ok(found.into_iter().map(|found| (found.at, found.offset)).collect())
    }
}

/// librdkafka minds no timeout while it looks for the group's coordinator (its issues 5456 and 5511): so the call is made on
/// a thread of its own, and left behind where it takes too long. Its client is of no more use then, and goes when it returns.
fn on_a_thread(wait: Duration, call: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
    let (done, is_done) = mpsc::channel();
    let thread = std::thread::Builder::new().name("kafka-offsets".into());
    let lost = |code: Known, message: String| Error { message, fatal: true, ..Error::of(code.into()) };
    if let Err(error) = thread.spawn(move || drop(done.send(call()))) {
        return Err(lost(Known::RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE, format!("no thread can be started: {error}")));
    }
    is_done.recv_timeout(wait + OVERTIME).unwrap_or_else(|_| {
        let message = "the group's coordinator did not take the offsets in time".to_owned();
        Err(lost(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, message))
    })
}

/// Offsets as they are committed: beside each the id of its topic.
pub(super) fn with_ids(offsets: &OffsetMap, ids: &TopicIds) -> PartitionList {
    PartitionList::with_notes(offsets, |topic| ids.get(topic).map(String::as_str))
}
