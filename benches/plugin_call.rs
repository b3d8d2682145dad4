//! What one call of a plugin costs per record: `cargo bench --bench plugin_call`, after `make guests`. Each record has a
//! key of 16 bytes and two headers.

use std::path::Path;
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
const GUESTS: [(&str, &str); 4] =
    [("identity", "identity-pass"), ("header", "header-filter"), ("scan", "scan"), ("rewrite", "rewrite")];

fn prepare(engine: &Engine, guest: &str) -> Arc<Prepared> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/dist").join(format!("{guest}.wasm"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: run `make guests`", path.display()));
    let plugin = PluginName::new(guest).expect("a name");
    let with = Prepare {
        plugin: plugin.clone(),
        route: RouteName::new("bench").expect("a name"),
        config_json: "{}".into(),
        limits: PluginLimits { memory: 64 << 20, timeout: CPU, outputs: 1_000, output_bytes: 16 << 20 },
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

fn calls(criterion: &mut Criterion) {
    let compiler = Some(env!("CARGO_BIN_EXE_millrace").into());
    let engine = Engine::new(EngineOptions { compiler, ..EngineOptions::default() }).expect("an engine");
    for (name, guest) in GUESTS {
        let prepared = prepare(&engine, guest);
        for (size, label) in [(100, "100 B"), (1024, "1 KiB")] {
            let mut group = criterion.benchmark_group(format!("{name} {label}"));
            for count in [1, 128, 512] {
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
}

fn replacing(criterion: &mut Criterion) {
    let compiler = Some(env!("CARGO_BIN_EXE_millrace").into());
    let engine = Engine::new(EngineOptions { compiler, ..EngineOptions::default() }).expect("an engine");
    let prepared = prepare(&engine, "identity-pass");
    let mut items = items(1, 100);
    criterion.bench_function("a new instance and its first call", |bencher| {
        bencher.iter(|| prepared.step().call(&mut items, 0..1, CPU).expect("a sound guest"));
    });
}

criterion_group! {
    name = plugin_call;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = calls, replacing
}
criterion_main!(plugin_call);
