//! millrace beside a bare librdkafka loop, and beside its peers where they are installed, on a real Apache Kafka, in one run
//! on one machine: `make bench`.
//!
//! Parts, each on a broker of its own, each with its section of the page: `copy`, `distance`, `latency`, `peers`, `scale`; and `calls`, which
//! only tells what another benchmark found. Each round runs every contender once, one after the other, on topics and groups of its own; what is told is the median of the rounds,
//! each held against another contender of the same round, with the lowest and the highest.
//!
//! MILLRACE names the binary; else it is the one that is built with the tests' hooks.
//!
//!   cargo bench --bench side_by_side -- [--only PART,PART] [--rounds N] [--records N] [--contender NAME]
//!                                       [--write docs/performance.md]

mod bare_loop;
mod calls;
mod contenders;
mod copy;
mod distance;
mod idle;
mod latency;
mod peers;
mod records;
mod running;
mod scale;
mod table;
mod watch;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

type Part = fn(&Options) -> String;
const PARTS: [(&str, Part); 6] = [
    ("calls", calls::run),
    ("copy", copy::run),
    ("distance", distance::run),
    ("latency", latency::run),
    ("peers", peers::run),
    ("scale", scale::run),
];

struct Options {
    /// How often each contender runs, where it is said.
    rounds: Option<usize>,
    /// Of 1 KiB, in a run; the other sizes follow it.
    records: usize,
    only: Vec<String>,
    /// Of the copy, a part of its name.
    contender: Option<String>,
    write: Option<PathBuf>,
}

impl Options {
    fn rounds(&self, unless_said: usize) -> usize {
        self.rounds.unwrap_or(unless_said)
    }
}

fn main() {
    if let Some(job) = bare_loop::Job::of_environment() {
        return bare_loop::run(&job);
    }
    if let Some(job) = idle::Job::of_environment() {
        return idle::run(&job);
    }
    let options = options();
    for (name, part) in PARTS {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        let began = Instant::now();
        let told = part(&options);
        eprintln!("{name}: {} s", began.elapsed().as_secs());
        println!("{told}");
        if let Some(path) = &options.write {
            table::write(path, name, &told);
        }
    }
}

fn options() -> Options {
    let mut options = Options { rounds: None, records: 1_000_000, only: Vec::new(), contender: None, write: None };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} wants a value"));
        match word.as_str() {
            "--rounds" => options.rounds = Some(value().parse().expect("--rounds is a number")),
            "--records" => options.records = value().parse().expect("--records is a number"),
            "--only" => options.only = value().split(',').map(str::to_owned).collect(),
            "--contender" => options.contender = Some(value()),
            "--write" => options.write = Some(PathBuf::from(value())),
            other => panic!("{other}: the options are --only, --rounds, --records, --contender and --write"),
        }
    }
    let known = |only: &String| PARTS.iter().any(|(name, _)| name == only);
    assert!(options.only.iter().all(known), "the parts are {:?}", PARTS.map(|(name, _)| name));
    options
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Waits a little; something else says for what.
fn pace(time: Duration) {
    std::thread::park_timeout(time);
}
