//! What may go wrong at which call: librdkafka's errors with their flags, and what has really become of the request.

use millrace::kafka::seam::{Code, Error, Known};

use Effect::{Done, Ended, Late, Nothing};
use Flag::{Abort, Fatal, Plain, Retriable};

/// A call of millrace's that the simulation answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Call {
    Poll,
    Plugin,
    LookUp,
    Init,
    Begin,
    Produce,
    Flush,
    SendOffsets,
    Commit,
    Abort,
    CommitOffsets,
    Committed,
}

/// The flags of an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flag {
    Plain,
    Retriable,
    Abort,
    Fatal,
}

/// What a call that has failed has done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Effect {
    Nothing,
    /// What was asked for: only the answer was lost.
    Done,
    /// The request is still on its way.
    Late,
    /// The broker has aborted the transaction and moved the epoch on.
    Ended,
}

/// One way to fail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing {
    pub(super) known: Known,
    pub(super) flag: Flag,
    pub(super) effect: Effect,
}

impl Failing {
    pub(super) fn error(&self) -> Error {
        error(self.known, self.flag)
    }

    pub(super) fn name(&self) -> &'static str {
        Code::from(self.known).name()
    }
}

pub(super) fn error(known: Known, flag: Flag) -> Error {
    Error { fatal: flag == Fatal, retriable: flag == Retriable, must_abort: flag == Abort, ..Error::of(known.into()) }
}

/// Every call that has anything in the table, and the errors that it may give.
pub(super) const TABLE: &[(Call, &[Failing])] = &[
    (Call::Poll, POLL),
    (Call::LookUp, LOOK_UP),
    (Call::Init, INIT),
    (Call::Begin, BEGIN),
    (Call::Produce, PRODUCE),
    (Call::Flush, DELIVER),
    (Call::SendOffsets, SEND_OFFSETS),
    (Call::Commit, COMMIT),
    (Call::Abort, ABORT),
    (Call::CommitOffsets, COMMIT_OFFSETS),
    (Call::Committed, COMMITTED),
];

/// The calls between which a process can die.
pub(super) const CALLS: [Call; 12] = [
    Call::Poll,
    Call::Plugin,
    Call::LookUp,
    Call::Init,
    Call::Begin,
    Call::Produce,
    Call::Flush,
    Call::SendOffsets,
    Call::Commit,
    Call::Abort,
    Call::CommitOffsets,
    Call::Committed,
];

const fn failing(known: Known, flag: Flag, effect: Effect) -> Failing {
    Failing { known, flag, effect }
}

const POLL: &[Failing] = &[
    // The membership is lost, and with it all that is assigned.
    failing(Known::RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED, Plain, Ended),
    failing(Known::RD_KAFKA_RESP_ERR__TRANSPORT, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__FATAL, Fatal, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, Fatal, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_UNRELEASED_INSTANCE_ID, Fatal, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, Fatal, Nothing),
];

const LOOK_UP: &[Failing] = &[
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__TRANSPORT, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Plain, Nothing),
];

const INIT: &[Failing] = &[
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Retriable, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Retriable, Done),
    failing(Known::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, Retriable, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, Retriable, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_NOT_COORDINATOR, Retriable, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS, Retriable, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__FENCED, Fatal, Ended),
    failing(Known::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, Fatal, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, Fatal, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT, Fatal, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE, Fatal, Nothing),
];

const BEGIN: &[Failing] = &[failing(Known::RD_KAFKA_RESP_ERR__STATE, Plain, Nothing)];

/// Refused by the client itself: the transaction could be committed without the record.
const PRODUCE: &[Failing] = &[
    failing(Known::RD_KAFKA_RESP_ERR__QUEUE_FULL, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__STATE, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__FATAL, Fatal, Nothing),
];

/// What becomes of the records for one partition; found when they are flushed.
const DELIVER: &[Failing] = &[
    failing(Known::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT, Abort, Done),
    // No answer for long.
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Plain, Late),
    failing(Known::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__PURGE_QUEUE, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, Fatal, Ended),
];

const SEND_OFFSETS: &[Failing] = &[
    failing(Known::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__TRANSPORT, Retriable, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Retriable, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Retriable, Done),
    failing(Known::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, Retriable, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, Retriable, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_NOT_COORDINATOR, Retriable, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_INVALID_RECORD, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__INCONSISTENT, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__FENCED, Fatal, Ended),
];

const COMMIT: &[Failing] = &[
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Retriable, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Retriable, Done),
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Retriable, Late),
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Retriable, Ended),
    failing(Known::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_INVALID_RECORD, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__INCONSISTENT, Abort, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__FENCED, Fatal, Ended),
    failing(Known::RD_KAFKA_RESP_ERR__FENCED, Fatal, Done),
    failing(Known::RD_KAFKA_RESP_ERR__FENCED, Fatal, Late),
    failing(Known::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, Fatal, Ended),
];

const ABORT: &[Failing] = &[
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Retriable, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Retriable, Done),
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Retriable, Late),
    failing(Known::RD_KAFKA_RESP_ERR__FENCED, Fatal, Ended),
    failing(Known::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, Fatal, Ended),
];

const COMMIT_OFFSETS: &[Failing] = &[
    failing(Known::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_NOT_COORDINATOR, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Plain, Done),
    failing(Known::RD_KAFKA_RESP_ERR__TRANSPORT, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__TRANSPORT, Plain, Done),
    failing(Known::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, Plain, Done),
];

const COMMITTED: &[Failing] = &[
    failing(Known::RD_KAFKA_RESP_ERR__TIMED_OUT, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR__TRANSPORT, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, Plain, Nothing),
    failing(Known::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, Plain, Nothing),
];
