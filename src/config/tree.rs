//! A YAML document as a tree in which every key and value knows its place. The only user of the YAML parser.
//!
//! Aliases are allowed and bounded, so that a few lines cannot grow into gigabytes; merge keys, tags and several
//! documents in one file are not. Scalars keep their text: what they mean is decided by whoever asks for them, after
//! `interpolate` has replaced variables.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag};

use super::problem::{Problem, Problems};
use super::source::{Place, SourceFile, hides_value};

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

impl Node {
    /// Whether any of it came from a file named by `${file:…}`.
    pub(super) fn holds_secret(&self) -> bool {
        match &self.value {
            Value::Scalar(scalar) => scalar.secret,
            Value::List(list) => list.iter().any(Self::holds_secret),
            Value::Map(entries) => entries.iter().any(|entry| entry.value.holds_secret()),
        }
    }

    /// The bytes from the value's first character to its last: the parser lets a block list or mapping go on to what
    /// follows it. `None` where it ends in an alias, whose value stands elsewhere.
    pub(super) fn extent(&self) -> Option<Range<usize>> {
        let Range { start, end } = self.place.range();
        let written = &self.place.file().text()[start..end];
        let last = match &self.value {
            Value::List(list) if !written.starts_with('[') => list.last(),
            Value::Map(entries) if !written.starts_with('{') => entries.last().map(|entry| &entry.value),
            Value::Scalar(_) | Value::List(_) | Value::Map(_) => None,
        };
        let Some(last) = last else { return Some(start..start + written.trim_end().len()) };
        let last = last.extent()?;
        let inside = (start..=end).contains(&last.start) && last.end <= end;
        inside.then(|| start..start + self.place.file().text()[start..last.end].trim_end().len())
    }
}

/// What a value is.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_place: Place,
    pub(super) value: Node,
}

/// A scalar as it is written.
#[derive(Debug, Clone)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Written without quotes: its text decides whether it is a number, a boolean, null or text.
    pub(super) plain: bool,
    /// Some of its text came from a file named by `${file:…}`.
    pub(super) secret: bool,
    /// Some of its text could not be had. That has been told: nobody complains about it again.
    pub(super) broken: bool,
}

/// What a scalar means (YAML's core schema).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Typed<'a> {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(&'a str),
}

impl Scalar {
    pub(super) fn typed(&self) -> Typed<'_> {
        let text = self.text.as_str();
        if !self.plain {
            return Typed::Text(text);
        }
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Typed::Null,
            "true" | "True" | "TRUE" => Typed::Bool(true),
            "false" | "False" | "FALSE" => Typed::Bool(false),
            ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Typed::Float(f64::INFINITY),
            "-.inf" | "-.Inf" | "-.INF" => Typed::Float(f64::NEG_INFINITY),
            ".nan" | ".NaN" | ".NAN" => Typed::Float(f64::NAN),
            _ => {
                integer(text).map(Typed::Integer).or_else(|| float(text).map(Typed::Float)).unwrap_or(Typed::Text(text))
            }
        }
    }
}

fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.get(..2) {
        Some("0x") => (16, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        _ => (10, digits),
    };
    // A number does not begin with a zero: `0123` is text, perhaps an account's number.
    let leading_zero = radix == 10 && digits.len() > 1 && digits.starts_with('0');
    if leading_zero || !digits.bytes().all(|digit| digit.is_ascii_alphanumeric()) {
        return None;
    }
    let number = i128::from_str_radix(digits, radix).ok()?;
    Some(if negative { -number } else { number })
}

fn float(text: &str) -> Option<f64> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let leading_zero = digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    if leading_zero || !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

/// Lists and mappings within each other.
const DEEPEST: usize = 64;
/// What aliases may make of one file, in bytes of nodes and text. Generous for a person, small for an attack.
const ALIASED_MOST: usize = 16 << 20;

/// The file is not one YAML document; the problems say why.
#[derive(Debug)]
pub(super) struct Unreadable;

/// Reads the file's only document; `None` if there is nothing in it.
pub(super) fn parse(file: &Arc<SourceFile>, problems: &mut Problems) -> Result<Option<Node>, Unreadable> {
    let mut builder = Builder { file, problems, stack: Vec::new(), root: None, anchors: HashMap::new(), aliased: 0 };
    let read = builder.read();
    let root = builder.root.take();
    let Ok(()) = read else { return Err(Unreadable) };
    let mut secrets = Vec::new();
    if let Some(root) = &root {
        collect_secrets(root, &mut secrets);
    }
    file.hide(secrets);
    Ok(root.filter(|root| !matches!(&root.value, Value::Scalar(scalar) if scalar.typed() == Typed::Null)))
}

fn collect_secrets(node: &Node, secrets: &mut Vec<Range<usize>>) {
    match &node.value {
        Value::Scalar(_) => {}
        Value::List(list) => list.iter().for_each(|node| collect_secrets(node, secrets)),
        Value::Map(entries) => {
            for entry in entries {
                match &entry.value.value {
                    Value::Scalar(scalar) if hides_value(&entry.key) && !is_reference(&scalar.text) => {
                        secrets.push(entry.value.place.range());
                    }
                    _ => collect_secrets(&entry.value, secrets),
                }
            }
        }
    }
}

/// Whether the text only says where the secret comes from, which is worth seeing.
fn is_reference(text: &str) -> bool {
    text.starts_with("${") && text.find('}') == Some(text.len() - 1) && !text.contains(":-")
}

struct Builder<'a> {
    file: &'a Arc<SourceFile>,
    problems: &'a mut Problems,
    stack: Vec<Frame>,
    root: Option<Node>,
    /// Finished anchored nodes, each with what one alias to it costs.
    anchors: HashMap<usize, (Node, usize)>,
    aliased: usize,
}

/// A list or mapping that is not finished.
struct Frame {
    start: usize,
    anchor: usize,
    open: Open,
}

enum Open {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, places: HashMap<String, Place>, key: Option<(String, Place)> },
}

impl Builder<'_> {
    fn read(&mut self) -> Result<(), Unreadable> {
        let file = Arc::clone(self.file);
        let mut parser = Parser::new_from_str(file.text());
        let mut documents = 0;
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| self.syntax(&error))?;
            if let Event::DocumentStart(_) = event {
                documents += 1;
                if documents > 1 {
                    return Err(self.refuse(
                        span,
                        "a file holds one YAML document, and here a second one begins",
                        &["put it in a file of its own: all files of a directory are read as one configuration"],
                    ));
                }
            }
            self.take(event, span)?;
        }
        Ok(())
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Unreadable> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let quoted_by_tag = self.check_tag(tag.as_deref(), span)?;
                let scalar = Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain && !quoted_by_tag,
                    secret: false,
                    broken: false,
                };
                let node = Node { place: self.place(span), value: Value::Scalar(scalar) };
                self.finish(node, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), span)?;
                self.open(Open::List(Vec::new()), anchor, span)
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), span)?;
                self.open(Open::Map { entries: Vec::new(), places: HashMap::new(), key: None }, anchor, span)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(anchor) => self.alias(anchor, span),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
        }
    }

    fn open(&mut self, open: Open, anchor: usize, span: Span) -> Result<(), Unreadable> {
        if self.stack.len() >= DEEPEST {
            let message = format!("more than {DEEPEST} lists and mappings within each other");
            return Err(self.refuse(span, &message, &[]));
        }
        let start = self.offset(&span.start);
        self.stack.push(Frame { start, anchor, open });
        Ok(())
    }

    fn close(&mut self, span: Span) -> Result<(), Unreadable> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let end = self.offset(&span.end);
        let value = match frame.open {
            Open::List(list) => Value::List(list),
            Open::Map { entries, .. } => Value::Map(entries),
        };
        let node = Node { place: Place::new(self.file, frame.start..end), value };
        self.finish(node, frame.anchor)
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<(), Unreadable> {
        let Some((node, cost)) = self.anchors.get(&anchor) else {
            return Err(self.refuse(span, "this alias stands within the value that it names", &[]));
        };
        let (node, cost) = (node.clone(), *cost);
        self.spend(cost, span)?;
        self.finish(node, 0)
    }

    fn spend(&mut self, cost: usize, span: Span) -> Result<(), Unreadable> {
        self.aliased = self.aliased.saturating_add(cost);
        if self.aliased > ALIASED_MOST {
            let message = format!("the aliases of this file repeat more than {} MiB", ALIASED_MOST >> 20);
            return Err(self.refuse(span, &message, &["write the values out"]));
        }
        Ok(())
    }

    /// Hands a finished value to what it stands in.
    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), Unreadable> {
        if anchor != 0 {
            let cost = cost(&node);
            let range = node.place.range();
            let at = Place::new(self.file, range);
            self.aliased = self.aliased.saturating_add(cost);
            if self.aliased > ALIASED_MOST {
                self.problems.push(Problem::at(&at, "the anchors of this file hold too much").code("syntax"));
                return Err(Unreadable);
            }
            self.anchors.insert(anchor, (node.clone(), cost));
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut frame.open {
            Open::List(list) => list.push(node),
            Open::Map { entries, places, key } => match key.take() {
                None => *key = Some(as_key(node, self.problems)),
                Some((key, key_place)) => {
                    if let Some(first) = places.get(&key) {
                        self.problems.push(duplicate_key(&key, &key_place, first));
                    } else {
                        places.insert(key.clone(), key_place.clone());
                        if key == "<<" {
                            self.problems.push(merge_key(&key_place));
                        } else {
                            entries.push(Entry { key, key_place, value: node });
                        }
                    }
                }
            },
        }
        Ok(())
    }

    /// Whether the tag makes a plain scalar text.
    fn check_tag(&mut self, tag: Option<&Tag>, span: Span) -> Result<bool, Unreadable> {
        match tag {
            None => Ok(false),
            Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => Ok(true),
            Some(tag) => {
                let shown = if tag.is_yaml_core_schema() { format!("!!{}", tag.suffix) } else { tag.to_string() };
                let message = format!("YAML tags such as `{shown}` mean nothing here");
                Err(self.refuse(span, &message, &["leave the tag out"]))
            }
        }
    }

    fn syntax(&mut self, error: &ScanError) -> Unreadable {
        let at = self.offset(error.marker());
        let rest = &self.file.text()[at..];
        let length = rest.chars().next().filter(|c| !matches!(c, '\n' | '\r')).map_or(0, char::len_utf8);
        let place = Place::new(self.file, at..at + length);
        let mut problem = Problem::at(&place, format!("this is not YAML: {}", error.info())).code("syntax");
        if let Some(help) = syntax_help(error.info(), &place.excerpt().text) {
            problem = problem.help(help);
        }
        self.problems.push(problem);
        Unreadable
    }

    fn refuse(&mut self, span: Span, message: &str, help: &[&str]) -> Unreadable {
        let place = self.place(span);
        let problem =
            help.iter().fold(Problem::at(&place, message).code("syntax"), |problem, help| problem.help(*help));
        self.problems.push(problem);
        Unreadable
    }

    /// The span, without the white space that the parser counts to a quoted scalar before a comma or a bracket.
    fn place(&self, span: Span) -> Place {
        let (start, end) = (self.offset(&span.start), self.offset(&span.end));
        let written = self.file.text().get(start..end).unwrap_or_default();
        Place::new(self.file, start..start + written.trim_end().len())
    }

    fn offset(&self, marker: &Marker) -> usize {
        self.file.offset(marker.line(), marker.col())
    }
}

/// What to do about the parser's complaint, where that can be guessed.
fn syntax_help(complaint: &str, line: &str) -> Option<&'static str> {
    let about = |words: &[&str]| words.iter().any(|word| complaint.contains(word));
    if about(&["tab"]) {
        Some("indent with spaces: YAML allows no tabs there")
    } else if line.contains("${") && line.contains(['{', '[']) && about(&["flow", "node", "block mapping"]) {
        Some("inside `{ }` and `[ ]` a `${…}` needs quotes, or a line of its own")
    } else if about(&["anchor"]) {
        Some("put quotes around a value that begins with `*` or `&`; an alias stands below the anchor that it names")
    } else if about(&["mapping values are not allowed"]) {
        Some("put quotes around a value that holds `: `, and check the indentation")
    } else if about(&["quoted scalar", "unexpected end of stream"]) {
        Some("a quote before this may not be closed")
    } else if about(&["flow", "node content"]) {
        Some("a `[` or `{` before this may not be closed, or a comma or a value is missing")
    } else if about(&["unexpected character", "found character"]) {
        Some("put quotes around a value that begins with a special character")
    } else if about(&["block", "simple key", "indentation"]) {
        Some("check the indentation, and that every key has its `:`")
    } else {
        None
    }
}

fn as_key(node: Node, problems: &mut Problems) -> (String, Place) {
    match node.value {
        Value::Scalar(scalar) => (scalar.text, node.place),
        Value::List(_) | Value::Map(_) => {
            problems.push(Problem::at(&node.place, "a key has to be a plain word").code("syntax"));
            (String::new(), node.place)
        }
    }
}

fn duplicate_key(key: &str, again: &Place, first: &Place) -> Problem {
    Problem::at(again, format!("`{key}` is given twice")).code("duplicate_key").related(first, "first given here")
}

fn merge_key(place: &Place) -> Problem {
    Problem::at(place, "merge keys (`<<`) are not supported")
        .code("syntax")
        .help("write the keys out, or use `defaults:` for what all routes share")
}

/// What a copy of the node takes, roughly, in bytes.
fn cost(node: &Node) -> usize {
    let own = size_of::<Node>();
    own + match &node.value {
        Value::Scalar(scalar) => scalar.text.len(),
        Value::List(list) => list.iter().map(cost).sum(),
        Value::Map(entries) => entries.iter().map(|entry| entry.key.len() + cost(&entry.value)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Result<Option<Node>, Unreadable>, Problems) {
        let file = SourceFile::new("t.yaml".into(), text.into());
        let mut problems = Problems::new();
        let tree = parse(&file, &mut problems);
        (tree, problems)
    }

    #[track_caller]
    fn check_rejected(text: &str, place: &str, message: &str) {
        let (tree, problems) = read(text);
        let problem = problems.iter().next().expect("a problem");
        assert!(problem.message().contains(message), "{}", problem.message());
        assert_eq!(problem.place().unwrap().to_string(), format!("t.yaml:{place}"));
        drop(tree);
    }

    #[test]
    fn every_scalar_knows_its_place() {
        let text = "# c\nключ: wert # d\nlist:\n  - \"zwei: drei\"\n  - 'x'\nflow: { a: [b, c], d: e e }\n";
        let (tree, problems) = read(text);
        assert!(problems.is_empty(), "{problems}");
        let mut shown = Vec::new();
        fn walk(node: &Node, shown: &mut Vec<(String, String)>) {
            match &node.value {
                Value::Scalar(scalar) => {
                    shown.push((scalar.text.clone(), node.place.file().text()[node.place.range()].to_owned()));
                }
                Value::List(list) => list.iter().for_each(|node| walk(node, shown)),
                Value::Map(entries) => {
                    for entry in entries {
                        let written = &node.place.file().text()[entry.key_place.range()];
                        assert_eq!(written, entry.key);
                        walk(&entry.value, shown);
                    }
                }
            }
        }
        walk(&tree.unwrap().unwrap(), &mut shown);
        let expected =
            [("wert", "wert"), ("zwei: drei", "\"zwei: drei\""), ("x", "'x'"), ("b", "b"), ("c", "c"), ("e e", "e e")];
        assert_eq!(shown, expected.map(|(text, written)| (text.to_owned(), written.to_owned())));
    }

    #[test]
    fn scalars_mean_what_the_core_schema_says() {
        let plain = |text: &str| Scalar { text: text.into(), plain: true, secret: false, broken: false };
        for (text, expected) in [
            ("", Typed::Null),
            ("~", Typed::Null),
            ("true", Typed::Bool(true)),
            ("yes", Typed::Text("yes")),
            ("12", Typed::Integer(12)),
            ("-0x1F", Typed::Integer(-31)),
            ("0123", Typed::Text("0123")),
            ("1_000", Typed::Text("1_000")),
            ("1e3", Typed::Float(1000.0)),
            (".5", Typed::Float(0.5)),
            ("1.2.3", Typed::Text("1.2.3")),
            ("infinity", Typed::Text("infinity")),
            ("--1", Typed::Text("--1")),
            ("-", Typed::Text("-")),
        ] {
            assert_eq!(plain(text).typed(), expected, "{text}");
        }
        let quoted = Scalar { plain: false, ..plain("12") };
        assert_eq!(quoted.typed(), Typed::Text("12"));
    }

    #[test]
    fn what_is_not_one_plain_document_is_refused_at_its_place() {
        check_rejected("a: 1\n---\nb: 2\n", "2:1", "second one begins");
        check_rejected("a: 1\nb: 2\na: 3\n", "3:1", "given twice");
        check_rejected("a: &x { b: c }\nd:\n  <<: *x\n", "3:3", "merge keys");
        check_rejected("a: !thing b\n", "1:4", "tags");
        check_rejected("? [a, b]\n: c\n", "1:3", "plain word");
        check_rejected("a: &x [*x]\n", "1:8", "within the value");
        check_rejected("a: *nowhere\n", "1:4", "unknown anchor");
        check_rejected(&"[".repeat(100), "1:65", "within each other");
        check_rejected("a:\n\t- b\n", "2:2", "tab");
    }

    #[test]
    fn aliases_cannot_grow_without_bound() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let alias = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![alias; 10].join(", "));
        }
        let (tree, problems) = read(&bomb);
        assert!(tree.is_err());
        assert_eq!(problems.len(), 1, "{problems}");
    }

    #[test]
    fn an_alias_repeats_what_it_names() {
        let (tree, problems) = read("a: &x [1, 2]\nb: *x\n");
        assert!(problems.is_empty());
        let Value::Map(entries) = tree.unwrap().unwrap().value else { panic!("a mapping") };
        let Value::List(list) = &entries[1].value.value else { panic!("a list") };
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn an_empty_file_holds_nothing() {
        for text in ["", "# only a comment\n", "---\n", "null\n"] {
            let (tree, problems) = read(text);
            assert!(tree.unwrap().is_none());
            assert!(problems.is_empty());
        }
    }
}
