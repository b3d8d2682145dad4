//! The reference for routes that wait: bare consumers, each in a group of its own, and a few transactional producers, served by
//! one thread. It says when all of them are ready.

use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, Producer as _};

use crate::pace;
use crate::records::Kafka;

const VARIABLE: &str = "MILLRACE_BARE_IDLE";
const WITHIN: Duration = Duration::from_secs(60);
/// Between two rounds of polls.
const REST: Duration = Duration::from_millis(50);
/// What it says, as a line.
pub(crate) const READY: &str = "ready";

/// Consumers of `PREFIX0`, `PREFIX1`, …; handed to the process of its own by one variable.
pub(crate) struct Job {
    bootstrap: String,
    prefix: String,
    consumers: usize,
    producers: usize,
}

impl Job {
    /// The job that this process was started for, if it was.
    pub(crate) fn of_environment() -> Option<Self> {
        let text = std::env::var(VARIABLE).ok()?;
        let [bootstrap, prefix, consumers, producers] = text.split('|').collect::<Vec<_>>().try_into().ok()?;
        let [consumers, producers] = [consumers, producers].map(|count| count.parse().expect("a number"));
        Some(Self { bootstrap: bootstrap.to_owned(), prefix: prefix.to_owned(), consumers, producers })
    }
}

pub(crate) fn command(kafka: &Kafka, prefix: &str, consumers: usize, producers: usize) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a file"));
    command.env(VARIABLE, format!("{}|{prefix}|{consumers}|{producers}", kafka.bootstrap));
    command
}

/// Waits until it is killed.
pub(crate) fn run(job: &Job) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &job.bootstrap);
    let run = format!("bare-{:08x}", fastrand::u32(..));
    let consumers: Vec<BaseConsumer> = (0..job.consumers).map(|nth| consumer(&config, job, &run, nth)).collect();
    let producers: Vec<BaseProducer> = (0..job.producers).map(|nth| producer(&config, &run, nth)).collect();
    let mut waiting: Vec<&BaseConsumer> = consumers.iter().collect();
    while !waiting.is_empty() {
        waiting.retain(|consumer| {
            consumer.poll(Duration::ZERO);
            consumer.assignment().expect("it is asked").count() == 0
        });
        pace(Duration::from_millis(5));
    }
    println!("{READY}");
    loop {
        consumers.iter().for_each(|consumer| _ = consumer.poll(Duration::ZERO));
        producers.iter().for_each(|producer| producer.poll(Duration::ZERO));
        pace(REST);
    }
}

fn consumer(config: &ClientConfig, job: &Job, run: &str, nth: usize) -> BaseConsumer {
    let mut config = config.clone();
    config.set("group.id", format!("{run}-{nth}")).set("enable.auto.commit", "false");
    config.set("auto.offset.reset", "latest").set("isolation.level", "read_committed");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    consumer.subscribe(&[&format!("{}{nth}", job.prefix)]).expect("it subscribes");
    consumer
}

fn producer(config: &ClientConfig, run: &str, nth: usize) -> BaseProducer {
    let mut config = config.clone();
    let producer: BaseProducer = config.set("transactional.id", format!("{run}-{nth}")).create().expect("a producer");
    producer.init_transactions(WITHIN).expect("it is initialised");
    producer
}
