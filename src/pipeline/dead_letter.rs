//! Dead letters: the record as it came, with headers that say why it is here, in Kafka Connect's convention
//! (KIP-298, `errors.deadletterqueue.context.headers.enable`) so that existing dashboards read them.

use super::ports::{Headers, Output};
use crate::model::{Digest, Fault, FaultCode, SourceBatch};

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
        fault: &Fault,
        sha256: Option<&Digest>,
        attempts: u32,
        origin: &Origin<'_>,
    ) -> Self {
        let index = source as usize;
        let mut headers: Vec<_> = (0..batch.header_count(index))
            .map(|nth| batch.header(index, nth))
            .map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec)))
            .collect();
        let from = batch.topic_partition();
        let stage = if fault.code == FaultCode::Rejected { "KAFKA_PRODUCE" } else { "TRANSFORMATION" };
        let mut add = |name: &str, value: String| headers.push((name.as_bytes().to_vec(), Some(value.into_bytes())));
        add("__connect.errors.topic", from.topic.to_string());
        add("__connect.errors.partition", from.partition.to_string());
        add("__connect.errors.offset", batch.offset(index).to_string());
        add("__connect.errors.connector.name", origin.route.to_owned());
        add("__connect.errors.task.id", origin.worker.to_string());
        add("__connect.errors.stage", stage.to_owned());
        if let Some(plugin) = &fault.plugin {
            add("__connect.errors.class.name", plugin.to_string());
        }
        add("__connect.errors.exception.class.name", fault.code.to_string());
        add("__connect.errors.exception.message", clip(&fault.message));
        if let Some(sha256) = sha256 {
            add("millrace.plugin.sha256", sha256.to_string());
        }
        add("millrace.generation", origin.generation.to_string());
        add("millrace.attempts", attempts.to_string());
        Self { source, topic: placed.0, partition: placed.1, headers, truncated: false }
    }

    /// Cuts the value, for a record that the dead-letter topic refuses as too large. False where that was done already.
    pub fn truncate(&mut self, batch: &dyn SourceBatch) -> bool {
        let whole = batch.value(self.source as usize).map_or(0, <[u8]>::len);
        if self.truncated || whole <= TRUNCATED_TO {
            return false;
        }
        self.truncated = true;
        self.headers.push((b"millrace.truncated".to_vec(), Some(whole.to_string().into_bytes())));
        true
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
        }
    }
}

fn clip(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}
