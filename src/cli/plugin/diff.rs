//! How two values differ, in lines: JSON a field a line whatever way it was written, with its digits and its order as they
//! are; text by its lines; all else as base64.

use std::time::Duration;

use serde::de::IgnoredAny;
use similar::{ChangeTag, TextDiff};

use super::records::bytes_json;

/// Unchanged lines that are shown around what changed.
const CONTEXT: usize = 2;
/// Lines shown of one difference.
const LINES_MAX: usize = 200;
/// After this a difference is found by a quicker way, which may not be the shortest.
const TIME_MAX: Duration = Duration::from_millis(500);
/// The most of a line that is shown, bytes.
const LINE_MAX: usize = 400;

#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) enum Line {
    Removed(String),
    Added(String),
    Same(String),
    /// About the difference itself.
    Note(String),
}

/// The difference of two values.
pub(in crate::cli) fn values(before: Option<&[u8]>, after: Option<&[u8]>) -> Vec<Line> {
    let (before, after) = (value_lines(before), value_lines(after));
    if before == after {
        return vec![Line::Note("the same JSON, written differently".into())];
    }
    lines(&before, &after)
}

/// The difference of two lists of lines.
pub(in crate::cli) fn lines(before: &[String], after: &[String]) -> Vec<Line> {
    let (old, new): (Vec<_>, Vec<_>) =
        (before.iter().map(String::as_str).collect(), after.iter().map(String::as_str).collect());
    let diff = TextDiff::configure().timeout(TIME_MAX).diff_slices(&old, &new);
    let mut shown = Vec::new();
    for (number, group) in diff.grouped_ops(CONTEXT).iter().enumerate() {
        if number > 0 {
            shown.push(Line::Note(String::new()));
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let text = bounded(change.value());
            shown.push(match change.tag() {
                ChangeTag::Delete => Line::Removed(text),
                ChangeTag::Insert => Line::Added(text),
                ChangeTag::Equal => Line::Same(text),
            });
        }
    }
    let more = shown.len().saturating_sub(LINES_MAX);
    if more > 0 {
        shown.truncate(LINES_MAX);
        shown.push(Line::Note(format!("{more} more lines")));
    }
    shown
}

/// Without what a terminal would obey, and not longer than a screen takes.
pub(in crate::cli) fn bounded(line: &str) -> String {
    let mut shown = String::with_capacity(line.len().min(LINE_MAX));
    for c in line.chars() {
        if shown.len() > LINE_MAX {
            return format!("{shown}… ({} bytes)", line.len());
        }
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

fn value_lines(value: Option<&[u8]>) -> Vec<String> {
    let Some(bytes) = value else { return vec!["null, a tombstone".into()] };
    match str::from_utf8(bytes) {
        Ok(text) if text.trim_start().starts_with(['{', '[']) && serde_json::from_str::<IgnoredAny>(text).is_ok() => {
            json_lines(text)
        }
        Ok("") => vec!["empty".into()],
        Ok(text) => text.lines().map(str::to_owned).collect(),
        Err(_) => vec![bytes_json(value).to_string()],
    }
}

/// JSON with a line for each field and element. The text is JSON; its tokens stay as they are written.
fn json_lines(json: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut indent = 0;
    let mut chars = json.chars().peekable();
    let mut in_string = false;
    let mut escaped = false;
    let next_line = |lines: &mut Vec<String>, indent: usize| lines.push("  ".repeat(indent));
    while let Some(c) = chars.next() {
        let last = lines.last_mut().expect("there is one");
        if in_string {
            last.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '{' | '[' => {
                last.push(c);
                while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
                // An empty one stays on its line.
                match chars.next_if(|c| matches!(c, '}' | ']')) {
                    Some(close) => last.push(close),
                    None => {
                        indent += 1;
                        next_line(&mut lines, indent);
                    }
                }
            }
            '}' | ']' => {
                indent = indent.saturating_sub(1);
                next_line(&mut lines, indent);
                lines.last_mut().expect("there is one").push(c);
            }
            ',' => {
                last.push(c);
                next_line(&mut lines, indent);
            }
            ':' => last.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => {
                last.push(c);
                in_string = c == '"';
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(before: &str, after: &str) -> String {
        let line = |line: Line| match line {
            Line::Removed(text) => format!("-{text}\n"),
            Line::Added(text) => format!("+{text}\n"),
            Line::Same(text) => format!(" {text}\n"),
            Line::Note(text) => format!("…{text}\n"),
        };
        values(Some(before.as_bytes()), Some(after.as_bytes())).into_iter().map(line).collect()
    }

    #[test]
    fn a_changed_field_is_a_line_that_goes_and_a_line_that_comes_with_its_digits_as_written() {
        let before = r#"{"z":1.10,"card":"47\"{11","a":{"b":[1,2],"c":{},"d":null},"big":12345678901234567890}"#;
        let after = before.replace("47\\\"{11", "[redacted]");
        assert_eq!(
            shown(before, &after),
            " {\n   \"z\": 1.10,\n-  \"card\": \"47\\\"{11\",\n+  \"card\": \"[redacted]\",\n   \"a\": {\n     \"b\": [\n"
        );
    }

    #[test]
    fn the_same_json_written_differently_is_said_to_be_the_same() {
        assert_eq!(shown("{\"a\" : [ ] ,\n\"b\":1}", r#"{"a":[],"b":1}"#), "…the same JSON, written differently\n");
    }

    #[test]
    fn text_is_compared_by_its_lines_and_bytes_as_base64() {
        assert_eq!(shown("a\nb", "a\nc"), " a\n-b\n+c\n");
        assert_eq!(
            values(Some(&[0xff]), None),
            [Line::Removed(r#"{"base64":"/w=="}"#.into()), Line::Added("null, a tombstone".into())]
        );
    }

    #[test]
    fn a_long_difference_and_a_long_line_are_cut() {
        let after: String = (0..300).map(|number| format!("{number}\n")).collect();
        assert!(shown("", &after).ends_with("+198\n…101 more lines\n"), "{}", shown("", &after));
        assert!(shown("a", &"é".repeat(1000)).contains("… (2000 bytes)"));
    }
}
