//! What a plugin's file says about itself, read without compiling it: its world, the interface's version, and its imports,
//! which are the capabilities that it asks for.

use std::borrow::Cow;
use std::fmt;

use wasmparser::{Parser, Payload};

use super::bindings::{LIFECYCLE, PACKAGE, VERSION};
use super::compile::LoadError;
use super::fault::printable;
use super::host::wasi;
use super::scan;
use super::wrap::component_of;
use crate::config::settings::Capability;
use crate::model::Digest;

/// The largest plugin that is read, bytes; a Python plugin has some 20 MB.
pub const PLUGIN_BYTES_MAX: usize = 256 << 20;

/// The versions of the interface that this host speaks, for people.
pub fn spoken() -> String {
    let (major, minor, _) = VERSION;
    format!("{major}.{minor}.x")
}

/// The longest version that is told, bytes.
const VERSION_MAX: usize = 64;

/// The interfaces that every plugin has.
const ALWAYS: [&str; 4] = ["types", "input", "output", "log"];

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
    /// What it asks for by that, in the same order.
    pub asks: Vec<Ask>,
    /// Everything that it exports, by full name.
    pub exports: Vec<String>,
    /// Whether the file is a core module that carries its component type.
    pub core_module: bool,
    /// Bytes of the file.
    pub size: usize,
    /// The digest of the file.
    pub sha256: Digest,
}

/// Something that a plugin imports, and what the host makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The import's full name, such as `millrace:plugin/clock@0.1.1`.
    pub import: String,
    /// What the host makes of it.
    pub kind: AskKind,
}

/// What the host makes of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskKind {
    /// Part of the interface that every plugin has: records, outputs, log lines.
    Always,
    /// To be granted by the plugin's `allow`; refused where it is not.
    Capability(Capability),
    /// Of WASI: answered by a stand-in that grants nothing.
    StandIn,
    /// Nobody can grant it: refused.
    Unknown,
}

impl AskKind {
    fn of(import: &str) -> Self {
        let capability = |of: &str| Capability::ALL.into_iter().find(|capability| capability.as_str() == of);
        match ours(import) {
            Some((interface, _)) if ALWAYS.contains(&interface) => Self::Always,
            Some((interface, _)) => capability(interface).map_or(Self::Unknown, Self::Capability),
            None if wasi::stands_in(import) => Self::StandIn,
            None => Self::Unknown,
        }
    }
}

/// Reads what a plugin's file says about itself, in this process: for who looks at one file, and not for the daemon.
///
/// # Errors
/// [`LoadError`]: the bytes are no component and cannot be made one.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, LoadError> {
    let component = component_of_file(bytes)?;
    Inspection::of(bytes, Digest::of(bytes), &component)
}

/// The component to compile, of bytes that nobody has looked at. What that takes is the file's choice.
pub(super) fn component_of_file(bytes: &[u8]) -> Result<Cow<'_, [u8]>, LoadError> {
    let form = Form::of(bytes)?;
    scan::check(bytes)?;
    Ok(match form {
        Form::CoreModule => Cow::Owned(component_of(bytes)?),
        Form::Component => Cow::Borrowed(bytes),
    })
}

/// What a file begins as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A core module, of which a component is to be made.
    CoreModule,
    Component,
}

impl Form {
    /// By the first bytes alone, and the size.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, LoadError> {
        if bytes.len() > PLUGIN_BYTES_MAX {
            return Err(LoadError::TooLarge { size: bytes.len(), most: PLUGIN_BYTES_MAX });
        }
        match (Parser::is_core_wasm(bytes), Parser::is_component(bytes)) {
            (true, _) => Ok(Self::CoreModule),
            (false, true) => Ok(Self::Component),
            (false, false) => Err(not_wasm(bytes)),
        }
    }
}

impl Inspection {
    /// Of a file, and of the component that it is or that was made of it: one that was looked at before, so that there is not too
    /// much of anything in it.
    pub(super) fn of(bytes: &[u8], sha256: Digest, component: &[u8]) -> Result<Self, LoadError> {
        let (imports, exports) = names_of(component).map_err(|error| LoadError::Invalid(error.to_string()))?;
        Ok(Self {
            world: world_of(&imports, &exports),
            version: imports.iter().chain(&exports).find_map(|name| Some(ours(name)?.1.to_owned())),
            asks: imports.iter().map(|import| Ask { import: import.clone(), kind: AskKind::of(import) }).collect(),
            imports,
            exports,
            core_module: Parser::is_core_wasm(bytes),
            size: bytes.len(),
            sha256,
        })
    }

    /// Why this host would not load it, whatever it were granted: imports, version or exports are not those of a plugin.
    pub fn refusal(&self) -> Option<LoadError> {
        self.check().err()
    }

    /// What it imports of this kind, by full name.
    pub fn asks_of(&self, kind: AskKind) -> Vec<&str> {
        self.asks.iter().filter(|ask| ask.kind == kind).map(|ask| ask.import.as_str()).collect()
    }

    /// Whether the host can run it, given the capabilities that it asks for.
    pub(super) fn check(&self) -> Result<(), LoadError> {
        // First the version: what another has beyond this one is unknown for that reason alone.
        check_versions(self.imports.iter().chain(&self.exports).map(String::as_str))?;
        let unknown = self.asks_of(AskKind::Unknown);
        if !unknown.is_empty() {
            return Err(LoadError::import(&unknown));
        }
        if self.world.is_none() {
            let missing = if self.exports.iter().any(|name| name == "process") { LIFECYCLE } else { "process" };
            return Err(LoadError::NotAPlugin { missing: missing.into() });
        }
        Ok(())
    }

    /// The capabilities that it asks for.
    pub fn capabilities(&self) -> impl Iterator<Item = (Capability, &str)> {
        self.asks.iter().filter_map(|ask| match ask.kind {
            AskKind::Capability(capability) => Some((capability, ask.import.as_str())),
            AskKind::Always | AskKind::StandIn | AskKind::Unknown => None,
        })
    }

    /// Whether it asks for nothing beyond what `allow` grants.
    ///
    /// # Errors
    /// [`LoadError::NotGranted`], with what is missing and what to write.
    pub fn granted(&self, allow: &[Capability]) -> Result<(), LoadError> {
        let missing = || self.capabilities().filter(|(capability, _)| !allow.contains(capability));
        if missing().next().is_none() {
            return Ok(());
        }
        let imports = missing().map(|(_, import)| import.to_owned()).collect();
        let mut allow: Vec<_> = allow.iter().copied().chain(missing().map(|(capability, _)| capability)).collect();
        allow.sort_unstable();
        allow.dedup();
        Err(LoadError::NotGranted { imports, allow })
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

/// Refuses names of our package in a version that this host does not speak.
pub(super) fn check_versions<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<(), LoadError> {
    let mut versions = names.into_iter().filter_map(|name| Some(ours(name)?.1));
    match versions.find(|version| !is_spoken(version)) {
        Some(version) => Err(LoadError::Version { found: printable(version, VERSION_MAX) }),
        None => Ok(()),
    }
}

fn is_spoken(version: &str) -> bool {
    patch_of(version).is_some()
}

/// Which patch of the minor version that this host speaks. At 0.x a minor version breaks and a patch adds: what a plugin of a later
/// patch asks for beyond this one is an unknown import, or is found missing when it is linked.
fn patch_of(version: &str) -> Option<u64> {
    let (major, minor, _) = VERSION;
    let mut numbers = version.split('.').map(|number| number.parse::<u64>().ok());
    (numbers.next()? == Some(major) && numbers.next()? == Some(minor)).then_some(())?;
    numbers.next()?
}

/// The patch that a name of our package bears, where this host speaks its version.
pub(super) fn patch_named(name: &str) -> Option<u64> {
    patch_of(ours(name)?.1)
}

/// The version of a name of our package, where this host speaks it but has only an earlier patch.
pub(super) fn later_patch(name: &str) -> Option<&str> {
    let (_, version) = ours(name)?;
    (patch_of(version)? > VERSION.2).then_some(version)
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
    LoadError::NotWasm { found: found.into() }
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

    fn importing(imports: &[&str]) -> Result<(), LoadError> {
        let empty_component = b"\0asm\x0d\0\x01\0";
        let mut inspection = inspect(empty_component).unwrap();
        inspection.imports = imports.iter().map(|import| (*import).to_owned()).collect();
        inspection.asks =
            imports.iter().map(|import| Ask { import: (*import).to_owned(), kind: AskKind::of(import) }).collect();
        inspection.check()
    }

    #[test]
    fn what_only_another_version_has_is_refused_by_the_version_and_not_by_the_import() {
        for imports in [
            &["millrace:plugin/state@0.2.0"][..],
            &["wasi:http/outgoing-handler@0.2.0", "millrace:plugin/state@0.2.0"],
            &["millrace:plugin/files@0.1.1", "millrace:plugin/input@0.2.0"],
        ] {
            assert_eq!(importing(imports), Err(LoadError::Version { found: "0.2.0".into() }), "{imports:?}");
        }
    }

    #[test]
    fn what_a_later_patch_has_is_refused_with_the_hint_that_a_later_millrace_may_have_it() {
        let (major, minor, patch) = VERSION;
        let later = format!("{major}.{minor}.{}", patch + 1);
        let words = format!(
            "it was built for millrace:plugin@{later}, and this host has {major}.{minor}.{patch}: a later version of \
             millrace may have it"
        );
        for (imports, is_later) in [
            (&[&*format!("millrace:plugin/state@{later}")][..], true),
            (&["wasi:http/outgoing-handler@0.2.0", &format!("millrace:plugin/state@{later}")], true),
            (&["millrace:plugin/state@0.1.0"], false),
            (&["wasi:http/outgoing-handler@0.2.0"], false),
        ] {
            let error = importing(imports).unwrap_err();
            assert!(matches!(error, LoadError::Import { .. }), "{error}");
            assert_eq!(error.to_string().contains(&words), is_later, "{error}");
        }
    }

    #[test]
    fn an_import_is_ours_a_capability_stood_in_for_or_unknown() {
        for (import, kind) in [
            ("millrace:plugin/input@0.1.0", AskKind::Always),
            ("millrace:plugin/clock@0.1.1", AskKind::Capability(Capability::Clock)),
            ("millrace:plugin/files@0.1.1", AskKind::Unknown),
            ("wasi:cli/environment@0.2.6", AskKind::StandIn),
            ("wasi:sockets/tcp@0.2.0", AskKind::StandIn),
            ("wasi:http/outgoing-handler@0.2.6", AskKind::Unknown),
            ("wasi:cli/environment@0.3.0", AskKind::Unknown),
            ("wasi:cli/environment", AskKind::Unknown),
            ("other:clock/clock@0.1.1", AskKind::Unknown),
        ] {
            assert_eq!(AskKind::of(import), kind, "{import}");
        }
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
        assert_eq!(inspection.check(), Err(LoadError::NotAPlugin { missing: "process".into() }));
    }
}
