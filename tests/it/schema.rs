//! The JSON Schema, held against the parser by a validator that is not ours; and the reference, which is made of the same
//! description. `UPDATE=1` writes the files anew that are made of it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use millrace::config::{self, Problems};
use millrace::control::change::ReloadClass;
use serde_json::{Value, json};

use crate::support::{root, scratch};

/// What the schema cannot know: it sees one file, no variables, no units' bounds, and no meaning.
const NOT_FOR_A_SCHEMA: &str = "a mistake of spelling, type or place that the parser tells has this code";
const FOR_A_SCHEMA: &str = "unknown_key";

struct Validator {
    schemas: boon::Schemas,
    schema: boon::SchemaIndex,
}

impl Validator {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
        compiler.set_default_draft(boon::Draft::V7);
        compiler.add_resource("millrace.json", config::schema()).expect("a resource");
        let schema = compiler.compile("millrace.json", &mut schemas).expect("a schema of draft 7");
        Self { schemas, schema }
    }

    fn check(&self, document: &Value) -> Result<(), String> {
        self.schemas.validate(document, self.schema).map_err(|error| format!("{error:#}"))
    }
}

/// A file as an editor sees it; none where it is not YAML, or nothing.
fn document(path: &Path) -> Option<Value> {
    fn as_json(value: serde_yaml::Value) -> Value {
        match value {
            serde_yaml::Value::Sequence(list) => list.into_iter().map(as_json).collect(),
            serde_yaml::Value::Mapping(map) => {
                let key = |key: serde_yaml::Value| match key {
                    serde_yaml::Value::String(text) => text,
                    other => serde_yaml::to_string(&other).expect("a scalar").trim_end().to_owned(),
                };
                map.into_iter().map(|(name, value)| (key(name), as_json(value))).collect()
            }
            scalar => serde_json::to_value(scalar).expect("a scalar"),
        }
    }
    serde_yaml::from_slice(&fs::read(path).ok()?).ok().map(as_json)
}

/// Every YAML file in a folder and below.
fn files(folder: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be read") {
            let path = entry.expect("an entry").path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "yaml" => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "{folder} holds no YAML");
    found
}

#[test]
fn what_the_parser_takes_the_schema_takes() {
    let validator = Validator::new();
    for path in ["tests/it/fixtures/accepted", "config", "examples"].into_iter().flat_map(files) {
        let document = document(&path).unwrap_or_else(|| panic!("{} is no YAML", path.display()));
        validator.check(&document).unwrap_or_else(|error| panic!("{}:\n{error}", path.display()));
    }
}

#[test]
fn what_is_misspelt_or_misplaced_the_schema_refuses() {
    let validator = Validator::new();
    let mut refused = 0;
    for path in files("tests/it/fixtures/rejected") {
        let Some(document) = document(&path) else { continue };
        let Err(problems) = config::load(&path, &|_| None) else { continue };
        let told = problems.iter().find(|problem| problem.kind() == FOR_A_SCHEMA);
        let verdict = validator.check(&document);
        refused += usize::from(verdict.is_err());
        if let Some(problem) = told {
            assert!(verdict.is_err(), "{NOT_FOR_A_SCHEMA}: {}: {problem}", path.display());
        }
    }
    assert!(refused >= 20, "only {refused} rejected fixtures are refused by the schema");
}

/// A value somewhere in a document, by a number.
fn node(document: &mut Value, mut nth: usize) -> &mut Value {
    fn count(value: &Value) -> usize {
        1 + match value {
            Value::Array(list) => list.iter().map(count).sum(),
            Value::Object(map) => map.values().map(count).sum(),
            _ => 0,
        }
    }
    nth %= count(document);
    let mut at = document;
    while nth > 0 {
        nth -= 1;
        let children: Vec<&mut Value> = match at {
            Value::Array(list) => list.iter_mut().collect(),
            Value::Object(map) => map.values_mut().collect(),
            _ => unreachable!("a scalar holds nothing to go on to"),
        };
        let mut next = None;
        for child in children {
            let size = count(child);
            if nth < size {
                next = Some(child);
                break;
            }
            nth -= size;
        }
        at = next.expect("it was counted");
    }
    at
}

/// A document with something changed: a value of another kind, a key that is misspelt, left out or moved.
fn mutated(document: &Value, random: &mut fastrand::Rng) -> Value {
    let mut changed = document.clone();
    for _ in 0..random.usize(1..3) {
        let other = node(&mut changed, random.usize(..)).clone();
        let at = node(&mut changed, random.usize(..));
        match (random.u8(0..6), at) {
            (0, Value::Object(map)) if !map.is_empty() => {
                let key = map.keys().nth(random.usize(0..map.len())).expect("there is one").clone();
                let value = map.remove(&key).expect("it is there");
                map.insert(format!("{key}x"), value);
            }
            (1, Value::Object(map)) if !map.is_empty() => {
                let key = map.keys().nth(random.usize(0..map.len())).expect("there is one").clone();
                map.remove(&key);
            }
            (2, at) => *at = other,
            (_, at) => {
                let values = [
                    json!(null),
                    json!(7),
                    json!(true),
                    json!("text"),
                    json!("5s"),
                    json!("64KiB"),
                    json!([]),
                    json!({}),
                ];
                *at = values[random.usize(0..values.len())].clone();
            }
        }
    }
    changed
}

/// How many documents are made up.
const GENERATED: usize = 10_000;

/// The schema never refuses what the parser takes, and what the parser calls an unknown key the schema refuses too.
#[test]
fn schema_and_parser_agree_on_generated_documents() {
    let documents: Vec<Value> = ["tests/it/fixtures/accepted", "config", "examples"]
        .into_iter()
        .flat_map(files)
        .filter_map(|path| document(&path))
        .collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (taken, both_refuse) = std::thread::scope(|scope| {
        let documents = &documents;
        let part = |seed| scope.spawn(move || agreements(documents, seed as u64, GENERATED.div_ceil(threads)));
        let parts: Vec<_> = (0..threads).map(part).collect();
        let counted = parts.into_iter().map(|part| part.join().expect("they agree"));
        counted.fold((0, 0), |(taken, refused), (more, and_more)| (taken + more, refused + and_more))
    });
    assert!(taken > 500 && both_refuse > 500, "{taken} taken, {both_refuse} refused");
}

/// How many of so many documents schema and parser both take, and how many both refuse.
fn agreements(documents: &[Value], seed: u64, count: usize) -> (usize, usize) {
    let validator = Validator::new();
    let file = scratch("schema").with_extension("yaml");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut taken, mut both_refuse) = (0, 0);
    for _ in 0..count {
        let document = mutated(&documents[random.usize(0..documents.len())], &mut random);
        // (JSON is YAML)
        fs::write(&file, document.to_string()).expect("written");
        let problems = config::load(&file, &|_| None).map_or_else(|problems| problems, |_| Problems::new());
        let verdict = validator.check(&document);
        if !problems.has_errors() {
            taken += 1;
            verdict.unwrap_or_else(|error| panic!("the parser takes {document:#}\nand the schema does not:\n{error}"));
        } else if let Some(problem) = problems.iter().find(|problem| problem.kind() == FOR_A_SCHEMA) {
            assert!(verdict.is_err(), "the schema takes {document:#}\nand the parser does not: {problem}");
            both_refuse += 1;
        }
    }
    let _ = fs::remove_file(file);
    (taken, both_refuse)
}

// ---- what is made of the description ----------------------------------------------------

/// Holds a file to what it should be, or writes it so.
#[track_caller]
fn hold(path: &str, should_be: &str) {
    let file = root().join(path);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, should_be).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let is = fs::read_to_string(&file).unwrap_or_default();
    assert!(is == should_be, "{path} is stale: UPDATE=1 cargo test --test it -- schema:: writes it anew");
}

#[test]
fn the_schema_that_is_shipped_is_the_one_of_this_version() {
    hold("docs/millrace.schema.json", &format!("{:#}\n", config::schema()));
}

#[test]
fn the_reference_tells_every_key_of_this_version() {
    const BEGIN: &str =
        "<!-- The keys are written by UPDATE=1 cargo test --test it -- schema:: from src/config/keys.rs -->\n";
    const END: &str = "<!-- (to here) -->\n";
    let page = fs::read_to_string(root().join("docs/configuration.md")).expect("the page");
    let (head, rest) = page.split_once(BEGIN).expect("the keys begin somewhere");
    let (_, tail) = rest.split_once(END).expect("the keys end somewhere");
    hold("docs/configuration.md", &format!("{head}{BEGIN}{}{END}{tail}", keys()));
}

fn keys() -> String {
    let mut text = String::new();
    for key in config::reference() {
        let name = key.path.rsplit('.').next().unwrap_or(&key.path);
        // (`bootstrap.servers` is one word)
        let name = if key.path.ends_with("bootstrap.servers") { "bootstrap.servers" } else { name };
        let default = match key.default.as_str() {
            "required" => "required".to_owned(),
            default => format!("default {default}"),
        };
        let change = change(&key.path).map_or(String::new(), |change| format!(" · a change {change}"));
        write!(
            text,
            "\n### `{}`\n\n{}\n\n{} · {default}{change}\n\nExample: `{name}: {}`\n",
            key.path,
            key.about,
            capitalised(&key.is),
            key.example
        )
        .expect("a string takes it");
    }
    text.push('\n');
    text
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

/// What a change of a key takes while the daemon runs.
fn change(path: &str) -> Option<&'static str> {
    let class = match path.split_once(".NAME.") {
        Some(("routes", key)) => ReloadClass::of_route(key),
        Some(_) => ReloadClass::InPlace,
        None if matches!(path, "routes" | "tests" | "kafka" | "defaults") || path.starts_with("tests") => return None,
        None => ReloadClass::of_process(path),
    };
    match path {
        "routes.NAME.source" => return Some("restarts the route"),
        "routes.NAME.enabled" => return Some("starts or removes the route"),
        _ => {}
    }
    Some(match class {
        ReloadClass::InPlace => "is taken up in place",
        ReloadClass::Route => "restarts the route",
        ReloadClass::AllRoutes => "restarts all routes, one after the other",
    })
}
