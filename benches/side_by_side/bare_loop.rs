//! The reference: consume in batches, produce, commit in transactions every 100 ms; straight on librdkafka, one thread, and
//! nothing else. It has no group to serve, no retry, no plugin, no bound of memory, and ends at any error.
#![expect(unsafe_code, reason = "librdkafka's batch calls are C")]

use std::ffi::{CStr, CString};
use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka_sys as ffi;

use crate::contenders;

#[path = "../../plugins/test-guests/json-edit/src/edit.rs"]
mod edit;

const VARIABLE: &str = "MILLRACE_BARE_LOOP";
const COMMIT: Duration = Duration::from_millis(100);
const BATCH: usize = 2048;
const PARTITIONS: i32 = 4;

/// What a loop is to do; handed to the process of its own by one variable.
pub(crate) struct Job {
    bootstrap: String,
    source: String,
    target: String,
    group: String,
    keeps: bool,
    edits: bool,
}

impl Job {
    /// The job that this process was started for, if it was.
    pub(crate) fn of_environment() -> Option<Self> {
        let text = std::env::var(VARIABLE).ok()?;
        let [bootstrap, source, target, group, keeps, edits] = text.split('|').collect::<Vec<_>>().try_into().ok()?;
        let [bootstrap, source, target, group] = [bootstrap, source, target, group].map(str::to_owned);
        Some(Self { bootstrap, source, target, group, keeps: keeps == "true", edits: edits == "true" })
    }
}

/// Runs it as a process of its own, so that its CPU time can be told.
pub(crate) fn command(job: &contenders::Job, keeps: bool, edits: bool) -> Command {
    let contenders::Job { bootstrap, source, target, group } = job;
    let mut command = Command::new(std::env::current_exe().expect("this program has a file"));
    command.env(VARIABLE, format!("{bootstrap}|{source}|{target}|{group}|{keeps}|{edits}"));
    command
}

/// Copies until it is killed.
pub(crate) fn run(job: &Job) {
    let group =
        [("group.id", job.group.as_str()), ("enable.auto.commit", "false"), ("isolation.level", "read_committed")];
    let consumer =
        client(ffi::rd_kafka_type_t::RD_KAFKA_CONSUMER, job, &[&group[..], &[("fetch.queue.backoff.ms", "5")]]);
    let transactional = [("transactional.id", job.group.as_str()), ("compression.codec", "lz4")];
    let rest = [("partitioner", "murmur2_random"), ("delivery.report.only.error", "true"), ("linger.ms", "5")];
    let producer = client(ffi::rd_kafka_type_t::RD_KAFKA_PRODUCER, job, &[&transactional[..], &rest[..]]);
    // SAFETY: the clients, the topic and the queue live as long as the process; lists and messages are used by this thread
    // alone and destroyed once.
    unsafe { copy(job, consumer, producer) }
}

unsafe fn copy(job: &Job, consumer: *mut ffi::rd_kafka_t, producer: *mut ffi::rd_kafka_t) {
    // SAFETY: as its caller says.
    unsafe {
        ffi::rd_kafka_poll_set_consumer(consumer);
        let source = CString::new(job.source.as_str()).expect("a name");
        let target = CString::new(job.target.as_str()).expect("a name");
        let list = offsets(&source, &[0; PARTITIONS as usize]);
        assert!(ffi::rd_kafka_assign(consumer, list) == ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
        ffi::rd_kafka_topic_partition_list_destroy(list);
        let queue = ffi::rd_kafka_queue_get_consumer(consumer);
        let topic = ffi::rd_kafka_topic_new(producer, target.as_ptr(), std::ptr::null_mut());
        check(ffi::rd_kafka_init_transactions(producer, 30_000));
        let member = ffi::rd_kafka_consumer_group_metadata(consumer);

        let mut messages = vec![std::ptr::null_mut(); BATCH];
        let mut outputs: Vec<ffi::rd_kafka_message_t> = Vec::with_capacity(BATCH);
        let mut edited: Vec<Vec<u8>> = Vec::new();
        let mut next = [-1_i64; PARTITIONS as usize];
        let mut began: Option<Instant> = None;
        loop {
            // (a batch call waits until the batch is full or the time is over: so the time is short)
            let got = ffi::rd_kafka_consume_batch_queue(queue, 10, messages.as_mut_ptr(), BATCH);
            let got = &messages[..usize::try_from(got).expect("no error")];
            if !got.is_empty() && began.is_none() {
                began = Some(Instant::now());
                check(ffi::rd_kafka_begin_transaction(producer));
            }
            outputs.clear();
            for message in got.iter().map(|message| &**message) {
                assert!(message.err == ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
                next[usize::try_from(message.partition).expect("a partition")] = message.offset + 1;
                if job.keeps {
                    produce(producer, topic, message);
                    continue;
                }
                let mut output: ffi::rd_kafka_message_t = std::mem::zeroed();
                (output.payload, output.len) = (message.payload, message.len);
                (output.key, output.key_len) = (message.key, message.key_len);
                if job.edits {
                    let value = std::slice::from_raw_parts(message.payload.cast(), message.len);
                    let Some(mut value) = edit::edit(value).expect("it is JSON") else { continue };
                    (output.payload, output.len) = (value.as_mut_ptr().cast(), value.len());
                    edited.push(value);
                }
                outputs.push(output);
            }
            produce_all(producer, topic, &mut outputs);
            edited.clear();
            got.iter().for_each(|message| ffi::rd_kafka_message_destroy(*message));
            ffi::rd_kafka_poll(producer, 0);
            if began.is_some_and(|began| began.elapsed() >= COMMIT) {
                let list = offsets(&source, &next);
                check(ffi::rd_kafka_send_offsets_to_transaction(producer, list, member, 10_000));
                check(ffi::rd_kafka_commit_transaction(producer, 30_000));
                ffi::rd_kafka_topic_partition_list_destroy(list);
                began = None;
            }
        }
    }
}

/// Produces a copy of each; what does not fit into the queue is given again.
unsafe fn produce_all(
    producer: *mut ffi::rd_kafka_t,
    topic: *mut ffi::rd_kafka_topic_t,
    outputs: &mut Vec<ffi::rd_kafka_message_t>,
) {
    while !outputs.is_empty() {
        let count = i32::try_from(outputs.len()).expect("a batch is small");
        // SAFETY: what the messages point to lives until they are destroyed by the caller.
        let taken = unsafe {
            let (flags, first) = (ffi::RD_KAFKA_MSG_F_COPY, outputs.as_mut_ptr());
            ffi::rd_kafka_produce_batch(topic, -1, flags, first, count)
        };
        if taken == count {
            return;
        }
        outputs.retain(|output| output.err != ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
        // SAFETY: a client that lives.
        unsafe { ffi::rd_kafka_poll(producer, 5) };
    }
}

/// Produces a copy of one with its timestamp, which the batch call cannot.
unsafe fn produce(
    producer: *mut ffi::rd_kafka_t,
    topic: *mut ffi::rd_kafka_topic_t,
    message: &ffi::rd_kafka_message_t,
) {
    use ffi::rd_kafka_vtype_t as kind;
    // SAFETY: the array lives through the call, each of its unions is set as its kind says, and what they point to is copied.
    unsafe {
        let mut kept: [ffi::rd_kafka_vu_t; 5] = std::mem::zeroed();
        kept[0].vtype = kind::RD_KAFKA_VTYPE_RKT;
        kept[0].u.rkt = topic;
        kept[1].vtype = kind::RD_KAFKA_VTYPE_MSGFLAGS;
        kept[1].u.i = ffi::RD_KAFKA_MSG_F_COPY;
        kept[2].vtype = kind::RD_KAFKA_VTYPE_VALUE;
        kept[2].u.mem = ffi::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr: message.payload, size: message.len };
        kept[3].vtype = kind::RD_KAFKA_VTYPE_KEY;
        kept[3].u.mem = ffi::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr: message.key, size: message.key_len };
        let mut what = ffi::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        kept[4].vtype = kind::RD_KAFKA_VTYPE_TIMESTAMP;
        kept[4].u.i64_ = ffi::rd_kafka_message_timestamp(message, &raw mut what);
        loop {
            let error = ffi::rd_kafka_produceva(producer, kept.as_ptr(), kept.len());
            if error.is_null() {
                return;
            }
            let code = ffi::rd_kafka_error_code(error);
            assert!(code == ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__QUEUE_FULL, "{code:?}");
            ffi::rd_kafka_error_destroy(error);
            ffi::rd_kafka_poll(producer, 5);
        }
    }
}

/// A list of the partitions of which an offset is known (0 or more).
unsafe fn offsets(topic: &CStr, next: &[i64]) -> *mut ffi::rd_kafka_topic_partition_list_t {
    // SAFETY: the list is fresh, and each entry is one of it.
    unsafe {
        let list = ffi::rd_kafka_topic_partition_list_new(PARTITIONS);
        for (partition, offset) in (0..).zip(next).filter(|(_, offset)| **offset >= 0) {
            (*ffi::rd_kafka_topic_partition_list_add(list, topic.as_ptr(), partition)).offset = *offset;
        }
        list
    }
}

fn client(kind: ffi::rd_kafka_type_t, job: &Job, options: &[&[(&str, &str)]]) -> *mut ffi::rd_kafka_t {
    let mut said = [0_u8; 512];
    let to = said.as_mut_ptr().cast();
    // SAFETY: the configuration is fresh and becomes the client's; texts live through the calls, and `said` takes 512 bytes.
    let client = unsafe {
        let conf = ffi::rd_kafka_conf_new();
        for (name, value) in
            [("bootstrap.servers", job.bootstrap.as_str())].iter().chain(options.iter().copied().flatten())
        {
            let (name, value) = (CString::new(*name).expect("a name"), CString::new(*value).expect("a value"));
            let set = ffi::rd_kafka_conf_set(conf, name.as_ptr(), value.as_ptr(), to, said.len());
            assert!(set == ffi::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK, "{name:?}");
        }
        ffi::rd_kafka_new(kind, conf, to, said.len())
    };
    assert!(!client.is_null(), "{:?}", CStr::from_bytes_until_nul(&said));
    client
}

unsafe fn check(error: *mut ffi::rd_kafka_error_t) {
    // SAFETY: an error lives until it is destroyed, which nobody does before a panic.
    assert!(error.is_null(), "{:?}", unsafe { CStr::from_ptr(ffi::rd_kafka_error_string(error)) });
}
