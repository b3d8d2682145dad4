//! The calls on a client's handle: transactions, the group, offsets, the cluster's metadata.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;
use std::time::Duration;

use super::admin::Options;
use super::partitions::first_error;
use super::{
    Code, Error, GroupMetadata, Handle, Known, OFFSET_INVALID, PartitionList, Topic, c, c_topic, ffi, read_code, slice,
    text, to_millis,
};
use crate::model::{Offset, TopicName, TopicPartition};

/// Messages that are thrown away to find what a rebalance asks.
const CLOSE_MESSAGES: usize = 100_000;

impl Handle {
    // Transactions.

    pub(in crate::kafka) fn init_transactions(&self, wait: Duration) -> Result<(), Error> {
        // SAFETY: a live handle; so in all calls below.
        Error::take(unsafe { ffi::rd_kafka_init_transactions(self.ptr(), to_millis(wait)) })
    }
    pub(in crate::kafka) fn begin_transaction(&self) -> Result<(), Error> {
        // SAFETY: see above.
        Error::take(unsafe { ffi::rd_kafka_begin_transaction(self.ptr()) })
    }
    pub(in crate::kafka) fn send_offsets(
        &self,
        offsets: &PartitionList,
        group: &GroupMetadata,
        wait: Duration,
    ) -> Result<(), Error> {
        // SAFETY: see above; both are live and only read.
        Error::take(unsafe {
            ffi::rd_kafka_send_offsets_to_transaction(self.ptr(), offsets.0, group.0, to_millis(wait))
        })
    }
    pub(in crate::kafka) fn commit_transaction(&self, wait: Duration) -> Result<(), Error> {
        // SAFETY: see above.
        Error::take(unsafe { ffi::rd_kafka_commit_transaction(self.ptr(), to_millis(wait)) })
    }
    pub(in crate::kafka) fn abort_transaction(&self, wait: Duration) -> Result<(), Error> {
        // SAFETY: see above.
        Error::take(unsafe { ffi::rd_kafka_abort_transaction(self.ptr(), to_millis(wait)) })
    }
    pub(super) fn flush(&self, wait: Duration) -> bool {
        // SAFETY: see above.
        unsafe { ffi::rd_kafka_flush(self.ptr(), to_millis(wait)) == Known::RD_KAFKA_RESP_ERR_NO_ERROR }
    }

    /// Messages that are not acknowledged, and what callbacks are to be told.
    pub(super) fn outstanding(&self) -> c_int {
        // SAFETY: see above.
        unsafe { ffi::rd_kafka_outq_len(self.ptr()) }
    }

    // Group membership.

    pub(in crate::kafka) fn subscribe(&self, topics: &[TopicName]) -> Result<(), Error> {
        let list = PartitionList::new(topics.iter().map(|topic| (topic.as_str(), -1, OFFSET_INVALID)));
        // SAFETY: see above; the list is copied.
        Code::from(unsafe { ffi::rd_kafka_subscribe(self.ptr(), list.0) }).check()
    }
    pub(in crate::kafka) fn unsubscribe(&self) -> Result<(), Error> {
        // SAFETY: see above.
        Code::from(unsafe { ffi::rd_kafka_unsubscribe(self.ptr()) }).check()
    }
    /// Whether the group's protocol moves partitions one by one.
    pub(in crate::kafka) fn is_cooperative(&self) -> bool {
        // SAFETY: see above; answers with a static text, or null without a group.
        let protocol = unsafe { ffi::rd_kafka_rebalance_protocol(self.ptr()) };
        text(protocol) == "COOPERATIVE"
    }
    pub(in crate::kafka) fn assign(&self, partitions: &PartitionList) -> Result<(), Error> {
        // SAFETY: see above; the list is copied.
        Code::from(unsafe { ffi::rd_kafka_assign(self.ptr(), partitions.0) }).check()
    }
    pub(in crate::kafka) fn unassign(&self) -> Result<(), Error> {
        // SAFETY: see above; null means none.
        Code::from(unsafe { ffi::rd_kafka_assign(self.ptr(), ptr::null()) }).check()
    }
    pub(in crate::kafka) fn incremental_assign(&self, partitions: &PartitionList) -> Result<(), Error> {
        // SAFETY: see above; the list is copied.
        Error::take(unsafe { ffi::rd_kafka_incremental_assign(self.ptr(), partitions.0) })
    }
    pub(in crate::kafka) fn incremental_unassign(&self, partitions: &PartitionList) -> Result<(), Error> {
        // SAFETY: see above; the list is copied.
        Error::take(unsafe { ffi::rd_kafka_incremental_unassign(self.ptr(), partitions.0) })
    }
    pub(in crate::kafka) fn pause(&self, partitions: &PartitionList) -> Result<(), Error> {
        // SAFETY: see above; the list's error fields are written.
        Code::from(unsafe { ffi::rd_kafka_pause_partitions(self.ptr(), partitions.0) }).check()
    }
    pub(in crate::kafka) fn resume(&self, partitions: &PartitionList) -> Result<(), Error> {
        // SAFETY: see above; the list's error fields are written.
        Code::from(unsafe { ffi::rd_kafka_resume_partitions(self.ptr(), partitions.0) }).check()
    }
    /// Fetches a partition from `offset` on. `_STATE`: it is not being fetched at all.
    pub(in crate::kafka) fn seek(
        &self,
        partition: &TopicPartition,
        offset: Offset,
        wait: Duration,
    ) -> Result<(), Error> {
        let list = PartitionList::of([(partition.clone(), offset)]);
        // SAFETY: see above; the list's error fields are written.
        Error::take(unsafe { ffi::rd_kafka_seek_partitions(self.ptr(), list.0, to_millis(wait)) })?;
        list.offsets().map(drop)
    }
    /// For each partition the offset behind all that consuming has handed out or passed, marks of transactions included; a
    /// negative number where that is nothing yet. Asks nobody.
    pub(in crate::kafka) fn positions(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Vec<(TopicPartition, Offset)> {
        let list = PartitionList::of(partitions.into_iter().map(|partition| (partition, OFFSET_INVALID)));
        // SAFETY: see above; offsets and errors of the list are written.
        Code::from(unsafe { ffi::rd_kafka_position(self.ptr(), list.0) })
            .check()
            .and_then(|()| list.offsets())
            .unwrap_or_default()
    }
    /// Who we are in the group now.
    pub(in crate::kafka) fn group_metadata(&self) -> Option<GroupMetadata> {
        // SAFETY: see above; the object is ours.
        let metadata = unsafe { ffi::rd_kafka_consumer_group_metadata(self.ptr()) };
        (!metadata.is_null()).then_some(GroupMetadata(metadata))
    }
    /// Leaves the group (a dynamic member) and ends fetching. Blocks, and serves the last rebalance meanwhile.
    pub(in crate::kafka) fn close_consumer(&self) -> Result<(), Error> {
        // SAFETY: see above; a message is ours, and destroyed once.
        unsafe {
            let closed = Code::from(ffi::rd_kafka_consumer_close(self.ptr())).check();
            // A client that is fenced is not closed. What the group still wants of it would keep it from ending.
            if self.fatal_error().is_some() {
                for _ in 0..CLOSE_MESSAGES {
                    let message = ffi::rd_kafka_consumer_poll(self.ptr(), 0);
                    if message.is_null() {
                        break;
                    }
                    ffi::rd_kafka_message_destroy(message);
                }
            }
            closed
        }
    }

    // Offsets.

    /// What is committed for these partitions; waits while a transaction on them is pending.
    pub(in crate::kafka) fn committed(
        &self,
        partitions: impl IntoIterator<Item = TopicPartition>,
        wait: Duration,
    ) -> Result<Vec<Committed>, Error> {
        let list = PartitionList::of(partitions.into_iter().map(|partition| (partition, OFFSET_INVALID)));
        // SAFETY: see above; offsets, notes and errors of the list are written.
        Code::from(unsafe { ffi::rd_kafka_committed(self.ptr(), list.0, to_millis(wait)) }).check()?;
        let notes = list.notes();
        let offsets = list.offsets()?;
        Ok(offsets.into_iter().zip(notes).map(|((at, offset), note)| Committed { at, offset, note }).collect())
    }
    /// Commits and waits for the group coordinator's answer. `_TIMED_OUT` leaves the outcome unknown.
    pub(in crate::kafka) fn commit_offsets(&self, offsets: &PartitionList, wait: Duration) -> Result<(), Error> {
        // SAFETY: see above. The queue and the event are ours and are destroyed here; if the answer comes after the
        // queue is gone, librdkafka drops it.
        unsafe {
            let queue = ffi::rd_kafka_queue_new(self.ptr());
            let code = ffi::rd_kafka_commit_queue(self.ptr(), offsets.0, queue, None, ptr::null_mut());
            let mut result = Code::from(code);
            if result == Code::NONE {
                let event = ffi::rd_kafka_queue_poll(queue, to_millis(wait));
                result = if event.is_null() {
                    Code::from(Known::RD_KAFKA_RESP_ERR__TIMED_OUT)
                } else {
                    let whole = Code::from(ffi::rd_kafka_event_error(event));
                    let list = ffi::rd_kafka_event_topic_partition_list(event);
                    let result = if whole == Code::NONE { first_error(list) } else { whole };
                    ffi::rd_kafka_event_destroy(event);
                    result
                };
            }
            ffi::rd_kafka_queue_destroy(queue);
            result.check()
        }
    }
    /// For each partition the offset of the first record at or after its time (given in place of an offset), or -1.
    pub(in crate::kafka) fn offsets_for_times(
        &self,
        times: impl IntoIterator<Item = (TopicPartition, i64)>,
        wait: Duration,
    ) -> Result<Vec<(TopicPartition, Offset)>, Error> {
        let list = PartitionList::of(times);
        // SAFETY: see above; offsets and errors of the list are written.
        Code::from(unsafe { ffi::rd_kafka_offsets_for_times(self.ptr(), list.0, to_millis(wait)) }).check()?;
        list.offsets()
    }
    /// The first offset that the partition's log holds and the next one to be read at its end.
    pub(in crate::kafka) fn watermarks(
        &self,
        partition: &TopicPartition,
        wait: Duration,
    ) -> Result<(Offset, Offset), Error> {
        let topic = c_topic(partition.topic.as_str());
        let (mut low, mut high) = (0, 0);
        // SAFETY: see above; valid text, two numbers written.
        let code = unsafe {
            ffi::rd_kafka_query_watermark_offsets(
                self.ptr(),
                topic.as_ptr(),
                partition.partition,
                &raw mut low,
                &raw mut high,
                to_millis(wait),
            )
        };
        Code::from(code).check().map(|()| (low, high))
    }

    /// The ids of those of these topics that exist. A topic that is deleted and created again has another.
    pub(in crate::kafka) fn topic_ids(
        &self,
        topics: &[TopicName],
        wait: Duration,
    ) -> Result<BTreeMap<TopicName, String>, Error> {
        let names: Vec<CString> = topics.iter().map(|topic| c_topic(topic.as_str())).collect();
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: see above; the collection copies the names. Queue, collection and event are ours, destroyed once; an
        // answer that comes after the queue is gone is dropped. What is read of the event is copied.
        unsafe {
            let queue = ffi::rd_kafka_queue_new(self.ptr());
            let collection = ffi::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            // (one that nobody waits for any more would have the client connect again and again, without a pause, for as long
            // as the broker is gone)
            let options = Options::new(self, ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, wait);
            ffi::rd_kafka_DescribeTopics(self.ptr(), collection, options.ptr(), queue);
            ffi::rd_kafka_TopicCollection_destroy(collection);
            let event = ffi::rd_kafka_queue_poll(queue, to_millis(wait));
            let result = if event.is_null() {
                Err(Error::of(Known::RD_KAFKA_RESP_ERR__TIMED_OUT.into()))
            } else {
                let found = Code::from(ffi::rd_kafka_event_error(event)).check().map(|()| described_ids(event));
                ffi::rd_kafka_event_destroy(event);
                found
            };
            ffi::rd_kafka_queue_destroy(queue);
            result
        }
    }

    /// Whether the cluster is librdkafka's own mock; known from the first answer of the cluster on.
    pub(in crate::kafka) fn is_mock_cluster(&self) -> bool {
        // SAFETY: see above; the id is a string of the client's allocator, ours, read and freed once.
        unsafe {
            let id = ffi::rd_kafka_clusterid(self.ptr(), 0);
            if id.is_null() {
                return false;
            }
            let is_mock = CStr::from_ptr(id).to_bytes().starts_with(b"mockCluster");
            ffi::rd_kafka_mem_free(self.ptr(), id.cast());
            is_mock
        }
    }

    /// Asks the cluster about all topics, or about one.
    pub(in crate::kafka) fn metadata(&self, only: Option<&Topic>, wait: Duration) -> Result<Metadata, Error> {
        let mut metadata = ptr::null();
        let all = c_int::from(only.is_none());
        let only = only.map_or(ptr::null_mut(), |topic| topic.topic.as_ptr());
        // SAFETY: see above; `metadata` is written on success, is then ours, is copied and destroyed once.
        unsafe {
            Code::from(ffi::rd_kafka_metadata(self.ptr(), all, only, &raw mut metadata, to_millis(wait))).check()?;
            let copied = copy_metadata(&*metadata);
            ffi::rd_kafka_metadata_destroy(metadata);
            Ok(copied)
        }
    }
}

/// What a group has committed for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kafka) struct Committed {
    pub(in crate::kafka) at: TopicPartition,
    /// The next offset to read, or [`OFFSET_INVALID`].
    pub(in crate::kafka) offset: Offset,
    /// What was written beside it, if anything.
    pub(in crate::kafka) note: String,
}

/// A cluster's metadata, copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kafka) struct Metadata {
    pub(in crate::kafka) brokers: Vec<String>,
    /// Name, partitions, error.
    pub(in crate::kafka) topics: Vec<(String, Vec<PartitionMetadata>, Code)>,
}

/// One partition of a topic, as the cluster knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) struct PartitionMetadata {
    pub(in crate::kafka) leader: i32,
    pub(in crate::kafka) replicas: usize,
    pub(in crate::kafka) in_sync: usize,
}

/// # Safety
/// `metadata` is as librdkafka gave it.
unsafe fn copy_metadata(metadata: &ffi::rd_kafka_metadata) -> Metadata {
    // SAFETY: librdkafka's arrays have the lengths that stand beside them; texts are NUL-terminated.
    unsafe {
        let brokers = slice(metadata.brokers, metadata.broker_cnt)
            .iter()
            .map(|broker| format!("{}:{}", text(broker.host), broker.port))
            .collect();
        let partition = |partition: &ffi::rd_kafka_metadata_partition| PartitionMetadata {
            leader: partition.leader,
            replicas: usize::try_from(partition.replica_cnt).unwrap_or(0),
            in_sync: usize::try_from(partition.isr_cnt).unwrap_or(0),
        };
        let topics = (0..usize::try_from(metadata.topic_cnt).unwrap_or(0)).map(|nth| {
            // By pointer: a reference would claim that `err` is a value of the binding's enum.
            let topic = metadata.topics.add(nth);
            let partitions = slice((*topic).partitions, (*topic).partition_cnt);
            (text((*topic).topic), partitions.iter().map(partition).collect(), read_code(&raw const (*topic).err))
        });
        Metadata { brokers, topics: topics.collect() }
    }
}

/// # Safety
/// `event` is a live answer to a request to describe topics.
unsafe fn described_ids(event: *mut ffi::rd_kafka_event_t) -> BTreeMap<TopicName, String> {
    // SAFETY: the caller's promise; librdkafka's array has the length that it writes beside it.
    unsafe {
        let mut count = 0;
        let topics = ffi::rd_kafka_DescribeTopics_result_topics(
            ffi::rd_kafka_event_DescribeTopics_result(event),
            &raw mut count,
        );
        (0..if topics.is_null() { 0 } else { count })
            .filter_map(|nth| {
                let topic = *topics.add(nth);
                let error = ffi::rd_kafka_TopicDescription_error(topic);
                if !error.is_null() && c::error_code(error) != 0 {
                    return None;
                }
                let id = text(ffi::rd_kafka_Uuid_base64str(ffi::rd_kafka_TopicDescription_topic_id(topic)));
                Some((TopicName::new(text(ffi::rd_kafka_TopicDescription_name(topic))).ok()?, id))
            })
            .collect()
    }
}
