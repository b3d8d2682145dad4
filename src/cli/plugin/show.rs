//! What `plugin run` shows of each record: its outcome, what comes out and how that differs from what went in, what the
//! plugin logged, what it cost. For people, or as JSON Lines.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};

use super::diff::{self, Line};
use super::load::PluginArguments;
use super::records::{Batch, bytes_json, item_json};
use super::run::fault_of;
use crate::model::{Fault, FaultCode, Item, Items, SendTo, SourceBatch as _};
use crate::pipeline::chain::Processed;
use crate::telemetry::GuestLine;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const REMOVED: Style = AnsiColor::Red.on_default();
const ADDED: Style = AnsiColor::Green.on_default();
const FAULT: Style = AnsiColor::Red.on_default().bold();
const LOGGED: Style = AnsiColor::Cyan.on_default();

/// Where it is shown, and what has been so far.
pub(super) struct Show<'a> {
    plugin: &'a PluginArguments,
    json: bool,
    out: Box<dyn Write>,
    outcomes: BTreeMap<&'static str, u64>,
    faults: BTreeMap<FaultCode, u64>,
    records: u64,
    outputs: u64,
    cpu: Duration,
    memory: u64,
}

/// A batch that went through the plugin.
pub(super) struct Seen<'a> {
    pub(super) batch: &'a Batch,
    pub(super) processed: &'a [Processed],
    pub(super) lines: Vec<GuestLine>,
    pub(super) cpu: Duration,
    pub(super) memory: u64,
}

/// One record of it.
struct Record<'a> {
    batch: &'a Batch,
    index: usize,
    /// What goes on.
    outputs: Vec<(&'a Items, &'a Item)>,
    fault: Option<&'a Fault>,
    lines: Vec<&'a GuestLine>,
    cpu: Duration,
}

impl Record<'_> {
    /// `kept`: as it is, where it was going; `emitted`: what was made of it, in its place.
    fn outcome(&self) -> &'static str {
        let kept = |(_, item): &(&Items, &Item)| item.send_to == SendTo::Unset;
        match (self.fault, self.outputs.as_slice()) {
            (Some(_), _) => "fault",
            (None, []) => "dropped",
            (None, outputs) if outputs.iter().any(kept) => "kept",
            (None, _) => "emitted",
        }
    }
}

impl<'a> Show<'a> {
    pub(super) fn new(plugin: &'a PluginArguments, json: bool) -> Self {
        let out: Box<dyn Write> = if json { Box::new(io::stdout()) } else { Box::new(anstream::stdout()) };
        let (outcomes, faults) = (BTreeMap::new(), BTreeMap::new());
        Self { plugin, json, out, outcomes, faults, records: 0, outputs: 0, cpu: Duration::ZERO, memory: 0 }
    }

    /// What the plugin logged before its first record.
    pub(super) fn started(&self, lines: &[GuestLine]) {
        for line in lines {
            anstream::eprintln!("{}", log_line(line));
        }
    }

    pub(super) fn batch(&mut self, seen: Seen<'_>) -> io::Result<()> {
        self.cpu += seen.cpu;
        self.memory = seen.memory;
        let cpu = seen.cpu / u32::try_from(seen.batch.len()).unwrap_or(u32::MAX);
        for index in 0..seen.batch.len() {
            let offset = seen.batch.offset(index);
            // What is about no record is shown with the first, and is said to be of the call.
            let about = |line: &&GuestLine| offset_of(line).map_or(index == 0, |of| of == offset);
            let items = seen.processed.iter().flat_map(|done| done.items.list.iter().map(|item| (&done.items, item)));
            let record = Record {
                batch: seen.batch,
                index,
                outputs: items.filter(|(_, item)| item.source as usize == index).collect(),
                fault: fault_of(seen.processed, index),
                lines: seen.lines.iter().filter(about).collect(),
                cpu,
            };
            self.count(&record);
            if self.json { self.record_json(&record)? } else { self.record_text(&record)? }
        }
        self.out.flush()
    }

    fn count(&mut self, record: &Record<'_>) {
        self.records += 1;
        self.outputs += record.outputs.len() as u64;
        *self.outcomes.entry(record.outcome()).or_default() += 1;
        if let Some(fault) = record.fault {
            *self.faults.entry(fault.code).or_default() += 1;
        }
    }

    /// Says what it was all in all; returns how many records were at fault.
    pub(super) fn summary(&self, lines: &[GuestLine]) -> u64 {
        for line in lines {
            anstream::eprintln!("{}", log_line(line));
        }
        let outcome = |name| self.outcomes.get(name).copied().unwrap_or(0);
        let mut parts = vec![format!("{} records", self.records)];
        for name in ["kept", "emitted", "dropped"] {
            parts.push(format!("{} {name}", outcome(name)));
        }
        let codes: Vec<_> = self.faults.iter().map(|(code, count)| format!("{count} {code}")).collect();
        let codes = if codes.is_empty() { String::new() } else { format!(" ({})", codes.join(", ")) };
        parts.push(format!("{} at fault{codes}", outcome("fault")));
        parts.push(format!("{} out", self.outputs));
        let each = self.cpu.checked_div(u32::try_from(self.records).unwrap_or(u32::MAX)).unwrap_or_default();
        parts.push(format!("{} of CPU each", time(each)));
        parts.push(format!("{} KiB of memory", self.memory >> 10));
        anstream::eprintln!("{}", parts.join(" · "));
        outcome("fault")
    }

    fn record_json(&mut self, record: &Record<'_>) -> io::Result<()> {
        let at = record.batch.topic_partition();
        let outputs = record.outputs.iter().map(|(items, item)| {
            let mut output = item_json(items, item);
            output["destination"] = match item.send_to {
                SendTo::Unset => Value::Null,
                SendTo::Defaults => "".into(),
                SendTo::Named(index) => self.plugin.destination_name(index).into(),
            };
            if let Some(topic) = &item.topic {
                output["topic"] = topic.as_str().into();
            }
            if let Some(partition) = item.partition {
                output["partition"] = partition.into();
            }
            output
        });
        let fault = |fault: &Fault| json!({ "code": fault.code.as_str(), "message": fault.message });
        let line = |line: &&GuestLine| {
            let of = if offset_of(line).is_some() { "record" } else { "call" };
            json!({ "level": line.level.as_str().to_lowercase(), "message": line.message, "of": of })
        };
        let shown = json!({
            "topic": at.topic, "partition": at.partition, "offset": record.batch.offset(record.index),
            "outcome": record.outcome(), "outputs": outputs.collect::<Vec<_>>(), "fault": record.fault.map(fault),
            "logs": record.lines.iter().map(line).collect::<Vec<_>>(),
            "cpu_ns": u64::try_from(record.cpu.as_nanos()).unwrap_or(u64::MAX),
        });
        writeln!(self.out, "{shown}")
    }

    fn record_text(&mut self, record: &Record<'_>) -> io::Result<()> {
        let at = format!("{}@{}", record.batch.topic_partition(), record.batch.offset(record.index));
        let cost = time(record.cpu);
        match record.fault {
            Some(Fault { code, message, .. }) => {
                writeln!(self.out, "{BOLD}{at}{BOLD:#}  {FAULT}{code}{FAULT:#}: {message}  {DIM}{cost}{DIM:#}")?;
            }
            None => writeln!(self.out, "{BOLD}{at}{BOLD:#}  {}  {DIM}{cost}{DIM:#}", record.outcome())?,
        }
        for (items, item) in record.outputs.iter().filter(|(_, item)| item.send_to != SendTo::Unset) {
            self.output_text(items, item)?;
        }
        for line in &record.lines {
            writeln!(self.out, "  {}", log_line(line))?;
        }
        Ok(())
    }

    /// An output by what differs from its source.
    fn output_text(&mut self, items: &Items, item: &Item) -> io::Result<()> {
        let destination = match item.send_to {
            SendTo::Named(index) => self.plugin.destination_name(index),
            SendTo::Unset | SendTo::Defaults => "the default destinations",
        };
        let topic = item.topic.as_ref().map(|topic| format!(", topic {topic}")).unwrap_or_default();
        let partition = item.partition.map(|partition| format!(", partition {partition}")).unwrap_or_default();
        writeln!(self.out, "  → {destination}{topic}{partition}")?;
        let (source, index) = (&items.source, item.source as usize);
        let mut same = true;
        let (before, after) = (source.timestamp(index), items.timestamp(item));
        for (what, before, after) in [
            ("key", one_line(source.key(index)), one_line(items.key(item))),
            ("timestamp", before.to_string(), after.to_string()),
        ] {
            if before != after {
                same = false;
                writeln!(self.out, "    {what} {REMOVED}{before}{REMOVED:#} → {ADDED}{after}{ADDED:#}")?;
            }
        }
        let header =
            |(name, value): (&[u8], Option<&[u8]>)| format!("{}: {}", String::from_utf8_lossy(name), one_line(value));
        let before: Vec<_> = (0..source.header_count(index)).map(|nth| header(source.header(index, nth))).collect();
        let after: Vec<_> = (0..items.header_count(item)).map(|nth| header(items.header(item, nth))).collect();
        if before != after {
            same = false;
            self.lines_text("headers", &diff::lines(&before, &after))?;
        }
        if source.value(index) != items.value(item) {
            same = false;
            self.lines_text("value", &diff::values(source.value(index), items.value(item)))?;
        }
        if same { writeln!(self.out, "    as it was") } else { Ok(()) }
    }

    fn lines_text(&mut self, what: &str, lines: &[Line]) -> io::Result<()> {
        writeln!(self.out, "    {what}")?;
        for line in lines {
            match line {
                Line::Removed(text) => writeln!(self.out, "    {REMOVED}- {text}{REMOVED:#}")?,
                Line::Added(text) => writeln!(self.out, "    {ADDED}+ {text}{ADDED:#}")?,
                Line::Same(text) => writeln!(self.out, "      {text}")?,
                Line::Note(text) => writeln!(self.out, "    {DIM}… {text}{DIM:#}")?,
            }
        }
        Ok(())
    }
}

fn offset_of(line: &GuestLine) -> Option<i64> {
    line.fields.get("offset")?.as_i64()
}

fn log_line(line: &GuestLine) -> String {
    let level = line.level.as_str().to_lowercase();
    let of = if offset_of(line).is_some() { "" } else { ", about no record" };
    format!("{LOGGED}log {level}{of}:{LOGGED:#} {}", line.message)
}

fn one_line(bytes: Option<&[u8]>) -> String {
    bytes_json(bytes).to_string()
}

/// A duration with three digits.
pub(super) fn time(duration: Duration) -> String {
    let ns = duration.as_secs_f64() * 1e9;
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        for (ns, shown) in
            [(0, "0.00 ns"), (999, "999 ns"), (1_234, "1.23 µs"), (45_600, "45.6 µs"), (7_890_000, "7.89 ms")]
        {
            assert_eq!(time(Duration::from_nanos(ns)), shown);
        }
    }
}
