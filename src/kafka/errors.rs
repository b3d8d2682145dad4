//! Classifies librdkafka's errors: what a route should make of each, in the data plane's own words, with what an
//! operator can do about it. Knows codes and flags, and makes no call.

use crate::model::{GroupId, TopicName};
use crate::pipeline::ports::{Trouble, TroubleKind};

use super::raw::{Code, Error, Known};

/// What a call was about, so that a missing permission can be named.
#[derive(Debug, Clone, Copy)]
pub(super) enum About<'a> {
    /// The connection, or nothing in particular.
    Cluster,
    /// Reading this topic.
    Read(&'a TopicName),
    /// Writing this topic.
    Write(&'a TopicName),
    /// Membership or offsets of this group.
    Group(&'a GroupId),
    /// The producer with this transactional id.
    Transaction(&'a str),
}

/// The error as a route takes it.
pub(super) fn trouble(error: &Error, about: About<'_>) -> Trouble {
    let kind = kind(error.code);
    let mut message = if error.message.is_empty() { error.code.text().to_owned() } else { error.message.clone() };
    if error.code == Known::RD_KAFKA_RESP_ERR_UNRELEASED_INSTANCE_ID.into() {
        message.push_str(STILL_A_MEMBER);
    }
    if let Some(acl) = missing_acl(error.code, about) {
        message = format!("{message}; {acl}");
    }
    Trouble { code: error.code.name().to_owned(), message, kind }
}

/// The `consumer` protocol refuses a static member while one of its name has not left. As a rule that is the process
/// before this one, which was killed: so it passes.
const STILL_A_MEMBER: &str = ": a member of the same `instance` has not left the group; the brokers give one that died \
                              up after their `group.consumer.session.timeout.ms`, one that lives has to be stopped";

/// A trouble of our own making.
pub(super) fn passing(code: Known, message: impl Into<String>) -> Trouble {
    Trouble { code: Code::from(code).name().to_owned(), message: message.into(), kind: TroubleKind::Passing }
}

fn kind(code: Code) -> TroubleKind {
    use Known::*;
    match code.known() {
        RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION
        | RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID
        | RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS
        | RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH
        | RD_KAFKA_RESP_ERR_FENCED_MEMBER_EPOCH
        | RD_KAFKA_RESP_ERR_MEMBER_ID_REQUIRED
        | RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED
        | RD_KAFKA_RESP_ERR__ASSIGNMENT_LOST => TroubleKind::Moved,
        RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID => TroubleKind::Duplicate,
        RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
        | RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED
        | RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED
        | RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        | RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED
        | RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM
        | RD_KAFKA_RESP_ERR_ILLEGAL_SASL_STATE
        | RD_KAFKA_RESP_ERR_SECURITY_DISABLED
        | RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT
        | RD_KAFKA_RESP_ERR_INVALID_GROUP_ID
        | RD_KAFKA_RESP_ERR_INVALID_SESSION_TIMEOUT
        | RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL
        | RD_KAFKA_RESP_ERR_UNSUPPORTED_ASSIGNOR
        | RD_KAFKA_RESP_ERR_GROUP_MAX_SIZE_REACHED
        | RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION
        | RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT
        | RD_KAFKA_RESP_ERR__AUTHENTICATION
        | RD_KAFKA_RESP_ERR__SSL
        | RD_KAFKA_RESP_ERR__INVALID_ARG
        | RD_KAFKA_RESP_ERR__NOT_CONFIGURED
        | RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE => TroubleKind::Denied,
        // Everything else passes, or is worth trying again: nothing is lost by it, and the operator sees the reason.
        _ => TroubleKind::Passing,
    }
}

/// Whether the destination refuses a record for good.
pub(super) fn is_rejection(code: Code) -> bool {
    matches!(
        code.known(),
        Known::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE
            | Known::RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE
            | Known::RD_KAFKA_RESP_ERR_INVALID_MSG
            | Known::RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE
            | Known::RD_KAFKA_RESP_ERR_INVALID_RECORD
            | Known::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP
    )
}

/// Whether a client has lost its last broker.
pub(super) fn is_all_down(code: Code) -> bool {
    code == Known::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN.into()
}

/// Whether it still holds: "0/2 brokers are down" is what the client says when one was back by the time it said so.
pub(super) fn says_away(error: &Error) -> bool {
    is_all_down(error.code) && !error.message.starts_with("0/")
}

/// Whether what we know of the cluster's topics may be out of date.
pub(super) fn is_stale_metadata(code: Code) -> bool {
    matches!(
        code.known(),
        Known::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | Known::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
            | Known::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
            | Known::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID
    )
}

/// Whether somebody else has taken over the transactional id, or the broker has ended our transaction by its timeout.
pub(super) fn is_fenced(code: Code) -> bool {
    matches!(
        code.known(),
        Known::RD_KAFKA_RESP_ERR__FENCED
            | Known::RD_KAFKA_RESP_ERR_PRODUCER_FENCED
            | Known::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH
    )
}

/// Whether the record itself did nothing wrong: it was taken down by another of its batch, or by an abort.
pub(super) fn is_collateral(code: Code) -> bool {
    matches!(
        code.known(),
        Known::RD_KAFKA_RESP_ERR__INVALID_DIFFERENT_RECORD
            | Known::RD_KAFKA_RESP_ERR__FATAL
            | Known::RD_KAFKA_RESP_ERR__GAPLESS_GUARANTEE
            | Known::RD_KAFKA_RESP_ERR__PURGE_QUEUE
            | Known::RD_KAFKA_RESP_ERR__PURGE_INFLIGHT
            | Known::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER
    )
}

/// The exact grant that is missing.
fn missing_acl(code: Code, about: About<'_>) -> Option<String> {
    let grant = match (code.known(), about) {
        (Known::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, About::Write(topic)) => {
            format!("--operation Write --operation Describe --topic {topic}")
        }
        (Known::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, About::Read(topic)) => {
            format!("--operation Read --operation Describe --topic {topic}")
        }
        (Known::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, About::Group(group)) => {
            format!("--operation Read --group '{group}'")
        }
        (Known::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, About::Transaction(id)) => {
            format!("--operation Write --operation Describe --transactional-id '{id}'")
        }
        (Known::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, _) => {
            "--operation IdempotentWrite --cluster".to_owned()
        }
        _ => return None,
    };
    Some(format!("grant with: kafka-acls.sh --bootstrap-server <broker> --add --allow-principal User:<you> {grant}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(known: Known) -> Error {
        Error::of(Code::from(known))
    }

    #[test]
    fn a_missing_permission_names_the_acl_to_add() {
        let topic = TopicName::new("orders.paid").unwrap();
        let denied = trouble(&of(Known::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED), About::Write(&topic));
        assert_eq!(denied.kind, TroubleKind::Denied);
        assert_eq!(denied.code, "TOPIC_AUTHORIZATION_FAILED");
        assert!(denied.message.contains("--operation Write --operation Describe --topic orders.paid"), "{denied:?}");
    }

    #[test]
    fn what_passes_is_never_a_rejection() {
        use Known::*;
        for code in [
            RD_KAFKA_RESP_ERR__MSG_TIMED_OUT,
            RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR__TRANSPORT,
            RD_KAFKA_RESP_ERR__FENCED,
            RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
        ] {
            assert!(!is_rejection(Code::from(code)), "{code:?}");
            assert_eq!(trouble(&of(code), About::Cluster).kind, TroubleKind::Passing, "{code:?}");
        }
    }

    #[test]
    fn brokers_are_away_only_where_one_at_least_still_is_when_the_client_says_so() {
        let says = |message: &str| {
            says_away(&Error { message: message.into(), ..of(Known::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN) })
        };
        assert!(says("2/2 brokers are down") && says("1/1 brokers are down"));
        assert!(!says("0/2 brokers are down"));
        assert!(!says_away(&of(Known::RD_KAFKA_RESP_ERR__TRANSPORT)));
    }

    #[test]
    fn a_rebalance_is_neither_a_fault_nor_an_outage() {
        use Known::*;
        for code in [
            RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
            RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
            RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH,
        ] {
            assert_eq!(trouble(&of(code), About::Cluster).kind, TroubleKind::Moved, "{code:?}");
        }
    }
}
