//! The description of the keys as a JSON Schema, for editors, and as a list, for the reference.
//!
//! Draft 7, which every YAML language server understands. It says what may stand in one file: what has to stand somewhere in
//! a configuration, and whether things make sense together, is for `millrace check`.

use serde_json::{Value as Json, json};

use super::decode::json as as_json;
use super::keys::{Default, Is, Key, PROCESS, Section};
use super::problem::Problems;
use super::source::SourceFile;
use super::tree;
use super::units::{show_duration, show_size};

/// The JSON Schema of a file.
pub fn schema() -> Json {
    let mut schema = section(&PROCESS, true);
    let head = [
        ("$schema", "http://json-schema.org/draft-07/schema#"),
        ("title", "millrace"),
        ("description", "A configuration of millrace, or one file of it"),
    ];
    for (name, text) in head {
        schema[name] = text.into();
    }
    schema
}

/// A key as the reference tells it.
#[derive(Debug, Clone)]
pub struct Described {
    /// Through the YAML: `routes.NAME.source.topics`.
    pub path: String,
    /// What may be written, with its unit and bounds, in words.
    pub is: String,
    /// What holds where nothing is written, as Markdown.
    pub default: String,
    /// What it is for, as Markdown.
    pub about: &'static str,
    /// A value, as YAML on one line.
    pub example: &'static str,
    /// Whether it holds keys that are described themselves.
    pub is_section: bool,
}

/// Every key, in the order in which people read them.
pub fn reference() -> Vec<Described> {
    let mut all = Vec::new();
    describe("", &PROCESS, &mut all);
    all
}

fn describe(above: &str, section: &'static Section, all: &mut Vec<Described>) {
    for key in section.keys {
        let path = if above.is_empty() { key.name.to_owned() } else { format!("{above}.{}", key.name) };
        let below = sections(&key.is, &path);
        all.push(Described {
            path: path.clone(),
            is: words(&key.is),
            default: match key.default {
                Default::Required => "required".to_owned(),
                Default::None => "none".to_owned(),
                Default::Is(yaml) => format!("`{yaml}`"),
                Default::Said(words) => words.to_owned(),
            },
            about: key.about,
            example: key.example,
            is_section: !below.is_empty(),
        });
        // (what `defaults` holds are the keys of a route)
        for (path, section) in below.into_iter().filter(|_| key.name != "defaults") {
            describe(&path, section, all);
        }
    }
}

/// The sections below a key, each once.
fn sections(is: &'static Is, path: &str) -> Vec<(String, &'static Section)> {
    match is {
        Is::Section(section) => vec![(path.to_owned(), section)],
        Is::List(of) | Is::OneOrList(of) => sections(of, &format!("{path}[]")),
        Is::ByName(of) => sections(of, &format!("{path}.NAME")),
        // Their keys are told where they stand first: what `then` may hold, above it already.
        Is::OneOf(all) => {
            let mut found: Vec<(String, &Section)> = Vec::new();
            for (path, section) in all.iter().flat_map(|is| sections(is, path)) {
                let known =
                    |key: &&Key| found.iter().any(|(_, other)| other.keys.iter().any(|own| own.name == key.name));
                if !section.keys.iter().all(known) {
                    found.push((path, section));
                }
            }
            found
        }
        Is::Duration(_)
        | Is::Size(_)
        | Is::Number(_)
        | Is::Bool
        | Is::Word(_)
        | Is::Text(_)
        | Is::Any
        | Is::Properties => Vec::new(),
    }
}

/// What may be written, for people.
fn words(is: &Is) -> String {
    match is {
        Is::Duration(bounds) if *bounds.end() > std::time::Duration::from_secs(1 << 32) => "a duration".to_owned(),
        Is::Duration(bounds) => {
            format!("a duration, {} – {}", show_duration(*bounds.start()), show_duration(*bounds.end()))
        }
        Is::Size(bounds) => format!("a size, {} – {}", show_size(*bounds.start()), show_size(*bounds.end())),
        Is::Number(bounds) if *bounds.end() >= u64::from(u32::MAX) => format!("a whole number from {}", bounds.start()),
        Is::Number(bounds) => format!("a whole number, {} – {}", bounds.start(), grouped(*bounds.end())),
        Is::Bool => "`true` or `false`".to_owned(),
        Is::Word(words) => words().iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        Is::Text(_) => "text".to_owned(),
        Is::Any => "any YAML".to_owned(),
        Is::Section(section) => {
            let keys: Vec<String> = section.keys.iter().map(|key| format!("`{}`", key.name)).collect();
            let more = if section.or_properties { ", and librdkafka properties" } else { "" };
            format!("a mapping of {}{more}", keys.join(", "))
        }
        Is::List(of) => format!("a list, each: {}", words(of)),
        Is::OneOrList(of) => format!("a list, or one: {}", words(of)),
        Is::OneOf(all) => all.iter().map(words).collect::<Vec<_>>().join("; or "),
        Is::ByName(of) => format!("by name, each: {}", words(of)),
        Is::Properties => "librdkafka properties".to_owned(),
    }
}

/// A number with commas.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `${…}` in text: what becomes of it is not known yet.
const VARIABLE: &str = r"\$\{";

fn or_variable(schema: Json) -> Json {
    json!({ "anyOf": [schema, { "type": "string", "pattern": VARIABLE }] })
}

/// What a scalar may be: a plain `2024` is text where text is wanted.
fn scalar() -> Json {
    json!({ "type": ["string", "number", "boolean"] })
}

fn of(is: &Is) -> Json {
    match is {
        Is::Duration(_) => or_variable(json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" })),
        Is::Size(_) => or_variable(json!({ "type": "string", "pattern": "^[0-9]+(KiB|MiB|GiB|kB|MB|GB|B)$" })),
        Is::Number(bounds) => {
            or_variable(json!({ "type": "integer", "minimum": bounds.start(), "maximum": bounds.end() }))
        }
        Is::Bool => or_variable(json!({ "type": "boolean" })),
        Is::Word(words) => or_variable(json!({ "enum": words() })),
        Is::Text(None) => scalar(),
        Is::Text(Some(pattern)) => {
            let mut text = scalar();
            text["pattern"] = (*pattern).into();
            or_variable(text)
        }
        Is::Any => json!({}),
        Is::Section(of) => section(of, false),
        Is::List(each) => json!({ "type": ["array", "null"], "items": of(each) }),
        Is::OneOrList(each) => json!({ "anyOf": [of(each), { "type": ["array", "null"], "items": of(each) }] }),
        Is::OneOf(all) => json!({ "anyOf": all.iter().map(of).collect::<Vec<_>>() }),
        Is::ByName(each) => json!({ "type": ["object", "null"], "additionalProperties": of(each) }),
        Is::Properties => json!({ "type": ["object", "null"], "additionalProperties": scalar() }),
    }
}

/// `spread`: what has to be there may stand in another file.
fn section(section: &Section, spread: bool) -> Json {
    let properties = section.keys.iter().map(|key| (key.name.to_owned(), property(key)));
    let required: Vec<&str> =
        section.keys.iter().filter(|key| key.default == Default::Required).map(|key| key.name).collect();
    let others = if section.or_properties { scalar() } else { Json::Bool(false) };
    let mut schema = json!({
        "type": ["object", "null"],
        "properties": properties.collect::<serde_json::Map<_, _>>(),
        "additionalProperties": others,
    });
    if !required.is_empty() && !spread {
        schema["type"] = "object".into();
        schema["required"] = required.into();
    }
    schema
}

fn property(key: &Key) -> Json {
    let mut schema = of(&key.is);
    let default = match key.default {
        Default::Required => "required".to_owned(),
        Default::None => "none".to_owned(),
        Default::Is(yaml) => {
            schema["default"] = yaml_as_json(yaml);
            yaml.to_owned()
        }
        Default::Said(words) => words.replace('`', ""),
    };
    schema["description"] = format!("{}\n\nDefault: {default}. Example: {}", key.about, key.example).into();
    schema["examples"] = json!([yaml_as_json(key.example)]);
    schema
}

fn yaml_as_json(yaml: &str) -> Json {
    let mut problems = Problems::new();
    let file = SourceFile::new("a description".into(), yaml.to_owned());
    match tree::parse(&file, &mut problems) {
        Ok(Some(node)) => as_json(&node, &mut problems),
        Ok(None) => Json::Null,
        Err(tree::Unreadable) => unreachable!("what the keys' description holds is YAML: {problems}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_word_on_what_it_is_for_and_an_example() {
        let all = reference();
        assert!(all.len() > 80, "{}", all.len());
        for key in all {
            assert!(key.about.ends_with('.') && !key.example.is_empty(), "{}", key.path);
        }
        assert_eq!(schema()["properties"]["watch"]["properties"]["debounce"]["default"], "250ms");
    }

    /// Every default that is no mapping, written out.
    fn written_out(section: &Section) -> Json {
        let value = |key: &Key| match (&key.is, key.default) {
            (Is::Section(section), Default::Is(_)) => Some(written_out(section)),
            (_, Default::Is(yaml)) => Some(yaml_as_json(yaml)),
            (_, Default::Required | Default::None | Default::Said(_)) => None,
        };
        section.keys.iter().filter_map(|key| Some((key.name.to_owned(), value(key)?))).collect()
    }

    fn settings(document: &Json) -> String {
        let file = crate::config::files::ReadFile { path: "t.yaml".into(), bytes: document.to_string().into_bytes() };
        let read = crate::config::understand("t.yaml".as_ref(), vec![file], &|_| None, Problems::new());
        let loaded = read.result.unwrap_or_else(|problems| panic!("{document:#}\n{problems}"));
        format!("{:#?}", loaded.settings)
    }

    #[test]
    fn the_defaults_that_are_told_are_those_that_hold() {
        let with = |mut all: Json, required: Json| {
            all.as_object_mut().expect("a mapping").extend(required.as_object().expect("a mapping").clone());
            all
        };
        let whole = |of: fn(&'static Section) -> Json| {
            use crate::config::keys::{DESTINATION_KEYS, KAFKA_KEYS, PLUGIN_KEYS, ROUTE_KEYS, SOURCE_KEYS, STEP_KEYS};
            let source = with(of(&SOURCE_KEYS), json!({ "topics": ["a"], "start": "earliest" }));
            let step = with(of(&STEP_KEYS), json!({ "plugin": "p" }));
            let destination = with(of(&DESTINATION_KEYS), json!({ "topic": "b" }));
            let parts = json!({ "source": source, "pipeline": [step], "destinations": [destination] });
            let route = with(of(&ROUTE_KEYS), parts);
            let kafka = with(of(&KAFKA_KEYS), json!({ "bootstrap.servers": "b:9092" }));
            let plugin = with(of(&PLUGIN_KEYS), json!({ "path": "p.wasm" }));
            with(of(&PROCESS), json!({ "kafka": kafka, "plugins": { "p": plugin }, "routes": { "r": route } }))
        };
        let (explicit, short) = (whole(written_out), whole(|_| json!({})));
        assert!(
            explicit["routes"]["r"]["transaction"]["records"] == 50_000 && explicit["memory"] == "1GiB",
            "{explicit:#}"
        );
        assert_eq!(settings(&explicit), settings(&short));
    }
}
