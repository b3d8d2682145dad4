//! Reloads that are cut short, by `kill -9` and by SIGTERM.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::{FILE, FOR_EVER, PATIENCE, await_generation, put_guest, reload, runs, stamp_of, stamp_with, stamping};
use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{Isolation, shared};
use crate::support::load::{Load, number};
use crate::support::{scratch, unique, wait_until};

const ROUTE: &str = "interrupted";
const PARTITIONS: usize = 2;

/// One route that stamps; its destination has one partition.
struct Bench {
    source: String,
    destination: String,
    config: Config,
}

impl Bench {
    /// `head` comes before the route, `more` belongs to it.
    fn new(head: &str, more: &str) -> Self {
        let [source, destination] = ["interrupted", "interrupted-out"].map(unique);
        shared().create_topic(&source, PARTITIONS as i32, &[FOR_EVER]);
        shared().create_topic(&destination, 1, &[FOR_EVER]);
        let rest = format!(
            "{head}routes:
  {ROUTE}:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: stamp }}]
    destinations: [{{ topic: {destination} }}]
{more}"
        );
        Self { config: stamping(&shared().bootstrap, &rest), source, destination }
    }

    fn load(&self, per_second: usize) -> Load {
        Load::start(shared(), &self.source, PARTITIONS, per_second)
    }
}

// ---- kill -9 --------------------------------------------------------------------------------------------------------

const KILLS: u32 = 10;
/// Longest time from a change of the files to the kill: from before it is noticed to after it is taken up.
const KILLED_WITHIN: u64 = 400;
/// Within which a start has committed something: below `transaction.timeout.ms`, for which an instance with a name never
/// waits.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(12);

/// Has some records pass, and returns the numbers of those that were sent and committed meanwhile.
fn interlude(daemon: &Daemon, load: &Load, bench: &Bench) -> std::ops::Range<usize> {
    let stored = || shared().end_offsets(&bench.source, Isolation::ReadUncommitted);
    let from = load.sent();
    // (of what is sent, some is still on its way: what is stored counts)
    let until = || PARTITIONS * stored().values().copied().min().unwrap_or_default() as usize;
    wait_until(PATIENCE, "records are sent to the configuration as it was found", || until() >= from + 100);
    let (until, wanted) = (until(), stored());
    wait_until(TAKEN_OVER_WITHIN, "they are committed", || {
        assert_eq!(daemon.get("/readyz").status, 200);
        let committed = shared().committed(&bench.config.group(ROUTE), &bench.source);
        wanted.iter().all(|(partition, end)| committed.get(partition) >= Some(end))
    });
    from..until
}

#[test]
fn kill_9_during_a_reload_leaves_a_daemon_that_starts_with_what_is_on_disk_and_nothing_lost_or_doubled() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // (the name of the instance lets the next process take over at once)
    let bench = Bench::new(&format!("instance: {}\n", unique("interrupted")), "    transaction: { interval: 20ms }\n");
    let load = bench.load(500);
    let mut found = Vec::new();
    for round in 0..KILLS {
        let mut daemon = Daemon::start(bench.config.path());
        found.push(interlude(&daemon, &load, &bench));
        if random.bool() {
            put_guest(&bench.config, if random.bool() { "v1" } else { "v2" });
        }
        stamp_with(&bench.config, round + 1);
        let pause = Duration::from_millis(random.u64(0..KILLED_WITHIN));
        // Nobody sends anything: it is a pause.
        let (_nobody, silence): (_, Receiver<()>) = channel();
        let _ = silence.recv_timeout(pause);
        daemon.kill9();
    }
    let daemon = Daemon::start(bench.config.path());
    found.push(interlude(&daemon, &load, &bench));
    let sent = load.stop();
    let arrived = shared().await_records(&bench.destination, sent.count, PATIENCE);
    sent.assert_whole(&arrived, &format!("seed {seed}"));
    for run in runs(&arrived) {
        let stamps: BTreeSet<u32> = run.iter().map(stamp_of).collect();
        assert_eq!(stamps.len(), 1, "a transaction is of {stamps:?}, seed {seed}: {:?}", run.first());
    }
    for (round, numbers) in found.iter().enumerate() {
        let met = arrived.iter().filter(|record| numbers.contains(&number(record))).map(stamp_of);
        assert_eq!(met.collect::<BTreeSet<_>>(), [round as u32].into(), "start {round}, seed {seed}");
    }
}

// ---- SIGTERM --------------------------------------------------------------------------------------------------------

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// The default. (Less would be too little for the transactions; the tests ask for less all the same.)
const HEAD: &str = "shutdown_timeout: 25s\n";

/// Ends the daemon, which a reload keeps busy, and has another one do the rest.
#[track_caller]
fn terminate(mut daemon: Daemon, bench: &Bench, load: Load) {
    let began = Instant::now();
    assert_eq!(daemon.sigterm_and_wait(SHUTDOWN_TIMEOUT), Some(0));
    eprintln!("ended within {:?}", began.elapsed());
    let log = daemon.log();
    assert!(log.contains("drained") && !log.contains("panicked"), "{log}");
    let _daemon = Daemon::start(bench.config.path());
    let sent = load.stop();
    sent.assert_whole(&shared().await_records(&bench.destination, sent.count, PATIENCE), "over SIGTERM");
}

#[test]
fn sigterm_while_plugins_are_being_compiled_ends_the_process_in_time() {
    const PLUGINS: usize = 12;
    let bench = Bench::new(HEAD, "");
    let cache = scratch("cold-cache");
    bench.config.edit(|yaml| {
        let others = |yaml: &str| {
            let other = |n| format!("  other-{n}: {{ path: other-{n}.wasm, config: {{ name: x, value: y }} }}\n");
            yaml.replacen("plugins:\n", &format!("plugins:\n{}", (0..PLUGINS).map(other).collect::<String>()), 1)
        };
        let old = yaml.lines().find(|line| line.starts_with("cache_dir:")).expect("there is one");
        others(&yaml.replacen(old, &format!("cache_dir: {}", cache.display()), 1))
    });
    let put = |variant: &str| {
        let bytes = |n| crate::support::guests::guest_variant("stamp", &format!("{variant} of {n}"));
        (0..PLUGINS).for_each(|n| bench.config.put(&format!("other-{n}.wasm"), &bytes(n)));
    };
    put("v1");
    let daemon = Daemon::start(bench.config.path());
    let load = bench.load(500);
    daemon.await_consumed(ROUTE, 1, PATIENCE);
    let compiled = || std::fs::read_dir(&cache).expect("the cache").count();
    let before = compiled();
    put("v2");
    wait_until(PATIENCE, "the first of many is compiled", || compiled() > before);
    assert!(compiled() < before + PLUGINS, "the reload is under way");
    terminate(daemon, &bench, load);
    std::fs::remove_dir_all(&cache).expect("nobody uses it");
}

#[test]
fn sigterm_while_a_route_restarts_ends_the_process_in_time() {
    let bench = Bench::new(HEAD, "");
    let daemon = Daemon::start(bench.config.path());
    let load = bench.load(500);
    daemon.await_consumed(ROUTE, 1, PATIENCE);
    bench.config.edit(|yaml| yaml.replace("start: earliest }", "start: earliest, on_offset_lost: latest }"));
    reload(&daemon);
    terminate(daemon, &bench, load);
}

#[test]
fn sigterm_while_all_routes_restart_one_after_another_ends_the_process_in_time() {
    let topic = unique("idle");
    let idle = |n| {
        format!(
            "  idle-{n}: {{ source: {{ topics: [{topic}], start: latest }}, destinations: [{{ topic: {topic}-out }}] }}\n"
        )
    };
    let idle: String = (0..8).map(idle).collect();
    shared().create_topics(&[topic.clone(), format!("{topic}-out")], 1, &[FOR_EVER]);
    let bench = Bench::new(HEAD, &idle);
    let daemon = Daemon::start(bench.config.path());
    let load = bench.load(500);
    daemon.await_consumed(ROUTE, 1, PATIENCE);
    bench.config.edit(|yaml| yaml.replacen("bootstrap.servers", "client.rack: r1, bootstrap.servers", 1));
    let generation = super::generation(&reload(&daemon));
    // They restart in the order of their names: the first has, the others have not all.
    await_generation(&daemon, "idle-0", generation);
    assert_ne!(daemon.route(ROUTE)["workers"][0]["generation"], generation, "the reload is under way");
    terminate(daemon, &bench, load);
}

#[test]
fn sigterm_right_after_a_plugin_file_has_changed_ends_the_process_in_time() {
    let bench = Bench::new(HEAD, "");
    let daemon = Daemon::start(bench.config.path());
    let load = bench.load(500);
    daemon.await_consumed(ROUTE, 1, PATIENCE);
    put_guest(&bench.config, &unique("never-compiled-before"));
    assert!(bench.config.path().join(FILE).exists());
    terminate(daemon, &bench, load);
}
