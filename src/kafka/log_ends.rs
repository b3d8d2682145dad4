//! Asks every few seconds, once for all workers of the process, how far the logs of their partitions go, and whether their topics
//! are still the same. The consumers' own statistics know the ends only of partitions that are fetched; lag is of interest where
//! one is paused or stopped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::model::{Offset, TopicName, TopicPartition};
use crate::pipeline::ports::LogEnd;

use super::raw::Client;
use super::raw::admin::{Asked, Ends, Reader};

/// Between two looks; and how long brokers may take to answer a question of one.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How soon one follows a change of what is to be looked at, so that a start is not blind for long.
const SOON: Duration = Duration::from_secs(1);
/// Topics are looked at in each look of so many, and this long.
const TOPICS_EVERY: u64 = 2;
const TOPICS_WITHIN: Duration = Duration::from_secs(2);
/// So many looks are left out after one that nobody answered: until it is known whether brokers answer at all.
const LEFT_OUT: u64 = 4;
/// How long the end of the process may wait for a question that is under way.
const STEP: Duration = Duration::from_millis(100);

/// What the last look has found.
#[derive(Default)]
pub(super) struct Found {
    number: u64,
    pub(super) ends: HashMap<TopicPartition, LogEnd>,
    /// The topics' ids, and when they were asked for.
    pub(super) ids: Option<(Instant, BTreeMap<TopicName, String>)>,
}

/// The process's looks. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Looks(Arc<Shared>);

#[derive(Default)]
struct Shared {
    watched: Mutex<Watched>,
    changed: Condvar,
    found: ArcSwap<Found>,
}

#[derive(Default)]
struct Watched {
    of: HashMap<u64, Vec<TopicPartition>>,
    sessions: u64,
    next: Option<Instant>,
    ended: bool,
}

/// A session's part in them.
pub(super) struct LogEnds {
    looks: Looks,
    id: u64,
    seen: u64,
}

impl LogEnds {
    /// From now on looks at these. There is news with the next look.
    pub(super) fn watch(&mut self, owned: Vec<TopicPartition>) {
        self.seen = self.looks.0.found.load().number;
        let soon = Instant::now() + SOON;
        let mut watched = self.looks.0.watched();
        watched.next = Some(watched.next.map_or(soon, |next| next.min(soon)));
        watched.of.insert(self.id, owned);
        self.looks.0.changed.notify_all();
    }

    /// What was found since this was last asked.
    pub(super) fn look(&mut self) -> Option<Arc<Found>> {
        let found = self.looks.0.found.load();
        (std::mem::replace(&mut self.seen, found.number) != found.number).then(|| Arc::clone(&found))
    }
}

impl Drop for LogEnds {
    fn drop(&mut self) {
        self.looks.0.watched().of.remove(&self.id);
    }
}

impl Looks {
    pub(super) fn join(&self) -> LogEnds {
        let mut watched = self.0.watched();
        watched.sessions += 1;
        LogEnds { looks: self.clone(), id: watched.sessions, seen: 0 }
    }

    /// Ends [`Looks::run`].
    pub(super) fn end(&self) {
        self.0.watched().ended = true;
        self.0.changed.notify_all();
    }

    /// Looks until the end. `answers`: whether brokers do, since a client that has a question for one that is gone tries to connect
    /// to it without a pause.
    pub(super) fn run(&self, client: &Arc<Client>, answers: impl Fn() -> bool) {
        let (mut number, mut left_out) = (0, 0);
        let mut ids = None;
        while let Some(partitions) = self.0.next() {
            number += 1;
            if left_out > 0 || !answers() {
                left_out = u64::saturating_sub(left_out, 1);
                continue;
            }
            let Some(ends) = self.ends(client, &partitions) else {
                left_out = LEFT_OUT;
                continue;
            };
            if number % TOPICS_EVERY == 1 {
                ids = topic_ids(client, &partitions).or(ids);
            }
            self.0.found.store(Arc::new(Found { number, ends, ids: ids.clone() }));
        }
    }

    /// The high watermark first: where it is looked at before the last stable offset, what comes in between cannot look like held
    /// back by a transaction.
    fn ends(
        &self,
        client: &Arc<Client>,
        partitions: &BTreeSet<TopicPartition>,
    ) -> Option<HashMap<TopicPartition, LogEnd>> {
        let high = self.answer(&Ends::ask(client, Reader::Uncommitted, partitions.iter().cloned(), LOOK_EVERY)?)?;
        let known = high.iter().map(|(partition, _)| partition.clone());
        let stable = self.answer(&Ends::ask(client, Reader::Committed, known, LOOK_EVERY)?)?;
        Some(together(&high, stable))
    }

    /// `None`: the brokers are in trouble, which others tell, and what was last known stays; or the end has come.
    fn answer(&self, asked: &Asked<Ends>) -> Option<Vec<(TopicPartition, Offset)>> {
        let until = Instant::now() + LOOK_EVERY;
        while Instant::now() < until && !self.0.watched().ended {
            if let Some(answer) = asked.answer(STEP) {
                return answer.ok().map(|Ends(ends)| ends);
            }
        }
        None
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        // (every change of it is complete before anything that could panic)
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to look at, when it is time to; `None` at the end.
    fn next(&self) -> Option<BTreeSet<TopicPartition>> {
        let mut watched = self.watched();
        loop {
            let now = Instant::now();
            if watched.ended {
                return None;
            }
            watched = match watched.next {
                Some(next) if next > now => {
                    let waited = self.changed.wait_timeout(watched, next - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                Some(_) => {
                    let all: BTreeSet<_> = watched.of.values().flatten().cloned().collect();
                    // (with none to look at, the next change says when)
                    watched.next = (!all.is_empty()).then(|| now + LOOK_EVERY);
                    if !all.is_empty() {
                        return Some(all);
                    }
                    watched
                }
                None => self.changed.wait(watched).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

fn topic_ids(client: &Client, partitions: &BTreeSet<TopicPartition>) -> Option<(Instant, BTreeMap<TopicName, String>)> {
    // The mock cluster never answers such a request, nor can its topics be deleted.
    if client.is_mock_cluster() {
        return None;
    }
    let asked = Instant::now();
    let topics: BTreeSet<_> = partitions.iter().map(|partition| partition.topic.clone()).collect();
    let ids = client.topic_ids(&topics.into_iter().collect::<Vec<_>>(), TOPICS_WITHIN).ok()?;
    Some((asked, ids))
}

fn together(
    high: &[(TopicPartition, Offset)],
    stable: Vec<(TopicPartition, Offset)>,
) -> HashMap<TopicPartition, LogEnd> {
    let high: HashMap<_, _> = high.iter().map(|(partition, high)| (partition, *high)).collect();
    let with_high = |(partition, stable): (TopicPartition, Offset)| {
        let high = *high.get(&partition)?;
        Some((partition, LogEnd { stable, high: high.max(stable) }))
    };
    stable.into_iter().filter_map(with_high).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TopicName;

    #[test]
    fn what_came_between_the_two_questions_is_not_held_back() {
        let at = |partition| TopicPartition { topic: TopicName::new("t").unwrap(), partition };
        let high = [(at(0), 10), (at(1), 7), (at(2), 3)];
        let found = together(&high, vec![(at(1), 5), (at(0), 12), (at(9), 1)]);
        let expected = [(at(1), LogEnd { stable: 5, high: 7 }), (at(0), LogEnd { stable: 12, high: 12 })];
        assert_eq!(found, HashMap::from(expected));
    }

    #[test]
    fn a_look_follows_soon_after_a_change_and_is_for_all_that_sessions_have() {
        let at = |partition| TopicPartition { topic: TopicName::new("t").unwrap(), partition };
        let looks = Looks::default();
        let (mut first, mut second) = (looks.join(), looks.join());
        let began = Instant::now();
        first.watch(vec![at(0)]);
        second.watch(vec![at(0), at(1)]);
        assert_eq!(looks.0.next(), Some(BTreeSet::from([at(0), at(1)])));
        assert!(began.elapsed() >= SOON && looks.0.watched().next > Some(began + LOOK_EVERY));
        drop(second);
        first.watch(vec![at(2)]);
        assert_eq!(looks.0.next(), Some(BTreeSet::from([at(2)])));
        looks.end();
        assert_eq!(looks.0.next(), None);
    }
}
