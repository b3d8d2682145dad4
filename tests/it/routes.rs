//! What routes do with topics and partitions, on a real broker: where records may come from and go to, and how workers
//! and processes share the work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millrace::policy::partition_for_key;
use serde_json::Value;

use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{ConsumedRecord, Isolation, Record, shared};
use crate::support::{unique, wait_for, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// Within which new topics and partitions are taken up.
const SOON: Duration = Duration::from_secs(30);

/// Topics of these names, made unique, each with so many partitions.
fn topics<const N: usize>(named: [(&str, i32); N]) -> [String; N] {
    named.map(|(name, partitions)| {
        let topic = unique(name);
        shared().create_topic(&topic, partitions, &[("retention.ms", "-1")]);
        topic
    })
}

fn config(plugins: &[&str], rest: &str) -> Config {
    Config::new(&shared().bootstrap, plugins, rest)
}

fn texts(topic: &str) -> Vec<String> {
    // Brokers write the marks that show a transaction to readers after they have answered its commit.
    let ends = |isolation| shared().end_offsets(topic, isolation);
    wait_until(PATIENCE, "no transaction is open", || {
        ends(Isolation::ReadCommitted) == ends(Isolation::ReadUncommitted)
    });
    shared().kcat_consume(topic, Isolation::ReadCommitted).iter().map(ConsumedRecord::text).collect()
}

#[track_caller]
fn await_texts(topic: &str, expected: &[&str], timeout: Duration) {
    shared().await_records(topic, expected.len(), timeout);
    let mut found = texts(topic);
    found.sort();
    assert_eq!(found, expected, "{topic}");
}

/// The partitions of `topic` that a worker of the route owns.
fn assignment(route: &Value, worker: usize, topic: &str) -> BTreeSet<i64> {
    let partitions = &route["workers"][worker]["assignment"][topic];
    partitions.as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
}

// ---- destinations ---------------------------------------------------------------------------------------------------

#[test]
fn one_record_goes_to_several_destinations_in_one_transaction() {
    let [source, a, b, c] = topics([("fan", 1), ("fan-a", 1), ("fan-b", 1), ("fan-c", 1)]);
    shared().produce(&source, &[Record::new("k", "one").header("to", "a,b,c").header("copies", "2")]);
    let config = config(
        &["route-by"],
        &format!(
            "
routes:
  fan:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: route-by }}]
    destinations:
      - {{ name: a, topic: {a} }}
      - {{ name: b, topic: {b} }}
      - {{ name: c, topic: {c}, default: false }}
"
        ),
    );
    let daemon = Daemon::start(config.path());
    daemon.await_consumed("fan", 1, PATIENCE);
    let committed = daemon.metric("millrace_transactions_total", &[("route", "fan"), ("outcome", "committed")]);
    assert_eq!(committed, Some(1.0));
    for topic in [&a, &b, &c] {
        assert_eq!(texts(topic), ["one", "one"]);
        // Two records, and the one mark of a transaction's end.
        assert_eq!(shared().end_offsets(topic, Isolation::ReadUncommitted), BTreeMap::from([(0, 3)]));
    }
    // Without a word from the plugin: where `default` is true. And one that passes besides being sent on as it is.
    shared().produce(
        &source,
        &[Record::new("k", "two"), Record::new("k", "three").header("forward", "c").header("keep", "yes")],
    );
    daemon.await_consumed("fan", 3, PATIENCE);
    assert_eq!(texts(&a), ["one", "one", "two", "three"]);
    assert_eq!(texts(&b), ["one", "one", "two", "three"]);
    assert_eq!(texts(&c), ["one", "one", "three"]);
    for (destination, records) in [("a", 4.0), ("b", 4.0), ("c", 3.0)] {
        let labels = [("route", "fan"), ("destination", destination)];
        assert_eq!(daemon.metric("millrace_records_produced_total", &labels), Some(records), "{destination}");
    }
}

#[test]
fn a_plugin_names_the_topic_of_a_topic_pattern_and_only_topics_that_match_and_exist_are_taken() {
    let [source, dead] = topics([("named", 1), ("named-dead", 1)]);
    let regions = unique("region");
    let [alaska, nevada] = ["alaska", "nevada"].map(|region| format!("{regions}.{region}"));
    for topic in [&alaska, &nevada] {
        shared().create_topic(topic, 2, &[]);
    }
    let to = |value: &str, topic: &str| Record::new("k", value).header("to", "region").header("topic", topic);
    let missing = format!("{regions}.utah");
    shared().produce(
        &source,
        &[to("1", &alaska), to("2", &nevada), to("3", "elsewhere"), to("4", &missing), to("5", &alaska)],
    );
    let config = config(
        &["route-by"],
        &format!(
            "
routes:
  named:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: route-by }}]
    destinations: [{{ name: region, topic_pattern: \"^{regions}\\\\.[a-z]+$\", default: false }}]
    on_error: {{ dead_letter: {dead} }}
"
        ),
    );
    let daemon = Daemon::start(config.path());
    daemon.await_consumed("named", 5, PATIENCE);
    assert_eq!(texts(&alaska), ["1", "5"]);
    assert_eq!(texts(&nevada), ["2"]);
    let why = |record: &ConsumedRecord| {
        let of = |wanted: &str| {
            let value = record.headers.iter().find(|(name, _)| name == wanted).and_then(|(_, value)| value.clone());
            String::from_utf8(value.expect("a dead letter's header")).expect("in words")
        };
        (record.text(), of("__connect.errors.exception.class.name"), of("__connect.errors.exception.message"))
    };
    let letters = shared().console_consume(&dead, Isolation::ReadCommitted);
    let [(third, code, message), (fourth, other_code, other_message)] =
        &letters.iter().map(why).collect::<Vec<_>>()[..]
    else {
        panic!("two dead letters: {letters:?}")
    };
    assert_eq!([third, code, fourth, other_code], ["3", "bad_output", "4", "bad_output"]);
    assert!(message.contains("elsewhere"), "{message}");
    assert!(other_message.contains(&missing), "{other_message}");
}

#[test]
fn partitions_are_chosen_by_key_by_source_in_turn_or_by_the_plugin() {
    let [source, key, same, turn, plugin] =
        topics([("mode", 3), ("mode-key", 4), ("mode-source", 3), ("mode-turn", 4), ("mode-plugin", 5)]);
    let everywhere = |number: usize| Record {
        key: number.is_multiple_of(2).then(|| format!("key-{}", number % 10).into_bytes()),
        ..Record::new("", number.to_string()).header("to", "key,source,turn,plugin")
    };
    let records: Vec<_> = (0..240)
        .map(|number| match number % 3 {
            0 => everywhere(number).header("partition", "4"),
            _ => everywhere(number),
        })
        .collect();
    let places: BTreeMap<String, i32> = shared()
        .produce(&source, &records)
        .into_iter()
        .enumerate()
        .map(|(number, (partition, _))| (number.to_string(), partition))
        .collect();
    let config = config(
        &["route-by"],
        &format!(
            "
routes:
  mode:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: route-by }}]
    destinations:
      - {{ name: key, topic: {key}, partition: key }}
      - {{ name: source, topic: {same}, partition: source }}
      - {{ name: turn, topic: {turn}, partition: round_robin }}
      - {{ name: plugin, topic: {plugin}, partition: plugin }}
"
        ),
    );
    let daemon = Daemon::start(config.path());
    daemon.await_consumed("mode", records.len(), PATIENCE);
    let [by_key, by_source, in_turn, by_plugin] =
        [&key, &same, &turn, &plugin].map(|topic| shared().kcat_consume(topic, Isolation::ReadCommitted));
    for arrived in [&by_key, &by_source, &in_turn, &by_plugin] {
        assert_eq!(arrived.len(), records.len());
    }
    for record in by_key.iter().filter(|record| record.key.is_some()) {
        assert_eq!(record.partition, partition_for_key(record.key.as_deref().unwrap_or_default(), 4), "{record:?}");
    }
    let keyless: BTreeSet<i32> = by_key.iter().filter(|record| record.key.is_none()).map(|r| r.partition).collect();
    assert_eq!(keyless, BTreeSet::from([0, 1, 2, 3]), "records without a key spread");
    for record in &by_source {
        assert_eq!(record.partition, places[&record.text()], "{record:?}");
    }
    for partition in 0..4 {
        assert_eq!(in_turn.iter().filter(|record| record.partition == partition).count(), 60, "in turn");
    }
    for record in &by_plugin {
        let number: usize = record.text().parse().expect("a number");
        match (&record.key, number % 3) {
            (_, 0) => assert_eq!(record.partition, 4, "{record:?}"),
            (Some(key), _) => assert_eq!(record.partition, partition_for_key(key, 5), "{record:?}"),
            (None, _) => assert!((0..5).contains(&record.partition), "{record:?}"),
        }
    }
}

// ---- sources --------------------------------------------------------------------------------------------------------

#[test]
fn a_source_pattern_takes_up_topics_and_partitions_that_appear_later_from_their_beginning_but_none_excluded() {
    let [destination] = topics([("later-out", 1)]);
    let family = unique("later");
    let [first, second, private, draft] =
        ["first", "second", "private", "draft.1"].map(|name| format!("{family}.{name}"));
    for topic in [&first, &private] {
        shared().create_topic(topic, 1, &[]);
        shared().produce(topic, &[Record::new("k", format!("in {}", &topic[family.len() + 1..]))]);
    }
    let config = config(
        &[],
        &format!(
            "
routes:
  later:
    source:
      topics: [\"^{family}\\\\..*\"]
      exclude: [{private}, \"^{family}\\\\.draft\\\\..*\"]
      start: latest
    pipeline: []
    destinations: [{{ topic: {destination} }}]
"
        ),
    );
    let daemon = Daemon::start(config.path());
    daemon.await_state("later", "running", PATIENCE);
    wait_until(PATIENCE, "it owns the first topic", || assignment(&daemon.route("later"), 0, &first).contains(&0));
    // `start` is resolved already: what appears from now on is read from its beginning.
    for topic in [&second, &draft] {
        shared().create_topic(topic, 1, &[]);
        shared().produce(topic, &[Record::new("k", format!("in {}", &topic[family.len() + 1..]))]);
    }
    shared().add_partitions(&first, 2);
    shared()
        .produce(&first, &[Record::new("k", "after the start").to(0), Record::new("k", "in a new partition").to(1)]);
    await_texts(&destination, &["after the start", "in a new partition", "in second"], SOON);
    for excluded in [&private, &draft] {
        assert_eq!(shared().committed(&config.group("later"), excluded), BTreeMap::new());
    }
}

#[test]
fn start_is_earliest_latest_or_a_time_and_is_resolved_once() {
    let [source, all, new, since] = topics([("start", 1), ("start-all", 1), ("start-new", 1), ("start-since", 1)]);
    let at = |value: &str, seconds: i64| Record::new("k", value).at(seconds * 1_000);
    shared().produce(&source, &[at("1", 1), at("2", 2), at("3", 3)]);
    let config = config(
        &[],
        &format!(
            "
routes:
  all: {{ source: {{ topics: [{source}], start: earliest }}, pipeline: [], destinations: [{{ topic: {all} }}] }}
  new: {{ source: {{ topics: [{source}], start: latest }}, pipeline: [], destinations: [{{ topic: {new} }}] }}
  since:
    source: {{ topics: [{source}], start: \"1970-01-01T00:00:02Z\" }}
    pipeline: []
    destinations: [{{ topic: {since} }}]
"
        ),
    );
    let mut daemon = Daemon::start(config.path());
    daemon.await_consumed("all", 3, PATIENCE);
    daemon.await_consumed("since", 2, PATIENCE);
    // Nothing to read, and yet its position is kept: a crash now would change nothing.
    wait_until(PATIENCE, "the end is committed", || {
        shared().committed(&config.group("new"), &source) == BTreeMap::from([(0, 3)])
    });
    assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
    shared().produce(&source, &[at("4", 1)]);
    let daemon = Daemon::start(config.path());
    for route in ["all", "new", "since"] {
        daemon.await_consumed(route, 1, PATIENCE);
    }
    assert_eq!(texts(&all), ["1", "2", "3", "4"]);
    assert_eq!(texts(&new), ["4"]);
    assert_eq!(texts(&since), ["2", "3", "4"]);
}

// ---- topics that do not fit -----------------------------------------------------------------------------------------

#[test]
fn a_route_whose_destination_does_not_exist_waits_says_so_and_starts_once_it_does_while_others_go_on() {
    let [source, there] = topics([("missing", 1), ("missing-there", 1)]);
    let absent = unique("missing-absent");
    shared().produce(&source, &[Record::new("k", "v")]);
    let config = config(
        &[],
        &format!(
            "
routes:
  broken: {{ source: {{ topics: [{source}], start: earliest }}, pipeline: [], destinations: [{{ topic: {absent} }}] }}
  whole: {{ source: {{ topics: [{source}], start: earliest }}, pipeline: [], destinations: [{{ topic: {there} }}] }}
"
        ),
    );
    let daemon = Daemon::start(config.path());
    let reason = daemon.await_state("broken", "waiting", Duration::from_secs(10));
    assert!(reason.contains(&format!("topic \"{absent}\" does not exist")), "{reason}");
    daemon.await_consumed("whole", 1, PATIENCE);
    // (not while it is at an attempt)
    wait_until(PATIENCE, "it says when it tries again", || daemon.route("broken")["next_attempt"].is_string());
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(daemon.get("/readyz?route=broken").status, 503);
    assert_eq!(daemon.get("/readyz?route=whole").status, 200);
    assert_eq!(shared().committed(&config.group("broken"), &source), BTreeMap::new(), "nothing was read");
    assert_eq!(shared().partitions(&absent), None, "no topic was created");
    shared().create_topic(&absent, 1, &[]);
    daemon.await_consumed("broken", 1, SOON);
    assert_eq!(texts(&absent), ["v"]);
    assert_eq!(daemon.await_state("broken", "running", PATIENCE), "");
}

#[test]
fn partition_source_is_refused_where_a_destination_has_fewer_partitions_than_a_source() {
    let [source, narrow] = topics([("narrow", 3), ("narrow-out", 2)]);
    shared().produce(&source, &[Record::new("k", "v").to(0)]);
    let config = config(
        &[],
        &format!(
            "
routes:
  narrow:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: []
    destinations: [{{ topic: {narrow}, partition: source }}]
"
        ),
    );
    let daemon = Daemon::start(config.path());
    let reason = daemon.await_state("narrow", "failed", Duration::from_secs(10));
    for part in [&narrow, &source, "it has 2, not 3"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(texts(&narrow), [""; 0]);
    shared().add_partitions(&narrow, 3);
    daemon.await_consumed("narrow", 1, SOON);
}

#[test]
fn a_source_that_outgrows_its_destination_stops_only_the_partitions_without_a_counterpart() {
    let [source, narrow] = topics([("outgrown", 1), ("outgrown-out", 1)]);
    let config = config(
        &[],
        &format!(
            "
routes:
  outgrown:
    source:
      topics: [{source}]
      start: earliest
      consumer: {{ topic.metadata.refresh.interval.ms: 2000 }}
    pipeline: []
    destinations: [{{ topic: {narrow}, partition: source }}]
"
        ),
    );
    let daemon = Daemon::start(config.path());
    daemon.await_state("outgrown", "running", PATIENCE);
    shared().add_partitions(&source, 2);
    shared().produce(&source, &[Record::new("k", "stands").to(1), Record::new("k", "flows").to(0)]);
    let reason = daemon.await_state("outgrown", "failed", SOON);
    for part in [&format!("{source}/1 is stopped before offset 0"), "at least 2 partitions"] {
        assert!(reason.contains(part), "{reason}");
    }
    shared().produce(&source, &[Record::new("k", "flows on").to(0)]);
    daemon.await_consumed("outgrown", 2, PATIENCE);
    assert_eq!(texts(&narrow), ["flows", "flows on"]);
}

// ---- workers and processes ------------------------------------------------------------------------------------------

#[test]
fn two_workers_share_the_partitions_and_keep_the_order_within_each() {
    let [source, destination] = topics([("shared", 4), ("shared-out", 4)]);
    let config = config(
        &[],
        &format!(
            "
routes:
  shared:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: []
    destinations: [{{ topic: {destination}, partition: source }}]
    workers: 2
    transaction: {{ records: 50 }}
"
        ),
    );
    let daemon = Daemon::start(config.path());
    wait_for(PATIENCE, "each worker has two partitions", || {
        let route = daemon.route("shared");
        let [one, other] = [0, 1].map(|worker| assignment(&route, worker, &source));
        (one.len() == 2 && other.len() == 2).then(|| assert!(one.is_disjoint(&other), "{route}"))
    });
    assert_eq!(daemon.metric("millrace_partitions_assigned", &[("route", "shared")]), Some(4.0));
    let records: Vec<_> = (0..1_000).map(|number| Record::new("k", number.to_string()).to(number % 4)).collect();
    shared().produce(&source, &records);
    daemon.await_consumed("shared", records.len(), PATIENCE);
    let of = |partition: i32| (0..1_000).filter(move |number| number % 4 == partition);
    let expected: Vec<String> = (0..4).flat_map(of).map(|number| number.to_string()).collect();
    assert_eq!(texts(&destination), expected);
}

#[test]
fn a_named_instance_that_restarts_within_the_session_timeout_moves_no_partition() {
    let [source, destination] = topics([("static", 4), ("static-out", 4)]);
    let group = unique("static-group");
    let process = |instance: &str| {
        config(
            &[],
            &format!(
                "
instance: {instance}
routes:
  static:
    source: {{ topics: [{source}], start: earliest, group: {group} }}
    pipeline: []
    destinations: [{{ topic: {destination}, partition: source }}]
"
            ),
        )
    };
    let (here, there) = (process("here"), process("there"));
    let mut first = Daemon::start(here.path());
    let other = Daemon::start(there.path());
    let owned = |daemon: &Daemon| assignment(&daemon.route("static"), 0, &source);
    wait_until(PATIENCE, "each has two partitions", || owned(&first).len() == 2 && owned(&other).len() == 2);
    let records: Vec<_> = (0..40).map(|number| Record::new("k", number.to_string()).to(number % 4)).collect();
    // Both have them, and one of them may not have been told yet that it gets no more: records come behind that.
    shared().produce(&source, &records);
    first.await_consumed("static", 20, PATIENCE);
    other.await_consumed("static", 20, PATIENCE);
    let (before, rebalances) = (owned(&first), other.metric("millrace_rebalances_total", &[("route", "static")]));

    assert_eq!(first.sigterm_and_wait(PATIENCE), Some(0));
    // Its partitions wait for it.
    shared().produce(&source, &records);
    other.await_consumed("static", 40, PATIENCE);
    assert_eq!(owned(&other).len(), 2);
    let first = Daemon::start(here.path());
    first.await_consumed("static", 20, PATIENCE);
    assert_eq!(owned(&first), before);
    assert_eq!(other.metric("millrace_rebalances_total", &[("route", "static")]), rebalances);
    assert_eq!(shared().await_records(&destination, 80, PATIENCE).len(), 80);
}
