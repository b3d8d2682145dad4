//! Questions to the brokers that are asked now and answered later, over librdkafka's C: where logs end. As the
//! rest, knows C's rules of ownership and nothing of routes.
#![expect(unsafe_code, reason = "librdkafka's admin calls are C")]

use std::ffi::c_int;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka_sys as ffi;

use crate::model::{Offset, TopicPartition};

use super::partitions::topic_partition;
use super::{Client, Code, Error, Handle, Known, PartitionList, to_millis};

/// A question that was asked. Dropped, its answer is of no interest any more.
pub(in crate::kafka) struct Asked<A> {
    queue: NonNull<ffi::rd_kafka_queue_t>,
    /// Dropped after the queue was destroyed.
    _client: Arc<Client>,
    answer: PhantomData<A>,
}

// SAFETY: as for `Handle`; the queue is ours alone.
unsafe impl<A> Send for Asked<A> {}

/// What can be read of an answer.
pub(in crate::kafka) trait Answer: Sized {
    /// # Safety
    /// `event` is a live answer, without an error, to the question for this.
    unsafe fn read(event: *mut ffi::rd_kafka_event_t) -> Self;
}

impl<A: Answer> Asked<A> {
    /// # Safety
    /// `ask` puts the question whose answer `A` reads, on the queue that it is given.
    pub(in crate::kafka) unsafe fn new(
        client: &Arc<Client>,
        ask: impl FnOnce(*mut ffi::rd_kafka_queue_t),
    ) -> Option<Self> {
        // SAFETY: a live client; the queue is ours, and keeps what is asked of the client alive.
        let queue = NonNull::new(unsafe { ffi::rd_kafka_queue_new(client.ptr()) })?;
        ask(queue.as_ptr());
        Some(Self { queue, _client: Arc::clone(client), answer: PhantomData })
    }

    /// The answer, waited for so long; `None` while there is none.
    pub(in crate::kafka) fn answer(&self, wait: Duration) -> Option<Result<A, Error>> {
        // SAFETY: a live queue of ours; the event is ours, read while it lives and destroyed once.
        unsafe {
            let event = NonNull::new(ffi::rd_kafka_queue_poll(self.queue.as_ptr(), to_millis(wait)))?.as_ptr();
            let error = Code::of_event(event);
            let answer = if error == Code::NONE { Ok(A::read(event)) } else { Err(Error::of(error)) };
            ffi::rd_kafka_event_destroy(event);
            Some(answer)
        }
    }
}

impl<A> Drop for Asked<A> {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once, before its client; an answer that comes later is dropped by librdkafka.
        unsafe { ffi::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// For whom a log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) enum Reader {
    /// At the last stable offset.
    Committed,
    /// At the high watermark.
    Uncommitted,
}

/// Where logs end, of those partitions that could be asked.
pub(in crate::kafka) struct Ends(pub(in crate::kafka) Vec<(TopicPartition, Offset)>);

impl Ends {
    /// Asks the leaders of these partitions; they have so long to answer.
    pub(in crate::kafka) fn ask(
        client: &Arc<Client>,
        reader: Reader,
        partitions: impl IntoIterator<Item = TopicPartition>,
        within: Duration,
    ) -> Option<Asked<Self>> {
        let latest = ffi::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_LATEST as Offset;
        let list = PartitionList::of(partitions.into_iter().map(|partition| (partition, latest)));
        // SAFETY: a live client; list and options live until the call returns, which copies them.
        unsafe {
            Asked::new(client, |queue| {
                let options = Options::new(client, ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS, within);
                let level = match reader {
                    Reader::Committed => ffi::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED,
                    Reader::Uncommitted => ffi::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED,
                };
                let refused = ffi::rd_kafka_AdminOptions_set_isolation_level(options.0, level);
                // (null, which is fine to destroy: the question has this option)
                ffi::rd_kafka_error_destroy(refused);
                ffi::rd_kafka_ListOffsets(client.ptr(), list.ptr(), options.0, queue);
            })
        }
    }
}

impl Answer for Ends {
    unsafe fn read(event: *mut ffi::rd_kafka_event_t) -> Self {
        let mut count = 0;
        // SAFETY: the caller's promise; librdkafka's array has the length that it writes beside it, and what it points
        // at lives as long as the event.
        unsafe {
            let result = ffi::rd_kafka_event_ListOffsets_result(event);
            let infos = ffi::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
            let info = |nth| topic_partition(ffi::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(nth)));
            Self((0..if infos.is_null() { 0 } else { count }).filter_map(info).collect())
        }
    }
}

/// Options of one question.
pub(in crate::kafka) struct Options(*mut ffi::rd_kafka_AdminOptions_t);

impl Options {
    /// With so long for an answer.
    pub(in crate::kafka) fn new(client: &Handle, question: ffi::rd_kafka_admin_op_t, within: Duration) -> Self {
        // SAFETY: a live client; a fresh object of ours. No words are asked for where it is refused.
        unsafe {
            let options = ffi::rd_kafka_AdminOptions_new(client.ptr(), question);
            let _: Known =
                ffi::rd_kafka_AdminOptions_set_request_timeout(options, to_millis(within) as c_int, ptr::null_mut(), 0);
            Self(options)
        }
    }
}

impl Options {
    /// For the call that asks.
    pub(in crate::kafka) fn ptr(&self) -> *mut ffi::rd_kafka_AdminOptions_t {
        self.0
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once.
        unsafe { ffi::rd_kafka_AdminOptions_destroy(self.0) }
    }
}
