//! FLOOR 2: YAML to [`Settings`]. `raw` mirrors what may be written, `settings` is what was meant and cannot be wrong.
//! Every problem of every file is reported at once. Only this module names a YAML library.
//!
//! The way of a configuration: `files` reads bytes → `tree` makes trees in which all knows its place → `interpolate`
//! replaces variables → `raw` (with `decode`) takes what may be written → `meaning` and `topology` say what is meant.

mod decode;
mod files;
mod interpolate;
mod keys;
mod meaning;
mod origins;
mod overlap;
mod places;
mod problem;
mod properties;
mod raw;
mod rewrite;
mod schema;
pub mod settings;
pub mod share;
mod source;
pub mod test_cases;
pub mod times;
mod topology;
mod tree;
mod units;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use files::{Survey, survey};
pub use origins::{Origin, Origins};
pub use overlap::fixed as fixed_beginning;
pub use places::{Places, PropertyScope};
pub use problem::{Problem, Problems, UNREADABLE};
pub use rewrite::{NewExpectations, NewFields, Rewritten, rewrite};
pub use schema::{Described, reference, schema};
pub use settings::Settings;
pub use source::Place;
pub use test_cases::TestCase;
pub use units::{parse_duration, parse_size};

use crate::model::Digest;
use files::ReadFile;
use interpolate::Interpolator;
use meaning::Meant;
use raw::Raw;

/// A configuration that can be used, and what belongs to it.
#[derive(Debug)]
pub struct Loaded {
    /// What was meant.
    pub settings: Settings,
    /// Every file that was read, those named by `${file:…}` too.
    pub files: Vec<PathBuf>,
    /// The digest of what is written in the YAML files: the same wherever the same configuration runs, whatever its
    /// variables and secrets hold. To be shown.
    pub hash: Digest,
    /// The digest of everything that was read, variables and secrets included. To notice a change; not to be shown.
    pub fingerprint: Digest,
    /// What is not wrong, and should be known.
    pub warnings: Problems,
    /// Where things stand, for problems that are found later.
    pub places: Places,
    /// Where each value came from.
    pub origins: Origins,
    /// The tests that are written in it.
    pub tests: Vec<TestCase>,
}

/// A configuration that was read, whatever came of it.
#[derive(Debug)]
pub struct Reading {
    /// What it asks for, or everything that is wrong with it, warnings included.
    pub result: Result<Loaded, Problems>,
    /// Every file that it names, whether it could be read or not: those of `${file:…}`, and the plugins'. The YAML files
    /// are [`survey`]'s to tell.
    pub named: BTreeSet<PathBuf>,
}

/// Reads a configuration: a file, or a directory with all that is in it.
///
/// # Errors
/// Everything that is wrong with it, warnings included.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Problems> {
    read(path, env).result
}

/// As [`load`], for who wants to know which files to keep an eye on where it fails.
pub fn read(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Reading {
    let mut problems = Problems::new();
    let files = files::read(path, &mut problems);
    understand(path, files, env, problems)
}

/// What a text says as a configuration of its own, in which one variable is set: `SET`. For tests and the fuzzer.
///
/// # Errors
/// Everything that is wrong with it.
#[cfg(any(test, feature = "testing"))]
pub fn understand_text(text: &str) -> Result<Loaded, Problems> {
    let file = ReadFile { path: "t.yaml".into(), bytes: text.as_bytes().to_vec() };
    let env = |name: &str| (name == "SET").then(|| "value".to_owned());
    understand(Path::new("t.yaml"), vec![file], &env, Problems::new()).result
}

/// Where the configuration is if nobody says: `$MILLRACE_CONFIG`, else /etc/millrace if that is there, else ./config.
pub fn default_config_path(env: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    match env("MILLRACE_CONFIG").filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None if Path::new("/etc/millrace").exists() => "/etc/millrace".into(),
        None => "config".into(),
    }
}

fn understand(
    root: &Path,
    files: Vec<ReadFile>,
    env: &dyn Fn(&str) -> Option<String>,
    mut problems: Problems,
) -> Reading {
    let mut complete = problems.is_empty();
    let hash = digest(files.iter().map(|file| (name_below(root, &file.path), file.bytes.as_slice())));
    let mut read: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
    let mut interpolator = Interpolator::new(env);
    let (mut raw, mut origins) = (Raw::default(), Origins::default());
    for file in files {
        let tree = files::as_text(file, &mut problems).map(|source| tree::parse(&source, &mut problems));
        match tree {
            Some(Ok(Some(mut root))) => {
                interpolator.replace(&mut root, &mut problems);
                origins.add(&root);
                complete &= raw.add(&root, &mut problems);
            }
            Some(Ok(None)) => {}
            Some(Err(tree::Unreadable)) | None => complete = false,
        }
    }
    read.extend(interpolator.files.keys().cloned());
    let plugins = raw.plugins.iter().filter_map(|plugin| plugin.path.as_ref());
    let named = interpolator.files.keys().chain(plugins.map(|path| &path.value)).cloned().collect();
    let Meant { settings, places, tests } = meaning::interpret(&raw, complete, &mut problems);
    problems.sort();
    let result = match settings {
        Some(settings) if !problems.has_errors() => {
            let fingerprint = fingerprint(&hash, &interpolator);
            Ok(Loaded { settings, files: read, hash, fingerprint, warnings: problems, places, origins, tests })
        }
        _ => Err(problems),
    };
    Reading { result, named }
}

/// A file's name within the configuration, which does not depend on where the configuration lies.
fn name_below(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(Path::new("")).to_string_lossy().into_owned()
}

/// The digest of named contents, in their order. Lengths keep them apart.
fn digest<'f>(parts: impl Iterator<Item = (String, &'f [u8])>) -> Digest {
    let mut all = Vec::new();
    for (name, content) in parts {
        for part in [name.as_bytes(), content] {
            all.extend((part.len() as u64).to_le_bytes());
            all.extend(part);
        }
    }
    Digest::of(&all)
}

fn fingerprint(hash: &Digest, interpolator: &Interpolator<'_>) -> Digest {
    let variables = interpolator.variables.iter().map(|(name, value)| (format!("${name}"), value.clone()));
    let files = interpolator.files.iter().map(|(path, content)| (path.display().to_string(), content.clone().ok()));
    let parts: Vec<(String, Option<String>)> =
        std::iter::once((hash.to_string(), None)).chain(variables).chain(files).collect();
    digest(parts.iter().map(|(name, value)| {
        // An unset variable differs from an empty one.
        (format!("{name}{}", if value.is_some() { "=" } else { "" }), value.as_deref().unwrap_or_default().as_bytes())
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn accepted() -> Vec<(PathBuf, String)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/accepted");
        let files = fs::read_dir(folder).expect("the accepted fixtures").map(|entry| entry.expect("a file").path());
        files.map(|path| (path.clone(), fs::read_to_string(path).expect("text"))).collect()
    }

    /// The tree, against a second parser of YAML. Keys are text in JSON, whatever they are in YAML.
    #[test]
    fn the_tree_holds_what_serde_yaml_reads() {
        fn as_json(value: serde_yaml::Value) -> serde_json::Value {
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
        for (path, text) in accepted() {
            let mut problems = Problems::new();
            let file = source::SourceFile::new(path.clone(), text.clone());
            let ours = tree::parse(&file, &mut problems).expect("YAML").expect("a document");
            let ours = decode::json(&ours, &mut problems);
            assert!(problems.is_empty(), "{problems}");
            let theirs = as_json(serde_yaml::from_str(&text).expect("YAML"));
            assert_eq!(ours, theirs, "{}", path.display());
        }
    }

    #[test]
    fn files_in_any_order_mean_the_same() {
        let parts = [
            "kafka: { bootstrap.servers: b:9092 }\ndefaults: { workers: 2 }\n",
            "plugins: { p: { path: p.wasm } }\n",
            "routes: { r: { source: { topics: [a], start: latest }, pipeline: [{ plugin: p }], destinations: [{ topic: b }] } }\n",
            "routes: { s: { source: { topics: [a], start: latest }, destinations: [{ topic: c }] } }\n",
        ];
        let read = |order: [usize; 4]| {
            let folder = tempfile::tempdir().expect("a folder");
            for (place, part) in order.into_iter().enumerate() {
                fs::write(folder.path().join(format!("{place}.yaml")), parts[part]).expect("written");
            }
            load(folder.path(), &|_| None).unwrap_or_else(|problems| panic!("{problems}"))
        };
        let settings = |order| {
            let mut settings = read(order).settings;
            settings
                .plugins
                .values_mut()
                .for_each(|plugin| plugin.path = plugin.path.file_name().expect("a name").into());
            format!("{settings:?}")
        };
        let first = settings([0, 1, 2, 3]);
        assert!(first.contains("workers: 2"), "{first}");
        assert_eq!(settings([3, 2, 1, 0]), first);
        assert_eq!(settings([2, 0, 3, 1]), first);
        assert_eq!(read([0, 1, 2, 3]).hash, read([0, 1, 2, 3]).hash);
    }

    #[test]
    fn secrets_are_not_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("secret"), "hunter2\n").expect("written");
        let text = "\
kafka: { bootstrap.servers: b:9092, sasl.password: hunter2, client.id: \"${file:secret}\" }
admin: { token: hunter2 }
plugins: { p: { path: p.wasm, config: { key: \"${file:secret}\" } } }
routes:
  r: { source: { topics: [a], start: latest }, pipeline: [{ plugin: p }], destinations: [{ topic: b }] }
";
        let path = folder.path().join("millrace.yaml");
        fs::write(&path, text).expect("written");
        let loaded = load(&path, &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
        let shown = format!("{loaded:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        let kafka = &loaded.settings.kafka.common;
        assert_eq!(kafka["sasl.password"].reveal(), "hunter2");
        assert_eq!(kafka["client.id"].to_string(), "[redacted]");
        assert_eq!(loaded.files, [path.clone(), folder.path().join("secret")]);

        // A rotated secret is a change, and not for everyone to see.
        fs::write(folder.path().join("secret"), "hunter3\n").expect("written");
        let rotated = load(&path, &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(rotated.hash, loaded.hash);
        assert_ne!(rotated.fingerprint, loaded.fingerprint);
    }

    #[test]
    fn places_lead_back_to_the_yaml() {
        let text = "\
kafka: { bootstrap.servers: b:9092, client.idd: x }
plugins: { p: { path: p.wasm } }
routes:
  r:
    source: { topics: [a], start: latest }
    pipeline: [{ plugin: p, config: {} }]
    shadow: { pipeline: [{ plugin: p }] }
    destinations: [{ topic: b }]
    on_error: { dead_letter: c }
";
        let loaded = understand_text(text).unwrap_or_else(|problems| panic!("{problems}"));
        let (route, places) = (&loaded.settings.routes.keys().next().expect("a route").clone(), &loaded.places);
        let plugin = loaded.settings.plugins.keys().next().expect("a plugin").clone();
        let found = [
            places.plugin(&plugin),
            places.plugin_path(&plugin),
            places.plugin_config(&plugin),
            places.route(route),
            places.source(route),
            places.source_topic(route, 0),
            places.step(route, 0),
            places.step_config(route, 0),
            places.shadow_step(route, 0),
            places.destination(route, 0),
            places.dead_letter(route),
            places.property(&PropertyScope::Common, "client.idd"),
        ];
        let shown: Vec<String> = found.iter().map(|place| place.expect("a place").to_string()).collect();
        let expected = ["2:12", "2:23", "2:12", "4:3", "5:5", "5:24", "6:26", "6:37", "7:36", "8:29", "9:30", "1:37"];
        assert_eq!(shown, expected.map(|place| format!("t.yaml:{place}")));
        assert_eq!(places.destination(route, 1), None);
    }

    #[test]
    fn without_a_word_the_configuration_is_where_the_variable_says() {
        let env = |name: &str| (name == "MILLRACE_CONFIG").then(|| "/somewhere".to_owned());
        assert_eq!(default_config_path(&env), Path::new("/somewhere"));
    }

    /// A fixture with pieces cut out, put elsewhere, or replaced by what YAML gives a meaning to.
    fn mangled() -> impl Strategy<Value = String> {
        const PIECES: [&str; 30] = [
            ":", ": ", "- ", "\n", "\r", "\t", "  ", "{", "}", "[", "]", ",", "'", "\"", "|", ">", "&a ", "*a",
            "!!str ", "#", "---\n", "...\n", "?", "%", "${SET}", "${", "$$", "ключ", "\u{feff}", "\\",
        ];
        let texts: Vec<String> = accepted().into_iter().map(|(_, text)| text).collect();
        let edit = (any::<prop::sample::Index>(), 0..12_usize, prop::sample::select(PIECES.to_vec()));
        (prop::sample::select(texts), prop::collection::vec(edit, 1..8)).prop_map(|(text, edits)| {
            let mut characters: Vec<char> = text.chars().collect();
            for (at, cut, piece) in edits {
                let at = at.index(characters.len() + 1);
                let end = (at + cut).min(characters.len());
                characters.splice(at..end, piece.chars());
            }
            characters.into_iter().collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_that_an_operator_writes_makes_it_panic(text in mangled()) {
            match understand_text(&text) {
                Ok(loaded) => prop_assert!(!loaded.settings.routes.is_empty()),
                Err(problems) => {
                    prop_assert!(problems.has_errors());
                    prop_assert!(problems.render(true).len() >= problems.render(false).len());
                    serde_json::to_string(&problems).expect("problems serialize");
                }
            }
        }

        #[test]
        fn no_text_at_all_makes_it_panic(text in ".{0,200}") {
            prop_assert!(understand_text(&text).is_err());
        }
    }
}
