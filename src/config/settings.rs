//! What the operator meant. Values here cannot be wrong: whoever holds a [`Settings`] checks nothing again.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;

use crate::model::{DestinationName, Digest, GroupId, PluginName, RouteName, TopicName};
use crate::policy::{Condition, OnError, Partitioning};

/// A whole configuration, merged from all its files.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name of this process among its group's, where one was written: membership is then static.
    pub instance: Option<String>,
    /// From the first SIGTERM to the exit; default 25 s.
    pub shutdown_timeout: Duration,
    /// Plugin work on what one transaction covers; default 30 s, below `max.poll.interval.ms`.
    pub processing_timeout: Duration,
    /// Compiled plugins; default below the user's cache directory.
    pub cache_dir: Option<PathBuf>,
    /// How changes of files are noticed.
    pub watch: Watch,
    /// Ceiling in bytes for what is buffered, shared out over the routes; default 1 GiB.
    pub memory: u64,
    /// Kafka.
    pub kafka: Kafka,
    /// The admin endpoint.
    pub admin: Admin,
    /// Logging.
    pub log: Log,
    /// Traces.
    pub telemetry: Telemetry,
    /// Plugins by name.
    pub plugins: BTreeMap<PluginName, Plugin>,
    /// Routes by name, the disabled ones too.
    pub routes: BTreeMap<RouteName, Route>,
}

/// How changes of configuration and plugin files are noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// Which way.
    pub method: WatchMethod,
    /// Quiet time before a change is taken up; default 250 ms.
    pub debounce: Duration,
    /// How often files are looked at where events do not work; default 2 s.
    pub interval: Duration,
}

/// Which way changes are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchMethod {
    /// Events where they work, else polling.
    Auto,
    /// File events.
    Events,
    /// Polling.
    Poll,
    /// Not at all.
    Off,
}

/// librdkafka properties by their own names, in a fixed order.
pub type Properties = BTreeMap<String, PropertyValue>;

/// A librdkafka property's value. A secret one shows as `[redacted]`.
#[derive(Clone, PartialEq, Eq)]
pub struct PropertyValue {
    text: String,
    secret: bool,
}

impl PropertyValue {
    /// A value that may be shown.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), secret: false }
    }
    /// A value that is never shown.
    pub fn secret(text: impl Into<String>) -> Self {
        Self { text: text.into(), secret: true }
    }
    /// The value itself; not for showing.
    pub fn reveal(&self) -> &str {
        &self.text
    }
    /// Whether it is a secret.
    pub fn is_secret(&self) -> bool {
        self.secret
    }
}

impl fmt::Debug for PropertyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl fmt::Display for PropertyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.secret { "[redacted]" } else { &self.text })
    }
}

/// The connection to Kafka.
#[derive(Debug, Clone, PartialEq)]
pub struct Kafka {
    /// Begins every default group and every transactional id; default `millrace`.
    pub prefix: String,
    /// For every client; `bootstrap.servers` among them.
    pub common: Properties,
    /// For consumers only.
    pub consumer: Properties,
    /// For producers only.
    pub producer: Properties,
}

/// The admin endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// Default 127.0.0.1:9400. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Needed for what changes state, and for all but health and metrics where `listen` is not loopback.
    pub token: Option<PropertyValue>,
    /// Values of `Host` that are answered besides loopback.
    pub allowed_hosts: Vec<String>,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `trace`, `debug`, `info`, `warn` or `error`; default `info`.
    pub level: LogLevel,
    /// Default text.
    pub format: LogFormat,
}

/// Traces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    /// The collector that spans are exported to, `http://HOST[:PORT][/PATH]`; none: traces are not continued.
    pub otlp: Option<String>,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// For people or for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a plugin is configured with: any YAML, which reaches it as JSON.
#[derive(Clone, PartialEq)]
pub struct PluginConfig {
    /// The JSON.
    pub json: serde_json::Value,
    /// Whether any of it came from `${file:…}`.
    pub secret: bool,
}

// It may hold what came from `${file:…}`: it is never printed.
impl fmt::Debug for PluginConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PluginConfig")
    }
}

/// A plugin, as it is named in `plugins:`.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// Its name.
    pub name: PluginName,
    /// The `.wasm` file: a component, or a core module that carries its component type.
    pub path: PathBuf,
    /// A mismatch is refused.
    pub sha256: Option<Digest>,
    /// `{}` where none is written.
    pub config: PluginConfig,
    /// Ceilings.
    pub limits: PluginLimits,
    /// Capabilities granted, each once and in order; none by default.
    pub allow: Vec<Capability>,
}

/// Ceilings of one instance of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PluginLimits {
    /// Linear memory in bytes; default 64 MiB.
    pub memory: u64,
    /// Guest CPU time for one record; a batch of n gets n of it. Default 1 s.
    pub timeout: Duration,
    /// Outputs that one record may have (`max_outputs`); default 1,000.
    pub outputs: u32,
    /// Bytes that the outputs of one record may have (`max_output_bytes`); default 16 MiB.
    pub output_bytes: u64,
}

/// A capability that a plugin may be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Capability {
    Metrics,
    Clock,
    Random,
}

impl Capability {
    /// Every capability.
    pub const ALL: [Self; 3] = [Self::Metrics, Self::Clock, Self::Random];

    /// Its word in `allow`, which is its interface's name too.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Clock => "clock",
            Self::Random => "random",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A route.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its name.
    pub name: RouteName,
    /// Whether it runs; default true.
    pub enabled: bool,
    /// Where records come from.
    pub source: Source,
    /// Plugins in order; may be empty.
    pub pipeline: Vec<PipelineStep>,
    /// A second set of plugins, which is compared with the first.
    pub shadow: Option<Shadow>,
    /// Where records go; at least one.
    pub destinations: Vec<Destination>,
    /// What is promised; default exactly once.
    pub delivery: Delivery,
    /// Upper bounds of one transaction (or of one commit, in the other modes).
    pub transaction: Transaction,
    /// Upper bounds of one plugin call.
    pub batch: Batch,
    /// Consumers in the group, in this process; default 1.
    pub workers: u16,
    /// Sets of plugin instances in each worker, at work at the same time; default 1.
    pub parallelism: u16,
    /// What happens to a record at fault; default stop.
    pub on_error: OnError,
    /// What happens where a destination has more or fewer partitions than before; default follow.
    pub on_partition_change: OnPartitionChange,
    /// When lag raises an alert.
    pub lag_alert: Option<LagAlert>,
}

/// Where a route's records come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Topics, and patterns of topics.
    pub topics: Vec<TopicSelector>,
    /// Topics left out.
    pub exclude: Vec<TopicSelector>,
    /// The consumer group; default `<prefix>.<route>`.
    pub group: GroupId,
    /// Where a group that has never committed starts.
    pub start: Start,
    /// What to do where the log no longer holds the committed offset; default stop.
    pub on_offset_lost: OnOffsetLost,
    /// librdkafka properties of this route's consumers.
    pub consumer: Properties,
}

/// A topic, or a pattern of topics.
#[derive(Debug, Clone)]
pub enum TopicSelector {
    /// By name.
    Name(TopicName),
    /// Every topic whose whole name matches (the regex is anchored at both ends already).
    Pattern(Regex),
}

/// Two patterns are the same if they are written the same.
impl PartialEq for TopicSelector {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name(name), Self::Name(other)) => name == other,
            (Self::Pattern(pattern), Self::Pattern(other)) => pattern.as_str() == other.as_str(),
            (Self::Name(_), Self::Pattern(_)) | (Self::Pattern(_), Self::Name(_)) => false,
        }
    }
}

impl fmt::Display for TopicSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Pattern(pattern) => pattern.fmt(f),
        }
    }
}

impl TopicSelector {
    /// Whether it selects `topic`.
    pub fn matches(&self, topic: &str) -> bool {
        match self {
            Self::Name(name) => name.as_str() == topic,
            Self::Pattern(pattern) => pattern.is_match(topic),
        }
    }
}

/// Where a group that has never committed starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the beginning.
    Earliest,
    /// At the end as it is when the route first starts.
    Latest,
    /// At the first record whose timestamp is this or later, ms since 1970-01-01 UTC.
    At(i64),
}

/// What to do where the log no longer holds the committed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnOffsetLost {
    /// Stop that partition.
    Stop,
    /// Go on at the beginning, counting what was lost.
    Earliest,
    /// Go on at the end, counting what was lost.
    Latest,
}

/// What to do where a destination's topic has another number of partitions than before, so that a key may go elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnPartitionChange {
    /// Go by the new number from the next transaction on.
    #[default]
    Follow,
    /// Stop the route until somebody accepts it.
    Stop,
}

impl OnPartitionChange {
    /// As they are written.
    pub const ALL: [(&'static str, Self); 2] = [("follow", Self::Follow), ("stop", Self::Stop)];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Follow => "follow",
            Self::Stop => "stop",
        }
    }
}

/// One step of a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineStep {
    /// A plugin of `plugins:`.
    pub plugin: PluginName,
    /// Its configuration in this step: the step's own, else the plugin's.
    pub config: PluginConfig,
    /// Only records for which this holds go through it; the others go past it.
    pub when: Option<Condition>,
}

/// A second set of plugins: what it makes of a route's records is only compared with what the first makes.
#[derive(Debug, Clone, PartialEq)]
pub struct Shadow {
    /// Plugins in order; may be empty.
    pub pipeline: Vec<PipelineStep>,
    /// One source record in so many goes through them; default 1, all.
    pub one_in: u32,
}

/// Where a route's records go.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    /// Its name for plugins.
    pub name: DestinationName,
    /// The topic, or the pattern that a plugin's topic must match.
    pub target: Target,
    /// How the partition is chosen; default by key.
    pub partition: Partitioning,
    /// Whether items that no plugin sends anywhere go here; default true.
    pub default: bool,
    /// Only records for which this holds go here.
    pub when: Option<Condition>,
}

/// The topic of a destination.
#[derive(Debug, Clone)]
pub enum Target {
    /// This one.
    Topic(TopicName),
    /// The one that the plugin names, which must match (the whole name).
    Pattern(Regex),
}

/// Two patterns are the same if they are written the same.
impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Topic(topic), Self::Topic(other)) => topic == other,
            (Self::Pattern(pattern), Self::Pattern(other)) => pattern.as_str() == other.as_str(),
            (Self::Topic(_), Self::Pattern(_)) | (Self::Pattern(_), Self::Topic(_)) => false,
        }
    }
}

/// What a route promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Outputs and offsets in one transaction.
    ExactlyOnce,
    /// Offsets commit after every output is acknowledged.
    AtLeastOnce,
    /// Offsets commit before any output is sent.
    AtMostOnce,
}

impl Delivery {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ExactlyOnce, Self::AtLeastOnce, Self::AtMostOnce];

    /// As the YAML spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExactlyOnce => "exactly_once",
            Self::AtLeastOnce => "at_least_once",
            Self::AtMostOnce => "at_most_once",
        }
    }
}

/// Upper bounds of one transaction, whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// Default 100 ms.
    pub interval: Duration,
    /// Source records; default 50,000.
    pub records: u32,
    /// Bytes of source records; default 32 MiB.
    pub bytes: u64,
}

/// Upper bounds of one plugin call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Default 512.
    pub records: u32,
    /// Default 256 KiB (one record may be larger).
    pub bytes: u64,
}

/// When lag raises an alert: the worst partition owned here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LagAlert {
    /// By age.
    Time(Duration),
    /// By count.
    Records(u64),
}

/// Shared settings of one route with those of the process that it needs.
pub type SharedSettings = Arc<Settings>;
