//! Dead letters, from where they lie back through their route: `millrace dlq`, on a real broker.

use std::collections::BTreeMap;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::config::{Config, plugin};
use crate::support::daemon::{Daemon, millrace};
use crate::support::kafka::{ConsumedRecord, Isolation, Record, shared};
use crate::support::{unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// A route whose plugin traps on records with a marker, and the letters that came of it.
struct Bench {
    config: Config,
    source: String,
    target: String,
    letters: String,
}

impl Bench {
    /// Sends the records through, and ends the daemon once `dead` of them are letters.
    fn new(records: &[Record], dead: usize) -> Self {
        let kafka = shared();
        let [source, target, letters] = ["in", "out", "dead"].map(unique);
        for topic in [&source, &target, &letters] {
            kafka.create_topic(topic, 2, &[("retention.ms", "-1")]);
        }
        kafka.produce(&source, records);
        let yaml = format!(
            "plugins:
  guard: {{ path: {}, config: {{ do: trap, when: poison }} }}
routes:
  r:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: guard }}]
    destinations: [{{ topic: {target} }}]
    on_error: {{ dead_letter: {letters} }}
",
            plugin("misbehave").display()
        );
        let bench = Self { config: Config::new(&kafka.bootstrap, &[], &yaml), source, target, letters };
        let _daemon = Daemon::start(bench.config.path());
        kafka.await_records(&bench.letters, dead, PATIENCE);
        kafka.await_records(&bench.target, records.len() - dead, PATIENCE);
        bench
    }

    /// The plugin is mended: it traps on fewer.
    fn mend(&self, when: &str) {
        self.config.edit(|yaml| yaml.replace("when: poison", &format!("when: {when}")));
    }

    fn dlq(&self, verb: &str, options: &[&str]) -> Output {
        let mut command = millrace(&["dlq", verb, &self.letters]);
        command.arg(self.config.path()).args(options).output().expect("the millrace binary runs")
    }

    /// The verb's answer as JSON.
    #[track_caller]
    fn json(&self, verb: &str, options: &[&str]) -> Value {
        let output = self.dlq(verb, &[options, &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// The letters that no redrive has settled.
    #[track_caller]
    fn listed(&self, options: &[&str]) -> Vec<Value> {
        let output = self.dlq("ls", &[options, &["--json", "--limit", "100000"]].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until so many letters are listed: brokers write the marks that show a transaction after they have answered its
    /// commit.
    #[track_caller]
    fn await_listed(&self, count: usize, options: &[&str]) -> Vec<Value> {
        let mut listed = Vec::new();
        wait_until(PATIENCE, &format!("{count} letters are listed"), || {
            listed = self.listed(options);
            listed.len() == count
        });
        listed
    }

    fn arrived(&self) -> Vec<ConsumedRecord> {
        shared().kcat_consume(&self.target, Isolation::ReadCommitted)
    }
}

/// How often each of these values is there.
fn counts(records: &[ConsumedRecord]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    records.iter().for_each(|record| *counts.entry(record.text()).or_default() += 1);
    counts
}

fn poisoned(number: usize) -> Record {
    let bad = if number.is_multiple_of(100) { "for good" } else { "for now" };
    Record::new(format!("key-{}", number % 7), format!("poison {bad} {number}")).header("h", "v").at(1_732_406_400_000)
}

#[test]
fn a_thousand_letters_all_land_once_and_those_still_poisoned_are_set_aside_after_n_rounds() {
    let bench = Bench::new(&(0..1000).map(poisoned).collect::<Vec<_>>(), 1000);
    bench.mend("for good");
    let dry = bench.json("redrive", &["--dry-run"]);
    assert_eq!((&dry["redrive"], &dry["codes"]["trapped"]), (&json!(1000), &json!(1000)), "{dry}");
    assert_eq!(dry["plugins_say"], json!({ "let through": 990, "at fault again: trapped": 10 }));
    assert_eq!(bench.arrived().len(), 0, "a dry run sends nothing");

    let first = bench.json("redrive", &["--times", "2"]);
    assert_eq!((&first["redriven"], &first["outputs"]), (&json!(1000), &json!(990)), "{first}");
    assert_eq!(first["failed"], json!({ "trapped": 10 }));
    let again = bench.await_listed(10, &[]);
    assert!(again.iter().all(|letter| letter["redrives"] == 1), "{again:?}");
    // They say where they came from in the first place.
    assert!(again.iter().all(|letter| letter["from"]["topic"] == bench.source.as_str()), "{again:?}");

    let second = bench.json("redrive", &["--times", "2"]);
    assert_eq!((&second["redriven"], &second["failed"]), (&json!(10), &json!({ "trapped": 10 })), "{second}");
    let twice = bench.await_listed(10, &[]);
    assert!(twice.iter().all(|letter| letter["redrives"] == 2), "{twice:?}");
    let aside = unique("aside");
    shared().create_topic(&aside, 1, &[("retention.ms", "-1")]);
    let third = bench.dlq("redrive", &["--times", "2", "--set-aside", &aside]);
    assert!(third.status.success(), "{third:?}");
    let said = String::from_utf8_lossy(&third.stderr);
    assert!(said.contains("10 have been sent through 2 times or more"), "{said}");

    assert_eq!(shared().await_records(&aside, 10, PATIENCE).len(), 10);
    let arrived = shared().await_records(&bench.target, 990, PATIENCE);
    let counts = counts(&arrived);
    assert_eq!((counts.len(), arrived.len()), (990, 990), "each once");
    // What a letter's headers said is gone again, and the record as it was.
    assert!(arrived.iter().all(|record| record.headers == [("h".to_owned(), Some(b"v".to_vec()))]), "{:?}", arrived[0]);
    assert!(arrived.iter().all(|record| record.timestamp == 1_732_406_400_000), "{:?}", arrived[0]);
}

#[test]
fn a_redrive_that_is_killed_goes_on_where_it_ended_and_nothing_lands_twice() {
    let bench = Bench::new(&(0..400).map(poisoned).collect::<Vec<_>>(), 400);
    bench.mend("nothing");
    let mut redrive = millrace(&["dlq", "redrive", &bench.letters]);
    let mut redrive = redrive
        .arg(bench.config.path())
        .args(["--rate", "50"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the millrace binary runs");
    wait_until(PATIENCE, "some have landed", || bench.arrived().len() > 20);
    redrive.kill().expect("it is killed");
    redrive.wait().expect("it has ended");
    let left = bench.listed(&[]).len();
    assert!((1..400).contains(&left), "it was killed in the middle: {left} are left");
    let rest = bench.json("redrive", &[]);
    assert!(rest["redriven"].as_u64().is_some_and(|count| (1..400).contains(&count)), "{rest}");
    let arrived = shared().await_records(&bench.target, 400, PATIENCE);
    assert_eq!((counts(&arrived).len(), arrived.len()), (400, 400), "each once");
    assert_eq!(bench.json("redrive", &[])["redriven"], 0, "nothing is left to do");
}

#[test]
fn letters_that_a_filter_leaves_out_are_kept_and_those_of_the_key_that_is_meant_go_through() {
    let records: Vec<_> = (0..21).map(poisoned).chain([Record::new("key-0", "sound")]).collect();
    let bench = Bench::new(&records, 21);
    for (filter, count) in [
        (["--route", "r"], 21),
        (["--route", "other"], 0),
        (["--plugin", "guard"], 21),
        (["--plugin", "other"], 0),
        (["--code", "trapped"], 21),
        (["--code", "refused"], 0),
        (["--key", "key-3"], 3),
        (["--since", "2024-11-24T00:00:00Z"], 21),
        (["--since", "2024-11-24T00:00:01Z"], 0),
        (["--until", "2024-11-24T00:00:01Z"], 21),
        (["--until", "2024-11-24T00:00:00Z"], 0),
        (["--message", "no plugin says this"], 0),
    ] {
        assert_eq!(bench.listed(&filter).len(), count, "{filter:?}");
    }
    bench.mend("nothing");
    let done = bench.json("redrive", &["--key", "key-3"]);
    assert_eq!((&done["redriven"], &done["put_back"]), (&json!(3), &json!(18)), "{done}");
    let left = bench.await_listed(18, &[]);
    assert!(left.iter().all(|letter| letter["key"] != "key-3" && letter["redrives"] == 0), "{left:?}");
    bench.await_listed(39, &["--all"]);
    assert_eq!(bench.json("redrive", &[])["redriven"], 18);
    assert_eq!(shared().await_records(&bench.target, 22, PATIENCE).len(), 22);
    assert_eq!(bench.listed(&[]).len(), 0);
}

#[test]
fn letters_go_back_to_their_source_where_that_is_asked_for_with_a_count_that_their_next_letter_keeps() {
    let bench = Bench::new(&[Record::new("k", "poison for good 1").to(1)], 1);
    let said = bench.dlq("redrive", &["--to-source"]);
    assert!(said.status.success(), "{said:?}");
    assert!(
        String::from_utf8_lossy(&said.stderr).contains("every group that reads those will see them again"),
        "{said:?}"
    );
    let source = shared().await_records(&bench.source, 2, PATIENCE);
    assert_eq!(source.len(), 2);
    assert!(source.iter().all(|record| record.partition == 1 && record.text() == "poison for good 1"), "{source:?}");
    let _daemon = Daemon::start(bench.config.path());
    assert_eq!(bench.await_listed(1, &[])[0]["redrives"], 1);
}

#[test]
fn a_letter_is_shown_with_its_reason_and_with_what_the_present_plugins_make_of_it() {
    let bench = Bench::new(&[Record::new("k", "poison for now 1").header("trace", "7")], 1);
    let at = |letter: &Value| format!("{}/{}", letter["partition"], letter["offset"]);
    let at = at(&bench.listed(&[])[0]);
    let before = bench.json("show", &["--at", &at]);
    assert_eq!(
        (&before["code"], &before["plugin"], &before["route"]),
        (&json!("trapped"), &json!("guard"), &json!("r"))
    );
    assert_eq!((&before["value"], &before["headers"]), (&json!("poison for now 1"), &json!([["trace", "7"]])));
    assert_eq!(before["now"]["outcome"], "fault", "{before}");
    bench.mend("nothing");
    let after = bench.json("show", &["--at", &at]);
    assert_eq!(after["now"]["outcome"], "passed", "{after}");
    let text = bench.dlq("show", &["--at", &at]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("fault        trapped:") && text.contains("the route's plugins let it through"), "{text}");
    let nowhere = bench.dlq("show", &["--at", "0/4711"]);
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("offset 4711"), "{nowhere:?}");
}
