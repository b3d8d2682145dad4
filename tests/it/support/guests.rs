//! The built plugins that tests run.

use std::path::PathBuf;

/// The file of a plugin that `make guests` built; a test without its plugin fails.
pub(crate) fn guest_path(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("plugins/dist").join(format!("{name}.wasm"));
    assert!(path.is_file(), "{} is missing: run `make guests`", path.display());
    path
}

/// Its bytes.
pub(crate) fn guest(name: &str) -> Vec<u8> {
    std::fs::read(guest_path(name)).expect("the file was there just now")
}
