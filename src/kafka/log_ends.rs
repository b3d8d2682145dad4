//! Asks every few seconds how far the logs of a worker's partitions go. The client's own statistics know it only of
//! partitions that are fetched; lag is of interest where one is paused or stopped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{Offset, TopicPartition};
use crate::pipeline::ports::LogEnd;

use super::raw::Client;
use super::raw::admin::{Asked, Ends, Reader};

/// Between two looks; and how long brokers may take to answer a question of one.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where logs end, looked at now and then.
#[derive(Default)]
pub(super) struct LogEnds {
    next: Option<Instant>,
    step: Step,
}

/// What was asked. The high watermark first: where it is looked at before the last stable offset, what comes in between
/// cannot look like held back by a transaction.
#[derive(Default)]
enum Step {
    #[default]
    Idle,
    High(Asked<Ends>),
    Stable(Asked<Ends>, Vec<(TopicPartition, Offset)>),
}

impl LogEnds {
    /// Goes on with a look, or begins one where it is time to; what it found, at its end. Never waits.
    pub(super) fn look(
        &mut self,
        client: &Arc<Client>,
        owned: impl FnOnce() -> Vec<TopicPartition>,
    ) -> Option<Vec<(TopicPartition, LogEnd)>> {
        match std::mem::take(&mut self.step) {
            Step::Idle => {
                let now = Instant::now();
                // (soon after the first assignment, so that a start is not blind for long)
                let next = self.next.get_or_insert(now + LOOK_EVERY / 5);
                if *next > now {
                    return None;
                }
                let owned = owned();
                *next = now + if owned.is_empty() { LOOK_EVERY / 5 } else { LOOK_EVERY };
                if !owned.is_empty()
                    && let Some(asked) = Ends::ask(client, Reader::Uncommitted, owned, LOOK_EVERY)
                {
                    self.step = Step::High(asked);
                }
            }
            Step::High(asked) => match asked.answer(Duration::ZERO) {
                None => self.step = Step::High(asked),
                Some(Ok(Ends(high))) => {
                    let partitions = high.iter().map(|(partition, _)| partition.clone());
                    if let Some(asked) = Ends::ask(client, Reader::Committed, partitions, LOOK_EVERY) {
                        self.step = Step::Stable(asked, high);
                    }
                }
                // The brokers are in trouble, which others tell; what was last known stays.
                Some(Err(_)) => {}
            },
            Step::Stable(asked, high) => match asked.answer(Duration::ZERO) {
                None => self.step = Step::Stable(asked, high),
                Some(Ok(Ends(stable))) => return Some(together(&high, stable)),
                Some(Err(_)) => {}
            },
        }
        None
    }
}

fn together(high: &[(TopicPartition, Offset)], stable: Vec<(TopicPartition, Offset)>) -> Vec<(TopicPartition, LogEnd)> {
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
        assert_eq!(found, [(at(1), LogEnd { stable: 5, high: 7 }), (at(0), LogEnd { stable: 12, high: 12 })]);
    }
}
