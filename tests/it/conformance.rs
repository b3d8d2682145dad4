//! What a plugin can rely on in whatever language it is written: one suite, run through the real host over each language's
//! `redact-<language>.wasm` (the template that `plugin new` copies) and `conform-<language>.wasm` (made of the same layer; it
//! does what a record's headers say, see plugins/conformance/README.md). `scripts/languages` builds them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use millrace::config::settings::PluginLimits;
use millrace::model::{DestinationName, FaultCode, Item, Items, PluginName, RouteName, SendTo};
use millrace::pipeline::ports::{CallError, CallOutput, Step, Verdict};
use millrace::plugin::{Compiled, DestinationSpec, Engine, EngineOptions, LoadError, PluginStep, Prepare, Prepared};
use regex::Regex;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::support::guest_log::logged;
use crate::support::guests::engine;
use crate::support::memory_batch::{MemoryBatch, MemoryRecord};
use crate::support::root;

/// What a record of the suite may take: an interpreter in a test build on a busy machine is given time.
const CPU: Duration = Duration::from_secs(20);
const LIMITS: PluginLimits =
    PluginLimits { memory: 64 << 20, timeout: Duration::from_secs(5), outputs: 10_000, output_bytes: 4 << 20 };
const DESTINATIONS: [&str; 2] = ["one", "per-region"];

/// Makes a module for each language with the tests named. A new language is one line here, and its build in
/// `scripts/languages`.
macro_rules! in_every_language {
    ($($test:ident)*) => {
        in_every_language!(@ rust $($test)*);
        in_every_language!(@ javascript $($test)*);
        in_every_language!(@ python $($test)*);
        in_every_language!(@ go $($test)*);
        in_every_language!(@ c $($test)*);
    };
    (@ $language:ident $($test:ident)*) => {
        mod $language {
            $(#[test]
            fn $test() {
                super::$test(stringify!($language));
            })*
        }
    };
}

in_every_language! {
    records_without_the_fields_pass_untouched
    fields_are_redacted_at_any_depth_and_nothing_else_changes
    a_redacted_record_keeps_its_key_headers_and_timestamp
    numbers_and_text_keep_their_digits_and_characters
    escapes_keep_their_meaning
    what_is_not_json_is_refused_with_a_reason_and_the_others_go_on
    a_value_nested_too_deep_for_its_parser_harms_nothing
    a_config_that_is_of_no_use_is_refused_with_what_is_wrong
    batch_borders_change_nothing
    a_record_made_anew_of_what_can_be_read_is_the_same_byte_for_byte
    a_plugin_reads_where_a_record_comes_from
    many_items_go_out_in_the_order_of_the_calls
    what_is_set_on_an_item_is_set_on_that_one_only
    headers_change_in_the_order_of_the_calls
    a_record_refused_leaves_the_others
    a_plugin_that_asks_to_be_tried_again_keeps_its_instance
    a_batch_given_up_for_good_is_refused
    a_broken_program_traps_says_why_and_leaves_no_trace
    a_line_logged_carries_the_coordinates_of_its_record
}

/// Who can print, and whether its layer tells of which record. Rust's own `println!` goes nowhere on its target, which has no output.
const PRINTING: [(&str, bool); 4] = [("javascript", true), ("python", true), ("go", false), ("c", false)];

// ---- the transform that all templates do ----------------------------------------------------------------------------

fn records_without_the_fields_pass_untouched(language: &str) {
    let values = ["{\"a\": 1.50,\n \"cards\" : [ ]}", "[]", " 3 ", "\"card\"", "null", "{\"a\":{\"card\":1}}", "{}"];
    let mut records: Vec<_> = values.map(MemoryRecord::of_value).into();
    records.push(MemoryRecord { value: None, key: Some(b"tombstone".into()), ..MemoryRecord::of_value("") });
    for (index, record) in records.iter_mut().enumerate() {
        record.key = [None, Some(vec![]), Some(vec![0, 0xff, 0xfe])][index % 3].clone();
        record.timestamp = [-1, 0, 1_700_000_000_123][index % 3];
        let header = |name: &[u8], value: Option<&[u8]>| (name.to_vec(), value.map(<[u8]>::to_vec));
        record.headers = vec![header(b"h", None), header(b"h", Some(b"")), header(b"\xff", Some(b"\0\xff"))];
    }
    let (items, output) = call(&mut redact(language, &["card", "x.y"]), &records).unwrap();
    assert_eq!(output.verdicts, vec![Verdict::Pass; records.len()]);
    assert!(output.emitted.is_empty() && items.chunks.is_empty(), "{:?}", output.emitted);
    let passed: Vec<_> = items.list.iter().map(|item| record_of(&items, item)).collect();
    assert_eq!(passed, numbered(&records));
}

fn fields_are_redacted_at_any_depth_and_nothing_else_changes(language: &str) {
    let redacted = r#""[redacted]""#;
    for (fields, given, expected) in [
        (&["card"][..], r#"{"z":1,"card":"4711","a":2}"#, r#"{"z":1,"card":R,"a":2}"#),
        (&["card"], r#"{"card":{"card":[1,{"card":2}]},"b":{"card":3}}"#, r#"{"card":R,"b":{"card":3}}"#),
        (&["card"], r#"[{"card":null},[{"card":true},[]],{}]"#, r#"[{"card":R},[{"card":R},[]],{}]"#),
        (&["card"], r#"{"card":[]}"#, r#"{"card":R}"#),
        (
            &["a.b.c"],
            r#"{"a":[{"b":{"c":1,"d":1}},{"b":[{"c":2}]},{"b":3}],"c":4}"#,
            r#"{"a":[{"b":{"c":R,"d":1}},{"b":[{"c":R}]},{"b":3}],"c":4}"#,
        ),
        (&["a", "b.c", "b.d"], r#"{"b":{"d":1,"c":"}]"},"a":"\\"}"#, r#"{"b":{"d":R,"c":R},"a":R}"#),
        (&["a", "a.b"], r#"{"a":{"b":1}}"#, r#"{"a":R}"#),
        (&["ключ", "a b"], r#"{"ключ":1,"a b":2,"":3}"#, r#"{"ключ":R,"a b":R,"":3}"#),
        (&[""], r#"{"":1,"a":{"":2}}"#, r#"{"":R,"a":{"":2}}"#),
        (
            &["__proto__", "constructor"],
            r#"{"__proto__":1,"constructor":2,"1":3}"#,
            r#"{"__proto__":R,"constructor":R,"1":3}"#,
        ),
    ] {
        let value = redacted_value(language, fields, given);
        assert_eq!(value.as_deref(), Some(&*expected.replace('R', redacted)), "{fields:?} in {given}");
    }
}

fn a_redacted_record_keeps_its_key_headers_and_timestamp(language: &str) {
    let header = |name: &[u8], value: Option<&[u8]>| (name.to_vec(), value.map(<[u8]>::to_vec));
    let keys = [None, Some(vec![]), Some(vec![0xff, 0])];
    let records = keys.map(|key| MemoryRecord {
        key,
        timestamp: 1_700_000_000_123,
        headers: vec![
            header(b"h", Some(b"1")),
            header(b"h", None),
            header(b"\xff\xfe", Some(b"\0")),
            header(b"h", Some(b"")),
        ],
        ..MemoryRecord::of_value(r#"{"card":1}"#)
    });
    let (items, output) = call(&mut redact(language, &["card"]), &records).unwrap();
    assert_eq!(output.verdicts, [Verdict::Drop; 3]);
    let expected = numbered(&records).into_iter();
    let expected: Vec<_> =
        expected.map(|record| MemoryRecord { value: Some(br#"{"card":"[redacted]"}"#.into()), ..record }).collect();
    let sent = sent(&items, &output);
    assert_eq!(sent.iter().map(|sent| sent.record.clone()).collect::<Vec<_>>(), expected);
    assert!(sent.iter().all(|sent| sent.to == "(defaults)"), "{sent:?}");
}

fn numbers_and_text_keep_their_digits_and_characters(language: &str) {
    let rest = [
        r#""n":12345678901234567890.1234,"big":123456789012345678901234567890,"z":1.10,"neg":-0.0,"zero":0"#,
        r#""s":"é ü 漢字 𝄞 \" \\ \n \u0001","\"":1,"long":"#,
    ]
    .join(",");
    let given = format!(r#"{{{rest}"{}","card":1}}"#, "0123456789€".repeat(1000));
    let expected = given.replace(r#""card":1"#, r#""card":"[redacted]""#);
    assert_eq!(redacted_value(language, &["card"], &given), Some(expected));
}

fn escapes_keep_their_meaning(language: &str) {
    let given = r#" { "c\u0061rd" : 1, "a\/b" : "\u00e9\ud834\udd1e\/" , "e" : 1e3 } "#;
    let value = redacted_value(language, &["card"], given).expect("a name behind an escape is found");
    let meaning: Value = serde_json::from_str(&value).unwrap();
    assert_eq!(meaning, json!({ "card": "[redacted]", "a/b": "é𝄞/", "e": 1000.0 }), "{value}");
}

fn what_is_not_json_is_refused_with_a_reason_and_the_others_go_on(language: &str) {
    let broken: [&[u8]; 9] = [
        b"no",
        b"",
        b"{\"a\":\"\xff\"}",
        b"{\"card\":1} x",
        b"{'card':1}",
        b"NaN",
        b"{\"card\":01}",
        b"[1,]",
        b"\xef\xbb\xbf{}",
    ];
    let good = MemoryRecord::of_value(r#"{"card":1}"#);
    let records: Vec<_> = broken.iter().flat_map(|value| [MemoryRecord::of_value(*value), good.clone()]).collect();
    let (items, output) = call(&mut redact(language, &["card"]), &records).unwrap();
    for (pair, value) in output.verdicts.chunks(2).zip(broken) {
        assert_eq!(pair, [Verdict::Refuse, Verdict::Drop], "{}", value.escape_ascii());
    }
    let places: Vec<_> = output.reasons.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, (0..18).step_by(2).collect::<Vec<_>>());
    for (_, reason) in &output.reasons {
        assert!(reason.starts_with("the value is not JSON"), "{reason}");
    }
    assert_eq!(sent(&items, &output).len(), broken.len());
}

fn a_value_nested_too_deep_for_its_parser_harms_nothing(language: &str) {
    let mut step = redact(language, &["card"]);
    let deep = 100_000;
    let nested = |deep| format!("{}{}", "[".repeat(deep), "]".repeat(deep));
    let (_, output) = call(&mut step, &[MemoryRecord::of_value(nested(100))]).unwrap();
    assert_eq!(output.verdicts, [Verdict::Pass]);
    let records = [
        MemoryRecord::of_value(nested(deep)),
        MemoryRecord::of_value("[".repeat(deep)),
        MemoryRecord::of_value(r#"{"card":1}"#),
    ];
    let (_, output) = call(&mut step, &records).unwrap();
    // Where a parser has no limit it is JSON.
    assert!(
        matches!(output.verdicts[..], [Verdict::Refuse | Verdict::Pass, Verdict::Refuse, Verdict::Drop]),
        "{output:?}"
    );
    assert_eq!(step.take_usage().instances, 1);
}

fn a_config_that_is_of_no_use_is_refused_with_what_is_wrong(language: &str) {
    for (config, words) in [
        (json!({ "fields": [] }), &["fields", "name at least one"][..]),
        (json!({}), &["fields"]),
        (json!({ "fields": "card" }), &[]),
        (json!({ "fields": [1] }), &[]),
        (json!({ "fields": ["card"], "feilds": ["card"] }), &["feilds"]),
    ] {
        match compile("redact", language).prepare(with("redact", &config)) {
            Err(LoadError::NotReady(message)) => {
                let told = words.iter().all(|word| message.contains(word));
                assert!(message.starts_with("it refuses its config: ") && told, "{config}: {message}");
            }
            other => panic!("{config}: {other:?}"),
        }
    }
}

fn batch_borders_change_nothing(language: &str) {
    let values =
        ["{\"card\":1}", "{}", "no", "[{\"card\":2},{\"card\":3}]", "{\"b\":{\"card\":1}}", "null", "{\"card\":\"é\"}"];
    let records: Vec<_> = (0..3).flat_map(|_| values.map(MemoryRecord::of_value)).collect();
    let in_batches_of = |size: usize| {
        let mut step = redact(language, &["card", "b.card"]);
        let mut items = MemoryBatch::numbered(records.clone()).items();
        let (mut verdicts, mut all, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
        for start in (0..records.len()).step_by(size) {
            let output = step.call(&mut items, start..(start + size).min(records.len()), CPU).unwrap();
            all.extend(sent(&items, &output));
            reasons.extend(output.reasons.into_iter().map(|(place, reason)| (start as u32 + place, reason)));
            verdicts.extend(output.verdicts);
        }
        (verdicts, all, reasons)
    };
    let whole = in_batches_of(records.len());
    assert_eq!(whole.1.len(), 12);
    assert_eq!(in_batches_of(1), whole);
    assert_eq!(in_batches_of(3), whole);
}

// ---- the layer: what goes in and out --------------------------------------------------------------------------------

fn a_record_made_anew_of_what_can_be_read_is_the_same_byte_for_byte(language: &str) {
    let mut step = conform(language);
    let mut random = fastrand::Rng::with_seed(6);
    for _ in 0..20 {
        let records: Vec<_> = (0..random.usize(1..20)).map(|_| any_record(&mut random)).collect();
        let (items, output) = call(&mut step, &records).unwrap();
        let sent: Vec<_> = sent(&items, &output).into_iter().map(|sent| sent.record).collect();
        assert_eq!(sent, numbered(&records));
    }
}

/// A record of any bytes that asks to be made anew. Names of headers are UTF-8, as plugins write them.
fn any_record(random: &mut fastrand::Rng) -> MemoryRecord {
    let bytes = |random: &mut fastrand::Rng| -> Option<Vec<u8>> {
        let length = random.usize(0..30);
        random.bool().then(|| (0..length).map(|_| random.u8(..)).collect())
    };
    let names = ["", "a", "b", "é漢𝄞"];
    let header = |random: &mut fastrand::Rng| (names[random.usize(..4)].into(), bytes(random));
    let mut headers: Vec<_> = (0..random.usize(0..6)).map(|_| header(random)).collect();
    headers.insert(random.usize(..=headers.len()), ("rebuild".into(), None));
    headers.insert(random.usize(..=headers.len()), ("drop".into(), None));
    // (JavaScript has milliseconds in numbers, which are exact to 2^53)
    let timestamp = [-1, 0, random.i64(0..1 << 53)][random.usize(..3)];
    MemoryRecord { offset: 0, timestamp, key: bytes(random), value: bytes(random), headers }
}

fn a_plugin_reads_where_a_record_comes_from(language: &str) {
    let record = |offset, timestamp| {
        let record = MemoryRecord::of_value("v").header("describe", "").header("t", "first").header("t", "last");
        MemoryRecord { offset, timestamp, ..record }
    };
    let records = vec![
        record(5, -1),
        record(1 << 60, 1_700_000_000_123).key("k"),
        MemoryRecord { offset: 1 << 61, ..MemoryRecord::of_value("v").key("").header("describe", "") },
    ];
    let mut items = MemoryBatch::new("source.topic", 7, records).items();
    let output = conform(language).call(&mut items, 0..3, CPU).unwrap();
    let said: Vec<_> = output.emitted.iter().map(|(_, item)| text(items.value(item))).collect();
    let expected = [
        "source.topic/7/5 null null last".to_owned(),
        format!("source.topic/7/{} 1700000000123 k last", 1_i64 << 60),
        format!("source.topic/7/{} null  null", 1_i64 << 61),
    ];
    assert_eq!(said, expected);
}

fn many_items_go_out_in_the_order_of_the_calls(language: &str) {
    let records = [
        commands(&[
            ("emit", "one"),
            ("emit", "per-region"),
            ("emit-text", "1"),
            ("forward", "one"),
            ("emit", "one"),
            ("drop", ""),
        ]),
        commands(&[("emit-null", "per-region"), ("forward", "one")]),
        commands(&[]),
        commands(&[("forward", "per-region"), ("emit", "one"), ("emit", ""), ("copies", "1000"), ("drop", "")]),
    ];
    let (items, output) = call(&mut conform(language), &records).unwrap();
    assert_eq!(output.verdicts, [Verdict::Drop, Verdict::Pass, Verdict::Pass, Verdict::Drop]);
    let shown: Vec<_> = sent(&items, &output)
        .iter()
        .map(|sent| (sent.source, sent.to.clone(), text(sent.record.value.as_deref())))
        .collect();
    let expected = [
        (0, "one", "v"),
        (0, "per-region", "v"),
        (0, "(defaults)", "1"),
        (0, "one", "v"),
        (0, "one", "v"),
        (1, "per-region", "(null)"),
        (1, "one", "v"),
        (3, "per-region", "v"),
        (3, "one", "v"),
    ];
    let expected = expected.into_iter().chain([(3, "(defaults)", "v"); 1001]);
    assert_eq!(
        shown,
        expected.map(|(source, to, value)| (source, to.to_owned(), value.to_owned())).collect::<Vec<_>>()
    );
}

fn what_is_set_on_an_item_is_set_on_that_one_only(language: &str) {
    let all = [
        ("emit", "per-region"),
        ("key", "é"),
        ("timestamp", "7"),
        ("partition", "3"),
        ("topic", "region.eu"),
        ("drop", ""),
    ];
    let twice =
        [("emit", "per-region"), ("key", "no"), ("key-null", ""), ("timestamp", "1"), ("timestamp", "8"), ("drop", "")];
    let nothing = [("emit", "per-region"), ("drop", "")];
    let records = [&nothing[..], &all, &twice, &nothing, &all].map(|names| commands(names).key("k"));
    let (items, output) = call(&mut conform(language), &records).unwrap();
    let shown = sent(&items, &output)
        .into_iter()
        .map(|sent| (text(sent.record.key.as_deref()), sent.record.timestamp, sent.partition, sent.topic));
    let untouched = || ("k".to_owned(), -1, None, None);
    let changed = || ("é".to_owned(), 7, Some(3), Some("region.eu".to_owned()));
    let expected = [untouched(), changed(), ("(null)".to_owned(), 8, None, None), untouched(), changed()];
    assert_eq!(shown.collect::<Vec<_>>(), expected);
}

fn headers_change_in_the_order_of_the_calls(language: &str) {
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[("header", "h=3")], "h=3 i=1"),
        (&[("remove-header", "h"), ("add-null-header", "n"), ("add-header", "h=3")], "i=1 n h=3"),
        (&[("add-header", "h=3"), ("remove-header", "i")], "h=1 h=2 h=3"),
        (&[("header", "n="), ("add-header", "n=a=b"), ("header", "h=é")], "h=é i=1 n= n=a=b"),
        (&[("add-header", "i=2"), ("header", "i=3")], "h=1 i=3 h=2"),
        (&[], "h=1 i=1 h=2"),
    ];
    let record = |changes: &[(&str, &str)]| {
        let record =
            MemoryRecord::of_value("v").header("h", "1").header("i", "1").header("h", "2").header("emit", "one");
        changes.iter().fold(record, |record, (name, value)| record.header(*name, *value)).header("drop", "")
    };
    let records: Vec<_> = cases.iter().map(|(changes, _)| record(changes)).collect();
    let (items, output) = call(&mut conform(language), &records).unwrap();
    for (sent, (changes, expected)) in sent(&items, &output).iter().zip(cases) {
        let own = sent.record.headers.iter().filter(|(name, _)| name.len() == 1);
        let show = |(name, value): &(Vec<u8>, Option<Vec<u8>>)| match value {
            Some(value) => format!("{}={}", text(Some(name)), text(Some(value))),
            None => text(Some(name)),
        };
        assert_eq!(own.map(show).collect::<Vec<_>>().join(" "), expected, "{changes:?}");
    }
}

fn a_record_refused_leaves_the_others(language: &str) {
    let records = [commands(&[("emit", "one")]), commands(&[("refuse", "told to: é")]), commands(&[("drop", "")])];
    let (items, output) = call(&mut conform(language), &records).unwrap();
    assert_eq!(output.verdicts, [Verdict::Pass, Verdict::Refuse, Verdict::Drop]);
    assert_eq!(output.reasons, [(1, "told to: é".to_owned())]);
    assert_eq!(sent(&items, &output).len(), 1);
}

fn a_plugin_that_asks_to_be_tried_again_keeps_its_instance(language: &str) {
    let mut step = conform(language);
    for _ in 0..2 {
        let error = call(&mut step, &[commands(&[]), commands(&[("emit", "one"), ("retry", "not now")])]).unwrap_err();
        assert_eq!(error, CallError::Retry("not now".into()));
    }
    assert_eq!(call(&mut step, &[commands(&[])]).unwrap().1.verdicts, [Verdict::Pass]);
    assert_eq!(step.take_usage().instances, 1);
}

fn a_batch_given_up_for_good_is_refused(language: &str) {
    let mut step = conform(language);
    let error = call(&mut step, &[commands(&[("emit", "one")]), commands(&[("permanent", "never")])]).unwrap_err();
    assert_eq!(error, CallError::Fault { code: FaultCode::Refused, message: "never".into() });
    assert_eq!(call(&mut step, &[commands(&[])]).unwrap().1.verdicts, [Verdict::Pass]);
    assert_eq!(step.take_usage().instances, 1);
}

fn a_broken_program_traps_says_why_and_leaves_no_trace(language: &str) {
    let mut step = conform(language);
    let poison = [commands(&[("emit", "one")]), commands(&[("emit", "one"), ("trap", "told to break")])];
    match call(&mut step, &poison) {
        Err(CallError::Fault { code: FaultCode::Trapped, message }) => {
            assert!(message.contains("told to break"), "{message}");
            let (of_a_place, in_words) = place_of_a_trap(language);
            assert!(Regex::new(of_a_place).unwrap().is_match(&message), "{in_words}: {message}");
        }
        other => panic!("{other:?}"),
    }
    let (items, output) = call(&mut step, &[commands(&[("emit", "one")])]).unwrap();
    assert_eq!((output.verdicts.as_slice(), sent(&items, &output).len()), (&[Verdict::Pass][..], 1));
    assert_eq!(step.take_usage().instances, 2);
}

/// What tells an author of this language where his program broke: frames of the module where it carries names, else what the
/// language's own trace, which is logged, says of them.
fn place_of_a_trap(language: &str) -> (&'static str, &'static str) {
    match language {
        "rust" => (r"panicked at \S*conform-rust/src/lib\.rs:\d+:\d+.*; in .*\bprocess\b", "a line, and a function"),
        "c" => (r"; in mr_process < exports_transform_process", "functions of the layer, of the module's names"),
        "go" => (r"; in main\.\S+ \(main\.go:\d+\) < ", "functions with their lines"),
        "javascript" => (r"transform@conform\.js:\d+:\d+", "a function with its line"),
        "python" => (r#"conform\.py", line \d+, in transform"#, "a function with its line"),
        other => panic!("what does {other} tell?"),
    }
}

fn a_line_logged_carries_the_coordinates_of_its_record(language: &str) {
    let levels = ["debug", "info", "warn", "error"];
    let records: Vec<_> = levels.iter().map(|level| commands(&[("log", &format!("{level} said é"))])).collect();
    let lines = logged(|| {
        call(&mut conform(language), &records).unwrap();
    });
    assert_eq!(lines.len(), levels.len(), "{lines:?}");
    for ((line, level), offset) in lines.iter().zip(levels).zip(0..) {
        let fields = &line["fields"];
        assert_eq!(line["level"], json!(level.to_uppercase()));
        let expected = json!({
            "message": "said é", "route": "route", "plugin": "conform", "topic": "source", "partition": 0, "offset": offset,
        });
        assert_eq!(fields, &expected);
    }
}

#[test]
fn an_interpreter_comes_from_the_cache_in_a_moment_where_to_compile_it_takes_many_seconds() {
    for language in ["javascript", "python"] {
        let compiled = compile("redact", language);
        let bytes = plugin_bytes(&format!("redact-{language}"));
        // This engine has no compiler, so that it has nothing but the cache. (CPU time: other tests run beside this one.)
        let options = EngineOptions {
            cache_dir: Some(compiled_dir()),
            compiler: Some("/no/compiler".into()),
            ..EngineOptions::default()
        };
        let engine = Engine::new(options).expect("an engine");
        let began = clock_gettime(ClockId::ThreadCPUTime);
        let loaded = engine.compile(&PluginName::new("cached").unwrap(), &bytes).unwrap();
        let took = clock_gettime(ClockId::ThreadCPUTime) - began;
        assert_eq!(loaded.sha256(), compiled.sha256());
        let took = Duration::try_from(took).expect("time goes on");
        eprintln!("{language}: {took:?} of CPU time from the cache");
        assert!(took < Duration::from_millis(500), "{language}: {took:?} of CPU time");
    }
}

#[test]
fn what_a_plugin_prints_is_logged_with_the_coordinates_of_its_batch_and_where_its_layer_tells_of_its_record() {
    for (language, tells) in PRINTING {
        let records = [commands(&[]), commands(&[("print", "printed é")])];
        let lines = logged(|| {
            call(&mut conform(language), &records).unwrap();
        });
        let [line] = &lines[..] else { panic!("{language}: {lines:?}") };
        let fields = &line["fields"];
        assert_eq!((&fields["message"], &line["level"]), (&json!("printed é"), &json!("INFO")), "{language}");
        assert_eq!((&fields["topic"], &fields["partition"]), (&json!("source"), &json!(0)), "{language}");
        assert_eq!(fields["offset"], if tells { json!(1) } else { Value::Null }, "{language}");
    }
}

// ---- what the suite stands on ---------------------------------------------------------------------------------------

/// A plugin is compiled once for all tests, and kept for the next run: that takes seconds for an interpreter.
pub(crate) fn compile(kind: &str, language: &str) -> Compiled {
    static ENGINE: LazyLock<Engine> = LazyLock::new(|| engine(Some(compiled_dir())));
    static COMPILED: Mutex<BTreeMap<String, Compiled>> = Mutex::new(BTreeMap::new());
    let name = format!("{kind}-{language}");
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = compiled.entry(name.clone()).or_insert_with(|| {
        let bytes = plugin_bytes(&name);
        ENGINE.compile(&PluginName::new(&name).unwrap(), &bytes).unwrap_or_else(|error| panic!("{name}: {error}"))
    });
    entry.clone()
}

fn compiled_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("languages-compiled")
}

/// The file that `scripts/languages` built; a test without its plugin fails.
pub(crate) fn plugin_bytes(name: &str) -> Vec<u8> {
    let path = root().join(format!("plugins/dist/{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: run `scripts/languages`", path.display()))
}

pub(crate) fn with(plugin: &str, config: &Value) -> Prepare {
    let destination = |name: &str| DestinationSpec {
        name: DestinationName::new(name).unwrap(),
        topic_pattern: (name == "per-region").then(|| Regex::new("^(?:region\\..*)$").unwrap()),
    };
    Prepare {
        plugin: PluginName::new(plugin).unwrap(),
        route: RouteName::new("route").unwrap(),
        config_json: config.to_string(),
        limits: LIMITS,
        destinations: DESTINATIONS.map(destination).into(),
        allow: Vec::new(),
    }
}

pub(crate) fn prepare(kind: &str, language: &str, config: &Value) -> Arc<Prepared> {
    let prepared = compile(kind, language).prepare(with(kind, config));
    Arc::new(prepared.unwrap_or_else(|error| panic!("{kind}-{language}: {error}")))
}

fn redact(language: &str, fields: &[&str]) -> PluginStep {
    prepare("redact", language, &json!({ "fields": fields })).step()
}

fn conform(language: &str) -> PluginStep {
    prepare("conform", language, &json!({})).step()
}

fn call(step: &mut PluginStep, records: &[MemoryRecord]) -> Result<(Items, CallOutput), CallError> {
    let mut items = MemoryBatch::numbered(records.to_vec()).items();
    let output = step.call(&mut items, 0..records.len(), CPU)?;
    Ok((items, output))
}

/// The one value that is made of this one; none where the record passes as it is.
fn redacted_value(language: &str, fields: &[&str], value: &str) -> Option<String> {
    let (items, output) = call(&mut redact(language, fields), &[MemoryRecord::of_value(value)]).unwrap();
    match (&output.verdicts[..], &output.emitted[..]) {
        ([Verdict::Pass], []) => None,
        ([Verdict::Drop], [(0, item)]) => Some(text(items.value(item))),
        _ => panic!("{fields:?} in {value}: {output:?}"),
    }
}

/// A record that says what is to be done.
fn commands(commands: &[(&str, &str)]) -> MemoryRecord {
    commands.iter().fold(MemoryRecord::of_value("v"), |record, (name, value)| record.header(*name, *value))
}

fn numbered(records: &[MemoryRecord]) -> Vec<MemoryRecord> {
    records.iter().zip(0..).map(|(record, offset)| MemoryRecord { offset, ..record.clone() }).collect()
}

fn text(bytes: Option<&[u8]>) -> String {
    bytes.map_or("(null)".into(), |bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// An item that was emitted or forwarded.
#[derive(Debug, Clone, PartialEq)]
struct Sent {
    source: u32,
    record: MemoryRecord,
    to: String,
    partition: Option<i32>,
    topic: Option<String>,
}

/// What was emitted and forwarded, in the order in which it goes out.
fn sent(items: &Items, output: &CallOutput) -> Vec<Sent> {
    let sent = |(_, item): &(u32, Item)| Sent {
        source: item.source,
        record: record_of(items, item),
        to: match item.send_to {
            SendTo::Unset => "(unset)".into(),
            SendTo::Defaults => "(defaults)".into(),
            SendTo::Named(index) => DESTINATIONS[usize::from(index)].into(),
        },
        partition: item.partition,
        topic: item.topic.as_ref().map(|topic| topic.as_str().to_owned()),
    };
    let mut sent: Vec<_> = output.emitted.iter().map(sent).collect();
    sent.sort_by_key(|sent| sent.source);
    sent
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
