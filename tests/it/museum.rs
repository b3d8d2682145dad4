//! A host loads plugins that were built for any earlier version of its line of the interface; and says of others which it speaks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millrace::config::settings::PluginLimits;
use millrace::model::{DestinationName, Digest, Items, PluginName, RouteName, SendTo};
use millrace::pipeline::ports::{Step, Verdict};
use millrace::plugin::{DestinationSpec, LoadError, PluginStep, Prepare, inspect, spoken};

use crate::sandbox::importing;
use crate::support::guests::{engine, guest};
use crate::support::memory_batch::{MemoryBatch, MemoryRecord};
use crate::support::root;

/// The rooms, with the digest of what is in each.
const ROOMS: [(&str, &str); 1] = [("museum-0-1-0", "abe479f73c90b6e243aa120dfec8b07f6900fea111889ac859bc7ef479e6a8a8")];

/// The version that the host speaks, by what is built for it.
fn version() -> [u64; 3] {
    let version = inspect(&guest("rewrite")).unwrap().version.expect("it names one");
    let numbers: Vec<u64> = version.split('.').map(|number| number.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

fn step(name: &str) -> PluginStep {
    let engine = engine(None);
    let compiled = engine.compile(&PluginName::new(name).unwrap(), &guest(name));
    let with = Prepare {
        plugin: PluginName::new(name).unwrap(),
        route: RouteName::new("route").unwrap(),
        config_json: "{}".into(),
        limits: PluginLimits {
            memory: 64 << 20,
            timeout: Duration::from_secs(1),
            outputs: 1_000,
            output_bytes: 1 << 20,
        },
        allow: Vec::new(),
        destinations: [DestinationSpec { name: DestinationName::new("out").unwrap(), topic_pattern: None }].into(),
    };
    let prepared = compiled.and_then(|compiled| compiled.prepare(with));
    Arc::new(prepared.unwrap_or_else(|error| panic!("{name}: {error}"))).step()
}

#[test]
fn every_earlier_version_has_its_room() {
    let [major, minor, patch] = version();
    for earlier in 0..patch {
        let name = format!("museum-{major}-{minor}-{earlier}");
        let wit = root().join("plugins/museum").join(&name).join("wit/worlds.wit");
        let text = std::fs::read_to_string(&wit).unwrap_or_else(|error| panic!("{}: {error}", wit.display()));
        assert!(text.contains(&format!("package millrace:plugin@{major}.{minor}.{earlier};")), "{name}");
        let built = inspect(&guest(&name)).unwrap();
        assert_eq!(built.version, Some(format!("{major}.{minor}.{earlier}")), "{name}");
    }
}

#[test]
fn nothing_in_a_room_is_changed() {
    let museum = root().join("plugins/museum");
    let rooms = std::fs::read_dir(&museum).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let mut rooms: Vec<_> =
        rooms.map(|room| (room.file_name().unwrap().to_str().unwrap().to_owned(), digest_of(&room))).collect();
    rooms.sort();
    let known = ROOMS.map(|(room, digest)| (room.to_owned(), digest.to_owned()));
    assert_eq!(rooms, known, "put back what was there, or, for a new room, add its digest to ROOMS");
}

/// Of the files below a directory, with their names.
fn digest_of(directory: &Path) -> String {
    let mut all = Vec::new();
    for path in files_below(directory) {
        let content = std::fs::read(&path).unwrap();
        let name = path.strip_prefix(directory).unwrap().display();
        all.extend(format!("{name} {}\n", content.len()).bytes().chain(content));
    }
    Digest::of(&all).to_string()
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect();
    files.sort();
    files
}

#[test]
fn a_plugin_of_version_0_1_0_does_all_that_it_did() {
    let mut step = step("museum-0-1-0");
    let mut record =
        MemoryRecord::of_value("v").key("k").header("trace", "a").header("other", "o").header("trace", "b");
    (record.offset, record.timestamp) = (5, 1_000);
    let refused = MemoryRecord { offset: 6, ..MemoryRecord::of_value("refuse") };
    let tombstone = MemoryRecord { offset: 9, value: None, ..MemoryRecord::of_value("") };
    let mut items = MemoryBatch::new("source", 7, vec![record, refused, tombstone]).items();
    let output = step.call(&mut items, 0..3, Duration::from_secs(5)).unwrap();
    assert_eq!(output.verdicts, [Verdict::Drop, Verdict::Refuse, Verdict::Drop]);
    assert_eq!(output.reasons, [(1, "as it asked to be".to_owned())]);
    let sources: Vec<_> = output.emitted.iter().map(|(source, _)| *source).collect();
    assert_eq!(sources, [0, 0, 2, 2]);
    let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let of = |place: usize| &output.emitted[place].1;
    let shown = |items: &Items, place: usize| text(items.value(of(place)));
    assert_eq!(shown(&items, 0).unwrap(), "source/7/5 at 1000: k v (1), trace b of 3");
    assert_eq!(shown(&items, 2).unwrap(), "source/7/9 at -1: null null (0), trace null of 0");
    let made = of(0);
    assert_eq!((text(items.key(made)).as_deref(), items.timestamp(made)), (Some("museum"), 7));
    assert_eq!((made.partition, made.send_to), (Some(3), SendTo::Defaults));
    let headers: Vec<_> = (0..items.header_count(made))
        .map(|nth| items.header(made, nth))
        .map(|(name, value)| (text(Some(name)).unwrap(), text(value)))
        .collect();
    let header = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
    assert_eq!(headers, [header("trace", Some("0.1.0")), header("other", Some("o")), header("more", None)]);
    let forwarded = of(1);
    assert_eq!(items.header_count(forwarded), 3);
    assert_eq!((shown(&items, 1).as_deref(), items.timestamp(forwarded)), (Some("v"), 1_000));
}

#[test]
fn a_version_that_is_not_spoken_is_refused_with_those_that_are() {
    let engine = engine(None);
    let [major, minor, patch] = version();
    let from = format!("@{major}.{minor}.{patch}");
    for to in ["@0.2.0", "@1.1.1", "@9.0.0"] {
        let mut bytes = guest("rewrite");
        let places: Vec<_> =
            (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
        places.iter().for_each(|at| bytes[*at..*at + to.len()].copy_from_slice(to.as_bytes()));
        let error = engine.compile(&PluginName::new("other").unwrap(), &bytes).unwrap_err();
        assert_eq!(error, LoadError::Version { found: to[1..].to_owned() });
        let expected = format!("built for millrace:plugin{to}, while this host speaks {}", spoken());
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn an_interface_that_only_another_version_has_is_told_by_the_version_and_of_a_later_patch_with_a_hint() {
    let engine = engine(None);
    let [major, minor, patch] = version();
    let load = |import: &str| {
        engine.compile(&PluginName::new("later").unwrap(), &importing(&[import.to_owned()])).unwrap_err()
    };
    let of_another = load("millrace:plugin/state@0.2.0");
    assert_eq!(of_another, LoadError::Version { found: "0.2.0".into() });
    let later = format!("{major}.{minor}.{}", patch + 1);
    let of_later_patch = load(&format!("millrace:plugin/state@{later}"));
    assert!(matches!(of_later_patch, LoadError::Import { .. }), "{of_later_patch}");
    let expected = format!(
        "it was built for millrace:plugin@{later}, and this host has {major}.{minor}.{patch}: a later version of millrace \
         may have it"
    );
    assert!(of_later_patch.to_string().contains(&expected), "{of_later_patch}");
}
