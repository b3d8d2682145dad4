//! What goes on by itself, and how soon: nothing that passes ends the process or a route, and nothing is left behind.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::alerts::{assert_fires, assert_fires_of, await_metric, look};
use crate::support::config::Config;
use crate::support::daemon::{Daemon, sum_of};
use crate::support::kafka::{Cluster, ConsumedRecord, Isolation, Kafka, Record, impatient, shared};
use crate::support::load::Load;
use crate::support::{pace, scratch, unique, wait_for, wait_until};

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

    /// Waits until the group has committed all that the source holds.
    #[track_caller]
    fn await_committed(&self) {
        let ends = self.kafka.end_offsets(&self.source, Isolation::ReadCommitted);
        let committed = || self.kafka.committed(&self.config.group("copy"), &self.source);
        wait_until(PATIENCE, "all is committed", || committed() == ends);
    }

    /// Whether committed readers of the destination see less than others.
    fn has_open_transaction(&self) -> bool {
        let ends = |isolation| self.kafka.end_offsets(&self.destination, isolation);
        ends(Isolation::ReadCommitted) != ends(Isolation::ReadUncommitted)
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

/// Within which records flow again once what kept them away is over.
const BOUND: Duration = Duration::from_secs(30);

/// With timeouts so short that all of them pass within a few seconds.
fn hasty(bench: &Bench) {
    let head = " }\nadmin:";
    let clients = "socket.connection.setup.timeout.ms: 2000, \
                   producer: { transaction.timeout.ms: 3000, socket.timeout.ms: 1500 }, \
                   consumer: { session.timeout.ms: 6000, heartbeat.interval.ms: 1000, socket.timeout.ms: 2000 }";
    bench.config.edit(|yaml| yaml.replacen(head, &format!(", {clients}{head}"), 1));
}

// ---- brokers that are away ------------------------------------------------------------------------------------------

#[test]
fn a_broker_that_is_gone_for_a_minute_ends_nothing_and_records_flow_soon_after_it_is_back() {
    // It is stopped, and its cluster does not take it for dead: else it would be without leaders when it is back, and Kafka
    // could pass over a partition when it ends a transaction (docs/delivery.md).
    let cluster = Cluster::start_with(1, &["broker.session.timeout.ms=120000"]);
    let bench = Bench::new(&cluster, 2, "", "");
    hasty(&bench);
    let daemon = Daemon::start(bench.config.path());
    let load = Load::start(&cluster, &bench.source, 2, 200);
    daemon.await_consumed("copy", 1, PATIENCE);
    let well = daemon.get("/metrics").body;
    cluster.stop(1);
    let gone = Instant::now();
    let stuck = wait_for(PATIENCE, "a transaction is open", || {
        let text = daemon.get("/metrics").body;
        (sum_of(&text, "millrace_transaction_open_seconds", &[]) > Some(1.0)).then_some(text)
    });
    let reason = daemon.await_state("copy", "waiting", PATIENCE);
    println!("it says so after {:?}: {reason}", gone.elapsed());
    assert!(reason.contains(": "), "a code and a reason: {reason}");
    assert!(daemon.route("copy")["next_attempt"].is_string());
    // The timeouts of its transaction (3 s), its session (6 s) and its requests (2 s) have passed, each many times.
    wait_until(2 * PATIENCE, "a minute", || gone.elapsed() > Duration::from_secs(60));
    assert_eq!(daemon.route("copy")["state"], "waiting");
    let during = daemon.get("/metrics").body;
    cluster.cont(1);
    let back = Instant::now();
    let before = daemon.metric("millrace_records_consumed_total", &[("route", "copy")]).unwrap_or_default() as usize;
    daemon.await_consumed("copy", before + 1, BOUND);
    println!("gone for {:?}; records flow {:?} after it is back", back.duration_since(gone), back.elapsed());
    daemon.await_state("copy", "running", PATIENCE);
    let sent = load.stop();
    bench.await_committed();
    sent.assert_whole(&bench.kafka.kcat_consume(&bench.destination, Isolation::ReadCommitted), "a broker was gone");
    // What the alerts would have said, had it gone on like this.
    let slow = [r#"alertname="MillraceCommitSlow",severity="ticket",route="copy""#];
    assert_fires_of("MillraceCommitSlow", &[("a", &[well.clone(), stuck])], &slow);
    let failing = [
        r#"alertname="MillraceCommitFailures",severity="ticket",route="copy""#,
        r#"alertname="MillraceRouteWaiting",severity="page",route="copy""#,
    ];
    assert_fires_of("MillraceCommitFailures|MillraceRouteWaiting", &[("a", &[well, during])], &failing);
}

#[test]
fn a_process_whose_brokers_are_gone_takes_hardly_any_cpu_time() {
    let cluster = Cluster::start(1);
    let bench = Bench::new(&cluster, 2, "", "");
    let daemon = Daemon::start(bench.config.path());
    cluster.produce(&bench.source, &[Record::new("k", "v")]);
    daemon.await_consumed("copy", 1, PATIENCE);
    cluster.kill(1);
    daemon.await_state("copy", "waiting", PATIENCE);
    let cpu = || daemon.metric("process_cpu_seconds_total", &[]).expect("a process uses some");
    // Longer than between any two looks at the cluster; the first questions may still be open.
    wait_until(PATIENCE, "fifteen seconds with little work", || {
        let (began, before) = (Instant::now(), cpu());
        pace(Duration::from_secs(15));
        let used = (cpu() - before) / began.elapsed().as_secs_f64();
        println!("{:.1} % of a core", used * 100.0);
        used < 0.05
    });
}

#[test]
fn coordinators_that_die_end_nothing_and_records_flow_soon_by_those_that_take_their_place() {
    let cluster = Cluster::start(3);
    let bench = Bench::new(&cluster, 2, "instance: steady", "");
    let daemon = Daemon::start(bench.config.path());
    let load = Load::start(&cluster, &bench.source, 2, 200);
    daemon.await_consumed("copy", 1, PATIENCE);
    let group = bench.config.group("copy");
    let prefix = group.strip_suffix(".copy").expect("a default name");
    let of_group = || cluster.group_coordinator(&group);
    let of_transactions = || cluster.transaction_coordinator(&format!("{prefix}.{group}.steady.0"));
    for (what, coordinator) in [("the group's", &of_group as &dyn Fn() -> _), ("the transactions'", &of_transactions)] {
        let node = coordinator().expect("a coordinator");
        cluster.kill(node);
        let (gone, sent) = (Instant::now(), load.sent());
        // (all before have been, so this one was sent after it had died)
        daemon.await_consumed("copy", sent + 1, BOUND);
        println!("{what} coordinator, node {node}: records flow {:?} after its death", gone.elapsed());
        daemon.await_state("copy", "running", PATIENCE);
        cluster.restart(node);
        wait_until(2 * PATIENCE, "all replicas are in sync", || cluster.is_in_sync());
    }
    let sent = load.stop();
    bench.await_committed();
    sent.assert_whole(&bench.kafka.kcat_consume(&bench.destination, Isolation::ReadCommitted), "coordinators died");
}

// ---- zombies --------------------------------------------------------------------------------------------------------

#[test]
fn a_process_that_wakes_after_everybody_has_given_it_up_commits_nothing_old_and_goes_on_by_itself() {
    let mut bench = Bench::new(impatient(), 2, "", "transaction: { records: 20 }");
    hasty(&bench);
    bench.config.edit(|yaml| yaml.replace("session.timeout.ms: 6000", "session.timeout.ms: 2000"));
    bench.config.edit(|yaml| yaml.replace("heartbeat.interval.ms: 1000", "heartbeat.interval.ms: 500"));
    bench.send(400, 2);
    let mut daemon = Daemon::start(bench.config.path());
    wait_until(PATIENCE, "a moment within a transaction", || {
        daemon.signal(Signal::STOP);
        let is_open = bench.has_open_transaction();
        if !is_open {
            daemon.signal(Signal::CONT);
        }
        is_open
    });
    // The broker ends its transaction after 3 s, at its next look; its membership has ended by then.
    wait_until(PATIENCE, "it is given up", || !bench.has_open_transaction());
    bench.send(400, 2);
    daemon.signal(Signal::CONT);
    let back = Instant::now();
    let before = daemon.metric("millrace_records_consumed_total", &[("route", "copy")]).unwrap_or_default() as usize;
    daemon.await_consumed("copy", before + 1, BOUND);
    println!("a zombie works {:?} after it is awake", back.elapsed());
    bench.await_committed();
    bench.assert_exact(2);
    daemon.await_state("copy", "running", PATIENCE);
    assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
}

#[test]
fn a_quota_of_the_broker_slows_a_route_down_and_shows_in_its_metric_and_ends_nothing() {
    const RECORDS: usize = 400;
    let bench = Bench::new(shared(), 1, "", "");
    let client = unique("slow");
    bench.config.edit(|yaml| yaml.replacen(" }\nadmin", &format!(", client.id: {client} }}\nadmin"), 1));
    // Of a mean over ten seconds: what is above it makes the broker wait, some seconds here.
    let quota = "producer_byte_rate=30000,consumer_byte_rate=30000";
    let set = ["--alter", "--entity-type", "clients", "--entity-name", &client, "--add-config", quota];
    bench.kafka.tool("kafka.admin.ConfigCommand", &set);
    let mut random = fastrand::Rng::with_seed(7);
    let values: Vec<Vec<u8>> = (0..RECORDS).map(|_| (0..1_000).map(|_| random.u8(..)).collect()).collect();
    let records: Vec<_> = values.iter().map(|value| Record::new("k", value)).collect();
    // (a batch that is more than the quota's whole window would never be read)
    bench.kafka.produce_with(&bench.source, &records, &[("batch.size", "16384")]);
    let daemon = Daemon::start(bench.config.path());
    let throttled = || daemon.metric("millrace_broker_throttle_seconds_total", &[("route", "copy")]);
    daemon.await_consumed("copy", RECORDS, PATIENCE);
    wait_until(PATIENCE, "it is told", || throttled() > Some(0.5));
    let state = daemon.await_state("copy", "running", PATIENCE);
    assert_eq!(state, "");
    let arrived = bench.kafka.kcat_consume(&bench.destination, Isolation::ReadCommitted);
    assert!(arrived.into_iter().filter_map(|record| record.value).eq(values), "all of it, once and in order");
    let failed = ["aborted", "unknown", "broken"]
        .map(|outcome| daemon.metric("millrace_transactions_total", &[("route", "copy"), ("outcome", outcome)]));
    assert_eq!(failed, [Some(0.0); 3], "nothing had to be given again");
}

// ---- nothing is left open -------------------------------------------------------------------------------------------

#[test]
fn no_transaction_is_left_open_by_a_reload_a_restart_the_end_of_a_route_or_of_the_process() {
    let bench = Bench::new(shared(), 2, "", "transaction: { interval: 20ms }");
    let mut daemon = Daemon::start(bench.config.path());
    let load = Load::start(&bench.kafka, &bench.source, 2, 300);
    daemon.await_consumed("copy", 1, PATIENCE);
    // One that was left open would hold committed readers back for its timeout of 15 s, and for the broker's look.
    const SOON: Duration = Duration::from_secs(8);
    let ends = |isolation| bench.kafka.end_offsets(&bench.destination, isolation);
    for (what, old, new) in [
        ("swapped", "interval: 20ms", "interval: 30ms"),
        ("restarted", "start: earliest", "start: earliest, on_offset_lost: latest"),
    ] {
        let generation = daemon.generation() + 1;
        bench.config.edit(|yaml| yaml.replace(old, new));
        daemon.await_workers("copy", generation, PATIENCE);
        let written = ends(Isolation::ReadUncommitted);
        wait_until(SOON, &format!("readers go on behind a route that was {what}"), || {
            ends(Isolation::ReadCommitted).iter().all(|(partition, end)| *end >= written[partition])
        });
    }
    bench.config.edit(|yaml| yaml.replace("  copy:", "  copy:\n    enabled: false"));
    daemon.await_state("copy", "disabled", PATIENCE);
    wait_until(SOON, "a route that was removed has left none", || !bench.has_open_transaction());
    bench.config.edit(|yaml| yaml.replace("    enabled: false\n", ""));
    let written = ends(Isolation::ReadCommitted);
    wait_until(PATIENCE, "it works again", || ends(Isolation::ReadCommitted) != written);
    assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
    wait_until(SOON, "nor has the process", || !bench.has_open_transaction());
    drop(load);
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
    let before = look(&daemon);
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
    // If it were to go on like this, the alert would say so; and that the group does not settle, as each new client joins it.
    await_metric(&daemon, "millrace_consumer_lag_records", "copy", |records| records == 0.0);
    await_metric(&daemon, "millrace_source_blocked_seconds", "copy", |seconds| seconds > 0.0);
    let blocked =
        format!(r#"alertname="MillraceSourceBlocked",severity="ticket",route="copy",topic="{}""#, bench.source);
    assert_fires(
        &[("a", &[before, look(&daemon)])],
        &[
            r#"alertname="MillraceClientStalled",severity="ticket",route="copy""#,
            r#"alertname="MillraceRebalancing",severity="ticket",route="copy""#,
            &blocked,
        ],
    );
}

#[test]
fn a_route_that_tries_again_by_itself_is_waiting_all_along() {
    let config = Config::new(
        &shared().bootstrap,
        &[],
        &format!(
            "routes:\n  r: {{ source: {{ topics: [{}], start: earliest }}, destinations: [{{ topic: out }}] }}\n",
            unique("missing")
        ),
    );
    let daemon = Daemon::start(config.path());
    daemon.await_state("r", "waiting", PATIENCE);
    let (mut attempts, until) = (BTreeSet::new(), Instant::now() + PATIENCE);
    // (an attempt takes a moment, so it is asked without a pause)
    while attempts.len() <= 5 {
        let route = daemon.route("r");
        assert_eq!(route["state"], "waiting", "{route}");
        attempts.insert(route["next_attempt"].to_string());
        assert!(Instant::now() < until, "{attempts:?}");
    }
}

#[test]
fn a_worker_with_nothing_to_send_lets_its_producer_go_and_makes_another_when_there_is_something() {
    let mut bench = Bench::new(shared(), 1, "", "");
    let daemon = Daemon::start(bench.config.path());
    bench.send(10, 1);
    bench.await_committed();
    let threads = || daemon.metric("process_threads", &[]).expect("it is told");
    let at_work = threads();
    // (three of librdkafka's at least: its own, and one for each connection)
    wait_until(PATIENCE, "the producer's threads are gone", || threads() <= at_work - 3.0);
    assert_eq!(daemon.route("copy")["state"], "running");
    bench.send(10, 1);
    bench.await_committed();
    bench.assert_exact(1);
    assert_eq!(threads(), at_work);
}

/// Copies what it is given into a file, until it is stopped.
struct Reader(Child);

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_route_and_no_shutdown() {
    let mut bench = Bench::new(shared(), 1, "", "");
    bench.config.edit(|text| text.replacen("bootstrap.servers", "debug: all, bootstrap.servers", 1));
    let log = scratch("unread").with_extension("log");
    let (mut reader, mut pipe) = (None, None);
    let mut daemon = Daemon::spawn_logging_to(log.clone(), bench.config.path(), |command| {
        let file = File::create(&log).expect("a file");
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(file).spawn().expect("cat runs");
        let stdin = OwnedFd::from(cat.stdin.take().expect("it is piped"));
        pipe = Some(stdin.try_clone().expect("a second handle"));
        command.stderr(stdin).env("MILLRACE_LOG", "trace");
        reader = Some(Reader(cat));
    });
    bench.send(10, 1);
    bench.await_committed();
    let (reader, pipe) = (reader.expect("it was started"), pipe.expect("it was made"));
    rustix::process::kill_process(Pid::from_child(&reader.0), Signal::STOP).expect("it runs");
    // (one page is the least that a pipe can be made to hold)
    let holds = rustix::pipe::fcntl_setpipe_size(&pipe, 4096).expect("it is a pipe") as u64;
    wait_until(PATIENCE, "the pipe is full", || {
        bench.send(10, 1);
        daemon.get("/readyz");
        rustix::io::ioctl_fionread(&pipe).expect("it is a pipe") > holds * 15 / 16
    });
    bench.send(100, 1);
    bench.await_committed();
    bench.assert_exact(1);
    assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
}
