//! A client, and what its callbacks leave behind.

use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::callbacks::{
    on_certificate, on_delivery, on_error, on_log, on_rebalance, on_statistics, on_throttle, on_token,
};
use super::{Code, Error, ffi, lock, to_millis};
use crate::kafka::tokens::Issuer;
use crate::model::{Items, TopicName, TopicPartition};

/// Which half of the protocol a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) enum Kind {
    Consumer,
    Producer,
}

/// What a client's callbacks leave behind, for its owner to take. Callbacks run on the thread that polls the client,
/// log lines on any.
pub(in crate::kafka) struct Context {
    /// Says in log lines whose client it is.
    label: String,
    pub(super) errors: Mutex<Vec<Error>>,
    pub(super) failures: Mutex<Failures>,
    pub(super) rebalance: Option<Box<dyn Rebalance>>,
    pub(super) statistics: Mutex<Option<String>>,
    pub(super) throttled_ms: AtomicU64,
    logged: Mutex<HashMap<String, Logged>>,
    /// Who is asked for its tokens, if it needs any.
    pub(super) issuer: Option<Issuer>,
    /// Why a broker's certificate was refused, last: librdkafka says only that it was.
    pub(super) certificate: Mutex<Option<String>>,
    /// Why a connection failed, last, as it was logged: some failures are no errors to librdkafka.
    failed: Mutex<Option<String>>,
    /// What keeps the values in place that the client was lent; and how often that was let go.
    lent: Mutex<Vec<Arc<Items>>>,
    pub(super) returned: AtomicU64,
}

/// Serves a consumer's rebalances, on the thread that polls it.
pub(in crate::kafka) trait Rebalance: Send + Sync {
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
pub(super) const FAILURES_KEPT: usize = 16;

impl Context {
    pub(in crate::kafka) fn new(label: impl Into<String>, rebalance: Option<Box<dyn Rebalance>>) -> Self {
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
    pub(in crate::kafka) fn take_errors(&self) -> Vec<Error> {
        std::mem::take(&mut lock(&self.errors))
    }
    /// Why a connection failed, last. librdkafka repeats itself only every 30 s.
    pub(in crate::kafka) fn failed(&self) -> Option<String> {
        lock(&self.failed).clone()
    }
    /// Connections work again.
    pub(in crate::kafka) fn forget_failed(&self) {
        *lock(&self.failed) = None;
    }
    /// The client's latest statistics (JSON), if there were any since this was last asked.
    pub(in crate::kafka) fn take_statistics(&self) -> Option<String> {
        lock(&self.statistics).take()
    }
    /// For how long brokers have made the client wait since this was last asked.
    pub(in crate::kafka) fn take_throttled(&self) -> Duration {
        Duration::from_millis(self.throttled_ms.swap(0, Relaxed))
    }
    /// The delivery failures since this was last asked.
    pub(in crate::kafka) fn take_failures(&self) -> Failures {
        std::mem::take(&mut lock(&self.failures))
    }
}

/// A client, for as long as anything of it is in use.
pub(in crate::kafka) struct Client {
    handle: Handle,
    context: Arc<Context>,
}

/// The calls on a client's handle. Borrowed from a [`Client`], or from librdkafka during a callback.
pub(in crate::kafka) struct Handle(pub(super) NonNull<ffi::rd_kafka_t>);

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
    pub(in crate::kafka) fn new(
        kind: Kind,
        properties: &[(String, String)],
        context: Context,
    ) -> Result<Arc<Self>, String> {
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
                return Err(super::text(text.as_ptr()));
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

    pub(in crate::kafka) fn context(&self) -> &Context {
        &self.context
    }
    /// Lives until the client was destroyed, its threads included.
    pub(in crate::kafka) fn life(&self) -> Weak<Context> {
        Arc::downgrade(&self.context)
    }

    /// Sends at once what waits for its linger time and waits for its acknowledgements; whether none is outstanding.
    pub(in crate::kafka) fn flush(&self, wait: Duration) -> bool {
        self.took_back(self.handle.flush(wait))
    }

    /// Waits for acknowledgements; whether none is outstanding.
    pub(in crate::kafka) fn is_delivered(&self, wait: Duration) -> bool {
        self.handle.serve(wait);
        self.took_back(self.handle.outstanding() == 0)
    }

    fn took_back(&self, is_done: bool) -> bool {
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
                Err(super::text(text.as_ptr()))
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
pub(in crate::kafka) fn check_property(name: &str, value: &str) -> Result<(), String> {
    Conf::new(&[])?.set(name, value)
}

impl Handle {
    pub(in crate::kafka) fn ptr(&self) -> *mut ffi::rd_kafka_t {
        self.0.as_ptr()
    }

    /// Serves callbacks of a producer (for a consumer, consuming does).
    pub(in crate::kafka) fn serve(&self, wait: Duration) {
        // SAFETY: a live handle.
        unsafe { ffi::rd_kafka_poll(self.ptr(), to_millis(wait)) };
    }

    /// The fatal error that the client is in, if it is.
    pub(in crate::kafka) fn fatal_error(&self) -> Option<Error> {
        let mut text = [0; 512];
        // SAFETY: a live handle, and a buffer with its own length.
        let code = unsafe { ffi::rd_kafka_fatal_error(self.ptr(), text.as_mut_ptr(), text.len()) };
        let code = Code::from(code);
        (code != Code::NONE).then(|| Error { message: super::text(text.as_ptr()), fatal: true, ..Error::of(code) })
    }
}

/// When something was last logged, and how often it was not since.
struct Logged {
    at: Instant,
    suppressed: u64,
}

/// The same kind of line of one client is logged this often at most; librdkafka repeats itself for every connection.
const LOG_EVERY: Duration = Duration::from_secs(10);

impl Context {
    /// Keeps this until nothing that was given to the client is outstanding, or the client is destroyed.
    pub(super) fn lend(&self, keeper: &Arc<Items>) {
        lock(&self.lent).push(Arc::clone(keeper));
    }

    fn take_back(&self) {
        let lent = std::mem::take(&mut *lock(&self.lent));
        if !lent.is_empty() {
            self.returned.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn log(&self, level: c_int, facility: &str, line: &str) {
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
