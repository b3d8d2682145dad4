//! What `cargo bench --bench plugin_call` found the last time, as a table. Needs no Kafka.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::Value;

use crate::table::today;
use crate::{Options, root};

/// As that benchmark names them.
const JOBS: [(&str, &str); 12] = [
    ("Rust, a filter that looks at nothing", "identity"),
    ("Rust, header", "header"),
    ("Rust, a filter that scans the value", "scan"),
    ("Rust, rewrite", "rewrite"),
    ("C, header", "c header"),
    ("C, rewrite", "c rewrite"),
    ("Go, header", "go header"),
    ("Go, rewrite", "go rewrite"),
    ("JavaScript, header", "javascript header"),
    ("JavaScript, rewrite", "javascript rewrite"),
    ("Python, header", "python header"),
    ("Python, rewrite", "python rewrite"),
];
const SIZES: [&str; 2] = ["100 B", "1 KiB"];
const BATCHES: [u32; 3] = [1, 128, 512];

pub(crate) fn run(_: &Options) -> String {
    let mut told = format!("{}. Nanoseconds a record, by its size and the records of a call.\n\n|", today());
    for (size, batch) in cases() {
        write!(told, " | {size}, {batch}").expect("a text takes all");
    }
    told += &format!(" |\n|---|{}\n", "---|".repeat(SIZES.len() * BATCHES.len()));
    let mut missing = Vec::new();
    for (name, job) in JOBS {
        let Some(figures) = cases().map(|(size, batch)| nanoseconds(job, size, batch)).collect::<Option<Vec<f64>>>()
        else {
            missing.push(name);
            continue;
        };
        let figures: String = figures.iter().map(|nanoseconds| format!(" {nanoseconds:.0} |")).collect();
        told += &format!("| {name} |{figures}\n");
    }
    if !missing.is_empty() {
        told += &format!("\nNot measured: {}. `scripts/languages bench` builds them.\n", missing.join("; "));
    }
    told
}

fn cases() -> impl Iterator<Item = (&'static str, u32)> {
    SIZES.into_iter().flat_map(|size| BATCHES.into_iter().map(move |batch| (size, batch)))
}

/// The median, where criterion has kept one.
fn nanoseconds(job: &str, size: &str, batch: u32) -> Option<f64> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let kept = target.join(format!("criterion/{job} {size}/{batch}/new/estimates.json"));
    let kept: Value = serde_json::from_slice(&std::fs::read(kept).ok()?).ok()?;
    Some(kept["median"]["point_estimate"].as_f64()? / f64::from(batch))
}
