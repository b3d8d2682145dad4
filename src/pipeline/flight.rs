//! A round under way: more is added while its transaction takes it, so that fetching, plugins and producing go on at the same
//! time, and a transaction costs one pause in which nothing is produced, at its end.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::desk::Desk;
use super::ports::{Event, Fetch, Flight, Output, Outputs, TopicError};
use super::report::Spent;
use super::task::{Bounds, Room};
use super::unit::{Round, Unit};
use crate::model::{OffsetMap, clock};

/// Longest that a transaction grows: longer ones are no cheaper, and a rebalance waits for their end.
const LONGEST: Duration = Duration::from_millis(250);
/// When nothing was added for so long, it is committed: plugins are at work, or a rebalance waits.
const PATIENCE: Duration = Duration::from_millis(10);

/// Most records of one fetch: few enough that they are still in the processor's caches when they are produced.
const FETCH: usize = 2048;
/// Of so many records in a transaction the flow is thick: it is not ended by the first moment without any.
const THICK: usize = 1024;
/// How long that moment may be.
const MOMENT: Duration = Duration::from_millis(3);
/// Longest wait for records once the transaction takes no more. (Its end interrupts the wait.)
const WAIT: Duration = Duration::from_millis(20);

/// A round that grows.
pub(super) struct Growing {
    state: Mutex<State>,
    changed: Condvar,
    /// When it takes no more.
    until: Instant,
    since: Option<Instant>,
    /// As much as it takes.
    room: Room,
    /// Whether the next may begin before it is committed.
    may_fly_on: bool,
}

#[derive(Default)]
struct State {
    given: Vec<Unit>,
    waiting: VecDeque<Unit>,
    size: Room,
    sealed: bool,
    /// Nothing more is there at this moment.
    idle: bool,
    /// It was sealed at the end of its time, while more came.
    late: bool,
    /// For how long the transaction has waited for more.
    waited: Duration,
}

impl Growing {
    /// Grows from this round within these bounds.
    pub(super) fn new(round: Round, bounds: Bounds, may_fly_on: bool) -> Self {
        let state = State { waiting: round.units.into(), size: round.size, ..State::default() };
        let until = clock::now() + bounds.interval.min(LONGEST);
        let (state, changed, room) = (Mutex::new(state), Condvar::new(), bounds.room());
        Self { state, changed, until, since: round.since, room, may_fly_on }
    }

    /// Whether it is as large or as old as it may be, so that there is more, as far as one knows.
    pub(super) fn is_full(&self) -> bool {
        let state = self.state();
        state.late || self.room.less(state.size).is_none()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // (every change of it is complete before anything that could panic)
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds units, which follow those before.
    ///
    /// # Errors
    /// It is sealed: they are for the next one.
    fn add(&self, more: Round) -> Result<(), Round> {
        let state = &mut *self.state();
        if state.sealed {
            return Err(more);
        }
        state.size += more.size;
        state.waiting.extend(more.units);
        state.idle = false;
        self.changed.notify_one();
        Ok(())
    }

    /// What it takes up of a transaction's bounds; none where it takes no more.
    fn size(&self) -> Option<Room> {
        let state = self.state();
        (!state.sealed).then_some(state.size)
    }

    /// All of it, in the order in which it was given to the transaction or would have been; and for how long that has waited.
    pub(super) fn into_round(self) -> (Round, Duration) {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (mut units, size) = (state.given, state.size);
        units.extend(state.waiting);
        (Round { units, size, since: self.since }, state.waited)
    }

    /// Nothing more is there at this moment: what there is need not wait for more.
    fn idle(&self) {
        self.state().idle = true;
        self.changed.notify_one();
    }

    /// The next unit, once there is one; none when nothing has come for a while, or will.
    fn next(&self) -> Option<Unit> {
        let mut state = self.state();
        let began = clock::now();
        let patience = self.until.min(began + PATIENCE);
        loop {
            let now = clock::now();
            state.late |= now >= self.until && !state.sealed && !state.idle;
            state.sealed |= now >= self.until;
            if state.sealed || state.idle || now >= patience || !state.waiting.is_empty() {
                state.waited += now - began;
                return state.waiting.pop_front();
            }
            let waited = self.changed.wait_timeout(state, patience - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Flight for Growing {
    fn outputs(&self) -> &dyn Outputs {
        self
    }

    fn offsets(&self) -> OffsetMap {
        let state = self.state();
        assert!(state.sealed, "offsets of a transaction to which more may be added");
        state.given.iter().chain(&state.waiting).map(|unit| (unit.partition().clone(), unit.next_offset())).collect()
    }

    fn seal(&self) {
        self.state().sealed = true;
        self.changed.notify_one();
    }

    fn flies_on(&self) -> bool {
        self.may_fly_on && self.is_full()
    }
}

impl Outputs for Growing {
    fn len(&self) -> usize {
        let state = self.state();
        state.given.iter().chain(&state.waiting).map(Unit::outputs).sum()
    }

    fn for_each(&self, produce: &mut dyn FnMut(Output<'_>) -> ControlFlow<()>) {
        while let Some(unit) = self.next() {
            let ended = unit.sent().try_for_each(|(_, _, output)| produce(output));
            let mut state = self.state();
            state.given.push(unit);
            if ended.is_break() {
                state.sealed = true;
                return;
            }
        }
    }

    fn takes_more(&self) -> bool {
        let state = self.state();
        !state.sealed || !state.waiting.is_empty()
    }

    fn close(&self) -> bool {
        let mut state = self.state();
        state.sealed = true;
        !state.waiting.is_empty()
    }
}

/// What a worker does while a transaction is under way: fetches, runs the plugins, and adds what comes of it to the
/// transaction, or makes it the next round where that takes no more.
pub(super) struct Meanwhile<'w, 'a> {
    pub(super) desk: &'w mut Desk<'a>,
    pub(super) growing: &'w Growing,
    /// The next round.
    pub(super) next: Round,
    /// What else has happened: to be taken up once the transaction's outcome is.
    pub(super) events: Vec<Event>,
    /// Whether records have come.
    pub(super) fetched: bool,
    /// There were none the last time.
    idle: bool,
    pub(super) spent: Spent,
}

impl<'w, 'a> Meanwhile<'w, 'a> {
    pub(super) fn new(desk: &'w mut Desk<'a>, growing: &'w Growing, events: Vec<Event>) -> Self {
        Self { desk, growing, next: Round::default(), events, fetched: false, idle: false, spent: Spent::default() }
    }

    /// Until the transaction has ended, or nothing more can be done before it has.
    pub(super) fn work(&mut self, session: &mut dyn Fetch) {
        while self.step(session) {}
        self.growing.seal();
    }

    fn step(&mut self, session: &mut dyn Fetch) -> bool {
        let bounds = self.desk.task.bounds;
        let size = self.growing.size();
        let left = bounds.room().less(size.unwrap_or(self.next.size));
        if left.is_none() {
            // (the transaction is full: on with the next; that is full, too: enough)
            self.growing.seal();
            return size.is_some();
        }
        if !self.process(left) || session.has_ended() || self.desk.held().0 >= bounds.held {
            return false;
        }
        let is_thick = size.is_some_and(|size| size.records >= THICK);
        let wait = if size.is_some() && !self.idle { Duration::ZERO } else { WAIT };
        let mut got = self.fetch(session, wait);
        if got == 0 && is_thick {
            got = self.fetch(session, MOMENT);
        }
        self.idle = got == 0;
        match (self.idle, is_thick) {
            (false, _) => {}
            (true, true) => self.growing.seal(),
            // (while the first outputs are on their way, more may come: it goes with them)
            (true, false) => self.growing.idle(),
        }
        self.events.is_empty() && !self.desk.task.chain.stop().is_set()
    }

    /// False where the broker is needed first, which is busy: it is done again when that is free.
    fn process(&mut self, left: Room) -> bool {
        let began = clock::now();
        let made = self.desk.process(left, &mut |_| Err(TopicError::busy()));
        self.spent.processing += clock::now() - began;
        let Ok(made) = made else { return false };
        if let Some(made) = made.filter(|made| !made.units.is_empty())
            && let Err(made) = self.growing.add(made)
        {
            self.next.append(made);
        }
        true
    }

    /// How many records have come.
    fn fetch(&mut self, session: &mut dyn Fetch, wait: Duration) -> usize {
        let began = clock::now();
        session.fetch(wait, FETCH, &mut self.events);
        self.spent.polling += clock::now() - began;
        let is_records = |event: &Event| matches!(event, Event::Records(_));
        let first = self.events.iter().position(|event| !is_records(event)).unwrap_or(self.events.len());
        let mut records = 0;
        for event in self.events.drain(..first) {
            // Records of a partition that is not ours can only be leftovers of before a revoke.
            if let Event::Records(batch) = event
                && let Some(lane) = self.desk.lanes.get_mut(batch.topic_partition())
            {
                records += lane.push(batch).0;
            }
        }
        self.fetched |= records > 0;
        records
    }
}
