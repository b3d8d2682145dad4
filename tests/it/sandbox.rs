//! Strangers' plugins that try to get out, and to use up what there is: each ends in its fault or its refusal, with a sentence
//! for people, and the process lives. The guests are text, so that what each does can be read beside what comes of it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use millrace::config::settings::{Capability, PluginLimits};
use millrace::model::{DestinationName, Digest, FaultCode, Field, Items, PluginName, RouteName};
use millrace::pipeline::ports::{CallError, CallOutput, Step, Verdict};
use millrace::plugin::{
    COMPILE_VERB, DestinationSpec, Engine, EngineOptions, LoadError, PLUGIN_BYTES_MAX, PluginStep, Prepare, Slots, wrap,
};
use proptest::prelude::*;
use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::support::daemon::millrace;
use crate::support::guest_log::Sink;
use crate::support::guests::{engine, guest};
use crate::support::memory_batch::MemoryBatch;
use crate::support::{is_alone, root, wait_for, wait_until};

const LIMITS: PluginLimits =
    PluginLimits { memory: 16 << 20, timeout: Duration::from_millis(50), outputs: 1_000, output_bytes: 1 << 20 };
/// What a call may take longer than its time: an epoch, one host call, and another test on the same processor.
const LATE: Duration = Duration::from_secs(5);

static ENGINE: LazyLock<Engine> = LazyLock::new(|| engine(None));

/// The version of the interface that `wit/` has.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let text = std::fs::read_to_string(root().join("wit/worlds.wit")).expect("our own interface");
    let (_, version) = text.split_once("package millrace:plugin@").expect("its package");
    version.split_once(';').expect("an end of the line").0.to_owned()
});

/// The parts of a plugin's core module that differ.
#[derive(Default, Clone, Copy)]
pub(crate) struct Guest<'a> {
    pub(crate) imports: &'a str,
    pub(crate) memory: &'a str,
    /// Before a verdict is given to the one record of the call; `$batch` is its handle.
    pub(crate) process: &'a str,
    pub(crate) configure: &'a str,
    pub(crate) realloc: &'a str,
    /// More functions, tables, segments.
    pub(crate) rest: &'a str,
}

impl Guest<'_> {
    /// The module as text: `$VERSION` is the interface's.
    fn text(&self) -> String {
        let Self { imports, memory, process, configure, realloc, rest } = self;
        let memory = if memory.is_empty() { "1" } else { memory };
        let text = format!(
            r#"(module $probe
              (import "millrace:plugin/input@$VERSION" "[resource-drop]batch" (func $drop (param i32)))
              {imports}
              (memory (export "memory") {memory})
              (global $next (mut i32) (i32.const 4096))
              (func $realloc (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                {realloc}
                (global.get $next)
                (global.set $next (i32.add (global.get $next) (i32.and (i32.add (local.get 3) (i32.const 31)) (i32.const -16)))))
              (func $process (export "process") (param $batch i32) (result i32)
                {process}
                (call $drop (local.get $batch))
                ;; at 16: success, a list of one byte that is 0 (pass)
                (i32.store (i32.const 20) (i32.const 32))
                (i32.store (i32.const 24) (i32.const 1))
                (i32.const 16))
              (func $configure (export "millrace:plugin/lifecycle@$VERSION#configure") (param i32 i32) (result i32)
                {configure}
                (i32.const 0))
              (func (export "millrace:plugin/lifecycle@$VERSION#shutdown"))
              {rest})"#
        );
        text.replace("$VERSION", &VERSION)
    }

    pub(crate) fn module(&self) -> Vec<u8> {
        let text = self.text();
        wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn prepare(&self) -> Result<PluginStep, LoadError> {
        prepare(&wrap(&self.module(), None).map_err(|error| LoadError::Invalid(error.to_string()))?)
    }

    #[track_caller]
    fn step(&self) -> PluginStep {
        self.prepare().unwrap_or_else(|error| panic!("{error}"))
    }
}

pub(crate) fn with(allow: &[Capability]) -> Prepare {
    let name = DestinationName::new("out").unwrap();
    Prepare {
        plugin: PluginName::new("probe").unwrap(),
        route: RouteName::new("route").unwrap(),
        config_json: "{}".into(),
        limits: LIMITS,
        allow: allow.to_vec(),
        destinations: [DestinationSpec { name, topic_pattern: None }].into(),
    }
}

fn prepare(bytes: &[u8]) -> Result<PluginStep, LoadError> {
    let compiled = ENGINE.compile(&PluginName::new("probe").unwrap(), bytes)?;
    Ok(Arc::new(compiled.prepare(with(&[]))?).step())
}

pub(crate) fn call(step: &mut PluginStep) -> Result<CallOutput, CallError> {
    step.call(&mut MemoryBatch::of_values(["v"]).items(), 0..1, LIMITS.timeout)
}

/// The call ends in this fault, in time; what comes next is not concerned.
#[track_caller]
fn check_fault(what: &str, guest: Guest<'_>, code: FaultCode, words: &str) {
    let mut step = guest.step();
    for _ in 0..2 {
        let began = Instant::now();
        let (found, message) = match call(&mut step) {
            Err(CallError::Fault { code, message }) => (code, message),
            other => panic!("{what}: a fault was expected, not {other:?}"),
        };
        assert_eq!(found, code, "{what}: {message}");
        assert!(message.contains(words), "{what}: {message:?} does not say {words:?}");
        assert!(message.len() <= 2048 && !message.contains('\n'), "{what}: {message:?}");
        assert!(began.elapsed() < LIMITS.timeout + LATE, "{what}: {:?}", began.elapsed());
    }
    assert_eq!(step.take_usage().instances, 2, "{what}: the instance that faulted is replaced");
}

/// Nobody loads it, and it is said why, soon.
#[track_caller]
fn check_refused(what: &str, bytes: &[u8], words: &str) -> LoadError {
    let began = Instant::now();
    let error = prepare(bytes).map(drop).expect_err(what);
    let message = error.to_string();
    assert!(message.contains(words), "{what}: {message:?} does not say {words:?}");
    assert!(message.len() <= 4096, "{what}: {} bytes", message.len());
    assert!(began.elapsed() < 2 * LATE, "{what}: {:?}", began.elapsed());
    error
}

#[test]
fn a_guest_that_does_nothing_is_a_plugin() {
    let mut step = Guest::default().step();
    assert_eq!(call(&mut step).unwrap().verdicts, [Verdict::Pass]);
}

// ---- getting out ------------------------------------------------------------------------------------------------------

#[test]
fn of_files_environment_sockets_clock_and_randomness_nothing_is_to_be_had_without_a_grant() {
    let imports = r#"
        (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "sock_accept" (func $accept (param i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))"#;
    // Each that gives what it should not is an `unreachable`, by its number.
    let process = r#"
        (call $must (i32.eq (i32.const 8) (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 0)
          (i64.const -1) (i64.const -1) (i32.const 0) (i32.const 128))))
        (call $must (i32.eq (i32.const 8) (call $prestat (i32.const 3) (i32.const 128))))
        (drop (call $environ (i32.const 128) (i32.const 132)))
        (call $must (i64.eqz (i64.load (i32.const 128))))
        (drop (call $args (i32.const 128) (i32.const 132)))
        (call $must (i64.eqz (i64.load (i32.const 128))))
        (call $must (i32.eq (i32.const 8) (call $accept (i32.const 3) (i32.const 0) (i32.const 128))))
        (drop (call $clock (i32.const 0) (i64.const 1) (i32.const 128)))
        ;; less than an hour after 1970
        (call $must (i64.lt_u (i64.load (i32.const 128)) (i64.const 3600000000000)))
        (drop (call $random (i32.const 128) (i32.const 8)))
        (i32.store8 (i32.const 64) (i32.const 46))"#;
    let rest = "(func $must (param i32) (if (i32.eqz (local.get 0)) (then unreachable)))";
    let mut step = Guest { imports, process, rest, ..Guest::default() }.step();
    assert_eq!(call(&mut step).unwrap().verdicts, [Verdict::Pass]);
}

#[test]
fn a_capability_that_is_not_granted_is_refused_at_load_with_what_to_write() {
    for (capability, import) in [
        ("clock", r#""now-ms" (func (result i64))"#),
        ("random", r#""get-u64" (func (result i64))"#),
        ("metrics", r#""add" (func (param i32 i32 i32 i32 f64))"#),
    ] {
        let imports = format!(r#"(import "millrace:plugin/{capability}@$VERSION" {import})"#);
        let component = wrap(&Guest { imports: &imports, ..Guest::default() }.module(), None).unwrap();
        let words = format!("it is not granted: write `allow: [{capability}]`");
        assert!(matches!(check_refused(capability, &component, &words), LoadError::NotGranted { .. }));
    }
}

#[test]
fn what_nobody_can_grant_is_refused_by_its_name() {
    for import in ["wasi:http/outgoing-handler@0.2.0", "wasi:cli/environment@0.3.0", "millrace:plugin/files@0.1.1"] {
        let error = check_refused(import, &importing(&[import.to_owned()]), import);
        assert!(matches!(error, LoadError::Import { .. }), "{error}");
    }
    let many: Vec<_> = (0..20_000).map(|number| format!("a:b/c{number}@1.0.0")).collect();
    check_refused("20,000 imports", &importing(&many), "and 19990 more");
}

/// A component that imports an empty instance of each name.
pub(crate) fn importing(names: &[String]) -> Vec<u8> {
    let import = |name: &String| [&[0][..], &leb(name.len()), name.as_bytes(), &[5, 0]].concat();
    let imports: Vec<_> = std::iter::once(leb(names.len())).chain(names.iter().map(import)).collect();
    component(&[section(7, &[1, 0x42, 0]), section(10, &imports.concat())])
}

/// A plugin's module whose component type is that of this world, in a package of its own beside WASI's.
fn of_world(wasi: &str, world: &str, guest: Guest<'_>) -> Vec<u8> {
    let mut resolve = Resolve::default();
    resolve.push_dir(root().join("wit")).expect("our own interface");
    for (name, text) in [("wasi.wit", wasi), ("world.wit", world)] {
        resolve
            .push_source(name, &text.replace("$VERSION", &VERSION))
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
    let package =
        resolve.packages.iter().find(|(_, package)| package.name.namespace == "test").expect("pushed above").0;
    let world = resolve.select_world(&[package], None).expect("it has one world");
    let mut module = guest.module();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("the world was made just now");
    module
}

#[test]
fn an_interface_of_wasi_that_hands_out_somebody_elses_resource_is_refused() {
    let wasi = "package wasi:cli@0.2.0;
        interface environment { use millrace:plugin/input@$VERSION.{batch}; get: func() -> batch; }";
    let world = "package test:guest;
        world w { include millrace:plugin/filter@$VERSION; import wasi:cli/environment@0.2.0; }";
    let imports = r#"(import "wasi:cli/environment@0.2.0" "get" (func $get (result i32)))"#;
    let guest = Guest { imports, process: "(drop (call $get))", ..Guest::default() };
    let error = check_refused("a batch of WASI's", &of_world(wasi, world, guest), "mismatched resource types");
    assert!(matches!(error, LoadError::Interface { .. }), "{error}");
}

#[test]
fn an_interface_of_wasi_with_hundreds_of_resources_traps_where_it_hands_out_one_too_many() {
    for (kinds, is_too_many) in [(200, false), (300, true)] {
        let resources: String = (0..kinds).map(|number| format!("resource r{number};")).collect();
        let all: Vec<_> = (0..kinds).map(|number| format!("r{number}")).collect();
        let all = all.join(", ");
        let wasi = format!("package wasi:io@0.2.0; interface streams {{ {resources} all: func() -> tuple<{all}>; }}");
        let world =
            "package test:guest; world w { include millrace:plugin/filter@$VERSION; import wasi:io/streams@0.2.0; }";
        let imports = r#"(import "wasi:io/streams@0.2.0" "all" (func $all (param i32)))"#;
        let guest = Guest { imports, process: "(call $all (i32.const 1024))", ..Guest::default() };
        let mut step = prepare(&of_world(&wasi, world, guest)).unwrap_or_else(|error| panic!("{kinds}: {error}"));
        match call(&mut step) {
            Ok(output) => assert!(!is_too_many && output.verdicts == [Verdict::Pass], "{kinds}: {output:?}"),
            Err(CallError::Fault { code: FaultCode::Trapped, message }) => {
                assert!(is_too_many && message.contains("none of the first 256"), "{kinds}: {message}");
            }
            Err(other) => panic!("{kinds}: {other:?}"),
        }
    }
}

#[test]
fn a_module_that_lies_about_its_type_is_refused() {
    for (what, world, words) in [
        (
            "another signature",
            "import millrace:plugin/input@$VERSION; export process: func(records: u64) -> string;",
            "process",
        ),
        ("an export that it has not", "include millrace:plugin/filter@$VERSION; export more: func();", "more"),
    ] {
        let world = format!("package test:guest; world w {{ {world} }}");
        let module = of_world("package other:nothing;", &world, Guest::default());
        assert!(matches!(check_refused(what, &module, words), LoadError::Invalid(_)), "{what}");
    }
    let mut module = Guest::default().module();
    let section = b"\x0ecomponent-typeno type at all";
    module.extend([0, section.len() as u8]);
    module.extend(section);
    check_refused("a type that is none", &module, "not a valid WebAssembly component");
}

// ---- time -------------------------------------------------------------------------------------------------------------

const REFUSE: &str =
    r#"(import "millrace:plugin/input@$VERSION" "[method]batch.refuse" (func $refuse (param i32 i32 i32 i32)))"#;
const LOG: &str = r#"(import "millrace:plugin/log@$VERSION" "log" (func $log (param i32 i32 i32 i32 i32)))"#;

#[test]
fn a_guest_that_does_not_return_is_timed_out_however_it_goes_round() {
    let rounds = "(func $round (return_call $other)) (func $other (return_call $round))";
    let table = "(table funcref (elem $dispatch)) (func $dispatch (return_call_indirect (i32.const 0)))";
    for (what, process, rest) in [
        ("a loop", "(loop (br 0))", ""),
        ("a loop without a branch back at its end", "(loop (block (br 1)) unreachable)", ""),
        ("tail calls", "(call $round)", rounds),
        ("tail calls through a table", "(call $dispatch)", table),
    ] {
        let guest = Guest { process, rest, ..Guest::default() };
        check_fault(what, guest, FaultCode::TimedOut, "it used up its 50ms of CPU time");
    }
}

#[test]
fn a_guest_that_calls_the_host_and_nothing_else_is_timed_out() {
    let flood = "(call $log (i32.const 4) (i32.const 0) (i32.const 60000) (i32.const 0) (i32.const 0))";
    // No loop, hence nowhere for the guest itself to be interrupted: only the host can see that its time is up.
    let reason = "(call $refuse (local.get $batch) (i32.const 0) (i32.const 0) (i32.const 15000000))";
    let reasons = reason.repeat(5_000);
    let looped = format!("(loop {reason} (br 0))");
    let logging = format!("(loop {flood} (br 0))");
    for (what, imports, process) in
        [("in a row", REFUSE, &reasons), ("in a loop", REFUSE, &looped), ("with log lines", LOG, &logging)]
    {
        let guest = Guest { imports, memory: "230", process, ..Guest::default() };
        check_fault(what, guest, FaultCode::TimedOut, "CPU time");
    }
}

#[test]
fn an_allocator_that_does_not_return_is_timed_out() {
    // (the host asks it for room when a column crosses)
    let imports =
        r#"(import "millrace:plugin/input@$VERSION" "[method]batch.values" (func $values (param i32 i32 i32 i32)))"#;
    let process = "(global.set $is_in_process (i32.const 1)) \
        (call $values (local.get $batch) (i32.const 0) (i32.const 1) (i32.const 128))";
    let realloc = "(if (global.get $is_in_process) (then (loop (br 0))))";
    let guest = Guest {
        imports,
        process,
        realloc,
        rest: "(global $is_in_process (mut i32) (i32.const 0))",
        ..Guest::default()
    };
    check_fault("an allocator", guest, FaultCode::TimedOut, "CPU time");
}

#[test]
fn a_guest_that_does_not_come_up_is_not_ready() {
    let start = "(start $forever) (func $forever (loop (br 0)))";
    let steps = [
        ("start", Guest { rest: start, ..Guest::default() }),
        ("configure", Guest { configure: "(loop (br 0))", ..Guest::default() }),
    ];
    std::thread::scope(|scope| {
        for (what, guest) in steps {
            scope.spawn(move || match guest.prepare() {
                Err(LoadError::NotReady(message)) => assert!(message.contains("timed_out"), "{what}: {message}"),
                other => panic!("{what}: {:?}", other.map(drop)),
            });
        }
    });
}

#[test]
fn work_on_whole_memories_cannot_hide_from_the_deadline() {
    let fill = "(memory.fill (i32.const 65536) (i32.const 7) (i32.const 15000000))";
    let most = fill.repeat(1_000);
    let guest = Guest { memory: "230", process: &most, ..Guest::default() };
    let mut step = guest.step();
    let began = Instant::now();
    let _ = call(&mut step);
    assert!(began.elapsed() < 2 * LATE, "{:?}", began.elapsed());
    let more = fill.repeat(1_001);
    let guest = Guest { process: &more, ..Guest::default() };
    check_refused("1,001 of them", &wrapped(guest), "1001 operations on whole memories or tables");
}

/// The module with its component type; or, of one that is refused before that, the module.
fn wrapped(guest: Guest<'_>) -> Vec<u8> {
    let module = guest.module();
    wrap(&module, None).unwrap_or(module)
}

// ---- memory, tables, stack --------------------------------------------------------------------------------------------

#[test]
fn an_instance_whose_calls_use_up_its_memory_bit_by_bit_is_replaced_between_two_calls_before_one_fails() {
    // 256 KiB a call, never given back
    let leak = "(if (i32.eq (memory.grow (i32.const 4)) (i32.const -1)) (then unreachable))";
    let mut step = Guest { process: leak, ..Guest::default() }.step();
    (0..500).for_each(|nth| assert!(call(&mut step).is_ok(), "call {nth}"));
    let usage = step.take_usage();
    assert_eq!(usage.instances, 500_u64.div_ceil(57), "one for as many calls as seven eighths of 16 MiB last");
    assert!(usage.memory <= LIMITS.memory);
}

#[test]
fn an_instance_that_needs_nearly_all_its_memory_from_the_start_is_kept() {
    let all_at_once = "(if (i32.lt_u (memory.size) (i32.const 250)) (then (drop (memory.grow (i32.const 249)))))";
    for guest in [Guest { memory: "250", ..Guest::default() }, Guest { process: all_at_once, ..Guest::default() }] {
        let mut step = guest.step();
        (0..200).for_each(|nth| assert!(call(&mut step).is_ok(), "call {nth}"));
        assert_eq!(step.take_usage().instances, 1);
    }
}

#[test]
fn recursion_memory_and_tables_end_at_their_limits() {
    let recursion = "(func $deeper (param i64) (call $deeper (i64.add (local.get 0) (i64.const 1))))";
    let table = "(table $t 1 funcref)";
    for (what, process, rest, code, words) in [
        ("recursion", "(call $deeper (i64.const 0))", recursion, FaultCode::Trapped, "stack"),
        (
            "memory",
            "(if (i32.eq (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable))",
            "",
            FaultCode::OutOfMemory,
            "more than its 16MiB of memory",
        ),
        (
            "memory bit by bit",
            "(loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable",
            "",
            FaultCode::OutOfMemory,
            "more than its 16MiB of memory",
        ),
        (
            "a table",
            "(loop (br_if 0 (i32.ne (table.grow $t (ref.null func) (i32.const 10000)) (i32.const -1)))) unreachable",
            table,
            FaultCode::OutOfMemory,
            "more than 262144 elements in its tables",
        ),
    ] {
        check_fault(what, Guest { process, rest, ..Guest::default() }, code, words);
    }
}

#[test]
fn what_a_guest_begins_with_counts_too() {
    let error = Guest { memory: "300", ..Guest::default() }.prepare().map(drop).unwrap_err();
    assert!(error.to_string().contains("more than its 16MiB of memory"), "{error}");
    let error = Guest { rest: "(table 300000 funcref)", ..Guest::default() }.prepare().map(drop).unwrap_err();
    assert!(error.to_string().contains("more than the 262144 that a plugin may have"), "{error}");
}

#[test]
fn a_component_of_many_parts_ends_at_what_one_instance_may_have() {
    let memories = "(memory 0)".repeat(17);
    let error = Guest { rest: &memories, ..Guest::default() }.prepare().map(drop).unwrap_err();
    assert!(matches!(&error, LoadError::NotReady(said) if said.contains("memory count too high")), "{error}");
    let tables = "(table 0 funcref)".repeat(1_001);
    check_refused("tables", &wrapped(Guest { rest: &tables, ..Guest::default() }), "tables, more than the 1000");
    // 90,000 globals, which each instance of the module has for itself.
    let global = [0x7f, 0, 0x41, 0, 0x0b];
    let globals = core(&[section(6, &[leb(90_000), global.repeat(90_000)].concat())]);
    let mut plugin = wrap(&Guest::default().module(), None).unwrap();
    let module = modules_of(&plugin);
    let instances: Vec<u8> = (0..60).flat_map(|_| [vec![0], leb(module), vec![0]].concat()).collect();
    plugin.extend(section(1, &globals));
    plugin.extend(section(2, &[leb(60), instances].concat()));
    check_refused("globals of many instances", &plugin, "exceeds the configured maximum of 67108864 bytes");
}

/// How many core modules a component has itself.
fn modules_of(component: &[u8]) -> usize {
    let (mut at, mut modules) = (8, 0);
    while at < component.len() {
        let (mut length, mut shift, id) = (0, 0, component[at]);
        loop {
            at += 1;
            length |= usize::from(component[at] & 127) << shift;
            shift += 7;
            if component[at] < 128 {
                break;
            }
        }
        at += 1 + length;
        modules += usize::from(id == 1);
    }
    modules
}

// ---- outputs ----------------------------------------------------------------------------------------------------------

#[test]
fn outputs_are_bounded_in_number_and_size_whatever_a_guest_claims() {
    let output = r#"
        (import "millrace:plugin/output@$VERSION" "forward" (func $forward (param i32 i32 i32 i32)))
        (import "millrace:plugin/output@$VERSION" "emit"
          (func $emit (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#;
    let imports = format!("{output}{REFUSE}");
    // (memory holds zeros from 65536 on: as many sources as one likes, all of record 0)
    let emit = |ends: u32| {
        format!(
            "(i32.store (i32.const 128) (i32.const {ends})) (drop (call $emit (i32.const 0) (i32.const 0) (i32.const 65536) \
             (i32.const 1) (i32.const 65536) (i32.const {ends}) (i32.const 128) (i32.const 1) (i32.const 0) (i32.const 0)))"
        )
    };
    let forward =
        |sources: u32| format!("(call $forward (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const {sources}))");
    let answer = |result: u32, length: u32| {
        format!(
            "(call $drop (local.get $batch)) (i32.store8 (i32.const 16) (i32.const {result})) (i32.store (i32.const 20) \
             (i32.const 65536)) (i32.store (i32.const 24) (i32.const {length})) (return (i32.const 16))"
        )
    };
    for (what, process, code, words) in [
        ("one record a million times", forward(1_000_000), FaultCode::BadOutput, "1000 outputs of one record"),
        (
            "again and again",
            format!("(loop {} (br 0))", forward(10)),
            FaultCode::BadOutput,
            "1000 outputs of one record",
        ),
        ("a large value", emit(8_000_000), FaultCode::BadOutput, "more than 1MiB of output"),
        ("many values", format!("(loop {} (br 0))", emit(10_000)), FaultCode::BadOutput, "more than 1MiB of output"),
        ("a list beyond its memory", forward(0x3fff_ffff), FaultCode::Trapped, "out of bounds"),
        ("ten million verdicts", answer(0, 10_000_000), FaultCode::BadOutput, "10000000 verdicts for 1 records"),
        ("verdicts beyond its memory", answer(0, u32::MAX), FaultCode::Trapped, "out of bounds"),
        ("an answer that is none", answer(7, 0), FaultCode::Trapped, "discriminant"),
    ] {
        check_fault(
            what,
            Guest { imports: &imports, memory: "230", process: &process, ..Guest::default() },
            code,
            words,
        );
    }
    // A reason of ten million bytes is told in two thousand.
    let long = "(call $drop (local.get $batch)) (i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 20) (i32.const 2)) \
         (i32.store (i32.const 24) (i32.const 65536)) (i32.store (i32.const 28) (i32.const 10000000)) (return (i32.const 16))";
    let mut step = Guest { memory: "230", process: long, ..Guest::default() }.step();
    match call(&mut step) {
        Err(CallError::Fault { code: FaultCode::Refused, message }) => {
            assert!(message.len() <= 2048, "{}", message.len())
        }
        other => panic!("{other:?}"),
    }
}

// ---- compilation ------------------------------------------------------------------------------------------------------

fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 128 {
        bytes.push(number as u8 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(content.len()), content].concat()
}

/// A component that holds these sections.
fn component(sections: &[Vec<u8>]) -> Vec<u8> {
    [b"\0asm\x0d\0\x01\0".to_vec(), sections.concat()].concat()
}

fn core(sections: &[Vec<u8>]) -> Vec<u8> {
    [b"\0asm\x01\0\0\0".to_vec(), sections.concat()].concat()
}

/// A component around a core module.
fn around(module: &[u8]) -> Vec<u8> {
    component(&[section(1, module)])
}

/// A module of `count` functions, none of which has parameters, with this body.
fn functions(count: usize, body: &[u8]) -> Vec<u8> {
    let body = [leb(body.len()), body.to_vec()].concat();
    core(&[
        section(1, &[1, 0x60, 0, 0]),
        section(3, &[leb(count), vec![0; count]].concat()),
        section(10, &[leb(count), body.repeat(count)].concat()),
    ])
}

/// An engine that can compile nothing: what it refuses, it refuses before.
fn without_compiler() -> Engine {
    let slots = Some(Slots { memories: 1, tables: 1 });
    Engine::new(EngineOptions { compiler: Some("/no/compiler".into()), slots, ..EngineOptions::default() }).unwrap()
}

#[test]
fn a_digest_that_is_not_the_pinned_one_is_refused_before_anything_is_compiled() {
    let (engine, name) = (without_compiler(), PluginName::new("pinned").unwrap());
    let pin = Digest::of(b"another file");
    for bytes in [guest("rewrite"), b"no plugin at all".to_vec()] {
        let error = engine.compile_pinned(&name, &bytes, Some(&pin)).unwrap_err();
        assert_eq!(error, LoadError::Digest { expected: pin, found: Digest::of(&bytes) });
    }
    // With its own it is the compiler's turn.
    let bytes = guest("rewrite");
    let error = engine.compile_pinned(&name, &bytes, Some(&Digest::of(&bytes))).unwrap_err();
    assert!(matches!(error, LoadError::Engine(_)), "{error}");
}

#[test]
fn a_file_larger_than_any_plugin_is_refused_by_its_size() {
    let (engine, name) = (without_compiler(), PluginName::new("large").unwrap());
    let mut bytes = component(&[]);
    bytes.resize(PLUGIN_BYTES_MAX + 1, 0);
    let error = engine.compile(&name, &bytes).unwrap_err();
    assert_eq!(error, LoadError::TooLarge { size: (256 << 20) + 1, most: 256 << 20 });
    assert_eq!(error.to_string(), "it has 268435457 bytes, more than the 268435456 that a plugin may have");
    bytes.pop();
    let error = engine.compile(&name, &bytes).unwrap_err();
    assert!(matches!(error, LoadError::Engine(_)), "one byte less is the compiler's affair: {error}");
}

#[test]
fn a_component_of_which_there_is_too_much_is_refused_before_it_is_compiled() {
    const EMPTY: &[u8] = &[0, 0x0b];
    let repeated = |bytes: &[u8], count: usize| bytes.repeat(count);
    let blocks = |count: usize| [vec![0], repeated(&[0x02, 0x40], count), repeated(&[0x0b], count + 1)].concat();
    let loops = |count: usize| [vec![0], repeated(&[0x03, 0x40], count), repeated(&[0x0b], count + 1)].concat();
    let nested_types = [vec![1], repeated(&[0x41, 1, 1], 300_000), vec![0x41, 0]].concat();
    let nested = (0..20).fold(component(&[]), |inner, _| component(&[section(4, &inner)]));
    // Each holds the one before it, and makes two instances of it.
    let laughs =
        (0..14).fold(component(&[]), |inner, _| component(&[section(4, &inner), section(5, &[2, 0, 0, 0, 0, 0, 0])]));
    let types = core(&[section(1, &[leb(150_000), repeated(&[0x60, 0, 0], 150_000)].concat())]);
    let tables = around(&core(&[section(4, &[leb(100), repeated(&[0x70, 0, 0x80, 0xad, 0xe2, 4], 100)].concat())]));
    let module = section(1, &core(&[]));
    let locals = functions(1, &[vec![1], leb(30_000), vec![0x7f, 0x0b]].concat());
    let long = functions(1, &[vec![0], repeated(&[0x41, 0, 0x1a], 400_000), vec![0x0b]].concat());
    // 10,000 locals, 3,000 branches.
    let entangled = functions(
        1,
        &[vec![1, 0x90, 0x4e, 0x7f, 0x03, 0x40], repeated(&[0x20, 0, 0x0d, 0], 3_000), vec![0x0b, 0x0b]].concat(),
    );
    for (what, bytes, words) in [
        ("a million functions", around(&functions(1_000_000, EMPTY)), "1000000 functions, more than the 200000"),
        ("a core module of them", functions(1_000_000, EMPTY), "1000000 functions"),
        ("types", around(&types), "150000 types"),
        ("types within types", component(&[section(7, &nested_types)]), "33 types within each other"),
        ("components within components", nested, "components within each other"),
        ("instances of instances", laughs, "instances"),
        ("modules", component(&vec![module; 300]), "257 modules"),
        ("tables", tables, "elements that its tables begin with"),
        ("locals", locals, "30000 locals in one function"),
        ("a long function", long, "bytes of code in one function"),
        ("blocks within blocks", functions(1, &blocks(5_000)), "blocks within each other"),
        ("loops within loops", functions(1, &loops(65)), "65 loops within each other"),
        ("branches and locals", entangled, "product of locals and branches"),
    ] {
        let error = check_refused(what, &bytes, words);
        assert!(matches!(error, LoadError::TooMuch { .. }), "{what}: {error}");
    }
    // The same types, where a module's own type is looked for.
    let own_type = component(&[section(7, &nested_types)]);
    let custom = section(0, &[b"\x0ecomponent-type".to_vec(), own_type].concat());
    check_refused("types within a module's type", &core(&[custom]), "types within each other");
}

/// What is read and made of a file of core modules is the compiler's affair, like the compilation: whatever the encoder takes for the
/// many names of this one, this process does not.
#[test]
fn a_file_that_is_dear_to_read_costs_this_process_what_it_weighs_and_no_more() {
    const INTERFACES: usize = 900;
    if !is_alone("sandbox::a_file_that_is_dear_to_read_costs_this_process_what_it_weighs_and_no_more") {
        return;
    }
    let numbered = |text: &dyn Fn(usize) -> String| (0..INTERFACES).map(text).collect::<String>();
    let functions: String = (0..40).map(|number| format!("call{number}: func(a: string) -> list<string>; ")).collect();
    let interfaces = numbered(&|number| format!("interface i{number} {{ {functions} }} "));
    let imports = numbered(&|number| format!("import i{number}; "));
    let world =
        format!("package test:guest; {interfaces} world w {{ include millrace:plugin/filter@$VERSION; {imports} }}");
    let module = of_world("package other:nothing;", &world, Guest::default());
    // (with this one, what the first plugin of a process takes)
    let _first = Guest::default().step();
    let before = peak();
    // (it uses none of them, so the component that is made of it asks for none)
    let mut step = prepare(&module).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(call(&mut step).unwrap().verdicts, [Verdict::Pass]);
    assert!(peak() < before + 2 * module.len() + (8 << 20), "{} of {before} before", peak());
}

/// Little to read and much to compile: loops that carry many values over many ways back.
fn costly(functions: usize) -> Vec<u8> {
    const LOCALS: usize = 1_400;
    const BRANCHES: usize = 1_390;
    let way_back = |number: usize| {
        let [to, from, whether] = [0, 7, 13].map(|by| (number + by) % LOCALS);
        format!("(local.set {to} (i32.add (local.get {from}) (i32.const 1))) (br_if 0 (local.get {whether}))")
    };
    let ways_back: String = (0..BRANCHES).map(way_back).collect();
    let function = format!("(func (local {}) (loop {ways_back}))", "i32 ".repeat(LOCALS));
    let component = wrap(&Guest { rest: &function.repeat(functions), ..Guest::default() }.module(), None).unwrap();
    assert!(component.len() < functions * (36 << 10), "{} bytes", component.len());
    component
}

/// The process that this one has started, if there is one.
fn child() -> Option<PathBuf> {
    let is_child = |process: &PathBuf| {
        let stat = std::fs::read_to_string(process.join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        (parent == std::process::id()).then_some(())
    };
    let processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    processes.into_iter().find(|process| is_child(process).is_some())
}

/// The most memory that this process has had, bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

#[test]
fn a_plugin_that_is_dear_to_compile_is_refused_in_time_and_neither_this_process_nor_a_neighbour_notices() {
    if !is_alone(
        "sandbox::a_plugin_that_is_dear_to_compile_is_refused_in_time_and_neither_this_process_nor_a_neighbour_notices",
    ) {
        return;
    }
    let component = costly(20);
    let name = PluginName::new("costly").unwrap();
    let mut neighbour = prepare(&guest("rewrite")).unwrap();
    // Something that would be handed on to a process that is started.
    let secret = File::open("/proc/self/status").unwrap();
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    let before = peak();
    check_neighbour("is dear to compile", &mut neighbour, || {
        let began = Instant::now();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| check_confined(&wait_for(LATE, "a compiler is at work", child)));
            ENGINE.compile(&name, &component).map(drop).expect_err("it takes too long")
        });
        assert!(matches!(error, LoadError::TooCostly { .. }), "{error}");
        assert!(error.to_string().contains("to compile it takes more than 10s of CPU time"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(30) + LATE, "{:?}", began.elapsed());
    });
    assert_eq!(child(), None, "no compiler is left");
    assert!(peak() < before + (32 << 20), "{} of {before} bytes before", peak());
}

/// What the process has, by what the kernel says of it.
fn check_confined(process: &Path) {
    let read = |file: &str| std::fs::read_to_string(process.join(file)).expect("it runs");
    wait_until(LATE, "it has confined itself", || read("oom_score_adj") == "1000\n");
    let open = std::fs::read_dir(process.join("fd")).expect("it runs");
    let mut open: Vec<_> = open.map(|entry| entry.unwrap().file_name()).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
    assert_eq!(read("environ"), "");
    let limits = read("limits");
    // (of memory it is less where the container has less)
    for (limit, most) in [("Max cpu time", 10), ("Max data size", 2 << 30), ("Max core file size", 0)] {
        let line = limits.lines().find_map(|line| line.strip_prefix(limit)).expect("the kernel tells");
        let found = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
        assert!(found.is_some_and(|found| found <= most), "{limit}: {line}");
    }
}

#[test]
fn a_compiler_that_wants_more_memory_than_it_may_have_is_ended_by_that() {
    let mut compiler = millrace(&[COMPILE_VERB, "60", &(96 << 20).to_string()]);
    compiler.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut compiler = compiler.spawn().expect("the millrace binary runs");
    // (it may end before it has read all)
    let _ = compiler.stdin.take().expect("a pipe").write_all(&costly(2));
    let output = compiler.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(rustix::process::Signal::ABORT.as_raw()), "{said}");
    assert!(said.contains("memory allocation of"), "{said}");
}

#[test]
fn a_memory_that_is_empty_but_for_its_ends_is_no_image_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(Some(directory.path().join("cache")));
    let rest = r#"(data (i32.const 60000) "a") (data (i32.const 15000000) "b")"#;
    let component = wrap(&Guest { memory: "230", rest, ..Guest::default() }.module(), None).unwrap();
    engine.compile(&PluginName::new("probe").unwrap(), &component).unwrap();
    let kept = std::fs::read_dir(directory.path().join("cache")).unwrap().next().expect("it is kept").unwrap();
    let size = kept.metadata().unwrap().len();
    assert!(size < 1 << 20, "{size} bytes for two bytes of data");
}

#[test]
fn a_file_that_is_spoilt_or_cut_anywhere_is_refused_or_keeps_its_limits() {
    let whole = guest("identity-pass");
    let mut random = fastrand::Rng::with_seed(6);
    for _ in 0..60 {
        let mut bytes = whole.clone();
        let start = random.usize(0..bytes.len());
        let end = (start + random.usize(1..64)).min(bytes.len());
        match random.bool() {
            true => bytes.truncate(start),
            false => bytes[start..end].iter_mut().for_each(|byte| *byte = random.u8(..)),
        }
        if let Ok(mut step) = prepare(&bytes) {
            let _ = call(&mut step);
        }
    }
}

// ---- neighbours -------------------------------------------------------------------------------------------------------

/// How much longer a call may take, in the middle of many, while somebody else misbehaves: what a processor's caches and clock
/// do, and no more.
const RATIO: f64 = 4.0;
/// What a slow one may take beside that: others want the processor as well, and have their turns.
const TURNS: Duration = Duration::from_millis(20);

#[test]
fn a_neighbour_does_not_notice_who_loops_traps_recurses_floods_takes_memory_emits_or_is_compiled() {
    let flood = "(loop (call $log (i32.const 2) (i32.const 0) (i32.const 4000) (i32.const 0) (i32.const 0)) (br 0))";
    let grow = "(loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable";
    let recursion = "(func $deeper (param i64) (call $deeper (i64.add (local.get 0) (i64.const 1))))";
    let elements =
        "(loop (br_if 0 (i32.ne (table.grow $t (ref.null func) (i32.const 10000)) (i32.const -1)))) unreachable";
    let forward = r#"(import "millrace:plugin/output@$VERSION" "forward" (func $forward (param i32 i32 i32 i32)))"#;
    let outputs = "(call $forward (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 1000000))";
    let emit = r#"(import "millrace:plugin/output@$VERSION" "emit"
        (func $emit (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#;
    let giant = "(i32.store (i32.const 128) (i32.const 14000000)) \
        (drop (call $emit (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 1) (i32.const 65536) (i32.const 14000000) \
        (i32.const 128) (i32.const 1) (i32.const 0) (i32.const 0)))";
    let guests = [
        ("loops", Guest { process: "(loop (br 0))", ..Guest::default() }),
        ("traps", Guest { process: "unreachable", ..Guest::default() }),
        ("recurses", Guest { process: "(call $deeper (i64.const 0))", rest: recursion, ..Guest::default() }),
        ("floods the log", Guest { imports: LOG, process: flood, ..Guest::default() }),
        ("takes memory", Guest { process: grow, ..Guest::default() }),
        ("takes tables", Guest { process: elements, rest: "(table $t 1 funcref)", ..Guest::default() }),
        ("emits a million", Guest { imports: forward, memory: "230", process: outputs, ..Guest::default() }),
        ("emits a giant", Guest { imports: emit, memory: "230", process: giant, ..Guest::default() }),
    ];
    let mut neighbour = prepare(&guest("rewrite")).unwrap();
    for (what, guest) in guests {
        let (mut step, log) = (guest.step(), Sink::new());
        check_neighbour(what, &mut neighbour, || drop(log.take(|| call(&mut step)).unwrap_err()));
        // The first burst: all that the host lets pass at once, 4 KB a line.
        assert_eq!(log.bytes() > 200 * 4_000, what == "floods the log", "{what} has logged {} bytes", log.bytes());
    }
    let functions = "(func (drop (i32.add (i32.const 1) (i32.const 2))))".repeat(3_000);
    let many = wrap(&Guest { rest: &functions, ..Guest::default() }.module(), None).unwrap();
    let name = PluginName::new("many").unwrap();
    check_neighbour("is compiled", &mut neighbour, || drop(ENGINE.compile(&name, &many).unwrap()));
}

/// The times of the neighbour's calls stay within the ratio while another thread does this again and again: in the middle, and of
/// the slow ones that which nine in ten stay below.
#[track_caller]
fn check_neighbour(what: &str, neighbour: &mut PluginStep, mut misbehave: impl FnMut() + Send) {
    let records = MemoryBatch::of_values((0..500).map(|number| format!("{number:0100}")));
    let mut times = || {
        let mut calls: Vec<_> = (0..201)
            .map(|_| {
                let (mut items, began) = (records.items(), Instant::now());
                neighbour.call(&mut items, 0..500, Duration::from_secs(30)).expect("it is not concerned");
                began.elapsed()
            })
            .collect();
        calls.sort_unstable();
        [calls[calls.len() / 2], calls[calls.len() * 9 / 10]]
    };
    // (other tests run beside this one: what one look sees may be theirs)
    let mut seen = Vec::new();
    for _ in 0..5 {
        let alone = times();
        let is_over = AtomicBool::new(false);
        let beside = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    misbehave();
                }
            });
            let beside = catch_unwind(AssertUnwindSafe(&mut times));
            is_over.store(true, Ordering::Relaxed);
            beside.unwrap_or_else(|panic| resume_unwind(panic))
        });
        eprintln!("{what}: {alone:?} alone, {beside:?} beside it");
        let [median, slow] = alone.map(|alone| alone.mul_f64(RATIO));
        if beside[0] <= median && beside[1] <= slow + TURNS {
            return;
        }
        seen.push((alone, beside));
    }
    panic!("{what}: {seen:?}");
}

// ---- what comes out of a guest ----------------------------------------------------------------------------------------

/// Where the guest of commands puts the record that they stand in.
const IMAGE: u32 = 8192;
/// Bytes of one command: its number and ten parameters, four bytes each.
const COMMAND: usize = 44;

/// Does what the first record says: commands, each a function of the host and whatever is passed to it.
fn commanded() -> PluginStep {
    const SIGNATURES: [(&str, &str, usize, &str); 9] = [
        ("output", "emit", 10, "(result i32)"),
        ("output", "forward", 4, ""),
        ("output", "set-keys", 7, ""),
        ("output", "set-partitions", 3, ""),
        ("output", "set-timestamps", 3, ""),
        ("output", "set-topics", 3, ""),
        ("output", "set-header", 9, ""),
        ("output", "add-header", 9, ""),
        ("input", "[method]batch.refuse", 4, ""),
    ];
    let (mut imports, mut calls) = (String::new(), String::new());
    for (number, (interface, name, parameters, result)) in SIGNATURES.into_iter().enumerate() {
        let types = "i32 ".repeat(parameters);
        write!(
            imports,
            r#"(import "millrace:plugin/{interface}@$VERSION" "{name}" (func $f{number} (param {types}) {result}))"#
        )
        .unwrap();
        let parameter = |nth: usize| match interface {
            "input" if nth == 0 => "(local.get $batch) ".to_owned(),
            _ => format!("(i32.load offset={} (local.get $at)) ", 4 + nth * 4),
        };
        let passed: String = (0..parameters).map(parameter).collect();
        let call = format!("(call $f{number} {passed})");
        let call = if result.is_empty() { call } else { format!("(drop {call})") };
        write!(calls, "(if (i32.eq (i32.load (local.get $at)) (i32.const {number})) (then {call}))").unwrap();
    }
    imports +=
        r#"(import "millrace:plugin/input@$VERSION" "[method]batch.values" (func $values (param i32 i32 i32 i32)))"#;
    let process = format!(
        "(local $at i32) (local $end i32)
         (global.set $next (i32.const 4096))
         (call $values (local.get $batch) (i32.const 0) (i32.const 1) (i32.const 128))
         (memory.copy (i32.const {IMAGE}) (i32.load (i32.const 128)) (i32.load (i32.const 132)))
         (local.set $at (i32.const {IMAGE}))
         (local.set $end (i32.add (local.get $at) (i32.load (i32.const 132))))
         (block $done (loop $next
           (br_if $done (i32.gt_u (i32.add (local.get $at) (i32.const {COMMAND})) (local.get $end)))
           {calls}
           (if (i32.eq (i32.load (local.get $at)) (i32.const 9)) (then
             (call $drop (local.get $batch))
             (i32.store8 (i32.const 16) (i32.load offset=4 (local.get $at)))
             (i32.store (i32.const 20) (i32.load offset=8 (local.get $at)))
             (i32.store (i32.const 24) (i32.load offset=12 (local.get $at)))
             (return (i32.const 16))))
           (local.set $at (i32.add (local.get $at) (i32.const {COMMAND})))
           (br $next)))
         (call $drop (local.get $batch))
         (i32.store (i32.const 20) (i32.const 32))
         (i32.store (i32.const 24) (i32.const 3))
         (return (i32.const 16))"
    );
    Guest { imports: &imports, process: &process, ..Guest::default() }.step()
}

fn any_command() -> impl Strategy<Value = Vec<u32>> {
    // Small numbers, places in the record itself, and anything else now and then.
    let parameter =
        prop_oneof![20 => 0..8_u32, 10 => (0..200_u32).prop_map(|word| IMAGE + word * 4), 1 => any::<u32>()];
    (0..10_u32, prop::collection::vec(parameter, 10))
        .prop_map(|(number, parameters)| std::iter::once(number).chain(parameters).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3_000) })]

    #[test]
    fn whatever_a_guest_passes_to_the_host_ends_in_a_fault_or_in_outputs_that_are_sound(
        commands in prop::collection::vec(any_command(), 1..8),
        words in prop::collection::vec(0..8_u32, 60),
    ) {
        thread_local!(static STEP: std::cell::RefCell<Option<PluginStep>> = const { std::cell::RefCell::new(None) });
        let value: Vec<u8> = commands.iter().flatten().chain(&words).flat_map(|word| word.to_le_bytes()).collect();
        let mut items = MemoryBatch::of_values([value, b"b".to_vec(), b"c".to_vec()]).items();
        let answer = STEP.with_borrow_mut(|step| step.get_or_insert_with(commanded).call(&mut items, 0..3, LIMITS.timeout));
        match answer {
            Ok(output) => check_sound(&items, &output),
            Err(CallError::Fault { message, .. }) => prop_assert!(message.len() <= 2048),
            Err(CallError::Retry(message)) => prop_assert!(message.len() <= 2048),
        }
    }
}

/// Everything that an output says of itself can be read, and is within the limits.
fn check_sound(items: &Items, output: &CallOutput) {
    assert_eq!(output.verdicts.len(), 3);
    assert!(output.emitted.len() <= 3 * LIMITS.outputs as usize);
    let mut bytes = 0;
    for (source, item) in &output.emitted {
        assert!(*source < 3 && item.source < 3);
        bytes += items.key(item).map_or(0, <[u8]>::len);
        for nth in 0..items.header_count(item) {
            let (name, value) = items.header(item, nth);
            bytes += name.len() + value.map_or(0, <[u8]>::len);
        }
        let of_source = matches!(item.value, Field::Source);
        bytes += if of_source { 0 } else { items.value(item).map_or(0, <[u8]>::len) };
        assert!(items.timestamp(item) >= -1 && item.partition.is_none_or(|partition| partition >= 0));
    }
    assert!(bytes as u64 <= 3 * LIMITS.output_bytes, "{bytes}");
    assert!(output.reasons.iter().all(|(source, reason)| *source < 3 && reason.len() <= 1024));
}
