//! `millrace plugin run`: records in, what the plugin makes of each out. The host, the chain and the limits are the
//! router's; only Kafka is not there.

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::ValueEnum;

use super::super::{Failure, environment};
use super::load::{self, PluginArguments};
use super::records::{Batch, FORMAT, Origin, Reader};
use super::show::{Seen, Show};
use crate::model::{Fault, SourceBatch};
use crate::pipeline::chain::{Chain, Processed};
use crate::telemetry::{self, GuestLines};

/// The default of `processing_timeout`.
const PROCESSING: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
#[command(after_help = FORMAT)]
pub(super) struct Arguments {
    #[command(flatten)]
    plugin: PluginArguments,
    #[command(flatten)]
    origin: Origin,
    /// Records of one call, as the router would give them. With more than one, a record's cost is its share of the call
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Show what the plugin logs, from this level
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = Level::Debug)]
    log: Level,
    /// Print a JSON object a record
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl From<Level> for tracing::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Trace => Self::TRACE,
            Level::Debug => Self::DEBUG,
            Level::Info => Self::INFO,
            Level::Warn => Self::WARN,
            Level::Error => Self::ERROR,
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { plugin, origin, batch: records, log, json } = arguments;
    let colour = telemetry::stderr_has_colour(&environment);
    let lines = GuestLines::capture((*log).into(), colour).map_err(|error| Failure::Running(error.into()))?;
    let bytes = load::read(&plugin.file)?;
    let engine = PluginArguments::engine()?;
    let what = format!("compiling {}", plugin.file.display());
    let compiled = load::with_progress(&what, || plugin.compile(&engine, &bytes))?;
    let prepared = plugin.prepare(&compiled)?;
    let mut chain = plugin.chain(&prepared, usize::from(*records));
    let mut show = Show::new(plugin, *json);
    show.started(&lines.take());
    if io::stdin().is_terminal() {
        anstream::eprintln!("reading records from the terminal, one JSON object a line; Ctrl-D ends");
    }
    let mut reader = Reader::new(Box::new(io::stdin().lock()), "stdin".into(), origin);
    let read = each_batch(&mut reader, usize::from(*records), &mut chain, &lines, &mut show);
    chain.shutdown();
    let faults = show.summary(&lines.take());
    match read {
        Ok(()) if faults > 0 => Err(Failure::Said(1)),
        read => read,
    }
}

/// Until the end of the input, or until nobody reads what is shown.
fn each_batch(
    reader: &mut Reader<'_>,
    records: usize,
    chain: &mut Chain,
    lines: &GuestLines,
    show: &mut Show<'_>,
) -> Result<(), Failure> {
    while let Some(batch) = reader.batch(records)? {
        let (processed, cpu, memory) = process(chain, &batch);
        let seen = Seen { batch: &batch, processed: &processed, lines: lines.take(), cpu, memory };
        match show.batch(seen) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Failure::Environment(anyhow!(error).context("stdout cannot be written"))),
        }
    }
    Ok(())
}

/// What the chain makes of the whole batch, the guest's CPU time, and its memory in bytes.
pub(super) fn process(chain: &mut Chain, batch: &Arc<Batch>) -> (Vec<Processed>, Duration, u64) {
    let whole: Arc<dyn SourceBatch> = Arc::clone(batch) as _;
    let done = chain.apply_all(&whole, PROCESSING);
    let (_, usage) = chain.take_usage().next().expect("the chain has one step");
    (done, usage.cpu, usage.memory)
}

/// The fault of a record, where it has one.
pub(super) fn fault_of(processed: &[Processed], index: usize) -> Option<&Fault> {
    let faults = processed.iter().flat_map(|processed| &processed.faults);
    faults.into_iter().find(|(of, _)| *of as usize == index).map(|(_, fault)| fault)
}
