//! More than one route that is busy: workers, hundreds of routes that wait, a backlog over all of them, the start, and a reload.

use std::collections::HashMap;
use std::io::BufRead as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::Value;

use crate::contenders::{How, binary, measure, millrace};
use crate::records::{Kafka, Values, send};
use crate::running::Running;
use crate::table::{Spread, how};
use crate::{Options, idle, pace, root, watch};

const ROUTES: usize = 200;
const PRODUCERS: usize = 8;
/// Records of the backlog, over all routes.
const BACKLOG: usize = 50_000;
/// How long idleness is looked at.
const IDLE: Duration = Duration::from_secs(20);
/// Until those that have just started have come to rest; a worker's producer does after half a minute.
const SETTLED: Duration = Duration::from_secs(45);
const WITHIN: Duration = Duration::from_secs(120);

pub(crate) fn run(options: &Options) -> String {
    let kafka = &Kafka::start();
    let rounds = options.rounds(5);
    let mut lines = vec![how(rounds), String::new(), "| | |".to_owned(), "|---|---|".to_owned()];
    lines.extend([workers(kafka, options, rounds), check(rounds), start(kafka, rounds)]);
    lines.extend(many_routes(kafka));
    lines.join("\n") + "\n"
}

/// Two workers beside one, with a plugin that takes so long that the broker is not what they wait for.
fn workers(kafka: &Kafka, options: &Options, rounds: usize) -> String {
    const JAVASCRIPT: [How; 2] = [
        How::Millrace {
            plugins: "{ p: { path: DIST/redact-javascript.wasm, config: { fields: [ip] } } }",
            route: "pipeline: [{ plugin: p }]",
        },
        How::Millrace {
            plugins: "{ p: { path: DIST/redact-javascript.wasm, config: { fields: [ip] } } }",
            route: "workers: 2\n    pipeline: [{ plugin: p }]",
        },
    ];
    if !root().join("plugins/dist/redact-javascript.wasm").is_file() {
        return "| 2 workers, of 1 | not measured: `scripts/languages javascript` builds the plugin |".into();
    }
    let count = options.records / 5;
    eprintln!("scale: {count} records through a plugin in JavaScript …");
    let source = kafka.fill("workers", count, 1024, false);
    let mut rates = [Vec::new(), Vec::new()];
    for round in 1..=rounds {
        for (how, rates) in JAVASCRIPT.iter().zip(&mut rates) {
            // (the second worker has joined by then)
            let measured = measure(kafka, how, &source, count / 4, round == 1);
            eprintln!("workers, round {round}: {measured:?}");
            rates.push(measured.rate);
        }
    }
    let times = Spread::of_ratios(&rates[1], &rates[0], |rate| *rate);
    format!("| records/s of 2 workers, of 1's, with a JSON transform in JavaScript | {times} |")
}

/// Reading a configuration of a thousand routes, from the start of the process to its end.
fn check(rounds: usize) -> String {
    const MANY: usize = 1_000;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("millrace.yaml");
    let yaml = Yaml { bootstrap: "127.0.0.1:9092", prefix: "check-", routes: MANY, admin: 0 };
    std::fs::write(&path, yaml.text(|_| "100ms")).expect("it is written");
    let times = (0..rounds).map(|_| {
        let began = Instant::now();
        let checked = Command::new(binary()).arg("check").arg(&path).output().expect("millrace starts");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        began.elapsed().as_secs_f64()
    });
    format!("| `millrace check` of {MANY} routes, s | {} |", Spread::of(times))
}

/// From the start of a process of one route until it is ready, beside one bare consumer and one bare producer.
fn start(kafka: &Kafka, rounds: usize) -> String {
    kafka.create_all(&["single-0", "target-single-0"], 1);
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let (running, time) = start_bare(kafka, "single-", 1, 1);
        running.end();
        bare.push(time.as_secs_f64());
        let daemon = Daemon::start(kafka, "single-", 1);
        ours.push(daemon.ready.as_secs_f64());
        daemon.running.end();
        eprintln!("start, round {round}: bare {:?} s, millrace {:?} s", bare.last(), ours.last());
    }
    let times = Spread::of_ratios(&ours, &bare, |time| *time);
    let [bare, ours] = [bare, ours].map(|times| Spread::of(times).median);
    format!(
        "| a daemon of one route ready after its start, of a bare consumer and producer's time | {times} ({ours:.2} s, {bare:.2} s) |"
    )
}

/// The lines that need them. Once, since they take minutes.
fn many_routes(kafka: &Kafka) -> Vec<String> {
    eprintln!("scale: {ROUTES} routes …");
    let names = |prefix: &str| (0..ROUTES).map(|nth| format!("{prefix}{nth}")).collect::<Vec<_>>();
    let (sources, targets) = (names("many-"), names("target-many-"));
    let all: Vec<&str> = sources.iter().chain(&targets).map(String::as_str).collect();
    kafka.create_all(&all, 1);
    let (bare, bare_ready) = start_bare(kafka, "many-", ROUTES, PRODUCERS);
    let bare_idle = idleness(&bare);
    bare.end();

    fill(kafka, &sources);
    let began = Instant::now();
    let (daemon, finished) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| drained(kafka, &targets, began));
        (Daemon::start(kafka, "many-", ROUTES), reader.join().expect("the reader"))
    });
    let ours_idle = idleness(&daemon.running);
    let reloads = [("100ms", 0), ("90ms", 1), ("80ms", ROUTES)].map(|(interval, changed)| {
        let time = daemon.reload(|route| if route < changed { interval } else { "100ms" });
        eprintln!("a reload that changes {changed} of {ROUTES} routes: {time:?}");
        time.as_secs_f64() * 1e3
    });
    let ready = daemon.ready;
    daemon.running.end();
    told(bare_ready, &bare_idle, ready, &ours_idle, &finished, reloads)
}

fn told(
    bare_ready: Duration,
    bare: &Idleness,
    ready: Duration,
    ours: &Idleness,
    finished: &[f64],
    reloads: [f64; 3],
) -> Vec<String> {
    let of = |ours: f64, bare: f64, unit: &str| format!("{:.2} ({ours:.1}{unit}, {bare:.1}{unit})", ours / bare);
    let beside = format!("of {ROUTES} bare consumers and {PRODUCERS} producers");
    let (first, median, last) = (finished[0], finished[finished.len() / 2], finished[finished.len() - 1]);
    vec![
        format!("| {ROUTES} idle routes, CPU, {beside} | {} |", of(ours.cpu, bare.cpu, " % of a core")),
        format!("| the same, resident memory | {} |", of(ours.resident, bare.resident, " MB")),
        format!(
            "| the same, threads | {:.2} ({:.0}, {:.0}) |",
            ours.threads / bare.threads,
            ours.threads,
            bare.threads
        ),
        format!(
            "| {ROUTES} routes ready after the start, {beside} | {} |",
            of(ready.as_secs_f64(), bare_ready.as_secs_f64(), " s")
        ),
        format!(
            "| a backlog of {BACKLOG} records of 100 B over {ROUTES} routes: first, median and last route done after the \
             start, s | {first:.1}, {median:.1}, {last:.1} |"
        ),
        format!(
            "| a reload that changes none, one, all of {ROUTES} routes, ms | {:.0}, {:.0}, {:.0} |",
            reloads[0], reloads[1], reloads[2]
        ),
    ]
}

/// What a process at rest uses.
struct Idleness {
    /// Per cent of a core.
    cpu: f64,
    /// Megabytes.
    resident: f64,
    threads: f64,
}

fn idleness(running: &Running) -> Idleness {
    pace_for(SETTLED);
    let (began, before) = (Instant::now(), watch::cpu(running.id()));
    pace_for(IDLE);
    let cpu = (watch::cpu(running.id()) - before) / began.elapsed().as_secs_f64() * 100.0;
    let [resident, threads] = ["VmRSS", "Threads"].map(|name| watch::status(running.id(), name));
    Idleness { cpu, resident: resident * 1024.0 / 1e6, threads }
}

fn pace_for(time: Duration) {
    let began = Instant::now();
    while let Some(left) = time.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
        pace(left);
    }
}

/// Started and ready.
fn start_bare(kafka: &Kafka, prefix: &str, consumers: usize, producers: usize) -> (Running, Duration) {
    let began = Instant::now();
    let mut command = idle::command(kafka, prefix, consumers, producers);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    let said = child.stdout.take().expect("it is a pipe");
    std::io::BufReader::new(said).read_line(&mut line).expect("it says something");
    assert_eq!(line.trim(), idle::READY);
    (Running::of(child, tempfile::tempdir().expect("a directory")), began.elapsed())
}

/// The backlog: the same for each route.
fn fill(kafka: &Kafka, sources: &[String]) {
    let producer: BaseProducer = kafka.filling().create().expect("a producer");
    let mut values = Values::new(100);
    for nth in 0..BACKLOG {
        values.make(0);
        send(&producer, BaseRecord::to(&sources[nth % sources.len()]).key(&values.key).payload(&values.value));
    }
    producer.flush(WITHIN).expect("the records are stored");
}

/// When each route had delivered all that it was to, in seconds, in order.
fn drained(kafka: &Kafka, targets: &[String], began: Instant) -> Vec<f64> {
    let names: Vec<&str> = targets.iter().map(String::as_str).collect();
    let consumer = kafka.reading(&names, 1);
    let mut left: HashMap<&str, usize> = names.iter().map(|name| (*name, BACKLOG / names.len())).collect();
    let mut finished = Vec::new();
    while finished.len() < names.len() {
        assert!(began.elapsed() < WITHIN, "{} of {} routes are drained", finished.len(), names.len());
        let record = match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => record,
            None | Some(Err(KafkaError::PartitionEOF(_))) => continue,
            Some(Err(error)) => panic!("{error}"),
        };
        let left = left.get_mut(record.topic()).expect("one of them");
        *left = left.checked_sub(1).expect("every record arrives once");
        if *left == 0 {
            finished.push(began.elapsed().as_secs_f64());
        }
    }
    finished
}

/// A configuration of many routes.
struct Yaml<'a> {
    bootstrap: &'a str,
    prefix: &'a str,
    routes: usize,
    admin: u16,
}

impl Yaml<'_> {
    fn text(&self, commit_interval: impl Fn(usize) -> &'static str) -> String {
        let Self { bootstrap, prefix, routes, admin } = self;
        let head = format!(
            "memory: 8GiB\nkafka: {{ prefix: scale-{admin}, bootstrap.servers: \"{bootstrap}\" }}\nadmin: {{ listen: \"127.0.0.1:{admin}\" }}\n\
             watch: {{ method: off }}\nroutes:\n"
        );
        let route = |nth: usize| {
            format!(
                "  r{nth}: {{ source: {{ topics: [{prefix}{nth}], start: earliest }}, destinations: [{{ topic: target-{prefix}{nth} }}], \
                 commit_interval: {} }}\n",
                commit_interval(nth)
            )
        };
        (0..*routes).fold(head, |text, nth| text + &route(nth))
    }
}

/// How many routes it has, if all of them are ready.
fn ready_routes(agent: &ureq::Agent, url: &str) -> usize {
    let Ok(mut answer) = agent.get(format!("{url}/readyz?routes=all")).call() else { return 0 };
    let text = answer.body_mut().read_to_string().expect("it is read");
    let answer: Value = serde_json::from_str(&text).expect("it is JSON");
    answer["routes"].as_object().map_or(0, |routes| routes.len())
}

/// millrace, with an endpoint that can be asked.
struct Daemon {
    running: Running,
    /// From its start until all routes were ready.
    ready: Duration,
    path: PathBuf,
    url: String,
    agent: ureq::Agent,
    bootstrap: String,
    prefix: String,
    routes: usize,
    admin: u16,
}

impl Daemon {
    fn start(kafka: &Kafka, prefix: &str, routes: usize) -> Self {
        // (free a moment ago)
        let admin = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("millrace.yaml");
        let yaml = Yaml { bootstrap: &kafka.bootstrap, prefix, routes, admin };
        let mut command = millrace(directory.path(), &yaml.text(|_| "100ms"));
        let log = std::fs::File::create(directory.path().join("log")).expect("a file");
        let began = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("millrace starts");
        let mut running = Running::of(child, directory);
        let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(WITHIN)).build().into();
        let url = format!("http://127.0.0.1:{admin}");
        while ready_routes(&agent, &url) < routes {
            running.must_live();
            if began.elapsed() > WITHIN {
                running.failed("is not ready");
            }
            pace(Duration::from_millis(5));
        }
        let ready = began.elapsed();
        let (bootstrap, prefix) = (kafka.bootstrap.clone(), prefix.to_owned());
        Self { running, ready, path, url, agent, bootstrap, prefix, routes, admin }
    }

    /// How long it takes until a configuration with these intervals is in force.
    fn reload(&self, commit_interval: impl Fn(usize) -> &'static str) -> Duration {
        let Self { bootstrap, prefix, routes, admin, .. } = self;
        let yaml = Yaml { bootstrap, prefix, routes: *routes, admin: *admin };
        std::fs::write(&self.path, yaml.text(commit_interval)).expect("it is written");
        let began = Instant::now();
        let answer = self.agent.post(format!("{}/-/reload", self.url)).send_empty();
        let answer = answer.unwrap_or_else(|error| self.running.failed(&format!("does not reload: {error}")));
        assert_eq!(answer.status(), 200, "a reload is done when it is answered");
        began.elapsed()
    }
}
