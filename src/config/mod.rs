//! FLOOR 2: YAML to [`Settings`]. `raw` mirrors what may be written, `settings` is what was meant and cannot be wrong.
//! Every problem of every file is reported at once. Only this module names a YAML library.
//!
//! The way of a configuration: `files` reads bytes → `tree` makes trees in which all knows its place → `interpolate`
//! replaces variables → `raw` (with `decode`) takes what may be written → `meaning` and `topology` say what is meant.

mod decode;
mod files;
mod interpolate;
mod meaning;
mod places;
mod problem;
mod properties;
mod raw;
pub mod settings;
mod source;
mod topology;
mod tree;
mod units;

use std::path::{Path, PathBuf};

pub use places::{Places, PropertyScope};
pub use problem::{Problem, Problems, UNREADABLE};
pub use settings::Settings;
pub use source::Place;

use crate::model::Digest;
use files::ReadFile;
use interpolate::Interpolator;
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
    /// The tests that are written in it.
    pub tests: Vec<TestCase>,
}

/// A test written in a configuration, as it is written.
#[derive(Debug, Clone)]
pub struct TestCase {
    /// What it shows.
    pub name: String,
    /// The route that it tests; there is one of this name.
    pub route: String,
    /// The records that the route is given: a list.
    pub given: serde_json::Value,
    /// What is expected to come out: a list.
    pub expect: serde_json::Value,
    /// Where it is written.
    pub place: Place,
}

/// Reads a configuration: a file, or a directory with all that is in it.
///
/// # Errors
/// Everything that is wrong with it, warnings included.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Problems> {
    let mut problems = Problems::new();
    let files = files::read(path, &mut problems);
    understand(path, files, env, problems)
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
) -> Result<Loaded, Problems> {
    let mut complete = problems.is_empty();
    let hash = digest(files.iter().map(|file| (name_below(root, &file.path), file.bytes.as_slice())));
    let mut read: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
    let mut interpolator = Interpolator::new(env);
    let mut raw = Raw::default();
    for file in files {
        let tree = files::as_text(file, &mut problems).map(|source| tree::parse(&source, &mut problems));
        match tree {
            Some(Ok(Some(mut root))) => {
                interpolator.replace(&mut root, &mut problems);
                raw.add(&root, &mut problems);
            }
            Some(Ok(None)) => {}
            Some(Err(tree::Unreadable)) | None => complete = false,
        }
    }
    read.extend(interpolator.files.keys().cloned());
    let (settings, places) = meaning::interpret(&raw, complete, &mut problems);
    problems.sort();
    let settings = match settings {
        Some(settings) if !problems.has_errors() => settings,
        _ => return Err(problems),
    };
    let fingerprint = fingerprint(&hash, &interpolator);
    Ok(Loaded { settings, files: read, hash, fingerprint, warnings: problems, places, tests: tests(raw) })
}

fn tests(raw: Raw) -> Vec<TestCase> {
    let case = |test: raw::RawTest| TestCase {
        name: test.name.value,
        route: test.route.value,
        given: test.given,
        expect: test.expect,
        place: test.name.place,
    };
    raw.tests.into_iter().map(case).collect()
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
