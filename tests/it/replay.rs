//! `millrace replay`, on a real broker: what other plugins would have made of records that are there, counted exactly.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::config::Config;
use crate::support::daemon::millrace;
use crate::support::kafka::{Isolation, Record, shared};
use crate::support::{scratch, unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
const NOON: i64 = 1_764_158_400_000;

/// The plugins that a route has, and those that it is to have.
pub(crate) const PRESENT: &str = "{ plugin: redact-fields, config: { fields: [card] } }";
pub(crate) const NEXT: &str = "{ plugin: drop-where, config: { field: status, equals: test } }, { plugin: redact-fields, config: { fields: [card, ip] } }";

/// Of 100 records every fifth has a field more to redact, and every tenth of the others is to be dropped.
pub(crate) fn records() -> Vec<Record> {
    let record = |n: i64| {
        let mut value = json!({ "n": n, "card": "4711" });
        if n % 5 == 0 {
            value["ip"] = "10.0.0.1".into();
        } else if n % 10 == 1 {
            value["status"] = "test".into();
        }
        Record::new(format!("key-{n}"), value.to_string()).at(NOON + n * 1000)
    };
    (0..100).map(record).collect()
}

pub(crate) fn config(source: &str, target: &str, pipeline: &str) -> Config {
    Config::new(
        &shared().bootstrap,
        &["redact-fields", "drop-where"],
        &format!(
            "routes:
  r:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{pipeline}]
    destinations: [{{ topic: {target} }}]
"
        ),
    )
}

#[track_caller]
pub(crate) fn replay(config: &Config, options: &[&str]) -> Vec<Value> {
    let output = millrace(&["replay", "r"]).arg(config.path()).args(options).arg("--json").output();
    let output = output.expect("the millrace binary runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_other_plugins_would_make_otherwise_is_shown_and_counted_exactly_and_nothing_of_the_route_moves() {
    let kafka = shared();
    let [source, target, scratch_topic] = ["in", "out", "replayed"].map(unique);
    for topic in [&source, &target, &scratch_topic] {
        kafka.create_topic(topic, 3, &[("retention.ms", "-1")]);
    }
    kafka.produce(&source, &records());
    let present = config(&source, &target, PRESENT);
    let next = config(&source, &target, NEXT);
    let next = next.path().to_str().expect("a path");

    let told = replay(&present, &["--diff", "--plugin-set", next, "--limit", "1000"]);
    let (sum, differing) = told.split_last().expect("a sum");
    assert_eq!(sum["differences"], json!({ "count": 10, "value": 20 }), "{sum}");
    assert_eq!((&sum["records"], &sum["differing"], &sum["outputs"]), (&json!(100), &json!(30), &json!(90)), "{sum}");
    assert_eq!(differing.len(), 30);
    let value = differing.iter().find(|record| record["differences"] == json!(["value"])).expect("one");
    let part = |side: &str| value[side]["outputs"][0]["value"].as_str().expect("a value").to_owned();
    assert!(part("before").contains("10.0.0.1") && !part("after").contains("10.0.0.1"), "{value}");
    assert_eq!(replay(&present, &["--diff"])[0]["differing"], 0, "the same plugins make the same");

    // A destination's own condition is asked: what no destination takes is no output, and what cannot be decided is a fault.
    for (when, expected) in [("value.n < 40", json!({ "count": 60 })), ("value.ip != ''", json!({ "fault": 80 }))] {
        let conditional = config(&source, &target, PRESENT);
        conditional.edit(|yaml| yaml.replacen(&format!("{target} }}"), &format!("{target}, when: \"{when}\" }}"), 1));
        let set = conditional.path().to_str().expect("a path");
        let sum = replay(&present, &["--diff", "--plugin-set", set, "--limit", "0"]).pop().expect("a sum");
        assert_eq!(sum["differences"], expected, "{when}: {sum}");
    }

    // Ten seconds of them, into a file.
    let file = scratch("replayed").with_extension("ndjson");
    let [from, to] =
        [NOON + 20_000, NOON + 30_000].map(|ms| jiff::Timestamp::from_millisecond(ms).unwrap().to_string());
    let path = file.to_str().expect("a path");
    let sum = &replay(&present, &["--from", &from, "--to", &to, "--out", path])[0];
    assert_eq!((&sum["records"], &sum["outputs"]), (&json!(10), &json!(10)), "{sum}");
    let text = std::fs::read_to_string(&file).expect("the file is written");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 10);
    assert!(
        lines.iter().all(|line| line["destinations"] == json!([target]) && line["from"]["topic"] == source.as_str())
    );
    std::fs::remove_file(&file).expect("it is ours");

    // All of them, through the other plugins, into a topic.
    replay(&present, &["--plugin-set", next, "--out", &scratch_topic]);
    wait_until(PATIENCE, "the outputs arrive", || {
        kafka.kcat_consume(&scratch_topic, Isolation::ReadCommitted).len() == 90
    });
    let refused = millrace(&["replay", "r"]).arg(present.path()).args(["--out", &target]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(kafka.kcat_consume(&target, Isolation::ReadCommitted).is_empty());
    assert!(kafka.committed(&present.group("r"), &source).is_empty(), "the group has not moved");
}
