//! What an operator reads about a configuration that is wrong, as snapshots; and that one that is right is taken.

use std::fs;
use std::path::{Path, PathBuf};

use millrace::config::{Loaded, Problems, load};

/// The only variables that the fixtures see.
fn env(name: &str) -> Option<String> {
    match name {
        "NUMBER" => Some("12".into()),
        "WORD" => Some("word".into()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

/// Relative to the package, which is where tests run: so the snapshots read alike on every machine.
fn fixtures(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new("tests/it/fixtures").join(folder);
    let mut found: Vec<PathBuf> = fs::read_dir(&folder).expect("the fixtures").map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn accepted(path: &Path) -> Loaded {
    load(path, &env).unwrap_or_else(|problems| panic!("{} is refused:\n{problems}", path.display()))
}

fn rejected(path: &Path) -> Problems {
    load(path, &env).map(|_| ()).expect_err(&format!("{} is accepted", path.display()))
}

#[test]
fn a_configuration_that_is_wrong_is_refused_with_every_problem_and_its_place() {
    let fixtures = fixtures("rejected");
    assert!(fixtures.len() >= 45, "only {} fixtures", fixtures.len());
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots/config_problems");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let _bound = settings.bind_to_scope();
    for path in fixtures {
        let problems = rejected(&path);
        assert!(problems.has_errors());
        for problem in problems.iter().filter(|problem| problem.place().is_some()) {
            let place = problem.place().expect("filtered").to_string();
            assert!(problems.to_string().contains(&place), "{place} is not shown");
        }
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        insta::assert_snapshot!(name, problems.to_string());
    }
}
