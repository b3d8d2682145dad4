//! What an operator does with a daemon that runs: pause, resume, restart, skip, look, log. Over HTTP, and by the verbs.

use std::process::Output;
use std::time::Duration;

use serde_json::json;

use crate::lag::of_kafka;
use crate::support::config::Config;
use crate::support::daemon::{Daemon, millrace};
use crate::support::kafka::{Isolation, Kafka, Record, shared};
use crate::support::load::Load;
use crate::support::{pace, unique, wait_for, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// A transaction that was left open would hold committed readers back for its timeout of 15 s, and for the broker's look.
const SOON: Duration = Duration::from_secs(8);

/// `millrace VERB ROUTE … --url URL`.
fn verb(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = millrace(arguments);
    command.args(["--url", &daemon.url()]).env("USER", "ann").env_remove("SUDO_USER");
    command.output().expect("the millrace binary runs")
}

/// What a verb that does it says.
#[track_caller]
fn done(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = verb(daemon, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// The exit code of one that does not, and what it says.
#[track_caller]
fn declined(daemon: &Daemon, arguments: &[&str]) -> (i32, String) {
    let output = verb(daemon, arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().expect("it ended by itself"), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn topics(kafka: &Kafka, partitions: i32) -> [String; 2] {
    let topics = [unique("ops"), unique("ops-out")];
    for topic in &topics {
        kafka.create_topic(topic, partitions, &[]);
    }
    topics
}

#[test]
fn a_pause_leaves_no_transaction_open_moves_no_partition_lasts_over_reloads_and_loses_and_doubles_nothing() {
    let kafka = shared();
    let [source, destination] = topics(kafka, 2);
    let routes = format!(
        "routes:
  copy:
    source: {{ topics: [{source}], start: earliest }}
    destinations: [{{ topic: {destination}, partition: source }}]
    transaction: {{ interval: 20ms }}
"
    );
    let config = Config::new(&kafka.bootstrap, &[], &routes);
    let mut daemon = Daemon::start(config.path());
    let load = Load::start(kafka, &source, 2, 300);
    daemon.await_consumed("copy", 1, PATIENCE);
    let rebalances = || daemon.metric("millrace_rebalances_total", &[("route", "copy")]).expect("it has joined");
    let ends = |isolation| kafka.end_offsets(&destination, isolation);
    let consumed = || daemon.metric("millrace_records_consumed_total", &[("route", "copy")]).unwrap_or_default();
    let before = rebalances();

    for _ in 0..3 {
        assert_eq!(done(&daemon, &["pause", "copy"]), "copy: is paused");
        wait_until(SOON, "no transaction is open", || {
            ends(Isolation::ReadCommitted) == ends(Isolation::ReadUncommitted)
        });
        let (stands, counted) = (ends(Isolation::ReadCommitted), consumed());
        pace(Duration::from_millis(300));
        assert_eq!(
            (ends(Isolation::ReadUncommitted), consumed()),
            (stands, counted),
            "nothing is written while it is paused"
        );
        assert_eq!(done(&daemon, &["resume", "copy"]), "copy: is running");
        daemon.await_consumed("copy", counted as usize + 1, PATIENCE);
    }

    // Its lag grows as Kafka's own tool sees it grow (these topics have no marks), and it keeps its partitions.
    assert_eq!(done(&daemon, &["pause", "copy"]), "copy: is paused");
    let kafkas = || of_kafka(kafka, &config.group("copy")).values().sum::<u64>() as f64;
    let ours = || daemon.metric("millrace_consumer_lag_records", &[("route", "copy")]).unwrap_or_default();
    let earlier = kafkas();
    wait_until(PATIENCE, "a look at the lag that is later", || ours() >= earlier);
    let (ours, later) = (ours(), kafkas());
    assert!(ours > 0.0 && ours <= later, "{earlier} ≤ {ours} ≤ {later}");
    assert_eq!(daemon.metric("millrace_route_state", &[("route", "copy"), ("state", "paused")]), Some(1.0));
    assert_eq!(rebalances(), before, "no partition has moved");
    let output = done(&daemon, &["status"]);
    let line = output.lines().find(|line| line.starts_with("copy")).expect("the route's line");
    assert!(line.contains("paused"), "{output}");

    // A reload that is taken up in place, and one that restarts the route: it stays paused.
    for (old, new) in
        [("interval: 20ms", "interval: 30ms"), ("start: earliest", "start: earliest, on_offset_lost: latest")]
    {
        let generation = daemon.generation() + 1;
        config.edit(|yaml| yaml.replace(old, new));
        daemon.await_workers("copy", generation, PATIENCE);
        daemon.await_state("copy", "paused", PATIENCE);
        wait_until(PATIENCE, "it has its partitions", || {
            daemon.metric("millrace_partitions_assigned", &[("route", "copy")]) == Some(2.0)
        });
    }
    assert_eq!(done(&daemon, &["restart", "copy"]), "copy: is paused", "that does not end a pause");
    assert_eq!(done(&daemon, &["resume", "copy"]), "copy: is running");
    let sent = load.stop();
    sent.assert_whole(&kafka.await_records(&destination, sent.count, PATIENCE), "a route was paused and resumed");
    wait_until(PATIENCE, "nothing is left to do", || {
        daemon.metric("millrace_consumer_lag_records", &[("route", "copy")]) == Some(0.0)
    });
    assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
}

#[test]
fn one_record_is_passed_by_in_one_transaction_counted_kept_if_asked_and_logged_with_who_asked() {
    let kafka = shared();
    let [source, destination] = topics(kafka, 1);
    let dead = unique("ops-dead");
    kafka.create_topic(&dead, 1, &[]);
    let routes = format!(
        "routes:
  copy:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: redact-fields, config: {{ fields: [card] }} }}]
    destinations: [{{ topic: {destination} }}]
  off:
    enabled: false
    source: {{ topics: [{dead}], start: earliest }}
    destinations: [{{ topic: {destination} }}]
"
    );
    let values = ["{\"n\":0}", "poison 1", "{\"n\":2}", "poison 3", "{\"n\":4}"];
    let records: Vec<_> = values.into_iter().map(|value| Record::new("k", value)).collect();
    kafka.produce(&source, &records);
    let config = Config::new(&kafka.bootstrap, &["redact-fields"], &routes);
    let daemon = Daemon::start(config.path());
    let stands_before = |offset: u64| {
        wait_until(PATIENCE, "it has stopped before the next", || {
            daemon.route("copy")["workers"][0]["stopped"][0]["offset"] == offset
        });
    };
    stands_before(1);

    let at = |offset: u64| format!("{source}/0/{offset}");
    let (code, said) = declined(&daemon, &["skip", "copy", "--at", &at(2)]);
    assert!(code == 1 && said.contains("the next record of") && said.contains("is at offset 1"), "{code}: {said}");
    let (code, said) = declined(&daemon, &["skip", "copy", "--at", &at(1), "--dead-letter", &source]);
    assert!(code == 1 && said.contains("the record would come back"), "{code}: {said}");
    let (code, said) = declined(&daemon, &["skip", "copy", "--at", "elsewhere/0/1"]);
    assert!(code == 1 && said.contains("not owned by this process"), "{code}: {said}");
    let (code, said) = declined(&daemon, &["skip", "nothing", "--at", &at(1)]);
    assert!(code == 2 && said.contains("there is no route \"nothing\""), "{code}: {said}");
    let (code, said) = declined(&daemon, &["pause", "off"]);
    assert!(code == 1 && said.contains("enabled: true"), "{code}: {said}");
    // (it is about to try the record again, now and then)
    wait_until(PATIENCE, "the screen says what is wrong", || {
        let output = done(&daemon, &["status"]);
        let parts = [
            "copy   failed",
            "stopped before offset 1: refused in plugin redact-fields: ",
            "last fault",
            "off    disabled",
        ];
        parts.iter().all(|part| output.contains(part))
    });

    let said = done(&daemon, &["skip", "copy", "--at", &at(1), "--dead-letter", &dead]);
    assert_eq!(said, format!("copy: {source}/0 goes on behind offset 1, which is passed by, and kept in {dead}"));
    stands_before(3);
    done(&daemon, &["skip", "copy", "--at", &at(3)]);
    let arrived = kafka.await_records(&destination, 3, PATIENCE);
    assert_eq!(arrived.iter().map(|record| record.text()).collect::<Vec<_>>(), [values[0], values[2], values[4]]);
    daemon.await_state("copy", "running", PATIENCE);

    let kept = kafka.await_records(&dead, 1, PATIENCE);
    assert_eq!(kept[0].text(), "poison 1");
    let header = |name: &str| {
        let found = kept[0].headers.iter().find(|(of, _)| of == name).and_then(|(_, value)| value.clone());
        String::from_utf8(found.expect("the header is there")).expect("a text")
    };
    assert_eq!(header("__connect.errors.exception.class.name"), "refused");
    assert!(header("__connect.errors.exception.message").contains("passed by as ann@"));
    let counted = |name: &str| daemon.metric(name, &[("route", "copy"), ("code", "refused")]);
    assert_eq!(counted("millrace_dead_letters_total"), Some(1.0));
    assert_eq!(counted("millrace_records_skipped_total"), Some(1.0));
    let log = daemon.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("passed by, as asked")).collect();
    assert_eq!(lines.len(), 2, "{log}");
    for part in ["WARN", "route=copy", "partition=0", "offset=1", "by=\"ann@", &dead] {
        assert!(lines[0].contains(part), "{part}: {}", lines[0]);
    }
}

#[test]
fn the_position_of_a_paused_route_is_moved_by_offset_or_time_after_a_dry_run_that_moves_nothing() {
    let kafka = shared();
    let [source, destination] = topics(kafka, 2);
    let routes = format!(
        "routes:
  copy:
    source: {{ topics: [{source}], start: earliest }}
    destinations: [{{ topic: {destination}, partition: source }}]
"
    );
    // A record a minute, alternating between two partitions.
    let noon = 1_764_244_800_000;
    let record =
        |number: i32| Record::new("k", number.to_string()).to(number % 2).at(noon + i64::from(number) * 60_000);
    kafka.produce(&source, &(0..10).map(record).collect::<Vec<_>>());
    let config = Config::new(&kafka.bootstrap, &[], &routes);
    let daemon = Daemon::start(config.path());
    kafka.await_records(&destination, 10, PATIENCE);
    let group = config.group("copy");
    wait_until(PATIENCE, "all is committed", || kafka.committed(&group, &source) == [(0, 5), (1, 5)].into());
    let (code, said) = declined(&daemon, &["seek", "copy", "--to", "3"]);
    assert!(code == 1 && said.contains("pause it first"), "{code}: {said}");
    done(&daemon, &["pause", "copy"]);
    let (code, said) = declined(&daemon, &["seek", "copy", "--to", "yesterday"]);
    assert!(code == 1 && said.contains("neither earliest"), "{code}: {said}");

    let said = done(&daemon, &["seek", "copy", "--to", "3", "--dry-run"]);
    let line = format!("{source}/0: 5 → 3: offsets 3 to 4 are read AGAIN (2), and what they make is written again");
    assert!(said.starts_with(&line) && said.ends_with("nothing is moved (--dry-run)"), "{said}");
    assert_eq!(kafka.committed(&group, &source), [(0, 5), (1, 5)].into());

    // Record 8 is offset 4 of partition 0, record 9 offset 4 of partition 1.
    let said = done(&daemon, &["seek", "copy", "--to", "2025-11-27T12:08:00Z"]);
    assert!(said.contains(&format!("{source}/1: 5 → 4")) && said.contains("millrace resume"), "{said}");
    assert_eq!(kafka.committed(&group, &source), [(0, 4), (1, 4)].into());
    assert_eq!(kafka.await_records(&destination, 10, PATIENCE).len(), 10, "nothing flows yet");
    wait_until(PATIENCE, "its lag is what there is to read again", || {
        daemon.metric("millrace_consumer_lag_records", &[("route", "copy")]) == Some(2.0)
    });
    done(&daemon, &["resume", "copy"]);
    let arrived = kafka.await_records(&destination, 12, PATIENCE);
    let mut twice: Vec<_> =
        arrived.iter().map(|record| record.text()).filter(|text| text == "8" || text == "9").collect();
    twice.sort();
    assert_eq!(twice, ["8", "8", "9", "9"]);
    assert_eq!(kafka.committed(&group, &source), [(0, 5), (1, 5)].into());
    assert!(daemon.log().contains("the position is moved, as asked"), "{}", daemon.log());
}

#[test]
fn the_log_can_be_turned_up_while_it_runs_and_the_graph_shows_what_flows_where() {
    let kafka = shared();
    let [source, destination] = topics(kafka, 1);
    let dead = unique("ops-dead");
    kafka.create_topic(&dead, 1, &[]);
    let routes = format!(
        "routes:
  copy:
    source: {{ topics: [{source}, \"^ops-none-.*\"], start: earliest }}
    shadow: {{ pipeline: [{{ plugin: identity-pass }}], sample: 3 }}
    destinations: [{{ topic: {destination} }}]
    on_error: {{ dead_letter: {dead} }}
"
    );
    let config = Config::new(&kafka.bootstrap, &["identity-pass"], &routes);
    let daemon = Daemon::start(config.path());
    let graph = daemon.get("/api/v1/graph").json();
    let mut topics = [&dead, &source, &destination];
    topics.sort_unstable();
    assert_eq!(graph["topics"], json!(topics));
    assert_eq!(graph["routes"][0]["to"][0]["topic"], destination.as_str());
    assert_eq!(graph["routes"][0]["from"], json!([source, "^ops-none-.*"]));
    assert_eq!(graph["routes"][0]["shadow"], json!({ "through": ["identity-pass"], "sample": 3 }));
    assert_eq!((&graph["routes"][0]["through"], &graph["plugins"][0]["plugin"]), (&json!([]), &json!("identity-pass")));
    let log = |level: &str| daemon.send("PUT", "/api/v1/log", &format!("{{\"level\": \"{level}\"}}"));
    assert_eq!([log("loud=loud").status, log("").status], [400, 400]);
    daemon.await_state("copy", "running", PATIENCE);
    let answer = log("error");
    assert_eq!((answer.status, answer.json()["level"].as_str()), (200, Some("millrace=error,error")));
    done(&daemon, &["pause", "copy"]);
    assert!(!daemon.log().contains("as the admin endpoint was asked"), "{}", daemon.log());
    log("info");
    done(&daemon, &["resume", "copy"]);
    assert!(daemon.log().contains("resumed, as the admin endpoint was asked"), "{}", daemon.log());
    let told = done(&daemon, &["log-level", "debug"]);
    assert_eq!(told, "it logs millrace=debug,warn, until a configuration is applied");
    let (code, slip) = declined(&daemon, &["log-level", "debgu"]);
    assert!(code == 1 && slip.contains("`debgu` is no level"), "{code}: {slip}");
    config.edit(|yaml| yaml.replace("on_error", "transaction: { interval: 50ms }\n    on_error"));
    daemon.await_workers("copy", 2, PATIENCE);
    // What is written is in force again with the next configuration.
    wait_until(PATIENCE, "the level is the configured one", || {
        daemon.get("/api/v1/log").json()["level"] == "millrace=info,warn"
    });
}

#[test]
fn the_start_tells_on_one_screen_what_runs_of_which_bytes_within_which_limits_and_what_is_switched_off() {
    let kafka = shared();
    let [source, destination] = topics(kafka, 1);
    let routes = format!(
        "routes:
  copy:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: identity-pass }}]
    destinations: [{{ topic: {destination} }}]
  asleep:
    enabled: false
    source: {{ topics: [{source}], start: earliest }}
    destinations: [{{ topic: {destination} }}]
"
    );
    let config = Config::new(&kafka.bootstrap, &["identity-pass"], &routes);
    let daemon = Daemon::start(config.path());
    daemon.await_state("copy", "running", PATIENCE);
    let log = daemon.log();
    let copy = daemon.route("copy");
    let sha256 = copy["plugins"][0]["sha256"].as_str().expect("a digest");
    for told in [
        "millrace is running",
        &kafka.bootstrap,
        &daemon.admin().to_string(),
        "limits of this process, and the memory that its configuration lets it take",
        &format!("group={}", config.group("copy")),
        &format!("{source} → [identity-pass@{}] → {destination}", &sha256[..12]),
        "disabled: asleep",
    ] {
        assert!(log.contains(told), "{told}: {log}");
    }
    assert!(log.lines().count() <= 24, "{log}");
}

#[test]
fn a_fault_in_json_has_its_coordinates_as_fields_and_of_those_like_it_one_line_an_interval_with_the_number_of_the_rest()
{
    let kafka = shared();
    let [source, destination] = topics(kafka, 1);
    let routes = format!(
        "log: {{ format: json }}
routes:
  copy:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: misbehave, config: {{ do: refuse, when: poison }} }}]
    destinations: [{{ topic: {destination} }}]
    on_error: skip
"
    );
    let config = Config::new(&kafka.bootstrap, &["misbehave"], &routes);
    kafka.produce(&source, &vec![Record::new("k", "poison"); 300]);
    let daemon = Daemon::start(config.path());
    let lines = wait_for(PATIENCE, "all are told or counted", || {
        let log = daemon.log();
        let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("each line is JSON"));
        let lines: Vec<_> = lines.filter(|line| line["code"] == "refused").collect();
        let told = lines.iter().filter(|line| line["offset"].is_u64()).count() as u64;
        let left_out: u64 = lines.iter().filter_map(|line| line["left_out"].as_u64()).sum();
        (told + left_out == 300).then_some(lines)
    });
    assert!(lines.len() < 10, "{} lines", lines.len());
    for (field, expected) in [
        ("level", json!("WARN")),
        ("route", json!("copy")),
        ("worker", json!(0)),
        ("topic", json!(source)),
        ("partition", json!(0)),
        ("offset", json!(0)),
        ("plugin", json!("misbehave")),
        ("code", json!("refused")),
        ("left_out", json!(null)),
    ] {
        assert_eq!(lines[0][field], expected, "{field} of {}", lines[0]);
    }
    let message = lines[0]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("record at fault, skipped: ") && !message.contains(&source), "{message}");
    assert!(lines[0]["error_id"].is_string() && lines[0]["timestamp"].is_string(), "{}", lines[0]);
    let last = lines.last().expect("more than one");
    assert_eq!((&last["route"], &last["plugin"]), (&json!("copy"), &json!("misbehave")), "{last}");
}

#[test]
fn the_id_of_a_fault_is_one_and_the_same_in_the_log_the_status_and_the_dead_letter() {
    let kafka = shared();
    let [source, destination] = topics(kafka, 1);
    let letters = unique("ids-dead");
    kafka.create_topic(&letters, 1, &[]);
    let routes = format!(
        "log: {{ format: json }}
routes:
  copy:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: misbehave, config: {{ do: trap, when: poison }} }}]
    destinations: [{{ topic: {destination} }}]
    on_error: {{ dead_letter: {letters} }}
"
    );
    let config = Config::new(&kafka.bootstrap, &["misbehave"], &routes);
    kafka.produce(&source, &[Record::new("k", "poison")]);
    let daemon = Daemon::start(config.path());
    let letter = kafka.await_records(&letters, 1, PATIENCE).remove(0);
    let id = letter.headers.into_iter().find_map(|(name, value)| (name == "millrace.error.id").then_some(value));
    let id = String::from_utf8(id.flatten().expect("a dead letter has an id")).expect("in letters");
    let told = wait_for(PATIENCE, "the log tells of it", || {
        let log = daemon.log();
        let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("each line is JSON"));
        let told: Vec<_> =
            lines.filter(|line| line["code"] == "trapped").map(|line| line["error_id"].clone()).collect();
        (!told.is_empty()).then_some(told)
    });
    assert_eq!(told, [json!(id)]);
    wait_until(PATIENCE, "the status has it", || daemon.route("copy")["last_fault"]["error_id"] == json!(id));
}
