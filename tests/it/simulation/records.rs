//! What is routed, the plugins that do with a record what it says, and what must come of it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use millrace::config::settings::Delivery;
use millrace::model::{Digest, FaultCode, Field, Item, Items, Offset, PluginName, SourceBatch, Span, TopicPartition};
use millrace::pipeline::ports::{CallError, CallOutput, Step, Usage, Verdict};
use millrace::policy::{Disposition, partition_for_key};

use super::world::{Actor, Call};

/// Of the source, of the destination and of the dead-letter topic.
pub(super) const PARTITIONS: usize = 3;
const RECORDS: usize = 50;

/// The destination's partitions, then the dead-letter topic's.
pub(super) const PLACES: usize = 2 * PARTITIONS;
pub(super) type Place = usize;

/// What keeps its order: a place, or in at_least_once the dead letters there of records that a destination has refused.
/// Those are found when other dead letters may be on their way already.
pub(super) const ORDERS: usize = 3 * PARTITIONS;
pub(super) type Order = usize;

/// The place of a partition of the destination, or of the dead-letter topic.
pub(super) fn place(is_dead_letter: bool, partition: i32) -> Place {
    usize::from(is_dead_letter) * PARTITIONS + usize::try_from(partition).expect("partitions count from 0")
}

/// What is done to a record, written in its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Plain,
    Drop,
    Fan,
    Refuse,
    Trap,
    RetryOnce,
    RetryForEver,
    TooLarge,
}

const KINDS: [Kind; 8] =
    [Kind::Plain, Kind::Drop, Kind::Fan, Kind::Refuse, Kind::Trap, Kind::RetryOnce, Kind::RetryForEver, Kind::TooLarge];

impl Kind {
    /// In at_most_once it is too late for `on_error` once a destination refuses a record: that is a loss, and counted.
    fn is_at_fault(self, delivery: Delivery) -> bool {
        match self {
            Self::Refuse | Self::Trap | Self::RetryForEver => true,
            Self::TooLarge => delivery != Delivery::AtMostOnce,
            Self::Plain | Self::Drop | Self::Fan | Self::RetryOnce => false,
        }
    }
}

#[derive(Clone)]
pub(super) struct Record {
    pub(super) offset: Offset,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// The source partition and the number of the record that an output was made of, as its value tells.
pub(super) fn origin(value: &[u8]) -> (usize, usize) {
    let text = std::str::from_utf8(value).expect("values are texts");
    let mut parts = text.split('/').map(|part| part.parse().expect("a number"));
    (parts.next().expect("a partition"), parts.next().expect("a record"))
}

pub(super) fn is_too_large(value: &[u8]) -> bool {
    value.ends_with(b"TooLarge")
}

/// One partition of the source, and what must come of it.
pub(super) struct Source {
    pub(super) records: Vec<Record>,
    /// How many records get done: all, or those before the first at fault where faults stop a partition.
    pub(super) end: usize,
    /// In order, the records of which there is an output once they are done.
    pub(super) expected: [Vec<usize>; ORDERS],
    kinds: Vec<Kind>,
    delivery: Delivery,
}

impl Source {
    /// Records of these kinds, or of such as are drawn.
    pub(super) fn new(
        rng: &mut fastrand::Rng,
        partition: usize,
        kinds: Option<&[Kind]>,
        then: &Disposition,
        delivery: Delivery,
    ) -> Self {
        let mut draw = || if rng.u8(0..10) < 7 { Kind::Plain } else { KINDS[rng.usize(0..KINDS.len())] };
        let kinds = kinds.map_or_else(|| (0..RECORDS).map(|_| draw()).collect(), <[Kind]>::to_vec);
        let (mut records, mut offset) = (Vec::new(), 0);
        for (number, kind) in kinds.iter().enumerate() {
            // Compaction, markers and aborted records leave gaps.
            offset += if rng.u8(0..10) == 0 { rng.i64(2..5) } else { 1 };
            let key = format!("k{}", rng.u8(0..20)).into_bytes();
            records.push(Record { offset, key, value: format!("{partition}/{number}/{kind:?}").into_bytes() });
        }
        let stop = kinds.iter().position(|kind| kind.is_at_fault(delivery)).filter(|_| *then == Disposition::Stop);
        let end = stop.unwrap_or(records.len());
        let mut source = Self { records, end, expected: Default::default(), kinds, delivery };
        for (number, kind) in source.kinds.clone().into_iter().enumerate() {
            let record = &source.records[number];
            let to = partition_for_key(&record.key, PARTITIONS as i32);
            let is_at_fault = kind.is_at_fault(delivery);
            let copies = match kind {
                _ if is_at_fault => usize::from(matches!(then, Disposition::DeadLetter(_))),
                Kind::Drop => 0,
                Kind::Fan => 3,
                _ => 1,
            };
            let order = source.order(number, place(is_at_fault, to));
            source.expected[order].extend(std::iter::repeat_n(number, copies));
        }
        source
    }

    /// What the outputs of a record keep their order with in a place.
    pub(super) fn order(&self, record: usize, place: Place) -> Order {
        let is_found_late = self.delivery == Delivery::AtLeastOnce && self.kinds[record] == Kind::TooLarge;
        if is_found_late && place >= PARTITIONS { place + PARTITIONS } else { place }
    }

    /// How many records lie before an offset.
    pub(super) fn before(&self, offset: Offset) -> usize {
        self.records.partition_point(|record| record.offset < offset)
    }

    /// How many outputs there are of the records before this one.
    pub(super) fn outputs_before(&self, record: usize, order: Order) -> usize {
        self.expected[order].partition_point(|of| *of < record)
    }

    /// Records from number `from` on.
    pub(super) fn fetch(&self, partition: TopicPartition, from: usize, count: usize) -> Arc<dyn SourceBatch> {
        Arc::new(Fetched { partition, records: self.records[from..from + count].to_vec() })
    }
}

struct Fetched {
    partition: TopicPartition,
    records: Vec<Record>,
}

impl SourceBatch for Fetched {
    fn topic_partition(&self) -> &TopicPartition {
        &self.partition
    }
    fn len(&self) -> usize {
        self.records.len()
    }
    fn offset(&self, index: usize) -> Offset {
        self.records[index].offset
    }
    fn timestamp(&self, _: usize) -> i64 {
        1_500_000_000_000
    }
    fn key(&self, index: usize) -> Option<&[u8]> {
        Some(&self.records[index].key)
    }
    fn value(&self, index: usize) -> Option<&[u8]> {
        Some(&self.records[index].value)
    }
    fn header_count(&self, _: usize) -> usize {
        0
    }
    fn header(&self, _: usize, _: usize) -> (&[u8], Option<&[u8]>) {
        unreachable!("there are none")
    }
}

/// A plugin that does what the record says: the first of the chain does some of it, the second the rest.
pub(super) struct SimulatedStep {
    actor: Actor,
    name: PluginName,
    digest: Digest,
    /// Of the task that it belongs to: stamped on what it passes, as its timestamp.
    generation: u64,
    /// Which of the sets it belongs to.
    set: usize,
    asked_again: BTreeSet<Vec<u8>>,
}

impl SimulatedStep {
    pub(super) fn new(actor: Actor, name: &str, generation: u64, set: usize) -> Self {
        let (digest, asked_again) = (Digest::of(name.as_bytes()), BTreeSet::new());
        Self { actor, name: PluginName::new(name).unwrap(), digest, generation, set, asked_again }
    }
}

impl Step for SimulatedStep {
    fn plugin(&self) -> &PluginName {
        &self.name
    }

    fn sha256(&self) -> &Digest {
        &self.digest
    }

    fn call(&mut self, items: &mut Items, range: Range<usize>, _: Duration) -> Result<CallOutput, CallError> {
        self.actor.call(Call::Plugin, |world| {
            if self.set > 0 {
                world.meet("worked by another set");
            }
        });
        let mut output = CallOutput::default();
        let mut chunk = Vec::new();
        let acts = self.name.as_str() == "first";
        let alone = range.len() == 1;
        for (position, index) in range.clone().enumerate() {
            let item = &items.list[index];
            let value = items.value(item).unwrap().to_vec();
            let text = String::from_utf8(value.clone()).unwrap();
            let verdict = match text.rsplit('/').next().unwrap() {
                "Drop" if !acts => Verdict::Drop,
                "Trap" if !acts => {
                    return Err(CallError::Fault { code: FaultCode::Trapped, message: "simulated".into() });
                }
                "RetryForEver" if acts => return Err(CallError::Retry("later".into())),
                "RetryOnce" if acts && !alone && self.asked_again.insert(value.clone()) => {
                    return Err(CallError::Retry("later".into()));
                }
                "Refuse" if acts => Verdict::Refuse,
                "Fan" if acts => {
                    for _ in 0..2 {
                        let start = chunk.len() as u32;
                        chunk.extend_from_slice(&value);
                        let span = Span { chunk: items.chunks.len() as u32, start, end: chunk.len() as u32 };
                        output.emitted.push((position as u32, Item { value: Field::Bytes(span), ..item.clone() }));
                    }
                    Verdict::Pass
                }
                _ => Verdict::Pass,
            };
            output.verdicts.push(verdict);
        }
        items.chunks.push(chunk);
        for item in &mut items.list[range] {
            item.timestamp = Some(self.generation as i64);
        }
        // (emission order need not be the records' order)
        output.emitted.reverse();
        Ok(output)
    }

    fn take_usage(&mut self) -> Usage {
        Usage::default()
    }

    fn shutdown(&mut self) {}
}
