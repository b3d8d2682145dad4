//! Settings to librdkafka properties: our defaults first, then what the operator wrote, last what the guarantees rest
//! on. Knows no client.

use crate::config::settings::{Delivery, Kafka, Properties, Route};
use crate::config::share::Share;
use crate::config::times::Times;

use super::tokens::{self, Issuer};
use super::{raw, watchdog};

/// Which clients a set of properties is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientKind {
    /// Both.
    Common,
    /// Consumers.
    Consumer,
    /// Producers.
    Producer,
}

/// What librdkafka has against these properties: unknown names and impossible values, one sentence each.
pub fn check_properties(properties: &Properties, kind: ClientKind) -> Vec<(String, String)> {
    let allowed = |name: &str| match kind {
        ClientKind::Common => true,
        ClientKind::Consumer => !PRODUCER_ONLY.contains(&name),
        ClientKind::Producer => !CONSUMER_ONLY.contains(&name),
    };
    let problem = |name: &str, value: &str| {
        // Callbacks and the like are set by code; librdkafka would take a text for a pointer.
        if POINTERS.contains(&name) {
            return Some("cannot be set from a configuration".to_owned());
        }
        if !allowed(name) {
            let other = if kind == ClientKind::Consumer { "producers" } else { "consumers" };
            return Some(format!("is a property of {other}"));
        }
        tokens::check_property(name, value).unwrap_or_else(|| raw::check_property(name, value)).err()
    };
    properties
        .iter()
        .filter_map(|(name, value)| {
            let text = problem(name, value.reveal())?;
            // librdkafka quotes the value that it refuses.
            let secret = value.is_secret() && !value.reveal().is_empty();
            let text = if secret { text.replace(value.reveal(), "[redacted]") } else { text };
            Some((name.clone(), text))
        })
        .collect()
}

/// What is missing among properties that only make sense together, though each is right in itself.
pub fn check_together(kafka: &Kafka) -> Option<String> {
    Issuer::of(&asking(kafka, None)).err()
}

/// Properties that librdkafka holds as pointers to functions or objects.
const POINTERS: &[&str] = &[
    "background_event_cb",
    "closesocket_cb",
    "connect_cb",
    "consume_cb",
    "default_topic_conf",
    "dr_cb",
    "dr_msg_cb",
    "error_cb",
    "interceptors",
    "log_cb",
    "msg_order_cmp",
    "oauthbearer_token_refresh_cb",
    "offset_commit_cb",
    "opaque",
    "open_cb",
    "partitioner_cb",
    "plugin.library.paths",
    "rebalance_cb",
    "resolve_cb",
    "socket_cb",
    "ssl.certificate.verify_cb",
    "ssl_engine_callback_data",
    "stats_cb",
    "throttle_cb",
];

const PRODUCER_ONLY: &[&str] = &[
    "batch.num.messages",
    "batch.size",
    "compression.codec",
    "compression.level",
    "compression.type",
    "delivery.timeout.ms",
    "linger.ms",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "request.timeout.ms",
    "sticky.partitioning.linger.ms",
    "transaction.timeout.ms",
];

const CONSUMER_ONLY: &[&str] = &[
    "check.crcs",
    "fetch.error.backoff.ms",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "group.protocol",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "partition.assignment.strategy",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "session.timeout.ms",
];

/// Properties in the order they are set; a later one wins.
pub(super) type Options = Vec<(String, String)>;

/// For a client that only asks: topics, offsets. `group`: whose offsets.
pub(super) fn asking(kafka: &Kafka, group: Option<&str>) -> Options {
    let mut options = defaults(kafka);
    let written = kafka.common.iter().chain(&kafka.consumer);
    options.extend(
        written
            .filter(|(name, _)| !OF_MEMBERS.contains(&name.as_str()))
            .map(|(n, v)| (n.clone(), v.reveal().to_owned())),
    );
    put(&mut options, &[("allow.auto.create.topics", "false"), ("enable.auto.commit", "false")]);
    put(&mut options, &[("isolation.level", "read_committed"), ("log_level", "4")]);
    if let Some(group) = group {
        put(&mut options, &[("group.id", group)]);
    }
    options
}

/// The same, for one that does not wait for open transactions to end: of a group it learns what is committed for sure.
pub(super) fn asking_at_once(kafka: &Kafka, group: &str) -> Options {
    let mut options = asking(kafka, Some(group));
    put(&mut options, &[("isolation.level", "read_uncommitted")]);
    options
}

/// Properties that only members of a group have a use for.
const OF_MEMBERS: &[&str] = &[
    "group.protocol",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "session.timeout.ms",
    "partition.assignment.strategy",
];

/// For a worker's consumer. `instance`: its `group.instance.id`.
pub(super) fn consumer(kafka: &Kafka, route: &Route, client_id: &str, instance: Option<&str>, share: Share) -> Options {
    let written = || kafka.common.iter().chain(&kafka.consumer).chain(&route.source.consumer);
    let is_new_protocol = written().any(|(name, value)| name == "group.protocol" && value.reveal() == "consumer");
    let mut options = defaults(kafka);
    // librdkafka wants no request to be larger than what one fetch may bring.
    let request = written().find(|(name, _)| *name == "message.max.bytes");
    let request = request.and_then(|(_, value)| value.reveal().parse().ok()).unwrap_or(share.fetch().min(1_000_000));
    let fetch = share.fetch().max(request);
    put(
        &mut options,
        &[
            ("client.id", client_id),
            ("max.poll.interval.ms", "300000"),
            ("queued.max.messages.kbytes", &(share.queue() / 1024).to_string()),
            ("queued.min.messages", "10000"),
            ("fetch.max.bytes", &fetch.to_string()),
            ("fetch.message.max.bytes", &fetch.min(1 << 20).to_string()),
            ("message.max.bytes", &request.to_string()),
            // At its default of 1 s a full queue stalls the route for as long.
            ("fetch.queue.backoff.ms", "5"),
        ],
    );
    if !is_new_protocol {
        put(&mut options, &[("session.timeout.ms", "45000"), ("partition.assignment.strategy", "cooperative-sticky")]);
    }
    options.extend(written().map(|(name, value)| (name.clone(), value.reveal().to_owned())));
    put(
        &mut options,
        &[
            ("group.id", route.source.group.as_str()),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", "read_committed"),
            // Every reset is decided here, where it can be counted.
            ("auto.offset.reset", "error"),
            // Never: a batch call takes the end's offset for that of a record, and after a pause goes on one behind it.
            ("enable.partition.eof", "false"),
            // What the watchdog looks at.
            ("statistics.interval.ms", &watchdog::look_every().as_millis().to_string()),
            ("allow.auto.create.topics", "false"),
        ],
    );
    if let Some(instance) = instance {
        put(&mut options, &[("group.instance.id", instance)]);
    }
    options
}

/// What a producer takes, where nothing is written: the destination decides what is too large, not librdkafka's 1,000,000
/// bytes. A little above 16 MiB, for what surrounds a record in a request.
const MESSAGE_MAX: u64 = (16 << 20) + (64 << 10);

/// For a worker's producer.
pub(super) fn producer(kafka: &Kafka, route: &Route, client_id: &str, transactional_id: &str, share: Share) -> Options {
    let times = Times::of_clients(kafka);
    let delivery = times.delivery.as_millis().to_string();
    let mut options = defaults(kafka);
    let written = |name: &str| kafka.producer.get(name).or_else(|| kafka.common.get(name));
    let largest = written("message.max.bytes").and_then(|value| value.reveal().parse().ok()).unwrap_or(MESSAGE_MAX);
    put(
        &mut options,
        &[
            ("client.id", client_id),
            ("compression.type", "lz4"),
            // The time for requests, which a transaction must survive.
            ("socket.timeout.ms", &(times.transaction / 2).as_millis().min(10_000).to_string()),
            ("request.timeout.ms", &(times.transaction / 2).as_millis().min(10_000).to_string()),
            ("retry.backoff.ms", "10"),
            ("linger.ms", "5"),
            ("queue.buffering.max.kbytes", &(share.unsent(largest) / 1024).to_string()),
            ("queue.buffering.max.messages", &share.unsent_records().to_string()),
            ("batch.size", &share.batch().to_string()),
            ("message.max.bytes", &MESSAGE_MAX.to_string()),
            // How long a topic that vanished may hold up a transaction.
            ("topic.metadata.propagation.max.ms", "5000"),
        ],
    );
    options.extend(kafka.common.iter().chain(&kafka.producer).map(|(n, v)| (n.clone(), v.reveal().to_owned())));
    put(
        &mut options,
        &[
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("message.timeout.ms", &delivery),
            ("partitioner", "murmur2_random"),
            ("delivery.report.only.error", "true"),
            ("allow.auto.create.topics", "false"),
        ],
    );
    if route.delivery == Delivery::ExactlyOnce {
        let timeout = times.transaction.as_millis().to_string();
        put(&mut options, &[("transactional.id", transactional_id), ("transaction.timeout.ms", &timeout)]);
    } else {
        options.retain(|(name, _)| name != "transaction.timeout.ms");
    }
    if route.delivery == Delivery::AtLeastOnce {
        // Once a record has failed nothing behind it is sent: it comes again first, and first copies keep their order.
        put(&mut options, &[("enable.gapless.guarantee", "true")]);
    }
    options
}

/// For a producer that only asks whether it may have transactions under this id.
pub(super) fn transacting(kafka: &Kafka, transactional_id: &str) -> Options {
    let mut options = defaults(kafka);
    options.extend(kafka.common.iter().chain(&kafka.producer).map(|(n, v)| (n.clone(), v.reveal().to_owned())));
    let timeout = kafka.transaction_timeout().as_millis().to_string();
    put(&mut options, &[("transactional.id", transactional_id), ("transaction.timeout.ms", &timeout)]);
    put(&mut options, &[("log_level", "4")]);
    options
}

fn defaults(kafka: &Kafka) -> Options {
    let mut options = Options::new();
    put(
        &mut options,
        &[
            ("client.id", &kafka.prefix),
            ("topic.metadata.refresh.interval.ms", "30000"),
            ("log.connection.close", "false"),
            ("socket.nagle.disable", "true"),
            ("reconnect.backoff.max.ms", "3000"),
            // At its default of 30 s a host that nobody answered on keeps the client waiting for as long once it is back.
            ("socket.connection.setup.timeout.ms", "10000"),
        ],
    );
    options
}

pub(super) fn put(options: &mut Options, pairs: &[(&str, &str)]) {
    options.extend(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::PropertyValue;

    #[test]
    fn unknown_properties_and_impossible_values_are_named() {
        let properties: Properties = [
            ("fetch.min.bytes", PropertyValue::plain("1024")),
            ("fetch.mim.bytes", PropertyValue::plain("1024")),
            ("linger.ms", PropertyValue::plain("5")),
            ("fetch.wait.max.ms", PropertyValue::plain("soon")),
            ("rebalance_cb", PropertyValue::plain("1")),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        let problems = check_properties(&properties, ClientKind::Consumer);
        let names: Vec<_> = problems.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["fetch.mim.bytes", "fetch.wait.max.ms", "linger.ms", "rebalance_cb"], "{problems:?}");
    }

    #[test]
    fn a_refused_secret_is_not_shown() {
        let properties =
            Properties::from([("sasl.mechanism.typo".to_owned(), PropertyValue::secret("hunter2-hunter2"))]);
        let problems = check_properties(&properties, ClientKind::Common);
        assert!(!format!("{problems:?}").contains("hunter2"), "{problems:?}");
    }
}
