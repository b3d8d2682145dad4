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
    let mut found: Vec<PathBuf> =
        fs::read_dir(&folder).expect("the fixtures").map(|entry| entry.unwrap().path()).collect();
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

/// One slip in a configuration that is right, over and over: each row of the file is what stands there, and what is written
/// instead (`\n` is a line's end).
#[test]
fn each_of_many_slips_is_told_at_its_place_with_what_to_write_instead() {
    let folder = Path::new("tests/it/fixtures/mistakes");
    let right = fs::read_to_string(folder.join("right.yaml")).expect("the fixture");
    accepted(&folder.join("right.yaml"));
    let slips = fs::read_to_string(folder.join("mistakes.txt")).expect("the fixture");
    let scratch = crate::support::scratch("slips");
    fs::create_dir_all(&scratch).expect("a folder for it");
    let file = scratch.join("millrace.yaml");
    let (mut told, mut count) = (String::new(), 0);
    for slip in slips.lines() {
        let (is, becomes) = slip.split_once(" =>").unwrap_or_else(|| panic!("a row has an arrow: {slip}"));
        let [is, becomes] = [is, becomes.strip_prefix(' ').unwrap_or(becomes)].map(|text| text.replace("\\n", "\n"));
        assert!(right.contains(&is), "{slip}: it does not stand there");
        fs::write(&file, right.replacen(&is, &becomes, 1)).expect("written");
        let problems = load(&file, &env).map(|_| ()).expect_err(&format!("{slip}: it is accepted"));
        assert!(problems.has_errors(), "{slip}");
        let problems = problems.to_string().replace(&format!("{}/", scratch.display()), "");
        told.push_str(&format!("{}\n{slip}\n\n{problems}\n\n", "=".repeat(80)));
        count += 1;
    }
    fs::remove_dir_all(scratch).expect("it is ours");
    let whole = fixtures("rejected").len();
    assert!(count + whole >= 150, "only {count} slips and {whole} fixtures");
    insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("config_slips", told);
    });
}

#[test]
fn a_configuration_that_is_right_is_taken_without_a_word() {
    for path in fixtures("accepted") {
        let loaded = accepted(&path);
        assert!(loaded.warnings.is_empty() || path.ends_with("everything.yaml"), "{}", loaded.warnings);
        assert!(!loaded.settings.routes.is_empty());
    }
}

#[test]
fn every_key_means_what_is_written() {
    let loaded = accepted(Path::new("tests/it/fixtures/accepted/everything.yaml"));
    assert_eq!(loaded.tests.len(), 1);
    insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("config_everything", format!("{:#?}", loaded.settings));
    });
}

#[test]
fn what_is_not_written_has_its_default() {
    let loaded = accepted(Path::new("tests/it/fixtures/accepted/smallest.yaml"));
    insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("config_smallest", format!("{:#?}", loaded.settings));
    });
}

#[test]
fn the_example_configuration_is_right() {
    let loaded = accepted(Path::new("config"));
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let routes: Vec<&str> = loaded.settings.routes.keys().map(|name| name.as_str()).collect();
    assert_eq!(routes, ["earthquakes", "public-feed"]);
    assert_eq!(loaded.files.len(), 3);
    assert_eq!(loaded.tests.len(), 5);
}

#[test]
fn what_cannot_be_read_is_told_apart_from_what_is_wrong() {
    assert!(rejected(Path::new("tests/it/fixtures/nowhere")).only_unreadable());
    assert!(rejected(Path::new("tests/it/fixtures/rejected/unreadable-secret.yaml")).only_unreadable());
    assert!(!rejected(Path::new("tests/it/fixtures/rejected/unknown-plugin.yaml")).only_unreadable());
}
