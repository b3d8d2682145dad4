//! Who is in a group and what each has, asked by librdkafka's oldest call, which asks every broker: the newer one, which asks the
//! coordinator, ends the process when that moves or does not answer in time (librdkafka 4605).
#![expect(unsafe_code, reason = "librdkafka's lists of groups are C")]

use std::ffi::CString;
use std::ptr;
use std::time::Duration;

use super::{Code, Error, Handle, Known, ffi, slice, text, to_millis};
use crate::model::{GroupId, TopicName, TopicPartition};

/// A group, as its coordinator tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kafka) struct Group {
    /// Its partitions are shared out, and it is not about to share them out anew.
    pub(in crate::kafka) is_stable: bool,
    pub(in crate::kafka) members: Vec<Member>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kafka) struct Member {
    /// What the group calls it.
    pub(in crate::kafka) id: String,
    pub(in crate::kafka) client_id: String,
    pub(in crate::kafka) host: String,
    /// What it has, where the group is stable.
    pub(in crate::kafka) owned: Vec<TopicPartition>,
}

impl Handle {
    /// `None` where no broker knows the group as one of the `classic` protocol, or none that does has answered; an error where nobody
    /// has.
    pub(in crate::kafka) fn group(&self, group: &GroupId, wait: Duration) -> Result<Option<Group>, Error> {
        let name = CString::new(group.as_str()).map_err(|_| Error::of(Known::RD_KAFKA_RESP_ERR__INVALID_ARG.into()))?;
        let mut list = ptr::null();
        // SAFETY: a live client, valid text; `list` is written on success, is then ours, is copied and destroyed once.
        unsafe {
            let code = ffi::rd_kafka_list_groups(self.ptr(), name.as_ptr(), &raw mut list, to_millis(wait));
            // (one is written beside a code, too, where some brokers have not answered)
            if list.is_null() {
                return Code::from(code).check().map(|()| None);
            }
            let found = slice((*list).groups, (*list).group_cnt)
                .iter()
                .find(|group| group.member_cnt > 0)
                .map(|group| copied(group));
            ffi::rd_kafka_group_list_destroy(list);
            Ok(found)
        }
    }
}

/// # Safety
/// `group` is one of a live list: it has as many members as it says, and an assignment as many bytes.
unsafe fn copied(group: &ffi::rd_kafka_group_info) -> Group {
    // SAFETY: the caller's promise.
    unsafe {
        let member = |of: &ffi::rd_kafka_group_member_info| Member {
            id: text(of.member_id),
            client_id: text(of.client_id),
            host: text(of.client_host),
            owned: assignment(slice(of.member_assignment.cast(), of.member_assignment_size)),
        };
        let members = slice(group.members, group.member_cnt).iter().map(member).collect();
        Group { is_stable: text(group.state) == "Stable", members }
    }
}

/// The partitions in a member's assignment, as the consumers' protocol writes them (`ConsumerProtocolAssignment`); none of one that is
/// written otherwise.
fn assignment(bytes: &[u8]) -> Vec<TopicPartition> {
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
        bytes.split_off(..count)
    }
    fn number(bytes: &mut &[u8]) -> Option<i32> {
        Some(i32::from_be_bytes(take(bytes, 4)?.try_into().ok()?))
    }
    fn partitions(mut bytes: &[u8]) -> Option<Vec<TopicPartition>> {
        let mut found = Vec::new();
        let _version = take(&mut bytes, 2)?;
        for _ in 0..number(&mut bytes)? {
            let length = u16::from_be_bytes(take(&mut bytes, 2)?.try_into().ok()?);
            let topic = TopicName::new(std::str::from_utf8(take(&mut bytes, length.into())?).ok()?).ok()?;
            for _ in 0..number(&mut bytes)? {
                found.push(TopicPartition { topic: topic.clone(), partition: number(&mut bytes)? });
            }
        }
        Some(found)
    }
    partitions(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_is_read_as_the_consumers_protocol_writes_it() {
        let written =
            b"\0\x01\0\0\0\x02\0\x01a\0\0\0\x02\0\0\0\0\0\0\0\x07\0\x02bc\0\0\0\x01\0\0\0\x03\xff\xff\xff\xff";
        let at = |topic: &str, partition| TopicPartition { topic: TopicName::new(topic).unwrap(), partition };
        assert_eq!(assignment(written), [at("a", 0), at("a", 7), at("bc", 3)]);
        for cut in 0..written.len() - 4 {
            assert_eq!(assignment(&written[..cut]), [], "{cut}");
        }
    }
}
