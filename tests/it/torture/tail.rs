//! Follows a topic as a committed reader while the run goes on, to see for how long nothing came. Knows nothing about records.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::BEGIN;
use crate::support::kafka::Kafka;
use crate::support::{pace, wait_for, wait_until};

/// A reader at work. Ends with the value.
pub(crate) struct Tail {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
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
        // (of several brokers, one may not have heard of it yet)
        let partitions = wait_for(BEGIN, "the topic is known", || kafka.partitions(topic));
        for partition in 0..partitions {
            all.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
        }
        consumer.assign(&all).expect("an assignment");
        let stop = Arc::new(AtomicBool::new(false));
        let arrived = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&arrived));
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let (mut last, mut longest) = (None, Stall::default());
            while !stopped.load(Relaxed) {
                // (errors: a broker is away, and the client goes on by itself)
                let Some(Ok(_)) = consumer.poll(Duration::from_millis(200)) else { continue };
                let now = Instant::now();
                let before = last.replace(now).unwrap_or(now);
                if now - before > longest.length {
                    longest = Stall { length: now - before, at: before - began };
                }
                count.fetch_add(1, Relaxed);
            }
            longest
        });
        Self { stop, arrived, thread: Some(thread) }
    }

    /// Waits until the first record has arrived.
    pub(crate) fn await_begin(&self, timeout: Duration) {
        wait_until(timeout, "the first record arrives", || self.arrived.load(Relaxed) > 0);
    }

    /// Waits for the next record; whether it arrived in time.
    pub(crate) fn await_next(&self, timeout: Duration) -> bool {
        let (before, deadline) = (self.arrived.load(Relaxed), Instant::now() + timeout);
        while self.arrived.load(Relaxed) == before && Instant::now() < deadline {
            pace(Duration::from_millis(20));
        }
        self.arrived.load(Relaxed) > before
    }

    /// Ends it. What precedes the first arrival is no stall, nor is what follows the last.
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
