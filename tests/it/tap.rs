//! What a tap shows of the records that go through a chain, and to how many.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use millrace::config::settings::PluginLimits;
use millrace::model::{DestinationName, PluginName, RouteName, SourceBatch};
use millrace::pipeline::chain::{Budget, Chain};
use millrace::pipeline::tap::{Listening, Seen, Stage, Tap, Wanted};
use millrace::plugin::{DestinationSpec, Engine, Prepare};

use crate::support::guests::{engine, guest};
use crate::support::memory_batch::{MemoryBatch, MemoryRecord};
use crate::support::record_loop::{chain, prepare};

const TIME: Duration = Duration::from_secs(10);

/// Records 0 to 5: the odd ones are dropped by the plugin, the keys are `a` and `b` in turns, the last two come from `x`.
fn batch() -> Arc<dyn SourceBatch> {
    let record = |number: usize| {
        let record = MemoryRecord::of_value(format!("value {number}")).key(["a", "b"][number % 2]);
        let record = record.header("keep", ["yes", "no"][number % 2]);
        if number < 4 { record } else { record.header("from", "x") }
    };
    MemoryBatch::numbered((0..6).map(record).collect())
}

fn tapped() -> (Chain, Tap, Engine) {
    let (engine, tap) = (engine(None), Tap::default());
    let mut chain = chain(&[prepare(&engine, "header-filter")]);
    chain.show(&tap);
    (chain, tap, engine)
}

/// Listens, and keeps what it is shown.
fn listen(tap: &Tap, wanted: Wanted) -> (Listening, Arc<Mutex<Vec<Seen>>>) {
    let seen = Arc::<Mutex<Vec<Seen>>>::default();
    let keep = Arc::clone(&seen);
    let take = move |see: &mut dyn FnMut() -> Seen| {
        keep.lock().expect("no test panics with it").push(see());
        true
    };
    (tap.listen(wanted, Box::new(take)).expect("there is room"), seen)
}

fn pass(chain: &mut Chain) {
    let batch = batch();
    let end = batch.len();
    drop(chain.apply(batch, 0..end, 0, Budget::of(TIME)));
}

#[test]
fn a_listener_sees_the_records_that_it_wants_before_and_behind_the_plugin_and_what_is_dropped() {
    let (mut chain, tap, _engine) = tapped();
    let name = |text: &str| text.as_bytes().to_vec();
    for (wanted, expected) in [
        (Wanted::default(), "source 012345, step 024, dropped 135, output 024"),
        (Wanted { stages: vec![Stage::Source], ..Wanted::default() }, "source 012345"),
        (Wanted { stages: vec![Stage::Step], ..Wanted::default() }, "step 024, dropped 135"),
        (Wanted { stages: vec![Stage::Error], ..Wanted::default() }, ""),
        (Wanted { key: Some(name("b")), ..Wanted::default() }, "source 135, dropped 135"),
        (Wanted { header: Some((name("from"), None)), ..Wanted::default() }, "source 45, step 4, dropped 5, output 4"),
        (
            Wanted { header: Some((name("keep"), Some(name("yes")))), ..Wanted::default() },
            "source 024, step 024, output 024",
        ),
        (Wanted { header: Some((name("from"), Some(name("y")))), ..Wanted::default() }, ""),
        (Wanted { one_in: 3, ..Wanted::default() }, "source 03, step 0, dropped 3, output 0"),
    ] {
        let (listening, seen) = listen(&tap, wanted.clone());
        pass(&mut chain);
        assert_eq!(told(&seen.lock().expect("no test panics with it")), expected, "{wanted:?}");
        assert_eq!(listening.missed(), 0, "{wanted:?}");
        drop(listening);
    }
}

/// The offsets seen, by what was seen.
fn told(seen: &[Seen]) -> String {
    let mut told: Vec<(&str, String)> = Vec::new();
    for one in seen {
        let what = if one.record.is_none() { "dropped" } else { one.stage.as_str() };
        match told.last_mut() {
            Some((last, offsets)) if *last == what => offsets.push_str(&one.offset.to_string()),
            Some(_) | None => told.push((what, one.offset.to_string())),
        }
    }
    told.iter().map(|(what, offsets)| format!("{what} {offsets}")).collect::<Vec<_>>().join(", ")
}

#[test]
fn sixteen_may_listen_and_one_who_has_no_room_takes_nothing_from_the_others() {
    let (mut chain, tap, _engine) = tapped();
    let others: Vec<_> = (0..15).map(|_| listen(&tap, Wanted::default())).collect();
    let mut room = 2;
    let take = move |see: &mut dyn FnMut() -> Seen| {
        room -= 1;
        room >= 0 && see().record.is_some()
    };
    let full = tap.listen(Wanted::default(), Box::new(take)).expect("there is room for it");
    assert!(tap.listen(Wanted::default(), Box::new(|_| true)).is_none(), "they are sixteen");
    pass(&mut chain);
    // Six at the source, six behind the plugin, three at the end.
    assert_eq!(full.missed(), 13);
    for (listening, seen) in &others {
        assert_eq!((listening.missed(), seen.lock().expect("no test panics with it").len()), (0, 15));
    }
    drop(others);
    assert!(tap.listen(Wanted::default(), Box::new(|_| true)).is_some(), "they have gone");
}

#[test]
fn an_output_is_seen_with_the_destination_that_its_plugin_named() {
    let (engine, tap) = (engine(None), Tap::default());
    let plugin = PluginName::new("route-by").expect("a name");
    let destination = |name| DestinationSpec { name: DestinationName::new(name).expect("a name"), topic_pattern: None };
    let with = Prepare {
        plugin: plugin.clone(),
        route: RouteName::new("r").expect("a name"),
        config_json: r#"{"to": "second"}"#.into(),
        limits: PluginLimits { memory: 64 << 20, timeout: TIME, outputs: 10, output_bytes: 1 << 20 },
        destinations: ["first", "second"].map(destination).into(),
        allow: vec![],
    };
    let compiled = engine.compile(&plugin, &guest("route-by")).expect("a sound guest");
    let mut chain = chain(&[Arc::new(compiled.prepare(with).expect("a sound guest"))]);
    chain.show(&tap);
    let (_listening, seen) = listen(&tap, Wanted { one_in: 6, ..Wanted::default() });
    pass(&mut chain);
    let seen = seen.lock().expect("no test panics with it");
    let destinations = |stage| {
        let seen = seen.iter().filter(|one| one.stage == stage).map(|one| one.destination);
        seen.collect::<Vec<_>>()
    };
    assert_eq!(destinations(Stage::Source), [None]);
    // (the record passes besides: its header `keep` says so to this guest)
    assert_eq!([Stage::Step, Stage::Output].map(destinations), [[None, Some(1)], [None, Some(1)]]);
}
