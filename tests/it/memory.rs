//! Memory is bounded by one key of the YAML, whatever stands in the way of the records; and once that is gone, all of them
//! arrive exactly once.

use std::time::Duration;

use serde_json::Value;

use crate::support::config::{Config, plugin};
use crate::support::daemon::Daemon;
use crate::support::kafka::{Cluster, ConsumedRecord, Isolation, Record, shared};
use crate::support::{pace, unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(90);
const MIB: usize = 1 << 20;
/// What a process takes that holds no record: see "How much memory" in docs/configuration.md. This is a build without
/// optimisation.
const BASE: usize = 64 * MIB;
/// The same for each worker, for its two clients.
const WORKER: usize = 2 * MIB;

/// Values of `size` bytes that do not compress and tell their number.
fn noise(count: usize, size: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..count).map(move |number| {
        let mut value = vec![0; size];
        random.fill(&mut value);
        value[..8].copy_from_slice(&(number as u64).to_be_bytes());
        value
    })
}

/// The number in each record, in order.
fn numbers(records: &[ConsumedRecord]) -> Vec<usize> {
    let number = |record: &ConsumedRecord| {
        let value = record.value.as_deref().expect("it has a value");
        u64::from_be_bytes(value[..8].try_into().expect("eight bytes")) as usize
    };
    let mut numbers: Vec<_> = records.iter().map(number).collect();
    numbers.sort_unstable();
    numbers
}

#[track_caller]
fn assert_within(daemon: &Daemon, ceiling: usize, backlog: usize, what: &str) {
    let peak = daemon.peak_resident_bytes() as usize;
    eprintln!(
        "{what}: at most {} MiB resident, of {} MiB allowed, with a backlog of {} MiB",
        peak / MIB,
        ceiling / MIB,
        backlog / MIB
    );
    assert!(peak <= ceiling, "{what}: {peak} bytes resident, {ceiling} allowed");
}

#[test]
fn a_stuck_broker_of_the_destination_holds_the_source_of_200_partitions_and_memory_stays_within_its_ceiling() {
    const PARTITIONS: usize = 200;
    const WORKERS: usize = 4;
    const MEMORY: usize = 32 * MIB;
    const COUNT: usize = 10_000;
    const SIZE: usize = 10_000;
    const CEILING: usize = MEMORY + BASE + WORKERS * WORKER;
    let cluster = Cluster::start(3);
    cluster.create_topic_on(1, "in", PARTITIONS);
    cluster.create_topic_on(2, "out", 4);
    let record = |(number, value)| Record { value: Some(value), ..Record::new(format!("{number}"), "") };
    let records: Vec<_> = noise(COUNT, SIZE).enumerate().map(record).collect();
    cluster.produce("in", &records[..1]);
    let config = Config::new(
        &cluster.bootstrap,
        &[],
        &format!(
            "memory: {MEMORY}B
routes:
  r:
    source: {{ topics: [in], start: earliest }}
    destinations: [{{ topic: out }}]
    workers: {WORKERS}
"
        ),
    );
    config.edit(|yaml| yaml.replacen(" }\nadmin", ", producer: { transaction.timeout.ms: 4000 } }\nadmin", 1));
    let daemon = Daemon::start(config.path());
    daemon.await_consumed("r", 1, PATIENCE);
    // (a rebalance under way would not end while its coordinator is the one that stands still)
    wait_until(PATIENCE, "each worker has its share", || {
        let route = daemon.route("r");
        let workers = route["workers"].as_array().expect("a list");
        let share = |worker: &Value| worker["assignment"]["in"].as_array().map(Vec::len) == Some(PARTITIONS / WORKERS);
        workers.len() == WORKERS && workers.iter().all(share)
    });
    cluster.stop(2);
    cluster.produce("in", &records[1..]);
    daemon.await_state("r", "waiting", PATIENCE);
    // Time in which all would be fetched if it could.
    pace(Duration::from_secs(5));
    assert_within(&daemon, CEILING, COUNT * SIZE, "stuck");
    assert_eq!(daemon.metric("millrace_records_consumed_total", &[("route", "r")]), Some(1.0));
    cluster.cont(2);
    daemon.await_consumed("r", COUNT, PATIENCE);
    assert_within(&daemon, CEILING, COUNT * SIZE, "caught up");
    assert_eq!(numbers(&cluster.kcat_consume("out", Isolation::ReadCommitted)), (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn a_slow_plugin_holds_the_source_and_memory_stays_within_its_ceiling_with_a_shadow_that_loops_beside_it() {
    const MEMORY: usize = 16 * MIB;
    const INSTANCE: usize = 8 * MIB;
    const COUNT: usize = 10_000;
    const SIZE: usize = 10_000;
    const CEILING: usize = MEMORY + BASE + WORKER + 2 * INSTANCE;
    let kafka = shared();
    let [source, target] = ["slowly", "slowly-out"].map(unique);
    kafka.create_topic(&source, 4, &[]);
    kafka.create_topic(&target, 1, &[]);
    let record = |(number, value)| Record { value: Some(value), ..Record::new(format!("{number}"), "") };
    kafka.produce(&source, &noise(COUNT, SIZE).enumerate().map(record).collect::<Vec<_>>());
    let config = Config::new(
        &kafka.bootstrap,
        &[],
        &format!(
            "memory: {MEMORY}B
processing_timeout: 1s
plugins:
  slow: {{ path: {0}, memory: {INSTANCE}B, config: {{ do: log_flood, n: 12000 }} }}
  loops: {{ path: {0}, memory: {INSTANCE}B, config: {{ do: loop }} }}
routes:
  r:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: slow }}]
    shadow: {{ pipeline: [{{ plugin: loops }}] }}
    destinations: [{{ topic: {target} }}]
",
            plugin("misbehave").display()
        ),
    );
    let daemon = Daemon::start(config.path());
    daemon.await_consumed("r", 100, PATIENCE);
    pace(Duration::from_secs(2));
    let done = daemon.metric("millrace_records_consumed_total", &[("route", "r")]).unwrap_or_default();
    assert!(done < COUNT as f64 / 10.0, "the plugin is not slow: {done}");
    assert_within(&daemon, CEILING, COUNT * SIZE, "slow");
    config.edit(|yaml| yaml.replace("n: 12000", "n: 0"));
    daemon.await_consumed("r", COUNT, PATIENCE);
    assert_within(&daemon, CEILING, COUNT * SIZE, "caught up");
    assert_eq!(numbers(&kafka.kcat_consume(&target, Isolation::ReadCommitted)), (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn records_of_16_mib_pass_within_the_ceiling_up_to_the_byte_that_the_destination_takes_and_one_above_is_rejected() {
    const MEMORY: usize = 128 * MIB;
    /// `max.message.bytes` of the destination, which counts a batch of one record.
    const LIMIT: usize = 16 * MIB;
    /// What a batch of one record has besides the value: its head of 61 bytes, and 14 around a value and a key of one byte.
    const AROUND: usize = 61 + 14;
    const COUNT: usize = 16;
    const TOO_LARGE: usize = 5;
    let kafka = shared();
    let [source, target] = ["large", "large-out"].map(unique);
    kafka.create_topic(&source, 1, &[("max.message.bytes", "20000000")]);
    kafka.create_topic(&target, 1, &[("max.message.bytes", &LIMIT.to_string())]);
    let mut records: Vec<_> = noise(COUNT, LIMIT - AROUND).map(|value| Record::new("k", value)).collect();
    records[TOO_LARGE].value.as_mut().expect("it has one").push(0);
    kafka.produce_with(&source, &records, &[("message.max.bytes", "20000000"), ("linger.ms", "0")]);
    let config = Config::new(
        &kafka.bootstrap,
        &[],
        &format!(
            "memory: {MEMORY}B
routes:
  r:
    source: {{ topics: [{source}], start: earliest }}
    destinations: [{{ topic: {target} }}]
    on_error: skip
"
        ),
    );
    let daemon = Daemon::start(config.path());
    daemon.await_consumed("r", COUNT, PATIENCE);
    assert_within(&daemon, MEMORY + BASE + WORKER, COUNT * LIMIT, "records of 16 MiB");
    let skipped = daemon.metric("millrace_records_skipped_total", &[("route", "r"), ("code", "rejected")]);
    assert_eq!(skipped, Some(1.0), "{}", daemon.log());
    let arrived = kafka.kcat_consume(&target, Isolation::ReadCommitted);
    assert_eq!(numbers(&arrived), (0..COUNT).filter(|number| *number != TOO_LARGE).collect::<Vec<_>>());
    assert!(arrived.iter().all(|record| record.value.as_ref().is_some_and(|value| value.len() == LIMIT - AROUND)));
}
