//! The traces that the records of a unit belong to: what was done for each, and the `traceparent` that its outputs carry on.
//! Told as spans once the unit is committed, so that what is done again after an abort is told once. Knows nothing of where
//! spans go ([`crate::telemetry::Tracer`]).
//!
//! All of it is empty, and allocates nothing, unless a collector is configured and a record has a sampled `traceparent`.

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use super::destinations::Routed;
use crate::model::{Item, ItemList, Items, SourceBatch};
use crate::telemetry::{Span, SpanId, TRACEPARENT, TRACEPARENT_BYTES, TraceContext, Work};

/// The traced records of a unit.
#[derive(Debug, Default)]
pub struct Traces {
    /// When the plugins took the records up, and when it was known where their outputs go; nanoseconds since 1970.
    began: u64,
    ready: u64,
    /// Ascending.
    records: Vec<Traced>,
    steps: Vec<Step>,
    /// In the order of the outputs.
    sends: Vec<Send>,
}

/// A record with a sampled `traceparent`.
#[derive(Debug)]
struct Traced {
    source: u32,
    context: TraceContext,
    /// The number of its header.
    header: u32,
    span: SpanId,
}

/// The passage of a batch through one plugin.
#[derive(Debug, Clone)]
struct Step {
    number: u16,
    began: u64,
    ended: u64,
    /// The traced records of which something went through, ascending.
    sources: Vec<u32>,
}

/// A traced output.
#[derive(Debug)]
pub(super) struct Send {
    source: u32,
    pub(super) item: u32,
    pub(super) destination: u16,
    partition: i32,
    span: SpanId,
    /// The number of the header that is to say [`Send::traceparent`], where the output still carries its record's.
    pub(super) header: Option<u32>,
    pub(super) traceparent: [u8; TRACEPARENT_BYTES],
}

impl Traces {
    /// Those of the records `range`.
    pub(super) fn of(source: &dyn SourceBatch, range: Range<usize>) -> Self {
        let records: Vec<_> = range.filter_map(|index| Traced::of(source, index)).collect();
        if records.is_empty() {
            return Self::default();
        }
        Self { began: now(), records, ..Self::default() }
    }

    fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// These items are about to go through a plugin.
    pub(super) fn enter(&mut self, step: u16, items: &ItemList) {
        if self.is_empty() {
            return;
        }
        let through = |traced: &&Traced| items.binary_search_by_key(&traced.source, |item| item.source).is_ok();
        let sources = self.records.iter().filter(through).map(|traced| traced.source).collect();
        self.steps.push(Step { number: step, began: now(), ended: 0, sources });
    }

    /// They are through.
    pub(super) fn leave(&mut self) {
        if let Some(step) = self.steps.last_mut() {
            step.ended = now();
        }
    }

    /// It is known where the outputs go.
    pub(super) fn routed(&mut self, items: &Items, routed: &[Routed]) {
        if self.is_empty() {
            return;
        }
        self.ready = now();
        self.sends = routed.iter().filter_map(|routed| self.send(items, routed)).collect();
    }

    fn send(&self, items: &Items, routed: &Routed) -> Option<Send> {
        let place = self.records.binary_search_by_key(&routed.source, |traced| traced.source).ok()?;
        let (traced, span) = (&self.records[place], SpanId::random());
        Some(Send {
            source: routed.source,
            item: routed.item,
            destination: routed.destination,
            partition: routed.partition,
            span,
            header: traced.carried(items, &items.list[routed.item as usize]),
            traceparent: traced.context.after(span).write(),
        })
    }

    /// The traced outputs, in their order.
    pub(super) fn sends(&self) -> &[Send] {
        &self.sends
    }

    /// Only the outputs of these records are sent.
    pub(super) fn keep(&mut self, keep: impl Fn(u32) -> bool) {
        self.sends.retain(|send| keep(send.source));
    }

    /// The records from `at` on are done later, if at all.
    pub(super) fn cut(&mut self, at: usize) {
        self.records.truncate(self.first(at));
    }

    /// The first traced record from `at` on, by its place.
    fn first(&self, at: usize) -> usize {
        self.records.partition_point(|traced| (traced.source as usize) < at)
    }

    /// Splits off the records from `at` on.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let records = self.first(at);
        let sends = self.sends.partition_point(|send| (send.source as usize) < at);
        Self {
            began: self.began,
            ready: self.ready,
            records: self.records.split_off(records),
            steps: self.steps.clone(),
            sends: self.sends.split_off(sends),
        }
    }

    /// Makes the spans of what is committed now: `most` at most, a record's all or none. Returns how many were left out.
    pub(super) fn tell(&self, most: usize, unit: &impl Told, spans: &mut Vec<Span>) -> u64 {
        let ended = now();
        let mut dropped = 0;
        for traced in &self.records {
            let before = spans.len();
            let context = traced.context.after(traced.span);
            let below = |id, began, ended, work| Span { context, id, began, ended, work };
            let work = unit.received(traced.source);
            spans.push(Span { context: traced.context, id: traced.span, began: self.began, ended, work });
            for step in self.steps.iter().filter(|step| step.sources.binary_search(&traced.source).is_ok()) {
                let work = unit.plugin(step.number);
                spans.extend(work.map(|work| below(SpanId::random(), step.began, step.ended, work)));
            }
            let from = self.sends.partition_point(|send| send.source < traced.source);
            for send in self.sends[from..].iter().take_while(|send| send.source == traced.source) {
                let work = unit.sent(send.item, send.destination, send.partition);
                spans.extend(work.map(|work| below(send.span, self.ready, ended, work)));
            }
            let letter = unit.dead_letter(traced.source);
            spans.extend(letter.map(|work| below(SpanId::random(), self.ready, ended, work)));
            if spans.len() > most {
                dropped += (spans.len() - before) as u64;
                spans.truncate(before);
            }
        }
        dropped
    }
}

/// What spans tell of a unit.
pub(super) trait Told {
    /// Of a source record.
    fn received(&self, source: u32) -> Work;
    /// Of a step of the pipeline.
    fn plugin(&self, step: u16) -> Option<Work>;
    /// Of an output.
    fn sent(&self, item: u32, destination: u16, partition: i32) -> Option<Work>;
    /// Of a source record's dead letter, if it has one.
    fn dead_letter(&self, source: u32) -> Option<Work>;
}

impl Traced {
    fn of(source: &dyn SourceBatch, index: usize) -> Option<Self> {
        // (of several the last counts, as for OpenTelemetry's own instrumentation of Kafka's clients)
        let header = last_header(source.header_count(index), |nth| source.header(index, nth), |_| true)?;
        let context = TraceContext::read(source.header(index, header).1?)?;
        let header = u32::try_from(header).ok()?;
        let traced = || Self { source: index as u32, context, header, span: SpanId::random() };
        context.is_sampled().then(traced)
    }

    /// The number of the header by which an output carries its record's `traceparent` on; none where a plugin has taken it
    /// away, or set another.
    fn carried(&self, items: &Items, item: &Item) -> Option<u32> {
        if item.headers.is_none() {
            return Some(self.header);
        }
        let (_, own) = items.source.header(item.source as usize, self.header as usize);
        let found = last_header(items.header_count(item), |nth| items.header(item, nth), |value| value == own)?;
        u32::try_from(found).ok()
    }
}

/// The number of the last `traceparent` with such a value.
fn last_header<'a>(
    count: usize,
    header: impl Fn(usize) -> (&'a [u8], Option<&'a [u8]>),
    is: impl Fn(Option<&'a [u8]>) -> bool,
) -> Option<usize> {
    (0..count).rev().find(|nth| {
        let (name, value) = header(*nth);
        name == TRACEPARENT.as_bytes() && is(value)
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
