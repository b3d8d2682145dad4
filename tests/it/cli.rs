//! What a user meets at the command line: help, exit codes, signals, and a broker that is not there.

use std::net::TcpListener;
use std::process::Output;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::config::{Config, plugin};
use crate::support::daemon::{Daemon, millrace, millrace_output};
use crate::support::kafka::{Cluster, Isolation, Record, shared};
use crate::support::{scratch, unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// Nobody listens there: the port of TCP's discard service, on loopback.
const NOBODY: &str = "127.0.0.1:9";

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}{said}", String::from_utf8_lossy(&output.stdout));
}

fn check(config: &Config, options: &[&str]) -> Output {
    millrace(&["check"]).args(options).arg(config.path()).output().expect("the millrace binary runs")
}

fn run(config: &Config) -> Output {
    millrace(&["run"]).arg(config.path()).output().expect("the millrace binary runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("not JSON ({error}): {output:?}"))
}

/// A route that names topics nobody has, which is none of `check`'s business.
fn a_route(pipeline: &str) -> String {
    format!(
        "
routes:
  r:
    source: {{ topics: [in], start: earliest }}
    pipeline: [{pipeline}]
    destinations: [{{ topic: out }}]
"
    )
}

// ---- help and usage -------------------------------------------------------------------------------------------------

#[test]
fn help_says_what_there_is() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots/cli");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let _bound = settings.bind_to_scope();
    for verb in [
        "",
        "run",
        "check",
        "test",
        "plan",
        "reload",
        "status",
        "pause",
        "resume",
        "restart",
        "skip",
        "seek",
        "log-level",
        "health",
        "demo",
        "plugin",
        "tap",
        "dlq",
        "replay",
        "schema",
        "completions",
    ] {
        let arguments: Vec<&str> = [verb, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
        // Where the text wraps depends on the terminal; here there is none.
        let output = millrace(&arguments).env_remove("COLUMNS").output().expect("the millrace binary runs");
        assert_exit(&output, 0);
        let name = if verb.is_empty() { "millrace" } else { verb };
        insta::assert_snapshot!(format!("help-{name}"), String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn what_is_not_understood_is_told_with_exit_code_2() {
    for (arguments, hint) in [
        (&[][..], "Usage: millrace"),
        (&["chekc"], "'check'"),
        (&["run", "--no-such-option"], "--no-such-option"),
        (&["run", "a", "b"], "unexpected argument"),
        (&["completions", "no-such-shell"], "bash"),
    ] {
        let output = millrace_output(arguments);
        assert_exit(&output, 2);
        assert!(said(&output).contains(hint), "{arguments:?}: {}", said(&output));
        assert_eq!(output.stdout, b"", "{arguments:?}");
    }
}

#[test]
fn version_and_completions_are_printed() {
    let version = millrace_output(&["--version"]);
    assert_exit(&version, 0);
    assert_eq!(String::from_utf8_lossy(&version.stdout), format!("millrace {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        let output = millrace_output(&["completions", shell]);
        assert_exit(&output, 0);
        assert!(String::from_utf8_lossy(&output.stdout).contains("millrace"), "{shell}");
    }
}

// ---- configurations -------------------------------------------------------------------------------------------------

#[test]
fn a_valid_configuration_is_counted_without_a_broker() {
    let config = Config::new(NOBODY, &["identity-emit"], &a_route("{ plugin: identity-emit }"));
    let output = check(&config, &[]);
    assert_exit(&output, 0);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.ends_with("is valid: 1 file, 1 route, 1 plugin\n"), "{printed}");
    let output = check(&config, &["--json"]);
    assert_exit(&output, 0);
    let expected = serde_json::json!({ "valid": true, "files": 1, "routes": 1, "plugins": 1, "problems": [] });
    assert_eq!(json(&output), expected);
}

#[test]
fn a_configuration_with_problems_is_refused_by_check_and_run_with_all_of_them() {
    let config = Config::new(NOBODY, &[], &a_route("{ plugin: nobody }").replace("start:", "strat:"));
    for output in [check(&config, &[]), run(&config)] {
        assert_exit(&output, 2);
        let said = said(&output);
        for part in ["there is no plugin `nobody`", "did you mean `start`?", "millrace.yaml:", "3 problems"] {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
    }
    let output = check(&config, &["--json"]);
    assert_exit(&output, 2);
    let answer = json(&output);
    assert_eq!(answer["valid"], false);
    let problems = answer["problems"].as_array().expect("a list");
    let unknown = problems.iter().find(|problem| problem["code"] == "unknown_plugin");
    let unknown = unknown.unwrap_or_else(|| panic!("no unknown plugin in {answer:#}"));
    assert!(unknown["line"].as_u64() > Some(1) && unknown["column"].as_u64() > Some(1), "{unknown:#}");
}

#[test]
fn what_is_missing_around_the_configuration_is_exit_code_3() {
    let nowhere = scratch("no-such-file").with_extension("yaml");
    for verb in ["check", "run"] {
        let output = millrace(&[verb]).arg(&nowhere).output().expect("the millrace binary runs");
        assert_exit(&output, 3);
        assert!(said(&output).contains(&nowhere.display().to_string()), "{}", said(&output));
    }
    let config =
        Config::new(NOBODY, &[], &format!("plugins: {{ p: {{ path: gone.wasm }} }}{}", a_route("{ plugin: p }")));
    for output in [check(&config, &[]), run(&config)] {
        assert_exit(&output, 3);
        for part in ["gone.wasm cannot be read", "millrace.yaml:4:"] {
            assert!(said(&output).contains(part), "{}", said(&output));
        }
    }
}

#[test]
fn a_plugin_file_that_is_no_plugin_is_an_invalid_configuration() {
    let config = Config::new(NOBODY, &[], &format!("plugins: {{ p: {{ path: p.wasm }} }}{}", a_route("{ plugin: p }")));
    let good = std::fs::read(plugin("identity-emit")).expect("a plugin");
    for bytes in [&b""[..], b"not WebAssembly", b"\0asm\x01\0\0\0", &good[..good.len() / 2]] {
        std::fs::write(config.path().join("p.wasm"), bytes).expect("a file");
        let output = check(&config, &[]);
        assert_exit(&output, 2);
        assert!(said(&output).contains("p.wasm cannot be used"), "{}", said(&output));
    }
}

#[test]
fn an_admin_port_in_use_is_exit_code_3() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("its address").to_string();
    let config = Config::new(NOBODY, &[], &a_route(""));
    let yaml = config.path().join("millrace.yaml");
    let text =
        std::fs::read_to_string(&yaml).expect("the configuration").replace("127.0.0.1:0\"", &format!("{address}\""));
    std::fs::write(&yaml, text).expect("the configuration");
    let output = run(&config);
    assert_exit(&output, 3);
    for part in ["admin endpoint", "admin.listen", address.as_str()] {
        assert!(said(&output).contains(part), "{part} is not in: {}", said(&output));
    }
}

// ---- the broker comes and goes --------------------------------------------------------------------------------------

#[test]
fn the_daemon_waits_for_a_broker_that_is_not_there_and_drains_in_time_when_it_is_gone_again() {
    let cluster = Cluster::start(1);
    cluster.create_topic("in", 1, &[]);
    cluster.create_topic("out", 1, &[]);
    cluster.produce("in", &[Record::new("k", "before")]);
    cluster.shut_down(1);
    let config = Config::new(&cluster.bootstrap, &[], &a_route(""));
    let mut daemon = Daemon::start(config.path());
    let reason = daemon.await_state("r", "waiting", Duration::from_secs(10));
    assert!(reason.contains("Connection refused"), "{reason}");
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(daemon.get("/readyz?routes=all").status, 503);
    assert_eq!(daemon.get("/livez").status, 200);
    cluster.restart(1);
    daemon.await_consumed("r", 1, PATIENCE);
    assert_eq!(daemon.await_state("r", "running", PATIENCE), "");
    assert_eq!(cluster.await_records("out", 1, PATIENCE)[0].text(), "before");
    cluster.kill(1);
    assert_eq!(daemon.sigterm_and_wait(Duration::from_secs(15)), Some(0));
}

// ---- signals --------------------------------------------------------------------------------------------------------

#[test]
fn sigterm_and_sigint_drain_and_leave_the_group_at_once() {
    let kafka = shared();
    let (source, destination) = (unique("drain"), unique("drain-out"));
    for topic in [&source, &destination] {
        kafka.create_topic(topic, 1, &[]);
    }
    let rest =
        a_route("").replace("[in]", &format!("[{source}]")).replace("topic: out", &format!("topic: {destination}"));
    let config = Config::new(&kafka.bootstrap, &[], &rest);
    for (number, signal) in [Signal::TERM, Signal::INT].into_iter().enumerate() {
        kafka.produce(&source, &[Record::new("k", number.to_string())]);
        let mut daemon = Daemon::start(config.path());
        // (the second could not have the partition so soon had the first not left the group)
        daemon.await_consumed("r", 1, Duration::from_secs(30));
        daemon.signal(signal);
        assert_eq!(daemon.wait(PATIENCE).code(), Some(0));
        assert!(daemon.log().contains("drained"), "{}", daemon.log());
    }
    let values: Vec<_> = kafka.kcat_consume(&destination, Isolation::ReadCommitted).iter().map(|r| r.text()).collect();
    assert_eq!(values, ["0", "1"]);
}

/// A daemon whose plugin is busy with a record for longer than anybody waits here, and which would not interrupt it.
fn busy(head: &str) -> (Config, Daemon) {
    let kafka = shared();
    let (source, destination) = (unique("busy"), unique("busy-out"));
    for topic in [&source, &destination] {
        kafka.create_topic(topic, 1, &[]);
    }
    kafka.produce(&source, &[Record::new("k", "v")]);
    let rest = format!(
        "{head}
plugins: {{ busy: {{ path: \"{}\", timeout: 25s, config: {{ do: loop }} }} }}
routes:
  r:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: busy }}]
    destinations: [{{ topic: {destination} }}]
",
        plugin("misbehave").display()
    );
    let config = Config::new(&kafka.bootstrap, &[], &rest);
    config.edit(|yaml| yaml.replacen(" }\nadmin", ", producer: { transaction.timeout.ms: 1000 } }\nadmin", 1));
    let daemon = Daemon::start_with(config.path(), |command| {
        command.env("MILLRACE_MUTATION", "never-drain");
    });
    wait_until(PATIENCE, "the plugin is busy", || cpu_ticks(&daemon, "r-0") > 30);
    (config, daemon)
}

/// CPU time of the thread of that name, in hundredths of a second. A worker uses next to none unless a guest is busy.
fn cpu_ticks(daemon: &Daemon, thread: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("the daemon runs");
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let of_thread = stats.filter_map(|stat| Some(stat.split_once(&format!("({thread}) "))?.1.to_owned()));
    // Of what follows the name, utime is the 12th field.
    of_thread.filter_map(|stat| stat.split(' ').nth(11)?.parse::<u64>().ok()).sum()
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let (_config, mut daemon) = busy("");
        daemon.signal(signal);
        wait_until(PATIENCE, "the first signal is taken", || daemon.log().contains("once more ends at once"));
        daemon.signal(signal);
        assert_eq!(daemon.wait(Duration::from_secs(5)).code(), Some(code));
    }
}

#[test]
fn what_cannot_drain_within_shutdown_timeout_ends_with_exit_code_1_and_names_the_route() {
    // (the least that the transactions of a second leave it)
    let (_config, mut daemon) = busy("shutdown_timeout: 5s");
    assert_eq!(daemon.sigterm_and_wait(Duration::from_secs(10)), Some(1));
    let log = daemon.log();
    assert!(log.contains("not drained within 5s (shutdown_timeout): r; what was in work is uncommitted"), "{log}");
}

// ---- plan and reload ------------------------------------------------------------------------------------------------

/// A daemon with two routes, and its configuration.
fn two_routes() -> (Config, Daemon) {
    let [source, kept, copy] = ["verbs-in", "verbs-kept", "verbs-copy"].map(unique);
    for topic in [&source, &kept, &copy] {
        shared().create_topic(topic, 2, &[]);
    }
    let config = Config::new(
        &shared().bootstrap,
        &[],
        &format!(
            "  stamp: {{ path: \"{}\", config: {{ name: v, value: one }} }}
routes:
  stamped:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: stamp }}]
    destinations: [{{ name: kept, topic: {kept} }}]
  copied:
    source: {{ topics: [{source}], start: earliest }}
    destinations: [{{ name: copy, topic: {copy} }}]
",
            plugin("stamp").display()
        )
        .replacen("  stamp:", "plugins:\n  stamp:", 1),
    );
    let daemon = Daemon::start(config.path());
    for route in ["stamped", "copied"] {
        daemon.await_state(route, "running", PATIENCE);
    }
    (config, daemon)
}

/// The same configuration elsewhere, with changes.
fn edited(config: &Config, changes: &[(&str, &str)]) -> std::path::PathBuf {
    let yaml = std::fs::read_to_string(config.path().join("millrace.yaml")).expect("the configuration");
    let yaml = changes.iter().fold(yaml, |yaml, (from, to)| {
        assert!(yaml.contains(from), "{from} is not in {yaml}");
        yaml.replace(from, to)
    });
    let path = scratch("edited").with_extension("yaml");
    std::fs::write(&path, yaml).expect("it is written");
    path
}

fn plan(daemon: &Daemon, config: &std::path::Path, options: &[&str]) -> Output {
    let mut command = millrace(&["plan", "--against", &daemon.url()]);
    command.args(options).arg(config).output().expect("the millrace binary runs")
}

#[test]
fn plan_says_what_a_reload_would_do_and_changes_nothing() {
    let (config, daemon) = two_routes();
    let shown = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();

    let output = plan(&daemon, config.path(), &[]);
    assert_exit(&output, 0);
    assert!(shown(&output).ends_with("\n  2 unchanged\n"), "{}", shown(&output));

    let next = edited(&config, &[("value: one", "value: two"), ("name: copy,", "name: copy, partition: round_robin,")]);
    let output = plan(&daemon, &next, &[]);
    assert_exit(&output, 0);
    let text = shown(&output);
    for line in [
        &format!("against {}: millrace {}, generation 1", daemon.url(), env!("CARGO_PKG_VERSION")),
        "  ~ stamped  takes it up in place, between two transactions",
        "      pipeline.0.config: ",
        "      destinations.copy.partition: key → round_robin",
        "  2 swapped in place",
        "hazard: route copied: destination copy chooses partitions by `round_robin` instead of `key`",
    ] {
        assert!(text.lines().any(|shown| shown.starts_with(line)), "{line} is not in:\n{text}");
    }
    let told = json(&plan(&daemon, &next, &["--json"]));
    assert_eq!(told["changes"]["routes"]["stamped"]["action"], "swapped");
    assert_eq!((&told["refused"], &told["hazards"][0]["code"]), (&false.into(), &"partitioning".into()));

    let renamed = edited(&config, &[("  copied:", "  copies:")]);
    let output = plan(&daemon, &renamed, &[]);
    assert_exit(&output, 2);
    assert!(shown(&output).contains("refused: route copies: copies takes the place of copied"), "{}", shown(&output));
    assert_exit(&plan(&daemon, &renamed, &["--accept-new-group"]), 0);
    let missing = edited(&config, &[("name: copy, topic: ", "name: copy, topic: no-such-")]);
    let output = plan(&daemon, &missing, &[]);
    assert_exit(&output, 3);
    assert!(shown(&output).contains("does not exist, and millrace creates no topic"), "{}", shown(&output));

    assert_eq!(daemon.metric("millrace_config_generation", &[]), Some(1.0));
    assert_eq!(daemon.metric("millrace_config_last_reload_successful", &[]), Some(1.0));
}

#[test]
fn plan_tells_of_a_group_that_has_committed_before() {
    let (config, daemon) = two_routes();
    let group = unique("verbs-group");
    let with_group = |yaml: &str| edited(&config, &[("  copied:", yaml)]);
    let third = format!(
        "  third:\n    source: {{ topics: [__SOURCE__], group: {group}, start: earliest }}\n    destinations: [{{ topic: __COPY__ }}]\n  copied:"
    );
    let yaml = std::fs::read_to_string(config.path().join("millrace.yaml")).expect("the configuration");
    let after = |what: &str| {
        yaml.split(what).nth(1).and_then(|rest| rest.split(['}', ']']).next()).expect("it").trim().to_owned()
    };
    let third = third.replace("__SOURCE__", &after("topics: [")).replace("__COPY__", &after("name: copy, topic: "));
    let next = with_group(&third);
    let said = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let output = plan(&daemon, &next, &[]);
    assert!(!said(&output).contains("has committed"), "{}", said(&output));
    // Another process has had it meanwhile.
    let mut other = Daemon::start(&next);
    other.await_state("third", "running", PATIENCE);
    assert_eq!(other.sigterm_and_wait(PATIENCE), Some(0));
    let output = plan(&daemon, &next, &[]);
    let expected =
        format!("hazard: route third: group {group} has committed 2 of 2 partitions already: it goes on there");
    assert!(said(&output).contains(&expected), "{}", said(&output));
}

#[test]
fn reload_waits_for_the_outcome_and_tells_it() {
    let (config, daemon) = two_routes();
    let reload = |options: &[&str]| {
        let mut command = millrace(&["reload", "--url", &daemon.url()]);
        command.args(options).arg(config.path()).output().expect("the millrace binary runs")
    };
    let file = config.path().join("millrace.yaml");
    let write = |changes: &[(&str, &str)]| std::fs::copy(edited(&config, changes), &file).expect("it is written");
    let output = reload(&[]);
    assert_exit(&output, 0);
    assert!(String::from_utf8_lossy(&output.stdout).contains("generation 1: the configuration is the one in force"));

    // (by whichever comes first, this or the daemon's own look: both say generation 2)
    write(&[("value: one", "value: two")]);
    let output = reload(&["--json"]);
    assert_exit(&output, 0);
    assert_eq!(json(&output)["generation"], 2);

    write(&[("routes:", "rout:")]);
    let output = reload(&[]);
    assert_exit(&output, 2);
    let told = said(&output);
    assert!(told.contains("millrace.yaml:") && told.contains("unknown key `rout`"), "{told}");
    assert!(told.contains("refused, and generation 2 goes on as it was"), "{told}");
    write(&[("rout:", "routes:"), ("  copied:", "  copies:")]);
    assert_exit(&reload(&[]), 2);
    assert_exit(&reload(&["--accept-new-group"]), 0);
    daemon.await_state("copies", "running", PATIENCE);
}

#[test]
fn where_no_daemon_answers_plan_and_reload_say_so() {
    let config = Config::new(NOBODY, &[], &a_route(""));
    for verb in [&["plan", "--against"][..], &["reload", "--url"]] {
        let nobody = millrace(verb).arg(format!("http://{NOBODY}")).arg(config.path()).output().expect("it runs");
        assert_exit(&nobody, 3);
        assert!(said(&nobody).contains("no daemon answers at http://127.0.0.1:9"), "{}", said(&nobody));
        // The configuration's own port is any free one.
        let which = millrace(&verb[..1]).arg(config.path()).output().expect("it runs");
        assert_exit(&which, 2);
        assert!(said(&which).contains("admin.listen takes any free port"), "{}", said(&which));
    }
}

#[test]
fn health_tells_by_its_exit_code_whether_the_daemon_lives_and_whether_a_route_is_well() {
    let health = |url: &str, options: &[&str]| millrace_output(&[&["health", "--url", url], options].concat());
    let config = Config::new(
        &shared().bootstrap,
        &[],
        "routes:\n  r: { source: { topics: [health-no-such-topic], start: earliest }, destinations: [{ topic: out }] }\n",
    );
    let daemon = Daemon::start(config.path());
    daemon.await_state("r", "waiting", PATIENCE);
    assert_exit(&health(&daemon.url(), &[]), 0);
    assert_exit(&health(&daemon.url(), &["--ready"]), 0);
    for (route, why) in [("r", "route r is waiting"), ("s", "there is no route \"s\"")] {
        let output = health(&daemon.url(), &["--ready", "--route", route]);
        assert_exit(&output, 1);
        assert!(said(&output).contains(why), "{}", said(&output));
    }
    // A process that is stopped takes connections, and answers none.
    daemon.signal(Signal::STOP);
    let stopped = health(&daemon.url(), &[]);
    daemon.signal(Signal::CONT);
    assert_exit(&stopped, 1);
    let nobody = health(&format!("http://{NOBODY}"), &[]);
    assert_exit(&nobody, 1);
    assert!(said(&nobody).contains("no daemon answers at http://127.0.0.1:9"), "{}", said(&nobody));
    assert_exit(&health("not an address", &[]), 2);
}
