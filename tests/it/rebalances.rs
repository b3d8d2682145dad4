//! Who works on which partition, and what it costs when that changes: protocols of groups, members that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{ConsumedRecord, Isolation, Kafka, Record, impatient};
use crate::support::load::Load;
use crate::support::{unique, wait_for, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

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
            kafka().create_topic(topic, partitions, &[("message.timestamp.type", "LogAppendTime")]);
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

    fn owned(&self, daemon: &Daemon) -> Vec<BTreeSet<i64>> {
        owned(daemon, &self.source)
    }

    /// The longest time between two records of each partition that arrived since `began`, in ms.
    fn pauses(&self, began: i64) -> BTreeMap<i64, i64> {
        let mut times: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for record in kafka().kcat_consume(&self.destination, Isolation::ReadCommitted) {
            times.entry(record.partition.into()).or_default().push(record.timestamp);
        }
        let longest = |times: Vec<i64>| {
            let since = times.partition_point(|time| *time < began).saturating_sub(1);
            times[since..].windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
        };
        times.into_iter().map(|(partition, times)| (partition, longest(times))).collect()
    }
}

/// In ms since 1970, as the broker counts.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
    i64::try_from(since.as_millis()).expect("and not that much")
}

fn kafka() -> &'static Kafka {
    impatient()
}

/// The partitions of `topic` that each worker of a process owns.
fn owned(daemon: &Daemon, topic: &str) -> Vec<BTreeSet<i64>> {
    let route = daemon.route("copy");
    let workers = route["workers"].as_array().map_or(0, Vec::len);
    (0..workers).map(|worker| assignment(&route, worker, topic)).collect()
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

#[test]
fn a_named_instance_that_was_killed_waits_in_the_consumer_protocol_until_the_broker_has_given_it_up_and_goes_on() {
    let mut topics = Topics::new(2);
    let config = topics.config("instance: killed", "group.protocol: consumer", "");
    topics.send(200);
    let mut daemon = Daemon::start(config.path());
    daemon.await_consumed("copy", 50, PATIENCE);
    daemon.kill9();
    let mut daemon = Daemon::start(config.path());
    wait_until(PATIENCE, "it says what it waits for", || {
        let log = daemon.log();
        log.contains("code=\"UNRELEASED_INSTANCE_ID\"") && log.contains("group.consumer.session.timeout.ms")
    });
    topics.send(200);
    topics.await_committed();
    daemon.await_state("copy", "running", PATIENCE);
    topics.assert_exact();
    // An orderly restart is let in at once: its place is kept for it.
    assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
    topics.send(20);
    let daemon = Daemon::start(config.path());
    topics.await_committed();
    assert!(!daemon.log().contains("UNRELEASED_INSTANCE_ID"), "{}", daemon.log());
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

#[test]
fn in_the_consumer_protocol_the_younger_waits_until_the_older_is_fenced_by_its_next_transaction_and_leaves() {
    let mut topics = Topics::new(2);
    // (one configuration for both: the transactional id has the prefix in it)
    let config = topics.config("instance: twin", "group.protocol: consumer", "");
    let older = Daemon::start(config.path());
    wait_until(PATIENCE, "the older works", || topics.owned(&older)[0].len() == 2);
    let younger = Daemon::start(config.path());
    wait_until(PATIENCE, "the younger is refused", || younger.log().contains("code=\"UNRELEASED_INSTANCE_ID\""));
    topics.send(100);
    let reason = older.await_state("copy", "failed", PATIENCE);
    assert!(reason.contains("duplicate_instance: "), "{reason}");
    younger.await_state("copy", "running", PATIENCE);
    topics.await_committed();
    topics.assert_exact();
}

// ---- members that come and go ---------------------------------------------------------------------------------------

type Owners = BTreeMap<String, BTreeSet<i64>>;

/// What a change of a group's members costs while records flow.
struct Moves {
    /// Partitions with another owner than before.
    moved: BTreeSet<i64>,
    /// The longest time between two records of each partition, in ms of the destination's clock.
    pauses: BTreeMap<i64, i64>,
}

impl Moves {
    /// `change` makes a member join. `owners` answers what each has, with what `change` has made.
    fn during<T>(topics: &Topics, owners: impl Fn(Option<&T>) -> Owners, change: impl FnOnce() -> T) -> (T, Self) {
        let ends = || kafka().end_offsets(&topics.destination, Isolation::ReadCommitted);
        let all_flow = || {
            let before = ends();
            wait_until(PATIENCE, "every partition flows", || ends().iter().all(|(at, end)| *end > before[at]));
        };
        all_flow();
        let (before, began) = (owners(None), now());
        let made = change();
        let mut after = Owners::new();
        wait_until(PATIENCE, "the new member has its share", || {
            after = owners(Some(&made));
            let shares: Vec<usize> = after.values().map(BTreeSet::len).collect();
            // (on the way there some may have moved, and others not yet)
            let is_even = shares.iter().max() <= shares.iter().min().map(|least| least + 1).as_ref();
            shares.iter().sum::<usize>() == topics.partitions as usize && after.len() > before.len() && is_even
        });
        all_flow();
        let owner = |owners: &Owners, partition: i64| {
            owners.iter().find(|(_, owned)| owned.contains(&partition)).map(|(member, _)| member.clone())
        };
        let all = 0..i64::from(topics.partitions);
        let moved = all.filter(|at| owner(&before, *at) != owner(&after, *at)).collect();
        (made, Self { moved, pauses: topics.pauses(began) })
    }

    #[track_caller]
    fn check(&self, what: &str, share: usize) {
        let longest = |moved: bool| {
            let of = self.pauses.iter().filter(|(partition, _)| self.moved.contains(partition) == moved);
            of.map(|(_, pause)| *pause).max().unwrap_or_default()
        };
        let (moved, stayed) = (longest(true), longest(false));
        println!("{what}: moved {:?}, longest pause {moved} ms; of those that stayed {stayed} ms", self.moved);
        assert_eq!(self.moved.len(), share, "{what}: only the share of the new member moves");
        assert!(moved < 10_000 && stayed < 5_000, "{what}: {:?}", self.pauses);
    }
}

/// A name for each worker of a process, and what it owns.
fn members(process: &str, daemon: &Daemon, topic: &str) -> Owners {
    let owned = owned(daemon, topic).into_iter().enumerate();
    owned.map(|(worker, owned)| (format!("{process}.{worker}"), owned)).collect()
}

#[test]
fn a_worker_or_an_instance_that_is_added_moves_only_its_share_in_the_classic_protocol() {
    check_joins("classic");
}

#[test]
fn a_worker_or_an_instance_that_is_added_moves_only_its_share_in_the_consumer_protocol() {
    check_joins("consumer");
}

fn check_joins(protocol: &str) {
    let topics = Topics::new(6);
    let protocol_of = format!("group.protocol: {protocol}");
    let (here, there) = (topics.config("", &protocol_of, "workers: 2"), topics.config("", &protocol_of, "workers: 1"));
    let source = &topics.source;
    let load = Load::start(kafka(), source, 6, 300);
    let one = Daemon::start(here.path());
    let owners = |_: Option<&()>| members("one", &one, source);
    wait_until(PATIENCE, "each worker has its share", || owners(None).values().map(BTreeSet::len).eq([3, 3]));
    let more = || here.edit(|yaml| yaml.replace("workers: 2", "workers: 3"));
    Moves::during(&topics, owners, more).1.check(&format!("{protocol}: a worker more"), 2);

    let owners = |other: Option<&Daemon>| {
        let mut owners = members("one", &one, source);
        owners.extend(other.map(|other| members("other", other, source)).unwrap_or_default());
        owners
    };
    let (other, moves) = Moves::during(&topics, owners, || Daemon::start(there.path()));
    moves.check(&format!("{protocol}: an instance more"), 1);

    // A worker less gives back what it had, and nothing else moves.
    let before = owners(Some(&other));
    here.edit(|yaml| yaml.replace("workers: 3", "workers: 2"));
    wait_until(PATIENCE, "the others have taken it over", || {
        let after = owners(Some(&other));
        let kept = after.iter().all(|(member, owned)| owned.is_superset(&before[member]));
        kept && !after.contains_key("one.2") && after.values().map(BTreeSet::len).sum::<usize>() == 6
    });
    one.await_state("copy", "running", PATIENCE);
    let sent = load.stop();
    topics.await_committed();
    sent.assert_whole(&kafka().kcat_consume(&topics.destination, Isolation::ReadCommitted), protocol);
}

#[test]
fn a_rolling_restart_of_all_named_instances_moves_no_partition() {
    let topics = Topics::new(6);
    let configs = ["red", "green", "blue"].map(|name| topics.config(&format!("instance: {name}"), "", ""));
    let mut daemons = configs.each_ref().map(|config| Daemon::start(config.path()));
    let owners = |daemons: &[Daemon; 3]| daemons.each_ref().map(|daemon| topics.owned(daemon)[0].clone());
    wait_until(PATIENCE, "each has two partitions", || owners(&daemons).iter().all(|owned| owned.len() == 2));
    let load = Load::start(kafka(), &topics.source, 6, 300);
    // One of them may not have been told yet that it gets no more: records come behind that.
    wait_until(PATIENCE, "all work", || kafka().committed(&topics.group, &topics.source).values().all(|end| *end > 50));
    let (before, began) = (owners(&daemons), now());
    let rebalances = |daemon: &Daemon| daemon.metric("millrace_rebalances_total", &[("route", "copy")]);
    for number in 0..3 {
        let told = daemons.each_ref().map(rebalances);
        assert_eq!(daemons[number].sigterm_and_wait(PATIENCE), Some(0));
        daemons[number] = Daemon::start(configs[number].path());
        wait_until(PATIENCE, "it has its partitions again", || owners(&daemons)[number] == before[number]);
        for other in (0..3).filter(|other| *other != number) {
            assert_eq!(rebalances(&daemons[other]), told[other], "another member notices nothing");
        }
    }
    assert_eq!(owners(&daemons), before);
    let sent = load.stop();
    topics.await_committed();
    println!("a rolling restart: the longest pauses were {:?} ms", topics.pauses(began));
    sent.assert_whole(&kafka().kcat_consume(&topics.destination, Isolation::ReadCommitted), "a rolling restart");
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
