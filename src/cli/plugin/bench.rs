//! `millrace plugin bench`: what a plugin costs, measured through the router's own chain.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use clap::ValueHint;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::super::Failure;
use super::load::{self, PluginArguments};
use super::records::{Batch, FORMAT, Origin, Reader};
use super::run::{fault_of, process};
use super::show::time;
use crate::model::SourceBatch as _;
use crate::pipeline::chain::Chain;
use crate::plugin::{Compiled, Prepared};

/// A run goes on at least so long: the clock and a hiccup of the machine are small beside it.
const RUN: Duration = Duration::from_millis(200);
/// Records that lie in memory: of a larger file the first part is measured.
const BYTES_MAX: usize = 32 << 20;
/// An instance is started so often; the median counts.
const STARTS: usize = 5;
/// So many instances are kept to see what one more takes: the allocator's own steps are small beside them.
const INSTANCES: u32 = 20;

#[derive(clap::Args)]
#[command(after_help = FORMAT)]
pub(super) struct Arguments {
    #[command(flatten)]
    plugin: PluginArguments,
    /// The records, as JSON Lines; taken as records of one partition, and repeated where they are fewer than a call's
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    input: PathBuf,
    /// Records of one call, side by side
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 16, 128, 512], value_parser = clap::value_parser!(u16).range(1..))]
    batch: Vec<u16>,
    /// Runs of each batch size
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u8).range(5..))]
    runs: u8,
    #[command(flatten)]
    origin: Origin,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What it takes until the plugin can be called.
struct Loading {
    compile: Duration,
    from_cache: Duration,
    start: Duration,
    /// Resident memory of an instance more, bytes.
    instance: u64,
}

/// What was measured at one batch size.
struct Measured {
    batch: u16,
    /// ns a record, ascending: one a run.
    runs: Vec<f64>,
    memory: u64,
}

impl Measured {
    fn median(&self) -> f64 {
        self.runs[self.runs.len() / 2]
    }
    fn fastest(&self) -> f64 {
        self.runs[0]
    }
    fn slowest(&self) -> f64 {
        self.runs[self.runs.len() - 1]
    }
    fn per_second(&self) -> f64 {
        1e9 / self.median()
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { plugin, input, batch, runs, origin, json } = arguments;
    let bytes = load::read(&plugin.file)?;
    let file = File::open(input).with_context(|| format!("{} cannot be read", input.display()));
    let file = BufReader::new(file.map_err(Failure::Environment)?);
    let mut reader = Reader::new(Box::new(file), input.display().to_string(), origin);
    let most = batch.iter().copied().max().map_or(1, usize::from);
    let records = Batch::of_all(&mut reader, most, BYTES_MAX)?
        .ok_or_else(|| Failure::Usage(anyhow!("{} holds no records", input.display())))?;
    let (compiled, mut loading) = load_it(plugin, &bytes)?;
    let prepared = plugin.prepare(&compiled)?;
    loading.start = median((0..STARTS).map(|_| timed(|| drop(prepared.ready_step())).1).collect());
    loading.instance = memory_of_an_instance(plugin, &prepared, &records, most);
    let faults = faults(plugin, &prepared, &records);
    let measured = load::with_progress("measuring", || measure(plugin, &prepared, &records, batch, *runs));
    if *json {
        anstream::println!("{:#}", as_json(&compiled, &loading, &measured, records.len(), faults));
    } else {
        print(arguments, &compiled, &loading, &measured, records.len(), faults);
    }
    Ok(())
}

/// Compiled into a cache of its own, and loaded from there by a second engine.
fn load_it(plugin: &PluginArguments, bytes: &[u8]) -> Result<(Compiled, Loading), Failure> {
    let cache = tempfile::tempdir().context("there is no temporary directory").map_err(Failure::Environment)?;
    let first = load::engine(Some(cache.path().into()))?;
    let what = format!("compiling {}", plugin.file.display());
    let (compiled, compile) = timed(|| load::with_progress(&what, || plugin.compile(&first, bytes)));
    drop(compiled?);
    let second = load::engine(Some(cache.path().into()))?;
    let (compiled, from_cache) = timed(|| plugin.compile(&second, bytes));
    Ok((compiled?, Loading { compile, from_cache, start: Duration::ZERO, instance: 0 }))
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// By what the process grows with instances that are kept, each of which has been given all records once, `batch` in a call.
fn memory_of_an_instance(
    plugin: &PluginArguments,
    prepared: &Arc<Prepared>,
    records: &Arc<Batch>,
    batch: usize,
) -> u64 {
    let instance = |_| {
        let mut chain = plugin.chain(prepared, batch);
        process(&mut chain, records);
        chain
    };
    // (with the first, what all of them share)
    let _first = instance(0);
    let before = resident();
    let mut kept: Vec<Chain> = (0..INSTANCES).map(instance).collect();
    let grown = resident().saturating_sub(before);
    kept.iter_mut().for_each(Chain::shutdown);
    grown / u64::from(INSTANCES)
}

/// Resident memory of this process, bytes; 0 where the kernel does not tell.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

/// How many of the records are at fault: their cost is that of a fault.
fn faults(plugin: &PluginArguments, prepared: &Arc<Prepared>, records: &Arc<Batch>) -> usize {
    let mut chain = plugin.chain(prepared, 1);
    let (processed, ..) = process(&mut chain, records);
    (0..records.len()).filter(|index| fault_of(&processed, *index).is_some()).count()
}

fn measure(
    plugin: &PluginArguments,
    prepared: &Arc<Prepared>,
    records: &Arc<Batch>,
    batches: &[u16],
    runs: u8,
) -> Vec<Measured> {
    let mut chains: Vec<Chain> = batches.iter().map(|batch| plugin.chain(prepared, usize::from(*batch))).collect();
    // Warms up, and tells how many passes make a run.
    let passes: Vec<u32> = chains.iter_mut().map(|chain| passes_of_a_run(chain, records)).collect();
    let mut measured: Vec<_> =
        batches.iter().map(|batch| Measured { batch: *batch, runs: Vec::new(), memory: 0 }).collect();
    for _ in 0..runs {
        for ((chain, passes), of) in chains.iter_mut().zip(&passes).zip(&mut measured) {
            let before = cpu();
            for _ in 0..*passes {
                of.memory = process(chain, records).2;
            }
            let spent = (cpu() - before).as_secs_f64() * 1e9;
            of.runs.push(spent / (f64::from(*passes) * records.len() as f64));
        }
    }
    measured.iter_mut().for_each(|of| of.runs.sort_unstable_by(f64::total_cmp));
    chains.iter_mut().for_each(Chain::shutdown);
    measured
}

fn passes_of_a_run(chain: &mut Chain, records: &Arc<Batch>) -> u32 {
    let (start, mut passes) = (cpu(), 0);
    loop {
        process(chain, records);
        passes += 1;
        if cpu() - start >= RUN {
            return passes;
        }
    }
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn as_json(compiled: &Compiled, loading: &Loading, measured: &[Measured], records: usize, faults: usize) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let found = compiled.inspection();
    let batches = measured.iter().map(|of| {
        json!({
            "records": of.batch, "records_per_second": of.per_second().round(), "memory_bytes": of.memory,
            "ns_per_record": { "median": of.median(), "min": of.fastest(), "max": of.slowest(), "runs": of.runs.len() },
        })
    });
    json!({
        "world": compiled.world().to_string(), "sha256": compiled.sha256(), "size": found.size,
        "compile_ms": ms(loading.compile), "load_from_cache_ms": ms(loading.from_cache), "start_ms": ms(loading.start), "instance_bytes": loading.instance,
        "records": records, "faults": faults, "batches": batches.collect::<Vec<_>>(),
    })
}

fn print(
    arguments: &Arguments,
    compiled: &Compiled,
    loading: &Loading,
    measured: &[Measured],
    records: usize,
    faults: usize,
) {
    let Loading { compile, from_cache, start, instance } = loading;
    let size = compiled.inspection().size;
    anstream::println!("{}: a {} of {} bytes", arguments.plugin.file.display(), compiled.world(), grouped(size as f64));
    anstream::println!(
        "compiled in {}, loaded from the cache in {}, an instance started in {}; each takes {} KiB of memory",
        time(*compile),
        time(*from_cache),
        time(*start),
        instance >> 10
    );
    anstream::println!("{} records a pass, {} runs a size\n", grouped(records as f64), arguments.runs);
    anstream::println!(
        "{:>14} {:>12} {:>12} {:>12} {:>14} {:>12}",
        "records a call",
        "ns a record",
        "fastest",
        "slowest",
        "records/s",
        "memory"
    );
    for of in measured {
        anstream::println!(
            "{:>14} {:>12} {:>12} {:>12} {:>14} {:>12}",
            of.batch,
            grouped(of.median()),
            grouped(of.fastest()),
            grouped(of.slowest()),
            grouped(of.per_second()),
            format!("{} KiB", of.memory >> 10)
        );
    }
    if faults > 0 {
        anstream::println!(
            "\n{faults} of the records are at fault, and cost what a fault costs: see `millrace plugin run`"
        );
    }
}

/// A whole number with its thousands apart.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut shown = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        for (number, shown) in [(0.4, "0"), (999.0, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567")] {
            assert_eq!(grouped(number), shown);
        }
    }
}
