//! What a tap costs a route while nobody listens, and with one who does not keep up, beside a build that has none (the feature
//! `without-tap`). `make tap-cost` builds both, and runs this three times:
//!
//! - `--count FILE`, in each build: the instructions of the record loop for a record, by valgrind, into FILE. The loop runs without
//!   plugins and brokers, which would only hide the difference. A count that no machine's mood moves.
//! - `--write PAGE`, at the end: both binaries in turns on a real Kafka, records/s and CPU time; and all of it into PAGE. Both have
//!   the tests' hooks, as whatever is built beside a bench.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use millrace::model::clock::SimulatedClock;
use millrace::pipeline::tap::{Tap, Wanted};

#[path = "../tests/it/support/memory_batch.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod memory_batch;
#[path = "../tests/it/support/record_loop.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod record_loop;
#[path = "side_by_side/records.rs"]
#[allow(dead_code, reason = "the other bench uses more of it")]
mod records;
#[path = "side_by_side/running.rs"]
mod running;
#[path = "side_by_side/watch.rs"]
#[allow(dead_code, reason = "the other bench uses more of it")]
mod watch;

use records::{Kafka, Source};
use running::Running;
use watch::Measured;

/// Polls of the counted loop: full transactions.
const POLLS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a value: little, so that what is paid for each record shows.
const VALUE: usize = 100;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let value = |name: &str| words.iter().skip_while(|word| *word != name).nth(1).map(String::as_str);
    if let Some(what) = value("--run") {
        return run(what);
    }
    if let Some(file) = value("--count") {
        return std::fs::write(root().join(file), counted()).expect("the counts are written");
    }
    let number = |name: &str, or: usize| value(name).map_or(or, |text| text.parse().expect("a number"));
    let told = [instructions(), on_kafka(number("--rounds", 7), number("--records", 2_000_000))].concat();
    println!("{told}");
    if let Some(page) = value("--write") {
        write(&root().join(page), &told);
    }
}

// ---- instructions ---------------------------------------------------------------------------------------------------

/// What is counted: the loop with nobody at the tap, and with one who takes nothing; and what comes before the loop.
const RUNS: [&str; 3] = ["unheard", "heard", "nothing"];

fn run(what: &str) {
    // (valgrind hides from the process the memory in which its true clock lies)
    SimulatedClock::default().rule_this_thread();
    let (source, mut task, tap) = (record_loop::source(POLLS), record_loop::task(&[]), Tap::default());
    task.chain.show(&tap);
    let listening = (what == "heard").then(|| tap.listen(Wanted::default(), Box::new(|_| false)));
    if what != "nothing" {
        record_loop::run(source, &mut task);
    }
    drop(listening);
}

/// Instructions for a record, unheard and heard, a line each.
fn counted() -> String {
    let [unheard, heard, nothing] = RUNS.map(|what| {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        let output = valgrind.arg(std::env::current_exe().expect("this one")).args(["--run", what]).output();
        let output = output.unwrap_or_else(|error| panic!("valgrind: {error}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: {said}");
        let count = said.lines().find_map(|line| line.split_once("Collected : ")).map(|(_, count)| count.trim());
        count.and_then(|count| count.parse::<f64>().ok()).unwrap_or_else(|| panic!("valgrind counts nothing:\n{said}"))
    });
    let records = (POLLS * record_loop::BATCH) as f64;
    format!("{:.1}\n{:.1}\n", (unheard - nothing) / records, (heard - nothing) / records)
}

fn instructions() -> String {
    let read = |file: &str| -> Vec<f64> {
        let text = std::fs::read_to_string(root().join("target").join(file));
        let text = text.unwrap_or_else(|error| panic!("target/{file}: {error}: run `make tap-cost`"));
        text.lines().map(|line| line.parse().expect("a count")).collect()
    };
    let (without, with) = (read("tap-cost-without")[0], read("tap-cost-with"));
    let line = |name: &str, count: f64| format!("| {name} | {count:.1} | {:.3} |\n", count / without);
    [
        "\n| the record loop, without plugins or brokers | instructions a record | ratio |\n|---|---|---|\n".to_owned(),
        line("a build without the tap", without),
        line("nobody listens", with[0]),
        line("one listens and takes nothing", with[1]),
    ]
    .concat()
}

// ---- a real Kafka ---------------------------------------------------------------------------------------------------

/// What runs: the binary's name, and whether somebody listens.
const CONTENDERS: [(&str, &str, bool); 3] = [
    ("a build without the tap", "millrace-without-tap", false),
    ("nobody listens", "millrace-with-tap", false),
    ("one listens and does not keep up", "millrace-with-tap", true),
];

fn on_kafka(rounds: usize, count: usize) -> String {
    let kafka = Kafka::start();
    let source = kafka.fill("source", count, VALUE, false);
    let mut runs: BTreeMap<&str, Vec<Measured>> = BTreeMap::new();
    for round in 0..rounds {
        // (each comes first in its turn)
        for (name, binary, heard) in (0..CONTENDERS.len()).map(|nth| CONTENDERS[(nth + round) % CONTENDERS.len()]) {
            let measured = measure(&kafka, binary, heard, &source);
            eprintln!("round {}: {name}: {measured:?}", round + 1);
            runs.entry(name).or_default().push(measured);
        }
    }
    let without = &runs[CONTENDERS[0].0];
    let line = |(name, ..): (&str, &str, bool)| {
        let spread = |of: fn(&Measured) -> f64| {
            let ratios = runs[name].iter().zip(without).map(|(own, other)| of(own) / of(other));
            let mut all: Vec<f64> = ratios.collect();
            all.sort_by(f64::total_cmp);
            format!("{:.2} ({:.2}–{:.2})", all[all.len() / 2], all[0], all[all.len() - 1])
        };
        format!("| {name} | {} | {} |\n", spread(|run| run.rate), spread(|run| run.cpu))
    };
    let head = format!(
        "\n| a real Kafka, {VALUE} B a record: medians of {rounds} rounds (lowest–highest) | records/s | CPU a record |\n|---|---|---|\n"
    );
    head + &CONTENDERS.map(line).concat()
}

fn measure(kafka: &Kafka, binary: &str, heard: bool, source: &Source) -> Measured {
    let count = source.count;
    let run = format!("{:08x}", fastrand::u32(..));
    let (target, group) = (format!("out-{run}"), format!("bench.{run}"));
    kafka.create(&target);
    let directory = tempfile::tempdir().expect("a directory");
    let admin = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let child = millrace(directory.path(), binary, &yaml(kafka, admin, &target, &group));
    let mut running = Running::of(child, directory);
    let (ended, end) = channel();
    let listener = heard.then(|| std::thread::spawn(move || listen_slowly(admin, &end)));
    let measured = watch::watch(kafka, &mut running, source, &group, 0);
    running.end();
    drop(ended);
    let taken = listener.map(|listener| listener.join().expect("it listens to the end"));
    // (each record is seen twice, and takes more than its value)
    assert!(taken.is_none_or(|taken| (1..count * VALUE).contains(&taken)), "{taken:?} bytes of {count} records");
    assert_eq!(kafka.committed_records(&target), count, "{binary}: every record arrives once");
    kafka.delete(&target);
    measured
}

fn yaml(kafka: &Kafka, admin: SocketAddr, target: &str, group: &str) -> String {
    format!(
        "kafka: {{ prefix: bench, bootstrap.servers: \"{}\" }}\nadmin: {{ listen: \"{admin}\" }}\nroutes:\n  r:\n    source: \
         {{ topics: [source], group: {group}, start: earliest }}\n    destinations: [{{ topic: {target} }}]\n",
        kafka.bootstrap
    )
}

fn millrace(directory: &Path, binary: &str, yaml: &str) -> Child {
    let path = directory.join("millrace.yaml");
    std::fs::write(&path, yaml).expect("the configuration is written");
    let mut command = Command::new(root().join("target/release").join(binary));
    command.arg("run").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("target/release/{binary}: {error}: run `make tap-cost`"))
}

/// Takes in what the tap says, much slower than records pass, until the end; how many bytes that were.
fn listen_slowly(admin: SocketAddr, end: &Receiver<()>) -> usize {
    let listen = || -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(admin)?;
        write!(stream, "GET /api/v1/routes/r/tap HTTP/1.1\r\nHost: {admin}\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        if head == *b"HTTP/1.1 200" { Ok(stream) } else { Err(ErrorKind::NotFound.into()) }
    };
    let began = std::time::Instant::now();
    let mut stream = loop {
        match listen() {
            Ok(stream) => break stream,
            Err(error) => assert!(began.elapsed() < PATIENCE, "nobody answers: {error}"),
        }
        pace(Duration::from_millis(20));
    };
    let (mut taken, mut some) = (0, [0; 4096]);
    while let (Ok(count @ 1..), Err(RecvTimeoutError::Timeout)) =
        (stream.read(&mut some), end.recv_timeout(Duration::from_millis(50)))
    {
        taken += count;
    }
    taken
}

// ---- the page -------------------------------------------------------------------------------------------------------

const BEGIN: &str = "<!-- begin: make tap-cost writes this -->";
const END: &str = "<!-- end of what make tap-cost writes -->";

fn write(path: &Path, told: &str) {
    let page = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.unwrap_or_else(|| panic!("{} has no {BEGIN} … {END}", path.display()));
    let date = jiff::Timestamp::now().to_string();
    let page = format!("{before}{BEGIN}\n{}, ratios to the build without the tap.\n{told}{END}{after}", &date[..10]);
    std::fs::write(path, page).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// Waits a little; something else says for what.
fn pace(time: Duration) {
    std::thread::park_timeout(time);
}
