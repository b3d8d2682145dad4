//! Sends each record where its headers say.
//!
//! `to`: destinations, comma-separated (else `config.to`; neither: the record passes as it is); `topic`, `partition` and
//! `key` are set on what is emitted, `copies` times; `forward`: a destination that gets the record itself; `keep: yes`
//! lets the record pass besides.

use millrace_plugin::{Output, Record, Transform, Verdict, export_transform};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteBy {
    to: Option<String>,
}

impl Transform for RouteBy {
    type Config = Self;

    fn configure(config: Self) -> Result<Self, String> {
        Ok(config)
    }

    fn transform(&mut self, record: &Record<'_>, output: &mut Output) -> Verdict {
        let forward = text(record, "forward");
        let to = text(record, "to").or(self.to.as_deref());
        if to.is_none() && forward.is_none() {
            return Verdict::Keep;
        }
        for _ in 0..number(record, "copies").unwrap_or(1) {
            to.iter().flat_map(|to| to.split(',')).for_each(|destination| emit(record, destination, output));
        }
        if let Some(destination) = forward {
            output.forward(destination);
        }
        if text(record, "keep") == Some("yes") { Verdict::Keep } else { Verdict::Drop }
    }
}

fn emit(record: &Record<'_>, destination: &str, output: &mut Output) {
    let mut item = output.emit(destination, record.value());
    if let Some(topic) = text(record, "topic") {
        item = item.topic(topic);
    }
    if let Some(partition) = number(record, "partition") {
        item = item.partition(partition);
    }
    if let Some(key) = record.header("key") {
        item.key(Some(key));
    }
}

fn text<'a>(record: &Record<'a>, header: &str) -> Option<&'a str> {
    record.header(header).and_then(|value| str::from_utf8(value).ok())
}

fn number(record: &Record<'_>, header: &str) -> Option<i32> {
    text(record, header)?.parse().ok()
}

export_transform!(RouteBy);
