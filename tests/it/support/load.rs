//! Records that flow while a test does something else: sent at a steady rate and numbered, so that whatever is lost,
//! doubled or out of order shows in what arrives. Knows nothing about who reads them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

use super::kafka::{ConsumedRecord, Isolation, Kafka};

/// How often some are sent.
const TICK: Duration = Duration::from_millis(10);
/// For the last of them to be stored.
const STORED_WITHIN: Duration = Duration::from_secs(60);
/// Keys of each partition.
const KEYS: usize = 4;

/// A producer at work. Stops with the value.
pub(crate) struct Load {
    kafka: Kafka,
    topic: String,
    partitions: usize,
    sent: Arc<AtomicUsize>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Sends record n (its value says n) to partition n modulo `partitions`, so many `per_second`, from now on.
    pub(crate) fn start(kafka: &Kafka, topic: &str, partitions: usize, per_second: usize) -> Self {
        let record = move |number| Numbered {
            partition: i32::try_from(number % partitions).expect("a partition"),
            key: key(number, partitions),
            value: number.to_string(),
        };
        Self::start_with(kafka, topic, partitions, per_second, record)
    }

    /// As [`Load::start`], with records of another make.
    pub(crate) fn start_with(
        kafka: &Kafka,
        topic: &str,
        partitions: usize,
        per_second: usize,
        record: impl Fn(usize) -> Numbered + Send + 'static,
    ) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &kafka.bootstrap).set("enable.idempotence", "true").set("linger.ms", "5");
        // (a broker that is back after a crash is found at once)
        config.set("reconnect.backoff.max.ms", "500").set("socket.connection.setup.timeout.ms", "2000");
        let producer: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
        let (stop, stopped) = channel();
        let sent = Arc::new(AtomicUsize::new(0));
        let (count, to) = (Arc::clone(&sent), topic.to_owned());
        let run = move || {
            let began = Instant::now();
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                // Of the time since the beginning, not of a tick: what a busy machine has delayed is made up for.
                let due = (began.elapsed().as_secs_f64() * per_second as f64) as usize;
                (count.load(Relaxed)..due).for_each(|number| send(&producer, &to, &record(number)));
                count.fetch_max(due, Relaxed);
            }
            producer.flush(STORED_WITHIN).expect("the records are stored");
        };
        let thread = std::thread::spawn(run);
        Self { kafka: kafka.clone(), topic: topic.to_owned(), partitions, sent, stop: Some(stop), thread: Some(thread) }
    }

    /// Records sent so far.
    pub(crate) fn sent(&self) -> usize {
        self.sent.load(Relaxed)
    }

    /// Stops, and waits until all are stored, or given up. Returns how many were sent.
    pub(crate) fn stop_sending(&mut self) -> usize {
        self.stop = None;
        let thread = self.thread.take().expect("it is taken here only");
        thread.join().expect("the producer does not fail");
        self.sent()
    }

    /// Stops, and waits until all are stored.
    pub(crate) fn stop(mut self) -> Sent {
        let count = self.stop_sending();
        let ends = self.kafka.end_offsets(&self.topic, Isolation::ReadUncommitted);
        assert_eq!(ends.values().sum::<i64>(), count as i64, "records stored in {}, of those sent", self.topic);
        Sent { count, partitions: self.partitions }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // (an error: the test fails for another reason already)
            let _ = thread.join();
        }
    }
}

/// A record of a load.
pub(crate) struct Numbered {
    pub(crate) partition: i32,
    pub(crate) key: String,
    pub(crate) value: String,
}

fn send(producer: &ThreadedProducer<DefaultProducerContext>, topic: &str, record: &Numbered) {
    let Numbered { partition, key, value } = record;
    let record = BaseRecord::to(topic).key(key).payload(value).partition(*partition);
    producer.send(record).unwrap_or_else(|(error, _)| panic!("sending to {topic}: {error}"));
}

/// Each key is of one partition alone, so that its order is kept on the way to any number of partitions.
fn key(number: usize, partitions: usize) -> String {
    format!("{}-{}", number % partitions, number / partitions % KEYS)
}

/// The number of a record that a load has sent.
pub(crate) fn number(record: &ConsumedRecord) -> usize {
    record.text().parse().unwrap_or_else(|_| panic!("a number: {record:?}"))
}

/// What a load has sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) count: usize,
    partitions: usize,
}

impl Sent {
    /// The partition of the source from which a record came.
    pub(crate) fn partition(self, record: &ConsumedRecord) -> usize {
        number(record) % self.partitions
    }

    /// Fails unless each record has arrived once, and those of each key in order; where all went to one partition, those of
    /// each partition of the source.
    #[track_caller]
    pub(crate) fn assert_whole(self, arrived: &[ConsumedRecord], what: &str) {
        if let Err(why) = self.check(arrived) {
            panic!("{what}, {why}");
        }
    }

    fn check(self, arrived: &[ConsumedRecord]) -> Result<(), String> {
        let is_one = arrived.iter().all(|record| record.partition == 0);
        let lane = |number: usize| match is_one {
            true => (number % self.partitions).to_string(),
            false => key(number, self.partitions),
        };
        let mut lanes: BTreeMap<String, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
        for number in 0..self.count {
            lanes.entry(lane(number)).or_default().0.push(number);
        }
        for number in arrived.iter().map(number) {
            lanes.entry(lane(number)).or_default().1.push(number);
        }
        let Some((lane, (sent, found))) = lanes.into_iter().find(|(_, (sent, found))| sent != found) else {
            return Ok(());
        };
        let differs = sent.iter().zip(&found).position(|(sent, found)| sent != found);
        let place = differs.unwrap_or(sent.len().min(found.len()));
        let from = place.saturating_sub(3);
        let around = |all: &[usize]| format!("{:?}", &all[from.min(all.len())..(place + 5).min(all.len())]);
        Err(format!(
            "{lane}: {} records sent, {} arrived; from place {from} on: {} sent, {} arrived",
            sent.len(),
            found.len(),
            around(&sent),
            around(&found)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(numbers: &[usize]) -> Vec<ConsumedRecord> {
        let record = |(offset, number): (usize, &usize)| ConsumedRecord {
            partition: 0,
            offset: offset as i64,
            timestamp: 0,
            headers: Vec::new(),
            key: None,
            value: Some(number.to_string().into_bytes()),
        };
        numbers.iter().enumerate().map(record).collect()
    }

    #[test]
    fn what_is_lost_doubled_or_out_of_order_shows_and_partitions_may_overtake_each_other() {
        let sent = Sent { count: 6, partitions: 2 };
        for (numbers, whole) in [
            (&[0, 1, 2, 3, 4, 5][..], true),
            (&[1, 3, 5, 0, 2, 4], true),
            (&[0, 1, 2, 3, 4], false),
            (&[0, 1, 2, 3, 5], false),
            (&[0, 1, 2, 2, 3, 4, 5], false),
            (&[0, 1, 4, 3, 2, 5], false),
        ] {
            assert_eq!(sent.check(&arrived(numbers)).is_ok(), whole, "{numbers:?}");
        }
    }
}
