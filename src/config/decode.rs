//! From a tree with places to values with places. A visitor that goes on after each problem, so that all are told.
//!
//! Every function answers `None` for what it could not use, and has then said why.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::keys::{Is, Key, Section};
use super::problem::{Problem, Problems};
use super::source::{Place, REDACTED};
use super::tree::{Entry, Node, Scalar, Typed, Value};
use super::units::{parse_duration, parse_size, show_duration, show_size};
use crate::policy::{Condition, ConditionError};

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
    /// Came from `${file:…}`: not to be shown.
    pub(super) secret: bool,
}

impl<T> At<T> {
    pub(super) fn new(value: T, place: &Place) -> Self {
        Self { value, place: place.clone(), secret: false }
    }
}

impl At<String> {
    /// The text as it may be shown in a message.
    pub(super) fn shown(&self) -> String {
        if self.secret { REDACTED.to_owned() } else { shorten(&self.value) }
    }
}

/// The keys of one mapping, being asked for. What nobody asked for is unknown.
pub(super) struct Fields<'n> {
    section: &'static Section,
    entries: &'n [Entry],
    /// What is asked about: the key that the mapping stands under.
    place: Place,
    asked: Vec<&'static str>,
    left_out: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// `place` is where a missing key is told. Nothing written is an empty mapping.
    pub(super) fn of(
        section: &'static Section,
        node: &'n Node,
        place: &Place,
        what: &str,
        problems: &mut Problems,
    ) -> Option<Self> {
        let entries = entries(node, what, problems)?;
        Some(Self { section, entries, place: place.clone(), asked: Vec::new(), left_out: Vec::new() })
    }

    /// The value of a key, if it is there.
    pub(super) fn get(&mut self, key: &'static Key) -> Option<&'n Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The key and its value, if they are there.
    pub(super) fn entry(&mut self, key: &'static Key) -> Option<&'n Entry> {
        let is_of_section = self.section.keys.iter().any(|known| std::ptr::eq(*known, key));
        debug_assert!(is_of_section, "`{}` is not described as a key of: {}", key.name, self.section.name);
        if self.left_out.contains(&key.name) {
            return None;
        }
        self.entry_beside(key.name)
    }

    /// A key that is none of the section's, for who has more to say of it than that.
    pub(super) fn entry_beside(&mut self, name: &'static str) -> Option<&'n Entry> {
        self.asked.push(name);
        self.entries.iter().find(|entry| entry.key == name)
    }

    /// From now on as if the key were not there.
    pub(super) fn leave_out(&mut self, key: &'static Key) {
        self.left_out.push(key.name);
    }

    /// The value of a key that has to be there.
    pub(super) fn required(&mut self, key: &'static Key, help: &str, problems: &mut Problems) -> Option<&'n Node> {
        let found = self.get(key);
        if found.is_none() {
            let problem = Problem::at(&self.place, format!("`{}` is missing here", key.name)).code("missing_key");
            problems.push(problem.help(help));
        }
        found
    }

    /// A duration within the key's bounds.
    pub(super) fn duration(&mut self, key: &'static Key, problems: &mut Problems) -> Option<At<Duration>> {
        let Is::Duration(bounds) = &key.is else { unreachable!("`{}` is described as no duration", key.name) };
        self.get(key).and_then(|node| duration(node, bounds.clone(), problems))
    }

    /// A size within the key's bounds.
    pub(super) fn size(&mut self, key: &'static Key, problems: &mut Problems) -> Option<At<u64>> {
        let Is::Size(bounds) = &key.is else { unreachable!("`{}` is described as no size", key.name) };
        self.get(key).and_then(|node| size(node, bounds.clone(), problems))
    }

    /// A whole number within the key's bounds.
    pub(super) fn number(&mut self, key: &'static Key, problems: &mut Problems) -> Option<At<u64>> {
        let Is::Number(bounds) = &key.is else { unreachable!("`{}` is described as no number", key.name) };
        self.get(key).and_then(|node| number(node, bounds.clone(), problems))
    }

    /// One of the key's words, with what each means.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static Key,
        meanings: &[(&'static str, T)],
        problems: &mut Problems,
    ) -> Option<At<T>> {
        let Is::Word(words) = &key.is else { unreachable!("`{}` is described as no word", key.name) };
        debug_assert!(words().iter().eq(meanings.iter().map(|(word, _)| word)), "{}: {:?}", key.name, words());
        self.get(key).and_then(|node| choice(node, meanings, problems))
    }

    /// Tells every key that nobody asked for.
    pub(super) fn finish(self, problems: &mut Problems) {
        let forgotten =
            self.section.keys.iter().find(|key| !self.asked.contains(&key.name) && !self.left_out.contains(&key.name));
        debug_assert!(forgotten.is_none(), "{}: nobody reads {forgotten:?}", self.section.name);
        for entry in self.entries.iter().filter(|entry| !self.asked.contains(&entry.key.as_str())) {
            problems.push(unknown_key(&entry.key, &entry.key_place, &self.asked));
        }
    }
}

/// The entries of a mapping; none where nothing is written.
pub(super) fn entries<'n>(node: &'n Node, what: &str, problems: &mut Problems) -> Option<&'n [Entry]> {
    match &node.value {
        Value::Map(entries) => Some(entries),
        Value::Scalar(scalar) if scalar.broken || scalar.typed() == Typed::Null => Some(&[]),
        Value::Scalar(_) | Value::List(_) => {
            problems.push(wrong_type(node, what));
            None
        }
    }
}

/// The elements of a list; none where nothing is written.
pub(super) fn list<'n>(node: &'n Node, what: &str, problems: &mut Problems) -> Option<&'n [Node]> {
    match &node.value {
        Value::List(list) => Some(list),
        Value::Scalar(scalar) if scalar.broken || scalar.typed() == Typed::Null => Some(&[]),
        Value::Scalar(_) | Value::Map(_) => {
            problems.push(wrong_type(node, what));
            None
        }
    }
}

/// Text, or a plain scalar taken as it is written (a topic may be called `2024`).
pub(super) fn text(node: &Node, what: &str, problems: &mut Problems) -> Option<At<String>> {
    let scalar = scalar(node, what, problems)?;
    if scalar.typed() == Typed::Null {
        problems.push(wrong_type(node, what));
        return None;
    }
    Some(At { value: scalar.text.clone(), place: node.place.clone(), secret: scalar.secret })
}

/// Text that is not empty.
pub(super) fn non_empty(node: &Node, what: &str, problems: &mut Problems) -> Option<At<String>> {
    let text = text(node, what, problems)?;
    if text.value.trim().is_empty() {
        problems.push(Problem::at(&node.place, format!("expected {what}, found nothing")));
        return None;
    }
    Some(text)
}

/// `true` or `false`.
pub(super) fn boolean(node: &Node, problems: &mut Problems) -> Option<At<bool>> {
    let scalar = scalar(node, "`true` or `false`", problems)?;
    match scalar.typed() {
        Typed::Bool(value) => Some(At::new(value, &node.place)),
        Typed::Text(text) => {
            let meant = match text.to_ascii_lowercase().as_str() {
                "yes" | "on" | "true" => Some("true"),
                "no" | "off" | "false" => Some("false"),
                _ => None,
            };
            let problem = wrong_type(node, "`true` or `false`");
            problems.push(meant.into_iter().fold(problem, |problem, meant| problem.help(format!("write `{meant}`"))));
            None
        }
        Typed::Null | Typed::Integer(_) | Typed::Float(_) => {
            problems.push(wrong_type(node, "`true` or `false`"));
            None
        }
    }
}

/// A whole number within bounds.
pub(super) fn number(node: &Node, bounds: RangeInclusive<u64>, problems: &mut Problems) -> Option<At<u64>> {
    let what = format!("a whole number from {} to {}", bounds.start(), bounds.end());
    let scalar = scalar(node, &what, problems)?;
    match scalar.typed() {
        Typed::Integer(number) => match u64::try_from(number).ok().filter(|number| bounds.contains(number)) {
            Some(number) => Some(At::new(number, &node.place)),
            None => {
                let message = format!("{} is out of bounds", shown(scalar).trim_matches('`'));
                problems.push(Problem::at(&node.place, message).code("out_of_bounds").help(format!("write {what}")));
                None
            }
        },
        Typed::Text(text) if !scalar.plain && text.parse::<u64>().is_ok() => {
            problems.push(wrong_type(node, &what).help("leave out the quotes: in quotes it is text"));
            None
        }
        Typed::Text(_) | Typed::Null | Typed::Bool(_) | Typed::Float(_) => {
            problems.push(wrong_type(node, &what));
            None
        }
    }
}

/// A size with its unit, within bounds.
pub(super) fn size(node: &Node, bounds: RangeInclusive<u64>, problems: &mut Problems) -> Option<At<u64>> {
    measure(node, "a size", &bounds, parse_size, show_size, problems)
}

/// A duration with its unit, within bounds.
pub(super) fn duration(node: &Node, bounds: RangeInclusive<Duration>, problems: &mut Problems) -> Option<At<Duration>> {
    measure(node, "a duration", &bounds, parse_duration, show_duration, problems)
}

fn measure<T: PartialOrd + Copy>(
    node: &Node,
    what: &str,
    bounds: &RangeInclusive<T>,
    parse: fn(&str) -> Result<T, String>,
    show: fn(T) -> String,
    problems: &mut Problems,
) -> Option<At<T>> {
    let scalar = scalar(node, what, problems)?;
    match parse(&scalar.text) {
        Err(instead) => {
            let message = format!("expected {what}, found {}", shown(scalar));
            problems.push(Problem::at(&node.place, message).code("wrong_type").help(instead));
            None
        }
        Ok(value) if bounds.contains(&value) => Some(At::new(value, &node.place)),
        Ok(_) => {
            let message = format!("{} is out of bounds", shown(scalar));
            let help = format!("write {what} from {} to {}", show(*bounds.start()), show(*bounds.end()));
            problems.push(Problem::at(&node.place, message).code("out_of_bounds").help(help));
            None
        }
    }
}

/// One of a closed list of words.
pub(super) fn choice<T: Copy>(node: &Node, choices: &[(&'static str, T)], problems: &mut Problems) -> Option<At<T>> {
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let what = one_of(&words);
    let scalar = scalar(node, &what, problems)?;
    if let Some((_, value)) = choices.iter().find(|(word, _)| *word == scalar.text) {
        return Some(At::new(*value, &node.place));
    }
    let mut problem = wrong_type(node, &what);
    if let Some(near) = did_you_mean(&scalar.text, &words) {
        problem = problem.help(format!("did you mean `{near}`?"));
    }
    problems.push(problem);
    None
}

/// Any YAML as JSON.
pub(super) fn json(node: &Node, problems: &mut Problems) -> serde_json::Value {
    match &node.value {
        Value::Scalar(scalar) => scalar_as_json(scalar, &node.place, problems),
        Value::List(list) => list.iter().map(|node| json(node, problems)).collect(),
        Value::Map(entries) => entries.iter().map(|entry| (entry.key.clone(), json(&entry.value, problems))).collect(),
    }
}

/// Any YAML as the text of JSON, its keys in the order in which they are written.
pub(super) fn json_text(node: &Node, problems: &mut Problems) -> String {
    let join = |parts: Vec<String>| parts.join(",");
    match &node.value {
        Value::Scalar(scalar) => scalar_as_json(scalar, &node.place, problems).to_string(),
        Value::List(list) => format!("[{}]", join(list.iter().map(|node| json_text(node, problems)).collect())),
        Value::Map(entries) => {
            let field = |entry: &Entry| {
                format!("{}:{}", serde_json::Value::from(entry.key.as_str()), json_text(&entry.value, problems))
            };
            format!("{{{}}}", join(entries.iter().map(field).collect()))
        }
    }
}

fn scalar_as_json(scalar: &Scalar, place: &Place, problems: &mut Problems) -> serde_json::Value {
    use serde_json::Value as Json;
    let too_large = |problems: &mut Problems| {
        let problem = Problem::at(place, format!("{} is no number that JSON can hold", shown(scalar)));
        problems.push(problem.help("put it in quotes to pass it as text"));
        Json::Null
    };
    match scalar.typed() {
        Typed::Null => Json::Null,
        Typed::Bool(value) => Json::Bool(value),
        Typed::Text(text) => Json::from(text),
        Typed::Integer(number) => match (u64::try_from(number), i64::try_from(number)) {
            (Ok(number), _) => Json::from(number),
            (_, Ok(number)) => Json::from(number),
            (Err(_), Err(_)) => too_large(problems),
        },
        Typed::Float(number) => match serde_json::Number::from_f64(number) {
            Some(number) => Json::Number(number),
            None => too_large(problems),
        },
    }
}

/// The scalar that a node is; a broken one is passed over in silence.
pub(super) fn scalar<'n>(node: &'n Node, what: &str, problems: &mut Problems) -> Option<&'n Scalar> {
    match &node.value {
        Value::Scalar(scalar) => (!scalar.broken).then_some(scalar),
        Value::List(_) | Value::Map(_) => {
            problems.push(wrong_type(node, what));
            None
        }
    }
}

/// A condition, compiled; what is wrong with it is told at its place within the text, where the text stands as it is.
pub(super) fn condition(node: &Node, problems: &mut Problems) -> Option<At<Condition>> {
    let text = non_empty(node, "a condition", problems)?;
    let errors = match Condition::compile(&text.value) {
        Ok(condition) => return Some(At::new(condition, &text.place)),
        Err(errors) => errors,
    };
    let (file, written) = (node.place.file(), node.place.range());
    let quoted = written.start + 1..written.end.saturating_sub(1).max(written.start + 1);
    let as_it_is = [written, quoted].into_iter().find(|range| file.text().get(range.clone()) == Some(&text.value));
    for ConditionError { message, range } in errors {
        let problem = match &as_it_is {
            Some(within) => {
                let place = Place::new(file, within.start + range.start..within.start + range.end);
                Problem::at(&place, format!("this condition cannot be: {message}"))
            }
            None => {
                let character = text.value[..range.start].chars().count() + 1;
                let message = format!("this condition cannot be, at its character {character}: {message}");
                Problem::at(&node.place, message)
            }
        };
        problems.push(problem.code("invalid_condition"));
    }
    None
}

pub(super) fn wrong_type(node: &Node, what: &str) -> Problem {
    let found = match &node.value {
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a mapping".to_owned(),
        Value::Scalar(scalar) => match scalar.typed() {
            Typed::Null => "nothing".to_owned(),
            Typed::Bool(_) | Typed::Integer(_) | Typed::Float(_) => shown(scalar),
            Typed::Text(_) if scalar.plain => shown(scalar),
            Typed::Text(_) => format!("the text {}", shown(scalar)),
        },
    };
    Problem::at(&node.place, format!("expected {what}, found {found}")).code("wrong_type")
}

/// A scalar's text as it may be shown in a message.
pub(super) fn shown(scalar: &Scalar) -> String {
    if scalar.secret { REDACTED.to_owned() } else { shorten(&scalar.text) }
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        None => format!("`{text}`"),
        Some((cut, _)) => format!("`{}…`", &text[..cut]),
    }
}

pub(super) fn unknown_key(key: &str, place: &Place, known: &[&str]) -> Problem {
    let problem = Problem::at(place, format!("unknown key `{key}`")).code("unknown_key");
    let mut known = known.to_vec();
    known.sort_unstable();
    known.dedup();
    match did_you_mean(key, &known) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None => problem.help(format!("known here: {}", known.join(", "))),
    }
}

/// Names that a wrong one is compared with at most.
const NAMES_COMPARED: usize = 1_000;

/// The nearest of `known`, if it is near enough to be meant.
pub(super) fn did_you_mean<'k>(written: &str, known: &[&'k str]) -> Option<&'k str> {
    // (what is longer is no slip of the pen, and comparing takes the square of the length)
    if written.len() > 100 {
        return None;
    }
    let known = &known[..known.len().min(NAMES_COMPARED)];
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', ' '], "_");
    let written = plain(written);
    let closeness = |known: &str| strsim::normalized_damerau_levenshtein(&written, &plain(known));
    let extends = |known: &str| written.len() > 2 && (known.starts_with(&written) || written.starts_with(known));
    let best = known.iter().copied().max_by(|a, b| closeness(a).total_cmp(&closeness(b)))?;
    (closeness(best) >= 0.6).then_some(best).or_else(|| known.iter().copied().find(|known| extends(known)))
}

/// "`a`, `b` or `c`".
pub(super) fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => format!("`{only}`"),
        [first @ .., last] => format!("`{}` or `{last}`", first.join("`, `")),
    }
}
