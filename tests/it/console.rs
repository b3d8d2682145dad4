//! The console in a real browser, before a daemon that routes real records; and the tap behind it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::support::browser::Browser;
use crate::support::config::{Config, plugin};
use crate::support::daemon::{Daemon, millrace};
use crate::support::kafka::{Record, shared};
use crate::support::{unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// WebDriver's code of the key.
const ENTER: &str = "\u{e007}";

/// Two routes: one redacts, one stops at its second record.
struct Bench {
    config: Config,
    source: String,
}

impl Bench {
    fn new(admin: &str) -> Self {
        let kafka = shared();
        let [source, redacted, kept, letters] = ["orders", "redacted", "kept", "dead"].map(unique);
        for topic in [&source, &redacted, &kept, &letters] {
            kafka.create_topic(topic, 2, &[]);
        }
        let yaml = format!(
            "plugins:
  redact: {{ path: {}, config: {{ fields: [card] }} }}
  guard: {{ path: {}, config: {{ do: trap, when: poison }} }}
routes:
  redacts:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: redact }}]
    shadow: {{ pipeline: [] }}
    destinations: [{{ topic: {redacted} }}]
    on_error: {{ dead_letter: {letters} }}
  stops:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: guard }}]
    destinations: [{{ topic: {kept} }}]
",
            plugin("redact-fields").display(),
            plugin("misbehave").display()
        );
        let config = Config::new(&kafka.bootstrap, &[], &yaml);
        if !admin.is_empty() {
            config.edit(|yaml| yaml.replace("listen: \"127.0.0.1:0\"", &format!("listen: \"127.0.0.1:0\", {admin}")));
        }
        Self { config, source }
    }

    fn send(&self, values: &[&str]) {
        let records: Vec<_> = values.iter().map(|value| Record::new("k", value).to(0)).collect();
        shared().produce(&self.source, &records);
    }
}

/// Where pictures go: beside the documents where that is asked for.
fn picture(name: &str) -> PathBuf {
    let folder = std::env::var_os("SCREENSHOTS").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    folder.join(format!("console-{name}.png"))
}

fn state_of(route: &str) -> String {
    format!("document.querySelector('[data-route={route}] .state')?.textContent.split(',')[0]")
}

#[test]
fn the_console_shows_what_runs_and_taps_pauses_and_tells_of_a_refused_change() {
    let bench = Bench::new("");
    bench.send(&["{\"card\":\"4711\",\"n\":1}", "poison"]);
    let daemon = Daemon::start(bench.config.path());
    let browser = Browser::start(1280, 1400);
    browser.open(&daemon.url());

    // What runs, and what has failed and why.
    browser.await_true(PATIENCE, &format!("{} === 'running'", state_of("redacts")));
    browser.await_true(PATIENCE, &format!("{} === 'failed'", state_of("stops")));
    let words = browser.run("return document.querySelector('[data-route=stops] .words').textContent");
    assert!(words.as_str().is_some_and(|words| words.contains("offset 1: trapped")), "{words}");
    let topology = browser.run("return document.querySelector('#topology').textContent");
    let topology = topology.as_str().expect("text");
    assert!(
        topology.contains(&bench.source) && topology.contains("redacts") && topology.contains("guard"),
        "{topology}"
    );

    // What another set of plugins makes otherwise: beside its route in the topology, too, where nothing leaves it.
    let shadow = "document.querySelector('[data-route=redacts] .shadow')?.textContent";
    browser.await_true(PATIENCE, &format!("/differ .*1 value/.test({shadow})"));
    let beside = "document.querySelector('#topology g.beside')?.textContent";
    browser.await_true(PATIENCE, &format!("/shadow of redacts.* of 2 differ · no plugins/.test({beside})"));
    assert_eq!(browser.run("return document.querySelectorAll('#topology path.beside').length"), 1);

    // How it has fared, and what it is made of.
    browser.await_true(PATIENCE, "document.querySelectorAll('[data-route=redacts] .charts polyline').length === 3");
    let charts = browser.run("return document.querySelector('[data-route=redacts] .charts').textContent");
    let charts = charts.as_str().expect("text");
    assert!(["in ", "/s", "lag ", "commit ", " ms"].iter().all(|word| charts.contains(word)), "{charts}");
    let more = browser.run("return document.querySelector('[data-route=redacts] .more').textContent");
    let more = more.as_str().expect("text");
    let redacts = daemon.route("redacts");
    let sha256 = redacts["plugins"][0]["sha256"].as_str().expect("a digest");
    assert!(more.contains("worker 0 (generation 1)") && more.contains(&format!("{} 0, 1", bench.source)), "{more}");
    assert!(more.contains("exactly_once") && more.contains(&sha256[..16]), "{more}");

    // A record on its way: as it came, behind its plugin, as it left. What it holds is text, whatever it looks like.
    browser
        .run("document.querySelector('#tap-route').value = 'redacts'; document.querySelector('#tap-toggle').focus()");
    browser.press(ENTER);
    browser.await_true(PATIENCE, "document.querySelector('#tap-state').textContent.startsWith('listening')");
    wait_until(PATIENCE, "records are seen as they pass", || {
        bench.send(&["{\"card\":\"4712\",\"html\":\"<img src=x onerror=alert(1)>\"}"]);
        browser.run("return document.querySelectorAll('#tap-rows tr').length >= 3") == true
    });
    let rows = browser.run("return document.querySelector('#tap-rows').textContent");
    let rows = rows.as_str().expect("text");
    assert!(rows.contains("4712") && rows.contains("step redact") && rows.contains("<img src=x"), "{rows}");
    assert_eq!(browser.run("return document.querySelectorAll('img').length"), 0);

    // By keyboard.
    browser.run("document.querySelector('[data-route=redacts] [data-verb=pause]').focus()");
    browser.press(ENTER);
    daemon.await_state("redacts", "paused", PATIENCE);
    browser.await_true(PATIENCE, &format!("{} === 'paused'", state_of("redacts")));
    browser.run("document.querySelector('[data-route=redacts] [data-verb=resume]').focus()");
    browser.press(ENTER);
    daemon.await_state("redacts", "running", PATIENCE);

    browser.screenshot(&picture("light"));

    // Dark, and as narrow as a phone.
    browser.run("document.querySelector('#theme').click()");
    assert_eq!(browser.run("return document.documentElement.dataset.theme"), "dark");
    browser.screenshot(&picture("dark"));
    browser.resize(390, 844);
    browser.await_true(PATIENCE, "innerWidth < 600 && document.documentElement.scrollWidth <= innerWidth");
    browser.screenshot(&picture("phone"));

    // A change that is refused, with its place.
    bench.config.edit(|yaml| yaml.replace("start: earliest", "start: erliest"));
    browser.await_true(PATIENCE, "document.querySelector('#reload').className.includes('bad')");
    let refused = browser.run("return document.querySelector('#reload').textContent");
    assert!(refused.as_str().is_some_and(|text| text.contains("millrace.yaml:")), "{refused}");

    // Nothing comes from elsewhere, and nothing went wrong.
    let foreign = "return performance.getEntriesByType('resource').filter((entry) => new URL(entry.name).origin !== location.origin).length";
    assert_eq!(browser.run(foreign), 0);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn who_signs_in_gets_a_cookie_for_the_token_and_may_change_things() {
    let bench = Bench::new("token: \"s3cret-of-the-console\"");
    let daemon = Daemon::start(bench.config.path());
    let browser = Browser::start(1280, 1000);
    browser.open(&daemon.url());
    browser.await_true(PATIENCE, &format!("{} === 'running'", state_of("redacts")));
    browser.run("document.querySelector('[data-route=redacts] [data-verb=pause]').click()");
    browser.await_true(PATIENCE, "!document.querySelector('#login').hidden");
    for (token, hidden) in [("wrong", false), ("s3cret-of-the-console", true)] {
        browser.run(&format!(
            "document.querySelector('#token').value = '{token}'; document.querySelector('#login button').click()"
        ));
        browser.await_true(PATIENCE, "document.querySelector('#token').value === ''");
        browser.await_true(PATIENCE, &format!("document.querySelector('#login').hidden === {hidden}"));
    }
    assert_eq!(browser.run("return document.cookie"), "", "no script sees it");
    browser.run("document.querySelector('[data-route=redacts] [data-verb=pause]').click()");
    daemon.await_state("redacts", "paused", PATIENCE);
}

#[test]
fn a_tap_shows_each_stage_of_the_records_that_are_meant_and_ends_at_its_limit() {
    let bench = Bench::new("");
    let daemon = Daemon::start(bench.config.path());
    daemon.await_state("redacts", "running", PATIENCE);
    let tap = |options: &[&str]| {
        let url = daemon.url();
        let args = [&["tap", "redacts", "--url", &url, "--json"], options].concat();
        millrace(&args).stdout(std::process::Stdio::piped()).spawn().expect("the millrace binary runs")
    };
    let everything = tap(&["--limit", "3"]);
    let errors = tap(&["--stage", "error", "--limit", "1"]);
    let other_key = tap(&["--key", "nobody's", "--limit", "1"]);
    // (a listener is there once the first of what is sent reaches it)
    let mut everything = everything;
    wait_until(PATIENCE, "three have been seen", || {
        bench.send(&["{\"card\":\"4711\"}", "no json"]);
        everything.try_wait().expect("it can be asked").is_some()
    });
    let lines = |child: std::process::Child| -> Vec<Value> {
        let output = child.wait_with_output().expect("it has ended");
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let seen = lines(everything);
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen.iter().all(|one| one["topic"] == bench.source.as_str()), "{seen:?}");
    assert!(seen.iter().any(|one| one["stage"] == "source"), "{seen:?}");
    let failed = lines(errors);
    assert_eq!((&failed[0]["stage"], &failed[0]["fault"]["code"]), (&"error".into(), &"refused".into()), "{failed:?}");
    assert_eq!(failed[0]["record"]["value"], "no json");
    let mut other_key = other_key;
    assert!(other_key.try_wait().expect("it can be asked").is_none(), "no record has that key");
    other_key.kill().expect("it ends");
    other_key.wait().expect("it has ended");
    let unknown = millrace(&["tap", "no-such-route", "--url", &daemon.url()]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
}

#[test]
fn who_does_not_read_what_is_tapped_misses_records_is_told_how_many_and_holds_nothing_up() {
    let bench = Bench::new("");
    let daemon = Daemon::start(bench.config.path());
    daemon.await_state("redacts", "running", PATIENCE);
    let mut stream = TcpStream::connect(daemon.admin()).expect("it listens");
    write!(stream, "GET /api/v1/routes/redacts/tap HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").expect("it is asked");
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line of text"));
    assert!(lines.next().is_some_and(|line| line.contains(" 200 ")));

    // Much more than finds room between the two.
    let value = format!("{{\"card\":\"{}\"}}", "4".repeat(15_000));
    bench.send(&vec![&*value; 1_500]);
    daemon.await_consumed("redacts", 1_500, PATIENCE);
    lines.find(|line| line == "event: missed").expect("it is told");
    let missed = lines.next().and_then(|line| line.strip_prefix("data: ").map(str::to_owned));
    let missed: u64 = missed.and_then(|count| count.parse().ok()).expect("a number");
    // (seen three times: as it came, behind the plugin, as it left)
    assert!((1..3 * 1_500).contains(&missed), "{missed}");
}
