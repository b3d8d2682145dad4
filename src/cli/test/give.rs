//! A test's records, given to its route.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::config::TestCase;
use crate::config::test_cases::GivenRecord;
use crate::control::plan::RoutePlan;
use crate::model::{Offset, PluginName, SourceBatch, TopicName, TopicPartition};
use crate::pipeline::ports::Trouble;
use crate::pipeline::rehearsal::{Rehearsal, Rehearsed, RehearsedFault, RehearsedOutput};
use crate::pipeline::task::Stop;

/// What came of a test's records; each knows the number of its record.
#[derive(Default)]
pub(super) struct Came {
    pub(super) outputs: Vec<(usize, RehearsedOutput)>,
    pub(super) faults: Vec<(usize, RehearsedFault)>,
    /// An item of the record went nowhere: which plugin dropped it, if one did.
    pub(super) filtered: Vec<(usize, Option<PluginName>)>,
    /// Not given to the route: its partition had stopped.
    pub(super) left: Vec<usize>,
}

pub(super) fn give(test: &TestCase, route: &RoutePlan) -> Result<Came, Trouble> {
    let mut task = route.task(1, &Stop::default());
    let partitions = |topic: &TopicName| test.partitions.count(topic.as_str());
    let mut rehearsal = Rehearsal::new(&test.route, &mut task, &partitions);
    let mut came = Came::default();
    let mut stopped = HashSet::new();
    for batch in batches(&test.given) {
        let at = batch.at.clone();
        if stopped.contains(&at) {
            came.left.extend(batch.records.iter().map(|record| record.number));
            continue;
        }
        let done = rehearsal.give(&(Arc::clone(&batch) as Arc<dyn SourceBatch>))?;
        if done.stopped {
            stopped.insert(at);
        }
        came.take(&batch, done);
    }
    rehearsal.end();
    Ok(came)
}

impl Came {
    fn take(&mut self, batch: &Batch, done: Rehearsed) {
        let number = |offset: Offset| {
            let index = batch.records.partition_point(|record| record.offset < offset);
            batch.records[index].number
        };
        if done.stopped {
            let at = done.faults.last().map_or(Offset::MAX, |fault| fault.offset);
            self.left.extend(batch.records.iter().filter(|record| record.offset > at).map(|record| record.number));
        }
        self.outputs.extend(done.outputs.into_iter().map(|output| (number(output.offset), output)));
        self.faults.extend(done.faults.into_iter().map(|fault| (number(fault.offset), fault)));
        self.filtered.extend(done.filtered.into_iter().map(|(offset, plugin)| (number(offset), plugin)));
    }
}

/// Consecutive records of one partition, in ascending order.
struct Batch {
    at: TopicPartition,
    records: Vec<Numbered>,
}

struct Numbered {
    number: usize,
    offset: Offset,
    record: GivenRecord,
}

fn batches(given: &[GivenRecord]) -> Vec<Arc<Batch>> {
    let mut next: HashMap<TopicPartition, Offset> = HashMap::new();
    let mut batches: Vec<Batch> = Vec::new();
    for (number, record) in given.iter().enumerate() {
        let at = TopicPartition { topic: record.topic.clone(), partition: record.partition };
        let offset = record.offset.unwrap_or_else(|| next.get(&at).copied().unwrap_or(0));
        next.insert(at.clone(), offset.saturating_add(1));
        let record = Numbered { number, offset, record: record.clone() };
        match batches.last_mut() {
            Some(last) if last.at == at && last.records.last().is_some_and(|last| last.offset < offset) => {
                last.records.push(record);
            }
            _ => batches.push(Batch { at, records: vec![record] }),
        }
    }
    batches.into_iter().map(Arc::new).collect()
}

impl SourceBatch for Batch {
    fn topic_partition(&self) -> &TopicPartition {
        &self.at
    }
    fn len(&self) -> usize {
        self.records.len()
    }
    fn offset(&self, index: usize) -> Offset {
        self.records[index].offset
    }
    fn timestamp(&self, index: usize) -> i64 {
        self.records[index].record.timestamp
    }
    fn key(&self, index: usize) -> Option<&[u8]> {
        self.records[index].record.key.as_deref()
    }
    fn value(&self, index: usize) -> Option<&[u8]> {
        self.records[index].record.value.as_deref()
    }
    fn header_count(&self, index: usize) -> usize {
        self.records[index].record.headers.len()
    }
    fn header(&self, index: usize, nth: usize) -> (&[u8], Option<&[u8]>) {
        let (name, value) = &self.records[index].record.headers[nth];
        (name.as_bytes(), value.as_deref())
    }
}
