//! The interface's own text, carried in the binary: what a module's component type is made of where it brings none, and what
//! the adapter for WASI imports.

use wit_parser::{Resolve, SourceMap, WorldId};

use super::bindings::{PACKAGE, VERSION};

/// The files of `wit/`: name and text.
const FILES: &[(&str, &str)] = &[
    ("clock.wit", include_str!("../../wit/clock.wit")),
    ("host-log.wit", include_str!("../../wit/host-log.wit")),
    ("metrics.wit", include_str!("../../wit/metrics.wit")),
    ("output.wit", include_str!("../../wit/output.wit")),
    ("random.wit", include_str!("../../wit/random.wit")),
    ("types.wit", include_str!("../../wit/types.wit")),
    ("worlds.wit", include_str!("../../wit/worlds.wit")),
];

/// The version with this patch.
fn version(patch: u64) -> String {
    let (major, minor, _) = VERSION;
    format!("{major}.{minor}.{patch}")
}

/// Under the name of this patch: an earlier one has less, a later one more, and what both have is the same.
fn interface(patch: u64) -> Resolve {
    let (own, named) = (format!("@{}", version(VERSION.2)), format!("@{}", version(patch)));
    let mut sources = SourceMap::new();
    for (name, text) in FILES {
        sources.push_str(name, text.replace(&own, &named));
    }
    let group = sources.parse().map_err(|(_, error)| error).expect("a test parses our own interface");
    let mut resolve = Resolve::default();
    resolve.push_group(group).expect("our own interface names nothing but itself");
    resolve
}

/// The full name of an interface or world, such as `millrace:plugin/log@0.1.1`.
pub(super) fn name(of: &str) -> String {
    name_in(VERSION.2, of)
}

/// As [`name`], in this patch.
pub(super) fn name_in(patch: u64, of: &str) -> String {
    format!("{PACKAGE}/{of}@{}", version(patch))
}

/// The interface in this patch, and one world more, which holds `items`, in a package of this name: a module and its adapter need two.
///
/// # Errors
/// The items name what is not in the interface.
pub(super) fn with_world(patch: u64, package: &str, items: &str) -> Result<(Resolve, WorldId), String> {
    let mut resolve = interface(patch);
    let text = format!("package millrace:{package}; world plugin {{ {items} }}");
    let world = resolve.push_source("plugin.wit", &text).and_then(|package| resolve.select_world(&[package], None));
    world.map(|world| (resolve, world)).map_err(|error| format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_interface_is_carried_and_parses() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("wit");
        let mut there: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        there.sort();
        assert_eq!(there, FILES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        for patch in [VERSION.2, 0, VERSION.2 + 1] {
            with_world(patch, "host", &format!("include {};", name_in(patch, "transform"))).unwrap();
            assert!(with_world(patch, "host", &format!("import {};", name_in(patch, "files"))).is_err());
        }
    }
}
