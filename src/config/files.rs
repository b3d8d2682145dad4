//! Which files make up a configuration, and their bytes. Knows nothing about what is in them but that it is text.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::problem::{Problem, Problems, UNREADABLE};
use super::source::{Place, SourceFile};

/// A file that was read.
pub(super) struct ReadFile {
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
}

/// No one writes more by hand, and a generator can write several files.
const LONGEST_FILE: u64 = 8 << 20;
const FILES_MOST: usize = 10_000;
const DEEPEST_FOLDER: usize = 16;

/// Reads a file, or every `*.yaml` and `*.yml` in a directory and below. In a fixed order, whatever the file system's.
pub(super) fn read(path: &Path, problems: &mut Problems) -> Vec<ReadFile> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            let problem = Problem::new(format!("cannot read {}: {error}", path.display())).code(UNREADABLE);
            problems.push(problem.help("give a YAML file, or a directory of them"));
            return Vec::new();
        }
    };
    if !metadata.is_dir() {
        // Whatever was named is read, a pipe too.
        return read_file(path, problems).into_iter().collect();
    }
    let mut found = Survey::default();
    walk(path, &mut Vec::new(), &mut found, problems);
    found.files.sort();
    if found.files.is_empty() && problems.is_empty() {
        let problem = Problem::new(format!("there is no *.yaml or *.yml file in {}", path.display()));
        problems.push(problem.code("no_files"));
    }
    found.files.iter().filter_map(|path| read_file(path, problems)).collect()
}

/// Where the YAML of a configuration lies, for who looks whether it has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// The files that would be read.
    pub files: Vec<PathBuf>,
    /// The folders that were looked into for them.
    pub folders: Vec<PathBuf>,
}

/// Looks which files make up a configuration, without reading them. What cannot be looked into is left out.
pub fn survey(path: &Path) -> Survey {
    let mut found = Survey::default();
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => walk(path, &mut Vec::new(), &mut found, &mut Problems::new()),
        Ok(_) | Err(_) => found.files.push(path.to_owned()),
    }
    found
}

/// Follows symbolic links, since a Kubernetes ConfigMap shows each file as one, into a folder whose name begins with a
/// dot; but not round in circles: `above` are the real paths of the folders that this one is in.
fn walk(folder: &Path, above: &mut Vec<PathBuf>, found: &mut Survey, problems: &mut Problems) {
    found.folders.push(folder.to_owned());
    let listed = fs::canonicalize(folder).and_then(|real| Ok((real, list(folder)?)));
    let (real, entries) = match listed {
        Ok(listed) => listed,
        Err(error) => {
            problems.push(unreadable(folder, &error));
            return;
        }
    };
    if above.contains(&real) || above.len() >= DEEPEST_FOLDER {
        let message = format!("{} leads back into itself, or lies too deep", folder.display());
        problems.push(Problem::new(message).code(UNREADABLE));
        return;
    }
    above.push(real);
    for (path, metadata) in entries {
        if metadata.is_dir() {
            walk(&path, above, found, problems);
        } else if !metadata.is_file() {
            let message = format!("{} is neither a file nor a directory", path.display());
            problems.push(Problem::new(message).code(UNREADABLE));
        } else if found.files.len() < FILES_MOST {
            found.files.push(path);
        } else {
            problems.push(Problem::new(format!("there are more than {FILES_MOST} files")).code("too_many_files"));
            break;
        }
    }
    above.pop();
}

/// What a folder holds that is not hidden: folders, and what is named as YAML.
fn list(folder: &Path) -> io::Result<Vec<(PathBuf, Metadata)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        let named_as_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() || named_as_yaml => entries.push((path, metadata)),
            Ok(_) => {}
            Err(error) if named_as_yaml => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
            }
            Err(_) => {}
        }
    }
    Ok(entries)
}

fn read_file(path: &Path, problems: &mut Problems) -> Option<ReadFile> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST_FILE + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => {
            problems.push(unreadable(path, &error));
            None
        }
        Ok(_) if bytes.len() as u64 > LONGEST_FILE => {
            let message = format!("{} is longer than {} MiB", path.display(), LONGEST_FILE >> 20);
            problems.push(Problem::new(message).code("too_large").help("spread it over several files"));
            None
        }
        Ok(_) => Some(ReadFile { path: path.to_owned(), bytes }),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem::new(format!("cannot read {}: {error}", path.display())).code(UNREADABLE)
}

/// The file's text, without a byte order mark.
pub(super) fn as_text(file: ReadFile, problems: &mut Problems) -> Option<std::sync::Arc<SourceFile>> {
    match String::from_utf8(file.bytes) {
        Ok(text) => {
            let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
            Some(SourceFile::new(file.path, text))
        }
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let source = SourceFile::new(file.path, text);
            let place = Place::new(&source, at..at + char::REPLACEMENT_CHARACTER.len_utf8());
            let problem = Problem::at(&place, "this is not UTF-8").code("not_utf8");
            problems.push(problem.help("save the file as UTF-8, without NUL bytes"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> (Vec<String>, Problems) {
        let mut problems = Problems::new();
        let files = read(folder, &mut problems);
        let name = |file: &ReadFile| file.path.strip_prefix(folder).unwrap().display().to_string();
        (files.iter().map(name).collect(), problems)
    }

    #[test]
    fn a_directory_is_read_below_and_without_hidden_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["b.yaml", "a.yml", "routes/c.yaml", ".hidden.yaml", ".git/d.yaml", "notes.txt", "routes/deep/e.yaml"]
        {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let (found, problems) = names(folder.path());
        assert_eq!(found, ["a.yml", "b.yaml", "routes/c.yaml", "routes/deep/e.yaml"]);
        assert!(problems.is_empty(), "{problems}");
    }

    #[cfg(unix)]
    #[test]
    fn a_config_map_is_read_through_its_symbolic_links_and_once() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("..2026_08_01")).unwrap();
        fs::write(at("..2026_08_01/millrace.yaml"), "log: {}\n").unwrap();
        symlink("..2026_08_01", at("..data")).unwrap();
        symlink("..data/millrace.yaml", at("millrace.yaml")).unwrap();
        assert_eq!(names(folder.path()).0, ["millrace.yaml"]);

        symlink(".", at("round")).unwrap();
        let (found, problems) = names(folder.path());
        assert_eq!(found, ["millrace.yaml"]);
        assert!(problems.to_string().contains("leads back into itself"), "{problems}");
    }

    #[test]
    fn what_cannot_be_read_is_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        assert!(names(folder.path()).1.to_string().contains("no *.yaml"));
        let (_, problems) = names(&folder.path().join("missing"));
        assert!(problems.only_unreadable(), "{problems}");
        let mut problems = Problems::new();
        let bytes = b"a: b\nc: \xff\xfe\n".to_vec();
        assert!(as_text(ReadFile { path: "x.yaml".into(), bytes }, &mut problems).is_none());
        assert!(problems.to_string().contains("x.yaml:2:4"), "{problems}");
    }
}
