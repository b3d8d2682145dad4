//! Traces: `traceparent` goes on through a route, spans reach a collector, and nothing is touched where none is configured.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use millrace::model::{OffsetMap, RouteName, SourceBatch, TopicName, TopicPartition};
use millrace::pipeline::ports::{Broker, Event, Outcome, Outputs, TopicError, TopicInfo, Trouble, TroubleKind};
use millrace::pipeline::worker::{Exit, Order, RouteWorker};
use millrace::telemetry::{Exporter, Metrics, Tracer};

use crate::support::collector::{Collector, Span};
use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{ConsumedRecord, Record, shared};
use crate::support::memory_batch::{MemoryBatch, MemoryRecord};
use crate::support::secured::make_certificates;
use crate::support::{record_loop, scratch, unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
const PARENT: &str = "00f067aa0ba902b7";

fn trace(number: u8) -> String {
    format!("4bf92f3577b34da6a3ce929d0e0e47{number:02x}")
}

fn traceparent(number: u8, flags: &str) -> String {
    format!("00-{}-{PARENT}-{flags}", trace(number))
}

/// The values of a record's headers of this name, in order.
fn headers(record: &ConsumedRecord, name: &str) -> Vec<String> {
    let values = record.headers.iter().filter(|(of, _)| of == name).map(|(_, value)| value.clone().unwrap_or_default());
    values.map(|value| String::from_utf8(value).expect("a text")).collect()
}

/// A record that `conform-rust` treats as its headers say.
fn record(value: &str, commands: &[(&str, &str)]) -> Record {
    commands.iter().fold(Record::new("k", value), |record, (name, value)| record.header(name, value))
}

#[test]
fn traces_go_on_in_records_and_spans_while_a_collector_is_configured_and_no_header_is_touched_otherwise() {
    let kafka = shared();
    let [source, out, dead] = ["traces", "traces-out", "traces-dead"].map(unique);
    [&source, &out, &dead].into_iter().for_each(|topic| kafka.create_topic(topic, 1, &[]));
    // (its first answer is that it is too busy: what it does not take then comes again)
    let collector = Collector::start(1);
    let routes = format!(
        "routes:
  copy:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: conform-rust }}, {{ plugin: identity-pass, when: 'offset == 4' }}]
    destinations: [{{ topic: {out} }}]
    on_error: {{ dead_letter: {dead} }}
"
    );
    let config = Config::new(&kafka.bootstrap, &["conform-rust", "identity-pass"], &routes);
    let mut daemon = Daemon::start(config.path());
    let sampled = |number| traceparent(number, "01");
    let (mut sent, mut next) = (Vec::new(), 0);
    let mut send = |records: Vec<Record>, next: &mut usize, arrive: usize| {
        kafka.produce(&source, &records);
        sent.extend(records);
        *next += arrive;
        kafka.await_records(&out, *next, PATIENCE)
    };

    // Nothing is configured.
    let untouched = record("before", &[("a", "1"), ("traceparent", &sampled(0)), ("b", "2")]);
    let arrived = send(vec![untouched.clone()], &mut next, 1);
    assert_eq!(arrived[0].headers, untouched.headers);
    assert_eq!(daemon.metric("millrace_spans_total", &[]), None);

    // It is, from now on; in place.
    config.edit(|yaml| format!("telemetry: {{ otlp: \"{}\" }}\n{yaml}", collector.url()));
    wait_until(PATIENCE, "it is taken up", || daemon.generation() == 2);
    assert_eq!(daemon.metric("millrace_rebalances_total", &[("route", "copy")]), Some(1.0), "the route runs on");
    let other = traceparent(200, "01");
    let set = format!("traceparent={other}");
    let records = vec![
        record("none", &[("a", "1")]),
        record("unsampled", &[("traceparent", &traceparent(2, "00"))]),
        record("nonsense", &[("traceparent", "00-what-01")]),
        record("plain", &[("a", "1"), ("traceparent", &sampled(4)), ("tracestate", "x=y"), ("b", "2")]),
        record("twice", &[("traceparent", &sampled(200)), ("traceparent", &sampled(5))]),
        record("rebuilt", &[("traceparent", &sampled(6)), ("rebuild", ""), ("drop", "")]),
        record(
            "removed",
            &[("traceparent", &sampled(7)), ("emit", ""), ("remove-header", "traceparent"), ("drop", "")],
        ),
        record("set", &[("traceparent", &sampled(8)), ("emit", ""), ("header", &set), ("drop", "")]),
        record("copied", &[("traceparent", &sampled(9)), ("copies", "1")]),
        record("dropped", &[("traceparent", &sampled(10)), ("drop", "")]),
        record("refused", &[("traceparent", &sampled(11)), ("refuse", "no")]),
    ];
    let arrived = send(records.clone(), &mut next, 10);
    let letters = kafka.await_records(&dead, 1, PATIENCE);
    let of = |value: &str| arrived.iter().filter(|record| record.text() == value).collect::<Vec<_>>();
    let sent_as =
        |value: &str| &records.iter().find(|record| record.value == Some(value.into())).expect("sent").headers;

    wait_until(PATIENCE, "the last span has come", || {
        collector.spans().iter().any(|span| span.text("traceId") == trace(11) && span.text("name").starts_with("send"))
    });
    let spans = collector.spans();
    let named = |number: u8, what: &str| {
        let found = spans.iter().filter(|span| span.text("traceId") == trace(number) && span.text("name") == what);
        found.cloned().collect::<Vec<_>>()
    };
    let (receive, sends) = (format!("receive {source}"), format!("send {out}"));

    // Records without a sampled trace are as they were, and nothing is told of them.
    for value in ["none", "unsampled", "nonsense"] {
        assert_eq!(&of(value)[0].headers, sent_as(value), "{value}");
    }
    let traced: std::collections::BTreeSet<_> = spans.iter().map(|span| span.text("traceId").to_owned()).collect();
    assert_eq!(traced, (4..=11).map(trace).collect());

    // A record: received, through both plugins, sent; its output says which span sent it, and is the same in all else.
    let [received] = &named(4, &receive)[..] else { panic!("one: {spans:#?}") };
    assert_eq!(received.text("parentSpanId"), PARENT);
    assert_eq!(received.json["kind"], 5);
    assert_eq!(received.attribute("messaging.kafka.offset"), Some("4"));
    assert_eq!(received.attribute("messaging.destination.partition.id"), Some("0"));
    assert_eq!(received.attribute("millrace.route"), Some("copy"));
    assert_eq!(received.of_process("service.name"), Some("millrace"));
    assert!(received.json["status"].is_null(), "{received:?}");
    let [sending] = &named(4, &sends)[..] else { panic!("one: {spans:#?}") };
    assert_eq!(sending.json["kind"], 4);
    let expected = [
        ("a".into(), Some("1".into())),
        ("traceparent".into(), Some(format!("00-{}-{}-01", trace(4), sending.text("spanId")).into_bytes())),
        ("tracestate".into(), Some("x=y".into())),
        ("b".into(), Some("2".into())),
    ];
    assert_eq!(of("plain")[0].headers, expected);
    let plugins = ["plugin conform-rust", "plugin identity-pass"].map(|name| named(4, name));
    for span in plugins.iter().flatten().chain([sending]) {
        assert_eq!(span.text("parentSpanId"), received.text("spanId"), "{span:?}");
        assert!(received.text("startTimeUnixNano") <= span.text("startTimeUnixNano"), "{span:?}");
        assert!(span.text("endTimeUnixNano") <= received.text("endTimeUnixNano"), "{span:?}");
    }
    assert_eq!(plugins.map(|spans| spans.len()), [1, 1]);
    // (the second plugin's `when` let the others pass it by)
    assert_eq!(named(6, "plugin identity-pass"), []);

    // Of several headers the last counts.
    let after = |number: u8, span: &Span| format!("00-{}-{}-01", trace(number), span.text("spanId"));
    assert_eq!(headers(of("twice")[0], "traceparent"), [sampled(200), after(5, &named(5, &sends)[0])]);
    // A plugin that sets the same again goes on with the trace; one that takes it away, or sets another, has its way.
    assert_eq!(headers(of("rebuilt")[0], "traceparent"), [after(6, &named(6, &sends)[0])]);
    assert_eq!(headers(of("removed")[0], "traceparent"), [""; 0]);
    assert_eq!(headers(of("set")[0], "traceparent"), [other]);
    assert_eq!((named(7, &sends).len(), named(8, &sends).len()), (1, 1));
    // Each output has a span of its own.
    let ids: BTreeMap<_, _> = named(9, &sends).iter().map(|span| (after(9, span), 1)).collect();
    let carried: BTreeMap<_, _> = of("copied").iter().map(|one| (headers(one, "traceparent").concat(), 1)).collect();
    assert_eq!((ids.len(), &ids), (2, &carried));
    // What is dropped is received, and not sent.
    assert_eq!((named(10, &receive).len(), named(10, &sends).len()), (1, 0));
    // A dead letter has its record's own headers, so that it can be sent through again as it was.
    assert_eq!(headers(&letters[0], "traceparent"), [sampled(11)]);
    let [refused] = &named(11, &receive)[..] else { panic!("one: {spans:#?}") };
    assert_eq!((&refused.json["status"]["code"], refused.attribute("error.type")), (&2.into(), Some("refused")));
    assert_eq!((named(11, &sends).len(), named(11, &format!("send {dead}")).len()), (0, 1));
    // Nothing came twice, though it was sent twice; and all is counted.
    let ids: std::collections::BTreeSet<_> = spans.iter().map(|span| span.text("spanId")).collect();
    assert_eq!(ids.len(), spans.len());
    wait_until(PATIENCE, "what was exported is counted", || {
        daemon.metric("millrace_spans_total", &[("outcome", "exported")]) == Some(spans.len() as f64)
    });
    assert_eq!(daemon.metric("millrace_spans_total", &[("outcome", "dropped")]), Some(0.0));

    // The last spans leave with the process, soon.
    send(vec![record("last", &[("traceparent", &sampled(12))])], &mut next, 1);
    assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
    assert!(collector.spans().iter().any(|span| span.text("traceId") == trace(12)), "they are there at the end");

    // And without a collector again nothing is touched.
    config.edit(|yaml| yaml.lines().skip(1).map(|line| format!("{line}\n")).collect());
    let daemon = Daemon::start(config.path());
    let requests = collector.requests();
    let untouched = record("after", &[("traceparent", &sampled(13))]);
    let arrived = send(vec![untouched.clone()], &mut next, 1);
    let last = arrived.iter().find(|record| record.text() == "after").expect("it has arrived");
    assert_eq!(last.headers, untouched.headers);
    assert_eq!((collector.requests(), daemon.metric("millrace_spans_total", &[])), (requests, None));
}

#[test]
fn spans_go_by_https_to_a_collector_whose_authority_is_trusted_and_to_no_other() {
    let kafka = shared();
    let [source, out] = ["traces-tls", "traces-tls-out"].map(unique);
    [&source, &out].into_iter().for_each(|topic| kafka.create_topic(topic, 1, &[]));
    let certificates = scratch("collector");
    make_certificates(&certificates);
    let [certificate, key] = ["broker.crt", "broker.key"].map(|name| certificates.join(name));
    let collector = Collector::start_secure(&certificate, &key);
    kafka.produce(&source, &[record("v", &[("traceparent", &traceparent(1, "01"))])]);
    // What a process that trusts this authority says, from its start to its end.
    let copy = |route: &str, authority: &str, arrived: usize| {
        let routes = format!(
            "telemetry: {{ otlp: \"{}\" }}
routes:
  {route}:
    source: {{ topics: [{source}], start: earliest }}
    destinations: [{{ topic: {out} }}]
",
            collector.url()
        );
        let config = Config::new(&kafka.bootstrap, &[], &routes);
        let mut daemon = Daemon::start_with(config.path(), |command| {
            command.env("SSL_CERT_FILE", certificates.join(authority));
        });
        kafka.await_records(&out, arrived, PATIENCE);
        assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
        daemon.log()
    };

    let log = copy("wary", "other.pem", 1);
    assert!(log.contains("the collector does not take spans") && log.contains("certificate verify failed"), "{log}");
    assert_eq!(collector.spans(), []);

    let log = copy("trusting", "ca.pem", 2);
    let names: Vec<_> = collector.spans().iter().map(|span| span.text("name").to_owned()).collect();
    assert_eq!(names, [format!("receive {source}"), format!("send {out}")], "{log}");
}

#[test]
fn what_is_given_again_in_halves_after_an_abort_says_the_same_and_is_told_once_when_it_is_committed() {
    let collector = Collector::start(0);
    let (orders, mailbox) = unbounded();
    let values = || (0..3).map(|number| MemoryRecord::of_value("v").header("traceparent", traceparent(number, "01")));
    let batch = MemoryBatch::numbered(values().collect());
    let mut broker = Aborting { batch: Some(batch), orders, attempts: Vec::new(), told: Vec::new() };
    let tracer = Tracer::default();
    let exporter = Exporter::start(collector.url(), "0", "a".into(), &Metrics::new("0")).expect("a thread");
    tracer.go_through(Some(exporter));
    let mut task = record_loop::task(&[]);
    task.chain.trace(&tracer);
    let route = RouteName::new("r").expect("a name");
    let (mut paused, mut report) = (false, record_loop::Quiet);
    let worker = RouteWorker::new(&mut broker, &route, 0, &mut task, &mut paused, &mailbox, &mut report);
    assert_eq!(worker.run(), Exit::Drained);
    tracer.finish(PATIENCE);

    let [whole, first, second] = &broker.attempts[..] else { panic!("three: {:?}", broker.attempts) };
    assert_eq!(*whole, [&first[..], second].concat(), "the same headers");
    assert_eq!((first.len(), second.len()), (1, 2));
    let sent: Vec<_> = collector.spans().into_iter().filter(|span| span.text("name") == "send out").collect();
    let said = sent.iter().map(|span| format!("00-{}-{}-01", span.text("traceId"), span.text("spanId")));
    assert_eq!(said.collect::<Vec<_>>(), *whole);
    assert_eq!(collector.spans().len(), 2 * 3);
}

/// Aborts the first transaction, which takes too long for all of it, and commits the others.
struct Aborting {
    batch: Option<Arc<MemoryBatch>>,
    orders: Sender<Order>,
    /// The `traceparent` of each output.
    attempts: Vec<Vec<String>>,
    told: Vec<TopicPartition>,
}

impl Broker for &mut Aborting {
    fn poll(&mut self, _: Duration, _: usize, events: &mut Vec<Event>) {
        if let Some(batch) = self.batch.take() {
            self.told.push(batch.topic_partition().clone());
            events.extend([Event::Assigned(self.told.clone()), Event::Records(batch)]);
        }
    }
    fn pause(&mut self, _: &[TopicPartition]) {}
    fn resume(&mut self, _: &[TopicPartition]) {}
    fn topic(&mut self, _: &TopicName) -> Result<TopicInfo, TopicError> {
        Ok(TopicInfo { slot: 0, partitions: 1 })
    }
    fn transact(&mut self, outputs: &dyn Outputs, offsets: &OffsetMap) -> Outcome {
        let mut said = Vec::new();
        outputs.for_each(&mut |output| {
            let (_, value) = output.headers.get(0);
            said.push(String::from_utf8_lossy(value.expect("a value")).into_owned());
            ControlFlow::Continue(())
        });
        self.attempts.push(said);
        if self.attempts.len() == 1 {
            let message = "as the test has it".to_owned();
            return Outcome::Aborted(Trouble { code: "_TIMED_OUT".into(), message, kind: TroubleKind::Moved });
        }
        if offsets.values().all(|next| *next == 3) {
            self.orders.send(Order::Drain { leave: false, within: PATIENCE }).expect("the worker listens");
        }
        Outcome::Committed { lost: 0 }
    }
    fn settle(&mut self, _: &OffsetMap) -> Outcome {
        unreachable!("nothing is unknown here")
    }
    fn close(&mut self, _: bool, _: Duration) {}
}
