//! Running a plugin in `cargo test`, natively: records in, verdicts and items out, through the same columns and groups as
//! in the sandbox. What it cannot show is the sandbox itself: limits, traps and what the router does with the outcome.

use crate::log;
use crate::output::{Output, Sink};
use crate::record::{Batch, Column, Columns, Header};
use crate::{Filter, Transform, Verdict};

/// A record to give to a plugin. The default has a null key, a null value, no headers and no timestamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Vec<Header>,
    /// Milliseconds since 1970-01-01 UTC, or -1.
    pub timestamp: i64,
}

impl Default for Given {
    fn default() -> Self {
        Self { key: None, value: None, headers: Vec::new(), timestamp: -1 }
    }
}

impl Given {
    /// A record with that value.
    pub fn value(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// The same with a key.
    pub fn key(self, key: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// The same with one more header.
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), Some(value.into())));
        self
    }
}

/// What a transform did with a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// One for each record.
    pub verdicts: Vec<Verdict>,
    /// What was emitted and forwarded, in the order in which it goes out. Records that pass by their verdict are not in it.
    pub sent: Vec<Sent>,
}

/// An item as it goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Index of the record that it comes from.
    pub source: usize,
    /// The destination's name.
    pub destination: String,
    /// Its key: the source's, or what was set.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers: the source's and what was changed.
    pub headers: Vec<Header>,
    /// Its timestamp.
    pub timestamp: i64,
    /// The partition, where set.
    pub partition: Option<i32>,
    /// The topic, where set.
    pub topic: Option<String>,
}

/// Gives `records` to a filter as one batch: records 0, 1, 2 … of partition 0 of the topic `test`.
pub fn filter<P: Filter>(plugin: &mut P, records: &[Given]) -> Vec<Verdict> {
    let batch = Batch::new(&records);
    let verdicts = batch.records().enumerate().map(|(index, record)| {
        log::set_current(Some(index));
        plugin.filter(&record)
    });
    let verdicts = verdicts.collect();
    log::set_current(None);
    verdicts
}

/// Gives `records` to a transform as one batch: records 0, 1, 2 … of partition 0 of the topic `test`.
pub fn transform<P: Transform>(plugin: &mut P, records: &[Given]) -> Outcome {
    let batch = Batch::new(&records);
    let mut output = Output::default();
    let verdicts = batch.records().enumerate().map(|(index, record)| {
        log::set_current(Some(index));
        output.start_record(index);
        plugin.transform(&record, &mut output)
    });
    let verdicts = verdicts.collect();
    log::set_current(None);
    let mut sink = TestSink { records, sent: Vec::new() };
    output.finish(&mut sink);
    sink.sent.sort_by_key(|sent| sent.source);
    Outcome { verdicts, sent: sink.sent }
}

impl Columns for &[Given] {
    fn len(&self) -> usize {
        <[_]>::len(self)
    }
    fn topic(&self) -> String {
        "test".into()
    }
    fn partition(&self) -> i32 {
        0
    }
    fn offsets(&self) -> Vec<i64> {
        (0..<[_]>::len(self) as i64).collect()
    }
    fn timestamps(&self) -> Vec<i64> {
        self.iter().map(|record| record.timestamp).collect()
    }
    fn keys(&self) -> Column {
        self.iter().map(|record| record.key.as_deref()).collect()
    }
    fn values(&self) -> Column {
        self.iter().map(|record| record.value.as_deref()).collect()
    }
    fn header(&self, name: &str) -> Column {
        let last = |record: &'_ Given| record.headers.iter().rposition(|header| header.0 == name);
        self.iter().map(|record| last(record).and_then(|at| record.headers[at].1.as_deref())).collect()
    }
    fn headers(&self, index: u32) -> Vec<Header> {
        self[index as usize].headers.clone()
    }
}

impl<'a> FromIterator<Option<&'a [u8]>> for Column {
    fn from_iter<I: IntoIterator<Item = Option<&'a [u8]>>>(items: I) -> Self {
        let mut column = Self::default();
        items.into_iter().for_each(|item| column.push(item));
        column
    }
}

/// Does with a plugin's calls what the router does.
struct TestSink<'a> {
    records: &'a [Given],
    sent: Vec<Sent>,
}

impl TestSink<'_> {
    fn send(&mut self, destination: &str, source: u32) -> &mut Sent {
        let Given { key, value, headers, timestamp } = self.records[source as usize].clone();
        let (source, destination) = (source as usize, destination.to_owned());
        self.sent.push(Sent { source, destination, key, value, headers, timestamp, partition: None, topic: None });
        self.sent.last_mut().expect("just pushed")
    }

    /// Applies `change` to the items `first ..`, each with its item of the column.
    fn each(&mut self, first: u32, column: &Column, change: impl Fn(&mut Sent, Option<Vec<u8>>)) {
        for (index, sent) in self.sent[first as usize..][..column.len()].iter_mut().enumerate() {
            change(sent, column.get(index).map(<[u8]>::to_vec));
        }
    }
}

impl Sink for TestSink<'_> {
    fn emit(&mut self, destination: &str, sources: &[u32], values: Column) -> u32 {
        let first = self.sent.len() as u32;
        for (index, &source) in sources.iter().enumerate() {
            self.send(destination, source).value = values.get(index).map(<[u8]>::to_vec);
        }
        first
    }
    fn forward(&mut self, destination: &str, sources: &[u32]) {
        for &source in sources {
            self.send(destination, source);
        }
    }
    fn set_keys(&mut self, first: u32, keys: Column) {
        self.each(first, &keys, |sent, key| sent.key = key);
    }
    fn set_timestamps(&mut self, first: u32, timestamps: &[i64]) {
        self.sent[first as usize..]
            .iter_mut()
            .zip(timestamps)
            .for_each(|(sent, &timestamp)| sent.timestamp = timestamp);
    }
    fn set_partitions(&mut self, first: u32, partitions: &[i32]) {
        let items = self.sent[first as usize..].iter_mut();
        items.zip(partitions).for_each(|(sent, &partition)| sent.partition = Some(partition));
    }
    fn set_topics(&mut self, first: u32, topics: &[String]) {
        self.sent[first as usize..].iter_mut().zip(topics).for_each(|(sent, topic)| sent.topic = Some(topic.clone()));
    }
    fn set_header(&mut self, first: u32, name: &str, values: Column) {
        self.each(first, &values, |sent, value| {
            let place = sent.headers.iter().position(|header| header.0 == name).unwrap_or(sent.headers.len());
            sent.headers.retain(|header| header.0 != name);
            sent.headers.splice(place..place, value.map(|value| (name.to_owned(), Some(value))));
        });
    }
    fn add_header(&mut self, first: u32, name: &str, values: Column) {
        self.each(first, &values, |sent, value| sent.headers.push((name.to_owned(), value)));
    }
}
