//! `millrace dlq show`: one letter, and what the present plugins say to it.

use std::sync::Arc;

use anyhow::anyhow;
use serde_json::{Value, json};

use super::{Failure, TopicArguments, connect, failed, time_of};
use crate::cli::plugin::diff::{self, Line};
use crate::cli::plugin::records::{bytes_json, item_json};
use crate::cli::run::{build, engine};
use crate::config::Loaded;
use crate::control::redrive::{Said, ask, record_of};
use crate::control::replay::Bench;
use crate::kafka::{ReadFrom, Reader};
use crate::model::{Offset, SendTo, SourceBatch};
use crate::pipeline::dead_letter::Letter;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    of: TopicArguments,
    /// Where it lies in the topic, as `ls` shows it
    #[arg(long, value_name = "PARTITION/OFFSET", value_parser = place)]
    at: (i32, Offset),
    /// Do not ask the route's plugins
    #[arg(long)]
    no_plugins: bool,
}

fn place(text: &str) -> Result<(i32, Offset), String> {
    let parts =
        text.split_once('/').and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
    parts.ok_or_else(|| "PARTITION/OFFSET, such as 0/42, is expected".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (topic, (partition, offset)) = (&arguments.of.topic, arguments.at);
    let loaded = arguments.of.load()?;
    let cluster = connect(&loaded)?;
    let from = |at: &crate::model::TopicPartition| {
        ReadFrom::Offset(if at.partition == partition { offset } else { Offset::MAX })
    };
    let mut reader = Reader::open(&cluster, topic, from).map_err(failed)?;
    let batches = reader.next().map_err(failed)?.unwrap_or_default();
    let first = batches.into_iter().find(|batch| batch.offset(0) == offset);
    let Some(batch) = first else {
        return Err(Failure::Usage(anyhow!("there is no record at {topic}/{partition} offset {offset}")));
    };
    let Some(letter) = Letter::read(&*batch, 0) else {
        return Err(Failure::Usage(anyhow!(
            "the record at {topic}/{partition} offset {offset} is no dead letter of millrace"
        )));
    };
    let record = record_of(&batch, 0, &letter);
    let said = if arguments.no_plugins { None } else { verdict(&loaded, &letter, &record)? };
    if arguments.of.json {
        print_json(&letter, &*record, said.as_ref());
    } else {
        print(&letter, &*record, said.as_ref(), arguments.no_plugins);
    }
    Ok(())
}

/// What the plugins of the letter's route say now; none where there is no such route any more.
fn verdict(loaded: &Loaded, letter: &Letter, record: &Arc<dyn SourceBatch>) -> Result<Option<Said>, Failure> {
    let plan = build(loaded, &engine(loaded)?)?;
    let route = plan.routes.values().find(|plan| plan.route.name.as_str() == letter.route);
    Ok(route.map(|route| ask(&mut Bench::new(route), record)))
}

fn headers(record: &dyn SourceBatch) -> Vec<Value> {
    let header = |nth| {
        let (name, value) = record.header(0, nth);
        json!([String::from_utf8_lossy(name), bytes_json(value)])
    };
    (0..record.header_count(0)).map(header).collect()
}

fn print_json(letter: &Letter, record: &dyn SourceBatch, said: Option<&Said>) {
    let now = said.map(|said| match said {
        Said::Fault(fault) => json!({ "outcome": "fault", "code": fault.code.as_str(), "message": fault.message, "plugin": fault.plugin }),
        Said::Dropped => json!({ "outcome": "dropped" }),
        Said::Passed(items) => {
            json!({ "outcome": "passed", "outputs": items.list.iter().map(|item| item_json(items, item)).collect::<Vec<_>>() })
        }
    });
    let object = json!({
        "route": letter.route, "plugin": letter.plugin, "plugin_sha256": letter.sha256, "code": letter.code,
        "message": letter.message, "error_id": letter.error_id, "attempts": letter.attempts, "redrives": letter.redrives, "truncated": letter.truncated,
        "from": { "topic": letter.from.topic, "partition": letter.from.partition, "offset": letter.offset },
        "timestamp": record.timestamp(0), "key": bytes_json(record.key(0)), "value": bytes_json(record.value(0)),
        "headers": headers(record), "now": now,
    });
    anstream::println!("{object:#}");
}

fn print(letter: &Letter, record: &dyn SourceBatch, said: Option<&Said>, unasked: bool) {
    let line = |what: &str, value: String| anstream::println!("{what:<12} {value}");
    line("from", format!("{}, offset {}", letter.from, letter.offset));
    line("route", letter.route.clone());
    line("fault", format!("{}: {}", letter.code, letter.message));
    if let Some(plugin) = &letter.plugin {
        let digest = letter.sha256.as_deref().map(|sha256| format!(" (sha256 {sha256})")).unwrap_or_default();
        line("plugin", format!("{plugin}{digest}"));
    }
    if let Some(id) = &letter.error_id {
        line("error id", id.clone());
    }
    line("attempts", letter.attempts.to_string());
    line("redrives", letter.redrives.to_string());
    line("time", time_of(record, 0));
    line("key", bytes_json(record.key(0)).to_string());
    for header in headers(record) {
        line("header", format!("{}: {}", header[0].as_str().unwrap_or_default(), header[1]));
    }
    if let Some(whole) = letter.truncated {
        line("value", format!("cut: these are the first bytes of {whole}"));
    }
    lines(&diff::values(None, record.value(0)));
    match said {
        Some(Said::Fault(fault)) => line("now", format!("at fault again: {}: {}", fault.code, fault.message)),
        Some(Said::Dropped) => line("now", "the route's plugins drop it".into()),
        Some(Said::Passed(items)) => {
            line("now", "the route's plugins let it through".into());
            for item in items.list.iter() {
                let to = if item.send_to == SendTo::Unset { "as it was going" } else { "sent by a plugin" };
                line("output", to.into());
                if items.value(item) == record.value(0) {
                    anstream::println!("    the same value");
                } else {
                    lines(&diff::values(record.value(0), items.value(item)));
                }
            }
        }
        None if unasked => {}
        None => line("now", format!("the configuration has no route \"{}\" that runs", letter.route)),
    }
}

fn lines(lines: &[Line]) {
    for line in lines {
        match line {
            Line::Removed(text) => anstream::println!("    - {text}"),
            Line::Added(text) => anstream::println!("    + {text}"),
            Line::Same(text) => anstream::println!("      {text}"),
            Line::Note(text) => anstream::println!("    … {text}"),
        }
    }
}
