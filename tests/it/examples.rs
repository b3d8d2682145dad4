//! The cookbook: every file of `examples/` is a configuration without a warning, whose tests pass.

use std::fs;

use crate::support::daemon::millrace;
use crate::support::root;

#[test]
fn every_recipe_of_the_cookbook_passes_its_tests() {
    let index = fs::read_to_string(root().join("examples/README.md")).expect("the index");
    let mut recipes = 0;
    for entry in fs::read_dir(root().join("examples")).expect("the cookbook") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(index.contains(&format!("({name})")), "examples/README.md does not tell of {name}");
        let output = millrace(&["test"]).arg(&path).output().expect("the millrace binary runs");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{name}:\n{said}");
        assert!(said.contains("ok "), "{name} has no tests:\n{said}");
        let output = millrace(&["check"]).arg(&path).output().expect("the millrace binary runs");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        recipes += 1;
    }
    assert!(recipes >= 9, "only {recipes} recipes");
}
