//! Records to be produced.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{Client, Code, Error, Known, c_topic, ffi};
use crate::model::{Items, TopicName};
use crate::pipeline::ports::Output;

/// A producer's handle of a topic.
pub(in crate::kafka) struct Topic {
    pub(super) topic: NonNull<ffi::rd_kafka_topic_t>,
    client: Arc<Client>,
    /// What was lent last, by its address, and when: the context keeps it until the number of returns goes on.
    lent: Cell<(*const Items, u64)>,
    /// Those of the call, in the order of [`ARGUMENTS`]: what is the same for all records is written once.
    arguments: RefCell<[ffi::rd_kafka_vu_t; ARGUMENTS.len()]>,
}

/// What is told of each record; the last only where it has headers.
const ARGUMENTS: [ffi::rd_kafka_vtype_t; 8] = {
    use ffi::rd_kafka_vtype_t as V;
    [
        V::RD_KAFKA_VTYPE_RKT,
        V::RD_KAFKA_VTYPE_PARTITION,
        V::RD_KAFKA_VTYPE_MSGFLAGS,
        V::RD_KAFKA_VTYPE_KEY,
        V::RD_KAFKA_VTYPE_VALUE,
        V::RD_KAFKA_VTYPE_TIMESTAMP,
        V::RD_KAFKA_VTYPE_OPAQUE,
        V::RD_KAFKA_VTYPE_HEADERS,
    ]
};

// SAFETY: as for `Handle`.
unsafe impl Send for Topic {}

impl Topic {
    pub(in crate::kafka) fn new(client: &Arc<Client>, name: &TopicName) -> Result<Self, Error> {
        let c_name = c_topic(name.as_str());
        // SAFETY: a live client, a valid text, the default topic configuration.
        let topic = unsafe { ffi::rd_kafka_topic_new(client.ptr(), c_name.as_ptr(), ptr::null_mut()) };
        let Some(topic) = NonNull::new(topic) else {
            return Err(Error::of(Code::from(Known::RD_KAFKA_RESP_ERR__INVALID_ARG)));
        };
        // SAFETY: numbers and pointers, of which all may be zero.
        let argument = |vtype| ffi::rd_kafka_vu_t { vtype, u: unsafe { std::mem::zeroed() } };
        let mut arguments = ARGUMENTS.map(argument);
        arguments[0].u.rkt = topic.as_ptr();
        let (lent, arguments) = (Cell::new((ptr::null(), 0)), RefCell::new(arguments));
        Ok(Self { topic, client: Arc::clone(client), lent, arguments })
    }

    /// Queues one record, to the topic that this is; never blocks. `index` comes back in [`Failure`] if it is not delivered. A
    /// large value with a keeper is lent, all else is copied; the headers are those of `list`.
    pub(in crate::kafka) fn produce(
        &self,
        output: &Output<'_>,
        list: Option<HeaderList>,
        index: usize,
    ) -> Result<(), Error> {
        let Output { partition, key, value, timestamp, .. } = *output;
        let mem = |bytes: Option<&[u8]>| ffi::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
            // An empty slice has a pointer that is not null, which is how C tells empty from null.
            ptr: bytes.map_or(ptr::null_mut(), |bytes| bytes.as_ptr().cast_mut().cast()),
            size: bytes.map_or(0, <[u8]>::len),
        };
        let flags = match output.keeper {
            Some(keeper) if value.is_some_and(|value| value.len() >= LENT_FROM) => {
                self.lend(keeper);
                0
            }
            _ => ffi::RD_KAFKA_MSG_F_COPY as c_int,
        };
        let mut arguments = self.arguments.borrow_mut();
        let [_, to, how, name, content, time, opaque, headers] = &mut *arguments;
        (to.u.i32_, how.u.i, time.u.i64_) = (partition, flags, timestamp);
        (name.u.mem, content.u.mem) = (mem(key), mem(value));
        opaque.u.ptr = ptr::without_provenance_mut(index);
        headers.u.headers = list.as_ref().map_or(ptr::null_mut(), |list| list.0.as_ptr());
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
pub(in crate::kafka) struct HeaderList(pub(super) NonNull<ffi::rd_kafka_headers_t>);

impl HeaderList {
    /// A list of copies of these.
    pub(in crate::kafka) fn new<'a>(headers: impl ExactSizeIterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Self {
        // SAFETY: a fresh list; names and values are copied with the lengths given.
        unsafe {
            let list =
                NonNull::new(ffi::rd_kafka_headers_new(headers.len())).expect("librdkafka ends the process instead");
            let list = Self(list);
            for (name, value) in headers {
                ffi::rd_kafka_header_add(
                    list.0.as_ptr(),
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
        unsafe { ffi::rd_kafka_headers_destroy(self.0.as_ptr()) }
    }
}
