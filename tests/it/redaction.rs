//! A marked secret in every place that can hold one, fed through everything that millrace says: logs at every level, errors, the
//! API, metrics, plan, status, the effective configuration and a crash. It must turn up nowhere.

use std::process::Output;
use std::time::Duration;

use crate::support::config::{head_with, plugin};
use crate::support::daemon::{Daemon, http_with, millrace};
use crate::support::kafka::{Record, shared};
use crate::support::{config::Config, unique, wait_until};

const SECRET: &str = "marked-5ecret-4711";
const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn assert_silent(what: &str, said: &str) {
    assert!(!said.is_empty(), "{what} says nothing, which shows nothing");
    assert!(!said.contains(SECRET), "{what} tells the secret:\n{said}");
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_secret_turns_up_in_nothing_that_is_said() {
    let [source, out] = ["redaction-in", "redaction-out"].map(unique);
    for topic in [&source, &out] {
        shared().create_topic(topic, 1, &[]);
    }
    // Of a password, a secret of a file in a librdkafka property, in a plugin's configuration and in the admin endpoint's.
    let kafka = format!(", sasl.username: someone, sasl.password: {SECRET}, client.rack: \"${{file:secret}}\"");
    let text_of = format!(
        "{}plugins:\n  drop: {{ path: \"{}\", config: {{ field: status, equals: \"${{file:secret}}\" }} }}\n\
         routes:\n  r:\n    source: {{ topics: [{source}], start: earliest }}\n    pipeline: [{{ plugin: drop }}]\n    \
         shadow: {{ pipeline: [{{ plugin: drop, config: {{ field: other, equals: \"${{file:secret}}\" }} }}] }}\n    \
         destinations: [{{ topic: {out} }}]\n",
        head_with(&shared().bootstrap, &unique("redaction"), &kafka)
            .replace("listen: \"127.0.0.1:0\"", "listen: \"127.0.0.1:0\", token: \"${file:secret}\""),
        plugin("drop-where").display(),
    );
    let config = Config::of(&text_of);
    std::fs::write(config.path().join("secret"), SECRET).expect("a file for it");

    let daemon = Daemon::start_with(config.path(), |command| {
        command.env("MILLRACE_LOG", "trace").env("MILLRACE_MUTATION", "panic").env("RUST_BACKTRACE", "full");
    });
    // The worker's first attempt ends in a panic that tells all it knows, with a backtrace; the next one works.
    wait_until(PATIENCE, "the crash is told", || daemon.log().contains("a bug in millrace"));
    let crash = daemon.log();
    for words in ["panicked at", "sasl.password", "stack backtrace"] {
        assert!(crash.contains(words), "`{words}` is not in:\n{crash}");
    }
    assert_silent("the crash", &crash);
    shared().produce(&source, &[Record::new("k", "{}"), Record::new("k", format!("{{\"status\":\"{SECRET}\"}}"))]);
    let bearer = format!("Bearer {SECRET}");
    let get =
        |path: &str| http_with(daemon.admin(), "GET", path, &[("Authorization", &bearer)], "").expect("an answer").body;
    wait_until(PATIENCE, "the records are routed", || get("/metrics").contains("millrace_records_produced_total"));
    wait_until(PATIENCE, "the shadow has seen what differs", || get("/api/v1/status").contains("1 output"));
    for path in
        ["/metrics", "/api/v1/status", "/api/v1/config", "/api/v1/routes", "/api/v1/routes/r", "/readyz", "/livez"]
    {
        assert_silent(path, &get(path));
    }
    // A change that is refused at the line of the password, and one that is taken up.
    config.edit(|yaml| yaml.replace("sasl.username: someone", "sasl.usernam: someone"));
    wait_until(PATIENCE, "the change is refused", || daemon.log().contains("sasl.usernam"));
    let url = daemon.url();
    for arguments in
        [&["check", "--json"][..], &["check"], &["check", "--print"], &["plan", "--against", &url, "--json"], &["test"]]
    {
        let output = millrace(arguments)
            .env("MILLRACE_TOKEN", SECRET)
            .arg(config.path())
            .output()
            .expect("the millrace binary runs");
        assert_silent(&arguments.join(" "), &text(&output));
    }
    config.edit(|yaml| yaml.replace("sasl.usernam: someone", "sasl.username: someone"));
    for arguments in [
        &["check", "--print"][..],
        &["check", "--print", "--json"],
        &["check", "--acls"],
        &["plan", "--against", &url, "--json"],
        &["plan", "--against", &url],
    ] {
        let output = millrace(arguments)
            .env("MILLRACE_TOKEN", SECRET)
            .arg(config.path())
            .output()
            .expect("the millrace binary runs");
        assert_silent(&arguments.join(" "), &text(&output));
    }
    // YAML that cannot be read, with the password on the line that is shown.
    config.edit(|yaml| yaml.replace(&format!("sasl.password: {SECRET},"), &format!("sasl.password: {SECRET} ], ")));
    let output = millrace(&["check"]).arg(config.path()).output().expect("the millrace binary runs");
    assert_silent("check of a broken file", &text(&output));
    assert_silent("the log", &daemon.log());
}
