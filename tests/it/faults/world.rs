//! One policy's world: its topics and records, a daemon with a route for each case, and what must come out.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::support::daemon::Daemon;
use super::super::support::kafka::{ConsumedRecord, Isolation, Kafka, Record, shared};
use super::super::support::{root, scratch, unique, wait_for, wait_until};
use super::{CASES, Case, Cause, TIMEOUT};

/// Records of each partition. The one at fault is in the middle of the first partition's.
pub(super) const RECORDS: usize = 500;
pub(super) const POISON: usize = 250;
/// Records that come to the second partition later.
pub(super) const MORE: usize = 50;
/// The route without a plugin, which shows that the process goes on.
pub(super) const WITNESS: &str = "witness";
/// A timestamp of 2001, and a size that no destination of `max.message.bytes: 100000` takes.
const LONG_AGO: i64 = 1_000_000_000_000;
const LARGE: usize = 300_000;

/// One daemon with a route for each case, all with the same policy.
pub(super) struct World {
    kafka: &'static Kafka,
    topics: Topics,
    config: Config,
    pub(super) daemon: Daemon,
}

/// The names of a world's topics.
pub(super) struct Topics {
    run: String,
    /// With a record that guests misbehave on.
    marked: String,
    /// With a record that topics refuse.
    indigestible: String,
    /// Dead letters.
    dead: String,
    /// Dead letters where no large record is taken.
    dead_small: String,
}

impl Topics {
    fn create(kafka: &Kafka, name: &str) -> Self {
        let run = unique(&format!("faults-{name}"));
        let [marked, indigestible, dead, dead_small] =
            ["marked", "indigestible", "dead", "dead-small"].map(|topic| format!("{run}.{topic}"));
        let for_ever = ("retention.ms", "-1");
        kafka.create_topic(&marked, 2, &[]);
        kafka.create_topic(&indigestible, 2, &[for_ever]);
        kafka.create_topic(&dead, 1, &[for_ever]);
        kafka.create_topic(&dead_small, 1, &[for_ever, ("max.message.bytes", "100000")]);
        let topics = Self { run, marked, indigestible, dead, dead_small };
        for case in CASES {
            let property = match case.by {
                Cause::Guest { .. } => None,
                Cause::Topic(name, value) => Some((name, value)),
            };
            kafka.create_topic(&topics.destination(case.name), 2, property.as_slice());
        }
        kafka.create_topic(&topics.destination(WITNESS), 2, &[]);
        topics
    }

    fn destination(&self, route: &str) -> String {
        format!("{}.to.{route}", self.run)
    }

    fn source(&self, case: &Case) -> &str {
        match case.by {
            Cause::Guest { .. } => &self.marked,
            Cause::Topic(..) => &self.indigestible,
        }
    }

    /// Where the case's dead letter goes; the large record goes where it must be cut.
    fn dead_letters(&self, case: &Case) -> &str {
        if case.name == "is-too-large" { &self.dead_small } else { &self.dead }
    }

    fn yaml(&self, policy: &str) -> String {
        let mut text = "processing_timeout: 8s\nplugins:\n".to_owned();
        let mut routes = self.route(WITNESS, &self.marked, "", "stop");
        for case in CASES {
            let plugin = match case.by {
                Cause::Guest { does, limits } => {
                    let config = format!("config: {{ do: {does}, when: poison }}");
                    let name = case.name;
                    let path = guest_path();
                    let line = writeln!(text, "  {name}: {{ path: \"{}\", {config}, {limits} }}", path.display());
                    line.expect("a string takes it");
                    format!("plugin: {name}")
                }
                Cause::Topic(..) => String::new(),
            };
            let policy = policy.replace("TOPIC", self.dead_letters(case));
            routes.push_str(&self.route(case.name, self.source(case), &plugin, &policy));
        }
        text + "routes:\n" + &routes
    }

    fn route(&self, name: &str, source: &str, plugin: &str, policy: &str) -> String {
        let pipeline = if plugin.is_empty() { "[]".to_owned() } else { format!("[{{ {plugin} }}]") };
        format!(
            "  {name}:\n    source: {{ topics: [{source}], start: earliest }}\n    pipeline: {pipeline}\n    \
             destinations: [{{ topic: {}, partition: source }}]\n    on_error: {policy}\n",
            self.destination(name)
        )
    }
}

impl World {
    /// `policy` is YAML; `TOPIC` in it stands for the dead-letter topic.
    pub(super) fn start(name: &str, policy: &str) -> Self {
        let kafka = shared();
        let topics = Topics::create(kafka, name);
        kafka.produce(&topics.marked, &marked(plain(0, 0..RECORDS)));
        kafka.produce(&topics.indigestible, &indigestible(plain(0, 0..RECORDS)));
        for source in [&topics.marked, &topics.indigestible] {
            kafka.produce(source, &plain(1, 0..RECORDS));
        }
        let config = Config::new(&kafka.bootstrap, &topics.yaml(policy));
        let daemon = Daemon::start(&config.dir);
        Self { kafka, topics, config, daemon }
    }

    /// More records for the second partition.
    pub(super) fn produce_more(&self) {
        for source in [&self.topics.marked, &self.topics.indigestible] {
            self.kafka.produce(source, &plain(1, RECORDS..RECORDS + MORE));
        }
    }

    pub(super) fn source(&self, case: &Case) -> &str {
        self.topics.source(case)
    }

    pub(super) fn route(&self, name: &str) -> Value {
        self.daemon.get(&format!("/api/v1/routes/{name}")).json()
    }

    /// A counter of the case's route; 0 where there is no such series.
    pub(super) fn counted(&self, case: &Case, metric: &str) -> usize {
        self.daemon.metric(metric, &[("route", case.name)]).unwrap_or_default() as usize
    }

    /// As [`World::counted`], of the case's own code.
    pub(super) fn counted_code(&self, case: &Case, metric: &str) -> usize {
        self.daemon.metric(metric, &[("route", case.name), ("code", case.code)]).unwrap_or_default() as usize
    }

    pub(super) fn await_consumed(&self, case: &Case, count: usize) {
        wait_until(TIMEOUT, &format!("{count} records of {} are committed", case.name), || {
            self.counted(case, "millrace_records_consumed_total") >= count
        });
    }

    /// Waits until the route says that it stands before the record at fault, and returns what it says.
    pub(super) fn await_stopped(&self, case: &Case) -> Value {
        wait_for(TIMEOUT, &format!("{} has stopped", case.name), || {
            let route = self.route(case.name);
            (route["state"] == "failed").then_some(route)
        })
    }

    /// Waits until the record that `before` tells of has been tried once more.
    pub(super) fn await_another_attempt(&self, case: &Case, before: &Value) {
        wait_until(TIMEOUT, &format!("{} tries again", case.name), || {
            self.route(case.name)["last_fault"]["at"] != before["last_fault"]["at"]
        });
    }

    /// What a reader of the destination sees: of each partition so many records, of the first those that `arrive`; all
    /// in the source's order. And the group goes on where `committed` says.
    #[track_caller]
    pub(super) fn check_arrived(&self, case: &Case, committed: [usize; 2], arrive: impl Fn(usize) -> bool) {
        // A commit is answered before its marker is written: readers see it a little later.
        let count = (0..committed[0]).filter(|place| arrive(*place)).count() + committed[1];
        let seen = self.kafka.await_records(&self.topics.destination(case.name), count, TIMEOUT);
        let expected = |partition, count| {
            let records = plain(partition, 0..count);
            let kept = records.iter().enumerate().filter(|(place, _)| partition == 1 || arrive(*place));
            kept.map(|(_, record)| record.value.clone()).collect::<Vec<_>>()
        };
        for (partition, count) in (0..).zip(committed) {
            let seen: Vec<_> = seen.iter().filter(|record| record.partition == partition).collect();
            let seen: Vec<_> = seen.into_iter().map(|record| record.value.clone()).collect();
            assert!(seen == expected(partition, count), "{}: {} of partition {partition}", case.name, seen.len());
        }
        let offsets = self.kafka.committed(&self.config.group(case.name), self.source(case));
        let expected = (0..).zip(committed.map(|offset| offset as i64)).collect();
        assert_eq!(offsets, expected, "{}: committed offsets", case.name);
    }

    /// The counters and the status of a route that passed one record by, of 1,000.
    #[track_caller]
    pub(super) fn check_passed_by(&self, case: &Case, tries: u32) {
        assert_eq!(self.counted(case, "millrace_records_consumed_total"), 2 * RECORDS, "{}", case.name);
        assert_eq!(self.counted(case, "millrace_records_produced_total"), 2 * RECORDS - 1, "{}", case.name);
        assert_eq!(self.counted(case, "millrace_partitions_stopped"), 0, "{}", case.name);
        let faults = if case.is_of_guest() { case.faults(tries) as usize } else { 0 };
        assert_eq!(self.counted(case, "millrace_plugin_faults_total"), faults, "{}", case.name);
        assert_eq!(self.counted_code(case, "millrace_plugin_faults_total"), faults, "{}", case.name);
        let route = self.route(case.name);
        assert_eq!(route["state"], "running", "{}: {}", case.name, route["reason"]);
        let fault = &route["last_fault"];
        assert_eq!((&fault["code"], &fault["offset"]), (&case.code.into(), &POISON.into()), "{}", case.name);
        assert!(fault["message"].as_str().expect("a text").contains(case.says), "{}: {fault}", case.name);
    }

    /// All dead letters of the world.
    pub(super) fn dead_letters(&self) -> Vec<ConsumedRecord> {
        let topics = [&self.topics.dead, &self.topics.dead_small];
        topics.map(|topic| self.kafka.console_consume(topic, Isolation::ReadCommitted)).concat()
    }

    /// A dead letter is the record as it was, and says why it is there.
    pub(super) fn check_letter(&self, case: &Case, letter: &ConsumedRecord, tries: u32) {
        let name = case.name;
        let sent = match case.by {
            Cause::Guest { .. } => marked(plain(0, 0..RECORDS)),
            Cause::Topic(..) => indigestible(plain(0, 0..RECORDS)),
        };
        let sent = &sent[POISON];
        assert_eq!(letter.key, sent.key, "{name}");
        let value = sent.value.as_deref().expect("it has one");
        if self.topics.dead_letters(case) == self.topics.dead_small {
            let kept = letter.value.as_deref().expect("it is cut, not gone");
            assert!(kept.len() < value.len() && value.starts_with(kept), "{name}: {} bytes", kept.len());
            assert_eq!(header(letter, "millrace.truncated"), value.len().to_string(), "{name}");
        } else {
            assert!(letter.value.as_deref() == Some(value), "{name}");
        }
        if let Some(timestamp) = sent.timestamp {
            assert_eq!(letter.timestamp, timestamp, "{name}");
        }
        assert_eq!(letter.headers[..sent.headers.len()], sent.headers, "{name}: the record's own headers come first");
        let stage = if case.is_of_guest() { "TRANSFORMATION" } else { "KAFKA_PRODUCE" };
        for (key, value) in [
            ("__connect.errors.topic", self.source(case)),
            ("__connect.errors.partition", "0"),
            ("__connect.errors.offset", &POISON.to_string()),
            ("__connect.errors.connector.name", name),
            ("__connect.errors.task.id", "0"),
            ("__connect.errors.stage", stage),
            ("__connect.errors.exception.class.name", case.code),
            ("millrace.generation", "1"),
            ("millrace.attempts", &tries.to_string()),
        ] {
            assert_eq!(header(letter, key), value, "{name}: {key}");
        }
        let message = header(letter, "__connect.errors.exception.message");
        assert!(message.contains(case.says), "{name}: {message}");
        let plugin = if case.is_of_guest() { name } else { "" };
        assert_eq!(header(letter, "__connect.errors.class.name"), plugin, "{name}");
        assert_eq!(header(letter, "millrace.plugin.sha256").is_empty(), plugin.is_empty(), "{name}");
        self.check_error_id(name, &header(letter, "millrace.error.id"), tries);
    }

    /// The id of a dead letter leads to all that is told of its fault: the lines of its tries and of its end, and the status.
    #[track_caller]
    fn check_error_id(&self, name: &str, id: &str, tries: u32) {
        assert_eq!(id.len(), 12, "{name}: {id}");
        assert_eq!(self.route(name)["last_fault"]["error_id"], id, "{name}");
        let log = self.daemon.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains(&format!("error_id={id}"))).collect();
        let of_route = lines.iter().all(|line| line.contains(&format!("route={name} ")));
        let at_its_end = lines.iter().any(|line| line.contains("sent to the dead-letter topic"));
        let tried_again = lines.iter().any(|line| line.contains("tried again in"));
        assert!(of_route && at_its_end, "{name}: {id}: {lines:?}");
        // (one that asked to be tried again is found at fault only in the end)
        assert!(tries == 1 || tried_again || name == "asks-for-ever-to-be-tried-again", "{name}: {id}: {lines:?}");
    }

    /// The route without a plugin has passed everything on.
    #[track_caller]
    pub(super) fn check_witness(&self, of_second: usize) {
        let topic = self.topics.destination(WITNESS);
        let seen = self.kafka.await_records(&topic, RECORDS + of_second, TIMEOUT);
        let expected = values_of(&[marked(plain(0, 0..RECORDS)), plain(1, 0..of_second)].concat());
        assert!(values(&seen) == expected, "{} records of the witness", seen.len());
        assert_eq!(self.route(WITNESS)["state"], "running");
    }
}

/// Records of a partition, told apart by their values.
pub(super) fn plain(partition: i32, places: Range<usize>) -> Vec<Record> {
    let record = |place| Record::new(format!("k{place}"), format!("{partition}/{place} ")).to(partition);
    places.map(record).collect()
}

/// With the record that guests misbehave on.
pub(super) fn marked(mut records: Vec<Record>) -> Vec<Record> {
    let timestamp = 1_700_000_000_000;
    let poison = Record::new("poisoned", "poison").header("h", "1").header("h", "2").at(timestamp).to(0);
    records[POISON] = poison;
    records
}

/// With the record that topics refuse: it has no key, comes from 2001, and is large in a way that no compression helps.
pub(super) fn indigestible(mut records: Vec<Record>) -> Vec<Record> {
    let mut noise = fastrand::Rng::with_seed(1);
    let value = Some((0..LARGE).map(|_| noise.u8(..)).collect());
    records[POISON] = Record { value, timestamp: Some(LONG_AGO), partition: Some(0), ..Record::default() };
    records
}

pub(super) fn values(records: &[ConsumedRecord]) -> Vec<Option<Vec<u8>>> {
    records.iter().map(|record| record.value.clone()).collect()
}

pub(super) fn values_of(records: &[Record]) -> Vec<Option<Vec<u8>>> {
    records.iter().map(|record| record.value.clone()).collect()
}

/// The text of a header; empty where there is none.
pub(super) fn header(record: &ConsumedRecord, name: &str) -> String {
    let header = record.headers.iter().find(|(key, _)| key == name);
    header.and_then(|(_, value)| value.as_deref()).map(String::from_utf8_lossy).unwrap_or_default().into_owned()
}

/// The guest that misbehaves as it is told.
pub(super) fn guest_path() -> PathBuf {
    let path = root().join("plugins/dist/misbehave.wasm");
    assert!(path.exists(), "{} is missing: scripts/guests builds it", path.display());
    path
}

/// A configuration on disk. Gone with the value, unless the test fails.
pub(super) struct Config {
    pub(super) dir: PathBuf,
    prefix: String,
}

impl Config {
    /// `rest` holds `plugins:` and `routes:`.
    pub(super) fn new(bootstrap: &str, rest: &str) -> Self {
        let (dir, prefix) = (scratch("config"), unique("faults"));
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-plugins");
        let text = format!(
            "kafka: {{ prefix: {prefix}, bootstrap.servers: \"{bootstrap}\" }}\nadmin: {{ listen: \"127.0.0.1:0\" }}\n\
             cache_dir: {}\n{rest}",
            cache.display()
        );
        std::fs::create_dir_all(&dir).expect("a directory for the configuration");
        std::fs::write(dir.join("millrace.yaml"), text).expect("the configuration is written");
        Self { dir, prefix }
    }

    fn group(&self, route: &str) -> String {
        format!("{}.{route}", self.prefix)
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
