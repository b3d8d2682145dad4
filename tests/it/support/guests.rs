//! The built plugins that tests run.

use std::path::PathBuf;

use millrace::plugin::{Engine, EngineOptions, Slots};

/// As many as a test needs: there are many engines in this process, which share its addresses.
const SLOTS: Slots = Slots { memories: 256, tables: 1_024 };

/// An engine, whose plugins the real binary compiles, as it does for itself.
pub(crate) fn engine(cache_dir: Option<PathBuf>) -> Engine {
    engine_with(cache_dir, SLOTS)
}

/// As [`engine`], with room for so much.
pub(crate) fn engine_with(cache_dir: Option<PathBuf>, slots: Slots) -> Engine {
    let compiler = Some(env!("CARGO_BIN_EXE_millrace").into());
    let options = EngineOptions { cache_dir, compiler, slots: Some(slots) };
    let engine = Engine::new(options).expect("an engine");
    assert_eq!(engine.slots(), Some(slots), "its instances are pooled");
    engine
}

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

/// The same plugin as another file: with a section more, which nothing reads.
pub(crate) fn guest_variant(name: &str, variant: &str) -> Vec<u8> {
    let mut bytes = guest(name);
    let section = "variant";
    let length = u8::try_from(1 + section.len() + variant.len()).ok().filter(|length| *length < 128);
    // A custom section: its id, its length (below 128 one byte of LEB128), its name after its length, its content.
    bytes.extend([0, length.expect("a short name"), section.len() as u8]);
    bytes.extend(section.bytes().chain(variant.bytes()));
    bytes
}
