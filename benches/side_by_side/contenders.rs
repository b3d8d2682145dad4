//! Who copies a topic, and how it is started and ended.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::records::{Kafka, Source};
use crate::running::Running;
use crate::watch::Measured;
use crate::{bare_loop, peers, root, watch};

/// One that copies a topic.
pub(crate) enum How {
    /// The bare loop; `keeps`: timestamps, as a router has to; `edits`: JSON, natively.
    Loop { keeps: bool, edits: bool },
    /// millrace, with these lines of YAML: plugins, and what a route has besides.
    Millrace { plugins: &'static str, route: &'static str },
    /// Kafka Streams, with these settings.
    Streams { edits: bool, settings: &'static [&'static str] },
    /// Benthos.
    Benthos { edits: bool, in_flight: u32 },
}

/// What each does first.
pub(crate) const PLAIN: How = How::Millrace { plugins: "", route: "" };

impl How {
    /// Whether it drops what `Source::live` does not count.
    fn edits(&self) -> bool {
        match self {
            Self::Loop { edits, .. } | Self::Streams { edits, .. } | Self::Benthos { edits, .. } => *edits,
            Self::Millrace { plugins, .. } => plugins.contains("json-edit"),
        }
    }

    pub(crate) fn start(&self, job: &Job) -> Running {
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = match self {
            Self::Loop { keeps, edits } => bare_loop::command(job, *keeps, *edits),
            Self::Millrace { plugins, route } => millrace(directory.path(), &yaml(job, plugins, route)),
            Self::Streams { edits, settings } => peers::streams_command(job, directory.path(), *edits, settings),
            Self::Benthos { edits, in_flight } => peers::benthos_command(job, directory.path(), *edits, *in_flight),
        };
        let log = File::create(directory.path().join("log")).expect("a file");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Running::of(command.spawn().expect("a contender starts"), directory)
    }
}

/// What is to be copied, and by which group.
pub(crate) struct Job {
    pub(crate) bootstrap: String,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) group: String,
}

impl Job {
    /// With a target and a group of its own.
    pub(crate) fn new(kafka: &Kafka, source: &str) -> Self {
        let run = format!("{source}-{:08x}", fastrand::u32(..));
        let target = format!("out-{run}");
        kafka.create(&target);
        Self { bootstrap: kafka.offered.clone(), source: source.to_owned(), target, group: format!("bench.{run}") }
    }
}

/// One run over all of a source, measured from where `after` of its records are committed. `counted`: what arrived is.
pub(crate) fn measure(kafka: &Kafka, how: &How, source: &Source, after: usize, counted: bool) -> Measured {
    let job = Job::new(kafka, &source.topic);
    let mut running = how.start(&job);
    let measured = watch::watch(kafka, &mut running, source, &job.group, after);
    running.end();
    if counted {
        let expected = if how.edits() { source.live } else { source.count };
        assert_eq!(kafka.committed_records(&job.target), expected, "every record arrives once");
    }
    kafka.delete(&job.target);
    measured
}

fn yaml(job: &Job, plugins: &str, route: &str) -> String {
    let Job { bootstrap, source, target, group } = job;
    let dist = root().join("plugins/dist").display().to_string();
    let plugins =
        if plugins.is_empty() { String::new() } else { format!("plugins: {plugins}\n").replace("DIST", &dist) };
    let route = if route.is_empty() { String::new() } else { format!("    {route}\n") };
    format!(
        "kafka: {{ prefix: bench, bootstrap.servers: \"{bootstrap}\" }}\nadmin: {{ listen: \"127.0.0.1:0\" }}\n{plugins}routes:\n  \
         r:\n    source: {{ topics: [{source}], group: {group}, start: earliest }}\n{route}    destinations: \
         [{{ topic: {target} }}]\n"
    )
}

/// millrace with this configuration.
pub(crate) fn millrace(directory: &Path, yaml: &str) -> Command {
    let path = directory.join("millrace.yaml");
    std::fs::write(&path, yaml).expect("the configuration is written");
    let mut command = Command::new(binary());
    command.arg("run").arg(&path);
    command
}

/// (the one that is built with this has the tests' hooks in it)
pub(crate) fn binary() -> std::ffi::OsString {
    std::env::var_os("MILLRACE").unwrap_or_else(|| env!("CARGO_BIN_EXE_millrace").into())
}
