//! From a configuration to a plan: what `check` and the start of the daemon find out without Kafka.

use millrace::config::{self, Loaded, Problems};
use millrace::control::plan::Plan;
use millrace::plugin::{Engine, EngineOptions};

use crate::support::{root, scratch};

fn load(yaml: &str) -> Loaded {
    let directory = scratch("plan");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("millrace.yaml"), yaml).unwrap();
    config::load(&directory, &|_| None).unwrap_or_else(|problems| panic!("{problems}"))
}

fn plan(loaded: &Loaded) -> Result<Plan, Problems> {
    let engine = Engine::new(EngineOptions { cache_dir: None }).unwrap();
    Plan::build(loaded, &engine, None).map_err(|refused| refused.problems)
}

fn guest(name: &str) -> String {
    root().join("plugins/dist").join(name).display().to_string()
}

#[test]
fn the_example_configuration_is_parsed_and_planned() {
    let loaded = config::load(&root().join("config"), &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
    let plan = plan(&loaded).unwrap_or_else(|problems| panic!("(run `make guests` first) {problems}"));
    let names: Vec<_> = plan.routes.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["earthquakes", "public-feed"]);
    assert!(plan.routes.values().all(|route| route.plugins().count() > 0));
}

#[test]
fn workers_of_routes_that_share_a_group_are_numbered_on_so_that_none_fences_another() {
    let loaded = load(
        "kafka: { bootstrap.servers: '127.0.0.1:1' }
routes:
  a: { source: { topics: [a], group: shared, start: earliest }, destinations: [{ topic: x }], workers: 2 }
  b: { source: { topics: [b], group: shared, start: earliest }, destinations: [{ topic: x }], workers: 3 }
  c: { source: { topics: [c], start: earliest }, destinations: [{ topic: x }] }
  d: { source: { topics: [d], group: shared, start: earliest }, destinations: [{ topic: x }] }
",
    );
    let plan = plan(&loaded).unwrap_or_else(|problems| panic!("{problems}"));
    let first: Vec<_> = plan.routes.values().map(|route| route.first_worker).collect();
    assert_eq!(first, [0, 2, 0, 5]);
}

#[test]
fn every_plugin_and_property_that_cannot_be_used_is_told_at_its_place() {
    let (redact, wasi) = (guest("redact-fields.wasm"), guest("needs-wasi.wasm"));
    let loaded = load(&format!(
        "kafka:
  bootstrap.servers: '127.0.0.1:1'
  no.such.property: 1
  consumer: {{ linger.ms: 5 }}
plugins:
  missing: {{ path: nowhere.wasm }}
  curious: {{ path: '{wasi}' }}
  pinned: {{ path: '{redact}', sha256: {pin} }}
  picky: {{ path: '{redact}', config: {{ fieldz: [a] }} }}
routes:
  r:
    source: {{ topics: [a], start: earliest }}
    pipeline: [{{ plugin: missing }}, {{ plugin: curious }}, {{ plugin: pinned }}, {{ plugin: picky }}]
    destinations: [{{ topic: x }}]
",
        pin = "0".repeat(64),
    ));
    let Err(problems) = plan(&loaded) else { panic!("it must be refused") };
    let told = problems.to_string();
    for (line, words) in [
        (3, "no.such.property"),
        (4, "linger.ms"),
        (6, "nowhere.wasm cannot be read"),
        (7, "wasi_snapshot_preview1"),
        (8, "not the 0000"),
        (13, "unknown field `fieldz`"),
    ] {
        let place = format!("millrace.yaml:{line}:");
        assert!(told.contains(&place) && told.contains(words), "{place} {words} in:\n{told}");
    }
    assert_eq!(problems.iter().filter(|problem| !problem.is_warning()).count(), 6, "{told}");
    assert!(!problems.only_unreadable());
}
