//! The guard of the record loop's cost that no machine's mood moves: what it allocates for each record more, plugins
//! included. What is per batch or per transaction shows as a fraction.
//!
//! A figure that has risen is either a mistake or has a reason, which the commit that changes it here gives.

use std::sync::Arc;

use millrace::plugin::Prepared;

use crate::support::guests::engine;
use crate::support::record_loop::{BATCH, prepare, run, source, task};

/// Allocations that one thousand records more cost.
fn per_thousand(plugins: &[Arc<Prepared>]) -> f64 {
    let count = |polls: usize| {
        let (source, mut task) = (source(polls), task(plugins));
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
        ("no plugin", vec![], 2.0),
        ("a filter that looks at nothing", vec![guest("identity-pass")], 20.0),
        ("a filter that looks at a header", vec![guest("header-filter")], 22.0),
        ("a transform that rewrites each value", vec![guest("rewrite")], 27.0),
        ("two filters", vec![guest("identity-pass"), guest("header-filter")], 40.0),
    ] {
        let found = per_thousand(&plugins);
        println!("{what}: {found:.1} allocations for 1,000 records");
        assert!(found <= at_most, "{what}: {found:.1} allocations for 1,000 records, where {at_most} were enough");
    }
}
