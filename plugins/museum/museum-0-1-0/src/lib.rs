//! A transform as it was written for version 0.1.0 of the interface, which lies in `wit/` as it then was. It uses all of it:
//! each record comes out as a line of what was seen of it, in an output of which everything that can be set is set, and as
//! it was.
#![cfg(target_arch = "wasm32")]

use bindings::exports::millrace::plugin::lifecycle;
use bindings::millrace::plugin::input::Batch;
use bindings::millrace::plugin::log::{self, Level};
use bindings::millrace::plugin::output;
use bindings::millrace::plugin::types::{Column, Failure};

#[allow(missing_docs, unreachable_pub, reason = "generated; the WIT files are the documentation")]
mod bindings {
    wit_bindgen::generate!({ path: "wit", world: "transform", generate_all });
}

struct Museum;
bindings::export!(Museum with_types_in bindings);

impl lifecycle::Guest for Museum {
    fn configure(config: String) -> Result<(), Failure> {
        match config.as_str() {
            "{}" => Ok(()),
            other => Err(Failure::BadConfig(format!("it takes no configuration: {other}"))),
        }
    }

    fn shutdown() {}
}

impl bindings::Guest for Museum {
    fn process(batch: &Batch) -> Result<Vec<u8>, Failure> {
        Ok((0..batch.len()).map(|index| show(batch, index)).collect())
    }
}

fn show(batch: &Batch, index: u32) -> u8 {
    let end = index + 1;
    let text = |column: Column| {
        let text = String::from_utf8_lossy(&column.bytes).into_owned();
        if column.nulls.is_empty() { text } else { "null".to_owned() }
    };
    let value = text(batch.values(index, end));
    if value == "refuse" {
        batch.refuse(index, "as it asked to be");
        return 2;
    }
    let (topic, partition) = (batch.topic(), batch.partition());
    let (offset, timestamp) = (batch.offsets(index, end)[0], batch.timestamps(index, end)[0]);
    let (key, size) = (text(batch.keys(index, end)), batch.value_sizes(index, end)[0]);
    let (last, all) = (text(batch.header(index, end, "trace")), batch.headers(index).len());
    let line = format!("{topic}/{partition}/{offset} at {timestamp}: {key} {value} ({size}), trace {last} of {all}");
    log::log(Level::Info, &line, Some(index));
    let first = output::emit("", &[index], &column(&line));
    output::set_keys(first, &column("museum"));
    output::set_partitions(first, &[3]);
    output::set_timestamps(first, &[7]);
    output::set_header(first, "trace", &column("0.1.0"));
    output::add_header(first, "more", &Column { bytes: Vec::new(), ends: vec![0], nulls: vec![0] });
    output::forward("", &[index]);
    1
}

fn column(text: &str) -> Column {
    Column { bytes: text.as_bytes().to_vec(), ends: vec![text.len() as u32], nulls: Vec::new() }
}
