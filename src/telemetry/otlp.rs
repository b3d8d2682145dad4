//! Exports spans to an OpenTelemetry collector: OTLP over HTTP, as JSON, from a thread of its own. Knows nothing of who
//! makes them ([`super::trace`] has the handle).
//!
//! Nobody ever waits for it. What waits to be exported is bounded; what finds no room, and what a collector does not take
//! in good time, is dropped and counted.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use super::metrics::{Metrics, SpanMetrics};
use super::repeats::Repeats;
use super::trace::{Span, Spans, Work};
use crate::model::{RouteName, TopicPartition};

/// Spans that wait to be exported: some 2 MiB, and as much again for those that are on their way as text.
const WAITING_MAX: usize = 16_384;
/// Messages in the queue; each has the spans of a unit of work.
const QUEUE: usize = 4_096;
/// Spans of one request: about 1 MiB of the 20 that a collector takes.
const REQUEST_SPANS: usize = 2_048;
/// How long spans wait for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long a collector may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A request is given so often to a collector that is away or busy, with a wait that doubles in between: for some 15 s.
const TRIES: u32 = 5;
/// One line on what a collector does not take, in this time.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Exports spans to one collector. When it is dropped, what was taken is exported in the background.
#[derive(Debug)]
pub struct Exporter {
    url: String,
    queue: SyncSender<Spans>,
    waiting: Arc<AtomicUsize>,
    metrics: SpanMetrics,
    /// Hangs up when the thread has ended; it sees `live` hang up.
    ended: Mutex<Receiver<Infallible>>,
    live: Sender<Infallible>,
}

impl Exporter {
    /// Exports to the collector at `url`, to which `/v1/traces` is added. `instance` tells this process from others.
    ///
    /// # Errors
    /// Its thread cannot be started.
    pub fn start(url: &str, version: &'static str, instance: String, metrics: &Metrics) -> io::Result<Self> {
        let (queue, mailbox) = sync_channel(QUEUE);
        let (live, closing) = channel();
        let (ending, ended) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let exporting = Exporting {
            endpoint: format!("{}/v1/traces", url.trim_end_matches('/')),
            agent: agent(),
            resource: Resource::of(version, instance),
            version,
            metrics: metrics.spans(),
            waiting: Arc::clone(&waiting),
            closing,
            repeats: Repeats::new(TELL_EVERY),
        };
        std::thread::Builder::new().name("otlp".into()).spawn(move || {
            let _ending = ending;
            exporting.run(&mailbox);
        })?;
        Ok(Self { url: url.to_owned(), queue, waiting, metrics: metrics.spans(), ended: Mutex::new(ended), live })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn room(&self) -> usize {
        WAITING_MAX.saturating_sub(self.waiting.load(Relaxed))
    }

    pub(super) fn take(&self, spans: Spans) {
        let count = spans.list.len();
        self.metrics.dropped.increment(spans.dropped);
        // (several routes may have seen the same room)
        let has_room = self.waiting.fetch_add(count, Relaxed) + count <= WAITING_MAX;
        if count > 0 && !(has_room && self.queue.try_send(spans).is_ok()) {
            self.waiting.fetch_sub(count, Relaxed);
            self.metrics.dropped.increment(count as u64);
        }
    }

    /// Exports what it has, within this time.
    pub(super) fn finish(self, within: Duration) {
        let Self { queue, ended, live, .. } = self;
        drop((queue, live));
        let _ = ended.into_inner().unwrap_or_else(PoisonError::into_inner).recv_timeout(within);
    }
}

/// By https it trusts whom OpenSSL trusts: the system's authorities, or those that `SSL_CERT_FILE` names.
fn agent() -> Agent {
    let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier).build();
    let agent = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .timeout_global(Some(ANSWER_WITHIN))
        .max_redirects(0)
        .proxy(None)
        .build();
    agent.into()
}

/// The exporter's thread.
struct Exporting {
    endpoint: String,
    agent: Agent,
    resource: Resource,
    version: &'static str,
    metrics: SpanMetrics,
    waiting: Arc<AtomicUsize>,
    /// Hangs up when the exporter is on its way out.
    closing: Receiver<Infallible>,
    repeats: Repeats<()>,
}

/// What became of a request.
enum Posted {
    /// The collector has it, but for so many spans.
    Taken(u64),
    /// It may take it later.
    Later(String),
    Refused(String),
}

impl Exporting {
    fn run(mut self, mailbox: &Receiver<Spans>) {
        let mut batch = Vec::new();
        let mut due: Option<Instant> = None;
        loop {
            let received = match due {
                None => mailbox.recv().map_err(RecvTimeoutError::from),
                Some(at) => mailbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match received {
                Ok(spans) => {
                    due = due.or_else(|| Some(Instant::now() + GATHER));
                    for span in &spans.list {
                        batch.push(OtlpSpan::of(span, &spans.route, &spans.source));
                        if batch.len() >= REQUEST_SPANS {
                            self.export(&mut batch);
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.export(&mut batch);
                    due = None;
                }
                Err(RecvTimeoutError::Disconnected) => return self.export(&mut batch),
            }
        }
    }

    /// Has the spans taken by the collector, or drops them.
    fn export(&mut self, batch: &mut Vec<OtlpSpan>) {
        if batch.is_empty() {
            return;
        }
        let count = batch.len() as u64;
        let body = Request::of(&self.resource, self.version, batch);
        let body = serde_json::to_vec(&body).expect("texts and numbers are JSON");
        let rejected = self.post_patiently(&body).min(count);
        self.metrics.exported.increment(count - rejected);
        self.metrics.dropped.increment(rejected);
        // (not before: they have been in memory until now)
        self.waiting.fetch_sub(batch.len(), Relaxed);
        batch.clear();
    }

    /// How many spans were not taken.
    fn post_patiently(&mut self, body: &[u8]) -> u64 {
        let mut wait = Duration::from_secs(1);
        for attempt in 1..=TRIES {
            let why = match self.post(body) {
                Posted::Taken(rejected) => return rejected,
                Posted::Refused(why) => {
                    self.tell(&why);
                    break;
                }
                Posted::Later(why) => why,
            };
            let closes = || self.closing.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
            if attempt == TRIES || closes() {
                self.tell(&why);
                break;
            }
            wait *= 2;
        }
        u64::MAX
    }

    fn post(&self, body: &[u8]) -> Posted {
        let request = self.agent.post(&self.endpoint).header("Content-Type", "application/json");
        let mut response = match request.send(body) {
            Ok(response) => response,
            Err(error) => return Posted::Later(error.to_string()),
        };
        let said = response.body_mut().with_config().limit(64 << 10).read_to_string().unwrap_or_default();
        match response.status().as_u16() {
            200..=299 => Posted::Taken(rejected_in(&said)),
            // (the standard's list of what may be tried again)
            status @ (429 | 502 | 503 | 504) => Posted::Later(format!("it answers {status}")),
            status => Posted::Refused(format!("it answers {status}: {}", said.chars().take(200).collect::<String>())),
        }
    }

    fn tell(&mut self, why: &str) {
        if let Some(seen) = self.repeats.happened(&()) {
            let left_out = (seen.left_out > 0).then_some(seen.left_out);
            let endpoint = &self.endpoint;
            tracing::warn!(endpoint, left_out, "the collector does not take spans, which are dropped: {why}");
        }
    }
}

/// Spans that a collector did not take of a request that it took.
fn rejected_in(answer: &str) -> u64 {
    let answer: serde_json::Value = serde_json::from_str(answer).unwrap_or_default();
    let rejected = &answer["partialSuccess"]["rejectedSpans"];
    // (64 bits are a text in the JSON of protobuf)
    rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or(0)
}

// ---- the request, as opentelemetry-proto's JSON has it ------------------------------------

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    resource_spans: [ResourceSpans<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    resource: &'a Resource,
    scope_spans: [ScopeSpans<'a>; 1],
}

#[derive(Serialize)]
struct Resource {
    attributes: Vec<Attribute>,
}

#[derive(Serialize)]
struct ScopeSpans<'a> {
    scope: Scope,
    spans: &'a [OtlpSpan],
}

#[derive(Serialize)]
struct Scope {
    name: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OtlpSpan {
    trace_id: String,
    span_id: String,
    parent_span_id: String,
    flags: u32,
    name: String,
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Vec<Attribute>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

#[derive(Serialize)]
struct Status {
    code: u8,
}

#[derive(Serialize)]
struct Attribute {
    key: &'static str,
    value: AttributeValue,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum AttributeValue {
    StringValue(String),
    IntValue(String),
}

fn text(key: &'static str, value: impl ToString) -> Attribute {
    Attribute { key, value: AttributeValue::StringValue(value.to_string()) }
}

impl<'a> Request<'a> {
    fn of(resource: &'a Resource, version: &'static str, spans: &'a [OtlpSpan]) -> Self {
        let scope_spans = [ScopeSpans { scope: Scope { name: "millrace", version }, spans }];
        Self { resource_spans: [ResourceSpans { resource, scope_spans }] }
    }
}

impl Resource {
    fn of(version: &str, instance: String) -> Self {
        let attributes = [("service.name", "millrace".to_owned()), ("service.version", version.to_owned())];
        let attributes = attributes.into_iter().chain([("service.instance.id", instance)]);
        Self { attributes: attributes.map(|(key, value)| text(key, value)).collect() }
    }
}

// SpanKind and Status.StatusCode.
const INTERNAL: u8 = 1;
const PRODUCER: u8 = 4;
const CONSUMER: u8 = 5;
const ERROR: u8 = 2;
/// Whether the parent is in another process is known; and it is.
const IS_REMOTE_KNOWN: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

impl OtlpSpan {
    fn of(span: &Span, route: &RouteName, source: &TopicPartition) -> Self {
        let mut attributes = vec![text("millrace.route", route)];
        let mut on_topic = |operation: &str, topic: &str, partition: i32| {
            attributes.extend([
                text("messaging.system", "kafka"),
                text("messaging.operation.name", operation),
                text("messaging.operation.type", operation),
                text("messaging.destination.name", topic),
                text("messaging.destination.partition.id", partition),
            ]);
            format!("{operation} {topic}")
        };
        let mut at_fault = None;
        let (name, kind, remote) = match &span.work {
            Work::Receive { offset, fault } => {
                at_fault = *fault;
                let name = on_topic("receive", source.topic.as_str(), source.partition);
                let value = AttributeValue::IntValue(offset.to_string());
                attributes.push(Attribute { key: "messaging.kafka.offset", value });
                (name, CONSUMER, IS_REMOTE_KNOWN | IS_REMOTE)
            }
            Work::Plugin(plugin) => {
                attributes.push(text("millrace.plugin", plugin));
                (format!("plugin {plugin}"), INTERNAL, IS_REMOTE_KNOWN)
            }
            Work::Send { topic, partition } => {
                (on_topic("send", topic.as_str(), *partition), PRODUCER, IS_REMOTE_KNOWN)
            }
        };
        attributes.extend(at_fault.map(|code| text("error.type", code)));
        Self {
            trace_id: span.context.trace_hex(),
            span_id: span.id.hex(),
            parent_span_id: span.context.parent.hex(),
            flags: u32::from(span.context.flags()) | remote,
            name,
            kind,
            start_time_unix_nano: span.began.to_string(),
            end_time_unix_nano: span.ended.to_string(),
            attributes,
            status: at_fault.map(|_| Status { code: ERROR }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::{SpanId, TraceContext};
    use super::*;
    use crate::model::TopicName;

    #[test]
    fn what_finds_no_room_is_dropped_and_counted_and_nobody_waits() {
        // (connections are made, and nobody ever answers)
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let metrics = Metrics::new("1");
        let exporter = Exporter::start(&url, "1", "a".into(), &metrics).unwrap();
        let context = TraceContext::read(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let work = Work::Receive { offset: 0, fault: None };
        let span = Span { context, id: SpanId::random(), began: 1, ended: 2, work };
        let spans = |count| Spans {
            route: RouteName::new("r").unwrap(),
            source: TopicPartition { topic: TopicName::new("t").unwrap(), partition: 0 },
            list: vec![span.clone(); count],
            dropped: 7,
        };
        assert_eq!(exporter.room(), WAITING_MAX);
        exporter.take(spans(WAITING_MAX - 1));
        assert_eq!(exporter.room(), 1);
        exporter.take(spans(2));
        exporter.take(spans(1));
        assert_eq!(exporter.room(), 0);
        let text = metrics.render();
        assert!(text.contains("millrace_spans_total{outcome=\"dropped\"} 23\n"), "{text}");
        exporter.finish(Duration::ZERO);
    }

    #[test]
    fn a_collector_may_leave_out_some_of_what_it_takes() {
        for (answer, rejected) in [
            ("", 0),
            ("{}", 0),
            (r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"too old"}}"#, 3),
            (r#"{"partialSuccess":{"rejectedSpans":4}}"#, 4),
        ] {
            assert_eq!(rejected_in(answer), rejected, "{answer}");
        }
    }
}
