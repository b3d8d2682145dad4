//! What a guest hands over, made of any bytes: the way into `convert` for a fuzzer and for a property test. Only with the feature
//! `testing`.

use std::sync::Arc;

use regex::Regex;

use super::convert::{Call, Column};
use super::fault::HostFault;
use super::sandbox::DestinationSpec;
use crate::config::settings::PluginLimits;
use crate::model::{DestinationName, Field, Items, Offset, SendTo, SourceBatch, TopicName, TopicPartition};
use crate::pipeline::ports::CallOutput;

const RECORDS: usize = 3;
const LIMITS: PluginLimits =
    PluginLimits { memory: 0, timeout: std::time::Duration::ZERO, outputs: 20, output_bytes: 1 << 10 };

/// Plays a guest that does with its outputs what these bytes say. Whether what came of it is outputs, and not a fault.
///
/// # Panics
/// What came of it breaks a rule.
pub fn guest_output(bytes: &[u8]) -> bool {
    let name = |name: &str| DestinationName::new(name).expect("a name");
    let pattern = Regex::new("^(?:region\\..*)$").expect("a pattern");
    let destinations = Arc::new([
        DestinationSpec { name: name("out"), topic_pattern: None },
        DestinationSpec { name: name("per-region"), topic_pattern: Some(pattern) },
    ]);
    let topic = TopicName::new("source").expect("a name");
    let source = Arc::new(Records(TopicPartition { topic, partition: 0 }));
    let mut items = Items::of(source, 0..RECORDS);
    let mut call = Call::begin(&mut items, 0..RECORDS, LIMITS, destinations);
    let mut guest = Guest(bytes);
    while guest.0.len() > RECORDS {
        if guest.acts(&mut call).is_err() {
            call.fail(&mut items);
            assert!(items.chunks.is_empty() && items.list.len() == RECORDS, "a fault leaves no trace");
            return false;
        }
    }
    match call.succeed(&mut items, guest.0) {
        Ok(output) => assert_sound(&items, &output),
        Err(_) => {
            assert!(items.chunks.is_empty(), "a fault leaves no trace");
            return false;
        }
    }
    true
}

/// Whatever an output says of itself can be read, and is within the limits.
fn assert_sound(items: &Items, output: &CallOutput) {
    assert_eq!(output.verdicts.len(), RECORDS);
    assert!(output.emitted.len() <= RECORDS * LIMITS.outputs as usize);
    let mut bytes = 0;
    for (source, item) in &output.emitted {
        assert_eq!(*source, item.source);
        bytes += if matches!(item.key, Field::Source) { 0 } else { items.key(item).map_or(0, <[u8]>::len) };
        bytes += if matches!(item.value, Field::Source) { 0 } else { items.value(item).map_or(0, <[u8]>::len) };
        (0..items.header_count(item)).for_each(|nth| drop(items.header(item, nth).0.to_vec()));
        assert!(items.timestamp(item) >= -1 && item.partition.is_none_or(|partition| partition >= 0));
        let is_bound = item.send_to == SendTo::Named(1);
        assert!(!is_bound || item.topic.as_ref().is_none_or(|topic| topic.as_str().starts_with("region.")));
    }
    assert!(bytes as u64 <= RECORDS as u64 * LIMITS.output_bytes, "{bytes}");
}

/// Bytes as what a guest does, one by one.
struct Guest<'a>(&'a [u8]);

impl<'a> Guest<'a> {
    fn acts(&mut self, call: &mut Call) -> Result<(), HostFault> {
        let what = self.byte();
        let first = self.number();
        let (ends, nulls, numbers) = (self.numbers(), self.numbers(), self.numbers());
        let column = Column::new(self.some(), &ends, &nulls);
        let signed = || numbers.iter().map(|number| number.cast_signed());
        let destination = ["", "out", "per-region", "unknown"][usize::from(what >> 4) % 4];
        match what % 9 {
            0 | 1 => call.send_to(destination).and_then(|to| call.emit(to, &numbers, &column?)).map(drop),
            2 => call.send_to(destination).and_then(|to| call.forward(to, &numbers)),
            3 => call.set_keys(first, &column?),
            4 => call.set_partitions(first, &signed().collect::<Vec<_>>()),
            5 => call.set_timestamps(first, &signed().map(i64::from).collect::<Vec<_>>()),
            6 => {
                let topics: Vec<_> =
                    numbers.iter().map(|_| String::from_utf8_lossy(self.some()).into_owned()).collect();
                call.set_topics(first, &topics)
            }
            7 => call.set_header(first, ["h", "", "x"][usize::from(what >> 4) % 3], &column?),
            _ => call.add_header(first, ["h", "", "x"][usize::from(what >> 4) % 3], &column?),
        }?;
        if what == u8::MAX { call.refuse(first, "told to") } else { Ok(()) }
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// Small for the most part: a large one is found out at once.
    fn number(&mut self) -> u32 {
        match self.byte() {
            u8::MAX => u32::MAX,
            number => u32::from(number),
        }
    }

    fn numbers(&mut self) -> Vec<u32> {
        let count = self.byte() % 8;
        (0..count).map(|_| self.number()).collect()
    }

    fn some(&mut self) -> &'a [u8] {
        let count = usize::from(self.byte()).min(self.0.len());
        let (some, rest) = self.0.split_at(count);
        self.0 = rest;
        some
    }
}

/// Records that are all alike: a key, a value, and two headers of one name, of which one has no value.
#[derive(Debug)]
struct Records(TopicPartition);

impl SourceBatch for Records {
    fn topic_partition(&self) -> &TopicPartition {
        &self.0
    }
    fn len(&self) -> usize {
        RECORDS
    }
    fn offset(&self, index: usize) -> Offset {
        index as Offset
    }
    fn timestamp(&self, _: usize) -> i64 {
        -1
    }
    fn key(&self, _: usize) -> Option<&[u8]> {
        Some(b"key")
    }
    fn value(&self, _: usize) -> Option<&[u8]> {
        Some(b"value")
    }
    fn header_count(&self, _: usize) -> usize {
        2
    }
    fn header(&self, _: usize, nth: usize) -> (&[u8], Option<&[u8]>) {
        (b"h", (nth == 0).then_some(b"1"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        // (small numbers, which often fit, and anything else)
        prop::collection::vec(prop_oneof![4 => 0..4_u8, 2 => 0..40_u8, 1 => any::<u8>()], 0..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_a_guest_hands_over_is_a_fault_or_sound(bytes in any_bytes()) {
            guest_output(&bytes);
        }
    }

    #[test]
    fn what_is_handed_over_in_order_is_taken() {
        let emit_to_out = [0x12, 0, 1, 2, 0, 1, 1, 2, b'o', b'k'];
        let set_its_key = [3, 0, 1, 1, 0, 0, 1, b'k'];
        let verdicts = [0, 1, 0];
        assert!(guest_output(&[&emit_to_out[..], &set_its_key, &verdicts].concat()));
        assert!(!guest_output(&[&set_its_key[..], &verdicts].concat()), "there is no output yet");
        assert!(!guest_output(&[0, 1, 3]), "3 is no verdict");
    }
}
