//! From YAML to a read_committed reader: the daemon on a real broker, read back by clients that are not ours.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;
use std::time::Duration;

use serde_json::value::RawValue;
use sha2::Digest as _;

use crate::support::config::{Config, plugin};
use crate::support::daemon::Daemon;
use crate::support::kafka::{ConsumedRecord, Isolation, Kafka, Record, run_java, shared};
use crate::support::{root, unique};

/// Long enough for a broker and a daemon on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(60);

// ---- the earthquakes ------------------------------------------------------------------------------------------------

/// One in so many of the events is made unreadable.
const POISON_EVERY: usize = 97;
const HIDDEN: [&str; 2] = ["place", "title"];
/// Of the dead-letter topic and the two destinations.
const PARTITIONS: [i32; 3] = [2, 5, 3];

/// What a test knows of one event, worked out without any of our code.
struct Event {
    sent: Record,
    fate: Fate,
}

#[derive(PartialEq)]
enum Fate {
    Dropped,
    Poisonous,
    /// The value as it is to arrive.
    Routed(Vec<u8>),
}

#[derive(serde::Deserialize)]
struct Line<'a> {
    key: String,
    timestamp: i64,
    #[serde(borrow)]
    value: &'a RawValue,
}

fn earthquakes() -> Vec<Event> {
    let text = std::fs::read_to_string(root().join("src/cli/demo/earthquakes.ndjson")).expect("the demo's data");
    text.lines().enumerate().map(|(number, line)| event(number, line)).collect()
}

fn event(number: usize, line: &str) -> Event {
    let line: Line<'_> = serde_json::from_str(line).expect("an event");
    let text = line.value.get();
    let (value, fate) = if number.is_multiple_of(POISON_EVERY) {
        (&text[..text.len() / 2], Fate::Poisonous)
    } else if text.contains(r#""type":"explosion""#) {
        (text, Fate::Dropped)
    } else {
        (text, Fate::Routed(hidden(text).into_bytes()))
    };
    let sent = Record::new(&line.key, value)
        .header("number", number.to_string())
        .header("tag", "usgs")
        .header("tag", [0xff, 0x00, b',', number as u8])
        .header("empty", "")
        .at(line.timestamp);
    Event { sent, fate }
}

/// By cutting text, not by reading JSON: all else keeps its bytes.
fn hidden(text: &str) -> String {
    HIDDEN.iter().fold(text.to_owned(), |text, field| {
        let begin = text.find(&format!("\"{field}\":\"")).expect("every event has it") + field.len() + 3;
        let end = begin + 1 + text[begin + 1..].find('"').expect("a string ends");
        assert!(!text[begin..end].contains('\\'), "no event has an escape here");
        format!("{}\"[redacted]\"{}", &text[..begin], &text[end + 1..])
    })
}

#[test]
fn the_earthquakes_arrive_exactly_once_through_filter_and_transform_at_two_destinations_and_a_dead_letter_topic() {
    let kafka = shared();
    let [source, dead, left, right] = ["quakes", "quakes-dead", "quakes-left", "quakes-right"].map(unique);
    kafka.create_topic(&source, 6, &[("retention.ms", "-1")]);
    for (topic, partitions) in [&dead, &left, &right].into_iter().zip(PARTITIONS) {
        kafka.create_topic(topic, partitions, &[("retention.ms", "-1")]);
    }
    let events = earthquakes();
    let places = kafka.produce(&source, &events.iter().map(|event| event.sent.clone()).collect::<Vec<_>>());
    let config = Config::new(
        &kafka.bootstrap,
        &["drop-where", "redact-fields"],
        &format!(
            "
routes:
  quakes:
    source: {{ topics: [{source}], start: earliest }}
    pipeline:
      - {{ plugin: drop-where, config: {{ field: type, equals: explosion }} }}
      - {{ plugin: redact-fields, config: {{ fields: [place, title] }} }}
    destinations: [{{ topic: {left}, name: left }}, {{ topic: {right}, name: right }}]
    on_error: {{ dead_letter: {dead} }}
    transaction: {{ records: 400 }}
"
        ),
    );
    let mut daemon = Daemon::start(config.path());
    daemon.await_consumed("quakes", events.len(), PATIENCE);

    let partition = java_partitions(&events);
    let routed = kafka.console_consume(&left, Isolation::ReadCommitted);
    assert_routed(&routed, &events, |key| partition[&(key.to_vec(), PARTITIONS[1])]);
    // (kcat, which cannot show binary header values)
    let beside = kafka.kcat_consume(&right, Isolation::ReadCommitted);
    let without_headers = |mut record: ConsumedRecord| {
        record.headers.clear();
        record
    };
    let bare: Vec<_> = events.iter().map(Event::without_headers).collect();
    assert_routed(&beside.into_iter().map(without_headers).collect::<Vec<_>>(), &bare, |key| {
        partition[&(key.to_vec(), PARTITIONS[2])]
    });
    let letters = kafka.console_consume(&dead, Isolation::ReadCommitted);
    assert_dead_letters(&letters, &events, &places, &source, |key| partition[&(key.to_vec(), PARTITIONS[0])]);
    assert_counters(&daemon, &events);

    let ends = kafka.end_offsets(&source, Isolation::ReadUncommitted);
    assert_eq!(kafka.committed(&config.group("quakes"), &source), ends, "committed, and the end of each partition");
    assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
}

impl Event {
    fn key(&self) -> &[u8] {
        self.sent.key.as_deref().expect("every event has a key")
    }

    fn without_headers(&self) -> Self {
        let fate = match &self.fate {
            Fate::Dropped => Fate::Dropped,
            Fate::Poisonous => Fate::Poisonous,
            Fate::Routed(value) => Fate::Routed(value.clone()),
        };
        Self { sent: Record { headers: Vec::new(), ..self.sent.clone() }, fate }
    }
}

/// Where Kafka's own producer would send each key, for each number of partitions.
fn java_partitions(events: &[Event]) -> BTreeMap<(Vec<u8>, i32), i32> {
    let keys: std::collections::BTreeSet<&[u8]> = events.iter().map(Event::key).collect();
    let cases: Vec<(Vec<u8>, i32)> =
        keys.iter().flat_map(|key| PARTITIONS.map(|partitions| (key.to_vec(), partitions))).collect();
    let line = |(key, partitions): &(Vec<u8>, i32)| {
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex},{partitions}\n")
    };
    let answers = run_java("tests/it/support/JavaPartitions.java", &cases.iter().map(line).collect::<String>());
    let partition = |answer: &str| answer.split_once(',').expect("hash,partition").1.parse().expect("a partition");
    cases.into_iter().zip(answers.lines().map(partition)).collect()
}

/// Key by key: the records that are to arrive, in their order, with every byte; each in Java's partition for its key.
fn assert_routed(arrived: &[ConsumedRecord], events: &[Event], partition: impl Fn(&[u8]) -> i32) {
    let mut expected: BTreeMap<&[u8], Vec<ConsumedRecord>> = BTreeMap::new();
    for event in events {
        if let Fate::Routed(value) = &event.fate {
            let record = as_consumed(&event.sent, Some(value.clone()), partition(event.key()));
            expected.entry(event.key()).or_default().push(record);
        }
    }
    let mut found: BTreeMap<&[u8], Vec<ConsumedRecord>> = BTreeMap::new();
    for record in arrived {
        let key = record.key.as_deref().expect("every event has a key");
        found.entry(key).or_default().push(ConsumedRecord { offset: 0, ..record.clone() });
    }
    assert_eq!(arrived.len(), expected.values().map(Vec::len).sum::<usize>(), "records in all");
    for (key, expected) in expected {
        assert_eq!(found[key], expected, "key {}", key.escape_ascii());
    }
}

/// Without an offset, which nobody promises.
fn as_consumed(sent: &Record, value: Option<Vec<u8>>, partition: i32) -> ConsumedRecord {
    ConsumedRecord {
        partition,
        offset: 0,
        timestamp: sent.timestamp.expect("every event has a time"),
        headers: sent.headers.clone(),
        key: sent.key.clone(),
        value,
    }
}

fn assert_dead_letters(
    letters: &[ConsumedRecord],
    events: &[Event],
    places: &[(i32, i64)],
    source: &str,
    partition: impl Fn(&[u8]) -> i32,
) {
    let module = std::fs::read(plugin("redact-fields")).expect("a plugin");
    let sha256: String = sha2::Sha256::digest(&module).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut letters = letters.to_vec();
    letters.sort_by_key(number);
    let poisonous: Vec<_> = events.iter().zip(places).filter(|(event, _)| event.fate == Fate::Poisonous).collect();
    assert_eq!(letters.len(), poisonous.len(), "dead letters");
    for (letter, (event, (from, offset))) in letters.iter_mut().zip(poisonous) {
        let why = letter.headers.iter().position(|(name, _)| name == "__connect.errors.exception.message");
        let (_, why) = letter.headers.remove(why.expect("a dead letter says why it is one"));
        let why = String::from_utf8(why.expect("with a value")).expect("in words");
        assert!(why.starts_with("the value is not JSON: EOF while parsing"), "{why}");
        let id = letter.headers.iter().position(|(name, _)| name == "millrace.error.id");
        letter.headers.remove(id.expect("a dead letter has an id"));
        let mut expected = as_consumed(&event.sent, event.sent.value.clone(), partition(event.key()));
        for (name, value) in [
            ("__connect.errors.topic", source),
            ("__connect.errors.partition", &from.to_string()),
            ("__connect.errors.offset", &offset.to_string()),
            ("__connect.errors.connector.name", "quakes"),
            ("__connect.errors.task.id", "0"),
            ("__connect.errors.stage", "TRANSFORMATION"),
            ("__connect.errors.class.name", "redact-fields"),
            ("__connect.errors.exception.class.name", "refused"),
            ("millrace.plugin.sha256", &sha256),
            ("millrace.generation", "1"),
            ("millrace.attempts", "1"),
        ] {
            expected.headers.push((name.to_owned(), Some(value.as_bytes().to_vec())));
        }
        assert_eq!(ConsumedRecord { offset: 0, ..letter.clone() }, expected);
    }
}

fn number(record: &ConsumedRecord) -> usize {
    let (_, value) = record.headers.iter().find(|(name, _)| name == "number").expect("every event has it");
    std::str::from_utf8(value.as_deref().expect("a value")).ok().and_then(|text| text.parse().ok()).expect("a number")
}

fn assert_counters(daemon: &Daemon, events: &[Event]) {
    let bytes = |key: &[u8], value: &[u8]| key.len() + value.len();
    let consumed: usize =
        events.iter().map(|event| bytes(event.key(), event.sent.value.as_deref().unwrap_or_default())).sum();
    let routed: Vec<usize> = events
        .iter()
        .filter_map(|event| match &event.fate {
            Fate::Routed(value) => Some(bytes(event.key(), value)),
            Fate::Dropped | Fate::Poisonous => None,
        })
        .collect();
    let count = |fate: Fate| events.iter().filter(|event| event.fate == fate).count();
    let (dropped, poisonous) = (count(Fate::Dropped), count(Fate::Poisonous));
    assert!(dropped > 0 && poisonous > 0 && routed.len() > 1_000);
    for (name, labels, expected) in [
        ("millrace_records_consumed_total", &[][..], events.len()),
        ("millrace_bytes_consumed_total", &[], consumed),
        ("millrace_records_produced_total", &[("destination", "left")], routed.len()),
        ("millrace_records_produced_total", &[("destination", "right")], routed.len()),
        ("millrace_bytes_produced_total", &[("destination", "left")], routed.iter().sum()),
        ("millrace_bytes_produced_total", &[("destination", "right")], routed.iter().sum()),
        ("millrace_records_filtered_total", &[("plugin", "drop-where")], dropped),
        // A transform that drops what it has emitted anew has filtered nothing out.
        ("millrace_records_filtered_total", &[], dropped),
        ("millrace_dead_letters_total", &[("code", "refused")], poisonous),
        ("millrace_dead_letters_total", &[], poisonous),
        ("millrace_plugin_faults_total", &[("plugin", "redact-fields"), ("code", "refused")], poisonous),
        ("millrace_plugin_faults_total", &[], poisonous),
        ("millrace_records_skipped_total", &[], 0),
        ("millrace_transactions_total", &[("outcome", "aborted")], 0),
        ("millrace_transactions_total", &[("outcome", "unknown")], 0),
    ] {
        let labels: Vec<_> = labels.iter().copied().chain([("route", "quakes")]).collect();
        assert_eq!(daemon.metric(name, &labels), Some(expected as f64), "{name} {labels:?}");
    }
    let committed = daemon.metric("millrace_transactions_total", &[("route", "quakes"), ("outcome", "committed")]);
    assert!(committed >= Some((events.len() / 400) as f64), "{committed:?} transactions of at most 400 records");
    for state in ["polling", "processing", "producing", "delivering", "committing"] {
        let spent = daemon.metric("millrace_worker_seconds_total", &[("route", "quakes"), ("state", state)]);
        assert!(spent > Some(0.0), "{state}: {spent:?} s");
    }
    // (its own threads', so that it holds what its plugins have used)
    let cpu = |name| daemon.metric(name, &[("route", "quakes")]);
    let (worker, plugins) = (cpu("millrace_worker_cpu_seconds_total"), cpu("millrace_plugin_seconds_total"));
    assert!(worker > plugins && plugins > Some(0.0), "{worker:?} s of CPU time, {plugins:?} s of it in plugins");
}

// ---- fidelity -------------------------------------------------------------------------------------------------------

/// The source and a destination of each route: one without plugins, one whose plugin takes every record apart and builds
/// it anew on the other side of the sandbox's border.
struct Identity {
    source: String,
    plain: String,
    rebuilt: String,
    config: Config,
}

impl Identity {
    fn new(kafka: &Kafka, partitions: i32) -> Self {
        let [source, plain, rebuilt] = ["same", "same-plain", "same-rebuilt"].map(unique);
        for topic in [&source, &plain, &rebuilt] {
            kafka.create_topic(topic, partitions, &[("retention.ms", "-1")]);
        }
        let config = Config::new(
            &kafka.bootstrap,
            &["identity-emit"],
            &format!(
                "
routes:
  plain:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: []
    destinations: [{{ topic: {plain}, partition: source }}]
  rebuilt:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: identity-emit }}]
    destinations: [{{ topic: {rebuilt}, partition: source }}]
"
            ),
        );
        Self { source, plain, rebuilt, config }
    }
}

#[test]
fn records_pass_byte_for_byte_with_and_without_a_plugin() {
    let kafka = shared();
    let same = Identity::new(kafka, 2);
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut sent = awkward_records();
    sent.extend(std::iter::repeat_with(|| random_record(&mut random)).take(400));
    for record in &mut sent {
        record.partition = Some(random.i32(0..2));
    }
    let places = kafka.produce(&same.source, &sent);
    let daemon = Daemon::start(same.config.path());
    let mut expected: Vec<ConsumedRecord> = sent
        .iter()
        .zip(places)
        .map(|(record, (partition, offset))| ConsumedRecord {
            offset,
            ..as_consumed(record, record.value.clone(), partition)
        })
        .collect();
    expected.sort_by_key(|record| (record.partition, record.offset));
    let expected = without_offsets(expected);
    for (route, topic) in [("plain", &same.plain), ("rebuilt", &same.rebuilt)] {
        daemon.await_consumed(route, sent.len(), PATIENCE);
        let arrived = without_offsets(kafka.console_consume(topic, Isolation::ReadCommitted));
        assert_eq!(arrived.len(), expected.len(), "records by route {route}, seed {seed}");
        for (arrived, expected) in arrived.iter().zip(&expected) {
            assert_eq!(arrived, expected, "route {route}, seed {seed}");
        }
    }
}

fn without_offsets(records: Vec<ConsumedRecord>) -> Vec<ConsumedRecord> {
    records.into_iter().map(|record| ConsumedRecord { offset: 0, ..record }).collect()
}

/// What has been lost or confused somewhere before: null and empty, tombstones, repeated and binary headers, old times.
fn awkward_records() -> Vec<Record> {
    let bare = Record { timestamp: Some(1_700_000_000_000), ..Record::default() };
    let bytes = |bytes: &[u8]| Some(bytes.to_vec());
    let mut records = Vec::new();
    for key in [None, bytes(b""), bytes(b"k"), bytes(b"\0\xff\xfe\r\n")] {
        for value in [None, bytes(b""), bytes(b"v"), bytes(b"\x80\0\x1e{\"a\":1}")] {
            records.push(Record { key: key.clone(), value, ..bare.clone() });
        }
    }
    let headers = |headers: &[(&str, Option<&[u8]>)]| Record {
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.map(<[u8]>::to_vec))).collect(),
        ..Record::new("h", "headers").at(1_700_000_000_000)
    };
    records.extend([
        headers(&[("a", Some(b"1")), ("b", Some(b"2")), ("a", Some(b"3")), ("a", None), ("a", Some(b""))]),
        headers(&[("z", Some(b"first")), ("a", Some(b"second"))]),
        headers(&[("null", None)]),
        headers(&[("empty", Some(b""))]),
        headers(&[("binary", Some(b"\0\xff\xc3\x28\x1d"))]),
        headers(&[("naïve ключ 鍵 🔑", Some("ü".as_bytes()))]),
        headers(&[("", Some(b"a name may be empty"))]),
        headers(&vec![("many", Some(&b"x"[..])); 300]),
    ]);
    // (librdkafka cannot write 0: it takes it for now)
    records.extend([1, 2_208_988_800, 1_517_363_399_650].map(|time| Record::new("t", "time").at(time)));
    records.push(Record::new("large", "x".repeat(700_000)).at(1));
    records
}

fn random_record(random: &mut fastrand::Rng) -> Record {
    let bytes = |random: &mut fastrand::Rng| {
        let length = random.usize(0..40);
        (random.u8(0..5) > 0).then(|| std::iter::repeat_with(|| random.u8(..)).take(length).collect::<Vec<_>>())
    };
    let headers = random.usize(0..5);
    Record {
        key: bytes(random),
        value: bytes(random),
        headers: (0..headers).map(|_| (["a", "b", "é"][random.usize(0..3)].to_owned(), bytes(random))).collect(),
        timestamp: Some(random.i64(1..1_790_000_000_000)),
        partition: None,
    }
}

#[test]
fn a_header_name_that_is_not_utf8_passes_untouched() {
    let kafka = shared();
    let same = Identity::new(kafka, 1);
    // Our harness, as most clients, can only write names that are text.
    let mut kcat = Command::new("kcat");
    kcat.args(["-P", "-b", &kafka.bootstrap, "-t", &same.source, "-k", "key", "-l", "/dev/stdin"]);
    for header in [&b"caf\xe9=1"[..], b"plain=2", b"caf\xe9=3", b"\xff\xfe=4"] {
        kcat.arg("-H").arg(OsStr::from_bytes(header));
    }
    let value = crate::support::scratch("value");
    std::fs::write(&value, "one line").expect("a file");
    let stdin = std::fs::File::open(&value).expect("a file");
    assert!(kcat.stdin(stdin).status().expect("kcat runs").success());
    let daemon = Daemon::start(same.config.path());
    daemon.await_consumed("plain", 1, PATIENCE);
    let read = Command::new("kcat")
        .args(["-C", "-q", "-e", "-b", &kafka.bootstrap, "-t", &same.plain, "-f", "%k|%s|%h\n"])
        .output()
        .expect("kcat runs");
    assert_eq!(
        read.stdout.escape_ascii().to_string(),
        b"key|one line|caf\xe9=1,plain=2,caf\xe9=3,\xff\xfe=4\n".escape_ascii().to_string()
    );
}

#[test]
fn a_sources_append_time_travels_on_and_a_destination_may_set_its_own() {
    let kafka = shared();
    let [source, kept, own] = ["append-source", "append-kept", "append-own"].map(unique);
    kafka.create_topic(&source, 1, &[("message.timestamp.type", "LogAppendTime")]);
    kafka.create_topic(&kept, 1, &[]);
    kafka.create_topic(&own, 1, &[("message.timestamp.type", "LogAppendTime")]);
    kafka.produce(&source, &[Record::new("k", "v").at(1_000)]);
    let config = Config::new(
        &kafka.bootstrap,
        &[],
        &format!(
            "
routes:
  append:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: []
    destinations: [{{ topic: {kept} }}, {{ topic: {own} }}]
"
        ),
    );
    let daemon = Daemon::start(config.path());
    daemon.await_consumed("append", 1, PATIENCE);
    let time = |topic| kafka.kcat_consume(topic, Isolation::ReadCommitted)[0].timestamp;
    let appended = time(&source);
    assert!(appended > 1_700_000_000_000, "the source set its time: {appended}");
    assert_eq!(time(&kept), appended);
    assert!(time(&own) > appended, "{} is not later than {appended}", time(&own));
}
