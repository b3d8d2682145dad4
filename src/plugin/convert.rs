//! One call's records and outputs, between the pipeline's items and the interface's columns. What a plugin emits is kept
//! here until its call has returned whole; whatever it hands over is checked here. Knows nothing of wasmtime.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::bindings::ColumnBuffer;
use super::fault::{HostFault, printable, size};
use super::sandbox::DestinationSpec;
use crate::config::settings::PluginLimits;
use crate::model::{Field, HeaderPart, Item, Items, Offset, SendTo, Span, TopicName, TopicPartition};
use crate::pipeline::ports::{CallOutput, Verdict};

/// Outputs of one call in memory, whatever the number of its records. A batch beyond it fails as a whole and is halved, so
/// a record meets no other ceiling than its own.
const CALL_OUTPUTS_MAX: usize = 200_000;
const CALL_BYTES_MAX: u64 = 64 << 20;
/// Outputs are copied into chunks of at least this size, so that a guest that emits one by one costs few allocations.
const CHUNK_MIN: usize = 16 << 10;
/// The longest reason of a refusal, bytes.
const REASON_MAX: usize = 1024;

/// A header on its way into the guest.
pub(super) type HeaderOut = (String, Option<Vec<u8>>);

/// The records and outputs of one call.
pub(super) struct Call {
    items: Items,
    range: Range<usize>,
    limits: PluginLimits,
    destinations: Arc<[DestinationSpec]>,
    emitted: Vec<(u32, Item)>,
    /// What each record's outputs amount to; empty until something is emitted.
    used: Vec<Used>,
    outputs: usize,
    bytes: u64,
    /// The items' chunks before the call.
    chunks_before: usize,
    /// Whether each record was refused by name; empty until one is.
    refused: Vec<bool>,
    reasons: Vec<(u32, String)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Used {
    outputs: u32,
    bytes: u64,
}

impl Call {
    /// Takes the items for the call; [`Call::succeed`] or [`Call::fail`] gives them back.
    pub(super) fn begin(
        items: &mut Items,
        range: Range<usize>,
        limits: PluginLimits,
        destinations: Arc<[DestinationSpec]>,
    ) -> Self {
        let items = Items {
            source: Arc::clone(&items.source),
            list: std::mem::take(&mut items.list),
            chunks: std::mem::take(&mut items.chunks),
        };
        Self {
            chunks_before: items.chunks.len(),
            items,
            range,
            limits,
            destinations,
            emitted: Vec::new(),
            used: Vec::new(),
            outputs: 0,
            bytes: 0,
            refused: Vec::new(),
            reasons: Vec::new(),
        }
    }

    /// Gives the items back as they were.
    pub(super) fn fail(mut self, items: &mut Items) {
        self.items.chunks.truncate(self.chunks_before);
        *items = self.items;
    }

    /// Checks the verdicts and gives the items back, with what the guest made of them.
    pub(super) fn succeed(self, items: &mut Items, verdicts: &[u8]) -> Result<CallOutput, HostFault> {
        match self.verdicts(verdicts) {
            Ok(verdicts) => {
                let mut reasons = self.reasons;
                reasons.sort_unstable_by_key(|(index, _)| *index);
                *items = self.items;
                Ok(CallOutput { verdicts, emitted: self.emitted, reasons })
            }
            Err(fault) => {
                self.fail(items);
                Err(fault)
            }
        }
    }

    fn verdicts(&self, bytes: &[u8]) -> Result<Vec<Verdict>, HostFault> {
        if bytes.len() != self.range.len() {
            let message = format!("it returned {} verdicts for {} records", bytes.len(), self.range.len());
            return Err(HostFault::bad_output(message));
        }
        let verdict = |(index, byte): (usize, &u8)| match byte {
            _ if self.refused.get(index) == Some(&true) => Ok(Verdict::Refuse),
            0 => Ok(Verdict::Pass),
            1 => Ok(Verdict::Drop),
            2 => Ok(Verdict::Refuse),
            other => Err(HostFault::bad_output(format!(
                "it returned the verdict {other} for record {index} of the call: 0, 1 and 2 are verdicts"
            ))),
        };
        bytes.iter().enumerate().map(verdict).collect()
    }
}

/// What goes into the guest.
impl Call {
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.range.len()).expect("a batch is bounded far below 2^32 records")
    }

    pub(super) fn topic_partition(&self) -> &TopicPartition {
        self.items.source.topic_partition()
    }

    /// The offset of a record of the call.
    pub(super) fn offset(&self, index: u32) -> Option<Offset> {
        let item = self.some(index, index.checked_add(1)?).ok()?.next()?;
        Some(self.items.source.offset(item.source as usize))
    }

    pub(super) fn offsets(&self, start: u32, end: u32) -> Result<Vec<i64>, HostFault> {
        Ok(self.some(start, end)?.map(|item| self.items.source.offset(item.source as usize)).collect())
    }

    pub(super) fn timestamps(&self, start: u32, end: u32) -> Result<Vec<i64>, HostFault> {
        Ok(self.some(start, end)?.map(|item| self.items.timestamp(&item)).collect())
    }

    pub(super) fn value_sizes(&self, start: u32, end: u32) -> Result<Vec<u32>, HostFault> {
        let size = |item: Cow<'_, Item>| self.items.value(&item).map_or(Ok(0), |value| u32::try_from(value.len()));
        self.some(start, end)?.map(size).collect::<Result<_, _>>().map_err(|_| too_much_to_read())
    }

    pub(super) fn keys(&self, start: u32, end: u32, column: &mut ColumnBuffer) -> Result<(), HostFault> {
        self.fill(start, end, column, |item| self.items.key(item))
    }

    pub(super) fn values(&self, start: u32, end: u32, column: &mut ColumnBuffer) -> Result<(), HostFault> {
        self.fill(start, end, column, |item| self.items.value(item))
    }

    /// The last header of that name of each record.
    pub(super) fn header(&self, start: u32, end: u32, name: &str, column: &mut ColumnBuffer) -> Result<(), HostFault> {
        self.fill(start, end, column, |item| {
            let headers = (0..self.items.header_count(item)).rev().map(|nth| self.items.header(item, nth));
            headers.into_iter().find(|(raw, _)| is_named(raw, name)).and_then(|(_, value)| value)
        })
    }

    pub(super) fn headers(&self, index: u32) -> Result<Vec<HeaderOut>, HostFault> {
        let item = &*self.some(index, index.saturating_add(1))?.next().expect("there is that one");
        let header = |nth| {
            let (name, value) = self.items.header(item, nth);
            (shown_name(name).into_owned(), value.map(<[u8]>::to_vec))
        };
        Ok((0..self.items.header_count(item)).map(header).collect())
    }

    /// Refuses a record; the first reason counts.
    pub(super) fn refuse(&mut self, index: u32, reason: &str) -> Result<(), HostFault> {
        self.some(index, index.saturating_add(1)).map(drop)?;
        self.refused.resize(self.range.len(), false);
        if !std::mem::replace(&mut self.refused[index as usize], true) {
            self.reasons.push((index, printable(reason, REASON_MAX)));
        }
        Ok(())
    }

    /// Items of the call.
    fn some(&self, start: u32, end: u32) -> Result<impl Iterator<Item = Cow<'_, Item>>, HostFault> {
        if start > end || end > self.len() {
            let message = format!("it asked for the records {start} .. {end} of a batch of {}", self.len());
            return Err(HostFault::trapped(message));
        }
        let first = self.range.start;
        Ok((first + start as usize..first + end as usize).map(|index| self.items.list.at(index)))
    }

    fn fill<'a>(
        &'a self,
        start: u32,
        end: u32,
        column: &mut ColumnBuffer,
        field: impl Fn(&Item) -> Option<&'a [u8]>,
    ) -> Result<(), HostFault> {
        column.bytes.clear();
        column.ends.clear();
        column.nulls.clear();
        for (place, item) in (0..).zip(self.some(start, end)?) {
            match field(&item) {
                Some(bytes) => column.bytes.extend_from_slice(bytes),
                None => column.nulls.push(place),
            }
            column.ends.push(u32::try_from(column.bytes.len()).map_err(|_| too_much_to_read())?);
        }
        Ok(())
    }
}

fn too_much_to_read() -> HostFault {
    HostFault::trapped("it asked for more than 4 GiB of one column")
}

/// What comes out of the guest.
impl Call {
    /// Finds a destination by the name that plugins use.
    pub(super) fn send_to(&self, destination: &str) -> Result<SendTo, HostFault> {
        if destination.is_empty() {
            return Ok(SendTo::Defaults);
        }
        let place = self.destinations.iter().position(|spec| spec.name.as_str() == destination);
        let index = place.and_then(|place| u16::try_from(place).ok()).ok_or_else(|| {
            let known: Vec<_> = self.destinations.iter().map(|spec| spec.name.as_str()).collect();
            let known = known.join(", ");
            HostFault::bad_output(format!(
                "unknown destination {:?}: the route has {known}",
                printable(destination, 249)
            ))
        })?;
        Ok(SendTo::Named(index))
    }

    pub(super) fn emit(&mut self, send_to: SendTo, source: &[u32], values: &Column<'_>) -> Result<u32, HostFault> {
        if source.len() != values.len() {
            let message = format!("emit was given {} sources for {} values", source.len(), values.len());
            return Err(HostFault::bad_output(message));
        }
        for (source, value) in source.iter().zip(values.spans()) {
            self.charge(u32::from_le(*source), 1, (value.end - value.start).into())?;
        }
        let spans = self.keep(values)?;
        let first = self.position()?;
        self.emitted.reserve(source.len());
        for (source, value) in source.iter().zip(spans) {
            let source = u32::from_le(*source);
            // Charged above, so it exists.
            let origin = self.items.list.at(self.range.start + source as usize);
            self.emitted.push((source, Item { value, send_to, ..origin.into_owned() }));
        }
        Ok(first)
    }

    pub(super) fn forward(&mut self, send_to: SendTo, source: &[u32]) -> Result<(), HostFault> {
        for source in source {
            self.charge(u32::from_le(*source), 1, 0)?;
        }
        self.emitted.reserve(source.len());
        for source in source {
            let source = u32::from_le(*source);
            let origin = self.items.list.at(self.range.start + source as usize);
            self.emitted.push((source, Item { send_to, ..origin.into_owned() }));
        }
        Ok(())
    }

    pub(super) fn set_keys(&mut self, first: u32, keys: &Column<'_>) -> Result<(), HostFault> {
        let range = self.emitted_range(first, keys.len())?;
        self.charge_column(range.clone(), keys)?;
        let spans = self.keep(keys)?;
        for ((_, item), key) in self.emitted[range].iter_mut().zip(spans) {
            item.key = key;
        }
        Ok(())
    }

    pub(super) fn set_partitions(&mut self, first: u32, partitions: &[i32]) -> Result<(), HostFault> {
        let range = self.emitted_range(first, partitions.len())?;
        for ((_, item), partition) in self.emitted[range].iter_mut().zip(partitions) {
            item.partition = match i32::from_le(*partition) {
                -1 => None,
                partition if partition >= 0 => Some(partition),
                other => return Err(HostFault::bad_output(format!("{other} cannot be a partition"))),
            };
        }
        Ok(())
    }

    pub(super) fn set_timestamps(&mut self, first: u32, timestamps: &[i64]) -> Result<(), HostFault> {
        let range = self.emitted_range(first, timestamps.len())?;
        for ((_, item), timestamp) in self.emitted[range].iter_mut().zip(timestamps) {
            item.timestamp = match i64::from_le(*timestamp) {
                timestamp if timestamp >= -1 => Some(timestamp),
                other => return Err(HostFault::bad_output(format!("{other} cannot be a timestamp"))),
            };
        }
        Ok(())
    }

    pub(super) fn set_topics(&mut self, first: u32, topics: &[String]) -> Result<(), HostFault> {
        let range = self.emitted_range(first, topics.len())?;
        let mut last: Option<TopicName> = None;
        for ((_, item), topic) in self.emitted[range].iter_mut().zip(topics) {
            // Neighbours often share a topic, and then its name.
            let name = match last.take() {
                Some(name) if name.as_str() == topic => name,
                _ => TopicName::new(topic).map_err(|error| {
                    HostFault::bad_output(format!("{:?} cannot be a topic: {error}", printable(topic, 249)))
                })?,
            };
            if let SendTo::Named(destination) = item.send_to
                && let spec = &self.destinations[usize::from(destination)]
                && let Some(pattern) = &spec.topic_pattern
                && !pattern.is_match(name.as_str())
            {
                let message = format!("the topic {name} does not match the topic_pattern of destination {}", spec.name);
                return Err(HostFault::bad_output(message));
            }
            item.topic = Some(name.clone());
            last = Some(name);
        }
        Ok(())
    }

    /// Puts a header in the place of the first of that name and removes the others; a null item removes all of them.
    pub(super) fn set_header(&mut self, first: u32, name: &str, values: &Column<'_>) -> Result<(), HostFault> {
        self.edit_headers(first, name, values, |headers, name, value, is_named| {
            let place = headers.iter().position(&is_named);
            headers.retain(|header| !is_named(header));
            if let Some(value) = value {
                // Those before the first of that name stay where they were.
                headers.insert(place.unwrap_or(headers.len()), HeaderPart::Own { name, value: Some(value) });
            }
        })
    }

    /// Adds a header behind those there are; a null item is a null value.
    pub(super) fn add_header(&mut self, first: u32, name: &str, values: &Column<'_>) -> Result<(), HostFault> {
        self.edit_headers(first, name, values, |headers, name, value, _| headers.push(HeaderPart::Own { name, value }))
    }

    fn edit_headers(
        &mut self,
        first: u32,
        name: &str,
        values: &Column<'_>,
        edit: impl Fn(&mut Vec<HeaderPart>, Span, Option<Span>, &dyn Fn(&HeaderPart) -> bool),
    ) -> Result<(), HostFault> {
        let range = self.emitted_range(first, values.len())?;
        self.charge_column(range.clone(), values)?;
        for place in range.clone() {
            let (source, item) = &self.emitted[place];
            let parts = (self.items.header_count(item) + 1) * size_of::<HeaderPart>();
            self.charge(*source, 0, (parts + name.len()) as u64)?;
        }
        let values = self.keep(values)?;
        let name_span = self.append(name.as_bytes())?;
        for ((_, item), value) in self.emitted[range].iter_mut().zip(values) {
            let items = &self.items;
            let source = item.source as usize;
            let named = |part: &HeaderPart| match *part {
                HeaderPart::Source(nth) => is_named(items.source.header(source, nth as usize).0, name),
                HeaderPart::Own { name: own, .. } => items.bytes(own) == name.as_bytes(),
            };
            let mut headers = match item.headers.take() {
                Some(headers) => headers.into_vec(),
                None => (0..).take(items.source.header_count(source)).map(HeaderPart::Source).collect(),
            };
            let value = match value {
                Field::Bytes(span) => Some(span),
                Field::Null | Field::Source => None,
            };
            edit(&mut headers, name_span, value, &named);
            item.headers = Some(headers.into_boxed_slice());
        }
        Ok(())
    }

    /// The position of the next output.
    fn position(&self) -> Result<u32, HostFault> {
        u32::try_from(self.emitted.len()).map_err(|_| HostFault::bad_output("too many outputs"))
    }

    fn emitted_range(&self, first: u32, count: usize) -> Result<Range<usize>, HostFault> {
        let first = first as usize;
        let end = first.checked_add(count).filter(|end| *end <= self.emitted.len());
        end.map(|end| first..end).ok_or_else(|| {
            let emitted = self.emitted.len();
            HostFault::bad_output(format!("it changed {count} outputs from number {first} on, of {emitted}"))
        })
    }

    fn charge_column(&mut self, emitted: Range<usize>, column: &Column<'_>) -> Result<(), HostFault> {
        for (place, bytes) in emitted.zip(column.spans()) {
            self.charge(self.emitted[place].0, 0, (bytes.end - bytes.start).into())?;
        }
        Ok(())
    }

    /// Takes note of what is about to be kept for a record, before it is kept.
    fn charge(&mut self, source: u32, outputs: u32, bytes: u64) -> Result<(), HostFault> {
        if self.used.is_empty() {
            self.used.resize(self.range.len(), Used::default());
        }
        let count = self.range.len();
        let limits = self.limits;
        let Some(used) = self.used.get_mut(source as usize) else {
            return Err(HostFault::bad_output(format!("it emitted from record {source} of a batch of {count}")));
        };
        used.outputs = used.outputs.saturating_add(outputs);
        used.bytes = used.bytes.saturating_add(bytes);
        self.outputs += outputs as usize;
        self.bytes = self.bytes.saturating_add(bytes);
        if used.outputs > limits.outputs {
            let most = limits.outputs;
            return Err(HostFault::bad_output(format!("more than {most} outputs of one record (`max_outputs`)")));
        }
        if used.bytes > limits.output_bytes {
            let most = size(limits.output_bytes);
            return Err(HostFault::bad_output(format!(
                "more than {most} of output of one record (`max_output_bytes`)"
            )));
        }
        if self.bytes > CALL_BYTES_MAX.max(limits.output_bytes) {
            let most = size(CALL_BYTES_MAX.max(limits.output_bytes));
            return Err(HostFault::bad_output(format!("more than {most} of output of one call")));
        }
        if self.outputs > CALL_OUTPUTS_MAX.max(limits.outputs as usize) {
            return Err(HostFault::bad_output(format!("more than {CALL_OUTPUTS_MAX} outputs of one call")));
        }
        Ok(())
    }

    /// Copies a column out of the guest, once, and says where each of its items lies.
    fn keep<'a>(&mut self, column: &'a Column<'a>) -> Result<impl Iterator<Item = Field> + use<'a>, HostFault> {
        let all = self.append(column.used_bytes())?;
        let mut nulls = column.nulls.iter().map(|null| u32::from_le(*null)).peekable();
        Ok((0_u32..).zip(column.spans()).map(move |(place, bytes)| match nulls.next_if_eq(&place) {
            Some(_) => Field::Null,
            None => Field::Bytes(Span { chunk: all.chunk, start: all.start + bytes.start, end: all.start + bytes.end }),
        }))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<Span, HostFault> {
        let too_much = |_| HostFault::bad_output("more than 4 GiB of output");
        let fits = |chunk: &Vec<u8>| chunk.capacity() - chunk.len() >= bytes.len();
        if self.items.chunks.len() == self.chunks_before || !self.items.chunks.last().is_some_and(fits) {
            self.items.chunks.push(Vec::with_capacity(bytes.len().max(CHUNK_MIN)));
        }
        let number = u32::try_from(self.items.chunks.len() - 1).map_err(too_much)?;
        let chunk = self.items.chunks.last_mut().expect("pushed above where there was none");
        let start = u32::try_from(chunk.len()).map_err(too_much)?;
        chunk.extend_from_slice(bytes);
        Ok(Span { chunk: number, start, end: u32::try_from(chunk.len()).map_err(too_much)? })
    }
}

/// A column that a guest handed over, found sound. Numbers are little-endian, as they lie in its memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column<'a> {
    bytes: &'a [u8],
    ends: &'a [u32],
    nulls: &'a [u32],
}

impl<'a> Column<'a> {
    pub(super) fn new(bytes: &'a [u8], ends: &'a [u32], nulls: &'a [u32]) -> Result<Self, HostFault> {
        let column = Self { bytes, ends, nulls };
        let ascending = column.spans().all(|span| span.start <= span.end);
        if !ascending || column.end() > bytes.len() {
            return Err(HostFault::bad_output(format!(
                "a column's ends are not ascending, or lie beyond its {} bytes",
                bytes.len()
            )));
        }
        let mut least = 0;
        for null in nulls {
            let null = u32::from_le(*null);
            if null < least || null as usize >= ends.len() {
                return Err(HostFault::bad_output(format!(
                    "a column's nulls are not ascending, or lie beyond its {} items",
                    ends.len()
                )));
            }
            least = null + 1;
        }
        Ok(column)
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn end(&self) -> usize {
        self.ends.last().map_or(0, |end| u32::from_le(*end) as usize)
    }

    fn used_bytes(&self) -> &'a [u8] {
        &self.bytes[..self.end()]
    }

    /// Where each item lies among the bytes.
    fn spans(&self) -> impl Iterator<Item = Range<u32>> + use<'a> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|end| u32::from_le(*end)));
        starts.zip(self.ends.iter().map(|end| u32::from_le(*end))).map(|(start, end)| start..end)
    }
}

/// Whether plugins know a header by this name.
fn is_named(raw: &[u8], name: &str) -> bool {
    raw == name.as_bytes() || (str::from_utf8(raw).is_err() && shown_name(raw) == name)
}

/// A header's name as plugins see it: bytes that are not UTF-8 are escaped as `\xNN`.
fn shown_name(raw: &[u8]) -> Cow<'_, str> {
    if let Ok(name) = str::from_utf8(raw) {
        return Cow::Borrowed(name);
    }
    let mut shown = String::with_capacity(raw.len() + 8);
    for chunk in raw.utf8_chunks() {
        shown.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| shown.push_str(&format!("\\x{byte:02x}")));
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_do_not_add_up_are_refused() {
        assert!(Column::new(b"abc", &[1, 1, 3], &[1]).is_ok());
        assert!(Column::new(b"", &[], &[]).is_ok());
        assert!(Column::new(b"abcd", &[3], &[]).is_ok(), "bytes behind the last end are nobody's");
        for (ends, nulls) in [
            (&[2, 1][..], &[][..]),
            (&[4], &[]),
            (&[u32::MAX], &[]),
            (&[1], &[1]),
            (&[1, 2], &[1, 1]),
            (&[1, 2], &[1, 0]),
        ] {
            let refused = Column::new(b"abc", ends, nulls).unwrap_err();
            assert_eq!(refused.code, crate::model::FaultCode::BadOutput, "{ends:?} {nulls:?}");
        }
    }

    #[test]
    fn a_header_name_that_is_not_utf8_is_escaped_and_found_by_its_escaped_name() {
        assert_eq!(shown_name(b"a\xff\xfeb"), "a\\xff\\xfeb");
        assert!(is_named(b"a\xff", "a\\xff"));
        assert!(!is_named(b"a\\xff", "a\\xfe"));
        assert!(is_named("é".as_bytes(), "é"));
    }
}
