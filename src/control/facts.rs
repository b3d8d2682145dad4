//! A configuration as data: every key that has a meaning for what runs, with its value. Two of them are compared to tell
//! what a reload does, in the daemon and by who asks it from outside, and one is what the admin endpoint shows.
//!
//! Taken apart field by field, so that a new setting does not compile until it stands here: one that did not would never
//! be taken up.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::config::settings::{
    Admin, Destination, Kafka, LagAlert, Log, OnOffsetLost, PipelineStep, Plugin, PluginConfig, PluginLimits,
    Properties, PropertyValue, Route, Settings, Shadow, Source, Start, Target, Telemetry, Watch, WatchMethod,
};
use crate::model::{Digest, PluginName, RouteName};
use crate::policy::{Disposition, OnError, Retry};

/// A configuration as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The digest of what is written in the YAML files.
    pub hash: String,
    /// What concerns the process.
    pub process: Keys,
    /// What concerns each route, with what its plugins are.
    pub routes: BTreeMap<RouteName, Keys>,
}

/// Keys as a path through the YAML (`source.topics`, `plugins.redact.sha256`), and their values.
pub type Keys = BTreeMap<String, Fact>;

/// A value, or that it is a secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fact {
    text: String,
    /// Of a secret's value, with this process's salt: it never leaves the process.
    #[serde(skip)]
    secret: Option<Digest>,
}

/// Secrets of two processes cannot be told apart.
impl PartialEq for Fact {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.secret.zip(other.secret).is_none_or(|(one, other)| one == other)
    }
}

impl Eq for Fact {}

impl Fact {
    /// As it may be shown.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is a secret that cannot be compared with another process's.
    pub fn is_opaque(&self) -> bool {
        self.text == REDACTED && self.secret.is_none()
    }

    fn plain(text: impl Display) -> Self {
        Self { text: text.to_string(), secret: None }
    }

    fn secret(text: &str) -> Self {
        static SALT: OnceLock<[u64; 4]> = OnceLock::new();
        let salt = SALT.get_or_init(|| std::array::from_fn(|_| fastrand::u64(..)));
        let salted: Vec<u8> = salt.iter().flat_map(|word| word.to_le_bytes()).chain(text.bytes()).collect();
        Self { text: REDACTED.into(), secret: Some(Digest::of(&salted)) }
    }
}

const REDACTED: &str = "[redacted]";

impl Facts {
    /// Of a configuration with its plugins.
    pub fn of(plan: &Plan) -> Self {
        let digests = plan.digests();
        let settings = &plan.settings;
        let routes = settings.routes.values();
        let routes = routes.map(|each| (each.name.clone(), route(each, settings, &digests))).collect();
        Self { hash: plan.hash.to_string(), process: process(settings), routes }
    }
}

/// Whether a route with these keys is enabled.
pub(super) fn is_enabled(keys: &Keys) -> bool {
    keys.get("enabled").is_some_and(|fact| fact.as_str() == "true")
}

/// A secret is told from another by who compares, not by who reads.
struct Collector(Keys);

impl Collector {
    fn put(&mut self, key: impl Into<String>, value: impl Display) {
        self.0.insert(key.into(), Fact::plain(value));
    }

    fn put_some(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn put_property(&mut self, key: String, value: &PropertyValue) {
        let fact = if value.is_secret() { Fact::secret(value.reveal()) } else { Fact::plain(value) };
        self.0.insert(key, fact);
    }

    fn put_properties(&mut self, prefix: &str, properties: &Properties) {
        for (name, value) in properties {
            self.put_property(format!("{prefix}.{name}"), value);
        }
    }

    /// Only its digest: it may be long, and it is nobody else's business.
    fn put_config(&mut self, key: String, config: &PluginConfig) {
        let text = config.json.to_string();
        let fact = if config.secret { Fact::secret(&text) } else { Fact::plain(Digest::of(text.as_bytes())) };
        self.0.insert(key, fact);
    }
}

fn process(settings: &Settings) -> Keys {
    let Settings {
        instance,
        shutdown_timeout,
        processing_timeout,
        cache_dir,
        watch: Watch { method, debounce, interval },
        memory,
        kafka: Kafka { prefix, common, consumer, producer },
        admin: Admin { listen, token, allowed_hosts },
        log: Log { level, format },
        telemetry: Telemetry { otlp },
        plugins: _,
        routes: _,
    } = settings;
    let mut keys = Collector(Keys::new());
    keys.put_some("instance", instance.as_ref());
    keys.put("shutdown_timeout", show(shutdown_timeout));
    keys.put("processing_timeout", show(processing_timeout));
    keys.put_some("cache_dir", cache_dir.as_ref().map(|path| path.display()));
    let method = match method {
        WatchMethod::Auto => "auto",
        WatchMethod::Events => "events",
        WatchMethod::Poll => "poll",
        WatchMethod::Off => "off",
    };
    keys.put("watch.method", method);
    keys.put("watch.debounce", show(debounce));
    keys.put("watch.interval", show(interval));
    keys.put("memory", memory);
    keys.put("kafka.prefix", prefix);
    keys.put_properties("kafka", common);
    keys.put_properties("kafka.consumer", consumer);
    keys.put_properties("kafka.producer", producer);
    keys.put("admin.listen", listen);
    if let Some(token) = token {
        keys.0.insert("admin.token".into(), Fact::secret(token.reveal()));
    }
    keys.put("admin.allowed_hosts", allowed_hosts.join(", "));
    keys.put("log.level", format!("{level:?}").to_lowercase());
    keys.put("log.format", format!("{format:?}").to_lowercase());
    keys.put_some("telemetry.otlp", otlp.as_ref());
    keys.0
}

fn route(route: &Route, settings: &Settings, digests: &BTreeMap<&PluginName, &Digest>) -> Keys {
    let Route {
        name: _,
        enabled,
        source: Source { topics, exclude, group, start, on_offset_lost, consumer },
        pipeline,
        shadow,
        destinations,
        delivery,
        transaction,
        batch,
        workers,
        parallelism,
        on_error,
        on_partition_change,
        lag_alert,
    } = route;
    let mut keys = Collector(Keys::new());
    keys.put("enabled", enabled);
    keys.put("source.topics", list(topics));
    keys.put("source.exclude", list(exclude));
    keys.put("source.group", group);
    let start = match start {
        Start::Earliest => "earliest".to_owned(),
        Start::Latest => "latest".to_owned(),
        Start::At(ms) => format!("{ms} ms since 1970"),
    };
    keys.put("source.start", start);
    let on_offset_lost = match on_offset_lost {
        OnOffsetLost::Stop => "stop",
        OnOffsetLost::Earliest => "earliest",
        OnOffsetLost::Latest => "latest",
    };
    keys.put("source.on_offset_lost", on_offset_lost);
    keys.put_properties("source.consumer", consumer);
    let mut put_steps = |key: &str, steps: &[PipelineStep]| {
        keys.put(key, list(steps.iter().map(|step| &step.plugin)));
        for (number, PipelineStep { plugin, config, when }) in steps.iter().enumerate() {
            keys.put_config(format!("{key}.{number}.config"), config);
            keys.put_some(&format!("{key}.{number}.when"), when.as_ref());
            if let Some(plugin) = settings.plugins.get(plugin) {
                put_plugin(&mut keys, plugin, digests);
            }
        }
    };
    put_steps("pipeline", pipeline);
    if let Some(Shadow { pipeline, one_in }) = shadow {
        put_steps("shadow.pipeline", pipeline);
        keys.put("shadow.sample", one_in);
    }
    keys.put("destinations", list(destinations.iter().map(|to| &to.name)));
    for destination in destinations {
        put_destination(&mut keys, destination);
    }
    keys.put("delivery", delivery.as_str());
    let crate::config::settings::Transaction { interval, records, bytes } = transaction;
    keys.put("transaction.interval", show(interval));
    keys.put("transaction.records", records);
    keys.put("transaction.bytes", bytes);
    let crate::config::settings::Batch { records, bytes } = batch;
    keys.put("batch.records", records);
    keys.put("batch.bytes", bytes);
    keys.put("workers", workers);
    keys.put("parallelism", parallelism);
    put_on_error(&mut keys, on_error);
    keys.put("on_partition_change", on_partition_change.as_str());
    let lag_alert = lag_alert.map(|alert| match alert {
        LagAlert::Time(age) => show(&age),
        LagAlert::Records(count) => count.to_string(),
    });
    keys.put_some("lag_alert", lag_alert);
    keys.0
}

/// Where its file lies is left out: only what is in it runs.
fn put_plugin(keys: &mut Collector, plugin: &Plugin, digests: &BTreeMap<&PluginName, &Digest>) {
    let Plugin { name, path: _, sha256: _, config: _, limits, allow } = plugin;
    let PluginLimits { memory, timeout, outputs, output_bytes } = limits;
    let key = |of: &str| format!("plugins.{name}.{of}");
    if let Some(sha256) = digests.get(name) {
        keys.put(key("sha256"), sha256);
    }
    keys.put(key("memory"), memory);
    keys.put(key("timeout"), show(timeout));
    keys.put(key("max_outputs"), outputs);
    keys.put(key("max_output_bytes"), output_bytes);
    keys.put(key("allow"), list(allow.iter().map(ToString::to_string)));
}

fn put_destination(keys: &mut Collector, destination: &Destination) {
    let Destination { name, target, partition, default, when } = destination;
    let key = |of: &str| format!("destinations.{name}.{of}");
    match target {
        Target::Topic(topic) => keys.put(key("topic"), topic),
        Target::Pattern(pattern) => keys.put(key("topic_pattern"), pattern),
    }
    keys.put(key("partition"), partition.as_str());
    keys.put(key("default"), default);
    keys.put_some(&key("when"), when.as_ref());
}

fn put_on_error(keys: &mut Collector, on_error: &OnError) {
    let OnError { retry, then } = on_error;
    if let Some(Retry { attempts, backoff, max_backoff }) = retry {
        keys.put("on_error.retry", format!("{attempts} attempts, {} to {}", show(backoff), show(max_backoff)));
    }
    match then {
        Disposition::Stop => keys.put("on_error", "stop"),
        Disposition::Skip => keys.put("on_error", "skip"),
        Disposition::DeadLetter(topic) => keys.put("on_error", format!("dead_letter: {topic}")),
    }
}

/// As JSON, so that nothing in an item can look like the border of two.
fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    serde_json::to_string(&items).expect("texts are JSON")
}

fn show(duration: &std::time::Duration) -> String {
    format!("{duration:?}")
}
