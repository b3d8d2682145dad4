//! A route worker: one member of the route's group, with its producer and its plugin instances, on a thread of its own.
//!
//! One turn of its loop: take what is pending from outside → gather records → run them through the chain into a round of
//! units → one transaction, which takes what comes while it is under way ([`flight`](super::flight)). In a thick flow the next is
//! begun while it is being committed, and so on for a while. A rebalance waits for the end of them all, so it only ever finds
//! records in memory, which are dropped; and an aborted round is still in memory and given again as it was.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, TryRecvError};

use super::chain::Processed;
use super::desk::Desk;
use super::flight::{Growing, Meanwhile};
use super::lane::Lane;
use super::ports::{Broker, Event, Flown, LogEnd, Outcome, Trouble, TroubleKind};
use super::report::{Health, Phase, Report, Spent};
use super::seek::Seek;
use super::skip::{Found, Skip};
use super::task::{Bounds, Task};
use super::unit::{After, Bench, Round, Unit};
use crate::config::times::CLOSE;
use crate::model::{Fault, FaultCode, Items, Mutation, RouteName, TopicName, TopicPartition, clock};

/// Longest a poll waits. (An order ends the wait; this is for what others find out meanwhile.)
const POLL_LONGEST: Duration = Duration::from_secs(1);
/// Most records of one poll: what is gathered between two looks at the clock.
const POLL_RECORDS: usize = 8192;
/// The same where a round is ready.
const POLL_BETWEEN: usize = 64;
/// First and longest wait after trouble with the broker.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// The same where somebody has to act first.
const BACKOFF_DENIED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The client that has lost all brokers says so whenever it has tried them all: every 10 s where they refuse, less often
/// where nobody answers. So long it is believed; and it tries again that often.
const AWAY_FOR: Duration = Duration::from_secs(30);
const AWAY_TRIES: Duration = Duration::from_secs(3);

/// After so many transactions that were full, each in a row with the one before, the flow is thick: the next is begun while the last
/// is being committed, which takes a second producer.
const THICK_AFTER: u32 = 3;
/// So long they may follow each other like this, until all is looked after that waits for their end.
const LONGEST_TRAIN: Duration = Duration::from_secs(1);

/// After an order to drain, a transaction is begun within this time, or not any more.
const BEGIN_WITHIN: Duration = Duration::from_millis(500);

/// What is left of the time to drain once the session is closed: others have to see it in time.
const LAST: Duration = Duration::from_millis(400);

/// An order from outside.
pub enum Order {
    /// Do this from the next transaction on.
    Swap(Box<Task>),
    /// Keep within these bounds from the next transaction on.
    Bound(Bounds),
    /// Keep the partitions, let them wait.
    Pause,
    /// Go on.
    Resume,
    /// Start the partitions that have stopped, and try again what waits.
    Restart,
    /// Pass one record by.
    Skip(Skip),
    /// Move the positions of all partitions.
    Seek(Seek),
    /// Finish, and end the membership within this time; `leave` even where it is static.
    Drain {
        /// Leave the group even where the membership is static.
        leave: bool,
        /// How long it may take.
        within: Duration,
    },
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// As ordered.
    Drained,
    /// The session broke: a new one is to be made, after a back-off that suits the trouble.
    Broken(Trouble),
}

/// One worker and its session.
pub struct RouteWorker<'a, B: Broker> {
    broker: B,
    desk: Desk<'a>,
    orders: &'a Receiver<Order>,
    /// The first is to be given to the broker next; several where one was halved.
    rounds: VecDeque<Round>,
    /// The first round's outcome is unknown.
    unknown: bool,
    /// The commit of what comes before those is under way.
    landing: Option<Landing>,
    /// How many transactions in a row were full.
    full_flights: u32,
    trouble: Option<Backoff>,
    /// All brokers were away when the client last said so; nothing has come of them since.
    away: Option<(Trouble, Instant)>,
    /// Records that are to be passed by; and the one that the only round there is passes by.
    skips: VecDeque<Skip>,
    passing: Option<Skip>,
    /// As much is held as may be, and little of it is done yet.
    full: bool,
    next_task: Option<Box<Task>>,
    /// Whether the group has given it an assignment, be it empty.
    joined: bool,
    /// Set by order; outlives the session.
    paused: &'a mut bool,
    told: Option<Health>,
    /// What is not told yet of the time; and the CPU time of this thread when it was told last.
    spent: Spent,
    cpu: Duration,
    /// Of the time for producing: waiting for what is to be.
    waited: Duration,
    events: Vec<Event>,
}

/// A round whose commit is under way.
struct Landing {
    round: Round,
    began: Instant,
}

struct Backoff {
    trouble: Trouble,
    tries: u32,
    until: Instant,
}

/// What one turn of the loop came to.
enum Turn {
    Again,
    Exit(Exit),
}

impl<'a, B: Broker> RouteWorker<'a, B> {
    /// A worker with its session. `task` and `paused` outlive the session, so that a new one takes up where this ends.
    pub fn new(
        broker: B,
        route: &'a RouteName,
        number: u16,
        task: &'a mut Task,
        paused: &'a mut bool,
        orders: &'a Receiver<Order>,
        report: &'a mut dyn Report,
    ) -> Self {
        Self {
            broker,
            desk: Desk::new(route, number, task, report),
            orders,
            rounds: VecDeque::new(),
            unknown: false,
            landing: None,
            full_flights: 0,
            trouble: None,
            away: None,
            skips: VecDeque::new(),
            passing: None,
            full: false,
            next_task: None,
            joined: false,
            paused,
            told: None,
            spent: Spent::default(),
            cpu: clock::thread_cpu(),
            waited: Duration::ZERO,
            events: Vec::new(),
        }
    }

    /// Routes records until it is told to drain or its session breaks.
    pub fn run(mut self) -> Exit {
        loop {
            match self.turn() {
                Turn::Again => {}
                Turn::Exit(exit) => return self.end(exit),
            }
        }
    }

    fn turn(&mut self) -> Turn {
        if let Some((leave, within)) = self.take_orders() {
            return self.drain(leave, within);
        }
        // (before a partition is woken to try its record again)
        self.take_skip();
        self.desk.lanes.values_mut().for_each(|lane| {
            lane.wake(false);
        });
        self.sync_pauses();
        self.tell_health();
        if let Some(broken) = self.gather() {
            return Turn::Exit(Exit::Broken(broken));
        }
        // (plugins may be at work on the first records for long)
        if self.told.as_ref().is_none_or(|told| told.assignment.len() != self.desk.lanes.len()) {
            self.tell_health();
        }
        if self.is_to_stop() {
            return Turn::Again;
        }
        if self.trouble.as_ref().is_some_and(|backoff| backoff.until > clock::now()) {
            return Turn::Again;
        }
        if self.rounds.is_empty()
            && !*self.paused
            && let Err(trouble) = self.process()
        {
            self.back_off(trouble);
            return Turn::Again;
        }
        // (an order to drain says whether there is the time for a transaction)
        if self.is_to_stop() { Turn::Again } else { self.commit_first() }
    }

    fn is_to_stop(&self) -> bool {
        self.desk.task.chain.stop().is_set()
    }

    // ---- orders -----------------------------------------------------------------------

    /// Takes all orders; an order to drain, with its terms, is handed back.
    fn take_orders(&mut self) -> Option<(bool, Duration)> {
        loop {
            // A round of unknown outcome is settled as it was given: the new task waits for that.
            if !self.unknown
                && let Some(task) = self.next_task.take()
            {
                self.swap(*task);
            }
            match self.orders.try_recv() {
                Ok(Order::Swap(task)) => self.next_task = Some(task),
                Ok(Order::Bound(bounds)) => self.next_task.as_deref_mut().unwrap_or(self.desk.task).bounds = bounds,
                Ok(Order::Pause) => *self.paused = true,
                Ok(Order::Resume) => *self.paused = false,
                Ok(Order::Restart) => self.restart(),
                Ok(Order::Skip(skip)) => self.skips.push_back(skip),
                Ok(Order::Seek(seek)) => self.seek(&seek),
                Ok(Order::Drain { leave, within }) => return Some((leave, within)),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some((false, Duration::from_secs(5))),
            }
        }
    }

    fn restart(&mut self) {
        self.broker.accept();
        self.desk.lanes.values_mut().for_each(|lane| {
            lane.wake(true);
        });
        if let Some(backoff) = &mut self.trouble {
            (backoff.tries, backoff.until) = (0, clock::now());
        }
    }

    fn swap(&mut self, task: Task) {
        self.passing = None;
        // What the old task made of records is not committed, so the new one makes it anew from the records held: every
        // transaction is all-old or all-new.
        self.rounds.clear();
        self.desk.swap(task);
        // What kept the old task from its work may not keep the new one.
        self.trouble = None;
    }

    // ---- gathering --------------------------------------------------------------------

    /// Serves the group and takes records: until the bounds of a transaction are reached, or nothing more is there now.
    fn gather(&mut self) -> Option<Trouble> {
        let began = clock::now();
        let mut wait = self.longest_wait();
        let (mut records, mut bytes) = (0, 0);
        // (a round that is ready goes at once; a first one grows under way)
        let (most, interval) = match self.rounds.is_empty() {
            true => (POLL_RECORDS, self.desk.task.bounds.interval / 10),
            false => (POLL_BETWEEN, Duration::ZERO),
        };
        loop {
            let most = self.desk.task.bounds.records.saturating_sub(records).clamp(1, most);
            let mut events = std::mem::take(&mut self.events);
            let asked = clock::now();
            self.broker.poll(wait, most, &mut events);
            self.spent.polling += clock::now() - asked;
            let got = match self.take_events(&mut events) {
                Ok(got) => got,
                Err(broken) => return Some(broken),
            };
            (records, bytes) = (records + got.0, bytes + got.1);
            let bounds = self.desk.task.bounds;
            let full = records >= bounds.records || bytes >= bounds.bytes || self.desk.held().0 >= bounds.held;
            let full = full || clock::now().duration_since(began) >= interval || self.is_to_stop();
            if got.0 == 0 || full || self.trouble.is_some() {
                return None;
            }
            wait = Duration::ZERO;
        }
    }

    fn longest_wait(&self) -> Duration {
        let backoff = self.trouble.as_ref().map(|backoff| backoff.until);
        let has_work = !*self.paused && self.desk.has_work();
        if backoff.is_none() && (has_work || !self.rounds.is_empty()) {
            return Duration::ZERO;
        }
        let soonest = self.desk.lanes.values().filter_map(Lane::wakes_at).chain(backoff).min();
        soonest.map_or(POLL_LONGEST, |at| at.saturating_duration_since(clock::now()).min(POLL_LONGEST))
    }

    /// Takes all events, and keeps their room for the next; of records, how many and how large.
    fn take_events(&mut self, events: &mut Vec<Event>) -> Result<(usize, usize), Trouble> {
        let (mut got, mut broken) = ((0, 0), None);
        for event in events.drain(..) {
            match self.take_event(event) {
                Ok((records, bytes)) => got = (got.0 + records, got.1 + bytes),
                Err(trouble) => broken = Some(trouble),
            }
        }
        self.events = std::mem::take(events);
        broken.map_or(Ok(got), Err)
    }

    /// Takes one event; of records, how many and how large.
    fn take_event(&mut self, event: Event) -> Result<(usize, usize), Trouble> {
        match event {
            Event::Records(batch) => {
                self.away = None;
                // Records of a partition that is not ours can only be leftovers of before a revoke.
                return Ok(self.desk.lanes.get_mut(batch.topic_partition()).map_or((0, 0), |lane| lane.push(batch)));
            }
            Event::Assigned(partitions) => {
                self.desk.report.rebalanced();
                self.joined = true;
                self.away = None;
                for partition in partitions {
                    self.desk.lanes.insert(partition.clone(), Lane::new(partition));
                }
            }
            Event::Revoked(partitions) => {
                self.desk.report.rebalanced();
                if Mutation::CommitRevoked.is_on() {
                    return Ok((0, 0));
                }
                self.desk.lanes.retain(|partition, _| !partitions.contains(partition));
                self.passing.take_if(|skip| partitions.contains(&skip.at));
                self.rounds.iter_mut().for_each(|round| round.drop_partitions(&partitions));
                let unknown = self.unknown;
                let mut place = 0;
                self.rounds.retain(|round| {
                    place += 1;
                    !round.units.is_empty() || (unknown && place == 1)
                });
            }
            Event::OffsetLost { partition, message } => {
                if let Some(lane) = self.desk.lanes.get_mut(&partition) {
                    lane.lose(message);
                }
            }
            Event::OffsetReset { partition, to, lost, message } => {
                // What is held was read before the gap; it is committed already or will be read no more.
                self.desk.report.lost(&partition, lost, &format!("{message}; goes on at offset {to}"));
                if let Some(lane) = self.desk.lanes.get_mut(&partition) {
                    lane.moved(to);
                }
            }
            Event::Reached { partition, offset } => {
                if let Some(lane) = self.desk.lanes.get_mut(&partition) {
                    lane.reached(offset);
                }
            }
            Event::Logs(ends) => self.tell_lag(&ends),
            Event::Throttled(time) => self.desk.report.throttled(time),
            Event::Trouble(trouble) => self.desk.report.trouble(&trouble),
            Event::Away(trouble) => {
                self.desk.report.trouble(&trouble);
                self.away = Some((trouble, clock::now()));
            }
            Event::Broken(trouble) => return Err(trouble),
        }
        Ok((0, 0))
    }

    /// Pauses the fetching of partitions that stand still, and of all while as much is held as may be.
    fn sync_pauses(&mut self) {
        let stuck = *self.paused || self.trouble.as_ref().is_some_and(|backoff| backoff.tries > 1);
        let (flowing, still) = self.desk.held();
        // What stands still may fill all the room, and must not starve the others.
        let room = self.desk.task.bounds.held.saturating_sub(still).max(self.desk.task.bounds.held / 4);
        // Once full, half of it has to go: each pause costs what was fetched ahead.
        self.full = flowing >= if self.full { room / 2 } else { room };
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        for (partition, lane) in &mut self.desk.lanes {
            let wanted = stuck || !lane.flows() || self.full;
            if wanted != lane.paused {
                lane.paused = wanted;
                if wanted { &mut pause } else { &mut resume }.push(partition.clone());
            }
        }
        if !pause.is_empty() {
            self.broker.pause(&pause);
        }
        if !resume.is_empty() {
            self.broker.resume(&resume);
        }
    }

    // ---- plugins ----------------------------------------------------------------------

    /// Runs what is held through the chain, into one round.
    fn process(&mut self) -> Result<(), Trouble> {
        let (broker, began) = (&mut self.broker, clock::now());
        self.desk.destinations.refresh(&mut |name| broker.topic(name));
        let round = self.desk.process(self.desk.task.bounds.room(), &mut |name| broker.topic(name));
        self.spent.processing += clock::now() - began;
        match round? {
            None => self.trouble = None,
            Some(round) if round.units.is_empty() => {}
            Some(round) => self.rounds.push_back(round),
        }
        Ok(())
    }

    /// Passes the next record by that is to be, in a round of its own.
    fn take_skip(&mut self) {
        if !self.rounds.is_empty() {
            return;
        }
        if let Some(skip) = self.passing.take() {
            skip.answer(Err("it was not committed: the status says what stands in the way".to_owned()));
        }
        let Some(skip) = self.skips.pop_front() else { return };
        let Some(lane) = self.desk.lanes.get(&skip.at) else { return };
        let attempts = lane.attempts;
        let (policy, found) = (skip.policy(), skip.find(lane, *self.paused));
        let unit = found.and_then(|Found { batch, index, fault }| {
            let range = index..index + 1;
            let items = Items { source: batch, list: Vec::new().into(), chunks: Vec::new() };
            let processed = Processed {
                items,
                faults: vec![(index as u32, fault)],
                filtered: Vec::new(),
                halt: None,
                values: Default::default(),
                traces: Default::default(),
            };
            let broker = &mut self.broker;
            let mut look_up = |name: &TopicName| broker.topic(name);
            let mut bench = Bench { policy: &policy, ..self.desk.bench(&mut look_up) };
            Unit::build(processed, range, attempts, &mut bench).map_err(|trouble| trouble.message)
        });
        match unit {
            Ok(unit) => {
                self.desk.take(&unit);
                self.rounds.push_back(Round { units: vec![unit], since: Some(clock::now()), ..Round::default() });
                self.passing = Some(skip);
            }
            Err(why) => skip.answer(Err(why)),
        }
    }

    /// Moves all partitions, of which nothing may be in work.
    fn seek(&mut self, seek: &Seek) {
        if self.desk.lanes.is_empty() {
            return;
        }
        if !*self.paused || !self.rounds.is_empty() {
            return seek.answer(Err("the route is not paused: pause it first".to_owned()));
        }
        // (a position is moved behind the client's back of what it has fetched: it must be told to fetch none)
        self.sync_pauses();
        let partitions: Vec<_> = self.desk.lanes.keys().cloned().collect();
        let sought = self.broker.seek(&partitions, seek.to, seek.dry_run);
        if let (Ok(sought), false) = (&sought, seek.dry_run) {
            for moved in sought {
                let mut lane = Lane::new(moved.partition.clone());
                lane.moved(moved.to);
                lane.paused = true;
                self.desk.lanes.insert(moved.partition.clone(), lane);
            }
        }
        seek.answer(sought.map_err(|trouble| trouble.message));
    }

    // ---- transactions -----------------------------------------------------------------

    /// Gives the first round to the broker, and in a thick flow the next ones; when it returns, what became of all is known.
    fn commit_first(&mut self) -> Turn {
        let began = clock::now();
        loop {
            if let Turn::Exit(exit) = self.transact_first() {
                return Turn::Exit(exit);
            }
            if self.landing.is_none() {
                return Turn::Again;
            }
            if !self.goes_on(began) {
                return self.land();
            }
        }
    }

    /// Whether the next round is to be given to the broker before the last one is committed.
    fn goes_on(&self, began: Instant) -> bool {
        let is_quiet = self.orders.is_empty() && self.desk.lanes.values().all(|lane| lane.wakes_at().is_none());
        let in_time = clock::now().duration_since(began) < LONGEST_TRAIN;
        is_quiet && in_time && self.rounds.len() == 1 && self.trouble.is_none() && !self.is_to_stop()
    }

    /// Waits for the commit that is under way.
    fn land(&mut self) -> Turn {
        let outcome = self.broker.land();
        self.landed(outcome).map_or(Turn::Again, Turn::Exit)
    }

    /// Takes up what became of the commit that was under way, if one was.
    fn landed(&mut self, outcome: Option<Outcome>) -> Option<Exit> {
        let Landing { round, began } = self.landing.take()?;
        self.rounds.push_front(round);
        self.take_outcome(outcome.expect("a commit that was left under way has an outcome"), began)
    }

    /// Gives the first round to the broker. While that is at work, what else is held is made into the next.
    fn transact_first(&mut self) -> Turn {
        let Some(round) = self.rounds.pop_front() else { return Turn::Again };
        let grows = !self.unknown && self.can_grow();
        if !grows && self.landing.is_some() {
            // (it is to stop, as of just now)
            self.rounds.push_front(round);
            return self.land();
        }
        let began = clock::now();
        self.desk.report.transaction_begins();
        let (mut next, mut events) = (Round::default(), Vec::new());
        let (Flown { before, this }, round) = if self.unknown {
            (Flown::of(self.broker.settle(&round.offsets())), round)
        } else if grows {
            self.grow(round, &mut next, &mut events)
        } else {
            (Flown::of(self.broker.transact(&round, &round.offsets())), round)
        };
        self.rounds.push_front(round);
        self.rounds.extend(Some(next).filter(|next| !next.units.is_empty()));
        self.tell_spent();
        let was_committed = before.as_ref().is_none_or(|outcome| matches!(outcome, Outcome::Committed { .. }));
        if !was_committed {
            // (given up, and given again behind the one before)
            self.desk.report.transaction("aborted", clock::now().duration_since(began));
        }
        let mut exit = self.landed(before);
        match this {
            Some(Outcome::Broken(trouble)) if !was_committed => exit = exit.or(Some(Exit::Broken(trouble))),
            _ if !was_committed => {}
            Some(outcome) => exit = exit.or(self.take_outcome(outcome, began)),
            None => {
                self.desk.report.transaction_begins();
                self.landing = self.rounds.pop_front().map(|round| Landing { round, began });
            }
        }
        if let Some(exit) = exit {
            return Turn::Exit(exit);
        }
        // (what else has happened finds no transaction under way)
        if !events.is_empty()
            && let Turn::Exit(exit) = self.land()
        {
            return Turn::Exit(exit);
        }
        match self.take_events(&mut events) {
            Ok(_) => Turn::Again,
            Err(broken) => Turn::Exit(Exit::Broken(broken)),
        }
    }

    /// Takes up what became of the first round; whether the session has ended with it.
    fn take_outcome(&mut self, outcome: Outcome, began: Instant) -> Option<Exit> {
        self.desk.report.transaction(outcome_label(&outcome), clock::now().duration_since(began));
        self.unknown = matches!(outcome, Outcome::Unknown(_));
        match outcome {
            Outcome::Committed { lost } => self.committed(lost),
            Outcome::Aborted(trouble) => {
                if Mutation::NoRewind.is_on() {
                    self.committed(0);
                } else if trouble.code == "_TIMED_OUT" {
                    self.halve_first();
                }
                self.back_off(trouble);
            }
            Outcome::Unknown(trouble) => self.back_off(trouble),
            Outcome::Rejected { output, message } => {
                if let Err(trouble) = self.rejected(output, message) {
                    self.back_off(trouble);
                }
            }
            Outcome::Broken(trouble) => return Some(Exit::Broken(trouble)),
        }
        None
    }

    /// Whether nothing speaks against adding to the first round, which is out of `rounds`, while it is under way.
    fn can_grow(&self) -> bool {
        let is_quiet = self.rounds.is_empty() && self.skips.is_empty() && self.passing.is_none();
        let drains = self.told.as_ref().is_some_and(|told| matches!(told.phase, Phase::Draining));
        is_quiet && !drains && self.trouble.is_none() && !*self.paused && !self.is_to_stop()
    }

    /// Gives the round to the broker, with all that comes meanwhile and still finds room in it. What does not is the `next`.
    /// What else comes is to be taken up afterwards.
    fn grow(&mut self, round: Round, next: &mut Round, events: &mut Vec<Event>) -> (Flown, Round) {
        let may_fly_on = self.full_flights >= THICK_AFTER;
        let growing = Growing::new(round, self.desk.task.bounds, may_fly_on);
        let (broker, desk) = (&mut self.broker, &mut self.desk);
        desk.destinations.refresh(&mut |name| broker.topic(name));
        let mut meanwhile = Meanwhile::new(desk, &growing, std::mem::take(&mut self.events));
        let flown = broker.transact_while(&growing, &mut |session| meanwhile.work(session));
        if meanwhile.fetched {
            self.away = None;
        }
        self.spent += meanwhile.spent;
        (*next, *events) = (meanwhile.next, meanwhile.events);
        self.full_flights = if growing.is_full() { self.full_flights + 1 } else { 0 };
        let (round, waited) = growing.into_round();
        self.waited += waited;
        (flown, round)
    }

    fn committed(&mut self, lost: u64) {
        self.trouble = None;
        let Some(round) = self.rounds.pop_front() else { return };
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        self.desk.report.committed(&round.tally(&self.desk.destinations, &self.desk.plugins, now_ms));
        self.desk.trace(&round);
        if let (Some(unit), true) = (round.units.first(), lost > 0) {
            self.desk.report.lost(
                unit.partition(),
                lost,
                "outputs failed after the offsets were committed (at_most_once)",
            );
        }
        for unit in round.units {
            if let Some(lane) = self.desk.lanes.get_mut(unit.partition()) {
                lane.advance(unit.next_offset());
                lane.follow(unit.after);
            }
        }
        if let Some(skip) = self.passing.take() {
            if let Some(lane) = self.desk.lanes.get_mut(&skip.at) {
                lane.wake(true);
            }
            skip.answer(Ok(()));
        }
    }

    /// The destination refuses an output of the first round for good: the record is found, or the round halved.
    fn rejected(&mut self, output: Option<usize>, message: String) -> Result<(), Trouble> {
        let Some(mut round) = self.rounds.pop_front() else { return Ok(()) };
        let found = output.and_then(|output| round.locate(output)).or_else(|| round.single());
        let rejected = found.map(|place| self.reject(&mut round, place, message));
        self.rounds.push_front(round);
        match rejected.transpose()? {
            None => self.halve_first(),
            Some(Some(cut)) => self.after_cut(cut),
            Some(None) => {}
        }
        Ok(())
    }

    /// A record of `round` is at fault as rejected. Returns the number of its unit where that was cut short.
    fn reject(
        &mut self,
        round: &mut Round,
        (number, source, is_dead_letter): (usize, u32, bool),
        message: String,
    ) -> Result<Option<usize>, Trouble> {
        if is_dead_letter {
            if round.truncate_dead_letter(number, source) {
                return Ok(None);
            }
            round.stop_before(number, source, format!("the dead-letter topic refuses this record: {message}"));
            return Ok(Some(number));
        }
        let unit = &mut round.units[number];
        let attempts = self.desk.lanes.get(unit.partition()).map(|lane| lane.attempts).unwrap_or_default();
        let fault = Fault { code: FaultCode::Rejected, message, plugin: None };
        let broker = &mut self.broker;
        unit.blame(source, fault, attempts, &mut self.desk.bench(&mut |name| broker.topic(name)))?;
        Ok((unit.range.end <= source as usize).then_some(number))
    }

    /// A unit of the first round was cut short: what follows in its partition waits, here and in later rounds.
    fn after_cut(&mut self, number: usize) {
        let Some(round) = self.rounds.front_mut() else { return };
        round.drop_followers(number);
        let partition = round.units[number].partition().clone();
        let emptied = round.units[number].is_empty().then(|| round.units.remove(number));
        self.rounds.iter_mut().skip(1).for_each(|round| round.drop_partitions(std::slice::from_ref(&partition)));
        self.rounds.retain(|round| !round.units.is_empty());
        let Some(lane) = self.desk.lanes.get_mut(&partition) else { return };
        lane.put_back();
        for unit in self.rounds.iter().flat_map(|round| &round.units).filter(|unit| *unit.partition() == partition) {
            lane.take(unit.next_offset(), unit.after == After::Flow);
        }
        if let Some(unit) = emptied {
            lane.follow(unit.after);
        }
    }

    fn halve_first(&mut self) {
        if let Some(second) = self.rounds.front_mut().and_then(Round::split_off_half) {
            self.rounds.insert(1, second);
        }
    }

    fn back_off(&mut self, trouble: Trouble) {
        self.desk.report.trouble(&trouble);
        let tries = self.trouble.as_ref().map_or(1, |backoff| backoff.tries.saturating_add(1));
        let wait = match trouble.kind {
            // The group has moved on; what it decided comes with the next poll.
            TroubleKind::Moved if tries == 1 => Duration::ZERO,
            TroubleKind::Moved | TroubleKind::Passing => backoff(BACKOFF, tries),
            TroubleKind::Denied | TroubleKind::Duplicate => backoff(BACKOFF_DENIED, tries),
        };
        self.trouble = Some(Backoff { trouble, tries, until: clock::now() + wait });
    }

    // ---- the end ----------------------------------------------------------------------

    /// What is in work is committed if the broker takes it; then the membership ends. All else stays uncommitted.
    fn drain(&mut self, leave: bool, within: Duration) -> Turn {
        let deadline = self.desk.task.chain.stop().deadline().unwrap_or_else(|| clock::now() + within);
        let left = || deadline.saturating_duration_since(clock::now());
        self.tell(Phase::Draining);
        // The configuration leaves time for one transaction, whatever comes of it: so it is begun at once or not at all.
        while !self.rounds.is_empty() && left() + BEGIN_WITHIN >= within {
            if let Turn::Exit(exit) = self.commit_first() {
                return Turn::Exit(exit);
            }
            match &self.trouble {
                // The group has moved on: what is still ours is given again.
                Some(Backoff { trouble, .. }) if trouble.kind == TroubleKind::Moved => {
                    if let Some(broken) = self.gather() {
                        return Turn::Exit(Exit::Broken(broken));
                    }
                }
                Some(_) => break,
                None => {}
            }
        }
        self.broker.close(leave, left().saturating_sub(LAST).max(CLOSE - LAST));
        Turn::Exit(Exit::Drained)
    }

    fn end(mut self, exit: Exit) -> Exit {
        self.desk.lanes.clear();
        match &exit {
            Exit::Drained => {
                self.desk.task.chain.shutdown();
                self.tell(Phase::Stopped);
            }
            Exit::Broken(_) => {
                // (it waited for an outcome that the next session learns from the committed offsets)
                if let Some(task) = self.next_task.take() {
                    self.swap(*task);
                }
                self.broker.close(false, if self.is_to_stop() { CLOSE } else { CLOSE * 5 });
            }
        }
        exit
    }

    // ---- telling ----------------------------------------------------------------------

    fn tell_health(&mut self) {
        let phase = match &self.trouble {
            // (what was in work when it was told to is committed first)
            _ if *self.paused && self.rounds.is_empty() => Phase::Paused,
            Some(Backoff { trouble, tries, until }) if *tries > 1 => {
                let next_attempt = SystemTime::now() + until.saturating_duration_since(clock::now());
                let trouble = trouble.clone();
                match trouble.kind {
                    TroubleKind::Passing | TroubleKind::Moved => Phase::Waiting { trouble, next_attempt },
                    TroubleKind::Denied | TroubleKind::Duplicate => Phase::Failed { trouble, next_attempt },
                }
            }
            _ if self.away.as_ref().is_some_and(|(_, at)| clock::now().duration_since(*at) < AWAY_FOR) => {
                let (trouble, at) = self.away.clone().expect("asked above");
                let next_attempt = SystemTime::now() + AWAY_TRIES.saturating_sub(clock::now().duration_since(at));
                Phase::Waiting { trouble, next_attempt }
            }
            _ if !self.joined => Phase::Starting,
            _ => Phase::Running,
        };
        let changed = self.told.as_ref().is_none_or(|told| !same_phase(&told.phase, &phase) || !self.same_lanes(told));
        if changed {
            self.tell(phase);
        }
    }

    /// Where the time went, once a transaction.
    fn tell_spent(&mut self) {
        let before = std::mem::replace(&mut self.cpu, clock::thread_cpu());
        let spent = self.broker.take_spent();
        let producing = spent.producing.saturating_sub(std::mem::take(&mut self.waited));
        self.spent += Spent { producing, ..spent };
        self.spent.cpu += self.cpu.saturating_sub(before) + self.desk.take_cpu();
        self.desk.report.spent(&std::mem::take(&mut self.spent));
    }

    fn tell_lag(&mut self, ends: &[(TopicPartition, LogEnd)]) {
        let now = SystemTime::now();
        let of = |(partition, end): &(TopicPartition, LogEnd)| self.desk.lanes.get_mut(partition)?.lag(*end, now);
        let lags: Vec<_> = ends.iter().filter_map(of).collect();
        self.desk.report.lag(&lags);
        // (idle, too)
        self.tell_spent();
    }

    fn same_lanes(&self, told: &Health) -> bool {
        told.assignment.len() == self.desk.lanes.len()
            && told.assignment.iter().eq(self.desk.lanes.keys())
            && told.held.iter().map(|held| (&held.partition, held.offset, held.stopped)).eq(self
                .desk
                .lanes
                .iter()
                .filter_map(|(partition, lane)| lane.standing().map(|held| (partition, held.offset, held.stopped))))
    }

    fn tell(&mut self, phase: Phase) {
        let health = Health {
            phase,
            assignment: self.desk.lanes.keys().cloned().collect(),
            held: self.desk.lanes.values().filter_map(Lane::standing).collect(),
        };
        self.desk.report.health(&health);
        self.told = Some(health);
    }
}

fn backoff((first, longest): (Duration, Duration), tries: u32) -> Duration {
    let wait = first.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(longest);
    // A fifth more or less, so that many workers do not come back all at once.
    wait.mul_f64(fastrand::f64().mul_add(0.4, 0.8))
}

fn same_phase(one: &Phase, other: &Phase) -> bool {
    match (one, other) {
        (Phase::Waiting { trouble: a, .. }, Phase::Waiting { trouble: b, .. })
        | (Phase::Failed { trouble: a, .. }, Phase::Failed { trouble: b, .. }) => a == b,
        _ => one == other,
    }
}

fn outcome_label(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Committed { .. } => "committed",
        Outcome::Aborted(_) => "aborted",
        Outcome::Rejected { .. } => "rejected",
        Outcome::Unknown(_) => "unknown",
        Outcome::Broken(_) => "broken",
    }
}
