//! What the record loop costs per record: `cargo bench --bench record_loop`, after `make guests`.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use millrace::plugin::{Engine, EngineOptions};

#[path = "../tests/it/support/memory_batch.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod memory_batch;
#[path = "../tests/it/support/record_loop.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod record_loop;
use record_loop::{BATCH, chain, prepare, prepare_with, run, source, task};

/// Polls that make a full transaction.
const POLLS: usize = 10;

fn per_record(criterion: &mut Criterion) {
    let compiler = Some(env!("CARGO_BIN_EXE_millrace").into());
    let engine = Engine::new(EngineOptions { compiler, ..EngineOptions::default() }).expect("an engine");
    let [identity, header] = ["identity-pass", "header-filter"].map(|guest| prepare(&engine, guest));
    let source = source(POLLS);
    let mut group = criterion.benchmark_group("record loop");
    group.throughput(Throughput::Elements((BATCH * POLLS) as u64));
    for (name, plugins) in [
        ("no plugin", &[][..]),
        ("identity-pass", &[Arc::clone(&identity)]),
        ("header-filter", &[Arc::clone(&header)]),
        ("both", &[identity, header]),
    ] {
        group.bench_function(name, |bencher| {
            let setup = || (source.clone(), task(plugins));
            bencher.iter_batched(setup, |(source, mut task)| run(source, &mut task), BatchSize::LargeInput);
        });
    }
    group.finish();
    let slow = prepare_with(&engine, "slow", r#"{ "rounds": 300 }"#);
    let source = record_loop::source(1);
    let mut group = criterion.benchmark_group("a slow plugin");
    group.sample_size(10).throughput(Throughput::Elements(BATCH as u64));
    for sets in [1, 2, 4] {
        group.bench_function(format!("{sets} sets"), |bencher| {
            let setup = || {
                let mut task = task(std::slice::from_ref(&slow));
                task.chain.share_with((1..sets).map(|_| chain(std::slice::from_ref(&slow))).collect());
                (source.clone(), task)
            };
            bencher.iter_batched(setup, |(source, mut task)| run(source, &mut task), BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(5)).warm_up_time(Duration::from_secs(1));
    targets = per_record
}
criterion_main!(benches);
