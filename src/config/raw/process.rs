//! What concerns the process: `kafka`, `admin`, `log`, `telemetry`, `watch`, `instance`.

use super::super::decode::{At, entries, list, non_empty, scalar, text, wrong_type};
use super::super::keys;
use super::super::problem::{Problem, Problems};
use super::super::properties::{RawProperty, canonical};
use super::super::settings::{LogFormat, LogLevel, PropertyValue, WatchMethod};
use super::super::source::hides_value;
use super::super::tree::{Entry, Node, Typed, Value};
use super::{RawAdmin, RawKafka, RawWatch, fields, named};
use crate::model::RouteName;
use std::net::SocketAddr;

pub(super) fn instance(node: &Node, problems: &mut Problems) -> Option<At<String>> {
    let text = non_empty(node, "the name of this process", problems)?;
    // It becomes part of transactional ids and group.instance.ids: the rules of route names hold.
    named(&text, "an instance", RouteName::new(&text.value), problems)?;
    Some(text)
}

pub(super) fn watch(entry: &Entry, problems: &mut Problems) -> RawWatch {
    let what = "how files are watched";
    let Some(mut fields) = fields(&keys::WATCH_KEYS, entry, what, problems) else { return RawWatch::default() };
    let methods = [
        ("auto", WatchMethod::Auto),
        ("events", WatchMethod::Events),
        ("poll", WatchMethod::Poll),
        ("off", WatchMethod::Off),
    ];
    let watch = RawWatch {
        method: fields.choice(&keys::WATCH_METHOD, &methods, problems).map(|at| at.value),
        debounce: fields.duration(&keys::WATCH_DEBOUNCE, problems).map(|at| at.value),
        interval: fields.duration(&keys::WATCH_INTERVAL, problems).map(|at| at.value),
    };
    fields.finish(problems);
    watch
}

pub(super) fn kafka(entry: &Entry, problems: &mut Problems) -> RawKafka {
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

pub(super) fn admin(entry: &Entry, problems: &mut Problems) -> RawAdmin {
    let what = "the admin endpoint's settings";
    let Some(mut fields) = fields(&keys::ADMIN_KEYS, entry, what, problems) else { return RawAdmin::default() };
    let admin = RawAdmin {
        listen: fields.get(&keys::LISTEN).and_then(|node| listen(node, problems)),
        token: fields
            .get(&keys::TOKEN)
            .and_then(|node| non_empty(node, "a token", problems))
            .map(|token| PropertyValue::secret(token.value)),
        allowed_hosts: fields
            .get(&keys::ALLOWED_HOSTS)
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

pub(super) fn log(entry: &Entry, problems: &mut Problems) -> (Option<LogLevel>, Option<LogFormat>) {
    let Some(mut fields) = fields(&keys::LOG_KEYS, entry, "the log's settings", problems) else { return (None, None) };
    let levels = [
        ("trace", LogLevel::Trace),
        ("debug", LogLevel::Debug),
        ("info", LogLevel::Info),
        ("warn", LogLevel::Warn),
        ("error", LogLevel::Error),
    ];
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let level = fields.choice(&keys::LOG_LEVEL, &levels, problems).map(|at| at.value);
    let format = fields.choice(&keys::LOG_FORMAT, &formats, problems).map(|at| at.value);
    fields.finish(problems);
    (level, format)
}

pub(super) fn telemetry(entry: &Entry, problems: &mut Problems) -> Option<String> {
    let mut fields = fields(&keys::TELEMETRY_KEYS, entry, "the settings of traces", problems)?;
    let otlp = fields.get(&keys::OTLP).and_then(|node| otlp(node, problems));
    fields.finish(problems);
    otlp
}

fn otlp(node: &Node, problems: &mut Problems) -> Option<String> {
    let url = non_empty(node, "the address of a collector", problems)?;
    let (scheme, rest) = url.value.split_once("://").unwrap_or(("", &url.value));
    let host = rest.split('/').next().unwrap_or_default();
    let is_plain = !host.is_empty() && !host.contains('@') && !rest.contains(['?', '#', ' ']);
    if ["http", "https"].contains(&scheme) && is_plain {
        return Some(url.value);
    }
    let why = "write an address of OTLP over HTTP: `http://127.0.0.1:4318`, or with `https://`";
    problems.push(Problem::at(&url.place, format!("{} is no collector to export to", url.shown())).help(why));
    None
}

pub(super) fn properties(entry: &Entry, problems: &mut Problems) -> Vec<RawProperty> {
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
