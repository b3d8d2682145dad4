//! `kill -9` in the middle of work, again and again, and what each delivery mode still promises.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{ConsumedRecord, Isolation, Record, shared};
use crate::support::{unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
const PARTITIONS: i32 = 4;
const KEYS: usize = 16;
/// Records of one transaction, at most: few, so that there are many to interrupt.
const TRANSACTION: usize = 20;
/// Records put before a process each time: more than it does before it is killed.
const CHUNK: usize = 1_200;
/// Kills, alternately at any moment and within a transaction: from outside, and as a crash in the client library does it.
const SIGNALS: [Signal; 4] = [Signal::KILL, Signal::SEGV, Signal::KILL, Signal::ABORT];
const KILLS: usize = SIGNALS.len();
const MODES: [&str; 3] = ["exactly_once", "at_least_once", "at_most_once"];

/// One source, and a route in each delivery mode that copies it to a destination of its own.
struct Bench {
    source: String,
    destinations: [String; 3],
    config: Config,
    /// Records sent so far, numbered within each key.
    sent: usize,
}

impl Bench {
    /// `head` comes before the routes.
    fn new(head: &str) -> Self {
        let kafka = shared();
        let source = unique("crash");
        let destinations = MODES.map(|mode| unique(&mode.replace('_', "-")));
        for topic in destinations.iter().chain([&source]) {
            kafka.create_topic(topic, PARTITIONS, &[]);
        }
        let mut rest = format!("{head}\nroutes:\n");
        for (mode, destination) in MODES.iter().zip(&destinations) {
            rest.push_str(&format!(
                "  {mode}:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: []
    destinations: [{{ topic: {destination} }}]
    delivery: {mode}
    transaction: {{ records: {TRANSACTION} }}
"
            ));
        }
        Self { config: Config::new(&kafka.bootstrap, &[], &rest), source, destinations, sent: 0 }
    }

    fn send(&mut self, count: usize) {
        let record = |number: usize| Record::new(format!("key-{}", number % KEYS), (number / KEYS).to_string());
        let records: Vec<_> = (self.sent..self.sent + count).map(record).collect();
        shared().produce(&self.source, &records);
        self.sent += count;
    }

    /// Waits until every route has committed the end of every partition.
    #[track_caller]
    fn await_end(&self) {
        let kafka = shared();
        let ends = kafka.end_offsets(&self.source, Isolation::ReadUncommitted);
        for mode in MODES {
            wait_until(PATIENCE, &format!("route {mode} is at the end"), || {
                kafka.committed(&self.config.group(mode), &self.source) == ends
            });
        }
    }

    /// Halts the process (SIGSTOP) at a moment when it has written records of a transaction that is still open.
    #[track_caller]
    fn stop_within_a_transaction(&self, daemon: &Daemon) {
        wait_until(PATIENCE, "a moment within a transaction", || {
            daemon.signal(Signal::STOP);
            let ends = |isolation| shared().end_offsets(&self.destinations[0], isolation);
            let open = ends(Isolation::ReadCommitted) != ends(Isolation::ReadUncommitted);
            if !open {
                daemon.signal(Signal::CONT);
            }
            open
        });
    }

    /// What a reader finds of each key, in order.
    fn arrived(&self, mode: usize, isolation: Isolation) -> Arrived {
        let mut arrived = Arrived::new();
        for record in shared().kcat_consume(&self.destinations[mode], isolation) {
            arrived.entry(record.key_text()).or_default().push(number(&record));
        }
        arrived
    }

    fn expected(&self) -> Arrived {
        let count = |key: usize| (self.sent + KEYS - 1 - key) / KEYS;
        (0..KEYS).map(|key| (format!("key-{key}"), (0..count(key)).collect())).collect()
    }
}

type Arrived = BTreeMap<String, Vec<usize>>;

fn number(record: &ConsumedRecord) -> usize {
    record.text().parse().expect("a number")
}

fn count(arrived: &Arrived) -> usize {
    arrived.values().map(Vec::len).sum()
}

// ---- kill -9 --------------------------------------------------------------------------------------------------------

/// What came of one run with many kills, for a test of each mode to judge.
struct Run {
    seed: u64,
    bench: Bench,
}

static KILLED: LazyLock<Run> = LazyLock::new(|| {
    // The name of the instance lets the next process take over at once what the killed one has left.
    let mut bench = Bench::new(&format!("instance: {}", unique("crash")));
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for (kill, signal) in SIGNALS.into_iter().enumerate() {
        bench.send(CHUNK);
        let mut daemon = Daemon::start(bench.config.path());
        daemon.await_consumed("exactly_once", random.usize(1..CHUNK / 3), PATIENCE);
        if kill % 2 == 1 {
            bench.stop_within_a_transaction(&daemon);
        }
        daemon.crash(signal);
    }
    let mut daemon = Daemon::start(bench.config.path());
    bench.await_end();
    assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
    Run { seed, bench }
});

#[test]
fn exactly_once_loses_and_doubles_nothing_and_keeps_order_over_kill_9() {
    let run = &*KILLED;
    let arrived = run.bench.arrived(0, Isolation::ReadCommitted);
    assert_eq!(arrived, run.bench.expected(), "seed {}", run.seed);
    // The kills did interrupt something: who reads what is not committed sees some records twice.
    let all = count(&run.bench.arrived(0, Isolation::ReadUncommitted));
    assert!(all > run.bench.sent, "{all} records written, {} sent, seed {}", run.bench.sent, run.seed);
}

#[test]
fn at_least_once_loses_nothing_and_keeps_the_order_of_first_copies_over_kill_9() {
    let run = &*KILLED;
    let mut first = run.bench.arrived(1, Isolation::ReadCommitted);
    for numbers in first.values_mut() {
        let mut seen = std::collections::BTreeSet::new();
        numbers.retain(|number| seen.insert(*number));
    }
    assert_eq!(first, run.bench.expected(), "seed {}", run.seed);
}

#[test]
fn at_most_once_doubles_nothing_and_keeps_order_over_kill_9() {
    let run = &*KILLED;
    let arrived = run.bench.arrived(2, Isolation::ReadCommitted);
    for (key, numbers) in &arrived {
        assert!(numbers.is_sorted_by(|a, b| a < b), "{key}: {numbers:?}, seed {}", run.seed);
    }
    // What is lost was in work when a process died: one commit's worth.
    let lost = run.bench.sent - count(&arrived);
    assert!(lost <= KILLS * TRANSACTION, "{lost} records lost by {KILLS} kills, seed {}", run.seed);
}

#[test]
fn without_an_instance_name_a_crash_holds_readers_no_longer_than_the_transaction_timeout_and_the_brokers_scan() {
    let mut bench = Bench::new("defaults: { transaction: { interval: 50ms } }");
    // A short session too, or the dead member would keep its partitions for 45 s.
    let yaml = bench.config.path().join("millrace.yaml");
    let text = std::fs::read_to_string(&yaml).expect("the configuration");
    let properties = "producer: { transaction.timeout.ms: 3000 }, consumer: { session.timeout.ms: 6000 } }\nadmin:";
    std::fs::write(&yaml, text.replacen(" }\nadmin:", &format!(", {properties}"), 1)).expect("the configuration");
    bench.send(CHUNK);
    let mut daemon = Daemon::start(bench.config.path());
    daemon.await_consumed("exactly_once", 1, PATIENCE);
    bench.stop_within_a_transaction(&daemon);
    daemon.kill9();
    let _daemon = Daemon::start(bench.config.path());
    bench.await_end();
    // Of what the dead one has left open the broker knows only by time: 3 s, and its scan every 10 s.
    wait_until(Duration::from_secs(20), "readers are let go on", || {
        count(&bench.arrived(0, Isolation::ReadCommitted)) >= bench.sent
    });
    assert_eq!(bench.arrived(0, Isolation::ReadCommitted), bench.expected());
}

// ---- an orderly end -------------------------------------------------------------------------------------------------

#[test]
fn an_orderly_restart_in_the_middle_loses_and_doubles_nothing_in_any_mode() {
    let mut bench = Bench::new("");
    for _ in 0..2 {
        bench.send(CHUNK);
        let mut daemon = Daemon::start(bench.config.path());
        daemon.await_consumed("at_most_once", 1, PATIENCE);
        assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
    }
    let _daemon = Daemon::start(bench.config.path());
    bench.await_end();
    let expected = bench.expected();
    for (mode, name) in MODES.iter().enumerate() {
        // (at_most_once sends what it has committed: the last of it may still be on its way)
        wait_until(PATIENCE, &format!("all records of {name}"), || {
            count(&bench.arrived(mode, Isolation::ReadCommitted)) >= bench.sent
        });
        assert_eq!(bench.arrived(mode, Isolation::ReadCommitted), expected, "{name}");
    }
}
