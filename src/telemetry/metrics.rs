//! The handles by which the rest of the code counts. Labels are resolved once, when a handle is made or a name first
//! occurs; afterwards counting is an atomic addition, done once a transaction.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio::time::Instant;

use super::custom::CustomMetrics;
use super::process::Process;
use super::series::{Histogram, Registry, Value, unix};
use super::table::{self, Kind, Metric};
use crate::model::{DestinationName, Digest, FaultCode, PluginName, RouteName, TopicName, TopicPartition};

/// What became of a transaction: the values of the label `outcome`.
pub const TRANSACTION_OUTCOMES: [&str; 5] = ["committed", "aborted", "rejected", "unknown", "broken"];

/// What a worker does: the values of the label `state` of `millrace_worker_seconds_total`.
pub(super) const WORKER_STATES: [&str; 5] = ["polling", "processing", "producing", "delivering", "committing"];

/// All metrics of the process. Cheap to clone; everything it hands out counts into the same place.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    exporter: PrometheusRecorder,
    handle: PrometheusHandle,
    series: Registry,
    process: Process,
    /// What routes have done in this process, their restarts included.
    totals: Mutex<HashMap<RouteName, Arc<Totals>>>,
    custom: CustomMetrics,
}

impl Metrics {
    /// Metrics of their own. A process makes them once; nothing is global, so a test makes as many as it likes.
    pub fn new(version: &str) -> Self {
        Self::with_custom(version, CustomMetrics::default())
    }

    /// As [`Metrics::new`]; shows what plugins count themselves, too.
    pub fn with_custom(version: &str, custom: CustomMetrics) -> Self {
        let exporter = PrometheusBuilder::new().build_recorder();
        for metric in table::ALL {
            match metric.kind {
                Kind::Counter => exporter.describe_counter(metric.name.into(), None, metric.help.into()),
                Kind::Gauge => exporter.describe_gauge(metric.name.into(), None, metric.help.into()),
                Kind::SecondsCounter | Kind::HeldCounter | Kind::Held(_) | Kind::HeldSince | Kind::Histogram(_) => {} // ours: the registry writes their help
            }
        }
        let series = Registry::default();
        let process = Process::new(&series);
        let handle = exporter.handle();
        let metrics = Self(Arc::new(Inner { exporter, handle, series, process, totals: Mutex::default(), custom }));
        metrics.gauge(&table::BUILD_INFO, &[version]).set(1.0);
        metrics
    }

    /// Everything, in Prometheus' text format 0.0.4.
    pub fn render(&self) -> String {
        self.0.process.refresh();
        let mut text = self.0.handle.render();
        self.0.series.render(&mut text, unix(SystemTime::now()));
        self.0.custom.render(&mut text);
        text
    }

    /// The handles of the configuration.
    pub fn config(&self) -> ConfigMetrics {
        ConfigMetrics::new(self)
    }

    /// The handles of a worker of `route`. Each worker takes its own; what they count is added.
    pub fn route(&self, route: &RouteName) -> RouteMetrics {
        RouteMetrics::new(self, route)
    }

    /// The handles of a shadow of `route`; `kinds` are the kinds of difference.
    pub fn shadow(&self, route: &RouteName, kinds: &[&'static str]) -> ShadowMetrics {
        let records = |outcome| self.counter(&table::SHADOW_RECORDS, &[route.as_str(), outcome]);
        let kind = |kind: &&str| self.counter(&table::SHADOW_DIFFERENCES, &[route.as_str(), kind]);
        ShadowMetrics {
            same: records("same"),
            different: records("different"),
            skipped: records("skipped"),
            kinds: kinds.iter().map(kind).collect(),
        }
    }

    /// The gauges that describe a route as a whole, with one `millrace_route_state` for each of `states`.
    pub fn route_gauges(&self, route: &RouteName, states: &[&'static str]) -> RouteGauges {
        let held = |metric| self.0.series.held(metric, &[route.as_str()]);
        let state = |word: &&'static str| (*word, self.0.series.held(&table::ROUTE_STATE, &[route.as_str(), word]));
        RouteGauges {
            states: states.iter().map(state).collect(),
            assigned: held(&table::PARTITIONS_ASSIGNED),
            stopped: held(&table::PARTITIONS_STOPPED),
            idle: held(&table::WORKERS_IDLE),
            lag_alert: held(&table::LAG_ALERT),
        }
    }

    /// `millrace_plugin_info`, shown for as long as the answer lives.
    pub fn plugin_info(&self, route: &RouteName, plugin: &PluginName, sha256: &Digest) -> InfoGauge {
        self.info(&table::PLUGIN_INFO, &[route.as_str(), plugin.as_str(), &sha256.to_string()])
    }

    /// What becomes of spans.
    pub(super) fn spans(&self) -> SpanMetrics {
        let [exported, dropped] = ["exported", "dropped"].map(|outcome| self.counter(&table::SPANS, &[outcome]));
        SpanMetrics { exported, dropped }
    }

    /// What `route` has done since this process started.
    pub fn totals(&self, route: &RouteName) -> Arc<Totals> {
        // A panic elsewhere cannot leave the map half changed.
        self.0.totals.lock().unwrap_or_else(PoisonError::into_inner).entry(route.clone()).or_default().clone()
    }

    fn info(&self, metric: &'static Metric, labels: &[&str]) -> InfoGauge {
        let value = self.0.series.held(metric, labels);
        value.set(1.0);
        InfoGauge(value)
    }

    fn counter(&self, metric: &'static Metric, labels: &[&str]) -> Counter {
        debug_assert_eq!(metric.kind, Kind::Counter, "{}", metric.name);
        self.0.exporter.register_counter(&key(metric, labels), &METADATA)
    }

    fn gauge(&self, metric: &'static Metric, labels: &[&str]) -> Gauge {
        debug_assert_eq!(metric.kind, Kind::Gauge, "{}", metric.name);
        self.0.exporter.register_gauge(&key(metric, labels), &METADATA)
    }
}

static METADATA: Metadata<'static> = Metadata::new("millrace", Level::INFO, None);

fn key(metric: &'static Metric, values: &[&str]) -> Key {
    debug_assert_eq!(values.len(), metric.labels.len(), "{}", metric.name);
    let labels = metric.labels.iter().zip(values).map(|(label, value)| Label::new(*label, (*value).to_owned()));
    Key::from_parts(metric.name, labels.collect::<Vec<_>>())
}

/// A series that is always 1 and says something by its labels; it vanishes when this is dropped.
#[derive(Debug)]
pub struct InfoGauge(#[expect(dead_code, reason = "held for as long as the series is to be shown")] Value);

/// Counts what becomes of spans.
#[derive(Debug)]
pub(super) struct SpanMetrics {
    pub(super) exported: Counter,
    pub(super) dropped: Counter,
}

/// Counts reloads and shows the configuration in force.
#[derive(Debug)]
pub struct ConfigMetrics {
    metrics: Metrics,
    generation: Gauge,
    successful: Gauge,
    success_at: Gauge,
    outcomes: HashMap<&'static str, Counter>,
    hash: Option<InfoGauge>,
}

impl ConfigMetrics {
    fn new(metrics: &Metrics) -> Self {
        let outcomes = ["applied", "unchanged", "rejected"];
        Self {
            metrics: metrics.clone(),
            generation: metrics.gauge(&table::CONFIG_GENERATION, &[]),
            successful: metrics.gauge(&table::CONFIG_LAST_RELOAD_SUCCESSFUL, &[]),
            success_at: metrics.gauge(&table::CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP, &[]),
            outcomes: outcomes.map(|outcome| (outcome, metrics.counter(&table::RELOADS, &[outcome]))).into(),
            hash: None,
        }
    }

    /// A configuration is in force.
    pub fn applied(&mut self, generation: u64, hash: &Digest) {
        self.generation.set(generation as f64);
        self.hash = Some(self.metrics.info(&table::CONFIG_HASH, &[&hash.to_string()]));
        self.loaded("applied");
    }

    /// A configuration was read and is the one in force.
    pub fn unchanged(&self) {
        self.loaded("unchanged");
    }

    /// A configuration was refused.
    pub fn rejected(&self) {
        self.successful.set(0.0);
        self.outcomes["rejected"].increment(1);
    }

    fn loaded(&self, outcome: &'static str) {
        self.successful.set(1.0);
        self.success_at.set(unix(SystemTime::now()));
        self.outcomes[outcome].increment(1);
    }
}

/// The state of a route as a whole. Its series vanish when this is dropped.
#[derive(Debug)]
pub struct RouteGauges {
    states: Vec<(&'static str, Value)>,
    assigned: Value,
    stopped: Value,
    idle: Value,
    lag_alert: Value,
}

impl RouteGauges {
    /// The state, by one of the words that the gauges were made with.
    pub fn state(&self, word: &str) {
        for (state, value) in &self.states {
            value.set(f64::from(u8::from(*state == word)));
        }
    }

    /// Partitions owned, partitions that are stopped, workers without a partition.
    pub fn partitions(&self, assigned: usize, stopped: usize, idle_workers: usize) {
        self.assigned.set(assigned as f64);
        self.stopped.set(stopped as f64);
        self.idle.set(idle_workers as f64);
    }

    /// Whether lag is above the route's `lag_alert`; not shown for a route that has none.
    pub fn lag_alert(&self, above: Option<bool>) {
        self.lag_alert.set(above.map_or(f64::NAN, |above| f64::from(u8::from(above))));
    }
}

/// What the shadow of a worker counts.
#[derive(Debug, Clone)]
pub struct ShadowMetrics {
    same: Counter,
    different: Counter,
    skipped: Counter,
    kinds: Vec<Counter>,
}

impl ShadowMetrics {
    /// Records were compared; `kinds`: how many differ in what, in the order in which the kinds were named.
    pub fn compared(&self, same: u64, different: u64, kinds: &[u64]) {
        self.same.increment(same);
        self.different.increment(different);
        self.kinds.iter().zip(kinds).for_each(|(counter, records)| counter.increment(*records));
    }

    /// Records passed unseen.
    pub fn skipped(&self, records: u64) {
        self.skipped.increment(records);
    }
}

/// What one worker of a route counts. Not shared: each worker has its own, which makes the caches plain.
#[derive(Debug)]
pub struct RouteMetrics {
    metrics: Metrics,
    route: RouteName,
    totals: Arc<Totals>,
    sources: HashMap<TopicName, Flow>,
    destinations: HashMap<DestinationName, Flow>,
    plugins: HashMap<PluginName, PluginMetrics>,
    partitions: HashMap<TopicPartition, PartitionMetrics>,
    broker_errors: HashMap<String, Counter>,
    filtered_by_none: Counter,
    skipped: [Counter; FaultCode::ALL.len()],
    dead_letters: [Counter; FaultCode::ALL.len()],
    transactions: [Counter; TRANSACTION_OUTCOMES.len()],
    commit_duration: Histogram,
    latency: Histogram,
    last_commit: Value,
    open: Value,
    rebalances: Counter,
    throttled: Value,
    worker: [Value; WORKER_STATES.len()],
    worker_cpu: Value,
}

#[derive(Debug)]
struct Flow {
    records: Counter,
    bytes: Counter,
}

#[derive(Debug)]
struct PluginMetrics {
    faults: [Counter; FaultCode::ALL.len()],
    filtered: Counter,
    calls: Counter,
    seconds: Value,
    instances: Counter,
    memory: Value,
}

impl RouteMetrics {
    fn new(metrics: &Metrics, route: &RouteName) -> Self {
        let r = route.as_str();
        let by_code = |metric| FaultCode::ALL.map(|code| metrics.counter(metric, &[r, code.as_str()]));
        let open = metrics.0.series.held(&table::TRANSACTION_OPEN, &[r]);
        open.idle();
        Self {
            totals: metrics.totals(route),
            sources: HashMap::new(),
            destinations: HashMap::new(),
            plugins: HashMap::new(),
            partitions: HashMap::new(),
            broker_errors: HashMap::new(),
            filtered_by_none: metrics.counter(&table::RECORDS_FILTERED, &[r, ""]),
            skipped: by_code(&table::RECORDS_SKIPPED),
            dead_letters: by_code(&table::DEAD_LETTERS),
            transactions: TRANSACTION_OUTCOMES.map(|outcome| metrics.counter(&table::TRANSACTIONS, &[r, outcome])),
            commit_duration: metrics.0.series.histogram(&table::COMMIT_DURATION, &[r]),
            latency: metrics.0.series.histogram(&table::RECORD_LATENCY, &[r]),
            last_commit: metrics.0.series.held(&table::LAST_COMMIT, &[r]),
            open,
            rebalances: metrics.counter(&table::REBALANCES, &[r]),
            throttled: metrics.0.series.kept(&table::BROKER_THROTTLE, &[r]),
            worker: WORKER_STATES.map(|state| metrics.0.series.kept(&table::WORKER_SECONDS, &[r, state])),
            worker_cpu: metrics.0.series.kept(&table::WORKER_CPU, &[r]),
            metrics: metrics.clone(),
            route: route.clone(),
        }
    }

    /// From now on the route's chain is made of these: their counters show from 0, and the gauges of plugins that are no
    /// longer part of it vanish. To be called at the start and when a new chain is taken up.
    pub fn follow<'a>(
        &mut self,
        topics: impl IntoIterator<Item = &'a TopicName>,
        plugins: impl IntoIterator<Item = &'a PluginName>,
        destinations: impl IntoIterator<Item = &'a DestinationName>,
    ) {
        let mut before = std::mem::take(&mut self.plugins);
        for plugin in plugins {
            if let Some(metrics) = before.remove(plugin) {
                self.plugins.insert(plugin.clone(), metrics);
            }
            self.plugin(plugin);
        }
        topics.into_iter().for_each(|topic| self.consumed(topic, 0, 0));
        destinations.into_iter().for_each(|destination| self.produced(destination, 0, 0));
    }

    /// Source records, and their bytes, were committed.
    pub fn consumed(&mut self, topic: &TopicName, records: u64, bytes: u64) {
        let Self { sources, metrics, route, .. } = self;
        let flow = cached(sources, topic, || Flow {
            records: metrics.counter(&table::RECORDS_CONSUMED, &[route.as_str(), topic.as_str()]),
            bytes: metrics.counter(&table::BYTES_CONSUMED, &[route.as_str(), topic.as_str()]),
        });
        flow.records.increment(records);
        flow.bytes.increment(bytes);
        self.totals.consumed.fetch_add(records, Release);
    }

    /// Records, and their bytes, were committed to a destination.
    pub fn produced(&mut self, destination: &DestinationName, records: u64, bytes: u64) {
        let Self { destinations, metrics, route, .. } = self;
        let flow = cached(destinations, destination, || Flow {
            records: metrics.counter(&table::RECORDS_PRODUCED, &[route.as_str(), destination.as_str()]),
            bytes: metrics.counter(&table::BYTES_PRODUCED, &[route.as_str(), destination.as_str()]),
        });
        flow.records.increment(records);
        flow.bytes.increment(bytes);
        self.totals.produced.fetch_add(records, Relaxed);
    }

    /// `plugin` dropped items; none: no destination took them.
    pub fn filtered(&mut self, plugin: Option<&PluginName>, items: u64) {
        match plugin {
            Some(plugin) => self.plugin(plugin).filtered.increment(items),
            None => self.filtered_by_none.increment(items),
        }
        self.totals.filtered.fetch_add(items, Relaxed);
    }

    /// Source records at fault were passed by.
    pub fn skipped(&self, code: FaultCode, records: u64) {
        self.skipped[code as usize].increment(records);
        self.totals.skipped.fetch_add(records, Relaxed);
    }

    /// Source records at fault were committed to the dead-letter topic.
    pub fn dead_letters(&self, code: FaultCode, records: u64) {
        self.dead_letters[code as usize].increment(records);
        self.totals.dead_letters.fetch_add(records, Relaxed);
    }

    /// How long committed records took from their timestamps, counted by class: one for each of
    /// [`table::LATENCY_BOUNDS`] and a last one; and the sum of all in seconds.
    pub fn latencies(&self, counts: &[u64], sum_seconds: f64) {
        self.latency.add(counts, sum_seconds);
    }

    /// A transaction begins: from now on it is open.
    pub fn transaction_begins(&self) {
        self.open.since(SystemTime::now());
    }

    /// A transaction has ended after `took`; `outcome` is one of [`TRANSACTION_OUTCOMES`].
    pub fn transaction(&self, outcome: &str, took: Duration) {
        self.open.idle();
        debug_assert!(TRANSACTION_OUTCOMES.contains(&outcome), "{outcome}");
        if let Some(place) = TRANSACTION_OUTCOMES.iter().position(|known| *known == outcome) {
            self.transactions[place].increment(1);
        }
        if outcome == "committed" {
            self.commit_duration.observe(took.as_secs_f64());
            self.last_commit.set(unix(SystemTime::now()));
        }
    }

    /// What a plugin has used: calls, CPU time and instances since the last time, and the memory it has now.
    pub fn used(&mut self, plugin: &PluginName, calls: u64, cpu: Duration, instances: u64, memory: u64) {
        let metrics = self.plugin(plugin);
        metrics.calls.increment(calls);
        metrics.seconds.add(cpu.as_secs_f64());
        metrics.instances.increment(instances);
        metrics.memory.set(memory as f64);
    }

    /// A plugin was at fault.
    pub fn plugin_fault(&mut self, plugin: &PluginName, code: FaultCode) {
        self.plugin(plugin).faults[code as usize].increment(1);
    }

    /// The assignment has changed.
    pub fn rebalanced(&self) {
        self.rebalances.increment(1);
    }

    /// The broker, or the connection to it, has failed: `code` is Kafka's or librdkafka's name of the error.
    pub fn broker_error(&mut self, code: &str) {
        let Self { broker_errors, metrics, route, .. } = self;
        if !broker_errors.contains_key(code) {
            let counter = metrics.counter(&table::BROKER_ERRORS, &[route.as_str(), code]);
            broker_errors.insert(code.to_owned(), counter);
        }
        broker_errors[code].increment(1);
    }

    /// Where the time of a worker went: of each of [`WORKER_STATES`], and CPU time.
    pub fn spent(&self, times: [Duration; WORKER_STATES.len()], cpu: Duration) {
        self.worker.iter().zip(times).for_each(|(value, time)| value.add(time.as_secs_f64()));
        self.worker_cpu.add(cpu.as_secs_f64());
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        for (sum, time) in self.totals.spent.iter().zip(times.into_iter().chain([cpu])) {
            sum.fetch_add(micros(time), Relaxed);
        }
    }

    /// A broker has made us wait.
    pub fn throttled(&self, time: Duration) {
        self.throttled.add(time.as_secs_f64());
    }

    /// These are the partitions that the worker owns now, all of them: the series of others vanish.
    pub fn assigned(&mut self, partitions: &[TopicPartition]) {
        let owned: HashSet<&TopicPartition> = partitions.iter().collect();
        self.partitions.retain(|at, _| owned.contains(at));
        partitions.iter().for_each(|at| _ = self.partition(at));
    }

    /// The series of a partition. They are shown until an assignment is told that is without it.
    pub fn partition(&mut self, at: &TopicPartition) -> &PartitionMetrics {
        let Self { partitions, metrics, route, .. } = self;
        cached(partitions, at, || PartitionMetrics::new(metrics, route, at))
    }

    fn plugin(&mut self, plugin: &PluginName) -> &PluginMetrics {
        let Self { plugins, metrics, route, .. } = self;
        let labels = [route.as_str(), plugin.as_str()];
        let fault = |code: FaultCode| metrics.counter(&table::PLUGIN_FAULTS, &[labels[0], labels[1], code.as_str()]);
        cached(plugins, plugin, || PluginMetrics {
            faults: FaultCode::ALL.map(fault),
            filtered: metrics.counter(&table::RECORDS_FILTERED, &labels),
            calls: metrics.counter(&table::PLUGIN_CALLS, &labels),
            seconds: metrics.0.series.kept(&table::PLUGIN_SECONDS, &labels),
            instances: metrics.counter(&table::PLUGIN_INSTANCES, &labels),
            memory: metrics.0.series.held(&table::PLUGIN_MEMORY, &labels),
        })
    }
}

/// The entry of `key`, made where there is none. A hit costs one hash and no clone.
fn cached<'a, K: Hash + Eq + Clone, V>(map: &'a mut HashMap<K, V>, key: &K, make: impl FnOnce() -> V) -> &'a V {
    if !map.contains_key(key) {
        map.insert(key.clone(), make());
    }
    &map[key]
}

/// The series of one source partition; see [`RouteMetrics::assigned`]. Each but the lost records is absent until it is set.
#[derive(Debug)]
pub struct PartitionMetrics {
    lag_records: Value,
    lag_seconds: Value,
    blocked_records: Value,
    blocked_seconds: Value,
    lost: Value,
}

impl PartitionMetrics {
    fn new(metrics: &Metrics, route: &RouteName, at: &TopicPartition) -> Self {
        let partition = at.partition.to_string();
        let held = |metric| metrics.0.series.held(metric, &[route.as_str(), at.topic.as_str(), &partition]);
        let lost = held(&table::RECORDS_LOST);
        lost.set(0.0);
        Self {
            lag_records: held(&table::LAG_RECORDS),
            lag_seconds: held(&table::LAG_SECONDS),
            blocked_records: held(&table::BLOCKED_RECORDS),
            blocked_seconds: held(&table::BLOCKED_SECONDS),
            lost,
        }
    }

    /// Records not yet committed, and the time of the oldest of them where it is known to have one.
    pub fn lag(&self, records: u64, oldest: Option<SystemTime>) {
        self.lag_records.set(records as f64);
        match oldest {
            Some(at) if records > 0 => self.lag_seconds.since(at),
            _ => self.lag_seconds.idle(),
        }
    }

    /// Records that an open transaction upstream holds back, and since when.
    pub fn blocked(&self, records: u64, since: Option<SystemTime>) {
        self.blocked_records.set(records as f64);
        match since {
            Some(at) if records > 0 => self.blocked_seconds.since(at),
            _ => self.blocked_seconds.idle(),
        }
    }

    /// Records are known to be lost.
    pub fn lost(&self, records: u64) {
        self.lost.add(records as f64);
    }
}

/// What a route has done since the process started, for people: committed records only.
#[derive(Debug, Default)]
pub struct Totals {
    consumed: AtomicU64,
    produced: AtomicU64,
    filtered: AtomicU64,
    skipped: AtomicU64,
    dead_letters: AtomicU64,
    /// Microseconds of each of [`WORKER_STATES`], and of CPU time.
    spent: [AtomicU64; WORKER_STATES.len() + 1],
    rate: Mutex<Option<Sample>>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    consumed: u64,
    per_second: f64,
}

/// [`Totals`] at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct TotalsSnapshot {
    /// Source records committed.
    pub consumed: u64,
    /// Records committed to destinations.
    pub produced: u64,
    /// Items that a plugin dropped or no destination took.
    pub filtered: u64,
    /// Records at fault that were passed by.
    pub skipped: u64,
    /// Dead letters committed.
    pub dead_letters: u64,
    /// Source records a second, between the last two looks that were at least a second apart.
    pub consumed_per_second: f64,
    /// Where the workers' time went.
    pub worker_seconds: WorkerSeconds,
}

/// Where the time of a route's workers went, in seconds; see the metric `millrace_worker_seconds_total`.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct WorkerSeconds {
    /// Serving the group and waiting for records.
    pub polling: f64,
    /// In plugins, and in routing.
    pub processing: f64,
    /// Handing outputs to the client.
    pub producing: f64,
    /// Waiting until all outputs were acknowledged.
    pub delivering: f64,
    /// Sending offsets, and committing.
    pub committing: f64,
    /// CPU time.
    pub cpu: f64,
}

impl Totals {
    /// The numbers now. Looking costs the one who looks; counting costs nothing more.
    pub fn snapshot(&self) -> TotalsSnapshot {
        // First: what became of the records that it counts was counted before them.
        let consumed = self.consumed.load(Acquire);
        TotalsSnapshot {
            consumed,
            produced: self.produced.load(Relaxed),
            filtered: self.filtered.load(Relaxed),
            skipped: self.skipped.load(Relaxed),
            dead_letters: self.dead_letters.load(Relaxed),
            consumed_per_second: self.rate(consumed, Instant::now()),
            worker_seconds: self.worker_seconds(),
        }
    }

    fn worker_seconds(&self) -> WorkerSeconds {
        let seconds = self.spent.each_ref().map(|micros| Duration::from_micros(micros.load(Relaxed)).as_secs_f64());
        let [polling, processing, producing, delivering, committing, cpu] = seconds;
        WorkerSeconds { polling, processing, producing, delivering, committing, cpu }
    }

    fn rate(&self, consumed: u64, now: Instant) -> f64 {
        let mut last = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sample) = *last else {
            *last = Some(Sample { at: now, consumed, per_second: 0.0 });
            return 0.0;
        };
        let seconds = (now - sample.at).as_secs_f64();
        if seconds < 1.0 {
            return sample.per_second;
        }
        let per_second = ((consumed - sample.consumed) as f64 / seconds * 10.0).round() / 10.0;
        *last = Some(Sample { at: now, consumed, per_second });
        per_second
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// One handle of each kind, used once.
    struct Everything {
        metrics: Metrics,
        config: ConfigMetrics,
        route: RouteMetrics,
        gauges: RouteGauges,
        info: InfoGauge,
        own: super::super::custom::PluginMetrics,
    }

    fn use_everything() -> Everything {
        let metrics = Metrics::new("1.2.3");
        let name = RouteName::new("r").unwrap();
        let plugin = PluginName::new("p").unwrap();
        let topic = TopicName::new("t").unwrap();
        let mut config = metrics.config();
        config.applied(1, &Digest::of(b""));
        let gauges = metrics.route_gauges(&name, &["running", "failed"]);
        gauges.state("running");
        gauges.partitions(1, 0, 0);
        gauges.lag_alert(Some(false));
        let mut route = metrics.route(&name);
        route.follow([&topic], [&plugin], [&DestinationName::new("d").unwrap()]);
        route.consumed(&topic, 2, 20);
        route.used(&plugin, 1, Duration::from_millis(1_500), 1, 65_536);
        route.transaction("committed", Duration::from_millis(20));
        route.broker_error("COORDINATOR_NOT_AVAILABLE");
        let partition = TopicPartition { topic, partition: 3 };
        route.assigned(std::slice::from_ref(&partition));
        route.partition(&partition).lag(5, Some(SystemTime::now()));
        route.partition(&partition).blocked(0, None);
        route.partition(&partition).lost(4);
        metrics.shadow(&name, &["fault", "value"]).compared(7, 2, &[0, 2]);
        let info = metrics.plugin_info(&name, &plugin, &Digest::of(b""));
        metrics.spans().exported.increment(1);
        let own = metrics.0.custom.of(&name, &plugin, &Digest::of(b""));
        Everything { metrics, config, route, gauges, info, own }
    }

    /// Samples by family: the value of each line by its labels.
    fn samples(text: &str) -> BTreeMap<String, f64> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(name, value)| (name.into(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn every_row_of_the_table_is_rendered_with_its_help_type_and_labels_and_nothing_else_is() {
        let everything = use_everything();
        let text = everything.metrics.render();
        let mut described = 0;
        for metric in table::ALL {
            let head = format!(
                "# HELP {name} {}\n# TYPE {name} {}\n{name}",
                metric.help,
                metric.kind.type_name(),
                name = metric.name
            );
            let after = text.split_once(&head).unwrap_or_else(|| panic!("no {head}\nin\n{text}")).1;
            let line = after.lines().next().unwrap();
            let labels: Vec<_> = line
                .trim_start_matches("_bucket")
                .strip_prefix('{')
                .map(|rest| rest.rsplit_once('}').unwrap().0)
                .into_iter()
                .flat_map(|labels| labels.split(',').map(|label| label.split_once('=').unwrap().0))
                .filter(|label| *label != "le")
                .collect();
            assert_eq!(labels, metric.labels, "{}", metric.name);
            described += 1;
        }
        assert_eq!(text.matches("# TYPE ").count(), described, "{text}");
        samples(&text);
    }

    #[test]
    fn counters_of_a_chain_show_from_0_and_count_across_workers() {
        let everything = use_everything();
        let mut second = everything.metrics.route(&RouteName::new("r").unwrap());
        second.consumed(&TopicName::new("t").unwrap(), 3, 30);
        second.used(&PluginName::new("p").unwrap(), 0, Duration::from_millis(500), 1, 65_536);
        let samples = samples(&everything.metrics.render());
        for (series, expected) in [
            (r#"millrace_records_consumed_total{route="r",topic="t"}"#, 5.0),
            (r#"millrace_bytes_consumed_total{route="r",topic="t"}"#, 50.0),
            (r#"millrace_records_produced_total{route="r",destination="d"}"#, 0.0),
            (r#"millrace_records_filtered_total{route="r",plugin="p"}"#, 0.0),
            (r#"millrace_records_filtered_total{route="r",plugin=""}"#, 0.0),
            (r#"millrace_dead_letters_total{route="r",code="rejected"}"#, 0.0),
            (r#"millrace_plugin_faults_total{route="r",plugin="p",code="trapped"}"#, 0.0),
            (r#"millrace_shadow_records_total{route="r",outcome="different"}"#, 2.0),
            (r#"millrace_shadow_differences_total{route="r",code="value"}"#, 2.0),
            (r#"millrace_plugin_seconds_total{route="r",plugin="p"}"#, 2.0),
            (r#"millrace_plugin_memory_bytes{route="r",plugin="p"}"#, 131_072.0),
            (r#"millrace_transactions_total{route="r",outcome="committed"}"#, 1.0),
            (r#"millrace_transactions_total{route="r",outcome="aborted"}"#, 0.0),
            (r#"millrace_commit_duration_seconds_bucket{route="r",le="0.025"}"#, 1.0),
            (r#"millrace_route_state{route="r",state="failed"}"#, 0.0),
            (r#"millrace_consumer_lag_records{route="r",topic="t",partition="3"}"#, 5.0),
            (r#"millrace_records_lost_total{route="r",topic="t",partition="3"}"#, 4.0),
            (r#"millrace_build_info{version="1.2.3"}"#, 1.0),
        ] {
            assert_eq!(samples.get(series), Some(&expected), "{series}\n{samples:#?}");
        }
        assert!(samples["process_resident_memory_bytes"] > 0.0);
        assert!(samples["process_open_fds"] > 0.0);
    }

    #[test]
    fn series_of_a_partition_a_plugin_and_a_route_vanish_with_them() {
        let Everything { metrics, config, mut route, gauges, info, own } = use_everything();
        route.assigned(&[]);
        assert!(!metrics.render().contains("partition=\""));
        route.follow([], [], []);
        assert!(!metrics.render().contains("millrace_plugin_memory_bytes"));
        drop((config, route, gauges, info, own));
        let text = metrics.render();
        for name in ["millrace_route_state", "millrace_config_hash", "millrace_plugin_info", "millrace_last_commit"] {
            assert!(!text.contains(name), "{text}");
        }
        assert!(text.contains("millrace_records_consumed_total{route=\"r\",topic=\"t\"} 2"), "{text}");
    }

    #[test]
    fn a_rate_is_taken_between_two_looks() {
        let totals = Totals::default();
        let start = Instant::now();
        assert_eq!(totals.rate(0, start), 0.0);
        assert_eq!(totals.rate(900, start + Duration::from_millis(900)), 0.0);
        assert_eq!(totals.rate(3_000, start + Duration::from_secs(2)), 1_500.0);
        assert_eq!(totals.rate(3_001, start + Duration::from_millis(2_100)), 1_500.0);
    }
}
