//! A configuration file as it was read, and places in it: what every problem points at.
//!
//! Knows nothing about YAML but which keys hide their values, since no excerpt may show a password.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// One file's text.
pub(super) struct SourceFile {
    path: PathBuf,
    text: String,
    /// Byte offset of each line's first character.
    line_starts: Vec<usize>,
    /// Byte offset of every so many characters: so that a place in a long line is found without counting from its beginning.
    marks: Vec<usize>,
    /// Byte ranges of secrets, in order; unset until the file has been understood.
    secrets: OnceLock<Vec<Range<usize>>>,
}

/// Characters from one mark to the next.
const MARK_EVERY: usize = 128;

/// A place in a configuration file. Shows as `file:line:column`, both counted from 1, the column in characters.
#[derive(Clone)]
pub struct Place {
    file: Arc<SourceFile>,
    start: usize,
    end: usize,
}

/// The line that a place begins in, fit to be shown.
pub(super) struct Excerpt {
    pub(super) line: usize,
    pub(super) text: String,
    /// The place's bytes within `text`.
    pub(super) span: Range<usize>,
}

impl SourceFile {
    pub(super) fn new(path: PathBuf, text: String) -> Arc<Self> {
        let line_starts = line_starts(&text);
        let marks = text.char_indices().step_by(MARK_EVERY).map(|(offset, _)| offset).collect();
        Arc::new(Self { path, text, line_starts, marks, secrets: OnceLock::new() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The folder that relative paths in this file are relative to.
    pub(super) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Hides these byte ranges in excerpts. Only the first call counts.
    pub(super) fn hide(&self, mut ranges: Vec<Range<usize>>) {
        ranges.sort_by_key(|range| range.start);
        ranges.dedup();
        let _ = self.secrets.set(ranges);
    }

    /// The byte offset of a line (from 1) and column (from 0, in characters); the nearest one that exists.
    pub(super) fn offset(&self, line: usize, column: usize) -> usize {
        let index = line.saturating_sub(1).min(self.line_starts.len() - 1);
        let range = self.line_range(index, true);
        self.byte(self.characters_before(range.start) + column).min(range.end)
    }

    /// How many characters lie before this byte.
    fn characters_before(&self, offset: usize) -> usize {
        let mark = self.marks.partition_point(|mark| *mark <= offset).saturating_sub(1);
        let start = self.marks.get(mark).copied().unwrap_or(0);
        mark * MARK_EVERY + self.text[start..offset].chars().count()
    }

    /// Where the character of this number begins; the end of the text, if it has fewer.
    fn byte(&self, character: usize) -> usize {
        let Some(&start) = self.marks.get(character / MARK_EVERY) else { return self.text.len() };
        let within = self.text[start..].char_indices().nth(character % MARK_EVERY);
        within.map_or(self.text.len(), |(offset, _)| start + offset)
    }

    /// Bytes of line `index` (from 0), with or without what ends it.
    fn line_range(&self, index: usize, with_break: bool) -> Range<usize> {
        let start = self.line_starts[index];
        let end = self.line_starts.get(index + 1).copied().unwrap_or(self.text.len());
        let line = &self.text[start..end];
        let length = if with_break { line.len() } else { line.trim_end_matches(['\n', '\r']).len() };
        start..start + length
    }

    fn line_index(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    /// What must not be shown of line `index`, as byte ranges of the file.
    fn hidden_in(&self, index: usize, line: &Range<usize>) -> Vec<Range<usize>> {
        match self.secrets.get() {
            // (they do not overlap each other)
            Some(secrets) => secrets[secrets.partition_point(|range| range.end <= line.start)..]
                .iter()
                .take_while(|range| range.start < line.end)
                .map(|range| range.start.max(line.start)..range.end.min(line.end))
                .collect(),
            None => self.hidden_by_looks(index, line).into_iter().collect(),
        }
    }

    /// For a file that is not YAML: what stands behind a key that hides its value, and what is indented below one.
    fn hidden_by_looks(&self, index: usize, line: &Range<usize>) -> Option<Range<usize>> {
        let indent = |text: &str| text.len() - text.trim_start().len();
        let text = &self.text[line.clone()];
        if let Some(value) = value_of_secret_key(text) {
            return Some(line.start + value..line.end);
        }
        let above = (0..index).rev().map(|index| &self.text[self.line_range(index, false)]);
        let parent = above.filter(|above| !above.trim().is_empty()).find(|above| indent(above) < indent(text))?;
        value_of_secret_key(parent).map(|_| line.start + indent(text)..line.end)
    }
}

/// Where the value begins in a line whose key hides it.
fn value_of_secret_key(line: &str) -> Option<usize> {
    line.char_indices().filter(|(_, c)| *c == ':').map(|(colon, _)| colon).find_map(|colon| {
        // (longer than any key that hides something)
        let near = line.ceil_char_boundary(colon.saturating_sub(128));
        let key = line[near..colon].rsplit(['{', ',', '-', ' ', '\t']).next()?;
        let value = &line[colon + 1..];
        hides_value(key.trim_matches(['"', '\''])).then(|| colon + 1 + value.len() - value.trim_start().len())
    })
}

/// Whether the value under this key may be a secret. Rather once too often: what is hidden is one scalar in an excerpt.
pub(super) fn hides_value(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let speaks_of_one = ["pass", "pasw", "pswd", "secret", "token", "jaas", "private", "key.pem", "oauthbearer.config"]
        .iter()
        .any(|word| key.contains(word));
    let names_a_place = [".url", ".location", ".file"].iter().any(|end| key.ends_with(end));
    speaks_of_one && !names_a_place
}

impl Place {
    pub(super) fn new(file: &Arc<SourceFile>, range: Range<usize>) -> Self {
        let start = range.start.min(file.text.len());
        Self { file: Arc::clone(file), start, end: range.end.clamp(start, file.text.len()) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The line, from 1.
    pub fn line(&self) -> usize {
        self.file.line_index(self.start) + 1
    }

    /// The column in characters, from 1.
    pub fn column(&self) -> usize {
        self.position(self.start).1
    }

    /// Line and column of the place's end, which is the first character no longer in it.
    pub fn end(&self) -> (usize, usize) {
        self.position(self.end)
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let index = self.file.line_index(offset);
        let before = self.file.characters_before(self.file.line_starts[index]);
        (index + 1, self.file.characters_before(offset) - before + 1)
    }

    pub(super) fn file(&self) -> &Arc<SourceFile> {
        &self.file
    }

    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    /// How many bytes the line has that the place begins in.
    pub(super) fn line_length(&self) -> usize {
        self.file.line_range(self.file.line_index(self.start), false).len()
    }

    /// The line that the place begins in, without secrets.
    pub(super) fn excerpt(&self) -> Excerpt {
        let index = self.file.line_index(self.start);
        let line = self.file.line_range(index, false);
        let mut span = self.start.min(line.end)..self.end.min(line.end);
        let mut text = self.file.text[line.clone()].to_owned();
        // From the right, so that what lies to the left keeps its place.
        for hidden in self.file.hidden_in(index, &line).into_iter().rev() {
            text.replace_range(hidden.start - line.start..hidden.end - line.start, REDACTED);
            let masked_end = hidden.start + REDACTED.len();
            let moved = |offset: usize, within: usize| match offset {
                before if before <= hidden.start => before,
                inside if inside < hidden.end => within,
                behind => behind + REDACTED.len() - (hidden.end - hidden.start),
            };
            span = moved(span.start, hidden.start)..moved(span.end, masked_end);
        }
        Excerpt { line: index + 1, text, span: span.start - line.start..span.end - line.start }
    }
}

/// What stands where a secret stood.
pub(super) const REDACTED: &str = "[redacted]";

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path().display(), self.line(), self.column())
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file) && self.range() == other.range()
    }
}
impl Eq for Place {}

/// YAML ends a line at a line feed, a carriage return, or both.
fn line_starts(text: &str) -> Vec<usize> {
    let bytes = text.as_bytes();
    let ends = (0..bytes.len()).filter(|&at| match bytes[at] {
        b'\n' => true,
        b'\r' => bytes.get(at + 1) != Some(&b'\n'),
        _ => false,
    });
    std::iter::once(0).chain(ends.map(|end| end + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str, marked: &str) -> Place {
        let file = SourceFile::new("a.yaml".into(), text.into());
        let start = text.find(marked).unwrap();
        Place::new(&file, start..start + marked.len())
    }

    #[test]
    fn lines_and_columns_count_characters_from_one() {
        let place = place("a: 1\r\nключ: wert\rc: 3", "wert");
        assert_eq!(place.to_string(), "a.yaml:2:7");
        assert_eq!(place.end(), (2, 11));
        assert_eq!(place.file().offset(2, 6), place.range().start);
        assert_eq!(place.file().offset(99, 99), place.file().text().len());
    }

    #[test]
    fn an_excerpt_hides_the_secrets_of_its_line() {
        let place = place("{ sasl.password: hunter2, x: y }", "x");
        let value = place.file().text().find("hunter2").unwrap();
        place.file().hide(std::iter::once(value..value + 7).collect());
        let excerpt = place.excerpt();
        assert_eq!(excerpt.text, "{ sasl.password: [redacted], x: y }");
        assert_eq!(&excerpt.text[excerpt.span], "x");
    }

    #[test]
    fn an_excerpt_of_a_file_that_is_not_yaml_hides_what_looks_like_a_secret() {
        for (text, marked, shown) in [
            ("kafka:\n  sasl.password: 'hunter2\n", "'hunter2", "  sasl.password: [redacted]"),
            ("{ a: b, \"sasl.password\": hunter2 ]", "]", "{ a: b, \"sasl.password\": [redacted]"),
            ("ssl.key.pem: |\n  ABCDEF\n  GHIJ", "GHIJ", "  [redacted]"),
            ("a: b: c", "b", "a: b: c"),
        ] {
            let excerpt = place(text, marked).excerpt();
            assert_eq!(excerpt.text, shown);
            assert!(excerpt.span.end <= excerpt.text.len());
        }
    }
}
