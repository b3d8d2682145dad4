//! Torture: real processes on real brokers, with faults of both at random, and checkers that hold what arrived against what was
//! sent. One seed decides what happens; `make torture` runs seed after seed.
//!
//! [`events`] is what happens and when, [`world`] does it, [`checkers`] judge what is left, [`summary`] tells.

mod checkers;
mod events;
mod summary;
mod tail;
mod world;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use self::checkers::{Difference, POISON, Seen, compare};
use self::events::{Assignment, Membership, Plan, Shape, name_of};
use self::summary::Summary;
use self::tail::Tail;
use self::world::{ROUTES, SESSION, SOURCE_PARTITIONS, TRANSACTION, World};
use crate::support::kafka::{ConsumedRecord, Isolation};
use crate::support::load::{Load, Numbered};
use crate::support::pace;

const KEYS: usize = 200;
const PER_SECOND: usize = 300;
/// One in so many is a record that the plugin can never take.
const POISONED: usize = 401;
/// For the first record to arrive, before the first fault.
const BEGIN: Duration = Duration::from_secs(90);
/// For a group to be at the end, and its routes to run, once nothing is at fault any more. A client may have gone deaf
/// meanwhile, which takes the watchdog five looks of 20 s to be sure of; then the group takes in a new one.
const DRAIN: Duration = Duration::from_secs(5 * 20 + 20);
/// Kafka's `transaction.abort.timed.out.transaction.cleanup.interval.ms`: how rarely a broker looks for transactions of the dead.
const SCAN: Duration = Duration::from_secs(10);
/// librdkafka's `reconnect.backoff.max.ms`, with its jitter, and the longest wait of a route that is `waiting`.
const BACKOFF: Duration = Duration::from_secs(13 + 5);

/// All that it can take to get over a fault, once it is over: within this, records arrive again.
fn recovery() -> Duration {
    SESSION + TRANSACTION + SCAN + BACKOFF
}

/// The longest that exactly_once may stand still while faults go on: as long as the longest of them lasts, and the recovery
/// from it, in which another may find it.
fn stall_bound(fault: Duration) -> Duration {
    fault + 2 * recovery()
}

#[test]
fn every_mode_keeps_its_promise_on_one_broker_whatever_is_killed_stopped_doubled_or_reloaded() {
    torture(1);
}

#[test]
fn every_mode_keeps_its_promise_on_three_brokers_whatever_is_killed_stopped_doubled_or_reloaded() {
    torture(3);
}

/// Runs one seed, or seed after seed for as long as the environment says. With a mutation, until a checker has noticed it.
fn torture(nodes: u8) {
    let began = Instant::now();
    let minutes = variable("TORTURE_MINUTES").map_or(0, |text| text.parse().expect("TORTURE_MINUTES is a number"));
    let seed: Option<u64> = variable("TORTURE_SEED").map(|text| text.parse().expect("TORTURE_SEED is a number"));
    let mutation = variable("TORTURE_MUTATION");
    let mut failed = Vec::new();
    loop {
        let run = Run::new(seed.unwrap_or_else(|| fastrand::u64(..1_000_000_000)), nodes, mutation.clone());
        let summary = run.run();
        summary.tell();
        match (&mutation, summary.complaints.is_empty()) {
            (_, true) => {}
            (None, false) => failed.push(format!("{summary}to replay it: {}\n", run.replay())),
            (Some(name), false) => return eprintln!("the mutation {name} was noticed: {:#?}", summary.complaints),
        }
        if began.elapsed() >= Duration::from_secs(minutes * 60) {
            break;
        }
    }
    assert!(mutation.is_none(), "no checker noticed the mutation {}", mutation.unwrap_or_default());
    assert!(failed.is_empty(), "{}", failed.concat());
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// What the environment names, otherwise one of the first so many.
fn choose<T: Copy>(random: &mut fastrand::Rng, variable_name: &str, all: &[(&str, T)], first: usize) -> T {
    let drawn = all[random.usize(..first)].1;
    let Some(wanted) = variable(variable_name) else { return drawn };
    let found = all.iter().find(|(name, _)| *name == wanted);
    let names = || all.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    found.unwrap_or_else(|| panic!("{variable_name}={wanted} is none of {:?}", names())).1
}

/// One seed and its shape.
struct Run {
    seed: u64,
    shape: Shape,
    bootstrap: Option<String>,
    mutation: Option<String>,
}

impl Run {
    /// What the environment does not say, the seed decides.
    fn new(seed: u64, nodes: u8, mutation: Option<String>) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        // (`consumer` only where it is asked for)
        let membership = choose(&mut random, "TORTURE_MEMBERSHIP", &Membership::ALL, 2);
        let assignment = choose(&mut random, "TORTURE_ASSIGNMENT", &Assignment::ALL, 2);
        let seconds = variable("TORTURE_SECONDS").map_or(50, |text| text.parse().expect("TORTURE_SECONDS is a number"));
        let bootstrap = variable("TORTURE_BOOTSTRAP_SERVERS");
        let nodes = bootstrap.is_none().then_some(nodes);
        let shape = Shape { nodes, membership, assignment, length: Duration::from_secs(seconds) };
        Self { seed, shape, bootstrap, mutation }
    }

    /// The command that does the same again.
    fn replay(&self) -> String {
        let Shape { nodes, membership, assignment, length } = self.shape;
        let whose = match (nodes, &self.bootstrap) {
            (Some(nodes), _) => format!("NODES={nodes}"),
            (None, bootstrap) => format!("KAFKA_BOOTSTRAP_SERVERS={}", bootstrap.as_deref().unwrap_or_default()),
        };
        let mutation = self.mutation.as_ref().map(|name| format!(" MUTATION={name}")).unwrap_or_default();
        let (membership, assignment) = (name_of(&Membership::ALL, &membership), name_of(&Assignment::ALL, &assignment));
        let (seconds, seed) = (length.as_secs(), self.seed);
        format!(
            "make torture MINUTES=0 SECONDS={seconds} SEED={seed} {whose} MEMBERSHIP={membership} \
             ASSIGNMENT={assignment}{mutation}"
        )
    }

    fn run(&self) -> Summary {
        let began = Instant::now();
        eprintln!("torture: {}", self.replay());
        let mut summary = Summary::new(self.seed, &self.shape);
        let mut world = World::start(self.seed, &self.shape, self.bootstrap.as_deref(), self.mutation.as_deref());
        eprintln!("torture: logs in {}", world.logs.display());
        let plan = Plan::new(self.seed, &self.shape);
        let tail = Tail::start(world.kafka(), &world.topics.destinations[0]);
        let mut load =
            Load::start_with(world.kafka(), &world.topics.source, SOURCE_PARTITIONS as usize, PER_SECOND, record);
        world.start_missing();
        tail.await_begin(BEGIN);
        let mut phases = vec![began.elapsed()];
        follow(&plan, self.shape.length, &mut world, &mut summary);
        phases.push(began.elapsed());
        world.mend();
        let mended = Instant::now();
        if tail.await_next(recovery()) {
            summary.figure("records arrived again after the last fault", format!("{:.1?}", mended.elapsed()));
        } else {
            summary.complaints.push(format!("liveness: nothing arrived for {:?} after the last fault", recovery()));
        }
        let sent = load.stop_sending();
        phases.push(began.elapsed());
        settle(&mut world, &mut summary);
        let stall = tail.stop();
        phases.push(began.elapsed());
        world.shut_down();
        summary.figure("records", sent);
        let (stalled, at, bound) = (stall.length.as_secs_f64(), stall.at.as_secs_f64(), stall_bound(world.longest));
        summary.figure("longest fault", format!("{:.1} s", world.longest.as_secs_f64()));
        summary.figure("longest stall", format!("{stalled:.1} s, {at:.0} s after the start, of at most {bound:.0?}"));
        if stall.length > bound {
            summary.complaints.push(format!("liveness: nothing arrived for {stalled:.1} s, more than {bound:.0?}"));
        }
        summary.figure("clients that had gone deaf", world.deaf());
        summary.figure("processes that did not drain in time, with a broker at fault", world.late_ends);
        summary.figure("of the brokers' faults, left out while replicas were not in sync", world.left_out);
        summary.complaints.append(&mut world.complaints);
        check(&world, sent, plan.has_zombies, &mut summary);
        let ends: Vec<String> = phases.iter().map(|end| format!("{:.0} s", end.as_secs_f64())).collect();
        summary.figure("start, faults, mending, settling ended after", ends.join(", "));
        summary.took = began.elapsed();
        if summary.complaints.is_empty() {
            world.forget();
        } else {
            world.preserve();
            summary.figure("logs", world.logs.display());
        }
        summary
    }
}

fn record(number: usize) -> Numbered {
    let mark = if number % POISONED == POISONED - 1 { format!(" {POISON}") } else { String::new() };
    Numbered {
        partition: number as i32 % SOURCE_PARTITIONS,
        key: (number % KEYS).to_string(),
        value: format!("{number}{mark}"),
    }
}

/// Does what the plan says. What takes longer than it should moves all that follows.
fn follow(plan: &Plan, length: Duration, world: &mut World, summary: &mut Summary) {
    let began = Instant::now();
    let mut late = Duration::ZERO;
    for (at, action) in &plan.steps {
        while began.elapsed() < *at + late {
            pace(Duration::from_millis(50));
            world.look();
        }
        if began.elapsed() > length {
            return;
        }
        eprintln!("{:7.2} s  {action:?}", began.elapsed().as_secs_f64());
        world.apply(action);
        summary.count(action);
        late = late.max(began.elapsed().saturating_sub(*at));
    }
}

/// Waits until all groups are at the end, all routes run and no transaction is open; says what is not so in time.
fn settle(world: &mut World, summary: &mut Summary) {
    let deadline = Instant::now() + DRAIN;
    let mut within = |what: &str, is_so: &mut dyn FnMut() -> Result<(), String>| {
        loop {
            let Err(why) = is_so() else { return };
            if Instant::now() > deadline {
                return summary.complaints.push(format!("liveness: {what}, {DRAIN:?} after the last fault: {why}"));
            }
            pace(Duration::from_millis(200));
        }
    };
    for route in ROUTES {
        within("a group is not at the end", &mut || match world.left(route) {
            Some(left) if left.is_empty() => Ok(()),
            left => {
                let held: Vec<_> = world.transactional().into_iter().map(|topic| (world.held(&topic), topic)).collect();
                Err(format!(
                    "{route}, partition: (committed, end): {left:?}; transactions open, partition: (stable, end): {held:?}; {}",
                    world.told(route)
                ))
            }
        });
    }
    within("a route does not run", &mut || match world.not_running() {
        none if none.is_empty() => Ok(()),
        some => Err(some.join("; ")),
    });
    for topic in world.transactional() {
        within("a transaction is open", &mut || match world.held(&topic) {
            none if none.is_empty() => Ok(()),
            some => Err(format!("{topic}, partition: (stable, end): {some:?}")),
        });
    }
    world.look();
}

/// Holds what arrived against what was sent, for each mode as it promises.
fn check(world: &World, sent: usize, has_zombies: bool, summary: &mut Summary) {
    let read = |topic: &str, isolation| world.kafka().kcat_consume(topic, isolation);
    let seen = |records: &[ConsumedRecord]| records.iter().map(Seen::of).collect::<Vec<_>>();
    let source = seen(&read(&world.topics.source, Isolation::ReadCommitted));
    let ids: BTreeSet<usize> = source.iter().map(|record| record.id).collect();
    assert_eq!(ids, (0..sent).collect(), "the load itself is whole: what was sent is in the source");
    summary.figure("records twice in the source", source.len() - ids.len());

    let [exactly, at_least, at_most] = &world.topics.destinations;
    let arrived = read(exactly, Isolation::ReadCommitted);
    let met: BTreeSet<_> = arrived.iter().map(|record| format!("{:?}", record.headers)).collect();
    summary.figure("configurations met", met.len());
    let once = compare(source.iter().filter(|record| !record.is_poison), &seen(&arrived));
    tell(summary, "exactly_once", &once);
    summary.complaints.extend(once.complaints("exactly_once"));

    let dead = seen(&read(&world.topics.dead, Isolation::ReadCommitted));
    let letters = compare(source.iter().filter(|record| record.is_poison), &dead);
    summary.figure("dead letters", dead.len());
    tell(summary, "dead letters", &letters);
    summary.complaints.extend(letters.complaints("dead letters"));

    let aborted: usize = world
        .topics
        .transactional()
        .map(|topic| read(topic, Isolation::ReadUncommitted).len() - read(topic, Isolation::ReadCommitted).len())
        .iter()
        .sum();
    summary.figure("aborted copies that read_uncommitted sees", aborted);
    if aborted == 0 {
        summary.complaints.push("teeth: no fault has hit a transaction".to_owned());
    }

    let mut least = compare(&source, &seen(&read(at_least, Isolation::ReadCommitted)));
    tell(summary, "at_least_once", &least);
    least.doubled.clear();
    let mut most = compare(&source, &seen(&read(at_most, Isolation::ReadCommitted)));
    tell(summary, "at_most_once", &most);
    most.lost.clear();
    for (what, mut difference) in [("at_least_once", least), ("at_most_once", most)] {
        // A zombie's records come late: docs/delivery.md.
        if has_zombies {
            difference.disordered.clear();
        }
        summary.complaints.extend(difference.complaints(what));
    }
}

fn tell(summary: &mut Summary, what: &'static str, difference: &Difference) {
    let Difference { lost, doubled, disordered, moved, foreign } = difference;
    summary.figure(
        what,
        format!(
            "{} lost, {} doubled, {} disordered, {} keys moved, {} foreign",
            lost.len(),
            doubled.len(),
            disordered.len(),
            moved.len(),
            foreign.len()
        ),
    );
}
