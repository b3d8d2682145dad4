//! What must hold after every step, and counts that show that it was looked at.

use std::collections::BTreeMap;

use millrace::config::settings::Delivery;

use super::kafka::{Fate, Kafka};
use super::records::{ORDERS, PARTITIONS, PLACES, Source};

/// A committed reader of every partition that is written, which knows what is to come.
pub(super) struct Checker {
    delivery: Delivery,
    /// Where it stands in each log.
    positions: [usize; PLACES],
    /// For each source partition and order, how many of the outputs that it expects have come.
    come: [[usize; ORDERS]; PARTITIONS],
    /// In at_most_once, what has come.
    copies: BTreeMap<(usize, usize, usize), usize>,
    /// How many records were read, how many of them were repetitions, and how often it was told to look.
    pub(super) read: u64,
    pub(super) repeated: u64,
    pub(super) looks: u64,
    /// The change that was looked at last, and how many were.
    seen: u64,
    pub(super) compared: u64,
}

impl Checker {
    pub(super) fn new(delivery: Delivery) -> Self {
        Self {
            delivery,
            positions: [0; PLACES],
            come: [[0; ORDERS]; PARTITIONS],
            copies: BTreeMap::new(),
            read: 0,
            repeated: 0,
            looks: 0,
            seen: u64::MAX,
            compared: 0,
        }
    }

    /// Looks at everything that may have changed.
    pub(super) fn look(&mut self, kafka: &Kafka, sources: &[Source]) -> Result<(), String> {
        self.looks += 1;
        if let Some(wrong) = &kafka.wrong {
            return Err(wrong.clone());
        }
        if self.seen == kafka.changes {
            return Ok(());
        }
        self.seen = kafka.changes;
        self.compared += 1;
        self.read_on(kafka, sources)?;
        self.compare(kafka, sources)
    }

    /// Reads up to the first open transaction, as `read_committed` does.
    fn read_on(&mut self, kafka: &Kafka, sources: &[Source]) -> Result<(), String> {
        for (place, log) in kafka.logs.iter().enumerate() {
            while let Some(entry) = log.get(self.positions[place]) {
                let fate = match (self.delivery, entry.transaction) {
                    (Delivery::ExactlyOnce, None) => return Err("OUTSIDE: produced outside of a transaction".into()),
                    (_, None) => Fate::Committed,
                    (_, Some(number)) => kafka.transactions[number],
                };
                match fate {
                    Fate::Open => break,
                    Fate::Committed => self.take(entry.source, entry.record, place, sources)?,
                    Fate::Aborted => {}
                }
                self.positions[place] += 1;
            }
        }
        Ok(())
    }

    fn take(&mut self, source: usize, record: usize, place: usize, sources: &[Source]) -> Result<(), String> {
        self.read += 1;
        let order = sources[source].order(record, place);
        let expected = &sources[source].expected[order];
        let come = &mut self.come[source][order];
        let next = expected.get(*come);
        let what = || format!("record {record} of in/{source} in place {place}, {next:?} was to come next");
        match self.delivery {
            Delivery::ExactlyOnce if next == Some(&record) => *come += 1,
            Delivery::ExactlyOnce if expected[..*come].contains(&record) => return Err(format!("DOUBLED: {}", what())),
            Delivery::ExactlyOnce => return Err(format!("ORDER: {}", what())),
            Delivery::AtLeastOnce if next == Some(&record) => *come += 1,
            Delivery::AtLeastOnce if expected[..*come].contains(&record) => self.repeated += 1,
            Delivery::AtLeastOnce => return Err(format!("ORDER: {}", what())),
            Delivery::AtMostOnce => {
                let copies = self.copies.entry((source, record, place)).or_default();
                *copies += 1;
                *come += 1;
                if *copies > expected.iter().filter(|of| **of == record).count() {
                    return Err(format!("DOUBLED: {}", what()));
                }
            }
        }
        Ok(())
    }

    /// Compares what is committed of each source partition with what has become of its records.
    fn compare(&mut self, kafka: &Kafka, sources: &[Source]) -> Result<(), String> {
        let mut decided = [[0; ORDERS]; PARTITIONS];
        if self.delivery == Delivery::ExactlyOnce {
            // What a reader sees may wait behind another's open transaction; what is decided does not.
            for (place, log) in kafka.logs.iter().enumerate() {
                for entry in log {
                    let committed =
                        entry.transaction.is_some_and(|number| kafka.transactions[number] == Fate::Committed);
                    decided[entry.source][sources[entry.source].order(entry.record, place)] += usize::from(committed);
                }
            }
        }
        for (source, committed) in kafka.committed.iter().enumerate() {
            let done = sources[source].before(*committed);
            for (order, has) in decided[source].into_iter().enumerate() {
                let due = sources[source].outputs_before(done, order);
                let come = self.come[source][order];
                let wrong = match self.delivery {
                    Delivery::ExactlyOnce if has < due => format!("LOST: {has} of {due} outputs"),
                    Delivery::ExactlyOnce if has > due => format!("NOT ATOMIC: {has} outputs where {due} are due"),
                    Delivery::AtLeastOnce if come < due => format!("LOST: {come} of {due} outputs"),
                    Delivery::AtMostOnce if come > due => format!("TOO EARLY: {come} outputs where {due} are due"),
                    _ => continue,
                };
                return Err(format!("{wrong} of in/{source} in order {order}, where {done} records are committed"));
            }
        }
        Ok(())
    }

    /// After the end: everything is committed and was read. `losses` is how many outputs at_most_once may lack.
    pub(super) fn finish(&self, kafka: &Kafka, sources: &[Source], losses: u64) -> Result<(), String> {
        let mut missing = 0;
        for (partition, source) in sources.iter().enumerate() {
            let done = source.before(kafka.committed[partition]);
            if done != source.end {
                return Err(format!("UNFINISHED: {done} of {} records of in/{partition}", source.end));
            }
            for order in 0..ORDERS {
                // (at_least_once may have sent more: copies of records behind the one that stops its partition)
                missing += source.outputs_before(done, order).saturating_sub(self.come[partition][order]);
            }
        }
        let allowed = if self.delivery == Delivery::AtMostOnce { losses } else { 0 };
        match missing as u64 {
            missing if missing > allowed => {
                Err(format!("LOST: {missing} outputs, and only {allowed} are accounted for"))
            }
            _ => Ok(()),
        }
    }
}
