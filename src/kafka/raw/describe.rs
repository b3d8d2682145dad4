//! What the brokers tell of themselves, of topics and of groups: their settings, and what we may do with them. As `admin`, knows C's
//! rules of ownership and nothing of routes.
#![expect(unsafe_code, reason = "librdkafka's admin calls are C")]

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::sync::Arc;
use std::time::Duration;

use rdkafka_sys as ffi;

use super::admin::{Answer, Asked, Options};
use super::{Client, Code, Known, text, to_millis};

/// Settings of topics, or of a broker, by their names, each by its own name; the error's text where they cannot be had.
pub(in crate::kafka) struct Configs(pub(in crate::kafka) BTreeMap<String, Result<BTreeMap<String, String>, String>>);

impl Configs {
    /// Asks for the settings of these topics.
    pub(in crate::kafka) fn ask(client: &Arc<Client>, topics: &[String], within: Duration) -> Option<Asked<Self>> {
        Self::ask_about(ffi::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, client, topics, within)
    }

    /// Asks for the settings of one of the brokers.
    pub(in crate::kafka) fn ask_a_broker(client: &Arc<Client>, within: Duration) -> Option<Asked<Self>> {
        // SAFETY: a live client.
        let broker = unsafe { ffi::rd_kafka_controllerid(client.ptr(), to_millis(within)) };
        let name = (broker >= 0).then(|| broker.to_string())?;
        Self::ask_about(ffi::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_BROKER, client, &[name], within)
    }

    fn ask_about(
        kind: ffi::rd_kafka_ResourceType_t,
        client: &Arc<Client>,
        names: &[String],
        within: Duration,
    ) -> Option<Asked<Self>> {
        let names: Vec<CString> = names.iter().filter_map(|name| CString::new(name.as_str()).ok()).collect();
        // SAFETY: a live client; resources and options live until the call returns, which copies them, and are destroyed
        // once.
        unsafe {
            let mut resources: Vec<_> =
                names.iter().map(|name| ffi::rd_kafka_ConfigResource_new(kind, name.as_ptr())).collect();
            let asked = Asked::new(client, |queue| {
                let describe = ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS;
                let options = Options::new(client, describe, within);
                let count = resources.len();
                ffi::rd_kafka_DescribeConfigs(client.ptr(), resources.as_mut_ptr(), count, options.ptr(), queue);
            });
            ffi::rd_kafka_ConfigResource_destroy_array(resources.as_mut_ptr(), resources.len());
            asked
        }
    }
}

impl Answer for Configs {
    unsafe fn read(event: *mut ffi::rd_kafka_event_t) -> Self {
        let (mut count, mut found) = (0, BTreeMap::new());
        // SAFETY: the caller's promise; librdkafka's arrays have the lengths that it writes beside them, and what they
        // point at lives as long as the event.
        unsafe {
            let result = ffi::rd_kafka_event_DescribeConfigs_result(event);
            let resources = ffi::rd_kafka_DescribeConfigs_result_resources(result, &raw mut count);
            for nth in 0..if resources.is_null() { 0 } else { count } {
                let resource = *resources.add(nth);
                let error = ffi::rd_kafka_ConfigResource_error_string(resource);
                let settings = if error.is_null() { Ok(settings(resource)) } else { Err(text(error)) };
                found.insert(text(ffi::rd_kafka_ConfigResource_name(resource)), settings);
            }
        }
        Self(found)
    }
}

/// # Safety
/// `resource` is a live one.
unsafe fn settings(resource: *const ffi::rd_kafka_ConfigResource_t) -> BTreeMap<String, String> {
    let mut count = 0;
    // SAFETY: the caller's promise; as above.
    unsafe {
        let entries = ffi::rd_kafka_ConfigResource_configs(resource, &raw mut count);
        let entry = |nth| {
            let entry = *entries.add(nth);
            (text(ffi::rd_kafka_ConfigEntry_name(entry)), text(ffi::rd_kafka_ConfigEntry_value(entry)))
        };
        (0..if entries.is_null() { 0 } else { count }).map(entry).collect()
    }
}

/// What we may do with topics or groups, by their names: the numbers of Kafka's operations; none where it does not say.
pub(in crate::kafka) struct Rights(pub(in crate::kafka) BTreeMap<String, Option<Vec<u32>>>);

/// The rights to topics.
pub(in crate::kafka) struct TopicRights(pub(in crate::kafka) Rights);
/// The rights to groups.
pub(in crate::kafka) struct GroupRights(pub(in crate::kafka) Rights);

/// Asks for what we may do as well.
///
/// # Safety
/// `options` are live ones for a question that knows this option.
unsafe fn with_rights(options: &Options) {
    // SAFETY: the caller's promise; null, which is fine to destroy, where the option is taken.
    unsafe {
        ffi::rd_kafka_error_destroy(ffi::rd_kafka_AdminOptions_set_include_authorized_operations(options.ptr(), 1));
    }
}

impl TopicRights {
    /// Asks for the rights to these topics.
    pub(in crate::kafka) fn ask(client: &Arc<Client>, topics: &[String], within: Duration) -> Option<Asked<Self>> {
        let names: Vec<CString> = topics.iter().filter_map(|topic| CString::new(topic.as_str()).ok()).collect();
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: a live client; the collection copies the names, the call the collection, which is destroyed once.
        unsafe {
            Asked::new(client, |queue| {
                let describe = ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
                let options = Options::new(client, describe, within);
                with_rights(&options);
                let of = ffi::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
                ffi::rd_kafka_DescribeTopics(client.ptr(), of, options.ptr(), queue);
                ffi::rd_kafka_TopicCollection_destroy(of);
            })
        }
    }
}

impl Answer for TopicRights {
    unsafe fn read(event: *mut ffi::rd_kafka_event_t) -> Self {
        let (mut count, mut found) = (0, BTreeMap::new());
        // SAFETY: the caller's promise; as above.
        unsafe {
            let result = ffi::rd_kafka_event_DescribeTopics_result(event);
            let topics = ffi::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            for nth in 0..if topics.is_null() { 0 } else { count } {
                let (topic, mut rights) = (*topics.add(nth), 0);
                let list = ffi::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut rights);
                found.insert(text(ffi::rd_kafka_TopicDescription_name(topic)), numbers(list.cast(), rights));
            }
        }
        Self(Rights(found))
    }
}

impl GroupRights {
    /// Asks for the rights to these groups. One at a time: a group that may not be seen spoils no other's answer.
    pub(in crate::kafka) fn ask(client: &Arc<Client>, group: &str, within: Duration) -> Option<Asked<Self>> {
        let name = CString::new(group).ok()?;
        let mut names: [*const c_char; 1] = [name.as_ptr()];
        // SAFETY: a live client; names and options live until the call returns, which copies them.
        unsafe {
            Asked::new(client, |queue| {
                let describe = ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
                let options = Options::new(client, describe, within);
                with_rights(&options);
                ffi::rd_kafka_DescribeConsumerGroups(client.ptr(), names.as_mut_ptr(), 1, options.ptr(), queue);
            })
        }
    }
}

impl Answer for GroupRights {
    unsafe fn read(event: *mut ffi::rd_kafka_event_t) -> Self {
        let (mut count, mut found) = (0, BTreeMap::new());
        // SAFETY: the caller's promise; as above.
        unsafe {
            let result = ffi::rd_kafka_event_DescribeConsumerGroups_result(event);
            let groups = ffi::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
            for nth in 0..if groups.is_null() { 0 } else { count } {
                let (group, mut rights) = (*groups.add(nth), 0);
                let list = ffi::rd_kafka_ConsumerGroupDescription_authorized_operations(group, &raw mut rights);
                let error = ffi::rd_kafka_ConsumerGroupDescription_error(group);
                let denied = !error.is_null()
                    && Code::of_error(error) == Known::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED.into();
                let rights = if denied { Some(Vec::new()) } else { numbers(list.cast(), rights) };
                found.insert(text(ffi::rd_kafka_ConsumerGroupDescription_group_id(group)), rights);
            }
        }
        Self(Rights(found))
    }
}

/// # Safety
/// `list` is null or has `count` numbers.
unsafe fn numbers(list: *const u32, count: usize) -> Option<Vec<u32>> {
    // SAFETY: the caller's promise. Read as numbers: a newer broker may know operations that the enum does not.
    let numbers: Vec<u32> = (0..if list.is_null() { 0 } else { count }).map(|nth| unsafe { *list.add(nth) }).collect();
    // (an empty list is a broker that does not say)
    (!numbers.is_empty()).then_some(numbers)
}
