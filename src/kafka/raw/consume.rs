//! Records that were fetched, and the queue that they come from.

use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use super::{Client, Code, Error, Handle, Known, ffi, read_code, text, to_millis};
use crate::model::{TopicName, TopicPartition};

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
    pub(super) fn get(&self) -> *const ffi::rd_kafka_message_t {
        self.0.as_ptr()
    }
    pub(in crate::kafka) fn is_error(&self) -> bool {
        // SAFETY: a live message.
        (unsafe { read_code(&raw const (*self.get()).err) }) != Code::NONE
    }
    pub(in crate::kafka) fn error(&self) -> Option<Error> {
        // SAFETY: a live message; its error text, if any, is its own.
        unsafe {
            let code = read_code(&raw const (*self.get()).err);
            let message = || text(ffi::rd_kafka_message_errstr(self.get()));
            (code != Code::NONE).then(|| Error { message: message(), ..Error::of(code) })
        }
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
