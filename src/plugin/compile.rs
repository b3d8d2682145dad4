//! From a plugin's bytes to machine code, through the cache on disk.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};
use wasmtime::component::{Component, ComponentExportIndex, InstancePre};
use wasmtime::{AsContextMut, Store};

use super::bindings::VERSION;
use super::cache::Cache;
use super::engine::Engine;
use super::fault::printable;
use super::host::wasi;
use super::inspect::{Form, Inspection, World, later_patch};
use super::lines::Lines;
use super::mapped;
use super::pool::Slots;
use super::sandbox::{Functions, Prepare, Prepared, State};
use crate::config::settings::Capability;
use crate::model::{Digest, PluginName};

/// Why a plugin cannot be used. The bearer knows its name and file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum LoadError {
    /// Larger than any plugin.
    #[error("it has {size} bytes, more than the {most} that a plugin may have")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The most.
        most: usize,
    },
    /// So much in it, or so intricate, that it is not compiled.
    #[error(
        "it has {found} {what}, more than the {most} that a plugin may have: to compile it could take minutes, or fill the memory"
    )]
    TooMuch {
        /// What there is too much of.
        what: Cow<'static, str>,
        /// How much.
        found: u64,
        /// The most.
        most: u64,
    },
    /// What the compiler may take was not enough.
    #[error(
        "to compile it takes more than {most}: make its largest functions smaller, above all those with many variables, loops and \
         branches"
    )]
    TooCostly {
        /// Of what, and how much.
        most: String,
    },
    /// Not WebAssembly.
    #[error("not a WebAssembly component: {found}")]
    NotWasm {
        /// What it is instead.
        found: Cow<'static, str>,
    },
    /// A core module without a component type.
    #[error(
        "a core module that does not carry its component type: make a component of it with `millrace plugin wrap`, or \
         build it with the plugin SDK"
    )]
    NoComponentType,
    /// Broken, cut short, or using what this host does not support.
    #[error("not a valid WebAssembly component: {0}")]
    Invalid(String),
    /// Imports what no plugin is granted.
    #[error("{}", refused_imports(imports, *more))]
    Import {
        /// What it imports beyond what is granted: the first, as they are told.
        imports: Vec<String>,
        /// How many more.
        more: usize,
    },
    /// Asks for capabilities that its `allow` does not grant.
    #[serde(skip)]
    #[error("it imports {}, which it is not granted: write `allow: [{}]` at the plugin", told(imports), list(allow))]
    NotGranted {
        /// What it imports beyond what is granted.
        imports: Vec<String>,
        /// What its `allow` would have to hold.
        allow: Vec<Capability>,
    },
    /// Built for another version of the interface.
    #[error(
        "built for millrace:plugin@{found}, while this host speaks {}.{}.x: build it again with a matching SDK",
        VERSION.0, VERSION.1
    )]
    Version {
        /// The version it was built for.
        found: String,
    },
    /// A component, but no plugin.
    #[error(
        "not a plugin: it does not export `{missing}`, as the worlds `filter` and `transform` of millrace:plugin do"
    )]
    NotAPlugin {
        /// The export that it lacks.
        missing: Cow<'static, str>,
    },
    /// Its imports or exports are not what the interface says.
    #[error(
        "does not fit the interface millrace:plugin@{}.{}.{}{}: {message}",
        VERSION.0, VERSION.1, VERSION.2,
        built_for.as_ref().map(|version| format!(" (it was built for {version})")).unwrap_or_default()
    )]
    Interface {
        /// What does not fit.
        message: String,
        /// The version it was built for.
        built_for: Option<String>,
    },
    /// Not the bytes that the configuration pins.
    #[serde(skip)]
    #[error("its SHA-256 is {found}, not the {expected} that `sha256` asks for")]
    Digest {
        /// The pin.
        expected: Digest,
        /// The bytes' own.
        found: Digest,
    },
    /// Could not be instantiated or configured: the fault `not_ready`.
    #[error("not ready: {0}")]
    NotReady(String),
    /// The host itself lacks something.
    #[error("the plugin engine cannot be started: {0}")]
    Engine(String),
}

impl LoadError {
    /// It imports these, which nobody can grant.
    pub(super) fn import(names: &[impl AsRef<str>]) -> Self {
        let (imports, more) = some_of(names);
        Self::Import { imports, more }
    }

    /// Whether a file that is not yet written to its end could be the reason.
    pub fn may_be_unfinished(&self) -> bool {
        match self {
            Self::NotWasm { .. }
            | Self::NoComponentType
            | Self::Invalid(_)
            | Self::NotAPlugin { .. }
            | Self::Digest { .. } => true,
            Self::TooLarge { .. }
            | Self::TooMuch { .. }
            | Self::TooCostly { .. }
            | Self::Import { .. }
            | Self::NotGranted { .. }
            | Self::Version { .. }
            | Self::Interface { .. }
            | Self::NotReady(_)
            | Self::Engine(_) => false,
        }
    }
}

fn list(capabilities: &[Capability]) -> String {
    capabilities.iter().map(|capability| capability.as_str()).collect::<Vec<_>>().join(", ")
}

/// The most names that one sentence lists, and the most bytes of each: a stranger's plugin may have a hundred thousand.
const NAMES_MAX: usize = 10;
const NAME_MAX: usize = 200;

fn some_of(names: &[impl AsRef<str>]) -> (Vec<String>, usize) {
    let some = names.iter().take(NAMES_MAX).map(|name| printable(name.as_ref(), NAME_MAX)).collect();
    (some, names.len().saturating_sub(NAMES_MAX))
}

fn in_words(names: &[String], more: usize) -> String {
    let more = (more > 0).then(|| format!("and {more} more"));
    names.iter().cloned().chain(more).collect::<Vec<_>>().join(", ")
}

fn told(names: &[String]) -> String {
    let (some, more) = some_of(names);
    in_words(&some, more)
}

fn refused_imports(imports: &[String], more: usize) -> String {
    let names = in_words(imports, more);
    if imports.iter().any(|name| name.starts_with("wasi_")) {
        return format!(
            "asks for what no plugin is granted: {names}. Of WASI for core modules this host stands in for \
             wasi_snapshot_preview1 only: build it for that (wasm32-wasip1), without WASI, or as a component"
        );
    }
    let later = imports.iter().find_map(|name| later_patch(name)).map(later_may_have_it).unwrap_or_default();
    format!(
        "asks for what no plugin is granted: {names}. {later}This host has types, input, output and log of millrace:plugin; \
         grants {} by `allow`; and has stand-ins for {} of WASI {}",
        list(&Capability::ALL),
        wasi::PACKAGES.join(", "),
        wasi::VERSIONS,
    )
}

fn later_may_have_it(version: &str) -> String {
    let (major, minor, patch) = VERSION;
    format!(
        "it was built for millrace:plugin@{version}, and this host has {major}.{minor}.{patch}: a later version of millrace may \
         have it. "
    )
}

/// A plugin's machine code, linked to the host; cheap to clone.
#[derive(Clone)]
pub struct Compiled(Arc<Inner>);

pub(super) struct Inner {
    engine: Engine,
    inspection: Inspection,
    world: World,
    pre: InstancePre<State>,
    process: ComponentExportIndex,
    configure: ComponentExportIndex,
    shutdown: ComponentExportIndex,
    lines: Lines,
}

impl Engine {
    /// Compiles a plugin, or finds it: among those that are in use, else in the cache. `plugin` is for the log only.
    ///
    /// # Errors
    /// [`LoadError`]: the bytes are no plugin, or ask for what is not granted.
    pub fn compile(&self, plugin: &PluginName, bytes: &[u8]) -> Result<Compiled, LoadError> {
        self.compile_pinned(plugin, bytes, None)
    }

    /// As [`Engine::compile`], of bytes that must have this digest where one is pinned.
    ///
    /// # Errors
    /// [`LoadError`]: also where the digest is another.
    pub fn compile_pinned(
        &self,
        plugin: &PluginName,
        bytes: &[u8],
        pin: Option<&Digest>,
    ) -> Result<Compiled, LoadError> {
        let sha256 = Digest::of(bytes);
        check_pin(&sha256, pin)?;
        if let Some(in_use) = self.in_use().get(&sha256).and_then(Weak::upgrade) {
            return Ok(Compiled(in_use));
        }
        let form = Form::of(bytes)?;
        let cached = self.cache().and_then(|cache| Machine::cached(&cache, self.wasmtime(), &sha256, form));
        let machine = match cached {
            Some(machine) => machine,
            None => self.compile_anew(plugin, &sha256, bytes, form)?,
        };
        let component = machine.made.as_deref().unwrap_or(bytes);
        let inspection = Inspection::of(bytes, sha256, component)?;
        inspection.check()?;
        let compiled = Compiled::link(self, machine.code, inspection, Lines::of(component))?;
        let mut in_use = self.in_use();
        in_use.retain(|_, plugin| plugin.strong_count() > 0);
        in_use.insert(sha256, Arc::downgrade(&compiled.0));
        Ok(compiled)
    }

    fn compile_anew(
        &self,
        plugin: &PluginName,
        sha256: &Digest,
        bytes: &[u8],
        form: Form,
    ) -> Result<Machine, LoadError> {
        let output = self.compiler().compile(bytes)?;
        let unreadable = |error: io::Error| LoadError::Engine(format!("what was compiled cannot be read: {error}"));
        let made = (form == Form::CoreModule).then(|| output.component()).transpose().map_err(unreadable)?;
        let kept = self.cache().and_then(|cache| {
            let kept = made.as_ref().map_or(Ok(()), |made| cache.store_component(made, sha256));
            let kept = kept.and_then(|()| cache.store(&output.code, sha256));
            kept.inspect_err(|error| {
                tracing::warn!(%plugin, "the compiled plugin could not be kept in the cache, it will be compiled again: {error}");
            }).ok()
        });
        // What lies in a file takes no memory that could not be had back; that the file cannot be mapped is no reason to fail.
        let mapped = kept.and_then(|file| mapped::component(self.wasmtime(), &file).ok());
        let code = mapped.map_or_else(|| mapped::component(self.wasmtime(), &output.code), Ok);
        let code = code.map_err(|error| match error.is::<io::Error>() {
            true => LoadError::Engine(format!("machine code cannot be mapped: {error:#}")),
            // (an instance of it would not fit into what any instance may have)
            false => LoadError::Invalid(format!("{error:#}")),
        })?;
        Ok(Machine { code, made })
    }
}

/// What runs.
struct Machine {
    code: Component,
    /// The component that was made of a core module, which the code is of.
    made: Option<Vec<u8>>,
}

impl Machine {
    fn cached(cache: &Cache, engine: &wasmtime::Engine, sha256: &Digest, form: Form) -> Option<Self> {
        let made = match form {
            Form::Component => None,
            Form::CoreModule => Some(cache.load_component(sha256)?),
        };
        Some(Self { code: cache.load(engine, sha256)?, made })
    }
}

fn check_pin(found: &Digest, pin: Option<&Digest>) -> Result<(), LoadError> {
    match pin.filter(|expected| *expected != found) {
        Some(expected) => Err(LoadError::Digest { expected: *expected, found: *found }),
        None => Ok(()),
    }
}

impl Compiled {
    /// This, if its bytes have the digest that is pinned, where one is.
    ///
    /// # Errors
    /// [`LoadError::Digest`].
    pub fn pinned(self, pin: Option<&Digest>) -> Result<Self, LoadError> {
        check_pin(self.sha256(), pin)?;
        Ok(self)
    }

    fn link(engine: &Engine, component: Component, inspection: Inspection, lines: Lines) -> Result<Self, LoadError> {
        let does_not_fit = |message: String| {
            let built_for = inspection.version.clone();
            LoadError::Interface { message, built_for }
        };
        let unfit = |error: wasmtime::Error| does_not_fit(format!("{error:#}"));
        let linker = wasi::define(engine, &component).map_err(unfit)?;
        let pre = linker.instantiate_pre(&component).map_err(unfit)?;
        let export = |within: Option<&ComponentExportIndex>, name: &str| {
            component.get_export_index(within, name).ok_or_else(|| does_not_fit(format!("it does not export `{name}`")))
        };
        let process = export(None, "process")?;
        let lifecycle = inspection.exports.iter().find(|name| name.starts_with(super::bindings::LIFECYCLE));
        let lifecycle = export(None, lifecycle.map_or(super::bindings::LIFECYCLE, String::as_str))?;
        let configure = export(Some(&lifecycle), "configure")?;
        let shutdown = export(Some(&lifecycle), "shutdown")?;
        let world = inspection.world.ok_or(LoadError::NotAPlugin { missing: "process".into() })?;
        let engine = engine.clone();
        Ok(Self(Arc::new(Inner { engine, inspection, world, pre, process, configure, shutdown, lines })))
    }

    /// The digest of the plugin's bytes.
    pub fn sha256(&self) -> &Digest {
        &self.0.inspection.sha256
    }

    /// What the file says about itself.
    pub fn inspection(&self) -> &Inspection {
        &self.0.inspection
    }

    /// What the plugin can do.
    pub fn world(&self) -> World {
        self.0.world
    }

    /// Instantiates and configures the plugin once, to prove that it works; keeps nothing of that instance.
    ///
    /// # Errors
    /// [`LoadError::NotGranted`]: it asks for more than `with.allow`. [`LoadError::NotReady`]: the plugin failed to start,
    /// or refuses its configuration.
    pub fn prepare(&self, with: Prepare) -> Result<Prepared, LoadError> {
        self.inspection().granted(&with.allow)?;
        Prepared::new(self.clone(), with)
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// What one instance takes.
    pub(super) fn slots(&self) -> Slots {
        // (none are told of a component that imports modules, which no plugin may)
        let needed = self.0.pre.component().resources_required();
        needed.map_or(Slots::NONE, |needed| Slots { memories: needed.num_memories, tables: needed.num_tables })
    }

    pub(super) fn lines(&self) -> &Lines {
        &self.0.lines
    }

    pub(super) fn instantiate(&self, store: &mut Store<State>) -> wasmtime::Result<Functions> {
        let Inner { pre, process, configure, shutdown, .. } = &*self.0;
        let instance = pre.instantiate(store.as_context_mut())?;
        Ok(Functions {
            process: instance.get_typed_func(store.as_context_mut(), process)?,
            configure: instance.get_typed_func(store.as_context_mut(), configure)?,
            shutdown: instance.get_typed_func(store.as_context_mut(), shutdown)?,
        })
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Compiled").field(&self.0.inspection).finish()
    }
}
