//! A route's plugins in order, over the records of one batch.
//!
//! A call that fails as a whole is halved until the records that fail alone are found; a plugin promises the same result
//! whatever the batch borders are, which makes that legitimate. Nothing here knows what a fault leads to: that is the
//! error policy's, in [`super::unit`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pieces::{self, Done, Piece};
use super::ports::{CallError, CallOutput, Step, Usage, Verdict};
use super::tap::{Stage, Tap};
use super::task::Stop;
use super::traces::Traces;
use crate::model::{Fault, FaultCode, Item, Items, PluginName, SourceBatch, clock};
use crate::policy::{Condition, Values};
use crate::telemetry::Tracer;

/// The plugins of one route, with instances that belong to one worker: one set of them, or several that share the work.
pub struct Chain {
    links: Vec<Link>,
    /// Most items of one call.
    records: usize,
    /// Most bytes of values in one call; one item may be larger.
    bytes: usize,
    spare: Vec<Item>,
    stop: Stop,
    tap: Tap,
    tracer: Tracer,
    /// The same plugins with other instances, to be at work at the same time.
    twins: Vec<Chain>,
}

struct Link {
    step: Box<dyn Step>,
    /// Guest CPU time for one item.
    timeout: Duration,
    /// Most items of a call now: halved by a call that ran out of time, doubled by one that did not.
    calls_of: usize,
    /// Only items for which it holds go through the step.
    when: Option<Condition>,
}

/// What a chain made of some records of a batch.
#[derive(Debug)]
pub struct Processed {
    /// What is left to be sent, in the order of the source records.
    pub items: Items,
    /// Records at fault, ascending by index in the batch, each once.
    pub faults: Vec<(u32, Fault)>,
    /// Items that ended in a step, dropped with nothing emitted from them: of which source record, in which step.
    pub filtered: Vec<(u32, u16)>,
    /// The first record that was not processed to the end, and why; all before it were.
    pub halt: Option<(usize, Halt)>,
    /// What conditions have parsed, for those that follow.
    pub values: Values,
    /// The traces that records belong to.
    pub traces: Traces,
}

/// Why a chain stopped before the end of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Halt {
    /// The processing budget is spent.
    BudgetSpent,
    /// A plugin asks to be given the record again later.
    Retry {
        /// Why.
        fault: Fault,
        /// Where the records end that it was given with it: any of them may be the one that it asks for.
        end: usize,
    },
}

/// The time that plugin work on one transaction may take, by the wall clock: it guards the poll interval. And the bytes
/// that each plugin may make of a batch, which guard the memory.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    deadline: Instant,
    bytes: usize,
    /// Whether the first record gets its time in any case.
    is_fresh: bool,
}

impl Budget {
    /// `total` from now.
    pub fn of(total: Duration) -> Self {
        Self { deadline: clock::now() + total, bytes: usize::MAX, is_fresh: true }
    }

    /// The same, and each plugin makes at most so many `bytes` of a batch, and what one more call makes.
    pub fn making(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// Whether nothing is left.
    pub fn is_spent(&self) -> bool {
        self.left().is_zero()
    }

    /// What is left of it, for other records: none of them has to be done within it.
    pub fn rest(self) -> Self {
        Self { is_fresh: false, ..self }
    }

    /// For the first of so many steps, of which each is to come to its turn.
    fn part(self, steps: usize) -> Self {
        Self { deadline: clock::now() + self.left() / u32::try_from(steps).unwrap_or(u32::MAX), ..self }
    }

    /// Whether it was spent this long ago.
    fn is_spent_since(&self, time: Duration) -> bool {
        self.deadline + time <= clock::now()
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(clock::now())
    }
}

impl Chain {
    /// Steps in order with the CPU time each may use for one record; the bounds of one call.
    pub fn new(steps: Vec<(Box<dyn Step>, Duration)>, records: usize, bytes: usize) -> Self {
        let records = records.max(1);
        let links = steps.into_iter().map(|(step, timeout)| Link { step, timeout, calls_of: records, when: None });
        let links = links.collect();
        let (stop, tap, tracer) = Default::default();
        Self { links, records, bytes, spare: Vec::new(), stop, tap, tracer, twins: Vec::new() }
    }

    /// Chains of the same plugins, with instances of their own, which process records at the same time. From now on what is
    /// said to this chain is said to them.
    pub fn share_with(&mut self, twins: Vec<Self>) {
        self.twins = twins;
    }

    /// How many sets of instances there are: this chain's, and its twins'.
    pub fn sets(&self) -> usize {
        1 + self.twins.len()
    }

    /// Gives each step its condition, in order.
    pub fn only_when(&mut self, conditions: impl Iterator<Item = Option<Condition>>) {
        self.links.iter_mut().zip(conditions).for_each(|(link, when)| link.when = when);
    }

    /// Ends what it is at once `stop` is set, as if its time were over.
    pub fn heed(&mut self, stop: &Stop) {
        self.stop = stop.clone();
        self.links.iter_mut().for_each(|link| link.step.heed(stop));
        self.twins.iter_mut().for_each(|twin| twin.heed(stop));
    }

    /// Shows what passes to who listens there.
    pub fn show(&mut self, tap: &Tap) {
        self.tap = tap.clone();
        self.twins.iter_mut().for_each(|twin| twin.show(tap));
    }

    /// Where what passes is shown.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// Continues the traces of records, and tells their spans there.
    pub fn trace(&mut self, tracer: &Tracer) {
        self.tracer = tracer.clone();
        self.twins.iter_mut().for_each(|twin| twin.trace(tracer));
    }

    /// Where spans are told.
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Whether, and by when, the worker is to end.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// The plugins in order, with the digests of their bytes.
    pub fn plugins(&self) -> impl Iterator<Item = (&PluginName, &crate::model::Digest)> {
        self.links.iter().map(|link| (link.step.plugin(), link.step.sha256()))
    }

    /// What each step has used since the last time this was asked, that of the twins included.
    pub fn take_usage(&mut self) -> impl Iterator<Item = (PluginName, Usage)> + '_ {
        let Self { links, twins, .. } = self;
        links.iter_mut().enumerate().map(|(place, link)| {
            let mut usage = link.step.take_usage();
            twins.iter_mut().for_each(|twin| usage += twin.links[place].step.take_usage());
            (link.step.plugin().clone(), usage)
        })
    }

    /// Runs the records `range` of `source` through every step.
    ///
    /// A plugin that asks for a retry has had its retries on the records before index `isolate`; those of them that ask
    /// alone are at fault as `unavailable`.
    pub fn apply(
        &mut self,
        source: Arc<dyn SourceBatch>,
        range: Range<usize>,
        isolate: usize,
        budget: Budget,
    ) -> Processed {
        let is_traced = self.tracer.is_on();
        let traces = if is_traced { Traces::of(&*source, range.clone()) } else { Traces::default() };
        self.pass(Items::of(source, range), traces, isolate, budget)
    }

    /// Runs pieces through the chain and its twins at the same time. What is told of each is as [`Chain::apply`] would tell it; see
    /// [`pieces::process`].
    pub(super) fn apply_each(&mut self, pieces: &[Piece], budget: Budget, bytes: usize) -> Done {
        let mut twins = std::mem::take(&mut self.twins);
        let chains: Vec<&mut Self> = std::iter::once(&mut *self).chain(&mut twins).collect();
        // (all of them together make as much as one would)
        let each = budget.making(bytes / chains.len());
        let done = pieces::process(chains, pieces, each, bytes);
        self.twins = twins;
        done
    }

    /// How many records a piece is to have, of so many in all.
    pub(super) fn records_of_a_piece(&self, records: usize) -> usize {
        pieces::records_each(records, self.sets(), self.records)
    }

    /// The same for items that are made already.
    fn pass(&mut self, items: Items, traces: Traces, isolate: usize, budget: Budget) -> Processed {
        let done = Processed {
            items,
            faults: Vec::new(),
            filtered: Vec::new(),
            halt: None,
            values: Values::default(),
            traces,
        };
        let mut run = Run {
            first: if done.items.list.is_empty() { 0 } else { done.items.list.at(0).source },
            done,
            passing: VecDeque::new(),
            kept: 0,
            isolate,
            budget,
            part: budget,
            records: self.records,
            bytes: self.bytes,
            made: 0,
            stop: self.stop.clone(),
        };
        let steps = self.links.len();
        let shown = self.tap.is_open();
        if shown {
            self.tap.items(Stage::Source, None, &run.done.items, &[]);
        }
        for (number, link) in (0u16..).zip(&mut self.links) {
            run.part = budget.part(steps - usize::from(number));
            let before = run.done.filtered.len();
            run.step(number, link, &mut self.spare);
            if shown {
                let gone: Vec<u32> = run.done.filtered.iter().skip(before).map(|(source, _)| *source).collect();
                self.tap.items(Stage::Step, Some(link.step.plugin()), &run.done.items, &gone);
            }
        }
        if shown {
            self.tap.items(Stage::Output, None, &run.done.items, &[]);
        }
        run.done
    }

    /// Runs all records of a batch, of which `processing` is for as many as one transaction would hold. One that a plugin asks to
    /// be given again later has had its retries: it is at fault.
    pub fn apply_all(&mut self, source: &Arc<dyn SourceBatch>, processing: Duration) -> Vec<Processed> {
        let (mut done, mut from) = (Vec::new(), 0);
        while from < source.len() {
            let (processed, end) = self.apply_some(source, from..source.len(), |_| true, Budget::of(processing));
            done.push(processed);
            from = end;
        }
        done
    }

    /// Runs those of these records that `is_meant` names, as far as the budget goes; up to where that is. One that a plugin asks
    /// to be given again later is at fault.
    pub fn apply_some(
        &mut self,
        source: &Arc<dyn SourceBatch>,
        range: Range<usize>,
        is_meant: impl Fn(usize) -> bool,
        budget: Budget,
    ) -> (Processed, usize) {
        let end = range.end;
        let mut items = Items::of(Arc::clone(source), range);
        items.list.retain(|item| is_meant(item.source as usize));
        let mut processed = self.pass(items, Traces::default(), source.len(), budget);
        let end = match processed.halt.take() {
            Some((index, Halt::BudgetSpent)) => index,
            Some((index, Halt::Retry { fault, .. })) => {
                processed.faults.push((u32::try_from(index).unwrap_or(u32::MAX), fault));
                index + 1
            }
            None => end,
        };
        (processed, end)
    }

    /// Ends all instances in good order.
    pub fn shutdown(&mut self) {
        self.links.iter_mut().for_each(|link| link.step.shutdown());
        self.twins.iter_mut().for_each(Self::shutdown);
    }
}

impl Processed {
    /// Bytes that plugins made.
    pub(super) fn bytes_made(&self) -> usize {
        self.items.chunks.iter().map(Vec::capacity).sum()
    }
}

/// What the budget grants to a call.
enum Grant {
    Cpu(Duration),
    /// Nothing to several items, but their first may be owed its time.
    OneByOne,
    /// The item's record has had more than it was owed.
    Overrun,
    Nothing,
}

/// One passage of some records through the chain.
struct Run {
    done: Processed,
    /// Items that go past the present step: each with the number of those before it that go through.
    passing: VecDeque<(usize, Item)>,
    /// How many of the step's items, from the first on, all go on as they are: a filter that drops none moves none.
    kept: usize,
    /// The first source record of all.
    first: u32,
    isolate: usize,
    budget: Budget,
    /// What of the budget is for the present step.
    part: Budget,
    records: usize,
    bytes: usize,
    /// Bytes in the chunks when the present step began.
    made: usize,
    stop: Stop,
}

impl Run {
    fn step(&mut self, number: u16, link: &mut Link, out: &mut Vec<Item>) {
        out.clear();
        // What an earlier step could not get to is gone from the list already: the others go on through this step.
        let earlier_halt = self.done.halt.take();
        let faults_before = self.done.faults.len();
        self.made = self.done.bytes_made();
        self.kept = 0;
        self.set_aside(link);
        self.done.traces.enter(number, &self.done.items.list);
        let mut at = 0;
        while at < self.done.items.list.len() && self.done.halt.is_none() {
            let end = self.call_end(at, link.calls_of);
            self.call(number, link, at..end, out);
            at = end;
        }
        self.done.traces.leave();
        if self.kept < self.done.items.list.len() || !self.passing.is_empty() {
            self.move_kept(out);
            self.let_pass(usize::MAX, out);
            std::mem::swap(&mut *self.done.items.list, out);
        }
        if self.done.faults.len() > faults_before || self.done.halt.is_some() {
            self.withdraw();
        }
        self.done.halt = self.done.halt.take().or(earlier_halt);
    }

    /// Takes out the items for which the step's condition does not hold.
    fn set_aside(&mut self, link: &Link) {
        let Some(when) = &link.when else { return };
        let list = std::mem::take(&mut *self.done.items.list);
        let mut through = Vec::with_capacity(list.len());
        for item in list {
            match when.holds(&self.done.items, &item, &mut self.done.values) {
                Ok(true) => through.push(item),
                Ok(false) => self.passing.push_back((through.len(), item)),
                Err(why) => {
                    let message = format!("`when` of plugin {}: {why}", link.step.plugin());
                    self.push_fault(item.source, Fault { code: FaultCode::Refused, message, plugin: None });
                }
            }
        }
        *self.done.items.list = through;
    }

    /// Lets those go on that go past the step and stand before item `index` of those that go through.
    fn let_pass(&mut self, index: usize, out: &mut Vec<Item>) {
        while let Some((_, item)) = self.passing.pop_front_if(|(before, _)| *before <= index) {
            out.push(item);
        }
    }

    /// Where a call that begins at item `start` ends: within the bounds of items and bytes, at least one item.
    fn call_end(&self, start: usize, calls_of: usize) -> usize {
        let items = &self.done.items;
        let most = items.list.len().min(start + calls_of.min(self.records));
        let mut bytes = 0;
        for index in start..most {
            bytes += items.value(&items.list.at(index)).map_or(0, <[u8]>::len);
            if bytes > self.bytes && index > start {
                return index;
            }
        }
        most
    }

    /// Calls the plugin on the items `range`, halving where the call fails as a whole.
    fn call(&mut self, number: u16, link: &mut Link, range: Range<usize>, out: &mut Vec<Item>) {
        if range.len() == 1 && self.is_at_fault(range.start) {
            return;
        }
        let cpu = match self.grant(link, &range) {
            Grant::Cpu(cpu) => cpu,
            Grant::Nothing => return self.halt(range.start, Halt::BudgetSpent),
            Grant::OneByOne | Grant::Overrun => {
                let message =
                    "what was made of it took too long: `processing_timeout` is over, and two `timeout`s more";
                return self.halve(number, link, range, FaultCode::TimedOut, message.to_owned(), out);
            }
        };
        match link.step.call(&mut self.done.items, range.clone(), cpu) {
            // It may have been cut off: nobody is to blame.
            Err(_) if self.stop.is_set() => self.halt(range.start, Halt::BudgetSpent),
            Ok(output) => {
                link.calls_of = (link.calls_of * 2).min(self.records);
                self.merge(number, link.step.plugin(), range, output, out);
            }
            Err(CallError::Retry(message)) if self.source_of(range.start) >= self.isolate => {
                let fault = self.fault(link, FaultCode::Unavailable, message);
                let end = self.source_of(range.end - 1) + 1;
                self.halt(range.start, Halt::Retry { fault, end });
            }
            Err(CallError::Retry(message)) => self.halve(number, link, range, FaultCode::Unavailable, message, out),
            Err(CallError::Fault { code, message }) => {
                if code == FaultCode::TimedOut {
                    link.calls_of = (range.len() / 2).max(1);
                }
                self.halve(number, link, range, code, message, out);
            }
        }
    }

    fn halve(
        &mut self,
        number: u16,
        link: &mut Link,
        range: Range<usize>,
        code: FaultCode,
        message: String,
        out: &mut Vec<Item>,
    ) {
        if range.len() == 1 {
            let source = self.done.items.list.at(range.start).source;
            let fault = self.fault(link, code, message);
            return self.push_fault(source, fault);
        }
        let middle = range.start + range.len() / 2;
        self.call(number, link, range.start..middle, out);
        if self.done.halt.is_none() {
            self.call(number, link, middle..range.end, out);
        }
    }

    /// The guest CPU time for a call, where the budget leaves room for it.
    ///
    /// A call of several items gets at most a quarter of what is left, so that a looping record can be found by halving
    /// within one budget. A single item always gets its whole timeout: only then is `timed_out` a true verdict; so it is
    /// not begun with less left, unless nothing before it is complete and there would be no progress otherwise. Even that
    /// has an end, since a plugin may make many items of one record, each with a time of its own.
    fn grant(&self, link: &Link, range: &Range<usize>) -> Grant {
        let nothing_complete = self.budget.is_fresh && self.done.items.list.at(range.start).source == self.first;
        if self.stop.is_set() || (!nothing_complete && self.done.bytes_made() - self.made > self.budget.bytes) {
            return Grant::Nothing;
        }
        let left = self.part.left();
        let items = u32::try_from(range.len()).unwrap_or(u32::MAX);
        let whole = link.timeout.saturating_mul(items);
        match (items, nothing_complete) {
            (1, true) if self.budget.is_spent_since(link.timeout) => Grant::Overrun,
            (1, true) => Grant::Cpu(whole),
            (1, false) if left >= link.timeout => Grant::Cpu(whole),
            (1, false) => Grant::Nothing,
            (_, _) if !left.is_zero() => Grant::Cpu(whole.min(left / 4).max(Duration::from_millis(1))),
            (_, true) => Grant::OneByOne,
            (_, false) => Grant::Nothing,
        }
    }

    fn is_at_fault(&self, index: usize) -> bool {
        let source = self.done.items.list.at(index).source;
        self.done.faults.binary_search_by_key(&source, |(of, _)| *of).is_ok()
    }

    fn merge(
        &mut self,
        number: u16,
        plugin: &PluginName,
        range: Range<usize>,
        output: CallOutput,
        out: &mut Vec<Item>,
    ) {
        let CallOutput { verdicts, mut emitted, reasons } = output;
        debug_assert_eq!(verdicts.len(), range.len(), "the plugin host checks the count");
        let all_pass = emitted.is_empty() && verdicts.iter().all(|verdict| *verdict == Verdict::Pass);
        if all_pass && self.passing.is_empty() && self.kept == range.start {
            self.kept = range.end;
            return;
        }
        self.move_kept(out);
        if !emitted.is_sorted_by_key(|(position, _)| *position) {
            emitted.sort_by_key(|(position, _)| *position);
        }
        let mut emitted = emitted.into_iter().peekable();
        for (position, (index, verdict)) in range.zip(verdicts).enumerate() {
            let made_from = |(of, _): &(u32, Item)| *of as usize == position;
            self.let_pass(index, out);
            match verdict {
                Verdict::Pass => out.push(std::mem::take(&mut self.done.items.list[index])),
                Verdict::Drop if emitted.peek().is_some_and(made_from) => {}
                Verdict::Drop => self.done.filtered.push((self.done.items.list[index].source, number)),
                Verdict::Refuse => {
                    let reason = reasons.iter().find(|(of, _)| *of as usize == position).map(|(_, text)| text.as_str());
                    let message = reason.unwrap_or("the plugin refused this record and gave no reason").to_owned();
                    let fault = Fault { code: FaultCode::Refused, message, plugin: Some(plugin.clone()) };
                    self.push_fault(self.done.items.list[index].source, fault);
                }
            }
            while let Some((_, item)) = emitted.next_if(made_from) {
                out.push(item);
            }
        }
    }

    /// Those that were kept in place join those that go on.
    fn move_kept(&mut self, out: &mut Vec<Item>) {
        let kept = std::mem::take(&mut self.kept);
        out.extend(self.done.items.list[..kept].iter_mut().map(std::mem::take));
    }

    fn fault(&self, link: &Link, code: FaultCode, message: String) -> Fault {
        Fault { code, message, plugin: Some(link.step.plugin().clone()) }
    }

    /// Notes the fault of a source record; of several, the first counts.
    fn push_fault(&mut self, source: u32, fault: Fault) {
        if let Err(place) = self.done.faults.binary_search_by_key(&source, |(of, _)| *of) {
            self.done.faults.insert(place, (source, fault));
        }
    }

    /// The source record of an item.
    fn source_of(&self, index: usize) -> usize {
        self.done.items.list.at(index).source as usize
    }

    fn halt(&mut self, index: usize, why: Halt) {
        self.done.halt = Some((self.source_of(index), why));
    }

    /// Takes out the items of records at fault, and of all from the halt on.
    fn withdraw(&mut self) {
        let Processed { items, faults, halt, .. } = &mut self.done;
        let end = halt.as_ref().map_or(usize::MAX, |(source, _)| *source);
        faults.retain(|(source, _)| (*source as usize) < end);
        items.list.retain(|item| {
            (item.source as usize) < end && faults.binary_search_by_key(&item.source, |(of, _)| *of).is_err()
        });
    }
}
