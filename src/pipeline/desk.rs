//! What a worker works on records with, apart from its broker: so that the next records can go through the plugins while
//! a transaction is under way.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::chain::{Budget, Processed};
use super::dead_letter::Origin;
use super::destinations::Destinations;
use super::lane::Lane;
use super::pieces::{Done, Piece, cut};
use super::ports::{LookUp, Trouble};
use super::report::Report;
use super::shadow::Shown;
use super::task::{Room, Task};
use super::unit::{After, Bench, Committed, Round, Unit};
use crate::model::{Digest, PluginName, RouteName, SourceBatch, TopicPartition, clock};

/// A worker's lanes and its task.
pub(super) struct Desk<'a> {
    route: &'a RouteName,
    number: u16,
    pub(super) task: &'a mut Task,
    pub(super) plugins: Vec<(PluginName, Digest)>,
    pub(super) destinations: Destinations,
    pub(super) report: &'a mut dyn Report,
    pub(super) lanes: BTreeMap<TopicPartition, Lane>,
    /// CPU time of threads beside the worker's, which is not told yet.
    cpu: Duration,
    /// Bytes that plugins made of each byte, when pieces were processed last.
    growth: f64,
}

/// A round in the making.
struct Draft {
    round: Round,
    /// What it may still take up.
    left: Room,
    /// What the shadow is to see.
    shown: Vec<Shown>,
}

impl<'a> Desk<'a> {
    pub(super) fn new(route: &'a RouteName, number: u16, task: &'a mut Task, report: &'a mut dyn Report) -> Self {
        let (plugins, destinations) = (plugins_of(task), Destinations::new(task.destinations.clone()));
        Self {
            route,
            number,
            task,
            plugins,
            destinations,
            report,
            lanes: BTreeMap::new(),
            cpu: Duration::ZERO,
            growth: 0.0,
        }
    }

    /// From now on it does this. No round of the old task's may be left.
    pub(super) fn swap(&mut self, task: Task) {
        self.task.chain.shutdown();
        *self.task = task;
        self.plugins = plugins_of(self.task);
        self.destinations = Destinations::new(self.task.destinations.clone());
        self.lanes.values_mut().for_each(Lane::renew);
        self.report.taken_up(self.task);
    }

    /// Bytes held by partitions that flow, and by those that stand still.
    pub(super) fn held(&self) -> (usize, usize) {
        let mut held = (0, 0);
        for lane in self.lanes.values() {
            *if lane.flows() { &mut held.0 } else { &mut held.1 } += lane.bytes();
        }
        held
    }

    /// Whether there are records that are in no round yet and may be.
    pub(super) fn has_work(&self) -> bool {
        self.lanes.values().any(|lane| lane.flows() && lane.has_work())
    }

    /// Runs what is held and in no round yet through the chain, into one round that takes up this `room` at most; none where
    /// there is no such record.
    ///
    /// # Errors
    /// A topic cannot be looked up now: nothing is decided, all is to be done again later.
    pub(super) fn process(&mut self, room: Room, look_up: &mut LookUp<'_>) -> Result<Option<Round>, Trouble> {
        let flowing = self.lanes.iter().filter(|(_, lane)| lane.flows() && lane.has_work());
        let partitions: Vec<_> = flowing.map(|(partition, _)| partition.clone()).collect();
        if partitions.is_empty() {
            return Ok(None);
        }
        let bounds = self.task.bounds;
        let mut budget = Budget::of(bounds.processing).making(bounds.bytes);
        let round = Round { since: Some(clock::now()), ..Round::default() };
        let mut draft = Draft { round, left: room, shown: Vec::new() };
        // No partition is always first: one that keeps plugins busy must not starve the others.
        let first = fastrand::usize(0..partitions.len());
        let in_turn = partitions[first..].iter().chain(&partitions[..first]);
        if self.task.chain.sets() > 1 {
            self.process_at_once(in_turn, budget, &mut draft, look_up)?;
        } else {
            for partition in in_turn {
                self.process_lane(partition, &mut budget, &mut draft, look_up)?;
                if budget.is_spent() || draft.left.is_none() {
                    break;
                }
            }
        }
        let Draft { mut round, left, shown } = draft;
        round.size = room.less(left);
        if let Some(shadow) = &self.task.shadow {
            shadow.show(shown);
        }
        for (plugin, usage) in self.task.chain.take_usage() {
            self.report.usage(&plugin, usage);
        }
        // (only now: until here an error leaves all as it was)
        round.units.iter().for_each(|unit| self.take(unit));
        Ok(Some(round))
    }

    fn process_lane(
        &mut self,
        partition: &TopicPartition,
        budget: &mut Budget,
        draft: &mut Draft,
        look_up: &mut LookUp<'_>,
    ) -> Result<(), Trouble> {
        let lane = self.lanes.get(partition).expect("its name was taken from the map");
        let work: Vec<_> = lane.work().map(|(batch, range)| (batch.clone(), range)).collect();
        for (batch, whole) in work {
            if budget.is_spent() {
                return Ok(());
            }
            let Some(range) = within(&*batch, whole, &mut draft.left) else { return Ok(()) };
            let isolate = self.lanes[partition].isolated(&*batch, range.clone());
            let processed = self.task.chain.apply(batch, range.clone(), isolate, *budget);
            *budget = budget.rest();
            if !self.place(partition, processed, range, draft, look_up)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The same for all lanes, by all sets of instances at once: cut into pieces, which are put together again in their order.
    fn process_at_once<'p>(
        &mut self,
        partitions: impl Iterator<Item = &'p TopicPartition>,
        budget: Budget,
        draft: &mut Draft,
        look_up: &mut LookUp<'_>,
    ) -> Result<(), Trouble> {
        // (no more than there will be room for: what is left over was done for nothing)
        let bytes = ((draft.left.bytes as f64 / (1.0 + self.growth)) as usize).max(1);
        let pieces = self.pieces(partitions, Room { bytes, ..draft.left });
        let Done { processed, cpu } = self.task.chain.apply_each(&pieces, budget, draft.left.bytes);
        self.cpu += cpu;
        let (mut read, mut made) = (0, 0);
        // What follows a record that stops or waits is done again, once that is.
        let mut cut_short = None;
        for (Piece { batch, range, bytes, .. }, processed) in pieces.into_iter().zip(processed) {
            let partition = batch.topic_partition();
            if cut_short.as_ref() == Some(partition) {
                continue;
            }
            draft.left = draft.left.less(Room { records: range.len(), bytes });
            (read, made) = (read + bytes, made + processed.bytes_made());
            if !self.place(partition, processed, range, draft, look_up)? {
                cut_short = Some(partition.clone());
            }
        }
        self.growth = made as f64 / read.max(1) as f64;
        Ok(())
    }

    /// What these lanes have to do, as far as `left` goes, lane after lane.
    fn pieces<'p>(&self, partitions: impl Iterator<Item = &'p TopicPartition>, mut left: Room) -> Vec<Piece> {
        let work = partitions.flat_map(|partition| {
            let lane = &self.lanes[partition];
            lane.work().map(move |(batch, whole)| (lane, batch, whole))
        });
        let work: Vec<_> =
            work.map_while(|(lane, batch, whole)| Some((lane, batch, within(&**batch, whole, &mut left)?))).collect();
        let most = self.task.chain.records_of_a_piece(work.iter().map(|(.., range)| range.len()).sum());
        let piece = |lane: &Lane, batch: &Arc<dyn SourceBatch>, range: Range<usize>| Piece {
            batch: Arc::clone(batch),
            bytes: range.clone().map(|index| batch.size(index)).sum(),
            isolate: lane.isolated(&**batch, range.clone()),
            range,
        };
        let pieces = work
            .into_iter()
            .flat_map(|(lane, batch, range)| cut(range, most).map(move |range| piece(lane, batch, range)));
        pieces.collect()
    }

    /// Makes a unit of what the chain has made of these records, behind what the round has of their partition. Whether what
    /// follows them may come next.
    fn place(
        &mut self,
        partition: &TopicPartition,
        processed: Processed,
        range: Range<usize>,
        draft: &mut Draft,
        look_up: &mut LookUp<'_>,
    ) -> Result<bool, Trouble> {
        let lane = &self.lanes[partition];
        let (attempts, end) = (lane.attempts, range.end);
        // What plugins make is held as well, until it is committed.
        draft.left.bytes = draft.left.bytes.saturating_sub(processed.bytes_made());
        let halted = processed.halt.is_some();
        let faults = self.task.shadow.as_ref().map(|_| processed.faults.clone());
        let unit = Unit::build(processed, range, attempts, &mut self.bench(look_up))?;
        draft.shown.extend(faults.map(|faults| unit.shown(faults)));
        let complete = unit.range.end == end && unit.after == After::Flow && !halted;
        match draft.round.units.last_mut().filter(|preceding| preceding.partition() == partition) {
            _ if !unit.is_empty() => draft.round.units.push(unit),
            // What precedes it comes first: until that is committed, its own tries are what the lane has to count.
            Some(preceding) => preceding.after = unit.after,
            None => self.lanes.get_mut(partition).expect("its name was taken from the map").decide(unit.after),
        }
        Ok(complete)
    }

    /// CPU time of threads beside this one since this was last asked.
    pub(super) fn take_cpu(&mut self) -> Duration {
        std::mem::take(&mut self.cpu)
    }

    /// The unit's records are in a round from now on.
    pub(super) fn take(&mut self, unit: &Unit) {
        if let Some(lane) = self.lanes.get_mut(unit.partition()) {
            lane.take(unit.next_offset(), unit.after == After::Flow);
        }
    }

    /// Tells the spans of a round that is committed, where there is a collector.
    pub(super) fn trace(&self, round: &Round) {
        let tracer = self.task.chain.tracer();
        if tracer.is_on() {
            let (destinations, policy) = (&self.destinations, &self.task.on_error);
            round.trace(&Committed { route: self.route, destinations, plugins: &self.plugins, policy }, tracer);
        }
    }

    /// What units are judged with.
    pub(super) fn bench<'b>(&'b mut self, look_up: &'b mut LookUp<'b>) -> Bench<'b> {
        Bench {
            policy: &self.task.on_error,
            destinations: &mut self.destinations,
            look_up,
            report: &mut *self.report,
            origin: Origin { route: self.route.as_str(), worker: self.number, generation: self.task.generation },
            plugins: &self.plugins,
            tap: self.task.chain.tap(),
        }
    }
}

fn plugins_of(task: &Task) -> Vec<(PluginName, Digest)> {
    task.chain.plugins().map(|(name, digest)| (name.clone(), *digest)).collect()
}

/// As many records of `range` as `left` allows, which is then less; at least one, or none at all where nothing is left.
fn within(batch: &dyn SourceBatch, range: Range<usize>, left: &mut Room) -> Option<Range<usize>> {
    if left.is_none() {
        return None;
    }
    let all = Room { records: batch.len(), bytes: batch.bytes() };
    if range.len() == all.records && all.records <= left.records && all.bytes <= left.bytes {
        *left = left.less(all);
        return Some(range);
    }
    let mut end = range.start;
    while end < range.end && left.records > 0 {
        let size = batch.size(end);
        if size > left.bytes && end > range.start {
            left.bytes = 0;
            break;
        }
        *left = left.less(Room { records: 1, bytes: size });
        end += 1;
    }
    Some(range.start..end)
}
