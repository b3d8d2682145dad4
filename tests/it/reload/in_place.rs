//! What a change that is taken up in place reaches beside plugins: partitions that stand still, routes that wait, and
//! topics that are no longer to be read.

use std::time::Duration;

use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{ConsumedRecord, Isolation, Record, shared};
use crate::support::{unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// Within which a change shows, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn topic(name: &str) -> String {
    let topic = unique(name);
    shared().create_topic(&topic, 1, &[("retention.ms", "-1")]);
    topic
}

fn texts(topic: &str) -> Vec<String> {
    shared().kcat_consume(topic, Isolation::ReadCommitted).iter().map(ConsumedRecord::text).collect()
}

/// How often its route has rebalanced.
fn rebalances(daemon: &Daemon, route: &str) -> Option<f64> {
    daemon.metric("millrace_rebalances_total", &[("route", route)])
}

#[test]
fn a_stopped_partition_starts_again_at_its_record_when_the_plugin_is_mended() {
    let [source, destination] = ["stopped", "stopped-out"].map(topic);
    let values = ["1", "bad", "2"].map(|value| Record::new("k", value));
    shared().produce(&source, &values);
    let config = Config::new(
        &shared().bootstrap,
        &["misbehave"],
        &format!(
            "
routes:
  stopped:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: misbehave, config: {{ do: trap, when: bad }} }}]
    destinations: [{{ topic: {destination} }}]
"
        ),
    );
    let daemon = Daemon::start(config.path());
    let reason = daemon.await_state("stopped", "failed", PATIENCE);
    assert!(reason.contains("before offset 1: trapped"), "{reason}");
    assert_eq!(texts(&destination), ["1"]);
    let before = rebalances(&daemon, "stopped");
    config.edit(|yaml| yaml.replace("when: bad", "when: worse"));
    daemon.await_consumed("stopped", 3, SOON);
    assert_eq!(texts(&destination), ["1", "bad", "2"]);
    assert_eq!(daemon.await_state("stopped", "running", PATIENCE), "");
    assert_eq!(rebalances(&daemon, "stopped"), before);
}

#[test]
fn a_route_that_waits_for_a_topic_runs_when_another_is_named() {
    let [source, destination] = ["waiting", "waiting-out"].map(topic);
    let missing = unique("no-such-topic");
    shared().produce(&source, &[Record::new("k", "v")]);
    let config = Config::new(
        &shared().bootstrap,
        &[],
        &format!(
            "
routes:
  waiting:
    source: {{ topics: [{source}], start: earliest }}
    destinations: [{{ name: out, topic: {missing} }}]
"
        ),
    );
    let daemon = Daemon::start(config.path());
    let reason = daemon.await_state("waiting", "waiting", PATIENCE);
    assert!(reason.contains(&missing), "{reason}");
    // A change that leaves it waiting is no reason to refuse.
    config.edit(|yaml| yaml.replace("    destinations:", "    on_error: skip\n    destinations:"));
    wait_until(SOON, "the change of another key is taken up", || daemon.generation() == 2);
    config.edit(|yaml| yaml.replace(&missing, &destination));
    daemon.await_consumed("waiting", 1, SOON);
    assert_eq!(texts(&destination), ["v"]);
}

#[test]
fn a_topic_that_becomes_a_dead_letter_topic_is_read_by_no_pattern_from_then_on() {
    let family = unique("family");
    let [orders, dead] = ["orders", "dead"].map(|name| format!("{family}.{name}"));
    for topic in [&orders, &dead] {
        shared().create_topic(topic, 1, &[]);
    }
    let [other, destination] = ["family-other", "family-out"].map(topic);
    let config = Config::new(
        &shared().bootstrap,
        &[],
        &format!(
            "
routes:
  pattern:
    source: {{ topics: [\"^{family}\\\\..*\"], start: earliest }}
    destinations: [{{ topic: {destination} }}]
  other:
    source: {{ topics: [{other}], start: earliest }}
    destinations: [{{ topic: {destination} }}]
"
        ),
    );
    let daemon = Daemon::start(config.path());
    let reads = |topic: &str| daemon.route("pattern")["workers"][0]["assignment"][topic].is_array();
    wait_until(PATIENCE, "both topics are read", || reads(&orders) && reads(&dead));
    let since = |route: &str| daemon.status()["routes"][route]["workers"][0]["generation"].clone();
    config.edit(|yaml| {
        yaml.replace(
            &format!("topics: [{other}], start: earliest }}"),
            &format!("topics: [{other}], start: earliest }}\n    on_error: {{ dead_letter: {dead} }}"),
        )
    });
    wait_until(SOON, "the dead-letter topic is left out", || reads(&orders) && !reads(&dead));
    // It was told, not restarted.
    let changes = daemon.status()["last_applied"]["changes"]["routes"].clone();
    assert_eq!((&changes["pattern"]["action"], &changes["other"]["action"]), (&"unchanged".into(), &"swapped".into()));
    assert_eq!((since("pattern"), since("other")), (1.into(), 2.into()));
    shared().produce(&orders, &[Record::new("k", "order")]);
    daemon.await_consumed("pattern", 1, PATIENCE);
    assert_eq!(texts(&destination), ["order"]);
}

#[test]
fn a_route_that_takes_anothers_place_in_its_group_begins_as_the_same_member_when_that_one_has_left() {
    let [source, destination] = ["succession", "succession-out"].map(topic);
    let group = unique("succession-group");
    let config = Config::new(
        &shared().bootstrap,
        &[],
        &format!(
            "
instance: here
routes:
  before:
    source: {{ topics: [{source}], start: latest, group: {group} }}
    destinations: [{{ topic: {destination} }}]
"
        ),
    );
    let daemon = Daemon::start(config.path());
    daemon.await_state("before", "running", PATIENCE);
    shared().produce(&source, &[Record::new("k", "1")]);
    daemon.await_consumed("before", 1, PATIENCE);
    let instances = || -> Vec<String> {
        let members = shared().members(&group);
        // Behind the group's: a static member's id begins with its name, as in here.0-1b2c….
        let id = |member: &String| member.split(' ').nth(1).and_then(|id| id.split('-').next()).map(str::to_owned);
        members.iter().filter_map(id).collect()
    };
    assert_eq!(instances(), ["here.0"]);
    config.edit(|yaml| yaml.replace("  before:", "  after:"));
    daemon.await_state("after", "running", SOON);
    assert_eq!(instances(), ["here.0"]);
    assert_eq!(daemon.get("/api/v1/routes/before").status, 404);
    // It goes on where the other has committed, though its own `start` says otherwise.
    shared().produce(&source, &[Record::new("k", "2")]);
    daemon.await_consumed("after", 1, SOON);
    assert_eq!(texts(&destination), ["1", "2"]);
}
