//! The files of a configuration: when they have changed, and keep still; and reading them. Knows nothing of what is made
//! of them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::look::Look;
use super::reload::Environment;
use super::watcher::Watcher;
use crate::config::settings::{Watch, WatchMethod};
use crate::config::{self, Loaded, Problems};

/// A configuration that changes all the time is taken up after this, or twenty times `watch.debounce`, all the same.
const RESTLESS: Duration = Duration::from_secs(5);
/// What looks like half a file is taken for one that is still being written until it has kept still for this long.
const WHOLE_WITHIN: Duration = Duration::from_secs(2);
/// Looks follow each other no sooner than this, however much happens around the files.
const LOOK_SOONEST: Duration = Duration::from_millis(20);
/// Reading a configuration names files that have to be looked at before they are read; one that names others each time it is
/// read changes faster than anybody can read it.
const READS_MOST: usize = 3;

/// The files of a configuration.
pub(super) struct Files {
    root: PathBuf,
    env: Environment,
    /// Beside the YAML: those that it names, as it was last read.
    named: BTreeSet<PathBuf>,
    /// How all of them were when they were last read.
    taken: Look,
    /// They have changed since.
    moving: Option<Moving>,
    /// Since when they were as they were last read.
    changed_at: Instant,
    look_at: Option<Instant>,
    last_look: Option<Instant>,
    watch: Watch,
    watcher: Option<Watcher>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

/// Files that are changing.
struct Moving {
    look: Look,
    /// Since when they look like this.
    since: Instant,
    first: Instant,
}

impl Files {
    /// Those at `root`, with values from `env`. `wake` is called from another thread when it is time to [`Files::hear`].
    pub(super) fn new(root: PathBuf, env: Environment, watch: Watch, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let mut files = Self {
            root,
            env,
            named: BTreeSet::new(),
            taken: Look::default(),
            moving: None,
            changed_at: Instant::now(),
            look_at: None,
            last_look: None,
            watch: watch.clone(),
            watcher: None,
            wake: Arc::new(wake),
        };
        files.watch(watch);
        files
    }

    /// Watches them in this way from now on.
    pub(super) fn watch(&mut self, watch: Watch) {
        if !matches!(watch.method, WatchMethod::Auto | WatchMethod::Events) {
            self.watcher = None;
        } else if self.watcher.is_none() {
            let wake = Arc::clone(&self.wake);
            self.watcher = Some(Watcher::new(move || wake()));
        }
        self.watch = watch;
        self.listen();
    }

    /// Listens where they are now.
    fn listen(&mut self) {
        if let Some(watcher) = &mut self.watcher {
            watcher.follow(self.taken.folders(&self.root));
        }
        // What happened before it listened is found by a look.
        self.look_at = (self.watch.method != WatchMethod::Off).then(Instant::now);
    }

    /// When it is time to look whether they [have changed](Self::have_changed).
    pub(super) fn due(&self) -> Option<Instant> {
        self.look_at
    }

    /// Something has happened to one of them, or near.
    pub(super) fn hear(&mut self) {
        if self.watcher.as_ref().is_some_and(Watcher::heard) && self.moving.is_none() {
            self.look_at = Some(self.last_look.map_or_else(Instant::now, |last| last + LOOK_SOONEST));
        }
    }

    /// Looks at them: whether they have changed since they were read, and keep still.
    pub(super) fn have_changed(&mut self, now: Instant) -> bool {
        self.last_look = Some(now);
        self.look_at = match self.watch.method {
            // Events may be missing even where there are some: on a network file system, behind a link.
            WatchMethod::Auto | WatchMethod::Poll => Some(now + self.watch.interval),
            WatchMethod::Events | WatchMethod::Off => None,
        };
        let look = Look::at(&self.root, &self.named);
        if look == self.taken {
            self.moving = None;
            return false;
        }
        let moving = match self.moving.take() {
            Some(moving) if moving.look == look => moving,
            moved => Moving { look, since: now, first: moved.map_or(now, |moved| moved.first) },
        };
        let restless_at = moving.first + RESTLESS.max(self.watch.debounce * 20);
        let still_at = (moving.since + self.watch.debounce).min(restless_at);
        self.moving = Some(moving);
        if now < still_at {
            self.look_at = Some(still_at);
        }
        now >= still_at
    }

    /// Reads them as they are.
    pub(super) fn read(&mut self) -> Result<Loaded, Problems> {
        if let Some(moving) = self.moving.take() {
            self.changed_at = moving.since;
        }
        let mut reads = 0;
        let result = loop {
            let mut look = Look::at(&self.root, &self.named);
            let reading = config::read(&self.root, &*self.env);
            // Files that it did not name before were not looked at before they were read: once more.
            let is_looked_at = reading.named.is_subset(&self.named);
            self.named = reading.named;
            reads += 1;
            if is_looked_at || reads == READS_MOST {
                look.forget_all_but(&self.named);
                self.taken = look;
                break reading.result;
            }
        };
        self.listen();
        result
    }

    /// Until when they may not be whole yet, as they were last read, since they had changed a short while before.
    pub(super) fn unfinished_until(&self) -> Option<Instant> {
        Some(self.changed_at + WHOLE_WITHIN).filter(|until| *until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const DEBOUNCE: Duration = Duration::from_millis(250);
    const INTERVAL: Duration = Duration::from_secs(2);
    const YAML: &str = "
kafka: { bootstrap.servers: b:1 }
plugins: { p: { path: p.wasm, config: { a: \"${file:secret}\" } } }
routes: { r: { source: { topics: [a], start: latest }, pipeline: [{ plugin: p }], destinations: [{ topic: b }] } }
";

    fn files(root: &Path, method: WatchMethod) -> Files {
        let watch = Watch { method, debounce: DEBOUNCE, interval: INTERVAL };
        Files::new(root.to_owned(), Arc::new(|_| None), watch, || {})
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("millrace.yaml"), YAML).unwrap();
        fs::write(folder.path().join("secret"), "s").unwrap();
        folder
    }

    #[test]
    fn files_are_taken_up_once_they_have_kept_still_and_however_often_they_were_saved() {
        let folder = folder();
        let mut files = files(folder.path(), WatchMethod::Poll);
        files.read().unwrap();
        let mut now = Instant::now();
        assert!(!files.have_changed(now));
        assert_eq!(files.due(), Some(now + INTERVAL));
        for save in 0..10 {
            fs::write(folder.path().join("millrace.yaml"), format!("{YAML}# {save}\n")).unwrap();
            now += Duration::from_millis(100);
            assert!(!files.have_changed(now), "save {save}");
            assert_eq!(files.due(), Some(now + DEBOUNCE));
        }
        assert!(!files.have_changed(now + DEBOUNCE / 2));
        assert_eq!(files.due(), Some(now + DEBOUNCE));
        assert!(files.have_changed(now + DEBOUNCE));
        files.read().unwrap();
        assert!(!files.have_changed(now + DEBOUNCE));
    }

    #[test]
    fn files_that_never_keep_still_are_taken_up_all_the_same() {
        let folder = folder();
        let mut files = files(folder.path(), WatchMethod::Poll);
        files.read().unwrap();
        let begun = Instant::now();
        let mut now = begun;
        loop {
            fs::write(folder.path().join("secret"), format!("{now:?}")).unwrap();
            if files.have_changed(now) {
                break;
            }
            now += DEBOUNCE / 2;
        }
        assert_eq!(now - begun, RESTLESS);
    }

    #[test]
    fn what_the_yaml_names_is_watched_where_it_could_be_read_and_where_it_could_not() {
        let folder = folder();
        let mut files = files(folder.path(), WatchMethod::Poll);
        files.read().unwrap();
        let mut now = Instant::now();
        let mut changes = |files: &mut Files, name: &str, content: Option<&str>| {
            let path = folder.path().join(name);
            content.map_or_else(|| fs::remove_file(&path), |content| fs::write(&path, content)).unwrap();
            now += Duration::from_secs(10);
            assert!(!files.have_changed(now), "{name} is new, and may still change");
            now += DEBOUNCE;
            assert!(files.have_changed(now), "{name}");
            files.read().is_ok()
        };
        assert!(changes(&mut files, "secret", Some("t")));
        assert!(changes(&mut files, "p.wasm", Some("")));
        assert!(!changes(&mut files, "secret", None));
        assert!(changes(&mut files, "secret", Some("u")));
        assert!(changes(&mut files, "more.yaml", Some("")));
        // Back to what was read is no change.
        fs::write(folder.path().join("other.yaml"), "").unwrap();
        assert!(!files.have_changed(now));
        fs::remove_file(folder.path().join("other.yaml")).unwrap();
        assert!(!files.have_changed(now + INTERVAL));
    }

    #[test]
    fn without_watching_nobody_looks() {
        let folder = folder();
        let mut files = files(folder.path(), WatchMethod::Off);
        files.read().unwrap();
        assert_eq!(files.due(), None);
        files.watch(Watch { method: WatchMethod::Events, debounce: DEBOUNCE, interval: INTERVAL });
        assert!(files.due().is_some_and(|at| at <= Instant::now()), "what happened meanwhile has to be found");
        assert!(!files.have_changed(Instant::now()));
        assert_eq!(files.due(), None, "from now on it is told");
    }
}
