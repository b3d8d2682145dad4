//! From settings to all that a route needs to run: plugins read, checked, compiled, instantiated and configured once.
//! Everything that can fail without Kafka fails here, before anything that runs is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;

use super::status::{PluginStatus, RouteFacts};
use crate::config::settings::{Plugin, Route, Target, TopicSelector};
use crate::config::{Loaded, Place, Problem, Problems, PropertyScope, Settings, UNREADABLE};
use crate::kafka::{ClientKind, Cluster, Topics, check_properties, source_topics};
use crate::model::{Digest, GroupId, PluginName, TopicName};
use crate::pipeline::chain::Chain;
use crate::pipeline::ports::{Step, Trouble, TroubleKind};
use crate::pipeline::worker::{Bounds, Task};
use crate::plugin::{Compiled, DestinationSpec, Engine, Prepare, Prepared};
use crate::policy::Partitioning;

/// Part of a worker's share of `memory` for what its consumer has fetched ahead; as much is for what its producer has not
/// sent yet, and the rest for records in work.
const QUEUES: u64 = 4;
/// How long the cluster may take to say which topics there are.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// A configuration that can run.
pub struct Plan {
    /// What the operator meant.
    pub settings: Arc<Settings>,
    /// The enabled routes, by name.
    pub routes: BTreeMap<crate::model::RouteName, Arc<RoutePlan>>,
    /// Of the configuration as it was read.
    pub hash: Digest,
}

/// A route that can run.
pub struct RoutePlan {
    /// What the operator meant.
    pub route: Route,
    steps: Vec<ReadyStep>,
    /// The number of its first worker. Routes that share a group count on: a worker's number is part of its transactional
    /// id and its `group.instance.id`, which no other may have.
    pub first_worker: u16,
    /// Dead-letter topics of all routes, which no pattern matches.
    pub dead_letter_topics: Arc<BTreeSet<TopicName>>,
    /// One worker's share of `memory` for what its consumer has fetched ahead, bytes.
    pub memory: u64,
    /// The group's `session.timeout.ms`.
    pub session_timeout: Duration,
    bounds: Bounds,
}

struct ReadyStep {
    prepared: Arc<Prepared>,
    timeout: Duration,
    plugin: PluginName,
    sha256: Digest,
}

impl Plan {
    /// Builds everything that `loaded` asks for.
    ///
    /// # Errors
    /// Every problem found, each at its place in the YAML.
    pub fn build(loaded: &Loaded, engine: &Engine) -> Result<Self, Problems> {
        let settings = Arc::new(loaded.settings.clone());
        let mut problems = Problems::new();
        problems.extend(property_problems(loaded));
        let compiled = compile_all(loaded, engine, &mut problems);
        let share = Share::of(&settings);
        let mut routes = BTreeMap::new();
        let mut next_worker: BTreeMap<GroupId, u16> = BTreeMap::new();
        for route in settings.routes.values() {
            let steps = prepare_steps(loaded, route, &compiled, &mut problems);
            if route.enabled {
                let next = next_worker.entry(route.source.group.clone()).or_default();
                let planned = RoutePlan { first_worker: *next, ..RoutePlan::new(route, steps, &settings, share) };
                *next += route.workers;
                routes.insert(route.name.clone(), Arc::new(planned));
            }
        }
        problems.sort();
        if problems.has_errors() { Err(problems) } else { Ok(Self { settings, routes, hash: loaded.hash }) }
    }
}

/// One worker's part of `memory`.
#[derive(Clone, Copy)]
struct Share {
    bytes: u64,
}

impl Share {
    fn of(settings: &Settings) -> Self {
        let workers: u64 =
            settings.routes.values().filter(|route| route.enabled).map(|route| u64::from(route.workers)).sum();
        Self { bytes: settings.memory / workers.max(1) }
    }
}

impl RoutePlan {
    fn new(route: &Route, steps: Vec<ReadyStep>, settings: &Settings, share: Share) -> Self {
        let property = |name: &str| {
            let own = route.source.consumer.get(name).or_else(|| settings.kafka.consumer.get(name));
            own.or_else(|| settings.kafka.common.get(name)).and_then(|value| value.reveal().parse().ok())
        };
        let dead_letters = settings.routes.values().filter_map(|route| route.on_error.dead_letter_topic());
        let in_work = usize::try_from(share.bytes / 2).unwrap_or(usize::MAX).max(1);
        Self {
            steps,
            first_worker: 0,
            dead_letter_topics: Arc::new(dead_letters.cloned().collect()),
            memory: share.bytes / QUEUES,
            session_timeout: Duration::from_millis(property("session.timeout.ms").unwrap_or(45_000)),
            bounds: Bounds {
                interval: route.transaction.interval,
                records: route.transaction.records as usize,
                bytes: usize::try_from(route.transaction.bytes).unwrap_or(usize::MAX).min(in_work),
                processing: settings.processing_timeout,
                held: in_work,
            },
            route: route.clone(),
        }
    }

    /// What a worker does, with plugin instances of its own.
    pub fn task(&self, generation: u64) -> Task {
        let steps =
            self.steps.iter().map(|step| (Box::new(step.prepared.step()) as Box<dyn Step>, step.timeout)).collect();
        let batch = self.route.batch;
        Task {
            chain: Chain::new(steps, batch.records as usize, usize::try_from(batch.bytes).unwrap_or(usize::MAX)),
            destinations: self.route.destinations.clone(),
            on_error: self.route.on_error.clone(),
            bounds: self.bounds,
            generation,
        }
    }

    /// The route's plugins in order, with the digests of their files.
    pub fn plugins(&self) -> impl Iterator<Item = (&PluginName, &Digest)> {
        self.steps.iter().map(|step| (&step.plugin, &step.sha256))
    }

    /// The topics that the source names.
    pub fn named_topics(&self) -> impl Iterator<Item = &TopicName> {
        self.route.source.topics.iter().filter_map(named_topic)
    }

    /// Looks the route's topics up before its first record: the topics of the cluster.
    ///
    /// # Errors
    /// A topic is missing, or has too few partitions for `partition: source`; or the cluster does not answer.
    pub fn check_topics(&self, cluster: &Cluster) -> Result<Arc<Topics>, Trouble> {
        let mut topics = cluster.topics()?;
        if self.topic_trouble(&topics).is_some() {
            topics = cluster.refresh_now(ASK_WITHIN)?;
        }
        self.topic_trouble(&topics).map_or(Ok(topics), Err)
    }

    fn topic_trouble(&self, topics: &Topics) -> Option<Trouble> {
        let route = &self.route;
        let fixed = route.destinations.iter().filter_map(|to| fixed_topic(&to.target));
        let mut needed = self.named_topics().chain(fixed).chain(route.on_error.dead_letter_topic());
        if let Some(missing) = needed.find(|topic| topics.partitions(topic.as_str()).is_none()) {
            return Some(Trouble::missing_topic(missing));
        }
        let source = source_topics(route, topics, &self.dead_letter_topics);
        let widest = source.iter().filter_map(|topic| Some((topics.partitions(topic.as_str())?, topic))).max()?;
        let by_source = route.destinations.iter().filter(|to| to.partition == Partitioning::Source);
        let narrow = by_source.filter_map(|to| fixed_topic(&to.target)).find_map(|topic| {
            let partitions = topics.partitions(topic.as_str())?;
            (partitions < widest.0).then_some((topic, partitions))
        });
        narrow.map(|(topic, partitions)| Trouble {
            code: "PARTITION_COUNT".into(),
            message: format!(
                "`partition: source` needs as many partitions in \"{topic}\" as in \"{}\": it has {partitions}, not {}",
                widest.1, widest.0
            ),
            kind: TroubleKind::Denied,
        })
    }

    /// What the status board is told of it.
    pub fn facts(&self) -> RouteFacts {
        RouteFacts {
            delivery: self.route.delivery,
            group: self.route.source.group.clone(),
            plugins: self
                .plugins()
                .map(|(plugin, sha256)| PluginStatus { plugin: plugin.clone(), sha256: *sha256 })
                .collect(),
            workers: self.route.workers,
        }
    }
}

/// librdkafka knows its properties best.
fn property_problems(loaded: &Loaded) -> Vec<Problem> {
    let (kafka, places) = (&loaded.settings.kafka, &loaded.places);
    let of_process = [
        (PropertyScope::Common, &kafka.common, ClientKind::Common),
        (PropertyScope::Consumer, &kafka.consumer, ClientKind::Consumer),
        (PropertyScope::Producer, &kafka.producer, ClientKind::Producer),
    ];
    let of_routes = loaded
        .settings
        .routes
        .values()
        .map(|route| (PropertyScope::Route(route.name.clone()), &route.source.consumer, ClientKind::Consumer));
    let mut problems = Vec::new();
    for (scope, properties, kind) in of_process.into_iter().chain(of_routes) {
        for (name, message) in check_properties(properties, kind) {
            // Ours are predicates ("is a property of producers"), librdkafka's are sentences.
            let colon = if message.starts_with(char::is_lowercase) { "" } else { ":" };
            let message = format!("`{name}`{colon} {message}");
            problems.push(problem_at(places.property(&scope, &name), message, "invalid_property"));
        }
    }
    problems
}

fn problem_at(place: Option<&Place>, message: String, code: &'static str) -> Problem {
    place.map_or_else(|| Problem::new(message.clone()), |place| Problem::at(place, message.clone())).code(code)
}

fn named_topic(selector: &TopicSelector) -> Option<&TopicName> {
    match selector {
        TopicSelector::Name(name) => Some(name),
        TopicSelector::Pattern(_) => None,
    }
}

fn fixed_topic(target: &Target) -> Option<&TopicName> {
    match target {
        Target::Topic(topic) => Some(topic),
        Target::Pattern(_) => None,
    }
}

fn topic_pattern(target: &Target) -> Option<Regex> {
    match target {
        Target::Topic(_) => None,
        Target::Pattern(pattern) => Some(pattern.clone()),
    }
}

fn compile_all(loaded: &Loaded, engine: &Engine, problems: &mut Problems) -> BTreeMap<PluginName, Compiled> {
    // A file that several plugins name is read once, so that all of them are the same bytes.
    let mut files: BTreeMap<PathBuf, Result<Vec<u8>, String>> = BTreeMap::new();
    let mut compiled = BTreeMap::new();
    for plugin in loaded.settings.plugins.values() {
        let bytes = files.entry(plugin.path.clone()).or_insert_with(|| read(&plugin.path));
        match compile(engine, plugin, bytes) {
            Ok(done) => drop(compiled.insert(plugin.name.clone(), done)),
            Err(problem) => problems.push(problem.at(loaded, &plugin.name)),
        }
    }
    compiled
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

/// Why a plugin cannot be used, without its place.
enum Unusable {
    Unreadable(String),
    Refused(String),
}

impl Unusable {
    fn at(self, loaded: &Loaded, plugin: &PluginName) -> Problem {
        let places = &loaded.places;
        let (message, code) = match self {
            Self::Unreadable(message) => (message, UNREADABLE),
            Self::Refused(message) => (message, "invalid_plugin"),
        };
        problem_at(places.plugin_path(plugin).or_else(|| places.plugin(plugin)), message, code)
    }
}

fn compile(engine: &Engine, plugin: &Plugin, bytes: &Result<Vec<u8>, String>) -> Result<Compiled, Unusable> {
    let bytes = bytes.as_ref().map_err(|message| Unusable::Unreadable(message.clone()))?;
    engine
        .compile_pinned(&plugin.name, bytes, plugin.sha256.as_ref())
        .map_err(|error| Unusable::Refused(format!("{} cannot be used: {error}", plugin.path.display())))
}

fn prepare_steps(
    loaded: &Loaded,
    route: &Route,
    compiled: &BTreeMap<PluginName, Compiled>,
    problems: &mut Problems,
) -> Vec<ReadyStep> {
    let destinations: Arc<[DestinationSpec]> = route
        .destinations
        .iter()
        .map(|to| DestinationSpec { name: to.name.clone(), topic_pattern: topic_pattern(&to.target) })
        .collect();
    let mut ready = Vec::new();
    for (number, step) in route.pipeline.iter().enumerate() {
        // What could not be compiled is a problem already.
        let Some(code) = compiled.get(&step.plugin) else { continue };
        let plugin = &loaded.settings.plugins[&step.plugin];
        let with = Prepare {
            plugin: step.plugin.clone(),
            route: route.name.clone(),
            config_json: step.config.to_string(),
            limits: plugin.limits,
            destinations: Arc::clone(&destinations),
        };
        match code.prepare(with) {
            Ok(prepared) => ready.push(ReadyStep {
                prepared: Arc::new(prepared),
                timeout: plugin.limits.timeout,
                plugin: step.plugin.clone(),
                sha256: code.inspection().sha256,
            }),
            Err(error) => {
                let message = format!("plugin \"{}\" in route \"{}\": {error}", step.plugin, route.name);
                problems.push(problem_at(loaded.places.step(&route.name, number), message, "invalid_plugin"));
            }
        }
    }
    ready
}
