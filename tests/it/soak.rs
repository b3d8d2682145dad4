//! At load for a while, with a reload now and then: memory, file descriptors and threads stay flat, and nothing is lost.
//! Some 45 seconds of it in `make test`; `make soak` goes on for `SOAK_MINUTES`.

use std::time::{Duration, Instant};

use crate::support::config::{Config, plugin};
use crate::support::daemon::Daemon;
use crate::support::kafka::{ConsumedRecord, shared};
use crate::support::load::Load;
use crate::support::{pace, unique};

const PATIENCE: Duration = Duration::from_secs(120);
const SHORT: Duration = Duration::from_secs(45);
const PER_SECOND: usize = 1_000;
const PARTITIONS: usize = 4;
/// Looks in all; a tenth of them before anything is compared, for what is only made once.
const LOOKS: u32 = 40;
/// By which the means of two halves may differ: pages that the allocator has not given back.
const SLACK: f64 = 6.0 * 1024.0 * 1024.0;

/// What a look finds.
#[derive(Debug, Clone, Copy)]
struct Look {
    resident: f64,
    files: f64,
    threads: f64,
}

#[test]
fn at_load_memory_files_and_threads_stay_flat_and_nothing_is_lost() {
    let minutes = std::env::var("SOAK_MINUTES").ok().filter(|minutes| !minutes.is_empty());
    let time =
        minutes.map_or(SHORT, |minutes| Duration::from_secs_f64(minutes.parse::<f64>().expect("minutes") * 60.0));
    let kafka = shared();
    let [source, target] = ["soak", "soak-out"].map(unique);
    for topic in [&source, &target] {
        kafka.create_topic(topic, PARTITIONS as i32, &[]);
    }
    let config = Config::new(
        &kafka.bootstrap,
        &[],
        &format!(
            "memory: 64MiB
plugins:
  stamp: {{ path: \"{}\" }}
routes:
  r:
    source: {{ topics: [{source}], start: earliest }}
    pipeline: [{{ plugin: stamp, config: {{ name: generation, value: \"0\" }} }}]
    destinations: [{{ topic: {target} }}]
    workers: 2
",
            plugin("stamp").display()
        ),
    );
    let daemon = Daemon::start(config.path());
    let load = Load::start(kafka, &source, PARTITIONS, PER_SECOND);
    daemon.await_consumed("r", PER_SECOND, PATIENCE);

    let looks = looks(&daemon, time, |number| {
        if number % 5 == 0 {
            let value = |number| format!("value: \"{number}\"");
            config.edit(|yaml| yaml.replace(&value(number / 5), &value(number / 5 + 1)));
        }
    });
    let sent = load.stop();
    daemon.await_consumed("r", sent.count, PATIENCE);
    assert!(daemon.reloads("applied") >= f64::from(LOOKS) / 5.0, "reloads were applied");
    assert_eq!(growth(&looks), None, "{looks:?}");
    let arrived: Vec<ConsumedRecord> = kafka.await_records(&target, sent.count, PATIENCE);
    sent.assert_whole(&arrived, "at load");
}

/// Looks at the process, evenly over `time`, and does something between.
fn looks(daemon: &Daemon, time: Duration, mut between: impl FnMut(u32)) -> Vec<Look> {
    let began = Instant::now();
    let look = |number: u32| {
        between(number);
        pace((time / LOOKS * (number + 1)).saturating_sub(began.elapsed()));
        let metric = |name| daemon.metric(name, &[]).expect("it is measured");
        Look {
            resident: metric("process_resident_memory_bytes"),
            files: metric("process_open_fds"),
            threads: metric("process_threads"),
        }
    };
    (0..LOOKS).map(look).collect()
}

/// What grows from the first half of the looks to the second, if anything does.
fn growth(looks: &[Look]) -> Option<String> {
    let steady = &looks[looks.len() / 10..];
    let (before, after) = steady.split_at(steady.len() / 2);
    let mean = |looks: &[Look]| looks.iter().map(|look| look.resident).sum::<f64>() / looks.len() as f64;
    let most = |looks: &[Look], of: fn(&Look) -> f64| looks.iter().map(of).fold(0.0, f64::max);
    // (a connection to the endpoint, or a thread of a reload, that a look happens to meet)
    let few = 2.0;
    let compared = [
        ("memory", [before, after].map(mean), SLACK),
        ("files", [before, after].map(|half| most(half, |look| look.files)), few),
        ("threads", [before, after].map(|half| most(half, |look| look.threads)), few),
    ];
    eprintln!("in the first half, and in the second: {compared:?}");
    let grown = compared.into_iter().find(|(_, [was, is], slack)| *is > was + slack)?;
    Some(format!("{} grows from {} to {}", grown.0, grown.1[0], grown.1[1]))
}

#[test]
fn growth_is_noticed() {
    let looks = |look: fn(f64) -> Look| (0..LOOKS).map(|number| look(f64::from(number))).collect::<Vec<_>>();
    let flat = Look { resident: 1e8, files: 50.0, threads: 20.0 };
    assert_eq!(growth(&vec![flat; 40]), None);
    for (looks, what) in [
        (looks(|number| Look { resident: number * 1e6, files: 50.0, threads: 20.0 }), "memory"),
        (looks(|number| Look { resident: 1e8, files: number / 4.0, threads: 20.0 }), "files"),
        (looks(|number| Look { resident: 1e8, files: 50.0, threads: number / 4.0 }), "threads"),
    ] {
        let found = growth(&looks).unwrap_or_default();
        assert!(found.starts_with(what), "{what}: {found:?}");
    }
}
