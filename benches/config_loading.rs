//! What reading a configuration costs a route: `cargo bench --bench config_loading`. Two destinations with a condition
//! and a dead-letter topic for each route; no plugin is read.

use std::fmt::Write as _;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millrace::config;

fn yaml(routes: usize) -> String {
    let mut text = "memory: 8GiB\nkafka: { bootstrap.servers: \"127.0.0.1:9092\" }\nroutes:\n".to_owned();
    for number in 0..routes {
        write!(
            text,
            "  r{number}:\n    source: {{ topics: [in{number}], start: earliest }}\n    destinations:\n      - {{ topic: out{number} }}\n      \
             - {{ topic: eu{number}, when: \"has(value.region) && value.region == 'eu'\" }}\n    on_error: {{ dead_letter: dead{number} }}\n"
        )
        .expect("a text takes all");
    }
    text
}

fn per_route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("config loading");
    for routes in [1, 100, 1_000] {
        let text = yaml(routes);
        assert!(config::understand_text(&text).is_ok(), "what is measured is a valid configuration");
        group.throughput(Throughput::Elements(routes as u64));
        group.bench_with_input(BenchmarkId::from_parameter(routes), &text, |bencher, text| {
            bencher.iter(|| config::understand_text(text).is_ok());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(5)).sample_size(10);
    targets = per_route
}
criterion_main!(benches);
