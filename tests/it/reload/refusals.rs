//! Configurations that are refused: at whatever stage, what runs goes on, it is told why in every place where one would
//! look, and the mend is taken up. And what is answered to who asks for a reload.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::config::{Config, plugin};
use crate::support::daemon::{Daemon, Response, http_with};
use crate::support::kafka::{Trickle, shared};
use crate::support::stamped::{ROUTE, Stamped, stamp_of};
use crate::support::{pace, scratch, unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// Within which a change is taken up or refused, on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Nobody listens there: the port of TCP's discard service, on loopback.
const NOBODY: &str = "127.0.0.1:9";

// ---- a failure at each stage ----------------------------------------------------------------------------------------

/// Records each second while configurations are refused and mended.
const PACE: usize = 200;
/// Longest time in which nothing comes out.
const LONGEST_GAP: Duration = Duration::from_secs(3);

/// A mistake, and what is told about it.
struct Mistake {
    name: &'static str,
    made: Made,
    /// All of it stands in the reason.
    says: &'static [&'static str],
    /// The line at which the reason points: the first that holds this.
    at: Option<&'static str>,
}

enum Made {
    /// The first of this in the YAML becomes that. `DIST`, `ABSENT` and `NOBODY` stand for names of this run.
    Yaml(&'static str, &'static str),
    /// The same; it is mended by creating the topic `ABSENT`, and no file is touched.
    Topic(&'static str, &'static str),
    /// The plugin's file becomes this.
    Plugin(fn(Vec<u8>) -> Vec<u8>),
}

/// What the files themselves are refused for.
const IN_THE_FILES: &[Mistake] = &[
    Mistake {
        name: "syntax",
        made: Made::Yaml("    on_error: skip", "    on_error: [skip"),
        says: &["millrace.yaml:"],
        at: None,
    },
    Mistake {
        name: "an unknown key",
        made: Made::Yaml("on_error: skip", "on_eror: skip"),
        says: &["on_eror"],
        at: Some("on_eror"),
    },
    Mistake {
        name: "an unknown plugin",
        made: Made::Yaml("plugin: stamp,", "plugin: stomp,"),
        says: &["stomp"],
        at: Some("plugin: stomp"),
    },
    Mistake {
        name: "a variable that is not set",
        made: Made::Yaml("on_error: skip", "on_error: \"${NOBODY_SETS_THIS}\""),
        says: &["the environment variable `NOBODY_SETS_THIS` is not set"],
        at: Some("NOBODY_SETS_THIS"),
    },
    Mistake {
        name: "a plugin file that is missing",
        made: Made::Yaml("path: stamp.wasm", "path: nowhere.wasm"),
        says: &["nowhere.wasm cannot be read"],
        at: Some("path: nowhere.wasm"),
    },
    Mistake {
        name: "bytes that are not those pinned",
        made: Made::Yaml(
            "path: stamp.wasm",
            "path: stamp.wasm, sha256: 0000000000000000000000000000000000000000000000000000000000000000",
        ),
        says: &["stamp.wasm cannot be used", "not the 0000"],
        at: Some("path: stamp.wasm"),
    },
    Mistake {
        name: "a plugin file of garbage",
        made: Made::Plugin(|_| b"this is no plugin".to_vec()),
        says: &["stamp.wasm cannot be used"],
        at: Some("path: stamp.wasm"),
    },
    Mistake {
        name: "a plugin file that is cut short",
        made: Made::Plugin(|code| code[..code.len() / 2].to_vec()),
        says: &["stamp.wasm cannot be used"],
        at: Some("path: stamp.wasm"),
    },
    Mistake {
        name: "a module that is no plugin",
        made: Made::Plugin(|_| b"\0asm\x01\0\0\0".to_vec()),
        says: &["stamp.wasm cannot be used"],
        at: Some("path: stamp.wasm"),
    },
];

/// What is found out only by asking plugins and the cluster.
const BEYOND_THE_FILES: &[Mistake] = &[
    Mistake {
        name: "a plugin that wants more than there is",
        made: Made::Yaml("plugins:\n", "plugins:\n  clock: { path: \"DIST/needs-clock.wasm\" }\n"),
        says: &["test:clock/clock@1.0.0"],
        at: Some("  clock: "),
    },
    Mistake {
        name: "a config that the plugin refuses",
        made: Made::Yaml(
            "    destinations",
            "      - { plugin: misbehave, config: { do: fail_configure } }\n    destinations",
        ),
        says: &["told to fail in configure", "plugin \"misbehave\" in route \"stamped\""],
        at: Some("plugin: misbehave"),
    },
    Mistake {
        name: "a plugin that traps in configure",
        made: Made::Yaml(
            "    destinations",
            "      - { plugin: misbehave, config: { do: trap_configure } }\n    destinations",
        ),
        says: &["told to trap in configure"],
        at: Some("plugin: misbehave"),
    },
    Mistake {
        name: "a plugin that never returns from configure",
        made: Made::Yaml(
            "    destinations",
            "      - { plugin: misbehave, config: { do: loop_configure } }\n    destinations",
        ),
        says: &["CPU time"],
        at: Some("plugin: misbehave"),
    },
    Mistake {
        name: "a destination that does not exist",
        made: Made::Topic("    on_error", "      - { topic: \"ABSENT\" }\n    on_error"),
        says: &["topic \"ABSENT\" does not exist", "route stamped"],
        at: None,
    },
    Mistake {
        name: "a dead-letter topic that does not exist",
        made: Made::Topic("on_error: skip", "on_error: { dead_letter: \"ABSENT\" }"),
        says: &["topic \"ABSENT\" does not exist", "route stamped"],
        at: None,
    },
    Mistake {
        name: "a cluster that cannot be reached",
        made: Made::Yaml("bootstrap.servers: \"BOOTSTRAP\"", "bootstrap.servers: \"NOBODY\""),
        says: &["the cluster cannot be asked for its topics"],
        at: None,
    },
];

/// A daemon through which records flow while its configuration goes wrong and is mended.
struct Bench {
    stamped: Stamped,
    config: Config,
    daemon: Daemon,
    trickle: Trickle,
    /// The stamps that have been in force, in order.
    stamps: Vec<String>,
    /// Stamps that certain records, by their number, must have; and why.
    expected: Vec<(usize, String, String)>,
}

impl Bench {
    fn new(name: &str) -> Self {
        let stamped = Stamped::new(name);
        let config = Config::of(&yaml(&stamped, "stamp-0"));
        fs::copy(plugin("stamp"), config.path().join("stamp.wasm")).expect("a copy");
        let daemon = Daemon::start(config.path());
        let trickle = shared().trickle(&stamped.source, PACE);
        daemon.await_consumed(ROUTE, PACE / 2, PATIENCE);
        Self { stamped, config, daemon, trickle, stamps: vec!["stamp-0".to_owned()], expected: Vec::new() }
    }

    /// The next record that is sent has to have this stamp; and waits until it is committed.
    #[track_caller]
    fn expect_next(&mut self, why: String) {
        let next = self.trickle.sent();
        self.daemon.await_consumed(ROUTE, next + 1, SOON);
        let stamp = self.stamps.last().expect("there is one from the start");
        self.expected.push((next, stamp.clone(), why));
    }

    /// Makes the mistake, sees it refused and the records go on, mends it and sees that taken up.
    fn check(&mut self, number: usize, mistake: &Mistake) {
        let name = mistake.name;
        let absent = unique("refused-absent");
        let fill = |text: &str| {
            let dist = plugin("stamp").parent().expect("a folder").display().to_string();
            text.replace("DIST", &dist)
                .replace("ABSENT", &absent)
                .replace("NOBODY\"", &format!("{NOBODY}\""))
                .replace("BOOTSTRAP", &shared().bootstrap)
        };
        let (generation, rejected) = (self.daemon.generation(), self.daemon.reloads("rejected"));
        let stamp = format!("mistake-{number}");
        let sound = yaml(&self.stamped, &stamp);
        let code = fs::read(plugin("stamp")).expect("a plugin");
        let text = match mistake.made {
            Made::Yaml(from, to) | Made::Topic(from, to) => {
                let (from, to) = (fill(from), fill(to));
                assert!(sound.contains(&from), "{name}: {from} is not in\n{sound}");
                sound.replacen(&from, &to, 1)
            }
            Made::Plugin(make) => {
                fs::write(self.config.path().join("stamp.wasm"), make(code.clone())).expect("a file");
                sound
            }
        };
        self.config.write(&text);
        wait_until(SOON, &format!("{name}: refused"), || self.daemon.reloads("rejected") > rejected);
        let says: Vec<String> = mistake.says.iter().map(|words| fill(words)).collect();
        let line = mistake.at.map(|at| line_of(&text, at));
        self.assert_told(name, &says, line);
        assert_eq!(self.daemon.generation(), generation, "{name}");
        self.expect_next(format!("{name}: refused, so nothing changes"));

        let next = format!("stamp-{}", number + 1);
        let taken_up = match mistake.made {
            Made::Yaml(..) => {
                self.config.write(&yaml(&self.stamped, &next));
                next
            }
            Made::Topic(..) => {
                shared().create_topic(&absent, 1, &[("retention.ms", "-1")]);
                stamp
            }
            Made::Plugin(_) => {
                fs::write(self.config.path().join("stamp.wasm"), code).expect("a file");
                stamp
            }
        };
        self.stamps.push(taken_up);
        self.daemon.await_workers(ROUTE, generation + 1, SOON);
        assert_eq!(self.daemon.generation(), generation + 1, "{name}: mended, as one generation");
        assert_eq!(self.daemon.metric("millrace_config_last_reload_successful", &[]), Some(1.0), "{name}: mended");
        self.expect_next(format!("{name}: mended"));
    }

    /// The reason is told in the status, in the log, by the metrics and to who opens the endpoint in a browser.
    #[track_caller]
    fn assert_told(&self, name: &str, says: &[String], line: Option<usize>) {
        let status = self.daemon.status();
        let reload = &status["last_reload"];
        assert_eq!(reload["outcome"], "rejected", "{name}: {status:#}");
        let message = reload["message"].as_str().unwrap_or_default();
        for words in says {
            assert!(message.contains(words), "{name}: {words} is not in {message}");
        }
        if let Some(line) = line {
            let mut problems = reload["problems"].as_array().into_iter().flatten();
            let problem = problems.find(|problem| problem["severity"] == "error").expect("a problem");
            assert_eq!(problem["line"], line, "{name}: {problem:#}");
            let place = format!("millrace.yaml:{line}:{}: ", problem["column"]);
            assert!(message.contains(&place), "{name}: {place} is not in {message}");
        }
        assert!(self.daemon.log().contains(message), "{name}: not in the log: {message}");
        assert!(self.daemon.get("/").body.contains(message), "{name}: not at /: {message}");
        assert_eq!(self.daemon.metric("millrace_config_last_reload_successful", &[]), Some(0.0), "{name}");
    }

    /// Ends the flow: all of it arrived once and in order, each record with a stamp that was in force, and never for long
    /// did nothing come.
    fn assert_flowed(self) {
        let Self { stamped, config: _config, mut daemon, trickle, stamps, expected } = self;
        let sent = trickle.stop();
        daemon.await_consumed(ROUTE, sent, PATIENCE);
        assert_eq!(daemon.sigterm_and_wait(PATIENCE), Some(0));
        let arrived = stamped.arrived();
        let numbers: Vec<usize> = arrived.iter().map(|record| record.text().parse().expect("a number")).collect();
        assert!(numbers.iter().copied().eq(0..sent), "all of {sent} records, once and in order");
        for (number, stamp, why) in expected {
            assert_eq!(stamp_of(&arrived[number]), stamp, "record {number}: {why}");
        }
        let mut met: Vec<String> = arrived.iter().map(stamp_of).collect();
        met.dedup();
        assert_eq!(met, stamps, "each configuration in force, one after the other, and none that was refused");
        let gaps = arrived.windows(2).map(|pair| pair[1].timestamp - pair[0].timestamp);
        let (longest, after) = gaps.zip(0..).max().expect("records");
        assert!(longest <= LONGEST_GAP.as_millis() as i64, "nothing for {longest} ms after record {after}");
    }
}

/// The line, from 1, that holds `words`.
fn line_of(text: &str, words: &str) -> usize {
    text.lines().position(|line| line.contains(words)).unwrap_or_else(|| panic!("no {words} in\n{text}")) + 1
}

fn yaml(stamped: &Stamped, stamp: &str) -> String {
    let (head, misbehave) = (stamped.head(), plugin("misbehave"));
    let route = stamped.route(stamp).replace("destinations: [", "destinations:\n      - ").replace(" }]", " }");
    format!(
        "{head}watch: {{ debounce: 100ms }}
plugins:
  stamp: {{ path: stamp.wasm }}
  misbehave: {{ path: \"{}\", timeout: 50ms }}
{route}",
        misbehave.display()
    )
}

#[test]
fn what_is_refused_in_the_files_is_told_everywhere_and_stops_nothing_and_its_mend_is_taken_up() {
    let mut bench = Bench::new("refused-files");
    for (number, mistake) in IN_THE_FILES.iter().enumerate() {
        bench.check(number, mistake);
    }
    bench.assert_flowed();
}

#[test]
fn what_plugins_or_the_cluster_refuse_is_told_everywhere_and_stops_nothing_and_its_mend_is_taken_up() {
    let mut bench = Bench::new("refused-beyond");
    for (number, mistake) in BEYOND_THE_FILES.iter().enumerate() {
        bench.check(number, mistake);
    }
    bench.assert_flowed();
}

#[test]
fn a_save_while_the_one_before_is_still_tried_is_taken_up_after_it() {
    let mut bench = Bench::new("refused-late");
    let rejected = bench.daemon.reloads("rejected");
    let step = "      - { plugin: misbehave, config: { do: loop_configure } }\n    destinations";
    bench.config.write(&yaml(&bench.stamped, "mistake").replacen("    destinations", step, 1));
    // By now it is tried, which takes longer still, or the test would show less than it says.
    pace(Duration::from_secs(1));
    assert_eq!(bench.daemon.reloads("rejected"), rejected);
    bench.config.write(&yaml(&bench.stamped, "late"));
    bench.daemon.await_workers(ROUTE, 2, SOON);
    assert_eq!(bench.daemon.reloads("rejected"), rejected + 1.0, "the first was tried, and refused");
    bench.stamps.push("late".to_owned());
    bench.expect_next("the second is in force".to_owned());
    bench.assert_flowed();
}

// ---- who asks -------------------------------------------------------------------------------------------------------

/// Asks for a reload, and checks what is answered.
#[track_caller]
fn assert_answer(daemon: &Daemon, path: &str, status: u16, outcome: &str, generation: u64) -> Value {
    let answer = daemon.post(path);
    assert_eq!(answer.status, status, "{path}: {}", answer.body);
    let answer = answer.json();
    assert_eq!(answer["outcome"], outcome, "{path}: {answer:#}");
    assert_eq!(answer["generation"], generation, "{path}: {answer:#}");
    answer
}

const RELOAD: &str = "/-/reload";

fn unwatched(stamped: &Stamped, route: &str) -> String {
    let (head, plugin) = (stamped.head(), plugin("stamp"));
    format!("{head}watch: {{ method: \"off\" }}\nplugins: {{ stamp: {{ path: \"{}\" }} }}\n{route}", plugin.display())
}

#[test]
fn who_asks_for_a_reload_is_answered_what_came_of_it() {
    let stamped = Stamped::new("asked");
    let config = Config::of(&unwatched(&stamped, &stamped.route("first")));
    let daemon = Daemon::start(config.path());
    assert_eq!(stamped.probe(PATIENCE), "first");
    assert_answer(&daemon, RELOAD, 200, "unchanged", 1);

    config.write(&unwatched(&stamped, &stamped.route("second")));
    let answer = assert_answer(&daemon, "/api/v1/reload", 200, "applied", 2);
    assert_eq!(answer["changes"]["routes"][ROUTE]["action"], "swapped", "{answer:#}");
    daemon.await_workers(ROUTE, 2, SOON);
    assert_eq!(stamped.probe(SOON), "second");

    config.write(&unwatched(&stamped, &stamped.route("third").replace("on_error", "on_eror")));
    let answer = assert_answer(&daemon, RELOAD, 422, "rejected", 2);
    let problem = &answer["problems"][0];
    assert!(problem["line"].is_u64() && problem["column"].is_u64(), "{answer:#}");
    let refused = daemon.reloads("rejected");
    daemon.signal(Signal::HUP);
    wait_until(SOON, "a signal is refused, too", || daemon.reloads("rejected") > refused);
    assert_eq!(daemon.status()["last_reload"]["cause"], "signal");
    assert_eq!(stamped.probe(SOON), "second", "what runs goes on");

    config.write(&unwatched(&stamped, &stamped.route("third")));
    daemon.signal(Signal::HUP);
    daemon.await_workers(ROUTE, 3, SOON);
    assert_eq!(stamped.probe(SOON), "third");
    // All at once: each is answered, and one change is one generation.
    config.write(&unwatched(&stamped, &stamped.route("fourth")));
    std::thread::scope(|scope| {
        let ask = || scope.spawn(|| daemon.post(RELOAD));
        let asked: Vec<_> = std::iter::repeat_with(ask).take(8).collect();
        for answer in asked.into_iter().map(|asked| asked.join().expect("an answer")) {
            assert_eq!((answer.status, &answer.json()["generation"]), (200, &4.into()), "{}", answer.body);
        }
    });
    assert_eq!(daemon.get(RELOAD).status, 405);
    assert_eq!(daemon.post(&format!("{RELOAD}?accept_new_group=maybe")).status, 400);
}

#[test]
fn a_route_that_is_renamed_keeps_its_group_or_its_new_one_is_accepted() {
    let stamped = Stamped::new("renamed");
    let config = Config::of(&unwatched(&stamped, &stamped.route("first")));
    let daemon = Daemon::start(config.path());
    assert_eq!(stamped.probe(PATIENCE), "first");

    let renamed = stamped.route("second").replace(ROUTE, "renamed");
    config.write(&unwatched(&stamped, &renamed));
    let answer = assert_answer(&daemon, RELOAD, 422, "rejected", 1);
    let message = answer["message"].as_str().expect("a message");
    for words in [&format!("source: {{ group: {} }}", stamped.group()), "accept"] {
        assert!(message.contains(words), "{words} is not in {message}");
    }
    assert_eq!(answer["hazards"][0]["code"], "new_group", "{answer:#}");
    assert_eq!(stamped.probe(SOON), "first", "what runs goes on");

    config.write(&unwatched(&stamped, &renamed.replace("start:", &format!("group: {}, start:", stamped.group()))));
    assert_answer(&daemon, RELOAD, 200, "applied", 2);
    wait_until(PATIENCE, "the old route has drained", || daemon.get(&format!("/api/v1/routes/{ROUTE}")).status == 404);
    assert_eq!(stamped.probe(PATIENCE), "second");
    assert_eq!(stamped.arrived().len(), 3, "it went on where the other was");

    config.write(&unwatched(&stamped, &stamped.route("third").replace(ROUTE, "anew")));
    assert_answer(&daemon, RELOAD, 422, "rejected", 2);
    assert_answer(&daemon, &format!("{RELOAD}?accept_new_group=true"), 200, "applied", 3);
    wait_until(PATIENCE, "all is read again under the new group, as was accepted", || stamped.arrived().len() == 6);
}

// ---- the process itself, which needs no Kafka -----------------------------------------------------------------------

/// A daemon that finds no Kafka, and does not mind; its files are not watched.
struct Lonely {
    config: Config,
    daemon: Daemon,
}

impl Lonely {
    /// `own` is the YAML of what is tested.
    fn start(own: &str) -> Self {
        let config = Config::of(&Self::yaml(own));
        let daemon = Daemon::start(config.path());
        Self { config, daemon }
    }

    fn yaml(own: &str) -> String {
        format!(
            "kafka: {{ bootstrap.servers: \"{NOBODY}\" }}
watch: {{ method: \"off\" }}
routes: {{ r: {{ source: {{ topics: [a], start: earliest }}, destinations: [{{ topic: b }}] }} }}
{own}
"
        )
    }

    fn write(&self, own: &str) {
        self.config.write(&Self::yaml(own));
    }
}

fn ask(address: SocketAddr, method: &str, path: &str, token: &str) -> Option<Response> {
    http_with(address, method, path, &[("Authorization", &format!("Bearer {token}"))], "")
}

#[test]
fn what_changes_state_needs_the_token_where_there_is_one_from_the_reload_on_that_sets_it() {
    let lonely = Lonely::start("admin: { listen: \"127.0.0.1:0\" }");
    let daemon = &lonely.daemon;
    lonely.write("admin: { listen: \"127.0.0.1:0\", token: one }");
    assert_answer(daemon, RELOAD, 200, "applied", 2);
    let answer = daemon.post(RELOAD);
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (401, &"token_missing".into()), "{}", answer.body);
    let with = |token: &str| ask(daemon.admin(), "POST", RELOAD, token).expect("an answer");
    assert_eq!(with("two").status, 401);
    assert_eq!(with("one").status, 200);
    assert_eq!(daemon.get("/api/v1/status").status, 200, "who looks from this machine needs none");
    lonely.write("admin: { listen: \"127.0.0.1:0\", token: two }");
    assert_eq!(with("one").json()["outcome"], "applied");
    assert_eq!((with("one").status, with("two").status), (401, 200));
}

/// A port that was free just now.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr()).expect("a free port").port()
}

#[test]
fn the_admin_endpoint_moves_to_the_address_it_is_given_and_stays_where_that_one_is_taken() {
    let lonely = Lonely::start("admin: { listen: \"127.0.0.1:0\", token: t }");
    let (first, port) = (lonely.daemon.admin(), free_port());
    let second = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let move_to = |from: SocketAddr, listen: &str| {
        lonely.write(&format!("admin: {{ listen: \"{listen}\", token: t }}"));
        ask(from, "POST", RELOAD, "t").unwrap_or_else(|| panic!("{from} → {listen}: no answer"))
    };
    let looked_at = |path: &str| http_with(second, "GET", path, &[], "").map(|answer| answer.status);

    // The port that it was given where it asked for any.
    assert_eq!(move_to(first, &first.to_string()).json()["outcome"], "applied");
    assert_eq!(move_to(first, &second.to_string()).json()["outcome"], "applied");
    assert_eq!(looked_at("/api/v1/status"), Some(200));
    assert!(http_with(first, "GET", "/livez", &[], "").is_none(), "nobody listens at the old address");
    // All addresses of the machine, with the port that this process itself has, and back.
    assert_eq!(move_to(second, &format!("0.0.0.0:{port}")).json()["outcome"], "applied");
    assert_eq!((looked_at("/livez"), looked_at("/api/v1/status")), (Some(200), Some(401)));
    assert_eq!(move_to(second, &second.to_string()).json()["outcome"], "applied");
    assert_eq!((looked_at("/livez"), looked_at("/api/v1/status")), (Some(200), Some(200)));

    // The same, while somebody else has the port at another address of this machine.
    let neighbour = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), port)).expect("another address of loopback");
    let answer = move_to(second, &format!("0.0.0.0:{port}"));
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert_eq!((looked_at("/livez"), looked_at("/api/v1/status")), (Some(200), Some(200)), "the old one answers");
    assert_eq!(move_to(second, &second.to_string()).json()["outcome"], "unchanged");
    drop(neighbour);

    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let taken = other.local_addr().expect("an address");
    let answer = move_to(second, &taken.to_string());
    assert_eq!(answer.status, 422, "{}", answer.body);
    for words in [taken.to_string().as_str(), "another process"] {
        assert!(answer.body.contains(words), "{words} is not in {}", answer.body);
    }
    assert_eq!((looked_at("/livez"), looked_at("/api/v1/status")), (Some(200), Some(200)), "the old one answers");
    // And on all addresses, while somebody else has one of them.
    let answer = move_to(second, &format!("0.0.0.0:{}", taken.port()));
    assert_eq!((answer.status, looked_at("/livez")), (422, Some(200)), "{}", answer.body);
    drop(other);
    wait_until(SOON, "the address is free, and taken without a word from anybody", || {
        http_with(taken, "GET", "/livez", &[], "").is_some_and(|answer| answer.status == 200)
    });
    assert!(http_with(second, "GET", "/livez", &[], "").is_none(), "nobody listens at the old address");
}

#[test]
fn level_and_format_of_the_log_change_while_it_is_written() {
    let said = "the configuration is the one in force";
    let own = |log: &str| format!("admin: {{ listen: \"127.0.0.1:0\" }}\nlog: {log}");
    let lonely = Lonely::start(&own("{ level: info }"));
    // A reload that changes nothing is told at `info`.
    let news = |log: &str, generation: u64| {
        lonely.write(&own(log));
        assert_answer(&lonely.daemon, RELOAD, 200, "applied", generation);
        let before = lonely.daemon.log().len();
        assert_answer(&lonely.daemon, RELOAD, 200, "unchanged", generation);
        lonely.daemon.log()[before..].lines().find(|line| line.contains(said)).map(str::to_owned)
    };
    let line = news("{ level: debug }", 2).expect("a line");
    assert!(line.contains(" INFO ") && serde_json::from_str::<Value>(&line).is_err(), "{line}");
    let line = news("{ level: debug, format: json }", 3).expect("a line");
    let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
    assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &said.into()));
    assert_eq!(news("{ level: warn, format: json }", 4), None);
    assert!(news("{ level: info, format: text }", 5).expect("a line").contains(" INFO "));
}

#[test]
fn a_restart_takes_compiled_plugins_from_the_cache_unless_others_could_have_written_them() {
    let cache = scratch("cache");
    let own = format!(
        "admin: {{ listen: \"127.0.0.1:0\" }}\ncache_dir: \"{}\"\nplugins: {{ stamp: {{ path: \"{}\" }} }}",
        cache.display(),
        plugin("stamp").display()
    );
    // Of a core module both are kept: the machine code, and the component that it is of.
    for kind in ["cwasm", "component"] {
        let run = || {
            let mut lonely = Lonely::start(&own);
            assert_eq!(lonely.daemon.sigterm_and_wait(PATIENCE), Some(0));
            let entries = fs::read_dir(&cache).expect("the cache").map(|entry| entry.expect("an entry").path());
            let files: Vec<PathBuf> = entries.collect();
            assert_eq!(files.len(), 2, "one plugin, two files: {files:?}");
            let file = files.into_iter().find(|file| file.extension().is_some_and(|extension| extension == kind));
            let file = file.expect("one of each");
            let inode = fs::metadata(&file).expect("a file").ino();
            let content = fs::read(&file).expect("a file");
            (file, inode, content, lonely.daemon.log())
        };
        let (file, inode, code, _) = run();
        let (again, same, ..) = run();
        assert_eq!((&again, same), (&file, inode), "the file is the one of the first start");

        let not_used = |why: &str| {
            let (.., now, log) = run();
            assert!(log.contains("is not used, and removed") && log.contains(why), "{why} is not in {log}");
            assert!(now == code, "{why}: it is written anew");
        };
        let mut spoilt = code.clone();
        spoilt[code.len() / 2] ^= 1;
        fs::write(&file, spoilt).expect("a file");
        not_used("its content is not what its name says");
        fs::set_permissions(&file, Permissions::from_mode(0o666)).expect("a file");
        not_used("others can write it");
    }
    fs::remove_dir_all(cache).expect("the cache goes");
}
