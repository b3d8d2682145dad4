//! `millrace check --connect` with a real broker: what a cluster lacks is told at its place in the YAML. What it refuses is in
//! `security`.

use std::process::Output;

use serde_json::{Value, json};

use crate::support::config::Config;
use crate::support::daemon::millrace;
use crate::support::kafka::shared;
use crate::support::unique;

pub(crate) fn check(config: &Config, options: &[&str]) -> Output {
    millrace(&["check"]).args(options).arg(config.path()).output().expect("the millrace binary runs")
}

/// Each problem's code with its message.
pub(crate) fn problems(output: &Output) -> Vec<(String, String, u64)> {
    let answer: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("not JSON ({error}): {output:?}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let problems = answer["problems"].as_array().expect("a list").iter();
    problems.map(|it| (text(&it["code"]), text(&it["message"]), it["line"].as_u64().unwrap_or(0))).collect()
}

#[track_caller]
pub(crate) fn assert_told(problems: &[(String, String, u64)], code: &str, words: &str) {
    let told = problems.iter().any(|(of, message, line)| of == code && message.contains(words) && *line > 0);
    assert!(told, "no {code} with `{words}` at a place: {problems:#?}");
}

#[test]
fn what_the_cluster_lacks_is_told_at_its_place() {
    let kafka = shared();
    let [wide, narrow, dead, missing] = ["wide", "narrow", "dead", "missing"].map(unique);
    kafka.create_topic(&wide, 4, &[]);
    kafka.create_topic(&narrow, 2, &[("unclean.leader.election.enable", "true"), ("min.insync.replicas", "1")]);
    kafka.create_topic(&dead, 1, &[("cleanup.policy", "compact")]);
    let routes = |destination: &str, more: &str| {
        format!(
            "routes:\n  r:\n    source: {{ topics: [{wide}], start: earliest }}\n    destinations:\n      - {destination}\n    {more}\n"
        )
    };
    let bootstrap = crate::support::kafka::bootstrap();
    let config = Config::new(
        bootstrap,
        &[],
        &routes(
            &format!("{{ topic: {narrow}, partition: source }}"),
            &format!("workers: 5\n    on_error: {{ dead_letter: {dead} }}"),
        ),
    );
    let output = check(&config, &["--connect", "--json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told = problems(&output);
    assert_told(&told, "partition_count", "it has 2, not 4");
    assert_told(&told, "not_durable", "unclean.leader.election.enable");
    assert_told(&told, "not_durable", "min.insync.replicas");
    assert_told(&told, "idle_workers", "5 workers for 4 partitions");
    assert_told(&told, "compacted_dead_letters", &dead);

    let config = Config::new(bootstrap, &[], &routes(&format!("{{ topic: {missing} }}"), "workers: 1"));
    let output = check(&config, &["--connect", "--json"]);
    // (what is missing is around the configuration, not in it)
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_told(&problems(&output), "missing_topic", &missing);
    assert_eq!(kafka.partitions(&missing), None, "nothing is created");

    let config = Config::new(bootstrap, &[], &routes(&format!("{{ topic: {wide}.out }}"), "workers: 1"));
    kafka.create_topic(&format!("{wide}.out"), 4, &[]);
    let output = check(&config, &["--connect"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn a_broker_that_does_not_answer_is_told_in_words() {
    let config = Config::new(
        "127.0.0.1:9",
        &[],
        "routes:\n  r: { source: { topics: [a], start: earliest }, destinations: [{ topic: b }] }\n",
    );
    let output = check(&config, &["--connect"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the brokers do not answer") && said.contains("nothing listens there"), "{said}");
}

#[test]
fn the_effective_configuration_says_where_each_value_came_from_and_no_secret() {
    let secret = "marked-secret-4711";
    let config = Config::of(&format!(
        "kafka: {{ bootstrap.servers: \"${{BROKERS:-127.0.0.1:9}}\", sasl.password: {secret}, client.rack: \"${{file:rack}}\" }}\n\
         admin: {{ token: {secret} }}\n\
         defaults: {{ workers: 3, commit_interval: 50ms }}\n\
         routes:\n  r:\n    source: {{ topics: [a], start: earliest }}\n    destinations: [{{ name: out, topic: b, partition: source }}]\n    on_error: skip\n    shadow: {{ pipeline: [], sample: 5 }}\n",
    ));
    std::fs::write(config.path().join("rack"), secret).expect("a file for it");
    let output = check(&config, &["--print", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let effective = serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["effective"].clone();
    let route = &effective["routes"]["r"];
    assert_eq!(route["workers"]["value"], "3");
    assert_eq!(route["workers"]["from"]["line"], 3);
    assert_eq!(route["transaction.interval"]["from"]["line"], 3, "{route:#}");
    assert_eq!(route["destinations.out.partition"]["from"]["line"], 7);
    assert_eq!(route["on_error"]["from"]["line"], 8);
    assert_eq!((&route["shadow.sample"]["value"], &route["shadow.sample"]["from"]["line"]), (&json!("5"), &json!(9)));
    assert_eq!(route["batch.records"], json!({ "value": "512", "from": "default" }));
    let process = &effective["process"];
    assert_eq!(process["kafka.bootstrap.servers"]["value"], "127.0.0.1:9");
    assert_eq!(process["kafka.bootstrap.servers"]["from"]["replaced"], json!(["${BROKERS}"]));
    assert_eq!(process["kafka.client.rack"]["value"], "[redacted]");
    assert_eq!(process["kafka.client.rack"]["from"]["replaced"], json!(["${file:rack}"]));

    let text = check(&config, &["--print"]);
    for output in [output, text] {
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("[redacted]") && !said.contains(secret), "{said}");
    }
}
