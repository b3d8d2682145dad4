//! Small safe faces over librdkafka's C: clients and their callbacks, partition lists, records in and out, questions to the
//! brokers, errors. Knows C's rules of ownership and nothing of routes, deliveries or policies. Read `session.rs` next.
//!
//! A client handle must outlive every message, topic and queue taken from it, and destroying it may block. So whoever
//! holds one of those holds an [`Arc`](std::sync::Arc) of the [`Client`], and the last one out destroys it on a thread of its own.
#![expect(unsafe_code, reason = "librdkafka's batch calls and transactions are C; this directory speaks it")]

pub(super) mod admin;
mod callbacks;
mod calls;
mod client;
mod consume;
pub(super) mod describe;
mod group;
mod messages;
mod mock;
mod partitions;
mod produce;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka_sys as ffi;
pub use rdkafka_sys::rd_kafka_resp_err_t as Known;

use crate::model::Offset;

pub(super) use calls::{Committed, PartitionMetadata};
pub(super) use client::{Client, Context, Handle, Kind, Rebalance, check_property};
pub use client::{Failure, Failures};
pub(super) use consume::{ConsumerQueue, Message, Place, QueueWaker};
pub(super) use group::{Group, Member};
pub(super) use messages::Messages;
pub(super) use mock::Mock;
pub(super) use partitions::{GroupMetadata, PartitionList};
pub(super) use produce::{HeaderList, Topic};

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

/// A value that no panic can leave half changed: what a poisoned lock guards is still good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
