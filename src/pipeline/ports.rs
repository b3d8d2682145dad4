//! What the data plane needs of the world: a plugin step, and a broker session.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Duration;

use super::report::Spent;
use super::seek::{SeekTo, Sought};
use super::task::Stop;
use crate::model::{
    Digest, FaultCode, Item, Items, Offset, OffsetMap, PluginName, SourceBatch, TopicName, TopicPartition,
};

/// One plugin of a route's pipeline, with an instance of its own.
pub trait Step: Send {
    /// The plugin's name.
    fn plugin(&self) -> &PluginName;

    /// The digest of its bytes.
    fn sha256(&self) -> &Digest;

    /// Gives the items `range` of `items.list` (never empty) to the plugin in one call, and returns what it made of them.
    ///
    /// `cpu` is the guest CPU time that the call may use. On an error nothing has changed: `items.list` is as it was and
    /// `items.chunks` has no new chunk. After a fault the faulted instance is gone; the next call gets a fresh one.
    ///
    /// # Errors
    /// [`CallError`]: the plugin failed on the call as a whole.
    fn call(&mut self, items: &mut Items, range: Range<usize>, cpu: Duration) -> Result<CallOutput, CallError>;

    /// From now on a call ends early, with any error, once `stop` is set.
    fn heed(&mut self, _stop: &Stop) {}

    /// What the plugin has used since the last time this was asked.
    fn take_usage(&mut self) -> Usage;

    /// Ends the instance in good order (the guest's `shutdown`).
    fn shutdown(&mut self);
}

/// What a plugin made of the items of one call.
#[derive(Debug, Default)]
pub struct CallOutput {
    /// One verdict an item, in order.
    pub verdicts: Vec<Verdict>,
    /// What was emitted or forwarded, in the order of the calls: the position in `range` (from 0) of the item that it
    /// comes from, and the new item, complete (inherits all that the plugin did not change).
    pub emitted: Vec<(u32, Item)>,
    /// Reasons for refusals, by position in `range`; a refusal may have none.
    pub reasons: Vec<(u32, String)>,
}

/// What a plugin decided about one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on as it is.
    Pass,
    /// Do not (what was emitted from it goes on all the same).
    Drop,
    /// The plugin refuses it: its source record meets `on_error` as `refused`.
    Refuse,
}

/// Why a call gave nothing. The items of the call are as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// The call failed as a whole; the fault of a single item is found by halving.
    Fault {
        /// `Trapped`, `TimedOut`, `OutOfMemory`, `BadOutput`, `NotReady`, or `Refused` where the plugin answered `permanent`.
        code: FaultCode,
        /// For people.
        message: String,
    },
    /// The plugin asks to be given the same items again later.
    Retry(String),
}

/// What a step has used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Guest calls.
    pub calls: u64,
    /// CPU time in the guest.
    pub cpu: Duration,
    /// Instances made.
    pub instances: u64,
    /// Linear memory of the instance now, bytes.
    pub memory: u64,
}

impl std::ops::AddAssign for Usage {
    /// That of another instance.
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.cpu += other.cpu;
        self.instances += other.instances;
        self.memory += other.memory;
    }
}

/// One member of a route's consumer group and the producer that serves it for life. Used from one thread only.
///
/// A rebalance never finds an open transaction: the client serves it inside [`Broker::poll`], between transactions, or inside
/// [`Fetch::fetch`], where it first waits for the transaction to end. The caller only drops what it holds of partitions that
/// [`Event::Revoked`] names.
pub trait Broker {
    /// Serves the group and fetches: waits at most `wait` for something to happen and appends what did to `events`, in
    /// order, with at most `records` records. Must be called at least every `max.poll.interval.ms`.
    fn poll(&mut self, wait: Duration, records: usize, events: &mut Vec<Event>);

    /// Stops fetching these assigned partitions, which stay assigned. What was fetched ahead is dropped by the client and
    /// fetched again after [`Broker::resume`]: nothing that `poll` has not handed out is lost, nothing comes twice.
    fn pause(&mut self, partitions: &[TopicPartition]);

    /// Fetches them again, from behind the last record that `poll` handed out.
    fn resume(&mut self, partitions: &[TopicPartition]);

    /// What is known of a destination's topic. Looks it up (waiting a few seconds at most) the first time; afterwards
    /// answers from memory, which follows the cluster within `topic.metadata.refresh.interval.ms`.
    ///
    /// # Errors
    /// [`TopicError`]: the topic does not exist, may not be seen, or the cluster cannot be asked now.
    fn topic(&mut self, name: &TopicName) -> Result<TopicInfo, TopicError>;

    /// Goes by what is true of destinations now, where it had refused to: an operator accepts it.
    fn accept(&mut self) {}

    /// Makes `outputs` and `offsets` (next offset to read, per partition) durable, as the route's delivery promises.
    /// May block as long as `transaction.timeout.ms`.
    fn transact(&mut self, outputs: &dyn Outputs, offsets: &OffsetMap) -> Outcome;

    /// The same for work that may still grow. `meanwhile` is called at most once, on this thread, at the same time if that can
    /// be; what it does not add before [`Flight::seal`] or the end is no part of it. Not called at all where the session has
    /// ended, or the system gives no thread for it.
    ///
    /// Where [`Flight::flies_on`] says so, the commit may be left under way. Then nothing may be asked of the session but this
    /// again, which waits for that commit before its own, or [`Broker::land`].
    fn transact_while(&mut self, work: &dyn Flight, meanwhile: &mut dyn FnMut(&mut dyn Fetch)) -> Flown {
        let _ = meanwhile;
        work.seal();
        Flown::of(self.transact(work.outputs(), &work.offsets()))
    }

    /// Waits for the commit that was left under way, if one was.
    fn land(&mut self) -> Option<Outcome> {
        None
    }

    /// Where the time of transactions went since this was last asked.
    fn take_spent(&mut self) -> Spent {
        Spent::default()
    }

    /// After [`Outcome::Unknown`]: finds out what became of it. `offsets` are those of the transaction, less partitions
    /// revoked since. To be called between polls, with back-off, until it answers something else.
    fn settle(&mut self, offsets: &OffsetMap) -> Outcome;

    /// Moves these assigned partitions, of which nothing is held, to another position, commits that, and leaves them paused
    /// as they were; or only says what it would mean.
    ///
    /// # Errors
    /// [`Trouble`]: nothing is committed, or the broker could not say so.
    fn seek(&mut self, _partitions: &[TopicPartition], _to: SeekTo, _dry_run: bool) -> Result<Vec<Sought>, Trouble> {
        let message = "this session cannot move positions".to_owned();
        Err(Trouble { code: "_NOT_IMPLEMENTED".into(), message, kind: TroubleKind::Denied })
    }

    /// Ends the membership in good order within `deadline`. `leave`: leaves the group even if the membership is static.
    fn close(&mut self, leave: bool, deadline: Duration);
}

/// What happened during a poll.
pub enum Event {
    /// Records of one assigned partition, following those handed out before.
    Records(Arc<dyn SourceBatch>),
    /// These partitions are now ours; records of them follow.
    Assigned(Vec<TopicPartition>),
    /// These are no longer ours (revoked, or lost): whatever is held of them must be dropped, never committed.
    Revoked(Vec<TopicPartition>),
    /// The log no longer holds the offset to read next, and `on_offset_lost` is `stop`. The partition delivers nothing
    /// more until it is assigned anew.
    OffsetLost {
        /// Which partition.
        partition: TopicPartition,
        /// For people: the offset asked for, what the log holds.
        message: String,
    },
    /// The log no longer held the offset to read next, and `on_offset_lost` accepts that: the partition goes on at `to`,
    /// which is committed, without `lost` records.
    OffsetReset {
        /// Which partition.
        partition: TopicPartition,
        /// Where it goes on.
        to: Offset,
        /// How many offsets were passed by, 0 where that cannot be known.
        lost: u64,
        /// For people: the offset asked for, what the log holds.
        message: String,
    },
    /// All records of this partition before `offset` are done or have been handed out: it is where the group had committed
    /// when the partition became ours, or behind what `poll` has passed since, marks of transactions included.
    Reached {
        /// Which partition.
        partition: TopicPartition,
        /// Up to where.
        offset: Offset,
    },
    /// How far the logs of assigned partitions go, as it was looked at just now. Comes every few seconds, as long as
    /// brokers answer, for partitions that are paused, too.
    Logs(Vec<(TopicPartition, LogEnd)>),
    /// A broker has made the clients wait, so long since this was last told.
    Throttled(Duration),
    /// The broker or the coordinator is in trouble; the client goes on trying by itself.
    Trouble(Trouble),
    /// The same, and no broker at all can be reached.
    Away(Trouble),
    /// The session cannot go on: it must be closed, and a new one made after a back-off.
    Broken(Trouble),
}

/// How far a log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEnd {
    /// The last stable offset: what committed readers may read ends here.
    pub stable: Offset,
    /// The high watermark, which is further where a transaction is open upstream. Looked at before `stable`, so that
    /// records that come in between do not look like ones that are held back.
    pub high: Offset,
}

/// What became of a transaction (or of a commit, in the other delivery modes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Outputs and offsets are durable.
    Committed {
        /// Outputs that at_most_once lost after its commit; 0 in the other modes.
        lost: u64,
    },
    /// Nothing of it will ever be seen by a `read_committed` reader (in at_least_once: its offsets are not committed). The
    /// same work can be given again, after a poll and a back-off.
    Aborted(Trouble),
    /// As `Aborted`, and the destination refuses at least one of the outputs for good: it is found by halving.
    Rejected {
        /// Which output (its place in the order of [`Outputs::for_each`]), where the client said.
        output: Option<usize>,
        /// For people: the broker's code and words.
        message: String,
    },
    /// It may or may not have been committed: ask [`Broker::settle`]; give nothing else meanwhile.
    Unknown(Trouble),
    /// The session cannot go on: close it and make a new one. Whether the work was committed is told by the offsets that
    /// the next session starts from.
    Broken(Trouble),
}

/// What became of a transaction that could grow, and of the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flown {
    /// Of the one whose commit was left under way before, if one was.
    pub before: Option<Outcome>,
    /// Of this one; none where its commit is left under way. Never committed where the one before was not.
    pub this: Option<Outcome>,
}

impl Flown {
    /// One that has ended, with none before it.
    pub fn of(outcome: Outcome) -> Self {
        Self { before: None, this: Some(outcome) }
    }
}

/// Why something did not work, in terms of the broker. Never a reason to blame a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Kafka's or librdkafka's name of the error, for the metric's `code` label: for example `COORDINATOR_NOT_AVAILABLE`.
    pub code: String,
    /// For people, with what to do where something can be done (the exact ACL to add).
    pub message: String,
    /// How a route should take it.
    pub kind: TroubleKind,
}

impl Trouble {
    /// A topic that should be there is not. It passes when somebody creates it.
    pub fn missing_topic(topic: &TopicName) -> Self {
        Self {
            code: "UNKNOWN_TOPIC_OR_PART".into(),
            message: format!("topic \"{topic}\" does not exist, and millrace creates no topic: create it"),
            kind: TroubleKind::Passing,
        }
    }
}

/// How a route should take a [`Trouble`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
    /// It passes: the route is `waiting` and goes on by itself.
    Passing,
    /// The group moved on (a rebalance, an older generation): poll, then give again what is still ours.
    Moved,
    /// Permission or configuration is missing: the route is `failed` until somebody acts; it tries again by itself, slowly.
    Denied,
    /// Another live process has the same `instance`: the route is `failed: duplicate_instance`.
    Duplicate,
}

/// A topic as the cluster knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicInfo {
    /// Handle for [`Output::topic`], good for the life of the session.
    pub slot: u16,
    /// How many partitions, at least 1.
    pub partitions: i32,
}

/// Why a topic cannot be produced to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicError {
    /// It does not exist.
    Unknown,
    /// The cluster cannot be asked now, or forbids it.
    Trouble(Trouble),
}

/// Looks a destination's topic up, as [`Broker::topic`].
pub type LookUp<'a> = dyn FnMut(&TopicName) -> Result<TopicInfo, TopicError> + 'a;

impl TopicError {
    /// Nobody can be asked while a transaction is under way.
    pub fn busy() -> Self {
        let message = "a transaction is under way".to_owned();
        Self::Trouble(Trouble { code: "_IN_PROGRESS".into(), message, kind: TroubleKind::Passing })
    }
}

/// The outputs of one transaction, in order.
pub trait Outputs: Sync {
    /// How many there are.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Hands each to `produce`, in order, until it breaks.
    fn for_each(&self, produce: &mut dyn FnMut(Output<'_>) -> ControlFlow<()>);
    /// Whether more may come.
    fn takes_more(&self) -> bool {
        false
    }
    /// Takes no more. True: some have come since `for_each` ended, which hands those out when it is called again.
    fn close(&self) -> bool {
        false
    }
}

/// The work of a transaction to which more may be added while it is under way. [`Outputs::for_each`] of its outputs waits for
/// more, until it is sealed or nothing has come for a while. What comes after that, while those outputs are on their way, is
/// handed out after [`Outputs::close`].
pub trait Flight: Sync {
    /// What is to be produced.
    fn outputs(&self) -> &dyn Outputs;
    /// The next offset of every partition, of all that was added; to be asked for once nothing more is.
    fn offsets(&self) -> OffsetMap;
    /// Nothing is added any more.
    fn seal(&self);
    /// Whether the next one is to be begun before this one is committed; to be asked for once it is sealed.
    fn flies_on(&self) -> bool {
        false
    }
}

/// What a session can do while its transaction is under way.
pub trait Fetch {
    /// Waits at most `wait` for records, or for the transaction's end, and appends at most `records` records to `events`, in
    /// order. Where anything else has happened, the transaction has ended: that is to be taken up first, then these events.
    fn fetch(&mut self, wait: Duration, records: usize, events: &mut Vec<Event>);

    /// Whether the transaction has ended.
    fn has_ended(&self) -> bool;
}

/// One record to be produced.
#[derive(Clone, Copy)]
pub struct Output<'a> {
    /// [`TopicInfo::slot`].
    pub topic: u16,
    /// A partition of the topic; chosen already.
    pub partition: i32,
    /// `None` is null.
    pub key: Option<&'a [u8]>,
    /// `None` is null.
    pub value: Option<&'a [u8]>,
    /// ms since 1970-01-01 UTC, or -1 for none.
    pub timestamp: i64,
    /// In order.
    pub headers: Headers<'a>,
    /// What keeps the value in place, whatever becomes of the rest: who takes the output may keep that instead of a copy.
    pub keeper: Option<&'a Arc<Items>>,
}

/// The headers of an [`Output`].
#[derive(Clone, Copy)]
pub enum Headers<'a> {
    /// Those of an item.
    Of(&'a Items, &'a Item),
    /// The same, but for the value of the header of this number.
    Traced(&'a Items, &'a Item, usize, &'a [u8]),
    /// These.
    List(&'a [(Vec<u8>, Option<Vec<u8>>)]),
}

impl<'a> Headers<'a> {
    /// How many.
    pub fn len(self) -> usize {
        match self {
            Self::Of(items, item) | Self::Traced(items, item, ..) => items.header_count(item),
            Self::List(list) => list.len(),
        }
    }
    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
    /// Header `nth`: name and value.
    pub fn get(self, nth: usize) -> (&'a [u8], Option<&'a [u8]>) {
        match self {
            Self::Traced(items, item, header, value) if nth == header => (items.header(item, nth).0, Some(value)),
            Self::Of(items, item) | Self::Traced(items, item, ..) => items.header(item, nth),
            Self::List(list) => (&list[nth].0, list[nth].1.as_deref()),
        }
    }
}
