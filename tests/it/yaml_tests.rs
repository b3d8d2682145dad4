//! `millrace test`: what a person who tests a route in its YAML sees, with the real plugins and no broker.

use std::process::Output;

use serde_json::Value;

use crate::support::config::{Config, head};
use crate::support::daemon::millrace;
use crate::support::root;

fn test(config: &Config, options: &[&str]) -> Output {
    millrace(&["test"]).args(options).arg(config.path()).output().expect("the millrace binary runs")
}

fn said(output: &Output) -> String {
    // (where the configuration lies differs from run to run)
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    said.lines()
        .map(|line| line.split_once("millrace.yaml:").map_or(line, |(_, rest)| rest).to_owned() + "\n")
        .collect()
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
}

#[track_caller]
fn assert_passes(config: &Config) {
    assert_exit(&test(config, &[]), 0);
}

/// Two routes: one through the plugins, one whose plugin falls over on `poison`.
fn config(tests: &str) -> Config {
    let plugin = |name: &str| crate::support::config::plugin(name).display().to_string();
    let text = format!(
        r#"
plugins:
  drop: {{ path: "{drop}", config: {{ field: status, equals: test }} }}
  redact: {{ path: "{redact}", config: {{ fields: [card] }} }}
  route-by: {{ path: "{route_by}", config: {{}} }}
  flaky: {{ path: "{flaky}", config: {{ every: 1000, poison: poison }} }}
  unsteady: {{ path: "{flaky}", config: {{ every: 2, poison: poison }} }}
routes:
  orders:
    source: {{ topics: [orders, "^more\\..*"], start: earliest }}
    pipeline: [{{ plugin: drop }}, {{ plugin: redact }}, {{ plugin: route-by }}]
    destinations:
      - topic: paid
      - {{ name: archive, topic: paid.archive, partition: source }}
      - {{ name: regions, topic_pattern: "^region\\..*", partition: plugin, default: false }}
  plain:
    source: {{ topics: [p], start: earliest }}
    pipeline: [{{ plugin: route-by }}]
    destinations:
      - topic: paid
      - {{ name: archive, topic: paid.archive, partition: source }}
      - {{ name: regions, topic_pattern: "^region\\..*", partition: plugin, default: false }}
  conditional:
    source: {{ topics: [w], start: earliest }}
    pipeline:
      - {{ plugin: drop, when: "key != 'keep'" }}
      - {{ plugin: redact, when: "has(value.card)" }}
    destinations:
      - {{ topic: w.eu, when: "value.region == 'eu'" }}
      - {{ topic: w.large, when: "has(value.total) && value.total > 100 || headers.priority == 'high'" }}
    on_error: {{ dead_letter: w.dead }}
  brittle:
    enabled: false
    source: {{ topics: [b], start: earliest }}
    pipeline: [{{ plugin: flaky }}]
    destinations: [{{ topic: b.out }}]
    on_error: {{ dead_letter: b.dead }}
  patient:
    source: {{ topics: [c], start: earliest }}
    pipeline: [{{ plugin: unsteady }}]
    destinations: [{{ topic: c.out }}]
    on_error: {{ retry: {{ attempts: 3, backoff: 1h, max_backoff: 1h }}, then: skip }}
  strict:
    source: {{ topics: [d], start: earliest }}
    pipeline: [{{ plugin: flaky }}]
    destinations: [{{ topic: d.out, partition: source }}]
tests:
{tests}"#,
        drop = plugin("drop-where"),
        redact = plugin("redact-fields"),
        route_by = plugin("route-by"),
        flaky = plugin("flaky"),
    );
    Config::of(&format!("{}{text}", head("127.0.0.1:9", "t")))
}

#[test]
fn the_example_configuration_passes_its_own_tests() {
    let output = millrace(&["test", "config"]).current_dir(root()).output().expect("the millrace binary runs");
    assert_exit(&output, 0);
    let said = said(&output);
    assert!(said.ends_with("passed\n") && said.lines().count() >= 4, "{said}");
}

#[test]
fn only_what_a_test_names_is_compared() {
    assert_passes(&config(
        r#"
  - name: an output by some of its fields
    route: orders
    given: [{ key: k, value: { card: "4711", deep: { a: 1, b: [1, { c: 2, d: 3 }] }, n: 1.0 } }]
    expect:
      - { destination: paid, value: { card: "[redacted]", deep: { b: [1, { c: 2 }] }, n: 1 } }
      - { destination: archive, key: k }
  - name: one destination, and no word about the others
    route: plain
    given: [{ value: text }]
    expect: { paid: [{ value: text, exact: true }], regions: [] }
  - name: null is not empty, and bytes are bytes
    route: plain
    given:
      - { key: null, value: null, headers: { none: null, empty: "" } }
      - { key: "", value: { base64: AP8= }, headers: [[n, "1"], [n, "2"]], timestamp: 2026-01-31T00:00:00Z }
    expect:
      paid:
        - { key: null, value: null, headers: { none: null, empty: "" } }
        - { key: "", value: { base64: AP8= }, headers: { n: "2" }, timestamp: 1769817600000 }
  - name: all headers, in order
    route: plain
    given: [{ value: x, headers: [[n, "1"], [m, null], [n, "2"]] }]
    expect: { archive: [{ headers: [[n, "1"], [m, null], [n, "2"]], exact: true }] }
  - name: nothing comes of test traffic
    route: orders
    given: [{ value: { status: test } }, { topic: more.orders, value: { status: test } }]
    expect: []
"#,
    ));
}

/// Java's client chooses these partitions for the key `user:1001`: see `policy::partitioner`.
#[test]
fn a_partition_is_that_of_the_count_which_the_test_says() {
    assert_passes(&config(
        r#"
  - name: by key, of each count
    route: orders
    partitions: { paid: 12, paid.archive: 7 }
    given: [{ key: "user:1001", partition: 6 }]
    expect: [{ destination: paid, partition: 5 }, { destination: archive, partition: 6 }]
  - name: by key, of another
    route: orders
    partitions: 50
    given: [{ key: "user:1001" }]
    expect: { paid: [{ partition: 13 }] }
  - name: where the plugin says
    route: orders
    partitions: 4
    given: [{ headers: { to: regions, topic: region.eu, partition: "3" } }]
    expect: [{ destination: regions, topic: region.eu, partition: 3 }]
  - name: a plugin that names a partition which is not there
    route: orders
    partitions: 3
    given: [{ headers: { to: regions, topic: region.eu, partition: "3" } }]
    expect: []
    faults: [{ record: 0, code: bad_output, plugin: route-by, message: partition 3 is out of range, then: stop }]
  - name: a source partition without a counterpart
    route: strict
    partitions: 2
    given: [{ partition: 1, value: a }, { partition: 2, value: b }, { partition: 2, value: c }, { value: d }]
    expect: [{ value: a, partition: 1 }, { value: d, partition: 0 }]
    faults: [{ record: 1, code: no_counterpart, then: stop }]
"#,
    ));
}

#[test]
fn a_record_at_fault_meets_on_error_as_it_would_in_the_daemon() {
    assert_passes(&config(
        r#"
  - name: the bad one of a batch is put aside, and only that
    route: brittle
    given: [{ value: a }, { key: k, value: poison }, { value: c }]
    expect:
      - { destination: b.out, value: a }
      - { destination: b.dead, key: k, value: poison, headers: { __connect.errors.exception.class.name: trapped } }
      - { destination: b.out, value: c }
    faults: [{ record: 1, code: trapped, plugin: flaky, message: a poisoned record, then: dead_letter, attempts: 1 }]
  - name: another try helps, and is not waited for
    route: patient
    given: [{ value: a }, { value: b }, { value: c }]
    expect: [{ value: a }, { value: b }, { value: c }]
  - name: retries come to an end
    route: patient
    given: [{ value: poison }]
    expect: []
    faults: [{ code: trapped, then: skip, attempts: 4 }]
  - name: a partition that stops is not given the rest
    route: strict
    given: [{ value: a }, { value: poison }, { value: c }, { partition: 1, value: d }]
    expect: [{ value: a }, { value: d }]
    faults: [{ record: 1, then: stop }]
"#,
    ));
}

#[test]
fn a_condition_says_which_records_go_through_a_step_and_to_a_destination() {
    assert_passes(&config(
        r#"
  - name: by fields of the value, its absence and a header
    route: conditional
    given:
      - { value: { region: eu, n: 1 }, headers: { priority: low } }
      - { value: { region: eu, n: 2, total: 101 } }
      - { value: { region: us, n: 3 }, headers: { priority: high } }
      - { value: { region: us, n: 4 }, headers: { priority: low } }
    expect:
      - { destination: w.eu, value: { n: 1 } }
      - { destination: w.eu, value: { n: 2 } }
      - { destination: w.large, value: { n: 2 } }
      - { destination: w.large, value: { n: 3 } }
  - name: records go past a step in their order
    route: conditional
    given:
      - { key: a, value: { region: eu, status: test }, headers: { priority: low } }
      - { key: keep, value: { region: eu, status: test, n: 1 }, headers: { priority: low } }
      - { key: b, value: { region: eu, n: 2, card: "4711" }, headers: { priority: low } }
      - { key: keep, value: { region: eu, n: 3, card: "4712" }, headers: { priority: low } }
      - { key: c, value: { region: eu, status: test }, headers: { priority: low } }
      - { key: keep, value: { region: eu, n: 4 }, headers: { priority: low } }
    expect:
      - { value: { n: 1, status: test } }
      - { value: { n: 2, card: "[redacted]" } }
      - { value: { n: 3, card: "[redacted]" } }
      - { value: { n: 4 } }
  - name: what cannot be told is a fault of that record, and not of a plugin
    route: conditional
    given:
      - { key: keep, value: { region: eu }, headers: { priority: low } }
      - { key: keep, value: not JSON }
      - { key: keep, value: { n: 1 }, headers: { priority: low } }
      - { key: keep, value: null }
      - { key: keep, value: { region: eu }, headers: { priority: low } }
    expect:
      - { destination: w.eu }
      - { destination: w.dead, value: not JSON }
      - { destination: w.dead, value: { n: 1 } }
      - { destination: w.dead, value: null }
      - { destination: w.eu }
    faults:
      - { record: 1, code: refused, message: "`when` of plugin redact: the value is not JSON", then: dead_letter }
      - { record: 2, code: refused, message: "`when` of destination \"w.eu\": no such key: region", then: dead_letter }
      - { record: 3, code: refused }
"#,
    ));
}

/// Tests of which all but one fail.
const WRONG: &str = r#"
  # what is wrong with the first is its value
  - name: another value
    route: orders
    given: [{ key: k, value: { card: "4711", total: 7, note: "${HOME}$$" } }]   # (kept)
    expect:
      - destination: paid
        value: { total: 8 }
      - { destination: archive, key: k }
  - name: too few
    route: orders
    given: [{ key: a, value: "1" }, { value: { status: test } }, { key: "yes", value: { price: "costs $$5" } }]
    expect: { paid: [{ key: a }] }
  - { name: a fault that nobody expects, route: strict, given: [{ value: poison }, { value: b }], expect: [] }
  - name: fine
    route: plain
    given: [{ value: x }]
    expect: { archive: [{ value: x }] }   # stays
"#;

#[test]
fn what_came_out_is_shown_beside_what_is_expected_with_the_tests_place() {
    let config = config(WRONG);
    let output = test(&config, &[]);
    assert_exit(&output, 1);
    insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("yaml_tests_fail", said(&output));
    });

    let output = test(&config, &["--json", "--name", "few"]);
    assert_exit(&output, 1);
    let results: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&results["passed"], &results["failed"]), (&0.into(), &1.into()), "{results:#}");
    let result = &results["tests"][0];
    assert_eq!(
        (&result["name"], &result["route"], &result["passed"]),
        (&"too few".into(), &"orders".into(), &false.into())
    );
    let yaml = std::fs::read_to_string(config.path().join("millrace.yaml")).expect("the configuration");
    let line = yaml.lines().position(|line| line.contains("too few")).expect("the test") + 1;
    assert_eq!(result["line"], line, "{result:#}");
    assert_eq!(result["differences"][0]["of"], "outputs to paid", "{result:#}");

    assert_exit(&test(&config, &["--name", "fine"]), 0);
    let output = test(&config, &["--name", "no such test"]);
    assert_exit(&output, 2);
    assert!(said(&output).contains("no test has `no such test` in its name"), "{}", said(&output));
}

#[test]
fn update_writes_what_came_out_and_leaves_the_rest_as_it_is() {
    let config = config(WRONG);
    let yaml = config.path().join("millrace.yaml");
    let before = std::fs::read_to_string(&yaml).expect("the configuration");
    assert_exit(&test(&config, &["--update"]), 0);
    let after = std::fs::read_to_string(&yaml).expect("the configuration");
    let (head, tests) = after.split_once("tests:\n").expect("there are tests");
    assert_eq!(Some(head), before.split_once("tests:\n").map(|(head, _)| head));
    insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("yaml_tests_updated", tests);
    });
    assert_passes(&config);
    assert_exit(&test(&config, &["--update"]), 0);
    assert_eq!(std::fs::read_to_string(&yaml).expect("the configuration"), after, "nothing is left to update");
}

#[test]
fn a_test_that_is_written_wrong_is_a_problem_of_the_configuration() {
    let config = config("  - { name: t, route: orders, given: [], expect: [{ destination: payd }] }\n");
    for verb in ["test", "check"] {
        let output = millrace(&[verb]).arg(config.path()).output().expect("the millrace binary runs");
        assert_exit(&output, 2);
        assert!(said(&output).contains("did you mean `paid`?"), "{}", said(&output));
    }
}
