//! `millrace replay`: yesterday's records through today's plugins, or through tomorrow's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::ValueHint;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::plugin::diff::{self, Line};
use super::plugin::records::item_json;
use super::run::{build, engine};
use super::{ConfigArgument, Failure, cluster, environment};
use crate::config;
use crate::control::plan::RoutePlan;
use crate::control::replay::{Bench, each_batch, topics_of};
use crate::kafka::{Cluster, Sender};
use crate::model::{FaultCode, RouteName, SourceBatch, TopicName};
use crate::pipeline::chain::Processed;
use crate::pipeline::compare::{Difference, Made, Sent};
use crate::pipeline::ports::{Headers, Output, Outputs};
use crate::policy::partition_for_key;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The route
    #[arg(value_name = "ROUTE", value_parser = |text: &str| RouteName::new(text))]
    route: RouteName,
    #[command(flatten)]
    config: ConfigArgument,
    /// Records whose timestamp is not before this time (RFC 3339) [default: all that the topics hold]
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Records whose timestamp is before this time (RFC 3339) [default: now]
    #[arg(long, value_name = "TIME")]
    to: Option<Timestamp>,
    /// A configuration (file or directory) whose route of the same name has the plugins [default: CONFIG]
    #[arg(long, value_name = "CONFIG", value_hint = ValueHint::AnyPath)]
    plugin_set: Option<PathBuf>,
    /// Where the outputs go: a topic if the cluster has one of that name, else a file of JSON Lines
    #[arg(long, value_name = "FILE|TOPIC", required_unless_present = "diff")]
    out: Option<String>,
    /// Show what the plugin set makes otherwise than CONFIG's plugins, record by record and in sum
    #[arg(long)]
    diff: bool,
    /// Differing records that are shown; all are counted
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u64,
    /// Print the result as JSON, on stdout
    #[arg(long)]
    json: bool,
}

/// What the replay came to.
#[derive(Default)]
struct Sums {
    records: u64,
    outputs: u64,
    faults: BTreeMap<FaultCode, u64>,
    /// With `--diff`: records that differ, and how.
    differing: u64,
    kinds: BTreeMap<Difference, u64>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.config.path()?;
    let loaded = config::load(&path, &environment).map_err(Failure::Invalid)?;
    let engine = engine(&loaded)?;
    let present = route_of(&build(&loaded, &engine)?, &arguments.route)?;
    let given = match &arguments.plugin_set {
        None => Arc::clone(&present),
        Some(path) => {
            let loaded = config::load(path, &environment).map_err(Failure::Invalid)?;
            route_of(&build(&loaded, &engine)?, &arguments.route)?
        }
    };
    let cluster = cluster::connect(&loaded)?;
    let mut sink = arguments.out.as_deref().map(|out| Sink::open(out, &cluster, &present)).transpose()?;
    let mut benches = (arguments.diff.then(|| Bench::new(&present)), Bench::new(&given));
    let mut sums = Sums::default();
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {pos} records {per_sec}").expect("it is a template"));
    bar.enable_steady_tick(Duration::from_millis(150));
    let topics = topics_of(&cluster, &present).map_err(cluster::failed)?;
    let is_meant = |timestamp: i64| {
        arguments.from.is_none_or(|from| timestamp >= from.as_millisecond())
            && arguments.to.is_none_or(|to| timestamp < to.as_millisecond())
    };
    each_batch(&cluster, &topics, arguments.from.map(Timestamp::as_millisecond), |batch| {
        if !(0..batch.len()).any(|index| is_meant(batch.timestamp(index))) {
            return Ok(());
        }
        let made = benches.1.apply(batch);
        let before = benches.0.as_mut().map(|bench| bench.apply(batch));
        let mut outputs = Vec::new();
        for index in (0..batch.len()).filter(|index| is_meant(batch.timestamp(*index))) {
            let now = Made::of(made.iter().map(Processed::part), index, &given.route.destinations);
            sums.count(&now);
            if let Some(before) = &before {
                let was = Made::of(before.iter().map(Processed::part), index, &present.route.destinations);
                let differences = was.differences(&now);
                sums.differs(&differences);
                if !differences.is_empty() && sums.differing <= arguments.limit {
                    bar.suspend(|| show(arguments.json, &**batch, index, &differences, &was, &now));
                }
            }
            outputs.extend(now.outputs);
            bar.inc(1);
        }
        sink.as_mut().map_or(Ok(()), |sink| sink.take(&outputs))
    })
    .map_err(|stop: Stop| stop.0)?;
    if let Some(sink) = sink {
        sink.end()?;
    }
    bar.finish_and_clear();
    sums.tell(arguments);
    Ok(())
}

/// Why it ended early.
struct Stop(Failure);

impl From<crate::pipeline::ports::Trouble> for Stop {
    fn from(trouble: crate::pipeline::ports::Trouble) -> Self {
        Self(cluster::failed(trouble))
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

fn route_of(plan: &crate::control::plan::Plan, name: &RouteName) -> Result<Arc<RoutePlan>, Failure> {
    let known = || plan.routes.keys().map(RouteName::as_str).collect::<Vec<_>>().join(", ");
    let found = plan.routes.get(name).map(Arc::clone);
    found.ok_or_else(|| Failure::Usage(anyhow!("there is no route \"{name}\" that is enabled: {}", known())))
}

impl Sums {
    fn count(&mut self, made: &Made<'_>) {
        self.records += 1;
        self.outputs += made.outputs.len() as u64;
        if let Some(fault) = &made.fault {
            *self.faults.entry(fault.code).or_default() += 1;
        }
    }

    fn differs(&mut self, differences: &[Difference]) {
        self.differing += u64::from(!differences.is_empty());
        differences.iter().for_each(|kind| *self.kinds.entry(*kind).or_default() += 1);
    }

    fn tell(&self, arguments: &Arguments) {
        let faults: BTreeMap<_, _> = self.faults.iter().map(|(code, count)| (code.as_str(), count)).collect();
        let kinds: BTreeMap<_, _> = self.kinds.iter().map(|(kind, count)| (kind.as_str(), count)).collect();
        if arguments.json {
            let mut object = json!({ "records": self.records, "outputs": self.outputs, "faults": faults });
            if arguments.diff {
                object["differing"] = self.differing.into();
                object["differences"] = json!(kinds);
            }
            return anstream::println!("{object}");
        }
        anstream::eprintln!(
            "{} records, {} outputs, {} at fault",
            self.records,
            self.outputs,
            faults.values().copied().sum::<u64>()
        );
        faults.iter().for_each(|(code, count)| anstream::eprintln!("  {count:>8}  {code}"));
        if arguments.diff {
            let more = self.differing.saturating_sub(arguments.limit);
            let more = if more > 0 { format!(", {more} of them not shown (--limit)") } else { String::new() };
            anstream::eprintln!("{} records differ{more}", self.differing);
            kinds.iter().for_each(|(kind, count)| anstream::eprintln!("  {count:>8}  {kind}"));
        }
    }
}

// ---- outputs --------------------------------------------------------------------------------------------------------

enum Sink {
    File(BufWriter<File>, String),
    Topic(Box<Sender>),
}

impl Sink {
    fn open(out: &str, cluster: &Cluster, plan: &RoutePlan) -> Result<Self, Failure> {
        let topics = cluster.topics().map_err(cluster::failed)?;
        let name = TopicName::new(out).ok().filter(|name| topics.partitions(name.as_str()).is_some());
        if let Some(name) = name {
            let in_use = topics_of(cluster, plan).map_err(cluster::failed)?.contains(&name)
                || plan.needed_topics().any(|topic| *topic == name);
            if in_use {
                return Err(Failure::Usage(anyhow!(
                    "\"{name}\" is a topic that the route reads or writes: a replay goes to a topic of its own"
                )));
            }
            let sender = Sender::open(cluster, &plan.route, &name, plan.share).map_err(cluster::failed)?;
            return Ok(Self::Topic(Box::new(sender)));
        }
        let file = File::create(out)
            .map_err(|error| Failure::Environment(anyhow!(error).context(format!("{out} cannot be written"))))?;
        Ok(Self::File(BufWriter::new(file), out.to_owned()))
    }

    fn take(&mut self, outputs: &[Sent<'_>]) -> Result<(), Stop> {
        match self {
            Self::File(file, name) => {
                let written = outputs.iter().try_for_each(|sent| {
                    let mut object = sent_json(sent);
                    object["topic"] = json!(sent.item.topic);
                    object["from"] = from_json(&*sent.items.source, sent.item.source as usize);
                    writeln!(file, "{object}")
                });
                written.map_err(|error| cannot_write(name, error).into())
            }
            Self::Topic(sender) => {
                let partitions = sender.partitions();
                Ok(sender.send(&Those { outputs, partitions })?)
            }
        }
    }

    fn end(self) -> Result<(), Failure> {
        match self {
            Self::File(mut file, name) => file.flush().map_err(|error| cannot_write(&name, error)),
            Self::Topic(_) => Ok(()),
        }
    }
}

fn cannot_write(name: &str, error: io::Error) -> Failure {
    Failure::Environment(anyhow!(error).context(format!("{name} cannot be written")))
}

fn sent_json(sent: &Sent<'_>) -> Value {
    let mut object = item_json(sent.items, sent.item);
    object["destinations"] = json!(sent.to);
    object
}

fn from_json(batch: &dyn SourceBatch, index: usize) -> Value {
    let at = batch.topic_partition();
    json!({ "topic": at.topic, "partition": at.partition, "offset": batch.offset(index) })
}

/// Outputs for a scratch topic, placed by their keys.
struct Those<'a> {
    outputs: &'a [Sent<'a>],
    partitions: i32,
}

impl Outputs for Those<'_> {
    fn len(&self) -> usize {
        self.outputs.len()
    }
    fn for_each(&self, produce: &mut dyn FnMut(Output<'_>) -> ControlFlow<()>) {
        let _ = self.outputs.iter().try_for_each(|Sent { items, item, .. }| {
            let key = items.key(item);
            produce(Output {
                topic: 0,
                partition: key.map_or(0, |key| partition_for_key(key, self.partitions)),
                key,
                value: items.value(item),
                timestamp: items.timestamp(item),
                headers: Headers::Of(items, item),
                keeper: None,
            })
        });
    }
}

// ---- differences ----------------------------------------------------------------------------------------------------

fn show(json: bool, batch: &dyn SourceBatch, index: usize, differences: &[Difference], was: &Made<'_>, now: &Made<'_>) {
    let kinds: Vec<_> = differences.iter().map(|kind| kind.as_str()).collect();
    let made = |made: &Made<'_>| {
        let outputs = made.outputs.iter().map(sent_json);
        let fault = made.fault.as_ref().map(|fault| json!({ "code": fault.code.as_str(), "message": fault.message }));
        json!({ "fault": fault, "outputs": outputs.collect::<Vec<_>>() })
    };
    if json {
        let object =
            json!({ "from": from_json(batch, index), "differences": kinds, "before": made(was), "after": made(now) });
        return anstream::println!("{object}");
    }
    anstream::println!("{}@{}: {}", batch.topic_partition(), batch.offset(index), kinds.join(", "));
    let outcome = |made: &Made<'_>| match &made.fault {
        Some(fault) => format!("{}: {}", fault.code, fault.message),
        None => format!("{} outputs", made.outputs.len()),
    };
    if differences.iter().any(|kind| matches!(kind, Difference::Fault | Difference::Count)) {
        anstream::println!("    - {}", outcome(was));
        anstream::println!("    + {}", outcome(now));
        return;
    }
    for (one, two) in was.outputs.iter().zip(&now.outputs) {
        let (before, after) = (one.items.value(one.item), two.items.value(two.item));
        if before != after {
            diff::values(before, after).iter().for_each(|line| match line {
                Line::Removed(text) => anstream::println!("    - {text}"),
                Line::Added(text) => anstream::println!("    + {text}"),
                Line::Same(text) => anstream::println!("      {text}"),
                Line::Note(text) => anstream::println!("    … {text}"),
            });
        }
    }
    for kind in differences.iter().filter(|kind| **kind != Difference::Value) {
        let of = |made: &Made<'_>| {
            let part = |sent: &Sent<'_>| match kind {
                Difference::Destination => json!([sent.to, sent.item.topic, sent.item.partition]),
                _ => item_json(sent.items, sent.item)[kind.as_str()].clone(),
            };
            json!(made.outputs.iter().map(part).collect::<Vec<_>>()).to_string()
        };
        anstream::println!("    - {kind} {}", of(was));
        anstream::println!("    + {kind} {}", of(now));
    }
}
