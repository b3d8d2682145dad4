//! The real worker, policies, delivery modes and producer, on a simulated Kafka and simulated plugins. One seed decides
//! everything: poll sizes, rebalances, lost assignments, every error of librdkafka's at every call and what it has really
//! done, late requests, deaths between any two calls, twins, reloads, faults of plugins, how many sets of them there are and
//! which of these is how quick, and the time.
//!
//! After every step a checker looks at what a reader of the destinations sees; see [`checker`]. The simulated part begins
//! below `millrace::kafka::seam`, one method of which is one call of librdkafka.

mod checker;
mod clients;
mod faults;
mod kafka;
mod process;
mod records;
mod world;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use millrace::config::settings::Delivery;
use millrace::model::{Mutation, TopicName};
use millrace::policy::{Disposition, OnError, Retry};

use faults::{CALLS, TABLE};
use records::Kind;
use world::{Moment, Scenario, Summary, TRACE, met_fault};

/// Runs other seeds than the usual ones: one, or `from..to`.
const SEEDS: &str = "SIMULATION_SEEDS";

const RETRY: Option<Retry> =
    Some(Retry { attempts: 2, backoff: Duration::from_millis(50), max_backoff: Duration::from_millis(100) });

impl Scenario {
    fn of(seed: u64) -> Self {
        // (the world's own numbers are drawn from the same seed)
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed);
        let delivery = match seed % 5 {
            0..3 => Delivery::ExactlyOnce,
            3 => Delivery::AtLeastOnce,
            _ => Delivery::AtMostOnce,
        };
        let dead_letter = || Disposition::DeadLetter(TopicName::new("dead").unwrap());
        let on_error = match rng.u8(0..8) {
            0..2 => OnError { retry: None, then: Disposition::Skip },
            2..4 => OnError { retry: None, then: dead_letter() },
            4..7 => OnError { retry: RETRY, then: dead_letter() },
            _ => OnError::default(),
        };
        let is_static = rng.bool();
        let instances: Vec<_> =
            (0..rng.usize(1..4)).map(|number| is_static.then(|| format!("instance-{number}"))).collect();
        let crashes = (0..rng.usize(0..5)).map(|_| {
            let moment = if rng.bool() { Moment::Before } else { Moment::After };
            (CALLS[rng.usize(0..CALLS.len())], moment, rng.u32(0..6))
        });
        let crashes = crashes.collect();
        Self {
            seed,
            delivery,
            on_error,
            twin_after: (is_static && rng.u8(0..3) == 0).then(|| rng.u64(20..300)),
            instances,
            faults: [20, 50, 120][rng.usize(0..3)],
            faults_until: rng.u64(300..1500),
            kinds: None,
            batch: [2, 8, 40][rng.usize(0..3)],
            asks_for_owners: true,
            round: [5, 24][rng.usize(0..2)],
            crashes,
            parallelism: [1, 2, 4][rng.usize(0..3)],
        }
    }

    /// One process, and nothing goes wrong but what records of these kinds say.
    fn calm(seed: u64, kinds: &'static [Kind], on_error: OnError) -> Self {
        let (instances, crashes) = (vec![None], Vec::new());
        let (kinds, batch) = (Some(kinds), 1);
        let usual = Self::of(seed);
        Self { on_error, instances, twin_after: None, faults: 0, faults_until: 0, kinds, batch, crashes, ..usual }
    }

    fn run(self, mutation: Option<Mutation>) -> Result<Summary, String> {
        let mut machines: Vec<_> = self.instances.iter().map(|instance| (instance.clone(), 0)).collect();
        machines.extend(self.twin_after.map(|after| (self.instances[0].clone(), after)));
        world::run(self, machines.len(), |actor| {
            let (instance, from) = &machines[actor.number()];
            process::live(&actor, instance.as_deref(), *from, mutation);
        })
    }
}

/// Runs one seed; a failure says how to see it again.
fn check(seed: u64) -> Summary {
    Scenario::of(seed).run(None).unwrap_or_else(|wrong| {
        panic!("seed {seed}: {wrong}\nagain, step by step: {TRACE}=1 {SEEDS}={seed} cargo test --test it -- simulation::every_promise")
    })
}

/// The seeds that are asked for by the environment.
fn asked_for() -> Option<std::ops::Range<u64>> {
    let text = std::env::var(SEEDS).ok()?;
    let number = |text: &str| text.trim().parse().unwrap_or_else(|_| panic!("{SEEDS}={text}: a seed, or from..to"));
    Some(match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&text)..number(&text) + 1,
    })
}

#[test]
fn every_promise_holds_whatever_fails_and_whenever() {
    let seeds = asked_for().unwrap_or(0..500);
    let (mut met, mut looks, mut compared, mut read, mut repeated) = (BTreeMap::<String, u64>::new(), 0, 0, 0, 0);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let summary = check(seed);
        summary.met.into_iter().for_each(|(what, times)| *met.entry(what).or_default() += times);
        looks += summary.looks;
        compared += summary.compared;
        read += summary.read;
        repeated += summary.repeated;
    }
    let times = |what: &str| met.iter().filter(|(name, _)| name.starts_with(what)).map(|(_, times)| times).sum::<u64>();
    // (not by println, which the harness keeps to itself where a test passes)
    let told = writeln!(
        std::io::stderr(),
        "---- simulation: {count} seeds, {looks} looks at {compared} changes, {read} records read, {repeated} copies more \
         (at_least_once): 0 lost, 0 doubled, 0 disordered; {} rounds committed, {} aborted, {} of unknown outcome, {} deaths, \
         {} reloads, {} assignments lost",
        times("committed"),
        times("aborted"),
        times("outcome unknown"),
        times("crash"),
        times("reload"),
        times("assignment lost"),
    );
    told.expect("standard error takes a line");
    met.iter().for_each(|(what, times)| println!("{times:>8} {what}"));
    if count < 500 {
        return;
    }
    let faults = TABLE.iter().flat_map(|(call, ways)| ways.iter().map(|way| met_fault(*call, way)));
    let moments = CALLS
        .iter()
        .flat_map(|call| [Moment::Before, Moment::After].map(|moment| format!("crash {moment:?} {call:?}")));
    let others = [
        "aborted",
        "asked back",
        "assigned",
        "assignment lost",
        "committed",
        "count compared",
        "elder twin ended",
        "fenced by a twin",
        "fetch waits for a transaction",
        "late abort refused",
        "late abort taken",
        "late commit refused",
        "late commit taken",
        "losses counted",
        "member thrown out",
        "outcome unknown",
        "paused",
        "rejected",
        "reload",
        "resumed",
        "revoked",
        "session timed out",
        "stopped for long",
        "task swapped",
        "transaction timed out",
        "unknown, and it was committed",
        "unknown, and it was not committed",
        "fetched while a transaction was under way",
        "a rebalance waited for the end of a transaction",
        "outputs came while others were on their way",
        "a producer rested",
        "a commit was waited for",
        "a rebalance was served before the worker knew what became of a commit",
        "begun before the last was committed",
        "given up with the transaction before it",
        "worked by another set",
    ];
    let never: Vec<_> =
        faults.chain(moments).chain(others.map(String::from)).filter(|what| !met.contains_key(what)).collect();
    assert!(never.is_empty(), "never met in {count} seeds: {never:#?}");
    // Each run ends with all read that was to come; and it was looked at on the way.
    assert!(looks > 100 * count && compared > 20 * count && read > 50 * count && repeated > count, "hardly looked");
}

#[test]
fn a_seed_runs_the_same_way_each_time() {
    for seed in 0..10 {
        assert_eq!(check(seed).trace, check(seed).trace, "seed {seed}");
    }
    assert_ne!(check(0).trace, check(5).trace, "the trace tells runs apart");
}

#[test]
fn a_refused_record_is_disposed_of_though_a_plugin_asks_to_be_given_a_later_one_again() {
    let on_error = OnError { retry: RETRY, then: Disposition::Skip };
    for seed in 0..10 {
        let summary = Scenario::calm(seed, &[Kind::TooLarge, Kind::RetryForEver], on_error.clone()).run(None);
        assert_eq!(summary.map(|_| ()), Ok(()), "seed {seed}");
    }
}

/// With the rule broken, the checker has to complain of this within the first seeds that are in exactly_once.
fn is_caught(mutation: Mutation, of: &[&str], scenario: impl Fn(u64) -> Scenario) {
    let of_exactly_once = (0..100).filter(|seed| Scenario::of(*seed).delivery == Delivery::ExactlyOnce);
    let found = of_exactly_once.filter_map(|seed| Some((seed, scenario(seed).run(Some(mutation)).err()?)));
    let said = |(_, wrong): &(u64, String)| of.iter().any(|rule| wrong.starts_with(rule));
    let (seed, wrong) = found.into_iter().find(said).unwrap_or_else(|| panic!("{of:?} not seen in 60 seeds"));
    println!("{mutation:?}: seed {seed}: {wrong}");
}

#[test]
fn a_round_that_is_not_given_again_after_an_abort_is_noticed_as_lost() {
    // In the partition of its records the next come too early.
    is_caught(Mutation::NoRewind, &["LOST", "ORDER"], Scenario::of);
}

#[test]
fn an_output_that_the_client_did_not_take_is_noticed_as_lost() {
    is_caught(Mutation::IgnoreProduceResult, &["LOST"], Scenario::of);
}

#[test]
fn a_commit_of_a_revoked_partition_is_noticed() {
    is_caught(Mutation::CommitRevoked, &["OWNERSHIP"], Scenario::of);
    // And by its readers, to whom it does not matter who has done it.
    let unasked = |seed| Scenario { asks_for_owners: false, ..Scenario::of(seed) };
    is_caught(Mutation::CommitRevoked, &["DOUBLED"], unasked);
}

#[test]
fn offsets_committed_outside_of_the_transaction_are_noticed() {
    is_caught(Mutation::OffsetsOutside, &["LOST"], Scenario::of);
}

#[test]
fn a_transaction_that_is_committed_though_the_one_before_it_was_not_is_noticed() {
    is_caught(Mutation::OutOfTurn, &["LOST", "ORDER", "DOUBLED"], Scenario::of);
}
