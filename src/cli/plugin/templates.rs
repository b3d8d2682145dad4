//! The projects that `millrace plugin new` writes, embedded: for each language a template, which is also an example of this
//! repository, and beside it what it was made with. Knows nothing of the disk.

use std::fmt;

use clap::ValueEnum;

use super::bindings;

/// Path in the repository, and content.
static EMBEDDED: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
/// What a template calls itself; takes the place of the project's name.
const TEMPLATE_NAME: &str = "redact-fields";

/// A language that plugins can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Language {
    Rust,
    #[value(alias = "js")]
    Javascript,
    #[value(alias = "py")]
    Python,
    #[value(alias = "golang")]
    Go,
    C,
}

impl Language {
    fn directory(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Javascript => "javascript",
            Self::Python => "python",
            Self::Go => "go",
            Self::C => "c",
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rust => "Rust",
            Self::Javascript => "JavaScript",
            Self::Python => "Python",
            Self::Go => "Go",
            Self::C => "C",
        })
    }
}

/// A file of a project: its path below the project, and its content.
pub(super) type ProjectFile = (String, Vec<u8>);

/// All files of a new project; the error is one of the bindings generator.
pub(super) fn project(language: Language, name: &str) -> anyhow::Result<Vec<ProjectFile>> {
    let template = format!("plugins/templates/{}/", language.directory());
    let mut files: Vec<ProjectFile> =
        below(&template).map(|(path, content)| (renamed(path, name), rename(content, name))).collect();
    anyhow::ensure!(!files.is_empty(), "this build of millrace has no template for {language}");
    files.extend(wit().map(|(path, content)| (format!("wit/{path}"), content.to_vec())));
    match language {
        Language::Rust => vendor_sdk(&mut files),
        Language::Go | Language::C => files.extend(bindings::of_project(language, name)?),
        Language::Javascript | Language::Python => {}
    }
    files.sort_unstable();
    Ok(files)
}

/// The interface that this millrace was made with: names and contents of its files.
pub(super) fn wit() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    below("wit/")
}

fn below(directory: &str) -> impl Iterator<Item = (&'static str, &'static [u8])> {
    EMBEDDED.iter().filter_map(move |(path, content)| Some((path.strip_prefix(directory)?, *content)))
}

/// The SDK's crates as they are, in a workspace of their own: their manifests inherit from it, and they find `wit/` where
/// they find it here, two directories above.
fn vendor_sdk(files: &mut Vec<ProjectFile>) {
    let workspace = EMBEDDED.iter().find(|(path, _)| *path == "plugins/Cargo.toml").expect("it is embedded").1;
    let with_members = |line: &str| match line.starts_with("members = ") {
        true => "members = [\"sdk\", \"sdk/bindings/*\"]\n".to_owned(),
        false => format!("{line}\n"),
    };
    let workspace: String = text(workspace).lines().map(with_members).collect();
    files.push(("millrace/Cargo.toml".into(), workspace.into()));
    files.extend(below("plugins/sdk/").map(|(path, content)| (format!("millrace/sdk/{path}"), content.to_vec())));
    let manifest = files.iter_mut().find(|(path, _)| path == "Cargo.toml").expect("a Rust project has one");
    manifest.1 = text(&manifest.1).replace("\"../../sdk\"", "\"millrace/sdk\"").into();
}

fn text(content: &[u8]) -> &str {
    str::from_utf8(content).expect("manifests are text")
}

fn rename(content: &[u8], name: &str) -> Vec<u8> {
    str::from_utf8(content).map_or_else(|_| content.to_vec(), |text| renamed(text, name).into())
}

fn renamed(text: &str, name: &str) -> String {
    text.replace(TEMPLATE_NAME, name).replace(&TEMPLATE_NAME.replace('-', "_"), &name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_bears_its_name_wherever_the_template_bore_its_own() {
        let files = project(Language::Rust, "drop-cards").unwrap();
        let content = |path: &str| text(&files.iter().find(|(at, _)| at == path).unwrap().1).to_owned();
        for (path, content) in files.iter().filter(|(path, _)| !path.starts_with("millrace/")) {
            let content = String::from_utf8_lossy(content);
            assert!(!content.contains("redact-fields") && !content.contains("redact_fields"), "{path}: {content}");
        }
        assert!(content("Cargo.toml").contains("name = \"drop-cards\""));
        assert!(content("Makefile").contains("drop_cards"), "{}", content("Makefile"));
    }

    #[test]
    fn every_language_has_a_project_with_a_short_readme_a_makefile_a_test_and_the_interface() {
        for language in Language::value_variants() {
            let files = project(*language, "drop-cards").unwrap();
            let content = |path: &str| files.iter().find(|(at, _)| at == path).map(|(_, content)| text(content));
            let readme = content("README.md").unwrap_or_else(|| panic!("{language}: no README.md"));
            assert!(readme.starts_with("# drop-cards\n") && readme.lines().count() <= 10, "{language}: {readme}");
            let makefile = content("Makefile").unwrap_or_else(|| panic!("{language}: no Makefile"));
            assert!(makefile.contains("\ntest:\n"), "{language}: {makefile}");
            assert!(content("wit/worlds.wit").is_some() && content(".gitignore").is_some(), "{language}");
            let is_test = |(path, content): &ProjectFile| {
                let is_rust_with_a_test = || path == "src/lib.rs" && text(content).contains("#[test]");
                !path.contains("millrace/") && path.contains("test") || is_rust_with_a_test()
            };
            assert!(files.iter().any(is_test), "{language}: no test");
        }
    }

    #[test]
    fn a_rust_project_depends_on_nothing_outside_of_itself() {
        let files = project(Language::Rust, "drop-cards").unwrap();
        let manifests = files.iter().filter(|(path, _)| path.ends_with("Cargo.toml"));
        for (path, content) in manifests {
            for line in text(content).lines().filter(|line| line.contains("path = ")) {
                let up = line.matches("../").count();
                assert!(up <= path.matches('/').count(), "{path} names what lies outside: {line}");
            }
        }
        for path in
            ["millrace/sdk/src/lib.rs", "millrace/sdk/bindings/filter/Cargo.toml", "wit/worlds.wit", ".gitignore"]
        {
            assert!(files.iter().any(|(at, _)| at == path), "{path} is missing");
        }
    }
}
