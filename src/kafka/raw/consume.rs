//! Records that were fetched, and the queue that they come from.

use std::ffi::CStr;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::{Client, Code, Error, Handle, HeaderList, Known, bytes, ffi, lock, read_code, text, to_millis};
use crate::model::{Offset, TopicName, TopicPartition};

/// A consumer's queue: records, and rebalances to be served.
pub(in crate::kafka) struct ConsumerQueue {
    queue: NonNull<ffi::rd_kafka_queue_t>,
    client: Arc<Client>,
    /// Where a call leaves what it fetched; kept so that it is not allocated for each poll.
    slots: Vec<*mut ffi::rd_kafka_message_t>,
}

// SAFETY: as for `Handle`; the slots hold nothing between two calls.
unsafe impl Send for ConsumerQueue {}

impl ConsumerQueue {
    /// The queue of a consumer with a group. From now on only `consume` serves the client.
    pub(in crate::kafka) fn new(client: &Arc<Client>) -> Result<Self, Error> {
        // SAFETY: a live client; the queue is ours.
        let queue = unsafe {
            Code::from(ffi::rd_kafka_poll_set_consumer(client.ptr())).check()?;
            ffi::rd_kafka_queue_get_consumer(client.ptr())
        };
        match NonNull::new(queue) {
            Some(queue) => Ok(Self { queue, client: Arc::clone(client), slots: Vec::new() }),
            None => Err(Error::of(Code::from(Known::RD_KAFKA_RESP_ERR__UNKNOWN_GROUP))),
        }
    }

    /// Waits for `count` records, at most as long as `wait`, and serves callbacks meanwhile.
    pub(in crate::kafka) fn consume(&mut self, wait: Duration, count: usize, into: &mut Vec<Message>) {
        self.slots.resize(count, ptr::null_mut());
        // SAFETY: a live queue, and room for `count` pointers; what is returned is ours.
        let fetched = unsafe {
            ffi::rd_kafka_consume_batch_queue(self.queue.as_ptr(), to_millis(wait), self.slots.as_mut_ptr(), count)
        };
        let fetched = usize::try_from(fetched).unwrap_or(0);
        into.extend(self.slots.drain(..).take(fetched).filter_map(NonNull::new).map(Message));
    }

    pub(in crate::kafka) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Wakes whoever waits in `consume`, from another thread.
    pub(in crate::kafka) fn waker(&self) -> QueueWaker {
        // SAFETY: a live client that is a consumer: this takes another reference to the same queue.
        let queue = unsafe { ffi::rd_kafka_queue_get_consumer(self.client.ptr()) };
        QueueWaker(NonNull::new(queue).map(|queue| Self { queue, client: Arc::clone(&self.client), slots: Vec::new() }))
    }
}

impl Drop for ConsumerQueue {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once, before its client.
        unsafe { ffi::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// Ends a wait for records early.
pub(in crate::kafka) struct QueueWaker(Option<ConsumerQueue>);

impl QueueWaker {
    /// The wait under way, or the next, returns at once.
    pub(in crate::kafka) fn wake(&self) {
        if let Some(queue) = &self.0 {
            // SAFETY: a live queue.
            unsafe { ffi::rd_kafka_queue_yield(queue.queue.as_ptr()) }
        }
    }
}

impl Handle {
    /// The wait for records under way, or the next, returns at once. (For the consumer's callbacks, which are served in it.)
    pub(in crate::kafka) fn end_wait(&self) {
        // SAFETY: a live client; null where it is no consumer. The reference is ours, given back once.
        unsafe {
            if let Some(queue) = NonNull::new(ffi::rd_kafka_queue_get_consumer(self.ptr())) {
                ffi::rd_kafka_queue_yield(queue.as_ptr());
                ffi::rd_kafka_queue_destroy(queue.as_ptr());
            }
        }
    }
}

/// A fetched message, or an error in a message's place. Whoever keeps one keeps its client.
pub(in crate::kafka) struct Message(NonNull<ffi::rd_kafka_message_t>);

// SAFETY: a message is owned, and its counts in librdkafka are atomic.
unsafe impl Send for Message {}

/// Which topic handle and partition: messages with the same are of the same partition. Only for comparing.
pub(in crate::kafka) type Place = (usize, i32);

impl Message {
    fn get(&self) -> *const ffi::rd_kafka_message_t {
        self.0.as_ptr()
    }
    pub(in crate::kafka) fn error(&self) -> Option<Error> {
        // SAFETY: a live message; its error text, if any, is its own.
        unsafe {
            let code = read_code(&raw const (*self.get()).err);
            let message = || text(ffi::rd_kafka_message_errstr(self.get()));
            (code != Code::NONE).then(|| Error { message: message(), ..Error::of(code) })
        }
    }
    /// Bytes of key and value.
    pub(in crate::kafka) fn bytes(&self) -> usize {
        // SAFETY: a live message.
        unsafe { (*self.get()).key_len + (*self.get()).len }
    }
    pub(in crate::kafka) fn place(&self) -> Place {
        // SAFETY: a live message.
        unsafe { ((*self.get()).rkt.addr(), (*self.get()).partition) }
    }
    /// None for an error that is not about a partition.
    pub(in crate::kafka) fn topic_partition(&self) -> Option<TopicPartition> {
        // SAFETY: a live message keeps its topic; the name is the topic's.
        unsafe {
            let topic = (*self.get()).rkt;
            if topic.is_null() {
                return None;
            }
            let topic = TopicName::new(text(ffi::rd_kafka_topic_name(topic))).ok()?;
            Some(TopicPartition { topic, partition: (*self.get()).partition })
        }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once.
        unsafe { ffi::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

/// Messages that are kept and read from any thread, with their client.
pub(in crate::kafka) struct Messages {
    list: Vec<Message>,
    /// Each message's parsed headers, or null: of all, once somebody asks for those of one.
    headers: OnceLock<Vec<*mut ffi::rd_kafka_headers_t>>,
    /// Parsing writes to the message: held by whoever does.
    parsing: Mutex<()>,
    /// Dropped after the messages (fields drop in order).
    _client: Arc<Client>,
}

// SAFETY: messages are not written to but by parsing headers, which `parsing` is held for; what is parsed for readers is not
// written to again, since the `OnceLock` is full then.
unsafe impl Send for Messages {}
// SAFETY: as above.
unsafe impl Sync for Messages {}

impl Messages {
    pub(in crate::kafka) fn new(list: Vec<Message>, client: Arc<Client>) -> Self {
        Self { list, headers: OnceLock::new(), parsing: Mutex::default(), _client: client }
    }
    pub(in crate::kafka) fn len(&self) -> usize {
        self.list.len()
    }
    pub(in crate::kafka) fn offset(&self, index: usize) -> Offset {
        // SAFETY: a live message; so below.
        unsafe { (*self.list[index].get()).offset }
    }
    pub(in crate::kafka) fn timestamp(&self, index: usize) -> i64 {
        let mut kind = ffi::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: see above; `kind` is written.
        let timestamp = unsafe { ffi::rd_kafka_message_timestamp(self.list[index].get(), &raw mut kind) };
        if kind == ffi::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE { -1 } else { timestamp }
    }
    pub(in crate::kafka) fn key(&self, index: usize) -> Option<&[u8]> {
        let message = self.list[index].get();
        // SAFETY: see above; the message keeps its bytes.
        unsafe { bytes((*message).key, (*message).key_len) }
    }
    pub(in crate::kafka) fn value(&self, index: usize) -> Option<&[u8]> {
        let message = self.list[index].get();
        // SAFETY: see above; the message keeps its bytes.
        unsafe { bytes((*message).payload, (*message).len) }
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
        if let Some(parsed) = self.headers.get() {
            return parsed[index];
        }
        let peeks = peeks();
        let parse = |message: &Message| {
            let mut headers = ptr::null_mut();
            // SAFETY: a live message, of a client of which this is known.
            if peeks && unsafe { has_no_headers(message.get()) } {
                return headers;
            }
            // SAFETY: a live message that nobody else writes to while `parsing` is held.
            unsafe { ffi::rd_kafka_message_headers(message.get(), &raw mut headers) };
            headers
        };
        let _parsing = lock(&self.parsing);
        self.headers.get_or_init(|| self.list.iter().map(parse).collect())[index]
    }

    /// The record's headers, for a record that goes out with them: none where it has none. Whoever asks for them later has
    /// them parsed anew.
    ///
    /// # Errors
    /// Somebody has asked for headers, and may be reading these.
    pub(in crate::kafka) fn take_headers(&self, index: usize) -> Result<Option<HeaderList>, InUse> {
        let message = self.list[index].get();
        // SAFETY: a live message, of a client of which this is known.
        if peeks() && unsafe { has_no_headers(message) } {
            return Ok(None);
        }
        let _parsing = lock(&self.parsing);
        if self.headers.get().is_some() {
            return Err(InUse);
        }
        let mut headers = ptr::null_mut();
        // SAFETY: a live message that nobody else writes to while `parsing` is held, and of which nobody reads headers. It
        // keeps them as they were fetched. On success the list is ours.
        unsafe { ffi::rd_kafka_message_detach_headers(message.cast_mut(), &raw mut headers) };
        Ok(NonNull::new(headers).map(HeaderList))
    }
}

/// Somebody may be reading what was asked for.
pub(in crate::kafka) struct InUse;

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
