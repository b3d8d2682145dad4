//! millrace beside a bare librdkafka loop, on a real Apache Kafka, in one run on one machine: `make bench`.
//!
//! Each round runs every contender once, one after the other, on topics and groups of its own; what is told is the median of
//! the rounds, each held against the bare loop of the same round, with the lowest and the highest. Absolute figures say as
//! much about the machine as about the contender, so none are told.
//!
//! MILLRACE names the binary; else it is the one that is built with the tests' hooks.
//!
//!   cargo bench --bench side_by_side -- [--rounds N] [--records N] [--only NAME] [--write docs/performance.md]

mod bare_loop;
mod records;
mod table;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use records::Kafka;
use table::Table;
use watch::Measured;

/// Bytes of a value, and of how many times `--records` the records are, so that each run takes seconds.
const SIZES: [(&str, usize, usize); 2] = [("1 KiB", 1024, 1), ("100 B", 100, 4)];
const REFERENCE: &str = "bare loop";

/// One that copies a topic.
struct Contender {
    name: &'static str,
    how: How,
}

enum How {
    /// The bare loop; `keeps`: timestamps, as a router has to.
    Loop { keeps: bool },
    /// millrace, with these lines of YAML: plugins, and the route's pipeline.
    Millrace(&'static str, &'static str),
}

const CONTENDERS: &[Contender] = &[
    Contender { name: REFERENCE, how: How::Loop { keeps: false } },
    Contender { name: "bare loop that keeps timestamps", how: How::Loop { keeps: true } },
    Contender { name: "millrace, no plugin", how: How::Millrace("", "") },
    Contender {
        name: "millrace, a filter that keeps all",
        how: How::Millrace("{ p: { path: DIST/identity-pass.wasm } }", "[{ plugin: p }]"),
    },
    Contender {
        name: "millrace, a filter that looks at a header",
        how: How::Millrace("{ p: { path: DIST/header-filter.wasm } }", "[{ plugin: p }]"),
    },
    Contender {
        name: "millrace, a filter that scans the value",
        how: How::Millrace("{ p: { path: DIST/scan.wasm } }", "[{ plugin: p }]"),
    },
    Contender {
        name: "millrace, a JSON transform",
        how: How::Millrace("{ p: { path: DIST/redact-fields.wasm, config: { fields: [ip] } } }", "[{ plugin: p }]"),
    },
];

struct Options {
    rounds: usize,
    records: usize,
    only: Option<String>,
    write: Option<PathBuf>,
}

fn main() {
    if let Some(job) = bare_loop::Job::of_environment() {
        return bare_loop::run(&job);
    }
    let options = options();
    let kafka = Kafka::start();
    let mut tables = Vec::new();
    for (label, size, times) in SIZES {
        let source = format!("source-{size}");
        let count = options.records * times;
        eprintln!("{count} records of {label} …");
        kafka.fill(&source, count, size);
        let mut runs: BTreeMap<&str, Vec<Measured>> = BTreeMap::new();
        for round in 1..=options.rounds {
            for contender in chosen(&options) {
                let measured = measure(&kafka, contender, &source, count);
                eprintln!("{label}, round {round}: {}: {measured:?}", contender.name);
                runs.entry(contender.name).or_default().push(measured);
            }
        }
        let order: Vec<&str> = chosen(&options).map(|contender| contender.name).collect();
        tables.push(Table::new(label, &order, REFERENCE, &runs));
    }
    let told: String = tables.iter().map(ToString::to_string).collect();
    println!("{told}");
    if let Some(path) = &options.write {
        table::write(path, &told, &tables, options.rounds);
    }
}

fn chosen(options: &Options) -> impl Iterator<Item = &'static Contender> {
    let only = options.only.clone();
    CONTENDERS.iter().filter(move |contender| {
        contender.name == REFERENCE || only.as_ref().is_none_or(|only| contender.name.contains(only.as_str()))
    })
}

fn options() -> Options {
    let mut options = Options { rounds: 5, records: 1_000_000, only: None, write: None };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} wants a value"));
        match word.as_str() {
            "--rounds" => options.rounds = value().parse().expect("--rounds is a number"),
            "--records" => options.records = value().parse().expect("--records is a number"),
            "--only" => options.only = Some(value()),
            "--write" => options.write = Some(PathBuf::from(value())),
            other => panic!("{other}: the options are --rounds, --records, --only and --write"),
        }
    }
    options
}

fn measure(kafka: &Kafka, contender: &Contender, source: &str, count: usize) -> Measured {
    let run = format!("{}-{}", source, fastrand::u32(..));
    let (target, group) = (format!("out-{run}"), format!("bench.{run}"));
    kafka.create(&target);
    let directory = tempfile::tempdir().expect("a directory");
    let mut child = match contender.how {
        How::Loop { keeps } => bare_loop::start(kafka, source, &target, &group, keeps),
        How::Millrace(plugins, pipeline) => {
            millrace(directory.path(), &yaml(kafka, source, &target, &group, plugins, pipeline))
        }
    };
    let measured = watch::watch(kafka, &mut child, source, &group, count);
    watch::end(child);
    assert_eq!(kafka.committed_records(&target), count, "{}: every record arrives once", contender.name);
    kafka.delete(&target);
    measured
}

fn yaml(kafka: &Kafka, source: &str, target: &str, group: &str, plugins: &str, pipeline: &str) -> String {
    let key = |name: &str, value: &str| if value.is_empty() { String::new() } else { format!("{name}: {value}\n") };
    let dist = root().join("plugins/dist");
    let plugins = key("plugins", plugins).replace("DIST", &dist.display().to_string());
    let pipeline = key("    pipeline", pipeline);
    format!(
        "kafka: {{ prefix: bench, bootstrap.servers: \"{}\" }}\nadmin: {{ listen: \"127.0.0.1:0\" }}\n{plugins}routes:\n  \
         r:\n    source: {{ topics: [{source}], group: {group}, start: earliest }}\n{pipeline}    destinations: \
         [{{ topic: {target} }}]\n",
        kafka.bootstrap
    )
}

fn millrace(directory: &Path, yaml: &str) -> Child {
    let path = directory.join("millrace.yaml");
    std::fs::write(&path, yaml).expect("the configuration is written");
    // (the one that is built with this has the tests' hooks in it)
    let plain = std::env::var_os("MILLRACE").unwrap_or_else(|| env!("CARGO_BIN_EXE_millrace").into());
    let mut command = Command::new(plain);
    command.arg("run").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("millrace starts")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Waits a little; something else says for what.
fn pace(time: Duration) {
    std::thread::park_timeout(time);
}
