//! What the files of a configuration look like from outside: enough to tell, without reading them, whether any may have
//! changed. A level, not an edge: two looks are compared, however many changes lie between them, and whether or not
//! anybody told.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::config;

/// A file at a moment. It differs after every change of its content: one in place, another file renamed over it, a
/// symbolic link on the way that leads elsewhere; also where the time of modification was set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of what was asked of a file, or of an open one.
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// All files of a configuration at a moment: its YAML, and what that names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Look {
    yaml: Files,
    named: Files,
    folders: Vec<PathBuf>,
}

type Files = BTreeMap<PathBuf, Result<Stamp, io::ErrorKind>>;

impl Look {
    /// Looks at the YAML files at or below `root`, and at the files `named`.
    pub(super) fn at(root: &Path, named: &BTreeSet<PathBuf>) -> Self {
        let config::Survey { files, folders } = config::survey(root);
        let stamp = |path: PathBuf| {
            let stamp = fs::metadata(&path).map(|metadata| Stamp::of(&metadata)).map_err(|error| error.kind());
            (path, stamp)
        };
        Self {
            yaml: files.into_iter().map(stamp).collect(),
            named: named.iter().cloned().map(stamp).collect(),
            folders,
        }
    }

    /// Of the files beside the YAML, only these count from now on.
    pub(super) fn forget_all_but(&mut self, named: &BTreeSet<PathBuf>) {
        self.named.retain(|path, _| named.contains(path));
    }

    /// Every folder in which an entry may change when any of this changes: where the files lie, where symbolic links on the
    /// way to them lie, and what holds those folders, which may themselves be renamed.
    pub(super) fn folders(&self, root: &Path) -> BTreeSet<PathBuf> {
        let mut folders: BTreeSet<PathBuf> = self.folders.iter().cloned().collect();
        for path in self.yaml.keys().chain(self.named.keys()).map(PathBuf::as_path).chain([root]) {
            around(path, &mut folders, 0);
        }
        folders
    }
}

/// More links on one way than this lead round in circles (Linux itself follows 40).
const LINKS_MOST: usize = 40;

fn around(path: &Path, folders: &mut BTreeSet<PathBuf>, links: usize) {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let parents = absolute.ancestors().skip(1);
    folders.extend(parents.take(2).map(Path::to_owned));
    for part in absolute.ancestors() {
        if let (Ok(target), Some(folder)) = (fs::read_link(part), part.parent())
            && links < LINKS_MOST
            && folders.insert(folder.to_owned()) | folders.insert(folder.join(&target))
        {
            around(&folder.join(target), folders, links + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_way_to_change_a_file_shows() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("config")).unwrap();
        fs::create_dir(at("..1")).unwrap();
        fs::create_dir(at("..2")).unwrap();
        for (name, text) in [("config/a.yaml", "a"), ("..1/p.wasm", "one"), ("..2/p.wasm", "two"), ("secret", "s")] {
            fs::write(at(name), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        let named = BTreeSet::from([at("..data/p.wasm"), at("secret"), at("missing")]);
        let mut before = Look::at(&at("config"), &named);
        assert_eq!(before, Look::at(&at("config"), &named));
        let mut changes = |what: &str, change: &dyn Fn()| {
            change();
            let after = Look::at(&at("config"), &named);
            assert_ne!(before, after, "{what}");
            before = after;
        };
        changes("a file written in place, with the same size", &|| fs::write(at("config/a.yaml"), "b").unwrap());
        changes("a file renamed over", &|| {
            fs::write(at("config/.a.yaml.new"), "b").unwrap();
            fs::rename(at("config/.a.yaml.new"), at("config/a.yaml")).unwrap();
        });
        changes("a file that is new", &|| fs::write(at("config/b.yaml"), "").unwrap());
        changes("a file that is gone", &|| fs::remove_file(at("config/b.yaml")).unwrap());
        changes("a folder that is new", &|| fs::create_dir(at("config/routes")).unwrap());
        changes("a link that leads elsewhere", &|| {
            symlink("..2", at("..data.tmp")).unwrap();
            fs::rename(at("..data.tmp"), at("..data")).unwrap();
        });
        changes("a named file that was missing", &|| fs::write(at("missing"), "").unwrap());
        changes("a content with the old time", &|| {
            let old = fs::metadata(at("secret")).unwrap().modified().unwrap();
            fs::write(at("secret"), "t").unwrap();
            fs::File::options().write(true).open(at("secret")).unwrap().set_modified(old).unwrap();
        });
        changes("the whole folder", &|| {
            fs::rename(at("config"), at("config.old")).unwrap();
            fs::create_dir(at("config")).unwrap();
            fs::write(at("config/a.yaml"), "b").unwrap();
        });
    }

    #[test]
    fn the_folders_of_links_and_those_around_are_watched() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("etc/config/routes")).unwrap();
        fs::create_dir_all(at("releases/5/bin")).unwrap();
        fs::write(at("releases/5/bin/p.wasm"), "").unwrap();
        symlink("releases/5", at("current")).unwrap();
        symlink("round", at("round")).unwrap();
        let named = BTreeSet::from([at("current/bin/p.wasm"), at("round")]);
        let folders = Look::at(&at("etc/config"), &named).folders(&at("etc/config"));
        for expected in ["etc/config", "etc/config/routes", "etc", "current/bin", "current", "releases", ""] {
            let expected = at(expected);
            let expected = expected.components().collect::<PathBuf>();
            assert!(folders.contains(&expected), "{} is not in {folders:#?}", expected.display());
        }
    }
}
