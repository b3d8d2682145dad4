//! Reloads under load: what they leave alone while records flow, and what is kept when they are cut short. The guest `stamp`
//! tells of each record which configuration it met.

mod interrupted;
mod routes;
mod swaps;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::guests::guest_variant;
use crate::support::kafka::ConsumedRecord;
use crate::support::wait_until;

const PATIENCE: Duration = Duration::from_secs(60);
const FOR_EVER: (&str, &str) = ("retention.ms", "-1");

/// The header in which the guest leaves its stamp, and the file that it is run from, beside the YAML.
const STAMP: &str = "v";
const FILE: &str = "stamp.wasm";

/// A configuration whose plugin `stamp` can be changed, in its file and in what it stamps; `rest` holds the routes.
fn stamping(bootstrap: &str, rest: &str) -> Config {
    let plugin = format!("plugins:\n  stamp: {{ path: {FILE}, config: {{ name: {STAMP}, value: \"0\" }} }}\n");
    let watch = "watch: { debounce: 50ms, interval: 500ms }\n";
    let config = Config::new(bootstrap, &[], &format!("{watch}{plugin}{rest}"));
    put_guest(&config, "v1");
    config
}

fn put_guest(config: &Config, variant: &str) {
    config.put(FILE, &guest_variant("stamp", variant));
}

/// Has the plugin stamp this number from the next reload on, in place of the one before.
fn stamp_with(config: &Config, number: u32) {
    let value = |number: u32| format!("value: \"{number}\" }} }}");
    config.edit(|yaml| yaml.replacen(&value(number - 1), &value(number), 1));
}

/// The number with which a record is stamped.
fn stamp_of(record: &ConsumedRecord) -> u32 {
    let header = record.headers.iter().find(|(name, _)| name == STAMP).and_then(|(_, value)| value.as_deref());
    let stamp = std::str::from_utf8(header.unwrap_or_default()).ok().and_then(|text| text.parse().ok());
    stamp.unwrap_or_else(|| panic!("no stamp: {record:?}"))
}

/// Asks for a reload that is taken up. Returns what is told of it.
#[track_caller]
fn reload(daemon: &Daemon) -> Value {
    let answer = daemon.post("/-/reload");
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

#[track_caller]
fn generation(told: &Value) -> u64 {
    told["generation"].as_u64().unwrap_or_else(|| panic!("a generation: {told}"))
}

/// Waits until each worker of a route goes by this generation, or one after it.
#[track_caller]
fn await_generation(daemon: &Daemon, route: &str, generation: u64) {
    wait_until(PATIENCE, &format!("{route} goes by generation {generation}"), || {
        let status = daemon.route(route);
        let mut workers = status["workers"].as_array().into_iter().flatten();
        workers.all(|worker| worker["generation"].as_u64() >= Some(generation) && worker["state"] == "running")
    });
}

/// How often partitions came or went, by route.
fn rebalances(daemon: &Daemon) -> BTreeMap<String, String> {
    let text = daemon.get("/metrics").body;
    let series = text.lines().filter_map(|line| line.strip_prefix("millrace_rebalances_total{route=\""));
    series.filter_map(|rest| rest.split_once("\"} ")).map(|(route, n)| (route.to_owned(), n.to_owned())).collect()
}

/// What was done with each route at the last reload that was taken up.
fn actions(status: &Value) -> BTreeMap<String, String> {
    let routes = status["last_applied"]["changes"]["routes"].as_object().into_iter().flatten();
    routes.map(|(name, change)| (name.clone(), change["action"].as_str().unwrap_or_default().to_owned())).collect()
}

/// Of records that lie in the order of their offsets, those that no mark of a transaction's end parts.
fn runs(records: &[ConsumedRecord]) -> impl Iterator<Item = &[ConsumedRecord]> {
    records.chunk_by(|one, next| one.partition == next.partition && one.offset + 1 == next.offset)
}
