//! How changes of files are noticed and taken up: saves as editors and deployments really make them, on each way of
//! watching. Nobody asks for a reload here but where a test says so; what is refused is told in [`super::refusals`].

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use millrace::model::Digest;
use rustix::process::Signal;

use crate::support::config::plugin;
use crate::support::daemon::Daemon;
use crate::support::stamped::{ROUTE, Stamped};
use crate::support::{pace, scratch, unique, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// Within which a change is taken up: some looks, and time for a busy machine.
const SOON: Duration = Duration::from_secs(15);

/// Files are looked at when a change is announced, and else not at all: an announcement that is missed shows.
const ANNOUNCED: &str = "{ method: events }";

/// A daemon on a directory of files: `millrace.yaml` with a plugin, and a route in a file of its own.
struct Bench {
    stamped: Stamped,
    /// Holds `config`, and what a step puts beside it.
    folder: PathBuf,
    daemon: Daemon,
    /// The generation that is in force, if each save made exactly one.
    generation: Cell<u64>,
}

impl Bench {
    /// `watch` is YAML.
    fn new(name: &str, watch: &str) -> Self {
        Self::laid_out(name, |stamped, folder| {
            let config = folder.join("config");
            fs::create_dir(&config).expect("a directory");
            fs::write(config.join("millrace.yaml"), main_file(stamped, watch, &plugin("stamp"))).expect("a file");
            fs::write(config.join("route.yaml"), stamped.route("first")).expect("a file");
            config
        })
    }

    /// `lay_out` writes the files, and answers where the configuration is.
    fn laid_out(name: &str, lay_out: impl FnOnce(&Stamped, &Path) -> PathBuf) -> Self {
        // Not right below where all tests write: what holds the folder is listened to as well, and has to be quiet.
        let (stamped, folder) = (Stamped::new(name), scratch(name).join("site"));
        fs::create_dir_all(&folder).expect("a directory");
        let daemon = Daemon::start(&lay_out(&stamped, &folder));
        let bench = Self { stamped, folder, daemon, generation: Cell::new(1) };
        assert_eq!(bench.stamped.probe(PATIENCE), "first");
        assert_eq!(bench.daemon.generation(), 1);
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Has the route's file saved with a new stamp, and waits until it is in force: as one generation, which files made.
    #[track_caller]
    fn save(&self, what: &str, save: impl FnOnce(&Path, &str)) {
        let stamp = unique("stamp");
        save(&self.at("config/route.yaml"), &self.stamped.route(&stamp));
        self.await_next(what, "files");
        assert_eq!(self.stamped.probe(SOON), stamp, "{what}: a record after it was taken up");
    }

    /// Waits until the next generation is in force, and the route's workers go by it.
    #[track_caller]
    fn await_next(&self, what: &str, cause: &str) {
        let next = self.generation.replace(self.generation.get() + 1) + 1;
        wait_until(SOON, &format!("{what}: taken up"), || self.daemon.generation() >= next);
        let status = self.daemon.status();
        assert_eq!(status["generation"], next, "{what}: one generation and no more, of {status:#}");
        assert_eq!(status["last_applied"]["cause"], cause, "{what}");
        assert_eq!(status["last_applied"]["changes"]["routes"][ROUTE]["action"], "swapped", "{what}: {status:#}");
        self.daemon.await_workers(ROUTE, next, SOON);
    }

    /// Nothing more is on its way: all that the files say is in force.
    #[track_caller]
    fn assert_settled(&self, what: &str) {
        let answer = self.daemon.post("/-/reload").json();
        assert_eq!(answer["outcome"], "unchanged", "{what}: {answer:#}");
        assert_eq!(answer["generation"], self.generation.get(), "{what}: {answer:#}");
    }

    #[track_caller]
    fn await_refused(&self, what: &str, words: &str) {
        wait_until(SOON, &format!("{what}: refused"), || self.daemon.status()["last_reload"]["outcome"] == "rejected");
        let message = self.daemon.status()["last_reload"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(message.contains(words), "{what}: {message}");
    }

    #[track_caller]
    fn await_mended(&self, what: &str) {
        wait_until(SOON, &format!("{what}: mended"), || self.daemon.status()["last_reload"]["outcome"] == "unchanged");
        assert_eq!(self.daemon.generation(), self.generation.get(), "{what}");
        assert_eq!(self.daemon.metric("millrace_config_last_reload_successful", &[]), Some(1.0), "{what}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // (left behind where a test fails, to be looked at)
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(self.folder.parent().expect("a folder of the test's own"));
        }
    }
}

fn main_file(stamped: &Stamped, watch: &str, plugin: &Path) -> String {
    let plugin = plugin.display();
    format!("{}watch: {watch}\nplugins:\n  stamp: {{ path: \"{plugin}\" }}\n", stamped.head())
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn rename(from: &Path, to: &Path) {
    fs::rename(from, to).unwrap_or_else(|error| panic!("{} → {}: {error}", from.display(), to.display()));
}

#[track_caller]
fn run(program: &str, arguments: &[&str], folder: &Path) {
    let status = Command::new(program).args(arguments).current_dir(folder).status();
    assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{program} {arguments:?}: {status:?}");
}

// ---- editors --------------------------------------------------------------------------------------------------------

type Save = fn(&Path, &str);

/// How a file gets another content.
const SAVES: &[(&str, Save)] = &[
    ("written in place", |file, text| write(file, text)),
    ("written beside and renamed over", |file, text| {
        let new = file.with_file_name(".route.yaml.new");
        write(&new, text);
        rename(&new, file);
    }),
    ("as vim does: the old one becomes a backup", |file, text| {
        let backup = file.with_file_name("route.yaml~");
        rename(file, &backup);
        write(file, text);
        fs::remove_file(&backup).expect("the backup goes");
    }),
    ("as vim does, with its probe and its swap file", |file, text| {
        let [swap, probe, backup] = [".route.yaml.swp", "4913", "route.yaml~"].map(|name| file.with_file_name(name));
        write(&swap, "b0VIM 9.1");
        write(&probe, "");
        fs::remove_file(&probe).expect("the probe goes");
        rename(file, &backup);
        write(file, text);
        fs::remove_file(&backup).expect("the backup goes");
        fs::remove_file(&swap).expect("the swap file goes");
    }),
    ("as emacs does, with its lock", |file, text| {
        let [lock, backup] = [".#route.yaml", "route.yaml~"].map(|name| file.with_file_name(name));
        symlink("somebody@somewhere.4711:1767225600", &lock).expect("a link that leads nowhere");
        rename(file, &backup);
        write(file, text);
        fs::remove_file(&lock).expect("the lock goes");
        fs::remove_file(&backup).expect("the backup goes");
    }),
    ("by sed -i", |file, text| {
        let stamp = text.lines().find_map(|line| line.split("value: \"").nth(1)?.split('"').next()).expect("a stamp");
        let script = format!("s/value: \"[^\"]*\"/value: \"{stamp}\"/");
        run("sed", &["-i", &script, "route.yaml"], file.parent().expect("a folder"));
        assert_eq!(fs::read_to_string(file).expect("a file"), text, "sed did what was asked");
    }),
    ("with its whole directory", |file, text| {
        let folder = file.parent().expect("a folder");
        let [old, new] = ["config.old", "config.new"].map(|name| folder.with_file_name(name));
        fs::create_dir(&new).expect("a directory");
        fs::copy(folder.join("millrace.yaml"), new.join("millrace.yaml")).expect("a copy");
        write(&new.join("route.yaml"), text);
        rename(folder, &old);
        rename(&new, folder);
        fs::remove_dir_all(&old).expect("the old directory goes");
    }),
    ("in place, within the directory that is new", |file, text| write(file, text)),
];

/// Every kind of save is one generation, however the daemon watches.
fn check_saves(name: &str, watch: &str) -> Bench {
    let bench = Bench::new(name, watch);
    for (what, save) in SAVES {
        bench.save(&format!("{watch}: {what}"), save);
    }
    bench.assert_settled(watch);
    bench
}

#[test]
fn a_file_is_taken_up_however_it_is_saved_and_ten_saves_in_a_second_are_few_generations() {
    let bench = check_saves("editors", "{}");
    let stamps: Vec<String> = (0..10).map(|number| format!("save-{number}")).collect();
    for stamp in &stamps {
        write(&bench.at("config/route.yaml"), &bench.stamped.route(stamp));
        pace(Duration::from_millis(100));
    }
    let last = stamps.last().expect("ten of them");
    wait_until(SOON, "the last of ten saves is in force", || bench.stamped.probe(SOON) == *last);
    let generations = bench.daemon.generation() - bench.generation.get();
    assert!((1..=4).contains(&generations), "{generations} generations of ten saves");
    bench.generation.set(bench.daemon.generation());
    bench.assert_settled("ten saves");
}

#[test]
fn a_file_that_never_keeps_still_is_taken_up_all_the_same() {
    let bench = Bench::new("restless", "{ debounce: 200ms }");
    let began = Instant::now();
    for number in 0.. {
        write(&bench.at("config/route.yaml"), &bench.stamped.route(&format!("save-{number}")));
        pace(Duration::from_millis(50));
        if bench.daemon.generation() > 1 {
            break;
        }
        assert!(began.elapsed() < SOON, "{number} saves, and none is in force");
    }
    wait_until(SOON, "records meet what was taken up", || bench.stamped.probe(SOON).starts_with("save-"));
}

#[test]
fn where_nothing_is_announced_files_are_looked_at_now_and_then() {
    check_saves("polled", "{ method: poll, interval: 200ms }");
}

/// As on a network file system: whoever is told of what happens in a folder is not told of what happens to its files.
#[test]
fn a_change_that_nothing_announces_is_found_by_the_look_that_is_taken_besides() {
    let bench = Bench::new("unannounced", "{ debounce: 100ms, interval: 500ms }");
    fs::create_dir_all(bench.at("apart/deep")).expect("directories that nobody listens in");
    let other_name = bench.at("apart/deep/route");
    fs::hard_link(bench.at("config/route.yaml"), &other_name).expect("another name of the same file");
    bench.save("written under its other name", |_, text| write(&other_name, text));
    bench.save("and again", |_, text| write(&other_name, text));
}

#[test]
fn where_files_are_never_looked_at_unasked_announcements_are_enough() {
    check_saves("announced", ANNOUNCED);
}

#[test]
fn where_nothing_is_watched_a_change_waits_until_it_is_asked_for() {
    let bench = Bench::new("unwatched", "{ method: \"off\" }");
    for (stamp, cause) in [("by-signal", "signal"), ("by-post", "api")] {
        let before = bench.stamped.probe(SOON);
        write(&bench.at("config/route.yaml"), &bench.stamped.route(stamp));
        let began = Instant::now();
        wait_until(SOON, "records go on as before for longer than any look takes", || {
            assert_eq!(bench.stamped.probe(SOON), before, "{cause}: nobody has asked");
            began.elapsed() > Duration::from_millis(1_500)
        });
        assert_eq!(bench.daemon.generation(), bench.generation.get(), "{cause}");
        match cause {
            "signal" => bench.daemon.signal(Signal::HUP),
            _ => assert_eq!(bench.daemon.post("/-/reload").status, 200),
        }
        bench.await_next(cause, cause);
        assert_eq!(bench.stamped.probe(SOON), stamp, "{cause}");
    }
    // How files are watched is a setting like any other, taken up in place.
    let main = main_file(&bench.stamped, ANNOUNCED, &plugin("stamp"));
    write(&bench.at("config/millrace.yaml"), &main);
    let answer = bench.daemon.post("/-/reload").json();
    assert_eq!(answer["changes"]["routes"][ROUTE]["action"], "unchanged", "{answer:#}");
    bench.generation.set(bench.generation.get() + 1);
    bench.save("from now on it is watched", write);
}

#[test]
fn a_configuration_of_a_single_file_is_taken_up_however_it_is_saved() {
    let text = |stamped: &Stamped, stamp: &str| main_file(stamped, ANNOUNCED, &plugin("stamp")) + &stamped.route(stamp);
    let bench = Bench::laid_out("single", |stamped, folder| {
        write(&folder.join("route.yaml"), &text(stamped, "first"));
        folder.join("route.yaml")
    });
    // (the last saves are about the directory)
    for (what, save) in &SAVES[..SAVES.len() - 2] {
        let stamp = unique("stamp");
        save(&bench.at("route.yaml"), &text(&bench.stamped, &stamp));
        bench.await_next(what, "files");
        assert_eq!(bench.stamped.probe(SOON), stamp, "{what}");
    }
    bench.assert_settled("a single file");
}

// ---- several files --------------------------------------------------------------------------------------------------

#[test]
fn routes_add_up_over_files_and_come_and_go_with_them() {
    let bench = Bench::new("several", "{ debounce: 100ms }");
    let other = Stamped::new("several-other");
    let (file, away) = (bench.at("config/other.yaml"), bench.at("other.yaml.away"));
    write(&file, &other.route("other").replace(ROUTE, "other"));
    let taken_up = |what: &str, action: &str| {
        bench.generation.set(bench.generation.get() + 1);
        wait_until(SOON, what, || bench.daemon.generation() == bench.generation.get());
        let changes = bench.daemon.status()["last_applied"]["changes"]["routes"].clone();
        assert_eq!(changes["other"]["action"], action, "{what}: {changes:#}");
        assert_eq!(changes[ROUTE]["action"], "unchanged", "{what}: {changes:#}");
    };
    taken_up("a file that is new adds its route", "added");
    assert_eq!(other.probe(PATIENCE), "other");
    rename(&file, &away);
    taken_up("a file that is gone takes its route along", "removed");
    wait_until(PATIENCE, "its route is gone", || bench.daemon.get("/api/v1/routes/other").status == 404);
    rename(&away, &file);
    taken_up("a file that is put back brings its route back", "added");
    // Its workers of before are gone, so whoever takes the record goes by the file that is there now.
    assert_eq!(other.probe(PATIENCE), "other");
    assert_eq!(bench.stamped.probe(SOON), "first");
}

#[test]
fn a_yaml_file_that_is_written_slowly_loses_no_route_on_the_way() {
    let bench = Bench::new("slow-yaml", "{ debounce: 100ms }");
    let other = Stamped::new("slow-yaml-other");
    let text = |stamp: &str| other.route(stamp).replace(ROUTE, "other");
    let file = bench.at("config/other.yaml");
    write(&file, &text("old"));
    assert_eq!(other.probe(PATIENCE), "old");
    // Emptied first, and then grown: on the way it is a configuration without the route.
    let mut slow = File::create(&file).expect("a file, with nothing in it now");
    pace(Duration::from_millis(700));
    slow.write_all(text("new").as_bytes()).expect("it is written");
    drop(slow);
    wait_until(SOON, "it is taken up", || bench.daemon.generation() == 3);
    let changes = bench.daemon.status()["last_applied"]["changes"]["routes"].clone();
    assert_eq!(changes["other"]["action"], "swapped", "{changes:#}");
    bench.daemon.await_workers("other", 3, SOON);
    assert_eq!(other.probe(SOON), "new");
}

#[test]
fn a_configuration_without_a_file_is_refused_what_runs_goes_on_and_files_put_back_mend_it() {
    let bench = Bench::new("only", ANNOUNCED);
    let names = ["millrace.yaml", "route.yaml"];
    let move_all =
        |from: &str, to: &str| names.map(|name| rename(&bench.at(from).join(name), &bench.at(to).join(name)));
    fs::create_dir(bench.at("away")).expect("a directory");
    move_all("config", "away");
    bench.await_refused("all files gone", "there is no *.yaml or *.yml file");
    assert_eq!(bench.stamped.probe(SOON), "first");
    move_all("away", "config");
    bench.await_mended("all files put back");

    rename(&bench.at("config"), &bench.at("elsewhere"));
    bench.await_refused("the directory gone", "cannot read");
    assert_eq!(bench.stamped.probe(SOON), "first");
    rename(&bench.at("elsewhere"), &bench.at("config"));
    bench.await_mended("the directory put back");
    bench.save("a save in a directory that was away", write);
}

// ---- deployments ----------------------------------------------------------------------------------------------------

/// A ConfigMap as the kubelet mounts it, or changes it: files in a directory named after the time, `..data` that leads
/// there, and links to the files through it.
fn mount(mount: &Path, time: &str, files: &[(&str, Vec<u8>)]) {
    let (folder, temporary, data) = (mount.join(time), mount.join("..data_tmp"), mount.join("..data"));
    let before = fs::read_link(&data).ok();
    fs::create_dir_all(&folder).expect("a directory");
    for (name, content) in files {
        fs::write(folder.join(name), content).expect("a file");
    }
    symlink(time, &temporary).expect("a link");
    rename(&temporary, &data);
    match before {
        Some(before) => fs::remove_dir_all(mount.join(before)).expect("the directory of before goes"),
        None => files
            .iter()
            .for_each(|(name, _)| symlink(Path::new("..data").join(name), mount.join(name)).expect("a link")),
    }
}

#[test]
fn a_config_map_that_changes_several_files_at_once_is_one_generation() {
    let files = |stamped: &Stamped, stamp: &str, code: Vec<u8>| {
        let head = main_file(stamped, ANNOUNCED, Path::new("stamp.wasm"));
        [("millrace.yaml", head.into_bytes()), ("route.yaml", stamped.route(stamp).into_bytes()), ("stamp.wasm", code)]
    };
    let bench = Bench::laid_out("config-map", |stamped, folder| {
        let config = folder.join("config");
        mount(&config, "..2026_01_01_00_00_00.1", &files(stamped, "first", version(1)));
        config
    });
    for number in 2..5 {
        let (what, stamp) = (format!("the ConfigMap's version {number}"), format!("version-{number}"));
        let time = format!("..2026_01_01_00_00_00.{number}");
        mount(&bench.at("config"), &time, &files(&bench.stamped, &stamp, version(number)));
        bench.await_next(&what, "files");
        assert_eq!(bench.stamped.probe(SOON), stamp, "{what}");
        assert_eq!(sha256(&bench.daemon), Digest::of(&version(number)).to_string(), "{what}");
    }
    bench.assert_settled("the last version");
}

#[test]
fn a_link_that_is_pointed_at_another_release_is_taken_up() {
    let release = |stamped: &Stamped, folder: &Path, number: u32, stamp: &str| {
        let release = folder.join(format!("releases/{number}"));
        fs::create_dir_all(&release).expect("a directory");
        write(&release.join("millrace.yaml"), &main_file(stamped, ANNOUNCED, &plugin("stamp")));
        write(&release.join("route.yaml"), &stamped.route(stamp));
    };
    let bench = Bench::laid_out("releases", |stamped, folder| {
        release(stamped, folder, 5, "first");
        release(stamped, folder, 6, "six");
        release(stamped, folder, 7, "seven");
        symlink("releases/5", folder.join("config")).expect("a link");
        folder.join("config")
    });
    let steps: [(&str, &str, &dyn Fn()); 4] = [
        ("another link renamed over it", "six", &|| {
            symlink("releases/6", bench.at("next")).expect("a link");
            rename(&bench.at("next"), &bench.at("config"));
        }),
        ("ln -sfn", "seven", &|| run("ln", &["-sfn", "releases/7", "config"], &bench.folder)),
        ("a save within the release it leads to", "seven and a half", &|| {
            write(&bench.at("releases/7/route.yaml"), &bench.stamped.route("seven and a half"));
        }),
        ("back to an older release", "first", &|| run("ln", &["-sfn", "releases/5", "config"], &bench.folder)),
    ];
    for (what, stamp, step) in steps {
        step();
        bench.await_next(what, "files");
        assert_eq!(bench.stamped.probe(SOON), stamp, "{what}");
    }
    bench.assert_settled("back to an older release");
}

// ---- files that the configuration names -----------------------------------------------------------------------------

#[test]
fn a_secret_that_is_rotated_is_swapped_in_place_and_shown_nowhere() {
    let bench = Bench::new("rotated", &format!("{ANNOUNCED}\nlog: {{ level: trace }}"));
    let secret = bench.at("config/secret");
    let secrets = [unique("hush-one"), unique("hush-two"), unique("hush-three")];
    let rebalances = || bench.daemon.metric("millrace_rebalances_total", &[("route", ROUTE)]);
    let before = rebalances();
    let taken_up = |what: &str, expected: &str| {
        bench.await_next(what, "files");
        assert_eq!(bench.stamped.probe(SOON), expected, "{what}");
    };
    write(&secret, &format!("{}\n", secrets[0]));
    write(&bench.at("config/route.yaml"), &bench.stamped.route("${file:secret}"));
    taken_up("the route names a secret", &secrets[0]);
    write(&secret, &secrets[1]);
    taken_up("a secret written in place", &secrets[1]);
    write(&bench.at("new"), &format!("{}\n", secrets[2]));
    rename(&bench.at("new"), &secret);
    taken_up("a secret renamed over", &secrets[2]);
    assert_eq!(rebalances(), before, "a change in place moves no partition");
    fs::remove_file(&secret).expect("a secret");
    bench.await_refused("a secret that is gone", "secret");
    assert_eq!(bench.stamped.probe(SOON), secrets[2], "a secret that is gone");

    let mut shown = vec![("the log", bench.daemon.log())];
    for path in ["/", "/metrics", "/api/v1/status", "/api/v1/routes", "/api/v1/config"] {
        shown.push((path, bench.daemon.get(path).body));
    }
    for (place, text) in shown {
        assert!(!text.is_empty() && secrets.iter().all(|secret| !text.contains(secret)), "{place} tells a secret");
    }
}

/// A daemon whose plugin is a copy of its own, beside the YAML.
fn bench_with_own_plugin(name: &str, watch: &str) -> Bench {
    let bench = Bench::laid_out(name, |stamped, folder| {
        let config = folder.join("config");
        fs::create_dir(&config).expect("a directory");
        // (the log tells at this level that a file was looked at, and left for later)
        let watch = format!("{watch}\nlog: {{ level: debug }}");
        let main = main_file(stamped, &watch, Path::new("stamp.wasm"));
        write(&config.join("millrace.yaml"), &main);
        write(&config.join("route.yaml"), &stamped.route("first"));
        fs::write(config.join("stamp.wasm"), version(1)).expect("a file");
        config
    });
    assert_eq!(sha256(&bench.daemon), Digest::of(&version(1)).to_string());
    bench
}

#[test]
fn a_plugin_file_is_taken_up_however_it_is_replaced_and_one_that_is_gone_stops_nothing() {
    let bench = bench_with_own_plugin("replaced", ANNOUNCED);
    let file = bench.at("config/stamp.wasm");
    let taken_up = |what: &str, number: u32| {
        bench.await_next(what, "files");
        assert_eq!(sha256(&bench.daemon), Digest::of(&version(number)).to_string(), "{what}");
        assert_eq!(bench.stamped.probe(SOON), "first", "{what}");
    };
    fs::write(bench.at("new"), version(2)).expect("a file");
    run("cp", &["new", "config/stamp.wasm"], &bench.folder);
    taken_up("cp over it", 2);
    fs::write(bench.at("new"), version(3)).expect("a file");
    run("mv", &["new", "config/stamp.wasm"], &bench.folder);
    taken_up("mv over it", 3);
    // As a deployment does that keeps the time of the build, which is the same in all versions.
    fs::write(bench.at("new"), version(4)).expect("a file");
    run("touch", &["-r", "config/stamp.wasm", "new"], &bench.folder);
    run("cp", &["-p", "new", "config/stamp.wasm"], &bench.folder);
    taken_up("cp -p over it, of the same age and size", 4);

    fs::remove_file(&file).expect("a plugin");
    bench.await_refused("a plugin that is gone", "stamp.wasm cannot be read");
    assert_eq!(bench.stamped.probe(SOON), "first", "a plugin that is gone");
    assert_eq!(bench.daemon.post("/-/reload").status, 422, "a plugin that is gone");
    assert_eq!(sha256(&bench.daemon), Digest::of(&version(4)).to_string(), "a plugin that is gone");
    fs::write(&file, version(4)).expect("a file");
    bench.await_mended("a plugin that is put back");
    assert_eq!(bench.stamped.probe(SOON), "first", "a plugin that is put back");
}

#[test]
fn a_plugin_behind_links_is_taken_up_when_a_link_or_what_it_leads_to_changes() {
    let bench = Bench::laid_out("links", |stamped, folder| {
        for number in [1, 2] {
            let bin = folder.join(format!("tools/{number}/bin"));
            fs::create_dir_all(&bin).expect("a directory");
            fs::write(bin.join("stamp.wasm"), version(number)).expect("a file");
        }
        symlink("1", folder.join("tools/current")).expect("a link");
        let config = folder.join("config");
        fs::create_dir(&config).expect("a directory");
        symlink("../tools/current/bin/stamp.wasm", config.join("stamp.wasm")).expect("a link");
        write(&config.join("millrace.yaml"), &main_file(stamped, ANNOUNCED, Path::new("stamp.wasm")));
        write(&config.join("route.yaml"), &stamped.route("first"));
        config
    });
    let steps: [(&str, u32, &dyn Fn()); 3] = [
        ("the link further up leads elsewhere", 2, &|| run("ln", &["-sfn", "2", "tools/current"], &bench.folder)),
        ("what it leads to now is replaced", 3, &|| {
            fs::write(bench.at("tools/new"), version(3)).expect("a file");
            run("mv", &["tools/new", "tools/2/bin/stamp.wasm"], &bench.folder);
        }),
        ("and once more, with its folder", 4, &|| {
            fs::create_dir(bench.at("tools/2/bin.new")).expect("a directory");
            fs::write(bench.at("tools/2/bin.new/stamp.wasm"), version(4)).expect("a file");
            run("mv", &["tools/2/bin", "tools/2/bin.old"], &bench.folder);
            run("mv", &["tools/2/bin.new", "tools/2/bin"], &bench.folder);
        }),
    ];
    for (what, number, step) in steps {
        step();
        bench.await_next(what, "files");
        assert_eq!(sha256(&bench.daemon), Digest::of(&version(number)).to_string(), "{what}");
        assert_eq!(bench.stamped.probe(SOON), "first", "{what}");
    }
}

/// How a slow upload goes: pauses between parts, longer than `watch.debounce`.
const PAUSES: [u64; 5] = [300, 600, 450, 600, 350];

#[test]
fn a_plugin_file_that_is_uploaded_slowly_is_not_taken_up_before_it_is_whole() {
    let bench = bench_with_own_plugin("uploaded", "{}");
    let (old, new) = (version(1), version(2));
    let digests = [&old, &new].map(|code| Digest::of(code).to_string());
    let file = bench.at("config/stamp.wasm");
    std::thread::scope(|scope| {
        let upload = scope.spawn(|| {
            let mut file = File::create(file).expect("a file, with nothing in it now");
            for (part, pause) in new.chunks(new.len() / PAUSES.len() + 1).zip(PAUSES) {
                file.write_all(part).expect("a part is written");
                pace(Duration::from_millis(pause));
            }
        });
        while !upload.is_finished() {
            assert_eq!(bench.stamped.probe(SOON), "first", "during the upload");
            assert!(digests.contains(&sha256(&bench.daemon)), "neither of the two: {}", sha256(&bench.daemon));
            assert_eq!(bench.daemon.reloads("rejected"), 0.0, "an upload is nobody's mistake");
        }
    });
    bench.await_next("the upload is whole", "files");
    assert_eq!(sha256(&bench.daemon), digests[1]);
    assert_eq!(bench.stamped.probe(SOON), "first");
    assert_eq!(bench.daemon.reloads("rejected"), 0.0);
    assert!(bench.daemon.log().contains("not taken up yet"), "it was looked at while it was half");
}

/// The plugin `stamp` in another version: the same but for a custom section, which no host heeds, and so the digest.
fn version(number: u32) -> Vec<u8> {
    let mut code = fs::read(plugin("stamp")).expect("a plugin");
    let content = [b"\x07version".as_slice(), number.to_string().as_bytes()].concat();
    code.extend([0, u8::try_from(content.len()).expect("a short section")]);
    code.extend(content);
    code
}

/// The digest of the plugin that the route runs.
#[track_caller]
fn sha256(daemon: &Daemon) -> String {
    daemon.route(ROUTE)["plugins"][0]["sha256"].as_str().expect("a digest").to_owned()
}
