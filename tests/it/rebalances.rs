//! Who works on which partition, and what it costs when that changes: protocols of groups, members that come and go.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{ConsumedRecord, Isolation, Record, shared};
use crate::support::{unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// The partitions of `topic` that a worker of the route owns.
fn assignment(route: &Value, worker: usize, topic: &str) -> BTreeSet<i64> {
    let partitions = &route["workers"][worker]["assignment"][topic];
    partitions.as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
}

#[test]
fn the_consumer_protocol_shares_partitions_among_workers_and_a_reload_goes_back_to_the_classic_one() {
    let (source, destination) = (unique("kip848"), unique("kip848-out"));
    for topic in [&source, &destination] {
        shared().create_topic(topic, 4, &[]);
    }
    let config = Config::new(
        &shared().bootstrap,
        &[],
        &format!(
            "
routes:
  new:
    source: {{ topics: [{source}], start: earliest, consumer: {{ group.protocol: consumer }} }}
    pipeline: []
    destinations: [{{ topic: {destination}, partition: source }}]
    workers: 2
    transaction: {{ records: 50 }}
"
        ),
    );
    let records = |range: std::ops::Range<i32>| -> Vec<_> {
        range.map(|number| Record::new("k", number.to_string()).to(number % 4)).collect()
    };
    let describe = |what: &str| {
        let args = ["--describe", "--group", &config.group("new"), what];
        shared().tool("consumer.group.ConsumerGroupCommand", &args)
    };
    let daemon = Daemon::start(config.path());
    let shared_out = || {
        let route = daemon.route("new");
        let [one, other] = [0, 1].map(|worker| assignment(&route, worker, &source));
        one.len() == 2 && other.len() == 2 && one.is_disjoint(&other)
    };
    wait_until(PATIENCE, "each worker has two partitions", shared_out);
    shared().produce(&source, &records(0..400));
    daemon.await_consumed("new", 400, PATIENCE);
    // The assignor is the broker's: the group is of the new kind.
    assert!(describe("--state").contains("uniform"), "{}", describe("--state"));

    config.edit(|yaml| yaml.replace("group.protocol: consumer", "group.protocol: classic"));
    daemon.await_workers("new", 2, PATIENCE);
    wait_until(PATIENCE, "each worker has two partitions again", shared_out);
    shared().produce(&source, &records(400..800));
    daemon.await_consumed("new", 800, PATIENCE);
    assert!(describe("--state").contains("cooperative-sticky"), "{}", describe("--state"));

    let arrived = shared().kcat_consume(&destination, Isolation::ReadCommitted);
    let of = |partition: i32| (0..800).filter(move |number| number % 4 == partition);
    let expected: Vec<String> = (0..4).flat_map(of).map(|number| number.to_string()).collect();
    assert_eq!(arrived.iter().map(ConsumedRecord::text).collect::<Vec<_>>(), expected);
}
