//! Other routers at the same copy, where they are installed (scripts/peers): each on its own terms, which are told beside it.
//!
//! Kafka Streams is warm: what is measured is the second half of its records. Benthos gets fewer records, since it would take
//! minutes; it has nothing to get warm.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::contenders::{How, Job, PLAIN, measure};
use crate::records::{Kafka, Source};
use crate::table::{Spread, how, thousands};
use crate::watch::Measured;
use crate::{Options, root};

struct Peer {
    name: &'static str,
    /// In what it is not as it comes.
    tuning: &'static str,
    /// By what scripts/peers installs it; nothing for what is here anyway.
    installed_as: Option<&'static str>,
    how: How,
    /// Whether it gets the few records.
    slow: bool,
}

const TUNED: &str = "exactly_once_v2, commit 100 ms, 2 threads, linger 20 ms, batch 128 KiB, max.poll.records 5000, \
                     buffered.records.per.partition 10000, lz4; warm";
const TUNING: &[&str] = &[
    "producer.linger.ms=20",
    "producer.batch.size=131072",
    "consumer.max.poll.records=5000",
    "buffered.records.per.partition=10000",
];
const BENTHOS: &str = "at least once, 2 threads, lz4, batches of 1,000 or 20 ms; reorders within a key";
const ORDERED: &str = "the same with max_in_flight 1, which keeps the order";
const OURS: &str = "millrace";

const fn ours(how: How) -> Peer {
    Peer { name: OURS, tuning: "exactly once, as it comes", installed_as: None, how, slow: false }
}

const fn streams(edits: bool) -> Peer {
    let how = How::Streams { edits, settings: TUNING };
    Peer { name: "Kafka Streams", tuning: TUNED, installed_as: Some("streams"), how, slow: false }
}

/// What any of them can be at best.
const fn bare(edits: bool) -> Peer {
    let tuning = "the reference, for what can be: no group, one thread; loses timestamps";
    Peer { name: "bare loop", tuning, installed_as: None, how: How::Loop { keeps: false, edits }, slow: false }
}

const fn benthos(edits: bool, in_flight: u32) -> Peer {
    let tuning = if in_flight == 1 { ORDERED } else { BENTHOS };
    let how = How::Benthos { edits, in_flight };
    let name = if in_flight == 1 { "Benthos, in order" } else { "Benthos" };
    Peer { name, tuning, installed_as: Some("benthos"), how, slow: true }
}

const JSON: How = How::Millrace { plugins: "{ p: { path: DIST/json-edit.wasm } }", route: "pipeline: [{ plugin: p }]" };

/// A job, how many records of how many bytes it has (in parts of `--records`), and who does it.
const JOBS: &[(&str, usize, usize, &[Peer])] = &[
    ("1 KiB, plain", 1024, 2, &[ours(PLAIN), bare(false), streams(false), benthos(false, 10), benthos(false, 1)]),
    ("1 KiB, the JSON transform", 1024, 1, &[ours(JSON), bare(true), streams(true), benthos(true, 10)]),
    ("100 B, plain", 100, 10, &[ours(PLAIN), bare(false), streams(false), benthos(false, 10), benthos(false, 1)]),
];
/// The part of `--records` that slow ones get.
const FEW: usize = 4;

pub(crate) fn run(options: &Options) -> String {
    let kafka = &Kafka::start();
    let rounds = options.rounds(3);
    let mut told = format!("{} How many times as much as the peer's millrace does in the same round.\n", how(rounds));
    for (nth, (label, size, times, peers)) in JOBS.iter().enumerate() {
        let present: Vec<&Peer> =
            peers.iter().filter(|peer| peer.installed_as.is_none_or(|it| missing(it).is_none())).collect();
        let (many, few) = (options.records * times, options.records / FEW);
        eprintln!("peers: {many} records, {label}, and {few} …");
        let [many, few] = [many, few].map(|count| kafka.fill(&format!("job-{nth}-{count}"), count, *size, false));
        let mut runs: BTreeMap<&str, Vec<Measured>> = BTreeMap::new();
        for round in 1..=rounds {
            for peer in &present {
                let measured = measure_one(kafka, peer, if peer.slow { &few } else { &many }, round == 1);
                eprintln!("{label}, round {round}: {}: {measured:?}", peer.name);
                runs.entry(peer.name).or_default().push(measured);
            }
        }
        table(&mut told, label, &present, &runs);
        [&many, &few].into_iter().for_each(|source| kafka.delete(&source.topic));
    }
    ["streams", "benthos"].into_iter().filter_map(missing).for_each(|line| told += &format!("\n{line}\n"));
    told
}

fn measure_one(kafka: &Kafka, peer: &Peer, source: &Source, counted: bool) -> Measured {
    // (at least once may be more than once)
    let after = if peer.slow { 0 } else { source.count / 2 };
    measure(kafka, &peer.how, source, after, counted && !peer.slow)
}

fn table(told: &mut String, label: &str, present: &[&Peer], runs: &BTreeMap<&str, Vec<Measured>>) {
    let mut line = |line: String| writeln!(told, "{line}").expect("a text takes all");
    line(format!(
        "\n| {label} | records/s | records per CPU second | millrace: times its records/s | times its records per CPU second | tuning |"
    ));
    line("|---|---|---|---|---|---|".into());
    for peer in present {
        let (own, ours) = (&runs[peer.name], &runs[OURS]);
        let rate = thousands(Spread::of(own.iter().map(|run| run.rate)).median);
        let per_cpu = thousands(Spread::of(own.iter().map(|run| 1e6 / run.cpu)).median);
        let [times, times_cpu] = if peer.name == OURS {
            ["1".to_owned(), "1".to_owned()]
        } else {
            let cpu = Spread::of_ratios(own, ours, |run| run.cpu);
            [format!("{:.1}", Spread::of_ratios(ours, own, |run| run.rate)), format!("{cpu:.1}")]
        };
        line(format!("| {} | {rate} | {per_cpu} | {times} | {times_cpu} | {} |", peer.name, peer.tuning));
    }
}

/// A line that says how to get one that is not installed.
pub(crate) fn missing(name: &str) -> Option<String> {
    which(name).is_none().then(|| format!("Not installed, and left out: {name}. `scripts/peers {name}` gets it."))
}

fn which(name: &str) -> Option<String> {
    let found = Command::new(root().join("scripts/peers")).args(["which", name]).output().expect("scripts/peers runs");
    let text = String::from_utf8(found.stdout).expect("a path");
    found.status.success().then(|| text.trim().to_owned())
}

/// Kafka Streams with the copy loop of peers/CopyStreams.java.
pub(crate) fn streams_command(job: &Job, directory: &Path, edits: bool, settings: &[&str]) -> Command {
    let mut command = Command::new("java");
    command.args(["-Xms256m", "-Xmx1g", "-XX:+UseG1GC", "-cp"]).arg(which("streams").expect("it is installed"));
    command.arg("CopyStreams").args([&job.bootstrap, &job.source, &job.target, &job.group]);
    command.arg(directory.join("state")).arg(if edits { "json" } else { "plain" }).args(settings);
    command
}

/// Benthos with peers/benthos.yaml.
pub(crate) fn benthos_command(job: &Job, directory: &Path, edits: bool, in_flight: u32) -> Command {
    let edit = r#"{ bloblang: 'root = if this.status == "test" { deleted() } else { this.without("ip").merge({"routed_by":"router"}) }' }"#;
    let page = root().join("benches/side_by_side/peers/benthos.yaml");
    let yaml = std::fs::read_to_string(page).expect("it is there").replace("PROCESSORS", if edits { edit } else { "" });
    let path = directory.join("benthos.yaml");
    std::fs::write(&path, yaml).expect("the configuration is written");
    let mut command = Command::new(which("benthos").expect("it is installed"));
    command.arg("-c").arg(path).env("MAX_IN_FLIGHT", in_flight.to_string());
    command.env("BOOTSTRAP", &job.bootstrap).env("SOURCE", &job.source).env("TARGET", &job.target);
    command.env("GROUP", &job.group);
    command
}
