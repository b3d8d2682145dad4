//! Of many routes only those act that a reload concerns, whatever it does with them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{FOR_EVER, PATIENCE, STAMP, actions, await_generation, generation, rebalances, reload, stamping};
use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{ConsumedRecord, Record, shared};
use crate::support::load::{Load, Sent};
use crate::support::{unique, wait_for, wait_until};

/// What is seen of a route that nothing touched: its state and since when, its workers with their generations and
/// partitions, and how often these came or went.
type Seen = BTreeMap<String, (Value, Value, Value, Option<String>)>;

fn seen(daemon: &Daemon) -> Seen {
    let rebalances = rebalances(daemon);
    let status = daemon.get("/api/v1/status").json();
    let routes = status["routes"].as_object().expect("routes by name").iter();
    let of = |route: &Value, key: &str| route[key].clone();
    let all = routes.map(|(name, route)| {
        let seen = (of(route, "state"), of(route, "since"), of(route, "workers"), rebalances.get(name).cloned());
        (name.clone(), seen)
    });
    all.collect()
}

fn seen_but(daemon: &Daemon, touched: &[&str]) -> Seen {
    let mut all = seen(daemon);
    all.retain(|name, _| !touched.contains(&name.as_str()));
    all
}

/// Waits until these routes, and no others but disabled ones, run and own partitions.
#[track_caller]
fn await_running(daemon: &Daemon, names: &BTreeSet<String>) {
    wait_until(PATIENCE, "the routes run and own partitions", || {
        let status = daemon.get("/api/v1/status").json();
        let routes = status["routes"].as_object().expect("routes by name");
        let mut live = routes.iter().filter(|(_, route)| route["state"] != "disabled");
        let owns = |route: &Value| {
            let workers = route["workers"].as_array().into_iter().flatten();
            workers.clone().count() > 0
                && workers.into_iter().all(|w| w["assignment"].as_object().is_some_and(|a| !a.is_empty()))
        };
        live.clone().map(|(name, _)| name).eq(names)
            && live.all(|(_, route)| route["state"] == "running" && owns(route))
    });
}

fn names(of: impl IntoIterator<Item = impl ToString>) -> BTreeSet<String> {
    of.into_iter().map(|name| name.to_string()).collect()
}

// ---- one of a hundred -----------------------------------------------------------------------------------------------

const ROUTES: usize = 100;
/// Milliseconds of preparation that any change may take: a hundred routes are read anew each time, but nothing is built that
/// stays as it is. Generous, for a build without optimisation on a machine that has other work.
const PREPARATION: u64 = 1_000;

/// A hundred routes, each with a source and a destination of its own; those of even numbers with the plugin.
struct Hundred {
    prefix: String,
    daemon: Daemon,
    config: Config,
    took_to_add: Duration,
}

fn route_name(number: usize) -> String {
    format!("r{number:02}")
}

impl Hundred {
    /// Starts with the first route alone, and adds the others by a reload. Returns what is told of that.
    fn start() -> (Self, Value) {
        let prefix = unique("hundred");
        let topics = |kind: &str| (0..ROUTES).map(|n| format!("{prefix}.{kind}.{n:02}")).collect::<Vec<_>>();
        shared().create_topics(&[topics("in"), topics("out"), vec![format!("{prefix}.more")]].concat(), 1, &[FOR_EVER]);
        let config = stamping(&shared().bootstrap, &format!("routes:\n{}", Self::route(&prefix, 0)));
        let daemon = Daemon::start(config.path());
        await_running(&daemon, &names(["r00"]));
        config.edit(|yaml| (1..ROUTES).fold(yaml.to_owned(), |yaml, n| yaml + &Self::route(&prefix, n)));
        let began = Instant::now();
        let added = reload(&daemon);
        await_running(&daemon, &(0..ROUTES).map(route_name).collect());
        (Self { prefix, daemon, config, took_to_add: began.elapsed() }, added)
    }

    fn route(prefix: &str, number: usize) -> String {
        let name = route_name(number);
        let steps = match number % 2 {
            0 => format!("{{ plugin: stamp, config: {{ name: {STAMP}, value: \"{name}\" }} }}"),
            _ => String::new(),
        };
        format!(
            "  {name}: {{ source: {{ topics: [{prefix}.in.{number:02}], start: earliest }}, pipeline: [{steps}], \
             destinations: [{{ topic: {prefix}.out.{number:02} }}] }}\n"
        )
    }

    /// Fails unless this was done with the route, and nothing with all others.
    #[track_caller]
    fn assert_alone(&self, route: &str, action: &str) {
        let mut actions = actions(&self.daemon.get("/api/v1/status").json());
        assert_eq!(actions.remove(route).as_deref(), Some(action));
        assert_eq!(actions.len(), ROUTES - 1);
        assert!(actions.values().all(|action| action == "unchanged"), "{actions:?}");
    }

    /// Sends a record to a topic, which the route of this number reads, and returns it as it arrives as the `nth`.
    #[track_caller]
    fn through(&self, topic: &str, number: usize, nth: usize) -> ConsumedRecord {
        shared().produce(&format!("{}.{topic}", self.prefix), &[Record::new("k", nth.to_string())]);
        let mut all = shared().await_records(&format!("{}.out.{number:02}", self.prefix), nth + 1, PATIENCE);
        all.remove(nth)
    }
}

#[test]
fn of_a_hundred_routes_only_the_one_that_changed_acts_and_the_reload_takes_time_for_that_one_alone() {
    let (hundred, added) = Hundred::start();
    let daemon = &hundred.daemon;

    let before = seen_but(daemon, &["r50"]);
    hundred.config.edit(|yaml| yaml.replace("value: \"r50\"", "value: \"changed\""));
    let began = Instant::now();
    let swapped = reload(daemon);
    await_generation(daemon, "r50", generation(&swapped));
    let swapped_within = began.elapsed();
    hundred.assert_alone("r50", "swapped");
    let changed = hundred.through("in.50", 50, 0);
    assert_eq!(changed.headers, [(STAMP.to_owned(), Some(b"changed".to_vec()))]);
    let other = hundred.through("in.52", 52, 0);
    assert_eq!(other.headers, [(STAMP.to_owned(), Some(b"r52".to_vec()))]);
    assert_eq!(seen_but(daemon, &["r50"]), before);

    let before = seen_but(daemon, &["r61"]);
    let topics = |more: &str| format!("topics: [{}.in.61{more}]", hundred.prefix);
    let more = format!(", {}.more", hundred.prefix);
    hundred.config.edit(|yaml| yaml.replace(&topics(""), &topics(&more)));
    let restarted = reload(daemon);
    await_generation(daemon, "r61", generation(&restarted));
    hundred.assert_alone("r61", "restarted");
    hundred.through("more", 61, 0);
    hundred.through("in.61", 61, 1);
    assert_eq!(seen_but(daemon, &["r61"]), before);

    for (told, what) in [(&added, "add 99 routes"), (&swapped, "swap one of 100"), (&restarted, "restart one of 100")] {
        eprintln!("{} ms of preparation to {what}", told["took_ms"]);
        assert!(told["took_ms"].as_u64() < Some(PREPARATION), "{told}");
    }
    let (all, one) = (hundred.took_to_add, swapped_within);
    eprintln!("{all:?} until 99 routes more ran, {one:?} until one went by its change");
    assert!(one < all / 4, "{one:?} for one route, {all:?} for 99");
}

// ---- added, removed, renamed, disabled ------------------------------------------------------------------------------

/// Longest time in which nothing of an untouched route was committed: what a busy machine takes, far more than it took.
const GAP: Duration = Duration::from_secs(5);

fn plain_route(prefix: &str, name: &str, topic: &str) -> String {
    format!(
        "  {name}: {{ source: {{ topics: [{prefix}.{topic}], start: earliest }}, destinations: [{{ topic: \
         {prefix}.{topic}-out }}] }}\n"
    )
}

/// Routes that come and go, and one under load that nothing touches.
struct Coming {
    prefix: String,
    daemon: Daemon,
    config: Config,
}

impl Coming {
    fn start(head: &str) -> Self {
        let prefix = unique("coming");
        let topics =
            ["goes", "old", "added", "rests"].map(|name| [format!("{prefix}.{name}"), format!("{prefix}.{name}-out")]);
        shared().create_topics(&topics.concat(), 1, &[FOR_EVER]);
        shared().create_topic(&format!("{prefix}.steady"), 2, &[FOR_EVER]);
        let by_arrival = ("message.timestamp.type", "LogAppendTime");
        shared().create_topic(&format!("{prefix}.steady-out"), 1, &[FOR_EVER, by_arrival]);
        let steady = plain_route(&prefix, "steady", "steady")
            .replace("destinations", "pipeline: [{ plugin: stamp }], destinations");
        let others = ["goes", "old", "rests"].map(|name| plain_route(&prefix, name, name)).concat();
        let config = stamping(&shared().bootstrap, &format!("{head}routes:\n{steady}{others}"));
        let daemon = Daemon::start(config.path());
        await_running(&daemon, &names(["steady", "goes", "old", "rests"]));
        Self { prefix, daemon, config }
    }

    /// Puts another line, or none, in a route's place.
    fn replace(&self, name: &str, line: &str) {
        let is_it = |other: &&str| other.starts_with(&format!("  {name}: "));
        self.config.edit(|yaml| {
            let old = yaml.lines().find(is_it).expect("the route has a line");
            yaml.replace(&format!("{old}\n"), line)
        });
    }

    fn is_there(&self, name: &str) -> bool {
        self.daemon.get(&format!("/api/v1/routes/{name}")).status == 200
    }

    #[track_caller]
    fn await_left(&self, name: &str) {
        let group = self.config.group(name);
        wait_until(PATIENCE, &format!("nobody is in {group}"), || shared().members(&group).is_empty());
    }

    /// Sends a record through a route; `nth` of its topic.
    #[track_caller]
    fn through(&self, topic: &str, nth: usize) {
        shared().produce(&format!("{}.{topic}", self.prefix), &[Record::new("k", nth.to_string())]);
        shared().await_records(&format!("{}.{topic}-out", self.prefix), nth + 1, PATIENCE);
    }

    fn remove(&self) {
        self.replace("goes", "");
        wait_until(PATIENCE, "the removed route is gone, by the change of the file alone", || !self.is_there("goes"));
        self.await_left("goes");
    }

    fn rename(&self) {
        self.replace("old", &plain_route(&self.prefix, "new", "old"));
        let refused = self.daemon.post("/-/reload");
        assert_eq!(refused.status, 422, "{}", refused.body);
        let hazard = refused.json()["hazards"][0].clone();
        assert_eq!((&hazard["code"], &hazard["route"]), (&"new_group".into(), &"new".into()), "{hazard}");
        assert!(!self.is_there("new"));
        self.through("old", 0);
        let taken = self.daemon.post("/-/reload?accept_new_group=true");
        assert_eq!(taken.status, 200, "{}", taken.body);
        wait_until(PATIENCE, "the old name is gone", || !self.is_there("old"));
        self.await_left("old");
        // Its group is new, so it reads all again, as was accepted.
        self.through("old", 2);
    }

    fn add(&self) {
        self.config.edit(|yaml| format!("{yaml}{}", plain_route(&self.prefix, "added", "added")));
        reload(&self.daemon);
        self.daemon.await_state("added", "running", PATIENCE);
        self.through("added", 0);
    }

    fn disable(&self) {
        self.through("rests", 0);
        self.replace("rests", &plain_route(&self.prefix, "rests", "rests").replace("source", "enabled: false, source"));
        reload(&self.daemon);
        self.daemon.await_state("rests", "disabled", PATIENCE);
        self.await_left("rests");
        assert_eq!(
            shared().committed(&self.config.group("rests"), &format!("{}.rests", self.prefix)),
            BTreeMap::from([(0, 1)])
        );
    }
}

fn check_coming_and_going(head: &str) {
    let coming = Coming::start(head);
    let seen_of_steady = || seen(&coming.daemon).remove("steady");
    let steady = format!("{}.steady", coming.prefix);
    let group = coming.config.group("steady");
    let load = Load::start(shared(), &steady, 2, 500);
    let before = (seen_of_steady(), shared().members(&group));
    coming.remove();
    coming.rename();
    coming.add();
    coming.disable();
    assert_eq!((seen_of_steady(), shared().members(&group)), before);
    assert_eq!(seen(&coming.daemon).into_keys().collect::<BTreeSet<_>>(), names(["added", "new", "rests", "steady"]));
    let sent = load.stop();
    let arrived = shared().await_records(&format!("{steady}-out"), sent.count, PATIENCE);
    sent.assert_whole(&arrived, "the untouched route");
    let gaps = arrived.windows(2).map(|pair| (pair[1].timestamp - pair[0].timestamp, pair[0].timestamp));
    let (gap, after) = gaps.max().expect("there are many");
    eprintln!("longest gap between commits of the untouched route: {gap} ms, after {after}");
    assert!(gap < GAP.as_millis() as i64, "{gap} ms after {after}");
}

#[test]
fn routes_are_added_removed_renamed_and_disabled_while_an_untouched_one_neither_pauses_nor_rebalances() {
    check_coming_and_going("");
}

#[test]
fn of_a_named_instance_too_a_removed_route_leaves_its_group_for_good() {
    check_coming_and_going(&format!("instance: {}\n", unique("coming")));
}

// ---- other clients --------------------------------------------------------------------------------------------------

const TRIO: [&str; 3] = ["a", "b", "c"];

/// Three routes with groups that several processes may share.
struct Trio {
    prefix: String,
}

impl Trio {
    fn new() -> Self {
        let prefix = unique("trio");
        shared().create_topics(&TRIO.map(|name| format!("{prefix}.{name}")), 4, &[FOR_EVER]);
        shared().create_topics(&TRIO.map(|name| format!("{prefix}.{name}-out")), 1, &[FOR_EVER]);
        Self { prefix }
    }

    fn process(&self, head: &str) -> Config {
        let group = |name: &str| format!("start: earliest, group: {}.{name}", self.prefix);
        let route = |name: &str| plain_route(&self.prefix, name, name).replace("start: earliest", &group(name));
        Config::new(&shared().bootstrap, &[], &format!("{head}routes:\n{}", TRIO.map(route).concat()))
    }

    fn load(&self) -> [Load; 3] {
        TRIO.map(|name| Load::start(shared(), &format!("{}.{name}", self.prefix), 4, 300))
    }

    #[track_caller]
    fn assert_whole(&self, sent: [Sent; 3]) {
        for (name, sent) in TRIO.iter().zip(sent) {
            let arrived = shared().await_records(&format!("{}.{name}-out", self.prefix), sent.count, PATIENCE);
            sent.assert_whole(&arrived, name);
        }
    }
}

/// Each route's partitions, as its only worker owns them.
fn assignments(daemon: &Daemon) -> BTreeMap<String, Value> {
    let all = seen(daemon).into_iter();
    all.map(|(name, (_, _, workers, _))| (name, workers[0]["assignment"].clone())).collect()
}

/// Has the process take up other clients, and waits until all routes run with them. Meanwhile no two are away at once.
fn reconnect(config: &Config, daemon: &Daemon, property: &str) {
    config.edit(|yaml| yaml.replacen("bootstrap.servers", &format!("{property}, bootstrap.servers"), 1));
    let told = reload(daemon);
    let generation = generation(&told);
    assert_eq!(
        actions(&daemon.get("/api/v1/status").json()),
        TRIO.map(|name| (name.to_owned(), "restarted".to_owned())).into()
    );
    let (mut away, mut waited) = (BTreeSet::new(), false);
    wait_until(PATIENCE, "all routes run with other clients", || {
        let status = daemon.get("/api/v1/status").json();
        let routes = status["routes"].as_object().expect("routes by name");
        let now: BTreeSet<_> = routes.iter().filter(|(_, r)| r["state"] != "running").map(|(n, _)| n.clone()).collect();
        // (one that has to wait for a broker that does not answer has had its turn)
        waited |= now.iter().any(|name| routes[name]["state"] == "waiting");
        assert!(now.len() <= 1 || waited, "{now:?} are away at once");
        let done = now.is_empty() && routes.values().all(|r| r["workers"][0]["generation"] == generation);
        away.extend(now);
        done
    });
    assert_eq!(away, names(TRIO), "routes that were seen to restart");
}

#[test]
fn other_client_properties_restart_all_routes_one_after_another_with_nothing_lost_or_doubled() {
    let trio = Trio::new();
    let config = trio.process("");
    let daemon = Daemon::start(config.path());
    await_running(&daemon, &names(TRIO));
    let load = trio.load();
    reconnect(&config, &daemon, "client.rack: r1");
    trio.assert_whole(load.map(Load::stop));
}

#[test]
fn a_named_instance_that_takes_up_other_client_properties_moves_no_partition() {
    let trio = Trio::new();
    let [here, there] = ["here", "there"].map(|name| trio.process(&format!("instance: {name}\n")));
    let (daemon, other) = (Daemon::start(here.path()), Daemon::start(there.path()));
    wait_for(PATIENCE, "each process has half of the partitions", || {
        let half = |(name, topics): (&String, &Value)| {
            topics[format!("{}.{name}", trio.prefix)].as_array().is_some_and(|partitions| partitions.len() == 2)
        };
        let (one, two) = (assignments(&daemon), assignments(&other));
        (one.iter().all(half) && two.iter().all(half)).then_some(())
    });
    // (the last round of a cooperative rebalance, which brings a member nothing, may come after that)
    let (mut before, mut since) = (seen(&other), Instant::now());
    wait_until(PATIENCE, "the groups are at rest", || {
        let now = seen(&other);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(3)
    });
    let own = assignments(&daemon);
    let load = trio.load();
    reconnect(&here, &daemon, "producer: { linger.ms: 7 }");
    wait_until(PATIENCE, "it owns what it owned", || assignments(&daemon) == own);
    assert_eq!(seen(&other), before, "the other process");
    trio.assert_whole(load.map(Load::stop));
}
