//! Small safe faces over librdkafka's C: a client and its callbacks, partition lists, fetched messages, errors. It
//! knows C's rules of ownership and nothing of routes, deliveries or policies. Read `session.rs` next.
//!
//! A client handle must outlive every message, topic and queue taken from it, and destroying it may block. So whoever
//! holds one of those holds an [`Arc`] of the [`Client`], and the last one out destroys it on a thread of its own.
#![expect(
    unsafe_code,
    reason = "librdkafka's batch calls and transactions are C; this file and `raw_admin.rs` speak it"
)]

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka_sys as ffi;
pub use rdkafka_sys::rd_kafka_resp_err_t as Known;

use crate::model::{Items, Offset, TopicName, TopicPartition};
use crate::pipeline::ports::Output;

use super::tokens::{Issuer, Token};

/// Logical offsets of librdkafka.
pub(super) const OFFSET_BEGINNING: Offset = -2;
/// No offset: in a list of committed offsets, nothing was committed; in an assignment, ask the group.
pub(super) const OFFSET_INVALID: Offset = -1001;

/// An error code of Kafka's or librdkafka's. Kept as a number: a newer broker may send one that the binding's enum lacks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(c_int);

impl Code {
    pub(super) const NONE: Self = Self(0);

    /// The code, or `UNKNOWN` where the binding has no name for it.
    pub fn known(self) -> Known {
        Known::try_from(self.0).unwrap_or(Known::RD_KAFKA_RESP_ERR_UNKNOWN)
    }
    /// Kafka's name of it, for example `COORDINATOR_NOT_AVAILABLE`.
    pub fn name(self) -> &'static str {
        // SAFETY: librdkafka answers every number with a static, NUL-terminated text.
        unsafe { CStr::from_ptr(c::err2name(self.0)) }.to_str().unwrap_or("UNKNOWN")
    }
    /// librdkafka's words for it.
    pub fn text(self) -> &'static str {
        // SAFETY: as for `name`.
        unsafe { CStr::from_ptr(c::err2str(self.0)) }.to_str().unwrap_or("unknown error")
    }
    /// # Safety
    /// `event` is a live event.
    pub(super) unsafe fn of_event(event: *mut ffi::rd_kafka_event_t) -> Self {
        // SAFETY: the caller's promise.
        Self::from(unsafe { ffi::rd_kafka_event_error(event) })
    }
    /// # Safety
    /// `error` is a live error object.
    pub(super) unsafe fn of_error(error: *const ffi::rd_kafka_error_t) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { c::error_code(error) })
    }
    fn check(self) -> Result<(), Error> {
        if self == Self::NONE { Ok(()) } else { Err(Error::of(self)) }
    }
}

impl From<Known> for Code {
    fn from(code: Known) -> Self {
        Self(code as c_int)
    }
}
impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What librdkafka says went wrong, with its flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What.
    pub code: Code,
    /// For people.
    pub message: String,
    /// The client instance is of no more use.
    pub fatal: bool,
    /// The same call may be made again.
    pub retriable: bool,
    /// The transaction must be aborted; the producer stays good.
    pub must_abort: bool,
}

impl Error {
    /// The code alone, without a flag.
    pub fn of(code: Code) -> Self {
        Self { code, message: code.text().to_owned(), fatal: false, retriable: false, must_abort: false }
    }

    /// Takes an error object over; `Ok` for null.
    fn take(error: *mut ffi::rd_kafka_error_t) -> Result<(), Self> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: not null, so a valid error object that is now ours; read, then destroyed once.
        unsafe {
            let taken = Self {
                code: Code(c::error_code(error)),
                message: text(ffi::rd_kafka_error_string(error)),
                fatal: ffi::rd_kafka_error_is_fatal(error) != 0,
                retriable: ffi::rd_kafka_error_is_retriable(error) != 0,
                must_abort: ffi::rd_kafka_error_txn_requires_abort(error) != 0,
            };
            ffi::rd_kafka_error_destroy(error);
            Err(taken)
        }
    }
}

/// The same functions as in the binding, with a plain number where the binding has an enum that cannot hold every value.
mod c {
    use super::{c_char, c_int, ffi};
    unsafe extern "C" {
        #[link_name = "rd_kafka_error_code"]
        pub(super) fn error_code(error: *const ffi::rd_kafka_error_t) -> c_int;
        #[link_name = "rd_kafka_err2name"]
        pub(super) fn err2name(code: c_int) -> *const c_char;
        #[link_name = "rd_kafka_err2str"]
        pub(super) fn err2str(code: c_int) -> *const c_char;
        /// Of OpenSSL, which librdkafka is linked with.
        #[link_name = "X509_verify_cert_error_string"]
        pub(super) fn certificate_error(number: std::ffi::c_long) -> *const c_char;
    }
}

/// Which half of the protocol a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Consumer,
    Producer,
}

/// What a client's callbacks leave behind, for its owner to take. Callbacks run on the thread that polls the client,
/// log lines on any.
pub(super) struct Context {
    /// Says in log lines whose client it is.
    label: String,
    errors: Mutex<Vec<Error>>,
    failures: Mutex<Failures>,
    rebalance: Option<Box<dyn Rebalance>>,
    statistics: Mutex<Option<String>>,
    throttled_ms: AtomicU64,
    logged: Mutex<HashMap<String, Logged>>,
    /// Who is asked for its tokens, if it needs any.
    issuer: Option<Issuer>,
    /// Why a broker's certificate was refused, last: librdkafka says only that it was.
    certificate: Mutex<Option<String>>,
    /// Why a connection failed, last, as it was logged: some failures are no errors to librdkafka.
    failed: Mutex<Option<String>>,
    /// What keeps the values in place that the client was lent; and how often that was let go.
    lent: Mutex<Vec<Arc<Items>>>,
    returned: AtomicU64,
}

/// Serves a consumer's rebalances, on the thread that polls it.
pub(super) trait Rebalance: Send + Sync {
    /// `Ok(true)`: these partitions are given; `Ok(false)`: taken; must be answered by an assign or unassign call.
    fn serve(&self, consumer: &Handle, change: Result<bool, Code>, partitions: Vec<TopicPartition>);
}

/// Outputs that were not delivered.
#[derive(Debug, Default)]
pub struct Failures {
    /// How many.
    pub count: u64,
    /// The first few of each code, as the client reported them.
    pub first: Vec<Failure>,
}

/// One output that was not delivered.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What `produce` was given.
    pub index: usize,
    /// Where it was to go.
    pub topic: Option<TopicName>,
    /// Why not.
    pub code: Code,
}

/// More than this, of one code, tells nobody more; a failed batch may hold 10,000 records.
const FAILURES_KEPT: usize = 16;

impl Context {
    pub(super) fn new(label: impl Into<String>, rebalance: Option<Box<dyn Rebalance>>) -> Self {
        Self {
            label: label.into(),
            errors: Mutex::default(),
            failures: Mutex::default(),
            rebalance,
            statistics: Mutex::default(),
            throttled_ms: AtomicU64::new(0),
            logged: Mutex::default(),
            issuer: None,
            certificate: Mutex::default(),
            failed: Mutex::default(),
            lent: Mutex::default(),
            returned: AtomicU64::new(0),
        }
    }
    /// The errors that the client reported since this was last asked; a fatal one is marked.
    pub(super) fn take_errors(&self) -> Vec<Error> {
        std::mem::take(&mut lock(&self.errors))
    }
    /// Why a connection failed, last. librdkafka repeats itself only every 30 s.
    pub(super) fn failed(&self) -> Option<String> {
        lock(&self.failed).clone()
    }
    /// Connections work again.
    pub(super) fn forget_failed(&self) {
        *lock(&self.failed) = None;
    }
    /// The client's latest statistics (JSON), if there were any since this was last asked.
    pub(super) fn take_statistics(&self) -> Option<String> {
        lock(&self.statistics).take()
    }
    /// For how long brokers have made the client wait since this was last asked.
    pub(super) fn take_throttled(&self) -> Duration {
        Duration::from_millis(self.throttled_ms.swap(0, Relaxed))
    }
    /// The delivery failures since this was last asked.
    pub(super) fn take_failures(&self) -> Failures {
        std::mem::take(&mut lock(&self.failures))
    }
}

/// A value that no panic can leave half changed: what a poisoned lock guards is still good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client, for as long as anything of it is in use.
pub(super) struct Client {
    handle: Handle,
    context: Arc<Context>,
}

/// The calls on a client's handle. Borrowed from a [`Client`], or from librdkafka during a callback.
pub(super) struct Handle(NonNull<ffi::rd_kafka_t>);

// SAFETY: librdkafka's handles are thread-safe; every call takes its own locks.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl std::ops::Deref for Client {
    type Target = Handle;
    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Client {
    /// Makes a client of these properties, a later one replacing an earlier one. It connects in the background.
    pub(super) fn new(kind: Kind, properties: &[(String, String)], context: Context) -> Result<Arc<Self>, String> {
        let (issuer, properties) = Issuer::of(properties)?;
        let conf = Conf::new(&properties)?;
        let context = Arc::new(Context { issuer, ..context });
        let mut text = [0; 512];
        // SAFETY: the callbacks are functions for the whole program, and `opaque` points into an `Arc` that is kept
        // until after the handle is destroyed. `rd_kafka_new` owns the configuration if it succeeds.
        unsafe {
            ffi::rd_kafka_conf_set_opaque(conf.0, Arc::as_ptr(&context).cast_mut().cast());
            ffi::rd_kafka_conf_set_log_cb(conf.0, Some(on_log));
            ffi::rd_kafka_conf_set_error_cb(conf.0, Some(on_error));
            ffi::rd_kafka_conf_set_stats_cb(conf.0, Some(on_statistics));
            ffi::rd_kafka_conf_set_throttle_cb(conf.0, Some(on_throttle));
            if context.rebalance.is_some() {
                ffi::rd_kafka_conf_set_rebalance_cb(conf.0, Some(on_rebalance));
            }
            if context.issuer.is_some() {
                ffi::rd_kafka_conf_set_oauthbearer_token_refresh_cb(conf.0, Some(on_token));
                ffi::rd_kafka_conf_enable_sasl_queue(conf.0, 1);
            }
            if verifies_certificates(&properties) {
                ffi::rd_kafka_conf_set_ssl_cert_verify_cb(conf.0, Some(on_certificate));
            }
            let kind = match kind {
                Kind::Consumer => ffi::rd_kafka_type_t::RD_KAFKA_CONSUMER,
                Kind::Producer => {
                    ffi::rd_kafka_conf_set_dr_msg_cb(conf.0, Some(on_delivery));
                    ffi::rd_kafka_type_t::RD_KAFKA_PRODUCER
                }
            };
            let handle = ffi::rd_kafka_new(kind, conf.0, text.as_mut_ptr(), text.len());
            let Some(handle) = NonNull::new(handle) else {
                return Err(self::text(text.as_ptr()));
            };
            std::mem::forget(conf);
            let client = Arc::new(Self { handle: Handle(handle), context });
            if client.context.issuer.is_some() {
                // On librdkafka's own thread, so that nobody waits for a token who has records to route.
                Error::take(ffi::rd_kafka_sasl_background_callbacks_enable(client.ptr()))
                    .map_err(|error| error.message)?;
            }
            Ok(client)
        }
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// Sends at once what waits for its linger time and waits for its acknowledgements; whether none is outstanding.
    pub(super) fn flush(&self, wait: Duration) -> bool {
        let is_done = self.handle.flush(wait);
        if is_done {
            self.context.take_back();
        }
        is_done
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let handle = Handle(self.handle.0);
        let context = Arc::clone(&self.context);
        // Destroying waits for threads and connections, and has been seen to hang: never on the caller's thread. If no
        // thread can be had, the handle leaks, which is the lesser evil.
        let destroy = move || {
            let handle = handle;
            // SAFETY: the last owner is gone, so nothing of this client is in use; destroyed once.
            unsafe {
                ffi::rd_kafka_destroy_flags(handle.0.as_ptr(), ffi::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE as c_int)
            }
            drop(context);
        };
        if std::thread::Builder::new().name("kafka-destroy".into()).spawn(destroy).is_err() {
            // (its callbacks, and what it was lent, leak with it)
            std::mem::forget(Arc::clone(&self.context));
        }
    }
}

fn verifies_certificates(properties: &[(String, String)]) -> bool {
    let mut written = properties.iter().rev().filter(|(name, _)| name == "enable.ssl.certificate.verification");
    written.next().is_none_or(|(_, value)| !matches!(value.as_str(), "false" | "f" | "0"))
}

/// A configuration that is not yet a client.
struct Conf(*mut ffi::rd_kafka_conf_t);

impl Conf {
    fn new(properties: &[(String, String)]) -> Result<Self, String> {
        // SAFETY: returns a fresh configuration.
        let conf = Self(unsafe { ffi::rd_kafka_conf_new() });
        for (name, value) in properties {
            conf.set(name, value)?;
        }
        Ok(conf)
    }

    fn set(&self, name: &str, value: &str) -> Result<(), String> {
        let (Ok(c_name), Ok(c_value)) = (CString::new(name), CString::new(value)) else {
            return Err(format!("`{name}` contains a NUL character"));
        };
        let mut text = [0; 512];
        // SAFETY: valid texts, and a buffer with its own length.
        let result =
            unsafe { ffi::rd_kafka_conf_set(self.0, c_name.as_ptr(), c_value.as_ptr(), text.as_mut_ptr(), text.len()) };
        match result {
            ffi::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK => Ok(()),
            ffi::rd_kafka_conf_res_t::RD_KAFKA_CONF_UNKNOWN | ffi::rd_kafka_conf_res_t::RD_KAFKA_CONF_INVALID => {
                Err(self::text(text.as_ptr()))
            }
        }
    }
}

impl Drop for Conf {
    fn drop(&mut self) {
        // SAFETY: ours until a client takes it, which forgets `self`.
        unsafe { ffi::rd_kafka_conf_destroy(self.0) }
    }
}

/// What librdkafka has against one property, if anything.
pub(super) fn check_property(name: &str, value: &str) -> Result<(), String> {
    Conf::new(&[])?.set(name, value)
}

impl Handle {
    pub(super) fn ptr(&self) -> *mut ffi::rd_kafka_t {
        self.0.as_ptr()
    }

    /// Serves callbacks of a producer (for a consumer, consuming does).
    pub(super) fn serve(&self, wait: Duration) {
        // SAFETY: a live handle.
        unsafe { ffi::rd_kafka_poll(self.ptr(), to_millis(wait)) };
    }

    /// The fatal error that the client is in, if it is.
    pub(super) fn fatal_error(&self) -> Option<Error> {
        let mut text = [0; 512];
        // SAFETY: a live handle, and a buffer with its own length.
        let code = unsafe { ffi::rd_kafka_fatal_error(self.ptr(), text.as_mut_ptr(), text.len()) };
        let code = Code::from(code);
        (code != Code::NONE).then(|| Error { message: self::text(text.as_ptr()), fatal: true, ..Error::of(code) })
    }

    // Transactions.

    pub(super) fn init_transactions(&self, wait: Duration) -> Result<(), Error> {
        // SAFETY: a live handle; so in all calls below.
        Error::take(unsafe { ffi::rd_kafka_init_transactions(self.ptr(), to_millis(wait)) })
    }
    pub(super) fn begin_transaction(&self) -> Result<(), Error> {
        // SAFETY: see above.
        Error::take(unsafe { ffi::rd_kafka_begin_transaction(self.ptr()) })
    }
    pub(super) fn send_offsets(
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
    pub(super) fn commit_transaction(&self, wait: Duration) -> Result<(), Error> {
        // SAFETY: see above.
        Error::take(unsafe { ffi::rd_kafka_commit_transaction(self.ptr(), to_millis(wait)) })
    }
    pub(super) fn abort_transaction(&self, wait: Duration) -> Result<(), Error> {
        // SAFETY: see above.
        Error::take(unsafe { ffi::rd_kafka_abort_transaction(self.ptr(), to_millis(wait)) })
    }
    fn flush(&self, wait: Duration) -> bool {
        // SAFETY: see above.
        unsafe { ffi::rd_kafka_flush(self.ptr(), to_millis(wait)) == Known::RD_KAFKA_RESP_ERR_NO_ERROR }
    }

    // Group membership.

    pub(super) fn subscribe(&self, topics: &[TopicName]) -> Result<(), Error> {
        let list = PartitionList::new(topics.iter().map(|topic| (topic.as_str(), -1, OFFSET_INVALID)));
        // SAFETY: see above; the list is copied.
        Code::from(unsafe { ffi::rd_kafka_subscribe(self.ptr(), list.0) }).check()
    }
    pub(super) fn unsubscribe(&self) -> Result<(), Error> {
        // SAFETY: see above.
        Code::from(unsafe { ffi::rd_kafka_unsubscribe(self.ptr()) }).check()
    }
    /// Whether the group's protocol moves partitions one by one.
    pub(super) fn is_cooperative(&self) -> bool {
        // SAFETY: see above; answers with a static text, or null without a group.
        let protocol = unsafe { ffi::rd_kafka_rebalance_protocol(self.ptr()) };
        text(protocol) == "COOPERATIVE"
    }
    pub(super) fn assign(&self, partitions: &PartitionList) -> Result<(), Error> {
        // SAFETY: see above; the list is copied.
        Code::from(unsafe { ffi::rd_kafka_assign(self.ptr(), partitions.0) }).check()
    }
    pub(super) fn unassign(&self) -> Result<(), Error> {
        // SAFETY: see above; null means none.
        Code::from(unsafe { ffi::rd_kafka_assign(self.ptr(), ptr::null()) }).check()
    }
    pub(super) fn incremental_assign(&self, partitions: &PartitionList) -> Result<(), Error> {
        // SAFETY: see above; the list is copied.
        Error::take(unsafe { ffi::rd_kafka_incremental_assign(self.ptr(), partitions.0) })
    }
    pub(super) fn incremental_unassign(&self, partitions: &PartitionList) -> Result<(), Error> {
        // SAFETY: see above; the list is copied.
        Error::take(unsafe { ffi::rd_kafka_incremental_unassign(self.ptr(), partitions.0) })
    }
    pub(super) fn pause(&self, partitions: &PartitionList) -> Result<(), Error> {
        // SAFETY: see above; the list's error fields are written.
        Code::from(unsafe { ffi::rd_kafka_pause_partitions(self.ptr(), partitions.0) }).check()
    }
    pub(super) fn resume(&self, partitions: &PartitionList) -> Result<(), Error> {
        // SAFETY: see above; the list's error fields are written.
        Code::from(unsafe { ffi::rd_kafka_resume_partitions(self.ptr(), partitions.0) }).check()
    }
    /// Fetches a partition from `offset` on. `_STATE`: it is not being fetched at all.
    pub(super) fn seek(&self, partition: &TopicPartition, offset: Offset, wait: Duration) -> Result<(), Error> {
        let list = PartitionList::of([(partition.clone(), offset)]);
        // SAFETY: see above; the list's error fields are written.
        Error::take(unsafe { ffi::rd_kafka_seek_partitions(self.ptr(), list.0, to_millis(wait)) })?;
        list.offsets().map(drop)
    }
    /// For each partition the offset behind all that consuming has handed out or passed, marks of transactions included; a
    /// negative number where that is nothing yet. Asks nobody.
    pub(super) fn positions(
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
    pub(super) fn group_metadata(&self) -> Option<GroupMetadata> {
        // SAFETY: see above; the object is ours.
        let metadata = unsafe { ffi::rd_kafka_consumer_group_metadata(self.ptr()) };
        (!metadata.is_null()).then_some(GroupMetadata(metadata))
    }
    /// Leaves the group (a dynamic member) and ends fetching. Blocks, and serves the last rebalance meanwhile.
    pub(super) fn close_consumer(&self) -> Result<(), Error> {
        // SAFETY: see above.
        Code::from(unsafe { ffi::rd_kafka_consumer_close(self.ptr()) }).check()
    }

    // Offsets.

    /// What is committed for these partitions; waits while a transaction on them is pending.
    pub(super) fn committed(
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
    pub(super) fn commit_offsets(&self, offsets: &PartitionList, wait: Duration) -> Result<(), Error> {
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
    pub(super) fn offsets_for_times(
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
    pub(super) fn watermarks(&self, partition: &TopicPartition, wait: Duration) -> Result<(Offset, Offset), Error> {
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
    pub(super) fn topic_ids(&self, topics: &[TopicName], wait: Duration) -> Result<BTreeMap<TopicName, String>, Error> {
        let names: Vec<CString> = topics.iter().map(|topic| c_topic(topic.as_str())).collect();
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: see above; the collection copies the names. Queue, collection and event are ours, destroyed once; an
        // answer that comes after the queue is gone is dropped. What is read of the event is copied.
        unsafe {
            let queue = ffi::rd_kafka_queue_new(self.ptr());
            let collection = ffi::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            ffi::rd_kafka_DescribeTopics(self.ptr(), collection, ptr::null(), queue);
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
    pub(super) fn is_mock_cluster(&self) -> bool {
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
    pub(super) fn metadata(&self, only: Option<&Topic>, wait: Duration) -> Result<Metadata, Error> {
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
pub(super) struct Committed {
    pub(super) at: TopicPartition,
    /// The next offset to read, or [`OFFSET_INVALID`].
    pub(super) offset: Offset,
    /// What was written beside it, if anything.
    pub(super) note: String,
}

/// A cluster's metadata, copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) brokers: Vec<String>,
    /// Name, partitions, error.
    pub(super) topics: Vec<(String, Vec<PartitionMetadata>, Code)>,
}

/// One partition of a topic, as the cluster knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartitionMetadata {
    pub(super) leader: i32,
    pub(super) replicas: usize,
    pub(super) in_sync: usize,
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

/// # Safety
/// `data` points at `len` values, or `len` is 0.
unsafe fn slice<'a, T>(data: *const T, len: c_int) -> &'a [T] {
    match usize::try_from(len) {
        // SAFETY: the caller's promise.
        Ok(len) if len > 0 => unsafe { std::slice::from_raw_parts(data, len) },
        _ => &[],
    }
}

/// # Safety
/// `code` points at a C int.
unsafe fn read_code(code: *const Known) -> Code {
    // SAFETY: the caller's promise; read as a number, since a broker may send any.
    Code(unsafe { code.cast::<c_int>().read() })
}

/// # Safety
/// `list` is null or a live list.
unsafe fn first_error(list: *const ffi::rd_kafka_topic_partition_list_t) -> Code {
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
pub(super) struct PartitionList(*mut ffi::rd_kafka_topic_partition_list_t);

// SAFETY: plain memory of its own, and what is shared is only read.
unsafe impl Send for PartitionList {}
// SAFETY: as above.
unsafe impl Sync for PartitionList {}

impl PartitionList {
    pub(super) fn of(partitions: impl IntoIterator<Item = (TopicPartition, Offset)>) -> Self {
        let partitions: Vec<_> = partitions.into_iter().collect();
        Self::new(partitions.iter().map(|(at, offset)| (at.topic.as_str(), at.partition, *offset)))
    }

    fn new<'a>(partitions: impl IntoIterator<Item = (&'a str, i32, Offset)>) -> Self {
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
    pub(super) fn with_notes<'a>(
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
    fn notes(&self) -> Vec<String> {
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
    fn offsets(&self) -> Result<Vec<(TopicPartition, Offset)>, Error> {
        // SAFETY: a live list of ours.
        unsafe { first_error(self.0).check()? };
        // SAFETY: as above.
        Ok(unsafe { elements(self.0) })
    }
}

impl PartitionList {
    /// Good until the list is dropped.
    pub(super) fn ptr(&self) -> *mut ffi::rd_kafka_topic_partition_list_t {
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
unsafe fn elements(list: *const ffi::rd_kafka_topic_partition_list_t) -> Vec<(TopicPartition, Offset)> {
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
pub(super) unsafe fn topic_partition(
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
pub(super) struct GroupMetadata(*mut ffi::rd_kafka_consumer_group_metadata_t);

// SAFETY: plain memory of its own, which nobody writes to.
unsafe impl Send for GroupMetadata {}
// SAFETY: as above.
unsafe impl Sync for GroupMetadata {}

impl GroupMetadata {
    /// Whether it names a member. Without one the broker fences nothing: never to be sent.
    pub(super) fn is_member(&self) -> bool {
        // SAFETY: ours and live; the text is its own.
        unsafe { ffi::rd_kafka_consumer_group_metadata_generation_id(self.0) >= 0 && !self.member_id().is_empty() }
    }
    /// What the group calls us; empty outside of it.
    pub(super) fn member_id(&self) -> String {
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

/// A producer's handle of a topic.
pub(super) struct Topic {
    topic: NonNull<ffi::rd_kafka_topic_t>,
    client: Arc<Client>,
    /// What was lent last, by its address, and when: the context keeps it until the number of returns goes on.
    lent: Cell<(*const Items, u64)>,
}

// SAFETY: as for `Handle`.
unsafe impl Send for Topic {}

impl Topic {
    pub(super) fn new(client: &Arc<Client>, name: &TopicName) -> Result<Self, Error> {
        let c_name = c_topic(name.as_str());
        // SAFETY: a live client, a valid text, the default topic configuration.
        let topic = unsafe { ffi::rd_kafka_topic_new(client.ptr(), c_name.as_ptr(), ptr::null_mut()) };
        match NonNull::new(topic) {
            Some(topic) => Ok(Self { topic, client: Arc::clone(client), lent: Cell::new((ptr::null(), 0)) }),
            None => Err(Error::of(Code::from(Known::RD_KAFKA_RESP_ERR__INVALID_ARG))),
        }
    }

    /// Queues one record, to the topic that this is; never blocks. `index` comes back in [`Failure`] if it is not delivered. A
    /// large value with a keeper is lent, all else is copied.
    pub(super) fn produce(&self, output: &Output<'_>, index: usize) -> Result<(), Error> {
        let Output { partition, key, value, timestamp, headers, .. } = *output;
        let headers = (0..headers.len()).map(|nth| headers.get(nth));
        use ffi::rd_kafka_vtype_t as V;
        type Value = ffi::rd_kafka_vu_s__bindgen_ty_1;
        let mem = |bytes: Option<&[u8]>| Value {
            mem: ffi::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
                // An empty slice has a pointer that is not null, which is how C tells empty from null.
                ptr: bytes.map_or(ptr::null_mut(), |bytes| bytes.as_ptr().cast_mut().cast()),
                size: bytes.map_or(0, <[u8]>::len),
            },
        };
        let list = (headers.len() > 0).then(|| HeaderList::new(headers));
        let flags = match output.keeper {
            Some(keeper) if value.is_some_and(|value| value.len() >= LENT_FROM) => {
                self.lend(keeper);
                0
            }
            _ => ffi::RD_KAFKA_MSG_F_COPY as c_int,
        };
        let arguments = [
            (V::RD_KAFKA_VTYPE_RKT, Value { rkt: self.topic.as_ptr() }),
            (V::RD_KAFKA_VTYPE_PARTITION, Value { i32_: partition }),
            (V::RD_KAFKA_VTYPE_MSGFLAGS, Value { i: flags }),
            (V::RD_KAFKA_VTYPE_KEY, mem(key)),
            (V::RD_KAFKA_VTYPE_VALUE, mem(value)),
            (V::RD_KAFKA_VTYPE_TIMESTAMP, Value { i64_: timestamp }),
            (V::RD_KAFKA_VTYPE_OPAQUE, Value { ptr: ptr::without_provenance_mut(index) }),
            (V::RD_KAFKA_VTYPE_HEADERS, Value { headers: list.as_ref().map_or(ptr::null_mut(), |list| list.0) }),
        ]
        .map(|(vtype, u)| ffi::rd_kafka_vu_t { vtype, u });
        let count = arguments.len() - usize::from(list.is_none());
        // SAFETY: a live client and topic; the first `count` arguments have the types that their tags say; the key is copied,
        // and the value, too, or it is kept in place until no message is outstanding. On success the header list is the
        // client's.
        let result = Error::take(unsafe { ffi::rd_kafka_produceva(self.client.ptr(), arguments.as_ptr(), count) });
        if result.is_ok() {
            std::mem::forget(list);
        }
        result
    }
}

impl Topic {
    fn lend(&self, keeper: &Arc<Items>) {
        let context = self.client.context();
        let now = (Arc::as_ptr(keeper), context.returned.load(Relaxed));
        if self.lent.replace(now) != now {
            context.lend(keeper);
        }
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once, before its client.
        unsafe { ffi::rd_kafka_topic_destroy(self.topic.as_ptr()) }
    }
}

/// Values of so many bytes are lent to the client: below, a copy costs no more.
const LENT_FROM: usize = 512;

/// Headers to be produced.
struct HeaderList(*mut ffi::rd_kafka_headers_t);

impl HeaderList {
    fn new<'a>(headers: impl ExactSizeIterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Self {
        // SAFETY: a fresh list; names and values are copied with the lengths given.
        unsafe {
            let list = Self(ffi::rd_kafka_headers_new(headers.len()));
            for (name, value) in headers {
                ffi::rd_kafka_header_add(
                    list.0,
                    name.as_ptr().cast(),
                    isize::try_from(name.len()).unwrap_or(isize::MAX),
                    value.map_or(ptr::null(), |value| value.as_ptr().cast()),
                    isize::try_from(value.map_or(0, <[u8]>::len)).unwrap_or(isize::MAX),
                );
            }
            list
        }
    }
}

impl Drop for HeaderList {
    fn drop(&mut self) {
        // SAFETY: ours: forgotten where the client took it.
        unsafe { ffi::rd_kafka_headers_destroy(self.0) }
    }
}

/// A consumer's queue: records, and rebalances to be served.
pub(super) struct ConsumerQueue {
    queue: NonNull<ffi::rd_kafka_queue_t>,
    client: Arc<Client>,
    /// Where a call leaves what it fetched; kept so that it is not allocated for each poll.
    slots: Vec<*mut ffi::rd_kafka_message_t>,
}

// SAFETY: as for `Handle`; the slots hold nothing between two calls.
unsafe impl Send for ConsumerQueue {}

impl ConsumerQueue {
    /// The queue of a consumer with a group. From now on only `consume` serves the client.
    pub(super) fn new(client: &Arc<Client>) -> Result<Self, Error> {
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
    pub(super) fn consume(&mut self, wait: Duration, count: usize, into: &mut Vec<Message>) {
        self.slots.resize(count, ptr::null_mut());
        // SAFETY: a live queue, and room for `count` pointers; what is returned is ours.
        let fetched = unsafe {
            ffi::rd_kafka_consume_batch_queue(self.queue.as_ptr(), to_millis(wait), self.slots.as_mut_ptr(), count)
        };
        let fetched = usize::try_from(fetched).unwrap_or(0);
        into.extend(self.slots.drain(..).take(fetched).filter_map(NonNull::new).map(Message));
    }

    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Wakes whoever waits in `consume`, from another thread.
    pub(super) fn waker(&self) -> QueueWaker {
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
pub(super) struct QueueWaker(Option<ConsumerQueue>);

impl QueueWaker {
    /// The wait under way, or the next, returns at once.
    pub(super) fn wake(&self) {
        if let Some(queue) = &self.0 {
            // SAFETY: a live queue.
            unsafe { ffi::rd_kafka_queue_yield(queue.queue.as_ptr()) }
        }
    }
}

/// A fetched message, or an error in a message's place. Whoever keeps one keeps its client.
pub(super) struct Message(NonNull<ffi::rd_kafka_message_t>);

// SAFETY: a message is owned, and its counts in librdkafka are atomic.
unsafe impl Send for Message {}

/// Which topic handle and partition: messages with the same are of the same partition. Only for comparing.
pub(super) type Place = (usize, i32);

impl Message {
    fn get(&self) -> *const ffi::rd_kafka_message_t {
        self.0.as_ptr()
    }
    pub(super) fn error(&self) -> Option<Error> {
        // SAFETY: a live message; its error text, if any, is its own.
        unsafe {
            let code = read_code(&raw const (*self.get()).err);
            let message = || text(ffi::rd_kafka_message_errstr(self.get()));
            (code != Code::NONE).then(|| Error { message: message(), ..Error::of(code) })
        }
    }
    /// Bytes of key and value.
    pub(super) fn bytes(&self) -> usize {
        // SAFETY: a live message.
        unsafe { (*self.get()).key_len + (*self.get()).len }
    }
    pub(super) fn place(&self) -> Place {
        // SAFETY: a live message.
        unsafe { ((*self.get()).rkt.addr(), (*self.get()).partition) }
    }
    /// None for an error that is not about a partition.
    pub(super) fn topic_partition(&self) -> Option<TopicPartition> {
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
pub(super) struct Messages {
    list: Vec<Message>,
    /// Each message's parsed headers, or null. Parsing writes to the message: done once for all, by whoever asks first.
    headers: OnceLock<Vec<*mut ffi::rd_kafka_headers_t>>,
    /// Dropped after the messages (fields drop in order).
    _client: Arc<Client>,
}

// SAFETY: messages are not written to but by parsing headers, which the `OnceLock` does once, before anyone reads them.
unsafe impl Send for Messages {}
// SAFETY: as above.
unsafe impl Sync for Messages {}

impl Messages {
    pub(super) fn new(list: Vec<Message>, client: Arc<Client>) -> Self {
        Self { list, headers: OnceLock::new(), _client: client }
    }
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }
    pub(super) fn offset(&self, index: usize) -> Offset {
        // SAFETY: a live message; so below.
        unsafe { (*self.list[index].get()).offset }
    }
    pub(super) fn timestamp(&self, index: usize) -> i64 {
        let mut kind = ffi::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: see above; `kind` is written.
        let timestamp = unsafe { ffi::rd_kafka_message_timestamp(self.list[index].get(), &raw mut kind) };
        if kind == ffi::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE { -1 } else { timestamp }
    }
    pub(super) fn key(&self, index: usize) -> Option<&[u8]> {
        let message = self.list[index].get();
        // SAFETY: see above; the message keeps its bytes.
        unsafe { bytes((*message).key, (*message).key_len) }
    }
    pub(super) fn value(&self, index: usize) -> Option<&[u8]> {
        let message = self.list[index].get();
        // SAFETY: see above; the message keeps its bytes.
        unsafe { bytes((*message).payload, (*message).len) }
    }
    pub(super) fn header_count(&self, index: usize) -> usize {
        let headers = self.headers(index);
        // SAFETY: a live list, kept by its message.
        if headers.is_null() { 0 } else { unsafe { ffi::rd_kafka_header_cnt(headers) } }
    }
    pub(super) fn header(&self, index: usize, nth: usize) -> (&[u8], Option<&[u8]>) {
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
        let peeks = peeks();
        let parse = |message: &Message| {
            let mut headers = ptr::null_mut();
            // SAFETY: a live message, of a client of which this is known.
            if peeks && unsafe { has_no_headers(message.get()) } {
                return headers;
            }
            // SAFETY: a live message that nobody else touches: `OnceLock` runs this once and makes others wait.
            unsafe { ffi::rd_kafka_message_headers(message.get(), &raw mut headers) };
            headers
        };
        self.headers.get_or_init(|| self.list.iter().map(parse).collect())[index]
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

/// # Safety
/// `data` is null or points at `len` bytes that live as long as the result is used.
unsafe fn bytes<'a>(data: *mut c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!data.is_null()).then(|| unsafe { std::slice::from_raw_parts(data.cast(), len) })
}

/// An owned copy of a C text; empty for null.
pub(super) fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: every text that librdkafka hands out, and every buffer it fills, is NUL-terminated.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn c_topic(name: &str) -> CString {
    CString::new(name).expect("a topic's name has no NUL: it is checked where it is made")
}

pub(super) fn to_millis(duration: Duration) -> c_int {
    c_int::try_from(duration.as_millis()).unwrap_or(c_int::MAX)
}

/// # Safety
/// `opaque` is what `Client::new` set.
unsafe fn context<'a>(opaque: *mut c_void) -> Option<&'a Context> {
    // SAFETY: the caller's promise: null, or a context that is kept until its client is destroyed.
    unsafe { opaque.cast::<Context>().as_ref() }
}

unsafe extern "C" fn on_error(client: *mut ffi::rd_kafka_t, code: c_int, reason: *const c_char, opaque: *mut c_void) {
    // SAFETY: librdkafka calls this with what `Client::new` set, and with a live handle.
    let Some(context) = (unsafe { context(opaque) }) else { return };
    let code = Code(code);
    let error = match (code.known(), NonNull::new(client)) {
        (Known::RD_KAFKA_RESP_ERR__FATAL, Some(client)) => Handle(client).fatal_error(),
        _ => None,
    };
    let mut error = error.unwrap_or_else(|| Error { message: text(reason), ..Error::of(code) });
    const REFUSED: &str = "certificate verify failed";
    if let Some((before, _)) = error.message.split_once(REFUSED)
        && let Some(why) = lock(&context.certificate).as_deref()
    {
        error.message = format!("{before}{REFUSED}: {why}");
    }
    let mut errors = lock(&context.errors);
    if errors.len() < FAILURES_KEPT {
        errors.push(error);
    }
}

unsafe extern "C" fn on_statistics(_: *mut ffi::rd_kafka_t, json: *mut c_char, _: usize, opaque: *mut c_void) -> c_int {
    // SAFETY: librdkafka calls this with what `Client::new` set; the text is copied.
    if let Some(context) = unsafe { context(opaque) } {
        *lock(&context.statistics) = Some(text(json));
    }
    // It frees the text itself.
    0
}

unsafe extern "C" fn on_throttle(
    _: *mut ffi::rd_kafka_t,
    _: *const c_char,
    _: i32,
    millis: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: librdkafka calls this with what `Client::new` set.
    if let Some(context) = unsafe { context(opaque) } {
        // (it says 0 when it is over)
        context.throttled_ms.fetch_add(u64::try_from(millis).unwrap_or(0), Relaxed);
    }
}

unsafe extern "C" fn on_delivery(
    _: *mut ffi::rd_kafka_t,
    message: *const ffi::rd_kafka_message_t,
    opaque: *mut c_void,
) {
    // SAFETY: librdkafka calls this with what `Client::new` set, and with a live message.
    let Some(context) = (unsafe { context(opaque) }) else { return };
    // SAFETY: as above.
    let code = unsafe { read_code(&raw const (*message).err) };
    if code == Code::NONE {
        return;
    }
    let mut failures = lock(&context.failures);
    failures.count += 1;
    if failures.first.iter().filter(|failure| failure.code == code).count() < FAILURES_KEPT {
        // The code is all that is read: librdkafka 2.12 has freed the broker's words by now.
        // SAFETY: as above; `_private` is what `produce` gave.
        let (index, topic) = unsafe { ((*message)._private.addr(), text(ffi::rd_kafka_topic_name((*message).rkt))) };
        failures.first.push(Failure { index, topic: TopicName::new(topic).ok(), code });
    }
}

unsafe extern "C" fn on_rebalance(
    client: *mut ffi::rd_kafka_t,
    code: Known,
    partitions: *mut ffi::rd_kafka_topic_partition_list_t,
    opaque: *mut c_void,
) {
    // SAFETY: librdkafka calls this with what `Client::new` set, a live handle and a live list.
    let (Some(context), Some(client)) = (unsafe { context(opaque) }, NonNull::new(client)) else { return };
    // SAFETY: as above; the list is copied.
    let partitions = unsafe { elements(partitions) }.into_iter().map(|(partition, _)| partition).collect();
    let change = match code {
        Known::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Ok(true),
        Known::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => Ok(false),
        other => Err(Code::from(other)),
    };
    if let Some(rebalance) = &context.rebalance {
        rebalance.serve(&Handle(client), change, partitions);
    }
}

/// OpenSSL's verdict on a broker's certificate stands; this only keeps its reason.
unsafe extern "C" fn on_certificate(
    _: *mut ffi::rd_kafka_t,
    _: *const c_char,
    _: i32,
    verdict: *mut c_int,
    _: c_int,
    _: *const c_char,
    _: usize,
    why: *mut c_char,
    why_size: usize,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: librdkafka calls this with a number of its own, and with what `Client::new` set.
    let (verdict, context) = unsafe { (verdict.read(), context(opaque)) };
    if verdict == 0 {
        return 1;
    }
    // SAFETY: OpenSSL answers every number with a text of the calling thread's; the buffer has its own length, above 0.
    unsafe {
        let words = CStr::from_ptr(c::certificate_error(verdict.into()));
        let length = words.count_bytes().min(why_size.saturating_sub(1));
        ptr::copy_nonoverlapping(words.as_ptr(), why, length);
        why.add(length).write(0);
        if let Some(context) = context {
            *lock(&context.certificate) = Some(words.to_string_lossy().into_owned());
        }
    }
    0
}

unsafe extern "C" fn on_token(client: *mut ffi::rd_kafka_t, _: *const c_char, opaque: *mut c_void) {
    // SAFETY: librdkafka calls this with what `Client::new` set, and with a live handle, which waits for this call to end
    // before it is destroyed.
    let Some(issuer) = (unsafe { context(opaque) }).and_then(|context| context.issuer.as_ref()) else { return };
    let taken = issuer.token().and_then(|token| {
        // SAFETY: as above.
        unsafe { set_token(client, &token, &issuer.extensions) }
    });
    if let Err(why) = taken {
        let why = CString::new(why.replace('\0', "")).unwrap_or_default();
        // SAFETY: as above; a valid text. It becomes an error of the client, which asks again after 10 s.
        unsafe { ffi::rd_kafka_oauthbearer_set_token_failure(client, why.as_ptr()) };
    }
}

/// # Safety
/// `client` is live.
unsafe fn set_token(
    client: *mut ffi::rd_kafka_t,
    token: &Token,
    extensions: &[(String, String)],
) -> Result<(), String> {
    let c = |text: &str| CString::new(text).map_err(|_| "the token holds a NUL character".to_owned());
    let (value, principal) = (c(&token.value)?, c(&token.principal)?);
    let extensions: Vec<CString> =
        extensions.iter().flat_map(|(name, value)| [c(name), c(value)]).collect::<Result<_, _>>()?;
    let mut pointers: Vec<*const c_char> = extensions.iter().map(|text| text.as_ptr()).collect();
    let mut why = [0; 512];
    // SAFETY: the caller's promise; valid texts, which are copied, and arrays with their own lengths.
    let code = unsafe {
        ffi::rd_kafka_oauthbearer_set_token(
            client,
            value.as_ptr(),
            token.expires,
            principal.as_ptr(),
            pointers.as_mut_ptr(),
            pointers.len(),
            why.as_mut_ptr(),
            why.len(),
        )
    };
    if code == Known::RD_KAFKA_RESP_ERR_NO_ERROR { Ok(()) } else { Err(text(why.as_ptr())) }
}

/// When something was last logged, and how often it was not since.
struct Logged {
    at: Instant,
    suppressed: u64,
}

/// The same kind of line of one client is logged this often at most; librdkafka repeats itself for every connection.
const LOG_EVERY: Duration = Duration::from_secs(10);

unsafe extern "C" fn on_log(
    client: *const ffi::rd_kafka_t,
    level: c_int,
    facility: *const c_char,
    line: *const c_char,
) {
    thread_local!(static INSIDE: Cell<bool> = const { Cell::new(false) });
    if client.is_null() || INSIDE.replace(true) {
        return;
    }
    // SAFETY: librdkafka calls this with a live handle, whose opaque is what `Client::new` set.
    if let Some(context) = unsafe { context(ffi::rd_kafka_opaque(client)) } {
        context.log(level, &text(facility), &text(line));
    }
    INSIDE.set(false);
}

impl Context {
    /// Keeps this until nothing that was given to the client is outstanding, or the client is destroyed.
    fn lend(&self, keeper: &Arc<Items>) {
        lock(&self.lent).push(Arc::clone(keeper));
    }

    fn take_back(&self) {
        let lent = std::mem::take(&mut *lock(&self.lent));
        if !lent.is_empty() {
            self.returned.fetch_add(1, Relaxed);
        }
    }

    fn log(&self, level: c_int, facility: &str, line: &str) {
        // A property that we set, knowing that it is called experimental: no operator can do anything about it.
        if facility == "CONFWARN" && line.contains("enable.gapless.guarantee") {
            return;
        }
        if facility == "FAIL" {
            // (what stands before is the thread's name, which the line repeats)
            let (_, why) = line.split_once("]: ").unwrap_or(("", line));
            *lock(&self.failed) = Some(why.to_owned());
        }
        let suppressed = {
            let mut logged = lock(&self.logged);
            let now = Instant::now();
            match logged.get_mut(facility) {
                Some(last) if now.duration_since(last.at) < LOG_EVERY => {
                    last.suppressed += 1;
                    return;
                }
                Some(last) => {
                    last.at = now;
                    std::mem::take(&mut last.suppressed)
                }
                None => {
                    logged.insert(facility.to_owned(), Logged { at: now, suppressed: 0 });
                    0
                }
            }
        };
        let client = &self.label;
        // syslog's levels. What matters of an error reaches the route as an event; here it is a detail, never an alarm.
        match level {
            // A transaction that failed is told by the call that finds it so, and a rejected record fails a dozen.
            0..=4 if level < 3 || facility != "TXNERR" => {
                tracing::warn!(client, facility, suppressed, "librdkafka: {line}")
            }
            0..=6 => tracing::debug!(client, facility, suppressed, "librdkafka: {line}"),
            _ => tracing::trace!(client, facility, suppressed, "librdkafka: {line}"),
        }
    }
}

/// A mock cluster, and the client that runs it.
pub(super) struct Mock {
    cluster: NonNull<ffi::rd_kafka_mock_cluster_t>,
    /// Dropped after the cluster.
    _client: Arc<Client>,
}

// SAFETY: the calls below take the cluster's own lock, or run on its own thread.
unsafe impl Send for Mock {}
// SAFETY: as above.
unsafe impl Sync for Mock {}

impl Mock {
    pub(super) fn new(client: Arc<Client>, brokers: u16) -> Result<Self, String> {
        // SAFETY: a live client that the cluster keeps.
        let cluster = unsafe { ffi::rd_kafka_mock_cluster_new(client.ptr(), c_int::from(brokers)) };
        let cluster = NonNull::new(cluster).ok_or("the mock cluster cannot be started")?;
        // SAFETY: a live cluster; so in all calls below. By default a group's first members wait 3 s for others.
        unsafe { ffi::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster.as_ptr(), 0) };
        Ok(Self { cluster, _client: client })
    }
    pub(super) fn bootstrap(&self) -> String {
        // SAFETY: see above; the text is the cluster's.
        text(unsafe { ffi::rd_kafka_mock_cluster_bootstraps(self.cluster.as_ptr()) })
    }
    pub(super) fn create_topic(&self, name: &str, partitions: i32) -> Result<(), Error> {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: see above; a valid text, which is copied.
        Code::from(unsafe { ffi::rd_kafka_mock_topic_create(self.cluster.as_ptr(), name.as_ptr(), partitions, 1) })
            .check()
    }
    pub(super) fn fail_next(&self, api_key: i16, codes: &[i16]) {
        let codes: Vec<Known> = codes.iter().map(|code| Code(c_int::from(*code)).known()).collect();
        // SAFETY: see above; `codes` is copied with its length.
        unsafe {
            ffi::rd_kafka_mock_push_request_errors_array(self.cluster.as_ptr(), api_key, codes.len(), codes.as_ptr());
        }
    }
    pub(super) fn fail_no_more(&self, api_key: i16) {
        // SAFETY: see above.
        unsafe { ffi::rd_kafka_mock_clear_request_errors(self.cluster.as_ptr(), api_key) };
    }
    /// Starts to count requests, from nothing.
    pub(super) fn count_requests(&self) {
        // SAFETY: see above.
        unsafe {
            ffi::rd_kafka_mock_start_request_tracking(self.cluster.as_ptr());
            ffi::rd_kafka_mock_clear_requests(self.cluster.as_ptr());
        }
    }
    pub(super) fn requests(&self, api_key: i16) -> usize {
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
    pub(super) fn delay(&self, broker: i32, millis: i32) {
        // SAFETY: see above.
        unsafe { ffi::rd_kafka_mock_broker_set_rtt(self.cluster.as_ptr(), broker, millis) };
    }
    pub(super) fn set_up(&self, broker: i32, up: bool) {
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
