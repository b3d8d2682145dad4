//! The interface's own text, carried in the binary: what a module's component type is made of where it brings none, and what
//! bindings are generated from.

use std::sync::LazyLock;

use wit_parser::{PackageId, Resolve, SourceMap, WorldId};

use super::inspect::World;

/// The files of `wit/`: name and text.
pub const INTERFACE_FILES: &[(&str, &str)] = &[
    ("host-log.wit", include_str!("../../wit/host-log.wit")),
    ("output.wit", include_str!("../../wit/output.wit")),
    ("types.wit", include_str!("../../wit/types.wit")),
    ("worlds.wit", include_str!("../../wit/worlds.wit")),
];

/// The interface, parsed.
pub(super) static INTERFACE: LazyLock<(Resolve, PackageId)> = LazyLock::new(|| {
    let mut sources = SourceMap::new();
    for (name, text) in INTERFACE_FILES {
        sources.push_str(name, *text);
    }
    let group = sources.parse().map_err(|(_, error)| error).expect("a test parses our own interface");
    let mut resolve = Resolve::default();
    let package = resolve.push_group(group).expect("our own interface names nothing but itself");
    (resolve, package)
});

/// One of the interface's worlds.
pub(super) fn world(resolve: &Resolve, package: PackageId, world: World) -> WorldId {
    resolve.select_world(&[package], Some(&world.to_string())).expect("both worlds are in the interface")
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
        assert_eq!(there, INTERFACE_FILES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        let (resolve, package) = &*INTERFACE;
        for each in [World::Filter, World::Transform] {
            assert_eq!(resolve.worlds[world(resolve, *package, each)].name, each.to_string());
        }
    }
}
