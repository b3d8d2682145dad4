//! From settings to all that a route needs to run: plugins read, checked, compiled, instantiated and configured once.
//! Everything that can fail without Kafka fails here, before anything that runs is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::board::{RouteFacts, ShadowFacts};
use super::facts::Facts;
use super::plugins::{Plugins, ReadyStep};
use super::status::PluginStatus;
use crate::config::settings::{PipelineStep, Route, Target, TopicSelector};
use crate::config::share::Share;
use crate::config::{Loaded, Place, Problem, Problems, PropertyScope, Settings};
use crate::kafka::{ClientKind, Cluster, LeftOut, Topics, check_properties, check_together, source_topics};
use crate::model::{Digest, GroupId, PluginName, RouteName, TopicName};
use crate::pipeline::chain::Chain;
use crate::pipeline::compare::Difference;
use crate::pipeline::ports::{Step, Trouble, TroubleKind};
use crate::pipeline::shadow::{Cast, Count, Shadow, Sums};
use crate::pipeline::skip::Skip;
use crate::pipeline::task::{Bounds, Stop, Task};
use crate::plugin::{Engine, Slots};
use crate::policy::Partitioning;
use crate::telemetry::Metrics;

/// How long the cluster may take to say which topics there are.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// A configuration that can run.
pub struct Plan {
    /// What the operator meant.
    pub settings: Arc<Settings>,
    /// The enabled routes, by name.
    pub routes: BTreeMap<RouteName, Arc<RoutePlan>>,
    /// Of the configuration as it was read.
    pub hash: Digest,
    /// Of all that was read, secrets included.
    pub(super) fingerprint: Digest,
    plugins: Plugins,
}

/// A route that can run.
pub struct RoutePlan {
    /// What the operator meant.
    pub route: Route,
    pub(super) steps: Vec<Arc<ReadyStep>>,
    pub(super) shadow: Option<ShadowPlan>,
    /// The number of its first worker. Routes that share a group count on: a worker's number is part of its transactional
    /// id and its `group.instance.id`, which no other may have.
    pub first_worker: u16,
    /// What the patterns of its source do not match.
    pub left_out: Arc<LeftOut>,
    /// One worker's share of `memory`. What of it clients buffer is taken up by a worker's next session.
    pub share: Share,
    /// The group's `session.timeout.ms`.
    pub session_timeout: Duration,
    pub(super) bounds: Bounds,
}

/// A second set of plugins that can run.
#[derive(Clone)]
pub(super) struct ShadowPlan {
    pub(super) steps: Vec<Arc<ReadyStep>>,
    /// Kept over reloads for as long as the same plugins are compared.
    pub(super) sums: Arc<Sums>,
}

/// Why a configuration cannot run.
#[derive(Debug)]
pub struct Refused {
    /// Every problem found, each at its place in the YAML.
    pub problems: Problems,
    /// Plugin files among the reasons that may not be written to their end yet.
    pub unfinished: BTreeSet<PathBuf>,
}

impl Plan {
    /// Builds everything that `loaded` asks for, anew where it is not in `before`.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn build(loaded: &Loaded, engine: &Engine, before: Option<&Self>) -> Result<Self, Refused> {
        let settings = Arc::new(loaded.settings.clone());
        let mut problems = Problems::new();
        problems.extend(property_problems(loaded));
        let plugins = Plugins::load(loaded, engine, before.map(|before| &before.plugins), &mut problems);
        let share = Share::of(&settings);
        let numbers = number_workers(&settings, before);
        let dead_letters = settings.routes.values().filter_map(|route| route.on_error.dead_letter_topic());
        let dead_letters: Arc<BTreeSet<TopicName>> = Arc::new(dead_letters.cloned().collect());
        let mut routes = BTreeMap::new();
        for route in settings.routes.values() {
            let known = before.and_then(|before| before.routes.get(&route.name)).map(Arc::as_ref);
            let steps = plugins.prepare(loaded, route, known, &mut problems);
            let shadow = plugins.prepare_shadow(loaded, route, known, &mut problems);
            let shadow = shadow.map(|shadow| ShadowPlan::new(route, &steps, shadow, known));
            if let Some(first_worker) = numbers.get(&route.name) {
                let left_out =
                    LeftOut { destinations: route.destinations.clone(), dead_letters: Arc::clone(&dead_letters) };
                let planned = RoutePlan::new(route, steps, shadow, *first_worker, left_out, &settings, share);
                routes.insert(route.name.clone(), Arc::new(planned));
            }
        }
        let needed = routes.values().map(|route| route.slots()).sum();
        if let Some(too_many) = engine.slots().and_then(|slots| slots.refuse(needed)) {
            problems.push(Problem::new(too_many).code("too_many_instances"));
        }
        problems.sort();
        if problems.has_errors() {
            return Err(Refused { problems, unfinished: plugins.unfinished });
        }
        Ok(Self { settings, routes, hash: loaded.hash, fingerprint: loaded.fingerprint, plugins })
    }

    /// Each plugin's digest.
    pub(super) fn digests(&self) -> BTreeMap<&PluginName, &Digest> {
        self.plugins.digests()
    }

    /// The configuration as data.
    pub fn facts(&self) -> Facts {
        Facts::of(self)
    }
}

/// Numbers the workers of the enabled routes of each group. A route that has numbers keeps them while it has as many
/// workers, and no other gets those of a route that stays; those of one that goes are free, since its members leave first.
fn number_workers(settings: &Settings, before: Option<&Plan>) -> BTreeMap<RouteName, u16> {
    let stays = |had: &RoutePlan| {
        let now = settings.routes.get(&had.route.name).filter(|now| now.enabled);
        now.is_some_and(|now| now.source.group == had.route.source.group)
    };
    let before = before.into_iter().flat_map(|before| &before.routes).filter(|(_, had)| stays(had));
    let had: Vec<(&GroupId, &RouteName, u16, u16)> = before
        .map(|(name, had)| (&had.route.source.group, name, had.first_worker, had.first_worker + had.route.workers))
        .collect();
    let mut has: Vec<(&GroupId, &RouteName, u16, u16)> = Vec::new();
    for (name, route) in settings.routes.iter().filter(|(_, route)| route.enabled) {
        let (group, workers) = (&route.source.group, route.workers);
        let kept = had.iter().find(|(of, own, first, end)| (*of, *own, end - first) == (group, name, workers));
        let first = kept.map_or_else(
            || {
                let of_others = had.iter().chain(&has).filter(|(of, other, ..)| *of == group && *other != name);
                let mut blocks: Vec<(u16, u16)> = of_others.map(|(_, _, first, end)| (*first, *end)).collect();
                blocks.sort_unstable();
                blocks.iter().fold(0, |free, (first, end)| if free + workers <= *first { free } else { free.max(*end) })
            },
            |(_, _, first, _)| *first,
        );
        has.push((group, name, first, first + workers));
    }
    has.into_iter().map(|(_, name, first, _)| (name.clone(), first)).collect()
}

impl RoutePlan {
    fn new(
        route: &Route,
        steps: Vec<Arc<ReadyStep>>,
        shadow: Option<ShadowPlan>,
        first_worker: u16,
        left_out: LeftOut,
        settings: &Settings,
        share: Share,
    ) -> Self {
        Self {
            steps,
            shadow,
            first_worker,
            left_out: Arc::new(left_out),
            share,
            session_timeout: settings.session_timeout(route),
            bounds: Bounds {
                interval: route.transaction.interval,
                records: route.transaction.records as usize,
                bytes: usize::try_from(route.transaction.bytes).unwrap_or(usize::MAX).min(share.transaction()),
                processing: settings.processing_timeout,
                held: share.held(),
            },
            route: route.clone(),
        }
    }

    /// What a worker does until `stop` is set, with plugin instances of its own, made already.
    pub fn task(&self, generation: u64, stop: &Stop) -> Task {
        let mut chain = self.ready_chain();
        chain.heed(stop);
        Task {
            chain,
            shadow: None,
            destinations: self.route.destinations.clone(),
            on_error: self.route.on_error.clone(),
            bounds: self.bounds,
            generation,
        }
    }

    /// The same, with as many sets of instances as `parallelism` says.
    pub(super) fn shared_task(&self, generation: u64, stop: &Stop) -> Task {
        let mut task = self.task(generation, stop);
        if !self.steps.is_empty() {
            task.chain.share_with((1..self.route.parallelism).map(|_| self.ready_chain()).collect());
            task.chain.heed(stop);
        }
        task
    }

    fn ready_chain(&self) -> Chain {
        let ready = |step: &Arc<ReadyStep>| Box::new(step.prepared.ready_step()) as Box<dyn Step>;
        self.chain(&self.steps, &self.route.pipeline, ready)
    }

    /// The shadow of one of its workers, if it has such, at work.
    pub(super) fn start_shadow(&self, worker: u16, metrics: &Metrics) -> Option<Shadow> {
        let (plan, wanted) = self.shadow.as_ref().zip(self.route.shadow.as_ref())?;
        let ready = |step: &Arc<ReadyStep>| Box::new(step.prepared.shadow_step()) as Box<dyn Step>;
        let cast = Cast {
            chain: self.chain(&plan.steps, &wanted.pipeline, ready),
            destinations: self.route.destinations.clone(),
            one_in: wanted.one_in,
            bytes: self.share.shadow(),
            count: Count {
                sums: Arc::clone(&plan.sums),
                metrics: metrics.shadow(&self.route.name, &Difference::WORDS),
            },
        };
        Some(Shadow::start(cast, &format!("{}-{worker}", self.route.name)))
    }

    fn chain(
        &self,
        steps: &[Arc<ReadyStep>],
        written: &[PipelineStep],
        ready: impl Fn(&Arc<ReadyStep>) -> Box<dyn Step>,
    ) -> Chain {
        let (steps, batch) = (steps.iter().map(|step| (ready(step), step.timeout)), self.route.batch);
        let bytes = usize::try_from(batch.bytes).unwrap_or(usize::MAX);
        let mut chain = Chain::new(steps.collect(), batch.records as usize, bytes);
        chain.only_when(written.iter().map(|step| step.when.clone()));
        chain
    }

    /// What the instances of its workers take.
    fn slots(&self) -> Slots {
        let shadow = self.shadow.iter().flat_map(|shadow| &shadow.steps);
        let of_a_worker: Slots = self.steps.iter().chain(shadow).map(|step| step.prepared.slots()).sum();
        of_a_worker * u32::from(self.route.workers)
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

    /// The topics that have to be there: those that source, destinations and `on_error` name.
    pub fn needed_topics(&self) -> impl Iterator<Item = &TopicName> {
        let fixed = self.route.destinations.iter().filter_map(|to| fixed_topic(&to.target));
        self.named_topics().chain(fixed).chain(self.route.on_error.dead_letter_topic())
    }

    /// What keeps it from running with these topics.
    pub(super) fn topic_trouble(&self, topics: &Topics) -> Option<Trouble> {
        let route = &self.route;
        let mut needed = self.needed_topics();
        if let Some(missing) = needed.find(|topic| topics.partitions(topic.as_str()).is_none()) {
            return Some(Trouble::missing_topic(missing));
        }
        let source = source_topics(&route.source, topics, &self.left_out);
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

    /// Whether a worker that does this does `other` as well, but for its bounds.
    pub(super) fn does_the_same(&self, other: &Self) -> bool {
        let shadow = |plan: &Self| plan.shadow.as_ref().map(|shadow| pointers(&shadow.steps));
        self.route == other.route
            && pointers(&self.steps) == pointers(&other.steps)
            && shadow(self) == shadow(other)
            && (self.shadow.is_none() || self.share == other.share)
    }

    /// Why a record is not to be passed by like this, if it is not: what it reads, it must not write.
    pub(super) fn check_skip(&self, skip: &Skip) -> Result<(), String> {
        let Some(topic) = &skip.dead_letter else { return Ok(()) };
        let reads = |selector: &TopicSelector| match selector {
            TopicSelector::Name(name) => name == topic,
            TopicSelector::Pattern(pattern) => pattern.is_match(topic.as_str()),
        };
        match self.route.source.topics.iter().any(reads) {
            true => Err(format!("the route reads {topic}: the record would come back to it")),
            false => Ok(()),
        }
    }

    /// What the status board is told of it.
    pub fn facts(&self) -> RouteFacts {
        RouteFacts {
            delivery: self.route.delivery,
            group: self.route.source.group.clone(),
            plugins: statuses(&self.steps),
            shadow: self.shadow.as_ref().zip(self.route.shadow.as_ref()).map(|(plan, wanted)| ShadowFacts {
                plugins: statuses(&plan.steps),
                one_in: wanted.one_in,
                sums: Arc::clone(&plan.sums),
            }),
            workers: self.route.workers,
            parallelism: self.route.parallelism,
            lag_alert: self.route.lag_alert,
        }
    }
}

impl ShadowPlan {
    /// Beside `first`. What was counted `before` holds on, where the same are compared.
    fn new(route: &Route, first: &[Arc<ReadyStep>], steps: Vec<Arc<ReadyStep>>, before: Option<&RoutePlan>) -> Self {
        let as_before = before.and_then(|before| {
            let (shadow, was) = (before.shadow.as_ref()?, &before.route);
            let same = pointers(first) == pointers(&before.steps)
                && pointers(&steps) == pointers(&shadow.steps)
                && (&route.pipeline, &route.shadow, &route.destinations)
                    == (&was.pipeline, &was.shadow, &was.destinations);
            same.then(|| Arc::clone(&shadow.sums))
        });
        Self { steps, sums: as_before.unwrap_or_default() }
    }
}

/// Steps that were prepared in the same way are the same.
fn pointers(steps: &[Arc<ReadyStep>]) -> Vec<*const ReadyStep> {
    steps.iter().map(Arc::as_ptr).collect()
}

fn statuses(steps: &[Arc<ReadyStep>]) -> Vec<PluginStatus> {
    steps.iter().map(|step| PluginStatus { plugin: step.plugin.clone(), sha256: step.sha256 }).collect()
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
    if problems.is_empty()
        && let Some(message) = check_together(kafka)
    {
        let place = places.property(&PropertyScope::Common, "sasl.oauthbearer.method").or_else(|| places.kafka());
        problems.push(problem_at(place, message, "invalid_property"));
    }
    problems
}

pub(super) fn problem_at(place: Option<&Place>, message: String, code: &'static str) -> Problem {
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
