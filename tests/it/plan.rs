//! From a configuration to a plan: what `check` and the start of the daemon find out without Kafka.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use millrace::config::{self, Loaded, Problems};
use millrace::control::change::{Action, Changes, ReloadClass};
use millrace::control::hazards::{HazardCode, hazards};
use millrace::control::plan::Plan;
use millrace::kafka::{TopicState, Topics};
use millrace::model::{RouteName, TopicName};
use millrace::plugin::Engine;

use crate::support::{guests, root, scratch};

fn load(yaml: &str) -> Loaded {
    let directory = scratch("plan");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("millrace.yaml"), yaml).unwrap();
    std::fs::write(directory.join("secret"), "hunter2").unwrap();
    config::load(&directory, &|_| None).unwrap_or_else(|problems| panic!("{problems}"))
}

/// One for all tests: what is compiled once is not compiled again.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| guests::engine(None))
}

fn plan(loaded: &Loaded) -> Result<Plan, Problems> {
    Plan::build(loaded, engine(), None).map_err(|refused| refused.problems)
}

/// The plan of `yaml`, after that of `before`.
fn plan_after(yaml: &str, before: &Plan) -> Plan {
    Plan::build(&load(yaml), engine(), Some(before)).unwrap_or_else(|refused| panic!("{}", refused.problems))
}

fn first_plan(yaml: &str) -> Plan {
    plan(&load(yaml)).unwrap_or_else(|problems| panic!("{problems}"))
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
    let (redact, clock) = (guest("redact-fields.wasm"), guest("needs-clock.wasm"));
    let loaded = load(&format!(
        "kafka:
  bootstrap.servers: '127.0.0.1:1'
  no.such.property: 1
  consumer: {{ linger.ms: 5 }}
plugins:
  missing: {{ path: nowhere.wasm }}
  curious: {{ path: '{clock}' }}
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
        (7, "test:clock/clock@1.0.0"),
        (8, "not the 0000"),
        (13, "unknown field `fieldz`"),
    ] {
        let place = format!("millrace.yaml:{line}:");
        assert!(told.contains(&place) && told.contains(words), "{place} {words} in:\n{told}");
    }
    assert_eq!(problems.iter().filter(|problem| !problem.is_warning()).count(), 6, "{told}");
    assert!(!problems.only_unreadable());
}

#[test]
fn a_plugin_that_asks_for_more_than_it_is_granted_is_refused_at_its_allow_with_what_to_write() {
    let capable = guest("capable.wasm");
    let loaded = load(&format!(
        "kafka: {{ bootstrap.servers: '127.0.0.1:1' }}
plugins:
  hungry:
    path: '{capable}'
    allow: [random]
  starving: {{ path: '{capable}' }}
  sated: {{ path: '{capable}', allow: [random, clock, metrics, clock] }}
routes:
  r: {{ source: {{ topics: [a], start: earliest }}, destinations: [{{ topic: x }}] }}
"
    ));
    let Err(problems) = plan(&loaded) else { panic!("it must be refused") };
    let told = problems.to_string();
    for words in [
        "millrace.yaml:5:12",
        "plugin \"hungry\"",
        "millrace:plugin/clock@0.1.1",
        "write `allow: [metrics, clock, random]` at the plugin",
        "millrace.yaml:6:3",
        "plugin \"starving\"",
    ] {
        assert!(told.contains(words), "{words} in:\n{told}");
    }
    assert_eq!(problems.iter().count(), 2, "{told}");
    assert!(problems.iter().all(|problem| !problem.is_warning()));
}

/// Two routes with a plugin each, one with all that can be written.
fn base() -> String {
    format!(
        "kafka: {{ bootstrap.servers: 'a:1', sasl.password: one }}
plugins:
  redact: {{ path: '{redact}', config: {{ fields: [card] }} }}
routes:
  paid:
    source: {{ topics: [orders], exclude: [x], group: paid, start: earliest, consumer: {{ fetch.min.bytes: 1 }} }}
    pipeline: [{{ plugin: redact }}]
    destinations: [{{ topic: orders.paid }}, {{ name: region, topic_pattern: '^r\\..*', default: false }}]
    on_error: {{ retry: {{ attempts: 1 }}, then: {{ dead_letter: dead }} }}
    lag_alert: 60s
  other:
    source: {{ topics: [orders], start: latest }}
    destinations: [{{ topic: copy }}]
",
        redact = guest("redact-fields.wasm")
    )
}

#[test]
fn a_change_does_to_each_route_what_its_keys_ask_for_and_says_which() {
    let before = first_plan(&base());
    use Action::{Added, Removed, Restarted, Swapped, Unchanged};
    let cases: [(&str, &str, Action, Action, &str); 19] = [
        ("lag_alert: 60s", "lag_alert: 60s # a comment", Unchanged, Unchanged, ""),
        ("fields: [card]", "fields: [iban]", Swapped, Unchanged, "pipeline.0.config"),
        ("[card] }", "[card] }, memory: 32MiB", Swapped, Unchanged, "plugins.redact.memory"),
        ("[card] }", "[card] }, allow: [clock]", Swapped, Unchanged, "plugins.redact.allow"),
        ("[card] }", "[card] }, allow: []", Unchanged, Unchanged, ""),
        (
            "pipeline: [{ plugin: redact }]",
            "pipeline: [{ plugin: redact }, { plugin: redact }]",
            Swapped,
            Unchanged,
            "pipeline",
        ),
        ("topic: orders.paid", "topic: orders.done", Swapped, Unchanged, "destinations"),
        ("attempts: 1", "attempts: 2", Swapped, Unchanged, "on_error.retry"),
        ("dead_letter: dead", "dead_letter: dead2", Swapped, Unchanged, "on_error"),
        ("lag_alert: 60s", "transaction: { interval: 50ms }, lag_alert: 60s", Swapped, Unchanged, ""),
        ("topics: [orders], exclude", "topics: [orders, more], exclude", Restarted, Unchanged, "source.topics"),
        ("group: paid", "group: paid2", Restarted, Unchanged, "source.group"),
        ("fetch.min.bytes: 1", "fetch.min.bytes: 2", Restarted, Unchanged, "source.consumer.fetch.min.bytes"),
        ("lag_alert: 60s", "delivery: at_least_once", Restarted, Unchanged, "delivery"),
        ("lag_alert: 60s", "workers: 2", Swapped, Unchanged, "workers"),
        ("lag_alert: 60s", "enabled: false", Removed, Unchanged, "enabled"),
        ("  other:", "  another:", Unchanged, Removed, ""),
        ("sasl.password: one", "sasl.password: two", Restarted, Restarted, "kafka.sasl.password"),
        ("routes:", "memory: 512MiB\nroutes:", Unchanged, Unchanged, ""),
    ];
    for (old, new, paid, other, key) in cases {
        let edited = base().replacen(old, new, 1);
        let edited = edited
            .replace("transaction: { interval: 50ms }, lag_alert", "transaction: { interval: 50ms }\n    lag_alert");
        assert_ne!(edited, base(), "{old}");
        let after = plan_after(&edited, &before);
        let changes = Changes::between(&before.facts(), &after.facts());
        let action = |name: &str| changes.action(&RouteName::new(name).unwrap());
        assert_eq!((action("paid"), action("other")), (paid, other), "{new}: {changes}");
        let why: Vec<_> = changes.routes.values().flat_map(|change| change.keys()).collect();
        assert!(key.is_empty() || why.contains(&key), "{new}: {why:?}");
        let back = Changes::between(&after.facts(), &before.facts());
        let other_way = |action| match action {
            Added => Removed,
            Removed => Added,
            same => same,
        };
        assert_eq!(back.action(&RouteName::new("paid").unwrap()), other_way(paid), "{new}, back");
    }
}

#[test]
fn a_secret_is_compared_and_never_told() {
    let yaml = base().replace("sasl.password: one", "sasl.password: \"${file:secret}\"");
    let yaml = yaml.replace("fields: [card]", "fields: [\"${file:secret}\"]");
    let facts = first_plan(&yaml).facts();
    let told = serde_json::to_string(&facts).unwrap();
    assert!(!told.contains("hunter2") && told.contains("[redacted]"), "{told}");
    // Nor anything made of it that would tell whether a guess is right.
    let config = millrace::model::Digest::of(br#"{"fields":["hunter2"]}"#).to_string();
    assert!(!told.contains(&config), "{told}");
    let elsewhere = serde_json::from_str(&told).unwrap();
    assert_eq!(facts, elsewhere, "another process cannot tell them apart");
    let plain = first_plan(&yaml.replace("\"${file:secret}\"", "hunter3")).facts();
    assert_ne!(facts, plain);
}

#[test]
fn every_key_has_a_documented_reload_class() {
    let page = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let section = page.split("## What a change of a key takes").nth(1).expect("the section").split("\n## ").next();
    let mut documented: BTreeMap<String, &str> = BTreeMap::new();
    for row in section.expect("its text").lines().filter(|line| line.starts_with("| `")) {
        let mut cells = row.trim_matches('|').split('|');
        let (keys, change) = (cells.next().expect("keys"), cells.next().expect("a class"));
        let names = keys.split('`').skip(1).step_by(2);
        documented.extend(names.map(|name| (name.to_owned(), change.trim())));
    }
    let facts = first_plan(&base().replace("routes:", "instance: pod-0\ncache_dir: cache\nroutes:")).facts();
    let words = |class| match class {
        ReloadClass::InPlace => "is taken up in place",
        ReloadClass::Route => "restarts the route",
        ReloadClass::AllRoutes => "restarts all routes",
    };
    let of_routes = facts.routes.values().flat_map(|keys| keys.keys()).map(|key| (key, ReloadClass::of_route(key)));
    let of_process = facts.process.keys().map(|key| (key, ReloadClass::of_process(key)));
    for (key, class) in of_routes.chain(of_process).filter(|(key, _)| *key != "enabled") {
        let top = key.split('.').next().expect("a name");
        let said = documented.get(top).unwrap_or_else(|| panic!("{key} is not in docs/configuration.md"));
        assert!(said.starts_with(words(class)), "{key}: the page says {said:?}, and it is {class:?}");
    }
    assert!(documented["enabled"].starts_with("starts or removes"));
}

fn topics(named: &[(&str, i32)]) -> Topics {
    let state = |partitions| TopicState { partitions, replicas: 1, leaderless: 0 };
    let by_name = named.iter().map(|(name, count)| (TopicName::new(name).unwrap(), state(*count))).collect();
    Topics { by_name, brokers: Vec::new() }
}

#[test]
fn what_is_hazardous_about_a_change_is_told_and_only_that() {
    use HazardCode::{
        Capabilities, DeadLetterInSource, Delivery, GroupChanged, GroupReused, History, MissingTopic, NewGroup,
        PartitionCount, Partitioning,
    };
    let before = first_plan(&base());
    let cluster = topics(&[("orders", 4), ("orders.paid", 4), ("copy", 4), ("dead", 1), ("wide", 8), ("narrow", 2)]);
    let others_group = "start: latest, group: paid";
    /// What is replaced by what in the YAML, and what that is told for: with whether it is refused.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [(HazardCode, bool)]);
    let cases: [Case<'_>; 12] = [
        (&[("fields: [card]", "fields: [iban]")], &[]),
        (&[("[card] }", "[card] }, allow: [random, clock]")], &[(Capabilities, false)]),
        (&[("  other:", "  another:")], &[(NewGroup, true)]),
        (&[("start: latest", "start: latest, group: elsewhere")], &[(GroupChanged, false)]),
        (
            &[("lag_alert: 60s", "enabled: false"), ("start: latest", others_group)],
            &[(GroupChanged, false), (GroupReused, false)],
        ),
        (&[("topics: [orders], start", "topics: [orders, wide], start")], &[(History, false)]),
        (&[("topic: copy", "topic: wide")], &[(Partitioning, false)]),
        (&[("topic: copy", "topic: copy, partition: round_robin")], &[(Partitioning, false)]),
        (&[("topic: copy", "topic: narrow, partition: source")], &[(PartitionCount, true), (Partitioning, false)]),
        (&[("lag_alert: 60s", "delivery: at_least_once")], &[(Delivery, false)]),
        (&[("topic: copy", "topic: nowhere")], &[(MissingTopic, true)]),
        (&[("topics: [orders], start", "topics: ['^d.*'], start")], &[(History, false), (DeadLetterInSource, false)]),
    ];
    for (edits, expected) in cases {
        let edited = edits.iter().fold(base(), |yaml, (old, new)| yaml.replacen(old, new, 1));
        let after = plan_after(&edited, &before);
        let changes = Changes::between(&before.facts(), &after.facts());
        let found = hazards(&before.facts(), &after, &changes, Some(&cluster), false);
        let in_order = |codes: Vec<(HazardCode, bool)>| {
            let mut codes: Vec<_> = codes.iter().map(|code| format!("{code:?}")).collect();
            codes.sort();
            codes
        };
        let codes = found.iter().map(|hazard| (hazard.code, hazard.refused)).collect();
        assert_eq!(in_order(codes), in_order(expected.to_vec()), "{edits:?}: {found:#?}");
    }
    // Accepted, a rename is told all the same. A topic that the route waits for already refuses nothing.
    let renamed = plan_after(&base().replace("  other:", "  another:"), &before);
    let changes = Changes::between(&before.facts(), &renamed.facts());
    let found = hazards(&before.facts(), &renamed, &changes, Some(&cluster), true);
    assert!(
        found.iter().any(|hazard| hazard.code == NewGroup) && !found.iter().any(|hazard| hazard.refused),
        "{found:?}"
    );
    let edited = plan_after(&base().replace("fields: [card]", "fields: [iban]"), &before);
    let changes = Changes::between(&before.facts(), &edited.facts());
    assert_eq!(hazards(&before.facts(), &edited, &changes, Some(&topics(&[("orders", 4)])), false), []);
}

#[test]
fn a_route_keeps_its_workers_numbers_and_gets_none_that_another_has() {
    let yaml = |routes: &str| format!("kafka: {{ bootstrap.servers: 'a:1' }}\nroutes:\n{routes}");
    let route = |name: &str, workers: u16| {
        format!(
            "  {name}: {{ source: {{ topics: [{name}], group: shared, start: earliest }}, destinations: [{{ topic: x }}], \
             workers: {workers} }}\n"
        )
    };
    let numbers = |plan: &Plan| -> Vec<(String, u16)> {
        plan.routes.iter().map(|(name, route)| (name.to_string(), route.first_worker)).collect()
    };
    let named =
        |list: &[(&str, u16)]| list.iter().map(|(name, first)| ((*name).to_owned(), *first)).collect::<Vec<_>>();
    let one = first_plan(&yaml(&(route("b", 2) + &route("c", 1))));
    assert_eq!(numbers(&one), named(&[("b", 0), ("c", 2)]));
    // One that comes first in the file does not push the others on.
    let two = plan_after(&yaml(&(route("a", 1) + &route("b", 2) + &route("c", 1))), &one);
    assert_eq!(numbers(&two), named(&[("a", 3), ("b", 0), ("c", 2)]));
    // b is gone, and leaves before another begins; c has more workers than it had place for beside a.
    let three = plan_after(&yaml(&(route("a", 1) + &route("c", 2) + &route("d", 1))), &two);
    assert_eq!(numbers(&three), named(&[("a", 3), ("c", 0), ("d", 4)]));
    // One that takes the place of another has its numbers, as after a restart of the process.
    let four = plan_after(&yaml(&route("e", 1)), &three);
    assert_eq!(numbers(&four), named(&[("e", 0)]));
}
