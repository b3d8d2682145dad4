//! What comes in: records, read out of the batch's columns. A column is fetched once per batch, when the first record is
//! asked for it; what no record is asked for never crosses the sandbox's border.

use std::cell::OnceCell;

/// A header: its name and its value, which can be null.
pub type Header = (String, Option<Vec<u8>>);

/// One record of a batch. Everything is read when asked for.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    batch: &'a Batch<'a>,
    index: usize,
}

impl<'a> Record<'a> {
    /// The key; `None` is null, which is not the same as empty.
    pub fn key(&self) -> Option<&'a [u8]> {
        self.batch.keys.get_or_init(|| self.batch.columns.keys()).get(self.index)
    }

    /// The value; `None` is null: a tombstone, which says that the key is deleted.
    pub fn value(&self) -> Option<&'a [u8]> {
        self.batch.values.get_or_init(|| self.batch.columns.values()).get(self.index)
    }

    /// The last header of that name; `None` where there is none or its value is null.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.batch.header(name).get(self.index)
    }

    /// Every header in order, repeats included. A crossing of its own for each record: for one header known by name,
    /// [`header`](Self::header) is much cheaper.
    pub fn headers(&self) -> Vec<Header> {
        self.batch.columns.headers(self.index as u32)
    }

    /// Milliseconds since 1970-01-01 UTC; `None` where the record has none.
    pub fn timestamp(&self) -> Option<i64> {
        let timestamps = self.batch.timestamps.get_or_init(|| self.batch.columns.timestamps());
        Some(timestamps[self.index]).filter(|&timestamp| timestamp != -1)
    }

    /// The topic that the record was read from.
    pub fn topic(&self) -> &'a str {
        self.batch.topic.get_or_init(|| self.batch.columns.topic())
    }

    /// The partition that the record was read from.
    pub fn partition(&self) -> i32 {
        *self.batch.partition.get_or_init(|| self.batch.columns.partition())
    }

    /// The record's offset in its partition.
    pub fn offset(&self) -> i64 {
        self.batch.offsets.get_or_init(|| self.batch.columns.offsets())[self.index]
    }
}

/// Where columns come from: the host (`wasm.rs`) or a test's memory (`testing.rs`). Each covers the whole batch.
pub(crate) trait Columns {
    fn len(&self) -> usize;
    fn topic(&self) -> String;
    fn partition(&self) -> i32;
    fn offsets(&self) -> Vec<i64>;
    fn timestamps(&self) -> Vec<i64>;
    fn keys(&self) -> Column;
    fn values(&self) -> Column;
    fn header(&self, name: &str) -> Column;
    fn headers(&self, index: u32) -> Vec<Header>;
}

/// A batch with the columns fetched so far.
pub(crate) struct Batch<'a> {
    columns: &'a dyn Columns,
    topic: OnceCell<String>,
    partition: OnceCell<i32>,
    offsets: OnceCell<Vec<i64>>,
    timestamps: OnceCell<Vec<i64>>,
    keys: OnceCell<Column>,
    values: OnceCell<Column>,
    headers: OnceCell<Box<HeaderColumn>>,
}

/// A list that only grows, so that records can borrow from it: plugins ask for one or two headers.
struct HeaderColumn {
    name: String,
    column: Column,
    next: OnceCell<Box<HeaderColumn>>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(columns: &'a dyn Columns) -> Self {
        Self {
            columns,
            topic: OnceCell::new(),
            partition: OnceCell::new(),
            offsets: OnceCell::new(),
            timestamps: OnceCell::new(),
            keys: OnceCell::new(),
            values: OnceCell::new(),
            headers: OnceCell::new(),
        }
    }

    pub(crate) fn records(&self) -> impl ExactSizeIterator<Item = Record<'_>> {
        (0..self.columns.len()).map(|index| Record { batch: self, index })
    }

    fn header(&self, name: &str) -> &Column {
        let mut cell = &self.headers;
        loop {
            let entry = cell.get_or_init(|| {
                let column = self.columns.header(name);
                Box::new(HeaderColumn { name: name.to_owned(), column, next: OnceCell::new() })
            });
            if entry.name == name {
                return &entry.column;
            }
            cell = &entry.next;
        }
    }
}

/// Byte strings back to back, as they cross the border.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ends: Vec<u32>,
    pub(crate) nulls: Vec<u32>,
}

impl Column {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn push(&mut self, item: Option<&[u8]>) {
        match item {
            Some(bytes) => self.bytes.extend_from_slice(bytes),
            None => self.nulls.push(self.ends.len() as u32),
        }
        self.ends.push(self.bytes.len() as u32);
    }

    pub(crate) fn get(&self, index: usize) -> Option<&[u8]> {
        if !self.nulls.is_empty() && self.nulls.binary_search(&(index as u32)).is_ok() {
            return None;
        }
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start as usize..self.ends[index] as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_keeps_null_apart_from_empty() {
        let items = [None, Some(&b""[..]), Some(b"abc"), None, Some(b"d")];
        let mut column = Column::default();
        items.iter().for_each(|&item| column.push(item));
        assert_eq!((0..column.len()).map(|index| column.get(index)).collect::<Vec<_>>(), items);
    }
}
