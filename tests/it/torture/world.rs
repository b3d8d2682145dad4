//! The system of a run: brokers, a few processes that share the groups of three routes, and how each [`Action`] is done to them.
//! Knows nothing about what should have arrived.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::checkers::POISON;
use super::events::{Action, Assignment, Membership, Node, SLOTS, Shape};
use crate::support::config::{Config, head_with, plugin};
use crate::support::daemon::Daemon;
use crate::support::kafka::{Cluster, Isolation, Kafka, TransactionWatch};
use crate::support::{scratch, unique, wait_until};

pub(crate) const ROUTES: [&str; 3] = ["exactly_once", "at_least_once", "at_most_once"];
pub(crate) const SOURCE_PARTITIONS: i32 = 4;
/// More than the source has, so that the records of each of its partitions are spread.
const PARTITIONS: i32 = 6;
/// `session.timeout.ms`, in all protocols.
pub(crate) const SESSION: Duration = Duration::from_secs(6);
pub(crate) const TRANSACTION: Duration = Duration::from_secs(6);
/// `shutdown_timeout`: longer than a transaction may take.
const SHUTDOWN: Duration = Duration::from_secs(15);
/// For the kernel, or a broker that is well, to do what it is asked.
const PATIENCE: Duration = Duration::from_secs(60);
/// For a process to be within a transaction when it is at fault: several times as long as one takes to come.
const AIM: Duration = Duration::from_secs(1);
/// For a cluster to be at work again after a fault of a broker.
const SETTLED: Duration = Duration::from_secs(20);
/// Server properties: sessions of the `consumer` protocol that are as short as those of the other.
const SERVER: [&str; 4] = [
    "group.consumer.min.session.timeout.ms=6000",
    "group.consumer.session.timeout.ms=6000",
    "group.consumer.min.heartbeat.interval.ms=1000",
    "group.consumer.heartbeat.interval.ms=1500",
];

/// All of it. Gone with the value; the logs of the processes stay until [`World::forget_logs`].
pub(crate) struct World {
    kafka: Kafka,
    cluster: Option<Arc<Cluster>>,
    shape: Shape,
    mutation: Option<String>,
    prefix: String,
    pub(crate) topics: Topics,
    watch: TransactionWatch,
    config: Config,
    /// The configuration's number.
    version: usize,
    slots: [Slot; SLOTS],
    /// The node that is killed, shut down or stopped.
    faulty: Option<u8>,
    /// Somebody who starts a node, or moves leaders.
    working: Option<JoinHandle<()>>,
    /// From when to when a broker was last at fault.
    broken: Option<(Instant, Instant)>,
    /// The longest that a broker was at fault, or a process was stopped.
    pub(crate) longest: Duration,
    /// Processes that were told to end.
    ending: Vec<Ending>,
    /// Where the logs are.
    pub(crate) logs: PathBuf,
    started: usize,
    /// What no process may do, and one did.
    pub(crate) complaints: Vec<String>,
    /// Processes that did not drain in time, with a broker at fault.
    pub(crate) late_ends: usize,
    /// Faults of a broker that were left out, for replicas were not in sync.
    pub(crate) left_out: usize,
}

pub(crate) struct Topics {
    pub(crate) source: String,
    /// In the order of [`ROUTES`].
    pub(crate) destinations: [String; 3],
    pub(crate) dead: String,
}

impl Topics {
    /// Those that exactly once writes to.
    pub(crate) fn transactional(&self) -> [&str; 2] {
        [&self.destinations[0], &self.dead]
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        self.destinations.iter().chain([&self.source, &self.dead])
    }
}

/// A place for a process, and for one more of the same name.
#[derive(Default)]
struct Slot {
    daemon: Option<Daemon>,
    twin: Option<Daemon>,
    is_stopped: bool,
    /// To be started once its predecessor has ended.
    is_due: bool,
}

/// A process that was told to end (SIGTERM).
struct Ending {
    slot: usize,
    daemon: Daemon,
    since: Instant,
}

impl World {
    /// Starts everything but the processes.
    pub(crate) fn start(seed: u64, shape: &Shape, bootstrap: Option<&str>, mutation: Option<&str>) -> Self {
        let cluster = shape.nodes.map(|nodes| {
            // A node alone that is stopped is not taken for dead: it would be without leaders when it is back, and Kafka
            // pass over partitions as it ends transactions (see `Plan::new`), those of the groups' offsets among them.
            let alone = (nodes == 1).then_some("broker.session.timeout.ms=120000");
            Arc::new(Cluster::start_with(nodes, &SERVER.into_iter().chain(alone).collect::<Vec<_>>()))
        });
        let kafka = match (&cluster, bootstrap) {
            (Some(cluster), _) => Kafka::clone(cluster),
            (None, bootstrap) => Kafka { bootstrap: bootstrap.expect("an address, or nodes of our own").to_owned() },
        };
        let topics = Topics {
            source: unique("torture"),
            destinations: ["exactly", "at-least", "at-most"].map(unique),
            dead: unique("dead"),
        };
        kafka.create_topic(&topics.source, SOURCE_PARTITIONS, &[("retention.ms", "-1")]);
        let written = [&topics.destinations[..], std::slice::from_ref(&topics.dead)].concat();
        kafka.create_topics(&written, PARTITIONS, &[("retention.ms", "-1")]);
        let watch = kafka.transaction_watch(&topics.destinations[0], 0);
        let logs = scratch(&format!("torture-{seed}"));
        std::fs::create_dir_all(&logs).expect("a directory for logs");
        let prefix = unique("torture");
        let world = Self {
            kafka,
            cluster,
            shape: *shape,
            mutation: mutation.map(str::to_owned),
            prefix,
            watch,
            topics,
            config: Config::of(""),
            version: 0,
            slots: Default::default(),
            faulty: None,
            working: None,
            broken: None,
            longest: Duration::ZERO,
            ending: Vec::new(),
            logs,
            started: 0,
            complaints: Vec::new(),
            late_ends: 0,
            left_out: 0,
        };
        world.config.write(&world.yaml());
        world
    }

    pub(crate) fn kafka(&self) -> &Kafka {
        &self.kafka
    }

    pub(crate) fn group(&self, route: &str) -> String {
        format!("{}.{route}", self.prefix)
    }

    /// Starts each process that does not run, but the one that only comes for a while.
    pub(crate) fn start_missing(&mut self) {
        for slot in 0..SLOTS - 1 {
            if self.slots[slot].daemon.is_none() {
                self.apply(&Action::Start(slot));
            }
        }
    }

    /// Does it. The start of a broker, and the end of a process that was told to, go on beside.
    pub(crate) fn apply(&mut self, action: &Action) {
        if action.takes_by_surprise() {
            self.aim();
        }
        match *action {
            Action::Kill(slot) => {
                if let Some(mut daemon) = self.slots[slot].daemon.take() {
                    daemon.kill9();
                }
            }
            Action::Abort(slot) => self.crash(slot, Signal::ABORT),
            Action::Segfault(slot) => self.crash(slot, Signal::SEGV),
            Action::Terminate(slot) => {
                let daemon = self.slots[slot].daemon.take();
                self.terminate(slot, daemon);
            }
            Action::Start(slot) => {
                self.slots[slot].is_due = self.slots[slot].daemon.is_none();
                self.start_due();
            }
            Action::Stop(slot, length) => {
                self.longest = self.longest.max(length);
                self.halt(slot, Signal::STOP);
            }
            Action::Continue(slot) => self.halt(slot, Signal::CONT),
            Action::StartTwin(slot) => self.slots[slot].twin = Some(self.launch(slot)),
            Action::EndElder(slot) => {
                let twin = self.slots[slot].twin.take();
                let elder = std::mem::replace(&mut self.slots[slot].daemon, twin);
                self.terminate(slot, elder);
            }
            Action::EndTwin(slot) => {
                let twin = self.slots[slot].twin.take();
                self.terminate(slot, twin);
            }
            Action::KillBroker(node) => self.break_broker(node, Cluster::kill),
            Action::ShutDownBroker(node) => self.break_broker(node, Cluster::shut_down),
            Action::StopBroker(node) => self.break_broker(node, Cluster::stop),
            Action::StartBroker => {
                if let (Some(node), Some(cluster)) = (self.faulty.take(), self.cluster.clone()) {
                    self.working = Some(std::thread::spawn(move || cluster.restart(node)));
                }
            }
            Action::ContinueBroker => {
                if let (Some(node), Some(cluster)) = (self.faulty.take(), &self.cluster) {
                    cluster.cont(node);
                }
            }
            Action::MoveLeaders => {
                self.await_broker();
                let kafka = self.kafka.clone();
                self.working = Some(std::thread::spawn(move || {
                    kafka.tool("LeaderElectionCommand", &["--election-type", "preferred", "--all-topic-partitions"]);
                }));
            }
            Action::Reload => {
                self.version += 1;
                self.put(&self.yaml());
            }
            Action::BreakConfig => self.break_config(),
        }
    }

    /// Waits for a transaction to be open: at any moment most of the time none is, and a fault that hits none shows little.
    fn aim(&self) {
        let began = Instant::now();
        while began.elapsed() < AIM && self.watch.is_open() == Some(false) {}
    }

    /// Looks after what goes on beside: whoever has ended by itself, or not in time, is complained of.
    pub(crate) fn look(&mut self) {
        if self.faulty.is_some() || self.working.as_ref().is_some_and(|working| !working.is_finished()) {
            let now = Instant::now();
            let (from, until) = self.broken.get_or_insert((now, now));
            *until = now;
            self.longest = self.longest.max(now - *from);
        }
        for (number, slot) in self.slots.iter_mut().enumerate() {
            for place in [&mut slot.daemon, &mut slot.twin] {
                let Some(status) = place.as_mut().and_then(Daemon::ended) else { continue };
                self.complaints.push(format!("liveness: process {number} ended by itself: {status}"));
                *place = None;
            }
        }
        for mut ending in std::mem::take(&mut self.ending) {
            match ending.daemon.ended() {
                None if ending.since.elapsed() < SHUTDOWN + PATIENCE => self.ending.push(ending),
                status => self.judge(&ending, status),
            }
        }
        self.start_due();
    }

    fn judge(&mut self, ending: &Ending, status: Option<ExitStatus>) {
        match status.map(|status| status.code()) {
            Some(Some(0)) => {}
            // (as its documentation has it)
            Some(Some(1)) if self.broken.is_some_and(|(_, until)| ending.since < until + SETTLED) => {
                self.late_ends += 1
            }
            _ => {
                let said = ending.daemon.log().lines().last().unwrap_or_default().to_owned();
                self.complaints.push(format!("liveness: process {} on SIGTERM: {status:?}: {said}", ending.slot));
            }
        }
    }

    fn start_due(&mut self) {
        for slot in 0..SLOTS {
            if self.slots[slot].is_due && self.ending.iter().all(|ending| ending.slot != slot) {
                self.slots[slot].daemon = Some(self.launch(slot));
                self.slots[slot].is_due = false;
            }
        }
    }

    fn await_ends(&mut self) {
        wait_until(SHUTDOWN + 2 * PATIENCE, "the processes end that were told to", || {
            self.look();
            self.ending.is_empty()
        });
    }

    /// Nothing is stopped, killed or doubled any more.
    pub(crate) fn mend(&mut self) {
        let is_stopped = |node: u8| self.cluster.as_ref().is_some_and(|cluster| cluster.has_process(node));
        match self.faulty {
            Some(node) if is_stopped(node) => self.apply(&Action::ContinueBroker),
            Some(_) => self.apply(&Action::StartBroker),
            None => {}
        }
        self.await_broker();
        for slot in 0..SLOTS {
            if self.slots[slot].is_stopped {
                self.apply(&Action::Continue(slot));
            }
            if self.slots[slot].twin.is_some() {
                self.apply(&Action::EndElder(slot));
            }
        }
        self.apply(&Action::Terminate(SLOTS - 1));
        self.slots[SLOTS - 1].is_due = false;
        self.await_ends();
        self.start_missing();
    }

    /// The partitions of a route's source that its group has not committed to the end: up to where it has, and the end;
    /// `None` if that cannot be told now.
    pub(crate) fn left(&self, route: &str) -> Option<BTreeMap<i32, (Option<i64>, i64)>> {
        let ends = self.kafka.end_offsets(&self.topics.source, Isolation::ReadUncommitted);
        let committed = self.kafka.try_committed(&self.group(route), &self.topics.source)?;
        let both = ends.into_iter().map(|(partition, end)| (partition, (committed.get(&partition).copied(), end)));
        Some(both.filter(|(_, (committed, end))| *committed != Some(*end)).collect())
    }

    /// Topics in which transactions write, those of the groups' offsets included where nobody else has groups.
    pub(crate) fn transactional(&self) -> Vec<String> {
        let ours = self.topics.transactional().map(str::to_owned);
        ours.into_iter().chain(self.cluster.is_some().then(|| "__consumer_offsets".to_owned())).collect()
    }

    /// The partitions of a topic in which a transaction is open: up to where they are stable, and the end.
    pub(crate) fn held(&self, topic: &str) -> BTreeMap<i32, (i64, i64)> {
        let ends = |isolation| self.kafka.end_offsets(topic, isolation);
        let (stable, high) = (ends(Isolation::ReadCommitted), ends(Isolation::ReadUncommitted));
        let both = stable.into_iter().map(|(partition, stable)| (partition, (stable, high[&partition])));
        both.filter(|(_, (stable, high))| stable < high).collect()
    }

    /// What the processes say of a route.
    pub(crate) fn told(&self, route: &str) -> String {
        let told = |(number, slot): (usize, &Slot)| {
            slot.daemon.as_ref().map(|daemon| format!("process {number}: {}", daemon.route(route)))
        };
        self.slots.iter().enumerate().filter_map(told).collect::<Vec<_>>().join("; ")
    }

    /// How often a client was made anew because nothing came of it.
    pub(crate) fn deaf(&self) -> usize {
        let logs = std::fs::read_dir(&self.logs).expect("the directory for logs");
        let said = logs.filter_map(|log| std::fs::read_to_string(log.ok()?.path()).ok());
        said.map(|said| said.matches("the client is made anew").count()).sum()
    }

    /// The routes that do not run, and why.
    pub(crate) fn not_running(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (number, daemon) in self.slots.iter().enumerate().filter_map(|(n, slot)| Some((n, slot.daemon.as_ref()?))) {
            for route in ROUTES {
                let status = daemon.route(route);
                if status["state"] != "running" {
                    found.push(format!("{route} of process {number}: {} {}", status["state"], status["reason"]));
                }
            }
        }
        found
    }

    /// Ends all processes in an orderly way.
    pub(crate) fn shut_down(&mut self) {
        for slot in 0..SLOTS {
            self.apply(&Action::Terminate(slot));
        }
        self.await_ends();
    }

    /// Copies the brokers' logs and data beside the processes' logs.
    pub(crate) fn preserve(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.copy_to(&self.logs.join("cluster"));
        }
    }

    /// Takes away what a run without complaints leaves.
    pub(crate) fn forget(&self) {
        let _ = std::fs::remove_dir_all(&self.logs);
    }

    fn launch(&mut self, slot: usize) -> Daemon {
        self.started += 1;
        let log = self.logs.join(format!("process{slot}-{}.log", self.started));
        let mutation = self.mutation.clone();
        Daemon::spawn_logging_to(log, self.config.path(), |command| {
            command.env("TORTURE_INSTANCE", format!("node-{slot}"));
            if let Some(mutation) = mutation {
                command.env("MILLRACE_MUTATION", mutation);
            }
        })
    }

    fn crash(&mut self, slot: usize, signal: Signal) {
        if let Some(mut daemon) = self.slots[slot].daemon.take() {
            // Again and again: wasmtime lets the first SIGSEGV pass, for one of a real fault comes back.
            wait_until(PATIENCE, "a process that crashes ends", || {
                daemon.signal(signal);
                daemon.ended().is_some()
            });
        }
    }

    fn halt(&mut self, slot: usize, signal: Signal) {
        let place = &mut self.slots[slot];
        if let Some(daemon) = &place.daemon {
            daemon.signal(signal);
            place.is_stopped = signal == Signal::STOP;
        }
    }

    fn terminate(&mut self, slot: usize, daemon: Option<Daemon>) {
        let Some(daemon) = daemon else { return };
        daemon.signal(Signal::TERM);
        self.ending.push(Ending { slot, daemon, since: Instant::now() });
    }

    fn break_broker(&mut self, node: Node, how: impl FnOnce(&Cluster, u8)) {
        self.await_broker();
        self.broken = None;
        let Some(cluster) = self.cluster.clone() else { return };
        // Another fault while replicas still catch up would leave partitions without a leader: see the plan.
        if !self.kafka.is_in_sync() {
            self.left_out += 1;
            return;
        }
        let node = match node {
            Node::Number(node) => node,
            Node::GroupCoordinator => self.kafka.group_coordinator(&self.group(ROUTES[0])).unwrap_or(1),
            // (where membership is dynamic an id holds a random word: then it is somebody's coordinator)
            Node::TransactionCoordinator => {
                let id = format!("{}.{}.node-0.0", self.prefix, self.group(ROUTES[0]));
                self.kafka.transaction_coordinator(&id).unwrap_or(1)
            }
        };
        how(&cluster, node);
        self.faulty = Some(node);
    }

    /// Waits until what is being done to a broker is done.
    fn await_broker(&mut self) {
        if let Some(working) = self.working.take() {
            working.join().expect("the broker does what it is told");
        }
    }

    fn put(&self, yaml: &str) {
        self.config.put("millrace.yaml", yaml.as_bytes());
    }

    /// All that can hear of it must refuse it. No process is started meanwhile: it would be right to end.
    fn break_config(&mut self) {
        let hears: Vec<&Daemon> =
            self.slots.iter().filter(|slot| !slot.is_stopped).filter_map(|slot| slot.daemon.as_ref()).collect();
        let rejected = |daemon: &Daemon| daemon.reloads("rejected");
        let before: Vec<f64> = hears.iter().map(|daemon| rejected(daemon)).collect();
        self.put(&format!("{}no_such_key: {}\n", self.yaml(), self.version));
        wait_until(PATIENCE, "a broken configuration is refused", || {
            hears.iter().zip(&before).all(|(daemon, before)| rejected(daemon) > *before)
        });
        self.put(&self.yaml());
    }

    fn yaml(&self) -> String {
        let Self { topics: Topics { source, destinations, dead }, version, .. } = self;
        let [exactly, at_least, at_most] = destinations;
        let consumer = match self.shape.assignment {
            Assignment::Cooperative => session("cooperative-sticky"),
            Assignment::Eager => session("range"),
            Assignment::Consumer => "group.protocol: consumer".to_owned(),
        };
        let kafka = format!(
            ", producer: {{ transaction.timeout.ms: {}, socket.timeout.ms: 4000 }}, consumer: {{ {consumer} }}",
            TRANSACTION.as_millis()
        );
        let instance = match self.shape.membership {
            Membership::Static => "instance: \"${TORTURE_INSTANCE}\"\n",
            Membership::Dynamic => "",
        };
        // What a reload changes: everything that is taken up in place.
        let (every, records) = ([150, 300, 600][version % 3], [500, 200, 1_000][version / 2 % 3]);
        format!(
            "{head}{instance}shutdown_timeout: {shutdown}s
plugins:
  flaky: {{ path: \"{flaky}\" }}
  stamp: {{ path: \"{stamp}\" }}
defaults: {{ transaction: {{ interval: 100ms, records: {records} }} }}
routes:
  exactly_once:
    source: {{ topics: [{source}], start: earliest }}
    pipeline:
      - {{ plugin: flaky, config: {{ every: {every}, poison: {POISON} }} }}
      - {{ plugin: stamp, config: {{ name: configuration, value: \"{version}\" }} }}
    destinations: [{{ topic: {exactly} }}]
    on_error: {{ retry: {{ attempts: 3, backoff: 10ms }}, then: {{ dead_letter: {dead} }} }}
  at_least_once:
    source: {{ topics: [{source}], start: earliest }}
    destinations: [{{ topic: {at_least} }}]
    delivery: at_least_once
  at_most_once:
    source: {{ topics: [{source}], start: earliest }}
    destinations: [{{ topic: {at_most} }}]
    delivery: at_most_once
",
            head = head_with(&self.kafka.bootstrap, &self.prefix, &kafka),
            shutdown = SHUTDOWN.as_secs(),
            flaky = plugin("flaky").display(),
            stamp = plugin("stamp").display(),
        )
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            *slot = Slot::default();
        }
        if let Some(working) = self.working.take() {
            // (a failure: the run has another to tell)
            let _ = working.join();
        }
        if self.cluster.is_none() {
            // Somebody's cluster is left as it was found.
            self.topics.all().for_each(|topic| self.kafka.delete_topic(topic));
        }
    }
}

fn session(strategy: &str) -> String {
    let session = SESSION.as_millis();
    format!("session.timeout.ms: {session}, heartbeat.interval.ms: 1500, partition.assignment.strategy: {strategy}")
}
