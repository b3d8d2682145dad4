//! Dead letters: the record as it came, with headers that say why it is here, in Kafka Connect's convention
//! (KIP-298, `errors.deadletterqueue.context.headers.enable`) so that existing dashboards read them.

use super::ports::{Headers, Output};
use crate::model::{Digest, ErrorId, Fault, FaultCode, Offset, Redriven, SourceBatch, TopicName, TopicPartition};

// Kafka Connect's names, and ours.
const TOPIC: &str = "__connect.errors.topic";
const PARTITION: &str = "__connect.errors.partition";
const OFFSET: &str = "__connect.errors.offset";
const ROUTE: &str = "__connect.errors.connector.name";
const WORKER: &str = "__connect.errors.task.id";
const STAGE: &str = "__connect.errors.stage";
const PLUGIN: &str = "__connect.errors.class.name";
const CODE: &str = "__connect.errors.exception.class.name";
const MESSAGE: &str = "__connect.errors.exception.message";
const ERROR_ID: &str = "millrace.error.id";
const SHA256: &str = "millrace.plugin.sha256";
const GENERATION: &str = "millrace.generation";
const ATTEMPTS: &str = "millrace.attempts";
const TRUNCATED: &str = "millrace.truncated";
/// How often a record has been sent through again.
pub const REDRIVES: &str = "millrace.redrives";

/// Longest message of a fault in a header, bytes.
const MESSAGE_MAX: usize = 2048;
/// Bytes of value kept where the whole record is too large for the dead-letter topic.
const TRUNCATED_TO: usize = 4096;

/// One record on its way to the dead-letter topic.
#[derive(Debug)]
pub struct DeadLetter {
    /// The source record.
    pub source: u32,
    topic: u16,
    partition: i32,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    truncated: bool,
}

/// What a dead letter's headers tell besides the record's own coordinates.
#[derive(Debug, Clone)]
pub struct Origin<'a> {
    /// The route's name.
    pub route: &'a str,
    /// The worker's number.
    pub worker: u16,
    /// The generation of the configuration.
    pub generation: u64,
}

impl DeadLetter {
    /// The dead letter of record `source` of `batch`, for partition `placed.1` of topic `placed.0`.
    pub fn new(
        batch: &dyn SourceBatch,
        source: u32,
        placed: (u16, i32),
        (error_id, fault): (ErrorId, &Fault),
        sha256: Option<&Digest>,
        attempts: u32,
        origin: &Origin<'_>,
    ) -> Self {
        let index = source as usize;
        let mut headers: Vec<_> = (0..batch.header_count(index))
            .map(|nth| batch.header(index, nth))
            .map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec)))
            .collect();
        // One that was sent through again says where it came from in the first place.
        let redriven = batch.redriven(index);
        let first = redriven.as_ref().map(|redriven| (&redriven.from, redriven.offset));
        let (from, offset) = first.unwrap_or((batch.topic_partition(), batch.offset(index)));
        let stage = if fault.code == FaultCode::Rejected { "KAFKA_PRODUCE" } else { "TRANSFORMATION" };
        let mut add = |name: &str, value: String| headers.push((name.as_bytes().to_vec(), Some(value.into_bytes())));
        add(TOPIC, from.topic.to_string());
        add(PARTITION, from.partition.to_string());
        add(OFFSET, offset.to_string());
        add(ROUTE, origin.route.to_owned());
        add(WORKER, origin.worker.to_string());
        add(STAGE, stage.to_owned());
        if let Some(plugin) = &fault.plugin {
            add(PLUGIN, plugin.to_string());
        }
        add(CODE, fault.code.to_string());
        add(MESSAGE, clip(&fault.message));
        add(ERROR_ID, error_id.to_string());
        if let Some(sha256) = sha256 {
            add(SHA256, sha256.to_string());
        }
        add(GENERATION, origin.generation.to_string());
        add(ATTEMPTS, attempts.to_string());
        if let Some(redriven) = &redriven {
            add(REDRIVES, redriven.times.to_string());
        }
        Self { source, topic: placed.0, partition: placed.1, headers, truncated: false }
    }

    /// Cuts the value, for a record that the dead-letter topic refuses as too large. False where that was done already.
    pub fn truncate(&mut self, batch: &dyn SourceBatch) -> bool {
        let whole = batch.value(self.source as usize).map_or(0, <[u8]>::len);
        if self.truncated || whole <= TRUNCATED_TO {
            return false;
        }
        self.truncated = true;
        self.headers.push((TRUNCATED.as_bytes().to_vec(), Some(whole.to_string().into_bytes())));
        true
    }

    /// The partition that it goes to.
    pub(super) fn partition(&self) -> i32 {
        self.partition
    }

    /// The record to produce.
    pub fn output<'a>(&'a self, batch: &'a dyn SourceBatch) -> Output<'a> {
        let index = self.source as usize;
        let value = batch.value(index);
        Output {
            topic: self.topic,
            partition: self.partition,
            key: batch.key(index),
            value: if self.truncated { value.map(|bytes| &bytes[..TRUNCATED_TO]) } else { value },
            timestamp: batch.timestamp(index),
            headers: Headers::List(&self.headers),
            keeper: None,
        }
    }
}

/// What a dead letter says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Where the record came from.
    pub from: TopicPartition,
    /// Where in it.
    pub offset: Offset,
    /// The route that it was at fault in.
    pub route: String,
    /// The plugin, where one was to blame.
    pub plugin: Option<String>,
    /// The digest of the plugin's file.
    pub sha256: Option<String>,
    /// The fault's code.
    pub code: String,
    /// For people.
    pub message: String,
    /// The fault's id, as in the log; none in a letter of an older millrace.
    pub error_id: Option<String>,
    /// How often the record was tried.
    pub attempts: u32,
    /// How often it was sent through again before; 0 for one that never was.
    pub redrives: u32,
    /// The length of the whole value, where it was cut.
    pub truncated: Option<u64>,
}

impl Letter {
    /// Reads the headers of a record; none where it is no dead letter, or another tool's.
    pub fn read(batch: &dyn SourceBatch, index: usize) -> Option<Self> {
        // (a later header counts: the record may have been a dead letter in its source already)
        let header = |name: &str| {
            let found = (0..batch.header_count(index)).rev().map(|nth| batch.header(index, nth));
            let (_, value) = found.into_iter().find(|(of, _)| *of == name.as_bytes())?;
            value.and_then(|value| std::str::from_utf8(value).ok())
        };
        let number = |name: &str| header(name).and_then(|text| text.parse().ok());
        let topic = TopicName::new(header(TOPIC)?).ok()?;
        Some(Self {
            from: TopicPartition { topic, partition: header(PARTITION)?.parse().ok()? },
            offset: header(OFFSET)?.parse().ok()?,
            route: header(ROUTE)?.to_owned(),
            plugin: header(PLUGIN).map(str::to_owned),
            sha256: header(SHA256).map(str::to_owned),
            code: header(CODE)?.to_owned(),
            message: header(MESSAGE).unwrap_or_default().to_owned(),
            error_id: header(ERROR_ID).map(str::to_owned),
            attempts: number(ATTEMPTS).unwrap_or(0),
            redrives: number(REDRIVES).unwrap_or(0),
            truncated: header(TRUNCATED).and_then(|text| text.parse().ok()),
        })
    }

    /// What it is to be known as once it is sent through again.
    pub fn redriven(&self) -> Redriven {
        Redriven { from: self.from.clone(), offset: self.offset, times: self.redrives.saturating_add(1) }
    }

    /// How many headers the record had before it became this letter. Ours stand behind its own.
    pub fn own_headers(batch: &dyn SourceBatch, index: usize) -> usize {
        let of = |nth: &usize| batch.header(index, *nth).0 == TOPIC.as_bytes();
        (0..batch.header_count(index)).rev().find(of).unwrap_or(batch.header_count(index))
    }
}

fn clip(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}
