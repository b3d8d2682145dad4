//! `${VAR}`, `${VAR:-default}`, `${VAR:?message}`, `${file:/path}` and `$$`, replaced in scalars after the YAML has been
//! parsed, so that no value can break it. Keys and comments are left alone, as is a `$` that no `{` or `$` follows.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::problem::{Problem, Problems, UNREADABLE};
use super::source::Place;
use super::tree::{Node, Scalar, Value};

/// Where values come from, and what has been asked for.
pub(super) struct Interpolator<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    /// What variables held that were asked for.
    pub(super) variables: BTreeMap<String, Option<String>>,
    /// What files held that were asked for; read once, so that one configuration sees one content.
    pub(super) files: BTreeMap<PathBuf, Result<String, String>>,
}

/// A secret is a line or a key, not a film.
const LONGEST_FILE: u64 = 1 << 20;

/// A piece of a scalar's text.
#[derive(Debug, PartialEq)]
enum Piece<'t> {
    Text(&'t str),
    Variable { name: &'t str, default: Option<&'t str>, message: Option<&'t str> },
    File(&'t str),
}

impl<'a> Interpolator<'a> {
    pub(super) fn new(env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { env, variables: BTreeMap::new(), files: BTreeMap::new() }
    }

    /// Replaces in every scalar of the tree.
    pub(super) fn replace(&mut self, node: &mut Node, problems: &mut Problems) {
        let place = &node.place;
        match &mut node.value {
            Value::Scalar(scalar) if scalar.text.contains('$') => self.replace_in(scalar, place, problems),
            Value::Scalar(_) => {}
            Value::List(list) => list.iter_mut().for_each(|node| self.replace(node, problems)),
            Value::Map(entries) => entries.iter_mut().for_each(|entry| self.replace(&mut entry.value, problems)),
        }
    }

    fn replace_in(&mut self, scalar: &mut Scalar, place: &Place, problems: &mut Problems) {
        let original = std::mem::take(&mut scalar.text);
        let pieces = match pieces(&original) {
            Ok(pieces) => pieces,
            Err((message, help)) => {
                problems.push(Problem::at(place, message).code("bad_variable").help(help));
                scalar.broken = true;
                return;
            }
        };
        for piece in pieces {
            let replaced = match piece {
                Piece::Text(text) => {
                    scalar.text.push_str(text);
                    continue;
                }
                Piece::Variable { name, default, message } => self.variable(name, default, message, place),
                Piece::File(path) => {
                    scalar.secret = true;
                    self.file(path, place)
                }
            };
            match replaced {
                Ok(text) => scalar.text.push_str(&text),
                Err(problem) => {
                    problems.push(*problem);
                    scalar.broken = true;
                }
            }
        }
    }

    fn variable(
        &mut self,
        name: &str,
        default: Option<&str>,
        message: Option<&str>,
        place: &Place,
    ) -> Result<String, Box<Problem>> {
        let env = self.env;
        let value = self.variables.entry(name.to_owned()).or_insert_with(|| env(name)).clone();
        // As in a shell, `:-` and `:?` take an empty variable for an unset one.
        let value = value.filter(|value| !value.is_empty() || (default.is_none() && message.is_none()));
        if let Some(value) = value.or_else(|| default.map(str::to_owned)) {
            return Ok(value);
        }
        let problem = match message {
            Some(message) if !message.is_empty() => {
                Problem::at(place, format!("the environment variable `{name}` is not set: {message}"))
            }
            _ => Problem::at(place, format!("the environment variable `{name}` is not set"))
                .help(format!("set it, or give a default: `${{{name}:-…}}`; `$${{` stands for a literal `${{`")),
        };
        Err(Box::new(problem.code("unset_variable")))
    }

    fn file(&mut self, path: &str, place: &Place) -> Result<String, Box<Problem>> {
        let path = place.file().folder().join(path);
        let content = self.files.entry(path.clone()).or_insert_with(|| read(&path).map_err(|error| error.to_string()));
        content.clone().map_err(|error| {
            let message = format!("cannot read {}: {error}", path.display());
            Box::new(Problem::at(place, message).code(UNREADABLE))
        })
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(LONGEST_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST_FILE {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    let trimmed = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text)).map(str::len);
    text.truncate(trimmed.unwrap_or(text.len()));
    Ok(text)
}

/// The variables and files that a text names, without their defaults: `${NAME}`, `${file:PATH}`.
pub(super) fn references(text: &str) -> Vec<String> {
    let named = |piece: &Piece<'_>| match piece {
        Piece::Text(_) => None,
        Piece::Variable { name, .. } => Some(format!("${{{name}}}")),
        Piece::File(path) => Some(format!("${{file:{path}}}")),
    };
    pieces(text).unwrap_or_default().iter().filter_map(named).collect()
}

/// Takes a text apart; the error is what is wrong and what to write instead.
fn pieces(text: &str) -> Result<Vec<Piece<'_>>, (String, String)> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let (before, from) = rest.split_at(dollar);
        if let Some(behind) = from.strip_prefix("$$") {
            pieces.extend([Piece::Text(before), Piece::Text("$")]);
            rest = behind;
        } else if let Some(inner) = from.strip_prefix("${") {
            let Some(end) = inner.find('}') else {
                let message = "a `${` without its `}`".to_owned();
                return Err((message, "close it, or write `$${` for a literal `${`".to_owned()));
            };
            pieces.extend([Piece::Text(before), reference(&inner[..end])?]);
            rest = &inner[end + 1..];
        } else {
            pieces.push(Piece::Text(&rest[..=dollar]));
            rest = &rest[dollar + 1..];
        }
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

fn reference(inner: &str) -> Result<Piece<'_>, (String, String)> {
    if inner.contains("${") {
        return Err(("one `${…}` inside another is not supported".into(), "give the default as plain text".into()));
    }
    if let Some(path) = inner.strip_prefix("file:") {
        return match path {
            "" => Err(("`${file:}` names no file".into(), "write `${file:/path/to/the/file}`".into())),
            path => Ok(Piece::File(path)),
        };
    }
    let (name, default, message) = match inner.split_once(':') {
        None => (inner, None, None),
        Some((name, rest)) => match (rest.strip_prefix('-'), rest.strip_prefix('?')) {
            (Some(default), _) => (name, Some(default), None),
            (None, Some(message)) => (name, None, Some(message)),
            (None, None) => return Err(unknown_form(inner)),
        },
    };
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(unknown_form(inner));
    }
    Ok(Piece::Variable { name, default, message })
}

fn unknown_form(inner: &str) -> (String, String) {
    (
        format!("`${{{inner}}}` is none of the forms that are replaced"),
        "write `${VAR}`, `${VAR:-default}`, `${VAR:?message}` or `${file:/path}`; `$${` stands for a literal `${`"
            .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::source::SourceFile;
    use super::super::tree;
    use super::*;

    fn replace(text: &str) -> (Scalar, Problems) {
        let file = SourceFile::new("t.yaml".into(), format!("k: {text}\n"));
        let mut problems = Problems::new();
        let mut node = tree::parse(&file, &mut problems).expect("YAML").expect("a document");
        let env = |name: &str| match name {
            "SET" => Some("value".to_owned()),
            "NUMBER" => Some("12".to_owned()),
            "EMPTY" => Some(String::new()),
            "EVIL" => Some("x\": { - ${SET}".to_owned()),
            _ => None,
        };
        Interpolator::new(&env).replace(&mut node, &mut problems);
        let Value::Map(mut entries) = node.value else { panic!("a mapping") };
        let Value::Scalar(scalar) = entries.remove(0).value.value else { panic!("a scalar") };
        (scalar, problems)
    }

    #[test]
    fn variables_are_replaced_after_parsing() {
        for (text, expected) in [
            ("${SET}", "value"),
            ("a-${SET}-${NUMBER}", "a-value-12"),
            ("${UNSET:-}", ""),
            ("${UNSET:-127.0.0.1:9092}", "127.0.0.1:9092"),
            ("${EMPTY:-full}", "full"),
            ("${EMPTY}", ""),
            ("${SET:?needed}", "value"),
            ("${EVIL}", "x\": { - ${SET}"),
            ("$${SET} costs 5$ or $x", "${SET} costs 5$ or $x"),
            ("'^a$'", "^a$"),
            ("'$$$$'", "$$"),
        ] {
            let (scalar, problems) = replace(text);
            assert!(problems.is_empty(), "{text}: {problems}");
            assert_eq!(scalar.text, expected, "{text}");
        }
    }

    #[test]
    fn a_plain_scalar_is_typed_after_replacement_and_a_quoted_one_stays_text() {
        assert_eq!(replace("${NUMBER}").0.typed(), tree::Typed::Integer(12));
        assert_eq!(replace("'${NUMBER}'").0.typed(), tree::Typed::Text("12"));
    }

    #[test]
    fn what_cannot_be_replaced_is_a_problem() {
        for (text, message) in [
            ("${UNSET}", "`UNSET` is not set"),
            ("${UNSET:?set the host}", "not set: set the host"),
            ("${EMPTY:?}", "`EMPTY` is not set"),
            ("'${SET'", "without its"),
            ("'${}'", "none of the forms"),
            ("${SET:+x}", "none of the forms"),
            ("'${SET:-${OTHER}}'", "inside another"),
            ("${file:/nonexistent/secret}", "cannot read /nonexistent/secret"),
            ("${file:}", "names no file"),
        ] {
            let (_, problems) = replace(text);
            let told = problems.iter().next().unwrap_or_else(|| panic!("{text} is no problem"));
            assert!(told.message().contains(message), "{text}: {}", told.message());
        }
    }

    #[test]
    fn what_comes_from_a_file_is_a_secret_without_its_trailing_newline() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "hunter2\n").unwrap();
        let (scalar, problems) = replace(&format!("\"${{file:{}}}\"", path.display()));
        assert!(problems.is_empty(), "{problems}");
        assert_eq!(scalar.text, "hunter2");
        assert!(scalar.secret);
    }
}
