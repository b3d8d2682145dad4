//! Makes a component of a core module: embeds the interface's type where the module carries none, and links the adapter
//! (`preview1.wat`) that stands in for WASI and grants nothing. Done at load for modules that carry their type, and by
//! `millrace plugin wrap`.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

use super::bindings::{LIFECYCLE, PACKAGE};
use super::compile::LoadError;
use super::inspect::{self, World};
use super::interface::{INTERFACE, world as interface_world};

/// The module that WASI's functions are imported from, in its version for core modules.
const PREVIEW1: &str = "wasi_snapshot_preview1";

/// Why a core module cannot be made a plugin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// It is a component already.
    #[error("it is a component already, which needs no wrapping")]
    Component,
    /// It carries no component type, and exports nothing to tell its world by.
    #[error(
        "it is no module of a plugin: it does not export `{missing}`. Build it with the bindings that `millrace plugin bindings` \
         writes, as a library (a reactor), not as a program"
    )]
    NotAPlugin {
        /// The export that it lacks.
        missing: String,
    },
    /// It is for another world than asked for.
    #[error("it carries the type of the world `{carried}`, not `{asked}`: leave --world out")]
    OtherWorld {
        /// The world that it carries the type of.
        carried: World,
        /// The one asked for.
        asked: World,
    },
    /// No plugin can be made of it.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Makes a component of a core module, one that this host loads. `world` says which type to embed where the module carries
/// none; by default that of `transform` where it imports `output`, else of `filter`.
///
/// # Errors
/// [`WrapError`]: no core module, not a plugin's, or one that asks for what no plugin is granted.
pub fn wrap(module: &[u8], world: Option<World>) -> Result<Vec<u8>, WrapError> {
    if Parser::is_component(module) {
        return Err(WrapError::Component);
    }
    if !Parser::is_core_wasm(module) {
        return Err(inspect::not_wasm(module).into());
    }
    let facts = core_facts(module).map_err(|error| LoadError::Invalid(error.to_string()))?;
    let component = if facts.component_types.is_empty() {
        component_of(&with_type(module, &facts, world)?)?
    } else {
        component_of(module)?
    };
    let (inspection, _) = inspect::read(&component)?;
    inspection.check()?;
    match (inspection.world, world) {
        (Some(carried), Some(asked)) if carried != asked && !facts.component_types.is_empty() => {
            Err(WrapError::OtherWorld { carried, asked })
        }
        _ => Ok(component),
    }
}

/// The module with the interface's type as a section.
fn with_type(module: &[u8], facts: &CoreFacts<'_>, world: Option<World>) -> Result<Vec<u8>, WrapError> {
    for (export, missing) in [(format!("{LIFECYCLE}@"), LIFECYCLE), ("process".into(), "process")] {
        if !facts.exports.iter().any(|name| name.starts_with(&export)) {
            return Err(WrapError::NotAPlugin { missing: missing.into() });
        }
    }
    let output = format!("{PACKAGE}/output@");
    let found = || if facts.imports_from(&output) { World::Transform } else { World::Filter };
    let (resolve, package) = &*INTERFACE;
    let world = interface_world(resolve, *package, world.unwrap_or_else(found));
    let mut module = module.to_vec();
    embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8)
        .map_err(|error| LoadError::Invalid(format!("{error:#}")))?;
    Ok(module)
}

/// Makes a component of a core module that carries its component type.
///
/// # Errors
/// [`LoadError`]: it carries none, imports what the adapter does not stand in for, or is not sound.
pub(super) fn component_of(module: &[u8]) -> Result<Vec<u8>, LoadError> {
    let facts = core_facts(module).map_err(|error| LoadError::Invalid(error.to_string()))?;
    let wasi = |(from, _): &&(&str, &str)| from.starts_with("wasi") && *from != PREVIEW1;
    let refused: Vec<_> = facts.imports.iter().filter(wasi).map(|(from, name)| format!("{from}/{name}")).collect();
    if !refused.is_empty() {
        return Err(LoadError::Import { imports: refused });
    }
    if facts.component_types.is_empty() {
        return Err(LoadError::NoComponentType);
    }
    // The encoder is made for what compilers write; should something else make it panic, that is the plugin's fault.
    let encoded = catch_unwind(AssertUnwindSafe(|| {
        check_packages(&facts.component_types)?;
        let encode = || {
            let mut encoder = ComponentEncoder::default().validate(true).module(module)?;
            if facts.imports_from(PREVIEW1) {
                encoder = encoder.adapter(PREVIEW1, &ADAPTER)?;
            }
            encoder.encode()
        };
        encode().map_err(|error| format!("{error:#}"))
    }));
    encoded.unwrap_or_else(|_| Err("the component encoder failed on it".into())).map_err(LoadError::Invalid)
}

/// The adapter as a module that carries its own component type: it imports `log`.
static ADAPTER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (resolve, package) = &*INTERFACE;
    let mut resolve = resolve.clone();
    let log = resolve.packages[*package].interfaces["log"];
    let log = resolve.id_of(log).expect("an interface of a package has a name");
    let world = format!("package millrace:adapter; world preview1 {{ import {log}; }}");
    let package = resolve.push_source("preview1.wit", &world).expect("it names nothing but our own interface");
    let world = resolve.select_world(&[package], None).expect("it has one world");
    let mut module = wat::parse_str(include_str!("preview1.wat")).expect("a test assembles our own text");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("the world was made just now");
    module
});

/// The encoder follows packages that depend on each other in a circle until its stack overflows, which no one survives.
/// Looked for over all component types of the module, which it merges by the packages' names.
fn check_packages(component_types: &[&[u8]]) -> Result<(), String> {
    let mut dependencies: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for section in component_types {
        // An older format is another way into the same circle; nothing has written it for years.
        if !Parser::is_component(section) {
            return Err(
                "its component type is in a format that is not supported: build it with a newer wit-bindgen".into()
            );
        }
        let (resolve, _) = wit_parser::decoding::decode_world(section).map_err(|error| format!("{error:#}"))?;
        let name = |id| resolve.packages[id].name.to_string();
        for (id, _) in resolve.packages.iter() {
            dependencies.entry(name(id)).or_default().extend(resolve.package_direct_deps(id).map(name));
        }
    }
    while let Some(free) = dependencies.iter().find(|(_, on)| on.is_empty()).map(|(name, _)| name.clone()) {
        dependencies.remove(&free);
        for on in dependencies.values_mut() {
            on.remove(&free);
        }
    }
    match dependencies.keys().next() {
        Some(package) => Err(format!("the packages of its component type depend on each other in a circle: {package}")),
        None => Ok(()),
    }
}

struct CoreFacts<'m> {
    component_types: Vec<&'m [u8]>,
    /// Module and name of each import.
    imports: Vec<(&'m str, &'m str)>,
    exports: Vec<&'m str>,
}

impl CoreFacts<'_> {
    fn imports_from(&self, prefix: &str) -> bool {
        self.imports.iter().any(|(from, _)| from.starts_with(prefix))
    }
}

fn core_facts(module: &[u8]) -> wasmparser::Result<CoreFacts<'_>> {
    let mut facts = CoreFacts { component_types: Vec::new(), imports: Vec::new(), exports: Vec::new() };
    for payload in Parser::new(0).parse_all(module) {
        match payload? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    facts.imports.push((import.module, import.name));
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    facts.exports.push(export?.name);
                }
            }
            Payload::CustomSection(section) if section.name().starts_with("component-type") => {
                facts.component_types.push(section.data());
            }
            _ => {}
        }
    }
    Ok(facts)
}
