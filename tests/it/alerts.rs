//! What an operator sees of a fleet: the alert rules and the dashboard in `deploy/`. promtool, which is Prometheus' own, says
//! whether they make sense; that what they name exists is held against the table of metrics.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use millrace::telemetry::{ALL, Kind, Metric};
use serde_json::Value;

use crate::support::config::Config;
use crate::support::daemon::Daemon;
use crate::support::kafka::{Record, shared};
use crate::support::{root, scratch, unique, wait_until};

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
        }
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
/// Those that lag and its absence set off: they have tests of their own.
const OF_LAG: &str = "MillraceLag.*|MillraceSourceBlocked|MillraceNoProgress";

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
        format!(
            "  {name}:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: misbehave, config: {{ do: {does}, when: poison }} }}]
    destinations: [{{ topic: {out} }}]
    on_error: {on_error}
"
        )
    };
    let routes = [
        faulty("poisoned", "trap", "stop"),
        faulty("lenient", "refuse", "skip"),
        faulty("thorough", "refuse", &format!("{{ dead_letter: {dead} }}")),
        format!(
            "  forbidden: {{ source: {{ topics: [{wide}], start: earliest }}, destinations: [{{ topic: {narrow}, partition: source }}] }}\n"
        ),
        format!(
            "  lonely: {{ source: {{ topics: [{source}], start: earliest }}, destinations: [{{ topic: {out}-missing }}] }}\n"
        ),
    ];
    let config = Config::new(&kafka.bootstrap, &["misbehave"], &format!("routes:\n{}", routes.concat()));
    let daemon = Daemon::start(config.path());
    let faulty = ["poisoned", "lenient", "thorough"];
    faulty.iter().for_each(|route| daemon.await_consumed(route, 1, PATIENCE));
    let before = daemon.get("/metrics").body;

    kafka.produce(&source, &[Record::new("k", "poison")]);
    daemon.await_state("poisoned", "failed", PATIENCE);
    daemon.await_state("forbidden", "failed", PATIENCE);
    daemon.await_state("lonely", "waiting", PATIENCE);
    ["lenient", "thorough"].iter().for_each(|route| daemon.await_consumed(route, 2, PATIENCE));
    config.edit(|yaml| yaml.replace("routes:", "rout:"));
    wait_until(PATIENCE, "the configuration is refused", || daemon.reloads("rejected") > 0.0);
    let after = daemon.get("/metrics").body;

    assert_fires(
        &before,
        &after,
        &[
            r#"alertname="MillracePartitionStopped",severity="page",route="poisoned""#,
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

/// Fails unless exactly these alerts fire, ten minutes after what `before` shows has begun to become what `after` shows: a
/// counter goes on as it has grown, a gauge stays.
#[track_caller]
fn assert_fires(before: &str, after: &str, expected: &[&str]) {
    let mut series = String::new();
    for line in after.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, value) = line.rsplit_once(' ').expect("a series and its value");
        let was = before.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or("_");
        let family = name.split('{').next().unwrap_or_default();
        let number = |text: &str| text.parse::<f64>().unwrap_or(0.0);
        let values = match metric(family).map(|metric| metric.kind.type_name()) {
            // (promtool cannot write it otherwise)
            _ if number(value).is_infinite() => "1e300x30".to_owned(),
            Some("counter" | "histogram") => format!("{0}x5 {0}+{1}x30", number(was), number(value) - number(was)),
            _ => format!("{was}x5 {value}x30"),
        };
        let labelled = match name.strip_suffix('}') {
            Some(open) => format!("{open},job=\"m\",instance=\"a\"}}"),
            None => format!("{name}{{job=\"m\",instance=\"a\"}}"),
        };
        let (labelled, values) = (Value::from(labelled), Value::from(values));
        writeln!(series, "      - {{ series: {labelled}, values: {values} }}").expect("text");
    }
    let mut samples = String::new();
    for labels in expected {
        let labels = Value::from(format!("ALERTS{{alertstate=\"firing\",{labels}}}"));
        writeln!(samples, "          - {{ labels: {labels}, value: 1 }}").expect("text");
    }
    let expr = Value::from(format!("ALERTS{{alertstate=\"firing\",alertname!~\"{OF_LAG}\"}}"));
    let rules = deployed("prometheus/alerts.yaml");
    let test = format!(
        "rule_files: [\"{}\"]\nevaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n{series}    promql_expr_test:
      - expr: {expr}\n        eval_time: 15m\n        exp_samples:\n{samples}",
        rules.display()
    );
    let file = scratch("provoked").with_extension("yaml");
    fs::write(&file, test).expect("a file");
    promtool(&["test", "rules"], &file);
    fs::remove_file(file).expect("it is ours");
}
