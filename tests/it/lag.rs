//! Lag as it is shown: held against what lies in the log, and against what Kafka's own tool makes of it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{Ending, Kafka, Record, shared};
use crate::support::{unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// What a daemon shows of a partition of the route `copy`.
fn shown(daemon: &Daemon, metric: &str, partition: i32) -> Option<f64> {
    daemon.metric(metric, &[("route", "copy"), ("partition", &partition.to_string())])
}

/// The lag of each partition, as `kafka-consumer-groups.sh --describe` tells it.
pub(crate) fn of_kafka(kafka: &Kafka, group: &str) -> BTreeMap<i32, u64> {
    let told = kafka.tool("consumer.group.ConsumerGroupCommand", &["--describe", "--group", group]);
    let lines = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let lag = |columns: Vec<&str>| match columns[..] {
        [of, _, partition, _, _, lag, ..] if of == group => Some((partition.parse().ok()?, lag.parse().ok()?)),
        _ => None,
    };
    lines.filter_map(lag).collect()
}

fn json(count: usize, partition: i32) -> Vec<Record> {
    (0..count).map(|number| Record::new("k", format!("{{\"n\": {number}}}")).to(partition)).collect()
}

#[test]
fn lag_ends_where_committed_readers_end_is_zero_behind_marks_of_transactions_and_goes_with_its_partition() {
    let kafka = shared();
    let (source, destination) = (unique("lag"), unique("lag-out"));
    kafka.create_topic(&source, 3, &[]);
    kafka.create_topic(&destination, 3, &[]);
    // Partition 0 ends with an aborted transaction: a record and its mark, then two records that nobody reads and theirs.
    kafka.produce_transaction(&source, &json(1, 0), Ending::Commit);
    kafka.produce_transaction(&source, &json(2, 0), Ending::Abort);
    // In partition 1 one is open, with three records and two more behind it.
    kafka.produce_transaction(&source, &json(1, 1), Ending::Commit);
    let open = kafka.open_transaction(&source, &json(3, 1));
    kafka.produce(&source, &json(2, 1));
    // Partition 2 stops before its first record, an hour old, with four behind it.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    kafka.produce(&source, &[Record::new("k", "not JSON").to(2).at(now - 3_600_000)]);
    kafka.produce(&source, &json(4, 2));
    let routes = format!(
        "routes:
  copy:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: redact-fields, config: {{ fields: [card] }} }}]
    destinations: [{{ topic: {destination}, partition: source }}]
"
    );
    let config = Config::new(&kafka.bootstrap, &["redact-fields"], &routes);
    let daemon = Daemon::start(config.path());
    daemon.await_state("copy", "failed", PATIENCE);
    let expected = [(0.0, 0.0), (0.0, 5.0), (5.0, 0.0)];
    let of = |partition: i32| {
        let records = shown(&daemon, "millrace_consumer_lag_records", partition)?;
        Some((records, shown(&daemon, "millrace_source_blocked_records", partition)?))
    };
    wait_until(PATIENCE, "lag and what is held back are shown as they are", || {
        (0..3).all(|partition| of(partition) == Some(expected[partition as usize]))
    });
    let seconds = |partition| shown(&daemon, "millrace_consumer_lag_seconds", partition).expect("it is shown");
    assert_eq!((seconds(0), seconds(1)), (0.0, 0.0));
    assert!((3_600.0..3_700.0).contains(&seconds(2)), "{}", seconds(2));
    let blocked = |partition| shown(&daemon, "millrace_source_blocked_seconds", partition).expect("it is shown");
    assert_eq!((blocked(0), blocked(2)), (0.0, 0.0));
    wait_until(PATIENCE, "the open transaction is seen for a while", || blocked(1) > 0.0);
    let status = daemon.route("copy");
    assert_eq!(status["lag"]["records"], 5, "{status:#}");
    assert_eq!(status["lag"]["partitions"][1]["blocked_records"], 5, "{status:#}");

    // Kafka's own tool counts up to the high watermark, over marks and aborted records (docs/metrics.md).
    assert_eq!(of_kafka(kafka, &config.group("copy")), BTreeMap::from([(0, 4), (1, 6), (2, 5)]));

    // Its end frees what it held back.
    open.end(Ending::Commit);
    wait_until(PATIENCE, "nothing is held back any more, and nothing left to do", || of(1) == Some((0.0, 0.0)));
    assert_eq!(blocked(1), 0.0);

    // Another process takes partitions over: each shows those that it owns, and no others.
    let other = Daemon::start(config.path());
    let of_each = || {
        [&daemon, &other].map(|daemon| {
            (0..3).filter(|p| shown(daemon, "millrace_consumer_lag_records", *p).is_some()).collect::<Vec<_>>()
        })
    };
    wait_until(PATIENCE, "each partition is shown by the one that owns it", || {
        let [here, there] = of_each();
        let mut all = [here.clone(), there.clone()].concat();
        all.sort_unstable();
        !here.is_empty() && !there.is_empty() && all == [0, 1, 2]
    });

    // Lag is what it was, whoever owns the partition; and Kafka's tool still counts the marks and what was aborted.
    let all = || {
        let of = |partition: i32| {
            let shown = [&daemon, &other].map(|daemon| shown(daemon, "millrace_consumer_lag_records", partition));
            shown.into_iter().flatten().sum::<f64>()
        };
        [0, 1, 2].map(of)
    };
    wait_until(PATIENCE, "lag is what it was", || all() == [0.0, 0.0, 5.0]);
    assert_eq!(of_kafka(kafka, &config.group("copy")), BTreeMap::from([(0, 4), (1, 1), (2, 5)]));
}
