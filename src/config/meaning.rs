//! What is written → what is meant: defaults are filled in, names looked up, bounds held against each other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::decode::{At, did_you_mean};
use super::places::{Places, PluginPlaces, PropertyScope, RoutePlaces};
use super::problem::{Problem, Problems};
use super::properties::{
    GROUP_PROTOCOL, MAX_POLL_INTERVAL, OF_CLASSIC_MEMBERS, RawProperty, SESSION_TIMEOUT, TRANSACTION_TIMEOUT, accept,
    canonical, written, written_millis,
};
use super::raw::{Raw, RawDestination, RawOptions, RawPlugin, RawRoute, RawSource, RawStep};
use super::settings::{
    Admin, Batch, Delivery, Destination, Kafka, Log, LogFormat, LogLevel, OnOffsetLost, PipelineStep, Plugin,
    PluginConfig, PluginLimits, Route, Settings, Shadow, Source, Target, Telemetry, TopicSelector, Transaction, Watch,
    WatchMethod,
};
use super::share::SHARE_MIN;
use super::source::Place;
use super::test_cases::TestCase;
use super::times::{CLOSE, Times};
use super::topology;
use super::units::{show_duration, show_size};
use crate::model::{GroupId, PluginName};
use crate::policy::Partitioning;

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(25);
const PROCESSING_TIMEOUT: Duration = Duration::from_secs(30);
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(1);
const TRANSACTION_INTERVAL: Duration = Duration::from_millis(100);
const TRANSACTION_BYTES: u64 = 32 << 20;
const MEMORY: u64 = 1 << 30;
const PREFIX: &str = "millrace";

/// What a configuration means.
pub(super) struct Meant {
    /// Whole only if there is no problem.
    pub(super) settings: Option<Settings>,
    pub(super) places: Places,
    pub(super) tests: Vec<TestCase>,
}

/// Says what `raw` means. `complete` is whether all files could be read: if not, nothing is said to be missing, since it
/// may stand in a file that was not read.
pub(super) fn interpret(raw: &Raw, complete: bool, problems: &mut Problems) -> Meant {
    let kafka = kafka(raw, complete, problems);
    let plugins: BTreeMap<_, _> =
        raw.plugins.iter().filter_map(|raw| Some((raw.name.value.clone(), plugin(raw)?))).collect();
    let meaning = Meaning { raw, complete, plugins: &plugins, prefix: &kafka.prefix };
    let options: Vec<RawOptions> =
        raw.routes.iter().map(|route| with_defaults(&route.options, &raw.defaults)).collect();
    let mut routes = BTreeMap::new();
    for (raw, options) in raw.routes.iter().zip(&options) {
        if let Some(route) = meaning.route(raw, options, problems) {
            routes.insert(route.name.clone(), route);
        }
    }
    meaning.check_whole(problems);
    meaning.check_bounds(&options, problems);
    let tests = match complete {
        true => raw.tests.iter().filter_map(|test| test.resolve(&raw.routes, &options, problems)).collect(),
        false => Vec::new(),
    };
    let places = places(raw, &options);
    topology::check(&routes, &places, problems);
    let admin = admin(raw, problems);
    let settings = Settings {
        instance: raw.instance.as_ref().map(|at| at.value.clone()),
        shutdown_timeout: raw.shutdown_timeout.as_ref().map_or(SHUTDOWN_TIMEOUT, |at| at.value),
        processing_timeout: raw.processing_timeout.as_ref().map_or(PROCESSING_TIMEOUT, |at| at.value),
        cache_dir: raw.cache_dir.clone(),
        watch: Watch {
            method: raw.watch.method.unwrap_or(WatchMethod::Auto),
            debounce: raw.watch.debounce.unwrap_or(Duration::from_millis(250)),
            interval: raw.watch.interval.unwrap_or(Duration::from_secs(2)),
        },
        memory: memory(raw),
        kafka,
        admin,
        log: Log { level: raw.log_level.unwrap_or(LogLevel::Info), format: raw.log_format.unwrap_or(LogFormat::Text) },
        telemetry: Telemetry { otlp: raw.otlp.clone() },
        plugins,
        routes,
    };
    Meant { settings: (complete && !problems.has_errors()).then_some(settings), places, tests }
}

fn memory(raw: &Raw) -> u64 {
    raw.memory.as_ref().map_or(MEMORY, |at| at.value)
}

fn kafka(raw: &Raw, complete: bool, problems: &mut Problems) -> Kafka {
    let kafka = Kafka {
        prefix: raw.kafka.prefix.clone().unwrap_or_else(|| PREFIX.to_owned()),
        common: accept(&raw.kafka.common, problems),
        consumer: accept(&raw.kafka.consumer, problems),
        producer: accept(&raw.kafka.producer, problems),
    };
    if complete && !raw.kafka.has_servers {
        let problem = Problem::near(raw.kafka.place.as_ref(), "`kafka` has no `bootstrap.servers`");
        let help = "say where the brokers are: `kafka: { bootstrap.servers: \"127.0.0.1:9092\" }`";
        problems.push(problem.code("missing_key").help(help));
    }
    for property in raw.kafka.common.iter().filter(|property| canonical(&property.name.value) == "bootstrap.servers") {
        let named = property.value.value.reveal().split(',').map(str::trim);
        // (of a variable that is not set that has been told)
        let is_told = problems.iter().any(|problem| problem.place() == Some(&property.value.place));
        if !is_told && named.clone().any(str::is_empty) {
            let message =
                if named.clone().all(str::is_empty) { "it names no broker" } else { "a broker without a name" };
            let help = "write `host:port`, with commas between: `\"kafka-1:9092,kafka-2:9092\"`";
            problems.push(Problem::at(&property.value.place, message).code("out_of_bounds").help(help));
        }
    }
    kafka
}

fn admin(raw: &Raw, problems: &mut Problems) -> Admin {
    let admin = Admin {
        listen: raw.admin.listen.as_ref().map_or_else(|| ([127, 0, 0, 1], 9400).into(), |at| at.value),
        token: raw.admin.token.clone(),
        allowed_hosts: raw.admin.allowed_hosts.clone(),
    };
    if let Some(listen) = raw.admin.listen.as_ref().filter(|at| !at.value.ip().is_loopback())
        && admin.token.is_none()
    {
        let message =
            "the admin endpoint is reachable from elsewhere and has no `token`: it answers health and metrics only";
        let help = "write `token: \"${file:/run/secrets/admin}\"`, or listen on 127.0.0.1";
        problems.push(Problem::at(&listen.place, message).code("no_token").help(help).warning());
    }
    admin
}

fn plugin(raw: &RawPlugin) -> Option<Plugin> {
    Some(Plugin {
        name: raw.name.value.clone(),
        path: raw.path.as_ref()?.value.clone(),
        sha256: raw.sha256,
        config: raw.config.as_ref().map_or_else(no_config, |at| at.value.clone()),
        limits: PluginLimits {
            memory: raw.memory.unwrap_or(64 << 20),
            timeout: raw.timeout.as_ref().map_or(PLUGIN_TIMEOUT, |at| at.value),
            outputs: raw.outputs.unwrap_or(1_000),
            output_bytes: raw.output_bytes.unwrap_or(16 << 20),
        },
        allow: raw.allow.as_ref().map_or_else(Vec::new, |at| at.value.clone()),
    })
}

fn no_config() -> PluginConfig {
    PluginConfig { json: serde_json::Value::Object(serde_json::Map::new()), secret: false }
}

/// What the route does not say, `defaults` says.
fn with_defaults(own: &RawOptions, defaults: &RawOptions) -> RawOptions {
    RawOptions {
        enabled: own.enabled.or(defaults.enabled),
        delivery: own.delivery.or(defaults.delivery),
        interval: own.interval.clone().or_else(|| defaults.interval.clone()),
        records: own.records.or(defaults.records),
        bytes: own.bytes.clone().or_else(|| defaults.bytes.clone()),
        batch_records: own.batch_records.or(defaults.batch_records),
        batch_bytes: own.batch_bytes.or(defaults.batch_bytes),
        workers: own.workers.or(defaults.workers),
        parallelism: own.parallelism.or(defaults.parallelism),
        on_error: own.on_error.clone().or_else(|| defaults.on_error.clone()),
        on_partition_change: own.on_partition_change.or(defaults.on_partition_change),
        lag_alert: own.lag_alert.or(defaults.lag_alert),
    }
}

struct Meaning<'a> {
    raw: &'a Raw,
    complete: bool,
    plugins: &'a BTreeMap<PluginName, Plugin>,
    prefix: &'a str,
}

impl Meaning<'_> {
    fn route(&self, raw: &RawRoute, options: &RawOptions, problems: &mut Problems) -> Option<Route> {
        let pipeline = self.steps(&raw.pipeline, problems);
        let shadow = raw.shadow.as_ref().map(|shadow| Shadow {
            pipeline: self.steps(&shadow.pipeline, problems),
            one_in: shadow.sample.unwrap_or(1),
        });
        check_destinations(raw, problems);
        let source = self.source(raw, raw.source.as_ref()?, problems);
        Some(Route {
            name: raw.name.value.clone(),
            enabled: options.enabled.unwrap_or(true),
            source: source?,
            pipeline,
            shadow,
            destinations: raw.destinations.iter().map(destination).collect(),
            delivery: options.delivery.unwrap_or(Delivery::ExactlyOnce),
            transaction: Transaction {
                interval: options.interval.as_ref().map_or(TRANSACTION_INTERVAL, |at| at.value),
                records: options.records.unwrap_or(50_000),
                bytes: options.bytes.as_ref().map_or(TRANSACTION_BYTES.min(memory(self.raw)), |at| at.value),
            },
            batch: Batch {
                records: options.batch_records.unwrap_or(512),
                bytes: options.batch_bytes.unwrap_or(256 << 10),
            },
            workers: options.workers.unwrap_or(1),
            parallelism: options.parallelism.unwrap_or(1),
            on_error: options.on_error.as_ref().map(|on_error| on_error.policy.clone()).unwrap_or_default(),
            on_partition_change: options.on_partition_change.unwrap_or_default(),
            lag_alert: options.lag_alert,
        })
    }

    fn source(&self, route: &RawRoute, raw: &RawSource, problems: &mut Problems) -> Option<Source> {
        let consumer = accept(&raw.consumer, problems);
        let group = match &raw.group {
            Some(group) => group.value.clone(),
            None => match GroupId::new(format!("{}.{}", self.prefix, route.name.value)) {
                Ok(group) => group,
                Err(why) => {
                    let message = format!("the group `<prefix>.<route>` of this route cannot be: {why}");
                    problems.push(Problem::at(&route.name.place, message).code("invalid_name"));
                    return None;
                }
            },
        };
        let selectors = |topics: &[At<TopicSelector>]| topics.iter().map(|at| at.value.clone()).collect();
        Some(Source {
            topics: selectors(&raw.topics),
            exclude: selectors(&raw.exclude),
            group,
            start: raw.start?,
            on_offset_lost: raw.on_offset_lost.unwrap_or(OnOffsetLost::Stop),
            consumer,
        })
    }

    fn steps(&self, raw: &[RawStep], problems: &mut Problems) -> Vec<PipelineStep> {
        let mut steps = Vec::new();
        for step in raw {
            let written = step.plugin.value.as_str();
            if let Some((name, plugin)) = self.plugins.get_key_value(written) {
                let config = step.config.as_ref().map_or_else(|| plugin.config.clone(), |at| at.value.clone());
                steps.push(PipelineStep { plugin: name.clone(), config, when: step.when.clone() });
            } else if self.complete && !self.raw.plugins.iter().any(|plugin| plugin.name.value.as_str() == written) {
                let known: Vec<&str> = self.raw.plugins.iter().map(|plugin| plugin.name.value.as_str()).collect();
                let problem = Problem::at(&step.plugin.place, format!("there is no plugin {}", step.plugin.shown()))
                    .code("unknown_plugin");
                problems.push(match (did_you_mean(written, &known), known.is_empty()) {
                    (Some(near), _) => problem.help(format!("did you mean `{near}`?")),
                    (None, true) => problem.help(format!("define it: `plugins: {{ {written}: {{ path: … }} }}`")),
                    (None, false) => problem.help(format!("plugins are: {}", known.join(", "))),
                });
            }
        }
        steps
    }

    /// What must be there, and what is there for nothing.
    fn check_whole(&self, problems: &mut Problems) {
        if !self.complete {
            return;
        }
        if !self.raw.has_routes {
            let problem = Problem::new("there are no routes").code("missing_key");
            problems.push(problem.help("write at least one: `routes: { NAME: { source: …, destinations: … } }`"));
        }
        let used: HashSet<&str> =
            self.raw.routes.iter().flat_map(RawRoute::steps).map(|step| step.plugin.value.as_str()).collect();
        for plugin in self.raw.plugins.iter().filter(|plugin| !used.contains(plugin.name.value.as_str())) {
            let message = format!("no route uses the plugin `{}`", plugin.name.value);
            problems.push(Problem::at(&plugin.name.place, message).code("unused_plugin").warning());
        }
    }

    /// Bounds that rest on each other. Each pair is told once, however many routes it concerns.
    fn check_bounds(&self, options: &[RawOptions], problems: &mut Problems) {
        let raw = self.raw;
        let processing = Bound::of("processing_timeout", &raw.processing_timeout, PROCESSING_TIMEOUT);
        for plugin in &raw.plugins {
            let timeout = Bound::of("timeout", &plugin.timeout, PLUGIN_TIMEOUT);
            timeout.at_most(
                &processing,
                "one record would use up the time for all that a transaction covers",
                problems,
            );
        }
        let producer: [&[RawProperty]; 2] = [&raw.kafka.producer, &raw.kafka.common];
        let transaction = Bound::property("transaction.timeout.ms", &producer, TRANSACTION_TIMEOUT);
        for route in &raw.routes {
            let own = route.source.as_ref().map_or(&[][..], |source| &source.consumer);
            let layers: [&[RawProperty]; 3] = [own, &raw.kafka.consumer, &raw.kafka.common];
            let plugins = self.longest_timeout(route).map(|timeout| (processing, timeout));
            if check_consumer(&layers, &processing, problems) {
                check_turn(&layers, plugins, transaction, problems);
            }
        }
        if let Some((socket, place)) = written_millis(&producer, "socket.timeout.ms") {
            let socket = Bound { name: "socket.timeout.ms", value: socket, place: Some(place) };
            socket.below(
                &transaction,
                "a lost answer has to be noticed while the transaction can still be saved",
                problems,
            );
        }
        for options in options {
            let interval = Bound::of("transaction.interval", &options.interval, TRANSACTION_INTERVAL);
            interval.below(&transaction, "the broker would abort the transaction before it is committed", problems);
            if let Some(bytes) = options.bytes.as_ref().filter(|bytes| bytes.value > memory(raw)) {
                let message = format!(
                    "`transaction.bytes` ({}) is more than `memory` ({})",
                    show_size(bytes.value),
                    show_size(memory(raw))
                );
                let problem = Problem::at(&bytes.place, message).code("bounds");
                problems.push(raw.memory.iter().fold(problem, |problem, at| problem.related(&at.place, "`memory`")));
            }
        }
        let shutdown = Bound::of("shutdown_timeout", &raw.shutdown_timeout, SHUTDOWN_TIMEOUT);
        check_drain(&shutdown, &transaction, problems);
        self.check_shares(options, problems);
    }

    /// Of the route's plugins, that of the one that may take longest for a record.
    fn longest_timeout(&self, route: &RawRoute) -> Option<Bound<'_>> {
        let used = |plugin: &&RawPlugin| {
            route.pipeline.iter().any(|step| step.plugin.value.as_str() == plugin.name.value.as_str())
        };
        let timeouts = self.raw.plugins.iter().filter(used);
        let timeouts = timeouts.map(|plugin| Bound::of("timeout", &plugin.timeout, PLUGIN_TIMEOUT));
        timeouts.max_by_key(|timeout| timeout.value)
    }

    /// `memory` has to be enough for every worker that it is shared out over.
    fn check_shares(&self, options: &[RawOptions], problems: &mut Problems) {
        let enabled = options.iter().filter(|options| options.enabled.unwrap_or(true));
        let workers: u64 = enabled.map(|options| u64::from(options.workers.unwrap_or(1))).sum();
        let (memory, needed) = (memory(self.raw), workers * SHARE_MIN);
        if memory >= needed {
            return;
        }
        let default = if self.raw.memory.is_none() { ", the default" } else { "" };
        let message = format!(
            "`memory` ({}{default}) is too little for {workers} workers, of which each needs {}",
            show_size(memory),
            show_size(SHARE_MIN)
        );
        let problem = Problem::near(self.raw.memory.as_ref().map(|at| &at.place), message).code("bounds");
        problems.push(problem.help(format!("write `memory: {}` or more, or fewer `workers`", show_size(needed))));
    }
}

/// Between two polls of the group lie plugins (`processing_timeout` and the longest `timeout`), where there are some, and a
/// transaction. Each may take its whole time.
fn check_turn(
    layers: &[&[RawProperty]],
    plugins: Option<(Bound<'_>, Bound<'_>)>,
    transaction: Bound<'_>,
    problems: &mut Problems,
) {
    let poll = Bound::property("max.poll.interval.ms", layers, MAX_POLL_INTERVAL);
    let times = Times::of(transaction.value);
    let (mut turn, mut work, mut bounds) = (times.commit(), String::new(), vec![poll]);
    if let Some((processing, timeout)) = plugins {
        turn = times.turn(processing.value, timeout.value);
        work = format!("{processing} for plugins, twice their {timeout} for a record that overruns it, and ");
        bounds.extend([processing, timeout]);
    }
    bounds.push(transaction);
    let message = format!(
        "{poll} has to be above {}, the longest time between two polls: {work}{} for a transaction of {transaction} with its \
         abort and a new producer",
        show_duration(turn),
        show_duration(times.commit()),
    );
    if turn >= poll.value {
        problems.extend(clash(message, bounds));
    }
}

/// A worker that is told to end may have to wait for a transaction that has just begun.
fn check_drain(shutdown: &Bound<'_>, transaction: &Bound<'_>, problems: &mut Problems) {
    let times = Times::of(transaction.value);
    let message = format!(
        "{shutdown} has to be above {}, the longest that a worker takes to end: {transaction}, {} for the abort, {} for a \
         new producer and {} to close",
        show_duration(times.drain()),
        show_duration(times.abort),
        show_duration(times.ready),
        show_duration(CLOSE),
    );
    if times.drain() >= shutdown.value {
        problems.extend(clash(message, [*shutdown, *transaction]));
    }
}

/// True: plugins have their time within the poll interval.
fn check_consumer(layers: &[&[RawProperty]], processing: &Bound<'_>, problems: &mut Problems) -> bool {
    let poll = Bound::property("max.poll.interval.ms", layers, MAX_POLL_INTERVAL);
    processing.below(&poll, "the group would take the partitions away while plugins still work", problems);
    if let Some(protocol) = written(layers, GROUP_PROTOCOL).filter(|it| it.value.value.reveal() == "consumer") {
        check_new_protocol(layers, protocol, problems);
    } else {
        let session = Bound::property("session.timeout.ms", layers, SESSION_TIMEOUT);
        let heartbeat = Bound::property("heartbeat.interval.ms", layers, Duration::from_secs(3));
        session.at_most(&poll, "librdkafka refuses it", problems);
        heartbeat.below(&session, "the group would give the member up between two heartbeats", problems);
    }
    processing.value < poll.value
}

/// A problem of bounds, told at the first that is written; the defaults do not clash.
fn clash<'r>(message: String, bounds: impl IntoIterator<Item = Bound<'r>>) -> Option<Problem> {
    let mut written = bounds.into_iter().filter_map(|bound| Some((bound.place?, bound.name)));
    let problem = Problem::at(written.next()?.0, message).code("bounds");
    Some(written.fold(problem, |problem, (place, name)| problem.related(place, format!("`{name}`"))))
}

/// What members decide in the classic protocol only; librdkafka would refuse it when the route starts.
fn check_new_protocol(layers: &[&[RawProperty]], protocol: &RawProperty, problems: &mut Problems) {
    for (name, instead) in OF_CLASSIC_MEMBERS {
        if let Some(property) = written(layers, name) {
            let message = format!("`{name}` has no meaning with `group.protocol: consumer`");
            let problem = Problem::at(&property.name.place, message).code("refused_property").help(*instead);
            problems.push(problem.related(&protocol.name.place, "`group.protocol`"));
        }
    }
}

/// A duration that rests on another.
#[derive(Clone, Copy)]
struct Bound<'r> {
    name: &'static str,
    value: Duration,
    /// `None` where it is the default.
    place: Option<&'r Place>,
}

impl<'r> Bound<'r> {
    fn of(name: &'static str, written: &'r Option<At<Duration>>, default: Duration) -> Self {
        Self {
            name,
            value: written.as_ref().map_or(default, |at| at.value),
            place: written.as_ref().map(|at| &at.place),
        }
    }

    fn property(name: &'static str, layers: &[&'r [RawProperty]], default: Duration) -> Self {
        match written_millis(layers, name) {
            Some((value, place)) => Self { name, value, place: Some(place) },
            None => Self { name, value: default, place: None },
        }
    }

    fn below(&self, other: &Self, why: &str, problems: &mut Problems) {
        if self.value >= other.value {
            problems.extend(self.clash(other, "has to be below", why));
        }
    }

    fn at_most(&self, other: &Self, why: &str, problems: &mut Problems) {
        if self.value > other.value {
            problems.extend(self.clash(other, "must not be above", why));
        }
    }

    fn clash(&self, other: &Self, relation: &str, why: &str) -> Option<Problem> {
        clash(format!("{self} {relation} {other}: {why}"), [*self, *other])
    }
}

impl fmt::Display for Bound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = if self.place.is_none() { ", the default" } else { "" };
        write!(f, "`{}` ({}{default})", self.name, show_duration(self.value))
    }
}

fn destination(raw: &RawDestination) -> Destination {
    Destination {
        name: raw.name.value.clone(),
        target: raw.target.clone(),
        partition: raw.partition.as_ref().map(|at| at.value).unwrap_or_default(),
        default: raw.default.unwrap_or(true),
        when: raw.when.clone(),
    }
}

fn check_destinations(route: &RawRoute, problems: &mut Problems) {
    let mut names: HashMap<&str, &Place> = HashMap::new();
    for destination in &route.destinations {
        let name = destination.name.value.as_str();
        if let Some(first) = names.insert(name, &destination.name.place) {
            let message = format!("two destinations of this route are named `{name}`");
            let problem = Problem::at(&destination.name.place, message).code("duplicate_name");
            problems.push(problem.related(first, "first given here").help("give one of them another `name`"));
        }
        let no_plugin = |place: &Place, what: &str| {
            let message = format!("{what} takes what a plugin says, and this route has no plugin");
            Problem::at(place, message).code("needs_plugin")
        };
        if route.pipeline.is_empty()
            && let Target::Pattern(_) = destination.target
        {
            let problem = no_plugin(&destination.place, "`topic_pattern`");
            problems.push(problem.help("write `topic: TOPIC`, or add a plugin to `pipeline`"));
        }
        if route.pipeline.is_empty()
            && let Some(partition) = destination.partition.as_ref().filter(|at| at.value == Partitioning::Plugin)
        {
            let problem = no_plugin(&partition.place, "`partition: plugin`");
            problems.push(problem.help("write `key`, `source` or `round_robin`, or add a plugin to `pipeline`"));
        }
    }
}

fn places(raw: &Raw, options: &[RawOptions]) -> Places {
    let mut places = Places {
        kafka: raw.kafka.place.clone(),
        memory: raw.memory.as_ref().map(|at| at.place.clone()),
        ..Places::default()
    };
    let mut add = |scope: &PropertyScope, properties: &[RawProperty]| {
        for property in properties {
            places.properties.insert((scope.clone(), property.name.value.clone()), property.name.place.clone());
        }
    };
    add(&PropertyScope::Common, &raw.kafka.common);
    add(&PropertyScope::Consumer, &raw.kafka.consumer);
    add(&PropertyScope::Producer, &raw.kafka.producer);
    for route in &raw.routes {
        if let Some(source) = &route.source {
            add(&PropertyScope::Route(route.name.value.clone()), &source.consumer);
        }
    }
    for plugin in &raw.plugins {
        let found = PluginPlaces {
            name: plugin.name.place.clone(),
            path: plugin.path.as_ref().map(|at| at.place.clone()),
            config: plugin.config.as_ref().map(|at| at.place.clone()),
            allow: plugin.allow.as_ref().map(|at| at.place.clone()),
        };
        places.plugins.insert(plugin.name.value.clone(), found);
    }
    for (route, options) in raw.routes.iter().zip(options) {
        places.routes.insert(route.name.value.clone(), route_places(route, options));
    }
    places
}

fn route_places(route: &RawRoute, options: &RawOptions) -> RoutePlaces {
    let topics = route.source.iter().flat_map(|source| &source.topics);
    RoutePlaces {
        name: route.name.place.clone(),
        source: route.source.as_ref().map(|source| source.place.clone()),
        topics: topics.map(|at| at.place.clone()).collect(),
        steps: step_places(&route.pipeline),
        shadow: route.shadow.iter().flat_map(|shadow| step_places(&shadow.pipeline)).collect(),
        destinations: route.destinations.iter().map(|destination| destination.place.clone()).collect(),
        dead_letter: options.on_error.as_ref().and_then(|on_error| on_error.dead_letter.clone()),
    }
}

fn step_places(steps: &[RawStep]) -> Vec<(Place, Option<Place>)> {
    let places = |step: &RawStep| (step.plugin.place.clone(), step.config.as_ref().map(|at| at.place.clone()));
    steps.iter().map(places).collect()
}
