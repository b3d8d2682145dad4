//! What is wrong with a configuration, as an operator reads it: the place, the line with a caret under it, what is
//! wrong, and what to write instead. Other modules add problems of their own through [`Problem::at`].

use std::fmt;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::source::Place;

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone)]
pub struct Problem {
    code: &'static str,
    warning: bool,
    message: String,
    place: Option<Place>,
    help: Vec<String>,
    related: Vec<(Place, String)>,
}

impl Problem {
    /// A problem at a place. Its code is `invalid_value` unless [`Problem::code`] says another.
    pub fn at(place: &Place, message: impl Into<String>) -> Self {
        Self { place: Some(place.clone()), ..Self::new(message) }
    }

    /// A problem at a place that may not be written anywhere, such as that of a default.
    pub fn near(place: Option<&Place>, message: impl Into<String>) -> Self {
        Self { place: place.cloned(), ..Self::new(message) }
    }

    /// A problem that has no place in a file.
    pub fn new(message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code: "invalid_value", warning: false, message, place: None, help: Vec::new(), related: Vec::new() }
    }

    /// The stable code, for machines.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }

    /// What to write or to do instead.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// Another place that belongs to it, with a word on how.
    #[must_use]
    pub fn related(mut self, place: &Place, label: impl Into<String>) -> Self {
        self.related.push((place.clone(), label.into()));
        self
    }

    /// Makes it a warning: told, but no reason to refuse the configuration.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.warning = true;
        self
    }

    /// Whether it is a warning.
    pub fn is_warning(&self) -> bool {
        self.warning
    }

    /// What is wrong, in one sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Where.
    pub fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// The stable code, for machines.
    pub fn kind(&self) -> &'static str {
        self.code
    }

    fn render(&self, renderer: &Renderer) -> String {
        let level = if self.warning { Level::WARNING } else { Level::ERROR };
        let mut group = Group::with_title(level.primary_title(&self.message));
        if let Some(place) = &self.place {
            group = with_excerpt(group, place, AnnotationKind::Primary, None);
        }
        for (place, label) in &self.related {
            group = with_excerpt(group, place, AnnotationKind::Context, Some(label));
        }
        for help in &self.help {
            group = group.element(Level::HELP.message(help));
        }
        renderer.render(&[group])
    }

    /// Problems are told in the order of the files, those without a place first.
    fn order(&self) -> impl Ord + use<> {
        self.place.as_ref().map(|place| (place.path().to_owned(), place.range().start, place.range().end))
    }
}

/// In one line, as a log wants it: `file:line:column: what is wrong`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Lines longer than this are not shown; nobody would read them, and a minified file would be shown many times over.
const LONGEST_LINE_SHOWN: usize = 2_000;

fn with_excerpt<'a>(group: Group<'a>, place: &Place, kind: AnnotationKind, label: Option<&'a str>) -> Group<'a> {
    let path = place.path().display().to_string();
    if place.line_length() > LONGEST_LINE_SHOWN {
        return group.element(Origin::path(path).line(place.line()).char_column(place.column()));
    }
    let excerpt = place.excerpt();
    let annotation = kind.span(excerpt.span).label(label);
    group.element(Snippet::source(excerpt.text).line_start(excerpt.line).path(path).annotation(annotation))
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Related<'a>(&'a (Place, String));
        impl Serialize for Related<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut fields = serializer.serialize_struct("Related", 4)?;
                fields.serialize_field("message", &self.0.1)?;
                serialize_place(&mut fields, Some(&self.0.0))?;
                fields.end()
            }
        }
        let mut fields = serializer.serialize_struct("Problem", 9)?;
        fields.serialize_field("severity", if self.warning { "warning" } else { "error" })?;
        fields.serialize_field("code", self.code)?;
        fields.serialize_field("message", &self.message)?;
        serialize_place(&mut fields, self.place.as_ref())?;
        fields.serialize_field("end", &self.place.as_ref().map(End::of))?;
        fields.serialize_field("help", &self.help)?;
        fields.serialize_field("related", &self.related.iter().map(Related).collect::<Vec<_>>())?;
        fields.end()
    }
}

#[derive(serde::Serialize)]
struct End {
    line: usize,
    column: usize,
}

impl End {
    fn of(place: &Place) -> Self {
        let (line, column) = place.end();
        Self { line, column }
    }
}

fn serialize_place<S: SerializeStruct>(fields: &mut S, place: Option<&Place>) -> Result<(), S::Error> {
    fields.serialize_field("file", &place.map(|place| place.path().display().to_string()))?;
    fields.serialize_field("line", &place.map(Place::line))?;
    fields.serialize_field("column", &place.map(Place::column))
}

/// All that is wrong with a configuration. Shows as an operator reads it, without colour.
#[derive(Debug, Clone, Default, thiserror::Error)]
#[error("{}", self.render(false))]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether any is more than a warning.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|problem| !problem.warning)
    }

    /// Whether all that is wrong is that files cannot be read, or what the cluster lacks: something is missing around the
    /// configuration (exit code 3), not in it.
    pub fn only_unreadable(&self) -> bool {
        let mut errors = self.0.iter().filter(|problem| !problem.warning).peekable();
        errors.peek().is_some() && errors.all(|problem| AROUND.contains(&problem.code))
    }

    /// Each of them, in the order of the files.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// As an operator reads them, one after the other with an empty line between.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let rendered: Vec<_> = self.0.iter().map(|problem| problem.render(&renderer)).collect();
        rendered.join("\n\n")
    }

    /// Puts them in order, and leaves out what one place would say twice (an alias repeats what it names).
    pub fn sort(&mut self) {
        self.0.sort_by_cached_key(|problem| (problem.order(), problem.warning, problem.message.clone()));
        self.0.dedup_by(|a, b| a.place == b.place && a.message == b.message && a.place.is_some());
    }
}

/// The code of a problem with a file that cannot be read.
pub const UNREADABLE: &str = "unreadable_file";
/// Codes of what is missing around a configuration.
const AROUND: [&str; 5] = [UNREADABLE, "unreachable", "missing_topic", "partition_count", "not_authorized"];

impl Extend<Problem> for Problems {
    fn extend<I: IntoIterator<Item = Problem>>(&mut self, problems: I) {
        self.0.extend(problems);
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Serialize for Problems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::SourceFile;
    use super::*;

    fn sample() -> Problems {
        let file = SourceFile::new("r.yaml".into(), "routes:\n  a: 1\n  b: 2\n  a: 3\n".into());
        let again = Place::new(&file, 24..25);
        let first = Place::new(&file, 10..11);
        let mut problems = Problems::new();
        problems.push(
            Problem::at(&again, "the key `a` is given twice")
                .code("duplicate_key")
                .related(&first, "first given here")
                .help("keep one of them"),
        );
        problems.push(Problem::new("nothing to read"));
        problems.sort();
        problems
    }

    #[test]
    fn a_problem_shows_its_place_the_line_a_caret_and_what_to_write_instead() {
        let expected = "\
error: nothing to read

error: the key `a` is given twice
 --> r.yaml:4:3
  |
4 |   a: 3
  |   ^
  |
 ::: r.yaml:2:3
  |
2 |   a: 1
  |   - first given here
  |
  = help: keep one of them";
        assert_eq!(sample().to_string(), expected);
        assert!(sample().render(true).contains('\u{1b}'));
    }

    #[test]
    fn a_problem_serializes_for_machines() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(
            json[1],
            serde_json::json!({
                "severity": "error", "code": "duplicate_key", "message": "the key `a` is given twice",
                "file": "r.yaml", "line": 4, "column": 3, "end": { "line": 4, "column": 4 },
                "help": ["keep one of them"],
                "related": [{ "message": "first given here", "file": "r.yaml", "line": 2, "column": 3 }],
            })
        );
    }

    #[test]
    fn any_place_can_be_shown() {
        let text = "a: \u{301}b\t\u{1b}[31m\r\nключ: [x]\r\n\n";
        let file = SourceFile::new("weird.yaml".into(), text.into());
        let ends: Vec<usize> = (0..=text.len()).filter(|at| text.is_char_boundary(*at)).collect();
        for &start in &ends {
            for &end in ends.iter().filter(|end| **end >= start) {
                let mut problems = Problems::new();
                problems.push(Problem::at(&Place::new(&file, start..end), "odd"));
                assert!(problems.render(false).contains("weird.yaml:"));
            }
        }
    }
}
