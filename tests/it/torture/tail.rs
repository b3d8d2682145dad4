//! Follows a topic as a committed reader while the run goes on, to see for how long nothing came. Knows nothing about records.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::support::kafka::Kafka;

/// A reader at work. Ends with the value.
pub(crate) struct Tail {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Stall>>,
}

/// The longest time between two arrivals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stall {
    pub(crate) length: Duration,
    /// When it began, from the start.
    pub(crate) at: Duration,
}

impl Tail {
    pub(crate) fn start(kafka: &Kafka, topic: &str) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &kafka.bootstrap)
            .set("group.id", "nobody")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "100")
            .set("reconnect.backoff.max.ms", "500")
            .create()
            .expect("a consumer");
        let mut all = TopicPartitionList::new();
        for partition in 0..kafka.partitions(topic).expect("the topic is there") {
            all.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
        }
        consumer.assign(&all).expect("an assignment");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let (mut last, mut longest) = (began, Stall::default());
            while !stopped.load(Relaxed) {
                // (errors: a broker is away, and the client goes on by itself)
                let Some(Ok(_)) = consumer.poll(Duration::from_millis(200)) else { continue };
                let now = Instant::now();
                if now - last > longest.length {
                    longest = Stall { length: now - last, at: last - began };
                }
                last = now;
            }
            longest
        });
        Self { stop, thread: Some(thread) }
    }

    /// Ends it. What follows the last arrival is no stall.
    pub(crate) fn stop(mut self) -> Stall {
        self.stop.store(true, Relaxed);
        self.thread.take().expect("it is taken here only").join().expect("the reader does not fail")
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}
