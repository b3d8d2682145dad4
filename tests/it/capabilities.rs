//! What plugins are granted and what they are not: capabilities by `allow`, and stand-ins for WASI that grant nothing.

use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace::config::settings::{Capability, PluginLimits};
use millrace::model::{FaultCode, PluginName, RouteName};
use millrace::pipeline::ports::{CallError, CallOutput, Step, Verdict};
use millrace::plugin::{AskKind, Compiled, Engine, LoadError, PluginStep, Prepare, Prepared, inspect};
use millrace::telemetry::{CUSTOM_SERIES_MAX, Metrics};

use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::guests::{self, guest};
use crate::support::kafka::{Record, shared};
use crate::support::memory_batch::MemoryBatch;
use crate::support::{unique, wait_until};

const ALL: &[Capability] = &Capability::ALL;

fn engine() -> Engine {
    guests::engine(None)
}

/// One for the tests that share no metrics.
static ENGINE: LazyLock<Engine> = LazyLock::new(engine);

fn compile(engine: &Engine, name: &str) -> Compiled {
    let compiled = engine.compile(&PluginName::new(name).unwrap(), &guest(name));
    compiled.unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn prepare(engine: &Engine, name: &str, allow: &[Capability]) -> Result<Arc<Prepared>, LoadError> {
    let with = Prepare {
        plugin: PluginName::new(name).unwrap(),
        route: RouteName::new("route").unwrap(),
        config_json: "{}".into(),
        limits: PluginLimits {
            memory: 64 << 20,
            timeout: Duration::from_secs(1),
            outputs: 1_000,
            output_bytes: 1 << 20,
        },
        allow: allow.to_vec(),
        destinations: [].into(),
    };
    compile(engine, name).prepare(with).map(Arc::new)
}

fn call(step: &mut PluginStep, value: &str) -> Result<CallOutput, CallError> {
    step.call(&mut MemoryBatch::of_values([value]).items(), 0..1, Duration::from_secs(5))
}

/// What the guest says it got: the reason of a refusal.
#[track_caller]
fn got(step: &mut PluginStep, value: &str) -> String {
    let output = call(step, value).unwrap_or_else(|fault| panic!("{value}: {fault:?}"));
    assert_eq!(output.verdicts, [Verdict::Refuse], "{value}");
    output.reasons[0].1.clone()
}

#[track_caller]
fn trapped(step: &mut PluginStep, value: &str) -> String {
    match call(step, value) {
        Err(CallError::Fault { code: FaultCode::Trapped, message }) => message,
        other => panic!("{value}: {other:?}"),
    }
}

// ---- grants ---------------------------------------------------------------------------------------------------------

#[test]
fn an_inspection_tells_what_a_plugin_asks_for() {
    let kinds = |name: &str| {
        let asks = inspect(&guest(name)).unwrap().asks;
        asks.into_iter().filter(|ask| ask.kind != AskKind::Always).collect::<Vec<_>>()
    };
    assert_eq!(kinds("rewrite"), [], "what a plugin does not use of the SDK, it does not ask for");
    let mut capable: Vec<_> = kinds("capable").into_iter().map(|ask| (ask.import, ask.kind)).collect();
    capable.sort_by(|a, b| a.0.cmp(&b.0));
    let named =
        |capability: Capability| (format!("millrace:plugin/{capability}@0.1.1"), AskKind::Capability(capability));
    assert_eq!(capable, [Capability::Clock, Capability::Metrics, Capability::Random].map(named));
    let escape = kinds("escape");
    assert!(escape.len() > 15 && escape.iter().all(|ask| ask.kind == AskKind::StandIn), "{escape:?}");
    let unknown = kinds("needs-clock");
    assert_eq!((unknown.len(), unknown[0].kind), (1, AskKind::Unknown));
}

#[test]
fn a_plugin_that_asks_for_a_capability_is_refused_without_it_and_told_what_to_write() {
    for (allow, missing, write) in [
        (&[][..], &["clock", "metrics", "random"][..], "`allow: [metrics, clock, random]`"),
        (&[Capability::Random], &["clock", "metrics"], "`allow: [metrics, clock, random]`"),
        (&[Capability::Metrics, Capability::Clock], &["random"], "`allow: [metrics, clock, random]`"),
    ] {
        let error = prepare(&ENGINE, "capable", allow).unwrap_err();
        let LoadError::NotGranted { imports, .. } = &error else { panic!("{error}") };
        let mut imports = imports.clone();
        imports.sort();
        assert_eq!(imports, missing.iter().map(|name| format!("millrace:plugin/{name}@0.1.1")).collect::<Vec<_>>());
        assert!(error.to_string().contains(write), "{error}");
    }
    assert!(prepare(&ENGINE, "capable", ALL).is_ok());
    assert!(prepare(&ENGINE, "rewrite", ALL).is_ok(), "a grant that nobody uses harms nobody");
}

#[test]
fn a_plugin_built_for_an_earlier_patch_of_the_interface_is_served() {
    let mut bytes = guest("identity-pass");
    let (now, before) = (b"@0.1.1", b"@0.1.0");
    let places: Vec<usize> = (0..bytes.len() - now.len()).filter(|at| bytes[*at..].starts_with(now)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + now.len()].copy_from_slice(before);
    }
    let old = ENGINE.compile(&PluginName::new("old").unwrap(), &bytes).unwrap();
    assert_eq!(old.inspection().version.as_deref(), Some("0.1.0"));
}

#[test]
fn the_clock_is_the_machines_where_it_is_granted() {
    let mut step = prepare(&ENGINE, "capable", ALL).unwrap().step();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let before = now();
    let millis: u128 = got(&mut step, "now-ms").parse().unwrap();
    let nanos: u128 = got(&mut step, "now-ns").parse().unwrap();
    let after = now();
    assert!((before..=after).contains(&nanos), "{before} {nanos} {after}");
    assert!((before / 1_000_000..=after / 1_000_000).contains(&millis), "{before} {millis} {after}");
}

#[test]
fn randomness_is_the_systems_where_it_is_granted_and_bounded() {
    let prepared = prepare(&ENGINE, "capable", ALL).unwrap();
    let (mut one, mut other) = (prepared.step(), prepared.step());
    assert_ne!(got(&mut one, "random-bytes 32"), got(&mut other, "random-bytes 32"));
    assert_ne!(got(&mut one, "random-number"), got(&mut other, "random-number"));
    // (a reason of a refusal has 1 KiB)
    assert!(got(&mut one, "random-bytes 65536").len() > 1000);
    assert!(trapped(&mut one, "random-bytes 65537").contains("65537 random bytes"));
}

// ---- metrics --------------------------------------------------------------------------------------------------------

#[test]
fn what_a_plugin_counts_outlives_its_instances_and_vanishes_with_it() {
    let engine = engine();
    let metrics = Metrics::with_custom("0", engine.custom_metrics());
    let shows = |line: &str| metrics.render().lines().any(|shown| shown == line);
    let prepared = prepare(&engine, "capable", ALL).unwrap();
    let (mut step, mut other_worker) = (prepared.step(), prepared.step());
    call(&mut step, "add seen 1 kind=a").unwrap();
    trapped(&mut step, "trap");
    call(&mut step, "add seen 1 kind=a").unwrap();
    call(&mut other_worker, "add seen 2.5 kind=a").unwrap();
    call(&mut step, "set depth -7").unwrap();
    call(&mut step, "observe size 3").unwrap();
    let labels = r#"route="route",plugin="capable""#;
    for line in [
        format!(r#"millrace_plugin_counter_seen_total{{{labels},kind="a"}} 4.5"#),
        format!("millrace_plugin_gauge_depth{{{labels}}} -7"),
        format!("millrace_plugin_histogram_size_count{{{labels}}} 1"),
        format!("millrace_plugin_metrics_dropped_total{{{labels}}} 0"),
    ] {
        assert!(shows(&line), "{line} is not in:\n{}", metrics.render());
    }
    drop((step, other_worker, prepared));
    assert!(!metrics.render().contains("capable"), "{}", metrics.render());
}

#[test]
fn metrics_beyond_the_bounds_are_counted_and_never_harm_the_plugin() {
    let engine = engine();
    let metrics = Metrics::with_custom("0", engine.custom_metrics());
    let mut step = prepare(&engine, "capable", ALL).unwrap().step();
    for value in ["add Wrong 1", "add le 1 le=2", "add x -1", "set x nan", "observe x_total 1", "series 1000"] {
        let output = call(&mut step, value).unwrap_or_else(|fault| panic!("{value}: {fault:?}"));
        assert_eq!(output.verdicts, [Verdict::Pass], "{value}");
    }
    let page = metrics.render();
    let shown = page.lines().filter(|line| line.starts_with("millrace_plugin_counter_")).count();
    // (`x`, made before its number was seen to be wrong, is a counter and a gauge)
    assert!(shown <= CUSTOM_SERIES_MAX, "{page}");
    let dropped = page.lines().find(|line| line.starts_with("millrace_plugin_metrics_dropped_total")).unwrap();
    let dropped: usize = dropped.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(dropped >= 5 + 1000 - CUSTOM_SERIES_MAX, "{dropped}");
}

#[test]
fn a_plan_that_is_only_tried_shows_no_metrics() {
    let engine = engine();
    let metrics = Metrics::with_custom("0", engine.custom_metrics());
    let _prepared = prepare(&engine, "capable", ALL).unwrap();
    assert!(!metrics.render().contains("capable"));
}

#[test]
fn metrics_are_on_the_page_of_the_daemon_and_a_grant_is_taken_back_in_place() {
    let [source, destination] = ["capable", "capable-out"].map(|name| {
        let topic = unique(name);
        shared().create_topic(&topic, 1, &[]);
        topic
    });
    let config = Config::new(
        &shared().bootstrap,
        &["capable", "identity-pass"],
        &format!(
            "
routes:
  counting:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: capable }}]
    destinations: [{{ topic: {destination} }}]
"
        ),
    );
    let grant = |yaml: &str, allow: &str| {
        let line = yaml.lines().find(|line| line.trim_start().starts_with("capable:")).unwrap();
        let path = line.split(", allow").next().unwrap().trim_end_matches(" }");
        yaml.replace(line, &format!("{path}, allow: {allow} }}"))
    };
    config.edit(|yaml| grant(yaml, "[metrics, clock, random]"));
    let soon = Duration::from_secs(20);
    let daemon = Daemon::start(config.path());
    shared().produce(&source, &[Record::new("k", "add seen 3")]);
    daemon.await_consumed("counting", 1, Duration::from_secs(60));
    let seen = || {
        let labels = [("route", "counting"), ("plugin", "capable")];
        daemon.metric("millrace_plugin_counter_seen_total", &labels)
    };
    assert_eq!(seen(), Some(3.0));
    // What it needs cannot be taken from it: what runs goes on.
    config.edit(|yaml| grant(yaml, "[metrics]"));
    wait_until(soon, "the configuration is refused", || daemon.reloads("rejected") == 1.0);
    let told = daemon.status()["last_reload"].to_string();
    assert!(told.contains("allow: [metrics, clock, random]") && told.contains("capable"), "{told}");
    // With a plugin that needs none, all grants are taken back in place, and the metrics vanish.
    config.edit(|yaml| {
        grant(yaml, "[metrics, clock, random]").replace("{ plugin: capable }", "{ plugin: identity-pass }")
    });
    wait_until(soon, "its metrics vanish", || seen().is_none());
    let change = daemon.status()["last_applied"]["changes"]["routes"]["counting"]["action"].clone();
    assert_eq!(change, "swapped");
}

// ---- WASI grants nothing ----------------------------------------------------------------------------------------------

fn escape() -> PluginStep {
    prepare(&ENGINE, "escape", &[]).unwrap_or_else(|error| panic!("{error}")).step()
}

#[test]
fn wasi_shows_no_environment_no_arguments_no_directory_no_terminal_and_no_input() {
    let mut step = escape();
    for (what, expected) in [
        ("environment", "[]"),
        ("arguments", "[] in None"),
        ("directories", "0 directories"),
        ("terminal", "false"),
        ("stdin", "Err(StreamError::Closed)"),
    ] {
        assert_eq!(got(&mut step, what), expected, "{what}");
    }
    assert_eq!(step.take_usage().instances, 1, "none of it is a fault");
}

#[test]
fn wasi_gives_no_socket_and_looks_up_no_name() {
    for what in ["socket", "lookup"] {
        let error = got(&mut escape(), what);
        assert!(error.contains("access-denied"), "{what}: {error}");
    }
}

#[test]
fn wasis_clocks_and_randomness_are_the_same_in_every_instance() {
    for (what, expected) in [
        ("wall-clock", Some("[0, 0, 0]")),
        ("monotonic-clock", Some("[1000000, 2000000, 3000000]")),
        ("sleep", Some("[0] true")),
        ("random", None),
        ("seed", None),
    ] {
        let one = got(&mut escape(), what);
        assert_eq!(one, got(&mut escape(), what), "{what}");
        assert!(expected.is_none_or(|expected| one == expected), "{what}: {one}");
    }
    assert!(trapped(&mut escape(), "much-random").contains("random bytes at once"));
}

#[test]
fn wasis_exit_is_a_fault_that_says_so() {
    for (what, status) in [("exit 0", "success"), ("exit 1", "failure")] {
        let mut step = escape();
        let message = trapped(&mut step, what);
        assert!(message.contains(&format!("it called exit ({status})")), "{message}");
        assert_eq!(got(&mut step, "environment"), "[]", "a new instance goes on");
    }
}

#[test]
fn what_is_on_standard_error_before_a_trap_is_in_its_message() {
    let message = trapped(&mut escape(), "stderr-then-trap panicked at the disco");
    assert!(message.contains("it logged: panicked at the disco"), "{message}");
}

// ---- the log ----------------------------------------------------------------------------------------------------------

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a plugin's lines are in the log, as JSON, while `run` runs.
fn logged(run: impl FnOnce()) -> Vec<serde_json::Value> {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, run);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    all.filter(|line| line["target"] == "millrace::guest").collect()
}

#[test]
fn a_log_line_carries_route_plugin_topic_partition_and_offset() {
    let mut step = prepare(&ENGINE, "capable", ALL).unwrap().step();
    let lines = logged(|| {
        let mut items = MemoryBatch::of_values(["", "log odd"]).items();
        step.call(&mut items, 0..2, Duration::from_secs(5)).unwrap();
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    for (field, expected) in [
        ("level", "WARN".into()),
        ("message", "odd".into()),
        ("route", "route".into()),
        ("plugin", "capable".into()),
        ("topic", "source".into()),
        ("partition", serde_json::json!(0)),
        ("offset", serde_json::json!(1)),
    ] {
        assert_eq!(line[field], expected, "{field} of {line}");
    }
}

#[test]
fn wasis_output_becomes_log_lines_with_the_route_and_the_partition() {
    let mut step = escape();
    let lines = logged(|| {
        assert_eq!(got(&mut step, "stdout hello\nwor"), "(true, Ok(()))");
        assert_eq!(got(&mut step, "stderr ld\n"), "Ok(())");
    });
    let shown: Vec<_> = lines.iter().map(|line| (line["level"].as_str(), line["message"].as_str())).collect();
    // What is not ended by a newline ends with the call.
    assert_eq!(shown, [(Some("INFO"), Some("hello")), (Some("INFO"), Some("wor")), (Some("WARN"), Some("ld"))]);
    assert!(lines.iter().all(|line| line["plugin"] == "escape" && line["topic"] == "source" && line["partition"] == 0));
}

#[test]
fn a_flood_on_standard_output_is_one_bounded_line() {
    let mut step = escape();
    let lines = logged(|| assert_eq!(got(&mut step, "flood"), "1000"));
    assert_eq!(lines.len(), 1);
    assert!(lines[0]["message"].as_str().unwrap().len() <= 4096);
}

#[test]
fn log_lines_beyond_the_rate_are_left_out_and_counted() {
    let mut step = prepare(&ENGINE, "capable", ALL).unwrap().step();
    let lines = logged(|| {
        let flood: Vec<&str> = std::iter::repeat_n("log flood", 1000).collect();
        step.call(&mut MemoryBatch::of_values(flood).items(), 0..1000, Duration::from_secs(5)).unwrap();
    });
    let passed = lines.iter().filter(|line| line["message"] == "flood").count();
    assert!((200..1000).contains(&passed), "{passed} lines");
}
