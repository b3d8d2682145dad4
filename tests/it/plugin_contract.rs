//! What the plugin host promises, shown with real guests at the level of one step: fidelity, every fault of the closed list,
//! limits, and what is refused at load.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace::config::settings::PluginLimits;
use millrace::model::{FaultCode, Item, Items, PluginName, RouteName, SendTo, SourceBatch};
use millrace::pipeline::ports::{CallError, CallOutput, Step, Verdict};
use millrace::plugin::{Compiled, DestinationSpec, Engine, LoadError, PluginStep, Prepare, Prepared, World, inspect};
use proptest::prelude::*;
use regex::Regex;
use serde_json::{Value, json};

use crate::support::guest_log::logged;
use crate::support::guests::{engine, guest};
use crate::support::is_alone;
use crate::support::memory_batch::{MemoryBatch, MemoryRecord};

const CPU: Duration = Duration::from_secs(5);
const LIMITS: PluginLimits =
    PluginLimits { memory: 64 << 20, timeout: Duration::from_secs(1), outputs: 1_000, output_bytes: 1 << 20 };

static ENGINE: LazyLock<Engine> = LazyLock::new(|| engine(None));

/// A plugin is compiled once for all tests.
fn compile(name: &str) -> Compiled {
    static COMPILED: Mutex<BTreeMap<String, Compiled>> = Mutex::new(BTreeMap::new());
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let compile = || ENGINE.compile(&PluginName::new(name).unwrap(), &guest(name));
    let entry = compiled.entry(name.to_owned());
    entry.or_insert_with(|| compile().unwrap_or_else(|error| panic!("{name}: {error}"))).clone()
}

fn with(plugin: &str, config: &Value, limits: PluginLimits) -> Prepare {
    let destination = |name: &str, pattern: Option<&str>| DestinationSpec {
        name: millrace::model::DestinationName::new(name).unwrap(),
        topic_pattern: pattern.map(|pattern| Regex::new(pattern).unwrap()),
    };
    Prepare {
        plugin: PluginName::new(plugin).unwrap(),
        route: RouteName::new("route").unwrap(),
        config_json: config.to_string(),
        limits,
        allow: Vec::new(),
        destinations: [destination("one", None), destination("per-region", Some("^(?:region\\..*)$"))].into(),
    }
}

fn prepare(name: &str, config: &Value, limits: PluginLimits) -> Arc<Prepared> {
    let prepared = compile(name).prepare(with(name, config, limits));
    Arc::new(prepared.unwrap_or_else(|error| panic!("{name}: {error}")))
}

fn step(name: &str, config: &Value) -> PluginStep {
    prepare(name, config, LIMITS).step()
}

fn misbehaving(what: &str) -> PluginStep {
    step("misbehave", &json!({ "do": what, "when": "poison" }))
}

fn call(step: &mut PluginStep, items: &mut Items) -> Result<CallOutput, CallError> {
    let range = 0..items.list.len();
    step.call(items, range, CPU)
}

fn batch(values: &[&str]) -> Arc<MemoryBatch> {
    MemoryBatch::of_values(values.iter().copied())
}

/// An item as the record that it would be produced as.
fn record_of(items: &Items, item: &Item) -> MemoryRecord {
    let header = |nth| {
        let (name, value) = items.header(item, nth);
        (name.to_vec(), value.map(<[u8]>::to_vec))
    };
    MemoryRecord {
        offset: items.source.offset(item.source as usize),
        timestamp: items.timestamp(item),
        key: items.key(item).map(<[u8]>::to_vec),
        value: items.value(item).map(<[u8]>::to_vec),
        headers: (0..items.header_count(item)).map(header).collect(),
    }
}

fn fault_of(result: Result<CallOutput, CallError>) -> (FaultCode, String) {
    match result {
        Err(CallError::Fault { code, message }) => (code, message),
        other => panic!("a fault was expected, not {other:?}"),
    }
}

/// The call fails as a whole with that fault, nothing has changed, and the next call, without the poison, goes well.
#[track_caller]
fn check_fault(step: &mut PluginStep, expected: FaultCode, words: &str) {
    let mut items = batch(&["a", "poison", "b"]).items();
    items.chunks.push(b"an earlier step's".to_vec());
    let (list, chunks) = (items.list.clone(), items.chunks.clone());
    let (code, message) = fault_of(call(step, &mut items));
    assert_eq!(code, expected, "{message}");
    assert!(message.contains(words), "{message:?} does not say {words:?}");
    assert!(message.len() <= 2048 && !message.contains('\n'), "{message:?}");
    assert_eq!((&*items.list, items.chunks), (&list, chunks), "the items changed");
    let neighbours = call(step, &mut batch(&["a", "b"]).items()).expect("the neighbours are not concerned");
    assert_eq!(neighbours.verdicts, [Verdict::Pass, Verdict::Pass]);
}

#[test]
fn a_guest_that_panics_is_trapped_and_its_message_is_told() {
    check_fault(&mut misbehaving("trap"), FaultCode::Trapped, "told to trap; in process");
}

#[test]
fn a_guest_that_recurses_without_end_is_trapped() {
    check_fault(&mut misbehaving("recurse"), FaultCode::Trapped, "; in misbehave::recurse");
}

#[test]
fn a_trap_tells_file_and_line_where_the_plugin_carries_them() {
    let (_, message) = fault_of(call(&mut misbehaving("trap"), &mut batch(&["poison"]).items()));
    let (_, frame) = message.split_once("; in process (").unwrap_or_else(|| panic!("{message}"));
    let (path, line) = frame.split_once(')').unwrap().0.split_once(':').unwrap();
    assert!(path.ends_with("test-guests/misbehave/src/lib.rs"), "{message}");
    let source =
        std::fs::read_to_string(crate::support::root().join("plugins/test-guests/misbehave/src/lib.rs")).unwrap();
    let line = source.lines().nth(line.parse::<usize>().unwrap() - 1).unwrap();
    assert!(line.contains(r#"panic!("told to trap")"#), "{message}: {line}");
}

#[test]
fn a_guest_that_takes_memory_without_end_is_out_of_memory() {
    check_fault(&mut misbehaving("grow"), FaultCode::OutOfMemory, "more than its 64MiB of memory");
}

#[test]
fn a_guest_that_never_returns_is_timed_out_when_its_cpu_time_is_spent() {
    let mut step = misbehaving("loop");
    let cpu = Duration::from_millis(50);
    let mut items = batch(&["poison"]).items();
    let before = Instant::now();
    let (code, message) = fault_of(step.call(&mut items, 0..1, cpu));
    assert_eq!(code, FaultCode::TimedOut, "{message}");
    assert!(before.elapsed() >= cpu, "it was interrupted early");
    let used = step.take_usage();
    assert!((cpu..cpu * 4).contains(&used.cpu), "{used:?}");
}

#[test]
fn outputs_that_break_a_rule_are_bad_output() {
    for (what, words) in [
        ("many_outputs", "1000 outputs"),
        ("large_output", "more than 1MiB of output"),
        ("foreign_destination", "\"no-such-destination\": the route has one, per-region"),
        ("bad_verdict", "verdict 7"),
        ("short_verdicts", "2 verdicts for 3 records"),
        ("bad_column", "ends"),
        ("bad_index", "record 3 of a batch of 3"),
        ("bad_item", "from number 1000000 on, of 0"),
    ] {
        check_fault(&mut misbehaving(what), FaultCode::BadOutput, words);
    }
}

#[test]
fn a_guest_that_traps_after_emitting_leaves_no_trace() {
    check_fault(&mut misbehaving("emit_then_trap"), FaultCode::Trapped, "told to trap");
}

#[test]
fn a_permanent_failure_of_the_batch_is_refused_and_keeps_the_instance() {
    let mut step = misbehaving("permanent");
    check_fault(&mut step, FaultCode::Refused, "told to fail for good");
    assert_eq!(step.take_usage().instances, 1);
}

#[test]
fn a_guest_that_asks_to_be_tried_again_keeps_its_state() {
    let mut step = step("misbehave", &json!({ "do": "retry_times", "n": 2 }));
    let mut items = batch(&["a"]).items();
    for attempt in 1..=2 {
        let answer = call(&mut step, &mut items);
        assert_eq!(answer.unwrap_err(), CallError::Retry(format!("told to ask again, {attempt} so far")));
    }
    assert_eq!(call(&mut step, &mut items).unwrap().verdicts, [Verdict::Pass]);
    assert_eq!(step.take_usage().instances, 1);
}

#[test]
fn a_record_refused_alone_leaves_the_others() {
    for (what, reasons) in [("refuse", vec![(1, "told to refuse".to_owned())]), ("refuse_silently", vec![])] {
        let output = call(&mut misbehaving(what), &mut batch(&["a", "poison", "b"]).items()).unwrap();
        assert_eq!(output.verdicts, [Verdict::Pass, Verdict::Refuse, Verdict::Pass], "{what}");
        assert_eq!(output.reasons, reasons, "{what}");
    }
}

#[test]
fn a_plugin_that_cannot_start_is_not_ready() {
    for (what, words) in [
        ("fail_configure", "it refuses its config: told to fail in configure"),
        ("trap_configure", "told to trap in configure"),
        ("loop_configure", "timed_out"),
    ] {
        let limits = PluginLimits { timeout: Duration::from_millis(10), ..LIMITS };
        match compile("misbehave").prepare(with("misbehave", &json!({ "do": what }), limits)) {
            Err(LoadError::NotReady(message)) => assert!(message.contains(words), "{what}: {message}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    let too_small = PluginLimits { memory: 65536, ..LIMITS };
    let error = compile("misbehave").prepare(with("misbehave", &json!({ "do": "trap" }), too_small)).unwrap_err();
    assert!(error.to_string().contains("out_of_memory"), "{error}");
}

#[test]
fn a_guest_that_misbehaves_in_shutdown_holds_nobody_up_for_long() {
    for what in ["trap_in_shutdown", "loop_in_shutdown"] {
        let mut step = step("misbehave", &json!({ "do": what }));
        call(&mut step, &mut batch(&["a"]).items()).unwrap();
        let before = Instant::now();
        step.shutdown();
        assert!(before.elapsed() < Duration::from_secs(60), "{what}");
        assert_eq!(step.take_usage().memory, 0, "{what}");
    }
}

#[test]
fn a_flood_of_log_lines_harms_nothing() {
    let mut step = step("misbehave", &json!({ "do": "log_flood", "n": 100_000 }));
    let began = Instant::now();
    let lines = logged(|| {
        assert_eq!(call(&mut step, &mut batch(&["a"]).items()).unwrap().verdicts, [Verdict::Pass]);
    });
    // 200 at once and 100 a second, each of which may be told with how many were left out before it.
    let most = 2 * (200 + (100.0 * began.elapsed().as_secs_f64()) as usize + 1);
    assert!((200..=most).contains(&lines.len()), "{} lines of at most {most}", lines.len());
}

#[test]
fn a_batch_whose_outputs_fit_one_by_one_is_only_halved() {
    let limits = PluginLimits { outputs: 150_000, ..LIMITS };
    let mut step = prepare("misbehave", &json!({ "do": "many_outputs", "n": 150_000 }), limits).step();
    let mut items = batch(&["a", "b"]).items();
    assert_eq!(
        fault_of(call(&mut step, &mut items)).0,
        FaultCode::BadOutput,
        "together they are too many for one call"
    );
    for one in 0..2 {
        assert_eq!(step.call(&mut items, one..one + 1, CPU).unwrap().emitted.len(), 150_000);
    }
}

#[test]
fn resident_memory_stays_flat_over_two_thousand_faults() {
    if !is_alone("plugin_contract::resident_memory_stays_flat_over_two_thousand_faults") {
        return;
    }
    let mut steps =
        ["trap", "grow", "recurse", "large_output", "many_outputs", "foreign_destination", "bad_verdict", "permanent"]
            .map(|what| {
                let limits = PluginLimits { memory: 4 << 20, ..LIMITS };
                prepare("misbehave", &json!({ "do": what, "when": "poison" }), limits).step()
            });
    let mut fault_in_each = || {
        for step in &mut steps {
            let _ = fault_of(call(step, &mut batch(&["a", "poison", "b"]).items()));
        }
    };
    (0..30).for_each(|_| fault_in_each());
    let before = resident_bytes();
    (0..250).for_each(|_| fault_in_each());
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "it grew by {grown} bytes");
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_filter_decides_and_copies_nothing() {
    let mut step = step("header-filter", &json!({}));
    let records = ["yes", "no", "yes"].map(|keep| MemoryRecord::of_value("v").header("keep", keep));
    let mut items = MemoryBatch::numbered(records.to_vec()).items();
    let output = call(&mut step, &mut items).unwrap();
    assert_eq!(output.verdicts, [Verdict::Pass, Verdict::Drop, Verdict::Pass]);
    assert!(items.chunks.is_empty() && output.emitted.is_empty());
}

#[test]
fn a_call_sees_its_range_of_the_items_only() {
    let mut step = step("rewrite", &json!({}));
    let mut items = batch(&["a", "b", "c", "d"]).items();
    let output = step.call(&mut items, 1..3, CPU).unwrap();
    let emitted: Vec<_> = output.emitted.iter().map(|(place, item)| (*place, item.source, items.value(item))).collect();
    assert_eq!(emitted, [(0, 1, Some(&b"B"[..])), (1, 2, Some(b"C"))]);
    assert_eq!(output.verdicts, [Verdict::Drop, Verdict::Drop]);
}

#[test]
fn a_later_step_sees_the_item_as_it_is_and_overrides_only_what_it_sets() {
    let mut stamp = step("stamp", &json!({ "name": "version", "value": "1" }));
    let mut rewrite = step("rewrite", &json!({}));
    let record =
        MemoryRecord::of_value("v").key("k").header("version", "0").header("other", "o").header("version", "0");
    let mut items = MemoryBatch::numbered(vec![record]).items();
    for step in [&mut stamp, &mut rewrite] {
        let output = call(step, &mut items).unwrap();
        *items.list = output.emitted.into_iter().map(|(_, item)| item).collect();
    }
    let expected = MemoryRecord::of_value("V").key("k").header("version", "1").header("other", "o");
    assert_eq!(record_of(&items, &items.list[0]), expected);
    assert_eq!(items.list[0].send_to, SendTo::Defaults);
}

#[test]
fn a_transform_routes_by_name_forwards_and_names_topics_and_partitions() {
    let mut step = step("route-by", &json!({}));
    let route = |headers: &[(&str, &str)]| {
        let record = MemoryRecord::of_value("v").key("k");
        headers.iter().fold(record, |record, (name, value)| record.header(*name, *value))
    };
    let records = vec![
        route(&[("to", "per-region"), ("topic", "region.eu"), ("partition", "3"), ("key", "other")]),
        route(&[("forward", "one"), ("keep", "yes")]),
        route(&[("to", "one,"), ("copies", "2")]),
        route(&[]),
    ];
    let mut items = MemoryBatch::numbered(records).items();
    let output = call(&mut step, &mut items).unwrap();
    assert_eq!(output.verdicts, [Verdict::Drop, Verdict::Pass, Verdict::Drop, Verdict::Pass]);
    let mut emitted = output.emitted;
    emitted.sort_by_key(|(place, _)| *place);
    let places: Vec<_> = emitted.iter().map(|(place, item)| (*place, item.send_to)).collect();
    let (one, region) = (SendTo::Named(0), SendTo::Named(1));
    assert_eq!(places, [(0, region), (1, one), (2, one), (2, SendTo::Defaults), (2, one), (2, SendTo::Defaults)]);
    let first = &emitted[0].1;
    assert_eq!(first.topic.as_ref().map(|topic| topic.as_str()), Some("region.eu"));
    assert_eq!((first.partition, items.key(first)), (Some(3), Some(&b"other"[..])));
    assert_eq!(emitted[1].1, Item { send_to: one, ..Item::of_source(1) }, "what is forwarded is the record itself");
}

#[test]
fn a_topic_that_does_not_match_its_destinations_pattern_is_bad_output() {
    for (topic, words) in [("elsewhere", "topic_pattern"), ("not a topic", "cannot be a topic")] {
        let record = MemoryRecord::of_value("v").header("to", "per-region").header("topic", topic);
        let result = call(&mut step("route-by", &json!({})), &mut MemoryBatch::numbered(vec![record]).items());
        let (code, message) = fault_of(result);
        assert_eq!(code, FaultCode::BadOutput);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn usage_counts_calls_time_instances_and_memory() {
    let mut step = step("scan", &json!({}));
    let mut items = MemoryBatch::of_values((0..512).map(|_| vec![b'x'; 4096])).items();
    for _ in 0..3 {
        call(&mut step, &mut items).unwrap();
    }
    let usage = step.take_usage();
    assert_eq!((usage.calls, usage.instances), (3, 1));
    assert!(usage.cpu > Duration::ZERO && usage.memory > 512 * 4096, "{usage:?}");
    let later = step.take_usage();
    assert_eq!((later.calls, later.cpu, later.instances, later.memory), (0, Duration::ZERO, 0, usage.memory));
}

#[test]
fn a_plugin_that_asks_for_what_nobody_can_grant_is_refused_by_the_imports_name() {
    let error = ENGINE.compile(&PluginName::new("needs-clock").unwrap(), &guest("needs-clock")).unwrap_err();
    let LoadError::Import { imports, .. } = &error else { panic!("{error}") };
    assert_eq!(imports, &["test:clock/clock@1.0.0"]);
    assert!(error.to_string().contains("test:clock/clock@1.0.0"), "{error}");
}

#[test]
fn a_core_module_that_asks_wasi_for_the_clock_gets_a_count_that_is_not_the_time() {
    assert_eq!(
        compile("needs-wasi").inspection().imports,
        ["millrace:plugin/types@0.1.1", "millrace:plugin/input@0.1.1", "millrace:plugin/log@0.1.1"]
    );
    let mut step = step("needs-wasi", &json!({}));
    for _ in 0..2 {
        // (it drops what it meets at time 0, and more than an hour after)
        assert_eq!(call(&mut step, &mut batch(&["a"]).items()).unwrap().verdicts, [Verdict::Pass]);
    }
}

#[test]
fn what_a_plugin_is_can_be_read_without_running_it() {
    let filter = inspect(&guest("header-filter")).unwrap();
    assert_eq!((filter.world, filter.version.as_deref()), (Some(World::Filter), Some("0.1.1")));
    let transform = inspect(&guest("rewrite")).unwrap();
    assert_eq!(transform.world, Some(World::Transform));
    assert!(transform.imports.contains(&"millrace:plugin/output@0.1.1".to_owned()), "{:?}", transform.imports);
}

#[test]
fn bytes_other_than_those_pinned_are_refused() {
    let bytes = guest("identity-pass");
    let name = PluginName::new("identity-pass").unwrap();
    let own = millrace::model::Digest::of(&bytes);
    assert!(ENGINE.compile_pinned(&name, &bytes, Some(&own)).is_ok());
    let other = millrace::model::Digest::of(b"other");
    assert!(matches!(ENGINE.compile_pinned(&name, &bytes, Some(&other)), Err(LoadError::Digest { .. })));
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let bytes = guest("identity-pass");
    let name = PluginName::new("cut").unwrap();
    let cuts = (0..64).chain((64..bytes.len()).step_by(1501)).chain([bytes.len() - 1]);
    for cut in cuts {
        assert!(ENGINE.compile(&name, &bytes[..cut]).is_err(), "cut at {cut}");
    }
}

/// Records of all kinds that Kafka can hold. A plugin that rebuilds a record can only write header names that are UTF-8.
fn any_record(name: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = MemoryRecord> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let maybe = || prop::option::of(bytes());
    let timestamp = prop_oneof![Just(-1), 0..=i64::MAX];
    (maybe(), maybe(), timestamp, prop::collection::vec((name, maybe()), 0..6))
        .prop_map(|(key, value, timestamp, headers)| MemoryRecord { offset: 0, timestamp, key, value, headers })
}

fn any_batch(name: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<MemoryRecord>> {
    prop::collection::vec(any_record(name), 1..20).prop_map(|mut records| {
        records.iter_mut().zip(0..).for_each(|(record, offset)| record.offset = offset * 3);
        records
    })
}

fn few_names() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just("".into()), Just("a".into()), Just("b".into()), "\\PC{0,5}".prop_map(String::into_bytes)]
}

fn through(guest: &str, records: &[MemoryRecord], range: Range<usize>) -> (Items, CallOutput) {
    let mut step = step(guest, &json!({}));
    let mut items = MemoryBatch::new("source", 7, records.to_vec()).items();
    let output = step.call(&mut items, range, CPU).unwrap();
    (items, output)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn a_record_rebuilt_by_a_plugin_is_the_same_byte_for_byte(records in any_batch(few_names())) {
        let (items, output) = through("identity-emit", &records, 0..records.len());
        prop_assert!(output.verdicts.iter().all(|verdict| *verdict == Verdict::Drop));
        let rebuilt: Vec<_> = output.emitted.iter().map(|(_, item)| record_of(&items, item)).collect();
        prop_assert_eq!(rebuilt, records);
    }

    #[test]
    fn a_record_passed_on_is_untouched_whatever_its_header_names(
        records in any_batch(prop::collection::vec(any::<u8>(), 0..5)),
    ) {
        let (items, output) = through("identity-pass", &records, 0..records.len());
        prop_assert!(output.verdicts.iter().all(|verdict| *verdict == Verdict::Pass));
        let passed: Vec<_> = items.list.iter().map(|item| record_of(&items, item)).collect();
        prop_assert_eq!(passed, records);
    }

    #[test]
    fn bytes_flipped_in_a_plugins_file_never_bring_the_host_down(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = guest("identity-pass");
        for (place, byte) in places {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        // Either it is refused, or it runs within its limits.
        if let Ok(compiled) = ENGINE.compile(&PluginName::new("flipped").unwrap(), &bytes)
            && let Ok(prepared) = compiled.prepare(with("flipped", &json!({}), LIMITS))
        {
            let _ = Arc::new(prepared).step().call(&mut batch(&["a"]).items(), 0..1, Duration::from_millis(100));
        }
    }
}

#[test]
fn compiled_plugins_are_kept_and_a_spoilt_one_is_compiled_again() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    let compile_with_cache = || {
        let engine = engine(Some(cache.clone()));
        let name = PluginName::new("identity-pass").unwrap();
        let compiled = engine.compile(&name, &guest("identity-pass")).unwrap();
        let prepared = Arc::new(compiled.prepare(with("identity-pass", &json!({}), LIMITS)).unwrap());
        assert_eq!(call(&mut prepared.step(), &mut batch(&["a"]).items()).unwrap().verdicts, [Verdict::Pass]);
    };
    let files = || {
        let mut files: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    };
    compile_with_cache();
    let kept = files();
    assert_eq!(kept.len(), 2, "the machine code, and the component that it is of");
    compile_with_cache();
    assert_eq!(files(), kept);

    for number in 0..kept.len() {
        let whole = std::fs::read(&files()[number]).unwrap();
        let mut spoilt = whole.clone();
        spoilt[whole.len() / 2] ^= 1;
        std::fs::write(&files()[number], &spoilt).unwrap();
        compile_with_cache();
        assert_eq!(files().len(), 2);
        assert_eq!(std::fs::read(&files()[number]).unwrap().len(), whole.len());
        assert_ne!(std::fs::read(&files()[number]).unwrap(), spoilt);
    }
}

#[test]
fn a_cache_that_others_can_write_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let engine = engine(Some(directory.path().to_owned()));
    engine.compile(&PluginName::new("identity-pass").unwrap(), &guest("identity-pass")).unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn steps_of_one_prepared_plugin_run_beside_each_other() {
    let prepared = prepare("rewrite", &json!({}), LIMITS);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut step = prepared.step();
                for _ in 0..50 {
                    let mut items = batch(&["a", "b"]).items();
                    let output = call(&mut step, &mut items).unwrap();
                    assert_eq!(items.value(&output.emitted[1].1), Some(&b"B"[..]));
                }
            });
        }
    });
    let _: Arc<dyn SourceBatch> = batch(&["a"]);
}

#[test]
fn a_directory_put_in_the_place_of_the_cache_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let engine = engine(Some(cache.clone()));
    let plugin = PluginName::new("scan").unwrap();
    engine.compile(&plugin, &guest("scan")).unwrap();
    // Somebody who can write the folder around it renames it away, and puts one with the same name there.
    std::fs::rename(&cache, folder.path().join("away")).unwrap();
    std::fs::create_dir(&cache).unwrap();
    engine.compile(&plugin, &guest("scan")).unwrap();
    engine.compile(&PluginName::new("rewrite").unwrap(), &guest("rewrite")).unwrap();
    let names = |folder: &std::path::Path| std::fs::read_dir(folder).unwrap().count();
    // (two of each: the machine code, and the component that it is of)
    assert_eq!((names(&cache), names(&folder.path().join("away"))), (0, 4));
    // Told to, it looks there again: as at a reload that changes `cache_dir`.
    engine.keep_in(Some(cache.clone()));
    engine.compile(&plugin, &guest("scan")).unwrap();
    assert_eq!(names(&cache), 2);
}

#[test]
fn a_plugin_that_is_in_use_is_neither_compiled_nor_loaded_again() {
    let cache = tempfile::tempdir().unwrap();
    let engine = engine(None);
    let plugin = PluginName::new("scan").unwrap();
    let in_use = engine.compile(&plugin, &guest("scan")).unwrap();
    engine.keep_in(Some(cache.path().to_owned()));
    let kept = || std::fs::read_dir(cache.path()).unwrap().count();
    let again = engine.compile(&plugin, &guest("scan")).unwrap();
    assert_eq!((kept(), again.sha256()), (0, in_use.sha256()));
    drop((in_use, again));
    engine.compile(&plugin, &guest("scan")).unwrap();
    assert_eq!(kept(), 2);
}

/// What wit-component would follow until the stack overflows, and the process with it.
#[test]
fn packages_that_depend_on_each_other_in_a_circle_are_refused() {
    let mut bytes = guest("identity-pass");
    // The world is in millrace:plugin and takes this interface, which takes its types from there.
    let (from, to) = (b"millrace:plugin/input@", b"millrace:circle/input@");
    let places: Vec<usize> = (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert!(places.len() > 1, "it stands in the component type, and where it is imported");
    for at in places {
        bytes[at..at + from.len()].copy_from_slice(to);
    }
    let refused = ENGINE.compile(&PluginName::new("circle").unwrap(), &bytes).unwrap_err().to_string();
    assert!(refused.contains("in a circle") && refused.contains("millrace:"), "{refused}");
}
