//! Writes new expectations of tests in the place of those that are written, and leaves every other byte of the file alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value as Json;

use super::problem::Problems;
use super::source::{Place, SourceFile};
use super::test_cases::TestCase;
use super::tree::{self, Entry, Node, Typed, Value};

/// An output or a fault as it is to be written: fields in their order.
pub type NewFields = Vec<(&'static str, Json)>;

/// What a test is to expect from now on.
#[derive(Debug, Clone, Default)]
pub struct NewExpectations {
    /// Outputs: all of them under no name, or those of destinations by name.
    pub expect: Vec<(Option<String>, Vec<NewFields>)>,
    /// Faults.
    pub faults: Vec<NewFields>,
}

/// A file with new expectations.
#[derive(Debug)]
pub struct Rewritten {
    /// The file.
    pub path: PathBuf,
    /// Its new text.
    pub text: String,
}

/// Where in a test stand what can be rewritten.
#[derive(Debug, Clone)]
pub(super) struct Written {
    /// The test is written as `{ … }`.
    flow: bool,
    expect: Slot,
    faults: Option<Slot>,
}

/// A key and its value.
#[derive(Debug, Clone)]
struct Slot {
    key: Place,
    /// The value's bytes; `None` where it is an alias.
    value: Option<Range<usize>>,
    /// It begins on a line of its own, with `-` or a key.
    block: bool,
}

impl Written {
    pub(super) fn new(test: &Node, expect: &Entry, faults: Option<&Entry>) -> Self {
        let flow = is_flow(test);
        Self { flow, expect: Slot::of(expect), faults: faults.map(Slot::of) }
    }
}

impl Slot {
    fn of(entry: &Entry) -> Self {
        let (key, value) = (&entry.key_place, &entry.value);
        let colon = behind_colon(key);
        let nothing = matches!(&value.value, Value::Scalar(scalar) if scalar.text.is_empty());
        let extent = if nothing { Some(colon..colon) } else { value.extent().filter(|range| range.start >= colon) };
        let block = !nothing && !matches!(value.value, Value::Scalar(_)) && !is_flow(value);
        Self { key: key.clone(), value: extent, block }
    }

    /// The range to replace with `lines`, of which `None` stands for an empty list, and what to write there.
    fn replace(&self, flow: Option<&str>, lines: &[String]) -> Option<Edit> {
        let (value, colon) = (self.value.clone()?, behind_colon(&self.key));
        if let Some(flow) = flow {
            return Some((colon..value.end, format!(" {flow}")));
        }
        let (from, indent) =
            if self.block { (value.start, column(&self.key, value.start)) } else { (colon, self.indent() + 2) };
        let line_break = format!("\n{}", " ".repeat(indent));
        let first = if self.block { "" } else { line_break.as_str() };
        Some((from..value.end, format!("{first}{}", lines.join(&line_break))))
    }

    fn indent(&self) -> usize {
        self.key.column() - 1
    }
}

fn is_flow(node: &Node) -> bool {
    node.place.file().text()[node.place.range()].starts_with(['[', '{'])
}

fn behind_colon(key: &Place) -> usize {
    let (text, end) = (key.file().text(), key.range().end);
    text[end..].find(':').map_or(end, |colon| end + colon + 1)
}

fn column(near: &Place, at: usize) -> usize {
    Place::new(near.file(), at..at).column() - 1
}

/// The files with these expectations in the place of those that are written.
///
/// # Errors
/// The test whose expectations cannot be rewritten, and why.
pub fn rewrite<'t>(
    tests: impl IntoIterator<Item = (&'t TestCase, NewExpectations)>,
) -> Result<Vec<Rewritten>, (&'t TestCase, String)> {
    let mut files: BTreeMap<PathBuf, (Arc<SourceFile>, Vec<Edit>)> = BTreeMap::new();
    for (test, new) in tests {
        let edits = edits(&test.written, &new).ok_or_else(|| {
            let why = "an alias stands in what it expects: write that out, or change it by hand";
            (test, why.to_owned())
        })?;
        let file = test.place.file();
        let (_, all) = files.entry(file.path().to_owned()).or_insert_with(|| (Arc::clone(file), Vec::new()));
        all.extend(edits);
    }
    Ok(files.into_iter().map(|(path, (file, edits))| Rewritten { path, text: apply(&file, edits) }).collect())
}

/// Bytes of a file, and what is to stand there instead.
type Edit = (Range<usize>, String);

fn apply(file: &SourceFile, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|(range, _)| range.start);
    let mut text = file.text().to_owned();
    for (range, new) in edits.into_iter().rev() {
        text.replace_range(range, &new);
    }
    debug_assert!(tree::parse(&SourceFile::new(file.path().to_owned(), text.clone()), &mut Problems::new()).is_ok());
    text
}

fn edits(written: &Written, new: &NewExpectations) -> Option<Vec<Edit>> {
    let (range, mut text) = match new.expect.as_slice() {
        [(None, outputs)] => list(written, &written.expect, outputs)?,
        by_name => mapping(written, by_name)?,
    };
    let mut edits = Vec::new();
    match &written.faults {
        Some(slot) => edits.push(list(written, slot, &new.faults)?),
        None if new.faults.is_empty() => {}
        None if written.flow => write!(text, ", faults: {}", flow_list(&new.faults)).ok()?,
        None => {
            let indent = " ".repeat(written.expect.indent());
            write!(text, "\n{indent}faults:").ok()?;
            for fault in &new.faults {
                write!(text, "\n{indent}  - {}", flow_fields(fault)).ok()?;
            }
        }
    }
    edits.push((range, text));
    Some(edits)
}

fn list(written: &Written, slot: &Slot, entries: &[NewFields]) -> Option<Edit> {
    let flow = (written.flow || entries.is_empty()).then(|| flow_list(entries));
    let lines: Vec<String> = entries.iter().map(|entry| format!("- {}", flow_fields(entry))).collect();
    slot.replace(flow.as_deref(), &lines)
}

fn mapping(written: &Written, by_name: &[(Option<String>, Vec<NewFields>)]) -> Option<Edit> {
    let named = || by_name.iter().filter_map(|(name, entries)| Some((word(name.as_ref()?, false), entries)));
    let flow = (written.flow || by_name.is_empty()).then(|| {
        let parts: Vec<String> = named().map(|(name, entries)| format!("{name}: {}", flow_list(entries))).collect();
        if parts.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", parts.join(", ")) }
    });
    let mut lines = Vec::new();
    for (name, entries) in named() {
        lines.push(if entries.is_empty() { format!("{name}: []") } else { format!("{name}:") });
        lines.extend(entries.iter().map(|entry| format!("  - {}", flow_fields(entry))));
    }
    written.expect.replace(flow.as_deref(), &lines)
}

fn flow_list(entries: &[NewFields]) -> String {
    format!("[{}]", entries.iter().map(flow_fields).collect::<Vec<_>>().join(", "))
}

fn flow_fields(fields: &NewFields) -> String {
    if fields.is_empty() {
        return "{}".to_owned();
    }
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {}", flow_value(value))).collect();
    format!("{{ {} }}", fields.join(", "))
}

/// JSON as YAML on one line.
pub(super) fn flow_value(value: &Json) -> String {
    match value {
        Json::Null | Json::Bool(_) | Json::Number(_) => value.to_string(),
        Json::String(text) => word(text, true),
        Json::Array(list) => format!("[{}]", list.iter().map(flow_value).collect::<Vec<_>>().join(", ")),
        Json::Object(map) if map.is_empty() => "{}".to_owned(),
        Json::Object(map) => {
            let fields = map.iter().map(|(key, value)| format!("{}: {}", word(key, false), flow_value(value)));
            format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Text as YAML, in quotes where it would be something else without. Variables are replaced in values, not in keys.
fn word(text: &str, is_value: bool) -> String {
    let scalar = tree::Scalar { text: text.to_owned(), plain: true, secret: false, broken: false };
    let plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/'))
        && matches!(scalar.typed(), Typed::Text(_))
        && !matches!(text.to_ascii_lowercase().as_str(), "yes" | "no" | "on" | "off" | "y" | "n");
    if plain {
        return text.to_owned();
    }
    let mut quoted = Json::from(text).to_string();
    if is_value {
        quoted = quoted.replace('$', "$$");
    }
    let mut safe = String::with_capacity(quoted.len());
    for c in quoted.chars() {
        match c {
            // YAML wants these escaped; JSON does not.
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                let _ = write!(safe, "\\u{:04x}", u32::from(c));
            }
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::{Loaded, files::ReadFile, understand};

    const HEAD: &str = "\
# kept
kafka: { bootstrap.servers: b:9092 }
routes: { r: { source: { topics: [a], start: latest }, destinations: [{ topic: b }] } }
tests:
";

    fn load(text: &str) -> Loaded {
        let file = ReadFile { path: "t.yaml".into(), bytes: text.as_bytes().to_vec() };
        let read = understand("t.yaml".as_ref(), vec![file], &|_| None, Problems::new());
        read.result.unwrap_or_else(|problems| panic!("{text}\n{problems}"))
    }

    fn rewritten(tests: &str, new: &NewExpectations) -> String {
        let loaded = load(&format!("{HEAD}{tests}"));
        let all = loaded.tests.iter().map(|test| (test, new.clone()));
        let mut files = rewrite(all).expect("they can be rewritten");
        let text = files.pop().expect("a file").text;
        load(&text);
        text.strip_prefix(HEAD).expect("the rest is as it was").to_owned()
    }

    #[test]
    fn expectations_are_written_in_the_way_of_the_test() {
        let two = NewExpectations {
            expect: vec![(
                None,
                vec![vec![("key", json!("k")), ("value", json!({ "a": 1 }))], vec![("value", json!(null))]],
            )],
            faults: Vec::new(),
        };
        let none = NewExpectations { expect: vec![(None, vec![])], faults: vec![vec![("code", json!("refused"))]] };
        let block = "  - name: t # one\n    route: r\n    given: []\n    expect:\n      - key: x\n        # gone\n        value: y\n\n  # two\n  - { name: u, route: r, given: [], expect: [] } # three\n";
        assert_eq!(
            rewritten(block, &two),
            "  - name: t # one\n    route: r\n    given: []\n    expect:\n      - { key: k, value: { a: 1 } }\n      - { value: null }\n\n  # two\n  - { name: u, route: r, given: [], expect: [{ key: k, value: { a: 1 } }, { value: null }] } # three\n"
        );
        assert_eq!(
            rewritten(block, &none),
            "  - name: t # one\n    route: r\n    given: []\n    expect: []\n    faults:\n      - { code: refused }\n\n  # two\n  - { name: u, route: r, given: [], expect: [], faults: [{ code: refused }] } # three\n"
        );
        let by_name = NewExpectations { expect: vec![(Some("b".into()), two.expect[0].1.clone())], faults: vec![] };
        let mapping = "- name: t\n  route: r\n  expect: { b: [] }\n  faults: [{ code: refused }]\n  given: []\n";
        assert_eq!(
            rewritten(mapping, &by_name),
            "- name: t\n  route: r\n  expect:\n    b:\n      - { key: k, value: { a: 1 } }\n      - { value: null }\n  faults: []\n  given: []\n"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_read_back_as_it_was(text in any::<String>(), key in any::<String>()) {
            prop_assume!(key != "<<");
            let value = json!({ key: [text, 1, null] });
            let new = NewExpectations { expect: vec![(None, vec![vec![("value", value.clone())]])], faults: vec![] };
            let text = rewritten("- { name: t, route: r, given: [], expect: [] }\n", &new);
            let crate::config::test_cases::Expect::All(outputs) = load(&format!("{HEAD}{text}")).tests[0].expect.clone()
            else { panic!("a list") };
            prop_assert_eq!(&outputs[0].value, &Some(crate::config::test_cases::ExpectedBytes::Json(value)));
        }
    }
}
