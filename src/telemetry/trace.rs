//! W3C Trace Context (`traceparent`), spans that continue it, and the handle by which they leave. Knows nothing of records
//! but their coordinates; how spans travel is [`super::otlp`]'s.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::otlp::Exporter;
use crate::model::{FaultCode, Offset, PluginName, RouteName, TopicName, TopicPartition};

/// The header that carries a trace context. Kafka tells upper case from lower.
pub const TRACEPARENT: &str = "traceparent";
/// Bytes of its value, in version 00.
pub const TRACEPARENT_BYTES: usize = 55;

/// The bit of `trace-flags` by which who began the trace asked for its spans; and the one that says that its id is random.
const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;

/// The id of a span; never all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId([u8; 8]);

impl SpanId {
    /// One that no other span has, but by a chance of one in 2^64.
    pub fn random() -> Self {
        Self(fastrand::u64(1..).to_be_bytes())
    }
}

/// What a `traceparent` says: which trace, and which of its spans comes before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    /// The span before.
    pub parent: SpanId,
    flags: u8,
}

impl TraceContext {
    /// Reads a header's value, of version 00 or a later one; none where the standard says that it is to be ignored.
    pub fn read(value: &[u8]) -> Option<Self> {
        let (head, rest) = value.split_at_checked(TRACEPARENT_BYTES)?;
        let [version] = bytes(&head[..2])?;
        let is_known =
            (version == 0 && rest.is_empty()) || (version != 0 && rest.first().is_none_or(|next| *next == b'-'));
        if version == 0xff || !is_known || [2, 35, 52].iter().any(|at| head[*at] != b'-') {
            return None;
        }
        let (trace, parent, [flags]) = (bytes(&head[3..35])?, bytes(&head[36..52])?, bytes(&head[53..])?);
        (trace != [0; 16] && parent != [0; 8]).then_some(Self { trace, parent: SpanId(parent), flags })
    }

    /// Whether the spans of this trace are wanted.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// What follows a span of this trace: the same, with that span before it.
    pub fn after(self, span: SpanId) -> Self {
        Self { parent: span, flags: self.flags & (SAMPLED | RANDOM), ..self }
    }

    /// The header's value.
    pub fn write(&self) -> [u8; TRACEPARENT_BYTES] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&self.trace, &mut text[3..35]);
        write_hex(&self.parent.0, &mut text[36..52]);
        write_hex(&[self.flags], &mut text[53..]);
        text
    }

    pub(super) fn trace_hex(&self) -> String {
        hex(&self.trace)
    }

    pub(super) fn flags(&self) -> u8 {
        self.flags
    }
}

impl SpanId {
    pub(super) fn hex(self) -> String {
        hex(&self.0)
    }
}

/// Lower case only, as the standard has it.
fn bytes<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn write_hex(bytes: &[u8], text: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(text.chunks_exact_mut(2)) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = vec![0; 2 * bytes.len()];
    write_hex(bytes, &mut text);
    String::from_utf8(text).expect("digits are ASCII")
}

/// Something that was done for a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its trace, and the span that it belongs to.
    pub context: TraceContext,
    /// Its own id.
    pub id: SpanId,
    /// Nanoseconds since 1970-01-01 UTC.
    pub began: u64,
    /// The same.
    pub ended: u64,
    /// What was done.
    pub work: Work,
}

/// What was done for a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// All of it: from when the plugins took it up until it was committed.
    Receive {
        /// The record.
        offset: Offset,
        /// Its fault, where it was put aside or passed by for one.
        fault: Option<FaultCode>,
    },
    /// A plugin had the batch with the record.
    Plugin(PluginName),
    /// An output: from when it was known where it goes until it was committed.
    Send {
        /// Its topic.
        topic: TopicName,
        /// The partition.
        partition: i32,
    },
}

/// Spans of records of one partition.
#[derive(Debug, Clone, PartialEq)]
pub struct Spans {
    /// The route.
    pub route: RouteName,
    /// The records' partition.
    pub source: TopicPartition,
    /// The spans.
    pub list: Vec<Span>,
    /// Spans of further records that found no room.
    pub dropped: u64,
}

/// Where spans go; nowhere, unless a collector is configured. Its copies are the same.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Arc<ArcSwapOption<Exporter>>);

impl Tracer {
    /// Whether traces are continued at all.
    pub fn is_on(&self) -> bool {
        self.0.load().is_some()
    }

    /// How many spans can be taken now: what is beyond that need not be made.
    pub fn room(&self) -> usize {
        self.0.load().as_ref().map_or(0, |exporter| exporter.room())
    }

    /// Takes spans to be exported. Never waits: what finds no room is dropped, and counted.
    pub fn take(&self, spans: Spans) {
        if let Some(exporter) = &*self.0.load() {
            exporter.take(spans);
        }
    }

    /// Whether spans go there already; `None` is nowhere.
    pub fn goes_to(&self, url: Option<&str>) -> bool {
        self.0.load().as_ref().map(|exporter| exporter.url()) == url
    }

    /// From now on spans go through `exporter`. What the one before has taken is still exported, in the background.
    pub fn go_through(&self, exporter: Option<Exporter>) {
        self.0.store(exporter.map(Arc::new));
    }

    /// Exports what was taken, within this time, and takes no more.
    pub fn finish(&self, within: std::time::Duration) {
        if let Some(exporter) = self.0.swap(None) {
            // (nobody else has it: all workers have ended. If one has not, there is no time to wait for it.)
            if let Some(exporter) = Arc::into_inner(exporter) {
                exporter.finish(within);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_context_is_read_as_the_standard_has_it_and_written_with_another_parent() {
        let context = TraceContext::read(EXAMPLE.as_bytes()).unwrap();
        assert!(context.is_sampled());
        assert_eq!(context.write(), EXAMPLE.as_bytes());
        let after = context.after(SpanId([1, 2, 3, 4, 5, 6, 7, 0xab]));
        assert_eq!(after.write(), *b"00-4bf92f3577b34da6a3ce929d0e0e4736-01020304050607ab-01");
        let unsampled = TraceContext::read(EXAMPLE.replace("-01", "-00").as_bytes()).unwrap();
        assert!(!unsampled.is_sampled());
        // A later version may say more, behind a dash; what it means by other flags is not known.
        let later = EXAMPLE.replace("00-4b", "cc-4b").replace("-01", "-ff-what-else");
        let later = TraceContext::read(later.as_bytes()).unwrap();
        assert_eq!(later.after(later.parent).write(), *EXAMPLE.replace("-01", "-03").as_bytes());
    }

    #[test]
    fn what_is_no_trace_context_is_ignored() {
        for value in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01what",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::read(value.as_bytes()), None, "{value}");
        }
    }
}
