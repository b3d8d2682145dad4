//! Routes, and what `defaults` holds of them.

use regex::RegexBuilder;

use super::super::decode::{
    At, Fields, boolean, condition, did_you_mean, list, non_empty, scalar, shown, text, wrong_type,
};
use super::super::keys;
use super::super::problem::{Problem, Problems};
use super::super::settings::{Delivery, LagAlert, OnOffsetLost, OnPartitionChange, Start, TopicSelector};
use super::super::tree::{Entry, Node, Typed, Value};
use super::super::units::parse_duration;
use super::destinations::destinations;
use super::on_error::on_error;
use super::plugins::plugin_config;
use super::process::properties;
use super::{RawOptions, RawRoute, RawShadow, RawSource, RawStep, fields, key, named};
use crate::model::{GroupId, RouteName, TopicName};

pub(super) fn defaults(entry: &Entry, problems: &mut Problems) -> RawOptions {
    let what = "what all routes share";
    let Some(mut fields) = fields(&keys::DEFAULT_KEYS, entry, what, problems) else { return RawOptions::default() };
    let options = options(&mut fields, problems);
    for key in ["source", "pipeline", "shadow", "destinations"] {
        if let Some(entry) = fields.entry_beside(key) {
            let message = format!("`{key}` cannot be a default: every route has its own");
            problems.push(Problem::at(&entry.key_place, message).code("unknown_key").help("write it in the route"));
        }
    }
    fields.finish(problems);
    options
}

pub(super) fn route(entry: &Entry, problems: &mut Problems) -> Option<RawRoute> {
    let name = named(&key(entry), "the name of a route", RouteName::new(&entry.key), problems);
    let mut fields = fields(&keys::ROUTE_KEYS, entry, "a route's settings", problems)?;
    let from = "say where its records come from: `source: { topics: [TOPIC], start: earliest }`";
    fields.required(&keys::SOURCE, from, problems);
    let source = fields.entry(&keys::SOURCE).and_then(|entry| source(entry, problems));
    let pipeline = fields.get(&keys::PIPELINE).map(|node| steps(node, problems)).unwrap_or_default();
    let shadow = fields.entry(&keys::SHADOW).and_then(|entry| shadow(entry, problems));
    fields.required(&keys::DESTINATIONS, "say where its records go: `destinations: [{ topic: TOPIC }]`", problems);
    let destinations = fields.entry(&keys::DESTINATIONS).map_or_else(Vec::new, |entry| destinations(entry, problems));
    let options = options(&mut fields, problems);
    fields.finish(problems);
    Some(RawRoute { name: name?, source, pipeline, shadow, destinations, options })
}

fn options(fields: &mut Fields<'_>, problems: &mut Problems) -> RawOptions {
    let mut options = RawOptions {
        enabled: fields.get(&keys::ENABLED).and_then(|node| boolean(node, problems)).map(|at| at.value),
        delivery: fields
            .choice(&keys::DELIVERY, &Delivery::ALL.map(|delivery| (delivery.as_str(), delivery)), problems)
            .map(|at| at.value),
        workers: fields.number(&keys::WORKERS, problems).and_then(|at| u16::try_from(at.value).ok()),
        parallelism: fields.number(&keys::PARALLELISM, problems).and_then(|at| u16::try_from(at.value).ok()),
        on_error: fields.entry(&keys::ON_ERROR).and_then(|entry| on_error(entry, problems)),
        on_partition_change: fields
            .choice(&keys::ON_PARTITION_CHANGE, &OnPartitionChange::ALL, problems)
            .map(|at| at.value),
        lag_alert: fields.get(&keys::LAG_ALERT).and_then(|node| lag_alert(node, problems)),
        ..RawOptions::default()
    };
    transaction(fields, &mut options, problems);
    if let Some(entry) = fields.entry(&keys::BATCH) {
        (options.batch_records, options.batch_bytes) = batch(entry, problems);
    }
    options
}

fn transaction(outer: &mut Fields<'_>, options: &mut RawOptions, problems: &mut Problems) {
    let short = outer.entry(&keys::COMMIT_INTERVAL);
    options.interval = outer.duration(&keys::COMMIT_INTERVAL, problems);
    let Some(entry) = outer.entry(&keys::TRANSACTION) else { return };
    let what = "the bounds of a transaction";
    let Some(mut fields) = fields(&keys::TRANSACTION_KEYS, entry, what, problems) else { return };
    if let Some(long) = fields.entry(&keys::INTERVAL) {
        options.interval = fields.duration(&keys::INTERVAL, problems);
        if let Some(short) = short {
            let problem = Problem::at(
                &short.key_place,
                "`commit_interval` is short for `transaction.interval`, which is given too",
            );
            problems.push(problem.code("duplicate_key").related(&long.key_place, "also given here").help("keep one"));
        }
    }
    options.records = fields.number(&keys::RECORDS, problems).and_then(|at| u32::try_from(at.value).ok());
    options.bytes = fields.size(&keys::BYTES, problems);
    fields.finish(problems);
}

fn batch(entry: &Entry, problems: &mut Problems) -> (Option<u32>, Option<u64>) {
    let what = "the bounds of a plugin call";
    let Some(mut fields) = fields(&keys::BATCH_KEYS, entry, what, problems) else { return (None, None) };
    let records = fields.number(&keys::BATCH_RECORDS, problems).and_then(|at| u32::try_from(at.value).ok());
    let bytes = fields.size(&keys::BATCH_BYTES, problems).map(|at| at.value);
    fields.finish(problems);
    (records, bytes)
}

fn source(entry: &Entry, problems: &mut Problems) -> Option<RawSource> {
    let mut fields = fields(&keys::SOURCE_KEYS, entry, "a source", problems)?;
    let topics_node = fields.required(&keys::TOPICS, "name at least one: `topics: [TOPIC]`", problems);
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
        exclude: fields.get(&keys::EXCLUDE).map(|node| selectors(node, problems)).unwrap_or_default(),
        group: fields.get(&keys::GROUP).and_then(|node| {
            let text = non_empty(node, "a consumer group", problems)?;
            named(&text, "a consumer group", GroupId::new(&text.value), problems)
        }),
        start: fields.required(&keys::START, start_help, problems).and_then(|node| start(node, problems)),
        on_offset_lost: fields.choice(&keys::ON_OFFSET_LOST, &lost, problems).map(|at| at.value),
        consumer: fields.entry(&keys::SOURCE_CONSUMER).map(|entry| properties(entry, problems)).unwrap_or_default(),
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

pub(super) fn topic(text: &At<String>, problems: &mut Problems) -> Option<TopicName> {
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
pub(super) fn pattern(text: &At<String>, problems: &mut Problems) -> Option<regex::Regex> {
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

fn steps(node: &Node, problems: &mut Problems) -> Vec<RawStep> {
    let nodes = list(node, "a list of steps", problems).unwrap_or_default();
    nodes.iter().filter_map(|node| step(node, problems)).collect()
}

fn shadow(entry: &Entry, problems: &mut Problems) -> Option<RawShadow> {
    let mut fields = fields(&keys::SHADOW_KEYS, entry, "a second set of plugins", problems)?;
    let help = "name the plugins to compare with: `pipeline: [{ plugin: NAME }]`";
    let pipeline = fields.required(&keys::SHADOW_PIPELINE, help, problems).map(|node| steps(node, problems));
    let sample = fields.number(&keys::SHADOW_SAMPLE, problems).and_then(|at| u32::try_from(at.value).ok());
    fields.finish(problems);
    Some(RawShadow { pipeline: pipeline?, sample })
}

fn step(node: &Node, problems: &mut Problems) -> Option<RawStep> {
    if let Value::Scalar(scalar) = &node.value
        && let Typed::Text(name) = scalar.typed()
    {
        problems.push(wrong_type(node, "a step").help(format!("write `plugin: {name}`")));
        return None;
    }
    let mut fields = Fields::of(&keys::STEP_KEYS, node, &node.place, "a step", problems)?;
    let plugin = fields.required(&keys::STEP_PLUGIN, "name the plugin: `plugin: NAME`", problems);
    let plugin = plugin.and_then(|node| text(node, "the name of a plugin", problems));
    let config = fields.get(&keys::STEP_CONFIG).map(|node| plugin_config(node, problems));
    let when = fields.get(&keys::STEP_WHEN).and_then(|node| condition(node, problems)).map(|at| at.value);
    fields.finish(problems);
    Some(RawStep { plugin: plugin?, config, when })
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
