//! Where a route goes on, whatever becomes of topics, partitions and offsets meanwhile: on a real broker, as an operator
//! sees it.

use std::collections::BTreeSet;
use std::time::Duration;

use millrace::policy::partition_for_key;
use serde_json::Value;

use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{ConsumedRecord, Ending, Isolation, Record, shared};
use crate::support::{pace, unique, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn topic(name: &str, partitions: i32) -> String {
    let topic = unique(name);
    shared().create_topic(&topic, partitions, &[]);
    topic
}

/// Routes `r`, `r2` and so on, each from one topic to another, with more keys of a source.
fn config(routes: &[(&str, &str)], source_keys: &str) -> Config {
    let mut text = "routes:\n".to_owned();
    for (number, (source, target)) in routes.iter().enumerate() {
        let name = if number == 0 { "r".to_owned() } else { format!("r{}", number + 1) };
        text.push_str(&format!(
            "  {name}:\n    source: {{ topics: [{source}], start: earliest{source_keys} }}\n    \
             destinations: [{{ topic: {target} }}]\n"
        ));
    }
    Config::new(&shared().bootstrap, &[], &text)
}

fn records(values: &[&str]) -> Vec<Record> {
    values.iter().map(|value| Record::new("k", value).to(0)).collect()
}

fn texts(topic: &str) -> Vec<String> {
    shared().kcat_consume(topic, Isolation::ReadCommitted).iter().map(ConsumedRecord::text).collect()
}

/// Waits until a partition has stopped; how.
#[track_caller]
fn await_stopped(daemon: &Daemon, route: &str) -> Value {
    wait_for(PATIENCE, &format!("a partition of {route} has stopped"), || {
        let stopped = daemon.route(route)["workers"][0]["stopped"][0].clone();
        (!stopped.is_null()).then_some(stopped)
    })
}

fn counted(daemon: &Daemon, metric: &str, route: &str) -> f64 {
    daemon.metric(metric, &[("route", route)]).unwrap_or_default()
}

#[test]
fn an_upstream_transaction_that_stays_open_holds_what_is_behind_it_and_nothing_else_until_it_ends() {
    let kafka = shared();
    let [source, target] = ["upstream", "upstream-out"].map(|name| topic(name, 2));
    kafka.produce(&source, &records(&["before"]));
    let open = kafka.open_transaction(&source, &records(&["held"]));
    kafka.produce(&source, &records(&["behind"]));
    kafka.produce(&source, &[Record::new("k", "beside").to(1)]);
    let config = config(&[(&source, &target)], "");
    let daemon = Daemon::start(config.path());
    let sorted = || texts(&target).into_iter().collect::<BTreeSet<_>>();
    daemon.await_consumed("r", 2, PATIENCE);
    kafka.produce(&source, &[Record::new("k", "beside too").to(1)]);
    daemon.await_consumed("r", 3, PATIENCE);
    assert_eq!(sorted(), ["before", "beside", "beside too"].map(str::to_owned).into());
    assert_eq!(daemon.route("r")["state"], "running");
    open.end(Ending::Commit);
    daemon.await_consumed("r", 5, PATIENCE);
    let all = ["before", "held", "behind"];
    let of_first: Vec<_> = texts(&target).into_iter().filter(|text| !text.starts_with("beside")).collect();
    assert_eq!(of_first, all, "in the order of the source");
    let open = kafka.open_transaction(&source, &records(&["withdrawn"]));
    kafka.produce(&source, &records(&["last"]));
    pace(Duration::from_secs(1));
    assert!(!texts(&target).contains(&"last".to_owned()));
    open.end(Ending::Abort);
    daemon.await_consumed("r", 6, PATIENCE);
    assert!(texts(&target).contains(&"last".to_owned()));
    assert!(!texts(&target).contains(&"withdrawn".to_owned()));
}

#[test]
fn a_lost_offset_is_told_everywhere_and_what_is_accepted_is_counted() {
    let kafka = shared();
    let [source, target] = ["lossy", "lossy-out"].map(|name| topic(name, 1));
    kafka.produce(&source, &records(&["0", "1"]));
    let config = config(&[(&source, &target)], "");
    let mut daemon = Daemon::start(config.path());
    daemon.await_consumed("r", 2, PATIENCE);
    assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
    kafka.produce(&source, &records(&["2", "3", "4", "5"]));
    kafka.delete_records(&source, 0, 5);
    let daemon = Daemon::start(config.path());
    let stopped = await_stopped(&daemon, "r");
    assert_eq!(stopped["code"], "offset_lost", "{stopped}");
    let says = "offset 2 cannot be read, the log holds 5 to 6";
    assert!(stopped["message"].as_str().expect("a text").contains(says), "{stopped}");
    let reason = daemon.await_state("r", "failed", PATIENCE);
    assert!(reason.contains(says) && reason.contains("on_offset_lost"), "{reason}");
    assert!(daemon.log().contains(says), "{}", daemon.log());
    assert_eq!(counted(&daemon, "millrace_partitions_stopped", "r"), 1.0);
    assert_eq!(counted(&daemon, "millrace_records_lost_total", "r"), 0.0);
    assert_eq!(kafka.committed(&config.group("r"), &source)[&0], 2, "nothing is passed by unasked");
    config.edit(|yaml| yaml.replace("start: earliest", "start: earliest, on_offset_lost: earliest"));
    kafka.await_records(&target, 3, PATIENCE);
    assert_eq!(texts(&target), ["0", "1", "5"]);
    daemon.await_state("r", "running", PATIENCE);
    assert_eq!(counted(&daemon, "millrace_records_lost_total", "r"), 3.0);
}

#[test]
fn topics_that_are_deleted_and_created_again_under_a_running_route_stop_its_source_and_hold_its_destination() {
    let kafka = shared();
    let [source, target] = ["replaced", "replaced-out"].map(|name| topic(name, 1));
    let [source2, target2] = ["kept", "kept-out"].map(|name| topic(name, 1));
    for source in [&source, &source2] {
        kafka.produce(source, &records(&["old"]));
    }
    let config = config(&[(&source, &target), (&source2, &target2)], "");
    let daemon = Daemon::start(config.path());
    for route in ["r", "r2"] {
        daemon.await_consumed(route, 1, PATIENCE);
    }
    // The source of one, and the destination of the other.
    for topic in [&source, &target2] {
        kafka.delete_topic(topic);
    }
    kafka.produce(&source2, &records(&["meanwhile"]));
    kafka.create_topic(&source, 1, &[]);
    kafka.produce(&source, &records(&["new", "newer"]));
    let reason = daemon.await_state("r2", "waiting", PATIENCE);
    assert!(reason.contains(&target2), "{reason}");
    kafka.create_topic(&target2, 1, &[]);
    kafka.await_records(&target2, 1, PATIENCE);
    assert_eq!(texts(&target2), ["meanwhile"]);
    daemon.await_state("r2", "running", PATIENCE);
    let stopped = await_stopped(&daemon, "r");
    assert_eq!(stopped["code"], "offset_lost", "{stopped}");
    assert!(stopped["message"].as_str().expect("a text").contains("deleted and created again"), "{stopped}");
    assert_eq!(texts(&target), ["old"], "nothing of the new topic unasked");
    config.edit(|yaml| yaml.replace("start: earliest", "start: earliest, on_offset_lost: earliest"));
    kafka.await_records(&target, 3, PATIENCE);
    assert_eq!(texts(&target), ["old", "new", "newer"]);
}

#[test]
fn a_route_that_is_to_stop_at_a_destination_that_grows_waits_until_somebody_accepts_it() {
    let kafka = shared();
    let [source, target] = ["guarded", "guarded-out"].map(|name| topic(name, 1));
    kafka.produce(&source, &records(&["before"]));
    let config = config(&[(&source, &target)], "");
    config.edit(|yaml| yaml.replace("    destinations:", "    on_partition_change: stop\n    destinations:"));
    let daemon = Daemon::start(config.path());
    daemon.await_consumed("r", 1, PATIENCE);
    kafka.add_partitions(&target, 3);
    wait_for(PATIENCE, "the growth is seen", || daemon.log().contains("the topic has more partitions").then_some(()));
    kafka.produce(&source, &records(&["after"]));
    let reason = daemon.await_state("r", "failed", PATIENCE);
    for part in [&format!("topic \"{target}\" has 3 partitions instead of 1"), "millrace restart"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(texts(&target), ["before"]);
    assert_eq!(daemon.post("/api/v1/routes/r/restart").status, 200);
    daemon.await_consumed("r", 2, PATIENCE);
    daemon.await_state("r", "running", PATIENCE);
    assert_eq!(texts(&target).len(), 2);
}

#[test]
fn a_destination_that_grows_is_used_whole_from_then_on_and_the_log_says_so() {
    let kafka = shared();
    let [source, target] = ["growing", "growing-out"].map(|name| topic(name, 1));
    let keys: Vec<String> = (0..20).map(|number| format!("key-{number}")).collect();
    let keyed = |value: &str| keys.iter().map(|key| Record::new(key, value)).collect::<Vec<_>>();
    kafka.produce(&source, &keyed("before"));
    let config = config(&[(&source, &target)], "");
    let daemon = Daemon::start(config.path());
    daemon.await_consumed("r", keys.len(), PATIENCE);
    kafka.add_partitions(&target, 3);
    wait_for(Duration::from_secs(30), "the growth is taken up", || {
        daemon.log().contains("the topic has more partitions").then_some(())
    });
    kafka.produce(&source, &keyed("after"));
    daemon.await_consumed("r", 2 * keys.len(), PATIENCE);
    let arrived = kafka.kcat_consume(&target, Isolation::ReadCommitted);
    assert_eq!(arrived.len(), 2 * keys.len());
    for record in &arrived {
        let partitions = if record.text() == "before" { 1 } else { 3 };
        assert_eq!(record.partition, partition_for_key(record.key_text().as_bytes(), partitions), "{record:?}");
    }
    let used: BTreeSet<i32> = arrived.iter().map(|record| record.partition).collect();
    assert_eq!(used, [0, 1, 2].into());
}
