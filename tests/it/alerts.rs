//! What an operator sees of a fleet: the alert rules and the dashboard in `deploy/`. promtool, which is Prometheus' own, says
//! whether they make sense; that what they name exists is held against the table of metrics.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use millrace::telemetry::{ALL, Kind, Metric};
use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::support::config::Config;
use crate::support::daemon::{Daemon, sum_of};
use crate::support::kafka::{Record, shared};
use crate::support::{root, scratch, unique, wait_for, wait_until};

/// Series that are not millrace's own: Prometheus'.
const FOREIGN: [&str; 2] = ["ALERTS", "up"];

/// Runs promtool, which must find nothing wrong.
#[track_caller]
fn promtool(arguments: &[&str], file: &Path) {
    let found = Command::new(root().join("scripts/promtool")).stdin(Stdio::null()).output().expect("the script runs");
    let path = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let output = Command::new(path).args(arguments).arg(file).stdin(Stdio::null()).output().expect("promtool runs");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&said));
}

fn deployed(name: &str) -> PathBuf {
    root().join("deploy").join(name)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A rule of `alerts.yaml`.
struct Alert {
    name: String,
    expr: String,
    severity: String,
    runbook: String,
}

fn alerts() -> Vec<Alert> {
    let rules: Value = serde_yaml::from_str(&read(&deployed("prometheus/alerts.yaml"))).expect("it is YAML");
    let groups = rules["groups"].as_array().expect("groups").iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let alert = |rule: &Value| Alert {
        name: text(&rule["alert"]),
        expr: text(&rule["expr"]),
        severity: text(&rule["labels"]["severity"]),
        runbook: text(&rule["annotations"]["runbook"]),
    };
    groups.flat_map(|group| group["rules"].as_array().expect("rules")).map(alert).collect()
}

/// The expressions of the dashboard, each with the panel's title, with values in the place of its variables.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let of_panels = panels.flat_map(|panel| {
        let title = panel["title"].as_str().expect("a title").to_owned();
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(move |target| (title.clone(), target["expr"].as_str().expect("an expression").to_owned()))
    });
    let annotations = dashboard["annotations"]["list"].as_array().expect("annotations").iter();
    let of_annotations =
        annotations.map(|one| ("annotation".to_owned(), one["expr"].as_str().expect("one").to_owned()));
    let filled = |(title, expr): (String, String)| {
        let expr = expr.replace("$__rate_interval", "1m");
        let expr = ["$namespace", "$route", "$instance"].iter().fold(expr, |expr, name| expr.replace(name, ".*"));
        (title, expr)
    };
    of_panels.chain(of_annotations).map(filled).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&read(&deployed("grafana/millrace.json"))).expect("the dashboard is JSON")
}

/// What an expression names that is no metric, and labels that a metric of its has not.
fn unknown_in(expr: &str) -> Vec<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words =
        expr.split(|c| !is_word(c)).filter(|word| word.starts_with("millrace_") || word.starts_with("process_"));
    words.filter(|word| metric(word).is_none()).map(str::to_owned).collect()
}

/// The metric of a series' name; a histogram has three names and none of its own.
fn metric(name: &str) -> Option<&'static Metric> {
    ALL.iter().copied().find(|metric| match metric.kind {
        Kind::Histogram(_) => {
            ["_bucket", "_sum", "_count"].iter().any(|end| name.strip_suffix(end) == Some(metric.name))
        }
        _ => metric.name == name,
    })
}

/// The selectors of an expression: a metric, and the labels within its braces.
fn selectors(expr: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (at, _) in expr.match_indices('{') {
        let name: String = expr[..at].chars().rev().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let name: String = name.chars().rev().collect();
        let inside = &expr[at + 1..at + expr[at..].find('}').expect("a brace that closes")];
        let labels = inside.split(',').filter_map(|part| part.split(['=', '!']).next());
        found.push((name, labels.map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()).collect()));
    }
    found
}

/// Fails unless all that an expression names exists: its metrics, and the labels by which it selects them.
#[track_caller]
fn assert_named(expr: &str, at: &str) {
    assert_eq!(unknown_in(expr), [""; 0], "{at}: there is no such metric");
    for (name, labels) in selectors(expr) {
        let Some(metric) = metric(&name) else {
            assert!(FOREIGN.contains(&name.as_str()), "{at}: {name:?} is nothing that is known");
            continue;
        };
        // (what Prometheus adds to each series it scrapes)
        let added = ["namespace", "instance", "job", "pod"];
        let known = |label: &String| metric.labels.contains(&label.as_str()) || added.contains(&label.as_str());
        let unknown: Vec<_> = labels.into_iter().filter(|label| !known(label)).collect();
        assert_eq!(unknown, [""; 0], "{at}: labels that {name} has not");
    }
}

#[test]
fn every_alert_fires_for_what_it_is_about_and_not_for_what_looks_like_it() {
    promtool(&["check", "rules", "--lint-fatal"], &deployed("prometheus/alerts.yaml"));
    promtool(&["test", "rules"], &deployed("prometheus/alerts-test.yaml"));
    let tests = read(&deployed("prometheus/alerts-test.yaml"));
    for Alert { name, .. } in alerts() {
        assert!(
            tests.contains(&format!("alertname=\"{name}\"")) || tests.contains(&format!("alertname: {name}")),
            "{name}"
        );
    }
}

#[test]
fn every_alert_has_a_section_in_the_runbook_and_says_who_is_to_act() {
    let runbook = read(&root().join("docs/operations.md"));
    let sections: BTreeSet<&str> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let alerts = alerts();
    assert!(alerts.len() >= 15, "only {} alerts were found", alerts.len());
    for Alert { name, expr, severity, runbook } in &alerts {
        assert!(sections.contains(name.as_str()), "docs/operations.md has no section on {name}");
        assert!(["page", "ticket"].contains(&severity.as_str()), "{name}: {severity:?}");
        assert_eq!(*runbook, format!("docs/operations.md#{}", name.to_lowercase()));
        assert_named(expr, name);
    }
    let gone: Vec<_> = sections.iter().filter(|name| name.starts_with("Millrace")).collect();
    assert_eq!(gone.len(), alerts.len(), "sections on alerts that there are: {gone:?}");
}

#[test]
fn the_dashboard_shows_metrics_that_exist_by_expressions_that_prometheus_understands() {
    let dashboard = dashboard();
    let expressions = expressions(&dashboard);
    assert!(expressions.len() >= 40, "only {} expressions were found", expressions.len());
    let mut rules = String::from("groups:\n- name: dashboard\n  rules:\n");
    for (place, (title, expr)) in expressions.iter().enumerate() {
        assert_named(expr, title);
        writeln!(rules, "  - {{ record: \"panel:{place}\", expr: {} }}", Value::from(expr.as_str())).expect("text");
    }
    let file = scratch("dashboard").with_extension("yaml");
    fs::write(&file, rules).expect("a file");
    promtool(&["check", "rules"], &file);
    fs::remove_file(file).expect("it is ours");

    let named: String = expressions.iter().map(|(_, expr)| format!("{expr} ")).collect();
    let words: BTreeSet<&str> = named.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).collect();
    let shown =
        |metric: &&&Metric| words.iter().any(|word| self::metric(word).is_some_and(|one| one.name == metric.name));
    let missing: Vec<_> = ALL.iter().filter(|metric| !shown(metric)).map(|metric| metric.name).collect();
    // What is left out is of no use in a picture.
    let left_out = [
        "millrace_config_last_reload_success_timestamp_seconds",
        "process_virtual_memory_bytes",
        "process_max_fds",
        "process_start_time_seconds",
    ];
    assert_eq!(missing, left_out, "metrics that the dashboard does not show");
}

#[test]
fn the_dashboards_panels_have_their_own_place_and_take_the_data_source_that_is_chosen() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let rows: Vec<_> = panels.iter().filter(|panel| panel["type"] == "row").map(|panel| &panel["title"]).collect();
    assert_eq!(rows, ["Fleet", "Routes", "Lag", "Commits", "Plugins", "Faults"]);
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in panels {
        let title = &panel["title"];
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().expect("a place"));
        assert!(x + w <= 24, "{title}: beyond the edge");
        for cell in (y..y + h).flat_map(|y| (x..x + w).map(move |x| (x, y))) {
            assert!(taken.insert(cell), "{title}: on top of another");
        }
        assert!(ids.insert(panel["id"].as_u64()), "{title}: another has its id");
        if panel["type"] != "row" {
            assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{title}: no description");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default();
            assert!(UNITS.contains(&unit), "{title}: {unit:?} is no unit of Grafana's that is known here");
            assert_targets(panel);
        }
    }
}

/// Grafana's ids of units, of those that the dashboard needs. It takes any text, and shows an unknown one behind the number.
const UNITS: [&str; 6] = ["short", "s", "bytes", "Bps", "cps", "percentunit"];

/// Each asks the data source that is chosen, under a name of its own, by variables that there are, and says what its lines are.
#[track_caller]
fn assert_targets(panel: &Value) {
    let title = &panel["title"];
    let targets = panel["targets"].as_array().expect("targets");
    assert!(!targets.is_empty(), "{title}: asks nothing");
    let mut names = BTreeSet::new();
    for target in targets {
        assert!(names.insert(target["refId"].as_str().expect("a refId")), "{title}: two have one refId");
        assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        let expr = target["expr"].as_str().expect("an expression");
        assert!(expr.contains("$namespace"), "{title}: {expr} takes other namespaces, too");
        let is_told = panel["type"] == "stat" || target["legendFormat"].as_str().is_some_and(|text| !text.is_empty());
        assert!(is_told, "{title}: its lines have no names");
    }
}

/// Grafana itself is not run: it cannot be had where these tests run. Its schema can, as the types that Grafana makes of it for
/// programs that write dashboards.
#[test]
fn the_dashboard_is_one_by_grafanas_own_schema() {
    let source = root().join("tests/it/support/dashboard");
    let found = Command::new(root().join("scripts/go-toolchain")).stdin(Stdio::null()).output().expect("it runs");
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let go = Path::new(String::from_utf8_lossy(&found.stdout).trim()).join("go");
    let check = scratch("dashboard-check");
    let built = Command::new(go).args(["build", "-o"]).arg(&check).current_dir(source).output().expect("go runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let problems = |dashboard: &Value| {
        let file = scratch("dashboard").with_extension("json");
        fs::write(&file, dashboard.to_string()).expect("a file");
        let output = Command::new(&check).arg(&file).output().expect("it runs");
        fs::remove_file(file).expect("it is ours");
        let said = [output.stdout, output.stderr].concat();
        assert_eq!(output.status.success(), said.is_empty(), "{}", output.status);
        String::from_utf8(said).expect("text")
    };
    assert_eq!(problems(&dashboard()), "");

    let panels = dashboard()["panels"].as_array().cloned().expect("panels");
    let first = |kind: &str| panels.iter().position(|panel| panel["type"] == kind).expect("one of this kind");
    let (stat, lines) = (first("stat"), first("timeseries"));
    for (place, value, problem) in [
        ("/refresh".to_owned(), Value::from(30), "refresh"),
        ("/timezoned".to_owned(), "utc".into(), "timezoned"),
        (format!("/panels/{stat}/options/colourMode"), "value".into(), "colourMode"),
        (format!("/panels/{stat}/options/reduceOptions/calcs"), "last".into(), "calcs"),
        (format!("/panels/{lines}/fieldConfig/defaults/custom/lineWidths"), 1.into(), "lineWidths"),
        (format!("/panels/{lines}/targets/0/expression"), "up".into(), "expression"),
    ] {
        let mut wrong = dashboard();
        let (parent, key) = place.rsplit_once('/').expect("a pointer");
        wrong.pointer_mut(parent).unwrap_or_else(|| panic!("there is no {parent}"))[key] = value;
        let said = problems(&wrong);
        assert!(said.contains(problem), "{place}: {said}");
    }
    // (of other kinds of panels it knows nothing)
    assert!(
        panels.iter().all(|panel| ["row", "stat", "timeseries"].contains(&panel["type"].as_str().expect("a kind")))
    );
    fs::remove_file(check).expect("it is ours");
}

#[test]
fn the_dashboards_variables_are_those_that_its_panels_use_and_ask_for_metrics_that_exist() {
    let dashboard = dashboard();
    assert!(
        dashboard["uid"].is_string() && dashboard["title"].is_string(),
        "it replaces itself when it is loaded again"
    );
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36), "data sources by uid");
    assert_eq!(dashboard["id"], Value::Null, "Grafana gives it one");
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let names: BTreeSet<String> =
        variables.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect();
    let own = |name: &str| name.starts_with("__");
    let text = dashboard.to_string();
    let used: BTreeSet<String> = text
        .split('$')
        .skip(1)
        .map(|rest| {
            rest.trim_start_matches('{').chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
        })
        .filter(|name: &String| !own(name))
        .collect();
    assert_eq!(used, names);
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        let name = &variable["name"];
        assert_eq!(variable["datasource"]["uid"], "${datasource}", "{name}");
        let query = variable["query"]["query"].as_str().expect("a query");
        let (of, label) = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')')?.rsplit_once(", "))
            .unwrap_or_else(|| panic!("{name}: {query}"));
        let of = of.split('{').next().unwrap_or_default();
        let metric = metric(of).unwrap_or_else(|| panic!("{name}: there is no metric {of}"));
        assert!(["namespace", "instance"].contains(&label) || metric.labels.contains(&label), "{name}: {query}");
    }
}

#[test]
fn what_an_expression_names_wrongly_is_found() {
    assert_eq!(unknown_in("rate(millrace_record_total[5m]) / process_cpu_seconds_total"), ["millrace_record_total"]);
    assert_eq!(unknown_in("millrace_commit_duration_seconds"), ["millrace_commit_duration_seconds"]);
    assert_eq!(unknown_in("sum(millrace_commit_duration_seconds_bucket)"), [""; 0]);
    let found = selectors("a{x=\"1\",y=~\"2\"} or b{} or c{z!=\"3\"}");
    let expected = [("a", vec!["x", "y"]), ("b", vec![]), ("c", vec!["z"])];
    assert_eq!(found.len(), expected.len());
    for ((name, labels), (expected, expected_labels)) in found.iter().zip(expected) {
        assert!(name == expected && *labels == expected_labels, "{name} {labels:?}");
    }
}

// ---- provoked -------------------------------------------------------------------------------------------------------

const PATIENCE: Duration = Duration::from_secs(60);
/// How soon a daemon looks at lag again.
const LAG_LOOK: Duration = Duration::from_secs(20);
/// A record waits for its next try for as long as the test takes, without being at fault.
const FOR_LONG: &str = "{ retry: { attempts: 1000000, backoff: 1h, max_backoff: 1h }, then: skip }";

/// Alerts that no daemon is brought to here, and where they are.
const ELSEWHERE: [(&str, &str); 4] = [
    ("MillraceMemoryNearLimit", "container.rs"),
    // (it takes a client that is deaf to its broker, and a broker that stands still)
    ("MillraceClientStalled", "liveness.rs"),
    ("MillraceCommitFailures", "liveness.rs"),
    ("MillraceCommitSlow", "liveness.rs"),
];

/// A daemon whose routes go wrong each in its own way. Their alerts are told by what it really shows, as it was before and
/// as it is afterwards, given to Prometheus' own rules as what goes on in this way.
#[test]
fn what_goes_wrong_in_a_real_process_sets_off_the_alerts_for_it() {
    let kafka = shared();
    let [source, wide, narrow, out, dead] =
        ["alerts", "alerts-wide", "alerts-narrow", "alerts-out", "alerts-dead"].map(unique);
    for (topic, partitions) in [(&source, 1), (&wide, 2), (&narrow, 1), (&out, 1), (&dead, 1)] {
        kafka.create_topic(topic, partitions, &[]);
    }
    kafka.produce(&source, &[Record::new("k", "well")]);
    let faulty = |name: &str, does: &str, on_error: &str| {
        let pipeline = format!("[{{ plugin: misbehave, config: {{ do: {does}, when: poison }} }}]");
        route(name, &source, "", &pipeline, &out, &format!("on_error: {on_error}"))
    };
    let routes = [
        faulty("poisoned", "trap", "stop"),
        faulty("lenient", "refuse", "skip"),
        faulty("thorough", "refuse", &format!("{{ dead_letter: {dead} }}")),
        route("forbidden", &wide, "", "[]", &format!("{narrow}, partition: source"), ""),
        route("lonely", &source, "", "[]", &format!("{out}-missing"), ""),
    ];
    let config = Config::new(&kafka.bootstrap, &["misbehave"], &format!("routes:\n{}", routes.concat()));
    let daemon = Daemon::start(config.path());
    let faulty = ["poisoned", "lenient", "thorough"];
    faulty.iter().for_each(|route| daemon.await_consumed(route, 1, PATIENCE));
    let before = look(&daemon);

    kafka.produce(&source, &[Record::new("k", "poison")]);
    daemon.await_state("poisoned", "failed", PATIENCE);
    daemon.await_state("forbidden", "failed", PATIENCE);
    daemon.await_state("lonely", "waiting", PATIENCE);
    ["lenient", "thorough"].iter().for_each(|route| daemon.await_consumed(route, 2, PATIENCE));
    config.edit(|yaml| yaml.replace("routes:", "rout:"));
    wait_until(PATIENCE, "the configuration is refused", || daemon.reloads("rejected") > 0.0);
    for (route, lag) in [("poisoned", 1.0), ("lenient", 0.0), ("thorough", 0.0)] {
        await_metric(&daemon, "millrace_consumer_lag_records", route, |records| records == lag);
    }

    assert_fires(
        &[("a", &[before, look(&daemon)])],
        &[
            r#"alertname="MillracePartitionStopped",severity="page",route="poisoned""#,
            r#"alertname="MillraceLagHigh",severity="ticket",route="poisoned""#,
            r#"alertname="MillracePluginBroken",severity="ticket",route="poisoned",plugin="misbehave",code="trapped""#,
            r#"alertname="MillraceFaultRate",severity="ticket",route="poisoned""#,
            r#"alertname="MillraceFaultRate",severity="ticket",route="lenient""#,
            r#"alertname="MillraceRecordsSkipped",severity="ticket",route="lenient",code="refused""#,
            r#"alertname="MillraceFaultRate",severity="ticket",route="thorough""#,
            r#"alertname="MillraceDeadLetters",severity="ticket",route="thorough",code="refused""#,
            r#"alertname="MillraceRouteFailed",severity="page",route="forbidden""#,
            r#"alertname="MillraceRouteWaiting",severity="page",route="lonely""#,
            r#"alertname="MillraceNotOwned",severity="page",route="forbidden""#,
            r#"alertname="MillraceNotOwned",severity="page",route="lonely""#,
            r#"alertname="MillraceReloadRefused",severity="ticket",instance="a",job="m""#,
        ],
    );
}

/// What stands still or falls behind without anything being at fault, and what Kafka does.
#[test]
fn what_stands_still_falls_behind_or_is_lost_sets_off_the_alerts_for_it() {
    let kafka = shared();
    let [source, held, gone, out] = ["late", "late-held", "late-gone", "late-out"].map(unique);
    [&source, &held, &gone, &out].into_iter().for_each(|topic| kafka.create_topic(topic, 1, &[]));
    kafka.produce(&source, &[Record::new("k", "well")]);
    kafka.produce(&gone, &[Record::new("k", "well")]);
    let asks = "[{ plugin: misbehave, config: { do: retry, when: poison } }]";
    let routes = [
        route("behind", &source, "", asks, &out, &format!("on_error: {FOR_LONG}\n    lag_alert: 1")),
        route("unbounded", &source, "", asks, &out, &format!("on_error: {FOR_LONG}")),
        route("blocked", &held, "", "[]", &out, ""),
        route("lossy", &gone, ", on_offset_lost: earliest", "[]", &out, ""),
    ];
    let config = Config::new(&kafka.bootstrap, &["misbehave"], &format!("routes:\n{}", routes.concat()));
    let daemon = Daemon::start(config.path());
    ["behind", "unbounded", "lossy"].iter().for_each(|route| daemon.await_consumed(route, 1, PATIENCE));

    // A record is asked for again, with two behind it, and somebody's transaction is open.
    kafka.produce(&source, &["poison", "1", "2"].map(|value| Record::new("k", value)));
    let _open = kafka.leave_records_pending(&held, &[Record::new("k", "open")]);
    // What was not read yet is gone from the log.
    config.edit(|yaml| yaml.replace("  lossy:\n", "  lossy:\n    enabled: false\n"));
    daemon.await_state("lossy", "disabled", PATIENCE);
    kafka.produce(&gone, &["1", "2", "3"].map(|value| Record::new("k", value)));
    kafka.delete_records(&gone, 0, 3);
    let is_positive = |value: f64| value > 0.0;
    for route in ["behind", "unbounded"] {
        await_metric(&daemon, "millrace_consumer_lag_records", route, |records| records >= 3.0);
    }
    let before = look(&daemon);

    config.edit(|yaml| yaml.replace("    enabled: false\n", ""));
    await_metric(&daemon, "millrace_records_lost_total", "lossy", |records| records == 2.0);
    await_metric(&daemon, "millrace_consumer_lag_records", "lossy", |records| records == 0.0);
    await_metric(&daemon, "millrace_source_blocked_seconds", "blocked", is_positive);
    await_metric(&daemon, "millrace_lag_alert", "behind", is_positive);
    let blocked = format!(r#"alertname="MillraceSourceBlocked",severity="ticket",route="blocked",topic="{held}""#);
    let lost = format!(r#"alertname="MillraceRecordsLost",severity="page",route="lossy",topic="{gone}""#);
    assert_fires(
        &[("a", &[before, look(&daemon)])],
        &[
            r#"alertname="MillraceLagAlert",severity="page",route="behind""#,
            r#"alertname="MillraceNoProgress",severity="page",route="behind",instance="a""#,
            r#"alertname="MillraceNoProgress",severity="page",route="unbounded",instance="a""#,
            r#"alertname="MillraceLagHigh",severity="ticket",route="unbounded""#,
            // (a route that leaves and comes back every minute would set it off as well)
            r#"alertname="MillraceRebalancing",severity="ticket",route="lossy""#,
            &blocked,
            &lost,
        ],
    );
}

/// What befalls processes: they crash, differ, come and go, run out of files, and are gone.
#[test]
fn what_befalls_processes_sets_off_the_alerts_for_it() {
    let kafka = shared();
    let [source, out] = ["fleet", "fleet-out"].map(unique);
    [&source, &out].into_iter().for_each(|topic| kafka.create_topic(topic, 2, &[]));
    let config = |rest: &str| {
        let routes = format!("routes:\n{}", route("r", &source, ", group: fleet", "[]", &out, rest));
        Config::new(&kafka.bootstrap, &[], &routes.replace("group: fleet", &format!("group: {source}")))
    };
    let is = |count: f64| move |partitions: f64| partitions == count;
    let settled = |daemon: &Daemon, partitions: f64| {
        await_metric(daemon, "millrace_partitions_assigned", "r", is(partitions));
        await_metric(daemon, "millrace_consumer_lag_records", "r", is(0.0));
        look(daemon)
    };

    // A process that has few files to spare, and members of its group that come and go; one of them is configured otherwise.
    let (config, others) = (config(""), config("batch: { records: 100 }"));
    let daemon = Daemon::start(config.path());
    let before = settled(&daemon, 2.0);
    let files = sum_of(&before, "process_open_fds", &[]).expect("it is measured") as u64;
    let limit = Some(files + 8);
    prlimit(Some(daemon.pid()), Resource::Nofile, Rlimit { current: limit, maximum: limit }).expect("a limit");
    let mut other = Daemon::start(others.path());
    await_metric(&daemon, "millrace_partitions_assigned", "r", is(1.0));
    let of_other = settled(&other, 1.0);
    assert_eq!(other.sigterm_and_wait(PATIENCE), Some(0));
    let after = settled(&daemon, 2.0);

    // One that starts again and again.
    let lives: Vec<String> = (0..5)
        .map(|_| {
            let mut daemon = Daemon::start(config.path());
            let seen = look(&daemon);
            daemon.kill9();
            seen
        })
        .collect();
    drop(daemon);
    assert_fires(
        &[("a", &[before, after])],
        &[
            r#"alertname="MillraceFilesNearLimit",severity="ticket",instance="a",job="m""#,
            r#"alertname="MillraceRebalancing",severity="ticket",route="r""#,
        ],
    );
    assert_fires(
        &[("b", std::slice::from_ref(&of_other)), ("c", &lives)],
        &[
            r#"alertname="MillraceFleetMixed",severity="ticket",job="m""#,
            r#"alertname="MillraceRestarting",severity="page",instance="c",job="m""#,
        ],
    );
    // And none.
    assert_fires(
        &[("b", &[of_other, String::new()])],
        &[r#"alertname="MillraceAbsent",severity="page""#, r#"alertname="MillraceLagAbsent",severity="page""#],
    );
}

#[test]
fn every_alert_is_set_off_by_a_fault_of_a_real_process() {
    let here = read(&root().join("tests/it/alerts.rs"));
    for Alert { name, .. } in alerts() {
        let file = ELSEWHERE.iter().find(|(of, _)| *of == name).map(|(_, file)| *file);
        let provoked = format!("alertname=\"{name}\",");
        let found = match file {
            Some(file) => read(&root().join("tests/it").join(file)).contains(&provoked),
            None => here.contains(&provoked),
        };
        assert!(found, "{name} is set off by no test");
    }
}

/// A route of a configuration: `source` goes into its source, `rest` into the route.
fn route(name: &str, topic: &str, source: &str, pipeline: &str, destination: &str, rest: &str) -> String {
    format!(
        "  {name}:
    source: {{ topics: [{topic}], start: earliest{source} }}
    pipeline: {pipeline}
    destinations: [{{ topic: {destination} }}]
    {rest}
"
    )
}

/// Waits until a route shows such a value.
#[track_caller]
pub(crate) fn await_metric(daemon: &Daemon, name: &str, route: &str, is: impl Fn(f64) -> bool) {
    wait_until(PATIENCE + LAG_LOOK, &format!("{name} of {route}"), || {
        daemon.metric(name, &[("route", route)]).is_some_and(&is)
    });
}

/// What a daemon shows at a moment when it has no transaction open: one that is seen by chance is taken for one that stays.
#[track_caller]
pub(crate) fn look(daemon: &Daemon) -> String {
    wait_for(PATIENCE, "no transaction is open", || {
        let text = daemon.get("/metrics").body;
        (sum_of(&text, "millrace_transaction_open_seconds", &[]).unwrap_or(0.0) == 0.0).then_some(text)
    })
}

/// Minutes of the first look, and those after the last.
const FIRST: usize = 5;
const AFTER: usize = 30;

/// Fails unless exactly these alerts fire in the end. Processes are told by their instance and what each has shown: the
/// first look for five minutes, a minute for each other, and then half an hour in which it goes on like this. A counter
/// grows as it did last, seconds since something began pass, a gauge stays, and what is not shown any more is gone.
#[track_caller]
pub(crate) fn assert_fires(processes: &[(&str, &[String])], expected: &[&str]) {
    assert_fires_of(".*", processes, expected);
}

/// The same, looking only at the alerts whose names match.
#[track_caller]
pub(crate) fn assert_fires_of(names: &str, processes: &[(&str, &[String])], expected: &[&str]) {
    let looks = processes.iter().map(|(_, looks)| looks.len()).max().expect("a process");
    let mut series = String::new();
    for (instance, looks) in processes {
        let names: BTreeSet<&str> = looks.iter().flat_map(|look| samples(look).map(|(name, _)| name)).collect();
        for name in names {
            let own = format!("job=\"m\",instance=\"{instance}\"}}");
            let labelled = match name.strip_suffix('}') {
                Some(open) => format!("{open},{own}"),
                None => format!("{name}{{{own}"),
            };
            let (labelled, values) = (Value::from(labelled), Value::from(over_time(name, looks).join(" ")));
            writeln!(series, "      - {{ series: {labelled}, values: {values} }}").expect("text");
        }
    }
    let mut samples = String::new();
    for labels in expected {
        let labels = Value::from(format!("ALERTS{{alertstate=\"firing\",{labels}}}"));
        writeln!(samples, "          - {{ labels: {labels}, value: 1 }}").expect("text");
    }
    let rules = deployed("prometheus/alerts.yaml");
    let test = format!(
        "rule_files: [\"{}\"]\nevaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n{series}    promql_expr_test:
      - expr: 'ALERTS{{alertstate=\"firing\",alertname=~\"{names}\"}}'\n        eval_time: {}m\n        exp_samples:\n{samples}",
        rules.display(),
        FIRST + looks + AFTER - 10
    );
    let file = scratch("provoked").with_extension("yaml");
    fs::write(&file, test).expect("a file");
    promtool(&["test", "rules"], &file);
    fs::remove_file(file).expect("it is ours");
}

fn samples(look: &str) -> impl Iterator<Item = (&str, f64)> {
    let lines = look.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(name, value)| (name, value.parse().expect("a number")))
}

/// The values of a series, minute by minute, as promtool reads them.
fn over_time(name: &str, looks: &[String]) -> Vec<String> {
    let shown: Vec<Option<f64>> =
        looks.iter().map(|look| samples(look).find(|(of, _)| *of == name).map(|(_, value)| value)).collect();
    let last = shown.last().copied().flatten();
    let family = name.split('{').next().unwrap_or_default();
    let growth = match metric(family).map(|metric| (metric.kind, metric.kind.type_name())) {
        Some((_, "counter" | "histogram")) if shown.len() > 1 => {
            // (a series that comes up has grown from nothing)
            last.unwrap_or(0.0) - shown[shown.len() - 2].unwrap_or(0.0)
        }
        Some((Kind::HeldSince, _)) if last.is_some_and(|seconds| seconds > 0.0) => 60.0,
        _ => 0.0,
    };
    let goes_on = (1..=AFTER).map(|minute| Some(last? + growth.max(0.0) * minute as f64));
    let all = std::iter::repeat_n(shown[0], FIRST).chain(shown.iter().copied().skip(1)).chain(goes_on);
    let text = |value: Option<f64>| match value {
        None => "_".to_owned(),
        // (promtool cannot write it otherwise)
        Some(f64::INFINITY) => "1e300".to_owned(),
        Some(value) => value.to_string(),
    };
    all.map(text).collect()
}
