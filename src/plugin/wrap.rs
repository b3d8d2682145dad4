//! Makes a component of a core module: embeds the interface's type where the module carries none, and links the adapter
//! (`preview1.wat`) that stands in for WASI and grants nothing. Done at load for modules that carry their type, and by
//! `millrace plugin wrap`. Components that import WASI's interfaces are `host::wasi`'s affair.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

use super::bindings::{LIFECYCLE, PACKAGE, VERSION};
use super::compile::LoadError;
use super::inspect::{self, World};
use super::interface::{name, name_in, with_world};
use super::scan;
use crate::config::settings::Capability;

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
    scan::check(module)?;
    let facts = core_facts(module).map_err(|error| LoadError::Invalid(error.to_string()))?;
    let component = if facts.component_types.is_empty() {
        component_of(&with_type(module, &facts, world)?)?
    } else {
        component_of(module)?
    };
    inspect::inspect(&component)?.check()?;
    Ok(component)
}

/// The module with the interface's type as a section.
fn with_type(module: &[u8], facts: &CoreFacts<'_>, world: Option<World>) -> Result<Vec<u8>, WrapError> {
    let patch = patch_of(facts)?;
    for (export, missing) in [(format!("{LIFECYCLE}@"), LIFECYCLE), ("process".into(), "process")] {
        if !facts.exports.iter().any(|name| name.starts_with(&export)) {
            return Err(WrapError::NotAPlugin { missing: missing.into() });
        }
    }
    let prefix = format!("{PACKAGE}/");
    let imported = facts.imports.iter().filter_map(|(from, _)| from.strip_prefix(&prefix)?.split_once('@'));
    let imported: BTreeSet<_> = imported.map(|(interface, _)| interface).collect();
    let found = if imported.contains("output") { World::Transform } else { World::Filter };
    // Capabilities stand in neither world: a plugin's world is one of the two, and what it asks for beside.
    let capabilities =
        imported.iter().filter(|interface| Capability::ALL.iter().any(|each| each.as_str() == **interface));
    let items = capabilities.map(|interface| format!("import {};", name_in(patch, interface)));
    let include = format!("include {};", name_in(patch, &world.unwrap_or(found).to_string()));
    let items: Vec<_> = items.chain([include]).collect();
    let (resolve, world) = with_world(patch, "host", &items.join(" ")).map_err(LoadError::Invalid)?;
    let mut module = module.to_vec();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .map_err(|error| LoadError::Invalid(format!("{error:#}")))?;
    Ok(module)
}

/// Which patch of the interface the module was built with, by the names in it: an earlier one, or a later of which it uses
/// nothing that is new, is as good as this host's own.
fn patch_of(facts: &CoreFacts<'_>) -> Result<u64, LoadError> {
    // (what a module exports of an interface stands behind its name: `…/lifecycle@0.1.1#configure`)
    let exported = facts.exports.iter().filter_map(|name| Some(name.split_once('#')?.0));
    inspect::check_versions(facts.imports.iter().map(|(from, _)| *from).chain(exported.clone()))?;
    Ok(exported.clone().find_map(inspect::patch_named).unwrap_or(VERSION.2))
}

/// Makes a component of a core module that carries its component type.
///
/// # Errors
/// [`LoadError`]: it carries none, imports what the adapter does not stand in for, or is not sound.
pub(super) fn component_of(module: &[u8]) -> Result<Vec<u8>, LoadError> {
    let facts = core_facts(module).map_err(|error| LoadError::Invalid(error.to_string()))?;
    // (`wasi:…` is a component's import, which the component type tells of)
    let wasi = |(from, _): &&(&str, &str)| from.starts_with("wasi_") && *from != PREVIEW1;
    let refused: Vec<_> = facts.imports.iter().filter(wasi).map(|(from, name)| format!("{from}/{name}")).collect();
    if !refused.is_empty() {
        return Err(LoadError::import(&refused));
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

/// The adapter, which is part of what is made of a core module.
pub(super) const ADAPTER_TEXT: &str = include_str!("preview1.wat");

/// As a module that carries its own component type: it imports `log`.
static ADAPTER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (resolve, world) =
        with_world(VERSION.2, "adapter", &format!("import {};", name("log"))).expect("log is in our own interface");
    let mut module = wat::parse_str(ADAPTER_TEXT).expect("a test assembles our own text");
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

#[cfg(test)]
mod tests {
    use wasmtime::{Engine, ExternType, Instance, Linker, Module, Store, Val, ValType};

    use super::*;

    /// Functions of the three descriptors that are there, which answer with success or ESPIPE for these; with EBADF beyond.
    const OF_DESCRIPTORS: [&str; 14] = [
        "fd_advise",
        "fd_close",
        "fd_datasync",
        "fd_fdstat_get",
        "fd_fdstat_set_flags",
        "fd_fdstat_set_rights",
        "fd_filestat_get",
        "fd_pread",
        "fd_pwrite",
        "fd_read",
        "fd_seek",
        "fd_sync",
        "fd_tell",
        "fd_write",
    ];
    const OF_FILES_AND_SOCKETS: [&str; 21] = [
        "fd_allocate",
        "fd_filestat_set_size",
        "fd_filestat_set_times",
        "fd_prestat_dir_name",
        "fd_prestat_get",
        "fd_readdir",
        "fd_renumber",
        "path_create_directory",
        "path_filestat_get",
        "path_filestat_set_times",
        "path_link",
        "path_open",
        "path_readlink",
        "path_remove_directory",
        "path_rename",
        "path_symlink",
        "path_unlink_file",
        "sock_accept",
        "sock_recv",
        "sock_send",
        "sock_shutdown",
    ];
    const OTHERS: [&str; 11] = [
        "args_get",
        "args_sizes_get",
        "clock_res_get",
        "clock_time_get",
        "environ_get",
        "environ_sizes_get",
        "poll_oneoff",
        "proc_exit",
        "proc_raise",
        "random_get",
        "sched_yield",
    ];
    const EBADF: i32 = 8;
    const EINVAL: i32 = 28;
    const ENOSYS: i32 = 52;
    const ESPIPE: i32 = 70;

    /// The adapter on a memory of two pages, the second of which is what wit-component adds for its lines.
    struct Adapter {
        store: Store<Vec<(i32, String)>>,
        instance: Instance,
        memory: wasmtime::Memory,
    }

    impl Adapter {
        fn new() -> Self {
            let text = include_str!("preview1.wat");
            let stack = "(global $__stack_pointer (mut i32) (i32.const 0))";
            assert!(text.contains(stack));
            let text = text.replace(stack, "(global $__stack_pointer (mut i32) (i32.const 0x20000))");
            let engine = Engine::default();
            let module = Module::new(&engine, wat::parse_str(text).unwrap()).unwrap();
            let mut store = Store::new(&engine, Vec::new());
            let memory = wasmtime::Memory::new(&mut store, wasmtime::MemoryType::new(2, None)).unwrap();
            let mut linker = Linker::new(&engine);
            linker.define(&store, "env", "memory", memory).unwrap();
            let log = move |mut cx: wasmtime::Caller<'_, Vec<(i32, String)>>,
                            level: i32,
                            at: i32,
                            length: i32,
                            about: i32,
                            _: i32| {
                let line = memory.data(&cx)[at as usize..][..length as usize].to_vec();
                assert_eq!(about, 0);
                cx.data_mut().push((level, String::from_utf8(line).expect("what is logged is UTF-8")));
            };
            linker.func_wrap(&name("log"), "log", log).unwrap();
            let instance = linker.instantiate(&mut store, &module).unwrap();
            Self { store, instance, memory }
        }

        /// Calls with these parameters, and zeros for those that are left out.
        fn call(&mut self, function: &str, parameters: &[i64]) -> i32 {
            let function = self.instance.get_func(&mut self.store, function).unwrap();
            let of = function.ty(&self.store);
            let mut given = parameters.iter().copied().chain(std::iter::repeat(0));
            let parameters: Vec<_> = of
                .params()
                .map(|of| match (of, given.next().unwrap()) {
                    (ValType::I64, value) => Val::I64(value),
                    (_, value) => Val::I32(value as i32),
                })
                .collect();
            let mut results = [Val::I32(-1)];
            function.call(&mut self.store, &parameters, &mut results).unwrap();
            results[0].unwrap_i32()
        }

        fn put(&mut self, at: usize, bytes: &[u8]) {
            self.memory.data_mut(&mut self.store)[at..at + bytes.len()].copy_from_slice(bytes);
        }

        fn u32(&self, at: usize) -> u32 {
            u32::from_le_bytes(self.memory.data(&self.store)[at..at + 4].try_into().unwrap())
        }

        fn u64(&self, at: usize) -> u64 {
            u64::from_le_bytes(self.memory.data(&self.store)[at..at + 8].try_into().unwrap())
        }

        /// Writes in one call, of two slices.
        fn write(&mut self, fd: i64, bytes: &[u8]) {
            let half = bytes.len() / 2;
            self.put(1024, bytes);
            let slices = [1024, half as u32, 1024 + half as u32, (bytes.len() - half) as u32];
            self.put(0, &slices.map(u32::to_le_bytes).concat());
            assert_eq!(self.call("fd_write", &[fd, 0, 2, 16]), 0);
            assert_eq!(self.u32(16) as usize, bytes.len());
        }

        fn said(&mut self) -> Vec<(i32, String)> {
            std::mem::take(self.store.data_mut())
        }
    }

    const INFO: i32 = 2;
    const WARN: i32 = 3;

    fn line(level: i32, text: &str) -> (i32, String) {
        (level, text.to_owned())
    }

    #[test]
    fn every_function_of_preview1_is_there_and_nothing_is_imported_but_log() {
        let module = Module::new(&Engine::default(), &*ADAPTER).unwrap();
        let mut exports: Vec<_> = module.exports().map(|export| export.name().to_owned()).collect();
        exports.sort();
        let mut expected: Vec<_> = [&OF_DESCRIPTORS[..], &OF_FILES_AND_SOCKETS, &OTHERS].concat();
        expected.sort_unstable();
        assert_eq!(exports, expected);
        let imports: Vec<_> =
            module.imports().map(|import| (import.module().to_owned(), import.name().to_owned())).collect();
        assert_eq!(imports, [(name("log"), "log".into()), ("env".into(), "memory".into())]);
        for export in module.exports() {
            let ExternType::Func(of) = export.ty() else { panic!("{} is no function", export.name()) };
            assert_eq!(of.results().len(), usize::from(export.name() != "proc_exit"), "{}", export.name());
        }
    }

    #[test]
    fn files_and_sockets_are_bad_descriptors_whatever_is_asked() {
        let mut adapter = Adapter::new();
        for fd in [0, 1, 3, 4, -1] {
            for function in OF_FILES_AND_SOCKETS {
                assert_eq!(adapter.call(function, &[fd]), EBADF, "{function} of {fd}");
            }
        }
        for fd in [3, 4, 1000, -1] {
            for function in OF_DESCRIPTORS {
                assert_eq!(adapter.call(function, &[fd]), EBADF, "{function} of {fd}");
            }
        }
    }

    #[test]
    fn the_standard_descriptors_are_terminals_without_input_that_cannot_be_sought() {
        let mut adapter = Adapter::new();
        for fd in 0..3 {
            for function in ["fd_close", "fd_sync", "fd_datasync", "fd_fdstat_set_flags", "fd_fdstat_set_rights"] {
                assert_eq!(adapter.call(function, &[fd]), 0, "{function} of {fd}");
            }
            for function in ["fd_seek", "fd_tell", "fd_pread", "fd_pwrite", "fd_advise"] {
                assert_eq!(adapter.call(function, &[fd]), ESPIPE, "{function} of {fd}");
            }
            adapter.put(64, &[0xff; 64]);
            assert_eq!(adapter.call("fd_fdstat_get", &[fd, 64]), 0);
            // A character device, without flags; rights to write, or to read.
            assert_eq!((adapter.u64(64), adapter.u64(72), adapter.u64(80)), (2, if fd == 0 { 2 } else { 0x40 }, 0));
            adapter.put(64, &[0xff; 64]);
            assert_eq!(adapter.call("fd_filestat_get", &[fd, 64]), 0);
            assert_eq!((0..8).map(|word| adapter.u64(64 + word * 8)).collect::<Vec<_>>(), [0, 0, 2, 0, 0, 0, 0, 0]);
        }
        adapter.put(16, &[0xff; 4]);
        assert_eq!((adapter.call("fd_read", &[0, 0, 1, 16]), adapter.u32(16)), (0, 0));
        assert_eq!((adapter.call("fd_write", &[0]), adapter.call("fd_read", &[1])), (EBADF, EBADF));
    }

    #[test]
    fn there_are_no_arguments_no_environment_and_no_signals() {
        let mut adapter = Adapter::new();
        for function in ["args_sizes_get", "environ_sizes_get"] {
            adapter.put(0, &[0xff; 8]);
            assert_eq!((adapter.call(function, &[0, 4]), adapter.u64(0)), (0, 0), "{function}");
        }
        for function in ["args_get", "environ_get", "sched_yield"] {
            assert_eq!(adapter.call(function, &[]), 0, "{function}");
        }
        assert_eq!(adapter.call("proc_raise", &[9]), ENOSYS);
    }

    #[test]
    fn clocks_count_and_a_sleep_sets_them_forward_without_passing_time() {
        let mut adapter = Adapter::new();
        let now = |adapter: &mut Adapter, clock| {
            assert_eq!(adapter.call("clock_time_get", &[clock, 1, 0]), 0);
            adapter.u64(0)
        };
        assert_eq!([0, 1, 2, 3, 0].map(|clock| now(&mut adapter, clock)), [1000, 2000, 3000, 4000, 5000]);
        assert_eq!((adapter.call("clock_res_get", &[1, 0]), adapter.u64(0)), (0, 1000));
        assert_eq!((adapter.call("clock_time_get", &[4]), adapter.call("clock_res_get", &[4])), (EINVAL, EINVAL));

        // An hour from now, a moment that is over, and three descriptors: userdata, kind, what, until, flags.
        let subscriptions: [(u64, u8, u32, u64, u16); 5] =
            [(7, 0, 1, 3_600_000_000_000, 0), (8, 0, 1, 10, 1), (9, 1, 0, 0, 0), (10, 2, 1, 0, 0), (11, 1, 5, 0, 0)];
        for (index, (userdata, kind, what, until, flags)) in subscriptions.into_iter().enumerate() {
            let at = 64 + index * 48;
            adapter.put(at, &[0; 48]);
            adapter.put(at, &userdata.to_le_bytes());
            adapter.put(at + 8, &[kind]);
            adapter.put(at + 16, &what.to_le_bytes());
            adapter.put(at + 24, &until.to_le_bytes());
            adapter.put(at + 40, &flags.to_le_bytes());
        }
        assert_eq!((adapter.call("poll_oneoff", &[64, 1024, 5, 16]), adapter.u32(16)), (0, 5));
        for (index, (userdata, kind, what, ..)) in subscriptions.into_iter().enumerate() {
            let (at, error) = (1024 + index * 32, if what > 2 { EBADF as u64 } else { 0 });
            assert_eq!((adapter.u64(at), adapter.u64(at + 8)), (userdata, error | u64::from(kind) << 16), "{userdata}");
        }
        assert_eq!(now(&mut adapter, 1), 3_600_000_000_000 + 5000 + 1000);
        assert_eq!(adapter.call("poll_oneoff", &[64, 1024, 0, 16]), EINVAL);
    }

    #[test]
    fn randomness_is_the_same_in_every_instance_and_stays_within_its_bounds() {
        let random = |length: usize| {
            let mut adapter = Adapter::new();
            assert_eq!(adapter.call("random_get", &[64, length as i64]), 0);
            let memory = adapter.memory.data(&adapter.store);
            assert!(memory[..64].iter().chain(&memory[64 + length..512]).all(|&byte| byte == 0), "{length}");
            memory[64..64 + length].to_vec()
        };
        for length in [0, 1, 7, 8, 13, 64] {
            assert_eq!(random(length), random(length));
        }
        let bytes = random(64);
        assert!(bytes.chunks(8).all(|chunk| bytes.chunks(8).filter(|other| *other == chunk).count() == 1), "{bytes:?}");
    }

    #[test]
    fn what_is_printed_becomes_lines_of_the_log_each_whole() {
        let mut adapter = Adapter::new();
        adapter.write(1, b"one\n\ntwo \xc3\xa9\nthr");
        assert_eq!(adapter.said(), [line(INFO, "one"), line(INFO, "two é")]);
        adapter.write(2, b"panic: ");
        adapter.write(1, b"ee\n");
        adapter.write(2, b"at last\n");
        assert_eq!(adapter.said(), [line(INFO, "three"), line(WARN, "panic: at last")]);
        adapter.write(1, "x".repeat(5000).as_bytes());
        assert_eq!(adapter.said(), [line(INFO, &"x".repeat(4096))]);
        adapter.write(1, b"\n");
        assert_eq!(adapter.said(), [line(INFO, &"x".repeat(904))]);
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_and_all_that_is_text_stays() {
        let mut adapter = Adapter::new();
        for (written, expected) in [
            (&b"\xff\n"[..], "?"),
            (b"a\xc3\n", "a?"),
            (b"\xc3\xa9\xa9b\n", "é?b"),
            (b"\xe2\x82\n", "??"),
            (b"\xed\xa0\x80\n", "???"),
            (b"\xc0\x80\n", "??"),
            (b"\xe0\x80\x80\n", "???"),
            (b"\xf4\x90\x80\x80\n", "????"),
            (b"\xf8\x88\x80\x80\x80\n", "?????"),
            (
                "\u{7f}\u{80}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}\n".as_bytes(),
                "\u{7f}\u{80}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}",
            ),
        ] {
            adapter.write(2, written);
            assert_eq!(adapter.said(), [line(WARN, expected)], "{}", written.escape_ascii());
        }
    }

    #[test]
    fn an_exit_is_a_trap_after_the_last_words() {
        let mut adapter = Adapter::new();
        adapter.write(1, b"almost done");
        adapter.write(2, b"no more");
        let exit = adapter.instance.get_typed_func::<i32, ()>(&mut adapter.store, "proc_exit").unwrap();
        let error = exit.call(&mut adapter.store, 0).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&wasmtime::Trap::UnreachableCodeReached));
        assert_eq!(adapter.said(), [line(INFO, "almost done"), line(WARN, "no more")]);
    }

    // ---- wrapping -------------------------------------------------------------------------------------------------------

    /// A plugin's module that imports these functions besides.
    fn module(imports: &str) -> Vec<u8> {
        wat::parse_str(module_text(imports)).unwrap()
    }

    fn module_text(imports: &str) -> String {
        let lifecycle = name("lifecycle");
        format!(
            r#"(module
              {imports}
              (memory (export "memory") 1)
              (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
              (func (export "process") (param i32) (result i32) (i32.const 0))
              (func (export "{lifecycle}#configure") (param i32 i32) (result i32) (i32.const 0))
              (func (export "{lifecycle}#shutdown")))"#
        )
    }

    const OUTPUT: &str = r#"(import "millrace:plugin/output@0.1.1" "forward" (func (param i32 i32 i32 i32)))"#;
    const WASI: &str = r#"(import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
                          (import "wasi_snapshot_preview1" "clock_time_get" (func (param i32 i64 i32) (result i32)))
                          (import "wasi_snapshot_preview1" "path_open"
                            (func (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))"#;
    const QUIET: &str = r#"(import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))"#;
    const CLOCK: &str = r#"(import "millrace:plugin/clock@0.1.1" "now-ms" (func (result i64)))"#;

    #[test]
    fn a_component_made_of_a_module_imports_nothing_but_the_interface_and_only_what_it_uses() {
        use World::{Filter, Transform};
        for (imports, world, made, imported) in [
            ("", None, Filter, &[][..]),
            (QUIET, None, Filter, &[]),
            (WASI, None, Filter, &["log"]),
            (OUTPUT, None, Transform, &["output"]),
            (&format!("{OUTPUT}{WASI}"), Some(Transform), Transform, &["log", "output"]),
            // A transform that emits nothing is a filter.
            ("", Some(Transform), Filter, &[]),
            (CLOCK, None, Filter, &["clock"]),
        ] {
            let component = wrap(&module(imports), world).unwrap_or_else(|error| panic!("{imports}: {error}"));
            let inspection = inspect::inspect(&component).unwrap();
            assert_eq!(inspection.world, Some(made), "{imports}");
            assert!(inspection.imports.iter().all(|import| import.starts_with("millrace:plugin/")), "{inspection:?}");
            let mut found: Vec<_> =
                ["clock", "log", "output"].into_iter().filter(|of| inspection.imports.contains(&name(of))).collect();
            found.sort_unstable();
            assert_eq!(found, imported, "{imports}: {:?}", inspection.imports);
        }
    }

    #[test]
    fn a_module_of_an_earlier_or_a_later_patch_is_wrapped_like_one_of_this_hosts_own() {
        let (major, minor, patch) = VERSION;
        let own = format!("{major}.{minor}.{patch}");
        for other in [0, patch + 1] {
            let other = format!("{major}.{minor}.{other}");
            let text = module_text(&format!("{OUTPUT}{CLOCK}{WASI}")).replace(&own, &other);
            let component =
                wrap(&wat::parse_str(text).unwrap(), None).unwrap_or_else(|error| panic!("{other}: {error}"));
            let inspection = inspect::inspect(&component).unwrap();
            assert_eq!((inspection.world, inspection.refusal()), (Some(World::Transform), None), "{other}");
            assert!(inspection.exports.contains(&format!("{LIFECYCLE}@{other}")), "{:?}", inspection.exports);
        }
    }

    #[test]
    fn a_module_of_a_version_that_is_not_spoken_is_refused_with_those_that_are() {
        let of_another = |text: &str| text.replace("@0.1.1", "@0.2.0");
        let lifecycle = wat::parse_str(
            r#"(module (func (export "process")) (func (export "millrace:plugin/lifecycle@0.2.0#configure")))"#,
        );
        for module in [module(&of_another(OUTPUT)), module(&of_another(CLOCK)), lifecycle.unwrap()] {
            let error = wrap(&module, None).unwrap_err();
            assert_eq!(error, WrapError::Load(LoadError::Version { found: "0.2.0".into() }));
        }
    }

    #[test]
    fn a_module_that_no_plugin_can_be_made_of_is_told_what_is_wrong() {
        let empty = b"\0asm\x01\0\0\0".to_vec();
        let typed = |of: &str| {
            let (resolve, world) = with_world(VERSION.2, "host", &format!("include {};", name(of))).unwrap();
            let mut typed = module("");
            embed_component_metadata(&mut typed, &resolve, world, StringEncoding::UTF8).unwrap();
            typed
        };
        let component = wrap(&module(""), None).unwrap();
        for (bytes, world, words) in [
            (component, None, "it is a component already"),
            (b"no".to_vec(), None, "does not begin as WebAssembly does"),
            (empty, None, "does not export `millrace:plugin/lifecycle`"),
            (module(OUTPUT), Some(World::Filter), "output"),
            (
                module(r#"(import "wasi_unstable" "fd_close" (func (param i32) (result i32)))"#),
                None,
                "wasi_unstable/fd_close",
            ),
            (
                module(r#"(import "wasi_snapshot_preview1" "fd_close" (func (param i64) (result i32)))"#),
                None,
                "fd_close",
            ),
            (module(r#"(import "wasi_snapshot_preview1" "fd_burn" (func))"#), None, "fd_burn"),
            (module(r#"(import "env" "open" (func))"#), None, "env"),
        ] {
            let error = wrap(&bytes, world).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(wrap(&typed("filter"), Some(World::Filter)).is_ok());
        assert!(wrap(&typed("transform"), None).is_ok());
    }
}
