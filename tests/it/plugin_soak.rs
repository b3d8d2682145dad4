//! Records by the hundred thousand through plugins in every language, whose instances are replaced at random, after faults and
//! without: memory stays flat. A few thousand in `make test`; `make soak-plugins` gives `SOAK_RECORDS` to each.

use std::ops::Range;
use std::time::Duration;

use millrace::model::{FaultCode, Items};
use millrace::pipeline::ports::{CallError, CallOutput, Step, Verdict};
use millrace::plugin::PluginStep;
use serde_json::{Value, json};

use crate::conformance;
use crate::support::is_alone;
use crate::support::memory_batch::{MemoryBatch, MemoryRecord};

const LANGUAGES: [&str; 5] = ["rust", "c", "go", "javascript", "python"];
/// Records for each language where nobody says how many; and how many times as many Rust gets.
const FEW: usize = 4_000;
const RUST: usize = 25;
const BATCH: usize = 100;
/// Of records of a kilobyte; and so many of them.
const LARGE_BATCH: usize = 512;
const LARGE_BATCHES: usize = 150;
/// How often an instance is replaced: once in so many batches.
const REPLACED: u32 = 20;
/// Looks at the memory; the first quarter is for what is only made once.
const LOOKS: usize = 24;
/// By which the means of two halves may differ: pages that the allocator has not given back.
const SLACK: f64 = 6.0 * 1024.0 * 1024.0;
const CPU: Duration = Duration::from_secs(60);

#[test]
fn records_through_every_language_leave_memory_flat_while_instances_are_replaced_at_random() {
    // (compiled once for all tests, those of this process too)
    for language in LANGUAGES {
        ["redact", "conform"].iter().for_each(|kind| drop(conformance::compile(kind, language)));
    }
    if !is_alone("plugin_soak::records_through_every_language_leave_memory_flat_while_instances_are_replaced_at_random")
    {
        return;
    }
    let each = std::env::var("SOAK_RECORDS").ok().map_or(FEW, |each| each.parse().expect("a number of records"));
    for language in LANGUAGES {
        let records = if language == "rust" { each * RUST } else { each };
        let looks = Soak::new(language).run(records);
        let (before, after) = halves(&looks);
        eprintln!(
            "{language}: {records} records, {before:.0} bytes resident in the first half, {after:.0} in the second"
        );
        assert!(after <= before + SLACK, "{language}: memory grows: {looks:?}");
    }
}

/// The means of the first half and of the second.
fn halves(looks: &[f64]) -> (f64, f64) {
    let steady = &looks[looks.len() / 4..];
    let (before, after) = steady.split_at(steady.len() / 2);
    let mean = |looks: &[f64]| looks.iter().sum::<f64>() / looks.len() as f64;
    (mean(before), mean(after))
}

#[test]
fn memory_that_grows_would_be_noticed() {
    let looks: Vec<_> = (0..LOOKS).map(|look| 1e8 + look as f64 * 1e6).collect();
    let (before, after) = halves(&looks);
    assert!(after > before + SLACK, "{before} {after}");
}

#[test]
fn no_language_runs_out_of_its_memory_for_what_it_emits() {
    let value = |number: usize| format!("{{\"card\":\"{number}\",\"note\":\"{}\"}}", "n".repeat(1_000));
    let batch = MemoryBatch::of_values((0..LARGE_BATCH).map(value));
    for language in LANGUAGES {
        let [mut redact, _] = fresh(language);
        for nth in 0..LARGE_BATCHES {
            let (_, output) =
                call(&mut redact, &batch).unwrap_or_else(|error| panic!("{language}, call {nth}: {error:?}"));
            assert_eq!(output.emitted.len(), LARGE_BATCH, "{language}");
        }
        eprintln!("{language}: {:?}", redact.take_usage());
    }
}

/// The two plugins of a language at work: one does a job, the other is made to fault now and then.
struct Soak {
    language: &'static str,
    random: fastrand::Rng,
    redact: PluginStep,
    conform: PluginStep,
}

impl Soak {
    fn new(language: &'static str) -> Self {
        let [redact, conform] = fresh(language);
        Self { language, random: fastrand::Rng::with_seed(6), redact, conform }
    }

    /// What is resident at each look.
    fn run(&mut self, records: usize) -> Vec<f64> {
        let batches = records / BATCH;
        let mut looks = Vec::new();
        for batch in 0..batches {
            match batch % 4 {
                0 => self.rebuild(batch),
                _ => self.redact(batch),
            }
            if self.random.u32(..REPLACED) == 0 {
                self.replace_one();
            }
            if looks.len() < LOOKS * (batch + 1) / batches {
                looks.push(self.look());
            }
        }
        looks
    }

    fn redact(&mut self, batch: usize) {
        let value = |number: usize| match number % 2 {
            0 => format!("{{\"id\":{batch},\"card\":\"{number}\"}}"),
            _ => format!("{{\"id\":{batch},\"name\":\"{number}\"}}"),
        };
        let (_, output) = call(&mut self.redact, &MemoryBatch::of_values((0..BATCH).map(value))).expect("it is JSON");
        assert_eq!((output.verdicts.len(), output.emitted.len()), (BATCH, BATCH / 2), "{}", self.language);
    }

    fn rebuild(&mut self, batch: usize) {
        let record = |number: usize| {
            let record = MemoryRecord::of_value(number.to_string()).key(batch.to_string());
            record.header("other", "o").header("rebuild", "").header("drop", "")
        };
        let records = MemoryBatch::numbered((0..BATCH).map(record).collect());
        let (items, output) = call(&mut self.conform, &records).expect("it is told to do nothing else");
        assert_eq!(output.verdicts, [Verdict::Drop; BATCH], "{}", self.language);
        let last = &output.emitted[BATCH - 1].1;
        assert_eq!(items.value(last), Some((BATCH - 1).to_string().as_bytes()), "{}", self.language);
    }

    /// After a fault, after an orderly end, or with all that a worker has of it.
    fn replace_one(&mut self) {
        match self.random.u32(..4) {
            0 | 1 => {
                let poison = MemoryRecord::of_value("v").header("emit", "one").header("trap", "told to break");
                match call(&mut self.conform, &MemoryBatch::numbered(vec![poison])) {
                    Err(CallError::Fault { code: FaultCode::Trapped, .. }) => {}
                    other => panic!("{}: {:?}", self.language, other.map(|(_, output)| output)),
                }
            }
            2 => self.redact.shutdown(),
            _ => [self.redact, self.conform] = fresh(self.language),
        }
    }

    /// With instances of the same age, so that two looks can be compared.
    fn look(&mut self) -> f64 {
        [self.redact, self.conform] = fresh(self.language);
        self.redact(0);
        self.rebuild(0);
        let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0
    }
}

fn fresh(language: &str) -> [PluginStep; 2] {
    let step = |kind: &str, config: &Value| conformance::prepare(kind, language, config).step();
    [step("redact", &json!({ "fields": ["card"] })), step("conform", &json!({}))]
}

fn call(step: &mut PluginStep, records: &std::sync::Arc<MemoryBatch>) -> Result<(Items, CallOutput), CallError> {
    let mut items = records.items();
    let all: Range<usize> = 0..items.list.len();
    step.call(&mut items, all, CPU).map(|output| (items, output))
}
