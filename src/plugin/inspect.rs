//! What a plugin's file says about itself, read without compiling it: its world, the interface's version, and its imports,
//! which are the capabilities that it asks for.

use std::borrow::Cow;
use std::fmt;

use wasmparser::{Parser, Payload};

use super::bindings::{LIFECYCLE, PACKAGE, VERSION};
use super::compile::LoadError;
use super::wrap::component_of;
use crate::model::Digest;

/// The largest plugin that is read, bytes; a Python plugin has some 20 MB.
pub const PLUGIN_BYTES_MAX: usize = 256 << 20;

/// The interfaces that are granted to every plugin.
const GRANTED: [&str; 4] = ["types", "input", "output", "log"];

/// What a plugin can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// Keeps or drops records.
    Filter,
    /// Rewrites, drops, splits and routes records.
    Transform,
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Transform => "transform",
        })
    }
}

/// What a plugin's file says about itself.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// By what it imports and exports; none where it is no plugin. A transform that emits nothing looks like, and is, a
    /// filter.
    pub world: Option<World>,
    /// The version of `millrace:plugin` that it was built for, where it names one.
    pub version: Option<String>,
    /// Everything that it imports, by full name.
    pub imports: Vec<String>,
    /// Everything that it exports, by full name.
    pub exports: Vec<String>,
    /// Whether the file is a core module that carries its component type.
    pub core_module: bool,
    /// Bytes of the file.
    pub size: usize,
    /// The digest of the file.
    pub sha256: Digest,
}

/// Reads what a plugin's file says about itself.
///
/// # Errors
/// [`LoadError`]: the bytes are no component and cannot be made one.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, LoadError> {
    read(bytes).map(|(inspection, _)| inspection)
}

/// The inspection, and the component to compile.
pub(super) fn read(bytes: &[u8]) -> Result<(Inspection, Cow<'_, [u8]>), LoadError> {
    if bytes.len() > PLUGIN_BYTES_MAX {
        return Err(LoadError::TooLarge { size: bytes.len(), most: PLUGIN_BYTES_MAX });
    }
    let core_module = Parser::is_core_wasm(bytes);
    let component = if core_module {
        Cow::Owned(component_of(bytes)?)
    } else if Parser::is_component(bytes) {
        Cow::Borrowed(bytes)
    } else {
        return Err(not_wasm(bytes));
    };
    let (imports, exports) = names_of(&component).map_err(|error| LoadError::Invalid(error.to_string()))?;
    let inspection = Inspection {
        world: world_of(&imports, &exports),
        version: imports.iter().chain(&exports).find_map(|name| Some(ours(name)?.1.to_owned())),
        imports,
        exports,
        core_module,
        size: bytes.len(),
        sha256: Digest::of(bytes),
    };
    Ok((inspection, component))
}

impl Inspection {
    /// Whether the host can run it, with nothing but what every plugin is granted.
    pub(super) fn check(&self) -> Result<(), LoadError> {
        check_imports(self.imports.iter().map(String::as_str))?;
        for name in self.imports.iter().chain(&self.exports) {
            if let Some((_, version)) = ours(name)
                && !is_spoken(version)
            {
                return Err(LoadError::Version { found: version.to_owned() });
            }
        }
        if self.world.is_none() {
            let missing = if self.exports.iter().any(|name| name == "process") { LIFECYCLE } else { "process" };
            return Err(LoadError::NotAPlugin { missing });
        }
        Ok(())
    }
}

fn world_of(imports: &[String], exports: &[String]) -> Option<World> {
    let lifecycle = exports.iter().any(|name| ours(name).is_some_and(|(interface, _)| interface == "lifecycle"));
    let process = exports.iter().any(|name| name == "process");
    let output = imports.iter().any(|name| ours(name).is_some_and(|(interface, _)| interface == "output"));
    (lifecycle && process).then_some(if output { World::Transform } else { World::Filter })
}

/// Interface and version of a name of our package.
fn ours(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(PACKAGE)?.strip_prefix('/')?.split_once('@')
}

/// At 0.x a minor version breaks and a patch adds: what a plugin of a later patch asks for beyond this one is found
/// missing when it is linked.
fn is_spoken(version: &str) -> bool {
    let (major, minor, _) = VERSION;
    let mut numbers = version.split('.').map(str::parse::<u64>);
    numbers.next() == Some(Ok(major)) && numbers.next() == Some(Ok(minor)) && matches!(numbers.next(), Some(Ok(_)))
}

fn check_imports<'a>(imports: impl Iterator<Item = &'a str>) -> Result<(), LoadError> {
    let granted = |name: &str| ours(name).is_some_and(|(interface, _)| GRANTED.contains(&interface));
    let refused: Vec<_> = imports.filter(|name| !granted(name)).map(str::to_owned).collect();
    if refused.is_empty() { Ok(()) } else { Err(LoadError::Import { imports: refused }) }
}

/// Names that a component imports and exports itself, not those of what it contains.
fn names_of(component: &[u8]) -> wasmparser::Result<(Vec<String>, Vec<String>)> {
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    exports.push(export?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    // A `use` at the top of a world shows as an import of the type itself, which asks for nothing.
    imports.retain(|name| name.contains(':') || !["batch", "failure", "column"].contains(&name.as_str()));
    Ok((imports, exports))
}

pub(super) fn not_wasm(bytes: &[u8]) -> LoadError {
    let found = match bytes {
        [] => "the file is empty",
        [0x1f, 0x8b, ..] => "it is gzipped: unpack it",
        [b'(', ..] => "it looks like WebAssembly text: translate it with `wasm-tools parse`",
        [0, b'a', b's', b'm', ..] => "it is cut short, or of a WebAssembly version that this host does not know",
        _ => "it does not begin as WebAssembly does",
    };
    LoadError::NotWasm { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_the_same_minor_are_spoken() {
        for (version, spoken) in [("0.1.0", true), ("0.1.7", true), ("0.2.0", false), ("1.1.0", false), ("0.1", false)]
        {
            assert_eq!(is_spoken(version), spoken, "{version}");
        }
    }

    #[test]
    fn anything_but_our_own_interfaces_is_refused_by_name() {
        let imports = ["millrace:plugin/input@0.1.0", "wasi:cli/environment@0.2.6", "millrace:plugin/clock@0.1.0"];
        let Err(LoadError::Import { imports }) = check_imports(imports.into_iter()) else { panic!("accepted") };
        assert_eq!(imports, ["wasi:cli/environment@0.2.6", "millrace:plugin/clock@0.1.0"]);
    }

    #[test]
    fn bytes_that_are_no_plugin_are_told_apart() {
        for (bytes, expected) in [
            (&b""[..], "empty"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"(module)", "text"),
            (b"\0asm", "cut short"),
            (b"x", "begin"),
        ] {
            let error = inspect(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let empty_module = b"\0asm\x01\0\0\0";
        assert!(matches!(inspect(empty_module), Err(LoadError::NoComponentType)));
        let empty_component = b"\0asm\x0d\0\x01\0";
        let inspection = inspect(empty_component).unwrap();
        assert!(matches!(inspection.check(), Err(LoadError::NotAPlugin { missing: "process" })));
    }
}
