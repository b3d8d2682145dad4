//! Lists of partitions with offsets, and who we are in a group.

use std::ptr;

use super::{Code, Error, bytes, c_topic, ffi, read_code, text};
use crate::model::{Offset, TopicName, TopicPartition};

/// # Safety
/// `list` is null or a live list.
pub(super) unsafe fn first_error(list: *const ffi::rd_kafka_topic_partition_list_t) -> Code {
    if list.is_null() {
        return Code::NONE;
    }
    // SAFETY: the caller's promise; `elems` has `cnt` elements.
    unsafe {
        (0..usize::try_from((*list).cnt).unwrap_or(0))
            .map(|nth| read_code(&raw const (*(*list).elems.add(nth)).err))
            .find(|code| *code != Code::NONE)
            .unwrap_or(Code::NONE)
    }
}

/// A list of partitions with offsets. Lives for one call: a list that outlives it can block the client's destruction.
pub(in crate::kafka) struct PartitionList(pub(super) *mut ffi::rd_kafka_topic_partition_list_t);

// SAFETY: plain memory of its own, and what is shared is only read.
unsafe impl Send for PartitionList {}
// SAFETY: as above.
unsafe impl Sync for PartitionList {}

impl PartitionList {
    pub(in crate::kafka) fn of(partitions: impl IntoIterator<Item = (TopicPartition, Offset)>) -> Self {
        let partitions: Vec<_> = partitions.into_iter().collect();
        Self::new(partitions.iter().map(|(at, offset)| (at.topic.as_str(), at.partition, *offset)))
    }

    pub(super) fn new<'a>(partitions: impl IntoIterator<Item = (&'a str, i32, Offset)>) -> Self {
        // SAFETY: a fresh list, which grows by itself; `add` copies the name and returns a live element.
        unsafe {
            let list = Self(ffi::rd_kafka_topic_partition_list_new(16));
            for (topic, partition, offset) in partitions {
                let topic = c_topic(topic);
                let element = ffi::rd_kafka_topic_partition_list_add(list.0, topic.as_ptr(), partition);
                (*element).offset = offset;
            }
            list
        }
    }

    /// As `of`, with a note to be committed beside each offset, where `note` has one for the topic.
    pub(in crate::kafka) fn with_notes<'a>(
        partitions: impl IntoIterator<Item = (&'a TopicPartition, &'a Offset)>,
        note: impl Fn(&TopicName) -> Option<&'a str>,
    ) -> Self {
        let partitions: Vec<_> = partitions.into_iter().collect();
        let list = Self::new(partitions.iter().map(|(at, offset)| (at.topic.as_str(), at.partition, **offset)));
        for (nth, (at, _)) in partitions.iter().enumerate() {
            let Some(note) = note(&at.topic).filter(|note| !note.is_empty()) else { continue };
            // SAFETY: the list has an element for each partition, in order; it frees the copy with its own allocator,
            // from which the copy comes.
            unsafe {
                let copy = ffi::rd_kafka_mem_malloc(ptr::null_mut(), note.len());
                ptr::copy_nonoverlapping(note.as_ptr(), copy.cast(), note.len());
                let element = (*list.0).elems.add(nth);
                (*element).metadata = copy;
                (*element).metadata_size = note.len();
            }
        }
        list
    }

    /// The note beside each offset, in order.
    pub(super) fn notes(&self) -> Vec<String> {
        // SAFETY: a live list; `elems` has `cnt` elements, each with `metadata_size` bytes of metadata.
        unsafe {
            (0..usize::try_from((*self.0).cnt).unwrap_or(0))
                .map(|nth| {
                    let element = (*self.0).elems.add(nth);
                    let note = bytes((*element).metadata, (*element).metadata_size).unwrap_or_default();
                    String::from_utf8_lossy(note).into_owned()
                })
                .collect()
        }
    }

    /// What a call has written: each partition's offset, or the first partition's error.
    pub(super) fn offsets(&self) -> Result<Vec<(TopicPartition, Offset)>, Error> {
        // SAFETY: a live list of ours.
        unsafe { first_error(self.0).check()? };
        // SAFETY: as above.
        Ok(unsafe { elements(self.0) })
    }
}

impl PartitionList {
    /// Good until the list is dropped.
    pub(in crate::kafka) fn ptr(&self) -> *mut ffi::rd_kafka_topic_partition_list_t {
        self.0
    }
}

impl Drop for PartitionList {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once.
        unsafe { ffi::rd_kafka_topic_partition_list_destroy(self.0) }
    }
}

/// # Safety
/// `list` is null or a live list.
pub(super) unsafe fn elements(list: *const ffi::rd_kafka_topic_partition_list_t) -> Vec<(TopicPartition, Offset)> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise; `elems` has `cnt` elements with NUL-terminated names.
    unsafe {
        (0..usize::try_from((*list).cnt).unwrap_or(0))
            .filter_map(|nth| {
                let element = (*list).elems.add(nth);
                let topic = TopicName::new(text((*element).topic)).ok()?;
                Some((TopicPartition { topic, partition: (*element).partition }, (*element).offset))
            })
            .collect()
    }
}

/// The offset that a call has found for a partition; `None` where it failed.
///
/// # Safety
/// `element` is live, with a NUL-terminated name.
pub(in crate::kafka) unsafe fn topic_partition(
    element: *const ffi::rd_kafka_topic_partition_t,
) -> Option<(TopicPartition, Offset)> {
    // SAFETY: the caller's promise.
    unsafe {
        let topic = TopicName::new(text((*element).topic)).ok()?;
        let found = (TopicPartition { topic, partition: (*element).partition }, (*element).offset);
        (read_code(&raw const (*element).err) == Code::NONE).then_some(found)
    }
}

/// A member's identity in its group, with which the broker fences.
pub(in crate::kafka) struct GroupMetadata(pub(super) *mut ffi::rd_kafka_consumer_group_metadata_t);

// SAFETY: plain memory of its own, which nobody writes to.
unsafe impl Send for GroupMetadata {}
// SAFETY: as above.
unsafe impl Sync for GroupMetadata {}

impl GroupMetadata {
    /// Whether it names a member. Without one the broker fences nothing: never to be sent.
    pub(in crate::kafka) fn is_member(&self) -> bool {
        // SAFETY: ours and live; the text is its own.
        unsafe { ffi::rd_kafka_consumer_group_metadata_generation_id(self.0) >= 0 && !self.member_id().is_empty() }
    }
    /// What the group calls us; empty outside of it.
    pub(in crate::kafka) fn member_id(&self) -> String {
        // SAFETY: ours and live; the text is its own.
        text(unsafe { ffi::rd_kafka_consumer_group_metadata_member_id(self.0) })
    }
}

impl Drop for GroupMetadata {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once.
        unsafe { ffi::rd_kafka_consumer_group_metadata_destroy(self.0) }
    }
}
