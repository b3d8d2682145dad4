//! Every fault meets every `on_error`, on a real Kafka: a guest that misbehaves, and a destination that refuses. One daemon
//! a policy runs a route for each fault, all over the same records, so that each also shows that the others go on.

mod world;

use std::ops::Range;
use std::time::Duration;

use millrace::model::{Digest, Items, PluginName};
use millrace::pipeline::chain::{Budget, Chain, Halt, Processed};
use millrace::pipeline::ports::{CallError, CallOutput, Step, Usage, Verdict};

use super::support::daemon::{Daemon, millrace_output};
use super::support::kafka::{ConsumedRecord, Isolation, shared};
use super::support::memory_batch::MemoryBatch;
use super::support::{unique, wait_until};
use world::{
    Config, MORE, POISON, RECORDS, WITNESS, World, guest_path, header, indigestible, plain, values, values_of,
};

/// For what takes a broker, a daemon of twenty routes and two cores that others use as well.
const TIMEOUT: Duration = Duration::from_secs(180);

/// A fault and how it is provoked.
struct Case {
    name: &'static str,
    by: Cause,
    code: &'static str,
    /// What the operator reads, in part.
    says: &'static str,
}

enum Cause {
    /// The guest does this on the record at fault; further keys of the plugin.
    Guest { does: &'static str, limits: &'static str },
    /// A topic with this property refuses the record at fault.
    Topic(&'static str, &'static str),
}

const fn guest(name: &'static str, does: &'static str, code: &'static str, says: &'static str) -> Case {
    limited(name, does, "", code, says)
}

const fn limited(
    name: &'static str,
    does: &'static str,
    limits: &'static str,
    code: &'static str,
    says: &'static str,
) -> Case {
    Case { name, by: Cause::Guest { does, limits }, code, says }
}

const fn topic(name: &'static str, property: &'static str, value: &'static str, says: &'static str) -> Case {
    Case { name, by: Cause::Topic(property, value), code: "rejected", says }
}

const CASES: &[Case] = &[
    guest("refuses", "refuse", "refused", "told to refuse"),
    guest("refuses-silently", "refuse_silently", "refused", "gave no reason"),
    guest("fails-for-good", "permanent", "refused", "told to fail for good"),
    guest("panics", "trap", "trapped", "told to trap"),
    guest("panics-after-emitting", "emit_then_trap", "trapped", "told to trap after emitting"),
    guest("overflows-its-stack", "recurse", "trapped", "recurse"),
    limited("loops", "loop", "timeout: 10ms", "timed_out", "10ms of CPU time"),
    limited("takes-memory", "grow", "memory: 8MiB", "out_of_memory", "raise the plugin's `memory`"),
    guest("emits-too-many", "many_outputs", "bad_output", "more than 1000 outputs of one record (`max_outputs`)"),
    limited("emits-too-much", "large_output", "max_output_bytes: 1MiB", "bad_output", "(`max_output_bytes`)"),
    guest("names-a-foreign-destination", "foreign_destination", "bad_output", "no-such-destination"),
    guest("gives-a-bad-verdict", "bad_verdict", "bad_output", "it returned the verdict 7"),
    guest("gives-too-few-verdicts", "short_verdicts", "bad_output", "it returned 0 verdicts for 1 records"),
    guest("gives-a-broken-column", "bad_column", "bad_output", "ends are not ascending"),
    guest("emits-from-nothing", "bad_index", "bad_output", "it emitted from record"),
    guest("changes-a-foreign-item", "bad_item", "bad_output", "it changed 1 outputs from number 1000000 on"),
    guest("asks-for-ever-to-be-tried-again", "retry", "unavailable", "told to ask again for ever"),
    topic("is-too-large", "max.message.bytes", "100000", "MSG_SIZE_TOO_LARGE"),
    topic("has-no-key", "cleanup.policy", "compact", "INVALID_RECORD"),
    topic("is-too-old", "message.timestamp.before.max.ms", "3600000", "INVALID_TIMESTAMP"),
];

impl Case {
    fn is_of_guest(&self) -> bool {
        matches!(self.by, Cause::Guest { .. })
    }

    /// How often its plugin is found at fault when it is tried `tries` times.
    fn faults(&self, tries: u32) -> u32 {
        match self.code {
            // It is the fault of having asked once too often.
            "unavailable" => 1,
            _ => tries,
        }
    }
}

#[test]
fn a_fault_stops_its_partition_before_the_record_and_it_tries_again_by_itself() {
    let world = World::start("stop", "stop");
    let first_stops: Vec<_> = CASES.iter().map(|case| world.await_stopped(case)).collect();
    // The other partition of the same worker goes on while this one stands.
    world.produce_more();
    for (case, first_stop) in CASES.iter().zip(first_stops) {
        let name = case.name;
        world.await_consumed(case, RECORDS + POISON + MORE);
        // A route that tries again just now is not stopped for that moment.
        world.await_another_attempt(case, &first_stop);
        let route = world.await_stopped(case);
        let held = &route["workers"][0]["stopped"][0];
        assert_eq!(held["topic"], world.source(case), "{name}");
        assert_eq!((&held["partition"], &held["offset"]), (&0.into(), &POISON.into()), "{name}");
        assert_eq!(held["code"], case.code, "{name}: {held}");
        for text in [&route["reason"], &held["message"], &route["last_fault"]["message"]] {
            assert!(text.as_str().expect("a text").contains(case.says), "{name}: {text}");
        }
        assert!(held["next_attempt"].is_string(), "{name}: {held}");
        world.check_arrived(case, [POISON, RECORDS + MORE], |place| place < POISON);
        assert_eq!(world.counted(case, "millrace_records_consumed_total"), RECORDS + POISON + MORE, "{name}");
        assert_eq!(world.counted(case, "millrace_records_produced_total"), RECORDS + POISON + MORE, "{name}");
        assert_eq!(world.counted(case, "millrace_records_skipped_total"), 0, "{name}");
        assert_eq!(world.counted(case, "millrace_dead_letters_total"), 0, "{name}");
    }
    world.check_witness(RECORDS + MORE);
    assert_eq!(world.daemon.get("/readyz").status, 200, "one poison record does not take a process down");
    assert_eq!(world.daemon.get("/readyz?routes=all").status, 503);
    assert_eq!(world.daemon.get(&format!("/readyz?route={WITNESS}")).status, 200);
}

#[test]
fn a_fault_that_is_skipped_costs_that_record_alone() {
    let world = World::start("skip", "skip");
    for case in CASES {
        world.await_consumed(case, 2 * RECORDS);
        world.check_arrived(case, [RECORDS, RECORDS], |place| place != POISON);
        world.check_passed_by(case, 1);
        assert_eq!(world.counted_code(case, "millrace_records_skipped_total"), 1, "{}", case.name);
        assert_eq!(world.counted(case, "millrace_records_skipped_total"), 1, "{}", case.name);
        assert_eq!(world.counted(case, "millrace_dead_letters_total"), 0, "{}", case.name);
    }
    world.check_witness(RECORDS);
}

#[test]
fn a_fault_goes_to_the_dead_letter_topic_with_all_that_the_record_was() {
    dead_letters("dead", "{ dead_letter: TOPIC }", 1);
}

#[test]
fn a_fault_that_is_tried_again_in_vain_goes_to_the_dead_letter_topic() {
    dead_letters("retry", "{ retry: { attempts: 2, backoff: 50ms }, then: { dead_letter: TOPIC } }", 3);
}

fn dead_letters(name: &str, policy: &str, tries: u32) {
    let world = World::start(name, policy);
    for case in CASES {
        world.await_consumed(case, 2 * RECORDS);
        world.check_arrived(case, [RECORDS, RECORDS], |place| place != POISON);
        world.check_passed_by(case, tries);
        assert_eq!(world.counted_code(case, "millrace_dead_letters_total"), 1, "{}", case.name);
        assert_eq!(world.counted(case, "millrace_dead_letters_total"), 1, "{}", case.name);
        assert_eq!(world.counted(case, "millrace_records_skipped_total"), 0, "{}", case.name);
    }
    world.check_witness(RECORDS);
    let letters = world.dead_letters();
    assert_eq!(letters.len(), CASES.len(), "one dead letter a route");
    for case in CASES {
        let of_route = |letter: &&ConsumedRecord| header(letter, "__connect.errors.connector.name") == case.name;
        world.check_letter(case, letters.iter().find(of_route).expect(case.name), tries);
    }
}

#[test]
fn a_plugin_that_asks_to_be_tried_again_and_then_passes_loses_nothing() {
    let kafka = shared();
    let (source, target) = (unique("recovers"), unique("recovered"));
    for topic in [&source, &target] {
        kafka.create_topic(topic, 1, &[]);
    }
    kafka.produce(&source, &plain(0, 0..RECORDS));
    // Each answer that asks for another try is one of 15: with `stop` the first passage finds the record by some ten of
    // them, and what the partition does by itself after its back-off gets through.
    let config = Config::new(
        &kafka.bootstrap,
        &format!(
            "plugins:\n  p: {{ path: {}, config: {{ do: retry_times, n: 15, when: '0/{POISON} ' }} }}\n\
             routes:\n  r:\n    source: {{ topics: [{source}], start: earliest }}\n    pipeline: [{{ plugin: p }}]\n    \
             destinations: [{{ topic: {target} }}]\n",
            guest_path().display()
        ),
    );
    let daemon = Daemon::start(&config.dir);
    let count = |name| daemon.metric(name, &[("route", "r")]).unwrap_or_default();
    wait_until(TIMEOUT, "the record that asked is found", || count("millrace_plugin_faults_total") > 0.0);
    wait_until(TIMEOUT, "all arrives", || count("millrace_records_produced_total") as usize == RECORDS);
    let seen = kafka.kcat_consume(&target, Isolation::ReadCommitted);
    assert_eq!(values(&seen), values_of(&plain(0, 0..RECORDS)));
    assert_eq!(daemon.get("/api/v1/routes/r").json()["state"], "running");
}

#[test]
fn a_route_that_its_destination_refused_goes_on_by_itself_once_the_destination_takes_the_record() {
    let kafka = shared();
    let (source, target) = (unique("large"), unique("narrow"));
    kafka.create_topic(&source, 1, &[]);
    kafka.create_topic(&target, 1, &[("max.message.bytes", "100000")]);
    kafka.produce(&source, &indigestible(plain(0, 0..RECORDS)));
    let config = Config::new(
        &kafka.bootstrap,
        &format!(
            "routes:\n  r:\n    source: {{ topics: [{source}], start: earliest }}\n    pipeline: []\n    \
             destinations: [{{ topic: {target} }}]\n"
        ),
    );
    let daemon = Daemon::start(&config.dir);
    let state = || daemon.get("/api/v1/routes/r").json()["state"].clone();
    wait_until(TIMEOUT, "the route has failed", || state() == "failed");
    let set =
        ["--alter", "--entity-type", "topics", "--entity-name", &target, "--add-config", "max.message.bytes=1000000"];
    kafka.tool("kafka.admin.ConfigCommand", &set);
    let seen = kafka.await_records(&target, RECORDS, TIMEOUT);
    assert_eq!(values(&seen), values_of(&indigestible(plain(0, 0..RECORDS))));
    wait_until(TIMEOUT, "the route runs again", || state() == "running");
}

#[test]
fn a_plugin_that_cannot_be_configured_is_refused_at_its_place_before_anything_runs() {
    for (does, says) in [
        ("fail_configure", "told to fail in configure"),
        ("trap_configure", "told to trap in configure"),
        ("loop_configure", "CPU time"),
        ("nothing_that_it_knows", "unknown variant"),
    ] {
        let config = Config::new(
            "127.0.0.1:1",
            &format!(
                "plugins:\n  p: {{ path: {}, timeout: 10ms }}\nroutes:\n  r:\n    source: {{ topics: [a], start: earliest }}\n    \
                 pipeline:\n      - plugin: p\n        config: {{ do: {does} }}\n    destinations: [{{ topic: b }}]\n",
                guest_path().display()
            ),
        );
        let path = config.dir.join("millrace.yaml");
        let text = std::fs::read_to_string(&path).expect("the configuration");
        let line = text.lines().position(|line| line.contains("- plugin: p")).expect("the step") + 1;
        for verb in ["check", "run"] {
            let output = millrace_output(&[verb, config.dir.to_str().expect("a path of text")]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{verb} {does}: {said}");
            assert!(said.contains(&format!("{}:{line}:", path.display())), "{verb} {does} at line {line}: {said}");
            assert!(said.contains(says) && said.contains("plugin \"p\" in route \"r\""), "{verb} {does}: {said}");
        }
    }
}

#[test]
fn ten_thousand_faults_cost_no_memory() {
    /// What an allocator may keep, and Kafka's clients buffer, between the two looks.
    const GROWTH_MAX: u64 = 16 << 20;
    const FIRST: usize = 2_000;
    const ALL: usize = 10_000;
    let kafka = shared();
    let (source, target) = (unique("poisoned"), unique("empty"));
    for topic in [&source, &target] {
        kafka.create_topic(topic, 1, &[]);
    }
    let config = Config::new(
        &kafka.bootstrap,
        &format!(
            "plugins:\n  trap: {{ path: {}, config: {{ do: trap }} }}\nroutes:\n  r:\n    \
             source: {{ topics: [{source}], start: earliest }}\n    pipeline: [{{ plugin: trap }}]\n    \
             destinations: [{{ topic: {target} }}]\n    on_error: skip\n",
            guest_path().display()
        ),
    );
    let daemon = Daemon::start(&config.dir);
    let after = |from: usize, to: usize| {
        kafka.produce(&source, &plain(0, from..to));
        let skipped = || {
            let labels = [("route", "r"), ("code", "trapped")];
            daemon.metric("millrace_records_skipped_total", &labels).unwrap_or_default() as usize
        };
        wait_until(TIMEOUT, &format!("{to} faults"), || skipped() == to);
        daemon.resident_bytes()
    };
    let before = after(0, FIRST);
    let end = after(FIRST, ALL);
    let growth = end.saturating_sub(before);
    eprintln!("resident after {FIRST} faults: {before} bytes; after {ALL}: {end}");
    assert!(growth <= GROWTH_MAX, "{growth} bytes more after {ALL} faults than after {FIRST}");
    // Every fault was a trap of an instance of its own, none of which was called again.
    let count = |name| daemon.metric(name, &[("route", "r")]).unwrap_or_default() as usize;
    assert_eq!(count("millrace_plugin_faults_total"), ALL);
    assert!(count("millrace_plugin_instances_total") >= ALL);
    assert_eq!(kafka.kcat_consume(&target, Isolation::ReadCommitted), []);
}

/// Asks for another try of every call that has a record of these values, in batches of four.
struct Asks(PluginName, Digest, [&'static str; 2]);

impl Step for Asks {
    fn plugin(&self) -> &PluginName {
        &self.0
    }
    fn sha256(&self) -> &Digest {
        &self.1
    }
    fn call(&mut self, items: &mut Items, range: Range<usize>, _: Duration) -> Result<CallOutput, CallError> {
        let asks = |item| self.2.iter().any(|value| items.value(item) == Some(value.as_bytes()));
        match items.list[range.clone()].iter().any(asks) {
            true => Err(CallError::Retry("later".into())),
            false => Ok(CallOutput { verdicts: vec![Verdict::Pass; range.len()], ..CallOutput::default() }),
        }
    }
    fn take_usage(&mut self) -> Usage {
        Usage::default()
    }
    fn shutdown(&mut self) {}
}

#[test]
fn a_call_that_asks_to_be_tried_again_does_not_spend_the_tries_of_a_later_one() {
    let batch = MemoryBatch::of_values((0..12).map(|n| n.to_string()));
    let step = Asks(PluginName::new("asks").expect("a name"), Digest::of(b""), ["1", "6"]);
    let mut chain = Chain::new(vec![(Box::new(step), Duration::from_secs(1))], 4, 1 << 20);
    let mut apply = |range, isolate| chain.apply(batch.clone(), range, isolate, Budget::of(TIMEOUT));
    // (the record at which it halts, where the call ended that asked, the records at fault)
    let seen = |processed: &Processed| {
        let halt = processed.halt.as_ref().map(|(at, why)| match why {
            Halt::Retry { end, .. } => (*at, *end),
            Halt::BudgetSpent => panic!("there is time enough"),
        });
        (halt, processed.faults.iter().map(|(source, _)| *source).collect::<Vec<_>>())
    };
    assert_eq!(seen(&apply(0..12, 0)), (Some((0, 4)), vec![]), "the first call asks");
    assert_eq!(seen(&apply(0..12, 4)), (Some((4, 8)), vec![1]), "its tries are spent; the second call's are not");
    assert_eq!(seen(&apply(4..12, 8)), (None, vec![6]));
}
