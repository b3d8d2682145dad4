//! Notices partitions that nobody in the group owns, and does not find an owner by itself.
//!
//! In the cooperative protocol a member gives up what it has to, and joins again so that another gets it (KIP-429). Where
//! membership is static and the member dies between the two, its successor counts as the same member (KIP-345): the group
//! stays as it is, hands it what its predecessor was left with, and nobody joins again. A member that leaves and comes back
//! ends that; it is for the successor to do, so only a session that has just joined looks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use crate::model::{GroupId, TopicPartition};
use crate::pipeline::ports::{Trouble, TroubleKind};

use super::raw::{Client, Error, Group};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long more than its session timeout a member that is gone may count as one: by then the group has let others join.
const MARGIN: Duration = Duration::from_secs(6);

/// Looks after a static member's group, once it has joined.
pub(super) struct Unowned {
    /// So many looks in a row that find the same.
    enough: u32,
    state: State,
    /// The question that is under way, on a thread of its own.
    asked: Option<Receiver<Result<Option<BTreeSet<TopicPartition>>, Error>>>,
    found: (u32, BTreeSet<TopicPartition>),
}

enum State {
    Joining,
    /// When to look next.
    Looking(Instant),
    Done,
}

/// What a look tells.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    AllOwned,
    NotYet,
    Unowned(BTreeSet<TopicPartition>),
}

impl Unowned {
    /// `session_timeout`: the group's `session.timeout.ms`.
    pub(super) fn new(session_timeout: Duration) -> Self {
        let enough = (session_timeout + MARGIN).as_millis().div_ceil(LOOK_EVERY.as_millis());
        let enough = u32::try_from(enough).unwrap_or(u32::MAX);
        Self { enough, state: State::Joining, asked: None, found: (0, BTreeSet::new()) }
    }

    /// The group has shared its partitions out, with us in it.
    pub(super) fn assigned(&mut self) {
        if matches!(self.state, State::Joining) {
            self.state = State::Looking(Instant::now() + LOOK_EVERY);
        }
    }

    /// Looks, where it is time to; once it tells of a trouble, it expects that we leave and join again. Never waits. `all`: the
    /// partitions of the topics that are subscribed to.
    pub(super) fn look(
        &mut self,
        client: &Arc<Client>,
        group: &GroupId,
        all: impl FnOnce() -> BTreeSet<TopicPartition>,
    ) -> Option<Trouble> {
        let now = Instant::now();
        if let Some(answer) = self.answer() {
            let told = self.told(answer.map(|owned| all().difference(&owned).cloned().collect()));
            match told {
                Told::NotYet => {}
                Told::AllOwned => self.state = State::Done,
                Told::Unowned(partitions) => {
                    self.state = State::Joining;
                    return Some(trouble(group, &partitions, LOOK_EVERY * self.enough));
                }
            }
        }
        if let State::Looking(next) = &mut self.state
            && *next <= now
            && self.asked.is_none()
        {
            *next = now + LOOK_EVERY;
            self.asked = ask(client, group);
        }
        None
    }

    /// What is owned, once it is answered; none of a group that is about to share out what it has, or that cannot be asked.
    fn answer(&mut self) -> Option<Option<BTreeSet<TopicPartition>>> {
        let answer = match self.asked.as_ref()?.try_recv() {
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => None,
            Ok(answer) => answer.ok().flatten(),
        };
        self.asked = None;
        Some(answer)
    }

    /// Takes up what a look has found; `None`: the group is about to share its partitions out, or nobody answers.
    fn told(&mut self, unowned: Option<BTreeSet<TopicPartition>>) -> Told {
        let Some(unowned) = unowned else {
            self.found = (0, BTreeSet::new());
            return Told::NotYet;
        };
        if unowned.is_empty() {
            return Told::AllOwned;
        }
        let looks = if unowned == self.found.1 { self.found.0 + 1 } else { 1 };
        self.found = (looks, unowned);
        if looks < self.enough { Told::NotYet } else { Told::Unowned(std::mem::take(&mut self.found).1) }
    }
}

/// Asks who owns what, on a thread of its own: the call waits for all brokers.
fn ask(client: &Arc<Client>, group: &GroupId) -> Option<Receiver<Result<Option<BTreeSet<TopicPartition>>, Error>>> {
    let (client, group) = (Arc::clone(client), group.clone());
    let (tell, told) = mpsc::channel();
    let question = move || {
        let found = client.group(&group, LOOK_EVERY);
        let owned = |group: Group| group.is_stable.then(|| group.members.into_iter().flat_map(|of| of.owned).collect());
        let _ = tell.send(found.map(|group| group.and_then(owned)));
    };
    std::thread::Builder::new().name("kafka-group".into()).spawn(question).ok().map(|_| told)
}

fn trouble(group: &GroupId, partitions: &BTreeSet<TopicPartition>, time: Duration) -> Trouble {
    let names: Vec<_> = partitions.iter().map(ToString::to_string).collect();
    let (names, seconds) = (names.join(", "), time.as_secs());
    Trouble {
        code: "UNOWNED".into(),
        message: format!(
            "no member of the group {group} has owned {names} for {seconds} s, as it happens when a static member dies in the \
             middle of a rebalance: this one leaves and joins again, so that the group shares them out"
        ),
        kind: TroubleKind::Passing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TopicName;

    fn of(partitions: &[i32]) -> Option<BTreeSet<TopicPartition>> {
        let topic = || TopicName::new("t").unwrap();
        Some(partitions.iter().map(|at| TopicPartition { topic: topic(), partition: *at }).collect())
    }

    #[test]
    fn the_same_partitions_without_an_owner_for_longer_than_a_dead_member_counts_are_told() {
        let mut looks = Unowned::new(Duration::from_secs(6));
        for _ in 0..3 {
            assert_eq!(looks.told(of(&[1, 2])), Told::NotYet);
        }
        assert_eq!(looks.told(of(&[1, 2])), Told::Unowned(of(&[1, 2]).unwrap()));
        let trouble = trouble(&GroupId::new("g").unwrap(), &of(&[1, 2]).unwrap(), LOOK_EVERY * looks.enough);
        assert!(trouble.message.starts_with("no member of the group g has owned t/1, t/2 for 12 s"), "{trouble:?}");
    }

    #[test]
    fn others_or_a_rebalance_in_between_begin_the_count_anew() {
        for between in [of(&[1]), None] {
            let mut looks = Unowned::new(Duration::from_secs(6));
            for unowned in [of(&[1, 2]), of(&[1, 2]), of(&[1, 2]), between, of(&[1, 2]), of(&[1, 2]), of(&[1, 2])] {
                assert_eq!(looks.told(unowned), Told::NotYet);
            }
        }
    }

    #[test]
    fn a_group_that_owns_all_is_not_looked_at_any_more() {
        let mut looks = Unowned::new(Duration::from_secs(6));
        assert_eq!(looks.told(of(&[1])), Told::NotYet);
        assert_eq!(looks.told(of(&[])), Told::AllOwned);
    }
}
