//! `millrace plugin new`: a project that builds with its language's stock tools, written whole or not at all.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::ValueHint;
use serde_json::json;

use super::super::Failure;
use super::templates::{self, Language, ProjectFile};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The plugin's name: lower-case letters, digits and single hyphens, beginning with a letter, such as redact-cards
    #[arg(value_name = "NAME", value_parser = checked_name)]
    name: String,
    /// The language to write it in
    #[arg(long, value_name = "LANGUAGE", value_enum)]
    lang: Language,
    /// Where to write it [default: ./NAME]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

/// Names that are words of a language, or packages that every project has: they could not be built.
const RESERVED: &[&str] = &[
    "abstract",
    "alloc",
    "and",
    "as",
    "async",
    "await",
    "bool",
    "break",
    "build",
    "case",
    "catch",
    "chan",
    "char",
    "class",
    "const",
    "continue",
    "core",
    "crate",
    "def",
    "default",
    "del",
    "deps",
    "do",
    "double",
    "dyn",
    "elif",
    "else",
    "enum",
    "examples",
    "except",
    "export",
    "extern",
    "false",
    "final",
    "finally",
    "float",
    "fn",
    "for",
    "from",
    "func",
    "gen",
    "global",
    "go",
    "goto",
    "if",
    "impl",
    "import",
    "in",
    "incremental",
    "int",
    "interface",
    "is",
    "json",
    "lambda",
    "let",
    "long",
    "loop",
    "macro",
    "main",
    "map",
    "match",
    "millrace",
    "millrace-plugin",
    "mod",
    "move",
    "mut",
    "new",
    "nonlocal",
    "not",
    "null",
    "or",
    "override",
    "package",
    "pass",
    "priv",
    "proc-macro",
    "pub",
    "raise",
    "range",
    "ref",
    "return",
    "select",
    "self",
    "short",
    "signed",
    "static",
    "std",
    "struct",
    "super",
    "switch",
    "sys",
    "test",
    "this",
    "trait",
    "true",
    "try",
    "type",
    "typedef",
    "typeof",
    "union",
    "unsafe",
    "unsized",
    "use",
    "var",
    "virtual",
    "void",
    "where",
    "while",
    "with",
    "yield",
];

/// The longest name: it stands in file names and in metrics' labels.
const NAME_MAX: usize = 64;

fn checked_name(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if let Some(wrong) = name.chars().find(|c| !allowed(*c)) {
        return Err(format!("{wrong:?} cannot be part of it: lower-case letters, digits and \"-\" can"));
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Err("it has to begin with a letter".into());
    }
    if name.ends_with('-') || name.contains("--") {
        return Err("a \"-\" has to stand between two letters or digits".into());
    }
    if name.len() > NAME_MAX {
        return Err(format!("it has at most {NAME_MAX} characters, this one has {}", name.len()));
    }
    if RESERVED.contains(&name) {
        return Err(format!("{name} means something else to a compiler: write, for example, my-{name}"));
    }
    Ok(name.to_owned())
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { name, lang, json, .. } = arguments;
    let directory = arguments.dir.clone().unwrap_or_else(|| PathBuf::from(name));
    let files = templates::project(*lang, name).map_err(Failure::Running)?;
    write(&directory, &files)?;
    if *json {
        let files: Vec<_> = files.iter().map(|(path, _)| path).collect();
        let language = lang.to_string();
        let written = json!({ "name": name, "language": language, "directory": directory, "files": files });
        anstream::println!("{written:#}");
        return Ok(());
    }
    let shown = directory.display();
    anstream::println!("{shown} is a plugin in {lang}: {} files, README.md first. Next:\n", files.len());
    let steps = [
        (format!("cd {shown} && make test"), "its tests, without WebAssembly".to_owned()),
        ("make".to_owned(), format!("{name}.wasm")),
        (
            format!("millrace plugin run {name}.wasm --config '{{\"fields\": [\"card\"]}}' < records.jsonl"),
            "try it".to_owned(),
        ),
    ];
    let widest = steps.iter().map(|(step, _)| step.chars().count()).max().unwrap_or(0);
    for (step, what) in steps {
        anstream::println!("  {step:<widest$}   # {what}");
    }
    Ok(())
}

/// Written beside its place and renamed when it is whole. An empty directory may be there; nothing else is touched.
fn write(directory: &Path, files: &[ProjectFile]) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| {
        Failure::Environment(anyhow!(error).context(format!("{} cannot be written", directory.display())))
    };
    let there = |what| {
        Failure::Usage(anyhow!("{} {what}, and is left as it is: choose another with --dir", directory.display()))
    };
    match fs::read_dir(directory).map(|mut entries| entries.next().is_none()) {
        Ok(false) => return Err(there("is not empty")),
        Ok(true) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if error.kind() == ErrorKind::NotADirectory => return Err(there("is a file")),
        Err(error) => return Err(cannot(error)),
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(cannot)?;
    let partial = tempfile::Builder::new().prefix(".millrace-new-").tempdir_in(parent).map_err(cannot)?;
    write_files(partial.path(), files).map_err(Failure::Environment)?;
    // A temporary directory is its owner's alone; a project is not.
    let mode = fs::metadata(partial.path().join("wit")).map_err(cannot)?.permissions();
    fs::set_permissions(partial.path(), mode).map_err(cannot)?;
    fs::rename(partial.path(), directory).map_err(cannot)?;
    let _ = partial.keep();
    Ok(())
}

/// Writes files below a directory that is there, with the directories that they need.
pub(super) fn write_files(directory: &Path, files: &[ProjectFile]) -> anyhow::Result<()> {
    for (path, content) in files {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().expect("it is below a directory"))
            .and_then(|()| fs::write(&path, content))
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_every_language_can_build() {
        for good in ["redact-cards", "a", "drop2", "my-test"] {
            assert_eq!(checked_name(good).as_deref(), Ok(good));
        }
        for (bad, why) in [
            ("", "begin with a letter"),
            ("2drop", "begin with a letter"),
            ("Drop", "'D'"),
            ("drop_test", "'_'"),
            ("drop.test", "'.'"),
            ("../drop", "'.'"),
            ("drop-", "between"),
            ("drop--test", "between"),
            ("test", "my-test"),
            ("class", "my-class"),
            (&"x".repeat(65), "65"),
        ] {
            let error = checked_name(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn reserved_names_are_in_order() {
        assert!(RESERVED.is_sorted());
    }
}
