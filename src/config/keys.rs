//! The one description of every key: its name, what may be written, its bounds, its default and what it is for. Decoding
//! takes names, bounds and words from here; so do the JSON Schema and the reference.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::settings::{Capability, Delivery};
use crate::policy::Partitioning;

/// A key of a mapping.
#[derive(Debug)]
pub(super) struct Key {
    /// As it is written.
    pub(super) name: &'static str,
    /// What may be written.
    pub(super) is: Is,
    /// What holds where nothing is written.
    pub(super) default: Default,
    /// What it is for, for people.
    pub(super) about: &'static str,
    /// A value, as YAML on one line.
    pub(super) example: &'static str,
}

/// What holds where nothing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Default {
    /// It has to be written.
    Required,
    /// Nothing.
    None,
    /// This, as YAML.
    Is(&'static str),
    /// What these words say.
    Said(&'static str),
}

/// What may be written.
#[derive(Debug)]
pub(super) enum Is {
    /// A duration with its unit.
    Duration(RangeInclusive<Duration>),
    /// A size with its unit.
    Size(RangeInclusive<u64>),
    /// A whole number.
    Number(RangeInclusive<u64>),
    /// `true` or `false`.
    Bool,
    /// One of these words.
    Word(fn() -> Vec<&'static str>),
    /// Text, which matches this regular expression (of JSON Schema's kind) where there is one.
    Text(Option<&'static str>),
    /// Any YAML.
    Any,
    /// A mapping of these keys.
    Section(&'static Section),
    /// A list.
    List(&'static Is),
    /// A list, or one element in the place of a list of one.
    OneOrList(&'static Is),
    /// One of these.
    OneOf(&'static [Is]),
    /// A mapping from names to these.
    ByName(&'static Is),
    /// librdkafka properties: words with dots, each with one value.
    Properties,
}

/// The keys of a mapping.
#[derive(Debug)]
pub(super) struct Section {
    /// What it is, in one line; the schema's name of it.
    pub(super) name: &'static str,
    /// Its keys, in the order in which people read them.
    pub(super) keys: &'static [&'static Key],
    /// Whether other keys are librdkafka properties.
    pub(super) or_properties: bool,
}

impl Section {
    const fn new(name: &'static str, keys: &'static [&'static Key]) -> Self {
        Self { name, keys, or_properties: false }
    }
}

const fn seconds(first: u64, last: u64) -> RangeInclusive<Duration> {
    RangeInclusive::new(Duration::from_secs(first), Duration::from_secs(last))
}

const fn millis(first: u64, last: u64) -> RangeInclusive<Duration> {
    RangeInclusive::new(Duration::from_millis(first), Duration::from_millis(last))
}

const HOUR: u64 = 3_600_000;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Names of routes, plugins, the instance and the prefix.
const NAME: Option<&str> = Some("^[A-Za-z0-9._-]{1,100}$");
/// Names of topics and destinations.
const TOPIC: Option<&str> = Some("^[A-Za-z0-9._-]{1,249}$");
/// Topics, and patterns of them.
const SELECTOR: Is = Is::Text(Some("^(\\^.*|[A-Za-z0-9._-]{1,249})$"));

macro_rules! keys {
    ($($constant:ident = $name:literal, $is:expr, $default:expr, $example:literal, $about:literal;)*) => {
        $(pub(super) static $constant: Key = Key { name: $name, is: $is, default: $default, example: $example, about: $about };)*
    };
}

use self::Default::{Is as By, None as Nothing, Required, Said};

// ---- the process ------------------------------------------------------------------------

keys! {
    INSTANCE = "instance", Is::Text(NAME), Nothing, "\"${POD_NAME}\"",
        "The name of this process, where it outlives the process and is unique (a StatefulSet's pod, a named host). Membership of the groups is then static.";
    SHUTDOWN_TIMEOUT = "shutdown_timeout", Is::Duration(seconds(1, 600)), By("25s"), "25s",
        "From the first SIGTERM or SIGINT to the exit. What is not done by then stays uncommitted and is read again; the exit code is then 1.";
    PROCESSING_TIMEOUT = "processing_timeout", Is::Duration(millis(100, HOUR)), By("30s"), "30s",
        "Plugin work on what one transaction covers; below `max.poll.interval.ms`. When it is spent, what is complete is committed and the rest follows in the next one.";
    CACHE_DIR = "cache_dir", Is::Text(None), Said("`$XDG_CACHE_HOME/millrace`, else `~/.cache/millrace`"), "/var/cache/millrace",
        "Where compiled plugins are kept. It must belong to the user that millrace runs as, and be writable by nobody else.";
    WATCH = "watch", Is::Section(&WATCH_KEYS), By("{}"), "{ method: auto, debounce: 250ms, interval: 2s }",
        "How changes of files are noticed while the daemon runs.";
    MEMORY = "memory", Is::Size(RangeInclusive::new(16 * MIB, 1024 * GIB)), By("1GiB"), "1GiB",
        "Ceiling for what is buffered, in equal shares for all workers of all enabled routes; 4 MiB a worker at least.";
    KAFKA = "kafka", Is::Section(&KAFKA_KEYS), Required, "{ bootstrap.servers: \"127.0.0.1:9092\" }",
        "The connection to Kafka: `prefix`, and any librdkafka property by its own name, for all clients. More specific wins: a route's `source.consumer`, then `kafka.consumer` or `kafka.producer`, then `kafka`.";
    ADMIN = "admin", Is::Section(&ADMIN_KEYS), By("{}"), "{ listen: 127.0.0.1:9400 }",
        "The admin endpoint: health, metrics, the API.";
    LOG = "log", Is::Section(&LOG_KEYS), By("{}"), "{ level: info, format: text }",
        "What is logged. Always to stderr.";
    TELEMETRY = "telemetry", Is::Section(&TELEMETRY_KEYS), By("{}"), "{ otlp: \"http://127.0.0.1:4318\" }",
        "Traces: where the spans of traced records go.";
    PLUGINS = "plugins", Is::ByName(&Is::Section(&PLUGIN_KEYS)), By("{}"), "{ redact: { path: ../plugins/redact.wasm } }",
        "Plugins by their names. They add up over all files.";
    DEFAULTS = "defaults", Is::Section(&DEFAULT_KEYS), By("{}"), "{ workers: 2 }",
        "What all routes share: any key of a route but `source`, `pipeline`, `shadow` and `destinations`. A route's own key wins.";
    ROUTES = "routes", Is::ByName(&Is::Section(&ROUTE_KEYS)), Required, "{ r: { source: { topics: [a], start: earliest }, destinations: [{ topic: b }] } }",
        "Routes by their names. They add up over all files.";
    TESTS = "tests", Is::List(&Is::Section(&TEST_KEYS)), By("[]"), "[{ name: nothing comes of nothing, route: r, given: [], expect: [] }]",
        "Tests of routes, which `millrace test` runs without a broker. They add up over all files.";
}
pub(super) static PROCESS: Section = Section::new(
    "A configuration of millrace",
    &[
        &INSTANCE,
        &SHUTDOWN_TIMEOUT,
        &PROCESSING_TIMEOUT,
        &CACHE_DIR,
        &WATCH,
        &MEMORY,
        &KAFKA,
        &ADMIN,
        &LOG,
        &TELEMETRY,
        &PLUGINS,
        &DEFAULTS,
        &ROUTES,
        &TESTS,
    ],
);

/// Whether what stands under this key of the process adds up over the files.
pub(super) fn adds_up(key: &Key) -> bool {
    ["plugins", "routes", "tests"].contains(&key.name)
}

keys! {
    WATCH_METHOD = "method", Is::Word(|| vec!["auto", "events", "poll", "off"]), By("auto"), "poll",
        "`auto`: file events where they work, else polling. `off`: only SIGHUP and the API reload.";
    WATCH_DEBOUNCE = "debounce", Is::Duration(seconds(0, 60)), By("250ms"), "250ms",
        "Quiet time before a change is taken up.";
    WATCH_INTERVAL = "interval", Is::Duration(millis(100, HOUR)), By("2s"), "2s",
        "How often files are looked at.";
}
pub(super) static WATCH_KEYS: Section =
    Section::new("How files are watched", &[&WATCH_METHOD, &WATCH_DEBOUNCE, &WATCH_INTERVAL]);

keys! {
    PREFIX = "prefix", Is::Text(NAME), By("millrace"), "shop",
        "Begins every default group and every transactional id: one prefixed ACL covers them.";
    BOOTSTRAP_SERVERS = "bootstrap.servers", Is::Text(None), Required, "\"${KAFKA_BOOTSTRAP_SERVERS:-127.0.0.1:9092}\"",
        "Brokers to begin with, with commas between them.";
    CONSUMER = "consumer", Is::Properties, By("{}"), "{ fetch.min.bytes: 1024 }",
        "librdkafka properties for consumers only.";
    PRODUCER = "producer", Is::Properties, By("{}"), "{ compression.type: zstd }",
        "librdkafka properties for producers only.";
}
pub(super) static KAFKA_KEYS: Section = Section {
    name: "Kafka's settings",
    keys: &[&PREFIX, &BOOTSTRAP_SERVERS, &CONSUMER, &PRODUCER],
    or_properties: true,
};

keys! {
    LISTEN = "listen", Is::Text(Some("^(localhost|[0-9.]+|\\[[0-9A-Fa-f:.%a-z]+\\]):[0-9]{1,5}$")), By("127.0.0.1:9400"), "127.0.0.1:9400",
        "An IP address and a port. Port 0 takes a free one, which the log names.";
    TOKEN = "token", Is::Text(None), Nothing, "\"${file:/run/secrets/admin}\"",
        "Asked for by what changes state, and by all but health and metrics where `listen` is not loopback. Without one, such an endpoint answers health and metrics only. A secret.";
    ALLOWED_HOSTS = "allowed_hosts", Is::List(&Is::Text(None)), By("[]"), "[millrace.example.com]",
        "Values of `Host` that are answered besides loopback, with or without a port.";
}
pub(super) static ADMIN_KEYS: Section =
    Section::new("The admin endpoint's settings", &[&LISTEN, &TOKEN, &ALLOWED_HOSTS]);

keys! {
    LOG_LEVEL = "level", Is::Word(|| vec!["trace", "debug", "info", "warn", "error"]), By("info"), "debug",
        "Of millrace's own lines; those of its libraries show from `warn`. `MILLRACE_LOG` replaces it.";
    LOG_FORMAT = "format", Is::Word(|| vec!["text", "json"]), By("text"), "json",
        "For people, or one JSON object a line.";
}
pub(super) static LOG_KEYS: Section = Section::new("The log's settings", &[&LOG_LEVEL, &LOG_FORMAT]);

keys! {
    OTLP = "otlp", Is::Text(Some("^https?://[^/?#@\\s]+(/[^?#\\s]*)?$")), Nothing, "\"http://127.0.0.1:4318\"",
        "An OpenTelemetry collector that takes OTLP over HTTP or HTTPS; `/v1/traces` is added. Records whose `traceparent` says that they are sampled get spans, and their outputs carry the trace on. Without it no header is touched. See [traces](operations.md#traces).";
}
pub(super) static TELEMETRY_KEYS: Section = Section::new("Where traces go", &[&OTLP]);

// ---- plugins ----------------------------------------------------------------------------

keys! {
    PATH = "path", Is::Text(None), Required, "../plugins/redact.wasm",
        "A `.wasm` file: a component, or a core module that carries its component type. Relative to the file that it is written in.";
    SHA256 = "sha256", Is::Text(Some("^(sha256:)?[0-9A-Fa-f]{64}$")), Nothing, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "A file with another digest is refused. `sha256sum` and `millrace plugin inspect` print it.";
    PLUGIN_CONFIG = "config", Is::Any, By("{}"), "{ fields: [card] }",
        "Any YAML; reaches the plugin as JSON.";
    PLUGIN_MEMORY = "memory", Is::Size(RangeInclusive::new(64 * KIB, 4 * GIB)), By("64MiB"), "32MiB",
        "Ceiling of one instance. Each worker of each route has instances of its own.";
    TIMEOUT = "timeout", Is::Duration(millis(1, HOUR)), By("1s"), "500ms",
        "Guest CPU time for one record, not above `processing_timeout`; a batch of n records gets n of it.";
    MAX_OUTPUTS = "max_outputs", Is::Number(RangeInclusive::new(1, 1_000_000)), By("1000"), "10",
        "Outputs of one record.";
    MAX_OUTPUT_BYTES = "max_output_bytes", Is::Size(RangeInclusive::new(KIB, GIB)), By("16MiB"), "1MiB",
        "Bytes of one record's outputs.";
    ALLOW = "allow", Is::List(&Is::Word(|| Capability::ALL.map(Capability::as_str).to_vec())), By("[]"), "[metrics]",
        "Capabilities granted. One that the plugin asks for and is not granted is an error. Logging always is granted.";
}
pub(super) static PLUGIN_KEYS: Section = Section::new(
    "A plugin's settings",
    &[&PATH, &SHA256, &PLUGIN_CONFIG, &PLUGIN_MEMORY, &TIMEOUT, &MAX_OUTPUTS, &MAX_OUTPUT_BYTES, &ALLOW],
);

// ---- routes -----------------------------------------------------------------------------

keys! {
    ENABLED = "enabled", Is::Bool, By("true"), "false",
        "`false` keeps the route out; its plugins are still checked.";
    SOURCE = "source", Is::Section(&SOURCE_KEYS), Required, "{ topics: [orders], start: earliest }",
        "Where the records come from.";
    PIPELINE = "pipeline", Is::List(&Is::Section(&STEP_KEYS)), By("[]"), "[{ plugin: redact }]",
        "Plugins, in order.";
    SHADOW = "shadow", Is::Section(&SHADOW_KEYS), Nothing, "{ pipeline: [{ plugin: redact-next }], sample: 10 }",
        "A second set of plugins, which the same records go through beside the first. What it makes is sent nowhere: it is compared with what the first makes, and the differences are counted. See [the shadow](shadow.md).";
    DESTINATIONS = "destinations", Is::List(&Is::Section(&DESTINATION_KEYS)), Required, "[{ topic: orders.paid }]",
        "Where the records go, at least one. A record that no plugin sends anywhere goes to each of them that is a `default`, all in one transaction.";
    DELIVERY = "delivery", Is::Word(|| Delivery::ALL.map(Delivery::as_str).to_vec()), By("exactly_once"), "at_least_once",
        "What is promised: outputs, dead letters and offsets in one transaction; offsets after all outputs; offsets before any output.";
    TRANSACTION = "transaction", Is::Section(&TRANSACTION_KEYS), By("{}"), "{ interval: 50ms, records: 10000, bytes: 8MiB }",
        "Upper bounds of one transaction, whichever comes first. A thin flow commits as soon as nothing more is there. In the other delivery modes they bound what one commit of offsets covers.";
    COMMIT_INTERVAL = "commit_interval", Is::Duration(millis(1, HOUR)), Nothing, "1s",
        "Short for `transaction.interval`.";
    BATCH = "batch", Is::Section(&BATCH_KEYS), By("{}"), "{ records: 256, bytes: 128KiB }",
        "Upper bounds of one plugin call.";
    WORKERS = "workers", Is::Number(RangeInclusive::new(1, 512)), By("1"), "2",
        "Consumers in the group, in this process, each on a thread of its own with its own producer and plugin instances. More than partitions stand idle. On a change only the share of those that come or go moves.";
    PARALLELISM = "parallelism", Is::Number(RangeInclusive::new(1, 64)), By("1"), "4",
        "Sets of plugin instances in each worker, which process records at the same time, those of one partition too: for plugins that take longer than all else. Order and what is promised stay as with one. More than the cores that are free for them are no use. See [slow plugins](performance.md#slow-plugins).";
    ON_ERROR = "on_error", Is::OneOf(&[Is::Word(|| vec!["stop", "skip"]), Is::Section(&DEAD_LETTER_KEYS), Is::Section(&RETRY_THEN_KEYS)]), By("stop"), "{ dead_letter: orders.dead }",
        "What happens to a record at fault: its partition stops before it, it is passed by and counted, it goes to a dead-letter topic in the same transaction, or it is tried again first.";
    ON_PARTITION_CHANGE = "on_partition_change", Is::Word(|| vec!["follow", "stop"]), By("follow"), "stop",
        "What happens where a destination's topic has another number of partitions than before, so that a key may go to another one: the route goes by it from the next transaction on, or it fails until `millrace restart` accepts it.";
    LAG_ALERT = "lag_alert", Is::OneOf(&[Is::Duration(millis(1, u64::MAX)), Is::Number(RangeInclusive::new(1, u64::MAX))]), Nothing, "60s",
        "When the worst partition owned here is so old, or so many records, behind for 30 s, that is logged once and `millrace_lag_alert` is 1, until it is below the half. See [lag](metrics.md#lag).";
}
pub(super) static ROUTE_KEYS: Section = Section::new(
    "A route's settings",
    &[
        &ENABLED,
        &SOURCE,
        &PIPELINE,
        &SHADOW,
        &DESTINATIONS,
        &DELIVERY,
        &TRANSACTION,
        &COMMIT_INTERVAL,
        &BATCH,
        &WORKERS,
        &PARALLELISM,
        &ON_ERROR,
        &ON_PARTITION_CHANGE,
        &LAG_ALERT,
    ],
);
pub(super) static DEFAULT_KEYS: Section = Section::new(
    "What all routes share",
    &[
        &ENABLED,
        &DELIVERY,
        &TRANSACTION,
        &COMMIT_INTERVAL,
        &BATCH,
        &WORKERS,
        &PARALLELISM,
        &ON_ERROR,
        &ON_PARTITION_CHANGE,
        &LAG_ALERT,
    ],
);

keys! {
    SHADOW_PIPELINE = "pipeline", Is::List(&Is::Section(&STEP_KEYS)), Required, "[{ plugin: redact, config: { fields: [card, ip] } }]",
        "The plugins, in order, as in the route's own `pipeline`.";
    SHADOW_SAMPLE = "sample", Is::Number(RangeInclusive::new(1, 1_000_000)), By("1"), "10",
        "One source record in so many goes through them.";
}
pub(super) static SHADOW_KEYS: Section =
    Section::new("A second set of plugins, to compare", &[&SHADOW_PIPELINE, &SHADOW_SAMPLE]);

keys! {
    TOPICS = "topics", Is::OneOrList(&SELECTOR), Required, "[orders, \"^orders\\\\.in\\\\..*\"]",
        "Names, and patterns: regular expressions that start with `^`, in Rust's dialect, which have to match the whole name. A single one needs no list. A pattern never matches an internal topic (`__…`), a dead-letter topic of any route, or a topic that the route writes.";
    EXCLUDE = "exclude", Is::OneOrList(&SELECTOR), By("[]"), "[\"^orders\\\\.in\\\\.test.*\"]",
        "Names and patterns left out.";
    GROUP = "group", Is::Text(None), Said("`<prefix>.<route>`"), "paid-orders",
        "The consumer group. Another name is another position: the route begins at `start` again.";
    START = "start", Is::Text(Some("^(earliest|latest|[0-9]{4}-.*)$")), Required, "2026-01-31T00:00:00Z",
        "Where a group that has never committed begins: `earliest`, `latest`, or an RFC 3339 time.";
    ON_OFFSET_LOST = "on_offset_lost", Is::Word(|| vec!["stop", "earliest", "latest"]), By("stop"), "earliest",
        "What to do where the log no longer holds the committed offset. What is passed by is counted.";
    SOURCE_CONSUMER = "consumer", Is::Properties, By("{}"), "{ max.poll.interval.ms: 120000 }",
        "librdkafka properties of this route's consumers.";
}
pub(super) static SOURCE_KEYS: Section =
    Section::new("A source", &[&TOPICS, &EXCLUDE, &GROUP, &START, &ON_OFFSET_LOST, &SOURCE_CONSUMER]);

keys! {
    STEP_PLUGIN = "plugin", Is::Text(NAME), Required, "redact",
        "The plugin's name in `plugins`.";
    STEP_WHEN = "when", Is::Text(None), Nothing, "\"value.country == 'DE'\"",
        "A condition in CEL on the record as it now is: `key`, `value` (its JSON), `headers`, `topic`, `partition`, `offset`, `timestamp`. Where it is false the record goes past this step; where it cannot be told, the record is at fault as `refused`.";
    STEP_CONFIG = "config", Is::Any, Said("the plugin's own `config`"), "{ fields: [card] }",
        "In the place of the plugin's own, in this step.";
}
pub(super) static STEP_KEYS: Section = Section::new("A step of a pipeline", &[&STEP_PLUGIN, &STEP_CONFIG, &STEP_WHEN]);

keys! {
    TOPIC_KEY = "topic", Is::Text(TOPIC), Said("none: this or `topic_pattern`"), "orders.paid",
        "The topic.";
    TOPIC_PATTERN = "topic_pattern", Is::Text(None), Said("none: this or `topic`"), "\"^orders\\\\.region\\\\.[a-z]+$\"",
        "A regular expression: a plugin names the topic, which must match as a whole. Needs a `name`.";
    DESTINATION_NAME = "name", Is::Text(TOPIC), Said("the topic's"), "per-region",
        "Its name for plugins, tests and metrics.";
    PARTITION = "partition", Is::Word(|| Partitioning::ALL.map(Partitioning::as_str).to_vec()), By("key"), "source",
        "How the partition is chosen. `key`: as the Java client does. `source`: the source's partition number. `plugin`: what a plugin sets, else by key.";
    DESTINATION_WHEN = "when", Is::Text(None), Nothing, "\"has(value.region) && value.region == 'eu'\"",
        "A condition in CEL, as that of a step: only records for which it is true go here. One that goes nowhere is counted as filtered.";
    DESTINATION_DEFAULT = "default", Is::Bool, By("true"), "false",
        "`false`: only records that a plugin sends there.";
}
pub(super) static DESTINATION_KEYS: Section = Section::new(
    "A destination",
    &[&TOPIC_KEY, &TOPIC_PATTERN, &DESTINATION_NAME, &PARTITION, &DESTINATION_DEFAULT, &DESTINATION_WHEN],
);

keys! {
    INTERVAL = "interval", Is::Duration(millis(1, HOUR)), By("100ms"), "50ms",
        "Longest time in which records of one transaction are gathered; below `transaction.timeout.ms`.";
    RECORDS = "records", Is::Number(RangeInclusive::new(1, 10_000_000)), By("50000"), "10000",
        "Most source records of one transaction.";
    BYTES = "bytes", Is::Size(RangeInclusive::new(KIB, 16 * GIB)), Said("`32MiB`, or `memory` if that is less"), "8MiB",
        "Most bytes of source records, not above `memory`; one record may be larger. A worker's share of `memory` can bound it further.";
}
pub(super) static TRANSACTION_KEYS: Section =
    Section::new("The bounds of a transaction", &[&INTERVAL, &RECORDS, &BYTES]);

keys! {
    BATCH_RECORDS = "records", Is::Number(RangeInclusive::new(1, 65_536)), By("512"), "256",
        "Most records of one plugin call.";
    BATCH_BYTES = "bytes", Is::Size(RangeInclusive::new(KIB, 256 * MIB)), By("256KiB"), "128KiB",
        "Most bytes of one plugin call; one record may be larger.";
}
pub(super) static BATCH_KEYS: Section = Section::new("The bounds of a plugin call", &[&BATCH_RECORDS, &BATCH_BYTES]);

keys! {
    DEAD_LETTER = "dead_letter", Is::Text(TOPIC), Required, "orders.dead",
        "The topic that it goes to, as it came, with headers that say why.";
    RETRY = "retry", Is::Section(&RETRY_KEYS), Required, "{ attempts: 5, backoff: 200ms, max_backoff: 5s }",
        "How often the record is tried again first. Its partition waits, with no transaction open.";
    THEN = "then", Is::OneOf(&[Is::Word(|| vec!["stop", "skip"]), Is::Section(&DEAD_LETTER_KEYS)]), By("stop"), "{ dead_letter: orders.dead }",
        "What happens once the tries are spent.";
    ATTEMPTS = "attempts", Is::Number(RangeInclusive::new(1, 1_000_000)), By("3"), "5",
        "Tries besides the first.";
    BACKOFF = "backoff", Is::Duration(millis(1, HOUR)), By("100ms"), "200ms",
        "The wait before the first of them. It doubles each time.";
    MAX_BACKOFF = "max_backoff", Is::Duration(millis(1, HOUR)), Said("`10s`, or `backoff` if that is more"), "5s",
        "The longest wait.";
}
pub(super) static DEAD_LETTER_KEYS: Section = Section::new("A dead-letter topic", &[&DEAD_LETTER]);
/// All that a mapping under `on_error` may hold, of which not all go together.
pub(super) static ON_ERROR_KEYS: Section =
    Section::new("What happens to a record at fault", &[&DEAD_LETTER, &RETRY, &THEN]);
pub(super) static RETRY_THEN_KEYS: Section = Section::new("Tries, and what follows them", &[&RETRY, &THEN]);
pub(super) static RETRY_KEYS: Section = Section::new("How often to try again", &[&ATTEMPTS, &BACKOFF, &MAX_BACKOFF]);

// ---- tests ------------------------------------------------------------------------------

const PARTITION_NUMBER: Is = Is::Number(RangeInclusive::new(0, 999_999));
const PARTITION_COUNT: Is = Is::Number(RangeInclusive::new(1, 1_000_000));
const HEADERS: Is = Is::OneOf(&[Is::ByName(&Is::Any), Is::List(&Is::List(&Is::Any))]);
const TIMESTAMP: Is = Is::OneOf(&[Is::Number(RangeInclusive::new(0, i64::MAX as u64)), Is::Any]);

keys! {
    TEST_NAME = "name", Is::Text(None), Required, "test traffic is dropped",
        "What it shows.";
    TEST_ROUTE = "route", Is::Text(NAME), Required, "orders",
        "The route that it tests.";
    TEST_PARTITIONS = "partitions", Is::OneOf(&[PARTITION_COUNT, Is::ByName(&PARTITION_COUNT)]), Nothing, "{ orders.paid: 12 }",
        "How many partitions topics have: a number for all, or by topic.";
    GIVEN = "given", Is::List(&Is::Section(&GIVEN_KEYS)), Required, "[{ key: u1, value: { status: test } }]",
        "The records that the route is given, in order.";
    EXPECT = "expect", Is::OneOf(&[Is::List(&Is::Section(&EXPECTED_KEYS)), Is::ByName(&Is::List(&Is::Section(&EXPECTED_BY_NAME_KEYS)))]), Required, "[{ destination: orders.paid, value: { status: paid } }]",
        "All outputs in order, or those of the destinations that are named. Only what is named in one is compared.";
    FAULTS = "faults", Is::List(&Is::Section(&FAULT_KEYS)), By("[]"), "[{ record: 0, code: refused, then: dead_letter }]",
        "The records at fault, in order. Only what is named in one is compared.";
}
pub(super) static TEST_KEYS: Section =
    Section::new("A test", &[&TEST_NAME, &TEST_ROUTE, &TEST_PARTITIONS, &GIVEN, &EXPECT, &FAULTS]);

keys! {
    GIVEN_KEY = "key", Is::Any, By("null"), "u1",
        "Text is itself, `{ base64: … }` its bytes, null is null; any other YAML is its JSON.";
    GIVEN_VALUE = "value", Is::Any, By("null"), "{ status: paid }",
        "As `key`.";
    GIVEN_HEADERS = "headers", HEADERS, By("{}"), "{ trace: \"1\" }",
        "`{ NAME: VALUE }`, or `[[NAME, VALUE], …]` where a name repeats.";
    GIVEN_TIMESTAMP = "timestamp", TIMESTAMP, Nothing, "2026-01-31T00:00:00Z",
        "Milliseconds since 1970, or an RFC 3339 time.";
    GIVEN_TOPIC = "topic", Is::Text(TOPIC), Said("the first that the source names"), "orders",
        "The topic that it comes from.";
    GIVEN_PARTITION = "partition", PARTITION_NUMBER, By("0"), "3",
        "The partition that it comes from.";
    OFFSET = "offset", Is::Number(RangeInclusive::new(0, i64::MAX as u64)), Said("the next of its partition, from 0"), "7",
        "Its offset.";
}
pub(super) static GIVEN_KEYS: Section = Section::new(
    "A record that a route is given",
    &[&GIVEN_KEY, &GIVEN_VALUE, &GIVEN_HEADERS, &GIVEN_TIMESTAMP, &GIVEN_TOPIC, &GIVEN_PARTITION, &OFFSET],
);

keys! {
    EXPECTED_DESTINATION = "destination", Is::Text(TOPIC), Nothing, "orders.paid",
        "The destination's name, or the dead-letter topic.";
    EXPECTED_TOPIC = "topic", Is::Text(TOPIC), Nothing, "orders.region.eu",
        "The topic.";
    EXPECTED_PARTITION = "partition", PARTITION_NUMBER, Nothing, "5",
        "The partition; the test has to say how many there are, with `partitions`.";
    EXPECTED_KEY = "key", Is::Any, Nothing, "u1",
        "Text, `{ base64: … }` and null as they are; other YAML is compared as JSON, by the fields that are named.";
    EXPECTED_VALUE = "value", Is::Any, Nothing, "{ status: paid }",
        "As `key`.";
    EXPECTED_HEADERS = "headers", HEADERS, Nothing, "{ trace: \"1\" }",
        "Headers that have to be there.";
    EXPECTED_TIMESTAMP = "timestamp", TIMESTAMP, Nothing, "2026-01-31T00:00:00Z",
        "Milliseconds since 1970, or an RFC 3339 time.";
    EXACT = "exact", Is::Bool, By("false"), "true",
        "JSON has no other fields than those named, and the headers are all headers, in order.";
}
pub(super) static EXPECTED_KEYS: Section = Section::new(
    "An output",
    &[
        &EXPECTED_DESTINATION,
        &EXPECTED_TOPIC,
        &EXPECTED_PARTITION,
        &EXPECTED_KEY,
        &EXPECTED_VALUE,
        &EXPECTED_HEADERS,
        &EXPECTED_TIMESTAMP,
        &EXACT,
    ],
);
pub(super) static EXPECTED_BY_NAME_KEYS: Section = Section::new(
    "An output of a destination",
    &[
        &EXPECTED_TOPIC,
        &EXPECTED_PARTITION,
        &EXPECTED_KEY,
        &EXPECTED_VALUE,
        &EXPECTED_HEADERS,
        &EXPECTED_TIMESTAMP,
        &EXACT,
    ],
);

/// Codes of faults as a test names them; the last is a stop that is nobody's fault.
pub(super) fn fault_codes() -> Vec<&'static str> {
    let faults = crate::model::FaultCode::ALL.map(crate::model::FaultCode::as_str);
    faults.into_iter().chain(["no_counterpart"]).collect()
}

keys! {
    FAULT_RECORD = "record", Is::Number(RangeInclusive::new(0, u32::MAX as u64)), Nothing, "0",
        "Which of `given`, from 0.";
    FAULT_CODE = "code", Is::Word(fault_codes), Nothing, "refused",
        "The fault's code.";
    FAULT_PLUGIN = "plugin", Is::Text(NAME), Nothing, "redact",
        "The plugin at fault.";
    FAULT_MESSAGE = "message", Is::Text(None), Nothing, "not JSON",
        "A part of its message.";
    FAULT_THEN = "then", Is::Word(|| vec!["stop", "skip", "dead_letter"]), Nothing, "dead_letter",
        "What is done with the record.";
    FAULT_ATTEMPTS = "attempts", Is::Number(RangeInclusive::new(1, u32::MAX as u64)), Nothing, "4",
        "How often it was tried.";
}
pub(super) static FAULT_KEYS: Section =
    Section::new("A fault", &[&FAULT_RECORD, &FAULT_CODE, &FAULT_PLUGIN, &FAULT_MESSAGE, &FAULT_THEN, &FAULT_ATTEMPTS]);
