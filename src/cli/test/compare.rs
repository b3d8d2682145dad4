//! What came of a test's records against what it expects. Only what is named is compared, and only that is shown.

use serde::Serialize;
use serde_json::{Map, Value};

use super::super::plugin::diff;
use super::super::plugin::records::bytes_json;
use super::give::Came;
use crate::config::test_cases::{Expect, ExpectedBytes, ExpectedFault, ExpectedOutput};
use crate::config::{NewExpectations, NewFields, TestCase};
use crate::pipeline::rehearsal::{RehearsedFault, RehearsedOutput};
use crate::pipeline::report::Fate;

/// Whether a test passed, and if not, why.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) differences: Vec<Difference>,
    /// What became of records of which nothing came, and what kept the test from running.
    pub(super) notes: Vec<String>,
    /// What it would have to expect, where it failed and could run.
    pub(super) new: Option<NewExpectations>,
}

/// A list that differs from what is expected of it, in lines.
#[derive(Serialize)]
pub(super) struct Difference {
    pub(super) of: String,
    pub(super) expected: Vec<String>,
    pub(super) came: Vec<String>,
}

impl Verdict {
    /// Of a test that could not run.
    pub(super) fn broken(why: String) -> Self {
        Self { notes: vec![why], ..Self::default() }
    }

    pub(super) fn passed(&self) -> bool {
        self.differences.is_empty() && self.notes.is_empty()
    }
}

/// An output with the name of where it goes.
struct Output<'a> {
    destination: &'a str,
    is: &'a RehearsedOutput,
}

pub(super) fn judge(test: &TestCase, came: &Came) -> Verdict {
    let outputs: Vec<Output<'_>> = came
        .outputs
        .iter()
        .map(|(_, is)| Output {
            destination: is.destination.as_ref().map_or(is.topic.as_str(), |name| name.as_str()),
            is,
        })
        .collect();
    let mut verdict = Verdict::default();
    let mut expect = Vec::new();
    let mut judge_outputs = |name: Option<&String>, expected: &[ExpectedOutput], came: &[&Output<'_>]| {
        let rows = pair(expected, came, |expected, output| output_matches(expected, output));
        let shown = Shown { with_destination: name.is_none(), with_partition: test.partitions.is_said() };
        let new = came.iter().zip(partners(&rows, came.len())).map(|(output, expected)| shown.output(output, expected));
        expect.push((name.cloned(), new.collect()));
        let of = name.map_or_else(|| "outputs".to_owned(), |name| format!("outputs to {name}"));
        verdict.differences.extend(difference(
            of,
            &rows,
            |expected| shown.expected(expected),
            |output, expected| shown.output(output, expected),
        ));
    };
    match &test.expect {
        Expect::All(expected) => judge_outputs(None, expected, &outputs.iter().collect::<Vec<_>>()),
        Expect::Of(named) => {
            for (name, expected) in named {
                let there: Vec<_> = outputs.iter().filter(|output| output.destination == name).collect();
                judge_outputs(Some(name), expected, &there);
            }
        }
    }
    let faults: Vec<&(usize, RehearsedFault)> = came.faults.iter().collect();
    let rows = pair(&test.faults, &faults, fault_matches);
    let new = faults.iter().zip(partners(&rows, faults.len())).map(|(fault, expected)| fault_fields(fault, expected));
    let faults = new.collect();
    verdict.differences.extend(difference("faults".into(), &rows, expected_fault, fault_fields));
    if !verdict.differences.is_empty() {
        verdict.notes = notes(came);
        verdict.new = Some(NewExpectations { expect, faults });
    }
    verdict
}

/// Why of a record came less than somebody may have expected.
fn notes(came: &Came) -> Vec<String> {
    let mut notes = Vec::new();
    for (record, plugin) in &came.filtered {
        notes.push(match plugin {
            Some(plugin) => format!("record {record} was dropped by plugin {plugin}"),
            None => format!("record {record} was taken by no destination"),
        });
    }
    for (record, fault) in &came.faults {
        let plugin = fault.plugin.as_ref().map_or(String::new(), |plugin| format!(" in plugin {plugin}"));
        notes.push(format!("record {record}: {}{plugin}: {}", fault.code, shortened(&fault.message)));
    }
    notes.extend(came.left.iter().map(|record| format!("record {record} was not given: its partition had stopped")));
    notes
}

/// A fault's message without the end of a long one, which is a trace as a rule.
fn shortened(message: &str) -> String {
    const LONGEST: usize = 100;
    match message.char_indices().nth(LONGEST) {
        Some((cut, _)) => diff::bounded(&message[..cut]) + "…",
        None => diff::bounded(message),
    }
}

/// Expected and actual, side by side. Those that match at both ends keep together what lies between.
enum Row<'e, 'c, E, C> {
    Match(&'e E),
    Differ(Option<&'e E>, Option<&'c C>),
}

fn pair<'e, 'c, E, C>(expected: &'e [E], came: &[&'c C], matches: impl Fn(&E, &C) -> bool) -> Vec<Row<'e, 'c, E, C>> {
    let first = expected.iter().zip(came).take_while(|(expected, came)| matches(expected, came)).count();
    let (expected_left, came_left) = (&expected[first..], &came[first..]);
    let backwards = expected_left.iter().rev().zip(came_left.iter().rev());
    let last = backwards.take_while(|(expected, came)| matches(expected, came)).count();
    let (expected_middle, came_middle) =
        (&expected_left[..expected_left.len() - last], &came_left[..came_left.len() - last]);
    let mut rows: Vec<Row<'_, '_, E, C>> = expected[..first].iter().map(Row::Match).collect();
    for index in 0..expected_middle.len().max(came_middle.len()) {
        rows.push(match (expected_middle.get(index), came_middle.get(index).copied()) {
            (Some(expected), Some(came)) if matches(expected, came) => Row::Match(expected),
            (expected, came) => Row::Differ(expected, came),
        });
    }
    rows.extend(expected_left[expected_middle.len()..].iter().map(Row::Match));
    rows
}

/// For each that came, what was expected in its place.
fn partners<'e, E, C>(rows: &[Row<'e, '_, E, C>], came: usize) -> Vec<Option<&'e E>> {
    let partners: Vec<Option<&E>> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Match(expected) => Some(Some(*expected)),
            Row::Differ(expected, Some(_)) => Some(*expected),
            Row::Differ(_, None) => None,
        })
        .collect();
    debug_assert_eq!(partners.len(), came, "each that came is in a row");
    partners
}

fn difference<E, C>(
    of: String,
    rows: &[Row<'_, '_, E, C>],
    expected: impl Fn(&E) -> NewFields,
    came: impl Fn(&C, Option<&E>) -> NewFields,
) -> Option<Difference> {
    if rows.iter().all(|row| matches!(row, Row::Match(_))) {
        return None;
    }
    let mut difference = Difference { of, expected: Vec::new(), came: Vec::new() };
    for row in rows {
        match row {
            Row::Match(both) => {
                let lines = entry_lines(&expected(both));
                difference.expected.extend(lines.clone());
                difference.came.extend(lines);
            }
            Row::Differ(one, other) => {
                difference.expected.extend(one.map(|one| entry_lines(&expected(one))).unwrap_or_default());
                difference.came.extend(other.map(|other| entry_lines(&came(other, *one))).unwrap_or_default());
            }
        }
    }
    Some(difference)
}

// ---- outputs --------------------------------------------------------------------------

fn output_matches(expected: &ExpectedOutput, output: &Output<'_>) -> bool {
    let ExpectedOutput { destination, topic, partition, timestamp, key, value, headers, exact } = expected;
    let is = output.is;
    let bytes = |expected: &Option<ExpectedBytes>, bytes: &Option<Vec<u8>>| {
        expected.as_ref().is_none_or(|expected| bytes_match(expected, bytes.as_deref(), *exact))
    };
    destination.as_ref().is_none_or(|name| name == output.destination)
        && topic.as_ref().is_none_or(|topic| topic == is.topic.as_str())
        && partition.is_none_or(|partition| partition == is.partition)
        && timestamp.is_none_or(|timestamp| timestamp == is.timestamp)
        && bytes(key, &is.key)
        && bytes(value, &is.value)
        && headers.as_ref().is_none_or(|headers| headers_match(headers, &is.headers, *exact))
}

type Headers = [(Vec<u8>, Option<Vec<u8>>)];

fn headers_match(expected: &[(String, ExpectedBytes)], headers: &Headers, exact: bool) -> bool {
    let one = |(name, value): &(String, ExpectedBytes), header: &(Vec<u8>, Option<Vec<u8>>)| {
        name.as_bytes() == header.0 && bytes_match(value, header.1.as_deref(), exact)
    };
    if exact {
        return expected.len() == headers.len() && expected.iter().zip(headers).all(|(each, header)| one(each, header));
    }
    expected.iter().all(|each| headers.iter().any(|header| one(each, header)))
}

fn bytes_match(expected: &ExpectedBytes, bytes: Option<&[u8]>, exact: bool) -> bool {
    match (expected, bytes) {
        (ExpectedBytes::Null, bytes) => bytes.is_none(),
        (_, None) => false,
        (ExpectedBytes::Bytes(expected), Some(bytes)) => expected == bytes,
        (ExpectedBytes::Json(expected), Some(bytes)) => {
            serde_json::from_slice(bytes).is_ok_and(|json| json_matches(expected, &json, exact))
        }
    }
}

fn json_matches(expected: &Value, json: &Value, exact: bool) -> bool {
    match (expected, json) {
        (Value::Object(expected), Value::Object(json)) => {
            let field = |(name, expected)| json.get(name).is_some_and(|json| json_matches(expected, json, exact));
            (!exact || expected.len() == json.len()) && expected.iter().all(field)
        }
        (Value::Array(expected), Value::Array(json)) => {
            let each = |(expected, json)| json_matches(expected, json, exact);
            expected.len() == json.len() && expected.iter().zip(json).all(each)
        }
        // As JSON means it: 1 is 1.0, but two integers are not equal for being the same float.
        (Value::Number(expected), Value::Number(json)) if expected.is_f64() != json.is_f64() => {
            expected.as_f64() == json.as_f64()
        }
        (expected, json) => expected == json,
    }
}

/// What is told of an output of which nothing is expected.
struct Shown {
    with_destination: bool,
    with_partition: bool,
}

impl Shown {
    fn expected(&self, expected: &ExpectedOutput) -> NewFields {
        let ExpectedOutput { destination, topic, partition, timestamp, key, value, headers, exact } = expected;
        let mut fields = NewFields::new();
        let mut put = |name, value: Option<Value>| fields.extend(value.map(|value| (name, value)));
        put("destination", destination.clone().map(Value::from));
        put("topic", topic.clone().map(Value::from));
        put("partition", partition.map(Value::from));
        put("key", key.as_ref().map(expected_json));
        put("value", value.as_ref().map(expected_json));
        let pair = |(name, value): &(String, ExpectedBytes)| (name.clone(), expected_json(value));
        put("headers", headers.as_ref().map(|headers| headers_json(headers.iter().map(pair).collect())));
        put("timestamp", timestamp.map(Value::from));
        put("exact", exact.then_some(Value::Bool(true)));
        fields
    }

    fn output(&self, output: &Output<'_>, expected: Option<&ExpectedOutput>) -> NewFields {
        let is = output.is;
        let mut fields = NewFields::new();
        let mut put = |name, wanted: bool, value: &dyn Fn() -> Value| {
            if wanted {
                fields.push((name, value()));
            }
        };
        let named = |named: fn(&ExpectedOutput) -> bool, otherwise: bool| expected.map_or(otherwise, named);
        let exact = named(|expected| expected.exact, false);
        let (key, value) = expected.map_or((None, None), |expected| (expected.key.as_ref(), expected.value.as_ref()));
        put("destination", named(|e| e.destination.is_some(), self.with_destination), &|| output.destination.into());
        put("topic", named(|e| e.topic.is_some(), false), &|| is.topic.as_str().into());
        put("partition", named(|e| e.partition.is_some(), self.with_partition), &|| is.partition.into());
        put("key", named(|e| e.key.is_some(), true), &|| shown_bytes(is.key.as_deref(), key, exact));
        put("value", named(|e| e.value.is_some(), true), &|| shown_bytes(is.value.as_deref(), value, exact));
        let headers = expected.and_then(|expected| expected.headers.as_deref());
        put("headers", headers.is_some(), &|| shown_headers(&is.headers, headers.unwrap_or_default(), exact));
        put("timestamp", named(|e| e.timestamp.is_some(), false), &|| is.timestamp.into());
        put("exact", exact, &|| Value::Bool(true));
        fields
    }
}

fn expected_json(expected: &ExpectedBytes) -> Value {
    match expected {
        ExpectedBytes::Null => Value::Null,
        ExpectedBytes::Bytes(bytes) => bytes_json(Some(bytes)),
        ExpectedBytes::Json(json) => json.clone(),
    }
}

/// Bytes in the form in which they are expected: JSON with the fields that are named, or text.
fn shown_bytes(bytes: Option<&[u8]>, expected: Option<&ExpectedBytes>, exact: bool) -> Value {
    let json = || bytes.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let json = match expected {
        Some(ExpectedBytes::Json(expected)) => json().map(|json| if exact { json } else { projected(&json, expected) }),
        Some(ExpectedBytes::Null | ExpectedBytes::Bytes(_)) => None,
        None => json().filter(|json| json.is_object() || json.is_array()),
    };
    json.filter(can_be_written).unwrap_or_else(|| bytes_json(bytes))
}

/// Whether it reads back as JSON when it is written as YAML.
fn can_be_written(json: &Value) -> bool {
    match json {
        Value::Object(map) if map.len() == 1 && map.contains_key("base64") => false,
        Value::Object(map) => !map.contains_key("<<") && map.values().all(can_be_written),
        Value::Array(list) => list.iter().all(can_be_written),
        Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null => true,
    }
}

/// The fields of `json` that `expected` names.
fn projected(json: &Value, expected: &Value) -> Value {
    match (json, expected) {
        (Value::Object(json), Value::Object(expected)) => {
            let named = expected.iter().filter_map(|(name, expected)| Some((name, json.get(name)?, expected)));
            Value::Object(named.map(|(name, json, expected)| (name.clone(), projected(json, expected))).collect())
        }
        (Value::Array(json), Value::Array(expected)) if json.len() == expected.len() => {
            json.iter().zip(expected).map(|(json, expected)| projected(json, expected)).collect()
        }
        (json, _) => json.clone(),
    }
}

fn shown_headers(headers: &Headers, expected: &[(String, ExpectedBytes)], exact: bool) -> Value {
    let one = |name: &str, value: Option<&[u8]>, expected: Option<&ExpectedBytes>| {
        (name.to_owned(), shown_bytes(value, expected, exact))
    };
    if exact {
        let all = headers.iter().map(|(name, value)| one(&String::from_utf8_lossy(name), value.as_deref(), None));
        return headers_json(all.collect());
    }
    let named = expected.iter().filter_map(|(name, expected)| {
        let there = || headers.iter().filter(|header| header.0 == name.as_bytes());
        let matching = there().find(|header| bytes_match(expected, header.1.as_deref(), false));
        let (_, value) = matching.or_else(|| there().next())?;
        Some(one(name, value.as_deref(), Some(expected)))
    });
    headers_json(named.collect())
}

/// A mapping, or pairs where a name repeats.
fn headers_json(headers: Vec<(String, Value)>) -> Value {
    let count = headers.len();
    let map: Map<String, Value> = headers.iter().cloned().collect();
    if map.len() == count {
        return Value::Object(map);
    }
    headers.into_iter().map(|(name, value)| Value::from(vec![name.into(), value])).collect()
}

// ---- faults ---------------------------------------------------------------------------

const fn fate(fate: Fate) -> &'static str {
    match fate {
        Fate::Stopped | Fate::Retried(_) => "stop",
        Fate::Skipped => "skip",
        Fate::DeadLettered => "dead_letter",
    }
}

fn fault_matches(expected: &ExpectedFault, (number, fault): &(usize, RehearsedFault)) -> bool {
    let ExpectedFault { record, code, plugin, message, then, attempts } = expected;
    record.is_none_or(|record| record == *number)
        && code.as_ref().is_none_or(|code| code == fault.code)
        && plugin.as_ref().is_none_or(|plugin| fault.plugin.as_ref().is_some_and(|of| of.as_str() == plugin))
        && message.as_ref().is_none_or(|part| fault.message.contains(part))
        && then.is_none_or(|then| then == fate(fault.fate))
        && attempts.is_none_or(|attempts| attempts == fault.attempts)
}

fn expected_fault(expected: &ExpectedFault) -> NewFields {
    let ExpectedFault { record, code, plugin, message, then, attempts } = expected;
    let mut fields = NewFields::new();
    let mut put = |name, value: Option<Value>| fields.extend(value.map(|value| (name, value)));
    put("record", record.map(Value::from));
    put("code", code.clone().map(Value::from));
    put("plugin", plugin.clone().map(Value::from));
    put("message", message.clone().map(Value::from));
    put("then", then.map(Value::from));
    put("attempts", attempts.map(Value::from));
    fields
}

fn fault_fields((number, fault): &(usize, RehearsedFault), expected: Option<&ExpectedFault>) -> NewFields {
    let named = |named: fn(&ExpectedFault) -> bool, otherwise: bool| expected.map_or(otherwise, named);
    let mut fields = NewFields::new();
    let mut put = |name, wanted: bool, value: Value| {
        if wanted {
            fields.push((name, value));
        }
    };
    let plugin = fault.plugin.as_ref().map_or(Value::Null, |plugin| plugin.as_str().into());
    let message = match expected.and_then(|expected| expected.message.as_ref()) {
        Some(part) if fault.message.contains(part) => part.clone(),
        _ => fault.message.clone(),
    };
    put("record", named(|e| e.record.is_some(), true), (*number).into());
    put("code", named(|e| e.code.is_some(), true), fault.code.into());
    put("plugin", named(|e| e.plugin.is_some(), false) && !plugin.is_null(), plugin);
    put("message", named(|e| e.message.is_some(), false), message.into());
    put("then", named(|e| e.then.is_some(), true), fate(fault.fate).into());
    put("attempts", named(|e| e.attempts.is_some(), false), fault.attempts.into());
    fields
}

// ---- lines ----------------------------------------------------------------------------

/// An entry of a list, a field a line.
fn entry_lines(fields: &NewFields) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, value) in fields {
        field_lines(name, value, 1, &mut lines);
    }
    match lines.first_mut() {
        Some(first) => first.replace_range(0..1, "-"),
        None => lines.push("- anything".to_owned()),
    }
    lines
}

fn field_lines(name: &str, value: &Value, depth: usize, lines: &mut Vec<String>) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            lines.push(format!("{indent}{name}:"));
            map.iter().for_each(|(name, value)| field_lines(name, value, depth + 1, lines));
        }
        value => lines.push(format!("{indent}{name}: {value}")),
    }
}
