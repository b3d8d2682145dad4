//! A lane: one assigned partition in a worker. What is held of it, and whether it flows.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::lag::{Front, LagWatch};
use super::ports::LogEnd;
use super::report::{HeldPartition, PartitionLag};
use super::unit::{After, Attempts};
use crate::model::{ErrorId, Offset, SourceBatch, TopicPartition, clock};

/// First wait of a stopped partition before it tries again by itself.
const RESTART_FIRST: Duration = Duration::from_secs(1);
/// Longest such wait.
const RESTART_LONGEST: Duration = Duration::from_secs(300);

/// What a record takes besides its key and value: the client's own of it, and the items that are made of it.
const RECORD: usize = 512;

/// One assigned partition.
pub(super) struct Lane {
    pub(super) partition: TopicPartition,
    held: VecDeque<Held>,
    bytes: usize,
    /// Records before this offset are in a round; and whether those behind may be.
    taken: Option<(Offset, bool)>,
    /// What was decided about the record behind those: to be followed once they are done.
    decided: Option<After>,
    state: State,
    pub(super) attempts: Attempts,
    /// Records before this offset are given to plugins so that those which fail alone are found.
    isolate_before: Offset,
    /// How often it has stopped by itself at the same record.
    stops: (Offset, u32),
    /// Whether the broker was told to pause it.
    pub(super) paused: bool,
    lag: LagWatch,
}

/// A batch of which some records may be done already.
struct Held {
    batch: Arc<dyn SourceBatch>,
    from: usize,
}

enum State {
    Flowing,
    /// Stands still until then: a record is tried again (`stopped` false), or the partition has stopped.
    Still {
        until: Instant,
        code: String,
        message: String,
        error_id: Option<ErrorId>,
        stopped: bool,
    },
    /// Its offset is lost: it delivers nothing until it is assigned anew.
    Lost {
        message: String,
    },
}

impl Lane {
    pub(super) fn new(partition: TopicPartition) -> Self {
        Self {
            partition,
            held: VecDeque::new(),
            bytes: 0,
            taken: None,
            decided: None,
            state: State::Flowing,
            attempts: Attempts::default(),
            isolate_before: 0,
            stops: (0, 0),
            paused: false,
            lag: LagWatch::default(),
        }
    }

    /// Takes records that follow those held. Returns how many they are and their bytes.
    pub(super) fn push(&mut self, batch: Arc<dyn SourceBatch>) -> (usize, usize) {
        let bytes = batch.bytes();
        let records = batch.len();
        self.bytes += bytes + records * RECORD;
        self.lag.reached(batch.offset(records - 1) + 1);
        self.held.push_back(Held { batch, from: 0 });
        (records, bytes)
    }

    /// All before `offset` is done or held.
    pub(super) fn reached(&mut self, offset: Offset) {
        self.lag.reached(offset);
    }

    /// It goes on at `offset`, wherever it was.
    pub(super) fn moved(&mut self, offset: Offset) {
        self.lag.moved(offset);
    }

    /// How far behind it is, its log going as far as this; none while it is not known where it stands.
    pub(super) fn lag(&mut self, end: LogEnd, now: SystemTime) -> Option<PartitionLag> {
        let front = self
            .held
            .front()
            .map(|held| Front { offset: held.batch.offset(held.from), timestamp: held.batch.timestamp(held.from) });
        self.lag.look(&self.partition, front, end, now)
    }

    /// Batches with the records that are in no round yet and may be, in order.
    pub(super) fn work(&self) -> impl Iterator<Item = (&Arc<dyn SourceBatch>, Range<usize>)> {
        let from = self.taken.map_or(Offset::MIN, |(next, flows)| if flows { next } else { Offset::MAX });
        self.held.iter().filter_map(move |held| {
            let rest = held.from..held.batch.len();
            // (most are before it or behind it as a whole)
            match held.batch.offset(rest.end - 1) >= from {
                true if held.batch.offset(rest.start) >= from => Some((&held.batch, rest)),
                true => Some((&held.batch, rest.clone().find(|index| held.batch.offset(*index) >= from)?..rest.end)),
                false => None,
            }
        })
    }

    /// Records of it are in a round now, up to `next`; `flows`: those behind may follow in another.
    pub(super) fn take(&mut self, next: Offset, flows: bool) {
        self.taken = Some((next, flows));
    }

    /// Takes up what was decided about the first record that is in no round: at once, or when those before it are done.
    pub(super) fn decide(&mut self, after: After) {
        match &mut self.taken {
            None => self.follow(after),
            Some((_, flows)) => {
                *flows = false;
                self.decided = Some(after);
            }
        }
    }

    /// No record of it is in a round any more.
    pub(super) fn put_back(&mut self) {
        (self.taken, self.decided) = (None, None);
    }

    /// The first record that is not done, by its index in its batch.
    pub(super) fn next_record(&self) -> Option<(Arc<dyn SourceBatch>, usize)> {
        self.held.front().map(|held| (Arc::clone(&held.batch), held.from))
    }

    /// Whether there are records that are in no round yet and may be.
    pub(super) fn has_work(&self) -> bool {
        self.work().next().is_some()
    }

    /// Memory that is held, that of records in a batch that are done included: the batch keeps them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn flows(&self) -> bool {
        matches!(self.state, State::Flowing)
    }

    /// How many of these records, from the batch's first on, plugins have had their retries on.
    pub(super) fn isolated(&self, batch: &dyn SourceBatch, range: Range<usize>) -> usize {
        range.clone().find(|index| batch.offset(*index) >= self.isolate_before).unwrap_or(range.end)
    }

    /// Forgets the records before `next`, which are committed.
    pub(super) fn advance(&mut self, next: Offset) {
        self.forget(next);
        if self.taken.take_if(|(taken, _)| *taken <= next).is_some()
            && let Some(after) = self.decided.take()
        {
            self.follow(after);
        }
    }

    fn forget(&mut self, next: Offset) {
        while let Some(front) = self.held.front_mut() {
            let rest = front.from..front.batch.len();
            // (as a rule all of it is done, which its last record tells)
            let is_done = front.batch.offset(rest.end - 1) < next;
            let mut left = if is_done { 0..0 } else { rest };
            match left.find(|index| front.batch.offset(*index) >= next) {
                Some(index) => return front.from = index,
                None => {
                    let done = self.held.pop_front().expect("it was there a line ago");
                    self.bytes -= done.batch.bytes() + done.batch.len() * RECORD;
                }
            }
        }
    }

    /// Takes up what a unit decided about the partition.
    pub(super) fn follow(&mut self, after: After) {
        match after {
            After::Flow => {}
            After::Isolate(before) => self.isolate_before = before,
            After::Wait { attempts, wait, fault } => {
                self.attempts = attempts;
                let (until, code, message) = (clock::now() + wait, fault.code.to_string(), fault.message);
                let error_id = attempts.error_id;
                self.state = State::Still { until, code, message, error_id, stopped: false };
            }
            After::Stop { code, message, error_id } => self.stop(code, message, error_id),
        }
    }

    fn stop(&mut self, code: &str, message: String, error_id: Option<ErrorId>) {
        let front = self.front_offset().unwrap_or_default();
        let stops = if self.stops.0 == front { self.stops.1 + 1 } else { 1 };
        self.stops = (front, stops);
        self.attempts = Attempts::default();
        let wait = RESTART_FIRST.saturating_mul(1 << (stops - 1).min(16)).min(RESTART_LONGEST);
        let (until, code) = (clock::now() + wait, code.to_owned());
        self.state = State::Still { until, code, message, error_id, stopped: true };
    }

    /// The log no longer holds the offset to read next.
    pub(super) fn lose(&mut self, message: String) {
        self.state = State::Lost { message };
    }

    /// Starts a partition that stands still, now if `now`, else if its time has come. Returns whether it did.
    pub(super) fn wake(&mut self, now: bool) -> bool {
        let wakes = matches!(&self.state, State::Still { until, .. } if now || *until <= clock::now());
        if wakes {
            self.state = State::Flowing;
        }
        wakes
    }

    /// Starts anew under another task: its plugins have tried nothing yet.
    pub(super) fn renew(&mut self) {
        self.put_back();
        self.attempts = Attempts::default();
        self.isolate_before = 0;
        self.wake(true);
    }

    /// When it wakes by itself, where it stands still.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        match &self.state {
            State::Still { until, .. } => Some(*until),
            State::Flowing | State::Lost { .. } => None,
        }
    }

    /// How it stands still, where it does.
    pub(super) fn standing(&self) -> Option<HeldPartition> {
        let (until, code, message, error_id, stopped) = match &self.state {
            State::Flowing => return None,
            State::Still { until, code, message, error_id, stopped } => {
                (*until, code.as_str(), message, *error_id, *stopped)
            }
            State::Lost { message } => (clock::now(), "offset_lost", message, None, true),
        };
        let wait = until.saturating_duration_since(clock::now());
        Some(HeldPartition {
            partition: self.partition.clone(),
            offset: self.front_offset(),
            code: code.to_owned(),
            message: message.clone(),
            error_id,
            stopped,
            next_attempt: SystemTime::now() + wait,
        })
    }

    fn front_offset(&self) -> Option<Offset> {
        self.held.front().map(|held| held.batch.offset(held.from))
    }
}
