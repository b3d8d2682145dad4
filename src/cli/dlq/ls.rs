//! `millrace dlq ls`: the letters of a topic.

use std::collections::BTreeMap;
use std::io::Write as _;

use serde_json::json;

use super::filter::Filter;
use super::{Failure, TopicArguments, connect, failed, time_of};
use crate::cli::plugin::records::bytes_json;
use crate::control::redrive::settled_of;
use crate::kafka::{ReadFrom, Reader};
use crate::model::{OffsetMap, RouteName, SourceBatch};
use crate::pipeline::dead_letter::Letter;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    of: TopicArguments,
    /// Only this route's letters
    #[arg(long, value_name = "NAME", value_parser = |text: &str| RouteName::new(text))]
    route: Option<RouteName>,
    #[command(flatten)]
    filter: Filter,
    /// Those, too, that a redrive has settled
    #[arg(long)]
    all: bool,
    /// Show at most so many; all are counted
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let topic = &arguments.of.topic;
    let loaded = arguments.of.load()?;
    let cluster = connect(&loaded)?;
    let mut settled: BTreeMap<&str, OffsetMap> = BTreeMap::new();
    if !arguments.all {
        for (name, route) in &loaded.settings.routes {
            settled.insert(name.as_str(), settled_of(&cluster, route, topic).map_err(failed)?);
        }
    }
    let mut reader = Reader::open(&cluster, topic, |_| ReadFrom::Beginning).map_err(failed)?;
    let mut counts: BTreeMap<(String, String, String), u64> = BTreeMap::new();
    let (mut found, mut others) = (0, 0);
    while let Some(batches) = reader.next().map_err(failed)? {
        for batch in &batches {
            for index in 0..batch.len() {
                let Some(letter) = Letter::read(&**batch, index) else {
                    others += 1;
                    continue;
                };
                let ours = arguments.route.as_ref().is_none_or(|route| letter.route == route.as_str());
                let done = settled.get(letter.route.as_str()).and_then(|of| of.get(batch.topic_partition()));
                let is_settled = done.is_some_and(|offset| batch.offset(index) < *offset);
                if !ours || is_settled || !arguments.filter.takes(&letter, &**batch, index) {
                    continue;
                }
                found += 1;
                if found <= arguments.limit && !show(arguments.of.json, found == 1, &**batch, index, &letter) {
                    return Ok(());
                }
                let plugin = letter.plugin.unwrap_or_else(|| "-".into());
                *counts.entry((letter.route, plugin, letter.code)).or_default() += 1;
            }
        }
    }
    let more = found.saturating_sub(arguments.limit);
    if more > 0 {
        anstream::eprintln!("… and {more} more: --limit shows them");
    }
    anstream::eprintln!(
        "{found} dead letters in \"{topic}\"{}",
        if arguments.all { "" } else { " that no redrive has settled" }
    );
    for ((route, plugin, code), count) in counts {
        anstream::eprintln!("  {count:>8}  route {route}, plugin {plugin}, {code}");
    }
    if others > 0 {
        anstream::eprintln!("  {others:>8}  records that are no dead letters of millrace");
    }
    Ok(())
}

/// False where nobody reads on.
fn show(json: bool, first: bool, batch: &dyn SourceBatch, index: usize, letter: &Letter) -> bool {
    let at = batch.topic_partition();
    let (offset, time) = (batch.offset(index), time_of(batch, index));
    let mut out = anstream::stdout();
    let written = if json {
        let object = json!({
            "partition": at.partition, "offset": offset, "timestamp": batch.timestamp(index),
            "key": bytes_json(batch.key(index)), "route": letter.route, "plugin": letter.plugin, "code": letter.code,
            "message": letter.message, "error_id": letter.error_id, "attempts": letter.attempts, "redrives": letter.redrives,
            "truncated": letter.truncated,
            "from": { "topic": letter.from.topic, "partition": letter.from.partition, "offset": letter.offset },
        });
        writeln!(out, "{object}")
    } else {
        let header = if first {
            format!("{:<12} {:<24} {:<20} {:<13} {:<24} MESSAGE\n", "AT", "TIME", "ROUTE", "CODE", "FROM")
        } else {
            String::new()
        };
        let from = format!("{}@{}", letter.from, letter.offset);
        let again = if letter.redrives > 0 { format!(" (redriven {} times)", letter.redrives) } else { String::new() };
        let message: String = letter.message.lines().next().unwrap_or_default().chars().take(120).collect();
        let place = format!("{}/{offset}", at.partition);
        writeln!(
            out,
            "{header}{place:<12} {time:<24} {:<20} {:<13} {from:<24} {message}{again}",
            letter.route, letter.code
        )
    };
    written.is_ok()
}
