//! The guard of the record loop's cost that no machine's mood moves: what it allocates for each record more, plugins
//! included. What is per batch or per transaction shows as a fraction.
//!
//! A figure that has risen is either a mistake or has a reason, which the commit that changes it here gives.

use std::time::Duration;

use millrace::pipeline::ports::Step;
use millrace::pipeline::tap::{Tap, Wanted};
use millrace::pipeline::task::Task;

use crate::support::guests::engine;
use crate::support::memory_batch::{MemoryBatch, MemoryRecord};
use crate::support::record_loop::{BATCH, best_of_turns, prepare, run, source, task};

const SECOND: Duration = Duration::from_secs(1);

/// Allocations that one thousand records more cost.
fn per_thousand(task: impl Fn() -> Task) -> f64 {
    let count = |polls: usize| {
        let (source, mut task) = (source(polls), task());
        allocation_counter::measure(|| run(source, &mut task)).count_total as f64
    };
    // (the first makes the instances)
    count(1);
    let (few, many) = (2, 6);
    (count(many) - count(few)) * 1000.0 / ((many - few) * BATCH) as f64
}

#[test]
fn a_record_more_allocates_nothing_of_its_own_with_plugins_or_without() {
    let engine = engine(None);
    let guest = |name| prepare(&engine, name);
    for (what, plugins, at_most) in [
        ("no plugin", vec![], 1.5),
        ("a filter that looks at nothing", vec![guest("identity-pass")], 20.0),
        ("a filter that looks at a header", vec![guest("header-filter")], 22.0),
        ("a transform that rewrites each value", vec![guest("rewrite")], 27.0),
        ("two filters", vec![guest("identity-pass"), guest("header-filter")], 40.0),
    ] {
        let found = per_thousand(|| task(&plugins));
        println!("{what}: {found:.1} allocations for 1,000 records");
        assert!(found <= at_most, "{what}: {found:.1} allocations for 1,000 records, where {at_most} were enough");
    }
}

/// Allocations of one call of a guest that has been called before.
fn of_a_call(step: &mut impl Step, records: usize) -> u64 {
    let record =
        |number: usize| MemoryRecord::of_value(vec![b'a'; 100]).key(format!("{number:016}")).header("keep", "yes");
    let mut items = MemoryBatch::numbered((0..records).map(record).collect()).items();
    let mut call = || {
        let output = step.call(&mut items, 0..records, SECOND).expect("a sound guest");
        items.chunks.clear();
        drop(output);
    };
    call();
    allocation_counter::measure(call).count_total
}

#[test]
fn a_call_of_a_guest_allocates_for_the_call_and_not_for_its_records() {
    let engine = engine(None);
    for (guest, at_most) in [("identity-pass", 9), ("header-filter", 10), ("scan", 9), ("rewrite", 12)] {
        let mut step = prepare(&engine, guest).step();
        let [few, many] = [16, 512].map(|records| of_a_call(&mut step, records));
        println!("{guest}: {few} allocations for a call with 16 records, {many} with 512");
        assert!(
            many <= at_most,
            "{guest}: {many} allocations for a call with 512 records, where {at_most} were enough"
        );
    }
}

/// Of the time that a route takes while nobody listens: what it may take for one who does not keep up.
const RATIO: f64 = 1.5;

#[test]
fn a_listener_who_does_not_keep_up_costs_a_record_no_allocation_and_hardly_any_time() {
    let tap = Tap::default();
    let listened = || {
        let mut task = task(&[]);
        task.chain.show(&tap);
        task
    };
    let listening = tap.listen(Wanted::default(), Box::new(|_| false)).expect("nobody else listens");
    let (unheard, heard) = (per_thousand(|| task(&[])), per_thousand(listened));
    assert!(
        heard <= unheard + 1.0,
        "{unheard:.1} allocations for 1,000 records without a listener, {heard:.1} with it"
    );
    let best = best_of_turns(RATIO, || task(&[]), listened);
    println!("{best:?} without and with a listener");
    assert!(listening.missed() > 0);
    assert!(best[1] <= best[0].mul_f64(RATIO), "{best:?} without and with a listener");
}
