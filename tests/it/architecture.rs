//! The house's two rules, held by reading the sources: a module names only lower floors, and an outside library has one
//! owner. A new top-level module needs a line in [`FLOORS`]; that is the moment to think about where it belongs.

use std::path::Path;

use crate::support::root;

/// The floors of `src/`, by module.
const FLOORS: &[(&str, u8)] = &[
    ("model", 0),
    ("policy", 1),
    ("telemetry", 1),
    ("config", 2),
    ("pipeline", 3),
    ("kafka", 4),
    ("plugin", 4),
    ("control", 5),
    ("admin", 6),
    ("app", 7),
    ("cli", 8),
];

/// Outside libraries, and the only modules that name them.
const OWNERS: &[(&str, &[&str])] = &[
    ("rdkafka", &["kafka"]),
    ("rdkafka_sys", &["kafka"]),
    ("wasmtime", &["plugin"]),
    ("wit_component", &["plugin"]),
    ("wat", &["plugin"]),
    ("wit_parser", &["plugin"]),
    ("wasmparser", &["plugin"]),
    ("cel", &["policy"]),
    ("gimli", &["plugin"]),
    ("serde_yaml", &["config"]),
    ("saphyr_parser", &["config"]),
    ("notify", &["control"]),
    ("axum", &["admin"]),
    ("ureq", &["cli", "kafka", "telemetry"]),
    ("wit_bindgen_core", &["cli"]),
    ("wit_bindgen_c", &["cli"]),
    ("wit_bindgen_go", &["cli"]),
    ("indicatif", &["cli"]),
    ("similar", &["cli"]),
    ("base64", &["cli", "config", "admin", "kafka"]),
    ("libc", &["kafka"]),
    ("metrics", &["telemetry"]),
    ("metrics_exporter_prometheus", &["telemetry"]),
    ("anyhow", &["cli", "app", "main"]),
];

/// The roots, which hold the house together and name everything.
const ROOTS: &[&str] = &["lib", "main"];

#[test]
fn modules_name_only_lower_floors_and_libraries_have_one_owner() {
    let mut violations = Vec::new();
    for file in sources(&root().join("src")) {
        let path = file.strip_prefix(root()).expect("it is below the root").display().to_string();
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{path}: {e}"));
        violations.extend(check(&path, &text));
    }
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn a_planted_violation_is_caught() {
    for (path, text, rule) in [
        ("src/model/items.rs", "use crate::policy::OnError;", "model (floor 0) may not name policy (floor 1)"),
        ("src/pipeline/worker.rs", "fn f(s: &crate::kafka::Session) {}", "pipeline (floor 3) may not name kafka"),
        ("src/policy/x.rs", "use crate::telemetry::Metrics;", "policy (floor 1) may not name telemetry (floor 1)"),
        ("src/kafka/session.rs", "use crate::{\n  model::Offset,\n  plugin::{Engine, Limits},\n};", "name plugin"),
        ("src/plugin/engine.rs", "use crate::kafka;", "plugin (floor 4) may not name kafka (floor 4)"),
        ("src/kafka/mod.rs", "use super::plugin::Engine;", "may not name plugin"),
        ("src/kafka/raw/list.rs", "use super::super::super::control;", "may not name control"),
        ("src/app.rs", "use super::cli;", "app (floor 7) may not name cli (floor 8)"),
        ("src/pipeline/worker.rs", "use rdkafka::Message;", "only kafka names rdkafka"),
        ("src/plugin/compile.rs", "let e = ::rdkafka_sys::rd_kafka_new();", "only kafka names rdkafka_sys"),
        ("src/kafka/x.rs", "use std::fmt;\nuse {wasmtime::Engine, std::io};", "only plugin names wasmtime"),
        ("src/control/x.rs", "use serde_yaml as yaml;", "only config names serde_yaml"),
        ("src/model/x.rs", "extern crate anyhow;", "only cli, app, main names anyhow"),
        ("src/pipeline/x.rs", "metrics::counter!(\"x\");", "only telemetry names metrics"),
        ("src/attic/mod.rs", "", "attic has no floor"),
    ] {
        let found = check(path, text);
        assert_eq!(found.len(), 1, "{path}: {text}: {found:?}");
        assert!(found[0].contains(rule) && found[0].starts_with(path), "{path}: {text}: {}", found[0]);
    }
    let line = check("src/kafka/x.rs", "//! a\n/* b\n */ use crate::model::A;\nuse crate::plugin::B;");
    assert!(line[0].starts_with("src/kafka/x.rs:4: "), "{line:?}");
}

#[test]
fn what_is_allowed_is_not_reported() {
    for (path, text) in [
        ("src/kafka/session.rs", "use crate::{model::Offset, pipeline::ports, kafka::raw};\nuse rdkafka_sys as sys;"),
        (
            "src/model/items.rs",
            "//! see crate::policy\n/* use crate::kafka; /* nested */ rdkafka:: */ use super::fault;",
        ),
        ("src/model/x.rs", r##"const A: &str = "crate::kafka \" rdkafka::"; const B: &str = r#"wasmtime:: " "#;"##),
        ("src/model/x.rs", "const C: char = '\"'; fn f<'a>(x: &'a str) {} const D: &str = \"use rdkafka::x\";"),
        (
            "src/control/mod.rs",
            "let notify = Notify::new(); notify.notified(); self.notify.notify_one(); a::notify::b();",
        ),
        ("src/kafka/mod.rs", "mod tests { use super::*; use super::session; }"),
        ("src/telemetry/mod.rs", "use metrics::counter;"),
        ("src/admin/mod.rs", "mod metrics; fn f() { metrics::render() }"),
        ("src/pipeline/x.rs", "let metrics = crate::telemetry::x(); metrics.add(1);"),
        ("src/cli/mod.rs", "use crate::{admin, app, kafka};\nuse anyhow::Context;"),
        ("src/main.rs", "use millrace::cli; fn main() -> anyhow::Result<()> { millrace::cli::run() }"),
    ] {
        assert_eq!(check(path, text), [""; 0], "{path}: {text}");
    }
}

fn sources(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut entries: Vec<_> = std::fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.expect("a directory entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// The violations in the source file `path` (`src/…`), each as `path:line: rule`.
fn check(path: &str, text: &str) -> Vec<String> {
    let parts: Vec<&str> = path.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
    let module = parts[0];
    let own = floor(module);
    let tokens = tokens(text);
    let report = |line: usize, rule: &str| format!("{path}:{line}: {rule}");
    let mut violations = Vec::new();

    if own.is_none() && !ROOTS.contains(&module) {
        violations.push(report(1, &format!("{module} has no floor: give it one in tests/it/architecture.rs")));
    }
    if let Some(own) = own {
        // How many `super` it takes from this file's module to the crate's root.
        let depth = parts.iter().filter(|part| **part != "mod").count();
        for (line, named) in modules_named(&tokens, depth) {
            if let Some(floor) = floor(named)
                && named != module
                && floor >= own
            {
                let rule = format!("{module} (floor {own}) may not name {named} (floor {floor})");
                violations.push(report(line, &rule));
            }
        }
    }
    for (library, owners) in OWNERS {
        if owners.contains(&module) {
            continue;
        }
        for line in crates_named(&tokens, library) {
            violations.push(report(line, &format!("only {} names {library}", owners.join(", "))));
        }
    }
    violations
}

/// An identifier or a punctuation mark (`::` is one), and its line.
type Token<'a> = (usize, &'a str);

/// The top-level modules named by `crate::…` or by enough `super::`, with groups (`crate::{a, b::{c}}`) looked into.
fn modules_named<'a>(tokens: &[Token<'a>], depth: usize) -> Vec<Token<'a>> {
    let mut named = Vec::new();
    let mut supers = 0;
    for (i, (_, token)) in tokens.iter().enumerate() {
        let after = tokens.get(i + 1).is_some_and(|(_, t)| *t == "::");
        let at_root = match *token {
            "crate" => after,
            "super" => {
                supers += 1;
                after && supers >= depth
            }
            "::" => continue,
            _ => {
                supers = 0;
                continue;
            }
        };
        if at_root {
            named.extend(first_names(&tokens[i + 2..]));
        }
    }
    named
}

/// What stands first in a path: one name, or the first name of each member of a group.
fn first_names<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let Some(first) = tokens.first() else { return Vec::new() };
    if first.1 != "{" {
        return vec![*first];
    }
    let mut names = Vec::new();
    let (mut nesting, mut first_of_member) = (0, false);
    for token in tokens {
        match token.1 {
            "{" => {
                nesting += 1;
                first_of_member = nesting == 1;
            }
            "}" if nesting == 1 => break,
            "}" => nesting -= 1,
            "," => first_of_member = nesting == 1,
            _ if first_of_member => {
                names.push(*token);
                first_of_member = false;
            }
            _ => {}
        }
    }
    names
}

/// The lines that name the outside crate: at the root of a path, or after `use` or `extern crate`. A file with a module
/// of that name means its own.
fn crates_named(tokens: &[Token<'_>], library: &str) -> Vec<usize> {
    let at = |i: Option<usize>| i.and_then(|i| tokens.get(i)).map_or("", |(_, token)| *token);
    if tokens.windows(2).any(|two| two[0].1 == "mod" && two[1].1 == library) {
        return Vec::new();
    }
    let mut lines = Vec::new();
    for (i, (line, token)) in tokens.iter().enumerate() {
        if *token != library {
            continue;
        }
        let before = at(i.checked_sub(1));
        // `a::notify::b` is another path's middle, `.notify` a field; `::notify::b` begins a path.
        let inside = before == "."
            || before == "::" && at(i.checked_sub(2)).starts_with(|c: char| c.is_alphanumeric() || "_>".contains(c));
        if !inside && (at(Some(i + 1)) == "::" || before == "use" || before == "crate") {
            lines.push(*line);
        }
    }
    lines
}

/// The source without comments, strings and characters.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < bytes.len() {
        let rest = &text[i..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = string(rest).or_else(|| character(rest)) {
            length
        } else {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let length = match word {
                0 if rest.starts_with("::") => 2,
                0 => rest.chars().next().map_or(1, char::len_utf8),
                _ => word,
            };
            if !rest[..length].trim().is_empty() {
                tokens.push((line, &rest[..length]));
            }
            length
        };
        line += rest[..length].matches('\n').count();
        i += length;
    }
    tokens
}

fn block_comment(text: &str) -> usize {
    let (mut nesting, mut i) = (0, 0);
    while i < text.len() {
        let step = match &text.as_bytes()[i..] {
            [b'/', b'*', ..] => {
                nesting += 1;
                2
            }
            [b'*', b'/', ..] => {
                nesting -= 1;
                2
            }
            _ => 1,
        };
        i += step;
        if nesting == 0 {
            break;
        }
    }
    i
}

/// The length of the string literal that `text` begins with.
fn string(text: &str) -> Option<usize> {
    let prefix = text.find(|c: char| !matches!(c, 'b' | 'c' | 'r'))?;
    let raw = text[..prefix].contains('r');
    let hashes = if raw { text[prefix..].len() - text[prefix..].trim_start_matches('#').len() } else { 0 };
    let open = prefix + hashes;
    if prefix > 2 || text.as_bytes().get(open) != Some(&b'"') {
        return None;
    }
    if raw {
        let close = format!("\"{}", "#".repeat(hashes));
        return Some(text[open + 1..].find(&close).map_or(text.len(), |at| open + 1 + at + close.len()));
    }
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(open + 1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    Some(text.len())
}

/// The length of the character literal that `text` begins with; a lifetime is none.
fn character(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('\'')?;
    if let Some(escape) = inner.strip_prefix('\\') {
        // (the escaped character may itself be a quote)
        return escape.get(1..)?.find('\'').map(|at| at + 4);
    }
    let length = inner.chars().next()?.len_utf8();
    (inner.as_bytes().get(length) == Some(&b'\'')).then_some(length + 2)
}
