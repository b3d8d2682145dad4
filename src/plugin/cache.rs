//! Compiled plugins on disk: machine code that the process will run, so only a directory and files of our own that nobody
//! else can write are used, and every byte is checked against the digest in the file's name before it is mapped. Beside the code of a core
//! module lies the component that was made of it, so that the daemon never has to make one.

use std::fs::{self, DirBuilder, File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, SystemTime};

use wasmtime::Engine;
use wasmtime::component::Component;

use super::mapped::{self, path_of};
use super::wrap::ADAPTER_TEXT;
use crate::model::Digest;

/// Files kept; the least recently used beyond are removed.
const FILES_MAX: usize = 1024;
const MACHINE_CODE: &str = "cwasm";
const COMPONENT: &str = "component";

/// What was not written to its end is removed after this: its writer is gone.
const PARTIAL_KEPT: Duration = Duration::from_secs(3600);

/// A directory of files `<plugin digest>-<what it was made with>.<content digest>.<what it is>`.
pub(super) struct Cache {
    /// A name for the open directory: it stays the one that was checked, whatever its path stands for later.
    directory: PathBuf,
    _open: File,
    shown: PathBuf,
    compatibility: u64,
}

impl Cache {
    /// Uses the directory, making it where it is missing; or says why not.
    pub(super) fn open(directory: PathBuf, engine: &Engine) -> Result<Self, String> {
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(|error| error.to_string())?;
        let open = File::open(&directory).map_err(|error| error.to_string())?;
        let metadata = open.metadata().map_err(|error| error.to_string())?;
        if !metadata.is_dir() {
            return Err("it is not a directory".into());
        }
        only_ours(&metadata)?;
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        (env!("CARGO_PKG_VERSION"), ADAPTER_TEXT).hash(&mut hasher);
        Ok(Self { directory: path_of(&open), _open: open, shown: directory, compatibility: hasher.finish() })
    }

    /// The plugin's machine code, where it is here and whole.
    pub(super) fn load(&self, engine: &Engine, plugin: &Digest) -> Option<Component> {
        self.find(plugin, MACHINE_CODE, |file, content| {
            drop(content);
            mapped::component(engine, file).map_err(|error| format!("{error:#}"))
        })
    }

    /// The component that was made of the plugin, where it is here and whole.
    pub(super) fn load_component(&self, plugin: &Digest) -> Option<Vec<u8>> {
        self.find(plugin, COMPONENT, |_, content| Ok(content))
    }

    fn find<T>(
        &self,
        plugin: &Digest,
        kind: &str,
        take: impl FnOnce(&File, Vec<u8>) -> Result<T, String>,
    ) -> Option<T> {
        let prefix = self.prefix(plugin);
        let path = self.files(kind).find(|path| file_name(path).starts_with(&prefix))?;
        match checked(&path, &prefix, kind).and_then(|(file, content)| take(&file, content)) {
            Ok(found) => Some(found),
            Err(reason) => {
                tracing::warn!(file = %self.shown.join(file_name(&path)).display(), "a compiled plugin in the cache is not used, and removed: {reason}");
                // It is written anew; whatever hinders its removal will be told then.
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps the plugin's machine code, and gives the file that it is kept in. It appears whole or not at all.
    pub(super) fn store(&self, compiled: &File, plugin: &Digest) -> Result<File, String> {
        let content = fs::read(path_of(compiled)).map_err(|error| error.to_string())?;
        self.keep(&content, plugin, MACHINE_CODE)
    }

    /// Keeps the component that was made of the plugin.
    pub(super) fn store_component(&self, component: &[u8], plugin: &Digest) -> Result<(), String> {
        self.keep(component, plugin, COMPONENT).map(drop)
    }

    fn keep(&self, content: &[u8], plugin: &Digest, kind: &str) -> Result<File, String> {
        let name = name_of(&self.prefix(plugin), content, kind);
        let partial = self.directory.join(format!(".{}.{:016x}", process::id(), fastrand::u64(..)));
        let written = write_new(&partial, content)
            .and_then(|file| fs::rename(&partial, self.directory.join(name)).map(|()| file));
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        self.forget_oldest();
        written.map_err(|error| format!("{}: {error}", self.shown.display()))
    }

    fn prefix(&self, plugin: &Digest) -> String {
        format!("{plugin}-{:016x}.", self.compatibility)
    }

    fn entries(&self) -> impl Iterator<Item = PathBuf> {
        fs::read_dir(&self.directory).into_iter().flatten().flatten().map(|entry| entry.path())
    }

    fn files(&self, kind: &str) -> impl Iterator<Item = PathBuf> {
        self.entries().filter(move |path| path.extension().is_some_and(|extension| extension == kind))
    }

    fn forget_oldest(&self) {
        let used = |path: PathBuf| Some((fs::symlink_metadata(&path).ok()?.modified().ok()?, path));
        let old = |at: SystemTime| at.elapsed().is_ok_and(|age| age > PARTIAL_KEPT);
        let partial = self.entries().filter(|path| file_name(path).starts_with('.')).filter_map(used);
        for (_, path) in partial.filter(|(written, _)| old(*written)) {
            let _ = fs::remove_file(path);
        }
        let kept = self.files(MACHINE_CODE).chain(self.files(COMPONENT));
        let mut files: Vec<_> = kept.filter_map(used).collect();
        files.sort_unstable();
        let excess = files.len().saturating_sub(FILES_MAX);
        for (_, path) in files.drain(..excess) {
            // Another process may have been quicker.
            let _ = fs::remove_file(path);
        }
    }
}

/// The file and all that is in it, where it is ours and its content is what its name says.
fn checked(path: &Path, prefix: &str, kind: &str) -> Result<(File, Vec<u8>), String> {
    let text = |error: io::Error| error.to_string();
    // Opened once, never through a link: what is checked is what is mapped, whatever the name stands for meanwhile.
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut file = File::options().read(true).custom_flags(no_links).open(path).map_err(text)?;
    let metadata = file.metadata().map_err(text)?;
    if !metadata.is_file() {
        return Err("it is not a plain file".into());
    }
    only_ours(&metadata)?;
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(text)?;
    if file_name(path) != name_of(prefix, &content, kind) {
        return Err("its content is not what its name says".into());
    }
    // Tells the least recently used; nothing else depends on it.
    let _ = file.set_modified(SystemTime::now());
    Ok((file, content))
}

fn name_of(prefix: &str, content: &[u8], kind: &str) -> String {
    format!("{prefix}{}.{kind}", Digest::of(content))
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn only_ours(metadata: &Metadata) -> Result<(), String> {
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us {
        return Err(format!("it belongs to user {}, while this process runs as {us}", metadata.uid()));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(format!("others can write it (mode {:o}): chmod go-w", metadata.mode() & 0o7777));
    }
    Ok(())
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<File> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_data()?;
    Ok(file)
}
