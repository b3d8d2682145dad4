//! The command line as a newcomer meets it: what the help tells, and the exit code and last line of typical mistakes.

use std::fs;

use crate::support::daemon::{millrace, millrace_output};
use crate::support::scratch;

/// Runs `millrace check` in a folder of its own that holds these files; its exit code and what it said on stderr.
fn check(files: &[(&str, &str)], args: &[&str]) -> (Option<i32>, String) {
    let folder = scratch("cli");
    fs::create_dir_all(&folder).expect("a folder");
    for (name, text) in files {
        fs::write(folder.join(name), text).expect("a file");
    }
    let output = millrace(&["check"]).args(args).current_dir(&folder).output().expect("the millrace binary runs");
    fs::remove_dir_all(&folder).expect("it is ours");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

const ROUTES: &str = "
kafka: { bootstrap.servers: \"127.0.0.1:9092\" }
plugins: { drop: { path: drop.wasm } }
routes:
  orders:
    source: { topics: [orders], start: earliest }
    pipeline: [{ plugin: drop }]
    destinations: [{ topic: orders.clean }]
";

#[test]
fn the_help_names_the_variables_and_the_exit_codes() {
    let output = millrace_output(&["--help"]);
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in [
        "run",
        "check",
        "plan",
        "reload",
        "demo",
        "completions",
        "MILLRACE_CONFIG",
        "MILLRACE_LOG",
        "NO_COLOR",
        "Exit codes",
    ] {
        assert!(help.contains(word), "no {word} in:\n{help}");
    }
    assert!(output.status.success());
}

#[test]
fn where_there_is_no_configuration_the_places_that_were_tried_are_named() {
    let (code, said) = check(&[], &[]);
    // (a machine may have one of its own)
    if !std::path::Path::new("/etc/millrace").exists() {
        assert_eq!(code, Some(3), "{said}");
        assert!(said.contains("$MILLRACE_CONFIG") && said.contains("./config"), "{said}");
    }
}

#[test]
fn what_cannot_be_read_is_a_matter_of_the_environment() {
    let (code, said) = check(&[], &["nowhere.yaml"]);
    assert!(said.contains("cannot read nowhere.yaml"), "{said}");
    assert_eq!(code, Some(3), "{said}");

    let (code, said) = check(&[("routes.yaml", ROUTES)], &["routes.yaml"]);
    assert!(said.contains("drop.wasm cannot be read") && said.contains("routes.yaml:3:"), "{said}");
    assert_eq!(code, Some(3), "{said}");
}

#[test]
fn what_is_wrong_is_counted_and_ends_with_2() {
    let (code, said) = check(&[("routes.yaml", "rutes: {}")], &["routes.yaml"]);
    assert!(said.contains("did you mean `routes`?"), "{said}");
    assert!(said.ends_with("problems in the configuration\n"), "{said}");
    assert_eq!(code, Some(2), "{said}");

    let (code, said) = check(&[("routes.yaml", ROUTES), ("drop.wasm", "no module")], &["routes.yaml"]);
    assert!(said.contains("drop.wasm cannot be used") && said.ends_with("1 problem in the configuration\n"), "{said}");
    assert_eq!(code, Some(2), "{said}");
}
