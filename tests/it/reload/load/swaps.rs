//! A plugin changed two hundred times while five thousand records a second flow through it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{FOR_EVER, PATIENCE, await_generation, generation, put_guest, rebalances, reload, stamp_of, stamp_with};
use crate::reload::load::stamping;
use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{Batch, Cluster, ConsumedRecord, Isolation};
use crate::support::load::{Load, Sent};
use crate::support::wait_until;

const ROUTE: &str = "swapped";
const SWAPS: u32 = 200;
const PER_SECOND: usize = 5_000;
const PARTITIONS: usize = 4;
/// Longest time between two commits of a worker: a swap is taken up between two transactions, so that it costs no more
/// than instances. Generous: on two cores that others use as well, a single commit takes the broker seconds now and then.
const GAP: Duration = Duration::from_secs(5);

/// One route with two workers, on a cluster of its own, whose log tells of rebalances.
struct Bench {
    daemon: Daemon,
    config: Config,
    cluster: Cluster,
}

/// All that a rebalance would change.
#[derive(Debug, PartialEq, Eq)]
struct Membership {
    members: BTreeSet<String>,
    counted_by_us: BTreeMap<String, String>,
    counted_by_the_broker: usize,
}

impl Bench {
    fn start() -> Self {
        let cluster = Cluster::start_talkative();
        cluster.create_topic("source", PARTITIONS as i32, &[FOR_EVER]);
        cluster.create_topic("one", 1, &[FOR_EVER]);
        cluster.create_topic("keyed", 4, &[FOR_EVER]);
        let rest = format!(
            "routes:
  {ROUTE}:
    source: {{ topics: [source], start: earliest }}
    pipeline: [{{ plugin: stamp }}]
    destinations: [{{ topic: one }}, {{ topic: keyed }}]
    workers: 2
"
        );
        let config = stamping(&cluster.bootstrap, &rest);
        let daemon = Daemon::start(config.path());
        wait_until(PATIENCE, "each worker has two partitions", || {
            let workers = daemon.route(ROUTE)["workers"].clone();
            [0, 1].iter().all(|n: &usize| workers[n]["assignment"]["source"].as_array().is_some_and(|p| p.len() == 2))
        });
        Self { cluster, config, daemon }
    }

    fn membership(&self) -> Membership {
        let group = self.config.group(ROUTE);
        Membership {
            members: self.cluster.members(&group),
            counted_by_us: rebalances(&self.daemon),
            counted_by_the_broker: self.cluster.log_lines(&["Preparing to rebalance group", &group]),
        }
    }

    /// Changes what is stamped, at every second time the plugin's file as well, and waits until both workers go by it and
    /// something has come of it. Every fourth change is left to be noticed.
    fn swap(&self, number: u32) {
        let before = self.generation();
        if number.is_multiple_of(2) {
            put_guest(&self.config, if number.is_multiple_of(4) { "v1" } else { "v2" });
        }
        stamp_with(&self.config, number);
        let new = if number % 4 == 1 { before + 1 } else { generation(&reload(&self.daemon)) };
        assert!(new > before, "swap {number}: generation {before} is followed by {new}");
        await_generation(&self.daemon, ROUTE, new);
        let consumed = self.consumed();
        wait_until(PATIENCE, "records met the new plugin", || self.consumed() > consumed);
    }

    fn generation(&self) -> u64 {
        self.daemon.metric("millrace_config_generation", &[]).expect("it is told from the start") as u64
    }

    fn consumed(&self) -> f64 {
        self.daemon.metric("millrace_records_consumed_total", &[("route", ROUTE)]).unwrap_or_default()
    }

    fn await_end(&self) {
        let ends = self.cluster.end_offsets("source", Isolation::ReadUncommitted);
        wait_until(PATIENCE, "the route is at the end", || {
            self.cluster.committed(&self.config.group(ROUTE), "source") == ends
        });
    }
}

#[test]
fn two_hundred_swaps_at_five_thousand_records_a_second_lose_double_reorder_and_move_nothing() {
    let bench = Bench::start();
    let (membership, generation) = (bench.membership(), bench.generation());
    let load = Load::start(&bench.cluster, "source", PARTITIONS, PER_SECOND);
    let began = Instant::now();
    wait_until(PATIENCE, "records flow", || bench.consumed() > PER_SECOND as f64);
    let since = now_ms();
    (1..=SWAPS).for_each(|number| bench.swap(number));
    let behind = load.sent() as f64 - bench.consumed();
    let sent = load.stop();
    let took = began.elapsed().as_secs_f64();
    bench.await_end();
    let rate = sent.count as f64 / took;
    eprintln!("{SWAPS} swaps in {took:.1} s, {rate:.0} records/s, {behind} records behind at the end");
    assert!(rate > 0.95 * PER_SECOND as f64, "{rate:.0} records/s were sent");
    assert!(behind < 2.0 * PER_SECOND as f64, "the route is {behind} records behind");

    assert_eq!(bench.membership(), membership);
    assert!(bench.generation() >= generation + u64::from(SWAPS));
    let one = bench.cluster.kcat_consume("one", Isolation::ReadCommitted);
    sent.assert_whole(&one, "the destination of one partition");
    let keyed = bench.cluster.kcat_consume("keyed", Isolation::ReadCommitted);
    sent.assert_whole(&keyed, "the destination by key");
    assert_that_stamps_follow(&one, sent);
    assert_transactions(&bench.cluster.batches("one", 0), &one, since);
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    i64::try_from(since.as_millis()).expect("it is before the end of time")
}

/// Each generation stamped something, and within a partition of the source none comes after a later one.
fn assert_that_stamps_follow(one: &[ConsumedRecord], sent: Sent) {
    let stamps: BTreeSet<u32> = one.iter().map(stamp_of).collect();
    assert!(stamps.iter().copied().eq(0..=SWAPS), "{} of {SWAPS} swaps stamped records", stamps.len() - 1);
    for partition in 0..PARTITIONS {
        let lane: Vec<u32> = one.iter().filter(|r| sent.partition(r) == partition).map(stamp_of).collect();
        let back = lane.windows(2).position(|pair| pair[0] > pair[1]);
        assert_eq!(back, None, "stamps of partition {partition} go back at place {back:?}");
    }
}

/// From the broker's log: the batches of each producer up to its next mark are one transaction, whatever another one has
/// written between them. `since`: when the swaps began.
fn assert_transactions(batches: &[Batch], one: &[ConsumedRecord], since: i64) {
    let stamps: BTreeMap<i64, u32> = one.iter().map(|record| (record.offset, stamp_of(record))).collect();
    let mut producers: BTreeMap<i64, Vec<&Batch>> = BTreeMap::new();
    for batch in batches {
        producers.entry(batch.producer).or_default().push(batch);
    }
    assert_eq!(producers.len(), 2, "one producer for each worker's life");
    for (producer, batches) in &producers {
        let mut transactions = 0;
        for transaction in batches.split_inclusive(|batch| batch.is_control) {
            let offsets = transaction.iter().flat_map(|batch| batch.first_offset..=batch.last_offset);
            let met: BTreeSet<u32> = offsets.filter_map(|offset| stamps.get(&offset)).copied().collect();
            assert_eq!(met.len(), 1, "a transaction of producer {producer} is of generations {met:?}");
            transactions += 1;
        }
        let ends = batches.iter().filter(|batch| batch.is_control).map(|batch| batch.timestamp);
        let ends: Vec<i64> = ends.filter(|end| *end >= since).collect();
        let gaps = ends.windows(2).map(|pair| (pair[1] - pair[0], pair[0] - since));
        let (gap, after) = gaps.max().expect("there are many");
        eprintln!("producer {producer}: {transactions} transactions");
        eprintln!("longest gap between commits: {gap} ms, {after} ms after the first swap");
        assert!(gap < GAP.as_millis() as i64, "{gap} ms between two commits of producer {producer}");
    }
}
