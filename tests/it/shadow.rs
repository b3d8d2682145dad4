//! The shadow of a route's plugins: what it counts is exact, and whatever its own plugins do, the route does as it would alone.

use std::sync::Arc;
use std::time::Duration;

use millrace::config::settings::Destination;
use millrace::model::{DestinationName, Fault, FaultCode, Field, Items, RouteName, SendTo, Span};
use millrace::pipeline::compare::{Difference, Made};
use millrace::pipeline::shadow::{Cast, Count, Shadow, Sums};
use millrace::pipeline::task::Task;
use millrace::plugin::Prepared;
use millrace::telemetry::Metrics;
use serde_json::{Value, json};

use crate::replay::{NEXT, PRESENT, config, records, replay};
use crate::support::config::plugin;
use crate::support::daemon::{Daemon, millrace};
use crate::support::guests::engine;
use crate::support::kafka::shared;
use crate::support::memory_batch::{MemoryBatch, MemoryRecord};
use crate::support::record_loop::{BATCH, best_of_turns, chain, prepare, prepare_with, run, run_keeping, source, task};
use crate::support::{unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
const POLLS: usize = 4;
const RECORDS: u64 = (POLLS * BATCH) as u64;
/// Of the time that a route takes without a shadow: what it may take with one that misbehaves.
const RATIO: f64 = 1.5;

/// A worker's task without plugins, which commits after each poll: there is more to look at than one look.
fn alone() -> Task {
    let mut task = task(&[]);
    task.bounds.records = BATCH;
    task
}

/// The same with a shadow that sees one record in so many, and of a look no more than these bytes.
fn shadowed(shadow: &Arc<Prepared>, one_in: u32, bytes: usize) -> (Task, Arc<Sums>) {
    let (mut task, sums) = (alone(), Arc::<Sums>::default());
    let cast = Cast {
        chain: chain(std::slice::from_ref(shadow)),
        destinations: task.destinations.clone(),
        one_in,
        bytes,
        count: Count {
            sums: Arc::clone(&sums),
            metrics: Metrics::new("0").shadow(&RouteName::new("r").expect("a name"), &Difference::WORDS),
        },
    };
    task.shadow = Some(Shadow::start(cast, "r-0"));
    (task, sums)
}

fn await_all(sums: &Sums, count: u64) {
    wait_until(PATIENCE, "each record is compared, or counted as skipped", || {
        sums.compared().records + sums.skipped() == count
    });
}

#[test]
fn a_shadow_that_loops_or_traps_leaves_records_order_offsets_and_the_time_that_they_take_as_they_are() {
    let engine = engine(None);
    let expected = run_keeping(source(POLLS), &mut alone());
    assert_eq!(expected.outputs.len(), RECORDS as usize);
    for does in ["loop", "trap", "grow"] {
        let bad = prepare_with(&engine, "misbehave", &json!({ "do": does }).to_string());
        let (mut with, sums) = shadowed(&bad, 1, usize::MAX);
        assert!(run_keeping(source(POLLS), &mut with) == expected, "{does}: something else was sent or committed");
        drop(with);
        await_all(&sums, RECORDS);

        let best = best_of_turns(RATIO, alone, || shadowed(&bad, 1, usize::MAX).0);
        println!("{does}: {best:?} without and with it");
        assert!(best[1] <= best[0].mul_f64(RATIO), "{does}: {best:?} without and with it");
    }
}

#[test]
fn a_shadow_sees_one_record_in_so_many_and_passes_by_what_is_too_large_to_hold() {
    let engine = engine(None);
    let rewrite = prepare(&engine, "rewrite");
    let (mut task, sums) = shadowed(&rewrite, 10, usize::MAX);
    run(source(POLLS), &mut task);
    await_all(&sums, RECORDS / 10);
    let compared = sums.compared();
    assert!(compared.records > 0);
    assert_eq!((compared.differing, compared.kinds[Difference::Value as usize]), (compared.records, compared.records));
    let (mut task, sums) = shadowed(&rewrite, 10, BATCH);
    run(source(POLLS), &mut task);
    await_all(&sums, RECORDS / 10);
    assert_eq!(sums.compared().records, 0);
}

/// The route's shadow in the status, once it has been shown so many records.
fn await_shown(daemon: &Daemon, count: u64) -> Value {
    let mut shadow = Value::Null;
    wait_until(PATIENCE, &format!("{count} records are compared or skipped"), || {
        shadow = daemon.route("r")["shadow"].take();
        shadow["compared"].as_u64().zip(shadow["skipped"].as_u64()).is_some_and(|(one, two)| one + two == count)
    });
    shadow
}

#[test]
fn a_shadow_counts_what_differs_as_exactly_as_a_replay_does_and_a_reload_changes_what_is_compared() {
    let kafka = shared();
    let [source, target] = ["in", "out"].map(unique);
    for topic in [&source, &target] {
        kafka.create_topic(topic, 1, &[("retention.ms", "-1")]);
    }
    kafka.produce(&source, &records());
    let config = |pipeline: &str| config(&source, &target, pipeline);
    let (present, next) = (config(PRESENT), config(NEXT));
    let misbehave = format!("plugins:\n  misbehave: {{ path: {} }}", plugin("misbehave").display());
    let shadow = format!("    shadow: {{ pipeline: [{NEXT}] }}\n    destinations");
    present.edit(|yaml| yaml.replacen("plugins:", &misbehave, 1).replacen("    destinations", &shadow, 1));
    let mut daemon = Daemon::start(present.path());

    let shadow = await_shown(&daemon, 100);
    assert_eq!((&shadow["compared"], &shadow["differing"]), (&json!(100), &json!(30)), "{shadow}");
    assert_eq!(shadow["differences"], json!({ "count": 10, "value": 20 }), "{shadow}");
    let next = next.path().to_str().expect("a path");
    let sum = replay(&present, &["--diff", "--plugin-set", next, "--limit", "0"]).pop().expect("a sum");
    assert_eq!((&sum["differing"], &sum["differences"]), (&shadow["differing"], &shadow["differences"]), "{sum}");

    // Examples say which records, and nothing of what they hold.
    let examples = shadow["examples"].as_array().expect("a list");
    assert_eq!(examples.len(), 4, "{shadow}");
    for example in examples {
        let value = example["offset"].as_i64().is_some_and(|offset| offset % 5 == 0);
        assert_eq!(example["differences"], json!([if value { "value" } else { "count" }]), "{example}");
        assert!(!example.to_string().contains("4711"), "{example}");
    }
    let count = |name: &str, label: (&str, &str)| daemon.metric(name, &[("route", "r"), label]);
    assert_eq!(count("millrace_shadow_records_total", ("outcome", "different")), Some(30.0));
    assert_eq!(count("millrace_shadow_records_total", ("outcome", "same")), Some(70.0));
    assert_eq!(count("millrace_shadow_differences_total", ("code", "value")), Some(20.0));
    let screen = millrace(&["status", "--url", &daemon.url()]).output().expect("the millrace binary runs");
    let screen = String::from_utf8_lossy(&screen.stdout).into_owned();
    assert!(screen.contains("shadow: 30 of 100 records") && screen.contains("1 output → 0 outputs"), "{screen}");
    // What the route itself makes is what the first set makes.
    assert_eq!(kafka.await_records(&target, 100, PATIENCE).len(), 100);

    // Another one is taken up in place, and what is counted begins anew with it.
    let rebalances = || count("millrace_rebalances_total", ("route", "r"));
    let before = rebalances();
    let traps = format!("{{ plugin: misbehave, config: {{ do: trap, when: test }} }}, {PRESENT}");
    present.edit(|yaml| yaml.replacen(NEXT, &traps, 1));
    daemon.await_workers("r", 2, PATIENCE);
    assert_eq!(await_shown(&daemon, 0)["examples"], json!([]));
    // (all at once, so that they are one look)
    daemon.post("/api/v1/routes/r/pause");
    daemon.await_state("r", "paused", PATIENCE);
    kafka.produce(&source, &records());
    daemon.post("/api/v1/routes/r/resume");
    let shadow = await_shown(&daemon, 100);
    assert_eq!(shadow["differences"], json!({ "fault": 10 }), "{shadow}");
    assert!(shadow["examples"][0]["second"].as_str().is_some_and(|said| said.starts_with("trapped: ")), "{shadow}");
    assert_eq!(rebalances(), before);
    assert_eq!(kafka.await_records(&target, 200, PATIENCE).len(), 200);
    assert_eq!(daemon.route("r")["last_fault"], Value::Null, "no record of the route's was at fault");

    // One that cannot be made refuses the change, as any plugin does.
    present.edit(|yaml| yaml.replacen("do: trap", "do: fail_configure", 1));
    wait_until(PATIENCE, "the change is refused", || daemon.reloads("rejected") > 0.0);
    let told = daemon.status()["last_reload"].to_string();
    assert!(told.contains("told to fail in configure"), "{told}");
    assert_eq!(daemon.route("r")["shadow"]["compared"], 100);

    // One that loops is in the way of nothing, the end of the process included.
    present.edit(|yaml| yaml.replacen("do: fail_configure", "do: loop", 1));
    daemon.await_workers("r", 3, PATIENCE);
    kafka.produce(&source, &records());
    assert_eq!(kafka.await_records(&target, 300, PATIENCE).len(), 300);
    assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0), "{}", daemon.log());
}

#[test]
fn each_kind_of_difference_is_told_for_what_it_is() {
    let record = MemoryRecord::of_value("value").key("key").header("h", "v");
    let items = |change: fn(&mut Items)| {
        let mut items = Items::of(MemoryBatch::numbered(vec![record.clone()]), 0..1);
        items.chunks.push(b"other".to_vec());
        change(&mut items);
        items
    };
    const OTHER: Span = Span { chunk: 0, start: 0, end: 5 };
    let destinations = ["one", "two"].map(|name| Destination {
        name: DestinationName::new(name).expect("a name"),
        ..task(&[]).destinations.remove(0)
    });
    let as_it_is = items(|_| {});
    let refused = Fault { code: FaultCode::Refused, message: "no".into(), plugin: None };
    let differences = |changed: &Items, faults: &[(u32, Fault)]| {
        let first = Made::of([(&as_it_is, &[][..])], 0, &destinations);
        first.differences(&Made::of([(changed, faults)], 0, &destinations))
    };
    type Case = (fn(&mut Items), &'static [Difference]);
    let cases: [Case; 9] = [
        (|_| {}, &[]),
        (|items| items.list.clear(), &[Difference::Count]),
        (|items| items.list.extend_from_within(..1), &[Difference::Count]),
        (|items| items.list[0].key = Field::Null, &[Difference::Key]),
        (|items| items.list[0].value = Field::Bytes(OTHER), &[Difference::Value]),
        (|items| items.list[0].headers = Some([].into()), &[Difference::Headers]),
        (|items| items.list[0].timestamp = Some(7), &[Difference::Timestamp]),
        (|items| items.list[0].send_to = SendTo::Named(1), &[Difference::Destination]),
        (
            |items| (items.list[0].partition, items.list[0].value) = (Some(1), Field::Null),
            &[Difference::Destination, Difference::Value],
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(differences(&items(change), &[]), expected);
    }
    assert_eq!(differences(&as_it_is, &[(0, refused)]), [Difference::Fault]);
}
