//! Records that are kept, to be read from any thread: where they were fetched, or copied where that is the lesser evil.

use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, OnceLock};

use super::{Client, HeaderList, Message, bytes, ffi, lock};
use crate::model::Offset;

/// Records of so many bytes of key and value, as a mean, are copied. Keeping a message keeps half a kilobyte of librdkafka's beside them,
/// which has left the caches when it is freed after the transaction; a copy frees it at once, for the next fetch.
const COPIED_MAX: usize = 512;

/// Records in the order in which they were fetched.
pub(in crate::kafka) struct Messages {
    records: Vec<Record>,
    /// Bytes of keys and values.
    bytes: usize,
    kept: Kept,
}

/// What the pipeline asks of a record again and again, side by side: a message is spread over several cache lines.
struct Record {
    offset: Offset,
    /// Milliseconds since 1970, or -1.
    timestamp: i64,
    key: Bytes,
    value: Bytes,
    /// It surely has none.
    has_no_headers: bool,
}

/// Some of what is kept; a null pointer is Kafka's null.
struct Bytes(*mut c_void, usize);

enum Kept {
    Messages {
        list: Vec<Message>,
        /// Each message's parsed headers, or null: of all, once somebody asks for those of one.
        headers: OnceLock<Vec<*mut ffi::rd_kafka_headers_t>>,
        /// Parsing writes to the message: held by whoever does.
        parsing: Mutex<()>,
        /// Dropped after the messages (fields drop in order).
        _client: Arc<Client>,
    },
    /// Keys and values of records without headers; never moves.
    Copy { _bytes: Vec<u8> },
}

// SAFETY: messages are not written to but by parsing headers, which `parsing` is held for; what is parsed for readers is not
// written to again, since the `OnceLock` is full then. What records point to is not written to, and lives as long as `kept`.
unsafe impl Send for Messages {}
// SAFETY: as above.
unsafe impl Sync for Messages {}

impl Messages {
    /// These, which are no errors.
    pub(in crate::kafka) fn new(list: Vec<Message>, client: &Arc<Client>) -> Self {
        let peeks = peeks();
        // SAFETY: live messages, of a client of which it is known whether it can be peeked.
        let mut records: Vec<_> = list.iter().map(|message| unsafe { Record::of(message, peeks) }).collect();
        let bytes = records.iter().map(|record| record.key.1 + record.value.1).sum();
        let is_copied = bytes <= records.len() * COPIED_MAX && records.iter().all(|record| record.has_no_headers);
        let kept = if is_copied {
            let mut copy = Vec::with_capacity(bytes);
            for record in &mut records {
                record.key.move_to(&mut copy);
                record.value.move_to(&mut copy);
            }
            drop(list);
            Kept::Copy { _bytes: copy }
        } else {
            Kept::Messages { list, headers: OnceLock::new(), parsing: Mutex::default(), _client: Arc::clone(client) }
        };
        Self { records, bytes, kept }
    }
    pub(in crate::kafka) fn len(&self) -> usize {
        self.records.len()
    }
    pub(in crate::kafka) fn bytes(&self) -> usize {
        self.bytes
    }
    pub(in crate::kafka) fn size(&self, index: usize) -> usize {
        self.records[index].key.1 + self.records[index].value.1
    }
    pub(in crate::kafka) fn offset(&self, index: usize) -> Offset {
        self.records[index].offset
    }
    pub(in crate::kafka) fn timestamp(&self, index: usize) -> i64 {
        self.records[index].timestamp
    }
    pub(in crate::kafka) fn key(&self, index: usize) -> Option<&[u8]> {
        self.records[index].key.get()
    }
    pub(in crate::kafka) fn value(&self, index: usize) -> Option<&[u8]> {
        self.records[index].value.get()
    }
    pub(in crate::kafka) fn may_have_headers(&self) -> bool {
        matches!(self.kept, Kept::Messages { .. })
    }
    pub(in crate::kafka) fn header_count(&self, index: usize) -> usize {
        let headers = self.headers(index);
        // SAFETY: a live list, kept by its message.
        if headers.is_null() { 0 } else { unsafe { ffi::rd_kafka_header_cnt(headers) } }
    }
    pub(in crate::kafka) fn header(&self, index: usize, nth: usize) -> (&[u8], Option<&[u8]>) {
        let headers = self.headers(index);
        assert!(nth < self.header_count(index), "header {nth} of {}", self.header_count(index));
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: a live list, kept by its message, with a header of that number; name and value are the list's.
        unsafe {
            ffi::rd_kafka_header_get_all(headers, nth, &raw mut name, &raw mut value, &raw mut size);
            (CStr::from_ptr(name).to_bytes(), bytes(value.cast_mut(), size))
        }
    }
    fn headers(&self, index: usize) -> *mut ffi::rd_kafka_headers_t {
        let Kept::Messages { list, headers, parsing, .. } = &self.kept else { return ptr::null_mut() };
        if let Some(parsed) = headers.get() {
            return parsed[index];
        }
        let parse = |(message, record): (&Message, &Record)| {
            let mut headers = ptr::null_mut();
            if !record.has_no_headers {
                // SAFETY: a live message that nobody else writes to while `parsing` is held.
                unsafe { ffi::rd_kafka_message_headers(message.get(), &raw mut headers) };
            }
            headers
        };
        let _parsing = lock(parsing);
        headers.get_or_init(|| list.iter().zip(&self.records).map(parse).collect())[index]
    }

    /// The record's headers, for a record that goes out with them: none where it has none. Whoever asks for them later has
    /// them parsed anew.
    ///
    /// # Errors
    /// Somebody has asked for headers, and may be reading these.
    pub(in crate::kafka) fn take_headers(&self, index: usize) -> Result<Option<HeaderList>, InUse> {
        let Kept::Messages { list, headers, parsing, .. } = &self.kept else { return Ok(None) };
        if self.records[index].has_no_headers {
            return Ok(None);
        }
        let _parsing = lock(parsing);
        if headers.get().is_some() {
            return Err(InUse);
        }
        let mut taken = ptr::null_mut();
        // SAFETY: a live message that nobody else writes to while `parsing` is held, and of which nobody reads headers. It
        // keeps them as they were fetched. On success the list is ours.
        unsafe { ffi::rd_kafka_message_detach_headers(list[index].get().cast_mut(), &raw mut taken) };
        Ok(NonNull::new(taken).map(HeaderList))
    }
}

/// Somebody may be reading what was asked for.
pub(in crate::kafka) struct InUse;

impl Record {
    /// # Safety
    /// `peeks` is what [`peeks`] says.
    unsafe fn of(message: &Message, peeks: bool) -> Self {
        let message = message.get();
        let mut kind = ffi::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: a live message; `kind` is written.
        unsafe {
            let timestamp = ffi::rd_kafka_message_timestamp(message, &raw mut kind);
            let is_known = kind != ffi::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
            Self {
                offset: (*message).offset,
                timestamp: if is_known { timestamp } else { -1 },
                key: Bytes((*message).key, (*message).key_len),
                value: Bytes((*message).payload, (*message).len),
                has_no_headers: peeks && has_no_headers(message),
            }
        }
    }
}

impl Bytes {
    fn get(&self) -> Option<&[u8]> {
        // SAFETY: what is kept with the record keeps its bytes.
        unsafe { bytes(self.0, self.1) }
    }

    /// From now on they are what stands at the end of this, which has the room.
    fn move_to(&mut self, copy: &mut Vec<u8>) {
        let Some(bytes) = self.get() else { return };
        let start = copy.len();
        assert!(start + bytes.len() <= copy.capacity(), "it must not move");
        copy.extend_from_slice(bytes);
        self.0 = copy[start..].as_mut_ptr().cast();
    }
}

/// Whether this is the librdkafka (2.12.1) whose consumer was read for [`has_no_headers`].
fn peeks() -> bool {
    // SAFETY: answers with a constant.
    (unsafe { ffi::rd_kafka_version() }) == 0x020c_01ff
}

/// Whether a message surely has no headers, without parsing them: which takes librdkafka an allocation of half a kilobyte even
/// where there are none.
///
/// In a record batch of version 2 (KIP-98) the count of headers follows the value, and the consumer leaves both where they
/// were fetched for as long as a message lives. Older formats, in which nothing has to follow, have no leader epoch. An empty
/// value is not in place.
///
/// # Safety
/// A live message of a consumer, of the version that [`peeks`] knows.
unsafe fn has_no_headers(message: *const ffi::rd_kafka_message_t) -> bool {
    // SAFETY: the caller's promise, and as said above.
    unsafe {
        let (value, len) = ((*message).payload.cast::<u8>(), (*message).len);
        len > 0 && ffi::rd_kafka_message_leader_epoch(message) >= 0 && *value.add(len) == 0
    }
}
