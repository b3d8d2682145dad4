//! librdkafka's mock cluster.

use std::ffi::{CString, c_int};
use std::ptr::NonNull;
use std::sync::Arc;

use super::{Client, Code, Error, Known, ffi, text};

/// A mock cluster, and the client that runs it.
pub(in crate::kafka) struct Mock {
    cluster: NonNull<ffi::rd_kafka_mock_cluster_t>,
    /// Dropped after the cluster.
    _client: Arc<Client>,
}

// SAFETY: the calls below take the cluster's own lock, or run on its own thread.
unsafe impl Send for Mock {}
// SAFETY: as above.
unsafe impl Sync for Mock {}

impl Mock {
    pub(in crate::kafka) fn new(client: Arc<Client>, brokers: u16) -> Result<Self, String> {
        // SAFETY: a live client that the cluster keeps.
        let cluster = unsafe { ffi::rd_kafka_mock_cluster_new(client.ptr(), c_int::from(brokers)) };
        let cluster = NonNull::new(cluster).ok_or("the mock cluster cannot be started")?;
        // SAFETY: a live cluster; so in all calls below. By default a group's first members wait 3 s for others.
        unsafe { ffi::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster.as_ptr(), 0) };
        Ok(Self { cluster, _client: client })
    }
    pub(in crate::kafka) fn bootstrap(&self) -> String {
        // SAFETY: see above; the text is the cluster's.
        text(unsafe { ffi::rd_kafka_mock_cluster_bootstraps(self.cluster.as_ptr()) })
    }
    pub(in crate::kafka) fn create_topic(&self, name: &str, partitions: i32) -> Result<(), Error> {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: see above; a valid text, which is copied.
        Code::from(unsafe { ffi::rd_kafka_mock_topic_create(self.cluster.as_ptr(), name.as_ptr(), partitions, 1) })
            .check()
    }
    pub(in crate::kafka) fn fail_next(&self, api_key: i16, codes: &[i16]) {
        let codes: Vec<Known> = codes.iter().map(|code| Code(c_int::from(*code)).known()).collect();
        // SAFETY: see above; `codes` is copied with its length.
        unsafe {
            ffi::rd_kafka_mock_push_request_errors_array(self.cluster.as_ptr(), api_key, codes.len(), codes.as_ptr());
        }
    }
    pub(in crate::kafka) fn fail_no_more(&self, api_key: i16) {
        // SAFETY: see above.
        unsafe { ffi::rd_kafka_mock_clear_request_errors(self.cluster.as_ptr(), api_key) };
    }
    /// Starts to count requests, from nothing.
    pub(in crate::kafka) fn count_requests(&self) {
        // SAFETY: see above.
        unsafe {
            ffi::rd_kafka_mock_start_request_tracking(self.cluster.as_ptr());
            ffi::rd_kafka_mock_clear_requests(self.cluster.as_ptr());
        }
    }
    pub(in crate::kafka) fn requests(&self, api_key: i16) -> usize {
        let mut count = 0;
        // SAFETY: see above; the array is ours with its requests, read within its length, then destroyed once.
        unsafe {
            let requests = ffi::rd_kafka_mock_get_requests(self.cluster.as_ptr(), &raw mut count);
            let of_kind = |nth: &usize| ffi::rd_kafka_mock_request_api_key(*requests.add(*nth)) == api_key;
            let found = (0..count).filter(of_kind).count();
            ffi::rd_kafka_mock_request_destroy_array(requests, count);
            found
        }
    }
    pub(in crate::kafka) fn delay(&self, broker: i32, millis: i32) {
        // SAFETY: see above.
        unsafe { ffi::rd_kafka_mock_broker_set_rtt(self.cluster.as_ptr(), broker, millis) };
    }
    pub(in crate::kafka) fn set_up(&self, broker: i32, up: bool) {
        // SAFETY: see above.
        unsafe {
            match up {
                true => ffi::rd_kafka_mock_broker_set_up(self.cluster.as_ptr(), broker),
                false => ffi::rd_kafka_mock_broker_set_down(self.cluster.as_ptr(), broker),
            }
        };
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once, before the client that runs it.
        unsafe { ffi::rd_kafka_mock_cluster_destroy(self.cluster.as_ptr()) }
    }
}
