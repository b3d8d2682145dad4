//! Records to be produced.

use std::cell::Cell;
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
}

// SAFETY: as for `Handle`.
unsafe impl Send for Topic {}

impl Topic {
    pub(in crate::kafka) fn new(client: &Arc<Client>, name: &TopicName) -> Result<Self, Error> {
        let c_name = c_topic(name.as_str());
        // SAFETY: a live client, a valid text, the default topic configuration.
        let topic = unsafe { ffi::rd_kafka_topic_new(client.ptr(), c_name.as_ptr(), ptr::null_mut()) };
        match NonNull::new(topic) {
            Some(topic) => Ok(Self { topic, client: Arc::clone(client), lent: Cell::new((ptr::null(), 0)) }),
            None => Err(Error::of(Code::from(Known::RD_KAFKA_RESP_ERR__INVALID_ARG))),
        }
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
        use ffi::rd_kafka_vtype_t as V;
        type Value = ffi::rd_kafka_vu_s__bindgen_ty_1;
        let mem = |bytes: Option<&[u8]>| Value {
            mem: ffi::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
                // An empty slice has a pointer that is not null, which is how C tells empty from null.
                ptr: bytes.map_or(ptr::null_mut(), |bytes| bytes.as_ptr().cast_mut().cast()),
                size: bytes.map_or(0, <[u8]>::len),
            },
        };
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
            (
                V::RD_KAFKA_VTYPE_HEADERS,
                Value { headers: list.as_ref().map_or(ptr::null_mut(), |list| list.0.as_ptr()) },
            ),
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
