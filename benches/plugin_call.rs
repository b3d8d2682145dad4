//! What one call of a plugin costs per record: `cargo bench --bench plugin_call`, after `make guests` and, for the languages
//! other than Rust, `scripts/languages bench`. Each record has a key of 16 bytes and two headers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millrace::config::settings::PluginLimits;
use millrace::model::{Items, PluginName, RouteName, SourceBatch};
use millrace::pipeline::ports::Step;
use millrace::plugin::{Engine, EngineOptions, Prepare, Prepared};

#[path = "../tests/it/support/memory_batch.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod memory_batch;
use memory_batch::{MemoryBatch, MemoryRecord};

const CPU: Duration = Duration::from_secs(10);
const SIZES: [(usize, &str); 2] = [(100, "100 B"), (1024, "1 KiB")];
/// Records of a call.
const BATCHES: [usize; 3] = [1, 128, 512];
const GUESTS: [(&str, &str); 4] =
    [("identity", "identity-pass"), ("header", "header-filter"), ("scan", "scan"), ("rewrite", "rewrite")];
const LANGUAGES: [&str; 4] = ["c", "go", "javascript", "python"];
const JOBS: [&str; 2] = ["header", "rewrite"];

fn file(guest: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/dist").join(format!("{guest}.wasm"))
}

fn engine() -> Engine {
    let compiler = Some(env!("CARGO_BIN_EXE_millrace").into());
    Engine::new(EngineOptions { compiler, ..EngineOptions::default() }).expect("an engine")
}

fn prepare(engine: &Engine, guest: &str, config_json: &str) -> Arc<Prepared> {
    let path = file(guest);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: run `make guests`", path.display()));
    let plugin = PluginName::new(guest).expect("a name");
    let with = Prepare {
        plugin: plugin.clone(),
        route: RouteName::new("bench").expect("a name"),
        config_json: config_json.into(),
        // (JavaScript of 512 records of 1 KiB wants more than the 64 MiB that a plugin has unless it is given more)
        limits: PluginLimits { memory: 128 << 20, timeout: CPU, outputs: 1_000, output_bytes: 16 << 20 },
        allow: Vec::new(),
        destinations: [].into(),
    };
    Arc::new(engine.compile(&plugin, &bytes).and_then(|compiled| compiled.prepare(with)).expect("a sound guest"))
}

fn items(count: usize, size: usize) -> Items {
    let record = |number: usize| {
        let value: Vec<u8> = (0..size).map(|place| b'a' + ((place + number) % 26) as u8).collect();
        let record = MemoryRecord::of_value(value).key(format!("{number:016}"));
        record.header("trace", "0123456789abcdef").header("keep", "yes")
    };
    Items::of(MemoryBatch::numbered((0..count).map(record).collect()) as Arc<dyn SourceBatch>, 0..count)
}

/// Every size of records in every size of batches.
fn measure(criterion: &mut Criterion, name: &str, prepared: &Arc<Prepared>) {
    for (size, label) in SIZES {
        let mut group = criterion.benchmark_group(format!("{name} {label}"));
        for count in BATCHES {
            let mut step = prepared.step();
            let mut items = items(count, size);
            group.throughput(Throughput::Elements(count as u64));
            group.bench_with_input(BenchmarkId::from_parameter(count), &count, |bencher, count| {
                bencher.iter(|| {
                    let output = step.call(&mut items, 0..*count, CPU).expect("a sound guest");
                    items.chunks.clear();
                    output
                });
            });
        }
        group.finish();
    }
}

fn rust(criterion: &mut Criterion) {
    let engine = engine();
    for (name, guest) in GUESTS {
        measure(criterion, name, &prepare(&engine, guest, "{}"));
    }
}

fn languages(criterion: &mut Criterion) {
    let engine = engine();
    for language in LANGUAGES {
        let guest = format!("calls-{language}");
        if !file(&guest).is_file() {
            println!("{language}: not built, and left out: `scripts/languages bench {language}`");
            continue;
        }
        for job in JOBS {
            let prepared = prepare(&engine, &guest, &format!("{{\"job\":\"{job}\"}}"));
            measure(criterion, &format!("{language} {job}"), &prepared);
        }
    }
}

fn replacing(criterion: &mut Criterion) {
    let prepared = prepare(&engine(), "identity-pass", "{}");
    let mut items = items(1, 100);
    criterion.bench_function("a new instance and its first call", |bencher| {
        bencher.iter(|| prepared.step().call(&mut items, 0..1, CPU).expect("a sound guest"));
    });
}

criterion_group! {
    name = plugin_call;
    config = Criterion::default().measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(300)).sample_size(30);
    targets = rust, languages, replacing
}
criterion_main!(plugin_call);
