//! A configuration for the daemon, in a directory of its own: the part that all tests share, and the routes of one.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{root, scratch, unique};

/// A configuration on disk. Gone with the value.
pub(crate) struct Config {
    dir: PathBuf,
    prefix: String,
}

impl Config {
    /// The head that all configurations share, with plugins of `plugins/dist` under their own names, and then `rest`,
    /// which begins at the first column and holds `routes:`.
    pub(crate) fn new(bootstrap: &str, plugins: &[&str], rest: &str) -> Self {
        let (dir, prefix) = (scratch("config"), unique("it"));
        let mut text = head(bootstrap, &prefix);
        if !plugins.is_empty() {
            text.push_str("plugins:\n");
        }
        for name in plugins {
            writeln!(text, "  {name}: {{ path: \"{}\" }}", plugin(name).display()).expect("a string takes it");
        }
        text.push_str(rest);
        let config = Self { dir, prefix };
        config.write(&text);
        config
    }

    /// Nothing but `text`; [`head`] is what it might begin with.
    pub(crate) fn of(text: &str) -> Self {
        let config = Self { dir: scratch("config"), prefix: String::new() };
        config.write(text);
        config
    }

    /// Writes another text in the place of the one that is there.
    pub(crate) fn write(&self, text: &str) {
        std::fs::create_dir_all(&self.dir).expect("a directory for the configuration");
        std::fs::write(self.dir.join("millrace.yaml"), text).expect("the configuration is written");
    }

    /// Changes the YAML, in one rename, as what deploys configurations does.
    #[track_caller]
    pub(crate) fn edit(&self, change: impl FnOnce(&str) -> String) {
        let yaml = self.dir.join("millrace.yaml");
        let before = std::fs::read_to_string(&yaml).expect("the configuration is there");
        let after = change(&before);
        assert_ne!(before, after, "the configuration changes");
        self.put("millrace.yaml", after.as_bytes());
    }

    /// Puts a file of this name beside the YAML, in one rename, over the one that is there.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let new = self.dir.join(format!(".{name}.new"));
        std::fs::write(&new, bytes).expect("the file is written");
        std::fs::rename(&new, self.dir.join(name)).expect("the file takes its place");
    }

    /// What to give to `millrace run`.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// The default group of a route, where the configuration is none that was given whole.
    pub(crate) fn group(&self, route: &str) -> String {
        format!("{}.{route}", self.prefix)
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // (left behind where a test fails, to be looked at)
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// What every configuration begins with.
pub(crate) fn head(bootstrap: &str, prefix: &str) -> String {
    head_with(bootstrap, prefix, "")
}

/// As [`head`], with more in `kafka`: `, key: value` and so on.
pub(crate) fn head_with(bootstrap: &str, prefix: &str, kafka: &str) -> String {
    format!(
        "kafka: {{ prefix: {prefix}, bootstrap.servers: \"{bootstrap}\"{kafka} }}\n\
         admin: {{ listen: \"127.0.0.1:0\" }}\ncache_dir: {}\n",
        scratch_cache().display()
    )
}

/// A plugin that `scripts/guests` has built.
pub(crate) fn plugin(name: &str) -> PathBuf {
    let path = root().join("plugins/dist").join(name).with_extension("wasm");
    assert!(path.exists(), "{} is missing: scripts/guests builds it", path.display());
    path
}

/// One cache of compiled plugins for all tests, and for the next run of them.
fn scratch_cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-plugins")
}
