//! Embeds what `millrace plugin new` writes: the templates, the SDK for Rust and the interface. A file that a template's own
//! .gitignore names was built, and is no part of it.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use ignore::WalkBuilder;

/// Below the repository's root; `plugins/Cargo.toml` is the workspace that the SDK's manifests inherit from.
const EMBEDDED: [&str; 4] = ["plugins/templates", "plugins/sdk", "plugins/Cargo.toml", "wit"];

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let mut list = String::from("[\n");
    for embedded in EMBEDDED {
        let walk = WalkBuilder::new(Path::new(&root).join(embedded))
            .hidden(false)
            .parents(false)
            .git_global(false)
            .git_exclude(false)
            .require_git(false)
            .sort_by_file_path(Ord::cmp)
            .build();
        for entry in walk {
            let path = entry.expect("the sources can be read").into_path();
            // Directories are watched one by one through their files: cargo would look into what was built, too.
            if path.is_file() {
                let name = path.strip_prefix(&root).expect("it is below the root").display();
                println!("cargo::rerun-if-changed={name}");
                writeln!(list, "    ({:?}, include_bytes!({path:?})),", name.to_string()).expect("a string takes it");
            }
        }
    }
    list.push(']');
    println!("cargo::rerun-if-changed=build.rs");
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("embedded.rs");
    fs::write(out, list).expect("cargo's directory can be written");
}
