//! A unit of work: what one transaction does for consecutive records of one partition. And a round: the units that one
//! transaction covers.
//!
//! A unit is made after the plugins have run and holds everything that the transaction needs, so that it can be given
//! again after an abort, cut short before a record that stops, and halved to find a record that a destination refuses.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::chain::{Halt, Processed};
use super::dead_letter::{DeadLetter, Origin};
use super::destinations::{Destinations, Misrouted, Routed};
use super::ports::{Headers, LookUp, Output, Outputs, Trouble};
use super::report::{Fate, Report, Tally, add};
use super::shadow::Shown;
use super::tap::Tap;
use super::task::Room;
use super::traces::{Told, Traces};
use crate::config::settings::Target;
use crate::model::{
    Digest, ErrorId, Fault, FaultCode, Items, Offset, OffsetMap, PluginName, RouteName, SourceBatch, TopicPartition,
};
use crate::policy::{Decision, Disposition, OnError, Values};
use crate::telemetry::{LATENCY_BOUNDS, Spans, Tracer, Work};

/// How often the record at an offset has been tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attempts {
    /// The record.
    pub offset: Offset,
    /// Tries so far; 0 for a record not yet tried.
    pub tried: u32,
    /// The id of its fault, which stays the same over its tries; none where it has not been told yet.
    pub error_id: Option<ErrorId>,
}

impl Attempts {
    fn at(self, offset: Offset) -> u32 {
        if self.offset == offset { self.tried } else { 0 }
    }

    fn error_id(self, offset: Offset) -> ErrorId {
        self.error_id.filter(|_| self.offset == offset).unwrap_or_else(ErrorId::random)
    }
}

/// What becomes of the partition once the unit is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// It flows on.
    Flow,
    /// The next record is given again at once: a plugin has had its retries on the records before this offset, and those
    /// that ask alone are found.
    Isolate(Offset),
    /// It waits before its next record, which is then tried again.
    Wait {
        /// How often the record has been tried.
        attempts: Attempts,
        /// How long.
        wait: Duration,
        /// Why.
        fault: Fault,
    },
    /// It stops before its next record.
    Stop {
        /// The fault's code, or `no_counterpart`.
        code: &'static str,
        /// Why.
        message: String,
        /// The id of the fault, where a record is to blame.
        error_id: Option<ErrorId>,
    },
}

/// What a unit is judged with.
pub struct Bench<'a> {
    /// The route's `on_error`.
    pub policy: &'a OnError,
    /// The route's destinations.
    pub destinations: &'a mut Destinations,
    /// Looks topics up.
    pub look_up: &'a mut LookUp<'a>,
    /// Where faults are told.
    pub report: &'a mut dyn Report,
    /// What dead letters tell.
    pub origin: Origin<'a>,
    /// The route's plugins.
    pub plugins: &'a [(PluginName, Digest)],
    /// Where records at fault are shown.
    pub tap: &'a Tap,
}

/// What one transaction does for consecutive records of one partition.
pub struct Unit {
    items: Arc<Items>,
    /// The records covered, by index in their batch.
    pub range: Range<usize>,
    routed: Vec<Routed>,
    dead: Vec<DeadLetter>,
    disposed: Vec<(u32, FaultCode, Fate)>,
    filtered: Vec<(u32, Option<u16>)>,
    traces: Traces,
    /// What becomes of the partition afterwards.
    pub after: After,
}

impl Unit {
    /// Routes what the chain has made of the records `range`, and decides about those at fault.
    ///
    /// # Errors
    /// The cluster cannot be asked about a topic now: nothing is decided, all is to be done again later.
    pub fn build(
        processed: Processed,
        range: Range<usize>,
        attempts: Attempts,
        bench: &mut Bench<'_>,
    ) -> Result<Self, Trouble> {
        let Processed { items, mut faults, filtered, halt, mut values, traces } = processed;
        let mut unit = Self {
            items: Arc::new(items),
            range,
            routed: Vec::new(),
            dead: Vec::new(),
            disposed: Vec::new(),
            filtered: filtered.into_iter().map(|(source, step)| (source, Some(step))).collect(),
            traces,
            after: After::Flow,
        };
        if let Some((at, why)) = halt {
            let after = after_halt(why, attempts, &*unit.items.source, at, bench.policy);
            unit.cut(at, after);
        }
        unit.route(&mut faults, &mut values, bench)?;
        unit.traces.routed(&unit.items, &unit.routed);
        faults.sort_by_key(|(source, _)| *source);
        for (source, fault) in faults {
            if source as usize >= unit.range.end {
                break;
            }
            unit.blame(source, fault, attempts, bench)?;
        }
        Ok(unit)
    }

    /// The partition.
    pub fn partition(&self) -> &TopicPartition {
        self.items.source.topic_partition()
    }

    /// The offset to read next once the unit is committed.
    pub fn next_offset(&self) -> Offset {
        let source = &self.items.source;
        if self.range.end < source.len() { source.offset(self.range.end) } else { source.offset(source.len() - 1) + 1 }
    }

    /// Whether the unit covers no record.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// What it is made of, for a shadow; `faults` are those that the chain found.
    pub(super) fn shown(&self, faults: Vec<(u32, Fault)>) -> Shown {
        Shown { items: Arc::clone(&self.items), faults, records: self.range.clone() }
    }

    /// How many outputs it sends.
    pub fn outputs(&self) -> usize {
        self.routed.len() + self.dead.len()
    }

    /// What it sends, in the order in which it is sent: the source record that each output comes of and the number of its
    /// destination, `None` for a dead letter.
    pub fn sent(&self) -> impl Iterator<Item = (u32, Option<u16>, Output<'_>)> {
        let (keeper, items) = (Some(&self.items), &*self.items);
        let mut traced = self.traces.sends().iter().peekable();
        let has_headers = items.source.may_have_headers();
        let routed = self.routed.iter().map(move |routed| {
            let Routed { source, item: index, destination, topic, partition } = *routed;
            if !has_headers && let Some(record) = items.list.untouched(index as usize) {
                let of = &items.source;
                let (key, value, timestamp) = (of.key(record), of.value(record), of.timestamp(record));
                let headers = Headers::List(&[]);
                let output = Output { topic, partition, key, value, timestamp, headers, keeper };
                return (source, Some(destination), output);
            }
            let item = &items.list[index as usize];
            let send = traced.next_if(|send| (send.item, send.destination) == (index, destination));
            let headers = match send.and_then(|send| Some((send.header?, &send.traceparent))) {
                Some((header, value)) => Headers::Traced(items, item, header as usize, value),
                None => Headers::Of(items, item),
            };
            let (key, value, timestamp) = (items.key(item), items.value(item), items.timestamp(item));
            (source, Some(destination), Output { topic, partition, key, value, timestamp, headers, keeper })
        });
        routed.chain(self.dead.iter().map(|dead| (dead.source, None, dead.output(&*items.source))))
    }

    /// The source records of items that go nowhere: which step dropped them, `None` where no destination took them.
    pub fn filtered(&self) -> &[(u32, Option<u16>)] {
        &self.filtered
    }

    /// Finds a record at fault: its outputs are withdrawn, and it meets `on_error`.
    ///
    /// # Errors
    /// The cluster cannot be asked about the dead-letter topic now.
    pub fn blame(
        &mut self,
        source: u32,
        fault: Fault,
        attempts: Attempts,
        bench: &mut Bench<'_>,
    ) -> Result<(), Trouble> {
        let offset = self.items.source.offset(source as usize);
        if bench.tap.is_open() {
            bench.tap.fault(&self.items, source, &fault);
        }
        let error_id = attempts.error_id(offset);
        let (tried, decision) = match fault.code {
            // By definition its retries are spent: on a batch that began with another record, as a rule.
            FaultCode::Unavailable => {
                let retries = bench.policy.retry.map_or(0, |retry| retry.attempts);
                (retries + 1, Decision::Dispose(&bench.policy.then))
            }
            _ => {
                let tried = attempts.at(offset) + 1;
                (tried, bench.policy.decide(tried))
            }
        };
        let fate = match decision {
            Decision::RetryAfter(wait) => {
                let attempts = Attempts { offset, tried, error_id: Some(error_id) };
                self.cut(source as usize, After::Wait { attempts, wait, fault: fault.clone() });
                Fate::Retried(wait)
            }
            Decision::Dispose(Disposition::Stop) => {
                let (code, message) = (fault.code.as_str(), fault.to_string());
                self.cut(source as usize, After::Stop { code, message, error_id: Some(error_id) });
                Fate::Stopped
            }
            Decision::Dispose(Disposition::Skip) => {
                self.withdraw(source);
                self.dispose(source, fault.code, Fate::Skipped);
                Fate::Skipped
            }
            Decision::Dispose(Disposition::DeadLetter(topic)) => {
                let key = self.items.source.key(source as usize);
                let placed = bench.destinations.route_dead_letter(topic, key, bench.look_up)?;
                self.withdraw(source);
                let sha256 = fault.plugin.as_ref().and_then(|name| bench.plugins.iter().find(|(of, _)| of == name));
                let letter = DeadLetter::new(
                    &*self.items.source,
                    source,
                    placed,
                    (error_id, &fault),
                    sha256.map(|(_, digest)| digest),
                    tried,
                    &bench.origin,
                );
                // (a record that the destination rejects is found after those that plugins refused)
                let place = self.dead.partition_point(|other| other.source < source);
                self.dead.insert(place, letter);
                self.dispose(source, fault.code, Fate::DeadLettered);
                Fate::DeadLettered
            }
        };
        bench.report.fault(self.partition(), offset, error_id, &fault, fate);
        Ok(())
    }

    /// Cuts the unit short before record `at`.
    fn cut(&mut self, at: usize, after: After) {
        self.range.end = at;
        self.after = after;
        self.traces.cut(at);
        self.keep(|source| (source as usize) < at);
    }

    /// In the order of the records, like the dead letters.
    fn dispose(&mut self, source: u32, code: FaultCode, fate: Fate) {
        let place = self.disposed.partition_point(|(other, ..)| *other < source);
        self.disposed.insert(place, (source, code, fate));
    }

    fn withdraw(&mut self, of: u32) {
        self.keep(|source| source != of);
    }

    fn keep(&mut self, keep: impl Fn(u32) -> bool) {
        self.routed.retain(|routed| keep(routed.source));
        self.dead.retain(|dead| keep(dead.source));
        self.disposed.retain(|(source, ..)| keep(*source));
        self.filtered.retain(|(source, _)| keep(*source));
        self.traces.keep(keep);
    }

    fn route(
        &mut self,
        faults: &mut Vec<(u32, Fault)>,
        values: &mut Values,
        bench: &mut Bench<'_>,
    ) -> Result<(), Trouble> {
        let items = Arc::clone(&self.items);
        self.routed.reserve(items.list.len());
        let mut misrouted: Option<u32> = None;
        for index in 0..items.list.len() {
            let item = items.list.at(index);
            if item.source as usize >= self.range.end {
                break;
            }
            if misrouted == Some(item.source) {
                continue;
            }
            let before = self.routed.len();
            match bench.destinations.route(&items, (index, &item), values, bench.look_up, &mut self.routed) {
                Ok(()) if self.routed.len() == before => self.filtered.push((item.source, None)),
                Ok(()) => {}
                Err(Misrouted::Fault(mut fault)) => {
                    // Only a step can have named what cannot be; the last is the one that had the last word.
                    fault.plugin = bench.plugins.last().map(|(name, _)| name.clone());
                    misrouted = Some(item.source);
                    faults.push((item.source, fault));
                }
                Err(Misrouted::Undecided(fault)) => {
                    misrouted = Some(item.source);
                    faults.push((item.source, fault));
                }
                Err(Misrouted::NoCounterpart(message)) => {
                    self.cut(item.source as usize, After::Stop { code: "no_counterpart", message, error_id: None });
                    break;
                }
                Err(Misrouted::Trouble(trouble)) => return Err(trouble),
            }
        }
        Ok(())
    }

    /// Splits off the records from `at` on.
    fn split_off(&mut self, at: usize) -> Self {
        fn off<T>(list: &mut Vec<T>, source: impl Fn(&T) -> u32, at: usize) -> Vec<T> {
            // `filtered` alone is not sorted by source over its steps.
            let (rest, kept) = list.drain(..).partition(|entry| source(entry) as usize >= at);
            *list = kept;
            rest
        }
        Self {
            items: Arc::clone(&self.items),
            range: at..std::mem::replace(&mut self.range.end, at),
            routed: off(&mut self.routed, |routed| routed.source, at),
            dead: off(&mut self.dead, |dead| dead.source, at),
            disposed: off(&mut self.disposed, |(source, ..)| *source, at),
            filtered: off(&mut self.filtered, |(source, _)| *source, at),
            traces: self.traces.split_off(at),
            after: std::mem::replace(&mut self.after, After::Flow),
        }
    }

    /// Tells the spans of its traced records, which are committed now.
    fn trace(&self, committed: &Committed<'_>, tracer: &Tracer) {
        let mut list = Vec::new();
        let dropped = self.traces.tell(tracer.room(), &OfUnit { unit: self, committed }, &mut list);
        if !list.is_empty() || dropped > 0 {
            tracer.take(Spans { route: committed.route.clone(), source: self.partition().clone(), list, dropped });
        }
    }

    fn count(&self, tally: &mut Tally, destinations: &Destinations, plugins: &[(PluginName, Digest)], now_ms: i64) {
        let (source, range) = (&self.items.source, self.range.clone());
        let is_whole = range == (0..source.len());
        let bytes = if is_whole { source.bytes() } else { range.clone().map(|index| source.size(index)).sum() };
        count_ages(range.map(|index| source.timestamp(index)), now_ms, tally);
        add(&mut tally.consumed, &self.partition().topic, [self.range.len() as u64, bytes as u64]);
        let mut produced = vec![[0; 2]; destinations.list().len()];
        for routed in &self.routed {
            let bytes = self.items.size(&self.items.list.at(routed.item as usize));
            let sums: &mut [u64; 2] = &mut produced[routed.destination as usize];
            *sums = [sums[0] + 1, sums[1] + bytes as u64];
        }
        for (sums, destination) in produced.into_iter().zip(destinations.list()).filter(|(sums, _)| sums[0] > 0) {
            add(&mut tally.produced, &destination.name, sums);
        }
        let mut filtered = vec![0; plugins.len() + 1];
        self.filtered.iter().for_each(|(_, step)| filtered[step.map_or(plugins.len(), usize::from)] += 1);
        for (step, sum) in filtered.into_iter().enumerate().filter(|(_, sum)| *sum > 0) {
            add(&mut tally.filtered, &plugins.get(step).map(|(name, _)| name.clone()), [sum]);
        }
        for (_, code, fate) in &self.disposed {
            match fate {
                Fate::DeadLettered => add(&mut tally.dead_letters, code, [1]),
                Fate::Skipped | Fate::Stopped | Fate::Retried(_) => add(&mut tally.skipped, code, [1]),
            }
        }
    }
}

/// What a round was committed under.
pub struct Committed<'a> {
    /// The route.
    pub route: &'a RouteName,
    /// Its destinations.
    pub destinations: &'a Destinations,
    /// Its plugins.
    pub plugins: &'a [(PluginName, Digest)],
    /// Its `on_error`.
    pub policy: &'a OnError,
}

/// A unit, as its spans tell it.
struct OfUnit<'a> {
    unit: &'a Unit,
    committed: &'a Committed<'a>,
}

impl Told for OfUnit<'_> {
    fn received(&self, source: u32) -> Work {
        let place = self.unit.disposed.binary_search_by_key(&source, |(of, ..)| *of);
        let fault = place.ok().map(|place| self.unit.disposed[place].1);
        Work::Receive { offset: self.unit.items.source.offset(source as usize), fault }
    }

    fn plugin(&self, step: u16) -> Option<Work> {
        self.committed.plugins.get(usize::from(step)).map(|(name, _)| Work::Plugin(name.clone()))
    }

    fn sent(&self, item: u32, destination: u16, partition: i32) -> Option<Work> {
        let topic = match &self.committed.destinations.list().get(usize::from(destination))?.target {
            Target::Topic(topic) => topic.clone(),
            Target::Pattern(_) => self.unit.items.list[item as usize].topic.clone()?,
        };
        Some(Work::Send { topic, partition })
    }

    fn dead_letter(&self, source: u32) -> Option<Work> {
        let place = self.unit.dead.binary_search_by_key(&source, |letter| letter.source).ok()?;
        let letter = &self.unit.dead[place];
        let Disposition::DeadLetter(topic) = &self.committed.policy.then else { return None };
        Some(Work::Send { topic: topic.clone(), partition: letter.partition() })
    }
}

/// Counts how old records are, by their timestamps in ms (below 0: it has none). Those that follow each other are of an age, as a rule.
fn count_ages(timestamps: impl Iterator<Item = i64>, now_ms: i64, tally: &mut Tally) {
    let bounds: Vec<i64> = LATENCY_BOUNDS.iter().map(|seconds| (seconds * 1000.0).round() as i64).collect();
    let (mut bucket, mut ages, mut sum) = (0_usize, i64::MIN..=i64::MIN, 0_u64);
    for age in timestamps.filter(|timestamp| *timestamp >= 0).map(|timestamp| (now_ms - timestamp).max(0)) {
        if !ages.contains(&age) {
            bucket = bounds.partition_point(|bound| *bound < age);
            let above = bucket.checked_sub(1).map_or(0, |below| bounds[below] + 1);
            ages = above..=bounds.get(bucket).copied().unwrap_or(i64::MAX);
        }
        tally.latency[bucket] += 1;
        sum += age as u64;
    }
    tally.latency_sum += Duration::from_millis(sum);
}

fn after_halt(why: Halt, attempts: Attempts, source: &dyn SourceBatch, at: usize, policy: &OnError) -> After {
    let offset = source.offset(at);
    let tried = attempts.at(offset) + 1;
    match why {
        Halt::BudgetSpent => After::Flow,
        Halt::Retry { fault, end } => match policy.decide(tried) {
            Decision::RetryAfter(wait) => {
                // (whose fault it is has not been found yet)
                After::Wait { attempts: Attempts { offset, tried, error_id: None }, wait, fault }
            }
            Decision::Dispose(_) => After::Isolate(source.offset(end - 1) + 1),
        },
    }
}

/// The units of one transaction.
#[derive(Default)]
pub struct Round {
    /// In the order in which they were made.
    pub units: Vec<Unit>,
    /// What it takes up of the bounds of a transaction.
    pub size: Room,
    /// When the first of it was ready, for the time that the work took.
    pub since: Option<Instant>,
}

impl Round {
    /// The next offset of every partition.
    pub fn offsets(&self) -> OffsetMap {
        self.units.iter().map(|unit| (unit.partition().clone(), unit.next_offset())).collect()
    }

    /// Adds what follows it.
    pub fn append(&mut self, mut more: Self) {
        self.units.append(&mut more.units);
        self.size += more.size;
        self.since = self.since.or(more.since);
    }

    /// Source records covered.
    pub fn records(&self) -> usize {
        self.units.iter().map(|unit| unit.range.len()).sum()
    }

    /// Forgets what it does for a partition that is no longer ours.
    pub fn drop_partitions(&mut self, gone: &[TopicPartition]) {
        self.units.retain(|unit| !gone.contains(unit.partition()));
    }

    /// Splits off the second half of its records; none where it covers a single one.
    pub fn split_off_half(&mut self) -> Option<Self> {
        let records = self.records();
        if records < 2 {
            return None;
        }
        let mut left = records / 2;
        let mut number = 0;
        while self.units[number].range.len() <= left {
            left -= self.units[number].range.len();
            number += 1;
        }
        let mut units = self.units.split_off(number + usize::from(left > 0));
        if left > 0 {
            let cut = &mut self.units[number];
            let second = cut.split_off(cut.range.start + left);
            units.insert(0, second);
        }
        Some(Self { units, size: self.size, since: self.since })
    }

    /// The unit and the source record of output number `output`, and whether that is a dead letter.
    pub fn locate(&self, mut output: usize) -> Option<(usize, u32, bool)> {
        for (number, unit) in self.units.iter().enumerate() {
            if let Some(routed) = unit.routed.get(output) {
                return Some((number, routed.source, false));
            }
            output -= unit.routed.len();
            if let Some(dead) = unit.dead.get(output) {
                return Some((number, dead.source, true));
            }
            output -= unit.dead.len();
        }
        None
    }

    /// The only record of a round that covers one.
    pub fn single(&self) -> Option<(usize, u32, bool)> {
        (self.records() == 1).then(|| self.units.iter().position(|unit| !unit.is_empty())).flatten().map(|number| {
            let unit = &self.units[number];
            (number, unit.range.start as u32, !unit.dead.is_empty())
        })
    }

    /// Cuts the value of a dead letter that was refused. False where that was done already or would not help.
    pub fn truncate_dead_letter(&mut self, unit: usize, source: u32) -> bool {
        let unit = &mut self.units[unit];
        let items = Arc::clone(&unit.items);
        unit.dead.iter_mut().find(|dead| dead.source == source).is_some_and(|dead| dead.truncate(&*items.source))
    }

    /// Stops the partition of a unit before a record that cannot even be sent to the dead-letter topic.
    pub fn stop_before(&mut self, unit: usize, source: u32, message: String) {
        let code = FaultCode::Rejected.as_str();
        self.units[unit].cut(source as usize, After::Stop { code, message, error_id: None });
    }

    /// Forgets what follows unit `number` in the same partition, once that unit has been cut short.
    pub fn drop_followers(&mut self, number: usize) {
        let partition = self.units[number].partition().clone();
        let mut place = 0;
        self.units.retain(|unit| {
            place += 1;
            place <= number + 1 || *unit.partition() != partition
        });
    }

    /// Tells the spans of its traced records; it is committed now.
    pub fn trace(&self, committed: &Committed<'_>, tracer: &Tracer) {
        self.units.iter().for_each(|unit| unit.trace(committed, tracer));
    }

    /// What it counted, committed now.
    pub fn tally(&self, destinations: &Destinations, plugins: &[(PluginName, Digest)], now_ms: i64) -> Tally {
        let mut tally = Tally { latency: vec![0; LATENCY_BOUNDS.len() + 1], ..Tally::default() };
        self.units.iter().for_each(|unit| unit.count(&mut tally, destinations, plugins, now_ms));
        tally
    }
}

impl Outputs for Round {
    fn len(&self) -> usize {
        self.units.iter().map(Unit::outputs).sum()
    }

    fn for_each(&self, produce: &mut dyn FnMut(Output<'_>) -> ControlFlow<()>) {
        for unit in &self.units {
            for (_, _, output) in unit.sent() {
                if produce(output).is_break() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_age_is_counted_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let now = 1_000_000_000;
        let edges =
            LATENCY_BOUNDS.iter().flat_map(|seconds| [-1, 0, 1].map(|by| (seconds * 1000.0).round() as i64 + by));
        let ages: Vec<i64> = edges.chain([0, 0, 7, 86_400_000]).collect();
        let mut tally = Tally { latency: vec![0; LATENCY_BOUNDS.len() + 1], ..Tally::default() };
        // (the future counts as now, and -1 is no timestamp)
        let timestamps = ages.iter().map(|age| now - age).chain([now + 5, -1]);
        count_ages(timestamps, now, &mut tally);
        let mut expected = vec![0; LATENCY_BOUNDS.len() + 1];
        for age in ages.iter().chain([&0]) {
            let seconds = Duration::from_millis(*age as u64).as_secs_f64();
            expected[LATENCY_BOUNDS.partition_point(|bound| *bound < seconds)] += 1;
        }
        assert_eq!(tally.latency, expected);
        assert_eq!(tally.latency_sum, Duration::from_millis(ages.iter().sum::<i64>() as u64));
    }
}
