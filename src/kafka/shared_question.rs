//! Topics' ids, asked for by whoever takes partitions up. Hundreds of routes do at the same moment, when a process starts: those that
//! come while a question is under way share the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::TopicName;

use super::raw::{Error, Known, lock};

type Ids = BTreeMap<TopicName, String>;

/// One question at a time.
#[derive(Default)]
pub(super) struct SharedQuestion {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What the next question is about.
    next: BTreeSet<TopicName>,
    /// How many have been asked, and which was answered last, and how.
    asked: u64,
    answered: u64,
    answer: Option<Result<Arc<Ids>, Error>>,
}

impl SharedQuestion {
    /// The ids of those of these topics that exist; `ask` is called for those that others have named meanwhile, too.
    ///
    /// # Errors
    /// Those of `ask`, or that it took longer than `wait`.
    pub(super) fn ask(
        &self,
        topics: &[TopicName],
        wait: Duration,
        ask: impl Fn(&[TopicName], Duration) -> Result<Ids, Error>,
    ) -> Result<Ids, Error> {
        let deadline = Instant::now() + wait;
        let mut state = lock(&self.state);
        loop {
            state.next.extend(topics.iter().cloned());
            let mine = state.asked + 1;
            while state.answered < mine {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Error::of(Known::RD_KAFKA_RESP_ERR__TIMED_OUT.into()));
                }
                // (nobody is asking)
                if state.asked == state.answered {
                    state.asked += 1;
                    let all: Vec<_> = std::mem::take(&mut state.next).into_iter().collect();
                    drop(state);
                    let answer = ask(&all, left).map(Arc::new);
                    state = lock(&self.state);
                    (state.answered, state.answer) = (state.asked, Some(answer.clone()));
                    self.changed.notify_all();
                    return of(topics, answer);
                }
                state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.answered == mine
                && let Some(answer) = state.answer.clone()
            {
                return of(topics, answer);
            }
            // (a later question was answered before this thread came to its turn)
        }
    }
}

fn of(topics: &[TopicName], answer: Result<Arc<Ids>, Error>) -> Result<Ids, Error> {
    let ids = answer?;
    Ok(topics.iter().filter_map(|topic| Some((topic.clone(), ids.get(topic)?.clone()))).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    fn topic(number: usize) -> TopicName {
        TopicName::new(format!("t{number}")).unwrap()
    }

    #[test]
    fn those_that_come_while_a_question_is_under_way_share_the_next_one_and_get_what_they_asked_for() {
        const OTHERS: usize = 20;
        let question = SharedQuestion::default();
        let (asked, under_way) = (AtomicUsize::new(0), Barrier::new(2));
        let id = |topic: &TopicName| (topic.clone(), format!("id of {}", topic.as_str()));
        let answer = |topics: &[TopicName], _| {
            if asked.fetch_add(1, SeqCst) == 0 {
                under_way.wait();
                // (until all others wait for the next)
                while lock(&question.state).next.len() < OTHERS {
                    std::thread::yield_now();
                }
            }
            Ok(topics.iter().map(id).collect())
        };
        let ask = |number| question.ask(&[topic(number)], Duration::from_secs(30), answer).unwrap();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| ask(0));
            under_way.wait();
            let others: Vec<_> = (1..=OTHERS).map(|number| scope.spawn(move || (number, ask(number)))).collect();
            assert_eq!(first.join().unwrap(), Ids::from([id(&topic(0))]));
            for other in others {
                let (number, got) = other.join().unwrap();
                assert_eq!(got, Ids::from([id(&topic(number))]));
            }
        });
        assert_eq!(asked.load(SeqCst), 2);
    }

    #[test]
    fn one_that_takes_too_long_is_given_up_by_those_that_wait() {
        let question = SharedQuestion::default();
        let (begun, done) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                question.ask(&[topic(0)], Duration::from_secs(30), |_, _| {
                    begun.wait();
                    done.wait();
                    Ok(Ids::new())
                })
            });
            begun.wait();
            let late = question.ask(&[topic(1)], Duration::from_millis(20), |_, _| unreachable!("one is asking"));
            assert_eq!(late.unwrap_err().code, Known::RD_KAFKA_RESP_ERR__TIMED_OUT.into());
            done.wait();
        });
    }
}
