//! What a worker does while a transaction is under way: what comes meanwhile becomes a part of it, until it is sealed.

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use millrace::model::{Digest, FaultCode, Items, Offset, OffsetMap, PluginName, RouteName, TopicName, TopicPartition};
use millrace::pipeline::chain::Chain;
use millrace::pipeline::ports::{
    Broker, CallError, CallOutput, Event, Fetch, Flight, Flown, Outcome, Outputs, Step, TopicError, TopicInfo, Trouble,
    TroubleKind, Usage, Verdict,
};
use millrace::pipeline::task::Task;
use millrace::pipeline::worker::{Exit, Order, RouteWorker};
use millrace::policy::{OnError, Retry};

use crate::bounds::slow;
use crate::support::memory_batch::{MemoryBatch, MemoryRecord};
use crate::support::{record_loop, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);
const MS: Duration = Duration::from_millis(1);

/// What a fetch under way comes to.
enum Comes {
    /// So many records.
    Records(usize),
    /// So many records, once the outputs of those before are on their way.
    Later(usize),
    /// The partition is revoked, once the transaction has ended.
    Revoke,
    /// An order.
    Order,
}

/// A broker whose transactions are under way on a thread of their own.
struct Threaded {
    /// What the first poll, and each fetch under way, comes to.
    script: VecDeque<Comes>,
    next: Offset,
    assigned: bool,
    /// What transactions come to; committed when there is none left.
    outcomes: VecDeque<Outcome>,
    end: Offset,
    told: Arc<Mutex<Vec<Transaction>>>,
    orders: Sender<Order>,
    /// What was produced by a transaction whose commit is under way, up to where.
    landing: Option<(usize, OffsetMap)>,
    /// Which transactions, by where they begin, were begun before the last was committed.
    overlapping: Arc<Mutex<Vec<Offset>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Transaction {
    outputs: usize,
    offset: Offset,
    took: Duration,
}

fn at() -> TopicPartition {
    TopicPartition { topic: TopicName::new("source").unwrap(), partition: 0 }
}

impl Threaded {
    fn records(&mut self, count: usize) -> Event {
        let record = |offset| MemoryRecord { offset, ..MemoryRecord::of_value(offset.to_string()) };
        let from = self.next;
        self.next += count as Offset;
        Event::Records(MemoryBatch::new("source", 0, (from..self.next).map(record).collect()))
    }

    fn end(&mut self, began: Instant, outputs: usize, offsets: &OffsetMap) -> Outcome {
        let offset = offsets[&at()];
        self.told.lock().unwrap().push(Transaction { outputs, offset, took: began.elapsed() });
        let outcome = self.outcomes.pop_front().unwrap_or(Outcome::Committed { lost: 0 });
        if matches!(outcome, Outcome::Committed { .. }) && offset >= self.end {
            let _ = self.orders.send(Order::Drain { leave: false, within: PATIENCE });
        }
        outcome
    }
}

fn count(outputs: &dyn Outputs) -> usize {
    count_with(outputs, || {})
}

/// `acknowledged` is called whenever there is nothing more to hand out.
fn count_with(outputs: &dyn Outputs, acknowledged: impl Fn()) -> usize {
    let mut count = 0;
    loop {
        outputs.for_each(&mut |_| {
            count += 1;
            ControlFlow::Continue(())
        });
        acknowledged();
        if !outputs.close() {
            return count;
        }
    }
}

impl Broker for Threaded {
    fn poll(&mut self, _: Duration, _: usize, events: &mut Vec<Event>) {
        if !std::mem::replace(&mut self.assigned, true) {
            events.push(Event::Assigned(vec![at()]));
            if let Some(Comes::Records(count)) = self.script.pop_front() {
                events.push(self.records(count));
            }
        }
    }
    fn pause(&mut self, _: &[TopicPartition]) {}
    fn resume(&mut self, _: &[TopicPartition]) {}
    fn topic(&mut self, _: &TopicName) -> Result<TopicInfo, TopicError> {
        Ok(TopicInfo { slot: 0, partitions: 1 })
    }
    fn transact(&mut self, outputs: &dyn Outputs, offsets: &OffsetMap) -> Outcome {
        assert!(self.landing.is_none(), "a transaction beside a commit");
        self.end(Instant::now(), count(outputs), offsets)
    }
    fn land(&mut self) -> Option<Outcome> {
        let (outputs, offsets) = self.landing.take()?;
        Some(self.end(Instant::now(), outputs, &offsets))
    }
    fn transact_while(&mut self, work: &dyn Flight, meanwhile: &mut dyn FnMut(&mut dyn Fetch)) -> Flown {
        if let Some((_, offsets)) = &self.landing {
            assert!(self.orders.is_empty(), "an order has to wait");
            self.overlapping.lock().unwrap().push(offsets[&at()]);
        }
        let (ended, began) = (AtomicBool::new(false), Instant::now());
        let (on_their_way, have_come) = (AtomicBool::new(false), AtomicBool::new(false));
        let outputs = std::thread::scope(|scope| {
            // (those that come later come now)
            let comes_later = self.script.iter().any(|comes| matches!(comes, Comes::Later(_)));
            have_come.store(!comes_later, SeqCst);
            let (ended, began, on_their_way, have_come) = (&ended, &began, &on_their_way, &have_come);
            let thread = scope.spawn(move || {
                let outputs = count_with(work.outputs(), || {
                    on_their_way.store(true, SeqCst);
                    wait_until(PATIENCE, "more has come", || have_come.load(SeqCst));
                });
                ended.store(true, SeqCst);
                (outputs, began.elapsed())
            });
            meanwhile(&mut UnderWay { broker: self, ended, on_their_way, have_come });
            thread.join().unwrap()
        });
        let before = self.land();
        if before.as_ref().is_some_and(|outcome| !matches!(outcome, Outcome::Committed { .. })) {
            return Flown { this: before.clone(), before };
        }
        if work.flies_on() {
            self.landing = Some((outputs.0, work.offsets()));
            return Flown { before, this: None };
        }
        Flown { before, this: Some(self.end(Instant::now() - outputs.1, outputs.0, &work.offsets())) }
    }
    fn settle(&mut self, _: &OffsetMap) -> Outcome {
        unreachable!("nothing is unknown here")
    }
    fn close(&mut self, _: bool, _: Duration) {}
}

struct UnderWay<'a> {
    broker: &'a mut Threaded,
    ended: &'a AtomicBool,
    on_their_way: &'a AtomicBool,
    /// Nothing more comes.
    have_come: &'a AtomicBool,
}

impl Fetch for UnderWay<'_> {
    fn fetch(&mut self, _: Duration, _: usize, events: &mut Vec<Event>) {
        if matches!(self.broker.script.front(), Some(Comes::Later(_))) && !self.on_their_way.load(SeqCst) {
            return;
        }
        match self.broker.script.pop_front() {
            // (what came with the call before has been added since)
            None => self.have_come.store(true, SeqCst),
            Some(Comes::Records(0)) => {}
            Some(Comes::Later(count)) => events.push(self.broker.records(count)),
            Some(Comes::Records(count)) => events.push(self.broker.records(count)),
            Some(Comes::Order) => self.broker.orders.send(Order::Resume).unwrap(),
            Some(Comes::Revoke) => {
                while !self.has_ended() {
                    std::thread::yield_now();
                }
                events.push(Event::Revoked(vec![at()]));
            }
        }
    }
    fn has_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }
}

/// The transactions of a worker to whom this comes, until the offset `end` is committed.
fn transactions(script: Vec<Comes>, outcomes: Vec<Outcome>, end: Offset, task: &mut Task) -> Vec<Transaction> {
    overlapping(script, outcomes, end, task).0
}

/// The same, and which of them were begun before the last was committed.
fn overlapping(
    script: Vec<Comes>,
    outcomes: Vec<Outcome>,
    end: Offset,
    task: &mut Task,
) -> (Vec<Transaction>, Vec<Offset>) {
    let (orders, mailbox) = unbounded();
    let (told, begun) = (Arc::default(), Arc::default());
    let (script, outcomes) = (script.into(), outcomes.into());
    let (told_of, overlapping) = (Arc::clone(&told), Arc::clone(&begun));
    let (next, assigned, landing) = (0, false, None);
    let broker = Threaded { script, next, assigned, outcomes, end, told: told_of, orders, landing, overlapping };
    let route = RouteName::new("r").unwrap();
    let (mut paused, mut report) = (false, record_loop::Quiet);
    let worker = RouteWorker::new(broker, &route, 0, task, &mut paused, &mailbox, &mut report);
    assert_eq!(worker.run(), Exit::Drained);
    let (told, begun) = (told.lock().unwrap(), begun.lock().unwrap());
    (told.clone(), begun.clone())
}

/// Of each, how many outputs and up to where.
fn sizes(transactions: &[Transaction]) -> Vec<(usize, Offset)> {
    transactions.iter().map(|transaction| (transaction.outputs, transaction.offset)).collect()
}

#[test]
fn records_that_come_while_a_transaction_is_under_way_are_committed_with_it() {
    let script = vec![Comes::Records(1), Comes::Records(2), Comes::Records(3)];
    assert_eq!(sizes(&transactions(script, vec![], 6, &mut record_loop::task(&[]))), [(6, 6)]);
}

#[test]
fn a_transaction_of_a_thin_flow_ends_as_soon_as_nothing_more_is_there() {
    let script = vec![Comes::Records(1), Comes::Records(0)];
    let told = transactions(script, vec![], 1, &mut record_loop::task(&[]));
    assert_eq!(sizes(&told), [(1, 1)]);
    // (well before it would for want of work)
    assert!(told[0].took < 10 * MS, "{told:?}");
}

#[test]
fn records_that_come_while_the_first_of_a_thin_flow_are_on_their_way_are_committed_with_them() {
    let script = vec![Comes::Records(1), Comes::Records(0), Comes::Later(2), Comes::Later(1)];
    assert_eq!(sizes(&transactions(script, vec![], 4, &mut record_loop::task(&[]))), [(4, 4)]);
}

#[test]
fn a_transaction_takes_no_more_than_its_bounds_and_what_is_left_follows_in_the_next() {
    let script = vec![Comes::Records(3), Comes::Records(3), Comes::Records(3), Comes::Records(3)];
    let mut task = record_loop::task(&[]);
    task.bounds.records = 5;
    let told = sizes(&transactions(script, vec![], 12, &mut task));
    assert!(told.iter().all(|(outputs, _)| *outputs <= 5), "{told:?}");
    assert_eq!(told.iter().map(|(outputs, _)| outputs).sum::<usize>(), 12, "{told:?}");
}

#[test]
fn an_aborted_transaction_is_given_again_with_all_that_had_come() {
    let script = vec![Comes::Records(1), Comes::Records(2)];
    let trouble = Trouble { code: "_TRANSPORT".into(), message: "away".into(), kind: TroubleKind::Moved };
    let mut task = record_loop::task(&[]);
    let told = transactions(script, vec![Outcome::Aborted(trouble)], 3, &mut task);
    assert_eq!(sizes(&told), [(3, 3), (3, 3)]);
}

#[test]
fn a_rebalance_that_waits_for_a_transaction_is_taken_up_after_its_outcome() {
    let script = vec![Comes::Records(1), Comes::Records(2), Comes::Revoke];
    // (were it taken up first, there would be nothing left to commit)
    assert_eq!(sizes(&transactions(script, vec![], 3, &mut record_loop::task(&[]))), [(3, 3)]);
}

#[test]
fn a_transaction_does_not_wait_for_plugins_at_work() {
    let script = vec![Comes::Records(1), Comes::Records(1)];
    let mut task = record_loop::task(&[]);
    let step: Box<dyn Step> = Box::new(slow(400 * MS));
    task.chain = Chain::new(vec![(step, PATIENCE)], 8, 1 << 20);
    let told = transactions(script, vec![], 2, &mut task);
    assert_eq!(sizes(&told), [(1, 1), (1, 2)]);
    assert!(told[0].took < 300 * MS, "{told:?}");
}

/// A plugin that fails on the second record, and counts how often it is given it.
struct Failing(PluginName, Arc<AtomicUsize>);

impl Step for Failing {
    fn plugin(&self) -> &PluginName {
        &self.0
    }
    fn sha256(&self) -> &Digest {
        static DIGEST: LazyLock<Digest> = LazyLock::new(|| Digest::of(b""));
        &DIGEST
    }
    fn call(&mut self, items: &mut Items, range: Range<usize>, _: Duration) -> Result<CallOutput, CallError> {
        if items.list[range.clone()].iter().any(|item| items.value(item) == Some(b"1")) {
            self.1.fetch_add(1, SeqCst);
            return Err(CallError::Fault { code: FaultCode::Trapped, message: "it always does".into() });
        }
        Ok(CallOutput { verdicts: vec![Verdict::Pass; range.len()], ..CallOutput::default() })
    }
    fn take_usage(&mut self) -> Usage {
        Usage::default()
    }
    fn shutdown(&mut self) {}
}

#[test]
fn a_record_that_fails_while_a_transaction_is_under_way_is_not_tried_again_before_that_has_ended() {
    // (the transaction waits for more for a while, in which there is nothing to do)
    let script = vec![Comes::Records(1), Comes::Records(1)];
    let mut task = record_loop::task(&[]);
    let calls = Arc::default();
    let step: Box<dyn Step> = Box::new(Failing(PluginName::new("failing").unwrap(), Arc::clone(&calls)));
    task.chain = Chain::new(vec![(step, PATIENCE)], 8, 1 << 20);
    let retry = Retry { attempts: 3, backoff: PATIENCE, max_backoff: PATIENCE };
    task.on_error = OnError { retry: Some(retry), ..OnError::default() };
    assert_eq!(sizes(&transactions(script, vec![], 1, &mut task)), [(1, 1)]);
    assert_eq!(calls.load(SeqCst), 1);
}

/// Transactions of five records each.
fn full(count: usize) -> (Task, impl Iterator<Item = Comes>) {
    let mut task = record_loop::task(&[]);
    (task.bounds.records, task.bounds.interval) = (5, PATIENCE);
    (task, (0..count).map(|_| Comes::Records(5)))
}

#[test]
fn in_a_thick_flow_the_next_transaction_begins_before_the_last_is_committed_and_all_are_committed_in_order() {
    let (mut task, script) = full(20);
    let (told, begun) = overlapping(script.collect(), vec![], 100, &mut task);
    assert_eq!(sizes(&told), (1..=20).map(|nth| (5, nth * 5)).collect::<Vec<_>>());
    // (three full ones make it a thick flow)
    assert!(begun.len() > 10 && begun[0] >= 20, "{begun:?}");
}

#[test]
fn what_was_begun_behind_a_transaction_that_is_aborted_is_given_again_behind_it() {
    let (mut task, script) = full(12);
    let moved = Trouble { code: "_TRANSPORT".into(), message: "away".into(), kind: TroubleKind::Moved };
    let mut outcomes = vec![Outcome::Committed { lost: 0 }; 5];
    outcomes.push(Outcome::Aborted(moved));
    let (told, begun) = overlapping(script.collect(), outcomes, 60, &mut task);
    assert!(begun.contains(&30), "nothing was begun behind it: {begun:?}");
    let offsets: Vec<_> = told.iter().map(|transaction| transaction.offset).collect();
    assert_eq!(offsets[..7], [5, 10, 15, 20, 25, 30, 30], "{told:?}");
    assert!(offsets[6..].is_sorted(), "{told:?}");
    assert_eq!(told[6..].iter().map(|transaction| transaction.outputs).sum::<usize>(), 35, "{told:?}");
}

#[test]
fn an_order_is_taken_up_in_a_thick_flow_before_another_transaction_begins() {
    let (mut task, script) = full(10);
    let (_, more) = full(10);
    let script = script.chain([Comes::Order]).chain(more).collect();
    let (told, begun) = overlapping(script, vec![], 100, &mut task);
    assert_eq!(told.iter().map(|transaction| transaction.outputs).sum::<usize>(), 100, "{told:?}");
    assert!(begun.len() > 5, "{begun:?}");
}

#[test]
fn a_rebalance_in_a_thick_flow_is_taken_up_after_the_outcome_of_all_that_was_begun() {
    let (mut task, script) = full(10);
    let script = script.chain([Comes::Revoke]).collect();
    let (told, begun) = overlapping(script, vec![], 45, &mut task);
    assert!(begun.len() > 3, "{begun:?}");
    // (what was begun is committed, though its partition is gone by then; what only waited to be is not)
    let offsets: Vec<_> = told.iter().map(|transaction| transaction.offset).collect();
    assert!(offsets.is_sorted() && offsets.last() >= Some(&45), "{told:?}");
}
