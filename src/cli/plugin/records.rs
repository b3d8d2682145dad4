//! Records as JSON Lines, in and out: what `plugin run` and `plugin bench` are given, one JSON object a line.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, Read as _};
use std::sync::Arc;

use anyhow::anyhow;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::super::Failure;
use crate::model::{Item, Items, Offset, SourceBatch, TopicName, TopicPartition};

/// What is said of the format where it is asked for.
pub(super) const FORMAT: &str = "\
Records are JSON Lines, one object a line; all keys may be left out:
  {\"key\": \"u1\", \"value\": {\"card\": \"4711\"}, \"headers\": [[\"v\", \"1\"]], \"timestamp\": 1732406400000,
   \"topic\": \"orders\", \"partition\": 0, \"offset\": 7}
In key, value and headers a string is its text, {\"base64\": \"…\"} its bytes, null is null, and any other JSON value
is its own text as it is written. Headers may be an object, too. Without an offset a record follows the one before it.";

/// The longest line, bytes; Kafka's records are much smaller.
const LINE_MAX: u64 = 256 << 20;

/// A header: name and value.
type Header = (Vec<u8>, Option<Vec<u8>>);

/// One record.
pub(super) struct Record {
    at: TopicPartition,
    offset: Offset,
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<Header>,
}

/// Where records come from that do not say so.
#[derive(clap::Args)]
pub(super) struct Origin {
    /// The topic of records that name none
    #[arg(long, value_name = "TOPIC", default_value = "input", value_parser = |text: &str| TopicName::new(text))]
    topic: TopicName,
    /// The partition of records that name none
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..))]
    partition: i32,
}

/// Reads records, and hands them out by the batch.
pub(super) struct Reader<'a> {
    input: Box<dyn BufRead>,
    /// What the input is, for errors.
    name: String,
    origin: &'a Origin,
    line: usize,
    next_offsets: HashMap<TopicPartition, Offset>,
    /// Read already, and not of the last batch's partition.
    waiting: Option<Record>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: Box<dyn BufRead>, name: String, origin: &'a Origin) -> Self {
        Self { input, name, origin, line: 0, next_offsets: HashMap::new(), waiting: None }
    }

    /// The next records, at most so many, of one partition and in ascending order; none at the end.
    pub(super) fn batch(&mut self, records: usize) -> Result<Option<Arc<Batch>>, Failure> {
        let Some(first) = self.next()? else { return Ok(None) };
        let mut batch = Batch { records: vec![first] };
        while batch.records.len() < records {
            let Some(record) = self.next()? else { break };
            let last = batch.records.last().expect("there is one");
            if record.at != last.at || record.offset <= last.offset {
                self.waiting = Some(record);
                break;
            }
            batch.records.push(record);
        }
        Ok(Some(Arc::new(batch)))
    }

    fn next(&mut self) -> Result<Option<Record>, Failure> {
        if let Some(record) = self.waiting.take() {
            return Ok(Some(record));
        }
        let mut line = Vec::new();
        loop {
            line.clear();
            self.line += 1;
            let read = self.input.by_ref().take(LINE_MAX + 1).read_until(b'\n', &mut line);
            let read = read.map_err(|error| {
                Failure::Environment(anyhow!(error).context(format!("{} cannot be read", self.name)))
            })?;
            if read == 0 {
                return Ok(None);
            }
            if line.len() as u64 > LINE_MAX {
                return Err(self.wrong(&format!("longer than {LINE_MAX} bytes")));
            }
            if !line.trim_ascii().is_empty() {
                let record = Record::parse(&line, self.origin, &mut self.next_offsets);
                return record.map(Some).map_err(|what| self.wrong(&what));
            }
        }
    }

    fn wrong(&self, what: &str) -> Failure {
        Failure::Usage(anyhow!("{}, line {}: {what}", self.name, self.line))
    }
}

/// A record as it may be written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    headers: Option<WrittenHeaders<'a>>,
    timestamp: Option<i64>,
    topic: Option<TopicName>,
    partition: Option<i32>,
    offset: Option<Offset>,
}

impl Record {
    fn parse(line: &[u8], origin: &Origin, next: &mut HashMap<TopicPartition, Offset>) -> Result<Self, String> {
        let text = str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?;
        if !text.trim_start().starts_with('{') {
            return Err("a record is a JSON object, such as {\"key\": \"u1\", \"value\": \"text\"}".into());
        }
        let written: Written<'_> = serde_json::from_str(text).map_err(|error| in_column(&error))?;
        let partition = written.partition.unwrap_or(origin.partition);
        if partition < 0 {
            return Err(format!("partition {partition}: partitions are numbered from 0"));
        }
        let at = TopicPartition { topic: written.topic.unwrap_or_else(|| origin.topic.clone()), partition };
        let offset = written.offset.unwrap_or_else(|| next.get(&at).copied().unwrap_or(0));
        if offset < 0 {
            return Err(format!("offset {offset}: offsets are counted from 0"));
        }
        next.insert(at.clone(), offset.saturating_add(1));
        let header = |(name, value): (String, &RawValue)| Ok((name.into_bytes(), bytes(Some(value), "headers")?));
        Ok(Self {
            at,
            offset,
            timestamp: written.timestamp.unwrap_or(-1),
            key: bytes(written.key, "key")?,
            value: bytes(written.value, "value")?,
            headers: written
                .headers
                .map_or(Vec::new(), |written| written.0)
                .into_iter()
                .map(header)
                .collect::<Result<_, String>>()?,
        })
    }
}

/// What serde says, without the line, which is always the first.
fn in_column(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    format!("{} (column {})", said.strip_suffix(&place).unwrap_or(&said), error.column())
}

/// The bytes that a JSON value stands for.
fn bytes(written: Option<&RawValue>, of: &str) -> Result<Option<Vec<u8>>, String> {
    let text = written.map_or("null", RawValue::get);
    match text.as_bytes().first() {
        _ if text == "null" => Ok(None),
        Some(b'"') => {
            let text: String = serde_json::from_str(text).map_err(|error| format!("{of}: {}", in_column(&error)))?;
            Ok(Some(text.into_bytes()))
        }
        _ => match serde_json::from_str::<Encoded>(text) {
            Ok(Encoded { base64 }) => {
                let decoded = BASE64_STANDARD.decode(base64).map_err(|error| format!("{of}: not base64: {error}"))?;
                Ok(Some(decoded))
            }
            Err(_) => Ok(Some(text.as_bytes().to_vec())),
        },
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Encoded {
    base64: String,
}

/// Pairs in a list, or an object; in the order and with the repeats that are written.
struct WrittenHeaders<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for WrittenHeaders<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("headers as [[\"name\", \"value\"], …] or {\"name\": \"value\", …}")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = list.next_element()? {
                    pairs.push(pair);
                }
                Ok(pairs)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_any(Pairs).map(Self)
    }
}

/// Records of one partition, in ascending order.
pub(super) struct Batch {
    records: Vec<Record>,
}

impl Batch {
    /// All the records of a reader as if they were of one partition, again and again until there are at least `records`;
    /// those beyond `bytes` are left out, but the first is not. None where there is no record.
    pub(super) fn of_all(reader: &mut Reader<'_>, records: usize, bytes: usize) -> Result<Option<Arc<Self>>, Failure> {
        let mut list: Vec<Record> = Vec::new();
        let mut size = 0;
        while let Some(record) = reader.next()? {
            size += record.size();
            if size > bytes && !list.is_empty() {
                break;
            }
            list.push(record);
        }
        let given = list.len();
        for index in 0..records.saturating_sub(given) {
            let Some(record) = list.get(index) else { break };
            list.push(record.again());
        }
        for (offset, record) in (0..).zip(&mut list) {
            record.offset = offset;
        }
        Ok((!list.is_empty()).then(|| Arc::new(Self { records: list })))
    }
}

impl Record {
    fn size(&self) -> usize {
        self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len)
    }

    fn again(&self) -> Self {
        let Self { at, offset, timestamp, key, value, headers } = self;
        let (key, value, headers) = (key.clone(), value.clone(), headers.clone());
        Self { at: at.clone(), offset: *offset, timestamp: *timestamp, key, value, headers }
    }
}

impl SourceBatch for Batch {
    fn topic_partition(&self) -> &TopicPartition {
        &self.records[0].at
    }
    fn len(&self) -> usize {
        self.records.len()
    }
    fn offset(&self, index: usize) -> Offset {
        self.records[index].offset
    }
    fn timestamp(&self, index: usize) -> i64 {
        self.records[index].timestamp
    }
    fn key(&self, index: usize) -> Option<&[u8]> {
        self.records[index].key.as_deref()
    }
    fn value(&self, index: usize) -> Option<&[u8]> {
        self.records[index].value.as_deref()
    }
    fn header_count(&self, index: usize) -> usize {
        self.records[index].headers.len()
    }
    fn header(&self, index: usize, nth: usize) -> (&[u8], Option<&[u8]>) {
        let (name, value) = &self.records[index].headers[nth];
        (name, value.as_deref())
    }
}

/// An item in the format that records are read in.
pub(in crate::cli) fn item_json(items: &Items, item: &Item) -> Value {
    let headers = (0..items.header_count(item)).map(|nth| {
        let (name, value) = items.header(item, nth);
        json!([String::from_utf8_lossy(name), bytes_json(value)])
    });
    json!({
        "key": bytes_json(items.key(item)), "value": bytes_json(items.value(item)),
        "headers": headers.collect::<Vec<_>>(), "timestamp": items.timestamp(item),
    })
}

/// Bytes in the format that they are read in: text as a string.
pub(in crate::cli) fn bytes_json(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| (bytes, str::from_utf8(bytes))) {
        None => Value::Null,
        Some((_, Ok(text))) => text.into(),
        Some((bytes, Err(_))) => json!({ "base64": BASE64_STANDARD.encode(bytes) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { topic: TopicName::new("input").unwrap(), partition: 0 }
    }

    fn read(line: &str) -> Result<Record, String> {
        Record::parse(line.as_bytes(), &origin(), &mut HashMap::new())
    }

    #[test]
    fn a_string_is_its_text_base64_its_bytes_null_null_and_all_else_its_own_text() {
        for (written, bytes) in [
            (r#""é\n""#, Some("é\n".as_bytes())),
            (r#""""#, Some(b"")),
            ("null", None),
            (r#"{"base64": "AP8="}"#, Some(&[0, 255])),
            (r#"{ "z": 1.10,"a":12345678901234567890 }"#, Some(br#"{ "z": 1.10,"a":12345678901234567890 }"#)),
            (r#"{"base64": 1}"#, Some(br#"{"base64": 1}"#)),
            ("[1, 2]", Some(b"[1, 2]")),
            ("7", Some(b"7")),
            ("true", Some(b"true")),
        ] {
            let record = read(&format!(r#"{{"key": {written}, "value": {written}}}"#)).unwrap();
            assert_eq!((record.key.as_deref(), record.value.as_deref()), (bytes, bytes), "{written}");
        }
        let empty = read("{}").unwrap();
        assert_eq!((empty.key, empty.value, empty.timestamp, empty.offset), (None, None, -1, 0));
    }

    #[test]
    fn headers_keep_their_order_and_their_repeats() {
        for written in [r#"[["b", "1"], ["a", null], ["b", 2]]"#, r#"{"b": "1", "a": null, "b": 2}"#] {
            let record = read(&format!(r#"{{"headers": {written}}}"#)).unwrap();
            let expected = [(&b"b"[..], Some(&b"1"[..])), (b"a", None), (b"b", Some(b"2"))];
            let found: Vec<_> = record.headers.iter().map(|(name, value)| (&name[..], value.as_deref())).collect();
            assert_eq!(found, expected, "{written}");
        }
    }

    #[test]
    fn what_is_not_a_record_is_told_with_its_line() {
        for (line, what) in [
            ("[1]", "a record is a JSON object"),
            ("not JSON", "a record is a JSON object"),
            (r#"{"valeu": 1}"#, "unknown field `valeu`"),
            (r#"{"value": 1"#, "EOF"),
            (r#"{"value": {"base64": "?"}}"#, "value: not base64"),
            (r#"{"headers": "x"}"#, "headers as [["),
            (r#"{"topic": "a b"}"#, "' '"),
            (r#"{"partition": -1}"#, "numbered from 0"),
            (r#"{"offset": -1}"#, "counted from 0"),
        ] {
            let origin = origin();
            let input = std::io::Cursor::new(format!("{{\"value\": 1}}\n\n{line}\n"));
            let mut reader = Reader::new(Box::new(input), "records.jsonl".into(), &origin);
            let Err(Failure::Usage(error)) = reader.batch(10) else { panic!("{line} was taken") };
            let said = error.to_string();
            assert!(said.starts_with("records.jsonl, line 3: ") && said.contains(what), "{line}: {said}");
        }
    }

    #[test]
    fn a_batch_is_of_one_partition_in_ascending_order() {
        let lines = concat!(
            "{}\n{}\n{\"partition\": 1}\n{\"partition\": 1, \"offset\": 9}\n{\"partition\": 1}\n",
            "{\"partition\": 1, \"offset\": 3}\n{}",
        );
        let origin = origin();
        let mut reader = Reader::new(Box::new(std::io::Cursor::new(lines)), "-".into(), &origin);
        let mut found = Vec::new();
        while let Some(batch) = reader.batch(3).ok().expect("records") {
            let offsets: Vec<_> = (0..batch.len()).map(|index| batch.offset(index)).collect();
            found.push((batch.topic_partition().partition, offsets));
        }
        assert_eq!(found, [(0, vec![0, 1]), (1, vec![0, 9, 10]), (1, vec![3]), (0, vec![2])]);
    }

    #[test]
    fn what_goes_out_reads_back_as_it_was() {
        for bytes in [None, Some(&b""[..]), Some(b"text"), Some(&[0xff, 0]), Some(br#"{"base64": "AA=="}"#)] {
            let written = format!(r#"{{"value": {}}}"#, bytes_json(bytes));
            assert_eq!(read(&written).unwrap().value.as_deref(), bytes, "{written}");
        }
    }
}
