//! How long a record is under way at a low rate: from the time that its producer wrote into it to a `read_committed` reader's hands.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::contenders::{How, Job, PLAIN};
use crate::records::{Kafka, Values, now, send};
use crate::running::Running;
use crate::table::{Spread, how};
use crate::{Options, pace, peers, watch};

const RATE: u32 = 1_000;
const SIZE: usize = 1024;
/// At once, at first: a JVM compiles what is hot.
const BURST: u64 = 100_000;
/// After that, at the pace that is measured.
const WARM: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(5);
const WITHIN: Duration = Duration::from_secs(60);
const STREAMS: &str = "Kafka Streams, commit every 100 ms";

struct Latency {
    p50: f64,
    p99: f64,
    /// Of a core.
    cpu: f64,
}

pub(crate) fn run(options: &Options) -> String {
    let kafka = &Kafka::start();
    let rounds = options.rounds(5);
    let mut contenders = vec![
        ("bare loop, commit every 100 ms", How::Loop { keeps: false, edits: false }),
        ("millrace, as it comes", PLAIN),
    ];
    let missing = peers::missing("streams");
    if missing.is_none() {
        contenders.push((STREAMS, How::Streams { edits: false, settings: &[] }));
    }
    let mut runs: BTreeMap<&str, Vec<Latency>> = BTreeMap::new();
    for round in 1..=rounds {
        for (name, how) in &contenders {
            let found = measure(kafka, how);
            eprintln!("latency, round {round}: {name}: p50 {:.1} ms, p99 {:.1} ms", found.p50, found.p99);
            runs.entry(name).or_default().push(found);
        }
    }
    let mut told = format!(
        "{} {RATE} records/s of 1 KiB, {} s a round, after {BURST} records at once and {} s to get warm. Kafka Streams: exactly_once_v2, two threads, \
         the rest as it comes.\n\n| | p50, ms | p99, ms | CPU, % of a core | p50, of Streams' | p99, of Streams' |\n|---|---|---|---|---|---|\n",
        how(rounds),
        MEASURED.as_secs(),
        WARM.as_secs()
    );
    for (name, _) in &contenders {
        let own = &runs[name];
        let figure = |figure: fn(&Latency) -> f64| Spread::of(own.iter().map(figure));
        let of_streams = |figure: fn(&Latency) -> f64| {
            runs.get(STREAMS).map_or_else(|| "–".to_owned(), |other| Spread::of_ratios(own, other, figure).to_string())
        };
        let (p50, p99, cpu) = (figure(|run| run.p50), figure(|run| run.p99), figure(|run| run.cpu * 100.0));
        let (half, most) = (of_streams(|run| run.p50), of_streams(|run| run.p99));
        writeln!(told, "| {name} | {p50:.0} | {p99:.0} | {cpu:.1} | {half} | {most} |").expect("a text takes all");
    }
    missing.into_iter().for_each(|missing| told += &format!("\n{missing}\n"));
    told
}

fn measure(kafka: &Kafka, how: &How) -> Latency {
    let source = format!("thin-{:08x}", fastrand::u32(..));
    kafka.create(&source);
    let job = Job::new(kafka, &source);
    let mut running = how.start(&job);
    let between = Between { arrived: AtomicU64::new(0), sent: AtomicU64::new(u64::MAX) };
    let (window, arrived) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(kafka, &job.target, &between));
        let window = produce(kafka, &source, &mut running, &between);
        (window, reader.join().expect("the reader"))
    });
    running.end();
    [&source, &job.target].into_iter().for_each(|topic| kafka.delete(topic));
    let within = arrived.iter().filter(|(made, _)| (window.from..window.until).contains(made));
    let mut times: Vec<u64> = within.map(|(made, read)| read.saturating_sub(*made)).collect();
    assert_eq!(times.len(), window.count, "every record arrives once");
    times.sort_unstable();
    let part = |part: f64| times[((times.len() - 1) as f64 * part) as usize] as f64 / 1e3;
    Latency { p50: part(0.5), p99: part(0.99), cpu: window.cpu / MEASURED.as_secs_f64() }
}

/// What producer and reader tell each other.
struct Between {
    arrived: AtomicU64,
    /// How many there are to come, once that is known.
    sent: AtomicU64,
}

/// The part that counts: by the times of its records, and the CPU seconds of the contender.
struct Window {
    from: u64,
    until: u64,
    count: usize,
    cpu: f64,
}

fn produce(kafka: &Kafka, topic: &str, running: &mut Running, between: &Between) -> Window {
    let mut paced = Paced::new(kafka, topic);
    let began = Instant::now();
    while between.arrived.load(Relaxed) == 0 {
        paced.send_next();
        running.must_live();
        if began.elapsed() > WITHIN {
            running.failed("lets nothing arrive");
        }
    }
    paced.send_at_once(BURST);
    while between.arrived.load(Relaxed) < paced.sent {
        running.must_live();
        if began.elapsed() > 2 * WITHIN {
            running.failed("does not let all arrive");
        }
        pace(Duration::from_millis(5));
    }
    paced.resume();
    paced.send_for(WARM);
    let (from, before, cpu) = (now(), paced.sent, watch::cpu(running.id()));
    paced.send_for(MEASURED);
    let (until, cpu) = (now(), watch::cpu(running.id()) - cpu);
    let window = Window { from, until, count: usize::try_from(paced.sent - before).expect("a count"), cpu };
    paced.producer.flush(WITHIN).expect("the records are stored");
    between.sent.store(paced.sent, Relaxed);
    window
}

/// Sends at an even pace.
struct Paced<'a> {
    producer: BaseProducer,
    topic: &'a str,
    values: Values,
    /// When so many were sent, from where on the pace counts.
    began: (Instant, u64),
    sent: u64,
}

impl<'a> Paced<'a> {
    fn new(kafka: &Kafka, topic: &'a str) -> Self {
        let producer = kafka.filling().set("linger.ms", "0").set("compression.codec", "none").create();
        let producer = producer.expect("a producer");
        Self { producer, topic, values: Values::new(SIZE), began: (Instant::now(), 0), sent: 0 }
    }

    fn send_for(&mut self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            self.send_next();
        }
    }

    fn send_at_once(&mut self, count: u64) {
        (0..count).for_each(|_| self.send());
        self.producer.flush(WITHIN).expect("the records are stored");
    }

    /// The pace, from now on.
    fn resume(&mut self) {
        self.began = (Instant::now(), self.sent);
    }

    /// When it is due.
    fn send_next(&mut self) {
        let (began, before) = self.began;
        let due = began + Duration::from_secs(self.sent - before) / RATE;
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            pace(left);
        }
        self.send();
    }

    fn send(&mut self) {
        self.values.make(now());
        send(&self.producer, BaseRecord::to(self.topic).key(&self.values.key).payload(&self.values.value));
        self.producer.poll(Duration::ZERO);
        self.sent += 1;
    }
}

/// Reads all; the times at which each was made and read.
fn read(kafka: &Kafka, topic: &str, between: &Between) -> Vec<(u64, u64)> {
    let consumer = kafka.reading(&[topic], 4);
    let mut all: Vec<(u64, u64)> = Vec::new();
    let mut last = Instant::now();
    while (all.len() as u64) < between.sent.load(Relaxed) {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Err(KafkaError::PartitionEOF(_))) => {}
            Some(record) => {
                let record = record.expect("a record");
                all.push((time_of(record.payload().expect("a value")), now()));
                between.arrived.store(all.len() as u64, Relaxed);
                last = Instant::now();
            }
            None => assert!(last.elapsed() < WITHIN, "nothing arrives any more"),
        }
    }
    all
}

/// The time that a value begins with.
fn time_of(value: &[u8]) -> u64 {
    let digits = value.strip_prefix(b"{\"ts\":").expect("one of ours").iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |time, digit| time * 10 + u64::from(digit - b'0'))
}
