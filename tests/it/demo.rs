//! `millrace demo` as a newcomer sees it: what it shows, what it owns up to, and that it leaves nothing behind.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::daemon::millrace;
use crate::support::root;

/// The events in the order in which they are sent.
fn events() -> impl Iterator<Item = Value> {
    let data = std::fs::read_to_string(root().join("src/cli/demo/earthquakes.ndjson")).expect("the demo's data");
    let events: Vec<Value> = data.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    events.into_iter().map(|mut event| event["value"].take())
}

fn is_dropped(event: &Value) -> bool {
    event["status"] == "automatic"
}

/// A demo in the repository, where the plugins are, with a directory for temporary files that is its own.
fn demo(temporary: &Path, args: &[&str]) -> Command {
    let mut command = millrace(&["demo"]);
    command.args(args).current_dir(root()).env("TMPDIR", temporary);
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("the millrace binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_empty(directory: &Path) {
    let left: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn the_first_record_is_on_screen_within_ten_seconds() {
    let temporary = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    // A cold cache, and no end of its own.
    let mut command = demo(temporary.path(), &[]);
    let mut child = command.env("XDG_CACHE_HOME", cache.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let first = lines.find(|line| line.contains("public → quakes.public "));
    let took = begun.elapsed();
    // Ctrl-C ends it, in order.
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(first.is_some_and(|line| line.contains("[redacted]")) && took < Duration::from_secs(10), "{took:?}");
    assert!(rest.iter().any(|line| line.contains("events to quakes")), "no summary: {rest:?}");
    assert_empty(temporary.path());
}

#[test]
fn it_shows_what_is_routed_and_says_what_is_not_real() {
    let temporary = tempfile::tempdir().unwrap();
    let output = output(&mut demo(temporary.path(), &["--count", "20", "--rate", "50"]));
    let (shown, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{shown}{errors}");
    assert_eq!(errors, "");

    for honest in [
        "librdkafka's mock cluster",
        "keeps nothing",
        "at_least_once, since the mock cluster has no working transactions",
        "exactly_once, the default, takes a real Kafka",
        "edit it while this runs",
        "gone at the end",
    ] {
        assert!(shown.contains(honest), "{honest}: {shown}");
    }
    let address = shown.split_once("http://").and_then(|(_, after)| after.split_once('/')).expect("an address").0;
    assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{address}");

    let dropped = events().take(20).filter(is_dropped).count();
    assert_ne!(dropped, 0, "the demo shows a filter at work");
    for event in events().take(20) {
        let place: String = event["place"].as_str().unwrap().chars().take(30).collect();
        assert_eq!(shown.contains(&place), !is_dropped(&event), "{place}: {shown}");
    }
    let lines = |route: &str| shown.lines().filter(|line| line.contains(route)).collect::<Vec<_>>();
    let (reviewed, public) = (lines("  reviewed → quakes.reviewed  "), lines("  public → quakes.public  "));
    assert_eq!((reviewed.len(), public.len()), (20 - dropped, 20 - dropped), "{shown}");
    assert!(reviewed.iter().all(|line| !line.contains("[redacted]")), "{shown}");
    assert!(public.iter().all(|line| line.ends_with("[redacted]")), "{shown}");
    let summary = format!("20 in, {} out, {dropped} dropped by drop-automatic", 20 - dropped);
    assert!(shown.contains(&summary), "{shown}");
    assert!(!shown.contains('\u{1b}'), "colours in a pipe");
    assert_empty(temporary.path());
}

#[test]
fn its_json_is_one_object_a_record_and_nothing_else() {
    let temporary = tempfile::tempdir().unwrap();
    let output = output(&mut demo(temporary.path(), &["--count", "30", "--rate", "100", "--json"]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let mut by_topic: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in text(&output.stdout).lines() {
        let mut record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        by_topic.entry(record["topic"].as_str().unwrap().to_owned()).or_default().push(record["value"].take());
    }
    let mut expected: Vec<Value> = events().take(30).filter(|event| !is_dropped(event)).collect();
    let by_id = |event: &Value| event["id"].as_str().unwrap().to_owned();
    expected.sort_by_key(by_id);
    for (topic, redacted) in [("quakes.reviewed", false), ("quakes.public", true)] {
        let mut expected = expected.clone();
        let mut arrived = by_topic.remove(topic).unwrap_or_default();
        arrived.sort_by_key(by_id);
        for (event, arrived) in expected.iter_mut().zip(&arrived) {
            // Fresh: told as if it happened now.
            assert!(arrived["time"].as_i64() > event["time"].as_i64());
            for field in ["time", "updated"] {
                event[field] = arrived[field].clone();
            }
            if redacted {
                event["latitude"] = "[redacted]".into();
                event["longitude"] = "[redacted]".into();
            }
        }
        assert_eq!(arrived, expected, "{topic}");
    }
    assert!(by_topic.is_empty(), "{by_topic:?}");
    assert!(text(&output.stderr).contains("mock cluster"));
}

#[test]
fn its_configuration_can_be_kept_and_edited_but_not_to_promise_what_a_mock_cannot() {
    let temporary = tempfile::tempdir().unwrap();
    let kept = temporary.path().join("kept");
    let file = kept.join("demo.yaml");
    let run = || output(&mut demo(temporary.path(), &["--count", "3", "--config-dir", kept.to_str().unwrap()]));
    let edit = |from: &str, to: &str| {
        let yaml = std::fs::read_to_string(&file).unwrap();
        assert!(yaml.contains(from), "{yaml}");
        std::fs::write(&file, yaml.replace(from, to)).unwrap();
    };
    assert_eq!(run().status.code(), Some(0));
    edit("fields: [latitude, longitude]", "fields: [place]");
    let shown = text(&run().stdout);
    assert!(shown.contains("  [redacted]  ") && !shown.contains("gone at the end:"), "{shown}");
    edit("delivery: at_least_once", "delivery: exactly_once");
    let refused = run();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("no working transactions"), "{}", text(&refused.stderr));
}

#[test]
fn an_edit_is_taken_up_while_it_runs_and_one_that_a_mock_cannot_hold_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let kept = temporary.path().join("kept");
    let file = kept.join("demo.yaml");
    let edit = |from: &str, to: &str| {
        let yaml = std::fs::read_to_string(&file).unwrap();
        assert!(yaml.contains(from), "{yaml}");
        std::fs::write(&file, yaml.replace(from, to)).unwrap();
    };
    let args = ["--rate", "20", "--for", "60s", "--config-dir", kept.to_str().unwrap()];
    let mut child = demo(temporary.path(), &args).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let mut await_line = |what: &str| {
        let line = lines.find(|line| line.contains(what));
        line.unwrap_or_else(|| panic!("{what} is not shown within 60 s"))
    };
    await_line("public → quakes.public ");
    edit("fields: [latitude, longitude]", "fields: [place]");
    await_line("generation 2: 1 swapped in place (public: pipeline.0.config)");
    await_line("  [redacted]  ");
    edit("delivery: at_least_once", "delivery: exactly_once");
    let refused = await_line("refused, what runs goes on: ");
    assert!(refused.contains("exactly_once"), "{refused}");
    await_line("public → quakes.public ");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn missing_plugins_are_said_with_what_to_do() {
    let elsewhere = tempfile::tempdir().unwrap();
    let args = ["--plugins", elsewhere.path().to_str().unwrap()];
    let output = output(&mut demo(elsewhere.path(), &args));
    assert_eq!(output.status.code(), Some(3));
    let said = text(&output.stderr);
    assert!(said.contains("drop-where.wasm") && said.contains("`make demo`") && said.contains("--plugins"), "{said}");
    assert_empty(elsewhere.path());
}
