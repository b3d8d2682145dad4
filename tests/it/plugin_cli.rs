//! A plugin author's tools as an author meets them: the real binary, a project that it writes and the language's own tools
//! build, and what it shows of records.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::sandbox::Guest;
use crate::support::daemon::{millrace, millrace_output};
use crate::support::guests::guest_path;
use crate::support::{root, scratch};

const RECORDS: &str = r#"{"key": "u1", "value": {"z": 1.10, "card": "4711"}, "headers": [["v", "1"], ["v", null]], "timestamp": 5}
{"value": {"id": 2}, "offset": 7}

{"key": "gone", "value": null}
{"value": "no JSON"}
"#;
const CARDS: &str = r#"{"fields": ["card"]}"#;

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", shown(output), said(output));
}

fn shown(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("not JSON ({error}): {output:?}"))
}

/// Runs a command with something to read.
fn fed(mut command: Command, input: &str) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the millrace binary runs");
    // (it may end before it has read all)
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn run(plugin: &Path, options: &[&str], input: &str) -> Output {
    let mut command = millrace(&["plugin", "run"]);
    command.arg(plugin).args(options);
    fed(command, input)
}

fn json_lines(output: &Output) -> Vec<Value> {
    shown(output).lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

// ---- new ------------------------------------------------------------------------------------------------------------

/// A new project outside of the repository, in a directory that is gone with its value.
fn new_project(name: &str, language: &str) -> (TempDir, PathBuf) {
    let outside = tempfile::tempdir().expect("a temporary directory");
    let repository = fs::canonicalize(root()).expect("it is there");
    assert!(!fs::canonicalize(&outside).expect("it is there").starts_with(repository), "TMPDIR lies in the repository");
    let directory = outside.path().join(name);
    let output = millrace(&["plugin", "new", name, "--lang", language, "--dir"]).arg(&directory).output();
    let output = output.expect("the millrace binary runs");
    assert_exit(&output, 0);
    let next: Vec<_> = shown(&output).lines().filter(|line| line.starts_with("  ")).map(str::to_owned).collect();
    assert_eq!(next.len(), 3, "{}", shown(&output));
    assert!(directory.join("README.md").is_file() && directory.join("wit/worlds.wit").is_file());
    (outside, directory)
}

fn make(project: &Path, target: &[&str], environment: &[(String, String)]) {
    let mut command = Command::new("make");
    command.args(target).current_dir(project).envs(environment.iter().cloned());
    // What cargo set for this test is not the project's business.
    for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_") && name != "CARGO_HOME") {
        if !environment.iter().any(|(name, _)| *name == variable) {
            command.env_remove(variable);
        }
    }
    let output = command.output().expect("make is there");
    assert!(output.status.success(), "make {target:?}: {}{}", shown(&output), said(&output));
}

/// The environment that plugins are built in, by `scripts/guests`: with a toolchain for WebAssembly, whichever is here. What is
/// built lies in the project, as it does for its author.
fn guest_environment() -> Vec<(String, String)> {
    let script = "eval \"$(scripts/guests env)\"; env -0";
    let output = Command::new("bash").args(["-euc", script]).current_dir(root()).output().expect("bash is there");
    assert!(output.status.success(), "{}", said(&output));
    let wanted = ["RUSTC", "LD_LIBRARY_PATH", "CARGO_"];
    let pairs = shown(&output);
    let pairs = pairs.split('\0').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(name, _)| wanted.iter().any(|start| name.starts_with(start)) && *name != "CARGO_TARGET_DIR")
        .map(|(n, v)| (n.into(), v.into()))
        .collect()
}

#[test]
fn a_new_rust_project_is_tested_and_built_outside_of_this_repository_and_runs() {
    let (_outside, project) = new_project("hide-cards", "rust");
    // (natively, with the toolchain that built this; what the plugins are built with may be another)
    make(&project, &["test"], &[]);
    make(&project, &[], &guest_environment());
    let plugin = project.join("hide-cards.wasm");
    let output = run(&plugin, &["--config", CARDS, "--json"], RECORDS);
    assert_exit(&output, 1);
    let records = json_lines(&output);
    assert_eq!(records[0]["outputs"][0]["value"], r#"{"z":1.10,"card":"[redacted]"}"#);
    let outcomes: Vec<_> = records.iter().map(|record| record["outcome"].as_str().expect("a text")).collect();
    assert_eq!(outcomes, ["emitted", "kept", "kept", "fault"]);
}

#[test]
fn new_writes_the_whole_project_or_nothing_and_touches_nothing_that_is_there() {
    let directory = scratch("taken");
    fs::create_dir_all(&directory).expect("a directory");
    let new = |directory: &Path, options: &[&str]| {
        let mut command = millrace(&["plugin", "new", "hide-cards", "--lang", "rust"]);
        command.args(options).arg("--dir").arg(directory).output().expect("the millrace binary runs")
    };
    // An empty directory is as good as none.
    let output = new(&directory, &["--json"]);
    assert_exit(&output, 0);
    let written = json_of(&output);
    assert_eq!((&written["name"], &written["language"]), (&"hide-cards".into(), &"Rust".into()));
    for file in written["files"].as_array().expect("a list") {
        assert!(directory.join(file.as_str().expect("a path")).is_file(), "{file}");
    }
    let readme = directory.join("README.md");
    fs::write(&readme, "mine").expect("it is written");
    let output = new(&directory, &[]);
    assert_exit(&output, 2);
    assert!(said(&output).contains("is not empty, and is left as it is"), "{}", said(&output));
    assert_eq!(fs::read_to_string(&readme).expect("it is there"), "mine");
    let output = new(&readme, &[]);
    assert_exit(&output, 2);
    assert!(said(&output).contains("is a file"), "{}", said(&output));
    fs::remove_dir_all(&directory).expect("it is ours");
}

#[test]
fn a_name_or_language_that_cannot_be_is_told_before_anything_is_written() {
    for (arguments, hint) in [
        (["Hide_Cards", "--lang", "rust"], "lower-case letters"),
        (["class", "--lang", "rust"], "my-class"),
        (["hide-cards", "--lang", "cobol"], "javascript"),
    ] {
        let directory = scratch("never");
        let mut command = millrace(&["plugin", "new"]);
        let output = command.args(arguments).arg("--dir").arg(&directory).output().expect("the millrace binary runs");
        assert_exit(&output, 2);
        assert!(said(&output).contains(hint), "{}", said(&output));
        assert!(!directory.exists());
    }
}

#[test]
fn bindings_for_c_and_go_are_made_without_another_toolbox() {
    let directory = scratch("bindings");
    let bindings = |options: &[&str]| {
        let mut command = millrace(&["plugin", "bindings"]);
        command.args(options).arg(directory.join("bindings")).output().expect("the millrace binary runs")
    };
    let output = bindings(&["--lang", "c", "--world", "filter"]);
    assert_exit(&output, 0);
    let header = fs::read_to_string(directory.join("bindings/filter.h")).expect("it is written");
    assert!(header.contains("exports_filter_process"), "{header}");
    // The packages of Go have an import path, which only the module knows.
    let output = bindings(&["--lang", "go"]);
    assert_exit(&output, 2);
    assert!(said(&output).contains("--package"), "{}", said(&output));
    fs::write(directory.join("go.mod"), "module example.org/hide\n\ngo 1.25\n").expect("it is written");
    assert_exit(&bindings(&["--lang", "go"]), 0);
    let exports = fs::read_to_string(directory.join("bindings/wit_exports/wit_exports.go")).expect("it is written");
    for path in ["example.org/hide/bindings/millrace_plugin_input", "example.org/hide/millrace/export_wit_world"] {
        assert!(exports.contains(path), "{path}: {exports}");
    }
    fs::remove_dir_all(&directory).expect("it is ours");
}

#[test]
fn what_is_added_to_the_world_of_a_project_in_c_or_go_can_be_called_after_the_next_make() {
    for (language, bindings, declared, function) in [
        ("c", "transform.h", "transform.h", "int64_t millrace_plugin_clock_now_ms(void);"),
        ("go", "wit_exports/wit_exports.go", "millrace_plugin_clock/wit_bindings.go", "func NowMs() int64 {"),
    ] {
        let (_outside, project) = new_project("with-clock", language);
        let (worlds, declared) = (project.join("wit/worlds.wit"), project.join("bindings").join(declared));
        let is_declared = || fs::read_to_string(&declared).is_ok_and(|text| text.contains(function));
        assert!(!is_declared(), "{language}");
        let text = fs::read_to_string(&worlds).expect("it is there");
        fs::write(&worlds, text.replace("world transform {", "world transform {\n  import clock;"))
            .expect("it is written");
        let millrace = concat!("MILLRACE=", env!("CARGO_BIN_EXE_millrace"));
        make(&project, &[millrace, &format!("bindings/{bindings}")], &[]);
        assert!(is_declared(), "{language}");
    }
}

// ---- wrap -----------------------------------------------------------------------------------------------------------

/// A core module, and one that cannot be a filter, in a directory of their own.
fn core_modules() -> (TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let [filter, transform] = ["filter.wasm", "transform.wasm"].map(|name| directory.path().join(name));
    let imports = r#"(import "millrace:plugin/output@$VERSION" "forward" (func $forward (param i32 i32 i32 i32)))"#;
    fs::write(&filter, Guest::default().module()).expect("it is written");
    fs::write(&transform, Guest { imports, ..Guest::default() }.module()).expect("it is written");
    (directory, filter, transform)
}

fn wrap(module: &Path, options: &[&str]) -> Output {
    millrace(&["plugin", "wrap"]).arg(module).args(options).output().expect("the millrace binary runs")
}

fn world_of(plugin: &Path) -> Value {
    let output = millrace(&["plugin", "inspect", "--json"]).arg(plugin).output().expect("the millrace binary runs");
    assert_exit(&output, 0);
    json_of(&output)["world"].clone()
}

#[test]
fn wrap_makes_a_plugin_of_a_module_where_it_is_told_to_or_in_its_place() {
    let (directory, module, _) = core_modules();
    let before = fs::read(&module).expect("it is there");
    let plugin = directory.path().join("plugin.wasm");
    let output = wrap(&module, &["--json", "-o", plugin.to_str().expect("UTF-8")]);
    assert_exit(&output, 0);
    let component = fs::read(&plugin).expect("it is written");
    assert_eq!(json_of(&output), json!({ "component": plugin, "size": component.len() }));
    assert_eq!(fs::read(&module).expect("it is there"), before, "the module is left as it is");
    assert_eq!(world_of(&plugin), "filter");
    assert_exit(&run(&plugin, &[], "{}\n"), 0);
    // And in its place, where nothing else is left.
    let output = wrap(&module, &[]);
    assert_exit(&output, 0);
    assert_eq!(shown(&output) + &said(&output), "");
    assert_eq!(fs::read(&module).expect("it is there"), component);
    let mut names: Vec<_> =
        fs::read_dir(&directory).expect("it is there").map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["filter.wasm", "plugin.wasm", "transform.wasm"]);
}

#[test]
fn wrap_embeds_the_world_that_it_is_told_where_the_module_fits_it() {
    let (_directory, filter, transform) = core_modules();
    let before = fs::read(&transform).expect("it is there");
    let output = wrap(&transform, &["--world", "filter"]);
    assert_exit(&output, 2);
    assert!(said(&output).contains("transform.wasm cannot be made a plugin: "), "{}", said(&output));
    assert!(said(&output).contains("millrace:plugin/output"), "{}", said(&output));
    assert_eq!(fs::read(&transform).expect("it is there"), before, "what cannot be wrapped is left as it is");
    assert_exit(&wrap(&transform, &["--world", "transform"]), 0);
    assert_eq!(world_of(&transform), "transform");
    assert_exit(&wrap(&filter, &["--world", "filter"]), 0);
    assert_eq!(world_of(&filter), "filter");
}

#[test]
fn what_cannot_be_wrapped_or_written_is_told_with_the_right_exit_code() {
    let (directory, module, _) = core_modules();
    let nowhere = directory.path().join("no-such").join("plugin.wasm");
    let nowhere = nowhere.to_str().expect("UTF-8");
    let component = directory.path().join("component.wasm");
    assert_exit(&wrap(&module, &["--output", component.to_str().expect("UTF-8")]), 0);
    for (module, options, code, hint) in [
        (&component, &[][..], 2, "it is a component already"),
        (&root().join("README.md"), &[], 2, "it does not begin as WebAssembly does"),
        (&directory.path().join("none.wasm"), &[], 3, "none.wasm cannot be read"),
        (&module, &["-o", nowhere], 3, "plugin.wasm cannot be written"),
        (&module, &["--world", "sink"], 2, "[possible values: filter, transform]"),
    ] {
        let output = wrap(module, options);
        assert_exit(&output, code);
        assert!(said(&output).contains(hint), "{hint} is not in: {}", said(&output));
    }
}

// ---- run ------------------------------------------------------------------------------------------------------------

/// What is shown, with the costs blanked.
fn without_costs(text: &str) -> String {
    let blank = |line: &str| match line.rsplit_once("  ") {
        Some((rest, cost)) if line.contains('@') && cost.ends_with('s') => format!("{rest}  COST\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(blank).collect()
}

#[test]
fn run_shows_what_became_of_each_record_and_how_its_value_changed() {
    let output =
        run(&guest_path("redact-fields"), &["--config", CARDS, "--topic", "orders", "--partition", "3"], RECORDS);
    assert_exit(&output, 1);
    let expected = "\
orders/3@0  emitted  COST
  → the default destinations
    value
      {
        \"z\": 1.10,
    -   \"card\": \"4711\"
    +   \"card\": \"[redacted]\"
      }
orders/3@7  kept  COST
orders/3@8  kept  COST
orders/3@9  refused: the value is not JSON: expected ident at line 1 column 2  COST
";
    assert_eq!(without_costs(&shown(&output)), expected);
    let summary = said(&output);
    assert!(
        summary.starts_with("4 records · 2 kept · 1 emitted · 0 dropped · 1 at fault (1 refused) · 3 out · "),
        "{summary}"
    );
}

#[test]
fn run_gives_out_records_that_it_can_read_again() {
    let plugin = guest_path("redact-fields");
    let first = run(&plugin, &["--config", CARDS, "--json"], RECORDS);
    let outputs = |output: &Output| -> Vec<Value> {
        let all = json_lines(output).into_iter();
        all.flat_map(|record| record["outputs"].as_array().expect("a list").clone()).collect()
    };
    let given_again: String = outputs(&first)
        .into_iter()
        .map(|mut output| {
            output.as_object_mut().expect("an object").remove("destination");
            format!("{output}\n")
        })
        .collect();
    let second = run(&plugin, &["--config", CARDS, "--json"], &given_again);
    assert_exit(&second, 0);
    let record = &outputs(&second)[0];
    assert_eq!(record["headers"], json!([["v", "1"], ["v", null]]));
    assert_eq!((&record["key"], &record["timestamp"]), (&"u1".into(), &5.into()));
    assert_eq!(record["value"], r#"{"z":1.10,"card":"[redacted]"}"#);
}

#[test]
fn run_finds_the_record_at_fault_in_a_batch_and_shows_its_log_beside_it() {
    let input = "{\"value\": \"a\"}\n{\"value\": \"poison\"}\n{\"value\": \"b\"}\n";
    for batch in ["1", "16"] {
        let config = r#"{"do": "trap", "when": "poison"}"#;
        let output = run(&guest_path("misbehave"), &["--config", config, "--json", "--batch", batch], input);
        assert_exit(&output, 1);
        let records = json_lines(&output);
        assert_eq!(records[1]["fault"]["code"], "trapped", "{}", records[1]);
        // The guest says so of no record in particular: in a call of several that is shown with the first.
        let log = &records[usize::from(batch == "1")]["logs"][0];
        assert!(log["message"].as_str().is_some_and(|message| message.starts_with("panicked at")), "{log}");
        assert_eq!((&log["level"], &log["of"]), (&"error".into(), &"call".into()));
        for sound in [&records[0], &records[2]] {
            assert_eq!((&sound["fault"], &sound["outcome"]), (&Value::Null, &"kept".into()), "{sound}");
            assert!(sound["cpu_ns"].as_u64().expect("a number") > 0, "{sound}");
        }
    }
}

#[test]
fn run_knows_the_destinations_that_it_is_told_of_and_no_other() {
    let config = "{}";
    let input = r#"{"value": "v", "headers": {"to": "eu"}}"#;
    let plugin = guest_path("route-by");
    let known = run(&plugin, &["--config", config, "--json", "--destination", "eu"], input);
    assert_exit(&known, 0);
    assert_eq!(json_lines(&known)[0]["outputs"][0]["destination"], "eu");
    let unknown = run(&plugin, &["--config", config, "--json"], input);
    assert_exit(&unknown, 1);
    assert_eq!(json_lines(&unknown)[0]["fault"]["code"], "bad_output");
}

#[test]
fn run_grants_what_it_is_told_to_and_nothing_else() {
    let plugin = guest_path("capable");
    let refused = run(&plugin, &["--allow", "clock", "--json"], "");
    assert_exit(&refused, 2);
    assert!(said(&refused).contains("which it is not granted"), "{}", said(&refused));
    let granted = run(&plugin, &["--allow", "clock,random,metrics", "--json"], r#"{"value": "now-ms"}"#);
    // (it refuses the record, with what it got as the reason)
    assert_exit(&granted, 1);
    let fault = &json_lines(&granted)[0]["fault"];
    let told = fault["message"].as_str().and_then(|message| message.parse::<u64>().ok());
    assert!(told.is_some_and(|now| now > 1_700_000_000_000), "{fault}");
}

#[test]
fn run_shows_each_record_as_it_comes() {
    use std::io::{BufRead as _, BufReader};
    let mut command = millrace(&["plugin", "run", "--json"]);
    let command = command.arg(guest_path("identity-pass")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::null()).spawn().expect("the millrace binary runs");
    let mut input = child.stdin.take().expect("a pipe");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    for offset in 0..3 {
        writeln!(input, "{{}}").expect("it reads");
        let mut line = String::new();
        output.read_line(&mut line).expect("it writes before it has read all");
        let record: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(record["offset"], offset);
    }
    // Nobody listens any more: that is the end, and nothing to complain about.
    drop(output);
    writeln!(input, "{{}}").expect("it reads");
    drop(input);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn what_cannot_be_run_is_told_with_what_to_do_and_the_right_exit_code() {
    let plugin = guest_path("redact-fields");
    let not_wasm = root().join("README.md");
    let nowhere = root().join("no-such.wasm");
    for (plugin, options, input, code, hint) in [
        (&plugin, &["--config", CARDS][..], "{\"valeu\": 1}\n", 2, "stdin, line 1: unknown field `valeu`"),
        (&plugin, &["--config", CARDS], "{}\n[]\n", 2, "stdin, line 2: a record is a JSON object"),
        (&plugin, &["--config", "{fields"], "", 2, "--config is not JSON"),
        (&plugin, &["--config", "@no-such-file.json"], "", 3, "no-such-file.json (--config) cannot be read"),
        (&plugin, &["--config", r#"{"fields": []}"#], "", 2, "it refuses its config: fields: name at least one"),
        (&plugin, &["--memory", "64"], "", 2, "give the unit"),
        (&not_wasm, &[], "", 2, "README.md cannot be used: not a WebAssembly component"),
        (&nowhere, &[], "", 3, "no-such.wasm cannot be read"),
    ] {
        let output = run(plugin, options, input);
        assert_exit(&output, code);
        assert!(said(&output).contains(hint), "{hint} is not in: {}", said(&output));
    }
}

// ---- inspect and bench ----------------------------------------------------------------------------------------------

#[test]
fn inspect_tells_world_interface_digest_and_the_yaml_that_pins_it() {
    let plugin = guest_path("redact-fields");
    let mut command = millrace(&["plugin", "inspect"]);
    let output = command.arg(&plugin).output().expect("the millrace binary runs");
    assert_exit(&output, 0);
    let found = json_of(&millrace(&["plugin", "inspect", "--json"]).arg(&plugin).output().expect("it runs"));
    let sha256 = found["sha256"].as_str().expect("a text");
    for line in [
        "world      transform",
        "interface  millrace:plugin@0.1.1; this millrace speaks 0.1.x",
        "form       core module",
        "asks for   nothing but its records and the log",
        "exports    process",
        "  redact-fields:",
        &format!("    sha256: {sha256}"),
    ] {
        assert!(shown(&output).lines().any(|shown| shown.starts_with(line)), "{line} is not in:\n{}", shown(&output));
    }
    assert_eq!((&found["world"], &found["interface"]), (&"transform".into(), &"0.1.1".into()));
    assert_eq!(found["size"], fs::metadata(&plugin).expect("it is there").len());
    assert_eq!((&found["refused"], &found["capabilities"]), (&Value::Null, &json!([])));
}

#[test]
fn inspect_shows_what_is_asked_for_and_cannot_be_granted() {
    let output = millrace(&["plugin", "inspect"]).arg(guest_path("needs-clock")).output().expect("it runs");
    assert_exit(&output, 2);
    assert!(shown(&output).contains("asks for   test:clock/clock@1.0.0"), "{}", shown(&output));
    assert!(said(&output).contains("would not be loaded: "), "{}", said(&output));
}

#[test]
fn bench_measures_batch_sizes_side_by_side() {
    let input = scratch("records").with_extension("jsonl");
    fs::write(&input, RECORDS).expect("it is written");
    let bench = |options: &[&str]| {
        let mut command = millrace(&["plugin", "bench", "--runs", "5", "--batch", "1,64"]);
        let command = command.args(options).arg(guest_path("redact-fields")).args(["--config", CARDS, "--input"]);
        command.arg(&input).output().expect("the millrace binary runs")
    };
    let output = bench(&["--json"]);
    assert_exit(&output, 0);
    let found = json_of(&output);
    for key in ["compile_ms", "load_from_cache_ms", "start_ms", "instance_bytes"] {
        assert!(found[key].as_f64().is_some_and(|much| much > 0.0), "{key}: {found}");
    }
    assert_eq!((&found["records"], &found["faults"]), (&64.into(), &16.into()));
    for (of, records) in found["batches"].as_array().expect("a list").iter().zip([1, 64]) {
        assert_eq!(of["records"], records);
        let [min, median, max] =
            ["min", "median", "max"].map(|key| of["ns_per_record"][key].as_f64().expect("a number"));
        assert!(0.0 < min && min <= median && median <= max, "{of}");
        let per_second = of["records_per_second"].as_f64().expect("a number");
        assert!((per_second * median / 1e9 - 1.0).abs() < 0.01, "{of}");
        assert!(of["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{of}");
    }
    let table = bench(&[]);
    assert_exit(&table, 0);
    let sizes = shown(&table);
    let rows = sizes.lines().filter(|line| line.starts_with("  "));
    let sizes: Vec<_> = rows.filter_map(|line| line.split_whitespace().next()?.parse::<u32>().ok()).collect();
    assert_eq!(sizes, [1, 64], "{}", shown(&table));
    assert!(shown(&table).contains("records/s"), "{}", shown(&table));
    // Nothing that a terminal alone should see.
    assert!(!said(&table).contains("measuring"), "{}", said(&table));
    fs::remove_file(&input).expect("it is ours");
}

#[test]
fn the_tools_for_plugins_explain_themselves_and_complete() {
    for (verb, mentions) in [
        ("new", "--lang"),
        ("run", "\"base64\""),
        ("inspect", "SHA-256"),
        ("bench", "--input"),
        ("bindings", "--package"),
        ("wrap", "--world"),
    ] {
        let output = millrace_output(&["plugin", verb, "--help"]);
        assert_exit(&output, 0);
        assert!(shown(&output).contains(mentions), "{verb}: {}", shown(&output));
        let completions = shown(&millrace_output(&["completions", "bash"]));
        assert!(completions.contains(&format!("millrace__subcmd__plugin__subcmd__{verb}")), "{verb}");
    }
}
