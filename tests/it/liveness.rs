//! What goes on by itself, and how soon: nothing that passes ends the process or a route, and nothing is left behind.

use std::time::Duration;

use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{ConsumedRecord, Isolation, Kafka, Record, shared};
use crate::support::{pace, unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// A source and a destination with so many partitions, and a route `copy` between them that keeps partitions.
struct Bench {
    kafka: Kafka,
    source: String,
    destination: String,
    config: Config,
    sent: i32,
}

impl Bench {
    /// `head` comes before the routes, `rest` into the route.
    fn new(kafka: &Kafka, partitions: i32, head: &str, rest: &str) -> Self {
        let (source, destination) = (unique("live"), unique("live-out"));
        for topic in [&source, &destination] {
            kafka.create_topic(topic, partitions, &[]);
        }
        let routes = format!(
            "{head}
routes:
  copy:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: []
    destinations: [{{ topic: {destination}, partition: source }}]
    {rest}
"
        );
        let config = Config::new(&kafka.bootstrap, &[], &routes);
        Self { kafka: kafka.clone(), source, destination, config, sent: 0 }
    }

    /// Sends so many records, in turn to the first `partitions`, numbered over all.
    fn send(&mut self, count: i32, partitions: i32) {
        let record = |number: i32| Record::new("k", number.to_string()).to(number % partitions);
        let records: Vec<_> = (self.sent..self.sent + count).map(record).collect();
        self.kafka.produce(&self.source, &records);
        self.sent += count;
    }

    /// Every record has arrived exactly once and in order, as committed readers see it.
    #[track_caller]
    fn assert_exact(&self, partitions: i32) {
        let arrived = self.kafka.kcat_consume(&self.destination, Isolation::ReadCommitted);
        let of = |partition: i32| (0..self.sent).filter(move |number| number % partitions == partition);
        let expected: Vec<String> = (0..partitions).flat_map(of).map(|number| number.to_string()).collect();
        assert_eq!(arrived.iter().map(ConsumedRecord::text).collect::<Vec<_>>(), expected);
    }
}

// ---- the watchdog ---------------------------------------------------------------------------------------------------

#[test]
fn a_partition_that_gets_nothing_although_its_log_goes_on_is_told_and_gets_a_new_client() {
    let mut bench = Bench::new(shared(), 3, "", "");
    // Of the third partition a transaction upstream holds the end back: that is no standstill.
    let _open = bench.kafka.leave_records_pending(&bench.source, &[Record::new("k", "open").to(2)]);
    bench.send(20, 2);
    let daemon = Daemon::start_with(bench.config.path(), |command| {
        command.env("MILLRACE_MUTATION", "deaf");
    });
    daemon.await_consumed("copy", 1, PATIENCE);
    bench.send(20, 2);
    let stalled = || {
        let labels = [("route", "copy"), ("code", "STALLED")];
        daemon.metric("millrace_broker_errors_total", &labels).unwrap_or_default()
    };
    wait_until(PATIENCE, "the standstill is noticed", || stalled() == 1.0);
    let (log, place) = (daemon.log(), format!("{}/", bench.source));
    let line = log.lines().find(|line| line.contains("STALLED")).expect("a line about it");
    for part in ["WARN", "route=copy", &place, "stands at offset", "up to offset 20"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    daemon.await_consumed("copy", 40, PATIENCE);
    daemon.await_state("copy", "running", PATIENCE);
    bench.assert_exact(2);
    // More looks than it takes: nothing else stands still.
    pace(Duration::from_secs(4));
    assert_eq!(stalled(), 1.0);
}
