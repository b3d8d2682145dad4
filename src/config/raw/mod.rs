//! What may be written: mirrors the YAML, and nothing else. Each value has the right type and spelling; whether they
//! make sense together is `meaning`'s.

mod destinations;
mod on_error;
mod plugins;
mod process;
mod routes;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::decode::{At, Fields, entries, list, non_empty, wrong_type};
use super::keys::{self, Section};
use super::problem::{Problem, Problems};
use super::properties::RawProperty;
use super::settings::{
    Capability, Delivery, LagAlert, LogFormat, LogLevel, OnOffsetLost, OnPartitionChange, PluginConfig, PropertyValue,
    Start, Target, TopicSelector, WatchMethod,
};
use super::source::Place;
use super::test_cases::{RawTest, test};
use super::tree::{Entry, Node, Value};
use crate::model::{DestinationName, Digest, GroupId, InvalidName, PluginName, RouteName};
use crate::policy::{Condition, OnError, Partitioning};
use plugins::plugin;
use process::{admin, instance, kafka, log, telemetry, watch};
use routes::{defaults, route};

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
    pub(super) otlp: Option<String>,
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
    pub(super) parallelism: Option<u16>,
    pub(super) on_error: Option<RawOnError>,
    pub(super) on_partition_change: Option<OnPartitionChange>,
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
    pub(super) shadow: Option<RawShadow>,
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
pub(super) struct RawShadow {
    pub(super) pipeline: Vec<RawStep>,
    pub(super) sample: Option<u32>,
}

#[derive(Debug)]
pub(super) struct RawStep {
    pub(super) plugin: At<String>,
    pub(super) config: Option<At<PluginConfig>>,
    pub(super) when: Option<Condition>,
}

#[derive(Debug)]
pub(super) struct RawDestination {
    /// The topic or its pattern.
    pub(super) place: Place,
    pub(super) name: At<DestinationName>,
    pub(super) target: Target,
    pub(super) partition: Option<At<Partitioning>>,
    pub(super) default: Option<bool>,
    pub(super) when: Option<Condition>,
}

impl RawRoute {
    /// The steps of both sets of plugins.
    pub(super) fn steps(&self) -> impl Iterator<Item = &RawStep> {
        self.pipeline.iter().chain(self.shadow.iter().flat_map(|shadow| &shadow.pipeline))
    }
}

impl Raw {
    /// Adds what one file holds; answers whether it could be made out at all.
    pub(super) fn add(&mut self, root: &Node, problems: &mut Problems) -> bool {
        let fields = Fields::of(&keys::PROCESS, root, &root.place, "a mapping of settings", problems);
        let Some(mut fields) = fields else { return false };
        for key in keys::PROCESS.keys.iter().filter(|key| !keys::adds_up(key)) {
            if fields.entry(key).is_some_and(|entry| !self.only_once(entry, problems)) {
                fields.leave_out(key);
            }
        }
        self.instance = fields.get(&keys::INSTANCE).and_then(|node| instance(node, problems)).or(self.instance.take());
        self.shutdown_timeout = fields.duration(&keys::SHUTDOWN_TIMEOUT, problems).or(self.shutdown_timeout.take());
        self.processing_timeout =
            fields.duration(&keys::PROCESSING_TIMEOUT, problems).or(self.processing_timeout.take());
        self.memory = fields.size(&keys::MEMORY, problems).or(self.memory.take());
        if let Some(node) = fields.get(&keys::CACHE_DIR) {
            self.cache_dir = path(node, "a folder", problems).map(|path| path.value);
        }
        if let Some(entry) = fields.entry(&keys::WATCH) {
            self.watch = watch(entry, problems);
        }
        if let Some(entry) = fields.entry(&keys::KAFKA) {
            self.kafka = kafka(entry, problems);
        }
        if let Some(entry) = fields.entry(&keys::ADMIN) {
            self.admin = admin(entry, problems);
        }
        if let Some(entry) = fields.entry(&keys::LOG) {
            (self.log_level, self.log_format) = log(entry, problems);
        }
        if let Some(entry) = fields.entry(&keys::TELEMETRY) {
            self.otlp = telemetry(entry, problems);
        }
        if let Some(entry) = fields.entry(&keys::DEFAULTS) {
            self.defaults = defaults(entry, problems);
        }
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
        let Some(node) = fields.get(&keys::PLUGINS) else { return };
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
        let Some(node) = fields.get(&keys::ROUTES) else { return };
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
        let Some(node) = fields.get(&keys::TESTS) else { return };
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

fn fields<'n>(section: &'static Section, entry: &'n Entry, what: &str, problems: &mut Problems) -> Option<Fields<'n>> {
    Fields::of(section, &entry.value, &entry.key_place, what, problems)
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

fn path(node: &Node, what: &str, problems: &mut Problems) -> Option<At<PathBuf>> {
    let text = non_empty(node, what, problems)?;
    let path = node.place.file().folder().join(text.value);
    Some(At::new(path, &text.place))
}
