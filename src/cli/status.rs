//! `millrace status`: how a running daemon fares, on one screen. What needs somebody comes first.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::Failure;
use super::client::AskArguments;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    ask: AskArguments,
    /// Show where the time of each route's workers goes
    #[arg(long, conflicts_with = "json")]
    times: bool,
}

/// A moment, as the daemon tells it.
#[derive(Deserialize, Clone, Copy, PartialEq, PartialOrd)]
#[serde(try_from = "String")]
struct At(Timestamp);

impl TryFrom<String> for At {
    type Error = jiff::Error;
    fn try_from(text: String) -> Result<Self, jiff::Error> {
        text.parse().map(Self)
    }
}

/// As far as it is shown; a daemon of another version may know more, or less.
#[derive(Deserialize)]
struct Status {
    version: String,
    instance: Option<String>,
    generation: u64,
    started_at: At,
    #[serde(default)]
    shutting_down: bool,
    last_reload: Option<Reload>,
    routes: std::collections::BTreeMap<String, Route>,
}

#[derive(Deserialize)]
struct Reload {
    outcome: String,
    at: At,
    message: String,
}

#[derive(Deserialize)]
struct Route {
    state: String,
    reason: Option<String>,
    since: At,
    next_attempt: Option<At>,
    #[serde(default)]
    workers: Vec<Worker>,
    #[serde(default)]
    lag: Lag,
    shadow: Option<Shadow>,
    last_fault: Option<Fault>,
    totals: Totals,
}

#[derive(Deserialize)]
struct Worker {
    assignment: std::collections::BTreeMap<String, Vec<i32>>,
    stopped: Vec<Held>,
    retrying: Vec<Held>,
}

#[derive(Deserialize)]
struct Held {
    topic: String,
    partition: i32,
    offset: Option<i64>,
    code: String,
    message: String,
    next_attempt: Option<At>,
}

#[derive(Deserialize, Default)]
struct Lag {
    records: u64,
    seconds: f64,
    alert: Option<bool>,
    partitions: Vec<PartitionLag>,
}

#[derive(Deserialize)]
struct PartitionLag {
    topic: String,
    partition: i32,
    blocked_records: u64,
    blocked_seconds: f64,
}

#[derive(Deserialize)]
struct Shadow {
    since: At,
    compared: u64,
    differing: u64,
    skipped: u64,
    differences: std::collections::BTreeMap<String, u64>,
    examples: Vec<Example>,
}

#[derive(Deserialize)]
struct Example {
    topic: String,
    partition: i32,
    offset: i64,
    differences: Vec<String>,
    first: String,
    second: String,
}

#[derive(Deserialize)]
struct Fault {
    at: At,
    code: String,
    plugin: Option<String>,
    topic: String,
    partition: i32,
    offset: i64,
    message: String,
}

#[derive(Deserialize)]
struct Totals {
    #[serde(default)]
    consumed: u64,
    dead_letters: u64,
    skipped: u64,
    consumed_per_second: f64,
    /// (a daemon of an older version does not tell)
    #[serde(default)]
    worker_seconds: std::collections::BTreeMap<String, f64>,
}

/// Partitions that are shown one by one; of more, how many.
const SHOWN: usize = 5;

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = arguments.ask.daemon.client()?;
    let answer: Value = client.get("/api/v1/status")?;
    if arguments.ask.json {
        anstream::println!("{answer:#}");
        return Ok(());
    }
    let status: Status = client.understood(answer)?;
    anstream::print!("{}", screen(&status, client.url(), At(Timestamp::now())));
    if arguments.times {
        anstream::print!("{}", times(&status));
    }
    Ok(())
}

fn screen(status: &Status, url: &str, now: At) -> String {
    let Status { version, instance, generation, started_at, shutting_down, last_reload, routes } = status;
    let instance = instance.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let mut text = format!(
        "millrace {version}{instance} at {url}, up {}, generation {generation}{}\n",
        span(*started_at, now),
        if *shutting_down { ", SHUTTING DOWN" } else { "" }
    );
    if let Some(reload) = last_reload.as_ref().filter(|reload| reload.outcome == "rejected") {
        let _ = writeln!(text, "the last reload was REFUSED {} ago: {}", span(reload.at, now), reload.message);
    }
    let mut routes: Vec<_> = routes.iter().collect();
    routes.sort_by_key(|(name, route)| (urgency(&route.state), name.as_str()));
    let width = routes.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(5);
    let _ = writeln!(
        text,
        "\n{:width$}  {:8}  {:>8}  {:>10}  {:>8}  {:>10}  {:>10}",
        "ROUTE", "STATE", "SINCE", "LAG", "BEHIND", "RECORDS/S", "PARTITIONS"
    );
    for (name, route) in routes {
        line(&mut text, name, width, route, now);
        details(&mut text, route, now);
    }
    text
}

/// Where the time of the workers went since the start. Under load they do several things at once.
fn times(status: &Status) -> String {
    let mut text = format!("\n{:24}", "SECONDS SINCE THE START");
    let states = ["polling", "processing", "producing", "delivering", "committing", "cpu"];
    states.iter().for_each(|state| _ = write!(text, "  {state:>10}"));
    text.push_str("  cpu/million records\n");
    for (name, Route { totals, .. }) in &status.routes {
        let of = |state: &str| totals.worker_seconds.get(state).copied().unwrap_or(0.0);
        let _ = write!(text, "{name:24}");
        states.iter().for_each(|state| _ = write!(text, "  {:>10.1}", of(state)));
        let _ = match totals.consumed {
            0 => writeln!(text, "  {:>19}", "-"),
            consumed => writeln!(text, "  {:>19.2}", of("cpu") * 1e6 / consumed as f64),
        };
    }
    text
}

/// What somebody has to see first.
fn urgency(state: &str) -> usize {
    let order = ["failed", "waiting", "draining", "starting", "paused", "running", "disabled"];
    order.iter().position(|known| *known == state).unwrap_or(0)
}

fn line(text: &mut String, name: &str, width: usize, route: &Route, now: At) {
    let owned: usize = route.workers.iter().flat_map(|worker| worker.assignment.values()).map(Vec::len).sum();
    let alert = if route.lag.alert == Some(true) { "  lag_alert" } else { "" };
    let _ = writeln!(
        text,
        "{name:width$}  {:8}  {:>8}  {:>10}  {:>8}  {:>10.1}  {owned:>10}{alert}",
        route.state,
        span(route.since, now),
        route.lag.records,
        seconds(route.lag.seconds),
        route.totals.consumed_per_second,
    );
}

fn details(text: &mut String, route: &Route, now: At) {
    let mut tell = |line: String| _ = writeln!(text, "    {line}");
    let next = |at: Option<At>| match at {
        Some(at) if at > now => format!("; next attempt in {}", span(now, at)),
        Some(_) => "; next attempt now".to_owned(),
        None => String::new(),
    };
    let stopped: Vec<&Held> = route.workers.iter().flat_map(|worker| &worker.stopped).collect();
    // (the reason of a route that has stopped is its first partition, which is told below)
    if let Some(reason) = route.reason.as_ref().filter(|_| stopped.is_empty()) {
        tell(format!("{reason}{}", next(route.next_attempt)));
    }
    let retrying: Vec<&Held> = route.workers.iter().flat_map(|worker| &worker.retrying).collect();
    for (held, word) in [(stopped, "stopped"), (retrying, "retrying")] {
        for Held { topic, partition, offset, code, message, next_attempt } in held.iter().take(SHOWN) {
            let before = offset.map(|offset| format!(" before offset {offset}")).unwrap_or_default();
            tell(format!("{topic}/{partition} {word}{before}: {}{}", described(code, message), next(*next_attempt)));
        }
        if held.len() > SHOWN {
            tell(format!("and {} more partitions {word}", held.len() - SHOWN));
        }
    }
    let blocked: Vec<_> = route.lag.partitions.iter().filter(|lag| lag.blocked_seconds >= 30.0).collect();
    for PartitionLag { topic, partition, blocked_records, blocked_seconds } in blocked.iter().take(SHOWN) {
        let since = seconds(*blocked_seconds);
        tell(format!(
            "{topic}/{partition}: a transaction upstream has held {blocked_records} records back for {since}"
        ));
    }
    if let Some(Fault { at, code, plugin, topic, partition, offset, message }) = &route.last_fault {
        let plugin = plugin.as_ref().map(|plugin| format!(" in {plugin}")).unwrap_or_default();
        let (ago, what) = (span(*at, now), described(code, message));
        tell(format!("last fault {ago} ago{plugin}: {topic}/{partition} offset {offset}: {what}"));
    }
    if let Some(shadow) = &route.shadow {
        tell(told(shadow, now));
        for Example { topic, partition, offset, differences, first, second } in shadow.examples.iter().take(SHOWN) {
            tell(format!("    {topic}/{partition} offset {offset}: {}: {first} → {second}", differences.join(", ")));
        }
    }
    let Totals { dead_letters, skipped, .. } = &route.totals;
    if *dead_letters + *skipped > 0 {
        tell(format!("{dead_letters} dead letters, {skipped} skipped since the start"));
    }
}

/// What a shadow has come to.
fn told(shadow: &Shadow, now: At) -> String {
    let Shadow { since, compared, differing, skipped, differences, .. } = shadow;
    let kinds: Vec<_> = differences.iter().map(|(kind, records)| format!("{records} {kind}")).collect();
    let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
    let skipped = if *skipped > 0 { format!("; {skipped} skipped while it was busy") } else { String::new() };
    format!("shadow: {differing} of {compared} records of the last {} differ{kinds}{skipped}", span(*since, now))
}

/// The code once, whether or not the message begins with it.
fn described(code: &str, message: &str) -> String {
    if message.starts_with(code) { message.to_owned() } else { format!("{code}: {message}") }
}

fn span(from: At, to: At) -> String {
    seconds(to.0.duration_since(from.0).as_secs_f64())
}

/// In the two largest units at most, for people.
fn seconds(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86_400);
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => format!("{minutes} min"),
        3_600..86_400 => format!("{hours} h {:02}", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_screen_says_what_is_wrong_first_and_when_it_is_tried_again() {
        let stopped = json!({
            "topic": "orders", "partition": 3, "offset": 7, "code": "trapped", "message": "trapped: unreachable",
            "next_attempt": "2026-11-27T03:10:40Z",
        });
        let route = |state: &str, more: Value| {
            let mut route = json!({
                "state": state, "reason": null, "since": "2026-11-27T03:00:00Z", "next_attempt": null,
                "workers": [{ "assignment": { "orders": [0, 3] }, "stopped": [], "retrying": [] }],
                "lag": { "records": 0, "seconds": 0.0, "alert": null, "partitions": [] },
                "last_fault": null,
                "totals": { "dead_letters": 0, "skipped": 0, "consumed_per_second": 1234.5 },
            });
            for (key, value) in more.as_object().unwrap() {
                route[key] = value.clone();
            }
            route
        };
        let status = json!({
            "version": "0.1.0", "instance": "pod-0", "generation": 4, "started_at": "2026-11-26T23:00:00Z",
            "last_reload": {
                "outcome": "rejected", "at": "2026-11-27T03:08:00Z", "message": "millrace.yaml:3:1: unknown key",
            },
            "routes": {
                "a-fine": route("running", json!({})),
                "lagging": route("waiting", json!({
                    "reason": "COORDINATOR_NOT_AVAILABLE: no coordinator", "next_attempt": "2026-11-27T03:10:05Z",
                    "lag": { "records": 81234, "seconds": 93.4, "alert": true, "partitions": [
                        { "topic": "orders", "partition": 1, "blocked_records": 5, "blocked_seconds": 300.0 },
                    ] },
                })),
                "stuck": route("failed", json!({
                    "reason": "orders/3 is stopped before offset 7: trapped: unreachable",
                    "workers": [{ "assignment": { "orders": [0, 3] }, "stopped": [stopped], "retrying": [] }],
                    "last_fault": {
                        "at": "2026-11-27T03:08:20Z", "code": "trapped", "plugin": "redact", "topic": "orders",
                        "partition": 3, "offset": 7, "message": "unreachable",
                    },
                    "shadow": {
                        "since": "2026-11-27T03:00:00Z", "compared": 100, "differing": 12, "skipped": 3,
                        "differences": { "count": 2, "value": 10 },
                        "examples": [{
                            "topic": "orders", "partition": 0, "offset": 4, "differences": ["count"],
                            "first": "1 output", "second": "0 outputs",
                        }],
                    },
                    "totals": { "dead_letters": 2, "skipped": 0, "consumed_per_second": 0.0 },
                })),
            },
        });
        let status: Status = serde_json::from_value(status).unwrap();
        let shown = screen(&status, "http://127.0.0.1:9400", At("2026-11-27T03:10:00Z".parse().unwrap()));
        let expected = [
            "millrace 0.1.0 (pod-0) at http://127.0.0.1:9400, up 4 h 10, generation 4",
            "the last reload was REFUSED 2 min ago: millrace.yaml:3:1: unknown key",
            "",
            "ROUTE    STATE        SINCE         LAG    BEHIND   RECORDS/S  PARTITIONS",
            "stuck    failed      10 min           0       0 s         0.0           2",
            "    orders/3 stopped before offset 7: trapped: unreachable; next attempt in 40 s",
            "    last fault 1 min ago in redact: orders/3 offset 7: trapped: unreachable",
            "    shadow: 12 of 100 records of the last 10 min differ (2 count, 10 value); 3 skipped while it was busy",
            "        orders/0 offset 4: count: 1 output → 0 outputs",
            "    2 dead letters, 0 skipped since the start",
            "lagging  waiting     10 min       81234     1 min      1234.5           2  lag_alert",
            "    COORDINATOR_NOT_AVAILABLE: no coordinator; next attempt in 5 s",
            "    orders/1: a transaction upstream has held 5 records back for 5 min",
            "a-fine   running     10 min           0       0 s      1234.5           2",
        ];
        assert_eq!(shown.lines().collect::<Vec<_>>(), expected, "{shown}");
    }

    #[test]
    fn where_the_time_of_workers_goes_is_told_in_seconds_and_in_cpu_for_a_million_records() {
        let route = |consumed: u64, seconds: Value| {
            json!({
                "state": "running", "reason": null, "since": "2026-11-27T03:00:00Z", "next_attempt": null,
                "last_fault": null,
                "totals": {
                    "consumed": consumed, "dead_letters": 0, "skipped": 0, "consumed_per_second": 0.0,
                    "worker_seconds": seconds,
                },
            })
        };
        let seconds = json!({
            "polling": 1.0, "processing": 2.04, "producing": 3.0, "delivering": 4.0, "committing": 0.5, "cpu": 5.0,
        });
        let status: Status = serde_json::from_value(json!({
            "version": "0.1.0", "instance": null, "generation": 1, "started_at": "2026-11-27T03:00:00Z",
            "last_reload": null, "routes": { "busy": route(2_000_000, seconds), "of-old": route(0, json!({})) },
        }))
        .unwrap();
        let expected = [
            "",
            "SECONDS SINCE THE START      polling  processing   producing  delivering  committing         cpu  cpu/million records",
            "busy                             1.0         2.0         3.0         4.0         0.5         5.0                 2.50",
            "of-old                           0.0         0.0         0.0         0.0         0.0         0.0                    -",
        ];
        let shown = times(&status);
        assert_eq!(shown.lines().collect::<Vec<_>>(), expected, "{shown}");
    }

    #[test]
    fn times_are_told_as_people_tell_them() {
        for (of, expected) in
            [(0.4, "0 s"), (59.4, "59 s"), (93.0, "1 min"), (3_725.0, "1 h 02"), (200_000.0, "2 d 7 h"), (-3.0, "0 s")]
        {
            assert_eq!(seconds(of), expected);
        }
    }
}
