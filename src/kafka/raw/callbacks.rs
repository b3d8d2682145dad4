//! What librdkafka calls.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::Relaxed;

use super::client::{FAILURES_KEPT, Failure};
use super::partitions::elements;
use super::{Code, Context, Error, Handle, Known, c, ffi, lock, read_code, text};
use crate::kafka::tokens::Token;
use crate::model::TopicName;

/// # Safety
/// `opaque` is what `Client::new` set.
unsafe fn context<'a>(opaque: *mut c_void) -> Option<&'a Context> {
    // SAFETY: the caller's promise: null, or a context that is kept until its client is destroyed.
    unsafe { opaque.cast::<Context>().as_ref() }
}

pub(super) unsafe extern "C" fn on_error(
    client: *mut ffi::rd_kafka_t,
    code: c_int,
    reason: *const c_char,
    opaque: *mut c_void,
) {
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

pub(super) unsafe extern "C" fn on_statistics(
    _: *mut ffi::rd_kafka_t,
    json: *mut c_char,
    _: usize,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: librdkafka calls this with what `Client::new` set; the text is copied.
    if let Some(context) = unsafe { context(opaque) } {
        *lock(&context.statistics) = Some(text(json));
    }
    // It frees the text itself.
    0
}

pub(super) unsafe extern "C" fn on_throttle(
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

pub(super) unsafe extern "C" fn on_delivery(
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

pub(super) unsafe extern "C" fn on_rebalance(
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
pub(super) unsafe extern "C" fn on_certificate(
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

pub(super) unsafe extern "C" fn on_token(client: *mut ffi::rd_kafka_t, _: *const c_char, opaque: *mut c_void) {
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

pub(super) unsafe extern "C" fn on_log(
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
