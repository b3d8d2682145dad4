//! Hears of changes to files, so that nobody has to wait for the next look. Only this module names notify.
//!
//! What it hears is a hint and nothing more: [`super::look`] tells whether anything has changed, and looks now and then
//! without a hint, since network file systems give none.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, INotifyWatcher, RecursiveMode, Watcher as _};

/// Listens in some folders.
pub(super) struct Watcher {
    notify: Option<INotifyWatcher>,
    folders: BTreeSet<PathBuf>,
    heard: Arc<AtomicBool>,
}

impl Watcher {
    /// Listens nowhere yet. `wake` is called from another thread, once, until [`Watcher::heard`] is asked.
    pub(super) fn new(wake: impl Fn() + Send + 'static) -> Self {
        let heard = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&heard);
        let hear = move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, is_change) && !flag.swap(true, Ordering::AcqRel) {
                wake();
            }
        };
        let notify = INotifyWatcher::new(hear, notify::Config::default());
        let notify = notify.inspect_err(|error| {
            tracing::warn!("changes of files are not announced here, so they are looked for now and then: {error}");
        });
        Self { notify: notify.ok(), folders: BTreeSet::new(), heard }
    }

    /// Whether anything was heard since this was asked last.
    pub(super) fn heard(&self) -> bool {
        self.heard.swap(false, Ordering::AcqRel)
    }

    /// Listens in these folders from now on, and nowhere else. All of them anew: a folder that was replaced by another of
    /// its name would be listened to no longer.
    pub(super) fn follow(&mut self, folders: BTreeSet<PathBuf>) {
        let Some(notify) = &mut self.notify else { return };
        for gone in std::mem::take(&mut self.folders) {
            // (an error: the folder is gone, and its watch with it)
            let _ = notify.unwatch(&gone);
        }
        let mut refused = None;
        for folder in folders {
            match notify.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.folders.insert(folder)),
                Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
                Err(error) => refused = Some((folder, error)),
            }
        }
        if let Some((folder, error)) = refused {
            let folder = folder.display();
            tracing::warn!(%folder, "changes in this folder are not announced, so they are looked for now and then: {error}");
        }
    }
}

/// That a file was opened, or read and closed, is no change: we do that ourselves.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_change_wakes_and_after_it_was_heard_the_next_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        let (wake, woken) = channel();
        let mut watcher = Watcher::new(move || wake.send(()).unwrap());
        watcher.follow(BTreeSet::from([folder.path().to_owned(), folder.path().join("missing")]));
        fs::write(&file, "a").unwrap();
        woken.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(watcher.heard());
        fs::rename(&file, folder.path().join("b.yaml")).unwrap();
        woken.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn to_open_and_to_read_a_file_is_no_change() {
        for (kind, change) in [
            (EventKind::Access(AccessKind::Open(AccessMode::Any)), false),
            (EventKind::Access(AccessKind::Close(AccessMode::Read)), false),
            (EventKind::Access(AccessKind::Close(AccessMode::Write)), true),
            (EventKind::Modify(notify::event::ModifyKind::Any), true),
        ] {
            assert_eq!(is_change(&Event::new(kind)), change, "{kind:?}");
        }
    }
}
