//! Who works on which partition, and what it costs when that changes: protocols of groups, members that come and go.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;

use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{Cluster, ConsumedRecord, Isolation, Kafka, Record};
use crate::support::{unique, wait_for, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// A broker that gives members up after 2 s where the usual ones wait for at least 6 s, or 45 s in the `consumer` protocol.
static BROKER: LazyLock<Cluster> = LazyLock::new(|| {
    let short = [
        "group.min.session.timeout.ms=1000",
        "group.consumer.min.session.timeout.ms=1000",
        "group.consumer.session.timeout.ms=2000",
        "group.consumer.min.heartbeat.interval.ms=100",
        "group.consumer.heartbeat.interval.ms=300",
    ];
    Cluster::start_with(1, &short)
});

/// A source and a destination with so many partitions.
struct Topics {
    source: String,
    destination: String,
    partitions: i32,
    group: String,
    sent: i32,
}

impl Topics {
    fn new(partitions: i32) -> Self {
        let (source, destination) = (unique("group"), unique("group-out"));
        for topic in [&source, &destination] {
            kafka().create_topic(topic, partitions, &[]);
        }
        Self { source, destination, partitions, group: unique("members"), sent: 0 }
    }

    /// The configuration of a process with the route `copy` between them. `head` comes before the routes, `rest` into the
    /// route.
    fn config(&self, head: &str, consumer: &str, rest: &str) -> Config {
        let Self { source, destination, group, .. } = self;
        let routes = format!(
            "{head}
routes:
  copy:
    source: {{ topics: [{source}], start: earliest, group: {group}, consumer: {{ {consumer} }} }}
    pipeline: []
    destinations: [{{ topic: {destination}, partition: source }}]
    transaction: {{ records: 50, interval: 20ms }}
    {rest}
"
        );
        Config::new(&kafka().bootstrap, &[], &routes)
    }

    /// Sends so many records, in turn to all partitions, numbered over all.
    fn send(&mut self, count: i32) {
        let record = |number: i32| Record::new("k", number.to_string()).to(number % self.partitions);
        let records: Vec<_> = (self.sent..self.sent + count).map(record).collect();
        kafka().produce(&self.source, &records);
        self.sent += count;
    }

    /// Waits until the group has committed all that was sent.
    #[track_caller]
    fn await_committed(&self) {
        let ends = kafka().end_offsets(&self.source, Isolation::ReadCommitted);
        wait_until(PATIENCE, "all is committed", || kafka().committed(&self.group, &self.source) == ends);
    }

    /// Every record has arrived exactly once, and in order in each partition.
    #[track_caller]
    fn assert_exact(&self) {
        let arrived = kafka().kcat_consume(&self.destination, Isolation::ReadCommitted);
        let of = |partition: i32| (0..self.sent).filter(move |number| number % self.partitions == partition);
        let expected: Vec<String> = (0..self.partitions).flat_map(of).map(|number| number.to_string()).collect();
        assert_eq!(arrived.iter().map(ConsumedRecord::text).collect::<Vec<_>>(), expected);
    }

    /// The partitions that each worker of a process owns.
    fn owned(&self, daemon: &Daemon) -> Vec<BTreeSet<i64>> {
        let route = daemon.route("copy");
        let workers = route["workers"].as_array().map_or(0, Vec::len);
        (0..workers).map(|worker| assignment(&route, worker, &self.source)).collect()
    }
}

fn kafka() -> &'static Kafka {
    &BROKER
}

/// The partitions of `topic` that a worker of the route owns.
fn assignment(route: &Value, worker: usize, topic: &str) -> BTreeSet<i64> {
    let partitions = &route["workers"][worker]["assignment"][topic];
    partitions.as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
}

// ---- the protocol ---------------------------------------------------------------------------------------------------

#[test]
fn the_consumer_protocol_shares_partitions_among_workers_and_a_reload_goes_back_to_the_classic_one() {
    let mut topics = Topics::new(4);
    let config = topics.config("", "group.protocol: consumer", "workers: 2");
    let describe = || {
        let args = ["--describe", "--group", &topics.group, "--state"];
        kafka().tool("consumer.group.ConsumerGroupCommand", &args)
    };
    let daemon = Daemon::start(config.path());
    let is_shared_out = || topics.owned(&daemon).iter().map(BTreeSet::len).eq([2, 2]);
    wait_until(PATIENCE, "each worker has two partitions", is_shared_out);
    // The assignor is the broker's: the group is of the new kind.
    assert!(describe().contains("uniform"), "{}", describe());
    config.edit(|yaml| yaml.replace("group.protocol: consumer", "group.protocol: classic"));
    daemon.await_workers("copy", 2, PATIENCE);
    wait_until(PATIENCE, "each worker has two partitions again", is_shared_out);
    assert!(describe().contains("cooperative-sticky"), "{}", describe());
    topics.send(400);
    topics.await_committed();
    topics.assert_exact();
}

// ---- twins ----------------------------------------------------------------------------------------------------------

#[test]
fn of_two_processes_with_one_instance_the_younger_keeps_the_work_and_the_older_says_where_it_is_until_that_one_ends() {
    let mut topics = Topics::new(2);
    let process = || topics.config("instance: twin", "session.timeout.ms: 2000, heartbeat.interval.ms: 300", "");
    let (first, second) = (process(), process());
    let older = Daemon::start(first.path());
    wait_until(PATIENCE, "the older works", || topics.owned(&older)[0].len() == 2);
    let mut younger = Daemon::start(second.path());
    wait_until(PATIENCE, "the younger works", || topics.owned(&younger)[0].len() == 2);
    let mut reason = older.await_state("copy", "failed", PATIENCE);
    for _ in 0..2 {
        for part in ["duplicate_instance: ", "at /127.0.0.1", "twin.0"] {
            assert!(reason.contains(part), "{part}: {reason}");
        }
        // It tries again after the session timeout, and after twice as long, and finds the other still there.
        let before = older.route("copy")["next_attempt"].clone();
        reason = wait_for(PATIENCE, "the next attempt", || {
            let route = older.route("copy");
            let is_next = route["state"] == "failed" && route["next_attempt"] != before;
            is_next.then(|| route["reason"].as_str().unwrap_or_default().to_owned())
        });
    }
    topics.send(100);
    topics.await_committed();
    assert_eq!(younger.route("copy")["state"], "running", "nothing has disturbed it");
    assert!(!younger.log().contains("WARN"), "{}", younger.log());
    let labels = [("route", "copy"), ("code", "duplicate_instance")];
    assert!(older.metric("millrace_broker_errors_total", &labels).is_some_and(|count| count >= 3.0));

    assert_eq!(younger.sigterm_and_wait(PATIENCE), Some(0));
    topics.send(100);
    topics.await_committed();
    older.await_state("copy", "running", PATIENCE);
    topics.assert_exact();
}

// ---- leaving --------------------------------------------------------------------------------------------------------

#[test]
fn a_route_that_is_removed_while_it_waits_leaves_its_group_although_its_membership_is_static() {
    let mut topics = Topics::new(4);
    let process = |instance: &str| topics.config(&format!("instance: {instance}"), "session.timeout.ms: 45000", "");
    let (here, there) = (process("here"), process("there"));
    let (mut one, other) = (Daemon::start(here.path()), Daemon::start(there.path()));
    let owns = |daemon: &Daemon, count: usize| topics.owned(daemon).first().is_some_and(|owned| owned.len() == count);
    wait_until(PATIENCE, "each has two partitions", || owns(&one, 2) && owns(&other, 2));
    // Its next process stays a member, and finds that it cannot work.
    assert_eq!(one.sigterm_and_wait(PATIENCE), Some(0));
    here.edit(|yaml| yaml.replace(&format!("topic: {}", topics.destination), "topic: nowhere"));
    let one = Daemon::start(here.path());
    one.await_state("copy", "waiting", PATIENCE);
    assert!(owns(&other, 2));
    here.edit(|yaml| yaml.replace("  copy:", "  copy:\n    enabled: false"));
    // Far sooner than the session timeout.
    wait_until(Duration::from_secs(20), "the other has all partitions", || owns(&other, 4));
    topics.send(40);
    topics.await_committed();
    topics.assert_exact();
}
