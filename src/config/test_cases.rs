//! `tests:`: records that a route is given, and what is expected to become of them. Decoded whole, so that a mistake in a
//! test is told with its place before it runs. Running them is not this module's: see `millrace test`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::decode::{
    At, Fields, boolean, did_you_mean, entries, json, json_text, list, non_empty, number, scalar, shown, text,
    wrong_type,
};
use super::keys::{self, Key};
use super::problem::{Problem, Problems};
use super::raw::{RawOptions, RawRoute};
use super::rewrite::Written;
use super::settings::TopicSelector;
use super::source::Place;
use super::tree::{Entry, Node, Typed, Value};
use crate::model::{Offset, RouteName, TopicName};

/// A test written in a configuration.
#[derive(Debug, Clone)]
pub struct TestCase {
    /// What it shows.
    pub name: String,
    /// The route that it tests.
    pub route: RouteName,
    /// How many partitions topics have.
    pub partitions: PartitionCounts,
    /// The records that the route is given, in order.
    pub given: Vec<GivenRecord>,
    /// What is expected to come out.
    pub expect: Expect,
    /// The faults that are expected, in order.
    pub faults: Vec<ExpectedFault>,
    /// Its name's place.
    pub place: Place,
    /// Where what can be rewritten stands.
    pub(super) written: Written,
}

/// How many partitions topics have in a test.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionCounts {
    /// Of topics that are not named.
    pub all: Option<i32>,
    /// Of those that are.
    pub of: BTreeMap<String, i32>,
}

impl PartitionCounts {
    /// Enough for whatever a test does not want to know.
    const UNSAID: i32 = 1_000;

    /// How many partitions a topic has.
    pub fn count(&self, topic: &str) -> i32 {
        self.of.get(topic).copied().or(self.all).unwrap_or(Self::UNSAID)
    }

    /// Whether any are written.
    pub fn is_said(&self) -> bool {
        self.all.is_some() || !self.of.is_empty()
    }
}

/// A record that a route is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenRecord {
    /// Its topic.
    pub topic: TopicName,
    /// Its partition.
    pub partition: i32,
    /// Its offset; the one after the record before it in the same partition, where none is written.
    pub offset: Option<Offset>,
    /// Milliseconds since 1970-01-01 UTC, or -1 for none.
    pub timestamp: i64,
    /// Its key; `None` is null.
    pub key: Option<Vec<u8>>,
    /// Its value; `None` is null.
    pub value: Option<Vec<u8>>,
    /// Its headers in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// What is expected to come out.
#[derive(Debug, Clone, PartialEq)]
pub enum Expect {
    /// These outputs and no others, in order.
    All(Vec<ExpectedOutput>),
    /// These outputs and no others of the destinations that are named; the other destinations are not looked at.
    Of(Vec<(String, Vec<ExpectedOutput>)>),
}

/// An output that is expected. What is `None` is not compared.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExpectedOutput {
    /// The destination's name, or the dead-letter topic.
    pub destination: Option<String>,
    /// The topic.
    pub topic: Option<String>,
    /// The partition.
    pub partition: Option<i32>,
    /// Milliseconds since 1970-01-01 UTC, or -1 for none.
    pub timestamp: Option<i64>,
    /// The key.
    pub key: Option<ExpectedBytes>,
    /// The value.
    pub value: Option<ExpectedBytes>,
    /// Headers of which one of the same name and value has to be there.
    pub headers: Option<Vec<(String, ExpectedBytes)>>,
    /// JSON has these fields and no others, and these are all headers, in order.
    pub exact: bool,
}

/// Bytes that are expected.
#[derive(Debug, Clone, PartialEq)]
pub enum ExpectedBytes {
    /// Null.
    Null,
    /// These.
    Bytes(Vec<u8>),
    /// JSON that has these fields.
    Json(serde_json::Value),
}

/// A fault that is expected. What is `None` is not compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpectedFault {
    /// Which of the given records, from 0.
    pub record: Option<usize>,
    /// Its code.
    pub code: Option<String>,
    /// The plugin at fault.
    pub plugin: Option<String>,
    /// A part of its message.
    pub message: Option<String>,
    /// `stop`, `skip` or `dead_letter`.
    pub then: Option<&'static str>,
    /// How often it was tried.
    pub attempts: Option<u32>,
}

/// A test as it is written: its route is not looked up yet.
#[derive(Debug)]
pub(super) struct RawTest {
    pub(super) name: At<String>,
    pub(super) route: At<String>,
    partitions: PartitionCounts,
    given: Vec<RawGiven>,
    expect: Expect,
    /// Destinations that are named, to be looked up.
    named: Vec<At<String>>,
    faults: Vec<ExpectedFault>,
    written: Written,
}

#[derive(Debug)]
struct RawGiven {
    place: Place,
    topic: Option<At<TopicName>>,
    record: GivenRecord,
}

/// Words that mean themselves.
fn words(words: Vec<&'static str>) -> Vec<(&'static str, &'static str)> {
    words.into_iter().map(|word| (word, word)).collect()
}
const FATES: [(&str, &str); 3] = [("stop", "stop"), ("skip", "skip"), ("dead_letter", "dead_letter")];

pub(super) fn test(node: &Node, problems: &mut Problems) -> Option<RawTest> {
    let mut fields = Fields::of(&keys::TEST_KEYS, node, &node.place, "a test", problems)?;
    let name = fields.required(&keys::TEST_NAME, "say what it shows: `name: test traffic is dropped`", problems);
    let name = name.and_then(|node| non_empty(node, "a name", problems));
    let route = fields.required(&keys::TEST_ROUTE, "name the route that it tests", problems);
    let route = route.and_then(|node| text(node, "the name of a route", problems));
    let partitions =
        fields.get(&keys::TEST_PARTITIONS).map(|node| partition_counts(node, problems)).unwrap_or_default();
    let given = fields.required(&keys::GIVEN, "write a list of records, or `[]`", problems);
    let given = given.and_then(|node| list(node, "a list of records", problems));
    let given = given.map(|nodes| nodes.iter().filter_map(|node| given_record(node, problems)).collect());
    fields.required(&keys::EXPECT, "write a list of records, or `[]`", problems);
    let expect_entry = fields.entry(&keys::EXPECT);
    let mut named = Vec::new();
    let expect = expect_entry.and_then(|entry| expect(entry, partitions.is_said(), &mut named, problems));
    let faults_entry = fields.entry(&keys::FAULTS);
    let faults = faults_entry.and_then(|entry| list(&entry.value, "a list of faults", problems)).unwrap_or_default();
    let faults = faults.iter().filter_map(|node| expected_fault(node, problems)).collect();
    fields.finish(problems);
    let written = Written::new(node, expect_entry?, faults_entry);
    Some(RawTest { name: name?, route: route?, partitions, given: given?, expect: expect?, named, faults, written })
}

fn partition_counts(node: &Node, problems: &mut Problems) -> PartitionCounts {
    let mut count = |node: &Node| {
        let number = number(node, 1..=1_000_000, problems)?;
        i32::try_from(number.value).ok()
    };
    match &node.value {
        Value::Map(entries) => {
            let of = entries.iter().filter_map(|entry| Some((entry.key.clone(), count(&entry.value)?)));
            PartitionCounts { all: None, of: of.collect() }
        }
        Value::Scalar(_) | Value::List(_) => PartitionCounts { all: count(node), of: BTreeMap::new() },
    }
}

fn given_record(node: &Node, problems: &mut Problems) -> Option<RawGiven> {
    let mut fields = Fields::of(&keys::GIVEN_KEYS, node, &node.place, "a record", problems)?;
    let topic = fields.get(&keys::GIVEN_TOPIC).and_then(|node| {
        let text = non_empty(node, "a topic", problems)?;
        match TopicName::new(&text.value) {
            Ok(topic) => Some(At::new(topic, &text.place)),
            Err(why) => {
                let message = format!("{} cannot be the name of a topic: {why}", text.shown());
                problems.push(Problem::at(&text.place, message).code("invalid_name"));
                None
            }
        }
    });
    let record = GivenRecord {
        // (stands in until the route is looked up)
        topic: topic.as_ref().map_or_else(|| TopicName::new("unnamed").expect("it is a name"), |at| at.value.clone()),
        partition: partition(&keys::GIVEN_PARTITION, &mut fields, problems).unwrap_or(0),
        offset: fields.number(&keys::OFFSET, problems).and_then(|offset| i64::try_from(offset.value).ok()),
        timestamp: fields.get(&keys::GIVEN_TIMESTAMP).and_then(|node| timestamp(node, problems)).unwrap_or(-1),
        key: fields.get(&keys::GIVEN_KEY).and_then(|node| bytes(node, problems)),
        value: fields.get(&keys::GIVEN_VALUE).and_then(|node| bytes(node, problems)),
        headers: headers(fields.get(&keys::GIVEN_HEADERS), problems)
            .into_iter()
            .map(|(name, node)| (name, bytes(node, problems)))
            .collect(),
    };
    fields.finish(problems);
    Some(RawGiven { place: node.place.clone(), topic, record })
}

fn partition(key: &'static Key, fields: &mut Fields<'_>, problems: &mut Problems) -> Option<i32> {
    fields.number(key, problems).and_then(|number| i32::try_from(number.value).ok())
}

/// Milliseconds since 1970, or an RFC 3339 time; null is none.
fn timestamp(node: &Node, problems: &mut Problems) -> Option<i64> {
    const WHAT: &str = "milliseconds since 1970, or an RFC 3339 time";
    let scalar = scalar(node, WHAT, problems)?;
    match scalar.typed() {
        Typed::Null => return Some(-1),
        Typed::Integer(number) => {
            if let Ok(number) = i64::try_from(number)
                && number >= -1
            {
                return Some(number);
            }
        }
        Typed::Text(text) => {
            if let Ok(time) = text.parse::<jiff::Timestamp>()
                && time.as_millisecond() >= 0
            {
                return Some(time.as_millisecond());
            }
        }
        Typed::Bool(_) | Typed::Float(_) => {}
    }
    problems.push(wrong_type(node, WHAT).help("a time is written as `2026-01-31T00:00:00Z`"));
    None
}

/// Names and values, as a mapping or as a list of pairs (a name may repeat).
fn headers<'n>(node: Option<&'n Node>, problems: &mut Problems) -> Vec<(String, &'n Node)> {
    const WHAT: &str = "headers as `{ NAME: VALUE }`, or `[[NAME, VALUE]]` where a name repeats";
    let Some(node) = node else { return Vec::new() };
    let Value::List(pairs) = &node.value else {
        let entries = entries(node, WHAT, problems).unwrap_or_default();
        return entries.iter().map(|entry| (entry.key.clone(), &entry.value)).collect();
    };
    let mut found = Vec::new();
    for pair in pairs {
        match &pair.value {
            Value::List(two) if two.len() == 2 => {
                found.extend(text(&two[0], "a header's name", problems).map(|name| (name.value, &two[1])));
            }
            Value::List(_) | Value::Map(_) | Value::Scalar(_) => problems.push(wrong_type(pair, WHAT)),
        }
    }
    found
}

/// The bytes that a value stands for: text is itself, `{ base64: … }` its bytes, null is null, all else its JSON.
fn bytes(node: &Node, problems: &mut Problems) -> Option<Vec<u8>> {
    if refuse_secret(node, problems) {
        return None;
    }
    if let Some(encoded) = base64(node) {
        return decode(encoded, problems);
    }
    match &node.value {
        Value::Scalar(scalar) => match scalar.typed() {
            Typed::Null => None,
            Typed::Text(text) => Some(text.as_bytes().to_vec()),
            Typed::Bool(_) | Typed::Integer(_) | Typed::Float(_) => Some(json_text(node, problems).into_bytes()),
        },
        Value::List(_) | Value::Map(_) => Some(json_text(node, problems).into_bytes()),
    }
}

/// As [`bytes`], for comparing: what is JSON is compared as JSON.
fn expected_bytes(node: &Node, problems: &mut Problems) -> ExpectedBytes {
    if refuse_secret(node, problems) {
        return ExpectedBytes::Null;
    }
    if let Some(encoded) = base64(node) {
        return decode(encoded, problems).map_or(ExpectedBytes::Null, ExpectedBytes::Bytes);
    }
    match &node.value {
        Value::Scalar(scalar) => match scalar.typed() {
            Typed::Null => ExpectedBytes::Null,
            Typed::Text(text) => ExpectedBytes::Bytes(text.as_bytes().to_vec()),
            Typed::Bool(_) | Typed::Integer(_) | Typed::Float(_) => ExpectedBytes::Json(json(node, problems)),
        },
        Value::List(_) | Value::Map(_) => ExpectedBytes::Json(json(node, problems)),
    }
}

/// What a test is given is shown where it fails.
fn refuse_secret(node: &Node, problems: &mut Problems) -> bool {
    let secret = node.holds_secret();
    if secret {
        let problem = Problem::at(&node.place, "what comes from a file is a secret, and a test shows what it is given");
        problems.push(problem.help("write a value that may be seen"));
    }
    secret
}

fn base64(node: &Node) -> Option<&Node> {
    match &node.value {
        Value::Map(entries) => match entries.as_slice() {
            [Entry { key, value: Node { value: Value::Scalar(scalar), .. }, .. }] if key == "base64" => {
                matches!(scalar.typed(), Typed::Text(_)).then_some(&entries[0].value)
            }
            _ => None,
        },
        Value::List(_) | Value::Scalar(_) => None,
    }
}

fn decode(node: &Node, problems: &mut Problems) -> Option<Vec<u8>> {
    let scalar = scalar(node, "base64", problems)?;
    match BASE64_STANDARD.decode(&scalar.text) {
        Ok(bytes) => Some(bytes),
        Err(why) => {
            problems.push(Problem::at(&node.place, format!("{} is not base64: {why}", shown(scalar))));
            None
        }
    }
}

fn expect(entry: &Entry, counts: bool, named: &mut Vec<At<String>>, problems: &mut Problems) -> Option<Expect> {
    let mut outputs = |node: &Node, named: &mut Vec<At<String>>, by_name: bool| {
        let nodes = list(node, "a list of outputs", problems)?;
        Some(nodes.iter().filter_map(|node| expected_output(node, counts, by_name, named, problems)).collect())
    };
    match &entry.value.value {
        Value::Map(entries) => {
            let mut of = Vec::new();
            for entry in entries {
                named.push(At::new(entry.key.clone(), &entry.key_place));
                of.push((entry.key.clone(), outputs(&entry.value, named, true)?));
            }
            Some(Expect::Of(of))
        }
        Value::List(_) | Value::Scalar(_) => outputs(&entry.value, named, false).map(Expect::All),
    }
}

fn expected_output(
    node: &Node,
    counts: bool,
    by_name: bool,
    named: &mut Vec<At<String>>,
    problems: &mut Problems,
) -> Option<ExpectedOutput> {
    let section = if by_name { &keys::EXPECTED_BY_NAME_KEYS } else { &keys::EXPECTED_KEYS };
    let mut fields = Fields::of(section, node, &node.place, "an output", problems)?;
    let destination = if by_name { None } else { fields.get(&keys::EXPECTED_DESTINATION) };
    let destination = destination.and_then(|node| text(node, "the name of a destination", problems));
    named.extend(destination.clone());
    let topic = fields.get(&keys::EXPECTED_TOPIC).and_then(|node| text(node, "a topic", problems));
    let partition_place = fields.entry(&keys::EXPECTED_PARTITION).map(|entry| &entry.key_place);
    let partition = partition(&keys::EXPECTED_PARTITION, &mut fields, problems);
    if let Some(place) = partition_place.filter(|_| !counts) {
        let problem = Problem::at(place, "which partition it is depends on how many there are");
        problems.push(
            problem.code("missing_key").help("say it in the test: `partitions: 6`, or `partitions: { TOPIC: 6 }`"),
        );
    }
    let headers = fields.get(&keys::EXPECTED_HEADERS).map(|node| {
        let pairs = headers(Some(node), problems);
        pairs.into_iter().map(|(name, node)| (name, expected_bytes(node, problems))).collect()
    });
    let output = ExpectedOutput {
        destination: destination.map(|at| at.value),
        topic: topic.map(|at| at.value),
        partition,
        timestamp: fields.get(&keys::EXPECTED_TIMESTAMP).and_then(|node| timestamp(node, problems)),
        key: fields.get(&keys::EXPECTED_KEY).map(|node| expected_bytes(node, problems)),
        value: fields.get(&keys::EXPECTED_VALUE).map(|node| expected_bytes(node, problems)),
        headers,
        exact: fields.get(&keys::EXACT).and_then(|node| boolean(node, problems)).is_some_and(|at| at.value),
    };
    fields.finish(problems);
    Some(output)
}

fn expected_fault(node: &Node, problems: &mut Problems) -> Option<ExpectedFault> {
    let mut fields = Fields::of(&keys::FAULT_KEYS, node, &node.place, "a fault", problems)?;
    let record = fields.number(&keys::FAULT_RECORD, problems);
    let attempts = fields.number(&keys::FAULT_ATTEMPTS, problems);
    let fault = ExpectedFault {
        record: record.and_then(|at| usize::try_from(at.value).ok()),
        code: fields.choice(&keys::FAULT_CODE, &words(keys::fault_codes()), problems).map(|at| at.value.to_owned()),
        plugin: fields.get(&keys::FAULT_PLUGIN).and_then(|node| text(node, "a plugin", problems)).map(|at| at.value),
        message: fields
            .get(&keys::FAULT_MESSAGE)
            .and_then(|node| text(node, "a part of its message", problems))
            .map(|at| at.value),
        then: fields.choice(&keys::FAULT_THEN, &FATES, problems).map(|at| at.value),
        attempts: attempts.and_then(|at| u32::try_from(at.value).ok()),
    };
    fields.finish(problems);
    Some(fault)
}

impl RawTest {
    /// The test, with its route looked up. `options` are the route's own with what `defaults` add.
    pub(super) fn resolve(
        &self,
        routes: &[RawRoute],
        options: &[RawOptions],
        problems: &mut Problems,
    ) -> Option<TestCase> {
        let written = routes.iter().zip(options).find(|(route, _)| route.name.value.as_str() == self.route.value);
        let Some((route, options)) = written else {
            let known: Vec<&str> = routes.iter().map(|route| route.name.value.as_str()).collect();
            problems.push(unknown("route", "unknown_route", &self.route, &known));
            return None;
        };
        let dead_letter = options.on_error.as_ref().and_then(|on_error| on_error.policy.dead_letter_topic());
        let destinations = route.destinations.iter().map(|destination| destination.name.value.as_str());
        let known: Vec<&str> = destinations.chain(dead_letter.map(TopicName::as_str)).collect();
        for name in self.named.iter().filter(|name| !known.contains(&name.value.as_str())) {
            problems.push(unknown("destination", "unknown_destination", name, &known));
        }
        let given = self.given.iter().filter_map(|given| given.resolve(route, problems)).collect();
        Some(TestCase {
            name: self.name.value.clone(),
            route: route.name.value.clone(),
            partitions: self.partitions.clone(),
            given,
            expect: self.expect.clone(),
            faults: self.faults.clone(),
            place: self.name.place.clone(),
            written: self.written.clone(),
        })
    }
}

fn unknown(what: &str, code: &'static str, name: &At<String>, known: &[&str]) -> Problem {
    let problem = Problem::at(&name.place, format!("there is no {what} {}", name.shown())).code(code);
    match did_you_mean(&name.value, known) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None if known.is_empty() => problem,
        None => problem.help(format!("{what}s are: {}", known.join(", "))),
    }
}

impl RawGiven {
    /// The record, of the route's first topic where none is written.
    fn resolve(&self, route: &RawRoute, problems: &mut Problems) -> Option<GivenRecord> {
        let source = route.source.as_ref()?;
        let selects = |topic: &TopicName| {
            let any = |selectors: &[At<TopicSelector>]| selectors.iter().any(|at| at.value.matches(topic.as_str()));
            any(&source.topics) && !any(&source.exclude)
        };
        let topic = match &self.topic {
            Some(topic) if selects(&topic.value) => topic.value.clone(),
            Some(topic) => {
                let message = format!("the route `{}` does not read `{}`", route.name.value, topic.value);
                let problem = Problem::at(&topic.place, message).code("unknown_topic");
                problems.push(problem.related(&source.place, "what it reads"));
                return None;
            }
            None => {
                let first = source.topics.iter().find_map(|at| match &at.value {
                    TopicSelector::Name(name) => Some(name.clone()),
                    TopicSelector::Pattern(_) => None,
                });
                let Some(first) = first else {
                    let problem = Problem::at(&self.place, "which topic is this record of? The route reads patterns");
                    problems.push(problem.code("missing_key").help("write `topic: TOPIC`"));
                    return None;
                };
                first
            }
        };
        Some(GivenRecord { topic, ..self.record.clone() })
    }
}
