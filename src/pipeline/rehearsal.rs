//! A route without a broker: the real chain, the real units and destinations, on records that somebody wrote. What would be
//! sent is collected, waits are not waited for, and nothing is committed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::chain::Budget;
use super::dead_letter::Origin;
use super::destinations::Destinations;
use super::ports::{TopicError, TopicInfo, Trouble, TroubleKind, Usage};
use super::report::{Fate, Health, Report, Tally};
use super::tap::Tap;
use super::task::Task;
use super::unit::{After, Attempts, Bench, Unit};
use crate::model::{
    DestinationName, Digest, ErrorId, Fault, FaultCode, Offset, PluginName, RouteName, SourceBatch, TopicName,
    TopicPartition,
};

/// A route that is given records by hand.
pub struct Rehearsal<'a> {
    route: &'a RouteName,
    task: &'a mut Task,
    plugins: Vec<(PluginName, Digest)>,
    destinations: Destinations,
    topics: Topics<'a>,
}

/// What became of some records.
#[derive(Debug, Default)]
pub struct Rehearsed {
    /// What would be sent, in the order of the records.
    pub outputs: Vec<RehearsedOutput>,
    /// What became of records at fault, in the order in which it was decided.
    pub faults: Vec<RehearsedFault>,
    /// Records of which an item went nowhere: the offset, and the plugin that dropped it, if one did.
    pub filtered: Vec<(Offset, Option<PluginName>)>,
    /// Whether the partition stopped before a record; those from there on were not given to the route.
    pub stopped: bool,
}

/// An output that would be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RehearsedOutput {
    /// The source record's offset.
    pub offset: Offset,
    /// The destination's name; none for a dead letter.
    pub destination: Option<DestinationName>,
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: i32,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
    /// ms since 1970-01-01 UTC, or -1.
    pub timestamp: i64,
    /// In order.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A record at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RehearsedFault {
    /// The record.
    pub offset: Offset,
    /// The fault's code, or `no_counterpart`.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// The plugin at fault.
    pub plugin: Option<PluginName>,
    /// What was finally done.
    pub fate: Fate,
    /// How often it was tried.
    pub attempts: u32,
}

impl<'a> Rehearsal<'a> {
    /// Of a route that does this. `partitions` says how many partitions a topic has; every topic is there.
    pub fn new(route: &'a RouteName, task: &'a mut Task, partitions: &'a dyn Fn(&TopicName) -> i32) -> Self {
        let plugins = task.chain.plugins().map(|(name, digest)| (name.clone(), *digest)).collect();
        let destinations = Destinations::new(task.destinations.clone());
        let topics = Topics { partitions, known: Vec::new(), slots: HashMap::new() };
        Self { route, task, plugins, destinations, topics }
    }

    /// Gives it the records of a batch.
    ///
    /// # Errors
    /// More topics were named than a session can have.
    pub fn give(&mut self, batch: &Arc<dyn SourceBatch>) -> Result<Rehearsed, Trouble> {
        let (mut done, tap) = (Rehearsed::default(), Tap::default());
        let (mut from, mut isolate, mut attempts) = (0, 0, Attempts::default());
        while from < batch.len() {
            let bounds = self.task.bounds;
            let budget = Budget::of(bounds.processing).making(bounds.bytes);
            let processed = self.task.chain.apply(Arc::clone(batch), from..batch.len(), isolate, budget);
            let mut report = Faults(Vec::new());
            let topics = &mut self.topics;
            let mut look_up = |name: &TopicName| topics.look_up(name);
            let mut bench = Bench {
                policy: &self.task.on_error,
                destinations: &mut self.destinations,
                look_up: &mut look_up,
                report: &mut report,
                origin: Origin { route: self.route.as_str(), worker: 0, generation: self.task.generation },
                plugins: &self.plugins,
                tap: &tap,
            };
            let unit = Unit::build(processed, from..batch.len(), attempts, &mut bench)?;
            for (offset, fault, fate) in report.0 {
                // (a try that another follows is not what finally becomes of the record)
                if let Fate::Skipped | Fate::Stopped | Fate::DeadLettered = fate {
                    let retries = self.task.on_error.retry.map_or(0, |retry| retry.attempts);
                    let attempts = match fault.code {
                        FaultCode::Unavailable => retries + 1,
                        _ if attempts.offset == offset => attempts.tried + 1,
                        _ => 1,
                    };
                    done.faults.push(RehearsedFault {
                        offset,
                        code: fault.code.as_str(),
                        message: fault.message,
                        plugin: fault.plugin,
                        fate,
                        attempts,
                    });
                }
            }
            self.collect(&unit, &**batch, &mut done);
            from = unit.range.end;
            match unit.after {
                After::Flow => {}
                After::Isolate(before) => {
                    isolate = (from..batch.len()).find(|index| batch.offset(*index) >= before).unwrap_or(batch.len());
                }
                After::Wait { attempts: so_far, .. } => attempts = so_far,
                After::Stop { code, message, .. } => {
                    done.stopped = true;
                    let offset = batch.offset(from);
                    if done.faults.last().is_none_or(|fault| fault.offset != offset) {
                        let fate = Fate::Stopped;
                        done.faults.push(RehearsedFault { offset, code, message, plugin: None, fate, attempts: 1 });
                    }
                    return Ok(done);
                }
            }
        }
        Ok(done)
    }

    /// Ends the plugins' instances in good order.
    pub fn end(self) {
        self.task.chain.shutdown();
    }

    fn collect(&self, unit: &Unit, batch: &dyn SourceBatch, done: &mut Rehearsed) {
        let mut sent: Vec<_> = unit.sent().collect();
        // A dead letter takes the place of its record.
        sent.sort_by_key(|(source, ..)| *source);
        for (source, destination, output) in sent {
            let of = |number: u16| self.destinations.list()[usize::from(number)].name.clone();
            let headers = (0..output.headers.len()).map(|nth| output.headers.get(nth));
            done.outputs.push(RehearsedOutput {
                offset: batch.offset(source as usize),
                destination: destination.map(of),
                topic: self.topics.known[usize::from(output.topic)].clone(),
                partition: output.partition,
                key: output.key.map(<[u8]>::to_vec),
                value: output.value.map(<[u8]>::to_vec),
                timestamp: output.timestamp,
                headers: headers.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect(),
            });
        }
        done.filtered.extend(unit.filtered().iter().map(|(source, step)| {
            let plugin = step.and_then(|step| self.plugins.get(usize::from(step))).map(|(name, _)| name.clone());
            (batch.offset(*source as usize), plugin)
        }));
    }
}

/// A cluster of which nothing is known but how many partitions its topics have.
struct Topics<'a> {
    partitions: &'a dyn Fn(&TopicName) -> i32,
    /// By slot.
    known: Vec<TopicName>,
    slots: HashMap<TopicName, u16>,
}

impl Topics<'_> {
    fn look_up(&mut self, name: &TopicName) -> Result<TopicInfo, TopicError> {
        let partitions = (self.partitions)(name).max(1);
        if let Some(slot) = self.slots.get(name) {
            return Ok(TopicInfo { slot: *slot, partitions });
        }
        let slot = u16::try_from(self.known.len()).map_err(|_| {
            let (code, message) = ("TOO_MANY_TOPICS".to_owned(), "more than 65,536 topics were named".to_owned());
            TopicError::Trouble(Trouble { code, message, kind: TroubleKind::Denied })
        })?;
        self.known.push(name.clone());
        self.slots.insert(name.clone(), slot);
        Ok(TopicInfo { slot, partitions })
    }
}

/// Listens for faults only.
struct Faults(Vec<(Offset, Fault, Fate)>);

impl Report for Faults {
    fn fault(&mut self, _: &TopicPartition, offset: Offset, _: ErrorId, fault: &Fault, fate: Fate) {
        self.0.push((offset, fault.clone(), fate));
    }
    fn taken_up(&mut self, _: &Task) {}
    fn health(&mut self, _: &Health) {}
    fn transaction_begins(&mut self) {}
    fn transaction(&mut self, _: &'static str, _: Duration) {}
    fn committed(&mut self, _: &Tally) {}
    fn usage(&mut self, _: &PluginName, _: Usage) {}
    fn trouble(&mut self, _: &Trouble) {}
    fn lost(&mut self, _: &TopicPartition, _: u64, _: &str) {}
    fn rebalanced(&mut self) {}
}
