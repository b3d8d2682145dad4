//! Where the demo's configuration lies, and where its plugins come from. Knows neither brokers nor screens.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};

/// What the demo writes where there is no configuration yet.
const TEMPLATE: &str = include_str!("demo.yaml");
/// What the template names.
const PLUGINS: [(&str, &str); 2] = [("@DROP_WHERE@", "drop-where.wasm"), ("@REDACT_FIELDS@", "redact-fields.wasm")];

/// The directory with the demo's configuration. A temporary one goes with the value.
pub(super) struct Directory {
    path: PathBuf,
    is_temporary: bool,
}

impl Directory {
    /// Takes the directory that was named, or makes a temporary one; writes the configuration where there is none.
    pub(super) fn prepare(named: Option<&Path>, plugins: Option<&Path>) -> anyhow::Result<Self> {
        let directory = match named {
            Some(path) => Self { path: path.to_owned(), is_temporary: false },
            None => Self { path: make_temporary()?, is_temporary: true },
        };
        let path = &directory.path;
        std::fs::create_dir_all(path).with_context(|| format!("{} cannot be made", path.display()))?;
        if has_configuration(path).with_context(|| format!("{} cannot be read", path.display()))? {
            if let Some(plugins) = plugins {
                bail!(
                    "--plugins {} would change nothing: the configuration that is already in {} names its own plugins",
                    plugins.display(),
                    path.display()
                );
            }
        } else {
            let file = directory.file();
            let yaml = yaml(&find_plugins(plugins, path)?);
            std::fs::write(&file, yaml).with_context(|| format!("{} cannot be written", file.display()))?;
        }
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_temporary(&self) -> bool {
        self.is_temporary
    }

    fn file(&self) -> PathBuf {
        self.path.join("demo.yaml")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.is_temporary {
            // (an error leaves a few kB in the system's temporary directory)
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn make_temporary() -> anyhow::Result<PathBuf> {
    let name: String = std::iter::repeat_with(fastrand::alphanumeric).take(10).collect();
    let path = std::env::temp_dir().join(format!("millrace-demo-{name}"));
    // Fails where somebody else was first; nobody else looks in.
    let made = DirBuilder::new().mode(0o700).create(&path);
    made.with_context(|| format!("the temporary directory {} cannot be made", path.display()))?;
    Ok(path)
}

fn has_configuration(directory: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(directory)? {
        if entry?.path().extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn yaml(plugins: &Path) -> String {
    PLUGINS.iter().fold(TEMPLATE.to_owned(), |yaml, (mark, file)| {
        let path = plugins.join(file).display().to_string().replace('$', "$$");
        // A JSON string is a YAML string.
        yaml.replace(mark, &serde_json::Value::from(path).to_string())
    })
}

/// The directory with the example plugins: the one that was named, else what a source tree or an archive has, else those
/// that are in the binary.
fn find_plugins(named: Option<&Path>, directory: &Path) -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|binary| Some(binary.parent()?.join("plugins")));
    let looked: Vec<PathBuf> = match named {
        Some(named) => vec![named.to_owned()],
        None => [Some("plugins/dist".into()), beside].into_iter().flatten().collect(),
    };
    let complete = |candidate: &&PathBuf| PLUGINS.iter().all(|(_, file)| candidate.join(file).is_file());
    if let Some(found) = looked.iter().find(complete) {
        return found.canonicalize().with_context(|| format!("{} cannot be read", found.display()));
    }
    if named.is_none()
        && let Some(unpacked) = unpack_embedded(directory)
    {
        return unpacked.context("the embedded plugins cannot be written");
    }
    let looked: Vec<_> = looked.iter().map(|path| path.display().to_string()).collect();
    let files = PLUGINS.map(|(_, file)| file).join(" and ");
    Err(anyhow!(
        "the demo needs {files}, which are not in {}: build them in the source tree with `make demo` (or \
         `scripts/guests`, then `millrace demo` there), or say where they are with --plugins DIR",
        looked.join(" or ")
    ))
}

#[cfg(not(feature = "embed-demo"))]
fn unpack_embedded(_: &Path) -> Option<io::Result<PathBuf>> {
    None
}

#[cfg(feature = "embed-demo")]
fn unpack_embedded(directory: &Path) -> Option<io::Result<PathBuf>> {
    let embedded: [(&str, &[u8]); 2] = [
        ("drop-where.wasm", include_bytes!("../../../plugins/dist/drop-where.wasm")),
        ("redact-fields.wasm", include_bytes!("../../../plugins/dist/redact-fields.wasm")),
    ];
    let unpack = || {
        let plugins = directory.canonicalize()?.join("plugins");
        std::fs::create_dir_all(&plugins)?;
        for (file, bytes) in embedded {
            std::fs::write(plugins.join(file), bytes)?;
        }
        Ok(plugins)
    };
    Some(unpack())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_configuration_that_the_demo_writes_is_valid_wherever_the_plugins_lie() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("demo.yaml"), yaml(Path::new("/a \"b\" ${c}/d: #"))).unwrap();
        let loaded = config::load(directory.path(), &|_| None).unwrap_or_else(|problems| panic!("{problems:?}"));
        let paths: Vec<_> = loaded.settings.plugins.values().map(|plugin| plugin.path.display().to_string()).collect();
        assert_eq!(paths, [r#"/a "b" ${c}/d: #/drop-where.wasm"#, r#"/a "b" ${c}/d: #/redact-fields.wasm"#]);
    }

    #[test]
    fn a_temporary_directory_goes_and_a_named_one_stays_as_it_was_edited() {
        let plugins = tempfile::tempdir().unwrap();
        for (_, file) in PLUGINS {
            std::fs::write(plugins.path().join(file), "").unwrap();
        }
        let temporary = Directory::prepare(None, Some(plugins.path())).unwrap();
        let path = temporary.path().to_owned();
        assert!(path.join("demo.yaml").is_file());
        drop(temporary);
        assert!(!path.exists());

        let named = tempfile::tempdir().unwrap();
        let file = named.path().join("demo.yaml");
        drop(Directory::prepare(Some(named.path()), Some(plugins.path())).unwrap());
        assert!(file.is_file());
        std::fs::write(&file, "edited").unwrap();
        drop(Directory::prepare(Some(named.path()), None).unwrap());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "edited");
        assert!(Directory::prepare(Some(named.path()), Some(plugins.path())).is_err());
    }
}
