//! Instances of plugins are pooled: they lie in slots of addresses that are reserved once. What one leaves, no other sees; what ends,
//! gives its memory back; and where there is no slot, or no addresses for slots, that is said.

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use millrace::model::{FaultCode, PluginName};
use millrace::pipeline::ports::{CallError, Step, Verdict};
use millrace::plugin::{Compiled, Engine, PluginStep, Prepared, Slots, wrap};
use serde_json::json;

use crate::conformance;
use crate::sandbox::{Guest, call, with};
use crate::support::config::{Config, plugin};
use crate::support::daemon::{millrace, millrace_output};
use crate::support::guests::engine_with;
use crate::support::memory_batch::MemoryBatch;
use crate::support::{is_alone, root, scratch, wait_until};

/// Room for so many instances of a plugin with one memory.
fn room_for(memories: u32) -> Engine {
    engine_with(None, Slots { memories, tables: 4 * memories })
}

fn compile(engine: &Engine, guest: Guest<'_>) -> Compiled {
    let component = wrap(&guest.module(), None).unwrap_or_else(|error| panic!("{error}"));
    engine.compile(&PluginName::new("probe").unwrap(), &component).unwrap_or_else(|error| panic!("{error}"))
}

fn prepare(compiled: &Compiled) -> Arc<Prepared> {
    Arc::new(compiled.prepare(with(&[])).unwrap_or_else(|error| panic!("{error}")))
}

/// Looks for what others left in its memory, in what that grows by, and in its table; then leaves as much as it can.
fn untidy(letter: char, end: &str) -> (String, String) {
    let process = format!(
        "(if (i32.ne (i32.load8_u (i32.const 36000)) (i32.const {code})) (then (call $something_was_left)))
         (if (i32.ne (memory.grow (i32.const 4)) (i32.const 1)) (then (call $something_was_left)))
         (call $look (i32.const 40000) (i32.const 327680))
         (if (i32.eqz (ref.is_null (table.get $t (i32.const 3)))) (then (call $something_was_left)))
         (memory.fill (i32.const 36000) (i32.const 170) (i32.const 291680))
         (table.set $t (i32.const 3) (ref.func $look))
         {end}",
        code = u32::from(letter)
    );
    let rest = format!(
        r#"(table $t 10 funcref)
           (elem declare func $look)
           (data (i32.const 36000) "{letter}")
           (func $something_was_left unreachable)
           (func $told_to_break unreachable)
           (func $look (param $at i32) (param $end i32)
             (loop $next
               (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then (call $something_was_left)))
               (local.set $at (i32.add (local.get $at) (i32.const 8)))
               (br_if $next (i32.lt_u (local.get $at) (local.get $end)))))"#
    );
    (process, rest)
}

#[test]
fn what_an_instance_leaves_in_its_slot_no_other_sees_of_the_same_plugin_or_another() {
    let engine = room_for(1);
    let [one, other, breaks] = [('a', ""), ('b', ""), ('c', "(call $told_to_break)")].map(|(letter, end)| {
        let (process, rest) = untidy(letter, end);
        prepare(&compile(&engine, Guest { process: &process, rest: &rest, ..Guest::default() }))
    });
    // (there is one slot: each of these begins where the one before it ended)
    for prepared in [&one, &one, &other, &one, &other, &other] {
        assert_eq!(call(&mut prepared.step()).unwrap().verdicts, [Verdict::Pass]);
        let mut breaks = breaks.step();
        for _ in 0..3 {
            match call(&mut breaks) {
                Err(CallError::Fault { code: FaultCode::Trapped, message }) => {
                    assert!(message.contains("told_to_break"), "{message}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn where_no_slot_is_left_an_instance_is_not_ready_and_it_is_said_what_to_do_until_one_is_given_back() {
    let engine = room_for(2);
    let prepared = prepare(&compile(&engine, Guest::default()));
    let mut steps: Vec<PluginStep> = (0..3).map(|_| prepared.step()).collect();
    for step in &mut steps[..2] {
        assert_eq!(call(step).unwrap().verdicts, [Verdict::Pass]);
    }
    match call(&mut steps[2]) {
        Err(CallError::Fault { code: FaultCode::NotReady, message }) => {
            assert!(message.contains("every slot") && message.contains("have fewer `workers`"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    drop(steps.remove(0));
    for step in &mut steps {
        assert_eq!(call(step).unwrap().verdicts, [Verdict::Pass]);
    }
}

#[test]
fn a_configuration_with_more_instances_than_there_is_room_for_is_refused_with_the_numbers() {
    let steps = "{ plugin: p }, ".repeat(9);
    let config = Config::new(
        "127.0.0.1:1",
        &[],
        &format!(
            "memory: 8GiB
plugins: {{ p: {{ path: {} }} }}
routes:
  r:
    source: {{ topics: [in], start: earliest }}
    pipeline: [{steps}]
    destinations: [{{ topic: out }}]
    workers: 512
",
            plugin("identity-pass").display()
        ),
    );
    let output = millrace_output(&["check", config.path().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("need 4608 memories and") && said.contains("have fewer `workers`"), "{said}");
    config.edit(|yaml| yaml.replace("workers: 512", "workers: 400"));
    let output = millrace_output(&["check", config.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn where_there_are_no_addresses_for_slots_that_is_told_and_plugins_run_without() {
    let few = |verb: &str, config: &Config| {
        let mut command = Command::new("sh");
        // (32 GiB of addresses)
        command.args(["-c", "ulimit -v 33554432; exec \"$@\"", "sh"]).arg(millrace(&[]).get_program());
        command.arg(verb).arg(config.path()).stdin(Stdio::null()).env("NO_COLOR", "1");
        command
    };
    let config = Config::new(
        "127.0.0.1:1",
        &[],
        &format!(
            "plugins: {{ p: {{ path: {}, config: {{ fields: [card] }} }} }}
routes:
  r:
    source: {{ topics: [in], start: earliest }}
    pipeline: [{{ plugin: p }}]
    destinations: [{{ topic: out }}]
tests:
  - name: it is hidden
    route: r
    given: [{{ value: {{ card: 1 }} }}]
    expect: [{{ topic: out, value: {{ card: \"[redacted]\" }} }}]
",
            plugin("redact-fields").display()
        ),
    );
    let output = few("test", &config).output().expect("a shell");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let log = scratch("no-addresses").with_extension("log");
    let mut daemon = few("run", &config).stderr(File::create(&log).unwrap()).spawn().expect("a shell");
    let said = || std::fs::read_to_string(&log).unwrap();
    let told = std::panic::catch_unwind(|| {
        wait_until(Duration::from_secs(60), "it says so", || said().contains("plugins' instances are not pooled"));
        wait_until(Duration::from_secs(60), "it runs", || said().contains("millrace is running"));
    });
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    told.unwrap_or_else(|_| panic!("{}", said()));
    std::fs::remove_file(log).unwrap();
}

/// What is resident of this process, bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[test]
fn an_instance_more_takes_what_the_documents_say_and_gives_it_back_when_it_ends() {
    const LANGUAGES: [(&str, &str); 5] =
        [("Rust", "rust"), ("C", "c"), ("Go", "go"), ("JavaScript", "javascript"), ("Python", "python")];
    const INSTANCES: usize = 16;
    const RECORDS: usize = 128;
    LANGUAGES.iter().for_each(|(_, language)| drop(conformance::compile("redact", language)));
    if !is_alone("slots::an_instance_more_takes_what_the_documents_say_and_gives_it_back_when_it_ends") {
        return;
    }
    let page = std::fs::read_to_string(root().join("docs/plugins/languages.md")).unwrap();
    for (name, language) in LANGUAGES {
        let row = page.lines().find(|line| line.starts_with(&format!("| {name} | ")) && line.contains('×')).unwrap();
        let told = bytes(row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap().trim());
        let prepared = conformance::prepare("redact", language, &json!({ "fields": ["card"] }));
        assert_eq!(prepared.slots(), Slots { memories: 1, tables: 2 }, "{language}");
        let records = MemoryBatch::of_values((0..RECORDS).map(|n| format!("{{\"id\":{n},\"card\":\"4711\"}}")));
        let instance = || {
            let mut step = prepared.step();
            let output = step.call(&mut records.items(), 0..RECORDS, Duration::from_secs(60)).unwrap();
            assert_eq!(output.emitted.len(), RECORDS, "{language}");
            step
        };
        // (with the first, what all of them share)
        let _first = instance();
        let before = resident();
        let kept: Vec<PluginStep> = (0..INSTANCES).map(|_| instance()).collect();
        let took = resident().saturating_sub(before) as f64 / INSTANCES as f64;
        drop(kept);
        let left = resident().saturating_sub(before) as f64 / INSTANCES as f64;
        eprintln!("{language}: {took:.0} bytes an instance, {left:.0} once it has ended, {told:.0} told");
        assert!(took < 1.5 * told + 1e5, "{language}: {took:.0} bytes an instance, and the documents say {told:.0}");
        assert!(left < 0.1 * took + 5e4, "{language}: {left:.0} of {took:.0} bytes stay when an instance ends");
    }
}

/// As the table has it.
fn bytes(text: &str) -> f64 {
    let (number, unit) = text.split_once(' ').expect("a number and a unit");
    let factor = match unit {
        "kB" => 1e3,
        "MB" => 1e6,
        other => panic!("{other}"),
    };
    number.parse::<f64>().expect("a number") * factor
}
