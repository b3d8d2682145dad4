//! Items: what flows through a pipeline. A source record, or an output that an earlier step made of it.
//!
//! An item holds only what a step changed, as spans into buffers that belong to the whole batch: a filter or a router
//! copies nothing, and a rewrite costs the one copy out of the guest.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, OnceLock};

use super::{SourceBatch, TopicName};

/// Which of a route's destinations, in the order of the YAML.
pub type DestinationIndex = u16;

/// A range of bytes in one of the batch's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which buffer.
    pub chunk: u32,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// A key or a value: the source's own, or what a step set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Field {
    /// The source record's own bytes (or null).
    #[default]
    Source,
    /// Set to null.
    Null,
    /// Set to these bytes.
    Bytes(Span),
}

/// One header of an item whose headers a step changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderPart {
    /// The source record's header of this number.
    Source(u32),
    /// A header that a step set.
    Own {
        /// Its name, UTF-8.
        name: Span,
        /// Its value; `None` is null.
        value: Option<Span>,
    },
}

/// Where an item goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SendTo {
    /// No step said: every destination with `default: true`.
    #[default]
    Unset,
    /// A step named `""`: just the destinations with `default: true`.
    Defaults,
    /// A step named one.
    Named(DestinationIndex),
}

/// One item. Small, so that a batch of pass-through items is one cheap vector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Item {
    /// Index, in the batch, of the source record that the item is or comes from.
    pub source: u32,
    /// Its key.
    pub key: Field,
    /// Its value.
    pub value: Field,
    /// Its timestamp in ms since 1970-01-01 UTC, where a step set one.
    pub timestamp: Option<i64>,
    /// All its headers in order, where a step changed them.
    pub headers: Option<Box<[HeaderPart]>>,
    /// Where it goes.
    pub send_to: SendTo,
    /// The partition that a step asked for, for destinations with `partition: plugin`.
    pub partition: Option<i32>,
    /// The topic that a step named, for destinations with a `topic_pattern`.
    pub topic: Option<TopicName>,
}

impl Item {
    /// The source record `index` as it is.
    pub fn of_source(index: u32) -> Self {
        Self { source: index, ..Self::default() }
    }
}

/// Items in order. Those that are source records as they are take no memory until somebody asks for the list: for records without
/// headers that were copied, neither a filter that keeps all does, nor a route without plugins.
#[derive(Default)]
pub struct ItemList {
    /// The source records that they are where none is made.
    untouched: Range<u32>,
    made: OnceLock<Vec<Item>>,
}

impl ItemList {
    /// How many.
    pub fn len(&self) -> usize {
        self.made.get().map_or(self.untouched.len(), Vec::len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number `index`, which there must be, without the list.
    pub fn at(&self, index: usize) -> Cow<'_, Item> {
        match self.made.get() {
            Some(made) => Cow::Borrowed(&made[index]),
            None => Cow::Owned(Item::of_source(self.untouched.start + index as u32)),
        }
    }

    /// The source record that number `index` is, where all are source records as they are.
    pub fn untouched(&self, index: usize) -> Option<usize> {
        self.made.get().is_none().then(|| self.untouched.start as usize + index)
    }
}

impl Deref for ItemList {
    type Target = Vec<Item>;

    fn deref(&self) -> &Vec<Item> {
        self.made.get_or_init(|| self.untouched.clone().map(Item::of_source).collect())
    }
}

impl DerefMut for ItemList {
    fn deref_mut(&mut self) -> &mut Vec<Item> {
        let _: &Vec<Item> = self;
        self.made.get_mut().expect("made in the line above")
    }
}

impl From<Vec<Item>> for ItemList {
    fn from(list: Vec<Item>) -> Self {
        Self { untouched: 0..0, made: list.into() }
    }
}

/// The items of one source batch, with the bytes that steps made for them.
pub struct Items {
    /// The records that the items come from.
    pub source: Arc<dyn SourceBatch>,
    /// The items, in the order of their source records; several may share one.
    pub list: ItemList,
    /// Bytes that steps made; spans point into them.
    pub chunks: Vec<Vec<u8>>,
}

impl Items {
    /// The records `range` of the batch, each as it is.
    pub fn of(source: Arc<dyn SourceBatch>, range: Range<usize>) -> Self {
        let bound = |index| u32::try_from(index).expect("a batch is bounded far below 2^32 records");
        let list = ItemList { untouched: bound(range.start)..bound(range.end), made: OnceLock::new() };
        Self { source, list, chunks: Vec::new() }
    }

    /// The bytes of a span.
    pub fn bytes(&self, span: Span) -> &[u8] {
        &self.chunks[span.chunk as usize][span.start as usize..span.end as usize]
    }

    /// The item's key as it now is.
    pub fn key<'a>(&'a self, item: &Item) -> Option<&'a [u8]> {
        match item.key {
            Field::Source => self.source.key(item.source as usize),
            Field::Null => None,
            Field::Bytes(span) => Some(self.bytes(span)),
        }
    }

    /// The item's value as it now is.
    pub fn value<'a>(&'a self, item: &Item) -> Option<&'a [u8]> {
        match item.value {
            Field::Source => self.source.value(item.source as usize),
            Field::Null => None,
            Field::Bytes(span) => Some(self.bytes(span)),
        }
    }

    /// Bytes of the item's key and value as they now are.
    pub fn size(&self, item: &Item) -> usize {
        match (item.key, item.value) {
            (Field::Source, Field::Source) => self.source.size(item.source as usize),
            _ => self.key(item).map_or(0, <[u8]>::len) + self.value(item).map_or(0, <[u8]>::len),
        }
    }

    /// The item's timestamp as it now is, ms since 1970-01-01 UTC, or -1.
    pub fn timestamp(&self, item: &Item) -> i64 {
        item.timestamp.unwrap_or_else(|| self.source.timestamp(item.source as usize))
    }

    /// How many headers the item now has.
    pub fn header_count(&self, item: &Item) -> usize {
        match &item.headers {
            None => self.source.header_count(item.source as usize),
            Some(parts) => parts.len(),
        }
    }

    /// Header `nth` of the item as it now is.
    pub fn header<'a>(&'a self, item: &Item, nth: usize) -> (&'a [u8], Option<&'a [u8]>) {
        match &item.headers {
            None => self.source.header(item.source as usize, nth),
            Some(parts) => match parts[nth] {
                HeaderPart::Source(number) => self.source.header(item.source as usize, number as usize),
                HeaderPart::Own { name, value } => (self.bytes(name), value.map(|span| self.bytes(span))),
            },
        }
    }
}

impl fmt::Debug for Items {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Items").field("of", self.source.topic_partition()).field("list", &*self.list).finish()
    }
}
