//! What may be written: mirrors the YAML, and nothing else. Each value has the right type and spelling; whether they
//! make sense together is `meaning`'s.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use regex::RegexBuilder;

use super::decode::{
    At, Fields, boolean, choice, did_you_mean, duration, entries, json, list, non_empty, number, scalar, shown, size,
    text, wrong_type,
};
use super::problem::{Problem, Problems};
use super::properties::{RawProperty, canonical};
use super::settings::{
    Capability, Delivery, LagAlert, LogFormat, LogLevel, OnOffsetLost, PluginConfig, PropertyValue, Start, Target,
    TopicSelector, WatchMethod,
};
use super::source::{Place, hides_value};
use super::test_cases::{RawTest, test};
use super::tree::{Entry, Node, Typed, Value};
use super::units::parse_duration;
use crate::model::{DestinationName, Digest, GroupId, InvalidName, PluginName, RouteName, TopicName};
use crate::policy::{Disposition, OnError, Partitioning, Retry};

/// Everything that is written in all files.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) instance: Option<At<String>>,
    pub(super) shutdown_timeout: Option<At<Duration>>,
    pub(super) processing_timeout: Option<At<Duration>>,
    pub(super) cache_dir: Option<PathBuf>,
    pub(super) watch: RawWatch,
    pub(super) memory: Option<At<u64>>,
    pub(super) kafka: RawKafka,
    pub(super) admin: RawAdmin,
    pub(super) log_level: Option<LogLevel>,
    pub(super) log_format: Option<LogFormat>,
    pub(super) plugins: Vec<RawPlugin>,
    pub(super) defaults: RawOptions,
    pub(super) routes: Vec<RawRoute>,
    pub(super) tests: Vec<RawTest>,
    /// Whether there are routes, even if wrong ones.
    pub(super) has_routes: bool,
    /// Where each top-level key that may appear once appeared first.
    once: HashMap<String, Place>,
}

#[derive(Debug, Default)]
pub(super) struct RawWatch {
    pub(super) method: Option<WatchMethod>,
    pub(super) debounce: Option<Duration>,
    pub(super) interval: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct RawKafka {
    /// The key `kafka`, if it is there.
    pub(super) place: Option<Place>,
    /// Whether the brokers are written, even if wrongly.
    pub(super) has_servers: bool,
    pub(super) prefix: Option<String>,
    pub(super) common: Vec<RawProperty>,
    pub(super) consumer: Vec<RawProperty>,
    pub(super) producer: Vec<RawProperty>,
}

#[derive(Debug, Default)]
pub(super) struct RawAdmin {
    pub(super) listen: Option<At<SocketAddr>>,
    pub(super) token: Option<PropertyValue>,
    pub(super) allowed_hosts: Vec<String>,
}

#[derive(Debug)]
pub(super) struct RawPlugin {
    pub(super) name: At<PluginName>,
    pub(super) path: Option<At<PathBuf>>,
    pub(super) sha256: Option<Digest>,
    pub(super) config: Option<At<PluginConfig>>,
    pub(super) memory: Option<u64>,
    pub(super) timeout: Option<At<Duration>>,
    pub(super) outputs: Option<u32>,
    pub(super) output_bytes: Option<u64>,
    pub(super) allow: Option<At<Vec<Capability>>>,
}

/// Route keys that `defaults` may hold too.
#[derive(Debug, Default, Clone)]
pub(super) struct RawOptions {
    pub(super) enabled: Option<bool>,
    pub(super) delivery: Option<Delivery>,
    pub(super) interval: Option<At<Duration>>,
    pub(super) records: Option<u32>,
    pub(super) bytes: Option<At<u64>>,
    pub(super) batch_records: Option<u32>,
    pub(super) batch_bytes: Option<u64>,
    pub(super) workers: Option<u16>,
    pub(super) on_error: Option<RawOnError>,
    pub(super) lag_alert: Option<LagAlert>,
}

#[derive(Debug, Clone)]
pub(super) struct RawOnError {
    pub(super) policy: OnError,
    /// Where the dead-letter topic stands.
    pub(super) dead_letter: Option<Place>,
}

#[derive(Debug)]
pub(super) struct RawRoute {
    pub(super) name: At<RouteName>,
    pub(super) source: Option<RawSource>,
    pub(super) pipeline: Vec<RawStep>,
    pub(super) destinations: Vec<RawDestination>,
    pub(super) options: RawOptions,
}

#[derive(Debug)]
pub(super) struct RawSource {
    pub(super) place: Place,
    pub(super) topics: Vec<At<TopicSelector>>,
    pub(super) exclude: Vec<At<TopicSelector>>,
    pub(super) group: Option<At<GroupId>>,
    pub(super) start: Option<Start>,
    pub(super) on_offset_lost: Option<OnOffsetLost>,
    pub(super) consumer: Vec<RawProperty>,
}

#[derive(Debug)]
pub(super) struct RawStep {
    pub(super) plugin: At<String>,
    pub(super) config: Option<At<PluginConfig>>,
}

#[derive(Debug)]
pub(super) struct RawDestination {
    /// The topic or its pattern.
    pub(super) place: Place,
    pub(super) name: At<DestinationName>,
    pub(super) target: Target,
    pub(super) partition: Option<At<Partitioning>>,
    pub(super) default: Option<bool>,
}

const fn seconds(first: u64, last: u64) -> RangeInclusive<Duration> {
    Duration::from_secs(first)..=Duration::from_secs(last)
}
const HOUR: Duration = Duration::from_secs(3_600);
const MILLISECOND: Duration = Duration::from_millis(1);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Raw {
    /// Adds what one file holds; answers whether it could be made out at all.
    pub(super) fn add(&mut self, root: &Node, problems: &mut Problems) -> bool {
        let Some(mut fields) = Fields::of(root, &root.place, "a mapping of settings", problems) else { return false };
        let mut once = |this: &mut Self, key: &'static str, problems: &mut Problems| {
            let entry = fields.entry(key)?;
            this.only_once(entry, problems).then_some(entry)
        };
        if let Some(entry) = once(self, "instance", problems) {
            self.instance = instance(&entry.value, problems);
        }
        if let Some(entry) = once(self, "shutdown_timeout", problems) {
            self.shutdown_timeout = duration(&entry.value, seconds(1, 600), problems);
        }
        if let Some(entry) = once(self, "processing_timeout", problems) {
            self.processing_timeout = duration(&entry.value, Duration::from_millis(100)..=HOUR, problems);
        }
        if let Some(entry) = once(self, "cache_dir", problems) {
            self.cache_dir = path(&entry.value, "a folder", problems).map(|path| path.value);
        }
        if let Some(entry) = once(self, "watch", problems) {
            self.watch = watch(entry, problems);
        }
        if let Some(entry) = once(self, "memory", problems) {
            self.memory = size(&entry.value, 16 * MIB..=1024 * GIB, problems);
        }
        if let Some(entry) = once(self, "kafka", problems) {
            self.kafka = kafka(entry, problems);
        }
        if let Some(entry) = once(self, "admin", problems) {
            self.admin = admin(entry, problems);
        }
        if let Some(entry) = once(self, "log", problems) {
            (self.log_level, self.log_format) = log(entry, problems);
        }
        if let Some(entry) = once(self, "defaults", problems) {
            self.defaults = defaults(entry, problems);
        }
        fields.not_yet("telemetry", problems);
        self.add_plugins(&mut fields, problems);
        self.add_routes(&mut fields, problems);
        self.add_tests(&mut fields, problems);
        fields.finish(problems);
        true
    }

    fn only_once(&mut self, entry: &Entry, problems: &mut Problems) -> bool {
        let Some(first) = self.once.get(&entry.key) else {
            self.once.insert(entry.key.clone(), entry.key_place.clone());
            return true;
        };
        let message = format!("`{}` is given in two files", entry.key);
        let problem = Problem::at(&entry.key_place, message).code("duplicate_key").related(first, "first given here");
        problems.push(problem.help("keep one: only `routes`, `plugins` and `tests` add up over files"));
        false
    }

    fn add_plugins(&mut self, fields: &mut Fields<'_>, problems: &mut Problems) {
        let Some(node) = fields.get("plugins") else { return };
        for entry in by_name(node, "plugin", problems) {
            let plugin = plugin(entry, problems);
            let Some(plugin) = plugin else { continue };
            match self.plugins.iter().find(|known| known.name.value == plugin.name.value) {
                Some(first) => problems.push(given_twice("plugin", &entry.key, &entry.key_place, &first.name.place)),
                None => self.plugins.push(plugin),
            }
        }
    }

    fn add_routes(&mut self, fields: &mut Fields<'_>, problems: &mut Problems) {
        let Some(node) = fields.get("routes") else { return };
        let known: HashMap<RouteName, Place> =
            self.routes.iter().map(|route| (route.name.value.clone(), route.name.place.clone())).collect();
        for entry in by_name(node, "route", problems) {
            self.has_routes = true;
            let Some(route) = route(entry, problems) else { continue };
            match known.get(&route.name.value) {
                Some(first) => problems.push(given_twice("route", &entry.key, &entry.key_place, first)),
                None => self.routes.push(route),
            }
        }
    }

    fn add_tests(&mut self, fields: &mut Fields<'_>, problems: &mut Problems) {
        let Some(node) = fields.get("tests") else { return };
        for node in list(node, "a list of tests", problems).unwrap_or_default() {
            let Some(test) = test(node, problems) else { continue };
            match self.tests.iter().find(|known| known.name.value == test.name.value) {
                Some(first) => {
                    problems.push(given_twice("test", &test.name.value, &test.name.place, &first.name.place));
                }
                None => self.tests.push(test),
            }
        }
    }
}

fn given_twice(what: &str, name: &str, again: &Place, first: &Place) -> Problem {
    let message = format!("there are two {what}s named `{name}`");
    Problem::at(again, message).code("duplicate_name").related(first, "first defined here").help("rename one of them")
}

/// The entries of `routes` or `plugins`.
fn by_name<'n>(node: &'n Node, what: &str, problems: &mut Problems) -> &'n [Entry] {
    if let Value::List(_) = node.value {
        let problem = wrong_type(node, &format!("{what}s by their names"));
        problems
            .push(problem.help(format!("write the name of each {what} as its key: `{what}s: {{ NAME: {{ … }} }}`")));
        return &[];
    }
    entries(node, &format!("{what}s by their names"), problems).unwrap_or_default()
}

fn fields<'n>(entry: &'n Entry, what: &str, problems: &mut Problems) -> Option<Fields<'n>> {
    Fields::of(&entry.value, &entry.key_place, what, problems)
}

/// The name, if it can be one.
fn named<T>(text: &At<String>, what: &str, name: Result<T, InvalidName>, problems: &mut Problems) -> Option<At<T>> {
    match name {
        Ok(name) => Some(At::new(name, &text.place)),
        Err(why) => {
            let message = format!("{} cannot be {what}: {why}", text.shown());
            problems.push(Problem::at(&text.place, message).code("invalid_name"));
            None
        }
    }
}

fn key(entry: &Entry) -> At<String> {
    At::new(entry.key.clone(), &entry.key_place)
}

fn instance(node: &Node, problems: &mut Problems) -> Option<At<String>> {
    let text = non_empty(node, "the name of this process", problems)?;
    // It becomes part of transactional ids and group.instance.ids: the rules of route names hold.
    named(&text, "an instance", RouteName::new(&text.value), problems)?;
    Some(text)
}

fn path(node: &Node, what: &str, problems: &mut Problems) -> Option<At<PathBuf>> {
    let text = non_empty(node, what, problems)?;
    let path = node.place.file().folder().join(text.value);
    Some(At::new(path, &text.place))
}

fn watch(entry: &Entry, problems: &mut Problems) -> RawWatch {
    let Some(mut fields) = fields(entry, "how files are watched", problems) else { return RawWatch::default() };
    let methods = [
        ("auto", WatchMethod::Auto),
        ("events", WatchMethod::Events),
        ("poll", WatchMethod::Poll),
        ("off", WatchMethod::Off),
    ];
    let watch = RawWatch {
        method: fields.get("method").and_then(|node| choice(node, &methods, problems)).map(|at| at.value),
        debounce: fields
            .get("debounce")
            .and_then(|node| duration(node, Duration::ZERO..=Duration::from_secs(60), problems))
            .map(|at| at.value),
        interval: fields
            .get("interval")
            .and_then(|node| duration(node, Duration::from_millis(100)..=HOUR, problems))
            .map(|at| at.value),
    };
    fields.finish(problems);
    watch
}

fn kafka(entry: &Entry, problems: &mut Problems) -> RawKafka {
    let mut kafka = RawKafka { place: Some(entry.key_place.clone()), ..RawKafka::default() };
    for entry in entries(&entry.value, "Kafka's settings", problems).unwrap_or_default() {
        match entry.key.as_str() {
            "prefix" => kafka.prefix = prefix(&entry.value, problems),
            "consumer" => kafka.consumer = properties(entry, problems),
            "producer" => kafka.producer = properties(entry, problems),
            name => {
                kafka.has_servers |= canonical(name) == "bootstrap.servers";
                kafka.common.extend(property(entry, problems));
            }
        }
    }
    kafka
}

fn prefix(node: &Node, problems: &mut Problems) -> Option<String> {
    let text = text(node, "a prefix", problems)?;
    named(&text, "a prefix", RouteName::new(&text.value), problems)?;
    Some(text.value)
}

fn properties(entry: &Entry, problems: &mut Problems) -> Vec<RawProperty> {
    let entries = entries(&entry.value, "librdkafka properties", problems).unwrap_or_default();
    entries.iter().filter_map(|entry| property(entry, problems)).collect()
}

fn property(entry: &Entry, problems: &mut Problems) -> Option<RawProperty> {
    let name = &entry.key;
    if let Value::Map(inner) = &entry.value.value {
        let message = format!("`{name}` holds a mapping; a librdkafka property is one word with dots");
        let mut problem = Problem::at(&entry.key_place, message).code("wrong_type");
        if let Some(inner) = inner.first() {
            problem = problem.help(format!("write `{name}.{}: …`", inner.key));
        }
        problems.push(problem);
        return None;
    }
    if let Value::List(_) = entry.value.value {
        problems.push(wrong_type(&entry.value, "one value").help("librdkafka's lists are one text, with commas"));
        return None;
    }
    let scalar = scalar(&entry.value, "a value", problems)?;
    if scalar.typed() == Typed::Null {
        problems
            .push(Problem::at(&entry.key_place, format!("`{name}` has no value")).help("give one, or leave it out"));
        return None;
    }
    let secret = scalar.secret || hides_value(name);
    let value = if secret { PropertyValue::secret(&scalar.text) } else { PropertyValue::plain(&scalar.text) };
    Some(RawProperty { name: At::new(name.clone(), &entry.key_place), value: At::new(value, &entry.value.place) })
}

fn admin(entry: &Entry, problems: &mut Problems) -> RawAdmin {
    let Some(mut fields) = fields(entry, "the admin endpoint's settings", problems) else { return RawAdmin::default() };
    let admin = RawAdmin {
        listen: fields.get("listen").and_then(|node| listen(node, problems)),
        token: fields
            .get("token")
            .and_then(|node| non_empty(node, "a token", problems))
            .map(|token| PropertyValue::secret(token.value)),
        allowed_hosts: fields
            .get("allowed_hosts")
            .and_then(|node| list(node, "a list of host names", problems))
            .unwrap_or_default()
            .iter()
            .filter_map(|node| non_empty(node, "a host name", problems))
            .map(|host| host.value)
            .collect(),
    };
    fields.finish(problems);
    admin
}

fn listen(node: &Node, problems: &mut Problems) -> Option<At<SocketAddr>> {
    let text = text(node, "an address", problems)?;
    let written = text.value.replace("localhost", "127.0.0.1");
    if let Ok(address) = written.parse() {
        return Some(At::new(address, &text.place));
    }
    let help = match written.strip_prefix(':').unwrap_or(&written).parse::<u16>() {
        Ok(port) => format!("write `127.0.0.1:{port}`, or `0.0.0.0:{port}` to be reached from elsewhere"),
        Err(_) => "write an IP address and a port: `127.0.0.1:9400`".to_owned(),
    };
    problems.push(Problem::at(&text.place, format!("{} is not an address to listen on", text.shown())).help(help));
    None
}

fn log(entry: &Entry, problems: &mut Problems) -> (Option<LogLevel>, Option<LogFormat>) {
    let Some(mut fields) = fields(entry, "the log's settings", problems) else { return (None, None) };
    let levels = [
        ("trace", LogLevel::Trace),
        ("debug", LogLevel::Debug),
        ("info", LogLevel::Info),
        ("warn", LogLevel::Warn),
        ("error", LogLevel::Error),
    ];
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let level = fields.get("level").and_then(|node| choice(node, &levels, problems)).map(|at| at.value);
    let format = fields.get("format").and_then(|node| choice(node, &formats, problems)).map(|at| at.value);
    fields.finish(problems);
    (level, format)
}

fn plugin(entry: &Entry, problems: &mut Problems) -> Option<RawPlugin> {
    let name = named(&key(entry), "the name of a plugin", PluginName::new(&entry.key), problems);
    let mut fields = fields(entry, "a plugin's settings", problems)?;
    let file = fields.required("path", "say where the plugin is: `path: ../plugins/NAME.wasm`", problems);
    let file = file.and_then(|node| path(node, "a path", problems));
    let sha256 = fields.get("sha256").and_then(|node| sha256(node, problems));
    let config = fields.get("config").map(|node| plugin_config(node, problems));
    let memory = fields.get("memory").and_then(|node| size(node, 64 * KIB..=4 * GIB, problems));
    let timeout = fields.get("timeout").and_then(|node| duration(node, MILLISECOND..=HOUR, problems));
    let outputs = fields.get("max_outputs").and_then(|node| number(node, 1..=1_000_000, problems));
    let output_bytes = fields.get("max_output_bytes").and_then(|node| size(node, KIB..=GIB, problems));
    let allow = fields.get("allow").map(|node| allow(node, problems));
    fields.finish(problems);
    Some(RawPlugin {
        name: name?,
        path: file,
        sha256,
        config,
        memory: memory.map(|at| at.value),
        timeout,
        outputs: outputs.and_then(|at| u32::try_from(at.value).ok()),
        output_bytes: output_bytes.map(|at| at.value),
        allow,
    })
}

fn sha256(node: &Node, problems: &mut Problems) -> Option<Digest> {
    let text = text(node, "a SHA-256 digest", problems)?;
    let digits = text.value.strip_prefix("sha256:").unwrap_or(&text.value);
    match digits.parse() {
        Ok(digest) => Some(digest),
        Err(_) => {
            let message =
                format!("expected a SHA-256 digest of 64 hexadecimal digits, found {} characters", digits.len());
            problems.push(Problem::at(&text.place, message).help("`sha256sum PLUGIN.wasm` prints it"));
            None
        }
    }
}

fn allow(node: &Node, problems: &mut Problems) -> At<Vec<Capability>> {
    let known = Capability::ALL.map(|capability| (capability.as_str(), capability));
    let nodes = list(node, "a list of capabilities", problems).unwrap_or_default();
    let granted = nodes.iter().filter_map(|node| choice(node, &known, problems)).map(|at| at.value);
    // In whatever order, and however often: the same grants are no change.
    let granted: BTreeSet<Capability> = granted.collect();
    At::new(granted.into_iter().collect(), &node.place)
}

fn defaults(entry: &Entry, problems: &mut Problems) -> RawOptions {
    let Some(mut fields) = fields(entry, "what all routes share", problems) else { return RawOptions::default() };
    let options = options(&mut fields, problems);
    for key in ["source", "pipeline", "destinations"] {
        if let Some(entry) = fields.entry(key) {
            let message = format!("`{key}` cannot be a default: every route has its own");
            problems.push(Problem::at(&entry.key_place, message).code("unknown_key").help("write it in the route"));
        }
    }
    fields.finish(problems);
    options
}

fn route(entry: &Entry, problems: &mut Problems) -> Option<RawRoute> {
    let name = named(&key(entry), "the name of a route", RouteName::new(&entry.key), problems);
    let mut fields = fields(entry, "a route's settings", problems)?;
    let from = "say where its records come from: `source: { topics: [TOPIC], start: earliest }`";
    fields.required("source", from, problems);
    let source = fields.entry("source").and_then(|entry| source(entry, problems));
    let pipeline = match fields.get("pipeline").and_then(|node| list(node, "a list of steps", problems)) {
        Some(nodes) => nodes.iter().filter_map(|node| step(node, problems)).collect(),
        None => Vec::new(),
    };
    fields.required("destinations", "say where its records go: `destinations: [{ topic: TOPIC }]`", problems);
    let destinations = fields.entry("destinations").map_or_else(Vec::new, |entry| destinations(entry, problems));
    let options = options(&mut fields, problems);
    fields.finish(problems);
    Some(RawRoute { name: name?, source, pipeline, destinations, options })
}

fn options(fields: &mut Fields<'_>, problems: &mut Problems) -> RawOptions {
    let mut options = RawOptions {
        enabled: fields.get("enabled").and_then(|node| boolean(node, problems)).map(|at| at.value),
        delivery: fields
            .get("delivery")
            .and_then(|node| choice(node, &Delivery::ALL.map(|delivery| (delivery.as_str(), delivery)), problems))
            .map(|at| at.value),
        workers: fields
            .get("workers")
            .and_then(|node| number(node, 1..=512, problems))
            .and_then(|at| u16::try_from(at.value).ok()),
        on_error: fields.entry("on_error").and_then(|entry| on_error(entry, problems)),
        lag_alert: fields.get("lag_alert").and_then(|node| lag_alert(node, problems)),
        ..RawOptions::default()
    };
    transaction(fields, &mut options, problems);
    if let Some(entry) = fields.entry("batch") {
        (options.batch_records, options.batch_bytes) = batch(entry, problems);
    }
    for later in ["parallelism", "shadow", "on_partition_change"] {
        fields.not_yet(later, problems);
    }
    options
}

fn transaction(outer: &mut Fields<'_>, options: &mut RawOptions, problems: &mut Problems) {
    let interval = |node: &Node, problems: &mut Problems| duration(node, MILLISECOND..=HOUR, problems);
    let short = outer.entry("commit_interval");
    options.interval = short.and_then(|entry| interval(&entry.value, problems));
    let Some(entry) = outer.entry("transaction") else { return };
    let Some(mut fields) = fields(entry, "the bounds of a transaction", problems) else { return };
    if let Some(long) = fields.entry("interval") {
        options.interval = interval(&long.value, problems);
        if let Some(short) = short {
            let problem = Problem::at(
                &short.key_place,
                "`commit_interval` is short for `transaction.interval`, which is given too",
            );
            problems.push(problem.code("duplicate_key").related(&long.key_place, "also given here").help("keep one"));
        }
    }
    options.records = fields
        .get("records")
        .and_then(|node| number(node, 1..=10_000_000, problems))
        .and_then(|at| u32::try_from(at.value).ok());
    options.bytes = fields.get("bytes").and_then(|node| size(node, KIB..=16 * GIB, problems));
    fields.finish(problems);
}

fn batch(entry: &Entry, problems: &mut Problems) -> (Option<u32>, Option<u64>) {
    let Some(mut fields) = fields(entry, "the bounds of a plugin call", problems) else { return (None, None) };
    let records = fields
        .get("records")
        .and_then(|node| number(node, 1..=65_536, problems))
        .and_then(|at| u32::try_from(at.value).ok());
    let bytes = fields.get("bytes").and_then(|node| size(node, KIB..=256 * MIB, problems)).map(|at| at.value);
    fields.finish(problems);
    (records, bytes)
}

fn source(entry: &Entry, problems: &mut Problems) -> Option<RawSource> {
    let mut fields = fields(entry, "a source", problems)?;
    let topics_node = fields.required("topics", "name at least one: `topics: [TOPIC]`", problems);
    let topics = topics_node.map(|node| selectors(node, problems)).unwrap_or_default();
    if let Some(node) = topics_node.filter(|node| matches!(&node.value, Value::List(list) if list.is_empty())) {
        problems.push(Problem::at(&node.place, "a source needs at least one topic").help("write `topics: [TOPIC]`"));
    }
    let lost = [("stop", OnOffsetLost::Stop), ("earliest", OnOffsetLost::Earliest), ("latest", OnOffsetLost::Latest)];
    let start_help =
        "say where a group that has never committed begins: `start: earliest`, `start: latest` or an RFC 3339 time";
    let source = RawSource {
        place: entry.key_place.clone(),
        topics,
        exclude: fields.get("exclude").map(|node| selectors(node, problems)).unwrap_or_default(),
        group: fields.get("group").and_then(|node| {
            let text = non_empty(node, "a consumer group", problems)?;
            named(&text, "a consumer group", GroupId::new(&text.value), problems)
        }),
        start: fields.required("start", start_help, problems).and_then(|node| start(node, problems)),
        on_offset_lost: fields.get("on_offset_lost").and_then(|node| choice(node, &lost, problems)).map(|at| at.value),
        consumer: fields.entry("consumer").map(|entry| properties(entry, problems)).unwrap_or_default(),
    };
    fields.finish(problems);
    Some(source)
}

/// A list of topics and patterns; a single one stands for a list of one.
fn selectors(node: &Node, problems: &mut Problems) -> Vec<At<TopicSelector>> {
    match &node.value {
        Value::List(nodes) => nodes.iter().filter_map(|node| selector(node, problems)).collect(),
        Value::Scalar(_) => selector(node, problems).into_iter().collect(),
        Value::Map(_) => {
            problems.push(wrong_type(node, "a list of topics"));
            Vec::new()
        }
    }
}

fn selector(node: &Node, problems: &mut Problems) -> Option<At<TopicSelector>> {
    let text = non_empty(node, "a topic", problems)?;
    if text.value.starts_with('^') {
        return pattern(&text, problems).map(|pattern| At::new(TopicSelector::Pattern(pattern), &text.place));
    }
    topic(&text, problems).map(|topic| At::new(TopicSelector::Name(topic), &text.place))
}

fn topic(text: &At<String>, problems: &mut Problems) -> Option<TopicName> {
    match TopicName::new(&text.value) {
        Ok(topic) => Some(topic),
        Err(why) => {
            let message = format!("{} cannot be the name of a topic: {why}", text.shown());
            let mut problem = Problem::at(&text.place, message).code("invalid_name");
            if text.value.contains(['*', '\\', '[', '(', '|', '+', '?', '$']) {
                problem = problem.help("a pattern of topics begins with `^`, as in `\"^orders\\\\..*\"`");
            }
            problems.push(problem);
            None
        }
    }
}

/// What a compiled pattern may take. One of a few bytes could take gigabytes.
const PATTERN_BYTES_MOST: usize = 1 << 20;

/// A pattern that matches whole names.
fn pattern(text: &At<String>, problems: &mut Problems) -> Option<regex::Regex> {
    // By itself first: `^a)(b` must not borrow the parentheses that are put around it.
    let error = match regex_automata::util::syntax::parse(&text.value) {
        Err(error) => error.to_string(),
        Ok(_) => match RegexBuilder::new(&format!("^(?:{})$", text.value)).size_limit(PATTERN_BYTES_MOST).build() {
            Ok(pattern) => return Some(pattern),
            Err(regex::Error::CompiledTooBig(_)) => "it would take too much memory".to_owned(),
            Err(error) => error.to_string(),
        },
    };
    let reason = error.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
    let message = format!("{} is not a regular expression: {reason}", text.shown());
    let problem = Problem::at(&text.place, message).code("invalid_pattern");
    problems.push(problem.help("patterns are written in Rust's dialect: https://docs.rs/regex/latest/regex/#syntax"));
    None
}

fn start(node: &Node, problems: &mut Problems) -> Option<Start> {
    let text = text(node, "`earliest`, `latest` or an RFC 3339 time", problems)?;
    match text.value.as_str() {
        "earliest" => return Some(Start::Earliest),
        "latest" => return Some(Start::Latest),
        _ => {}
    }
    if let Ok(time) = text.value.parse::<jiff::Timestamp>() {
        let ms = time.as_millisecond();
        if ms >= 0 {
            return Some(Start::At(ms));
        }
        problems.push(Problem::at(&text.place, format!("{} is before 1970", text.shown())).help("write `earliest`"));
        return None;
    }
    let message = format!("expected `earliest`, `latest` or an RFC 3339 time, found {}", text.shown());
    let problem = Problem::at(&text.place, message).code("wrong_type");
    problems.push(match did_you_mean(&text.value, &["earliest", "latest"]) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None => problem.help("a time has a date, a time of day and an offset: `2026-01-31T00:00:00Z`"),
    });
    None
}

fn plugin_config(node: &Node, problems: &mut Problems) -> At<PluginConfig> {
    At::new(PluginConfig { json: json(node, problems), secret: node.holds_secret() }, &node.place)
}

fn step(node: &Node, problems: &mut Problems) -> Option<RawStep> {
    if let Value::Scalar(scalar) = &node.value
        && let Typed::Text(name) = scalar.typed()
    {
        problems.push(wrong_type(node, "a step").help(format!("write `plugin: {name}`")));
        return None;
    }
    let mut fields = Fields::of(node, &node.place, "a step", problems)?;
    let plugin = fields.required("plugin", "name the plugin: `plugin: NAME`", problems);
    let plugin = plugin.and_then(|node| text(node, "the name of a plugin", problems));
    let config = fields.get("config").map(|node| plugin_config(node, problems));
    fields.not_yet("when", problems);
    fields.finish(problems);
    Some(RawStep { plugin: plugin?, config })
}

fn destinations(entry: &Entry, problems: &mut Problems) -> Vec<RawDestination> {
    let Some(nodes) = list(&entry.value, "a list of destinations", problems) else { return Vec::new() };
    if nodes.is_empty() {
        let problem = Problem::at(&entry.key_place, "a route needs at least one destination").code("missing_key");
        problems.push(problem.help("write `destinations: [{ topic: TOPIC }]`"));
    }
    nodes.iter().filter_map(|node| destination(node, problems)).collect()
}

fn destination(node: &Node, problems: &mut Problems) -> Option<RawDestination> {
    if let Value::Scalar(scalar) = &node.value
        && let Typed::Text(topic) = scalar.typed()
    {
        problems.push(wrong_type(node, "a destination").help(format!("write `topic: {topic}`")));
        return None;
    }
    let mut fields = Fields::of(node, &node.place, "a destination", problems)?;
    let name = fields.get("name").and_then(|node| {
        let text = text(node, "a name", problems)?;
        named(&text, "the name of a destination", DestinationName::new(&text.value), problems)
    });
    let (target, place) = target(&mut fields, node, problems);
    let partition = fields.get("partition").and_then(|node| {
        choice(node, &Partitioning::ALL.map(|partitioning| (partitioning.as_str(), partitioning)), problems)
    });
    let default = fields.get("default").and_then(|node| boolean(node, problems)).map(|at| at.value);
    fields.not_yet("when", problems);
    let unnamed = name.is_none() && fields.entry("name").is_none();
    fields.finish(problems);
    let target = target?;
    let name = match &target {
        _ if !unnamed => name?,
        Target::Topic(topic) => At::new(DestinationName::new(topic).ok()?, &place),
        Target::Pattern(_) => {
            let problem =
                Problem::at(&place, "a destination with a `topic_pattern` needs a `name`").code("missing_key");
            problems.push(problem.help("plugins send records there by its name: `name: NAME`"));
            return None;
        }
    };
    Some(RawDestination { place, name, target, partition, default })
}

fn target(fields: &mut Fields<'_>, node: &Node, problems: &mut Problems) -> (Option<Target>, Place) {
    match (fields.entry("topic"), fields.entry("topic_pattern")) {
        (Some(one), None) => {
            let text = non_empty(&one.value, "a topic", problems);
            (text.and_then(|text| topic(&text, problems)).map(Target::Topic), one.value.place.clone())
        }
        (None, Some(many)) => {
            let text = non_empty(&many.value, "a pattern of topics", problems);
            (text.and_then(|text| pattern(&text, problems)).map(Target::Pattern), many.value.place.clone())
        }
        (Some(one), Some(many)) => {
            let problem = Problem::at(&many.key_place, "a destination has a `topic` or a `topic_pattern`, not both");
            problems.push(problem.related(&one.key_place, "also given here").help("make two destinations of it"));
            (None, one.value.place.clone())
        }
        (None, None) => {
            let problem = Problem::at(&node.place, "this destination has no topic").code("missing_key");
            problems
                .push(problem.help("write `topic: TOPIC`, or `topic_pattern: \"^…$\"` for topics that a plugin names"));
            (None, node.place.clone())
        }
    }
}

const ON_ERROR: &str = "`stop`, `skip`, `{ dead_letter: TOPIC }` or `{ retry: { … }, then: … }`";

fn on_error(entry: &Entry, problems: &mut Problems) -> Option<RawOnError> {
    if let Value::Scalar(_) = entry.value.value {
        return disposition(&entry.value, problems);
    }
    let mut inner = fields(entry, ON_ERROR, problems)?;
    let retry_entry = inner.entry("retry");
    let then = inner.entry("then");
    let dead_letter = inner.entry("dead_letter");
    inner.finish(problems);
    let Some(retry_entry) = retry_entry else {
        if let Some(then) = then {
            let problem = Problem::at(&then.key_place, "`then` stands only beside `retry`").code("missing_key");
            problems.push(problem.help(format!("write one of {ON_ERROR}")));
            return None;
        }
        return disposition(&entry.value, problems);
    };
    if let Some(dead_letter) = dead_letter {
        let problem = Problem::at(&dead_letter.key_place, "beside `retry`, `dead_letter` stands under `then`");
        problems.push(problem.help("write `then: { dead_letter: TOPIC }`"));
    }
    let retry = retry(retry_entry, problems);
    let then = match then {
        Some(then) => disposition(&then.value, problems)?,
        None => RawOnError { policy: OnError::default(), dead_letter: None },
    };
    Some(RawOnError { policy: OnError { retry: Some(retry?), then: then.policy.then }, ..then })
}

/// `stop`, `skip` or `{ dead_letter: TOPIC }`.
fn disposition(node: &Node, problems: &mut Problems) -> Option<RawOnError> {
    const WHAT: &str = "`stop`, `skip` or `{ dead_letter: TOPIC }`";
    let (then, place) = match &node.value {
        Value::Scalar(scalar) if scalar.broken => return None,
        Value::Scalar(scalar) => match scalar.text.as_str() {
            "stop" => (Disposition::Stop, None),
            "skip" => (Disposition::Skip, None),
            other => {
                let problem = wrong_type(node, WHAT);
                problems.push(match did_you_mean(other, &["stop", "skip", "dead_letter"]) {
                    Some("dead_letter") => problem.help("write `{ dead_letter: TOPIC }`"),
                    Some(near) => problem.help(format!("did you mean `{near}`?")),
                    None => problem,
                });
                return None;
            }
        },
        Value::List(_) | Value::Map(_) => {
            let mut fields = Fields::of(node, &node.place, WHAT, problems)?;
            let topic_node = fields.required("dead_letter", &format!("write {WHAT}"), problems);
            // `on_error` itself has already told what else is written beside it.
            fields.get("retry");
            fields.get("then");
            fields.finish(problems);
            let text = non_empty(topic_node?, "a topic", problems)?;
            (Disposition::DeadLetter(topic(&text, problems)?), Some(text.place))
        }
    };
    Some(RawOnError { policy: OnError { retry: None, then }, dead_letter: place })
}

fn retry(entry: &Entry, problems: &mut Problems) -> Option<Retry> {
    let before = problems.len();
    let mut fields = fields(entry, "how often to try again", problems)?;
    let attempts = fields.get("attempts").and_then(|node| number(node, 1..=1_000_000, problems));
    let backoff = fields.get("backoff").and_then(|node| duration(node, MILLISECOND..=HOUR, problems));
    let longest = fields.get("max_backoff").and_then(|node| duration(node, MILLISECOND..=HOUR, problems));
    fields.finish(problems);
    let wait = backoff.as_ref().map_or(Duration::from_millis(100), |at| at.value);
    if let Some(longest) = longest.as_ref().filter(|longest| longest.value < wait) {
        problems.push(Problem::at(&longest.place, "`max_backoff` is below `backoff`").code("bounds"));
    }
    (problems.len() == before).then(|| Retry {
        attempts: attempts.and_then(|at| u32::try_from(at.value).ok()).unwrap_or(3),
        backoff: wait,
        max_backoff: longest.map_or(Duration::from_secs(10).max(wait), |at| at.value),
    })
}

fn lag_alert(node: &Node, problems: &mut Problems) -> Option<LagAlert> {
    let what = "a duration such as `60s`, or a number of records";
    let scalar = scalar(node, what, problems)?;
    if let Typed::Integer(records) = scalar.typed()
        && let Some(records) = u64::try_from(records).ok().filter(|records| *records > 0)
    {
        return Some(LagAlert::Records(records));
    }
    match parse_duration(&scalar.text) {
        Ok(age) if !age.is_zero() => Some(LagAlert::Time(age)),
        Ok(_) | Err(_) => {
            problems
                .push(Problem::at(&node.place, format!("expected {what}, found {}", shown(scalar))).code("wrong_type"));
            None
        }
    }
}
