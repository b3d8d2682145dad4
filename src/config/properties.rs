//! What may not be passed through to librdkafka, and what to write instead; and the bounds that rest on properties
//! which may be.
//!
//! Knows nothing about whether librdkafka knows a property: `kafka` asks librdkafka itself.

use std::time::Duration;

use super::decode::{At, did_you_mean, one_of};
use super::problem::{Problem, Problems};
use super::settings::{Kafka, Properties, PropertyValue, Route, Settings};
use super::source::Place;
use super::units::{parse_duration, parse_size};

/// A property as it is written.
#[derive(Debug, Clone)]
pub(super) struct RawProperty {
    pub(super) name: At<String>,
    pub(super) value: At<PropertyValue>,
}

/// librdkafka's other names of properties that are read here.
pub(super) fn canonical(name: &str) -> &str {
    match name {
        "metadata.broker.list" => "bootstrap.servers",
        name => name,
    }
}

/// The properties as a map, without those that are refused.
pub(super) fn accept(written: &[RawProperty], problems: &mut Problems) -> Properties {
    let mut properties = Properties::new();
    for property in written {
        match refusal(property) {
            Some(problem) => problems.push(problem),
            None => {
                let name = canonical(&property.name.value).to_owned();
                if properties.insert(name.clone(), property.value.value.clone()).is_some() {
                    let same = written.iter().map(|other| other.name.value.as_str());
                    let alias = same.filter(|other| canonical(other) == name).find(|other| *other != name);
                    let alias = alias.unwrap_or(&property.name.value);
                    let message = format!("`{name}` is given twice, once by its other name `{alias}`");
                    problems.push(Problem::at(&property.name.place, message).code("duplicate_key"));
                }
            }
        }
    }
    properties
}

fn refusal(property: &RawProperty) -> Option<Problem> {
    let name = property.name.value.as_str();
    let refused = |message: String| Problem::at(&property.name.place, message).code("refused_property");
    if name == GROUP_PROTOCOL && !GROUP_PROTOCOLS.contains(&property.value.value.reveal()) {
        let value = property.value.value.reveal();
        let message = format!("expected {}, found `{value}`", one_of(&GROUP_PROTOCOLS));
        let problem = Problem::at(&property.value.place, message).code("wrong_type");
        return Some(match did_you_mean(value, &GROUP_PROTOCOLS) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem,
        });
    }
    if let Some((_, instead)) = REFUSED.iter().find(|(names, _)| names.contains(&name)) {
        return Some(refused(format!("`{name}` cannot be set: what millrace promises rests on it")).help(*instead));
    }
    with_a_unit(property)
}

/// Which protocol a consumer's group goes by: `classic`, or KIP-848's `consumer`.
pub(super) const GROUP_PROTOCOL: &str = "group.protocol";
const GROUP_PROTOCOLS: [&str; 2] = ["classic", "consumer"];

/// What a member decides in the classic protocol, and the broker in the `consumer` protocol; and what to write there.
pub(super) const OF_CLASSIC_MEMBERS: &[(&str, &str)] = &[
    ("session.timeout.ms", "the brokers decide it: set their `group.consumer.session.timeout.ms`"),
    ("heartbeat.interval.ms", "the brokers decide it: set their `group.consumer.heartbeat.interval.ms`"),
    ("partition.assignment.strategy", "the brokers assign: name one of their assignors in `group.remote.assignor`"),
    ("group.protocol.type", "leave it out"),
];

/// librdkafka takes plain numbers where everything else here has units.
fn with_a_unit(property: &RawProperty) -> Option<Problem> {
    let value = property.value.value.reveal();
    let (unit, number) = match property.name.value.rsplit('.').next()? {
        "ms" => ("milliseconds", parse_duration(value).ok()?.as_millis().to_string()),
        "bytes" => ("bytes", parse_size(value).ok()?.to_string()),
        _ => return None,
    };
    let message = format!("librdkafka counts `{}` in {unit}, without a unit", property.name.value);
    Some(Problem::at(&property.value.place, message).help(format!("write `{number}`")))
}

/// Names of properties (with librdkafka's and Java's other names for them), and what to write instead.
const REFUSED: &[(&[&str], &str)] = &[
    (&["group.id"], "name the group in the route: `source: { group: … }`"),
    (&["group.instance.id"], "write a top-level `instance`: the membership is then static, as `<instance>.<worker>`"),
    (
        &["transactional.id"],
        "it is made of `kafka.prefix`, the route's `source.group`, `instance` and the worker's number: set those",
    ),
    (
        &["enable.auto.commit", "enable.auto.offset.store", "auto.commit.enable", "offset.store.method"],
        "offsets commit as the route's `delivery` promises",
    ),
    (&["auto.commit.interval.ms"], "write the route's `transaction: { interval: … }`"),
    (&["isolation.level"], "it follows from the route's `delivery`"),
    (&["enable.idempotence", "enable.gapless.guarantee"], "every producer is idempotent; see the route's `delivery`"),
    (&["acks", "request.required.acks"], "it is always `all`; see the route's `delivery`"),
    (
        &["retries", "message.send.max.retries"],
        "the client retries until `kafka.producer.transaction.timeout.ms` is over; for faults of a record write `on_error: { retry: … }`",
    ),
    (
        &["max.in.flight", "max.in.flight.requests.per.connection"],
        "it is kept at what keeps order; for throughput write the route's `transaction` and `workers`",
    ),
    (
        &["message.timeout.ms", "delivery.timeout.ms"],
        "it follows from `kafka.producer.transaction.timeout.ms`: set that",
    ),
    (
        &["auto.offset.reset"],
        "write the route's `source: { start: … }`, and `on_offset_lost` for offsets that the log no longer holds",
    ),
    (
        &["partitioner", "partitioner_cb", "sticky.partitioning.linger.ms"],
        "write the destination's `partition: key | source | round_robin | plugin`",
    ),
    (&["enable.partition.eof"], "millrace needs no end-of-partition events: leave it out"),
    (&["statistics.interval.ms"], "lag and client statistics are under `/metrics`: leave it out"),
    (&["allow.auto.create.topics"], "millrace creates no topic: create it beforehand"),
    (&["topic.blacklist"], "write the route's `source: { exclude: [ … ] }`"),
    (&["queuing.strategy", "produce.offset.report", "delivery.report.only.error"], "leave it out"),
    (&["log_level", "log.queue", "log.thread.name"], "write the top-level `log: { level: … }`"),
    (&["plugin.library.paths"], "native code is not loaded into the router; plugins are WebAssembly"),
    (
        &[
            "dr_cb",
            "dr_msg_cb",
            "error_cb",
            "log_cb",
            "stats_cb",
            "throttle_cb",
            "rebalance_cb",
            "offset_commit_cb",
            "consume_cb",
            "socket_cb",
            "connect_cb",
            "closesocket_cb",
            "open_cb",
            "resolve_cb",
            "background_event_cb",
            "oauthbearer_token_refresh_cb",
            "ssl.certificate.verify_cb",
            "opaque",
            "default_topic_conf",
            "interceptors",
            "enabled_events",
        ],
        "it is a pointer in a C program: leave it out",
    ),
];

/// The client's deadline for a transaction where none is set.
pub(super) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest time between two polls where none is set.
pub(super) const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);
/// How long a member may be silent where none is set.
pub(super) const SESSION_TIMEOUT: Duration = Duration::from_secs(45);

impl Kafka {
    /// `transaction.timeout.ms`: after this the broker aborts an open transaction; default 15 s.
    pub fn transaction_timeout(&self) -> Duration {
        millis(&[&self.producer, &self.common], "transaction.timeout.ms").unwrap_or(TRANSACTION_TIMEOUT)
    }
}

impl Settings {
    /// `max.poll.interval.ms` of a route: a member that polls less often loses its partitions; default 5 min.
    pub fn max_poll_interval(&self, route: &Route) -> Duration {
        millis(&self.consumer_layers(route), "max.poll.interval.ms").unwrap_or(MAX_POLL_INTERVAL)
    }

    /// `session.timeout.ms` of a route: a member silent for longer loses its partitions; default 45 s.
    pub fn session_timeout(&self, route: &Route) -> Duration {
        millis(&self.consumer_layers(route), "session.timeout.ms").unwrap_or(SESSION_TIMEOUT)
    }

    fn consumer_layers<'a>(&'a self, route: &'a Route) -> [&'a Properties; 3] {
        [&route.source.consumer, &self.kafka.consumer, &self.kafka.common]
    }
}

/// The first layer's value, if it is a number of milliseconds (whether it has to be one, librdkafka says).
fn millis(layers: &[&Properties], name: &str) -> Option<Duration> {
    let value = layers.iter().find_map(|layer| layer.get(name))?;
    value.reveal().parse().ok().map(Duration::from_millis)
}

/// A property in the first layer that has it.
pub(super) fn written<'r>(layers: &[&'r [RawProperty]], name: &str) -> Option<&'r RawProperty> {
    layers.iter().flat_map(|layer| layer.iter()).find(|property| property.name.value == name)
}

/// A number of milliseconds in the first layer that has it, with its place.
pub(super) fn written_millis<'r>(layers: &[&'r [RawProperty]], name: &str) -> Option<(Duration, &'r Place)> {
    let property = written(layers, name)?;
    let millis = property.value.value.reveal().parse().ok()?;
    Some((Duration::from_millis(millis), &property.value.place))
}
